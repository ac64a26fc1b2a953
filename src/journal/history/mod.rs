//! The history of every job: its entries, the chain over them, and whether both are what was written.

pub mod audit;
pub mod chain;
mod examine;

use sqlx::PgConnection;
use uuid::Uuid;

/// The file of the archive that has a job's history; `None` where none is known.
pub async fn archived_in(connection: &mut PgConnection, job_id: Uuid) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar!("-- archived_in\nselect file from archived_job where job_id = $1", job_id)
        .fetch_optional(connection)
        .await
}
