//! A message as it was handed over: what a job, a customer event and a dead letter are read from.

use std::time::{Duration, SystemTime};

use dollarpe::canonical_json::Fault;

use crate::domain::trace_context::TraceContext;

/// One message, whole.
#[derive(Clone, Default)]
pub struct Message {
    /// The body, or the beginning of it.
    pub body: Vec<u8>,
    /// What the whole body is, where `body` is only the beginning of it.
    pub whole: Option<Whole>,
    pub message_id: Option<String>,
    pub correlation_id: Option<String>,
    /// `timestamp`, in Unix seconds.
    pub timestamp: Option<u64>,
    /// The headers that are text or numbers, as text.
    pub headers: Vec<(String, String)>,
    /// The properties that could not be read, and are left out.
    pub unreadable: Vec<Fault>,
    /// Whether the broker may have handed it over before. `false` is sure, `true` is only a hint.
    pub is_redelivered: bool,
}

/// A body that was too large to keep.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Whole {
    /// How many bytes it has.
    pub size: u64,
    /// SHA-256 of them.
    pub sha256: [u8; 32],
}

impl Message {
    /// A header's text; its name in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, text)| text.as_str())
    }

    /// When it was published, as far as anybody says so.
    pub fn published_at(&self) -> Option<SystemTime> {
        let by_the_broker =
            self.timestamp_ms().and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis);
        let since = by_the_broker.or_else(|| self.timestamp.map(Duration::from_secs))?;
        SystemTime::UNIX_EPOCH.checked_add(since)
    }

    /// The trace that it was published in, if its publisher names one.
    pub fn trace(&self) -> Option<TraceContext> {
        self.header("traceparent")?.parse().ok()
    }

    /// When the broker took the message, in milliseconds since 1970, where it says so: RabbitMQ
    /// from 3.12 on ("Message Interceptors"), and its message-timestamp plugin before that.
    pub fn timestamp_ms(&self) -> Option<i64> {
        self.header("timestamp_in_ms")?.parse().ok()
    }
}
