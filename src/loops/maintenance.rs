//! Rescues expired leases, ends what has expired, and removes what is no longer kept. Each of these
//! tasks has a loop and a result of its own, so that none waits for another.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

use crate::context::{Context, chain, log_outcome};
use crate::control::intake::Reason;
use crate::journal::JournalError;
use crate::loops::{OUTAGE_TOLD_AFTER, PAUSE_MIN, wait_for_alarm};

/// How many rows one statement touches at most.
const BATCH: i64 = 250;

/// How often old payloads, dead letters and the rows of dead replicas are removed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// The maintenance of one worker.
pub struct Maintenance {
    context: Arc<Context>,
    poll: Duration,
    payload_retention: Duration,
    dead_letter_retention: Duration,
}

impl Maintenance {
    /// Maintenance that looks for expired leases and jobs every `poll`.
    pub fn new(
        context: Arc<Context>,
        poll: Duration,
        payload_retention: Duration,
        dead_letter_retention: Duration,
    ) -> Self {
        Self { context, poll, payload_retention, dead_letter_retention }
    }

    /// Runs until the worker stops.
    pub async fn run(self) {
        let (payloads, letters) = (self.payload_retention, self.dead_letter_retention);
        let Context { journal, alarms, .. } = &*self.context;
        tokio::join!(
            self.repeat("rescue of expired leases", Some(&alarms.leases), || self.rescue()),
            self.repeat("ending what has expired", Some(&alarms.expiries), || self.expire()),
            self.repeat("putting off busy customers' jobs", Some(&alarms.busy), move || async move {
                Ok(journal.postpone_busy(BATCH).await? < BATCH.unsigned_abs())
            }),
            self.repeat("PAYLOAD_RETENTION", None, move || async move {
                let swept = journal.sweep_payloads(payloads, BATCH).await?;
                Ok(was_all(swept, "removed payloads older than PAYLOAD_RETENTION"))
            }),
            self.repeat("DEAD_LETTER_RETENTION", None, move || async move {
                let swept = journal.sweep_dead_letters(letters, BATCH).await?;
                Ok(was_all(swept, "removed rows of dead letters older than DEAD_LETTER_RETENTION"))
            }),
            self.repeat("removing the rows of dead replicas", None, move || async move {
                journal.sweep_workers().await?;
                Ok(true)
            }),
        );
    }

    /// Repeats a task when its alarm rings, one without an alarm every `SWEEP_INTERVAL`, and at once where it
    /// says that it was not all. A cause of its failure is logged once, until it works again, and holds up
    /// nothing else.
    async fn repeat<F>(&self, chore: &'static str, alarm: Option<&Notify>, work: impl Fn() -> F)
    where
        F: Future<Output = Result<bool, JournalError>>,
    {
        let Context { intake, stopping, .. } = &*self.context;
        let (mut failing, mut is_told): (Option<(String, Instant)>, bool) = (None, false);
        while let Some(done) = stopping.run_until_cancelled(work()).await {
            let pause = match done {
                Ok(was_all) => {
                    if std::mem::take(&mut is_told) {
                        info!(chore, "a maintenance task works again");
                    }
                    failing = None;
                    (!was_all).then_some(PAUSE_MIN)
                }
                Err(error) => {
                    let cause = chain(&error);
                    let is_new = failing.as_ref().is_none_or(|(last, _)| *last != cause);
                    let since = failing.map_or_else(Instant::now, |(_, since)| since);
                    // The pause of the intake tells of what is everybody's; what turns out to be this
                    // task's alone is told once it lasts.
                    let is_passing = error.is_everybodys()
                        && (since.elapsed() < OUTAGE_TOLD_AFTER || intake.is_paused_for(Reason::Database));
                    if !is_passing && (is_new || !is_told) {
                        error!(
                            chore,
                            error = cause,
                            "a maintenance task fails; it is tried again, and all else goes on"
                        );
                        is_told = true;
                    }
                    failing = Some((cause, since));
                    Some(if alarm.is_some() { self.poll } else { SWEEP_INTERVAL })
                }
            };
            let waiting = async {
                match (pause, alarm) {
                    (Some(pause), _) => sleep(pause).await,
                    (None, Some(alarm)) => wait_for_alarm(alarm, self.poll).await,
                    (None, None) => sleep(SWEEP_INTERVAL).await,
                }
            };
            if stopping.run_until_cancelled(waiting).await.is_none() {
                return;
            }
        }
    }

    /// Rescues claims whose lease has expired: as many as there are, before their customers' reads
    /// are due. Returns whether that was all, as every task does.
    async fn rescue(&self) -> Result<bool, JournalError> {
        let rescued = self.context.journal.rescue(BATCH).await?;
        for rescued in &rescued {
            warn!(
                job_id = %rescued.job.id, trace_id = rescued.job.trace_id().map(display), attempt = rescued.attempt,
                claimed_by = rescued.claimed_by, "a lease expired during an attempt; the customer will be read back"
            );
        }
        Ok((rescued.len() as i64) < BATCH)
    }

    /// Ends what waited for too long.
    async fn expire(&self) -> Result<bool, JournalError> {
        let expired = self.context.journal.expire(BATCH).await?;
        for (job, outcome) in &expired {
            log_outcome(outcome, job);
        }
        Ok((expired.len() as i64) < BATCH)
    }
}

/// Logs how much was removed, if anything was; returns whether that was all there is.
fn was_all(swept: u64, what: &'static str) -> bool {
    if swept > 0 {
        info!(swept, "{what}");
    }
    swept < BATCH.unsigned_abs()
}
