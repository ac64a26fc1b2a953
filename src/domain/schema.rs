//! The message contract as a JSON Schema, for publishers and their tools. It refuses
//! nothing that [`Job::parse`](super::job::Job::parse) accepts, asserted formats included; what a
//! schema cannot say, its descriptions do.

use serde_json::{Value, json};
use time::macros::datetime;
use uuid::uuid;

use super::job::{PROVIDER_FIELDS, Rules};
use super::outcome_event::{OutcomeEvent, SOURCE, type_name};
use super::state::{EventKind, Evidence, State};
use super::verification::{FAILED, VERIFIED};

/// The schema of a message's body (JSON Schema, draft 2020-12), under these rules.
pub fn job_schema(rules: &Rules) -> Value {
    let file = if rules.allow_extensionless_links { "has no other extension than" } else { "ends in" };
    let link = |side: &str| {
        json!({
            "description": format!(
                "Where the provider fetches the document's {side}. An absolute URL without user, whitespace, backslashes or invisible characters; its path {file} .jpg, .jpeg, .png or .pdf."
            ),
            // No `format`: a URI has no letters beyond ASCII, and a link may.
            "type": "string",
            "maxLength": 2048,
            "pattern": link_pattern(rules),
        })
    };
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "DocumentUpdate",
        "description": "A customer's document update, to be submitted to the DollarPe KYC API. UTF-8 JSON of at most 64 KiB; a key twice in an object, or a number that JSON and Python print differently, makes it invalid.",
        "type": "object",
        "additionalProperties": false,
        "required": PROVIDER_FIELDS,
        "properties": {
            "customer_id": { "description": "The provider's customer.", "type": "string", "format": "uuid" },
            "full_address": {
                "description": "The customer's address: 1 to 1,000 characters once trimmed, without control characters other than line breaks and tabs.",
                "type": "string",
                "pattern": r"\S",
            },
            "document_type": {
                "description": "The kind of document, one that the provider supports for the customer.",
                "type": "string",
                "enum": rules.document_types,
            },
            "document_front_image_url": link("front"),
            "document_back_image_url": link("back"),
            "document_details": {
                "description": "What the document says.",
                "type": "object",
                "additionalProperties": false,
                "required": ["document_number"],
                "properties": {
                    "document_number": {
                        "description": "The number of an Aadhaar card, the file number of a passport, and so on: printable characters, single spaces only between others.",
                        "type": "string",
                        "minLength": 1,
                        "maxLength": 64,
                    },
                    "additional_data": {
                        "description": "Whatever else the provider wants of this type of document.",
                        "type": "object",
                        "additionalProperties": true,
                    },
                },
            },
            "job_id": {
                "description": "Names the job: the same one delivered twice is sent once. Needed unless it is the AMQP message_id; where both are UUIDs, they must be the same.",
                "type": "string",
                "format": "uuid",
            },
            "requested_at": {
                "description": "When the customer asked for it (RFC 3339), to the microsecond: of two jobs of a customer the later one wins. Else the header timestamp_in_ms, the AMQP timestamp or the time of receipt, which cannot order two jobs within a second.",
                "type": "string",
                "format": "date-time",
            },
            "expires_at": {
                "description": "After this time (RFC 3339) the job is not sent any more. Later than requested_at.",
                "type": "string",
                "format": "date-time",
            },
        },
        "examples": [example()],
    })
}

/// The schema of an outcome event (JSON Schema, draft 2020-12). What consumers must not rely on, as which
/// reason codes there are, it leaves open.
pub fn event_schema() -> Value {
    let text = |description: &str| json!({ "description": description, "type": ["string", "null"] });
    let time = |description: &str| json!({ "description": description, "type": ["string", "null"], "format": "date-time" });
    let ended = State::ALL.iter().filter(|state| state.has_ended()).map(|state| state.name());
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "OutcomeEvent",
        "description": "How a job ended, or what its verification became: a CloudEvent 1.0 in structured mode. It holds nothing that a customer entered. Other fields may be added to it within a version of its type.",
        "type": "object",
        "required": ["specversion", "id", "source", "type", "subject", "time", "datacontenttype", "data"],
        "properties": {
            "specversion": { "const": "1.0" },
            "id": {
                "description": "The same for every copy of an event: deduplicate by it.",
                "type": "string",
                "maxLength": 255,
            },
            "source": { "const": SOURCE },
            "type": { "enum": EventKind::ALL.iter().map(|kind| type_name(*kind)).collect::<Vec<_>>() },
            "subject": { "description": "The job_id.", "type": "string", "format": "uuid" },
            "time": { "description": "When it happened. Of two events of a job the later one counts.", "type": "string", "format": "date-time" },
            "datacontenttype": { "const": "application/json" },
            "traceparent": { "description": "The trace that the job was published in, where it names one.", "type": "string" },
            "data": {
                "type": "object",
                "required": [
                    "job_id", "customer_id", "state", "reason_code", "reason", "attempts", "evidence",
                    "verification_status", "failure_reason", "requested_at", "ended_at", "correlation_id"
                ],
                "properties": {
                    "job_id": { "type": "string", "format": "uuid" },
                    "customer_id": {
                        "description": "The provider's customer; null where an invalid job named none.",
                        "type": ["string", "null"],
                        "format": "uuid",
                    },
                    "state": { "description": "How the job ended.", "enum": ended.collect::<Vec<_>>() },
                    "reason_code": text("Why, for programs. There may be new ones."),
                    "reason": text("Why, for people."),
                    "attempts": { "description": "How many attempts were begun.", "type": "integer", "minimum": 0 },
                    "evidence": {
                        "description": "How an acceptance is known.",
                        "enum": Evidence::ALL.iter().map(|evidence| json!(evidence.name())).chain([Value::Null]).collect::<Vec<_>>(),
                    },
                    "verification_status": {
                        "description": "Of verification.verified and verification.failed, the provider's word; null in every other event.",
                        "enum": [VERIFIED, FAILED, null],
                    },
                    "failure_reason": text("Of verification.failed: why, in the provider's words as far as they are known."),
                    "requested_at": time("When the customer or upstream asked for the update."),
                    "ended_at": time("When the job ended."),
                    "correlation_id": text("The job's AMQP correlation_id."),
                },
            },
        },
        "examples": [example_event().to_json()],
    })
}

/// An accepted job's event.
pub fn example_event() -> OutcomeEvent {
    let at = datetime!(2026-11-30 10:00:00.123456 UTC);
    OutcomeEvent {
        kind: EventKind::Accepted,
        job_id: uuid!("3f0c2a9e-5f0e-4f57-9d0c-2d6f7c1f1a11"),
        customer_id: Some(uuid!("4e6f1b20-a73c-11ec-b909-0242ac120002")),
        at,
        state: State::Accepted,
        reason_code: None,
        reason: Some("the provider accepted the update".to_owned()),
        attempts: 1,
        evidence: Some(Evidence::Response),
        verification_status: None,
        failure_reason: None,
        requested_at: Some(datetime!(2026-11-30 09:59:58 UTC)),
        ended_at: Some(at),
        correlation_id: Some("order-17".to_owned()),
        trace: None,
    }
}

/// What a link looks like, in the syntax that every dialect of regular expressions shares: scheme
/// and extension in any case; what host and port are possible, a pattern does not say.
fn link_pattern(rules: &Rules) -> String {
    // What no part of a link holds.
    let unfit = r"\s\\\u0000-\u0020\u007f";
    let scheme = if rules.allow_http_links { "[Hh][Tt][Tt][Pp][Ss]?" } else { "[Hh][Tt][Tt][Pp][Ss]" };
    let with_extension =
        format!(r"[^/?#{unfit}]*\.([Jj][Pp][Gg]|[Jj][Pp][Ee][Gg]|[Pp][Nn][Gg]|[Pp][Dd][Ff])");
    let file = match rules.allow_extensionless_links {
        true => format!("({with_extension}|[^./?#{unfit}]+)"),
        false => with_extension,
    };
    format!("^{scheme}://[^/?#@{unfit}]+/([^?#{unfit}]*/)?{file}([?#][^{unfit}]*)?$")
}

/// The provider's documented request body: a valid job.
pub fn example() -> Value {
    json!({
        "customer_id": "4e6f1b20-a73c-11ec-b909-0242ac120002",
        "full_address": "FULL_ADDRESS_OF_THE_CUSTOMER",
        "document_type": "PASSPORT",
        "document_front_image_url": "https://files.example.com/front.jpg",
        "document_back_image_url": "https://files.example.com/back.png",
        "document_details": { "document_number": "123456123456", "additional_data": {} }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::job::Job;
    use crate::domain::message::Message;
    use jsonschema::Validator;
    use proptest::prelude::*;

    fn validator(rules: &Rules) -> Validator {
        let options = jsonschema::options().should_validate_formats(true);
        options.build(&job_schema(rules)).expect("a schema")
    }

    fn accepts(body: &Value) -> bool {
        validator(&Rules::default()).is_valid(body)
    }

    /// What the parser says of a body.
    fn parse(body: &Value, rules: &Rules) -> Result<(), String> {
        let id = Some("3f0c2a9e-5f0e-4f57-9d0c-2d6f7c1f1a11".to_owned());
        let message = Message { body: body.to_string().into(), message_id: id, ..Message::default() };
        let now = datetime!(2026-11-24 10:00:00 UTC);
        Job::parse(&message, now, rules).map(drop).map_err(|invalid| invalid.to_string())
    }

    /// Parser and schema agree, but for what a pattern cannot say.
    fn check_agreement(body: &Value, rules: &Rules, validator: &Validator) {
        match (parse(body, rules), validator.is_valid(body)) {
            (Ok(()), is_valid) => assert!(is_valid, "the schema refuses what the parser takes: {body}"),
            (Err(fault), true) => assert!(
                fault.ends_with("must be an absolute URL") || fault.contains("invisible characters"),
                "the schema takes what the parser refuses: {fault}: {body}"
            ),
            (Err(_), false) => {}
        }
    }

    fn every_rules() -> [Rules; 4] {
        [(false, false), (false, true), (true, false), (true, true)].map(|(http, extensionless)| Rules {
            allow_http_links: http,
            allow_extensionless_links: extensionless,
            ..Rules::default()
        })
    }

    #[test]
    fn times_that_the_parser_takes_are_valid_where_formats_are_asserted() {
        let (rules, validator) = (Rules::default(), validator(&Rules::default()));
        for time in [
            "2026-11-24T10:00:00Z",
            "2026-11-24t10:00:00z",
            "2026-11-24T10:00:00.123456789+05:30",
            "2026-11-24T10:00:00-00:00",
            "2026-11-24 10:00:00Z",
            "2026-11-24T10:00:00",
            "2016-12-31T23:59:60Z",
            "2026-11-24T10:00:00+0530",
            "0001-01-01T00:00:00Z",
        ] {
            let body = with("/requested_at", json!(time));
            if parse(&body, &rules).is_ok() {
                assert!(validator.is_valid(&body), "{time}");
            }
        }
    }

    #[test]
    fn odd_links_are_judged_alike_by_schema_and_parser() {
        for rules in every_rules() {
            let validator = validator(&rules);
            for link in [
                "https://h/मुंबई.jpg",
                "https://मुंबई.example/a.jpg",
                "https://h/a b.jpg",
                "https://h/a%zz.jpg",
                "https://h/[a]|^{b}.jpg",
                "https://h/\"<a>.jpg?q=\"<>|^`{}",
                "https://[::1]/a.jpg",
                "https://h:8443/a.jpg#x y",
                "https://h/a.jpg#é",
                "https://h/a.jpg?u=a@b",
                "https://h/a@b.jpg",
                "https://u@h/a.jpg",
                "https://h/.jpg",
                "https://h/a.jpg/..",
                "https://h/../a.jpg",
                "https://h/a.jpg/.",
                "https://h/a.jpg/%2e%2e",
                "https://h?x=/a.jpg",
                "https://h#/a.jpg",
                "https:///a.jpg",
                "https:/h/a.jpg",
                "http://h/a",
                "HTTP://h/a.PdF",
                "https://h/a.",
                "https://h/a..",
                "https://h/a/",
                "https://h\\a.jpg",
                "https://h/a.jpg\n",
            ] {
                check_agreement(&with("/document_front_image_url", json!(link)), &rules, &validator);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_048))]

        #[test]
        fn links_of_any_pieces_are_judged_alike(
            which in 0..4_usize,
            scheme in prop::sample::select(vec!["https://", "http://", "HTTPS://", "https:/", "ftp://", ""]),
            host in prop::sample::select(vec!["h", "h.example:443", "[::1]", "é.example", "u@h", "h:p", "", "1.2.3"]),
            pieces in prop::collection::vec(
                prop::sample::select(vec![
                    "/", "a", "b.jpg", ".png", ".PDF", ".gif", ".", "..", "?", "#", "@", "é", "%2e", "%", "|", "\"",
                    "\\", " ", "\u{200b}", "x=1", "&", "[", "{", ":", ";",
                ]),
                0..8,
            ),
        ) {
            let rules = &every_rules()[which];
            let link = format!("{scheme}{host}{}", pieces.concat());
            check_agreement(&with("/document_back_image_url", json!(link)), rules, &validator(rules));
        }
    }

    /// The example with the value at `pointer` changed.
    fn with(pointer: &str, value: Value) -> Value {
        let mut body = example();
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        body.pointer_mut(parent).expect("it is there")[key] = value;
        body
    }

    #[test]
    fn it_accepts_the_documented_example_with_or_without_our_fields() {
        assert!(accepts(&example()));
        assert!(accepts(&with("/job_id", json!("3f0c2a9e-5f0e-4f57-9d0c-2d6f7c1f1a11"))));
        assert!(accepts(&with("/expires_at", json!("2026-11-24T10:00:00Z"))));
    }

    #[test]
    fn it_refuses_what_a_publisher_gets_wrong() {
        for (pointer, value) in [
            ("/customer_id", json!(5)),
            ("/full_address", json!("  ")),
            ("/document_type", json!("LIBRARY_CARD")),
            ("/document_front_image_url", json!("ftp://files.example.com/front.jpg")),
            ("/document_details", json!({})),
            ("/document_details/document_number", json!("")),
            ("/document_details/issued", json!("2020")),
            ("/adress", json!("x")),
            ("/job_id", json!(null)),
        ] {
            assert!(!accepts(&with(pointer, value)), "{pointer}");
        }
    }
}
