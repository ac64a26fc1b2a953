//! `kyc-worker show`: the story of one job.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use time::OffsetDateTime;
use uuid::Uuid;

use super::database::DeskArgs;
use super::terminal::{table, time_text};
use crate::desk::archive::{archived_in, archived_story};
use crate::desk::budget::{CustomerStory, customer_story};
use crate::desk::interventions::InterventionView;
use crate::desk::story::{AttemptView, JobStory, ObservationView, SubmissionView, job_story};
use crate::domain::outcome::EXPIRED;
use crate::domain::state::Purpose;
use crate::domain::verdict::Rejection;
use crate::visible::visible;

/// Show what happened to one job, or where a customer's updates went
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker show 3f0c2a9e-5f0e-4f57-9d0c-2d6f7c1f1a11\n  kyc-worker show --customer 4e6f1b20-a73c-11ec-b909-0242ac120002\n  kyc-worker show 3f0c2a9e-5f0e-4f57-9d0c-2d6f7c1f1a11 --archive /srv/kyc-archive"
)]
pub(super) struct ShowArgs {
    /// The job
    #[arg(required_unless_present = "customer", conflicts_with = "customer")]
    job_id: Option<Uuid>,
    /// A customer in place of a job: their updates and their jobs
    #[arg(long, value_name = "ID")]
    customer: Option<Uuid>,
    /// The directory of the archive, where the job may be there
    #[arg(long, value_name = "DIRECTORY")]
    archive: Option<PathBuf>,
    #[command(flatten)]
    desk: DeskArgs,
}

pub(super) async fn run(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let pool = args.desk.open().await?;
    match (args.job_id, args.customer) {
        (_, Some(customer_id)) => {
            let story = customer_story(&pool, customer_id, None).await?;
            let story = story.ok_or_else(|| unknown_customer(customer_id))?;
            args.desk.print(&story, print_customer)
        }
        (Some(job_id), None) => {
            let story = match (job_story(&pool, job_id).await?, &args.archive) {
                (Some(story), _) => Some(story),
                (None, Some(path)) => archived_story(&mut *pool.acquire().await?, path, job_id).await?,
                (None, None) => None,
            };
            let Some(story) = story else {
                anyhow::bail!(unknown_job(job_id, archived_in(&mut *pool.acquire().await?, job_id).await?));
            };
            args.desk.print(&story, print_story)
        }
        (None, None) => anyhow::bail!("give a JOB_ID, or --customer ID"),
    }
}

fn unknown_job(job_id: Uuid, archived_in: Option<String>) -> String {
    match archived_in {
        Some(file) => format!("job {job_id} is archived in {file}; --archive DIRECTORY reads it there"),
        None => format!(
            "no job {job_id} is known; is it still in the queue, was it dead-lettered, or is it in the archive \
             (--archive DIRECTORY)?"
        ),
    }
}

fn unknown_customer(customer_id: Uuid) -> anyhow::Error {
    anyhow::anyhow!("nothing is known of customer {customer_id}; are their jobs still in the queue?")
}

fn print_customer(story: &CustomerStory) {
    println!("customer {}", story.customer_id);
    println!("  updates spent or possibly spent here: {}", story.spent.here);
    match &story.budget_set {
        Some(set) => println!(
            "  spent elsewhere: {} (says {}{}, {}: {})",
            story.spent.elsewhere,
            visible(&set.by),
            visible(&set.approved_by.as_ref().map(|by| format!(", approved by {by}")).unwrap_or_default()),
            time_text(set.at),
            visible(&set.note)
        ),
        None => println!("  spent elsewhere: none that we were told of (`kyc-worker budget set` tells us)"),
    }
    if let Some(at) = story.limit_reached_at {
        println!("  {}  the provider said that the customer's updates are used up", time_text(at));
    }
    if !story.files.is_empty() {
        println!("  more of their jobs are archived in {}", visible(&story.files.join(", ")));
    }
    if story.jobs.is_empty() {
        return;
    }
    let mut jobs = table(["job", "state", "reason or verification", "spent"]);
    for job in &story.jobs {
        let SubmissionView { state, reason_code, verification_status, .. } = &job.submission;
        jobs.add_row([
            job.submission.job_id.to_string(),
            state.clone(),
            reason_code.as_ref().or(verification_status.as_ref()).cloned().unwrap_or_default(),
            job.spent.to_string(),
        ]);
    }
    println!("\n{jobs}");
}

fn print_story(story: &JobStory) {
    let JobStory { submission, attempts, observations, spent, .. } = story;
    let SubmissionView { state, reason, .. } = submission;
    println!("job {}: {state}", submission.job_id);
    if let Some(reason) = reason {
        println!("  {}", visible(reason));
    }
    let customer = submission.customer_id.map(|id| id.to_string());
    let number = submission.document_number_last4.as_ref().map(|last4| format!("…{last4}"));
    let why =
        submission.expiring_link.as_ref().map_or_else(String::new, |link| format!(", before {link} ends"));
    let expiry = submission.expires_at.map(|at| format!("{}{why}", time_text(at)));
    let facts = [
        ("archived in", story.archived_in.clone()),
        ("customer", customer),
        ("document", submission.document_type.clone()),
        ("number", number),
        ("correlation", submission.correlation_id.clone()),
        ("trace", submission.trace_id.clone()),
        ("reason code", submission.reason_code.clone()),
        ("saved", saved(submission).map(str::to_owned)),
        ("waiting for", submission.waiting_for.clone()),
        ("due", submission.due_at.map(time_text)),
        ("expires", expiry),
        ("evidence", submission.evidence.clone()),
        ("reference", submission.provider_reference.clone()),
        ("verification", submission.verification_status.clone()),
        ("failure", submission.failure_reason.clone()),
        ("payload", submission.has_payload.then(|| "kept, sealed".to_owned())),
        ("budget", spent.map(|spent| format!("{} spent here, {} elsewhere", spent.here, spent.elsewhere))),
    ];
    for (name, value) in facts {
        if let Some(value) = value {
            println!("  {name:<13}{}", visible(&value));
        }
    }
    for other in &story.unordered_with {
        println!("  nothing orders it before or after {other}; have its publisher give requested_at");
    }
    if story.is_cut {
        println!("  older attempts or reads are left out: the newest of each kind are here");
    }
    println!();
    let mut events: Vec<(OffsetDateTime, String)> = Vec::new();
    events.extend(submission.requested_at.map(|at| (at, "requested".to_owned())));
    let times = if submission.deliveries == 1 { "once" } else { "more than once" };
    let received = format!("received (delivered {times}: {})", submission.deliveries);
    events.push((submission.received_at, received));
    attempts.iter().for_each(|attempt| describe_attempt(attempt, &mut events));
    events.extend(observations.iter().map(|observation| (observation.at, describe_observation(observation))));
    events.extend(
        story.interventions.iter().map(|intervention| (intervention.at, describe_intervention(intervention))),
    );
    events.extend(story.dead_letters.iter().map(|letter| {
        (
            letter.received_at,
            format!("a delivery was dead-lettered, {}: {}", letter.reason_code, letter.reason),
        )
    }));
    events.sort_by_key(|(at, _)| *at);
    for (at, event) in events {
        println!("{}  {}", time_text(at), visible(&event));
    }
    if let Some(ended_at) = submission.ended_at {
        println!("{}  ended {state}", time_text(ended_at));
    }
}

/// What a job that ended before a send did not cost its customer.
fn saved(submission: &SubmissionView) -> Option<&'static str> {
    let code = submission.reason_code.as_deref()?;
    let is_by_check = Rejection::CODES_OF_CHECKS.contains(&code);
    let is_by_link = code == EXPIRED && submission.expiring_link.is_some();
    (is_by_check || is_by_link).then_some("one update: nothing was sent")
}

fn describe_attempt(attempt: &AttemptView, events: &mut Vec<(OffsetDateTime, String)>) {
    events.push((attempt.begun_at, format!("attempt {} begun by {}", attempt.number, attempt.worker)));
    let (Some(ended_at), Some(verdict)) = (attempt.ended_at, &attempt.verdict) else { return };
    let details = [
        attempt.detail.clone(),
        attempt.http_status.map(|status| format!("HTTP {status}")),
        attempt.duration_ms.map(|ms| format!("{ms} ms")),
        attempt.provider_message.as_ref().map(|message| format!("the provider said: {message}")),
        attempt.error.clone(),
        attempt.checked.as_ref().map(|checked| format!("checked before: {}", checked.replace(',', ", "))),
        attempt.late_verdict.as_ref().map(|late| format!("known later: {late}")),
    ];
    let details: Vec<String> = details.into_iter().flatten().collect();
    events.push((ended_at, format!("attempt {} ended {verdict} ({})", attempt.number, details.join(", "))));
}

fn describe_intervention(intervention: &InterventionView) -> String {
    let InterventionView { action, by, note, detail, approved_by, .. } = intervention;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let approved = approved_by.as_ref().map(|by| format!(", approved by {by}")).unwrap_or_default();
    format!("{action} by {}{approved} ({}): {}", text(by), text(detail), text(note))
}

fn describe_observation(observation: &ObservationView) -> String {
    if observation.purpose == Purpose::Configuration.name() {
        return match (&observation.document_types, &observation.error) {
            (Some(types), _) => format!("the provider lists {} for the customer", types.replace(',', ", ")),
            (None, error) => {
                let error = error.clone().unwrap_or_default();
                format!("the provider did not tell which document types the customer may use: {error}")
            }
        };
    }
    let said = match (&observation.status, &observation.failure_reason, &observation.error) {
        (Some(status), Some(reason), _) => format!("the customer read {status} ({reason})"),
        (Some(status), None, _) => format!("the customer read {status}"),
        (None, _, error) => format!("a read of the customer failed: {}", error.clone().unwrap_or_default()),
    };
    match &observation.conclusion {
        Some(conclusion) => format!("{said}: {conclusion}"),
        None => format!("{said} ({})", observation.purpose),
    }
}
