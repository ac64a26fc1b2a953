//! A job's history: its row is locked, and entries are added to it.

use std::collections::HashMap;
use std::time::SystemTime;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::domain::read_back::Reading;
use crate::domain::state::{Purpose, State};
use crate::journal::history::chain::{Entry, Head, Observation, Subject};
use crate::journal::statements::claim::Claim;
use crate::journal::statements::move_on::Position;
use crate::seal::Fingerprinter;

/// A submission's row, locked until the transaction's end.
pub(crate) struct Locked {
    pub position: Position,
    pub reason_code: Option<String>,
    /// The transaction's time.
    pub now: OffsetDateTime,
}

/// Locks a submission's row; `None` if there is no such submission.
pub(crate) async fn lock_submission(tx: &mut PgConnection, job_id: Uuid) -> sqlx::Result<Option<Locked>> {
    let row = sqlx::query!(
        r#"-- lock_submission
        select
            customer_id as "customer_id!", state as "state: State", claim_token as token, reason_code,
            chain as "chain: [u8; 32]", entries, now() as "now!"
        from submission
        where job_id = $1
        for update"#,
        job_id,
    )
    .fetch_optional(tx)
    .await?;
    Ok(row.map(|row| Locked {
        position: Position {
            job_id,
            customer_id: row.customer_id,
            state: row.state,
            token: row.token,
            head: Head::of_row(row.chain, row.entries),
        },
        reason_code: row.reason_code,
        now: row.now,
    }))
}

/// Locks the rows of submissions, in the jobs' order, and returns where their histories stand.
pub(crate) async fn lock_heads(tx: &mut PgConnection, jobs: &[Uuid]) -> sqlx::Result<HashMap<Uuid, Head>> {
    let rows = sqlx::query!(
        r#"-- lock_heads
        select job_id, chain as "chain: [u8; 32]", entries
        from submission
        where job_id = any($1)
        order by job_id
        for update"#,
        jobs,
    );
    let rows = rows.fetch_all(tx).await?;
    Ok(rows.into_iter().map(|row| (row.job_id, Head::of_row(row.chain, row.entries))).collect())
}

/// Notes where a history stands after an entry that moves its job nowhere.
pub(crate) async fn set_head(tx: &mut PgConnection, job_id: Uuid, head: Head) -> sqlx::Result<()> {
    sqlx::query!(
        "-- set_head
        update submission set chain = $2, entries = $3 where job_id = $1",
        job_id,
        &head.mac as &[u8],
        head.entries,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Adds what a read for a job said, which nothing follows from, as the next entry of the job's history.
/// `at` is the time before the read by the database's clock, and by the replica's.
pub(crate) async fn add_reading(
    tx: &mut PgConnection,
    fingerprinter: &Fingerprinter,
    subject: Subject,
    (at, read_at): (OffsetDateTime, SystemTime),
    purpose: Purpose,
    reading: &Reading,
) -> sqlx::Result<Head> {
    let observation = observed(at, purpose, reading, None);
    add_observation(tx, fingerprinter, subject, &observation, read_at, dated_at(reading)).await
}

/// The same, of what is an entry already.
pub(crate) async fn add_observation(
    tx: &mut PgConnection,
    fingerprinter: &Fingerprinter,
    subject: Subject,
    observation: &Observation<'_>,
    read_at: SystemTime,
    dated_at: Option<OffsetDateTime>,
) -> sqlx::Result<Head> {
    let locked = lock_submission(tx, subject.job_id).await?.ok_or(sqlx::Error::RowNotFound)?;
    let head = locked.position.head.after(fingerprinter, subject, &Entry::Observation(*observation));
    let read_at = Some(OffsetDateTime::from(read_at));
    insert_observation(tx, subject, observation, head.entries, read_at, dated_at).await?;
    set_head(tx, subject.job_id, head).await?;
    Ok(head)
}

/// When a read's answer was made, by its own date.
pub(crate) fn dated_at(reading: &Reading) -> Option<OffsetDateTime> {
    reading.customer()?.dated_at.map(OffsetDateTime::from)
}

/// What a read said, as an entry of the history.
pub(crate) fn observed<'a>(
    at: OffsetDateTime,
    purpose: Purpose,
    reading: &'a Reading,
    conclusion: Option<&'a str>,
) -> Observation<'a> {
    let customer = reading.customer();
    Observation {
        at,
        purpose: purpose.name(),
        status: customer.map(|customer| customer.status.as_str()),
        failure_reason: customer.and_then(|customer| customer.failure_reason.as_deref()),
        error: reading.error_code(),
        conclusion,
        document_types: None,
    }
}

/// Adds what a read said, or why there was none, as the entry of that number. `read_at` is the time by
/// the replica that read.
pub(crate) async fn insert_observation(
    tx: &mut PgConnection,
    subject: Subject,
    observation: &Observation<'_>,
    entry: i32,
    read_at: Option<OffsetDateTime>,
    dated_at: Option<OffsetDateTime>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "-- insert_observation
        insert into observation (
            job_id, customer_id, at, purpose, status, failure_reason, error, conclusion, entry, read_at,
            dated_at, document_types
        )
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        subject.job_id,
        subject.customer_id,
        observation.at,
        observation.purpose,
        observation.status,
        observation.failure_reason,
        observation.error,
        observation.conclusion,
        entry,
        read_at,
        dated_at,
        observation.document_types,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Adds what a worker learned of its attempt after it had lost the claim, as the entry of that number.
/// False where that is known already.
pub(crate) async fn set_late_verdict(
    tx: &mut PgConnection,
    claim: &Claim,
    worker: &str,
    verdict: &str,
    entry: i32,
) -> sqlx::Result<bool> {
    let noted = sqlx::query!(
        "-- set_late_verdict
        update attempt
        set late_verdict = $4, late_entry = $5
        where job_id = $1 and number = $2 and worker = $3 and ended_at is not null and late_verdict is null",
        claim.job.id,
        claim.attempt,
        worker,
        verdict,
        entry,
    )
    .execute(tx)
    .await?;
    Ok(noted.rows_affected() == 1)
}
