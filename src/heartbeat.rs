//! Tells the journal every two seconds that this replica lives, and hears from it whether
//! an operator has paused the work.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error};

use crate::instance::instance;
use crate::intake::{Intake, Reason, Severity};
use crate::journal::JournalError;
use crate::journal::interventions::Pause;
use crate::journal::replicas::Pulse;
use crate::worker::Worker;

/// Every replica obeys an operator within 5 s, a slow database included.
const INTERVAL: Duration = Duration::from_secs(2);

/// The heartbeat of one replica.
pub struct Heartbeat {
    worker: Arc<Worker>,
    jobs: TaskTracker,
    instance: String,
    started_at: OffsetDateTime,
}

impl Heartbeat {
    /// A heartbeat of this process that counts `jobs` as in flight.
    ///
    /// # Errors
    /// When the system does not say which process this is.
    pub fn new(worker: Arc<Worker>, jobs: TaskTracker) -> io::Result<Self> {
        let instance = instance(std::process::id())?;
        Ok(Self { worker, jobs, instance, started_at: OffsetDateTime::now_utc() })
    }

    /// Beats once. A database that is away leaves the last word on a pause standing; those who
    /// write the jobs tell of the outage.
    ///
    /// A replica whose loops stand still does not beat: it only looks alive.
    pub async fn beat(&self) {
        let Worker { journal, intake, liveness, parked, .. } = &*self.worker;
        if let Some(standstill) = liveness.standstill() {
            error!(standstill, "a loop of the worker stands still; this is a bug, restart it and report it");
            return;
        }
        let mut paused_for = intake.paused_for();
        if !liveness.session.has_session() {
            paused_for.push("broker".to_owned());
        }
        let pulse = Pulse {
            instance: &self.instance,
            started_at: self.started_at,
            in_flight: self.jobs.len(),
            paused_for,
        };
        match journal.beat(&pulse).await {
            Ok(pause) => {
                if obey(intake, pause) {
                    parked.notify_one();
                }
            }
            // Nobody else may notice that this table alone is out of reach.
            Err(error) if error.remedy().is_some() => self.worker.note_journal_failure(&error),
            Err(error) => debug!(%error, "no heartbeat"),
        }
    }

    /// Beats until `leaving`, and takes its leave.
    ///
    /// # Errors
    /// When the row could not be removed.
    pub async fn run(self, leaving: CancellationToken) -> Result<(), JournalError> {
        while leaving.run_until_cancelled(sleep(INTERVAL)).await.is_some() {
            self.beat().await;
        }
        self.worker.journal.leave(&self.instance).await
    }
}

/// Returns whether the work may go on that was paused before.
fn obey(intake: &Intake, pause: Option<Pause>) -> bool {
    let was_paused = intake.is_paused_for(Reason::Operator);
    match pause {
        Some(Pause { by, note, .. }) => {
            intake.pause(Reason::Operator, Severity::Passing, format_args!("{by} paused the work: {note}"));
            false
        }
        None => {
            intake.resume(Reason::Operator);
            was_paused
        }
    }
}
