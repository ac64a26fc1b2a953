//! Publishes what upstream is told. One replica at a time does, and each event stays in the database until
//! the broker has confirmed it: a crash gives a second copy with the same id, and never a lost one.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::sleep;
use tracing::{debug, error, info, warn};
use uuid::Uuid;

use crate::broker::{Broker, NotTaken, Publisher, is_refused};
use crate::context::{Context, chain};
use crate::failpoint::{self, Point};
use crate::journal::{JournalError, WaitingEvent};
use crate::metrics::METRICS;

/// How many events are published before the broker has confirmed the first of them.
const BATCH: i64 = 512;

/// From a failure to the next try: at least the one and at most the other, doubling.
const RETRY_DELAY_MIN: Duration = Duration::from_secs(1);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(30);

/// The publisher of one replica.
pub struct OutcomeEvents {
    context: Arc<Context>,
    broker: Broker,
    poll: Duration,
    /// By which the database knows whose turn it is.
    name: Uuid,
    publisher: Option<Publisher>,
    /// Whether a person must act on what has kept events from being published since it last worked.
    failing: Option<bool>,
}

/// Why events were not published.
enum Failure {
    Database(JournalError),
    Broker(anyhow::Error),
}

impl OutcomeEvents {
    /// A publisher that looks for events every `poll`.
    pub fn new(context: Arc<Context>, broker: Broker, poll: Duration) -> Self {
        Self { context, broker, poll, name: Uuid::new_v4(), publisher: None, failing: None }
    }

    /// Runs until the worker stops. A batch that is under way then is brought to its end.
    pub async fn run(mut self) {
        let stopping = self.context.stopping.clone();
        let mut delay = RETRY_DELAY_MIN;
        while !stopping.is_cancelled() {
            let pause = match self.publish_some().await {
                Ok(is_all) => {
                    delay = RETRY_DELAY_MIN;
                    if is_all { self.poll } else { Duration::ZERO }
                }
                Err(failure) => {
                    self.note(failure);
                    let pause = delay;
                    delay = (delay * 2).min(RETRY_DELAY_MAX);
                    pause.mul_f64(rand::random_range(0.5..1.0))
                }
            };
            if !pause.is_zero() && stopping.run_until_cancelled(sleep(pause)).await.is_none() {
                break;
            }
        }
        if let Some(publisher) = self.publisher.take() {
            publisher.close().await;
        }
        if let Err(error) = self.context.journal.leave_turn(self.name).await {
            debug!(error = chain(&error), "the turn to publish events is left to its time");
        }
    }

    /// Publishes a batch of what has waited the longest, and removes what the broker has confirmed. Returns
    /// whether that was all.
    ///
    /// Of a job there is one event in a batch: the next one waits until this one is confirmed, or the two
    /// might come in another order after one of them was refused.
    async fn publish_some(&mut self) -> Result<bool, Failure> {
        let journal = &self.context.journal;
        let taken = journal.take_events(self.name, BATCH).await.map_err(Failure::Database)?;
        if taken.is_empty() {
            return Ok(true);
        }
        failpoint::reach(Point::EventsTaken);
        let is_all = (taken.len() as i64) < BATCH;
        let mut jobs = HashSet::new();
        let (batch, later): (Vec<WaitingEvent>, Vec<WaitingEvent>) =
            taken.into_iter().partition(|waiting| jobs.insert(waiting.event.job_id));
        let publisher = match self.publisher.take() {
            Some(publisher) => publisher,
            None => Publisher::open_for_events(&self.broker).await.map_err(Failure::Broker)?,
        };
        let (confirmed, failed) = publish(&publisher, &batch).await;
        failpoint::reach(Point::EventsConfirmed);
        if !confirmed.is_empty() {
            journal.remove_events(&confirmed).await.map_err(Failure::Database)?;
        }
        failpoint::reach(Point::EventsRemoved);
        match failed {
            Some(failed) => {
                publisher.close().await;
                Err(Failure::Broker(failed.into()))
            }
            None => {
                self.publisher = Some(publisher);
                if self.failing.take().is_some() {
                    info!("outcome events are published again");
                }
                Ok(is_all && later.is_empty())
            }
        }
    }

    /// Logs why nothing is published: once while it lasts, and once more where it turns out to be a person's
    /// to mend.
    fn note(&mut self, failure: Failure) {
        METRICS.note_events_failed();
        let (text, needs_person) = match failure {
            // An outage is everybody's, and the pause of the intake tells of it.
            Failure::Database(error) if error.is_outage() => {
                return debug!(error = chain(&error), "outcome events wait for the database");
            }
            Failure::Database(error) => (chain(&error), true),
            Failure::Broker(error) => {
                self.broker = self.broker.clone().read_again();
                (format!("{error:#}"), is_refused(&error))
            }
        };
        if self.failing >= Some(needs_person) {
            debug!(error = text, "outcome events are still not published");
        } else if needs_person {
            error!(
                error = text,
                "outcome events are not published until a person has fixed this; they are kept, and jobs go on"
            );
        } else {
            warn!(error = text, "outcome events are not published yet; they are kept, and jobs go on");
        }
        self.failing = self.failing.max(Some(needs_person));
    }
}

/// Publishes events, and returns which of them the broker has confirmed, and the first failure.
async fn publish(publisher: &Publisher, batch: &[WaitingEvent]) -> (Vec<i64>, Option<NotTaken>) {
    let (mut confirming, mut failed) = (Vec::with_capacity(batch.len()), None);
    for WaitingEvent { id, event } in batch {
        match publisher.publish_event(event).await {
            Ok(confirm) => confirming.push(async move { (*id, event.kind, confirm.await) }),
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    let mut confirmed = Vec::with_capacity(confirming.len());
    for (id, kind, answer) in join_all(confirming).await {
        match answer {
            Ok(()) => {
                METRICS.note_event_published(kind);
                confirmed.push(id);
            }
            Err(error) => drop(failed.get_or_insert(error)),
        }
    }
    (confirmed, failed)
}
