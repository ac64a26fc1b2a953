//! The one place that reads the clocks for what another machine relies on: how long an attempt
//! may still leave, how old what is known is, and the time in a signature.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::failpoint;

/// How many microseconds a moment may be put ahead so that it is unlike the others.
const UNIQUE_AHEAD_MAX: u64 = 1_000_000;

/// An instant on every clock of this machine. Each alone can deceive: the monotonic one stands
/// still while the machine is suspended, the wall clock is set, and a machine that is moved keeps
/// neither for sure. Another machine's clock, which ends a lease, goes on meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub monotonic: Instant,
    /// For the provider and for people, in whole microseconds as Postgres keeps them.
    pub wall: SystemTime,
    /// The machine's uptime, the time that it was suspended included.
    uptime: Duration,
}

impl Moment {
    pub fn now() -> Self {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let micros = u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX);
        // Unwrap safety: Linux has had this clock since 2.6.39.
        #[expect(clippy::expect_used)]
        let uptime = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("the kernel has CLOCK_BOOTTIME");
        let suspended = failpoint::suspended();
        Self {
            monotonic: Instant::now(),
            wall: SystemTime::UNIX_EPOCH + Duration::from_micros(micros) + suspended,
            uptime: Duration::from(uptime) + suspended,
        }
    }

    /// The same, unlike any that this process has named so: by it the journal knows its own claim again. A
    /// coarse clock tells one time twice.
    pub fn unique() -> Self {
        static LAST_MICROS: AtomicU64 = AtomicU64::new(0);
        let now = Self::now();
        let since = now.wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let micros = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
        // One that was set back may go through the same times again, but not through those just named.
        let is_near = |last: u64| micros <= last && last - micros < UNIQUE_AHEAD_MAX;
        let next = |last| if is_near(last) { last + 1 } else { micros };
        let last = LAST_MICROS.fetch_update(Ordering::AcqRel, Ordering::Acquire, |last| Some(next(last)));
        let named = next(last.unwrap_or_default());
        Self { wall: SystemTime::UNIX_EPOCH + Duration::from_micros(named), ..now }
    }

    /// How long ago this was, as the clock says that has gone on the farthest.
    pub fn elapsed(self) -> Duration {
        Self::now().since(self)
    }

    /// The longest time since `earlier` that any clock tells. One that was set back tells none.
    pub fn since(self, earlier: Self) -> Duration {
        let monotonic = self.monotonic.saturating_duration_since(earlier.monotonic);
        let wall = self.wall.duration_since(earlier.wall).unwrap_or_default();
        let uptime = self.uptime.saturating_sub(earlier.uptime);
        monotonic.max(wall).max(uptime)
    }

    /// Whole seconds since 1970, as the signature has them.
    pub fn unix_seconds(self) -> i64 {
        let since = self.wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    }
}

/// When a loop last turned. Clones are the same loop.
#[derive(Clone, Debug)]
pub struct LastTurn(Arc<Mutex<Instant>>);

impl Default for LastTurn {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

impl LastTurn {
    pub fn turn(&self) {
        *self.0.lock() = Instant::now();
    }

    pub fn at(&self) -> Instant {
        *self.0.lock()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A moment so many seconds before now, by each clock.
    pub(crate) fn ago(monotonic: u64, wall: i64, uptime: u64) -> Moment {
        let now = Moment::now();
        let (monotonic, uptime) = (Duration::from_secs(monotonic), Duration::from_secs(uptime));
        let by = Duration::from_secs(wall.unsigned_abs());
        Moment {
            monotonic: now.monotonic - monotonic,
            wall: if wall < 0 { now.wall + by } else { now.wall - by },
            uptime: now.uptime - uptime,
        }
    }

    #[test]
    fn moments_are_unlike_each_other_however_coarse_the_clock() {
        let named: std::collections::BTreeSet<_> = (0..10_000).map(|_| Moment::unique().wall).collect();
        assert_eq!(named.len(), 10_000);
        let ahead = named.last().expect("one").duration_since(SystemTime::now()).unwrap_or_default();
        assert!(ahead < Duration::from_secs(1), "{ahead:?}");
    }

    #[test]
    fn the_clock_that_has_gone_on_the_farthest_counts() {
        for (monotonic, wall, uptime, expected) in [
            (5, 5, 5, 5),
            // Suspended for 84 s.
            (1, 85, 85, 85),
            // The same, on a machine whose wall clock is not set yet.
            (1, 1, 85, 85),
            // Moved to another host, whose uptime it has now.
            (1, 85, 0, 85),
            // Set back, by an hour.
            (5, -3595, 5, 5),
            // Set forward, by an hour: nothing may be sent any more.
            (5, 3605, 5, 3605),
        ] {
            let elapsed = ago(monotonic, wall, uptime).elapsed();
            assert_eq!(elapsed.as_secs(), expected, "{monotonic} {wall} {uptime}");
        }
    }
}
