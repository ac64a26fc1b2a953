//! The provider, simulated over HTTP: its documented answers, faults on demand, and an
//! oracle, which is its own log of every update it was asked for and every one it applied.
//! Demo, tests, benchmarks and the crash storm run against it. Never needed in production,
//! whose images are built without it; it knows nothing of the worker but `domain`'s
//! signatures.

mod admin;
mod answer;
mod customer;
mod flow;
mod oracle;
mod provider;
mod rule;
#[cfg(test)]
mod tests;
pub mod tls;
mod wire;

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use parking_lot::Mutex;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use dollarpe::canonical_json::Profile;

/// How the simulated provider behaves. What is not its address or `fast` can be changed
/// while it runs, by `POST /_admin/settings`.
#[derive(Clone, clap::Args)]
pub struct Settings {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, env = "SANDBOX_LISTEN", default_value_t = Self::default().listen)]
    pub listen: SocketAddr,

    /// Speak https, under this name and with a certificate made for it
    #[arg(long, env = "SANDBOX_TLS_NAME", value_name = "NAME")]
    pub tls_name: Option<String>,

    /// Where to write the authority's certificate, for DOLLARPE_CA_FILE of the worker
    #[arg(long, env = "SANDBOX_TLS_CA_FILE", value_name = "FILE", requires = "tls_name")]
    pub tls_ca_file: Option<PathBuf>,

    /// API key that requests must carry
    #[arg(long, env = "SANDBOX_API_KEY", default_value_t = Self::default().api_key)]
    pub api_key: String,

    /// API secret that requests must be signed with
    #[arg(long, env = "SANDBOX_API_SECRET", hide_env_values = true, default_value_t = Self::default().api_secret)]
    pub api_secret: String,

    /// Canonical form of the body under the signature
    #[arg(long, env = "SANDBOX_SIGNING_PROFILE", value_enum, default_value_t = Self::default().signing_profile)]
    pub signing_profile: Profile,

    /// How far X-TIMESTAMP may be from the provider's clock, either way
    #[arg(long, env = "SANDBOX_TIMESTAMP_WINDOW", value_name = "DURATION", default_value_t = Self::default().timestamp_window)]
    pub timestamp_window: humantime::Duration,

    /// Seconds by which the provider's clock is ahead, in its Date header and its timestamp window
    #[arg(long = "clock-ahead", env = "SANDBOX_CLOCK_AHEAD", value_name = "SECONDS", allow_negative_numbers = true, default_value_t = Self::default().clock_ahead_s)]
    pub clock_ahead_s: i64,

    /// Updates that a customer may have, ever
    #[arg(long, env = "SANDBOX_UPDATE_LIMIT", default_value_t = Self::default().update_limit)]
    pub update_limit: u32,

    /// How long a customer stays in PROCESSING after an update
    #[arg(long, env = "SANDBOX_VERIFICATION_TIME", value_name = "DURATION", default_value_t = Self::default().verification_time)]
    pub verification_time: humantime::Duration,

    /// How long every request takes before it has any effect
    #[arg(long, env = "SANDBOX_LATENCY", value_name = "DURATION", default_value_t = Self::default().latency)]
    pub latency: humantime::Duration,

    /// Status in the answer to an update: the provider's guide and its reference page disagree
    #[arg(long, env = "SANDBOX_UPDATE_ANSWERS", value_enum, default_value_t = Self::default().update_answers)]
    pub update_answers: UpdateAnswer,

    /// Refuse a document number that was accepted for another customer
    #[arg(long, env = "SANDBOX_UNIQUE_DOCUMENTS")]
    pub unique_documents: bool,

    /// Close every connection after one answer
    #[arg(long, env = "SANDBOX_CLOSE_CONNECTIONS")]
    pub close_connections: bool,

    /// For benchmarks: log no requests, and let the oracle keep counts only
    #[arg(long, env = "SANDBOX_FAST")]
    pub fast: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 4010)),
            tls_name: None,
            tls_ca_file: None,
            api_key: "sandbox-key".to_owned(),
            api_secret: "sandbox-secret".to_owned(),
            signing_profile: Profile::Compact,
            timestamp_window: Duration::from_secs(300).into(),
            clock_ahead_s: 0,
            update_limit: 3,
            verification_time: Duration::from_secs(90).into(),
            latency: Duration::ZERO.into(),
            update_answers: UpdateAnswer::Processing,
            unique_documents: false,
            close_connections: false,
            fast: false,
        }
    }
}

/// The customer's status as the answer to an applied update gives it.
#[derive(Clone, Copy, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[value(rename_all = "SCREAMING_SNAKE_CASE")]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum UpdateAnswer {
    /// As the provider's guide shows it.
    Processing,
    /// As the provider's reference page shows it.
    Unverified,
}

/// A sandbox that is listening. Dropping it stops it.
pub struct Running {
    /// `http://127.0.0.1:4010`, or the like.
    origin: String,
    /// Where it speaks HTTP without TLS.
    address: SocketAddr,
    _tls: Option<tls::Front>,
    stop: CancellationToken,
    server: JoinHandle<std::io::Result<()>>,
}

/// How long requests in progress may take to notice that the sandbox stops.
const STOP_TIME_MAX: Duration = Duration::from_secs(2);

/// Binds `settings.listen` and serves in tasks of the current runtime.
///
/// # Errors
/// The address is not to be had.
pub async fn start(settings: Settings) -> anyhow::Result<Running> {
    let listen = settings.listen;
    let tcp = TcpListener::bind(listen).await.with_context(|| {
        format!("cannot listen on {listen}; is another sandbox running? --listen takes another address")
    })?;
    let (tcp, origin, tls) = match &settings.tls_name {
        None => {
            let origin = format!("http://{}", tcp.local_addr()?);
            (tcp, origin, None)
        }
        Some(name) => {
            let inner = TcpListener::bind(("127.0.0.1", 0)).await?;
            let front = put_tls_before(&settings, name, tcp, inner.local_addr()?)?;
            let origin = format!("https://{name}:{}", front.address().port());
            (inner, origin, Some(front))
        }
    };
    let address = tcp.local_addr()?;

    let stop = CancellationToken::new();
    let sandbox = Arc::new(Sandbox {
        logs_requests: !settings.fast,
        state: Mutex::new(State::new(settings)),
        stop: stop.clone(),
    });
    let service = admin::routes()
        .fallback(flow::answer)
        .with_state(sandbox)
        .into_make_service_with_connect_info::<wire::Shears>();
    let server =
        axum::serve(wire::Listener(tcp), service).with_graceful_shutdown(stop.clone().cancelled_owned());
    Ok(Running { origin, address, _tls: tls, stop, server: tokio::spawn(server.into_future()) })
}

/// Makes an authority and a certificate, and lets the one be known.
fn put_tls_before(
    settings: &Settings,
    name: &str,
    listener: TcpListener,
    inner: SocketAddr,
) -> anyhow::Result<tls::Front> {
    let authority = tls::Authority::new()?;
    let front = tls::Front::start(listener, inner, &authority.issue(name)?)?;
    if let Some(path) = &settings.tls_ca_file {
        std::fs::write(path, authority.pem())
            .with_context(|| format!("cannot write {} (--tls-ca-file)", path.display()))?;
    }
    Ok(front)
}

impl Running {
    /// The provider's base URL, for `DOLLARPE_BASE_URL`.
    pub fn base_url(&self) -> String {
        format!("{}{}", self.origin, provider::BASE_PATH)
    }

    /// What the paths of the admin interface are appended to, as in `{admin_url}/rules`.
    pub fn admin_url(&self) -> String {
        format!("http://{}/_admin", self.address)
    }

    /// Stops accepting, breaks off the requests in progress, and returns once the port is free.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if tokio::time::timeout(STOP_TIME_MAX, &mut self.server).await.is_err() {
            self.server.abort();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Sandbox {
    /// Its lock is never held across an await.
    state: Mutex<State>,
    logs_requests: bool,
    stop: CancellationToken,
}

/// Everything that changes while the sandbox runs.
struct State {
    settings: Settings,
    customers: customer::Customers,
    rules: rule::Rules,
    oracle: oracle::Oracle,
    open: HashMap<Uuid, OpenPatches>,
    /// Answers to reads, of a cache that rules put before the provider.
    cache: HashMap<Uuid, provider::Reply>,
}

/// Update requests of one customer that the provider has received and not ended.
#[derive(Clone, Copy, Default)]
struct OpenPatches {
    now: u32,
    max: u32,
}

impl State {
    fn new(settings: Settings) -> Self {
        Self {
            oracle: oracle::Oracle::new(!settings.fast),
            settings,
            customers: customer::Customers::default(),
            rules: rule::Rules::default(),
            open: HashMap::new(),
            cache: HashMap::new(),
        }
    }

    /// Forgets customers, rules and records. Settings stay, and so do the requests that are open,
    /// which can no longer apply anything.
    fn reset(&mut self) {
        self.customers = customer::Customers::default();
        self.rules = rule::Rules::default();
        self.oracle.reset();
        self.cache.clear();
        self.open.retain(|_, open| {
            open.max = open.now;
            open.now > 0
        });
    }

    /// The provider's clock, which may be wrong.
    fn unix_seconds(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        since.as_secs().cast_signed() + self.settings.clock_ahead_s
    }

    /// Of any one customer. The nil customer is nobody: workers' probes may overlap.
    fn open_patches_max(&self) -> u32 {
        let customers = self.open.iter().filter(|(id, _)| !id.is_nil());
        customers.map(|(_, open)| open.max).max().unwrap_or(0)
    }
}
