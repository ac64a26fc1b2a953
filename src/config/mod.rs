//! Every setting, read from the environment or the command line and checked together
//! before anything starts. The only reader of the environment.

mod check;
mod command_line;
mod settings;
mod sources;
#[cfg(test)]
mod tests;
mod urls;

use std::fmt;

pub use self::check::{BrokerCertificates, Checked, ClientIdentity, host_name};
pub use self::command_line::{Parsed, parse_all};
pub(crate) use self::settings::parse_duration;
pub use self::settings::{
    BrokerSettings, DatabaseSettings, FingerprintSettings, JobSettings, KeySettings, LogSettings,
    ProviderArgs, ReadBackSettings, RunSettings, TopologyMode, VerificationSettings, WorkSettings,
};
pub use self::sources::{EnvFile, SettingSource, setting_sources};
pub use self::urls::parse_amqp_url;

/// A secret as it was given. It never shows.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Secret(String);

impl Secret {
    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// What is wrong with a setting, and what to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SettingFault {
    /// The variable, or variables, to change.
    pub setting: String,
    /// The fault and its remedy.
    pub reason: String,
}

impl SettingFault {
    /// A fault of `setting`.
    pub fn new(setting: &str, reason: impl Into<String>) -> Self {
        Self { setting: setting.to_owned(), reason: reason.into() }
    }
}

impl std::error::Error for SettingFault {}

impl fmt::Display for SettingFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.setting, self.reason)
    }
}
