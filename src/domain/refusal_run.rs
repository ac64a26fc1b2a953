//! Refusals in a row. One is about its job: a field's value, a customer who does not exist. A row of them,
//! for one customer after the other and with nothing accepted between, may be about us: a plan that has
//! ended, the key of another organization.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::verdict::{Misconfiguration, Rejection, Verdict};

/// So many refusals in a row reject their jobs; those after them are for a person to decide.
const LENGTH_MAX: u32 = 10;

/// Refusals further apart than this are no row.
const APART_MAX: Duration = Duration::from_secs(3600);

/// The refusals since the last acceptance. Their words do not count: they may echo each job's own values.
#[derive(Clone, Copy, Debug, Default)]
pub struct RefusalRun {
    /// The customer of the last one, and when it came.
    last: Option<(Uuid, Instant)>,
    length: u32,
}

impl RefusalRun {
    /// What a verdict on a customer's update, which came at `at`, means after those before it.
    pub fn judge(&mut self, verdict: Verdict, customer_id: Uuid, at: Instant) -> Verdict {
        match verdict {
            Verdict::Accepted(_) => *self = Self::default(),
            Verdict::Rejected(Rejection::FieldRefused | Rejection::CustomerNotFound) => {
                let is_another = match self.last {
                    Some((last, then)) if at.saturating_duration_since(then) <= APART_MAX => {
                        last != customer_id
                    }
                    _ => {
                        self.length = 0;
                        true
                    }
                };
                self.last = Some((customer_id, at));
                self.length = self.length.saturating_add(u32::from(is_another));
                if self.length > LENGTH_MAX {
                    return Verdict::Misconfigured(Misconfiguration::LikeOthers);
                }
            }
            // The document is another customer's, this one's updates are used up, or a check of ours found
            // it: nobody else's matter.
            Verdict::Rejected(
                Rejection::KycAlreadyInUse
                | Rejection::UpdateLimitExceeded
                | Rejection::DocumentTypeUnsupported { .. }
                | Rejection::LinkRefused(..)
                | Rejection::LinkNotFound(_)
                | Rejection::NotADocument(_),
            ) => {}
            Verdict::NotSent(_)
            | Verdict::Throttled { .. }
            | Verdict::Misconfigured(_)
            | Verdict::Unknown(_) => {}
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::verdict::Acceptance;

    const REFUSED: Verdict = Verdict::Rejected(Rejection::FieldRefused);
    const GONE: Verdict = Verdict::Rejected(Rejection::CustomerNotFound);
    const DOUBTED: Verdict = Verdict::Misconfigured(Misconfiguration::LikeOthers);

    fn refuse(run: &mut RefusalRun, customer: u128) -> Verdict {
        run.judge(REFUSED, Uuid::from_u128(customer), Instant::now())
    }

    fn long_run() -> RefusalRun {
        let mut run = RefusalRun::default();
        for customer in 1..=5 {
            assert_eq!(refuse(&mut run, customer), REFUSED, "customer {customer}");
            let other = Uuid::from_u128(100 + customer);
            assert_eq!(run.judge(GONE, other, Instant::now()), GONE, "customer {customer}");
        }
        run
    }

    #[test]
    fn a_long_row_is_for_a_person_until_one_is_accepted() {
        let mut run = long_run();
        for customer in 11..=13 {
            assert_eq!(refuse(&mut run, customer), DOUBTED);
            assert_eq!(run.judge(GONE, Uuid::from_u128(200 + customer), Instant::now()), DOUBTED);
        }
        let accepted = Verdict::Accepted(Acceptance::default());
        assert_eq!(run.judge(accepted.clone(), Uuid::nil(), Instant::now()), accepted);
        assert_eq!(refuse(&mut run, 14), REFUSED);
    }

    #[test]
    fn one_customer_makes_no_row() {
        let mut run = RefusalRun::default();
        for _ in 0..30 {
            assert_eq!(refuse(&mut run, 1), REFUSED);
        }
    }

    #[test]
    fn refusals_far_apart_are_no_row() {
        let mut run = long_run();
        let later = Instant::now() + APART_MAX + Duration::from_secs(1);
        assert_eq!(run.judge(REFUSED, Uuid::from_u128(11), later), REFUSED);
    }

    #[test]
    fn what_is_about_one_customer_alone_or_no_refusal_changes_nothing() {
        let mut run = long_run();
        for verdict in [
            Verdict::Rejected(Rejection::KycAlreadyInUse),
            Verdict::Rejected(Rejection::UpdateLimitExceeded),
            Verdict::Rejected(Rejection::DocumentTypeUnsupported { supported: Vec::new() }),
            Verdict::Throttled { retry_after: None },
        ] {
            assert_eq!(run.judge(verdict.clone(), Uuid::from_u128(99), Instant::now()), verdict);
        }
        assert_eq!(refuse(&mut run, 11), DOUBTED);
    }
}
