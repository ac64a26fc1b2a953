//! Payloads are sealed with keys that change, go missing and come back, and are kept for
//! as long as they may be needed and no longer.

use serde_json::json;
use uuid::Uuid;

use crate::harness::{World, world};

const OLD: &str = "old:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const NEW: &str = "new:QEFCQ0RFRkdISUpLTE1OT1BRUlNUVVZXWFlaW1xdXl8=";

/// Parks a job under `key`, with nothing sent, and stops its worker.
async fn park_under(world: &World, key: &str) -> Uuid {
    let (relay, base_url) = world.relay_to_provider().await;
    relay.refuse().await;
    let mut worker = world.start_worker_with(&[
        ("PAYLOAD_KEY", key),
        ("DOLLARPE_BASE_URL", &base_url),
        ("BREAKER_FAILURES", "1000"),
        ("RETRY_DELAY_MIN", "1s"),
    ]);
    let job_id = world.publish_job().await;
    let job = world.wait_for_state(job_id, &["waiting"]).await;
    assert!(job.has_payload);
    worker.stop().await;
    job_id
}

/// The id of the key that a job's payload is sealed with.
async fn sealed_with(world: &World, job_id: Uuid) -> String {
    sqlx::query_scalar(
        "select convert_from(substring(sealed_payload from 3 for get_byte(sealed_payload, 1)), 'UTF8')
        from submission where job_id = $1",
    )
    .bind(job_id)
    .fetch_one(&world.pool)
    .await
    .expect("the database answers")
}

#[test]
fn jobs_parked_under_the_old_key_are_carried_on_after_a_rotation() {
    world(async |world| {
        world.declare_topology().await;
        let before = park_under(&world, OLD).await;
        assert_eq!(sealed_with(&world, before).await, "old");
        let both = format!("{NEW},{OLD}");
        let after = park_under(&world, &both).await;
        assert_eq!(sealed_with(&world, after).await, "new", "the first of the keys seals");

        let _worker = world.start_worker_with(&[("PAYLOAD_KEY", &both)]);
        world.check_nothing_lost_or_spent_twice(&[before, after]).await;
        assert_eq!(world.oracle("patches").await.len(), 2);
        assert_eq!(world.count("select count(*) from submission where sealed_payload is not null").await, 0);
    });
}

#[test]
fn a_job_whose_key_is_missing_waits_for_it_while_others_go_on() {
    world(async |world| {
        world.declare_topology().await;
        let sealed = park_under(&world, OLD).await;
        let tried = world.attempts(sealed).await.len();
        let mut without = world.start_worker_with(&[("PAYLOAD_KEY", NEW), ("RETRY_DELAY_MIN", "200ms")]);
        world.wait_for_log(&without, "PAYLOAD_KEY: cannot open a stored payload").await;
        assert!(without.log().contains("sealed with key old"), "{}", without.log());
        let others = world.publish_jobs(5).await;
        world.wait_for_all_accepted(&others).await;
        for _ in 0..3 {
            let due = "update submission set due_at = now() where job_id = $1";
            sqlx::query(due).bind(sealed).execute(&world.pool).await.expect("it is due");
            let waiting = "select count(*) from submission
                where reason_code = 'payload_unreadable' and due_at > now() + interval '30 s'";
            let is_put_off = async || (world.count(waiting).await == 1).then_some(());
            world.wait_for("the job to wait for its key", is_put_off).await;
        }
        without.stop().await;
        let told = without.log().matches("PAYLOAD_KEY: cannot open a stored payload").count();
        assert_eq!(told, 1, "a key that is missing is told once");
        assert_eq!(world.attempts(sealed).await.len(), tried, "no attempt was begun");
        let job = world.submission(sealed).await.expect("it is known");
        assert_eq!((job.state.as_str(), job.has_payload), ("waiting", true), "{job:?}");
        assert_eq!(world.count_patches(sealed).await, 0);

        let _with = world.start_worker_with(&[("PAYLOAD_KEY", &format!("{NEW},{OLD}"))]);
        world.wait_for_all_accepted(&[sealed]).await;
        assert_eq!(world.count_patches(sealed).await, 1);
    });
}

#[test]
fn a_payload_that_was_altered_is_sent_to_nobody() {
    world(async |world| {
        world.declare_topology().await;
        let [first, second] = [park_under(&world, OLD).await, park_under(&world, OLD).await];
        // One job's payload in the other's row.
        sqlx::query(
            "update submission set sealed_payload = (select sealed_payload from submission where job_id = $1)
            where job_id = $2",
        )
        .bind(first)
        .bind(second)
        .execute(&world.pool)
        .await
        .expect("the database does it");
        let worker = world.start_worker_with(&[("PAYLOAD_KEY", OLD)]);
        world.wait_for_all_accepted(&[first]).await;
        world.wait_for_log(&worker, "PAYLOAD_KEY: cannot open a stored payload").await;
        assert_eq!(world.count_patches(first).await, 1);
        assert_eq!(world.oracle("patches").await.len(), 1);
        assert_eq!(world.submission(second).await.expect("it is known").state, "waiting");
    });
}

#[test]
fn a_worker_with_another_fingerprint_key_does_not_start() {
    world(async |world| {
        world.declare_topology().await;
        let mut worker = world.start_worker();
        let known = world.publish_job().await;
        world.wait_for_all_accepted(&[known]).await;
        worker.stop().await;
        let waiting = world.publish_job().await;
        let another = [("FINGERPRINT_KEY", "QEFCQ0RFRkdISUpLTE1OT1BRUlNUVVZXWFlaW1xdXl8=")];
        let refused = async || {
            let run = world.run(&["run"], &another).await;
            let said = String::from_utf8(run.stderr).expect("text");
            assert_eq!(run.status.code(), Some(2), "{said}");
            assert!(said.contains("FINGERPRINT_KEY: is another than the one"), "{said}");
            assert_eq!(world.count("select count(*) from submission").await, 1, "nothing was written");
        };
        refused().await;
        let check = world.run(&["check"], &another).await;
        let said = String::from_utf8(check.stdout).expect("text");
        assert!(said.contains("FINGERPRINT_KEY is another than the one"), "{said}");
        assert_eq!(check.status.code(), Some(1));

        // Histories of workers that kept no such row tell it as well.
        let forgotten = sqlx::query("delete from fingerprint_key").execute(&world.pool).await;
        assert_eq!(forgotten.expect("it is gone").rows_affected(), 1);
        refused().await;
        assert_eq!(world.count("select count(*) from fingerprint_key").await, 0);

        let _worker = world.start_worker();
        world.wait_for_all_accepted(&[waiting]).await;
        let check = world.say(&["check"]).await;
        assert!(check.contains("FINGERPRINT_KEY is the one"), "{check}");
    });
}

#[test]
fn payloads_are_removed_after_their_retention_and_not_before() {
    world(async |world| {
        world.declare_topology().await;
        let (relay, base_url) = world.relay_to_provider().await;
        let settings = [
            ("DOLLARPE_BASE_URL", base_url.as_str()),
            ("RETRY_MAX_ATTEMPTS", "1"),
            ("BREAKER_FAILURES", "1000"),
            // Sending again would take the only one: a person decides.
            ("CUSTOMER_UPDATE_LIMIT", "1"),
        ];
        let mut worker = world.start_worker_with(&settings);
        let reviewed = [world.publish_job().await, world.publish_job().await];
        for job_id in reviewed {
            world.break_job(job_id, json!({ "apply": "never", "answer": { "kind": "reset" } })).await;
        }
        for job_id in reviewed {
            world.wait_for_state(job_id, &["needs_review"]).await;
        }
        relay.refuse().await;
        relay.cut();
        let exhausted = [world.publish_job().await, world.publish_job().await];
        for job_id in exhausted {
            world.wait_for_state(job_id, &["exhausted"]).await;
        }
        worker.stop().await;
        let mut worker = world.start_worker_with(&[("DOLLARPE_BASE_URL", &base_url)]);
        let waiting = world.publish_job().await;
        world.wait_for_state(waiting, &["waiting"]).await;
        worker.stop().await;

        // The first of each is older than the retention, and so is what is in motion.
        world.is_tampered_with();
        let aged = sqlx::query(
            "update submission
            set ended_at = ended_at - interval '2 hours', received_at = received_at - interval '2 hours'
            where job_id = any($1)",
        )
        .bind([reviewed[0], exhausted[0], waiting])
        .execute(&world.pool)
        .await
        .expect("the database does it");
        assert_eq!(aged.rows_affected(), 3);
        let sweeping =
            world.start_worker_with(&[("DOLLARPE_BASE_URL", &base_url), ("PAYLOAD_RETENTION", "1h")]);
        world.wait_for_log(&sweeping, "removed payloads older than PAYLOAD_RETENTION").await;
        for (job_id, keeps) in [
            (reviewed[0], false),
            (exhausted[0], false),
            (reviewed[1], true),
            (exhausted[1], true),
            (waiting, true),
        ] {
            let job = world.submission(job_id).await.expect("it is known");
            assert_eq!(job.has_payload, keeps, "{job:?}");
        }
        world.wait_for_state(waiting, &["waiting"]).await;
        assert_eq!(world.oracle("updates").await.len(), 0);
    });
}

#[test]
fn a_worker_without_its_keys_does_not_start_and_names_them() {
    world(async |world| {
        for (setting, values) in [
            ("PAYLOAD_KEY", &["", "short", "old:AAEC", "a:b,c", &format!("{OLD},{OLD}")][..]),
            ("FINGERPRINT_KEY", &["", "short"]),
        ] {
            for value in values {
                let run = world.run(&["run"], &[(setting, value)]).await;
                let said = String::from_utf8(run.stderr).expect("text");
                assert_eq!(run.status.code(), Some(2), "{setting}={value}: {said}");
                assert!(said.contains(setting), "{said}");
                assert!(value.is_empty() || !said.contains(value), "a key shows: {said}");
            }
            let mut command = world.command();
            command.arg("run").env_remove(setting);
            let mut unset = world.spawn(command);
            assert_eq!(unset.exit().await.code(), Some(2));
            assert!(unset.log().contains(setting), "{}", unset.log());
        }
        assert_eq!(world.oracle("patches").await.len(), 0);
    });
}
