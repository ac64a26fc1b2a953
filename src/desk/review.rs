//! The jobs that wait for a person.

use serde::Serialize;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::desk::story::Spent;
use crate::journal::statements::customers::read_customers;

/// A job that waits for a person.
#[derive(Debug, Serialize)]
pub struct JobForReview {
    pub job_id: Uuid,
    pub customer_id: Option<Uuid>,
    pub document_type: Option<String>,
    pub document_number_last4: Option<String>,
    pub reason_code: Option<String>,
    pub reason: Option<String>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub since: Option<OffsetDateTime>,
    pub attempts: i32,
    /// Of its customer's updates.
    pub spent: Spent,
}

/// The jobs that wait for a person, or those of them with one reason, that have waited the longest.
pub async fn worklist(
    pool: &PgPool,
    reason_code: Option<&str>,
    limit: i64,
) -> sqlx::Result<Vec<JobForReview>> {
    let mut connection = pool.acquire().await?;
    let rows = match reason_code {
        Some(reason_code) => read_worklist_for_reason(&mut connection, reason_code, limit).await?,
        None => read_worklist(&mut connection, limit).await?,
    };
    let asked = rows.iter().filter_map(|row| Some((row.customer_id?, None)));
    let customers = read_customers(&mut connection, asked).await?;
    let job = rows.into_iter().map(|row| JobForReview {
        job_id: row.job_id,
        customer_id: row.customer_id,
        document_type: row.document_type,
        document_number_last4: row.document_number_last4,
        reason_code: row.reason_code,
        reason: row.reason,
        since: row.ended_at,
        attempts: row.attempts,
        spent: row.customer_id.and_then(|id| customers.get(&id)).map(Spent::of).unwrap_or_default(),
    });
    Ok(job.collect())
}

/// The row of a job that waits for a person.
struct WaitingRow {
    job_id: Uuid,
    customer_id: Option<Uuid>,
    document_type: Option<String>,
    document_number_last4: Option<String>,
    reason_code: Option<String>,
    reason: Option<String>,
    ended_at: Option<OffsetDateTime>,
    attempts: i32,
}

async fn read_worklist(connection: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<WaitingRow>> {
    sqlx::query_as!(
        WaitingRow,
        "-- worklist
        select
            job_id, customer_id, document_type, document_number_last4, reason_code, reason, ended_at, attempts
        from submission
        where state = 'needs_review'
        order by ended_at
        limit $1",
        limit,
    )
    .fetch_all(connection)
    .await
}

/// A statement of its own, so that it has an index of its own: few may have this reason, of very many.
async fn read_worklist_for_reason(
    connection: &mut PgConnection,
    reason_code: &str,
    limit: i64,
) -> sqlx::Result<Vec<WaitingRow>> {
    sqlx::query_as!(
        WaitingRow,
        "-- worklist_for_reason
        select
            job_id, customer_id, document_type, document_number_last4, reason_code, reason, ended_at, attempts
        from submission
        where state = 'needs_review' and reason_code = $1
        order by ended_at
        limit $2",
        reason_code,
        limit,
    )
    .fetch_all(connection)
    .await
}
