//! A database that is away, comes back, or says nothing costs time and nothing else.

use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use crate::harness::{WorkerProcess, World, world};
use crate::relay::Relay;

async fn check_done_once(world: &World, jobs: &[Uuid]) {
    world.wait_for_all_accepted(jobs).await;
    assert_eq!(world.oracle("patches").await.len(), jobs.len(), "one PATCH a job");
    assert_eq!(world.count("select count(*) from dead_lettered_delivery").await, 0);
}

async fn start(world: &World) -> (Relay, WorkerProcess) {
    world.declare_topology().await;
    let (relay, database_url) = world.relay_to_database().await;
    let worker = world.start_worker_with(&[("DATABASE_URL", &database_url)]);
    (relay, worker)
}

async fn goes_away(relay: &Relay) {
    relay.refuse().await;
    relay.reset();
}

#[test]
fn a_worker_whose_database_is_away_at_its_start_waits_for_it() {
    world(async |world| {
        world.declare_topology().await;
        let (relay, database_url) = world.relay_to_database().await;
        relay.refuse().await;
        let jobs = world.publish_jobs(5).await;
        let worker = world.start_worker_with(&[("DATABASE_URL", &database_url)]);
        world.wait_for_log(&worker, "waiting for the database").await;
        assert!(world.oracle("patches").await.is_empty());
        relay.accept().await;
        check_done_once(&world, &jobs).await;
    });
}

#[test]
fn nothing_is_sent_while_the_database_is_away() {
    world(async |world| {
        let (relay, mut worker) = start(&world).await;
        world.wait_for_consumers(1).await;
        goes_away(&relay).await;
        let jobs = world.publish_jobs(20).await;
        world.wait_for_log(&worker, "intake paused").await;
        assert!(world.oracle("patches").await.is_empty(), "no PATCH without a committed claim");
        relay.accept().await;
        check_done_once(&world, &jobs).await;
        world.check_all_acked([&mut worker]).await;
    });
}

#[test]
fn an_answer_that_came_while_the_database_was_away_is_recorded_when_it_is_back() {
    world(async |world| {
        let (relay, mut worker) = start(&world).await;
        let job_id = world.publish_job().await;
        world.break_job(job_id, json!({ "delay_after_ms": 800 })).await;
        world
            .wait_for("the request at the provider", async || {
                (world.count_patches(job_id).await == 1).then_some(())
            })
            .await;
        goes_away(&relay).await;
        world.wait_for_log(&worker, "intake paused").await;
        assert_eq!(world.attempts(job_id).await[0].verdict, None);
        relay.accept().await;
        check_done_once(&world, &[job_id]).await;
        world.check_all_acked([&mut worker]).await;
    });
}

#[test]
fn connections_lost_again_and_again_under_load_spend_nothing_twice() {
    world(async |world| {
        let (relay, mut worker) = start(&world).await;
        let jobs = world.publish_jobs(300).await;
        for goal in [10, 80, 150, 220] {
            world.wait_for_accepted(goal).await;
            if goal % 20 == 0 { relay.reset() } else { relay.cut() }
        }
        check_done_once(&world, &jobs).await;
        world.check_all_acked([&mut worker]).await;
    });
}

/// Starts a worker that waits for longer than an answer can be held back, before it sends, before
/// another may take over, and before it looks.
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
        check_done_once(&world, &[job_id]).await;
        let job = world.submission(job_id).await.expect("it is known");
        assert_eq!((job.attempts, job.deliveries), (1, 1), "the claim was found to be its own");
        world.check_all_acked([&mut worker]).await;
    });
}

#[test]
fn an_attempt_whose_begin_lost_its_answer_is_sent_and_is_in_no_doubt() {
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
        assert_eq!((job.attempts, world.count_patches(job_id).await), (2, 2));
        assert_eq!(world.count_updates(job_id).await, 1);
        world.check_all_acked([&mut worker]).await;
    });
}
