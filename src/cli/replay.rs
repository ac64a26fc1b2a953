//! `kyc-worker replay`: sends ended jobs again, and says before what that would do.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use uuid::Uuid;

use super::attribution::MaybeAttributionArgs;
use super::database::DeskArgs;
use super::states::state_parser;
use crate::config::ReadBackSettings;
use crate::desk::replay::{Intent, Replay, ReplayRules, Selection, find_ended, replay};
use crate::domain::state::State;

/// Send ended jobs again; says what that would do, and does it with --yes
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker replay --state exhausted --reason attempts\n  kyc-worker replay --state exhausted --reason attempts --rate 5 --yes --by ana --note 'the provider is mended'\n\nRefuses jobs that may have been applied, and customers whose updates are spent."
)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(true).args(["job_ids", "state", "reason"]))]
pub(super) struct ReplayArgs {
    /// The jobs
    #[arg(value_name = "JOB_ID", conflicts_with_all = ["state", "reason"])]
    job_ids: Vec<Uuid>,
    /// In place of jobs: all that ended so
    #[arg(long, value_parser = state_parser(State::is_replayable))]
    state: Option<State>,
    /// In place of jobs: all that ended for this reason
    #[arg(long, value_name = "CODE")]
    reason: Option<String>,
    /// How many jobs at most, those asked for first before the others
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// How many of them become due in a second
    #[arg(long, default_value_t = 10.0, value_parser = parse_rate)]
    rate: f64,
    /// Do it; without this, only say what would be done
    #[arg(long, requires = "by", requires = "note")]
    yes: bool,
    #[command(flatten)]
    attribution: MaybeAttributionArgs,
    #[command(flatten)]
    desk: DeskArgs,
    /// What a customer may spend.
    #[command(flatten)]
    read_back: ReadBackSettings,
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.001..=1000.0).contains(&rate) => Ok(rate),
        _ => Err("must be a number from 0.001 to 1000".to_owned()),
    }
}

/// What decides whether a job may be sent again.
pub(super) fn rules_of(settings: &ReadBackSettings) -> ReplayRules {
    ReplayRules {
        customer_updates: settings.customer_update_limit,
        read_back_window: settings.read_back_window,
    }
}

#[derive(Serialize)]
struct Report {
    /// Whether nothing was done.
    is_dry_run: bool,
    /// How many jobs are sent again; each may spend one update.
    replayed: usize,
    /// How many are not.
    refused: usize,
    jobs: Vec<Replay>,
}

pub(super) async fn run(args: &ReplayArgs) -> anyhow::Result<ExitCode> {
    let pool = args.desk.open().await?;
    let job_ids = if args.job_ids.is_empty() {
        let selection = Selection {
            state: args.state,
            reason_code: args.reason.as_deref(),
            limit: i64::from(args.limit),
        };
        find_ended(&pool, &selection).await?
    } else {
        args.job_ids.clone()
    };
    let rules = rules_of(&args.read_back);
    let mut jobs = Vec::with_capacity(job_ids.len());
    let (mut replayed, mut failure) = (0_u32, None);
    for job_id in job_ids {
        let delay = Duration::from_secs_f64(f64::from(replayed) / args.rate);
        let intent = match args.attribution.attribution() {
            Some(attribution) if args.yes => Intent::Replay { attribution, delay },
            _ => Intent::DryRun,
        };
        match replay(&pool, job_id, rules, intent, None).await {
            Ok(job) => {
                replayed += u32::from(job.refusal.is_none());
                jobs.push(job);
            }
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    let refused = jobs.len() - replayed as usize;
    let report = Report { is_dry_run: !args.yes, replayed: replayed as usize, refused, jobs };
    // What was done is told, whatever ended it.
    args.desk.print(&report, print_report)?;
    if let Some(error) = failure {
        return Err(error.into());
    }
    let is_whole = report.refused == 0 || args.job_ids.is_empty();
    Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_report(report: &Report) {
    for Replay { job_id, was, updates_left, refusal, .. } in &report.jobs {
        let was = was.as_deref().unwrap_or("not there");
        match refusal {
            Some(refusal) => println!("{job_id}  {was}\n  refused: {refusal}"),
            None => println!(
                "{job_id}  {was}\n  {}; may spend 1 of the customer's {} updates left",
                if report.is_dry_run { "would be sent again" } else { "is sent again" },
                updates_left.unwrap_or_default()
            ),
        }
    }
    if !report.jobs.is_empty() {
        println!();
    }
    match (report.is_dry_run, report.replayed) {
        (true, 0) => println!("nothing to replay; refused {}", report.refused),
        (true, count) => println!(
            "would replay {count}, which may spend {count} updates; refused {}. Nothing was done: add --yes --by NAME --note TEXT",
            report.refused
        ),
        (false, count) => println!("replayed {count}; refused {}", report.refused),
    }
}
