//! `/dead-letters`: what messages that could not become jobs have in common. Never a body.

use askama::Template;
use axum::response::Response;
use serde::Serialize;

use crate::console::answer::{Failure, Page};
use crate::console::visit::{Frame, Visit};
use crate::desk::dead_letters::{DeadLetterFault, dead_letter_faults};

#[derive(Template, Serialize)]
#[template(path = "dead_letters.html")]
struct DeadLettersPage {
    #[serde(skip)]
    frame: Frame,
    faults: Vec<DeadLetterFault>,
}

impl Page for DeadLettersPage {
    const TABLES: &'static [(&'static str, &'static str)] = &[("faults", "/faults")];
}

pub(in crate::console) async fn show(visit: Visit) -> Result<Response, Failure> {
    let faults = dead_letter_faults(&visit.console.pages).await?;
    visit.page(&DeadLettersPage { frame: visit.frame("/dead-letters", "Dead letters"), faults })
}
