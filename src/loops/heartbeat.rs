//! Tells the journal every two seconds that this replica lives, and hears from it whether
//! an operator has paused the work.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use time::OffsetDateTime;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error};

use crate::clock::Moment;
use crate::context::Context;
use crate::control::intake::{HEARD_WITHIN, Intake, Reason, Severity};
use crate::journal::JournalError;
use crate::journal::pause::Pause;
use crate::journal::replicas::{Heard, Pulse};

/// Every replica obeys an operator within 5 s, a slow database included; one whose heartbeats are
/// not answered begins nothing once it has heard nothing for [`HEARD_WITHIN`].
const INTERVAL: Duration = Duration::from_secs(2);

/// A heartbeat that is not answered by then is given up, and tried again.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(4);

/// The heartbeat of one replica.
pub struct Heartbeat {
    context: Arc<Context>,
    jobs: TaskTracker,
    instance: String,
    /// What the replica is set to, as it may be seen.
    settings: Value,
    started_at: OffsetDateTime,
}

impl Heartbeat {
    /// A heartbeat of this process, named `instance`, that counts `jobs` as in flight and tells `settings`.
    pub fn new(context: Arc<Context>, jobs: TaskTracker, instance: String, settings: Value) -> Self {
        Self { context, jobs, instance, settings, started_at: OffsetDateTime::now_utc() }
    }

    /// Beats once. What a heartbeat read of a pause holds for a while; once none was answered for
    /// that long, the work counts as paused.
    ///
    /// A replica whose loops stand still does not beat: it only looks alive.
    pub async fn beat(&self) {
        let Context { intake, liveness, .. } = &*self.context;
        match liveness.standstill() {
            Some(standstill) => error!(
                standstill,
                "a loop of the worker stands still; this is a bug, restart it and report it"
            ),
            None => self.ask().await,
        }
        if intake.is_unheard() {
            let cause = format_args!(
                "no heartbeat was answered for {HEARD_WITHIN:?}, so that a person may have paused the work; \
                 look at what holds or locks the table worker"
            );
            intake.pause(Reason::Heartbeat, Severity::Passing, cause);
        }
    }

    /// Tells that this replica lives, and obeys what it hears.
    async fn ask(&self) {
        let Context { journal, intake, liveness, scheduled, .. } = &*self.context;
        let mut paused_for = intake.paused_for();
        // A reader of this row sees that this heartbeat was answered.
        paused_for.retain(|reason| reason != Reason::Heartbeat.name());
        if !liveness.session.has_session() {
            paused_for.push("broker".to_owned());
        }
        let pulse = Pulse {
            instance: &self.instance,
            started_at: self.started_at,
            in_flight: self.jobs.len(),
            paused_for,
        };
        let begun = Moment::now();
        match timeout(ANSWER_TIME_MAX, journal.beat(&pulse)).await {
            Ok(Ok(Heard { pause, has_settings })) => {
                let was_held = intake.is_held();
                obey(intake, pause);
                intake.hear(begun);
                intake.resume(Reason::Heartbeat);
                if was_held {
                    scheduled.notify_one();
                }
                if !has_settings {
                    self.tell_settings().await;
                }
            }
            // Nobody else may notice that this table alone is out of reach.
            Ok(Err(error)) if error.remedy().is_some() => self.context.note_journal_failure(&error),
            Ok(Err(error)) => debug!(%error, "no heartbeat"),
            Err(_elapsed) => debug!("no heartbeat: no answer within {ANSWER_TIME_MAX:?}"),
        }
    }

    /// Tells what this replica is set to, once its row is there. Where that fails, the next heartbeat finds it
    /// untold.
    async fn tell_settings(&self) {
        let told = self.context.journal.tell_settings(&self.instance, &self.settings);
        match timeout(ANSWER_TIME_MAX, told).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "the settings are not told"),
            Err(_elapsed) => debug!("the settings are not told: no answer within {ANSWER_TIME_MAX:?}"),
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
        self.context.journal.leave(&self.instance).await
    }
}

/// Does what a person has said of the work.
pub(super) fn obey(intake: &Intake, pause: Option<Pause>) {
    match pause {
        Some(Pause { by, note, .. }) => {
            intake.pause(Reason::Operator, Severity::Passing, format_args!("{by} paused the work: {note}"));
        }
        None => intake.resume(Reason::Operator),
    }
}
