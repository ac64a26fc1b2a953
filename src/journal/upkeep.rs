//! What the scheduler does to rows that nobody holds.

use std::time::Duration;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::chain::{Entry, Head, Subject};
use super::seal::Fingerprinter;
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

/// An open attempt whose claim ran out, its submission's row locked.
struct Abandoned {
    job_id: Uuid,
    customer_id: Uuid,
    claimed_by: Option<String>,
    number: i32,
    worker: String,
    begun_at: OffsetDateTime,
    signed_at: OffsetDateTime,
    chain: Option<[u8; 32]>,
    entries: i32,
    now: OffsetDateTime,
}

/// What is written down of an attempt whose worker vanished.
struct Vanished {
    verdict: &'static str,
    detail: &'static str,
    error: &'static str,
}

const VANISHED: Vanished = Vanished {
    verdict: "unknown",
    detail: "worker_vanished",
    error: "the worker's claim ran out before it recorded a result",
};

impl Abandoned {
    /// Where the job's chain stands once the attempt is closed.
    fn head_after(&self, fingerprinter: &Fingerprinter) -> Head {
        let subject = Subject { job_id: self.job_id, customer_id: self.customer_id };
        let entry = Entry::Attempt {
            number: self.number,
            worker: &self.worker,
            begun_at: self.begun_at,
            signed_at: self.signed_at,
            ended_at: self.now,
            verdict: VANISHED.verdict,
            detail: Some(VANISHED.detail),
            http_status: None,
            provider_message: None,
            error: Some(VANISHED.error),
            duration_ms: None,
        };
        Head::of_row(self.chain, self.entries).after(fingerprinter, subject, &entry)
    }
}

/// The submissions whose claims ran out first, with their open attempts; those that another
/// holds are left to him. `submitting` always has an open attempt, its last.
async fn lock_abandoned(tx: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<Abandoned>> {
    sqlx::query_as!(
        Abandoned,
        r#"-- lock_abandoned
        with expired as (
            select job_id, customer_id, claimed_by, attempts, chain, entries
            from submission
            where state = 'submitting' and claimed_until < now()
            order by claimed_until
            limit $1
            for update skip locked
        )
        select
            e.job_id, e.customer_id as "customer_id!", e.claimed_by, a.number, a.worker, a.begun_at, a.signed_at,
            e.chain as "chain: [u8; 32]", e.entries, now() as "now!"
        from expired e
        join attempt a on a.job_id = e.job_id and a.number = e.attempts and a.ended_at is null"#,
        limit,
    )
    .fetch_all(tx)
    .await
}

impl Journal {
    /// Takes over up to `limit` submissions whose worker vanished after it had begun an
    /// attempt: its fate is unknown, and the customer is to be looked at.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn take_over(&self, limit: i64) -> Result<Vec<TakenOver>, JournalError> {
        bounded(async {
            let mut tx = self.pool.begin().await?;
            let abandoned = lock_abandoned(&mut tx, limit).await?;
            if abandoned.is_empty() {
                tx.rollback().await?;
                return Ok(Vec::new());
            }
            let heads: Vec<Head> =
                abandoned.iter().map(|attempt| attempt.head_after(&self.fingerprinter)).collect();
            sqlx::query!(
                "-- take_over
                with abandoned as (
                    select *
                    from unnest($1::uuid[], $2::integer[], $3::integer[], $4::bytea[])
                        as a (job_id, number, entry, chain)
                ), taken as (
                    update submission s
                    set state = 'unknown', due_at = now() + make_interval(secs => $5), claimed_until = null,
                        reason_code = 'worker_vanished',
                        reason = 'the worker vanished in attempt ' || s.attempts,
                        claim_token = s.claim_token + 1, chain = abandoned.chain, entries = abandoned.entry
                    from abandoned
                    where s.job_id = abandoned.job_id
                )
                update attempt a
                set ended_at = now(), entry = abandoned.entry, verdict = $6, detail = $7, error = $8
                from abandoned
                where a.job_id = abandoned.job_id and a.number = abandoned.number",
                &abandoned.iter().map(|attempt| attempt.job_id).collect::<Vec<_>>(),
                &abandoned.iter().map(|attempt| attempt.number).collect::<Vec<_>>(),
                &heads.iter().map(|head| head.entries).collect::<Vec<_>>(),
                &heads.iter().map(|head| head.mac).collect::<Vec<_>>() as &[[u8; 32]],
                self.limits.read_back_after.as_secs_f64(),
                VANISHED.verdict,
                VANISHED.detail,
                VANISHED.error,
            )
            .execute(&mut *tx)
            .await?;
            tx.commit().await?;
            let taken = abandoned.into_iter().map(|attempt| TakenOver {
                job_id: attempt.job_id,
                claimed_by: attempt.claimed_by,
                attempt: attempt.number,
            });
            Ok(taken.collect())
        })
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
                    reason_code = $2, reason = $3, ended_at = greatest(now(), s.received_at)
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
