//! What one person proposes and another approves. An approval does the very thing that the command does, in
//! one commit with the decision; what needs the broker too is only allowed by it, and done by its command
//! within a day.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::desk::budget::{lock_customer, set_budget_in};
use crate::desk::dead_letters::name_of_letter;
use crate::desk::interventions::{Attribution, resume_in, version_of_pause};
use crate::desk::job_row::{JobRow, lock_job, read_jobs};
use crate::desk::replay::{Intent, ReplayRules, replay_in, version_of, weigh};
use crate::desk::resolve::{Finding, ResolveError, check, resolve_in};
use crate::desk::story::{Spent, spent};
use crate::desk::version::{Changed, Version};
use crate::domain::suspicion::Customer;
use crate::failpoint::{Point, reach};
use crate::journal::pause::{Pause, current_pause, lock_pause};
use crate::journal::statements::customers::read_customers;
use crate::journal::{ApprovalPolicy, approval_policy, read_snapshot, transact};

/// The word for the decision that has a proposal carried out.
const APPROVED: &str = "approved";

/// What is proposed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Deed {
    Replay { job_id: Uuid },
    Resolve { job_id: Uuid, finding: Finding },
    Budget { customer_id: Uuid, used: i32 },
    Resume,
    Requeue { letter_id: String },
    Forget { customer_id: Uuid },
}

impl Deed {
    /// The action, as the tables name it.
    pub fn action(&self) -> &'static str {
        match self {
            Self::Replay { .. } => "replay",
            Self::Resolve { .. } => "resolve",
            Self::Budget { .. } => "budget",
            Self::Resume => "resume",
            Self::Requeue { .. } => "requeue",
            Self::Forget { .. } => "forget",
        }
    }
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replay { job_id } => write!(f, "replay job {job_id}"),
            Self::Resolve { job_id, finding } => write!(f, "resolve job {job_id} as {}", finding.name()),
            Self::Budget { customer_id, used } => {
                write!(f, "set the budget of customer {customer_id} to {used} spent elsewhere")
            }
            Self::Resume => f.write_str("resume the work"),
            Self::Requeue { letter_id } => write!(f, "requeue {}", name_of_letter(letter_id)),
            Self::Forget { customer_id } => write!(f, "forget customer {customer_id}"),
        }
    }
}

/// A proposal, as its row has it.
#[derive(Clone, Debug, Serialize)]
pub struct Proposal {
    pub id: i64,
    pub action: String,
    pub job_id: Option<Uuid>,
    pub customer_id: Option<Uuid>,
    pub finding: Option<String>,
    /// Of a budget, how many updates were spent elsewhere.
    pub used: Option<i32>,
    pub note: String,
    pub proposed_by: String,
    #[serde(with = "time::serde::rfc3339")]
    pub proposed_at: OffsetDateTime,
    /// What it was proposed of.
    pub version: String,
    pub decision: Option<String>,
    pub decided_by: Option<String>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub decided_at: Option<OffsetDateTime>,
    pub decision_note: Option<String>,
}

impl Proposal {
    /// What it asks for.
    ///
    /// # Errors
    /// When the row cannot be read: the schema allows none such.
    pub fn deed(&self) -> sqlx::Result<Deed> {
        let missing = |what: &str| sqlx::Error::Decode(format!("proposal {} has no {what}", self.id).into());
        let job_id = || self.job_id.ok_or_else(|| missing("job_id"));
        let customer_id = || self.customer_id.ok_or_else(|| missing("customer_id"));
        Ok(match self.action.as_str() {
            "replay" => Deed::Replay { job_id: job_id()? },
            "resolve" => {
                let finding =
                    Finding::ALL.into_iter().find(|one| Some(one.name()) == self.finding.as_deref());
                Deed::Resolve { job_id: job_id()?, finding: finding.ok_or_else(|| missing("finding"))? }
            }
            "budget" => {
                Deed::Budget { customer_id: customer_id()?, used: self.used.ok_or_else(|| missing("used"))? }
            }
            "resume" => Deed::Resume,
            "requeue" => {
                let letter_id = self.version.strip_prefix(&name_of_letter(""));
                Deed::Requeue { letter_id: letter_id.ok_or_else(|| missing("dead letter"))?.to_owned() }
            }
            "forget" => Deed::Forget { customer_id: customer_id()? },
            _ => return Err(missing("action that is known")),
        })
    }

    pub fn is_approved(&self) -> bool {
        self.decision.as_deref() == Some(APPROVED)
    }

    /// Who proposed it and why, for what carries it out.
    pub fn attribution(&self) -> Attribution<'_> {
        Attribution { by: &self.proposed_by, note: &self.note, proposal: Some(self.id) }
    }
}

/// A proposal that nobody has decided on.
#[derive(Debug, Serialize)]
pub struct Pending {
    #[serde(flatten)]
    pub proposal: Proposal,
    /// What it asks for.
    pub asks: String,
    /// What an approval would do now.
    pub effect: String,
    /// Why an approval would be refused now; none if it would not.
    pub refusal: Option<String>,
}

/// Why a thing is not proposed.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// It would be refused.
    #[error("{0}")]
    Refused(String),
    /// Somebody decided by what is no more so.
    #[error("cannot {asks}: it {changed}")]
    Changed {
        /// What was to be done.
        asks: String,
        changed: Changed,
    },
    /// Somebody has proposed the same, and nobody has decided on it.
    #[error("that is proposed already, as proposal {0}; approve or decline that one")]
    Waits(i64),
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

/// Why a proposal is not decided on, or not carried out.
#[derive(Debug, thiserror::Error)]
pub enum DecideError {
    #[error("there is no proposal {0}; `kyc-worker proposals` lists those that wait")]
    NotKnown(i64),
    /// Each is decided on once.
    #[error("proposal {id} is {decision} already, by {by}")]
    Decided {
        id: i64,
        /// approved, declined or void.
        decision: String,
        by: String,
    },
    /// Nobody approves what they propose.
    #[error("proposal {id} is by {by}: somebody else must approve it")]
    Own { id: i64, by: String },
    /// What it was proposed of is no more so. It is void by now.
    #[error("proposal {id} is void: it {changed}; propose it anew")]
    Void { id: i64, changed: Changed },
    /// The rules refuse it now. It stays, and may be approved later.
    #[error("proposal {id} was not carried out, and stays: {why}")]
    Refused { id: i64, why: String },
    /// It allows something else, or nothing.
    #[error("proposal {id} does not allow `{action}`: it is to {asks}, and is {is}")]
    NotAllowed { id: i64, action: &'static str, asks: String, is: String },
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

/// What a second person must approve.
pub async fn policy(pool: &PgPool) -> sqlx::Result<ApprovalPolicy> {
    approval_policy(&mut *pool.acquire().await?).await
}

/// Writes down what a person asks another to approve; where `expected` is given, only if what it is about is
/// that still. What would be refused now is not proposed.
///
/// # Errors
/// When it is not, when it would be refused, or waits already, or the database fails.
pub async fn propose(
    pool: &PgPool,
    deed: &Deed,
    rules: ReplayRules,
    expected: Option<&Version>,
    attribution: Attribution<'_>,
) -> Result<Pending, ProposeError> {
    transact(pool, async |tx| {
        let outlook = Known::of(tx, std::slice::from_ref(deed)).await?.foresee(deed, rules, None);
        let Outlook { customer_id, version, effect, refusal } = outlook;
        version
            .expect(expected)
            .map_err(|changed| ProposeError::Changed { asks: deed.to_string(), changed })?;
        if let Some(refusal) = refusal {
            return Err(ProposeError::Refused(format!("cannot {deed}: {refusal}")));
        }
        let (job_id, finding, used) = match deed {
            Deed::Replay { job_id } => (Some(*job_id), None, None),
            Deed::Resolve { job_id, finding } => (Some(*job_id), Some(finding.name()), None),
            Deed::Budget { used, .. } => (None, None, Some(*used)),
            Deed::Resume | Deed::Requeue { .. } | Deed::Forget { .. } => (None, None, None),
        };
        let id = sqlx::query_scalar!(
            "-- propose
            insert into proposal (action, job_id, customer_id, finding, used, note, proposed_by, version)
            values ($1, $2, $3, $4, $5, $6, $7, $8)
            on conflict do nothing
            returning id",
            deed.action(),
            job_id,
            customer_id,
            finding,
            used,
            attribution.note,
            attribution.by,
            version.as_str(),
        )
        .fetch_optional(&mut *tx)
        .await?;
        let Some(id) = id else {
            return Err(ProposeError::Waits(
                waiting_for_same(tx, deed, job_id, customer_id, &version).await?,
            ));
        };
        let proposal = read(tx, &[id]).await?.pop().ok_or(sqlx::Error::RowNotFound)?;
        Ok(Pending { proposal, asks: deed.to_string(), effect, refusal: None })
    })
    .await
}

/// The proposal that asks for the same and waits.
async fn waiting_for_same(
    tx: &mut PgConnection,
    deed: &Deed,
    job_id: Option<Uuid>,
    customer_id: Option<Uuid>,
    version: &Version,
) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        "-- waiting_for_same
        select id from proposal
        where decision is null and action = $1 and job_id is not distinct from $2
            and customer_id is not distinct from $3 and (action <> 'requeue' or version = $4)",
        deed.action(),
        job_id,
        customer_id,
        version.as_str(),
    )
    .fetch_one(tx)
    .await
}

/// The proposals that nobody has decided on, the oldest first, with what an approval of each would do now.
/// At most `limit` of them, if there is one.
pub async fn pending(pool: &PgPool, rules: ReplayRules, limit: Option<i64>) -> sqlx::Result<Vec<Pending>> {
    read_snapshot(pool, async |tx| {
        let ids = sqlx::query_scalar!(
            "-- pending_proposals
            select id from proposal where decision is null order by id limit $1",
            limit,
        )
        .fetch_all(&mut *tx)
        .await?;
        let proposals = read(tx, &ids).await?;
        foresee_each(tx, proposals, rules).await
    })
    .await
}

/// How many proposals nobody has decided on, and since when the oldest waits.
pub async fn waiting(pool: &PgPool) -> sqlx::Result<(i64, Option<OffsetDateTime>)> {
    let waiting = sqlx::query!(
        r#"-- waiting_proposals
        select count(*) as "count!", min(proposed_at) as oldest from proposal where decision is null"#
    )
    .fetch_one(pool)
    .await?;
    Ok((waiting.count, waiting.oldest))
}

/// What an approval of each would do now.
async fn foresee_each(
    tx: &mut PgConnection,
    proposals: Vec<Proposal>,
    rules: ReplayRules,
) -> sqlx::Result<Vec<Pending>> {
    let deeds: Vec<Deed> = proposals.iter().map(Proposal::deed).collect::<Result<_, _>>()?;
    let known = Known::of(tx, &deeds).await?;
    let pending = proposals.into_iter().zip(deeds).map(|(proposal, deed)| {
        let expected = Version::from(proposal.version.clone());
        let Outlook { effect, refusal, .. } = known.foresee(&deed, rules, Some(&expected));
        Pending { proposal, asks: deed.to_string(), effect, refusal }
    });
    Ok(pending.collect())
}

/// One proposal, with what an approval of it would do now; `None` if there is none such.
pub async fn proposal(pool: &PgPool, id: i64, rules: ReplayRules) -> sqlx::Result<Option<Pending>> {
    read_snapshot(pool, async |tx| {
        let proposals = read(tx, &[id]).await?;
        Ok(foresee_each(tx, proposals, rules).await?.pop())
    })
    .await
}

/// Approves a proposal, and does what it asks for in the same commit; a requeue and a forgetting are only
/// allowed by it. What it was proposed of must be the same still: else it is void.
///
/// # Errors
/// When nobody but another may, when it is void, when the rules refuse it now, or the database fails.
pub async fn approve(
    pool: &PgPool,
    id: i64,
    rules: ReplayRules,
    approver: Attribution<'_>,
) -> Result<Proposal, DecideError> {
    transact(pool, async |tx| {
        let proposal = lock(tx, id, approver.by).await?;
        if proposal.is_own {
            return Err(DecideError::Own { id, by: proposal.row.proposed_by });
        }
        let deed = proposal.row.deed()?;
        let was = Version::from(proposal.row.version.clone());
        if let Err(changed) = lock_version(tx, &deed).await?.expect(Some(&was)) {
            decide(tx, id, "void", approver.by, &changed.to_string()).await?;
            // Committed: nothing that was proposed of another thing is approved later.
            return Ok(Err(DecideError::Void { id, changed }));
        }
        decide(tx, id, APPROVED, approver.by, approver.note).await?;
        carry_out(tx, &proposal.row, &deed, rules).await?;
        reach(Point::ProposalApproved);
        let approved = read(tx, &[id]).await?.pop().ok_or(sqlx::Error::RowNotFound)?;
        Ok(Ok(approved))
    })
    .await?
}

/// Declines a proposal. Who made it may take it back so.
///
/// # Errors
/// When it is decided on already, or the database fails.
pub async fn decline(pool: &PgPool, id: i64, attribution: Attribution<'_>) -> Result<Proposal, DecideError> {
    transact(pool, async |tx| {
        lock(tx, id, attribution.by).await?;
        decide(tx, id, "declined", attribution.by, attribution.note).await?;
        Ok(read(tx, &[id]).await?.pop().ok_or(sqlx::Error::RowNotFound)?)
    })
    .await
}

/// A proposal that is approved, for the command that carries it out. The database checks that it was not
/// used, and is no older than a day.
///
/// # Errors
/// When it is not approved, is about another action, or the database fails.
pub async fn approved(pool: &PgPool, id: i64, action: &'static str) -> Result<(Proposal, Deed), DecideError> {
    let proposal = read(&mut *pool.acquire().await?, &[id]).await?.pop().ok_or(DecideError::NotKnown(id))?;
    let deed = proposal.deed()?;
    let is = match proposal.decision.as_deref() {
        Some(APPROVED) if is_carried_out(pool, id).await? => Some("carried out already"),
        Some(APPROVED) => None,
        Some(decision) => Some(decision),
        None => Some("not decided on"),
    };
    if deed.action() != action || is.is_some() {
        let is = is.unwrap_or(APPROVED).to_owned();
        return Err(DecideError::NotAllowed { id, action, asks: deed.to_string(), is });
    }
    Ok((proposal, deed))
}

async fn is_carried_out(pool: &PgPool, id: i64) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"-- is_carried_out
        select exists (select from intervention where proposal_id = $1) as "is_carried_out!""#,
        id,
    )
    .fetch_one(pool)
    .await
}

/// What would come of a deed now.
struct Outlook {
    customer_id: Option<Uuid>,
    version: Version,
    effect: String,
    refusal: Option<String>,
}

/// What deeds are about, as it stands now. Nothing is locked.
struct Known {
    jobs: HashMap<Uuid, JobRow>,
    customers: HashMap<Uuid, Customer>,
    pause: Option<Pause>,
}

impl Known {
    /// Of any number of deeds, in three statements.
    async fn of(tx: &mut PgConnection, deeds: &[Deed]) -> sqlx::Result<Self> {
        let (mut job_ids, mut customer_ids) = (Vec::new(), Vec::new());
        for deed in deeds {
            match deed {
                Deed::Replay { job_id } | Deed::Resolve { job_id, .. } => job_ids.push(*job_id),
                Deed::Budget { customer_id, .. } | Deed::Forget { customer_id } => {
                    customer_ids.push(*customer_id);
                }
                Deed::Resume | Deed::Requeue { .. } => {}
            }
        }
        let jobs = read_jobs(tx, &job_ids).await?;
        customer_ids.extend(jobs.values().filter_map(|row| row.customer_id));
        let customers = read_customers(tx, customer_ids.into_iter().map(|id| (id, None))).await?;
        Ok(Self { jobs, customers, pause: current_pause(&mut *tx).await? })
    }

    fn spent(&self, customer_id: Uuid) -> Spent {
        self.customers.get(&customer_id).map(Spent::of).unwrap_or_default()
    }

    /// What would come of a deed now, where what it is about is to be `expected`.
    fn foresee(&self, deed: &Deed, rules: ReplayRules, expected: Option<&Version>) -> Outlook {
        let (customer_id, version, effect, refusal) = match deed {
            Deed::Replay { job_id } => {
                let replay = weigh(*job_id, self.jobs.get(job_id), &self.customers, rules, None);
                let left = replay.updates_left.unwrap_or_default();
                let effect = format!("sent again; may spend 1 of the customer's {left} updates left");
                let refusal = replay.refusal.map(|refusal| refusal.to_string());
                (replay.customer_id, replay.version.unwrap_or_else(gone), effect, refusal)
            }
            Deed::Resolve { job_id, finding } => {
                let row = self.jobs.get(job_id);
                let checked = match row {
                    Some(row) => check(*job_id, row, *finding),
                    None => Err(ResolveError::NotKnown(*job_id)),
                };
                let version = row.map_or_else(gone, JobRow::version);
                let effect = format!("ends as {}; {}", finding.state(), finding.effect());
                let refusal = checked.err().map(|refusal| refusal.to_string());
                (row.and_then(|row| row.customer_id), version, effect, refusal)
            }
            Deed::Budget { customer_id, used } => {
                let spent = self.spent(*customer_id);
                let effect = format!(
                    "{used} spent elsewhere in place of {}; {} spent or possibly spent here",
                    spent.elsewhere, spent.here
                );
                (Some(*customer_id), spent.version(), effect, None)
            }
            Deed::Resume => {
                let effect = match &self.pause {
                    Some(Pause { by, note, .. }) => format!("the work goes on; paused by {by}: {note}"),
                    None => "nothing".to_owned(),
                };
                let refusal = self.pause.is_none().then(|| "the work is not paused".to_owned());
                (None, version_of_pause(self.pause.as_ref()), effect, refusal)
            }
            Deed::Requeue { letter_id } => {
                let effect =
                    "delivered again, once `kyc-worker dead-letters requeue --proposal` is run".to_owned();
                (None, name_of_letter(letter_id).into(), effect, None)
            }
            Deed::Forget { customer_id } => {
                let effect = "what identifies them goes for good, once `kyc-worker forget --proposal` is run";
                (Some(*customer_id), self.spent(*customer_id).version(), effect.to_owned(), None)
            }
        };
        let changed = version.expect(expected).err().map(|changed| changed.to_string());
        Outlook { customer_id, version, effect, refusal: changed.or(refusal) }
    }
}

/// What a deed is about now, locked for whoever does it.
async fn lock_version(tx: &mut PgConnection, deed: &Deed) -> sqlx::Result<Version> {
    Ok(match deed {
        Deed::Replay { job_id } => match lock_job(tx, *job_id).await? {
            Some(row) => version_of(&row, spent(tx, row.customer_id).await?),
            None => gone(),
        },
        Deed::Resolve { job_id, .. } => lock_job(tx, *job_id).await?.map_or_else(gone, |row| row.version()),
        Deed::Budget { customer_id, .. } => lock_customer(tx, *customer_id).await?.version(),
        Deed::Resume => {
            lock_pause(tx).await?;
            version_of_pause(current_pause(&mut *tx).await?.as_ref())
        }
        Deed::Requeue { letter_id } => name_of_letter(letter_id).into(),
        Deed::Forget { customer_id } => spent(tx, Some(*customer_id)).await?.unwrap_or_default().version(),
    })
}

/// What a job's row is that is not there.
fn gone() -> Version {
    "not there".to_owned().into()
}

/// Does what a proposal asks for, as its command does it. Its proposer did it, and its row names who approved.
async fn carry_out(
    tx: &mut PgConnection,
    proposal: &Proposal,
    deed: &Deed,
    rules: ReplayRules,
) -> Result<(), DecideError> {
    let (id, attribution) = (proposal.id, proposal.attribution());
    let refusal = match deed {
        Deed::Replay { job_id } => {
            let intent = Intent::Replay { attribution, delay: Duration::ZERO };
            let replay = replay_in(tx, *job_id, rules, intent, None).await?;
            replay.refusal.map(|refusal| refusal.to_string())
        }
        Deed::Resolve { job_id, finding } => {
            match resolve_in(tx, *job_id, *finding, None, attribution).await {
                Ok(_) => None,
                Err(ResolveError::Database(error)) => return Err(error.into()),
                Err(refusal) => Some(refusal.to_string()),
            }
        }
        Deed::Budget { customer_id, used } => {
            set_budget_in(tx, *customer_id, *used, attribution).await?;
            None
        }
        Deed::Resume => {
            resume_in(tx, Some(attribution.by), Some(attribution.note), attribution.proposal).await?;
            None
        }
        Deed::Requeue { .. } | Deed::Forget { .. } => None,
    };
    match refusal {
        Some(why) => Err(DecideError::Refused { id, why }),
        None => Ok(()),
    }
}

/// A proposal that is locked, and not decided on.
struct Locked {
    row: Proposal,
    /// Whether who decides proposed it.
    is_own: bool,
}

async fn lock(tx: &mut PgConnection, id: i64, by: &str) -> Result<Locked, DecideError> {
    let is_own = sqlx::query_scalar!(
        r#"-- lock_proposal
        -- As the constraint proposal_by_two compares them.
        select lower(btrim(proposed_by)) = lower(btrim($2)) as "is_own!" from proposal where id = $1 for update"#,
        id,
        by,
    )
    .fetch_optional(&mut *tx)
    .await?;
    let (Some(is_own), Some(row)) = (is_own, read(tx, &[id]).await?.pop()) else {
        return Err(DecideError::NotKnown(id));
    };
    match (&row.decision, &row.decided_by) {
        (Some(decision), Some(by)) => {
            Err(DecideError::Decided { id, decision: decision.clone(), by: by.clone() })
        }
        _ => Ok(Locked { row, is_own }),
    }
}

async fn read(connection: &mut PgConnection, ids: &[i64]) -> sqlx::Result<Vec<Proposal>> {
    sqlx::query_as!(
        Proposal,
        "-- read_proposals
        select
            id, action, job_id, customer_id, finding, used, note, proposed_by, proposed_at, version, decision,
            decided_by, decided_at, decision_note
        from proposal
        where id = any($1)
        order by id",
        ids,
    )
    .fetch_all(connection)
    .await
}

async fn decide(tx: &mut PgConnection, id: i64, decision: &str, by: &str, note: &str) -> sqlx::Result<()> {
    sqlx::query!(
        "-- decide_proposal
        update proposal
        set decision = $2, decided_by = $3, decided_at = now(), decision_note = $4
        where id = $1",
        id,
        decision,
        by,
        note,
    )
    .execute(tx)
    .await?;
    Ok(())
}
