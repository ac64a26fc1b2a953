//! The message contract as a JSON Schema, for publishers and their tools. It refuses
//! nothing that [`Job::parse`](super::job::Job::parse) accepts, asserted formats included; what a
//! schema cannot say, its descriptions do.

use serde_json::{Value, json};

use super::job::{DOCUMENT_TYPE_BYTES_MAX, DOCUMENT_TYPE_PATTERN, DocumentTypes, PROVIDER_FIELDS, Rules};

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
            "document_type": document_type(&rules.document_types),
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

fn document_type(types: &DocumentTypes) -> Value {
    let mut schema = json!({
        "description": "The kind of document, one that the provider supports for the customer.",
        "type": "string",
    });
    match types {
        DocumentTypes::Listed(known) => schema["enum"] = json!(known),
        DocumentTypes::OfProvider => {
            schema["maxLength"] = json!(DOCUMENT_TYPE_BYTES_MAX);
            schema["pattern"] = json!(DOCUMENT_TYPE_PATTERN);
        }
    }
    schema
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
    use jsonschema::Validator;
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;
    use crate::domain::job::Job;
    use crate::domain::message::Message;

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
    fn types_that_the_provider_may_list_are_judged_alike() {
        let rules = Rules { document_types: DocumentTypes::OfProvider, ..Rules::default() };
        let validator = validator(&rules);
        for (document_type, is_valid) in [
            ("PASSPORT", true),
            ("VOTER_ID", true),
            ("FORM_60_V2", true),
            ("A", true),
            (&"A".repeat(64), true),
            (&"A".repeat(65), false),
            ("", false),
            ("_A", false),
            ("60", false),
            ("passport", false),
            ("PASS PORT", false),
            ("PASSPORT\n", false),
            ("ABCDE1234F", false),
        ] {
            let body = with("/document_type", json!(document_type));
            assert_eq!(parse(&body, &rules).is_ok(), is_valid, "{document_type:?}");
            assert_eq!(validator.is_valid(&body), is_valid, "{document_type:?}");
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
