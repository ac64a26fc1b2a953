//! The events that upstream is to be told, taken to be published and removed once the broker has them.

use std::time::Duration;

use uuid::Uuid;

use crate::domain::outcome_event::OutcomeEvent;
use crate::domain::state::{EventKind, Evidence, State};
use crate::domain::trace_context::TraceContext;
use crate::journal::error::JournalError;
use crate::journal::handle::Journal;
use crate::journal::pool::run;

/// How long the turn to publish lasts at least. A publisher that takes longer for a batch may find another
/// beside it: events come twice then, and still in their order, as each begins with the first that is not
/// removed.
pub const TURN: Duration = Duration::from_secs(10);

/// An event that waits to be published.
#[derive(Debug)]
pub struct WaitingEvent {
    pub id: i64,
    pub event: OutcomeEvent,
}

impl Journal {
    /// Takes the turn to publish, which lasts for `turn`, and reads up to `limit` events that have waited the
    /// longest. None where it is another's turn.
    pub async fn take_events(
        &self,
        publisher: Uuid,
        turn: Duration,
        limit: i64,
    ) -> Result<Vec<WaitingEvent>, JournalError> {
        let from = self.floors.events.bound();
        let rows = run("take_events", &self.pool, async |connection| {
            sqlx::query!(
                r#"-- take_events
                with turn as (
                    update event_publishing
                    set publisher = $1, turn_until = now() + make_interval(secs => $2)
                    where publisher = $1 or turn_until < now()
                        -- One further ahead is of a clock that was ahead, and was put right.
                        or turn_until > now() + make_interval(secs => $2) + interval '1 minute'
                    returning one
                )
                select
                    id, kind as "kind: EventKind", job_id, customer_id, at, token, state as "state: State", reason_code,
                    reason, attempts, evidence as "evidence: Evidence", verification_status, failure_reason,
                    requested_at, ended_at, correlation_id, traceparent as "trace: TraceContext"
                from outcome_event
                where exists (select from turn) and id >= $3
                order by id
                limit $4"#,
                publisher,
                turn.as_secs_f64(),
                from,
                limit,
            )
            .fetch_all(connection)
            .await
        })
        .await?;
        if let Some(first) = rows.first() {
            self.floors.events.note(first.id);
        }
        let events = rows.into_iter().map(|row| WaitingEvent {
            id: row.id,
            event: OutcomeEvent {
                kind: row.kind,
                job_id: row.job_id,
                customer_id: row.customer_id,
                at: row.at,
                token: row.token,
                state: row.state,
                reason_code: row.reason_code,
                reason: row.reason,
                attempts: row.attempts,
                evidence: row.evidence,
                verification_status: row.verification_status,
                failure_reason: row.failure_reason,
                requested_at: row.requested_at,
                ended_at: row.ended_at,
                correlation_id: row.correlation_id,
                trace: row.trace,
            },
        });
        Ok(events.collect())
    }

    /// Removes events that the broker has.
    pub async fn remove_events(&self, ids: &[i64]) -> Result<(), JournalError> {
        run("remove_events", &self.pool, async |connection| {
            sqlx::query!(
                "-- remove_events
                delete from outcome_event where id = any($1)",
                ids,
            )
            .execute(connection)
            .await
        })
        .await?;
        Ok(())
    }

    /// Gives the turn to publish up.
    pub async fn leave_turn(&self, publisher: Uuid) -> Result<(), JournalError> {
        run("leave_turn", &self.pool, async |connection| {
            sqlx::query!(
                "-- leave_turn
                update event_publishing set turn_until = now() where publisher = $1 and turn_until > now()",
                publisher,
            )
            .execute(connection)
            .await
        })
        .await?;
        Ok(())
    }

    /// How many events wait to be published.
    pub async fn count_events(&self) -> Result<u64, JournalError> {
        let count = run("count_events", &self.pool, async |connection| {
            sqlx::query_scalar!(
                r#"-- count_events
                select count(*) as "count!" from outcome_event"#,
            )
            .fetch_one(connection)
            .await
        });
        Ok(count.await?.unsigned_abs())
    }
}
