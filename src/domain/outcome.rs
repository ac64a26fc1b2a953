//! What follows from a verdict: the end of the submission, or a wait.

use std::borrow::Cow;
use std::time::Duration;

use uuid::Uuid;

use super::retry::RetrySchedule;
use super::state::{Evidence, LinkField, State, WaitingFor};
use super::suspicion::FATE_UNKNOWN;
use super::verdict::{Acceptance, LinkRefusal, Misconfiguration, NotSent, Rejection, Verdict};

/// What is written with an attempt that ended its job, though it was answered like others: the history
/// says that it was the last one.
pub const LAST_ATTEMPT: &str = "the last attempt that RETRY_MAX_ATTEMPTS allows";

/// What is written with an attempt whose refusal is taken for its job's own.
pub const REFUSED_ALONE: &str = "refused again while others are not: this job alone";

/// What is written with an attempt whose refusal is like those before it.
pub const REFUSED_LIKE_OTHERS: &str = "refused like the jobs before it, with no update taken between";

/// The reason code of a job whose resend might take the customer's last update.
pub const LAST_UPDATE: &str = "last_update";

/// The reason code of a job whose time, or that of a signed link, had come.
pub const EXPIRED: &str = "expired";

const LATE_ACCEPTANCE: &str = "the provider accepted the update; its answer came after the claim was lost";

/// The job that an outcome's reason names, where it names one.
pub fn named_job(reason: &str) -> Option<Uuid> {
    reason.split_whitespace().find_map(|word| word.parse().ok())
}

#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The provider applied the update.
    Accepted(Acceptance),
    /// The provider refused the job, or a check did before it was sent.
    Rejected(Rejection),
    /// A newer job of the customer was accepted.
    Superseded {
        by: Uuid,
    },
    /// Another job with the same content was, or may have been, applied.
    Duplicate {
        of: Uuid,
    },
    /// The job ran out of attempts or of time.
    Exhausted(Exhaustion),
    NeedsReview(Review),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Exhaustion {
    /// As many attempts as are allowed were answered, throttled or not sent.
    Attempts,
    Expired {
        /// The signed link that was about to end; none where the job's own time had come.
        link: Option<LinkField>,
    },
}

/// What a person must decide.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Review {
    /// An attempt may have been applied; sending again might spend an update twice.
    FateUnknown,
    /// The update was not applied, but sending it again might take the customer's last one.
    LastUpdate,
    /// A newer job of the customer may have been applied, and nobody knows.
    NewerFateUnknown { newer: Uuid },
    /// The provider refuses us, or with words that are not documented, for this job and not for others.
    RefusedOnlyForThisJob,
    /// The provider refuses this job as it did those before it, and took none between: it may mean us.
    RefusedLikeOthers,
}

impl Outcome {
    /// The state that the submission ends in.
    pub fn state(&self) -> State {
        match self {
            Self::Accepted(_) => State::Accepted,
            Self::Rejected(_) => State::Rejected,
            Self::Superseded { .. } => State::Superseded,
            Self::Duplicate { .. } => State::Duplicate,
            Self::Exhausted(_) => State::Exhausted,
            Self::NeedsReview(_) => State::NeedsReview,
        }
    }

    /// What the submission's row says.
    pub fn ended(&self) -> Ended {
        let acceptance = match self {
            Self::Accepted(acceptance) => Some(acceptance.clone()),
            _ => None,
        };
        Ended {
            state: self.state(),
            reason_code: self.reason_code(),
            reason: self.reason(),
            keeps_payload: self.keeps_payload(),
            evidence: acceptance.as_ref().map(|_| Evidence::Response),
            acceptance,
        }
    }

    /// What is written with the attempt that ended the job so, where its verdict does not say it.
    pub fn note(&self) -> Option<&'static str> {
        match self {
            Self::Exhausted(Exhaustion::Attempts) => Some(LAST_ATTEMPT),
            Self::NeedsReview(Review::RefusedOnlyForThisJob) => Some(REFUSED_ALONE),
            Self::NeedsReview(Review::RefusedLikeOthers) => Some(REFUSED_LIKE_OTHERS),
            Self::Exhausted(Exhaustion::Expired { .. }) | Self::NeedsReview(_) => None,
            Self::Accepted(_) | Self::Rejected(_) | Self::Superseded { .. } | Self::Duplicate { .. } => None,
        }
    }

    /// The reason as a program reads it; where the state says it all there is none.
    pub fn reason_code(&self) -> Option<&'static str> {
        match self {
            Self::Accepted(_) | Self::Superseded { .. } | Self::Duplicate { .. } => None,
            Self::Rejected(rejection) => Some(rejection.code()),
            Self::Exhausted(Exhaustion::Attempts) => Some("attempts"),
            Self::Exhausted(Exhaustion::Expired { .. }) => Some(EXPIRED),
            Self::NeedsReview(Review::FateUnknown) => Some(FATE_UNKNOWN),
            Self::NeedsReview(Review::LastUpdate) => Some(LAST_UPDATE),
            Self::NeedsReview(Review::NewerFateUnknown { .. }) => Some("newer_fate_unknown"),
            Self::NeedsReview(Review::RefusedOnlyForThisJob) => Some("refused_only_for_this_job"),
            Self::NeedsReview(Review::RefusedLikeOthers) => Some("refused_like_others"),
        }
    }

    /// The reason as a person reads it.
    pub fn reason(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Accepted(_) => "the provider accepted the update",
            Self::Rejected(Rejection::CustomerNotFound) => {
                "the provider knows no such customer, or it is another organization's"
            }
            Self::Rejected(Rejection::KycAlreadyInUse) => "the document belongs to another customer",
            Self::Rejected(Rejection::UpdateLimitExceeded) => "the customer's updates are used up",
            Self::Rejected(Rejection::FieldRefused) => {
                "the provider refused a field; see the attempt's message"
            }
            Self::Rejected(Rejection::DocumentTypeUnsupported { supported }) => {
                return format!(
                    "the provider does not list the document's type for this customer, so nothing was sent; it lists {}",
                    supported.join(", ")
                )
                .into();
            }
            Self::Rejected(Rejection::LinkRefused(link, LinkRefusal::ByHost)) => {
                return format!(
                    "the host of the link at {link} does not give the document, so nothing was sent; publish the job \
                     anew with links that the provider can fetch"
                )
                .into();
            }
            Self::Rejected(Rejection::LinkRefused(link, LinkRefusal::Forbidden)) => {
                return format!(
                    "the link at {link} leads to an address that is not public, not by https, or on more than three \
                     times, so nothing was sent; publish the job anew with links that the provider can fetch"
                )
                .into();
            }
            Self::Rejected(Rejection::LinkNotFound(link)) => {
                return format!(
                    "there is nothing at the link at {link}, so nothing was sent; publish the job anew once the \
                     document is there"
                )
                .into();
            }
            Self::Rejected(Rejection::NotADocument(link)) => {
                return format!(
                    "what the link at {link} leads to is no JPEG, PNG or PDF, or another one than its extension says, \
                     so nothing was sent; publish the job anew with the document"
                )
                .into();
            }
            Self::Superseded { by } => {
                return format!("the customer's newer job {by} was accepted").into();
            }
            Self::Duplicate { of } => {
                return format!("job {of} asked for the same, and was or may have been applied").into();
            }
            Self::Exhausted(Exhaustion::Attempts) => {
                "the provider could not be reached, or put us off, too often"
            }
            Self::Exhausted(Exhaustion::Expired { link: None }) => "the job expired before it could be sent",
            Self::Exhausted(Exhaustion::Expired { link: Some(link) }) => {
                return format!(
                    "the link at {link} was to end too soon for the provider to fetch the document, so nothing was sent; \
                     publish the job anew with links that hold for a day"
                )
                .into();
            }
            Self::NeedsReview(Review::FateUnknown) => {
                "an attempt may have been applied, and no read of the customer can tell any more; \
                 compare the document at the provider with this job before anything is sent again"
            }
            Self::NeedsReview(Review::LastUpdate) => {
                "the attempt was not applied, but sending it again might take the customer's last update, so nothing does; \
                 if it is worth that, make it at the provider by hand and resolve this job as accepted, else as rejected"
            }
            Self::NeedsReview(Review::NewerFateUnknown { newer }) => {
                return format!(
                    "the customer's newer job {newer} may have been applied; settle that one first"
                )
                .into();
            }
            Self::NeedsReview(Review::RefusedOnlyForThisJob) => {
                "the provider refuses this job alone, in a way that is not documented or as if it refused us; \
                 see the attempts' messages, its content and its customer"
            }
            Self::NeedsReview(Review::RefusedLikeOthers) => {
                "the provider refuses one job after the other and takes none; see the attempts' messages and \
                 whose DOLLARPE_API_KEY is: replay it if they are about us, else reject it"
            }
        })
    }

    /// Whether the payload may still be needed: a person may send these again.
    pub fn keeps_payload(&self) -> bool {
        matches!(self, Self::Exhausted(_) | Self::NeedsReview(_))
    }
}

/// What a submission's row says once it has ended so.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    pub state: State,
    pub reason_code: Option<&'static str>,
    pub reason: Cow<'static, str>,
    pub keeps_payload: bool,
    /// How an acceptance is known.
    pub evidence: Option<Evidence>,
    /// What the provider said with it.
    pub acceptance: Option<Acceptance>,
}

impl Ended {
    /// The same, where an acceptance is known by something else than the attempt's answer.
    pub fn known_by(self, evidence: Evidence) -> Self {
        let reason = match (self.evidence, evidence) {
            (Some(_), Evidence::Late) => LATE_ACCEPTANCE.into(),
            _ => self.reason,
        };
        Self { evidence: self.evidence.map(|_| evidence), reason, ..self }
    }
}

/// Whether an acceptance that comes late ends a submission that stands so: whether it was applied is
/// open, and no claim is held.
pub fn ends_by_late_acceptance(state: State, reason_code: Option<&str>) -> bool {
    match state {
        State::Waiting | State::Unknown => true,
        State::NeedsReview => matches!(reason_code, Some(FATE_UNKNOWN | LAST_UPDATE)),
        State::Submitting
        | State::Accepted
        | State::Rejected
        | State::Invalid
        | State::Superseded
        | State::Duplicate
        | State::Exhausted => false,
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    End(Outcome),
    Wait(Wait),
    /// Nobody knows whether the attempt was applied: the customer is read.
    ReadBack,
}

/// How a retry is scheduled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wait {
    pub waiting_for: WaitingFor,
    pub delay: Duration,
    /// Whether the attempt counts against the schedule.
    pub counts: bool,
}

/// What the rules need to know of the attempts so far, this one left out.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct History {
    /// Attempts that count against the schedule.
    pub retries: u32,
    pub misconfigured: u32,
    /// Attempts that were ever of unknown outcome.
    pub unknown: u32,
    /// Whether this attempt was let through as a probe while the breaker was not closed.
    pub is_probe: bool,
    /// Whether another job was taken since this one was refused: one whose attempt began here after that,
    /// and after which no attempt failed here.
    pub others_are_taken: bool,
}

/// How often a job alone is refused with what may be about it or about everybody, before it goes
/// to a person: about a quarter of a minute at the default delays.
const REFUSED_ALONE_MAX: u32 = 5;

/// Decides what follows a verdict. `jitter` is uniform in [0, 1).
pub fn next(verdict: &Verdict, history: History, schedule: &RetrySchedule, jitter: f64) -> Next {
    let retries = history.retries + 1;
    let wait = |waiting_for, delay, counts| {
        if counts && !schedule.allows_another(retries) {
            return Next::End(Outcome::Exhausted(Exhaustion::Attempts));
        }
        Next::Wait(Wait { waiting_for, delay, counts })
    };
    match verdict {
        Verdict::Accepted(acceptance) => Next::End(Outcome::Accepted(acceptance.clone())),
        Verdict::Rejected(rejection) => Next::End(Outcome::Rejected(rejection.clone())),
        Verdict::NotSent(NotSent::Shutdown) => {
            Next::Wait(Wait { waiting_for: WaitingFor::Retry, delay: Duration::ZERO, counts: false })
        }
        Verdict::NotSent(NotSent::Connect | NotSent::WindowClosed | NotSent::ConfigurationUnread) => {
            wait(WaitingFor::Retry, schedule.delay(retries, jitter), !history.is_probe)
        }
        // Of the link's host, and so a probe's too: else one whose host is gone would never end.
        Verdict::NotSent(NotSent::LinkUnchecked) => {
            wait(WaitingFor::Retry, schedule.delay(retries, jitter), true)
        }
        Verdict::Throttled { retry_after } => {
            // A probe's too: one that were put off for ever would never end.
            wait(WaitingFor::Provider, schedule.throttled_delay(*retry_after, retries, jitter), true)
        }
        Verdict::Misconfigured(Misconfiguration::LikeOthers) => {
            Next::End(Outcome::NeedsReview(Review::RefusedLikeOthers))
        }
        // It may be about everybody, and then the breaker opens after a few of them and nobody ends.
        // Where another is taken between two of them, it is about this job.
        Verdict::Misconfigured(cause) if !cause.is_everybodys() => {
            let refused = history.misconfigured + 1;
            if history.others_are_taken && !history.is_probe && refused >= REFUSED_ALONE_MAX {
                return Next::End(Outcome::NeedsReview(Review::RefusedOnlyForThisJob));
            }
            // Later, so that a probe finds another job first.
            let delay = schedule.delay(refused, jitter);
            Next::Wait(Wait { waiting_for: WaitingFor::Provider, delay, counts: false })
        }
        // A probe comes right after a health probe that the provider answered to this very worker: then
        // it is this job that it refuses. Any other refusal may be another replica's first.
        Verdict::Misconfigured(_) if history.misconfigured > 0 && history.is_probe => {
            Next::End(Outcome::NeedsReview(Review::RefusedOnlyForThisJob))
        }
        // Due at once, so that the next probe finds it; until then the breaker holds it back.
        Verdict::Misconfigured(_) | Verdict::NotSent(NotSent::HeldBack) => {
            Next::Wait(Wait { waiting_for: WaitingFor::Provider, delay: Duration::ZERO, counts: false })
        }
        // Never sent again before a read has shown that it was not applied.
        Verdict::Unknown(_) => Next::ReadBack,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::verdict::FailurePoint;

    const SCHEDULE: RetrySchedule = RetrySchedule {
        delay_min: Duration::from_millis(500),
        delay_max: Duration::from_secs(3600),
        attempts_max: 3,
        pause_max: Duration::from_secs(60),
    };

    fn check(verdict: Verdict, history: History, expected: Next) {
        assert_eq!(next(&verdict, history, &SCHEDULE, 0.5), expected, "{verdict:?} after {history:?}");
    }

    fn wait(waiting_for: WaitingFor, delay_ms: u64, counts: bool) -> Next {
        let delay = Duration::from_millis(delay_ms);
        Next::Wait(Wait { waiting_for, delay, counts })
    }

    #[test]
    fn every_verdict_has_its_next_step() {
        let first = History::default();
        let accepted = Acceptance::default();
        check(Verdict::Accepted(accepted.clone()), first, Next::End(Outcome::Accepted(accepted)));
        let rejection = Rejection::KycAlreadyInUse;
        check(Verdict::Rejected(rejection.clone()), first, Next::End(Outcome::Rejected(rejection)));
        check(Verdict::NotSent(NotSent::Connect), first, wait(WaitingFor::Retry, 500, true));
        check(Verdict::NotSent(NotSent::WindowClosed), first, wait(WaitingFor::Retry, 500, true));
        check(Verdict::NotSent(NotSent::ConfigurationUnread), first, wait(WaitingFor::Retry, 500, true));
        check(Verdict::NotSent(NotSent::Shutdown), first, wait(WaitingFor::Retry, 0, false));
        check(Verdict::NotSent(NotSent::HeldBack), first, wait(WaitingFor::Provider, 0, false));
        check(Verdict::NotSent(NotSent::LinkUnchecked), first, wait(WaitingFor::Retry, 500, true));
        let retry_after = Some(Duration::from_secs(7));
        check(Verdict::Throttled { retry_after }, first, wait(WaitingFor::Provider, 7000, true));
        let refused = Verdict::Misconfigured(Misconfiguration::ApiKey);
        check(refused, first, wait(WaitingFor::Provider, 0, false));
        check(Verdict::Unknown(FailurePoint::TimedOut), first, Next::ReadBack);
    }

    #[test]
    fn a_job_is_exhausted_after_its_last_counted_attempt() {
        let last = History { retries: 2, ..History::default() };
        let exhausted = Next::End(Outcome::Exhausted(Exhaustion::Attempts));
        check(Verdict::NotSent(NotSent::Connect), last, exhausted.clone());
        check(Verdict::Throttled { retry_after: None }, last, exhausted);
        check(Verdict::NotSent(NotSent::Shutdown), last, wait(WaitingFor::Retry, 0, false));
    }

    #[test]
    fn a_probe_costs_no_attempt() {
        let probe = History { retries: 2, is_probe: true, ..History::default() };
        check(Verdict::NotSent(NotSent::Connect), probe, wait(WaitingFor::Retry, 2000, false));
        check(Verdict::NotSent(NotSent::ConfigurationUnread), probe, wait(WaitingFor::Retry, 2000, false));
        let exhausted = Next::End(Outcome::Exhausted(Exhaustion::Attempts));
        check(Verdict::NotSent(NotSent::LinkUnchecked), probe, exhausted);
    }

    #[test]
    fn a_probe_that_is_put_off_counts_for_its_job() {
        let throttled = Verdict::Throttled { retry_after: None };
        let probe = |retries| History { retries, is_probe: true, ..History::default() };
        check(throttled.clone(), probe(0), wait(WaitingFor::Provider, 1000, true));
        check(throttled, probe(2), Next::End(Outcome::Exhausted(Exhaustion::Attempts)));
    }

    #[test]
    fn a_job_that_is_refused_again_right_after_a_good_probe_goes_to_a_person() {
        let refused = Verdict::Misconfigured(Misconfiguration::Signature);
        let elsewhere = History { misconfigured: 1, ..History::default() };
        check(refused.clone(), elsewhere, wait(WaitingFor::Provider, 0, false));
        let review = Next::End(Outcome::NeedsReview(Review::RefusedOnlyForThisJob));
        check(refused, History { is_probe: true, ..elsewhere }, review);
    }

    /// One job's poison ends that job; what meets everybody ends nobody.
    #[test]
    fn a_job_that_alone_is_refused_without_documented_words_goes_to_a_person() {
        use Misconfiguration::*;
        let pages = [Unauthorized, Forbidden, Endpoint, Redirected, NotTheProvider];
        for cause in pages.into_iter().chain([Undocumented, UnreadableRefusal]) {
            let refused = Verdict::Misconfigured(cause);
            check(refused.clone(), History::default(), wait(WaitingFor::Provider, 500, false));
            let alone = History { misconfigured: 4, others_are_taken: true, ..History::default() };
            let review = Next::End(Outcome::NeedsReview(Review::RefusedOnlyForThisJob));
            check(refused.clone(), alone, review);
            let again = wait(WaitingFor::Provider, 8_000, false);
            check(refused.clone(), History { others_are_taken: false, ..alone }, again.clone());
            check(refused, History { is_probe: true, ..alone }, again);
        }
    }

    #[test]
    fn a_reason_names_the_job_that_it_is_about_and_no_other() {
        let job = Uuid::from_u128(7);
        for outcome in [
            Outcome::Superseded { by: job },
            Outcome::Duplicate { of: job },
            Outcome::NeedsReview(Review::NewerFateUnknown { newer: job }),
        ] {
            assert_eq!(named_job(&outcome.reason()), Some(job), "{outcome:?}");
        }
        assert_eq!(named_job(&Outcome::NeedsReview(Review::FateUnknown).reason()), None);
    }

    #[test]
    fn only_what_a_person_may_send_again_keeps_its_payload() {
        assert!(Outcome::NeedsReview(Review::FateUnknown).keeps_payload());
        assert!(Outcome::Exhausted(Exhaustion::Attempts).keeps_payload());
        assert!(!Outcome::Accepted(Acceptance::default()).keeps_payload());
        assert!(!Outcome::Rejected(Rejection::FieldRefused).keeps_payload());
    }
}
