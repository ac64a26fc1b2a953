//! Whether what the tables say of a job can have happened. The events of its history, in their
//! order, come to a standing; each state has one rule, which says which standings it may follow and
//! what else must be there. Every history that the protocol allows passes.
//!
//! What no entry tells is believed as far as it is possible: that a job which waited was ended for
//! another one of its customer or for its `expires_at`, and when.

use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::budget::spends;
use super::outcome::{LAST_ATTEMPT, REFUSED_ALONE, REFUSED_LIKE_OTHERS, named_job};
use super::state::{ConclusionKind, Evidence, State, VerdictKind};
use super::suspicion::{FATE_UNKNOWN, NOT_APPLIED};
use super::verification::is_final;

/// What is wrong with a job's history.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    pub place: String,
    /// What is wrong with it.
    pub what: String,
    /// What that means, and what to do.
    pub remedy: &'static str,
}

#[derive(Clone, Debug)]
pub struct Submission {
    pub job_id: Uuid,
    pub customer_id: Option<Uuid>,
    pub state: String,
    pub reason_code: Option<String>,
    pub reason: Option<String>,
    pub evidence: Option<String>,
    pub provider_reference: Option<String>,
    pub verification_status: Option<String>,
    pub failure_reason: Option<String>,
    /// Whether the verification was seen after the acceptance.
    pub is_seen: bool,
    /// Whether the verification is followed still.
    pub is_followed: bool,
    /// Whether it has all that a valid job has; of a forgotten customer's, what is left of that.
    pub is_whole_job: bool,
    /// Whether it has any of that.
    pub is_job: bool,
    pub received_at: OffsetDateTime,
    pub expires_at: Option<OffsetDateTime>,
    pub ended_at: Option<OffsetDateTime>,
    pub attempts: i32,
    pub retries: i32,
    pub chain: Option<Vec<u8>>,
    pub entries: i32,
}

#[derive(Clone, Debug)]
pub struct Attempt {
    pub job_id: Uuid,
    pub number: i32,
    pub worker: String,
    pub begun_at: OffsetDateTime,
    pub signed_at: OffsetDateTime,
    pub ended_at: Option<OffsetDateTime>,
    pub verdict: Option<String>,
    pub detail: Option<String>,
    pub late_verdict: Option<String>,
    pub http_status: Option<i32>,
    pub provider_message: Option<String>,
    pub error: Option<String>,
    pub duration_ms: Option<i32>,
    pub entry: Option<i32>,
    pub late_entry: Option<i32>,
}

#[derive(Clone, Debug)]
pub struct Observation {
    pub id: i64,
    pub job_id: Uuid,
    pub customer_id: Uuid,
    pub at: OffsetDateTime,
    pub purpose: String,
    pub status: Option<String>,
    pub failure_reason: Option<String>,
    pub error: Option<String>,
    pub conclusion: Option<String>,
    /// Of a configuration.
    pub document_types: Option<String>,
    pub entry: Option<i32>,
}

/// What a person did to the job.
#[derive(Clone, Debug)]
pub struct Intervention {
    pub job_id: Uuid,
    pub at: OffsetDateTime,
    pub action: String,
    pub detail: Option<String>,
    pub entries: Option<i32>,
}

/// The job of the same customer that the reason names.
#[derive(Clone, Copy, Debug)]
pub struct Sibling {
    pub job_id: Uuid,
    pub is_newer: bool,
    pub is_accepted: bool,
    /// Whether an attempt of it was ever of unknown outcome, or a person said so.
    pub was_unknown: bool,
    /// Whether it asks for the same, as far as that is known.
    pub has_same_content: bool,
}

/// All that the tables say of a job.
#[derive(Clone, Debug)]
pub struct History {
    pub submission: Submission,
    pub attempts: Vec<Attempt>,
    pub observations: Vec<Observation>,
    /// As they were done: `replay`, `resolve`, `review`.
    pub interventions: Vec<Intervention>,
    /// The job that its reason names.
    pub sibling: Option<Sibling>,
}

/// Something that its history says.
#[derive(Clone, Copy)]
enum Event<'a> {
    Closed(&'a Attempt),
    AcceptedLate,
    Concluded(&'a Observation),
    Done(&'a Intervention),
}

/// What the events so far have come to.
#[derive(Clone, Copy)]
enum Standing<'a> {
    Untried,
    /// It waits: its last attempt spent nothing.
    Retry(&'a Attempt),
    /// Its last attempt spent nothing and was the last one allowed.
    Ended(&'a Attempt),
    /// The provider accepted or rejected it.
    Answered(&'a Attempt),
    /// Its last attempt may have been applied.
    Unknown(&'a Attempt),
    /// Its last attempt was not applied, as reads found: it waits.
    Cleared(&'a Attempt),
    /// A read ended it: applied, rejected, `last_update`, unsettled.
    Read(&'a Observation),
    /// A person settled it, as this.
    Resolved(&'a Intervention, &'a str),
    /// A person has it sent again: it waits.
    Replayed,
    /// A person took it from what waits, to be reviewed.
    Held,
}

const REMOVED: &str = "rows were removed by hand; a backup from before has them";
const IMPOSSIBLE: &str =
    "the row was changed by hand, or a bug of the worker's; compare with a backup and the logs";
const NOT_CLEARED: &str = "follows one of unknown outcome that no read and no person has cleared";
const SPENT_TWICE: &str = "an update may have been spent twice; ask the provider";

/// Rows are dated by the beginnings of their transactions, of which none lasts longer.
const TRANSACTION_TIME_MAX: Duration = Duration::seconds(30);

impl<'a> Standing<'a> {
    /// Whether it may be sent, or ended without being sent.
    fn waits(self) -> bool {
        match self {
            Self::Untried | Self::Retry(_) | Self::Cleared(_) | Self::Replayed => true,
            Self::Ended(_)
            | Self::Answered(_)
            | Self::Unknown(_)
            | Self::Read(_)
            | Self::Resolved(..)
            | Self::Held => false,
        }
    }

    /// Whether a person may have it sent again.
    fn may_be_replayed(self) -> bool {
        match self {
            Self::Untried | Self::Retry(_) | Self::Ended(_) | Self::Cleared(_) | Self::Replayed => true,
            Self::Read(seen) => seen.concluded(ConclusionKind::LastUpdate),
            Self::Resolved(_, settled) => settled == "not-applied",
            Self::Answered(_) | Self::Unknown(_) | Self::Held => false,
        }
    }

    /// Whether it may wait for a person to settle it.
    fn may_be_resolved(self) -> bool {
        match self {
            // For a newer one of unknown outcome.
            Self::Untried | Self::Retry(_) | Self::Cleared(_) | Self::Replayed => true,
            Self::Ended(_) | Self::Held => true,
            Self::Read(seen) => {
                seen.concluded(ConclusionKind::LastUpdate) || seen.concluded(ConclusionKind::Unsettled)
            }
            Self::Answered(_) | Self::Unknown(_) | Self::Resolved(..) => false,
        }
    }

    /// Why nothing may be sent any more, of an attempt that was made after all.
    fn what_forbids_another(self) -> Option<&'static str> {
        match self {
            Self::Untried | Self::Retry(_) | Self::Cleared(_) | Self::Replayed => None,
            Self::Answered(attempt) if attempt.is(VerdictKind::Accepted) => {
                Some("follows one that was accepted")
            }
            Self::Answered(_) => Some("follows one that was rejected"),
            Self::Unknown(_) => Some(NOT_CLEARED),
            Self::Read(seen) if seen.concluded(ConclusionKind::Unsettled) => Some(NOT_CLEARED),
            Self::Ended(_) => Some("follows the last one that was allowed"),
            Self::Read(_) => Some("follows a read that ended the job"),
            Self::Resolved(..) | Self::Held => Some("follows a person's decision on the job"),
        }
    }

    /// What was last tried, if anything.
    fn last(self) -> Option<&'a Attempt> {
        match self {
            Self::Retry(last) | Self::Ended(last) | Self::Answered(last) => Some(last),
            Self::Unknown(last) | Self::Cleared(last) => Some(last),
            Self::Untried | Self::Read(_) | Self::Resolved(..) | Self::Replayed | Self::Held => None,
        }
    }
}

impl History {
    /// One of which only the submission is known yet.
    pub fn of(submission: Submission) -> Self {
        Self {
            submission,
            attempts: Vec::new(),
            observations: Vec::new(),
            interventions: Vec::new(),
            sibling: None,
        }
    }

    /// All that cannot have happened.
    pub fn impossible(&self) -> Vec<Fault> {
        let mut faults = Faults(Vec::new());
        self.count(&mut faults);
        self.order(&mut faults);
        let (standing, is_accepted_late) = self.follow(&mut faults);
        self.check_state(standing, is_accepted_late, &mut faults);
        self.check_acceptances(&mut faults);
        self.check_verification(&mut faults);
        faults.0
    }

    fn count(&self, faults: &mut Faults) {
        let counted = self.submission.attempts;
        if i32::try_from(self.attempts.len()) != Ok(counted) {
            faults.add("attempts", format!("{counted} counted, {} there", self.attempts.len()), REMOVED);
        }
        for (attempt, number) in self.attempts.iter().zip(1..) {
            if attempt.number != number {
                faults.add(format!("attempt {}", attempt.number), "is out of turn", REMOVED);
                return;
            }
        }
    }

    fn order(&self, faults: &mut Faults) {
        for (attempt, next) in self.attempts.iter().zip(self.attempts.iter().skip(1)) {
            let place = || format!("attempt {}", next.number);
            match attempt.ended_at {
                None => faults.add(place(), "began while the one before was open", IMPOSSIBLE),
                Some(ended_at) if next.begun_at + TRANSACTION_TIME_MAX < ended_at => {
                    let remedy = "two workers were at it, or the database's clock was set back; see the logs";
                    faults.add(place(), "began before the one before had ended", remedy);
                }
                Some(_) => {}
            }
            if let (Some(entry), Some(next_entry)) = (attempt.entry, next.entry)
                && entry > next_entry
            {
                faults.add(place(), "was closed before the one before", IMPOSSIBLE);
            }
        }
    }

    /// What happened, in order. An intervention has its place behind the entries that were there.
    fn events(&self) -> Vec<Event<'_>> {
        let mut events = Vec::with_capacity(self.attempts.len() + self.observations.len());
        for attempt in &self.attempts {
            if let (Some(entry), Some(_)) = (attempt.entry, &attempt.verdict) {
                events.push(((entry, false), Event::Closed(attempt)));
            }
            let is_accepted_late = attempt.late_verdict.as_deref() == Some(VerdictKind::Accepted.name());
            if let Some(entry) = attempt.late_entry.filter(|_| is_accepted_late) {
                events.push(((entry, false), Event::AcceptedLate));
            }
        }
        for seen in &self.observations {
            if let (Some(entry), Some(_)) = (seen.entry, &seen.conclusion) {
                events.push(((entry, false), Event::Concluded(seen)));
            }
        }
        for done in &self.interventions {
            events.push(((done.entries.unwrap_or_default(), true), Event::Done(done)));
        }
        events.sort_by_key(|(place, _)| *place);
        events.into_iter().map(|(_, event)| event).collect()
    }

    /// Follows the events to what they come to, and whether a late answer accepted the job with
    /// nothing after it.
    fn follow(&self, faults: &mut Faults) -> (Standing<'_>, bool) {
        let (mut standing, mut is_accepted_late) = (Standing::Untried, false);
        for event in self.events() {
            standing = match event {
                Event::Closed(attempt) => {
                    self.check_next(standing, attempt, faults);
                    is_accepted_late = false;
                    attempt.came_to()
                }
                Event::AcceptedLate => {
                    is_accepted_late = true;
                    standing
                }
                Event::Concluded(seen) => {
                    use ConclusionKind::{Confirming, NotApplied, ReadAgain};
                    match (seen.conclusion.as_deref().map(str::parse), standing.last()) {
                        (Some(Ok(Confirming | ReadAgain)), _) => standing,
                        (Some(Ok(NotApplied)), Some(last)) => Standing::Cleared(last),
                        (Some(Ok(NotApplied)), None) => standing,
                        _ => Standing::Read(seen),
                    }
                }
                Event::Done(done) => self.done(standing, done, is_accepted_late, faults),
            };
        }
        if let Some(open) = self.open_attempt() {
            self.check_next(standing, open, faults);
        }
        (standing, is_accepted_late)
    }

    fn check_next(&self, standing: Standing<'_>, next: &Attempt, faults: &mut Faults) {
        if let Some(what) = standing.what_forbids_another() {
            faults.add(format!("attempt {}", next.number), what, SPENT_TWICE);
        }
    }

    fn done<'a>(
        &self,
        standing: Standing<'a>,
        done: &'a Intervention,
        is_accepted_late: bool,
        faults: &mut Faults,
    ) -> Standing<'a> {
        let (next, is_possible) = match done.action.as_str() {
            "replay" => (Standing::Replayed, standing.may_be_replayed()),
            "resolve" => {
                let settled = done.detail.as_deref().and_then(|detail| detail.rsplit_once("resolved as "));
                let settled = settled.map_or("", |(_, settled)| settled);
                (Standing::Resolved(done, settled), standing.may_be_resolved())
            }
            "review" => (Standing::Held, standing.waits()),
            _ => return standing,
        };
        if !is_possible && !is_accepted_late {
            let what = format!("{} of what could not be", done.action);
            faults.add("intervention", what, IMPOSSIBLE);
        }
        if done.entries.is_none() {
            let what = format!("{} has no place in the history", done.action);
            faults.add("intervention", what, IMPOSSIBLE);
        }
        next
    }

    fn open_attempt(&self) -> Option<&Attempt> {
        self.attempts.last().filter(|last| last.ended_at.is_none())
    }

    fn check_state(&self, standing: Standing<'_>, is_accepted_late: bool, faults: &mut Faults) {
        let Submission { state: name, evidence, .. } = &self.submission;
        let mut is_impossible = |what: &str| {
            faults.add("submission", format!("is {name}, and {what}"), IMPOSSIBLE);
        };
        let Ok(state) = name.parse::<State>() else {
            return is_impossible("there is no such state");
        };
        match (state, self.open_attempt()) {
            (State::Submitting, None) => is_impossible("no attempt is open"),
            (State::Submitting, Some(_)) | (_, None) => {}
            (_, Some(_)) => is_impossible("its last attempt is open"),
        }
        if let Err(what) = self.state_rule(state, standing, is_accepted_late) {
            is_impossible(&what);
        }
        let said = |verdict| self.attempts.iter().any(|attempt| attempt.is(verdict));
        if state != State::Accepted
            && (said(VerdictKind::Accepted) || self.concluded(ConclusionKind::Applied))
        {
            is_impossible("an attempt was accepted, or a read found it applied");
        }
        if state != State::Rejected && said(VerdictKind::Rejected) {
            is_impossible("an attempt was rejected");
        }
        if state != State::Accepted && evidence.is_some() {
            is_impossible("has evidence of an acceptance");
        }
        let Submission { provider_reference, verification_status, failure_reason, is_seen, .. } =
            &self.submission;
        let has_answer = provider_reference.is_some() || verification_status.is_some();
        if state != State::Accepted && (has_answer || failure_reason.is_some() || *is_seen) {
            is_impossible("has what only an accepted one has");
        }
        if state != State::Invalid && !self.submission.is_whole_job {
            is_impossible("lacks what every job has");
        }
        if !self.retries_are_attempts() {
            is_impossible("more attempts count against it than were made");
        }
    }

    /// What must have happened for the job to be in its state, for its reason.
    fn state_rule(&self, state: State, standing: Standing<'_>, is_accepted_late: bool) -> Result<(), String> {
        let reason_code = self.submission.reason_code.as_deref();
        let waits = || match standing {
            Standing::Unknown(_) => {
                Err("no read and no person has cleared its last attempt, which may be applied".to_owned())
            }
            standing if standing.waits() => Ok(()),
            _ => Err("its history says that it has ended".to_owned()),
        };
        let not_accepted_late = || require(!is_accepted_late, "a late answer has accepted it");
        match state {
            // That an attempt is open, and may be, is checked with the attempts.
            State::Submitting => require(reason_code.is_none(), "has a reason to wait or to end"),
            State::Waiting => {
                if reason_code == Some("replayed") && !matches!(standing, Standing::Replayed) {
                    return Err("no person has it sent again".to_owned());
                }
                waits()?;
                not_accepted_late()?;
                let is_told = match reason_code {
                    None | Some("payload_unreadable" | "replayed") => true,
                    Some(code) => standing.last().is_some_and(|last| last.reason_code() == code),
                };
                require(is_told, "its last attempt came to something else")
            }
            State::Unknown => {
                not_accepted_late()?;
                let Standing::Unknown(last) = standing else {
                    return Err("its last attempt is not of unknown outcome".to_owned());
                };
                require(reason_code == Some(last.reason_code()), "its last attempt came to something else")
            }
            State::Accepted => self.accepted_rule(standing, is_accepted_late),
            State::Rejected => match (reason_code, standing) {
                (Some("by_person"), Standing::Resolved(done, settled))
                    if settled == State::Rejected.name() =>
                {
                    self.ended_with(done.at)
                }
                (Some("by_person"), _) => Err("no person decided that".to_owned()),
                (Some(code), Standing::Answered(last))
                    if last.is(VerdictKind::Rejected) && last.reason_code() == code =>
                {
                    self.ended_with(last.ended_at.unwrap_or(last.begun_at))
                }
                (Some("customer_not_found"), Standing::Read(seen))
                    if seen.concluded(ConclusionKind::Rejected) =>
                {
                    self.ended_after(seen.at)
                }
                _ => Err("neither an answer nor a read said so".to_owned()),
            },
            State::Invalid => {
                require(reason_code == Some(State::Invalid.name()), "has another reason")?;
                let is_untouched = matches!(standing, Standing::Untried) && self.observations.is_empty();
                require(is_untouched && self.attempts.is_empty(), "has a history")?;
                require(!self.submission.is_job, "has what only a job has")
            }
            State::Superseded => {
                require(reason_code.is_none(), "has another reason")?;
                waits()?;
                let what = "no newer job of its customer that was accepted is named";
                self.ended_for(|sibling| sibling.is_newer && sibling.is_accepted, what)
            }
            State::Duplicate => {
                require(reason_code.is_none(), "has another reason")?;
                waits()?;
                let was_unknown = self.attempts.iter().any(|attempt| attempt.is(VerdictKind::Unknown));
                require(!was_unknown, "an attempt may have been applied")?;
                let what = "no job of its customer that asks for the same and may be applied is named";
                self.ended_for(
                    |sibling| sibling.has_same_content && (sibling.is_accepted || sibling.was_unknown),
                    what,
                )
            }
            State::Exhausted => match (reason_code, standing) {
                (Some("attempts"), Standing::Ended(last)) if last.error_is(LAST_ATTEMPT) => {
                    self.ended_with(last.ended_at.unwrap_or(last.begun_at))
                }
                (Some("attempts"), _) => Err("no attempt was its last".to_owned()),
                (Some("expired"), _) => {
                    waits()?;
                    let Submission { expires_at, ended_at, .. } = self.submission;
                    require(expires_at.is_some() && expires_at <= ended_at, "it had not expired")
                }
                (Some(NOT_APPLIED), Standing::Resolved(done, "not-applied")) => self.ended_with(done.at),
                (Some(NOT_APPLIED), _) => Err("no person found that".to_owned()),
                _ => Err("there is no such reason for that".to_owned()),
            },
            State::NeedsReview => match (reason_code, standing) {
                (Some(FATE_UNKNOWN), Standing::Read(seen)) if seen.concluded(ConclusionKind::Unsettled) => {
                    not_accepted_late()?;
                    self.ended_after(seen.at)
                }
                (Some(FATE_UNKNOWN), Standing::Held) => not_accepted_late(),
                (Some(FATE_UNKNOWN), _) => Err("no read left that open".to_owned()),
                (Some("last_update"), Standing::Read(seen)) if seen.concluded(ConclusionKind::LastUpdate) => {
                    not_accepted_late()?;
                    self.ended_after(seen.at)
                }
                (Some("last_update"), _) => Err("nothing found that".to_owned()),
                (Some("newer_fate_unknown"), _) => {
                    waits()?;
                    let what = "no newer job of its customer that may be applied is named";
                    self.ended_for(|sibling| sibling.is_newer && sibling.was_unknown, what)
                }
                (Some(code @ ("refused_only_for_this_job" | "refused_like_others")), standing) => {
                    let note =
                        if code == "refused_like_others" { REFUSED_LIKE_OTHERS } else { REFUSED_ALONE };
                    match standing {
                        Standing::Ended(last) if last.error_is(note) => {
                            self.ended_with(last.ended_at.unwrap_or(last.begun_at))
                        }
                        _ => Err("no attempt was refused so".to_owned()),
                    }
                }
                _ => Err("there is no such reason for that".to_owned()),
            },
        }
    }

    /// An acceptance goes with what says so.
    fn accepted_rule(&self, standing: Standing<'_>, is_accepted_late: bool) -> Result<(), String> {
        let Submission { evidence, reason_code, provider_reference, .. } = &self.submission;
        let name = evidence.as_deref().unwrap_or("none");
        match (name.parse(), standing) {
            (Ok(Evidence::Response), Standing::Answered(last)) if last.is(VerdictKind::Accepted) => {
                self.ended_with(last.ended_at.unwrap_or(last.begun_at))?;
            }
            (Ok(Evidence::ReadBack), Standing::Read(seen)) if seen.concluded(ConclusionKind::Applied) => {
                require(provider_reference.is_none(), "a read shows no reference")?;
                self.ended_after(seen.at)?;
            }
            (Ok(Evidence::Late), standing)
                if is_accepted_late && !matches!(standing, Standing::Answered(_)) => {}
            (Ok(Evidence::Person), Standing::Resolved(done, settled))
                if settled == State::Accepted.name() =>
            {
                require(provider_reference.is_none(), "a person gives no reference")?;
                self.ended_with(done.at)?;
            }
            _ => return Err(format!("nothing of its evidence is there: {name}")),
        }
        require(reason_code.is_none(), "has a reason of its own")
    }

    /// It ended for the job that its reason names.
    fn ended_for(&self, may_be: impl Fn(&Sibling) -> bool, what: &str) -> Result<(), String> {
        let named = self.submission.reason.as_deref().and_then(named_job);
        let sibling = self.sibling.as_ref().filter(|sibling| named == Some(sibling.job_id));
        require(sibling.is_some_and(may_be), what)?;
        let last_ended_at = self.attempts.iter().filter_map(|attempt| attempt.ended_at).max();
        last_ended_at.map_or(Ok(()), |at| self.ended_after(at))
    }

    /// What ends a job is written in its own transaction, and dated by that.
    fn ended_with(&self, at: OffsetDateTime) -> Result<(), String> {
        let is_same = self.submission.ended_at == Some(at.max(self.submission.received_at));
        require(is_same, "ended at another time than what ended it")
    }

    fn ended_after(&self, at: OffsetDateTime) -> Result<(), String> {
        let is_after = self.submission.ended_at.is_some_and(|ended_at| ended_at + TRANSACTION_TIME_MAX >= at);
        require(is_after, "ended before what ended it")
    }

    fn concluded(&self, conclusion: ConclusionKind) -> bool {
        self.observations.iter().any(|seen| seen.concluded(conclusion))
    }

    /// The schedule counts no more attempts than there were, since a person had it begin anew.
    fn retries_are_attempts(&self) -> bool {
        let replayed_at = self.interventions.iter().filter(|done| done.action == "replay");
        let replayed_at = replayed_at.filter_map(|done| done.entries).max().unwrap_or_default();
        let made = self.attempts.iter().filter(|attempt| attempt.entry > Some(replayed_at)).count();
        usize::try_from(self.submission.retries).is_ok_and(|retries| retries <= made)
    }

    fn check_acceptances(&self, faults: &mut Faults) {
        let answers = self.attempts.iter().filter(|attempt| attempt.is(VerdictKind::Accepted)).count();
        if answers > 1 {
            let remedy = "an update was spent twice; ask the provider";
            faults.add("attempts", format!("{answers} were accepted"), remedy);
        }
    }

    /// A verification's end goes with a read or a webhook that said so.
    fn check_verification(&self, faults: &mut Faults) {
        let Submission { verification_status: Some(status), failure_reason, .. } = &self.submission else {
            return;
        };
        if !self.submission.is_seen || self.submission.is_followed || !is_final(status) {
            return;
        }
        let said = |seen: &Observation| {
            matches!(seen.purpose.as_str(), "verification" | "webhook")
                && seen.status.as_ref() == Some(status)
                && seen.failure_reason == *failure_reason
        };
        if !self.observations.iter().any(said) {
            let what = format!("its verification ended {status}, and neither a read nor a webhook said so");
            faults.add("submission", what, IMPOSSIBLE);
        }
    }
}

impl Attempt {
    fn is(&self, verdict: VerdictKind) -> bool {
        self.verdict.as_deref() == Some(verdict.name())
    }

    fn error_is(&self, error: &str) -> bool {
        self.error.as_deref() == Some(error)
    }

    /// Why the submission waits, or was rejected, after it.
    fn reason_code(&self) -> &str {
        self.detail.as_deref().or(self.verdict.as_deref()).unwrap_or_default()
    }

    fn came_to(&self) -> Standing<'_> {
        match self.verdict.as_deref().map(str::parse) {
            Some(Ok(VerdictKind::Accepted | VerdictKind::Rejected)) => Standing::Answered(self),
            Some(Ok(verdict)) if !spends(verdict) => {
                let ends = [LAST_ATTEMPT, REFUSED_ALONE, REFUSED_LIKE_OTHERS];
                let has_ended = ends.into_iter().any(|end| self.error_is(end));
                if has_ended { Standing::Ended(self) } else { Standing::Retry(self) }
            }
            // What is not known to have spent nothing may have been applied.
            _ => Standing::Unknown(self),
        }
    }
}

impl Observation {
    fn concluded(&self, conclusion: ConclusionKind) -> bool {
        self.conclusion.as_deref() == Some(conclusion.name())
    }
}

struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, place: impl Into<String>, what: impl Into<String>, remedy: &'static str) {
        self.0.push(Fault { place: place.into(), what: what.into(), remedy });
    }
}

fn require(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}
