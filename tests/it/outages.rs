//! An outage of the provider costs time only, also with a day's work in the queue.

use std::collections::HashSet;
use std::time::Duration;
use std::{fmt, fs};

use humantime::parse_rfc3339;
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use crate::harness::{WorkerProcess, World, sized, world};

/// How many are at work at once: fewer than the backlog by far.
const AT_ONCE: usize = 16;

/// How many jobs are queued.
fn backlog() -> usize {
    sized(2_000, 10_000)
}

/// How long the provider is away.
fn outage() -> Duration {
    sized(Duration::from_secs(10), Duration::from_secs(300))
}

/// About how many probes meet the outage, each with a trial after it.
fn probes() -> usize {
    sized(20, 60)
}

fn settings() -> Vec<(&'static str, &'static str)> {
    let patient = [
        ("REQUEST_TIMEOUT", "5s"),
        ("CLAIM_LEASE", "7500ms"),
        ("READ_TIMEOUT", "3s"),
        ("READ_BACK_WINDOW", "14s"),
        ("BREAKER_PROBE_INTERVAL", "500ms"),
    ];
    let always = [("PREFETCH", "32"), ("BREAKER_FAILURES", "5"), ("RUST_LOG", "info")];
    [sized(&patient[..], &[]), &always].concat()
}

/// Queues the backlog, and waits until a worker is in the middle of it.
async fn start_on_backlog(world: &World, settings: &[(&str, &str)]) -> (WorkerProcess, Vec<Uuid>) {
    world.declare_topology().await;
    world.set_provider(json!({ "latency_ms": 20 })).await;
    let jobs = world.enqueue_jobs(backlog(), &[]).await;
    let worker = world.start_worker_with(&[&self::settings()[..], settings].concat());
    world.wait_for_accepted(500).await;
    (worker, jobs)
}

/// Lets the outage last, while trials and reads meet it.
async fn last_for_the_outage(world: &World, worker: &WorkerProcess) {
    let end = Instant::now() + outage();
    world.wait_for_log(worker, "intake paused").await;
    world.wait_for("the end of the outage", async || (Instant::now() >= end).then_some(())).await;
    assert!(world.count_ready("kyc.document-updates").await > 500, "a backlog stays");
}

/// What an outage did to the jobs.
struct Toll {
    /// From its end to that of the last job.
    recovery: Duration,
    /// Whose outcome was ever unknown.
    unknown: HashSet<Uuid>,
    /// Who is left to a person.
    left: HashSet<Uuid>,
}

impl fmt::Display for Toll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "all ended {:.0} s after it, ", self.recovery.as_secs_f64())?;
        write!(f, "{} had an unknown outcome, {} are left to a person", self.unknown.len(), self.left.len())
    }
}

/// The outage is over: waits for the end of every job, and checks that nothing was lost or applied
/// twice, that what had a known outcome was sent once, and that only the rest is left to a person.
async fn take_toll(world: &World, jobs: &[Uuid]) -> Toll {
    let back_at = Instant::now();
    world.wait_for_ended(jobs.len()).await;
    let recovery = back_at.elapsed();
    assert_eq!(world.count("select count(*) from dead_lettered_delivery").await, 0);
    world.check_promises(jobs, &["accepted", "needs_review"]).await;
    let patches = world.count_by_job("patches").await;
    let (mut unknown, mut left) = (HashSet::new(), HashSet::new());
    for job_id in jobs {
        let job = world.submission(*job_id).await.expect("it is known");
        let attempts = world.attempts(*job_id).await;
        let was_unknown = attempts.iter().any(|attempt| attempt.verdict.as_deref() == Some("unknown"));
        match job.state.as_str() {
            "accepted" => assert!(was_unknown || patches[job_id] == 1, "{attempts:?}"),
            "needs_review" => {
                assert!(was_unknown, "only what had an unknown outcome goes to a person: {job:?}");
                left.insert(*job_id);
            }
            state => panic!("{state}: {job:?}"),
        }
        if was_unknown {
            unknown.insert(*job_id);
        }
    }
    Toll { recovery, unknown, left }
}

#[test]
fn a_backlog_outlives_a_provider_that_is_away_and_loses_only_time() {
    world(async |world| {
        // A provider that goes away in good order answers what it has, and takes nothing more.
        world.set_provider(json!({ "close_connections": true })).await;
        let (relay, base_url) = world.relay_to_provider().await;
        let (worker, jobs) = start_on_backlog(&world, &[("DOLLARPE_BASE_URL", &base_url)]).await;
        relay.refuse().await;
        last_for_the_outage(&world, &worker).await;
        relay.accept().await;
        let toll = take_toll(&world, &jobs).await;
        println!("{} jobs, {} s of refused connections: {toll}", backlog(), outage().as_secs());
        // The kernel may have accepted one in the moment in which the port closed.
        assert!(toll.unknown.len() <= 1, "all accepted, each PATCHed once: {:?}", toll.unknown);
        assert!(worker.log().contains("intake resumed"));
    });
}

#[test]
fn a_backlog_outlives_a_provider_that_answers_500_and_spends_no_update() {
    world(async |world| {
        let (worker, jobs) = start_on_backlog(&world, &[]).await;
        let crash = json!({ "kind": "respond", "status": 500, "body": "oops" });
        let rule = json!({ "match": { "method": "PATCH" }, "fault": { "apply": "never", "answer": crash } });
        world.add_rule(rule).await;
        world.wait_for_log(&worker, "intake paused").await;
        let attempted = sqlx::query_scalar("select distinct job_id from attempt");
        let attempted: Vec<Uuid> = attempted.fetch_all(&world.pool).await.expect("the database answers");
        last_for_the_outage(&world, &worker).await;
        world.clear_rules().await;
        let toll = take_toll(&world, &jobs).await;
        println!("{} jobs, {} s of 500s: {toll}", backlog(), outage().as_secs());
        let in_flight = attempted.into_iter().collect();
        assert!(toll.left.is_subset(&in_flight), "who was not in flight when it began is accepted");
        // Those in flight, and a trial after each probe, whose pauses are jittered.
        let unknown = toll.unknown.len();
        assert!((5..=AT_ONCE + probes() * 3 / 2).contains(&unknown), "{unknown}");
    });
}

#[test]
fn a_provider_that_asks_one_job_to_wait_is_left_alone_by_all() {
    world(async |world| {
        world.declare_topology().await;
        let no = json!({ "kind": "respond", "status": 429, "headers": { "retry-after": "2" }, "body": "no" });
        let jobs = world.publish_jobs(10).await;
        world.break_job_once(jobs[3], json!({ "apply": "never", "answer": no })).await;
        // One at a time, so that none is on its way when the answer comes.
        let worker = world.start_worker_with(&[("CONCURRENCY", "1"), ("BREAKER_PROBE_INTERVAL", "1s")]);
        world.wait_for_all_accepted(&jobs).await;
        let patches = world.oracle("patches").await;
        assert_eq!(patches.len(), 11);
        let place = patches.iter().position(|patch| patch["status"] == 429).expect("it was put off");
        let at = |patch: &Value| parse_rfc3339(patch["at"].as_str().expect("a time")).expect("a time");
        let silence = at(&patches[place + 1]).duration_since(at(&patches[place])).expect("in order");
        // The oracle's times are in whole milliseconds.
        assert!(
            silence >= Duration::from_millis(1_999),
            "a PATCH came {silence:?} after the provider's word"
        );
        let log = worker.log();
        assert!(log.contains("the provider asks to wait") && log.contains("intake resumed"), "{log}");
    });
}

#[test]
fn a_rotated_secret_is_taken_from_its_file_without_a_restart() {
    world(async |world| {
        world.declare_topology().await;
        let key_file = world.write_file("api-key", b"sandbox-key\n");
        let secret_file = world.write_file("api-secret", b"sandbox-secret\n");
        let mut command = world.command();
        command
            .arg("run")
            .env_remove("DOLLARPE_API_KEY")
            .env_remove("DOLLARPE_API_SECRET")
            .envs([("DOLLARPE_API_KEY_FILE", &key_file), ("DOLLARPE_API_SECRET_FILE", &secret_file)]);
        let worker = world.spawn(command);
        let before = world.publish_jobs(5).await;
        world.wait_for_all_accepted(&before).await;

        world.set_provider(json!({ "api_secret": "rotated-secret" })).await;
        let during = world.publish_jobs(20).await;
        world.wait_for_log(&worker, "intake paused until a person has fixed this").await;
        assert!(worker.log().contains("DOLLARPE_API_SECRET"));
        assert_eq!(world.oracle("updates").await.len(), 5);
        fs::write(&secret_file, "rotated-secret\n").expect("the file");
        world.wait_for_all_accepted(&during).await;

        // And the key with it.
        world.set_provider(json!({ "api_key": "rotated-key", "api_secret": "third-secret" })).await;
        let after = world.publish_jobs(20).await;
        let refused = "select count(*) from attempt where detail = 'api_key_refused'";
        world.wait_for("a refused key", async || (world.count(refused).await > 0).then_some(())).await;
        fs::write(&key_file, "rotated-key\n").expect("the file");
        fs::write(&secret_file, "third-secret\n").expect("the file");
        world.wait_for_all_accepted(&after).await;
        world.wait_for_log(&worker, "credentials read again from their files").await;
        assert!(!worker.log().contains("rotated-") && !worker.log().contains("third-secret"));
        assert_eq!(world.count("select sum(retries)::bigint from submission").await, 0, "no attempt counts");
    });
}
