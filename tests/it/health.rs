//! What probes are told: a replica is alive while its loops move, whatever is away, and
//! ready while it takes jobs.

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

#[test]
fn a_replica_is_alive_while_its_services_are_away_and_ready_only_while_it_takes_jobs() {
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
