//! Takes deliveries as job slots come free, so that the backlog stays in the queue.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::Delivery;
use crate::control::slots::{JobSlot, JobSlots};

/// Handles each delivery in a task of its own among `jobs`, until `stopping`.
pub async fn consume<F>(
    mut deliveries: mpsc::Receiver<Delivery>,
    slots: Arc<JobSlots>,
    jobs: TaskTracker,
    stopping: CancellationToken,
    handle: impl Fn(Delivery, JobSlot) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    while let Some(Some(delivery)) = stopping.run_until_cancelled(deliveries.recv()).await {
        let Some(slot) = stopping.run_until_cancelled(slots.acquire()).await else { return };
        // A lost session's deliveries come again with the next.
        if !delivery.acker.is_live() {
            continue;
        }
        // Boxed: to spawn a future, and to drop it, copies it whole ten times.
        jobs.spawn(Box::pin(handle(delivery, slot)));
    }
}
