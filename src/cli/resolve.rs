//! `kyc-worker resolve`: a person settles what no read could.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use uuid::Uuid;

use super::attribution::AttributionArgs;
use super::database::DeskArgs;
use crate::desk::list::{Filter, list};
use crate::desk::resolve::{Finding, ResolveError, Resolved, resolve};
use crate::domain::state::State;

/// Settle jobs in needs_review with what a person found out; sends nothing
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker resolve 3f0c2a9e-5f0e-4f57-9d0c-2d6f7c1f1a11 --as accepted --by ana --note 'seen in the dashboard'\n  kyc-worker resolve --reason newer_fate_unknown --as rejected --by ana --note 'the newer ones were accepted'\n  kyc-worker resolve --reason newer_fate_unknown --as rejected --yes --by ana --note 'the newer ones were accepted'"
)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["job_ids", "reason"]))]
pub(super) struct ResolveArgs {
    /// The jobs
    #[arg(value_name = "JOB_ID")]
    job_ids: Vec<Uuid>,
    /// In place of jobs: all that wait for a person for this reason, once --yes is given
    #[arg(long, value_name = "CODE")]
    reason: Option<String>,
    /// How many of those at most
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// What was found out
    #[arg(long = "as", value_name = "FINDING")]
    finding: Finding,
    /// Settle those of --reason; without this, only name them
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    attribution: AttributionArgs,
    #[command(flatten)]
    desk: DeskArgs,
}

#[derive(Serialize)]
struct Report {
    /// Whether nothing was done.
    is_dry_run: bool,
    /// The jobs that would be settled.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    found: Vec<Uuid>,
    resolved: Vec<Resolved>,
    refused: Vec<Refused>,
}

/// A job that stays as it is.
#[derive(Serialize)]
struct Refused {
    job_id: Uuid,
    why: String,
}

pub(super) async fn run(args: &ResolveArgs) -> anyhow::Result<ExitCode> {
    let pool = args.desk.open().await?;
    let mut job_ids = args.job_ids.clone();
    if let Some(reason) = &args.reason {
        let filter = Filter {
            state: Some(State::NeedsReview),
            reason_code: Some(reason),
            customer_id: None,
            is_overdue: false,
            since: None,
            limit: i64::from(args.limit),
        };
        job_ids.extend(list(&pool, &filter).await?.into_iter().map(|job| job.job_id));
    }
    let is_dry_run = args.reason.is_some() && !args.yes;
    let mut report = Report { is_dry_run, found: Vec::new(), resolved: Vec::new(), refused: Vec::new() };
    let mut failure = None;
    if is_dry_run {
        report.found = job_ids;
    } else {
        for job_id in job_ids {
            match resolve(&pool, job_id, args.finding, None, args.attribution.attribution()).await {
                Ok(resolved) => report.resolved.push(resolved),
                Err(error @ ResolveError::Database(_)) => {
                    failure = Some(error);
                    break;
                }
                Err(refusal) => report.refused.push(Refused { job_id, why: refusal.to_string() }),
            }
        }
    }
    // What was done is told, whatever ended it.
    args.desk.print(&report, print_report)?;
    if let Some(error) = failure {
        return Err(error.into());
    }
    Ok(if report.refused.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_report(report: &Report) {
    for job_id in &report.found {
        println!("{job_id}  would be settled");
    }
    for Resolved { job_id, was, state, .. } in &report.resolved {
        println!("job {job_id} was {was}, and is {state} now");
        if *state == State::Exhausted.name() {
            println!("send it again with `kyc-worker replay {job_id} --yes --by NAME --note TEXT`");
        }
    }
    for Refused { job_id, why } in &report.refused {
        println!("{job_id}  refused: {why}");
    }
    if !report.is_dry_run && report.resolved.len() + report.refused.len() != 1 {
        println!("settled {}; refused {}", report.resolved.len(), report.refused.len());
    }
    if report.is_dry_run {
        println!("would settle {}. Nothing was done: add --yes", report.found.len());
    }
}
