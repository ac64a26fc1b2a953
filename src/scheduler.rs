//! Brings what waits in Postgres to its next attempt: parked jobs that are due, and
//! claims whose owner vanished. Any replica may take any row.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, debug, error, info, info_span, warn};

use crate::breaker::{Event, State};
use crate::clock::Moment;
use crate::journal::{ClaimedJob, JournalError};
use crate::worker::Worker;

/// How many rows one statement of housekeeping touches at most.
const BATCH: i64 = 100;

/// The shortest pause between two looks, where rows stay due that others hold.
const PAUSE_MIN: Duration = Duration::from_millis(20);

/// The scheduler of one worker.
pub struct Scheduler {
    /// What every job goes through.
    pub worker: Arc<Worker>,
    /// How many jobs may be worked on at once, shared with the intake.
    pub permits: Arc<Semaphore>,
    /// The tasks that work on jobs.
    pub tasks: TaskTracker,
    /// How often to look, at least.
    pub poll: Duration,
}

impl Scheduler {
    /// Runs until the worker stops.
    pub async fn run(self) {
        let mut is_down = false;
        loop {
            let pause = match self.round().await {
                Ok(pause) => {
                    is_down = false;
                    pause
                }
                Err(error) => {
                    if !is_down {
                        warn!(error = ?error, "the scheduler cannot reach the journal, trying on");
                    }
                    is_down = true;
                    self.poll
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = self.worker.parked.notified() => {}
                () = self.worker.stopping.cancelled() => return,
            }
        }
    }

    /// One look at everything that is due. Returns how long until the next is worth it.
    async fn round(&self) -> Result<Duration, JournalError> {
        let journal = &self.worker.journal;
        for taken in journal.take_over(BATCH).await? {
            error!(
                job_id = %taken.job_id, customer_id = ?taken.customer_id, attempt = taken.attempt,
                claimed_by = taken.claimed_by, outcome = "needs_review", reason_code = "fate_unknown",
                "a worker vanished in an attempt; look the customer up at the provider before sending again"
            );
        }
        for job_id in journal.expire(BATCH).await? {
            info!(%job_id, outcome = "exhausted", reason_code = "expired", "submission ended");
        }
        self.begin_due().await?;
        journal.postpone_busy(BATCH).await?;
        let next_due = journal.next_due().await?;
        Ok(match (self.worker.breaker.state(), next_due) {
            (State::Closed { .. }, Some(next_due)) => next_due.max(PAUSE_MIN).min(self.poll),
            _ => self.poll,
        })
    }

    /// Begins the next attempt of every job that is due, as the breaker allows.
    async fn begin_due(&self) -> Result<(), JournalError> {
        let stopping = &self.worker.stopping;
        while let Some(permit) = stopping.run_until_cancelled(Arc::clone(&self.permits).acquire_owned()).await
        {
            let Ok(permit) = permit else { return Ok(()) };
            let is_trial = match self.worker.breaker.state() {
                State::Closed { .. } => false,
                State::Trial(_) => true,
                State::Open(_) | State::Trying(_) => return Ok(()),
            };
            let claimed = self.worker.journal.next_attempt(Moment::now()).await?;
            match claimed {
                Some(mut claimed) => {
                    claimed.claim.history.is_trial = is_trial;
                    if is_trial {
                        self.worker.breaker.note(&Event::TrialBegun);
                    }
                    self.spawn(claimed, permit);
                }
                None => {
                    if is_trial {
                        self.worker.breaker.note(&Event::NothingToTry);
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn spawn(&self, claimed: ClaimedJob, permit: OwnedSemaphorePermit) {
        let worker = Arc::clone(&self.worker);
        let ClaimedJob { claim, request, correlation_id } = claimed;
        let span =
            info_span!("job", job_id = %claim.job_id, customer_id = %claim.customer_id, correlation_id);
        debug!(parent: &span, attempt = claim.attempt, "taken up again");
        self.tasks.spawn(
            async move {
                match request {
                    Ok(request) => worker.submit(claim, &request).await,
                    Err(error) => worker.give_back(claim, &error).await,
                }
                drop(permit);
            }
            .instrument(span),
        );
    }
}
