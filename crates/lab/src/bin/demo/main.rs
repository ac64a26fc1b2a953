//! Sends jobs of every kind through the real thing, a queue, two workers and Postgres, to a
//! provider that misbehaves, and then compares every record with what the provider saw.
//! `make demo` runs it.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is where the program speaks")]

mod jobs;
mod services;
mod story;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Parser;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use indicatif::HumanCount;
use sqlx::PgPool;
use tokio::time::sleep;
use url::Url;
use uuid::Uuid;

use crate::jobs::Jobs;
use crate::services::{DATABASE, QUEUES};
use crate::story::{Story, Watch, Worker};
use kyc_lab::books::{self, AtBroker, Check};
use kyc_lab::broker::Broker;
use kyc_lab::process::{self, Process};
use kyc_lab::provider::Provider;
use kyc_lab::services::free_port;
use kyc_lab::{database, program};

/// Sends jobs of every kind through the worker and reconciles every record with what the
/// provider saw
#[derive(Parser)]
struct Arguments {
    /// A Postgres whose user may create databases; the demo makes kyc_demo there
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    database_url: Url,

    /// A RabbitMQ; the demo's queues there are named kyc-demo…
    #[arg(long, env = "AMQP_URL", value_name = "URL", hide_env_values = true)]
    amqp_url: String,

    /// How many messages to publish
    #[arg(long, default_value_t = 2000)]
    messages: usize,

    /// Where logs and the published messages are left
    #[arg(long, default_value = "target/demo")]
    directory: PathBuf,
}

const API_KEY: &str = "demo-key";
const API_SECRET: &str = "demo-secret";
const FINGERPRINT_KEY: &str = "ZGVtbyBmaW5nZXJwcmludCBrZXksIDMyIGJ5dGVzISE=";

/// How long the provider is down at first, and how long it refuses our key later.
const DOWN_TIME: Duration = Duration::from_secs(2);
const REFUSED_TIME: Duration = Duration::from_secs(3);

/// The worker's setting of that name.
const CUSTOMER_READ_INTERVAL: Duration = Duration::from_secs(8);

/// How many differing cases of one check are shown.
const DISAGREEING_SHOWN: usize = 20;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Whatever is dropped with `demo` stops its programs.
    let done = tokio::select! {
        // Who stops the console at the end has seen the demo to its end.
        biased;
        done = demo(&arguments) => done,
        stopped = process::stop_signal() => stopped,
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("\ndemo: {error:#}\nthe programs' logs are in {}", arguments.directory.display());
            ExitCode::FAILURE
        }
    }
}

/// The demo, in order. Returns whether all records agree.
///
/// 1. Make the database and the queues afresh, and publish.
/// 2. Start the workers while the provider is down; then start the provider, with faults.
/// 3. Watch, and half-way have the provider refuse the key for a while.
/// 4. When the workers have stopped by themselves, have another see the verifications to
///    their ends.
/// 5. Let the worker's own commands tell of it.
/// 6. Reconcile.
/// 7. Serve the books to a browser.
async fn demo(arguments: &Arguments) -> anyhow::Result<bool> {
    // reqwest panics without it.
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
    let stage = Stage::set(arguments).await?;
    println!(
        "\nA queue, two workers, and a provider that misbehaves; then every record is compared with\nwhat the provider saw.\n"
    );
    let story = Story::begin();
    let jobs = jobs::make(arguments.messages);

    database::recreate(&arguments.database_url, DATABASE).await?;
    let broker = Broker::connect(&arguments.amqp_url).await?;
    broker.delete_queues(QUEUES).await?;
    let migrate = stage.kyc_worker(&["migrate"]);
    Process::start_logged(migrate, "kyc-worker migrate", &stage.log("migrate"))?.succeed().await?;
    story.tell(&format!("made database {DATABASE} and queue {} afresh", QUEUES.queue));
    std::fs::write(stage.directory.join("jobs.jsonl"), jobs.lines.join(&b'\n'))?;
    story.tell(&format!("$ kyc-worker enqueue --no-validate {}", stage.file("jobs.jsonl")));
    let enqueue = stage.kyc_worker(&["enqueue", "--no-validate", "jobs.jsonl"]);
    Process::start(enqueue, "kyc-worker enqueue")?.succeed().await?;

    let pool = database::connect(&database::url_of(&arguments.database_url, DATABASE)).await?;
    let workers = stage.start_workers()?;
    story.tell("started worker-1 and worker-2, though the provider is down");
    let mut watch = Watch::new(story, pool.clone(), jobs.published.jobs.len(), workers);
    watch.until_elapsed(DOWN_TIME).await?;
    let (_sandbox, provider) = stage.start_provider(&jobs).await?;
    watch.tell(&format!("the provider is up: simulated at {}, with faults", stage.provider_origin()));

    watch.until_half_done().await?;
    provider.set_api_key("another-key").await?;
    watch.tell(&format!("the provider refuses our API key, for {} s", REFUSED_TIME.as_secs()));
    watch.until_elapsed(REFUSED_TIME).await?;
    provider.set_api_key(API_KEY).await?;
    watch.tell("the provider takes our key again");
    watch.until_drained().await?;
    watch.tell("started worker-3, which follows the verifications to their ends");
    watch.until_verified(stage.start_worker("worker-3", &["run"])?).await?;
    let elapsed = watch.elapsed();

    println!("\nWhat was published, and how it should end:\n{}", kinds_table(&jobs));
    println!("\n$ kyc-worker report\n");
    Process::start(stage.kyc_worker(&["report"]), "kyc-worker report")?.succeed().await?;
    let eventful = most_eventful_job(&pool).await?.to_string();
    println!("\n$ kyc-worker show {eventful}\n");
    Process::start(stage.kyc_worker(&["show", &eventful]), "kyc-worker show")?.succeed().await?;

    let at_broker = AtBroker {
        queued: broker.count_queued(QUEUES).await?,
        dead_letters: broker.read_dead_letters(QUEUES, jobs.published.letters.len()).await?,
    };
    let evidence = books::gather(&pool, &stage.admin_url(), jobs.published, at_broker).await?;
    let histories = books::audit(&pool, FINGERPRINT_KEY).await?;
    let checks =
        [evidence.checks(), evidence.verification_checks(CUSTOMER_READ_INTERVAL), vec![histories]].concat();
    let agree = conclude(&checks, &stage, elapsed);
    show_console(&stage).await?;
    Ok(agree)
}

/// Starts the console over the books, and prints its address. On a terminal it answers until Ctrl-C.
async fn show_console(stage: &Stage) -> anyhow::Result<()> {
    let address = format!("127.0.0.1:{}", free_port()?);
    let mut command = stage.kyc_worker(&["console"]);
    command.envs([("CONSOLE_LOGIN", "local"), ("CONSOLE_LOCAL_USER", "demo"), ("CONSOLE_LISTEN", &address)]);
    let mut console = Process::start_logged(command, "kyc-worker console", &stage.log("console"))?;
    while tokio::net::TcpStream::connect(&address).await.is_err() {
        ensure!(console.ended()?.is_none(), "the console did not start; see {}", stage.file("console.log"));
        sleep(Duration::from_millis(10)).await;
    }
    println!("\nThe same in a browser, for people without a terminal: http://{address}/");
    if std::io::stdout().is_terminal() {
        println!("It answers until Ctrl-C.");
        let _stopped = process::stop_signal().await;
    } else {
        println!("Standard output is no terminal, so it stops again.");
    }
    console.end("TERM")
}

/// Where everything is.
struct Stage {
    worker: PathBuf,
    sandbox: PathBuf,
    directory: PathBuf,
    database_url: Url,
    amqp_url: String,
    provider_port: u16,
}

impl Stage {
    async fn set(arguments: &Arguments) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&arguments.directory)
            .with_context(|| format!("cannot make {}", arguments.directory.display()))?;
        Ok(Self {
            worker: program("kyc-worker")?,
            sandbox: program("dollarpe-sandbox")?,
            directory: arguments.directory.clone(),
            database_url: database::url_of(&arguments.database_url, DATABASE),
            amqp_url: arguments.amqp_url.clone(),
            // For a while nothing must listen there.
            provider_port: free_port()?,
        })
    }

    fn provider_origin(&self) -> String {
        format!("http://127.0.0.1:{}", self.provider_port)
    }

    fn admin_url(&self) -> String {
        format!("{}/_admin", self.provider_origin())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.log"))
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    /// The worker's program with the demo's settings and no others: times are scaled down,
    /// so that a minute shows what takes hours.
    fn kyc_worker(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.worker);
        command.args(arguments).current_dir(&self.directory).env_clear();
        command.envs(QUEUES.settings()).envs([
            ("DATABASE_URL", self.database_url.as_str()),
            ("AMQP_URL", &self.amqp_url),
            ("DOLLARPE_BASE_URL", &format!("{}/cms/api/v1", self.provider_origin())),
            ("DOLLARPE_API_KEY", API_KEY),
            ("DOLLARPE_API_SECRET", API_SECRET),
            ("PAYLOAD_KEY", "ZGVtbyBwYXlsb2FkIGtleSwgMzIgYnl0ZXMgbG9uZyE="),
            ("FINGERPRINT_KEY", FINGERPRINT_KEY),
            ("REQUEST_TIMEOUT", "3s"),
            ("SEND_WINDOW", "2s"),
            ("CLAIM_LEASE", "5s"),
            ("READ_TIMEOUT", "1s"),
            ("READ_BACK_AFTER", "500ms"),
            ("READ_BACK_WINDOW", "8s"),
            ("APPLIED_WITHIN", "5s"),
            ("READ_BACK_DEADLINE", "60s"),
            ("CUSTOMER_READ_INTERVAL", &format!("{}s", CUSTOMER_READ_INTERVAL.as_secs())),
            // Just after most verifications have ended, so that most take one look.
            ("VERIFICATION_POLL_AFTER", "10s"),
            ("VERIFICATION_READS_PER_SECOND", "250"),
            ("SCHEDULER_POLL", "250ms"),
            ("RETRY_DELAY_MIN", "200ms"),
            ("BREAKER_PROBE_INTERVAL", "500ms"),
            ("CONCURRENCY", "32"),
            ("PREFETCH", "96"),
            ("LOG_FORMAT", "text"),
            ("NO_COLOR", "1"),
        ]);
        command
    }

    fn start_workers(&self) -> anyhow::Result<Vec<Worker>> {
        let start = |name| self.start_worker(name, &["run", "--drain"]);
        ["worker-1", "worker-2"].map(start).into_iter().collect()
    }

    fn start_worker(&self, name: &str, arguments: &[&str]) -> anyhow::Result<Worker> {
        let mut command = self.kyc_worker(arguments);
        command.env("WORKER_NAME", name);
        let log = self.log(name);
        Ok(Worker::new(Process::start_logged(command, name, &log)?, name, &log))
    }

    async fn start_provider(&self, jobs: &Jobs) -> anyhow::Result<(Process, Provider)> {
        let mut command = Command::new(&self.sandbox);
        let limit = jobs::UPDATE_LIMIT.to_string();
        command.env_clear().env("NO_COLOR", "1").args([
            "--listen",
            &format!("127.0.0.1:{}", self.provider_port),
            // It lets nobody in before its faults are in place.
            "--api-key=not-yet",
            &format!("--api-secret={API_SECRET}"),
            &format!("--update-limit={limit}"),
            "--latency=40ms",
            // Longer than READ_BACK_WINDOW, on which the worker relies.
            "--verification-time=9s",
            "--unique-documents",
        ]);
        let mut sandbox = Process::start_logged(command, "dollarpe-sandbox", &self.log("provider"))?;
        let address = ("127.0.0.1", self.provider_port);
        while tokio::net::TcpStream::connect(address).await.is_err() {
            ensure!(
                sandbox.ended()?.is_none(),
                "the sandbox did not start; see {}",
                self.file("provider.log")
            );
            sleep(Duration::from_millis(10)).await;
        }
        let provider = Provider::new(self.admin_url());
        services::prepare(&provider, jobs).await?;
        provider.set_api_key(API_KEY).await?;
        Ok((sandbox, provider))
    }
}

/// The job with the most to tell.
async fn most_eventful_job(pool: &PgPool) -> anyhow::Result<Uuid> {
    let job_id = sqlx::query_scalar(
        "select job_id from attempt group by job_id
        order by count(distinct verdict) desc, count(*) desc, job_id limit 1",
    );
    Ok(job_id.fetch_one(pool).await?)
}

fn kinds_table(jobs: &Jobs) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(["messages", "kind", "ends"]);
    for kind in &jobs.kinds {
        table.add_row([HumanCount(kind.count as u64).to_string().as_str(), kind.what, kind.ends]);
    }
    align_right(&mut table, 0);
    table
}

/// Prints the reconciliation. Returns whether all records agree.
fn conclude(checks: &[Check], stage: &Stage, elapsed: Duration) -> bool {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(["check", "expected", "found", ""]);
    for check in checks {
        let [expected, found] =
            [check.expected, check.found].map(|count| HumanCount(count as u64).to_string());
        let verdict = if check.agrees() { "ok" } else { "DISAGREES" };
        table.add_row([check.name, &expected, &found, verdict]);
    }
    align_right(&mut table, 1);
    align_right(&mut table, 2);
    println!("\nThe provider's own log against our tables, job by job:\n{table}");

    for check in checks.iter().filter(|check| !check.agrees()) {
        eprintln!("\n{}: {} expected, {} found", check.name, check.expected, check.found);
        for case in check.disagreeing.iter().take(DISAGREEING_SHOWN) {
            eprintln!("  {case}");
        }
        let more = check.disagreeing.len().saturating_sub(DISAGREEING_SHOWN);
        if more > 0 {
            eprintln!("  and {more} more");
        }
    }
    let disagreeing = checks.iter().filter(|check| !check.agrees()).count();
    let place = stage.directory.display();
    if disagreeing == 0 {
        let seconds = elapsed.as_secs_f64();
        println!(
            "\nAll {} checks agree. From the first message to the last, it took {seconds:.0} s.",
            checks.len()
        );
        println!(
            "Logs and messages are in {place}; the tables in database {DATABASE} stay until the next demo."
        );
    } else {
        eprintln!("\n{disagreeing} of {} checks DISAGREE. Logs and messages are in {place}.", checks.len());
    }
    disagreeing == 0
}

fn align_right(table: &mut Table, column: usize) {
    if let Some(column) = table.column_mut(column) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}
