//! The command line: a file a command, with what it takes, what it does and what it prints.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is where the program speaks")]

#[macro_use]
mod terminal;

mod assets;
mod attribution;
mod audit;
mod budget;
mod check;
mod dead_letters;
mod enqueue;
mod export;
mod forget;
mod health;
mod list;
mod migrate;
mod pause;
mod replay;
mod report;
mod resolve;
mod run;
mod schema;
mod show;
mod sign;

use std::process::ExitCode;

use clap::{ArgMatches, Parser, Subcommand};
use comfy_table::presets::NOTHING;
use tokio::time::{Duration, timeout};

use crate::broker::Wait;
use crate::config::{
    DatabaseSettings, EnvFile, Parsed, SettingFault, SettingSource, parse_all, setting_sources,
};
use crate::journal;
use crate::visible::visible;

/// Submits customers' document updates from RabbitMQ to the DollarPe KYC API, and keeps
/// in Postgres what happened to each.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Every setting can be given as a flag or as the variable shown beside it; a file .env\nin the current directory is read too. `kyc-worker run --help` lists them all."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Each takes what its own file says.
#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::RunArgs>),
    Migrate(migrate::MigrateArgs),
    Check(Box<check::CheckArgs>),
    Health(health::HealthArgs),
    Sign(Box<sign::SignArgs>),
    Schema(Box<schema::SchemaArgs>),
    Enqueue(Box<enqueue::EnqueueArgs>),
    Show(show::ShowArgs),
    #[command(subcommand)]
    Budget(budget::BudgetCommand),
    Report(report::ReportArgs),
    List(list::ListArgs),
    Replay(replay::ReplayArgs),
    Resolve(resolve::ResolveArgs),
    #[command(subcommand)]
    DeadLetters(dead_letters::DeadLettersCommand),
    Export(export::ExportArgs),
    Audit(audit::AuditArgs),
    Forget(forget::ForgetArgs),
    Pause(pause::PauseArgs),
    Resume(pause::ResumeArgs),
    Completions(assets::CompletionsArgs),
    Man(assets::ManArgs),
}

/// The command line as clap knows it. A setting given twice counts as last given.
pub fn command() -> clap::Command {
    use clap::CommandFactory as _;
    Cli::command().mut_subcommands(|command| command.args_override_self(true))
}

/// Does what the command line says. `env_file` tells which variables came from `.env`.
pub async fn run(env_file: &EnvFile) -> ExitCode {
    let command = command();
    let Parsed { value: cli, matches, faults } = match parse_all::<Cli>(&command, std::env::args_os()) {
        Ok(parsed) => parsed,
        Err(error) => error.exit(),
    };
    let done = match cli.command {
        Command::Run(args) => run::run(*args, faults).await,
        Command::Check(args) => check::run(&args, faults, sources_of(&command, &matches, env_file)).await,
        _ if !faults.is_empty() => return refuse(&faults),
        Command::Migrate(args) => migrate::run(&args).await,
        Command::Health(args) => health::run(&args).await,
        Command::Sign(args) => sign::run(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Enqueue(args) => enqueue::run(&args).await,
        Command::Show(args) => show::run(&args).await,
        Command::Budget(command) => budget::run(&command).await,
        Command::Report(args) => report::run(&args).await,
        Command::List(args) => list::run(&args).await,
        Command::Replay(args) => replay::run(&args).await,
        Command::Resolve(args) => resolve::run(&args).await,
        Command::DeadLetters(command) => dead_letters::run(&command).await,
        Command::Export(args) => export::run(&args).await,
        Command::Audit(args) => audit::run(&args).await,
        Command::Forget(args) => forget::run(&args).await,
        Command::Pause(args) => pause::pause(&args).await,
        Command::Resume(args) => pause::resume(&args).await,
        Command::Completions(args) => assets::complete(&args),
        Command::Man(args) => assets::write_manual(&args),
    };
    done.unwrap_or_else(|error| match error.downcast_ref::<SettingFault>() {
        Some(fault) => refuse(std::slice::from_ref(fault)),
        None => {
            eprintln!("kyc-worker: {}", visible(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    })
}

/// Where the settings of the command that was given came from.
fn sources_of(command: &clap::Command, matches: &ArgMatches, env_file: &EnvFile) -> Vec<SettingSource> {
    let given =
        matches.subcommand().and_then(|(name, matches)| Some((command.find_subcommand(name)?, matches)));
    given.map(|(command, matches)| setting_sources(command, matches, env_file)).unwrap_or_default()
}

/// Says all that is wrong with the settings.
fn refuse(faults: &[SettingFault]) -> ExitCode {
    eprintln!("kyc-worker: {} wrong:", if faults.len() == 1 { "a setting is" } else { "settings are" });
    for fault in faults {
        eprintln!("  {}", visible(&fault.to_string()));
    }
    eprintln!("`kyc-worker run --help` explains every setting; .env.example has them all.");
    ExitCode::from(2)
}

/// Opens the database for a command, if its schema is ours.
async fn open_database(settings: &DatabaseSettings) -> anyhow::Result<sqlx::PgPool> {
    let pool = journal::connect(settings, &settings.url()?).await?;
    journal::check_schema(&pool).await?;
    Ok(pool)
}

/// Prints what a command found, as JSON or as `as_text` prints it.
fn print<T: serde::Serialize>(as_json: bool, found: &T, as_text: fn(&T)) -> anyhow::Result<ExitCode> {
    if as_json {
        println!("{}", serde_json::to_string_pretty(found)?);
    } else {
        as_text(found);
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a time as people read it, to the second, in UTC.
fn time_text(at: time::OffsetDateTime) -> String {
    let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");
    at.to_offset(time::UtcOffset::UTC).format(format).unwrap_or_default()
}

/// How long ago something was, in its largest unit.
fn age_text(age: time::Duration) -> String {
    let seconds = age.whole_seconds().max(0);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// A table that fits a terminal, each cell on one line.
struct Table(comfy_table::Table);

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = comfy_table::Table::new();
    table.load_style(NOTHING).set_header(header);
    Table(table)
}

impl Table {
    fn add_row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.add_row(cells.into_iter().map(|cell| visible(&cell).into_owned()));
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Who waits longer for the broker to take a message is told why.
const WAIT_IN_SILENCE: Duration = Duration::from_secs(3);

/// Waits for the broker to take a message, and tells where that takes long.
async fn wait_aloud<T>(waiting: impl Future<Output = T>, wait: Wait, tell: impl FnOnce(&str)) -> T {
    let mut waiting = std::pin::pin!(waiting);
    match timeout(WAIT_IN_SILENCE, waiting.as_mut()).await {
        Ok(taken) => taken,
        Err(_elapsed) => {
            tell(&wait.to_string());
            waiting.await
        }
    }
}
