//! With `DOCUMENT_TYPES=provider`, a type that the provider does not list for the customer spends nothing,
//! and an answer that cannot be had is a retry.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{PATIENT, Submission, World, job_body, world};
use crate::link_check::ended;

/// Settings that have the provider asked.
fn asking(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    [&[("DOCUMENT_TYPES", "provider")], &PATIENT[..], more].concat()
}

/// The provider's answer to a configuration that lists these types.
fn lists(types: &[&str]) -> Value {
    let data = json!({ "supported_document_types": types, "additional_info_required": false });
    let body = json!({ "status": true, "message": "Success", "data": data });
    json!({ "answer": { "kind": "respond", "status": 200, "body": body } })
}

fn refuses(status: u16) -> Value {
    let body = json!({ "status": false, "message": "Unauthorized", "errors": {}, "data": null });
    json!({ "answer": { "kind": "respond", "status": status, "body": body } })
}

/// Has the provider answer the first so many questions for a customer's configuration so.
async fn configure(world: &World, customer_id: Uuid, first: Option<u64>, fault: Value) {
    let matched = json!({ "path_contains": "/kyc/configuration/", "customer_id": customer_id });
    world.add_rule(json!({ "match": matched, "first": first, "fault": fault })).await;
}

async fn publish_typed(world: &World, customer_id: Uuid, document_type: &str) -> Uuid {
    let job_id = Uuid::new_v4();
    let mut body = job_body(customer_id, job_id);
    body["document_type"] = json!(document_type);
    world.publish(Some(job_id), body.to_string().as_bytes()).await;
    job_id
}

fn is_unsupported(job: &Submission) -> bool {
    (job.state.as_str(), job.reason_code.as_deref()) == ("rejected", Some("document_type_unsupported"))
}

#[test]
fn a_type_that_the_provider_does_not_list_spends_nothing() {
    world(async |world| {
        world.declare_topology().await;
        let customer_id = Uuid::new_v4();
        // Asked again, it would not answer.
        configure(&world, customer_id, Some(1), lists(&["AADHAAR", "VOTER_ID"])).await;
        configure(&world, customer_id, None, refuses(500)).await;
        let _workers = [world.start_worker_with(&asking(&[])), world.start_worker_with(&asking(&[]))];
        let unsupported = publish_typed(&world, customer_id, "PASSPORT").await;
        let job = ended(&world, unsupported).await;
        assert!(is_unsupported(&job), "{job:?}");
        assert!(job.reason.as_deref().is_some_and(|reason| reason.ends_with("it lists AADHAAR, VOTER_ID")));
        assert_eq!((job.attempts, job.has_payload), (1, false), "{job:?}");
        assert_eq!(world.count_patches(unsupported).await, 0);
        let seen = world.observations(unsupported).await;
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert_eq!(seen[0].purpose, "configuration");
        assert_eq!(seen[0].document_types.as_deref(), Some("AADHAAR,VOTER_ID"));

        let again = publish_typed(&world, customer_id, "DRIVING_LICENSE").await;
        assert!(is_unsupported(&ended(&world, again).await), "it is remembered, by each replica");
        let supported = publish_typed(&world, customer_id, "VOTER_ID").await;
        world.check_nothing_lost_or_spent_twice(&[supported]).await;
        assert!(world.observations(again).await.is_empty());

        let shown = world.say(&["show", &unsupported.to_string()]).await;
        assert!(shown.contains("the provider lists AADHAAR, VOTER_ID for the customer"), "{shown}");
        assert!(shown.contains("one update: nothing was sent"), "{shown}");
        let report = world.say(&["report"]).await;
        assert!(report.contains("too soon or a check refused the job: 2"), "{report}");
        let spent = world.say(&["show", "--customer", &customer_id.to_string()]).await;
        assert!(spent.contains("spent or possibly spent here: 1"), "{spent}");
    });
}

#[test]
fn what_is_no_type_at_all_is_no_job() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker_with(&asking(&[]));
        let number = publish_typed(&world, Uuid::new_v4(), "ABCDE1234F").await;
        world.wait_for_state(number, &["invalid"]).await;
        let new_one = publish_typed(&world, Uuid::new_v4(), "PAN_CARD").await;
        assert!(is_unsupported(&ended(&world, new_one).await), "the provider has no such type");
    });
}

#[test]
fn a_list_is_remembered_for_an_hour() {
    world(async |world| {
        world.is_tampered_with();
        world.declare_topology().await;
        let before = world.publish_job().await;
        let _worker = world.start_worker_with(&asking(&[]));
        world.wait_for_all_accepted(&[before]).await;
        for (minutes, is_remembered) in [(59, true), (61, false)] {
            let customer_id = Uuid::new_v4();
            let told = "insert into observation (job_id, customer_id, at, purpose, document_types)
                values ($1, $2, now() - make_interval(mins => $3), 'configuration', 'AADHAAR')";
            let told = sqlx::query(told).bind(before).bind(customer_id).bind(minutes);
            told.execute(&world.pool).await.expect("it is told");
            let (job_id, _) = world.publish_job_for(customer_id).await;
            assert_eq!(is_unsupported(&ended(&world, job_id).await), is_remembered, "{minutes} minutes ago");
        }
    });
}

#[test]
fn a_configuration_that_cannot_be_read_is_asked_for_again() {
    world(async |world| {
        world.declare_topology().await;
        let customer_id = Uuid::new_v4();
        configure(&world, customer_id, Some(1), refuses(500)).await;
        configure(&world, customer_id, Some(1), json!({ "answer": { "kind": "garbage" } })).await;
        let _worker = world.start_worker_with(&asking(&[]));
        let (job_id, _) = world.publish_job_for(customer_id).await;
        world.check_nothing_lost_or_spent_twice(&[job_id]).await;
        let attempts = world.attempts(job_id).await;
        let told: Vec<_> = attempts.iter().map(|attempt| attempt.detail.as_deref()).collect();
        assert_eq!(told, [Some("configuration_unread"), Some("configuration_unread"), None]);
        let seen = world.observations(job_id).await;
        let errors: Vec<_> = seen.iter().map(|seen| seen.error.as_deref()).collect();
        assert_eq!(errors, [Some("configuration_unread"), Some("configuration_unread"), None]);
        assert_eq!(world.submission(job_id).await.expect("it is there").retries, 2);
    });
}

/// Else each job would meet the outage with its own retries, until it is exhausted.
#[test]
fn a_provider_that_tells_no_configuration_pauses_the_intake() {
    world(async |world| {
        world.declare_topology().await;
        let matched = json!({ "path_contains": "/kyc/configuration/" });
        world.add_rule(json!({ "match": matched, "fault": { "answer": { "kind": "close" } } })).await;
        let few = asking(&[("BREAKER_FAILURES", "3"), ("RETRY_MAX_ATTEMPTS", "3")]);
        let jobs = world.publish_jobs(6).await;
        let worker = world.start_worker_with(&few);
        world.wait_for_log(&worker, "intake paused").await;
        assert!(world.oracle("patches").await.iter().all(|patch| patch["customer_id"] == json!(Uuid::nil())));
        world.clear_rules().await;
        world.wait_for_log(&worker, "intake resumed").await;
        world.check_nothing_lost_or_spent_twice(&jobs).await;
    });
}

#[test]
fn a_refused_key_is_a_persons_to_mend_and_no_job_ends() {
    world(async |world| {
        world.declare_topology().await;
        let customer_id = Uuid::new_v4();
        configure(&world, customer_id, Some(1), refuses(401)).await;
        let worker = world.start_worker_with(&asking(&[]));
        let (job_id, _) = world.publish_job_for(customer_id).await;
        world.wait_for_log(&worker, "intake paused until a person has fixed this").await;
        world.check_nothing_lost_or_spent_twice(&[job_id]).await;
        let attempts = world.attempts(job_id).await;
        let told: Vec<_> = attempts.iter().map(|attempt| attempt.detail.as_deref()).collect();
        assert_eq!(told, [Some("api_key_refused"), None]);
        // It is the answer to another question.
        assert_eq!(attempts[0].http_status, None);
        let told = "select count(*) from attempt where error = \
                    'the customer''s configuration was asked for, and no update sent'";
        assert_eq!(world.count(told).await, 1);
    });
}

#[test]
fn a_customer_whom_the_provider_does_not_know_is_refused_by_the_update() {
    world(async |world| {
        world.declare_topology().await;
        let customer_id = Uuid::new_v4();
        world.set_customer(customer_id, json!({ "exists": false })).await;
        let _worker = world.start_worker_with(&asking(&[]));
        let (job_id, _) = world.publish_job_for(customer_id).await;
        let job = ended(&world, job_id).await;
        let told = (job.state.as_str(), job.reason_code.as_deref());
        assert_eq!(told, ("rejected", Some("customer_not_found")));
        assert_eq!(world.count_patches(job_id).await, 1);
    });
}

#[test]
fn a_list_in_the_setting_asks_the_provider_nothing() {
    world(async |world| {
        world.declare_topology().await;
        let customer_id = Uuid::new_v4();
        configure(&world, customer_id, None, lists(&["AADHAAR"])).await;
        let _worker = world.start_worker();
        let (job_id, _) = world.publish_job_for(customer_id).await;
        world.check_nothing_lost_or_spent_twice(&[job_id]).await;
        assert!(world.observations(job_id).await.is_empty());
    });
}
