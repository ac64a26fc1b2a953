//! An attempt whose outcome is unknown is read, and sent again only where two reads
//! say that it was not applied and that the customer's last update stays theirs.

use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Observation, Submission, World, world};

/// These tests make many attempts fail on purpose.
const CALM: (&str, &str) = ("BREAKER_FAILURES", "1000");

const BASELINE: (&str, &str) = ("BASELINE_READ", "true");

/// An answer that tells nothing of whether the update was applied.
fn crash() -> Value {
    json!({ "kind": "respond", "status": 500, "body": "oops" })
}

fn not_applied() -> Value {
    json!({ "apply": "never", "answer": crash() })
}

fn conclusions(observations: &[Observation]) -> Vec<&str> {
    observations.iter().filter_map(|observation| observation.conclusion.as_deref()).collect()
}

/// Waits until a job is left to a person, and checks that it was sent once.
async fn wait_for_review(world: &World, job_id: Uuid, reason_code: &str) -> Submission {
    let job = world.wait_for_state(job_id, &["accepted", "rejected", "needs_review"]).await;
    assert_eq!((job.state.as_str(), job.reason_code.as_deref()), ("needs_review", Some(reason_code)));
    assert!(job.has_payload, "a person may want to send it");
    assert_eq!(world.attempts(job_id).await.len(), 1);
    assert_eq!(world.count_patches(job_id).await, 1);
    job
}

/// Waits until a job was read back as not applied, sent again once, and accepted.
async fn wait_for_resent(world: &World, job_id: Uuid) {
    let job = world.wait_for_state(job_id, &["accepted", "needs_review"]).await;
    let observations = world.observations(job_id).await;
    assert_eq!(job.evidence.as_deref(), Some("response"), "{job:?} {observations:?}");
    let verdicts: Vec<_> = world.attempts(job_id).await.into_iter().map(|attempt| attempt.verdict).collect();
    assert_eq!(verdicts, [Some("unknown".to_owned()), Some("accepted".to_owned())]);
    assert_eq!(world.count_patches(job_id).await, 2);
    assert_eq!(world.count_updates(job_id).await, 1);
}

#[test]
fn an_update_that_was_applied_with_its_answer_lost_is_never_sent_again() {
    world(async |world| {
        world.declare_topology().await;
        let answer = crash();
        let faults = [
            json!({ "answer": { "kind": "hang" } }),
            json!({ "answer": { "kind": "reset" } }),
            json!({ "answer": { "kind": "close" } }),
            json!({ "answer": answer }),
            // The worker has given up by then.
            json!({ "delay_before_ms": 3500 }),
            json!({ "delay_after_ms": 3500 }),
            // Applied after the first read, and before the second.
            json!({ "apply": { "after_ms": 1500 }, "answer": answer }),
            json!({ "apply": { "after_ms": 3000 }, "answer": answer }),
            json!({ "apply": { "after_ms": 4000 }, "answer": answer }),
            json!({ "apply": { "after_ms": 3000 }, "answer": { "kind": "hang" } }),
            json!({ "apply": { "after_ms": 4000 }, "answer": { "kind": "reset" } }),
        ];
        let mut jobs = Vec::new();
        for fault in faults {
            let job_id = world.publish_broken_job(fault.clone()).await;
            jobs.push((job_id, fault));
        }
        let _workers = [(); 2].map(|()| world.start_worker_with(&[CALM]));
        for (job_id, fault) in jobs {
            world.wait_for_applied(job_id).await;
            assert_eq!(world.count_patches(job_id).await, 1, "{fault}");
            assert_eq!(world.count_updates(job_id).await, 1, "{fault}");
            let attempts = world.attempts(job_id).await;
            assert_eq!(attempts.len(), 1, "{fault}");
            assert_eq!(attempts[0].verdict.as_deref(), Some("unknown"), "{fault}");
            let observations = world.observations(job_id).await;
            assert!(observations.iter().all(|observation| observation.purpose == "read_back"));
            let (last, before) = observations.split_last().expect("a read");
            assert_eq!(last.conclusion.as_deref(), Some("applied"), "{fault}: {observations:?}");
            assert_eq!(last.status.as_deref(), Some("PROCESSING"));
            assert!(conclusions(before).iter().all(|conclusion| *conclusion == "confirming"));
        }
    });
}

#[test]
fn an_update_that_was_not_applied_is_sent_again_once_and_accepted() {
    world(async |world| {
        world.declare_topology().await;
        let mut jobs = Vec::new();
        for answer in [json!({ "kind": "hang" }), json!({ "kind": "reset" }), crash()] {
            for _ in 0..3 {
                let job_id = world.publish_job().await;
                world.break_job_once(job_id, json!({ "apply": "never", "answer": answer })).await;
                jobs.push(job_id);
            }
        }
        let _workers = [(); 2].map(|()| world.start_worker_with(&[CALM]));
        for job_id in jobs {
            wait_for_resent(&world, job_id).await;
            let observations = world.observations(job_id).await;
            assert!(observations.iter().all(|seen| seen.status.as_deref() == Some("FAILED")));
            assert_eq!(conclusions(&observations), ["confirming", "not_applied"]);
        }
        assert_eq!(world.oracle("reads").await.len(), 18, "each read is an observation");
    });
}

#[test]
fn an_answer_that_breaks_off_at_any_byte_costs_no_second_update() {
    world(async |world| {
        world.declare_topology().await;
        let mut jobs = Vec::new();
        for bytes in (0..400).step_by(8) {
            let job_id = world.publish_job().await;
            let answer = json!({ "kind": "reset_after_bytes", "bytes": bytes });
            world.break_job(job_id, json!({ "answer": answer })).await;
            jobs.push(job_id);
        }
        let _workers = [(); 2].map(|()| world.start_worker_with(&[CALM]));
        let mut read_back = 0;
        for job_id in &jobs {
            let job = world.wait_for_state(*job_id, &["accepted", "needs_review"]).await;
            assert_eq!(job.state, "accepted", "{job:?}");
            read_back += usize::from(job.evidence.as_deref() == Some("read_back"));
            assert_eq!(world.attempts(*job_id).await.len(), 1);
        }
        // Some of the answers were whole before they broke off.
        assert!((20..jobs.len()).contains(&read_back), "{read_back} of {}", jobs.len());
        let (patches, updates) = (world.count_by_job("patches").await, world.count_by_job("updates").await);
        assert!(jobs.iter().all(|job_id| patches[job_id] == 1 && updates[job_id] == 1));
    });
}

#[test]
fn an_update_that_may_be_the_customers_last_is_not_sent_again() {
    world(async |world| {
        world.declare_topology().await;
        let _workers = [(); 2].map(|()| world.start_worker_with(&[CALM]));
        let updated_before = Uuid::new_v4();
        let (first, _) = world.publish_job_for(updated_before).await;
        world.wait_for_state(first, &["accepted"]).await;
        world.set_customer(updated_before, json!({ "status": "FAILED" })).await;

        let updated_elsewhere = Uuid::new_v4();
        let customer = updated_elsewhere.to_string();
        let told =
            ["budget", "set", "--customer", &customer, "--used", "1", "--by", "ana", "--note", "by hand"];
        assert!(world.run(&told, &[]).await.status.success());

        let mut jobs = Vec::new();
        for customer_id in [updated_before, updated_elsewhere, Uuid::new_v4()] {
            world
                .add_rule(json!({
                    "match": { "method": "PATCH", "customer_id": customer_id }, "first": 1, "fault": not_applied()
                }))
                .await;
            jobs.push(world.publish_job_for(customer_id).await.0);
        }
        for job_id in &jobs[..2] {
            wait_for_review(&world, *job_id, "last_update").await;
            assert_eq!(world.count_updates(*job_id).await, 0);
            assert_eq!(conclusions(&world.observations(*job_id).await), ["confirming", "last_update"]);
        }
        wait_for_resent(&world, jobs[2]).await;
    });
}

/// While the customer is in verification and an earlier update may be why, a read proves nothing; at
/// `READ_BACK_DEADLINE` a person is asked.
#[test]
fn a_verification_of_unknown_origin_goes_to_a_person_in_time() {
    world(async |world| {
        world.declare_topology().await;
        let _workers = [(); 2].map(|()| world.start_worker_with(&[CALM]));
        let mut unsettled = Vec::new();
        for apply in ["now", "never"] {
            let customer_id = Uuid::new_v4();
            let (first, _) = world.publish_job_for(customer_id).await;
            world.wait_for_state(first, &["accepted"]).await;
            let fault = json!({ "apply": apply, "answer": crash() });
            world
                .add_rule(
                    json!({ "match": { "method": "PATCH", "customer_id": customer_id }, "fault": fault }),
                )
                .await;
            unsettled.push((world.publish_job_for(customer_id).await.0, usize::from(apply == "now")));
        }
        for (job_id, updates) in unsettled {
            let job = wait_for_review(&world, job_id, "fate_unknown").await;
            assert!(job.reason.is_some_and(|reason| reason.contains("compare the document at the provider")));
            assert_eq!(world.count_updates(job_id).await, updates);
            let observations = world.observations(job_id).await;
            assert!(observations.iter().all(|seen| seen.status.as_deref() == Some("PROCESSING")));
            let seen = conclusions(&observations);
            let (last, before) = seen.split_last().expect("reads");
            assert_eq!(*last, "unsettled");
            assert!(before.len() >= 2 && before.iter().all(|conclusion| *conclusion == "look_again"));
            let told = |(_, log): (_, String)| {
                log.lines().any(|line| {
                    let names = line.contains("ERROR") && line.contains(&job_id.to_string());
                    names && line.contains("compare the document at the provider")
                })
            };
            world.wait_for("an error line", async || world.logs().into_iter().any(told).then_some(())).await;
        }
    });
}

/// Waits until a customer may be read again for no other reason than to know.
async fn wait_for_read_interval(world: &World, customer_id: Uuid) {
    let query = "select last_read_at < now() - interval '3 s' from customer where customer_id = $1";
    world
        .wait_for("the end of CUSTOMER_READ_INTERVAL", async || {
            let is_over: bool =
                sqlx::query_scalar(query).bind(customer_id).fetch_one(&world.pool).await.expect("their row");
            is_over.then_some(())
        })
        .await;
}

#[test]
fn a_word_on_the_customer_closes_the_verifications_before_it() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker_with(&[CALM, BASELINE]);
        let customer_id = Uuid::new_v4();
        let (first, _) = world.publish_job_for(customer_id).await;
        world.wait_for_state(first, &["accepted"]).await;
        world.set_customer(customer_id, json!({ "status": "FAILED" })).await;
        wait_for_read_interval(&world, customer_id).await;
        let matched = json!({ "method": "PATCH", "customer_id": customer_id });
        world.add_rule(json!({ "match": matched, "fault": { "answer": crash() } })).await;
        let (second, _) = world.publish_job_for(customer_id).await;
        world.wait_for_applied(second).await;
        let words: Vec<_> = world.observations(second).await.into_iter().map(|seen| seen.status).collect();
        assert_eq!(words, [Some("FAILED".to_owned()), Some("PROCESSING".to_owned())]);
        assert_eq!(world.count_patches(second).await, 1);
    });
}

#[test]
fn a_verified_customer_was_updated_only_if_our_last_word_was_another() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker_with(&[CALM, BASELINE]);
        // With a verification shorter than the first read is off.
        let (updated, verified) = (Uuid::new_v4(), Uuid::new_v4());
        world.set_customer(updated, json!({ "verification_ms": 100 })).await;
        world.set_customer(verified, json!({ "status": "VERIFIED" })).await;
        let (applied, _) = world.publish_job_for(updated).await;
        world.break_job(applied, json!({ "answer": crash() })).await;
        let (unsettled, _) = world.publish_job_for(verified).await;
        world.break_job(unsettled, not_applied()).await;

        let job = world.wait_for_applied(applied).await;
        assert_eq!(job.verification_status.as_deref(), Some("VERIFIED"));
        assert_eq!(conclusions(&world.observations(applied).await), ["applied"]);
        assert_eq!(world.count_patches(applied).await, 1);
        assert_eq!(world.count_updates(applied).await, 1);
        wait_for_review(&world, unsettled, "fate_unknown").await;
    });
}

#[test]
fn a_verified_customer_proves_nothing_without_a_word_before() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker_with(&[CALM]);
        let customer_id = Uuid::new_v4();
        world.set_customer(customer_id, json!({ "verification_ms": 100 })).await;
        let (job_id, _) = world.publish_job_for(customer_id).await;
        world.break_job(job_id, json!({ "answer": crash() })).await;
        wait_for_review(&world, job_id, "fate_unknown").await;
        assert_eq!(world.count_updates(job_id).await, 1);
    });
}

#[test]
fn an_unverified_customer_proves_nothing_unless_the_operator_says_so() {
    for (means, is_resent) in [("inconclusive", false), ("not-applied", true)] {
        world(async |world| {
            world.declare_topology().await;
            let customer_id = Uuid::new_v4();
            world.set_customer(customer_id, json!({ "status": "UNVERIFIED" })).await;
            let (job_id, _) = world.publish_job_for(customer_id).await;
            world.break_job_once(job_id, not_applied()).await;
            let _worker = world.start_worker_with(&[CALM, ("READ_BACK_UNVERIFIED", means)]);
            if is_resent {
                wait_for_resent(&world, job_id).await;
            } else {
                wait_for_review(&world, job_id, "fate_unknown").await;
            }
        });
    }
}

/// "Customer not found or access denied", in the provider's own words.
fn customer_not_found() -> Value {
    let words = "Customer not found or access denied";
    let body = json!({ "status": false, "message": words, "errors": {}, "data": null });
    json!({ "kind": "respond", "status": 400, "body": body })
}

/// The update was applied, and its answer lost. Taken for refused, it would be published again.
#[test]
fn a_customer_who_cannot_be_found_may_have_been_updated() {
    world(async |world| {
        world.declare_topology().await;
        let denied = json!({ "match": { "method": "GET" }, "fault": { "answer": customer_not_found() } });
        world.add_rule(denied).await;
        let [applied, asked] = [Uuid::new_v4(), Uuid::new_v4()];
        for customer_id in [applied, asked] {
            let (job_id, body) = world.publish_job_for(customer_id).await;
            world.break_job(job_id, json!({ "answer": crash() })).await;
            let _worker = world.start_worker_with(&[CALM]);
            let not_found = async || {
                let seen = world.observations(job_id).await;
                let is_so = |seen: &&Observation| seen.error.as_deref() == Some("customer_not_found");
                (seen.iter().filter(is_so).count() >= 2).then_some(seen)
            };
            let seen = world.wait_for("two reads that find nobody", not_found).await;
            assert!(conclusions(&seen).iter().all(|conclusion| *conclusion == "look_again"), "{seen:?}");
            if customer_id == applied {
                // We are let in again.
                world.clear_rules().await;
                world.wait_for_applied(job_id).await;
                world
                    .add_rule(
                        json!({ "match": { "method": "GET" }, "fault": { "answer": customer_not_found() } }),
                    )
                    .await;
            } else {
                wait_for_review(&world, job_id, "fate_unknown").await;
            }
            // Another job that asks for the same.
            let again = Uuid::new_v4();
            let mut same = body.clone();
            same["job_id"] = json!(again);
            world.publish(Some(again), same.to_string().as_bytes()).await;
            let job = world.wait_for_state(again, &["duplicate", "accepted", "unknown"]).await;
            assert_eq!(job.state, "duplicate");
            assert_eq!(world.count_updates(job_id).await, 1);
        }
    });
}

#[test]
fn reads_that_fail_are_repeated_while_they_can_tell() {
    world(async |world| {
        world.declare_topology().await;
        let mut jobs = Vec::new();
        for (answer, times) in [(crash(), 4), (json!({ "kind": "reset" }), 4), (json!({ "kind": "hang" }), 1)]
        {
            for apply in ["now", "never"] {
                let customer_id = Uuid::new_v4();
                let matched = json!({ "method": "GET", "customer_id": customer_id });
                let fault = json!({ "answer": answer });
                world.add_rule(json!({ "match": matched, "first": times, "fault": fault })).await;
                let (job_id, _) = world.publish_job_for(customer_id).await;
                world.break_job_once(job_id, json!({ "apply": apply, "answer": crash() })).await;
                jobs.push((job_id, apply, times));
            }
        }
        let _worker = world.start_worker_with(&[CALM]);
        for (job_id, apply, times) in jobs {
            match apply {
                "now" => {
                    world.wait_for_applied(job_id).await;
                    assert_eq!(world.count_patches(job_id).await, 1);
                }
                _ => wait_for_resent(&world, job_id).await,
            }
            let observations = world.observations(job_id).await;
            let failed = observations.iter().filter(|seen| seen.error.as_deref() == Some("read_failed"));
            assert_eq!(failed.count(), times);
            assert!(conclusions(&observations)[..times].iter().all(|conclusion| *conclusion == "look_again"));
        }
    });
}

/// Publishes updates that are applied and whose answers are lost, while reads of their customers
/// are answered so, and checks that nothing is sent again on the word of such a read.
async fn proves_nothing(world: &World, read: Value, error: &'static str) {
    let mut jobs = Vec::new();
    for lost in [crash(), json!({ "kind": "hang" })] {
        let customer_id = Uuid::new_v4();
        let matched = json!({ "method": "GET", "customer_id": customer_id });
        world.add_rule(json!({ "match": matched, "fault": { "answer": read } })).await;
        let (job_id, _) = world.publish_job_for(customer_id).await;
        world.break_job(job_id, json!({ "answer": lost })).await;
        jobs.push(job_id);
    }
    let mut worker = world.start_worker_with(&[CALM, BASELINE]);
    for job_id in &jobs {
        let read_twice = async || {
            let observations = world.observations(*job_id).await;
            let is_so =
                |seen: &&Observation| seen.purpose == "read_back" && seen.error.as_deref() == Some(error);
            (observations.iter().filter(is_so).count() >= 2).then_some(())
        };
        world.wait_for("two reads that prove nothing", read_twice).await;
    }
    world.clear_rules().await;
    for job_id in &jobs {
        world.wait_for_applied(*job_id).await;
        assert_eq!(world.count_patches(*job_id).await, 1);
        assert_eq!(world.count_updates(*job_id).await, 1);
    }
    worker.stop().await;
}

/// With a baseline both reads would be the FAILED of before: sent twice.
#[test]
fn a_read_that_a_cache_answers_proves_nothing() {
    world(async |world| {
        world.declare_topology().await;
        for with_age in [true, false] {
            let cached =
                json!({ "kind": "cached", "for_ms": 600_000, "with_age": with_age, "older_by_s": 30 });
            proves_nothing(&world, cached, "stale_answer").await;
        }
    });
}

/// Dated by a clock ahead of that of updates, what a cache keeps looks fresh. Both reads would be the
/// FAILED of before: sent twice.
#[test]
fn two_reads_that_a_cache_answers_with_one_copy_prove_nothing() {
    world(async |world| {
        world.declare_topology().await;
        let kept = json!({ "kind": "cached", "for_ms": 600_000, "with_age": false, "older_by_s": -100 });
        world.add_rule(json!({ "match": { "method": "GET" }, "fault": { "answer": kept } })).await;
        let job_id = world.publish_broken_job(json!({ "answer": crash() })).await;
        let patient = [("READ_BACK_WINDOW", "40s"), ("READ_BACK_DEADLINE", "2m")];
        let _worker = world.start_worker_with(&[&[CALM, BASELINE][..], &patient].concat());
        let read_twice = async || {
            let seen = world.observations(job_id).await;
            (seen.iter().filter(|seen| seen.purpose == "read_back").count() >= 2).then_some(seen)
        };
        let seen = world.wait_for("two reads", read_twice).await;
        let conclusions = conclusions(&seen);
        assert_eq!(conclusions[conclusions.len() - 2..], ["confirming", "look_again"], "{seen:?}");
        assert_eq!(world.count_patches(job_id).await, 1);
    });
}

#[test]
fn a_read_of_another_customer_proves_nothing() {
    world(async |world| {
        world.declare_topology().await;
        proves_nothing(&world, json!({ "kind": "other_customer" }), "other_customer").await;
    });
}

#[test]
fn reads_that_come_back_too_late_prove_only_that_an_update_was_applied() {
    world(async |world| {
        world.declare_topology().await;
        world.add_rule(json!({ "match": { "method": "GET" }, "fault": { "answer": crash() } })).await;
        let applied = world.publish_broken_job(json!({ "answer": crash() })).await;
        let not_applied_job = world.publish_broken_job(not_applied()).await;
        let _worker = world.start_worker_with(&[CALM]);
        let is_late = "select count(*) from attempt where begun_at < now() - interval '10 s'";
        world.wait_for("the window's end", async || (world.count(is_late).await == 2).then_some(())).await;
        world.clear_rules().await;
        world.wait_for_applied(applied).await;
        wait_for_review(&world, not_applied_job, "fate_unknown").await;
        assert_eq!(world.count_patches(applied).await, 1);
        assert_eq!(world.count_updates(not_applied_job).await, 0);
    });
}

/// The most PATCHes that met a fault between two probes.
fn patches_between_probes(reads: &[Value], patches: &[Value]) -> usize {
    let seq = |line: &Value| line["seq"].as_u64().expect("a number");
    let nil = Uuid::nil().to_string();
    let probes: Vec<u64> = reads.iter().filter(|read| read["customer_id"] == nil.as_str()).map(seq).collect();
    let broken: Vec<u64> = patches.iter().filter(|patch| !patch["rule"].is_null()).map(seq).collect();
    let ends = probes.iter().skip(1).copied().chain([u64::MAX]);
    let between = probes.iter().zip(ends);
    between
        .map(|(from, to)| broken.iter().filter(|seq| (*from..to).contains(*seq)).count())
        .max()
        .unwrap_or(0)
}

#[test]
fn a_storm_of_500s_costs_each_job_one_attempt_until_it_is_read_back() {
    world(async |world| {
        world.declare_topology().await;
        let jobs = world.publish_jobs(200).await;
        world.add_rule(json!({ "match": { "method": "PATCH" }, "fault": not_applied() })).await;
        let worker = world.start_worker_with(&[
            ("CONCURRENCY", "4"),
            ("PREFETCH", "8"),
            ("BREAKER_FAILURES", "3"),
            ("BREAKER_PROBE_INTERVAL", "200ms"),
        ]);
        world.wait_for_log(&worker, "intake paused").await;
        // More than were delivered before it paused: trials go on with what is in the queue.
        world
            .wait_for("thirty attempts", async || (world.oracle("patches").await.len() >= 30).then_some(()))
            .await;
        let (reads, patches) = (world.oracle("reads").await, world.oracle("patches").await);
        assert!(patches_between_probes(&reads, &patches) <= 1, "one trial after each good probe");
        let sent = world.count_by_job("patches").await;
        assert!(sent.values().all(|times| *times == 1), "a first attempt each: {sent:?}");
        assert!(world.count_ready("kyc.document-updates").await >= 100, "a backlog stays");
        assert_eq!(world.count("select count(*) from dead_lettered_delivery").await, 0);

        world.clear_rules().await;
        world.wait_for_all_accepted(&jobs).await;
        let (patches, updates) = (world.count_by_job("patches").await, world.count_by_job("updates").await);
        for job_id in &jobs {
            assert_eq!(updates[job_id], 1);
            let observations = world.observations(*job_id).await;
            let resends = conclusions(&observations).iter().filter(|seen| **seen == "not_applied").count();
            assert_eq!(patches[job_id], 1 + resends, "{observations:?}");
        }
    });
}

#[test]
fn a_breaker_with_nothing_left_but_resends_still_closes() {
    world(async |world| {
        world.declare_topology().await;
        let jobs = world.publish_jobs(3).await;
        for job_id in &jobs {
            world.break_job_once(*job_id, not_applied()).await;
        }
        let worker = world.start_worker_with(&[("BREAKER_FAILURES", "3")]);
        world.wait_for_log(&worker, "intake paused").await;
        for job_id in &jobs {
            wait_for_resent(&world, *job_id).await;
        }
        let (after, _) = world.publish_job_for(Uuid::new_v4()).await;
        world.wait_for_state(after, &["accepted"]).await;
        assert_eq!(world.count_patches(after).await, 1);
    });
}

#[test]
fn an_outage_of_updates_alone_spends_resends_ever_more_slowly() {
    world(async |world| {
        world.declare_topology().await;
        let jobs = world.publish_jobs(5).await;
        world.add_rule(json!({ "match": { "method": "PATCH" }, "fault": not_applied() })).await;
        let _worker = world.start_worker_with(&[("BREAKER_FAILURES", "3")]);
        let patches = async |count| {
            let oracle = || world.oracle("patches");
            world.wait_for("trials", async || Some(oracle().await).filter(|seen| seen.len() == count)).await
        };
        // Five first attempts, of which each was shown not to have been applied, and two resends.
        let seen = patches(7).await;
        let at = |patch: &Value| humantime::parse_rfc3339(patch["at"].as_str()?).ok();
        let pause = at(&seen[6]).expect("a time").duration_since(at(&seen[5]).expect("a time"));
        let pause = pause.expect("in order");
        assert!(pause >= Duration::from_millis(9_900), "twice the first wait of 5 s, and not {pause:?}");
        let sent = world.count_by_job("patches").await;
        assert!(sent.values().all(|times| *times <= 2), "no job is spent on more: {sent:?}");

        // The next resend would wait for 20 s; a job that was never unknown need not.
        world.clear_rules().await;
        let (next, _) = world.publish_job_for(Uuid::new_v4()).await;
        world.wait_for_state(next, &["accepted"]).await;
        let seen = world.oracle("patches").await;
        assert!(seen[7]["link"].as_str().is_some_and(|link| link.contains(&next.to_string())), "{seen:?}");
        let mut spent = 0;
        for job_id in jobs {
            let job = world.wait_for_state(job_id, &["accepted", "needs_review"]).await;
            let is_spent = job.state == "needs_review";
            assert!(!is_spent || job.reason_code.as_deref() == Some("last_update"), "{job:?}");
            spent += usize::from(is_spent);
        }
        assert_eq!(spent, 2, "no other was spent, and of nobody the last update");
    });
}

#[test]
fn slow_reads_still_confirm_each_other() {
    world(async |world| {
        world.declare_topology().await;
        world.add_rule(json!({ "match": { "method": "GET" }, "fault": { "delay_before_ms": 600 } })).await;
        let _worker = world.start_worker_with(&[CALM]);
        let job_id = world.publish_job().await;
        world.break_job_once(job_id, not_applied()).await;
        wait_for_resent(&world, job_id).await;
    });
}

#[test]
fn reads_do_not_wait_behind_attempts() {
    world(async |world| {
        world.declare_topology().await;
        let (relay, base_url) = world.relay_to_provider().await;
        relay.refuse().await;
        let _worker = world.start_worker_with(&[
            CALM,
            ("DOLLARPE_BASE_URL", &base_url),
            ("CONCURRENCY", "1"),
            ("RETRY_DELAY_MAX", "20ms"),
            ("RETRY_MAX_ATTEMPTS", "1000"),
        ]);
        let jobs = world.publish_jobs(30).await;
        let waiting = "select count(*) from submission where waiting_for = 'retry'";
        world.wait_for("waiting jobs", async || (world.count(waiting).await >= 29).then_some(())).await;
        // The first has an unknown outcome, and the others keep the only slot busy for longer than its window.
        world.add_rule(json!({ "match": { "method": "PATCH" }, "first": 1, "fault": not_applied() })).await;
        let slow = json!({ "delay_before_ms": 400 });
        world.add_rule(json!({ "match": { "method": "PATCH" }, "fault": slow })).await;
        relay.accept().await;
        world.wait_for_all_accepted(&jobs).await;
        let unknown = "select count(*) from attempt where verdict = 'unknown'";
        assert_eq!(world.count(unknown).await, 1);
        assert_eq!(world.oracle("patches").await.len(), 31);
        assert_eq!(world.oracle("updates").await.len(), 30);
    });
}

#[test]
fn a_customer_is_read_before_their_first_attempt_and_not_too_often() {
    world(async |world| {
        world.declare_topology().await;
        let _workers = [(); 2].map(|()| world.start_worker_with(&[CALM, BASELINE]));
        let customer_id = Uuid::new_v4();
        let (first, _) = world.publish_job_for(customer_id).await;
        let no = json!({ "kind": "respond", "status": 429, "body": "no" });
        world.break_job_once(first, json!({ "apply": "never", "answer": no })).await;
        world.wait_for_state(first, &["accepted"]).await;
        let (soon, _) = world.publish_job_for(customer_id).await;
        world.wait_for_state(soon, &["accepted"]).await;
        wait_for_read_interval(&world, customer_id).await;
        let (later, _) = world.publish_job_for(customer_id).await;
        world.wait_for_state(later, &["accepted"]).await;
        let others = world.publish_jobs(10).await;
        world.wait_for_all_accepted(&others).await;

        let mut reads = world.observations(soon).await.len();
        for job_id in others.into_iter().chain([first, later]) {
            let observations = world.observations(job_id).await;
            assert_eq!(observations.len(), 1, "before the first attempt only");
            assert_eq!(observations[0].purpose, "baseline");
            assert_eq!(observations[0].conclusion, None);
            reads += 1;
        }
        let too_close = "select count(*) from observation a
            join observation b on b.customer_id = a.customer_id and b.id > a.id and b.at < a.at + interval '3 s'";
        assert_eq!(world.count(too_close).await, 0);
        assert_eq!(world.oracle("reads").await.len(), reads, "no read without its observation");
    });
}
