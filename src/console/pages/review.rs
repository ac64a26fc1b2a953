//! `/review`: the jobs that wait for a person; and for each, what is known, what to compare, and what each
//! decision would do.

use askama::Template;
use axum::extract::Path;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::boxes::{UpdateBox, boxes_of};
use super::job::words_of;
use crate::console::answer::{Failure, Page};
use crate::console::visit::{Asked, Frame, Visit};
use crate::desk::replay::{Intent, Replay, replay};
use crate::desk::resolve::{Preview, preview};
use crate::desk::review::{JobForReview, worklist};
use crate::desk::story::{AttemptView, JobStory, ObservationView, job_story};
use crate::domain::permission::Permission;
use crate::domain::plain_words::PlainWords;
use crate::domain::proof::{Proof, proof_of};
use crate::domain::state::VerdictKind;

/// How many jobs the worklist shows.
const JOBS_MAX: i64 = 100;

#[derive(Debug, Deserialize)]
pub(in crate::console) struct Wanted {
    #[serde(default)]
    reason: String,
}

#[derive(Template, Serialize)]
#[template(path = "worklist.html")]
struct WorklistPage {
    #[serde(skip)]
    frame: Frame,
    reason: String,
    jobs: Vec<JobForReview>,
    is_cut: bool,
    limit: u32,
}

impl Page for WorklistPage {
    const TABLES: &'static [(&'static str, &'static str)] = &[("jobs", "/jobs")];
}

pub(in crate::console) async fn list(visit: Visit, Asked(asked): Asked<Wanted>) -> Result<Response, Failure> {
    let reason = (!asked.reason.is_empty()).then_some(asked.reason.as_str());
    let mut jobs = worklist(&visit.console.pages, reason, JOBS_MAX + 1).await?;
    let is_cut = i64::try_from(jobs.len()).is_ok_and(|count| count > JOBS_MAX);
    jobs.truncate(usize::try_from(JOBS_MAX).unwrap_or_default());
    if visit.is_file() {
        visit.record_list("/review", jobs.iter().map(|job| (job.job_id, job.customer_id)).collect()).await?;
    }
    let page = WorklistPage {
        frame: visit.frame("/review", "Review"),
        limit: visit.console.rules.customer_updates,
        reason: asked.reason,
        jobs,
        is_cut,
    };
    visit.page(&page)
}

/// A read of the customer, with what it proves.
#[derive(Serialize)]
struct ProvedRead {
    #[serde(flatten)]
    read: ObservationView,
    #[serde(flatten)]
    proof: Proof,
}

/// An attempt that may have been applied: what to compare with the provider's books.
#[derive(Serialize)]
struct Unsettled {
    attempt: i32,
    #[serde(with = "time::serde::rfc3339")]
    begun_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    ended_at: Option<OffsetDateTime>,
    what: String,
}

#[derive(Template, Serialize)]
#[template(path = "review.html")]
struct ReviewPage {
    #[serde(skip)]
    frame: Frame,
    words: PlainWords,
    #[serde(flatten)]
    story: JobStory,
    reads: Vec<ProvedRead>,
    unsettled: Vec<Unsettled>,
    updates: Vec<UpdateBox>,
    decisions: Preview,
    /// What sending it again would do.
    again: Replay,
    may_decide: bool,
    may_replay: bool,
}

impl Page for ReviewPage {
    const TABLES: &'static [(&'static str, &'static str)] =
        &[("reads", "/reads"), ("attempts", "/attempts"), ("decisions", "/decisions/findings")];
}

pub(in crate::console) async fn show(visit: Visit, Path(id): Path<String>) -> Result<Response, Failure> {
    let job_id = visit.id(&id)?;
    let console = &visit.console;
    let unknown = || Failure::Unknown(format!("No job {job_id} is known."));
    let mut story = job_story(&console.pages, job_id).await?.ok_or_else(unknown)?;
    let decisions = preview(&console.pages, job_id).await?.ok_or_else(unknown)?;
    let again = replay(&console.pages, job_id, console.rules, Intent::DryRun, None).await?;
    visit.record("/review/{id}", Some(job_id), story.submission.customer_id).await?;
    let reads = std::mem::take(&mut story.observations).into_iter().map(proved).collect::<Result<_, _>>()?;
    let page = ReviewPage {
        frame: visit.frame("/review", format!("Review of job {job_id}")),
        words: words_of(&story.submission)?,
        unsettled: story.attempts.iter().filter_map(unsettled).collect(),
        updates: boxes_of(&console.pages, story.submission.customer_id, console.rules.customer_updates)
            .await?,
        may_decide: visit.visitor.may(Permission::Decide),
        may_replay: visit.visitor.may(Permission::Replay),
        reads,
        decisions,
        again,
        story,
    };
    visit.page(&page)
}

fn proved(read: ObservationView) -> Result<ProvedRead, Failure> {
    let conclusion = read.conclusion.as_deref().map(str::parse).transpose()?;
    Ok(ProvedRead { proof: proof_of(read.purpose.parse()?, read.status.is_some(), conclusion), read })
}

/// What to compare of an attempt; none of one that was certainly not made.
fn unsettled(attempt: &AttemptView) -> Option<Unsettled> {
    let is = |verdict: &Option<String>, kind: VerdictKind| verdict.as_deref() == Some(kind.name());
    let what = match attempt {
        AttemptView { verdict, late_verdict, .. }
            if is(verdict, VerdictKind::Accepted) || is(late_verdict, VerdictKind::Accepted) =>
        {
            "the provider accepted it"
        }
        AttemptView { verdict, .. } if is(verdict, VerdictKind::Unknown) => "it may have been made",
        AttemptView { verdict: None, .. } => "it is open",
        _ => return None,
    };
    let seen = [
        attempt.http_status.map(|status| format!("HTTP {status}")),
        attempt.detail.clone(),
        attempt.provider_message.as_ref().map(|message| format!("the provider said: {message}")),
    ];
    let seen: Vec<String> = seen.into_iter().flatten().collect();
    let what = if seen.is_empty() { what.to_owned() } else { format!("{what} ({})", seen.join(", ")) };
    Some(Unsettled { attempt: attempt.number, begun_at: attempt.begun_at, ended_at: attempt.ended_at, what })
}
