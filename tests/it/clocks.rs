//! A database whose clock is set, or that is another one after a failover, spends nothing twice:
//! no single clock proves that an update was not applied.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{WorkerProcess, World, world};

/// What every session of the test's database takes for `now()`, beside the server's own clock.
const SETTABLE_CLOCK: [&str; 5] = [
    "create table set_by (seconds float8 not null)",
    "insert into set_by values (0)",
    "alter function pg_catalog.now() rename to servers_now",
    "create function pg_catalog.now() returns timestamptz language sql stable as
        'select transaction_timestamp() + make_interval(secs => (select seconds from public.set_by))'",
    "alter table attempt alter column begun_at set default now()",
];

/// Longer than `READ_BACK_WINDOW`, scaled down.
const WINDOW_IS_OVER: &str = "select transaction_timestamp() > max(begun_at) + interval '11 s' from attempt";

const IS_CONFIRMING: &str = "select exists (select from observation where conclusion = 'confirming')";

async fn change(world: &World, statement: &str) {
    sqlx::query(statement).execute(&world.pool).await.expect("the database does it");
}

async fn make_clock_settable(world: &World) {
    for statement in SETTABLE_CLOCK {
        change(world, statement).await;
    }
}

/// Sets the database's clock to a time that a query tells.
async fn set_clock(world: &World, time: &str) {
    let by = format!("extract(epoch from ({time}) - transaction_timestamp())");
    change(world, &format!("update set_by set seconds = {by}")).await;
}

async fn wait_until(world: &World, what: &str, query: &str) {
    world
        .wait_for(what, async || {
            let is_so: bool =
                sqlx::query_scalar(query).fetch_one(&world.pool).await.expect("the database answers");
            is_so.then_some(())
        })
        .await;
}

fn crash() -> Value {
    json!({ "kind": "respond", "status": 500, "body": "oops" })
}

/// The worker is gone, and so is the verification of the update that was applied. Another worker,
/// by whose database it cannot have begun long ago, sends nothing.
async fn check_sent_once(world: &World, job_id: Uuid, mut gone: WorkerProcess, by_the_database: &str) {
    gone.kill();
    wait_until(world, "the end of the window", WINDOW_IS_OVER).await;
    assert_eq!(world.count_updates(job_id).await, 1, "it was applied");
    let customer: Uuid =
        sqlx::query_scalar("select customer_id from submission").fetch_one(&world.pool).await.expect("a row");
    world.set_customer(customer, json!({ "status": "FAILED" })).await;
    set_clock(world, by_the_database).await;
    let _next = world.start_worker();
    let job = world.wait_for_state(job_id, &["accepted", "needs_review"]).await;
    assert_eq!((job.state.as_str(), job.reason_code.as_deref()), ("needs_review", Some("fate_unknown")));
    assert_eq!(world.count_patches(job_id).await, 1);
    assert_eq!(world.count_updates(job_id).await, 1);
    let is_set_back = "select at < read_at - interval '1 s' from observation order by id desc limit 1";
    wait_until(world, "a read by a clock that was set back", is_set_back).await;
}

#[test]
fn a_clock_set_back_before_the_first_read_proves_nothing() {
    world(async |world| {
        make_clock_settable(&world).await;
        world.declare_topology().await;
        let no = json!({ "kind": "respond", "status": 503, "body": "no" });
        world.add_rule(json!({ "match": { "method": "GET" }, "fault": { "answer": no } })).await;
        let job_id = world.publish_broken_job(json!({ "answer": crash() })).await;
        let worker = world.start_worker();
        world.wait_for_state(job_id, &["unknown"]).await;
        world.wait_for_log(&worker, "customer read back").await;
        let begun = "select max(begun_at) + interval '1 s' from attempt";
        let gone = worker;
        // The next worker's reads are answered.
        world.clear_rules().await;
        check_sent_once(&world, job_id, gone, begun).await;
        let seen = world.observations(job_id).await;
        assert!(seen.iter().all(|seen| seen.conclusion.as_deref() != Some("confirming")), "{seen:?}");
    });
}

#[test]
fn a_clock_set_back_between_two_reads_proves_nothing() {
    world(async |world| {
        make_clock_settable(&world).await;
        world.declare_topology().await;
        // Applied after the first read.
        let fault = json!({ "apply": { "after_ms": 2500 }, "answer": crash() });
        let job_id = world.publish_broken_job(fault).await;
        let worker = world.start_worker();
        wait_until(&world, "a read that has to be confirmed", IS_CONFIRMING).await;
        let confirmed = "select max(at) + interval '4 s' from observation";
        check_sent_once(&world, job_id, worker, confirmed).await;
    });
}

#[test]
fn a_clock_set_forward_between_two_reads_confirms_nothing_too_soon() {
    world(async |world| {
        make_clock_settable(&world).await;
        world.declare_topology().await;
        // Applied after the first read, and before the one that is due to confirm it.
        let fault = json!({ "apply": { "after_ms": 2500 }, "answer": crash() });
        let job_id = world.publish_broken_job(fault).await;
        let _worker = world.start_worker();
        wait_until(&world, "a read that has to be confirmed", IS_CONFIRMING).await;
        // The confirming read is due at once.
        set_clock(&world, "select max(due_at) + interval '100 ms' from submission").await;
        let job = world.wait_for_state(job_id, &["accepted", "needs_review"]).await;
        assert_eq!(world.count_updates(job_id).await, 1, "{job:?}");
        assert_eq!(world.count_patches(job_id).await, 1, "{job:?}");
    });
}

#[cfg(feature = "failpoints")]
#[test]
fn a_lease_that_a_clock_set_forward_ends_too_soon_spends_nothing_twice() {
    world(async |world| {
        make_clock_settable(&world).await;
        world.declare_topology().await;
        let own = [("KYC_FAILPOINT", "gate=stop"), ("WORKER_NAME", "owner")];
        let patient = [
            ("SEND_WINDOW", "10s"),
            ("REQUEST_TIMEOUT", "1500ms"),
            ("CLAIM_LEASE", "15s"),
            ("READ_BACK_WINDOW", "20s"),
        ];
        let owner = world.start_worker_with(&[&own[..], &patient].concat());
        world.wait_for_consumers(1).await;
        let job_id = world.publish_job().await;
        world.wait_for("a stopped worker", async || owner.is_stopped().then_some(())).await;
        let _other = world.start_worker_with(&patient);
        set_clock(&world, "select max(claimed_until) + interval '1 s' from submission").await;
        world.wait_for_state(job_id, &["unknown"]).await;
        // Its window may still be open, by its own clock, or be over.
        owner.signal("CONT");
        world.wait_for_all_accepted(&[job_id]).await;
        assert_eq!(world.count_patches(job_id).await, 1);
        // It is heard of what it did.
        wait_until(
            &world,
            "what the owner knows",
            "select late_verdict is not null from attempt where number = 1",
        )
        .await;
    });
}
