//! An outage of the provider costs time only, at the size of a day's work scaled down.

use std::fs;
use std::time::Duration;

use humantime::parse_rfc3339;
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use crate::harness::{World, job_body, world};

const JOBS: usize = 2_000;

/// Fewer at once than the backlog by far, and probed as often as not to spend all of it on trials.
const SETTINGS: [(&str, &str); 5] = [
    ("CONCURRENCY", "16"),
    ("PREFETCH", "32"),
    ("BREAKER_FAILURES", "5"),
    ("BREAKER_PROBE_INTERVAL", "500ms"),
    ("RUST_LOG", "info"),
];

/// Queues as many jobs, each for a customer of its own.
async fn enqueue(world: &World) -> Vec<Uuid> {
    let jobs: Vec<Uuid> = (0..JOBS).map(|_| Uuid::new_v4()).collect();
    let lines: String = jobs
        .iter()
        .map(|job_id| {
            let mut body = job_body(Uuid::new_v4(), *job_id);
            body["job_id"] = json!(job_id);
            format!("{body}\n")
        })
        .collect();
    let file = world.write_file("jobs.jsonl", lines.as_bytes());
    let enqueued = world.run(&["enqueue", &file], &[]).await;
    assert!(enqueued.status.success(), "{}", String::from_utf8_lossy(&enqueued.stderr));
    jobs
}

async fn wait_for_updates(world: &World, count: u64) {
    world
        .wait_for("the middle of the work", async || {
            (world.oracle_summary().await["applied"].as_u64() >= Some(count)).then_some(())
        })
        .await;
}

/// Lets an outage last, while trials and looks meet it.
async fn last_for(world: &World, duration: Duration) {
    let end = Instant::now() + duration;
    world.wait_for("the end of the outage", async || (Instant::now() >= end).then_some(())).await;
}

/// Checks that all ended, nothing was lost or applied twice, and only what was in doubt
/// is left to a person. Returns how many are.
async fn check_ended(world: &World, jobs: &[Uuid]) -> i64 {
    world.wait_for_ended(jobs.len()).await;
    assert_eq!(world.count("select count(*) from dead_lettered_delivery").await, 0);
    let others = "select count(*) from submission where state not in ('accepted', 'needs_review')";
    assert_eq!(world.count(others).await, 0);
    let undoubted = "select count(*) from submission s where state = 'needs_review'
        and not exists (select from attempt a where a.job_id = s.job_id and a.verdict = 'unknown')";
    assert_eq!(world.count(undoubted).await, 0, "only what was in doubt goes to a person");
    let (patches, updates) = (world.count_by_job("patches").await, world.count_by_job("updates").await);
    for job_id in jobs {
        let updates = updates.get(job_id).copied().unwrap_or_default();
        let job = world.submission(*job_id).await.expect("it is known");
        match job.state.as_str() {
            "accepted" => assert_eq!(updates, 1, "{job:?}"),
            _ => assert!(updates <= 1, "{job:?}"),
        }
        let attempts = world.attempts(*job_id).await;
        let sent = attempts.iter().filter(|attempt| attempt.verdict.as_deref() != Some("not_sent")).count();
        let patches = patches.get(job_id).copied().unwrap_or_default();
        assert!(patches <= sent, "every PATCH has its attempt: {attempts:?}");
        if job.state == "accepted" && !attempts.iter().any(|a| a.verdict.as_deref() == Some("unknown")) {
            assert_eq!(patches, 1, "{attempts:?}");
        }
    }
    assert_eq!(world.oracle_summary().await["links_applied_twice"], 0);
    world.count("select count(*) from submission where state = 'needs_review'").await
}

#[test]
fn a_provider_that_is_away_for_a_while_costs_two_thousand_jobs_only_time() {
    world(async |world| {
        world.declare_topology().await;
        world.set_provider(json!({ "latency_ms": 20 })).await;
        let jobs = enqueue(&world).await;
        let (relay, base_url) = world.relay_to_provider().await;
        let settings = [&SETTINGS[..], &[("DOLLARPE_BASE_URL", base_url.as_str())]].concat();
        let worker = world.start_worker_with(&settings);
        wait_for_updates(&world, 500).await;
        relay.refuse().await;
        relay.reset();
        world.wait_for_log(&worker, "intake paused").await;
        last_for(&world, Duration::from_secs(10)).await;
        assert!(world.count_ready("kyc.document-updates").await > 500, "a backlog stays");
        relay.accept().await;
        let in_doubt = check_ended(&world, &jobs).await;
        // In flight when the connections were cut: at most as many as there are at once.
        let unknown = "select count(*) from attempt where verdict = 'unknown'";
        assert!(world.count(unknown).await <= 16);
        assert!(in_doubt <= world.count(unknown).await);
        assert!(worker.log().contains("intake resumed"));
    });
}

#[test]
fn a_provider_that_answers_500_for_a_while_costs_two_thousand_jobs_no_update() {
    world(async |world| {
        world.declare_topology().await;
        world.set_provider(json!({ "latency_ms": 20 })).await;
        let jobs = enqueue(&world).await;
        let worker = world.start_worker_with(&SETTINGS);
        wait_for_updates(&world, 500).await;
        let crash = json!({ "kind": "respond", "status": 500, "body": "oops" });
        world
            .add_rule(
                json!({ "match": { "method": "PATCH" }, "fault": { "apply": "never", "answer": crash } }),
            )
            .await;
        world.wait_for_log(&worker, "intake paused").await;
        last_for(&world, Duration::from_secs(10)).await;
        assert!(world.count_ready("kyc.document-updates").await > 500, "a backlog stays");
        world.clear_rules().await;
        check_ended(&world, &jobs).await;
        // Those at once when it began, and a trial after each probe.
        let unknown = "select count(*) from attempt where verdict = 'unknown'";
        let unknown = world.count(unknown).await;
        assert!((5..=16 + 30).contains(&unknown), "{unknown}");
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
        let worker = world.start_worker_with(&[("CONCURRENCY", "1")]);
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
        assert_eq!(log.matches("intake paused").count(), 1, "{log}");
        assert_eq!(log.matches("intake resumed").count(), 1);
        assert!(log.contains("the provider asks everybody to wait"));
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
        world.wait_for_log(&worker, "intake paused until a person has mended this").await;
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
