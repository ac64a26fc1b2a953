//! A broker that is away, silent or of another mind costs time and nothing else: the
//! session is rebuilt by itself, and what was handed over twice is done once.

use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;

use crate::harness::{JOBS, WorkerProcess, World, job_body, world};
use crate::own_services::OwnRabbit;

const LOST: &str = "broker session lost";

const OPENED: &str = "broker session opened";

const REFUSED: &str = "no broker session until a person has mended this";

const STILL_AWAY: &str = "broker still away";

/// A worker that holds deliveries, with more of them in the queue.
const NARROW: [(&str, &str); 2] = [("CONCURRENCY", "4"), ("PREFETCH", "8")];

async fn start_at_work(world: &World, settings: &[(&str, &str)]) -> (WorkerProcess, Vec<Uuid>) {
    world.declare_topology().await;
    world.set_provider(json!({ "latency_ms": 20 })).await;
    let jobs = world.publish_jobs(200).await;
    let worker = world.start_worker_with(&[&NARROW[..], settings].concat());
    wait_for_accepted(world, 20).await;
    (worker, jobs)
}

async fn wait_for_accepted(world: &World, count: i64) {
    let accepted = "select count(*) from submission where state = 'accepted'";
    world.wait_for("jobs under way", async || (world.count(accepted).await >= count).then_some(())).await;
}

async fn check_each_done_once(world: &World, jobs: &[Uuid]) {
    world.check_nothing_lost_or_spent_twice(jobs).await;
    assert_eq!(world.oracle("patches").await.len(), jobs.len(), "no attempt was in doubt");
    assert_eq!(world.count("select count(*) from dead_lettered_delivery").await, 0);
}

#[test]
fn a_connection_that_the_operator_closes_is_opened_again() {
    world(async |world| {
        let (worker, jobs) = start_at_work(&world, &[]).await;
        world.close_connections_of_workers().await;
        world.wait_for_log(&worker, LOST).await;
        world.wait_for_logs(&worker, OPENED, 2).await;
        check_each_done_once(&world, &jobs).await;
        world.wait_for_no_delivery().await;
    });
}

#[test]
fn a_connection_that_is_reset_or_cut_is_opened_again() {
    world(async |world| {
        let (relay, amqp_url) = world.relay_to_broker().await;
        let (worker, jobs) = start_at_work(&world, &[("AMQP_URL", &amqp_url)]).await;
        relay.reset();
        world.wait_for_logs(&worker, OPENED, 2).await;
        wait_for_accepted(&world, 60).await;
        relay.cut();
        world.wait_for_logs(&worker, OPENED, 3).await;
        check_each_done_once(&world, &jobs).await;
        world.wait_for_no_delivery().await;
    });
}

#[test]
fn a_network_that_forgets_the_connection_is_noticed_by_its_heartbeat() {
    world(async |world| {
        let (relay, amqp_url) = world.relay_to_broker().await;
        let (worker, jobs) = start_at_work(&world, &[("AMQP_URL", &amqp_url)]).await;
        // Not a byte and not a word; new connections are as good as ever.
        relay.freeze();
        world.wait_for_logs(&worker, OPENED, 2).await;
        check_each_done_once(&world, &jobs).await;
        world.wait_for_no_delivery().await;
    });
}

#[test]
fn a_broker_that_refuses_connections_is_waited_for() {
    world(async |world| {
        let (relay, amqp_url) = world.relay_to_broker().await;
        let (worker, jobs) = start_at_work(&world, &[("AMQP_URL", &amqp_url)]).await;
        relay.refuse().await;
        relay.cut();
        world.wait_for_log(&worker, "AMQP_URL: cannot use RabbitMQ at 127.0.0.1").await;
        world.wait_for_logs(&worker, STILL_AWAY, 2).await;
        // What was handed over before is finished without the broker.
        let in_motion = "select count(*) from submission where state in ('submitting', 'waiting')";
        world.wait_for("no job in hand", async || (world.count(in_motion).await == 0).then_some(())).await;
        relay.accept().await;
        world.wait_for_logs(&worker, OPENED, 2).await;
        check_each_done_once(&world, &jobs).await;
        world.wait_for_no_delivery().await;
    });
}

/// Publishes through the binary, which waits for the broker's confirmations.
async fn enqueue(world: &World, amqp_url: &str, count: usize) -> Vec<Uuid> {
    let jobs: Vec<Uuid> = (0..count).map(|_| Uuid::new_v4()).collect();
    let lines: Vec<String> = jobs
        .iter()
        .map(|job_id| {
            let mut body = job_body(Uuid::new_v4(), *job_id);
            body["job_id"] = json!(job_id);
            body.to_string()
        })
        .collect();
    let file = world.write_file("jobs.jsonl", lines.join("\n").as_bytes());
    let enqueued = world.run(&["enqueue", &file], &[("AMQP_URL", amqp_url)]).await;
    assert!(enqueued.status.success(), "{}", String::from_utf8_lossy(&enqueued.stderr));
    jobs
}

#[test]
fn a_broker_that_stops_crashes_or_closes_the_channel_loses_and_repeats_nothing() {
    // As quick to lose patience as it can be told to be.
    let mut broker = OwnRabbit::start("{consumer_timeout, 4000}, {channel_tick_interval, 1000}");
    world(async |world| {
        let amqp_url = broker.url();
        world.set_provider(json!({ "latency_ms": 20 })).await;
        let mut jobs = enqueue(&world, &amqp_url, 300).await;
        let worker = world.start_worker_with(&[&NARROW[..], &[("AMQP_URL", &amqp_url)]].concat());
        wait_for_accepted(&world, 20).await;

        broker.stop();
        world.wait_for_log(&worker, LOST).await;
        broker.start_again();
        world.wait_for_logs(&worker, OPENED, 2).await;
        let accepted = world.count("select count(*) from submission where state = 'accepted'").await;
        wait_for_accepted(&world, accepted + 20).await;

        broker.kill();
        world.wait_for_log(&worker, STILL_AWAY).await;
        broker.start_again();
        world.wait_for_logs(&worker, OPENED, 3).await;
        check_each_done_once(&world, &jobs).await;

        // Deliveries that are held for too long: the broker closes the channel.
        let lock = world.lock_table("submission").await;
        jobs.extend(enqueue(&world, &amqp_url, 20).await);
        world.wait_for_log(&worker, "PRECONDITION_FAILED").await;
        drop(lock);
        world.wait_for_logs(&worker, OPENED, 4).await;
        check_each_done_once(&world, &jobs).await;
    });
}

#[test]
fn a_queue_that_is_deleted_is_declared_again() {
    world(async |world| {
        world.declare_topology().await;
        let worker = world.start_worker();
        world.wait_for_consumers(1).await;
        world.delete_queue().await;
        let told = "the broker ended the consumer; was the queue deleted?";
        world.wait_for_log(&worker, told).await;
        world.wait_for_logs(&worker, OPENED, 2).await;
        let jobs = world.publish_jobs(5).await;
        check_each_done_once(&world, &jobs).await;
        assert_eq!(worker.log().matches(told).count(), 1);
        world.wait_for_no_delivery().await;
    });
}

/// Waits for six tries, and checks that they took the time that growing delays take.
async fn check_no_tight_loop(world: &World, worker: &WorkerProcess) {
    let begun = Instant::now();
    let before = worker.log().matches(STILL_AWAY).count();
    world.wait_for_logs(worker, STILL_AWAY, before + 6).await;
    // Half of each delay is the least that jitter leaves: 0.25 + 0.5 + 1 + 2 + 2.5 s.
    assert!(begun.elapsed() > Duration::from_secs(5), "six tries in {:?}", begun.elapsed());
    assert!(world.count_connections_of_workers().await <= 1, "each try closes what it opened");
}

#[test]
fn a_queue_of_other_arguments_is_an_error_that_names_the_setting_until_it_is_put_right() {
    world(async |world| {
        world.declare_topology().await;
        let (relay, amqp_url) = world.relay_to_broker().await;
        let worker = world.start_worker_with(&[("AMQP_URL", &amqp_url)]);
        world.wait_for_consumers(1).await;
        relay.refuse().await;
        relay.cut();
        world.delete_queue().await;
        world.declare_classic_queue().await;
        relay.accept().await;
        world.wait_for_log(&worker, REFUSED).await;
        let told = "QUEUE: cannot use queue kyc.document-updates; if it exists with other arguments";
        assert!(worker.log().contains(told), "{}", worker.log());
        check_no_tight_loop(&world, &worker).await;
        assert_eq!(worker.log().matches(REFUSED).count(), 1, "it is told once");
        world.delete_queue().await;
        world.wait_for_logs(&worker, OPENED, 2).await;
        let jobs = world.publish_jobs(5).await;
        check_each_done_once(&world, &jobs).await;
    });
}

#[test]
fn a_queue_that_is_missing_where_operators_declare_is_waited_for() {
    world(async |world| {
        world.declare_topology().await;
        world.delete_queue().await;
        let worker = world.start_worker_with(&[("TOPOLOGY", "verify")]);
        world.wait_for_log(&worker, REFUSED).await;
        let told = "QUEUE: cannot use queue kyc.document-updates; declare it at the broker";
        assert!(worker.log().contains(told), "{}", worker.log());
        check_no_tight_loop(&world, &worker).await;
        world.declare_topology().await;
        let jobs = world.publish_jobs(5).await;
        check_each_done_once(&world, &jobs).await;
    });
}

#[test]
fn a_queue_that_may_not_be_read_is_asked_for_without_haste() {
    world(async |world| {
        world.declare_topology().await;
        // Enough to declare and bind, and not to consume.
        let amqp_url = world.allow_user("^kyc(\\.dlx)?$").await;
        let worker = world.start_worker_with(&[("AMQP_URL", &amqp_url)]);
        world.wait_for_log(&worker, REFUSED).await;
        assert!(worker.log().contains("QUEUE: cannot consume from kyc.document-updates"), "{}", worker.log());
        check_no_tight_loop(&world, &worker).await;
        assert_eq!(worker.log().matches(REFUSED).count(), 1, "it is told once");
        world.allow_user(".*").await;
        let jobs = world.publish_jobs(5).await;
        check_each_done_once(&world, &jobs).await;
    });
}

#[test]
fn a_broker_that_accepts_and_says_nothing_is_given_up_and_leaves_nothing_behind() {
    world(async |world| {
        world.declare_topology().await;
        let (relay, amqp_url) = world.relay_to_broker().await;
        relay.stall_to_client();
        relay.stall_to_target();
        let begun = Instant::now();
        let worker = world.start_worker_with(&[("AMQP_URL", &amqp_url)]);
        world.wait_for_log(&worker, "no answer within 10s").await;
        assert!(begun.elapsed() >= Duration::from_secs(10));
        let threads = worker.count_threads();
        world.wait_for_logs(&worker, STILL_AWAY, 3).await;
        assert!(worker.count_threads() <= threads, "{} threads, then {}", threads, worker.count_threads());
        assert_eq!(worker.log().matches(LOST).count(), 1, "it is told once");
        let jobs = world.publish_jobs(5).await;
        relay.resume();
        check_each_done_once(&world, &jobs).await;
        assert_eq!(world.count_ready(JOBS).await, 0);
    });
}

#[test]
fn a_worker_without_its_broker_finishes_what_it_has_and_stops_when_told() {
    world(async |world| {
        let (relay, amqp_url) = world.relay_to_broker().await;
        let (mut worker, jobs) = start_at_work(&world, &[("AMQP_URL", &amqp_url)]).await;
        relay.refuse().await;
        relay.cut();
        world.wait_for_log(&worker, LOST).await;
        worker.stop().await;
        assert!(world.count_ready(JOBS).await > 50, "a backlog stays");
        let _next = world.start_worker();
        check_each_done_once(&world, &jobs).await;
        world.wait_for_no_delivery().await;
    });
}
