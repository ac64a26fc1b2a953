//! What is a job and what is not, by tables, and what of it is never shown.

use proptest::{prelude::*, sample::Index};
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use time::macros::datetime;

use super::check::DETAIL_FIELDS;
use super::*;
use crate::domain::schema::job_schema;
use dollarpe::canonical_json::shown;

const NOW: OffsetDateTime = datetime!(2025-07-16 12:59:05 UTC);
const JOB_ID: &str = "0b4d3c2e-8f1a-4f7e-9f55-6f0a3b1c2d3e";
const CUSTOMER_ID: &str = "4e6f1b20-a73c-11ec-b909-0242ac120002";
const OTHER_ID: &str = "11111111-2222-4333-8444-555555555555";

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

fn message(body: &str) -> Message {
    Message { body: body.into(), message_id: Some(JOB_ID.to_owned()), ..Message::default() }
}

fn parse(message: Message) -> Result<Job, Invalid> {
    Job::parse(&message, NOW, &Rules::default())
}

fn parse_text(body: &str) -> Result<Job, Invalid> {
    parse(message(body))
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
    let options = jsonschema::options().should_validate_formats(true);
    let schema = options.build(&job_schema(&Rules::default())).unwrap();
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
    for (pointer, shown) in [
        ("/adress", "/?6"),
        ("/Ravi_Kumar_Sharma", "/?17"),
        ("/12 Canary Street", "/?16"),
        ("/document_details/issued_at", "/document_details/?9"),
    ] {
        let invalid = parse_text(&with(pointer, json!("x"))).unwrap_err();
        assert_eq!(invalid.to_string(), format!("{shown}: is not a field of this message"));
    }
    check("/document_details/additional_data/anything", json!([{"goes": 1.5}]), "");
    for field in OUR_FIELDS.iter().chain(&PROVIDER_FIELDS).chain(&DETAIL_FIELDS) {
        assert_eq!(shown(field), *field, "every field's name is shown");
    }
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
        ("\u{3164}\u{2800} \u{feff}", "must not be blank"),
        ("é", ""),
        ("क्\u{200d}ष Road", ""),
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
    let unfit = "must not hold whitespace, backslashes or invisible characters";
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
        ("https://h/a\u{3164}.jpg", unfit),
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
        document_types: DocumentTypes::Listed(vec!["PAN".to_owned()]),
        allow_http_links: true,
        allow_extensionless_links: true,
        ..Rules::default()
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
    let unprintable = "must not hold invisible characters";
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
        ("1\u{fe0f}2", unprintable),
        ("1\u{34f}2", unprintable),
        ("1\u{115f}2", unprintable),
        ("1\u{3164}2", unprintable),
        ("1\u{2800}2", unprintable),
        ("1\u{180b}2", unprintable),
        ("1\u{e0101}2", unprintable),
        ("क्\u{200d}ष", unprintable),
        ("कि12", ""),
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
        let message = Message { message_id: message_id.map(str::to_owned), ..message(body) };
        let (id, text) = match parse(message) {
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
        (&dated("2025-07-16 12:00:00Z"), None, form),
        (&dated("9999-12-31T23:59:59-05:00"), None, form),
        (&dated(""), Some(noon), form),
        (&body, Some(noon), "2025-07-16T12:00:00Z"),
        (&body, Some(noon + 7_200), ahead),
        (&body, Some(noon * 1_000), unit),
        (&body, Some(u64::MAX), unit),
        (&body, None, "2025-07-16T12:59:05Z"),
    ] {
        let message = Message { timestamp, ..message(body) };
        let read = match parse(message) {
            Ok(job) => job.requested_at.format(&Rfc3339).unwrap(),
            Err(invalid) => invalid.to_string(),
        };
        assert_eq!(read, expected, "{body} {timestamp:?}");
    }
}

#[test]
fn the_brokers_milliseconds_date_a_job_within_its_timestamps_second() {
    let noon = 1_752_667_200;
    let ms = |ms: i64| Some(1_752_667_200_000 + ms);
    let (bare, dated) = (example_text(), with("/requested_at", json!("2025-07-16T11:00:00Z")));
    for (body, timestamp, timestamp_ms, expected) in [
        (&bare, None, ms(7), "2025-07-16T12:00:00.007Z"),
        (&bare, Some(noon), ms(7), "2025-07-16T12:00:00.007Z"),
        (&bare, Some(noon), ms(1_002), "2025-07-16T12:00:01.002Z"),
        (&bare, Some(noon - 3_600), ms(7), "2025-07-16T11:00:00Z"),
        (&dated, Some(noon), ms(7), "2025-07-16T11:00:00Z"),
        (&bare, None, Some(i64::MAX), "2025-07-16T12:59:05Z"),
        (&bare, None, Some(i64::MIN), "2025-07-16T12:59:05Z"),
    ] {
        let headers = timestamp_ms.map(|ms: i64| ("timestamp_in_ms".to_owned(), ms.to_string()));
        let message = Message { timestamp, headers: headers.into_iter().collect(), ..message(body) };
        let job = parse(message).unwrap();
        assert_eq!(job.requested_at.format(&Rfc3339).unwrap(), expected, "{timestamp:?} {timestamp_ms:?}");
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
fn a_job_expires_before_its_links_do() {
    let parse = |front: &str, back: &str, own: Option<&str>, margin_s| {
        let mut body = example();
        body["document_front_image_url"] = json!(format!("https://h/front.jpg?{front}"));
        body["document_back_image_url"] = json!(format!("https://h/back.png?{back}"));
        if let Some(own) = own {
            body["expires_at"] = json!(own);
        }
        let rules = Rules { link_expiry_margin: Duration::from_secs(margin_s), ..Rules::default() };
        let job = Job::parse(&message(&body.to_string()), NOW, &rules).expect("a link's end is no fault");
        (job.expires_at, job.expiring_link)
    };
    let noon = "X-Amz-Date=20250717T110000Z&X-Amz-Expires=3600";
    let one = "Expires=1752757200&Signature=s";
    let at = |hour, minute| {
        Some(datetime!(2025-07-17 0:00 UTC).replace_time(time::Time::from_hms(hour, minute, 0).unwrap()))
    };
    assert_eq!(parse(noon, one, None, 900), (at(11, 45), Some(LinkField::Front)));
    assert_eq!(parse(one, noon, None, 900), (at(11, 45), Some(LinkField::Back)));
    assert_eq!(parse(noon, noon, None, 900), (at(11, 45), Some(LinkField::Front)));
    assert_eq!(parse(noon, "", None, 0), (at(12, 0), Some(LinkField::Front)));
    assert_eq!(parse(noon, one, Some("2025-07-17T11:45:00Z"), 900), (at(11, 45), None));
    assert_eq!(parse(noon, one, Some("2025-07-17T11:46:00Z"), 900), (at(11, 45), Some(LinkField::Front)));
    assert_eq!(parse("", "", Some("2025-07-17T11:46:00Z"), 900), (at(11, 46), None));
    assert_eq!(parse("Expires=never&Signature=s", "", None, 900), (None, None));
    let long_ago = "X-Amz-Date=20200101T000000Z&X-Amz-Expires=60";
    assert_eq!(parse(long_ago, "", None, 900).1, Some(LinkField::Front), "it is valid, and has expired");
}

#[test]
fn a_correlation_id_that_cannot_be_kept_refuses_no_job() {
    let body = example_text();
    for (text, is_kept) in
        [("case-7", true), (&"x".repeat(255), true), (&"x".repeat(256), false), ("a\nb", false)]
    {
        let message = Message { correlation_id: Some(text.to_owned()), ..message(&body) };
        let job = parse(message).unwrap();
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
            "/document_details/additional_data/?1: is too large for a float; send it as a string",
            "/job_id: is not the message_id; send one, or the same in both",
            "/document_front_image_url: must begin with https://",
            "/document_back_image_url: is missing",
            "/document_details/document_number: must be a string",
            "/?4: is not a field of this message",
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
    assert_ne!(fingerprint("https://h/a.jpg?versionId=2&X-Amz-Date=1"), bare);
    assert_ne!(fingerprint("https://h/a.jpg?id=2"), fingerprint("https://h/a.jpg?id=1"));
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

#[test]
fn a_line_of_faults_tells_where_each_is() {
    let line = |faults: Vec<Fault>| Invalid { job_id: None, customer_id: None, faults }.to_string();
    let three = line(vec![
        Fault::new("/document_type", "is none; name one: PASSPORT"),
        Fault::new("", "is larger than 64 KiB"),
        Fault::new("/document_details/?17", "is unknown"),
    ]);
    assert_eq!(places_in(&three).collect::<Vec<_>>(), ["/document_type", "body", "/document_details/?17"]);
    let refused = "body: the database cannot hold a value of this job; see its log, then requeue the message";
    assert_eq!(places_in(refused).collect::<Vec<_>>(), ["body"]);
    for whole in ["the worker failed: a bug; report it", "X-SIGNATURE: is missing", ""] {
        assert_eq!(places_in(whole).count(), 0, "{whole}");
    }
    // Cut wherever 2,000 characters end: a place is whole, or not told.
    for width in 0..30 {
        let words = "x".repeat(width);
        let faults: Vec<Fault> = (0..100).map(|_| Fault::new("/full_address", words.clone())).collect();
        let line = line(faults);
        assert!(line.chars().count() <= INVALID_CHARS_MAX && places_in(&line).count() > 40);
        assert!(places_in(&line).all(|place| place == "/full_address"), "{line}");
    }
}
