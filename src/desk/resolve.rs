//! A person settles what no read of the customer could. Nothing is sent by it.

use std::time::Duration;

use serde::Serialize;
use sqlx::PgPool;
use uuid::Uuid;

use crate::desk::interventions::{Attribution, Intervention, record};
use crate::desk::locked_job::lock_job;
use crate::domain::outcome::{Ended, LAST_UPDATE};
use crate::domain::state::{Evidence, State};
use crate::domain::suspicion::NOT_APPLIED;
use crate::domain::verdict::Acceptance;
use crate::journal::statements::events::is_told_lately;
use crate::journal::statements::move_on::{Destination, Move, move_locked};
use crate::journal::{AtEnd, transact};

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

    /// How the job ends by it.
    fn ended(self) -> Ended {
        let (state, reason_code, reason) = match self {
            Self::Accepted => (State::Accepted, None, "a person found the update at the provider"),
            Self::Rejected => {
                (State::Rejected, Some("by_person"), "a person decided that it is not sent any more")
            }
            Self::NotApplied => (
                State::Exhausted,
                Some(NOT_APPLIED),
                "a person found that no attempt was applied; `replay` may send it again",
            ),
        };
        let is_accepted = state == State::Accepted;
        Ended {
            state,
            reason_code,
            reason: reason.into(),
            keeps_payload: state.is_replayable(),
            evidence: is_accepted.then_some(Evidence::Person),
            acceptance: is_accepted.then(Acceptance::default),
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
    /// Reads have found that already, and `replay` would refuse it.
    #[error(
        "reads have found job {0} not applied, and a resend might take its customer's last update; make the update at the provider by hand and use `resolve --as accepted`, or `--as rejected`"
    )]
    LastUpdate(Uuid),
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
            Finding::Accepted if !row.may_be_applied => return Err(ResolveError::NothingWasSent(job_id)),
            Finding::NotApplied | Finding::Rejected if row.is_accepted_late => {
                return Err(ResolveError::AcceptedLate(job_id));
            }
            Finding::NotApplied if row.reason_code.as_deref() == Some(LAST_UPDATE) => {
                return Err(ResolveError::LastUpdate(job_id));
            }
            _ => {}
        }
        let from = row.position(job_id).ok_or(ResolveError::NotKnown(job_id))?;
        let to = Destination::End(finding.ended());
        // An acceptance is followed to the end of its verification, as any other is.
        let at_end = AtEnd { verification_after: Duration::ZERO, is_told: is_told_lately(tx).await? };
        move_locked(tx, at_end, &[Move::new(from, &to)]).await?;
        let detail = format!("was {was}, resolved as {}", finding.name());
        let intervention = Intervention {
            action: "resolve",
            job_id: Some(job_id),
            customer_id: row.customer_id,
            detail: Some(&detail),
        };
        record(&mut *tx, intervention, attribution).await?;
        Ok(Resolved { job_id, customer_id: row.customer_id, was, state: finding.ended().state.name() })
    })
    .await
}
