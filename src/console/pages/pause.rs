//! All the work, paused and resumed.

use axum::response::Response;
use serde::Deserialize;

use super::ask::{AskPage, Field, Reason, is_proposed, propose_it, refused_by_database};
use crate::console::answer::{Failure, see_other};
use crate::console::visit::{Filled, Visit};
use crate::desk::interventions::{ResumeError, pause, resume, version_of_pause};
use crate::desk::proposals::Deed;
use crate::desk::version::Version;

#[derive(Debug, Deserialize)]
pub(in crate::console) struct ResumeForm {
    version: String,
    #[serde(flatten)]
    reason: Reason,
}

pub(in crate::console) async fn ask_pause(visit: Visit) -> Result<Response, Failure> {
    let mut effects = vec![
        "No replica takes a job or begins an attempt, from five seconds later on. What is in flight finishes, and reads go on.".to_owned(),
        "Jobs wait in the queue; nothing is lost.".to_owned(),
    ];
    if let Some(pause) = &visit.standing().pause {
        effects.insert(
            0,
            format!(
                "The work is paused already, by {}: {}. This renews it with your reason.",
                pause.by, pause.note
            ),
        );
    }
    let page = AskPage {
        frame: visit.frame("", "Pause all the work"),
        what: "Pause all the work".to_owned(),
        effects,
        refusal: None,
        is_proposal: false,
        spends: false,
        fields: Vec::new(),
        path: "/pause".to_owned(),
        back: "/".to_owned(),
    };
    visit.page(&page)
}

pub(in crate::console) async fn do_pause(
    visit: Visit,
    Filled(reason): Filled<Reason>,
) -> Result<Response, Failure> {
    let attribution = reason.attribution(&visit)?;
    pause(&visit.console.actions, attribution).await.map_err(refused_by_database)?;
    see_other("/")
}

pub(in crate::console) async fn ask_resume(visit: Visit) -> Result<Response, Failure> {
    let paused = visit.standing().pause.clone();
    let page = AskPage {
        frame: visit.frame("", "Resume the work"),
        what: "Resume the work".to_owned(),
        effects: paused
            .iter()
            .map(|pause| format!("This ends the pause by {}: {}.", pause.by, pause.note))
            .chain(["Replicas take jobs again within five seconds.".to_owned()])
            .collect(),
        refusal: paused.is_none().then(|| "the work is not paused".to_owned()),
        is_proposal: is_proposed(&visit, "resume").await?,
        spends: false,
        fields: vec![Field { name: "version", value: version_of_pause(paused.as_ref()).as_str().to_owned() }],
        path: "/resume".to_owned(),
        back: "/".to_owned(),
    };
    visit.page(&page)
}

pub(in crate::console) async fn do_resume(
    visit: Visit,
    Filled(form): Filled<ResumeForm>,
) -> Result<Response, Failure> {
    let attribution = form.reason.attribution(&visit)?;
    let expected = Version::from(form.version);
    if form.reason.is_proposed(&visit, "resume").await? {
        return propose_it(&visit, &Deed::Resume, Some(&expected), attribution).await;
    }
    let (by, note) = (Some(attribution.by), Some(attribution.note));
    match resume(&visit.console.actions, by, note, Some(&expected)).await {
        Ok(Some(_)) => see_other("/"),
        Ok(None) => Err(Failure::Stale("The work is not paused any more.".to_owned())),
        Err(error @ ResumeError::Changed(_)) => Err(Failure::Stale(format!("{error}."))),
        Err(ResumeError::Database(error)) => Err(refused_by_database(error)),
    }
}
