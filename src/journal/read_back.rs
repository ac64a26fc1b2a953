//! Reads of customers: claimed before they begin, written down with what they prove.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use uuid::Uuid;

use crate::clock::Moment;
use crate::domain::budget::Budget;
use crate::domain::job::JobRef;
use crate::domain::outcome::Outcome;
use crate::domain::read_back::{Age, Conclusion, Reading};
use crate::domain::state::{Evidence, Purpose, State, WaitingFor};
use crate::domain::suspicion::Customer;
use crate::domain::trace_context::TraceContext;
use crate::journal::error::JournalError;
use crate::journal::handle::Journal;
use crate::journal::history::chain::{Entry, Subject};
use crate::journal::pool::{run, run_tx};
use crate::journal::statements::claim::Claim;
use crate::journal::statements::customers::{claim_read, read_customers};
use crate::journal::statements::history::{
    Locked, add_reading, dated_at, insert_observation, lock_submission, observed,
};
use crate::journal::statements::move_on::{Destination, Move, move_locked};

/// The right to read the customer of a submission of unknown outcome, and what the records said
/// before the read.
#[derive(Clone, Debug)]
pub struct ReadClaim {
    pub job: JobRef,
    pub customer_id: Uuid,
    /// Fences out whoever held an older claim.
    pub token: i64,
    pub attempt: i32,
    /// Before the read, by the database's clock.
    pub at: OffsetDateTime,
    /// The same, by this replica's clocks.
    pub claimed_at: Moment,
    /// How long ago the attempt began.
    pub since_begin: Age,
    /// How long ago it ended, or was rescued. The replicas' clock goes by how long the attempt took from
    /// its signature on, which leaves out what it waited for a request slot.
    pub since_end: Age,
    /// Whether no other update of the customer was in verification.
    pub is_only_suspect: bool,
    /// Our newest word on the customer before the attempt, if no other update came between.
    pub word_before: Option<String>,
    /// How many reads have shown that the attempt was not applied.
    pub confirmed: u32,
    /// How long ago the last of them was.
    pub since_confirmation: Age,
    /// When the answer of that one was made, by its own date.
    pub confirmation_dated_at: Option<SystemTime>,
    pub budget: Budget,
}

#[derive(Clone, Debug)]
pub enum Settled {
    Ended(Outcome),
    /// It is to be sent again, now.
    SendAgain,
    /// Its outcome stays unknown until another read, so far off.
    StillUnknown(Duration),
}

impl Journal {
    /// Claims up to `limit` reads that have been due the longest, over a connection that waits for no
    /// job.
    pub async fn claim_reads(&self, limit: usize) -> Result<Vec<ReadClaim>, JournalError> {
        let claimed_at = Moment::now();
        let (rows, customers) = run_tx("claim_reads", &self.reads, async |tx| {
            let rows = sqlx::query!(
                r#"-- claim_reads
                with due as (
                    select job_id
                    from submission
                    where state = 'unknown' and due_at <= now()
                        and due_at >= coalesce($3::timestamptz, '-infinity')
                    order by due_at
                    limit $4
                    for update skip locked
                ), claimed as (
                    update submission s
                    set claim_token = s.claim_token + 1, claimed_by = $1,
                        due_at = now() + make_interval(secs => $2)
                    from due
                    where s.job_id = due.job_id
                    returning s.job_id, s.customer_id, s.claim_token, s.attempts, s.received_at, s.traceparent
                ), known as (
                    -- One whose row is locked is read all the same: this is for others who would read them.
                    select customer_id from customer
                    where customer_id in (select customer_id from claimed)
                    order by customer_id
                    for update skip locked
                ), noted as (
                    update customer c set last_read_at = now() from known where c.customer_id = known.customer_id
                ), added as (
                    insert into customer (customer_id, last_read_at)
                    select distinct customer_id, now() from claimed
                    where not exists (select from customer c where c.customer_id = claimed.customer_id)
                    order by customer_id
                    on conflict (customer_id) do nothing
                )
                select
                    c.job_id, c.customer_id as "customer_id!", c.claim_token, c.attempts, c.received_at,
                    c.traceparent as "trace: TraceContext", now() as "at!", a.begun_at, a.ended_at as "ended_at!", a.signed_at, a.duration_ms
                from claimed c
                join attempt a on a.job_id = c.job_id and a.number = c.attempts"#,
                self.worker,
                self.limits.claim_lease.as_secs_f64(),
                self.floors.due.bound(),
                i64::try_from(limit).unwrap_or(i64::MAX),
            )
            .fetch_all(&mut *tx)
            .await?;
            // Later than `at`, and before anything is asked of the provider.
            let customers = match rows.is_empty() {
                true => HashMap::new(),
                false => read_customers(tx, rows.iter().map(|row| (row.customer_id, None))).await?,
            };
            Ok((rows, customers))
        })
        .await?;
        let window = self.limits.read_back_window;
        let by_replica = |at| age(at, claimed_at.wall.into());
        // What nobody closed was rescued when its lease expired.
        let lasted = |ms: Option<i32>| match ms {
            Some(ms) => Duration::from_millis(u64::from(ms.unsigned_abs())),
            None => self.limits.claim_lease,
        };
        let unknown = Customer::default();
        let claims = rows.into_iter().map(|row| {
            let customer = customers.get(&row.customer_id).unwrap_or(&unknown);
            let (confirmed, last) = customer.confirmations(row.job_id, row.attempts);
            ReadClaim {
                job: JobRef { id: row.job_id, received_at: row.received_at, trace: row.trace },
                customer_id: row.customer_id,
                token: row.claim_token,
                attempt: row.attempts,
                at: row.at,
                claimed_at,
                since_begin: Age { database: age(row.begun_at, row.at), replica: by_replica(row.signed_at) },
                since_end: Age {
                    database: age(row.ended_at, row.at),
                    replica: by_replica(row.signed_at)
                        .map(|since| since.saturating_sub(lasted(row.duration_ms))),
                },
                is_only_suspect: customer.is_only_suspect(row.job_id, window),
                word_before: customer.word_before(row.job_id, row.attempts, window).map(str::to_owned),
                confirmed,
                since_confirmation: match last {
                    Some(last) => {
                        Age { database: age(last.at, row.at), replica: last.read_at.and_then(by_replica) }
                    }
                    None => Age::agreed(Duration::ZERO),
                },
                confirmation_dated_at: last.and_then(|last| last.dated_at).map(SystemTime::from),
                budget: customer.budget(self.limits.customer_updates),
            }
        });
        Ok(claims.collect())
    }

    /// Writes down what a read said and what it settled, in one commit.
    ///
    /// # Errors
    /// [`JournalError::Fenced`] when the claim is no longer ours; else the database's.
    pub async fn conclude_read(
        &self,
        claim: &ReadClaim,
        reading: &Reading,
        conclusion: Conclusion,
        settled: &Settled,
    ) -> Result<(), JournalError> {
        let to = match settled {
            Settled::Ended(outcome) => Destination::End(outcome.ended().known_by(Evidence::ReadBack)),
            Settled::SendAgain => {
                let waiting_for = WaitingFor::Retry;
                Destination::Wait { waiting_for, due_in: Duration::ZERO, why: None }
            }
            Settled::StillUnknown(due_in) => Destination::Read { due_in: *due_in, why: None },
        };
        let observation = observed(claim.at, Purpose::ReadBack, reading, Some(conclusion.name()));
        let subject = Subject { job_id: claim.job.id, customer_id: claim.customer_id };
        let read_at = OffsetDateTime::from(claim.claimed_at.wall);
        let _turn = self.concluding.acquire().await;
        let is_concluded = run_tx("conclude_read", &self.reads, async |tx| {
            let Some(Locked { position: from, .. }) = lock_submission(tx, claim.job.id).await? else {
                return Ok(false);
            };
            if (from.state, from.token) != (State::Unknown, claim.token) {
                return Ok(false);
            }
            let head = from.head.after(&self.fingerprinter, subject, &Entry::Observation(observation));
            insert_observation(tx, subject, &observation, head.entries, Some(read_at), dated_at(reading))
                .await?;
            let moved = Move { head: Some(head), ..Move::new(from, &to) };
            move_locked(tx, self.limits.at_end, &[moved]).await?;
            Ok(true)
        })
        .await?;
        // A lost answer to this commit leaves nothing to mend: the row has moved on.
        if is_concluded { Ok(()) } else { Err(JournalError::Fenced) }
    }

    /// Takes the right to read a customer before their first attempt here, unless any replica
    /// read them less than `apart` ago.
    pub async fn claim_baseline(
        &self,
        customer_id: Uuid,
        apart: Duration,
    ) -> Result<Option<OffsetDateTime>, JournalError> {
        run("claim_baseline", &self.pool, async |connection| claim_read(connection, customer_id, apart).await)
            .await
    }

    /// Writes down what a read before the first attempt said, and moves the claim's head on.
    pub async fn record_baseline(
        &self,
        claim: &mut Claim,
        at: OffsetDateTime,
        read_at: Moment,
        reading: &Reading,
    ) -> Result<(), JournalError> {
        let (subject, times) = (claim.subject(), (at, read_at.wall));
        let head = run_tx("record_baseline", &self.pool, async |tx| {
            add_reading(tx, &self.fingerprinter, subject, times, Purpose::Baseline, reading).await
        })
        .await?;
        *claim = claim.at(head);
        Ok(())
    }
}

/// How long ago `at` was when a clock said `now`; `None` if it is yet to come by that clock.
fn age(at: OffsetDateTime, now: OffsetDateTime) -> Option<Duration> {
    Duration::try_from(now - at).ok()
}
