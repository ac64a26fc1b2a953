//! Whether an answer can be its request's. A server, or a proxy before it, that answers once too
//! often leaves an answer on a connection that the next request takes for its own.
//!
//! HTTP/1.1 has no number by which an answer names its request. But an answer takes time, and one
//! that nobody asked for follows another: so none is believed that came soon after another on its
//! connection and in less than a quarter of the shortest time in which the provider is known to
//! answer an update. That is known from answers that can be nobody else's: the first on a connection, and
//! those that name their customer.
//!
//! What refuses much faster than the provider accepts is not believed either, until it has done so
//! on a fresh connection. That costs a few attempts a read of their customers, and no update.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// So many answers tell how fast the provider is: the first ones of a process are slow.
const SAMPLES_MIN: u32 = 100;

/// An answer that nobody asked for follows another as soon as that; hyper itself ends a connection
/// that says something while nobody uses it.
const FOLLOWS_WITHIN: Duration = Duration::from_millis(250);

/// So many connections are remembered before those that are gone are forgotten.
const CONNECTIONS_MAX: usize = 4096;

/// What is known of the connections and of how fast the provider answers.
pub struct LockStep {
    known: Mutex<Known>,
    /// A connection whose last answer is older is not used any more.
    connection_age_max: Duration,
}

struct Known {
    /// When the last answer came, by the connection's local port.
    answered: HashMap<u16, Instant>,
    /// Connections that were out of step, and when that showed.
    broken: HashMap<u16, Instant>,
    fastest: Duration,
    samples: u32,
}

impl LockStep {
    /// Knows of nothing yet. A connection is used again within `idle_max`, and answers within
    /// `answer_time_max` or is given up.
    pub fn new(idle_max: Duration, answer_time_max: Duration) -> Self {
        let (answered, broken) = (HashMap::new(), HashMap::new());
        let known = Mutex::new(Known { answered, broken, fastest: Duration::MAX, samples: 0 });
        Self { known, connection_age_max: idle_max + answer_time_max }
    }

    /// Whether an answer to an update that came over the connection from `local_port`, `took`
    /// after the update's body had left, is out of step.
    pub fn is_broken_by(&self, local_port: u16, took: Duration, now: Instant) -> bool {
        let mut known = self.known.lock();
        let is_gone = |at: &Instant| now.duration_since(*at) > self.connection_age_max;
        if known.answered.len() > CONNECTIONS_MAX {
            known.answered.retain(|_, at| !is_gone(at));
        }
        let before = known.answered.insert(local_port, now).filter(|at| !is_gone(at));
        let Some(before) = before else {
            known.broken.remove(&local_port);
            known.learn(took);
            return false;
        };
        let came_too_soon = known.samples >= SAMPLES_MIN
            && now.duration_since(before) < FOLLOWS_WITHIN
            && took < known.fastest / 4;
        if came_too_soon {
            known.broken.insert(local_port, now);
        }
        // What was sent over it before that showed gets the answer to the one before it.
        known.broken.get(&local_port).is_some_and(|at| !is_gone(at))
    }

    /// Whether answers that name their customers are still to be [learned](Self::learn) from.
    pub fn is_learning(&self) -> bool {
        self.known.lock().samples < SAMPLES_MIN
    }

    /// The provider can answer within `took`: an answer that named its customer did.
    pub fn learn(&self, took: Duration) {
        self.known.lock().learn(took);
    }
}

impl Known {
    fn learn(&mut self, took: Duration) {
        self.fastest = self.fastest.min(took);
        self.samples = self.samples.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Knows a provider that answers within 40 ms.
    fn steps() -> LockStep {
        let steps = LockStep::new(ms(1_000), ms(2_000));
        for _ in 0..SAMPLES_MIN {
            assert!(steps.is_learning());
            steps.learn(ms(40));
        }
        steps
    }

    #[test]
    fn an_answer_sooner_than_a_quarter_of_the_fastest_is_out_of_step() {
        let (steps, now) = (steps(), Instant::now());
        assert!(!steps.is_broken_by(1, ms(50), now), "the first answer of a connection");
        assert!(!steps.is_broken_by(2, ms(50), now));
        assert!(!steps.is_broken_by(1, ms(10), now + ms(30)));
        assert!(steps.is_broken_by(1, ms(9), now + ms(60)));
        assert!(!steps.is_broken_by(2, ms(10), now + ms(60)), "another connection");
        assert!(steps.is_broken_by(1, ms(60), now + ms(120)), "the answer to the one before");
        assert!(!steps.is_broken_by(1, ms(60), now + ms(4_000)), "another connection on that port");
    }

    #[test]
    fn an_answer_long_after_another_follows_none() {
        let (steps, now) = (steps(), Instant::now());
        assert!(!steps.is_broken_by(1, ms(50), now));
        assert!(!steps.is_broken_by(1, ms(2), now + ms(250)));
    }

    #[test]
    fn nothing_is_called_too_soon_before_it_is_known_how_fast_the_provider_is() {
        let (steps, now) = (LockStep::new(ms(1_000), ms(2_000)), Instant::now());
        assert!(!steps.is_broken_by(1, ms(50), now));
        assert!(!steps.is_broken_by(1, ms(1), now + ms(5)));
    }

    #[test]
    fn a_provider_that_becomes_faster_is_believed_again() {
        let (steps, now) = (steps(), Instant::now());
        assert!(!steps.is_broken_by(1, ms(50), now));
        assert!(steps.is_broken_by(1, ms(9), now + ms(10)));
        steps.learn(ms(9));
        assert!(!steps.is_broken_by(2, ms(12), now));
        assert!(!steps.is_broken_by(2, ms(9), now + ms(10)));
    }
}
