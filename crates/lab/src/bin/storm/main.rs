//! A crash storm: replicas under load that are killed, stopped past their lease and started
//! again, with a provider that misbehaves and a broker and a database that are killed as
//! well; and then every record is compared with what the provider saw. `make storm` runs it.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is where the program speaks")]

mod load;
mod replicas;
mod services;
mod verdict;
mod weather;

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, stderr};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Parser;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use sqlx::PgPool;
use tokio::sync::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use url::Url;

use crate::load::Load;
use crate::replicas::Replicas;
use crate::services::{DATABASE, OwnServices, Publisher, QUEUES};
use crate::verdict::Deeds;
use crate::weather::Weather;
use kyc_lab::books::AtBroker;
use kyc_lab::broker::Broker;
use kyc_lab::process::{self, Process};
use kyc_lab::provider::Provider;
use kyc_lab::upstream::Upstream;
use kyc_lab::{database, program};

/// Sends jobs through replicas that are killed all the time, and reconciles every record
/// with what the provider saw
#[derive(Clone, Parser)]
struct Arguments {
    /// How long the storm lasts; then everything may come to its end in peace
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,

    /// Repeats a storm: the same faults, kills and jobs, as far as the machine lets them be [default: a random one]
    #[arg(long)]
    seed: Option<u64>,

    /// How many replicas run
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=50))]
    replicas: u8,

    /// How often one of them is killed, stopped past its lease, or told to stop
    #[arg(long, default_value_t = 60.0)]
    kills_per_minute: f64,

    /// How many messages are published
    #[arg(long, default_value_t = 30.0)]
    messages_per_second: f64,

    /// How many jobs may be under way before publishing waits
    #[arg(long, default_value_t = 400)]
    backlog: u64,

    /// How many seconds pass between two outages of the broker or the database, on average
    #[arg(long, default_value_t = 45.0)]
    outage_seconds: f64,

    /// How many seconds pass between two outages of the provider, on average
    #[arg(long, default_value_t = 25.0)]
    squall_seconds: f64,

    /// How many jobs in a hundred may be left to a person: a short storm is faults for most of its time
    #[arg(long, default_value_t = 5.0)]
    review_percent_max: f64,

    /// Run a broker and a database of the storm's own and kill them too; else those at DATABASE_URL and AMQP_URL are used and left alone
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    own_services: bool,

    /// Make that broker a cluster of three nodes, of which one at a time is killed, frozen or cut off
    #[arg(long)]
    cluster: bool,

    /// A Postgres whose user may create databases, where the storm has none of its own; it makes kyc_storm there
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    database_url: Option<Url>,

    /// A RabbitMQ, where the storm has none of its own; the storm's queues there are named kyc-storm…
    #[arg(long, env = "AMQP_URL", value_name = "URL", hide_env_values = true)]
    amqp_url: Option<String>,

    /// Where the replicas' logs are left
    #[arg(long, default_value = "target/storm")]
    directory: PathBuf,
}

/// The times of the worker, a fifth of its defaults, but for a window with room for what
/// does not shrink with them: the restart of a database.
const TIMES: [(&str, &str); 13] = [
    ("REQUEST_TIMEOUT", "2s"),
    ("SEND_WINDOW", "1s"),
    ("CLAIM_LEASE", "3500ms"),
    ("READ_TIMEOUT", "1s"),
    ("READ_BACK_AFTER", "1500ms"),
    ("READ_BACK_WINDOW", "12s"),
    ("APPLIED_WITHIN", "9s"),
    ("READ_BACK_DEADLINE", "30s"),
    ("CUSTOMER_READ_INTERVAL", "5s"),
    ("SCHEDULER_POLL", "100ms"),
    ("SHUTDOWN_GRACE", "5s"),
    ("VERIFICATION_POLL_AFTER", "15s"),
    ("VERIFICATION_READS_PER_SECOND", "200"),
];
const FINGERPRINT_KEY: &str = "c3Rvcm0gZmluZ2VycHJpbnQga2V5LCAzMiBieXRlcyE=";
const CLAIM_LEASE: Duration = Duration::from_millis(3500);
/// Where upstream is told, and its queue.
const EVENTS_EXCHANGE: &str = "kyc-storm.events";
const UPSTREAM: &str = "kyc-storm.upstream";
const CUSTOMER_READ_INTERVAL: Duration = Duration::from_secs(5);

/// Longer than `READ_BACK_WINDOW`, which the worker relies on.
const VERIFICATION_TIME: Duration = Duration::from_secs(14);

/// How long everything may take to come to its end when nothing fails any more.
const CALM_TIMEOUT: Duration = Duration::from_secs(180);

/// Between two lines of progress, where no bar can be drawn.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    arguments.seed = Some(seed);
    // Whatever is dropped with `storm` stops its programs and removes its services.
    let done = tokio::select! {
        done = storm(&arguments, seed) => done,
        stopped = process::stop_signal() => stopped,
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("\nstorm: {error:#}\nthe programs' logs are in {}", arguments.directory.display());
            eprintln!("repeat it with: {}", arguments.command());
            ExitCode::FAILURE
        }
    }
}

impl Arguments {
    /// The command that repeats this storm.
    fn command(&self) -> String {
        format!(
            "scripts/storm.sh --minutes {} --seed {} --replicas {} --kills-per-minute {} --messages-per-second {} \
             --backlog {} --outage-seconds {} --squall-seconds {} --own-services {}{}",
            self.minutes,
            self.seed.unwrap_or_default(),
            self.replicas,
            self.kills_per_minute,
            self.messages_per_second,
            self.backlog,
            self.outage_seconds,
            self.squall_seconds,
            self.own_services,
            if self.cluster { " --cluster" } else { "" },
        )
    }
}

/// The storm, in order. Returns whether every promise was kept.
///
/// 1. Start the services, the provider and the replicas.
/// 2. Publish, while everything fails.
/// 3. Let everything come to its end, while nothing fails.
/// 4. Stop the replicas, and compare every record with what the provider saw.
async fn storm(arguments: &Arguments, seed: u64) -> anyhow::Result<bool> {
    // reqwest panics without it.
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
    println!("seed {seed}; to repeat it: {}\n", arguments.command());
    let mut stage = Stage::set(arguments).await?;
    let admin_url = stage.sandbox.admin_url();
    let pool = stage.make_database().await?;
    let (exchange, queue) = (EVENTS_EXCHANGE, UPSTREAM);
    drop(Upstream::listen(&stage.amqp_url, exchange, queue).await?);
    let mut replicas = stage.replicas(arguments, seed)?;
    let load = Mutex::new(Load::new(seed));
    let mut publisher = Publisher::new(stage.amqp_url.clone());
    let provider = Provider::new(admin_url.clone());
    let mut weather = Weather::new(provider.clone(), seed ^ 1);
    let mut outages = BTreeMap::new();

    let end = Instant::now() + Duration::from_secs_f64(arguments.minutes * 60.0);
    let watch = Watch::new(&pool, &load, arguments.minutes);
    let squall = Duration::from_secs_f64(arguments.squall_seconds);
    tokio::try_join!(
        publish(&load, &mut publisher, &provider, end, arguments, &watch),
        weather.blow(end, squall),
        replicas.harass(end, arguments.kills_per_minute),
        strike_services(stage.services.as_mut(), &mut outages, end, arguments, seed ^ 3),
        watch.until(end),
    )?;
    watch.tell("the storm is over; what is under way comes to its end");
    let calm = async {
        tokio::select! {
            calm = watch.until_calm(&mut publisher) => calm,
            failed = replicas.keep_up() => failed.map(|()| false),
        }
    };
    let is_calm = calm.await?;
    watch.clear();
    replicas.stop().await?;

    let letters = load.lock().await.letters();
    let at_broker = AtBroker {
        queued: publisher.count_queued().await?,
        dead_letters: Broker::connect(&stage.amqp_url).await?.read_dead_letters(QUEUES, letters).await?,
    };
    let published = load.into_inner().into_published();
    let review_percent_max = arguments.review_percent_max;
    let deeds = Deeds { replicas, outages, weather, is_calm, review_percent_max };
    let told = Upstream::connect(&stage.amqp_url, exchange, queue).await?.take().await?;
    let verdict = verdict::reach(&pool, &admin_url, published, at_broker, &told, deeds).await?;
    println!("{verdict}");
    if verdict.is_good() {
        println!("Every promise was kept. Logs are in {}.", arguments.directory.display());
    } else {
        eprintln!("A promise was BROKEN. Logs are in {}.", arguments.directory.display());
        eprintln!("Repeat it with: {}", arguments.command());
    }
    Ok(verdict.is_good())
}

/// Where everything is.
struct Stage {
    services: Option<OwnServices>,
    sandbox: dollarpe_sandbox::Running,
    worker: PathBuf,
    directory: PathBuf,
    server_url: Url,
    amqp_url: String,
}

impl Stage {
    async fn set(arguments: &Arguments) -> anyhow::Result<Self> {
        let worker = program("kyc-worker")?;
        let directory = &arguments.directory;
        if directory.exists() {
            std::fs::remove_dir_all(directory)?;
        }
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;

        let settings = dollarpe_sandbox::Settings {
            listen: ([127, 0, 0, 1], 0).into(),
            verification_time: VERIFICATION_TIME.into(),
            latency: Duration::from_millis(20).into(),
            update_limit: load::UPDATE_LIMIT,
            ..dollarpe_sandbox::Settings::default()
        };
        let sandbox = dollarpe_sandbox::start(settings).await?;
        let (services, server_url, amqp_url) = if arguments.own_services {
            println!("starting a broker and a database of the storm's own …");
            let services = OwnServices::start(if arguments.cluster { 3 } else { 1 }).await?;
            let (server_url, amqp_url) = (services.postgres.url().parse()?, services.amqp_url());
            (Some(services), server_url, amqp_url)
        } else {
            ensure!(!arguments.cluster, "--cluster: wants services of the storm's own");
            let server_url = arguments.database_url.clone().context("DATABASE_URL: is not given")?;
            let amqp_url = arguments.amqp_url.clone().context("AMQP_URL: is not given")?;
            (None, server_url, amqp_url)
        };
        let directory = directory.canonicalize()?;
        Ok(Self { services, sandbox, worker, directory, server_url, amqp_url })
    }

    async fn make_database(&self) -> anyhow::Result<PgPool> {
        database::recreate(&self.server_url, DATABASE).await?;
        for arguments in [["migrate", ""], ["enqueue", "/dev/null"]] {
            let mut command = self.kyc_worker();
            command.args(arguments.iter().filter(|argument| !argument.is_empty()));
            let log = self.directory.join(format!("{}.log", arguments[0]));
            Process::start_logged(command, arguments[0], &log)?.succeed().await?;
        }
        database::connect(&self.database_url()).await
    }

    fn database_url(&self) -> Url {
        database::url_of(&self.server_url, DATABASE)
    }

    fn replicas(&self, arguments: &Arguments, seed: u64) -> anyhow::Result<Replicas> {
        let (worker, settings) = (self.worker.clone(), self.settings());
        let directory = self.directory.clone();
        let start = move |name: &str| {
            let mut command = Command::new(&worker);
            command.arg("run").current_dir(&directory).env_clear();
            command.envs(settings.iter().cloned()).env("WORKER_NAME", name);
            command
        };
        let count = usize::from(arguments.replicas);
        Ok(Replicas::new(count, seed ^ 2, CLAIM_LEASE, self.directory.clone(), Box::new(start)))
    }

    fn kyc_worker(&self) -> Command {
        let mut command = Command::new(&self.worker);
        command.current_dir(&self.directory).env_clear().envs(self.settings());
        command
    }

    fn settings(&self) -> Vec<(String, String)> {
        let (base_url, database_url) = (self.sandbox.base_url(), self.database_url());
        let places = [
            ("DATABASE_URL", database_url.as_str()),
            ("AMQP_URL", &self.amqp_url),
            ("DOLLARPE_BASE_URL", &base_url),
            ("DOLLARPE_API_KEY", "sandbox-key"),
            ("DOLLARPE_API_SECRET", "sandbox-secret"),
            ("PAYLOAD_KEY", "c3Rvcm0gcGF5bG9hZCBrZXksIDMyIGJ5dGVzIGxvbmc="),
            ("FINGERPRINT_KEY", FINGERPRINT_KEY),
            ("RETRY_DELAY_MIN", "50ms"),
            ("RETRY_DELAY_MAX", "2s"),
            // No job is to run out of attempts here: it is the storm that costs them.
            ("RETRY_MAX_ATTEMPTS", "1000"),
            ("BREAKER_PROBE_INTERVAL", "200ms"),
            ("CONCURRENCY", "16"),
            ("PREFETCH", "48"),
            ("DATABASE_CONNECTIONS", "8"),
            ("DOCUMENT_TYPES", "provider"),
            ("OUTCOME_EVENTS", "true"),
            ("EVENTS_EXCHANGE", EVENTS_EXCHANGE),
            ("LOG_FORMAT", "text"),
            ("NO_COLOR", "1"),
        ];
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        places.iter().chain(&QUEUES.settings()).chain(&TIMES).map(owned).collect()
    }
}

/// Publishes until `end`, and then what is left; every message until it is confirmed.
async fn publish(
    load: &Mutex<Load>,
    publisher: &mut Publisher,
    provider: &Provider,
    end: Instant,
    arguments: &Arguments,
    watch: &Watch<'_>,
) -> anyhow::Result<()> {
    let mut pace = interval(Duration::from_secs_f64(1.0 / arguments.messages_per_second.max(0.001)));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        let is_over = Instant::now() >= end;
        if !is_over && watch.under_way() >= arguments.backlog {
            continue;
        }
        let message = match is_over {
            false => Some(load.lock().await.next()),
            true => load.lock().await.next_of_the_rest(),
        };
        let Some(message) = message else { return Ok(()) };
        if let Some((customer_id, verifies_as)) = message.introduces {
            // How the customer's verifications end.
            provider.set_customer(&customer_id, json!({ "verifies_as": verifies_as })).await?;
        }
        let message_id = message.job_id.unwrap_or_else(uuid::Uuid::new_v4).to_string();
        while publisher.publish(&message_id, &message).await.is_err() {
            sleep(Duration::from_millis(200)).await;
        }
        load.lock().await.confirmed(&message);
    }
}

/// Kills the broker or the database now and then, and starts them again.
async fn strike_services(
    services: Option<&mut OwnServices>,
    outages: &mut BTreeMap<&'static str, u32>,
    end: Instant,
    arguments: &Arguments,
    seed: u64,
) -> anyhow::Result<()> {
    let Some(services) = services else { return Ok(()) };
    let mut rng = StdRng::seed_from_u64(seed);
    let every = Duration::from_secs_f64(arguments.outage_seconds);
    loop {
        let next = Instant::now() + every.mul_f64(rng.random_range(0.6..1.4));
        if next >= end {
            return Ok(());
        }
        tokio::time::sleep_until(next).await;
        let down_time = Duration::from_millis(rng.random_range(0..2000));
        if rng.random_bool(0.5) {
            let struck = services.strike_broker(&mut rng, down_time).await?;
            *outages.entry(struck).or_default() += 1;
        } else {
            *outages.entry("database stopped at once").or_default() += 1;
            services.postgres.crash()?;
            sleep(down_time).await;
            services.postgres.begin_again()?;
        }
        services.wait_until_up().await?;
    }
}

/// Shows how far the storm is.
struct Watch<'a> {
    pool: &'a PgPool,
    load: &'a Mutex<Load>,
    bar: ProgressBar,
    under_way: std::sync::atomic::AtomicU64,
}

impl<'a> Watch<'a> {
    fn new(pool: &'a PgPool, load: &'a Mutex<Load>, minutes: f64) -> Self {
        let bar = ProgressBar::with_draw_target(Some((minutes * 60.0) as u64), ProgressDrawTarget::stderr());
        let template = "{elapsed:>4} {bar:20} {msg}";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        Self { pool, load, bar: bar.with_style(style), under_way: 0.into() }
    }

    /// Jobs that were made and have not ended, as of the last look.
    fn under_way(&self) -> u64 {
        self.under_way.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn tell(&self, what: &str) {
        // Asked before: inside, the bar is locked.
        let seconds = self.bar.elapsed().as_secs();
        self.bar.suspend(|| println!("{seconds:>4} s  {what}"));
    }

    fn clear(&self) {
        self.bar.finish_and_clear();
    }

    async fn until(&self, end: Instant) -> anyhow::Result<()> {
        let mut last_line = Instant::now();
        while Instant::now() < end {
            self.look(&mut last_line).await;
            sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// Until nothing is queued, nothing in motion, nothing in verification and no event waits, twice in a
    /// row. False if that takes too long.
    async fn until_calm(&self, publisher: &mut Publisher) -> anyhow::Result<bool> {
        let deadline = Instant::now() + CALM_TIMEOUT;
        let (mut last_line, mut seen_calm) = (Instant::now(), 0);
        while seen_calm < 2 {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            sleep(Duration::from_millis(500)).await;
            let in_motion = self.look(&mut last_line).await;
            let queued = publisher.count_queued().await;
            let followed = "select count(*) from submission where verification_due_at is not null";
            let followed: Option<i64> = sqlx::query_scalar(followed).fetch_one(self.pool).await.ok();
            let untold = "select count(*) from outcome_event";
            let untold: Option<i64> = sqlx::query_scalar(untold).fetch_one(self.pool).await.ok();
            let is_calm = in_motion == Some(0)
                && followed == Some(0)
                && untold == Some(0)
                && queued.is_ok_and(|queued| queued == 0);
            seen_calm = if is_calm { seen_calm + 1 } else { 0 };
        }
        Ok(true)
    }

    /// Shows how far it is. Returns how many jobs have not ended.
    async fn look(&self, last_line: &mut Instant) -> Option<u64> {
        let jobs = self.load.lock().await.jobs() as u64;
        let rows: Result<Vec<(String, i64)>, _> =
            sqlx::query_as("select state, count(*) from submission group by state order by 2 desc")
                .fetch_all(self.pool)
                .await;
        let Ok(rows) = rows else {
            self.show("the database is away".to_owned(), last_line);
            return None;
        };
        let ended = |state: &str| !["submitting", "waiting", "unknown", "invalid"].contains(&state);
        let ended: i64 = rows.iter().filter(|(state, _)| ended(state)).map(|(_, count)| count).sum();
        let under_way = jobs.saturating_sub(ended.unsigned_abs());
        self.under_way.store(under_way, std::sync::atomic::Ordering::Relaxed);
        let rows: Vec<_> = rows.iter().map(|(state, count)| format!("{count} {state}")).collect();
        self.show(format!("{jobs} jobs: {}", rows.join(" · ")), last_line);
        Some(under_way)
    }

    fn show(&self, message: String, last_line: &mut Instant) {
        if stderr().is_terminal() {
            self.bar.set_position(self.bar.elapsed().as_secs().min(self.bar.length().unwrap_or_default()));
            self.bar.set_message(message);
        } else if last_line.elapsed() >= LINE_INTERVAL {
            *last_line = Instant::now();
            eprintln!("{:>4} s  … {message}", self.bar.elapsed().as_secs());
        }
    }
}
