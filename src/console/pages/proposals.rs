//! `/proposals`: what one person proposed, for another to approve.

use askama::Template;
use axum::extract::Path;
use axum::response::Response;
use serde::Serialize;

use super::ask::Reason;
use crate::console::answer::{Failure, Page, see_other};
use crate::console::visit::{Filled, Frame, Visit};
use crate::desk::proposals::{DecideError, Pending, Proposal, approve, decline, pending, proposal};
use crate::domain::permission::{Role, role_of};

#[derive(Template, Serialize)]
#[template(path = "proposals.html")]
struct ProposalsPage {
    #[serde(skip)]
    frame: Frame,
    pending: Vec<Pending>,
}

/// How many are shown, the oldest.
const PROPOSALS_MAX: i64 = 100;

impl Page for ProposalsPage {
    const TABLES: &'static [(&'static str, &'static str)] = &[("proposals", "/pending")];
}

pub(in crate::console) async fn list(visit: Visit) -> Result<Response, Failure> {
    let pending = pending(&visit.console.pages, visit.console.rules, Some(PROPOSALS_MAX)).await?;
    if visit.is_file() {
        let of_jobs =
            pending.iter().filter_map(|each| Some((each.proposal.job_id?, each.proposal.customer_id)));
        visit.record_list("/proposals", of_jobs.collect()).await?;
    }
    visit.page(&ProposalsPage { frame: visit.frame("/proposals", "Proposals"), pending })
}

#[derive(Template, Serialize)]
#[template(path = "proposal.html")]
struct ProposalPage {
    #[serde(skip)]
    frame: Frame,
    #[serde(flatten)]
    proposal: Proposal,
    /// What it asks for.
    asks: String,
    /// Of one that waits: what an approval would do now, and why it would be refused.
    effect: Option<String>,
    refusal: Option<String>,
    /// Whether the visitor may approve it, and if not, why.
    may_approve: bool,
    may_decline: bool,
    why_not: Option<String>,
}

impl Page for ProposalPage {
    const TABLES: &'static [(&'static str, &'static str)] = &[];
}

/// Which role approves it.
fn approver(proposal: &Proposal) -> Option<Role> {
    role_of(&proposal.action)
}

/// Why the visitor may not decide on a proposal: it is another role's.
fn is_anothers(visit: &Visit, proposal: &Proposal) -> Option<String> {
    match approver(proposal) {
        Some(role) if visit.visitor.roles.contains(&role) => None,
        Some(role) => Some(format!("It is for whoever is {} to decide on.", role.name())),
        None => Some("Nobody decides on it in the console.".to_owned()),
    }
}

fn is_own(visit: &Visit, proposal: &Proposal) -> bool {
    proposal.proposed_by.trim().to_lowercase() == visit.visitor.name.trim().to_lowercase()
}

/// Why the visitor may not approve it; none if they may.
fn why_not_approve(visit: &Visit, proposal: &Proposal) -> Option<String> {
    let own = is_own(visit, proposal).then(|| "You proposed it: somebody else must approve it.".to_owned());
    own.or_else(|| is_anothers(visit, proposal))
}

/// Why the visitor may not decline it; none if they may. Who proposed it may take it back.
fn why_not_decline(visit: &Visit, proposal: &Proposal) -> Option<String> {
    if is_own(visit, proposal) { None } else { is_anothers(visit, proposal) }
}

async fn known(visit: &Visit, id: i64) -> Result<Pending, Failure> {
    let known = proposal(&visit.console.pages, id, visit.console.rules).await?;
    known.ok_or_else(|| Failure::Unknown(format!("There is no proposal {id}.")))
}

pub(in crate::console) async fn show(visit: Visit, Path(id): Path<String>) -> Result<Response, Failure> {
    let id = visit.number(&id)?;
    let Pending { proposal, asks, effect, refusal } = known(&visit, id).await?;
    if proposal.job_id.is_some() || proposal.customer_id.is_some() {
        visit.record("/proposals/{id}", proposal.job_id, proposal.customer_id).await?;
    }
    let is_open = proposal.decision.is_none();
    let why_not = why_not_approve(&visit, &proposal);
    let page = ProposalPage {
        frame: visit.frame("/proposals", format!("Proposal {id}")),
        asks,
        may_approve: is_open && why_not.is_none(),
        may_decline: is_open && why_not_decline(&visit, &proposal).is_none(),
        why_not,
        effect: is_open.then_some(effect),
        refusal: refusal.filter(|_| is_open),
        proposal,
    };
    visit.page(&page)
}

pub(in crate::console) async fn do_approve(
    visit: Visit,
    Path(id): Path<String>,
    Filled(reason): Filled<Reason>,
) -> Result<Response, Failure> {
    let id = visit.number(&id)?;
    let attribution = reason.attribution(&visit)?;
    let console = &visit.console;
    if let Some(why) = why_not_approve(&visit, &known(&visit, id).await?.proposal) {
        return Err(Failure::Refused(why));
    }
    let done = approve(&console.actions, id, console.rules, attribution).await.map_err(refused)?;
    see_other(&match (done.job_id, done.customer_id) {
        (Some(job_id), _) => format!("/jobs/{job_id}"),
        (None, Some(customer_id)) => format!("/customers/{customer_id}"),
        (None, None) => format!("/proposals/{id}"),
    })
}

pub(in crate::console) async fn do_decline(
    visit: Visit,
    Path(id): Path<String>,
    Filled(reason): Filled<Reason>,
) -> Result<Response, Failure> {
    let id = visit.number(&id)?;
    let attribution = reason.attribution(&visit)?;
    if let Some(why) = why_not_decline(&visit, &known(&visit, id).await?.proposal) {
        return Err(Failure::Refused(why));
    }
    decline(&visit.console.actions, id, attribution).await.map_err(refused)?;
    see_other(&format!("/proposals/{id}"))
}

fn refused(error: DecideError) -> Failure {
    match error {
        DecideError::NotKnown(_) => Failure::Unknown(error.to_string()),
        DecideError::Decided { .. } | DecideError::Void { .. } => Failure::Stale(error.to_string()),
        DecideError::Own { .. } | DecideError::Refused { .. } | DecideError::NotAllowed { .. } => {
            Failure::Refused(error.to_string())
        }
        DecideError::Database(error) => Failure::Database(error),
    }
}
