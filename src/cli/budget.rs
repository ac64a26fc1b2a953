//! `kyc-worker budget`: what a person knows of a customer's updates.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use uuid::Uuid;

use super::attribution::AttributionArgs;
use super::database::DeskArgs;
use crate::desk::budget::{customer_story, set_budget};

/// Tell the worker what it cannot know of a customer's updates
#[derive(Debug, Subcommand)]
pub(super) enum BudgetCommand {
    Set(SetArgs),
}

/// Record how many of a customer's updates were spent elsewhere
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker budget set --customer 4e6f1b20-a73c-11ec-b909-0242ac120002 --used 1 --by ana --note 'updated by hand in the dashboard'"
)]
pub(super) struct SetArgs {
    /// The customer
    #[arg(long, value_name = "ID")]
    customer: Uuid,
    /// How many updates were spent elsewhere, in all
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1000))]
    used: u32,
    #[command(flatten)]
    attribution: AttributionArgs,
    #[command(flatten)]
    desk: DeskArgs,
}

pub(super) async fn run(command: &BudgetCommand) -> anyhow::Result<ExitCode> {
    match command {
        BudgetCommand::Set(args) => set(args).await,
    }
}

async fn set(args: &SetArgs) -> anyhow::Result<ExitCode> {
    let pool = args.desk.open().await?;
    set_budget(&pool, args.customer, i32::try_from(args.used)?, None, args.attribution.attribution()).await?;
    let story = customer_story(&pool, args.customer, None).await?;
    if args.desk.json {
        println!("{}", serde_json::to_string_pretty(&story)?);
    } else {
        let here = story.map_or(0, |story| story.spent.here);
        println!("customer {}: {here} spent or possibly spent here, {} elsewhere", args.customer, args.used);
    }
    Ok(ExitCode::SUCCESS)
}
