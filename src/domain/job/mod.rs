//! What upstream asks for: a delivery becomes a job, or a list of everything wrong with
//! it. Knows a message's bytes and properties and nothing of the broker they came from.

mod check;
mod rules;
mod signed_link;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use time::OffsetDateTime;
use uuid::Uuid;

use self::check::{BACK_LINK, Check, DOCUMENT_NUMBER, FRONT_LINK, field};
pub(super) use self::check::{instant, uuid};
pub use self::rules::{
    DOCUMENT_TYPE_BYTES_MAX, DOCUMENT_TYPE_PATTERN, DocumentTypes, Rules, is_document_type,
};
use self::signed_link::{cut_signature, ends_at};
use crate::domain::message::Message;
use crate::domain::state::LinkField;
use crate::domain::trace_context::{TraceContext, TraceId};
use dollarpe::canonical_json::{Fault, Json, Profile};

pub const BODY_BYTES_MAX: usize = 64 * 1024;
const FAULTS_MAX: usize = 32;
const INVALID_CHARS_MAX: usize = 2_000;

/// What stands between two faults of one line.
const BETWEEN_FAULTS: &str = "; ";

/// Ours, of a message's body; the rest of it is the provider's.
pub const OUR_FIELDS: [&str; 3] = ["job_id", "requested_at", "expires_at"];
/// The provider's, of the same.
pub(super) const PROVIDER_FIELDS: [&str; 6] = [
    "customer_id",
    "full_address",
    "document_type",
    "document_front_image_url",
    "document_back_image_url",
    "document_details",
];

/// A valid request to update one customer's document.
#[derive(Clone)]
pub struct Job {
    /// Names the job; a second delivery with it is the same job.
    pub id: Uuid,
    /// Whom the update is for.
    pub customer_id: Uuid,
    /// When upstream asked, in UTC. Of two jobs for a customer the later one wins.
    pub requested_at: OffsetDateTime,
    /// When the request loses its meaning, in UTC: by its own field, or before a signed link ends.
    pub expires_at: Option<OffsetDateTime>,
    /// The link that says so.
    pub expiring_link: Option<LinkField>,
    pub correlation_id: Option<String>,
    /// The trace that it was published in.
    pub trace: Option<TraceContext>,
    /// What the provider is to be sent.
    pub request: UpdateRequest,
    /// What a content fingerprint is computed over: the compact canonical text without what
    /// changes in its links whenever they are presigned.
    pub fingerprint_text: String,
}

/// How a job is spoken of in logs, metrics and traces.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct JobRef {
    pub id: Uuid,
    /// By the clock of the replica that received it.
    pub received_at: OffsetDateTime,
    /// The trace that it was published in.
    pub trace: Option<TraceContext>,
}

impl JobRef {
    pub fn trace_id(&self) -> Option<TraceId> {
        self.trace.map(|trace| trace.trace_id())
    }
}

/// The provider's request body: its own fields and no others.
#[derive(Clone)]
pub struct UpdateRequest {
    customer_id: Uuid,
    document_type: String,
    document_number_last4: String,
    /// The compact canonical text: what is sealed, and what most providers' profile signs.
    canonical: Bytes,
}

/// Why a delivery is no job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The job's name, where one can be read and nothing contradicts it.
    pub job_id: Option<Uuid>,
    /// The customer, where one can be read.
    pub customer_id: Option<Uuid>,
    /// Everything wrong, at least one; of more than 32 the last says how many are left out.
    pub faults: Vec<Fault>,
}

impl Job {
    /// Why a job that is sound cannot be taken all the same: there is no writing it down.
    pub fn refused_by_the_database(&self) -> Invalid {
        let reason = "the database cannot hold a value of this job; see its log, then requeue the message";
        let (job_id, customer_id) = (Some(self.id), Some(self.customer_id));
        Invalid { job_id, customer_id, faults: vec![Fault::new("", reason)] }
    }

    /// Parses a delivery.
    ///
    /// 1. Refuse a body over 64 KiB unread. Refuse properties that could not be read, and go on
    ///    to the other faults.
    /// 2. Read the JSON, past whatever faults can be passed.
    /// 3. Read the fields that are ours; where the body is silent, the message's
    ///    properties speak.
    /// 4. Check the provider's fields, and write those that have several spellings as
    ///    they are sent: UUIDs in lower case, the address trimmed.
    /// 5. Refuse any other field: dropping what upstream thinks it sent is losing data.
    /// 6. Find out when it expires: by its own field, or before one of its signed links ends.
    /// 7. Keep what the provider is to be sent.
    ///
    /// A `message_id` that is no UUID is ignored if the body has a `job_id`, since client
    /// libraries set it as they please. A `correlation_id` longer than 255 characters or
    /// with control characters is dropped: a label is no reason to refuse a job.
    ///
    /// # Errors
    /// All faults at once.
    pub fn parse(message: &Message, received_at: OffsetDateTime, rules: &Rules) -> Result<Self, Invalid> {
        let message_id = message.message_id.as_deref().and_then(|id| uuid(id).ok());
        if message.body.len() > BODY_BYTES_MAX {
            let fault = Fault::new("", "is larger than 64 KiB");
            return Err(Invalid::new(message_id, None, [&message.unreadable[..], &[fault]].concat()));
        }

        let (mut json, mut faults) = Json::read(&message.body);
        faults.extend_from_slice(&message.unreadable);
        let mut check = Check { faults };
        let Some(body) = check.object("", Some(&mut json)) else {
            return Err(Invalid::new(message_id, None, check.faults));
        };

        let job_id = check.job_id(body, message_id);
        let (timestamp, timestamp_ms) = (message.timestamp, message.timestamp_ms());
        let requested_at = check.requested_at(body, timestamp, timestamp_ms, received_at);
        let expires_at = check.expires_at(body, requested_at);
        let customer_id = check.request(body, rules);
        check.only("", body, &[&OUR_FIELDS[..], &PROVIDER_FIELDS].concat());
        body.retain(|field, _| PROVIDER_FIELDS.contains(&field.as_str()));

        match (job_id, requested_at) {
            (Some(id), Some(requested_at)) if check.faults.is_empty() => {
                let request = UpdateRequest::from_body(&json)
                    .map_err(|fault| Invalid::new(job_id, customer_id, vec![fault]))?;
                let (expires_at, expiring_link) = earliest_end(&json, expires_at, rules.link_expiry_margin);
                cut_signatures(&mut json);
                Ok(Self {
                    id,
                    customer_id: request.customer_id,
                    requested_at,
                    expires_at,
                    expiring_link,
                    correlation_id: message.correlation_id.as_deref().and_then(label),
                    trace: message.trace(),
                    request,
                    fingerprint_text: json.to_canonical(Profile::Compact),
                })
            }
            _ => Err(Invalid::new(job_id, customer_id, check.faults)),
        }
    }

    /// Whether the request has lost its meaning by `now`.
    pub fn is_expired(&self, now: OffsetDateTime) -> bool {
        self.expires_at.is_some_and(|expires_at| expires_at <= now)
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("id", &self.id)
            .field("requested_at", &self.requested_at)
            .field("expires_at", &self.expires_at)
            .field("request", &self.request)
            .finish_non_exhaustive()
    }
}

impl UpdateRequest {
    /// Reads back the compact canonical text of a request that was valid when its job came
    /// in; today's rules may be others.
    ///
    /// # Errors
    /// The first field that is missing or unreadable.
    pub fn from_sealed(text: &str) -> Result<Self, Fault> {
        Self::from_body(&Json::parse(text.as_bytes()).map_err(|mut faults| faults.swap_remove(0))?)
    }

    fn from_body(body: &Json) -> Result<Self, Fault> {
        let text =
            |pointer| text_at(body, pointer).ok_or_else(|| Fault::new(pointer, "is not in the request"));
        Ok(Self {
            customer_id: uuid(text("/customer_id")?).map_err(|reason| Fault::new("/customer_id", reason))?,
            document_type: text("/document_type")?.to_owned(),
            document_number_last4: last4(text(DOCUMENT_NUMBER)?),
            canonical: body.to_canonical(Profile::Compact).into(),
        })
    }

    /// Whom the update is for.
    pub fn customer_id(&self) -> Uuid {
        self.customer_id
    }

    /// The kind of document, such as `PASSPORT`.
    pub fn document_type(&self) -> &str {
        &self.document_type
    }

    /// The end of the document's number: four characters, and never more than half of it.
    pub fn document_number_last4(&self) -> &str {
        &self.document_number_last4
    }

    /// The text that is signed and sent, in UTF-8.
    pub fn to_canonical(&self, profile: Profile) -> Bytes {
        match profile {
            Profile::Compact => self.canonical.clone(),
            Profile::CompactUtf8 | Profile::Spaced => self.body().to_canonical(profile).into(),
        }
    }

    /// What is sealed and stored, and read back by [`from_sealed`](Self::from_sealed).
    pub fn to_sealable(&self) -> &[u8] {
        &self.canonical
    }

    /// The links to the document, each with its field. They hold secrets: none is logged or kept.
    pub fn links(&self) -> Vec<(LinkField, String)> {
        let body = self.body();
        let link = |field: &LinkField| Some((*field, text_at(&body, field.name())?.to_owned()));
        LinkField::ALL.iter().filter_map(link).collect()
    }

    fn body(&self) -> Json {
        Json::read(&self.canonical).0
    }
}

/// When a job expires that says itself when, if it does: no later than `margin` before a signed link ends.
fn earliest_end(
    body: &Json,
    expires_at: Option<OffsetDateTime>,
    margin: Duration,
) -> (Option<OffsetDateTime>, Option<LinkField>) {
    let ends = LinkField::ALL.iter().filter_map(|link| {
        let ends_at = ends_at(text_at(body, link.name())?)?;
        Some((ends_at.checked_sub(margin.try_into().ok()?)?, *link))
    });
    match ends.min() {
        Some((ends_at, link)) if expires_at.is_none_or(|own| ends_at < own) => (Some(ends_at), Some(link)),
        _ => (expires_at, None),
    }
}

/// Takes out of the links what their signatures change. What they differ in otherwise, such as
/// `versionId`, names another document.
fn cut_signatures(body: &mut Json) {
    if let Json::Object(fields) = body {
        for at in [FRONT_LINK, BACK_LINK] {
            if let Some(Json::String(link)) = field(fields, at) {
                cut_signature(link);
            }
        }
    }
}

impl fmt::Debug for UpdateRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpdateRequest")
            .field("customer_id", &self.customer_id)
            .field("document_type", &self.document_type)
            .finish_non_exhaustive()
    }
}

impl Invalid {
    fn new(job_id: Option<Uuid>, customer_id: Option<Uuid>, mut faults: Vec<Fault>) -> Self {
        if faults.len() > FAULTS_MAX {
            let more = faults.len() - (FAULTS_MAX - 1);
            faults.truncate(FAULTS_MAX - 1);
            faults.push(Fault::new("", format!("has {more} more faults")));
        }
        Self { job_id, customer_id, faults }
    }
}

/// All faults in one line.
pub(super) fn line_of(faults: &[Fault]) -> String {
    faults.iter().map(Fault::to_string).collect::<Vec<_>>().join(BETWEEN_FAULTS)
}

/// Where the faults of such a line are: the JSON pointer of each, or `body`. A fault's own words may have what
/// stands between two; none of them begins as a fault does. One that was cut off before its words is not told.
pub fn places_in(line: &str) -> impl Iterator<Item = &str> {
    line.split(BETWEEN_FAULTS).filter_map(|part| {
        let (place, _words) = part.split_once(": ")?;
        (place == "body" || place.starts_with('/')).then_some(place)
    })
}

impl fmt::Display for Invalid {
    /// All faults in one line of at most 2,000 characters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = line_of(&self.faults);
        match line.char_indices().nth(INVALID_CHARS_MAX - 1) {
            Some((end, c)) if end + c.len_utf8() < line.len() => write!(f, "{}…", &line[..end]),
            _ => f.write_str(&line),
        }
    }
}

impl std::error::Error for Invalid {}

fn label(text: &str) -> Option<String> {
    let is_kept = text.chars().count() <= 255 && !text.contains(char::is_control);
    is_kept.then(|| text.to_owned())
}

fn last4(number: &str) -> String {
    let count = number.chars().count();
    number.chars().skip(count - (count / 2).min(4)).collect()
}

fn value_at<'a>(json: &'a Json, pointer: &str) -> Option<&'a Json> {
    pointer.split('/').skip(1).try_fold(json, |value, key| match value {
        Json::Object(fields) => fields.get(key),
        _ => None,
    })
}

pub(super) fn text_at<'a>(json: &'a Json, pointer: &str) -> Option<&'a str> {
    match value_at(json, pointer)? {
        Json::String(text) => Some(text),
        _ => None,
    }
}
