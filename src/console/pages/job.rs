//! `/jobs/ID`: where a job stands, in plain words first, and what happened to it.

use askama::Template;
use axum::extract::Path;
use axum::response::Response;
use serde::Serialize;

use super::boxes::{UpdateBox, boxes_of};
use crate::console::answer::{Failure, Page};
use crate::console::visit::{Frame, Visit};
use crate::desk::archive::archived_in;
use crate::desk::replay::{Intent, replay};
use crate::desk::story::{Event, JobStory, SubmissionView, job_story};
use crate::domain::permission::Permission;
use crate::domain::plain_words::{Facts, PlainWords, plain_words};
use crate::domain::state::State;

#[derive(Template, Serialize)]
#[template(path = "job.html")]
struct JobPage {
    #[serde(skip)]
    frame: Frame,
    words: PlainWords,
    #[serde(flatten)]
    story: JobStory,
    timeline: Vec<Event>,
    /// The customer's updates.
    updates: Vec<UpdateBox>,
    trace_url: Option<String>,
    log_url: Option<String>,
    /// Whether the visitor may have it sent again, as the rules have it now.
    may_replay: bool,
    /// Why it may not be sent again, of a job that ended so that it might.
    not_again: Option<String>,
}

impl Page for JobPage {
    const TABLES: &'static [(&'static str, &'static str)] = &[
        ("timeline", "/timeline"),
        ("attempts", "/attempts"),
        ("observations", "/observations"),
        ("interventions", "/interventions"),
    ];
}

pub(in crate::console) async fn show(visit: Visit, Path(id): Path<String>) -> Result<Response, Failure> {
    let job_id = visit.id(&id)?;
    let console = &visit.console;
    let Some(story) = job_story(&console.pages, job_id).await? else {
        let file = archived_in(&mut *console.pages.acquire().await?, job_id).await?;
        return Err(Failure::Unknown(match file {
            Some(file) => format!(
                "Job {job_id} is archived in {file}: `kyc-worker show {job_id} --archive DIRECTORY` reads it there."
            ),
            None => {
                format!(
                    "No job {job_id} is known. Is it still in the queue, was it dead-lettered, or is it archived?"
                )
            }
        }));
    };
    visit.record("/jobs/{id}", Some(job_id), story.submission.customer_id).await?;
    let submission = &story.submission;
    let is_replayable = submission.has_payload && submission.state.parse().is_ok_and(State::is_replayable);
    let again = match is_replayable {
        true => Some(replay(&console.pages, job_id, console.rules, Intent::DryRun, None).await?),
        false => None,
    };
    let page = JobPage {
        frame: visit.frame("", format!("Job {job_id}")),
        words: words_of(submission)?,
        may_replay: visit.visitor.may(Permission::Replay)
            && again.as_ref().is_some_and(|would| would.refusal.is_none()),
        not_again: again.and_then(|would| would.refusal).map(|refusal| refusal.to_string()),
        timeline: story.timeline(),
        updates: boxes_of(&console.pages, story.submission.customer_id, console.rules.customer_updates)
            .await?,
        trace_url: submission
            .trace_id
            .as_ref()
            .and_then(|id| Some(console.checked.trace_url.as_ref()?.with(id))),
        log_url: console.checked.log_url.as_ref().map(|url| url.with(&job_id.to_string())),
        story,
    };
    visit.page(&page)
}

/// Where a job stands, in plain words.
pub(in crate::console) fn words_of(submission: &SubmissionView) -> Result<PlainWords, Failure> {
    Ok(plain_words(&Facts {
        state: submission.state.parse()?,
        waiting_for: submission.waiting_for.as_deref().map(str::parse).transpose()?,
        reason_code: submission.reason_code.as_deref(),
        due_at: submission.due_at,
        claimed_until: submission.claimed_until,
        verification_status: submission.verification_status.as_deref(),
        verification_due_at: submission.verification_due_at,
        has_payload: submission.has_payload,
    }))
}
