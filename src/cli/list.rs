//! `kyc-worker list`: jobs by state, reason, customer and time.

use std::process::ExitCode;

use time::OffsetDateTime;

use super::{ListArgs, age_text, open_database, print, table};
use crate::journal::list::{Filter, ListedJob, list};

pub(super) async fn run(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let pool = open_database(&args.database).await?;
    let filter = Filter {
        state: args.state.as_deref(),
        reason_code: args.reason.as_deref(),
        customer_id: args.customer,
        since: args.since.map(|since| OffsetDateTime::now_utc() - since),
        limit: i64::from(args.limit),
    };
    let jobs = list(&pool, &filter).await?;
    let is_cut = jobs.len() == args.limit as usize;
    print(args.json, &jobs, print_jobs)?;
    if is_cut && !args.json {
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
