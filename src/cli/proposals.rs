//! `kyc-worker proposals`, `approve` and `decline`: what waits for a second person, and what they decide.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use sqlx::PgPool;
use time::OffsetDateTime;

use super::attribution::AttributionArgs;
use super::database::DeskArgs;
use super::replay::rules_of;
use super::terminal::age_text;
use crate::config::ReadBackSettings;
use crate::desk::proposals::{self, DecideError, Deed, Pending, Proposal, pending, policy};
use crate::journal::ApprovalPolicy;
use crate::visible::visible;

/// List what waits for a second person, the oldest first, and what an approval would do now
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker proposals\n  kyc-worker proposals --json | jq '.pending[].id'"
)]
pub(super) struct ProposalsArgs {
    #[command(flatten)]
    desk: DeskArgs,
    /// What a customer may spend.
    #[command(flatten)]
    read_back: ReadBackSettings,
}

/// Approve what somebody else proposed, and do it
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker proposals\n  kyc-worker approve 17 18 --by ben --note 'checked in the dashboard'\n\nA proposal is void once what it was proposed of has changed. A requeue and a forgetting are only allowed by it: the command that does it is printed, and takes the proposal within a day."
)]
pub(super) struct ApproveArgs {
    /// The proposals, as `proposals` names them
    #[arg(value_name = "ID", required = true)]
    ids: Vec<i64>,
    #[command(flatten)]
    attribution: AttributionArgs,
    #[command(flatten)]
    desk: DeskArgs,
    /// What a customer may spend.
    #[command(flatten)]
    read_back: ReadBackSettings,
}

/// Decline proposals: nothing of them is done. Who made one may take it back so
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker decline 17 --by ben --note 'the dashboard shows another document'"
)]
pub(super) struct DeclineArgs {
    /// The proposals, as `proposals` names them
    #[arg(value_name = "ID", required = true)]
    ids: Vec<i64>,
    #[command(flatten)]
    attribution: AttributionArgs,
    #[command(flatten)]
    desk: DeskArgs,
}

#[derive(Serialize)]
struct Waiting {
    /// What a second person must approve.
    policy: ApprovalPolicy,
    pending: Vec<Pending>,
}

pub(super) async fn list(args: &ProposalsArgs) -> anyhow::Result<ExitCode> {
    let pool = args.desk.open().await?;
    let pending = pending(&pool, rules_of(&args.read_back), None).await?;
    args.desk.print(&Waiting { policy: policy(&pool).await?, pending }, print_waiting)
}

fn print_waiting(Waiting { policy, pending }: &Waiting) {
    println!("{policy}");
    if pending.is_empty() {
        println!("no proposal waits");
        return;
    }
    let now = OffsetDateTime::now_utc();
    for Pending { proposal, asks, effect, refusal } in pending {
        let Proposal { id, proposed_by, proposed_at, note, .. } = proposal;
        let age = age_text(now - *proposed_at);
        println!("{id}  {asks}\n  by {}, {age} ago: {}", visible(proposed_by), visible(note));
        match refusal {
            Some(why) => println!("  would be refused: {}", visible(why)),
            None => println!("  {}", visible(effect)),
        }
    }
}

/// What became of some proposals.
#[derive(Serialize)]
struct Report {
    decided: Vec<Decided>,
    refused: Vec<Refused>,
}

/// A proposal that is decided on now.
#[derive(Serialize)]
struct Decided {
    #[serde(flatten)]
    proposal: Proposal,
    /// What it asks for.
    asks: String,
    /// The command that does it; none where it is done, or declined.
    next: Option<String>,
}

/// A proposal that is not decided on as it was to be.
#[derive(Serialize)]
struct Refused {
    id: i64,
    why: String,
}

pub(super) async fn approve(args: &ApproveArgs) -> anyhow::Result<ExitCode> {
    let pool = args.desk.open().await?;
    let (rules, attribution) = (rules_of(&args.read_back), args.attribution.attribution());
    let approving = async |pool: &PgPool, id| proposals::approve(pool, id, rules, attribution).await;
    decide(&args.desk, &pool, &args.ids, approving).await
}

pub(super) async fn decline(args: &DeclineArgs) -> anyhow::Result<ExitCode> {
    let pool = args.desk.open().await?;
    let attribution = args.attribution.attribution();
    let declining = async |pool: &PgPool, id| proposals::decline(pool, id, attribution).await;
    decide(&args.desk, &pool, &args.ids, declining).await
}

async fn decide(
    desk: &DeskArgs,
    pool: &PgPool,
    ids: &[i64],
    decide_one: impl AsyncFn(&PgPool, i64) -> Result<Proposal, DecideError>,
) -> anyhow::Result<ExitCode> {
    let mut report = Report { decided: Vec::new(), refused: Vec::new() };
    for id in ids {
        match decide_one(pool, *id).await {
            Ok(proposal) => report.decided.push(Decided::of(proposal)?),
            Err(error @ DecideError::Database(_)) => return Err(error.into()),
            Err(refusal) => report.refused.push(Refused { id: *id, why: refusal.to_string() }),
        }
    }
    desk.print(&report, print_report)?;
    Ok(if report.refused.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Decided {
    fn of(proposal: Proposal) -> sqlx::Result<Self> {
        let (deed, id) = (proposal.deed()?, proposal.id);
        let next = match &deed {
            Deed::Requeue { .. } => Some(format!("kyc-worker dead-letters requeue --proposal {id}")),
            Deed::Forget { .. } => Some(format!("kyc-worker forget --proposal {id}")),
            Deed::Replay { .. } | Deed::Resolve { .. } | Deed::Budget { .. } | Deed::Resume => None,
        };
        let next = next.filter(|_| proposal.is_approved());
        Ok(Self { asks: deed.to_string(), next, proposal })
    }
}

fn print_report(report: &Report) {
    for Decided { proposal, asks, next } in &report.decided {
        let decision = proposal.decision.as_deref().unwrap_or_default();
        match next {
            Some(next) => {
                println!("proposal {} {decision}: {asks}\ndo it within a day with `{next}`", proposal.id)
            }
            None if proposal.is_approved() => {
                println!("proposal {} {decision} and done: {asks}", proposal.id)
            }
            None => println!("proposal {} {decision}: {asks}", proposal.id),
        }
    }
    report.refused.iter().for_each(|Refused { why, .. }| println!("{}", visible(why)));
}
