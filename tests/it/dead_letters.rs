//! Dead letters are listed without loss, and delivered again.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{World, job_body, world};
use crate::own_services::own_rabbit;

const DEAD_LETTERS: &str = "kyc.dead-letters";

/// A job that is none where passports alone are documents.
async fn publish_refused(world: &World) -> Uuid {
    let job_id = Uuid::new_v4();
    let mut body = job_body(Uuid::new_v4(), job_id);
    body["document_type"] = json!("VOTER_ID");
    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_message_id(job_id.to_string().into())
        .with_correlation_id("upstream-7".into());
    world.publish_with(properties, body.to_string().as_bytes()).await;
    job_id
}

pub(crate) async fn wait_for_letters(world: &World, count: u32) {
    let what = format!("{count} dead letters");
    world.wait_for(&what, async || (world.count_ready(DEAD_LETTERS).await == count).then_some(())).await;
}

/// What a program reads is what was published, whatever a terminal would make of it.
#[test]
fn a_letters_body_is_piped_byte_for_byte() {
    world(async |world| {
        world.declare_topology().await;
        let body = b"\x1b[31m{\x7f\xff\xc2\x9b2J\r";
        world.publish_dead_letter(body).await;
        wait_for_letters(&world, 1).await;
        let (listed, _) = world.ask(&["dead-letters", "list"]).await;
        let id = listed[0]["id"].as_str().expect("an id").to_owned();
        let shown = world.run(&["dead-letters", "show", &id, "--body"], &[]).await;
        let end = [&body[..], b"\n"].concat();
        assert!(shown.stdout.ends_with(&end), "{}", shown.stdout.escape_ascii());
    });
}

const STRICT: [(&str, &str); 1] = [("DOCUMENT_TYPES", "PASSPORT")];

#[test]
fn dead_letters_are_listed_without_loss_and_requeued() {
    world(async |world| {
        world.declare_topology().await;
        let mut strict = world.start_worker_with(&STRICT);
        let job_id = publish_refused(&world).await;
        let other = publish_refused(&world).await;
        wait_for_letters(&world, 2).await;
        world.publish_dead_letter(b"{}").await;
        wait_for_letters(&world, 3).await;
        strict.stop().await;

        let (listed, _) = world.ask(&["dead-letters", "list"]).await;
        let listed = listed.as_array().expect("a list").clone();
        assert_eq!(listed.len(), 3);
        let of = |job_id: Uuid| {
            let id = job_id.to_string();
            listed.iter().find(|letter| letter["message_id"] == id.as_str()).expect("it is listed").clone()
        };
        assert_eq!((&of(job_id)["by"], &of(job_id)["reason_code"]), (&json!("worker"), &json!("invalid")));
        let brokers = listed.iter().find(|letter| letter["row"].is_null()).expect("one without a row");
        assert_eq!(brokers["by"], "broker");
        wait_for_letters(&world, 3).await;

        let id = of(job_id)["id"].as_str().expect("an id").to_owned();
        let shown = world.say(&["dead-letters", "show", &id]).await;
        assert!(shown.contains("/document_type") && !shown.contains("Mumbai"), "{shown}");
        assert!(world.say(&["dead-letters", "show", &id, "--body"]).await.contains("Mumbai"));
        assert!(world.refuse(&["dead-letters", "show", "0123456789ab"]).await.contains("is queued"));
        wait_for_letters(&world, 3).await;

        let _lenient = world.start_worker();
        let signed = ["--by", "ana", "--note", "the contract allows it now"];
        let said = world.say(&[&["dead-letters", "requeue", &id][..], &signed].concat()).await;
        assert!(said.contains("requeued 1; 2 stay"), "{said}");
        world.wait_for_state(job_id, &["accepted"]).await;
        wait_for_letters(&world, 2).await;
        assert_eq!(world.count_patches(other).await, 0);
        let kept: Option<String> =
            sqlx::query_scalar("select correlation_id from submission where job_id = $1")
                .bind(job_id)
                .fetch_one(&world.pool)
                .await
                .expect("a row");
        assert_eq!(kept.as_deref(), Some("upstream-7"), "it is the message that it was");

        let by_reason = [&["dead-letters", "requeue", "--reason", "invalid"][..], &signed].concat();
        world.say(&by_reason).await;
        world.wait_for_state(other, &["accepted"]).await;
        wait_for_letters(&world, 1).await;
        let deeds = "select count(*) from intervention where action = 'requeue' and by = 'ana'";
        assert_eq!(world.count(deeds).await, 2);
        assert!(world.say(&["show", &job_id.to_string()]).await.contains("requeue by ana"));
    });
}

#[test]
fn the_row_of_a_dead_letter_is_kept_as_long_as_it_should_be() {
    world(async |world| {
        world
            .tamper(
                r"insert into dead_lettered_delivery (received_at, size, body_sha256, reason_code, reason)
                select now() - age, 2, '\x00', 'invalid', age::text
                from unnest(array[interval '91 days', interval '89 days']) age",
            )
            .await;
        let worker = world.start_worker();
        // A vhost that goes while its queues are declared takes the broker's dead-lettering along.
        world.wait_for_log(&worker, "the broker session is open").await;
        let rows = "select count(*) from dead_lettered_delivery";
        world.wait_for("a swept row", async || (world.count(rows).await == 1).then_some(())).await;
        let left = "select count(*) from dead_lettered_delivery where reason = '89 days'";
        assert_eq!(world.count(left).await, 1);
    });
}

const REQUEUE: [&str; 7] = ["dead-letters", "requeue", "--all", "--by", "ana", "--note", "again"];

/// Puts a good job among the dead letters.
async fn publish_buried(world: &World, properties: BasicProperties) -> Uuid {
    let job_id = Uuid::new_v4();
    let properties = properties.with_message_id(job_id.to_string().into());
    let body = job_body(Uuid::new_v4(), job_id).to_string();
    world.publish_dead_letter_with(properties, body.as_bytes()).await;
    job_id
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// The headers of a letter that says so of where it was.
fn died(queue: &str, exchange: &str, key: &str) -> FieldTable {
    let mut death = FieldTable::default();
    death.insert("queue".into(), text(queue));
    death.insert("exchange".into(), text(exchange));
    death.insert("reason".into(), text("rejected"));
    death.insert("routing-keys".into(), AMQPValue::FieldArray(FieldArray::from(vec![text(key)])));
    let mut headers = FieldTable::default();
    headers.insert(
        "x-death".into(),
        AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::FieldTable(death)])),
    );
    headers
}

/// Whoever publishes writes any headers; where a letter goes is the settings' word.
#[test]
fn no_header_sends_a_requeued_letter_elsewhere() {
    world(async |world| {
        let mut declaring = world.start_worker_with(&[("CUSTOMER_EVENTS", "true")]);
        world.wait_for_logs(&declaring, "the broker session is open", 2).await;
        declaring.stop().await;
        world.bind_queue("elsewhere", "any").await;
        let mut jobs = Vec::new();
        let mut copied = died("kyc.document-updates", "kyc", "document-update");
        copied.insert("CC".into(), AMQPValue::FieldArray(vec![text("any"), text("customer-event")].into()));
        for headers in [
            died("nowhere", "nowhere", "any"),
            died("kyc.document-updates", "kyc", "any"),
            died("kyc.document-updates", "", "elsewhere"),
            died("elsewhere", &"x".repeat(256), &"y".repeat(256)),
            copied,
        ] {
            let properties =
                BasicProperties::default().with_headers(headers).with_expiration("600000".into());
            jobs.push(publish_buried(&world, properties).await);
        }
        let event = BasicProperties::default().with_headers(died("kyc.customer-events", "kyc", "any"));
        publish_buried(&world, event).await;
        wait_for_letters(&world, 6).await;

        let said = world.say(&REQUEUE).await;
        assert!(said.contains("requeued 6; 0 stay"), "{said}");
        assert_eq!(world.count_ready("elsewhere").await, 0);
        assert_eq!(world.count_ready("kyc.customer-events").await, 1, "where it was");
        assert_eq!(world.count_ready("kyc.document-updates").await, 5);
        let _worker = world.start_worker();
        world.wait_for_all_accepted(&jobs).await;
    });
}

#[test]
fn a_letter_of_another_user_is_requeued_in_our_name() {
    world(async |world| {
        world.declare_topology().await;
        let first = publish_buried(&world, BasicProperties::default().with_user_id("guest".into())).await;
        let second = publish_buried(&world, BasicProperties::default()).await;
        wait_for_letters(&world, 2).await;
        let amqp_url = world.allow_user(".*").await;
        let output = world.run(&REQUEUE, &[("AMQP_URL", &amqp_url)]).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let _worker = world.start_worker();
        world.wait_for_all_accepted(&[first, second]).await;
        wait_for_letters(&world, 0).await;
    });
}

#[test]
fn a_letter_that_the_broker_refuses_stays_and_hides_no_other() {
    world(async |world| {
        world.declare_topology().await;
        // An event where no queue takes any.
        let event = died("kyc.customer-events", "kyc", "customer-event");
        let nowhere = BasicProperties::default().with_headers(event);
        publish_buried(&world, nowhere.clone()).await;
        let first = publish_buried(&world, BasicProperties::default()).await;
        publish_buried(&world, nowhere.clone()).await;
        publish_buried(&world, nowhere).await;
        let second = publish_buried(&world, BasicProperties::default()).await;
        wait_for_letters(&world, 5).await;

        let (said, succeeded) = world.ask(&REQUEUE).await;
        assert!(!succeeded, "not all were requeued");
        assert_eq!(said["requeued"].as_array().map(Vec::len), Some(2), "{said}");
        let reasons: Vec<&str> = said["refused"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|refused| refused["reason"].as_str())
            .collect();
        assert_eq!(reasons.len(), 3, "{said}");
        let why = "no queue is bound to exchange kyc with key customer-event";
        assert!(reasons.iter().all(|reason| reason.contains(why)), "{reasons:?}");
        wait_for_letters(&world, 3).await;
        let of_fate = |stays| {
            format!(
                "select count(*) from intervention where action = 'requeue' and detail {stays} '% stays: %'"
            )
        };
        let count = async |query: String| {
            sqlx::query_scalar::<_, i64>(&query).fetch_one(&world.pool).await.expect("the database answers")
        };
        assert_eq!(count(of_fate("not like")).await, 5, "what was meant");
        assert_eq!(count(of_fate("like")).await, 3, "what came of it");
        let _worker = world.start_worker();
        world.wait_for_all_accepted(&[first, second]).await;
    });
}

const FORGED: &str =
    "\u{1b}[2J\u{1b}]52;c;cm0=\u{7}\u{9b}1m\u{202e}a\u{7f}\n0123456789ab  1 s  worker  requeued";

const REVERSED: &str = "invoice-\u{202e}fdp.exe";

#[test]
fn what_a_publisher_wrote_moves_no_terminal() {
    world(async |world| {
        world.declare_topology().await;
        let job_id = Uuid::new_v4();
        let body = job_body(Uuid::new_v4(), job_id).to_string();
        // What has control characters is not kept.
        let properties = BasicProperties::default()
            .with_message_id(job_id.to_string().into())
            .with_correlation_id(REVERSED.into());
        world.publish_with(properties, body.as_bytes()).await;
        let worker = world.start_worker();
        world.wait_for_state(job_id, &["accepted"]).await;
        let letter = format!("{{\"{FORGED}\": \"\u{1b}[5m\"}}");
        world
            .publish_dead_letter_with(
                BasicProperties::default().with_message_id(FORGED.into()),
                letter.as_bytes(),
            )
            .await;
        wait_for_letters(&world, 1).await;

        let (listed, _) = world.ask(&["dead-letters", "list"]).await;
        assert_eq!(listed[0]["message_id"], FORGED, "JSON is exact");
        let (shown, _) = world.ask(&["show", &job_id.to_string()]).await;
        assert_eq!(shown["submission"]["correlation_id"], REVERSED, "JSON is exact: {shown}");
        let id = listed[0]["id"].as_str().expect("an id").to_owned();
        let job_id = job_id.to_string();
        for command in [
            &["dead-letters", "list"][..],
            &["dead-letters", "list", "--json"],
            &["dead-letters", "show", &id],
            &["show", &job_id],
            &["show", &job_id, "--json"],
            &["report"],
            &["list"],
        ] {
            check_shown(&format!("{command:?}"), &world.say(command).await);
        }
        let said = world.say(&["dead-letters", "list"]).await;
        assert_eq!(said.lines().count(), 2, "a header and a line: {said}");
        assert!(said.contains("\\u001b[2J"), "{said}");
        check_shown("the log", &worker.log());

        let bytes = world.run(&["dead-letters", "show", &id, "--body"], &[]).await.stdout;
        assert!(bytes.ends_with(format!("{letter}\n").as_bytes()), "a body that is piped is exact");
        let file = world.write_file("lines", letter.as_bytes());
        let refused = world.run(&["enqueue", &file], &[]).await;
        check_shown("enqueue", &String::from_utf8_lossy(&refused.stderr));
    });
}

#[track_caller]
fn check_shown(what: &str, text: &str) {
    let obeyed = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!text.contains(obeyed), "{what}: {text:?}");
    assert!(!text.lines().any(|line| line.starts_with("0123456789ab")), "{what}: {text:?}");
}

#[test]
fn letters_with_one_body_are_told_apart_by_their_message_ids() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker();
        for _ in 0..2 {
            world.publish(Some(Uuid::new_v4()), b"{}").await;
        }
        let listed = world
            .wait_for("two letters", async || {
                let output = world.run(&["dead-letters", "list", "--json"], &[]).await;
                serde_json::from_slice::<Vec<Value>>(&output.stdout).ok().filter(|listed| listed.len() == 2)
            })
            .await;
        for letter in &listed {
            assert_eq!(letter["row"]["job_id"], letter["message_id"], "{listed:?}");
        }
        assert_ne!(listed[0]["message_id"], listed[1]["message_id"]);
    });
}

#[test]
fn a_broker_with_an_alarm_is_waited_for_aloud_and_not_for_ever() {
    let broker = own_rabbit("");
    world(async |world| {
        let amqp_url = broker.url();
        let settings = [("AMQP_URL", amqp_url.as_str()), ("DOCUMENT_TYPES", "PASSPORT")];
        let start = |arguments: &[&str]| {
            let mut command = world.command();
            command.args(arguments).envs(settings);
            world.spawn(command)
        };
        let mut body = job_body(Uuid::new_v4(), Uuid::new_v4());
        body["document_type"] = json!("VOTER_ID");
        let lines: Vec<String> = (0..3)
            .map(|_| {
                body["job_id"] = json!(Uuid::new_v4());
                body.to_string()
            })
            .collect();
        let file = world.write_file("lines", lines.join("\n").as_bytes());
        let enqueue = ["enqueue", "--no-validate", &file];

        // Told while it lasts, and done when it is over.
        let alarm = broker.set_memory_alarm().expect("it is set");
        let mut enqueueing = start(&enqueue);
        world.wait_for_log(&enqueueing, "it has an alarm for memory or disk").await;
        assert!(enqueueing.is_running());
        drop(alarm);
        assert!(enqueueing.exit().await.success(), "{}", enqueueing.log());
        assert!(enqueueing.log().contains("published 3"), "{}", enqueueing.log());

        let mut worker = start(&["run"]);
        let invalid = "select count(*) from dead_lettered_delivery";
        world.wait_for("three letters", async || (world.count(invalid).await == 3).then_some(())).await;
        let listed = || async {
            let output = world.run(&["dead-letters", "list", "--json"], &settings).await;
            serde_json::from_slice::<Vec<Value>>(&output.stdout).map(|letters| letters.len()).ok()
        };
        world.wait_for("three in the queue", async || (listed().await == Some(3)).then_some(())).await;
        worker.stop().await;

        // Given up, with what became of each.
        let alarm = broker.set_memory_alarm().expect("it is set");
        let mut requeueing = start(&REQUEUE);
        let ended = requeueing.exit().await;
        let said = requeueing.log();
        assert_eq!(ended.code(), Some(1), "{said}");
        assert!(said.contains("was not requeued") && said.contains("rabbitmq-diagnostics alarms"), "{said}");
        assert!(said.contains("requeued 0; 0 stay") || said.contains("requeued 1; 0 stay"), "{said}");
        let stays = "select count(*) from intervention where detail like '% stays: %'";
        assert_eq!(world.count(stays).await, 1);
        drop(alarm);
        world.wait_for("all that was not taken", async || (listed().await >= Some(2)).then_some(())).await;
    });
}
