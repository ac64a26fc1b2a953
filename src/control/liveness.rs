//! Whether a replica's loops move. One that stands still for long will not recover by
//! itself: the heartbeat then stops too, and whoever probes the replica starts it anew.

use std::time::Duration;

use tokio::time::Instant;

use crate::broker::SessionLiveness;
use crate::clock::LastTurn;
use crate::metrics::LOOPS;

/// Far longer than any turn takes while the database or the broker is away.
const STANDSTILL: Duration = Duration::from_secs(120);

/// The loops of one replica.
#[derive(Debug, Default)]
pub struct Liveness {
    /// The broker's session, and its rebuilding.
    pub session: SessionLiveness,
    pub dispatcher: LastTurn,
    pub reconciler: LastTurn,
    pub tracker: LastTurn,
}

impl Liveness {
    /// The first loop that has stood still for long, if any has.
    pub fn standstill(&self) -> Option<&'static str> {
        let now = Instant::now();
        self.loops().into_iter().find(|(_, each)| stands_still(each, now)).map(|(name, _)| name)
    }

    /// How long ago each loop last turned.
    pub fn turned(&self) -> [(&'static str, Duration); 4] {
        self.loops().map(|(name, each)| (name, each.at().elapsed()))
    }

    fn loops(&self) -> [(&'static str, &LastTurn); 4] {
        let [session, dispatcher, reconciler, tracker] = LOOPS;
        [
            (session, &self.session.turns),
            (dispatcher, &self.dispatcher),
            (reconciler, &self.reconciler),
            (tracker, &self.tracker),
        ]
    }
}

fn stands_still(each: &LastTurn, now: Instant) -> bool {
    now.saturating_duration_since(each.at()) >= STANDSTILL
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_has_not_turned_for_two_minutes_stands_still() {
        let dispatcher = LastTurn::default();
        let now = Instant::now();
        assert!(!stands_still(&dispatcher, now + STANDSTILL - Duration::from_secs(1)));
        assert!(stands_still(&dispatcher, now + STANDSTILL + Duration::from_secs(1)));
        assert_eq!(Liveness::default().standstill(), None);
    }
}
