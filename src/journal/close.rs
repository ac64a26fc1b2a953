//! What an attempt came to is written down, in one commit with what follows from it.

use std::sync::Arc;

use sqlx::PgConnection;
use tracing::warn;

use crate::domain::outcome::{Outcome, Wait};
use crate::domain::state::State;
use crate::domain::verdict::Verdict;
use crate::journal::error::JournalError;
use crate::journal::handle::Journal;
use crate::journal::history::chain::{Entry, Head, Subject};
use crate::journal::pool::run_tx;
use crate::journal::rows::{AttemptResult, Claim, Closing};
use crate::journal::statements::close::close_many;
use crate::journal::statements::wake::wake_newest;

impl Journal {
    /// Ends a submission: the attempt's result and the outcome, in one commit. Wakes the
    /// customer's next. Safe to call again after an error.
    ///
    /// # Errors
    /// [`JournalError::Fenced`] when the claim is no longer ours; else the database's.
    pub async fn settle(
        &self,
        claim: &Claim,
        result: &AttemptResult,
        outcome: &Outcome,
    ) -> Result<(), JournalError> {
        self.close(Closing {
            error: result.error.or(outcome.note()),
            reason_code: outcome.reason_code(),
            reason: outcome.reason(),
            keeps_payload: outcome.keeps_payload(),
            acceptance: match outcome {
                Outcome::Accepted(acceptance) => Some(acceptance.clone()),
                _ => None,
            },
            ..Closing::of(claim, result, outcome.state())
        })
        .await
    }

    /// Parks a submission: the attempt's result and the due time, in one commit. Wakes
    /// the customer's next. Safe to call again after an error.
    ///
    /// # Errors
    /// [`JournalError::Fenced`] when the claim is no longer ours; else the database's.
    pub async fn park(&self, claim: &Claim, result: &AttemptResult, wait: &Wait) -> Result<(), JournalError> {
        self.close(Closing {
            waiting_for: Some(wait.waiting_for.name()),
            retries: i32::from(wait.counts),
            ..Closing::in_motion(claim, result, State::Waiting, wait.delay)
        })
        .await
    }

    /// Leaves a submission in doubt: its attempt's fate is unknown, and the customer is to
    /// be looked at before anything else. It keeps the customer's slot. Safe to call again
    /// after an error.
    ///
    /// # Errors
    /// [`JournalError::Fenced`] when the claim is no longer ours; else the database's.
    pub async fn doubt(&self, claim: &Claim, result: &AttemptResult) -> Result<(), JournalError> {
        self.close(Closing::in_motion(claim, result, State::Unknown, self.limits.read_back_after)).await
    }

    /// Writes it down with many others, or else alone.
    async fn close(&self, closing: Closing) -> Result<(), JournalError> {
        let closing = Arc::new(closing);
        if self.batcher.close(Arc::clone(&closing)).await.is_some() {
            return Ok(());
        }
        // Rare, and large: not to be carried about by every job.
        match Box::pin(self.close_or_find(&closing)).await {
            // What is known is kept, if not in the provider's words.
            Err(error) if error.is_of_a_value() && closing.has_texts() => {
                warn!(job_id = %closing.claim.job_id, "the database cannot hold the provider's words, recording its answer without them");
                Box::pin(self.close_or_find(&closing.without_texts())).await
            }
            closed => closed,
        }
    }

    async fn close_or_find(&self, closing: &Closing) -> Result<(), JournalError> {
        let is_done = run_tx("close", &self.pool, async |tx| {
            Ok(self.close_alone(tx, closing).await? || self.was_done(tx, closing).await?)
        })
        .await?;
        if is_done { Ok(()) } else { Err(JournalError::Fenced) }
    }

    /// Writes it down alone: waits for whoever holds the submission's row, and goes by what that
    /// one added to the history. Returns whether the claim was still there.
    async fn close_alone(&self, tx: &mut PgConnection, closing: &Closing) -> sqlx::Result<bool> {
        let Some((head, now)) = Head::lock(tx, closing.claim.job_id).await? else { return Ok(false) };
        let closing = Closing { claim: Claim { head, ..closing.claim }, ..closing.clone() };
        let (worker, fingerprinter) = (&self.worker, &self.fingerprinter);
        let closed = close_many(tx, worker, fingerprinter, &self.limits, now, &[&closing]).await?;
        Ok(!closed.is_empty())
    }

    /// Whether an earlier call whose answer was lost has written it. If not, a write that
    /// touched no row was fenced out.
    async fn was_done(&self, tx: &mut PgConnection, closing: &Closing) -> sqlx::Result<bool> {
        sqlx::query_scalar!(
            r#"-- was_done
            select exists (
                select from attempt
                where job_id = $1 and number = $2 and worker = $3 and verdict = $4 and duration_ms = $5
            ) as "was_done!""#,
            closing.claim.job_id,
            closing.claim.attempt,
            self.worker,
            closing.verdict,
            closing.duration_ms,
        )
        .fetch_one(tx)
        .await
    }

    /// Adds the result of an attempt whose claim was lost. A late acceptance ends the
    /// submission, if nothing else has since, and fences out whoever holds it now; any
    /// other result is a note. Returns whether it ended the submission.
    pub async fn record_late(&self, claim: &Claim, verdict: &Verdict) -> Result<bool, JournalError> {
        run_tx("record_late", &self.pool, async |tx| {
            let Some((head, _now)) = Head::lock(tx, claim.job_id).await? else { return Ok(false) };
            let subject = Subject { job_id: claim.job_id, customer_id: claim.customer_id };
            let entry = Entry::LateVerdict { number: claim.attempt, verdict: verdict.name() };
            let head = head.after(&self.fingerprinter, subject, &entry);
            self.add_late_verdict(tx, claim, verdict, head).await
        })
        .await
    }

    async fn add_late_verdict(
        &self,
        tx: &mut PgConnection,
        claim: &Claim,
        verdict: &Verdict,
        head: Head,
    ) -> sqlx::Result<bool> {
        let acceptance = match verdict {
            Verdict::Accepted(acceptance) => Some(acceptance),
            _ => None,
        };
        // A second call, after an answer that was lost, finds the verdict and adds nothing.
        let has_ended = sqlx::query_scalar!(
            r#"-- record_late
            with late as (
                update attempt
                set late_verdict = $4, late_entry = $8
                where job_id = $1 and number = $2 and worker = $3
                    and ended_at is not null and late_verdict is null
                returning job_id
            ), told as (
                select
                    s.job_id,
                    $4 = 'accepted'
                    and (
                        s.state in ('unknown', 'waiting')
                        or s.state = 'needs_review' and s.reason_code in ('fate_unknown', 'last_update')
                    ) as ends
                from submission s
                join late on late.job_id = s.job_id
            ), noted as (
                update submission s set chain = $9, entries = $8
                from told
                where s.job_id = told.job_id and not told.ends
            ), accepted as (
                update submission s
                set state = 'accepted', waiting_for = null, due_at = null, reason_code = null,
                    reason = 'the provider accepted the update; its answer came after the claim was lost',
                    ended_at = greatest(now(), s.received_at), claimed_until = null,
                    claim_token = s.claim_token + 1, sealed_payload = null, evidence = 'late', chain = $9, entries = $8,
                    provider_reference = $5, verification_status = $6,
                    verification_due_at = now() + make_interval(secs => $7)
                from told
                where s.job_id = told.job_id and told.ends
                returning s.job_id
            )
            select count(*) as "accepted!" from accepted"#,
            claim.job_id,
            claim.attempt,
            self.worker,
            verdict.name(),
            acceptance.and_then(|acceptance| acceptance.reference.as_deref()),
            acceptance.and_then(|acceptance| acceptance.verification_status.as_deref()),
            self.limits.verification_after.as_secs_f64(),
            head.entries,
            &head.mac as &[u8],
        )
        .fetch_one(&mut *tx)
        .await?
            == 1;
        if has_ended {
            wake_newest(tx, &[claim.customer_id]).await?;
        }
        Ok(has_ended)
    }
}
