//! The provider's webhooks, passed on through a queue: what it signed is believed as far as
//! it goes, and nothing else is.

use std::time::Duration;

use dollarpe::canonical_json::{Json, Profile};
use dollarpe::signature::Signer;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::harness::{WorkerProcess, World, world, world_with};
use crate::outcome_events::TOLD;
use crate::verification::{scaled_with, world_that_verifies_in};

const ROUTING_KEY: &str = "customer-event";
const QUEUE: &str = "kyc.customer-events";

/// As long as no read is to find an end.
const FOR_EVER: u64 = 3_600_000;

/// A webhook as the provider sends it and the gateway passes it on.
struct Webhook {
    body: Vec<u8>,
    signed_at: i64,
    published_at: Option<i64>,
    secret: &'static str,
}

impl Webhook {
    /// One that says that a customer's verification ended so just now.
    fn of(customer_id: Uuid, event: &str) -> Self {
        Self::with_body(&body(customer_id, event, OffsetDateTime::now_utc()))
    }

    fn with_body(body: &Value) -> Self {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let body = serde_json::to_vec_pretty(body).expect("JSON");
        Self { body, signed_at: now, published_at: Some(now), secret: "sandbox-secret" }
    }

    fn properties(&self) -> BasicProperties {
        let signature = match Json::parse(&self.body) {
            Ok(json) => Signer::new("sandbox-key", self.secret)
                .sign(self.signed_at, json.to_canonical(Profile::Compact)),
            Err(_) => "unsigned".to_owned(),
        };
        let mut headers = FieldTable::default();
        let mut set = |name: &str, value: String| {
            headers.insert(name.into(), AMQPValue::LongString(value.into()));
        };
        set("X-TIMESTAMP", self.signed_at.to_string());
        set("X-SIGNATURE", signature);
        let properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
        match self.published_at.and_then(|seconds| u64::try_from(seconds).ok()) {
            Some(seconds) => properties.with_timestamp(seconds),
            None => properties,
        }
    }
}

fn body(customer_id: Uuid, event: &str, at: OffsetDateTime) -> Value {
    json!({
        "type": "CUSTOMER", "id": customer_id, "event": event,
        "timestamp": at.format(&Rfc3339).expect("a time"),
        "metadata": { "failure_reason": (event == "FAILED").then_some("KYC_FAILED") },
    })
}

impl World {
    fn start_worker_with_events(&self) -> WorkerProcess {
        self.start_worker_with(&scaled_with(&[("CUSTOMER_EVENTS", "true"), TOLD]))
    }

    async fn publish_webhook(&self, webhook: &Webhook) {
        self.publish_to(ROUTING_KEY, webhook.properties(), &webhook.body).await;
    }

    /// Waits until the verification of a job that was accepted may have ended.
    async fn wait_until_it_may_have_ended(&self, job_id: Uuid) {
        self.wait_for("the shortest verification", async || {
            let begun: Option<bool> = sqlx::query_scalar(
                "select max(begun_at) <= now() - interval '3 seconds' from attempt
                where job_id = $1 and verdict = 'accepted'",
            )
            .bind(job_id)
            .fetch_one(&self.pool)
            .await
            .expect("the database answers");
            begun.filter(|begun| *begun)
        })
        .await;
    }

    /// Starts a worker that has had a job accepted, whose verification may have ended.
    async fn start_with_one_that_may_have_ended(&self, customer_id: Uuid) -> (WorkerProcess, Uuid) {
        let (job_id, _) = self.publish_job_for(customer_id).await;
        let worker = self.start_worker_with_events();
        self.wait_for_state(job_id, &["accepted"]).await;
        self.wait_until_it_may_have_ended(job_id).await;
        (worker, job_id)
    }

    /// Has every read of a customer fail, so that what is known comes from webhooks.
    async fn blind(&self, customer_id: Uuid) {
        let is_read = json!({ "method": "GET", "customer_id": customer_id });
        let down = json!({ "answer": { "kind": "respond", "status": 503, "body": "down" } });
        self.add_rule(json!({ "match": is_read, "fault": down })).await;
    }

    /// The words that were observed of a job's customer, and how.
    async fn words(&self, job_id: Uuid) -> Vec<(String, String)> {
        let observations = self.observations(job_id).await;
        let word = |seen: crate::harness::Observation| Some((seen.purpose, seen.status?));
        observations.into_iter().filter_map(word).collect()
    }

    async fn wait_for_event(&self, job_id: Uuid) {
        self.wait_for("an event with its row", async || {
            self.words(job_id).await.iter().any(|(purpose, _)| purpose == "webhook").then_some(())
        })
        .await;
    }
}

fn pairs(words: &[(String, String)]) -> Vec<(&str, &str)> {
    words.iter().map(|(purpose, word)| (purpose.as_str(), word.as_str())).collect()
}

#[test]
fn an_event_ends_a_verification_and_a_read_confirms_it() {
    world_with(world_that_verifies_in(FOR_EVER), async |world| {
        world.declare_topology().await;
        let upstream = world.listen().await;
        let customer_id = Uuid::new_v4();
        world.blind(customer_id).await;
        let (worker, job_id) = world.start_with_one_that_may_have_ended(customer_id).await;

        world.publish_webhook(&Webhook::of(customer_id, "FAILED")).await;
        world.wait_for_log(&worker, "a customer event ended the verification").await;
        let ended = world.verification(job_id).await;
        assert_eq!(ended.status.as_deref(), Some("FAILED"));
        assert_eq!(ended.failure_reason.as_deref(), Some("KYC_FAILED"));
        assert_eq!(pairs(&world.words(job_id).await), [("webhook", "FAILED")]);

        let failed = json!({ "status": "FAILED", "failure_reason": "KYC_FAILED" });
        world.set_customer(customer_id, failed).await;
        world.clear_rules().await;
        let ended = world.wait_for_end_of_verification(job_id).await;
        assert_eq!(ended.status.as_deref(), Some("FAILED"));
        assert_eq!(
            pairs(&world.words(job_id).await),
            [("webhook", "FAILED"), ("verification", "FAILED")],
            "the end is a read's word as well"
        );
        let told = upstream.wait_for_implied(&world, &[job_id]).await;
        assert_eq!(told.len(), 2, "the end is told once: {told:?}");
    });
}

/// As client libraries do whose language has no text apart from bytes.
#[test]
fn an_event_whose_headers_are_bytes_is_believed() {
    world_with(world_that_verifies_in(FOR_EVER), async |world| {
        world.declare_topology().await;
        let customer_id = Uuid::new_v4();
        world.blind(customer_id).await;
        let (worker, job_id) = world.start_with_one_that_may_have_ended(customer_id).await;

        let webhook = Webhook::of(customer_id, "FAILED");
        let mut headers = FieldTable::default();
        for (name, value) in webhook.properties().headers().clone().expect("headers").inner() {
            let AMQPValue::LongString(text) = value else { panic!("{name} is no text") };
            headers.insert(name.clone(), AMQPValue::ByteArray(text.as_bytes().to_vec().into()));
        }
        let properties = webhook.properties().with_headers(headers);
        world.publish_to(ROUTING_KEY, properties, &webhook.body).await;
        world.wait_for_log(&worker, "a customer event ended the verification").await;
        assert_eq!(world.verification(job_id).await.status.as_deref(), Some("FAILED"));
    });
}

#[test]
fn an_event_of_an_earlier_update_ends_nothing_and_brings_a_read() {
    world_with(world_that_verifies_in(FOR_EVER), async |world| {
        world.declare_topology().await;
        let customer_id = Uuid::new_v4();
        let older = world.publish_job_asked(customer_id, 20).await;
        let settings = scaled_with(&[
            ("CUSTOMER_EVENTS", "true"),
            ("VERIFICATION_POLL_AFTER", "45s"),
            ("CUSTOMER_READ_INTERVAL", "1s"),
        ]);
        let worker = world.start_worker_with(&settings);
        world.wait_for_state(older, &["accepted"]).await;
        let newer = world.publish_job_asked(customer_id, 10).await;
        world.wait_for_state(newer, &["accepted"]).await;
        world.wait_until_it_may_have_ended(newer).await;
        assert_eq!(world.count_reads(customer_id).await, 0, "the first read is far off");

        world.publish_webhook(&Webhook::of(customer_id, "VERIFIED")).await;
        world.wait_for_event(newer).await;
        let verification = world.verification(newer).await;
        assert_eq!(verification.status.as_deref(), Some("PROCESSING"), "it may be the older one's end");
        assert!(verification.is_tracked);
        assert!(world.observations(older).await.is_empty());
        assert!(
            worker.log().contains("a customer event is stored; a read will confirm it"),
            "{}",
            worker.log()
        );

        // No read comes sooner after an acceptance than the first would: then, not now.
        let due = "select count(*) from submission
            where verification_due_at = ended_at + interval '45 seconds' and verification_due_at > now()";
        assert_eq!(world.count(due).await, 2);
    });
}

/// Older than the newest attempt, or than the newest read.
#[test]
fn an_event_older_than_what_is_known_ends_nothing() {
    world_with(world_that_verifies_in(FOR_EVER), async |world| {
        world.declare_topology().await;
        let customer_id = Uuid::new_v4();
        let (job_id, _) = world.publish_job_for(customer_id).await;
        let _worker = world.start_worker_with_events();
        world.wait_for_state(job_id, &["accepted"]).await;
        let begun_at: OffsetDateTime = sqlx::query_scalar("select begun_at from attempt where job_id = $1")
            .bind(job_id)
            .fetch_one(&world.pool)
            .await
            .expect("the database answers");
        let before = body(customer_id, "VERIFIED", begun_at - Duration::from_secs(1));
        world.publish_webhook(&Webhook::with_body(&before)).await;
        world.wait_for_event(job_id).await;
        assert_eq!(world.verification(job_id).await.status.as_deref(), Some("PROCESSING"));

        // A read has seen it in PROCESSING later than this one says.
        world
            .wait_for("a read that was written down", async || {
                let seen = "select count(*) from submission where verification_seen_at is not null";
                (world.count(seen).await == 1).then_some(())
            })
            .await;
        let outdated = body(customer_id, "VERIFIED", begun_at + Duration::from_millis(3001));
        let seen_later: bool =
            sqlx::query_scalar("select verification_seen_at > $2 from submission where job_id = $1")
                .bind(job_id)
                .bind(begun_at + Duration::from_millis(3001))
                .fetch_one(&world.pool)
                .await
                .expect("the database answers");
        assert!(seen_later, "the first read is 3 s after the acceptance");
        world.publish_webhook(&Webhook::with_body(&outdated)).await;
        world.wait_for("both events", async || (world.words(job_id).await.len() == 2).then_some(())).await;
        let verification = world.verification(job_id).await;
        assert_eq!(verification.status.as_deref(), Some("PROCESSING"));
        assert!(verification.is_tracked);
    });
}

#[test]
fn an_unknown_word_is_stored_and_ends_nothing() {
    world_with(world_that_verifies_in(FOR_EVER), async |world| {
        world.declare_topology().await;
        let customer_id = Uuid::new_v4();
        let (_worker, job_id) = world.start_with_one_that_may_have_ended(customer_id).await;
        world.publish_webhook(&Webhook::of(customer_id, "ON_HOLD")).await;
        world.wait_for_event(job_id).await;
        assert_eq!(pairs(&world.words(job_id).await), [("webhook", "ON_HOLD")]);
        let verification = world.verification(job_id).await;
        assert_eq!(verification.status.as_deref(), Some("PROCESSING"), "a read will confirm it");
        assert!(verification.is_tracked);
    });
}

#[test]
fn a_forged_stale_or_unreadable_event_is_dead_lettered_whole_with_a_row() {
    world(async |world| {
        let worker = world.start_worker_with_events();
        world.wait_for_log(&worker, QUEUE).await;
        let customer_id = Uuid::new_v4();
        let genuine = || Webhook::of(customer_id, "VERIFIED");
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let cases = [
            ("forged", Webhook { secret: "another", ..genuine() }),
            ("stale", Webhook { signed_at: now - 600, ..genuine() }),
            ("stale", Webhook { signed_at: now + 600, ..genuine() }),
            ("invalid", Webhook { published_at: None, ..genuine() }),
            ("invalid", Webhook { body: b"{ no JSON".to_vec(), ..genuine() }),
            ("invalid", Webhook::with_body(&json!({ "type": "CUSTOMER", "id": "nobody" }))),
        ];
        for (reason_code, webhook) in &cases {
            world.publish_webhook(webhook).await;
            let letter = world.wait_for("a dead letter", async || world.take_dead_letter().await).await;
            assert_eq!(letter, webhook.body, "{reason_code}");
            let row: (String, i32) = sqlx::query_as(
                "select reason_code, size from dead_lettered_delivery order by id desc limit 1",
            )
            .fetch_one(&world.pool)
            .await
            .expect("its row was committed before");
            assert_eq!(row, ((*reason_code).to_owned(), i32::try_from(letter.len()).expect("short")));
        }
        assert_eq!(world.count("select count(*) from dead_lettered_delivery").await, 6);
        assert_eq!(world.count("select count(*) from observation").await, 0);
        assert!(!worker.log().contains("ERROR"), "{}", worker.log());
    });
}

#[test]
fn an_event_that_waited_out_an_outage_in_the_queue_is_still_good() {
    world_with(world_that_verifies_in(FOR_EVER), async |world| {
        world.declare_topology().await;
        let customer_id = Uuid::new_v4();
        let (_worker, job_id) = world.start_with_one_that_may_have_ended(customer_id).await;
        // Attribution and published two hours ago.
        let then = OffsetDateTime::now_utc() - Duration::from_secs(7200);
        let seconds = then.unix_timestamp();
        let webhook = Webhook::with_body(&body(customer_id, "VERIFIED", then));
        let webhook = Webhook { signed_at: seconds, published_at: Some(seconds), ..webhook };
        world.publish_webhook(&webhook).await;
        world.wait_for_event(job_id).await;
        assert_eq!(world.count("select count(*) from dead_lettered_delivery").await, 0);
    });
}

#[test]
fn an_event_twice_is_one_and_one_of_nobody_is_counted() {
    world_with(world_that_verifies_in(FOR_EVER), async |world| {
        world.declare_topology().await;
        let customer_id = Uuid::new_v4();
        let (job_id, _) = world.publish_job_for(customer_id).await;
        let mut workers = [(); 2].map(|()| world.start_worker_with_events());
        world.wait_for_state(job_id, &["accepted"]).await;
        world.wait_until_it_may_have_ended(job_id).await;
        let webhook = Webhook::of(customer_id, "VERIFIED");
        for _ in 0..5 {
            world.publish_webhook(&webhook).await;
        }
        world.publish_webhook(&Webhook::of(Uuid::new_v4(), "VERIFIED")).await;
        let other = json!({ "type": "TRANSACTION", "id": customer_id, "event": "COMPLETED" });
        world.publish_webhook(&Webhook::with_body(&other)).await;
        world
            .wait_for("both that are no business of ours", async || {
                let logs = workers.each_ref().map(WorkerProcess::log).concat();
                (logs.matches("a customer event is ignored").count() == 2).then_some(())
            })
            .await;
        world.wait_for_event(job_id).await;
        let webhooks = "select count(*) from observation where purpose = 'webhook'";
        // The verification may have ended by a read before.
        world.wait_for("its row", async || (world.count(webhooks).await > 0).then_some(())).await;
        for worker in &mut workers {
            worker.stop().await;
        }
        assert_eq!(world.count_ready(QUEUE).await, 0, "each was acked");
        assert_eq!(world.count(webhooks).await, 1);
        assert!(world.take_dead_letter().await.is_none());
        let told = workers.each_ref().map(WorkerProcess::log).concat();
        assert_eq!(told.matches("a customer event ended the verification").count(), 1);
    });
}

#[test]
fn an_event_clears_no_update_of_suspicion() {
    world_with(world_that_verifies_in(FOR_EVER), async |world| {
        world.declare_topology().await;
        let customer_id = Uuid::new_v4();
        world.blind(customer_id).await;
        let (worker, _) = world.start_with_one_that_may_have_ended(customer_id).await;
        world.publish_webhook(&Webhook::of(customer_id, "FAILED")).await;
        world.wait_for_log(&worker, "a customer event ended the verification").await;

        // The customer reads PROCESSING, for all we know still because of the first.
        let second = Uuid::new_v4();
        world.break_job(second, json!({ "apply": "never", "answer": { "kind": "reset" } })).await;
        world.publish_job_named(customer_id, second).await;
        world.wait_for_state(second, &["unknown"]).await;
        world.clear_rules().await;
        world.set_customer(customer_id, json!({ "status": "PROCESSING" })).await;
        world
            .wait_for("a read that saw PROCESSING", async || {
                let words = world.words(second).await;
                words.iter().any(|(_, word)| word == "PROCESSING").then_some(())
            })
            .await;
        let observations = world.observations(second).await;
        assert!(
            observations.iter().all(|seen| seen.conclusion.as_deref() != Some("applied")),
            "{observations:?}"
        );
        assert_ne!(world.submission(second).await.expect("a row").state, "accepted");
    });
}

#[test]
fn without_the_setting_there_is_no_queue_of_events() {
    world(async |world| {
        let worker = world.start_worker();
        world.wait_for_log(&worker, "the broker session is open").await;
        assert!(!world.queue_exists(QUEUE).await);
        let worker = world.start_worker_with_events();
        world.wait_for_log(&worker, QUEUE).await;
        assert!(world.queue_exists(QUEUE).await);
    });
}
