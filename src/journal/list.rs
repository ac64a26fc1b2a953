//! Jobs that match what a person asks for.

use serde::Serialize;
use sqlx::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;

/// What to list.
#[derive(Clone, Debug)]
pub struct Filter<'a> {
    /// Only jobs in this state.
    pub state: Option<&'a str>,
    /// Only jobs with this reason.
    pub reason_code: Option<&'a str>,
    /// Only jobs of this customer.
    pub customer_id: Option<Uuid>,
    /// Only jobs received since.
    pub since: Option<OffsetDateTime>,
    /// How many at most.
    pub limit: i64,
}

/// A job in a list.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the columns are described in the schema")]
pub struct ListedJob {
    pub job_id: Uuid,
    pub customer_id: Option<Uuid>,
    pub state: String,
    pub waiting_for: Option<String>,
    pub reason_code: Option<String>,
    pub reason: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub received_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    pub attempts: i32,
    pub verification_status: Option<String>,
}

/// The jobs that match, those received last first.
///
/// # Errors
/// When the database fails.
pub async fn list(pool: &PgPool, filter: &Filter<'_>) -> sqlx::Result<Vec<ListedJob>> {
    sqlx::query_as!(
        ListedJob,
        "-- list
        select
            job_id, customer_id, state, waiting_for, reason_code, reason, received_at, ended_at, attempts,
            verification_status
        from submission
        where ($1::text is null or state = $1) and ($2::text is null or reason_code = $2)
            and ($3::uuid is null or customer_id = $3) and ($4::timestamptz is null or received_at >= $4)
        order by received_at desc, job_id
        limit $5",
        filter.state,
        filter.reason_code,
        filter.customer_id,
        filter.since,
        filter.limit,
    )
    .fetch_all(pool)
    .await
}
