//! `kyc-worker report`: where the work stands.

use std::process::ExitCode;

use super::{ReportArgs, print, table, time_text};
use crate::journal::interventions::Pause;
use crate::journal::replicas::WorkerView;
use crate::journal::report::{Report, report};

pub(super) async fn run(args: &ReportArgs) -> anyhow::Result<ExitCode> {
    let pool = super::open_database(&args.database).await?;
    print(args.json, &report(&pool).await?, print_report)
}

fn print_report(report: &Report) {
    if let Some(Pause { at, by, note }) = &report.pause {
        println!("PAUSED by {by} at {}: {note}\n", time_text(*at));
    }
    print_workers(&report.workers);

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

fn print_workers(workers: &[WorkerView]) {
    if workers.is_empty() {
        println!("no worker is running\n");
        return;
    }
    let mut lines = table(["worker", "version", "in flight", "seen", "intake"]);
    for worker in workers {
        let intake = match (worker.is_alive, worker.paused_for.as_slice()) {
            (false, _) => "DEAD".to_owned(),
            (true, []) => "open".to_owned(),
            (true, reasons) => format!("paused: {}", reasons.join(", ")),
        };
        lines.add_row([
            worker.name.clone(),
            worker.version.clone(),
            worker.in_flight.to_string(),
            time_text(worker.seen_at),
            intake,
        ]);
    }
    println!("{lines}\n");
}
