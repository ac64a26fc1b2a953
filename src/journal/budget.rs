//! How many of a customer's updates are spent.

use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

/// How many of a customer's updates are spent, as far as the records know.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct Spent {
    /// Attempts accepted, or ever of unknown fate, each once.
    pub here: u32,
    /// Those that a person told us of.
    pub elsewhere: u32,
}

/// Counts a customer's updates: each attempt that was accepted, or was ever of unknown
/// fate, once, whatever a look has shown since.
pub(crate) async fn spent(connection: &mut PgConnection, customer_id: Uuid) -> sqlx::Result<Spent> {
    let row = sqlx::query!(
        r#"-- spent
        select
            (
                select count(*)
                from submission s
                -- A look-up for each, as in claim_read.
                cross join lateral (
                    select * from attempt a where a.job_id = s.job_id offset 0
                ) spent
                where s.customer_id = $1 and s.attempts > 0 and spent.verdict in ('accepted', 'unknown')
            ) as "here!",
            coalesce((select updates_elsewhere from customer where customer_id = $1), 0) as "elsewhere!""#,
        customer_id,
    )
    .fetch_one(connection)
    .await?;
    Ok(Spent { here: u32::try_from(row.here).unwrap_or(u32::MAX), elsewhere: row.elsewhere.unsigned_abs() })
}
