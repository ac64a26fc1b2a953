//! A broker that is away, comes back, or says nothing costs time and nothing else.

use uuid::Uuid;

use crate::harness::{WorkerProcess, World, world};
use crate::relay::Relay;

const OPENED: &str = "broker session opened";
const LOST: &str = "broker session lost";
const STILL_AWAY: &str = "broker still away";

fn count(log: &str, line: &str) -> usize {
    log.matches(line).count()
}

async fn check_done_once(world: &World, jobs: &[Uuid]) {
    let all = i64::try_from(jobs.len()).expect("some jobs");
    world.wait_for_accepted(all).await;
    assert_eq!(world.oracle("patches").await.len(), jobs.len(), "one PATCH a job");
    assert_eq!(world.oracle("updates").await.len(), jobs.len());
    assert_eq!(world.count("select count(*) from dead_lettered_delivery").await, 0);
}

/// Lets a worker work through a backlog while its connection is broken again and again.
async fn survives(world: &World, breakdown: impl AsyncFn(&Relay, &WorkerProcess)) {
    world.declare_topology().await;
    let (relay, amqp_url) = world.relay_to_broker().await;
    let settings = [("AMQP_URL", amqp_url.as_str()), ("CONCURRENCY", "4"), ("PREFETCH", "12")];
    let mut worker = world.start_worker_with(&settings);
    let jobs = world.publish_jobs(400).await;
    for goal in [20, 100, 200] {
        world.wait_for_accepted(goal).await;
        world
            .wait_for("a session to break", async || {
                let log = worker.log();
                (count(&log, OPENED) > count(&log, LOST)).then_some(())
            })
            .await;
        breakdown(&relay, &worker).await;
    }
    check_done_once(world, &jobs).await;
    assert!(worker.log().contains(LOST));
    world.check_all_acked([&mut worker]).await;
}

#[test]
fn a_connection_that_the_broker_closes_is_made_again() {
    world(async |world| survives(&world, async |relay, _| relay.cut()).await);
}

#[test]
fn a_connection_that_is_reset_is_made_again() {
    world(async |world| survives(&world, async |relay, _| relay.reset()).await);
}

#[test]
fn a_broker_that_was_down_is_found_again() {
    world(async |world| {
        survives(&world, async |relay, worker| {
            // The same loss again within seconds is not told again.
            let count_lost = || count(&worker.log(), LOST) + count(&worker.log(), STILL_AWAY);
            let before = count_lost();
            relay.refuse().await;
            relay.reset();
            world.wait_for("the loss to be noticed", async || (count_lost() > before).then_some(())).await;
            relay.accept().await;
        })
        .await;
    });
}

#[test]
fn a_connection_that_carries_nothing_any_more_is_given_up_and_made_again() {
    world(async |world| {
        world.declare_topology().await;
        let (relay, amqp_url) = world.relay_to_broker().await;
        let mut worker = world.start_worker_with(&[("AMQP_URL", &amqp_url)]);
        world.wait_for_consumers(1).await;
        relay.stall_to_target();
        relay.stall_to_client();
        let jobs = world.publish_jobs(5).await;
        // Two heartbeats are missed, 10 s apart.
        world.wait_for_log(&worker, LOST).await;
        relay.resume();
        check_done_once(&world, &jobs).await;
        world.check_all_acked([&mut worker]).await;
    });
}

#[test]
fn a_broker_that_never_answers_is_given_up_and_asked_again() {
    world(async |world| {
        world.declare_topology().await;
        let (relay, amqp_url) = world.relay_to_broker().await;
        relay.stall_to_client();
        let worker = world.start_worker_with(&[("AMQP_URL", &amqp_url)]);
        world.wait_for_log(&worker, "no answer within 10s").await;
        relay.resume();
        let jobs = world.publish_jobs(5).await;
        check_done_once(&world, &jobs).await;
        assert_eq!(count(&worker.log(), LOST), 1, "told once, not once a try");
    });
}
