//! How an accepted update's verification is followed: when the customer is read next,
//! and when there is nothing more to see.

use std::time::Duration;

/// When customers in verification are read.
#[derive(Clone, Copy, Debug)]
pub struct Tracking {
    /// From the acceptance to the first read, and the shortest time between two.
    pub poll_after: Duration,
    /// The longest time between two reads before the deadline.
    pub poll_max: Duration,
    /// From the acceptance to when the verification is overdue.
    pub deadline: Duration,
    /// From the acceptance to when it is not read any more.
    pub give_up: Duration,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NextRead {
    /// None: the verification has ended.
    Ended,
    /// None: it has taken too long.
    GivenUp,
    After {
        delay: Duration,
        /// Whether the deadline has passed.
        is_overdue: bool,
    },
}

impl NextRead {
    /// Whether the verification takes longer than it should.
    pub fn is_late(self) -> bool {
        matches!(self, Self::GivenUp | Self::After { is_overdue: true, .. })
    }
}

/// Past the deadline, reads are so many times further apart.
const OVERDUE_SLOWNESS: u32 = 4;

/// The provider's word for a verification that ended well.
pub const VERIFIED: &str = "VERIFIED";

/// The provider's word for a verification that ended badly.
pub const FAILED: &str = "FAILED";

/// Whether the provider has spoken its last word on an update. A customer is `UNVERIFIED`
/// before their verification begins, so that is none; nor is a word that we do not know.
pub fn is_final(status: &str) -> bool {
    [VERIFIED, FAILED].contains(&status)
}

impl Tracking {
    /// What follows a read that read `status`, or nothing, so long after the acceptance.
    /// The time between two reads grows with that: by half of it, so that an end is seen
    /// at the latest after one and a half times as long as it took.
    pub fn next_read(&self, status: Option<&str>, since_acceptance: Duration) -> NextRead {
        if status.is_some_and(is_final) {
            return NextRead::Ended;
        }
        if since_acceptance >= self.give_up {
            return NextRead::GivenUp;
        }
        let is_overdue = since_acceptance >= self.deadline;
        let delay = if is_overdue {
            self.poll_max * OVERDUE_SLOWNESS
        } else {
            // Not past the deadline, which would be noticed late.
            (since_acceptance / 2).min(self.poll_max).min(self.deadline - since_acceptance)
        };
        NextRead::After { delay: delay.max(self.poll_after), is_overdue }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;

    const TRACKING: Tracking = Tracking {
        poll_after: Duration::from_secs(MINUTE),
        poll_max: Duration::from_secs(15 * MINUTE),
        deadline: Duration::from_secs(6 * HOUR),
        give_up: Duration::from_secs(7 * DAY),
    };

    fn check(status: Option<&str>, since_seconds: u64, expected: NextRead) {
        let next = TRACKING.next_read(status, Duration::from_secs(since_seconds));
        assert_eq!(next, expected, "{status:?} after {since_seconds} s");
    }

    fn after(seconds: u64, is_overdue: bool) -> NextRead {
        NextRead::After { delay: Duration::from_secs(seconds), is_overdue }
    }

    #[test]
    fn reads_grow_apart_until_the_deadline_and_are_few_after_it() {
        for (since, expected) in [
            (0, after(MINUTE, false)),
            (MINUTE, after(MINUTE, false)),
            (2 * MINUTE, after(MINUTE, false)),
            (4 * MINUTE, after(2 * MINUTE, false)),
            (20 * MINUTE, after(10 * MINUTE, false)),
            (30 * MINUTE, after(15 * MINUTE, false)),
            (5 * HOUR, after(15 * MINUTE, false)),
            (6 * HOUR - 5 * MINUTE, after(5 * MINUTE, false)),
            (6 * HOUR - 1, after(MINUTE, false)),
            (6 * HOUR, after(HOUR, true)),
            (7 * DAY - 1, after(HOUR, true)),
            (7 * DAY, NextRead::GivenUp),
        ] {
            check(Some("PROCESSING"), since, expected);
        }
    }

    #[test]
    fn verified_and_failed_alone_end_it() {
        for (status, expected) in [
            (Some("VERIFIED"), NextRead::Ended),
            (Some("FAILED"), NextRead::Ended),
            (Some("PROCESSING"), after(MINUTE, false)),
            (Some("UNVERIFIED"), after(MINUTE, false)),
            (Some("ON_HOLD"), after(MINUTE, false)),
            (Some("verified"), after(MINUTE, false)),
            (None, after(MINUTE, false)),
        ] {
            check(status, MINUTE, expected);
        }
    }

    #[test]
    fn an_end_counts_however_late_it_is_seen() {
        check(Some("VERIFIED"), 6 * HOUR, NextRead::Ended);
        check(Some("FAILED"), 8 * DAY, NextRead::Ended);
        check(None, 6 * HOUR, after(HOUR, true));
        check(None, 8 * DAY, NextRead::GivenUp);
    }

    #[test]
    fn a_verification_of_two_hours_takes_some_twenty_reads() {
        let mut since = TRACKING.poll_after;
        let mut reads = 1;
        while since < Duration::from_secs(2 * HOUR) {
            let NextRead::After { delay, .. } = TRACKING.next_read(None, since) else { break };
            since += delay;
            reads += 1;
        }
        assert_eq!(reads, 15, "the last at {since:?}");
    }
}
