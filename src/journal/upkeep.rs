//! What the scheduler does to rows that nobody holds.

use std::time::Duration;

use uuid::Uuid;

use super::{BUSY_WAIT_MAX_SECONDS, Journal, JournalError, bounded};
use crate::domain::outcome::{Exhaustion, Outcome};

/// A submission whose owner vanished.
#[derive(Debug)]
pub struct TakenOver {
    /// The job.
    pub job_id: Uuid,
    /// Who held it.
    pub claimed_by: Option<String>,
    /// The attempt that was open.
    pub attempt: i32,
}

impl Journal {
    /// Takes over up to `limit` submissions whose worker vanished after it had begun an
    /// attempt: its fate is unknown, and the customer is to be looked at.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn take_over(&self, limit: i64) -> Result<Vec<TakenOver>, JournalError> {
        bounded(
            sqlx::query_as!(
                TakenOver,
                "-- take_over
                with expired as (
                    select job_id
                    from submission
                    where state = 'submitting' and claimed_until < now()
                    order by claimed_until
                    limit $1
                    for update skip locked
                ), taken as (
                    update submission s
                    set state = 'unknown', due_at = now() + make_interval(secs => $2), claimed_until = null,
                        reason_code = 'worker_vanished',
                        reason = 'the worker vanished in attempt ' || s.attempts,
                        claim_token = s.claim_token + 1
                    from expired
                    where s.job_id = expired.job_id
                    returning s.job_id, s.claimed_by, s.attempts
                ), closed as (
                    update attempt a
                    set ended_at = now(), verdict = 'unknown', detail = 'worker_vanished',
                        error = 'the worker''s claim ran out before it recorded a result'
                    from taken
                    where a.job_id = taken.job_id and a.ended_at is null
                )
                select job_id, claimed_by, attempts as attempt from taken",
                limit,
                self.limits.read_back_after.as_secs_f64(),
            )
            .fetch_all(&self.pool),
        )
        .await
    }

    /// Ends up to `limit` waiting submissions whose `expires_at` has passed.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn expire(&self, limit: i64) -> Result<Vec<Uuid>, JournalError> {
        let expired = Outcome::Exhausted(Exhaustion::Expired);
        bounded(
            sqlx::query_scalar!(
                "-- expire
                with expired as (
                    select job_id
                    from submission
                    where state = 'waiting' and expires_at <= now()
                    order by expires_at
                    limit $1
                    for update skip locked
                )
                update submission s
                set state = 'exhausted', waiting_for = null, due_at = null,
                    reason_code = $2, reason = $3, ended_at = now()
                from expired
                where s.job_id = expired.job_id
                returning s.job_id",
                limit,
                expired.reason_code(),
                &*expired.reason(),
            )
            .fetch_all(&self.pool),
        )
        .await
    }

    /// Puts off up to `limit` due submissions that another one of their customer is ahead
    /// of: until the holder's lease ends or the newer one is due, and 30 s at most.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn postpone_busy(&self, limit: i64) -> Result<u64, JournalError> {
        let postponed = bounded(
            sqlx::query!(
                "-- postpone_busy
                with busy as (
                    select s.job_id, ahead.until
                    from submission s
                    cross join lateral (
                        select min(coalesce(other.claimed_until, other.due_at)) as until
                        from submission other
                        where other.customer_id = s.customer_id
                            and (
                                other.state in ('submitting', 'unknown')
                                or other.state = 'waiting'
                                    and (other.requested_at, other.received_at, other.job_id)
                                        > (s.requested_at, s.received_at, s.job_id)
                            )
                    ) ahead
                    where s.state = 'waiting' and s.due_at <= now() and ahead.until is not null
                    order by s.due_at
                    limit $1
                    for update of s skip locked
                )
                update submission s
                set waiting_for = 'customer',
                    due_at = greatest(
                        now() + interval '100 ms',
                        least(busy.until, now() + make_interval(secs => $2))
                    )
                from busy
                where s.job_id = busy.job_id",
                limit,
                BUSY_WAIT_MAX_SECONDS,
            )
            .execute(&self.pool),
        )
        .await?;
        Ok(postponed.rows_affected())
    }

    /// Removes up to `limit` payloads of submissions that ended longer than `retention` ago.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn sweep_payloads(&self, retention: Duration, limit: i64) -> Result<u64, JournalError> {
        let swept = bounded(
            sqlx::query!(
                "-- sweep_payloads
                with old as (
                    select job_id
                    from submission
                    where state in ('exhausted', 'needs_review') and sealed_payload is not null
                        and ended_at < now() - make_interval(secs => $1)
                    order by ended_at
                    limit $2
                    for update skip locked
                )
                update submission s set sealed_payload = null from old where s.job_id = old.job_id",
                retention.as_secs_f64(),
                limit,
            )
            .execute(&self.pool),
        )
        .await?;
        Ok(swept.rows_affected())
    }

    /// How long until the next submission is due; zero if one is due now.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn next_due(&self) -> Result<Option<Duration>, JournalError> {
        let seconds = bounded(
            sqlx::query_scalar!(
                "-- next_due
                select extract(epoch from min(due_at) - now())::float8
                from submission
                where state in ('waiting', 'unknown')"
            )
            .fetch_one(&self.pool),
        )
        .await?;
        Ok(seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default()))
    }

    /// How many submissions are in motion.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn count_in_motion(&self) -> Result<i64, JournalError> {
        bounded(
            sqlx::query_scalar!(
                r#"-- count_in_motion
                select (select count(*) from submission where state in ('waiting', 'unknown'))
                    + (select count(*) from submission where state = 'submitting') as "count!""#
            )
            .fetch_one(&self.pool),
        )
        .await
    }
}
