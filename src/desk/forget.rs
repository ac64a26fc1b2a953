//! A customer is forgotten: what identifies them goes, what happened stays.

use serde::Serialize;
use sqlx::PgPool;
use uuid::Uuid;

use crate::desk::budget::files_of;
use crate::desk::interventions::{Attribution, Intervention, record};
use crate::journal::transact;

#[derive(Debug, Serialize)]
pub struct Forgotten {
    pub customer_id: Uuid,
    /// How many jobs the customer has.
    pub jobs: u64,
    /// How many sealed payloads were removed.
    pub payloads: u64,
    /// How many fingerprints of dead-lettered bodies were removed.
    pub dead_letters: u64,
    /// The files of the archive that hold jobs of the customer, with the last four characters.
    pub files: Vec<String>,
}

/// Why a customer cannot be forgotten.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    /// The payload is still needed.
    #[error("job {0} of the customer is in motion; wait for its end, see `kyc-worker show {0}`")]
    InMotion(Uuid),
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

/// Removes a customer's sealed payloads, fingerprints and masked document numbers, in one
/// commit with who asked for it. Attempts, observations and outcomes stay: they hold nothing
/// that the customer entered. Of jobs that were archived the fingerprints go, and the files are named.
///
/// # Errors
/// When a job of the customer is in motion, or the database fails.
pub async fn forget(
    pool: &PgPool,
    customer_id: Uuid,
    attribution: Attribution<'_>,
) -> Result<Forgotten, ForgetError> {
    transact(pool, async |tx| {
        let jobs = sqlx::query!(
            r#"-- lock_customer
        select
            job_id, state in ('submitting', 'waiting', 'unknown') as "is_in_motion!",
            sealed_payload is not null as "has_payload!"
        from submission
        where customer_id = $1
        order by job_id
        for update"#,
            customer_id,
        )
        .fetch_all(&mut *tx)
        .await?;
        if let Some(job) = jobs.iter().find(|job| job.is_in_motion) {
            return Err(ForgetError::InMotion(job.job_id));
        }
        sqlx::query!(
            "-- forget_submissions
        update submission
        set sealed_payload = null, content_hmac = null, document_number_last4 = null
        where customer_id = $1",
            customer_id,
        )
        .execute(&mut *tx)
        .await?;
        let dead_letters = sqlx::query!(
            r"-- forget_dead_letters
        update dead_lettered_delivery d
        set body_sha256 = '\x'
        from (
            select job_id from submission where customer_id = $1
            union
            select job_id from archived_job where customer_id = $1
        ) theirs
        where d.job_id = theirs.job_id",
            customer_id,
        )
        .execute(&mut *tx)
        .await?
        .rows_affected();
        sqlx::query!(
            "-- forget_archived_jobs
        update archived_job set content_hmac = null where customer_id = $1",
            customer_id,
        )
        .execute(&mut *tx)
        .await?;
        let files = files_of(&mut *tx, customer_id).await?;
        let payloads = jobs.iter().filter(|job| job.has_payload).count() as u64;
        let detail = format!("{} jobs, {payloads} payloads, {dead_letters} dead letters", jobs.len());
        let intervention = Intervention {
            action: "forget",
            job_id: None,
            customer_id: Some(customer_id),
            detail: Some(&detail),
        };
        record(&mut *tx, intervention, attribution).await?;
        Ok(Forgotten { customer_id, jobs: jobs.len() as u64, payloads, dead_letters, files })
    })
    .await
}
