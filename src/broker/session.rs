//! One session with the broker: hands out deliveries, and acks or rejects them.

use std::collections::BTreeSet;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, bail};
use futures_util::StreamExt as _;
use futures_util::future::OptionFuture;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    BasicRejectOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer, ErrorKind, Event};
use tokio::sync::{mpsc, watch};
use tokio::time::{Duration, Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::acks::{AckFrame, Outstanding};
use super::answer::{answer, close, refusal};
use super::connection::{Broker, Connected};
use super::declared::LosesMessages;
use super::delivery::{Acker, Delivery, log_near_limit, message};
use super::filter::{Alterations, Appetite};
use super::letters::{self, Disposed, Letters};
use super::properties::Limits;
use super::topology::Edge;
use crate::clock::LastTurn;
use crate::metrics::{self, METRICS};

/// A session is rebuilt after at least the one and at most the other, jittered.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(250);
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(5);

/// A session that stood for so long was a good one: the next trouble is a new one.
const SETTLED_AFTER: Duration = Duration::from_secs(5);

/// How many dispositions are gathered for one ack at most.
const ACK_BATCH_MAX: usize = 512;

/// How long an ack waits for an older delivery, so that one can do for both.
const ACK_AGE_MAX: Duration = Duration::from_millis(50);

/// Room for what tracing and gateways add to a message, and a bound on what others may.
const PROPERTIES_MAX: Limits = Limits { bytes: 16 * 1024, values: 256 };

#[derive(Clone, Copy, Debug)]
pub struct Subscription {
    pub edge: Edge,
    /// How many deliveries may be undisposed.
    pub prefetch: u16,
    /// How much of a body is taken: no more is kept of a larger one.
    pub body_bytes: usize,
}

/// Whether the session's loop moves, and whether there is a session. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct SessionLiveness {
    pub turns: LastTurn,
    has_session: Arc<AtomicBool>,
}

impl SessionLiveness {
    fn set_session(&self, has_session: bool) {
        self.has_session.store(has_session, Ordering::Relaxed);
    }

    /// Whether there is a session now.
    pub fn has_session(&self) -> bool {
        self.has_session.load(Ordering::Relaxed)
    }
}

impl Broker {
    /// Hands a queue's deliveries to `deliveries`, while `intake` is true and until
    /// `stopping` is cancelled; then returns once the deliveries handed out are disposed
    /// of. A session that fails is rebuilt, for ever.
    pub async fn consume(
        &self,
        subscription: Subscription,
        deliveries: mpsc::Sender<Delivery>,
        mut intake: watch::Receiver<bool>,
        liveness: SessionLiveness,
        stopping: CancellationToken,
    ) {
        let mut broker = self.clone();
        let mut delay = RECONNECT_DELAY_MIN;
        // Each cause is logged once for an outage, not once a try.
        let mut logged = BTreeSet::new();
        while !stopping.is_cancelled() {
            liveness.turns.turn();
            let opening = Session::open(&broker, subscription);
            let session = tokio::select! {
                session = opening => session,
                () = stopping.cancelled() => return,
            };
            let ended = match session {
                Ok(session) => {
                    let (queue, _) = subscription.edge.queue(&self.settings);
                    info!(queue, broker = session.place, "the broker session is open");
                    METRICS.note_session(metrics::Session::Opened);
                    let opened_at = Instant::now();
                    liveness.set_session(true);
                    let ended = session.run(&deliveries, &mut intake, &liveness.turns, &stopping).await;
                    liveness.set_session(false);
                    if opened_at.elapsed() >= SETTLED_AFTER {
                        logged.clear();
                        delay = RECONNECT_DELAY_MIN;
                    }
                    ended
                }
                Err(error) => Err(error),
            };
            let Err(error) = ended else { return };
            let is_refused = needs_person(&error);
            METRICS.note_session(if is_refused { metrics::Session::Refused } else { metrics::Session::Lost });
            let text = format!("{error:#}");
            if !logged.insert(text.clone()) {
                debug!(error = text, "the broker is still away");
            } else if is_refused {
                error!(error = text, "the broker refuses a session until a person has fixed this");
            } else if error.is::<ConsumerEnded>() {
                error!(
                    error = text,
                    "the broker ended the consumer: if its queue was deleted, what lay in it is lost"
                );
            } else {
                warn!(error = text, "the broker session is lost; the worker rebuilds it");
            }
            tokio::select! {
                () = sleep(delay.mul_f64(rand::random_range(0.5..1.0))) => {}
                () = stopping.cancelled() => {}
            }
            delay = (delay * 2).min(RECONNECT_DELAY_MAX);
            broker = broker.read_again();
        }
    }
}

/// The broker cancelled the consumer, as it does where the queue is deleted. RabbitMQ 4.3 and later do
/// so, too, where older ones close the channel of a delivery that was held too long.
#[derive(Debug, thiserror::Error)]
#[error(
    "the broker ended the consumer; was the queue deleted? or did a delivery wait longer for its ack than the broker's consumer_timeout (RabbitMQ 4.3 and later)?"
)]
struct ConsumerEnded;

/// Why a session that had all it needs ended. The next one has it again.
#[derive(Debug, thiserror::Error)]
enum BrokenOff {
    /// With the network or the broker.
    #[error("the session broke off; what it had handed over comes again")]
    Lost(#[source] anyhow::Error),
    #[error(
        "a delivery waited longer for its ack than the broker's consumer_timeout; what was handed over comes again; see what holds it up with `kyc-worker report`, or set a longer consumer_timeout at the broker"
    )]
    HeldTooLong(#[source] anyhow::Error),
}

impl From<anyhow::Error> for BrokenOff {
    fn from(error: anyhow::Error) -> Self {
        let is_timeout = match error.downcast_ref().map(lapin::Error::kind) {
            Some(ErrorKind::ProtocolError(refusal)) => {
                *refusal.kind() == AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED)
                    && refusal.get_message().as_str().contains("timed out")
            }
            _ => false,
        };
        if is_timeout { Self::HeldTooLong(error) } else { Self::Lost(error) }
    }
}

impl From<lapin::Error> for BrokenOff {
    fn from(error: lapin::Error) -> Self {
        anyhow::Error::from(error).into()
    }
}

/// Whether the broker is there and refuses what a session needs, its vhost included, or has a queue
/// that loses messages, so that waiting alone mends nothing. What ends a session that has all it needs
/// is over with the next one.
fn needs_person(error: &anyhow::Error) -> bool {
    let no_vhost = AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED);
    let is_refused =
        |refusal: &AMQPErrorKind| matches!(refusal, AMQPErrorKind::Soft(_)) || *refusal == no_vhost;
    let loses = error.is::<LosesMessages>();
    !error.is::<BrokenOff>() && (loses || refusal(error).is_some_and(is_refused))
}

/// One connection, one channel, one consumer at a time. Any error ends it.
struct Session {
    connection: Connection,
    place: String,
    broker: Broker,
    alterations: Alterations,
    channel: Channel,
    setting: &'static str,
    queue: String,
    prefetch: u16,
    body_bytes: usize,
}

impl Session {
    pub async fn open(broker: &Broker, subscription: Subscription) -> anyhow::Result<Self> {
        let Subscription { edge, prefetch, body_bytes } = subscription;
        let appetite = Appetite { properties: Some(PROPERTIES_MAX), body_bytes: Some(body_bytes as u64) };
        let Connected { connection, alterations, place } = broker.connect_for(appetite).await?;
        broker.set_up_topology(&connection, edge).await?;
        let (setting, (queue, _)) = (edge.setting(), edge.queue(&broker.settings));
        let fault = || format!("{setting}: cannot prepare to consume from {queue}");
        let channel = answer(connection.create_channel()).await.with_context(fault)?;
        let (broker, queue) = (broker.clone(), queue.to_owned());
        Ok(Self { connection, place, broker, alterations, channel, setting, queue, prefetch, body_bytes })
    }

    pub async fn run(
        self,
        deliveries: &mpsc::Sender<Delivery>,
        intake: &mut watch::Receiver<bool>,
        turns: &LastTurn,
        stopping: &CancellationToken,
    ) -> anyhow::Result<()> {
        let (dispositions, mut disposed) = mpsc::unbounded_channel();
        let (mut letters, rejected) = Letters::new();
        let mut publishing = pin!(letters::publish(&self.broker, rejected, dispositions.downgrade()));
        // Dropped when the worker stops: then `disposed` ends with the last delivery.
        let mut dispositions = Some(dispositions);
        let mut consumer = pin!(None::<Consumer>);
        // Each consumer has a tag of its own. RabbitMQ 3.10 crashes the channel where one that was
        // cancelled is taken for its successor.
        let mut consumers = 0_u64;
        // The tag of the consumer that is not cancelled, and how much it takes.
        let mut consuming = None;
        let mut pace = Pace::new(self.prefetch);
        let (mut acks, frames) = Acks::new();
        // Beside the loop: an ack crosses to lapin's own thread and back.
        let mut sending = pin!(send(&self.channel, frames));
        let mut batch = Vec::new();
        // They say why the channel was closed, where no consumer is left that would.
        let mut events = pin!(self.connection.events_listener());
        let mut pulse = interval(Duration::from_secs(1));
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            turns.turn();
            let wants_intake = *intake.borrow_and_update() && !stopping.is_cancelled();
            if wants_intake && consumer.is_none() {
                consumers += 1;
                let (tag, prefetch) = consuming.insert((format!("kyc-worker-{consumers}"), pace.prefetch));
                consumer.set(Some(self.start_consumer(tag, *prefetch).await?));
            } else if let Some((tag, _)) =
                consuming.take_if(|(_, prefetch)| !wants_intake || *prefetch != pace.prefetch)
            {
                // What was handed over already still arrives, then the stream ends. A consumer
                // takes as much as it began with: for more there is another.
                let cancelled = self.channel.basic_cancel(tag.into(), BasicCancelOptions::default());
                answer(cancelled).await.map_err(BrokenOff::from)?;
            }
            if stopping.is_cancelled() {
                // Whatever is still in the consumer's buffer goes back to the queue when we close.
                consumer.set(None);
                dispositions = None;
            }
            tokio::select! {
                delivery = next(consumer.as_mut()) => match delivery {
                    Some(delivery) => {
                        if let Some(dispositions) = &dispositions {
                            let mut delivery = delivery.map_err(BrokenOff::from)?;
                            let tag = delivery.delivery_tag;
                            acks.outstanding.hand_out(tag);
                            let mut alteration =
                                self.alterations.take(self.channel.id(), tag).unwrap_or_default();
                            if alteration.breaks_dead_lettering {
                                if alteration.whole.is_some() {
                                    acks.dispose(letters.put_off(tag).into_iter());
                                    continue;
                                }
                                letters.keep(&self.queue, self.body_bytes, &mut delivery, &mut alteration);
                            }
                            pace.hand_out(tag, delivery.redelivered);
                            let message = message(delivery, alteration);
                            log_near_limit(&message);
                            let acker = Acker { tag, dispositions: dispositions.clone() };
                            let delivery = Delivery { message, acker };
                            hand_over(delivery, deliveries, stopping).await;
                        }
                    }
                    None if consuming.is_some() => return Err(ConsumerEnded.into()),
                    None => consumer.set(None),
                },
                count = disposed.recv_many(&mut batch, ACK_BATCH_MAX) => {
                    if count == 0 {
                        break;
                    }
                    pace.dispose(&batch);
                    if letters.divert(&mut batch, &self.alterations) {
                        pace.prove();
                    }
                    acks.dispose(batch.drain(..));
                }
                () = acks.wait_for_rest() => acks.send_rest(),
                sent = &mut sending => sent?,
                () = &mut publishing => {}
                changed = intake.changed() => changed.context("nobody steers the intake any more")?,
                () = stopping.cancelled(), if dispositions.is_some() => {}
                Some(Event::Error(error)) = events.next() => return Err(BrokenOff::from(error).into()),
                _ = pulse.tick() => {
                    if !self.connection.status().connected() || !self.channel.status().connected() {
                        bail!("the connection is gone");
                    }
                }
            }
        }
        acks.send_rest();
        drop(acks);
        sending.await?;
        close(&self.connection).await;
        Ok(())
    }

    async fn start_consumer(&self, tag: &str, prefetch: u16) -> anyhow::Result<Consumer> {
        let (queue, options) = (self.queue.as_str(), BasicConsumeOptions::default());
        let fault = || format!("{}: cannot consume from {queue}", self.setting);
        answer(self.channel.basic_qos(prefetch, BasicQosOptions::default())).await.with_context(fault)?;
        answer(self.channel.basic_consume(queue.into(), tag.into(), options, FieldTable::default()))
            .await
            .with_context(fault)
    }
}

/// How much a session takes at once: one delivery at first. A message that ends sessions or processes
/// comes first again, and RabbitMQ up to 4.2 counts each such end for everything that was handed over.
/// So it is counted alone. A session takes all that it may once a delivery that was never handed over
/// before was disposed of. Where only deliveries come that were, as after an outage, it takes twice
/// as many each time that it has disposed of as many as it takes.
struct Pace {
    prefetch: u16,
    full: u16,
    /// The delivery that shows, once it is disposed of, that what comes can be taken.
    proof: Option<u64>,
    /// How many were disposed of at this prefetch.
    disposed: usize,
}

impl Pace {
    fn new(full: u16) -> Self {
        Self { prefetch: 1, full, proof: None, disposed: 0 }
    }

    fn hand_out(&mut self, tag: u64, is_redelivered: bool) {
        if self.prefetch != self.full && !is_redelivered {
            self.proof.get_or_insert(tag);
        }
    }

    fn dispose(&mut self, disposed: &[Disposed]) {
        if self.prefetch == self.full {
            return;
        }
        self.disposed += disposed.len();
        if self.proof.is_some_and(|proof| disposed.iter().any(|(tag, _)| *tag == proof)) {
            self.prove();
        } else if self.disposed >= usize::from(self.prefetch) {
            self.prefetch = self.prefetch.saturating_mul(2).min(self.full);
            self.disposed = 0;
        }
    }

    /// Takes more. A rejected delivery that stays unacked until its letter is published would hold
    /// up all others.
    fn prove(&mut self) {
        (self.prefetch, self.proof) = (self.full, None);
    }
}

/// The ack frames of a session.
struct Acks {
    outstanding: Outstanding,
    frames: mpsc::UnboundedSender<AckFrame>,
    /// When those behind the oldest have waited long enough for it.
    rest_at: Option<Instant>,
}

impl Acks {
    fn new() -> (Self, mpsc::UnboundedReceiver<AckFrame>) {
        let (frames, to_send) = mpsc::unbounded_channel();
        (Self { outstanding: Outstanding::default(), frames, rest_at: None }, to_send)
    }

    fn dispose(&mut self, disposed: impl Iterator<Item = Disposed>) {
        for (tag, disposition) in disposed {
            let frame = self.outstanding.dispose(tag, disposition);
            self.send(frame);
        }
        let frame = self.outstanding.ack_oldest();
        self.send(frame);
        let waits = self.outstanding.has_rest();
        self.rest_at = waits.then(|| self.rest_at.unwrap_or_else(|| Instant::now() + ACK_AGE_MAX));
    }

    async fn wait_for_rest(&self) {
        match self.rest_at {
            Some(rest_at) => sleep_until(rest_at).await,
            None => std::future::pending().await,
        }
    }

    fn send_rest(&mut self) {
        let rest = self.outstanding.ack_rest();
        self.send(rest);
        self.rest_at = None;
    }

    fn send(&self, frames: impl IntoIterator<Item = AckFrame>) {
        for frame in frames {
            // Nobody sends it when the session has failed, and then everything comes again.
            let _lost_with_the_session = self.frames.send(frame);
        }
    }
}

/// Sends frames in order: an ack for many that came after a later one would be of deliveries
/// that it does not know any more, and close the channel.
async fn send(channel: &Channel, mut frames: mpsc::UnboundedReceiver<AckFrame>) -> Result<(), BrokenOff> {
    while let Some(frame) = frames.recv().await {
        match frame {
            AckFrame::AckUpTo(tag) => {
                answer(channel.basic_ack(tag, BasicAckOptions { multiple: true })).await
            }
            AckFrame::Ack(tag) => answer(channel.basic_ack(tag, BasicAckOptions::default())).await,
            AckFrame::Reject(tag) => {
                answer(channel.basic_reject(tag, BasicRejectOptions { requeue: false })).await
            }
            // Not a reject: from RabbitMQ 4.3 on only that counts towards the delivery limit.
            AckFrame::Return(tag) => {
                answer(channel.basic_nack(tag, BasicNackOptions { requeue: true, multiple: false })).await
            }
        }?;
    }
    Ok(())
}

/// The next delivery; waits for ever while there is no consumer.
async fn next(consumer: Pin<&mut Option<Consumer>>) -> Option<lapin::Result<lapin::message::Delivery>> {
    match OptionFuture::from(consumer.as_pin_mut().map(|mut consumer| async move { consumer.next().await }))
        .await
    {
        Some(delivery) => delivery,
        None => std::future::pending().await,
    }
}

async fn hand_over(delivery: Delivery, deliveries: &mpsc::Sender<Delivery>, stopping: &CancellationToken) {
    // It waits only behind deliveries of a session that was lost. What is dropped here goes
    // back to the queue with the session.
    tokio::select! {
        sent = deliveries.send(delivery) => {
            if sent.is_err() {
                debug!("a delivery came after the worker had stopped taking them");
            }
        }
        () = stopping.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::acks::Disposition;
    use super::*;

    fn dispose(pace: &mut Pace, tag: u64) {
        pace.dispose(&[(tag, Disposition::Ack)]);
    }

    #[test]
    fn a_session_takes_all_it_may_once_a_new_delivery_is_done() {
        let mut pace = Pace::new(64);
        pace.hand_out(1, true);
        pace.hand_out(2, false);
        pace.hand_out(3, false);
        assert_eq!(pace.prefetch, 1);
        dispose(&mut pace, 2);
        assert_eq!(pace.prefetch, 64);
    }

    #[test]
    fn what_came_back_lets_a_session_take_twice_as_many_each_time() {
        let mut pace = Pace::new(6);
        let prefetches: Vec<u16> = (1..=8)
            .map(|tag| {
                pace.hand_out(tag, true);
                dispose(&mut pace, tag);
                pace.prefetch
            })
            .collect();
        assert_eq!(prefetches, [2, 2, 4, 4, 4, 4, 6, 6]);
    }
}
