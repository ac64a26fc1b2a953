//! The schema's words, once. A text that is none of them is a fault of whoever wrote it, and never
//! taken for the nearest thing.

use std::fmt;
use std::str::FromStr;

/// A text in a column that must be one of a few words, and is not.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("there is no {what} {word:?}")]
pub struct UnknownWord {
    what: &'static str,
    word: String,
}

macro_rules! words {
    (
        $(#[$about:meta])*
        $name:ident, $what:literal:
        $($(#[$note:meta])* $variant:ident = $word:literal,)+
    ) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub enum $name {
            $($(#[$note])* $variant,)+
        }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word in the table.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;

            fn from_str(word: &str) -> Result<Self, UnknownWord> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(UnknownWord { what: $what, word: word.to_owned() }),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }
    };
}

words! {
    /// Where a submission stands.
    State, "state":
    Submitting = "submitting",
    Waiting = "waiting",
    Unknown = "unknown",
    Accepted = "accepted",
    Rejected = "rejected",
    Invalid = "invalid",
    Superseded = "superseded",
    Duplicate = "duplicate",
    Exhausted = "exhausted",
    NeedsReview = "needs_review",
}

words! {
    /// What a waiting submission waits for.
    WaitingFor, "thing to wait for":
    /// The next try of the schedule.
    Retry = "retry",
    /// The customer's slot, which another submission holds.
    Customer = "customer",
    /// The provider, which refuses or puts off everybody.
    Provider = "provider",
}

words! {
    /// How an acceptance is known.
    Evidence, "evidence":
    Response = "response",
    ReadBack = "read_back",
    /// By an answer that came after the claim was lost.
    Late = "late",
    Person = "person",
}

words! {
    /// What an attempt's result means.
    VerdictKind, "verdict":
    Accepted = "accepted",
    Rejected = "rejected",
    NotSent = "not_sent",
    Throttled = "throttled",
    Misconfigured = "misconfigured",
    Unknown = "unknown",
}

words! {
    /// What a read of a customer, or of their configuration, was made for.
    Purpose, "purpose":
    Baseline = "baseline",
    /// Which document types the customer may use. It tells nothing of their status.
    Configuration = "configuration",
    ReadBack = "read_back",
    Verification = "verification",
    /// A person compared the books with the provider.
    Reconciliation = "reconciliation",
    /// It was not made: the provider told us of itself.
    Webhook = "webhook",
}

words! {
    /// What a read-back concluded of an attempt of unknown outcome.
    ConclusionKind, "conclusion":
    Applied = "applied",
    /// There is no such customer: no read concludes that any more, and histories that have it stay whole.
    Rejected = "rejected",
    NotApplied = "not_applied",
    LastUpdate = "last_update",
    Confirming = "confirming",
    ReadAgain = "look_again",
    Unsettled = "unsettled",
}

words! {
    /// What became of an update at the provider, as far as we know: the view `reconciliation` tells it.
    Applied, "fate":
    Yes = "applied",
    No = "not_applied",
    /// It is being read back.
    Open = "open",
    /// A person must find out.
    Unknown = "unknown",
}

words! {
    /// What upstream is told, by the key that it is published with.
    EventKind, "kind of event":
    Accepted = "job.accepted",
    Rejected = "job.rejected",
    Invalid = "job.invalid",
    Superseded = "job.superseded",
    Duplicate = "job.duplicate",
    Exhausted = "job.exhausted",
    NeedsReview = "job.needs_review",
    Verified = "verification.verified",
    Failed = "verification.failed",
    Overdue = "verification.overdue",
}

words! {
    /// A link in a job's body, by its pointer.
    LinkField, "link":
    Front = "/document_front_image_url",
    Back = "/document_back_image_url",
}

impl State {
    /// Whether replicas carry it on by themselves.
    pub const fn is_in_motion(self) -> bool {
        match self {
            Self::Submitting | Self::Waiting | Self::Unknown => true,
            Self::Accepted
            | Self::Rejected
            | Self::Invalid
            | Self::Superseded
            | Self::Duplicate
            | Self::Exhausted
            | Self::NeedsReview => false,
        }
    }

    /// Whether it may be touching the provider: of a customer's submissions one at a time.
    pub const fn holds_slot(self) -> bool {
        matches!(self, Self::Submitting | Self::Unknown)
    }

    /// Whether a person may send it again once it has ended so, and its payload is kept for that.
    pub const fn is_replayable(self) -> bool {
        matches!(self, Self::Exhausted | Self::NeedsReview)
    }

    /// Whether it is done, or a person's to decide, for good or until a person acts.
    pub const fn has_ended(self) -> bool {
        !self.is_in_motion()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_none_of_the_schemas_is_an_error() {
        assert_eq!("needs_review".parse(), Ok(State::NeedsReview));
        let error = "vanished".parse::<State>().expect_err("no such state");
        assert_eq!(error.to_string(), r#"there is no state "vanished""#);
        assert!("".parse::<VerdictKind>().is_err());
        for state in State::ALL {
            assert_eq!(state.name().parse(), Ok(*state));
        }
    }
}
