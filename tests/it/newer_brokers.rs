//! What RabbitMQ 4 does by itself, bounds or refuses, and 3 does not: the worker names what it needs, and
//! needs nothing that either refuses. Each test says what holds on both.

use kyc_lab::upstream::Upstream;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use serde_json::Value;

use crate::harness::{World, world};
use crate::outcome_events::TOLD;
use crate::own_services::own_rabbit;

/// Refuses all that is deprecated, as later ones will. Makes quorum queues where no type is named, takes
/// frames of the smallest size that clients may be held to, and messages of up to 16 MiB.
const STRICT: &str = "{permit_deprecated_features, #{transient_nonexcl_queues => false, global_qos => false,
        classic_queue_mirroring => false, ram_node_type => false, queue_master_locator => false,
        management_metrics_collection => false, amqp_address_v1 => false, amqp_filter_set_bug => false}},
    {default_queue_type, rabbit_quorum_queue}, {frame_max, 8192}, {max_message_size, 16777216}";

const REQUEUE: [&str; 7] = ["dead-letters", "requeue", "--all", "--by", "ana", "--note", "again"];

/// Publishes what is no job, so many bytes of it.
async fn enqueue_no_job(world: &World, bytes: usize, settings: &[(&str, &str)]) {
    let file = world.write_file("no-job", format!("{{\"none\":\"{}\"}}", "x".repeat(bytes)).as_bytes());
    let enqueued = world.run(&["enqueue", "--no-validate", &file], settings).await;
    assert!(enqueued.status.success(), "{}", String::from_utf8_lossy(&enqueued.stderr));
}

/// Works until nothing is left.
async fn drain(world: &World, settings: &[(&str, &str)]) {
    let drained = world.run(&["run", "--drain"], settings).await;
    assert!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stdout));
}

async fn letters(world: &World, settings: &[(&str, &str)]) -> Vec<Value> {
    let listed = world.run(&["dead-letters", "list", "--json"], settings).await;
    serde_json::from_slice(&listed.stdout).expect("letters")
}

#[test]
fn a_broker_that_refuses_all_that_is_deprecated_serves_as_any_other() {
    let broker = own_rabbit(STRICT);
    world(async |world| {
        let amqp_url = broker.url();
        let settings = [("AMQP_URL", amqp_url.as_str()), TOLD, ("CUSTOMER_EVENTS", "true")];
        let _upstream = Upstream::listen(&amqp_url, "kyc.events", "upstream").await.expect("it is let in");
        let jobs = world.enqueue_jobs(30, &settings).await;
        enqueue_no_job(&world, 100_000, &settings).await;
        drain(&world, &settings).await;
        world.check_nothing_lost_or_spent_twice(&jobs).await;

        let checked = world.run(&["check"], &settings).await;
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
        let [letter] = &letters(&world, &settings).await[..] else { panic!("not one letter") };
        assert_eq!(letter["reason_code"], "invalid", "{letter}");
        let requeued = world.run(&REQUEUE, &settings).await;
        assert!(requeued.status.success(), "{}", String::from_utf8_lossy(&requeued.stderr));
        drain(&world, &settings).await;
        assert_eq!(letters(&world, &settings).await.len(), 1);
        check_it_refuses(&amqp_url, broker.generation().expect("a version")).await;
    });
}

/// Checks that it does refuse, where it knows how to.
async fn check_it_refuses(amqp_url: &str, generation: u32) {
    let connection = Connection::connect(amqp_url, ConnectionProperties::default()).await;
    let channel = connection.expect("it is there").create_channel().await.expect("a channel");
    let (fleeting, none) = (QueueDeclareOptions::default(), FieldTable::default());
    let declared = channel.queue_declare("fleeting".into(), fleeting, none).await;
    assert!(generation < 4 || declared.is_err(), "RabbitMQ {generation} makes a queue that does not last");
}

#[test]
fn a_letter_is_looked_at_more_often_than_a_broker_hands_one_over_by_itself() {
    world(async |world| {
        enqueue_no_job(&world, 10, &[]).await;
        drain(&world, &[]).await;
        for looks in 0..25 {
            assert_eq!(letters(&world, &[]).await.len(), 1, "after {looks} looks");
        }
    });
}

/// As after an upgrade: RabbitMQ 3.13 took 128 MiB, 4 takes 16.
#[test]
fn a_letter_larger_than_the_broker_takes_by_now_stays_and_says_so() {
    let mut broker = own_rabbit("");
    world(async |world| {
        let amqp_url = broker.url();
        let settings = [("AMQP_URL", amqp_url.as_str())];
        enqueue_no_job(&world, 100_000, &settings).await;
        drain(&world, &settings).await;
        broker.configure("{max_message_size, 50000}").expect("it is written");
        broker.stop().expect("it does");
        broker.start_again().expect("it does");
        let requeued = world.run(&REQUEUE, &settings).await;
        let said = String::from_utf8([requeued.stdout, requeued.stderr].concat()).expect("UTF-8");
        assert_eq!(requeued.status.code(), Some(1), "{said}");
        assert!(said.contains("larger than"), "{said}");
        assert_eq!(letters(&world, &settings).await.len(), 1);
    });
}
