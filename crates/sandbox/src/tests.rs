//! The sandbox over real connections: what a client sees of each fault, and what the oracle
//! makes of it. Requests are written by hand, since a client library hides what is tested.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{Running, Settings, start};
use dollarpe::{
    canonical_json::{Json, Profile},
    signature::Signer,
};

const ALICE: &str = "1cf2b6a0-6a3e-11ef-9a4d-0242ac120002";
const NIL: &str = "00000000-0000-0000-0000-000000000000";
const UPDATE: &str = "/cms/api/v1/kyc/update-document-info";
/// Longer than anything here takes, unless it never happens.
const DEADLINE: Duration = Duration::from_secs(60);

struct Sandbox {
    running: Running,
    address: SocketAddr,
    api_secret: String,
}

impl Sandbox {
    async fn start() -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let settings = Settings { listen, ..Settings::default() };
        let api_secret = settings.api_secret.clone();
        let running = start(settings).await.unwrap();
        Self { address: running.address, running, api_secret }
    }

    /// A sandbox with one rule, of which only the fault matters.
    async fn with_fault(fault: Value) -> Self {
        let sandbox = Self::start().await;
        let (status, _) = sandbox.admin("POST", "/rules", json!({ "fault": fault })).await;
        assert_eq!(status, 201);
        sandbox
    }

    fn signed(&self, method: &str, path: &str, body: &str) -> String {
        let json = Json::parse(if body.is_empty() { "{}" } else { body }.as_bytes()).unwrap();
        let timestamp = super::State::new(Settings::default()).unix_seconds();
        let signature =
            Signer::new("sandbox-key", &self.api_secret).sign(timestamp, json.to_canonical(Profile::Compact));
        format!(
            "{method} {path} HTTP/1.1\r\nhost: sandbox\r\nconnection: close\r\n\
             x-api-key: sandbox-key\r\nx-timestamp: {timestamp}\r\nx-signature: {signature}\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    fn update(&self, customer_id: &str) -> String {
        let body = json!({
            "customer_id": customer_id,
            "full_address": "12 Residency Road, Bengalūru",
            "document_type": "AADHAAR",
            "document_front_image_url": "https://docs.example/job-1/front.pdf",
            "document_back_image_url": "https://docs.example/job-1/back.pdf",
            "document_details": { "document_number": "123456123456", "additional_data": {} },
        });
        self.signed("PATCH", UPDATE, &body.to_string())
    }

    async fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    async fn exchange(&self, request: &str) -> (u16, Value) {
        let (answer, error) = read_to_end(self.send(request).await).await;
        assert_eq!(error, None);
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or_else(|_| json!(body)))
    }

    async fn read(&self, customer_id: &str) -> (u16, Value) {
        let path = format!("/cms/api/v1/customer/{customer_id}");
        self.exchange(&self.signed("GET", &path, "")).await
    }

    async fn admin(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let body = body.to_string();
        let length = body.len();
        let request = format!(
            "{method} /_admin{path} HTTP/1.1\r\nhost: sandbox\r\nconnection: close\r\n\
             content-length: {length}\r\n\r\n{body}"
        );
        self.exchange(&request).await
    }

    async fn summary(&self) -> Value {
        self.admin("GET", "/oracle/summary", json!({})).await.1
    }

    /// The only PATCH that was received.
    async fn patch(&self) -> Value {
        let (_, patch) = self.admin("GET", "/oracle/patches", json!({})).await;
        assert!(patch.is_object(), "not one line: {patch}");
        patch
    }

    async fn eventually(&self, count: &str, expected: u64) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let summary = self.summary().await;
            if summary[count] == expected {
                return;
            }
            assert!(Instant::now() < deadline, "{count} never {expected}: {summary}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// What arrived before the connection ended, and the error it ended with, if not by FIN.
async fn read_to_end(mut stream: TcpStream) -> (Vec<u8>, Option<ErrorKind>) {
    let mut bytes = Vec::new();
    let ended = timeout(DEADLINE, stream.read_to_end(&mut bytes)).await.expect("never ended");
    (bytes, ended.err().map(|error| error.kind()))
}

#[tokio::test]
async fn an_update_is_applied_answered_and_seen_in_every_place() {
    let sandbox = Sandbox::start().await;
    let (status, body) = sandbox.exchange(&sandbox.update(ALICE)).await;
    assert_eq!((status, &body["status"]), (200, &json!(true)));
    assert_eq!(body["data"], json!({ "id": ALICE, "status": "PROCESSING" }));

    let (status, body) = sandbox.read(ALICE).await;
    assert_eq!((status, &body["data"]["status"]), (200, &json!("PROCESSING")));

    let patch = sandbox.patch().await;
    assert_eq!(patch["customer_id"], ALICE);
    assert_eq!(patch["link"], "https://docs.example/job-1/front.pdf");
    assert_eq!(patch["authenticated"], true);
    assert_eq!((&patch["outcome"], &patch["status"]), (&json!("applied"), &json!(200)));
    let (_, update) = sandbox.admin("GET", "/oracle/updates", json!({})).await;
    assert_eq!((&update["patch_seq"], &update["nth"]), (&patch["seq"], &json!(1)));
    let (_, read) = sandbox.admin("GET", "/oracle/reads", json!({})).await;
    assert_eq!((&read["status"], &read["customer_status"]), (&json!(200), &json!("PROCESSING")));
}

#[tokio::test]
async fn a_refused_request_changes_nothing_and_is_on_record() {
    let mut sandbox = Sandbox::start().await;
    let (status, body) = sandbox.exchange(&sandbox.update(NIL)).await;
    assert_eq!((status, &body["message"]), (400, &json!("Customer not found or access denied")));
    sandbox.api_secret = "another".to_owned();
    let (status, body) = sandbox.exchange(&sandbox.update(ALICE)).await;
    assert_eq!(status, 400);
    assert_eq!(body["errors"], json!({ "signature": ["Invalid Signature"] }));

    let summary = sandbox.summary().await;
    assert_eq!((&summary["patches"], &summary["authenticated"]), (&json!(2), &json!(1)));
    assert_eq!((&summary["refused"], &summary["applied"]), (&json!(2), &json!(0)));
}

#[tokio::test]
async fn a_reset_is_an_rst_and_the_update_is_applied_all_the_same() {
    let sandbox = Sandbox::with_fault(json!({ "answer": { "kind": "reset" } })).await;
    let seen = read_to_end(sandbox.send(&sandbox.update(ALICE)).await).await;
    assert_eq!(seen, (vec![], Some(ErrorKind::ConnectionReset)));
    let patch = sandbox.patch().await;
    assert_eq!((&patch["outcome"], &patch["status"]), (&json!("applied"), &json!(null)));
    assert_eq!((&patch["rule"], sandbox.summary().await["applied"].clone()), (&json!(1), json!(1)));
}

#[tokio::test]
async fn a_close_is_a_fin() {
    let sandbox = Sandbox::with_fault(json!({ "answer": { "kind": "close" } })).await;
    assert_eq!(read_to_end(sandbox.send(&sandbox.update(ALICE)).await).await, (vec![], None));
}

#[tokio::test]
async fn an_answer_can_be_reset_after_any_of_its_bytes() {
    for bytes in [1, 12, 150] {
        let answer = json!({ "kind": "reset_after_bytes", "bytes": bytes });
        let sandbox = Sandbox::with_fault(json!({ "answer": answer })).await;
        let (seen, error) = read_to_end(sandbox.send(&sandbox.update(ALICE)).await).await;
        assert_eq!((seen.len(), error), (bytes, Some(ErrorKind::ConnectionReset)));
        assert!("HTTP/1.1 200 OK".as_bytes().starts_with(&seen[..bytes.min(15)]));
    }
    let answer = json!({ "kind": "reset_after_bytes", "bytes": 1_000_000 });
    let sandbox = Sandbox::with_fault(json!({ "answer": answer })).await;
    let (seen, error) = read_to_end(sandbox.send(&sandbox.update(ALICE)).await).await;
    assert!(seen.ends_with(b"}"), "not the whole answer");
    assert_eq!(error, Some(ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn an_update_is_applied_once_though_its_client_has_gone() {
    let sandbox = Sandbox::with_fault(json!({ "delay_before_ms": 1_000 })).await;
    let stream = sandbox.send(&sandbox.update(ALICE)).await;
    sandbox.eventually("patches", 1).await;
    drop(stream);
    sandbox.eventually("applied", 1).await;
    let patch = sandbox.patch().await;
    assert_eq!((&patch["outcome"], &patch["status"]), (&json!("applied"), &json!(null)));
    let (_, customer) = sandbox.admin("GET", &format!("/customers/{ALICE}"), json!({})).await;
    assert_eq!((&customer["updates"], &customer["in_flight"]), (&json!(1), &json!(0)));
}

#[tokio::test]
async fn a_late_update_is_applied_after_its_answer() {
    let fault = json!({ "apply": { "after_ms": 1_000 }, "answer": { "kind": "respond", "status": 504 } });
    let sandbox = Sandbox::with_fault(fault).await;
    assert_eq!(sandbox.exchange(&sandbox.update(ALICE)).await.0, 504);
    let patch = sandbox.patch().await;
    assert_eq!((&patch["outcome"], &patch["status"]), (&json!("pending"), &json!(504)));
    sandbox.eventually("applied_late", 1).await;
    assert_eq!(sandbox.patch().await["outcome"], "applied late");
}

#[tokio::test]
async fn an_update_never_applied_may_still_be_answered_with_success() {
    let sandbox = Sandbox::with_fault(json!({ "apply": "never" })).await;
    assert_eq!(sandbox.exchange(&sandbox.update(ALICE)).await.0, 200);
    assert_eq!(sandbox.patch().await["outcome"], "not applied: rule 1");
    assert_eq!(sandbox.summary().await["applied"], 0);
}

#[tokio::test]
async fn a_head_whose_body_never_comes_is_no_patch() {
    let sandbox = Sandbox::start().await;
    let request = sandbox.update(ALICE);
    drop(sandbox.send(&request[..request.len() - 1]).await);
    sandbox.eventually("incomplete", 1).await;
    assert_eq!(sandbox.summary().await["patches"], 0);
}

#[tokio::test]
async fn updates_of_one_customer_open_at_once_are_counted() {
    let sandbox = Sandbox::with_fault(json!({ "answer": { "kind": "hang" } })).await;
    let held = (sandbox.send(&sandbox.update(ALICE)).await, sandbox.send(&sandbox.update(ALICE)).await);
    sandbox.eventually("in_flight_max", 2).await;
    drop(held);
    let path = format!("/customers/{ALICE}");
    let deadline = Instant::now() + DEADLINE;
    while sandbox.admin("GET", &path, json!({})).await.1["in_flight"] != 0 {
        assert!(Instant::now() < deadline, "requests of a client that has gone stay open");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(sandbox.summary().await["in_flight_max"], 2);
}

#[tokio::test]
async fn bodies_can_be_huge_slow_garbage_or_shorter_than_they_say() {
    async fn seen(answer: Value) -> Vec<u8> {
        let sandbox = Sandbox::with_fault(json!({ "answer": answer })).await;
        let (bytes, _) = read_to_end(sandbox.send(&sandbox.update(ALICE)).await).await;
        let head_end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        bytes[head_end + 4..].to_vec()
    }
    let huge = seen(json!({ "kind": "huge", "bytes": 3_000_000 })).await;
    assert!((3_000_000..3_010_000).contains(&huge.len()), "{} with framing", huge.len());
    let slow = seen(json!({ "kind": "slow", "byte_every_ms": 1 })).await;
    assert_eq!(serde_json::from_slice::<Value>(&slow).unwrap()["status"], true);
    let garbage = seen(json!({ "kind": "garbage" })).await;
    assert!(String::from_utf8(garbage).is_err());
    let headers = json!({ "content-length": "100" });
    let short = json!({ "kind": "respond", "status": 200, "headers": headers, "body": "<html>" });
    assert_eq!(seen(short).await, b"<html>");
}

#[tokio::test]
async fn a_stopped_sandbox_ends_what_is_open_and_frees_its_port() {
    let sandbox = Sandbox::with_fault(json!({ "answer": { "kind": "hang" } })).await;
    let hanging = sandbox.send(&sandbox.update(ALICE)).await;
    sandbox.eventually("applied", 1).await;
    timeout(DEADLINE, sandbox.running.stop()).await.expect("a hanging request holds it up");
    assert_eq!(read_to_end(hanging).await, (vec![], None));
    let refused = TcpStream::connect(sandbox.address).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn settings_and_customers_change_while_it_runs() {
    let mut sandbox = Sandbox::start().await;
    let rotated = json!({ "api_secret": "rotated", "update_answers": "UNVERIFIED", "clock_ahead_s": 200 });
    assert_eq!(sandbox.admin("POST", "/settings", rotated).await.0, 204);
    assert_eq!(sandbox.exchange(&sandbox.update(ALICE)).await.0, 400);
    sandbox.api_secret = "rotated".to_owned();
    let (_, body) = sandbox.exchange(&sandbox.update(ALICE)).await;
    assert_eq!(body["data"]["status"], "UNVERIFIED");

    let change = json!({ "status": "FAILED", "failure_reason": "KYC_FAILED", "updates": 3 });
    sandbox.admin("PUT", &format!("/customers/{ALICE}"), change).await;
    assert_eq!(sandbox.read(ALICE).await.1["data"]["failure_reason"], "KYC_FAILED");
    let (_, body) = sandbox.exchange(&sandbox.update(ALICE)).await;
    assert_eq!(body["message"], "Kyc update limit exceeded");

    for (path, body) in [("/settings", json!({ "latency": 5 })), ("/rules", json!({}))] {
        let (status, body) = sandbox.admin("POST", path, body).await;
        assert_eq!((status, body["error"].is_string()), (400, true), "{path}");
    }
}

#[tokio::test]
async fn a_reset_of_the_sandbox_outlives_the_requests_from_before_it() {
    let fault = json!({ "delay_before_ms": 1_000, "answer": { "kind": "respond", "status": 202 } });
    let sandbox = Sandbox::with_fault(fault).await;
    let before = sandbox.send(&sandbox.update(ALICE)).await;
    sandbox.eventually("patches", 1).await;
    assert_eq!(sandbox.admin("POST", "/reset", json!({})).await.0, 204);
    let (answer, _) = read_to_end(before).await;
    assert!(answer.starts_with(b"HTTP/1.1 202"));
    let summary = sandbox.summary().await;
    assert_eq!((&summary["patches"], &summary["applied"]), (&json!(0), &json!(0)));
    assert_eq!(sandbox.admin("GET", "/rules", json!({})).await.1, json!([]));
}

#[tokio::test]
async fn a_refusal_of_us_looks_like_one_of_a_job() {
    for (with, expected) in [("timestamp_field", 400), ("payment_required", 402), ("headers_too_large", 431)]
    {
        let answer = json!({ "kind": "refuse_us", "with": with });
        let sandbox = Sandbox::with_fault(json!({ "apply": "never", "answer": answer })).await;
        let (status, body) = sandbox.exchange(&sandbox.update(ALICE)).await;
        assert_eq!((status, &body["status"], &body["data"]), (expected, &json!(false), &Value::Null));
        assert_eq!(sandbox.summary().await["applied"], 0);
    }
}

#[tokio::test]
async fn a_cache_before_it_answers_what_it_has() {
    let cached = json!({ "kind": "cached", "for_ms": 600_000, "with_age": true, "older_by_s": 30 });
    let sandbox = Sandbox::with_fault(json!({ "answer": cached })).await;
    let (_, first) = sandbox.read(ALICE).await;
    assert_eq!(first["data"]["status"], "FAILED");
    sandbox.exchange(&sandbox.update(ALICE)).await;
    let request = sandbox.signed("GET", &format!("/cms/api/v1/customer/{ALICE}"), "");
    let (answer, _) = read_to_end(sandbox.send(&request).await).await;
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.contains("FAILED") && answer.contains("age: 3"), "{answer}");
    assert_eq!(answer.matches("date: ").count(), 1, "{answer}");
}

#[tokio::test]
async fn an_answer_about_another_customer_is_otherwise_the_same() {
    let sandbox = Sandbox::with_fault(json!({ "answer": { "kind": "other_customer" } })).await;
    let (status, body) = sandbox.read(ALICE).await;
    assert_eq!((status, &body["data"]["status"]), (200, &json!("FAILED")));
    assert_ne!(body["data"]["id"], ALICE);
}
