//! The storm's own corner of PostgreSQL and RabbitMQ, and a publisher that outlives its connections.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use lapin::{BasicProperties, Confirmation};
use parking_lot::Mutex;
use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

use crate::load::Message;
use kyc_lab::broker::{ANSWER_TIMEOUT, Broker, Queues, ROUTING_KEY};
use kyc_lab::services::{Disk, OwnCluster, OwnPostgres, START_TIME_MAX};

pub const DATABASE: &str = "kyc_storm";
pub const QUEUES: Queues = Queues {
    exchange: "kyc-storm",
    queue: "kyc-storm.document-updates",
    dead_letter_exchange: "kyc-storm.dlx",
    dead_letter_queue: "kyc-storm.dead-letters",
};

/// A database and a broker that can be killed. Every commit reaches the disk before it is answered.
pub struct OwnServices {
    pub postgres: OwnPostgres,
    /// One node, or three. Shared with a thread that may wait for them.
    rabbitmq: Arc<Mutex<OwnCluster>>,
    nodes: usize,
}

impl OwnServices {
    pub async fn start(nodes: usize) -> anyhow::Result<Self> {
        let rabbitmq = Arc::new(Mutex::new(spawn_blocking(move || OwnCluster::start(nodes)).await??));
        let postgres = OwnPostgres::start(Disk::Ample, &["max_connections=200"])?;
        Ok(Self { postgres, rabbitmq, nodes })
    }

    pub fn amqp_url(&self) -> String {
        self.rabbitmq.lock().url()
    }

    /// Waits for all of them, and blocks nobody.
    pub async fn wait_until_up(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIME_MAX;
        while !(self.postgres.is_up() && self.with_broker(|broker| Ok(broker.is_up())).await?) {
            ensure!(
                Instant::now() < deadline,
                "the storm's own services did not start within {START_TIME_MAX:?}"
            );
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Does to the broker what can be done to it, and after `down_time` helps it up again. Returns what
    /// it was.
    pub async fn strike_broker(&self, rng: &mut StdRng, down_time: Duration) -> anyhow::Result<&'static str> {
        if self.nodes == 1 {
            self.with_broker(|broker| broker.nodes[0].kill()).await?;
            sleep(down_time).await;
            self.with_broker(|broker| broker.nodes[0].begin_again()).await?;
            return Ok("broker killed");
        }
        let at = rng.random_range(0..self.nodes);
        // The others give up a node that hangs after 15 s at the earliest.
        let long = down_time + Duration::from_secs(rng.random_range(1..8));
        let kind = rng.random_range(0..4);
        match kind {
            0 | 1 => {
                let killed = self.with_broker(move |broker| {
                    let at = if kind == 0 { at } else { broker.leader_of(QUEUES.queue)? };
                    broker.nodes[at].kill()?;
                    Ok(at)
                });
                let at = killed.await?;
                sleep(down_time).await;
                self.with_broker(move |broker| broker.nodes[at].begin_again()).await?;
                Ok(if kind == 0 { "node of the broker killed" } else { "leader of the queue killed" })
            }
            2 => {
                self.with_broker(move |broker| broker.nodes[at].freeze()).await?;
                sleep(long).await;
                self.with_broker(move |broker| broker.nodes[at].thaw()).await?;
                Ok("node of the broker frozen (SIGSTOP)")
            }
            _ => {
                self.with_broker(move |broker| broker.cut_off(at)).await?;
                sleep(long).await;
                self.with_broker(move |broker| broker.reconnect(at)).await?;
                Ok("node of the broker cut off from the others")
            }
        }
    }

    /// RabbitMQ's tools take seconds: meanwhile, everything else goes on.
    async fn with_broker<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut OwnCluster) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let rabbitmq = Arc::clone(&self.rabbitmq);
        spawn_blocking(move || work(&mut rabbitmq.lock())).await?
    }
}

/// A header that is a list in a list, and so on.
fn nested_headers(depth: u16) -> FieldTable {
    let mut headers = FieldTable::default();
    if depth > 0 {
        let nested = (0..depth)
            .fold(FieldArray::default(), |inner, _| FieldArray::from(vec![AMQPValue::FieldArray(inner)]));
        headers.insert("nested".into(), AMQPValue::FieldArray(nested));
    }
    headers
}

/// A publisher that opens a new connection whenever the old one fails.
pub struct Publisher {
    url: String,
    open: Option<Broker>,
}

impl Publisher {
    pub fn new(url: String) -> Self {
        Self { url, open: None }
    }

    /// Publishes a message once and waits for the confirmation. After an error nobody
    /// knows whether the broker has it.
    pub async fn publish(&mut self, message_id: &str, message: &Message) -> anyhow::Result<()> {
        let broker = self.take().await?;
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_message_id(message_id.into())
            .with_headers(nested_headers(message.depth));
        let mandatory = BasicPublishOptions { mandatory: true, ..Default::default() };
        let publishing = async {
            let sent = broker.channel.basic_publish(
                QUEUES.exchange.into(),
                ROUTING_KEY.into(),
                mandatory,
                &message.body,
                properties,
            );
            anyhow::Ok(sent.await?.await?)
        };
        let confirmation = timeout(ANSWER_TIMEOUT, publishing).await??;
        ensure!(matches!(confirmation, Confirmation::Ack(None)), "the broker did not take the message");
        self.open = Some(broker);
        Ok(())
    }

    /// How many messages are ready in the queue.
    pub async fn count_queued(&mut self) -> anyhow::Result<u32> {
        let broker = self.take().await?;
        let queued = broker.count_queued(QUEUES).await?;
        self.open = Some(broker);
        Ok(queued)
    }

    /// The connection, which is given back only where it has served: another is opened then.
    async fn take(&mut self) -> anyhow::Result<Broker> {
        if let Some(open) = self.open.take() {
            return Ok(open);
        }
        let broker = Broker::connect(&self.url).await?;
        timeout(ANSWER_TIMEOUT, broker.channel.confirm_select(ConfirmSelectOptions::default())).await??;
        Ok(broker)
    }
}
