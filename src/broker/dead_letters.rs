//! The dead-letter queue as a person inspects it. What is only inspected goes back when the
//! connection closes; what is requeued is acked only after the broker has confirmed its copy.

use anyhow::Context as _;
use lapin::message::{BasicGetMessage, Delivery};
use lapin::options::{BasicAckOptions, BasicGetOptions};
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use lapin::{BasicProperties, Channel, Connection};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use super::answer::{answer, close};
use super::connection::{Broker, count_in};
use super::filter::{Alterations, Appetite};
use super::publisher::{NotTaken, Publisher};
use crate::config::BrokerSettings;
use crate::failpoint::{self, Point};
use dollarpe::canonical_json::Fault;

/// A dead letter, held until its queue is closed or it is requeued.
pub struct DeadLetter {
    /// The body, whole: it holds what the customer entered.
    pub body: Vec<u8>,
    /// SHA-256 of the body.
    pub body_sha256: [u8; 32],
    pub message_id: Option<String>,
    /// Why it is here: `rejected` by a worker, or by the broker itself `delivery_limit`,
    /// `expired` or `maxlen`.
    pub cause: Option<String>,
    pub died_at: Option<OffsetDateTime>,
    /// What of its properties could not be read and is not here: published again, it would be
    /// another message.
    pub unreadable: Vec<Fault>,
    /// Where it was published to, and with which key.
    origin: Option<(String, String)>,
    delivery: Delivery,
}

impl DeadLetter {
    /// The name that people call it by: the first twelve digits of its body's SHA-256.
    pub fn id(&self) -> String {
        self.body_sha256.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The dead-letter queue, opened to be read through once.
pub struct DeadLetters {
    connection: Connection,
    channel: Channel,
    alterations: Alterations,
    queue: String,
    exchange: String,
    routing_key: String,
}

impl DeadLetters {
    /// Connects. The queue must be there.
    ///
    /// # Errors
    /// When the broker cannot be reached.
    pub async fn open(broker: &Broker) -> anyhow::Result<Self> {
        let (connection, alterations) = broker.connect_for(Appetite::WHOLE).await?;
        let channel =
            answer(connection.create_channel()).await.context("DEAD_LETTER_QUEUE: cannot open a channel")?;
        let BrokerSettings { dead_letter_queue, exchange, routing_key, .. } = &broker.settings;
        Ok(Self {
            connection,
            channel,
            alterations,
            queue: dead_letter_queue.clone(),
            exchange: exchange.clone(),
            routing_key: routing_key.clone(),
        })
    }

    /// The next dead letter, and `None` after the last. It is held, so that the one after it
    /// is another.
    ///
    /// # Errors
    /// When the broker fails, or the queue is not there.
    pub async fn next(&self) -> anyhow::Result<Option<DeadLetter>> {
        let got = answer(self.channel.basic_get(self.queue.as_str().into(), BasicGetOptions::default()))
            .await
            .with_context(|| format!("DEAD_LETTER_QUEUE: cannot read {}", self.queue))?;
        Ok(got.map(|BasicGetMessage { mut delivery, .. }| {
            let body = std::mem::take(&mut delivery.data);
            let death = delivery.properties.headers().as_ref().and_then(first_death);
            let altered = self.alterations.take(self.channel.id(), delivery.delivery_tag);
            DeadLetter {
                body_sha256: Sha256::digest(&body).into(),
                body,
                message_id: delivery.properties.message_id().as_ref().map(ToString::to_string),
                cause: death.and_then(|death| text_of(death, "reason")),
                died_at: death.and_then(time_of),
                origin: death.and_then(origin_of),
                unreadable: altered.map(|alteration| alteration.faults).unwrap_or_default(),
                delivery,
            }
        }))
    }

    /// How many there are that nobody holds.
    ///
    /// # Errors
    /// When the broker fails, or the queue is not there.
    pub async fn count(&self) -> anyhow::Result<u32> {
        count_in(&self.channel, "DEAD_LETTER_QUEUE", &self.queue).await
    }

    /// Publishes a dead letter where it came from, as it was, and removes it from here once
    /// the broker has confirmed that. A crash in between leaves two of it, never none; a job
    /// that comes twice is sent once.
    ///
    /// # Errors
    /// When the broker does not take it; then it stays.
    pub async fn requeue(&self, publisher: &mut Publisher, letter: &DeadLetter) -> Result<(), NotTaken> {
        let (exchange, routing_key) = match &letter.origin {
            Some((exchange, routing_key)) => (exchange.as_str(), routing_key.as_str()),
            None => (self.exchange.as_str(), self.routing_key.as_str()),
        };
        let properties = without_history(&letter.delivery.properties);
        publisher.publish_again(exchange, routing_key, properties, &letter.body).await?;
        failpoint::reach(Point::RequeueConfirmed);
        let removed = answer(letter.delivery.ack(BasicAckOptions::default())).await;
        let fault = "its copy is queued, and it is still here: requeue it once more, a job that comes twice is sent once";
        match removed {
            Ok(true) => Ok(()),
            Ok(false) => Err(NotTaken::Lost(anyhow::anyhow!(fault))),
            Err(error) => Err(NotTaken::Lost(error.context(fault))),
        }
    }

    /// Closes the connection: what was only inspected is ready again.
    pub async fn close(self) {
        close(&self.connection).await;
    }
}

/// The properties without the broker's own headers: to the broker it is a new message.
fn without_history(properties: &BasicProperties) -> BasicProperties {
    let mut kept = FieldTable::default();
    for (key, value) in properties.headers().iter().flat_map(FieldTable::inner) {
        let is_brokers = key.as_str().starts_with("x-death")
            || key.as_str().starts_with("x-first-death")
            || key.as_str().starts_with("x-last-death")
            || key.as_str() == "x-delivery-count";
        if !is_brokers {
            kept.insert(key.clone(), value.clone());
        }
    }
    properties.clone().with_headers(kept).with_delivery_mode(2)
}

/// The newest entry of `x-death` (RabbitMQ, "Dead Letter Exchanges").
fn first_death(headers: &FieldTable) -> Option<&FieldTable> {
    match headers.inner().get("x-death")? {
        AMQPValue::FieldArray(deaths) => match FieldArray::as_slice(deaths).first()? {
            AMQPValue::FieldTable(death) => Some(death),
            _ => None,
        },
        _ => None,
    }
}

fn text_of(table: &FieldTable, key: &str) -> Option<String> {
    match table.inner().get(key)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

fn time_of(death: &FieldTable) -> Option<OffsetDateTime> {
    match death.inner().get("time")? {
        AMQPValue::Timestamp(seconds) => {
            OffsetDateTime::from_unix_timestamp(i64::try_from(*seconds).ok()?).ok()
        }
        _ => None,
    }
}

fn origin_of(death: &FieldTable) -> Option<(String, String)> {
    let AMQPValue::FieldArray(keys) = death.inner().get("routing-keys")? else { return None };
    let key = match FieldArray::as_slice(keys).first()? {
        AMQPValue::LongString(key) => key.to_string(),
        AMQPValue::ShortString(key) => key.to_string(),
        _ => return None,
    };
    Some((text_of(death, "exchange")?, key))
}
