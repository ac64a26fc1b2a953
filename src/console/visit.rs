//! One request for a page, on its way to its answer.

use std::sync::Arc;

use axum::Form;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};
use uuid::Uuid;

use super::answer::{Failure, Format, Page, send};
use super::assets;
use super::login::Visitor;
use super::state::Console;
use crate::desk::access::{Seen, Standing, record_access, record_accesses, standing};
use crate::domain::permission::Permission;

/// Who asks for a page, in which form, and what every page says.
pub(super) struct Visit {
    pub console: Arc<Console>,
    pub visitor: Visitor,
    format: Format,
    /// The table that is asked for as CSV.
    table: Option<String>,
    standing: Standing,
}

impl FromRequestParts<Arc<Console>> for Visit {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, console: &Arc<Console>) -> Result<Self, Failure> {
        let visitor = parts.extensions.get::<Visitor>().cloned().ok_or(Failure::NotFound)?;
        let table = url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes())
            .find(|(name, _)| name == "table")
            .map(|(_, table)| table.into_owned());
        let standing = standing(&console.pages).await?;
        let format = Format::of(parts.uri.path());
        Ok(Self { console: Arc::clone(console), visitor, format, table, standing })
    }
}

impl Visit {
    /// The id that an address ends with, without the form that it asks for.
    pub fn id(&self, last: &str) -> Result<Uuid, Failure> {
        last.strip_suffix(self.format.suffix()).and_then(|id| id.parse().ok()).ok_or(Failure::NotFound)
    }

    /// The id in an address that goes on after it.
    pub fn id_before(&self, id: &str) -> Result<Uuid, Failure> {
        id.parse().map_err(|_| Failure::NotFound)
    }

    /// The number that an address ends with, or goes on after.
    pub fn number(&self, last: &str) -> Result<i64, Failure> {
        let last = last.strip_suffix(self.format.suffix()).unwrap_or(last);
        last.parse().map_err(|_| Failure::NotFound)
    }

    /// The end of the address, by which another page is sent in the same form.
    pub fn suffix(&self) -> &'static str {
        self.format.suffix()
    }

    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// What goes around a page; `path` is its place in the menu.
    pub fn frame(&self, path: &'static str, title: impl Into<String>) -> Frame {
        Frame { path, title: title.into(), visitor: self.visitor.clone(), standing: self.standing.clone() }
    }

    /// Sends a page.
    pub fn page<P: Page>(&self, page: &P) -> Result<Response, Failure> {
        send(page, self.format, self.table.as_deref())
    }

    /// Writes down who sees these jobs and customers in a list, where it is one that was asked for by name, or
    /// leaves the page as a file. A worklist on a screen keeps itself up to date, and names no customer.
    pub async fn record_list(&self, page: &str, seen: Vec<(Uuid, Option<Uuid>)>) -> Result<(), Failure> {
        let page = format!("{page}{}", self.format.suffix());
        Ok(record_accesses(&self.console.actions, &self.visitor.name, &page, &seen).await?)
    }

    pub fn is_file(&self) -> bool {
        self.format != Format::Html
    }

    /// Writes down who sees a job or a customer. What cannot be written down is not shown.
    pub async fn record(
        &self,
        page: &str,
        job_id: Option<Uuid>,
        customer_id: Option<Uuid>,
    ) -> Result<(), Failure> {
        let page = format!("{page}{}", self.format.suffix());
        let seen = Seen { by: &self.visitor.name, page: &page, job_id, customer_id };
        Ok(record_access(&self.console.actions, seen).await?)
    }
}

/// What an address asks for after its question mark.
pub(super) struct Asked<T>(pub T);

impl<T: DeserializeOwned + Send> FromRequestParts<Arc<Console>> for Asked<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, console: &Arc<Console>) -> Result<Self, Failure> {
        let asked = Query::<T>::from_request_parts(parts, console).await;
        asked.map(|Query(asked)| Self(asked)).map_err(|fault| Failure::Unfit(fault.body_text()))
    }
}

/// What a form says.
pub(super) struct Filled<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<Console>> for Filled<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, console: &Arc<Console>) -> Result<Self, Failure> {
        let filled = Form::<T>::from_request(request, console).await;
        filled.map(|Form(filled)| Self(filled)).map_err(|fault| Failure::Unfit(fault.body_text()))
    }
}

impl IntoResponse for Failure {
    /// The guard writes it in the form that was asked for.
    fn into_response(self) -> Response {
        let mut response = ().into_response();
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

/// What every page has around it.
pub(super) struct Frame {
    path: &'static str,
    pub title: String,
    pub visitor: Visitor,
    pub standing: Standing,
}

/// A page that the menu leads to.
pub(super) struct Entry {
    pub path: &'static str,
    pub name: &'static str,
    pub permission: Permission,
}

const fn entry(path: &'static str, name: &'static str, permission: Permission) -> Entry {
    Entry { path, name, permission }
}

const MENU: [Entry; 10] = [
    entry("/", "Now", Permission::View),
    entry("/review", "Review", Permission::View),
    entry("/proposals", "Proposals", Permission::View),
    entry("/verifications", "Verifications", Permission::View),
    entry("/dead-letters", "Dead letters", Permission::View),
    entry("/replay", "Send again", Permission::View),
    entry("/errors", "Errors", Permission::View),
    entry("/settings", "Settings", Permission::View),
    entry("/interventions", "What people did", Permission::Audit),
    entry("/access", "Who saw whom", Permission::Audit),
];

impl Frame {
    pub fn css(&self) -> &'static str {
        assets::css()
    }

    pub fn js(&self) -> &'static str {
        assets::js()
    }

    pub fn icon(&self) -> &'static str {
        assets::icon()
    }

    /// The pages that the visitor may see.
    pub fn menu(&self) -> impl Iterator<Item = &'static Entry> {
        MENU.iter().filter(|entry| self.visitor.may(entry.permission))
    }

    pub fn is_at(&self, entry: &Entry) -> bool {
        entry.path == self.path
    }

    pub fn roles(&self) -> String {
        self.visitor.roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(", ")
    }

    pub fn is_past(&self, at: &OffsetDateTime) -> bool {
        *at <= self.standing.now
    }

    /// A time for machines.
    pub fn stamp(&self, at: &OffsetDateTime) -> String {
        let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
        at.to_offset(UtcOffset::UTC).format(format).unwrap_or_default()
    }

    /// A time for people, to the second.
    pub fn utc(&self, at: &OffsetDateTime) -> String {
        let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
        at.to_offset(UtcOffset::UTC).format(format).unwrap_or_default()
    }

    /// How far a time is from now, by the database's clock, which dated it.
    pub fn age(&self, at: &OffsetDateTime) -> String {
        let ago = self.standing.now - *at;
        match ago.is_negative() {
            true => format!("in {}", span(ago.unsigned_abs().as_secs_f64())),
            false => format!("{} ago", span(ago.unsigned_abs().as_secs_f64())),
        }
    }
}

/// A span in its largest unit.
pub(super) fn span(seconds: f64) -> String {
    match seconds {
        ..60.0 => format!("{seconds:.0} s"),
        ..3600.0 => format!("{:.0} min", (seconds / 60.0).floor()),
        ..172_800.0 => format!("{:.0} h", (seconds / 3600.0).floor()),
        _ => format!("{:.0} d", (seconds / 86_400.0).floor()),
    }
}
