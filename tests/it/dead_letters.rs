//! Dead letters are looked at without loss, and delivered again.

use lapin::BasicProperties;
use serde_json::json;
use uuid::Uuid;

use crate::harness::{World, job_body, world};

const DEAD_LETTERS: &str = "kyc.dead-letters";

/// A job that is none where passports alone are documents.
async fn publish_refused(world: &World) -> Uuid {
    let job_id = Uuid::new_v4();
    let mut body = job_body(Uuid::new_v4(), job_id);
    body["document_type"] = json!("VOTER_ID");
    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_message_id(job_id.to_string().into())
        .with_correlation_id("upstream-7".into());
    world.publish_with(properties, body.to_string().as_bytes()).await;
    job_id
}

async fn wait_for_letters(world: &World, count: u32) {
    let what = format!("{count} dead letters");
    world.wait_for(&what, async || (world.count_ready(DEAD_LETTERS).await == count).then_some(())).await;
}

const STRICT: [(&str, &str); 1] = [("DOCUMENT_TYPES", "PASSPORT")];

#[test]
fn dead_letters_are_looked_at_without_loss_and_delivered_again_after_a_fix() {
    world(async |world| {
        world.declare_topology().await;
        let mut strict = world.start_worker_with(&STRICT);
        let job_id = publish_refused(&world).await;
        let other = publish_refused(&world).await;
        wait_for_letters(&world, 2).await;
        world.publish_dead_letter(b"{}").await;
        wait_for_letters(&world, 3).await;
        strict.stop().await;

        let (listed, _) = world.ask(&["dead-letters", "list"]).await;
        let listed = listed.as_array().expect("a list").clone();
        assert_eq!(listed.len(), 3);
        let of = |job_id: Uuid| {
            let id = job_id.to_string();
            listed.iter().find(|letter| letter["message_id"] == id.as_str()).expect("it is listed").clone()
        };
        assert_eq!((&of(job_id)["by"], &of(job_id)["reason_code"]), (&json!("worker"), &json!("invalid")));
        let brokers = listed.iter().find(|letter| letter["row"].is_null()).expect("one without a row");
        assert_eq!(brokers["by"], "broker");
        wait_for_letters(&world, 3).await;

        let id = of(job_id)["id"].as_str().expect("an id").to_owned();
        let shown = world.say(&["dead-letters", "show", &id]).await;
        assert!(shown.contains("/document_type") && !shown.contains("Mumbai"), "{shown}");
        assert!(world.say(&["dead-letters", "show", &id, "--body"]).await.contains("Mumbai"));
        assert!(world.refuse(&["dead-letters", "show", "0123456789ab"]).await.contains("is queued"));
        wait_for_letters(&world, 3).await;

        let _lenient = world.start_worker();
        let signed = ["--by", "ana", "--note", "the contract allows it now"];
        let said = world.say(&[&["dead-letters", "requeue", &id][..], &signed].concat()).await;
        assert!(said.contains("requeued 1; 2 stay"), "{said}");
        world.wait_for_state(job_id, &["accepted"]).await;
        wait_for_letters(&world, 2).await;
        assert_eq!(world.count_patches(other).await, 0);
        let kept: Option<String> =
            sqlx::query_scalar("select correlation_id from submission where job_id = $1")
                .bind(job_id)
                .fetch_one(&world.pool)
                .await
                .expect("a row");
        assert_eq!(kept.as_deref(), Some("upstream-7"), "it is the message that it was");

        let by_reason = [&["dead-letters", "requeue", "--reason", "invalid"][..], &signed].concat();
        world.say(&by_reason).await;
        world.wait_for_state(other, &["accepted"]).await;
        wait_for_letters(&world, 1).await;
        let deeds = "select count(*) from intervention where action = 'requeue' and by = 'ana'";
        assert_eq!(world.count(deeds).await, 2);
        assert!(world.say(&["show", &job_id.to_string()]).await.contains("requeue by ana"));
    });
}

#[cfg(feature = "failpoints")]
#[test]
fn a_requeue_that_crashes_midway_leaves_the_letter_twice_and_never_not_at_all() {
    world(async |world| {
        world.declare_topology().await;
        let mut strict = world.start_worker_with(&STRICT);
        let job_id = publish_refused(&world).await;
        wait_for_letters(&world, 1).await;
        strict.stop().await;

        let requeue = ["dead-letters", "requeue", "--all", "--by", "ana", "--note", "again"];
        let crashed = world.run(&requeue, &[("KYC_FAILPOINT", "requeue-confirmed=kill")]).await;
        assert!(!crashed.status.success());
        wait_for_letters(&world, 1).await;
        let _lenient = world.start_worker();
        world.wait_for_state(job_id, &["accepted"]).await;

        world.say(&requeue).await;
        let job = world
            .wait_for("the second delivery", async || {
                world.submission(job_id).await.filter(|job| job.deliveries == 2)
            })
            .await;
        assert_eq!(job.state, "accepted");
        wait_for_letters(&world, 0).await;
        assert_eq!(world.count_patches(job_id).await, 1);
    });
}

#[test]
fn the_row_of_a_dead_letter_is_kept_as_long_as_it_should_be() {
    world(async |world| {
        world
            .tamper(
                r"insert into dead_lettered_delivery (received_at, size, body_sha256, reason_code, reason)
                select now() - age, 2, '\x00', 'invalid', age::text
                from unnest(array[interval '91 days', interval '89 days']) age",
            )
            .await;
        let _worker = world.start_worker();
        let rows = "select count(*) from dead_lettered_delivery";
        world.wait_for("a swept row", async || (world.count(rows).await == 1).then_some(())).await;
        let left = "select count(*) from dead_lettered_delivery where reason = '89 days'";
        assert_eq!(world.count(left).await, 1);
    });
}
