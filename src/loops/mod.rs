//! What runs beside the flow until the worker stops, a loop each.

pub mod consumer;
pub mod customer_events;
pub mod database;
pub mod dispatcher;
pub mod drain;
pub mod fleet;
pub mod heartbeat;
pub mod maintenance;
pub mod outcome_events;
pub mod prober;
pub mod reconciler;
pub mod tracker;

use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

/// How long the database may be away for one task before that is told.
const OUTAGE_TOLD_AFTER: Duration = Duration::from_secs(60);

/// The shortest pause between two rounds, where rows stay due that others hold.
const PAUSE_MIN: Duration = Duration::from_millis(20);

/// A loop that no alarm wakes looks for itself after so many times `SCHEDULER_POLL`.
const QUIET_POLLS: u32 = 30;

/// Waits until the alarm rings, or it is time for a loop to look for itself.
async fn wait_for_alarm(alarm: &Notify, poll: Duration) {
    let _rung = timeout(poll * QUIET_POLLS, alarm.notified()).await;
}
