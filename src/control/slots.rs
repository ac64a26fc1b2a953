//! How many jobs a replica works on at once, and how many of them may have a request in flight:
//! fewer, so that the next jobs are written down while the provider still answers the last.
//! Knows nothing of what is done in a place.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// For each so many requests in flight, one job more may be opened ahead.
const REQUESTS_PER_JOB_AHEAD: usize = 2;

/// Nothing is opened ahead of a provider that takes longer than this part of the longest wait: it
/// gains next to nothing, and might wait for too long.
const SLOW_PART: u32 = 10;

/// The places of one replica.
pub struct Places {
    jobs: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    /// Whether nothing is opened ahead now, as it might wait for too long.
    is_slow: AtomicBool,
    wait_max: Duration,
}

/// A job's place, until it is dropped.
pub struct Place {
    places: Arc<Places>,
    request: Option<OwnedSemaphorePermit>,
    _job: OwnedSemaphorePermit,
}

impl Places {
    /// Places for so many requests in flight, each to begin within `wait_max` of its job's opening.
    pub fn new(requests: usize, wait_max: Duration) -> Arc<Self> {
        Arc::new(Self {
            jobs: Arc::new(Semaphore::new(requests + requests / REQUESTS_PER_JOB_AHEAD)),
            requests: Arc::new(Semaphore::new(requests)),
            is_slow: AtomicBool::new(false),
            wait_max,
        })
    }

    /// Waits for a place: one with a request's beside it where there is one, or the provider is slow.
    pub async fn take(self: &Arc<Self>) -> Place {
        let job = acquired(Arc::clone(&self.jobs).acquire_owned().await);
        let requests = Arc::clone(&self.requests);
        let request = if self.is_slow.load(Ordering::Relaxed) {
            Some(acquired(requests.acquire_owned().await))
        } else {
            requests.try_acquire_owned().ok()
        };
        Place { places: Arc::clone(self), request, _job: job }
    }

    /// Takes a place if [`Places::take`] need not wait for it.
    pub fn try_take(self: &Arc<Self>) -> Option<Place> {
        let job = Arc::clone(&self.jobs).try_acquire_owned().ok()?;
        let request = Arc::clone(&self.requests).try_acquire_owned().ok();
        let may_wait = !self.is_slow.load(Ordering::Relaxed);
        (request.is_some() || may_wait).then(|| Place { places: Arc::clone(self), request, _job: job })
    }
}

impl Place {
    /// Waits until a request may be in flight from this place, for a job that was opened at
    /// `opened_at`. `false` if none may in time.
    pub async fn begin_request(&mut self, opened_at: Instant) -> bool {
        if self.request.is_none() {
            let deadline = opened_at + self.places.wait_max;
            let acquiring = Arc::clone(&self.places.requests).acquire_owned();
            self.request = timeout_at(deadline, acquiring).await.ok().map(acquired);
            if self.request.is_none() {
                self.places.is_slow.store(true, Ordering::Relaxed);
            }
        }
        self.request.is_some()
    }

    /// Tells how long the provider took to answer the request.
    pub fn note_answer(&self, took: Duration) {
        self.places.is_slow.store(took > self.places.wait_max / SLOW_PART, Ordering::Relaxed);
    }
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
    async fn as_many_requests_are_in_flight_as_were_asked_for_and_half_as_many_more_jobs_are_open() {
        let places = Places::new(8, WINDOW);
        let mut taken: Vec<Place> = std::iter::from_fn(|| places.try_take()).collect();
        assert_eq!(taken.len(), 12);
        assert!(places.take().now_or_never().is_none());
        let mut ahead = taken.split_off(8);
        let now = Instant::now();
        for place in &mut taken {
            assert_eq!(place.begin_request(now).now_or_never(), Some(true), "it has one");
        }
        assert!(ahead[0].begin_request(now).now_or_never().is_none());
        taken.pop();
        assert!(ahead[0].begin_request(now).await);
        let next = places.take().await;
        assert!(next.request.is_none(), "it is ahead of those that have one");
        assert!(!ahead[1].begin_request(now - WINDOW).await, "its window has passed");
    }

    #[tokio::test]
    async fn nothing_is_opened_ahead_of_a_provider_that_is_slow() {
        let places = Places::new(4, WINDOW);
        let mut taken: Vec<Place> = std::iter::from_fn(|| places.try_take()).collect();
        let mut ahead = taken.pop().expect("one is ahead");
        assert!(!ahead.begin_request(Instant::now() - WINDOW).await, "no answer came at all");
        drop(ahead);
        assert!(places.try_take().is_none());
        taken[0].note_answer(WINDOW / 100);
        assert!(places.try_take().is_some());
        taken[0].note_answer(WINDOW);
        assert!(places.try_take().is_none());
        assert!(places.take().now_or_never().is_none());
        taken.remove(0);
        assert!(places.take().await.request.is_some(), "it waits for no other any more");
    }

    #[test]
    fn a_replica_that_works_on_one_job_opens_none_ahead() {
        let places = Places::new(1, WINDOW);
        let _place = places.try_take();
        assert!(places.try_take().is_none());
    }
}
