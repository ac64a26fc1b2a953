//! A person settles what no read of the customer could. Nothing is sent by it.

use std::time::Duration;

use serde::Serialize;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::desk::interventions::{Attribution, Intervention, record};
use crate::desk::job_row::{JobRow, lock_job, read_job};
use crate::desk::version::{Changed, Version};
use crate::domain::outcome::{Ended, LAST_UPDATE};
use crate::domain::state::{Evidence, State};
use crate::domain::suspicion::{NOT_APPLIED, PastJob};
use crate::domain::verdict::Acceptance;
use crate::journal::statements::customers::read_customers;
use crate::journal::statements::events::is_told_lately;
use crate::journal::statements::move_on::{Destination, Move, move_locked};
use crate::journal::{AtEnd, read_snapshot, transact};

/// What a person has found out of a job.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Finding {
    /// The provider has the update
    Accepted,
    /// It is not to be sent any more
    Rejected,
    /// No attempt was applied: `replay` may send it again
    NotApplied,
}

impl Finding {
    pub const ALL: [Self; 3] = [Self::Accepted, Self::Rejected, Self::NotApplied];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accepted => State::Accepted.name(),
            Self::Rejected => State::Rejected.name(),
            Self::NotApplied => "not-applied",
        }
    }

    /// What was found, for people.
    pub fn about(self) -> &'static str {
        match self {
            Self::Accepted => "The provider has the update",
            Self::Rejected => "It is not to be sent any more",
            Self::NotApplied => "No attempt was applied",
        }
    }

    /// The state that the job ends in by it.
    pub(crate) fn state(self) -> State {
        self.ended().state
    }

    /// What it makes of the updates that the job may have spent.
    pub(crate) fn effect(self) -> &'static str {
        match self {
            Self::Accepted => "declares its update spent",
            Self::Rejected => "gives no update back",
            Self::NotApplied => "gives no update back, and `replay` may spend another",
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
    /// Somebody decided by what is no more so.
    #[error("job {job_id} {changed}")]
    Changed {
        /// The job.
        job_id: Uuid,
        /// What had changed.
        changed: Changed,
    },
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

/// What each finding would make of a job.
#[derive(Debug, Serialize)]
pub struct Preview {
    pub job_id: Uuid,
    pub customer_id: Option<Uuid>,
    /// How it stands.
    pub was: String,
    /// What it is, for who decides by it.
    pub version: Version,
    /// How many updates the job spent, or may have. They stay counted, whatever is found.
    pub counted: u32,
    /// How many other jobs of the customer wait.
    pub waiting: i64,
    pub findings: Vec<FindingPreview>,
}

/// What a finding would make of a job.
#[derive(Debug, Serialize)]
pub struct FindingPreview {
    pub finding: Finding,
    /// Why it is refused; none if it is not.
    pub refusal: Option<String>,
    /// How the job would end.
    pub state: &'static str,
    pub reason_code: Option<&'static str>,
    /// What it makes of the updates that are counted.
    pub effect: &'static str,
}

/// What each finding would make of a job; `None` if it is not known. Nothing is locked or written.
pub async fn preview(pool: &PgPool, job_id: Uuid) -> sqlx::Result<Option<Preview>> {
    read_snapshot(pool, async |tx| {
        let Some(row) = read_job(tx, job_id).await? else { return Ok(None) };
        let (counted, waiting) = match row.customer_id {
            Some(customer_id) => {
                let customers = read_customers(tx, [(customer_id, None)]).await?;
                let job = customers.get(&customer_id).and_then(|customer| customer.job(job_id));
                (job.map_or(0, PastJob::spent), count_waiting(tx, customer_id, job_id).await?)
            }
            None => (0, 0),
        };
        let findings = Finding::ALL.map(|finding| {
            let Ended { state, reason_code, .. } = finding.ended();
            let refusal = check(job_id, &row, finding).err().map(|refusal| refusal.to_string());
            FindingPreview { finding, refusal, state: state.name(), reason_code, effect: finding.effect() }
        });
        Ok(Some(Preview {
            job_id,
            customer_id: row.customer_id,
            was: row.describe(),
            version: row.version(),
            counted,
            waiting,
            findings: findings.into(),
        }))
    })
    .await
}

/// How many jobs of a customer wait beside one.
async fn count_waiting(tx: &mut PgConnection, customer_id: Uuid, job_id: Uuid) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"-- count_waiting
        select count(*) as "count!" from submission
        where customer_id = $1 and state = 'waiting' and job_id <> $2"#,
        customer_id,
        job_id,
    )
    .fetch_one(tx)
    .await
}

/// Whether a job may be settled so, by its row.
pub(crate) fn check(job_id: Uuid, row: &JobRow, finding: Finding) -> Result<(), ResolveError> {
    if row.state != State::NeedsReview {
        return Err(ResolveError::NotInReview { job_id, is: row.describe() });
    }
    match finding {
        Finding::Accepted if !row.may_be_applied => Err(ResolveError::NothingWasSent(job_id)),
        Finding::NotApplied | Finding::Rejected if row.is_accepted_late => {
            Err(ResolveError::AcceptedLate(job_id))
        }
        Finding::NotApplied if row.reason_code.as_deref() == Some(LAST_UPDATE) => {
            Err(ResolveError::LastUpdate(job_id))
        }
        _ => Ok(()),
    }
}

/// Settles a job in `needs_review`, in one commit with who says so and why; where `expected` is given, only
/// if the job is that still.
///
/// # Errors
/// When it cannot be settled so, or the database fails.
pub async fn resolve(
    pool: &PgPool,
    job_id: Uuid,
    finding: Finding,
    expected: Option<&Version>,
    attribution: Attribution<'_>,
) -> Result<Resolved, ResolveError> {
    transact(pool, async |tx| resolve_in(tx, job_id, finding, expected, attribution).await).await
}

/// The same in a transaction.
pub(crate) async fn resolve_in(
    tx: &mut PgConnection,
    job_id: Uuid,
    finding: Finding,
    expected: Option<&Version>,
    attribution: Attribution<'_>,
) -> Result<Resolved, ResolveError> {
    let row = lock_job(tx, job_id).await?.ok_or(ResolveError::NotKnown(job_id))?;
    row.version().expect(expected).map_err(|changed| ResolveError::Changed { job_id, changed })?;
    check(job_id, &row, finding)?;
    let was = row.describe();
    let from = row.position(job_id).ok_or(ResolveError::NotKnown(job_id))?;
    let to = Destination::End(finding.ended());
    // An acceptance is followed to the end of its verification, as any other is.
    let at_end = AtEnd { verification_after: Duration::ZERO, is_told: is_told_lately(tx).await? };
    let detail = format!("was {was}, resolved as {}", finding.name());
    let intervention = Intervention {
        action: "resolve",
        job_id: Some(job_id),
        customer_id: row.customer_id,
        detail: Some(&detail),
    };
    record(&mut *tx, intervention, attribution).await?;
    move_locked(tx, at_end, &[Move::new(from, &to)]).await?;
    Ok(Resolved { job_id, customer_id: row.customer_id, was, state: finding.state().name() })
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::domain::suspicion::FATE_UNKNOWN;

    #[test]
    fn each_finding_is_refused_where_it_would_leave_the_books_wrong() {
        let refusals = |state, reason_code: &str, may_be_applied, is_accepted_late| {
            let row = JobRow {
                job_id: Uuid::nil(),
                customer_id: Some(Uuid::nil()),
                requested_at: None,
                received_at: OffsetDateTime::UNIX_EPOCH,
                content_hmac: None,
                has_payload: true,
                is_expired: false,
                may_be_applied,
                is_accepted_late,
                state,
                token: 1,
                chain: None,
                entries: 2,
                reason_code: Some(reason_code.to_owned()),
            };
            Finding::ALL.map(|finding| match check(Uuid::nil(), &row, finding) {
                Ok(()) => "",
                Err(ResolveError::NotInReview { .. }) => "not in review",
                Err(ResolveError::NothingWasSent(_)) => "nothing was sent",
                Err(ResolveError::AcceptedLate(_)) => "accepted late",
                Err(ResolveError::LastUpdate(_)) => "last update",
                Err(other) => panic!("{other}"),
            })
        };
        let review = State::NeedsReview;
        for (row, accepted_rejected_not_applied) in [
            ((review, FATE_UNKNOWN, true, false), ["", "", ""]),
            ((review, FATE_UNKNOWN, true, true), ["", "accepted late", "accepted late"]),
            ((review, LAST_UPDATE, true, false), ["", "", "last update"]),
            ((review, "newer_fate_unknown", false, false), ["nothing was sent", "", ""]),
            ((State::Exhausted, "attempts", true, false), ["not in review"; 3]),
            ((State::Waiting, "replayed", true, true), ["not in review"; 3]),
        ] {
            let (state, reason_code, may_be_applied, is_accepted_late) = row;
            let told = refusals(state, reason_code, may_be_applied, is_accepted_late);
            assert_eq!(told, accepted_rejected_not_applied, "{row:?}");
        }
    }
}
