//! A customer's updates: what counts as spent, and what may still be sent.

use super::state::VerdictKind;

/// A customer's updates, as far as our records know.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Budget {
    /// Attempts that [`spends`] counts, each once, whatever a read has shown since.
    pub spent_here: u32,
    /// Updates that others spent.
    pub spent_elsewhere: u32,
    /// How many the provider allows.
    pub limit: u32,
}

/// Whether an attempt counts against the customer's updates: the provider accepted it, or may have. A
/// read that found it not applied gives nothing back, as a read may be wrong.
pub const fn spends(verdict: VerdictKind) -> bool {
    match verdict {
        VerdictKind::Accepted | VerdictKind::Unknown => true,
        VerdictKind::Rejected
        | VerdictKind::NotSent
        | VerdictKind::Throttled
        | VerdictKind::Misconfigured => false,
    }
}

impl Budget {
    /// How many updates are left.
    pub fn left(self) -> u32 {
        self.limit.saturating_sub(self.spent())
    }

    /// Whether a resend leaves what may be the customer's last update alone.
    pub fn allows_resend(self) -> bool {
        self.spent().saturating_add(1) < self.limit
    }

    fn spent(self) -> u32 {
        self.spent_here.saturating_add(self.spent_elsewhere)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_resend_leaves_the_last_update_alone() {
        let check = |spent_here, spent_elsewhere, expected| {
            let budget = Budget { spent_here, spent_elsewhere, limit: 3 };
            assert_eq!(budget.allows_resend(), expected, "{budget:?}");
        };
        check(1, 0, true);
        check(2, 0, false);
        check(1, 1, false);
        check(3, 0, false);
    }

    proptest! {
        /// A provider with a real count: each attempt of unknown outcome is applied or not, each
        /// acceptance is. Whatever the history, a resend that our books allow leaves one.
        #[test]
        fn no_history_leads_to_a_resend_that_could_take_the_last_update(
            accepted in 0u32..6, unknown in 1u32..6, elsewhere in 0u32..6, limit in 1u32..8,
        ) {
            let budget = Budget { spent_here: accepted + unknown, spent_elsewhere: elsewhere, limit };
            let applied_at_worst = accepted + unknown + elsewhere;
            if budget.allows_resend() {
                prop_assert!(applied_at_worst + 1 < limit);
            }
        }
    }
}
