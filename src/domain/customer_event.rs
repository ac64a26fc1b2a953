//! What the provider's webhooks say: a message becomes a notification, or a reason to refuse
//! it. Knows a message's bytes and headers and nothing of the broker they came from.

use std::fmt;
use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;

use super::foreign_text::known_words;
use super::job::{instant, line_of, text_at, uuid};
use super::message::Message;
use dollarpe::canonical_json::{Fault, Json, Profile};
use dollarpe::signature::Signer;

/// How far ahead of the signature's clock an event may be dated.
const CLOCK_SKEW_SECONDS_MAX: i64 = 5 * 60;

/// A webhook is a few hundred bytes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// What the provider tells by itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Notification {
    Customer(CustomerEvent),
    /// Something else, of this type, as far as its words are known.
    Other(String),
}

/// What the provider says of a customer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CustomerEvent {
    pub customer_id: Uuid,
    /// The verification status; words that nobody knows are withheld.
    pub status: String,
    /// Why the verification failed, likewise.
    pub failure_reason: Option<String>,
    /// When it happened, by the provider's clock.
    pub at: OffsetDateTime,
}

/// Why a webhook is not believed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Refusal {
    Invalid(String),
    /// The provider did not sign it.
    Forged(&'static str),
    /// It was signed so many seconds before it was published, or after.
    Stale(u64),
}

impl Refusal {
    /// The reason as a program reads it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::Forged(_) => "forged",
            Self::Stale(_) => "stale",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(reason) => f.write_str(reason),
            Self::Forged(reason) => f.write_str(reason),
            Self::Stale(seconds) => write!(
                f,
                "X-TIMESTAMP: is {seconds} s from the AMQP timestamp; is it a replay, or is the gateway's clock wrong?"
            ),
        }
    }
}

/// Reads a webhook and checks that the provider sent it, not long before it was published:
/// how long it then lay in the queue does not count.
///
/// The provider signs `{api_key}|{X-TIMESTAMP}|{body}`, with the body parsed and printed
/// again as its `compact` form ("Webhooks", verification sample).
///
/// # Errors
/// Why it is not believed. Never says what was in it.
pub fn read_event(message: &Message, signer: &Signer, age_max: Duration) -> Result<Notification, Refusal> {
    if message.body.len() > BODY_BYTES_MAX {
        return Err(invalid("body: is larger than 64 KiB"));
    }
    if !message.unreadable.is_empty() {
        return Err(refuse(&message.unreadable));
    }
    let body = Json::parse(&message.body).map_err(|faults| refuse(&faults))?;
    let timestamp = check_signature(message, &body, signer)?;
    // The gateway sets it when it publishes.
    let published_at = message.timestamp.and_then(|seconds| i64::try_from(seconds).ok());
    let published_at =
        published_at.ok_or_else(|| invalid("AMQP timestamp: is missing; the gateway must set it"))?;
    let age = published_at.abs_diff(timestamp);
    if age > age_max.as_secs() {
        return Err(Refusal::Stale(age));
    }
    match text_at(&body, "/type") {
        Some("CUSTOMER") => Ok(Notification::Customer(read_customer_event(&body, timestamp)?)),
        Some(other) => Ok(Notification::Other(known_words(other))),
        None => Err(invalid("/type: is missing, or no text")),
    }
}

/// Returns the timestamp that is signed.
fn check_signature(message: &Message, body: &Json, signer: &Signer) -> Result<i64, Refusal> {
    let timestamp = message.header("X-TIMESTAMP").and_then(|text| text.trim().parse().ok());
    let timestamp = timestamp.ok_or(Refusal::Forged("X-TIMESTAMP: is missing, or no number of seconds"))?;
    let signature = message.header("X-SIGNATURE").ok_or(Refusal::Forged("X-SIGNATURE: is missing"))?;
    match signer.verify(timestamp, body.to_canonical(Profile::Compact), signature.trim()) {
        true => Ok(timestamp),
        false => Err(Refusal::Forged("X-SIGNATURE: is not the provider's, for this body and X-TIMESTAMP")),
    }
}

fn read_customer_event(body: &Json, signed_at: i64) -> Result<CustomerEvent, Refusal> {
    let text = |pointer: &str| {
        text_at(body, pointer).ok_or_else(|| invalid(format!("{pointer}: is missing, or no text")))
    };
    let fault = |pointer: &'static str| move |reason: &'static str| invalid(format!("{pointer}: {reason}"));
    let status = known_words(text("/event")?);
    if status.is_empty() {
        return Err(invalid("/event: is empty"));
    }
    let at = time_of(text("/timestamp")?).map_err(fault("/timestamp"))?;
    // A local time that was taken for UTC, say. One that lies too late would be believed too much:
    // it might be of an earlier update.
    if at.unix_timestamp() > signed_at.saturating_add(CLOCK_SKEW_SECONDS_MAX) {
        return Err(invalid("/timestamp: is later than X-TIMESTAMP, when it was signed"));
    }
    Ok(CustomerEvent {
        customer_id: uuid(text("/id")?).map_err(fault("/id"))?,
        status,
        failure_reason: text_at(body, "/metadata/failure_reason").map(known_words),
        at,
    })
}

/// ISO 8601: an offset may do without its colon or its minutes, and where none is named it is
/// UTC, as Python prints it.
fn time_of(text: &str) -> Result<OffsetDateTime, &'static str> {
    let (date, clock) = text.split_at_checked("2025-07-16".len()).unwrap_or((text, ""));
    let (clock, offset) = clock.split_at(clock.find(['Z', 'z', '+', '-']).unwrap_or(clock.len()));
    let offset = match offset.len() {
        0 => "Z".to_owned(),
        // Hours alone.
        3 => format!("{offset}:00"),
        // Hours and minutes.
        5 if offset.is_ascii() => format!("{}:{}", &offset[..3], &offset[3..]),
        _ => offset.to_owned(),
    };
    instant(&format!("{date}{clock}{offset}"))
}

fn refuse(faults: &[Fault]) -> Refusal {
    invalid(line_of(faults))
}

fn invalid(reason: impl Into<String>) -> Refusal {
    Refusal::Invalid(reason.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const SIGNED_AT: i64 = 1_752_670_745;
    const BODY: &str = r#"{"type":"CUSTOMER","id":"4e6f1b20-a73c-11ec-b909-0242ac120002","event":"FAILED",
        "timestamp":"2025-07-16T12:59:05Z","metadata":{"failure_reason":"KYC_FAILED"}}"#;

    fn signer() -> Signer {
        Signer::new("key", "secret")
    }

    fn sign(body: &str) -> String {
        let canonical = Json::parse(body.as_bytes()).unwrap().to_canonical(Profile::Compact);
        signer().sign(SIGNED_AT, &canonical)
    }

    /// Reads `body`, signed by the provider and published so many seconds later.
    fn read(body: &str, published_after: i64) -> Result<Notification, Refusal> {
        let (timestamp, signature) = (SIGNED_AT.to_string(), sign(body));
        let published_at = u64::try_from(SIGNED_AT + published_after).ok();
        let message = message(body, Some(&timestamp), Some(&signature), published_at);
        read_event(&message, &signer(), Duration::from_secs(300))
    }

    fn message(
        body: &str,
        timestamp: Option<&str>,
        signature: Option<&str>,
        published_at: Option<u64>,
    ) -> Message {
        let header = |name: &str, text: Option<&str>| Some((name.to_owned(), text?.to_owned()));
        let headers = [header("x-timestamp", timestamp), header("X-Signature", signature)];
        let headers = headers.into_iter().flatten().collect();
        Message { body: body.into(), headers, timestamp: published_at, ..Message::default() }
    }

    fn event(status: &str, failure_reason: Option<&str>) -> CustomerEvent {
        CustomerEvent {
            customer_id: "4e6f1b20-a73c-11ec-b909-0242ac120002".parse().unwrap(),
            status: status.to_owned(),
            failure_reason: failure_reason.map(str::to_owned),
            at: datetime!(2025-07-16 12:59:05 UTC),
        }
    }

    #[test]
    fn what_the_provider_signed_is_read_however_it_is_spaced() {
        let expected = Notification::Customer(event("FAILED", Some("KYC_FAILED")));
        assert_eq!(read(BODY, 0), Ok(expected.clone()));
        let respaced = BODY.replace(['\n', ' '], "");
        let message = message(&respaced, Some("1752670745"), Some(&sign(BODY)), Some(1_752_670_745));
        assert_eq!(read_event(&message, &signer(), Duration::ZERO), Ok(expected));
    }

    #[test]
    fn every_field_is_read_or_told() {
        #[track_caller]
        fn check(from: &str, to: &str, expected: Result<Notification, &str>) {
            let read = read(&BODY.replace(from, to), 0);
            assert_eq!(read, expected.map_err(invalid), "{from} -> {to}");
        }
        let customer = |status, reason| Ok(Notification::Customer(event(status, reason)));
        check("\"FAILED\"", "\"VERIFIED\"", customer("VERIFIED", Some("KYC_FAILED")));
        check("\"FAILED\"", "\"ON_HOLD\"", customer("ON_HOLD", Some("KYC_FAILED")));
        check("\"KYC_FAILED\"", "null", customer("FAILED", None));
        check("metadata", "meta", customer("FAILED", None));
        check("05Z", "05+00:00", customer("FAILED", Some("KYC_FAILED")));
        check("05Z", "05.000000", customer("FAILED", Some("KYC_FAILED")));
        let ist = ["+05:30", "+0530"].map(|offset| format!("T18:29:05{offset}"));
        let others = ["T07:59:05-05", "T07:59:05-0500", "T12:59:05.000+00", "T12:59:05z", "T12:59:05"];
        for time in ist.iter().map(String::as_str).chain(others) {
            check("T12:59:05Z", time, customer("FAILED", Some("KYC_FAILED")));
        }
        check("CUSTOMER", "TRANSACTION", Ok(Notification::Other("TRANSACTION".to_owned())));
        check("\"type\"", "\"kind\"", Err("/type: is missing, or no text"));
        check("\"id\"", "\"customer\"", Err("/id: is missing, or no text"));
        check("4e6f1b20", "4e6f", Err("/id: must be a UUID of 36 characters"));
        check("\"FAILED\"", "7", Err("/event: is missing, or no text"));
        check("\"FAILED\"", "\"\"", Err("/event: is empty"));
        let form = "/timestamp: must be an RFC 3339 time such as 2025-07-16T12:59:05Z";
        for time in [
            "yesterday",
            "2025-07-16T12:59:05+5",
            "2025-07-16T12:59:05+053",
            "2025-07-16T12:59:05 0530",
            "2025-07-16T12:59:05IST",
            "2025-07-16T12:59:05+é3",
            "2025-07-16T12:59:05+05:30:00",
            "2025-07-16",
            "20250716T125905Z",
            "2025-W29-3T12:59:05Z",
        ] {
            check("2025-07-16T12:59:05Z", time, Err(form));
        }
        let early = "/timestamp: is later than X-TIMESTAMP, when it was signed";
        check("T12:59:05Z", "T18:29:05", Err(early));
        check("T12:59:05Z", "T13:04:06Z", Err(early));
        // BODY's own time is when it was signed.
        assert_eq!(datetime!(2025-07-16 12:59:05 UTC).unix_timestamp(), SIGNED_AT);
    }

    #[test]
    fn what_the_provider_did_not_sign_is_refused() {
        let (timestamp, signature) = (SIGNED_AT.to_string(), sign(BODY));
        let (timestamp, signature) = (Some(timestamp.as_str()), Some(signature.as_str()));
        let published_at = u64::try_from(SIGNED_AT).ok();
        let read = |message: Message| {
            read_event(&message, &signer(), Duration::from_secs(300)).err().map(|refusal| refusal.code())
        };
        let genuine = |body: &str| message(body, timestamp, signature, published_at);
        assert_eq!(read(genuine(BODY)), None);
        for forged in [
            genuine(&BODY.replace("FAILED\"", "VERIFIED\"")),
            message(BODY, Some("1752670746"), signature, published_at),
            message(BODY, Some("soon"), signature, published_at),
            message(BODY, None, signature, published_at),
            message(BODY, timestamp, Some("AAAA"), published_at),
            message(BODY, timestamp, None, published_at),
        ] {
            assert_eq!(read(forged), Some("forged"));
        }
        assert_eq!(read(genuine("{")), Some("invalid"));
        assert_eq!(read(genuine(&" ".repeat(BODY_BYTES_MAX + 1))), Some("invalid"));
        assert_eq!(read(message(BODY, timestamp, signature, None)), Some("invalid"));
    }

    #[test]
    fn a_webhook_is_stale_by_when_it_was_published_and_not_by_now() {
        assert!(read(BODY, 300).is_ok());
        assert!(read(BODY, -300).is_ok());
        assert_eq!(read(BODY, 301), Err(Refusal::Stale(301)));
        assert_eq!(read(BODY, -301), Err(Refusal::Stale(301)));
    }
}
