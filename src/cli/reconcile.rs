//! `kyc-worker reconcile`: the books against the provider, customer by customer.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::database::DeskArgs;
use super::export::parse_time;
use super::terminal::{progress, table};
use crate::app::{self, Signals};
use crate::config::{FingerprintSettings, ProviderArgs, ReadBackSettings, VerificationSettings};
use crate::desk::export::Span;
use crate::desk::reconcile::{Finding, Pace, Reconciled, customers, reconcile};
use crate::journal::check_fingerprint_key;
use crate::provider::Provider;
use dollarpe::signature::Signer;

/// Read customers at the provider and compare what it shows with what is written here
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker reconcile --since 2026-11-01 --until 2026-12-01\n  kyc-worker reconcile --customer a1ca120d-9fef-46b8-affb-818f91848b2e --json\n\nReads every customer with an accepted update of that time, or one that may have been applied:\nVERIFICATION_READS_PER_SECOND at most, shared with the replicas, and no customer sooner than\nCUSTOMER_READ_INTERVAL after their last read. Each read is kept as an observation in the\nhistory of the customer's job; no job's state changes. Interrupted, it says where to go on.\n\nExit codes: 0 all agree, 1 some differ or could not be read, or it was interrupted."
)]
pub(super) struct ReconcileArgs {
    /// Updates that ended from then on, such as 2026-11-01 or 2026-11-01T12:00:00Z [default: a day ago]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<OffsetDateTime>,
    /// Updates that ended before then [default: now]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<OffsetDateTime>,
    /// Only this customer, whenever their updates were
    #[arg(long, value_name = "ID", conflicts_with_all = ["since", "until", "after"])]
    customer: Option<Uuid>,
    /// Go on behind this customer, where an earlier run was interrupted; give it the same times
    #[arg(long, value_name = "ID")]
    after: Option<Uuid>,
    #[command(flatten)]
    desk: DeskArgs,
    #[command(flatten)]
    provider: ProviderArgs,
    #[command(flatten)]
    fingerprint: FingerprintSettings,
    #[command(flatten)]
    read_back: ReadBackSettings,
    #[command(flatten)]
    verification: VerificationSettings,
}

#[derive(Serialize)]
struct Report {
    /// Customers who were to be read.
    customers: usize,
    agree: usize,
    /// Those who differ, and those of whom no read told anything.
    found: Vec<Reconciled>,
    /// Where it was interrupted: the last customer who was read.
    interrupted_after: Option<Uuid>,
}

pub(super) async fn run(args: &ReconcileArgs) -> anyhow::Result<ExitCode> {
    let fingerprinter = args.fingerprint.fingerprinter()?;
    let settings = app::provider_settings(&args.provider, 1)?;
    let signer = Signer::new(args.provider.api_key()?.expose(), args.provider.api_secret()?.expose());
    let provider = Provider::new(settings, signer)?;
    let pool = args.desk.open().await?;
    check_fingerprint_key(&pool, &fingerprinter).await?;
    let now = OffsetDateTime::now_utc();
    let span = Span { since: args.since.unwrap_or(now - Duration::DAY), until: args.until.unwrap_or(now) };
    let customers = match args.customer {
        Some(customer_id) => vec![customer_id],
        None => customers(&pool, span, args.after).await?,
    };
    let pace = Pace {
        per_second: args.verification.verification_reads_per_second,
        apart: args.read_back.customer_read_interval,
    };
    let progress = progress(u64::try_from(customers.len()).unwrap_or_default(), "customers")?;
    let mut report =
        Report { customers: customers.len(), agree: 0, found: Vec::new(), interrupted_after: None };
    let mut signals = Signals::new()?;
    let (mut last, mut failure) = (args.after, None);
    for customer_id in customers {
        let reconciled = tokio::select! {
            reconciled = reconcile(&pool, &provider, &fingerprinter, pace, customer_id) => match reconciled {
                Ok(reconciled) => reconciled,
                Err(error) => {
                    report.interrupted_after = Some(last.unwrap_or_default());
                    failure = Some(error);
                    break;
                }
            },
            _ = signals.next() => {
                report.interrupted_after = Some(last.unwrap_or_default());
                break;
            }
        };
        match reconciled {
            Some(Reconciled { finding: Finding::Agrees, .. }) => report.agree += 1,
            Some(found) => report.found.push(found),
            None if args.customer.is_some() => {
                anyhow::bail!(
                    "nothing of customer {customer_id} was accepted here, or may have been applied"
                );
            }
            None => {}
        }
        last = Some(customer_id);
        progress.inc(1);
    }
    progress.finish_and_clear();
    // What was found is told, whatever ended it.
    args.desk.print(&report, print_report)?;
    if let Some(error) = failure {
        return Err(error.into());
    }
    let is_clean = report.found.is_empty() && report.interrupted_after.is_none();
    Ok(if is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_report(report: &Report) {
    let mut lines = table(["customer", "job", "finding", "here", "there"]);
    let mut remedies: Vec<(&str, &str)> = Vec::new();
    for Reconciled { customer_id, job_id, finding } in &report.found {
        let (code, here, there, remedy) = match finding {
            Finding::Differs(found) => (found.code, found.here.as_str(), found.there.as_str(), found.remedy),
            Finding::Unread { error } => (
                "unread",
                "",
                *error,
                "no read proved anything: see docs/operations.md, \"A job needs review\", for what stands on the way, then again with --customer",
            ),
            Finding::Agrees => continue,
        };
        lines.add_row([customer_id.to_string(), job_id.to_string(), code.into(), here.into(), there.into()]);
        if !remedies.contains(&(code, remedy)) {
            remedies.push((code, remedy));
        }
    }
    if !report.found.is_empty() {
        println!("{lines}\n");
        for (code, remedy) in remedies {
            println!("{code}: {remedy}");
        }
        println!();
    }
    println!("{} of {} customers agree with the provider", report.agree, report.customers);
    if let Some(after) = report.interrupted_after {
        println!("interrupted; go on with --after {after} and the same times");
    }
}
