//! A database that is away, full, read-only, slow or silent costs time and nothing else:
//! nothing is sent that is not written down first, and no answer is thrown away.

use std::time::Duration;

use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use tokio::time::sleep;
use uuid::Uuid;

use crate::harness::{JOBS, NARROW, WorkerProcess, World, world, world_on};
use crate::own_services::{Disk, OwnPostgres, own_postgres};
use crate::relay::Relay;

const PAUSED: &str = "intake paused";

const RESUMED: &str = "intake resumed";

const MEMORY_MAX_KIB: u64 = 150 * 1024;

/// The database went away: the worker says so once, and its backlog stays in the queue.
async fn wait_for_pause(world: &World, worker: &WorkerProcess) {
    world.wait_for_log(worker, PAUSED).await;
    assert!(world.count_ready(JOBS).await > 50, "a backlog stays");
}

/// The database is back: everything goes on by itself, and nothing was sent twice.
async fn check_recovery(world: &World, worker: &WorkerProcess, jobs: &[Uuid]) {
    world.wait_for_log(worker, RESUMED).await;
    world.check_nothing_lost_or_spent_twice(jobs).await;
    world.wait_for_no_delivery().await;
    assert_eq!(world.count("select count(*) from dead_lettered_delivery").await, 0);
    let log = worker.log();
    assert_eq!((log.matches(PAUSED).count(), log.matches(RESUMED).count()), (1, 1), "told once each");
    assert!(worker.memory_max_kib() < MEMORY_MAX_KIB, "{} KiB", worker.memory_max_kib());
}

/// Every job stays in its queue meanwhile.
#[test]
fn a_database_that_is_down_at_start_is_waited_for() {
    world(async |world| {
        world.declare_topology().await;
        let jobs = world.publish_jobs(20).await;
        let (relay, database_url) = world.relay_to_database().await;
        relay.refuse().await;
        let worker = world.start_worker_with(&[("DATABASE_URL", &database_url)]);
        let waiting = "waiting for the database";
        world.wait_for_log(&worker, waiting).await;
        assert!(worker.log().contains("DATABASE_URL: cannot use Postgres at 127.0.0.1"), "{}", worker.log());
        assert_eq!(world.count_ready(JOBS).await, 20);
        assert_eq!(world.oracle("patches").await.len(), 0);
        relay.accept().await;
        world.check_nothing_lost_or_spent_twice(&jobs).await;
        assert_eq!(world.oracle("patches").await.len(), 20);
        assert_eq!(worker.log().matches(waiting).count(), 1, "it is told once");
    });
}

#[test]
fn nothing_is_sent_while_the_database_is_away() {
    world(async |world| {
        world.declare_topology().await;
        let (relay, database_url) = world.relay_to_database().await;
        let mut worker = world.start_worker_with(&[("DATABASE_URL", &database_url)]);
        world.wait_for_consumers(1).await;
        relay.refuse().await;
        relay.reset();
        let jobs = world.publish_jobs(20).await;
        world.wait_for_log(&worker, PAUSED).await;
        assert!(world.oracle("patches").await.is_empty(), "no PATCH without a committed claim");
        relay.accept().await;
        world.check_nothing_lost_or_spent_twice(&jobs).await;
        assert_eq!(world.oracle("patches").await.len(), jobs.len());
        world.check_all_acked([&mut worker]).await;
    });
}

#[test]
fn a_database_that_refuses_connections_costs_time_only() {
    world(async |world| {
        let (relay, database_url) = world.relay_to_database().await;
        let (worker, jobs) = world.start_at_work(&[("DATABASE_URL", &database_url)]).await;
        relay.refuse().await;
        relay.cut();
        wait_for_pause(&world, &worker).await;
        // What was in flight is answered, and held until it can be written down.
        let patches = world.oracle("patches").await.len();
        world.wait_for_logs(&worker, "submission attempted", patches).await;
        assert_eq!(world.oracle("patches").await.len(), patches, "nothing is sent meanwhile");
        world.check_every_patch_has_its_attempt().await;
        relay.accept().await;
        check_recovery(&world, &worker, &jobs).await;
        assert_eq!(world.oracle("patches").await.len(), jobs.len());
    });
}

#[test]
fn connections_that_are_reset_or_cut_again_and_again_are_made_again() {
    world(async |world| {
        let (relay, database_url) = world.relay_to_database().await;
        let (worker, jobs) = world.start_at_work(&[("DATABASE_URL", &database_url)]).await;
        for accepted in [40, 80, 120, 160] {
            if accepted % 80 == 0 {
                relay.cut()
            } else {
                relay.reset()
            }
            world.wait_for_accepted(accepted).await;
        }
        world.check_nothing_lost_or_spent_twice(&jobs).await;
        assert_eq!(world.oracle("patches").await.len(), jobs.len());
        world.wait_for_no_delivery().await;
        assert!(worker.memory_max_kib() < MEMORY_MAX_KIB);
    });
}

/// Forgets every connection of a worker that is at work: not a byte and not a word; new ones are
/// as good as ever.
async fn forget_connections(world: &World, sslmode: &str) {
    let (relay, database_url) = world.relay_to_database().await;
    let mut database_url: url::Url = database_url.parse().expect("a URL");
    database_url.set_query(Some(&format!("sslmode={sslmode}")));
    // A result waits for 15 s until the database is given up, and its claim for longer.
    let settings =
        [("DATABASE_URL", database_url.as_str()), ("DATABASE_CONNECTIONS", "3"), ("CLAIM_LEASE", "19s")];
    let (worker, jobs) = world.start_at_work(&settings).await;
    // Each time in the middle of something else: a connection that was just being given back once kept
    // its place in the pool.
    for accepted in [60, 110, 160] {
        relay.freeze();
        world.wait_for_accepted(accepted).await;
    }
    world.check_nothing_lost_or_spent_twice(&jobs).await;
    world.wait_for_no_delivery().await;
    assert!(worker.memory_max_kib() < MEMORY_MAX_KIB);
}

#[test]
fn a_network_that_forgets_connections_to_the_database_is_noticed() {
    world(async |world| forget_connections(&world, "disable").await);
}

#[test]
fn a_network_that_forgets_connections_under_tls_is_noticed_as_soon() {
    with_cluster(&["ssl=on"], async |world, _| forget_connections(world, "require").await);
}

#[test]
fn a_database_that_says_nothing_holds_back_the_intake_until_it_speaks() {
    world(async |world| {
        let (relay, database_url) = world.relay_to_database().await;
        let (worker, jobs) = world.start_at_work(&[("DATABASE_URL", &database_url)]).await;
        relay.stall_to_client();
        relay.stall_to_target();
        wait_for_pause(&world, &worker).await;
        world.check_every_patch_has_its_attempt().await;
        relay.resume();
        // How often it is told is a matter of which statement was under way.
        world.wait_for_log(&worker, RESUMED).await;
        world.check_nothing_lost_or_spent_twice(&jobs).await;
        world.wait_for_no_delivery().await;
        assert!(worker.memory_max_kib() < MEMORY_MAX_KIB);
    });
}

/// Does `test` with a worker at work on a cluster that may be stopped.
fn with_cluster(settings: &[&str], test: impl AsyncFnOnce(&World, &mut OwnPostgres)) {
    let mut cluster = own_postgres(Disk::Ample, settings);
    let url = cluster.url();
    world_on(&url, async |world| test(&world, &mut cluster).await);
}

#[test]
fn a_database_that_stops_or_crashes_costs_time_only() {
    with_cluster(&[], async |world, cluster| {
        let (worker, jobs) = world.start_at_work(&[]).await;
        for (times, crashes) in [(1, true), (2, false)] {
            let accepted = world.count_accepted().await;
            if crashes {
                cluster.crash().expect("it does");
            } else {
                cluster.stop().expect("it does");
            }
            world.wait_for_logs(&worker, PAUSED, times).await;
            let patches = world.oracle("patches").await.len();
            world.wait_for_logs(&worker, "submission attempted", patches).await;
            assert_eq!(world.oracle("patches").await.len(), patches, "nothing is sent meanwhile");
            cluster.start_again().expect("it does");
            world.check_every_patch_has_its_attempt().await;
            world.wait_for_logs(&worker, RESUMED, times).await;
            world.wait_for_accepted(accepted + 20).await;
        }
        world.check_nothing_lost_or_spent_twice(&jobs).await;
        world.wait_for_no_delivery().await;
        let log = worker.log();
        let (paused, resumed) = (log.matches(PAUSED).count(), log.matches(RESUMED).count());
        // A database that is only just coming back may fail a statement or two once more.
        assert!(paused == resumed && (2..=4).contains(&paused), "{paused} pauses, {resumed} resumptions");
    });
}

#[test]
fn a_database_without_a_connection_to_spare_costs_time_only() {
    with_cluster(&["max_connections=12", "superuser_reserved_connections=0"], async |world, cluster| {
        let (relay, database_url) = world.relay_to_database().await;
        let (worker, jobs) = world.start_at_work(&[("DATABASE_URL", &database_url)]).await;
        relay.refuse().await;
        relay.cut();
        let mut holders = Vec::new();
        world
            .wait_for("a cluster that is full", async || {
                let theirs = "select count(*) from pg_stat_activity where application_name = 'kyc-worker'";
                (world.count(theirs).await == 0).then_some(())
            })
            .await;
        while let Ok(holder) = PgConnection::connect(&cluster.url()).await {
            holders.push(holder);
        }
        assert!(!holders.is_empty());
        relay.accept().await;
        wait_for_pause(world, &worker).await;
        let attempts = world.count("select count(*) from attempt").await;
        world.check_every_patch_has_its_attempt().await;
        assert_eq!(world.count("select count(*) from attempt").await, attempts);
        for holder in holders {
            holder.close().await.expect("it can be closed");
        }
        check_recovery(world, &worker, &jobs).await;
    });
}

#[test]
fn a_database_whose_disk_is_full_costs_time_only() {
    let cluster = own_postgres(Disk::Small(96), &["autovacuum=off", "shared_buffers=16MB"]);
    let filler = cluster.path_on_disk("filler");
    world_on(&cluster.url(), async |world| {
        let (worker, mut jobs) = world.start_at_work(&[]).await;
        let fill = format!("copy (select repeat('x', 8000) from generate_series(1, 20000)) to '{filler}'");
        let full = sqlx::query(&fill).execute(&world.pool).await;
        let full = full.expect_err("the disk is small").to_string();
        assert!(full.contains("No space left"), "{full}");
        // Filling it took a while.
        jobs.extend(world.publish_jobs(100).await);
        wait_for_pause(&world, &worker).await;
        assert!(worker.log().contains("No space left"), "{}", worker.log());
        world.check_every_patch_has_its_attempt().await;
        let free = format!("copy (select) to '{filler}'");
        sqlx::query(&free).execute(&world.pool).await.expect("the disk has room again");
        world.wait_for_log(&worker, RESUMED).await;
        world.check_nothing_lost_or_spent_twice(&jobs).await;
        world.wait_for_no_delivery().await;
    });
}

async fn set_read_only(world: &World, is_read_only: bool) {
    let set = format!(
        "do $$ begin execute format('alter database %I set default_transaction_read_only = %s',
            current_database(), '{}'); end $$",
        if is_read_only { "on" } else { "off" }
    );
    let writable = "set default_transaction_read_only = off";
    let mut connection = world.pool.acquire().await.expect("a connection");
    sqlx::query(writable).execute(&mut *connection).await.expect("a setting");
    sqlx::query(&set).execute(&mut *connection).await.expect("a setting");
}

async fn end_connections(world: &World) {
    world
        .count(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity
            where datname = current_database() and application_name = 'kyc-worker'",
        )
        .await;
}

#[test]
fn a_database_that_was_read_only_for_a_while_is_connected_to_afresh() {
    world(async |world| {
        let (worker, jobs) = world.start_at_work(&[]).await;
        set_read_only(&world, true).await;
        end_connections(&world).await;
        wait_for_pause(&world, &worker).await;
        world.wait_for_log(&worker, "read-only").await;
        let patches = world.oracle("patches").await.len();
        world.wait_for_logs(&worker, "submission attempted", patches).await;
        world.check_every_patch_has_its_attempt().await;
        assert_eq!(world.oracle("patches").await.len(), patches, "nothing is sent meanwhile");
        // It can be read all the while, and that is no sign that it can be written.
        sleep(Duration::from_secs(4)).await;
        assert!(!worker.log().contains(RESUMED), "{}", worker.log());
        // The connections that the worker has by now are read-only for as long as they last.
        set_read_only(&world, false).await;
        world.wait_for_log(&worker, RESUMED).await;
        world.check_nothing_lost_or_spent_twice(&jobs).await;
        assert_eq!(world.oracle("patches").await.len(), jobs.len());
    });
}

#[test]
fn a_table_that_is_locked_pauses_the_intake_until_it_is_free() {
    world(async |world| {
        let (worker, jobs) = world.start_at_work(&[]).await;
        let lock = world.lock_table("submission").await;
        wait_for_pause(&world, &worker).await;
        assert!(world.count_blocked().await <= 5, "no more statements wait than there are connections");
        world.check_every_patch_has_its_attempt().await;
        drop(lock);
        check_recovery(&world, &worker, &jobs).await;
    });
}

#[test]
fn a_row_that_is_locked_holds_up_nothing_for_good() {
    world(async |world| {
        world.declare_topology().await;
        let worker = world.start_worker_with(&NARROW);
        let slow = Uuid::new_v4();
        world.break_job_once(slow, json!({ "delay_after_ms": 1500 })).await;
        world.publish_job_named(Uuid::new_v4(), slow).await;
        world.wait_for_state(slow, &["submitting"]).await;
        let mut lock = world.pool.begin().await.expect("a transaction");
        sqlx::query("select from submission where job_id = $1 for update")
            .bind(slow)
            .execute(&mut *lock)
            .await
            .expect("the lock");
        // Its result waits for the row, and the others do not wait for it.
        world.wait_for_log(&worker, "lock timeout").await;
        let others = world.publish_jobs(20).await;
        world.wait_for_all_accepted(&others).await;
        lock.rollback().await.expect("it ends");
        world.check_nothing_lost_or_spent_twice(&[&others[..], &[slow]].concat()).await;
        assert_eq!(world.count_patches(slow).await, 1);
        world.wait_for_no_delivery().await;
    });
}

/// Publishes a job and cuts its worker off from the database while the provider works on it.
async fn lose_database_in_request(world: &World, relay: &Relay, worker: &WorkerProcess) -> Uuid {
    let job_id = Uuid::new_v4();
    world.break_job_once(job_id, json!({ "delay_after_ms": 1500 })).await;
    world.publish_job_named(Uuid::new_v4(), job_id).await;
    world
        .wait_for("the request at the provider", async || {
            (world.count_patches(job_id).await == 1).then_some(())
        })
        .await;
    relay.refuse().await;
    relay.cut();
    world.wait_for_log(worker, "submission attempted").await;
    job_id
}

#[test]
fn an_answer_that_cannot_be_written_down_is_held_until_it_can() {
    world(async |world| {
        world.declare_topology().await;
        let (relay, database_url) = world.relay_to_database().await;
        // Times as in production, so that nobody rescues what the worker holds.
        let patient = [
            ("DATABASE_URL", database_url.as_str()),
            ("CLAIM_LEASE", "40s"),
            ("READ_BACK_WINDOW", "60s"),
            ("READ_BACK_DEADLINE", "2h"),
        ];
        let worker = world.start_worker_with(&patient);
        let job_id = lose_database_in_request(&world, &relay, &worker).await;
        world.wait_for_log(&worker, PAUSED).await;
        assert_eq!(world.submission(job_id).await.expect("it is known").state, "submitting");
        relay.accept().await;
        let job = world.wait_for_state(job_id, &["accepted"]).await;
        assert_eq!((job.evidence.as_deref(), job.attempts), (Some("response"), 1));
        world.check_nothing_lost_or_spent_twice(&[job_id]).await;
        assert_eq!(world.count_patches(job_id).await, 1);
        world.wait_for_no_delivery().await;
    });
}

#[test]
fn an_answer_held_past_the_lease_is_added_as_a_late_verdict() {
    world(async |world| {
        world.declare_topology().await;
        let (relay, database_url) = world.relay_to_database().await;
        let cut_off = world.start_worker_with(&[("DATABASE_URL", &database_url), ("WORKER_NAME", "cut off")]);
        let job_id = lose_database_in_request(&world, &relay, &cut_off).await;
        let _other = world.start_worker();
        world.wait_for_applied(job_id).await;
        relay.accept().await;
        world
            .wait_for("the late verdict", async || {
                let late =
                    "select count(*) from attempt where late_verdict = 'accepted' and worker = 'cut off'";
                (world.count(late).await == 1).then_some(())
            })
            .await;
        world.wait_for_log(&cut_off, "the claim was lost").await;
        assert_eq!(world.wait_for_applied(job_id).await.attempts, 1);
        world.check_nothing_lost_or_spent_twice(&[job_id]).await;
        assert_eq!(world.count_patches(job_id).await, 1);
    });
}

#[test]
fn a_worker_without_its_database_stops_when_told() {
    world(async |world| {
        let (relay, database_url) = world.relay_to_database().await;
        let mut waiting = {
            relay.refuse().await;
            world.start_worker_with(&[("DATABASE_URL", &database_url)])
        };
        world.wait_for_log(&waiting, "waiting for the database").await;
        waiting.stop().await;
        relay.accept().await;
        let (mut worker, jobs) = world.start_at_work(&[("DATABASE_URL", &database_url)]).await;
        relay.refuse().await;
        relay.cut();
        world.wait_for_log(&worker, PAUSED).await;
        worker.stop().await;
        let _next = world.start_worker_with(&NARROW);
        world.wait_for_all_accepted(&jobs).await;
        world.check_every_patch_has_its_attempt().await;
        world.wait_for_no_delivery().await;
    });
}
