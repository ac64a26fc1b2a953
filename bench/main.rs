//! Measures the worker against the ceiling: the same consume, parse, sign, send and ack
//! without a database.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is where it speaks")]

mod drain;
mod meter;
mod stage;

use std::path::PathBuf;

use clap::Parser;
use url::Url;

use crate::drain::{Course, Figures, drain};
use crate::stage::{Contender, Stage};

/// Measures the worker against the same without a database
#[derive(Parser)]
struct Arguments {
    /// How many jobs a run drains
    #[arg(long, default_value_t = 20_000)]
    jobs: usize,
    /// How often each is run, in turn
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// How many requests are in flight
    #[arg(long, default_value_t = 256)]
    concurrency: usize,
    /// How many deliveries a replica holds
    #[arg(long, default_value_t = 1024)]
    prefetch: usize,
    /// How long the provider takes for each request
    #[arg(long, default_value = "0ms")]
    latency: humantime::Duration,
    #[arg(long, default_value_t = 1)]
    replicas: usize,
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

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let _already_installed = rustls::crypto::ring::default_provider().install_default();
    std::fs::create_dir_all(&arguments.logs)?;
    let stage = Stage {
        database_url: arguments.database_url,
        amqp_url: arguments.amqp_url,
        logs: arguments.logs,
        concurrency: arguments.concurrency,
        prefetch: arguments.prefetch,
    };
    let pool = stage.recreate_database().await?;
    let mut rates: [Vec<f64>; 2] = Default::default();
    for _ in 0..arguments.runs {
        for (place, contender) in [Contender::Ceiling, Contender::Worker].into_iter().enumerate() {
            let provider = stage.start_provider(arguments.latency.into()).await?;
            let course = Course { contender, replicas: arguments.replicas, jobs: arguments.jobs };
            let figures = drain(&stage, &provider, &pool, course).await?;
            println!("{:8} {}", contender.name(), show(&figures));
            rates[place].push(figures.jobs_per_second);
            provider.program.stop().await?;
        }
    }
    let [ceiling, worker] = rates.map(median);
    println!("ratio {:.2}", worker / ceiling);
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn show(figures: &Figures) -> String {
    let Figures { jobs_per_second, cpu_us, peak_memory_mb, latency_ms } = figures;
    format!(
        "{jobs_per_second:7.0}/s  cpu {:5.1} broker {:5.1} postgres {:5.1} provider {:5.1}  {peak_memory_mb:5.1} MB  {latency_ms:?}",
        cpu_us.programs, cpu_us.broker, cpu_us.postgres, cpu_us.provider
    )
}
