//! What an attempt came to is written down, in one commit with what follows from it.

use std::time::Duration;

use super::{Claim, Journal, JournalError, bounded};
use crate::domain::outcome::{Outcome, Wait};
use crate::domain::verdict::Verdict;

/// What an attempt came to.
#[derive(Debug)]
pub struct AttemptResult {
    /// What it means.
    pub verdict: Verdict,
    /// The HTTP status, where one was seen.
    pub http_status: Option<u16>,
    /// The provider's words on a failure.
    pub provider_message: Option<String>,
    /// What went wrong on our side.
    pub error: Option<&'static str>,
    /// How long it took.
    pub duration: Duration,
}

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
        let acceptance = match outcome {
            Outcome::Accepted(acceptance) => Some(acceptance),
            _ => None,
        };
        let settled = bounded(
            sqlx::query_scalar!(
                r#"-- settle
                with settled as (
                    update submission
                    set state = $4, reason_code = $5, reason = $6, ended_at = now(), claimed_until = null,
                        sealed_payload = case when $7 then sealed_payload end,
                        provider_reference = $8, verification_status = $9,
                        evidence = case when $4 = 'accepted' then 'response' end,
                        verification_due_at =
                            case when $4 = 'accepted' then now() + make_interval(secs => $16) end
                    where job_id = $1 and state = 'submitting' and claim_token = $2
                    returning job_id, customer_id
                ), closed as (
                    update attempt a
                    set ended_at = now(), verdict = $10, detail = $11, http_status = $12,
                        provider_message = $13, duration_ms = $14, error = $15
                    from settled
                    where a.job_id = settled.job_id and a.number = $3 and a.ended_at is null
                    returning a.job_id
                ), limited as (
                    insert into customer (customer_id, limit_reached_at)
                    select customer_id, now() from settled where $5 = 'update_limit_exceeded'
                    on conflict (customer_id) do update set limit_reached_at = now()
                ), waiters as (
                    select w.job_id
                    from submission w
                    join settled on settled.customer_id = w.customer_id
                    where w.state = 'waiting' and w.waiting_for = 'customer'
                    for update of w skip locked
                ), woken as (
                    update submission w set due_at = now() from waiters where w.job_id = waiters.job_id
                )
                select count(*) as "closed!" from closed"#,
                claim.job_id,
                claim.token,
                claim.attempt,
                outcome.state(),
                outcome.reason_code(),
                &*outcome.reason(),
                outcome.keeps_payload(),
                acceptance.and_then(|acceptance| acceptance.reference.as_deref()),
                acceptance.and_then(|acceptance| acceptance.verification_status.as_deref()),
                result.verdict.name(),
                result.verdict.detail(),
                result.http_status.map(i32::from),
                result.provider_message,
                millis(result.duration),
                result.error,
                self.limits.verification_after.as_secs_f64(),
            )
            .fetch_one(&self.pool),
        )
        .await?;
        self.check_touched(settled, claim, result).await
    }

    /// Parks a submission: the attempt's result and the due time, in one commit. Wakes
    /// the customer's next. Safe to call again after an error.
    ///
    /// # Errors
    /// [`JournalError::Fenced`] when the claim is no longer ours; else the database's.
    pub async fn park(&self, claim: &Claim, result: &AttemptResult, wait: &Wait) -> Result<(), JournalError> {
        let parked = bounded(
            sqlx::query_scalar!(
                r#"-- park
                with parked as (
                    update submission
                    set state = 'waiting', waiting_for = $4, due_at = now() + make_interval(secs => $5),
                        retries = retries + case when $6 then 1 else 0 end,
                        reason_code = $7, reason = $8, claimed_until = null
                    where job_id = $1 and state = 'submitting' and claim_token = $2
                    returning job_id, customer_id
                ), closed as (
                    update attempt a
                    set ended_at = now(), verdict = $9, detail = $10, http_status = $11,
                        provider_message = $12, duration_ms = $13, error = $14
                    from parked
                    where a.job_id = parked.job_id and a.number = $3 and a.ended_at is null
                    returning a.job_id
                ), waiters as (
                    select w.job_id
                    from submission w
                    join parked on parked.customer_id = w.customer_id
                    where w.state = 'waiting' and w.waiting_for = 'customer'
                    for update of w skip locked
                ), woken as (
                    update submission w set due_at = now() from waiters where w.job_id = waiters.job_id
                )
                select count(*) as "closed!" from closed"#,
                claim.job_id,
                claim.token,
                claim.attempt,
                wait.waiting_for.name(),
                wait.delay.as_secs_f64(),
                wait.counts,
                code(&result.verdict),
                ended_so(claim, &result.verdict),
                result.verdict.name(),
                result.verdict.detail(),
                result.http_status.map(i32::from),
                result.provider_message,
                millis(result.duration),
                result.error,
            )
            .fetch_one(&self.pool),
        )
        .await?;
        self.check_touched(parked, claim, result).await
    }

    /// Leaves a submission in doubt: its attempt's fate is unknown, and the customer is to
    /// be looked at before anything else. It keeps the customer's slot. Safe to call again
    /// after an error.
    ///
    /// # Errors
    /// [`JournalError::Fenced`] when the claim is no longer ours; else the database's.
    pub async fn doubt(&self, claim: &Claim, result: &AttemptResult) -> Result<(), JournalError> {
        let doubted = bounded(
            sqlx::query_scalar!(
                r#"-- doubt
                with doubted as (
                    update submission
                    set state = 'unknown', due_at = now() + make_interval(secs => $4),
                        reason_code = $5, reason = $6, claimed_until = null
                    where job_id = $1 and state = 'submitting' and claim_token = $2
                    returning job_id
                ), closed as (
                    update attempt a
                    set ended_at = now(), verdict = $7, detail = $8, http_status = $9,
                        provider_message = $10, duration_ms = $11, error = $12
                    from doubted
                    where a.job_id = doubted.job_id and a.number = $3 and a.ended_at is null
                    returning a.job_id
                )
                select count(*) as "closed!" from closed"#,
                claim.job_id,
                claim.token,
                claim.attempt,
                self.limits.read_back_after.as_secs_f64(),
                code(&result.verdict),
                ended_so(claim, &result.verdict),
                result.verdict.name(),
                result.verdict.detail(),
                result.http_status.map(i32::from),
                result.provider_message,
                millis(result.duration),
                result.error,
            )
            .fetch_one(&self.pool),
        )
        .await?;
        self.check_touched(doubted, claim, result).await
    }

    /// A write that touched no row was fenced out, or had been done by an earlier call
    /// whose answer was lost.
    async fn check_touched(
        &self,
        touched: i64,
        claim: &Claim,
        result: &AttemptResult,
    ) -> Result<(), JournalError> {
        if touched == 1 {
            return Ok(());
        }
        let is_done = bounded(
            sqlx::query_scalar!(
                r#"-- is_done
                select exists (
                    select from attempt a
                    join submission s on s.job_id = a.job_id
                    where a.job_id = $1 and a.number = $2 and a.worker = $3 and a.verdict = $4
                        and a.duration_ms = $5
                ) as "is_done!""#,
                claim.job_id,
                claim.attempt,
                self.worker,
                result.verdict.name(),
                millis(result.duration),
            )
            .fetch_one(&self.pool),
        )
        .await?;
        if is_done { Ok(()) } else { Err(JournalError::Fenced) }
    }

    /// Adds the result of an attempt whose claim was lost. A late acceptance ends the
    /// submission, if nothing else has since, and fences out whoever holds it now; any
    /// other result is a note. Returns whether it ended the submission.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn record_late(&self, claim: &Claim, verdict: &Verdict) -> Result<bool, JournalError> {
        let acceptance = match verdict {
            Verdict::Accepted(acceptance) => Some(acceptance),
            _ => None,
        };
        let accepted = bounded(
            sqlx::query_scalar!(
                r#"-- record_late
                with late as (
                    update attempt
                    set late_verdict = $4
                    where job_id = $1 and number = $2 and worker = $3
                        and ended_at is not null and late_verdict is null
                    returning job_id
                ), accepted as (
                    update submission s
                    set state = 'accepted', waiting_for = null, due_at = null, reason_code = null,
                        reason = 'the provider accepted the update; its answer came after the claim was lost',
                        ended_at = now(), claimed_until = null, claim_token = s.claim_token + 1,
                        sealed_payload = null, evidence = 'late',
                        provider_reference = $5, verification_status = $6,
                        verification_due_at = now() + make_interval(secs => $7)
                    from late
                    where s.job_id = late.job_id and $4 = 'accepted'
                        and (
                            s.state in ('unknown', 'waiting')
                            or s.state = 'needs_review' and s.reason_code in ('fate_unknown', 'last_update')
                        )
                    returning s.job_id, s.customer_id
                ), waiters as (
                    select w.job_id
                    from submission w
                    join accepted on accepted.customer_id = w.customer_id
                    where w.state = 'waiting' and w.waiting_for = 'customer'
                        and w.job_id <> accepted.job_id
                    for update of w skip locked
                ), woken as (
                    update submission w set due_at = now() from waiters where w.job_id = waiters.job_id
                )
                select count(*) as "accepted!" from accepted"#,
                claim.job_id,
                claim.attempt,
                self.worker,
                verdict.name(),
                acceptance.and_then(|acceptance| acceptance.reference.as_deref()),
                acceptance.and_then(|acceptance| acceptance.verification_status.as_deref()),
                self.limits.verification_after.as_secs_f64(),
            )
            .fetch_one(&self.pool),
        )
        .await?;
        Ok(accepted == 1)
    }
}

fn code(verdict: &Verdict) -> &'static str {
    verdict.detail().unwrap_or(verdict.name())
}

fn ended_so(claim: &Claim, verdict: &Verdict) -> String {
    format!("attempt {} ended {}", claim.attempt, verdict.name())
}

fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}
