//! One message, whatever its bytes, stops nothing: it is dead-lettered whole with a row, its
//! neighbours are done once, and neither a session nor a process ends by it.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use sqlx::Row as _;
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::harness::{
    JOBS, RawBroker, RawProperties, WorkerProcess, World, job_body, long_string, short_string, world,
};
use crate::own_services::{OwnRabbit, own_rabbit};

const DEAD_LETTERS: &str = "kyc.dead-letters";

/// A UUID in binary, as some clients write a `message_id`, and UTF-8 never has it.
const BINARY: &[u8] = b"\xf0\x9c\x8f\xff\xfe\xd8\x41\x00\x80\xc3\x28\xa0\xa1\xe2\x28\xa1";

/// A poisoned message: its properties, what of it must lie in the dead letters, and what its row
/// must say.
struct Poison {
    properties: RawProperties,
    bytes: Vec<u8>,
    said: String,
}

/// A message whose body is a valid job, named in it.
async fn publish_with(publisher: &mut RawBroker, properties: &RawProperties) -> (Uuid, Vec<u8>) {
    let job_id = Uuid::new_v4();
    let mut body = job_body(Uuid::new_v4(), job_id);
    body["job_id"] = json!(job_id);
    let body = body.to_string().into_bytes();
    publisher.publish(properties, &body).await;
    (job_id, body)
}

/// Publishes twenty good jobs around each poison, and checks that a worker does them all and
/// dead-letters each poison, in one session.
async fn check_poisons(world: &World, publisher: &mut RawBroker, poisons: Vec<Poison>) -> WorkerProcess {
    let mut good = world.publish_jobs(10).await;
    let mut bodies = Vec::new();
    for poison in &poisons {
        bodies.push(publish_with(publisher, &poison.properties).await);
        good.extend(world.publish_jobs(20).await);
    }
    let worker = world.start_worker();
    check_done_once(world, &good).await;

    for (poison, (job_id, body)) in poisons.iter().zip(&bodies) {
        let job = world.wait_for_state(*job_id, &["invalid"]).await;
        assert_eq!(job.reason.as_deref(), Some(poison.said.as_str()));
        let row =
            sqlx::query("select size, reason, reason_code from dead_lettered_delivery where job_id = $1")
                .bind(job_id)
                .fetch_one(&world.pool)
                .await
                .expect("one row");
        assert_eq!(usize::try_from(row.get::<i32, _>("size")), Ok(body.len()));
        assert_eq!(row.get::<String, _>("reason"), poison.said);
        assert_eq!(row.get::<String, _>("reason_code"), "invalid");
    }
    // The broker promises no order among its dead letters.
    let mut letters = Vec::new();
    for _ in &poisons {
        letters.push(wait_for_letter(world, publisher).await);
    }
    for (poison, (_, body)) in poisons.iter().zip(&bodies) {
        let (properties, _) = letters
            .iter()
            .find(|(_, letter)| letter == body)
            .unwrap_or_else(|| panic!("{}: no letter has its body", poison.said));
        let is_there = properties.windows(poison.bytes.len()).any(|bytes| bytes == poison.bytes);
        assert!(is_there, "{}: other properties", poison.said);
    }
    assert_eq!(world.oracle("patches").await.len(), good.len());
    check_one_session(&worker);
    worker
}

async fn check_done_once(world: &World, jobs: &[Uuid]) {
    for job_id in jobs {
        let job = world.wait_for_state(*job_id, &["accepted"]).await;
        assert_eq!(job.deliveries, 1, "handed over once");
    }
    world.check_nothing_lost_or_spent_twice(jobs).await;
}

fn check_one_session(worker: &WorkerProcess) {
    let log = worker.log();
    assert_eq!(log.matches("the broker session is open").count(), 1, "{log}");
    assert!(!log.contains("the broker session is lost"), "{log}");
}

async fn wait_for_letter(world: &World, reader: &mut RawBroker) -> (Vec<u8>, Vec<u8>) {
    let what = "a dead letter";
    world.wait_for(what, async || (world.count_ready(DEAD_LETTERS).await > 0).then_some(())).await;
    reader.take(DEAD_LETTERS).await.expect(what)
}

#[test]
fn a_property_that_is_no_text_ends_its_message_alone() {
    world(async |world| {
        world.declare_topology().await;
        let mut publisher = world.speak_amqp().await;
        // RabbitMQ itself refuses an expiration that is no number, and another's user_id.
        let names = [
            "message_id",
            "correlation_id",
            "type",
            "app_id",
            "content_type",
            "content_encoding",
            "reply_to",
            "cluster_id",
        ];
        let mut poisons: Vec<Poison> = names
            .into_iter()
            .map(|name| Poison {
                properties: RawProperties::persistent().with_text(name, BINARY),
                bytes: short_string(BINARY),
                said: format!("/properties/{name}: is not UTF-8 (16 bytes)"),
            })
            .collect();
        let header = [&short_string(BINARY)[..], b"S", &long_string(b"value")].concat();
        poisons.push(Poison {
            properties: RawProperties::persistent().with_headers(&header),
            bytes: header,
            said: "/properties/headers: have a name that is not UTF-8".to_owned(),
        });
        check_poisons(&world, &mut publisher, poisons).await;
    });
}

/// A header with an array in an array, so many deep.
fn nested(depth: usize) -> Vec<u8> {
    let levels = (0..depth).rev().flat_map(|within| {
        let length = u32::try_from(within * 5).expect("not so deep");
        [&b"A"[..], &length.to_be_bytes()].concat()
    });
    [short_string(b"deep"), levels.collect()].concat()
}

#[test]
fn headers_that_are_nested_too_deep_end_their_message_alone() {
    world(async |world| {
        world.declare_topology().await;
        let mut publisher = world.speak_amqp().await;
        let poisons = [1_000, 3_000].map(|depth| {
            let headers = nested(depth);
            Poison {
                properties: RawProperties::persistent().with_headers(&headers),
                bytes: headers,
                said: "/properties/headers: are nested deeper than 16 levels".to_owned(),
            }
        });
        check_poisons(&world, &mut publisher, poisons.into()).await;
    });
}

#[test]
fn headers_that_outgrow_a_frame_end_their_message_alone() {
    world(async |world| {
        world.declare_topology().await;
        let mut publisher = world.speak_amqp().await;
        let headers = [&short_string(b"large")[..], b"S", &long_string(&[b'x'; 130_990])].concat();
        let properties = RawProperties::persistent().with_headers(&headers);
        let (job_id, body) = publish_with(&mut publisher, &properties).await;
        // The broker adds how often it was handed over.
        publisher.hand_back(JOBS).await;
        let good = world.publish_jobs(20).await;
        let worker = world.start_worker();
        check_done_once(&world, &good).await;
        let job = world.wait_for_state(job_id, &["invalid"]).await;
        let said = "/properties/headers: make the properties larger than 16384 bytes";
        assert_eq!(job.reason.as_deref(), Some(said));
        let (properties, letter) = wait_for_letter(&world, &mut publisher).await;
        assert!(letter == body && properties.len() > 131_000, "it is dead-lettered whole");
        check_one_session(&worker);
    });
}

/// Neither of them hides the others, and none is published again as another message.
#[test]
fn commands_show_a_letter_that_cannot_be_read_and_leave_it() {
    world(async |world| {
        world.declare_topology().await;
        let mut publisher = world.speak_amqp().await;
        let large = [&short_string(b"large")[..], b"S", &long_string(&[b'x'; 130_900])].concat();
        let poisons = [
            RawProperties::persistent().with_text("type", BINARY),
            RawProperties::persistent().with_headers(&nested(1_000)),
            RawProperties::persistent().with_headers(&large),
        ];
        for poison in &poisons {
            publish_with(&mut publisher, poison).await;
        }
        let _worker = world.start_worker();
        let all_there = async || (world.count_ready(DEAD_LETTERS).await == 3).then_some(());
        world.wait_for("three dead letters", all_there).await;

        let (listed, _) = world.ask(&["dead-letters", "list"]).await;
        let ids: Vec<&str> = listed
            .as_array()
            .expect("a list")
            .iter()
            .map(|letter| letter["id"].as_str().expect("an id"))
            .collect();
        assert_eq!(ids.len(), 3, "{listed}");
        for id in &ids {
            world.say(&["dead-letters", "show", id]).await;
        }
        let requeue = ["dead-letters", "requeue", "--all", "--by", "ana", "--note", "again"];
        let (requeued, is_done) = world.ask(&requeue).await;
        assert!(!is_done && requeued["requeued"] == json!([]), "{requeued}");
        let refused = requeued["refused"].as_array().expect("a list");
        assert!(
            refused.len() == 3
                && refused.iter().all(|letter| letter["reason"].as_str().is_some_and(|why| why
                    .starts_with("/properties/")
                    && why.contains("publish the job anew"))),
            "{requeued}"
        );
        world.wait_for("what was looked at", all_there).await;
        assert_eq!(world.count("select count(*) from intervention").await, 0, "nothing was done");
    });
}

#[test]
fn a_routing_key_that_is_no_text_does_not_keep_a_job_from_being_done() {
    world(async |world| {
        world.declare_topology().await;
        let mut publisher = world.speak_amqp().await;
        // It reaches the queue by a header.
        let keys = long_string(&[&b"S"[..], &long_string(b"document-update")].concat());
        let headers = [&short_string(b"CC")[..], b"A", &keys].concat();
        let properties = RawProperties::persistent().with_headers(&headers);
        let job_id = Uuid::new_v4();
        let mut body = job_body(Uuid::new_v4(), job_id);
        body["job_id"] = json!(job_id);
        publisher.publish_to(b"kyc", BINARY, &properties, body.to_string().as_bytes()).await;
        let worker = world.start_worker();
        check_done_once(&world, &[job_id]).await;
        check_one_session(&worker);
    });
}

#[test]
fn a_message_that_came_back_often_is_an_error_that_says_so() {
    world(async |world| {
        world.declare_topology().await;
        let job_id = world.publish_job().await;
        let mut reader = world.speak_amqp().await;
        for _ in 0..12 {
            world.wait_for("the message", async || (world.count_ready(JOBS).await == 1).then_some(())).await;
            reader.hand_back(JOBS).await;
        }
        let worker = world.start_worker();
        world.wait_for_state(job_id, &["accepted"]).await;
        world.wait_for_log(&worker, "the broker has delivered this message many times").await;
    });
}

/// It cannot be read which message ends a process, so all are held against it but the first.
#[cfg(feature = "failpoints")]
#[test]
fn a_message_that_kills_every_process_is_counted_alone() {
    world(async |world| {
        world.declare_topology().await;
        let jobs = world.publish_jobs(20).await;
        let mut deaths = 0;
        while world.count_ready(DEAD_LETTERS).await == 0 {
            assert!(deaths < 30, "it is never dead-lettered");
            let mut worker = world.start_worker_with(&[("KYC_FAILPOINT", "parsed=kill")]);
            assert!(!worker.exit().await.success());
            deaths += 1;
        }
        assert!(deaths > 10, "a few deaths are not held against a message");
        let _worker = world.start_worker();
        check_done_once(&world, &jobs[1..]).await;
        assert!(world.submission(jobs[0]).await.is_none());
        assert_eq!(world.count_ready(DEAD_LETTERS).await, 1);
    });
}

#[test]
fn messages_of_megabytes_beside_a_slow_database_take_little_memory() {
    world(async |world| {
        world.declare_topology().await;
        let mut publisher = world.speak_amqp().await;
        let mut good = world.publish_jobs(20).await;
        let mut body = vec![b' '; 8 << 20];
        for number in 0..60_u8 {
            body[0] = number;
            let properties = RawProperties::persistent().with_text("message_id", &[b'm', b'0' + number]);
            publisher.publish(&properties, &body).await;
        }
        let lock = world.lock_table("dead_lettered_delivery").await;
        let worker = world.start_worker_with(&[("CONCURRENCY", "64"), ("PREFETCH", "192")]);
        check_done_once(&world, &good).await;
        // All have come and nothing of them can be written down, or the worker has seen that.
        world
            .wait_for("a worker with all that it takes", async || {
                let is_paused = worker.log().contains("intake paused");
                (is_paused || world.count_ready(JOBS).await == 0).then_some(())
            })
            .await;
        drop(lock);
        good.extend(world.publish_jobs(20).await);
        let rows =
            "select count(*) from dead_lettered_delivery where size = 8388608 and reason like '%64 KiB%'";
        world.wait_for("sixty rows", async || (world.count(rows).await == 60).then_some(())).await;
        let hashes = "select count(distinct body_sha256) from dead_lettered_delivery";
        assert_eq!(world.count(hashes).await, 60);
        body[0] = 7;
        let seventh = sqlx::query_scalar::<_, i64>(
            "select count(*) from dead_lettered_delivery where message_id = 'm7' and body_sha256 = sha256($1)",
        )
        .bind(&body)
        .fetch_one(&world.pool)
        .await
        .expect("the database answers");
        assert_eq!(seventh, 1, "it is the hash of the whole");
        check_done_once(&world, &good).await;
        let taken = worker.memory_max_kib();
        assert!(taken < 96 * 1024, "{taken} KiB");
        let (_, letter) = wait_for_letter(&world, &mut publisher).await;
        assert_eq!(letter.len(), body.len(), "it is dead-lettered whole");
        // The broker is still moving the others, and a vhost that goes meanwhile may hang.
        let moved = async || (world.count_ready(DEAD_LETTERS).await == 59).then_some(());
        world.wait_for("the other dead letters", moved).await;
        check_one_session(&worker);
    });
}

/// `x-death` as no broker writes it, and other headers that RabbitMQ 3.10 takes apart unlooked: each
/// ends the process that dead-letters at least once, for all queues of the node.
fn deadly_headers() -> Vec<Vec<u8>> {
    let array = |items: &[u8]| [&b"A"[..], &long_string(items)].concat();
    let table = |entries: &[u8]| [&b"F"[..], &long_string(entries)].concat();
    let string = |text: &[u8]| [&b"S"[..], &long_string(text)].concat();
    let named = |name: &[u8], value: &[u8]| [&short_string(name), value].concat();
    let ours = [named(b"queue", &string(JOBS.as_bytes())), named(b"reason", &string(b"rejected"))].concat();
    let counted = [ours, named(b"count", &string(b"1"))].concat();
    let twice = [named(b"BCC", &array(&string(b"no-queue"))), named(b"BCC", &string(b"no-queue"))].concat();
    vec![
        named(b"x-death", &array(&[string(b"a"), string(b"b")].concat())),
        named(b"x-death", &array(&string(b"a"))),
        named(b"x-death", &array(&table(&counted))),
        twice,
    ]
}

async fn count_rows(world: &World) -> i64 {
    world.count("select count(*) from dead_lettered_delivery where reason_code = 'invalid'").await
}

/// Takes a dead letter as soon as there is one.
async fn wait_to_take(world: &World, reader: &Mutex<RawBroker>) -> (Vec<u8>, Vec<u8>) {
    world.wait_for("a dead letter", async || reader.lock().await.take(DEAD_LETTERS).await).await
}

/// Has everything declared on a broker of the test's own. Returns its URL, and a client that can
/// publish any bytes there.
async fn prepare(world: &World, broker: &OwnRabbit) -> (String, RawBroker) {
    let amqp_url = broker.url();
    assert!(world.run(&["enqueue", "/dev/null"], &[("AMQP_URL", &amqp_url)]).await.status.success());
    let amqp = RawBroker::connect(&amqp_url).await;
    (amqp_url, amqp)
}

/// On a broker of the test's own: where the fault is, a node dead-letters nothing any more.
#[test]
fn headers_that_end_the_brokers_dead_lettering_are_never_rejected() {
    let broker = own_rabbit("");
    world(async |world| {
        let (amqp_url, mut amqp) = prepare(&world, &broker).await;
        let settings = [("AMQP_URL", amqp_url.as_str())];
        let mut bodies = Vec::new();
        let mut good = Vec::new();
        for (number, headers) in deadly_headers().iter().enumerate() {
            // Larger than what a worker takes of any message, more of them than pass at once, and small.
            for size in [10_000, 20_000, 30_000, 2] {
                let body = format!("{number}, {}", " no job".repeat(size)).into_bytes();
                let properties = RawProperties::persistent()
                    .with_headers(
                        &[&headers[..], &short_string(b"trace"), b"S", &long_string(b"kept")].concat(),
                    )
                    .with_text("correlation_id", b"upstream-7")
                    .with_text("expiration", b"600000");
                amqp.publish(&properties, &body).await;
                bodies.push(body);
            }
            let properties = RawProperties::persistent().with_headers(headers);
            good.push(publish_with(&mut amqp, &properties).await.0);
        }
        // What the broker dead-letters by itself.
        amqp.publish(&RawProperties::persistent(), b"no job either").await;
        bodies.push(b"no job either".to_vec());

        let worker = world.start_worker_with(&settings);
        for job_id in &good {
            world.wait_for_state(*job_id, &["accepted"]).await;
        }
        let (amqp, mut letters) = (Mutex::new(amqp), Vec::new());
        for _ in &bodies {
            letters.push(wait_to_take(&world, &amqp).await);
        }
        assert!(amqp.lock().await.take(DEAD_LETTERS).await.is_none(), "each is there once");
        for (properties, body) in &letters {
            let has = |text: &[u8]| properties.windows(text.len()).any(|bytes| bytes == text);
            assert!(has(b"x-death") && has(b"rejected") && has(JOBS.as_bytes()), "as the broker tells it");
            let published = body != b"no job either";
            assert_eq!((has(b"upstream-7"), has(b"kept")), (published, published), "as it was published");
            assert!(!has(b"600000") || !published, "it would not be kept");
        }
        let mut taken: Vec<_> = letters.into_iter().map(|(_, body)| body).collect();
        taken.sort();
        bodies.sort();
        assert!(taken == bodies, "they are whole");
        assert_eq!(count_rows(&world).await, i64::try_from(bodies.len()).expect("few"));
        check_one_session(&worker);
    });
}

/// What is not confirmed is not acked: the message comes again, and its row is one.
#[test]
fn a_letter_that_the_broker_does_not_take_comes_again() {
    let broker = own_rabbit("");
    world(async |world| {
        let (amqp_url, mut amqp) = prepare(&world, &broker).await;
        let settings = [("AMQP_URL", amqp_url.as_str())];
        let odd = RawProperties::persistent().with_headers(&deadly_headers()[0]);
        amqp.publish(&odd, b"no job").await;
        let (job_id, _) = publish_with(&mut amqp, &RawProperties::persistent()).await;
        let alarm = broker.set_memory_alarm().expect("it is set");
        let mut worker = world.start_worker_with(&settings);
        // A letter that waits holds up no job.
        world.wait_for_state(job_id, &["accepted"]).await;
        world.wait_for("a row", async || (count_rows(&world).await == 1).then_some(())).await;
        let listed = async || {
            let output = world.run(&["dead-letters", "list", "--json"], &settings).await;
            serde_json::from_slice::<Vec<Value>>(&output.stdout).map(|letters| letters.len()).ok()
        };
        assert_eq!(listed().await, Some(0));
        worker.kill();
        drop(alarm);
        let _worker = world.start_worker_with(&settings);
        // The broker may have read the first worker's as well, before that worker could know of it.
        world.wait_for("the letter", async || (listed().await >= Some(1)).then_some(())).await;
        assert_eq!(count_rows(&world).await, 1);
    });
}

/// A right is a person's to give. Until then the delivery waits, and the jobs behind it do not.
#[test]
fn a_letter_that_this_user_may_not_publish_is_an_error_once() {
    world(async |world| {
        world.declare_topology().await;
        let all_but_letters = "^kyc(\\.d(ocument|ead).*)?$";
        let amqp_url =
            world.allow_user_to(json!({ "configure": ".*", "write": all_but_letters, "read": ".*" })).await;
        let mut headers = FieldTable::default();
        let made_up = vec![AMQPValue::LongString("a".into()), AMQPValue::LongString("b".into())];
        headers.insert("x-death".into(), AMQPValue::FieldArray(made_up.into()));
        let odd = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
        world.publish_with(odd, b"no job").await;
        let worker = world.start_worker_with(&[("AMQP_URL", &amqp_url)]);
        const REFUSED: &str = r#""level":"ERROR","message":"a dead letter is refused"#;
        world.wait_for_log(&worker, REFUSED).await;
        let jobs = world.publish_jobs(3).await;
        world.wait_for_all_accepted(&jobs).await;
        world.wait_for_log(&worker, "a dead letter is still not published").await;
        world.allow_user(".*").await;
        let letter = world.wait_for("the letter", async || world.take_dead_letter().await).await;
        assert_eq!(letter, b"no job");
        assert_eq!(worker.log().matches(REFUSED).count(), 1, "{}", worker.log());
    });
}
