//! The books against the provider: every customer with an update of a time is read there, and what was
//! read is kept as an observation of their job. No job's state is changed by it.

use std::time::{Duration, SystemTime};

use serde::Serialize;
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::time::sleep;
use uuid::Uuid;

use crate::desk::export::Span;
use crate::domain::read_back::Reading;
use crate::domain::reconciliation::{Booked, Difference, compare};
use crate::domain::state::{Purpose, State};
use crate::journal::history::chain::Subject;
use crate::journal::statements::customers::claim_read;
use crate::journal::statements::history::add_reading;
use crate::journal::transact;
use crate::provider::Provider;
use crate::seal::Fingerprinter;

/// How often a customer is read who reads as nothing: each time after the interval between two reads.
const READS_MAX: u32 = 3;

/// How fast customers are read.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// By all replicas and commands together.
    pub per_second: u32,
    /// The shortest time between two reads of a customer.
    pub apart: Duration,
}

/// What one customer came to.
#[derive(Clone, Debug, Serialize)]
pub struct Reconciled {
    pub customer_id: Uuid,
    /// The job that stands for them here.
    pub job_id: Uuid,
    #[serde(flatten)]
    pub finding: Finding,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "finding")]
pub enum Finding {
    Agrees,
    Differs(Difference),
    /// No read told anything; the code of the last one.
    Unread {
        error: &'static str,
    },
}

/// Who has an accepted update that ended in the span, or one that may have been applied, in the order of
/// their ids and from behind `after` on.
pub async fn customers(pool: &PgPool, span: Span, after: Option<Uuid>) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        r#"-- reconcilable
        with updated as (
            select customer_id
            from submission s
            where ended_at >= $1 and ended_at < $2 and customer_id is not null
                and (
                    state = 'accepted'
                    or exists (select from attempt a where a.job_id = s.job_id and a.verdict = 'unknown')
                )
            union
            select customer_id from submission where state = 'unknown' and received_at < $2
        )
        select customer_id as "customer_id!" from updated
        where $3::uuid is null or customer_id > $3
        order by customer_id"#,
        span.since,
        span.until,
        after,
    )
    .fetch_all(pool)
    .await
}

/// Reads a customer at the provider, writes down what was read, and compares. `None` where nothing of
/// them here could be compared.
///
/// # Errors
/// The database's.
pub async fn reconcile(
    pool: &PgPool,
    provider: &Provider,
    fingerprinter: &Fingerprinter,
    pace: Pace,
    customer_id: Uuid,
) -> sqlx::Result<Option<Reconciled>> {
    let mut error = "";
    for _ in 0..READS_MAX {
        let at = wait_for_turn(pool, pace, customer_id).await?;
        // Before the read: what is under way by then explains whatever it shows.
        let Some((job_id, booked)) = booked(pool, customer_id).await? else { return Ok(None) };
        let read_at = SystemTime::now();
        let reading = provider.customer(customer_id).await;
        let (subject, purpose) = (Subject { job_id, customer_id }, Purpose::Reconciliation);
        let adding = transact(pool, async |tx| {
            add_reading(tx, fingerprinter, subject, (at, read_at), purpose, &reading).await
        });
        match adding.await {
            // It was archived meanwhile: there is nothing here to compare with any more.
            Err(sqlx::Error::RowNotFound) => return Ok(None),
            added => added?,
        };
        let finding = match (compare(&booked, &reading), &reading) {
            (Some(difference), _) => Finding::Differs(difference),
            (None, Reading::Customer(_)) => Finding::Agrees,
            (None, reading) => {
                error = reading.error_code().unwrap_or_default();
                continue;
            }
        };
        return Ok(Some(Reconciled { customer_id, job_id, finding }));
    }
    let stands = booked(pool, customer_id).await?;
    Ok(stands.map(|(job_id, _)| Reconciled { customer_id, job_id, finding: Finding::Unread { error } }))
}

/// Waits until the customer may be read, by the interval between two of their reads and by the rate of
/// all. Returns the database's time.
async fn wait_for_turn(pool: &PgPool, pace: Pace, customer_id: Uuid) -> sqlx::Result<OffsetDateTime> {
    let slot = Duration::from_secs(1) / pace.per_second;
    while !take_pace(pool, slot).await? {
        sleep(slot).await;
    }
    loop {
        let mut connection = pool.acquire().await?;
        if let Some(at) = claim_read(&mut connection, customer_id, pace.apart).await? {
            return Ok(at);
        }
        drop(connection);
        sleep((pace.apart / 10).max(slot)).await;
    }
}

/// Takes the next read's place in the rate that the replicas keep to. False where it is not yet time.
async fn take_pace(pool: &PgPool, slot: Duration) -> sqlx::Result<bool> {
    let taken = sqlx::query!(
        "-- take_pace
        update verification_pace set next_read_at = now() + make_interval(secs => $1)
        -- One further ahead is of a clock that was ahead, and was put right.
        where next_read_at <= now() or next_read_at > now() + interval '1 minute'",
        slot.as_secs_f64(),
    )
    .execute(pool)
    .await?;
    Ok(taken.rows_affected() == 1)
}

async fn booked(pool: &PgPool, customer_id: Uuid) -> sqlx::Result<Option<(Uuid, Booked)>> {
    let row = sqlx::query!(
        r#"-- booked
        select
            job_id, state as "state: State", document_type, verification_status,
            exists (
                select from submission open
                where open.customer_id = $1
                    and (open.state in ('submitting', 'unknown') or open.verification_due_at is not null)
            ) as "is_open!"
        from submission s
        where customer_id = $1
            and (
                state = 'accepted'
                or exists (select from attempt a where a.job_id = s.job_id and a.verdict = 'unknown')
            )
        order by state = 'accepted' desc, requested_at desc, received_at desc, job_id desc
        limit 1"#,
        customer_id,
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|row| {
        let booked = Booked {
            state: row.state,
            document_type: row.document_type,
            verification_status: row.verification_status,
            is_open: row.is_open,
        };
        (row.job_id, booked)
    }))
}
