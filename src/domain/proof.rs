//! What a read of a customer proves of an update whose outcome nobody knows, and what it cannot, in plain
//! words: for the person who must decide. The rules are [`super::read_back`]'s; this says what each of their
//! conclusions means.

use serde::Serialize;

use super::state::{ConclusionKind, Purpose};

/// What a read proves, and what it cannot.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct Proof {
    pub proves: &'static str,
    pub cannot: &'static str,
}

const NOTHING: &str = "Nothing.";

/// What a read that was made for `purpose` proves. `has_status` says whether it told the customer's status.
pub fn proof_of(purpose: Purpose, has_status: bool, conclusion: Option<ConclusionKind>) -> Proof {
    let proof = |proves, cannot| Proof { proves, cannot };
    match (purpose, conclusion) {
        (Purpose::Configuration, _) => proof(
            "Which document types the provider listed for the customer.",
            "Nothing of an update: the list is the customer's, whatever was sent.",
        ),
        (Purpose::Webhook, _) => proof(
            "That the provider said so by itself, at that time.",
            "Which update it is about: it may be any of the customer's.",
        ),
        (_, Some(ConclusionKind::Applied)) => proof(
            "The update was made: a verification was running, and no other update of the customer can have begun it.",
            "How the verification ends.",
        ),
        (_, Some(ConclusionKind::NotApplied)) => proof(
            "The update was not made: the reads that it takes agree, each made when an update would have shown.",
            "That somebody else made none.",
        ),
        (_, Some(ConclusionKind::LastUpdate)) => proof(
            "The update was not made.",
            "That it may be sent again: that might take the customer's last update.",
        ),
        (_, Some(ConclusionKind::Confirming)) => proof(
            "As far as one read tells, the update was not made.",
            "That it is not made later: another read must agree, made late enough to show that.",
        ),
        (_, Some(ConclusionKind::ReadAgain)) if has_status => {
            proof(NOTHING, "Whether this status is the update's, another update's, or what was there before.")
        }
        (_, Some(ConclusionKind::ReadAgain)) => {
            proof(NOTHING, "The read did not tell the customer's status.")
        }
        (_, Some(ConclusionKind::Unsettled)) => proof(
            NOTHING,
            "A verification that the update began could be over by then, so that no later read can tell either.",
        ),
        (_, Some(ConclusionKind::Rejected)) => proof(
            "The provider said that there is no such customer, or that we may not see them.",
            "Whether that was so when the update was sent.",
        ),
        (_, None) if !has_status => proof(NOTHING, "The read did not tell the customer's status."),
        (Purpose::Baseline, None) => proof(
            "What the customer showed before the first attempt.",
            "Anything of the attempts: they came after.",
        ),
        (Purpose::Verification, None) => proof(
            "What the customer showed then.",
            "Which update it is about, where another may have been made in between.",
        ),
        (Purpose::Reconciliation, None) => {
            proof("What the customer showed when a person compared the books.", "Which update it is about.")
        }
        (Purpose::ReadBack, None) => proof(NOTHING, "No conclusion was written down with it."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever reads "was made" or "was not made" acts by it.
    #[test]
    fn only_a_conclusion_that_settles_says_what_became_of_the_update() {
        for purpose in Purpose::ALL.iter().copied() {
            let conclusions = ConclusionKind::ALL.iter().copied().map(Some).chain([None]);
            for (conclusion, has_status) in conclusions.flat_map(|each| [(each, true), (each, false)]) {
                let proof = proof_of(purpose, has_status, conclusion);
                let says =
                    proof.proves.contains("was made") || proof.proves.starts_with("The update was not made");
                let settles = matches!(
                    conclusion,
                    Some(ConclusionKind::Applied | ConclusionKind::NotApplied | ConclusionKind::LastUpdate)
                );
                let tells_of_updates = !matches!(purpose, Purpose::Configuration | Purpose::Webhook);
                assert_eq!(says, settles && tells_of_updates, "{purpose} {conclusion:?} {proof:?}");
            }
        }
    }

    #[test]
    fn a_read_without_a_status_proves_nothing_by_itself() {
        for purpose in [Purpose::Baseline, Purpose::Verification, Purpose::Reconciliation, Purpose::ReadBack]
        {
            assert_eq!(proof_of(purpose, false, None).proves, NOTHING, "{purpose}");
        }
    }
}
