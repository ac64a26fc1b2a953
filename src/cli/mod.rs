//! The command line: what each command takes, and the commands that are not `run`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is where the program speaks")]

mod assets;
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
mod schema;
mod show;
mod sign;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Args, Parser, Subcommand};
use clap_complete::Shell;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use uuid::Uuid;

use crate::app::{self, Mode};
use crate::config::{
    BrokerSettings, DatabaseSettings, EnvFile, FingerprintSettings, JobSettings, LogSettings, Parsed,
    ProviderArgs, ReadBackSettings, RunSettings, SettingFault, SettingSource, parse_all, parse_duration,
    setting_sources,
};
use crate::journal;
use crate::journal::interventions::Signed;
use crate::journal::resolve::Finding;
use crate::telemetry;

/// Submits customers' document updates from RabbitMQ to the DollarPe KYC API, and keeps
/// in Postgres what happened to each.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Every setting can be given as a flag or as the variable shown beside it; a file .env\nin the current directory is read too. `kyc-worker run --help` lists them all."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Work: consume jobs, submit them, record what happened
    #[command(
        after_help = "Example:\n  kyc-worker run --migrate\n\nExit codes: 0 stopped or drained, 1 failed, 2 wrong settings."
    )]
    Run(Box<RunArgs>),
    /// Bring the database's schema up to this version
    #[command(after_help = "Example:\n  DATABASE_URL=postgres://localhost/kyc kyc-worker migrate")]
    Migrate(DatabaseSettings),
    /// Look at settings, broker, database and provider; say what is wrong and what to do
    #[command(
        after_help = "Example:\n  kyc-worker check\n  kyc-worker check --json | jq '.[] | select(.grade == \"wrong\")'\n\nNothing is changed: the provider is asked about a customer who does not exist.\n\nExit codes: 0 nothing is wrong, 1 something is."
    )]
    Check(Box<CheckArgs>),
    /// Tell a probe whether this replica works, by the row that it keeps
    #[command(
        after_help = "Example:\n  WORKER_NAME=worker-1 kyc-worker health --ready\n\nWithout --ready, a database that is away is no fault of the replica's.\n\nExit codes: 0 healthy, 1 not."
    )]
    Health(HealthArgs),
    /// Show what is signed for a request's body: canonical text, message and headers
    #[command(
        after_help = "Example:\n  kyc-worker sign job.json\n  echo '{}' | kyc-worker sign - --timestamp 1752670745 --dollarpe-signing-profile spaced\n\nNothing is sent. The body is shown as it is, personal data and all; the key is not."
    )]
    Sign(Box<SignArgs>),
    /// Print the message contract: a job's JSON Schema, or an AsyncAPI document of the queues
    #[command(
        after_help = "Example:\n  kyc-worker schema > job.schema.json\n  kyc-worker schema --asyncapi > asyncapi.json"
    )]
    Schema(Box<SchemaArgs>),
    /// Publish jobs, one JSON object a line, and wait for the broker's confirmations
    #[command(
        after_help = "Example:\n  kyc-worker enqueue jobs.jsonl\n  jq -c '.[]' jobs.json | kyc-worker enqueue -\n\nA job without a job_id gets one made of its line's content, so that enqueueing a file\ntwice submits nothing twice."
    )]
    Enqueue(Box<EnqueueArgs>),
    /// Show what happened to one job, or where a customer's updates went
    #[command(
        after_help = "Example:\n  kyc-worker show 3f0c2a9e-5f0e-4f57-9d0c-2d6f7c1f1a11\n  kyc-worker show --customer 4e6f1b20-a73c-11ec-b909-0242ac120002"
    )]
    Show(ShowArgs),
    /// Tell the worker what it cannot know of a customer's updates
    #[command(subcommand)]
    Budget(BudgetCommand),
    /// Show where the work stands: who works, what came and went, what is open and what went wrong
    #[command(
        after_help = "Example:\n  kyc-worker report --since 1h\n  kyc-worker report --json | jq .states"
    )]
    Report(ReportArgs),
    /// List jobs by state, reason, customer and time
    #[command(
        after_help = "Example:\n  kyc-worker list --state needs_review\n  kyc-worker list --reason update_limit_exceeded --since 7d --json | jq -r '.[].job_id'"
    )]
    List(ListArgs),
    /// Send ended jobs again; says what that would do, and does it with --yes
    #[command(
        after_help = "Example:\n  kyc-worker replay --state exhausted --reason attempts\n  kyc-worker replay --state exhausted --reason attempts --rate 5 --yes --by ana --note 'the provider is mended'\n\nRefuses jobs that may have been applied, and customers whose updates are spent."
    )]
    Replay(ReplayArgs),
    /// Settle a job in needs_review with what a person found out; sends nothing
    #[command(
        after_help = "Example:\n  kyc-worker resolve 3f0c2a9e-5f0e-4f57-9d0c-2d6f7c1f1a11 --as accepted --by ana --note 'seen in the dashboard'"
    )]
    Resolve(ResolveArgs),
    /// Look at dead letters, and have them delivered again
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
    /// Write jobs to standard output for auditors, masked
    #[command(
        after_help = "Example:\n  kyc-worker export --since 2026-07-01 --until 2026-10-01 --format csv > q3.csv"
    )]
    Export(ExportArgs),
    /// Verify that what the tables say of every job is what was written, and can have happened
    #[command(
        after_help = "Example:\n  kyc-worker audit\n  kyc-worker audit 3f0c2a9e-5f0e-4f57-9d0c-2d6f7c1f1a11 --json | jq .findings\n\nFinds attempts and observations that were changed, removed, added or moved, counts that do\nnot agree, rows without their submission, and histories that cannot be. Needs\nFINGERPRINT_KEY, and a role that may read the tables: the worker's. Nothing is written;\nreplicas may run.\n\nExit codes: 0 every history verifies, 1 something is wrong."
    )]
    Audit(AuditArgs),
    /// Remove what could tell who a customer is, and keep what happened
    #[command(
        after_help = "Example:\n  kyc-worker forget --customer 4e6f1b20-a73c-11ec-b909-0242ac120002 --by ana --note 'erasure request 4711'\n\nRefuses while a job of his is in motion. Exit code 1 also where dead letters that name him are still queued."
    )]
    Forget(ForgetArgs),
    /// Pause all the work, on every replica: nothing new is begun, what is in flight finishes
    #[command(
        after_help = "Example:\n  kyc-worker pause --by ana --note 'the provider does maintenance until 14:00'\n\nEvery replica obeys within 5 s. Looks at customers whose fate is unknown go on: they spend nothing."
    )]
    Pause(PauseArgs),
    /// End the pause
    #[command(after_help = "Example:\n  kyc-worker resume --by ana --note 'maintenance is over'")]
    Resume(ResumeArgs),
    /// Print a shell's completions
    #[command(after_help = "Example:\n  kyc-worker completions bash > /etc/bash_completion.d/kyc-worker")]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the man pages
    #[command(after_help = "Example:\n  kyc-worker man /usr/local/share/man/man1")]
    Man {
        /// Where to
        directory: PathBuf,
    },
}

/// What `run` takes.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Stop with exit code 0 when the queue is empty and nothing is in motion
    #[arg(long)]
    pub drain: bool,
    /// Bring the database's schema up to date before starting
    #[arg(long)]
    pub migrate: bool,
    /// Every setting.
    #[command(flatten)]
    pub settings: RunSettings,
    /// Logs.
    #[command(flatten)]
    pub log: LogSettings,
}

/// What `check` takes.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Every setting.
    #[command(flatten)]
    pub settings: RunSettings,
}

/// What `health` takes.
#[derive(Args, Debug)]
pub struct HealthArgs {
    /// Ask whether it takes jobs, and not only whether it is alive
    #[arg(long)]
    pub ready: bool,
    /// The replica's name [default: the latest of this host]
    #[arg(long, env = "WORKER_NAME", value_name = "NAME")]
    pub worker_name: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Postgres.
    #[command(flatten)]
    pub database: DatabaseSettings,
}

/// What `sign` takes.
#[derive(Args, Debug)]
pub struct SignArgs {
    /// A file with a job or a request's body; - for standard input
    #[arg(default_value = "-")]
    pub file: PathBuf,
    /// Seconds since 1970, in place of now
    #[arg(long, value_name = "SECONDS")]
    pub timestamp: Option<i64>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// The provider.
    #[command(flatten)]
    pub provider: ProviderArgs,
}

/// What `schema` takes.
#[derive(Args, Debug)]
pub struct SchemaArgs {
    /// Print an AsyncAPI document of exchange, queues and messages
    #[arg(long)]
    pub asyncapi: bool,
    /// RabbitMQ.
    #[command(flatten)]
    pub broker: BrokerSettings,
    /// Which jobs are valid.
    #[command(flatten)]
    pub jobs: JobSettings,
}

/// What `enqueue` takes.
#[derive(Args, Debug)]
pub struct EnqueueArgs {
    /// A file of JSON lines; - for standard input
    #[arg(default_value = "-")]
    pub file: PathBuf,
    /// Publish lines as they are, valid or not
    #[arg(long)]
    pub no_validate: bool,
    /// RabbitMQ.
    #[command(flatten)]
    pub broker: BrokerSettings,
    /// Which jobs are valid.
    #[command(flatten)]
    pub jobs: JobSettings,
}

/// What `show` takes.
#[derive(Args, Debug)]
pub struct ShowArgs {
    /// The job
    #[arg(required_unless_present = "customer", conflicts_with = "customer")]
    pub job_id: Option<Uuid>,
    /// A customer in place of a job: his updates and his jobs
    #[arg(long, value_name = "ID")]
    pub customer: Option<Uuid>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Postgres.
    #[command(flatten)]
    pub database: DatabaseSettings,
}

/// What `budget` does.
#[derive(Debug, Subcommand)]
pub enum BudgetCommand {
    /// Record how many of a customer's updates were spent elsewhere
    #[command(
        after_help = "Example:\n  kyc-worker budget set --customer 4e6f1b20-a73c-11ec-b909-0242ac120002 --used 1 --by ana --note 'updated by hand in the dashboard'"
    )]
    Set(BudgetSetArgs),
}

/// What `budget set` takes.
#[derive(Args, Debug)]
pub struct BudgetSetArgs {
    /// The customer
    #[arg(long, value_name = "ID")]
    pub customer: Uuid,
    /// How many updates were spent elsewhere, in all
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub used: u32,
    /// Who says so, and why.
    #[command(flatten)]
    pub signed: SignedArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Postgres.
    #[command(flatten)]
    pub database: DatabaseSettings,
}

/// Who does something by hand, and why. Kept for ever.
#[derive(Args, Debug)]
pub struct SignedArgs {
    /// Who does this; kept for ever
    #[arg(long, value_name = "NAME", value_parser = parse_text)]
    pub by: String,
    /// Why; kept for ever, so no personal data
    #[arg(long, value_name = "TEXT", value_parser = parse_text)]
    pub note: String,
}

impl SignedArgs {
    fn signed(&self) -> Signed<'_> {
        Signed { by: &self.by, note: &self.note }
    }
}

/// A text that says something, on one line.
fn parse_text(text: &str) -> Result<String, String> {
    let text = text.trim();
    match text.is_empty() || text.len() > 500 || text.chars().any(char::is_control) {
        true => Err("must have 1 to 500 bytes and no control characters".to_owned()),
        false => Ok(text.to_owned()),
    }
}

/// What `pause` takes.
#[derive(Args, Debug)]
pub struct PauseArgs {
    /// Who, and why.
    #[command(flatten)]
    pub signed: SignedArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Postgres.
    #[command(flatten)]
    pub database: DatabaseSettings,
}

/// What `resume` takes.
#[derive(Args, Debug)]
pub struct ResumeArgs {
    /// Who does this; kept for ever
    #[arg(long, value_name = "NAME", value_parser = parse_text)]
    pub by: Option<String>,
    /// Why; kept for ever
    #[arg(long, value_name = "TEXT", value_parser = parse_text)]
    pub note: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Postgres.
    #[command(flatten)]
    pub database: DatabaseSettings,
}

/// What `list` takes.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Only jobs in this state
    #[arg(long, value_parser = [
        "submitting", "waiting", "unknown", "accepted", "rejected", "invalid", "superseded", "duplicate",
        "exhausted", "needs_review",
    ])]
    pub state: Option<String>,
    /// Only jobs with this reason code
    #[arg(long, value_name = "CODE")]
    pub reason: Option<String>,
    /// Only jobs of this customer
    #[arg(long, value_name = "ID")]
    pub customer: Option<Uuid>,
    /// Only jobs received within the last 1h, 7d, …
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub since: Option<Duration>,
    /// How many at most, those received last first
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Postgres.
    #[command(flatten)]
    pub database: DatabaseSettings,
}

/// What `replay` takes.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(true).args(["job_ids", "state", "reason"]))]
pub struct ReplayArgs {
    /// The jobs
    #[arg(value_name = "JOB_ID", conflicts_with_all = ["state", "reason"])]
    pub job_ids: Vec<Uuid>,
    /// In place of jobs: all that ended so
    #[arg(long, value_parser = ["exhausted", "needs_review"])]
    pub state: Option<String>,
    /// In place of jobs: all that ended for this reason
    #[arg(long, value_name = "CODE")]
    pub reason: Option<String>,
    /// How many jobs at most, those asked for first before the others
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub limit: u32,
    /// How many of them become due in a second
    #[arg(long, default_value_t = 10.0, value_parser = parse_rate)]
    pub rate: f64,
    /// Do it; without this, only say what would be done
    #[arg(long, requires = "by", requires = "note")]
    pub yes: bool,
    /// Who does this; kept for ever
    #[arg(long, value_name = "NAME", value_parser = parse_text)]
    pub by: Option<String>,
    /// Why; kept for ever, so no personal data
    #[arg(long, value_name = "TEXT", value_parser = parse_text)]
    pub note: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Postgres.
    #[command(flatten)]
    pub database: DatabaseSettings,
    /// What a customer may spend.
    #[command(flatten)]
    pub read_back: ReadBackSettings,
}

impl ReplayArgs {
    fn signed(&self) -> Option<Signed<'_>> {
        Some(Signed { by: self.by.as_deref()?, note: self.note.as_deref()? })
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.001..=1000.0).contains(&rate) => Ok(rate),
        _ => Err("must be a number from 0.001 to 1000".to_owned()),
    }
}

/// What `resolve` takes.
#[derive(Args, Debug)]
pub struct ResolveArgs {
    /// The job
    pub job_id: Uuid,
    /// What was found out
    #[arg(long = "as", value_name = "FINDING")]
    pub finding: Finding,
    /// Who, and why.
    #[command(flatten)]
    pub signed: SignedArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Postgres.
    #[command(flatten)]
    pub database: DatabaseSettings,
}

/// What `dead-letters` does.
#[derive(Debug, Subcommand)]
pub enum DeadLettersCommand {
    /// List what is in the dead-letter queue, and why
    #[command(after_help = "Example:\n  kyc-worker dead-letters list")]
    List(DeadLettersList),
    /// Show one dead letter
    #[command(after_help = "Example:\n  kyc-worker dead-letters show 1f2e3d4c5b6a")]
    Show(DeadLettersShow),
    /// Publish dead letters again where they came from, and remove them once that is confirmed
    #[command(
        after_help = "Example:\n  kyc-worker dead-letters requeue 1f2e3d4c5b6a --by ana --note 'the contract allows it now'\n  kyc-worker dead-letters requeue --reason worker_failed --by ana --note 'fixed in 1.2.3'"
    )]
    Requeue(DeadLettersRequeue),
}

/// What `dead-letters list` takes.
#[derive(Args, Debug)]
pub struct DeadLettersList {
    /// How many at most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Postgres.
    #[command(flatten)]
    pub database: DatabaseSettings,
    /// RabbitMQ.
    #[command(flatten)]
    pub broker: BrokerSettings,
}

/// What `dead-letters show` takes.
#[derive(Args, Debug)]
pub struct DeadLettersShow {
    /// The dead letter, as `list` names it
    pub id: String,
    /// Print the body too: it holds what the customer entered
    #[arg(long)]
    pub body: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Postgres.
    #[command(flatten)]
    pub database: DatabaseSettings,
    /// RabbitMQ.
    #[command(flatten)]
    pub broker: BrokerSettings,
}

/// What `dead-letters requeue` takes.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(true).args(["ids", "reason", "all"]))]
pub struct DeadLettersRequeue {
    /// The dead letters, as `list` names them
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
    /// All with this reason: invalid, conflict, worker_failed, delivery_limit, …
    #[arg(long, value_name = "CODE")]
    pub reason: Option<String>,
    /// All
    #[arg(long)]
    pub all: bool,
    /// Who, and why.
    #[command(flatten)]
    pub signed: SignedArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Postgres.
    #[command(flatten)]
    pub database: DatabaseSettings,
    /// RabbitMQ.
    #[command(flatten)]
    pub broker: BrokerSettings,
}

/// What `export` takes.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// Jobs received from then on, such as 2026-07-01 or 2026-07-01T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub since: time::OffsetDateTime,
    /// Jobs received before then [default: now]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub until: Option<time::OffsetDateTime>,
    /// How they are written
    #[arg(long, default_value = "jsonl")]
    pub format: ExportFormat,
    /// Postgres.
    #[command(flatten)]
    pub database: DatabaseSettings,
}

/// How exported jobs are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum ExportFormat {
    /// A line of column names, then one line a job
    Csv,
    /// One JSON object a line
    Jsonl,
}

/// A day in UTC, or a moment as RFC 3339 writes it.
fn parse_time(text: &str) -> Result<time::OffsetDateTime, String> {
    let day = time::macros::format_description!("[year]-[month]-[day]");
    time::Date::parse(text, day)
        .map(|date| date.midnight().assume_utc())
        .or_else(|_| time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339))
        .map_err(|_| "write a day, 2026-07-01, or a moment, 2026-07-01T12:00:00Z".to_owned())
}

/// What `audit` takes.
#[derive(Args, Debug)]
pub struct AuditArgs {
    /// Only these jobs [default: all]
    #[arg(value_name = "JOB_ID")]
    pub job_ids: Vec<Uuid>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// The key of the chains.
    #[command(flatten)]
    pub fingerprint: FingerprintSettings,
    /// Postgres.
    #[command(flatten)]
    pub database: DatabaseSettings,
}

/// What `forget` takes.
#[derive(Args, Debug)]
pub struct ForgetArgs {
    /// The customer
    #[arg(long, value_name = "ID")]
    pub customer: Uuid,
    /// Who, and why.
    #[command(flatten)]
    pub signed: SignedArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Postgres.
    #[command(flatten)]
    pub database: DatabaseSettings,
    /// RabbitMQ.
    #[command(flatten)]
    pub broker: BrokerSettings,
}

/// What `report` takes.
#[derive(Args, Debug)]
pub struct ReportArgs {
    /// How far back what came and went is counted
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = parse_duration)]
    pub since: Duration,
    /// RabbitMQ: asked how many dead letters there are.
    #[command(flatten)]
    pub broker: BrokerSettings,
    /// What a customer may spend.
    #[command(flatten)]
    pub read_back: ReadBackSettings,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Postgres.
    #[command(flatten)]
    pub database: DatabaseSettings,
}

/// The command line as clap knows it. A setting given twice counts as last given.
pub fn command() -> clap::Command {
    use clap::CommandFactory as _;
    Cli::command().mut_subcommands(|command| command.args_override_self(true))
}

/// Does what the command line says. `env_file` tells which variables came from `.env`.
pub async fn run(env_file: &EnvFile) -> ExitCode {
    let command = command();
    let Parsed { value: cli, matches, mut faults } = match parse_all::<Cli>(&command, std::env::args_os()) {
        Ok(parsed) => parsed,
        Err(error) => error.exit(),
    };
    let done = match cli.command {
        Command::Run(args) => {
            let checked = args.settings.check();
            let checked = match (checked, faults.is_empty()) {
                (Ok(checked), true) => checked,
                (checked, _) => {
                    faults.extend(checked.err().unwrap_or_default());
                    return refuse(&faults);
                }
            };
            let _last_lines = match telemetry::start(args.log.log_format, &args.log.rust_log) {
                Ok(last_lines) => last_lines,
                Err(error) => return refuse(&[SettingFault::new("RUST_LOG", format!("{error:#}"))]),
            };
            let mode = Mode { drain: args.drain, migrate: args.migrate };
            app::run(args.settings, checked, mode).await.map(|()| ExitCode::SUCCESS)
        }
        Command::Check(args) => check::run(&args, faults, sources_of(&command, &matches, env_file)).await,
        _ if !faults.is_empty() => return refuse(&faults),
        Command::Migrate(settings) => migrate::run(&settings).await,
        Command::Enqueue(args) => enqueue::run(&args).await,
        Command::Show(args) => show::run(&args).await,
        Command::Budget(BudgetCommand::Set(args)) => budget::set(&args).await,
        Command::Report(args) => report::run(&args).await,
        Command::Pause(args) => pause::pause(&args).await,
        Command::Resume(args) => pause::resume(&args).await,
        Command::Health(args) => health::run(&args).await,
        Command::Sign(args) => sign::run(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Completions { shell } => assets::complete(shell),
        Command::Man { directory } => assets::write_manual(&directory),
        Command::List(args) => list::run(&args).await,
        Command::Replay(args) => replay::run(&args).await,
        Command::Resolve(args) => resolve::run(&args).await,
        Command::DeadLetters(command) => dead_letters::run(&command).await,
        Command::Export(args) => export::run(&args).await,
        Command::Audit(args) => audit::run(&args).await,
        Command::Forget(args) => forget::run(&args).await,
    };
    done.unwrap_or_else(|error| match error.downcast_ref::<SettingFault>() {
        Some(fault) => refuse(std::slice::from_ref(fault)),
        None => {
            eprintln!("kyc-worker: {error:#}");
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
        eprintln!("  {fault}");
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

/// A table that fits a terminal.
fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    table
}
