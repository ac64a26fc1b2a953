//! The life of a submission, a statement a step: open, claim again, settle, park.

use std::time::Duration;

use sha2::{Digest as _, Sha256};
use sqlx::{PgConnection, PgTransaction};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Journal, JournalError};
use crate::clock::Moment;
use crate::domain::job::{Envelope, Invalid, Job, UpdateRequest};
use crate::domain::outcome::{History, Outcome, Review, Wait, WaitingFor};
use crate::domain::verdict::Verdict;

/// How a new job is let in.
#[derive(Clone, Copy, Debug)]
pub enum Admission {
    /// It is claimed and its first attempt begun, if its customer is free.
    Claim(Moment),
    /// It waits, due at once.
    Park(WaitingFor),
}

/// What became of a valid job.
#[derive(Debug)]
pub enum Opened {
    /// It is ours to submit, and its first attempt is begun.
    Claimed(Claim),
    /// It waits.
    Parked,
    /// We have it already.
    Known,
    /// Its `job_id` is taken by another content.
    Conflict,
}

/// The right to make one attempt now.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// The job.
    pub job_id: Uuid,
    /// The customer.
    pub customer_id: Uuid,
    /// Grows with every claim of the job; fences out whoever held an older one.
    pub token: i64,
    /// The attempt's number.
    pub attempt: i32,
    /// The attempts before it.
    pub history: History,
    /// When this attempt's send window began.
    pub t0: Moment,
}

/// A job that waited, claimed again.
pub struct ClaimedJob {
    /// The claim.
    pub claim: Claim,
    /// What to submit, or why it cannot be opened.
    pub request: anyhow::Result<UpdateRequest>,
    /// Upstream's own name for what the job belongs to.
    pub correlation_id: Option<String>,
}

/// What an attempt came to.
#[derive(Debug)]
pub struct AttemptResult {
    /// What it means.
    pub verdict: Verdict,
    /// The HTTP status, where one was seen.
    pub http_status: Option<u16>,
    /// The provider's words on a failure.
    pub provider_message: Option<String>,
    /// How long it took.
    pub duration: Duration,
}

/// A submission whose owner vanished.
#[derive(Debug)]
pub struct TakenOver {
    /// The job.
    pub job_id: Uuid,
    /// Its customer.
    pub customer_id: Option<Uuid>,
    /// Who held it.
    pub claimed_by: Option<String>,
    /// The attempt that was open.
    pub attempt: i32,
}

/// How long a job whose customer is busy waits at most before it looks again.
const BUSY_WAIT_MAX_SECONDS: f64 = 30.0;

/// What stands under a `job_id` that is taken.
struct Found {
    is_invalid: bool,
    has_same_content: bool,
    is_our_claim: bool,
}

impl Journal {
    /// Writes a job down, in one commit: with its sealed payload, and claimed with its
    /// first attempt begun where `admission` says so and the customer is free.
    ///
    /// Calling it again after an error is safe, with the same `admission`: what a lost
    /// answer had committed is found again.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn open(
        &self,
        job: &Job,
        received_at: OffsetDateTime,
        admission: Admission,
    ) -> Result<Opened, JournalError> {
        let payload = job.request.to_sealable();
        let sealed = self.keyring.seal(job.id, payload.as_bytes());
        let content_hmac = self.fingerprinter.content(&job.request.fingerprint_text());
        let row = NewRow { job, received_at, sealed: &sealed, content_hmac: &content_hmac };

        let mut tx = self.pool.begin().await?;
        let opened = self.open_in(&mut tx, &row, admission).await?;
        tx.commit().await?;
        Ok(opened)
    }

    async fn open_in(
        &self,
        tx: &mut PgTransaction<'_>,
        row: &NewRow<'_>,
        admission: Admission,
    ) -> Result<Opened, JournalError> {
        let job_id = row.job.id;
        loop {
            // The slot first: the unique index decides between replicas, not a look.
            if let Admission::Claim(t0) = admission
                && self.insert_claimed(tx, row).await?
            {
                self.begin_attempt(tx, job_id, t0).await?;
                return Ok(Opened::Claimed(first_claim(row.job, t0)));
            }
            match self.find(tx, row, admission).await? {
                Some(found) if found.is_invalid => delete_invalid(tx, job_id).await?,
                Some(found) if found.is_our_claim => {
                    // An earlier call's commit, whose answer was lost.
                    if let Admission::Claim(t0) = admission {
                        return Ok(Opened::Claimed(first_claim(row.job, t0)));
                    }
                }
                Some(found) if found.has_same_content => {
                    count_delivery(tx, job_id).await?;
                    return Ok(Opened::Known);
                }
                Some(_) => return Ok(Opened::Conflict),
                None => {
                    let waiting_for = match admission {
                        Admission::Claim(_) => WaitingFor::Customer,
                        Admission::Park(waiting_for) => waiting_for,
                    };
                    if insert_waiting(tx, row, waiting_for).await? {
                        return Ok(Opened::Parked);
                    }
                }
            }
        }
    }

    async fn insert_claimed(&self, tx: &mut PgConnection, row: &NewRow<'_>) -> Result<bool, sqlx::Error> {
        let NewRow { job, received_at, sealed, content_hmac } = row;
        let inserted = sqlx::query!(
            "-- insert_claimed
            insert into submission (
                job_id, customer_id, document_type, document_number_last4, content_hmac,
                requested_at, received_at, expires_at, correlation_id, sealed_payload,
                state, attempts, claim_token, claimed_by, claimed_until
            )
            values (
                $1, $2, $3, $4, $5, $6, $7, $8, $9, $10,
                'submitting', 1, 1, $11, now() + make_interval(secs => $12)
            )
            on conflict do nothing",
            job.id,
            job.customer_id,
            job.request.document_type(),
            job.request.document_number_last4(),
            *content_hmac,
            job.requested_at,
            *received_at,
            job.expires_at,
            job.correlation_id,
            *sealed,
            self.worker,
            self.claim_lease.as_secs_f64(),
        )
        .execute(tx)
        .await?;
        Ok(inserted.rows_affected() == 1)
    }

    async fn begin_attempt(
        &self,
        tx: &mut PgConnection,
        job_id: Uuid,
        t0: Moment,
    ) -> Result<(), sqlx::Error> {
        sqlx::query!(
            "-- begin_attempt
            insert into attempt (job_id, number, worker, signed_at) values ($1, 1, $2, $3)",
            job_id,
            self.worker,
            OffsetDateTime::from(t0.wall),
        )
        .execute(tx)
        .await?;
        Ok(())
    }

    async fn find(
        &self,
        tx: &mut PgConnection,
        row: &NewRow<'_>,
        admission: Admission,
    ) -> Result<Option<Found>, sqlx::Error> {
        let signed_at = match admission {
            Admission::Claim(t0) => Some(OffsetDateTime::from(t0.wall)),
            Admission::Park(_) => None,
        };
        // A forgotten customer's rows have no fingerprint: they count as the same content.
        sqlx::query_as!(
            Found,
            r#"-- find
            select
                s.state = 'invalid' as "is_invalid!",
                coalesce(s.content_hmac = $2, true) as "has_same_content!",
                coalesce(
                    s.state = 'submitting' and s.claim_token = 1
                        and a.worker = $3 and a.signed_at = $4 and a.ended_at is null,
                    false
                ) as "is_our_claim!"
            from submission s
            left join attempt a on a.job_id = s.job_id and a.number = 1
            where s.job_id = $1
            for update of s"#,
            row.job.id,
            row.content_hmac,
            self.worker,
            signed_at,
        )
        .fetch_optional(tx)
        .await
    }

    /// Writes down a delivery that is no job, in one commit. Where its `job_id` can be
    /// read and is not taken, it gets a submission too, so that upstream finds it there.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn record_invalid(
        &self,
        envelope: &Envelope<'_>,
        received_at: OffsetDateTime,
        is_redelivered: bool,
        invalid: &Invalid,
    ) -> Result<(), JournalError> {
        let reason = invalid.to_string();
        let mut tx = self.pool.begin().await?;
        if let Some(job_id) = invalid.job_id {
            sqlx::query!(
                "-- insert_invalid
                insert into submission (job_id, customer_id, state, reason_code, reason, received_at, ended_at)
                values ($1, $2, 'invalid', 'invalid', $3, $4, now())
                on conflict (job_id) do update
                    set deliveries = submission.deliveries + 1, reason = excluded.reason
                    where submission.state = 'invalid'",
                job_id,
                invalid.customer_id,
                reason,
                received_at,
            )
            .execute(&mut *tx)
            .await?;
        }
        let letter = DeadLetter { envelope, received_at, is_redelivered, job_id: invalid.job_id };
        insert_dead_letter(&mut tx, &letter, "invalid", &reason).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Writes down a delivery whose `job_id` is taken by another content.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn record_conflict(
        &self,
        envelope: &Envelope<'_>,
        received_at: OffsetDateTime,
        is_redelivered: bool,
        job_id: Uuid,
    ) -> Result<(), JournalError> {
        let reason =
            "/job_id: is taken by a job with another content; publish this one under an id of its own";
        let letter = DeadLetter { envelope, received_at, is_redelivered, job_id: Some(job_id) };
        let mut connection = self.pool.acquire().await?;
        insert_dead_letter(&mut connection, &letter, "conflict", reason).await?;
        Ok(())
    }

    /// Claims the job that has been due the longest, of a customer who is free, and
    /// begins its next attempt, in one commit. `None` if there is none.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn next_attempt(&self, t0: Moment) -> Result<Option<ClaimedJob>, JournalError> {
        let claimed = sqlx::query!(
            r#"-- next_attempt
            with due as (
                select s.job_id
                from submission s
                where s.state = 'waiting' and s.due_at <= now()
                    and (s.expires_at is null or s.expires_at > now())
                    and not exists (
                        select from submission holder
                        where holder.customer_id = s.customer_id
                            and holder.state in ('submitting', 'unknown')
                    )
                order by s.due_at
                limit 1
                for update of s skip locked
            ), claimed as (
                update submission s
                set state = 'submitting', waiting_for = null, due_at = null,
                    reason_code = null, reason = null,
                    attempts = s.attempts + 1, claim_token = s.claim_token + 1,
                    claimed_by = $1, claimed_until = now() + make_interval(secs => $2)
                from due
                where s.job_id = due.job_id
                returning s.*
            ), begun as (
                insert into attempt (job_id, number, worker, signed_at)
                select job_id, attempts, $1, $3 from claimed
            )
            select
                job_id as "job_id!", customer_id as "customer_id!", claim_token as "token!",
                attempts as "attempt!", retries as "retries!", sealed_payload as "sealed!",
                correlation_id,
                (
                    select count(*) from attempt a
                    where a.job_id = claimed.job_id and a.verdict = 'misconfigured'
                ) as "misconfigured!"
            from claimed"#,
            self.worker,
            self.claim_lease.as_secs_f64(),
            OffsetDateTime::from(t0.wall),
        )
        .fetch_optional(&self.pool)
        .await;
        let row = match claimed {
            Ok(Some(row)) => row,
            Ok(None) => return Ok(None),
            // Another replica took this customer's slot between our look and our claim.
            Err(sqlx::Error::Database(error)) if error.is_unique_violation() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let history = History {
            retries: row.retries.unsigned_abs(),
            misconfigured: u32::try_from(row.misconfigured).unwrap_or(u32::MAX),
            is_trial: false,
        };
        let claim = Claim {
            job_id: row.job_id,
            customer_id: row.customer_id,
            token: row.token,
            attempt: row.attempt,
            history,
            t0,
        };
        let request = self.open_payload(row.job_id, &row.sealed);
        Ok(Some(ClaimedJob { claim, request, correlation_id: row.correlation_id }))
    }

    fn open_payload(&self, job_id: Uuid, sealed: &[u8]) -> anyhow::Result<UpdateRequest> {
        let payload = self.keyring.open(job_id, sealed)?;
        let text = String::from_utf8(payload)?;
        Ok(UpdateRequest::from_sealed(&text)?)
    }

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
        let settled = sqlx::query_scalar!(
            r#"-- settle
            with settled as (
                update submission
                set state = $4, reason_code = $5, reason = $6, ended_at = now(), claimed_until = null,
                    sealed_payload = case when $7 then sealed_payload end,
                    provider_reference = $8, verification_status = $9,
                    evidence = case when $4 = 'accepted' then 'response' end
                where job_id = $1 and state = 'submitting' and claim_token = $2
                returning job_id, customer_id
            ), closed as (
                update attempt a
                set ended_at = now(), verdict = $10, detail = $11, http_status = $12,
                    provider_message = $13, duration_ms = $14
                from settled
                where a.job_id = settled.job_id and a.number = $3 and a.ended_at is null
                returning a.job_id
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
            outcome.reason(),
            outcome.keeps_payload(),
            acceptance.and_then(|acceptance| acceptance.reference.as_deref()),
            acceptance.and_then(|acceptance| acceptance.verification_status.as_deref()),
            result.verdict.name(),
            result.verdict.detail(),
            result.http_status.map(i32::from),
            result.provider_message,
            millis(result.duration),
        )
        .fetch_one(&self.pool)
        .await?;
        self.check_touched(settled, claim, result).await
    }

    /// Parks a submission: the attempt's result and the due time, in one commit. Wakes
    /// the customer's next. Safe to call again after an error.
    ///
    /// # Errors
    /// [`JournalError::Fenced`] when the claim is no longer ours; else the database's.
    pub async fn park(&self, claim: &Claim, result: &AttemptResult, wait: &Wait) -> Result<(), JournalError> {
        let parked = sqlx::query_scalar!(
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
                    provider_message = $12, duration_ms = $13
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
            result.verdict.detail().unwrap_or(result.verdict.name()),
            format!("attempt {} ended {}", claim.attempt, result.verdict.name()),
            result.verdict.name(),
            result.verdict.detail(),
            result.http_status.map(i32::from),
            result.provider_message,
            millis(result.duration),
        )
        .fetch_one(&self.pool)
        .await?;
        self.check_touched(parked, claim, result).await
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
        let is_done = sqlx::query_scalar!(
            r#"-- is_done
            select exists (
                select from attempt a
                join submission s on s.job_id = a.job_id
                where a.job_id = $1 and a.number = $2 and a.worker = $3 and a.verdict = $4
                    and a.duration_ms = $5 and s.claim_token = $6
            ) as "is_done!""#,
            claim.job_id,
            claim.attempt,
            self.worker,
            result.verdict.name(),
            millis(result.duration),
            claim.token,
        )
        .fetch_one(&self.pool)
        .await?;
        if is_done { Ok(()) } else { Err(JournalError::Fenced) }
    }

    /// Ends up to `limit` submissions whose worker vanished after it had begun an attempt:
    /// the attempt's fate is unknown, and nothing is sent again.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn take_over(&self, limit: i64) -> Result<Vec<TakenOver>, JournalError> {
        let review = Outcome::NeedsReview(Review::FateUnknown);
        let taken = sqlx::query_as!(
            TakenOver,
            r#"-- take_over
            with expired as (
                select job_id
                from submission
                where state = 'submitting' and claimed_until < now()
                order by claimed_until
                limit $1
                for update skip locked
            ), taken as (
                update submission s
                set state = 'needs_review', reason_code = $2, reason = $3, ended_at = now(),
                    claim_token = s.claim_token + 1, claimed_until = null
                from expired
                where s.job_id = expired.job_id
                returning s.job_id, s.customer_id, s.claimed_by, s.attempts
            ), closed as (
                update attempt a
                set ended_at = now(), verdict = 'unknown', detail = 'worker_vanished',
                    error = 'the worker''s claim ran out before it recorded a result'
                from taken
                where a.job_id = taken.job_id and a.ended_at is null
            ), waiters as (
                select w.job_id
                from submission w
                join taken on taken.customer_id = w.customer_id
                where w.state = 'waiting' and w.waiting_for = 'customer'
                for update of w skip locked
            ), woken as (
                update submission w set due_at = now() from waiters where w.job_id = waiters.job_id
            )
            select job_id, customer_id, claimed_by, attempts as attempt from taken"#,
            limit,
            review.reason_code(),
            review.reason(),
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(taken)
    }

    /// Ends up to `limit` waiting submissions whose `expires_at` has passed.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn expire(&self, limit: i64) -> Result<Vec<Uuid>, JournalError> {
        let expired = Outcome::Exhausted(crate::domain::outcome::Exhaustion::Expired);
        let ids = sqlx::query_scalar!(
            "-- expire
            with expired as (
                select job_id
                from submission
                where state = 'waiting' and due_at <= now() and expires_at <= now()
                order by due_at
                limit $1
                for update skip locked
            )
            update submission s
            set state = 'exhausted', waiting_for = null, due_at = null,
                reason_code = $2, reason = $3, ended_at = now()
            from expired
            where s.job_id = expired.job_id
            returning s.job_id",
            limit,
            expired.reason_code(),
            expired.reason(),
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(ids)
    }

    /// Puts off up to `limit` due submissions whose customer another one holds, until the
    /// holder's lease ends or 30 s have passed, whichever is sooner.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn postpone_busy(&self, limit: i64) -> Result<u64, JournalError> {
        let postponed = sqlx::query!(
            "-- postpone_busy
            with busy as (
                select s.job_id, holder.claimed_until
                from submission s
                join submission holder
                    on holder.customer_id = s.customer_id and holder.state in ('submitting', 'unknown')
                where s.state = 'waiting' and s.due_at <= now()
                order by s.due_at
                limit $1
                for update of s skip locked
            )
            update submission s
            set waiting_for = 'customer',
                due_at = greatest(
                    now() + interval '100 ms',
                    least(busy.claimed_until, now() + make_interval(secs => $2))
                )
            from busy
            where s.job_id = busy.job_id",
            limit,
            BUSY_WAIT_MAX_SECONDS,
        )
        .execute(&self.pool)
        .await?;
        Ok(postponed.rows_affected())
    }

    /// How long until the next waiting submission is due; zero if one is due now.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn next_due(&self) -> Result<Option<Duration>, JournalError> {
        let seconds = sqlx::query_scalar!(
            r#"-- next_due
            select extract(epoch from min(due_at) - now())::float8
            from submission
            where state in ('waiting', 'unknown')"#
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default()))
    }

    /// How many submissions are in motion.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn count_in_motion(&self) -> Result<i64, JournalError> {
        let count = sqlx::query_scalar!(
            r#"-- count_in_motion
            select (select count(*) from submission where state in ('waiting', 'unknown'))
                + (select count(*) from submission where state = 'submitting') as "count!""#
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(count)
    }
}

/// A job as its row will have it.
struct NewRow<'a> {
    job: &'a Job,
    received_at: OffsetDateTime,
    sealed: &'a [u8],
    content_hmac: &'a [u8],
}

struct DeadLetter<'a> {
    envelope: &'a Envelope<'a>,
    received_at: OffsetDateTime,
    is_redelivered: bool,
    job_id: Option<Uuid>,
}

fn first_claim(job: &Job, t0: Moment) -> Claim {
    Claim {
        job_id: job.id,
        customer_id: job.customer_id,
        token: 1,
        attempt: 1,
        history: History::default(),
        t0,
    }
}

async fn insert_waiting(
    tx: &mut PgConnection,
    row: &NewRow<'_>,
    waiting_for: WaitingFor,
) -> Result<bool, sqlx::Error> {
    let NewRow { job, received_at, sealed, content_hmac } = row;
    let inserted = sqlx::query!(
        "-- insert_waiting
        insert into submission (
            job_id, customer_id, document_type, document_number_last4, content_hmac,
            requested_at, received_at, expires_at, correlation_id, sealed_payload,
            state, waiting_for, due_at
        )
        values (
            $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 'waiting', $11,
            coalesce(
                (
                    select least(holder.claimed_until, now() + make_interval(secs => $12))
                    from submission holder
                    where holder.customer_id = $2 and holder.state in ('submitting', 'unknown')
                ),
                now()
            )
        )
        on conflict (job_id) do nothing",
        job.id,
        job.customer_id,
        job.request.document_type(),
        job.request.document_number_last4(),
        *content_hmac,
        job.requested_at,
        *received_at,
        job.expires_at,
        job.correlation_id,
        *sealed,
        waiting_for.name(),
        BUSY_WAIT_MAX_SECONDS,
    )
    .execute(tx)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

/// An invalid delivery is no claim on a `job_id`: a valid one starts afresh.
async fn delete_invalid(tx: &mut PgConnection, job_id: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "-- delete_invalid
        delete from submission where job_id = $1 and state = 'invalid'",
        job_id,
    )
    .execute(tx)
    .await?;
    Ok(())
}

async fn count_delivery(tx: &mut PgConnection, job_id: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "-- count_delivery
        update submission set deliveries = deliveries + 1 where job_id = $1",
        job_id,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Only a delivery that may be a redelivery is compared with the rows that are there:
/// two equal messages are two dead letters.
async fn insert_dead_letter(
    connection: &mut PgConnection,
    letter: &DeadLetter<'_>,
    reason_code: &str,
    reason: &str,
) -> Result<(), sqlx::Error> {
    let body_sha256 = Sha256::digest(letter.envelope.body);
    // Postgres keeps no NUL in a text, and a delivery that cannot be written down stays for ever.
    let message_id = letter.envelope.message_id.map(|id| id.replace('\0', "\u{fffd}"));
    sqlx::query!(
        "-- insert_dead_letter
        insert into dead_lettered_delivery (
            message_id, job_id, received_at, size, body_sha256, reason_code, reason
        )
        select $1, $2, $3, $4, $5, $6, $7
        where not $8 or not exists (
            select from dead_lettered_delivery
            where body_sha256 = $5 and message_id is not distinct from $1 and reason_code = $6
        )",
        message_id,
        letter.job_id,
        letter.received_at,
        i32::try_from(letter.envelope.body.len()).unwrap_or(i32::MAX),
        &body_sha256[..],
        reason_code,
        reason,
        letter.is_redelivered,
    )
    .execute(connection)
    .await?;
    Ok(())
}

fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}
