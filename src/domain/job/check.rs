//! The rules of a message's fields, one by one. A field that breaks its rule is a fault, and the
//! next one is checked.

use std::collections::BTreeMap;
use std::time::Duration;

use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};
use uuid::Uuid;

use super::rules::Rules;
use crate::domain::invisible::is_invisible;
use crate::domain::state::LinkField;
use dollarpe::canonical_json::{Fault, Json, shown};

/// How far ahead of ours a publisher's clock may be.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(5 * 60);

pub(super) const FRONT_LINK: &str = LinkField::Front.name();
pub(super) const BACK_LINK: &str = LinkField::Back.name();
pub(super) const DOCUMENT_NUMBER: &str = "/document_details/document_number";

pub(super) type Fields = BTreeMap<String, Json>;

pub(super) const DETAIL_FIELDS: [&str; 2] = ["document_number", "additional_data"];

/// Gathers faults while the fields are gone through. `at` is a field's pointer.
pub(super) struct Check {
    pub faults: Vec<Fault>,
}

impl Check {
    fn refuse(&mut self, at: &str, reason: impl Into<String>) {
        self.faults.push(Fault::new(at, reason));
    }

    /// What the JSON reader refused reads as null, and needs no second fault for that.
    fn is_refused(&self, at: &str) -> bool {
        self.faults.iter().any(|fault| fault.pointer == at)
    }

    pub fn object<'a>(&mut self, at: &str, value: Option<&'a mut Json>) -> Option<&'a mut Fields> {
        match value {
            _ if self.is_refused(at) => {}
            Some(Json::Object(fields)) => return Some(fields),
            Some(_) => self.refuse(at, "must be an object"),
            None => self.refuse(at, "is missing"),
        }
        None
    }

    /// Applies `rule`, which may rewrite the text as it is to be sent.
    fn text<T, R: Into<String>>(
        &mut self,
        at: &str,
        fields: &mut Fields,
        rule: impl FnOnce(&mut String) -> Result<T, R>,
    ) -> Option<T> {
        match field(fields, at) {
            _ if self.is_refused(at) => {}
            Some(Json::String(text)) => match rule(text) {
                Ok(read) => return Some(read),
                Err(reason) => self.refuse(at, reason),
            },
            Some(_) => self.refuse(at, "must be a string"),
            None => self.refuse(at, "is missing"),
        }
        None
    }

    pub fn only(&mut self, at: &str, fields: &Fields, known: &[&str]) {
        for key in fields.keys().filter(|key| !known.contains(&key.as_str())) {
            let at = format!("{at}/{}", shown(key));
            self.refuse(&at, "is not a field of this message");
        }
    }

    pub fn job_id(&mut self, body: &mut Fields, message_id: Option<Uuid>) -> Option<Uuid> {
        const AT: &str = "/job_id";
        if field(body, AT).is_none() {
            if message_id.is_none() {
                self.refuse(AT, "is missing, and there is no message_id that is a UUID");
            }
            return message_id;
        }
        let job_id = self.text(AT, body, |text| uuid(text));
        match (job_id, message_id) {
            (Some(job_id), Some(message_id)) if job_id != message_id => {
                self.refuse(AT, "is not the message_id; send one, or the same in both");
                None
            }
            _ => job_id.or(message_id),
        }
    }

    pub fn requested_at(
        &mut self,
        body: &mut Fields,
        timestamp: Option<u64>,
        timestamp_ms: Option<i64>,
        received_at: OffsetDateTime,
    ) -> Option<OffsetDateTime> {
        const AT: &str = "/requested_at";
        let broker_took_it = timestamp_ms.and_then(of_milliseconds);
        let requested_at = match timestamp {
            _ if field(body, AT).is_some() => self.text(AT, body, |text| instant(text))?,
            Some(timestamp) => {
                let seconds = i64::try_from(timestamp).unwrap_or(i64::MAX);
                let Ok(instant) = OffsetDateTime::from_unix_timestamp(seconds) else {
                    self.refuse(AT, "is missing, and the message's timestamp not in seconds");
                    return None;
                };
                // Of two jobs within a second the milliseconds tell which came first. A publisher's
                // own time that lies further off is when the customer asked, before a delay.
                broker_took_it
                    .filter(|took_it| (*took_it - instant).unsigned_abs() <= CLOCK_SKEW_MAX)
                    .unwrap_or(instant)
            }
            None => broker_took_it.unwrap_or(received_at),
        };
        if requested_at > received_at + CLOCK_SKEW_MAX {
            self.refuse(AT, "is more than 5 minutes ahead of the worker's clock");
        }
        Some(requested_at)
    }

    pub fn expires_at(
        &mut self,
        body: &mut Fields,
        requested_at: Option<OffsetDateTime>,
    ) -> Option<OffsetDateTime> {
        const AT: &str = "/expires_at";
        field(body, AT)?;
        let expires_at = self.text(AT, body, |text| instant(text))?;
        if requested_at.is_some_and(|requested_at| expires_at <= requested_at) {
            self.refuse(AT, "must be later than requested_at");
        }
        Some(expires_at)
    }

    /// Checks the provider's fields. Returns the customer, where it can be read.
    pub fn request(&mut self, body: &mut Fields, rules: &Rules) -> Option<Uuid> {
        let customer_id = self.text("/customer_id", body, |text| {
            text.make_ascii_lowercase();
            uuid(text)
        });
        self.text("/full_address", body, address);
        self.text("/document_type", body, |text| rules.document_type(text));
        self.text(FRONT_LINK, body, |text| rules.link(text));
        self.text(BACK_LINK, body, |text| rules.link(text));

        let at = "/document_details";
        if let Some(details) = self.object(at, field(body, at)) {
            self.text(DOCUMENT_NUMBER, details, |text| document_number(text));
            let additional =
                details.entry("additional_data".to_owned()).or_insert_with(|| Json::Object(Fields::new()));
            self.object("/document_details/additional_data", Some(additional));
            self.only(at, details, &DETAIL_FIELDS);
        }
        customer_id
    }
}

fn of_milliseconds(ms: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok()
}

pub(super) fn field<'a>(fields: &'a mut Fields, at: &str) -> Option<&'a mut Json> {
    fields.get_mut(at.rsplit('/').next()?)
}

fn address(text: &mut String) -> Result<(), &'static str> {
    let trimmed = text.trim();
    if trimmed.chars().all(|c| c.is_whitespace() || is_invisible(c)) {
        return Err("must not be blank");
    }
    match trimmed.chars().count() {
        0..=1_000 => {}
        _ => return Err("must be at most 1,000 characters"),
    }
    if trimmed.contains(|c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
        return Err("must not hold control characters other than line breaks and tabs");
    }
    *text = trimmed.to_owned();
    Ok(())
}

fn document_number(text: &str) -> Result<(), &'static str> {
    match text.chars().count() {
        0 => return Err("must not be empty"),
        1..=64 => {}
        _ => return Err("must be at most 64 characters"),
    }
    if text.contains(|c: char| is_invisible(c) || c.is_whitespace() && c != ' ') {
        return Err("must not hold invisible characters");
    }
    if text.starts_with(' ') || text.ends_with(' ') || text.contains("  ") {
        return Err("must not begin or end with a space, nor hold two in a row");
    }
    Ok(())
}

/// Only the hyphenated form: the parser also takes braces, `urn:uuid:` and bare digits,
/// and the provider is sent what upstream wrote.
pub(in crate::domain) fn uuid(text: &str) -> Result<Uuid, &'static str> {
    match Uuid::try_parse(text) {
        Ok(id) if text.len() == 36 => Ok(id),
        _ => Err("must be a UUID of 36 characters"),
    }
}

/// With a `T` between date and time, as JSON Schema has it: the parser takes a space, too.
pub(in crate::domain) fn instant(text: &str) -> Result<OffsetDateTime, &'static str> {
    Some(text)
        .filter(|text| matches!(text.as_bytes().get(10), Some(b'T' | b't')))
        .and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok())
        .and_then(|instant| instant.checked_to_offset(UtcOffset::UTC))
        .ok_or("must be an RFC 3339 time such as 2025-07-16T12:59:05Z")
}
