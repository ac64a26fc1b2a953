//! `kyc-worker show`: the story of one job.

use std::process::ExitCode;

use super::{ShowArgs, time_text};
use crate::journal::report::{AttemptView, JobStory, SubmissionView, job_story};
use crate::journal::{check_schema, connect};

pub(super) async fn run(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let pool = connect(&args.database, &args.database.url()?).await?;
    check_schema(&pool).await?;
    let Some(story) = job_story(&pool, args.job_id).await? else {
        anyhow::bail!("no job {} is known; is it still in the queue, or was it dead-lettered?", args.job_id);
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&story)?);
    } else {
        print_story(&story);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_story(JobStory { submission, attempts }: &JobStory) {
    let SubmissionView { state, reason, .. } = submission;
    println!("job {}: {state}", submission.job_id);
    if let Some(reason) = reason {
        println!("  {reason}");
    }
    let customer = submission.customer_id.map(|id| id.to_string());
    let number = submission.document_number_last4.as_ref().map(|last4| format!("…{last4}"));
    let facts = [
        ("customer", customer),
        ("document", submission.document_type.clone()),
        ("number", number),
        ("correlation", submission.correlation_id.clone()),
        ("reason code", submission.reason_code.clone()),
        ("waiting for", submission.waiting_for.clone()),
        ("due", submission.due_at.map(time_text)),
        ("reference", submission.provider_reference.clone()),
        ("verification", submission.verification_status.clone()),
        ("failure", submission.failure_reason.clone()),
        ("payload", submission.has_payload.then(|| "kept, sealed".to_owned())),
    ];
    for (name, value) in facts {
        if let Some(value) = value {
            println!("  {name:<13}{value}");
        }
    }
    println!();
    if let Some(requested_at) = submission.requested_at {
        println!("{}  requested", time_text(requested_at));
    }
    let times = if submission.deliveries == 1 { "once" } else { "more than once" };
    println!(
        "{}  received (delivered {times}: {})",
        time_text(submission.received_at),
        submission.deliveries
    );
    for attempt in attempts {
        print_attempt(attempt);
    }
    if let Some(ended_at) = submission.ended_at {
        println!("{}  ended {state}", time_text(ended_at));
    }
}

fn print_attempt(attempt: &AttemptView) {
    println!("{}  attempt {} begun by {}", time_text(attempt.begun_at), attempt.number, attempt.worker);
    let (Some(ended_at), Some(verdict)) = (attempt.ended_at, &attempt.verdict) else {
        return;
    };
    let details = [
        attempt.detail.clone(),
        attempt.http_status.map(|status| format!("HTTP {status}")),
        attempt.duration_ms.map(|ms| format!("{ms} ms")),
        attempt.provider_message.as_ref().map(|message| format!("the provider said: {message}")),
        attempt.error.clone(),
    ];
    let details: Vec<String> = details.into_iter().flatten().collect();
    println!("{}  attempt {} ended {verdict} ({})", time_text(ended_at), attempt.number, details.join(", "));
}
