//! The command line: a file a command, with what it takes, what it does and what it prints.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is where the program speaks")]

#[macro_use]
mod terminal;

mod archive;
mod assets;
mod attribution;
mod audit;
mod budget;
mod check;
mod console;
mod database;
mod dead_letters;
mod enqueue;
mod events;
mod export;
mod forget;
mod health;
mod list;
mod migrate;
mod pause;
mod proposals;
mod propose;
mod reconcile;
mod replay;
mod report;
mod resolve;
mod run;
mod schema;
mod show;
mod sign;
mod states;

use std::process::ExitCode;

use clap::{ArgMatches, Parser, Subcommand};

use self::terminal::refuse;
use crate::config::{EnvFile, Parsed, SettingFault, SettingSource, parse_all, setting_sources};
use crate::desk::interventions::demand_of;
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
    Console(Box<console::ConsoleArgs>),
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
    #[command(subcommand)]
    Propose(Box<propose::ProposeCommand>),
    Proposals(proposals::ProposalsArgs),
    Approve(proposals::ApproveArgs),
    Decline(proposals::DeclineArgs),
    Export(export::ExportArgs),
    Audit(audit::AuditArgs),
    Archive(Box<archive::ArchiveArgs>),
    Reconcile(Box<reconcile::ReconcileArgs>),
    #[command(subcommand)]
    Events(events::EventsCommand),
    Forget(forget::ForgetArgs),
    Pause(pause::PauseArgs),
    Resume(pause::ResumeArgs),
    Completions(assets::CompletionsArgs),
    Man(assets::ManArgs),
}

/// The command line as clap knows it. A setting given twice counts as last given, but for a
/// database's URL: each names an installation.
pub fn command() -> clap::Command {
    use clap::CommandFactory as _;
    Cli::command().mut_subcommands(|command| command.args_override_self(true))
}

/// Does what the command line says. `env_file` tells which variables came from `.env`.
pub async fn run(env_file: &EnvFile) -> ExitCode {
    let command = command();
    let Parsed { value: cli, matches, faults } = match parse_all::<Cli>(&command, std::env::args_os()) {
        Ok(parsed) => parsed,
        Err(error) => {
            terminal::note(error.print());
            return terminal::end(ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2)));
        }
    };
    let misspelt = env_file.misspelt(&command);
    let done = match cli.command {
        Command::Run(args) => {
            run::run(*args, faults, sources_of(&command, &matches, env_file), &misspelt).await
        }
        Command::Check(args) => {
            check::run(&args, faults, sources_of(&command, &matches, env_file), &misspelt).await
        }
        Command::Console(args) => {
            let sources = sources_of(&command, &matches, env_file);
            console::run(*args, faults, sources, &misspelt).await
        }
        _ if !faults.is_empty() => Ok(refuse(&faults)),
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
        Command::Propose(command) => propose::run(&command).await,
        Command::Proposals(args) => proposals::list(&args).await,
        Command::Approve(args) => proposals::approve(&args).await,
        Command::Decline(args) => proposals::decline(&args).await,
        Command::Export(args) => export::run(&args).await,
        Command::Audit(args) => audit::run(&args).await,
        Command::Archive(args) => {
            archive::run(&args, &sources_of(&command, &matches, env_file), &misspelt).await
        }
        Command::Reconcile(args) => reconcile::run(&args).await,
        Command::Events(command) => events::run(&command).await,
        Command::Forget(args) => forget::run(&args).await,
        Command::Pause(args) => pause::pause(&args).await,
        Command::Resume(args) => pause::resume(&args).await,
        Command::Completions(args) => assets::complete(&args, &mut self::command()),
        Command::Man(args) => assets::write_manual(&args, self::command()),
    };
    terminal::end(done.unwrap_or_else(|error| match error.downcast_ref::<SettingFault>() {
        Some(fault) => refuse(std::slice::from_ref(fault)),
        None => {
            // What a second person must approve is no failure of the database's.
            let demand = error.chain().filter_map(|cause| cause.downcast_ref()).find_map(demand_of);
            let told = demand.map_or_else(|| format!("{error:#}"), str::to_owned);
            eprintln!("kyc-worker: {}", visible(&told));
            ExitCode::FAILURE
        }
    }))
}

/// Where the settings of the command that was given came from.
fn sources_of(command: &clap::Command, matches: &ArgMatches, env_file: &EnvFile) -> Vec<SettingSource> {
    let given =
        matches.subcommand().and_then(|(name, matches)| Some((command.find_subcommand(name)?, matches)));
    given.map(|(command, matches)| setting_sources(command, matches, env_file)).unwrap_or_default()
}
