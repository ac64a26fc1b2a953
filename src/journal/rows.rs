//! What the journal is given to write down.

use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::clock::Moment;
use crate::domain::state::{LinkField, WaitingFor};
use crate::domain::trace_context::TraceContext;
use crate::domain::verdict::Verdict;

/// The limits that the journal decides by.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long a claim lasts.
    pub claim_lease: Duration,
    /// From the end of an attempt of unknown outcome to the first read of the customer.
    pub read_back_after: Duration,
    /// A verification lasts at least so long, and nothing is applied later after an attempt's end.
    pub read_back_window: Duration,
    /// How many updates the provider allows a customer.
    pub customer_updates: u32,
    pub at_end: AtEnd,
}

/// What the end of a job brings with it.
#[derive(Clone, Copy, Debug)]
pub struct AtEnd {
    /// From an acceptance to the first read of the verification.
    pub verification_after: Duration,
    /// Whether upstream is told (`OUTCOME_EVENTS`).
    pub is_told: bool,
}

/// How a new job is let in.
#[derive(Clone, Copy, Debug)]
pub enum Admission {
    /// It is claimed and its first attempt begun, if its customer is free.
    Claim(Moment),
    /// It waits, due at once.
    Wait(WaitingFor),
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
    pub expiring_link: Option<LinkField>,
    pub correlation_id: Option<String>,
    pub trace: Option<TraceContext>,
    pub sealed: Vec<u8>,
    /// When the send window of its first attempt began, if it is to be claimed.
    pub t0: Option<Moment>,
}

impl NewRow {
    pub fn link(&self) -> Option<&'static str> {
        self.expiring_link.map(LinkField::name)
    }

    pub fn traceparent(&self) -> Option<String> {
        self.trace.map(|trace| trace.to_string())
    }

    /// By which a customer's jobs are ordered; the greatest is the newest.
    pub fn age_key(&self) -> (OffsetDateTime, OffsetDateTime, Uuid) {
        (self.requested_at, self.received_at, self.job_id)
    }
}

/// A time as Postgres keeps it, so that it is compared with what it keeps.
pub(crate) fn in_micros(at: OffsetDateTime) -> OffsetDateTime {
    at.replace_nanosecond(at.nanosecond() / 1_000 * 1_000).unwrap_or(at)
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
    /// What was checked before its send, and passed.
    pub checked: Option<&'static str>,
}

/// One column of a batch, as Postgres' `unnest` takes it.
pub(crate) fn column<'a, T, C>(rows: &[&'a T], of: impl Fn(&'a T) -> C) -> Vec<C> {
    rows.iter().map(|row| of(row)).collect()
}
