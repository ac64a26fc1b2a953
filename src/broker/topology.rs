//! The exchanges, queues and bindings that a worker needs: declared, or verified to be there.

use anyhow::Context as _;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ExchangeKind, Queue};

use super::answer::{answer, refusal};
use super::asking::{Asking, arguments, text};
use super::declared::LosesMessages;
use crate::config::{BrokerSettings, TopologyMode};

/// Only against a message that kills the worker before its row: the broker dead-letters it after
/// so many deliveries, as many as RabbitMQ 4 takes by itself. A lost session counts for all that
/// it held, but for one that came back each session begins alone (`session::Pace`), so that no
/// other comes near.
pub(super) const DELIVERY_LIMIT: i32 = 20;

/// People may inspect a dead letter as often as they like: RabbitMQ 4 would drop it after twenty
/// times, and has no value for "never" that RabbitMQ 3 knows.
const DEAD_LETTER_DELIVERY_LIMIT: i32 = 1_000_000;

/// Whose queue is set up. Each edge has one of its own, and depends on no other's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Edge {
    Jobs,
    CustomerEvents,
}

impl Edge {
    /// The setting that names its queue, for errors.
    pub(super) fn setting(self) -> &'static str {
        match self {
            Self::Jobs => "QUEUE",
            Self::CustomerEvents => "CUSTOMER_EVENTS_QUEUE",
        }
    }

    /// Its queue, and the key that binds it.
    pub(super) fn queue(self, settings: &BrokerSettings) -> (&str, &str) {
        match self {
            Self::Jobs => (&settings.queue, &settings.routing_key),
            Self::CustomerEvents => (&settings.customer_events_queue, &settings.customer_events_routing_key),
        }
    }

    /// Whose a queue of this name is. What was in none that we know is a job, or comes back as none.
    pub(super) fn of_queue(name: Option<&str>, settings: &BrokerSettings) -> Self {
        if name == Some(&settings.customer_events_queue) { Self::CustomerEvents } else { Self::Jobs }
    }
}

/// What is declared: an exchange, or a queue with its arguments.
#[derive(Clone)]
pub(super) enum Part<'a> {
    Exchange(&'a str),
    /// The one that upstream binds its queues to.
    EventsExchange(&'a str),
    Queue(&'a str, FieldTable),
}

impl std::fmt::Display for Part<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exchange(name) => write!(f, "exchange {name}"),
            Self::EventsExchange(name) => write!(f, "topic exchange {name}"),
            Self::Queue(name, _) => write!(f, "queue {name}"),
        }
    }
}

/// Declares or verifies what an edge needs: its queue, and the place of its dead letters.
/// Returns the faults that it can work with:
///
/// Where the exchange and the queue of dead letters are there, but not as they would be declared
/// (another `DEAD_LETTER_TTL`, say), rejects are kept as well. Where they are missing, the broker
/// would hold every reject in the edge's queue, so that is an error.
pub(super) async fn set_up_topology(
    connection: &Connection,
    settings: &BrokerSettings,
    edge: Edge,
) -> anyhow::Result<Vec<anyhow::Error>> {
    let BrokerSettings { exchange, dead_letter_exchange, dead_letter_queue, .. } = settings;
    let (queue, key) = edge.queue(settings);
    let mut asking = Asking::new(connection).await?;
    let mut tolerated = Vec::new();
    asking.set_up(settings, "EXCHANGE", &Part::Exchange(exchange)).await?;
    for (setting, part) in [
        ("DEAD_LETTER_EXCHANGE", Part::Exchange(dead_letter_exchange)),
        ("DEAD_LETTER_QUEUE", Part::Queue(dead_letter_queue, dead_letter_arguments(settings))),
    ] {
        tolerated.extend(asking.set_up_or_find(settings, setting, &part).await?);
    }
    asking.set_up(settings, edge.setting(), &Part::Queue(queue, work_arguments(settings))).await?;
    if settings.topology == TopologyMode::Declare {
        let dead_letters =
            (dead_letter_queue.as_str(), dead_letter_exchange.as_str(), dead_letter_queue.as_str());
        match asking.bind("DEAD_LETTER_QUEUE", dead_letters).await {
            // Without the right to bind it we cannot know that it is bound. If it is not, the broker holds
            // rejects.
            Err(refused) if refusal(&refused).is_some() => tolerated.push(refused),
            bound => bound?,
        }
        asking.bind(edge.setting(), (queue, exchange, key)).await?;
    }
    asking.done().await;
    Ok(tolerated)
}

/// Declares or verifies the exchange that outcome events are published to. Its queues are upstream's.
pub(super) async fn set_up_events(connection: &Connection, settings: &BrokerSettings) -> anyhow::Result<()> {
    let mut asking = Asking::new(connection).await?;
    asking.set_up(settings, "EVENTS_EXCHANGE", &Part::EventsExchange(&settings.events_exchange)).await?;
    asking.done().await;
    Ok(())
}

async fn declare_exchange(
    channel: &Channel,
    name: &str,
    kind: ExchangeKind,
    passive: bool,
) -> anyhow::Result<()> {
    let options = ExchangeDeclareOptions { passive, durable: true, ..Default::default() };
    answer(channel.exchange_declare(name.into(), kind, options, FieldTable::default())).await
}

impl Asking<'_> {
    /// Declares a part, or asks whether it is there.
    pub async fn declare(&mut self, part: &Part<'_>, passive: bool) -> anyhow::Result<Option<Queue>> {
        let channel = self.channel().await?;
        match part {
            Part::Exchange(name) => {
                declare_exchange(channel, name, ExchangeKind::Direct, passive).await?;
                Ok(None)
            }
            Part::EventsExchange(name) => {
                declare_exchange(channel, name, ExchangeKind::Topic, passive).await?;
                Ok(None)
            }
            Part::Queue(name, arguments) => {
                let options = QueueDeclareOptions { passive, ..QueueDeclareOptions::durable() };
                answer(channel.queue_declare((*name).into(), options, arguments.clone())).await.map(Some)
            }
        }
    }

    async fn set_up(
        &mut self,
        settings: &BrokerSettings,
        setting: &str,
        part: &Part<'_>,
    ) -> anyhow::Result<()> {
        let (passive, remedy) = match settings.topology {
            TopologyMode::Declare => {
                (false, "if it exists with other arguments, delete it or set TOPOLOGY=verify")
            }
            TopologyMode::Verify => (true, "declare it at the broker, or set TOPOLOGY=declare"),
        };
        let declared = self.declare(part, passive).await;
        declared.with_context(|| format!("{setting}: cannot use {part}; {remedy}"))?;
        if let (TopologyMode::Verify, Part::Queue(queue, arguments)) = (settings.topology, part)
            && let Some(loses) = self.loss(queue, arguments).await?
        {
            return Err(anyhow::Error::from(loses).context(format!("{setting}: cannot use {part}")));
        }
        Ok(())
    }

    /// The same, but what is there already is taken as it is, and the refusal returned.
    async fn set_up_or_find(
        &mut self,
        settings: &BrokerSettings,
        setting: &str,
        part: &Part<'_>,
    ) -> anyhow::Result<Option<anyhow::Error>> {
        let refused = match self.set_up(settings, setting, part).await {
            Ok(()) => return Ok(None),
            Err(error) if error.is::<LosesMessages>() => return Ok(Some(error)),
            Err(error) if settings.topology == TopologyMode::Declare && refusal(&error).is_some() => error,
            Err(error) => return Err(error),
        };
        match self.declare(part, true).await {
            Ok(_) => Ok(Some(refused)),
            Err(error) if refusal(&error).is_some() => Err(refused),
            Err(error) => Err(error),
        }
    }

    /// Binds a queue to an exchange with a key.
    async fn bind(
        &mut self,
        setting: &str,
        (queue, exchange, key): (&str, &str, &str),
    ) -> anyhow::Result<()> {
        let channel = self.channel().await?;
        let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
        let binding = channel.queue_bind(queue.into(), exchange.into(), key.into(), options, arguments);
        answer(binding).await.with_context(|| {
            format!(
                "{setting}: cannot bind queue {queue} to exchange {exchange}; give this user the rights of docs/deployment.md, \"Least privilege\""
            )
        })
    }
}

/// At-least-once dead-lettering needs a quorum queue that rejects publishes on overflow;
/// with drop-head RabbitMQ falls back to at-most-once in silence (RabbitMQ, "Quorum Queues").
pub(super) fn work_arguments(settings: &BrokerSettings) -> FieldTable {
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

pub(super) fn dead_letter_arguments(settings: &BrokerSettings) -> FieldTable {
    let ttl_ms = i64::try_from(settings.dead_letter_ttl.as_millis()).unwrap_or(i64::MAX);
    arguments([
        ("x-queue-type", text("quorum")),
        ("x-message-ttl", AMQPValue::LongLongInt(ttl_ms)),
        ("x-delivery-limit", AMQPValue::LongInt(DEAD_LETTER_DELIVERY_LIMIT)),
    ])
}
