//! A person has jobs sent again: told before what that would do, and refused what could
//! spend an update that is not there.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{World, world};

/// One answer that puts a job off is the end of it.
pub(crate) const IMPATIENT: [(&str, &str); 2] = [("RETRY_MAX_ATTEMPTS", "1"), ("BREAKER_FAILURES", "1000")];

/// A job of a customer that ends `exhausted`, and would be accepted when sent again.
pub(crate) async fn exhaust(world: &World, customer_id: Uuid) -> Uuid {
    let answer = json!({ "kind": "respond", "status": 429, "headers": { "retry-after": "1" } });
    let fault = json!({ "apply": "never", "answer": answer });
    let matched = json!({ "method": "PATCH", "customer_id": customer_id });
    world.add_rule(json!({ "match": matched, "first": 1, "fault": fault })).await;
    let (job_id, _) = world.publish_job_for(customer_id).await;
    let job = world.wait_for_state(job_id, &["exhausted", "accepted"]).await;
    assert_eq!(job.reason_code.as_deref(), Some("attempts"), "{job:?}");
    job_id
}

/// Why a job is refused.
async fn refusal(world: &World, job_id: Uuid) -> String {
    let (said, is_success) = world.ask(&["replay", &job_id.to_string()]).await;
    assert!(!is_success, "{said}");
    assert_eq!((&said["replayed"], &said["refused"]), (&json!(0), &json!(1)));
    said["jobs"][0]["refusal"].as_str().expect("a refusal").to_owned()
}

#[test]
fn a_replay_says_what_it_would_do_and_does_it_only_when_told() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker_with(&IMPATIENT);
        let jobs = [exhaust(&world, Uuid::new_v4()).await, exhaust(&world, Uuid::new_v4()).await];
        let ids = jobs.map(|job_id| job_id.to_string());

        let said = world.say(&["replay", "--state", "exhausted"]).await;
        assert!(said.contains("would replay 2, which may spend 2 updates; refused 0"), "{said}");
        assert!(said.contains("exhausted (attempts)") && said.contains("3 updates left"), "{said}");
        assert_eq!(world.count("select count(*) from submission where state = 'exhausted'").await, 2);
        assert_eq!(world.count("select count(*) from intervention").await, 0);
        for unsigned in [&["replay", &ids[0], "--yes"][..], &["replay", &ids[0], "--yes", "--by", "ana"]] {
            assert_eq!(world.run(unsigned, &[]).await.status.code(), Some(2), "who and why are asked for");
        }
        assert_eq!(world.run(&["replay"], &[]).await.status.code(), Some(2), "all is not the default");

        let signed = ["--yes", "--by", "ana", "--note", "the provider is mended"];
        let said = world.say(&[&["replay", ids[0].as_str(), ids[1].as_str()][..], &signed].concat()).await;
        assert!(said.contains("replayed 2; refused 0"), "{said}");
        world.wait_for_all_accepted(&jobs).await;
        for (job_id, id) in jobs.iter().zip(&ids) {
            assert_eq!(world.count_patches(*job_id).await, 2);
            let story = world.say(&["show", id]).await;
            assert!(
                story.contains("replay by ana (was exhausted (attempts)): the provider is mended"),
                "{story}"
            );
            assert_eq!(
                refusal(&world, *job_id).await,
                "was accepted: nothing is left to be sent",
                "once is enough"
            );
        }
    });
}

#[test]
fn a_replay_refuses_what_has_no_update_left_or_no_payload_or_a_newer_job() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker_with(&IMPATIENT);
        // One that might take the last update: it is looked at while the others are made.
        let careful = Uuid::new_v4();
        world.set_customer(careful, json!({ "status": "FAILED", "updates": 1 })).await;
        let set = ["budget", "set", "--customer", &careful.to_string(), "--used", "1"];
        world.say(&[&set[..], &["--by", "ana", "--note", "by hand"]].concat()).await;
        let crash = json!({ "kind": "respond", "status": 500, "body": "oops" });
        let matched = json!({ "method": "PATCH", "customer_id": careful });
        let fault = json!({ "apply": "never", "answer": crash });
        world.add_rule(json!({ "match": matched, "first": 1, "fault": fault })).await;
        let (last, _) = world.publish_job_for(careful).await;

        let replaced_of = Uuid::new_v4();
        let replaced = exhaust(&world, replaced_of).await;
        let (newer, _) = world.publish_job_for(replaced_of).await;
        world.wait_for_state(newer, &["accepted"]).await;
        assert_eq!(refusal(&world, replaced).await, format!("the newer job {newer} was accepted"));

        let spent_of = Uuid::new_v4();
        let spent = exhaust(&world, spent_of).await;
        let set = ["budget", "set", "--customer", &spent_of.to_string(), "--used", "3"];
        world.say(&[&set[..], &["--by", "ana", "--note", "by hand"]].concat()).await;
        assert_eq!(refusal(&world, spent).await, "the customer's updates are spent");

        let swept = exhaust(&world, Uuid::new_v4()).await;
        sqlx::query("update submission set sealed_payload = null where job_id = $1")
            .bind(swept)
            .execute(&world.pool)
            .await
            .expect("an update");
        assert!(refusal(&world, swept).await.starts_with("its payload is gone"));
        assert!(refusal(&world, Uuid::new_v4()).await.starts_with("no such job is known"));

        let job = world.wait_for_state(last, &["needs_review", "accepted"]).await;
        assert_eq!(job.reason_code.as_deref(), Some("last_update"), "{job:?}");
        assert_eq!(refusal(&world, last).await, "a resend might take the customer's last update");
        let (said, _) =
            world.ask(&["replay", "--reason", "last_update", "--yes", "--by", "a", "--note", "b"]).await;
        assert_eq!(said["refused"], 1, "{said}");
        assert_eq!(said["is_dry_run"], Value::Bool(false));
        assert_eq!(world.count("select count(*) from intervention where action = 'replay'").await, 0);
        assert_eq!(world.count_patches(last).await, 1);
    });
}
