//! `/customers/ID`: a customer's updates, what took each, and their jobs.

use askama::Template;
use axum::extract::Path;
use axum::response::Response;
use serde::Serialize;

use super::boxes::{UpdateBox, boxes};
use crate::console::answer::{Failure, Page};
use crate::console::visit::{Frame, Visit};
use crate::desk::budget::{CustomerStory, customer_story};
use crate::domain::permission::Permission;

#[derive(Template, Serialize)]
#[template(path = "customer.html")]
struct CustomerPage {
    #[serde(skip)]
    frame: Frame,
    /// The customer's updates.
    updates: Vec<UpdateBox>,
    #[serde(flatten)]
    story: CustomerStory,
    may_decide: bool,
}

/// How many jobs of a customer are shown, the newest.
const JOBS_MAX: u32 = 100;

impl Page for CustomerPage {
    const TABLES: &'static [(&'static str, &'static str)] = &[("jobs", "/jobs")];
}

pub(in crate::console) async fn show(visit: Visit, Path(id): Path<String>) -> Result<Response, Failure> {
    let customer_id = visit.id(&id)?;
    let console = &visit.console;
    let story = customer_story(&console.pages, customer_id, Some(JOBS_MAX)).await?;
    let story = story.ok_or_else(|| {
        Failure::Unknown(format!(
            "Nothing is known of customer {customer_id}. Are their jobs still in the queue?"
        ))
    })?;
    visit.record("/customers/{id}", None, Some(customer_id)).await?;
    let page = CustomerPage {
        frame: visit.frame("", format!("Customer {customer_id}")),
        updates: boxes(console.rules.customer_updates, &story.updates),
        may_decide: visit.visitor.may(Permission::Decide),
        story,
    };
    visit.page(&page)
}
