//! What upstream asks for: a delivery becomes a job, or a list of everything wrong with
//! it. Knows a message's bytes and properties and nothing of the broker they came from.

use std::{collections::BTreeMap, fmt, time::Duration};

use bytes::Bytes;
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};
use url::Url;
use uuid::Uuid;

use super::canonical_json::{Fault, Json, Profile, shown};

const BODY_BYTES_MAX: usize = 64 * 1024;
const FAULTS_MAX: usize = 32;
const INVALID_CHARS_MAX: usize = 2_000;

/// How far ahead of ours a publisher's clock may be.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(5 * 60);

/// Ours, of a message's body; the rest of it is the provider's.
pub const OUR_FIELDS: [&str; 3] = ["job_id", "requested_at", "expires_at"];
const PROVIDER_FIELDS: [&str; 6] = [
    "customer_id",
    "full_address",
    "document_type",
    "document_front_image_url",
    "document_back_image_url",
    "document_details",
];
const DETAIL_FIELDS: [&str; 2] = ["document_number", "additional_data"];

const FRONT_LINK: &str = "/document_front_image_url";
const BACK_LINK: &str = "/document_back_image_url";
const DOCUMENT_NUMBER: &str = "/document_details/document_number";

type Fields = BTreeMap<String, Json>;

/// A valid request to update one customer's document.
#[derive(Clone)]
pub struct Job {
    /// Names the job; a second delivery with it is the same job.
    pub id: Uuid,
    /// Whom the update is for.
    pub customer_id: Uuid,
    /// When upstream asked, in UTC. Of two jobs for a customer the later one wins.
    pub requested_at: OffsetDateTime,
    /// When the request loses its meaning, in UTC; presigned links die.
    pub expires_at: Option<OffsetDateTime>,
    /// Upstream's own label.
    pub correlation_id: Option<String>,
    /// What the provider is to be sent.
    pub request: UpdateRequest,
    /// What a content fingerprint is computed over: the compact canonical text without the
    /// links' queries and fragments, which change whenever a link is presigned.
    pub fingerprint_text: String,
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

/// A delivery's body and those of its AMQP properties that a job is made of.
#[derive(Clone, Copy)]
pub struct Envelope<'a> {
    /// The payload, untouched.
    pub body: &'a [u8],
    /// `message_id`.
    pub message_id: Option<&'a str>,
    /// `correlation_id`.
    pub correlation_id: Option<&'a str>,
    /// `timestamp`, in Unix seconds.
    pub timestamp: Option<u64>,
}

/// What differs between installations in what a valid job is.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The document types that the provider supports here.
    pub document_types: Vec<String>,
    /// Whether a link may be plain `http`.
    pub allow_http_links: bool,
    /// Whether the last segment of a link's path may do without `.jpg` and the like.
    pub allow_extensionless_links: bool,
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
    /// Parses a delivery.
    ///
    /// 1. Refuse a body over 64 KiB unread.
    /// 2. Read the JSON, past whatever faults can be passed.
    /// 3. Read the fields that are ours; where the body is silent, the message's
    ///    properties speak.
    /// 4. Check the provider's fields, and write those that have several spellings as
    ///    they are sent: UUIDs in lower case, the address trimmed.
    /// 5. Refuse any other field: dropping what upstream thinks it sent is losing data.
    /// 6. Keep what the provider is to be sent.
    ///
    /// A `message_id` that is no UUID is ignored if the body has a `job_id`, since client
    /// libraries set it as they please. A `correlation_id` longer than 255 characters or
    /// with control characters is dropped: a label is no reason to refuse a job.
    ///
    /// # Errors
    /// All faults at once.
    pub fn parse(
        envelope: &Envelope<'_>,
        received_at: OffsetDateTime,
        rules: &Rules,
    ) -> Result<Self, Invalid> {
        let message_id = envelope.message_id.and_then(|id| uuid(id).ok());
        if envelope.body.len() > BODY_BYTES_MAX {
            let fault = Fault::new("", "is larger than 64 KiB");
            return Err(Invalid::new(message_id, None, vec![fault]));
        }

        let (mut json, faults) = Json::read(envelope.body);
        let mut check = Check { faults };
        let Some(body) = check.object("", Some(&mut json)) else {
            return Err(Invalid::new(message_id, None, check.faults));
        };

        let job_id = check.job_id(body, message_id);
        let requested_at = check.requested_at(body, envelope.timestamp, received_at);
        let expires_at = check.expires_at(body, requested_at);
        let customer_id = check.request(body, rules);
        check.only("", body, &[&OUR_FIELDS[..], &PROVIDER_FIELDS].concat());
        body.retain(|field, _| PROVIDER_FIELDS.contains(&field.as_str()));

        match (job_id, requested_at) {
            (Some(id), Some(requested_at)) if check.faults.is_empty() => {
                let request = UpdateRequest::from_body(&json)
                    .map_err(|fault| Invalid::new(job_id, customer_id, vec![fault]))?;
                cut_links(&mut json);
                Ok(Self {
                    id,
                    customer_id: request.customer_id,
                    requested_at,
                    expires_at,
                    correlation_id: envelope.correlation_id.and_then(label),
                    request,
                    fingerprint_text: json.to_canonical(Profile::Compact),
                })
            }
            _ => Err(Invalid::new(job_id, customer_id, check.faults)),
        }
    }
}

impl Job {
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

    fn body(&self) -> Json {
        Json::read(&self.canonical).0
    }

    /// What the customer entered and nobody else may read: the address, the document's
    /// number, the links and the values of their queries, and every text of the additional
    /// data. The longest come first, so that none is hidden by a part of it.
    pub fn private_texts(&self) -> Vec<String> {
        let body = self.body();
        let mut texts: Vec<&str> =
            ["/full_address", DOCUMENT_NUMBER].into_iter().filter_map(|at| text_at(&body, at)).collect();
        for link in [FRONT_LINK, BACK_LINK].into_iter().filter_map(|at| text_at(&body, at)) {
            texts.push(link);
            let query = link.split_once(['?', '#']).map_or("", |(_, query)| query);
            texts.extend(
                query.split(['&', '#', ';']).map(|pair| pair.split_once('=').map_or(pair, |(_, it)| it)),
            );
        }
        if let Some(additional) = value_at(&body, "/document_details/additional_data") {
            collect_texts(additional, &mut texts);
        }
        texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
        texts.into_iter().map(str::to_owned).collect()
    }
}

/// Cuts off the links' queries and fragments.
fn cut_links(body: &mut Json) {
    if let Json::Object(fields) = body {
        for at in [FRONT_LINK, BACK_LINK] {
            if let Some(Json::String(link)) = field(fields, at) {
                link.truncate(link.find(['?', '#']).unwrap_or(link.len()));
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

impl Default for Rules {
    /// The provider's documented types, `https` links with an extension.
    fn default() -> Self {
        let documented = ["AADHAAR", "PASSPORT", "VOTER_ID", "DRIVING_LICENSE"];
        Self {
            document_types: documented.map(str::to_owned).to_vec(),
            allow_http_links: false,
            allow_extensionless_links: false,
        }
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

impl fmt::Display for Invalid {
    /// All faults in one line of at most 2,000 characters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<_> = self.faults.iter().map(Fault::to_string).collect();
        let line = faults.join("; ");
        match line.char_indices().nth(INVALID_CHARS_MAX - 1) {
            Some((end, c)) if end + c.len_utf8() < line.len() => write!(f, "{}…", &line[..end]),
            _ => f.write_str(&line),
        }
    }
}

impl std::error::Error for Invalid {}

/// Gathers faults while the fields are gone through. `at` is a field's pointer.
struct Check {
    faults: Vec<Fault>,
}

impl Check {
    fn refuse(&mut self, at: &str, reason: impl Into<String>) {
        self.faults.push(Fault::new(at, reason));
    }

    /// What the JSON reader refused reads as null, and needs no second fault for that.
    fn is_refused(&self, at: &str) -> bool {
        self.faults.iter().any(|fault| fault.pointer == at)
    }

    fn object<'a>(&mut self, at: &str, value: Option<&'a mut Json>) -> Option<&'a mut Fields> {
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

    fn only(&mut self, at: &str, fields: &Fields, known: &[&str]) {
        for key in fields.keys().filter(|key| !known.contains(&key.as_str())) {
            let at = format!("{at}/{}", shown(key));
            self.refuse(&at, "is not a field of this message");
        }
    }

    fn job_id(&mut self, body: &mut Fields, message_id: Option<Uuid>) -> Option<Uuid> {
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

    fn requested_at(
        &mut self,
        body: &mut Fields,
        timestamp: Option<u64>,
        received_at: OffsetDateTime,
    ) -> Option<OffsetDateTime> {
        const AT: &str = "/requested_at";
        let requested_at = match timestamp {
            _ if field(body, AT).is_some() => self.text(AT, body, |text| instant(text))?,
            Some(timestamp) => {
                let seconds = i64::try_from(timestamp).unwrap_or(i64::MAX);
                let Ok(instant) = OffsetDateTime::from_unix_timestamp(seconds) else {
                    self.refuse(AT, "is missing, and the message's timestamp not in seconds");
                    return None;
                };
                instant
            }
            None => received_at,
        };
        if requested_at > received_at + CLOCK_SKEW_MAX {
            self.refuse(AT, "is more than 5 minutes ahead of the worker's clock");
        }
        Some(requested_at)
    }

    fn expires_at(
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
    fn request(&mut self, body: &mut Fields, rules: &Rules) -> Option<Uuid> {
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

fn field<'a>(fields: &'a mut Fields, at: &str) -> Option<&'a mut Json> {
    fields.get_mut(at.rsplit('/').next()?)
}

impl Rules {
    fn document_type(&self, text: &str) -> Result<(), String> {
        if self.document_types.iter().any(|known| known == text) {
            Ok(())
        } else {
            Err(format!("must be one of {}", self.document_types.join(", ")))
        }
    }

    fn link(&self, text: &str) -> Result<(), &'static str> {
        let is_unfit = |c: char| c.is_whitespace() || c == '\\' || is_unprintable(c);
        if text.chars().count() > 2_048 {
            return Err("must be at most 2,048 characters");
        }
        if text.contains(is_unfit) {
            return Err("must not hold whitespace, backslashes or unprintable characters");
        }

        let url = Url::parse(text).map_err(|_| "must be an absolute URL")?;
        match url.scheme() {
            "https" => {}
            "http" if self.allow_http_links => {}
            _ => return Err("must begin with https://"),
        }
        // Judged as written: the parser takes `https:host` and `https:///host` for
        // `https://host`, which whoever fetches the document may not.
        let rest = text[url.scheme().len()..].strip_prefix("://");
        match rest.unwrap_or_default().split(['/', '?', '#']).next() {
            None | Some("") => return Err("must name a host after ://"),
            Some(host) if host.contains('@') => return Err("must not hold a user or password"),
            Some(_) => {}
        }

        let file = url.path().rsplit('/').next().unwrap_or_default();
        let extension = file.rsplit_once('.').map(|(_, end)| end.to_ascii_lowercase());
        match extension.as_deref() {
            Some("jpg" | "jpeg" | "png" | "pdf") => Ok(()),
            None if self.allow_extensionless_links && !file.is_empty() => Ok(()),
            _ => Err("must have a path that ends in .jpg, .jpeg, .png or .pdf"),
        }
    }
}

fn address(text: &mut String) -> Result<(), &'static str> {
    let trimmed = text.trim();
    match trimmed.chars().count() {
        0 => return Err("must not be blank"),
        1..=1_000 => {}
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
    if text.contains(|c: char| is_unprintable(c) || c.is_whitespace() && c != ' ') {
        return Err("must not hold unprintable characters");
    }
    if text.starts_with(' ') || text.ends_with(' ') || text.contains("  ") {
        return Err("must not begin or end with a space, nor hold two in a row");
    }
    Ok(())
}

/// Control characters, and the format characters that nobody sees: two numbers that
/// differ in one of these look the same.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// Only the hyphenated form: the parser also takes braces, `urn:uuid:` and bare digits,
/// and the provider is sent what upstream wrote.
pub(super) fn uuid(text: &str) -> Result<Uuid, &'static str> {
    match Uuid::try_parse(text) {
        Ok(id) if text.len() == 36 => Ok(id),
        _ => Err("must be a UUID of 36 characters"),
    }
}

pub(super) fn instant(text: &str) -> Result<OffsetDateTime, &'static str> {
    OffsetDateTime::parse(text, &Rfc3339)
        .ok()
        .and_then(|instant| instant.checked_to_offset(UtcOffset::UTC))
        .ok_or("must be an RFC 3339 time such as 2025-07-16T12:59:05Z")
}

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

fn collect_texts<'a>(json: &'a Json, texts: &mut Vec<&'a str>) {
    match json {
        Json::String(text) => texts.push(text),
        Json::Array(items) => items.iter().for_each(|item| collect_texts(item, texts)),
        Json::Object(fields) => fields.values().for_each(|value| collect_texts(value, texts)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::Index};
    use serde_json::{Value, json};
    use time::macros::datetime;

    use super::*;
    use crate::domain::schema::job_schema;

    const NOW: OffsetDateTime = datetime!(2025-07-16 12:59:05 UTC);
    const JOB_ID: &str = "0b4d3c2e-8f1a-4f7e-9f55-6f0a3b1c2d3e";
    const CUSTOMER_ID: &str = "4e6f1b20-a73c-11ec-b909-0242ac120002";
    const OTHER_ID: &str = "11111111-2222-4333-8444-555555555555";

    /// The provider's documented example.
    fn example() -> Value {
        json!({
            "customer_id": CUSTOMER_ID,
            "full_address": "FULL_ADDRESS_OF_THE_CUSTOMER",
            "document_type": "PASSPORT",
            "document_front_image_url": "https://files.example.com/front.jpg",
            "document_back_image_url": "https://files.example.com/back.png",
            "document_details": {"document_number": "123456123456", "additional_data": {}}
        })
    }

    fn example_text() -> String {
        example().to_string()
    }

    fn envelope(body: &str) -> Envelope<'_> {
        Envelope { body: body.as_bytes(), message_id: Some(JOB_ID), correlation_id: None, timestamp: None }
    }

    fn parse(envelope: Envelope<'_>) -> Result<Job, Invalid> {
        Job::parse(&envelope, NOW, &Rules::default())
    }

    fn parse_text(body: &str) -> Result<Job, Invalid> {
        parse(envelope(body))
    }

    fn compact(request: &UpdateRequest) -> String {
        String::from_utf8(request.to_canonical(Profile::Compact).into()).unwrap()
    }

    /// The example with the value at `pointer` set, or taken away.
    fn with(pointer: &str, value: impl Into<Option<Value>>) -> String {
        let mut body = example();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let fields = body.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        match value.into() {
            Some(value) => fields.insert(key.to_owned(), value),
            None => fields.remove(key),
        };
        body.to_string()
    }

    /// Expects the job to be valid where `fault` is empty.
    #[track_caller]
    fn check(pointer: &str, value: impl Into<Option<Value>>, fault: &str) {
        let body = with(pointer, value);
        let outcome = parse_text(&body).map_or_else(|invalid| invalid.to_string(), |_| String::new());
        let expected = match fault {
            "" => String::new(),
            _ => format!("{pointer}: {fault}"),
        };
        assert_eq!(outcome, expected, "{body}");
        let schema = jsonschema::validator_for(&job_schema(&Rules::default())).unwrap();
        let is_valid = schema.is_valid(&serde_json::from_str(&body).unwrap());
        assert!(is_valid || !expected.is_empty(), "the schema refuses a valid job: {body}");
    }

    #[test]
    fn the_documented_example_is_a_job() {
        let job = parse_text(&example_text()).unwrap();
        assert_eq!(job.id.to_string(), JOB_ID);
        assert_eq!(job.customer_id.to_string(), CUSTOMER_ID);
        assert_eq!(job.request.customer_id(), job.customer_id);
        assert_eq!(job.request.document_type(), "PASSPORT");
        assert_eq!(job.request.document_number_last4(), "3456");
        assert_eq!((job.requested_at, job.expires_at), (NOW, None));
        assert_eq!(job.request.to_canonical(Profile::Compact), example_text());
    }

    #[test]
    fn every_field_but_additional_data_is_required() {
        for pointer in [
            "/customer_id",
            "/full_address",
            "/document_type",
            FRONT_LINK,
            BACK_LINK,
            "/document_details",
            DOCUMENT_NUMBER,
        ] {
            check(pointer, None, "is missing");
        }
        let body = with("/document_details/additional_data", None);
        let job = parse_text(&body).unwrap();
        assert_eq!(job.request.to_canonical(Profile::Compact), example_text());
    }

    #[test]
    fn a_value_of_another_type_is_refused() {
        for pointer in [
            "/customer_id",
            "/full_address",
            "/document_type",
            FRONT_LINK,
            BACK_LINK,
            DOCUMENT_NUMBER,
            "/job_id",
            "/requested_at",
            "/expires_at",
        ] {
            for value in [json!(null), json!(true), json!(7), json!(1.5), json!([]), json!({})] {
                check(pointer, value, "must be a string");
            }
        }
        for pointer in ["/document_details", "/document_details/additional_data"] {
            for value in [json!(null), json!("text"), json!(7), json!([])] {
                check(pointer, value, "must be an object");
            }
        }
        for body in ["null", "[]", "\"text\"", "7"] {
            assert_eq!(parse_text(body).unwrap_err().to_string(), "body: must be an object");
        }
    }

    #[test]
    fn a_field_that_the_provider_does_not_know_is_refused() {
        for pointer in ["/adress", "/correlation_id", "/document_details/issued_at"] {
            check(pointer, json!("x"), "is not a field of this message");
        }
        check("/document_details/additional_data/anything", json!([{"goes": 1.5}]), "");
        let invalid = parse_text(&with("/12 Canary Street", json!(1))).unwrap_err();
        assert_eq!(invalid.to_string(), "/?: is not a field of this message");
    }

    #[test]
    fn a_uuid_has_36_characters_and_is_sent_in_lower_case() {
        for text in [
            "",
            "4e6f1b20a73c11ecb9090242ac120002",
            "{4e6f1b20-a73c-11ec-b909-0242ac120002}",
            "urn:uuid:4e6f1b20-a73c-11ec-b909-0242ac120002",
            "4e6f1b20-a73c-11ec-b909-0242ac12000g",
            " 4e6f1b20-a73c-11ec-b909-0242ac12000",
        ] {
            check("/customer_id", json!(text), "must be a UUID of 36 characters");
        }
        let body = with("/customer_id", json!(CUSTOMER_ID.to_uppercase()));
        let job = parse_text(&body).unwrap();
        assert_eq!(job.request.to_canonical(Profile::Compact), example_text());
    }

    #[test]
    fn an_address_is_1_to_1000_characters_after_trimming() {
        let control = "must not hold control characters other than line breaks and tabs";
        for (address, fault) in [
            ("", "must not be blank"),
            (" \n\t\u{a0}", "must not be blank"),
            ("é", ""),
            ("Flat 4B\r\n\tमुंबई", ""),
            (&"é".repeat(1_000), ""),
            (&format!(" {} ", "é".repeat(1_000)), ""),
            (&"é".repeat(1_001), "must be at most 1,000 characters"),
            ("a\0b", control),
            ("a\u{1b}b", control),
            ("a\u{7f}b", control),
            ("a\u{85}b", control),
        ] {
            check("/full_address", json!(address), fault);
        }
        let job = parse_text(&with("/full_address", json!(" a  b\n"))).unwrap();
        let sent = compact(&job.request);
        assert!(sent.contains(r#""full_address":"a  b""#), "{sent}");
    }

    #[test]
    fn a_document_type_is_one_the_provider_supports() {
        let fault = "must be one of AADHAAR, PASSPORT, VOTER_ID, DRIVING_LICENSE";
        check("/document_type", json!("DRIVING_LICENSE"), "");
        for text in ["", "passport", "PASSPORT ", "PAN"] {
            check("/document_type", json!(text), fault);
        }
    }

    #[test]
    fn a_link_is_an_absolute_https_url_of_an_image_or_pdf() {
        let scheme = "must begin with https://";
        let host = "must name a host after ://";
        let unfit = "must not hold whitespace, backslashes or unprintable characters";
        let user = "must not hold a user or password";
        let end = "must have a path that ends in .jpg, .jpeg, .png or .pdf";
        let long = |length: usize| format!("https://h/{}.jpg", "a".repeat(length - 14));
        for (link, fault) in [
            ("https://h/a.JPG", ""),
            ("HTTPS://h/a.jpeg", ""),
            ("https://h:8443/a/b.c.png?X-Amz-Signature=a/b@c.exe#page=1", ""),
            ("https://[::1]/मुंबई.pdf", ""),
            (&long(2_048), ""),
            (&long(2_049), "must be at most 2,048 characters"),
            ("", "must be an absolute URL"),
            ("h/a.jpg", "must be an absolute URL"),
            ("//h/a.jpg", "must be an absolute URL"),
            ("https://", "must be an absolute URL"),
            ("https://h:99999/a.jpg", "must be an absolute URL"),
            ("http://h/a.jpg", scheme),
            ("ftp://h/a.jpg", scheme),
            ("file:///a.jpg", scheme),
            ("data:image/png;base64,a.jpg", scheme),
            ("https:h/a.jpg", host),
            ("https:/h/a.jpg", host),
            ("https:///h/a.jpg", host),
            ("https://u:p@h/a.jpg", user),
            ("https://@h/a.jpg", user),
            ("https:\\\\h/a.jpg", unfit),
            (" https://h/a.jpg", unfit),
            ("https://h/a b.jpg", unfit),
            ("https://h/a\n.jpg", unfit),
            ("https://h/a\u{202e}.jpg", unfit),
            ("https://h/a.gif", end),
            ("https://h/a.jpg/", end),
            ("https://h/a.jpg/..", end),
            ("https://h/a", end),
            ("https://h", end),
            ("https://h/a?name=a.jpg", end),
            ("https://h/#a.jpg", end),
        ] {
            for at in [FRONT_LINK, BACK_LINK] {
                check(at, json!(link), fault);
            }
        }
    }

    #[test]
    fn rules_open_what_an_installation_needs() {
        let rules = Rules {
            document_types: vec!["PAN".to_owned()],
            allow_http_links: true,
            allow_extensionless_links: true,
        };
        assert_eq!(rules.document_type("PAN"), Ok(()));
        assert_eq!(rules.document_type("PASSPORT"), Err("must be one of PAN".to_owned()));
        for link in ["http://h/a.jpg", "https://h/a", "http://h/files/0b4d3c2e?v=1.2"] {
            assert_eq!(rules.link(link), Ok(()), "{link}");
        }
        for link in ["https://h/", "https://h/a.gif", "https://h/a."] {
            assert!(rules.link(link).is_err(), "{link}");
        }
    }

    #[test]
    fn a_document_number_is_1_to_64_visible_characters() {
        let unprintable = "must not hold unprintable characters";
        let space = "must not begin or end with a space, nor hold two in a row";
        for (number, fault) in [
            ("1", ""),
            ("1234 5612 3456", ""),
            ("MH-12/2011/0062821", ""),
            ("É12", ""),
            (&"9".repeat(64), ""),
            (&"9".repeat(65), "must be at most 64 characters"),
            ("", "must not be empty"),
            (" ", space),
            (" 1", space),
            ("1 ", space),
            ("1  2", space),
            ("1\t2", unprintable),
            ("1\n", unprintable),
            ("1\u{a0}2", unprintable),
            ("1\u{3000}2", unprintable),
            ("1\u{7f}2", unprintable),
            ("1\u{200b}2", unprintable),
            ("1\u{202e}2", unprintable),
            ("1\u{2060}2", unprintable),
            ("\u{feff}12", unprintable),
        ] {
            check(DOCUMENT_NUMBER, json!(number), fault);
        }
    }

    #[test]
    fn no_more_than_half_of_a_document_number_is_shown() {
        for (number, shown) in [
            ("1", ""),
            ("12", "2"),
            ("1234", "34"),
            ("12345", "45"),
            ("1234567", "567"),
            ("12345678", "5678"),
            ("123456789é", "789é"),
        ] {
            assert_eq!(last4(number), shown);
        }
    }

    #[test]
    fn a_job_is_named_by_its_body_or_by_its_message() {
        const FOREIGN: Option<&str> = Some("ID:broker-1");
        let named = |id: &str| with("/job_id", json!(id));
        let (body, upper) = (example_text(), JOB_ID.to_uppercase());
        let absent = "/job_id: is missing, and there is no message_id that is a UUID";
        let differs = "/job_id: is not the message_id; send one, or the same in both";
        let unreadable = "/job_id: must be a UUID of 36 characters";
        for (body, message_id, job_id, fault) in [
            (&body, Some(JOB_ID), Some(JOB_ID), None),
            (&body, Some(upper.as_str()), Some(JOB_ID), None),
            (&named(JOB_ID), None, Some(JOB_ID), None),
            (&named(&upper), Some(JOB_ID), Some(JOB_ID), None),
            (&named(JOB_ID), FOREIGN, Some(JOB_ID), None),
            (&body, None, None, Some(absent)),
            (&body, FOREIGN, None, Some(absent)),
            (&named(OTHER_ID), Some(JOB_ID), None, Some(differs)),
            (&named("7"), None, None, Some(unreadable)),
            (&named("7"), Some(JOB_ID), Some(JOB_ID), Some(unreadable)),
        ] {
            let envelope = Envelope { message_id, ..envelope(body) };
            let (id, text) = match parse(envelope) {
                Ok(job) => (Some(job.id), None),
                Err(invalid) => (invalid.job_id, Some(invalid.to_string())),
            };
            let id = id.map(|id| id.to_string());
            assert_eq!((id.as_deref(), text.as_deref()), (job_id, fault), "{body}");
        }
    }

    #[test]
    fn a_job_is_dated_by_its_body_then_its_message_then_its_receipt() {
        let noon = 1_752_667_200;
        let body = example_text();
        let dated = |at: &str| with("/requested_at", json!(at));
        let ahead = "/requested_at: is more than 5 minutes ahead of the worker's clock";
        let form = "/requested_at: must be an RFC 3339 time such as 2025-07-16T12:59:05Z";
        let unit = "/requested_at: is missing, and the message's timestamp not in seconds";
        for (body, timestamp, expected) in [
            (&dated("2025-07-16T14:00:00+02:00"), Some(7), "2025-07-16T12:00:00Z"),
            (&dated("2025-07-16T12:00:00.5z"), None, "2025-07-16T12:00:00.5Z"),
            (&dated("2025-07-16T13:04:05Z"), None, "2025-07-16T13:04:05Z"),
            (&dated("2025-07-16T13:04:05.1Z"), None, ahead),
            (&dated("2025-07-16 12:00"), None, form),
            (&dated("9999-12-31T23:59:59-05:00"), None, form),
            (&dated(""), Some(noon), form),
            (&body, Some(noon), "2025-07-16T12:00:00Z"),
            (&body, Some(noon + 7_200), ahead),
            (&body, Some(noon * 1_000), unit),
            (&body, Some(u64::MAX), unit),
            (&body, None, "2025-07-16T12:59:05Z"),
        ] {
            let envelope = Envelope { timestamp, ..envelope(body) };
            let read = match parse(envelope) {
                Ok(job) => job.requested_at.format(&Rfc3339).unwrap(),
                Err(invalid) => invalid.to_string(),
            };
            assert_eq!(read, expected, "{body} {timestamp:?}");
        }
    }

    #[test]
    fn a_job_expires_after_it_was_requested() {
        check("/expires_at", json!("2025-07-16T12:59:05.000000001Z"), "");
        check("/expires_at", json!("2025-07-16T12:59:05Z"), "must be later than requested_at");
        let form = "must be an RFC 3339 time such as 2025-07-16T12:59:05Z";
        check("/expires_at", json!("tomorrow"), form);
        let job = parse_text(&with("/expires_at", json!("2025-07-17T00:00:00+05:30"))).unwrap();
        assert_eq!(job.expires_at, Some(datetime!(2025-07-16 18:30 UTC)));
    }

    #[test]
    fn a_correlation_id_that_cannot_be_kept_refuses_no_job() {
        let body = example_text();
        for (text, is_kept) in
            [("case-7", true), (&"x".repeat(255), true), (&"x".repeat(256), false), ("a\nb", false)]
        {
            let envelope = Envelope { correlation_id: Some(text), ..envelope(&body) };
            let job = parse(envelope).unwrap();
            assert_eq!(job.correlation_id.as_deref(), is_kept.then_some(text));
        }
    }

    #[test]
    fn all_faults_are_reported_at_once() {
        let invalid = parse_text(
            r#"{
                "job_id": "11111111-2222-4333-8444-555555555555",
                "customer_id": "4e6f1b20-a73c-11ec-b909-0242ac120002",
                "full_address": "\ud800",
                "document_type": "PASSPORT", "document_type": "AADHAAR",
                "document_front_image_url": "ftp://h/a.jpg",
                "document_details": {"document_number": 7, "additional_data": {"x": 1e999}},
                "note": ""
            }"#,
        )
        .unwrap_err();
        assert_eq!(invalid.job_id, None);
        assert_eq!(invalid.customer_id.unwrap().to_string(), CUSTOMER_ID);
        let faults: Vec<_> = invalid.faults.iter().map(Fault::to_string).collect();
        assert_eq!(
            faults,
            [
                "/full_address: has a lone surrogate",
                "/document_type: appears more than once",
                "/document_details/additional_data/x: is too large for a float; send it as a string",
                "/job_id: is not the message_id; send one, or the same in both",
                "/document_front_image_url: must begin with https://",
                "/document_back_image_url: is missing",
                "/document_details/document_number: must be a string",
                "/note: is not a field of this message",
            ]
        );
    }

    #[test]
    fn a_body_that_cannot_be_read_is_still_named_by_its_message() {
        let large = format!("{}{}", example(), " ".repeat(BODY_BYTES_MAX));
        for (body, fault) in [
            (large.as_str(), "body: is larger than 64 KiB"),
            ("{", "body: is not JSON: EOF while parsing an object at line 1 column 1"),
        ] {
            let invalid = parse_text(body).unwrap_err();
            assert_eq!(invalid.job_id.unwrap().to_string(), JOB_ID);
            assert_eq!(invalid.to_string(), fault);
        }
        let body = example_text();
        let fits = format!("{body}{}", " ".repeat(BODY_BYTES_MAX - body.len()));
        assert!(parse_text(&fits).is_ok());
    }

    #[test]
    fn a_long_list_of_faults_is_cut_and_says_so() {
        let mut body = example();
        for n in 0..40 {
            body[format!("{}_{}", "unknown".repeat(4), "x".repeat(n % 8))] = json!(n);
            body[format!("{n}")] = json!(n);
        }
        let invalid = parse_text(&body.to_string()).unwrap_err();
        assert_eq!(invalid.faults.len(), 32);
        assert_eq!(invalid.faults[31].to_string(), "body: has 17 more faults");
        assert!(invalid.to_string().ends_with("has 17 more faults"));

        let long = Fault::new("/x", "é".repeat(INVALID_CHARS_MAX));
        let text = Invalid::new(None, None, vec![long]).to_string();
        assert_eq!(text.chars().count(), INVALID_CHARS_MAX);
        assert!(text.ends_with('…'));
    }

    #[test]
    fn a_request_reads_back_from_its_sealed_text() {
        let text = example_text();
        let request = UpdateRequest::from_sealed(&text).unwrap();
        assert_eq!(request.to_canonical(Profile::Compact), text);
        assert_eq!(request.document_number_last4(), "3456");

        for (text, fault) in [
            ("{}", "/customer_id: is not in the request"),
            (r#"{"customer_id": "7"}"#, "/customer_id: must be a UUID of 36 characters"),
            (&with(DOCUMENT_NUMBER, None), "/document_details/document_number: is not in the request"),
            ("{", "body: is not JSON: EOF while parsing an object at line 1 column 1"),
        ] {
            assert_eq!(UpdateRequest::from_sealed(text).unwrap_err().to_string(), fault);
        }
    }

    #[test]
    fn a_link_presigned_anew_leaves_the_fingerprint_alone() {
        let fingerprint = |link: &str| {
            let body = with(FRONT_LINK, json!(link));
            parse_text(&body).unwrap().fingerprint_text
        };
        let bare = fingerprint("https://h/a.jpg");
        assert_eq!(fingerprint("https://h/a.jpg?X-Amz-Date=1#b"), bare);
        assert_eq!(fingerprint("https://h/a.jpg#b?c"), bare);
        assert_ne!(fingerprint("https://h/b.jpg"), bare);
    }

    /// An address, a number and a query string that must never be shown, and what of them
    /// to look for.
    const CANARIES: [(&str, &str, &str); 3] = [
        ("/full_address", "12 Zyl0phone Street, Mumbai", "Zyl0phone"),
        (DOCUMENT_NUMBER, "QX 4881 6217", "4881"),
        (FRONT_LINK, "https://h/a.jpg?token=s3cr3t", "s3cr3t"),
    ];

    fn canary_body() -> Value {
        let mut body = example();
        for (pointer, value, _) in CANARIES {
            *body.pointer_mut(pointer).unwrap() = json!(value);
        }
        body
    }

    fn shows_a_canary(text: &str) -> bool {
        CANARIES.iter().any(|(.., canary)| text.contains(canary))
    }

    #[test]
    fn debug_shows_ids_type_and_times_only() {
        let job = parse_text(&canary_body().to_string()).unwrap();
        assert!(shows_a_canary(&compact(&job.request)));
        let debug = format!("{job:?}");
        assert!(!shows_a_canary(&debug), "{debug}");
        for shown in [JOB_ID, CUSTOMER_ID, "PASSPORT", "2025-07-16"] {
            assert!(debug.contains(shown), "{debug}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_096))]

        /// Splices bytes of JSON into a valid body and puts its values where others belong.
        #[test]
        fn no_fault_shows_a_value(
            splices in prop::collection::vec((any::<Index>(), 0..40_usize, "[{}\\[\\]\",:\\\\0-9etn. -]{0,3}"), 0..4),
            swaps in prop::collection::vec((any::<Index>(), any::<Index>(), 0..3), 0..3),
        ) {
            let fields = ["job_id", "requested_at", "expires_at", "customer_id", "document_type",
                "document_details", "document_back_image_url", "full_address"];
            let mut body = canary_body();
            for (field, canary, shape) in swaps {
                let (_, value, _) = *canary.get(&CANARIES);
                let field = *field.get(&fields);
                body[field] = match shape {
                    0 => json!(value),
                    1 => json!([value]),
                    _ => json!({ value: value }),
                };
                body[value] = json!(value);
            }
            let mut text = body.to_string();
            for (at, length, with) in splices {
                let at = at.index(text.len());
                text.replace_range(at..text.len().min(at + length), &with);
            }
            match parse_text(&text) {
                Ok(job) => prop_assert!(!shows_a_canary(&format!("{job:?}")), "{}", text),
                Err(invalid) => {
                    prop_assert!(!invalid.faults.is_empty());
                    prop_assert!(!shows_a_canary(&format!("{invalid} {invalid:?}")), "{}", invalid);
                }
            }
        }
    }
}
