//! How many jobs a replica works on at once (job slots), and how many of them may have a request in
//! flight (request slots). There are fewer request slots: jobs are prefetched, that is, the next jobs
//! are written down while the provider still answers the last.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// For each so many request slots, one job more may be prefetched.
const REQUESTS_PER_PREFETCHED_JOB: usize = 2;

/// No job is prefetched while the provider takes longer than this part of the longest wait:
/// prefetching gains next to nothing then, and the job might wait for too long.
const SLOW_PART: u32 = 10;

/// The slots of one replica.
pub struct JobSlots {
    jobs: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    requests_max: usize,
    /// Whether no job is prefetched now, as it might wait for too long.
    is_slow: AtomicBool,
    wait_max: Duration,
}

/// One job's slot, until it is dropped.
pub struct JobSlot {
    slots: Arc<JobSlots>,
    request: Option<OwnedSemaphorePermit>,
    _job: OwnedSemaphorePermit,
}

impl JobSlots {
    /// Slots for so many requests in flight, each to begin within `wait_max` of its job's opening.
    pub fn new(requests: usize, wait_max: Duration) -> Arc<Self> {
        Arc::new(Self {
            jobs: Arc::new(Semaphore::new(job_slots(requests))),
            requests: Arc::new(Semaphore::new(requests)),
            requests_max: requests,
            is_slow: AtomicBool::new(false),
            wait_max,
        })
    }

    /// How many request slots are taken.
    pub fn requests_in_flight(&self) -> usize {
        self.requests_max.saturating_sub(self.requests.available_permits())
    }

    pub fn requests_max(&self) -> usize {
        self.requests_max
    }

    /// How many job slots are taken.
    pub fn jobs_held(&self) -> usize {
        job_slots(self.requests_max).saturating_sub(self.jobs.available_permits())
    }

    /// Waits for a job slot. It comes with a request slot where one is free; while the provider is slow,
    /// it waits for that too.
    pub async fn acquire(self: &Arc<Self>) -> JobSlot {
        let job = acquired(Arc::clone(&self.jobs).acquire_owned().await);
        let requests = Arc::clone(&self.requests);
        let request = if self.is_slow.load(Ordering::Relaxed) {
            Some(acquired(requests.acquire_owned().await))
        } else {
            requests.try_acquire_owned().ok()
        };
        JobSlot { slots: Arc::clone(self), request, _job: job }
    }

    /// A job slot, if [`JobSlots::acquire`] need not wait for it.
    pub fn try_acquire(self: &Arc<Self>) -> Option<JobSlot> {
        let job = Arc::clone(&self.jobs).try_acquire_owned().ok()?;
        let request = Arc::clone(&self.requests).try_acquire_owned().ok();
        let may_wait = !self.is_slow.load(Ordering::Relaxed);
        (request.is_some() || may_wait).then(|| JobSlot { slots: Arc::clone(self), request, _job: job })
    }
}

impl JobSlot {
    /// Waits for a request slot, for a job that was opened at `opened_at`. `false` if none is free in
    /// time.
    pub async fn acquire_request_slot(&mut self, opened_at: Instant) -> bool {
        if self.request.is_none() {
            let deadline = opened_at + self.slots.wait_max;
            let acquiring = Arc::clone(&self.slots.requests).acquire_owned();
            self.request = timeout_at(deadline, acquiring).await.ok().map(acquired);
            if self.request.is_none() {
                self.slots.is_slow.store(true, Ordering::Relaxed);
            }
        }
        self.request.is_some()
    }

    /// Notes how long the request took, with the checks before it, until the provider answered.
    pub fn note_answer(&self, took: Duration) {
        self.slots.is_slow.store(took > self.slots.wait_max / SLOW_PART, Ordering::Relaxed);
    }
}

fn job_slots(requests: usize) -> usize {
    requests + requests / REQUESTS_PER_PREFETCHED_JOB
}

fn acquired(permit: Result<OwnedSemaphorePermit, AcquireError>) -> OwnedSemaphorePermit {
    // Unwrap safety: no semaphore of ours is ever closed.
    #[expect(clippy::expect_used)]
    permit.expect("the semaphore is open")
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(300);

    #[tokio::test]
    async fn half_as_many_jobs_as_request_slots_are_prefetched() {
        let slots = JobSlots::new(8, WINDOW);
        let mut taken: Vec<JobSlot> = std::iter::from_fn(|| slots.try_acquire()).collect();
        assert_eq!(taken.len(), 12);
        assert!(slots.acquire().now_or_never().is_none());
        let mut prefetched = taken.split_off(8);
        let now = Instant::now();
        for slot in &mut taken {
            assert_eq!(slot.acquire_request_slot(now).now_or_never(), Some(true), "it has one");
        }
        assert!(prefetched[0].acquire_request_slot(now).now_or_never().is_none());
        taken.pop();
        assert!(prefetched[0].acquire_request_slot(now).await);
        let next = slots.acquire().await;
        assert!(next.request.is_none(), "it is prefetched");
        assert!(!prefetched[1].acquire_request_slot(now - WINDOW).await, "its window has passed");
    }

    #[tokio::test]
    async fn no_job_is_prefetched_while_the_provider_is_slow() {
        let slots = JobSlots::new(4, WINDOW);
        let mut taken: Vec<JobSlot> = std::iter::from_fn(|| slots.try_acquire()).collect();
        let mut prefetched = taken.pop().expect("one is prefetched");
        assert!(!prefetched.acquire_request_slot(Instant::now() - WINDOW).await, "no answer came at all");
        drop(prefetched);
        assert!(slots.try_acquire().is_none());
        taken[0].note_answer(WINDOW / 100);
        assert!(slots.try_acquire().is_some());
        taken[0].note_answer(WINDOW);
        assert!(slots.try_acquire().is_none());
        assert!(slots.acquire().now_or_never().is_none());
        taken.remove(0);
        assert!(slots.acquire().await.request.is_some(), "it waits for no other any more");
    }

    #[test]
    fn a_replica_with_one_request_slot_prefetches_no_job() {
        let slots = JobSlots::new(1, WINDOW);
        let _slot = slots.try_acquire();
        assert!(slots.try_acquire().is_none());
    }
}
