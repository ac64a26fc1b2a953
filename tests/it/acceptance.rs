//! From a queued job to an audited outcome.

use lapin::BasicProperties;
use serde_json::json;
use uuid::Uuid;

use crate::harness::{job_body, world};

/// The body of the provider's own page.
const DOCUMENTED_EXAMPLE: &str = r#"{
    "customer_id": "4e6f1b20-a73c-11ec-b909-0242ac120002",
    "full_address": "FULL_ADDRESS_OF_THE_CUSTOMER",
    "document_type": "PASSPORT",
    "document_front_image_url": "https://files.example.com/front.jpg",
    "document_back_image_url": "https://files.example.com/back.png",
    "document_details": { "document_number": "123456123456", "additional_data": {} }
}"#;

#[test]
fn the_documented_example_ends_accepted_and_audited() {
    world(async |world| {
        world.declare_topology().await;
        let job_id = Uuid::new_v4();
        world.publish(Some(job_id), DOCUMENTED_EXAMPLE.as_bytes()).await;
        let _worker = world.start_worker();

        let job = world.wait_for_state(job_id, &["accepted"]).await;
        assert_eq!(job.verification_status.as_deref(), Some("PROCESSING"));
        assert_eq!(job.provider_reference.as_deref(), Some("4e6f1b20-a73c-11ec-b909-0242ac120002"));
        assert_eq!(job.document_number_last4.as_deref(), Some("3456"));
        assert!(!job.has_payload);
        let attempts = world.attempts(job_id).await;
        assert_eq!(attempts.len(), 1);
        assert_eq!(attempts[0].verdict.as_deref(), Some("accepted"));
        assert_eq!(world.oracle("updates").await.len(), 1);
        world
            .wait_for("an empty queue", async || {
                (world.count_ready("kyc.document-updates").await == 0).then_some(())
            })
            .await;
    });
}

#[test]
fn a_job_published_a_hundred_times_is_sent_once() {
    world(async |world| {
        world.declare_topology().await;
        let (customer_id, job_id) = (Uuid::new_v4(), Uuid::new_v4());
        let body = job_body(customer_id, job_id).to_string();
        let workers = [world.start_worker(), world.start_worker()];
        for _ in 0..100 {
            world.publish(Some(job_id), body.as_bytes()).await;
        }
        world
            .wait_for("a hundred deliveries", async || {
                world.submission(job_id).await.filter(|job| job.deliveries == 100 && job.state == "accepted")
            })
            .await;
        assert_eq!(world.count_patches(job_id).await, 1);
        assert_eq!(world.count("select count(*) from dead_lettered_delivery").await, 0);
        drop(workers);
    });
}

#[test]
fn a_job_id_with_another_content_is_a_conflict() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker();
        let (job_id, body) = world.publish_job_for(Uuid::new_v4()).await;
        world.wait_for_state(job_id, &["accepted"]).await;

        let mut other = body.clone();
        other["full_address"] = json!("Another address");
        world.publish(Some(job_id), other.to_string().as_bytes()).await;
        let letter = world.wait_for("a dead letter", async || world.take_dead_letter().await).await;
        assert_eq!(letter, other.to_string().as_bytes());
        let conflicts = "select count(*) from dead_lettered_delivery where reason_code = 'conflict'";
        assert_eq!(world.count(conflicts).await, 1);
        assert_eq!(world.count_patches(job_id).await, 1);

        // Fresh presigned links are no other content.
        let mut again = body;
        let link = format!("https://files.example.com/{job_id}/front.jpg?X-Amz-Signature=fresh");
        again["document_front_image_url"] = json!(link);
        world.publish(Some(job_id), again.to_string().as_bytes()).await;
        world
            .wait_for("a known delivery", async || {
                world.submission(job_id).await.filter(|job| job.deliveries == 2)
            })
            .await;
        assert_eq!(world.count(conflicts).await, 1);
    });
}

#[test]
fn a_valid_job_may_follow_an_invalid_one_of_its_id() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker();
        let job_id = Uuid::new_v4();
        world.publish(Some(job_id), b"{}").await;
        let invalid = world.wait_for_state(job_id, &["invalid"]).await;
        let reason = invalid.reason.unwrap_or_default();
        for pointer in ["/customer_id", "/full_address", "/document_details"] {
            assert!(reason.contains(pointer), "{reason}");
        }
        let body = job_body(Uuid::new_v4(), job_id).to_string();
        world.publish(Some(job_id), body.as_bytes()).await;
        world.wait_for_state(job_id, &["accepted"]).await;
        assert_eq!(world.count_patches(job_id).await, 1);
    });
}

#[test]
fn a_job_id_in_the_body_serves_as_well_as_a_message_id() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker();
        let job_id = Uuid::new_v4();
        let mut body = job_body(Uuid::new_v4(), job_id);
        body["job_id"] = json!(job_id);
        world.publish_with(BasicProperties::default(), body.to_string().as_bytes()).await;
        world.wait_for_state(job_id, &["accepted"]).await;
    });
}
