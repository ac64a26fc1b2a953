//! The parts of the benchmark. Each runs what it compares in turn, so that all meet the
//! machine's moods, on a database of its own.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use sqlx::PgPool;
use tokio::time::{Instant, interval, sleep};
use uuid::Uuid;

use crate::Arguments;
use crate::drain::{Course, drain, drain_long, wait_for_outcomes};
use crate::figures::{
    Idle, Latency, Line, Memory, Single, SingleLine, SingleRun, Table, hundredths, quantile, tenths,
};
use crate::meter::{Cpu, memory_mb};
use crate::plans;
use crate::stage::{Contender, EVENTS_EXCHANGE, JobIds, Program, Provider, Stage, job};

#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum Part {
    /// The worker and the ceiling
    Throughput,
    /// The same with a provider that takes its time
    Latency,
    /// More workers on one queue
    Replicas,
    /// Updates that fail, are read back and sent again
    Retries,
    /// A worker with nothing to do
    Idle,
    /// The same jobs as others would do them (needs Node.js)
    Peers,
    /// Beside rows by the million
    Rows,
    /// A run of a million jobs
    Memory,
    /// Workers that tell upstream how each job ended, and others
    Events,
    /// One job at a time, against a peer
    Single,
    /// The console's pages beside rows by the million
    Console,
    /// Ended jobs by the million go to files while two replicas work; the tables fill up again
    Archive,
}

/// How often each is run, where that is not said: what is read as a ratio, and the rest.
const RUNS: usize = 5;
const RUNS_OF_LONG_PARTS: usize = 3;

/// How long an idle worker is watched, after it has come to rest.
const IDLE_TIME: Duration = Duration::from_secs(20);
const REST_TIME: Duration = Duration::from_secs(3);
const START_TIME_MAX: Duration = Duration::from_secs(20);

/// Slowly enough that one job is done before the next one comes.
const SINGLE_JOBS_PER_SECOND: u32 = 10;

/// The verifications of one run would fall into the next: no peer follows them.
const ALONE: [(&str, &str); 2] = [("VERIFICATION_POLL_AFTER", "1h"), ("VERIFICATION_POLL_MAX", "1h")];

/// Whoever does them is called so in its log's name.
const SINGLE: &str = "single";

/// The times of reading back scaled down by five, so that what fails is sent again within
/// seconds; and a breaker that a share of failures does not open.
pub const SCALED: [(&str, &str); 9] = [
    ("SEND_WINDOW", "1s"),
    ("REQUEST_TIMEOUT", "3s"),
    ("CLAIM_LEASE", "5s"),
    ("READ_TIMEOUT", "2s"),
    ("READ_BACK_AFTER", "3s"),
    ("READ_BACK_WINDOW", "12s"),
    ("APPLIED_WITHIN", "9s"),
    ("CUSTOMER_READ_INTERVAL", "12s"),
    ("BREAKER_FAILURES", "50"),
];

/// Upstream is told.
const TELLING: [(&str, &str); 2] = [("OUTCOME_EVENTS", "true"), ("EVENTS_EXCHANGE", EVENTS_EXCHANGE)];

/// What the parts share.
pub struct Bench<'a> {
    pub stage: &'a Stage,
    pub arguments: &'a Arguments,
}

impl Bench<'_> {
    pub async fn throughput(&self) -> anyhow::Result<Table> {
        let pool = self.stage.recreate_database().await?;
        let lines = [Contender::Ceiling, Contender::Worker].map(Line::new);
        self.measure(&pool, Duration::ZERO, RUNS, lines.into()).await
    }

    pub async fn latency(&self) -> anyhow::Result<Vec<Table>> {
        let pool = self.stage.recreate_database().await?;
        let mut tables = Vec::new();
        for latency in &self.arguments.latency {
            let lines = [Contender::Ceiling, Contender::Worker].map(Line::new);
            tables.push(self.measure(&pool, (*latency).into(), RUNS_OF_LONG_PARTS, lines.into()).await?);
        }
        Ok(tables)
    }

    pub async fn replicas(&self) -> anyhow::Result<Table> {
        let pool = self.stage.recreate_database().await?;
        let replicas = self.arguments.replicas.iter();
        let lines = replicas.map(|replicas| Line { replicas: *replicas, ..Line::new(Contender::Worker) });
        self.measure(&pool, Duration::ZERO, RUNS, lines.collect()).await
    }

    pub async fn retries(&self) -> anyhow::Result<Table> {
        let pool = self.stage.recreate_database().await?;
        let percents = [0.0].into_iter().chain(self.arguments.retries.iter().copied());
        let lines = percents.map(|percent| Line { failing_percent: percent, ..Line::new(Contender::Worker) });
        self.measure(&pool, Duration::ZERO, RUNS_OF_LONG_PARTS, lines.collect()).await
    }

    pub async fn peers(&self) -> anyhow::Result<Table> {
        let pool = self.stage.recreate_database().await?;
        let lines = [Contender::Ceiling, Contender::Worker, Contender::Node, Contender::Naive].map(Line::new);
        self.measure(&pool, Duration::ZERO, RUNS, lines.into()).await
    }

    pub async fn events(&self) -> anyhow::Result<Table> {
        let pool = self.stage.recreate_database().await?;
        let lines =
            [false, true].map(|tells_upstream| Line { tells_upstream, ..Line::new(Contender::Worker) });
        self.measure(&pool, Duration::ZERO, RUNS, lines.into()).await
    }

    pub async fn idle(&self) -> anyhow::Result<Idle> {
        let pool = self.stage.recreate_database().await?;
        self.watch_idle(&pool).await
    }

    /// Jobs that come singly, as they nearly always do.
    pub async fn single(&self) -> anyhow::Result<Single> {
        let pool = self.stage.recreate_database().await?;
        let mut lines =
            [Contender::Worker, Contender::Naive].map(|contender| SingleLine { contender, runs: Vec::new() });
        let runs = self.arguments.runs.unwrap_or(RUNS_OF_LONG_PARTS);
        for run in 1..=runs {
            for line in &mut lines {
                let seen = self.send_singly(&pool, line.contender, &ALONE).await?;
                eprintln!(
                    "run {run} of {runs}: {}: p50 {} ms",
                    line.contender.name(),
                    seen.to_receipt_ms.p50
                );
                line.runs.push(seen);
            }
        }
        plans::check_superuser(&pool).await?;
        // One more run, which tells its statements and is not timed.
        let url = plans::explained(&self.stage.bench_database_url(), None);
        let settings = [&ALONE[..], &[("DATABASE_URL", url.as_str())]].concat();
        self.send_singly(&pool, Contender::Worker, &settings).await?;
        let statements = plans::read_log(&self.stage.log_path(SINGLE))?;
        Ok(Single {
            jobs_per_second: SINGLE_JOBS_PER_SECOND,
            jobs: self.arguments.single_jobs,
            lines: lines.into(),
            statements,
        })
    }

    async fn send_singly(
        &self,
        pool: &PgPool,
        contender: Contender,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<SingleRun> {
        self.stage.fill_queue(0, JobIds::Random).await?;
        let provider = self.stage.start_provider_that_notes().await?;
        let mut program = self.stage.start(contender, SINGLE, &provider, settings)?;
        let publisher = self.stage.open_publisher().await?;
        let publish = async |number| -> anyhow::Result<(Uuid, SystemTime)> {
            let (job_id, customer_id) = (Uuid::new_v4().to_string(), Uuid::new_v4());
            let (body, at) = (job(number, customer_id), SystemTime::now());
            publisher.publish(&job_id, Some(customer_id), body.as_bytes()).await?.await?;
            Ok((customer_id, at))
        };
        // The first finds everything cold.
        publish(0).await?;
        wait_for_updates(&provider, &mut program, 1).await?;
        sleep(REST_TIME).await;
        let before = Cpu::read(&[program.id()], provider.program.id());
        let mut published = Vec::new();
        let mut ticks = interval(Duration::from_secs(1) / SINGLE_JOBS_PER_SECOND);
        for number in 1..=self.arguments.single_jobs {
            ticks.tick().await;
            published.push(publish(number).await?);
        }
        wait_for_updates(&provider, &mut program, published.len() as u64 + 1).await?;
        wait_for_outcomes(pool, contender).await?;
        let cpu = Cpu::read(&[program.id()], provider.program.id()).since(before);
        let receipts = provider.receipts().await?;
        let waited = published.iter().map(|(customer_id, at)| {
            let received = receipts.get(customer_id).context("an update never came")?;
            Ok(received.duration_since(*at).unwrap_or_default().as_secs_f64() * 1000.0)
        });
        let waited: Vec<f64> = waited.collect::<anyhow::Result<_>>()?;
        publisher.close().await;
        program.stop().await?;
        provider.program.stop().await?;
        let jobs = published.len() as f64;
        let to_receipt_ms =
            Latency { p50: hundredths(quantile(&waited, 0.5)), p99: hundredths(quantile(&waited, 0.99)) };
        Ok(SingleRun { to_receipt_ms, cpu_us: cpu.per_job(jobs) })
    }

    pub async fn memory(&self) -> anyhow::Result<Memory> {
        let _pool = self.stage.recreate_database().await?;
        let provider = self.stage.start_provider(Duration::ZERO).await?;
        let memory = drain_long(self.stage, &provider, self.arguments.memory_jobs).await?;
        provider.program.stop().await?;
        Ok(memory)
    }

    /// Runs the lines in turn, as often as the arguments say, or else `runs`.
    pub async fn measure(
        &self,
        pool: &PgPool,
        latency: Duration,
        runs: usize,
        mut lines: Vec<Line>,
    ) -> anyhow::Result<Table> {
        let runs = self.arguments.runs.unwrap_or(runs);
        for run in 1..=runs {
            for line in &mut lines {
                let provider = self.stage.start_provider(latency).await?;
                let course = Course {
                    contender: line.contender,
                    replicas: line.replicas,
                    job_ids: line.job_ids,
                    jobs: self.arguments.jobs,
                    failing_percent: line.failing_percent,
                    settings: match (line.failing_percent > 0.0, line.tells_upstream) {
                        (true, _) => &SCALED,
                        (false, true) => &TELLING,
                        (false, false) => &[],
                    },
                };
                if line.tells_upstream {
                    self.stage.make_upstream().await?;
                }
                if line.failing_percent > 0.0 {
                    provider.fail(line.failing_percent).await?;
                }
                let seen = drain(self.stage, &provider, pool, course).await?;
                provider.program.stop().await?;
                eprintln!(
                    "run {run} of {runs}: {} x {}{}{}{}: {:.0} jobs/s",
                    line.contender.name(),
                    line.replicas,
                    match (line.job_ids, line.tells_upstream) {
                        (JobIds::Growing, _) => ", job ids that grow",
                        (JobIds::Random, true) => ", telling upstream",
                        (JobIds::Random, false) => "",
                    },
                    if latency.is_zero() { String::new() } else { format!(", provider {latency:?}") },
                    if line.failing_percent > 0.0 {
                        format!(", {} % fail", line.failing_percent)
                    } else {
                        String::new()
                    },
                    seen.jobs_per_second,
                );
                line.runs.push(seen);
            }
        }
        Ok(Table {
            provider_latency_ms: u64::try_from(latency.as_millis())?,
            jobs: self.arguments.jobs,
            concurrency: self.stage.concurrency,
            prefetch: self.stage.prefetch,
            lines,
        })
    }

    /// Starts a worker on an empty queue, and watches it do nothing.
    pub async fn watch_idle(&self, pool: &PgPool) -> anyhow::Result<Idle> {
        self.stage.fill_queue(0, JobIds::Random).await?;
        let provider = self.stage.start_provider(Duration::ZERO).await?;
        let without = self.watch_cpu(&[], &provider).await;
        let mut worker = self.stage.start(Contender::Worker, "idle", &provider, &[])?;
        wait_for_heartbeat(pool, "idle").await?;
        let with = self.watch_cpu(&[worker.id()], &provider).await;
        worker.check_alive()?;
        let memory_mb = tenths(memory_mb(worker.id()));
        worker.stop().await?;
        provider.program.stop().await?;
        let seconds = IDLE_TIME.as_secs_f64();
        let per_second = |time: Duration| tenths(time.as_secs_f64() * 1000.0 / seconds);
        let idle = Idle {
            seconds,
            worker_cpu_ms: per_second(with.programs),
            broker_cpu_ms: per_second(with.broker.saturating_sub(without.broker)),
            postgres_cpu_ms: per_second(with.postgres.saturating_sub(without.postgres)),
            memory_mb,
        };
        eprintln!("idle: {} ms of CPU a second, {} MB", idle.worker_cpu_ms, idle.memory_mb);
        Ok(idle)
    }

    async fn watch_cpu(&self, programs: &[u32], provider: &Provider) -> Cpu {
        sleep(REST_TIME).await;
        let before = Cpu::read(programs, provider.program.id());
        sleep(IDLE_TIME).await;
        Cpu::read(programs, provider.program.id()).since(before)
    }
}

pub async fn wait_for_heartbeat(pool: &PgPool, name: &str) -> anyhow::Result<()> {
    let begun = Instant::now();
    let query = "select exists (select from worker where name = $1)";
    while !sqlx::query_scalar::<_, bool>(query).bind(name).fetch_one(pool).await.context("no heartbeat")? {
        ensure!(begun.elapsed() < START_TIME_MAX, "the worker does not start; see its log");
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn wait_for_updates(provider: &Provider, program: &mut Program, updates: u64) -> anyhow::Result<()> {
    let begun = Instant::now();
    while provider.counted().await?.applied < updates {
        program.check_alive()?;
        ensure!(begun.elapsed() < START_TIME_MAX, "an update does not come; see the programs' logs");
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
