//! Attempts are closed, and their submissions moved on.

use std::collections::HashSet;
use std::time::Duration;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::domain::outcome::{Ended, Outcome, Wait};
use crate::domain::verdict::{Acceptance, Rejection, Verdict};
use crate::journal::history::chain::Head;
use crate::journal::rows::{AttemptResult, Limits};
use crate::journal::statements::claim::Claim;
use crate::journal::statements::move_on::{ClosedAttempt, Destination, Move, Why, move_on};
use crate::seal::Fingerprinter;

/// An attempt's result with what follows from it, as the rows will have it.
#[derive(Clone)]
pub(crate) struct Closing {
    pub claim: Claim,
    pub attempt: ClosedAttempt,
    pub to: Destination,
    /// Whether the attempt counts against `RETRY_MAX_ATTEMPTS`.
    pub is_retry: bool,
    /// When it was closed, if it is closed again; or else now.
    pub at: Option<OffsetDateTime>,
}

impl Closing {
    /// The job has ended.
    pub fn ended(claim: &Claim, result: &AttemptResult, outcome: &Outcome) -> Self {
        let error = outcome.note().or(result.error);
        let attempt = ClosedAttempt { error, ..closed(claim, result) };
        Self { claim: *claim, attempt, to: Destination::End(outcome.ended()), is_retry: false, at: None }
    }

    /// The job waits.
    pub fn waiting(claim: &Claim, result: &AttemptResult, wait: &Wait) -> Self {
        let why = Some(why(claim, &result.verdict));
        let to = Destination::Wait { waiting_for: wait.waiting_for, due_in: wait.delay, why };
        Self { claim: *claim, attempt: closed(claim, result), to, is_retry: wait.counts, at: None }
    }

    /// The job's outcome is unknown, and its customer is read after `due_in`.
    pub fn unknown(claim: &Claim, result: &AttemptResult, due_in: Duration) -> Self {
        let to = Destination::Read { due_in, why: Some(why(claim, &result.verdict)) };
        Self { claim: *claim, attempt: closed(claim, result), to, is_retry: false, at: None }
    }

    /// By what the batch tells it from others: a job has one claim of that token.
    pub fn key(&self) -> (Uuid, i64) {
        (self.claim.job.id, self.claim.token)
    }

    /// Whether it holds words of the provider's.
    pub fn has_texts(&self) -> bool {
        let acceptance = self.to.acceptance();
        self.attempt.provider_message.is_some()
            || acceptance.is_some_and(|a| a.reference.is_some() || a.verification_status.is_some())
    }

    pub fn without_texts(&self) -> Self {
        let attempt = ClosedAttempt { provider_message: None, ..self.attempt.clone() };
        let to = match &self.to {
            Destination::End(ended) => {
                let acceptance = ended.acceptance.as_ref().map(|_| Acceptance::default());
                Destination::End(Ended { acceptance, ..ended.clone() })
            }
            to => to.clone(),
        };
        Self { attempt, to, ..*self }
    }

    /// Where the job's chain stands once the attempt is closed.
    fn head_after(&self, fingerprinter: &Fingerprinter, worker: &str, ended_at: OffsetDateTime) -> Head {
        let claim = &self.claim;
        let times = [claim.begun_at, claim.t0.wall.into(), ended_at];
        let reference = self.to.acceptance().and_then(|acceptance| acceptance.reference.as_deref());
        let entry = self.attempt.entry(worker, times, reference);
        claim.head.after(fingerprinter, claim.subject(), &entry)
    }

    /// The same, closed again over a history that stands there.
    pub fn again(&self, head: Head, at: OffsetDateTime) -> Self {
        Self { claim: self.claim.at(head), at: Some(at), ..self.clone() }
    }

    fn says_limit_is_reached(&self) -> bool {
        let code = self.to.ended().and_then(|ended| ended.reason_code);
        code == Some(Rejection::UpdateLimitExceeded.code())
    }
}

fn closed(claim: &Claim, result: &AttemptResult) -> ClosedAttempt {
    ClosedAttempt {
        number: claim.attempt,
        verdict: result.verdict.name(),
        detail: result.verdict.detail(),
        http_status: result.http_status.map(i32::from),
        provider_message: result.provider_message.clone(),
        error: result.error,
        duration_ms: Some(i32::try_from(result.duration.as_millis()).unwrap_or(i32::MAX)),
        checked: result.checked,
    }
}

fn why(claim: &Claim, verdict: &Verdict) -> Why {
    Why {
        code: verdict.detail().unwrap_or(verdict.name()),
        text: format!("attempt {} ended {}", claim.attempt, verdict.name()).into(),
    }
}

/// Closes attempts, adds their results to the histories and moves their submissions on. Returns which:
/// not those whose claim is gone, nor those to whose history something was added since it was made, as
/// their results go with other MACs. `now` is the transaction's time, which the rows get as `now()`.
pub(crate) async fn close_many(
    tx: &mut PgConnection,
    worker: &str,
    fingerprinter: &Fingerprinter,
    limits: &Limits,
    now: OffsetDateTime,
    closings: &[&Closing],
) -> sqlx::Result<HashSet<(Uuid, i64)>> {
    let moves = closings.iter().map(|closing| Move {
        attempt: Some(&closing.attempt),
        is_retry: closing.is_retry,
        head: Some(closing.head_after(fingerprinter, worker, closing.at.unwrap_or(now))),
        at: closing.at,
        ..Move::new(closing.claim.position(), &closing.to)
    });
    let closed = move_on(tx, limits.at_end, &moves.collect::<Vec<_>>()).await?;
    // Few customers are at their limit: a statement of its own, which a batch without any is spared.
    let limited = closings.iter().filter(|c| c.says_limit_is_reached() && closed.contains(&c.key()));
    let limited: Vec<Uuid> = limited.map(|closing| closing.claim.customer_id).collect();
    note_limits(tx, &limited).await?;
    Ok(closed)
}

/// The provider has just said of these customers that their updates are used up.
async fn note_limits(tx: &mut PgConnection, customers: &[Uuid]) -> sqlx::Result<()> {
    if customers.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "-- note_limits
        insert into customer (customer_id, limit_reached_at)
        select distinct customer_id, now() from unnest($1::uuid[]) as limited (customer_id)
        order by customer_id
        on conflict (customer_id) do update set limit_reached_at = now()",
        customers,
    )
    .execute(tx)
    .await?;
    Ok(())
}
