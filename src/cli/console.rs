//! `kyc-worker console`: the desk in a browser.

use std::process::ExitCode;

use clap::Args;

use super::run::{sound, start_log};
use super::terminal::refuse;
use crate::config::{
    ConsoleSettings, DatabaseSettings, LogSettings, ReadBackSettings, SettingFault, SettingSource,
};
use crate::console;

/// Serve the desk to browsers: jobs, customers, reviews, and what people may do about them
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  CONSOLE_LOGIN=local CONSOLE_LOCAL_USER=ana kyc-worker console\n  CONSOLE_LOGIN=proxy CONSOLE_LISTEN=0.0.0.0:8080 CONSOLE_PUBLIC_URL=https://kyc.example.com CONSOLE_PROXY_SECRET_FILE=/run/secrets/console kyc-worker console\n\nIt needs a role of the database of its own (deploy/roles.sql: kyc_desk), and no key, provider or broker.\n\nExit codes: 0 stopped, 1 failed, 2 wrong settings."
)]
pub(super) struct ConsoleArgs {
    #[command(flatten)]
    settings: ConsoleSettings,
    #[command(flatten)]
    database: DatabaseSettings,
    /// What a customer may spend.
    #[command(flatten)]
    read_back: ReadBackSettings,
    #[command(flatten)]
    log: LogSettings,
}

/// Answers, unless there are `faults` or more are found.
pub(super) async fn run(
    args: ConsoleArgs,
    faults: Vec<SettingFault>,
    sources: Vec<SettingSource>,
    misspelt: &[(&str, String)],
) -> anyhow::Result<ExitCode> {
    let checked = match sound(args.settings.check(), faults) {
        Ok(checked) => checked,
        Err(faults) => return Ok(refuse(&faults)),
    };
    let _last_lines = start_log(args.log, misspelt)?;
    console::run(args.database, args.settings, checked, &args.read_back, sources).await?;
    Ok(ExitCode::SUCCESS)
}
