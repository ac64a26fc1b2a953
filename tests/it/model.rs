//! The protocol, searched state by state: two workers that crash or stall past their lease at
//! any step, an older and a newer job of one customer, deliveries that come twice, and a
//! provider that applies an update at once, late or never. Needs no service.
//!
//! What is real here are the decisions: `decide`, `next`, `conclude`, and what `suspicion` says of the
//! customer's updates, reads and budget. What is modelled are the journal's guarded
//! writes, the provider, and time, which goes in ticks of 15 s: so a claim lasts two ticks, a request
//! leaves only in the tick of its claim, a read is due one tick after an attempt's end and confirmed
//! three later, nothing is applied later than three ticks after an attempt's end, and no verification
//! ends within five. It always ends FAILED: that tells a read the least. A worker that holds something
//! while time goes by has stalled. Crashes and stalls are limited; all else is exhaustive.

use std::collections::HashSet;
use std::time::Duration;

use kyc_worker::domain::outcome::{History, Next, Outcome, next};
use kyc_worker::domain::precedence::{Asking, Decision, decide};
use kyc_worker::domain::read_back::{
    Age, Conclusion, CustomerStatus, Evidence, Reading, Timing, UnverifiedMeans, conclude,
};
use kyc_worker::domain::retry::RetrySchedule;
use kyc_worker::domain::state::{self, ConclusionKind, Purpose, VerdictKind};
use kyc_worker::domain::suspicion::{Customer, FATE_UNKNOWN, PastJob, PastRead, PastUpdate};
use kyc_worker::domain::verdict::{Acceptance, FailurePoint, NotSent, Rejection, Verdict};
use time::OffsetDateTime;
use uuid::Uuid;

const TICK: Duration = Duration::from_secs(15);
const LEASE: u8 = 2;
const LOOK_AFTER: u8 = 1;
const WINDOW: u8 = 4;
const LATEST_APPLY: u8 = 3;
const VERIFICATION: u8 = 5;
/// Nothing depends on how much older anything is.
const AGE_MAX: u8 = 5;
const UPDATE_LIMIT: u32 = 3;
const OLDER: usize = 0;
const NEWER: usize = 1;
const SCHEDULE: RetrySchedule =
    RetrySchedule { delay_min: TICK, delay_max: TICK, attempts_max: u32::MAX, pause_max: TICK };

/// What may be taken away from the protocol to see whether the search notices.
#[derive(Clone, Copy)]
struct Protocol {
    compares_tokens: bool,
    confirmations: u32,
    /// From its attempt's end, for how long an update of unknown outcome may still be applied, says
    /// `suspicion`: until then no read clears it.
    lateness: Duration,
    /// Whether `suspicion` knows of the updates of the customer's other job.
    knows_others: bool,
}

const PROTOCOL: Protocol = Protocol {
    compares_tokens: true,
    confirmations: 2,
    lateness: Duration::from_secs(15 * WINDOW as u64),
    knows_others: true,
};

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Row {
    Absent,
    Waiting,
    Submitting,
    Unknown { due_in: u8, confirmed: u8, since_confirmation: u8 },
    Accepted,
    Rejected,
    Superseded,
    FateUnknown,
    LastUpdate,
    NewerFateUnknown,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Job {
    row: Row,
    deliveries: u8,
    token: u8,
    since_begin: u8,
    since_end: u8,
    /// Attempts accepted, and attempts ever of unknown outcome.
    accepted: u8,
    unknown: u8,
    /// Whether its last update may be in verification, says `suspicion` of the reads so far.
    is_suspect: bool,
    /// The provider's side: requests that it may still apply, and updates that it has.
    pending: u8,
    pending_resends: u8,
    applied: u8,
}

#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Answer {
    Accepted,
    Rejected,
    Lost,
    NotSent,
}

#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Worker {
    Idle,
    Claimed { job: usize, token: u8, age: u8 },
    Answered { job: usize, token: u8, age: u8, answer: Answer },
    Reading { job: usize, token: u8, age: u8, is_only_suspect: bool },
    HasRead { job: usize, token: u8, age: u8, conclusion: u8, is_processing: bool },
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct State {
    jobs: [Job; 2],
    workers: [Worker; 2],
    processing: Option<u8>,
    crashes: u8,
    stalls: u8,
}

/// A broken promise.
type Broken = &'static str;
type Steps = Vec<(&'static str, State)>;

fn is_in_motion(row: Row) -> bool {
    matches!(row, Row::Waiting | Row::Submitting | Row::Unknown { .. })
}

fn holds_slot(row: Row) -> bool {
    matches!(row, Row::Submitting | Row::Unknown { .. })
}

fn older_by_a_tick(age: u8) -> u8 {
    (age + 1).min(AGE_MAX)
}

impl State {
    fn first(crashes: u8, stalls: u8) -> Self {
        let job = Job {
            row: Row::Absent,
            deliveries: 2,
            token: 0,
            since_begin: 0,
            since_end: 0,
            accepted: 0,
            unknown: 0,
            is_suspect: false,
            pending: 0,
            pending_resends: 0,
            applied: 0,
        };
        let jobs = [Job { deliveries: 1, ..job }, job];
        Self { jobs, workers: [Worker::Idle; 2], processing: None, crashes, stalls }
    }

    /// Every step that anybody may take.
    fn steps(&self, protocol: Protocol) -> Result<Steps, Broken> {
        let mut steps = Vec::new();
        for worker in 0..2 {
            self.steps_of(worker, protocol, &mut steps)?;
        }
        for job in 0..2 {
            if self.jobs[job].pending > 0 {
                let mut after = *self;
                after.jobs[job].pending -= 1;
                let is_resend = after.jobs[job].pending_resends > 0;
                after.jobs[job].pending_resends -= u8::from(is_resend);
                after.apply(job, is_resend)?;
                steps.push(("applied late", after));
            }
        }
        // Many older jobs end at once, without the slot: an acceptance stays one.
        if self.jobs[NEWER].row == Row::Accepted && self.jobs[OLDER].row == Row::Waiting {
            let mut after = *self;
            after.jobs[OLDER].row = Row::Superseded;
            steps.push(("superseded with others", after));
        }
        if self.processing == Some(VERIFICATION) {
            steps.push(("verification ends", Self { processing: None, ..*self }));
        }
        steps.extend(self.tick().map(|after| ("time goes by", after)));
        for (_, after) in &mut steps {
            // Workers are alike.
            after.workers.sort_unstable();
        }
        Ok(steps)
    }

    fn steps_of(&self, worker: usize, protocol: Protocol, steps: &mut Steps) -> Result<(), Broken> {
        let mut step = |what, change: &dyn Fn(&mut Self) -> Result<Worker, Broken>| {
            let mut after = *self;
            after.workers[worker] = change(&mut after)?;
            steps.push((what, after));
            Ok::<(), Broken>(())
        };
        match self.workers[worker] {
            Worker::Idle => {
                for job in 0..2 {
                    let Job { row, deliveries, since_begin, .. } = self.jobs[job];
                    if deliveries > 0 {
                        step("delivered", &|after| Ok(after.receive(job, protocol)))?;
                    }
                    let is_free = !self.jobs.iter().any(|job| holds_slot(job.row));
                    let is_first = job == NEWER || self.jobs[NEWER].row != Row::Waiting;
                    if row == Row::Waiting && is_free && is_first {
                        step("taken up again", &|after| Ok(after.claim(job, protocol)))?;
                    }
                    if row == Row::Submitting && since_begin >= LEASE {
                        step("rescued", &|after| {
                            after.leave_unknown(job);
                            after.jobs[job].token += 1;
                            Ok(Worker::Idle)
                        })?;
                    }
                    if let Row::Unknown { due_in: 0, .. } = row {
                        step("read claimed", &|after| Ok(after.claim_read(job, protocol)))?;
                    }
                }
                return Ok(());
            }
            Worker::Claimed { job, token, age: 0 } => {
                let answered = |answer| Worker::Answered { job, token, age: 0, answer };
                let is_resend = self.jobs[job].unknown > 0;
                step("applied, answered", &|after| {
                    after.apply(job, is_resend).map(|()| answered(Answer::Accepted))
                })?;
                step("applied, answer lost", &|after| {
                    after.apply(job, is_resend).map(|()| answered(Answer::Lost))
                })?;
                step("answer lost, perhaps applied late", &|after| {
                    after.jobs[job].pending += 1;
                    after.jobs[job].pending_resends += u8::from(is_resend);
                    Ok(answered(Answer::Lost))
                })?;
                step("answer lost, never applied", &|_| Ok(answered(Answer::Lost)))?;
                step("rejected", &|_| Ok(answered(Answer::Rejected)))?;
            }
            Worker::Claimed { job, token, age } => {
                step("gate closed", &|_| Ok(Worker::Answered { job, token, age, answer: Answer::NotSent }))?;
            }
            Worker::Answered { job, token, answer, .. } => {
                step("result recorded", &|after| {
                    after.record(job, token, answer, protocol);
                    Ok(Worker::Idle)
                })?;
            }
            Worker::Reading { job, token, age, is_only_suspect } => {
                let conclusion = self.conclude(job, age, is_only_suspect, protocol);
                let is_processing = self.processing.is_some();
                step("read", &|_| Ok(Worker::HasRead { job, token, age, conclusion, is_processing }))?;
            }
            Worker::HasRead { job, token, age, conclusion, is_processing } => {
                step("read recorded", &|after| {
                    after.record_read(job, token, age, conclusion, is_processing, protocol);
                    Ok(Worker::Idle)
                })?;
            }
        }
        if self.crashes > 0 {
            step("crashed", &|after| {
                after.crashes -= 1;
                Ok(Worker::Idle)
            })?;
        }
        Ok(())
    }

    fn receive(&mut self, job: usize, protocol: Protocol) -> Worker {
        self.jobs[job].deliveries -= 1;
        if self.jobs[job].row != Row::Absent {
            return Worker::Idle;
        }
        self.jobs[job].row = Row::Waiting;
        // A customer who is busy is waited for; the scheduler takes the job up.
        match self.jobs.iter().any(|job| holds_slot(job.row)) {
            true => Worker::Idle,
            false => self.claim(job, protocol),
        }
    }

    /// The slot, and then what the customer's other job allows.
    fn claim(&mut self, job: usize, protocol: Protocol) -> Worker {
        self.jobs[job].token += 1;
        let own = self.past_job(job);
        let is_resend = self.jobs[job].unknown > 0;
        let asking = Asking { job_id: own.job_id, age_key: own.age_key(), content_hmac: None, is_resend };
        self.jobs[job].row = match decide(&asking, &self.customer(), protocol.lateness, UPDATE_LIMIT) {
            Decision::Go => Row::Submitting,
            Decision::Wait => Row::Waiting,
            Decision::Superseded { .. } => Row::Superseded,
            Decision::NewerFateUnknown { .. } => Row::NewerFateUnknown,
            Decision::LastUpdate => Row::LastUpdate,
            Decision::Duplicate { .. } => unreachable!("their contents differ"),
        };
        if self.jobs[job].row != Row::Submitting {
            return Worker::Idle;
        }
        self.jobs[job].since_begin = 0;
        Worker::Claimed { job, token: self.jobs[job].token, age: 0 }
    }

    /// What the records say of the customer. The updates that reads have cleared already, and those reads,
    /// are left out: more of either changes nothing but the budget.
    fn customer(&self) -> Customer {
        let jobs = (0..2).filter(|job| self.jobs[*job].row != Row::Absent).map(|job| self.past_job(job));
        let cleared = self.jobs.iter().map(|job| job.accepted + job.unknown - u8::from(job.is_suspect));
        Customer {
            jobs: jobs.collect(),
            updates_elsewhere: cleared.map(u32::from).sum(),
            ..Customer::default()
        }
    }

    fn past_job(&self, place: usize) -> PastJob {
        use state::State;
        let job = self.jobs[place];
        let (state, reason_code) = match job.row {
            Row::Absent | Row::Submitting => (State::Submitting, None),
            Row::Waiting => (State::Waiting, None),
            Row::Unknown { .. } => (State::Unknown, None),
            Row::Accepted => (State::Accepted, None),
            Row::Rejected => (State::Rejected, None),
            Row::Superseded => (State::Superseded, None),
            Row::FateUnknown => (State::NeedsReview, Some(FATE_UNKNOWN.to_owned())),
            Row::LastUpdate | Row::NewerFateUnknown => (State::NeedsReview, None),
        };
        let update = PastUpdate {
            number: 1,
            // An acceptance is the last of a job's updates.
            verdict: Some(if job.accepted > 0 { VerdictKind::Accepted } else { VerdictKind::Unknown }),
            is_accepted_late: false,
            begun_at: ago(job.since_end),
            signed_at: ago(job.since_end),
            ended_at: Some(ago(job.since_end)),
        };
        PastJob {
            job_id: id(place),
            state,
            reason_code,
            evidence: None,
            requested_at: ago(AGE_MAX) + TICK * u32::try_from(place).expect("two jobs"),
            received_at: NOW,
            content_hmac: None,
            attempts: 1,
            updates: Vec::from_iter(job.is_suspect.then_some(update)),
        }
    }

    fn leave_unknown(&mut self, job: usize) {
        let job = &mut self.jobs[job];
        job.row = Row::Unknown { due_in: LOOK_AFTER, confirmed: 0, since_confirmation: 0 };
        (job.unknown, job.since_end, job.is_suspect) = (job.unknown + 1, 0, true);
    }

    fn record(&mut self, job: usize, token: u8, answer: Answer, protocol: Protocol) {
        let verdict = match answer {
            Answer::Accepted => Verdict::Accepted(Acceptance::default()),
            Answer::Rejected => Verdict::Rejected(Rejection::FieldRefused),
            Answer::Lost => Verdict::Unknown(FailurePoint::TimedOut),
            Answer::NotSent => Verdict::NotSent(NotSent::WindowClosed),
        };
        let is_ours = self.jobs[job].token == token || !protocol.compares_tokens;
        if self.jobs[job].row == Row::Submitting && is_ours {
            match next(&verdict, History::default(), &SCHEDULE, 0.5) {
                Next::End(Outcome::Accepted(_)) => {
                    let job = &mut self.jobs[job];
                    (job.row, job.accepted, job.since_end, job.is_suspect) =
                        (Row::Accepted, job.accepted + 1, 0, true);
                }
                Next::End(_) => self.jobs[job].row = Row::Rejected,
                Next::Wait(_) => self.jobs[job].row = Row::Waiting,
                Next::ReadBack => self.leave_unknown(job),
            }
            return;
        }
        // Too late to decide; but a known acceptance is not thrown away.
        let may_end = matches!(
            self.jobs[job].row,
            Row::Unknown { .. } | Row::Waiting | Row::FateUnknown | Row::LastUpdate
        );
        if answer == Answer::Accepted && may_end {
            self.jobs[job].row = Row::Accepted;
            self.jobs[job].token += 1;
        }
    }

    fn claim_read(&mut self, job: usize, protocol: Protocol) -> Worker {
        self.jobs[job].token += 1;
        if let Row::Unknown { due_in, .. } = &mut self.jobs[job].row {
            *due_in = LEASE;
        }
        let is_only_suspect =
            !protocol.knows_others || self.customer().is_only_suspect(id(job), protocol.lateness);
        Worker::Reading { job, token: self.jobs[job].token, age: 0, is_only_suspect }
    }

    /// What a read proves whose answer comes now, `age` after it was claimed.
    fn conclude(&self, job: usize, age: u8, is_only_suspect: bool, protocol: Protocol) -> u8 {
        let Job { row: Row::Unknown { confirmed, since_confirmation, .. }, .. } = self.jobs[job] else {
            // It was decided meanwhile, and the token will say so.
            return SPENT_LOOK;
        };
        let Job { since_begin, since_end, .. } = self.jobs[job];
        let status = if self.processing.is_some() { "PROCESSING" } else { "FAILED" }.to_owned();
        let evidence = Evidence {
            reading: Reading::Customer(CustomerStatus {
                status,
                failure_reason: None,
                document_type: None,
                dated_at: None,
            }),
            end_to_read: Age::agreed(TICK * u32::from(since_end.saturating_sub(age))),
            begin_to_answer: Age::agreed(TICK * u32::from(since_begin)),
            read_to_answer: TICK * u32::from(age),
            is_only_suspect,
            word_before: None,
            confirmed: u32::from(confirmed),
            confirmation_to_answer: Age::agreed(TICK * u32::from(since_confirmation)),
            confirmation_dated_at: None,
            may_resend: self.customer().budget(UPDATE_LIMIT).allows_resend(),
        };
        let timing = Timing {
            after: TICK,
            window: TICK * u32::from(WINDOW),
            confirmations: protocol.confirmations,
            deadline: TICK * u32::from(AGE_MAX),
            applied_within: TICK * 3,
            read_time_max: Duration::from_secs(11),
            unverified: UnverifiedMeans::Inconclusive,
        };
        match conclude(&evidence, &timing) {
            Conclusion::Applied => APPLIED,
            Conclusion::NotApplied => NOT_APPLIED,
            Conclusion::LastUpdate => LAST_UPDATE,
            Conclusion::Unsettled => UNSETTLED,
            Conclusion::Confirming { after } => CONFIRMING + ticks(after),
            Conclusion::ReadAgain { after } => READ_AGAIN + ticks(after),
        }
    }

    fn record_read(
        &mut self,
        job: usize,
        token: u8,
        age: u8,
        conclusion: u8,
        is_processing: bool,
        protocol: Protocol,
    ) {
        let Row::Unknown { confirmed, since_confirmation, .. } = self.jobs[job].row else { return };
        if self.jobs[job].token != token && protocol.compares_tokens {
            return;
        }
        let again = |due_in| Row::Unknown { due_in, confirmed, since_confirmation };
        self.jobs[job].row = match conclusion {
            APPLIED => Row::Accepted,
            NOT_APPLIED => Row::Waiting,
            LAST_UPDATE => Row::LastUpdate,
            UNSETTLED => Row::FateUnknown,
            CONFIRMING..READ_AGAIN => Row::Unknown {
                due_in: conclusion - CONFIRMING,
                confirmed: confirmed + 1,
                since_confirmation: age,
            },
            READ_AGAIN.. => again(conclusion - READ_AGAIN),
            _ => again(0),
        };
        // Before the read began, and after whatever ended in the same tick.
        let at = ago(age) + Duration::from_secs(1);
        let read = PastRead {
            job_id: id(job),
            purpose: Purpose::ReadBack,
            status: Some(if is_processing { "PROCESSING" } else { "FAILED" }.to_owned()),
            at,
            read_at: Some(at),
            dated_at: None,
            conclusion: match conclusion {
                NOT_APPLIED => Some(ConclusionKind::NotApplied),
                LAST_UPDATE => Some(ConclusionKind::LastUpdate),
                _ => None,
            },
        };
        for other in 0..2 {
            let past = self.past_job(other);
            self.jobs[other].is_suspect =
                past.may_be_in_verification(std::slice::from_ref(&read), protocol.lateness);
        }
    }

    fn apply(&mut self, job: usize, is_resend: bool) -> Result<(), Broken> {
        self.jobs[job].applied += 1;
        self.processing = Some(0);
        let nth: u32 = self.jobs.iter().map(|job| u32::from(job.applied)).sum();
        if self.jobs[job].applied > 1 {
            return Err("a job was applied twice");
        }
        if job == OLDER && self.jobs[NEWER].row == Row::Accepted {
            return Err("an update was applied after a newer one was accepted");
        }
        if is_resend && nth == UPDATE_LIMIT {
            return Err("a resend took the customer's last update");
        }
        Ok(())
    }

    /// Time goes by, and whoever holds something stalls. `None` if that changes nothing, or if
    /// nobody may stall any more.
    fn tick(&self) -> Option<Self> {
        let mut after = *self;
        for worker in &mut after.workers {
            match worker {
                Worker::Idle => continue,
                Worker::Claimed { age, .. }
                | Worker::Answered { age, .. }
                | Worker::Reading { age, .. }
                | Worker::HasRead { age, .. } => {
                    if *age == 0 {
                        after.stalls = after.stalls.checked_sub(1)?;
                    }
                    *age = older_by_a_tick(*age);
                }
            }
        }
        for job in &mut after.jobs {
            if is_in_motion(job.row) || job.is_suspect || job.pending > 0 {
                job.since_begin = older_by_a_tick(job.since_begin);
                job.since_end = older_by_a_tick(job.since_end);
            }
            if job.since_end > LATEST_APPLY && job.row != Row::Submitting {
                (job.pending, job.pending_resends) = (0, 0);
            }
            if let Row::Unknown { due_in, since_confirmation, .. } = &mut job.row {
                *due_in = due_in.saturating_sub(1);
                *since_confirmation = older_by_a_tick(*since_confirmation);
            }
        }
        after.processing = after.processing.map(older_by_a_tick);
        (after != *self).then_some(after)
    }

    /// What must hold where nothing more can happen.
    fn check_end(&self) -> Result<(), Broken> {
        for job in &self.jobs {
            match job.row {
                Row::Absent => return Err("a job was lost"),
                row if is_in_motion(row) => return Err("a row is in motion without an alarm"),
                Row::Accepted if job.applied == 0 => return Err("an accepted job was not applied"),
                Row::FateUnknown | Row::Accepted => {}
                _ if job.applied > 0 => return Err("a job that ended otherwise was applied"),
                _ => {}
            }
        }
        Ok(())
    }
}

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

fn ago(ticks: u8) -> OffsetDateTime {
    NOW - TICK * u32::from(ticks)
}

fn id(job: usize) -> Uuid {
    Uuid::from_u128(u128::try_from(job).expect("two jobs"))
}

/// Conclusions as numbers, so that a state is small: the last two carry their ticks.
const SPENT_LOOK: u8 = 0;
const APPLIED: u8 = 1;
const NOT_APPLIED: u8 = 2;
const LAST_UPDATE: u8 = 3;
const UNSETTLED: u8 = 4;
const CONFIRMING: u8 = 10;
const READ_AGAIN: u8 = 20;

fn ticks(duration: Duration) -> u8 {
    u8::try_from(duration.as_secs().div_ceil(TICK.as_secs())).expect("few ticks")
}

/// Visits every state. Returns how many there are, or the shortest way to a broken promise.
///
/// One crash or one stall: more was searched once, two deliveries each, a crash and two stalls,
/// in 34 million states, and nothing more was found.
fn search(protocol: Protocol) -> Result<usize, String> {
    Ok(search_from(State::first(1, 0), protocol)? + search_from(State::first(0, 1), protocol)?)
}

fn search_from(first: State, protocol: Protocol) -> Result<usize, String> {
    let mut states = vec![(first, 0, "")];
    let mut seen = HashSet::from([first]);
    let mut at = 0;
    while at < states.len() {
        let state = states[at].0;
        let steps = match state.steps(protocol) {
            Ok(steps) if steps.is_empty() => state.check_end().map(|()| steps),
            steps => steps,
        };
        let steps = steps.map_err(|broken| tell(&states, at, broken))?;
        for (what, after) in steps {
            if seen.insert(after) {
                states.push((after, at, what));
            }
        }
        at += 1;
    }
    Ok(states.len())
}

fn tell(states: &[(State, usize, &'static str)], mut at: usize, broken: Broken) -> String {
    let mut way = Vec::new();
    while at != 0 {
        let (state, before, what) = states[at];
        way.push(format!("  {what}: {:?} {:?}", state.jobs.map(|job| job.row), state.workers));
        at = before;
    }
    way.reverse();
    format!("{broken}, after {} steps:\n{}", way.len(), way.join("\n"))
}

#[track_caller]
fn check_broken(protocol: Protocol, expected: Broken) {
    let way = search(protocol).expect_err("a broken promise");
    assert!(way.starts_with(expected), "{way}");
    println!("{way}");
}

#[test]
fn the_protocol_keeps_its_promises_in_every_state() {
    let states = search(PROTOCOL).unwrap_or_else(|way| panic!("{way}"));
    println!("{states} states");
    assert!(states > 10_000, "the search has lost its way after {states} states");
}

#[test]
fn without_its_tokens_the_protocol_breaks() {
    search(Protocol { compares_tokens: false, ..PROTOCOL }).expect_err("a broken promise");
}

#[test]
fn with_one_read_instead_of_two_a_late_update_is_sent_again() {
    check_broken(Protocol { confirmations: 1, ..PROTOCOL }, "a job was applied twice");
}

/// If it did, the update that was applied late would be taken for another's: the search finds it.
#[test]
fn a_read_before_a_late_update_must_not_clear_it() {
    check_broken(Protocol { lateness: Duration::ZERO, ..PROTOCOL }, "an accepted job was not applied");
}

/// If it were, the other's verification would be taken for that of ours.
#[test]
fn an_update_of_the_other_job_must_not_be_forgotten() {
    check_broken(Protocol { knows_others: false, ..PROTOCOL }, "an accepted job was not applied");
}
