//! What a person means by a text: an id of any kind.

use serde::Serialize;
use sqlx::PgPool;
use uuid::Uuid;

use crate::desk::list::ListedJob;

/// How many jobs of one correlation_id are told, the newest.
const CORRELATED_MAX: i64 = 50;

/// What a text means.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// A job's id.
    Job(Uuid),
    /// A customer's id.
    Customer(Uuid),
    /// The id of a job whose rows are in this file of the archive.
    Archived { job_id: Uuid, file: String },
    /// The jobs with this correlation_id, those received last first; none where nothing has it.
    Correlated(Vec<ListedJob>),
}

/// Finds what a text means. An id of a job or a customer goes before a correlation_id that is written the same.
pub async fn find(pool: &PgPool, text: &str) -> sqlx::Result<Found> {
    let text = text.trim();
    if let Ok(id) = Uuid::try_parse(text)
        && let Some(found) = find_id(pool, id).await?
    {
        return Ok(found);
    }
    Ok(Found::Correlated(correlated(pool, text).await?))
}

async fn find_id(pool: &PgPool, id: Uuid) -> sqlx::Result<Option<Found>> {
    // In the order of an index, so that Postgres reads that whatever it thinks of the table.
    let known = sqlx::query!(
        r#"-- find_id
        select
            exists (select from submission where job_id = $1) as "is_job!",
            (select customer_id from submission where customer_id = $1 order by attempts limit 1) is not null
                or exists (select from customer where customer_id = $1)
                or exists (select from archived_customer where customer_id = $1) as "is_customer!",
            (select file from archived_job where job_id = $1) as file"#,
        id,
    )
    .fetch_one(pool)
    .await?;
    Ok(match known.file {
        _ if known.is_job => Some(Found::Job(id)),
        _ if known.is_customer => Some(Found::Customer(id)),
        Some(file) => Some(Found::Archived { job_id: id, file }),
        None => None,
    })
}

async fn correlated(pool: &PgPool, correlation_id: &str) -> sqlx::Result<Vec<ListedJob>> {
    sqlx::query_as!(
        ListedJob,
        "-- find_correlated
        select
            job_id, customer_id, state, waiting_for, reason_code, reason, received_at, ended_at, attempts,
            verification_status
        from submission
        where correlation_id = $1
        order by received_at desc
        limit $2",
        correlation_id,
        CORRELATED_MAX,
    )
    .fetch_all(pool)
    .await
}
