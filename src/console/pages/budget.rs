//! How many updates a customer spent elsewhere, as a person says.

use axum::extract::Path;
use axum::response::Response;
use serde::Deserialize;

use super::ask::{AskPage, Field, Reason, is_proposed, propose_it, refused_by_database};
use crate::console::answer::{Failure, see_other};
use crate::console::visit::{Asked, Filled, Visit};
use crate::desk::budget::{BudgetError, Updates, set_budget, updates};
use crate::desk::proposals::Deed;
use crate::desk::version::Version;

#[derive(Debug, Deserialize)]
pub(in crate::console) struct BudgetQuery {
    used: i32,
}

#[derive(Debug, Deserialize)]
pub(in crate::console) struct BudgetForm {
    used: i32,
    version: String,
    #[serde(flatten)]
    reason: Reason,
}

/// As `kyc-worker budget set` has it.
const USED_MAX: i32 = 1000;

fn check_used(used: i32) -> Result<(), Failure> {
    match (0..=USED_MAX).contains(&used) {
        true => Ok(()),
        false => {
            Err(Failure::Unfit(format!("How many were spent elsewhere is a number from 0 to {USED_MAX}.")))
        }
    }
}

pub(in crate::console) async fn ask(
    visit: Visit,
    Path(id): Path<String>,
    Asked(BudgetQuery { used }): Asked<BudgetQuery>,
) -> Result<Response, Failure> {
    let customer_id = visit.id_before(&id)?;
    check_used(used)?;
    let Updates { spent, limit_reached_at, .. } = updates(&visit.console.pages, customer_id).await?;
    visit.record("/customers/{id}/budget", None, Some(customer_id)).await?;
    let limit = visit.console.rules.customer_updates;
    let left = |elsewhere: u32| limit.saturating_sub(spent.here.saturating_add(elsewhere));
    let used_up = limit_reached_at.map(|_| {
        "The provider has said that this customer's updates are used up, whatever is counted here.".to_owned()
    });
    let page = AskPage {
        frame: visit.frame("", "Set a budget"),
        what: format!("Count {used} updates of customer {customer_id} as spent elsewhere"),
        effects: vec![
            format!(
                "{} are counted as spent elsewhere now, and {} as spent, or possibly spent, here.",
                spent.elsewhere, spent.here
            ),
            format!(
                "Of {limit} updates, {} are left by that now, and {} then.",
                left(spent.elsewhere),
                left(used.unsigned_abs())
            ),
            "Nothing is sent by it. A job that would take what is not left is not sent.".to_owned(),
        ]
        .into_iter()
        .chain(used_up)
        .collect(),
        refusal: None,
        is_proposal: is_proposed(&visit, "budget").await?,
        spends: true,
        fields: vec![
            Field { name: "used", value: used.to_string() },
            Field { name: "version", value: spent.version().as_str().to_owned() },
        ],
        path: format!("/customers/{customer_id}/budget"),
        back: format!("/customers/{customer_id}"),
    };
    visit.page(&page)
}

pub(in crate::console) async fn act(
    visit: Visit,
    Path(id): Path<String>,
    Filled(form): Filled<BudgetForm>,
) -> Result<Response, Failure> {
    let (customer_id, used) = (visit.id_before(&id)?, form.used);
    check_used(used)?;
    let attribution = form.reason.attribution(&visit)?;
    let expected = Version::from(form.version);
    if form.reason.is_proposed(&visit, "budget").await? {
        return propose_it(&visit, &Deed::Budget { customer_id, used }, Some(&expected), attribution).await;
    }
    match set_budget(&visit.console.actions, customer_id, used, Some(&expected), attribution).await {
        Ok(()) => see_other(&format!("/customers/{customer_id}")),
        Err(error @ BudgetError::Changed { .. }) => Err(Failure::Stale(error.to_string())),
        Err(BudgetError::Database(error)) => Err(refused_by_database(error)),
    }
}
