//! A claim on a job that waited: the customer's slot first, then the read of its siblings, with a
//! newer snapshot, in the same transaction.
//!
//! One statement that reads and claims is not enough: its snapshot may be older than the
//! slot that it waited for, and what the holder did meanwhile would be missed.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::clock::Moment;
use crate::domain::job::{JobRef, UpdateRequest};
use crate::domain::outcome::{Exhaustion, Outcome};
use crate::domain::precedence::Decision;
use crate::domain::read_back::Conclusion;
use crate::domain::state::{Purpose, VerdictKind};
use crate::journal::error::{JournalError, is_lost_race};
use crate::journal::handle::Journal;
use crate::journal::history::chain::{Entry, Head, Observation, Subject};
use crate::journal::memory::Write;
use crate::journal::pool::{run, run_tx};
use crate::journal::statements::claim::{
    Begun, Candidate, Claim, PAYLOAD_UNREADABLE, TakenSlot, begin_attempts, decide_all, find_begun,
    take_slots,
};
use crate::journal::statements::history::insert_observation;
use crate::seal::OpenError;

/// Why a conclusion comes without a read: the budget alone told it.
const NOT_READ: &str = "not_looked";

/// What became of a job that was due.
pub enum NextAttempt {
    /// It is claimed, its next attempt begun.
    Claimed(Box<ClaimedJob>),
    /// It made way for another of its customer; it ended if it says so.
    YieldedSlot(JobRef, Option<Outcome>),
    /// No key opens its payload: it waits for one, and no attempt was begun.
    Unreadable(JobRef, OpenError),
    /// The database refuses what is written of it. It is tried again after a while, so that it is in
    /// nobody's way.
    Refused(JobRef, JournalError),
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
            Ok(next) => {
                for attempt in &next {
                    if let NextAttempt::Claimed(claimed) = attempt {
                        self.memory.add(Write::Begun(Box::new(claimed.claim)));
                    }
                }
                Ok(Some(next))
            }
            // Another replica took a customer's slot between our read and our claim.
            Err(JournalError::Database { source, .. }) if is_lost_race(&source) => Ok(None),
            Err(error) if error.is_of_a_job() => match taken[..] {
                // The others do not wait for the one that the database refuses: each goes alone.
                [_, _, ..] => Box::pin(self.next_attempts(t0, probe, 1)).await,
                [job] => {
                    self.leave_alone(job.id).await?;
                    Ok(Some(vec![NextAttempt::Refused(job, error)]))
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
        taken: &mut Vec<JobRef>,
    ) -> Result<Vec<NextAttempt>, JournalError> {
        run_tx("next_attempts", &self.pool, async |tx| {
            let unfit = match probe {
                Some(Probe::Without(verdicts)) => verdicts,
                Some(Probe::OfAny) | None => &[],
            };
            let due_from = self.floors.due.bound();
            let slots = take_slots(tx, &self.worker, &self.limits, unfit, limit, due_from).await?;
            taken.extend(slots.iter().map(TakenSlot::job));
            self.next_attempts_in(tx, t0, probe, slots).await
        })
        .await
    }

    async fn leave_alone(&self, job_id: Uuid) -> Result<(), JournalError> {
        run("leave_alone", &self.pool, async |connection| {
            sqlx::query!(
                "-- leave_alone
                update submission set due_at = now() + make_interval(secs => $2)
                where job_id = $1 and state = 'waiting' and due_at <= now()",
                job_id,
                REFUSED_WAIT_SECONDS,
            )
            .execute(connection)
            .await
        })
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
        let name = "find_begun";
        let begun = run(name, &self.pool, async |connection| {
            find_begun(connection, &self.worker, t0, probe.is_some()).await
        })
        .await?;
        for Begun { claim, .. } in &begun {
            self.memory.add(Write::Begun(Box::new(*claim)));
        }
        // It was opened before the attempt began.
        let opened = begun.into_iter().map(|Begun { claim, sealed, correlation_id }| {
            let request = self.open_payload(claim.job.id, &sealed);
            let request = request.map_err(|error| sqlx::Error::Decode(Box::new(error)));
            let request = request.map_err(|source| JournalError::Database { name, source })?;
            Ok(ClaimedJob { claim, request, correlation_id })
        });
        opened.collect()
    }

    async fn next_attempts_in(
        &self,
        tx: &mut PgConnection,
        t0: Moment,
        probe: Option<Probe>,
        slots: Vec<TakenSlot>,
    ) -> sqlx::Result<Vec<NextAttempt>> {
        let at_end = self.limits.at_end;
        let candidates: Vec<Candidate> = slots.iter().map(TakenSlot::candidate).collect();
        let decisions = decide_all(&mut *tx, &candidates, &self.limits).await?;
        let (mut next, mut going, mut jobs) = (Vec::with_capacity(slots.len()), Vec::new(), Vec::new());
        for ((slot, candidate), decision) in slots.into_iter().zip(&candidates).zip(decisions) {
            match decision {
                _ if slot.is_expired => {
                    let outcome = Outcome::Exhausted(Exhaustion::Expired { link: slot.expiring_link });
                    candidate.end(tx, at_end, &outcome).await?;
                    next.push(NextAttempt::YieldedSlot(slot.job(), Some(outcome)));
                }
                Decision::Go => match self.open_payload(slot.job_id, &slot.sealed) {
                    Ok(request) => {
                        going.push(slot.slot(t0, probe.is_some()));
                        jobs.push((request, slot.correlation_id));
                    }
                    Err(error) => {
                        candidate.wait_for_key(tx, at_end, slot.key_wait()).await?;
                        next.push(NextAttempt::Unreadable(slot.job(), error));
                    }
                },
                decision => {
                    let head = match decision {
                        Decision::LastUpdate => Some(self.note_last_update(tx, &slot).await?),
                        _ => None,
                    };
                    if let Decision::Superseded { by } = decision {
                        let older = candidate.supersede_older(tx, at_end, by).await?;
                        let ended = |job| NextAttempt::YieldedSlot(job, Some(Outcome::Superseded { by }));
                        next.extend(older.into_iter().map(ended));
                    }
                    let ended = candidate.yield_slot(tx, at_end, decision, head).await?;
                    next.push(NextAttempt::YieldedSlot(slot.job(), ended));
                }
            }
        }
        let claims = begin_attempts(tx, &self.worker, going).await?;
        let claimed = claims.into_iter().zip(jobs).map(|(claim, (request, correlation_id))| {
            NextAttempt::Claimed(Box::new(ClaimedJob { claim, request, correlation_id }))
        });
        next.extend(claimed);
        Ok(next)
    }

    /// Keeps in the history that a resend might take the customer's last update: no entry else says
    /// why the job that reads had cleared is not sent. Returns where the history stands then.
    async fn note_last_update(&self, tx: &mut PgConnection, slot: &TakenSlot) -> sqlx::Result<Head> {
        let observation = Observation {
            at: slot.begun_at,
            purpose: Purpose::ReadBack.name(),
            status: None,
            failure_reason: None,
            error: Some(NOT_READ),
            conclusion: Some(Conclusion::LastUpdate.name()),
            document_types: None,
        };
        let subject = Subject { job_id: slot.job_id, customer_id: slot.customer_id };
        let head = slot.head().after(&self.fingerprinter, subject, &Entry::Observation(observation));
        insert_observation(tx, subject, &observation, head.entries, None, None).await?;
        Ok(head)
    }

    fn open_payload(&self, job_id: Uuid, sealed: &[u8]) -> Result<UpdateRequest, OpenError> {
        let payload = self.keyring.open(job_id, sealed)?;
        let text = String::from_utf8(payload).map_err(|_| OpenError::Malformed)?;
        UpdateRequest::from_sealed(&text).map_err(|_| OpenError::Malformed)
    }

    /// Makes those due now that wait for the key of their payload: a worker that has just started may
    /// have it.
    pub async fn wake_unreadable(&self) -> Result<(), JournalError> {
        run("wake_unreadable", &self.pool, async |connection| {
            sqlx::query!(
                "-- wake_unreadable
                update submission set due_at = now()
                where state = 'waiting' and reason_code = $1 and due_at > now()",
                PAYLOAD_UNREADABLE,
            )
            .execute(connection)
            .await
        })
        .await?;
        Ok(())
    }
}
