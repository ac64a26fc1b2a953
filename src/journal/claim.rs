//! A claim on a job that waited: the customer's slot first, then the look at the
//! customer's other jobs, with a newer snapshot, in the same transaction.
//!
//! One statement that looks and claims is not enough: its snapshot may be older than the
//! slot that it waited for, and what the holder did meanwhile would be missed.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::{PgConnection, PgTransaction};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::clock::Moment;
use crate::domain::job::UpdateRequest;
use crate::domain::outcome::{Exhaustion, History, Outcome, Review};
use crate::domain::precedence::{Decision, Sibling, Standing, rule};
use crate::domain::read_back::{Budget, Conclusion};
use crate::journal::budget::spent;
use crate::journal::history::chain::{Entry, Head, Subject};
use crate::journal::maintenance::NEAR_WAIT_MAX_SECONDS;
use crate::journal::{Claim, Journal, JournalError, bounded, column, is_lost_race};
use crate::seal::OpenError;

/// Why a conclusion comes without a look: the budget alone told it.
const NOT_LOOKED: &str = "not_looked";

/// The reason of a job whose payload no key opens.
const PAYLOAD_UNREADABLE: &str = "payload_unreadable";

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

/// How many older jobs of a customer end at once, because a newer one was accepted. Whatever is left
/// is ended by the next claim.
const SUPERSEDED_AT_ONCE: i64 = 100;

/// How long a job is left alone of which the database refuses what is to be written.
const REFUSED_WAIT_SECONDS: f64 = 60.0;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Turn {
    Any,
    /// A trial, while the breaker is not closed: of no job that was ever of unknown fate.
    Trial,
    /// A trial where there is no other.
    TrialOfAny,
}

/// A job that waited, claimed again.
pub struct ClaimedJob {
    pub claim: Claim,
    pub request: UpdateRequest,
    /// Upstream's own name for what the job belongs to.
    pub correlation_id: Option<String>,
}

/// A job that has its customer's slot, before it may use it.
pub(crate) struct Candidate {
    pub job_id: Uuid,
    pub customer_id: Uuid,
    pub requested_at: OffsetDateTime,
    pub received_at: OffsetDateTime,
    pub content_hmac: Option<Vec<u8>>,
    pub is_resend: bool,
}

/// An attempt about to begin.
pub(crate) struct Beginning {
    pub job_id: Uuid,
    pub attempt: i32,
    pub t0: Moment,
}

struct TakenSlot {
    job_id: Uuid,
    customer_id: Uuid,
    token: i64,
    attempt: i32,
    retries: i32,
    sealed: Vec<u8>,
    requested_at: OffsetDateTime,
    received_at: OffsetDateTime,
    content_hmac: Option<Vec<u8>>,
    correlation_id: Option<String>,
    misconfigured: i64,
    unknown: i64,
    is_expired: bool,
    begun_at: OffsetDateTime,
    chain: Option<[u8; 32]>,
    entries: i32,
}

impl Journal {
    /// Claims up to `limit` jobs that have been due the longest, of customers who are free,
    /// and begins their next attempts, in one commit. Of a customer's jobs the newest goes
    /// first. `None` when another replica was faster; empty when nothing is due.
    pub async fn next_attempts(
        &self,
        t0: Moment,
        turn: Turn,
        limit: usize,
    ) -> Result<Option<Vec<NextAttempt>>, JournalError> {
        let mut taken = Vec::new();
        match self.try_next_attempts(t0, turn, limit, &mut taken).await {
            Ok(next) => Ok(Some(next)),
            // Another replica took a customer's slot between our read and our claim.
            Err(JournalError::Database(error)) if is_lost_race(&error) => Ok(None),
            Err(error) if error.is_of_a_job() => match taken[..] {
                // The others do not wait for the one that the database refuses: each goes alone.
                [_, _, ..] => Box::pin(self.next_attempts(t0, turn, 1)).await,
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
        turn: Turn,
        limit: usize,
        taken: &mut Vec<Uuid>,
    ) -> Result<Vec<NextAttempt>, JournalError> {
        bounded(async {
            let mut tx = self.pool.begin().await?;
            let slots = self.take_slots(&mut tx, turn, limit).await?;
            taken.extend(slots.iter().map(|slot| slot.job_id));
            let next = self.next_attempts_in(&mut tx, t0, turn, slots).await?;
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
    pub async fn find_begun(&self, t0: Moment, turn: Turn) -> Result<Vec<ClaimedJob>, JournalError> {
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
            Ok(self.claimed(slot, request, t0, turn))
        });
        opened.collect()
    }

    async fn next_attempts_in(
        &self,
        tx: &mut PgTransaction<'_>,
        t0: Moment,
        turn: Turn,
        slots: Vec<TakenSlot>,
    ) -> sqlx::Result<Vec<NextAttempt>> {
        let candidates: Vec<Candidate> = slots.iter().map(TakenSlot::candidate).collect();
        let decisions = look(&mut *tx, &candidates, self.limits.read_back_window).await?;
        let (mut next, mut beginning) = (Vec::with_capacity(slots.len()), Vec::new());
        for ((slot, candidate), decision) in slots.into_iter().zip(&candidates).zip(decisions) {
            let became = match decision {
                _ if slot.is_expired => {
                    let outcome = Outcome::Exhausted(Exhaustion::Expired);
                    candidate.end(tx, &outcome).await?;
                    NextAttempt::YieldedSlot(slot.job_id, Some(outcome))
                }
                // Checked inside the claim of a resend: other jobs may have spent meanwhile.
                Decision::Go if candidate.is_resend && !self.may_resend(tx, slot.customer_id).await? => {
                    let outcome = Outcome::NeedsReview(Review::LastUpdate);
                    self.note_last_update(tx, &slot).await?;
                    candidate.end(tx, &outcome).await?;
                    NextAttempt::YieldedSlot(slot.job_id, Some(outcome))
                }
                Decision::Go => match self.open_payload(slot.job_id, &slot.sealed) {
                    Ok(request) => {
                        beginning.push(Beginning { job_id: slot.job_id, attempt: slot.attempt, t0 });
                        NextAttempt::Claimed(Box::new(self.claimed(slot, request, t0, turn)))
                    }
                    Err(error) => {
                        candidate.wait_for_key(tx).await?;
                        NextAttempt::Unreadable(slot.job_id, error)
                    }
                },
                decision => {
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
            purpose: "read_back",
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

    async fn may_resend(&self, tx: &mut PgConnection, customer_id: Uuid) -> sqlx::Result<bool> {
        let spent = spent(tx, customer_id).await?;
        let budget = Budget {
            spent_here: spent.here,
            spent_elsewhere: spent.elsewhere,
            limit: self.limits.customer_updates,
        };
        Ok(budget.allows_resend())
    }

    fn claimed(&self, slot: TakenSlot, request: UpdateRequest, t0: Moment, turn: Turn) -> ClaimedJob {
        let history = History {
            retries: slot.retries.unsigned_abs(),
            misconfigured: u32::try_from(slot.misconfigured).unwrap_or(u32::MAX),
            unknown: u32::try_from(slot.unknown).unwrap_or(u32::MAX),
            is_trial: turn != Turn::Any,
            others_are_taken: false,
        };
        ClaimedJob {
            claim: Claim {
                job_id: slot.job_id,
                customer_id: slot.customer_id,
                token: slot.token,
                attempt: slot.attempt,
                history,
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
        turn: Turn,
        limit: usize,
    ) -> sqlx::Result<Vec<TakenSlot>> {
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
                        $3 and exists (
                            select from attempt a where a.job_id = s.job_id and a.verdict = 'unknown'
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
                (
                    select count(*) from attempt a
                    where a.job_id = s.job_id and a.verdict = 'unknown'
                ) as "unknown!""#,
            self.worker,
            self.limits.claim_lease.as_secs_f64(),
            turn == Turn::Trial,
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

impl TakenSlot {
    fn candidate(&self) -> Candidate {
        Candidate {
            job_id: self.job_id,
            customer_id: self.customer_id,
            requested_at: self.requested_at,
            received_at: self.received_at,
            content_hmac: self.content_hmac.clone(),
            is_resend: self.unknown > 0,
        }
    }
}

/// Looks at the other jobs of each candidate's customer, now that the slots are theirs.
/// Returns a decision for each, in order.
pub(crate) async fn look(
    tx: &mut PgConnection,
    candidates: &[Candidate],
    read_back_window: Duration,
) -> sqlx::Result<Vec<Decision>> {
    let all: Vec<&Candidate> = candidates.iter().collect();
    // A look that showed neither PROCESSING nor the ambiguous UNVERIFIED closed every
    // verification that was open before it; but an attempt of unknown fate may have been
    // applied until the window was over.
    let rows = sqlx::query!(
        r#"-- look
        select
            c.job_id as "candidate!", o.job_id as "job_id!", o.state as "state!",
            (o.requested_at, o.received_at, o.job_id) > (c.requested_at, c.received_at, c.job_id)
                as "is_newer!",
            coalesce(o.content_hmac = c.content_hmac, false) as "has_same_content!",
            not exists (
                select from observation seen
                where seen.customer_id = o.customer_id and seen.purpose <> 'webhook'
                    and seen.status not in ('PROCESSING', 'UNVERIFIED')
                    and seen.at > (
                        select max(
                            a.ended_at
                            + make_interval(secs => case when a.verdict = 'unknown' then $6::float8 else 0 end)
                        )
                        from attempt a
                        where a.job_id = o.job_id and a.verdict in ('accepted', 'unknown')
                    )
            ) as "in_verification!"
        from unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::timestamptz[], $5::bytea[])
            as c (job_id, customer_id, requested_at, received_at, content_hmac)
        cross join lateral (
            -- What may have been applied had an attempt, and so has what holds the slot. Of all that
            -- wait, which may be many, the newest tells whether any is newer.
            select job_id, customer_id, state, requested_at, received_at, content_hmac
            from submission s
            where s.customer_id = c.customer_id and s.attempts > 0 and s.job_id <> c.job_id
                and (
                    s.state in ('submitting', 'unknown', 'accepted')
                    or s.state = 'needs_review' and s.reason_code = 'fate_unknown'
                )
            union all
            (
                select job_id, customer_id, state, requested_at, received_at, content_hmac
                from submission s
                where s.customer_id = c.customer_id and s.state = 'waiting' and s.job_id <> c.job_id
                order by s.requested_at desc, s.received_at desc, s.job_id desc
                limit 1
            )
            -- Keeps it a look-up for each: of a table without statistics Postgres thinks that a
            -- customer has a great many rows, and would read all of it instead.
            offset 0
        ) o
        order by o.requested_at desc, o.received_at desc, o.job_id desc"#,
        &column(&all, |candidate| candidate.job_id),
        &column(&all, |candidate| candidate.customer_id),
        &column(&all, |candidate| candidate.requested_at),
        &column(&all, |candidate| candidate.received_at),
        &column(&all, |candidate| candidate.content_hmac.as_deref()) as &[Option<&[u8]>],
        read_back_window.as_secs_f64(),
    )
    .fetch_all(tx)
    .await?;
    let mut siblings: HashMap<Uuid, Vec<Sibling>> = HashMap::new();
    for row in rows {
        siblings.entry(row.candidate).or_default().push(Sibling {
            job_id: row.job_id,
            is_newer: row.is_newer,
            has_same_content: row.has_same_content,
            standing: match row.state.as_str() {
                "accepted" => Standing::Accepted { in_verification: row.in_verification },
                "needs_review" => Standing::FateUnknown,
                _ => Standing::InMotion,
            },
        });
    }
    let decision = |candidate: &Candidate| {
        rule(siblings.get(&candidate.job_id).map_or(&[], Vec::as_slice), candidate.is_resend)
    };
    Ok(candidates.iter().map(decision).collect())
}

impl Candidate {
    /// Gives the slot up as the decision says. `None` when the job waits.
    pub async fn yield_slot(
        &self,
        tx: &mut PgConnection,
        decision: Decision,
    ) -> sqlx::Result<Option<Outcome>> {
        let outcome = match decision {
            Decision::Superseded { by } => Outcome::Superseded { by },
            Decision::Duplicate { of } => Outcome::Duplicate { of },
            Decision::NewerFateUnknown { newer } => Outcome::NeedsReview(Review::NewerFateUnknown { newer }),
            Decision::Wait | Decision::Go => {
                self.wait_behind_newer(tx).await?;
                return Ok(None);
            }
        };
        self.end(tx, &outcome).await?;
        Ok(Some(outcome))
    }

    /// Whoever releases or ends the newer one wakes this one; its alarm is for what nobody ends.
    async fn wait_behind_newer(&self, tx: &mut PgConnection) -> sqlx::Result<()> {
        sqlx::query!(
            "-- wait_behind_newer
            update submission s
            set state = 'waiting', waiting_for = 'customer', claimed_until = null,
                attempts = (select count(*) from attempt a where a.job_id = s.job_id),
                due_at = now() + make_interval(secs => $2)
            where s.job_id = $1 and s.state = 'submitting'",
            self.job_id,
            NEAR_WAIT_MAX_SECONDS,
        )
        .execute(&mut *tx)
        .await?;
        wake_newest(tx, &[self.customer_id]).await
    }

    /// Ends those that wait and are older than this one: a newer one was accepted, which nothing
    /// takes back, so none of them needs the slot for that. Returns which.
    async fn supersede_older(&self, tx: &mut PgConnection, by: Uuid) -> sqlx::Result<Vec<Uuid>> {
        let outcome = Outcome::Superseded { by };
        sqlx::query_scalar!(
            "-- supersede_older
            with older as (
                select s.job_id
                from submission s
                where s.customer_id = $1 and s.state = 'waiting'
                    and (s.requested_at, s.received_at, s.job_id) < ($2, $3, $4)
                order by s.requested_at desc, s.received_at desc, s.job_id desc
                limit $5
                for update skip locked
            )
            update submission s
            set state = $6, waiting_for = null, due_at = null, reason_code = null, reason = $7,
                ended_at = greatest(now(), s.received_at), sealed_payload = null
            from older
            where s.job_id = older.job_id
            returning s.job_id",
            self.customer_id,
            self.requested_at,
            self.received_at,
            self.job_id,
            SUPERSEDED_AT_ONCE,
            outcome.state(),
            &*outcome.reason(),
        )
        .fetch_all(tx)
        .await
    }

    /// Gives the slot up until a key may be there: a minute first, then as long again as the job has
    /// waited, and an hour at most. Another replica may have the key already.
    async fn wait_for_key(&self, tx: &mut PgConnection) -> sqlx::Result<()> {
        sqlx::query!(
            "-- wait_for_key
            update submission s
            set state = 'waiting', waiting_for = 'retry', claimed_until = null,
                attempts = (select count(*) from attempt a where a.job_id = s.job_id),
                due_at = now() + least(greatest(now() - s.received_at, interval '1 minute'), interval '1 hour'),
                reason_code = $2, reason = $3
            where s.job_id = $1 and s.state = 'submitting'",
            self.job_id,
            PAYLOAD_UNREADABLE,
            "no key opens its payload; add the key that it was sealed with to PAYLOAD_KEY",
        )
        .execute(&mut *tx)
        .await?;
        wake_newest(tx, &[self.customer_id]).await
    }

    /// Ends the job without an attempt.
    async fn end(&self, tx: &mut PgConnection, outcome: &Outcome) -> sqlx::Result<()> {
        sqlx::query!(
            "-- end_without_attempt
            update submission s
            set state = $2, reason_code = $3, reason = $4, ended_at = greatest(now(), s.received_at),
                claimed_until = null,
                attempts = (select count(*) from attempt a where a.job_id = s.job_id),
                sealed_payload = case when $5 then s.sealed_payload end
            where s.job_id = $1 and s.state = 'submitting'",
            self.job_id,
            outcome.state(),
            outcome.reason_code(),
            &*outcome.reason(),
            outcome.keeps_payload(),
        )
        .execute(&mut *tx)
        .await?;
        wake_newest(tx, &[self.customer_id]).await
    }
}

/// Makes the newest job due now that waits for each of these customers: whoever releases or ends one
/// of a customer's jobs wakes the next, and no others. One that waits for its own time keeps that.
///
/// To be called after the release, as a statement of its own: its snapshot sees every job that was
/// waiting by then. One whose commit comes later has a near alarm (`insert_behind`).
pub(crate) async fn wake_newest(tx: &mut PgConnection, customers: &[Uuid]) -> sqlx::Result<()> {
    wake_newest_due_after(tx, customers, 0.0).await
}

/// Wakes those alone that would sleep for longer than `seconds`.
pub(crate) async fn wake_newest_due_after(
    tx: &mut PgConnection,
    customers: &[Uuid],
    seconds: f64,
) -> sqlx::Result<()> {
    if customers.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "-- wake_newest
        with newest as (
            select w.job_id
            from unnest($1::uuid[]) as released (customer_id)
            cross join lateral (
                select s.job_id, s.waiting_for, s.due_at
                from submission s
                where s.customer_id = released.customer_id and s.state = 'waiting'
                order by s.requested_at desc, s.received_at desc, s.job_id desc
                limit 1
                for update skip locked
            ) w
            where w.waiting_for = 'customer' and w.due_at > now() + make_interval(secs => $2)
        )
        update submission s set due_at = now() from newest where s.job_id = newest.job_id",
        customers,
        seconds,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Writes down that attempts begin. Their first bytes may leave once this is committed.
pub(crate) async fn begin_attempts(
    tx: &mut PgConnection,
    worker: &str,
    beginning: &[Beginning],
) -> sqlx::Result<()> {
    if beginning.is_empty() {
        return Ok(());
    }
    let all: Vec<&Beginning> = beginning.iter().collect();
    sqlx::query!(
        "-- begin_attempts
        insert into attempt (job_id, number, worker, signed_at)
        select b.job_id, b.number, $4, b.signed_at
        from unnest($1::uuid[], $2::integer[], $3::timestamptz[]) as b (job_id, number, signed_at)",
        &column(&all, |attempt| attempt.job_id),
        &column(&all, |attempt| attempt.attempt),
        &column(&all, |attempt| OffsetDateTime::from(attempt.t0.wall)),
        worker,
    )
    .execute(tx)
    .await?;
    Ok(())
}
