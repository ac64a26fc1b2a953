//! An accepted update is followed until the provider has spoken its last word on the
//! customer, who is never asked for too often.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::Row as _;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::harness::{WorkerProcess, World, world, world_with};

/// The shortest time between two reads of a customer, scaled down.
const APART: Duration = Duration::from_secs(3);

/// All times scaled down by twenty, together: what is said to take a minute takes 3 s.
pub(crate) const SCALED: [(&str, &str); 11] = [
    ("SEND_WINDOW", "700ms"),
    ("REQUEST_TIMEOUT", "1s"),
    ("CLAIM_LEASE", "1700ms"),
    ("READ_TIMEOUT", "600ms"),
    ("READ_BACK_AFTER", "300ms"),
    ("READ_BACK_WINDOW", "3s"),
    ("APPLIED_WITHIN", "2s"),
    ("CUSTOMER_READ_INTERVAL", "3s"),
    ("VERIFICATION_POLL_AFTER", "3s"),
    ("VERIFICATION_POLL_MAX", "45s"),
    ("VERIFICATION_READS_PER_SECOND", "200"),
];

/// The same, but a read may take its time.
pub(crate) fn scaled_with(others: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    let mut settings = SCALED.to_vec();
    settings.extend(others);
    settings
}

/// A worker that reads verifications when they may have ended.
pub(crate) const FOLLOWING: [(&str, &str); 2] =
    [("VERIFICATION_POLL_AFTER", "10s"), ("VERIFICATION_READS_PER_SECOND", "200")];

/// A world whose provider verifies in so many milliseconds, within which no read comes.
pub(crate) fn world_that_verifies_in(ms: u64) -> dollarpe_sandbox::Settings {
    dollarpe_sandbox::Settings { verification_time: Duration::from_millis(ms).into(), ..Default::default() }
}

#[derive(Debug)]
pub(crate) struct Verification {
    pub(crate) status: Option<String>,
    pub(crate) failure_reason: Option<String>,
    pub(crate) is_tracked: bool,
    is_overdue: bool,
    due_in_seconds: Option<f64>,
}

impl World {
    pub(crate) async fn verification(&self, job_id: Uuid) -> Verification {
        let row = sqlx::query(
            "select verification_status, failure_reason, verification_due_at is not null as is_tracked,
                verification_overdue_at is not null as is_overdue,
                extract(epoch from verification_due_at - now())::float8 as due_in
            from submission where job_id = $1",
        )
        .bind(job_id)
        .fetch_one(&self.pool)
        .await
        .expect("the database answers");
        Verification {
            status: row.get("verification_status"),
            failure_reason: row.get("failure_reason"),
            is_tracked: row.get("is_tracked"),
            is_overdue: row.get("is_overdue"),
            due_in_seconds: row.get("due_in"),
        }
    }

    pub(crate) async fn wait_for_end_of_verification(&self, job_id: Uuid) -> Verification {
        self.wait_for_state(job_id, &["accepted"]).await;
        self.wait_for("the end of a verification", async || {
            Some(self.verification(job_id).await).filter(|verification| !verification.is_tracked)
        })
        .await
    }

    /// When the provider was asked for each customer, in order.
    async fn reads_by_customer(&self) -> HashMap<Uuid, Vec<OffsetDateTime>> {
        let mut reads: HashMap<Uuid, Vec<OffsetDateTime>> = HashMap::new();
        for read in self.oracle("reads").await {
            let customer_id = read["customer_id"].as_str().and_then(|id| id.parse().ok());
            let at = OffsetDateTime::parse(read["at"].as_str().expect("a time"), &Rfc3339).expect("a time");
            reads.entry(customer_id.expect("a customer")).or_default().push(at);
        }
        reads
    }

    async fn check_no_customer_was_read_too_often(&self) {
        for (customer_id, reads) in self.reads_by_customer().await {
            for pair in reads.windows(2) {
                let apart = pair[1] - pair[0];
                assert!(apart >= APART, "{customer_id} was read again after {apart}: {reads:?}");
            }
        }
    }

    /// Makes the provider answer the first read of a customer with a fault.
    async fn break_first_read(&self, customer_id: Uuid, fault: Value) {
        let is_read = json!({ "method": "GET", "customer_id": customer_id });
        self.add_rule(json!({ "match": is_read, "first": 1, "fault": fault })).await;
    }

    /// Starts a worker in the middle of a read, at a customer whose job it had accepted, that the
    /// provider does not answer.
    async fn start_in_a_read(&self, customer_id: Uuid) -> (WorkerProcess, Uuid) {
        self.break_first_read(customer_id, json!({ "answer": { "kind": "hang" } })).await;
        let (job_id, _) = self.publish_job_for(customer_id).await;
        let worker = self.start_worker_with(&SCALED);
        self.wait_for("a read", async || (self.count_reads(customer_id).await == 1).then_some(())).await;
        (worker, job_id)
    }

    /// Lets time pass for a job in verification: as if it had been accepted so long ago, its
    /// customer not been read for an hour, and the next read were due.
    async fn age(&self, job_id: Uuid, seconds: f64) {
        self.is_tampered_with();
        sqlx::query(
            "with aged as (
                update submission
                set received_at = least(received_at, now() - make_interval(secs => $2)),
                    ended_at = now() - make_interval(secs => $2), verification_due_at = now()
                where job_id = $1 returning customer_id
            )
            update customer c set last_read_at = now() - interval '1 hour' from aged
            where c.customer_id = aged.customer_id",
        )
        .bind(job_id)
        .bind(seconds)
        .execute(&self.pool)
        .await
        .expect("the database answers");
    }

    pub(crate) async fn count_reads(&self, customer_id: Uuid) -> usize {
        self.reads_by_customer().await.get(&customer_id).map_or(0, Vec::len)
    }
}

#[test]
fn a_days_work_reaches_its_ends_and_no_customer_is_asked_for_too_often() {
    world(async |world| {
        world.declare_topology().await;
        // The provider says 60 s to 2 h: here 10 s to 25 s. A busy machine must not keep the reads of what a
        // killed worker had under way from their window, so that is not scaled down as far as elsewhere.
        let settings = [&FOLLOWING[..], &[("VERIFICATION_POLL_MAX", "45s")]].concat();
        let mut jobs = Vec::new();
        for n in 0..300u64 {
            let customer_id = Uuid::new_v4();
            let verifies_as = if n % 5 == 0 { "FAILED" } else { "VERIFIED" };
            let customer = json!({
                "verification_ms": 10_000 + (n * n * 37) % 15_000,
                "verifies_as": verifies_as,
                "failure_reason": if n % 2 == 0 { "KYC_FAILED" } else { "TAX_VERIFICATION_FAILED" },
            });
            world.set_customer(customer_id, customer).await;
            // Some ask twice: then the second one is followed.
            for _ in 0..if n % 10 == 3 { 2 } else { 1 } {
                jobs.push(world.publish_job_for(customer_id).await.0);
            }
        }
        let mut killed = world.start_worker_with(&settings);
        let _worker = world.start_worker_with(&settings);
        world
            .wait_for("reads under way", async || (world.oracle("reads").await.len() > 100).then_some(()))
            .await;
        killed.kill();
        let _another = world.start_worker_with(&settings);

        for job_id in &jobs {
            let ended = world.wait_for_state(*job_id, &["accepted", "superseded"]).await;
            assert_eq!(world.count_updates(*job_id).await, usize::from(ended.state == "accepted"));
        }
        world
            .wait_for("the end of every verification", async || {
                let open = "select count(*) from submission where verification_due_at is not null";
                (world.count(open).await == 0).then_some(())
            })
            .await;
        let customers = world.oracle("customers").await;
        assert_eq!(customers.len(), 300);
        let ended = last_words(&world).await;
        for customer in customers {
            let customer_id: Uuid = customer["customer_id"].as_str().expect("an id").parse().expect("an id");
            let (status, failure_reason) = &ended[&customer_id];
            assert_eq!(json!(status), customer["status"], "{customer_id}");
            assert_eq!(json!(failure_reason), customer["failure_reason"], "{customer_id}");
            assert!(status.as_deref().is_some_and(|status| ["VERIFIED", "FAILED"].contains(&status)));
        }
        world.check_no_customer_was_read_too_often().await;
    });
}

/// What the newest accepted job of each customer says.
async fn last_words(world: &World) -> HashMap<Uuid, (Option<String>, Option<String>)> {
    let rows = sqlx::query(
        "select distinct on (customer_id) customer_id, verification_status, failure_reason from submission
        where state = 'accepted' order by customer_id, requested_at desc, received_at desc, job_id desc",
    )
    .fetch_all(&world.pool)
    .await
    .expect("the database answers");
    rows.iter()
        .map(|row| (row.get("customer_id"), (row.get("verification_status"), row.get("failure_reason"))))
        .collect()
}

#[test]
fn each_change_is_an_observation_and_the_same_word_again_is_none() {
    world_with(world_that_verifies_in(8000), async |world| {
        world.declare_topology().await;
        let customer_id = Uuid::new_v4();
        world
            .set_customer(customer_id, json!({ "verifies_as": "FAILED", "failure_reason": "KYC_FAILED" }))
            .await;
        let body = json!({ "status": true, "data": { "id": customer_id, "status": "ON_HOLD" } });
        let on_hold = json!({ "answer": { "kind": "respond", "status": 200, "body": body } });
        world.break_first_read(customer_id, on_hold).await;
        let (job_id, _) = world.publish_job_for(customer_id).await;
        let _worker = world.start_worker_with(&SCALED);

        let ended = world.wait_for_end_of_verification(job_id).await;
        assert_eq!(ended.status.as_deref(), Some("FAILED"));
        assert_eq!(ended.failure_reason.as_deref(), Some("KYC_FAILED"));
        let observations = world.observations(job_id).await;
        let words: Vec<_> = observations.iter().filter_map(|seen| seen.status.as_deref()).collect();
        // 3, 6 and 9 s after the acceptance; the second read finds the first word again.
        assert_eq!(words, ["ON_HOLD", "PROCESSING", "FAILED"], "{observations:?}");
        assert!(observations.iter().all(|seen| seen.purpose == "verification"));
        assert_eq!(world.count_reads(customer_id).await, 3);
    });
}

#[test]
fn an_end_that_was_seen_clears_the_next_update_of_suspicion() {
    world_with(world_that_verifies_in(3000), async |world| {
        world.declare_topology().await;
        let customer_id = Uuid::new_v4();
        world.set_customer(customer_id, json!({ "verifies_as": "FAILED" })).await;
        let (first, _) = world.publish_job_for(customer_id).await;
        let _worker = world.start_worker_with(&SCALED);
        world.wait_for_end_of_verification(first).await;

        let second = Uuid::new_v4();
        world.break_job(second, json!({ "answer": { "kind": "reset" } })).await;
        world.publish_job_named(customer_id, second).await;
        world.wait_for_applied(second).await;
        assert_eq!(world.count_patches(second).await, 1);
    });
}

#[test]
fn a_newer_accepted_update_takes_the_tracking_over() {
    world_with(world_that_verifies_in(4000), async |world| {
        world.declare_topology().await;
        let customer_id = Uuid::new_v4();
        let older = world.publish_job_asked(customer_id, 20).await;
        let _worker = world.start_worker_with(&SCALED);
        world.wait_for_state(older, &["accepted"]).await;
        let newer = world.publish_job_asked(customer_id, 10).await;
        world.wait_for_state(newer, &["accepted"]).await;

        let ended = world.wait_for_end_of_verification(newer).await;
        assert_eq!(ended.status.as_deref(), Some("VERIFIED"));
        let left = world.wait_for_end_of_verification(older).await;
        assert_eq!(left.status.as_deref(), Some("PROCESSING"), "it keeps what it saw");
        assert!(world.observations(older).await.is_empty());
        world.check_no_customer_was_read_too_often().await;
    });
}

#[test]
fn a_read_whose_replica_died_is_made_by_another() {
    world_with(world_that_verifies_in(3000), async |world| {
        world.declare_topology().await;
        let customer_id = Uuid::new_v4();
        let (mut killed, job_id) = world.start_in_a_read(customer_id).await;
        killed.kill();

        let _worker = world.start_worker_with(&SCALED);
        let ended = world.wait_for_end_of_verification(job_id).await;
        assert_eq!(ended.status.as_deref(), Some("VERIFIED"));
        assert_eq!(world.count_reads(customer_id).await, 2);
        world.check_no_customer_was_read_too_often().await;
    });
}

#[cfg(feature = "failpoints")]
#[test]
fn a_read_that_was_held_up_past_its_claim_is_not_made() {
    world_with(world_that_verifies_in(3000), async |world| {
        world.declare_topology().await;
        let customer_id = Uuid::new_v4();
        let (job_id, _) = world.publish_job_for(customer_id).await;
        let stalled =
            world.start_worker_with(&scaled_with(&[("KYC_FAILPOINT", "verification-claimed=stop")]));
        world.wait_for("the stop", async || stalled.is_stopped().then_some(())).await;
        let _worker = world.start_worker_with(&SCALED);
        world.wait_for_end_of_verification(job_id).await;
        assert_eq!(world.count_reads(customer_id).await, 1);

        stalled.signal("CONT");
        world.wait_for_log(&stalled, "held up for too long").await;
        assert_eq!(world.count_reads(customer_id).await, 1);
        assert_eq!(world.observations(job_id).await.len(), 1);
    });
}

#[test]
fn a_worker_that_stops_does_not_wait_for_a_read() {
    world_with(world_that_verifies_in(3000), async |world| {
        world.declare_topology().await;
        let customer_id = Uuid::new_v4();
        let (mut worker, job_id) = world.start_in_a_read(customer_id).await;
        worker.stop().await;
        assert!(!worker.log().contains("were not recorded"), "{}", worker.log());
        assert!(world.verification(job_id).await.is_tracked);
    });
}

#[test]
fn while_the_provider_refuses_us_no_verification_is_read() {
    world_with(world_that_verifies_in(3000), async |world| {
        world.declare_topology().await;
        let customer_id = Uuid::new_v4();
        let (job_id, _) = world.publish_job_for(customer_id).await;
        let worker = world.start_worker_with(&SCALED);
        world.wait_for_state(job_id, &["accepted"]).await;
        world.set_provider(json!({ "api_key": "another" })).await;
        let refused = world.publish_job().await;
        world.wait_for_log(&worker, "intake paused until a person has fixed this").await;

        // Long enough for ten reads: the scheduler's poll is 100 ms.
        world
            .wait_for("a read that is a second late", async || {
                let due = world.verification(job_id).await.due_in_seconds.expect("it is tracked");
                (due < -1.0).then_some(())
            })
            .await;
        assert_eq!(world.oracle("reads").await.len(), 0);
        world.set_provider(json!({ "api_key": "sandbox-key" })).await;
        let ended = world.wait_for_end_of_verification(job_id).await;
        assert_eq!(ended.status.as_deref(), Some("VERIFIED"));
        world.wait_for_state(refused, &["accepted"]).await;
    });
}

/// Updates go on: they were once held up by it, too.
#[test]
fn a_provider_that_asks_a_read_to_wait_gets_no_other_read_for_so_long() {
    world_with(world_that_verifies_in(3000), async |world| {
        world.declare_topology().await;
        let customer_id = Uuid::new_v4();
        let throttled = json!({ "kind": "respond", "status": 429, "headers": { "Retry-After": "8" }, "body": "slow down" });
        world.break_first_read(customer_id, json!({ "answer": throttled })).await;
        let (job_id, _) = world.publish_job_for(customer_id).await;
        let worker = world.start_worker_with(&scaled_with(&[("BREAKER_PROBE_INTERVAL", "1s")]));
        world.wait_for_log(&worker, "reads for verifications fail").await;
        let others = world.publish_jobs(5).await;
        world.wait_for_all_accepted(&others).await;
        assert!(!worker.log().contains("intake paused"), "{}", worker.log());
        assert!(world.observations(job_id).await.is_empty(), "it said nothing of the customer");
        let ended = world.wait_for_end_of_verification(job_id).await;
        assert_eq!(ended.status.as_deref(), Some("VERIFIED"));

        let reads = world.oracle("reads").await;
        let at = |read: &Value| {
            OffsetDateTime::parse(read["at"].as_str().expect("a time"), &Rfc3339).expect("a time")
        };
        let apart = at(&reads[1]) - at(&reads[0]);
        assert!(apart >= Duration::from_secs(8), "the next read, of whomever, came after {apart}");
    });
}

#[test]
fn an_overdue_verification_is_told_once_and_given_up_in_the_end() {
    const HOUR: f64 = 3600.0;
    const OVERDUE: &str = "verification is overdue";
    world_with(world_that_verifies_in(600_000), async |world| {
        world.declare_topology().await;
        let job_id = world.publish_job().await;
        let worker = world.start_worker();
        world.wait_for_state(job_id, &["accepted"]).await;

        world.age(job_id, 5.9 * HOUR).await;
        world.wait_for("a read", async || (world.oracle("reads").await.len() == 1).then_some(())).await;
        let due_in = |verification: Verification| verification.due_in_seconds.expect("it is tracked");
        world
            .wait_for("the read's record", async || {
                (due_in(world.verification(job_id).await) > 300.0).then_some(())
            })
            .await;
        assert!(!world.verification(job_id).await.is_overdue);
        assert!(due_in(world.verification(job_id).await) < 361.0, "the next read is at the deadline");

        for reads in [2, 3] {
            world.age(job_id, 7.0 * HOUR).await;
            world
                .wait_for("a read an hour off", async || {
                    let due_in = due_in(world.verification(job_id).await);
                    (due_in > 3500.0).then_some(())
                })
                .await;
            assert!(world.verification(job_id).await.is_overdue);
            assert_eq!(world.oracle("reads").await.len(), reads);
        }
        let (other, overdue) = (world.publish_job().await, ["list", "--overdue"]);
        world.wait_for_state(other, &["accepted"]).await;
        let (listed, _) = world.ask(&overdue).await;
        assert_eq!(listed.as_array().map(Vec::len), Some(1), "not what is in time: {listed}");
        assert_eq!(listed[0]["job_id"], json!(job_id));
        world.age(job_id, 7.0 * 24.0 * HOUR).await;
        let given_up = world.wait_for_end_of_verification(job_id).await;
        assert_eq!(given_up.status.as_deref(), Some("PROCESSING"), "the provider's last word stays");
        world.wait_for_log(&worker, "VERIFICATION_GIVE_UP has passed").await;
        let log = worker.log();
        let told: Vec<_> = log.lines().filter(|line| line.contains(OVERDUE)).collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(world.ask(&overdue).await.0, json!([]), "it is followed no more");
        assert!(told[0].contains("\"level\":\"ERROR\"") && told[0].contains(&job_id.to_string()), "{told:?}");
    });
}

/// Somebody holds one customer's row: their reads may wait, and nobody else's do.
#[test]
fn a_customer_whose_row_is_locked_holds_up_no_other() {
    world_with(world_that_verifies_in(600_000), async |world| {
        world.declare_topology().await;
        let customers = [(); 3].map(|()| Uuid::new_v4());
        sqlx::query("insert into customer (customer_id) values ($1)")
            .bind(customers[0])
            .execute(&world.pool)
            .await
            .expect("a row");
        let mut lock = world.pool.begin().await.expect("a transaction");
        sqlx::query("select from customer for update").execute(&mut *lock).await.expect("the lock");
        let mut jobs = Vec::new();
        for customer_id in customers {
            let job_id = Uuid::new_v4();
            let crash = json!({ "kind": "respond", "status": 500, "body": {} });
            world.break_job(job_id, json!({ "answer": crash })).await;
            world.publish_job_named(customer_id, job_id).await;
            jobs.push(job_id);
        }
        let worker = world.start_worker();
        // The updates' outcomes are read, this customer's as well; then the others' verifications.
        world.wait_for_all_accepted(&jobs).await;
        for customer_id in customers {
            world.set_customer(customer_id, json!({ "status": "VERIFIED" })).await;
        }
        for job_id in &jobs[1..] {
            world.age(*job_id, 120.0).await;
            world.wait_for_end_of_verification(*job_id).await;
        }
        assert!(!worker.log().contains("intake paused"), "{}", worker.log());
        lock.rollback().await.expect("it ends");
        world.age(jobs[0], 120.0).await;
        world.wait_for_end_of_verification(jobs[0]).await;
    });
}

#[test]
fn all_replicas_together_keep_to_the_rate() {
    const PER_SECOND: usize = 8;
    world_with(world_that_verifies_in(600_000), async |world| {
        world.declare_topology().await;
        let jobs = world.publish_jobs(48).await;
        let settings = scaled_with(&[("VERIFICATION_READS_PER_SECOND", "8")]);
        let _workers = [(); 3].map(|()| world.start_worker_with(&settings));
        world.wait_for_all_accepted(&jobs).await;
        // All at once, and the next reads out of the way.
        world.is_tampered_with();
        sqlx::query(
            "update submission
            set received_at = received_at - interval '2 minutes', verification_due_at = now(),
                ended_at = now() - interval '2 minutes'",
        )
        .execute(&world.pool)
        .await
        .expect("the database answers");
        world
            .wait_for("a read of each", async || (world.oracle("reads").await.len() >= 48).then_some(()))
            .await;

        let mut reads: Vec<_> = world.reads_by_customer().await.into_values().flatten().collect();
        reads.sort_unstable();
        // A quarter of a second's may begin at once, and the way takes its time; each replica for
        // itself would come to three times as many.
        for (first, at) in reads.iter().enumerate() {
            let within = reads[first..].iter().take_while(|other| **other - *at < Duration::from_secs(1));
            assert!(within.count() <= 2 * PER_SECOND, "too many from the {first}th: {reads:?}");
        }
        let lasted = *reads.last().expect("reads") - reads[0];
        assert!(lasted >= Duration::from_secs(4), "{lasted}");
        assert!(reads.len() < 60, "no read was made twice: {}", reads.len());
    });
}

#[test]
fn what_was_accepted_by_a_read_is_tracked_like_any_other() {
    world_with(world_that_verifies_in(4000), async |world| {
        world.declare_topology().await;
        let job_id = world.publish_broken_job(json!({ "answer": { "kind": "reset" } })).await;
        let _worker = world.start_worker_with(&SCALED);
        world.wait_for_applied(job_id).await;
        let ended = world.wait_for_end_of_verification(job_id).await;
        assert_eq!((ended.status.as_deref(), ended.failure_reason), (Some("VERIFIED"), None));
        let observations = world.observations(job_id).await;
        let seen: Vec<_> =
            observations.iter().map(|seen| (seen.purpose.as_str(), seen.status.as_deref())).collect();
        assert_eq!(
            seen,
            [("read_back", Some("PROCESSING")), ("verification", Some("VERIFIED"))],
            "{observations:?}"
        );
    });
}

/// The database's clock was ahead when the last reads were claimed, and was put right.
#[test]
fn a_pace_that_is_far_ahead_holds_up_no_read() {
    world_with(world_that_verifies_in(1_000), async |world| {
        world.declare_topology().await;
        world.tamper("update verification_pace set next_read_at = now() + interval '1 hour'").await;
        let (job_id, _) = world.publish_job_for(Uuid::new_v4()).await;
        let _worker = world.start_worker_with(&SCALED);
        world.wait_for_end_of_verification(job_id).await;
        assert_eq!(world.verification(job_id).await.status.as_deref(), Some("VERIFIED"));
    });
}
