//! What one attempt's result means. The rules are the provider's documented answers,
//! contradictions included; they know nothing of how the result was obtained.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use uuid::Uuid;

use super::clock_skew::ClockSkew;
use super::foreign_text::{known_id, known_words};
use super::job::PROVIDER_FIELDS;
use super::state::{LinkField, VerdictKind};

/// What came back from one attempt at the provider.
#[derive(Clone, Debug, PartialEq)]
pub enum HttpOutcome {
    /// A status line was seen. It decides, even where the body then failed.
    Answered(Answer),
    /// The request's body never left: nothing can have been applied.
    NotSent(NotSent),
    /// The body left, or may have, and no status was seen.
    Lost(FailurePoint),
}

/// An answer of the provider, or of something between it and us.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub status: u16,
    /// The `Retry-After` header, as it was written.
    pub retry_after: Option<String>,
    /// The greatest `Age` header in seconds: how long a cache has had the answer. One that is no number
    /// is older than anything.
    pub age_s: Option<u64>,
    /// The `Date` header: when the provider made the answer, by its own clock.
    pub date: Option<SystemTime>,
    /// What that tells of the provider's clock and ours.
    pub skew: Option<ClockSkew>,
    /// It came on a reused connection, sooner than the provider can answer: it belongs to an
    /// earlier request.
    pub is_out_of_step: bool,
    /// The body up to the cap, or why there is none that can be read.
    pub body: Body,
}

/// The body of an [`Answer`].
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Body {
    Whole(Vec<u8>),
    /// It was cut, timed out, grew past the cap, or is encoded in a way that we did not ask for.
    #[default]
    Unreadable,
}

/// Why a request cannot have left.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NotSent {
    /// DNS, TCP or TLS failed, or the connection was refused.
    Connect,
    /// The send window closed before the connection was ready.
    WindowClosed,
    /// Opened ahead, it found no place among the requests in flight before its window closed, or
    /// the intake paused.
    HeldBack,
    Shutdown,
    /// The provider did not tell which document types the customer may use.
    ConfigurationUnread,
    /// The host of a link did not tell whether it holds a document.
    LinkUnchecked,
}

/// How far a request came before its outcome was lost.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FailurePoint {
    /// No complete answer within the request timeout.
    TimedOut,
    /// The connection broke after the body had been handed over.
    ConnectionLost,
    /// A 5xx, 408 or 499: it says nothing about whether the update was applied.
    ServerError,
    /// A 2xx without a readable `status: true`.
    UnreadableSuccess,
    /// A 2xx that names another customer than the one who was asked about.
    OtherCustomer,
    /// A status that proves neither that the update was applied nor that it was not.
    AmbiguousStatus,
    /// An answer that came too soon to be this request's.
    OutOfStep,
}

/// The meaning of one attempt's result.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The provider applied the update.
    Accepted(Acceptance),
    /// The provider refused this job for good.
    Rejected(Rejection),
    /// Nothing was sent and nothing spent.
    NotSent(NotSent),
    /// The provider asks to wait; nothing spent.
    Throttled {
        /// How long it asked us to wait, where that could be read.
        retry_after: Option<Duration>,
    },
    /// The provider, or a proxy before it, refused us and not the job; nothing spent.
    Misconfigured(Misconfiguration),
    /// The update may have been applied.
    Unknown(FailurePoint),
}

/// What the provider said of an update it applied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Acceptance {
    /// `data.id`, or `data.customer_id` as the guide shows it.
    pub reference: Option<String>,
    /// The customer's verification status, as far as its words are known.
    pub verification_status: Option<String>,
}

/// Why a job was refused: by the provider, or by a check before anything was sent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Rejection {
    /// No such customer, or another organization's.
    CustomerNotFound,
    /// The document is another customer's.
    KycAlreadyInUse,
    /// The customer's updates are used up.
    UpdateLimitExceeded,
    /// A field of the request's body was refused.
    FieldRefused,
    /// The provider does not list the job's document type for the customer. Nothing was sent.
    DocumentTypeUnsupported {
        /// Those that it lists.
        supported: Vec<String>,
    },
    /// A link's host does not give the document, or it must not be fetched. Nothing was sent.
    LinkRefused(LinkField, LinkRefusal),
    /// A link leads to nothing. Nothing was sent.
    LinkNotFound(LinkField),
    /// What a link leads to is no JPEG, PNG or PDF, or another one than its extension says. Nothing was
    /// sent.
    NotADocument(LinkField),
}

/// Who refuses a link.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LinkRefusal {
    /// Its host.
    ByHost,
    /// We do: it leads to an address that is not public, or not by https, or on too often.
    Forbidden,
}

/// Why the provider refused us.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Misconfiguration {
    /// The provider says so: a 401, or an error about the key. It is missing, wrong or expired.
    ApiKey,
    /// A 401 that is not the provider's envelope.
    Unauthorized,
    /// 403.
    Forbidden,
    /// 404: there is no such endpoint, or something on the way hides it.
    Endpoint,
    /// 301, 302, 307, 308: redirects are never followed, they would take the signature along.
    Redirected,
    Signature,
    /// The timestamp is refused, as too old for instance.
    Timestamp,
    /// The provider's envelope with a refusal that says nothing documented of the job.
    Undocumented,
    /// A field or the customer is refused, for one customer after the other and with nothing taken
    /// between: it may be about us.
    LikeOthers,
    /// 407: a proxy on the way wants credentials, or other ones.
    Proxy,
    /// A 4xx that is not the provider's envelope: a proxy's page.
    NotTheProvider,
    /// A 4xx whose body was cut, too long, or encoded.
    UnreadableRefusal,
}

impl Verdict {
    pub fn kind(&self) -> VerdictKind {
        match self {
            Self::Accepted(_) => VerdictKind::Accepted,
            Self::Rejected(_) => VerdictKind::Rejected,
            Self::NotSent(_) => VerdictKind::NotSent,
            Self::Throttled { .. } => VerdictKind::Throttled,
            Self::Misconfigured(_) => VerdictKind::Misconfigured,
            Self::Unknown(_) => VerdictKind::Unknown,
        }
    }

    /// The verdict's name in tables and logs.
    pub fn name(&self) -> &'static str {
        self.kind().name()
    }

    /// A code that says more than the name, where there is more to say.
    pub fn detail(&self) -> Option<&'static str> {
        match self {
            Self::Accepted(_) | Self::Throttled { .. } => None,
            Self::Rejected(rejection) => Some(rejection.code()),
            Self::NotSent(cause) => Some(cause.code()),
            Self::Misconfigured(cause) => Some(cause.code()),
            Self::Unknown(phase) => Some(phase.code()),
        }
    }
}

impl NotSent {
    /// The cause as a code.
    pub fn code(self) -> &'static str {
        match self {
            Self::Connect => "connect_failed",
            Self::WindowClosed => "send_window_closed",
            Self::HeldBack => "held_back",
            Self::Shutdown => "shutdown",
            Self::ConfigurationUnread => "configuration_unread",
            Self::LinkUnchecked => "link_unchecked",
        }
    }
}

impl FailurePoint {
    /// The phase as a code.
    pub fn code(self) -> &'static str {
        match self {
            Self::TimedOut => "timed_out",
            Self::ConnectionLost => "connection_lost",
            Self::ServerError => "server_error",
            Self::UnreadableSuccess => "unreadable_success",
            Self::OtherCustomer => "other_customer",
            Self::AmbiguousStatus => "ambiguous_status",
            Self::OutOfStep => "out_of_step",
        }
    }
}

const DOCUMENT_TYPE_UNSUPPORTED: &str = "document_type_unsupported";
const LINK_REFUSED: &str = "link_refused";
const LINK_NOT_FOUND: &str = "link_not_found";
const NOT_A_DOCUMENT: &str = "not_a_document";

impl Rejection {
    /// The codes of what [a check](Self::is_by_check) found.
    pub const CODES_OF_CHECKS: [&'static str; 4] =
        [DOCUMENT_TYPE_UNSUPPORTED, LINK_REFUSED, LINK_NOT_FOUND, NOT_A_DOCUMENT];

    /// The reason code of a submission that ended so.
    pub fn code(&self) -> &'static str {
        match self {
            Self::CustomerNotFound => "customer_not_found",
            Self::KycAlreadyInUse => "kyc_already_in_use",
            Self::UpdateLimitExceeded => "update_limit_exceeded",
            Self::FieldRefused => "field_refused",
            Self::DocumentTypeUnsupported { .. } => DOCUMENT_TYPE_UNSUPPORTED,
            Self::LinkRefused(..) => LINK_REFUSED,
            Self::LinkNotFound(_) => LINK_NOT_FOUND,
            Self::NotADocument(_) => NOT_A_DOCUMENT,
        }
    }

    /// Whether a check of ours found it before anything was sent. Then it says nothing of whether the
    /// provider takes updates.
    pub fn is_by_check(&self) -> bool {
        match self {
            Self::DocumentTypeUnsupported { .. }
            | Self::LinkRefused(..)
            | Self::LinkNotFound(_)
            | Self::NotADocument(_) => true,
            Self::CustomerNotFound
            | Self::KycAlreadyInUse
            | Self::UpdateLimitExceeded
            | Self::FieldRefused => false,
        }
    }
}

impl Misconfiguration {
    /// The cause as a code.
    pub fn code(self) -> &'static str {
        match self {
            Self::ApiKey => "api_key_refused",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::Endpoint => "endpoint_not_found",
            Self::Redirected => "redirected",
            Self::Signature => "signature_refused",
            Self::Timestamp => "timestamp_refused",
            Self::Undocumented => "undocumented_refusal",
            Self::LikeOthers => "refused_like_others",
            Self::Proxy => "proxy_refused",
            Self::NotTheProvider => "not_the_provider",
            Self::UnreadableRefusal => "unreadable_refusal",
        }
    }

    /// What to check: a setting, where one can be the cause.
    pub fn setting(self) -> &'static str {
        match self {
            Self::ApiKey | Self::Unauthorized | Self::Forbidden => "DOLLARPE_API_KEY",
            Self::Endpoint | Self::Redirected => "DOLLARPE_BASE_URL",
            Self::NotTheProvider => "DOLLARPE_BASE_URL, and DOLLARPE_PROXY where that is set",
            Self::Proxy => "DOLLARPE_PROXY",
            Self::Signature => "DOLLARPE_API_SECRET, DOLLARPE_SIGNING_PROFILE or this machine's clock",
            Self::Timestamp => "this machine's clock",
            Self::LikeOthers => {
                "DOLLARPE_API_KEY, which may be another organization's, and the attempts' provider_message"
            }
            Self::Undocumented => {
                "the attempts' http_status and provider_message, and ask the provider what they mean"
            }
            Self::UnreadableRefusal => "DOLLARPE_BASE_URL and what stands between here and the provider",
        }
    }

    /// Whether one such refusal tells that everybody is refused: the provider says of itself that it
    /// does not take our key, signature or timestamp. Any other may be about one job, whatever its
    /// status, as a firewall on the way dislikes what one job holds: it tells of everybody only in a run.
    pub fn is_everybodys(self) -> bool {
        match self {
            Self::ApiKey | Self::Signature | Self::Timestamp => true,
            Self::Unauthorized
            | Self::Forbidden
            | Self::Endpoint
            | Self::Redirected
            | Self::Undocumented
            | Self::LikeOthers
            | Self::Proxy
            | Self::NotTheProvider
            | Self::UnreadableRefusal => false,
        }
    }
}

impl fmt::Display for Misconfiguration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ApiKey => "the provider refuses the API key",
            Self::Unauthorized => "a 401 came, and not in the provider's words",
            Self::Forbidden => "the provider forbids the call",
            Self::Endpoint => "there is no such endpoint",
            Self::Redirected => "the provider redirects, and redirects are never followed",
            Self::Signature => "the provider refuses the signature",
            Self::Timestamp => "the provider refuses the timestamp",
            Self::Undocumented => "the provider refuses with words that its documentation does not have",
            Self::LikeOthers => "the provider refuses one job after the other, and takes none",
            Self::Proxy => "a proxy on the way does not take our credentials",
            Self::NotTheProvider => "something other than the provider answered",
            Self::UnreadableRefusal => "a refusal cannot be read",
        })
    }
}

/// Classifies the result of an attempt for a customer. `now` is for a `Retry-After` that is a
/// date; `not_applied_statuses` are those that the operator knows to mean "not applied".
///
/// `Rejected` cannot be taken back, so it is never what is left over: it needs documented words,
/// or a field of the request's body whose value is at fault. Nor is "nothing was applied": it needs a
/// status that proves it. What proves neither is `Unknown`, and the customer is read.
pub fn classify(
    outcome: &HttpOutcome,
    customer_id: Uuid,
    not_applied_statuses: &[u16],
    now: SystemTime,
) -> Verdict {
    let answer = match outcome {
        HttpOutcome::NotSent(cause) => return Verdict::NotSent(*cause),
        HttpOutcome::Lost(phase) => return Verdict::Unknown(*phase),
        HttpOutcome::Answered(answer) => answer,
    };
    // Only an acceptance says by itself whose it is.
    if answer.is_out_of_step && !names_customer(&answer.body, customer_id) {
        return Verdict::Unknown(FailurePoint::OutOfStep);
    }
    if answer.status == 429 || not_applied_statuses.contains(&answer.status) {
        let retry_after = answer.retry_after.as_deref();
        return Verdict::Throttled { retry_after: retry_after.and_then(|text| parse_retry_after(text, now)) };
    }
    match answer.status {
        200..=299 => classify_success(&answer.body, customer_id),
        // Answered before the request is processed, which is to be made elsewhere. Not so 303,
        // "done, see there", nor 300 and 304.
        301 | 302 | 307 | 308 => Verdict::Misconfigured(Misconfiguration::Redirected),
        401 | 403 | 404 => Verdict::Misconfigured(classify_status_of_ours(answer.status, &answer.body)),
        407 => Verdict::Misconfigured(Misconfiguration::Proxy),
        // Whoever waited for the provider, or for us, gave up: 460 and 499 are load balancers' 408.
        408 | 460 | 499 | 500..=599 => Verdict::Unknown(FailurePoint::ServerError),
        400..=498 if is_about_another(&answer.body, customer_id) => {
            Verdict::Unknown(FailurePoint::OtherCustomer)
        }
        400..=498 => classify_refusal(answer.status, &answer.body),
        _ => Verdict::Unknown(FailurePoint::AmbiguousStatus),
    }
}

fn classify_success(body: &Body, customer_id: Uuid) -> Verdict {
    let Some(value) = body.json().filter(|value| value["status"] == Value::Bool(true)) else {
        return Verdict::Unknown(FailurePoint::UnreadableSuccess);
    };
    let data = &value["data"];
    if names_another(data, customer_id) {
        return Verdict::Unknown(FailurePoint::OtherCustomer);
    }
    let text = |key: &str| data[key].as_str();
    Verdict::Accepted(Acceptance {
        reference: text("id").or_else(|| text("customer_id")).map(known_id),
        verification_status: text("status").map(known_words),
    })
}

/// Of whom an answer's `data` tells, in the two places that the provider documents.
fn named(data: &Value) -> impl Iterator<Item = Option<Uuid>> {
    let ids = ["id", "customer_id"].map(|key| data[key].as_str());
    ids.into_iter().flatten().map(|text| text.parse().ok())
}

/// Whether `data` says that it is about another customer. That it says nothing is no such word.
pub(super) fn names_another(data: &Value, customer_id: Uuid) -> bool {
    named(data).any(|id| id != Some(customer_id))
}

/// Whether an answer's `data` says that it is about another customer: what it says is not of this update.
fn is_about_another(body: &Body, customer_id: Uuid) -> bool {
    names_another(&body.json().unwrap_or_default()["data"], customer_id)
}

/// Whether an answer's `data` says that it is about this customer.
pub fn names_customer(body: &Body, customer_id: Uuid) -> bool {
    let value = body.json().unwrap_or_default();
    let mut ids = named(&value["data"]).peekable();
    ids.peek().is_some() && ids.all(|id| id == Some(customer_id))
}

/// A 401, 403 or 404. None of them rejects a job, whatever it says: to a caller who is not let in,
/// every customer is one that cannot be found.
fn classify_status_of_ours(status: u16, body: &Body) -> Misconfiguration {
    let refusal = Refusal::read(body);
    let header = refusal.as_ref().and_then(|refusal| refusal.header_at_fault().or(refusal.header_in_words()));
    match (header, status) {
        (Some(header), _) => header,
        // That is what the provider documents.
        (None, 401) if refusal.is_some() => Misconfiguration::ApiKey,
        (None, 401) => Misconfiguration::Unauthorized,
        (None, 403) => Misconfiguration::Forbidden,
        (None, _) => Misconfiguration::Endpoint,
    }
}

/// Any other 4xx that applied nothing: whom does it refuse, this job or us?
fn classify_refusal(status: u16, body: &Body) -> Verdict {
    if *body == Body::Unreadable {
        return Verdict::Misconfigured(Misconfiguration::UnreadableRefusal);
    }
    match Refusal::read(body) {
        Some(refusal) => refusal.verdict(status),
        None => Verdict::Misconfigured(Misconfiguration::NotTheProvider),
    }
}

/// Reads a `Retry-After` header: whole seconds, or an HTTP date (RFC 9110, 10.2.3).
/// A date in the past means no wait; anything else is `None`.
fn parse_retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are a wait longer than any cap.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::from(u32::MAX))));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// A refusal in the provider's documented envelope: `status` or `success` is false.
struct Refusal {
    message: String,
    errors: Vec<(String, String)>,
}

impl Refusal {
    fn read(body: &Body) -> Option<Self> {
        let value = body.json()?;
        let is_envelope = value["status"] == Value::Bool(false) || value["success"] == Value::Bool(false);
        if !is_envelope {
            return None;
        }
        let mut errors = Vec::new();
        collect_errors("", &value["errors"], &mut errors);
        Some(Self { message: value["message"].as_str().unwrap_or_default().to_owned(), errors })
    }

    /// 1. An error under one of our three headers is ours.
    /// 2. Documented words about the job reject it, whatever the status.
    /// 3. Words about our headers are ours.
    /// 4. Errors under fields of the request's body, and under nothing else, reject it, unless the
    ///    words speak of a time or of us: another update in progress is no fault of the value. Any other
    ///    status than those two that are about values (405, 409, 415, 431 …) needs documented words.
    /// 5. What is left is not documented. It may be about the job, or about everybody.
    fn verdict(&self, status: u16) -> Verdict {
        if let Some(header) = self.header_at_fault() {
            return Verdict::Misconfigured(header);
        }
        let known = [
            ("customer not found or access denied", Rejection::CustomerNotFound),
            ("kyc already in use", Rejection::KycAlreadyInUse),
            ("kyc update limit exceeded", Rejection::UpdateLimitExceeded),
        ];
        if let Some((_, rejection)) = known.into_iter().find(|(text, _)| self.says(text)) {
            return Verdict::Rejected(rejection);
        }
        if let Some(header) = self.header_in_words() {
            return Verdict::Misconfigured(header);
        }
        let is_about_fields =
            !self.errors.is_empty() && self.errors.iter().all(|(field, _)| is_of_the_body(field));
        if is_about_fields
            && matches!(status, 400 | 422)
            && !self.texts().any(|text| speaks_of_a_time_or_of_us(text))
        {
            return Verdict::Rejected(Rejection::FieldRefused);
        }
        Verdict::Misconfigured(Misconfiguration::Undocumented)
    }

    /// The header of ours that an error stands under.
    fn header_at_fault(&self) -> Option<Misconfiguration> {
        self.errors.iter().find_map(|(field, _)| header_named(field))
    }

    /// The header of ours that the words are about. Under a field of the request's body, a signature may
    /// be the document's own, but for one that is invalid or fails.
    fn header_in_words(&self) -> Option<Misconfiguration> {
        let others = self.errors.iter().filter(|(field, _)| !is_of_the_body(field)).map(|(_, text)| text);
        let is_of_no_document = others.chain([&self.message]).any(|text| contains_any(text, &["signature"]));
        let mentions = |words: &[&str]| self.texts().any(|text| contains_any(text, words));
        if is_of_no_document || mentions(&SIGNATURE_REFUSED) {
            Some(Misconfiguration::Signature)
        } else if mentions(&["timestamp"]) {
            Some(Misconfiguration::Timestamp)
        } else if mentions(&["api key", "api-key", "api_key"]) {
            Some(Misconfiguration::ApiKey)
        } else {
            None
        }
    }

    fn texts(&self) -> impl Iterator<Item = &String> {
        self.errors.iter().map(|(_, text)| text).chain([&self.message])
    }

    /// Whether `message` or any text under `errors` says it, in any case, with or without its full stop.
    fn says(&self, text: &str) -> bool {
        self.texts().any(|said| {
            let said = said.trim().trim_end_matches('.').trim_end();
            said.eq_ignore_ascii_case(text)
        })
    }
}

/// How a refusal of our signature is said, and not of one on a document.
const SIGNATURE_REFUSED: [&str; 7] = [
    "invalid signature",
    "signature verification",
    "signature mismatch",
    "signature does not match",
    "signature is invalid",
    "bad signature",
    "hmac",
];

/// Whether a text speaks of a state that passes, or of who asks, and not of a value. Rather once too
/// often: then a person is asked, and a rejection cannot be taken back.
fn speaks_of_a_time_or_of_us(text: &str) -> bool {
    const WORDS: [&str; 50] = [
        "again",
        "retry",
        "later",
        "temporar",
        "in progress",
        "unavailable",
        "timed out",
        "timeout",
        "busy",
        "locked",
        "throttled",
        "too many requests",
        "rate limit",
        "quota",
        "per day",
        "daily",
        "maintenance",
        "pending",
        "organization",
        "organisation",
        "subscription",
        "suspended",
        "permission",
        "not authorized",
        "unauthorized",
        "forbidden",
        "access denied",
        "your account",
        "nonce",
        "token",
        "credential",
        "client",
        "merchant",
        "balance",
        "whitelist",
        "ip address",
        "limit reached",
        "limit exceeded",
        "license expired",
        "not enabled",
        "request expired",
        "stale",
        "clock",
        "internal",
        "went wrong",
        "database",
        "upstream",
        "connection",
        "upload",
        "being verified",
    ];
    contains_any(text, &WORDS)
}

/// Whether a text contains one of `words`, which are in lower case.
fn contains_any(text: &str, words: &[&str]) -> bool {
    let text = text.to_ascii_lowercase();
    words.iter().any(|words| text.contains(words))
}

/// The header of ours that an error's field names, as `signature`, `X-SIGNATURE` or the like.
fn header_named(field: &str) -> Option<Misconfiguration> {
    let name = field.to_ascii_lowercase().replace('-', "_");
    match name.strip_prefix("x_").unwrap_or(&name) {
        "signature" => Some(Misconfiguration::Signature),
        "timestamp" => Some(Misconfiguration::Timestamp),
        "api_key" | "apikey" | "authorization" => Some(Misconfiguration::ApiKey),
        _ => None,
    }
}

/// Whether an error's field is one of the request's body, nested ones included.
fn is_of_the_body(field: &str) -> bool {
    let name = field.split('.').next().unwrap_or_default();
    PROVIDER_FIELDS.contains(&name) || ["document_number", "additional_data"].contains(&name)
}

/// Gathers the texts under `errors`, each with the field it stands under. The provider
/// documents lists of texts by field and a plain text; nested shapes are walked too.
fn collect_errors(field: &str, value: &Value, found: &mut Vec<(String, String)>) {
    match value {
        Value::String(text) => found.push((field.to_owned(), text.clone())),
        Value::Array(items) => items.iter().for_each(|item| collect_errors(field, item, found)),
        Value::Object(members) => {
            for (key, value) in members {
                let field = if field.is_empty() { key.clone() } else { format!("{field}.{key}") };
                collect_errors(&field, value, found);
            }
        }
        _ => {}
    }
}

/// The provider's words on a failure, for people: its message and its errors by field, as far
/// as they are [known](known_words), at most 500 characters. `None` where the answer is not the
/// provider's envelope.
pub fn provider_message(answer: &Answer) -> Option<String> {
    let refusal = Refusal::read(&answer.body)?;
    let mut said = known_words(&refusal.message);
    for (field, text) in refusal.errors {
        let gap = if said.is_empty() { "" } else { "; " };
        // A field's name may be an echo, too.
        let label = if field.is_empty() { String::new() } else { format!("{}: ", known_words(&field)) };
        said = format!("{said}{gap}{label}{}", known_words(&text));
    }
    Some(said.chars().take(500).collect())
}

impl Body {
    /// Reads it as JSON, after a byte order mark if there is one. Letters of another encoding
    /// than UTF-8 become replacement characters: keys and documented words are ASCII.
    pub fn json(&self) -> Option<Value> {
        let Self::Whole(bytes) = self else { return None };
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        match serde_json::from_slice(bytes) {
            Ok(value) => Some(value),
            Err(_) if std::str::from_utf8(bytes).is_err() => {
                serde_json::from_str(&String::from_utf8_lossy(bytes)).ok()
            }
            Err(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUSTOMER: Uuid = Uuid::from_u128(7);

    fn answer(status: u16, body: impl AsRef<[u8]>) -> HttpOutcome {
        let body = Body::Whole(body.as_ref().to_vec());
        HttpOutcome::Answered(Answer { status, body, ..Answer::default() })
    }

    fn refused_with(status: u16, message: &str, errors: &str) -> HttpOutcome {
        let body = format!(r#"{{"status":false,"message":"{message}","errors":{errors},"data":null}}"#);
        answer(status, body)
    }

    fn refused(message: &str, errors: &str) -> HttpOutcome {
        refused_with(400, message, errors)
    }

    #[track_caller]
    fn check(outcome: HttpOutcome, name: &str, detail: Option<&str>) {
        let verdict = classify(&outcome, CUSTOMER, &[], SystemTime::UNIX_EPOCH);
        assert_eq!((verdict.name(), verdict.detail()), (name, detail), "{outcome:?}");
    }

    #[test]
    fn documented_words_and_fields_of_the_body_reject_the_job() {
        #[track_caller]
        fn check_rejected(outcome: HttpOutcome, code: &str) {
            check(outcome, "rejected", Some(code));
        }
        let bad = |errors: &str| refused("Bad Request", errors);
        check_rejected(refused("Customer not found or access denied", "{}"), "customer_not_found");
        check_rejected(bad(r#"{"customer":["Customer not found or access denied."]}"#), "customer_not_found");
        check_rejected(refused("KYC already in use", "null"), "kyc_already_in_use");
        check_rejected(bad(r#"{"kyc":"kyc ALREADY in use."}"#), "kyc_already_in_use");
        check_rejected(refused_with(409, "KYC already in use", "{}"), "kyc_already_in_use");
        check_rejected(refused("Kyc update limit exceeded", "{}"), "update_limit_exceeded");
        check_rejected(bad(r#"{"detail":["KYC Update Limit Exceeded."]}"#), "update_limit_exceeded");
        for errors in [
            r#"{"full_address":["This field may not be blank."]}"#,
            r#"{"document_details":{"document_number":["Too long."]}}"#,
            r#"{"document_details":{"additional_data":{"file":[{"number":"Unknown."}]}}}"#,
            r#"{"document_number":"Too long."}"#,
            r#"{"customer_id":["Must be a valid UUID."],"document_type":["Not a choice."]}"#,
            r#"{"document_front_image_url":["The signature cannot be seen."]}"#,
        ] {
            check_rejected(bad(errors), "field_refused");
            check_rejected(refused_with(422, "Bad Request", errors), "field_refused");
        }
    }

    /// Each of these once ended jobs as `rejected`, without a warning.
    #[test]
    fn a_refusal_of_us_in_the_providers_envelope_is_not_the_jobs() {
        #[track_caller]
        fn check_ours(outcome: HttpOutcome, code: &str) {
            check(outcome, "misconfigured", Some(code));
        }
        let bad = |errors: &str| refused("Bad Request", errors);
        for field in ["signature", "Signature", "X-SIGNATURE", "x_signature"] {
            check_ours(bad(&format!(r#"{{"{field}":["Invalid."]}}"#)), "signature_refused");
        }
        check_ours(bad(r#"{"signature":["Invalid Signature"]}"#), "signature_refused");
        check_ours(refused("invalid signature.", "null"), "signature_refused");
        check_ours(refused("Signature verification failed", "{}"), "signature_refused");
        check_ours(bad(r#"{"detail":"Signature verification failed"}"#), "signature_refused");
        check_ours(bad(r#"{"timestamp":["Request expired."]}"#), "timestamp_refused");
        check_ours(bad(r#"{"X-TIMESTAMP":["Missing."]}"#), "timestamp_refused");
        check_ours(refused("Request timestamp is too old", "{}"), "timestamp_refused");
        check_ours(bad(r#"{"api_key":["Inactive."]}"#), "api_key_refused");
        check_ours(bad(r#"{"X-API-KEY":["This field is required."]}"#), "api_key_refused");
        check_ours(refused("API key expired", "{}"), "api_key_refused");
        check_ours(refused("Service temporarily unavailable", "{}"), "undocumented_refusal");
        check_ours(refused("Something new", "null"), "undocumented_refusal");
        check_ours(bad("{}"), "undocumented_refusal");
        check_ours(bad(r#"{"non_field_errors":["Your plan has ended."]}"#), "undocumented_refusal");
        check_ours(bad(r#"{"customer":["Organization is suspended."]}"#), "undocumented_refusal");
        // A field of the body beside one that is not: no word about the job alone.
        let mixed = r#"{"full_address":["Odd."],"organization":["Suspended."]}"#;
        check_ours(bad(mixed), "undocumented_refusal");
        for status in [402, 405, 406, 410, 411, 412, 413, 415, 417, 421, 423, 424, 425, 426, 428, 431, 451] {
            check_ours(refused_with(status, "No", "{}"), "undocumented_refusal");
            check_ours(refused_with(status, "No", r#"{"detail":"Not so."}"#), "undocumented_refusal");
            check_ours(
                refused_with(status, "No", r#"{"document_type":["Not so."]}"#),
                "undocumented_refusal",
            );
        }
    }

    #[test]
    fn a_401_403_or_404_is_everybodys_only_where_the_provider_says_so() {
        for (status, page) in [(401, "unauthorized"), (403, "forbidden"), (404, "endpoint_not_found")] {
            for body in ["<html>Blocked</html>", "", r#"{"detail":"The API key is not known."}"#] {
                check(answer(status, body), "misconfigured", Some(page));
            }
            check(refused_with(status, "API key expired", "{}"), "misconfigured", Some("api_key_refused"));
            let errors = r#"{"signature":["Invalid Signature"]}"#;
            check(refused_with(status, "Bad Request", errors), "misconfigured", Some("signature_refused"));
            let errors = r#"{"document_front_image_url":["The signature cannot be seen."]}"#;
            let left = if status == 401 { "api_key_refused" } else { page };
            check(refused_with(status, "No", errors), "misconfigured", Some(left));
            // Who is not let in finds nobody.
            let nobody = "Customer not found or access denied";
            check(refused_with(status, nobody, "{}"), "misconfigured", Some(left));
        }
    }

    /// A rejection cannot be taken back. Each of these once was one.
    #[test]
    fn a_field_that_is_refused_for_a_time_is_not_rejected() {
        let in_progress = r#"{"document_type":["Another update is in progress, try again later"]}"#;
        for (status, message, errors) in [
            (409, "Conflict", in_progress),
            (409, "Conflict", r#"{"document_type":["This value is not right."]}"#),
            (400, "Bad Request", in_progress),
            (422, "Unprocessable Entity", in_progress),
            (400, "Service temporarily unavailable", r#"{"document_type":["Not a choice."]}"#),
            (400, "Bad Request", r#"{"document_details":{"document_number":["Please retry."]}}"#),
            (400, "Bad Request", r#"{"document_type":["Not now."],"customer_id":["Locked for 30 s."]}"#),
            (409, "Conflict", r#"{"document_front_image_url":["The signature check is in progress."]}"#),
        ] {
            check(refused_with(status, message, errors), "misconfigured", Some("undocumented_refusal"));
        }
    }

    /// Whom the words refuse counts for more than the field that they stand under.
    #[test]
    fn a_refusal_of_us_under_a_field_of_the_body_is_not_the_jobs() {
        for (text, code) in [
            ("API key expired", "api_key_refused"),
            ("Invalid signature", "signature_refused"),
            ("Signature verification failed", "signature_refused"),
            ("Request timestamp is too old", "timestamp_refused"),
            ("Your organization is suspended", "undocumented_refusal"),
            ("You do not have permission to perform this action.", "undocumented_refusal"),
            ("Verification is pending", "undocumented_refusal"),
            ("Daily quota exceeded", "undocumented_refusal"),
            ("Signature mismatch", "signature_refused"),
            ("Hmac mismatch", "signature_refused"),
            ("Merchant is inactive", "undocumented_refusal"),
            ("Token expired", "undocumented_refusal"),
            ("API limit reached", "undocumented_refusal"),
            ("Something went wrong", "undocumented_refusal"),
            ("Could not fetch URL: connection refused", "undocumented_refusal"),
        ] {
            for field in ["customer_id", "document_type", "document_details"] {
                let errors = format!(r#"{{"{field}":["{text}"]}}"#);
                check(refused("Bad Request", &errors), "misconfigured", Some(code));
                check(refused_with(422, "Bad Request", &errors), "misconfigured", Some(code));
            }
            check(refused(text, r#"{"document_type":["Not a choice."]}"#), "misconfigured", Some(code));
        }
        let maintenance = refused("Under maintenance", r#"{"full_address":["Odd."]}"#);
        check(maintenance, "misconfigured", Some("undocumented_refusal"));
    }

    #[test]
    fn a_refusal_of_another_customers_update_says_nothing_of_this_one() {
        let refused = |id: Uuid| {
            let message = "KYC already in use";
            answer(
                400,
                format!(r#"{{"status":false,"message":"{message}","errors":{{}},"data":{{"id":"{id}"}}}}"#),
            )
        };
        check(refused(CUSTOMER), "rejected", Some("kyc_already_in_use"));
        check(refused(Uuid::from_u128(8)), "unknown", Some("other_customer"));
    }

    /// Every status, with a body that helps nothing: which prove that nothing was applied?
    #[test]
    fn every_status_has_its_verdict() {
        for status in 100..=999_u16 {
            let (name, detail) = match status {
                200..=299 => ("unknown", Some("unreadable_success")),
                301 | 302 | 307 | 308 => ("misconfigured", Some("redirected")),
                401 => ("misconfigured", Some("unauthorized")),
                403 => ("misconfigured", Some("forbidden")),
                404 => ("misconfigured", Some("endpoint_not_found")),
                407 => ("misconfigured", Some("proxy_refused")),
                408 | 460 | 499 | 500..=599 => ("unknown", Some("server_error")),
                429 => ("throttled", None),
                400..=498 => ("misconfigured", Some("not_the_provider")),
                // 303: done, see there. 304: as it was, or as it is now.
                _ => ("unknown", Some("ambiguous_status")),
            };
            check(answer(status, "<html>"), name, detail);
        }
        check(
            answer(500, r#"{"success":false,"message":"Internal Server Error","errors":"x","data":null}"#),
            "unknown",
            Some("server_error"),
        );
    }

    #[test]
    fn a_refusal_is_read_as_far_as_it_can_be() {
        let text = r#"{"status":false,"message":"KYC already in use","errors":{},"data":null}"#;
        let with_mark = [&b"\xef\xbb\xbf"[..], text.as_bytes()].concat();
        check(answer(400, with_mark), "rejected", Some("kyc_already_in_use"));
        let latin1 = b"{\"status\":false,\"message\":\"Bad Request\",\"errors\":{\"full_address\":[\"Rue \xc9lys\xe9e\"]}}";
        check(answer(400, latin1), "rejected", Some("field_refused"));
        let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        check(answer(400, utf16), "misconfigured", Some("not_the_provider"));
        let unreadable = HttpOutcome::Answered(Answer { status: 400, ..Answer::default() });
        check(unreadable, "misconfigured", Some("unreadable_refusal"));
    }

    #[test]
    fn only_what_cannot_be_one_jobs_is_everybodys() {
        use Misconfiguration::*;
        for cause in [ApiKey, Signature, Timestamp] {
            assert!(cause.is_everybodys(), "{cause}");
        }
        for cause in
            [Unauthorized, Forbidden, Endpoint, Redirected, Undocumented, NotTheProvider, UnreadableRefusal]
        {
            assert!(!cause.is_everybodys(), "{cause}");
        }
    }

    #[test]
    fn a_success_counts_only_when_it_can_be_read() {
        for body in ["", "garbage", r#"{"status":true"#, r#"{"status":false}"#, r#"{"status":"true"}"#, "[]"]
        {
            check(answer(200, body), "unknown", Some("unreadable_success"));
        }
        let cut = HttpOutcome::Answered(Answer { status: 200, ..Answer::default() });
        check(cut, "unknown", Some("unreadable_success"));
        check(answer(204, ""), "unknown", Some("unreadable_success"));
        check(answer(200, r#"{"status":true}"#), "accepted", None);
        check(answer(200, "\u{feff}{\"status\":true}"), "accepted", None);
    }

    #[test]
    fn an_acceptance_of_another_customers_update_is_none_of_ours() {
        let accepted = |data: &str| answer(200, format!(r#"{{"status":true,"data":{data}}}"#));
        let other = Uuid::from_u128(8);
        for data in [
            format!(r#"{{"id":"{other}"}}"#),
            format!(r#"{{"customer_id":"{other}"}}"#),
            format!(r#"{{"id":"{CUSTOMER}","customer_id":"{other}"}}"#),
            r#"{"id":"7"}"#.to_owned(),
        ] {
            check(accepted(&data), "unknown", Some("other_customer"));
        }
        let upper = CUSTOMER.to_string().to_uppercase();
        for data in ["{}", "null", r#"{"id":null}"#, &format!(r#"{{"id":"{upper}"}}"#)] {
            check(accepted(data), "accepted", None);
        }
    }

    #[test]
    fn an_answer_out_of_step_is_believed_only_where_it_names_the_customer() {
        let out_of_step = |outcome| {
            let HttpOutcome::Answered(answer) = outcome else { unreachable!() };
            HttpOutcome::Answered(Answer { is_out_of_step: true, ..answer })
        };
        let ours = answer(200, format!(r#"{{"status":true,"data":{{"id":"{CUSTOMER}"}}}}"#));
        check(out_of_step(ours), "accepted", None);
        for outcome in [
            refused("KYC already in use", "{}"),
            refused("Bad Request", r#"{"signature":["Invalid Signature"]}"#),
            answer(200, r#"{"status":true}"#),
            answer(401, ""),
            answer(429, ""),
            answer(503, ""),
        ] {
            check(out_of_step(outcome), "unknown", Some("out_of_step"));
        }
    }

    #[test]
    fn an_acceptance_is_read_as_the_reference_and_as_the_guide_show_it() {
        let reference = answer(
            200,
            format!(
                r#"{{"status":true,"message":"Success","data":{{"id":"{CUSTOMER}","status":"UNVERIFIED"}}}}"#
            ),
        );
        let guide = answer(
            200,
            format!(r#"{{"status":true,"data":{{"customer_id":"{CUSTOMER}","status":"PROCESSING"}}}}"#),
        );
        for (outcome, status) in [(reference, "UNVERIFIED"), (guide, "PROCESSING")] {
            let expected = Acceptance {
                reference: Some(CUSTOMER.to_string()),
                verification_status: Some(status.to_owned()),
            };
            assert_eq!(
                classify(&outcome, CUSTOMER, &[], SystemTime::UNIX_EPOCH),
                Verdict::Accepted(expected)
            );
        }
    }

    #[test]
    fn what_was_not_sent_or_was_lost_says_so() {
        check(HttpOutcome::NotSent(NotSent::Connect), "not_sent", Some("connect_failed"));
        check(HttpOutcome::Lost(FailurePoint::TimedOut), "unknown", Some("timed_out"));
        check(HttpOutcome::Lost(FailurePoint::ConnectionLost), "unknown", Some("connection_lost"));
    }

    #[test]
    fn an_operator_may_declare_statuses_that_apply_nothing() {
        let verdict = classify(&answer(503, ""), CUSTOMER, &[503], SystemTime::UNIX_EPOCH);
        assert_eq!(verdict, Verdict::Throttled { retry_after: None });
    }

    #[test]
    fn retry_after_is_read_as_seconds_or_as_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").expect("a date");
        let check = |text, expected: Option<u64>| {
            assert_eq!(parse_retry_after(text, now), expected.map(Duration::from_secs), "{text}");
        };
        check("120", Some(120));
        check(" 0 ", Some(0));
        check("Sun, 06 Nov 1994 08:50:37 GMT", Some(60));
        check("Sun, 06 Nov 1994 08:00:00 GMT", Some(0));
        check("99999999999999999999999999", Some(u64::from(u32::MAX)));
        check("soon", None);
        check("-5", None);
        check("", None);
    }

    #[test]
    fn the_providers_words_are_kept_without_what_the_customer_entered() {
        let HttpOutcome::Answered(said) = answer(
            400,
            r#"{"status":false,"message":"Bad Request","errors":{"full_address":["12 RUE x is not valid"],
                "document_details":{"1234 5678":["This field may not be blank."]}}}"#,
        ) else {
            unreachable!()
        };
        let message = provider_message(&said);
        let expected = "Bad Request; document_details.[withheld:9]: This field may not be blank.; \
            full_address: [withheld:21]";
        assert_eq!(message.as_deref(), Some(expected));
    }
}
