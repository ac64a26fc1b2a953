//! What probes are told: a replica is alive while its loops move, whatever is away, and
//! ready while it takes jobs.

use tokio::net::TcpListener;

use crate::harness::{World, world};

const NAME: (&str, &str) = ("WORKER_NAME", "probed");

/// Asks a probe; returns its exit code and what it said.
async fn probe(world: &World, arguments: &[&str], settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = world.run(&[&["health"], arguments].concat(), settings).await;
    (output.status.code(), String::from_utf8(output.stdout).expect("UTF-8"))
}

/// Waits until a probe's exit code is `code`, and what it says holds `text`.
async fn says(world: &World, arguments: &[&str], settings: &[(&str, &str)], code: i32, text: &str) {
    world
        .wait_for(text, async || {
            let (found, said) = probe(world, arguments, settings).await;
            (found == Some(code) && said.contains(text)).then_some(())
        })
        .await;
}

/// It is ready only while it takes jobs.
#[test]
fn a_replica_without_its_services_is_alive_and_not_ready() {
    world(async |world| {
        world.declare_topology().await;
        says(&world, &[], &[NAME], 1, "no replica probed has written its row").await;
        let (broker, amqp_url) = world.relay_to_broker().await;
        let (database, database_url) = world.relay_to_database().await;
        let settings = [NAME, ("AMQP_URL", amqp_url.as_str()), ("DATABASE_URL", database_url.as_str())];
        let mut worker = world.start_worker_with(&settings);
        world.wait_for_consumers(1).await;
        says(&world, &["--ready"], &settings, 0, "replica probed is alive, jobs in flight: 0").await;
        says(&world, &["--ready", "--json"], &settings, 0, "\"is_healthy\": true").await;

        broker.refuse().await;
        broker.reset();
        says(&world, &["--ready"], &settings, 1, "takes no jobs: broker").await;
        says(&world, &[], &settings, 0, "replica probed is alive").await;
        broker.accept().await;
        says(&world, &["--ready"], &settings, 0, "replica probed is alive").await;

        database.refuse().await;
        database.reset();
        says(&world, &["--ready"], &settings, 1, "cannot be asked for").await;
        says(&world, &[], &settings, 0, "cannot be asked for").await;
        database.accept().await;
        says(&world, &["--ready"], &settings, 0, "replica probed is alive").await;
        worker.stop().await;
        says(&world, &[], &settings, 1, "no replica probed has written its row").await;
    });
}

#[test]
fn a_replica_that_hangs_is_told_from_one_that_works() {
    world(async |world| {
        world.declare_topology().await;
        // Without a name it is known by its host.
        let worker = world.start_worker();
        says(&world, &[], &[], 0, "is alive").await;
        worker.signal("STOP");
        says(&world, &[], &[], 1, "it hangs").await;
        worker.signal("CONT");
        says(&world, &[], &[], 0, "is alive").await;
    });
}

#[test]
fn a_replica_that_hangs_does_not_hide_behind_another_of_its_name() {
    world(async |world| {
        world.declare_topology().await;
        let (mut one, _two) = (world.start_worker_with(&[NAME]), world.start_worker_with(&[NAME]));
        let rows = "select count(*) from worker where name = 'probed'";
        world.wait_for("both rows", async || (world.count(rows).await == 2).then_some(())).await;
        let (report, _) = world.ask(&["report"]).await;
        assert_eq!(report["workers"].as_array().map(Vec::len), Some(2), "{report}");
        says(&world, &[], &[NAME], 0, "is alive").await;
        one.signal("STOP");
        says(&world, &[], &[NAME], 1, "it hangs").await;
        says(&world, &[], &[], 1, "it hangs").await;
        // One that has ended is nobody's replica any more, though its row is there.
        one.kill();
        says(&world, &[], &[NAME], 0, "is alive").await;
        assert_eq!(world.count(rows).await, 2);
    });
}

#[test]
fn a_replica_of_another_host_is_not_taken_for_this_ones() {
    world(async |world| {
        // Its host's name begins as this one's does, and it has the process id of one that runs here.
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a name");
        let host = format!("{}-2", host.trim());
        let insert = "insert into worker (name, instance, version, started_at, seen_at, in_flight)
            values ($1 || '-1', $1 || '/' || $2 || '/another', '0', now(), now() + interval '1 h', 0)";
        let pid = i64::from(std::process::id());
        let inserted = sqlx::query(insert).bind(&host).bind(pid).execute(&world.pool).await;
        inserted.expect("its row");
        says(&world, &[], &[], 1, "has written its row").await;
        says(&world, &[], &[("WORKER_NAME", &format!("{host}-1"))], 1, "has written its row").await;
    });
}

#[test]
fn a_probe_of_a_silent_database_ends_by_itself() {
    world(async |world| {
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("postgres://one@{}/kyc", silent.local_addr().expect("an address"));
        let settings = [("DATABASE_URL", url.as_str())];
        let text = "the database did not answer within 3s";
        says(&world, &[], &settings, 0, text).await;
        says(&world, &["--ready"], &settings, 1, text).await;
    });
}
