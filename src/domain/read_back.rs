//! What a read of a customer says, and what it proves of an attempt whose outcome is unknown.
//!
//! It rests on two facts of the provider: no verification ends within [`Timing::window`]
//! of an update, and nothing is applied later after an attempt's end than the reads cover.

use std::time::{Duration, SystemTime};

use serde_json::Value;
use uuid::Uuid;

use super::foreign_text::known_words;
use super::state::ConclusionKind;
use super::verdict::{Answer, HttpOutcome, Misconfiguration, Rejection, Verdict, classify, names_another};

/// What a GET of a customer told us. Personal data in the answer is dropped here.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reading {
    /// The customer exists.
    Customer(CustomerStatus),
    /// There is no such customer, says the provider in its own envelope.
    NotFound,
    /// The provider, or a proxy before it, refused us.
    Misconfigured(Misconfiguration),
    /// The provider asks us to wait.
    Throttled {
        /// As long as that, if it says so.
        retry_after: Option<Duration>,
    },
    /// The answer was made before it was asked for, by a cache's own word or by its date.
    Stale,
    /// The answer is about another customer.
    OtherCustomer,
    /// The read failed and tells nothing.
    Failed,
}

/// What the provider says of a customer, as far as its words are known.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CustomerStatus {
    /// The verification status; words that nobody knows are withheld.
    pub status: String,
    /// Why the verification failed.
    pub failure_reason: Option<String>,
    /// The document type on file.
    pub document_type: Option<String>,
    /// When the answer was made, by its own `Date`.
    pub dated_at: Option<SystemTime>,
}

/// What a customer was asked for with, and what is known of the provider's clock.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// About whom.
    pub customer_id: Uuid,
    /// When, by our clock.
    pub at: SystemTime,
    /// The provider's clock less ours in seconds, as its answers to updates tell: no cache
    /// answers those. Where it is known, the provider dates its answers.
    pub skew: Option<i64>,
}

/// An answer's date may be that much before it was asked for: dates are whole seconds, and the
/// clocks of a provider's machines are not one.
const DATE_TOLERANCE: Duration = Duration::from_secs(5);

/// Reads the answer to a GET of a customer. What is not fresh, or is about another customer,
/// proves nothing.
pub fn read_customer(outcome: &HttpOutcome, asked: &Asked, now: SystemTime) -> Reading {
    let reading = read_any_customer(outcome, asked.customer_id, now);
    match (&reading, outcome) {
        (Reading::Customer(_) | Reading::NotFound, HttpOutcome::Answered(answer))
            if !is_fresh(answer, asked) =>
        {
            Reading::Stale
        }
        _ => reading,
    }
}

fn read_any_customer(outcome: &HttpOutcome, customer_id: Uuid, now: SystemTime) -> Reading {
    if let HttpOutcome::Answered(Answer { status: 200, body, date, is_out_of_step: false, .. }) = outcome {
        let value = body.json().unwrap_or_default();
        let text = |key: &str| value["data"][key].as_str().map(known_words);
        return match text("status").filter(|_| value["status"] == Value::Bool(true)) {
            Some(_) if names_another(&value["data"], customer_id) => Reading::OtherCustomer,
            Some(status) => Reading::Customer(CustomerStatus {
                status,
                failure_reason: text("failure_reason"),
                document_type: text("document_type"),
                dated_at: *date,
            }),
            None => Reading::Failed,
        };
    }
    match classify(outcome, customer_id, &[], now) {
        Verdict::Rejected(Rejection::CustomerNotFound) => Reading::NotFound,
        Verdict::Misconfigured(cause) => Reading::Misconfigured(cause),
        Verdict::Throttled { retry_after } => Reading::Throttled { retry_after },
        _ => Reading::Failed,
    }
}

/// Whether the provider made an answer after it was asked. `Age: 0` is what a cache says of an
/// answer that it has just fetched.
fn is_fresh(answer: &Answer, asked: &Asked) -> bool {
    if answer.age_s.is_some_and(|age| age > 0) {
        return false;
    }
    let Some(date) = answer.date else {
        // A provider that dates its answers dated this one, too; somebody took the date away.
        return asked.skew.is_none();
    };
    let skew = asked.skew.unwrap_or_default();
    let apart = Duration::from_secs(skew.unsigned_abs());
    // The moment of asking, by the provider's clock.
    let asked_at = if skew < 0 { asked.at.checked_sub(apart) } else { asked.at.checked_add(apart) };
    asked_at.is_some_and(|asked_at| asked_at <= date + DATE_TOLERANCE)
}

impl Reading {
    /// What the customer reads, if the read told that.
    pub fn customer(&self) -> Option<&CustomerStatus> {
        match self {
            Self::Customer(customer) => Some(customer),
            _ => None,
        }
    }

    /// The code of a read that told nothing of the customer's status.
    pub fn error_code(&self) -> Option<&'static str> {
        match self {
            Self::Customer(_) => None,
            Self::NotFound => Some("customer_not_found"),
            Self::Misconfigured(cause) => Some(cause.code()),
            Self::Throttled { .. } => Some("throttled"),
            Self::Stale => Some("stale_answer"),
            Self::OtherCustomer => Some("other_customer"),
            Self::Failed => Some("read_failed"),
        }
    }
}

/// What a customer who reads `UNVERIFIED` after an update means. The provider's reference
/// page shows it as the answer to an applied update, its guide shows `PROCESSING`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum UnverifiedMeans {
    /// Nothing: the update may have been applied.
    Inconclusive,
    /// The update was not applied, as `FAILED` does.
    NotApplied,
}

/// When reads prove something.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// From an attempt's end to the first read.
    pub after: Duration,
    /// A verification lasts at least so long.
    pub window: Duration,
    /// How many reads must agree before an update is sent again.
    pub confirmations: u32,
    /// From an attempt's end to when a person is asked.
    pub deadline: Duration,
    /// How late after an attempt's end its update may still be applied.
    pub applied_within: Duration,
    /// How long a read may take, the scheduler's pause before it included.
    pub read_time_max: Duration,
    /// What `UNVERIFIED` means.
    pub unverified: UnverifiedMeans,
}

impl Timing {
    /// The window less a margin of a twelfth (5 s of 60 s): reads end before it closes.
    pub fn safe_window(&self) -> Duration {
        self.window - self.window / 12
    }

    /// From one read's answer to the one that confirms it: as late as it may be, since an
    /// update that is applied late shows only then. The reads' begins count, not their ends.
    fn confirm_after(&self, read_to_answer: Duration) -> Duration {
        self.safe_window().saturating_sub(self.read_time_max + read_to_answer)
    }

    /// Before a read that failed is tried again while the window is open.
    fn retry_after(&self) -> Duration {
        self.after / 3
    }
}

/// How long ago something was, by two witnesses: one clock may be set, or be another one's after
/// a failover. `None` of a clock that says that it is yet to come, or does not know.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Age {
    /// By the database's clock.
    pub database: Option<Duration>,
    /// By the replicas' own: that of the one that wrote it down, and that of the one that asks.
    pub replica: Option<Duration>,
}

impl Age {
    /// An age that both clocks tell.
    pub fn agreed(age: Duration) -> Self {
        Self { database: Some(age), replica: Some(age) }
    }

    /// The same, so much later.
    pub fn after(self, later: Duration) -> Self {
        let after = |age: Option<Duration>| age.map(|age| age + later);
        Self { database: after(self.database), replica: after(self.replica) }
    }

    /// What neither clock denies of something that must not be too long ago.
    fn at_most(self) -> Option<Duration> {
        Some(self.database?.max(self.replica?))
    }
}

/// What is known when a read has been answered. Times run from before the read's
/// records were taken to after its answer had come, so that they err to the safe side.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// What the read said.
    pub reading: Reading,
    /// From the attempt's end, or its rescue, to before the read began. The replicas' clock knows the end
    /// but for what the attempt waited for its request slot.
    pub end_to_read: Age,
    /// From the attempt's begin to the answer.
    pub begin_to_answer: Age,
    /// From before the read began to its answer.
    pub read_to_answer: Duration,
    /// Before the read began, no other update of the customer was in verification.
    pub is_only_suspect: bool,
    /// Our newest word on the customer before the attempt, if no other update came between.
    pub word_before: Option<String>,
    /// How many reads have shown that the attempt was not applied.
    pub confirmed: u32,
    /// From before the last of them to the answer.
    pub confirmation_to_answer: Age,
    /// When the answer of that one was made, by its own date.
    pub confirmation_dated_at: Option<SystemTime>,
    /// Sending again cannot take what may be the customer's last update.
    pub may_resend: bool,
}

/// The evidence's times, where its clocks may be believed, each taken to the safe side.
#[derive(Clone, Copy)]
struct Times {
    end_to_read: Duration,
    /// The least that either clock tells.
    end_to_read_at_least: Duration,
    begin_to_answer: Duration,
    confirmation_to_answer: Duration,
}

impl Evidence {
    /// `None` where a clock was set back, or tells of an end before its begin: then no time is
    /// known, and nothing is proved.
    fn times(&self) -> Option<Times> {
        let end_to_read = self.end_to_read.database?;
        if self.begin_to_answer.database? < end_to_read {
            return None;
        }
        Some(Times {
            end_to_read: end_to_read.min(self.begin_to_answer.replica?),
            end_to_read_at_least: end_to_read.min(self.end_to_read.replica?),
            begin_to_answer: self.begin_to_answer.at_most()?,
            confirmation_to_answer: self.confirmation_to_answer.at_most()?,
        })
    }

    /// Whether the answer's date is that of the read before, or too little later for the time that has
    /// passed between the two: a cache gave a copy that it keeps, dated by a clock ahead of ours.
    fn is_kept_copy(&self, times: Times, timing: &Timing) -> bool {
        let dated_at = self.reading.customer().and_then(|customer| customer.dated_at);
        let (Some(before), Some(dated_at)) = (self.confirmation_dated_at, dated_at) else {
            return false;
        };
        let asking = self.read_to_answer + timing.read_time_max + DATE_TOLERANCE;
        let apart = times.confirmation_to_answer.saturating_sub(asking);
        dated_at.duration_since(before).unwrap_or_default() < apart
    }

    /// Whether the deadline has passed by any clock: a person is asked sooner rather than never.
    fn is_past(&self, deadline: Duration) -> bool {
        [self.end_to_read.database, self.begin_to_answer.replica]
            .into_iter()
            .flatten()
            .any(|age| age >= deadline)
    }
}

/// What a read proves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Conclusion {
    /// The update was applied.
    Applied,
    /// The update was not applied and may be sent again.
    NotApplied,
    /// The update was not applied, and sending it again might take the customer's last.
    LastUpdate,
    /// The update was not applied, as far as this read tells; another must confirm it.
    Confirming {
        /// How long until that read.
        after: Duration,
    },
    /// Nothing yet.
    ReadAgain {
        /// How long until the next read.
        after: Duration,
    },
    /// No read can tell any more.
    Unsettled,
}

impl Conclusion {
    pub fn kind(self) -> ConclusionKind {
        match self {
            Self::Applied => ConclusionKind::Applied,
            Self::NotApplied => ConclusionKind::NotApplied,
            Self::LastUpdate => ConclusionKind::LastUpdate,
            Self::Confirming { .. } => ConclusionKind::Confirming,
            Self::ReadAgain { .. } => ConclusionKind::ReadAgain,
            Self::Unsettled => ConclusionKind::Unsettled,
        }
    }

    /// Its name in the table.
    pub fn name(self) -> &'static str {
        self.kind().name()
    }
}

/// Decides what a read proves of an attempt whose outcome is unknown.
pub fn conclude(evidence: &Evidence, timing: &Timing) -> Conclusion {
    let Some(times) = evidence.times() else { return read_again(evidence, timing, timing.window) };
    let status = match &evidence.reading {
        Reading::Customer(customer) if !evidence.is_kept_copy(times, timing) => customer.status.as_str(),
        // Inside the window a read that failed is worth another soon.
        // To a caller who is not let in, a customer who was updated is one who cannot be found.
        Reading::Customer(_)
        | Reading::NotFound
        | Reading::Failed
        | Reading::Stale
        | Reading::OtherCustomer
        | Reading::Misconfigured(_)
        | Reading::Throttled { .. } => {
            let next_answer = times.begin_to_answer + timing.retry_after() + timing.read_time_max;
            let is_in_window = next_answer <= timing.safe_window();
            return read_again(
                evidence,
                timing,
                if is_in_window { timing.retry_after() } else { timing.window },
            );
        }
    };
    // A verification that was running before the attempt may be what has ended.
    let was_another_word =
        evidence.word_before.as_deref().is_some_and(|word| !["VERIFIED", "PROCESSING"].contains(&word));
    match status {
        "PROCESSING" if evidence.is_only_suspect => Conclusion::Applied,
        // Another update may be what is in verification; the books may yet tell them apart.
        "PROCESSING" => read_again(evidence, timing, timing.window),
        "VERIFIED" if evidence.is_only_suspect && was_another_word => Conclusion::Applied,
        "FAILED" => conclude_unchanged(evidence, times, timing),
        "UNVERIFIED" if timing.unverified == UnverifiedMeans::NotApplied => {
            conclude_unchanged(evidence, times, timing)
        }
        // A late update may still show inside the window, and never after it.
        _ if times.begin_to_answer < timing.window => read_again(evidence, timing, timing.window),
        _ => give_up(times, timing),
    }
}

/// The customer is as an update that was not applied leaves them. That proves something
/// only where no verification can have begun and ended between two reads.
fn conclude_unchanged(evidence: &Evidence, times: Times, timing: &Timing) -> Conclusion {
    if times.end_to_read < timing.after {
        return Conclusion::ReadAgain { after: timing.after - times.end_to_read };
    }
    let unobserved = match evidence.confirmed {
        0 => times.begin_to_answer,
        _ => times.confirmation_to_answer,
    };
    if unobserved > timing.safe_window() {
        return give_up(times, timing);
    }
    // A clock that was set forward makes reads come sooner than they seem to: the last one, by which the
    // update is not applied any more, comes late enough by every clock.
    let is_last =
        evidence.confirmed + 1 >= timing.confirmations && times.end_to_read_at_least >= timing.applied_within;
    if !is_last {
        return Conclusion::Confirming { after: timing.confirm_after(evidence.read_to_answer) };
    }
    if evidence.may_resend { Conclusion::NotApplied } else { Conclusion::LastUpdate }
}

/// No read can prove any more that the update was not applied. But while it may still be applied
/// late, the submission keeps its customer: a newer job must not get ahead of it.
fn give_up(times: Times, timing: &Timing) -> Conclusion {
    match timing.window.checked_sub(times.end_to_read) {
        None | Some(Duration::ZERO) => Conclusion::Unsettled,
        Some(after) => Conclusion::ReadAgain { after },
    }
}

fn read_again(evidence: &Evidence, timing: &Timing, after: Duration) -> Conclusion {
    if evidence.is_past(timing.deadline) {
        return Conclusion::Unsettled;
    }
    Conclusion::ReadAgain { after }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::verdict::Body;
    use proptest::prelude::*;

    const TIMING: Timing = Timing {
        after: Duration::from_secs(15),
        window: Duration::from_secs(60),
        confirmations: 2,
        deadline: Duration::from_secs(7200),
        applied_within: Duration::from_secs(45),
        read_time_max: Duration::from_secs(11),
        unverified: UnverifiedMeans::Inconclusive,
    };

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn reads(status: &str) -> Reading {
        reads_dated(status, None)
    }

    fn reads_dated(status: &str, dated_at: Option<SystemTime>) -> Reading {
        let status = status.to_owned();
        Reading::Customer(CustomerStatus { status, failure_reason: None, document_type: None, dated_at })
    }

    /// A read 20 s after the attempt's end, which came 10 s after its begin.
    fn read_of(reading: Reading) -> Evidence {
        Evidence {
            reading,
            end_to_read: Age::agreed(secs(20)),
            begin_to_answer: Age::agreed(secs(31)),
            read_to_answer: secs(1),
            is_only_suspect: true,
            word_before: Some("FAILED".to_owned()),
            confirmed: 0,
            confirmation_to_answer: Age::agreed(Duration::ZERO),
            confirmation_dated_at: None,
            may_resend: true,
        }
    }

    fn check(evidence: &Evidence, expected: Conclusion) {
        assert_eq!(conclude(evidence, &TIMING), expected, "{evidence:?}");
    }

    #[test]
    fn processing_is_ours_only_where_it_can_be_nobody_elses() {
        check(&read_of(reads("PROCESSING")), Conclusion::Applied);
        let ambiguous = Evidence { is_only_suspect: false, ..read_of(reads("PROCESSING")) };
        check(&ambiguous, Conclusion::ReadAgain { after: secs(60) });
        check(&Evidence { end_to_read: Age::agreed(secs(7200)), ..ambiguous }, Conclusion::Unsettled);
        let late = Evidence {
            begin_to_answer: Age::agreed(secs(7000)),
            end_to_read: Age::agreed(secs(6900)),
            ..read_of(reads("PROCESSING"))
        };
        check(&late, Conclusion::Applied);
    }

    #[test]
    fn failed_proves_nothing_until_two_reads_agree() {
        let first = read_of(reads("FAILED"));
        check(&first, Conclusion::Confirming { after: secs(43) });
        let second = Evidence {
            confirmed: 1,
            confirmation_to_answer: Age::agreed(secs(46)),
            begin_to_answer: Age::agreed(secs(77)),
            end_to_read: Age::agreed(secs(65)),
            ..first
        };
        check(&second, Conclusion::NotApplied);
        check(&Evidence { may_resend: false, ..second.clone() }, Conclusion::LastUpdate);
        check(&Evidence { confirmation_to_answer: Age::agreed(secs(56)), ..second }, Conclusion::Unsettled);
    }

    /// The database's clock was set forward between the two, or the replicas' was.
    #[test]
    fn a_confirmation_that_one_clock_calls_too_soon_needs_another() {
        let second = Evidence {
            confirmed: 1,
            confirmation_to_answer: Age::agreed(secs(46)),
            begin_to_answer: age(77, 31),
            ..read_of(reads("FAILED"))
        };
        for (end, expected) in [
            (age(65, 21), Conclusion::Confirming { after: secs(43) }),
            (age(21, 65), Conclusion::Confirming { after: secs(43) }),
            (age(65, 44), Conclusion::Confirming { after: secs(43) }),
            (age(65, 45), Conclusion::NotApplied),
            (age(65, -1), Conclusion::ReadAgain { after: secs(60) }),
        ] {
            check(&Evidence { end_to_read: end, ..second.clone() }, expected);
        }
        let third =
            Evidence { confirmed: 2, end_to_read: age(109, 65), begin_to_answer: age(121, 77), ..second };
        check(&third, Conclusion::NotApplied);
    }

    /// Dated by a clock ahead of ours, a copy that a cache keeps looks as fresh as the first time.
    #[test]
    fn a_copy_that_a_cache_keeps_confirms_nothing() {
        let second = |dated_at| Evidence {
            confirmed: 1,
            confirmation_to_answer: Age::agreed(secs(46)),
            confirmation_dated_at: Some(at(10_000)),
            begin_to_answer: Age::agreed(secs(77)),
            end_to_read: Age::agreed(secs(65)),
            ..read_of(reads_dated("FAILED", Some(at(dated_at))))
        };
        check(&second(10_045), Conclusion::NotApplied);
        check(&second(10_029), Conclusion::NotApplied);
        let again = Conclusion::ReadAgain { after: secs(60) };
        check(&second(10_028), again);
        check(&second(10_000), again);
        check(&second(9_000), again);
        // Two that came at once may have one date.
        let at_once = Evidence { confirmation_to_answer: Age::agreed(secs(17)), ..second(10_000) };
        check(&at_once, Conclusion::NotApplied);
        check(&Evidence { confirmation_dated_at: None, ..second(10_000) }, Conclusion::NotApplied);
    }

    #[test]
    fn a_slow_read_leaves_its_confirmation_as_much_time() {
        let slow = Evidence {
            begin_to_answer: Age::agreed(secs(40)),
            read_to_answer: secs(10),
            ..read_of(reads("FAILED"))
        };
        check(&slow, Conclusion::Confirming { after: secs(34) });
        let confirming = Evidence {
            confirmed: 1,
            // As slow again, and begun a second late.
            confirmation_to_answer: Age::agreed(secs(10 + 34 + 1 + 10)),
            end_to_read: Age::agreed(secs(20 + 10 + 34 + 1)),
            begin_to_answer: Age::agreed(secs(40 + 34 + 1 + 10)),
            ..slow
        };
        check(&confirming, Conclusion::NotApplied);
    }

    #[test]
    fn failed_outside_the_window_proves_nothing() {
        let at = |begin_to_answer| Evidence {
            begin_to_answer: Age::agreed(begin_to_answer),
            ..read_of(reads("FAILED"))
        };
        check(&at(secs(55)), Conclusion::Confirming { after: secs(43) });
        let settled =
            |begin_to_answer| Evidence { end_to_read: Age::agreed(secs(60)), ..at(begin_to_answer) };
        check(&settled(secs(71)), Conclusion::Unsettled);
        let early = Evidence { end_to_read: Age::agreed(secs(5)), ..read_of(reads("FAILED")) };
        check(&early, Conclusion::ReadAgain { after: secs(10) });
    }

    /// Ages by the database's clock and by the replicas', in seconds; negative where one says that
    /// it is yet to come.
    fn age(database: i64, replica: i64) -> Age {
        let told = |age: i64| u64::try_from(age).ok().map(secs);
        Age { database: told(database), replica: told(replica) }
    }

    #[test]
    fn the_older_of_two_ages_counts_and_an_impossible_one_does_not() {
        let first = |end: Option<u64>, begin: Age| Evidence {
            end_to_read: Age { database: end.map(secs), replica: end.map(secs) },
            begin_to_answer: begin,
            ..read_of(reads("FAILED"))
        };
        let confirming = Conclusion::Confirming { after: secs(43) };
        let unknown = Conclusion::ReadAgain { after: secs(60) };
        for (end, begin, expected) in [
            (Some(20), age(31, 31), confirming),
            (Some(20), age(31, 55), confirming),
            // The database's clock was set back: by its own, the window is still open.
            (Some(20), age(31, 56), Conclusion::ReadAgain { after: secs(40) }),
            (Some(20), age(31, 91), Conclusion::ReadAgain { after: secs(40) }),
            (Some(20), age(31, 7200), Conclusion::ReadAgain { after: secs(40) }),
            // Set back to before the attempt's end, or its begin.
            (None, age(5, 75), unknown),
            (None, age(-1, 75), unknown),
            (Some(0), age(-1, 75), unknown),
            // An end before its begin.
            (Some(90), age(20, 20), unknown),
            // It was set forward: the attempt has only just begun.
            (Some(20), age(31, 8), Conclusion::ReadAgain { after: secs(7) }),
            (Some(70), age(81, 8), Conclusion::ReadAgain { after: secs(7) }),
            // The reader's clock is behind that of whoever signed.
            (Some(20), age(31, -1), unknown),
            // Nothing is known, and a person is asked in time.
            (None, age(5, 7200), Conclusion::Unsettled),
            (Some(7200), age(7210, -1), Conclusion::Unsettled),
        ] {
            check(&first(end, begin), expected);
        }
        let second = |confirmation_to_answer| Evidence {
            end_to_read: Age::agreed(secs(65)),
            begin_to_answer: age(77, 77),
            confirmed: 1,
            confirmation_to_answer,
            ..read_of(reads("FAILED"))
        };
        for (confirmation, expected) in [
            (age(46, 46), Conclusion::NotApplied),
            (age(46, 55), Conclusion::NotApplied),
            (age(46, 56), Conclusion::Unsettled),
            (age(46, 116), Conclusion::Unsettled),
            (age(116, 46), Conclusion::Unsettled),
            (age(46, -1), unknown),
            (age(-1, 46), unknown),
        ] {
            check(&second(confirmation), expected);
        }
        // Nor does a verification prove anything: which updates came before it is told by clocks.
        check(&Evidence { begin_to_answer: age(-1, 75), ..read_of(reads("PROCESSING")) }, unknown);
        check(
            &Evidence { begin_to_answer: age(31, 91), ..read_of(reads("PROCESSING")) },
            Conclusion::Applied,
        );
    }

    #[test]
    fn a_customer_is_not_let_go_while_an_update_may_still_be_applied() {
        for word in ["FAILED", "VERIFIED", "ON_HOLD"] {
            let late = Evidence { begin_to_answer: Age::agreed(secs(61)), ..read_of(reads(word)) };
            let late = Evidence { word_before: None, ..late };
            check(&late, Conclusion::ReadAgain { after: secs(40) });
            check(&Evidence { end_to_read: Age::agreed(secs(60)), ..late }, Conclusion::Unsettled);
        }
    }

    #[test]
    fn verified_means_applied_only_after_another_word() {
        check(&read_of(reads("VERIFIED")), Conclusion::Applied);
        for word_before in [None, Some("VERIFIED".to_owned()), Some("PROCESSING".to_owned())] {
            let same = Evidence { word_before, ..read_of(reads("VERIFIED")) };
            check(&same, Conclusion::ReadAgain { after: secs(60) });
            let late = Evidence {
                begin_to_answer: Age::agreed(secs(91)),
                end_to_read: Age::agreed(secs(80)),
                ..same
            };
            check(&late, Conclusion::Unsettled);
        }
        let ambiguous = Evidence { is_only_suspect: false, ..read_of(reads("VERIFIED")) };
        check(&ambiguous, Conclusion::ReadAgain { after: secs(60) });
    }

    #[test]
    fn unverified_is_what_the_operator_says_it_is() {
        check(&read_of(reads("UNVERIFIED")), Conclusion::ReadAgain { after: secs(60) });
        let late = Evidence {
            begin_to_answer: Age::agreed(secs(91)),
            end_to_read: Age::agreed(secs(80)),
            ..read_of(reads("UNVERIFIED"))
        };
        check(&late, Conclusion::Unsettled);
        let told = Timing { unverified: UnverifiedMeans::NotApplied, ..TIMING };
        let conclusion = conclude(&read_of(reads("UNVERIFIED")), &told);
        assert_eq!(conclusion, Conclusion::Confirming { after: secs(43) });
    }

    #[test]
    fn a_read_that_failed_is_repeated_soon_while_that_can_help() {
        for reading in [
            Reading::Failed,
            Reading::NotFound,
            Reading::Stale,
            Reading::OtherCustomer,
            Reading::Misconfigured(Misconfiguration::ApiKey),
        ] {
            check(&read_of(reading.clone()), Conclusion::ReadAgain { after: secs(5) });
            let late = Evidence { begin_to_answer: Age::agreed(secs(50)), ..read_of(reading.clone()) };
            check(&late, Conclusion::ReadAgain { after: secs(60) });
            check(&Evidence { end_to_read: Age::agreed(secs(7200)), ..late }, Conclusion::Unsettled);
        }
    }

    const CUSTOMER: Uuid = Uuid::from_u128(7);

    fn at(secs_since_1970: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + secs(secs_since_1970)
    }

    fn answered(status: u16, body: &str) -> Answer {
        Answer { status, body: Body::Whole(body.as_bytes().to_vec()), ..Answer::default() }
    }

    /// What an answer reads as that was asked for at 10,000 s.
    #[track_caller]
    fn check_reading(answer: Answer, skew: Option<i64>, expected: &Reading) {
        let asked = Asked { customer_id: CUSTOMER, at: at(10_000), skew };
        let reading = read_customer(&HttpOutcome::Answered(answer.clone()), &asked, at(10_001));
        assert_eq!(reading, *expected, "{answer:?} at skew {skew:?}");
    }

    #[test]
    fn an_answer_made_before_it_was_asked_for_proves_nothing() {
        let failed = answered(200, r#"{"status":true,"data":{"status":"FAILED"}}"#);
        let not_found = answered(400, r#"{"status":false,"message":"Customer not found or access denied"}"#);
        for answer in [failed, not_found] {
            let check = |age_s, date: Option<u64>, skew, is_fresh| {
                let dated_at = date.map(at);
                let answer = Answer { age_s, date: dated_at, ..answer.clone() };
                let fresh = match answer.status {
                    200 => reads_dated("FAILED", dated_at),
                    _ => Reading::NotFound,
                };
                check_reading(answer, skew, if is_fresh { &fresh } else { &Reading::Stale });
            };
            check(None, None, None, true);
            check(None, Some(10_000), Some(0), true);
            // As much as a cache, a coarse date or another machine's clock may be off.
            check(Some(0), Some(9_995), Some(0), true);
            check(Some(1), Some(10_000), Some(0), false);
            check(Some(u64::MAX), None, None, false);
            check(None, Some(9_994), Some(0), false);
            check(None, Some(9_700), None, false);
            // A provider whose clock is off, ahead and behind.
            check(None, Some(10_060), Some(60), true);
            check(None, Some(10_050), Some(60), false);
            check(None, Some(9_940), Some(-60), true);
            check(None, Some(9_930), Some(-60), false);
            // It dates its answers, and this one has no date.
            check(None, None, Some(0), false);
        }
    }

    #[test]
    fn an_answer_about_another_customer_proves_nothing() {
        let about =
            |id: &str| answered(200, &format!(r#"{{"status":true,"data":{{{id}"status":"FAILED"}}}}"#));
        let (own, other) = (CUSTOMER, Uuid::from_u128(8));
        check_reading(about(""), None, &reads("FAILED"));
        check_reading(about(&format!(r#""id":"{own}","#)), None, &reads("FAILED"));
        check_reading(about(&format!(r#""id":"{other}","#)), None, &Reading::OtherCustomer);
        check_reading(about(&format!(r#""customer_id":"{other}","#)), None, &Reading::OtherCustomer);
        let stray = Answer { is_out_of_step: true, ..about(&format!(r#""id":"{own}","#)) };
        check_reading(stray, None, &Reading::Failed);
    }

    #[test]
    fn an_unknown_word_settles_nothing() {
        check(&read_of(reads("ON_HOLD")), Conclusion::ReadAgain { after: secs(60) });
    }

    proptest! {
        /// Whatever a read shows, an update that was applied in time is never called not applied:
        /// it reads PROCESSING for a whole window after it was applied.
        #[test]
        fn an_applied_update_is_never_sent_again(
            applied_after in 0u64..59, begun_at in 15u64..55, answer_in in 0u64..11, confirm_in in 0u64..60,
            confirm_answer_in in 0u64..11,
        ) {
            // The attempt begins and ends at 0; the update is applied later, up to the second read.
            let shows = |at: u64| {
                let in_verification = at >= applied_after && at < applied_after + 60;
                if in_verification { reads("PROCESSING") } else { reads("FAILED") }
            };
            let first = Evidence {
                end_to_read: Age::agreed(secs(begun_at)),
                begin_to_answer: Age::agreed(secs(begun_at + answer_in)),
                ..read_of(shows(begun_at + answer_in))
            };
            let second_at = begun_at + confirm_in;
            if let Conclusion::Confirming { .. } = conclude(&first, &TIMING) {
                let second = Evidence {
                    end_to_read: Age::agreed(secs(second_at)),
                    begin_to_answer: Age::agreed(secs(second_at + confirm_answer_in)),
                    confirmed: 1,
                    confirmation_to_answer: Age::agreed(secs(confirm_in + confirm_answer_in)),
                    ..read_of(shows(second_at + confirm_answer_in))
                };
                let is_covered = applied_after <= second_at.max(45);
                prop_assert!(!is_covered || conclude(&second, &TIMING) != Conclusion::NotApplied);
            }
        }
    }
}
