//! `/verifications`: those that take too long, and those that are read next.

use askama::Template;
use axum::response::Response;
use serde::Serialize;

use crate::console::answer::{Failure, Page};
use crate::console::visit::{Frame, Visit};
use crate::desk::verifications::{FollowedVerifications, verifications};

#[derive(Template, Serialize)]
#[template(path = "verifications.html")]
struct VerificationsPage {
    #[serde(skip)]
    frame: Frame,
    #[serde(flatten)]
    followed: FollowedVerifications,
}

impl Page for VerificationsPage {
    const TABLES: &'static [(&'static str, &'static str)] = &[("overdue", "/overdue"), ("next", "/next")];
}

pub(in crate::console) async fn show(visit: Visit) -> Result<Response, Failure> {
    let followed = verifications(&visit.console.pages).await?;
    if visit.is_file() {
        let all = followed.overdue.iter().chain(&followed.next);
        visit
            .record_list("/verifications", all.map(|each| (each.job_id, each.customer_id)).collect())
            .await?;
    }
    visit.page(&VerificationsPage { frame: visit.frame("/verifications", "Verifications"), followed })
}
