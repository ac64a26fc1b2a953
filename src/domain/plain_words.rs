//! Where a job stands, for somebody with its customer on the telephone: what is known, what happens next and
//! when, and what to tell the customer. No name, no number, nothing that the customer entered.

use serde::Serialize;
use time::OffsetDateTime;

use super::outcome::{EXPIRED, LAST_UPDATE};
use super::state::{State, WaitingFor};
use super::suspicion::{FATE_UNKNOWN, NOT_APPLIED};
use super::verdict::Rejection;

/// What the records say of a job.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub state: State,
    pub waiting_for: Option<WaitingFor>,
    pub reason_code: Option<&'a str>,
    /// When it is taken up again.
    pub due_at: Option<OffsetDateTime>,
    /// When another replica takes it up, if the one that sends it has died.
    pub claimed_until: Option<OffsetDateTime>,
    /// The provider's latest word.
    pub verification_status: Option<&'a str>,
    pub verification_due_at: Option<OffsetDateTime>,
    pub has_payload: bool,
}

/// The same in plain words.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct PlainWords {
    /// What is known.
    pub now: &'static str,
    pub next: &'static str,
    #[serde(with = "time::serde::rfc3339::option")]
    pub next_at: Option<OffsetDateTime>,
    /// What to tell the customer.
    pub tell: &'static str,
}

const WAIT: &str = "Do not ask them to submit again: it could spend another of their updates.";
const NOTHING: &str = "Nothing happens by itself.";

/// What is said of a job.
pub fn plain_words(facts: &Facts<'_>) -> PlainWords {
    let said = |now, next, next_at, tell| PlainWords { now, next, next_at, tell };
    let code = facts.reason_code.unwrap_or_default();
    match facts.state {
        State::Submitting => said(
            "The update is being sent to the provider.",
            "Its answer is written down within seconds; if the replica that sends it has died, another takes it up.",
            facts.claimed_until,
            WAIT,
        ),
        State::Waiting => {
            let (now, next) = match facts.waiting_for {
                Some(WaitingFor::Customer) => (
                    "The update was not made yet: another update of this customer comes first.",
                    "It is sent, or found to be out of date, once the other is settled.",
                ),
                Some(WaitingFor::Provider) => (
                    "The update was not made yet: the provider is not answering, or refuses us.",
                    "It is sent once the provider takes updates again.",
                ),
                Some(WaitingFor::Retry) | None => (
                    "The update was not made yet: it is due, or the last try did not get through.",
                    "It is sent, or sent again.",
                ),
            };
            said(now, next, facts.due_at, WAIT)
        }
        State::Unknown => said(
            "The update was sent, and its answer was lost: it may have been made.",
            "The customer is read at the provider, until that tells what became of it, or a person is asked.",
            facts.due_at,
            WAIT,
        ),
        State::Accepted => accepted(facts),
        State::Rejected if code == Rejection::UpdateLimitExceeded.code() => said(
            "The update was not made: the provider says that this customer's updates are used up.",
            "Nothing happens by itself, and another job would be refused, too.",
            None,
            "Do not ask them to submit again. Only the provider can help them.",
        ),
        State::Rejected => said(
            "The update was not made: it was refused for good.",
            NOTHING,
            None,
            "What was refused stands in the reason. A corrected document is a new job, published by upstream.",
        ),
        State::Invalid => said(
            "The update was not made: the job could not be read, or breaks the contract of its message.",
            "Nothing happens by itself. Whoever publishes jobs must correct it.",
            None,
            "Their document was not sent. Whoever publishes the jobs must publish it again.",
        ),
        State::Superseded => said(
            "The update was not made, because a newer one of this customer took its place.",
            "Nothing. See the newer job.",
            None,
            "Their newer document counts.",
        ),
        State::Duplicate => said(
            "The update was not made, because another job asks for the very same.",
            "Nothing. See the other job.",
            None,
            "Their document was sent by another job.",
        ),
        State::Exhausted => match code {
            EXPIRED => said(
                "The update was not made: the job, or the link to a document of it, came to its end before.",
                "Nothing happens by itself. Upstream publishes a new job, with links that hold.",
                None,
                "It was not sent. It has cost them no update.",
            ),
            _ if facts.has_payload => said(
                match code {
                    NOT_APPLIED => "The update was not made, as a person found.",
                    "attempts" => {
                        "The update was not made: the provider could not be reached, or put us off, too often."
                    }
                    _ => "The update was not made.",
                },
                "Nothing happens by itself. It may be sent again, as far as the rules let it.",
                None,
                WAIT,
            ),
            _ => said(
                "The update was not made, and what it held is not kept any more.",
                "Nothing happens by itself. Upstream publishes a new job.",
                None,
                "It was not sent.",
            ),
        },
        State::NeedsReview => {
            let now = match code {
                FATE_UNKNOWN => "The update was sent, and nobody knows whether it was made.",
                LAST_UPDATE => {
                    "The update was not made. To send it again might take the customer's last update."
                }
                "newer_fate_unknown" => {
                    "The update was not made: a newer one of this customer was sent, and nobody knows whether that was made."
                }
                "refused_only_for_this_job" | "refused_like_others" => {
                    "The update was not made: the provider refuses it with words that may mean us and not this job."
                }
                _ => "Nobody knows whether the update was made.",
            };
            said(now, "A reviewer decides.", None, WAIT)
        }
    }
}

fn accepted(facts: &Facts<'_>) -> PlainWords {
    let said = |now, next, next_at, tell| PlainWords { now, next, next_at, tell };
    match facts.verification_status {
        Some("VERIFIED") => said(
            "The provider took the update and has verified the customer.",
            "Nothing: it is done.",
            None,
            "They are verified.",
        ),
        Some("FAILED") => said(
            "The provider took the update, and its verification failed.",
            "Nothing happens by itself. A corrected document is a new job, and spends another update.",
            None,
            "The provider did not accept the document; the reason is below. See how many updates they have left.",
        ),
        _ if facts.verification_due_at.is_some() => said(
            "The provider took the update, and is verifying it.",
            "The customer is read at the provider to see the verification's end.",
            facts.verification_due_at,
            WAIT,
        ),
        _ => said(
            "The provider took the update. How its verification ended is not known here.",
            "Nothing happens by itself: it is followed no more, or a newer update's is.",
            None,
            "See their newest job.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(state: State) -> Facts<'static> {
        Facts {
            state,
            waiting_for: None,
            reason_code: None,
            due_at: Some(OffsetDateTime::UNIX_EPOCH),
            claimed_until: Some(OffsetDateTime::UNIX_EPOCH),
            verification_status: None,
            verification_due_at: None,
            has_payload: true,
        }
    }

    /// Whoever hears "not made" tells the customer so.
    #[test]
    fn what_may_have_been_made_is_never_said_not_to_be() {
        for (state, code) in
            [(State::Submitting, None), (State::Unknown, None), (State::NeedsReview, Some(FATE_UNKNOWN))]
        {
            let said = plain_words(&Facts { reason_code: code, ..facts(state) });
            assert!(!said.now.contains("not made"), "{state}: {said:?}");
            assert_eq!(said.tell, WAIT, "{state}");
        }
        let said = plain_words(&facts(State::NeedsReview));
        assert!(!said.now.contains("was not made"), "an unknown reason says nothing of it: {said:?}");
    }

    #[test]
    fn what_is_in_motion_says_when_it_goes_on() {
        for state in State::ALL.iter().copied() {
            let said = plain_words(&facts(state));
            assert_eq!(said.next_at.is_some(), state.is_in_motion(), "{state}: {said:?}");
        }
        let followed =
            Facts { verification_due_at: Some(OffsetDateTime::UNIX_EPOCH), ..facts(State::Accepted) };
        assert!(plain_words(&followed).next_at.is_some());
        let ended = Facts { verification_status: Some("VERIFIED"), ..followed };
        assert_eq!(plain_words(&ended).next_at, None);
    }

    #[test]
    fn what_is_gone_cannot_be_sent_again() {
        let kept = plain_words(&facts(State::Exhausted));
        let gone = plain_words(&Facts { has_payload: false, ..facts(State::Exhausted) });
        assert!(kept.next.contains("sent again") && gone.next.contains("Upstream"));
        let expired = plain_words(&Facts { reason_code: Some(EXPIRED), ..facts(State::Exhausted) });
        assert!(expired.tell.contains("no update"), "{expired:?}");
    }
}
