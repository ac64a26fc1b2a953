//! Waits for the broker's answers, each with a limit, and reads its refusals. A connection that died
//! while it read a frame never answers and never says so; and one that is blocked sends nothing, not
//! even its own end.

use std::time::Duration;

use lapin::Connection;
use lapin::protocol::{AMQPError, AMQPErrorKind};
use tokio::time::timeout;
use tracing::debug;

/// From a question to its answer. As long as a connection takes to notice that its peer is gone.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Nothing hangs on how a connection ends: what was held goes back to its queue either way.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The broker is connected, and does not answer.
#[derive(Debug, thiserror::Error)]
#[error(
    "RabbitMQ gave no answer within {ANSWER_TIMEOUT:?}; look at its log and its load, and at what lies between; then try again"
)]
pub(super) struct Unanswered;

/// Waits for the broker's answer.
pub(super) async fn answer<T>(asked: impl Future<Output = lapin::Result<T>>) -> anyhow::Result<T> {
    answer_within(ANSWER_TIMEOUT, asked).await
}

async fn answer_within<T>(
    limit: Duration,
    asked: impl Future<Output = lapin::Result<T>>,
) -> anyhow::Result<T> {
    match timeout(limit, asked).await {
        Ok(answered) => Ok(answered?),
        Err(_elapsed) => Err(Unanswered.into()),
    }
}

/// Ends a connection in good order where the broker lets us. Whoever has a channel of it keeps that until
/// then: one that is dropped shortly before closes itself meanwhile, which lapin logs as a connection's error.
pub(super) async fn close(connection: &Connection) {
    match timeout(CLOSE_TIMEOUT, connection.close(200, "done".into())).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a connection did not close cleanly"),
        Err(_elapsed) => debug!("the broker did not answer to the end of a connection"),
    }
}

/// How the broker refused what it was asked for, where it did.
pub(super) fn refusal(error: &anyhow::Error) -> Option<&AMQPErrorKind> {
    protocol_error(error).map(AMQPError::kind)
}

/// The same, with the broker's words.
pub(super) fn protocol_error(error: &anyhow::Error) -> Option<&AMQPError> {
    error.chain().filter_map(|cause| cause.downcast_ref::<lapin::Error>()).find_map(|error| {
        match error.kind() {
            lapin::ErrorKind::ProtocolError(refusal) => Some(refusal),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_question_that_is_never_answered_ends_in_an_error() {
        let never = std::future::pending::<lapin::Result<()>>();
        let error = answer_within(Duration::from_millis(1), never).await.err();
        assert!(error.is_some_and(|error| error.is::<Unanswered>()));
    }
}
