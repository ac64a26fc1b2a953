//! A worker that is told to stop does so within its grace, with exit code 0, and leaves
//! nothing unknown that need not be.

use serde_json::{Value, json};
use sqlx::{Postgres, Transaction};
use uuid::Uuid;

use crate::harness::{JOBS, WorkerProcess, World, world};

/// A grace that no stop needs to use up.
const AMPLE: (&str, &str) = ("SHUTDOWN_GRACE", "2m");

const GRACE_IS_OVER: &str = "SHUTDOWN_GRACE is over";

fn start(world: &World, settings: &[(&str, &str)]) -> WorkerProcess {
    world.start_worker_with(&[&[AMPLE], settings].concat())
}

/// Tells a worker to stop, and waits for a good end that did not take all of the grace.
async fn stops(worker: &mut WorkerProcess) {
    worker.signal("TERM");
    ends_before_the_grace(worker).await;
}

async fn ends_before_the_grace(worker: &mut WorkerProcess) {
    let status = worker.exit().await;
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(!worker.log().contains(GRACE_IS_OVER), "{}", worker.log());
}

/// Waits for a good end of a worker whose work does not end within the grace.
async fn ends_with_the_grace(worker: &mut WorkerProcess) {
    let status = worker.exit().await;
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(worker.log().contains(GRACE_IS_OVER), "{}", worker.log());
}

/// A worker in the middle of a request that meets a fault.
async fn start_in_a_request(world: &World, settings: &[(&str, &str)], fault: Value) -> (WorkerProcess, Uuid) {
    world.declare_topology().await;
    let worker = start(world, settings);
    let job_id = world.publish_broken_job(fault).await;
    wait_for_patch(world, job_id).await;
    (worker, job_id)
}

async fn wait_for_patch(world: &World, job_id: Uuid) {
    world
        .wait_for("the request at the provider", async || {
            (world.count_patches(job_id).await == 1).then_some(())
        })
        .await;
}

async fn check_sent_once(world: &World, job_id: Uuid) {
    world.wait_for_state(job_id, &["accepted"]).await;
    assert_eq!(world.count_patches(job_id).await, 1);
    assert_eq!(world.count_updates(job_id).await, 1);
}

#[test]
fn an_idle_worker_stops() {
    world(async |world| {
        world.declare_topology().await;
        let mut worker = start(&world, &[]);
        world.wait_for_consumers(1).await;
        stops(&mut worker).await;
        assert!(worker.log().contains("\"stopped\""), "{}", worker.log());
        world.wait_for_consumers(0).await;
    });
}

#[test]
fn a_request_in_flight_is_finished_and_recorded() {
    world(async |world| {
        let fault = json!({ "delay_after_ms": 1500 });
        let (mut worker, job_id) = start_in_a_request(&world, &[], fault).await;
        stops(&mut worker).await;
        let job = world.submission(job_id).await.expect("it is known");
        assert_eq!(job.state, "accepted", "recorded before the end");
        check_sent_once(&world, job_id).await;
        assert_eq!(world.count_ready(JOBS).await, 0, "acked");
    });
}

#[test]
fn a_job_that_waits_for_its_retry_is_left_to_the_next_worker() {
    world(async |world| {
        world.declare_topology().await;
        let (relay, base_url) = world.relay_to_provider().await;
        relay.refuse().await;
        let settings = [("DOLLARPE_BASE_URL", base_url.as_str()), ("RETRY_DELAY_MIN", "3s")];
        let mut worker = start(&world, &settings);
        let job_id = world.publish_job().await;
        world.wait_for_state(job_id, &["waiting"]).await;
        stops(&mut worker).await;
        assert_eq!(world.submission(job_id).await.expect("it is known").state, "waiting");
        relay.accept().await;
        let _next = world.start_worker_with(&settings);
        check_sent_once(&world, job_id).await;
    });
}

#[test]
fn a_worker_whose_broker_is_away_stops_and_keeps_what_it_learned() {
    world(async |world| {
        world.declare_topology().await;
        let (relay, amqp_url) = world.relay_to_broker().await;
        let mut worker = start(&world, &[("AMQP_URL", &amqp_url)]);
        world.wait_for_consumers(1).await;
        relay.stall_to_target();
        world.set_provider(json!({ "latency_ms": 1500 })).await;
        let job_id = world.publish_job().await;
        wait_for_patch(&world, job_id).await;
        relay.refuse().await;
        relay.cut();
        relay.resume();
        world.wait_for_log(&worker, "the broker session is lost").await;
        stops(&mut worker).await;
        assert_eq!(world.submission(job_id).await.expect("it is known").state, "accepted");
        // Its ack never arrived: the delivery comes again, and is known.
        let mut next = world.start_worker();
        world
            .wait_for("the second delivery", async || {
                world.submission(job_id).await.filter(|job| job.deliveries == 2)
            })
            .await;
        world.check_all_acked([&mut next]).await;
        check_sent_once(&world, job_id).await;
    });
}

#[test]
fn a_worker_whose_broker_says_nothing_any_more_stops() {
    world(async |world| {
        world.declare_topology().await;
        let (relay, amqp_url) = world.relay_to_broker().await;
        let mut worker = start(&world, &[("AMQP_URL", &amqp_url)]);
        world.wait_for_consumers(1).await;
        relay.stall_to_target();
        relay.stall_to_client();
        stops(&mut worker).await;
    });
}

#[test]
fn a_worker_that_never_reached_its_broker_stops() {
    world(async |world| {
        let (relay, amqp_url) = world.relay_to_broker().await;
        relay.stall_to_client();
        let mut worker = start(&world, &[("AMQP_URL", &amqp_url)]);
        world.wait_for_log(&worker, "worker started").await;
        stops(&mut worker).await;
    });
}

#[test]
fn a_worker_that_waits_for_its_database_stops() {
    world(async |world| {
        let mut worker = start(&world, &[("DATABASE_URL", "postgres://postgres@127.0.0.1:1/none")]);
        world.wait_for_log(&worker, "waiting for the database").await;
        stops(&mut worker).await;
    });
}

#[test]
fn a_delivery_whose_row_cannot_be_committed_goes_back_to_the_queue() {
    world(async |world| {
        world.declare_topology().await;
        let mut worker = world.start_worker_with(&[("SHUTDOWN_GRACE", "2s")]);
        world.wait_for_consumers(1).await;
        let lock = world.lock_table("submission").await;
        let job_id = world.publish_job().await;
        world
            .wait_for("a commit that hangs", async || {
                let is_taken = world.count_ready("kyc.document-updates").await == 0;
                (is_taken && world.count_blocked().await >= 2).then_some(())
            })
            .await;
        worker.signal("TERM");
        ends_with_the_grace(&mut worker).await;
        drop(lock);
        world
            .wait_for("the message back in the queue", async || {
                (world.count_ready("kyc.document-updates").await == 1).then_some(())
            })
            .await;
        assert!(world.oracle("patches").await.is_empty());
        let _next = world.start_worker();
        check_sent_once(&world, job_id).await;
        assert_eq!(world.attempts(job_id).await.len(), 1);
    });
}

#[test]
fn an_answer_that_cannot_be_recorded_yet_is_held_until_it_can() {
    world(async |world| {
        let fault = json!({ "delay_after_ms": 1500 });
        let (mut worker, job_id) = start_in_a_request(&world, &[], fault).await;
        let lock = world.lock_table("submission").await;
        worker.signal("TERM");
        world.wait_for_log(&worker, "submission attempted").await;
        assert_eq!(world.attempts(job_id).await[0].verdict, None);
        drop(lock);
        ends_before_the_grace(&mut worker).await;
        assert_eq!(world.submission(job_id).await.expect("it is known").state, "accepted");
        check_sent_once(&world, job_id).await;
    });
}

#[test]
fn a_provider_that_hangs_past_the_grace_does_not_hold_the_worker() {
    world(async |world| {
        let settings = [
            ("SHUTDOWN_GRACE", "2s"),
            ("REQUEST_TIMEOUT", "12s"),
            ("CLAIM_LEASE", "15s"),
            ("READ_BACK_WINDOW", "20s"),
        ];
        let hangs = json!({ "answer": { "kind": "hang" } });
        let (mut worker, job_id) = start_in_a_request(&world, &settings, hangs).await;
        worker.signal("TERM");
        ends_with_the_grace(&mut worker).await;
        assert_eq!(world.attempts(job_id).await[0].verdict, None, "its outcome is not known yet");
        let _next = world.start_worker();
        world.wait_for_applied(job_id).await;
        assert_eq!(world.count_patches(job_id).await, 1);
    });
}

/// The read before a first attempt lasts for longer than the grace, and is evidence of nothing then.
#[test]
fn a_read_before_an_update_keeps_no_attempt_open() {
    world(async |world| {
        world.declare_topology().await;
        let hangs = json!({ "match": { "method": "GET" }, "fault": { "answer": { "kind": "hang" } } });
        world.add_rule(hangs).await;
        let mut worker = world.start_worker_with(&[
            ("BASELINE_READ", "true"),
            ("SHUTDOWN_GRACE", "2s"),
            ("READ_TIMEOUT", "15s"),
            ("CLAIM_LEASE", "20s"),
            ("READ_BACK_WINDOW", "60s"),
            ("READ_BACK_DEADLINE", "60s"),
        ]);
        let job_id = world.publish_job().await;
        let is_read = async || (!world.oracle("reads").await.is_empty()).then_some(());
        world.wait_for("the read before the update", is_read).await;
        stops(&mut worker).await;
        assert_eq!(world.attempts(job_id).await[0].verdict.as_deref(), Some("not_sent"));
        assert!(world.oracle("patches").await.is_empty());
    });
}

#[test]
fn a_second_signal_ends_the_waiting() {
    world(async |world| {
        let settings = [
            ("SHUTDOWN_GRACE", "5m"),
            ("REQUEST_TIMEOUT", "45s"),
            ("CLAIM_LEASE", "50s"),
            ("READ_BACK_WINDOW", "60s"),
            ("READ_BACK_DEADLINE", "60s"),
        ];
        let hangs = json!({ "answer": { "kind": "hang" } });
        let (mut worker, job_id) = start_in_a_request(&world, &settings, hangs).await;
        worker.signal("TERM");
        world.wait_for_log(&worker, "finishing requests in flight").await;
        worker.signal("INT");
        ends_before_the_grace(&mut worker).await;
        assert!(worker.log().contains("second signal"));
        assert_eq!(world.attempts(job_id).await[0].verdict, None, "nobody waited for it");
        assert_eq!(world.count_patches(job_id).await, 1);
    });
}

#[test]
fn a_job_that_was_not_sent_is_due_at_once_and_spends_nothing() {
    world(async |world| {
        world.declare_topology().await;
        let (relay, base_url) = world.relay_to_provider().await;
        // Nothing comes through the relay, so that the jobs are begun and cannot be sent.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let nowhere = format!("https://{}/cms/api/v1", silent.local_addr().expect("an address"));
        let mut worker = start(
            &world,
            &[
                ("DOLLARPE_BASE_URL", &nowhere),
                ("SEND_WINDOW", "2s"),
                ("REQUEST_TIMEOUT", "1500ms"),
                ("RETRY_DELAY_MIN", "1s"),
            ],
        );
        let jobs = world.publish_jobs(8).await;
        for job_id in &jobs {
            world.wait_for_state(*job_id, &["submitting"]).await;
        }
        stops(&mut worker).await;
        for job_id in &jobs {
            let job = world.submission(*job_id).await.expect("it is known");
            assert_eq!((job.state.as_str(), job.attempts), ("waiting", 1));
            let attempts = world.attempts(*job_id).await;
            assert_eq!(attempts[0].verdict.as_deref(), Some("not_sent"));
            assert_eq!((attempts[0].detail.as_deref(), job.retries), (Some("shutdown"), 0));
        }
        let overdue = "select count(*) from submission where due_at <= now()";
        assert_eq!(world.count(overdue).await, 8);
        let _next = world.start_worker_with(&[("DOLLARPE_BASE_URL", &base_url)]);
        for job_id in jobs {
            check_sent_once(&world, job_id).await;
        }
        drop(relay);
    });
}

#[test]
fn workers_that_come_and_go_leave_nothing_lost_or_unknown() {
    world(async |world| {
        world.declare_topology().await;
        world.set_provider(json!({ "latency_ms": 5 })).await;
        let jobs = world.publish_jobs(600).await;
        let settings = [("CONCURRENCY", "4"), ("PREFETCH", "16")];
        for round in 1..=4 {
            let mut worker = start(&world, &settings);
            world.wait_for_accepted(round * 80).await;
            stops(&mut worker).await;
            let open = "select count(*) from submission where state = 'submitting'";
            assert_eq!(world.count(open).await, 0, "round {round}");
        }
        let mut last = world.start_worker();
        world.wait_for_accepted(600).await;
        let not_accepted = "select count(*) from attempt where verdict not in ('accepted', 'not_sent')";
        assert_eq!(world.count(not_accepted).await, 0);
        assert_eq!(world.oracle("patches").await.len(), jobs.len(), "one PATCH a job");
        assert_eq!(world.oracle("updates").await.len(), jobs.len());
        world.check_all_acked([&mut last]).await;
    });
}

/// Whoever writes the table commits once nobody holds this lock, however long that takes.
const HOLD_COMMITS: [&str; 3] = [
    "create function hold_commit() returns trigger language plpgsql as $$
    begin
        perform set_config('lock_timeout', '0', true), pg_advisory_xact_lock_shared(1);
        return null;
    end $$",
    "create constraint trigger held after insert on attempt deferrable initially deferred
        for each row execute function hold_commit()",
    "create constraint trigger held after insert on customer deferrable initially deferred
        for each row execute function hold_commit()",
];

const OPEN_ATTEMPTS: &str = "select count(*) from attempt where ended_at is null";

async fn hold_commits(world: &World) -> Transaction<'static, Postgres> {
    let mut held = world.pool.begin().await.expect("a transaction");
    sqlx::query("select pg_advisory_xact_lock(1)").execute(&mut *held).await.expect("the lock");
    held
}

async fn make_commits_holdable(world: &World) {
    for statement in HOLD_COMMITS {
        sqlx::query(statement).execute(&world.pool).await.expect("the database does it");
    }
}

async fn wait_for_held_commit(world: &World) {
    let held = "select count(*) from pg_stat_activity
        where datname = current_database() and application_name = 'kyc-worker' and wait_event = 'advisory'";
    world.wait_for("a commit that is held", async || (world.count(held).await > 0).then_some(())).await;
}

/// Nothing that ended workers asked for is under way any more, and no claim of theirs is left.
async fn check_nothing_claimed(world: &World) {
    let sessions = "select count(*) from pg_stat_activity
        where datname = current_database() and application_name = 'kyc-worker'";
    world.wait_for("no session", async || (world.count(sessions).await == 0).then_some(())).await;
    assert_eq!(world.count(OPEN_ATTEMPTS).await, 0);
    let claimed = "select count(*) from submission where state in ('submitting', 'unknown')";
    assert_eq!(world.count(claimed).await, 0);
}

/// Leaves as many jobs as are named that could not be sent, and are due now.
async fn leave_due_jobs(world: &World, count: usize) -> Vec<Uuid> {
    world.declare_topology().await;
    let mut worker = world.start_worker_with(&[("DOLLARPE_BASE_URL", "http://127.0.0.1:1/cms/api/v1")]);
    let jobs = world.publish_jobs(count).await;
    for job_id in &jobs {
        world.wait_for_state(*job_id, &["waiting"]).await;
    }
    worker.stop().await;
    let due = "update submission set due_at = now(), retries = 1";
    sqlx::query(due).execute(&world.pool).await.expect("the database does it");
    jobs
}

#[test]
fn due_jobs_that_are_claimed_at_the_stop_are_closed_as_not_sent() {
    world(async |world| {
        let jobs = leave_due_jobs(&world, 4).await;
        make_commits_holdable(&world).await;
        let closed = "select count(*) from attempt where detail = 'shutdown'";
        let before = world.count(closed).await;
        for round in 1..=8 {
            let held = hold_commits(&world).await;
            let mut worker = world.start_worker();
            wait_for_held_commit(&world).await;
            worker.signal("TERM");
            world.wait_for_log(&worker, "finishing requests in flight").await;
            held.rollback().await.expect("the lock is released");
            assert_eq!(worker.exit().await.code(), Some(0), "round {round}");
            check_nothing_claimed(&world).await;
            assert_eq!(world.count(closed).await, before + round * 4, "round {round}");
        }
        let unspent = "select count(*) from submission where state = 'waiting' and retries = 1";
        assert_eq!(world.count(unspent).await, 4);
        let _next = world.start_worker();
        for job_id in jobs {
            check_sent_once(&world, job_id).await;
        }
    });
}

/// Stops a worker whose commit that begins an attempt was done and is not answered, and checks
/// that the attempt is closed as not sent.
async fn stop_before_the_answer(world: &World, due: Option<Uuid>) {
    make_commits_holdable(world).await;
    let held = hold_commits(world).await;
    let (relay, database_url) = world.relay_to_database().await;
    let settings = [("DATABASE_URL", database_url.as_str()), ("SHUTDOWN_GRACE", "30s")];
    let mut worker = world.start_worker_with(&settings);
    let job_id = match due {
        Some(job_id) => job_id,
        None => world.publish_job().await,
    };
    wait_for_held_commit(world).await;
    relay.stall_to_client();
    worker.signal("TERM");
    world.wait_for_log(&worker, "finishing requests in flight").await;
    held.rollback().await.expect("the lock is released");
    world.wait_for("the commit", async || (world.count(OPEN_ATTEMPTS).await == 1).then_some(())).await;
    relay.cut();
    relay.resume();
    assert_eq!(worker.exit().await.code(), Some(0));
    check_nothing_claimed(world).await;
    let attempts = world.attempts(job_id).await;
    let last = attempts.last().expect("an attempt");
    assert_eq!((last.verdict.as_deref(), last.detail.as_deref()), (Some("not_sent"), Some("shutdown")));
    let _next = world.start_worker();
    check_sent_once(world, job_id).await;
}

#[test]
fn a_due_job_whose_claim_lost_its_answer_at_the_stop_is_closed() {
    world(async |world| {
        let due = leave_due_jobs(&world, 1).await;
        stop_before_the_answer(&world, Some(due[0])).await;
    });
}

#[test]
fn a_new_job_whose_opening_lost_its_answer_at_the_stop_is_closed() {
    world(async |world| {
        world.declare_topology().await;
        stop_before_the_answer(&world, None).await;
    });
}

#[test]
fn a_read_that_is_claimed_at_the_stop_is_made_and_recorded() {
    world(async |world| {
        make_commits_holdable(&world).await;
        sqlx::query("drop trigger held on attempt").execute(&world.pool).await.expect("the database does it");
        let held = hold_commits(&world).await;
        let crash = json!({ "answer": { "kind": "respond", "status": 500, "body": "oops" } });
        let (mut worker, job_id) = start_in_a_request(&world, &[], crash).await;
        wait_for_held_commit(&world).await;
        worker.signal("TERM");
        world.wait_for_log(&worker, "finishing requests in flight").await;
        held.rollback().await.expect("the lock is released");
        assert_eq!(worker.exit().await.code(), Some(0));
        check_nothing_claimed(&world).await;
        let job = world.submission(job_id).await.expect("it is known");
        assert_eq!((job.state.as_str(), job.evidence.as_deref()), ("accepted", Some("read_back")));
        check_sent_once(&world, job_id).await;
    });
}
