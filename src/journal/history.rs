//! Whether what the tables say of a job can have happened, and whether it is what was written:
//! pure, over rows that were read. Every history that the protocol allows passes.

use serde::Serialize;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::chain::{Entry, Head, Subject};
use super::seal::Fingerprinter;
use crate::domain::verification::is_final;

/// What is wrong with a job's history.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The job.
    pub job_id: Uuid,
    /// Which of its rows.
    pub place: String,
    /// What is wrong with it.
    pub what: String,
    /// What that means, and what to do.
    pub remedy: &'static str,
}

/// What an examination came to.
#[derive(Debug)]
pub(super) struct Examined {
    pub findings: Vec<Finding>,
    /// Whether the chain is what was written; none where there is none, or a part of it is missing.
    pub is_verified: Option<bool>,
}

#[derive(Clone, Debug)]
pub(super) struct Submission {
    pub job_id: Uuid,
    pub customer_id: Option<Uuid>,
    pub state: String,
    pub reason_code: Option<String>,
    pub evidence: Option<String>,
    pub verification_status: Option<String>,
    pub failure_reason: Option<String>,
    /// Whether the verification was seen after the acceptance, and is not looked at any more.
    pub is_followed_to_its_end: bool,
    pub attempts: i32,
    pub chain: Option<Vec<u8>>,
    pub entries: i32,
}

#[derive(Clone, Debug)]
pub(super) struct Attempt {
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
pub(super) struct Observation {
    pub id: i64,
    pub job_id: Uuid,
    pub customer_id: Uuid,
    pub at: OffsetDateTime,
    pub purpose: String,
    pub status: Option<String>,
    pub failure_reason: Option<String>,
    pub error: Option<String>,
    pub conclusion: Option<String>,
    pub entry: Option<i32>,
}

/// All that the tables say of a job.
#[derive(Clone, Debug)]
pub(super) struct History {
    pub submission: Submission,
    /// In order.
    pub attempts: Vec<Attempt>,
    /// In order.
    pub observations: Vec<Observation>,
    /// What people did to it: `replay`, `resolve`.
    pub interventions: Vec<String>,
}

const REMOVED: &str = "rows were removed by hand; a backup from before has them";
const ADDED: &str = "a row was added by hand, or its place was changed; compare with a backup";
const CHANGED: &str =
    "a value was changed by hand, in these rows or in the submission; compare with a backup";
const IMPOSSIBLE: &str =
    "the row was changed by hand, or a bug of the worker's; compare with a backup and the logs";

/// Rows are dated by the beginnings of their transactions, of which none lasts longer.
const TRANSACTION_TIME_MAX: Duration = Duration::seconds(30);

impl History {
    /// One of which only the submission is known yet.
    pub fn of(submission: Submission) -> Self {
        Self { submission, attempts: Vec::new(), observations: Vec::new(), interventions: Vec::new() }
    }

    /// Looks for everything that is wrong.
    pub fn examine(&self, fingerprinter: &Fingerprinter) -> Examined {
        let mut findings = Findings { job_id: self.submission.job_id, found: Vec::new() };
        self.look_at_counts(&mut findings);
        let is_whole = self.look_at_places(&mut findings);
        let is_verified = (is_whole && self.submission.entries > 0).then(|| self.is_verified(fingerprinter));
        if is_verified == Some(false) {
            let place = match self.submission.entries {
                1 => "entry 1 of 1".to_owned(),
                entries => format!("entries 1 to {entries}"),
            };
            findings.add(place, "the chain does not verify", CHANGED);
        }
        self.look_at_attempts(&mut findings);
        self.look_at_state(&mut findings);
        self.look_at_evidence(&mut findings);
        self.look_at_verification(&mut findings);
        Examined { findings: findings.found, is_verified }
    }

    fn look_at_counts(&self, findings: &mut Findings) {
        let counted = self.submission.attempts;
        if i32::try_from(self.attempts.len()) != Ok(counted) {
            let what = format!("{counted} counted, {} there", self.attempts.len());
            findings.add("attempts", what, REMOVED);
        }
        for (attempt, number) in self.attempts.iter().zip(1..) {
            if attempt.number != number {
                findings.add(format!("attempt {}", attempt.number), "is out of turn", REMOVED);
                return;
            }
        }
    }

    /// What has its place in the chain, in order.
    fn entries(&self) -> Vec<(i32, String, Entry<'_>)> {
        let mut entries = Vec::with_capacity(self.attempts.len() + self.observations.len());
        for attempt in &self.attempts {
            let place = format!("attempt {}", attempt.number);
            if let (Some(entry), Some(closed)) = (attempt.entry, attempt.closed()) {
                entries.push((entry, place.clone(), closed));
            }
            if let (Some(entry), Some(verdict)) = (attempt.late_entry, &attempt.late_verdict) {
                let late = Entry::LateVerdict { number: attempt.number, verdict };
                entries.push((entry, format!("{place}, late verdict"), late));
            }
        }
        for observation in &self.observations {
            if let Some(entry) = observation.entry {
                entries.push((entry, format!("observation {}", observation.id), observation.observed()));
            }
        }
        entries.sort_by_key(|(entry, ..)| *entry);
        entries
    }

    /// Whether each entry that is counted is there, once, and nothing else.
    fn look_at_places(&self, findings: &mut Findings) -> bool {
        let before = findings.found.len();
        let counted = self.submission.entries;
        let mut next = 1;
        for (entry, place, _) in self.entries() {
            if entry > counted || entry < 1 {
                let place = format!("entry {entry} ({place})");
                findings.add(place, format!("is none of the {counted} that are counted"), ADDED);
                continue;
            }
            if entry < next {
                findings.add(format!("entry {entry} of {counted} ({place})"), "is there twice", ADDED);
                continue;
            }
            self.tell_missing(next, entry - 1, findings);
            next = entry + 1;
        }
        self.tell_missing(next, counted, findings);
        for attempt in &self.attempts {
            let place = || format!("attempt {}", attempt.number);
            match (attempt.entry, attempt.ended_at) {
                (None, Some(_)) => findings.add(place(), "is closed, and not in the chain", ADDED),
                (Some(_), None) => findings.add(place(), "is open, and has a place in the chain", IMPOSSIBLE),
                _ => {}
            }
            if attempt.late_verdict.is_some() != attempt.late_entry.is_some() {
                let what = "has a late verdict without a place in the chain, or a place without it";
                findings.add(place(), what, ADDED);
            }
        }
        for observation in self.observations.iter().filter(|observation| observation.entry.is_none()) {
            findings.add(format!("observation {}", observation.id), "is not in the chain", ADDED);
        }
        findings.found.len() == before
    }

    fn tell_missing(&self, first: i32, last: i32, findings: &mut Findings) {
        let counted = self.submission.entries;
        match last - first {
            ..0 => {}
            0 => findings.add(format!("entry {first} of {counted}"), "is missing", REMOVED),
            _ => findings.add(format!("entries {first} to {last} of {counted}"), "are missing", REMOVED),
        }
    }

    fn is_verified(&self, fingerprinter: &Fingerprinter) -> bool {
        let Submission { job_id, customer_id, .. } = self.submission;
        let subject = Subject { job_id, customer_id: customer_id.unwrap_or_default() };
        let entries = self.entries();
        let head = entries
            .iter()
            .fold(Head::default(), |head, (_, _, entry)| head.after(fingerprinter, subject, entry));
        self.submission.chain.as_deref() == Some(&head.mac)
            && self.observations.iter().all(|observation| Some(observation.customer_id) == customer_id)
    }

    /// Attempts follow one another, and none follows one that may have been applied.
    fn look_at_attempts(&self, findings: &mut Findings) {
        for (attempt, next) in self.attempts.iter().zip(self.attempts.iter().skip(1)) {
            let place = || format!("attempt {}", next.number);
            match attempt.ended_at {
                None => findings.add(place(), "began while the one before was open", IMPOSSIBLE),
                Some(ended_at) if next.begun_at + TRANSACTION_TIME_MAX < ended_at => {
                    let remedy = "two workers were at it, or the database's clock was set back; see the logs";
                    findings.add(place(), "began before the one before had ended", remedy);
                }
                Some(_) => {}
            }
            if let (Some(entry), Some(next_entry)) = (attempt.entry, next.entry)
                && entry > next_entry
            {
                findings.add(place(), "was closed before the one before", IMPOSSIBLE);
            }
            let what = match attempt.verdict.as_deref() {
                Some("accepted") => "follows one that was accepted",
                Some("rejected") => "follows one that was rejected",
                Some("unknown") if !self.was_cleared(attempt) => {
                    "follows one of unknown fate that no look and no person has cleared"
                }
                _ => continue,
            };
            findings.add(place(), what, "an update may have been spent twice; ask the provider");
        }
    }

    /// Whether a look or a person found that an attempt of unknown fate was not applied.
    fn was_cleared(&self, attempt: &Attempt) -> bool {
        self.has_intervention("resolve")
            || self.observations.iter().any(|seen| {
                matches!(seen.conclusion.as_deref(), Some("not_applied" | "last_update"))
                    && seen.entry > attempt.entry
            })
    }

    fn has_intervention(&self, action: &str) -> bool {
        self.interventions.iter().any(|done| done == action)
    }

    fn concluded(&self, conclusion: &str) -> bool {
        self.observations.iter().any(|seen| seen.conclusion.as_deref() == Some(conclusion))
    }

    /// The state goes with the last attempt.
    fn look_at_state(&self, findings: &mut Findings) {
        let Submission { state, reason_code, .. } = &self.submission;
        let last = self.attempts.last();
        let verdict = last.and_then(|last| last.verdict.as_deref());
        let is_open = last.is_some_and(|last| last.ended_at.is_none());
        let mut is_impossible =
            |what: &str| findings.add("submission", format!("is {state}, and {what}"), IMPOSSIBLE);
        match (state.as_str(), is_open) {
            ("submitting", false) => is_impossible("no attempt is open"),
            ("submitting", true) | (_, false) => {}
            (_, true) => is_impossible("its last attempt is open"),
        }
        match (state.as_str(), reason_code.as_deref()) {
            ("unknown", _) if verdict != Some("unknown") => {
                is_impossible("its last attempt is not of unknown fate");
            }
            ("waiting", _) if last.is_some_and(|last| last.is_in_doubt() && !self.was_cleared(last)) => {
                is_impossible("no look and no person has cleared its last attempt, which may be applied");
            }
            ("rejected", Some("by_person")) if !self.has_intervention("resolve") => {
                is_impossible("no person decided that");
            }
            ("rejected", Some("by_person")) => {}
            ("rejected", _) if verdict != Some("rejected") && !self.concluded("rejected") => {
                is_impossible("neither an answer nor a look said so");
            }
            ("exhausted", Some("not_applied")) if !self.has_intervention("resolve") => {
                is_impossible("no person found that");
            }
            ("exhausted", Some("attempts"))
            | ("needs_review", Some("last_update" | "refused_only_for_this_job"))
                if last.is_none() =>
            {
                is_impossible("no attempt was made");
            }
            ("invalid", _) if last.is_some() || !self.observations.is_empty() => {
                is_impossible("has a history");
            }
            _ => {}
        }
        if reason_code.as_deref() == Some("replayed") && !self.has_intervention("replay") {
            is_impossible("no person has it sent again");
        }
        let said = |verdict: &str| self.attempts.iter().any(|a| a.verdict.as_deref() == Some(verdict));
        if state != "accepted" && (said("accepted") || self.concluded("applied")) {
            is_impossible("an attempt was accepted, or a look found it applied");
        }
        if state != "rejected" && said("rejected") {
            is_impossible("an attempt was rejected");
        }
    }

    /// An acceptance goes with what says so.
    fn look_at_evidence(&self, findings: &mut Findings) {
        let Submission { state, evidence, .. } = &self.submission;
        let accepted = |of: fn(&Attempt) -> &Option<String>| {
            self.attempts.iter().filter(|attempt| of(attempt).as_deref() == Some("accepted")).count()
        };
        let answers = accepted(|attempt| &attempt.verdict);
        if answers > 1 {
            findings.add(
                "attempts",
                format!("{answers} were accepted"),
                "an update was spent twice; ask the provider",
            );
        }
        let (name, is_there) = match (state.as_str(), evidence.as_deref()) {
            ("accepted", Some(name)) => {
                let is_there = match name {
                    "response" => answers > 0,
                    "read_back" => self.concluded("applied"),
                    "late" => accepted(|attempt| &attempt.late_verdict) > 0,
                    "person" => self.has_intervention("resolve"),
                    _ => false,
                };
                (name, is_there)
            }
            ("accepted", None) => ("none", false),
            (_, None) => return,
            (_, Some(name)) => (name, false),
        };
        if !is_there {
            let what = format!("is {state} with evidence {name}, and nothing of it is there");
            findings.add("submission", what, IMPOSSIBLE);
        } else if answers > 0 && name != "response" {
            let what = format!("is accepted with evidence {name}, and an attempt was answered so");
            findings.add("submission", what, IMPOSSIBLE);
        }
    }

    /// A verification's end goes with a look or a webhook that said so.
    fn look_at_verification(&self, findings: &mut Findings) {
        let Submission { verification_status: Some(status), failure_reason, .. } = &self.submission else {
            return;
        };
        if !self.submission.is_followed_to_its_end || !is_final(status) {
            return;
        }
        let said = |seen: &Observation| {
            matches!(seen.purpose.as_str(), "verification" | "webhook")
                && seen.status.as_ref() == Some(status)
                && seen.failure_reason == *failure_reason
        };
        if !self.observations.iter().any(said) {
            let what = format!("its verification ended {status}, and neither a look nor a webhook said so");
            findings.add("submission", what, IMPOSSIBLE);
        }
    }
}

struct Findings {
    job_id: Uuid,
    found: Vec<Finding>,
}

impl Findings {
    fn add(&mut self, place: impl Into<String>, what: impl Into<String>, remedy: &'static str) {
        self.found.push(Finding { job_id: self.job_id, place: place.into(), what: what.into(), remedy });
    }
}

impl Finding {
    /// Rows of a job that has no submission.
    pub(super) fn orphans(job_id: Uuid, attempts: i64, observations: i64, interventions: i64) -> Self {
        let kinds =
            [(attempts, "attempts"), (observations, "observations"), (interventions, "interventions")];
        let there: Vec<String> = kinds
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, of)| format!("{of}: {count}"))
            .collect();
        Self {
            job_id,
            place: "submission".to_owned(),
            what: format!("is missing, and rows of it are there ({})", there.join(", ")),
            remedy: "it was removed by hand, or the rows were added; compare with a backup",
        }
    }

    /// A job that is not there.
    pub(super) fn unknown(job_id: Uuid) -> Self {
        Self {
            job_id,
            place: "submission".to_owned(),
            what: "is not there".to_owned(),
            remedy: "is the job still in the queue, or was it dead-lettered? else it was removed by hand",
        }
    }
}

impl Attempt {
    fn is_in_doubt(&self) -> bool {
        self.verdict.as_deref() == Some("unknown")
    }

    fn closed(&self) -> Option<Entry<'_>> {
        Some(Entry::Attempt {
            number: self.number,
            worker: &self.worker,
            begun_at: self.begun_at,
            signed_at: self.signed_at,
            ended_at: self.ended_at?,
            verdict: self.verdict.as_deref()?,
            detail: self.detail.as_deref(),
            http_status: self.http_status,
            provider_message: self.provider_message.as_deref(),
            error: self.error.as_deref(),
            duration_ms: self.duration_ms,
        })
    }
}

impl Observation {
    fn observed(&self) -> Entry<'_> {
        Entry::Observation {
            at: self.at,
            purpose: &self.purpose,
            status: self.status.as_deref(),
            failure_reason: self.failure_reason.as_deref(),
            error: self.error.as_deref(),
            conclusion: self.conclusion.as_deref(),
        }
    }
}
