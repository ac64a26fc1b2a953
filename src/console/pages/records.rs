//! `/interventions` and `/access`: what people did and why, and who saw whom. Page by page, the newest first.

use askama::Template;
use axum::response::Response;
use serde::{Deserialize, Serialize};

use crate::console::answer::{Failure, Page};
use crate::console::visit::{Asked, Frame, Visit};
use crate::desk::access::{AccessView, accesses};
use crate::desk::interventions::{ListedIntervention, interventions};
use uuid::Uuid;

const ROWS_MAX: i64 = 100;

#[derive(Debug, Deserialize)]
pub(in crate::console) struct Wanted {
    /// Those before this number.
    before: Option<i64>,
    /// Of `/access`: of this customer alone.
    #[serde(default)]
    customer: String,
}

#[derive(Template, Serialize)]
#[template(path = "interventions.html")]
struct InterventionsPage {
    #[serde(skip)]
    frame: Frame,
    interventions: Vec<ListedIntervention>,
    /// From where the next page goes on.
    before: Option<i64>,
}

impl Page for InterventionsPage {
    const TABLES: &'static [(&'static str, &'static str)] = &[("interventions", "/interventions")];
}

pub(in crate::console) async fn list_interventions(
    visit: Visit,
    Asked(asked): Asked<Wanted>,
) -> Result<Response, Failure> {
    let interventions = interventions(&visit.console.pages, asked.before, ROWS_MAX).await?;
    let before = next(interventions.len(), interventions.last().map(|last| last.id));
    let page =
        InterventionsPage { frame: visit.frame("/interventions", "What people did"), interventions, before };
    visit.page(&page)
}

#[derive(Template, Serialize)]
#[template(path = "access.html")]
struct AccessPage {
    #[serde(skip)]
    frame: Frame,
    customer: String,
    records: Vec<AccessView>,
    before: Option<i64>,
}

impl Page for AccessPage {
    const TABLES: &'static [(&'static str, &'static str)] = &[("records", "/records")];
}

pub(in crate::console) async fn list_access(
    visit: Visit,
    Asked(asked): Asked<Wanted>,
) -> Result<Response, Failure> {
    let customer_id: Option<Uuid> = match asked.customer.as_str() {
        "" => None,
        id => Some(id.parse().map_err(|_| Failure::Unfit("A customer is named by a UUID.".to_owned()))?),
    };
    let records = accesses(&visit.console.pages, customer_id, asked.before, ROWS_MAX).await?;
    let before = next(records.len(), records.last().map(|last| last.id));
    let frame = visit.frame("/access", "Who saw whom");
    visit.page(&AccessPage { frame, customer: asked.customer, records, before })
}

/// From where the next page goes on, if this one is full.
fn next(rows: usize, last: Option<i64>) -> Option<i64> {
    last.filter(|_| i64::try_from(rows) == Ok(ROWS_MAX))
}
