//! Stops a worker that drains once nothing is left to do.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::broker::Broker;
use crate::context::Context;

/// How often it is asked what is left to drain.
const DRAIN_POLL: Duration = Duration::from_millis(500);

/// Stops the worker once the queue is empty, nothing is in motion and no event waits to be published, seen
/// twice.
pub async fn stop_when_drained(broker: Broker, context: Arc<Context>, jobs: TaskTracker, tells: bool) {
    let mut seen_empty = 0;
    let mut last_logged = None;
    while context.stopping.run_until_cancelled(sleep(DRAIN_POLL)).await.is_some() {
        let ready = broker.count_ready().await;
        let in_motion = context.journal.count_in_motion().await;
        let events = match tells {
            true => context.journal.count_events().await,
            false => Ok(0),
        };
        let (Ok(ready), Ok(in_motion), Ok(events)) = (ready, in_motion, events) else {
            seen_empty = 0;
            continue;
        };
        if ready == 0 && in_motion == 0 && events == 0 && jobs.is_empty() {
            seen_empty += 1;
            if seen_empty == 2 {
                info!("drained: the queue is empty, and every job has ended");
                context.stopping.cancel();
            }
            continue;
        }
        seen_empty = 0;
        let due = context.journal.next_due().await.unwrap_or_default();
        let next_due = [due.attempt, due.read].into_iter().flatten().min();
        let left = Some((ready, in_motion, events, next_due.is_some()));
        if last_logged != left {
            let next_due_in_ms = next_due.map(|due| u64::try_from(due.as_millis()).unwrap_or(u64::MAX));
            info!(queued = ready, in_motion, events, next_due_in_ms, "draining");
            last_logged = left;
        }
    }
}
