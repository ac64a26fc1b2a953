//! Measures the worker: against the ceiling and against peers, with latency, replicas, retries
//! and rows by the million, and prints what it saw. The machine drifts, so only figures of one
//! table compare, whose lines ran in turn: read the ratios.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is where it speaks")]

mod archive;
mod console;
mod document;
mod drain;
mod figures;
mod machine;
mod meter;
mod parts;
mod plans;
mod plot;
mod rows;
mod stage;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use kyc_lab::database;
use url::Url;

use crate::figures::Report;
use crate::machine::Machine;
use crate::parts::{Bench, Part};
use crate::stage::{Contender, Stage};

/// Measures the worker against the ceiling (the same consume, parse, sign, send and ack, without
/// a database) and against peers
#[derive(Parser)]
#[command(after_help = "Examples:\n  make bench\n  scripts/bench.sh --only latency --latency 50ms --runs 3")]
struct Arguments {
    /// Which parts, comma separated
    #[arg(long, value_delimiter = ',', default_value = "throughput,latency,replicas,retries,idle,single")]
    only: Vec<Part>,
    /// How many jobs a run drains
    #[arg(long, default_value_t = 20_000)]
    jobs: usize,
    /// How often each is run, in turn [default: 5; of latency, retries and rows 3, of console 50]
    #[arg(long)]
    runs: Option<usize>,
    /// How many requests a replica has in flight
    #[arg(long, default_value_t = 256)]
    concurrency: usize,
    /// How many deliveries a replica holds
    #[arg(long, default_value_t = 1024)]
    prefetch: usize,
    /// Part latency: how long the provider takes for a request, comma separated
    #[arg(long, default_value = "50ms,300ms", value_delimiter = ',')]
    latency: Vec<humantime::Duration>,
    /// Part replicas: how many workers share the queue, comma separated
    #[arg(long, default_value = "1,2,4", value_delimiter = ',')]
    replicas: Vec<usize>,
    /// Part retries: the percentage of updates that fail, comma separated
    #[arg(long, default_value = "1,10", value_delimiter = ',')]
    retries: Vec<f64>,
    /// Parts rows, console and archive: how many ended jobs the tables hold, comma separated, growing; for the
    /// last two the last
    #[arg(long, default_value = "0,1000000,10000000", value_delimiter = ',')]
    rows: Vec<u64>,
    /// Part single: how many jobs come one by one
    #[arg(long, default_value_t = 300)]
    single_jobs: usize,
    /// Part memory: how many jobs one worker drains
    #[arg(long, default_value_t = 1_000_000)]
    memory_jobs: usize,
    /// Writes the figures to this file; parts in it that do not run stay
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes the figures to docs/performance.json, and from there into the documents
    #[arg(long, conflicts_with = "json")]
    write_docs: bool,
    /// Postgres
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: Url,
    /// RabbitMQ
    #[arg(long, env = "AMQP_URL", hide_env_values = true)]
    amqp_url: String,
    /// Where the programs' logs go
    #[arg(long, default_value = "target/bench")]
    logs: PathBuf,
    /// Where the Node.js peer is, with its libraries
    #[arg(long, default_value = "target/bench/node")]
    node_peer: PathBuf,
}

// One thread: what is measured needs the cores.
#[tokio::main(flavor = "current_thread")]
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
        node_peer: arguments.node_peer.clone(),
    };
    let admin = database::connect(&database::url_of(&arguments.database_url, "postgres")).await?;
    let machine = Machine::look(&admin, &arguments.amqp_url).await?;
    println!("{machine}");
    let written = Path::new("docs/performance.json");
    let file = arguments.json.as_deref().or_else(|| arguments.write_docs.then_some(written));
    let mut report = match file {
        Some(file) => Report::read_or_new(file, machine)?,
        None => Report::new(machine),
    };
    let measured = measure(&Bench { stage: &stage, arguments: &arguments }, &mut report, file).await;
    stage.clear().await?;
    measured?;
    if arguments.write_docs {
        document::write(Path::new("."), &report)?;
    }
    // The last line: scripts look for it.
    let throughput = report.throughput.as_ref().filter(|_| arguments.only.contains(&Part::Throughput));
    if let Some(ratio) = throughput.and_then(|table| {
        Some(table.line_of(Contender::Worker)?.rate() / table.line_of(Contender::Ceiling)?.rate())
    }) {
        println!("\nratio {ratio:.2}");
    }
    Ok(())
}

/// Measures the parts in their order, prints each, and writes down what there is after each.
async fn measure(bench: &Bench<'_>, report: &mut Report, file: Option<&Path>) -> anyhow::Result<()> {
    for part in &bench.arguments.only {
        eprintln!("\n{}:", format!("{part:?}").to_lowercase());
        match part {
            Part::Throughput => report.throughput = Some(bench.throughput().await?),
            Part::Latency => report.latency = Some(bench.latency().await?),
            Part::Replicas => report.replicas = Some(bench.replicas().await?),
            Part::Retries => report.retries = Some(bench.retries().await?),
            Part::Idle => report.idle = Some(bench.idle().await?),
            Part::Peers => report.peers = Some(bench.peers().await?),
            Part::Rows => report.rows = Some(bench.rows().await?),
            Part::Memory => report.memory = Some(bench.memory().await?),
            Part::Single => report.single = Some(bench.single().await?),
            Part::Archive => report.archive = Some(bench.archive().await?),
            Part::Console => report.console = Some(bench.console().await?),
            Part::Events => report.events = Some(bench.events().await?),
        }
        println!("\n{}", document::part(report, *part, document::Form::Terminal));
        if let Some(file) = file {
            report.write(file)?;
        }
    }
    Ok(())
}
