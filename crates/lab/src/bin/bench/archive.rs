//! Ended jobs by the million go to files while replicas work, and as many come again: the tables must not
//! grow by it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::time::{Instant, interval, sleep};
use uuid::Uuid;

use crate::drain::{latency, wait_for_outcomes};
use crate::figures::{Archive, Work, tenths};
use crate::meter::{Cpu, peak_memory_mb};
use crate::parts::{Bench, wait_for_heartbeat};
use crate::rows::{fill, history, pour, relations, vacuum};
use crate::stage::{Contender, JobIds, Program, Provider, Stage, job};

const REPLICAS: [&str; 2] = ["archive-worker-1", "archive-worker-2"];

/// What is published meanwhile, whatever the workers do with it.
const JOBS_PER_SECOND: u32 = 500;
const TICK: Duration = Duration::from_millis(10);

/// How long the replicas are watched before the archive begins.
const ALONE_TIME: Duration = Duration::from_secs(20);

/// How often the command is looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// The archive's own words, of `--json`.
#[derive(Deserialize)]
struct Archived {
    archived: u64,
    staying: u64,
}

/// What the command came to.
struct Ran {
    archived: Archived,
    seconds: f64,
    cpu: Duration,
    peak_memory_mb: f64,
}

impl Bench<'_> {
    /// Archives all that has ended, with replicas at work, and lets as many jobs come again.
    pub async fn archive(&self) -> anyhow::Result<Archive> {
        let pool = self.stage.recreate_database().await?;
        let jobs = *self.arguments.rows.last().context("--rows: names no number")?;
        fill(&pool, &history(0), 0, jobs).await?;
        let before = relations(&pool).await?;
        eprintln!("{jobs} jobs are there; two replicas begin");

        let provider = self.stage.start_provider(Duration::ZERO).await?;
        self.stage.fill_queue(0, JobIds::Random).await?;
        let mut replicas = Vec::new();
        for name in REPLICAS {
            replicas.push(self.stage.start(Contender::Worker, name, &provider, &[])?);
            wait_for_heartbeat(&pool, name).await?;
        }
        let (is_over, published) = (AtomicBool::new(false), AtomicU64::new(0));
        let course = async {
            let alone = self.watch(&pool, &provider, &mut replicas, sleep(ALONE_TIME)).await?.0;
            let archiving = run_archive(self.stage);
            let (meanwhile, ran) = self.watch(&pool, &provider, &mut replicas, archiving).await?;
            is_over.store(true, Ordering::Relaxed);
            anyhow::Ok(([alone, meanwhile], ran?))
        };
        let ((), (work, ran)) = tokio::try_join!(publish(self.stage, &is_over, &published), course)?;
        self.check_all_came_through(&pool, &provider, published.into_inner(), jobs, &ran.archived).await?;
        for replica in replicas {
            replica.stop().await?;
        }
        provider.program.stop().await?;

        vacuum(&pool).await?;
        let after = relations(&pool).await?;
        // Row by row into the indexes that there are, as workers write them.
        pour(&pool, &history(jobs), jobs, 2 * jobs).await?;
        vacuum(&pool).await?;
        let again = relations(&pool).await?;
        Ok(Archive {
            jobs,
            replicas: REPLICAS.len(),
            published_per_second: JOBS_PER_SECOND,
            work,
            seconds: tenths(ran.seconds),
            peak_memory_mb: tenths(ran.peak_memory_mb),
            cpu_us: tenths(ran.cpu.as_secs_f64() * 1e6 / ran.archived.archived as f64),
            file_bytes: bytes_in(&directory(self.stage))?,
            sizes: [before, after, again],
        })
    }

    /// What the replicas do until `until` has come.
    async fn watch<T>(
        &self,
        pool: &PgPool,
        provider: &Provider,
        replicas: &mut [Program],
        until: impl Future<Output = T>,
    ) -> anyhow::Result<(Work, T)> {
        let pids: Vec<u32> = replicas.iter().map(Program::id).collect();
        let since: OffsetDateTime = sqlx::query_scalar("select now()").fetch_one(pool).await?;
        let (counted, cpu) = (provider.counted().await?, Cpu::read(&pids, provider.program.id()));
        let done = until.await;
        let cpu = Cpu::read(&pids, provider.program.id()).since(cpu);
        let jobs = provider.counted().await?.applied - counted.applied;
        replicas.iter_mut().try_for_each(Program::check_alive)?;
        ensure!(jobs > 0, "the replicas did nothing; see their logs");
        let latency_ms = latency(pool, Contender::Worker, since).await?.context("no job has ended")?;
        Ok((Work { jobs, latency_ms, cpu_us: cpu.per_job(jobs as f64) }, done))
    }

    /// Nothing is lost, and nothing is there twice.
    async fn check_all_came_through(
        &self,
        pool: &PgPool,
        provider: &Provider,
        published: u64,
        filled: u64,
        archived: &Archived,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        while provider.counted().await?.applied < published {
            ensure!(begun.elapsed() < Duration::from_secs(60), "updates are missing; see the workers' logs");
            sleep(WATCH_INTERVAL).await;
        }
        wait_for_outcomes(pool, Contender::Worker).await?;
        let applied = provider.counted().await?.applied;
        ensure!(applied == published, "{applied} updates were applied for {published} jobs");
        let left: i64 = sqlx::query_scalar("select count(*) from submission").fetch_one(pool).await?;
        ensure!(
            archived.archived == filled && archived.staying == 0 && u64::try_from(left) == Ok(published),
            "of {filled} jobs {} were archived and {} stayed; of {published} new ones {left} are in the table",
            archived.archived,
            archived.staying
        );
        Ok(())
    }
}

/// Publishes at one rate until it is over.
async fn publish(stage: &Stage, is_over: &AtomicBool, published: &AtomicU64) -> anyhow::Result<()> {
    let publisher = stage.open_publisher().await?;
    let mut ticks = interval(TICK);
    while !is_over.load(Ordering::Relaxed) {
        ticks.tick().await;
        let mut confirms = Vec::new();
        for _ in 0..JOBS_PER_SECOND * u32::try_from(TICK.as_millis())? / 1000 {
            let number = published.fetch_add(1, Ordering::Relaxed);
            let (job_id, customer_id) = (Uuid::new_v4().to_string(), Uuid::new_v4());
            let body = job(usize::try_from(number)?, customer_id);
            confirms.push(publisher.publish(&job_id, Some(customer_id), body.as_bytes()).await?);
        }
        for confirm in confirms {
            confirm.await?;
        }
    }
    publisher.close().await;
    Ok(())
}

/// Archives whatever ended a day ago or earlier, as an operator does.
async fn run_archive(stage: &Stage) -> anyhow::Result<Ran> {
    let directory = directory(stage);
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    let mut program = stage.start_archive(&directory)?;
    let begun = Instant::now();
    let (mut cpu, mut peak) = (Duration::ZERO, 0.0);
    loop {
        let now = Cpu::read(&[program.id()], 0).programs;
        (cpu, peak) = (cpu.max(now), f64::max(peak, peak_memory_mb(program.id())));
        if let Some(status) = program.ended()? {
            ensure!(status.success(), "the archive failed: {status}; see its log");
            break;
        }
        sleep(WATCH_INTERVAL).await;
    }
    let said = fs::read_to_string(stage.log_path("archive"))?;
    let archived: Archived = serde_json::from_str(&said).context("the archive's answer cannot be read")?;
    let seconds = begun.elapsed().as_secs_f64();
    eprintln!("{} jobs archived in {seconds:.0} s", archived.archived);
    Ok(Ran { archived, seconds, cpu, peak_memory_mb: peak })
}

fn directory(stage: &Stage) -> PathBuf {
    stage.logs.join("archive")
}

fn bytes_in(directory: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}
