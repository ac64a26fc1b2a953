//! One customer at a time, newest wins: across replicas, and where transactions race.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use kyc_worker::clock::Moment;
use kyc_worker::domain::job::{Job, Rules};
use kyc_worker::domain::message::Message;
use kyc_worker::domain::outcome::Outcome;
use kyc_worker::domain::state::WaitingFor;
use kyc_worker::journal::{Admission, AtEnd, Journal, JournalError, Limits, NextAttempt, Opened};
use kyc_worker::seal::{Fingerprinter, Keyring};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use rand::seq::SliceRandom as _;
use serde_json::{Value, json};
use sqlx::{PgPool, Postgres, Transaction};
use time::OffsetDateTime;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use uuid::Uuid;

use crate::harness::{FINGERPRINT_KEY, Submission, World, job_body, job_of_link, sized, world};

const JOBS_EACH: i64 = 10;

/// How many customers the replicas share.
fn customers() -> usize {
    sized(20, 200)
}

/// Publishes ten jobs for each customer, asked for an hour apart, shuffled, to four replicas.
/// Each customer's, the oldest first.
async fn publish_shuffled(world: &World) -> HashMap<Uuid, Vec<Uuid>> {
    let customers: Vec<Uuid> = (0..customers()).map(|_| Uuid::new_v4()).collect();
    let mut asked: Vec<(Uuid, i64)> =
        customers.iter().flat_map(|customer| (1..=JOBS_EACH).map(|ago| (*customer, ago * 3_600))).collect();
    asked.shuffle(&mut rand::rng());
    let mut jobs: HashMap<Uuid, Vec<(i64, Uuid)>> = HashMap::new();
    for batch in asked.chunks(20) {
        let publish = async |(customer, ago): &(Uuid, i64)| {
            (*customer, *ago, world.publish_job_asked(*customer, *ago).await)
        };
        for (customer, ago, job_id) in join_all(batch.iter().map(publish)).await {
            jobs.entry(customer).or_default().push((-ago, job_id));
        }
    }
    let in_order = |(customer, mut jobs): (Uuid, Vec<(i64, Uuid)>)| {
        jobs.sort();
        (customer, jobs.into_iter().map(|(_, job_id)| job_id).collect())
    };
    jobs.into_iter().map(in_order).collect()
}

/// Checks one customer's jobs, the oldest first, against what the provider applied, in order.
async fn check_order(world: &World, jobs: &[Uuid], updates: &[Value], patches: &HashMap<Uuid, usize>) {
    let applied: Vec<usize> = updates
        .iter()
        .filter_map(|update| update["link"].as_str().and_then(job_of_link))
        .filter_map(|applied| jobs.iter().position(|job_id| *job_id == applied))
        .collect();
    assert!(applied.is_sorted_by(|before, after| before < after), "applied out of order: {applied:?}");
    let newest_applied = *applied.last().expect("an update");
    for (place, job_id) in jobs.iter().enumerate() {
        let job = world.submission(*job_id).await.expect("it is known");
        let sent = patches.get(job_id).copied().unwrap_or_default();
        match job.state.as_str() {
            "accepted" => assert!(applied.contains(&place) && sent == 1),
            "superseded" => {
                assert!(place < newest_applied && sent == 0, "superseded by a newer one that was accepted");
                let by = job.reason.expect("a reason");
                let by = applied.iter().any(|newer| *newer > place && by.contains(&jobs[*newer].to_string()));
                assert!(by, "it names the newer one");
            }
            "rejected" => {
                assert_eq!(job.reason_code.as_deref(), Some("update_limit_exceeded"));
                assert!(place > newest_applied && sent == 1);
            }
            state => panic!("{state}: {job:?}"),
        }
    }
}

/// Prints how the jobs of many customers ended.
async fn report(world: &World, limit: &str, took: Duration) {
    let by_state = "select string_agg(count || ' ' || state, ', ' order by state)
        from (select state, count(*) from submission group by state) as counts";
    let by_state: String = sqlx::query_scalar(by_state).fetch_one(&world.pool).await.expect("some jobs");
    println!(
        "{} customers with {JOBS_EACH} shuffled jobs each, {limit} updates allowed, 4 replicas: {by_state} in {:.0} s",
        customers(),
        took.as_secs_f64()
    );
}

#[test]
fn a_backlog_of_ten_jobs_a_customer_ends_with_the_newest_at_the_provider() {
    world(async |world| {
        world.declare_topology().await;
        world.set_provider(json!({ "update_limit": 10, "latency_ms": 20 })).await;
        let _workers = [(); 4].map(|()| world.start_worker_with(&[("CUSTOMER_UPDATE_LIMIT", "10")]));
        world.wait_for_consumers(4).await;
        let begun = Instant::now();
        let customers = publish_shuffled(&world).await;
        world.wait_for_ended(customers.len() * 10).await;
        let took = begun.elapsed();
        assert_eq!(world.oracle_summary().await["in_flight_max"], 1);
        let (updates, patches) = (world.oracle("updates").await, world.count_by_job("patches").await);
        for jobs in customers.values() {
            check_order(&world, jobs, &updates, &patches).await;
            let newest = world.submission(jobs[9]).await.expect("it is known");
            assert_eq!(newest.state, "accepted");
        }
        assert_eq!(world.oracle("patches").await.len(), updates.len());
        report(&world, "10", took).await;
        assert_eq!(world.count("select count(*) from dead_lettered_delivery").await, 0);
    });
}

/// It is applied, or told of the customer's limit.
#[test]
fn a_backlog_of_more_jobs_than_updates_ends_with_the_newest() {
    world(async |world| {
        world.declare_topology().await;
        world.set_provider(json!({ "latency_ms": 20 })).await;
        let _workers = [(); 4].map(|()| world.start_worker());
        world.wait_for_consumers(4).await;
        let begun = Instant::now();
        let customers = publish_shuffled(&world).await;
        world.wait_for_ended(customers.len() * 10).await;
        let took = begun.elapsed();
        let summary = world.oracle_summary().await;
        assert_eq!(summary["in_flight_max"], 1);
        assert!(summary["updates_max"].as_u64() <= Some(3));
        let (updates, patches) = (world.oracle("updates").await, world.count_by_job("patches").await);
        for jobs in customers.values() {
            check_order(&world, jobs, &updates, &patches).await;
            let newest = world.submission(jobs[9]).await.expect("it is known");
            assert!(["accepted", "rejected"].contains(&newest.state.as_str()));
        }
        let remembered = "select count(*) from submission s left join customer c using (customer_id)
            where s.reason_code = 'update_limit_exceeded' and c.limit_reached_at is null";
        assert_eq!(world.count(remembered).await, 0);
        report(&world, "3", took).await;
    });
}

#[test]
fn where_the_newest_is_rejected_the_next_newest_goes() {
    world(async |world| {
        world.declare_topology().await;
        let customer_id = Uuid::new_v4();
        // Holds the customer until the others are there.
        let holder = world.publish_job_asked(customer_id, 100).await;
        world.break_job(holder, json!({ "delay_before_ms": 1500 })).await;
        let _workers = [(); 2].map(|()| world.start_worker());
        world.wait_for("the holder", async || (world.count_patches(holder).await == 1).then_some(())).await;
        let next = world.publish_job_asked(customer_id, 30).await;
        let newest = Uuid::new_v4();
        let refusal = json!({ "status": false, "message": "KYC already in use", "errors": {}, "data": null });
        let fault =
            json!({ "apply": "never", "answer": { "kind": "respond", "status": 400, "body": refusal } });
        world.break_job(newest, fault).await;
        world.publish_job_named(customer_id, newest).await;
        let oldest = world.publish_job_asked(customer_id, 50).await;

        for (job_id, state, patches) in [
            (holder, "accepted", 1),
            (newest, "rejected", 1),
            (next, "accepted", 1),
            (oldest, "superseded", 0),
        ] {
            let job = world.wait_for_state(job_id, &["accepted", "rejected", "superseded"]).await;
            assert_eq!(job.state, state);
            assert_eq!(world.count_patches(job_id).await, patches);
        }
        let order: Vec<_> = world.oracle("patches").await.iter().map(|patch| patch["link"].clone()).collect();
        let order: Vec<_> = order.iter().filter_map(|link| job_of_link(link.as_str()?)).collect();
        assert_eq!(order, [holder, newest, next]);
    });
}

#[test]
fn the_same_content_is_not_sent_while_its_update_is_in_verification() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker();
        let (original, body) = world.publish_job_for(Uuid::new_v4()).await;
        world.wait_for_state(original, &["accepted"]).await;
        let again = Uuid::new_v4();
        world.publish(Some(again), body.to_string().as_bytes()).await;
        let job = world.wait_for_state(again, &["duplicate", "accepted", "needs_review"]).await;
        assert_eq!((job.state.as_str(), job.attempts, job.has_payload), ("duplicate", 0, false));
        assert!(job.reason.is_some_and(|reason| reason.contains(&original.to_string())));
        // The copy names the original's links: all that was sent.
        assert_eq!(world.oracle("patches").await.len(), 1);
        assert_eq!(world.count_updates(original).await, 1);
    });
}

#[test]
fn a_job_in_review_lets_newer_ones_ahead_and_holds_older_ones_back() {
    world(async |world| {
        world.declare_topology().await;
        let customer_id = Uuid::new_v4();
        // Tells nothing of whether an update was applied.
        world.set_customer(customer_id, json!({ "status": "UNVERIFIED" })).await;
        let unsettled = Uuid::new_v4();
        let mut body = job_body(customer_id, unsettled);
        let asked = OffsetDateTime::now_utc() - time::Duration::seconds(60);
        body["requested_at"] =
            json!(asked.format(&time::format_description::well_known::Rfc3339).expect("a time"));
        let crash = json!({ "kind": "respond", "status": 500, "body": "oops" });
        world.break_job_once(unsettled, json!({ "apply": "never", "answer": crash })).await;
        let _workers = [(); 2].map(|()| world.start_worker());
        world.publish(Some(unsettled), body.to_string().as_bytes()).await;
        let job = world.wait_for_state(unsettled, &["needs_review", "accepted"]).await;
        assert_eq!((job.state.as_str(), job.reason_code.as_deref()), ("needs_review", Some("fate_unknown")));

        let older = world.publish_job_asked(customer_id, 120).await;
        let job = world.wait_for_state(older, &["needs_review", "accepted", "superseded"]).await;
        let ended = (job.state.as_str(), job.reason_code.as_deref(), job.attempts);
        assert_eq!(ended, ("needs_review", Some("newer_fate_unknown"), 0));
        assert!(job.has_payload && job.reason.is_some_and(|reason| reason.contains(&unsettled.to_string())));

        let copy = Uuid::new_v4();
        body.as_object_mut().expect("an object").remove("requested_at");
        world.publish(Some(copy), body.to_string().as_bytes()).await;
        let job = world.wait_for_state(copy, &["duplicate", "needs_review", "accepted"]).await;
        assert_eq!((job.state.as_str(), job.attempts), ("duplicate", 0));
        assert!(job.reason.is_some_and(|reason| reason.contains(&unsettled.to_string())));

        let newer = world.publish_job_asked(customer_id, 0).await;
        world.wait_for_state(newer, &["accepted"]).await;
        let late = world.publish_job_asked(customer_id, 120).await;
        world.wait_for_state(late, &["superseded"]).await;
        for (job_id, patches) in [(unsettled, 1), (older, 0), (newer, 1), (late, 0)] {
            assert_eq!(world.count_patches(job_id).await, patches);
        }
        assert_eq!(world.oracle("updates").await.len(), 1);
    });
}

const LIMITS: Limits = Limits {
    claim_lease: Duration::from_secs(25),
    read_back_after: Duration::from_secs(15),
    read_back_window: Duration::from_secs(60),
    customer_updates: 3,
    at_end: AtEnd { verification_after: Duration::from_secs(60), is_told: true },
};

pub fn journal(world: &World, worker: &str) -> Journal {
    journal_with(world.pool.clone(), worker)
}

pub fn journal_with(pool: PgPool, worker: &str) -> Journal {
    let keyring = Keyring::parse("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").expect("a key");
    let fingerprinter = Fingerprinter::parse(FINGERPRINT_KEY).expect("a key");
    Journal::new(pool, worker.to_owned(), LIMITS, keyring, fingerprinter).expect("a thread")
}

/// RabbitMQ says when a message came to it, if it is asked to.
#[test]
fn the_brokers_milliseconds_order_two_jobs_of_one_second() {
    world(async |world| {
        world.declare_topology().await;
        let customer_id = Uuid::new_v4();
        let second = OffsetDateTime::now_utc().unix_timestamp() - 60;
        let [newer, older] = [Uuid::new_v4(), Uuid::new_v4()];
        // The newer comes first.
        for (job_id, ms) in [(newer, 700), (older, 300)] {
            let mut headers = FieldTable::default();
            headers.insert("timestamp_in_ms".into(), AMQPValue::LongLongInt(second * 1_000 + ms));
            let properties = BasicProperties::default()
                .with_message_id(job_id.to_string().into())
                .with_timestamp(u64::try_from(second).expect("after 1970"))
                .with_headers(headers);
            let body = job_body(customer_id, job_id).to_string();
            world.publish_to("document-update", properties, body.as_bytes()).await;
            if job_id == newer {
                let _worker = world.start_worker();
                world.wait_for_state(newer, &["accepted"]).await;
            }
        }
        let _worker = world.start_worker();
        world.wait_for_state(older, &["superseded"]).await;
        assert_eq!(world.count_patches(older).await, 0);
        let report = world.say(&["report"]).await;
        assert!(!report.contains("that nothing orders"), "{report}");
    });
}

#[test]
fn jobs_that_nothing_orders_are_counted_and_shown() {
    world(async |world| {
        world.declare_topology().await;
        let customer_id = Uuid::new_v4();
        let second = u64::try_from(OffsetDateTime::now_utc().unix_timestamp() - 60).expect("after 1970");
        let jobs = [Uuid::new_v4(), Uuid::new_v4()];
        let _worker = world.start_worker();
        for job_id in jobs {
            let properties =
                BasicProperties::default().with_message_id(job_id.to_string().into()).with_timestamp(second);
            let body = job_body(customer_id, job_id).to_string();
            world.publish_to("document-update", properties, body.as_bytes()).await;
        }
        world.wait_for_ended(2).await;
        let report = world.say(&["report"]).await;
        assert!(report.contains("pairs of a customer's jobs that nothing orders: 1;"), "{report}");
        for (job_id, other) in [(jobs[0], jobs[1]), (jobs[1], jobs[0])] {
            let story = world.say(&["show", &job_id.to_string()]).await;
            assert!(story.contains(&format!("nothing orders it before or after {other};")), "{story}");
        }
    });
}

/// Two lines of one customer, neither dated: the later wins, whichever replica takes which.
#[test]
fn enqueued_lines_of_one_customer_are_applied_in_their_order() {
    world(async |world| {
        world.declare_topology().await;
        let customers: Vec<Uuid> = (0..sized(20, 200)).map(|_| Uuid::new_v4()).collect();
        let (mut lines, mut pairs) = (String::new(), Vec::new());
        for customer in &customers {
            let pair = [Uuid::new_v4(), Uuid::new_v4()];
            for job_id in pair {
                let mut body = job_body(*customer, job_id);
                body["job_id"] = json!(job_id);
                lines += &format!("{body}\n");
            }
            pairs.push(pair);
        }
        let enqueued = world.run_with_input(&["enqueue"], &[], lines.as_bytes()).await;
        assert!(enqueued.status.success());
        let _workers = [world.start_worker(), world.start_worker(), world.start_worker()];
        world.wait_for_ended(pairs.len() * 2).await;
        for [older, newer] in pairs {
            assert_eq!(world.submission(newer).await.expect("it is known").state, "accepted", "{newer}");
            let older_state = world.submission(older).await.expect("it is known").state;
            assert!(["accepted", "superseded"].contains(&older_state.as_str()), "{older}: {older_state}");
        }
        let report = world.say(&["report"]).await;
        assert!(!report.contains("that nothing orders"), "{report}");
    });
}

pub fn job_asked(customer_id: Uuid, seconds_ago: i64) -> Job {
    let job_id = Uuid::new_v4();
    let asked = OffsetDateTime::now_utc() - time::Duration::seconds(seconds_ago);
    let message = Message {
        body: job_body(customer_id, job_id).to_string().into(),
        message_id: Some(job_id.to_string()),
        timestamp: u64::try_from(asked.unix_timestamp()).ok(),
        ..Message::default()
    };
    Job::parse(&message, OffsetDateTime::now_utc(), &Rules::default()).expect("a valid job")
}

async fn execute(tx: &mut Transaction<'static, Postgres>, statement: &'static str, job: &Job) {
    let query = sqlx::query(statement).bind(job.id).bind(job.customer_id).bind(job.requested_at);
    let done = query.execute(&mut **tx).await.expect("the statement runs");
    assert_eq!(done.rows_affected(), 1);
}

/// Takes the customer's slot for `job` in a transaction that stays open.
pub async fn take_slot(world: &World, job: &Job) -> Transaction<'static, Postgres> {
    world.is_tampered_with();
    let mut tx = world.pool.begin().await.expect("a transaction");
    let insert = "insert into submission (
            job_id, customer_id, requested_at, received_at, sealed_payload, state, attempts, claim_token,
            claimed_by, claimed_until
        )
        values ($1, $2, $3, now(), 'sealed', 'submitting', 1, 1, 'sibling', now() + interval '25 s')";
    execute(&mut tx, insert, job).await;
    tx
}

const ACCEPT: &str = "update submission
    set state = 'accepted', ended_at = now(), claimed_until = null, sealed_payload = null
    where job_id = $1 and customer_id = $2 and requested_at = $3";

const REJECT: &str = "update submission
    set state = 'rejected', ended_at = now(), claimed_until = null, sealed_payload = null
    where job_id = $1 and customer_id = $2 and requested_at = $3";

const PARK: &str = "update submission
    set state = 'waiting', waiting_for = 'retry', due_at = now() + interval '1 h', claimed_until = null
    where job_id = $1 and customer_id = $2 and requested_at = $3";

/// Opens a job in a task of its own, and waits until it is blocked.
async fn open_blocked(
    world: &World,
    journal: &Arc<Journal>,
    job: &Arc<Job>,
) -> JoinHandle<Result<Opened, JournalError>> {
    let (journal, job) = (Arc::clone(journal), Arc::clone(job));
    let received_at = OffsetDateTime::now_utc();
    let opening =
        tokio::spawn(async move { journal.open(&job, received_at, Admission::Claim(Moment::now())).await });
    wait_until_blocked(world).await;
    opening
}

async fn wait_until_blocked(world: &World) {
    let blocked = "select count(*) from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock'";
    world.wait_for("a blocked claim", async || (world.count(blocked).await == 1).then_some(())).await;
}

async fn check_ended(world: &World, job: &Job, state: &str) -> Submission {
    let found = world.submission(job.id).await.expect("it is written down");
    assert_eq!(found.state, state);
    assert_eq!(world.attempts(job.id).await.len(), usize::from(state == "submitting"));
    found
}

#[test]
fn an_older_job_that_waited_sees_that_a_newer_was_accepted() {
    world(async |world| {
        let customer_id = Uuid::new_v4();
        let journal = Arc::new(journal(&world, "older's"));
        let (older, newer) = (Arc::new(job_asked(customer_id, 60)), job_asked(customer_id, 0));
        let mut tx = take_slot(&world, &newer).await;
        let opening = open_blocked(&world, &journal, &older).await;
        execute(&mut tx, ACCEPT, &newer).await;
        tx.commit().await.expect("it commits");
        let opened = opening.await.expect("no panic").expect("it is written down");
        let superseded = Outcome::Superseded { by: newer.id };
        assert!(matches!(&opened, Opened::Ended(outcome) if *outcome == superseded), "{opened:?}");
        assert!(!check_ended(&world, &older, "superseded").await.has_payload);
    });
}

#[test]
fn an_older_job_sees_the_acceptance_that_is_being_committed_as_it_comes() {
    world(async |world| {
        let customer_id = Uuid::new_v4();
        let journal = Arc::new(journal(&world, "older's"));
        let (older, newer) = (Arc::new(job_asked(customer_id, 60)), job_asked(customer_id, 0));
        take_slot(&world, &newer).await.commit().await.expect("it commits");
        let mut settling = world.pool.begin().await.expect("a transaction");
        execute(&mut settling, ACCEPT, &newer).await;
        let opening = open_blocked(&world, &journal, &older).await;
        settling.commit().await.expect("it commits");
        let opened = opening.await.expect("no panic").expect("it is written down");
        assert!(matches!(opened, Opened::Ended(Outcome::Superseded { .. })), "{opened:?}");
        check_ended(&world, &older, "superseded").await;
    });
}

#[test]
fn an_older_job_goes_where_the_newer_one_gave_its_slot_up_without_effect() {
    world(async |world| {
        for is_rolled_back in [true, false] {
            let customer_id = Uuid::new_v4();
            let journal = Arc::new(journal(&world, "older's"));
            let (older, newer) = (Arc::new(job_asked(customer_id, 60)), job_asked(customer_id, 0));
            let mut tx = take_slot(&world, &newer).await;
            let opening = open_blocked(&world, &journal, &older).await;
            if is_rolled_back {
                tx.rollback().await.expect("it rolls back");
            } else {
                execute(&mut tx, REJECT, &newer).await;
                tx.commit().await.expect("it commits");
            }
            let opened = opening.await.expect("no panic").expect("it is written down");
            assert!(matches!(opened, Opened::Claimed(_)), "{opened:?}");
            check_ended(&world, &older, "submitting").await;
        }
    });
}

#[test]
fn an_older_job_waits_behind_a_newer_one_that_is_still_in_motion() {
    world(async |world| {
        for was_waiting in [true, false] {
            let customer_id = Uuid::new_v4();
            let journal = Arc::new(journal(&world, "older's"));
            let (older, newer) = (Arc::new(job_asked(customer_id, 60)), job_asked(customer_id, 0));
            let mut tx = take_slot(&world, &newer).await;
            let opening = open_blocked(&world, &journal, &older).await;
            if was_waiting {
                execute(&mut tx, PARK, &newer).await;
            }
            tx.commit().await.expect("it commits");
            let opened = opening.await.expect("no panic").expect("it is written down");
            assert!(matches!(opened, Opened::Waiting), "{opened:?}");
            let waiting = check_ended(&world, &older, "waiting").await;
            assert_eq!((waiting.waiting_for.as_deref(), waiting.attempts), (Some("customer"), 0));
        }
    });
}

#[test]
fn a_job_that_waited_sees_what_happened_while_it_waited_for_the_slot() {
    world(async |world| {
        for (end, state) in [(Some(ACCEPT), "superseded"), (Some(REJECT), "submitting"), (None, "waiting")] {
            let customer_id = Uuid::new_v4();
            let journal = Arc::new(journal(&world, "older's"));
            let (older, newer) = (job_asked(customer_id, 60), job_asked(customer_id, 0));
            let admission = Admission::Wait(WaitingFor::Retry);
            journal.open(&older, OffsetDateTime::now_utc(), admission).await.expect("it is written down");
            let mut tx = take_slot(&world, &newer).await;
            let claiming = tokio::spawn({
                let journal = Arc::clone(&journal);
                async move { journal.next_attempts(Moment::now(), None, 10).await }
            });
            wait_until_blocked(&world).await;
            if let Some(end) = end {
                execute(&mut tx, end, &newer).await;
            }
            tx.commit().await.expect("it commits");
            let next = claiming.await.expect("no panic").expect("the database answers");
            let is_as_expected = match (state, next.as_deref()) {
                ("superseded", Some([NextAttempt::YieldedSlot(job, Some(outcome))])) => {
                    job.id == older.id && *outcome == Outcome::Superseded { by: newer.id }
                }
                ("submitting", Some([NextAttempt::Claimed(claimed)])) => claimed.claim.job.id == older.id,
                // Another replica was faster.
                ("waiting", None) => true,
                _ => false,
            };
            assert!(is_as_expected, "{state}");
            check_ended(&world, &older, state).await;
        }
    });
}

/// By hand, a row was put back to waiting while its attempt was under way: two updates.
#[test]
fn no_attempt_begins_beside_an_open_one() {
    world(async |world| {
        let journal = journal(&world, "one");
        let job = job_asked(Uuid::new_v4(), 0);
        let opened = journal.open(&job, OffsetDateTime::now_utc(), Admission::Claim(Moment::now())).await;
        assert!(matches!(opened, Ok(Opened::Claimed(_))), "{opened:?}");
        world
            .tamper(
                "update submission set state = 'waiting', waiting_for = 'retry', due_at = now(),
                    claimed_by = null, claimed_until = null",
            )
            .await;
        let next = journal.next_attempts(Moment::now(), None, 10).await.expect("the database answers");
        assert!(next.is_some_and(|next| next.is_empty()), "its first attempt is open");
        assert_eq!(world.count("select count(*) from attempt").await, 1);
    });
}
