//! Whether people have paused all the work.

use serde::Serialize;
use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;

/// A pause of all the work.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Pause {
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    pub by: String,
    pub note: String,
}

/// Lets no other pause or resumption be written before this transaction has ended: the newest row counts, and
/// rows are numbered as they are written, and not as they are committed.
pub async fn lock_pause(tx: &mut PgConnection) -> sqlx::Result<()> {
    let locking = sqlx::query("-- lock_pause\nselect pg_advisory_xact_lock(hashtext('kyc-worker pause'))");
    locking.execute(tx).await.map(drop)
}

/// The pause that holds now.
pub async fn current_pause(executor: impl PgExecutor<'_>) -> sqlx::Result<Option<Pause>> {
    sqlx::query_as!(
        Pause,
        r#"-- current_pause
        with newest as (
            select action, at, by, note
            from intervention
            where action in ('pause', 'resume')
            order by id desc
            limit 1
        )
        select at, by as "by!", note as "note!" from newest where action = 'pause'"#,
    )
    .fetch_optional(executor)
    .await
}
