//! RabbitMQ: topology, a supervised session that hands out deliveries, and publishing.
//! Knows bytes and dispositions, nothing of jobs. The only place that acks.

mod acks;
pub mod dead_letters;
mod inspect;

use std::collections::BTreeSet;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use futures_util::StreamExt as _;
use futures_util::future::OptionFuture;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    BasicRejectOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionBuilder, ConnectionProperties, Consumer,
    ExchangeKind,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use self::acks::{Outstanding, Word};
use crate::config::{BrokerCertificates, BrokerSettings, ClientIdentity, Secret, TopologyMode};
use crate::domain::outcome::Disposition;
use crate::liveness::{Loop, SessionLoop};
use crate::tls::certificate_fault;

/// A broker that accepts TCP and never answers is given up after this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A session is rebuilt after at least the one and at most the other, jittered.
const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(250);
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(5);

/// A session that stood for so long was a good one: the next trouble is a new one.
const SETTLED_AFTER: Duration = Duration::from_secs(5);

/// Dead after two missed.
const HEARTBEAT_SECONDS: u16 = 10;

/// Only against a message that kills the worker before its row: the broker dead-letters
/// it after so many deliveries. Lost connections count too, hence the height.
const DELIVERY_LIMIT: i32 = 1000;

/// A dead letter may be looked at as often as people like: RabbitMQ 4 would drop it after
/// twenty times, and has no word for "never" that RabbitMQ 3 knows.
const DEAD_LETTER_DELIVERY_LIMIT: i32 = 1_000_000;

/// How many dispositions are gathered for one ack at most.
const ACK_BATCH_MAX: usize = 512;

/// How long an ack waits for an older delivery, so that one can do for both.
const ACK_AGE_MAX: Duration = Duration::from_millis(50);

const CONSUMER_TAG: &str = "kyc-worker";

/// A queue to take deliveries from.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// The setting that names the queue, for errors.
    pub setting: &'static str,
    /// The queue.
    pub queue: String,
    /// How many deliveries may be undisposed.
    pub prefetch: u16,
}

/// One handing-over by the broker.
pub struct Delivery {
    /// The message's body.
    pub body: Vec<u8>,
    /// The AMQP `message_id`.
    pub message_id: Option<String>,
    /// The AMQP `correlation_id`.
    pub correlation_id: Option<String>,
    /// The AMQP `timestamp`, in seconds since 1970.
    pub timestamp: Option<u64>,
    /// False means surely new; true is only a hint.
    pub is_redelivered: bool,
    headers: Option<FieldTable>,
    tag: u64,
    dispositions: mpsc::UnboundedSender<(u64, Disposition)>,
}

impl Delivery {
    /// A header's text, or its number; the header's name in any case.
    pub fn header(&self, name: &str) -> Option<String> {
        let headers = self.headers.as_ref()?.inner();
        let found = headers.iter().find(|(key, _)| key.as_str().eq_ignore_ascii_case(name));
        match found?.1 {
            AMQPValue::LongString(text) => Some(text.to_string()),
            AMQPValue::ShortString(text) => Some(text.to_string()),
            AMQPValue::LongLongInt(number) => Some(number.to_string()),
            AMQPValue::LongInt(number) => Some(number.to_string()),
            AMQPValue::LongUInt(number) => Some(number.to_string()),
            _ => None,
        }
    }

    /// Whether the session that it came from still stands, so that disposing of it counts.
    pub fn is_live(&self) -> bool {
        !self.dispositions.is_closed()
    }

    /// Tells the broker what became of the delivery. If its session is gone, the broker
    /// will hand it over again, and the row that it then meets makes that harmless.
    pub fn dispose(self, disposition: Disposition) {
        if self.dispositions.send((self.tag, disposition)).is_err() {
            debug!("a delivery's session was gone before its ack");
        }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery").field("tag", &self.tag).finish_non_exhaustive()
    }
}

/// The broker as one worker uses it.
#[derive(Clone)]
pub struct Broker {
    uri: AMQPUri,
    settings: BrokerSettings,
    name: String,
    /// Whether the last connection was accepted, and then nothing came.
    was_silent: Arc<AtomicBool>,
}

impl Broker {
    /// `name` is what the broker's own tools show for our connections.
    ///
    /// # Errors
    /// When the URL is no AMQP URL. Nothing is connected yet.
    pub fn new(settings: &BrokerSettings, url: &Secret, name: &str) -> anyhow::Result<Self> {
        let mut uri: AMQPUri = url
            .expose()
            .parse()
            .map_err(|_| anyhow!("AMQP_URL: is no AMQP URL; write amqp://user:password@host:port/vhost"))?;
        uri.query.heartbeat = Some(HEARTBEAT_SECONDS);
        Ok(Self { uri, settings: settings.clone(), name: name.to_owned(), was_silent: Arc::default() })
    }

    /// Hands a queue's deliveries to `deliveries`, while `intake` is true and until
    /// `stopping` is cancelled; then returns once the deliveries handed out are disposed
    /// of. A session that fails is rebuilt, for ever.
    pub async fn consume(
        &self,
        subscription: &Subscription,
        deliveries: mpsc::Sender<Delivery>,
        mut intake: watch::Receiver<bool>,
        liveness: SessionLoop,
        stopping: CancellationToken,
    ) {
        let mut delay = RECONNECT_DELAY_MIN;
        // Each cause once for an outage, not once a try.
        let mut told = BTreeSet::new();
        while !stopping.is_cancelled() {
            liveness.turns.turn();
            let opening = Session::open(self, subscription);
            let session = tokio::select! {
                session = opening => session,
                () = stopping.cancelled() => return,
            };
            let ended = match session {
                Ok(session) => {
                    info!(queue = subscription.queue, "broker session opened");
                    let opened_at = Instant::now();
                    liveness.set_session(true);
                    let ended = session.run(&deliveries, &mut intake, &liveness.turns, &stopping).await;
                    liveness.set_session(false);
                    if opened_at.elapsed() >= SETTLED_AFTER {
                        told.clear();
                        delay = RECONNECT_DELAY_MIN;
                    }
                    ended
                }
                Err(error) => Err(error),
            };
            let Err(error) = ended else { return };
            let text = format!("{error:#}");
            if !told.insert(text.clone()) {
                debug!(error = text, "broker still away");
            } else if needs_person(&error) {
                error!(error = text, "no broker session until a person has mended this");
            } else {
                warn!(error = text, "broker session lost, rebuilding it");
            }
            tokio::select! {
                () = sleep(delay.mul_f64(rand::random_range(0.5..1.0))) => {}
                () = stopping.cancelled() => {}
            }
            delay = (delay * 2).min(RECONNECT_DELAY_MAX);
        }
    }

    /// How many messages are ready in the queue.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    pub async fn count_ready(&self) -> anyhow::Result<u32> {
        self.with_channel(async |channel| count_in(channel, "QUEUE", &self.settings.queue).await).await
    }

    /// How many messages are ready in the dead-letter queue.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    pub async fn count_dead_letters(&self) -> anyhow::Result<u32> {
        let queue = &self.settings.dead_letter_queue;
        self.with_channel(async |channel| count_in(channel, "DEAD_LETTER_QUEUE", queue).await).await
    }

    /// Declares the topology, or verifies it, and leaves.
    ///
    /// # Errors
    /// When the broker cannot be reached or has other ideas.
    pub async fn set_up_topology(&self) -> anyhow::Result<()> {
        self.with_channel(async |channel| set_up_topology(channel, &self.settings).await).await
    }

    async fn with_channel<T>(
        &self,
        work: impl AsyncFnOnce(&Channel) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let connection = self.connect().await?;
        let channel = connection.create_channel().await?;
        let done = work(&channel).await;
        if let Err(error) = connection.close(200, "done".into()).await {
            debug!(%error, "a connection did not close cleanly");
        }
        done
    }

    async fn connect(&self) -> anyhow::Result<Connection> {
        let properties = ConnectionProperties::default().with_connection_name(self.name.as_str().into());
        let place = format!("{}:{}", self.uri.authority.host, self.uri.authority.port);
        // lapin ignores the connection_timeout of the URI.
        let connecting = timeout(CONNECT_TIMEOUT, async {
            if self.was_silent.load(Ordering::Relaxed) {
                self.wait_for_greeting().await?;
            }
            let connecting = ConnectionBuilder::new()?
                .with_uri(self.uri.clone())
                .with_properties(properties)
                .with_tls_config(self.tls_config()?);
            Ok(connecting.connect().await?)
        });
        let connected = connecting.await;
        self.was_silent.store(connected.is_err(), Ordering::Relaxed);
        connected.unwrap_or_else(|_elapsed| Err(anyhow!("no answer within {CONNECT_TIMEOUT:?}"))).map_err(
            |error| {
                let advice = self.connect_advice(&error);
                error.context(format!("AMQP_URL: cannot use RabbitMQ at {place}; {advice}"))
            },
        )
    }

    /// What to do about a connection that did not come about.
    fn connect_advice(&self, error: &anyhow::Error) -> String {
        if let Some(fault) = certificate_fault(error.as_ref(), "AMQP_CA_FILE") {
            return fault;
        }
        let advice = match refusal(error) {
            // RabbitMQ answers so to a user and a password that do not go together.
            Some(AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)) => {
                "it refuses the user or the password; special characters in them are written %XX"
            }
            Some(AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED)) => {
                "it does not let this user into that vhost; `rabbitmqctl list_vhosts` lists them, `rabbitmqctl set_permissions -p VHOST USER` opens one, and the vhost / is written %2f"
            }
            // Often a reset is all that is left of the server's reason.
            _ if self.uri.scheme == AMQPScheme::AMQPS => {
                "is it running, are host and port right, and does it want another client certificate (AMQP_CERT_FILE, AMQP_KEY_FILE)?"
            }
            _ => "is it running, and are host and port right?",
        };
        advice.to_owned()
    }

    /// What TLS needs beside the platform's store. Files are read for every connection.
    fn tls_config(&self) -> anyhow::Result<OwnedTLSConfig> {
        let BrokerCertificates { authorities, identity } = self.settings.certificates()?;
        let cert_chain = authorities.map(String::from_utf8).transpose()?;
        let identity = identity
            .map(|ClientIdentity { certificate, key }| OwnedIdentity::PKCS8 { pem: certificate, key });
        Ok(OwnedTLSConfig { identity, cert_chain })
    }

    /// Waits until the server says anything at all, on a connection that is thrown away. Only
    /// for a server that was silent before: lapin's thread waits for such a one for ever, so
    /// that every further try would leave another thread behind.
    async fn wait_for_greeting(&self) -> std::io::Result<()> {
        let authority = &self.uri.authority;
        let mut stream = TcpStream::connect((authority.host.as_str(), authority.port)).await?;
        // Behind TLS this is answered by an alert, which is as good.
        stream.write_all(b"AMQP\0\0\x09\x01").await?;
        stream.read(&mut [0]).await.map(|_length| ())
    }
}

async fn count_in(channel: &Channel, setting: &str, queue: &str) -> anyhow::Result<u32> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
    let declared = channel
        .queue_declare(queue.into(), passive, FieldTable::default())
        .await
        .with_context(|| format!("{setting}: cannot look at {queue}"))?;
    Ok(declared.message_count())
}

/// A session that had all it needs broke off: with the network or the broker, or for a delivery
/// that was held for longer than its patience (RabbitMQ, "Delivery Acknowledgement Timeout").
#[derive(Debug, thiserror::Error)]
#[error("the session broke off; what it had handed over comes again")]
struct BrokenOff(#[source] lapin::Error);

/// With what the broker refused us, where it did.
fn refusal(error: &anyhow::Error) -> Option<&AMQPErrorKind> {
    error.chain().filter_map(|cause| cause.downcast_ref::<lapin::Error>()).find_map(|error| {
        match error.kind() {
            lapin::ErrorKind::ProtocolError(refusal) => Some(refusal.kind()),
            _ => None,
        }
    })
}

/// Whether the broker is there and refuses what a session needs, so that waiting alone mends
/// nothing. What ends a session that has all it needs is over with the next one.
fn needs_person(error: &anyhow::Error) -> bool {
    !error.is::<BrokenOff>() && matches!(refusal(error), Some(AMQPErrorKind::Soft(_)))
}

/// One connection, one channel, one consumer. Any error ends it.
struct Session {
    connection: Connection,
    channel: Channel,
    subscription: Subscription,
}

impl Session {
    async fn open(broker: &Broker, subscription: &Subscription) -> anyhow::Result<Self> {
        let connection = broker.connect().await?;
        let channel = connection.create_channel().await?;
        set_up_topology(&channel, &broker.settings).await?;
        channel.basic_qos(subscription.prefetch, BasicQosOptions::default()).await?;
        Ok(Self { connection, channel, subscription: subscription.clone() })
    }

    async fn run(
        self,
        deliveries: &mpsc::Sender<Delivery>,
        intake: &mut watch::Receiver<bool>,
        turns: &Loop,
        stopping: &CancellationToken,
    ) -> anyhow::Result<()> {
        let (dispositions, mut disposed) = mpsc::unbounded_channel();
        // Dropped when the worker stops: then `disposed` ends with the last delivery.
        let mut dispositions = Some(dispositions);
        let mut consumer = pin!(None::<Consumer>);
        let mut is_consuming = false;
        let (mut acks, words) = Acks::new();
        // Beside the loop: an ack crosses to lapin's own thread and back.
        let mut telling = pin!(tell(&self.channel, words));
        let mut batch = Vec::new();
        let mut pulse = interval(Duration::from_secs(1));
        pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            turns.turn();
            let wants_intake = *intake.borrow_and_update() && !stopping.is_cancelled();
            if wants_intake && consumer.is_none() {
                consumer.set(Some(self.start_consumer().await?));
                is_consuming = true;
            } else if !wants_intake && is_consuming {
                // What was handed over already still arrives, then the stream ends.
                self.channel.basic_cancel(CONSUMER_TAG.into(), BasicCancelOptions::default()).await?;
                is_consuming = false;
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
                            let delivery = delivery.map_err(BrokenOff)?;
                            acks.outstanding.hand_out(delivery.delivery_tag);
                            hand_over(delivery, dispositions, deliveries, stopping).await;
                        }
                    }
                    None if is_consuming => bail!("the broker ended the consumer; was the queue deleted?"),
                    None => consumer.set(None),
                },
                count = disposed.recv_many(&mut batch, ACK_BATCH_MAX) => {
                    if count == 0 {
                        break;
                    }
                    acks.dispose(batch.drain(..));
                }
                () = acks.wait_for_rest() => acks.tell_rest(),
                told = &mut telling => told?,
                changed = intake.changed() => changed.context("nobody steers the intake any more")?,
                () = stopping.cancelled(), if dispositions.is_some() => {}
                _ = pulse.tick() => {
                    if !self.connection.status().connected() || !self.channel.status().connected() {
                        bail!("the connection is gone");
                    }
                }
            }
        }
        acks.tell_rest();
        drop(acks);
        telling.await?;
        if let Err(error) = self.connection.close(200, "worker stops".into()).await {
            debug!(%error, "the connection did not close cleanly");
        }
        Ok(())
    }

    async fn start_consumer(&self) -> anyhow::Result<Consumer> {
        let Subscription { setting, queue, .. } = &self.subscription;
        self.channel
            .basic_consume(
                queue.as_str().into(),
                CONSUMER_TAG.into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await
            .with_context(|| format!("{setting}: cannot consume from {queue}"))
    }
}

/// What the broker is told of a session's deliveries.
struct Acks {
    outstanding: Outstanding,
    words: mpsc::UnboundedSender<Word>,
    /// When those behind the oldest have waited long enough for it.
    rest_at: Option<Instant>,
}

impl Acks {
    fn new() -> (Self, mpsc::UnboundedReceiver<Word>) {
        let (words, heard) = mpsc::unbounded_channel();
        (Self { outstanding: Outstanding::default(), words, rest_at: None }, heard)
    }

    fn dispose(&mut self, disposed: impl Iterator<Item = (u64, Disposition)>) {
        for (tag, disposition) in disposed {
            let word = self.outstanding.dispose(tag, disposition);
            self.tell(word);
        }
        let word = self.outstanding.ack_oldest();
        self.tell(word);
        let waits = self.outstanding.has_rest();
        self.rest_at = waits.then(|| self.rest_at.unwrap_or_else(|| Instant::now() + ACK_AGE_MAX));
    }

    async fn wait_for_rest(&self) {
        match self.rest_at {
            Some(rest_at) => sleep_until(rest_at).await,
            None => std::future::pending().await,
        }
    }

    fn tell_rest(&mut self) {
        let rest = self.outstanding.ack_rest();
        self.tell(rest);
        self.rest_at = None;
    }

    fn tell(&self, words: impl IntoIterator<Item = Word>) {
        for word in words {
            // Nobody hears it when the session has failed, and then everything comes again.
            let _lost_with_the_session = self.words.send(word);
        }
    }
}

/// Tells the broker in order: an ack for many that came after a later one would be of deliveries
/// that it does not know any more, and close the channel.
async fn tell(channel: &Channel, mut words: mpsc::UnboundedReceiver<Word>) -> anyhow::Result<()> {
    while let Some(word) = words.recv().await {
        let told = match word {
            Word::AckUpTo(tag) => channel.basic_ack(tag, BasicAckOptions { multiple: true }).await,
            Word::Ack(tag) => channel.basic_ack(tag, BasicAckOptions::default()).await,
            Word::DeadLetter(tag) => channel.basic_reject(tag, BasicRejectOptions { requeue: false }).await,
        };
        told.context("a delivery could not be acked")?;
    }
    Ok(())
}

/// The next delivery; waits for ever while there is no consumer.
async fn next(
    consumer: std::pin::Pin<&mut Option<Consumer>>,
) -> Option<lapin::Result<lapin::message::Delivery>> {
    match OptionFuture::from(consumer.as_pin_mut().map(|mut consumer| async move { consumer.next().await }))
        .await
    {
        Some(delivery) => delivery,
        None => std::future::pending().await,
    }
}

async fn hand_over(
    delivery: lapin::message::Delivery,
    dispositions: &mpsc::UnboundedSender<(u64, Disposition)>,
    deliveries: &mpsc::Sender<Delivery>,
    stopping: &CancellationToken,
) {
    let properties = &delivery.properties;
    let text = |value: &Option<lapin::types::ShortString>| value.as_ref().map(ToString::to_string);
    let delivery = Delivery {
        message_id: text(properties.message_id()),
        correlation_id: text(properties.correlation_id()),
        timestamp: *properties.timestamp(),
        is_redelivered: delivery.redelivered,
        headers: properties.headers().clone(),
        tag: delivery.delivery_tag,
        dispositions: dispositions.clone(),
        body: delivery.data,
    };
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

/// Declares or verifies exchanges, queues and bindings.
async fn set_up_topology(channel: &Channel, settings: &BrokerSettings) -> anyhow::Result<()> {
    let passive = settings.topology == TopologyMode::Verify;
    let remedy = match settings.topology {
        TopologyMode::Declare => "if it exists with other arguments, delete it or set TOPOLOGY=verify",
        TopologyMode::Verify => "declare it at the broker, or set TOPOLOGY=declare",
    };
    for (setting, name) in
        [("EXCHANGE", &settings.exchange), ("DEAD_LETTER_EXCHANGE", &settings.dead_letter_exchange)]
    {
        let options = ExchangeDeclareOptions { passive, durable: true, ..Default::default() };
        channel
            .exchange_declare(name.as_str().into(), ExchangeKind::Direct, options, FieldTable::default())
            .await
            .with_context(|| format!("{setting}: cannot use exchange {name}; {remedy}"))?;
    }
    let mut queues = vec![
        ("DEAD_LETTER_QUEUE", &settings.dead_letter_queue, dead_letter_arguments(settings)),
        ("QUEUE", &settings.queue, work_arguments(settings)),
    ];
    let mut bindings = vec![
        (&settings.queue, &settings.exchange, &settings.routing_key),
        (&settings.dead_letter_queue, &settings.dead_letter_exchange, &settings.dead_letter_queue),
    ];
    if settings.customer_events {
        let queue = &settings.customer_events_queue;
        queues.push(("CUSTOMER_EVENTS_QUEUE", queue, work_arguments(settings)));
        bindings.push((queue, &settings.exchange, &settings.customer_events_routing_key));
    }
    for (setting, name, arguments) in queues {
        let options = QueueDeclareOptions { passive, ..QueueDeclareOptions::durable() };
        channel
            .queue_declare(name.as_str().into(), options, arguments)
            .await
            .with_context(|| format!("{setting}: cannot use queue {name}; {remedy}"))?;
    }
    if settings.topology == TopologyMode::Verify {
        return Ok(());
    }
    for (queue, exchange, key) in bindings {
        channel
            .queue_bind(
                queue.as_str().into(),
                exchange.as_str().into(),
                key.as_str().into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .with_context(|| format!("cannot bind queue {queue} to exchange {exchange}"))?;
    }
    Ok(())
}

/// At-least-once dead-lettering needs a quorum queue that rejects publishes on overflow;
/// with drop-head RabbitMQ falls back to at-most-once in silence (RabbitMQ, "Quorum Queues").
fn work_arguments(settings: &BrokerSettings) -> FieldTable {
    arguments([
        ("x-queue-type", text("quorum")),
        ("x-dead-letter-exchange", text(&settings.dead_letter_exchange)),
        ("x-dead-letter-routing-key", text(&settings.dead_letter_queue)),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
        ("x-delivery-limit", AMQPValue::LongInt(DELIVERY_LIMIT)),
    ])
}

/// The arguments of the queue of jobs, for people.
pub fn describe_job_arguments(settings: &BrokerSettings) -> String {
    let arguments = work_arguments(settings);
    let shown = arguments.into_iter().map(|(key, value)| match value {
        AMQPValue::LongString(text) => format!("{key}={text}"),
        AMQPValue::LongInt(number) => format!("{key}={number}"),
        other => format!("{key}={other:?}"),
    });
    shown.collect::<Vec<_>>().join(", ")
}

fn dead_letter_arguments(settings: &BrokerSettings) -> FieldTable {
    let ttl_ms = i64::try_from(settings.dead_letter_ttl.as_millis()).unwrap_or(i64::MAX);
    arguments([
        ("x-queue-type", text("quorum")),
        ("x-message-ttl", AMQPValue::LongLongInt(ttl_ms)),
        ("x-delivery-limit", AMQPValue::LongInt(DEAD_LETTER_DELIVERY_LIMIT)),
    ])
}

fn arguments<const N: usize>(entries: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in entries {
        table.insert(key.into(), value);
    }
    table
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// A publisher with confirms, on a connection of its own: a broker that blocks publishers
/// stops a connection altogether, acks and heartbeats included.
pub struct Publisher {
    connection: Connection,
    channel: Channel,
    settings: BrokerSettings,
}

impl Publisher {
    /// Connects, and declares or verifies the topology.
    ///
    /// # Errors
    /// When the broker cannot be reached or has other ideas.
    pub async fn open(broker: &Broker) -> anyhow::Result<Self> {
        let connection = broker.connect().await?;
        let channel = connection.create_channel().await?;
        set_up_topology(&channel, &broker.settings).await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { connection, channel, settings: broker.settings.clone() })
    }

    /// Publishes one persistent message and returns what waits for its confirmation, so
    /// that many can be under way.
    ///
    /// # Errors
    /// When the connection is gone; the returned future's, when the broker does not take
    /// the message or no queue is bound to its key.
    pub async fn publish(
        &self,
        message_id: &str,
        body: &[u8],
    ) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + use<>> {
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_delivery_mode(2)
            .with_message_id(message_id.into())
            .with_timestamp(u64::try_from(now).unwrap_or_default());
        let BrokerSettings { exchange, routing_key, .. } = &self.settings;
        self.publish_to(exchange, routing_key, properties, body).await
    }

    /// The same, to any exchange and with any properties.
    async fn publish_to(
        &self,
        exchange: &str,
        routing_key: &str,
        properties: BasicProperties,
        body: &[u8],
    ) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + use<>> {
        let confirm = self
            .channel
            .basic_publish(
                exchange.into(),
                routing_key.into(),
                // A confirm for an unroutable message is an ack; only the returned message tells.
                BasicPublishOptions { mandatory: true, ..Default::default() },
                body,
                properties,
            )
            .await?;
        let place = format!("exchange {exchange} with key {routing_key}");
        Ok(async move {
            match confirm.await? {
                Confirmation::Ack(None) => Ok(()),
                Confirmation::Ack(Some(_)) => bail!("no queue is bound to {place}"),
                Confirmation::Nack(_) | Confirmation::NotRequested => {
                    bail!("the broker refused a message to {place}; is the queue full?")
                }
            }
        })
    }

    /// Closes the connection.
    ///
    /// # Errors
    /// When it is gone already.
    pub async fn close(self) -> anyhow::Result<()> {
        Ok(self.connection.close(200, "done".into()).await?)
    }
}
