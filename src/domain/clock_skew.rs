//! How far the provider's clock is from ours, as the dates of its answers tell. Any one of them may be
//! that of a wrong clock on the way.

use std::time::{Duration, SystemTime};

/// A clock further off the provider's than this may not sign.
const SECONDS_MAX: i64 = 120;

/// The provider's clock less ours, in whole seconds, as one answer's date tells it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ClockSkew {
    /// As if the answer had been made when it came.
    pub least: i64,
    /// As if it had been made when it was asked for, at the end of its date's second.
    most: i64,
}

impl ClockSkew {
    /// By an answer's date, and our time before it was asked for and after it came.
    pub fn told_by(date: SystemTime, asked_at: SystemTime, answered_at: SystemTime) -> Self {
        Self {
            least: seconds_between(answered_at, date),
            most: seconds_between(asked_at, date + Duration::from_secs(1)),
        }
    }

    /// Whether our clock is too far off to sign, whenever in between the answer was made.
    pub fn is_intolerable(self) -> bool {
        self.least > SECONDS_MAX || self.most < -SECONDS_MAX
    }
}

fn seconds_between(from: SystemTime, to: SystemTime) -> i64 {
    let whole = |apart: Duration| i64::try_from(apart.as_secs()).unwrap_or(i64::MAX);
    to.duration_since(from).map_or_else(|error| -whole(error.duration()), whole)
}

/// What the last three answers told, the newest first.
#[derive(Clone, Copy, Debug, Default)]
pub struct ToldSkews {
    told: [Option<ClockSkew>; 3],
    is_providers: bool,
}

impl ToldSkews {
    /// Notes what an answer told, be it in the provider's own words or a page in their place. Once the
    /// provider has told, no page counts, and none that did before.
    pub fn note(&mut self, skew: ClockSkew, is_providers: bool) {
        match (self.is_providers, is_providers) {
            (true, false) => return,
            (false, true) => *self = Self { is_providers, ..Self::default() },
            (true, true) | (false, false) => {}
        }
        let [newest, next, _] = self.told;
        self.told = [Some(skew), newest, next];
    }

    pub fn newest(&self) -> Option<ClockSkew> {
        self.told[0]
    }

    /// Whether the provider told it.
    pub fn is_providers(&self) -> bool {
        self.is_providers
    }

    /// By how many seconds the moment of asking is to be put forward before an answer is taken for a
    /// fresh one: by what the newest tells, but no less than most do. So one answer that passed a slow
    /// clock makes no stale one fresh.
    pub fn to_be_fresh(&self) -> Option<i64> {
        let newest = self.newest()?.least;
        let mut told: Vec<i64> = self.told.iter().flatten().map(|skew| skew.least).collect();
        told.sort_unstable();
        Some(newest.max(told[told.len() / 2]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: SystemTime = SystemTime::UNIX_EPOCH;

    fn at(ms: u64) -> SystemTime {
        NOON + Duration::from_secs(1_000) + Duration::from_millis(ms)
    }

    #[test]
    fn an_answer_was_made_between_its_asking_and_its_coming() {
        let skew = |date_ms, asked_ms, answered_ms| {
            let skew = ClockSkew::told_by(at(date_ms), at(asked_ms), at(answered_ms));
            (skew.least, skew.most, skew.is_intolerable())
        };
        assert_eq!(skew(5_000, 5_200, 5_400), (0, 0, false));
        assert_eq!(skew(600_000, 0, 200), (599, 601, true));
        assert_eq!(skew(0, 600_000, 600_200), (-600, -599, true));
        // It took 15 s, and was made at the beginning of those.
        assert_eq!(skew(1_000, 1_000, 16_000), (-15, 1, false));
        assert_eq!(skew(0, 110_000, 125_000), (-125, -109, false), "one slow answer is no wrong clock");
        assert_eq!(skew(0, 122_000, 137_000), (-137, -121, true));
        assert_eq!(skew(120_900, 0, 0), (120, 121, false));
        assert_eq!(skew(121_000, 0, 0), (121, 122, true));
    }

    #[test]
    fn one_wrong_date_makes_no_stale_answer_fresh() {
        let check = |told: &[i64], expected: Option<i64>| {
            let mut skews = ToldSkews::default();
            for least in told {
                skews.note(ClockSkew { least: *least, most: *least + 1 }, true);
            }
            assert_eq!(skews.to_be_fresh(), expected, "{told:?}");
        };
        check(&[], None);
        check(&[-3], Some(-3));
        check(&[0, -600], Some(0));
        check(&[0, 0, -600], Some(0));
        check(&[0, -600, 0], Some(0));
        // Never less than the newest, by which alone it once went.
        check(&[0, 0, 600], Some(600));
        check(&[0, 600, 0], Some(0));
        // The clock was set.
        check(&[0, -600, -600], Some(-600));
        check(&[9, 9, 9, -1, -1], Some(-1));
    }

    #[test]
    fn a_page_counts_until_the_provider_has_told() {
        let skew = |least| ClockSkew { least, most: least + 1 };
        let mut skews = ToldSkews::default();
        skews.note(skew(40), false);
        assert_eq!((skews.to_be_fresh(), skews.is_providers()), (Some(40), false));
        skews.note(skew(1), true);
        assert_eq!((skews.to_be_fresh(), skews.is_providers()), (Some(1), true));
        skews.note(skew(40), false);
        assert_eq!(skews.newest(), Some(skew(1)));
    }
}
