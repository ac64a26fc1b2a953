//! What the records know of dead letters.

use serde::Serialize;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::desk::interventions::{Attribution, Intervention, record};

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

/// Why the message with this body was dead-lettered last; `None` where no worker did it.
pub async fn find_dead_letter(pool: &PgPool, body_sha256: &[u8]) -> sqlx::Result<Option<DeadLetterView>> {
    sqlx::query_as!(
        DeadLetterView,
        "-- find_dead_letter
        select job_id, received_at, reason_code, reason
        from dead_lettered_delivery
        where body_sha256 = $1
        order by id desc
        limit 1",
        body_sha256,
    )
    .fetch_optional(pool)
    .await
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
    record(pool, intervention, Attribution { proposal, ..attribution }).await
}
