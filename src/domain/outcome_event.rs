//! What upstream is told: how a job ended, or what its verification became, as a CloudEvent
//! (CloudEvents 1.0, structured mode, <https://github.com/cloudevents/spec>). It holds nothing that a
//! customer entered.

use serde_json::{Value, json};
use time::macros::{datetime, format_description};
use time::{OffsetDateTime, UtcOffset};
use uuid::{Uuid, uuid};

use super::state::{EventKind, Evidence, State};
use super::trace_context::TraceContext;
use super::verification::{FAILED, VERIFIED};

/// `source` of every event: with it, an event's `id` is unique.
pub const SOURCE: &str = "/kyc-worker";

/// The content type of an event.
pub const CONTENT_TYPE: &str = "application/cloudevents+json";

/// One event.
#[derive(Clone, Debug)]
pub struct OutcomeEvent {
    pub kind: EventKind,
    pub job_id: Uuid,
    /// None only of an invalid job that named none.
    pub customer_id: Option<Uuid>,
    /// When it happened.
    pub at: OffsetDateTime,
    /// Which of the job's ends it is, or belongs to: it grows with each.
    pub token: i64,
    /// The job's state then.
    pub state: State,
    pub reason_code: Option<String>,
    pub reason: Option<String>,
    pub attempts: i32,
    pub evidence: Option<Evidence>,
    pub verification_status: Option<String>,
    pub failure_reason: Option<String>,
    pub requested_at: Option<OffsetDateTime>,
    pub ended_at: Option<OffsetDateTime>,
    pub correlation_id: Option<String>,
    pub trace: Option<TraceContext>,
}

impl OutcomeEvent {
    pub fn id(&self) -> String {
        id(self.job_id, self.kind, self.token, self.at)
    }

    /// `type`, with the version of what `data` holds.
    pub fn type_name(&self) -> String {
        type_name(self.kind)
    }

    /// The whole, as JSON.
    pub fn to_json(&self) -> Value {
        let mut event = json!({
            "specversion": "1.0",
            "id": self.id(),
            "source": SOURCE,
            "type": self.type_name(),
            "subject": self.job_id,
            "time": rfc3339(self.at),
            "datacontenttype": "application/json",
            "data": {
                "job_id": self.job_id,
                "customer_id": self.customer_id,
                "state": self.state.name(),
                "reason_code": self.reason_code,
                "reason": self.reason,
                "attempts": self.attempts,
                "evidence": self.evidence.map(Evidence::name),
                "verification_status": self.verification_status,
                "failure_reason": self.failure_reason,
                "requested_at": self.requested_at.map(rfc3339),
                "ended_at": self.ended_at.map(rfc3339),
                "correlation_id": self.correlation_id,
            }
        });
        // An attribute of CloudEvents is there or not, but never null (its extension "Distributed Tracing").
        if let (Some(trace), Value::Object(event)) = (self.trace, &mut event) {
            event.insert("traceparent".to_owned(), trace.to_string().into());
        }
        event
    }
}

/// The schema of an outcome event (JSON Schema, draft 2020-12). What consumers must not rely on, as which
/// reason codes there are, it leaves open.
pub fn event_schema() -> Value {
    let text = |description: &str| json!({ "description": description, "type": ["string", "null"] });
    let time = |description: &str| json!({ "description": description, "type": ["string", "null"], "format": "date-time" });
    let ended = State::ALL.iter().filter(|state| state.has_ended()).map(|state| state.name());
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "OutcomeEvent",
        "description": "How a job ended, or what its verification became: a CloudEvent 1.0 in structured mode. It holds nothing that a customer entered. Other fields may be added to it within a version of its type.",
        "type": "object",
        "required": ["specversion", "id", "source", "type", "subject", "time", "datacontenttype", "data"],
        "properties": {
            "specversion": { "const": "1.0" },
            "id": {
                "description": "The same for every copy of an event: deduplicate by it.",
                "type": "string",
                "maxLength": 255,
            },
            "source": { "const": SOURCE },
            "type": { "enum": EventKind::ALL.iter().map(|kind| type_name(*kind)).collect::<Vec<_>>() },
            "subject": { "description": "The job_id.", "type": "string", "format": "uuid" },
            "time": { "description": "When it happened, by the clocks of database and replicas.", "type": "string", "format": "date-time" },
            "datacontenttype": { "const": "application/json" },
            "traceparent": { "description": "The trace that the job was published in, where it names one.", "type": "string" },
            "data": {
                "type": "object",
                "required": [
                    "job_id", "customer_id", "state", "reason_code", "reason", "attempts", "evidence",
                    "verification_status", "failure_reason", "requested_at", "ended_at", "correlation_id"
                ],
                "properties": {
                    "job_id": { "type": "string", "format": "uuid" },
                    "customer_id": {
                        "description": "The provider's customer; null where an invalid job named none.",
                        "type": ["string", "null"],
                        "format": "uuid",
                    },
                    "state": { "description": "How the job ended.", "enum": ended.collect::<Vec<_>>() },
                    "reason_code": text("Why, for programs. There may be new ones."),
                    "reason": text("Why, for people."),
                    "attempts": { "description": "How many attempts were begun.", "type": "integer", "minimum": 0 },
                    "evidence": {
                        "description": "How an acceptance is known.",
                        "enum": Evidence::ALL.iter().map(|evidence| json!(evidence.name())).chain([Value::Null]).collect::<Vec<_>>(),
                    },
                    "verification_status": {
                        "description": "Of verification.verified and verification.failed, the provider's word; null in every other event.",
                        "enum": [VERIFIED, FAILED, null],
                    },
                    "failure_reason": text("Of verification.failed: why, in the provider's words as far as they are known."),
                    "requested_at": time("When the customer or upstream asked for the update."),
                    "ended_at": time("When the job ended."),
                    "correlation_id": text("The job's AMQP correlation_id."),
                },
            },
        },
        "examples": [example_event().to_json()],
    })
}

/// An accepted job's event.
pub fn example_event() -> OutcomeEvent {
    let at = datetime!(2026-11-30 10:00:00.123456 UTC);
    OutcomeEvent {
        kind: EventKind::Accepted,
        job_id: uuid!("3f0c2a9e-5f0e-4f57-9d0c-2d6f7c1f1a11"),
        customer_id: Some(uuid!("4e6f1b20-a73c-11ec-b909-0242ac120002")),
        at,
        token: 2,
        state: State::Accepted,
        reason_code: None,
        reason: Some("the provider accepted the update".to_owned()),
        attempts: 1,
        evidence: Some(Evidence::Response),
        verification_status: None,
        failure_reason: None,
        requested_at: Some(datetime!(2026-11-30 09:59:58 UTC)),
        ended_at: Some(at),
        correlation_id: Some("order-17".to_owned()),
        trace: None,
    }
}

/// An event's name: the same for every copy of it, those that are told again included. A job's ends are told
/// apart by their tokens, since a clock may tell of two the same; what was seen of a verification, by when.
pub fn id(job_id: Uuid, kind: EventKind, token: i64, at: OffsetDateTime) -> String {
    match kind {
        EventKind::Verified | EventKind::Failed | EventKind::Overdue => {
            format!("{job_id}/{kind}/{}", rfc3339(at))
        }
        EventKind::Accepted
        | EventKind::Rejected
        | EventKind::Invalid
        | EventKind::Superseded
        | EventKind::Duplicate
        | EventKind::Exhausted
        | EventKind::NeedsReview => format!("{job_id}/{kind}/{token}"),
    }
}

/// `type` of an event of that kind.
pub fn type_name(kind: EventKind) -> String {
    format!("kyc.{kind}.v1")
}

fn rfc3339(at: OffsetDateTime) -> String {
    // Postgres' times have years that RFC 3339 can write.
    let digits = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
    at.to_offset(UtcOffset::UTC).format(digits).unwrap_or_default()
}
