//! `kyc-worker pause` and `kyc-worker resume`: one row, which every replica obeys.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::attribution::{AttributionArgs, MaybeAttributionArgs};
use super::database::DeskArgs;
use super::terminal::time_text;
use crate::desk::interventions::{pause as pause_work, resume as resume_work};
use crate::journal::pause::{Pause, current_pause};
use crate::journal::replicas::workers;

/// Pause all the work, on every replica: nothing new is begun, what is in flight finishes
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker pause --by ana --note 'the provider does maintenance until 14:00'\n\nEvery replica obeys within 5 s; one that cannot hear of it begins nothing more after 10 s. Reads that settle an unknown outcome go on: they spend nothing."
)]
pub(super) struct PauseArgs {
    #[command(flatten)]
    attribution: AttributionArgs,
    #[command(flatten)]
    desk: DeskArgs,
}

/// End the pause
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  kyc-worker resume --by ana --note 'maintenance is over'")]
pub(super) struct ResumeArgs {
    #[command(flatten)]
    attribution: MaybeAttributionArgs,
    #[command(flatten)]
    desk: DeskArgs,
}

/// What a pause, or its end, came to.
#[derive(Serialize)]
struct Answer {
    /// The pause that holds now.
    pause: Option<Pause>,
    /// The pause that held before.
    before: Option<Pause>,
    /// The replicas that are alive.
    workers: Vec<String>,
}

pub(super) async fn pause(args: &PauseArgs) -> anyhow::Result<ExitCode> {
    let pool = args.desk.open().await?;
    let before = current_pause(&pool).await?;
    pause_work(&pool, args.attribution.attribution()).await?;
    let answer = Answer { pause: current_pause(&pool).await?, before, workers: alive(&pool).await? };
    args.desk.print(&answer, |answer| {
        if let Some(Pause { at, by, note }) = &answer.before {
            println!("was paused already, by {by} at {}: {note}", time_text(*at));
        }
        println!("paused; replicas that obey within 5 s: {}", count(&answer.workers));
    })
}

pub(super) async fn resume(args: &ResumeArgs) -> anyhow::Result<ExitCode> {
    let pool = args.desk.open().await?;
    let (by, note) = (args.attribution.by.as_deref(), args.attribution.note.as_deref());
    let before = resume_work(&pool, by, note, None).await?;
    let answer = Answer { pause: current_pause(&pool).await?, before, workers: alive(&pool).await? };
    args.desk.print(&answer, |answer| match &answer.before {
        Some(Pause { at, by, note }) => println!(
            "resumed; replicas that obey within 5 s: {}. It was paused by {by} at {}: {note}",
            count(&answer.workers),
            time_text(*at)
        ),
        None => println!("was not paused"),
    })
}

async fn alive(pool: &sqlx::PgPool) -> sqlx::Result<Vec<String>> {
    let workers = workers(pool).await?;
    Ok(workers.into_iter().filter(|worker| worker.is_alive).map(|worker| worker.name).collect())
}

fn count(names: &[String]) -> String {
    match names {
        [] => "none is running".to_owned(),
        names => format!("{} ({})", names.len(), names.join(", ")),
    }
}
