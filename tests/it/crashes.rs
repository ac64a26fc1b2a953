//! A worker killed at any instant loses nothing and spends nothing twice.

use serde_json::json;

use crate::harness::world;

#[test]
fn a_job_whose_worker_dies_before_its_row_is_committed_is_done_once() {
    world(async |world| {
        world.declare_topology().await;
        let lock = world.lock_table("submission").await;
        let mut dying = world.start_worker();
        let job_id = world.publish_job().await;
        world
            .wait_for("an open that hangs", async || {
                let is_unacked = world.count_ready("kyc.document-updates").await == 0;
                let taken = world.count_blocked().await >= 2;
                (is_unacked && taken).then_some(())
            })
            .await;
        dying.kill();
        drop(lock);
        // Its connection's transaction may go through only now, and must not.
        world
            .wait_for("the message back in the queue", async || {
                (world.count_ready("kyc.document-updates").await == 1).then_some(())
            })
            .await;
        assert_eq!(world.oracle("patches").await.len(), 0);

        let mut worker = world.start_worker();
        world.wait_for_state(job_id, &["accepted"]).await;
        assert_eq!(world.attempts(job_id).await.len(), 1);
        assert_eq!(world.count_patches(job_id).await, 1);
        world.check_all_acked([&mut worker]).await;
    });
}

#[test]
fn a_job_whose_ack_is_lost_with_its_worker_is_counted_and_not_sent_again() {
    world(async |world| {
        world.declare_topology().await;
        let (relay, amqp_url) = world.relay_to_broker().await;
        let mut dying = world.start_worker_with(&[("AMQP_URL", &amqp_url)]);
        world.wait_for_consumers(1).await;
        relay.stall_to_target();
        let job_id = world.publish_job().await;
        let settled = world.wait_for_state(job_id, &["accepted"]).await;
        assert_eq!(settled.deliveries, 1);
        dying.kill();
        relay.reset();

        let mut worker = world.start_worker();
        world
            .wait_for("the second delivery", async || {
                world.submission(job_id).await.filter(|job| job.deliveries == 2)
            })
            .await;
        world.check_all_acked([&mut worker]).await;
        let job = world.submission(job_id).await.expect("it is known");
        assert_eq!((job.state.as_str(), job.deliveries), ("accepted", 2));
        assert_eq!(world.attempts(job_id).await.len(), 1);
        assert_eq!(world.count_patches(job_id).await, 1);
        assert_eq!(world.count("select count(*) from dead_lettered_delivery").await, 0);
    });
}

#[test]
fn a_job_whose_worker_dies_before_its_ack_is_not_begun_twice() {
    world(async |world| {
        world.declare_topology().await;
        let fault = json!({ "delay_before_ms": 500, "answer": { "kind": "hang" } });
        world.add_rule(json!({ "match": { "method": "PATCH" }, "first": 1, "fault": fault })).await;
        let (relay, amqp_url) = world.relay_to_broker().await;
        let mut dying = world.start_worker_with(&[("AMQP_URL", &amqp_url)]);
        world.wait_for_consumers(1).await;
        relay.stall_to_target();
        let job_id = world.publish_job().await;
        world.wait_for_state(job_id, &["submitting"]).await;
        dying.kill();
        relay.cut();

        // The claim is the dead worker's still: the second delivery must leave it alone.
        let mut worker = world.start_worker();
        world
            .wait_for("the second delivery", async || {
                world.submission(job_id).await.filter(|job| job.deliveries == 2)
            })
            .await;
        // Sent by the dead worker or by nobody: either way it ends applied once.
        world.wait_for_state(job_id, &["accepted"]).await;
        assert_eq!(world.count_updates(job_id).await, 1);
        world.check_all_acked([&mut worker]).await;
    });
}

#[test]
fn a_job_whose_worker_dies_in_its_request_is_applied_once() {
    world(async |world| {
        world.declare_topology().await;
        let mut jobs = Vec::new();
        for apply in [json!("now"), json!({ "after_ms": 1500 }), json!("never")] {
            let job_id = world.publish_job().await;
            world.break_job_once(job_id, json!({ "apply": apply, "answer": { "kind": "hang" } })).await;
            jobs.push((job_id, apply));
        }
        // It is killed before it gives one of them up.
        let patient = [("REQUEST_TIMEOUT", "4s"), ("SEND_WINDOW", "1500ms")];
        let mut dying = world.start_worker_with(&patient);
        for (job_id, _) in &jobs {
            let what = "the request at the provider";
            world.wait_for(what, async || (world.count_patches(*job_id).await == 1).then_some(())).await;
        }
        dying.kill();
        let mut spare = world.start_worker();
        let mut replica = world.start_worker();
        for (job_id, apply) in jobs {
            let job = world.wait_for_state(job_id, &["accepted", "needs_review"]).await;
            assert_eq!(job.state, "accepted", "{job:?}");
            let was_applied = apply != "never";
            let patches = if was_applied { 1 } else { 2 };
            assert_eq!(job.evidence.as_deref(), Some(if was_applied { "read_back" } else { "response" }));
            let attempts = world.attempts(job_id).await;
            assert_eq!(attempts.len(), patches);
            let (verdict, detail) = (attempts[0].verdict.as_deref(), attempts[0].detail.as_deref());
            assert_eq!((verdict, detail), (Some("unknown"), Some("worker_vanished")));
            assert_eq!(world.count_patches(job_id).await, patches);
            assert_eq!(world.count_updates(job_id).await, 1);
        }
        let told = "a lease expired during an attempt";
        let count_told = || world.logs().iter().map(|(_, log)| log.matches(told).count()).sum::<usize>();
        world.wait_for("three lines in the logs", async || (count_told() >= 3).then_some(())).await;
        spare.stop().await;
        replica.stop().await;
        assert_eq!(count_told(), 3, "each is told once");
    });
}

#[test]
fn a_customer_held_by_a_dead_worker_is_free_again_after_its_lease() {
    world(async |world| {
        world.declare_topology().await;
        let customer_id = uuid::Uuid::new_v4();
        let (first, _) = world.publish_job_for(customer_id).await;
        world.break_job_once(first, json!({ "answer": { "kind": "hang" } })).await;
        let mut dying = world.start_worker();
        world
            .wait_for("the request at the provider", async || {
                (world.count_patches(first).await == 1).then_some(())
            })
            .await;
        dying.kill();
        let (second, _) = world.publish_job_for(customer_id).await;
        let _worker = world.start_worker();
        world.wait_for_applied(first).await;
        world.wait_for_state(second, &["accepted"]).await;
        assert_eq!(world.count_patches(first).await, 1);
        assert_eq!(world.count_patches(second).await, 1);
    });
}

#[test]
fn a_worker_that_sleeps_past_its_lease_in_a_request_overwrites_nothing() {
    world(async |world| {
        world.declare_topology().await;
        let mut sleeper = world.start_worker();
        let job_id = world.publish_broken_job(json!({ "delay_after_ms": 1500 })).await;
        world
            .wait_for("the request at the provider", async || {
                (world.count_patches(job_id).await == 1).then_some(())
            })
            .await;
        sleeper.signal("STOP");
        let mut other = world.start_worker();
        world.wait_for_applied(job_id).await;
        // The answer has waited in its socket all the while.
        sleeper.signal("CONT");
        world.wait_for_log(&sleeper, "the claim was lost before the result").await;
        sleeper.stop().await;
        other.stop().await;
        world.wait_for_applied(job_id).await;
        let attempts = world.attempts(job_id).await;
        assert_eq!(attempts.len(), 1);
        assert_eq!(attempts[0].detail.as_deref(), Some("worker_vanished"));
        assert_eq!(world.count_patches(job_id).await, 1);
    });
}
