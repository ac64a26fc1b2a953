//! The trace that a message belongs to, as its publisher says in the header `traceparent` (W3C Trace
//! Context, <https://www.w3.org/TR/trace-context/>).

use std::fmt;
use std::str::FromStr;

/// Where in a trace a message was published.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TraceContext {
    trace_id: TraceId,
    /// The span that published it.
    parent_id: u64,
    /// Whether its publisher keeps the trace.
    is_sampled: bool,
}

/// The name of a trace.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TraceId(u128);

/// It is no `traceparent`, or names no trace.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("is no traceparent of W3C Trace Context")]
pub struct NoTraceContext;

impl TraceContext {
    /// `None` where an id is zero, which is none.
    pub fn new(trace_id: u128, parent_id: u64, is_sampled: bool) -> Option<Self> {
        let is_some = trace_id != 0 && parent_id != 0;
        is_some.then_some(Self { trace_id: TraceId(trace_id), parent_id, is_sampled })
    }

    pub fn trace_id(&self) -> TraceId {
        self.trace_id
    }

    pub fn parent_id(&self) -> u64 {
        self.parent_id
    }

    pub fn is_sampled(&self) -> bool {
        self.is_sampled
    }
}

impl TraceId {
    pub fn get(self) -> u128 {
        self.0
    }
}

impl FromStr for TraceContext {
    type Err = NoTraceContext;

    /// Reads `version-trace_id-parent_id-flags`, all in lower-case hexadecimal digits. What later versions
    /// add behind it is ignored, as the standard wants it.
    fn from_str(text: &str) -> Result<Self, NoTraceContext> {
        let mut parts = text.splitn(5, '-');
        let mut next = |digits| parts.next().and_then(|part| hexadecimal(part, digits)).ok_or(NoTraceContext);
        let (version, trace_id, parent_id, flags) = (next(2)?, next(32)?, next(16)?, next(2)?);
        let has_more = parts.next().is_some();
        if version == 0xff || version == 0 && has_more {
            return Err(NoTraceContext);
        }
        let parent_id = u64::try_from(parent_id).map_err(|_| NoTraceContext)?;
        Self::new(trace_id, parent_id, flags & 1 == 1).ok_or(NoTraceContext)
    }
}

fn hexadecimal(text: &str, digits: usize) -> Option<u128> {
    let are_digits = text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    u128::from_str_radix(text, 16).ok().filter(|_| are_digits)
}

/// As a `traceparent`.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace_id, parent_id, is_sampled } = self;
        write!(f, "00-{trace_id}-{parent_id:016x}-{:02x}", u8::from(*is_sampled))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const PARENT: &str = "b7ad6b7169203331";

    #[test]
    fn a_traceparent_is_read_and_written() {
        for (flags, is_sampled) in [("01", true), ("00", false)] {
            let text = format!("00-{TRACE}-{PARENT}-{flags}");
            let context: TraceContext = text.parse().expect("it is one");
            assert_eq!(context.to_string(), text);
            assert_eq!(context.trace_id().to_string(), TRACE);
            assert_eq!(context.is_sampled(), is_sampled);
        }
    }

    #[test]
    fn a_later_versions_traceparent_is_read_as_far_as_it_is_known() {
        for text in [
            format!("01-{TRACE}-{PARENT}-09"),
            format!("cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like"),
            format!("00-{TRACE}-{PARENT}-ff"),
        ] {
            let context: TraceContext = text.parse().expect("it is one");
            assert_eq!(context.to_string(), format!("00-{TRACE}-{PARENT}-01"), "{text}");
        }
    }

    #[test]
    fn what_is_no_traceparent_is_none() {
        let zeros = "0".repeat(32);
        for text in [
            "".to_owned(),
            "00".to_owned(),
            format!("00-{TRACE}-{PARENT}"),
            format!("ff-{TRACE}-{PARENT}-01"),
            format!("00-{TRACE}-{PARENT}-01-more"),
            format!("00-{TRACE}-{PARENT}-01-"),
            format!("00-{zeros}-{PARENT}-01"),
            format!("00-{TRACE}-{}-01", &zeros[..16]),
            format!("00-{}-{PARENT}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}0-{PARENT}-01"),
            format!("00-+{}-{PARENT}-01", &TRACE[1..]),
            format!("00-{TRACE}-{PARENT}-1"),
            format!("00-{TRACE}-{PARENT}-0x"),
            format!(" 00-{TRACE}-{PARENT}-01"),
            format!("00-{TRACE}-{PARENT}-01\n"),
            format!("00-{TRACE}-{PARENT}-é"),
        ] {
            assert_eq!(text.parse::<TraceContext>(), Err(NoTraceContext), "{text:?}");
        }
    }
}
