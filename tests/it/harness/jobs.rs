//! Jobs: as upstream publishes them, and what the journal says became of them.

use std::collections::BTreeMap;

use kyc_lab::books::{self, AtBroker, Check, Evidence, Expectation, Published, Repeats};
use serde_json::{Value, json};
use sqlx::Row as _;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::{NARROW, WorkerProcess, World};

/// A valid body. The front link names the job, so that the oracle can tell whose PATCH it saw.
pub fn job_body(customer_id: Uuid, job_id: Uuid) -> Value {
    json!({
        "customer_id": customer_id,
        "full_address": "12 Rue Élysée, Mumbai 400001",
        "document_type": "PASSPORT",
        "document_front_image_url": format!("https://files.example.com/{job_id}/front.jpg?X-Amz-Signature=abc"),
        "document_back_image_url": format!("https://files.example.com/{job_id}/back.png"),
        "document_details": { "document_number": "123456123456", "additional_data": {} }
    })
}

/// The job that a front link of [`job_body`] names.
pub fn job_of_link(link: &str) -> Option<Uuid> {
    link.split('/').nth(3)?.parse().ok()
}

#[derive(Debug)]
pub struct Observation {
    pub purpose: String,
    pub status: Option<String>,
    pub error: Option<String>,
    pub conclusion: Option<String>,
    pub document_types: Option<String>,
}

#[derive(Debug)]
pub struct Submission {
    pub state: String,
    pub waiting_for: Option<String>,
    pub reason_code: Option<String>,
    pub reason: Option<String>,
    pub attempts: i32,
    pub retries: i32,
    pub deliveries: i32,
    pub provider_reference: Option<String>,
    pub evidence: Option<String>,
    pub verification_status: Option<String>,
    pub has_payload: bool,
    pub document_number_last4: Option<String>,
}

#[derive(Debug)]
pub struct Attempt {
    pub number: i32,
    pub verdict: Option<String>,
    pub detail: Option<String>,
    pub http_status: Option<i32>,
    pub provider_message: Option<String>,
}

impl World {
    /// Publishes a valid job and returns its id.
    pub async fn publish_job(&self) -> Uuid {
        let (job_id, _) = self.publish_job_for(Uuid::new_v4()).await;
        job_id
    }

    /// Publishes a valid job for a customer; returns its id and its body.
    pub async fn publish_job_for(&self, customer_id: Uuid) -> (Uuid, Value) {
        let job_id = Uuid::new_v4();
        (job_id, self.publish_job_named(customer_id, job_id).await)
    }

    /// Publishes a job that may have been applied, and whose customer tells nothing: a person must decide.
    pub async fn publish_unsettled(&self) -> (Uuid, Uuid) {
        let customer_id = Uuid::new_v4();
        self.set_customer(customer_id, json!({ "status": "UNVERIFIED" })).await;
        let crash = json!({ "kind": "respond", "status": 500, "body": "oops" });
        let matched = json!({ "method": "PATCH", "customer_id": customer_id });
        let fault = json!({ "apply": "never", "answer": crash });
        self.add_rule(json!({ "match": matched, "first": 1, "fault": fault })).await;
        (self.publish_job_for(customer_id).await.0, customer_id)
    }

    /// Publishes a valid job under an id that something waits for; returns its body.
    pub async fn publish_job_named(&self, customer_id: Uuid, job_id: Uuid) -> Value {
        let body = job_body(customer_id, job_id);
        self.publish(Some(job_id), body.to_string().as_bytes()).await;
        body
    }

    /// Publishes a valid job whose every PATCH meets a fault, which is there before the job is.
    pub async fn publish_broken_job(&self, fault: Value) -> Uuid {
        let job_id = Uuid::new_v4();
        self.break_job(job_id, fault).await;
        self.publish_job_named(Uuid::new_v4(), job_id).await;
        job_id
    }

    /// Publishes a valid job that the customer asked for so many seconds ago.
    pub async fn publish_job_asked(&self, customer_id: Uuid, seconds_ago: i64) -> Uuid {
        let job_id = Uuid::new_v4();
        let asked = OffsetDateTime::now_utc() - time::Duration::seconds(seconds_ago);
        let mut body = job_body(customer_id, job_id);
        body["requested_at"] = json!(asked.format(&Rfc3339).expect("a time"));
        self.publish(Some(job_id), body.to_string().as_bytes()).await;
        job_id
    }

    /// Publishes as many valid jobs, each for a customer of its own.
    pub async fn publish_jobs(&self, count: usize) -> Vec<Uuid> {
        let mut jobs = Vec::new();
        for _ in 0..count {
            jobs.push(self.publish_job().await);
        }
        jobs
    }

    /// Queues as many valid jobs, each for a customer of its own, through the binary, which waits
    /// for the broker's confirmations.
    pub async fn enqueue_jobs(&self, count: usize, settings: &[(&str, &str)]) -> Vec<Uuid> {
        let (jobs, file) = self.write_jobs(count);
        let enqueued = self.run(&["enqueue", &file], settings).await;
        assert!(enqueued.status.success(), "{}", String::from_utf8_lossy(&enqueued.stderr));
        jobs
    }

    /// Writes as many valid jobs, each for a customer of its own, into a file.
    pub fn write_jobs(&self, count: usize) -> (Vec<Uuid>, String) {
        let jobs: Vec<Uuid> = (0..count).map(|_| Uuid::new_v4()).collect();
        let lines: String = jobs
            .iter()
            .map(|job_id| {
                let mut body = job_body(Uuid::new_v4(), *job_id);
                body["job_id"] = json!(job_id);
                format!("{body}\n")
            })
            .collect();
        let file = self.write_file("jobs.jsonl", lines.as_bytes());
        (jobs, file)
    }

    /// Starts a worker that holds a few deliveries of two hundred, in the middle of its work.
    pub async fn start_at_work(&self, settings: &[(&str, &str)]) -> (WorkerProcess, Vec<Uuid>) {
        self.declare_topology().await;
        self.set_provider(json!({ "latency_ms": 20 })).await;
        let jobs = self.publish_jobs(200).await;
        let worker = self.start_worker_with(&[&NARROW[..], settings].concat());
        self.wait_for_accepted(20).await;
        (worker, jobs)
    }

    pub async fn submission(&self, job_id: Uuid) -> Option<Submission> {
        let row = sqlx::query(
            "select state, waiting_for, reason_code, reason, attempts, retries, deliveries, provider_reference,
                evidence, verification_status, sealed_payload is not null as has_payload, document_number_last4
            from submission where job_id = $1",
        )
        .bind(job_id)
        .fetch_optional(&self.pool)
        .await
        .expect("the database answers")?;
        Some(Submission {
            state: row.get("state"),
            waiting_for: row.get("waiting_for"),
            reason_code: row.get("reason_code"),
            reason: row.get("reason"),
            attempts: row.get("attempts"),
            retries: row.get("retries"),
            deliveries: row.get("deliveries"),
            provider_reference: row.get("provider_reference"),
            evidence: row.get("evidence"),
            verification_status: row.get("verification_status"),
            has_payload: row.get("has_payload"),
            document_number_last4: row.get("document_number_last4"),
        })
    }

    /// A job's attempts, in order, but those that were held back: any pause can add one.
    pub async fn attempts(&self, job_id: Uuid) -> Vec<Attempt> {
        let rows = sqlx::query(
            "select number, verdict, detail, http_status, provider_message from attempt
            where job_id = $1 and detail is distinct from 'held_back'
            order by number",
        )
        .bind(job_id)
        .fetch_all(&self.pool)
        .await
        .expect("the database answers");
        rows.iter()
            .map(|row| Attempt {
                number: row.get("number"),
                verdict: row.get("verdict"),
                detail: row.get("detail"),
                http_status: row.get("http_status"),
                provider_message: row.get("provider_message"),
            })
            .collect()
    }

    /// What was read of a job's customer for it, in order.
    pub async fn observations(&self, job_id: Uuid) -> Vec<Observation> {
        let rows = sqlx::query(
            "select purpose, status, error, conclusion, document_types from observation
            where job_id = $1 order by id",
        )
        .bind(job_id)
        .fetch_all(&self.pool)
        .await
        .expect("the database answers");
        rows.iter()
            .map(|row| Observation {
                purpose: row.get("purpose"),
                status: row.get("status"),
                error: row.get("error"),
                conclusion: row.get("conclusion"),
                document_types: row.get("document_types"),
            })
            .collect()
    }

    /// Waits until a job is in one of `states`.
    pub async fn wait_for_state(&self, job_id: Uuid, states: &[&str]) -> Submission {
        let what = format!("job {job_id} in {states:?}");
        self.wait_for(&what, async || {
            let found = self.submission(job_id).await?;
            states.contains(&found.state.as_str()).then_some(found)
        })
        .await
    }

    /// Waits until as many submissions are accepted.
    pub async fn wait_for_accepted(&self, count: i64) {
        let what = format!("{count} accepted submissions");
        self.wait_for(&what, async || (self.count_accepted().await >= count).then_some(())).await;
    }

    /// How many submissions are accepted.
    pub async fn count_accepted(&self) -> i64 {
        self.count("select count(*) from submission where state = 'accepted'").await
    }

    /// Waits until a read of the customer has shown that the job was applied.
    pub async fn wait_for_applied(&self, job_id: Uuid) -> Submission {
        let job = self.wait_for_state(job_id, &["accepted", "needs_review"]).await;
        assert_eq!((job.state.as_str(), job.evidence.as_deref()), ("accepted", Some("read_back")), "{job:?}");
        job
    }

    /// Waits until every job is accepted, and checks that each was applied once and that
    /// every PATCH of it has its attempt.
    pub async fn wait_for_all_accepted(&self, jobs: &[Uuid]) {
        for job_id in jobs {
            self.wait_for_state(*job_id, &["accepted"]).await;
            assert_eq!(self.count_updates(*job_id).await, 1, "updates of {job_id}");
        }
    }

    /// Waits until nothing is in motion and as many submissions have ended.
    pub async fn wait_for_ended(&self, count: usize) {
        let what = format!("{count} ended submissions");
        self.wait_for(&what, async || {
            let ended = "select count(*) from submission where ended_at is not null";
            (usize::try_from(self.count(ended).await) == Ok(count)).then_some(())
        })
        .await;
    }

    /// Checks what no fault may ever break, once every one of `jobs` is accepted: what the provider
    /// saw and what the tables say agree, as the books of demo and storm do.
    pub async fn check_nothing_lost_or_spent_twice(&self, jobs: &[Uuid]) {
        self.wait_for_all_accepted(jobs).await;
        self.check_promises(jobs, &["accepted"]).await;
    }

    /// The same, of jobs that have ended in one of these states.
    pub async fn check_promises(&self, jobs: &[Uuid], states: &'static [&'static str]) {
        check_agree(&self.books(jobs, states).await.promises());
    }

    /// Checks that every PATCH that the provider received has an attempt of its own job.
    pub async fn check_every_patch_has_its_attempt(&self) {
        check_agree(&[self.books(&[], ANY_STATE).await.sends_are_written_down()]);
    }

    /// What the provider saw and what the tables say. Of jobs that are not named here, nothing is
    /// expected but a row.
    async fn books(&self, jobs: &[Uuid], states: &'static [&'static str]) -> Evidence {
        let rows: Vec<Uuid> = sqlx::query_scalar("select job_id from submission")
            .fetch_all(&self.pool)
            .await
            .expect("the database answers");
        let expectation = |states| Expectation { kind: "test", copies: 0, states };
        let mut expected: BTreeMap<_, _> = rows.into_iter().map(|id| (id, expectation(ANY_STATE))).collect();
        expected.extend(jobs.iter().map(|id| (*id, expectation(states))));
        // Workers were killed, and their deliveries came again.
        let published = Published {
            jobs: expected,
            update_limit: u32::MAX,
            repeats: Repeats::Allowed,
            ..Published::default()
        };
        let admin_url = self.sandbox.admin_url();
        let gathered = books::gather(&self.pool, &admin_url, published, AtBroker::default());
        gathered.await.expect("the provider and the database answer")
    }
}

const ANY_STATE: &[&str] = &[
    "submitting",
    "waiting",
    "unknown",
    "accepted",
    "rejected",
    "invalid",
    "superseded",
    "duplicate",
    "exhausted",
    "needs_review",
];

pub(super) fn check_agree(checks: &[Check]) {
    let disagreeing: Vec<_> = checks.iter().filter(|check| !check.agrees()).collect();
    assert!(disagreeing.is_empty(), "the books disagree: {disagreeing:#?}");
}
