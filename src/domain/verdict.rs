//! What one attempt's result means. The rules are the provider's documented answers,
//! contradictions included; they know nothing of how the result was obtained.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::foreign_text::{known_id, known_words};

/// What came back from one attempt at the provider.
#[derive(Clone, Debug, PartialEq)]
pub enum Exchange {
    /// A status line was seen. It decides, even where the body then failed.
    Answered(Answer),
    /// The request's body never left: nothing can have been applied.
    NotSent(NotSent),
    /// The body left, or may have, and no status was seen.
    Lost(Phase),
}

/// An answer of the provider, or of something between it and us.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The `Retry-After` header, as it was written.
    pub retry_after: Option<String>,
    /// The body up to the cap, or why there is none that can be read.
    pub body: Body,
}

/// The body of an [`Answer`].
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Body {
    /// It arrived whole.
    Whole(Vec<u8>),
    /// It was cut, timed out, or grew past the cap.
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
    /// The worker is stopping.
    Shutdown,
    /// No key opens the stored payload.
    PayloadUnreadable,
}

/// How far an exchange came before its fate was lost.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Phase {
    /// No complete answer within the request timeout.
    TimedOut,
    /// The connection broke after the body had been handed over.
    ConnectionLost,
    /// A 5xx, 408 or 499: it says nothing about whether the update was applied.
    ServerError,
    /// A 2xx without a readable `status: true`.
    UnreadableSuccess,
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
    Unknown(Phase),
}

/// What the provider said of an update it applied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Acceptance {
    /// `data.id`, or `data.customer_id` as the guide shows it.
    pub reference: Option<String>,
    /// The customer's verification status, as far as its words are known.
    pub verification_status: Option<String>,
}

/// Why the provider refused a job.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rejection {
    /// No such customer, or another organization's.
    CustomerNotFound,
    /// The document is another customer's.
    KycAlreadyInUse,
    /// The customer's updates are used up.
    UpdateLimitExceeded,
    /// A field was refused.
    FieldRefused,
    /// Any other refusal in the provider's envelope.
    Refused,
}

/// Why the provider refused us.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Misconfiguration {
    /// 401: the API key is missing, wrong or expired.
    ApiKey,
    /// 403.
    Forbidden,
    /// 404: there is no such endpoint.
    Endpoint,
    /// 3xx: redirects are never followed, they would take the signature along.
    Redirected,
    /// `Invalid Signature`.
    Signature,
    /// A 4xx that is not the provider's envelope: a proxy's page.
    NotTheProvider,
}

impl Verdict {
    /// The verdict's name in tables and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Accepted(_) => "accepted",
            Self::Rejected(_) => "rejected",
            Self::NotSent(_) => "not_sent",
            Self::Throttled { .. } => "throttled",
            Self::Misconfigured(_) => "misconfigured",
            Self::Unknown(_) => "unknown",
        }
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
            Self::PayloadUnreadable => "payload_unreadable",
        }
    }
}

impl Phase {
    /// The phase as a code.
    pub fn code(self) -> &'static str {
        match self {
            Self::TimedOut => "timed_out",
            Self::ConnectionLost => "connection_lost",
            Self::ServerError => "server_error",
            Self::UnreadableSuccess => "unreadable_success",
        }
    }
}

impl Rejection {
    /// The reason code of a submission that ended so.
    pub fn code(self) -> &'static str {
        match self {
            Self::CustomerNotFound => "customer_not_found",
            Self::KycAlreadyInUse => "kyc_already_in_use",
            Self::UpdateLimitExceeded => "update_limit_exceeded",
            Self::FieldRefused => "field_refused",
            Self::Refused => "refused",
        }
    }
}

impl Misconfiguration {
    /// The cause as a code.
    pub fn code(self) -> &'static str {
        match self {
            Self::ApiKey => "api_key_refused",
            Self::Forbidden => "forbidden",
            Self::Endpoint => "endpoint_not_found",
            Self::Redirected => "redirected",
            Self::Signature => "signature_refused",
            Self::NotTheProvider => "not_the_provider",
        }
    }

    /// Which setting to look at.
    pub fn setting(self) -> &'static str {
        match self {
            Self::ApiKey | Self::Forbidden => "DOLLARPE_API_KEY",
            Self::Endpoint | Self::Redirected | Self::NotTheProvider => "DOLLARPE_BASE_URL",
            Self::Signature => "DOLLARPE_API_SECRET, DOLLARPE_SIGNING_PROFILE or this machine's clock",
        }
    }
}

impl fmt::Display for Misconfiguration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ApiKey => "the provider refuses the API key",
            Self::Forbidden => "the provider forbids the call",
            Self::Endpoint => "there is no such endpoint",
            Self::Redirected => "the provider redirects, and redirects are never followed",
            Self::Signature => "the provider refuses the signature",
            Self::NotTheProvider => "something other than the provider answered",
        })
    }
}

/// Classifies an attempt's result. `now` is for a `Retry-After` that is a date;
/// `not_applied_statuses` are those that the operator knows to mean "not applied".
pub fn classify(exchange: &Exchange, not_applied_statuses: &[u16], now: SystemTime) -> Verdict {
    let answer = match exchange {
        Exchange::NotSent(cause) => return Verdict::NotSent(*cause),
        Exchange::Lost(phase) => return Verdict::Unknown(*phase),
        Exchange::Answered(answer) => answer,
    };
    if answer.status == 429 || not_applied_statuses.contains(&answer.status) {
        let retry_after = answer.retry_after.as_deref();
        return Verdict::Throttled { retry_after: retry_after.and_then(|text| parse_retry_after(text, now)) };
    }
    match answer.status {
        200..=299 => classify_success(&answer.body),
        300..=399 => Verdict::Misconfigured(Misconfiguration::Redirected),
        401 => Verdict::Misconfigured(Misconfiguration::ApiKey),
        403 => Verdict::Misconfigured(Misconfiguration::Forbidden),
        404 => Verdict::Misconfigured(Misconfiguration::Endpoint),
        408 | 499 => Verdict::Unknown(Phase::ServerError),
        400..=498 => match Refusal::read(&answer.body) {
            Some(refusal) => refusal.verdict(),
            None => Verdict::Misconfigured(Misconfiguration::NotTheProvider),
        },
        _ => Verdict::Unknown(Phase::ServerError),
    }
}

fn classify_success(body: &Body) -> Verdict {
    let Some(value) = body.json().filter(|value| value["status"] == Value::Bool(true)) else {
        return Verdict::Unknown(Phase::UnreadableSuccess);
    };
    let data = &value["data"];
    let text = |key: &str| data[key].as_str();
    Verdict::Accepted(Acceptance {
        reference: text("id").or_else(|| text("customer_id")).map(known_id),
        verification_status: text("status").map(known_words),
    })
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

    fn verdict(&self) -> Verdict {
        if self.errors.iter().any(|(field, _)| field == "signature") || self.says("invalid signature") {
            return Verdict::Misconfigured(Misconfiguration::Signature);
        }
        let known = [
            ("customer not found or access denied", Rejection::CustomerNotFound),
            ("kyc already in use", Rejection::KycAlreadyInUse),
            ("kyc update limit exceeded", Rejection::UpdateLimitExceeded),
        ];
        let rejection = known.into_iter().find(|(text, _)| self.says(text));
        Verdict::Rejected(match rejection {
            Some((_, rejection)) => rejection,
            None if self.errors.iter().any(|(field, _)| !field.is_empty()) => Rejection::FieldRefused,
            None => Rejection::Refused,
        })
    }

    /// Whether `message` or any text under `errors` says it, in any case, with or without its full stop.
    fn says(&self, text: &str) -> bool {
        let texts = self.errors.iter().map(|(_, text)| text);
        texts.chain([&self.message]).any(|said| {
            let said = said.trim().trim_end_matches('.').trim_end();
            said.eq_ignore_ascii_case(text)
        })
    }
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
    fn json(&self) -> Option<Value> {
        match self {
            Self::Whole(bytes) => serde_json::from_slice(bytes).ok(),
            Self::Unreadable => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Exchange {
        Exchange::Answered(Answer { status, retry_after: None, body: Body::Whole(body.as_bytes().to_vec()) })
    }

    fn check(exchange: Exchange, name: &str, detail: Option<&str>) {
        let verdict = classify(&exchange, &[], SystemTime::UNIX_EPOCH);
        assert_eq!((verdict.name(), verdict.detail()), (name, detail), "{exchange:?}");
    }

    #[test]
    fn every_documented_answer_has_its_verdict() {
        let refused = |message: &str, errors: &str| {
            answer(400, &format!(r#"{{"status":false,"message":"{message}","errors":{errors},"data":null}}"#))
        };
        check(refused("Customer not found or access denied", "{}"), "rejected", Some("customer_not_found"));
        check(
            refused("Bad Request", r#"{"customer":["Customer not found or access denied."]}"#),
            "rejected",
            Some("customer_not_found"),
        );
        check(refused("KYC already in use", "null"), "rejected", Some("kyc_already_in_use"));
        check(
            refused("Bad Request", r#"{"kyc":"kyc ALREADY in use."}"#),
            "rejected",
            Some("kyc_already_in_use"),
        );
        check(refused("Kyc update limit exceeded", "{}"), "rejected", Some("update_limit_exceeded"));
        check(
            refused("Bad Request", r#"{"detail":["KYC Update Limit Exceeded."]}"#),
            "rejected",
            Some("update_limit_exceeded"),
        );
        check(
            refused("Bad Request", r#"{"full_address":["This field may not be blank."]}"#),
            "rejected",
            Some("field_refused"),
        );
        check(
            refused("Bad Request", r#"{"document_details":{"document_number":["Too long."]}}"#),
            "rejected",
            Some("field_refused"),
        );
        check(refused("Something new", "{}"), "rejected", Some("refused"));
        check(
            refused("Bad Request", r#"{"signature":["Invalid Signature"]}"#),
            "misconfigured",
            Some("signature_refused"),
        );
        check(refused("invalid signature.", "null"), "misconfigured", Some("signature_refused"));
        check(answer(401, ""), "misconfigured", Some("api_key_refused"));
        check(answer(403, "<html>"), "misconfigured", Some("forbidden"));
        check(answer(404, "{}"), "misconfigured", Some("endpoint_not_found"));
        check(answer(302, ""), "misconfigured", Some("redirected"));
        check(answer(400, "<html>Bad Request</html>"), "misconfigured", Some("not_the_provider"));
        check(answer(413, "too large"), "misconfigured", Some("not_the_provider"));
        check(
            answer(500, r#"{"success":false,"message":"Internal Server Error","errors":"x","data":null}"#),
            "unknown",
            Some("server_error"),
        );
        for status in [408, 499, 502, 503, 504, 599] {
            check(answer(status, ""), "unknown", Some("server_error"));
        }
        check(answer(429, ""), "throttled", None);
    }

    #[test]
    fn a_success_counts_only_when_it_can_be_read() {
        for body in ["", "garbage", r#"{"status":true"#, r#"{"status":false}"#, r#"{"status":"true"}"#, "[]"]
        {
            check(answer(200, body), "unknown", Some("unreadable_success"));
        }
        let cut = Exchange::Answered(Answer { status: 200, ..Answer::default() });
        check(cut, "unknown", Some("unreadable_success"));
        check(answer(204, ""), "unknown", Some("unreadable_success"));
        check(answer(200, r#"{"status":true}"#), "accepted", None);
    }

    #[test]
    fn an_acceptance_is_read_as_the_reference_and_as_the_guide_show_it() {
        let reference = answer(
            200,
            r#"{"status":true,"message":"Success","data":{"id":"4e6f1b20-a73c-11ec-b909-0242ac120002","status":"UNVERIFIED"}}"#,
        );
        let guide = answer(
            200,
            r#"{"status":true,"data":{"customer_id":"4e6f1b20-a73c-11ec-b909-0242ac120002","status":"PROCESSING"}}"#,
        );
        for (exchange, status) in [(reference, "UNVERIFIED"), (guide, "PROCESSING")] {
            let expected = Acceptance {
                reference: Some("4e6f1b20-a73c-11ec-b909-0242ac120002".to_owned()),
                verification_status: Some(status.to_owned()),
            };
            assert_eq!(classify(&exchange, &[], SystemTime::UNIX_EPOCH), Verdict::Accepted(expected));
        }
    }

    #[test]
    fn what_was_not_sent_or_was_lost_says_so() {
        check(Exchange::NotSent(NotSent::Connect), "not_sent", Some("connect_failed"));
        check(Exchange::Lost(Phase::TimedOut), "unknown", Some("timed_out"));
        check(Exchange::Lost(Phase::ConnectionLost), "unknown", Some("connection_lost"));
    }

    #[test]
    fn an_operator_may_declare_statuses_that_apply_nothing() {
        let verdict = classify(&answer(503, ""), &[503], SystemTime::UNIX_EPOCH);
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
        let Exchange::Answered(said) = answer(
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
