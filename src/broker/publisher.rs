//! Publishes messages, each confirmed.

use std::fmt;
use std::time::Duration;

use anyhow::Context as _;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::protocol::AMQPErrorKind;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionStatus};
use tokio::time::timeout;
use uuid::Uuid;

use super::answer::{answer, close, refusal};
use super::connection::Broker;
use super::topology::{Edge, set_up_events};
use crate::config::BrokerSettings;
use crate::domain::outcome_event::{CONTENT_TYPE, OutcomeEvent};
use crate::domain::trace_context::TraceContext;

/// From a message to its confirmation. Longer than any question takes: a broker with an alarm
/// takes nothing until it is over, and what it does not take can be published again.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// A publisher with confirms, on a connection of its own: a broker that blocks publishers
/// stops a connection altogether, acks and heartbeats included.
pub struct Publisher {
    connection: Connection,
    channel: Channel,
    settings: BrokerSettings,
    /// Our user at the broker.
    user: String,
}

/// Why a message was not taken.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// The broker refuses this message, and may take the next.
    #[error("{0}")]
    Refused(String),
    /// The queue does not take it now: it is full, or a quorum queue whose leader has gone.
    #[error("the broker did not take a message to {0}: its queue is full, or has no leader for the moment")]
    Nacked(String),
    /// The broker takes nothing, or did not say what became of it.
    #[error("{0}; what was published last may have arrived all the same")]
    Unconfirmed(Wait),
    #[error(
        "the connection failed before the confirmation; what was published last may have arrived all the same"
    )]
    Lost(#[source] anyhow::Error),
}

impl From<anyhow::Error> for NotTaken {
    fn from(error: anyhow::Error) -> Self {
        match refusal(&error) {
            Some(AMQPErrorKind::Soft(_)) => {
                Self::Refused(format!("the broker refused it: {}", error.root_cause()))
            }
            _ => Self::Lost(error),
        }
    }
}

/// What a message waits for at the broker, in words.
#[derive(Clone)]
pub struct Wait(ConnectionStatus);

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0.blocked() {
            true => {
                "RabbitMQ takes no messages now: it has an alarm for memory or disk, see `rabbitmq-diagnostics alarms` and make room"
            }
            false => "RabbitMQ has not confirmed a message; look at its log and its load",
        })?;
        write!(f, " (a message is waited for {CONFIRM_TIMEOUT:?})")
    }
}

impl fmt::Debug for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wait").field("blocked", &self.0.blocked()).finish()
    }
}

impl Publisher {
    /// Connects, and declares or verifies the topology.
    ///
    /// # Errors
    /// When the broker cannot be reached or has other ideas.
    pub async fn open(broker: &Broker) -> anyhow::Result<Self> {
        let connection = broker.connect().await?;
        broker.set_up_topology(&connection, Edge::Jobs).await?;
        Self::on(connection, broker).await
    }

    /// Connects, for an exchange that is there.
    pub(super) async fn open_for_letters(broker: &Broker) -> anyhow::Result<Self> {
        Self::on(broker.connect().await?, broker).await
    }

    /// Connects, for outcome events, and declares or verifies their exchange.
    ///
    /// # Errors
    /// When the broker cannot be reached or has other ideas.
    pub async fn open_for_events(broker: &Broker) -> anyhow::Result<Self> {
        let connection = broker.connect().await?;
        set_up_events(&connection, &broker.settings).await?;
        Self::on(connection, broker).await
    }

    async fn on(connection: Connection, broker: &Broker) -> anyhow::Result<Self> {
        let channel = open_channel(&connection).await?;
        let user = broker.user().to_owned();
        Ok(Self { connection, channel, settings: broker.settings.clone(), user })
    }

    /// Publishes one persistent message and returns what waits for its confirmation, so
    /// that many can be under way. The customer is also in a header, which an exchange in front of several
    /// installations hashes by: always in lower case, since the hash sees bytes.
    ///
    /// # Errors
    /// When the connection is gone; the returned future's, when the broker does not take
    /// the message or no queue is bound to its key.
    pub async fn publish(
        &self,
        message_id: &str,
        customer_id: Option<Uuid>,
        body: &[u8],
    ) -> Result<impl Future<Output = Result<(), NotTaken>> + use<>, NotTaken> {
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        // A trace of its own, which we keep no part of. One in 2^64 ids is none.
        let trace = TraceContext::new(rand::random(), rand::random(), false);
        let mut headers = headers(trace);
        if let Some(customer_id) = customer_id {
            headers.insert("customer_id".into(), AMQPValue::LongString(customer_id.to_string().into()));
        }
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_delivery_mode(2)
            .with_headers(headers)
            .with_message_id(short("message_id", message_id)?)
            .with_timestamp(u64::try_from(now).unwrap_or_default());
        let BrokerSettings { exchange, routing_key, .. } = &self.settings;
        self.publish_to(exchange, routing_key, properties, body).await
    }

    /// Publishes one outcome event, persistent as well, and returns what waits for its confirmation. What
    /// consumers find in the body is in the properties too, for those that look only there.
    ///
    /// # Errors
    /// As those of [`Publisher::publish`].
    pub async fn publish_event(
        &self,
        event: &OutcomeEvent,
    ) -> Result<impl Future<Output = Result<(), NotTaken>> + use<>, NotTaken> {
        let mut properties = BasicProperties::default()
            .with_content_type(CONTENT_TYPE.into())
            .with_delivery_mode(2)
            .with_headers(headers(event.trace))
            .with_message_id(short("message_id", &event.id())?)
            .with_type(short("type", &event.type_name())?)
            .with_app_id("kyc-worker".into())
            .with_timestamp(u64::try_from(event.at.unix_timestamp()).unwrap_or_default());
        if let Some(correlation_id) = &event.correlation_id {
            properties = properties.with_correlation_id(short("correlation_id", correlation_id)?);
        }
        let body = event.to_json().to_string();
        let key = event.kind.name();
        self.publish_to(&self.settings.events_exchange, key, properties, body.as_bytes()).await
    }

    /// The same, to any exchange and with any properties.
    async fn publish_to(
        &self,
        exchange: &str,
        routing_key: &str,
        properties: BasicProperties,
        body: &[u8],
    ) -> Result<impl Future<Output = Result<(), NotTaken>> + use<>, NotTaken> {
        // A confirm for an unroutable message is an ack; only the returned message tells.
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let publishing =
            self.channel.basic_publish(exchange.into(), routing_key.into(), options, body, properties);
        let wait = self.wait();
        // A blocked connection does not even send it.
        let confirm = confirmed(&wait, publishing).await?;
        let place = format!("exchange {exchange} with key {routing_key}");
        Ok(async move {
            match confirmed(&wait, confirm).await? {
                Confirmation::Ack(None) => Ok(()),
                Confirmation::Ack(Some(_)) => Err(NotTaken::Refused(format!("no queue is bound to {place}"))),
                Confirmation::Nack(_) | Confirmation::NotRequested => Err(NotTaken::Nacked(place)),
            }
        })
    }

    /// Publishes one message again, with the properties that it had, and waits for its
    /// confirmation. After a refusal, which closes a channel, the next has a new one.
    ///
    /// # Errors
    /// When the broker does not take it.
    pub(super) async fn publish_again(
        &mut self,
        exchange: &str,
        routing_key: &str,
        mut properties: BasicProperties,
        body: &[u8],
    ) -> Result<(), NotTaken> {
        if !self.channel.status().connected() {
            self.channel = open_channel(&self.connection).await?;
        }
        // RabbitMQ vouches for it, and takes no other user's than the publisher's.
        if properties.user_id().as_ref().is_some_and(|user| user.as_str() != self.user) {
            properties = properties.with_user_id(short("user_id", &self.user)?);
        }
        self.publish_to(exchange, routing_key, properties, body).await?.await
    }

    pub fn wait(&self) -> Wait {
        Wait(self.connection.status().clone())
    }

    pub async fn close(self) {
        close(&self.connection).await;
    }
}

/// Whether the broker is there and does not take a message, so that waiting alone mends nothing.
pub fn is_refused(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(NotTaken::Refused(_)))
        || matches!(refusal(error), Some(AMQPErrorKind::Soft(_)))
}

/// The headers of a message that belongs to a trace, if it does.
fn headers(trace: Option<TraceContext>) -> FieldTable {
    let mut headers = FieldTable::default();
    if let Some(trace) = trace {
        headers.insert("traceparent".into(), AMQPValue::LongString(trace.to_string().into()));
    }
    headers
}

/// A text that others chose, as AMQP takes it: `into` would panic at the 256th byte.
fn short(name: &str, text: &str) -> Result<ShortString, NotTaken> {
    ShortString::try_new(text).map_err(|_too_long| {
        NotTaken::Refused(format!("its {name} has {} bytes, and AMQP takes 255", text.len()))
    })
}

async fn open_channel(connection: &Connection) -> anyhow::Result<Channel> {
    let fault = "AMQP_URL: cannot open a channel to publish on";
    let channel = answer(connection.create_channel()).await.context(fault)?;
    answer(channel.confirm_select(ConfirmSelectOptions::default())).await.context(fault)?;
    Ok(channel)
}

/// Waits for the broker to take what is published.
async fn confirmed<T>(
    wait: &Wait,
    publishing: impl Future<Output = lapin::Result<T>>,
) -> Result<T, NotTaken> {
    match timeout(CONFIRM_TIMEOUT, publishing).await {
        Ok(published) => published.map_err(|error| anyhow::Error::from(error).into()),
        Err(_elapsed) => Err(NotTaken::Unconfirmed(wait.clone())),
    }
}
