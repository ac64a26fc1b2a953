//! What an attempt came to is written down, in one commit with what follows from it.

use std::sync::Arc;

use sqlx::PgConnection;
use time::OffsetDateTime;
use tracing::warn;

use crate::domain::outcome::{Outcome, Wait, ends_by_late_acceptance};
use crate::domain::state::Evidence;
use crate::domain::verdict::Verdict;
use crate::journal::error::JournalError;
use crate::journal::handle::Journal;
use crate::journal::history::chain::Entry;
use crate::journal::memory::Write;
use crate::journal::pool::run_tx;
use crate::journal::rows::AttemptResult;
use crate::journal::statements::claim::Claim;
use crate::journal::statements::close::{Closing, close_many};
use crate::journal::statements::history::{lock_submission, set_head, set_late_verdict};
use crate::journal::statements::move_on::{Destination, Move, move_locked};

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
        self.close(Closing::ended(claim, result, outcome)).await
    }

    /// Schedules a retry: the attempt's result and the due time, in one commit. Wakes
    /// the customer's next. Safe to call again after an error.
    ///
    /// # Errors
    /// [`JournalError::Fenced`] when the claim is no longer ours; else the database's.
    pub async fn schedule(
        &self,
        claim: &Claim,
        result: &AttemptResult,
        wait: &Wait,
    ) -> Result<(), JournalError> {
        self.close(Closing::waiting(claim, result, wait)).await
    }

    /// Leaves a submission `unknown`: whether its attempt was applied is open, and the customer is to
    /// be read before anything else. It keeps the customer's slot. Safe to call again
    /// after an error.
    ///
    /// # Errors
    /// [`JournalError::Fenced`] when the claim is no longer ours; else the database's.
    pub async fn leave_unknown(&self, claim: &Claim, result: &AttemptResult) -> Result<(), JournalError> {
        self.close(Closing::unknown(claim, result, self.limits.read_back_after)).await
    }

    /// Writes it down with many others, or else alone.
    async fn close(&self, closing: Closing) -> Result<(), JournalError> {
        let closing = Arc::new(closing);
        if let Some(at) = self.batcher.close(Arc::clone(&closing)).await {
            self.memory.add(Write::Closed(closing, at));
            return Ok(());
        }
        // Rare, and large: not to be carried about by every job.
        match Box::pin(self.close_or_find(&closing)).await {
            // What is known is kept, if not in the provider's words.
            Err(error) if error.is_of_a_value() && closing.has_texts() => {
                warn!(job_id = %closing.claim.job.id, trace_id = closing.claim.job.trace_id().map(display), "the database cannot hold the provider's words, recording its answer without them");
                Box::pin(self.close_or_find(&Arc::new(closing.without_texts()))).await
            }
            closed => closed,
        }
    }

    async fn close_or_find(&self, closing: &Arc<Closing>) -> Result<(), JournalError> {
        let done = run_tx("close", &self.pool, async |tx| {
            let closed_at = self.close_alone(tx, closing).await?;
            if closed_at.is_some() { Ok(closed_at) } else { self.was_done(tx, closing).await }
        })
        .await?;
        let at = done.ok_or(JournalError::Fenced)?;
        self.memory.add(Write::Closed(Arc::clone(closing), at));
        Ok(())
    }

    /// Writes it down alone: waits for whoever holds the submission's row, and goes by what that
    /// one added to the history. Returns when it did; `None` where the claim was gone.
    async fn close_alone(
        &self,
        tx: &mut PgConnection,
        closing: &Closing,
    ) -> sqlx::Result<Option<OffsetDateTime>> {
        let Some(locked) = lock_submission(tx, closing.claim.job.id).await? else { return Ok(None) };
        let closing = Closing { claim: closing.claim.at(locked.position.head), ..closing.clone() };
        let (worker, fingerprinter) = (&self.worker, &self.fingerprinter);
        let closed = close_many(tx, worker, fingerprinter, &self.limits, locked.now, &[&closing]).await?;
        Ok((!closed.is_empty()).then_some(locked.now))
    }

    /// When an earlier call whose answer was lost has written it. If none has, a write that touched no row was
    /// fenced out.
    async fn was_done(
        &self,
        tx: &mut PgConnection,
        closing: &Closing,
    ) -> sqlx::Result<Option<OffsetDateTime>> {
        sqlx::query_scalar!(
            r#"-- was_done
            select ended_at as "ended_at!" from attempt
            where job_id = $1 and number = $2 and worker = $3 and verdict = $4 and duration_ms = $5"#,
            closing.claim.job.id,
            closing.claim.attempt,
            self.worker,
            closing.attempt.verdict,
            closing.attempt.duration_ms,
        )
        .fetch_optional(tx)
        .await
    }

    /// Adds the result of an attempt whose claim was lost. A late acceptance ends the
    /// submission, if nothing else has since, and fences out whoever holds it now; any
    /// other result is a note. Returns whether it ended the submission.
    pub async fn record_late(&self, claim: &Claim, verdict: &Verdict) -> Result<bool, JournalError> {
        run_tx("record_late", &self.pool, async |tx| {
            let Some(locked) = lock_submission(tx, claim.job.id).await? else { return Ok(false) };
            let entry = Entry::LateVerdict { number: claim.attempt, verdict: verdict.name() };
            let head = locked.position.head.after(&self.fingerprinter, claim.subject(), &entry);
            // A second call, after an answer that was lost, finds the verdict and adds nothing.
            if !set_late_verdict(tx, claim, &self.worker, verdict.name(), head.entries).await? {
                return Ok(false);
            }
            let acceptance = match verdict {
                Verdict::Accepted(acceptance)
                    if ends_by_late_acceptance(locked.position.state, locked.reason_code.as_deref()) =>
                {
                    acceptance.clone()
                }
                _ => {
                    set_head(tx, claim.job.id, head).await?;
                    return Ok(false);
                }
            };
            let to = Destination::End(Outcome::Accepted(acceptance).ended().known_by(Evidence::Late));
            let moved = Move { head: Some(head), ..Move::new(locked.position, &to) };
            move_locked(tx, self.limits.at_end, &[moved]).await?;
            Ok(true)
        })
        .await
    }
}
