//! A job's row, locked for what a person does with it.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::domain::state::State;
use crate::journal::Head;
use crate::journal::statements::move_on::Position;

/// A job as it stands, until the transaction ends.
pub(crate) struct LockedJob {
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
    token: i64,
    chain: Option<[u8; 32]>,
    entries: i32,
    pub reason_code: Option<String>,
}

impl LockedJob {
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
}

/// Locks a job's row, if it is known.
pub(crate) async fn lock_job(tx: &mut PgConnection, job_id: Uuid) -> sqlx::Result<Option<LockedJob>> {
    sqlx::query_as!(
        LockedJob,
        r#"-- lock_job
        select
            customer_id, state as "state: State", claim_token as token, chain as "chain: [u8; 32]", entries, reason_code, requested_at, received_at, content_hmac,
            sealed_payload is not null as "has_payload!",
            coalesce(expires_at <= now(), false) as "is_expired!",
            exists (
                select from attempt a where a.job_id = s.job_id and a.verdict = 'unknown'
            ) as "may_be_applied!",
            exists (
                select from attempt a where a.job_id = s.job_id and a.late_verdict = 'accepted'
            ) as "is_accepted_late!"
        from submission s
        where job_id = $1
        for update"#,
        job_id,
    )
    .fetch_optional(tx)
    .await
}
