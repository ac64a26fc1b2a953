//! Jobs for auditors, read row by row: nothing that a customer entered but the last four.

use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

/// A job as auditors see it.
#[derive(Debug, Deserialize, Serialize)]
pub struct ExportedJob {
    pub job_id: Uuid,
    pub customer_id: Option<Uuid>,
    pub document_type: Option<String>,
    pub document_number_last4: Option<String>,
    pub state: String,
    pub reason_code: Option<String>,
    pub reason: Option<String>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub requested_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339")]
    pub received_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    pub deliveries: i32,
    pub attempts: i32,
    /// How many of its attempts spent an update, or may have.
    pub spent: i64,
    pub evidence: Option<String>,
    pub provider_reference: Option<String>,
    pub verification_status: Option<String>,
    pub failure_reason: Option<String>,
    pub correlation_id: Option<String>,
    /// How often a person intervened.
    pub interventions: i64,
}

/// A span of time: from `since` on, and before `until`.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub since: OffsetDateTime,
    pub until: OffsetDateTime,
}

/// How many jobs lie in the span.
pub async fn count_jobs(connection: &mut PgConnection, span: Span) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"-- count_exported
        select count(*) as "count!"
        from submission
        where received_at >= $1 and received_at < $2
            and (ended_at >= $1 or state = 'submitting' or state = 'waiting' or state = 'unknown')"#,
        span.since,
        span.until,
    )
    .fetch_one(connection)
    .await
}

/// Lets this connection's statements take as long as they need.
pub async fn lift_time_limit(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("-- lift_time_limit\nset statement_timeout = 0").execute(connection).await?;
    Ok(())
}

/// The jobs of the span, those received first before the others, one by one as the reader
/// takes them.
pub fn jobs(connection: &mut PgConnection, span: Span) -> BoxStream<'_, sqlx::Result<ExportedJob>> {
    sqlx::query_as!(
        ExportedJob,
        r#"-- export
        select
            s.job_id, s.customer_id, s.document_type, s.document_number_last4, s.state, s.reason_code, s.reason,
            s.requested_at, s.received_at, s.ended_at, s.deliveries, s.attempts,
            (
                select count(*) from attempt a
                where a.job_id = s.job_id and a.verdict in ('accepted', 'unknown')
            ) as "spent!",
            s.evidence, s.provider_reference, s.verification_status, s.failure_reason, s.correlation_id,
            (select count(*) from intervention i where i.job_id = s.job_id) as "interventions!"
        from submission s
        where s.received_at >= $1 and s.received_at < $2
            -- What was received since has ended since, or is in motion: each has its index.
            and (s.ended_at >= $1 or s.state = 'submitting' or s.state = 'waiting' or s.state = 'unknown')
        order by s.received_at, s.job_id"#,
        span.since,
        span.until,
    )
    .fetch(connection)
}
