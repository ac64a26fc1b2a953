//! Field refusals in a row. One is about its job's values. A row of them in the same words, for one
//! customer after the other and with nothing accepted between, may be about us: a plan that has ended, say.

use uuid::Uuid;

use super::verdict::{Misconfiguration, Rejection, Verdict};

/// So many field refusals in a row reject their jobs; those after them are for a person to decide.
const LENGTH_MAX: u32 = 10;

/// The field refusals since the last acceptance, as far as they are alike.
#[derive(Clone, Debug, Default)]
pub struct RefusalRun {
    words: Option<String>,
    customer_id: Uuid,
    length: u32,
}

impl RefusalRun {
    /// What a verdict on a customer's update means after those before it. `words` are the provider's.
    pub fn judge(&mut self, verdict: Verdict, customer_id: Uuid, words: Option<&str>) -> Verdict {
        match verdict {
            Verdict::Accepted(_) => self.length = 0,
            Verdict::Rejected(Rejection::FieldRefused) => {
                if self.length == 0 || self.words.as_deref() != words {
                    *self = Self { words: words.map(str::to_owned), customer_id, length: 1 };
                } else if self.customer_id != customer_id {
                    (self.customer_id, self.length) = (customer_id, self.length.saturating_add(1));
                }
                if self.length > LENGTH_MAX {
                    return Verdict::Misconfigured(Misconfiguration::LikeOthers);
                }
            }
            _ => {}
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::verdict::Acceptance;

    const REFUSED: Verdict = Verdict::Rejected(Rejection::FieldRefused);
    const DOUBTED: Verdict = Verdict::Misconfigured(Misconfiguration::LikeOthers);

    fn refuse(run: &mut RefusalRun, customer: u128, words: &str) -> Verdict {
        run.judge(REFUSED, Uuid::from_u128(customer), Some(words))
    }

    fn long_run() -> RefusalRun {
        let mut run = RefusalRun::default();
        for customer in 1..=10 {
            assert_eq!(refuse(&mut run, customer, "same"), REFUSED, "customer {customer}");
        }
        run
    }

    #[test]
    fn a_long_row_in_the_same_words_is_for_a_person_until_one_is_accepted() {
        let mut run = long_run();
        for customer in 11..=13 {
            assert_eq!(refuse(&mut run, customer, "same"), DOUBTED);
        }
        let accepted = Verdict::Accepted(Acceptance::default());
        assert_eq!(run.judge(accepted.clone(), Uuid::nil(), None), accepted);
        assert_eq!(refuse(&mut run, 14, "same"), REFUSED);
    }

    #[test]
    fn other_words_begin_another_row() {
        let mut run = long_run();
        assert_eq!(refuse(&mut run, 11, "other"), REFUSED);
        assert_eq!(refuse(&mut run, 12, "same"), REFUSED);
    }

    #[test]
    fn one_customer_makes_no_row() {
        let mut run = RefusalRun::default();
        for _ in 0..30 {
            assert_eq!(refuse(&mut run, 1, "same"), REFUSED);
        }
    }

    #[test]
    fn what_is_no_field_refusal_changes_nothing() {
        let mut run = long_run();
        let gone = Verdict::Rejected(Rejection::CustomerNotFound);
        assert_eq!(run.judge(gone.clone(), Uuid::nil(), Some("same")), gone);
        let throttled = Verdict::Throttled { retry_after: None };
        assert_eq!(run.judge(throttled.clone(), Uuid::nil(), None), throttled);
        assert_eq!(refuse(&mut run, 11, "same"), DOUBTED);
    }
}
