//! `kyc-worker forget`: removes what identifies a customer, and keeps what happened.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use uuid::Uuid;

use super::attribution::MaybeAttributionArgs;
use super::database::DeskArgs;
use crate::broker::Broker;
use crate::broker::dead_letters::DeadLetters;
use crate::config::BrokerSettings;
use crate::desk::forget::{Forgotten, forget};
use crate::desk::proposals::{Deed, Proposal, approved};
use crate::visible::visible;

/// Remove what identifies a customer, and keep what happened
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker forget --customer 4e6f1b20-a73c-11ec-b909-0242ac120002 --by ana --note 'erasure request 4711'\n  kyc-worker forget --proposal 17\n\nRefuses while a job of the customer is in motion. Exit code 1 also where dead letters that name the customer are still queued, or files of the archive hold their jobs: those keep the last four characters of document numbers, and are named."
)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["customer", "proposal"]))]
pub(super) struct ForgetArgs {
    /// The customer
    #[arg(long, value_name = "ID", requires = "by", requires = "note")]
    customer: Option<Uuid>,
    /// In place of a customer, of who asks and why: an approved proposal, which says all three
    #[arg(long, value_name = "ID", conflicts_with_all = ["by", "note"])]
    proposal: Option<i64>,
    #[command(flatten)]
    attribution: MaybeAttributionArgs,
    #[command(flatten)]
    desk: DeskArgs,
    #[command(flatten)]
    broker: BrokerSettings,
}

#[derive(Serialize)]
struct Answer {
    #[serde(flatten)]
    forgotten: Forgotten,
    /// Dead letters that are still queued and name the customer.
    queued: Option<Vec<String>>,
    /// Why they could not be searched for.
    not_looked: Option<String>,
}

pub(super) async fn run(args: &ForgetArgs) -> anyhow::Result<ExitCode> {
    let pool = args.desk.open().await?;
    let forgotten = match (args.customer, args.attribution.attribution(), args.proposal) {
        (Some(customer_id), Some(attribution), _) => forget(&pool, customer_id, attribution).await?,
        (_, _, Some(id)) => {
            let (proposal, customer_id) = allowed_to_forget(&pool, id).await?;
            forget(&pool, customer_id, proposal.attribution()).await?
        }
        _ => anyhow::bail!("give --customer with --by and --note, or --proposal"),
    };
    let (queued, not_looked) = match find_queued(&args.broker, forgotten.customer_id).await {
        Ok(queued) => (Some(queued), None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    let is_done = queued.as_ref().is_some_and(Vec::is_empty) && forgotten.files.is_empty();
    args.desk.print(&Answer { forgotten, queued, not_looked }, print_answer)?;
    Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The proposal, if it allows to forget somebody, and whom.
async fn allowed_to_forget(pool: &sqlx::PgPool, id: i64) -> anyhow::Result<(Proposal, Uuid)> {
    match approved(pool, id, "forget").await? {
        (proposal, Deed::Forget { customer_id }) => Ok((proposal, customer_id)),
        (_, deed) => anyhow::bail!("proposal {id} is to {deed}"),
    }
}

/// The dead letters that name the customer anywhere: what is no JSON may hold the id, too.
async fn find_queued(settings: &BrokerSettings, customer_id: Uuid) -> anyhow::Result<Vec<String>> {
    let broker = Broker::new(settings, &settings.url()?, "kyc-worker forget")?;
    let letters = DeadLetters::open(&broker).await.context("the dead-letter queue was not looked at")?;
    let name = customer_id.to_string();
    let mut queued = Vec::new();
    while let Some(letter) = letters.next().await? {
        if letter.body.to_ascii_lowercase().windows(name.len()).any(|window| window == name.as_bytes()) {
            queued.push(letter.id());
        }
    }
    letters.close().await;
    Ok(queued)
}

fn print_answer(Answer { forgotten, queued, not_looked }: &Answer) {
    let Forgotten { customer_id, jobs, payloads, dead_letters, files } = forgotten;
    println!(
        "forgot customer {customer_id}: {jobs} jobs, {payloads} payloads, {dead_letters} dead letters' rows"
    );
    println!("attempts, outcomes and updates stay, without anything that the customer entered");
    if !files.is_empty() {
        println!(
            "IN THE ARCHIVE the last four characters of document numbers stay, in {}",
            visible(&files.join(", "))
        );
    }
    match (queued, not_looked) {
        (Some(queued), _) if queued.is_empty() => {
            println!("no dead letter that is queued names the customer")
        }
        (Some(queued), _) => println!(
            "STILL QUEUED, and gone only with DEAD_LETTER_TTL or by hand: dead letters {}",
            queued.join(", ")
        ),
        (None, not_looked) => {
            println!("NOT LOOKED FOR: {}", visible(not_looked.as_deref().unwrap_or_default()))
        }
    }
}
