//! What the records know of dead letters.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde::Serialize;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::desk::interventions::{Attribution, Intervention, record};
use crate::domain::job::places_in;
use crate::journal::transact;

/// Of how many dead letters the faults are grouped, the newest.
const GROUPED: i64 = 10_000;

/// Why a worker dead-lettered a message.
#[derive(Debug, Serialize)]
pub struct DeadLetterView {
    pub job_id: Option<Uuid>,
    #[serde(with = "time::serde::rfc3339")]
    pub received_at: OffsetDateTime,
    pub reason_code: String,
    pub reason: String,
}

/// The dead-lettered deliveries that named a job, in order.
pub(crate) async fn dead_letters_of(
    connection: &mut PgConnection,
    job_id: Uuid,
) -> sqlx::Result<Vec<DeadLetterView>> {
    sqlx::query_as!(
        DeadLetterView,
        "-- dead_letters_of
        select job_id, received_at, reason_code, reason
        from dead_lettered_delivery
        where job_id = $1
        order by id",
        job_id,
    )
    .fetch_all(connection)
    .await
}

/// Why the message with this body was dead-lettered last, by this `message_id` where it was under that;
/// `None` where no worker did it.
pub async fn find_dead_letter(
    pool: &PgPool,
    body_sha256: &[u8],
    message_id: Option<&str>,
) -> sqlx::Result<Option<DeadLetterView>> {
    sqlx::query_as!(
        DeadLetterView,
        "-- find_dead_letter
        select job_id, received_at, reason_code, reason
        from dead_lettered_delivery
        where body_sha256 = $1
        order by message_id is not distinct from $2 desc, id desc
        limit 1",
        body_sha256,
        message_id,
    )
    .fetch_optional(pool)
    .await
}

/// A fault that dead letters have in common.
#[derive(Clone, Debug, Serialize)]
pub struct DeadLetterFault {
    pub reason_code: String,
    /// The JSON pointer of what is wrong, or `body`; none where the reason is about the whole delivery.
    pub place: Option<String>,
    /// How many of the newest 10,000 have it.
    pub count: i64,
    #[serde(with = "time::serde::rfc3339")]
    pub first_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub last_at: OffsetDateTime,
    /// The row of the newest.
    pub example_id: i64,
    /// How its id begins in `kyc-worker dead-letters list`; none where its customer was forgotten.
    pub example_sha256: Option<String>,
}

/// What the newest dead letters have in common, the most frequent first. A letter with several faults counts
/// for each of their places.
pub async fn dead_letter_faults(pool: &PgPool) -> sqlx::Result<Vec<DeadLetterFault>> {
    let reasons = sqlx::query!(
        r#"-- dead_letter_faults
        with newest as materialized (
            select id, reason_code, reason, received_at, body_sha256
            from dead_lettered_delivery
            order by id desc
            limit $1
        ), grouped as (
            select
                reason_code, reason, count(*) as count, min(received_at) as first_at, max(received_at) as last_at,
                max(id) as example_id
            from newest
            group by reason_code, reason
        )
        select
            g.reason_code, g.reason, g.count as "count!", g.first_at as "first_at!", g.last_at as "last_at!",
            g.example_id as "example_id!", nullif(encode(substr(n.body_sha256, 1, 6), 'hex'), '') as example_sha256
        from grouped g
        join newest n on n.id = g.example_id"#,
        GROUPED,
    )
    .fetch_all(pool)
    .await?;
    let mut faults: BTreeMap<(String, Option<String>), DeadLetterFault> = BTreeMap::new();
    for row in reasons {
        let mut places: Vec<Option<&str>> = places_in(&row.reason).map(Some).collect();
        places.sort_unstable();
        places.dedup();
        if places.is_empty() {
            places.push(None);
        }
        for place in places.into_iter().map(|place| place.map(str::to_owned)) {
            let fault = DeadLetterFault {
                reason_code: row.reason_code.clone(),
                place: place.clone(),
                count: row.count,
                first_at: row.first_at,
                last_at: row.last_at,
                example_id: row.example_id,
                example_sha256: row.example_sha256.clone(),
            };
            match faults.entry((row.reason_code.clone(), place)) {
                Entry::Vacant(vacant) => drop(vacant.insert(fault)),
                Entry::Occupied(mut known) => known.get_mut().join(fault),
            }
        }
    }
    let mut faults: Vec<DeadLetterFault> = faults.into_values().collect();
    faults.sort_by_key(|fault| -fault.count);
    Ok(faults)
}

impl DeadLetterFault {
    /// Takes in what other letters with the same fault come to.
    fn join(&mut self, other: Self) {
        let (first_at, count) = (self.first_at.min(other.first_at), self.count + other.count);
        let newest = if other.example_id > self.example_id { other.clone() } else { self.clone() };
        *self = Self { count, first_at, last_at: self.last_at.max(other.last_at), ..newest };
    }
}

/// A dead letter, as what is done with it names it.
pub(crate) fn name_of_letter(letter_id: &str) -> String {
    format!("dead letter {letter_id}")
}

/// Writes down that a person has a dead letter delivered again; or, after that, why it was not.
pub async fn record_requeue(
    pool: &PgPool,
    letter_id: &str,
    job_id: Option<Uuid>,
    failure: Option<&str>,
    attribution: Attribution<'_>,
) -> sqlx::Result<()> {
    let detail = match failure {
        None => name_of_letter(letter_id),
        Some(failure) => format!("{} stays: {failure}", name_of_letter(letter_id)),
    };
    // What did not happen carries out no proposal.
    let proposal = attribution.proposal.filter(|_| failure.is_none());
    let intervention = Intervention { action: "requeue", job_id, customer_id: None, detail: Some(&detail) };
    transact(pool, async |tx| {
        // The archive passes over a row that is held: it removes with a job's row all that is said of it.
        sqlx::query("-- hold_requeued\nselect from submission where job_id = $1 for key share")
            .bind(job_id)
            .execute(&mut *tx)
            .await?;
        record(tx, intervention, Attribution { proposal, ..attribution }).await
    })
    .await
}
