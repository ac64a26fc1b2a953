//! `kyc-worker list`: jobs by state, reason, customer and time.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use time::OffsetDateTime;
use uuid::Uuid;

use super::database::DeskArgs;
use super::states::state_parser;
use super::terminal::{age_text, table};
use crate::config::parse_duration;
use crate::desk::list::{Filter, ListedJob, list};
use crate::domain::state::State;

/// How far back jobs are looked for where that is not said: a search through years would take
/// longer than any statement may.
const SINCE: Duration = Duration::from_secs(30 * 24 * 3600);

/// List jobs by state, reason, customer and time
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker list --state needs_review\n  kyc-worker list --overdue\n  kyc-worker list --reason update_limit_exceeded --since 7d --json | jq -r '.[].job_id'"
)]
pub(super) struct ListArgs {
    /// Only jobs in this state
    #[arg(long, value_parser = state_parser(|_| true))]
    state: Option<State>,
    /// Only jobs with this reason code
    #[arg(long, value_name = "CODE")]
    reason: Option<String>,
    /// Only jobs of this customer
    #[arg(long, value_name = "ID")]
    customer: Option<Uuid>,
    /// Only accepted jobs whose verification is overdue and still followed
    #[arg(long)]
    overdue: bool,
    /// Only jobs received within the last 1h, 7d, … [default: 30d; of a customer, or of a state
    /// that is not an end or waits for a person, all]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    since: Option<Duration>,
    /// How many at most, those received last first
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    #[command(flatten)]
    desk: DeskArgs,
}

pub(super) async fn run(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let pool = args.desk.open().await?;
    // States that jobs do not stay in, so that few are in them, however many there ever were.
    let is_open = args.state.is_some_and(|state| state.is_in_motion() || state == State::NeedsReview);
    let since = args.since.or((args.customer.is_none() && !is_open).then_some(SINCE));
    let filter = Filter {
        state: args.state,
        reason_code: args.reason.as_deref(),
        customer_id: args.customer,
        is_overdue: args.overdue,
        since: since.map(|since| OffsetDateTime::now_utc() - since),
        limit: i64::from(args.limit),
    };
    let jobs = list(&pool, &filter).await?;
    let is_cut = jobs.len() == args.limit as usize;
    args.desk.print(&jobs, print_jobs)?;
    if is_cut && !args.desk.json {
        eprintln!("the first {} only; --limit shows more, `kyc-worker export` all", args.limit);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_jobs(jobs: &Vec<ListedJob>) {
    if jobs.is_empty() {
        println!("no job matches");
        return;
    }
    let now = OffsetDateTime::now_utc();
    let mut lines = table(["job", "state", "reason", "age"]);
    for job in jobs {
        let reason =
            job.reason_code.as_ref().or(job.waiting_for.as_ref()).or(job.verification_status.as_ref());
        lines.add_row([
            job.job_id.to_string(),
            job.state.clone(),
            reason.cloned().unwrap_or_default(),
            age_text(now - job.received_at),
        ]);
    }
    println!("{lines}");
}
