//! A person sends ended jobs again. Each is checked inside the transaction that schedules it:
//! precedence and budget as a claim checks them, and the claim will check them once more.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::desk::interventions::{Attribution, Intervention, record};
use crate::desk::job_row::{JobRow, lock_job, read_job};
use crate::desk::version::{Changed, Version};
use crate::domain::budget::Budget;
use crate::domain::precedence::{Asking, Decision, decide};
use crate::domain::state::State;
use crate::domain::suspicion::{Customer, FATE_UNKNOWN};
use crate::journal::statements::customers::read_customers;
use crate::journal::{read_snapshot, transact};

/// Which jobs to send again.
#[derive(Clone, Debug)]
pub struct Selection<'a> {
    /// The state that they ended in.
    pub state: Option<State>,
    pub reason_code: Option<&'a str>,
    pub limit: i64,
}

/// What decides whether a job may be sent again.
#[derive(Clone, Copy, Debug)]
pub struct ReplayRules {
    /// How many updates the provider allows a customer.
    pub customer_updates: u32,
    /// A verification lasts at least so long.
    pub read_back_window: Duration,
}

/// Whether a replay is to be.
#[derive(Clone, Copy, Debug)]
pub enum Intent<'a> {
    /// Only to know: nothing is locked or written.
    DryRun,
    /// To do it, due after so long.
    Replay {
        attribution: Attribution<'a>,
        /// From now to when it is due.
        delay: Duration,
    },
}

/// What became of one job's replay.
#[derive(Debug, Serialize)]
pub struct Replay {
    pub job_id: Uuid,
    pub customer_id: Option<Uuid>,
    pub was: Option<String>,
    /// What it was, for who decides by it.
    pub version: Option<Version>,
    /// How many updates the customer has left before it.
    pub updates_left: Option<u32>,
    /// Why it is not sent again; none if it is.
    pub refusal: Option<Refusal>,
}

/// Why a job is not sent again.
#[derive(Debug, Eq, PartialEq)]
pub enum Refusal {
    NotKnown,
    Changed(Changed),
    InMotion,
    EndedForGood(State),
    FateUnknown,
    AcceptedLate,
    NoPayload,
    Expired,
    BudgetSpent,
    LastUpdate,
    Superseded { by: Uuid },
    Duplicate { of: Uuid },
    NewerFateUnknown { newer: Uuid },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotKnown => "no such job is known; is it still in the queue, or dead-lettered?",
            Self::Changed(changed) => return write!(f, "{changed}"),
            Self::InMotion => "is in motion already",
            Self::EndedForGood(State::Accepted) => "was accepted: nothing is left to be sent",
            Self::EndedForGood(State::Superseded) => {
                "was superseded: a newer job of its customer took its place, and this one would undo that"
            }
            Self::EndedForGood(State::Duplicate) => "asked for what another job asks for; that one is sent",
            Self::EndedForGood(_) => "was refused for good; publish a corrected job under a new job_id",
            Self::FateUnknown => "may have been applied; `kyc-worker resolve` it first",
            Self::AcceptedLate => "was accepted, as a late answer says; `kyc-worker resolve --as accepted`",
            Self::NoPayload => "its payload is gone (PAYLOAD_RETENTION, or forgotten); publish it anew",
            Self::Expired => "it has expired, or a link of it ends too soon; publish it anew with links that hold for a day",
            Self::BudgetSpent => "the customer's updates are spent",
            Self::LastUpdate => "a resend might take the customer's last update",
            Self::Superseded { by } => return write!(f, "the newer job {by} was accepted"),
            Self::Duplicate { of } => return write!(f, "job {of} asks for the same, and may be applied"),
            Self::NewerFateUnknown { newer } => {
                return write!(f, "the newer job {newer} may be applied; resolve that one first");
            }
        })
    }
}

impl Serialize for Refusal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The ended jobs that `selection` means, those asked for first before the others.
pub async fn find_ended(pool: &PgPool, selection: &Selection<'_>) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        "-- find_ended
        -- Of whom the payload is gone, nothing can be sent again: those that remain are few.
        select job_id
        from submission
        where state in ('exhausted', 'needs_review') and sealed_payload is not null
            and ($1::text is null or state = $1) and ($2::text is null or reason_code = $2)
        order by requested_at, received_at, job_id
        limit $3",
        selection.state.map(State::name),
        selection.reason_code,
        selection.limit,
    )
    .fetch_all(pool)
    .await
}

/// Sends one job again, or says why not; where `expected` is given, only if the job is that still. One
/// commit; of a dry run, none.
pub async fn replay(
    pool: &PgPool,
    job_id: Uuid,
    rules: ReplayRules,
    intent: Intent<'_>,
    expected: Option<&Version>,
) -> sqlx::Result<Replay> {
    match intent {
        Intent::DryRun => {
            read_snapshot(pool, async |tx| replay_in(tx, job_id, rules, intent, expected).await).await
        }
        Intent::Replay { .. } => {
            transact(pool, async |tx| replay_in(tx, job_id, rules, intent, expected).await).await
        }
    }
}

/// The same in a transaction.
pub(crate) async fn replay_in(
    tx: &mut PgConnection,
    job_id: Uuid,
    rules: ReplayRules,
    intent: Intent<'_>,
    expected: Option<&Version>,
) -> sqlx::Result<Replay> {
    let row = match intent {
        Intent::DryRun => read_job(tx, job_id).await?,
        Intent::Replay { .. } => lock_job(tx, job_id).await?,
    };
    let Some(row) = row else {
        let refusal = Some(Refusal::NotKnown);
        return Ok(Replay {
            job_id,
            customer_id: None,
            was: None,
            version: None,
            updates_left: None,
            refusal,
        });
    };
    let customer = match row.customer_id {
        Some(customer_id) => {
            let mut customers = read_customers(tx, [(customer_id, None)]).await?;
            Some(customers.remove(&customer_id).unwrap_or_default())
        }
        None => None,
    };
    let budget = customer.as_ref().map(|customer| customer.budget(rules.customer_updates));
    let (was, version) = (row.describe(), row.version());
    let refusal = version.expect(expected).err().map(Refusal::Changed);
    let refusal = refusal
        .or_else(|| refusal_of_row(&row))
        .or_else(|| refusal_of_customer(job_id, &row, customer.as_ref(), rules));
    if let (None, Intent::Replay { attribution, delay }) = (&refusal, intent) {
        schedule_again(tx, job_id, delay).await?;
        let detail = format!("was {was}");
        let intervention = Intervention {
            action: "replay",
            job_id: Some(job_id),
            customer_id: row.customer_id,
            detail: Some(&detail),
        };
        record(tx, intervention, attribution).await?;
    }
    Ok(Replay {
        job_id,
        customer_id: row.customer_id,
        was: Some(was),
        version: Some(version),
        updates_left: budget.map(Budget::left),
        refusal,
    })
}

/// Why the job's own row forbids it.
fn refusal_of_row(row: &JobRow) -> Option<Refusal> {
    if row.state.is_in_motion() {
        return Some(Refusal::InMotion);
    }
    if !row.state.is_replayable() {
        return Some(Refusal::EndedForGood(row.state));
    }
    if row.reason_code.as_deref() == Some(FATE_UNKNOWN) {
        return Some(Refusal::FateUnknown);
    }
    if row.is_accepted_late {
        return Some(Refusal::AcceptedLate);
    }
    if !row.has_payload {
        return Some(Refusal::NoPayload);
    }
    row.is_expired.then_some(Refusal::Expired)
}

/// Why the customer's other jobs or their budget forbid it.
fn refusal_of_customer(
    job_id: Uuid,
    row: &JobRow,
    customer: Option<&Customer>,
    rules: ReplayRules,
) -> Option<Refusal> {
    let Some(customer) = customer else { return Some(Refusal::EndedForGood(row.state)) };
    if customer.budget(rules.customer_updates).left() == 0 {
        return Some(Refusal::BudgetSpent);
    }
    let asking = Asking {
        job_id,
        age_key: (row.requested_at.unwrap_or(row.received_at), row.received_at, job_id),
        content_hmac: row.content_hmac.as_deref(),
        is_resend: row.may_be_applied,
    };
    match decide(&asking, customer, rules.read_back_window, rules.customer_updates) {
        // Behind a newer one it waits, as any other job does.
        Decision::Go | Decision::Wait => None,
        Decision::Superseded { by } => Some(Refusal::Superseded { by }),
        Decision::Duplicate { of } => Some(Refusal::Duplicate { of }),
        Decision::NewerFateUnknown { newer } => Some(Refusal::NewerFateUnknown { newer }),
        Decision::LastUpdate => Some(Refusal::LastUpdate),
    }
}

async fn schedule_again(tx: &mut PgConnection, job_id: Uuid, delay: Duration) -> sqlx::Result<()> {
    // The schedule begins anew; whoever still holds an old claim is fenced out.
    sqlx::query!(
        "-- schedule_again
        update submission
        set state = 'waiting', waiting_for = 'retry', due_at = now() + make_interval(secs => $2),
            reason_code = 'replayed', reason = 'a person has it sent again', ended_at = null,
            retries = 0, claim_token = claim_token + 1, claimed_until = null
        where job_id = $1",
        job_id,
        delay.as_secs_f64(),
    )
    .execute(tx)
    .await?;
    Ok(())
}
