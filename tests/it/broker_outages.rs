//! A broker that is away, silent or of another mind costs time and nothing else: the
//! session is rebuilt by itself, and what was handed over twice is done once.

use std::time::{Duration, Instant};

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use uuid::Uuid;

use crate::harness::{JOBS, NARROW, WorkerProcess, World, long_string, world};
use crate::own_services::own_rabbit;

const LOST: &str = "the broker session is lost";

const OPENED: &str = "the broker session is open";

const REFUSED: &str = "the broker refuses a session until a person has fixed this";

const STILL_AWAY: &str = "the broker is still away";

async fn check_each_done_once(world: &World, jobs: &[Uuid]) {
    world.check_nothing_lost_or_spent_twice(jobs).await;
    assert_eq!(world.oracle("patches").await.len(), jobs.len(), "no attempt had an unknown outcome");
    assert_eq!(world.count("select count(*) from dead_lettered_delivery").await, 0);
}

/// What passes by itself is no error, whatever a library calls it.
fn check_no_error(worker: &WorkerProcess) {
    let log = worker.log();
    let error = log.lines().find(|line| line.contains(r#""level":"ERROR""#));
    assert_eq!(error, None);
    assert!(log.contains(r#""level":"WARN""#), "{log}");
}

#[test]
fn a_connection_that_the_operator_closes_is_opened_again() {
    world(async |world| {
        let (worker, jobs) = world.start_at_work(&[]).await;
        world.close_connections_of_workers().await;
        world.wait_for_log(&worker, LOST).await;
        world.wait_for_logs(&worker, OPENED, 2).await;
        check_each_done_once(&world, &jobs).await;
        world.wait_for_no_delivery().await;
        check_no_error(&worker);
    });
}

#[test]
fn a_connection_that_is_reset_or_cut_again_and_again_is_opened_again() {
    world(async |world| {
        let (relay, amqp_url) = world.relay_to_broker().await;
        let (worker, jobs) = world.start_at_work(&[("AMQP_URL", &amqp_url)]).await;
        for (sessions, accepted) in [(2, 60), (3, 100), (4, 140)] {
            if sessions == 3 {
                relay.cut()
            } else {
                relay.reset()
            }
            world.wait_for_logs(&worker, OPENED, sessions).await;
            world.wait_for_accepted(accepted).await;
        }
        check_each_done_once(&world, &jobs).await;
        world.wait_for_no_delivery().await;
        check_no_error(&worker);
    });
}

#[test]
fn a_network_that_forgets_the_connection_is_noticed_by_its_heartbeat() {
    world(async |world| {
        let (relay, amqp_url) = world.relay_to_broker().await;
        let (worker, jobs) = world.start_at_work(&[("AMQP_URL", &amqp_url)]).await;
        // Not a byte and not a word; new connections are as good as ever.
        relay.freeze();
        world.wait_for_logs(&worker, OPENED, 2).await;
        check_each_done_once(&world, &jobs).await;
        world.wait_for_no_delivery().await;
    });
}

#[test]
fn a_broker_that_refuses_connections_is_waited_for() {
    world(async |world| {
        let (relay, amqp_url) = world.relay_to_broker().await;
        let (worker, jobs) = world.start_at_work(&[("AMQP_URL", &amqp_url)]).await;
        relay.refuse().await;
        relay.cut();
        world.wait_for_log(&worker, "AMQP_URL: cannot use RabbitMQ at 127.0.0.1").await;
        world.wait_for_logs(&worker, STILL_AWAY, 2).await;
        // What was handed over before is finished without the broker.
        let in_motion = "select count(*) from submission where state in ('submitting', 'waiting')";
        world.wait_for("no job in hand", async || (world.count(in_motion).await == 0).then_some(())).await;
        relay.accept().await;
        world.wait_for_logs(&worker, OPENED, 2).await;
        check_each_done_once(&world, &jobs).await;
        world.wait_for_no_delivery().await;
    });
}

#[test]
fn a_broker_that_stops_or_crashes_loses_and_repeats_nothing() {
    let mut broker = own_rabbit("");
    world(async |world| {
        let amqp_url = broker.url();
        world.set_provider(json!({ "latency_ms": 20 })).await;
        let mut jobs = world.enqueue_jobs(300, &[("AMQP_URL", &amqp_url)]).await;
        // A broker that boots can starve a request for seconds on a small machine.
        let patient = [("AMQP_URL", amqp_url.as_str()), ("REQUEST_TIMEOUT", "15s"), ("CLAIM_LEASE", "19s")];
        let worker = world.start_worker_with(&[&NARROW[..], &patient].concat());
        world.wait_for_accepted(20).await;

        broker.stop().expect("it does");
        world.wait_for_log(&worker, LOST).await;
        broker.start_again().expect("it does");
        world.wait_for_logs(&worker, OPENED, 2).await;
        // While the broker took its time to stop, the first ones may all have been done.
        let accepted = world.count_accepted().await;
        jobs.extend(world.enqueue_jobs(300, &[("AMQP_URL", &amqp_url)]).await);
        world.wait_for_accepted(accepted + 20).await;

        broker.kill().expect("it does");
        broker.start_again().expect("it does");
        world.wait_for_logs(&worker, OPENED, 3).await;
        check_each_done_once(&world, &jobs).await;
    });
}

#[test]
fn a_delivery_whose_ack_timed_out_is_redelivered_and_done_once() {
    // As quick to lose patience as it can be told to be.
    let broker = own_rabbit("{consumer_timeout, 4000}, {channel_tick_interval, 1000}");
    world(async |world| {
        let amqp_url = broker.url();
        let worker = world.start_worker_with(&[&NARROW[..], &[("AMQP_URL", &amqp_url)]].concat());
        world.wait_for_log(&worker, OPENED).await;
        let lock = world.lock_table("submission").await;
        let jobs = world.enqueue_jobs(20, &[("AMQP_URL", &amqp_url)]).await;
        world.wait_for_log(&worker, "than the broker's consumer_timeout").await;
        drop(lock);
        world.wait_for_logs(&worker, OPENED, 2).await;
        check_each_done_once(&world, &jobs).await;
        // RabbitMQ 4.3 and later end the consumer in place of the channel.
        let (log, ended) = (worker.log(), "the broker ended the consumer");
        assert!((log.contains(LOST) || log.contains(ended)) && !log.contains(REFUSED), "it passes by itself");
    });
}

#[test]
fn a_queue_that_is_deleted_is_declared_again() {
    world(async |world| {
        world.declare_topology().await;
        let worker = world.start_worker();
        world.wait_for_consumers(1).await;
        world.delete_queue().await;
        let told = "the broker ended the consumer; was the queue deleted?";
        world.wait_for_log(&worker, told).await;
        world.wait_for_logs(&worker, OPENED, 2).await;
        let jobs = world.publish_jobs(5).await;
        check_each_done_once(&world, &jobs).await;
        assert_eq!(worker.log().matches(told).count(), 1);
        world.wait_for_no_delivery().await;
    });
}

/// Waits for six tries, and checks that they took the time that growing delays take.
async fn check_no_tight_loop(world: &World, worker: &WorkerProcess) {
    let begun = Instant::now();
    let before = worker.log().matches(STILL_AWAY).count();
    world.wait_for_logs(worker, STILL_AWAY, before + 6).await;
    // Half of each delay is the least that jitter leaves: 0.25 + 0.5 + 1 + 2 + 2.5 s.
    assert!(begun.elapsed() > Duration::from_secs(5), "six tries in {:?}", begun.elapsed());
    assert!(world.count_connections_of_workers().await <= 1, "each try closes what it opened");
}

/// It is told until somebody puts it right.
#[test]
fn a_queue_of_other_arguments_is_an_error_that_names_the_setting() {
    world(async |world| {
        world.declare_topology().await;
        let (relay, amqp_url) = world.relay_to_broker().await;
        let worker = world.start_worker_with(&[("AMQP_URL", &amqp_url)]);
        world.wait_for_consumers(1).await;
        relay.refuse().await;
        relay.cut();
        world.declare_otherwise(QueueDeclareOptions::durable(), FieldTable::default()).await;
        relay.accept().await;
        world.wait_for_log(&worker, REFUSED).await;
        let told = "QUEUE: cannot use queue kyc.document-updates; if it exists with other arguments";
        assert!(worker.log().contains(told), "{}", worker.log());
        check_no_tight_loop(&world, &worker).await;
        assert_eq!(worker.log().matches(REFUSED).count(), 1, "it is told once");
        world.delete_queue().await;
        world.wait_for_logs(&worker, OPENED, 2).await;
        let jobs = world.publish_jobs(5).await;
        check_each_done_once(&world, &jobs).await;
    });
}

#[test]
fn a_queue_that_is_missing_where_operators_declare_is_waited_for() {
    world(async |world| {
        world.declare_topology().await;
        world.delete_queue().await;
        let worker = world.start_worker_with(&[("TOPOLOGY", "verify")]);
        world.wait_for_log(&worker, REFUSED).await;
        let told = "QUEUE: cannot use queue kyc.document-updates; declare it at the broker";
        assert!(worker.log().contains(told), "{}", worker.log());
        check_no_tight_loop(&world, &worker).await;
        world.declare_topology().await;
        let jobs = world.publish_jobs(5).await;
        check_each_done_once(&world, &jobs).await;
    });
}

#[test]
fn a_queue_that_may_not_be_read_is_asked_for_without_haste() {
    world(async |world| {
        world.declare_topology().await;
        // Enough to declare and bind, and not to consume.
        let amqp_url = world.allow_user("^kyc(\\.dlx)?$").await;
        let worker = world.start_worker_with(&[("AMQP_URL", &amqp_url)]);
        world.wait_for_log(&worker, REFUSED).await;
        assert!(worker.log().contains("QUEUE: cannot consume from kyc.document-updates"), "{}", worker.log());
        check_no_tight_loop(&world, &worker).await;
        assert_eq!(worker.log().matches(REFUSED).count(), 1, "it is told once");
        world.allow_user(".*").await;
        let jobs = world.publish_jobs(5).await;
        check_each_done_once(&world, &jobs).await;
    });
}

/// No thread and no socket stays behind.
#[test]
fn a_broker_that_accepts_and_says_nothing_is_given_up() {
    world(async |world| {
        world.declare_topology().await;
        let (relay, amqp_url) = world.relay_to_broker().await;
        relay.stall_to_client();
        relay.stall_to_target();
        let begun = Instant::now();
        let worker = world.start_worker_with(&[("AMQP_URL", &amqp_url)]);
        world.wait_for_log(&worker, "no answer within 10s").await;
        assert!(begun.elapsed() >= Duration::from_secs(10));
        let threads = worker.count_threads();
        world.wait_for_logs(&worker, STILL_AWAY, 3).await;
        let left = async || (worker.count_threads() <= threads).then_some(());
        world.wait_for("no more threads than after the first try", left).await;
        assert_eq!(worker.log().matches(LOST).count(), 1, "it is told once");
        let jobs = world.publish_jobs(5).await;
        relay.resume();
        check_each_done_once(&world, &jobs).await;
        assert_eq!(world.count_ready(JOBS).await, 0);
    });
}

/// `connection.start`, as RabbitMQ begins.
fn greeting() -> Vec<u8> {
    let strings = [&long_string(b"PLAIN")[..], &long_string(b"en_US")].concat();
    let method = [&[0, 10, 0, 10, 0, 9][..], &long_string(b""), &strings].concat();
    [&[1, 0, 0][..], &long_string(&method), &[0xce]].concat()
}

#[test]
fn a_broker_that_greets_and_then_says_nothing_leaves_nothing_behind() {
    world(async |world| {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let amqp_url = format!("amqp://guest:guest@{}/%2f", listener.local_addr().expect("an address"));
        let greeter = tokio::spawn(async move {
            let mut greeted = Vec::new();
            loop {
                let (mut client, _) = listener.accept().await.expect("a connection");
                client.write_all(&greeting()).await.expect("it reads");
                greeted.push(client);
            }
        });
        let worker = world.start_worker_with(&[("AMQP_URL", &amqp_url)]);
        world.wait_for_log(&worker, "no answer within 10s").await;
        let (threads, files) = (worker.count_threads(), worker.count_files());
        world.wait_for_logs(&worker, STILL_AWAY, 3).await;
        // Those of the last try end in a moment, those of a try that leaves some behind never do.
        let left =
            async || (worker.count_threads() <= threads && worker.count_files() <= files).then_some(());
        world.wait_for("no more threads and files than after the first try", left).await;
        greeter.abort();
    });
}

#[test]
fn a_worker_without_its_broker_finishes_what_it_has_and_stops_when_told() {
    world(async |world| {
        let (relay, amqp_url) = world.relay_to_broker().await;
        let (mut worker, jobs) = world.start_at_work(&[("AMQP_URL", &amqp_url)]).await;
        relay.refuse().await;
        relay.cut();
        world.wait_for_log(&worker, LOST).await;
        worker.stop().await;
        assert!(world.count_ready(JOBS).await > 50, "a backlog stays");
        let _next = world.start_worker();
        check_each_done_once(&world, &jobs).await;
        world.wait_for_no_delivery().await;
    });
}

#[test]
fn a_vhost_that_is_not_there_needs_a_person() {
    world(async |world| {
        let mut url: url::Url = world.amqp_url().parse().expect("a URL");
        url.set_path("/nowhere");
        let worker = world.start_worker_with(&[("AMQP_URL", url.as_str())]);
        world.wait_for_log(&worker, REFUSED).await;
        world.wait_for_log(&worker, STILL_AWAY).await;
        let log = worker.log();
        assert_eq!(log.matches(REFUSED).count(), 1, "told once: {log}");
        assert!(log.contains("rabbitmqctl list_vhosts"), "{log}");
    });
}

#[test]
fn a_password_of_the_broker_that_is_rotated_is_read_again_from_its_file() {
    world(async |world| {
        world.declare_topology().await;
        let before = world.make_broker_user("before").await;
        let file = world.write_file("amqp-url", before.as_bytes());
        let mut command = world.command();
        command.arg("run").env_remove("AMQP_URL").env("AMQP_URL_FILE", &file);
        let mut worker = world.spawn(command);
        world.wait_for_consumers(1).await;
        let after = world.make_broker_user("after").await;
        world.close_connections_of_workers().await;
        world.wait_for_log(&worker, REFUSED).await;
        world.write_file("amqp-url", after.as_bytes());
        world.wait_for_logs(&worker, OPENED, 2).await;
        let jobs = world.publish_jobs(5).await;
        check_each_done_once(&world, &jobs).await;
        world.check_all_acked([&mut worker]).await;
        assert!(worker.log().contains("AMQP_URL read again from its file"), "{}", worker.log());
    });
}

const TOLERATED: &str = "dead letters are kept as the broker has it declared";

#[test]
fn another_ttl_of_dead_letters_is_an_error_once_and_stops_no_job() {
    world(async |world| {
        world.declare_topology().await;
        let settings = [("DEAD_LETTER_TTL", "7d"), ("CUSTOMER_EVENTS", "true")];
        let worker = world.start_worker_with(&settings);
        world.wait_for_log(&worker, TOLERATED).await;
        assert!(worker.log().contains("DEAD_LETTER_QUEUE: cannot use queue kyc.dead-letters"));
        let jobs = world.publish_jobs(3).await;
        world.wait_for_all_accepted(&jobs).await;
        world.publish(None, b"{}").await;
        world.wait_for("the letter", async || world.take_dead_letter().await).await;
        // One of jobs and one of events, and then another of each.
        world.wait_for_logs(&worker, OPENED, 2).await;
        world.close_connections_of_workers().await;
        world.wait_for_logs(&worker, OPENED, 4).await;
        assert_eq!(worker.log().matches(TOLERATED).count(), 1, "{}", worker.log());

        let enqueued = world.run(&["enqueue", "/dev/null"], &settings).await;
        assert!(enqueued.status.success(), "{}", String::from_utf8_lossy(&enqueued.stderr));
    });
}

#[test]
fn a_queue_of_events_that_is_not_permitted_stops_no_job() {
    world(async |world| {
        world.declare_topology().await;
        let all_but_events = "^kyc(\\.d.*)?$";
        let amqp_url = world
            .allow_user_to(
                json!({ "configure": all_but_events, "write": all_but_events, "read": all_but_events }),
            )
            .await;
        let worker = world.start_worker_with(&[("AMQP_URL", &amqp_url), ("CUSTOMER_EVENTS", "true")]);
        world.wait_for_log(&worker, REFUSED).await;
        assert!(worker.log().contains("CUSTOMER_EVENTS_QUEUE: cannot use queue"), "{}", worker.log());
        let jobs = world.publish_jobs(3).await;
        world.wait_for_all_accepted(&jobs).await;
        world.allow_user(".*").await;
        world.wait_for_log(&worker, "\"queue\":\"kyc.customer-events\"").await;
    });
}

#[test]
fn a_place_for_dead_letters_that_is_missing_is_waited_for() {
    world(async |world| {
        // Enough for jobs; the queue of dead letters is not there, and may not be made.
        let most = "^kyc(\\.dlx|\\.document-updates)?$";
        let amqp_url = world.allow_user_to(json!({ "configure": most, "write": ".*", "read": ".*" })).await;
        let worker = world.start_worker_with(&[("AMQP_URL", &amqp_url)]);
        world.wait_for_log(&worker, REFUSED).await;
        assert!(worker.log().contains("DEAD_LETTER_QUEUE: cannot use queue"), "{}", worker.log());
        assert!(!world.queue_exists(JOBS).await, "rejects would have nowhere to go");
        world.declare_topology().await;
        let jobs = world.publish_jobs(3).await;
        check_each_done_once(&world, &jobs).await;
    });
}

/// The permissions of docs/deployment.md, "Least privilege": declare nothing, or everything.
#[test]
fn the_documented_permissions_are_enough_for_jobs_and_events() {
    let document = include_str!("../../docs/deployment.md");
    let command = document.lines().find(|line| line.contains("-p VHOST kyc-worker")).expect("the command");
    let words = shlex::split(command).expect("a command line");
    let [configure, write, read] = words.last_chunk().expect("three expressions");
    let verify = json!({ "configure": configure, "write": write, "read": read });
    let declares = document.lines().find(|line| line.contains("`TOPOLOGY=declare`")).expect("a sentence");
    let all = declares.split('`').find(|code| code.starts_with("^kyc")).expect("an expression");
    let declare = json!({ "configure": all, "write": all, "read": all });
    for (topology, permissions) in [("declare", declare), ("verify", verify)] {
        world(async |world| {
            let amqp_url = world.allow_user_to(permissions.clone()).await;
            let settings = [("TOPOLOGY", topology), ("CUSTOMER_EVENTS", "true"), ("AMQP_URL", &amqp_url)];
            if topology == "verify" {
                let mut declaring = world.start_worker_with(&settings[1..2]);
                world.wait_for_logs(&declaring, OPENED, 2).await;
                declaring.stop().await;
            }
            let worker = world.start_worker_with(&settings);
            world.wait_for_logs(&worker, OPENED, 2).await;
            let jobs = world.publish_jobs(3).await;
            check_each_done_once(&world, &jobs).await;
            assert!(!worker.log().contains(REFUSED) && !worker.log().contains(TOLERATED), "{}", worker.log());
        });
    }
}
