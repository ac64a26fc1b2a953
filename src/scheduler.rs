//! Brings what waits in Postgres on its way: parked jobs that are due, looks at customers
//! that are due, and claims whose owner vanished. Any replica may take any row.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, debug, info, info_span, warn};

use crate::breaker::{Event, State};
use crate::clock::Moment;
use crate::intake::Reason;
use crate::journal::{ClaimedJob, JournalError, NextAttempt};
use crate::worker::{Worker, log_outcome};

/// How many rows one statement of upkeep touches at most.
const BATCH: i64 = 100;

/// The shortest pause between two looks, where rows stay due that others hold.
const PAUSE_MIN: Duration = Duration::from_millis(20);

/// How many customers are looked at at once.
const LOOKS_MAX: usize = 32;

/// How often old payloads are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// The scheduler of one worker.
#[derive(Clone)]
pub struct Scheduler {
    /// What every job goes through.
    pub worker: Arc<Worker>,
    /// How many jobs may be worked on at once, shared with the intake.
    pub permits: Arc<Semaphore>,
    /// The tasks that work on jobs.
    pub tasks: TaskTracker,
    /// How often to look, at least.
    pub poll: Duration,
    /// How long the payloads of ended jobs are kept.
    pub payload_retention: Duration,
}

impl Scheduler {
    /// Runs until the worker stops. What is in doubt has a loop of its own: looks must come
    /// in time, however long the due jobs wait for a permit.
    pub async fn run(self) {
        tokio::join!(self.settle_doubts(), self.bring_on_due());
    }

    async fn settle_doubts(&self) {
        let looks = Arc::new(Semaphore::new(LOOKS_MAX));
        while self.worker.stopping.run_until_cancelled(sleep(self.poll)).await.is_some() {
            let settled = async {
                self.take_over().await?;
                self.begin_looks(&looks).await
            };
            self.note(&settled.await);
        }
    }

    async fn bring_on_due(&self) {
        let mut swept_at = None;
        loop {
            let pause = self.round(&mut swept_at).await;
            self.note(&pause);
            tokio::select! {
                () = sleep(pause.unwrap_or(self.poll)) => {}
                () = self.worker.parked.notified() => {}
                () = self.worker.stopping.cancelled() => return,
            }
        }
    }

    fn note<T>(&self, done: &Result<T, JournalError>) {
        match done {
            Ok(_) => self.worker.intake.resume(Reason::Database),
            Err(error) => self.worker.note_journal_failure(error),
        }
    }

    async fn take_over(&self) -> Result<(), JournalError> {
        for taken in self.worker.journal.take_over(BATCH).await? {
            warn!(
                job_id = %taken.job_id, attempt = taken.attempt, claimed_by = taken.claimed_by,
                "a worker vanished in an attempt, its customer will be read back"
            );
        }
        Ok(())
    }

    /// One look at every job that is due. Returns how long until the next is worth it.
    async fn round(&self, swept_at: &mut Option<Instant>) -> Result<Duration, JournalError> {
        let journal = &self.worker.journal;
        for job_id in journal.expire(BATCH).await? {
            info!(%job_id, outcome = "exhausted", reason_code = "expired", "submission ended");
        }
        self.begin_due().await?;
        journal.postpone_busy(BATCH).await?;
        if swept_at.is_none_or(|swept_at| swept_at.elapsed() >= SWEEP_INTERVAL) {
            let swept = journal.sweep_payloads(self.payload_retention, BATCH).await?;
            if swept > 0 {
                info!(swept, "removed payloads older than PAYLOAD_RETENTION");
            }
            // A full batch may not have been all.
            *swept_at = (swept < BATCH.unsigned_abs()).then(Instant::now);
        }
        let next_due = journal.next_due().await?;
        Ok(match next_due.filter(|_| self.worker.breaker.is_closed()) {
            Some(next_due) => next_due.max(PAUSE_MIN).min(self.poll),
            None => self.poll,
        })
    }

    /// Begins every look that is due. Looks spend nothing, so no breaker holds them back.
    async fn begin_looks(&self, looks: &Arc<Semaphore>) -> Result<(), JournalError> {
        while !self.worker.stopping.is_cancelled() {
            let Ok(permit) = Arc::clone(looks).try_acquire_owned() else { return Ok(()) };
            let claimed_at = Instant::now();
            let Some(claim) = self.worker.journal.claim_read().await? else { return Ok(()) };
            let worker = Arc::clone(&self.worker);
            let span = info_span!("job", job_id = %claim.job_id, customer_id = %claim.customer_id);
            self.tasks.spawn(
                async move {
                    worker.read_back(claim, claimed_at).await;
                    drop(permit);
                }
                .instrument(span),
            );
        }
        Ok(())
    }

    /// Begins the next attempt of every job that is due, as the breaker allows.
    async fn begin_due(&self) -> Result<(), JournalError> {
        let worker = &self.worker;
        loop {
            let acquiring = Arc::clone(&self.permits).acquire_owned();
            let Some(Ok(permit)) = worker.stopping.run_until_cancelled(acquiring).await else {
                return Ok(());
            };
            let is_trial = match worker.breaker.state() {
                State::Closed { .. } => false,
                State::Trial(_) => true,
                State::Open(_) | State::Trying(_) | State::Throttled { .. } => return Ok(()),
            };
            match worker.journal.next_attempt(Moment::now(), is_trial).await? {
                NextAttempt::Claimed(claimed) => {
                    if is_trial {
                        worker.breaker.note(&Event::TrialBegun, &worker.intake);
                    }
                    self.spawn(*claimed, permit);
                }
                NextAttempt::SteppedAside(job_id, Some(outcome)) => log_outcome(&outcome, &job_id),
                NextAttempt::SteppedAside(_, None) | NextAttempt::Raced => {}
                NextAttempt::NothingDue => {
                    if is_trial {
                        worker.breaker.note(&Event::NothingToTry, &worker.intake);
                    }
                    return Ok(());
                }
            }
        }
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
