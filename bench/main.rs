//! Measures the worker against the ceiling, in turn, and prints what it saw. The machine
//! drifts, so only figures of one run compare: read the ratios.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is where it speaks")]

mod drain;
mod meter;
mod stage;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use sqlx::PgPool;
use url::Url;

use crate::drain::{Course, Figures, drain};
use crate::stage::{Contender, Stage};

/// Measures the worker against the ceiling: the same consume, parse, sign, send and ack,
/// without a database
#[derive(Parser)]
#[command(
    after_help = "Example:\n  make bench\n  scripts/bench.sh --latency 50ms --jobs 10000 --replicas 1 --runs 3"
)]
struct Arguments {
    /// How many jobs a run drains
    #[arg(long, default_value_t = 20_000)]
    jobs: usize,
    /// How often each is run, in turn
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// How many requests a replica has in flight
    #[arg(long, default_value_t = 256)]
    concurrency: usize,
    /// How many deliveries a replica holds
    #[arg(long, default_value_t = 1024)]
    prefetch: usize,
    /// How long the provider takes for a request; each is measured by itself, comma separated
    #[arg(long, default_value = "0ms", value_delimiter = ',')]
    latency: Vec<humantime::Duration>,
    /// How many workers share the queue; each is measured beside the others, comma separated
    #[arg(long, default_value = "1", value_delimiter = ',')]
    replicas: Vec<usize>,
    /// Postgres
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: Url,
    /// RabbitMQ
    #[arg(long, env = "AMQP_URL", hide_env_values = true)]
    amqp_url: String,
    /// Where the programs' logs go
    #[arg(long, default_value = "target/bench")]
    logs: PathBuf,
}

/// One line of the table: what ran, and what each run of it saw.
struct Line {
    contender: Contender,
    replicas: usize,
    runs: Vec<Figures>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match bench(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn bench(arguments: Arguments) -> anyhow::Result<()> {
    // reqwest panics without it.
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
    let logs = &arguments.logs;
    std::fs::create_dir_all(logs).with_context(|| format!("cannot write to {}", logs.display()))?;
    let stage = Stage {
        database_url: arguments.database_url.clone(),
        amqp_url: arguments.amqp_url.clone(),
        logs: logs.clone(),
        concurrency: arguments.concurrency,
        prefetch: arguments.prefetch,
    };
    let pool = stage.recreate_database().await?;
    let mut ratio = None;
    for latency in &arguments.latency {
        let lines = measure(&stage, &pool, &arguments, *latency).await?;
        println!(
            "\nthe provider takes {latency}; {} jobs a run, {} runs in turn, medians",
            arguments.jobs, arguments.runs
        );
        println!("{}", table(&lines));
        ratio = ratio.or_else(|| Some(lines.get(1)?.rate() / lines.first()?.rate()));
    }
    if let Some(ratio) = ratio {
        println!("\nratio {ratio:.2}");
    }
    Ok(())
}

/// Runs the ceiling and the workers in turn, so that all meet the machine's moods.
async fn measure(
    stage: &Stage,
    pool: &PgPool,
    arguments: &Arguments,
    latency: humantime::Duration,
) -> anyhow::Result<Vec<Line>> {
    let line = |contender, replicas| Line { contender, replicas, runs: Vec::new() };
    let workers = arguments.replicas.iter().map(|replicas| line(Contender::Worker, *replicas));
    let mut lines: Vec<Line> = [line(Contender::Ceiling, 1)].into_iter().chain(workers).collect();
    for run in 1..=arguments.runs {
        for Line { contender, replicas, runs } in &mut lines {
            let provider = stage.start_provider(latency.into()).await?;
            let course = Course { contender: *contender, replicas: *replicas, jobs: arguments.jobs };
            let figures = drain(stage, &provider, pool, course).await?;
            provider.program.stop().await?;
            let rate = figures.jobs_per_second;
            eprintln!("run {run}: {} x {replicas}, latency {latency}: {rate:.0} jobs/s", contender.name());
            runs.push(figures);
        }
    }
    Ok(lines)
}

impl Line {
    fn median(&self, of: impl Fn(&Figures) -> f64) -> f64 {
        let mut values: Vec<f64> = self.runs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    }

    fn rate(&self) -> f64 {
        self.median(|figures| figures.jobs_per_second)
    }
}

fn table(lines: &[Line]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header([
        "",
        "replicas",
        "jobs/s",
        "of the ceiling",
        "CPU µs",
        "broker µs",
        "Postgres µs",
        "provider µs",
        "peak MB",
        "p50 ms",
        "p99 ms",
    ]);
    let ceiling = lines.first().map_or(0.0, Line::rate);
    for line in lines {
        let latency = |of: fn(&drain::Latency) -> f64| match line.contender {
            Contender::Ceiling => String::new(),
            Contender::Worker => {
                format!("{:.0}", line.median(|figures| figures.latency_ms.as_ref().map_or(0.0, of)))
            }
        };
        table.add_row([
            line.contender.name().to_owned(),
            line.replicas.to_string(),
            format!("{:.0}", line.rate()),
            format!("{:.0} %", 100.0 * line.rate() / ceiling),
            format!("{:.0}", line.median(|figures| figures.cpu_us.programs)),
            format!("{:.0}", line.median(|figures| figures.cpu_us.broker)),
            format!("{:.0}", line.median(|figures| figures.cpu_us.postgres)),
            format!("{:.0}", line.median(|figures| figures.cpu_us.provider)),
            format!("{:.0}", line.median(|figures| figures.peak_memory_mb)),
            latency(|latency| latency.p50),
            latency(|latency| latency.p99),
        ]);
    }
    table
}
