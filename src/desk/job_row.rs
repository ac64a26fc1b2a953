//! A job's row, as a person finds it or locks it for what they do.

use std::collections::HashMap;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::desk::version::Version;
use crate::domain::state::State;
use crate::journal::Head;
use crate::journal::statements::move_on::Position;

/// A job as it stands; where it was locked, until the transaction ends.
pub(crate) struct JobRow {
    pub job_id: Uuid,
    pub customer_id: Option<Uuid>,
    pub requested_at: Option<OffsetDateTime>,
    pub received_at: OffsetDateTime,
    pub content_hmac: Option<Vec<u8>>,
    pub has_payload: bool,
    pub is_expired: bool,
    /// Whether an attempt of it may have been applied.
    pub may_be_applied: bool,
    pub is_accepted_late: bool,
    pub state: State,
    pub token: i64,
    pub chain: Option<[u8; 32]>,
    pub entries: i32,
    pub reason_code: Option<String>,
}

impl JobRow {
    /// Where its row stands; none for one that is no job, and so no customer's.
    pub fn position(&self, job_id: Uuid) -> Option<Position> {
        let head = Head::of_row(self.chain, self.entries);
        Some(Position { job_id, customer_id: self.customer_id?, state: self.state, token: self.token, head })
    }

    /// Its state with the reason, as people read it.
    pub fn describe(&self) -> String {
        match &self.reason_code {
            Some(reason_code) => format!("{} ({reason_code})", self.state),
            None => self.state.to_string(),
        }
    }

    /// Its state with its claims and the entries of its history: every move raises one of those.
    pub fn version(&self) -> Version {
        format!("{}, claim {}, {} entries", self.state, self.token, self.entries).into()
    }
}

/// Locks a job's row, if it is known, and reads it with what is there then.
pub(crate) async fn lock_job(tx: &mut PgConnection, job_id: Uuid) -> sqlx::Result<Option<JobRow>> {
    sqlx::query_scalar!("-- lock_job\nselect job_id from submission where job_id = $1 for update", job_id)
        .fetch_optional(&mut *tx)
        .await?;
    read_job(tx, job_id).await
}

/// Reads a job's row, if it is known.
pub(crate) async fn read_job(connection: &mut PgConnection, job_id: Uuid) -> sqlx::Result<Option<JobRow>> {
    Ok(read_jobs(connection, &[job_id]).await?.remove(&job_id))
}

/// Reads the rows of those jobs that are known.
pub(crate) async fn read_jobs(
    connection: &mut PgConnection,
    job_ids: &[Uuid],
) -> sqlx::Result<HashMap<Uuid, JobRow>> {
    let rows = sqlx::query_as!(
        JobRow,
        r#"-- read_jobs
        select
            job_id, customer_id, state as "state: State", claim_token as token, chain as "chain: [u8; 32]", entries, reason_code, requested_at, received_at, content_hmac,
            sealed_payload is not null as "has_payload!",
            coalesce(expires_at <= now(), false) as "is_expired!",
            exists (
                select from attempt a where a.job_id = s.job_id and a.verdict = 'unknown'
            ) as "may_be_applied!",
            exists (
                select from attempt a where a.job_id = s.job_id and a.late_verdict = 'accepted'
            ) as "is_accepted_late!"
        from submission s
        where job_id = any($1)"#,
        job_ids,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.job_id, row)).collect())
}
