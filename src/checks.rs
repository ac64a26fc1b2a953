//! What is checked of a job before its update may be spent. A check that fails costs the customer
//! nothing; a document that the provider cannot use costs one of three.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tracing::warn;

use crate::clock::Moment;
use crate::context::{Checks, Context, chain};
use crate::domain::configuration::read_configuration;
use crate::domain::job::UpdateRequest;
use crate::domain::verdict::{HttpOutcome, NotSent, Verdict, provider_message};
use crate::journal::{AttemptResult, Claim};
use crate::traces::Work;

/// All checks of an attempt together take no longer.
const TIME_MAX: Duration = Duration::from_secs(5);

/// Checks a job of which no update may have been applied yet.
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
    let failed = |stop: Stop| AttemptResult {
        http_status: stop.http_status,
        provider_message: stop.provider_message,
        verdict: stop.verdict,
        error: None,
        duration: begun.elapsed(),
    };
    check_type(context, claim, request, deadline, work).await.map_err(failed)
}

/// Why an attempt ends before its send.
struct Stop {
    verdict: Verdict,
    /// Where the provider was asked and refused us: its answer.
    http_status: Option<u16>,
    provider_message: Option<String>,
}

impl From<Verdict> for Stop {
    fn from(verdict: Verdict) -> Self {
        Self { verdict, http_status: None, provider_message: None }
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
        ) => {
            let (http_status, provider_message) = (Some(answer.status), provider_message(&answer));
            Stop { verdict, http_status, provider_message }
        }
        (verdict, _) => verdict.into(),
    })
}

fn warn_forgotten(error: &dyn std::error::Error) {
    warn!(error = chain(error), "a customer's configuration is not remembered: the journal is unavailable");
}
