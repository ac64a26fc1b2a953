//! Several installations, each with a queue and a database of its own, behind an exchange that hashes by
//! customer: all of a customer's jobs come to one of them, also when one is split in two as
//! docs/scaling.md says.

use std::collections::BTreeMap;
use std::path::Path;

use kyc_lab::services::OwnRabbit;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeBindOptions, ExchangeUnbindOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde_json::json;
use sqlx::PgPool;
use tokio::time::{Duration, sleep};
use uuid::Uuid;

use crate::harness::{WorkerProcess, World, job_body, world_on};
use crate::own_services::{Disk, own_postgres, own_rabbit};

const DEFINITIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/rabbitmq-sharded.json");

/// Slots in front of the installations, as the definitions have them.
const SLOTS: usize = 16;

/// A database, and a queue at the broker that all share.
struct Installation<'a> {
    world: &'a World,
    settings: Vec<(&'static str, String)>,
    pool: PgPool,
}

impl<'a> Installation<'a> {
    async fn new(world: &'a World, broker: &OwnRabbit, number: usize, database_url: &str) -> Self {
        let own = |what: &str| format!("kyc.{number}{what}");
        let settings = vec![
            ("AMQP_URL", broker.url()),
            ("EXCHANGE", own("")),
            ("QUEUE", own(".document-updates")),
            ("DEAD_LETTER_EXCHANGE", own(".dlx")),
            ("DEAD_LETTER_QUEUE", own(".dead-letters")),
            ("DATABASE_URL", database_url.to_owned()),
        ];
        let pool = PgPool::connect_lazy(database_url).expect("a URL");
        let installation = Self { world, settings, pool };
        // Declares its topology.
        assert!(installation.run(&["enqueue", "/dev/null"]).await);
        installation
    }

    fn settings(&self) -> Vec<(&str, &str)> {
        self.settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }

    async fn run(&self, arguments: &[&str]) -> bool {
        self.world.run(arguments, &self.settings()).await.status.success()
    }

    fn start(&self) -> WorkerProcess {
        self.world.start_worker_with(&self.settings())
    }

    /// Its jobs that have ended, each with its customer.
    async fn ended(&self) -> BTreeMap<Uuid, Uuid> {
        let ended = "select job_id, customer_id from submission where ended_at is not null";
        let rows: Vec<(Uuid, Uuid)> =
            sqlx::query_as(ended).fetch_all(&self.pool).await.expect("the database answers");
        rows.into_iter().collect()
    }
}

/// Makes a database as a copy of another, from which everybody is disconnected.
async fn copy_database(admin_url: &str, from: &str, to: &str) -> String {
    let [source, mut target] = [from, admin_url].map(|url| url.parse::<url::Url>().expect("a URL"));
    let name = source.path().trim_start_matches('/');
    let admin = PgPool::connect(admin_url).await.expect("the cluster answers");
    let statements = [
        format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'"),
        format!("create database {to} template {name}"),
    ];
    for statement in statements {
        sqlx::raw_sql(&statement).execute(&admin).await.expect("the cluster does it");
    }
    target.set_path(to);
    target.to_string()
}

/// Publishes a customer's next job to whom the hash says, again until a queue has taken it.
async fn publish(channel: &Channel, customer_id: Uuid, round: u64) -> Uuid {
    let job_id = Uuid::new_v4();
    let mut body = job_body(customer_id, job_id);
    body["document_details"]["document_number"] = json!(format!("{}", 123_456_123_400 + round));
    let mut headers = FieldTable::default();
    headers.insert("customer_id".into(), AMQPValue::LongString(customer_id.to_string().into()));
    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_headers(headers)
        .with_message_id(job_id.to_string().into());
    let (body, mandatory) = (body.to_string(), BasicPublishOptions { mandatory: true, ..Default::default() });
    loop {
        let key = "document-update".into();
        let publishing =
            channel.basic_publish("kyc".into(), key, mandatory, body.as_bytes(), properties.clone());
        let confirm = publishing.await.expect("the broker takes it").await.expect("the broker confirms");
        if confirm.is_ack() && confirm.take_message().is_none() {
            return job_id;
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// Publishes each customer's next job by `enqueue`, to whom the hash says.
async fn enqueue_for_all(
    world: &World,
    customers: &[Uuid],
    settings: &[(&str, &str)],
) -> BTreeMap<Uuid, Uuid> {
    let mut jobs = BTreeMap::new();
    let mut lines = String::new();
    for customer_id in customers {
        let job_id = Uuid::new_v4();
        let mut body = job_body(*customer_id, job_id);
        body["job_id"] = json!(job_id);
        lines.push_str(&format!("{body}\n"));
        jobs.insert(job_id, *customer_id);
    }
    let file = world.write_file("jobs.jsonl", lines.as_bytes());
    let settings = [settings, &[("EXCHANGE", "kyc"), ("TOPOLOGY", "verify")]].concat();
    let enqueued = world.run(&["enqueue", &file], &settings).await;
    assert!(enqueued.status.success(), "{}", String::from_utf8_lossy(&enqueued.stderr));
    jobs
}

async fn publish_to_all(channel: &Channel, customers: &[Uuid], round: u64) -> BTreeMap<Uuid, Uuid> {
    let mut jobs = BTreeMap::new();
    for customer_id in customers {
        jobs.insert(publish(channel, *customer_id, round).await, *customer_id);
    }
    jobs
}

/// Leads the first installation's slots to the third and the fourth, in turn.
async fn split_first(channel: &Channel) {
    for slot in (0..SLOTS).step_by(2) {
        let (from, none) = (format!("kyc.slot.{slot}"), FieldTable::default());
        let to = format!("kyc.{}", 3 + slot / 2 % 2);
        let options = ExchangeUnbindOptions::default();
        let (source, key) = (from.as_str(), "");
        let unbound =
            channel.exchange_unbind("kyc.1".into(), source.into(), key.into(), options, none.clone());
        unbound.await.expect("the broker unbinds it");
        let options = ExchangeBindOptions::default();
        let bound = channel.exchange_bind(to.as_str().into(), source.into(), key.into(), options, none);
        bound.await.expect("the broker binds it");
    }
}

/// Waits until all of these jobs have ended, each in one installation; returns in which.
async fn wait_for_ended(
    world: &World,
    installations: &[&Installation<'_>],
    jobs: &BTreeMap<Uuid, Uuid>,
) -> BTreeMap<Uuid, usize> {
    world
        .wait_for("the end of every job", async || {
            let mut found = BTreeMap::new();
            for (at, installation) in installations.iter().enumerate() {
                let ended = installation.ended().await;
                for job_id in ended.into_keys().filter(|job_id| jobs.contains_key(job_id)) {
                    assert_eq!(found.insert(job_id, at), None, "job {job_id} is in two installations");
                }
            }
            (found.len() == jobs.len()).then_some(found)
        })
        .await
}

/// Where each customer's jobs are: in one installation.
fn by_customer(jobs: &BTreeMap<Uuid, Uuid>, places: &BTreeMap<Uuid, usize>) -> BTreeMap<Uuid, usize> {
    let mut found = BTreeMap::new();
    for (job_id, customer_id) in jobs {
        let place = places[job_id];
        assert_eq!(*found.entry(*customer_id).or_insert(place), place, "{customer_id} is in two");
    }
    found
}

/// The provider allows three updates, so that the third round spends what the copied books say is left, and
/// the fourth finds that nothing is.
#[test]
fn a_customer_stays_in_one_installation_when_one_is_split_in_two() {
    let postgres = own_postgres(Disk::Ample, &["max_connections=200"]);
    let broker = own_rabbit("");
    broker.import(Path::new(DEFINITIONS)).expect("the definitions are sound");
    world_on(&postgres.url(), async |world| {
        let (admin_url, first_url) = (postgres.url(), world.database_url());
        let second_url = copy_database(&admin_url, first_url, "second").await;
        let first = Installation::new(&world, &broker, 1, first_url).await;
        let second = Installation::new(&world, &broker, 2, &second_url).await;
        let (mut worker, _other) = (first.start(), second.start());
        let properties = ConnectionProperties::default();
        let connection = Connection::connect(&broker.url(), properties).await.expect("it is up");
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("it confirms");
        let operator = connection.create_channel().await.expect("a channel");

        let customers: Vec<Uuid> = (0..40).map(|_| Uuid::new_v4()).collect();
        let mut before = publish_to_all(&channel, &customers, 1).await;
        before.extend(enqueue_for_all(&world, &customers, &first.settings()).await);
        let places = wait_for_ended(&world, &[&first, &second], &before).await;
        let homes = by_customer(&before, &places);
        assert!([0, 1].iter().all(|at| homes.values().any(|home| home == at)), "both have some");

        // 1. The queues of the two that take over are there, and nobody works yet. 2. The slots lead to
        // them, while publishers go on. 3. The first works until nothing is left. 4. Its books are copied.
        let unmade = ["third", "fourth"].map(|name| format!("{admin_url}-{name}"));
        for (number, url) in [3, 4].into_iter().zip(&unmade) {
            Installation::new(&world, &broker, number, url).await;
        }
        let (after, ()) = tokio::join!(publish_to_all(&channel, &customers, 3), split_first(&operator));
        worker.stop().await;
        assert!(first.run(&["run", "--drain"]).await);
        let third_url = copy_database(&admin_url, first_url, "third").await;
        let fourth_url = copy_database(&admin_url, first_url, "fourth").await;
        let third = Installation::new(&world, &broker, 3, &third_url).await;
        let fourth = Installation::new(&world, &broker, 4, &fourth_url).await;
        let _workers = [third.start(), fourth.start()];

        // What the first had taken before the split is in both copies; the rest is in one of them.
        let drained = first.ended().await;
        let rest: BTreeMap<_, _> = after.into_iter().filter(|(job, _)| !drained.contains_key(job)).collect();
        let places = wait_for_ended(&world, &[&second, &third, &fourth], &rest).await;
        let moved = by_customer(&rest, &places);
        let last = publish_to_all(&channel, &customers, 4).await;
        let places = wait_for_ended(&world, &[&second, &third, &fourth], &last).await;
        let new_homes = by_customer(&last, &places);
        for (customer_id, home) in &new_homes {
            assert_eq!(homes[customer_id] == 1, *home == 0, "who was in the second stays there");
            assert!(moved.get(customer_id).is_none_or(|at| at == home), "{customer_id} moved once");
        }
        for at in 0..3 {
            assert!(new_homes.values().any(|home| *home == at), "each has some");
        }
        let mut updates = BTreeMap::new();
        for update in world.oracle("updates").await {
            *updates.entry(update["customer_id"].as_str().unwrap_or_default().to_owned()).or_insert(0) += 1;
        }
        assert!(updates.len() == customers.len() && updates.values().all(|count| *count <= 3), "{updates:?}");
        for installation in [&second, &third, &fourth] {
            assert!(installation.run(&["audit"]).await, "its histories verify");
        }
    });
}
