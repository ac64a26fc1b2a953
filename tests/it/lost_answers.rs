//! What was committed and never heard of is found again: it is sent, or recorded, once.

use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use crate::harness::{WorkerProcess, World, world};

/// Starts a worker that waits for longer than an answer can be held back, before it sends, before
/// another may rescue it, and before it reads.
async fn start_patient(world: &World, database_url: &str) -> WorkerProcess {
    let worker = world.start_worker_with(&[
        ("DATABASE_URL", database_url),
        ("SEND_WINDOW", "20s"),
        ("CLAIM_LEASE", "25s"),
        ("READ_BACK_WINDOW", "60s"),
        ("READ_BACK_DEADLINE", "60s"),
    ]);
    world.wait_for_consumers(1).await;
    worker
}

#[test]
fn a_commit_whose_answer_is_lost_is_found_again() {
    world(async |world| {
        world.declare_topology().await;
        let (relay, database_url) = world.relay_to_database().await;
        let mut worker = start_patient(&world, &database_url).await;
        // Long enough to see the row before the worker hears that it is committed.
        relay.delay(Duration::from_millis(300));
        let job_id = world.publish_job().await;
        world.wait_for_state(job_id, &["submitting"]).await;
        relay.reset();
        relay.resume();
        world.wait_for_log(&worker, "a batch was not written").await;
        world.check_nothing_lost_or_spent_twice(&[job_id]).await;
        assert_eq!(world.count_patches(job_id).await, 1);
        let job = world.submission(job_id).await.expect("it is known");
        let attempts = world.attempts(job_id).await;
        assert_eq!((attempts.len(), job.deliveries), (1, 1), "the claim was found to be its own");
        world.check_all_acked([&mut worker]).await;
    });
}

#[test]
fn an_attempt_whose_begin_lost_its_answer_is_sent_and_its_outcome_known() {
    world(async |world| {
        world.declare_topology().await;
        let (relay, database_url) = world.relay_to_database().await;
        let mut worker = start_patient(&world, &database_url).await;
        let job_id = Uuid::new_v4();
        let answer = json!({ "kind": "respond", "status": 429, "headers": { "retry-after": "1" } });
        world.break_job_once(job_id, json!({ "apply": "never", "answer": answer })).await;
        world.publish_job_named(Uuid::new_v4(), job_id).await;
        world.wait_for_state(job_id, &["waiting"]).await;
        // Long enough to see the row before the worker hears that it is committed.
        relay.delay(Duration::from_millis(300));
        let job = world.wait_for_state(job_id, &["submitting"]).await;
        assert_eq!(job.attempts, 2);
        relay.reset();
        relay.resume();
        world.wait_for_log(&worker, "intake paused").await;
        let job = world.wait_for_state(job_id, &["accepted", "unknown"]).await;
        assert_eq!((job.state.as_str(), job.evidence.as_deref()), ("accepted", Some("response")));
        let attempts = world.attempts(job_id).await;
        assert_eq!((attempts.len(), world.count_patches(job_id).await), (2, 2));
        assert_eq!(world.count_updates(job_id).await, 1);
        world.check_all_acked([&mut worker]).await;
    });
}
