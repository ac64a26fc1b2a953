//! A provider that is away, slow or talking nonsense costs time and nothing else.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::harness::{WorkerProcess, World, world};

/// Small enough that a backlog stays in the queue while the intake pauses.
const NARROW: [(&str, &str); 3] = [("CONCURRENCY", "2"), ("PREFETCH", "4"), ("BREAKER_FAILURES", "3")];

const PAUSED: &str = "intake paused";

/// Lets a worker meet a backlog that it cannot send, and checks that it spends nothing.
async fn meets_an_outage(world: &World, base_url: &str, jobs: &[Uuid]) -> WorkerProcess {
    let settings = [&NARROW[..], &[("DOLLARPE_BASE_URL", base_url)]].concat();
    let worker = world.start_worker_with(&settings);
    world.wait_for_log(&worker, PAUSED).await;
    world.wait_for_consumers(0).await;
    assert!(world.count_ready("kyc.document-updates").await as usize >= jobs.len() / 2, "a backlog stays");
    let not_sent = "select count(*) from attempt where verdict = 'not_sent' and detail = 'connect_failed'";
    world.wait_for("three attempts", async || (world.count(not_sent).await >= 3).then_some(())).await;
    let otherwise = "select count(*) from attempt where verdict <> 'not_sent' or detail not in ('connect_failed', 'held_back')";
    assert_eq!(world.count(otherwise).await, 0);
    assert_eq!(world.count("select count(*) from submission where ended_at is not null").await, 0);
    assert_eq!(world.oracle("patches").await.len(), 0);
    worker
}

async fn check_all_sent_once(world: &World, jobs: &[Uuid]) {
    world.wait_for_all_accepted(jobs).await;
    // A probe may be an update for nobody.
    let nobody = json!(Uuid::nil());
    let patches = world.oracle("patches").await;
    assert_eq!(patches.iter().filter(|patch| patch["customer_id"] != nobody).count(), jobs.len());
    assert_eq!(world.count("select count(*) from dead_lettered_delivery").await, 0);
}

#[test]
fn a_provider_that_refuses_connections_costs_time_only() {
    world(async |world| {
        world.declare_topology().await;
        let jobs = world.publish_jobs(30).await;
        let (relay, base_url) = world.relay_to_provider().await;
        relay.refuse().await;
        let worker = meets_an_outage(&world, &base_url, &jobs).await;
        relay.accept().await;
        check_all_sent_once(&world, &jobs).await;
        assert!(worker.log().contains("intake resumed"));
    });
}

/// The breaker stayed open for as long as they were.
#[test]
fn an_outage_is_over_though_reads_of_customers_are_throttled() {
    world(async |world| {
        world.declare_topology().await;
        let answer =
            json!({ "kind": "respond", "status": 429, "headers": { "retry-after": "3600" }, "body": "no" });
        world.add_rule(json!({ "match": { "method": "GET" }, "fault": { "answer": answer } })).await;
        let jobs = world.publish_jobs(20).await;
        let (relay, base_url) = world.relay_to_provider().await;
        relay.refuse().await;
        let _worker = meets_an_outage(&world, &base_url, &jobs).await;
        relay.accept().await;
        world.wait_for_all_accepted(&jobs).await;
        assert_eq!(world.oracle("updates").await.len(), jobs.len());
    });
}

#[test]
fn an_outage_in_the_middle_of_work_ends_by_itself() {
    world(async |world| {
        world.declare_topology().await;
        let (relay, base_url) = world.relay_to_provider().await;
        let settings = [&NARROW[..], &[("DOLLARPE_BASE_URL", base_url.as_str())]].concat();
        let worker = world.start_worker_with(&settings);
        let before = world.publish_jobs(5).await;
        check_all_sent_once(&world, &before).await;
        relay.refuse().await;
        // Only idle connections are left; nothing is in flight that this could make unknown.
        relay.cut();
        let after = world.publish_jobs(20).await;
        world.wait_for_log(&worker, PAUSED).await;
        relay.accept().await;
        check_all_sent_once(&world, &[before, after].concat()).await;
    });
}

#[test]
fn a_slow_way_to_the_provider_is_waited_for_as_long_as_the_timeout_says() {
    world(async |world| {
        world.declare_topology().await;
        let (relay, base_url) = world.relay_to_provider().await;
        let _worker = world.start_worker_with(&[("DOLLARPE_BASE_URL", &base_url)]);
        relay.delay(Duration::from_millis(200));
        let slow = world.publish_jobs(5).await;
        check_all_sent_once(&world, &slow).await;
        // Each way takes more than half of REQUEST_TIMEOUT: it is applied and nobody hears of it.
        relay.delay(Duration::from_millis(1800));
        let lost = world.publish_job().await;
        world.wait_for_state(lost, &["unknown"]).await;
        assert_eq!(world.attempts(lost).await[0].detail.as_deref(), Some("timed_out"));
        relay.resume();
        world.wait_for_applied(lost).await;
        let after = world.publish_job().await;
        world.wait_for_all_accepted(&[after]).await;
        assert_eq!(world.count_patches(lost).await, 1);
    });
}

#[test]
fn a_provider_without_tls_gets_nothing() {
    world(async |world| {
        world.declare_topology().await;
        let jobs = world.publish_jobs(20).await;
        // The sandbox speaks plain HTTP on this port.
        let base_url = world.sandbox.base_url().replace("http://", "https://");
        let mut worker = meets_an_outage(&world, &base_url, &jobs).await;
        worker.stop().await;
        let _right = world.start_worker();
        check_all_sent_once(&world, &jobs).await;
    });
}

#[test]
fn a_tls_handshake_that_never_ends_is_given_up_with_nothing_sent() {
    world(async |world| {
        world.declare_topology().await;
        let jobs = world.publish_jobs(20).await;
        // Accepts, and says nothing.
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base_url = format!("https://{}/cms/api/v1", silent.local_addr().expect("an address"));
        let mut worker = meets_an_outage(&world, &base_url, &jobs).await;
        worker.stop().await;
        drop(silent);
        let _right = world.start_worker();
        check_all_sent_once(&world, &jobs).await;
    });
}

#[test]
fn a_provider_without_an_address_costs_time_only() {
    world(async |world| {
        world.declare_topology().await;
        let jobs = world.publish_jobs(20).await;
        let mut worker = meets_an_outage(&world, "https://provider.invalid/cms/api/v1", &jobs).await;
        worker.stop().await;
        let _right = world.start_worker();
        check_all_sent_once(&world, &jobs).await;
    });
}

/// Starts a worker whose every place among the requests in flight is taken by an update that goes
/// wrong, and publishes one that goes well and is opened ahead of them.
async fn open_ahead_of(world: &World, fault: Value, breaker_failures: &str) -> (WorkerProcess, Uuid) {
    world.declare_topology().await;
    for _ in 0..4 {
        world.publish_broken_job(fault.clone()).await;
    }
    let settings = [
        ("CONCURRENCY", "4"),
        ("RETRY_MAX_ATTEMPTS", "1"),
        ("BREAKER_FAILURES", breaker_failures),
        ("SEND_WINDOW", "1500ms"),
        ("REQUEST_TIMEOUT", "4s"),
    ];
    let worker = world.start_worker_with(&settings);
    let four = "select count(*) from attempt";
    world.wait_for("four attempts", async || (world.count(four).await == 4).then_some(())).await;
    (worker, world.publish_job().await)
}

async fn check_held_back_and_sent_once(world: &World, job_id: Uuid) {
    world.wait_for_all_accepted(&[job_id]).await;
    let attempts = world.attempts(job_id).await;
    assert_eq!(attempts.len(), 1);
    assert_eq!(attempts[0].number, 2, "the first was held back");
    assert_eq!(world.count_patches(job_id).await, 1);
}

/// It loses no attempt by the wait.
#[test]
fn a_job_prefetched_behind_hanging_requests_is_sent_once() {
    world(async |world| {
        // Until REQUEST_TIMEOUT, which is far longer than the send window.
        let hang = json!({ "answer": { "kind": "hang" } });
        let (_worker, ahead) = open_ahead_of(&world, hang, "1000").await;
        check_held_back_and_sent_once(&world, ahead).await;
    });
}

#[test]
fn a_job_that_was_opened_ahead_of_an_outage_is_not_sent_into_it() {
    world(async |world| {
        let error = json!({ "kind": "respond", "status": 500, "body": "no" });
        let fault = json!({ "apply": "never", "delay_before_ms": 800, "answer": error });
        let (worker, ahead) = open_ahead_of(&world, fault, "1").await;
        check_held_back_and_sent_once(&world, ahead).await;
        assert!(worker.log().contains(PAUSED));
    });
}

/// The delay between an attempt's end and the due time of the next, in seconds.
async fn delay(world: &World, job_id: Uuid) -> Option<f64> {
    sqlx::query_scalar(
        "select extract(epoch from s.due_at - a.ended_at)::float8
        from submission s join attempt a on a.job_id = s.job_id and a.number = s.attempts
        where s.job_id = $1 and s.state = 'waiting' and a.verdict = 'throttled'",
    )
    .bind(job_id)
    .fetch_optional(&world.pool)
    .await
    .expect("the database answers")
}

#[test]
fn a_retry_after_is_honoured_within_a_second_and_the_cap() {
    world(async |world| {
        world.declare_topology().await;
        let date = |ahead: i64| {
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(unix_now().saturating_add_signed(ahead));
            json!({ "retry-after": httpdate(at) })
        };
        // Headers, and the shortest and the longest delay in seconds.
        let rows = [
            (json!({ "retry-after": "7" }), 7.0, 7.0),
            (json!({ "retry-after": "0" }), 1.0, 1.0),
            (date(15), 5.0, 15.0),
            (date(-3600), 1.0, 1.0),
            (json!({ "retry-after": "soon" }), 1.0, 1.0),
            (json!({}), 1.0, 1.0),
            (json!({ "retry-after": "86400" }), 20.0, 20.0),
            (json!({ "retry-after": "99999999999999999999999999" }), 20.0, 20.0),
            (date(86400), 20.0, 20.0),
        ];
        let mut soon = Vec::new();
        for (headers, min, max) in rows {
            let job_id = world.publish_job().await;
            let answer = json!({ "kind": "respond", "status": 429, "headers": headers, "body": "no" });
            world.break_job(job_id, json!({ "apply": "never", "answer": answer })).await;
            // One that no other job has put off.
            let mut worker = world.start_worker_with(&[("RETRY_DELAY_MAX", "20s")]);
            let delay = world.wait_for("a throttled job", async || delay(&world, job_id).await).await;
            assert!((min - 0.001..=max + 0.001).contains(&delay), "{delay} s after {headers}");
            worker.stop().await;
            if max <= 1.0 {
                soon.push(job_id);
            }
        }
        // Nothing was spent, and the breaker is no business of this.
        assert_eq!(world.oracle("updates").await.len(), 0);
        // Each worker stops in the middle of its work.
        let others = "select count(*) from attempt where verdict <> 'throttled' and coalesce(detail, '') not in ('held_back', 'shutdown')";
        assert_eq!(world.count(others).await, 0);
        world.clear_rules().await;
        let _worker = world.start_worker();
        world.wait_for_all_accepted(&soon).await;
    });
}

fn throttle(retry_after: &str) -> Value {
    let answer =
        json!({ "kind": "respond", "status": 429, "headers": { "retry-after": retry_after }, "body": "no" });
    json!({ "apply": "never", "answer": answer })
}

/// They once waited for the hour, too.
#[test]
fn one_job_that_is_put_off_for_an_hour_puts_nobody_else_off_for_long() {
    world(async |world| {
        world.declare_topology().await;
        let job_id = world.publish_broken_job(throttle("3600")).await;
        let others = world.publish_jobs(20).await;
        let worker = world.start_worker_with(&[("CONCURRENCY", "1"), ("PREFETCH", "2")]);
        world.wait_for_log(&worker, "the provider asks to wait").await;
        check_all_sent_once_beside(&world, &others, job_id).await;
        let delay = delay(&world, job_id).await.expect("it waits");
        assert!((3600.0..3600.1).contains(&delay), "{delay} s");
        assert!(worker.log().contains("intake resumed"));
    });
}

async fn check_all_sent_once_beside(world: &World, jobs: &[Uuid], waiting: Uuid) {
    world.wait_for_all_accepted(jobs).await;
    assert_eq!(world.count_patches(waiting).await, 1);
    assert_eq!(world.oracle("patches").await.len(), jobs.len() + 1);
}

/// Twelve probe intervals, scaled down.
const PAUSE_S: f64 = 1.2;

#[test]
fn a_provider_that_puts_everybody_off_is_asked_by_one_attempt_a_pause() {
    world(async |world| {
        world.declare_topology().await;
        let rule = json!({ "match": { "method": "PATCH" }, "fault": throttle("3600") });
        world.add_rule(rule).await;
        let jobs = world.publish_jobs(20).await;
        let _worker = world.start_worker_with(&[("CONCURRENCY", "1"), ("PREFETCH", "2")]);
        let throttled = "select count(*) from attempt where verdict = 'throttled'";
        world.wait_for("four pauses", async || (world.count(throttled).await >= 4).then_some(())).await;
        let apart: Vec<f64> = sqlx::query_scalar(
            "select extract(epoch from begun_at - lag(ended_at) over (order by begun_at))::float8
            from attempt where verdict = 'throttled' order by begun_at offset 1",
        )
        .fetch_all(&world.pool)
        .await
        .expect("the database answers");
        assert!(apart.iter().all(|apart| *apart > PAUSE_S - 0.1), "{apart:?}");
        assert_eq!(world.oracle("updates").await.len(), 0);
        let uncounted = "select (select count(*) from attempt where verdict = 'throttled')
            - (select sum(retries)::bigint from submission)";
        assert_eq!(world.count(uncounted).await, 0, "each counts for its job, the probes too");

        world.clear_rules().await;
        let rest = jobs.len() as i64 - world.count(throttled).await;
        world.wait_for_accepted(rest).await;
        let put_off =
            "select count(*) from submission where state = 'waiting' and due_at > now() + interval '50 min'";
        assert_eq!(world.count(put_off).await, jobs.len() as i64 - rest, "they wait as they were asked");
    });
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs()
}

fn httpdate(at: SystemTime) -> String {
    httpdate::fmt_http_date(at)
}

#[test]
fn an_answer_without_end_is_bounded_in_memory_and_time() {
    world(async |world| {
        world.declare_topology().await;
        let respond = |headers: Value, body: Value| json!({ "kind": "respond", "status": 200, "headers": headers, "body": body });
        // The first byte of a good answer, and no more of it in time.
        let answers = [
            json!({ "kind": "huge", "bytes": 10_u64 << 30 }),
            json!({ "kind": "slow", "byte_every_ms": 1000 }),
            json!({ "kind": "garbage" }),
            respond(json!({}), json!("")),
            // The head promises more than the body holds.
            respond(json!({ "content-length": "500" }), json!({ "status": true, "data": {} })),
            respond(json!({}), json!({ "status": false, "message": "no" })),
        ];
        let mut jobs = Vec::new();
        for answer in answers {
            for _ in 0..4 {
                let job_id = world.publish_broken_job(json!({ "answer": answer })).await;
                jobs.push(job_id);
            }
        }
        let worker = world.start_worker_with(&[("BREAKER_FAILURES", "1000"), ("CONCURRENCY", "32")]);
        for job_id in &jobs {
            world.wait_for_applied(*job_id).await;
            let attempts = world.attempts(*job_id).await;
            assert_eq!(attempts.len(), 1);
            let detail = attempts[0].detail.as_deref();
            assert_eq!((detail, attempts[0].http_status), (Some("unreadable_success"), Some(200)));
            assert_eq!(world.count_patches(*job_id).await, 1);
        }
        assert!(worker.memory_max_kib() < 150 * 1024, "{} KiB", worker.memory_max_kib());
    });
}

#[test]
fn a_status_that_nobody_knows_is_kept_as_it_was_written() {
    world(async |world| {
        world.declare_topology().await;
        let (customer_id, job_id) = (Uuid::new_v4(), Uuid::new_v4());
        let body = json!({ "status": true, "message": "Success", "data": { "id": customer_id, "status": "ON_HOLD" } });
        world
            .break_job(job_id, json!({ "answer": { "kind": "respond", "status": 200, "body": body } }))
            .await;
        world.publish_job_named(customer_id, job_id).await;
        let _worker = world.start_worker();
        let job = world.wait_for_state(job_id, &["accepted"]).await;
        assert_eq!(job.verification_status.as_deref(), Some("ON_HOLD"));
        assert_eq!(job.provider_reference, Some(customer_id.to_string()));
    });
}
