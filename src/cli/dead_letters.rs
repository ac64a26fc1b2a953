//! `kyc-worker dead-letters`: what could not become a job, looked at and given another chance.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;
use time::OffsetDateTime;

use super::signed::SignedArgs;
use super::{age_text, open_database, print, table, time_text};
use crate::broker::dead_letters::{DeadLetter, DeadLetters};
use crate::broker::{Broker, Publisher};
use crate::config::{BrokerSettings, DatabaseSettings};
use crate::journal::dead_letters::{DeadLetterView, find_dead_letter, record_requeue};

/// Look at dead letters, and have them delivered again
#[derive(Debug, Subcommand)]
pub(super) enum DeadLettersCommand {
    List(ListArgs),
    Show(ShowArgs),
    Requeue(RequeueArgs),
}

/// List what is in the dead-letter queue, and why
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  kyc-worker dead-letters list")]
pub(super) struct ListArgs {
    /// How many at most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    broker: BrokerSettings,
}

/// Show one dead letter
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  kyc-worker dead-letters show 1f2e3d4c5b6a")]
pub(super) struct ShowArgs {
    /// The dead letter, as `list` names it
    id: String,
    /// Print the body too: it holds what the customer entered
    #[arg(long)]
    body: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    broker: BrokerSettings,
}

/// Publish dead letters again where they came from, and remove them once that is confirmed
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker dead-letters requeue 1f2e3d4c5b6a --by ana --note 'the contract allows it now'\n  kyc-worker dead-letters requeue --reason worker_failed --by ana --note 'fixed in 1.2.3'"
)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(true).args(["ids", "reason", "all"]))]
pub(super) struct RequeueArgs {
    /// The dead letters, as `list` names them
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// All with this reason: invalid, conflict, worker_failed, delivery_limit, …
    #[arg(long, value_name = "CODE")]
    reason: Option<String>,
    /// All
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    signed: SignedArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    database: DatabaseSettings,
    #[command(flatten)]
    broker: BrokerSettings,
}

/// What is known of a dead letter, without what the customer entered.
#[derive(Serialize)]
struct Known {
    id: String,
    message_id: Option<String>,
    size: usize,
    #[serde(with = "time::serde::rfc3339::option")]
    died_at: Option<OffsetDateTime>,
    /// Who dead-lettered it: a worker, or the broker by itself.
    by: &'static str,
    /// The worker's reason, or the broker's.
    reason_code: Option<String>,
    row: Option<DeadLetterView>,
}

pub(super) async fn run(command: &DeadLettersCommand) -> anyhow::Result<ExitCode> {
    match command {
        DeadLettersCommand::List(args) => list(args).await,
        DeadLettersCommand::Show(args) => show(args).await,
        DeadLettersCommand::Requeue(args) => requeue(args).await,
    }
}

fn broker(settings: &BrokerSettings) -> anyhow::Result<Broker> {
    Broker::new(settings, &settings.url()?, "kyc-worker dead-letters")
}

async fn know(pool: &sqlx::PgPool, letter: &DeadLetter) -> anyhow::Result<Known> {
    let row = find_dead_letter(pool, &letter.body_sha256).await?;
    let is_workers = row.is_some() || letter.cause.as_deref() == Some("rejected");
    Ok(Known {
        id: letter.id(),
        message_id: letter.message_id.clone(),
        size: letter.body.len(),
        died_at: letter.died_at,
        by: if is_workers { "worker" } else { "broker" },
        reason_code: row.as_ref().map(|row| row.reason_code.clone()).or_else(|| letter.cause.clone()),
        row,
    })
}

async fn list(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let pool = open_database(&args.database).await?;
    let letters = DeadLetters::open(&broker(&args.broker)?).await?;
    let mut known = Vec::new();
    while known.len() < args.limit as usize
        && let Some(letter) = letters.next().await?
    {
        known.push(know(&pool, &letter).await?);
    }
    letters.close().await?;
    print(args.json, &known, |known| {
        if known.is_empty() {
            println!("no dead letter is queued");
            return;
        }
        let now = OffsetDateTime::now_utc();
        let mut lines = table(["id", "age", "by", "reason", "message_id"]);
        for letter in known {
            lines.add_row([
                letter.id.clone(),
                letter.died_at.map(|at| age_text(now - at)).unwrap_or_default(),
                letter.by.to_owned(),
                letter.reason_code.clone().unwrap_or_default(),
                letter.message_id.clone().unwrap_or_default(),
            ]);
        }
        println!("{lines}");
    })
}

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    known: Known,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
}

async fn show(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let pool = open_database(&args.database).await?;
    let letters = DeadLetters::open(&broker(&args.broker)?).await?;
    let mut shown = None;
    while let Some(letter) = letters.next().await? {
        if letter.id() == args.id {
            let body = args.body.then(|| String::from_utf8_lossy(&letter.body).into_owned());
            shown = Some(Shown { known: know(&pool, &letter).await?, body });
            break;
        }
    }
    letters.close().await?;
    let shown = shown.ok_or_else(|| not_queued(&args.id))?;
    print(args.json, &shown, |Shown { known, body }| {
        println!("dead letter {}, {} bytes", known.id, known.size);
        println!("  dead-lettered by the {}", known.by);
        if let Some(message_id) = &known.message_id {
            println!("  message_id {message_id}");
        }
        if let Some(died_at) = known.died_at {
            println!("  since {}", time_text(died_at));
        }
        match (&known.row, &known.reason_code) {
            (Some(row), _) => println!("  {}: {}", row.reason_code, row.reason),
            (None, Some(cause)) => println!("  {cause}"),
            (None, None) => {}
        }
        if let Some(body) = body {
            println!("{body}");
        }
    })
}

fn not_queued(id: &str) -> anyhow::Error {
    anyhow::anyhow!("no dead letter {id} is queued; `kyc-worker dead-letters list` lists them")
}

#[derive(Serialize)]
struct Requeued {
    requeued: Vec<String>,
    left: usize,
}

async fn requeue(args: &RequeueArgs) -> anyhow::Result<ExitCode> {
    let pool = open_database(&args.database).await?;
    let broker = broker(&args.broker)?;
    let publisher = Publisher::open(&broker).await?;
    let letters = DeadLetters::open(&broker).await?;
    let mut done = Requeued { requeued: Vec::new(), left: 0 };
    // What comes back while we work is for the next time: no letter goes round twice.
    let mut rest = letters.count().await?;
    while rest > 0
        && let Some(letter) = letters.next().await?
    {
        rest -= 1;
        let id = letter.id();
        let row = find_dead_letter(&pool, &letter.body_sha256).await?;
        let reason = row.as_ref().map(|row| row.reason_code.as_str()).or(letter.cause.as_deref());
        let is_meant =
            args.all || args.ids.contains(&id) || args.reason.is_some() && args.reason.as_deref() == reason;
        if !is_meant {
            done.left += 1;
            continue;
        }
        record_requeue(&pool, &id, row.and_then(|row| row.job_id), args.signed.signed()).await?;
        letters.requeue(&publisher, &letter).await?;
        done.requeued.push(id);
    }
    letters.close().await?;
    publisher.close().await?;
    if let Some(id) = args.ids.iter().find(|id| !done.requeued.contains(*id)) {
        return Err(not_queued(id));
    }
    print(args.json, &done, |done| {
        done.requeued.iter().for_each(|id| println!("{id}  requeued"));
        println!("requeued {}; {} stay", done.requeued.len(), done.left);
    })
}
