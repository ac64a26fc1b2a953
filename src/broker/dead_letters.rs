//! The dead-letter queue as a person inspects it. What is only inspected goes back when the
//! connection closes; what is requeued is acked only after the broker has confirmed its copy.

use anyhow::Context as _;
use lapin::message::{BasicGetMessage, Delivery};
use lapin::options::{BasicAckOptions, BasicGetOptions};
use lapin::{Channel, Connection};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use super::answer::{answer, close};
use super::connection::{Broker, Connected, count_in};
use super::filter::{Alterations, Appetite};
use super::publisher::{NotTaken, Publisher};
use super::topology::Edge;
use super::x_death::{Death, made_new};
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
    /// Whose queue it was in.
    edge: Edge,
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
    settings: BrokerSettings,
}

impl DeadLetters {
    /// Connects. The queue must be there.
    ///
    /// # Errors
    /// When the broker cannot be reached.
    pub async fn open(broker: &Broker) -> anyhow::Result<Self> {
        let Connected { connection, alterations, .. } = broker.connect_for(Appetite::WHOLE).await?;
        let channel =
            answer(connection.create_channel()).await.context("DEAD_LETTER_QUEUE: cannot open a channel")?;
        Ok(Self { connection, channel, alterations, settings: broker.settings.clone() })
    }

    /// The next dead letter, and `None` after the last. It is held, so that the one after it
    /// is another.
    ///
    /// # Errors
    /// When the broker fails, or the queue is not there.
    pub async fn next(&self) -> anyhow::Result<Option<DeadLetter>> {
        let queue = self.settings.dead_letter_queue.as_str();
        let got = answer(self.channel.basic_get(queue.into(), BasicGetOptions::default()))
            .await
            .with_context(|| format!("DEAD_LETTER_QUEUE: cannot read {queue}"))?;
        Ok(got.map(|BasicGetMessage { mut delivery, .. }| {
            let body = std::mem::take(&mut delivery.data);
            let Death { cause, died_at, queue } = Death::newest(&delivery.properties);
            let altered = self.alterations.take(self.channel.id(), delivery.delivery_tag);
            DeadLetter {
                body_sha256: Sha256::digest(&body).into(),
                body,
                message_id: delivery.properties.message_id().as_ref().map(ToString::to_string),
                cause,
                died_at,
                edge: Edge::of_queue(queue.as_deref(), &self.settings),
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
        count_in(&self.channel, "DEAD_LETTER_QUEUE", &self.settings.dead_letter_queue).await
    }

    /// Publishes a dead letter for the queue that it was in, and removes it from here once the
    /// broker has confirmed that. Where it goes is the settings' word, whatever exchange and keys
    /// its headers name: those can be a publisher's. A crash in between leaves two of it, never none; a job
    /// that comes twice is sent once.
    ///
    /// # Errors
    /// When the broker does not take it; then it stays.
    pub async fn requeue(&self, publisher: &mut Publisher, letter: &DeadLetter) -> Result<(), NotTaken> {
        let (_, routing_key) = letter.edge.queue(&self.settings);
        let properties = made_new(&letter.delivery.properties);
        publisher.publish_again(&self.settings.exchange, routing_key, properties, &letter.body).await?;
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
