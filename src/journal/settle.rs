//! What an attempt came to is written down, in one commit with what follows from it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;
use time::OffsetDateTime;
use tracing::warn;
use uuid::Uuid;

use crate::domain::outcome::{Outcome, Wait};
use crate::domain::verdict::{Acceptance, Rejection, Verdict};
use crate::journal::batch::Change;
use crate::journal::claim::wake_newest;
use crate::journal::history::chain::{Entry, Head, Subject};
use crate::journal::{Claim, Journal, JournalError, Limits, bounded, column};
use crate::seal::Fingerprinter;

/// What an attempt came to.
#[derive(Debug)]
pub struct AttemptResult {
    pub verdict: Verdict,
    /// The HTTP status, where one was seen.
    pub http_status: Option<u16>,
    /// The provider's words on a failure.
    pub provider_message: Option<String>,
    /// What went wrong on our side.
    pub error: Option<&'static str>,
    pub duration: Duration,
}

/// An attempt's result with what follows from it, as the rows will have it.
#[derive(Clone)]
pub(crate) struct Closing {
    claim: Claim,
    verdict: &'static str,
    detail: Option<&'static str>,
    http_status: Option<i32>,
    provider_message: Option<String>,
    error: Option<&'static str>,
    duration_ms: i32,
    state: &'static str,
    waiting_for: Option<&'static str>,
    due_in_seconds: Option<f64>,
    retries: i32,
    reason_code: Option<&'static str>,
    reason: Cow<'static, str>,
    keeps_payload: bool,
    acceptance: Option<Acceptance>,
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
            ..Closing::in_motion(claim, result, "waiting", wait.delay)
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
        self.close(Closing::in_motion(claim, result, "unknown", self.limits.read_back_after)).await
    }

    /// Writes it down with many others, or else alone.
    async fn close(&self, closing: Closing) -> Result<(), JournalError> {
        let closing = Arc::new(closing);
        if self.batches.write(Change::Close(Arc::clone(&closing))).await.is_some() {
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
        let is_done = bounded(async {
            let is_closed = self.close_alone(closing).await?;
            Ok(is_closed || self.was_done(closing).await?)
        })
        .await?;
        if is_done { Ok(()) } else { Err(JournalError::Fenced) }
    }

    /// Writes it down alone: waits for whoever holds the submission's row, and goes by what that
    /// one added to the history. Returns whether the claim was still there.
    async fn close_alone(&self, closing: &Closing) -> sqlx::Result<bool> {
        let mut tx = self.pool.begin().await?;
        let Some((head, now)) = Head::lock(&mut tx, closing.claim.job_id).await? else { return Ok(false) };
        let closing = Closing { claim: Claim { head, ..closing.claim }, ..closing.clone() };
        let (worker, fingerprinter) = (&self.worker, &self.fingerprinter);
        let closed =
            close_many(&mut tx, worker, fingerprinter, &self.limits, now, &[Arc::new(closing)]).await?;
        tx.commit().await?;
        Ok(closed == [Some(())])
    }

    /// Whether an earlier call whose answer was lost has written it. If not, a write that
    /// touched no row was fenced out.
    async fn was_done(&self, closing: &Closing) -> sqlx::Result<bool> {
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
        .fetch_one(&self.pool)
        .await
    }

    /// Adds the result of an attempt whose claim was lost. A late acceptance ends the
    /// submission, if nothing else has since, and fences out whoever holds it now; any
    /// other result is a note. Returns whether it ended the submission.
    pub async fn record_late(&self, claim: &Claim, verdict: &Verdict) -> Result<bool, JournalError> {
        bounded(async {
            let mut tx = self.pool.begin().await?;
            let Some((head, _now)) = Head::lock(&mut tx, claim.job_id).await? else { return Ok(false) };
            let subject = Subject { job_id: claim.job_id, customer_id: claim.customer_id };
            let entry = Entry::LateVerdict { number: claim.attempt, verdict: verdict.name() };
            let head = head.after(&self.fingerprinter, subject, &entry);
            let has_ended = self.add_late_verdict(&mut tx, claim, verdict, head).await?;
            tx.commit().await?;
            Ok(has_ended)
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

impl Closing {
    /// Where the job's chain stands once the attempt is closed.
    fn head_after(&self, fingerprinter: &Fingerprinter, worker: &str, ended_at: OffsetDateTime) -> Head {
        let claim = &self.claim;
        let subject = Subject { job_id: claim.job_id, customer_id: claim.customer_id };
        let entry = Entry::Attempt {
            number: claim.attempt,
            worker,
            begun_at: claim.begun_at,
            signed_at: claim.t0.wall.into(),
            ended_at,
            verdict: self.verdict,
            detail: self.detail.or(self.acceptance.as_ref().and_then(|a| a.reference.as_deref())),
            http_status: self.http_status,
            provider_message: self.provider_message.as_deref(),
            error: self.error,
            duration_ms: Some(self.duration_ms),
        };
        claim.head.after(fingerprinter, subject, &entry)
    }

    /// Whether it holds words of the provider's.
    fn has_texts(&self) -> bool {
        let acceptance = self.acceptance.as_ref();
        self.provider_message.is_some()
            || acceptance.is_some_and(|a| a.reference.is_some() || a.verification_status.is_some())
    }

    fn without_texts(&self) -> Self {
        let acceptance = self.acceptance.as_ref().map(|_| Acceptance::default());
        Self { provider_message: None, acceptance, ..self.clone() }
    }

    /// One that leaves the submission in motion, due after `due_in`.
    fn in_motion(claim: &Claim, result: &AttemptResult, state: &'static str, due_in: Duration) -> Self {
        let verdict = &result.verdict;
        Self {
            due_in_seconds: Some(due_in.as_secs_f64()),
            reason_code: verdict.detail().or(Some(verdict.name())),
            reason: format!("attempt {} ended {}", claim.attempt, verdict.name()).into(),
            keeps_payload: true,
            ..Self::of(claim, result, state)
        }
    }

    /// One that leaves the submission in `state`, without saying why.
    fn of(claim: &Claim, result: &AttemptResult, state: &'static str) -> Self {
        Self {
            claim: *claim,
            verdict: result.verdict.name(),
            detail: result.verdict.detail(),
            http_status: result.http_status.map(i32::from),
            provider_message: result.provider_message.clone(),
            error: result.error,
            duration_ms: millis(result.duration),
            state,
            waiting_for: None,
            due_in_seconds: None,
            retries: 0,
            reason_code: None,
            reason: Cow::default(),
            keeps_payload: false,
            acceptance: None,
        }
    }
}

/// Closes attempts, adds their results to the histories and moves their submissions on; whoever
/// releases a slot wakes the customer's newest waiter. Few have one, and few customers are at their
/// limit: statements of their own, which a batch without any is spared. `None` for those whose
/// claim is gone, or to whose history something was added since it was made: their results go
/// with other MACs. `now` is the transaction's time, which the rows get as `now()`.
pub(crate) async fn close_many(
    tx: &mut PgConnection,
    worker: &str,
    fingerprinter: &Fingerprinter,
    limits: &Limits,
    now: OffsetDateTime,
    closings: &[Arc<Closing>],
) -> sqlx::Result<Vec<Option<()>>> {
    if closings.is_empty() {
        return Ok(Vec::new());
    }
    let closings: Vec<&Closing> = closings.iter().map(Arc::as_ref).collect();
    let heads = column(&closings, |c| c.head_after(fingerprinter, worker, now));
    let closed = sqlx::query!(
        r#"-- close_attempts
        with closing as (
            select *
            from unnest(
                $1::uuid[], $2::bigint[], $3::integer[],
                $4::text[], $5::text[], $6::integer[], $7::text[], $8::text[], $9::integer[],
                $10::text[], $11::text[], $12::float8[], $13::integer[], $14::text[], $15::text[],
                $16::boolean[], $17::text[], $18::text[], $20::integer[], $21::bytea[]
            ) as c (
                job_id, token, number,
                verdict, detail, http_status, provider_message, error, duration_ms,
                state, waiting_for, due_in, retries, reason_code, reason,
                keeps_payload, provider_reference, verification_status, entry, chain
            )
        ), moved_on as (
            update submission s
            set state = c.state, waiting_for = c.waiting_for,
                due_at = now() + make_interval(secs => c.due_in), chain = c.chain, entries = c.entry,
                retries = s.retries + c.retries, reason_code = c.reason_code, reason = c.reason,
                ended_at = case when c.due_in is null then greatest(now(), s.received_at) end, claimed_until = null,
                sealed_payload = case when c.keeps_payload then s.sealed_payload end,
                provider_reference = c.provider_reference, verification_status = c.verification_status,
                evidence = case when c.state = 'accepted' then 'response' end,
                verification_due_at =
                    case when c.state = 'accepted' then now() + make_interval(secs => $19) end
            from closing c
            -- A state that the planner does not see: without statistics it would take the index
            -- of claims, and compare each closing with all that are claimed.
            where s.job_id = c.job_id and s.state = (select 'submitting') and s.claim_token = c.token
                and s.entries = c.entry - 1
            returning
                s.job_id, s.customer_id, c.number, c.entry, c.verdict, c.detail, c.http_status,
                c.provider_message, c.error, c.duration_ms, c.state
        ), closed as (
            update attempt a
            set ended_at = now(), entry = c.entry, verdict = c.verdict, detail = c.detail, http_status = c.http_status,
                provider_message = c.provider_message, error = c.error, duration_ms = c.duration_ms
            from moved_on c
            where a.job_id = c.job_id and a.number = c.number and a.ended_at is null
            returning a.job_id, c.customer_id, c.state
        )
        select
            job_id,
            -- In the order of the index that is meant: over empty tables any would do, for as long as
            -- the connection lives.
            state <> 'unknown' and (
                select w.job_id from submission w
                where w.customer_id = closed.customer_id and w.state = 'waiting'
                order by w.requested_at desc, w.received_at desc, w.job_id desc
                limit 1
            ) is not null as "has_waiters!"
        from closed"#,
        &column(&closings, |c| c.claim.job_id),
        &column(&closings, |c| c.claim.token),
        &column(&closings, |c| c.claim.attempt),
        &column(&closings, |c| c.verdict) as &[&str],
        &column(&closings, |c| c.detail) as &[Option<&str>],
        &column(&closings, |c| c.http_status) as &[Option<i32>],
        &column(&closings, |c| c.provider_message.as_deref()) as &[Option<&str>],
        &column(&closings, |c| c.error) as &[Option<&str>],
        &column(&closings, |c| c.duration_ms),
        &column(&closings, |c| c.state) as &[&str],
        &column(&closings, |c| c.waiting_for) as &[Option<&str>],
        &column(&closings, |c| c.due_in_seconds) as &[Option<f64>],
        &column(&closings, |c| c.retries),
        &column(&closings, |c| c.reason_code) as &[Option<&str>],
        &column(&closings, |c| &*c.reason) as &[&str],
        &column(&closings, |c| c.keeps_payload),
        &column(&closings, |c| c.acceptance.as_ref().and_then(|a| a.reference.as_deref()))
            as &[Option<&str>],
        &column(&closings, |c| c.acceptance.as_ref().and_then(|a| a.verification_status.as_deref()))
            as &[Option<&str>],
        limits.verification_after.as_secs_f64(),
        &heads.iter().map(|head| head.entries).collect::<Vec<_>>(),
        &heads.iter().map(|head| head.mac).collect::<Vec<_>>() as &[[u8; 32]],
    )
    .fetch_all(&mut *tx)
    .await?;
    let closed: HashMap<Uuid, bool> = closed.into_iter().map(|row| (row.job_id, row.has_waiters)).collect();
    let awaited = |c: &&Closing| closed.get(&c.claim.job_id) == Some(&true);
    wake_newest(tx, &customers(closings.iter().copied().filter(awaited))).await?;
    let limited = |c: &&Closing| {
        closed.contains_key(&c.claim.job_id) && c.reason_code == Some(Rejection::UpdateLimitExceeded.code())
    };
    note_limits(tx, &customers(closings.iter().copied().filter(limited))).await?;
    Ok(column(&closings, |c| closed.get(&c.claim.job_id).map(|_| ())))
}

fn customers<'a>(closings: impl Iterator<Item = &'a Closing>) -> Vec<Uuid> {
    closings.map(|closing| closing.claim.customer_id).collect()
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

fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}
