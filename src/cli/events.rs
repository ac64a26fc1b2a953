//! `kyc-worker events`: what upstream is told.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;
use sqlx::PgPool;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{Duration, Instant, sleep};
use uuid::Uuid;

use super::database::DeskArgs;
use super::export::parse_time;
use super::terminal::progress;
use crate::app::Signals;
use crate::desk::events::{Cursor, Page, Selection, count, tell_page, waiting};
use crate::visible::visible;

/// How often it is asked whether the replicas have published what was written.
const POLL: Duration = Duration::from_millis(200);

/// How long the event that is next may stay the same before the command gives up.
const STANDSTILL_MAX: Duration = Duration::from_secs(60);

/// What upstream is told
#[derive(Debug, Subcommand)]
pub(super) enum EventsCommand {
    Replay(ReplayArgs),
}

/// Tell upstream again how jobs ended and what their verifications became, from the books
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker events replay --since 2026-11-01T12:00:00Z\n  kyc-worker events replay --since 2026-01-01 --customer a1ca120d-9fef-46b8-affb-818f91848b2e\n\nFor consumers that lost their queue. The replicas publish what is told again, between the events of\njobs that end meanwhile: one of them must run with OUTCOME_EVENTS=true. An event has the same id as\nwhen it was told first, so a consumer that deduplicates is told nothing twice. A job's last end is\ntold, and not one that a person has undone since; nothing is told of a job in motion, nor of what ends\nafter the command began.\n\nExit codes: 0 the broker has all of it, 1 not all; the message says where to go on."
)]
pub(super) struct ReplayArgs {
    /// Jobs that ended from then on, or whose verification did, such as 2026-11-01 or 2026-11-01T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: OffsetDateTime,
    /// Only this customer's jobs
    #[arg(long, value_name = "ID")]
    customer: Option<Uuid>,
    #[command(flatten)]
    desk: DeskArgs,
}

#[derive(Serialize)]
struct Told {
    jobs: u64,
    events: u64,
    /// Where it did not come to its end: the time to begin with again.
    #[serde(with = "time::serde::rfc3339::option")]
    go_on_since: Option<OffsetDateTime>,
}

pub(super) async fn run(command: &EventsCommand) -> anyhow::Result<ExitCode> {
    let EventsCommand::Replay(args) = command;
    let pool = args.desk.open().await?;
    let standing = waiting(&pool).await?;
    anyhow::ensure!(
        standing.is_published,
        "no replica publishes events; start one with OUTCOME_EVENTS=true, and run this command again then"
    );
    let selection = Selection { since: args.since, until: standing.now, customer_id: args.customer };
    let progress = progress(count(&pool, selection).await?, "jobs")?;
    let mut signals = Signals::new()?;
    let mut told = Told { jobs: 0, events: 0, go_on_since: None };
    let mut cursor = None;
    loop {
        let page = tokio::select! {
            page = publish_page(&pool, selection, cursor) => page,
            _ = signals.next() => Err(anyhow::anyhow!("interrupted")),
        };
        let page = match page {
            Ok(Some(page)) => page,
            Ok(None) => break,
            Err(failure) => {
                // Jobs are told of in the order in which they ended: what is left ended no sooner.
                told.go_on_since = Some(cursor.map_or(args.since, |(ended_at, _)| ended_at));
                progress.finish_and_clear();
                eprintln!("kyc-worker: {}", visible(&format!("{failure:#}")));
                break;
            }
        };
        told.jobs += page.jobs;
        told.events += page.events;
        cursor = page.cursor;
        progress.inc(page.jobs);
    }
    progress.finish_and_clear();
    args.desk.print(&told, print_told)?;
    Ok(if told.go_on_since.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_told(Told { jobs, events, go_on_since }: &Told) {
    println!("told again: {events} events of {jobs} jobs");
    if let Some(since) = go_on_since {
        println!("go on with --since {}", since.format(&Rfc3339).unwrap_or_default());
    }
}

/// Writes the events of the next jobs down, and waits until they are published: so events of jobs that end
/// meanwhile wait for no more than that.
async fn publish_page(pool: &PgPool, selection: Selection, cursor: Cursor) -> anyhow::Result<Option<Page>> {
    let page = tell_page(pool, selection, cursor).await?;
    if let Some(page) = &page {
        wait_until_published(pool, page.last_id).await?;
    }
    Ok(page)
}

/// Waits until no event up to this number is left.
async fn wait_until_published(pool: &PgPool, last_id: i64) -> anyhow::Result<()> {
    let (mut seen, mut seen_at) = (None, Instant::now());
    loop {
        let first_id = waiting(pool).await?.first_id;
        if first_id.is_none_or(|first_id| first_id > last_id) {
            return Ok(());
        }
        if first_id != seen {
            (seen, seen_at) = (first_id, Instant::now());
        }
        anyhow::ensure!(
            seen_at.elapsed() < STANDSTILL_MAX,
            "no event was published for {STANDSTILL_MAX:?}; they are kept, see docs/operations.md, \"Events are not published\""
        );
        sleep(POLL).await;
    }
}
