//! What every loop shares, and how a write is repeated until the database does it.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Once};
use std::time::Duration;

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use time::OffsetDateTime;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::field::display;
use tracing::{error, info, warn};

use crate::control::breaker::Breaker;
use crate::control::intake::{Intake, Reason, Severity};
use crate::control::liveness::Liveness;
use crate::domain::job::{JobRef, Rules};
use crate::domain::outcome::Outcome;
use crate::domain::read_back::Timing;
use crate::domain::refusal_run::RefusalRun;
use crate::domain::retry::RetrySchedule;
use crate::journal::{Journal, JournalError, NextDue};
use crate::links::LinkClient;
use crate::metrics::METRICS;
use crate::provider::Provider;
use crate::traces::Traces;

/// How long to wait before a write is tried again that the database did not do.
pub(crate) const JOURNAL_RETRY_DELAY: Duration = Duration::from_millis(250);

/// How long at most, where trying again soon is of little use.
const JOURNAL_RETRY_DELAY_MAX: Duration = Duration::from_secs(5);

/// So many failures of one write that are no outage, some fifteen seconds of them, do not mend themselves.
const FAILURES_TOLD: u32 = 6;

/// The parts of one worker.
pub struct Context {
    pub journal: Journal,
    pub provider: Provider,
    /// Whether the provider may be sent updates.
    pub breaker: Breaker,
    /// Whether deliveries may be taken.
    pub intake: Arc<Intake>,
    pub liveness: Liveness,
    pub traces: Traces,
    pub rules: Rules,
    pub schedule: RetrySchedule,
    /// When reads of customers prove something.
    pub timing: Timing,
    /// Whether customers are read before their first attempt, and how far apart.
    pub baseline: Option<Duration>,
    /// What is checked before a job's update may be spent; none where nothing is.
    pub checks: Option<Checks>,
    /// Statuses that surely applied nothing.
    pub not_applied_statuses: Vec<u16>,
    pub refusals: Mutex<RefusalRun>,
    /// Who asks the provider whether our clock is wrong: one at a time.
    pub clock_asked: Semaphore,
    /// How many results may wait to be written.
    pub recordings: Semaphore,
    /// Wakes the dispatcher when a retry or a read was scheduled.
    pub scheduled: Notify,
    /// Wakes each loop when a row of its kind is due.
    pub alarms: Alarms,
    /// Whether it was logged that connections are waited for in vain.
    pub crowded: Once,
    /// Whose turn it is to try again what a person must mend: one write at a time.
    pub mending: Semaphore,
    /// Cancelled when the worker stops: from then on nothing is sent any more.
    pub stopping: CancellationToken,
}

/// Wakes each loop when a row of its kind is due: the dispatcher asks the database for all of them, in one
/// statement every `SCHEDULER_POLL`.
#[derive(Default)]
pub struct Alarms {
    pub attempts: Notify,
    /// Jobs that are due, and may be behind another one of their customer.
    pub busy: Notify,
    pub reads: Notify,
    pub leases: Notify,
    pub expiries: Notify,
    pub verifications: Notify,
    pub events: Notify,
}

impl Alarms {
    /// Wakes those that have something to do.
    pub fn ring(&self, due: &NextDue) {
        for (alarm, due) in [
            (&self.attempts, due.attempt),
            (&self.busy, due.attempt),
            (&self.reads, due.read),
            (&self.leases, due.lease),
            (&self.expiries, due.expiry),
            (&self.verifications, due.verification),
            (&self.events, due.event),
        ] {
            if due.is_some_and(|due| due.is_zero()) {
                alarm.notify_one();
            }
        }
    }

    /// Wakes all: what is due could not be asked for, and each finds out for itself.
    pub fn ring_all(&self) {
        let now = Some(Duration::ZERO);
        self.ring(&NextDue {
            attempt: now,
            read: now,
            lease: now,
            expiry: now,
            verification: now,
            event: now,
        });
    }
}

/// What is checked before a job's update may be spent.
pub struct Checks {
    /// Whether the provider is asked which document types a customer may use.
    pub document_types: bool,
    /// Whether links are fetched, and how.
    pub links: Option<LinkClient>,
    /// From an attempt's claim to the end of its checks: the rest of the send window is the update's.
    pub within: Duration,
}

impl Checks {
    /// What is checked, as an attempt's row has it.
    pub fn names(&self) -> Option<&'static str> {
        match (self.document_types, self.links.is_some()) {
            (true, true) => Some("document_type,links"),
            (true, false) => Some("document_type"),
            (false, true) => Some("links"),
            (false, false) => None,
        }
    }
}

impl Context {
    /// Writes until the database does it. `None` when the worker stops first.
    pub(crate) fn persist<T, F>(&self, write: impl Fn() -> F) -> impl Future<Output = Option<T>>
    where
        F: Future<Output = Result<T, JournalError>>,
    {
        self.persist_until(write, Some(&self.stopping))
    }

    /// Writes what an attempt came to until the database does it; `None` when the claim is
    /// gone. A known answer is not thrown away: shutdown's deadline alone ends this.
    pub(crate) fn persist_result<T, F>(&self, write: impl Fn() -> F) -> impl Future<Output = Option<T>>
    where
        F: Future<Output = Result<T, JournalError>>,
    {
        self.persist_until(write, None)
    }

    /// Writes until the database does it, the claim is gone, or `stopping` is cancelled between two
    /// tries. An outage ends at any time, so tries follow soon. What fails for anything else will
    /// most probably fail again: less and less often, and where a person must mend it, one write
    /// at a time for all.
    async fn persist_until<T, F>(
        &self,
        write: impl Fn() -> F,
        stopping: Option<&CancellationToken>,
    ) -> Option<T>
    where
        F: Future<Output = Result<T, JournalError>>,
    {
        let (mut delay, mut turn) = (JOURNAL_RETRY_DELAY, None);
        let mut failures = 0;
        loop {
            let begun = Instant::now();
            let error = match write().await {
                Ok(written) => {
                    self.intake.resume_by_work(Reason::Database, begun);
                    return Some(written);
                }
                Err(JournalError::Fenced) => return None,
                Err(error) => error,
            };
            self.note_journal_failure(&error);
            delay = if error.is_outage() {
                JOURNAL_RETRY_DELAY
            } else {
                failures += 1;
                // Told here alone: it pauses nothing, and has no remedy.
                if failures == FAILURES_TOLD && error.remedy().is_none() {
                    error!(
                        error = chain(&error),
                        "a write fails again and again; its job holds a slot until that is mended"
                    );
                }
                (delay * 2).min(JOURNAL_RETRY_DELAY_MAX)
            };
            let waiting = async {
                if error.remedy().is_some() {
                    delay = JOURNAL_RETRY_DELAY_MAX;
                    if turn.is_none() {
                        turn = self.mending.try_acquire().ok();
                        if turn.is_none() {
                            // The write that was before this one has just got through.
                            turn = self.mending.acquire().await.ok();
                            return;
                        }
                    }
                }
                sleep(delay).await;
            };
            // Rare, and not to be carried about by every job.
            let waiting = Box::pin(waiting);
            match stopping {
                Some(stopping) => stopping.run_until_cancelled(waiting).await?,
                None => waiting.await,
            }
        }
    }

    /// An outage pauses the intake, and so does what a person must mend; any other failure is this
    /// job's, and tried again.
    pub fn note_journal_failure(&self, error: &JournalError) {
        if error.is_of_the_pool() {
            METRICS.note_acquire_timeout();
        }
        if let Some(remedy) = error.remedy() {
            let cause = format_args!("DATABASE_URL: {}; {remedy}", chain(error.cause())).to_string();
            self.intake.pause(Reason::Database, Severity::NeedsPerson, cause);
        } else if matches!(error, JournalError::Crowded { .. }) {
            self.crowded.call_once(|| {
                warn!(
                    "DATABASE_CONNECTIONS: a connection was waited for in vain while others were answered: the server allows fewer, \
                     or all are held; the worker goes on with those that it has. Raise max_connections, or lower \
                     DATABASE_CONNECTIONS or the number of replicas; pg_stat_activity shows what holds them"
                );
            });
        } else if error.is_outage() {
            self.intake.pause(Reason::Database, Severity::Passing, chain(error));
        } else {
            warn!(error = chain(error), "a write failed; the worker tries it again");
        }
    }
}

/// Work ended in a panic. The panic itself is on stderr.
pub(crate) struct Panicked;

/// Does `work`, so that a bug in it ends the work on one job and nothing else.
pub(crate) async fn unless_it_panics<T>(work: impl Future<Output = T>) -> Result<T, Panicked> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|_panic| {
        METRICS.note_panic();
        Panicked
    })
}

/// Counts a submission that ended, with how long it took from its receipt.
pub fn count_end(outcome: &Outcome, job: &JobRef) {
    // By a clock that is behind the receiver's it took no time.
    let took = (OffsetDateTime::now_utc() - job.received_at).try_into().unwrap_or_default();
    METRICS.note_end(outcome, job, took);
}

/// Logs how a submission ended, and counts it; an error where a person must act.
pub fn log_outcome(outcome: &Outcome, job: &JobRef) {
    count_end(outcome, job);
    let (job_id, trace_id) = (job.id, job.trace_id().map(display));
    let (name, reason_code) = (outcome.state().name(), outcome.reason_code());
    match outcome {
        Outcome::NeedsReview(_) => {
            error!(%job_id, trace_id, outcome = name, reason_code, "submission ended: {}", outcome.reason());
        }
        _ => info!(%job_id, trace_id, outcome = name, reason_code, "submission ended: {}", outcome.reason()),
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
