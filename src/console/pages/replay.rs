//! `/replay`: ended jobs that may be sent again, and what that would do; at most a hundred at once.

use std::collections::HashSet;
use std::time::Duration;

use askama::Template;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::ask::{Reason, is_proposed, mode, refused_by_database};
use crate::console::answer::{Failure, Page, html};
use crate::console::visit::{Asked, Filled, Frame, Visit};
use crate::desk::proposals::{Deed, ProposeError, propose};
use crate::desk::replay::{Intent, Replay, Selection, find_ended, foresee, replay};
use crate::desk::version::Version;
use crate::domain::permission::Permission;
use crate::domain::state::State;

/// How many jobs one form sends again. The command takes more.
const JOBS_MAX: i64 = 100;

/// How many of them become due in a second.
const JOBS_PER_SECOND: f64 = 10.0;

#[derive(Debug, Default, Deserialize)]
pub(in crate::console) struct Wanted {
    #[serde(default)]
    state: String,
    #[serde(default)]
    reason: String,
}

#[derive(Template, Serialize)]
#[template(path = "replay.html")]
struct ReplayPage {
    #[serde(skip)]
    frame: Frame,
    state: String,
    reason: String,
    /// Those that would be sent again, and those that would not.
    jobs: Vec<Replay>,
    /// How many would be sent, each of which may spend an update.
    sendable: usize,
    is_cut: bool,
    is_proposal: bool,
    may_act: bool,
}

impl ReplayPage {
    fn mode(&self) -> &'static str {
        mode(self.is_proposal)
    }
}

impl Page for ReplayPage {
    const TABLES: &'static [(&'static str, &'static str)] = &[("jobs", "/jobs")];
}

pub(in crate::console) async fn show(visit: Visit, Asked(asked): Asked<Wanted>) -> Result<Response, Failure> {
    let state = match asked.state.as_str() {
        "" => None,
        name => Some(
            name.parse::<State>()
                .ok()
                .filter(|state| state.is_replayable())
                .ok_or_else(|| Failure::Unfit("A state is exhausted or needs_review.".to_owned()))?,
        ),
    };
    let reason_code = (!asked.reason.is_empty()).then_some(asked.reason.as_str());
    let console = &visit.console;
    let selection = Selection { state, reason_code, limit: JOBS_MAX + 1 };
    let mut found = find_ended(&console.pages, &selection).await?;
    let is_cut = i64::try_from(found.len()).is_ok_and(|count| count > JOBS_MAX);
    found.truncate(usize::try_from(JOBS_MAX).unwrap_or_default());
    let jobs = foresee(&console.pages, &found, console.rules).await?;
    if visit.is_file() {
        visit.record_list("/replay", jobs.iter().map(|job| (job.job_id, job.customer_id)).collect()).await?;
    }
    let page = ReplayPage {
        frame: visit.frame("/replay", "Send jobs again"),
        sendable: jobs.iter().filter(|job| job.refusal.is_none()).count(),
        is_proposal: is_proposed(&visit, "replay").await?,
        may_act: visit.visitor.may(Permission::Replay),
        state: asked.state,
        reason: asked.reason,
        jobs,
        is_cut,
    };
    visit.page(&page)
}

#[derive(Debug, Deserialize)]
pub(in crate::console) struct ReplayForm {
    /// Each job with what it was: `job_id version`, a line each.
    jobs: String,
    #[serde(flatten)]
    reason: Reason,
}

/// What became of each job.
#[derive(Template, Serialize)]
#[template(path = "replayed.html")]
struct ReplayedPage {
    #[serde(skip)]
    frame: Frame,
    is_proposal: bool,
    done: Vec<Uuid>,
    refused: Vec<(Uuid, String)>,
}

pub(in crate::console) async fn act(
    visit: Visit,
    Filled(form): Filled<ReplayForm>,
) -> Result<Response, Failure> {
    let attribution = form.reason.attribution(&visit)?;
    let unfit = || Failure::Unfit("The form names jobs that are none.".to_owned());
    let mut lines: Vec<(Uuid, Version)> = form
        .jobs
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            let (job_id, version) = line.trim().split_once(' ').ok_or_else(unfit)?;
            Ok((job_id.parse().map_err(|_| unfit())?, Version::from(version.to_owned())))
        })
        .collect::<Result<_, Failure>>()?;
    let mut seen = HashSet::new();
    lines.retain(|(job_id, _)| seen.insert(*job_id));
    if i64::try_from(lines.len()).is_ok_and(|count| count > JOBS_MAX) {
        return Err(Failure::Unfit(format!("At most {JOBS_MAX} jobs are sent again at once.")));
    }
    let console = &visit.console;
    let is_proposal = form.reason.is_proposed(&visit, "replay").await?;
    let (mut done, mut refused) = (Vec::new(), Vec::new());
    for (job_id, version) in lines {
        let refusal = if is_proposal {
            let deed = Deed::Replay { job_id };
            let proposed = propose(&console.actions, &deed, console.rules, Some(&version), attribution).await;
            proposed.err().map(|error| match error {
                ProposeError::Database(error) => refused_by_database(error).why(),
                refusal => refusal.to_string(),
            })
        } else {
            #[expect(clippy::cast_precision_loss, reason = "a hundred at most")]
            let delay = Duration::from_secs_f64(done.len() as f64 / JOBS_PER_SECOND);
            let intent = Intent::Replay { attribution, delay };
            match replay(&console.actions, job_id, console.rules, intent, Some(&version)).await {
                Ok(replayed) => replayed.refusal.map(|refusal| refusal.to_string()),
                // Of this job alone: those before it are on their way.
                Err(error) => Some(refused_by_database(error).why()),
            }
        };
        match refusal {
            Some(why) => refused.push((job_id, why)),
            None => done.push(job_id),
        }
    }
    let page = ReplayedPage { frame: visit.frame("/replay", "Sent again"), is_proposal, done, refused };
    html(StatusCode::OK, &page)
}
