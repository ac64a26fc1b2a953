//! What people do by hand, each with who and why. Rows are added and never changed.

use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgExecutor, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::desk::version::{Changed, Version};
use crate::journal::pause::{Pause, current_pause, lock_pause};
use crate::journal::transact;

/// Who does something by hand, and why.
#[derive(Clone, Copy, Debug)]
pub struct Attribution<'a> {
    pub by: &'a str,
    pub note: &'a str,
    /// The proposal that is carried out, whose row says who approved it.
    pub proposal: Option<i64>,
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
    /// The proposal that it carried out. No file of the archive has one from before there were any.
    #[serde(default)]
    pub proposal_id: Option<i64>,
    /// Who approved that.
    #[serde(default)]
    pub approved_by: Option<String>,
}

impl InterventionView {
    pub(crate) fn describe(&self) -> String {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let approved = self.approved_by.as_ref().map(|by| format!(", approved by {by}")).unwrap_or_default();
        format!(
            "{} by {}{approved} ({}): {}",
            self.action,
            text(&self.by),
            text(&self.detail),
            text(&self.note)
        )
    }
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
    pub proposal_id: Option<i64>,
    /// Who approved that.
    pub approved_by: Option<String>,
}

/// What people did, the newest first: of those before a number, which is that of the page before.
pub async fn interventions(
    pool: &PgPool,
    before_id: Option<i64>,
    limit: i64,
) -> sqlx::Result<Vec<ListedIntervention>> {
    sqlx::query_as!(
        ListedIntervention,
        r#"-- interventions
        select
            i.id, i.at, i.action, i.by, i.note, i.job_id, i.customer_id, i.detail, i.proposal_id,
            p.decided_by as "approved_by?"
        from intervention i
        left join proposal p on p.id = i.proposal_id
        where i.id < $1
        order by i.id desc
        limit $2"#,
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
        r#"-- interventions_of
        select i.at, i.action, i.by, i.note, i.detail, i.proposal_id, p.decided_by as "approved_by?"
        from intervention i
        left join proposal p on p.id = i.proposal_id
        where i.job_id = $1
        order by i.id"#,
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
        insert into intervention (action, by, note, job_id, customer_id, detail, proposal_id, entries)
        values ($1, $2, $3, $4, $5, $6, $7, (select entries from submission where job_id = $4))",
        intervention.action,
        attribution.by,
        attribution.note,
        intervention.job_id,
        intervention.customer_id,
        intervention.detail,
        attribution.proposal,
    )
    .execute(executor)
    .await?;
    Ok(())
}

/// Pauses all the work, or renews the pause with another reason.
pub async fn pause(pool: &PgPool, attribution: Attribution<'_>) -> sqlx::Result<()> {
    let intervention = Intervention { action: "pause", job_id: None, customer_id: None, detail: None };
    transact(pool, async |tx| {
        lock_pause(tx).await?;
        record(tx, intervention, attribution).await
    })
    .await
}

/// Why a pause was not ended.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// Somebody decided by a pause that another has taken the place of.
    #[error("the pause {0}")]
    Changed(#[from] Changed),
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

/// Ends the pause. Returns the pause that was ended; `None` if there was none.
///
/// # Errors
/// When it is another pause than `expected`, or the database fails.
pub async fn resume(
    pool: &PgPool,
    by: Option<&str>,
    note: Option<&str>,
    expected: Option<&Version>,
) -> Result<Option<Pause>, ResumeError> {
    transact(pool, async |tx| {
        lock_pause(tx).await?;
        version_of_pause(current_pause(&mut *tx).await?.as_ref()).expect(expected)?;
        Ok(resume_in(tx, by, note, None).await?)
    })
    .await
}

/// What the pause is, as somebody sees it.
pub fn version_of_pause(pause: Option<&Pause>) -> Version {
    match pause {
        Some(Pause { at, by, .. }) => format!("paused by {by} at {at}").into(),
        None => "not paused".to_owned().into(),
    }
}

/// The same in a transaction, where it may carry out a proposal.
pub(crate) async fn resume_in(
    tx: &mut PgConnection,
    by: Option<&str>,
    note: Option<&str>,
    proposal: Option<i64>,
) -> sqlx::Result<Option<Pause>> {
    lock_pause(tx).await?;
    let Some(pause) = current_pause(&mut *tx).await? else { return Ok(None) };
    sqlx::query!(
        "-- resume
        insert into intervention (action, by, note, proposal_id) values ('resume', $1, $2, $3)",
        by,
        note,
        proposal,
    )
    .execute(tx)
    .await?;
    Ok(Some(pause))
}

/// The constraint that stands for the policy, which a trigger keeps.
const SECOND_PERSON: &str = "intervention_second_person";

/// What the policy demands, in a sentence, where the database refused for it what one person did alone.
pub fn demand_of(error: &sqlx::Error) -> Option<&str> {
    let refusal = error.as_database_error()?;
    (refusal.constraint() == Some(SECOND_PERSON)).then(|| refusal.message())
}
