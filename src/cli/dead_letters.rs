//! `kyc-worker dead-letters`: what could not become a job, looked at and given another chance.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde::Serialize;
use time::OffsetDateTime;

use super::attribution::MaybeAttributionArgs;
use super::database::DeskArgs;
use super::terminal::{age_text, say_exactly, table, time_text, wait_aloud};
use crate::broker::dead_letters::{DeadLetter, DeadLetters};
use crate::broker::{Broker, NotTaken, Publisher};
use crate::config::BrokerSettings;
use crate::desk::dead_letters::{DeadLetterView, find_dead_letter, record_requeue};
use crate::desk::interventions::Attribution;
use crate::desk::proposals::{Deed, approved};
use crate::visible::visible;
use dollarpe::canonical_json::Fault;

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
    #[command(flatten)]
    desk: DeskArgs,
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
    #[command(flatten)]
    desk: DeskArgs,
    #[command(flatten)]
    broker: BrokerSettings,
}

/// Publish dead letters again for the queue they were in, and remove them once that is confirmed
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker dead-letters requeue 1f2e3d4c5b6a --by ana --note 'the contract allows it now'\n  kyc-worker dead-letters requeue --reason worker_failed --by ana --note 'fixed in 1.2.3'\n  kyc-worker dead-letters requeue --proposal 17"
)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(true).args(["ids", "reason", "all", "proposal"]))]
pub(super) struct RequeueArgs {
    /// The dead letters, as `list` names them
    #[arg(value_name = "ID", requires = "by", requires = "note")]
    ids: Vec<String>,
    /// All with this reason: invalid, conflict, worker_failed, delivery_limit, …
    #[arg(long, value_name = "CODE", requires = "by", requires = "note")]
    reason: Option<String>,
    /// All
    #[arg(long, requires = "by", requires = "note")]
    all: bool,
    /// In place of dead letters, of who asks and why: an approved proposal, which says all three
    #[arg(long, value_name = "ID", conflicts_with_all = ["ids", "reason", "all", "by", "note"])]
    proposal: Option<i64>,
    #[command(flatten)]
    attribution: MaybeAttributionArgs,
    #[command(flatten)]
    desk: DeskArgs,
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
    let row = find_dead_letter(pool, &letter.body_sha256, letter.message_id.as_deref()).await?;
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
    let pool = args.desk.open().await?;
    let letters = DeadLetters::open(&broker(&args.broker)?).await?;
    let mut known = Vec::new();
    let listed = list_each(&pool, &letters, args.limit as usize, &mut known).await;
    letters.close().await;
    // Those that were read are listed all the same.
    if listed.is_ok() || !known.is_empty() {
        args.desk.print(&known, print_list)?;
    }
    listed.context("the list is not whole").map(|()| ExitCode::SUCCESS)
}

async fn list_each(
    pool: &sqlx::PgPool,
    letters: &DeadLetters,
    limit: usize,
    known: &mut Vec<Known>,
) -> anyhow::Result<()> {
    while known.len() < limit
        && let Some(letter) = letters.next().await?
    {
        known.push(know(pool, &letter).await?);
    }
    Ok(())
}

fn print_list(known: &Vec<Known>) {
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
}

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    known: Known,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
}

async fn show(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let pool = args.desk.open().await?;
    let letters = DeadLetters::open(&broker(&args.broker)?).await?;
    let found = loop {
        match letters.next().await? {
            Some(letter) if letter.id() != args.id => {}
            found => break found,
        }
    };
    letters.close().await;
    let letter = found.ok_or_else(|| not_queued(&args.id))?;
    let body = args.body.then(|| String::from_utf8_lossy(&letter.body).into_owned());
    let shown = Shown { known: know(&pool, &letter).await?, body };
    args.desk.print(&shown, print_letter)?;
    if args.body && !args.desk.json {
        say_exactly(&letter.body);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_letter(Shown { known, .. }: &Shown) {
    println!("dead letter {}, {} bytes", known.id, known.size);
    println!("  dead-lettered by the {}", known.by);
    if let Some(message_id) = &known.message_id {
        println!("  message_id {}", visible(message_id));
    }
    if let Some(died_at) = known.died_at {
        println!("  since {}", time_text(died_at));
    }
    match (&known.row, &known.reason_code) {
        (Some(row), _) => println!("  {}: {}", row.reason_code, visible(&row.reason)),
        (None, Some(cause)) => println!("  {}", visible(cause)),
        (None, None) => {}
    }
}

fn not_queued(id: &str) -> anyhow::Error {
    anyhow::anyhow!("no dead letter {id} is queued; `kyc-worker dead-letters list` lists them")
}

#[derive(Default, Serialize)]
struct Requeued {
    requeued: Vec<String>,
    /// Those that the broker does not take as they are, and why. They stay.
    refused: Vec<Refused>,
    left: usize,
}

#[derive(Serialize)]
struct Refused {
    id: String,
    reason: String,
}

/// Which dead letters are meant, and by whom.
struct Meant<'a> {
    ids: &'a [String],
    reason: Option<&'a str>,
    all: bool,
    attribution: Attribution<'a>,
}

async fn requeue(args: &RequeueArgs) -> anyhow::Result<ExitCode> {
    let pool = args.desk.open().await?;
    let allowed = match args.proposal {
        Some(id) => Some(approved(&pool, id, "requeue").await?),
        None => None,
    };
    let meant = match (&allowed, args.attribution.attribution()) {
        (Some((proposal, Deed::Requeue { letter_id })), _) => Meant {
            ids: std::slice::from_ref(letter_id),
            reason: None,
            all: false,
            attribution: proposal.attribution(),
        },
        (None, Some(attribution)) => {
            Meant { ids: &args.ids, reason: args.reason.as_deref(), all: args.all, attribution }
        }
        _ => anyhow::bail!("give dead letters with --by and --note, or --proposal"),
    };
    let broker = broker(&args.broker)?;
    let mut publisher = Publisher::open(&broker).await?;
    let letters = DeadLetters::open(&broker).await?;
    let mut done = Requeued::default();
    let ended = requeue_each(&meant, &pool, &mut publisher, &letters, &mut done).await;
    letters.close().await;
    publisher.close().await;
    // What was done is told, whatever ended it.
    args.desk.print(&done, print_requeued)?;
    ended?;
    let is_done =
        |id: &String| done.requeued.contains(id) || done.refused.iter().any(|refused| refused.id == *id);
    if let Some(id) = meant.ids.iter().find(|id| !is_done(id)) {
        return Err(not_queued(id));
    }
    Ok(if done.refused.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Goes through the dead letters once. One that the broker does not take stays, and the next is
/// tried; a broker that takes nothing ends it. What was meant and did not happen is written
/// down behind what was meant.
async fn requeue_each(
    meant: &Meant<'_>,
    pool: &sqlx::PgPool,
    publisher: &mut Publisher,
    letters: &DeadLetters,
    done: &mut Requeued,
) -> anyhow::Result<()> {
    // What comes back while we work is for the next time: no letter goes round twice.
    let mut rest = letters.count().await?;
    while rest > 0
        && let Some(letter) = letters.next().await?
    {
        rest -= 1;
        let id = letter.id();
        let row = find_dead_letter(pool, &letter.body_sha256, letter.message_id.as_deref()).await?;
        let reason = row.as_ref().map(|row| row.reason_code.as_str()).or(letter.cause.as_deref());
        let is_meant =
            meant.all || meant.ids.contains(&id) || meant.reason.is_some() && meant.reason == reason;
        if !is_meant {
            done.left += 1;
            continue;
        }
        if let Some(Fault { pointer, reason }) = letter.unreadable.first() {
            let reason = format!(
                "{pointer}: {reason}; requeued, it would be another message: publish the job anew, with properties in UTF-8"
            );
            done.refused.push(Refused { id, reason });
            continue;
        }
        let (job_id, attribution) = (row.and_then(|row| row.job_id), meant.attribution);
        record_requeue(pool, &id, job_id, None, attribution).await?;
        let (wait, tell) = (publisher.wait(), |why: &str| eprintln!("{why}"));
        let Err(failure) = wait_aloud(letters.requeue(publisher, &letter), wait, tell).await else {
            done.requeued.push(id);
            continue;
        };
        let refused = matches!(failure, NotTaken::Refused(_) | NotTaken::Nacked(_));
        let failure = anyhow::Error::from(failure);
        let reason = format!("{failure:#}");
        record_requeue(pool, &id, job_id, Some(&reason), attribution).await?;
        if !refused {
            return Err(failure.context(format!("dead letter {id} was not requeued")));
        }
        done.refused.push(Refused { id, reason });
    }
    Ok(())
}

fn print_requeued(done: &Requeued) {
    done.requeued.iter().for_each(|id| println!("{id}  requeued"));
    for Refused { id, reason } in &done.refused {
        println!("{id}  stays: {}", visible(reason));
    }
    println!("requeued {}; {} stay", done.requeued.len(), done.left + done.refused.len());
}
