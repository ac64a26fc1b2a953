//! A person sends ended jobs again. Each is checked inside the transaction that schedules it:
//! precedence and budget as a claim checks them, and the claim will check them once more.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::desk::interventions::{Attribution, Intervention, record};
use crate::desk::job_row::{JobRow, lock_job, read_job, read_jobs};
use crate::desk::story::Spent;
use crate::desk::version::{Changed, Version};
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
            Self::AcceptedLate => {
                "was accepted, as a late answer says: nothing is left to be sent; where it needs review, `kyc-worker resolve --as accepted`"
            }
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
    let state = selection.state.map(State::name);
    // Two statements, so that each has its index, which has the jobs of a state in this order. Of whom the payload
    // is gone, nothing can be sent again. Asked so, the index of kept payloads serves whoever may see that there
    // is one, and not what it is.
    let Some(reason_code) = selection.reason_code else {
        return sqlx::query_scalar!(
            "-- find_ended
            select found.job_id
            from unnest(array['exhausted', 'needs_review']) ended (state)
            cross join lateral (
                select job_id, requested_at, received_at
                from submission s
                where s.state = ended.state and s.state in ('exhausted', 'needs_review')
                    and octet_length(s.sealed_payload) >= 0
                order by s.requested_at, s.received_at, s.job_id
                limit $2
            ) found
            where $1::text is null or ended.state = $1
            order by found.requested_at, found.received_at, found.job_id
            limit $2",
            state,
            selection.limit,
        )
        .fetch_all(pool)
        .await;
    };
    sqlx::query_scalar!(
        "-- find_ended_for_reason
        select found.job_id
        from unnest(array['exhausted', 'needs_review']) ended (state)
        cross join lateral (
            select job_id, requested_at, received_at
            from submission s
            where s.state = ended.state and s.state in ('exhausted', 'needs_review')
                and octet_length(s.sealed_payload) >= 0 and s.reason_code = $2
            order by s.requested_at, s.received_at, s.job_id
            limit $3
        ) found
        where $1::text is null or ended.state = $1
        order by found.requested_at, found.received_at, found.job_id
        limit $3",
        state,
        reason_code,
        selection.limit,
    )
    .fetch_all(pool)
    .await
}

/// What sending each of some jobs again would do, as far as nothing is sent of the others; over one snapshot.
pub async fn foresee(pool: &PgPool, job_ids: &[Uuid], rules: ReplayRules) -> sqlx::Result<Vec<Replay>> {
    read_snapshot(pool, async |tx| {
        let rows = read_jobs(tx, job_ids).await?;
        let asked = rows.values().filter_map(|row| Some((row.customer_id?, None)));
        let customers = read_customers(tx, asked).await?;
        let replay = |job_id: &Uuid| weigh(*job_id, rows.get(job_id), &customers, rules, None);
        Ok(job_ids.iter().map(replay).collect())
    })
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
    let asked = row.as_ref().and_then(|row| Some((row.customer_id?, None)));
    let customers = read_customers(tx, asked).await?;
    let replay = weigh(job_id, row.as_ref(), &customers, rules, expected);
    if let (None, Intent::Replay { attribution, delay }) = (&replay.refusal, intent) {
        let detail = replay.was.as_ref().map(|was| format!("was {was}"));
        let intervention = Intervention {
            action: "replay",
            job_id: Some(job_id),
            customer_id: replay.customer_id,
            detail: detail.as_deref(),
        };
        record(&mut *tx, intervention, attribution).await?;
        schedule_again(tx, job_id, delay).await?;
    }
    Ok(replay)
}

/// What sending a job again would do, by its row and what is known of customers.
pub(crate) fn weigh(
    job_id: Uuid,
    row: Option<&JobRow>,
    customers: &HashMap<Uuid, Customer>,
    rules: ReplayRules,
    expected: Option<&Version>,
) -> Replay {
    let Some(row) = row else {
        let refusal = Some(Refusal::NotKnown);
        return Replay { job_id, customer_id: None, was: None, version: None, updates_left: None, refusal };
    };
    let nothing = Customer::default();
    let customer = row.customer_id.map(|id| customers.get(&id).unwrap_or(&nothing));
    let (was, version) = (row.describe(), version_of(row, customer.map(Spent::of)));
    let refusal = version.expect(expected).err().map(Refusal::Changed);
    let refusal =
        refusal.or_else(|| refusal_of_row(row)).or_else(|| refusal_of_customer(job_id, row, customer, rules));
    Replay {
        job_id,
        customer_id: row.customer_id,
        was: Some(was),
        version: Some(version),
        updates_left: customer.map(|customer| customer.budget(rules.customer_updates).left()),
        refusal,
    }
}

/// What a replay is decided by: the job's row, and what the customer has left.
pub(crate) fn version_of(row: &JobRow, spent: Option<Spent>) -> Version {
    let spent = spent.unwrap_or_default();
    format!("{}; {}", row.version(), spent.version()).into()
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
