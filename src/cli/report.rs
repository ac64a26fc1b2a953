//! `kyc-worker report`: where the work stands.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::time::timeout;

use super::database::open_database;
use super::terminal::{print, table, time_text};
use crate::broker::Broker;
use crate::config::{BrokerSettings, DatabaseSettings, ReadBackSettings, parse_duration};
use crate::desk::report::{Flow, LostCommits, OpenByAge, OpenWork, Report, StateCount, report};
use crate::desk::story::AttemptView;
use crate::instance;
use crate::journal::failover::RUNBOOK;
use crate::journal::pause::Pause;
use crate::journal::replicas::WorkerView;
use crate::visible::visible;

/// Show where the work stands: who works, what came and went, what is open and what went wrong
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  kyc-worker report --since 1h\n  kyc-worker report --json | jq .states")]
pub(super) struct ReportArgs {
    /// How far back what came and went is counted
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = parse_duration)]
    since: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Asked how much is queued.
    #[command(flatten)]
    broker: BrokerSettings,
    /// What a customer may spend.
    #[command(flatten)]
    read_back: ReadBackSettings,
    #[command(flatten)]
    database: DatabaseSettings,
}

/// A report does not wait longer for a broker that is away.
const BROKER_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Serialize)]
struct Answer {
    #[serde(flatten)]
    report: Report,
    /// How many messages wait in the queue of jobs; none where the broker could not be asked.
    jobs_queued: Option<u32>,
    /// What the dead-letter queue holds, those included that the broker dead-lettered by itself
    /// and that have no row; none where the broker could not be asked.
    dead_letters_queued: Option<u32>,
}

pub(super) async fn run(args: &ReportArgs) -> anyhow::Result<ExitCode> {
    let pool = open_database(&args.database).await?;
    let report = report(&pool, args.since, args.read_back.customer_update_limit).await?;
    let counting = timeout(BROKER_TIMEOUT, count_queued(&args.broker)).await;
    let (jobs_queued, dead_letters_queued) = counting.ok().and_then(Result::ok).unwrap_or_default();
    print(args.json, &Answer { report, jobs_queued, dead_letters_queued }, print_answer)
}

/// How many messages are in the queue of jobs, and how many in that of dead letters.
async fn count_queued(settings: &BrokerSettings) -> anyhow::Result<(Option<u32>, Option<u32>)> {
    let broker = Broker::new(settings, &settings.url()?, "kyc-worker report")?;
    let (jobs, dead_letters) = tokio::join!(broker.count_ready(), broker.count_dead_letters());
    Ok((jobs.ok(), dead_letters.ok()))
}

fn print_answer(Answer { report, jobs_queued, dead_letters_queued }: &Answer) {
    if let Some(Pause { at, by, note }) = &report.pause {
        println!("PAUSED by {} at {}: {}\n", visible(by), time_text(*at), visible(note));
    }
    print_workers(&report.workers);
    match jobs_queued {
        Some(queued) => println!("in the queue of jobs: {queued}\n"),
        None => println!("in the queue of jobs: unknown, the broker could not be asked\n"),
    }
    println!(
        "since {}: received {}, ended {}",
        time_text(report.since),
        report.flow.received,
        report.flow.ended
    );
    if report.flow.spared > 0 {
        println!(
            "updates not spent, since a link was to end too soon or a check refused the job: {}",
            report.flow.spared
        );
    }
    print_latency(&report.flow);

    print_states(&report.states);
    print_open(report);
    print_dead_letters(report, *dead_letters_queued);
    print_lost_commits(&report.lost_commits);
    print_errors(&report.last_errors);
}

fn print_states(states: &[StateCount]) {
    println!();
    if states.is_empty() {
        return;
    }
    let mut lines = table(["state", "reason", "jobs"]);
    for row in states {
        let reason = row.reason_code.clone().unwrap_or_default();
        lines.add_row([row.state.clone(), reason, row.count.to_string()]);
    }
    println!("{lines}\n");
}

fn print_workers(workers: &[WorkerView]) {
    if workers.is_empty() {
        println!("no worker is running\n");
        return;
    }
    let mut lines = table(["worker", "process", "version", "in flight", "seen", "intake"]);
    for worker in workers {
        let intake = match (worker.is_alive, worker.paused_for.as_slice()) {
            (false, _) => "DEAD".to_owned(),
            (true, []) => "open".to_owned(),
            (true, reasons) => format!("paused: {}", reasons.join(", ")),
        };
        lines.add_row([
            worker.name.clone(),
            instance::place(&worker.instance).to_owned(),
            worker.version.clone(),
            worker.in_flight.to_string(),
            time_text(worker.seen_at),
            intake,
        ]);
    }
    println!("{lines}\n");
}

fn print_latency(flow: &Flow) {
    let percentiles = [
        ("50 %", flow.p50_ms),
        ("90 %", flow.p90_ms),
        ("95 %", flow.p95_ms),
        ("99 %", flow.p99_ms),
        ("max", flow.max_ms),
    ];
    let known: Vec<String> = percentiles
        .into_iter()
        .filter_map(|(part, ms)| Some(format!("{part} {}", seconds_text(ms?))))
        .collect();
    if !known.is_empty() {
        println!("from receipt to accepted or rejected:\n  {}", known.join(", "));
    }
}

fn seconds_text(ms: f64) -> String {
    match ms {
        ms if ms < 10_000.0 => format!("{:.2} s", ms / 1000.0),
        ms if ms < 600_000.0 => format!("{:.0} s", ms / 1000.0),
        ms => format!("{:.0} min", ms / 60_000.0),
    }
}

fn print_open(report: &Report) {
    match &report.oldest_open {
        Some(open) => println!(
            "oldest open: {} ({}), received {}",
            open.job_id,
            open.state,
            time_text(open.received_at)
        ),
        None => println!("nothing is open"),
    }
    let oldest = |what: &str, work: &Option<OpenWork>| {
        if let Some(OpenWork { job_id, received_at, .. }) = work {
            println!("{what}: {job_id}, received {}", time_text(*received_at));
        }
    };
    oldest("oldest unknown", &report.oldest_unknown);
    oldest("oldest for a person", &report.oldest_needs_review);
    let verifications = &report.verifications;
    if let Some(since) = verifications.oldest_since {
        println!(
            "in verification: {}, the oldest since {}; overdue: {}",
            verifications.running,
            time_text(since),
            verifications.overdue
        );
    }
    let events = &report.events_waiting;
    if let Some(since) = events.oldest_since {
        println!(
            "outcome events that are not published: {}, the oldest since {}",
            events.count,
            time_text(since)
        );
    }
    let proposals = &report.proposals;
    if let Some(since) = proposals.oldest_since {
        println!(
            "proposals that wait for a second person: {}, the oldest since {}; see `kyc-worker proposals`",
            proposals.count,
            time_text(since)
        );
    }
    println!("customers at their limit, of those served: {}\n", report.customers_at_limit);
    if report.unordered_pairs > 0 {
        println!(
            "pairs of a customer's jobs that nothing orders: {}; have their publisher give requested_at\n",
            report.unordered_pairs
        );
    }
    if report.open_by_age.is_empty() {
        return;
    }
    let mut ages = table(["open, by age", "< 1 min", "< 10 min", "< 1 h", "< 1 d", "older"]);
    for OpenByAge { state, under_1m, under_10m, under_1h, under_1d, older } in &report.open_by_age {
        let counts = [under_1m, under_10m, under_1h, under_1d, older].map(|count| count.to_string());
        ages.add_row([vec![state.clone()], counts.to_vec()].concat());
    }
    println!("{ages}\n");
}

fn print_dead_letters(report: &Report, queued: Option<u32>) {
    if !report.dead_lettered.is_empty() {
        let mut letters = table(["dead-lettered", "count"]);
        for row in &report.dead_lettered {
            letters.add_row([row.reason_code.clone(), row.count.to_string()]);
        }
        println!("{letters}\n");
    }
    match queued {
        Some(queued) => println!("in the dead-letter queue: {queued}\n"),
        None => println!("in the dead-letter queue: unknown, the broker could not be asked\n"),
    }
}

fn print_lost_commits(lost: &LostCommits) {
    if lost.jobs.is_empty() {
        return;
    }
    println!(
        "jobs of which a failover lost commits: {} written again, {} for a person; see {RUNBOOK}",
        lost.restored, lost.missing
    );
    let mut lines = table(["job", "lost", "attempt", "verdict", "worker", "noticed", "written again"]);
    for job in &lost.jobs {
        lines.add_row([
            job.job_id.to_string(),
            job.lost.clone(),
            job.attempt.map(|number| number.to_string()).unwrap_or_default(),
            job.verdict.clone().unwrap_or_default(),
            job.worker.clone(),
            time_text(job.noticed_at),
            if job.is_restored { "yes" } else { "NO" }.to_owned(),
        ]);
    }
    println!("{lines}\n");
}

fn print_errors(errors: &[AttemptView]) {
    if errors.is_empty() {
        println!("no attempt has gone wrong");
        return;
    }
    println!("last attempts that went wrong:");
    for attempt in errors {
        let what = attempt.provider_message.as_ref().or(attempt.error.as_ref()).or(attempt.detail.as_ref());
        let status = attempt.http_status.map(|status| format!(" HTTP {status}")).unwrap_or_default();
        println!(
            "{}  {} #{}\n  {}{status}: {}",
            attempt.ended_at.map(time_text).unwrap_or_default(),
            attempt.job_id,
            attempt.number,
            attempt.verdict.as_deref().unwrap_or_default(),
            visible(what.map(String::as_str).unwrap_or_default()),
        );
    }
}
