//! The one place that reads the clocks for an attempt.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// An instant on both clocks, taken before a claim. The gate counts from it, and it is
/// the `X-TIMESTAMP`, so that where the provider refuses stale timestamps a stalled
/// send dies there too.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// For durations.
    pub monotonic: Instant,
    /// For the provider and for people, in whole microseconds as Postgres keeps them.
    pub wall: SystemTime,
}

impl Moment {
    /// This moment.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let micros = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
        Self { monotonic: Instant::now(), wall: SystemTime::UNIX_EPOCH + Duration::from_micros(micros) }
    }

    /// Whole seconds since 1970, as the signature has them.
    pub fn unix_seconds(self) -> i64 {
        let since = self.wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    }
}
