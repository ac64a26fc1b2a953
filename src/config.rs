//! Every setting, read from the environment or the command line and checked together
//! before anything starts. The only reader of the environment.

mod sources;

use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, Args, Command};
use url::{Host, Url};

pub use self::sources::{EnvFile, SettingSource, setting_sources};
use crate::domain::canonical_json::Profile;
use crate::domain::job::Rules;
use crate::domain::read_back::{Timing, UnverifiedMeans};
use crate::domain::retry::RetrySchedule;
use crate::domain::signature::Signer;
use crate::domain::verification::Tracking;
use crate::journal::seal::{Fingerprinter, Keyring};
use crate::telemetry::LogFormat;

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

/// Whether the worker declares its exchanges and queues or expects to find them.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum TopologyMode {
    /// Declare them.
    Declare,
    /// Check that they exist; for brokers that operators manage.
    Verify,
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

/// Logs.
#[derive(Args, Clone, Debug)]
pub struct LogSettings {
    /// How log lines are written [default: text on a terminal, else json]
    #[arg(long, env = "LOG_FORMAT", value_name = "json|text", help_heading = "Logs")]
    pub log_format: Option<LogFormat>,

    /// Which events are logged: a level, or directives such as kyc_worker=debug
    #[arg(long, env = "RUST_LOG", default_value = "info", help_heading = "Logs")]
    pub rust_log: String,
}

/// Postgres.
#[derive(Args, Clone, Debug)]
pub struct DatabaseSettings {
    /// Postgres, postgres://user:password@host:port/database?sslmode=verify-full (secret)
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true, help_heading = "Database")]
    pub database_url: Option<Secret>,

    /// A file that holds DATABASE_URL
    #[arg(long, env = "DATABASE_URL_FILE", value_name = "FILE", help_heading = "Database")]
    pub database_url_file: Option<PathBuf>,

    /// How many connections a replica may hold, two of them for what many jobs write at once
    #[arg(
        long,
        env = "DATABASE_CONNECTIONS",
        default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(3..=1000),
        help_heading = "Database"
    )]
    pub database_connections: u32,
}

/// RabbitMQ: where it is, and the names of its exchanges and queues.
#[derive(Args, Clone, Debug)]
pub struct BrokerSettings {
    /// RabbitMQ, amqp://user:password@host:port/vhost, or amqps:// (secret)
    #[arg(long, env = "AMQP_URL", value_name = "URL", hide_env_values = true, help_heading = "Broker")]
    pub amqp_url: Option<Secret>,

    /// A file that holds AMQP_URL
    #[arg(long, env = "AMQP_URL_FILE", value_name = "FILE", help_heading = "Broker")]
    pub amqp_url_file: Option<PathBuf>,

    /// A PEM file of certificate authorities to trust for amqps, beside the platform's
    #[arg(long, env = "AMQP_CA_FILE", value_name = "FILE", help_heading = "Broker")]
    pub amqp_ca_file: Option<PathBuf>,

    /// A PEM file with our client certificate for amqps, and AMQP_KEY_FILE with its key
    #[arg(long, env = "AMQP_CERT_FILE", value_name = "FILE", help_heading = "Broker")]
    pub amqp_cert_file: Option<PathBuf>,

    /// A PEM file with the key of AMQP_CERT_FILE
    #[arg(long, env = "AMQP_KEY_FILE", value_name = "FILE", help_heading = "Broker")]
    pub amqp_key_file: Option<PathBuf>,

    /// The direct exchange that jobs are published to
    #[arg(long, env = "EXCHANGE", default_value = "kyc", help_heading = "Broker")]
    pub exchange: String,

    /// The queue that jobs wait in
    #[arg(long, env = "QUEUE", default_value = "kyc.document-updates", help_heading = "Broker")]
    pub queue: String,

    /// The routing key that binds the queue to the exchange
    #[arg(long, env = "ROUTING_KEY", default_value = "document-update", help_heading = "Broker")]
    pub routing_key: String,

    /// The exchange that dead letters pass
    #[arg(long, env = "DEAD_LETTER_EXCHANGE", default_value = "kyc.dlx", help_heading = "Broker")]
    pub dead_letter_exchange: String,

    /// The queue that keeps what cannot become a job
    #[arg(long, env = "DEAD_LETTER_QUEUE", default_value = "kyc.dead-letters", help_heading = "Broker")]
    pub dead_letter_queue: String,

    /// How long the broker keeps a dead letter
    #[arg(
        long,
        env = "DEAD_LETTER_TTL",
        default_value = "30d",
        value_parser = parse_duration,
        help_heading = "Broker"
    )]
    pub dead_letter_ttl: Duration,

    /// Whether to take the provider's webhooks from a queue, into which a gateway puts them
    #[arg(
        long,
        env = "CUSTOMER_EVENTS",
        default_value_t = false,
        num_args = 0..=1,
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        help_heading = "Broker"
    )]
    pub customer_events: bool,

    /// The queue that the provider's webhooks wait in
    #[arg(
        long,
        env = "CUSTOMER_EVENTS_QUEUE",
        default_value = "kyc.customer-events",
        help_heading = "Broker"
    )]
    pub customer_events_queue: String,

    /// The routing key that binds that queue to the exchange
    #[arg(
        long,
        env = "CUSTOMER_EVENTS_ROUTING_KEY",
        default_value = "customer-event",
        help_heading = "Broker"
    )]
    pub customer_events_routing_key: String,

    /// Declare the exchanges and queues, or verify that they exist
    #[arg(
        long,
        env = "TOPOLOGY",
        default_value = "declare",
        value_name = "declare|verify",
        help_heading = "Broker"
    )]
    pub topology: TopologyMode,
}

/// The provider: where it is, our credentials there, and how long it may take.
#[derive(Args, Clone, Debug)]
pub struct ProviderArgs {
    /// The API's base URL, https unless on this machine
    #[arg(
        long,
        env = "DOLLARPE_BASE_URL",
        value_name = "URL",
        default_value = "https://sandbox.dollarpe.xyz/cms/api/v1",
        help_heading = "Provider"
    )]
    pub dollarpe_base_url: String,

    /// A PEM file of certificate authorities to trust for the API, beside the platform's
    #[arg(long, env = "DOLLARPE_CA_FILE", value_name = "FILE", help_heading = "Provider")]
    pub dollarpe_ca_file: Option<PathBuf>,

    /// The API key of that environment (secret)
    #[arg(
        long,
        env = "DOLLARPE_API_KEY",
        value_name = "KEY",
        hide_env_values = true,
        help_heading = "Provider"
    )]
    pub dollarpe_api_key: Option<Secret>,

    /// A file that holds DOLLARPE_API_KEY
    #[arg(long, env = "DOLLARPE_API_KEY_FILE", value_name = "FILE", help_heading = "Provider")]
    pub dollarpe_api_key_file: Option<PathBuf>,

    /// The API secret of that environment (secret)
    #[arg(
        long,
        env = "DOLLARPE_API_SECRET",
        value_name = "SECRET",
        hide_env_values = true,
        help_heading = "Provider"
    )]
    pub dollarpe_api_secret: Option<Secret>,

    /// A file that holds DOLLARPE_API_SECRET
    #[arg(long, env = "DOLLARPE_API_SECRET_FILE", value_name = "FILE", help_heading = "Provider")]
    pub dollarpe_api_secret_file: Option<PathBuf>,

    /// The canonical form of a request that is signed and sent
    #[arg(
        long,
        env = "DOLLARPE_SIGNING_PROFILE",
        default_value = "compact",
        value_name = "compact|compact-utf8|spaced",
        help_heading = "Provider"
    )]
    pub dollarpe_signing_profile: Profile,

    /// From a request's start to the last byte of its answer
    #[arg(
        long,
        env = "REQUEST_TIMEOUT",
        default_value = "15s",
        value_parser = parse_duration,
        help_heading = "Provider"
    )]
    pub request_timeout: Duration,

    /// From the start of a look at a customer to the last byte of its answer
    #[arg(
        long,
        env = "READ_TIMEOUT",
        default_value = "10s",
        value_parser = parse_duration,
        help_heading = "Provider"
    )]
    pub read_timeout: Duration,

    /// From a claim to the first byte of its request; past it, nothing is sent
    #[arg(
        long,
        env = "SEND_WINDOW",
        default_value = "5s",
        value_parser = parse_duration,
        help_heading = "Provider"
    )]
    pub send_window: Duration,

    /// HTTP statuses that surely applied nothing, comma separated, such as a gateway's 503
    #[arg(
        long,
        env = "NOT_APPLIED_STATUSES",
        value_delimiter = ',',
        value_name = "STATUS,…",
        help_heading = "Provider"
    )]
    pub not_applied_statuses: Vec<u16>,
}

/// How an attempt of unknown fate is looked into, and what a customer may spend.
#[derive(Args, Clone, Debug)]
pub struct ReadBackSettings {
    /// From the end of an attempt of unknown fate to the first look at its customer
    #[arg(
        long,
        env = "READ_BACK_AFTER",
        default_value = "15s",
        value_parser = parse_duration,
        help_heading = "Read-back"
    )]
    pub read_back_after: Duration,

    /// The shortest verification there is: a look inside it shows an update that was applied
    #[arg(
        long,
        env = "READ_BACK_WINDOW",
        default_value = "60s",
        value_parser = parse_duration,
        help_heading = "Read-back"
    )]
    pub read_back_window: Duration,

    /// How many looks must agree that an update was not applied before it is sent again
    #[arg(
        long,
        env = "READ_BACK_CONFIRMATIONS",
        default_value_t = 2,
        value_parser = clap::value_parser!(u32).range(1..=10),
        help_heading = "Read-back"
    )]
    pub read_back_confirmations: u32,

    /// From the end of an attempt of unknown fate to when a person is asked
    #[arg(
        long,
        env = "READ_BACK_DEADLINE",
        default_value = "2h",
        value_parser = parse_duration,
        help_heading = "Read-back"
    )]
    pub read_back_deadline: Duration,

    /// What UNVERIFIED after an attempt of unknown fate means
    #[arg(
        long,
        env = "READ_BACK_UNVERIFIED",
        default_value = "inconclusive",
        value_name = "inconclusive|not-applied",
        help_heading = "Read-back"
    )]
    pub read_back_unverified: UnverifiedMeans,

    /// Look at every customer before the first attempt, as evidence
    #[arg(
        long,
        env = "BASELINE_READ",
        default_value_t = false,
        num_args = 0..=1,
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        help_heading = "Read-back"
    )]
    pub baseline_read: bool,

    /// The shortest time between two looks at a customer that settle nothing
    #[arg(
        long,
        env = "CUSTOMER_READ_INTERVAL",
        default_value = "60s",
        value_parser = parse_duration,
        help_heading = "Read-back"
    )]
    pub customer_read_interval: Duration,

    /// How many updates the provider allows a customer, ever; a resend never takes the last
    #[arg(
        long,
        env = "CUSTOMER_UPDATE_LIMIT",
        default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(1..=1000),
        help_heading = "Read-back"
    )]
    pub customer_update_limit: u32,
}

/// How the verifications of accepted updates are followed.
#[derive(Args, Clone, Debug)]
pub struct VerificationSettings {
    /// From an acceptance to the first look at its verification, and between two at least
    #[arg(
        long,
        env = "VERIFICATION_POLL_AFTER",
        default_value = "60s",
        value_parser = parse_duration,
        help_heading = "Verification"
    )]
    pub verification_poll_after: Duration,

    /// The longest time between two looks at a verification; four times that once it is overdue
    #[arg(
        long,
        env = "VERIFICATION_POLL_MAX",
        default_value = "15m",
        value_parser = parse_duration,
        help_heading = "Verification"
    )]
    pub verification_poll_max: Duration,

    /// From an acceptance to when its verification is overdue, and an error is logged
    #[arg(
        long,
        env = "VERIFICATION_DEADLINE",
        default_value = "6h",
        value_parser = parse_duration,
        help_heading = "Verification"
    )]
    pub verification_deadline: Duration,

    /// From an acceptance to when its verification is not looked at any more
    #[arg(
        long,
        env = "VERIFICATION_GIVE_UP",
        default_value = "7d",
        value_parser = parse_duration,
        help_heading = "Verification"
    )]
    pub verification_give_up: Duration,

    /// How many looks at verifications all replicas together begin a second
    #[arg(
        long,
        env = "VERIFICATION_READS_PER_SECOND",
        default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(1..=1000),
        help_heading = "Verification"
    )]
    pub verification_reads_per_second: u32,

    /// How far a webhook's X-TIMESTAMP may be from when it was published, either way
    #[arg(
        long,
        env = "CUSTOMER_EVENT_AGE_MAX",
        default_value = "5m",
        value_parser = parse_duration,
        help_heading = "Verification"
    )]
    pub customer_event_age_max: Duration,
}

/// Which jobs are valid.
#[derive(Args, Clone, Debug)]
pub struct JobSettings {
    /// Document types that a job may name, comma separated
    #[arg(
        long,
        env = "DOCUMENT_TYPES",
        value_delimiter = ',',
        default_value = "AADHAAR,PASSPORT,VOTER_ID,DRIVING_LICENSE",
        value_name = "TYPE,…",
        help_heading = "Jobs"
    )]
    pub document_types: Vec<String>,

    /// Whether document links may be http
    #[arg(
        long,
        env = "ALLOW_HTTP_LINKS",
        default_value_t = false,
        num_args = 0..=1,
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        help_heading = "Jobs"
    )]
    pub allow_http_links: bool,

    /// Whether document links may end without .jpg, .jpeg, .png or .pdf
    #[arg(
        long,
        env = "ALLOW_EXTENSIONLESS_LINKS",
        default_value_t = false,
        num_args = 0..=1,
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        help_heading = "Jobs"
    )]
    pub allow_extensionless_links: bool,
}

/// Keys for what is stored.
#[derive(Args, Clone, Debug)]
pub struct KeySettings {
    /// Seals payloads at rest: base64 of 32 bytes, or id:base64,… to rotate; the first seals, all open (secret)
    #[arg(long, env = "PAYLOAD_KEY", value_name = "KEY", hide_env_values = true, help_heading = "Keys")]
    pub payload_key: Option<Secret>,

    /// A file that holds PAYLOAD_KEY
    #[arg(long, env = "PAYLOAD_KEY_FILE", value_name = "FILE", help_heading = "Keys")]
    pub payload_key_file: Option<PathBuf>,

    /// Fingerprints.
    #[command(flatten)]
    pub fingerprint: FingerprintSettings,

    /// How long the payload of a job that a person may send again is kept
    #[arg(
        long,
        env = "PAYLOAD_RETENTION",
        default_value = "30d",
        value_parser = parse_duration,
        help_heading = "Keys"
    )]
    pub payload_retention: Duration,
}

/// The key that contents are fingerprinted with, and histories are chained with.
#[derive(Args, Clone, Debug)]
pub struct FingerprintSettings {
    /// Fingerprints contents and chains histories: base64 of 32 bytes or more; never rotate it (secret)
    #[arg(long, env = "FINGERPRINT_KEY", value_name = "KEY", hide_env_values = true, help_heading = "Keys")]
    pub fingerprint_key: Option<Secret>,

    /// A file that holds FINGERPRINT_KEY
    #[arg(long, env = "FINGERPRINT_KEY_FILE", value_name = "FILE", help_heading = "Keys")]
    pub fingerprint_key_file: Option<PathBuf>,
}

/// How much is done at once, and when it is done again.
#[derive(Args, Clone, Debug)]
pub struct WorkSettings {
    /// How many jobs a replica works on at once
    #[arg(
        long,
        env = "CONCURRENCY",
        default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(1..=4096),
        help_heading = "Work"
    )]
    pub concurrency: u32,

    /// How many deliveries a replica holds unacknowledged; two to four times CONCURRENCY is fastest
    #[arg(
        long,
        env = "PREFETCH",
        default_value_t = 192,
        value_parser = clap::value_parser!(u16).range(1..),
        help_heading = "Work"
    )]
    pub prefetch: u16,

    /// How long a claim on a job lasts; a replica that vanished is replaced after it
    #[arg(
        long,
        env = "CLAIM_LEASE",
        default_value = "25s",
        value_parser = parse_duration,
        help_heading = "Work"
    )]
    pub claim_lease: Duration,

    /// How often the database is asked for jobs that are due
    #[arg(
        long,
        env = "SCHEDULER_POLL",
        default_value = "1s",
        value_parser = parse_duration,
        help_heading = "Work"
    )]
    pub scheduler_poll: Duration,

    /// The first delay before a retry; each next one is twice as long
    #[arg(
        long,
        env = "RETRY_DELAY_MIN",
        default_value = "500ms",
        value_parser = parse_duration,
        help_heading = "Work"
    )]
    pub retry_delay_min: Duration,

    /// The longest delay before a retry, and the longest Retry-After that is honoured
    #[arg(
        long,
        env = "RETRY_DELAY_MAX",
        default_value = "1h",
        value_parser = parse_duration,
        help_heading = "Work"
    )]
    pub retry_delay_max: Duration,

    /// How many attempts may be answered, throttled or not sent before a job is exhausted
    #[arg(
        long,
        env = "RETRY_MAX_ATTEMPTS",
        default_value_t = 36,
        value_parser = clap::value_parser!(u32).range(1..=1000),
        help_heading = "Work"
    )]
    pub retry_max_attempts: u32,

    /// How many attempts in a row must fail before the worker stops taking jobs and probes
    #[arg(
        long,
        env = "BREAKER_FAILURES",
        default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..=10_000),
        help_heading = "Work"
    )]
    pub breaker_failures: u32,

    /// How often a provider that is down is probed
    #[arg(
        long,
        env = "BREAKER_PROBE_INTERVAL",
        default_value = "5s",
        value_parser = parse_duration,
        help_heading = "Work"
    )]
    pub breaker_probe_interval: Duration,

    /// How long the row of a dead-lettered delivery is kept; at least DEAD_LETTER_TTL
    #[arg(
        long,
        env = "DEAD_LETTER_RETENTION",
        default_value = "90d",
        value_parser = parse_duration,
        help_heading = "Work"
    )]
    pub dead_letter_retention: Duration,

    /// How long requests in flight may take to finish after SIGTERM or SIGINT
    #[arg(
        long,
        env = "SHUTDOWN_GRACE",
        default_value = "25s",
        value_parser = parse_duration,
        help_heading = "Work"
    )]
    pub shutdown_grace: Duration,

    /// This replica's name in rows and logs [default: the host's name and the process id]
    #[arg(long, env = "WORKER_NAME", value_name = "NAME", help_heading = "Work")]
    pub worker_name: Option<String>,
}

/// Every setting of `kyc-worker run`.
#[derive(Args, Clone, Debug)]
pub struct RunSettings {
    /// Postgres.
    #[command(flatten)]
    pub database: DatabaseSettings,
    /// RabbitMQ.
    #[command(flatten)]
    pub broker: BrokerSettings,
    /// The provider.
    #[command(flatten)]
    pub provider: ProviderArgs,
    /// How an attempt of unknown fate is looked into.
    #[command(flatten)]
    pub read_back: ReadBackSettings,
    /// How the verifications of accepted updates are followed.
    #[command(flatten)]
    pub verification: VerificationSettings,
    /// Which jobs are valid.
    #[command(flatten)]
    pub jobs: JobSettings,
    /// Keys for what is stored.
    #[command(flatten)]
    pub keys: KeySettings,
    /// How much at once, and when again.
    #[command(flatten)]
    pub work: WorkSettings,
}

/// What the settings amount to once they are known to be sound.
pub struct Checked {
    /// Where Postgres is.
    pub database_url: Secret,
    /// Where RabbitMQ is.
    pub amqp_url: Secret,
    /// Where the provider is.
    pub base_url: Url,
    /// Certificate authorities to trust there, in PEM.
    pub provider_ca: Option<Vec<u8>>,
    /// Our name there.
    pub api_key: Secret,
    /// What our signatures are made with.
    pub api_secret: Secret,
    /// Seals and opens payloads.
    pub keyring: Keyring,
    /// Fingerprints contents.
    pub fingerprinter: Fingerprinter,
    /// This replica's name.
    pub worker_name: String,
}

impl DatabaseSettings {
    /// Where Postgres is.
    ///
    /// # Errors
    /// When it is not given, or cannot be a Postgres URL.
    pub fn url(&self) -> Result<Secret, SettingFault> {
        let url = read_secret("DATABASE_URL", self.database_url.as_ref(), self.database_url_file.as_ref())?;
        check_scheme("DATABASE_URL", &url, &["postgres", "postgresql"])?;
        Ok(url)
    }
}

impl BrokerSettings {
    /// Where RabbitMQ is.
    ///
    /// # Errors
    /// When it is not given, or cannot be an AMQP URL.
    pub fn url(&self) -> Result<Secret, SettingFault> {
        let url = read_secret("AMQP_URL", self.amqp_url.as_ref(), self.amqp_url_file.as_ref())?;
        check_scheme("AMQP_URL", &url, &["amqp", "amqps"])?;
        Ok(url)
    }

    /// Reads the certificates for amqps, afresh for every connection: they are rotated.
    ///
    /// # Errors
    /// When a file cannot be read or holds no PEM, or the client's certificate lacks its key.
    pub fn certificates(&self) -> Result<BrokerCertificates, SettingFault> {
        let authorities = self.amqp_ca_file.as_ref();
        let authorities =
            authorities.map(|path| read_pem("AMQP_CA_FILE", path, "CERTIFICATE")).transpose()?;
        let identity = match (&self.amqp_cert_file, &self.amqp_key_file) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some(ClientIdentity {
                certificate: read_pem("AMQP_CERT_FILE", certificate, "CERTIFICATE")?,
                key: read_pem("AMQP_KEY_FILE", key, "PRIVATE KEY")?,
            }),
            _ => {
                let reason = "a client certificate and its key go together; set both or neither";
                return Err(SettingFault::new("AMQP_CERT_FILE, AMQP_KEY_FILE", reason));
            }
        };
        Ok(BrokerCertificates { authorities, identity })
    }
}

/// What TLS to the broker needs beside the platform's store, in PEM.
#[derive(Default)]
pub struct BrokerCertificates {
    /// Certificate authorities to trust.
    pub authorities: Option<Vec<u8>>,
    /// Who we are.
    pub identity: Option<ClientIdentity>,
}

/// A client's certificate and its key, in PEM.
pub struct ClientIdentity {
    /// The certificate and those that lead to its authority.
    pub certificate: Vec<u8>,
    /// Its key.
    pub key: Vec<u8>,
}

impl JobSettings {
    /// The rules that jobs are parsed by.
    pub fn rules(&self) -> Rules {
        Rules {
            document_types: self.document_types.clone(),
            allow_http_links: self.allow_http_links,
            allow_extensionless_links: self.allow_extensionless_links,
        }
    }
}

impl VerificationSettings {
    /// When customers in verification are looked at.
    pub fn tracking(&self) -> Tracking {
        Tracking {
            poll_after: self.verification_poll_after,
            poll_max: self.verification_poll_max,
            deadline: self.verification_deadline,
            give_up: self.verification_give_up,
        }
    }
}

impl WorkSettings {
    /// The schedule of retries.
    pub fn retry_schedule(&self) -> RetrySchedule {
        RetrySchedule {
            delay_min: self.retry_delay_min,
            delay_max: self.retry_delay_max,
            attempts_max: self.retry_max_attempts,
        }
    }
}

impl RunSettings {
    /// When looks at customers prove something.
    pub fn timing(&self) -> Timing {
        Timing {
            after: self.read_back.read_back_after,
            window: self.read_back.read_back_window,
            confirmations: self.read_back.read_back_confirmations,
            deadline: self.read_back.read_back_deadline,
            read_time_max: self.work.scheduler_poll + self.provider.read_timeout,
            unverified: self.read_back.read_back_unverified,
        }
    }

    /// Checks every setting alone and those that must fit together.
    ///
    /// # Errors
    /// All faults at once.
    pub fn check(&self) -> Result<Checked, Vec<SettingFault>> {
        let mut faults = self.timing_faults();
        let mut noted = |fault: SettingFault| faults.push(fault);
        let database_url = self.database.url().map_err(&mut noted).ok();
        let amqp_url = self.broker.url().map_err(&mut noted).ok();
        self.broker.certificates().map_err(&mut noted).ok();
        let base_url = self.provider.base_url().map_err(&mut noted).ok();
        let provider_ca = self.provider.authorities().map_err(&mut noted).ok();
        let api_key = self.provider.api_key().map_err(&mut noted).ok();
        let api_secret = self.provider.api_secret().map_err(&mut noted).ok();
        let keyring = self.keys.keyring().map_err(&mut noted).ok();
        let fingerprinter = self.keys.fingerprint.fingerprinter().map_err(&mut noted).ok();
        match (database_url, amqp_url, base_url, provider_ca, api_key, api_secret, keyring, fingerprinter) {
            (
                Some(database_url),
                Some(amqp_url),
                Some(base_url),
                Some(provider_ca),
                Some(api_key),
                Some(api_secret),
                Some(keyring),
                Some(fingerprinter),
            ) if faults.is_empty() => Ok(Checked {
                database_url,
                amqp_url,
                base_url,
                provider_ca,
                api_key,
                api_secret,
                keyring,
                fingerprinter,
                worker_name: self.work.worker_name.clone().unwrap_or_else(default_worker_name),
            }),
            _ => Err(faults),
        }
    }

    fn timing_faults(&self) -> Vec<SettingFault> {
        let (provider, work) = (&self.provider, &self.work);
        let mut faults = Vec::new();
        let mut expect = |holds: bool, setting: &str, reason: &str| {
            if !holds {
                faults.push(SettingFault::new(setting, reason));
            }
        };
        let positive = [
            ("REQUEST_TIMEOUT", provider.request_timeout),
            ("READ_TIMEOUT", provider.read_timeout),
            ("SEND_WINDOW", provider.send_window),
            ("READ_BACK_AFTER", self.read_back.read_back_after),
            ("READ_BACK_WINDOW", self.read_back.read_back_window),
            ("PAYLOAD_RETENTION", self.keys.payload_retention),
            ("CLAIM_LEASE", work.claim_lease),
            ("SCHEDULER_POLL", work.scheduler_poll),
            ("RETRY_DELAY_MIN", work.retry_delay_min),
            ("BREAKER_PROBE_INTERVAL", work.breaker_probe_interval),
            ("DEAD_LETTER_TTL", self.broker.dead_letter_ttl),
        ];
        for (setting, duration) in positive {
            expect(duration >= Duration::from_millis(1), setting, "must be at least 1ms");
        }
        expect(
            provider.send_window + provider.request_timeout <= work.claim_lease,
            "SEND_WINDOW, REQUEST_TIMEOUT, CLAIM_LEASE",
            "SEND_WINDOW + REQUEST_TIMEOUT must be at most CLAIM_LEASE, \
             or a replica could send after another took the job over",
        );
        let timing = self.timing();
        expect(
            work.claim_lease + timing.after + timing.read_time_max <= timing.safe_window(),
            "CLAIM_LEASE, READ_BACK_AFTER, SCHEDULER_POLL, READ_TIMEOUT, READ_BACK_WINDOW",
            "CLAIM_LEASE + READ_BACK_AFTER + SCHEDULER_POLL + READ_TIMEOUT must be at most 11/12 of \
             READ_BACK_WINDOW, or no look could tell what became of a vanished replica's attempt",
        );
        expect(
            provider.read_timeout <= work.claim_lease,
            "READ_TIMEOUT, CLAIM_LEASE",
            "READ_TIMEOUT must be at most CLAIM_LEASE",
        );
        expect(
            timing.window <= timing.deadline,
            "READ_BACK_WINDOW, READ_BACK_DEADLINE",
            "READ_BACK_WINDOW must be at most READ_BACK_DEADLINE",
        );
        let tracking = self.verification.tracking();
        expect(
            self.read_back.customer_read_interval <= tracking.poll_after,
            "CUSTOMER_READ_INTERVAL, VERIFICATION_POLL_AFTER",
            "VERIFICATION_POLL_AFTER must be at least CUSTOMER_READ_INTERVAL, \
             or looks at verifications would only wait for each other",
        );
        expect(
            timing.window <= tracking.poll_after,
            "READ_BACK_WINDOW, VERIFICATION_POLL_AFTER",
            "VERIFICATION_POLL_AFTER must be at least READ_BACK_WINDOW: no verification ends sooner",
        );
        expect(
            tracking.poll_after <= tracking.poll_max,
            "VERIFICATION_POLL_AFTER, VERIFICATION_POLL_MAX",
            "VERIFICATION_POLL_AFTER must be at most VERIFICATION_POLL_MAX",
        );
        expect(
            tracking.poll_max <= tracking.deadline && tracking.deadline <= tracking.give_up,
            "VERIFICATION_POLL_MAX, VERIFICATION_DEADLINE, VERIFICATION_GIVE_UP",
            "must not be shorter one than the one before",
        );
        expect(
            work.retry_delay_min <= work.retry_delay_max,
            "RETRY_DELAY_MIN, RETRY_DELAY_MAX",
            "RETRY_DELAY_MIN must be at most RETRY_DELAY_MAX",
        );
        expect(
            work.scheduler_poll <= work.claim_lease,
            "SCHEDULER_POLL, CLAIM_LEASE",
            "SCHEDULER_POLL must be at most CLAIM_LEASE",
        );
        expect(
            u32::from(work.prefetch) >= work.concurrency,
            "PREFETCH, CONCURRENCY",
            "PREFETCH must be at least CONCURRENCY, or replicas would idle",
        );
        expect(
            self.broker.dead_letter_ttl <= work.dead_letter_retention,
            "DEAD_LETTER_TTL, DEAD_LETTER_RETENTION",
            "DEAD_LETTER_TTL must be at most DEAD_LETTER_RETENTION, or letters would lie there that no row explains",
        );
        expect(
            !self.jobs.document_types.is_empty()
                && self.jobs.document_types.iter().all(|name| !name.trim().is_empty()),
            "DOCUMENT_TYPES",
            "must name at least one type, and no empty one",
        );
        for status in &provider.not_applied_statuses {
            // A status that says "applied", or "not us", is never a licence to send again.
            expect(
                *status == 408 || *status == 499 || (500..=599).contains(status),
                "NOT_APPLIED_STATUSES",
                "may hold 408, 499 and 500 to 599 only",
            );
        }
        let names = [
            ("EXCHANGE", &self.broker.exchange),
            ("QUEUE", &self.broker.queue),
            ("ROUTING_KEY", &self.broker.routing_key),
            ("DEAD_LETTER_EXCHANGE", &self.broker.dead_letter_exchange),
            ("DEAD_LETTER_QUEUE", &self.broker.dead_letter_queue),
            ("CUSTOMER_EVENTS_QUEUE", &self.broker.customer_events_queue),
            ("CUSTOMER_EVENTS_ROUTING_KEY", &self.broker.customer_events_routing_key),
        ];
        for (setting, name) in names {
            expect((1..=255).contains(&name.len()), setting, "must have 1 to 255 bytes");
        }
        let broker = &self.broker;
        expect(
            broker.queue != broker.customer_events_queue
                && broker.dead_letter_queue != broker.customer_events_queue
                && broker.routing_key != broker.customer_events_routing_key,
            "CUSTOMER_EVENTS_QUEUE, CUSTOMER_EVENTS_ROUTING_KEY",
            "must be others than those of jobs and dead letters",
        );
        if let Some(name) = &work.worker_name {
            let is_name = (1..=100).contains(&name.len()) && !name.chars().any(char::is_control);
            expect(is_name, "WORKER_NAME", "must have 1 to 100 bytes and no control characters");
        }
        faults
    }
}

impl ProviderArgs {
    /// Certificate authorities to trust, in PEM.
    ///
    /// # Errors
    /// When the file cannot be read or holds none.
    pub fn authorities(&self) -> Result<Option<Vec<u8>>, SettingFault> {
        let path = self.dollarpe_ca_file.as_ref();
        path.map(|path| read_pem("DOLLARPE_CA_FILE", path, "CERTIFICATE")).transpose()
    }

    /// Our name at the provider.
    ///
    /// # Errors
    /// When it is not given, or cannot be read.
    pub fn api_key(&self) -> Result<Secret, SettingFault> {
        let file = self.dollarpe_api_key_file.as_ref();
        read_secret("DOLLARPE_API_KEY", self.dollarpe_api_key.as_ref(), file)
    }

    /// What our signatures are made with.
    ///
    /// # Errors
    /// When it is not given, or cannot be read.
    pub fn api_secret(&self) -> Result<Secret, SettingFault> {
        let file = self.dollarpe_api_secret_file.as_ref();
        read_secret("DOLLARPE_API_SECRET", self.dollarpe_api_secret.as_ref(), file)
    }

    /// Reads credentials that are given as files again: they may have been rotated. `None`
    /// where none is a file.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn reread_credentials(&self) -> Result<Option<Signer>, SettingFault> {
        if self.dollarpe_api_key_file.is_none() && self.dollarpe_api_secret_file.is_none() {
            return Ok(None);
        }
        Ok(Some(Signer::new(self.api_key()?.expose(), self.api_secret()?.expose())))
    }

    /// Where the provider is.
    ///
    /// # Errors
    /// When it is no URL, or one that a signature may not be sent to.
    pub fn base_url(&self) -> Result<Url, SettingFault> {
        let fault = |reason: &str| SettingFault::new("DOLLARPE_BASE_URL", reason);
        let url = Url::parse(&self.dollarpe_base_url).map_err(|error| fault(&error.to_string()))?;
        let is_loopback = match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(ip)) => IpAddr::from(ip).is_loopback(),
            Some(Host::Ipv6(ip)) => IpAddr::from(ip).is_loopback(),
            None => return Err(fault("has no host; give https://host/path")),
        };
        match url.scheme() {
            "https" => {}
            "http" if is_loopback => {}
            _ => return Err(fault("must be https; http is for this machine only")),
        }
        if !url.username().is_empty()
            || url.password().is_some()
            || url.query().is_some()
            || url.fragment().is_some()
        {
            return Err(fault("must have no user, password, query or fragment"));
        }
        Ok(url)
    }
}

impl KeySettings {
    /// What payloads are sealed with.
    ///
    /// # Errors
    /// When it is not given, or no key.
    pub fn keyring(&self) -> Result<Keyring, SettingFault> {
        let key = read_secret("PAYLOAD_KEY", self.payload_key.as_ref(), self.payload_key_file.as_ref())?;
        Keyring::parse(key.expose()).map_err(|fault| SettingFault::new("PAYLOAD_KEY", fault.to_string()))
    }
}

impl FingerprintSettings {
    /// What contents are fingerprinted with.
    ///
    /// # Errors
    /// When it is not given, or no key.
    pub fn fingerprinter(&self) -> Result<Fingerprinter, SettingFault> {
        let key = read_secret(
            "FINGERPRINT_KEY",
            self.fingerprint_key.as_ref(),
            self.fingerprint_key_file.as_ref(),
        )?;
        Fingerprinter::parse(key.expose())
            .map_err(|fault| SettingFault::new("FINGERPRINT_KEY", fault.to_string()))
    }
}

/// A secret from its variable or from the file that the variable `…_FILE` names.
fn read_secret(
    setting: &str,
    given: Option<&Secret>,
    file: Option<&PathBuf>,
) -> Result<Secret, SettingFault> {
    let fault = |reason: String| SettingFault::new(setting, reason);
    let secret = match (given, file) {
        (Some(_), Some(_)) => {
            return Err(fault(format!("is given twice; keep {setting} or {setting}_FILE")));
        }
        (Some(secret), None) => secret.clone(),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path).map_err(|error| {
                fault(format!("cannot read {} ({setting}_FILE): {error}", path.display()))
            })?;
            Secret(text.trim_end_matches(['\r', '\n']).to_owned())
        }
        (None, None) => return Err(fault(format!("is not set; set {setting} or {setting}_FILE"))),
    };
    match secret.expose().trim().is_empty() {
        true => Err(fault("is empty".to_owned())),
        false => Ok(secret),
    }
}

/// A file that holds at least one PEM block of a kind.
fn read_pem(setting: &str, path: &Path, kind: &str) -> Result<Vec<u8>, SettingFault> {
    let fault = |reason: String| SettingFault::new(setting, reason);
    let text = std::fs::read_to_string(path)
        .map_err(|error| fault(format!("cannot read {}: {error}", path.display())))?;
    let is_kind = |line: &str| line.starts_with("-----BEGIN ") && line.contains(kind);
    match text.lines().any(is_kind) {
        true => Ok(text.into_bytes()),
        false => Err(fault(format!("{} holds no PEM {kind}", path.display()))),
    }
}

/// Checks a URL that holds a password, without showing it.
fn check_scheme(setting: &str, url: &Secret, schemes: &[&str]) -> Result<(), SettingFault> {
    let is_sound = Url::parse(url.expose()).is_ok_and(|url| schemes.contains(&url.scheme()));
    match is_sound {
        true => Ok(()),
        false => Err(SettingFault::new(
            setting,
            format!(
                "must be a URL that starts with {}://; special characters in a password are written %XX",
                schemes[0]
            ),
        )),
    }
}

/// The host's name, with which a replica's begins that was given none.
pub fn host_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match host.trim() {
        "" => "worker".to_owned(),
        host => host.to_owned(),
    }
}

fn default_worker_name() -> String {
    format!("{}-{}", host_name(), std::process::id())
}

/// A duration as people write it: `500ms`, `30s`, `2h`, `30d`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a duration such as 500ms, 30s or 2h"))
}

/// A command line that was understood, settings that do not parse excepted.
pub struct Parsed<T> {
    /// What it says.
    pub value: T,
    /// As clap sees it: where each value came from.
    pub matches: ArgMatches,
    /// The settings that do not parse.
    pub faults: Vec<SettingFault>,
}

/// Parses the command line like clap, but reports every setting that does not parse and
/// not only the first. Such a setting takes its default while the rest is looked at.
///
/// # Errors
/// clap's own error for anything else: usage, `--help`, `--version`.
pub fn parse_all<T: clap::FromArgMatches>(
    command: &Command,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Parsed<T>, clap::Error> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let mut faults: Vec<SettingFault> = Vec::new();
    loop {
        let error = match command.clone().try_get_matches_from(&arguments) {
            Ok(matches) => {
                let value = T::from_arg_matches(&matches)?;
                return Ok(Parsed { value, matches, faults });
            }
            Err(error) => error,
        };
        let Some(FaultySetting { variable, flag, default }) = faulty_setting(command, &error) else {
            return Err(error);
        };
        if faults.iter().any(|fault| fault.setting == variable) {
            return Err(error);
        }
        faults.push(SettingFault::new(&variable, describe(&error)));
        remove_flag(&mut arguments, &flag);
        arguments.push(format!("{flag}={default}").into());
    }
}

/// A setting whose value did not parse.
struct FaultySetting {
    variable: String,
    flag: String,
    default: String,
}

/// Takes out `--flag=value` and `--flag value`: clap validates what is overridden, too.
fn remove_flag(arguments: &mut Vec<OsString>, flag: &str) {
    let assigned = format!("{flag}=");
    arguments.retain(|argument| !argument.to_string_lossy().starts_with(&assigned));
    while let Some(at) = arguments.iter().position(|argument| argument.to_str() == Some(flag)) {
        arguments.drain(at..(at + 2).min(arguments.len()));
    }
}

fn faulty_setting(command: &Command, error: &clap::Error) -> Option<FaultySetting> {
    if !matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue) {
        return None;
    }
    let ContextValue::String(shown) = error.get(ContextKind::InvalidArg)? else {
        return None;
    };
    let long = shown.trim_start_matches("--").split([' ', '=', '[']).next()?;
    let arg = command
        .get_subcommands()
        .flat_map(Command::get_arguments)
        .find(|arg| arg.get_long() == Some(long))?;
    let variable = arg.get_env()?.to_str()?.to_owned();
    let default = arg.get_default_values().first()?.to_str()?.to_owned();
    Some(FaultySetting { variable, flag: format!("--{long}"), default })
}

fn describe(error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        _ => None,
    };
    let value = context(ContextKind::InvalidValue).unwrap_or_default();
    let cause = std::error::Error::source(error).map(ToString::to_string);
    let remedy =
        cause.or_else(|| context(ContextKind::ValidValue).map(|valid| format!("must be one of {valid}")));
    format!("`{value}` is not valid: {}", remedy.unwrap_or_else(|| error.kind().to_string()))
}

impl FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(subcommand)]
        command: Subcommand,
    }

    #[derive(Debug, clap::Subcommand)]
    enum Subcommand {
        Run(Box<RunSettings>),
    }

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    /// Checks the settings that are sound but for `flags`; returns what is wrong.
    fn check(flags: &[&str]) -> Vec<String> {
        let sound = [
            "--database-url=postgres://h/d",
            "--amqp-url=amqp://h",
            "--dollarpe-base-url=https://h/v1",
            "--dollarpe-api-key=k",
            "--dollarpe-api-secret=s",
            "--payload-key=AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
            "--fingerprint-key=AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        ];
        let command =
            <Program as clap::CommandFactory>::command().mut_subcommands(|run| run.args_override_self(true));
        let arguments = ["kyc-worker", "run"].iter().chain(&sound).chain(flags).map(OsString::from);
        let Parsed { value, mut faults, .. } =
            parse_all::<Program>(&command, arguments).expect("usage is right");
        let Subcommand::Run(settings) = value.command;
        faults.extend(settings.check().err().unwrap_or_default());
        faults.iter().map(ToString::to_string).collect()
    }

    fn faults_name(flags: &[&str], settings: &[&str]) {
        let faults = check(flags);
        assert_eq!(faults.len(), settings.len(), "{flags:?}: {faults:?}");
        for setting in settings {
            assert!(faults.iter().any(|fault| fault.starts_with(setting)), "{setting} in {faults:?}");
        }
    }

    #[test]
    fn sound_settings_have_no_fault() {
        faults_name(&[], &[]);
    }

    #[test]
    fn every_fault_is_told_at_once() {
        faults_name(
            &[
                "--concurrency=many",
                "--request-timeout=soon",
                "--database-url=mysql://h/d",
                "--dollarpe-base-url=http://example.com/v1",
                "--payload-key=short",
                "--not-applied-statuses=200",
            ],
            &[
                "CONCURRENCY",
                "REQUEST_TIMEOUT",
                "DATABASE_URL",
                "DOLLARPE_BASE_URL",
                "PAYLOAD_KEY",
                "NOT_APPLIED_STATUSES",
            ],
        );
    }

    #[test]
    fn times_that_do_not_fit_together_are_refused() {
        faults_name(&["--claim-lease=19s"], &["SEND_WINDOW, REQUEST_TIMEOUT, CLAIM_LEASE"]);
        faults_name(&["--claim-lease=20s"], &[]);
        faults_name(&["--claim-lease=29s"], &[]);
        let read_back = "CLAIM_LEASE, READ_BACK_AFTER, SCHEDULER_POLL, READ_TIMEOUT, READ_BACK_WINDOW";
        faults_name(&["--claim-lease=30s"], &[read_back]);
        faults_name(&["--retry-delay-min=2h"], &["RETRY_DELAY_MIN, RETRY_DELAY_MAX"]);
        faults_name(&["--prefetch=10"], &["PREFETCH, CONCURRENCY"]);
        let interval = "CUSTOMER_READ_INTERVAL, VERIFICATION_POLL_AFTER";
        faults_name(&["--customer-read-interval=61s"], &[interval]);
        let (window, poll_max) =
            ("READ_BACK_WINDOW, VERIFICATION_POLL_AFTER", "VERIFICATION_POLL_AFTER, VERIFICATION_POLL_MAX");
        faults_name(&["--read-back-window=61s"], &[window]);
        faults_name(&["--verification-poll-after=16m"], &[poll_max]);
        let order = "VERIFICATION_POLL_MAX, VERIFICATION_DEADLINE, VERIFICATION_GIVE_UP";
        faults_name(&["--verification-give-up=5h"], &[order]);
        faults_name(&["--verification-deadline=14m"], &[order]);
        let events = "CUSTOMER_EVENTS_QUEUE, CUSTOMER_EVENTS_ROUTING_KEY";
        faults_name(&["--customer-events-queue=kyc.dead-letters"], &[events]);
        faults_name(&["--customer-events-routing-key=document-update"], &[events]);
    }

    #[test]
    fn plain_http_is_for_this_machine_only() {
        for url in ["http://127.0.0.1:4010/v1", "http://localhost/v1", "http://[::1]:4010/v1"] {
            faults_name(&[&format!("--dollarpe-base-url={url}")], &[]);
        }
        for url in ["http://10.0.0.1/v1", "ftp://h/v1", "https://user:pw@h/v1", "not a url"] {
            faults_name(&[&format!("--dollarpe-base-url={url}")], &["DOLLARPE_BASE_URL"]);
        }
    }

    #[test]
    fn a_secret_may_be_a_file_but_not_both() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(&file, format!("{KEY}\n")).expect("it can be written");
        let flag = format!("--payload-key-file={}", file.path().display());
        faults_name(&[&flag], &["PAYLOAD_KEY"]);
        let both = read_secret("PAYLOAD_KEY", None, Some(&file.path().to_path_buf()));
        assert_eq!(both.expect("a secret").expose(), KEY);
    }

    #[test]
    fn no_fault_shows_a_secret() {
        let faults = check(&[
            "--database-url=mysql://u:s3cr3t@h/d",
            "--amqp-url=s3cr3t",
            "--payload-key=s3cr3t",
            "--fingerprint-key=s3cr3t",
            "--dollarpe-api-secret= ",
        ]);
        assert_eq!(faults.len(), 5, "{faults:?}");
        assert!(!faults.join(" ").contains("s3cr3t"), "{faults:?}");
        assert_eq!(format!("{:?}", Secret::from("s3cr3t")), "[redacted]");
    }
}
