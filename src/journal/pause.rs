//! Whether people have paused all the work.

use serde::Serialize;
use sqlx::PgExecutor;
use time::OffsetDateTime;

/// A pause of all the work.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Pause {
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    pub by: String,
    pub note: String,
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
