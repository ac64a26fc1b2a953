//! The way of one job, read top to bottom: a delivery is received, its row committed, its
//! update sent once, and what came of it recorded.

use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::breaker::{Breaker, Event, State};
use crate::clock::Moment;
use crate::domain::job::{Envelope, Job, Rules, UpdateRequest};
use crate::domain::outcome::{Disposition, Next, Outcome, Receipt, WaitingFor, next};
use crate::domain::retry::RetrySchedule;
use crate::domain::verdict::{Exchange, NotSent, Verdict, classify, provider_message};
use crate::journal::{Admission, AttemptResult, Claim, Journal, JournalError, Opened};
use crate::provider::Provider;

/// How long to wait before a write is tried again that the database did not do.
const JOURNAL_RETRY_DELAY: Duration = Duration::from_millis(250);

/// What every job goes through.
pub struct Worker {
    /// What happened, in Postgres.
    pub journal: Journal,
    /// The DollarPe API.
    pub provider: Provider,
    /// Whether the provider may be bothered.
    pub breaker: Breaker,
    /// Which jobs are valid.
    pub rules: Rules,
    /// When to try again.
    pub schedule: RetrySchedule,
    /// Statuses that surely applied nothing.
    pub not_applied_statuses: Vec<u16>,
    /// Wakes the scheduler when a job was parked.
    pub parked: Notify,
    /// Cancelled when the worker stops: from then on nothing is sent any more.
    pub stopping: CancellationToken,
}

/// What a delivery came to: what to tell the broker, and what to submit after that.
pub struct Received {
    /// To be told only now: the row is committed.
    pub disposition: Disposition,
    /// The job, if it is ours to submit at once.
    pub work: Option<(Claim, UpdateRequest)>,
}

impl Worker {
    /// Takes a delivery in.
    ///
    /// 1. Parse it; every fault at once.
    /// 2. What is no job gets its row and is dead-lettered whole.
    /// 3. What is one gets its row, its sealed payload and, where its customer is free, a
    ///    claim and its first attempt: one commit.
    /// 4. Only then is the broker told.
    ///
    /// While the database is away this waits, and so holds back the intake. `None` when the
    /// worker stopped first: the delivery goes back to the queue.
    pub async fn receive(&self, envelope: Envelope<'_>, is_redelivered: bool) -> Option<Received> {
        let received_at = OffsetDateTime::now_utc();
        let job = match Job::parse(&envelope, received_at, &self.rules) {
            Ok(job) => job,
            Err(invalid) => {
                warn!(job_id = ?invalid.job_id, faults = %invalid, "delivery is no job, dead-lettering it");
                self.persist(|| {
                    self.journal.record_invalid(&envelope, received_at, is_redelivered, &invalid)
                })
                .await?;
                return Some(Received::without_work(Receipt::Invalid));
            }
        };
        let admission = match self.breaker.state() {
            State::Closed { .. } if !job.is_expired(received_at) => Admission::Claim(Moment::now()),
            State::Closed { .. } => Admission::Park(WaitingFor::Retry),
            State::Open(_) | State::Trial(_) | State::Trying(_) => Admission::Park(WaitingFor::Provider),
        };
        let opened = self.persist(|| self.journal.open(&job, received_at, admission)).await?;
        Some(match opened {
            Opened::Claimed(claim) => {
                Received { disposition: Receipt::Opened.disposition(), work: Some((claim, job.request)) }
            }
            Opened::Parked => {
                self.parked.notify_one();
                Received::without_work(Receipt::Parked)
            }
            Opened::Known => {
                debug!(job_id = %job.id, "job is known already");
                Received::without_work(Receipt::Known)
            }
            Opened::Conflict => {
                warn!(job_id = %job.id, "job_id is another content's, dead-lettering the delivery");
                self.persist(|| self.journal.record_conflict(&envelope, received_at, is_redelivered, job.id))
                    .await?;
                Received::without_work(Receipt::Conflict)
            }
        })
    }

    /// Makes the attempt that `claim` stands for, and records what came of it. The same
    /// for a job just opened and for one that waited.
    ///
    /// 1. Sign, afresh: the provider refuses a stale timestamp.
    /// 2. Send, once, through the gate.
    /// 3. Classify the result, and tell the breaker.
    /// 4. Decide what follows, and commit it with the result.
    pub async fn submit(&self, claim: Claim, request: &UpdateRequest) {
        let begun = Instant::now();
        let update = self.provider.sign(request, claim.t0);
        let exchange = self.provider.update(update, claim.t0, &self.stopping).await;
        let verdict = classify(&exchange, &self.not_applied_statuses, SystemTime::now());
        let (http_status, provider_message) = match &exchange {
            Exchange::Answered(answer) if answer.status >= 400 => {
                let private = request.private_texts().into_iter().chain([self.provider.api_key()]);
                (Some(answer.status), provider_message(answer, private))
            }
            Exchange::Answered(answer) => (Some(answer.status), None),
            Exchange::NotSent(_) | Exchange::Lost(_) => (None, None),
        };
        let duration = begun.elapsed();
        self.conclude(&claim, AttemptResult { verdict, http_status, provider_message, duration }).await;
    }

    /// Records an attempt that could not be made because no key opens the job's payload.
    pub async fn give_back(&self, claim: Claim, error: &anyhow::Error) {
        error!(
            error = format!("{error:#}"),
            "PAYLOAD_KEY: cannot open a stored payload; add the key it was sealed with"
        );
        let result = AttemptResult {
            verdict: Verdict::NotSent(NotSent::PayloadUnreadable),
            http_status: None,
            provider_message: None,
            duration: Duration::ZERO,
        };
        self.conclude(&claim, result).await;
    }

    async fn conclude(&self, claim: &Claim, result: AttemptResult) {
        let is_trial = claim.history.is_trial;
        self.breaker.note(&Event::Attempted { verdict: &result.verdict, is_trial });
        let next = next(&result.verdict, claim.history, &self.schedule, rand::random());
        let retry_in = match &next {
            Next::Wait(wait) => Some(wait.delay),
            Next::End(_) => None,
        };
        info!(
            attempt = claim.attempt,
            http_status = result.http_status,
            verdict = result.verdict.name(),
            detail = result.verdict.detail(),
            duration_ms = millis(result.duration),
            retry_in_ms = retry_in.map(millis),
            "submission attempted"
        );
        let recorded = match &next {
            Next::End(outcome) => self.persist_result(|| self.journal.settle(claim, &result, outcome)).await,
            Next::Wait(wait) => self.persist_result(|| self.journal.park(claim, &result, wait)).await,
        };
        match (recorded, next) {
            (Err(error), _) => {
                warn!(%error, verdict = result.verdict.name(), "another worker took the job over; this result is not recorded");
            }
            (Ok(()), Next::End(outcome)) => log_outcome(&outcome),
            (Ok(()), Next::Wait(_)) => self.parked.notify_one(),
        }
    }

    /// Writes until the database does it. `None` when the worker stops first.
    async fn persist<T, F>(&self, write: impl Fn() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, JournalError>>,
    {
        loop {
            match write().await {
                Ok(written) => return Some(written),
                Err(error) => warn!(error = chain(&error), "journal unavailable, holding the delivery"),
            }
            self.stopping.run_until_cancelled(sleep(JOURNAL_RETRY_DELAY)).await?;
        }
    }

    /// Writes what an attempt came to until the database does it, or tells that the claim
    /// is gone. A known answer is not thrown away: shutdown's deadline alone ends this.
    async fn persist_result<F>(&self, write: impl Fn() -> F) -> Result<(), JournalError>
    where
        F: Future<Output = Result<(), JournalError>>,
    {
        loop {
            match write().await {
                Err(JournalError::Database(error)) => {
                    warn!(error = chain(&error), "journal unavailable, holding a result");
                    sleep(JOURNAL_RETRY_DELAY).await;
                }
                done => return done,
            }
        }
    }
}

impl Received {
    fn without_work(receipt: Receipt) -> Self {
        Self { disposition: receipt.disposition(), work: None }
    }
}

fn log_outcome(outcome: &Outcome) {
    let (outcome_name, reason_code) = (outcome.state(), outcome.reason_code());
    match outcome {
        Outcome::NeedsReview(_) => {
            error!(outcome = outcome_name, reason_code, "submission ended: {}", outcome.reason());
        }
        _ => info!(outcome = outcome_name, reason_code, "submission ended: {}", outcome.reason()),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
