//! A world of its own for each test: a database, a vhost, a sandbox and as many workers
//! as it likes. It speaks in verbs and leaves nothing behind.

use std::collections::HashMap;
use std::fs;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{FutureExt as _, TryStreamExt as _};
use kyc_worker::journal::audit::{Audit, Finding};
use kyc_worker::journal::seal::Fingerprinter;
use kyc_worker::sandbox;
use kyc_worker::sandbox::tls::{Authority, Front};
use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Queue};
use serde_json::{Value, json};
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgPool, Postgres, Row as _, Transaction};
use tempfile::TempDir;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::relay::Relay;

/// The queue of jobs.
pub const JOBS: &str = "kyc.document-updates";

/// What the workers chain histories with.
pub const FINGERPRINT_KEY: &str = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";

/// For a worker with more in its queue than it holds, which may be cut off from a service in the
/// middle of it; patient enough that an attempt whose commit lost its answer can be looked into
/// when the database is back.
pub const NARROW: [(&str, &str); 5] = [
    ("CONCURRENCY", "4"),
    ("PREFETCH", "8"),
    ("READ_BACK_WINDOW", "45s"),
    ("READ_BACK_CONFIRMATIONS", "1"),
    ("READ_BACK_DEADLINE", "2m"),
];

/// The worker's times, about a tenth of what they are.
const SCALED_DOWN: [(&str, &str); 12] = [
    ("REQUEST_TIMEOUT", "2s"),
    ("SEND_WINDOW", "1s"),
    ("CLAIM_LEASE", "3500ms"),
    ("READ_TIMEOUT", "1s"),
    ("READ_BACK_AFTER", "500ms"),
    ("READ_BACK_WINDOW", "6s"),
    ("READ_BACK_DEADLINE", "20s"),
    ("CUSTOMER_READ_INTERVAL", "3s"),
    ("SCHEDULER_POLL", "100ms"),
    ("RETRY_DELAY_MIN", "20ms"),
    ("BREAKER_PROBE_INTERVAL", "100ms"),
    ("SHUTDOWN_GRACE", "5s"),
];

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

/// Nothing in a test takes longer.
fn deadline() -> Duration {
    sized(Duration::from_secs(60), Duration::from_secs(1_200))
}

pub struct World {
    pub pool: PgPool,
    pub sandbox: sandbox::Running,
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
}

/// Runs `test` in a world of its own and takes the world down after it, whatever happened.
pub fn world<F>(test: impl FnOnce(Arc<World>) -> F)
where
    F: Future<Output = ()>,
{
    world_with(sandbox::Settings::default(), test);
}

pub fn world_with<F>(settings: sandbox::Settings, test: impl FnOnce(Arc<World>) -> F)
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
    world_at(admin_url.to_owned(), sandbox::Settings::default(), test);
}

fn world_at<F>(admin_url: String, settings: sandbox::Settings, test: impl FnOnce(Arc<World>) -> F)
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
            world.check_histories().await;
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
    async fn new(admin_url: String, settings: sandbox::Settings) -> Self {
        let _already_installed = rustls::crypto::ring::default_provider().install_default();
        #[expect(clippy::disallowed_methods, reason = "a test's client needs no guards")]
        let http = reqwest::Client::new();
        let name = format!("kyc_it_{}", Uuid::new_v4().simple());
        let dir = TempDir::new().expect("a temporary directory");

        let admin = connect(&admin_url).await;
        sqlx::query(&format!("create database {name}"))
            .execute(&admin)
            .await
            .expect("the test user may create databases");
        admin.close().await;
        let mut database_url: url::Url = admin_url.parse().expect("TEST_DATABASE_URL is a URL");
        database_url.set_path(&name);
        let pool = connect(database_url.as_str()).await;
        kyc_worker::journal::migrate(&pool).await.expect("migrations run");

        let vhost = format!("{}/api/vhosts/{name}", management_url());
        let made = http.put(&vhost).json(&json!({})).send().await.unwrap_or_else(|error| {
            panic!("no RabbitMQ management API at {} ({error}); `make services` starts it", management_url())
        });
        assert!(made.status().is_success(), "cannot make a vhost: {}", made.status());
        let base = setting("TEST_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672");
        let amqp_url = format!("{}/{name}", base.trim_end_matches('/'));
        let (connection, channel) = open_channel(&amqp_url).await;

        let settings = sandbox::Settings { listen: ([127, 0, 0, 1], 0).into(), ..settings };
        let sandbox = sandbox::start(settings).await.expect("the sandbox starts");
        Self {
            pool,
            sandbox,
            http,
            name,
            admin_url,
            database_url: database_url.to_string(),
            amqp_url,
            channel,
            connection,
            dir,
            is_tampered: AtomicBool::new(false),
        }
    }

    /// Checks that whatever a test did, every history verifies.
    async fn check_histories(&self) {
        // A cluster of the test's own may be gone.
        if self.is_tampered.load(Ordering::Relaxed) || self.admin_url != admin_database_url() {
            return;
        }
        let fingerprinter = Fingerprinter::parse(FINGERPRINT_KEY).expect("a key");
        let mut audit = Audit::begin(&self.pool, fingerprinter).await.expect("the database answers");
        let mut findings = Vec::new();
        while let Some(page) = audit.next_page().await.expect("the database answers") {
            findings.extend(page.findings);
        }
        let orphans: Vec<Finding> = audit.orphans().try_collect().await.expect("the database answers");
        findings.extend(orphans);
        assert!(findings.is_empty(), "histories that do not verify: {findings:#?}");
    }

    /// Says that histories are changed behind the worker's back, so that they cannot verify.
    pub fn is_tampered_with(&self) {
        self.is_tampered.store(true, Ordering::Relaxed);
    }

    async fn clean(&self) {
        let _may_be_gone = self.connection.close(200, "done".into()).await;
        for kind in ["vhosts", "users"] {
            let _best_effort =
                self.http.delete(format!("{}/api/{kind}/{}", management_url(), self.name)).send().await;
        }
        // A cluster of the test's own may be gone, and goes with the test.
        if self.admin_url != admin_database_url() {
            return;
        }
        self.pool.close().await;
        let admin = connect(&self.admin_url).await;
        let drop = format!("drop database if exists {} with (force)", self.name);
        sqlx::query(&drop).execute(&admin).await.expect("the test database goes");
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

    /// The binary with this world's settings, times scaled down unless the size is full.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kyc-worker"));
        command.env_clear().current_dir(self.dir.path()).envs([
            ("DATABASE_URL", self.database_url.as_str()),
            ("AMQP_URL", self.amqp_url.as_str()),
            ("DOLLARPE_BASE_URL", &self.sandbox.base_url()),
            ("DOLLARPE_API_KEY", "sandbox-key"),
            ("DOLLARPE_API_SECRET", "sandbox-secret"),
            ("PAYLOAD_KEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
            ("FINGERPRINT_KEY", FINGERPRINT_KEY),
            ("CONCURRENCY", "16"),
            ("PREFETCH", "48"),
            ("DATABASE_CONNECTIONS", "5"),
            ("RUST_LOG", sized("debug", "info")),
        ]);
        command.envs(sized(&SCALED_DOWN[..], &[]).iter().copied());
        command
    }

    /// Starts a worker.
    pub fn start_worker(&self) -> WorkerProcess {
        self.start_worker_with(&[])
    }

    /// Starts a worker with settings of its own.
    pub fn start_worker_with(&self, settings: &[(&str, &str)]) -> WorkerProcess {
        let mut command = self.command();
        command.arg("run").envs(settings.iter().copied());
        self.spawn(command)
    }

    /// Starts a worker that speaks to `stdout`, where its log cannot be read.
    pub fn start_worker_onto(&self, stdout: impl Into<Stdio>, settings: &[(&str, &str)]) -> WorkerProcess {
        let mut command = self.command();
        command.arg("run").envs(settings.iter().copied());
        self.spawn_onto(command, Some(stdout.into()))
    }

    /// Starts a command that goes on beside the test.
    pub fn spawn(&self, command: Command) -> WorkerProcess {
        self.spawn_onto(command, None)
    }

    fn spawn_onto(&self, mut command: Command, stdout: Option<Stdio>) -> WorkerProcess {
        let id = Uuid::new_v4().simple().to_string();
        let logs = ["out", "err"].map(|kind| self.dir.path().join(format!("worker-{}.{kind}", &id[..8])));
        let [out, err] = logs.each_ref().map(|path| fs::File::create(path).expect("a log file"));
        command.stdin(Stdio::null()).stdout(stdout.unwrap_or(out.into())).stderr(err);
        let child = command.spawn().expect("the worker starts");
        WorkerProcess { child, logs }
    }

    /// Runs the binary to its end.
    pub async fn run(&self, arguments: &[&str], settings: &[(&str, &str)]) -> std::process::Output {
        let mut command = self.command();
        command.args(arguments).envs(settings.iter().copied());
        tokio::task::spawn_blocking(move || command.output().expect("the command runs"))
            .await
            .expect("a task")
    }

    /// Runs a command that must succeed, and returns what it says.
    pub async fn say(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments, &[]).await;
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Runs a command, and what the shell does with its output, with 64 MiB for its data.
    pub async fn run_in_64_mib(&self, command: &str) -> String {
        let mut limited = Command::new("sh");
        limited.args(["-c", &format!("ulimit -d 65536; \"$0\" {command}"), env!("CARGO_BIN_EXE_kyc-worker")]);
        let settings = self.command();
        limited.env_clear().envs(settings.get_envs().filter_map(|(name, value)| Some((name, value?))));
        limited.env("PATH", "/usr/bin:/bin");
        let output =
            tokio::task::spawn_blocking(move || limited.output().expect("it runs")).await.expect("a task");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(!output.stdout.is_empty(), "{command}: {complaint}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Runs a command with `--json` and returns what it says and whether it succeeded.
    pub async fn ask(&self, arguments: &[&str]) -> (Value, bool) {
        let output = self.run(&[arguments, &["--json"]].concat(), &[]).await;
        let said = serde_json::from_slice(&output.stdout);
        let said =
            said.unwrap_or_else(|_| panic!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr)));
        (said, output.status.success())
    }

    /// Runs a command that must fail, and returns its complaint.
    pub async fn refuse(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments, &[]).await;
        assert_eq!(
            output.status.code(),
            Some(1),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8")
    }

    /// Changes the database behind the worker's back.
    pub async fn tamper(&self, statement: &'static str) {
        self.is_tampered_with();
        sqlx::query(statement).execute(&self.pool).await.expect("the database does it");
    }

    /// Runs the binary to its end with `input` on its standard input.
    pub async fn run_with_input(
        &self,
        arguments: &[&str],
        settings: &[(&str, &str)],
        input: &[u8],
    ) -> std::process::Output {
        let mut command = self.command();
        let input = fs::File::open(self.write_file("input", input)).expect("the file is there");
        command.args(arguments).envs(settings.iter().copied()).stdin(input);
        tokio::task::spawn_blocking(move || command.output().expect("the command runs"))
            .await
            .expect("a task")
    }

    /// Declares the topology as the worker does, so that publishing has somewhere to go.
    pub async fn declare_topology(&self) {
        let enqueued = self.run(&["enqueue", "/dev/null"], &[]).await;
        assert!(enqueued.status.success(), "{}", String::from_utf8_lossy(&enqueued.stderr));
    }

    /// A file of this world's.
    pub fn write_file(&self, name: &str, content: &[u8]) -> String {
        let path = self.dir.path().join(name);
        fs::write(&path, content).expect("a file");
        path.to_str().expect("a path in UTF-8").to_owned()
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

    /// Puts TLS before the provider, with a certificate for `name`, and returns the
    /// `DOLLARPE_BASE_URL` that leads there by 127.0.0.1.
    pub async fn put_tls_before_provider(&self, authority: &Authority, name: &str) -> (Front, String) {
        let base: url::Url = self.sandbox.base_url().parse().expect("a URL");
        let target = base.socket_addrs(|| None).expect("an address")[0];
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let issued = authority.issue(name).expect("a certificate");
        let front = Front::start(listener, target, &issued).expect("TLS");
        let base = format!("https://{}{}", front.address(), base.path());
        (front, base)
    }

    /// Makes a user of the broker that may do anything in this world's vhost, and returns
    /// its `AMQP_URL`.
    pub async fn make_broker_user(&self, password: &str) -> String {
        let name = &self.name;
        let all = json!({ "configure": ".*", "write": ".*", "read": ".*" });
        for (path, body) in [
            (format!("users/{name}"), json!({ "password": password, "tags": "" })),
            (format!("permissions/{name}/{name}"), all),
        ] {
            let url = format!("{}/api/{path}", management_url());
            let made = self.http.put(url).json(&body).send().await.expect("the management API answers");
            assert!(made.status().is_success(), "{path}: {}", made.status());
        }
        let mut url: url::Url = self.amqp_url.parse().expect("a URL");
        url.set_username(name).expect("a user");
        url.set_password(Some(password)).expect("a password");
        url.to_string()
    }

    pub fn amqp_url(&self) -> &str {
        &self.amqp_url
    }

    pub fn database_url(&self) -> &str {
        &self.database_url
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

    /// Publishes `body` as any AMQP client would, and waits for the confirmation.
    pub async fn publish(&self, message_id: Option<Uuid>, body: &[u8]) {
        let mut properties = BasicProperties::default().with_delivery_mode(2);
        if let Some(id) = message_id {
            properties = properties.with_message_id(id.to_string().into());
        }
        self.publish_with(properties, body).await;
    }

    pub async fn publish_with(&self, properties: BasicProperties, body: &[u8]) {
        self.publish_to("document-update", properties, body).await;
    }

    /// Publishes a message of any kind.
    pub async fn publish_to(&self, routing_key: &str, properties: BasicProperties, body: &[u8]) {
        let mandatory = BasicPublishOptions { mandatory: true, ..Default::default() };
        let confirm = self
            .channel
            .basic_publish("kyc".into(), routing_key.into(), mandatory, body, properties)
            .await
            .expect("the broker takes a message")
            .await
            .expect("the broker confirms it");
        assert!(confirm.is_ack() && confirm.take_message().is_none(), "the message found no queue");
    }

    /// Publishes a valid job and returns its id.
    pub async fn publish_job(&self) -> Uuid {
        let (job_id, _) = self.publish_job_for(Uuid::new_v4()).await;
        job_id
    }

    /// Publishes a valid job for a customer; returns its id and its body.
    pub async fn publish_job_for(&self, customer_id: Uuid) -> (Uuid, Value) {
        let job_id = Uuid::new_v4();
        (job_id, self.publish_job_named(customer_id, job_id).await)
    }

    /// Publishes a valid job under an id that something waits for; returns its body.
    pub async fn publish_job_named(&self, customer_id: Uuid, job_id: Uuid) -> Value {
        let body = job_body(customer_id, job_id);
        self.publish(Some(job_id), body.to_string().as_bytes()).await;
        body
    }

    /// Publishes a valid job whose every PATCH meets a fault, which is there before the job is.
    pub async fn publish_broken_job(&self, fault: Value) -> Uuid {
        let job_id = Uuid::new_v4();
        self.break_job(job_id, fault).await;
        self.publish_job_named(Uuid::new_v4(), job_id).await;
        job_id
    }

    /// Publishes a valid job that the customer asked for so many seconds ago.
    pub async fn publish_job_asked(&self, customer_id: Uuid, seconds_ago: i64) -> Uuid {
        let job_id = Uuid::new_v4();
        let asked = OffsetDateTime::now_utc() - time::Duration::seconds(seconds_ago);
        let mut body = job_body(customer_id, job_id);
        body["requested_at"] = json!(asked.format(&Rfc3339).expect("a time"));
        self.publish(Some(job_id), body.to_string().as_bytes()).await;
        job_id
    }

    /// Publishes as many valid jobs, each for a customer of its own.
    pub async fn publish_jobs(&self, count: usize) -> Vec<Uuid> {
        let mut jobs = Vec::new();
        for _ in 0..count {
            jobs.push(self.publish_job().await);
        }
        jobs
    }

    /// Queues as many valid jobs, each for a customer of its own, through the binary, which waits
    /// for the broker's confirmations.
    pub async fn enqueue_jobs(&self, count: usize, settings: &[(&str, &str)]) -> Vec<Uuid> {
        let jobs: Vec<Uuid> = (0..count).map(|_| Uuid::new_v4()).collect();
        let lines: String = jobs
            .iter()
            .map(|job_id| {
                let mut body = job_body(Uuid::new_v4(), *job_id);
                body["job_id"] = json!(job_id);
                format!("{body}\n")
            })
            .collect();
        let file = self.write_file("jobs.jsonl", lines.as_bytes());
        let enqueued = self.run(&["enqueue", &file], settings).await;
        assert!(enqueued.status.success(), "{}", String::from_utf8_lossy(&enqueued.stderr));
        jobs
    }

    /// Starts a worker that holds a few deliveries of two hundred, in the middle of its work.
    pub async fn start_at_work(&self, settings: &[(&str, &str)]) -> (WorkerProcess, Vec<Uuid>) {
        self.declare_topology().await;
        self.set_provider(json!({ "latency_ms": 20 })).await;
        let jobs = self.publish_jobs(200).await;
        let worker = self.start_worker_with(&[&NARROW[..], settings].concat());
        self.wait_for_accepted(20).await;
        (worker, jobs)
    }

    /// Waits until as many submissions are accepted.
    pub async fn wait_for_accepted(&self, count: i64) {
        let what = format!("{count} accepted submissions");
        self.wait_for(&what, async || (self.count_accepted().await >= count).then_some(())).await;
    }

    /// How many submissions are accepted.
    pub async fn count_accepted(&self) -> i64 {
        self.count("select count(*) from submission where state = 'accepted'").await
    }

    /// How many messages are ready in a queue.
    pub async fn count_ready(&self, queue: &str) -> u32 {
        self.look_at(queue).await.message_count()
    }

    /// How many consumers the queue of jobs has.
    pub async fn count_consumers(&self) -> u32 {
        self.look_at(JOBS).await.consumer_count()
    }

    async fn look_at(&self, queue: &str) -> Queue {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let declared = self.channel.queue_declare(queue.into(), passive, FieldTable::default()).await;
        declared.expect("the queue exists")
    }

    /// Whether the broker has a queue of that name.
    pub async fn queue_exists(&self, queue: &str) -> bool {
        let url = format!("{}/api/queues/{}/{queue}", management_url(), self.name);
        let answer = self.http.get(url).send().await.expect("the management API answers");
        answer.status().is_success()
    }

    /// Deletes the queue of jobs.
    pub async fn delete_queue(&self) {
        self.channel
            .queue_delete(JOBS.into(), QueueDeleteOptions::default())
            .await
            .expect("it can be deleted");
    }

    /// Declares the queue of jobs as no worker would.
    pub async fn declare_classic_queue(&self) {
        self.channel
            .queue_declare(JOBS.into(), QueueDeclareOptions::durable(), FieldTable::default())
            .await
            .expect("it can be declared");
    }

    /// Lets a user of this world's own configure and write everything and read what `read`
    /// says. Returns the `AMQP_URL` in his name.
    pub async fn allow_user(&self, read: &str) -> String {
        self.allow_user_to(json!({ "configure": ".*", "write": ".*", "read": read })).await
    }

    /// The same, with any permissions.
    pub async fn allow_user_to(&self, permissions: Value) -> String {
        let user = format!("{}/api/users/{}", management_url(), self.name);
        let permitted = format!("{}/api/permissions/{}/{}", management_url(), self.name, self.name);
        for (url, body) in [(user, json!({ "password": self.name, "tags": "" })), (permitted, permissions)] {
            let set = self.http.put(url).json(&body).send().await.expect("the management API answers");
            assert!(set.status().is_success(), "{}", set.status());
        }
        let mut url: url::Url = self.amqp_url.parse().expect("a URL");
        url.set_username(&self.name).expect("a user");
        url.set_password(Some(&self.name)).expect("a password");
        url.to_string()
    }

    /// Closes every worker's connection, as an operator can.
    pub async fn close_connections_of_workers(&self) {
        let names = self
            .wait_for("connections of workers", async || {
                Some(self.connections_of_workers().await).filter(|names| !names.is_empty())
            })
            .await;
        for name in names {
            let mut url: url::Url = management_url().parse().expect("a URL");
            url.path_segments_mut().expect("a base").extend(["api", "connections", &name]);
            let closed = self.http.delete(url).send().await.expect("the management API answers");
            assert!(closed.status().is_success(), "{}", closed.status());
        }
    }

    /// How many connections workers have. The management API's numbers are some seconds old.
    pub async fn count_connections_of_workers(&self) -> usize {
        self.connections_of_workers().await.len()
    }

    async fn connections_of_workers(&self) -> Vec<String> {
        let url = format!("{}/api/vhosts/{}/connections", management_url(), self.name);
        let answer = self.http.get(url).send().await.expect("the management API answers");
        #[expect(clippy::disallowed_methods, reason = "the broker is ours")]
        let connections: Vec<Value> = answer.json().await.expect("JSON");
        let is_workers = |connection: &&Value| {
            let name = connection["client_properties"]["connection_name"].as_str();
            name.is_some_and(|name| name.starts_with("kyc-worker"))
        };
        let name_of = |connection: &Value| connection["name"].as_str().map(str::to_owned);
        connections.iter().filter(is_workers).filter_map(name_of).collect()
    }

    /// Unbinds the queue of jobs from its exchange.
    pub async fn unbind_queue(&self) {
        self.channel
            .queue_unbind(JOBS.into(), "kyc".into(), "document-update".into(), FieldTable::default())
            .await
            .expect("it can be unbound");
    }

    /// Waits until a worker consumes.
    pub async fn wait_for_consumers(&self, count: u32) {
        let what = format!("{count} consumers");
        self.wait_for(&what, async || (self.count_consumers().await == count).then_some(())).await;
    }

    /// Stops the workers and checks that every delivery was acked: one that was not would
    /// be back in the queue by then.
    pub async fn check_all_acked<const N: usize>(&self, workers: [&mut WorkerProcess; N]) {
        for worker in workers {
            worker.stop().await;
        }
        self.wait_for_consumers(0).await;
        assert_eq!(self.count_ready(JOBS).await, 0, "a delivery was not acked");
    }

    /// Waits until the broker waits for no ack and has nothing ready: every delivery was
    /// taken over, or given back by nobody.
    pub async fn wait_for_no_delivery(&self) {
        self.wait_for("a queue without messages, ready or unacknowledged", async || {
            (self.count_undelivered_or_unacked().await == Some(0)).then_some(())
        })
        .await;
    }

    /// What the management API says the queue of jobs holds, unacknowledged included. Its
    /// numbers are some seconds old.
    async fn count_undelivered_or_unacked(&self) -> Option<u64> {
        let url = format!("{}/api/queues/{}/{JOBS}", management_url(), self.name);
        let answer = self.http.get(url).send().await.expect("the management API answers");
        #[expect(clippy::disallowed_methods, reason = "the broker is ours")]
        let queue: Value = answer.json().await.expect("JSON");
        queue["messages"].as_u64()
    }

    /// Waits until the worker has said it.
    pub async fn wait_for_log(&self, worker: &WorkerProcess, text: &str) {
        let what = format!("a log line with {text:?}");
        self.wait_for(&what, async || worker.log().contains(text).then_some(())).await;
    }

    /// Waits until the worker has said it so many times.
    pub async fn wait_for_logs(&self, worker: &WorkerProcess, text: &str, times: usize) {
        let what = format!("{times} log lines with {text:?}");
        self.wait_for(&what, async || (worker.log().matches(text).count() >= times).then_some(())).await;
    }

    /// Waits until a look at the customer has shown that the job was applied.
    pub async fn wait_for_applied(&self, job_id: Uuid) -> Submission {
        let job = self.wait_for_state(job_id, &["accepted", "needs_review"]).await;
        assert_eq!((job.state.as_str(), job.evidence.as_deref()), ("accepted", Some("read_back")), "{job:?}");
        job
    }

    /// Waits until every job is accepted, and checks that each was applied once and that
    /// every PATCH of it has its attempt.
    pub async fn wait_for_all_accepted(&self, jobs: &[Uuid]) {
        for job_id in jobs {
            self.wait_for_state(*job_id, &["accepted"]).await;
            assert_eq!(self.count_updates(*job_id).await, 1, "updates of {job_id}");
        }
    }

    /// Checks what no fault may ever break, once every one of `jobs` is accepted: each was
    /// applied once, every PATCH has an attempt that was written down, and nothing is in motion.
    pub async fn check_nothing_lost_or_spent_twice(&self, jobs: &[Uuid]) {
        self.wait_for_all_accepted(jobs).await;
        self.check_every_patch_has_its_attempt().await;
        let in_motion = "select count(*) from submission where state in ('submitting', 'waiting', 'unknown')";
        assert_eq!(self.count(in_motion).await, 0);
        let accepted = self.count_accepted().await;
        assert_eq!(i64::try_from(self.oracle("updates").await.len()), Ok(accepted));
    }

    /// Checks that every PATCH that the provider received has an attempt of its own job.
    pub async fn check_every_patch_has_its_attempt(&self) {
        // First what was seen: its attempts were committed before it.
        let mut patches = self.oracle("patches").await;
        let rows: Vec<(Uuid, i64)> = sqlx::query_as(
            "select job_id, count(*) from attempt where verdict is distinct from 'not_sent' group by job_id",
        )
        .fetch_all(&self.pool)
        .await
        .expect("the database answers");
        for (job_id, attempts) in rows {
            let id = job_id.to_string();
            let is_other = |patch: &Value| !patch["link"].as_str().is_some_and(|link| link.contains(&id));
            let before = patches.len();
            patches.retain(is_other);
            let seen = i64::try_from(before - patches.len()).expect("a small number");
            assert!(seen <= attempts, "{seen} PATCHes of {job_id}, and {attempts} attempts");
        }
        // The probe of signatures is for nobody.
        patches.retain(|patch| patch["customer_id"] != json!(Uuid::nil()));
        assert!(patches.is_empty(), "PATCHes without an attempt: {patches:?}");
    }

    /// Puts a message among the dead letters that no worker put there.
    pub async fn publish_dead_letter(&self, body: &[u8]) {
        let (exchange, key) = ("kyc.dlx".into(), "kyc.dead-letters".into());
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let publishing = self.channel.basic_publish(exchange, key, options, body, BasicProperties::default());
        let confirm = publishing.await.expect("the broker takes a message").await.expect("it confirms");
        assert!(confirm.is_ack() && confirm.take_message().is_none(), "the message found no queue");
    }

    /// Takes one message off the dead-letter queue.
    pub async fn take_dead_letter(&self) -> Option<Vec<u8>> {
        let got = self
            .channel
            .basic_get("kyc.dead-letters".into(), BasicGetOptions::default())
            .await
            .expect("the dead-letter queue exists")?;
        got.delivery.ack(BasicAckOptions::default()).await.expect("the ack goes out");
        Some(got.delivery.data)
    }

    /// Waits until a job is in one of `states`.
    pub async fn wait_for_state(&self, job_id: Uuid, states: &[&str]) -> Submission {
        let what = format!("job {job_id} in {states:?}");
        self.wait_for(&what, async || {
            let found = self.submission(job_id).await?;
            states.contains(&found.state.as_str()).then_some(found)
        })
        .await
    }

    /// Waits until `look` finds something.
    pub async fn wait_for<T>(&self, what: &str, look: impl AsyncFn() -> Option<T>) -> T {
        let (begun, deadline) = (Instant::now(), deadline());
        loop {
            if let Some(found) = look().await {
                return found;
            }
            assert!(begun.elapsed() < deadline, "waited {deadline:?} in vain for {what}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn submission(&self, job_id: Uuid) -> Option<Submission> {
        let row = sqlx::query(
            "select state, waiting_for, reason_code, reason, attempts, retries, deliveries, provider_reference,
                evidence, verification_status, sealed_payload is not null as has_payload, document_number_last4
            from submission where job_id = $1",
        )
        .bind(job_id)
        .fetch_optional(&self.pool)
        .await
        .expect("the database answers")?;
        Some(Submission {
            state: row.get("state"),
            waiting_for: row.get("waiting_for"),
            reason_code: row.get("reason_code"),
            reason: row.get("reason"),
            attempts: row.get("attempts"),
            retries: row.get("retries"),
            deliveries: row.get("deliveries"),
            provider_reference: row.get("provider_reference"),
            evidence: row.get("evidence"),
            verification_status: row.get("verification_status"),
            has_payload: row.get("has_payload"),
            document_number_last4: row.get("document_number_last4"),
        })
    }

    pub async fn attempts(&self, job_id: Uuid) -> Vec<Attempt> {
        let rows = sqlx::query(
            "select number, verdict, detail, http_status, provider_message from attempt where job_id = $1 order by number",
        )
        .bind(job_id)
        .fetch_all(&self.pool)
        .await
        .expect("the database answers");
        rows.iter()
            .map(|row| Attempt {
                number: row.get("number"),
                verdict: row.get("verdict"),
                detail: row.get("detail"),
                http_status: row.get("http_status"),
                provider_message: row.get("provider_message"),
            })
            .collect()
    }

    /// What was read of a job's customer for it, in order.
    pub async fn observations(&self, job_id: Uuid) -> Vec<Observation> {
        let rows = sqlx::query(
            "select purpose, status, error, conclusion from observation where job_id = $1 order by id",
        )
        .bind(job_id)
        .fetch_all(&self.pool)
        .await
        .expect("the database answers");
        rows.iter()
            .map(|row| Observation {
                purpose: row.get("purpose"),
                status: row.get("status"),
                error: row.get("error"),
                conclusion: row.get("conclusion"),
            })
            .collect()
    }

    /// Of each job that the oracle saw, in `patches` or `updates`, how often.
    pub async fn count_by_job(&self, what: &str) -> HashMap<Uuid, usize> {
        let mut counts = HashMap::new();
        for line in self.oracle(what).await {
            if let Some(job_id) = line["link"].as_str().and_then(job_of_link) {
                *counts.entry(job_id).or_default() += 1;
            }
        }
        counts
    }

    /// Waits until nothing is in motion and as many submissions have ended.
    pub async fn wait_for_ended(&self, count: usize) {
        let what = format!("{count} ended submissions");
        self.wait_for(&what, async || {
            let ended = "select count(*) from submission where ended_at is not null";
            (usize::try_from(self.count(ended).await) == Ok(count)).then_some(())
        })
        .await;
    }

    /// One number from a query.
    pub async fn count(&self, query: &'static str) -> i64 {
        sqlx::query_scalar(query).fetch_one(&self.pool).await.expect("the database answers")
    }

    /// What the oracle counted over all customers.
    pub async fn oracle_summary(&self) -> Value {
        let url = format!("{}/oracle/summary", self.sandbox.admin_url());
        let answer = self.http.get(url).send().await.expect("the sandbox answers");
        #[expect(clippy::disallowed_methods, reason = "the oracle is ours")]
        answer.json().await.expect("JSON")
    }

    /// Posts a fault rule for one job's PATCHes to the sandbox.
    pub async fn break_job(&self, job_id: Uuid, fault: Value) {
        self.add_rule(json!({ "match": { "method": "PATCH", "link_contains": job_id }, "fault": fault }))
            .await;
    }

    /// Makes the provider answer a job's first PATCH with a fault.
    pub async fn break_job_once(&self, job_id: Uuid, fault: Value) {
        let matched = json!({ "method": "PATCH", "link_contains": job_id });
        self.add_rule(json!({ "match": matched, "first": 1, "fault": fault })).await;
    }

    /// Posts a fault rule to the sandbox.
    pub async fn add_rule(&self, rule: Value) {
        let url = format!("{}/rules", self.sandbox.admin_url());
        let added = self.http.post(url).json(&rule).send().await.expect("the sandbox answers");
        let status = added.status();
        #[expect(clippy::disallowed_methods, reason = "the sandbox's answers are short")]
        let text = added.text().await.expect("a body");
        assert!(status.is_success(), "the sandbox refuses a rule: {text}");
    }

    pub async fn clear_rules(&self) {
        let url = format!("{}/rules", self.sandbox.admin_url());
        self.http.delete(url).send().await.expect("the sandbox answers");
    }

    /// Sets a customer at the provider.
    pub async fn set_customer(&self, customer_id: Uuid, customer: Value) {
        let url = format!("{}/customers/{customer_id}", self.sandbox.admin_url());
        let set = self.http.put(url).json(&customer).send().await.expect("the sandbox answers");
        assert!(set.status().is_success());
    }

    pub async fn set_provider(&self, settings: Value) {
        let url = format!("{}/settings", self.sandbox.admin_url());
        let set = self.http.post(url).json(&settings).send().await.expect("the sandbox answers");
        assert!(set.status().is_success());
    }

    /// What the oracle saw: `patches`, `updates` or `reads`, in order.
    pub async fn oracle(&self, what: &str) -> Vec<Value> {
        let url = format!("{}/oracle/{what}", self.sandbox.admin_url());
        let lines = self.http.get(url).send().await.expect("the sandbox answers");
        #[expect(clippy::disallowed_methods, reason = "the oracle is ours")]
        let lines = lines.text().await.expect("a body");
        lines.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
    }

    /// How many PATCHes the provider received for a job.
    pub async fn count_patches(&self, job_id: Uuid) -> usize {
        self.count_oracle("patches", job_id).await
    }

    /// How many updates the provider applied for a job.
    pub async fn count_updates(&self, job_id: Uuid) -> usize {
        self.count_oracle("updates", job_id).await
    }

    async fn count_oracle(&self, what: &str, job_id: Uuid) -> usize {
        let id = job_id.to_string();
        let seen = self.oracle(what).await;
        seen.iter().filter(|line| line["link"].as_str().is_some_and(|link| link.contains(&id))).count()
    }
}

/// A valid body. The front link names the job, so that the oracle can tell whose PATCH it saw.
pub fn job_body(customer_id: Uuid, job_id: Uuid) -> Value {
    json!({
        "customer_id": customer_id,
        "full_address": "12 Rue Élysée, Mumbai 400001",
        "document_type": "PASSPORT",
        "document_front_image_url": format!("https://files.example.com/{job_id}/front.jpg?X-Signature=abc"),
        "document_back_image_url": format!("https://files.example.com/{job_id}/back.png"),
        "document_details": { "document_number": "123456123456", "additional_data": {} }
    })
}

/// The job that a front link of [`job_body`] names.
pub fn job_of_link(link: &str) -> Option<Uuid> {
    link.split('/').nth(3)?.parse().ok()
}

#[derive(Debug)]
pub struct Observation {
    pub purpose: String,
    pub status: Option<String>,
    pub error: Option<String>,
    pub conclusion: Option<String>,
}

#[derive(Debug)]
pub struct Submission {
    pub state: String,
    pub waiting_for: Option<String>,
    pub reason_code: Option<String>,
    pub reason: Option<String>,
    pub attempts: i32,
    pub retries: i32,
    pub deliveries: i32,
    pub provider_reference: Option<String>,
    pub evidence: Option<String>,
    pub verification_status: Option<String>,
    pub has_payload: bool,
    pub document_number_last4: Option<String>,
}

#[derive(Debug)]
pub struct Attempt {
    pub number: i32,
    pub verdict: Option<String>,
    pub detail: Option<String>,
    pub http_status: Option<i32>,
    pub provider_message: Option<String>,
}

/// A worker, killed when the test is done with it.
pub struct WorkerProcess {
    child: Child,
    logs: [PathBuf; 2],
}

impl WorkerProcess {
    /// What it has printed so far, to stdout and to stderr.
    pub fn log(&self) -> String {
        self.logs.iter().map(|path| fs::read_to_string(path).expect("a log")).collect()
    }

    /// The most memory that it ever had resident, in KiB.
    pub fn memory_max_kib(&self) -> u64 {
        self.status("VmHWM:").trim_end_matches(" kB").parse().expect("a number")
    }

    /// Tells it to stop, and waits for its end, which must be a good one.
    pub async fn stop(&mut self) {
        self.signal("TERM");
        let status = self.exit().await;
        assert_eq!(status.code(), Some(0), "{status}");
    }

    /// Sends a signal, by its name: TERM, INT, KILL, STOP, CONT.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(sent.expect("kill runs").success(), "cannot send SIG{name}");
    }

    /// Whether it is stopped, as SIGSTOP does.
    pub fn is_stopped(&self) -> bool {
        self.status("State:").starts_with('T')
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the worker can be waited for").is_none()
    }

    /// How many threads it has.
    pub fn count_threads(&self) -> u64 {
        self.status("Threads:").parse().expect("a number")
    }

    /// What the kernel says of it under `key`.
    fn status(&self, key: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("a line of that key");
        line.trim().to_owned()
    }

    /// Kills it at once, as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().expect("the worker can be killed");
        self.child.wait().expect("the worker is gone");
    }

    /// Waits for its end.
    pub async fn exit(&mut self) -> ExitStatus {
        let deadline = Instant::now() + deadline();
        loop {
            if let Some(status) = self.child.try_wait().expect("the worker can be waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "the worker did not end");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _reaped = self.child.wait();
    }
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

async fn connect(url: &str) -> PgPool {
    PgPoolOptions::new()
        // All at once: a test may leave the server without one to spare.
        .min_connections(3)
        .max_connections(3)
        .connect(url)
        .await
        .unwrap_or_else(|error| panic!("no Postgres at {url} ({error}); `make services` starts it"))
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
