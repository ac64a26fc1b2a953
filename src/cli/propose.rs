//! `kyc-worker propose`: what one person asks another to approve.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;
use uuid::Uuid;

use super::attribution::AttributionArgs;
use super::database::DeskArgs;
use super::replay::rules_of;
use crate::config::ReadBackSettings;
use crate::desk::proposals::{Deed, Pending, ProposeError, propose};
use crate::desk::resolve::Finding;
use crate::visible::visible;

/// Propose what a second person must approve; nothing is done before that
#[derive(Debug, Subcommand)]
pub(super) enum ProposeCommand {
    Replay(ReplayArgs),
    Resolve(ResolveArgs),
    Budget(BudgetArgs),
    Resume(ResumeArgs),
    Requeue(RequeueArgs),
    Forget(ForgetArgs),
}

/// Propose to send ended jobs again
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker propose replay fe34e2ef-65af-4a0a-9edc-87701550b77b --by ana --note 'the provider is mended'\n  kyc-worker approve 17 --by ben --note 'so it is'\n\nWhat `replay` would refuse now is not proposed."
)]
pub(super) struct ReplayArgs {
    /// The jobs
    #[arg(value_name = "JOB_ID", required = true)]
    job_ids: Vec<Uuid>,
    #[command(flatten)]
    common: CommonArgs,
}

/// Propose to settle jobs in needs_review with what was found out
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker propose resolve 3f0c2a9e-5f0e-4f57-9d0c-2d6f7c1f1a11 --as accepted --by ana --note 'seen in the dashboard'\n\nWhat `resolve` would refuse now is not proposed."
)]
pub(super) struct ResolveArgs {
    /// The jobs
    #[arg(value_name = "JOB_ID", required = true)]
    job_ids: Vec<Uuid>,
    /// What was found out
    #[arg(long = "as", value_name = "FINDING")]
    finding: Finding,
    #[command(flatten)]
    common: CommonArgs,
}

/// Propose how many of a customer's updates were spent elsewhere
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker propose budget --customer 4e6f1b20-a73c-11ec-b909-0242ac120002 --used 1 --by ana --note 'updated by hand in the dashboard'"
)]
pub(super) struct BudgetArgs {
    /// The customer
    #[arg(long, value_name = "ID")]
    customer: Uuid,
    /// How many updates were spent elsewhere, in all
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..=1000))]
    used: i32,
    #[command(flatten)]
    common: CommonArgs,
}

/// Propose to end the pause
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  kyc-worker propose resume --by ana --note 'maintenance is over'")]
pub(super) struct ResumeArgs {
    #[command(flatten)]
    common: CommonArgs,
}

/// Propose to have dead letters delivered again
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker propose requeue 1f2e3d4c5b6a --by ana --note 'the contract allows it now'\n  kyc-worker approve 17 --by ben --note 'so it does'\n  kyc-worker dead-letters requeue --proposal 17"
)]
pub(super) struct RequeueArgs {
    /// The dead letters, as `dead-letters list` names them
    #[arg(value_name = "ID", required = true, value_parser = parse_letter)]
    letters: Vec<String>,
    #[command(flatten)]
    common: CommonArgs,
}

/// Propose to forget a customer
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker propose forget --customer 4e6f1b20-a73c-11ec-b909-0242ac120002 --by ana --note 'erasure request 4711'\n  kyc-worker approve 17 --by ben --note 'the request is signed'\n  kyc-worker forget --proposal 17"
)]
pub(super) struct ForgetArgs {
    /// The customer
    #[arg(long, value_name = "ID")]
    customer: Uuid,
    #[command(flatten)]
    common: CommonArgs,
}

/// What each takes.
#[derive(Args, Debug)]
struct CommonArgs {
    #[command(flatten)]
    attribution: AttributionArgs,
    #[command(flatten)]
    desk: DeskArgs,
    /// What a customer may spend.
    #[command(flatten)]
    read_back: ReadBackSettings,
}

/// A name of a dead letter.
fn parse_letter(text: &str) -> Result<String, String> {
    let is_name = text.len() == 12 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_name.then(|| text.to_owned()).ok_or_else(|| "must have 12 digits of 0 to 9 and a to f".to_owned())
}

#[derive(Serialize)]
struct Report {
    proposed: Vec<Pending>,
    refused: Vec<String>,
}

pub(super) async fn run(command: &ProposeCommand) -> anyhow::Result<ExitCode> {
    let jobs = |ids: &[Uuid], deed: &dyn Fn(Uuid) -> Deed| ids.iter().copied().map(deed).collect();
    let (deeds, common): (Vec<Deed>, &CommonArgs) = match command {
        ProposeCommand::Replay(args) => {
            (jobs(&args.job_ids, &|job_id| Deed::Replay { job_id }), &args.common)
        }
        ProposeCommand::Resolve(ResolveArgs { job_ids, finding, common }) => {
            (jobs(job_ids, &|job_id| Deed::Resolve { job_id, finding: *finding }), common)
        }
        ProposeCommand::Budget(BudgetArgs { customer, used, common }) => {
            (vec![Deed::Budget { customer_id: *customer, used: *used }], common)
        }
        ProposeCommand::Resume(args) => (vec![Deed::Resume], &args.common),
        ProposeCommand::Requeue(RequeueArgs { letters, common }) => {
            (letters.iter().map(|id| Deed::Requeue { letter_id: id.clone() }).collect(), common)
        }
        ProposeCommand::Forget(args) => (vec![Deed::Forget { customer_id: args.customer }], &args.common),
    };
    let pool = common.desk.open().await?;
    let (rules, attribution) = (rules_of(&common.read_back), common.attribution.attribution());
    let mut report = Report { proposed: Vec::new(), refused: Vec::new() };
    for deed in &deeds {
        match propose(&pool, deed, rules, None, attribution).await {
            Ok(pending) => report.proposed.push(pending),
            Err(error @ ProposeError::Database(_)) => return Err(error.into()),
            Err(refusal) => report.refused.push(refusal.to_string()),
        }
    }
    common.desk.print(&report, print_report)?;
    Ok(if report.refused.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_report(report: &Report) {
    for Pending { proposal, asks, effect, .. } in &report.proposed {
        println!("proposal {}: {asks}\n  {}", proposal.id, visible(effect));
    }
    report.refused.iter().for_each(|why| println!("not proposed: {}", visible(why)));
    if !report.proposed.is_empty() {
        let ids: Vec<String> =
            report.proposed.iter().map(|pending| pending.proposal.id.to_string()).collect();
        println!(
            "Nothing was done. Somebody else approves with `kyc-worker approve {} --by NAME --note TEXT`",
            ids.join(" ")
        );
    }
}
