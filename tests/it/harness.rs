//! A world of its own for each test: a database, a vhost, a sandbox and as many workers
//! as it likes. It speaks in verbs and leaves nothing behind.

mod broker;
pub mod console;
mod database;
mod jobs;
mod provider;
mod raw;
mod worker;

use std::fs;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::PathBuf;
use std::pin::Pin;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use lapin::options::ConfirmSelectOptions;
use lapin::{Channel, Connection, ConnectionProperties};
use serde_json::json;
use sqlx::{PgPool, Postgres, Transaction};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

pub use self::broker::JOBS;
pub use self::jobs::{Observation, Submission, job_body, job_of_link};
pub use self::raw::{RawBroker, RawProperties, long_string, short_string};
pub use self::worker::{FINGERPRINT_KEY, NARROW, PATIENT, WorkerProcess};
use crate::relay::Relay;

/// Of what a test with a backlog does, the one amount or the other: `TEST_SIZE=full` is the size
/// that is promised (10,000 jobs, minutes of outage, and the worker's own times), `small` is the
/// same test in seconds.
pub fn sized<T>(small: T, full: T) -> T {
    match setting("TEST_SIZE", "small").as_str() {
        "small" => small,
        "full" => full,
        other => panic!("TEST_SIZE is small or full, and not {other}"),
    }
}

/// Nothing in a test takes longer, however busy the machine is: only a test that fails waits for it.
fn deadline() -> Duration {
    sized(Duration::from_secs(300), Duration::from_secs(1_200))
}

/// Waits until a program of the test's own is listened to; one that ends before says why, as `told` has it.
pub async fn wait_until_it_listens(process: &mut Child, port: u16, told: impl Fn() -> String) {
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        assert_eq!(process.try_wait().expect("it can be asked"), None, "it ended: {}", told());
        sleep(PAUSE_MIN).await;
    }
}

/// Between two questions of a test that waits.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(100);

pub struct World {
    pub pool: PgPool,
    pub sandbox: dollarpe_sandbox::Running,
    pub http: reqwest::Client,
    name: String,
    admin_url: String,
    database_url: String,
    amqp_url: String,
    channel: Channel,
    connection: Connection,
    dir: TempDir,
    /// Whether histories were changed behind the worker's back.
    is_tampered: AtomicBool,
    /// How many databases it has beside its own.
    more_databases: AtomicUsize,
}

/// Runs `test` in a world of its own and takes the world down after it, whatever happened.
pub fn world<F>(test: impl FnOnce(Arc<World>) -> F)
where
    F: Future<Output = ()>,
{
    world_with(dollarpe_sandbox::Settings::default(), test);
}

pub fn world_with<F>(settings: dollarpe_sandbox::Settings, test: impl FnOnce(Arc<World>) -> F)
where
    F: Future<Output = ()>,
{
    world_at(admin_database_url(), settings, test);
}

/// Runs `test` in a world whose database is made in a cluster of the test's own.
pub fn world_on<F>(admin_url: &str, test: impl FnOnce(Arc<World>) -> F)
where
    F: Future<Output = ()>,
{
    world_at(admin_url.to_owned(), dollarpe_sandbox::Settings::default(), test);
}

fn world_at<F>(admin_url: String, settings: dollarpe_sandbox::Settings, test: impl FnOnce(Arc<World>) -> F)
where
    F: Future<Output = ()>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let world = Arc::new(World::new(admin_url, settings).await);
        let tested = async {
            test(Arc::clone(&world)).await;
            // A cluster of the test's own may be gone.
            if !world.is_tampered.load(Ordering::Relaxed) && world.admin_url == admin_database_url() {
                world.check_histories().await;
            }
        };
        let result = AssertUnwindSafe(tested).catch_unwind().await;
        if result.is_err() {
            world.print_logs();
        }
        world.clean().await;
        if let Err(failure) = result {
            resume_unwind(failure);
        }
    });
}

fn setting(name: &str, default: &str) -> String {
    #[expect(clippy::disallowed_methods, reason = "where the tests' services are")]
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

fn admin_database_url() -> String {
    setting("TEST_DATABASE_URL", "postgres://postgres@127.0.0.1:5432/postgres")
}

fn management_url() -> String {
    setting("TEST_RABBITMQ_MANAGEMENT_URL", "http://guest:guest@127.0.0.1:15672")
}

impl World {
    async fn new(admin_url: String, settings: dollarpe_sandbox::Settings) -> Self {
        let _already_installed = rustls::crypto::ring::default_provider().install_default();
        #[expect(clippy::disallowed_methods, reason = "a test's client needs no guards")]
        let http = reqwest::Client::builder().timeout(deadline()).build().expect("a client");
        let name = format!("kyc_it_{}", Uuid::new_v4().simple());
        let dir = TempDir::new().expect("a temporary directory");

        let database_url = database::create(&admin_url, &name).await;
        let pool = database::connect(&database_url).await;

        let vhost = format!("{}/api/vhosts/{name}", management_url());
        let made = http.put(&vhost).json(&json!({})).send().await.unwrap_or_else(|error| {
            panic!("no RabbitMQ management API at {} ({error}); `make services` starts it", management_url())
        });
        assert!(made.status().is_success(), "cannot make a vhost: {}", made.status());
        let base = setting("TEST_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672");
        let amqp_url = format!("{}/{name}", base.trim_end_matches('/'));
        let (connection, channel) = open_channel(&amqp_url).await;

        let settings = dollarpe_sandbox::Settings { listen: ([127, 0, 0, 1], 0).into(), ..settings };
        let sandbox = dollarpe_sandbox::start(settings).await.expect("the sandbox starts");
        Self {
            pool,
            sandbox,
            http,
            name,
            admin_url,
            database_url,
            amqp_url,
            channel,
            connection,
            dir,
            is_tampered: AtomicBool::new(false),
            more_databases: AtomicUsize::new(0),
        }
    }

    /// Checks that whatever a test did, every history verifies.
    pub async fn check_histories(&self) {
        let audited = kyc_lab::books::audit(&self.pool, FINGERPRINT_KEY).await;
        jobs::check_agree(&[audited.expect("the database answers")]);
    }

    /// Says that histories are changed behind the worker's back, so that they cannot verify.
    pub fn is_tampered_with(&self) {
        self.is_tampered.store(true, Ordering::Relaxed);
    }

    async fn clean(&self) {
        let _may_be_gone = timeout(deadline(), self.connection.close(200, "done".into())).await;
        // RabbitMQ 3.10 may not survive a vhost that goes while a worker declares its queues there.
        self.wait_for("the end of every connection to the broker", async || {
            self.connections_by_user().await.is_empty().then_some(())
        })
        .await;
        for kind in ["vhosts", "users"] {
            let _best_effort =
                self.http.delete(format!("{}/api/{kind}/{}", management_url(), self.name)).send().await;
        }
        // A cluster of the test's own may be gone, and goes with the test.
        if self.admin_url == admin_database_url() {
            self.pool.close().await;
            database::remove(&self.admin_url, &self.name).await;
            for number in 0..self.more_databases.load(Ordering::Relaxed) {
                database::remove(&self.admin_url, &format!("{}_{number}", self.name)).await;
            }
        }
    }

    fn print_logs(&self) {
        for (path, text) in self.logs() {
            println!("---- {}\n{text}", path.display());
        }
    }

    /// What every process of this world has printed so far.
    pub fn logs(&self) -> Vec<(PathBuf, String)> {
        let entries = fs::read_dir(self.dir.path()).expect("the directory");
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        paths.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap_or_default())).collect()
    }

    /// Changes the database behind the worker's back.
    pub async fn tamper(&self, statement: &'static str) {
        self.is_tampered_with();
        sqlx::query(statement).execute(&self.pool).await.expect("the database does it");
    }

    /// Makes another database, as another installation has, and returns its URL.
    pub async fn make_database(&self) -> String {
        let number = self.more_databases.fetch_add(1, Ordering::Relaxed);
        database::create(&self.admin_url, &format!("{}_{number}", self.name)).await
    }

    /// A file of this world's.
    pub fn write_file(&self, name: &str, content: &[u8]) -> String {
        let path = self.dir.path().join(name);
        fs::write(&path, content).expect("a file");
        path.to_str().expect("a path in UTF-8").to_owned()
    }

    /// The path of a directory of this world's that is not there yet.
    pub fn directory(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().expect("a path in UTF-8").to_owned()
    }

    /// A relay to the broker, and the `AMQP_URL` that leads through it.
    pub async fn relay_to_broker(&self) -> (Relay, String) {
        relay_to(&self.amqp_url).await
    }

    /// A relay to the database, and the `DATABASE_URL` that leads through it.
    pub async fn relay_to_database(&self) -> (Relay, String) {
        relay_to(&self.database_url).await
    }

    /// A relay to the provider, and the `DOLLARPE_BASE_URL` that leads through it.
    pub async fn relay_to_provider(&self) -> (Relay, String) {
        relay_to(&self.sandbox.base_url()).await
    }

    pub fn amqp_url(&self) -> &str {
        &self.amqp_url
    }

    pub fn database_url(&self) -> &str {
        &self.database_url
    }

    pub fn database_name(&self) -> &str {
        &self.name
    }

    /// Locks a table against every write until the guard is dropped. Reads go on.
    pub async fn lock_table(&self, table: &'static str) -> Transaction<'static, Postgres> {
        let mut lock = self.pool.begin().await.expect("a transaction");
        sqlx::query(&format!("lock table {table} in exclusive mode"))
            .execute(&mut *lock)
            .await
            .expect("the lock");
        lock
    }

    /// How many statements of workers wait for a lock in this world's database.
    pub async fn count_blocked(&self) -> i64 {
        self.count(
            "select count(*) from pg_stat_activity
            where datname = current_database() and application_name = 'kyc-worker' and wait_event_type = 'Lock'",
        )
        .await
    }

    /// Waits until `find` finds something. It is asked again when a process of this world has said
    /// something, and now and then, since not everything is said.
    pub async fn wait_for<T>(&self, what: &str, find: impl AsyncFn() -> Option<T>) -> T {
        let (begun, deadline) = (Instant::now(), deadline());
        loop {
            let (asked, said) = (Instant::now(), self.said());
            if let Some(found) = find().await {
                return found;
            }
            if begun.elapsed() >= deadline {
                panic!("waited {deadline:?} in vain for {what}; {}", self.standing().await);
            }
            // A question that is slow to answer is asked less often: others work beside us.
            let pause = PAUSE_MIN.max(asked.elapsed() * 3);
            let asked_next = Instant::now() + PAUSE_MAX.max(pause);
            sleep(pause).await;
            while self.said() == said && Instant::now() < asked_next {
                sleep(PAUSE_MIN).await;
            }
        }
    }

    /// Where this world's jobs stand.
    async fn standing(&self) -> String {
        let standing = sqlx::query_scalar(
            "select coalesce(string_agg(format('%s %s', count, place), ', '), 'no jobs')
            from (
                select count(*), concat_ws('/', state, waiting_for, reason_code, due_at - now()) as place
                from submission group by place limit 50
            ) as places",
        );
        standing.fetch_one(&self.pool).await.unwrap_or_else(|error: sqlx::Error| error.to_string())
    }

    /// How much the processes of this world have written.
    fn said(&self) -> u64 {
        let entries = fs::read_dir(self.dir.path()).expect("the directory");
        entries.map(|entry| entry.and_then(|entry| entry.metadata()).map_or(0, |file| file.len())).sum()
    }

    /// One number from a query.
    pub async fn count(&self, query: &'static str) -> i64 {
        sqlx::query_scalar(query).fetch_one(&self.pool).await.expect("the database answers")
    }
}

/// What a test asks of a service: an answer that never comes is told, and not waited for.
async fn answer<T>(what: &str, asked: impl Future<Output = T>) -> T {
    timeout(deadline(), asked).await.unwrap_or_else(|_late| panic!("no answer in {:?}: {what}", deadline()))
}

async fn relay_to(url: &str) -> (Relay, String) {
    let mut url: url::Url = url.parse().expect("a URL");
    let place = format!("{}:{}", url.host_str().expect("a host"), url.port().expect("a port"));
    let target = tokio::net::lookup_host(place).await.expect("an address").next().expect("an address");
    let relay = Relay::start(target).await;
    url.set_host(Some("127.0.0.1")).expect("a host");
    url.set_port(Some(relay.address().port())).expect("a port");
    (relay, url.to_string())
}

fn open_channel(url: &str) -> Pin<Box<dyn Future<Output = (Connection, Channel)> + Send + '_>> {
    Box::pin(async move {
        let connection = Connection::connect(url, ConnectionProperties::default())
            .await
            .unwrap_or_else(|error| panic!("no RabbitMQ at {url} ({error}); `make services` starts it"));
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        (connection, channel)
    })
}
