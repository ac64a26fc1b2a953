//! A machine whose clock is wrong, or whose logs nobody reads, loses no work.

use std::io::Read as _;
use std::time::{Duration, SystemTime};

use serde_json::json;
use uuid::Uuid;

use crate::harness::{JOBS, world};

const PAUSED: &str = "intake paused until a person has fixed this";

/// How far off a clock may be: two minutes.
fn check_clock_is_refused(ahead_s: i64) {
    world(async |world| {
        world.declare_topology().await;
        // It takes any timestamp, so that nothing but the worker itself minds.
        world.set_provider(json!({ "clock_ahead_s": ahead_s, "timestamp_window_ms": 86_400_000 })).await;
        let jobs = world.publish_jobs(20).await;
        let worker = world.start_worker_with(&[("CONCURRENCY", "1"), ("PREFETCH", "2")]);
        world.wait_for_log(&worker, PAUSED).await;
        let told = worker.log();
        let skew = [0, 1, 2].map(|late| format!("the provider's clock is {} s", ahead_s - late));
        assert!(skew.iter().any(|skew| told.contains(skew)), "{told}");
        world.wait_for_consumers(0).await;
        assert!(world.count_ready(JOBS).await >= 15, "a backlog stays");
        // The first answer told. Then the provider is asked by updates of nobody, as no cache
        // answers those.
        let patches = async |is_probe: bool| {
            let nobody = json!(Uuid::nil());
            let patches = world.oracle("patches").await;
            patches.iter().filter(|patch| (patch["customer_id"] == nobody) == is_probe).count()
        };
        let probes = patches(true).await;
        world.wait_for("more probes", async || (patches(true).await >= probes + 5).then_some(())).await;
        assert_eq!(patches(false).await, 1);
        assert!(!worker.log().contains("intake resumed"));
        let leases = "select count(*) from submission where state = 'submitting'";
        assert_eq!(world.count(leases).await, 0);

        world.set_provider(json!({ "clock_ahead_s": 0 })).await;
        world.check_nothing_lost_or_spent_twice(&jobs).await;
        assert_eq!(patches(false).await, jobs.len());
        assert_eq!(worker.log().matches(PAUSED).count(), 1, "it is told once");
        assert!(worker.log().contains("intake resumed"));
    });
}

#[test]
fn a_clock_ten_minutes_behind_the_provider_stops_sending_until_it_is_set() {
    check_clock_is_refused(600);
}

#[test]
fn a_clock_ahead_of_the_provider_stops_sending_until_it_is_set() {
    check_clock_is_refused(-600);
}

#[test]
fn a_clock_off_by_less_than_two_minutes_stops_nothing() {
    world(async |world| {
        world.declare_topology().await;
        world.set_provider(json!({ "clock_ahead_s": 110 })).await;
        let jobs = world.publish_jobs(20).await;
        let worker = world.start_worker();
        world.check_nothing_lost_or_spent_twice(&jobs).await;
        assert_eq!(world.oracle("patches").await.len(), jobs.len());
        assert!(!worker.log().contains("intake paused"));
    });
}

/// One that a machine with a wrong clock on the way has dated. It once stopped everybody.
#[test]
fn one_answer_with_a_wrong_date_stops_nobody() {
    let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
    for date in [now - hour, now + hour] {
        world(async |world| {
            world.declare_topology().await;
            let worker = world.start_worker_with(&[("CONCURRENCY", "1"), ("PREFETCH", "2")]);
            let before = world.publish_jobs(5).await;
            world.wait_for_all_accepted(&before).await;
            let headers = json!({ "date": httpdate::fmt_http_date(date) });
            let body = json!({ "status": true, "message": "Success", "data": {} });
            let answer = json!({ "kind": "respond", "status": 200, "headers": headers, "body": body });
            let misdated = world.publish_broken_job(json!({ "answer": answer })).await;
            let after = world.publish_jobs(10).await;
            world.check_nothing_lost_or_spent_twice(&[before, vec![misdated], after].concat()).await;
            assert!(!worker.log().contains("intake paused"), "{}", worker.log());
            let nobody = json!(Uuid::nil());
            let patches = world.oracle("patches").await;
            let asked = patches.iter().filter(|patch| patch["customer_id"] == nobody).count();
            assert_eq!(asked, 1, "an update for nobody told what the time is");
        });
    }
}

#[test]
fn a_worker_whose_stdout_is_closed_works_on_and_ends_well() {
    world(async |world| {
        world.declare_topology().await;
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let mut worker = world.start_worker_onto(writer, &[]);
        drop(reader);
        let jobs = world.publish_jobs(50).await;
        world.check_nothing_lost_or_spent_twice(&jobs).await;
        assert_eq!(world.oracle("patches").await.len(), jobs.len());
        worker.stop().await;
        assert_eq!(worker.log(), "", "nothing is made of it on stderr");
    });
}

#[test]
fn a_worker_whose_stdout_nobody_reads_works_on_and_ends_well() {
    world(async |world| {
        world.declare_topology().await;
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let mut worker = world.start_worker_onto(writer, &[]);
        let jobs = world.publish_jobs(400).await;
        world.check_nothing_lost_or_spent_twice(&jobs).await;
        assert_eq!(world.oracle("patches").await.len(), jobs.len());
        assert!(worker.memory_max_kib() < 150 * 1024, "{} KiB", worker.memory_max_kib());
        worker.stop().await;
        let mut lines = Vec::new();
        reader.read_to_end(&mut lines).expect("what fitted in");
        // It holds sixteen pages, some of which a write has not filled.
        assert!(lines.len() > 32 * 1024, "the pipe was full: {} bytes", lines.len());
    });
}

#[test]
fn a_command_whose_reader_has_gone_ends_as_it_would_have() {
    world(async |world| {
        world.declare_topology().await;
        let customer = Uuid::new_v4().to_string();
        for arguments in [
            &["report"][..],
            &["report", "--json"],
            &["list"],
            &["check"],
            &["check", "--json"],
            &["pause", "--by", "ana", "--note", "why"],
            &["budget", "set", "--customer", &customer, "--used", "1", "--by", "ana", "--note", "why"],
            &["schema"],
            &["completions", "bash"],
        ] {
            let (reader, writer) = std::io::pipe().expect("a pipe");
            drop(reader);
            let output = world.command().args(arguments).stdout(writer).output().expect("it runs");
            let complaint = String::from_utf8_lossy(&output.stderr);
            assert_eq!((output.status.code(), &*complaint), (Some(0), ""), "{arguments:?}");
        }
    });
}

#[test]
fn a_reader_who_was_slow_gets_the_lines_that_waited_for_him() {
    world(async |world| {
        world.declare_topology().await;
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let mut worker = world.start_worker_onto(writer, &[]);
        let jobs = world.publish_jobs(400).await;
        world.check_nothing_lost_or_spent_twice(&jobs).await;
        let reading = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).map(|_| text)
        });
        worker.stop().await;
        let text = reading.await.expect("a task").expect("text");
        for job_id in jobs {
            let attempted =
                |line: &&str| line.contains(&job_id.to_string()) && line.contains("submission attempted");
            // More than one where the machine was too slow for the send window.
            let attempts = world.attempts(job_id).await.len();
            assert_eq!(text.lines().filter(attempted).count(), attempts, "{job_id}");
        }
        assert!(text.lines().last().expect("a line").contains("stopped"), "the last line comes out too");
    });
}
