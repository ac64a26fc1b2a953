//! `/find?q=`: one box for a job, a customer or a correlation id. What is found goes straight to its page.

use askama::Template;
use axum::response::Response;
use serde::{Deserialize, Serialize};

use crate::console::answer::{Failure, Page, see_other};
use crate::console::visit::{Asked, Frame, Visit};
use crate::desk::find::{Found, find};
use crate::desk::list::ListedJob;

#[derive(Debug, Deserialize)]
pub(in crate::console) struct Wanted {
    #[serde(default)]
    q: String,
}

#[derive(Template, Serialize)]
#[template(path = "find.html")]
struct FindPage {
    #[serde(skip)]
    frame: Frame,
    q: String,
    jobs: Vec<ListedJob>,
}

impl Page for FindPage {
    const TABLES: &'static [(&'static str, &'static str)] = &[("jobs", "/jobs")];
}

pub(in crate::console) async fn show(visit: Visit, Asked(asked): Asked<Wanted>) -> Result<Response, Failure> {
    let suffix = visit.suffix();
    let q = asked.q.trim().to_owned();
    let jobs = match find(&visit.console.pages, &q).await? {
        Found::Job(id) | Found::Archived { job_id: id, .. } => {
            return see_other(&format!("/jobs/{id}{suffix}"));
        }
        Found::Customer(id) => return see_other(&format!("/customers/{id}{suffix}")),
        Found::Correlated(jobs) => jobs,
    };
    if let [job] = jobs.as_slice() {
        return see_other(&format!("/jobs/{}{suffix}", job.job_id));
    }
    visit.record_list("/find", jobs.iter().map(|job| (job.job_id, job.customer_id)).collect()).await?;
    visit.page(&FindPage { frame: visit.frame("", format!("Find {q}")), q, jobs })
}
