//! `/errors`: attempts of the last day that were not accepted, by the hour and the cause.

use askama::Template;
use axum::response::Response;
use serde::Serialize;

use crate::console::answer::{Failure, Page};
use crate::console::visit::{Frame, Visit};
use crate::desk::errors::{Errors, errors};

#[derive(Template, Serialize)]
#[template(path = "errors.html")]
struct ErrorsPage {
    #[serde(skip)]
    frame: Frame,
    #[serde(flatten)]
    errors: Errors,
}

impl Page for ErrorsPage {
    const TABLES: &'static [(&'static str, &'static str)] = &[("hours", "/hours")];
}

pub(in crate::console) async fn show(visit: Visit) -> Result<Response, Failure> {
    let errors = errors(&visit.console.pages).await?;
    visit.page(&ErrorsPage { frame: visit.frame("/errors", "Errors by hour"), errors })
}
