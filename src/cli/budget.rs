//! `kyc-worker budget`: what a person knows of a customer's updates.

use std::process::ExitCode;

use super::BudgetSetArgs;
use crate::journal::budget::{customer_story, set_budget};

pub(super) async fn set(args: &BudgetSetArgs) -> anyhow::Result<ExitCode> {
    let pool = super::open_database(&args.database).await?;
    set_budget(&pool, args.customer, i32::try_from(args.used)?, args.signed.signed()).await?;
    let story = customer_story(&pool, args.customer).await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&story)?);
    } else {
        let here = story.map_or(0, |story| story.spent.here);
        println!("customer {}: {here} spent or possibly spent here, {} elsewhere", args.customer, args.used);
    }
    Ok(ExitCode::SUCCESS)
}
