//! What upstream is told: how a job ended, or what its verification became, as a CloudEvent
//! (CloudEvents 1.0, structured mode, <https://github.com/cloudevents/spec>). It holds nothing that a
//! customer entered.

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::state::{EventKind, Evidence, State};
use super::trace_context::TraceContext;

/// `source` of every event: with it, an event's `id` is unique.
pub const SOURCE: &str = "/kyc-worker";

/// `datacontenttype` of the data, and the content type of the whole.
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
        id(self.job_id, self.kind, self.at)
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

/// An event's name: the same for every copy of it, those that are told again included.
pub fn id(job_id: Uuid, kind: EventKind, at: OffsetDateTime) -> String {
    format!("{job_id}/{kind}/{}", rfc3339(at))
}

/// `type` of an event of that kind.
pub fn type_name(kind: EventKind) -> String {
    format!("kyc.{kind}.v1")
}

fn rfc3339(at: OffsetDateTime) -> String {
    // Postgres' times have years that RFC 3339 can write.
    at.format(&Rfc3339).unwrap_or_default()
}
