//! What is checked of a job before its update may be spent. A check that fails costs the customer
//! nothing; a document that the provider cannot use costs one of three.

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use tokio::time::Instant;
use tracing::warn;

use crate::clock::Moment;
use crate::context::{Checks, Context, chain};
use crate::domain::configuration::read_configuration;
use crate::domain::job::UpdateRequest;
use crate::domain::link_check::{LinkFault, judge};
use crate::domain::verdict::{HttpOutcome, NotSent, Verdict, provider_message};
use crate::journal::{AttemptResult, Claim};
use crate::links::LinkClient;
use crate::traces::Work;

/// All checks of an attempt together take no longer.
const TIME_MAX: Duration = Duration::from_secs(5);

/// What is written with an attempt that the provider's answer to another question has ended.
const ASKED_ONLY: &str = "the customer's configuration was asked for, and no update sent";

/// Checks a job before an attempt; a resend as well: a replica may have died in the checks of the first one.
///
/// # Errors
/// What its attempt comes to instead of a send: a rejection, or a check that could not be made.
pub async fn check(
    context: &Context,
    checks: &Checks,
    claim: &mut Claim,
    request: &UpdateRequest,
    work: &mut Work,
) -> Result<(), AttemptResult> {
    let begun = Instant::now();
    let deadline = (begun + TIME_MAX).min(claim.t0.monotonic + checks.within);
    let ended = |stop: Stop| AttemptResult {
        http_status: None,
        provider_message: stop.provider_message,
        verdict: stop.verdict,
        error: stop.error,
        duration: begun.elapsed(),
        checked: None,
    };
    // It waited long for its request slot. That is nobody's failure, and its next claim has a new window.
    if deadline.saturating_duration_since(begun) < checks.within / 2 {
        return Err(ended(Verdict::NotSent(NotSent::HeldBack).into()));
    }
    let links = async {
        match &checks.links {
            Some(client) => check_links(context, client, request, deadline).await,
            None => Ok(()),
        }
    };
    let types = async {
        match checks.document_types {
            true => check_type(context, claim, request, deadline, work).await,
            false => Ok(()),
        }
    };
    let begun_at = SystemTime::now();
    let (types, links) = tokio::join!(types, links);
    work.step("check", begun_at);
    worst([types, links]).map_err(ended)
}

/// Why an attempt ends before its send.
struct Stop {
    verdict: Verdict,
    /// What could not be checked, and why.
    error: Option<&'static str>,
    /// Where the provider was asked and refused us: its words.
    provider_message: Option<String>,
}

impl From<Verdict> for Stop {
    fn from(verdict: Verdict) -> Self {
        Self { verdict, error: None, provider_message: None }
    }
}

/// Whether the provider lists the job's document type for its customer: as it said within the last hour,
/// or says now. That is kept in the job's history. Where the database does not take it, the next job of the
/// customer asks again, and nothing else comes of that.
async fn check_type(
    context: &Context,
    claim: &mut Claim,
    request: &UpdateRequest,
    deadline: Instant,
    work: &mut Work,
) -> Result<(), Stop> {
    let remembered = context.journal.remembered_configuration(claim.customer_id).await;
    let at = match remembered {
        Ok((_, Some(configuration))) => return Ok(configuration.allows(request.document_type())?),
        Ok((at, None)) => Some(at),
        Err(error) => {
            warn_forgotten(&error);
            None
        }
    };
    // The database was slow, and not the provider.
    if Instant::now() >= deadline {
        return Err(Verdict::NotSent(NotSent::WindowClosed).into());
    }
    let (asked_at, read_at) = (SystemTime::now(), Moment::now());
    let asking = context.provider.configuration(claim.customer_id, deadline);
    let Some(outcome) = context.stopping.run_until_cancelled(asking).await else {
        return Err(Verdict::NotSent(NotSent::Shutdown).into());
    };
    let statuses = &context.not_applied_statuses;
    let configuration = read_configuration(&outcome, claim.customer_id, statuses, SystemTime::now());
    work.configuration(asked_at, configuration.error_code());
    if let Some(at) = at
        && let Err(error) = context.journal.record_configuration(claim, at, read_at, &configuration).await
    {
        warn_forgotten(&error);
    }
    configuration.allows(request.document_type()).map_err(|verdict| match (verdict, outcome) {
        (
            verdict @ (Verdict::Throttled { .. } | Verdict::Misconfigured(_)),
            HttpOutcome::Answered(answer),
        ) => Stop { verdict, error: Some(ASKED_ONLY), provider_message: provider_message(&answer) },
        (verdict, _) => verdict.into(),
    })
}

/// Whether both links hold a document, as far as their first bytes tell. Nothing that was read is kept.
async fn check_links(
    context: &Context,
    client: &LinkClient,
    request: &UpdateRequest,
    deadline: Instant,
) -> Result<(), Stop> {
    let fetching = request.links().into_iter().map(async |(field, link)| {
        let fetched = client.fetch(&link, deadline).await;
        judge(field, &link, &fetched).map_err(|fault| match fault {
            LinkFault::Rejected(rejection) => Verdict::Rejected(rejection).into(),
            LinkFault::Unchecked(why) => {
                let verdict = Verdict::NotSent(NotSent::LinkUnchecked);
                Stop { error: Some(why.told(field)), ..verdict.into() }
            }
        })
    });
    let Some(checked) = context.stopping.run_until_cancelled(join_all(fetching)).await else {
        return Err(Verdict::NotSent(NotSent::Shutdown).into());
    };
    worst(checked)
}

/// The first rejection, which ends the job whatever else could not be checked; else the first of the others.
fn worst(checked: impl IntoIterator<Item = Result<(), Stop>>) -> Result<(), Stop> {
    let is_passing = |stop: &Stop| !matches!(stop.verdict, Verdict::Rejected(_));
    checked.into_iter().filter_map(Result::err).min_by_key(is_passing).map_or(Ok(()), Err)
}

fn warn_forgotten(error: &dyn std::error::Error) {
    warn!(error = chain(error), "a customer's configuration is not remembered: the journal is unavailable");
}
