//! Every setting: its variable, its flag, its default and what people are told of it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;
use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

use super::secret::Secret;
use crate::domain::job::{DocumentTypes, Rules};
use crate::domain::read_back::{Timing, UnverifiedMeans};
use crate::domain::retry::RetrySchedule;
use crate::domain::verification::Tracking;
use crate::telemetry::LogFormat;
use dollarpe::canonical_json::Profile;

/// Logs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Logs")]
pub struct LogSettings {
    /// How log lines are written [default: text on a terminal, else json]
    #[arg(long, env = "LOG_FORMAT", value_name = "json|text")]
    pub log_format: Option<LogFormat>,

    /// Which events are logged: a level, or directives such as kyc_worker=debug
    #[arg(long, env = "RUST_LOG", default_value = "info", value_parser = parse_directives)]
    pub rust_log: Targets,
}

/// Postgres.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Database")]
pub struct DatabaseSettings {
    /// Postgres, postgres://user:password@host:port/database?sslmode=verify-full; of several hosts
    /// (host1:port,host2:port) the one that takes writes (secret)
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    pub database_url: Vec<Secret>,

    /// A file that holds DATABASE_URL
    #[arg(long, env = "DATABASE_URL_FILE", value_name = "FILE")]
    pub database_url_file: Vec<PathBuf>,

    /// How many connections a replica may hold, one of them for what many jobs write at once, a third of
    /// the others for reads of unknown outcomes
    #[arg(
        long,
        env = "DATABASE_CONNECTIONS",
        default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(3..=1000)
    )]
    pub database_connections: u32,

    /// Work with a server that may lose what it has committed (fsync or full_page_writes off), as for tests:
    /// after a crash of it a job may be sent twice
    #[arg(
        long,
        env = "ALLOW_UNSAFE_DATABASE",
        default_value_t = false,
        num_args = 0..=1,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    pub allow_unsafe_database: bool,
}

/// RabbitMQ: where it is, and the names of its exchanges and queues.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Broker")]
pub struct BrokerSettings {
    /// RabbitMQ, amqp://user:password@host:port/vhost, or amqps://; several hosts of a cluster by commas, host1:port,host2:port (secret)
    #[arg(long, env = "AMQP_URL", value_name = "URL", hide_env_values = true)]
    pub amqp_url: Option<Secret>,

    /// A file that holds AMQP_URL
    #[arg(long, env = "AMQP_URL_FILE", value_name = "FILE")]
    pub amqp_url_file: Option<PathBuf>,

    /// A PEM file of certificate authorities to trust for amqps, beside the platform's
    #[arg(long, env = "AMQP_CA_FILE", value_name = "FILE")]
    pub amqp_ca_file: Option<PathBuf>,

    /// A PEM file with our client certificate for amqps, and AMQP_KEY_FILE with its key
    #[arg(long, env = "AMQP_CERT_FILE", value_name = "FILE")]
    pub amqp_cert_file: Option<PathBuf>,

    /// A PEM file with the key of AMQP_CERT_FILE
    #[arg(long, env = "AMQP_KEY_FILE", value_name = "FILE")]
    pub amqp_key_file: Option<PathBuf>,

    /// The direct exchange that jobs are published to
    #[arg(long, env = "EXCHANGE", default_value = "kyc")]
    pub exchange: String,

    /// The queue that jobs wait in
    #[arg(long, env = "QUEUE", default_value = "kyc.document-updates")]
    pub queue: String,

    /// The routing key that binds the queue to the exchange
    #[arg(long, env = "ROUTING_KEY", default_value = "document-update")]
    pub routing_key: String,

    /// The exchange that dead letters pass
    #[arg(long, env = "DEAD_LETTER_EXCHANGE", default_value = "kyc.dlx")]
    pub dead_letter_exchange: String,

    /// The queue that keeps what cannot become a job
    #[arg(long, env = "DEAD_LETTER_QUEUE", default_value = "kyc.dead-letters")]
    pub dead_letter_queue: String,

    /// How long the broker keeps a dead letter
    #[arg(long, env = "DEAD_LETTER_TTL", default_value = "30d", value_parser = parse_duration)]
    pub dead_letter_ttl: Duration,

    /// Whether to take the provider's webhooks from a queue, into which a gateway puts them
    #[arg(
        long,
        env = "CUSTOMER_EVENTS",
        default_value_t = false,
        num_args = 0..=1,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    pub customer_events: bool,

    /// The queue that the provider's webhooks wait in
    #[arg(long, env = "CUSTOMER_EVENTS_QUEUE", default_value = "kyc.customer-events")]
    pub customer_events_queue: String,

    /// The routing key that binds that queue to the exchange
    #[arg(long, env = "CUSTOMER_EVENTS_ROUTING_KEY", default_value = "customer-event")]
    pub customer_events_routing_key: String,

    /// Whether upstream is told, by events, how jobs ended and what their verifications became
    #[arg(
        long,
        env = "OUTCOME_EVENTS",
        default_value_t = false,
        num_args = 0..=1,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    pub outcome_events: bool,

    /// The topic exchange that those events are published to
    #[arg(long, env = "EVENTS_EXCHANGE", default_value = "kyc.events")]
    pub events_exchange: String,

    /// Declare the exchanges and queues, or verify that they exist
    #[arg(long, env = "TOPOLOGY", default_value = "declare", value_name = "declare|verify")]
    pub topology: TopologyMode,
}

/// The provider: where it is, our credentials there, and how long it may take.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Provider")]
pub struct ProviderArgs {
    /// The API's base URL, https unless on this machine
    #[arg(
        long,
        env = "DOLLARPE_BASE_URL",
        value_name = "URL",
        default_value = "https://sandbox.dollarpe.xyz/cms/api/v1"
    )]
    pub dollarpe_base_url: String,

    /// A PEM file of certificate authorities to trust for the API, beside the platform's
    #[arg(long, env = "DOLLARPE_CA_FILE", value_name = "FILE")]
    pub dollarpe_ca_file: Option<PathBuf>,

    /// A proxy that leads to the API by CONNECT: http://user:password@host:port or https://… (secret)
    #[arg(long, env = "DOLLARPE_PROXY", value_name = "URL", hide_env_values = true)]
    pub dollarpe_proxy: Option<Secret>,

    /// A file that holds DOLLARPE_PROXY
    #[arg(long, env = "DOLLARPE_PROXY_FILE", value_name = "FILE")]
    pub dollarpe_proxy_file: Option<PathBuf>,

    /// The API key of that environment (secret)
    #[arg(long, env = "DOLLARPE_API_KEY", value_name = "KEY", hide_env_values = true)]
    pub dollarpe_api_key: Option<Secret>,

    /// A file that holds DOLLARPE_API_KEY
    #[arg(long, env = "DOLLARPE_API_KEY_FILE", value_name = "FILE")]
    pub dollarpe_api_key_file: Option<PathBuf>,

    /// The API secret of that environment (secret)
    #[arg(long, env = "DOLLARPE_API_SECRET", value_name = "SECRET", hide_env_values = true)]
    pub dollarpe_api_secret: Option<Secret>,

    /// A file that holds DOLLARPE_API_SECRET
    #[arg(long, env = "DOLLARPE_API_SECRET_FILE", value_name = "FILE")]
    pub dollarpe_api_secret_file: Option<PathBuf>,

    /// The canonical form of a request that is signed and sent
    #[arg(
        long,
        env = "DOLLARPE_SIGNING_PROFILE",
        default_value = "compact",
        value_name = "compact|compact-utf8|spaced"
    )]
    pub dollarpe_signing_profile: Profile,

    /// From a request's start to the last byte of its answer
    #[arg(long, env = "REQUEST_TIMEOUT", default_value = "15s", value_parser = parse_duration)]
    pub request_timeout: Duration,

    /// From the start of a read of a customer to the last byte of its answer
    #[arg(long, env = "READ_TIMEOUT", default_value = "10s", value_parser = parse_duration)]
    pub read_timeout: Duration,

    /// From a claim to the first byte of its request; past it, nothing is sent
    #[arg(long, env = "SEND_WINDOW", default_value = "5s", value_parser = parse_duration)]
    pub send_window: Duration,

    /// HTTP statuses that surely applied nothing, comma separated, such as a gateway's 503; never the provider's own 500
    #[arg(
        long,
        env = "NOT_APPLIED_STATUSES",
        value_delimiter = ',',
        value_parser = parse_status,
        value_name = "STATUS,…"
    )]
    pub not_applied_statuses: Vec<u16>,
}

/// How an attempt of unknown outcome is read back, and what a customer may spend.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Read-back")]
pub struct ReadBackSettings {
    /// From the end of an attempt of unknown outcome to the first read of its customer
    #[arg(long, env = "READ_BACK_AFTER", default_value = "15s", value_parser = parse_duration)]
    pub read_back_after: Duration,

    /// The shortest verification there is, 60s at the provider: a read inside it shows an update that was applied
    #[arg(long, env = "READ_BACK_WINDOW", default_value = "60s", value_parser = parse_duration)]
    pub read_back_window: Duration,

    /// How late after an attempt's end its update may still be applied, 45s at the provider: the reads must cover that
    #[arg(long, env = "APPLIED_WITHIN", default_value = "45s", value_parser = parse_duration)]
    pub applied_within: Duration,

    /// How many reads must agree that an update was not applied before it is sent again; one alone
    /// would miss an update that is applied late
    #[arg(
        long,
        env = "READ_BACK_CONFIRMATIONS",
        default_value_t = 2,
        value_parser = clap::value_parser!(u32).range(2..=10)
    )]
    pub read_back_confirmations: u32,

    /// From the end of an attempt of unknown outcome to when a person is asked
    #[arg(long, env = "READ_BACK_DEADLINE", default_value = "2h", value_parser = parse_duration)]
    pub read_back_deadline: Duration,

    /// What UNVERIFIED after an attempt of unknown outcome means
    #[arg(
        long,
        env = "READ_BACK_UNVERIFIED",
        default_value = "inconclusive",
        value_name = "inconclusive|not-applied"
    )]
    pub read_back_unverified: UnverifiedMeans,

    /// Read every customer before the first attempt, as evidence
    #[arg(
        long,
        env = "BASELINE_READ",
        default_value_t = false,
        num_args = 0..=1,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    pub baseline_read: bool,

    /// The shortest time between two reads of a customer that settle nothing
    #[arg(long, env = "CUSTOMER_READ_INTERVAL", default_value = "60s", value_parser = parse_duration)]
    pub customer_read_interval: Duration,

    /// How many updates the provider allows a customer, ever; a resend never takes the last
    #[arg(
        long,
        env = "CUSTOMER_UPDATE_LIMIT",
        default_value_t = 3,
        value_parser = clap::value_parser!(u32).range(1..=10)
    )]
    pub customer_update_limit: u32,
}

/// How the verifications of accepted updates are followed.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Verification")]
pub struct VerificationSettings {
    /// From an acceptance to the first read of its verification, and between two at least
    #[arg(long, env = "VERIFICATION_POLL_AFTER", default_value = "60s", value_parser = parse_duration)]
    pub verification_poll_after: Duration,

    /// The longest time between two reads of a verification; four times that once it is overdue
    #[arg(long, env = "VERIFICATION_POLL_MAX", default_value = "15m", value_parser = parse_duration)]
    pub verification_poll_max: Duration,

    /// From an acceptance to when its verification is overdue, and an error is logged
    #[arg(long, env = "VERIFICATION_DEADLINE", default_value = "6h", value_parser = parse_duration)]
    pub verification_deadline: Duration,

    /// From an acceptance to when its verification is not read any more
    #[arg(long, env = "VERIFICATION_GIVE_UP", default_value = "7d", value_parser = parse_duration)]
    pub verification_give_up: Duration,

    /// How many reads of verifications all replicas together begin a second
    #[arg(
        long,
        env = "VERIFICATION_READS_PER_SECOND",
        default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(1..=1000)
    )]
    pub verification_reads_per_second: u32,

    /// How far a webhook's X-TIMESTAMP may be from when it was published, either way
    #[arg(long, env = "CUSTOMER_EVENT_AGE_MAX", default_value = "5m", value_parser = parse_duration)]
    pub customer_event_age_max: Duration,
}

/// Which jobs are valid.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Jobs")]
pub struct JobSettings {
    /// Document types that a job may name, comma separated; or provider: those that it lists for the customer,
    /// asked before each attempt and remembered for an hour
    #[arg(
        long,
        env = "DOCUMENT_TYPES",
        value_delimiter = ',',
        default_value = "AADHAAR,PASSPORT,VOTER_ID,DRIVING_LICENSE",
        value_parser = parse_document_type,
        value_name = "TYPE,…"
    )]
    pub document_types: Vec<String>,

    /// Whether document links may be http
    #[arg(
        long,
        env = "ALLOW_HTTP_LINKS",
        default_value_t = false,
        num_args = 0..=1,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    pub allow_http_links: bool,

    /// Whether document links may end without .jpg, .jpeg, .png or .pdf
    #[arg(
        long,
        env = "ALLOW_EXTENSIONLESS_LINKS",
        default_value_t = false,
        num_args = 0..=1,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    pub allow_extensionless_links: bool,

    /// So long before a signed link ends (X-Amz-Expires and the like) its job expires unsent: the provider
    /// fetches the document some time after it has accepted the update; 0s: when the link ends
    #[arg(long, env = "LINK_EXPIRY_MARGIN", default_value = "15m", value_parser = parse_duration)]
    pub link_expiry_margin: Duration,

    /// Whether the first bytes of both links are fetched before each attempt, so that a link without a
    /// document costs no update; it needs a way out to where documents lie, through DOLLARPE_PROXY where that
    /// is set
    #[arg(
        long,
        env = "LINK_CHECK",
        default_value_t = false,
        num_args = 0..=1,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    pub link_check: bool,

    /// Networks that links may lead to though they are not public, comma separated, such as 10.20.0.0/16
    #[arg(
        long,
        env = "LINK_CHECK_ALLOW",
        value_delimiter = ',',
        value_parser = parse_network,
        value_name = "CIDR,…"
    )]
    pub link_check_allow: Vec<IpNet>,

    /// A PEM file of certificate authorities to trust for links, beside the platform's
    #[arg(long, env = "LINK_CHECK_CA_FILE", value_name = "FILE")]
    pub link_check_ca_file: Option<PathBuf>,
}

/// Keys for what is stored.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Keys")]
pub struct KeySettings {
    /// Seals payloads at rest: base64 of 32 bytes, or id:base64,… to rotate; the first seals, all open (secret)
    #[arg(long, env = "PAYLOAD_KEY", value_name = "KEY", hide_env_values = true)]
    pub payload_key: Option<Secret>,

    /// A file that holds PAYLOAD_KEY
    #[arg(long, env = "PAYLOAD_KEY_FILE", value_name = "FILE")]
    pub payload_key_file: Option<PathBuf>,

    /// Fingerprints.
    #[command(flatten)]
    pub fingerprint: FingerprintSettings,

    /// How long the payload of a job that a person may send again is kept
    #[arg(long, env = "PAYLOAD_RETENTION", default_value = "30d", value_parser = parse_duration)]
    pub payload_retention: Duration,
}

/// The key that contents are fingerprinted with, and histories are chained with.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Keys")]
pub struct FingerprintSettings {
    /// Fingerprints contents and chains histories: base64 of 32 bytes or more; never rotate it (secret)
    #[arg(long, env = "FINGERPRINT_KEY", value_name = "KEY", hide_env_values = true)]
    pub fingerprint_key: Option<Secret>,

    /// A file that holds FINGERPRINT_KEY
    #[arg(long, env = "FINGERPRINT_KEY_FILE", value_name = "FILE")]
    pub fingerprint_key_file: Option<PathBuf>,
}

/// How much is done at once, and when it is done again.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Work")]
pub struct WorkSettings {
    /// How many requests a replica has in flight at once; half as many more jobs are opened ahead of them
    #[arg(
        long,
        env = "CONCURRENCY",
        default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(1..=4096)
    )]
    pub concurrency: u32,

    /// How many deliveries a replica holds unacknowledged; two to four times CONCURRENCY is fastest
    #[arg(long, env = "PREFETCH", default_value_t = 192, value_parser = clap::value_parser!(u16).range(1..))]
    pub prefetch: u16,

    /// How long a claim on a job lasts; the job of a replica that died is rescued after it
    #[arg(long, env = "CLAIM_LEASE", default_value = "25s", value_parser = parse_duration)]
    pub claim_lease: Duration,

    /// How often the database is asked for jobs that are due
    #[arg(long, env = "SCHEDULER_POLL", default_value = "1s", value_parser = parse_duration)]
    pub scheduler_poll: Duration,

    /// The first delay before a retry; each next one is twice as long
    #[arg(long, env = "RETRY_DELAY_MIN", default_value = "500ms", value_parser = parse_duration)]
    pub retry_delay_min: Duration,

    /// The longest delay before a retry, and the longest Retry-After that is honoured
    #[arg(long, env = "RETRY_DELAY_MAX", default_value = "1h", value_parser = parse_duration)]
    pub retry_delay_max: Duration,

    /// How many attempts may be answered, throttled or not sent before a job is exhausted
    #[arg(
        long,
        env = "RETRY_MAX_ATTEMPTS",
        default_value_t = 36,
        value_parser = clap::value_parser!(u32).range(1..=1000)
    )]
    pub retry_max_attempts: u32,

    /// How many attempts in a row must fail before the worker stops taking jobs and probes
    #[arg(
        long,
        env = "BREAKER_FAILURES",
        default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    pub breaker_failures: u32,

    /// How often a provider that is down is probed; one that asks to wait, after twelve of these at most
    #[arg(long, env = "BREAKER_PROBE_INTERVAL", default_value = "5s", value_parser = parse_duration)]
    pub breaker_probe_interval: Duration,

    /// How long the row of a dead-lettered delivery is kept; at least DEAD_LETTER_TTL
    #[arg(long, env = "DEAD_LETTER_RETENTION", default_value = "90d", value_parser = parse_duration)]
    pub dead_letter_retention: Duration,

    /// How long requests in flight may take to finish after SIGTERM or SIGINT; what was not sent is closed meanwhile
    #[arg(long, env = "SHUTDOWN_GRACE", default_value = "25s", value_parser = parse_duration)]
    pub shutdown_grace: Duration,

    /// This replica's name in rows and logs [default: the host's name and the process id]
    #[arg(long, env = "WORKER_NAME", value_name = "NAME")]
    pub worker_name: Option<String>,

    /// Where GET /metrics, /livez and /readyz are answered, such as 0.0.0.0:9464; nowhere where it is not set
    #[arg(long, env = "METRICS_LISTEN", value_name = "ADDRESS:PORT")]
    pub metrics_listen: Option<SocketAddr>,
}

/// Where traces go, by the names that OpenTelemetry gives these settings.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Traces")]
pub struct TraceSettings {
    /// A collector of OTLP over HTTP, such as http://otel-collector:4318; no traces are exported where it is not set
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otel_exporter_otlp_endpoint: Option<String>,

    /// Headers that the collector asks for, name=value,… with percent-encoded values (secret)
    #[arg(long, env = "OTEL_EXPORTER_OTLP_HEADERS", value_name = "NAME=VALUE,…", hide_env_values = true)]
    pub otel_exporter_otlp_headers: Option<Secret>,

    /// A file that holds OTEL_EXPORTER_OTLP_HEADERS
    #[arg(long, env = "OTEL_EXPORTER_OTLP_HEADERS_FILE", value_name = "FILE")]
    pub otel_exporter_otlp_headers_file: Option<PathBuf>,

    /// What the worker is called in traces
    #[arg(long, env = "OTEL_SERVICE_NAME", default_value = "kyc-worker", value_name = "NAME")]
    pub otel_service_name: String,

    /// What else is told of it, name=value,… with percent-encoded values
    #[arg(long, env = "OTEL_RESOURCE_ATTRIBUTES", value_name = "NAME=VALUE,…")]
    pub otel_resource_attributes: Option<String>,

    /// How much of what went well is kept, 0 to 1; what went wrong, or is part of a trace that its publisher keeps, always is
    #[arg(
        long,
        env = "OTEL_TRACES_SAMPLER_ARG",
        default_value_t = 0.01,
        value_parser = parse_share,
        value_name = "SHARE"
    )]
    pub otel_traces_sampler_arg: f64,
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
    /// How an attempt of unknown outcome is read back.
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
    /// Where traces go.
    #[command(flatten)]
    pub traces: TraceSettings,
}

/// Whether the worker declares its exchanges and queues or expects to find them.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum TopologyMode {
    /// Declare them.
    Declare,
    /// Check that they exist; for brokers that operators manage.
    Verify,
}

/// In place of document types: those that the provider lists for the customer.
pub(super) const OF_PROVIDER: &str = "provider";

impl JobSettings {
    /// Whether the provider is asked which document types a customer may use.
    pub fn asks_provider_for_types(&self) -> bool {
        self.document_types.iter().any(|name| name == OF_PROVIDER)
    }

    /// The rules that jobs are parsed by.
    pub fn rules(&self) -> Rules {
        Rules {
            document_types: match self.asks_provider_for_types() {
                true => DocumentTypes::OfProvider,
                false => DocumentTypes::Listed(self.document_types.clone()),
            },
            allow_http_links: self.allow_http_links,
            allow_extensionless_links: self.allow_extensionless_links,
            link_expiry_margin: self.link_expiry_margin,
        }
    }
}

impl VerificationSettings {
    /// When customers in verification are read.
    pub fn tracking(&self) -> Tracking {
        Tracking {
            poll_after: self.verification_poll_after,
            poll_max: self.verification_poll_max,
            deadline: self.verification_deadline,
            give_up: self.verification_give_up,
        }
    }
}

/// How many probe intervals everybody waits at most for what the provider asked of one job: a minute, at
/// the default.
const PROBE_INTERVALS_PAUSED: u32 = 12;

impl WorkSettings {
    /// The schedule of retries.
    pub fn retry_schedule(&self) -> RetrySchedule {
        RetrySchedule {
            delay_min: self.retry_delay_min,
            delay_max: self.retry_delay_max,
            attempts_max: self.retry_max_attempts,
            pause_max: self.breaker_probe_interval * PROBE_INTERVALS_PAUSED,
        }
    }
}

impl RunSettings {
    /// When reads of customers prove something.
    pub fn timing(&self) -> Timing {
        Timing {
            after: self.read_back.read_back_after,
            window: self.read_back.read_back_window,
            confirmations: self.read_back.read_back_confirmations,
            deadline: self.read_back.read_back_deadline,
            applied_within: self.read_back.applied_within,
            read_time_max: self.work.scheduler_poll + self.provider.read_timeout,
            unverified: self.read_back.read_back_unverified,
        }
    }
}

/// No duration is longer: 3650 days. Sums of a few stay far from every type's limits, the database
/// can take them from its time, and the broker takes no longer one for a message's life.
const DURATION_MAX: Duration = Duration::from_secs(3650 * 24 * 3600);

/// A duration as people write it: `500ms`, `30s`, `2h`, `30d`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a duration such as 500ms, 30s or 2h"))?;
    if duration > DURATION_MAX {
        return Err("is too long; write at most 3650d".to_owned());
    }
    Ok(duration)
}

/// One of a list of document types, as the provider writes them. Blanks around it are none of it.
fn parse_document_type(text: &str) -> Result<String, String> {
    let name = text.trim();
    let is_type = name == OF_PROVIDER
        || !name.is_empty()
            && name.bytes().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == b'_');
    match is_type {
        true => Ok(name.to_owned()),
        false => {
            Err("write types in capitals, digits and _, with commas between them, or provider".to_owned())
        }
    }
}

/// One of a list of networks. One that holds every address would be no rule any more.
fn parse_network(text: &str) -> Result<IpNet, String> {
    let network = text.trim().parse().ok().filter(|network: &IpNet| network.prefix_len() > 0);
    network.ok_or_else(|| {
        "write networks with commas between them, such as 10.20.0.0/16,fd12::/32, and none of all addresses"
            .to_owned()
    })
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.trim().parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "write a share from 0 to 1, such as 0.01".to_owned())
}

/// One of a list of HTTP statuses.
fn parse_status(text: &str) -> Result<u16, String> {
    text.trim().parse().map_err(|_| "write statuses with commas between them, such as 503,504".to_owned())
}

/// What `RUST_LOG` says, if it leaves every ERROR of ours, or is `off`.
///
/// The library takes any bare word for a module's name, so that `warning` silences all else.
fn parse_directives(text: &str) -> Result<Targets, String> {
    let filter: Targets =
        text.parse().map_err(|error: tracing_subscriber::filter::ParseError| error.to_string())?;
    if text.trim().eq_ignore_ascii_case("off") {
        return Ok(filter);
    }
    let is_ours = |target: &str| target.starts_with(OUR_MODULES);
    for directive in text.split(',').map(str::trim) {
        let is_level = directive.parse::<LevelFilter>().is_ok();
        let is_understood = directive.contains('=') || is_level || is_ours(directive);
        if directive.is_empty() || !is_understood || directive.contains('[') {
            return Err(format!(
                "`{directive}` is no level; write off, error, warn, info, debug, trace or MODULE=LEVEL"
            ));
        }
    }
    let is_silent = |(target, level): (&str, LevelFilter)| is_ours(target) && level == LevelFilter::OFF;
    if !filter.would_enable(OUR_MODULES, &Level::ERROR) || filter.iter().any(is_silent) {
        return Err(format!(
            "leaves errors of the worker unsaid; write off alone, or add {OUR_MODULES}=error"
        ));
    }
    Ok(filter)
}

/// The crate's own events have targets that begin with it.
const OUR_MODULES: &str = "kyc_worker";
