//! What we have written of a customer against what a read of them shows at the provider.

use serde::Serialize;

use super::read_back::Reading;
use super::state::State;

/// What the books say of a customer: their newest accepted job, or else the newest that may have been
/// applied.
#[derive(Clone, Debug)]
pub struct Booked {
    pub state: State,
    /// The type of the document that it sent.
    pub document_type: Option<String>,
    /// What its verification became, as far as it was followed.
    pub verification_status: Option<String>,
    /// Whether anything of the customer is under way here: an update, a read of its outcome, or a
    /// verification that is followed. Then the books are behind for a while, and nothing is wrong.
    pub is_open: bool,
}

/// How the books and the provider differ.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Difference {
    pub code: &'static str,
    pub here: String,
    pub there: String,
    /// What to do.
    pub remedy: &'static str,
}

/// The difference that matters most, if there is one. A read that proves nothing is none.
pub fn compare(booked: &Booked, reading: &Reading) -> Option<Difference> {
    let here = booked.verification_status.as_deref().unwrap_or("nothing");
    let difference = |code, here: &str, there: &str, remedy| {
        Some(Difference { code, here: here.to_owned(), there: there.to_owned(), remedy })
    };
    let seen = match reading {
        Reading::NotFound => {
            return difference(
                "not_found",
                booked.state.name(),
                "no such customer",
                "ask the provider whether the customer was removed, or is another organization's now",
            );
        }
        Reading::Customer(seen) => seen,
        _ => return None,
    };
    let there = seen.status.as_str();
    if booked.is_open {
        return None;
    }
    if booked.state != State::Accepted {
        // What may have been applied, and nothing tells: a person decides, with this before them.
        return match there {
            "PROCESSING" => difference(
                "processing_there_only",
                booked.state.name(),
                there,
                "an update is in verification: this job's, or one made elsewhere; `show` the job, then `resolve` it",
            ),
            _ => None,
        };
    }
    if let (Some(sent), Some(held)) = (&booked.document_type, &seen.document_type)
        && sent != held
    {
        return difference(
            "document_type",
            sent,
            held,
            "another update came after ours, or the provider kept the old document; compare the customer at the provider",
        );
    }
    match (here, there) {
        (here, there) if here == there => None,
        ("VERIFIED", _) => difference(
            "verified_here_only",
            here,
            there,
            "the provider took its word back, or an update was made elsewhere; count that one with `budget set`",
        ),
        (_, "VERIFIED") => difference(
            "verified_there_only",
            here,
            there,
            "it ended after we had given up following it (VERIFICATION_GIVE_UP); tell upstream",
        ),
        (_, "FAILED") => difference(
            "failed_there_only",
            here,
            there,
            "it ended after we had given up following it; tell upstream, a corrected document is a new update",
        ),
        (_, "PROCESSING") => difference(
            "processing_there_only",
            here,
            there,
            "nothing of ours is open, so an update was made elsewhere; count it with `budget set`",
        ),
        _ => difference(
            "not_verified_there",
            here,
            there,
            "the provider shows no sign of the update that it accepted; ask it about this customer",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::read_back::CustomerStatus;

    fn booked(verification_status: Option<&str>) -> Booked {
        Booked {
            state: State::Accepted,
            document_type: Some("PASSPORT".to_owned()),
            verification_status: verification_status.map(str::to_owned),
            is_open: false,
        }
    }

    fn reads(status: &str, document_type: Option<&str>) -> Reading {
        Reading::Customer(CustomerStatus {
            status: status.to_owned(),
            failure_reason: None,
            document_type: document_type.map(str::to_owned),
            dated_at: None,
        })
    }

    #[track_caller]
    fn check(booked: &Booked, reading: &Reading, expected: Option<&str>) {
        let found = compare(booked, reading);
        assert_eq!(found.as_ref().map(|difference| difference.code), expected, "{booked:?} {reading:?}");
    }

    #[test]
    fn every_word_here_is_compared_with_every_word_there() {
        for here in [None, Some("VERIFIED"), Some("FAILED"), Some("PROCESSING"), Some("UNVERIFIED")] {
            for there in ["VERIFIED", "FAILED", "PROCESSING", "UNVERIFIED", "ON_HOLD"] {
                let expected = match (here, there) {
                    (Some(here), there) if here == there => None,
                    (Some("VERIFIED"), _) => Some("verified_here_only"),
                    (_, "VERIFIED") => Some("verified_there_only"),
                    (_, "FAILED") => Some("failed_there_only"),
                    (_, "PROCESSING") => Some("processing_there_only"),
                    _ => Some("not_verified_there"),
                };
                for document_type in [None, Some("PASSPORT")] {
                    check(&booked(here), &reads(there, document_type), expected);
                }
                let other = reads(there, Some("AADHAAR"));
                check(&booked(here), &other, Some("document_type"));
                check(&Booked { is_open: true, ..booked(here) }, &other, None);
            }
        }
    }

    #[test]
    fn a_customer_who_is_gone_differs_from_whatever_is_written() {
        check(&booked(Some("VERIFIED")), &Reading::NotFound, Some("not_found"));
        check(&Booked { is_open: true, ..booked(None) }, &Reading::NotFound, Some("not_found"));
    }

    #[test]
    fn what_a_person_is_to_decide_differs_only_by_a_verification_that_runs() {
        let review = Booked { state: State::NeedsReview, ..booked(None) };
        check(&review, &reads("PROCESSING", Some("AADHAAR")), Some("processing_there_only"));
        check(&review, &reads("FAILED", Some("AADHAAR")), None);
    }

    #[test]
    fn a_read_that_proves_nothing_is_no_difference() {
        for reading in [Reading::Failed, Reading::Stale, Reading::OtherCustomer] {
            check(&booked(Some("VERIFIED")), &reading, None);
        }
    }
}
