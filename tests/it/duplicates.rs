//! However often a job comes, it is sent once.

use futures_util::future::join_all;
use serde_json::json;
use uuid::Uuid;

use crate::harness::{job_body, world};

#[test]
fn a_job_published_a_hundred_times_to_four_workers_at_once_is_sent_once() {
    world(async |world| {
        world.declare_topology().await;
        // Slow enough that most deliveries find the first still under way.
        world.set_provider(json!({ "latency_ms": 300 })).await;
        let (customer_id, job_id) = (Uuid::new_v4(), Uuid::new_v4());
        let body = job_body(customer_id, job_id).to_string();
        let mut workers =
            [(); 4].map(|()| world.start_worker_with(&[("CONCURRENCY", "4"), ("PREFETCH", "4")]));
        world.wait_for_consumers(4).await;
        join_all((0..100).map(|_| world.publish(Some(job_id), body.as_bytes()))).await;
        world
            .wait_for("a hundred deliveries", async || {
                world.submission(job_id).await.filter(|job| job.deliveries >= 100 && job.state == "accepted")
            })
            .await;
        world.check_all_acked(workers.each_mut()).await;
        let job = world.submission(job_id).await.expect("it is known");
        assert_eq!((job.deliveries, job.attempts), (100, 1));
        assert_eq!(world.count_patches(job_id).await, 1);
        assert_eq!(world.count("select count(*) from dead_lettered_delivery").await, 0);
    });
}

/// The others are dead letters.
#[test]
fn of_many_contents_under_one_job_id_one_is_sent() {
    world(async |world| {
        world.declare_topology().await;
        let (customer_id, job_id) = (Uuid::new_v4(), Uuid::new_v4());
        let bodies: Vec<String> = (0..20)
            .map(|number| {
                let mut body = job_body(customer_id, job_id);
                body["full_address"] = json!(format!("{number} Residency Road"));
                body.to_string()
            })
            .collect();
        let _workers = [(); 4].map(|()| world.start_worker());
        world.wait_for_consumers(4).await;
        join_all(bodies.iter().map(|body| world.publish(Some(job_id), body.as_bytes()))).await;
        world.wait_for_state(job_id, &["accepted"]).await;
        world
            .wait_for("nineteen dead letters", async || {
                (world.count_ready("kyc.dead-letters").await == 19).then_some(())
            })
            .await;
        let mut letters = Vec::new();
        while let Some(letter) = world.take_dead_letter().await {
            letters.push(String::from_utf8(letter).expect("it was text"));
        }
        letters.sort();
        letters.dedup();
        assert_eq!(letters.len(), 19, "each whole and none twice");
        assert!(letters.iter().all(|letter| bodies.contains(letter)));
        let conflicts = "select count(*) from dead_lettered_delivery where reason_code = 'conflict'";
        assert_eq!(world.count(conflicts).await, 19);
        assert_eq!(world.oracle("patches").await.len(), 1);
        assert_eq!(world.submission(job_id).await.expect("it is known").deliveries, 1);
    });
}

#[test]
fn a_job_that_comes_again_after_every_kind_of_end_is_not_sent_again() {
    world(async |world| {
        world.declare_topology().await;
        let [accepted, rejected, unknown] = [(); 3].map(|()| Uuid::new_v4());
        let refusal = json!({ "status": false, "message": "KYC already in use", "errors": {}, "data": null });
        let refuse =
            json!({ "apply": "never", "answer": { "kind": "respond", "status": 400, "body": refusal } });
        world.break_job(rejected, refuse).await;
        world.break_job(unknown, json!({ "answer": { "kind": "reset" } })).await;
        let _worker = world.start_worker();
        let bodies = [accepted, rejected, unknown].map(|id| (id, job_body(Uuid::new_v4(), id).to_string()));
        for (job_id, body) in &bodies {
            world.publish(Some(*job_id), body.as_bytes()).await;
        }
        world.wait_for_state(accepted, &["accepted"]).await;
        world.wait_for_state(rejected, &["rejected"]).await;
        world.wait_for_applied(unknown).await;
        for (job_id, body) in &bodies {
            let ended = world.submission(*job_id).await.expect("it is known");
            world.publish(Some(*job_id), body.as_bytes()).await;
            let again = world
                .wait_for("the second delivery", async || {
                    world.submission(*job_id).await.filter(|job| job.deliveries == 2)
                })
                .await;
            assert_eq!((again.state, again.attempts), (ended.state, 1));
            assert_eq!(world.count_patches(*job_id).await, 1);
        }
    });
}
