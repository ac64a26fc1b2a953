//! A delivery is written down: as a submission, or as what could not become one.

use sha2::{Digest as _, Sha256};
use sqlx::{PgConnection, PgTransaction};
use time::OffsetDateTime;
use uuid::Uuid;

use super::claim::{Contender, begin_attempt};
use super::{BUSY_WAIT_MAX_SECONDS, Claim, Journal, JournalError, bounded};
use crate::clock::Moment;
use crate::domain::job::{Envelope, Invalid, Job};
use crate::domain::outcome::{History, Outcome, WaitingFor};
use crate::domain::precedence::Ruling;

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
    /// It ended at once, for another job of its customer.
    Ended(Outcome),
    /// We have it already.
    Known,
    /// Its `job_id` is taken by another content.
    Conflict,
}

/// What stands under a `job_id` that is taken.
struct Found {
    is_invalid: bool,
    has_same_content: bool,
    is_our_claim: bool,
}

/// A job as its row will have it.
struct NewRow<'a> {
    job: &'a Job,
    received_at: OffsetDateTime,
    sealed: &'a [u8],
    content_hmac: &'a [u8],
}

/// A delivery that goes to the dead-letter queue.
#[derive(Clone, Copy)]
pub struct DeadLetter<'a> {
    /// The delivery.
    pub envelope: &'a Envelope<'a>,
    /// When it came.
    pub received_at: OffsetDateTime,
    /// Whether the broker may have handed it over before.
    pub is_redelivered: bool,
}

impl Journal {
    /// Writes a job down, in one commit: with its sealed payload, and claimed with its
    /// first attempt begun where `admission` says so and the customer's other jobs allow.
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
        bounded(async {
            let mut tx = self.pool.begin().await?;
            let opened = self.open_in(&mut tx, &row, admission).await?;
            tx.commit().await?;
            Ok(opened)
        })
        .await
    }

    async fn open_in(
        &self,
        tx: &mut PgTransaction<'_>,
        row: &NewRow<'_>,
        admission: Admission,
    ) -> sqlx::Result<Opened> {
        let job_id = row.job.id;
        loop {
            // The slot first: the unique index decides between replicas. Then the look, in a
            // statement of its own, whose snapshot is newer than the slot.
            if let Admission::Claim(t0) = admission
                && self.insert_claimed(tx, row).await?
            {
                return self.look_then_begin(tx, row, t0).await;
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

    async fn look_then_begin(
        &self,
        tx: &mut PgTransaction<'_>,
        row: &NewRow<'_>,
        t0: Moment,
    ) -> sqlx::Result<Opened> {
        let contender = Contender {
            job_id: row.job.id,
            customer_id: row.job.customer_id,
            requested_at: row.job.requested_at,
            received_at: row.received_at,
            content_hmac: Some(row.content_hmac.to_vec()),
            is_resend: false,
        };
        match contender.look(tx, self.limits.read_back_window).await? {
            Ruling::Go => {
                begin_attempt(tx, row.job.id, 1, &self.worker, t0).await?;
                Ok(Opened::Claimed(first_claim(row.job, t0)))
            }
            ruling => Ok(match contender.step_aside(tx, ruling).await? {
                Some(outcome) => Opened::Ended(outcome),
                None => Opened::Parked,
            }),
        }
    }

    async fn insert_claimed(&self, tx: &mut PgConnection, row: &NewRow<'_>) -> sqlx::Result<bool> {
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
            self.limits.claim_lease.as_secs_f64(),
        )
        .execute(tx)
        .await?;
        Ok(inserted.rows_affected() == 1)
    }

    async fn find(
        &self,
        tx: &mut PgConnection,
        row: &NewRow<'_>,
        admission: Admission,
    ) -> sqlx::Result<Option<Found>> {
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
        letter: DeadLetter<'_>,
        invalid: &Invalid,
    ) -> Result<(), JournalError> {
        let reason = invalid.to_string();
        bounded(async {
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
                    letter.received_at,
                )
                .execute(&mut *tx)
                .await?;
            }
            insert_dead_letter(&mut tx, letter, invalid.job_id, "invalid", &reason).await?;
            tx.commit().await
        })
        .await
    }

    /// Writes down a delivery whose `job_id` is taken by another content.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn record_conflict(&self, letter: DeadLetter<'_>, job_id: Uuid) -> Result<(), JournalError> {
        let reason =
            "/job_id: is taken by a job with another content; publish this one under an id of its own";
        bounded(async {
            let mut connection = self.pool.acquire().await?;
            insert_dead_letter(&mut connection, letter, Some(job_id), "conflict", reason).await
        })
        .await
    }

    /// Writes down a delivery that the worker failed on.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn record_worker_failed(&self, letter: DeadLetter<'_>) -> Result<(), JournalError> {
        let reason = "the worker failed on this delivery: a bug of its own; report it, and requeue the message after the fix";
        bounded(async {
            let mut connection = self.pool.acquire().await?;
            insert_dead_letter(&mut connection, letter, None, "worker_failed", reason).await
        })
        .await
    }
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
) -> sqlx::Result<bool> {
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
async fn delete_invalid(tx: &mut PgConnection, job_id: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "-- delete_invalid
        delete from submission where job_id = $1 and state = 'invalid'",
        job_id,
    )
    .execute(tx)
    .await?;
    Ok(())
}

async fn count_delivery(tx: &mut PgConnection, job_id: Uuid) -> sqlx::Result<()> {
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
pub(super) async fn insert_dead_letter(
    connection: &mut PgConnection,
    letter: DeadLetter<'_>,
    job_id: Option<Uuid>,
    reason_code: &str,
    reason: &str,
) -> sqlx::Result<()> {
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
        job_id,
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
