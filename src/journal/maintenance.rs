//! What the scheduler does to rows that nobody holds.

use std::collections::HashSet;
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

use crate::domain::outcome::{Exhaustion, Outcome};
use crate::domain::state::VerdictKind;
use crate::journal::history::chain::{Entry, Head, Subject};
use crate::journal::pool::bounded;
use crate::journal::statements::wake::{
    FAR_WAIT_SECONDS, NEAR_WAIT_MAX_SECONDS, NEAR_WAIT_MIN_SECONDS, wake_newest, wake_newest_due_after,
};
use crate::journal::{Journal, JournalError};
use crate::seal::Fingerprinter;

/// Behind an attempt of unknown fate, which takes a minute to settle, it is looked at so often.
const UNKNOWN_WAIT_SECONDS: f64 = 10.0;

/// Nothing was kept for longer, and Postgres' times go back no further than some thousands of years.
const RETENTION_MAX: Duration = Duration::from_secs(1_000 * 365 * 24 * 3_600);

/// No transaction of ours lives for longer: what is committed later than this was due later.
const COMMIT_TIME_MAX: Duration = Duration::from_secs(30);

/// How often an index is read from its beginning, whatever was found there before.
const WHOLE_READ_INTERVAL: Duration = Duration::from_secs(600);

/// Where to read from if an index is too long to be read from its beginning.
const FALLBACK: Duration = Duration::from_secs(3_600);

/// From where on an index over times is read. What moved on leaves an entry behind for as long as any
/// older snapshot is open, be it for hours; so nobody reads again and again what lay before the
/// oldest that was still there. Every time in such an index is one that was to come, or now, when it
/// was written.
#[derive(Default)]
pub(crate) struct Floor(Mutex<Read>);

#[derive(Default)]
struct Read {
    /// Before this there was nothing any more.
    from: Option<OffsetDateTime>,
    whole_at: Option<Instant>,
}

impl Read {
    fn must_be_whole(&self, now: Instant) -> bool {
        self.whole_at.is_none_or(|at| now.saturating_duration_since(at) >= WHOLE_READ_INTERVAL)
    }

    fn bound(&self, now: Instant) -> Option<OffsetDateTime> {
        self.from.filter(|_| !self.must_be_whole(now))
    }

    fn note(&mut self, oldest: OffsetDateTime, now: Instant) {
        self.from = Some(oldest - COMMIT_TIME_MAX);
        if self.must_be_whole(now) {
            self.whole_at = Some(now);
        }
    }

    fn note_failure(&mut self, now: Instant) {
        if self.must_be_whole(now) {
            self.whole_at = Some(now);
            self.from.get_or_insert_with(|| OffsetDateTime::now_utc() - FALLBACK);
        }
    }
}

impl Floor {
    /// From when on to read; `None` is from the beginning.
    pub fn bound(&self) -> Option<OffsetDateTime> {
        self.0.lock().bound(Instant::now())
    }

    /// Notes that nothing is there before `oldest`.
    fn note(&self, oldest: OffsetDateTime) {
        self.0.lock().note(oldest, Instant::now());
    }

    /// Notes that it could not be read. Whatever the cause, the beginning is not tried again soon.
    fn note_failure(&self) {
        self.0.lock().note_failure(Instant::now());
    }

    /// Notes what came of reading up to `limit` rows that were due at `now`.
    fn note_due<T>(&self, rows: &Result<Vec<T>, JournalError>, limit: i64, now: Option<OffsetDateTime>) {
        match (rows, now) {
            (Ok(rows), Some(now)) if (rows.len() as i64) < limit => self.note(now),
            (Ok(_), _) => {}
            (Err(_), _) => self.note_failure(),
        }
    }
}

/// The indexes that are read again and again.
#[derive(Default)]
pub(crate) struct Floors {
    /// When what waits, or is of unknown fate, is due.
    pub due: Floor,
    leases: Floor,
    expiry: Floor,
    payloads: Floor,
    /// The database's time, and when it told it.
    clock: Mutex<Option<(OffsetDateTime, Instant)>>,
}

impl Floors {
    /// What the database's clock says at least.
    fn now(&self) -> Option<OffsetDateTime> {
        self.clock.lock().map(|(now, told_at)| now + told_at.elapsed())
    }
}

/// A submission whose owner vanished.
#[derive(Debug)]
pub struct Rescued {
    pub job_id: Uuid,
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
    verdict: VerdictKind::Unknown.name(),
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
async fn lock_abandoned(
    tx: &mut PgConnection,
    from: Option<OffsetDateTime>,
    limit: i64,
) -> sqlx::Result<Vec<Abandoned>> {
    sqlx::query_as!(
        Abandoned,
        r#"-- lock_abandoned
        with expired as (
            select job_id, customer_id, claimed_by, attempts, chain, entries
            from submission
            where state = 'submitting' and claimed_until < now()
                and claimed_until >= coalesce($2::timestamptz, '-infinity')
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
        from,
    )
    .fetch_all(tx)
    .await
}

impl Journal {
    /// Takes over up to `limit` submissions whose worker vanished after it had begun an
    /// attempt: its fate is unknown, and the customer is to be looked at.
    pub async fn take_over(&self, limit: i64) -> Result<Vec<Rescued>, JournalError> {
        let now = self.floors.now();
        let taken = bounded(async {
            let mut tx = self.pool.begin().await?;
            let abandoned = lock_abandoned(&mut tx, self.floors.leases.bound(), limit).await?;
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
            let taken = abandoned.into_iter().map(|attempt| Rescued {
                job_id: attempt.job_id,
                claimed_by: attempt.claimed_by,
                attempt: attempt.number,
            });
            Ok(taken.collect())
        })
        .await;
        self.floors.leases.note_due(&taken, limit, now);
        taken
    }

    /// Ends up to `limit` waiting submissions whose `expires_at` has passed, and wakes the customers'
    /// next. One that had passed before the submission waited is ended by its claim.
    pub async fn expire(&self, limit: i64) -> Result<Vec<Uuid>, JournalError> {
        let outcome = Outcome::Exhausted(Exhaustion::Expired);
        let now = self.floors.now();
        let expired = bounded(async {
            let mut tx = self.pool.begin().await?;
            let expired = sqlx::query!(
                r#"-- expire
                with expired as (
                    select job_id
                    from submission
                    where state = 'waiting' and expires_at <= now()
                        and expires_at >= coalesce($4::timestamptz, '-infinity')
                    order by expires_at
                    limit $1
                    for update skip locked
                )
                update submission s
                set state = 'exhausted', waiting_for = null, due_at = null,
                    reason_code = $2, reason = $3, ended_at = greatest(now(), s.received_at)
                from expired
                where s.job_id = expired.job_id
                returning s.job_id, s.customer_id as "customer_id!""#,
                limit,
                outcome.reason_code(),
                &*outcome.reason(),
                self.floors.expiry.bound(),
            )
            .fetch_all(&mut *tx)
            .await?;
            let customers: Vec<Uuid> = expired.iter().map(|row| row.customer_id).collect();
            wake_newest(&mut tx, &customers).await?;
            tx.commit().await?;
            Ok(expired.into_iter().map(|row| row.job_id).collect())
        })
        .await;
        self.floors.expiry.note_due(&expired, limit, now);
        expired
    }

    /// Puts off up to `limit` due submissions that another one of their customer is ahead of. Whoever
    /// releases or ends that one wakes the next; this is for commits that cross. The newest, which the
    /// others rely on, does not sleep for long, whatever it was that it slept through.
    pub async fn postpone_busy(&self, limit: i64) -> Result<u64, JournalError> {
        bounded(async {
            let mut tx = self.pool.begin().await?;
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
            wake_newest_due_after(&mut tx, &behind, NEAR_WAIT_MAX_SECONDS).await?;
            tx.commit().await?;
            Ok(postponed.len() as u64)
        })
        .await
    }

    /// Removes up to `limit` payloads of submissions that ended longer than `retention` ago.
    pub async fn sweep_payloads(&self, retention: Duration, limit: i64) -> Result<u64, JournalError> {
        let retention = clamped(retention);
        let now = self.floors.now();
        let swept = bounded(
            sqlx::query_scalar!(
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
                self.floors.payloads.bound(),
            )
            .fetch_all(&self.pool),
        )
        .await;
        self.floors.payloads.note_due(&swept, limit, now.map(|now| now - retention));
        Ok(swept?.len() as u64)
    }

    /// How long until the next submission is due; zero if one is due now.
    pub async fn next_due(&self) -> Result<Option<Duration>, JournalError> {
        let read = bounded(
            sqlx::query!(
                r#"-- next_due
                select
                    now() as "now!",
                    least(
                        (
                            select min(due_at) from submission
                            where state = 'waiting' and due_at >= coalesce($1::timestamptz, '-infinity')
                        ),
                        (
                            select min(due_at) from submission
                            where state = 'unknown' and due_at >= coalesce($1::timestamptz, '-infinity')
                        )
                    ) as due_at"#,
                self.floors.due.bound(),
            )
            .fetch_one(&self.pool),
        )
        .await;
        let Ok(row) = read else {
            self.floors.due.note_failure();
            return read.map(|_row| None);
        };
        *self.floors.clock.lock() = Some((row.now, Instant::now()));
        self.floors.due.note(row.due_at.map_or(row.now, |due_at| due_at.min(row.now)));
        Ok(row.due_at.map(|due_at| Duration::try_from(due_at - row.now).unwrap_or_default()))
    }

    /// How many submissions are in motion.
    pub async fn count_in_motion(&self) -> Result<i64, JournalError> {
        bounded(
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
            .fetch_one(&self.pool),
        )
        .await
    }

    /// Removes up to `limit` rows of deliveries dead-lettered longer than `retention` ago.
    pub async fn sweep_dead_letters(&self, retention: Duration, limit: i64) -> Result<u64, JournalError> {
        let retention = clamped(retention);
        let swept = bounded(
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
            .execute(&self.pool),
        )
        .await?;
        Ok(swept.rows_affected())
    }
}

/// A time that can be subtracted from any.
pub(crate) fn clamped(retention: Duration) -> Duration {
    retention.min(RETENTION_MAX)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOON: OffsetDateTime = datetime!(2026-01-01 12:00 UTC);

    #[test]
    fn an_index_is_read_from_its_oldest_row_on_and_now_and_then_whole() {
        let (mut read, now) = (Read::default(), Instant::now());
        assert_eq!(read.bound(now), None, "nothing is known yet");
        read.note(NOON, now);
        let known = Some(NOON - COMMIT_TIME_MAX);
        assert_eq!(read.bound(now), known);
        let later = now + WHOLE_READ_INTERVAL;
        assert_eq!(read.bound(later), None);
        read.note_failure(later);
        assert_eq!(read.bound(later), known, "what could not be read is not read again at once");
        read.note(NOON - FALLBACK, later);
        let earlier = Some(NOON - FALLBACK - COMMIT_TIME_MAX);
        assert_eq!(read.bound(later), earlier, "the database's clock went back");
    }

    #[test]
    fn an_index_that_may_hold_more_keeps_its_floor() {
        let floor = Floor::default();
        floor.note_due(&Ok(vec![(); 9]), 10, None);
        assert_eq!(floor.bound(), None, "the database's time is not known");
        floor.note_due(&Ok(vec![(); 10]), 10, Some(NOON));
        assert_eq!(floor.bound(), None, "a full batch may not have been all");
        floor.note_due(&Ok(vec![(); 9]), 10, Some(NOON));
        assert_eq!(floor.bound(), Some(NOON - COMMIT_TIME_MAX));
    }

    #[test]
    fn an_index_that_cannot_be_read_whole_is_read_from_an_hour_ago() {
        let floor = Floor::default();
        floor.note_due::<()>(&Err(JournalError::TimedOut), 10, Some(NOON));
        let bound = floor.bound().expect("a bound");
        let ago = OffsetDateTime::now_utc() - bound;
        assert!(ago >= FALLBACK && ago < 2 * FALLBACK, "{ago}");
    }
}
