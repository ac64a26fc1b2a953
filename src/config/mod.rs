//! Every setting, read from the environment or the command line and checked together
//! before anything starts. The only reader of the environment.

mod check;
mod command_line;
mod console;
mod fault;
mod secret;
mod settings;
mod sources;
#[cfg(test)]
mod tests;
mod urls;

pub use self::check::{BrokerCertificates, Checked, ClientIdentity, Otlp, host_name};
pub use self::command_line::{Parsed, parse_all};
pub use self::console::{CheckedConsole, ConsoleSettings, Login, SECRET_HEADER, user_name};
pub use self::fault::SettingFault;
pub use self::secret::Secret;
pub(crate) use self::settings::parse_duration;
pub use self::settings::{
    BrokerSettings, DatabaseSettings, FingerprintSettings, JobSettings, KeySettings, LogSettings,
    ProviderArgs, ReadBackSettings, RunSettings, TopologyMode, TraceSettings, VerificationSettings,
    WorkSettings,
};
pub use self::sources::{EnvFile, SettingSource, setting_sources, told_settings};
pub(crate) use self::urls::is_loopback;
pub use self::urls::{database_urls, parse_amqp_url};
