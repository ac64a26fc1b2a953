//! The exchanges, queues and bindings that a worker needs: declared, or verified to be there.

use anyhow::Context as _;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};

use crate::config::{BrokerSettings, TopologyMode};

/// Only against a message that kills the worker before its row: the broker dead-letters
/// it after so many deliveries. Lost connections count too, hence the height.
const DELIVERY_LIMIT: i32 = 1000;

/// A dead letter may be looked at as often as people like: RabbitMQ 4 would drop it after
/// twenty times, and has no word for "never" that RabbitMQ 3 knows.
const DEAD_LETTER_DELIVERY_LIMIT: i32 = 1_000_000;

/// Declares or verifies exchanges, queues and bindings.
pub(super) async fn set_up_topology(channel: &Channel, settings: &BrokerSettings) -> anyhow::Result<()> {
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

pub(super) fn arguments<const N: usize>(entries: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in entries {
        table.insert(key.into(), value);
    }
    table
}

pub(super) fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}
