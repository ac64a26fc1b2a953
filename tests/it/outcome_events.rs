//! Upstream is told how each job ended and what its verification became: every event, a job's in their
//! order, whatever is killed or away.

use std::ops::Deref;
use std::sync::Mutex;

use kyc_lab::upstream::{self, Taken, Upstream};
use kyc_worker::domain::outcome_event::event_schema;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{World, job_body, sized, world, world_with};
use crate::verification::{SCALED, scaled_with, world_that_verifies_in};

/// Workers tell upstream.
pub const TOLD: (&str, &str) = ("OUTCOME_EVENTS", "true");

/// What holds workers that publish events up by a second at most.
const PROMPT: [(&str, &str); 2] = [TOLD, ("SCHEDULER_POLL", "100ms")];

/// A consumer, with all that it was told so far.
pub struct Listener {
    upstream: Upstream,
    told: Mutex<Vec<Taken>>,
}

impl Deref for Listener {
    type Target = Upstream;

    fn deref(&self) -> &Upstream {
        &self.upstream
    }
}

impl World {
    /// Binds a queue of upstream's to every event.
    pub async fn listen(&self) -> Listener {
        let upstream = Upstream::listen(self.amqp_url(), "kyc.events", "upstream").await;
        Listener { upstream: upstream.expect("the broker lets us"), told: Mutex::default() }
    }

    /// How many events are not published yet.
    async fn count_waiting_events(&self) -> i64 {
        self.count("select count(*) from outcome_event").await
    }
}

impl Listener {
    /// All that was told so far.
    async fn told(&self) -> Vec<Taken> {
        let taken = self.take().await.expect("the broker answers");
        let mut told = self.told.lock().expect("no panic");
        told.extend(taken);
        told.clone()
    }

    /// Waits until these jobs have ended and all that the tables imply was told, checks that it was told as
    /// it should be, and returns every copy.
    pub async fn wait_for_implied(&self, world: &World, jobs: &[Uuid]) -> Vec<Value> {
        world
            .wait_for("the end of every job", async || {
                let ended = "select count(*) from submission where job_id = any($1) and ended_at is not null";
                let ended = sqlx::query_scalar::<_, i64>(ended).bind(jobs).fetch_one(&world.pool).await;
                (ended.expect("the database answers") == jobs.len() as i64).then_some(())
            })
            .await;
        world.wait_for("every event", async || (world.count_waiting_events().await == 0).then_some(())).await;
        self.check(world).await;
        self.told().await.into_iter().map(|taken| taken.event).collect()
    }

    async fn check(&self, world: &World) {
        let implied = upstream::implied(&world.pool).await.expect("the database answers");
        let told = self.told().await;
        let check = upstream::compare(&told, &implied);
        assert!(check.agrees(), "{check:?}");
        let options = jsonschema::options().should_validate_formats(true);
        let schema = options.build(&event_schema()).expect("a schema");
        for Taken { event, .. } in &told {
            schema.validate(event).unwrap_or_else(|fault| panic!("{fault}: {event}"));
        }
    }

    /// Waits for one event of a job.
    async fn wait_for(&self, world: &World, job_id: Uuid, key: &str) -> Taken {
        let what = format!("{key} of {job_id}");
        world
            .wait_for(&what, async || {
                let told = self.told().await;
                told.into_iter()
                    .find(|taken| taken.routing_key == key && taken.event["subject"] == job_id.to_string())
            })
            .await
    }
}

#[test]
fn an_event_says_what_became_of_a_job_and_nothing_that_a_customer_entered() {
    world_with(world_that_verifies_in(3000), async |world| {
        world.declare_topology().await;
        let upstream = world.listen().await;
        let _worker = world.start_worker_with(&scaled_with(&PROMPT));
        let (customer_id, job_id) = (Uuid::new_v4(), Uuid::new_v4());
        let failing = json!({ "verifies_as": "FAILED", "failure_reason": "TAX_VERIFICATION_FAILED" });
        world.set_customer(customer_id, failing).await;
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let mut headers = FieldTable::default();
        headers.insert("traceparent".into(), AMQPValue::LongString(trace.into()));
        let properties = BasicProperties::default()
            .with_message_id(job_id.to_string().into())
            .with_correlation_id("order-17".into())
            .with_headers(headers);
        let body = job_body(customer_id, job_id);
        world.publish_with(properties, body.to_string().as_bytes()).await;

        let Taken { event, properties, .. } = upstream.wait_for(&world, job_id, "job.accepted").await;
        let text = |name: &str| event[name].as_str().expect("a text").to_owned();
        assert_eq!(text("specversion"), "1.0");
        assert_eq!(text("type"), "kyc.job.accepted.v1");
        assert_eq!(text("subject"), job_id.to_string());
        assert_eq!(text("traceparent"), trace);
        let data = &event["data"];
        assert_eq!(data["customer_id"], customer_id.to_string());
        let known = [&data["state"], &data["evidence"], &data["attempts"], &data["correlation_id"]];
        assert_eq!(known, [&json!("accepted"), &json!("response"), &json!(1), &json!("order-17")]);
        assert_eq!((&data["verification_status"], &data["ended_at"]), (&Value::Null, &event["time"]));
        let property = |text: &Option<ShortString>| text.as_ref().map(ToString::to_string);
        assert_eq!(property(properties.message_id()), Some(text("id")));
        assert_eq!(property(properties.correlation_id()).as_deref(), Some("order-17"));
        assert_eq!(property(properties.kind()).as_deref(), Some("kyc.job.accepted.v1"));
        assert_eq!(property(properties.content_type()).as_deref(), Some("application/cloudevents+json"));
        assert_eq!(*properties.delivery_mode(), Some(2));
        let traceparent =
            properties.headers().as_ref().and_then(|headers| headers.inner().get("traceparent"));
        assert_eq!(traceparent, Some(&AMQPValue::LongString(trace.into())));
        assert!(properties.timestamp().is_some());

        let Taken { event, .. } = upstream.wait_for(&world, job_id, "verification.failed").await;
        let data = &event["data"];
        assert_eq!(data["verification_status"], "FAILED");
        assert_eq!(data["failure_reason"], "TAX_VERIFICATION_FAILED");
        for Taken { event, .. } in upstream.told().await {
            let text = event.to_string();
            for entered in ["Élysée", "123456123456", "3456", "files.example.com", "X-Amz"] {
                assert!(!text.contains(entered), "{entered}: {text}");
            }
        }
        upstream.check(&world).await;
    });
}

/// Those that people end, and that nothing was sent for, included.
#[test]
fn every_kind_of_end_is_told_once() {
    world_with(world_that_verifies_in(3000), async |world| {
        world.declare_topology().await;
        let upstream = world.listen().await;
        let settings = [
            ("RETRY_MAX_ATTEMPTS", "1"),
            ("BREAKER_FAILURES", "1000"),
            ("VERIFICATION_POLL_MAX", "4s"),
            ("VERIFICATION_DEADLINE", "4s"),
            ("READ_BACK_DEADLINE", "6s"),
        ];
        let _worker = world.start_worker_with(&[&scaled_with(&PROMPT)[..], &settings].concat());
        let (customer_id, slow) = (Uuid::new_v4(), Uuid::new_v4());
        world.set_customer(slow, json!({ "verification_ms": 9000 })).await;
        let (overdue, _) = world.publish_job_for(slow).await;
        let accepted = world.publish_job_asked(customer_id, 60).await;
        upstream.wait_for(&world, accepted, "job.accepted").await;
        let superseded = world.publish_job_asked(customer_id, 120).await;
        upstream.wait_for(&world, superseded, "job.superseded").await;
        let answer = json!({ "kind": "respond", "status": 429, "headers": { "retry-after": "1" } });
        let exhausted = world.publish_broken_job(json!({ "apply": "never", "answer": answer })).await;
        upstream.wait_for(&world, exhausted, "job.exhausted").await;
        let refused = json!({
            "kind": "respond", "status": 400, "body": { "status": false, "message": "KYC already in use" }
        });
        let rejected = world.publish_broken_job(json!({ "apply": "never", "answer": refused })).await;
        let invalid = Uuid::new_v4();
        for body in [b"{}", b"[]"] {
            world.publish(Some(invalid), body).await;
        }
        upstream.wait_for(&world, invalid, "job.invalid").await;
        let hidden = json!({ "apply": "now", "answer": { "kind": "reset" } });
        let job_id = Uuid::new_v4();
        let unread = json!({ "kind": "respond", "status": 503, "body": "no" });
        let of = Uuid::new_v4();
        world
            .add_rule(
                json!({ "match": { "method": "GET", "customer_id": of }, "fault": { "answer": unread } }),
            )
            .await;
        world.break_job(job_id, hidden).await;
        world.publish_job_named(of, job_id).await;
        upstream.wait_for(&world, job_id, "job.needs_review").await;
        let resolved = ["resolve", &job_id.to_string(), "--as", "accepted", "--by", "ana", "--note", "seen"];
        world.say(&resolved).await;
        upstream.wait_for(&world, job_id, "job.accepted").await;
        upstream.wait_for(&world, accepted, "verification.verified").await;
        upstream.wait_for(&world, overdue, "verification.overdue").await;
        upstream.wait_for(&world, overdue, "verification.verified").await;
        upstream
            .wait_for_implied(&world, &[accepted, superseded, exhausted, rejected, invalid, job_id])
            .await;
    });
}

#[test]
fn what_nobody_is_bound_to_is_kept_and_jobs_go_on() {
    world(async |world| {
        world.declare_topology().await;
        let upstream = world.listen().await;
        upstream.unbind().await.expect("the broker does it");
        let worker = world.start_worker_with(&PROMPT);
        // A second replica does not try beside it.
        let other = world.start_worker_with(&PROMPT);
        let mut jobs = world.publish_jobs(3).await;
        world.wait_for_all_accepted(&jobs).await;
        let logs = || [worker.log(), other.log()].concat();
        world
            .wait_for("an error", async || {
                let told = "no queue is bound to exchange kyc.events with key job.accepted";
                logs().contains(told).then_some(())
            })
            .await;
        jobs.extend(world.publish_jobs(3).await);
        world.wait_for_all_accepted(&jobs).await;
        assert_eq!(world.count_waiting_events().await, 6);
        let report = world.say(&["report"]).await;
        assert!(report.contains("outcome events that are not published: 6"), "{report}");
        upstream.bind().await.expect("the broker does it");
        upstream.wait_for_implied(&world, &jobs).await;
        let again = "outcome events are published again";
        world.wait_for("an all-clear", async || logs().contains(again).then_some(())).await;
        assert_eq!(logs().matches("outcome events are not published").count(), 1, "told once");
        // Of what is returned, its library would write every byte.
        assert!(!logs().contains("Server returned us a message"));
    });
}

#[test]
fn a_broker_that_is_away_for_events_loses_none() {
    world(async |world| {
        world.declare_topology().await;
        let upstream = world.listen().await;
        let (relay, amqp_url) = world.relay_to_broker().await;
        let _worker = world.start_worker_with(&[&PROMPT[..], &[("AMQP_URL", &amqp_url)]].concat());
        let mut jobs = world.publish_jobs(5).await;
        world.wait_for_all_accepted(&jobs).await;
        relay.cut();
        jobs.extend(world.publish_jobs(5).await);
        upstream.wait_for_implied(&world, &jobs).await;
    });
}

/// Workers are killed at any step, and upstream's queue is unbound now and then.
#[test]
fn a_backlog_with_kills_is_told_as_the_tables_imply_it() {
    world(async |world| {
        world.declare_topology().await;
        let upstream = world.listen().await;
        // By these times, at either size: what a kill leaves unknown is settled soon, or left to a person.
        let settings =
            [&SCALED[..], &PROMPT, &[("READ_BACK_DEADLINE", "15s"), ("BREAKER_PROBE_INTERVAL", "100ms")]];
        let settings = settings.concat();
        let count = sized(400, 10_000);
        let jobs = world.enqueue_jobs(count, &[]).await;
        let mut workers: Vec<_> = (0..2).map(|_| world.start_worker_with(&settings)).collect();
        let kills = sized(6, 30);
        for n in 1..=kills {
            let ended = format!("{n} of {kills} parts");
            world
                .wait_for(&ended, async || {
                    let ended =
                        world.count("select count(*) from submission where ended_at is not null").await;
                    (ended >= (n * count / (kills + 2)) as i64).then_some(())
                })
                .await;
            let mut killed = workers.remove(0);
            killed.kill();
            if n % 3 == 0 {
                upstream.unbind().await.expect("the broker does it");
            }
            workers.push(world.start_worker_with(&settings));
            upstream.bind().await.expect("the broker does it");
        }
        upstream.wait_for_implied(&world, &jobs).await;
    });
}

#[test]
fn a_consumer_that_lost_its_queue_is_told_the_same_again() {
    world_with(world_that_verifies_in(3000), async |world| {
        world.declare_topology().await;
        let upstream = world.listen().await;
        let replay = ["events", "replay", "--since", "2026-01-01"];
        let refused = world.run(&replay, &[]).await;
        let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && complaint.contains("no replica publishes events"),
            "{complaint}"
        );

        let mut worker = world.start_worker_with(&scaled_with(&PROMPT));
        let (jobs, other) = (world.publish_jobs(4).await, Uuid::new_v4());
        let (of_other, _) = world.publish_job_for(other).await;
        for job_id in jobs.iter().chain([&of_other]) {
            upstream.wait_for(&world, *job_id, "verification.verified").await;
        }
        let first = upstream.told().await.len();
        assert_eq!(first, 10);
        let told = world.say(&replay).await;
        assert_eq!(told.trim(), "told again: 10 events of 5 jobs");
        upstream.check(&world).await;
        assert_eq!(upstream.told().await.len(), 20, "each came twice, and both copies are the same");
        let other = other.to_string();
        let one = [&replay[..], &["--customer", &other, "--json"]].concat();
        let told: Value = serde_json::from_str(&world.say(&one).await).expect("JSON");
        assert_eq!((&told["jobs"], &told["events"]), (&json!(1), &json!(2)));
        let told = world.say(&["events", "replay", "--since", "2036-01-01"]).await;
        assert_eq!(told.trim(), "told again: 0 events of 0 jobs");
        worker.stop().await;
    });
}

#[test]
fn a_publisher_that_stops_leaves_its_turn_to_the_next() {
    world(async |world| {
        world.declare_topology().await;
        let upstream = world.listen().await;
        let mut first = world.start_worker_with(&PROMPT);
        let job_id = world.publish_job().await;
        upstream.wait_for(&world, job_id, "job.accepted").await;
        first.stop().await;
        let is_left = "select count(*) from event_publishing where turn_until <= now()";
        assert_eq!(world.count(is_left).await, 1);
        let job_id = world.publish_job().await;
        let drained = world.run(&["run", "--drain"], &PROMPT).await;
        assert!(drained.status.success(), "{}", String::from_utf8_lossy(&drained.stderr));
        assert_eq!(world.count_waiting_events().await, 0, "it drains what is to be told, too");
        upstream.wait_for(&world, job_id, "job.accepted").await;
    });
}

#[test]
fn without_the_setting_nothing_is_written_down() {
    world_with(world_that_verifies_in(3000), async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker_with(&SCALED);
        let jobs = world.publish_jobs(3).await;
        world.publish(Some(Uuid::new_v4()), b"{}").await;
        for job_id in &jobs {
            world.wait_for_end_of_verification(*job_id).await;
        }
        assert_eq!(world.count_waiting_events().await, 0);
        let drawn =
            "select coalesce(pg_sequence_last_value(pg_get_serial_sequence('outcome_event', 'id')), 0)";
        assert_eq!(world.count(drawn).await, 0, "not even for a moment");
    });
}

/// Those that docs/deployment.md gives it.
#[test]
fn a_worker_with_the_least_rights_tells_upstream() {
    world(async |world| {
        world.declare_topology().await;
        let check = async |settings: &[(&str, &str)]| {
            let said = world.run(&["check"], &[&[TOLD][..], settings].concat()).await;
            (said.status.success(), String::from_utf8_lossy(&said.stdout).into_owned())
        };
        let (is_right, said) = check(&[]).await;
        assert!(is_right && said.contains("there is no topic exchange kyc.events yet"), "{said}");
        let (is_right, said) = check(&[("TOPOLOGY", "verify")]).await;
        assert!(
            !is_right && said.contains("EVENTS_EXCHANGE: there is no topic exchange kyc.events"),
            "{said}"
        );
        let upstream = world.listen().await;
        let (is_right, said) = check(&[]).await;
        assert!(is_right && said.contains("topic exchange kyc.events is declared as it should be"), "{said}");

        let rights =
            |write: &str| json!({ "configure": "^$", "write": write, "read": "^kyc\\.document-updates$" });
        let amqp_url = world.allow_user_to(rights("^kyc\\.dlx$")).await;
        let settings = [TOLD, ("TOPOLOGY", "verify"), ("AMQP_URL", amqp_url.as_str())];
        let (is_right, said) = check(&settings[1..]).await;
        let blamed = "EVENTS_EXCHANGE: this user may not publish to kyc.events";
        assert!(!is_right && said.contains(blamed), "{said}");
        let worker = world.start_worker_with(&settings);
        let job_id = world.publish_job().await;
        world.wait_for_all_accepted(&[job_id]).await;
        world.wait_for_log(&worker, "outcome events are not published until a person has fixed this").await;
        assert!(worker.log().contains("ACCESS_REFUSED"), "{}", worker.log());
        world.allow_user_to(rights("^kyc\\.(dlx|events)$")).await;
        upstream.wait_for_implied(&world, &[job_id]).await;
        let (is_right, said) = check(&settings[1..]).await;
        assert!(is_right, "{said}");
    });
}

#[test]
fn a_job_that_is_sent_again_is_told_of_again() {
    world(async |world| {
        world.declare_topology().await;
        let upstream = world.listen().await;
        let once = [("RETRY_MAX_ATTEMPTS", "1"), ("BREAKER_FAILURES", "1000")];
        let _worker = world.start_worker_with(&[&PROMPT[..], &once].concat());
        let job_id = Uuid::new_v4();
        let answer = json!({ "kind": "respond", "status": 429, "headers": { "retry-after": "1" } });
        world.break_job_once(job_id, json!({ "apply": "never", "answer": answer })).await;
        world.publish_job_named(Uuid::new_v4(), job_id).await;
        upstream.wait_for(&world, job_id, "job.exhausted").await;
        let id = job_id.to_string();
        world.say(&["replay", &id, "--yes", "--by", "ana", "--note", "again"]).await;
        upstream.wait_for(&world, job_id, "job.accepted").await;
        let told = upstream.wait_for_implied(&world, &[job_id]).await;
        assert_eq!(told.len(), 2);
    });
}

/// By a clock that is ahead a job ends twice at one time; and the exchange is there before the first event.
#[test]
fn two_ends_at_one_time_are_two_events() {
    world(async |world| {
        world.declare_topology().await;
        let worker = world.start_worker_with(&PROMPT);
        world.wait_for_consumers(1).await;
        let upstream = world
            .wait_for("the exchange", async || {
                Upstream::bind_to(world.amqp_url(), "kyc.events", "upstream").await.ok()
            })
            .await;
        drop((worker, upstream));
        // A worker that was killed keeps its turn for a while.
        world.tamper("update event_publishing set turn_until = 'epoch'").await;
        let journal = crate::one_customer::journal(&world, "one");
        let job = crate::one_customer::job_asked(Uuid::new_v4(), 0);
        let ahead = time::OffsetDateTime::now_utc() + time::Duration::hours(1);
        let admission = kyc_worker::journal::Admission::Wait(kyc_worker::domain::state::WaitingFor::Retry);
        journal.open(&job, ahead, admission).await.expect("it is written down");
        for _ in 0..2 {
            let expired =
                "update submission set expires_at = now(), state = 'waiting', waiting_for = 'retry',
                    due_at = now(), ended_at = null
                where job_id = $1";
            sqlx::query(expired).bind(job.id).execute(&world.pool).await.expect("it waits");
            assert_eq!(journal.expire(10).await.expect("the database answers").len(), 1);
        }
        let events = journal.take_events(Uuid::new_v4(), std::time::Duration::from_secs(10), 10).await;
        let ids: Vec<String> =
            events.expect("the database answers").iter().map(|waiting| waiting.event.id()).collect();
        assert_eq!(ids.len(), 2);
        assert_ne!(ids[0], ids[1]);
    });
}
