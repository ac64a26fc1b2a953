//! `kyc-worker resolve`: a person settles what no read could.

use std::process::ExitCode;

use clap::Args;
use uuid::Uuid;

use super::attribution::AttributionArgs;
use super::database::DeskArgs;
use crate::desk::resolve::{Finding, Resolved, resolve};
use crate::domain::state::State;

/// Settle a job in needs_review with what a person found out; sends nothing
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker resolve 3f0c2a9e-5f0e-4f57-9d0c-2d6f7c1f1a11 --as accepted --by ana --note 'seen in the dashboard'"
)]
pub(super) struct ResolveArgs {
    /// The job
    job_id: Uuid,
    /// What was found out
    #[arg(long = "as", value_name = "FINDING")]
    finding: Finding,
    #[command(flatten)]
    attribution: AttributionArgs,
    #[command(flatten)]
    desk: DeskArgs,
}

pub(super) async fn run(args: &ResolveArgs) -> anyhow::Result<ExitCode> {
    let pool = args.desk.open().await?;
    let resolved = resolve(&pool, args.job_id, args.finding, args.attribution.attribution()).await?;
    args.desk.print(&resolved, |Resolved { job_id, was, state, .. }| {
        println!("job {job_id} was {was}, and is {state} now");
        if *state == State::Exhausted.name() {
            println!("send it again with `kyc-worker replay {job_id} --yes --by NAME --note TEXT`");
        }
    })
}
