//! A customer's updates: how many were spent, and where.

use serde::Serialize;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::desk::interventions::{Attribution, Intervention, record};
use crate::desk::story::{Spent, SubmissionView, spent, submissions_of};
use crate::desk::version::{Changed, Version};
use crate::domain::budget::spends;
use crate::domain::state::Applied;
use crate::domain::suspicion::{Customer, PastJob};
use crate::journal::statements::customers::read_customers;
use crate::journal::transact;

/// What is known of a customer.
#[derive(Debug, Serialize)]
pub struct CustomerStory {
    pub customer_id: Uuid,
    pub spent: Spent,
    /// Who told us of those spent elsewhere, and why.
    pub budget_set: Option<BudgetSet>,
    /// When the provider last said that they are used up.
    #[serde(with = "time::serde::rfc3339::option")]
    pub limit_reached_at: Option<OffsetDateTime>,
    /// Their jobs, the newest first, each with the number of updates it spent or may have spent.
    pub jobs: Vec<CustomerJob>,
    /// Whether they have older ones that are left out.
    pub is_cut: bool,
    /// What became of their updates.
    #[serde(skip)]
    pub updates: Updates,
    /// The files of the archive that hold more of them.
    pub files: Vec<String>,
}

/// What a person says of updates spent elsewhere.
#[derive(Debug, Serialize)]
pub struct BudgetSet {
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    pub by: String,
    pub note: String,
    /// Who approved it, where somebody was asked.
    pub approved_by: Option<String>,
}

/// A job of a customer.
#[derive(Debug, Serialize)]
pub struct CustomerJob {
    #[serde(flatten)]
    pub submission: SubmissionView,
    /// How many updates it spent, or may have spent.
    pub spent: u32,
}

/// Why a budget is not set.
#[derive(Debug, thiserror::Error)]
pub enum BudgetError {
    /// Somebody decided by what is no more so.
    #[error("customer {customer_id} {changed}")]
    Changed {
        /// The customer.
        customer_id: Uuid,
        /// What had changed.
        changed: Changed,
    },
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

/// Writes down how many updates a customer spent elsewhere, who says so, and why; where `expected` is given,
/// only if that is still what is known of their updates.
///
/// # Errors
/// When it is not, or the database fails.
pub async fn set_budget(
    pool: &PgPool,
    customer_id: Uuid,
    used: i32,
    expected: Option<&Version>,
    attribution: Attribution<'_>,
) -> Result<(), BudgetError> {
    transact(pool, async |tx| {
        let is = lock_customer(tx, customer_id).await?.version();
        is.expect(expected).map_err(|changed| BudgetError::Changed { customer_id, changed })?;
        Ok(set_budget_in(tx, customer_id, used, attribution).await?)
    })
    .await
}

/// An attempt that took one of a customer's updates, or may have.
#[derive(Clone, Debug, Serialize)]
pub struct TakenUpdate {
    pub job_id: Uuid,
    pub attempt: i32,
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Whether the provider said, a read showed, or a person found that it was made.
    pub is_sure: bool,
}

/// What became of a customer's updates.
#[derive(Clone, Debug, Default)]
pub struct Updates {
    pub spent: Spent,
    /// Which attempts took them, in order: those of archived jobs are counted and not named.
    pub taken: Vec<TakenUpdate>,
    /// When the provider last said that they are used up.
    pub limit_reached_at: Option<OffsetDateTime>,
}

/// What became of a customer's updates.
pub async fn updates(pool: &PgPool, customer_id: Uuid) -> sqlx::Result<Updates> {
    let mut connection = pool.acquire().await?;
    let limit_reached_at = sqlx::query_scalar!(
        "-- limit_reached
        select limit_reached_at from customer where customer_id = $1",
        customer_id,
    )
    .fetch_optional(&mut *connection)
    .await?
    .flatten();
    let mut customers = read_customers(&mut connection, [(customer_id, None)]).await?;
    Ok(Updates::of(&customers.remove(&customer_id).unwrap_or_default(), limit_reached_at))
}

impl Updates {
    fn of(customer: &Customer, limit_reached_at: Option<OffsetDateTime>) -> Self {
        let of_job = |job: &PastJob| {
            let spending = job.updates.iter().filter(|update| update.verdict.is_some_and(spends));
            let taken = spending.map(|update| TakenUpdate {
                job_id: job.job_id,
                attempt: update.number,
                at: update.begun_at,
                is_sure: job.applied(update, &customer.reads) == Some(Applied::Yes),
            });
            taken.collect::<Vec<_>>()
        };
        let mut taken: Vec<TakenUpdate> = customer.jobs.iter().flat_map(of_job).collect();
        taken.sort_by_key(|update| update.at);
        Self { spent: Spent::of(customer), taken, limit_reached_at }
    }
}

/// Locks what a person told us of a customer, and reads what they have spent.
pub(crate) async fn lock_customer(tx: &mut PgConnection, customer_id: Uuid) -> sqlx::Result<Spent> {
    // A row that is not there cannot be locked.
    sqlx::query!(
        "-- open_customer
        insert into customer (customer_id) values ($1) on conflict (customer_id) do nothing",
        customer_id,
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query_scalar!(
        "-- lock_budget
        select customer_id from customer where customer_id = $1 for update",
        customer_id,
    )
    .fetch_one(&mut *tx)
    .await?;
    Ok(spent(tx, Some(customer_id)).await?.unwrap_or_default())
}

/// Sets the budget of a customer who is locked.
pub(crate) async fn set_budget_in(
    tx: &mut PgConnection,
    customer_id: Uuid,
    used: i32,
    attribution: Attribution<'_>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "-- set_budget
        update customer
        set updates_elsewhere = $2, budget_set_at = now(), budget_set_by = $3, budget_note = $4
        where customer_id = $1",
        customer_id,
        used,
        attribution.by,
        attribution.note,
    )
    .execute(&mut *tx)
    .await?;
    let detail = format!("{used} spent elsewhere");
    let intervention = Intervention {
        action: "budget",
        job_id: None,
        customer_id: Some(customer_id),
        detail: Some(&detail),
    };
    record(tx, intervention, attribution).await
}

/// What is known of a customer, with their newest jobs, all of them without a `limit`; `None` if nothing is.
pub async fn customer_story(
    pool: &PgPool,
    customer_id: Uuid,
    limit: Option<u32>,
) -> sqlx::Result<Option<CustomerStory>> {
    let mut connection = pool.acquire().await?;
    let mut submissions = submissions_of(&mut connection, customer_id, limit).await?;
    let is_cut = limit.is_some_and(|limit| submissions.len() > limit as usize);
    submissions.truncate(limit.map_or(usize::MAX, |limit| limit as usize));
    let known = sqlx::query!(
        r#"-- customer
        select
            budget_set_at, budget_set_by, budget_note, limit_reached_at,
            (
                select p.decided_by
                from intervention i
                left join proposal p on p.id = i.proposal_id
                where i.customer_id = c.customer_id and i.action = 'budget'
                order by i.id desc
                limit 1
            ) as approved_by
        from customer c
        where customer_id = $1"#,
        customer_id,
    )
    .fetch_optional(&mut *connection)
    .await?;
    let files = files_of(&mut connection, customer_id).await?;
    if submissions.is_empty() && known.is_none() && files.is_empty() {
        return Ok(None);
    }
    let mut customers = read_customers(&mut connection, [(customer_id, None)]).await?;
    let customer = customers.remove(&customer_id).unwrap_or_default();
    let job = |submission: SubmissionView| {
        let spent = customer.job(submission.job_id).map_or(0, PastJob::spent);
        CustomerJob { submission, spent }
    };
    let jobs = submissions.into_iter().map(job).collect();
    let limit_reached_at = known.as_ref().and_then(|known| known.limit_reached_at);
    let budget_set = known.and_then(|known| {
        Some(BudgetSet {
            at: known.budget_set_at?,
            by: known.budget_set_by?,
            note: known.budget_note?,
            approved_by: known.approved_by,
        })
    });
    let updates = Updates::of(&customer, limit_reached_at);
    let spent = updates.spent;
    Ok(Some(CustomerStory { customer_id, spent, budget_set, limit_reached_at, jobs, is_cut, updates, files }))
}

/// The files of the archive that hold jobs of a customer.
pub(crate) async fn files_of(connection: &mut PgConnection, customer_id: Uuid) -> sqlx::Result<Vec<String>> {
    let files = sqlx::query_scalar!(
        "-- files_of_customer
        select files from archived_customer where customer_id = $1",
        customer_id,
    )
    .fetch_optional(connection)
    .await?;
    Ok(files.unwrap_or_default())
}
