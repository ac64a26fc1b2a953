//! When to try again: one exponential schedule with jitter, counted in attempts.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;

#[derive(Clone, Copy, Debug)]
pub struct RetrySchedule {
    pub delay_min: Duration,
    /// No delay is longer, whatever the jitter or the provider says.
    pub delay_max: Duration,
    /// How many attempts may be answered, throttled or not sent before a job is exhausted.
    pub attempts_max: u32,
    /// Nobody waits longer for what the provider asked of another job.
    pub pause_max: Duration,
}

/// The provider is never asked again sooner after it asked for a wait.
const THROTTLED_DELAY_MIN: Duration = Duration::from_secs(1);

/// How far the jitter takes a delay from its place in the schedule, either way.
const JITTER_SHARE: f64 = 0.5;

impl RetrySchedule {
    /// The delay after the `retries`-th counted attempt (from 1), doubling each time.
    /// `jitter` is uniform in [0, 1) and spreads the delay by ±50 %.
    pub fn delay(&self, retries: u32, jitter: f64) -> Duration {
        let mut generator = ExponentialBackoff {
            current_interval: self.delay_min,
            initial_interval: self.delay_min,
            multiplier: 2.0,
            max_interval: self.delay_max,
            // Its own jitter is left out: ours comes in as an argument, so that the schedule is pure.
            randomization_factor: 0.0,
            // Its default of 15 minutes counts from construction; an outage must not end a job.
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        let place = (1..=retries.max(1)).filter_map(|_| generator.next_backoff()).last();
        let spread = 1.0 + JITTER_SHARE * (2.0 * jitter - 1.0);
        place.unwrap_or(self.delay_max).mul_f64(spread).min(self.delay_max)
    }

    /// The delay after a throttled attempt: at least what the provider asked for,
    /// clamped to [1 s, `delay_max`].
    pub fn throttled_delay(&self, retry_after: Option<Duration>, retries: u32, jitter: f64) -> Duration {
        self.asked(retry_after).max(self.delay(retries, jitter))
    }

    /// How long everybody waits after the provider asked one to: as long, but `pause_max` at most, since
    /// it may have meant that one alone.
    pub fn pause(&self, retry_after: Option<Duration>) -> Duration {
        self.asked(retry_after).min(self.pause_max.max(THROTTLED_DELAY_MIN))
    }

    fn asked(&self, retry_after: Option<Duration>) -> Duration {
        retry_after.unwrap_or_default().min(self.delay_max).max(THROTTLED_DELAY_MIN)
    }

    /// Whether a job that has had `retries` counted attempts may have another.
    pub fn allows_another(&self, retries: u32) -> bool {
        retries < self.attempts_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SCHEDULE: RetrySchedule = RetrySchedule {
        delay_min: Duration::from_millis(500),
        delay_max: Duration::from_secs(3600),
        attempts_max: 36,
        pause_max: Duration::from_secs(60),
    };

    #[test]
    fn delays_double_up_to_the_cap() {
        let delay = |retries| SCHEDULE.delay(retries, 0.5);
        assert_eq!(delay(1), Duration::from_millis(500));
        assert_eq!(delay(2), Duration::from_secs(1));
        assert_eq!(delay(8), Duration::from_secs(64));
        assert_eq!(delay(14), Duration::from_secs(3600));
        assert_eq!(delay(36), Duration::from_secs(3600));
    }

    #[test]
    fn the_whole_schedule_lasts_about_a_day() {
        let total: Duration = (1..36).map(|retries| SCHEDULE.delay(retries, 0.5)).sum();
        assert!((22.0..26.0).contains(&(total.as_secs_f64() / 3600.0)), "{total:?}");
    }

    #[test]
    fn a_throttled_attempt_waits_as_asked_within_the_clamp() {
        let check = |asked: Option<u64>, expected: u64| {
            let delay = SCHEDULE.throttled_delay(asked.map(Duration::from_secs), 1, 0.5);
            assert_eq!(delay, Duration::from_secs(expected), "asked for {asked:?}");
        };
        check(None, 1);
        check(Some(0), 1);
        check(Some(30), 30);
        check(Some(1_000_000), 3600);
    }

    #[test]
    fn everybody_waits_for_one_a_minute_at_most() {
        for (asked, expected) in [(None, 1), (Some(7), 7), (Some(60), 60), (Some(3600), 60)] {
            let pause = SCHEDULE.pause(asked.map(Duration::from_secs));
            assert_eq!(pause, Duration::from_secs(expected), "asked for {asked:?}");
        }
    }

    #[test]
    fn the_last_attempt_is_the_last() {
        assert!(SCHEDULE.allows_another(35));
        assert!(!SCHEDULE.allows_another(36));
    }

    proptest! {
        #[test]
        fn jitter_spreads_a_delay_by_half_and_never_past_the_cap(retries in 1u32..100, jitter in 0.0..1.0f64) {
            let place = SCHEDULE.delay(retries, 0.5).as_secs_f64();
            let delay = SCHEDULE.delay(retries, jitter).as_secs_f64();
            prop_assert!(delay >= place * 0.499 && delay <= place * 1.501 && delay <= 3600.0);
        }
    }
}
