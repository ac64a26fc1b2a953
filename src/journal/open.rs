//! A delivery is written down: as a submission, or as what could not become one.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use sqlx::{PgConnection, PgTransaction};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::clock::Moment;
use crate::domain::job::{Envelope, Invalid, Job, Whole};
use crate::domain::outcome::{History, Outcome, WaitingFor};
use crate::domain::precedence::Decision;
use crate::journal::batch::{Change, Written};
use crate::journal::claim::{Beginning, Candidate, begin_attempts, look, wake_newest};
use crate::journal::history::chain::Head;
use crate::journal::maintenance::{FAR_WAIT_SECONDS, NEAR_WAIT_MIN_SECONDS};
use crate::journal::{Claim, Journal, JournalError, Limits, bounded, column};

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
    Parked,
    /// It ended at once, for another job of its customer.
    Ended(Outcome),
    Known,
    /// Its `job_id` is taken by another content.
    Conflict,
    /// The database cannot hold one of its values.
    Refused,
}

/// What stands under a `job_id` that is taken.
struct Found {
    is_invalid: bool,
    has_same_content: bool,
    is_our_claim: bool,
    begun_at: Option<OffsetDateTime>,
}

/// A job that was let in and claimed.
struct Inserted {
    job_id: Uuid,
    begun_at: OffsetDateTime,
}

/// What is expected of the `job_id`s and the customers' slots of new jobs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Slots {
    /// None is taken. If one is, nothing is written: a unique violation.
    Free,
    /// Some may be taken, and nothing is written of those. Postgres looks each of them up before
    /// it inserts, holds a lock of its own while it does, and logs that it did.
    MaybeTaken,
}

/// A job as its row will have it.
pub(crate) struct NewRow {
    job_id: Uuid,
    customer_id: Uuid,
    document_type: String,
    document_number_last4: String,
    content_hmac: [u8; 32],
    requested_at: OffsetDateTime,
    received_at: OffsetDateTime,
    expires_at: Option<OffsetDateTime>,
    correlation_id: Option<String>,
    sealed: Vec<u8>,
    /// When the send window of its first attempt began, if it is to be claimed.
    t0: Option<Moment>,
}

/// A job whose customer is busy.
struct Behind<'a> {
    row: &'a NewRow,
    /// How it ends at once, if it does.
    outcome: Option<Outcome>,
    /// Whether it is the newest of its customer's here.
    is_newest: bool,
}

/// A delivery that goes to the dead-letter queue.
#[derive(Clone, Copy)]
pub struct DeadLetter<'a> {
    pub envelope: &'a Envelope<'a>,
    pub received_at: OffsetDateTime,
    /// Whether the broker may have handed it over before.
    pub is_redelivered: bool,
}

impl Journal {
    /// Writes a job down, in one commit: with its sealed payload, and claimed with its
    /// first attempt begun where `admission` says so and the customer's other jobs allow.
    /// Jobs whose customers are free are written many at a time.
    ///
    /// Calling it again after an error is safe, with the same `admission`: what a lost
    /// answer had committed is found again.
    pub async fn open(
        &self,
        job: &Job,
        received_at: OffsetDateTime,
        admission: Admission,
    ) -> Result<Opened, JournalError> {
        let row = Arc::new(self.row(job, received_at, admission));
        if row.t0.is_some()
            && let Some(Written::Opened(opened)) = self.batches.write(Change::Open(Arc::clone(&row))).await
        {
            return Ok(opened);
        }
        // No semaphore of ours is ever closed.
        let _turn = self.opening.acquire().await;
        // Rare, and large: not to be carried about by every job.
        let opened = Box::pin(bounded(async {
            let mut tx = self.pool.begin().await?;
            let opened = self.open_alone(&mut tx, &row, admission).await?;
            tx.commit().await?;
            Ok(opened)
        }))
        .await;
        match opened {
            Err(error) if error.is_of_a_value() => Ok(Opened::Refused),
            opened => opened,
        }
    }

    fn row(&self, job: &Job, received_at: OffsetDateTime, admission: Admission) -> NewRow {
        let request = &job.request;
        NewRow {
            job_id: job.id,
            customer_id: job.customer_id,
            document_type: request.document_type().to_owned(),
            document_number_last4: request.document_number_last4().to_owned(),
            content_hmac: self.fingerprinter.content(&job.fingerprint_text),
            requested_at: job.requested_at,
            received_at,
            expires_at: job.expires_at,
            correlation_id: job.correlation_id.clone(),
            sealed: self.keyring.seal(job.id, request.to_sealable()),
            t0: match admission {
                Admission::Claim(t0) => Some(t0),
                Admission::Park(_) => None,
            },
        }
    }

    async fn open_alone(
        &self,
        tx: &mut PgTransaction<'_>,
        row: &Arc<NewRow>,
        admission: Admission,
    ) -> sqlx::Result<Opened> {
        loop {
            if row.t0.is_some()
                && let Some(opened) =
                    open_many(tx, &self.worker, &self.limits, Slots::MaybeTaken, &[Arc::clone(row)])
                        .await?
                        .pop()
                        .flatten()
            {
                return Ok(opened);
            }
            match self.find(tx, row).await? {
                Some(found) if found.is_invalid => delete_invalid(tx, row.job_id).await?,
                // An earlier call's commit, whose answer was lost.
                Some(Found { is_our_claim: true, begun_at: Some(begun_at), .. }) => {
                    return Ok(Opened::Claimed(row.claim(begun_at)));
                }
                Some(found) if found.has_same_content => {
                    count_delivery(tx, row.job_id).await?;
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

    async fn find(&self, tx: &mut PgConnection, row: &NewRow) -> sqlx::Result<Option<Found>> {
        // A forgotten customer's rows have no fingerprint. What is left of the content tells it from
        // another customer's job, or one of another document.
        sqlx::query_as!(
            Found,
            r#"-- find
            select
                s.state = 'invalid' as "is_invalid!",
                coalesce(
                    s.content_hmac = $2, (s.customer_id, s.document_type) = ($5, $6), false
                ) as "has_same_content!",
                coalesce(
                    s.state = 'submitting' and s.claim_token = 1
                        and a.worker = $3 and a.signed_at = $4 and a.ended_at is null,
                    false
                ) as "is_our_claim!",
                a.begun_at as "begun_at?"
            from submission s
            left join attempt a on a.job_id = s.job_id and a.number = 1
            where s.job_id = $1
            for update of s"#,
            row.job_id,
            &row.content_hmac,
            self.worker,
            row.t0.map(|t0| OffsetDateTime::from(t0.wall)),
            row.customer_id,
            row.document_type,
        )
        .fetch_optional(tx)
        .await
    }

    /// Writes down a delivery that is no job, in one commit. Where its `job_id` can be
    /// read and is not taken, it gets a submission too, so that upstream finds it there.
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
                    values ($1, $2, 'invalid', 'invalid', $3, $4, greatest(now(), $4))
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
    pub async fn record_worker_failed(&self, letter: DeadLetter<'_>) -> Result<(), JournalError> {
        let reason = "the worker failed on this delivery: a bug of its own; report it, and requeue the message after the fix";
        bounded(async {
            let mut connection = self.pool.acquire().await?;
            insert_dead_letter(&mut connection, letter, None, "worker_failed", reason).await
        })
        .await
    }
}

impl NewRow {
    /// The claim that goes with its first attempt. A new job has no history yet; where something
    /// was added to it meanwhile, the attempt's result is not written before that was looked at.
    fn claim(&self, begun_at: OffsetDateTime) -> Claim {
        Claim {
            job_id: self.job_id,
            customer_id: self.customer_id,
            token: 1,
            attempt: 1,
            history: History::default(),
            t0: self.t0.unwrap_or_else(Moment::now),
            begun_at,
            head: Head::default(),
        }
    }

    /// By which a customer's jobs are ordered; the greatest is the newest.
    fn age_key(&self) -> (OffsetDateTime, OffsetDateTime, Uuid) {
        (self.requested_at, self.received_at, self.job_id)
    }

    fn candidate(&self) -> Candidate {
        Candidate {
            job_id: self.job_id,
            customer_id: self.customer_id,
            requested_at: self.requested_at,
            received_at: self.received_at,
            content_hmac: Some(self.content_hmac.to_vec()),
            is_resend: false,
        }
    }
}

/// Claims jobs and begins their first attempts; those whose customer's slot is taken, be it by another
/// of them, wait behind it. `None` for those whose `job_id` is taken: nothing is written of them.
///
/// The slots first: the unique index decides between replicas. Then the read of the customer's other
/// jobs, in a statement of its own, whose snapshot is newer than the slots.
pub(crate) async fn open_many(
    tx: &mut PgConnection,
    worker: &str,
    limits: &Limits,
    slots: Slots,
    rows: &[Arc<NewRow>],
) -> sqlx::Result<Vec<Option<Opened>>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    // Of two with one job_id the second goes alone, and is compared with the first.
    let (mut job_ids, mut customers) =
        (HashSet::with_capacity(rows.len()), HashSet::with_capacity(rows.len()));
    let (first, mut behind): (Vec<&NewRow>, Vec<&NewRow>) = rows
        .iter()
        .map(Arc::as_ref)
        .filter(|row| job_ids.insert(row.job_id))
        .partition(|row| customers.insert(row.customer_id));
    let begun = insert_claimed(tx, worker, limits, slots, &first).await?;
    let mut claimed: Vec<(&NewRow, OffsetDateTime)> = Vec::with_capacity(begun.len());
    for row in first {
        match begun.get(&row.job_id) {
            Some(begun_at) => claimed.push((row, *begun_at)),
            None => behind.push(row),
        }
    }
    let candidates: Vec<Candidate> = claimed.iter().map(|(row, _)| row.candidate()).collect();
    let decisions = look(tx, &candidates, limits.read_back_window).await?;
    let (mut opened, mut beginning) = (HashMap::with_capacity(claimed.len()), Vec::new());
    for (((row, begun_at), candidate), decision) in claimed.into_iter().zip(&candidates).zip(decisions) {
        let became = match decision {
            Decision::Go => {
                let claim = row.claim(begun_at);
                beginning.push(Beginning { job_id: claim.job_id, attempt: claim.attempt, t0: claim.t0 });
                Opened::Claimed(claim)
            }
            decision => match candidate.yield_slot(tx, decision).await? {
                Some(outcome) => Opened::Ended(outcome),
                None => Opened::Parked,
            },
        };
        opened.insert(row.job_id, became);
    }
    begin_attempts(tx, worker, &beginning).await?;
    if !behind.is_empty() {
        opened.extend(open_behind(tx, limits, &behind).await?);
    }
    Ok(rows.iter().map(|row| opened.remove(&row.job_id)).collect())
}

/// Writes jobs down that found their customers busy: they wait, or end where a newer one was accepted.
/// Those whose `job_id` is taken are left out.
///
/// Whoever releases the slot wakes the newest job that waits, but sees none whose commit comes after
/// its own statement. So the newest of these has a near alarm. The others need none: whoever sees
/// them sees a newer one, which wakes the next when it ends.
async fn open_behind(
    tx: &mut PgConnection,
    limits: &Limits,
    rows: &[&NewRow],
) -> sqlx::Result<HashMap<Uuid, Opened>> {
    let candidates: Vec<Candidate> = rows.iter().map(|row| row.candidate()).collect();
    let decisions = look(tx, &candidates, limits.read_back_window).await?;
    let mut newest: HashMap<Uuid, &NewRow> = HashMap::new();
    let mut behind = Vec::with_capacity(rows.len());
    for (row, decision) in rows.iter().copied().zip(decisions) {
        // Nothing else is sure without the slot.
        let outcome = match decision {
            Decision::Superseded { by } => Some(Outcome::Superseded { by }),
            _ => None,
        };
        let known = newest.entry(row.customer_id).or_insert(row);
        if row.age_key() > known.age_key() {
            *known = row;
        }
        behind.push(Behind { row, outcome, is_newest: false });
    }
    for each in &mut behind {
        each.is_newest = newest.get(&each.row.customer_id).is_some_and(|row| row.job_id == each.row.job_id);
    }
    let inserted = insert_behind(tx, &behind).await?;
    // Where the newest was known already, the others have no alarm but another's.
    let unwatched = |each: &&Behind<'_>| each.is_newest && !inserted.contains(&each.row.job_id);
    let unwatched: Vec<Uuid> = behind.iter().filter(unwatched).map(|each| each.row.customer_id).collect();
    wake_newest(tx, &unwatched).await?;
    let opened = behind.into_iter().filter(|each| inserted.contains(&each.row.job_id));
    Ok(opened.map(|each| (each.row.job_id, each.outcome.map_or(Opened::Parked, Opened::Ended))).collect())
}

async fn insert_behind(tx: &mut PgConnection, rows: &[Behind<'_>]) -> sqlx::Result<HashSet<Uuid>> {
    let all: Vec<&Behind<'_>> = rows.iter().collect();
    let reasons = column(&all, |each| each.outcome.as_ref().map(|outcome| outcome.reason().into_owned()));
    let inserted = sqlx::query_scalar!(
        "-- insert_behind
        insert into submission (
            job_id, customer_id, document_type, document_number_last4, content_hmac,
            requested_at, received_at, expires_at, correlation_id, sealed_payload,
            state, reason, ended_at, waiting_for, due_at
        )
        select
            new.job_id, new.customer_id, new.document_type, new.document_number_last4, new.content_hmac,
            new.requested_at, new.received_at, new.expires_at, new.correlation_id,
            case when new.reason is null then new.sealed_payload end,
            case when new.reason is null then 'waiting' else 'superseded' end, new.reason,
            case when new.reason is not null then greatest(now(), new.received_at) end,
            case when new.reason is null then 'customer' end,
            case
                when new.reason is not null then null
                when not new.is_newest then now() + make_interval(secs => $14)
                else coalesce(
                    (
                        select now() + make_interval(secs => $13)
                        from submission holder
                        where holder.customer_id = new.customer_id and holder.state in ('submitting', 'unknown')
                    ),
                    now()
                )
            end
        from unnest(
            $1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::bytea[],
            $6::timestamptz[], $7::timestamptz[], $8::timestamptz[], $9::text[], $10::bytea[],
            $11::text[], $12::boolean[]
        ) as new (
            job_id, customer_id, document_type, document_number_last4, content_hmac,
            requested_at, received_at, expires_at, correlation_id, sealed_payload, reason, is_newest
        )
        order by new.customer_id, new.job_id
        on conflict (job_id) do nothing
        returning job_id",
        &column(&all, |each| each.row.job_id),
        &column(&all, |each| each.row.customer_id),
        &column(&all, |each| each.row.document_type.as_str()) as &[&str],
        &column(&all, |each| each.row.document_number_last4.as_str()) as &[&str],
        &column(&all, |each| &each.row.content_hmac[..]) as &[&[u8]],
        &column(&all, |each| each.row.requested_at),
        &column(&all, |each| each.row.received_at),
        &column(&all, |each| each.row.expires_at) as &[Option<OffsetDateTime>],
        &column(&all, |each| each.row.correlation_id.as_deref()) as &[Option<&str>],
        &column(&all, |each| each.row.sealed.as_slice()) as &[&[u8]],
        &reasons as &[Option<String>],
        &column(&all, |each| each.is_newest),
        NEAR_WAIT_MIN_SECONDS,
        FAR_WAIT_SECONDS,
    )
    .fetch_all(tx)
    .await?;
    Ok(inserted.into_iter().collect())
}

/// Takes the slots, in the customers' order, as every batch takes them: two that took them
/// in different orders would wait for each other. Returns the jobs whose slots were free, and
/// when their first attempts begin.
async fn insert_claimed(
    tx: &mut PgConnection,
    worker: &str,
    limits: &Limits,
    slots: Slots,
    rows: &[&NewRow],
) -> sqlx::Result<HashMap<Uuid, OffsetDateTime>> {
    // One statement, but for what it does where something is taken.
    macro_rules! insert_claimed {
        ($name:literal, $on_conflict:literal) => {
            sqlx::query_as!(
                Inserted,
                $name
                    + r#"
                    insert into submission (
                        job_id, customer_id, document_type, document_number_last4, content_hmac,
                        requested_at, received_at, expires_at, correlation_id, sealed_payload,
                        state, attempts, claim_token, claimed_by, claimed_until
                    )
                    select new.*, 'submitting', 1, 1, $11, now() + make_interval(secs => $12)
                    from unnest(
                        $1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::bytea[],
                        $6::timestamptz[], $7::timestamptz[], $8::timestamptz[], $9::text[], $10::bytea[]
                    ) as new (job_id, customer_id)
                    order by new.customer_id, new.job_id
                    "#
                    + $on_conflict
                    + r#" returning job_id, now() as "begun_at!""#,
                &column(rows, |row| row.job_id),
                &column(rows, |row| row.customer_id),
                &column(rows, |row| row.document_type.as_str()) as &[&str],
                &column(rows, |row| row.document_number_last4.as_str()) as &[&str],
                &column(rows, |row| &row.content_hmac[..]) as &[&[u8]],
                &column(rows, |row| row.requested_at),
                &column(rows, |row| row.received_at),
                &column(rows, |row| row.expires_at) as &[Option<OffsetDateTime>],
                &column(rows, |row| row.correlation_id.as_deref()) as &[Option<&str>],
                &column(rows, |row| row.sealed.as_slice()) as &[&[u8]],
                worker,
                limits.claim_lease.as_secs_f64(),
            )
            .fetch_all(tx)
            .await?
        };
    }
    let inserted = match slots {
        Slots::Free => insert_claimed!("-- insert_claimed", ""),
        Slots::MaybeTaken => insert_claimed!("-- insert_claimed_if_free", "on conflict do nothing"),
    };
    Ok(inserted.into_iter().map(|row| (row.job_id, row.begun_at)).collect())
}

async fn insert_waiting(tx: &mut PgConnection, row: &NewRow, waiting_for: WaitingFor) -> sqlx::Result<bool> {
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
                    select now() + make_interval(secs => $12)
                    from submission holder
                    where holder.customer_id = $2 and holder.state in ('submitting', 'unknown')
                ),
                now()
            )
        )
        on conflict (job_id) do nothing",
        row.job_id,
        row.customer_id,
        row.document_type,
        row.document_number_last4,
        &row.content_hmac,
        row.requested_at,
        row.received_at,
        row.expires_at,
        row.correlation_id,
        row.sealed,
        waiting_for.name(),
        NEAR_WAIT_MIN_SECONDS,
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
pub(crate) async fn insert_dead_letter(
    connection: &mut PgConnection,
    letter: DeadLetter<'_>,
    job_id: Option<Uuid>,
    reason_code: &str,
    reason: &str,
) -> sqlx::Result<()> {
    let Whole { size, sha256 } = letter.envelope.whole.unwrap_or_else(|| Whole {
        size: letter.envelope.body.len() as u64,
        sha256: Sha256::digest(letter.envelope.body).into(),
    });
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
        i32::try_from(size).unwrap_or(i32::MAX),
        &sha256[..],
        reason_code,
        reason,
        letter.is_redelivered,
    )
    .execute(connection)
    .await?;
    Ok(())
}
