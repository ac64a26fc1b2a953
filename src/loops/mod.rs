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

/// How long the database may be away for one task before that is told.
const OUTAGE_TOLD_AFTER: Duration = Duration::from_secs(60);

/// The shortest pause between two rounds, where rows stay due that others hold.
const PAUSE_MIN: Duration = Duration::from_millis(20);

/// A loop that no alarm wakes looks for itself after so many times `SCHEDULER_POLL`.
const QUIET_POLLS: u32 = 30;
