//! A customer is forgotten: what could tell who they are goes, what happened stays.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{job_body, world};

#[test]
fn a_customer_is_forgotten_and_his_history_stays() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker();
        let customer_id = Uuid::new_v4();
        let (accepted, body) = world.publish_job_for(customer_id).await;
        world.wait_for_state(accepted, &["accepted"]).await;
        // The same id with another content, and a body that is no job: dead letters.
        let mut other = body.clone();
        other["full_address"] = json!("Somewhere else 7");
        world.publish(Some(accepted), other.to_string().as_bytes()).await;
        let mut invalid = job_body(customer_id, Uuid::new_v4());
        invalid["document_type"] = json!("LICENSE");
        world.publish(Some(Uuid::new_v4()), invalid.to_string().as_bytes()).await;
        let waiting = Uuid::new_v4();
        let answer = json!({ "kind": "respond", "status": 429, "headers": { "retry-after": "1" } });
        world.break_job(waiting, json!({ "apply": "never", "answer": answer })).await;
        world.publish_job_named(customer_id, waiting).await;
        world.wait_for_state(waiting, &["waiting"]).await;
        world
            .wait_for("two dead letters", async || {
                (world.count_ready("kyc.dead-letters").await == 2).then_some(())
            })
            .await;

        let customer = customer_id.to_string();
        let forget = ["forget", "--customer", &customer, "--by", "ana", "--note", "erasure request 4711"];
        let refused = world.refuse(&forget).await;
        assert!(refused.contains(&format!("job {waiting} of the customer is in motion")), "{refused}");
        let kept = "select count(*) from submission where content_hmac is not null";
        assert_eq!(world.count(kept).await, 2, "nothing was removed");
        world.clear_rules().await;
        world.wait_for_state(waiting, &["accepted"]).await;

        let (said, is_done) = world.ask(&forget).await;
        assert!(!is_done, "dead letters of theirs are queued still");
        assert_eq!(said["queued"].as_array().map(Vec::len), Some(2), "{said}");
        assert_eq!((&said["jobs"], &said["dead_letters"]), (&json!(3), &json!(2)), "{said}");
        assert_eq!(world.count(kept).await, 0);
        let traces = "select count(*) from submission
            where sealed_payload is not null or document_number_last4 is not null";
        assert_eq!(world.count(traces).await, 0);
        let fingerprints = "select count(*) from dead_lettered_delivery where length(body_sha256) > 0";
        assert_eq!(world.count(fingerprints).await, 0);
        assert!(world.attempts(accepted).await.len() == 1, "what happened stays");
        assert!(world.say(&["show", "--customer", &customer]).await.contains(&accepted.to_string()));

        // A job that comes again is still known, and not sent.
        world.publish(Some(accepted), body.to_string().as_bytes()).await;
        world
            .wait_for("the third delivery", async || {
                world.submission(accepted).await.filter(|job| job.deliveries == 2)
            })
            .await;
        assert_eq!(world.count_patches(accepted).await, 1);

        // Another customer's job under that id is not, nor another document: dead letters, each with its row.
        while world.take_dead_letter().await.is_some() {}
        let mut document = body.clone();
        document["document_type"] = json!("VOTER_ID");
        for other in [job_body(Uuid::new_v4(), accepted), document] {
            world.publish(Some(accepted), other.to_string().as_bytes()).await;
            let letter = world.wait_for("its letter", async || world.take_dead_letter().await).await;
            assert_eq!(serde_json::from_slice::<Value>(&letter).expect("JSON"), other);
        }
        let conflicts = "select count(*) from dead_lettered_delivery
            where reason_code = 'conflict' and length(body_sha256) > 0";
        assert_eq!(world.count(conflicts).await, 2);
        assert_eq!(world.submission(accepted).await.expect("it is known").deliveries, 2);

        let said = world.say(&forget).await;
        assert!(said.contains("no dead letter that is queued names the customer"), "{said}");
        let deeds = "select count(*) from intervention where action = 'forget' and note like '%4711'";
        assert_eq!(world.count(deeds).await, 2);
    });
}
