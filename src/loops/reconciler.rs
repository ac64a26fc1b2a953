//! Begins the reads of unknown outcomes that are due. Any replica may take any of them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, info_span};

use crate::context::Context;
use crate::journal::JournalError;
use crate::worker;

/// How many customers are read at once at most: a replica that was killed may leave thousands of
/// unknown outcomes behind, each of which a read can settle for half a minute and no longer.
const READS_MAX: usize = 512;

/// How many reads one statement claims at most.
const READS_CLAIMED_MAX: usize = 32;

/// The reconciler of one worker.
pub struct Reconciler {
    context: Arc<Context>,
    /// How many customers are read at once.
    reads: Arc<Semaphore>,
    jobs: TaskTracker,
    poll: Duration,
}

impl Reconciler {
    /// A reconciler that asks for due reads every `poll` at least, and reads among `jobs`.
    pub fn new(context: Arc<Context>, jobs: TaskTracker, poll: Duration) -> Self {
        Self { context, reads: Arc::new(Semaphore::new(READS_MAX)), jobs, poll }
    }

    /// Runs until the worker stops. Reads spend nothing, so no breaker holds them back.
    pub async fn run(self) {
        let mut pause = self.poll;
        loop {
            // Not for its alarm alone: the dispatcher may wait for a connection.
            let waiting = timeout(pause, self.context.alarms.reads.notified());
            if self.context.stopping.run_until_cancelled(waiting).await.is_none() {
                return;
            }
            self.context.liveness.reconciler.turn();
            pause = match self.begin_due().await {
                // A read proves something for seconds alone.
                Ok(()) => self.poll * 5,
                Err(error) => {
                    self.context.note_journal_failure(&error);
                    self.poll
                }
            };
        }
    }

    async fn begin_due(&self) -> Result<(), JournalError> {
        let permit = || Arc::clone(&self.reads);
        while !self.context.stopping.is_cancelled() {
            // The reads under way may wait for the database: this loop moves all the same.
            let Ok(Ok(first)) = timeout(self.poll, permit().acquire_owned()).await else { return Ok(()) };
            let more = std::iter::from_fn(|| permit().try_acquire_owned().ok());
            let permits: Vec<_> = std::iter::once(first).chain(more.take(READS_CLAIMED_MAX - 1)).collect();
            let claims = self.context.journal.claim_reads(permits.len()).await?;
            if claims.is_empty() {
                return Ok(());
            }
            for (claim, permit) in claims.into_iter().zip(permits) {
                let context = Arc::clone(&self.context);
                let span = info_span!(
                    "job",
                    job_id = %claim.job.id,
                    customer_id = %claim.customer_id,
                    trace_id = claim.job.trace_id().map(display)
                );
                self.jobs.spawn(
                    async move {
                        worker::read_back(&context, claim).await;
                        drop(permit);
                    }
                    .instrument(span),
                );
            }
        }
        Ok(())
    }
}
