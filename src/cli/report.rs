//! `kyc-worker report`: where the work stands.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use futures_util::future::join_all;
use serde::Serialize;
use tokio::time::timeout;

use super::database::open_database_at;
use super::terminal::{print, table, time_text};
use crate::broker::Broker;
use crate::config::{
    BrokerSettings, DatabaseSettings, ReadBackSettings, Secret, SettingFault, parse_duration,
};
use crate::desk::report::{
    EventsWaiting, Flow, LostCommits, OpenByAge, OpenWork, ProposalsWaiting, ReasonCount, Report, StateCount,
    Total, Verifications, WorkerCounts, report,
};
use crate::desk::story::AttemptView;
use crate::domain::state::State;
use crate::instance;
use crate::journal::failover::RUNBOOK;
use crate::journal::name_of;
use crate::journal::pause::Pause;
use crate::journal::replicas::WorkerView;
use crate::visible::visible;

/// Show where the work stands: who works, what came and went, what is open and what went wrong
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker report --since 1h\n  kyc-worker report --json | jq .states\n  kyc-worker report --database-url-file /run/secrets/one --database-url-file /run/secrets/two\n\nEach --database-url, or --database-url-file, is an installation of its own; several hosts\nin one URL are one installation. Of several there is a report each, and what they come\nto. One that does not answer is named with its error, and the exit code is 1."
)]
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

/// Each of several installations is asked for so long; they are asked at the same time.
const INSTALLATION_TIMEOUT: Duration = Duration::from_secs(30);

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

/// What is known of several installations.
#[derive(Serialize)]
struct Several {
    installations: Vec<Installation>,
    total: Total,
}

/// One of several installations: its report, or why there is none.
#[derive(Serialize)]
struct Installation {
    /// Its host, port and name.
    database: String,
    report: Option<Report>,
    error: Option<String>,
}

pub(super) async fn run(args: &ReportArgs) -> anyhow::Result<ExitCode> {
    let urls = args.database.urls()?;
    let [url] = urls.as_slice() else { return run_for_several(args, &urls).await };
    let report = read(args, url).await?;
    let counting = timeout(BROKER_TIMEOUT, count_queued(&args.broker)).await;
    let (jobs_queued, dead_letters_queued) = counting.ok().and_then(Result::ok).unwrap_or_default();
    print(args.json, &Answer { report, jobs_queued, dead_letters_queued }, print_answer)
}

async fn read(args: &ReportArgs, url: &Secret) -> anyhow::Result<Report> {
    let pool = open_database_at(&args.database, url).await?;
    Ok(report(&pool, args.since, args.read_back.customer_update_limit).await?)
}

/// The broker is not asked: its settings name the queues of one installation.
async fn run_for_several(args: &ReportArgs, urls: &[Secret]) -> anyhow::Result<ExitCode> {
    let databases = urls.iter().map(name_of).collect::<anyhow::Result<Vec<_>>>()?;
    for (at, database) in databases.iter().enumerate() {
        if databases[..at].contains(database) {
            let reason =
                format!("names {database} twice, and its jobs would count twice; name each database once");
            return Err(SettingFault::new("DATABASE_URL", reason).into());
        }
    }
    let answers = join_all(urls.iter().map(|url| timeout(INSTALLATION_TIMEOUT, read(args, url)))).await;
    let late = || {
        anyhow::anyhow!(
            "DATABASE_URL: no report within {INSTALLATION_TIMEOUT:?}; ask for this database alone, which has no such limit"
        )
    };
    let installations: Vec<Installation> = databases
        .into_iter()
        .zip(answers)
        .map(|(database, answer)| match answer.unwrap_or_else(|_elapsed| Err(late())) {
            Ok(report) => Installation { database, report: Some(report), error: None },
            Err(error) => Installation { database, report: None, error: Some(format!("{error:#}")) },
        })
        .collect();
    let reports: Vec<_> =
        installations.iter().filter_map(|one| Some((one.database.as_str(), one.report.as_ref()?))).collect();
    let missing = installations.iter().filter(|one| one.report.is_none());
    let missing: Vec<_> = missing.map(|one| one.database.clone()).collect();
    let is_whole = missing.is_empty();
    let total = Total::of(&reports, missing);
    let code = print(args.json, &Several { installations, total }, print_several)?;
    Ok(if is_whole { code } else { ExitCode::FAILURE })
}

/// How many messages are in the queue of jobs, and how many in that of dead letters.
async fn count_queued(settings: &BrokerSettings) -> anyhow::Result<(Option<u32>, Option<u32>)> {
    let broker = Broker::new(settings, &settings.url()?, "kyc-worker report")?;
    let (jobs, dead_letters) = tokio::join!(broker.count_ready(), broker.count_dead_letters());
    Ok((jobs.ok(), dead_letters.ok()))
}

fn print_answer(Answer { report, jobs_queued, dead_letters_queued }: &Answer) {
    print_report(report, Some((*jobs_queued, *dead_letters_queued)));
}

/// Prints a report, with what the queues of jobs and of dead letters hold where the broker was asked.
fn print_report(report: &Report, queued: Option<(Option<u32>, Option<u32>)>) {
    if let Some(Pause { at, by, note }) = &report.pause {
        println!("PAUSED by {} at {}: {}\n", visible(by), time_text(*at), visible(note));
    }
    print_workers(&report.workers);
    if let Some((jobs, _)) = queued {
        print_queued("the queue of jobs", jobs);
    }
    println!(
        "since {}: received {}, ended {}",
        time_text(report.since),
        report.flow.received,
        report.flow.ended
    );
    print_spared(&report.flow);
    print_latency(&report.flow);

    print_states(&report.states);
    print_open(report);
    print_dead_letters(&report.dead_lettered);
    if let Some((_, dead_letters)) = queued {
        print_queued("the dead-letter queue", dead_letters);
    }
    print_lost_commits(&report.lost_commits);
    print_errors(&report.last_errors);
}

fn print_queued(queue: &str, queued: Option<u32>) {
    match queued {
        Some(queued) => println!("in {queue}: {queued}\n"),
        None => println!("in {queue}: unknown, the broker could not be asked\n"),
    }
}

fn print_spared(flow: &Flow) {
    if flow.spared > 0 {
        println!(
            "updates not spent, since a link was to end too soon or a check refused the job: {}",
            flow.spared
        );
    }
}

fn print_several(Several { installations, total }: &Several) {
    for Installation { database, report, error } in installations {
        println!("== {} ==\n", visible(database));
        match report {
            Some(report) => print_report(report, None),
            None => println!("MISSING: {}", visible(error.as_deref().unwrap_or_default())),
        }
        println!();
    }
    print_total(installations, total);
}

fn print_total(installations: &[Installation], total: &Total) {
    let missing = match total.missing.len() {
        0 => String::new(),
        missing => format!(", {missing} of them MISSING"),
    };
    println!("== total of {} installations{missing} ==\n", installations.len());
    let mut lines = table(["database", "workers", "in flight", "received", "ended", "for a person"]);
    let row =
        |database: &str, is_paused: bool, workers: &WorkerCounts, flow: &Flow, states: &[StateCount]| {
            let for_a_person = states.iter().filter(|row| row.state == State::NeedsReview.name());
            let dead = if workers.dead > 0 { format!(", {} DEAD", workers.dead) } else { String::new() };
            let paused = if is_paused { ", PAUSED" } else { "" };
            [
                database.to_owned(),
                format!("{}{dead}{paused}", workers.alive),
                workers.in_flight.to_string(),
                flow.received.to_string(),
                flow.ended.to_string(),
                for_a_person.map(|row| row.count).sum::<i64>().to_string(),
            ]
        };
    for Installation { database, report, .. } in installations {
        match report {
            Some(report) => {
                let workers = WorkerCounts::of(&report.workers);
                lines.add_row(row(database, report.pause.is_some(), &workers, &report.flow, &report.states));
            }
            None => lines.add_row([database.clone(), "MISSING".to_owned()]),
        }
    }
    lines.add_row(row("total", false, &total.workers, &total.flow, &total.states));
    println!("{lines}");
    print_spared(&total.flow);
    print_states(&total.states);
    for (what, open) in [
        ("oldest open", &total.oldest_open),
        ("oldest unknown", &total.oldest_unknown),
        ("oldest for a person", &total.oldest_needs_review),
    ] {
        if let Some(open) = open {
            let at = time_text(open.work.received_at);
            println!("{what}: {}, received {at}, in {}", open.work.job_id, visible(&open.database));
        }
    }
    print_waiting(&total.verifications, &total.events_waiting, &total.proposals);
    print_customers(total.customers_at_limit, total.unordered_pairs);
    print_ages(&total.open_by_age);
    print_dead_letters(&total.dead_lettered);
    let lost = &total.lost_commits;
    if lost.restored + lost.missing > 0 {
        println!(
            "jobs of which a failover lost commits: {} written again, {} for a person",
            lost.restored, lost.missing
        );
    }
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
    print_waiting(&report.verifications, &report.events_waiting, &report.proposals);
    print_customers(report.customers_at_limit, report.unordered_pairs);
    print_ages(&report.open_by_age);
}

fn print_waiting(verifications: &Verifications, events: &EventsWaiting, proposals: &ProposalsWaiting) {
    if let Some(since) = verifications.oldest_since {
        println!(
            "in verification: {}, the oldest since {}; overdue: {}",
            verifications.running,
            time_text(since),
            verifications.overdue
        );
    }
    if let Some(since) = events.oldest_since {
        println!(
            "outcome events that are not published: {}, the oldest since {}",
            events.count,
            time_text(since)
        );
    }
    if let Some(since) = proposals.oldest_since {
        println!(
            "proposals that wait for a second person: {}, the oldest since {}; see `kyc-worker proposals`",
            proposals.count,
            time_text(since)
        );
    }
}

fn print_customers(at_limit: i64, unordered_pairs: i64) {
    println!("customers at their limit, of those served: {at_limit}\n");
    if unordered_pairs > 0 {
        println!(
            "pairs of a customer's jobs that nothing orders: {unordered_pairs}; have their publisher give requested_at\n"
        );
    }
}

fn print_ages(open_by_age: &[OpenByAge]) {
    if open_by_age.is_empty() {
        return;
    }
    let mut ages = table(["open, by age", "< 1 min", "< 10 min", "< 1 h", "< 1 d", "older"]);
    for OpenByAge { state, under_1m, under_10m, under_1h, under_1d, older } in open_by_age {
        let counts = [under_1m, under_10m, under_1h, under_1d, older].map(|count| count.to_string());
        ages.add_row([vec![state.clone()], counts.to_vec()].concat());
    }
    println!("{ages}\n");
}

fn print_dead_letters(dead_lettered: &[ReasonCount]) {
    if dead_lettered.is_empty() {
        return;
    }
    let mut letters = table(["dead-lettered", "count"]);
    for row in dead_lettered {
        letters.add_row([row.reason_code.clone(), row.count.to_string()]);
    }
    println!("{letters}\n");
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
