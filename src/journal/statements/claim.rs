//! A slot that was taken: the customer's other jobs are read, and the slot is used or given up.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::domain::outcome::{Outcome, Review};
use crate::domain::precedence::{Decision, decide};
use crate::domain::suspicion::Customer;
use crate::journal::rows::{Beginning, Candidate, Limits, column};
use crate::journal::statements::customers::read_customers;
use crate::journal::statements::wake::{NEAR_WAIT_MAX_SECONDS, wake_newest};

/// The reason of a job whose payload no key opens.
pub(crate) const PAYLOAD_UNREADABLE: &str = "payload_unreadable";

/// How many older jobs of a customer end at once, because a newer one was accepted. Whatever is left
/// is ended by the next claim.
const SUPERSEDED_AT_ONCE: i64 = 100;

/// Reads what each candidate's customer had, now that the slots are theirs, and decides; in the
/// candidates' order.
pub(crate) async fn decide_all(
    tx: &mut PgConnection,
    candidates: &[Candidate],
    limits: &Limits,
) -> sqlx::Result<Vec<Decision>> {
    // What is sent for the first time spends whatever is left.
    let asked = candidates.iter().map(|job| (job.customer_id, (!job.is_resend).then_some(job.job_id)));
    let customers = read_customers(tx, asked).await?;
    let unknown = Customer::default();
    let decision = |candidate: &Candidate| {
        let customer = customers.get(&candidate.customer_id).unwrap_or(&unknown);
        decide(&candidate.asking(), customer, limits.read_back_window, limits.customer_updates)
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
            Decision::LastUpdate => Outcome::NeedsReview(Review::LastUpdate),
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
    pub(crate) async fn supersede_older(&self, tx: &mut PgConnection, by: Uuid) -> sqlx::Result<Vec<Uuid>> {
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
            outcome.state().name(),
            &*outcome.reason(),
        )
        .fetch_all(tx)
        .await
    }

    /// Gives the slot up until a key may be there: a minute first, then as long again as the job has
    /// waited, and an hour at most. Another replica may have the key already.
    pub(crate) async fn wait_for_key(&self, tx: &mut PgConnection) -> sqlx::Result<()> {
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
    pub(crate) async fn end(&self, tx: &mut PgConnection, outcome: &Outcome) -> sqlx::Result<()> {
        sqlx::query!(
            "-- end_without_attempt
            update submission s
            set state = $2, reason_code = $3, reason = $4, ended_at = greatest(now(), s.received_at),
                claimed_until = null,
                attempts = (select count(*) from attempt a where a.job_id = s.job_id),
                sealed_payload = case when $5 then s.sealed_payload end
            where s.job_id = $1 and s.state = 'submitting'",
            self.job_id,
            outcome.state().name(),
            outcome.reason_code(),
            &*outcome.reason(),
            outcome.keeps_payload(),
        )
        .execute(&mut *tx)
        .await?;
        wake_newest(tx, &[self.customer_id]).await
    }
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
