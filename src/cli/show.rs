//! `kyc-worker show`: the story of one job.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use uuid::Uuid;

use super::database::DeskArgs;
use super::terminal::{table, time_text};
use crate::desk::archive::{archived_in, archived_story};
use crate::desk::budget::{CustomerStory, customer_story};
use crate::desk::story::{Event, JobStory, SubmissionView, job_story};
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
    let JobStory { submission, spent, .. } = story;
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
        ("saved", submission.saved().map(str::to_owned)),
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
    for Event { at, what } in story.timeline() {
        println!("{}  {}", time_text(at), visible(&what));
    }
}
