//! Every answer of the provider has its verdict, its end and its number of PATCHes.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{World, job_body, world};

/// What a job must have come to.
struct Expected {
    state: &'static str,
    reason_code: Option<&'static str>,
    /// Verdict, detail and HTTP status of the first attempt.
    first: (&'static str, Option<&'static str>, Option<i32>),
    patches: usize,
}

fn accepted(http_status: i32) -> Expected {
    Expected {
        state: "accepted",
        reason_code: None,
        first: ("accepted", None, Some(http_status)),
        patches: 1,
    }
}

fn rejected(reason: &'static str) -> Expected {
    Expected {
        state: "rejected",
        reason_code: Some(reason),
        first: ("rejected", Some(reason), Some(400)),
        patches: 1,
    }
}

/// Of unknown outcome, and a read shows that it was applied.
fn unknown_applied(detail: &'static str, http_status: Option<i32>) -> Expected {
    let first = ("unknown", Some(detail), http_status);
    Expected { state: "accepted", reason_code: None, first, patches: 1 }
}

/// Of unknown outcome, and reads show that it was not applied: sent again once, to the same
/// outcome, and no more, since a third update would be the customer's last.
fn unknown_not_applied(detail: &'static str, http_status: Option<i32>) -> Expected {
    let first = ("unknown", Some(detail), http_status);
    Expected { state: "needs_review", reason_code: Some("last_update"), first, patches: 2 }
}

fn throttled(http_status: i32) -> Expected {
    Expected {
        state: "accepted",
        reason_code: None,
        first: ("throttled", None, Some(http_status)),
        patches: 2,
    }
}

/// An answer in place of the provider's own, which has done as it was asked.
fn applied(status: u16, body: Value) -> Value {
    json!({ "answer": { "kind": "respond", "status": status, "body": body } })
}

/// An answer in place of the provider's own, which has done nothing.
fn not_applied(status: u16, body: Value) -> Value {
    json!({ "apply": "never", "answer": { "kind": "respond", "status": status, "body": body } })
}

fn refusal(message: &str, errors: Value) -> Value {
    not_applied(400, json!({ "status": false, "message": message, "errors": errors, "data": null }))
}

fn broken(answer: Value) -> Value {
    json!({ "answer": answer })
}

fn once(fault: Value) -> (Value, u64) {
    (fault, 1)
}

fn always(fault: Value) -> (Value, u64) {
    (fault, 1000)
}

/// Every row of the provider's table of errors and of our table of verdicts that does
/// not open the breaker: what the provider does, and what must come of it.
fn rows() -> Vec<(&'static str, (Value, u64), Expected)> {
    let ok = |data: Value| json!({ "status": true, "message": "Success", "data": data });
    let blank = json!({ "full_address": ["This field may not be blank."] });
    let nested = json!({ "document_details": { "document_number": ["This field may not be blank."] } });
    let crash = json!({
        "success": false, "message": "Internal Server Error", "errors": "An unexpected error", "data": null
    });
    let not_found = "Customer not found or access denied";
    vec![
        ("accepted", always(json!({})), accepted(200)),
        (
            "accepted as the reference shows it",
            always(applied(200, ok(json!({ "id": "CUSTOMER", "status": "UNVERIFIED" })))),
            accepted(200),
        ),
        (
            "accepted as the guide shows it",
            always(applied(200, ok(json!({ "customer_id": "CUSTOMER", "status": "PROCESSING" })))),
            accepted(200),
        ),
        (
            "accepted with an unknown status",
            always(applied(200, ok(json!({ "id": "CUSTOMER", "status": "QUEUED" })))),
            accepted(200),
        ),
        ("accepted with a 202", always(applied(202, ok(json!({})))), accepted(202)),
        ("not found in the message", always(refusal(not_found, json!({}))), rejected("customer_not_found")),
        (
            "not found under errors",
            always(refusal("Bad Request", json!({ "customer": ["Customer not found or access denied."] }))),
            rejected("customer_not_found"),
        ),
        ("in use", always(refusal("KYC already in use", json!({}))), rejected("kyc_already_in_use")),
        ("limit", always(refusal("Kyc update limit exceeded", json!({}))), rejected("update_limit_exceeded")),
        ("a field", always(refusal("Bad Request", blank)), rejected("field_refused")),
        ("a nested field", always(refusal("Bad Request", nested)), rejected("field_refused")),
        (
            "a refusal after a byte order mark",
            always(not_applied(
                400,
                json!("\u{feff}{\"status\":false,\"message\":\"KYC already in use\",\"errors\":{}}"),
            )),
            rejected("kyc_already_in_use"),
        ),
        (
            "another customer's acceptance",
            always(broken(json!({ "kind": "other_customer" }))),
            unknown_applied("other_customer", Some(200)),
        ),
        ("303, applied", always(applied(303, json!(null))), unknown_applied("ambiguous_status", Some(303))),
        ("304, applied", always(applied(304, json!(null))), unknown_applied("ambiguous_status", Some(304))),
        (
            "303, not applied",
            always(not_applied(303, json!(null))),
            unknown_not_applied("ambiguous_status", Some(303)),
        ),
        (
            "an encoded 200",
            always(broken(json!({
                "kind": "respond", "status": 200, "headers": { "content-encoding": "gzip" }, "body": "x"
            }))),
            unknown_applied("unreadable_success", Some(200)),
        ),
        ("429", once(not_applied(429, json!("slow down"))), throttled(429)),
        ("a status that the operator vouches for", once(not_applied(503, json!("gateway"))), throttled(503)),
        (
            "500 in the envelope, applied",
            always(applied(500, crash.clone())),
            unknown_applied("server_error", Some(500)),
        ),
        (
            "500 in the envelope, not applied",
            always(not_applied(500, crash)),
            unknown_not_applied("server_error", Some(500)),
        ),
        (
            "502",
            always(not_applied(502, json!("<html>Bad Gateway</html>"))),
            unknown_not_applied("server_error", Some(502)),
        ),
        ("504", always(applied(504, json!(null))), unknown_applied("server_error", Some(504))),
        ("408", always(not_applied(408, json!(null))), unknown_not_applied("server_error", Some(408))),
        ("499", always(not_applied(499, json!(null))), unknown_not_applied("server_error", Some(499))),
        (
            "200 without a body",
            always(applied(200, json!(null))),
            unknown_applied("unreadable_success", Some(200)),
        ),
        (
            "200 that says false",
            always(applied(200, json!({ "status": false }))),
            unknown_applied("unreadable_success", Some(200)),
        ),
        (
            "200 that says \"true\"",
            always(applied(200, json!({ "status": "true" }))),
            unknown_applied("unreadable_success", Some(200)),
        ),
        (
            "a proxy's 200",
            always(not_applied(200, json!("<html>Log in</html>"))),
            unknown_not_applied("unreadable_success", Some(200)),
        ),
        (
            "garbage",
            always(broken(json!({ "kind": "garbage" }))),
            unknown_applied("unreadable_success", Some(200)),
        ),
        ("204", always(applied(204, json!(null))), unknown_applied("unreadable_success", Some(204))),
        ("reset", always(broken(json!({ "kind": "reset" }))), unknown_applied("connection_lost", None)),
        (
            "reset within the head",
            always(broken(json!({ "kind": "reset_after_bytes", "bytes": 9 }))),
            unknown_applied("connection_lost", None),
        ),
        ("closed", always(broken(json!({ "kind": "close" }))), unknown_applied("connection_lost", None)),
        ("hanging, applied", always(broken(json!({ "kind": "hang" }))), unknown_applied("timed_out", None)),
        (
            "hanging, not applied",
            always(json!({ "apply": "never", "answer": { "kind": "hang" } })),
            unknown_not_applied("timed_out", None),
        ),
        ("late", always(json!({ "delay_after_ms": 4000 })), unknown_applied("timed_out", None)),
    ]
}

#[test]
fn every_answer_has_its_verdict_its_end_and_its_patches() {
    world(async |world| {
        world.declare_topology().await;
        let mut published = Vec::new();
        for (what, (fault, first), expected) in rows() {
            let (customer_id, job_id) = (Uuid::new_v4(), Uuid::new_v4());
            let matched = json!({ "method": "PATCH", "link_contains": job_id });
            let fault = fault.to_string().replace("CUSTOMER", &customer_id.to_string());
            let fault: Value = serde_json::from_str(&fault).expect("JSON");
            world.add_rule(json!({ "match": matched, "first": first, "fault": fault })).await;
            world.publish_job_named(customer_id, job_id).await;
            published.push((what, job_id, expected));
        }
        let _worker = world.start_worker_with(&[
            ("BREAKER_FAILURES", "1000"),
            ("NOT_APPLIED_STATUSES", "503"),
            ("CONCURRENCY", "40"),
        ]);
        for (what, job_id, expected) in &published {
            println!("row: {what}");
            check(&world, *job_id, expected).await;
        }
        assert_eq!(world.oracle_summary().await["links_applied_twice"], 0);
        let patches: usize = published.iter().map(|(_, _, expected)| expected.patches).sum();
        assert_eq!(world.oracle("patches").await.len(), patches);
    });
}

async fn check(world: &World, job_id: Uuid, expected: &Expected) {
    let job = world.wait_for_state(job_id, ENDED).await;
    assert_eq!(
        (job.state.as_str(), job.reason_code.as_deref()),
        (expected.state, expected.reason_code),
        "{job:?}"
    );
    let attempts = world.attempts(job_id).await;
    let first = &attempts[0];
    assert_eq!(
        (first.verdict.as_deref(), first.detail.as_deref(), first.http_status),
        (Some(expected.first.0), expected.first.1, expected.first.2),
    );
    assert_eq!(attempts.len(), expected.patches, "every PATCH has its attempt");
    assert_eq!(world.count_patches(job_id).await, expected.patches);
    let keeps_payload = matches!(expected.state, "needs_review" | "exhausted");
    assert_eq!(job.has_payload, keeps_payload);
}

const ENDED: &[&str] = &["accepted", "rejected", "exhausted", "needs_review", "invalid"];

#[test]
fn what_the_provider_itself_refuses_ends_rejected_with_its_reason() {
    world(async |world| {
        world.declare_topology().await;
        let [gone, full] = [Uuid::new_v4(), Uuid::new_v4()];
        world.set_customer(gone, json!({ "exists": false })).await;
        world.set_customer(full, json!({ "updates": 3 })).await;
        let (gone, _) = world.publish_job_for(gone).await;
        let (full, _) = world.publish_job_for(full).await;
        let odd = Uuid::new_v4();
        let mut body = job_body(Uuid::new_v4(), odd);
        body["document_type"] = json!("LIBRARY_CARD");
        world.publish(Some(odd), body.to_string().as_bytes()).await;

        let _worker = world.start_worker_with(&[("DOCUMENT_TYPES", "PASSPORT,LIBRARY_CARD")]);
        for (job_id, reason) in
            [(gone, "customer_not_found"), (full, "update_limit_exceeded"), (odd, "field_refused")]
        {
            check(&world, job_id, &rejected(reason)).await;
            assert_eq!(world.count_updates(job_id).await, 0);
        }
        let said = world.attempts(odd).await[0].provider_message.clone().unwrap_or_default();
        assert_eq!(said, "Bad Request; document_type: \"[withheld:12]\" is not a valid choice.");
    });
}

#[test]
fn a_job_that_alone_is_refused_goes_to_a_person_and_the_others_go_on() {
    world(async |world| {
        world.declare_topology().await;
        let refusal = json!({ "kind": "refuse_us", "with": "signature_field" });
        let alone = world.publish_broken_job(json!({ "apply": "never", "answer": refusal })).await;
        let others = world.publish_jobs(10).await;
        let _worker = world.start_worker();
        let job = world.wait_for_state(alone, ENDED).await;
        assert_eq!(
            (job.state.as_str(), job.reason_code.as_deref()),
            ("needs_review", Some("refused_only_for_this_job"))
        );
        world.wait_for_all_accepted(&others).await;
        assert_eq!(world.count_updates(alone).await, 0);
        let attempts = world.attempts(alone).await;
        assert!(attempts.iter().all(|attempt| attempt.detail.as_deref() == Some("signature_refused")));
        assert_eq!(world.count_patches(alone).await, attempts.len());
    });
}
