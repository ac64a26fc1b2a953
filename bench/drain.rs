//! One measurement: a filled queue is drained, and what it took is read off.

use std::time::Duration;

use anyhow::{bail, ensure};
use serde::Serialize;
use sqlx::PgPool;
use tokio::time::{Instant, sleep};

use crate::meter::{Cpu, peak_memory_mb};
use crate::stage::{Contender, Program, Provider, Stage};

/// How often the provider is asked how far it is.
const WATCH_INTERVAL: Duration = Duration::from_millis(10);

/// How long nothing may happen before a run has failed.
const STANDSTILL_MAX: Duration = Duration::from_secs(30);

/// What is to be drained, and how.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    pub contender: Contender,
    pub replicas: usize,
    pub jobs: usize,
}

/// What it took.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    pub jobs_per_second: f64,
    /// CPU time a job, in µs.
    pub cpu_us: CpuMicros,
    /// The replicas' together, in MB.
    pub peak_memory_mb: f64,
    /// From receipt to outcome, in ms; of the worker alone.
    pub latency_ms: Option<Latency>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct CpuMicros {
    pub programs: f64,
    pub broker: f64,
    pub postgres: f64,
    pub provider: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
}

/// Fills the queue, starts the replicas, and measures from the first update that the provider
/// has applied to the last, and to the last outcome committed where there are any.
pub async fn drain(
    stage: &Stage,
    provider: &Provider,
    pool: &PgPool,
    course: Course,
) -> anyhow::Result<Figures> {
    let outcomes = count_outcomes(pool, course.contender).await?;
    stage.fill_queue(course.jobs).await?;
    let applied_before = provider.counted().await?.applied;
    let mut programs = Vec::new();
    for replica in 1..=course.replicas {
        let name = format!("{}-{replica}", course.contender.name().replace(' ', "-"));
        programs.push(stage.start(course.contender, &name, provider)?);
    }
    let pids: Vec<u32> = programs.iter().map(Program::id).collect();

    let begun_with = watch(provider, &mut programs, applied_before + 1).await?;
    let (begun, cpu) = (Instant::now(), Cpu::read(&pids, provider.program.id()));
    let all = applied_before + course.jobs as u64;
    watch(provider, &mut programs, all).await?;
    let applied_at = Instant::now();
    // The ceiling writes none down.
    let expected = if course.contender == Contender::Ceiling { 0 } else { course.jobs as i64 };
    while count_outcomes(pool, course.contender).await? - outcomes < expected {
        ensure!(applied_at.elapsed() < STANDSTILL_MAX, "outcomes are missing; see the programs' logs");
        sleep(WATCH_INTERVAL).await;
    }
    let (elapsed, cpu) = (begun.elapsed(), Cpu::read(&pids, provider.program.id()).since(cpu));

    let measured = (all - begun_with) as f64;
    let per_job = |time: Duration| time.as_secs_f64() * 1e6 / measured;
    let figures = Figures {
        jobs_per_second: measured / elapsed.as_secs_f64(),
        cpu_us: CpuMicros {
            programs: per_job(cpu.programs),
            broker: per_job(cpu.broker),
            postgres: per_job(cpu.postgres),
            provider: per_job(cpu.provider),
        },
        peak_memory_mb: pids.iter().map(|pid| peak_memory_mb(*pid)).sum(),
        latency_ms: latency(pool, course.contender, course.jobs).await?,
    };
    let applied = provider.counted().await?.applied;
    ensure!(applied == all, "{} updates were applied for {} jobs", applied - applied_before, course.jobs);
    for program in programs {
        program.stop().await?;
    }
    Ok(figures)
}

/// Waits until the provider has applied as many updates; returns how many it has.
async fn watch(provider: &Provider, programs: &mut [Program], applied: u64) -> anyhow::Result<u64> {
    let mut last = (0, Instant::now());
    loop {
        let now = provider.counted().await?.applied;
        if now >= applied {
            return Ok(now);
        }
        if now != last.0 {
            last = (now, Instant::now());
        }
        if last.1.elapsed() > STANDSTILL_MAX {
            bail!("nothing happens any more after {now} updates; see the programs' logs");
        }
        programs.iter_mut().try_for_each(Program::check_alive)?;
        sleep(WATCH_INTERVAL).await;
    }
}

/// Outcomes committed by a contender.
async fn count_outcomes(pool: &PgPool, contender: Contender) -> anyhow::Result<i64> {
    let query = match contender {
        // Those still open are few, and cheap to count.
        Contender::Worker => {
            "select count(*) - count(*) filter (where state in ('submitting', 'waiting', 'unknown')) from submission"
        }
        Contender::Ceiling => return Ok(0),
    };
    Ok(sqlx::query_scalar(query).fetch_one(pool).await?)
}

async fn latency(pool: &PgPool, contender: Contender, jobs: usize) -> anyhow::Result<Option<Latency>> {
    if contender != Contender::Worker {
        return Ok(None);
    }
    let (p50, p99): (f64, f64) = sqlx::query_as(
        "select
            percentile_cont(0.5) within group (order by extract(epoch from ended_at - received_at)) * 1000,
            percentile_cont(0.99) within group (order by extract(epoch from ended_at - received_at)) * 1000
        from (select ended_at, received_at from submission order by received_at desc limit $1) recent",
    )
    .bind(jobs as i64)
    .fetch_one(pool)
    .await?;
    Ok(Some(Latency { p50, p99 }))
}
