//! What people do to a job: have it sent again, or settle what no read could.

use std::time::Duration;

use axum::extract::Path;
use axum::response::Response;
use serde::Deserialize;

use super::ask::{AskPage, Field, Reason, is_proposed, propose_it, refused_by_database};
use crate::console::answer::{Failure, see_other};
use crate::console::visit::{Asked, Filled, Visit};
use crate::desk::proposals::Deed;
use crate::desk::replay::{Intent, Refusal, replay};
use crate::desk::resolve::{Finding, ResolveError, preview, resolve};
use crate::desk::version::Version;

#[derive(Debug, Deserialize)]
pub(in crate::console) struct ReplayForm {
    version: String,
    #[serde(flatten)]
    reason: Reason,
}

pub(in crate::console) async fn ask_replay(
    visit: Visit,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    let job_id = visit.id_before(&id)?;
    let would = replay(&visit.console.pages, job_id, visit.console.rules, Intent::DryRun, None).await?;
    visit.record("/jobs/{id}/replay", Some(job_id), would.customer_id).await?;
    let page = AskPage {
        frame: visit.frame("", "Send a job again"),
        what: format!("Send job {job_id} again"),
        effects: vec![
            format!("The job was {}; it is sent at once.", would.was.as_deref().unwrap_or("not there")),
            format!(
                "It may spend 1 of the customer's {} updates left.",
                would.updates_left.unwrap_or_default()
            ),
        ],
        refusal: would.refusal.map(|refusal| refusal.to_string()),
        is_proposal: is_proposed(&visit, "replay").await?,
        spends: true,
        fields: would
            .version
            .into_iter()
            .map(|version| Field { name: "version", value: version.as_str().to_owned() })
            .collect(),
        path: format!("/jobs/{job_id}/replay"),
        back: format!("/jobs/{job_id}"),
    };
    visit.page(&page)
}

pub(in crate::console) async fn do_replay(
    visit: Visit,
    Path(id): Path<String>,
    Filled(form): Filled<ReplayForm>,
) -> Result<Response, Failure> {
    let job_id = visit.id_before(&id)?;
    let attribution = form.reason.attribution(&visit)?;
    let expected = Version::from(form.version);
    if form.reason.is_proposed(&visit, "replay").await? {
        return propose_it(&visit, &Deed::Replay { job_id }, Some(&expected), attribution).await;
    }
    let intent = Intent::Replay { attribution, delay: Duration::ZERO };
    let done = replay(&visit.console.actions, job_id, visit.console.rules, intent, Some(&expected)).await;
    match done.map_err(refused_by_database)?.refusal {
        Some(Refusal::Changed(changed)) => Err(Failure::Stale(format!("Job {job_id} {changed}."))),
        Some(refusal) => Err(Failure::Refused(refusal.to_string())),
        None => see_other(&format!("/jobs/{job_id}")),
    }
}

#[derive(Debug, Deserialize)]
pub(in crate::console) struct ResolveQuery {
    #[serde(rename = "as")]
    finding: String,
}

#[derive(Debug, Deserialize)]
pub(in crate::console) struct ResolveForm {
    #[serde(rename = "as")]
    finding: String,
    version: String,
    #[serde(flatten)]
    reason: Reason,
}

fn finding(text: &str) -> Result<Finding, Failure> {
    let unfit = || Failure::Unfit("A job is settled as accepted, rejected or not-applied.".to_owned());
    Finding::ALL.into_iter().find(|finding| finding.name() == text).ok_or_else(unfit)
}

pub(in crate::console) async fn ask_resolve(
    visit: Visit,
    Path(id): Path<String>,
    Asked(query): Asked<ResolveQuery>,
) -> Result<Response, Failure> {
    let (job_id, finding) = (visit.id_before(&id)?, finding(&query.finding)?);
    let would = preview(&visit.console.pages, job_id).await?;
    let would = would.ok_or_else(|| Failure::Unknown(format!("No job {job_id} is known.")))?;
    visit.record("/jobs/{id}/resolve", Some(job_id), would.customer_id).await?;
    let decision =
        would.findings.into_iter().find(|each| each.finding == finding).ok_or(Failure::NotFound)?;
    let page = AskPage {
        frame: visit.frame("", "Settle a job"),
        what: format!("Settle job {job_id} as {}", finding.name()),
        effects: vec![
            format!("The job was {}; it ends as {}.", would.was, decision.state),
            format!("It {}.", decision.effect),
            format!(
                "{} of the customer's updates count as spent by this job, whatever is found; {} other jobs of theirs wait.",
                would.counted, would.waiting
            ),
            "Nothing is sent by it.".to_owned(),
        ],
        refusal: decision.refusal,
        is_proposal: is_proposed(&visit, "resolve").await?,
        spends: true,
        fields: vec![
            Field { name: "as", value: finding.name().to_owned() },
            Field { name: "version", value: would.version.as_str().to_owned() },
        ],
        path: format!("/jobs/{job_id}/resolve"),
        back: format!("/review/{job_id}"),
    };
    visit.page(&page)
}

pub(in crate::console) async fn do_resolve(
    visit: Visit,
    Path(id): Path<String>,
    Filled(form): Filled<ResolveForm>,
) -> Result<Response, Failure> {
    let (job_id, finding) = (visit.id_before(&id)?, finding(&form.finding)?);
    let attribution = form.reason.attribution(&visit)?;
    let expected = Version::from(form.version);
    if form.reason.is_proposed(&visit, "resolve").await? {
        return propose_it(&visit, &Deed::Resolve { job_id, finding }, Some(&expected), attribution).await;
    }
    match resolve(&visit.console.actions, job_id, finding, Some(&expected), attribution).await {
        Ok(_) => see_other(&format!("/jobs/{job_id}")),
        Err(error @ ResolveError::Changed { .. }) => Err(Failure::Stale(error.to_string())),
        Err(ResolveError::Database(error)) => Err(refused_by_database(error)),
        Err(refusal) => Err(Failure::Refused(refusal.to_string())),
    }
}
