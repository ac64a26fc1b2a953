//! What people do by hand, each with who and why. Rows are added and never changed.

use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgExecutor, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::journal::pause::{Pause, current_pause};

/// Who does something by hand, and why.
#[derive(Clone, Copy, Debug)]
pub struct Attribution<'a> {
    pub by: &'a str,
    pub note: &'a str,
}

/// What is done by hand.
#[derive(Clone, Copy, Debug)]
pub struct Intervention<'a> {
    /// The action, as the table names it.
    pub action: &'static str,
    /// The job that it is about.
    pub job_id: Option<Uuid>,
    /// The customer that it is about.
    pub customer_id: Option<Uuid>,
    pub detail: Option<&'a str>,
}

/// What a person did, as people see it.
#[derive(Debug, Deserialize, Serialize)]
pub struct InterventionView {
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    pub action: String,
    pub by: Option<String>,
    pub note: Option<String>,
    pub detail: Option<String>,
}

/// What a person did, among all that people did.
#[derive(Debug, Serialize)]
pub struct ListedIntervention {
    pub id: i64,
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    pub action: String,
    pub by: Option<String>,
    pub note: Option<String>,
    pub job_id: Option<Uuid>,
    pub customer_id: Option<Uuid>,
    pub detail: Option<String>,
}

/// What people did, the newest first: of those before a number, which is that of the page before.
pub async fn interventions(
    pool: &PgPool,
    before_id: Option<i64>,
    limit: i64,
) -> sqlx::Result<Vec<ListedIntervention>> {
    sqlx::query_as!(
        ListedIntervention,
        "-- interventions
        select id, at, action, by, note, job_id, customer_id, detail
        from intervention
        where id < $1
        order by id desc
        limit $2",
        before_id.unwrap_or(i64::MAX),
        limit,
    )
    .fetch_all(pool)
    .await
}

/// What people did to a job, in order.
pub(crate) async fn interventions_of(
    connection: &mut PgConnection,
    job_id: Uuid,
) -> sqlx::Result<Vec<InterventionView>> {
    sqlx::query_as!(
        InterventionView,
        "-- interventions_of
        select at, action, by, note, detail from intervention where job_id = $1 order by id",
        job_id,
    )
    .fetch_all(connection)
    .await
}

/// Writes down what a person does, in the transaction that does it.
pub(crate) async fn record(
    executor: impl PgExecutor<'_>,
    intervention: Intervention<'_>,
    attribution: Attribution<'_>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "-- record_intervention
        insert into intervention (action, by, note, job_id, customer_id, detail, entries)
        values ($1, $2, $3, $4, $5, $6, (select entries from submission where job_id = $4))",
        intervention.action,
        attribution.by,
        attribution.note,
        intervention.job_id,
        intervention.customer_id,
        intervention.detail,
    )
    .execute(executor)
    .await?;
    Ok(())
}

/// Pauses all the work, or renews the pause with another reason.
pub async fn pause(pool: &PgPool, attribution: Attribution<'_>) -> sqlx::Result<()> {
    let intervention = Intervention { action: "pause", job_id: None, customer_id: None, detail: None };
    record(pool, intervention, attribution).await
}

/// Ends the pause. Returns the pause that was ended; `None` if there was none.
pub async fn resume(pool: &PgPool, by: Option<&str>, note: Option<&str>) -> sqlx::Result<Option<Pause>> {
    let Some(pause) = current_pause(pool).await? else { return Ok(None) };
    sqlx::query!(
        "-- resume
        insert into intervention (action, by, note) values ('resume', $1, $2)",
        by,
        note,
    )
    .execute(pool)
    .await?;
    Ok(Some(pause))
}
