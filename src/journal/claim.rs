//! A claim on a job that waited: the customer's slot first, then the look at the
//! customer's other jobs, with a newer snapshot, in the same transaction.
//!
//! One statement that looks and claims is not enough: its snapshot may be older than the
//! slot that it waited for, and what the holder did meanwhile would be missed.

use std::time::Duration;

use sqlx::{PgConnection, PgTransaction};
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

use crate::clock::Moment;
use crate::domain::job::UpdateRequest;
use crate::domain::outcome::{Exhaustion, History, Outcome};
use crate::domain::precedence::Decision;
use crate::domain::read_back::Conclusion;
use crate::domain::state::{Purpose, VerdictKind};
use crate::journal::error::is_lost_race;
use crate::journal::history::chain::{Entry, Head, Subject};
use crate::journal::pool::bounded;
use crate::journal::rows::{Beginning, Candidate, TakenSlot};
use crate::journal::statements::claim::{PAYLOAD_UNREADABLE, begin_attempts, decide_all};
use crate::journal::{Claim, Journal, JournalError};
use crate::seal::OpenError;

/// Why a conclusion comes without a look: the budget alone told it.
const NOT_LOOKED: &str = "not_looked";

/// What became of a job that was due.
pub enum NextAttempt {
    /// It is claimed, its next attempt begun.
    Claimed(Box<ClaimedJob>),
    /// It made way for another of its customer; it ended if it says so.
    YieldedSlot(Uuid, Option<Outcome>),
    /// No key opens its payload: it waits for one, and no attempt was begun.
    Unreadable(Uuid, OpenError),
    /// The database refuses what is written of it. It is tried again after a while, so that it is in
    /// nobody's way.
    Refused(Uuid, JournalError),
}

/// How long a job is left alone of which the database refuses what is to be written.
const REFUSED_WAIT_SECONDS: f64 = 60.0;

/// Which job may be the probe: the one attempt that the half-open breaker lets through.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Probe {
    /// One that has no attempt with such a verdict.
    Without(&'static [VerdictKind]),
    /// Any, where there is no other.
    OfAny,
}

/// A job that waited, claimed again.
pub struct ClaimedJob {
    pub claim: Claim,
    pub request: UpdateRequest,
    /// Upstream's own name for what the job belongs to.
    pub correlation_id: Option<String>,
}

impl Journal {
    /// Claims up to `limit` jobs that have been due the longest, of customers who are free,
    /// and begins their next attempts, in one commit. Of a customer's jobs the newest goes
    /// first. `None` when another replica was faster; empty when nothing is due.
    pub async fn next_attempts(
        &self,
        t0: Moment,
        probe: Option<Probe>,
        limit: usize,
    ) -> Result<Option<Vec<NextAttempt>>, JournalError> {
        let mut taken = Vec::new();
        match self.try_next_attempts(t0, probe, limit, &mut taken).await {
            Ok(next) => Ok(Some(next)),
            // Another replica took a customer's slot between our read and our claim.
            Err(JournalError::Database(error)) if is_lost_race(&error) => Ok(None),
            Err(error) if error.is_of_a_job() => match taken[..] {
                // The others do not wait for the one that the database refuses: each goes alone.
                [_, _, ..] => Box::pin(self.next_attempts(t0, probe, 1)).await,
                [job_id] => {
                    self.leave_alone(job_id).await?;
                    Ok(Some(vec![NextAttempt::Refused(job_id, error)]))
                }
                [] => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// Commits the claims, and notes in `taken` whose slots were taken before that failed.
    async fn try_next_attempts(
        &self,
        t0: Moment,
        probe: Option<Probe>,
        limit: usize,
        taken: &mut Vec<Uuid>,
    ) -> Result<Vec<NextAttempt>, JournalError> {
        bounded(async {
            let mut tx = self.pool.begin().await?;
            let slots = self.take_slots(&mut tx, probe, limit).await?;
            taken.extend(slots.iter().map(|slot| slot.job_id));
            let next = self.next_attempts_in(&mut tx, t0, probe, slots).await?;
            tx.commit().await?;
            Ok(next)
        })
        .await
    }

    async fn leave_alone(&self, job_id: Uuid) -> Result<(), JournalError> {
        bounded(
            sqlx::query!(
                "-- leave_alone
                update submission set due_at = now() + make_interval(secs => $2)
                where job_id = $1 and state = 'waiting' and due_at <= now()",
                job_id,
                REFUSED_WAIT_SECONDS,
            )
            .execute(&self.pool),
        )
        .await?;
        Ok(())
    }

    /// What an earlier [`Journal::next_attempts`] with this `t0` has begun, where its answer was
    /// lost. To be asked once: whoever gets them sends them.
    pub async fn find_begun(
        &self,
        t0: Moment,
        probe: Option<Probe>,
    ) -> Result<Vec<ClaimedJob>, JournalError> {
        let begun = bounded(
            sqlx::query_as!(
                TakenSlot,
                r#"-- find_begun
                select
                    s.job_id, s.customer_id as "customer_id!", s.claim_token as token, s.attempts as attempt,
                    s.retries, s.sealed_payload as "sealed!", s.requested_at as "requested_at!", s.received_at,
                    s.content_hmac, s.correlation_id, a.begun_at, s.chain as "chain: [u8; 32]", s.entries,
                    (
                        select count(*) from attempt a
                        where a.job_id = s.job_id and a.verdict = 'misconfigured'
                    ) as "misconfigured!",
                    extract(epoch from a.begun_at - (
                        select max(a.ended_at) from attempt a
                        where a.job_id = s.job_id and a.verdict = 'misconfigured'
                    ))::float8 as refused_before,
                    (
                        select count(*) from attempt a
                        where a.job_id = s.job_id and a.verdict = 'unknown'
                    ) as "unknown!",
                    false as "is_expired!"
                from submission s
                join attempt a on a.job_id = s.job_id and a.number = s.attempts
                where s.state = 'submitting' and s.claimed_by = $1
                    and a.worker = $1 and a.signed_at = $2 and a.ended_at is null"#,
                self.worker,
                OffsetDateTime::from(t0.wall),
            )
            .fetch_all(&self.pool),
        )
        .await?;
        // It was opened before the attempt began.
        let opened = begun.into_iter().map(|slot| {
            let request = self.open_payload(slot.job_id, &slot.sealed);
            let request = request.map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
            Ok(self.claimed(slot, request, t0, probe))
        });
        opened.collect()
    }

    async fn next_attempts_in(
        &self,
        tx: &mut PgTransaction<'_>,
        t0: Moment,
        probe: Option<Probe>,
        slots: Vec<TakenSlot>,
    ) -> sqlx::Result<Vec<NextAttempt>> {
        let candidates: Vec<Candidate> = slots.iter().map(TakenSlot::candidate).collect();
        let decisions = decide_all(&mut *tx, &candidates, &self.limits).await?;
        let (mut next, mut beginning) = (Vec::with_capacity(slots.len()), Vec::new());
        for ((slot, candidate), decision) in slots.into_iter().zip(&candidates).zip(decisions) {
            let became = match decision {
                _ if slot.is_expired => {
                    let outcome = Outcome::Exhausted(Exhaustion::Expired);
                    candidate.end(tx, &outcome).await?;
                    NextAttempt::YieldedSlot(slot.job_id, Some(outcome))
                }
                Decision::Go => match self.open_payload(slot.job_id, &slot.sealed) {
                    Ok(request) => {
                        beginning.push(Beginning { job_id: slot.job_id, attempt: slot.attempt, t0 });
                        NextAttempt::Claimed(Box::new(self.claimed(slot, request, t0, probe)))
                    }
                    Err(error) => {
                        candidate.wait_for_key(tx).await?;
                        NextAttempt::Unreadable(slot.job_id, error)
                    }
                },
                decision => {
                    if decision == Decision::LastUpdate {
                        self.note_last_update(tx, &slot).await?;
                    }
                    if let Decision::Superseded { by } = decision {
                        let older = candidate.supersede_older(tx, by).await?;
                        let ended =
                            |job_id| NextAttempt::YieldedSlot(job_id, Some(Outcome::Superseded { by }));
                        next.extend(older.into_iter().map(ended));
                    }
                    let ended = candidate.yield_slot(tx, decision).await?;
                    NextAttempt::YieldedSlot(slot.job_id, ended)
                }
            };
            next.push(became);
        }
        begin_attempts(tx, &self.worker, &beginning).await?;
        Ok(next)
    }

    /// Keeps in the history that a resend might take the customer's last update: no entry else says
    /// why the job that looks had cleared is not sent.
    async fn note_last_update(&self, tx: &mut PgConnection, slot: &TakenSlot) -> sqlx::Result<()> {
        let conclusion = Conclusion::LastUpdate.name();
        let entry = Entry::Observation {
            at: slot.begun_at,
            purpose: Purpose::ReadBack.name(),
            status: None,
            failure_reason: None,
            error: Some(NOT_LOOKED),
            conclusion: Some(conclusion),
        };
        let subject = Subject { job_id: slot.job_id, customer_id: slot.customer_id };
        let head = Head::of_row(slot.chain, slot.entries).after(&self.fingerprinter, subject, &entry);
        sqlx::query!(
            "-- note_last_update
            with chained as (
                update submission set chain = $3, entries = $4 where job_id = $1
            )
            insert into observation (job_id, customer_id, at, purpose, error, conclusion, entry)
            values ($1, $2, $5, 'read_back', $6, $7, $4)",
            slot.job_id,
            slot.customer_id,
            &head.mac as &[u8],
            head.entries,
            slot.begun_at,
            NOT_LOOKED,
            conclusion,
        )
        .execute(tx)
        .await?;
        Ok(())
    }

    fn claimed(
        &self,
        slot: TakenSlot,
        request: UpdateRequest,
        t0: Moment,
        probe: Option<Probe>,
    ) -> ClaimedJob {
        let history = History {
            retries: slot.retries.unsigned_abs(),
            misconfigured: u32::try_from(slot.misconfigured).unwrap_or(u32::MAX),
            unknown: u32::try_from(slot.unknown).unwrap_or(u32::MAX),
            is_probe: probe.is_some(),
            others_are_taken: false,
        };
        // By now the attempt has begun, so that this is rather too late than too early.
        let refused = slot.refused_before.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let refused = refused.and_then(|before| Instant::now().checked_sub(before));
        ClaimedJob {
            claim: Claim {
                job_id: slot.job_id,
                customer_id: slot.customer_id,
                token: slot.token,
                attempt: slot.attempt,
                history,
                refused,
                t0,
                begun_at: slot.begun_at,
                head: Head::of_row(slot.chain, slot.entries),
            },
            request,
            correlation_id: slot.correlation_id,
        }
    }

    async fn take_slots(
        &self,
        tx: &mut PgConnection,
        probe: Option<Probe>,
        limit: usize,
    ) -> sqlx::Result<Vec<TakenSlot>> {
        let unfit: Vec<String> = match probe {
            Some(Probe::Without(verdicts)) => verdicts.iter().map(ToString::to_string).collect(),
            Some(Probe::OfAny) | None => Vec::new(),
        };
        // The slots are taken in the customers' order, as every batch takes them: two that
        // took them in different orders would wait for each other. `offset 0` and `limit 1` keep it a
        // look-up for each job: Postgres would rather join them with all that wait.
        sqlx::query_as!(
            TakenSlot,
            r#"-- take_slots
            with due as (
                select s.job_id, s.customer_id
                from submission s
                where s.state = 'waiting' and s.due_at <= now()
                    and s.due_at >= coalesce($5::timestamptz, '-infinity')
                    and not exists (
                        select from submission holder
                        where holder.customer_id = s.customer_id
                            and holder.state in ('submitting', 'unknown')
                        offset 0
                    )
                    and (
                        select newer.job_id from submission newer
                        where newer.customer_id = s.customer_id and newer.state = 'waiting'
                            and (newer.requested_at, newer.received_at, newer.job_id)
                                > (s.requested_at, s.received_at, s.job_id)
                        order by newer.requested_at desc, newer.received_at desc, newer.job_id desc
                        limit 1
                    ) is null
                    and not (
                        cardinality($3::text[]) > 0 and exists (
                            select from attempt a where a.job_id = s.job_id and a.verdict = any($3)
                        )
                    )
                order by s.due_at
                limit $4
                for update of s skip locked
            ), ordered as (
                select job_id from due order by customer_id
            )
            update submission s
            set state = 'submitting', waiting_for = null, due_at = null,
                reason_code = null, reason = null,
                attempts = s.attempts + 1, claim_token = s.claim_token + 1,
                claimed_by = $1, claimed_until = now() + make_interval(secs => $2)
            from ordered
            where s.job_id = ordered.job_id
            returning
                s.job_id, s.customer_id as "customer_id!", s.claim_token as token, s.attempts as attempt,
                s.retries, s.sealed_payload as "sealed!", s.requested_at as "requested_at!", s.received_at,
                s.content_hmac, s.correlation_id, coalesce(s.expires_at <= now(), false) as "is_expired!",
                now() as "begun_at!", s.chain as "chain: [u8; 32]", s.entries,
                (
                    select count(*) from attempt a
                    where a.job_id = s.job_id and a.verdict = 'misconfigured'
                ) as "misconfigured!",
                extract(epoch from now() - (
                    select max(a.ended_at) from attempt a
                    where a.job_id = s.job_id and a.verdict = 'misconfigured'
                ))::float8 as refused_before,
                (
                    select count(*) from attempt a
                    where a.job_id = s.job_id and a.verdict = 'unknown'
                ) as "unknown!""#,
            self.worker,
            self.limits.claim_lease.as_secs_f64(),
            &unfit,
            i64::try_from(limit).unwrap_or(i64::MAX),
            self.floors.due.bound(),
        )
        .fetch_all(tx)
        .await
    }

    fn open_payload(&self, job_id: Uuid, sealed: &[u8]) -> Result<UpdateRequest, OpenError> {
        let payload = self.keyring.open(job_id, sealed)?;
        let text = String::from_utf8(payload).map_err(|_| OpenError::Malformed)?;
        UpdateRequest::from_sealed(&text).map_err(|_| OpenError::Malformed)
    }

    /// Makes those due now that wait for the key of their payload: a worker that has just started may
    /// have it.
    pub async fn wake_unreadable(&self) -> Result<(), JournalError> {
        bounded(
            sqlx::query!(
                "-- wake_unreadable
                update submission set due_at = now()
                where state = 'waiting' and reason_code = $1 and due_at > now()",
                PAYLOAD_UNREADABLE,
            )
            .execute(&self.pool),
        )
        .await?;
        Ok(())
    }
}
