//! What the scheduler does to rows that nobody holds.

use std::collections::HashSet;
use std::time::Duration;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::domain::job::JobRef;
use crate::domain::outcome::{Exhaustion, Outcome};
use crate::domain::state::{LinkField, State, VerdictKind};
use crate::domain::trace_context::TraceContext;
use crate::journal::error::JournalError;
use crate::journal::floors::Taken;
use crate::journal::handle::Journal;
use crate::journal::history::chain::{Head, Subject};
use crate::journal::pool::{distrust_connections, run, run_tx};
use crate::journal::statements::move_on::{ClosedAttempt, Destination, Move, Position, Why, move_locked};
use crate::journal::statements::wake::{
    FAR_WAIT_SECONDS, NEAR_WAIT_MAX_SECONDS, NEAR_WAIT_MIN_SECONDS, wake_newest_due_after,
};
use crate::seal::Fingerprinter;

/// Behind an attempt of unknown outcome, which takes a minute to settle, a job's alarm rings so often.
const UNKNOWN_WAIT_SECONDS: f64 = 10.0;

/// Nothing was kept for longer, and Postgres' times go back no further than some thousands of years.
const RETENTION_MAX: Duration = Duration::from_secs(1_000 * 365 * 24 * 3_600);

/// How long until the next row of each kind is due; zero if one is due now, `None` if there is none.
#[derive(Clone, Copy, Debug, Default)]
pub struct NextDue {
    /// A job that waits.
    pub attempt: Option<Duration>,
    /// A read of an unknown outcome.
    pub read: Option<Duration>,
    /// The end of a claim's lease.
    pub lease: Option<Duration>,
    /// The `expires_at` of a job that waits.
    pub expiry: Option<Duration>,
    /// A read of a verification.
    pub verification: Option<Duration>,
    /// An event that is to be published.
    pub event: Option<Duration>,
}

/// A submission whose lease had expired.
#[derive(Debug)]
pub struct Rescued {
    pub job: JobRef,
    pub claimed_by: Option<String>,
    /// The attempt that was open.
    pub attempt: i32,
}

/// An open attempt whose lease expired, its submission's row locked.
struct ExpiredLease {
    job_id: Uuid,
    received_at: OffsetDateTime,
    trace: Option<TraceContext>,
    customer_id: Uuid,
    claimed_by: Option<String>,
    token: i64,
    number: i32,
    worker: String,
    begun_at: OffsetDateTime,
    signed_at: OffsetDateTime,
    chain: Option<[u8; 32]>,
    entries: i32,
    now: OffsetDateTime,
}

/// What is written down of an attempt whose lease expired.
const VANISHED: &str = "worker_vanished";
const VANISHED_ERROR: &str = "the worker's claim ran out before it recorded a result";

impl ExpiredLease {
    fn job(&self) -> JobRef {
        JobRef { id: self.job_id, received_at: self.received_at, trace: self.trace }
    }

    fn head(&self) -> Head {
        Head::of_row(self.chain, self.entries)
    }

    fn closed(&self) -> ClosedAttempt {
        ClosedAttempt {
            number: self.number,
            verdict: VerdictKind::Unknown.name(),
            detail: Some(VANISHED),
            http_status: None,
            provider_message: None,
            error: Some(VANISHED_ERROR),
            duration_ms: None,
            checked: None,
        }
    }

    /// Where the job's chain stands once the attempt is closed.
    fn head_after(&self, closed: &ClosedAttempt, fingerprinter: &Fingerprinter) -> Head {
        let subject = Subject { job_id: self.job_id, customer_id: self.customer_id };
        let entry = closed.entry(&self.worker, [self.begun_at, self.signed_at, self.now], None);
        self.head().after(fingerprinter, subject, &entry)
    }
}

/// The submissions whose leases expired first, with their open attempts; those that another
/// holds are left to it. `submitting` always has an open attempt, its last.
async fn lock_expired_leases(
    tx: &mut PgConnection,
    from: Option<OffsetDateTime>,
    limit: i64,
) -> sqlx::Result<Vec<ExpiredLease>> {
    sqlx::query_as!(
        ExpiredLease,
        r#"-- lock_expired_leases
        with expired as (
            select
                job_id, customer_id, received_at, traceparent, claimed_by, claim_token, attempts, chain, entries
            from submission
            where state = 'submitting' and claimed_until < now()
                and claimed_until >= coalesce($2::timestamptz, '-infinity')
            order by claimed_until
            limit $1
            for update skip locked
        )
        select
            e.job_id, e.customer_id as "customer_id!", e.received_at, e.traceparent as "trace: TraceContext",
            e.claimed_by, e.claim_token as token, a.number, a.worker,
            a.begun_at, a.signed_at, e.chain as "chain: [u8; 32]", e.entries, now() as "now!"
        from expired e
        join attempt a on a.job_id = e.job_id and a.number = e.attempts and a.ended_at is null"#,
        limit,
        from,
    )
    .fetch_all(tx)
    .await
}

impl Journal {
    /// Rescues up to `limit` submissions whose lease expired with an attempt open: its outcome is unknown,
    /// and the customer is to be read.
    pub async fn rescue(&self, limit: i64) -> Result<Vec<Rescued>, JournalError> {
        let now = self.floors.now();
        let rescued = run_tx("rescue", &self.pool, async |tx| {
            let bound = self.floors.leases.bound();
            let expired = lock_expired_leases(tx, bound, limit).await?;
            let closings = expired.iter().map(|attempt| {
                let text = format!("the worker vanished in attempt {}", attempt.number).into();
                let why = Some(Why { code: VANISHED, text });
                let to = Destination::Read { due_in: self.limits.read_back_after, why };
                (attempt, attempt.closed(), to)
            });
            let closings: Vec<_> = closings.collect();
            let moves = closings.iter().map(|(attempt, closed, to)| {
                let from = Position {
                    job_id: attempt.job_id,
                    customer_id: attempt.customer_id,
                    state: State::Submitting,
                    token: attempt.token,
                    head: attempt.head(),
                };
                let head = Some(attempt.head_after(closed, &self.fingerprinter));
                Move { attempt: Some(closed), head, ..Move::new(from, to) }
            });
            move_locked(tx, self.limits.at_end, &moves.collect::<Vec<_>>()).await?;
            let is_all = sqlx::query_scalar!(
                r#"-- no_lease_expired
                select not exists (
                    select from submission
                    where state = 'submitting' and claimed_until < now()
                        and claimed_until >= coalesce($1::timestamptz, '-infinity')
                ) as "is_all!""#,
                bound,
            )
            .fetch_one(tx)
            .await?;
            let rescued = expired.into_iter().map(|attempt| Rescued {
                job: attempt.job(),
                claimed_by: attempt.claimed_by,
                attempt: attempt.number,
            });
            Ok(Taken { rows: rescued.collect(), is_all })
        })
        .await;
        self.floors.leases.note_due(&rescued, now);
        Ok(rescued?.rows)
    }

    /// Ends up to `limit` waiting submissions whose `expires_at` has passed, and wakes the customers'
    /// next. One that had passed before the submission waited is ended by its claim.
    pub async fn expire(&self, limit: i64) -> Result<Vec<(JobRef, Outcome)>, JournalError> {
        let (now, bound) = (self.floors.now(), self.floors.expiry.bound());
        let expired = run_tx("expire", &self.pool, async |tx| {
            let expired = sqlx::query!(
                r#"-- lock_expired
                select
                    job_id, customer_id as "customer_id!", state as "state: State", claim_token as token,
                    chain as "chain: [u8; 32]", entries, received_at, traceparent as "trace: TraceContext",
                    expiring_link as "link: LinkField"
                from submission
                where state = 'waiting' and expires_at <= now()
                    and expires_at >= coalesce($2::timestamptz, '-infinity')
                order by expires_at
                limit $1
                for update skip locked"#,
                limit,
                bound,
            )
            .fetch_all(&mut *tx)
            .await?;
            let ending = expired.into_iter().map(|row| {
                let outcome = Outcome::Exhausted(Exhaustion::Expired { link: row.link });
                let position = Position {
                    job_id: row.job_id,
                    customer_id: row.customer_id,
                    state: row.state,
                    token: row.token,
                    head: Head::of_row(row.chain, row.entries),
                };
                let job = JobRef { id: row.job_id, received_at: row.received_at, trace: row.trace };
                (position, Destination::End(outcome.ended()), (job, outcome))
            });
            let ending: Vec<_> = ending.collect();
            let moves = ending.iter().map(|(position, to, _)| Move::new(*position, to));
            move_locked(tx, self.limits.at_end, &moves.collect::<Vec<_>>()).await?;
            let is_all = sqlx::query_scalar!(
                r#"-- none_expired
                select not exists (
                    select from submission
                    where state = 'waiting' and expires_at <= now()
                        and expires_at >= coalesce($1::timestamptz, '-infinity')
                ) as "is_all!""#,
                bound,
            )
            .fetch_one(tx)
            .await?;
            Ok(Taken { rows: ending.into_iter().map(|(.., ended)| ended).collect(), is_all })
        })
        .await;
        self.floors.expiry.note_due(&expired, now);
        Ok(expired?.rows)
    }

    /// Puts off up to `limit` due submissions that another one of their customer is ahead of. Whoever
    /// releases or ends that one wakes the next; this is for commits that cross. The newest, which the
    /// others rely on, does not sleep for long, whatever it was that it slept through.
    pub async fn postpone_busy(&self, limit: i64) -> Result<u64, JournalError> {
        run_tx("postpone_busy", &self.pool, async |tx| {
            let postponed = sqlx::query!(
                r#"-- postpone_busy
                with busy as (
                    select
                        s.job_id, newer.job_id is not null as has_newer, newer.expires_at,
                        holder.state = 'unknown' as is_unknown,
                        extract(epoch from holder.claimed_until - now())::float8 as lease_left
                    from submission s
                    left join lateral (
                        select h.job_id, h.state, h.claimed_until
                        from submission h
                        where h.customer_id = s.customer_id and h.state in ('submitting', 'unknown')
                    ) holder on true
                    left join lateral (
                        select n.job_id, n.expires_at
                        from submission n
                        where n.customer_id = s.customer_id and n.state = 'waiting'
                            and (n.requested_at, n.received_at, n.job_id)
                                > (s.requested_at, s.received_at, s.job_id)
                        order by n.requested_at desc, n.received_at desc, n.job_id desc
                        limit 1
                    ) newer on true
                    where s.state = 'waiting' and s.due_at <= now()
                        and s.due_at >= coalesce($2::timestamptz, '-infinity')
                        and (holder.job_id is not null or newer.job_id is not null)
                    order by s.due_at
                    limit $1
                    for update of s skip locked
                )
                update submission s
                set waiting_for = 'customer',
                    due_at = now() + make_interval(secs => case
                        -- Whatever else is lost, an end that has a time wakes by that time.
                        when busy.has_newer then least(
                            $3,
                            case when busy.expires_at is not null
                                then greatest(extract(epoch from busy.expires_at - now())::float8, 0) + $4
                            end
                        )
                        when busy.is_unknown then $6
                        else least(greatest($7 - busy.lease_left, $4), $5)
                    end)
                from busy
                where s.job_id = busy.job_id
                returning s.customer_id as "customer_id!", busy.has_newer as "has_newer!""#,
                limit,
                self.floors.due.bound(),
                FAR_WAIT_SECONDS,
                NEAR_WAIT_MIN_SECONDS,
                NEAR_WAIT_MAX_SECONDS,
                UNKNOWN_WAIT_SECONDS,
                self.limits.claim_lease.as_secs_f64(),
            )
            .fetch_all(&mut *tx)
            .await?;
            let behind = postponed.iter().filter(|row| row.has_newer).map(|row| row.customer_id);
            let behind: HashSet<Uuid> = behind.collect();
            let behind: Vec<Uuid> = behind.into_iter().collect();
            wake_newest_due_after(tx, &behind, NEAR_WAIT_MAX_SECONDS).await?;
            Ok(postponed.len() as u64)
        })
        .await
    }

    /// Removes up to `limit` payloads of submissions that ended longer than `retention` ago.
    pub async fn sweep_payloads(&self, retention: Duration, limit: i64) -> Result<u64, JournalError> {
        let retention = clamped(retention);
        let (now, bound) = (self.floors.now(), self.floors.payloads.bound());
        let swept = run("sweep_payloads", &self.pool, async |connection| {
            let rows = sqlx::query_scalar!(
                "-- sweep_payloads
                with old as (
                    select job_id
                    from submission
                    where state in ('exhausted', 'needs_review') and sealed_payload is not null
                        and ended_at < now() - make_interval(secs => $1)
                        and ended_at >= coalesce($3::timestamptz, '-infinity')
                    order by ended_at
                    limit $2
                    for update skip locked
                )
                update submission s set sealed_payload = null from old where s.job_id = old.job_id
                returning s.job_id",
                retention.as_secs_f64(),
                limit,
                bound,
            )
            .fetch_all(&mut *connection)
            .await?;
            let is_all = sqlx::query_scalar!(
                r#"-- no_payload_old
                select not exists (
                    select from submission
                    where state in ('exhausted', 'needs_review') and sealed_payload is not null
                        and ended_at < now() - make_interval(secs => $1)
                        and ended_at >= coalesce($2::timestamptz, '-infinity')
                ) as "is_all!""#,
                retention.as_secs_f64(),
                bound,
            )
            .fetch_one(connection)
            .await?;
            Ok(Taken { rows, is_all })
        })
        .await;
        self.floors.payloads.note_due(&swept, now.map(|now| now - retention));
        Ok(swept?.rows.len() as u64)
    }

    /// When the next row of each kind is due.
    ///
    /// # Errors
    /// The database's; [`JournalError::ReadOnly`] where it could be read, and nothing can be written.
    pub async fn next_due(&self) -> Result<NextDue, JournalError> {
        let floors = &self.floors;
        let read = run("next_due", &self.pool, async |connection| {
            sqlx::query!(
                r#"-- next_due
                select
                    now() as "now!", current_setting('transaction_read_only')::boolean as "is_read_only!",
                    (
                        select min(due_at) from submission
                        where state = 'waiting' and due_at >= coalesce($1::timestamptz, '-infinity')
                    ) as attempt,
                    (
                        select min(due_at) from submission
                        where state = 'unknown' and due_at >= coalesce($1::timestamptz, '-infinity')
                    ) as read,
                    (
                        select min(claimed_until) from submission
                        where state = 'submitting' and claimed_until >= coalesce($2::timestamptz, '-infinity')
                    ) as lease,
                    (
                        select min(expires_at) from submission
                        where state = 'waiting' and expires_at >= coalesce($3::timestamptz, '-infinity')
                    ) as expiry,
                    (
                        select min(verification_due_at) from submission where verification_due_at is not null
                    ) as verification,
                    exists (select from outcome_event where id >= $4) as "has_events!""#,
                floors.due.bound(),
                floors.leases.bound(),
                floors.expiry.bound(),
                floors.events.bound(),
            )
            .fetch_one(connection)
            .await
        })
        .await;
        let row = match read {
            Ok(row) => row,
            Err(error) => {
                for floor in [&floors.due, &floors.leases, &floors.expiry] {
                    floor.note_failure();
                }
                return Err(error);
            }
        };
        if row.is_read_only {
            distrust_connections();
            return Err(JournalError::ReadOnly { name: "next_due" });
        }
        let oldest = |at: Option<OffsetDateTime>| at.map_or(row.now, |at| at.min(row.now));
        floors.note_now(row.now);
        floors.due.note(oldest(row.attempt).min(oldest(row.read)));
        floors.leases.note(oldest(row.lease));
        floors.expiry.note(oldest(row.expiry));
        let until =
            |at: Option<OffsetDateTime>| at.map(|at| Duration::try_from(at - row.now).unwrap_or_default());
        Ok(NextDue {
            attempt: until(row.attempt),
            read: until(row.read),
            lease: until(row.lease),
            expiry: until(row.expiry),
            verification: until(row.verification),
            event: row.has_events.then_some(Duration::ZERO),
        })
    }

    /// How many submissions are in motion.
    pub async fn count_in_motion(&self) -> Result<i64, JournalError> {
        run("count_in_motion", &self.pool, async |connection| {
            sqlx::query_scalar!(
                r#"-- count_in_motion
                select
                    (
                        select count(*) from submission
                        where state = 'waiting' and due_at >= coalesce($1::timestamptz, '-infinity')
                    )
                    + (
                        select count(*) from submission
                        where state = 'unknown' and due_at >= coalesce($1::timestamptz, '-infinity')
                    )
                    + (
                        select count(*) from submission
                        where state = 'submitting' and claimed_until >= coalesce($2::timestamptz, '-infinity')
                    ) as "count!""#,
                self.floors.due.bound(),
                self.floors.leases.bound(),
            )
            .fetch_one(connection)
            .await
        })
        .await
    }

    /// Removes up to `limit` rows of deliveries dead-lettered longer than `retention` ago.
    pub async fn sweep_dead_letters(&self, retention: Duration, limit: i64) -> Result<u64, JournalError> {
        let retention = clamped(retention);
        let swept = run("sweep_dead_letters", &self.pool, async |connection| {
            sqlx::query!(
                "-- sweep_dead_letters
                with old as (
                    select id
                    from dead_lettered_delivery
                    where received_at < now() - make_interval(secs => $1)
                    order by received_at
                    limit $2
                    for update skip locked
                )
                delete from dead_lettered_delivery d using old where d.id = old.id",
                retention.as_secs_f64(),
                limit,
            )
            .execute(connection)
            .await
        })
        .await?;
        Ok(swept.rows_affected())
    }
}

/// A time that can be subtracted from any.
pub(crate) fn clamped(retention: Duration) -> Duration {
    retention.min(RETENTION_MAX)
}
