//! A person pauses the work, and every replica obeys; which replicas there are is known.

use std::sync::Arc;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{JOBS, WorkerProcess, World, world};

fn start(world: &World, name: &str) -> WorkerProcess {
    world.start_worker_with(&[("WORKER_NAME", name)])
}

#[test]
fn every_replica_obeys_a_pause_and_goes_on_when_it_is_over() {
    world(async |world| {
        world.declare_topology().await;
        let workers = ["one", "two"].map(|name| start(&world, name));
        world.wait_for_consumers(2).await;
        // An attempt in flight, of unknown outcome soon, and a job that waits behind it.
        let customer_id = Uuid::new_v4();
        let unsettled = Uuid::new_v4();
        world.break_job_once(unsettled, json!({ "answer": { "kind": "hang" } })).await;
        world.publish_job_named(customer_id, unsettled).await;
        world.wait_for_state(unsettled, &["submitting", "unknown"]).await;
        let (behind, _) = world.publish_job_for(customer_id).await;
        world.wait_for_state(behind, &["waiting"]).await;

        let said = world.say(&["pause", "--by", "ana", "--note", "maintenance at the provider"]).await;
        assert!(said.contains("paused; replicas that obey within 5 s: 2 (one, two)"), "{said}");
        for worker in &workers {
            world.wait_for_log(worker, "ana paused the work: maintenance at the provider").await;
        }
        world.wait_for_consumers(0).await;
        let late = start(&world, "late");
        world.wait_for_log(&late, "intake paused").await;
        let published = world.publish_jobs(3).await;

        // Reads spend nothing, and go on; what they wake goes on waiting.
        world.wait_for_applied(unsettled).await;
        let long_due = "select count(*) from submission
            where state = 'waiting' and due_at < now() - interval '1 second'";
        world.wait_for("a job long due", async || (world.count(long_due).await == 1).then_some(())).await;
        assert_eq!(world.count_patches(behind).await, 0);
        assert_eq!(world.count_ready(JOBS).await, 3);
        assert_eq!(world.count_consumers().await, 0);
        let paused = "select count(*) from worker where paused_for = '{operator}'";
        world.wait_for("three that say so", async || (world.count(paused).await == 3).then_some(())).await;
        assert_eq!(world.ask(&["report"]).await.0["pause"]["by"], "ana");
        let text = world.say(&["report"]).await;
        assert!(text.starts_with("PAUSED by ana") && text.contains("paused: operator"), "{text}");

        let said = world.say(&["resume", "--by", "ben", "--note", "it is over"]).await;
        assert!(said.contains("resumed") && said.contains("paused by ana"), "{said}");
        world.wait_for_state(behind, &["accepted"]).await;
        world.wait_for_all_accepted(&published).await;
        for worker in workers.iter().chain([&late]) {
            world.wait_for_log(worker, "intake resumed").await;
            assert_eq!(worker.log().matches("intake paused").count(), 1, "said once");
        }
        assert_eq!(world.ask(&["report"]).await.0["pause"], Value::Null);
        assert_eq!(world.say(&["resume"]).await, "was not paused\n");
        let history = "select count(*) from intervention where action in ('pause', 'resume')";
        assert_eq!(world.count(history).await, 2, "nothing that was done is forgotten");
    });
}

/// The newest of both counts, and is numbered before it is committed.
#[test]
fn no_pause_and_no_resumption_passes_another_that_is_not_committed_yet() {
    world(async |world| {
        for command in ["pause", "resume"] {
            let mut other = world.pool.begin().await.expect("a transaction");
            sqlx::raw_sql(
                "select pg_advisory_xact_lock(hashtext('kyc-worker pause'));
                insert into intervention (action, by, note) values ('pause', 'carl', 'the third line is down')",
            )
            .execute(&mut *other)
            .await
            .expect("it is written");
            let saying = tokio::spawn({
                let world = Arc::clone(&world);
                async move { world.say(&[command, "--by", "ana", "--note", "as agreed"]).await }
            });
            world
                .wait_for("a command that waits", async || (world.count_blocked().await == 1).then_some(()))
                .await;
            other.commit().await.expect("it is committed");
            let said = saying.await.expect("it ends");
            assert!(command == "pause" || said.contains("paused by carl"), "{said}");
        }
        assert_eq!(world.ask(&["report"]).await.0["pause"], Value::Null);
    });
}

#[test]
fn a_replica_is_seen_while_it_lives_and_gone_when_it_stops() {
    world(async |world| {
        world.declare_topology().await;
        let mut stopped = start(&world, "stopped");
        let mut killed = start(&world, "killed");
        world
            .wait_for("two replicas that take jobs", async || {
                (world.count("select count(*) from worker where paused_for = '{}'").await == 2).then_some(())
            })
            .await;
        let seen = world.ask(&["report"]).await.0["workers"][1].clone();
        assert_eq!(seen["name"], "stopped");
        assert_eq!(seen["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!((&seen["is_alive"], &seen["paused_for"]), (&json!(true), &json!([])));

        // It survives the loss of its connections.
        world
            .count(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity
                where datname = current_database() and application_name = 'kyc-worker'",
            )
            .await;
        let lost_at: time::OffsetDateTime =
            sqlx::query_scalar("select now()").fetch_one(&world.pool).await.expect("the database answers");
        world
            .wait_for("both again", async || {
                let seen: i64 = sqlx::query_scalar("select count(*) from worker where seen_at > $1")
                    .bind(lost_at)
                    .fetch_one(&world.pool)
                    .await
                    .expect("the database answers");
                (seen == 2).then_some(())
            })
            .await;

        killed.kill();
        stopped.stop().await;
        let left: Vec<String> =
            sqlx::query_scalar("select name from worker").fetch_all(&world.pool).await.expect("rows");
        assert_eq!(left, ["killed"]);

        // Dead long enough, it is forgotten by whoever works.
        world.tamper("update worker set seen_at = now() - interval '1 minute'").await;
        assert!(world.say(&["report"]).await.contains("DEAD"));
        world.tamper("update worker set seen_at = now() - interval '2 hours'").await;
        let _next = start(&world, "next");
        let names = "select count(*) from worker where name = 'killed'";
        world.wait_for("its row to go", async || (world.count(names).await == 0).then_some(())).await;
    });
}

/// RabbitMQ 3.10 crashes the channel where a consumer takes the tag of the one that was cancelled.
#[test]
fn each_consumer_has_a_tag_of_its_own() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = start(&world, "one");
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..3 {
            let tag = world
                .wait_for("a consumer with another tag", async || {
                    world.consumer_tags().await.into_iter().find(|tag| !seen.contains(tag))
                })
                .await;
            seen.insert(tag);
            world.say(&["pause", "--by", "ana", "--note", "again"]).await;
            world.wait_for_consumers(0).await;
            world.say(&["resume", "--by", "ana", "--note", "again"]).await;
            world.wait_for_consumers(1).await;
        }
    });
}

#[test]
fn a_replica_that_hears_nothing_at_its_start_takes_and_sends_nothing() {
    world(async |world| {
        world.declare_topology().await;
        let due = world.publish_job().await;
        let nowhere = [("DOLLARPE_BASE_URL", "http://127.0.0.1:1/cms/api/v1")];
        let mut before = world.start_worker_with(&nowhere);
        world.wait_for_state(due, &["waiting"]).await;
        before.stop().await;
        world.say(&["pause", "--by", "ana", "--note", "the database was restored"]).await;
        let queued = world.publish_jobs(5).await;

        let lock = world.lock_table("worker").await;
        let worker = start(&world, "unheard");
        world.wait_for_log(&worker, "no heartbeat was answered").await;
        world.wait_for_log(&worker, "the broker session is open").await;
        world.wait_for_logs(&worker, "\"no heartbeat", 3).await;
        assert_eq!((world.count_ready(JOBS).await, world.count_consumers().await), (5, 0));
        drop(lock);
        // Then it hears, and obeys.
        world.wait_for_log(&worker, "ana paused the work").await;
        let obeys = "select count(*) from worker where paused_for @> '{operator}'";
        world
            .wait_for("a replica that says so", async || (world.count(obeys).await == 1).then_some(()))
            .await;
        assert_eq!((world.count_ready(JOBS).await, world.oracle("patches").await.len()), (5, 0));

        world.say(&["resume", "--by", "ana", "--note", "it is checked"]).await;
        world.wait_for_all_accepted(&[&queued[..], &[due]].concat()).await;
    });
}

#[test]
fn a_replica_without_heartbeats_counts_as_paused_and_reads_go_on() {
    world(async |world| {
        world.declare_topology().await;
        let no = json!({ "kind": "respond", "status": 503, "body": "no" });
        world.add_rule(json!({ "match": { "method": "GET" }, "fault": { "answer": no } })).await;
        let crash = json!({ "kind": "respond", "status": 500, "body": "oops" });
        let unsettled = world.publish_broken_job(json!({ "answer": crash })).await;
        let worker = world.start_worker_with(&[("WORKER_NAME", "unheard"), ("READ_BACK_DEADLINE", "10m")]);
        world.wait_for_state(unsettled, &["unknown"]).await;
        let lock = world.lock_table("worker").await;
        world.wait_for_log(&worker, "no heartbeat was answered").await;
        world.wait_for_consumers(0).await;
        let queued = world.publish_jobs(3).await;
        // What was begun before is read: reads spend nothing.
        world.clear_rules().await;
        world.wait_for_applied(unsettled).await;
        assert_eq!((world.count_ready(JOBS).await, world.oracle("patches").await.len()), (3, 1));
        assert_eq!(worker.log().matches("intake paused").count(), 1, "said once");
        drop(lock);
        world.wait_for_all_accepted(&queued).await;
        assert_eq!(worker.log().matches("intake resumed").count(), 1, "said once");
    });
}
