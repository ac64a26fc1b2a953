//! Jobs and dead letters get their rows.

use std::collections::{HashMap, HashSet};

use sha2::{Digest as _, Sha256};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::domain::message::{Message, Whole};
use crate::domain::outcome::Outcome;
use crate::domain::precedence::Decision;
use crate::domain::state::WaitingFor;
use crate::journal::rows::{Limits, NewRow, Slots, column};
use crate::journal::statements::claim::{Candidate, Claim, begin_attempts, decide_all};
use crate::journal::statements::events::tell_ends;
use crate::journal::statements::wake::{FAR_WAIT_SECONDS, NEAR_WAIT_MIN_SECONDS, wake_newest};

/// What became of a valid job.
#[derive(Debug)]
pub enum Opened {
    /// It is ours to submit, and its first attempt is begun.
    Claimed(Claim),
    Waiting,
    /// It ended at once, for another job of its customer.
    Ended(Outcome),
    Known,
    /// Its `job_id` is taken by another content.
    Conflict,
    /// The database cannot hold one of its values.
    Refused,
}

/// A job that was let in and claimed.
struct Inserted {
    job_id: Uuid,
    begun_at: OffsetDateTime,
}

/// A job whose customer is busy.
struct Behind<'a> {
    row: &'a NewRow,
    /// How it ends at once, if it does.
    outcome: Option<Outcome>,
    /// Whether it is the newest of its customer's here.
    is_newest: bool,
}

/// Claims jobs and begins their first attempts; those whose customer's slot is taken, be it by another
/// of them, wait behind it. What became of each, by its `job_id`; nothing is written of those whose
/// `job_id` is taken, and they are left out.
///
/// The slots first: the unique index decides between replicas. Then the read of the customer's other
/// jobs, in a statement of its own, whose snapshot is newer than the slots.
///
/// A `job_id` is taken by a job that was archived, too. `archive` removes no row that a statement may
/// still expect: it waits for all that began before it wrote `archived_job` (`desk/archive/rows.rs`).
pub(crate) async fn open_many(
    tx: &mut PgConnection,
    worker: &str,
    limits: &Limits,
    slots: Slots,
    rows: &[&NewRow],
) -> sqlx::Result<HashMap<Uuid, Opened>> {
    if rows.is_empty() {
        return Ok(HashMap::new());
    }
    // Of two with one job_id the second goes alone, and is compared with the first.
    let (mut job_ids, mut customers) =
        (HashSet::with_capacity(rows.len()), HashSet::with_capacity(rows.len()));
    let (first, mut behind): (Vec<&NewRow>, Vec<&NewRow>) = rows
        .iter()
        .copied()
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
    let decisions = decide_all(tx, &candidates, limits).await?;
    let (mut opened, mut going) = (HashMap::with_capacity(claimed.len()), Vec::new());
    for (((row, begun_at), candidate), decision) in claimed.into_iter().zip(&candidates).zip(decisions) {
        match (decision, row.t0) {
            (Decision::Go, Some(t0)) => going.push(row.slot(t0, begun_at)),
            (decision, _) => {
                let ended = candidate.yield_slot(tx, limits.at_end, decision, None).await?;
                opened.insert(row.job_id, ended.map_or(Opened::Waiting, Opened::Ended));
            }
        }
    }
    let claims = begin_attempts(tx, worker, going).await?;
    opened.extend(claims.into_iter().map(|claim| (claim.job.id, Opened::Claimed(claim))));
    if !behind.is_empty() {
        opened.extend(open_behind(tx, limits, &behind).await?);
    }
    Ok(opened)
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
    let decisions = decide_all(tx, &candidates, limits).await?;
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
    if limits.at_end.is_told {
        let ended = behind.iter().filter(|each| each.outcome.is_some()).map(|each| each.row.job_id);
        let ended: Vec<Uuid> = ended.filter(|job_id| inserted.contains(job_id)).collect();
        tell_ends(tx, &ended).await?;
    }
    let opened = behind.into_iter().filter(|each| inserted.contains(&each.row.job_id));
    Ok(opened.map(|each| (each.row.job_id, each.outcome.map_or(Opened::Waiting, Opened::Ended))).collect())
}

/// Writes rows again that a failover lost: as jobs that wait, whose claims are written again after them.
/// Those whose `job_id` is taken are left out.
pub(crate) async fn restore_rows(tx: &mut PgConnection, rows: &[&NewRow]) -> sqlx::Result<()> {
    delete_invalid(tx, &column(rows, |row| row.job_id)).await?;
    let rows = rows.iter().map(|row| Behind { row, outcome: None, is_newest: true });
    insert_behind(tx, &rows.collect::<Vec<_>>()).await?;
    Ok(())
}

async fn insert_behind(tx: &mut PgConnection, rows: &[Behind<'_>]) -> sqlx::Result<HashSet<Uuid>> {
    let all: Vec<&Behind<'_>> = rows.iter().collect();
    let reasons = column(&all, |each| each.outcome.as_ref().map(|outcome| outcome.reason().into_owned()));
    let inserted = sqlx::query_scalar!(
        "-- insert_behind
        insert into submission (
            job_id, customer_id, document_type, document_number_last4, content_hmac,
            requested_at, received_at, expires_at, expiring_link, correlation_id, traceparent, sealed_payload,
            state, reason, ended_at, waiting_for, due_at
        )
        select
            new.job_id, new.customer_id, new.document_type, new.document_number_last4, new.content_hmac,
            new.requested_at, new.received_at, new.expires_at, new.expiring_link, new.correlation_id,
            new.traceparent, case when new.reason is null then new.sealed_payload end,
            case when new.reason is null then 'waiting' else 'superseded' end, new.reason,
            case when new.reason is not null then greatest(now(), new.received_at) end,
            case when new.reason is null then 'customer' end,
            case
                when new.reason is not null then null
                when not new.is_newest then now() + make_interval(secs => $16)
                else coalesce(
                    (
                        select now() + make_interval(secs => $15)
                        from submission holder
                        where holder.customer_id = new.customer_id and holder.state in ('submitting', 'unknown')
                    ),
                    now()
                )
            end
        from unnest(
            $1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::bytea[],
            $6::timestamptz[], $7::timestamptz[], $8::timestamptz[], $9::text[], $10::text[], $11::bytea[],
            $12::text[], $13::boolean[], $14::text[]
        ) as new (
            job_id, customer_id, document_type, document_number_last4, content_hmac,
            requested_at, received_at, expires_at, correlation_id, traceparent, sealed_payload,
            reason, is_newest, expiring_link
        )
        where not exists (
            select from archived_job k where k.job_id = new.job_id and k.holds_id offset 0
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
        &column(&all, |each| each.row.traceparent()) as &[Option<String>],
        &column(&all, |each| each.row.sealed.as_slice()) as &[&[u8]],
        &reasons as &[Option<String>],
        &column(&all, |each| each.is_newest),
        &column(&all, |each| each.row.link()) as &[Option<&str>],
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
                        requested_at, received_at, expires_at, correlation_id, traceparent, sealed_payload,
                        expiring_link, state, attempts, claim_token, claimed_by, claimed_until
                    )
                    select new.*, 'submitting', 1, 1, $13, now() + make_interval(secs => $14)
                    from unnest(
                        $1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::bytea[],
                        $6::timestamptz[], $7::timestamptz[], $8::timestamptz[], $9::text[], $10::text[],
                        $11::bytea[], $12::text[]
                    ) as new (job_id, customer_id)
                    where not exists (
                        select from archived_job k where k.job_id = new.job_id and k.holds_id offset 0
                    )
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
                &column(rows, |row| row.traceparent()) as &[Option<String>],
                &column(rows, |row| row.sealed.as_slice()) as &[&[u8]],
                &column(rows, |row| row.link()) as &[Option<&str>],
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

/// What stands under a `job_id` that is taken.
pub(crate) struct Found {
    pub is_invalid: bool,
    pub has_same_content: bool,
    /// Ours, where an earlier commit opened the job and its answer was lost.
    pub claim: Option<Claim>,
}

/// Finds and locks what stands under the `job_id` of `row`.
pub(crate) async fn find(tx: &mut PgConnection, worker: &str, row: &NewRow) -> sqlx::Result<Option<Found>> {
    // A forgotten customer's rows have no fingerprint. What is left of the content tells it from
    // another customer's job, or one of another document.
    let found = sqlx::query!(
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
        worker,
        row.t0.map(|t0| OffsetDateTime::from(t0.wall)),
        row.customer_id,
        row.document_type,
    )
    .fetch_optional(tx)
    .await?;
    Ok(found.map(|found| Found {
        is_invalid: found.is_invalid,
        has_same_content: found.has_same_content,
        claim: match (found.is_our_claim, row.t0, found.begun_at) {
            (true, Some(t0), Some(begun_at)) => Some(Claim::found(row.slot(t0, begun_at))),
            _ => None,
        },
    }))
}

/// Whether the `job_id` of `row` is that of a job that was archived and, if so, whether it asks for the
/// same.
pub(crate) async fn find_archived(tx: &mut PgConnection, row: &NewRow) -> sqlx::Result<Option<bool>> {
    sqlx::query_scalar!(
        r#"-- find_archived
        select
            coalesce(content_hmac = $2, (customer_id, document_type) = ($3, $4), false) as "has_same_content!"
        from archived_job
        where job_id = $1 and holds_id"#,
        row.job_id,
        &row.content_hmac,
        row.customer_id,
        row.document_type,
    )
    .fetch_optional(tx)
    .await
}

pub(crate) async fn insert_waiting(
    tx: &mut PgConnection,
    row: &NewRow,
    waiting_for: WaitingFor,
) -> sqlx::Result<bool> {
    let inserted = sqlx::query!(
        "-- insert_waiting
        insert into submission (
            job_id, customer_id, document_type, document_number_last4, content_hmac,
            requested_at, received_at, expires_at, correlation_id, traceparent, sealed_payload,
            state, waiting_for, due_at, expiring_link
        )
        select
            $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 'waiting', $12,
            coalesce(
                (
                    select now() + make_interval(secs => $13)
                    from submission holder
                    where holder.customer_id = $2 and holder.state in ('submitting', 'unknown')
                ),
                now()
            ),
            $14
        where not exists (select from archived_job k where k.job_id = $1 and k.holds_id)
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
        row.traceparent(),
        row.sealed,
        waiting_for.name(),
        NEAR_WAIT_MIN_SECONDS,
        row.link(),
    )
    .execute(tx)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

/// An invalid delivery is no claim on a `job_id`: a valid one starts afresh.
pub(crate) async fn delete_invalid(tx: &mut PgConnection, jobs: &[Uuid]) -> sqlx::Result<()> {
    sqlx::query!(
        "-- delete_invalid
        delete from submission where job_id = any($1) and state = 'invalid'",
        jobs,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Counts a delivery of a job that was archived.
pub(crate) async fn count_archived_delivery(tx: &mut PgConnection, job_id: Uuid) -> sqlx::Result<()> {
    sqlx::query!(
        "-- count_archived_delivery
        update archived_job set deliveries = deliveries + 1 where job_id = $1",
        job_id,
    )
    .execute(tx)
    .await?;
    Ok(())
}

pub(crate) async fn count_delivery(tx: &mut PgConnection, job_id: Uuid) -> sqlx::Result<()> {
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
    message: &Message,
    received_at: OffsetDateTime,
    job_id: Option<Uuid>,
    reason_code: &str,
    reason: &str,
) -> sqlx::Result<()> {
    let Whole { size, sha256 } = message.whole.unwrap_or_else(|| Whole {
        size: message.body.len() as u64,
        sha256: Sha256::digest(&message.body).into(),
    });
    // Postgres keeps no NUL in a text, and a delivery that cannot be written down stays for ever.
    let message_id = message.message_id.as_deref().map(|id| id.replace('\0', "\u{fffd}"));
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
        received_at,
        i32::try_from(size).unwrap_or(i32::MAX),
        &sha256[..],
        reason_code,
        reason,
        message.is_redelivered,
    )
    .execute(connection)
    .await?;
    Ok(())
}
