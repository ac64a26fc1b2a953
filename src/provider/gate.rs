//! The gate in an update's body: nothing leaves after the send window, or once the worker stops.

use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Moment;
use crate::domain::verdict::NotSent;
use crate::failpoint::{self, Point};

/// The last check before an update leaves, made where it cannot be outrun: in the
/// request's body, when the client asks for its bytes, after DNS, connect and TLS. A
/// head without its body is no request.
///
/// The client's connection task may ask for the body after we have given up on the
/// answer. So passing and shutting race for one atomic: whichever comes first decides
/// whether the attempt was sent.
pub(super) struct Gate {
    t0: Moment,
    /// Counted by a clock that goes on while this machine is suspended, as the lease does.
    window: Duration,
    stopping: CancellationToken,
    state: AtomicU8,
    /// When the body was handed over.
    passed_at: OnceLock<Instant>,
}

impl Gate {
    const OPEN: u8 = 0;
    const PASSED: u8 = 1;
    const SHUT: u8 = 2;
    const WINDOW_CLOSED: u8 = 3;
    const STOPPING: u8 = 4;

    pub fn new(t0: Moment, window: Duration, stopping: CancellationToken) -> Self {
        Self { t0, window, stopping, state: AtomicU8::new(Self::OPEN), passed_at: OnceLock::new() }
    }

    /// Lets the body through, once, if it may still leave.
    fn pass(&self) -> bool {
        let now = Moment::now();
        let state = if self.stopping.is_cancelled() {
            Self::STOPPING
        } else if now.since(self.t0) > self.window {
            Self::WINDOW_CLOSED
        } else {
            Self::PASSED
        };
        let passes = self.decide(state).is_ok() && state == Self::PASSED;
        if passes {
            self.passed_at.get_or_init(|| now.monotonic);
        }
        passes
    }

    /// When the body left, if it has.
    pub fn passed_at(&self) -> Option<Instant> {
        self.passed_at.get().copied()
    }

    /// Lets nothing through any more. `None` if the body has left already.
    pub fn shut(&self) -> Option<NotSent> {
        match self.decide(Self::SHUT).err() {
            Some(Self::PASSED) => None,
            Some(Self::WINDOW_CLOSED) => Some(NotSent::WindowClosed),
            Some(Self::STOPPING) => Some(NotSent::Shutdown),
            _ => Some(NotSent::Connect),
        }
    }

    /// Ends once the worker stops before the body has left, which it then never does. A
    /// request that cannot connect need not be waited for.
    pub async fn stopped(&self) {
        self.stopping.cancelled().await;
        match self.decide(Self::STOPPING) {
            Ok(_) | Err(Self::STOPPING) => {}
            Err(_) => std::future::pending().await,
        }
    }

    /// The first to decide wins; the others learn what was decided.
    fn decide(&self, state: u8) -> Result<u8, u8> {
        self.state.compare_exchange(Self::OPEN, state, Ordering::AcqRel, Ordering::Acquire)
    }
}

/// One frame, behind the gate.
pub(super) struct GatedBody {
    content: Option<Bytes>,
    gate: Arc<Gate>,
}

impl GatedBody {
    pub fn new(content: Bytes, gate: Arc<Gate>) -> Self {
        Self { content: Some(content), gate }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the send window has closed")]
pub(super) struct GateClosed;

impl http_body::Body for GatedBody {
    type Data = Bytes;
    type Error = GateClosed;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, GateClosed>>> {
        Poll::Ready(match self.content.take() {
            None => None,
            Some(content)
                if {
                    failpoint::reach(Point::Gate);
                    self.gate.pass()
                } =>
            {
                Some(Ok(Frame::data(content)))
            }
            Some(_) => Some(Err(GateClosed)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.content.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.content.as_ref().map_or(0, |content| content.len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::tests::ago;

    const WINDOW: Duration = Duration::from_secs(60);

    fn gate(t0: Moment) -> Gate {
        Gate::new(t0, WINDOW, CancellationToken::new())
    }

    #[test]
    fn a_body_that_has_left_cannot_be_called_back() {
        let gate = gate(Moment::now());
        assert!(gate.pass());
        assert_eq!(gate.shut(), None);
    }

    #[test]
    fn a_gate_that_was_shut_lets_nothing_through() {
        let gate = gate(Moment::now());
        assert_eq!(gate.shut(), Some(NotSent::Connect));
        assert!(!gate.pass());
    }

    #[test]
    fn nothing_passes_after_the_window_or_once_the_worker_stops() {
        // Late by one clock is late.
        for t0 in [ago(61, 61, 61), ago(61, 0, 0), ago(0, 61, 0), ago(0, 0, 61)] {
            let late = gate(t0);
            assert!(!late.pass());
            assert_eq!(late.shut(), Some(NotSent::WindowClosed));
        }
        assert!(gate(ago(59, -3600, 59)).pass());
        let stopping = gate(Moment::now());
        stopping.stopping.cancel();
        assert!(!stopping.pass());
        assert_eq!(stopping.shut(), Some(NotSent::Shutdown));
    }
}
