//! Whether a replica's loops move. One that stands still for long will not recover by
//! itself: the heartbeat then stops too, and whoever probes the replica starts it anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Far longer than any turn takes while the database or the broker is away.
const STANDSTILL: Duration = Duration::from_secs(120);

/// A loop that shows that it moves. Clones are the same loop.
#[derive(Clone, Debug)]
pub struct Loop {
    turned_at: Arc<Mutex<Instant>>,
}

impl Default for Loop {
    fn default() -> Self {
        Self { turned_at: Arc::new(Mutex::new(Instant::now())) }
    }
}

impl Loop {
    pub fn turn(&self) {
        *self.turned_at.lock() = Instant::now();
    }

    fn stands_still(&self, now: Instant) -> bool {
        let turned_at = *self.turned_at.lock();
        now.saturating_duration_since(turned_at) >= STANDSTILL
    }
}

/// The broker's loop: whether it moves, and whether it has a session.
#[derive(Clone, Debug, Default)]
pub struct SessionLoop {
    pub turns: Loop,
    has_session: Arc<AtomicBool>,
}

impl SessionLoop {
    /// Notes that a session began, or ended.
    pub fn set_session(&self, has_session: bool) {
        self.has_session.store(has_session, Ordering::Relaxed);
    }

    /// Whether there is a session now.
    pub fn has_session(&self) -> bool {
        self.has_session.load(Ordering::Relaxed)
    }
}

/// The loops of one replica.
#[derive(Debug, Default)]
pub struct Liveness {
    /// The broker's session, and its rebuilding.
    pub session: SessionLoop,
    pub scheduler: Loop,
    /// The reads of unknown outcomes.
    pub reads: Loop,
    pub tracker: Loop,
}

impl Liveness {
    /// The first loop that has stood still for long, if any has.
    pub fn standstill(&self) -> Option<&'static str> {
        let now = Instant::now();
        let loops = [
            ("broker session", &self.session.turns),
            ("scheduler", &self.scheduler),
            ("reads", &self.reads),
            ("tracker", &self.tracker),
        ];
        loops.into_iter().find(|(_, each)| each.stands_still(now)).map(|(name, _)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_has_not_turned_for_two_minutes_stands_still() {
        let scheduler = Loop::default();
        let now = Instant::now();
        assert!(!scheduler.stands_still(now + STANDSTILL - Duration::from_secs(1)));
        assert!(scheduler.stands_still(now + STANDSTILL + Duration::from_secs(1)));
        assert_eq!(Liveness::default().standstill(), None);
    }
}
