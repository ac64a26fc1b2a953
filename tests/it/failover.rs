//! A standby takes the database's place. One that had every commit costs time only. One that had not is
//! told by the replicas what it lost; they wait for each other, and what nobody can write again is a
//! person's.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, Executor as _, PgConnection};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::harness::{NARROW, WorkerProcess, World, world_on};
use crate::own_services::{Disk, OwnPostgres, own_postgres, own_standby};

const COMPARED: &str = "what the database has was compared with what this replica remembers";

const WRITTEN_AGAIN: &str = "this replica wrote them again";

/// A primary with its standby, and the setting that names both.
struct Pair {
    primary: OwnPostgres,
    standby: OwnPostgres,
}

impl Pair {
    fn standby_url(&self, world: &World) -> String {
        self.standby.url_of(world.database_name())
    }

    fn url(&self, world: &World) -> String {
        let database = world.database_name();
        let (first, second) = (self.primary.place(), self.standby.place());
        format!("postgres://postgres@{first},{second}/{database}?target_session_attrs=read-write")
    }

    /// The standby receives nothing more, as when the network between the two is slow.
    async fn hold_back(&self, world: &World) {
        set(&self.standby, "alter system set primary_conninfo = ''").await;
        let receivers = "select count(*) from pg_stat_replication";
        let is_alone = async || (world.count(receivers).await == 0).then_some(());
        world.wait_for("the standby to receive nothing more", is_alone).await;
    }

    /// The primary is gone for good, and the standby takes its place.
    async fn fail_over(&mut self, world: &World) {
        // It may be gone already.
        self.primary.crash().expect("it does");
        self.standby.promote().expect("it does");
        let url: url::Url = self.standby.url().parse().expect("a URL");
        let options = world.pool.connect_options().as_ref().clone();
        let options: PgConnectOptions = options.port(url.port().expect("a port"));
        world.pool.set_connect_options(options);
    }
}

/// Sets something for all of a server.
async fn set(server: &OwnPostgres, setting: &'static str) {
    let mut connection = PgConnection::connect(&server.url()).await.expect("it answers");
    connection.execute(setting).await.expect("it is set");
    connection.execute("select pg_reload_conf()").await.expect("it is read");
}

/// Does `test` on a primary whose standby is ready.
fn with_standby(test: impl AsyncFnOnce(Arc<World>, Pair)) {
    let primary = own_postgres(Disk::Ample, &[]);
    let standby = own_standby(&primary);
    let url = primary.url();
    world_on(&url, async |world| test(world, Pair { primary, standby }).await);
}

/// Two replicas in the middle of three hundred jobs.
async fn start_at_work(world: &World, url: &str) -> ([WorkerProcess; 2], Vec<(Uuid, Uuid)>) {
    world.declare_topology().await;
    world.set_provider(json!({ "latency_ms": 20 })).await;
    let jobs: Vec<_> = (0..300).map(|_| (Uuid::new_v4(), Uuid::new_v4())).collect();
    publish(world, &jobs).await;
    let start = |name| {
        let settings = [
            ("DATABASE_URL", url),
            ("WORKER_NAME", name),
            // As long is a replica waited for that was stopped for a while.
            ("CLAIM_LEASE", "19s"),
            ("READ_BACK_WINDOW", "45s"),
            // One that is told to stop waits for the standby, however long that takes here.
            ("SHUTDOWN_GRACE", "2m"),
        ];
        world.start_worker_with(&[&NARROW[..], &settings].concat())
    };
    let workers = ["worker-1", "worker-2"].map(start);
    world.wait_for_accepted(20).await;
    (workers, jobs)
}

async fn publish(world: &World, jobs: &[(Uuid, Uuid)]) {
    for (customer_id, job_id) in jobs {
        world.publish_job_named(*customer_id, *job_id).await;
    }
}

/// Nothing was lost and nothing sent twice, and nobody had to act.
async fn check_books(world: &World, jobs: &[(Uuid, Uuid)]) {
    let jobs: Vec<Uuid> = jobs.iter().map(|(_, job_id)| *job_id).collect();
    world.check_nothing_lost_or_spent_twice(&jobs).await;
    world.wait_for_no_delivery().await;
    assert_eq!(world.oracle("patches").await.len(), jobs.len(), "each was sent once");
    assert_eq!(world.count("select count(*) from intervention").await, 0);
    world.check_histories().await;
}

#[test]
fn a_standby_that_had_every_commit_takes_over() {
    with_standby(async |world, mut pair| {
        set(&pair.primary, "alter system set synchronous_standby_names = '*'").await;
        let (workers, jobs) = start_at_work(&world, &pair.url(&world)).await;
        pair.fail_over(&world).await;
        check_books(&world, &jobs).await;
        for worker in &workers {
            world.wait_for_log(worker, COMPARED).await;
        }
        assert_eq!(world.count("select count(*) from lost_commit").await, 0);
    });
}

#[test]
fn what_a_standby_had_not_received_is_written_again() {
    with_standby(async |world, mut pair| {
        // Some take several attempts, now of the one replica and now of the other.
        let no = json!({ "kind": "respond", "status": 429, "headers": { "retry-after": "1" } });
        let rule = json!({
            "match": { "method": "PATCH", "share": 0.1 }, "fault": { "apply": "never", "answer": no },
        });
        world.add_rule(rule).await;
        let (workers, jobs) = start_at_work(&world, &pair.url(&world)).await;
        // Invalid deliveries came under the same ids once, and are archived.
        sqlx::query(
            "insert into archived_job (job_id, state, holds_id, ended_at, deliveries, file)
            select job_id, 'invalid', false, now(), 1, 'a file' from unnest($1::uuid[]) as ids (job_id)",
        )
        .bind(jobs.iter().map(|(_, job_id)| *job_id).collect::<Vec<_>>())
        .execute(&world.pool)
        .await
        .expect("the rows are there");
        pair.hold_back(&world).await;
        world.wait_for_accepted(world.count_accepted().await + 100).await;
        let ends = async || -> BTreeMap<Uuid, OffsetDateTime> {
            sqlx::query_as::<_, (Uuid, OffsetDateTime)>(
                "select job_id, ended_at from submission where state = 'accepted'",
            )
            .fetch_all(&world.pool)
            .await
            .expect("the database answers")
            .into_iter()
            .collect()
        };
        let ended = ends().await;
        pair.fail_over(&world).await;
        // Upstream publishes everything again: also what the new primary has never heard of.
        publish(&world, &jobs).await;
        let ids: Vec<Uuid> = jobs.iter().map(|(_, job_id)| *job_id).collect();
        world.check_nothing_lost_or_spent_twice(&ids).await;
        world.wait_for_no_delivery().await;
        assert_eq!(world.count("select count(*) from intervention").await, 0);
        world.check_histories().await;
        let logs = workers.each_ref().map(WorkerProcess::log).concat();
        assert!(logs.contains(WRITTEN_AGAIN), "{logs}");
        assert!(world.count("select count(*) from lost_commit where is_restored").await >= 100);
        assert_eq!(world.count("select count(*) from lost_commit where not is_restored").await, 0);
        let ends = ends().await;
        assert!(ended.iter().all(|(job_id, at)| ends[job_id] == *at), "each ended when it had ended");
    });
}

/// The other one may have sent what the new primary has never heard of.
#[test]
fn a_replica_that_does_not_answer_is_waited_for() {
    with_standby(async |world, mut pair| {
        let (workers, jobs) = start_at_work(&world, &pair.url(&world)).await;
        let [first, second] = &workers;
        pair.hold_back(&world).await;
        world.wait_for_accepted(world.count_accepted().await + 60).await;
        second.signal("STOP");
        pair.fail_over(&world).await;
        world.wait_for_log(first, "waits until the others have compared").await;
        publish(&world, &jobs).await;
        let patches = world.oracle("patches").await.len();
        assert!(!first.log().contains(COMPARED), "{}", first.log());
        second.signal("CONT");
        check_books(&world, &jobs).await;
        assert!(patches < jobs.len(), "some were left to do");
    });
}

/// It finds a standby, and nobody who could tell it what is missing there.
#[test]
fn a_replica_that_starts_before_the_standby_is_promoted_waits() {
    with_standby(async |world, mut pair| {
        let (workers, jobs) = start_at_work(&world, &pair.url(&world)).await;
        pair.hold_back(&world).await;
        world.wait_for_accepted(world.count_accepted().await + 60).await;
        workers.iter().for_each(|worker| worker.signal("STOP"));
        pair.primary.crash().expect("it does");
        let settings =
            [("WORKER_NAME", "worker-3"), ("DATABASE_URL", &pair.url(&world)), ("CLAIM_LEASE", "11s")];
        let third = world.start_worker_with(&[&NARROW[..], &settings].concat());
        world.wait_for_log(&third, "is a standby, which takes no writes").await;
        pair.fail_over(&world).await;
        publish(&world, &jobs).await;
        world.wait_for_log(&third, "waits until the others have compared").await;
        workers.iter().for_each(|worker| worker.signal("CONT"));
        check_books(&world, &jobs).await;
    });
}

#[test]
fn a_replica_that_is_stopped_meanwhile_says_first_what_it_remembers() {
    with_standby(async |world, mut pair| {
        let (mut workers, jobs) = start_at_work(&world, &pair.url(&world)).await;
        pair.hold_back(&world).await;
        world.wait_for_accepted(world.count_accepted().await + 60).await;
        pair.primary.crash().expect("it does");
        for worker in &workers {
            world.wait_for_log(worker, "intake paused").await;
        }
        for worker in &workers {
            worker.signal("TERM");
        }
        pair.fail_over(&world).await;
        for worker in &mut workers {
            assert!(worker.exit().await.success());
            world.wait_for_log(worker, COMPARED).await;
        }
        assert!(world.count("select count(*) from lost_commit where is_restored").await >= 60);
        let settings = [("WORKER_NAME", "worker-3"), ("DATABASE_URL", &pair.url(&world))];
        let _third = world.start_worker_with(&settings);
        publish(&world, &jobs).await;
        check_books(&world, &jobs).await;
    });
}

/// As a disk that said "written" too early, or a snapshot of it: no other timeline tells of it.
#[test]
fn a_server_that_comes_back_with_less_is_noticed() {
    let mut cluster = own_postgres(Disk::Ample, &[]);
    let url = cluster.url();
    world_on(&url, async |world| {
        let url = world.database_url().to_owned();
        let (workers, jobs) = start_at_work(&world, &url).await;
        cluster.stop().expect("it does");
        cluster.keep().expect("it is copied");
        cluster.start_again().expect("it does");
        world.wait_for_accepted(world.count_accepted().await + 60).await;
        workers[1].signal("STOP");
        cluster.crash().expect("it does");
        cluster.put_back().expect("it is copied");
        cluster.start_again().expect("it does");
        publish(&world, &jobs).await;
        world.wait_for_log(&workers[0], "waits until the others have compared").await;
        workers[1].signal("CONT");
        check_books(&world, &jobs).await;
        assert!(world.count("select count(*) from lost_commit where is_restored").await >= 60);
    });
}

/// A person looks at what can neither be known nor written, and the work waits for them.
#[test]
fn what_cannot_be_written_again_is_named_and_the_work_pauses() {
    with_standby(async |world, mut pair| {
        let (workers, jobs) = start_at_work(&world, &pair.url(&world)).await;
        pair.hold_back(&world).await;
        let known: Vec<Uuid> = sqlx::query_scalar("select job_id from submission")
            .fetch_all(&world.pool)
            .await
            .expect("the database answers");
        world.wait_for_accepted(world.count_accepted().await + 60).await;
        let accepted: Vec<Uuid> =
            sqlx::query_scalar("select job_id from submission where state = 'accepted'")
                .fetch_all(&world.pool)
                .await
                .expect("the database answers");
        let lost = *accepted.iter().find(|job_id| !known.contains(job_id)).expect("one that is new");
        workers.iter().for_each(|worker| worker.signal("STOP"));
        pair.fail_over(&world).await;
        // Somebody else has ended it meanwhile.
        world.is_tampered_with();
        sqlx::query(
            "insert into submission (job_id, customer_id, state, reason_code, reason, received_at, ended_at)
            values ($1, $2, 'exhausted', 'expired', 'made by hand', now(), now())",
        )
        .bind(lost)
        .bind(Uuid::new_v4())
        .execute(&world.pool)
        .await
        .expect("the row is there");
        workers.iter().for_each(|worker| worker.signal("CONT"));
        let logs = || workers.each_ref().map(WorkerProcess::log).concat();
        let named = "lost commits in a failover that cannot be written again";
        world.wait_for("the replica to name it", async || logs().contains(named).then_some(())).await;
        world.wait_for("both to go on", async || (logs().matches(COMPARED).count() == 2).then_some(())).await;
        assert!(logs().contains(&lost.to_string()), "{}", logs());
        let url = pair.standby_url(&world);
        let report = world.run(&["report"], &[("DATABASE_URL", &url)]).await;
        let report = String::from_utf8_lossy(&report.stdout).into_owned();
        assert!(report.contains("PAUSED") && report.contains(&lost.to_string()), "{report}");
        let patches = world.oracle("patches").await.len();
        let resume =
            world.run(&["resume", "--by", "ana", "--note", "looked"], &[("DATABASE_URL", &url)]).await;
        assert!(resume.status.success(), "{}", String::from_utf8_lossy(&resume.stderr));
        let others: Vec<Uuid> = jobs.iter().map(|(_, job)| *job).filter(|job| *job != lost).collect();
        world.wait_for_all_accepted(&others).await;
        assert!(patches < jobs.len(), "the work was paused");
        assert_eq!(world.count_patches(lost).await, 1, "it is not sent again");
    });
}

/// Nobody is left to say what they had committed last.
#[test]
fn a_replica_that_starts_after_a_failover_says_whom_it_did_not_hear() {
    with_standby(async |world, mut pair| {
        let (mut workers, _) = start_at_work(&world, &pair.url(&world)).await;
        pair.fail_over(&world).await;
        workers.iter_mut().for_each(WorkerProcess::kill);
        let settings = [("WORKER_NAME", "worker-3"), ("DATABASE_URL", &pair.url(&world))];
        let third = world.start_worker_with(&settings);
        world.wait_for_log(&third, "did not say what they remember").await;
        assert!(third.log().contains("worker-1 (") && third.log().contains("worker-2 ("), "{}", third.log());
        world.wait_for_log(&third, "worker started").await;
    });
}
