//! Publishes messages, each confirmed.

use anyhow::bail;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, Connection};

use super::Broker;
use super::topology::set_up_topology;
use crate::config::BrokerSettings;

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
    pub(super) async fn publish_to(
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
