//! `kyc-worker report`: where the work stands.

use std::process::ExitCode;

use super::{ReportArgs, table, time_text};
use crate::journal::report::{Report, report};
use crate::journal::{check_schema, connect};

pub(super) async fn run(args: &ReportArgs) -> anyhow::Result<ExitCode> {
    let pool = connect(&args.database, &args.database.url()?).await?;
    check_schema(&pool).await?;
    let report = report(&pool).await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_report(&report);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_report(report: &Report) {
    let mut states = table(["state", "reason", "jobs"]);
    for row in &report.states {
        let reason = row.reason_code.clone().unwrap_or_default();
        states.add_row([row.state.clone(), reason, row.count.to_string()]);
    }
    println!("{states}\n");

    match &report.oldest_open {
        Some(open) => println!(
            "oldest open: {} ({}), received {}\n",
            open.job_id,
            open.state,
            time_text(open.received_at)
        ),
        None => println!("nothing is open\n"),
    }

    if !report.dead_lettered.is_empty() {
        let mut letters = table(["dead letters", "count"]);
        for row in &report.dead_lettered {
            letters.add_row([row.reason_code.clone(), row.count.to_string()]);
        }
        println!("{letters}\n");
    }

    if report.last_errors.is_empty() {
        println!("no attempt has gone wrong");
        return;
    }
    let mut errors = table(["last errors", "job", "attempt", "verdict", "HTTP", "what"]);
    for attempt in &report.last_errors {
        let what = attempt.provider_message.as_ref().or(attempt.error.as_ref()).or(attempt.detail.as_ref());
        errors.add_row([
            attempt.ended_at.map(time_text).unwrap_or_default(),
            attempt.job_id.to_string(),
            attempt.number.to_string(),
            attempt.verdict.clone().unwrap_or_default(),
            attempt.http_status.map(|status| status.to_string()).unwrap_or_default(),
            what.cloned().unwrap_or_default(),
        ]);
    }
    println!("{errors}");
}
