//! `kyc-worker run`: checks the settings, starts the log, and works.

use std::process::ExitCode;

use clap::Args;
use tracing::warn;

use super::terminal::refuse;
use crate::app::{self, Mode};
use crate::config::{LogSettings, RunSettings, SettingFault, SettingSource, told_settings};
use crate::telemetry::{self, LastLines};

/// Work: consume jobs, submit them, record what happened
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker run --migrate\n\nExit codes: 0 stopped or drained, 1 failed, 2 wrong settings."
)]
pub(super) struct RunArgs {
    /// Stop with exit code 0 when the queue is empty and nothing is in motion
    #[arg(long)]
    drain: bool,
    /// Bring the database's schema up to date before starting
    #[arg(long)]
    migrate: bool,
    #[command(flatten)]
    settings: RunSettings,
    #[command(flatten)]
    log: LogSettings,
}

/// Works, unless there are `faults` or more are found.
pub(super) async fn run(
    args: RunArgs,
    faults: Vec<SettingFault>,
    sources: Vec<SettingSource>,
    misspelt: &[(&str, String)],
) -> anyhow::Result<ExitCode> {
    let checked = match sound(args.settings.check(), faults) {
        Ok(checked) => checked,
        Err(faults) => return Ok(refuse(&faults)),
    };
    let _last_lines = start_log(args.log, misspelt)?;
    let mode = Mode { drain: args.drain, migrate: args.migrate };
    app::run(args.settings, checked, mode, told_settings(sources)).await?;
    Ok(ExitCode::SUCCESS)
}

/// What the settings amount to, unless some of them did not parse or others are not sound.
pub(super) fn sound<T>(
    checked: Result<T, Vec<SettingFault>>,
    mut faults: Vec<SettingFault>,
) -> Result<T, Vec<SettingFault>> {
    match checked {
        Ok(checked) if faults.is_empty() => Ok(checked),
        checked => {
            faults.extend(checked.err().unwrap_or_default());
            Err(faults)
        }
    }
}

/// Starts the log of a process that goes on. The last lines are written when what is returned is dropped.
pub(super) fn start_log(log: LogSettings, misspelt: &[(&str, String)]) -> anyhow::Result<LastLines> {
    let last_lines = telemetry::start(log.log_format, log.rust_log)?;
    for (name, meant) in misspelt {
        warn!(name, meant, "a name in .env is no setting, and nearly one");
    }
    Ok(last_lines)
}
