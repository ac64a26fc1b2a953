//! The simulated provider as a program. Never needed in production.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Parser;
use dollarpe_sandbox::Settings;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The DollarPe KYC API, simulated: its documented answers, faults on demand, and an oracle
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    settings: Settings,

    /// Which events are logged: a level, or directives such as dollarpe_sandbox=debug
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    rust_log: Targets,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { settings, rust_log } = Arguments::parse();
    let lines =
        tracing_subscriber::fmt::layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr);
    tracing_subscriber::registry().with(rust_log).with(lines).init();
    match run(settings).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: Settings) -> anyhow::Result<()> {
    // Before the first line is printed: whoever reads it may stop us at once.
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be caught")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be caught")?;

    let running = dollarpe_sandbox::start(settings).await?;
    // A script waits for this line to learn the port; a closed stdout is no reason to stop.
    if let Err(error) = writeln!(io::stdout(), "dollarpe-sandbox listening on {}", running.base_url()) {
        tracing::warn!(%error, "stdout is closed; listening on {}", running.base_url());
    }

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    running.stop().await;
    Ok(())
}
