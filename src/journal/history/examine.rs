//! Whether a job's history is what was written: its entries against its chain. What it says is another
//! question, and the domain's.

use serde::Serialize;
use uuid::Uuid;

use crate::domain::history::{Attempt, Fault, History, Observation, Submission};
use crate::domain::state::VerdictKind;
use crate::journal::history::chain::{self, Entry, Head, Subject};
use crate::seal::Fingerprinter;

/// What is wrong with a job's history.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub job_id: Uuid,
    pub place: String,
    /// What is wrong with it.
    pub what: String,
    /// What that means, and what to do.
    pub remedy: &'static str,
}

/// What an examination came to.
#[derive(Debug)]
pub(crate) struct Examined {
    pub findings: Vec<Finding>,
    /// Whether the chain is what was written; none where there is none, or a part of it is missing.
    pub is_verified: Option<bool>,
}

const REMOVED: &str = "rows were removed by hand; a backup from before has them";
const ADDED: &str = "a row was added by hand, or its place was changed; compare with a backup";
const CHANGED: &str =
    "a value was changed by hand, in these rows or in the submission; compare with a backup";
const IMPOSSIBLE: &str =
    "the row was changed by hand, or a bug of the worker's; compare with a backup and the logs";

/// Looks for everything that is wrong with a history.
pub(crate) fn examine(history: &History, fingerprinter: &Fingerprinter) -> Examined {
    let Submission { job_id, entries, .. } = history.submission;
    let mut findings = Findings { job_id, found: Vec::new() };
    let is_whole = examine_places(history, &mut findings);
    let is_verified = (is_whole && entries > 0).then(|| verifies(history, fingerprinter));
    if is_verified == Some(false) {
        let place = match entries {
            1 => "entry 1 of 1".to_owned(),
            entries => format!("entries 1 to {entries}"),
        };
        findings.add(place, "the chain does not verify", CHANGED);
    }
    for Fault { place, what, remedy } in history.impossible() {
        findings.add(place, what, remedy);
    }
    Examined { findings: findings.found, is_verified }
}

/// What has its place in the chain, in order.
fn entries(history: &History) -> Vec<(i32, String, Entry<'_>)> {
    let mut entries = Vec::with_capacity(history.attempts.len() + history.observations.len());
    for attempt in &history.attempts {
        let place = format!("attempt {}", attempt.number);
        if let (Some(entry), Some(closed)) = (attempt.entry, closed(attempt, &history.submission)) {
            entries.push((entry, place.clone(), closed));
        }
        if let (Some(entry), Some(verdict)) = (attempt.late_entry, &attempt.late_verdict) {
            let late = Entry::LateVerdict { number: attempt.number, verdict };
            entries.push((entry, format!("{place}, late verdict"), late));
        }
    }
    for observation in &history.observations {
        if let Some(entry) = observation.entry {
            entries.push((entry, format!("observation {}", observation.id), observed(observation)));
        }
    }
    entries.sort_by_key(|(entry, ..)| *entry);
    entries
}

/// Whether each entry that is counted is there, once, and nothing else.
fn examine_places(history: &History, findings: &mut Findings) -> bool {
    let before = findings.found.len();
    let counted = history.submission.entries;
    let mut next = 1;
    for (entry, place, _) in entries(history) {
        if entry > counted || entry < 1 {
            let place = format!("entry {entry} ({place})");
            findings.add(place, format!("is none of the {counted} that are counted"), ADDED);
            continue;
        }
        if entry < next {
            findings.add(format!("entry {entry} of {counted} ({place})"), "is there twice", ADDED);
            continue;
        }
        tell_missing(next, entry - 1, counted, findings);
        next = entry + 1;
    }
    tell_missing(next, counted, counted, findings);
    for attempt in &history.attempts {
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
    for observation in history.observations.iter().filter(|observation| observation.entry.is_none()) {
        findings.add(format!("observation {}", observation.id), "is not in the chain", ADDED);
    }
    findings.found.len() == before
}

fn tell_missing(first: i32, last: i32, counted: i32, findings: &mut Findings) {
    match last - first {
        ..0 => {}
        0 => findings.add(format!("entry {first} of {counted}"), "is missing", REMOVED),
        _ => findings.add(format!("entries {first} to {last} of {counted}"), "are missing", REMOVED),
    }
}

fn verifies(history: &History, fingerprinter: &Fingerprinter) -> bool {
    let Submission { job_id, customer_id, ref chain, .. } = history.submission;
    let subject = Subject { job_id, customer_id: customer_id.unwrap_or_default() };
    let head = entries(history)
        .iter()
        .fold(Head::default(), |head, (_, _, entry)| head.after(fingerprinter, subject, entry));
    chain.as_deref() == Some(&head.mac)
        && history.observations.iter().all(|observation| Some(observation.customer_id) == customer_id)
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
    pub(crate) fn orphans(job_id: Uuid, attempts: i64, observations: i64, interventions: i64) -> Self {
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
    pub(crate) fn unknown(job_id: Uuid) -> Self {
        Self {
            job_id,
            place: "submission".to_owned(),
            what: "is not there".to_owned(),
            remedy: "is the job still in the queue, or was it dead-lettered? else it was removed by hand",
        }
    }
}

fn closed<'a>(attempt: &'a Attempt, submission: &'a Submission) -> Option<Entry<'a>> {
    let verdict = attempt.verdict.as_deref()?;
    let reference =
        submission.provider_reference.as_deref().filter(|_| verdict == VerdictKind::Accepted.name());
    Some(Entry::Attempt {
        number: attempt.number,
        worker: &attempt.worker,
        begun_at: attempt.begun_at,
        signed_at: attempt.signed_at,
        ended_at: attempt.ended_at?,
        verdict,
        detail: attempt.detail.as_deref().or(reference),
        http_status: attempt.http_status,
        provider_message: attempt.provider_message.as_deref(),
        error: attempt.error.as_deref(),
        duration_ms: attempt.duration_ms,
    })
}

fn observed(observation: &Observation) -> Entry<'_> {
    Entry::Observation(chain::Observation {
        at: observation.at,
        purpose: &observation.purpose,
        status: observation.status.as_deref(),
        failure_reason: observation.failure_reason.as_deref(),
        error: observation.error.as_deref(),
        conclusion: observation.conclusion.as_deref(),
        document_types: observation.document_types.as_deref(),
    })
}
