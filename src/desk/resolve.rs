//! A person settles what no read of the customer could. Nothing is sent by it.

use serde::Serialize;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::desk::interventions::{Attribution, Intervention, record};
use crate::desk::locked_job::lock_job;
use crate::domain::state::State;
use crate::domain::suspicion::NOT_APPLIED;
use crate::journal::statements::wake::wake_newest;
use crate::journal::transact;

/// What a person has found out of a job.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum Finding {
    /// The provider has the update
    Accepted,
    /// It is not to be sent any more
    Rejected,
    /// No attempt was applied: `replay` may send it again
    NotApplied,
}

impl Finding {
    fn name(self) -> &'static str {
        match self {
            Self::Accepted => State::Accepted.name(),
            Self::Rejected => State::Rejected.name(),
            Self::NotApplied => "not-applied",
        }
    }

    fn state(self) -> State {
        match self {
            Self::Accepted => State::Accepted,
            Self::Rejected => State::Rejected,
            Self::NotApplied => State::Exhausted,
        }
    }

    fn reason_code(self) -> Option<&'static str> {
        match self {
            Self::Accepted => None,
            Self::Rejected => Some("by_person"),
            Self::NotApplied => Some(NOT_APPLIED),
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::Accepted => "a person found the update at the provider",
            Self::Rejected => "a person decided that it is not sent any more",
            Self::NotApplied => "a person found that no attempt was applied; `replay` may send it again",
        }
    }
}

/// What became of a resolution.
#[derive(Debug, Serialize)]
pub struct Resolved {
    /// The job.
    pub job_id: Uuid,
    /// Its customer.
    pub customer_id: Option<Uuid>,
    /// How it had ended.
    pub was: String,
    /// How it ends now.
    pub state: &'static str,
}

/// Why a job cannot be resolved so.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// It is not there.
    #[error("no job {0} is known; is it still in the queue, or was it dead-lettered?")]
    NotKnown(Uuid),
    /// Nothing is to be settled.
    #[error("job {job_id} is {is}; only what is in needs_review can be resolved")]
    NotInReview {
        /// The job.
        job_id: Uuid,
        /// How it stands.
        is: String,
    },
    /// An acceptance without an attempt would leave an update out of the books.
    #[error(
        "no attempt of job {0} may have been applied; if the update was made at the provider by hand, use `resolve --as rejected` and count it with `budget set`"
    )]
    NothingWasSent(Uuid),
    /// We know better.
    #[error("an attempt of job {0} was accepted, as a late answer says; use `resolve --as accepted`")]
    AcceptedLate(Uuid),
    /// The database failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

/// Settles a job in `needs_review`, in one commit with who says so and why.
///
/// # Errors
/// When it cannot be settled so, or the database fails.
pub async fn resolve(
    pool: &PgPool,
    job_id: Uuid,
    finding: Finding,
    attribution: Attribution<'_>,
) -> Result<Resolved, ResolveError> {
    transact(pool, async |tx| {
        let row = lock_job(tx, job_id).await?.ok_or(ResolveError::NotKnown(job_id))?;
        let was = row.describe();
        if row.state != State::NeedsReview {
            return Err(ResolveError::NotInReview { job_id, is: was });
        }
        match finding {
            Finding::Accepted if !row.is_in_doubt => return Err(ResolveError::NothingWasSent(job_id)),
            Finding::NotApplied | Finding::Rejected if row.is_accepted_late => {
                return Err(ResolveError::AcceptedLate(job_id));
            }
            _ => {}
        }
        settle_by_hand(tx, job_id, finding).await?;
        // What the customer's other jobs wait for may have changed.
        if let Some(customer_id) = row.customer_id {
            wake_newest(tx, &[customer_id]).await?;
        }
        let detail = format!("was {was}, resolved as {}", finding.name());
        let intervention = Intervention {
            action: "resolve",
            job_id: Some(job_id),
            customer_id: row.customer_id,
            detail: Some(&detail),
        };
        record(&mut *tx, intervention, attribution).await?;
        Ok(Resolved { job_id, customer_id: row.customer_id, was, state: finding.state().name() })
    })
    .await
}

async fn settle_by_hand(tx: &mut PgConnection, job_id: Uuid, finding: Finding) -> sqlx::Result<()> {
    // An acceptance is followed to the end of its verification, as any other is.
    sqlx::query!(
        "-- settle_by_hand
        update submission
        set state = $2, reason_code = $3, reason = $4, ended_at = greatest(now(), received_at),
            claim_token = claim_token + 1,
            sealed_payload = case when $2 = 'exhausted' then sealed_payload end,
            evidence = case when $2 = 'accepted' then 'person' end,
            verification_due_at = case when $2 = 'accepted' then now() end
        where job_id = $1",
        job_id,
        finding.state().name(),
        finding.reason_code(),
        finding.reason(),
    )
    .execute(tx)
    .await?;
    Ok(())
}
