//! What the provider applies late, and reads that are written down twice, prove no more than
//! they are worth.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{World, world};

const ERROR: &str = "internal error";

async fn publish_broken(world: &World, customer_id: Uuid, apply: Value) -> Uuid {
    let job_id = Uuid::new_v4();
    let answer = json!({ "kind": "respond", "status": 500, "body": ERROR });
    world.break_job_once(job_id, json!({ "apply": apply, "answer": answer })).await;
    world.publish_job_named(customer_id, job_id).await;
    job_id
}

#[test]
fn an_older_update_that_was_applied_late_is_not_taken_for_a_newer_one() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker_with(&[("READ_BACK_DEADLINE", "11s")]);
        let customer_id = Uuid::new_v4();
        let older = publish_broken(&world, customer_id, json!({ "after_ms": 2000 })).await;
        // Its first read came before it was applied, and says FAILED.
        world.wait_for_applied(older).await;

        // In verification is still the older one.
        let newer = publish_broken(&world, customer_id, json!("never")).await;
        let job = world.wait_for_state(newer, &["accepted", "needs_review"]).await;
        assert_eq!((job.state.as_str(), job.reason_code.as_deref()), ("needs_review", Some("fate_unknown")));
        assert_eq!((world.count_updates(older).await, world.count_updates(newer).await), (1, 0));
    });
}

#[test]
fn a_verification_from_before_the_attempt_is_not_its_own() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker_with(&[("READ_BACK_DEADLINE", "11s")]);
        let customer_id = Uuid::new_v4();
        let older = publish_broken(&world, customer_id, json!("now")).await;
        world.wait_for_applied(older).await;
        // Nobody reads when it ends.
        world.set_customer(customer_id, json!({ "status": "VERIFIED" })).await;

        let newer = publish_broken(&world, customer_id, json!("never")).await;
        let job = world.wait_for_state(newer, &["accepted", "needs_review"]).await;
        assert_eq!((job.state.as_str(), job.reason_code.as_deref()), ("needs_review", Some("fate_unknown")));
    });
}

#[test]
fn a_read_that_is_written_down_twice_confirms_once() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker_with(&[("READ_BACK_CONFIRMATIONS", "3")]);
        let job_id = publish_broken(&world, Uuid::new_v4(), json!("never")).await;
        world
            .wait_for("a first read", async || {
                (world.count("select count(*) from observation").await == 1).then_some(())
            })
            .await;
        world.is_tampered_with();
        // As a write does that is tried again because its answer was lost.
        sqlx::query(
            "insert into observation (job_id, customer_id, at, purpose, status, conclusion)
            select job_id, customer_id, at, purpose, status, conclusion from observation",
        )
        .execute(&world.pool)
        .await
        .expect("the observation, twice");
        world.wait_for_state(job_id, &["accepted"]).await;
        assert_eq!(world.count("select count(distinct at) from observation").await, 3);
        assert_eq!(world.count_updates(job_id).await, 1);
    });
}
