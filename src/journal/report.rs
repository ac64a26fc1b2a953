//! What people ask of the journal: the story of one job, and where the work stands.

use serde::Serialize;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use super::interventions::{Pause, current_pause};
use super::replicas::{WorkerView, workers};

/// A submission as people see it.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the columns are described in the schema")]
pub struct SubmissionView {
    pub job_id: Uuid,
    pub customer_id: Option<Uuid>,
    pub document_type: Option<String>,
    pub document_number_last4: Option<String>,
    pub state: String,
    pub waiting_for: Option<String>,
    pub reason_code: Option<String>,
    pub reason: Option<String>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub due_at: Option<OffsetDateTime>,
    pub deliveries: i32,
    pub claimed_by: Option<String>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub requested_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339")]
    pub received_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    pub provider_reference: Option<String>,
    pub evidence: Option<String>,
    pub verification_status: Option<String>,
    pub failure_reason: Option<String>,
    pub correlation_id: Option<String>,
    pub has_payload: bool,
}

/// An attempt as people see it.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the columns are described in the schema")]
pub struct AttemptView {
    pub job_id: Uuid,
    pub number: i32,
    pub worker: String,
    #[serde(with = "time::serde::rfc3339")]
    pub begun_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    pub verdict: Option<String>,
    pub late_verdict: Option<String>,
    pub detail: Option<String>,
    pub http_status: Option<i32>,
    pub provider_message: Option<String>,
    pub error: Option<String>,
    pub duration_ms: Option<i32>,
}

/// The story of one job.
#[derive(Debug, Serialize)]
pub struct JobStory {
    /// Where it stands.
    pub submission: SubmissionView,
    /// Its attempts, in order.
    pub attempts: Vec<AttemptView>,
    /// The looks at its customer, in order.
    pub observations: Vec<ObservationView>,
}

/// A look at a customer as people see it.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the columns are described in the schema")]
pub struct ObservationView {
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    pub purpose: String,
    pub status: Option<String>,
    pub failure_reason: Option<String>,
    pub error: Option<String>,
    pub conclusion: Option<String>,
}

/// Where the work stands.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The pause that holds, if one does.
    pub pause: Option<Pause>,
    /// Every replica that lives or died lately.
    pub workers: Vec<WorkerView>,
    /// How many submissions are in each state.
    pub states: Vec<StateCount>,
    /// The open submission received first.
    pub oldest_open: Option<OpenWork>,
    /// The last attempts that were not answered as they should be, the latest first. A
    /// rejection is an answer.
    pub last_errors: Vec<AttemptView>,
    /// How many deliveries were dead-lettered, by reason.
    pub dead_lettered: Vec<ReasonCount>,
}

/// How many submissions are in a state, by reason.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the columns are described in the schema")]
pub struct StateCount {
    pub state: String,
    pub reason_code: Option<String>,
    pub count: i64,
}

/// How many deliveries were dead-lettered for a reason.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the columns are described in the schema")]
pub struct ReasonCount {
    pub reason_code: String,
    pub count: i64,
}

/// A submission in motion.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the columns are described in the schema")]
pub struct OpenWork {
    pub job_id: Uuid,
    pub state: String,
    #[serde(with = "time::serde::rfc3339")]
    pub received_at: OffsetDateTime,
}

/// The story of one job; `None` if it is not known.
///
/// # Errors
/// When the database fails.
pub async fn job_story(pool: &PgPool, job_id: Uuid) -> sqlx::Result<Option<JobStory>> {
    let mut connection = pool.acquire().await?;
    let Some(submission) = submission(&mut connection, job_id).await? else { return Ok(None) };
    let attempts = sqlx::query_as!(
        AttemptView,
        "-- show_attempts
        select
            job_id, number, worker, begun_at, ended_at, verdict, late_verdict, detail, http_status,
            provider_message, error, duration_ms
        from attempt
        where job_id = $1
        order by number",
        job_id,
    )
    .fetch_all(&mut *connection)
    .await?;
    let observations = sqlx::query_as!(
        ObservationView,
        "-- show_observations
        select at, purpose, status, failure_reason, error, conclusion
        from observation
        where job_id = $1
        order by id",
        job_id,
    )
    .fetch_all(&mut *connection)
    .await?;
    Ok(Some(JobStory { submission, attempts, observations }))
}

/// One submission; `None` if it is not known.
pub(super) async fn submission(
    connection: &mut PgConnection,
    job_id: Uuid,
) -> sqlx::Result<Option<SubmissionView>> {
    sqlx::query_as!(
        SubmissionView,
        r#"-- show_submission
        select
            job_id, customer_id, document_type, document_number_last4, state, waiting_for,
            reason_code, reason, due_at, deliveries, claimed_by, requested_at, received_at,
            expires_at, ended_at, provider_reference, evidence, verification_status, failure_reason,
            correlation_id, sealed_payload is not null as "has_payload!"
        from submission
        where job_id = $1"#,
        job_id,
    )
    .fetch_optional(connection)
    .await
}

/// Where the work stands.
///
/// # Errors
/// When the database fails.
pub async fn report(pool: &PgPool) -> sqlx::Result<Report> {
    let states = sqlx::query_as!(
        StateCount,
        r#"-- report_states
        select state, reason_code, count(*) as "count!"
        from submission
        group by state, reason_code
        order by state, count(*) desc, reason_code"#
    )
    .fetch_all(pool)
    .await?;
    let oldest_open = sqlx::query_as!(
        OpenWork,
        "-- report_oldest_open
        select job_id, state, received_at
        from submission
        where state in ('submitting', 'waiting', 'unknown')
        order by received_at
        limit 1"
    )
    .fetch_optional(pool)
    .await?;
    let last_errors = sqlx::query_as!(
        AttemptView,
        "-- report_last_errors
        select
            job_id, number, worker, begun_at, ended_at, verdict, late_verdict, detail, http_status,
            provider_message, error, duration_ms
        from attempt
        where verdict in ('not_sent', 'misconfigured', 'unknown')
        order by ended_at desc
        limit 10"
    )
    .fetch_all(pool)
    .await?;
    let dead_lettered = sqlx::query_as!(
        ReasonCount,
        r#"-- report_dead_lettered
        select reason_code, count(*) as "count!"
        from dead_lettered_delivery
        group by reason_code
        order by reason_code"#
    )
    .fetch_all(pool)
    .await?;
    let (pause, workers) = (current_pause(pool).await?, workers(pool).await?);
    Ok(Report { pause, workers, states, oldest_open, last_errors, dead_lettered })
}
