//! Publishes what upstream is told. One replica at a time does, and each event stays in the database until
//! the broker has confirmed it: a crash gives a second copy with the same id, and never a lost one.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};
use tracing::{debug, error, info, warn};
use uuid::Uuid;

use crate::broker::{Broker, NotTaken, Publisher, is_refused};
use crate::context::{Context, chain};
use crate::control::intake::Reason;
use crate::failpoint::{self, Point};
use crate::journal::{JournalError, TURN, WaitingEvent};
use crate::loops::{OUTAGE_TOLD_AFTER, wait_for_alarm};
use crate::metrics::METRICS;

/// How many events are published before the broker has confirmed the first of them.
const BATCH: i64 = 512;

/// From a failure to the next try: at least the one and at most the other, doubling. The turn is kept
/// meanwhile, or each replica would try.
const RETRY_DELAY_MIN: Duration = Duration::from_secs(1);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(8);

/// The publisher of one replica.
pub struct OutcomeEvents {
    context: Arc<Context>,
    broker: Broker,
    poll: Duration,
    /// By which the database knows whose turn it is.
    name: Uuid,
    /// Whether the exchange was there once: upstream may bind its queues before the first event.
    is_declared: bool,
    publisher: Option<Publisher>,
    failing: Option<Failing>,
}

/// What has kept events from being published since it last worked.
struct Failing {
    since: Instant,
    /// Each cause is logged once.
    logged: BTreeSet<String>,
}

/// Why events were not published.
enum Failure {
    Database(JournalError),
    Broker(anyhow::Error),
}

impl OutcomeEvents {
    /// A publisher that looks for events every `poll`.
    pub fn new(context: Arc<Context>, broker: Broker, poll: Duration) -> Self {
        let name = Uuid::new_v4();
        Self { context, broker, poll, name, is_declared: false, publisher: None, failing: None }
    }

    /// Runs until the worker stops. A batch that is under way then is brought to its end.
    pub async fn run(mut self) {
        let stopping = self.context.stopping.clone();
        let mut delay = RETRY_DELAY_MIN;
        while !stopping.is_cancelled() {
            let pause = match self.publish_some().await {
                Ok(is_all) => {
                    delay = RETRY_DELAY_MIN;
                    if self.failing.take().is_some_and(|failing| !failing.logged.is_empty()) {
                        info!("outcome events are published again");
                    }
                    if is_all {
                        let waiting = wait_for_alarm(&self.context.alarms.events, self.poll);
                        let _stopped = stopping.run_until_cancelled(waiting).await;
                    }
                    Duration::ZERO
                }
                Err(failure) => {
                    self.note(failure);
                    let pause = delay.mul_f64(rand::random_range(0.5..1.0));
                    delay = (delay * 2).min(RETRY_DELAY_MAX);
                    pause
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
    /// - Of a job there is one event in a batch: the next one waits until this one is confirmed, or the two
    ///   might come in another order after one of them was refused.
    /// - After a failure the first event goes alone: one queue may have taken what another has refused, and
    ///   gets a copy with each try.
    async fn publish_some(&mut self) -> Result<bool, Failure> {
        let turn = TURN.max(self.poll * 3);
        let limit = if self.failing.is_some() { 1 } else { BATCH };
        let journal = &self.context.journal;
        let taken = journal.take_events(self.name, turn, limit).await.map_err(Failure::Database)?;
        if taken.is_empty() && self.is_declared {
            return Ok(true);
        }
        let publisher = match self.publisher.take() {
            Some(publisher) => publisher,
            None => Publisher::open_for_events(&self.broker).await.map_err(Failure::Broker)?,
        };
        self.is_declared = true;
        if taken.is_empty() {
            publisher.close().await;
            return Ok(true);
        }
        failpoint::reach(Point::EventsTaken);
        let is_all = (taken.len() as i64) < limit;
        let mut jobs = HashSet::new();
        let (batch, later): (Vec<WaitingEvent>, Vec<WaitingEvent>) =
            taken.into_iter().partition(|waiting| jobs.insert(waiting.event.job_id));
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
                Ok(is_all && later.is_empty())
            }
        }
    }

    /// Logs why nothing is published: each cause once, until it works again.
    fn note(&mut self, failure: Failure) {
        METRICS.note_events_failed();
        let failing = || Failing { since: Instant::now(), logged: BTreeSet::new() };
        let failing = self.failing.get_or_insert_with(failing);
        let (text, needs_person) = match failure {
            // The pause of the intake tells of what is everybody's; what turns out to be these tables' alone
            // is told once it lasts.
            Failure::Database(error)
                if error.is_outage()
                    && (failing.since.elapsed() < OUTAGE_TOLD_AFTER
                        || self.context.intake.is_paused_for(Reason::Database)) =>
            {
                return debug!(error = chain(&error), "outcome events wait for the database");
            }
            Failure::Database(error) => (chain(&error), true),
            Failure::Broker(error) => {
                self.broker = self.broker.clone().read_again();
                (format!("{error:#}"), is_refused(&error))
            }
        };
        if !failing.logged.insert(text.clone()) {
            debug!(error = text, "outcome events are still not published");
        } else if needs_person {
            error!(
                error = text,
                "outcome events are not published until a person has fixed this; they are kept, and jobs go on"
            );
        } else {
            warn!(error = text, "outcome events are not published yet; they are kept, and jobs go on");
        }
    }
}

/// Publishes events, and returns which of them the broker has confirmed, and why others are not: by its own
/// word, where it has said one.
async fn publish(publisher: &Publisher, batch: &[WaitingEvent]) -> (Vec<i64>, Option<NotTaken>) {
    let (mut confirming, mut failures) = (Vec::with_capacity(batch.len()), Vec::new());
    for WaitingEvent { id, event } in batch {
        match publisher.publish_event(event).await {
            Ok(confirm) => confirming.push(async move { (*id, event.kind, confirm.await) }),
            Err(error) => {
                failures.push(error);
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
            Err(error) => failures.push(error),
        }
    }
    let is_other = |failure: &NotTaken| !matches!(failure, NotTaken::Refused(_));
    (confirmed, failures.into_iter().min_by_key(is_other))
}
