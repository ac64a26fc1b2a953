//! What is written, as the rows will have it, and what comes back.

use std::borrow::Cow;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

use crate::clock::Moment;
use crate::domain::outcome::{History, Outcome};
use crate::domain::precedence::Asking;
use crate::domain::state::{State, WaitingFor};
use crate::domain::verdict::{Acceptance, Verdict};
use crate::journal::history::chain::{Entry, Head, Subject};
use crate::seal::Fingerprinter;

/// The right to make one attempt now.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    pub job_id: Uuid,
    pub customer_id: Uuid,
    /// Grows with every claim of the job; fences out whoever held an older one.
    pub token: i64,
    pub attempt: i32,
    pub history: History,
    /// No later than that, by this machine's clock, the job was last refused as somebody who may not ask.
    pub refused: Option<Instant>,
    /// When this attempt's send window began.
    pub t0: Moment,
    /// When it began, by the database's clock.
    pub begun_at: OffsetDateTime,
    /// Where the job's chain stood then.
    pub head: Head,
}

/// The limits that the journal decides by.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long a claim lasts.
    pub claim_lease: Duration,
    /// From an attempt's end of unknown fate to the first look at the customer.
    pub read_back_after: Duration,
    /// A verification lasts at least so long, and nothing is applied later after an attempt's end.
    pub read_back_window: Duration,
    /// How many updates the provider allows a customer.
    pub customer_updates: u32,
    /// From an acceptance to the first look at the verification.
    pub verification_after: Duration,
}

/// How a new job is let in.
#[derive(Clone, Copy, Debug)]
pub enum Admission {
    /// It is claimed and its first attempt begun, if its customer is free.
    Claim(Moment),
    /// It waits, due at once.
    Park(WaitingFor),
}

/// What became of a valid job.
#[derive(Debug)]
pub enum Opened {
    /// It is ours to submit, and its first attempt is begun.
    Claimed(Claim),
    Parked,
    /// It ended at once, for another job of its customer.
    Ended(Outcome),
    Known,
    /// Its `job_id` is taken by another content.
    Conflict,
    /// The database cannot hold one of its values.
    Refused,
}

/// What is expected of the `job_id`s and the customers' slots of new jobs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Slots {
    /// None is taken. If one is, nothing is written: a unique violation.
    Free,
    /// Some may be taken, and nothing is written of those. Postgres looks each of them up before
    /// it inserts, holds a lock of its own while it does, and logs that it did.
    MaybeTaken,
}

/// A job as its row will have it.
pub(crate) struct NewRow {
    pub job_id: Uuid,
    pub customer_id: Uuid,
    pub document_type: String,
    pub document_number_last4: String,
    pub content_hmac: [u8; 32],
    pub requested_at: OffsetDateTime,
    pub received_at: OffsetDateTime,
    pub expires_at: Option<OffsetDateTime>,
    pub correlation_id: Option<String>,
    pub sealed: Vec<u8>,
    /// When the send window of its first attempt began, if it is to be claimed.
    pub t0: Option<Moment>,
}

impl NewRow {
    /// The claim that goes with its first attempt. A new job has no history yet; where something
    /// was added to it meanwhile, the attempt's result is not written before that was looked at.
    pub fn claim(&self, begun_at: OffsetDateTime) -> Claim {
        Claim {
            job_id: self.job_id,
            customer_id: self.customer_id,
            token: 1,
            attempt: 1,
            history: History::default(),
            refused: None,
            t0: self.t0.unwrap_or_else(Moment::now),
            begun_at,
            head: Head::default(),
        }
    }

    /// By which a customer's jobs are ordered; the greatest is the newest.
    pub fn age_key(&self) -> (OffsetDateTime, OffsetDateTime, Uuid) {
        (self.requested_at, self.received_at, self.job_id)
    }

    pub fn candidate(&self) -> Candidate {
        Candidate {
            job_id: self.job_id,
            customer_id: self.customer_id,
            requested_at: self.requested_at,
            received_at: self.received_at,
            content_hmac: Some(self.content_hmac.to_vec()),
            is_resend: false,
        }
    }
}

/// A job that has its customer's slot, before it may use it.
pub(crate) struct Candidate {
    pub job_id: Uuid,
    pub customer_id: Uuid,
    pub requested_at: OffsetDateTime,
    pub received_at: OffsetDateTime,
    pub content_hmac: Option<Vec<u8>>,
    pub is_resend: bool,
}

impl Candidate {
    pub fn asking(&self) -> Asking<'_> {
        Asking {
            job_id: self.job_id,
            age_key: (self.requested_at, self.received_at, self.job_id),
            content_hmac: self.content_hmac.as_deref(),
            is_resend: self.is_resend,
        }
    }
}

/// A time as Postgres keeps it, so that it is compared with what it keeps.
pub(crate) fn in_micros(at: OffsetDateTime) -> OffsetDateTime {
    at.replace_nanosecond(at.nanosecond() / 1_000 * 1_000).unwrap_or(at)
}

/// An attempt about to begin.
pub(crate) struct Beginning {
    pub job_id: Uuid,
    pub attempt: i32,
    pub t0: Moment,
}

pub(crate) struct TakenSlot {
    pub job_id: Uuid,
    pub customer_id: Uuid,
    pub token: i64,
    pub attempt: i32,
    pub retries: i32,
    pub sealed: Vec<u8>,
    pub requested_at: OffsetDateTime,
    pub received_at: OffsetDateTime,
    pub content_hmac: Option<Vec<u8>>,
    pub correlation_id: Option<String>,
    pub misconfigured: i64,
    /// How many seconds before `begun_at` the last of those was recorded.
    pub refused_before: Option<f64>,
    pub unknown: i64,
    pub is_expired: bool,
    pub begun_at: OffsetDateTime,
    pub chain: Option<[u8; 32]>,
    pub entries: i32,
}

impl TakenSlot {
    pub fn candidate(&self) -> Candidate {
        Candidate {
            job_id: self.job_id,
            customer_id: self.customer_id,
            requested_at: self.requested_at,
            received_at: self.received_at,
            content_hmac: self.content_hmac.clone(),
            is_resend: self.unknown > 0,
        }
    }
}

/// What an attempt came to.
#[derive(Debug)]
pub struct AttemptResult {
    pub verdict: Verdict,
    /// The HTTP status, where one was seen.
    pub http_status: Option<u16>,
    /// The provider's words on a failure.
    pub provider_message: Option<String>,
    /// What went wrong on our side.
    pub error: Option<&'static str>,
    pub duration: Duration,
}

/// An attempt's result with what follows from it, as the rows will have it.
#[derive(Clone)]
pub(crate) struct Closing {
    pub claim: Claim,
    pub verdict: &'static str,
    pub detail: Option<&'static str>,
    pub http_status: Option<i32>,
    pub provider_message: Option<String>,
    pub error: Option<&'static str>,
    pub duration_ms: i32,
    pub state: State,
    pub waiting_for: Option<&'static str>,
    pub due_in_seconds: Option<f64>,
    pub retries: i32,
    pub reason_code: Option<&'static str>,
    pub reason: Cow<'static, str>,
    pub keeps_payload: bool,
    pub acceptance: Option<Acceptance>,
}

impl Closing {
    /// Where the job's chain stands once the attempt is closed.
    pub fn head_after(&self, fingerprinter: &Fingerprinter, worker: &str, ended_at: OffsetDateTime) -> Head {
        let claim = &self.claim;
        let subject = Subject { job_id: claim.job_id, customer_id: claim.customer_id };
        let entry = Entry::Attempt {
            number: claim.attempt,
            worker,
            begun_at: claim.begun_at,
            signed_at: claim.t0.wall.into(),
            ended_at,
            verdict: self.verdict,
            detail: self.detail.or(self.acceptance.as_ref().and_then(|a| a.reference.as_deref())),
            http_status: self.http_status,
            provider_message: self.provider_message.as_deref(),
            error: self.error,
            duration_ms: Some(self.duration_ms),
        };
        claim.head.after(fingerprinter, subject, &entry)
    }

    /// Whether it holds words of the provider's.
    pub fn has_texts(&self) -> bool {
        let acceptance = self.acceptance.as_ref();
        self.provider_message.is_some()
            || acceptance.is_some_and(|a| a.reference.is_some() || a.verification_status.is_some())
    }

    pub fn without_texts(&self) -> Self {
        let acceptance = self.acceptance.as_ref().map(|_| Acceptance::default());
        Self { provider_message: None, acceptance, ..self.clone() }
    }

    /// One that leaves the submission in motion, due after `due_in`.
    pub fn in_motion(claim: &Claim, result: &AttemptResult, state: State, due_in: Duration) -> Self {
        let verdict = &result.verdict;
        Self {
            due_in_seconds: Some(due_in.as_secs_f64()),
            reason_code: verdict.detail().or(Some(verdict.name())),
            reason: format!("attempt {} ended {}", claim.attempt, verdict.name()).into(),
            keeps_payload: true,
            ..Self::of(claim, result, state)
        }
    }

    /// One that leaves the submission in `state`, without saying why.
    pub fn of(claim: &Claim, result: &AttemptResult, state: State) -> Self {
        Self {
            claim: *claim,
            verdict: result.verdict.name(),
            detail: result.verdict.detail(),
            http_status: result.http_status.map(i32::from),
            provider_message: result.provider_message.clone(),
            error: result.error,
            duration_ms: millis(result.duration),
            state,
            waiting_for: None,
            due_in_seconds: None,
            retries: 0,
            reason_code: None,
            reason: Cow::default(),
            keeps_payload: false,
            acceptance: None,
        }
    }
}

fn millis(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

/// One column of a batch, as Postgres' `unnest` takes it.
pub(crate) fn column<'a, T, C>(rows: &[&'a T], of: impl Fn(&'a T) -> C) -> Vec<C> {
    rows.iter().map(|row| of(row)).collect()
}
