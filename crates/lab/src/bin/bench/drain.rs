//! One measurement: a filled queue is drained, and what it took is read off.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep, timeout};

use crate::figures::{Latency, Memory, MemorySample, Run, tenths};
use crate::meter::{Cpu, memory_mb, peak_memory_mb};
use crate::stage::{Contender, Counted, JobIds, Program, Provider, Stage};

/// How often the provider is asked how far it is.
const WATCH_INTERVAL: Duration = Duration::from_millis(10);

/// How long nothing may happen before a run has failed.
const STANDSTILL_MAX: Duration = Duration::from_secs(30);

/// How long a run may take in all.
const RUN_TIME_MAX: Duration = Duration::from_secs(600);

/// How often a long run's memory is read.
const MEMORY_SAMPLES: usize = 10;

/// What is to be drained, and how.
#[derive(Clone, Copy, Debug)]
pub struct Course<'a> {
    pub contender: Contender,
    pub replicas: usize,
    pub job_ids: JobIds,
    pub jobs: usize,
    pub failing_percent: f64,
    /// The worker's settings that are not the usual ones.
    pub settings: &'a [(&'a str, &'a str)],
}

/// Fills the queue, starts the replicas, and measures from the first update that the provider
/// has answered to the last outcome committed, where there are any. Where updates fail, the
/// rate is that of first answers: what failed is read back for seconds before it is sent again.
pub async fn drain(
    stage: &Stage,
    provider: &Provider,
    pool: &PgPool,
    course: Course<'_>,
) -> anyhow::Result<Run> {
    timeout(RUN_TIME_MAX, drain_unbounded(stage, provider, pool, course)).await.with_context(|| {
        format!("a run of the {} took longer than {RUN_TIME_MAX:?}", course.contender.name())
    })?
}

async fn drain_unbounded(
    stage: &Stage,
    provider: &Provider,
    pool: &PgPool,
    course: Course<'_>,
) -> anyhow::Result<Run> {
    stage.fill_queue(course.jobs, course.job_ids).await?;
    let before = provider.counted().await?;
    let since: OffsetDateTime = sqlx::query_scalar("select clock_timestamp()").fetch_one(pool).await?;
    let wal = wal_bytes(pool).await?;
    let started = Instant::now();
    let mut programs = start(stage, provider, course)?;
    let pids: Vec<u32> = programs.iter().map(Program::id).collect();
    let jobs = course.jobs as u64;

    let first = watch(provider, &mut programs, |now| now.answered() > before.answered()).await?;
    let (begun, cpu) = (Instant::now(), Cpu::read(&pids, provider.program.id()));
    watch(provider, &mut programs, |now| now.answered() - before.answered() >= jobs).await?;
    let answered_after = begun.elapsed();
    watch(provider, &mut programs, |now| now.applied - before.applied >= jobs).await?;
    wait_for_outcomes(pool, course.contender).await?;
    let ended_after = begun.elapsed();
    let cpu = Cpu::read(&pids, provider.program.id()).since(cpu);
    check_outcomes(pool, course.contender, since, jobs).await?;

    let wal = wal_bytes(pool).await? - wal;
    let measured = (jobs - (first.answered() - before.answered())) as f64;
    let elapsed = if course.failing_percent > 0.0 { answered_after } else { ended_after };
    let run = Run {
        jobs_per_second: (measured / elapsed.as_secs_f64()).round(),
        cpu_us: cpu.per_job(measured),
        wal_bytes: (wal / jobs as f64).round(),
        peak_memory_mb: tenths(pids.iter().map(|pid| peak_memory_mb(*pid)).sum()),
        latency_ms: latency(pool, course.contender, since).await?,
        start_up_ms: begun.duration_since(started).as_millis() as f64,
        settled_after_s: tenths((ended_after - answered_after).as_secs_f64()),
    };
    let applied = provider.counted().await?.applied - before.applied;
    ensure!(applied == jobs, "{applied} updates were applied for {jobs} jobs");
    for program in programs {
        program.stop().await?;
    }
    Ok(run)
}

/// Drains many jobs with one worker, and reads its memory on the way.
pub async fn drain_long(stage: &Stage, provider: &Provider, jobs: usize) -> anyhow::Result<Memory> {
    timeout(RUN_TIME_MAX, stage.fill_queue(jobs, JobIds::Random))
        .await
        .context("the broker is too slow")??;
    let course = Course {
        contender: Contender::Worker,
        replicas: 1,
        job_ids: JobIds::Random,
        jobs,
        failing_percent: 0.0,
        settings: &[],
    };
    let mut programs = start(stage, provider, course)?;
    let pid = programs.first().map(Program::id).context("no worker was started")?;
    watch(provider, &mut programs, |now| now.applied > 0).await?;
    let begun = Instant::now();
    let mut samples = Vec::with_capacity(MEMORY_SAMPLES);
    for sample in 1..=MEMORY_SAMPLES {
        let jobs = (jobs * sample / MEMORY_SAMPLES) as u64;
        let watching = watch(provider, &mut programs, |now| now.applied >= jobs);
        timeout(RUN_TIME_MAX, watching).await.context("a long run is too slow")??;
        let memory_mb = tenths(memory_mb(pid));
        eprintln!("{jobs} jobs: {memory_mb} MB");
        samples.push(MemorySample { jobs, memory_mb });
    }
    let jobs_per_second = (jobs as f64 / begun.elapsed().as_secs_f64()).round();
    for program in programs {
        program.stop().await?;
    }
    Ok(Memory { jobs, jobs_per_second, samples })
}

fn start(stage: &Stage, provider: &Provider, course: Course<'_>) -> anyhow::Result<Vec<Program>> {
    let start = |replica| {
        let name = format!("{}-{replica}", course.contender.name().replace([' ', '.'], "-"));
        stage.start(course.contender, &name, provider, course.settings)
    };
    (1..=course.replicas).map(start).collect()
}

/// Waits until the provider has counted as much; returns what it has.
async fn watch(
    provider: &Provider,
    programs: &mut [Program],
    is_enough: impl Fn(Counted) -> bool,
) -> anyhow::Result<Counted> {
    let mut last = (0, Instant::now());
    loop {
        let now = provider.counted().await?;
        if is_enough(now) {
            return Ok(now);
        }
        if now.answered() != last.0 {
            last = (now.answered(), Instant::now());
        }
        if last.1.elapsed() > STANDSTILL_MAX {
            bail!("nothing happens any more after {} answers; see the programs' logs", now.answered());
        }
        programs.iter_mut().try_for_each(Program::check_alive)?;
        sleep(WATCH_INTERVAL).await;
    }
}

/// Waits for what a contender writes down. The ceiling writes nothing.
pub async fn wait_for_outcomes(pool: &PgPool, contender: Contender) -> anyhow::Result<()> {
    let open = match contender {
        Contender::Ceiling => return Ok(()),
        // By small indexes, however many rows there are: those that end later are no part of it.
        Contender::Worker => {
            "select (select count(*) from submission where state = 'submitting')
                + (
                    select count(*) from submission
                    where state in ('waiting', 'unknown') and due_at < now() + interval '1 hour'
                )
                + (select count(*) from outcome_event)"
        }
        Contender::Node | Contender::Naive => {
            "select (select count(*) from peer.intent) - (select count(*) from peer.outcome)"
        }
    };
    let begun = Instant::now();
    while sqlx::query_scalar::<_, i64>(open).fetch_one(pool).await? > 0 {
        ensure!(begun.elapsed() < STANDSTILL_MAX, "outcomes are missing; see the programs' logs");
        sleep(WATCH_INTERVAL).await;
    }
    Ok(())
}

/// Compares what a contender wrote down with what was to be done. Once all is measured: it reads
/// every row of the run.
async fn check_outcomes(
    pool: &PgPool,
    contender: Contender,
    since: OffsetDateTime,
    jobs: u64,
) -> anyhow::Result<()> {
    let accepted = match contender {
        Contender::Ceiling => return Ok(()),
        Contender::Worker => "select count(*) from submission where ended_at >= $1 and state = 'accepted'",
        Contender::Node | Contender::Naive => {
            "select count(*) from peer.outcome where ended_at >= $1 and state = 'accepted'"
        }
    };
    let accepted: i64 = sqlx::query_scalar(accepted).bind(since).fetch_one(pool).await?;
    ensure!(u64::try_from(accepted) == Ok(jobs), "{accepted} jobs of {jobs} are accepted in the tables");
    Ok(())
}

/// How much the server has ever written to its log.
async fn wal_bytes(pool: &PgPool) -> sqlx::Result<f64> {
    sqlx::query_scalar("select (pg_current_wal_insert_lsn() - '0/0')::float8").fetch_one(pool).await
}

/// From each job's receipt to its end, of those that ended since.
pub async fn latency(
    pool: &PgPool,
    contender: Contender,
    since: OffsetDateTime,
) -> anyhow::Result<Option<Latency>> {
    if contender != Contender::Worker {
        return Ok(None);
    }
    let (p50, p99): (f64, f64) = sqlx::query_as(
        "select
            percentile_cont(0.5) within group (order by extract(epoch from ended_at - received_at)) * 1000,
            percentile_cont(0.99) within group (order by extract(epoch from ended_at - received_at)) * 1000
        from submission
        where ended_at >= $1",
    )
    .bind(since)
    .fetch_one(pool)
    .await?;
    Ok(Some(Latency { p50: tenths(p50), p99: tenths(p99) }))
}
