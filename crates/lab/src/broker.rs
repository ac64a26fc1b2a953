//! The queues of a program's own at RabbitMQ: their names, made from the program's, and what is in
//! them.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use kyc_worker::config::{Secret, parse_amqp_url};
use lapin::options::{BasicGetOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};
use tokio::time::{Instant, sleep, timeout};

use crate::books::digest;

/// Nothing that is asked of a broker that is up takes longer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the broker may take to move rejected messages to the dead-letter queue.
const DEAD_LETTERS_TIMEOUT: Duration = Duration::from_secs(15);

/// The names of one program's exchanges and queues.
#[derive(Clone, Copy)]
pub struct Queues {
    pub exchange: &'static str,
    pub queue: &'static str,
    pub dead_letter_exchange: &'static str,
    pub dead_letter_queue: &'static str,
}

/// The routing key of all jobs.
pub const ROUTING_KEY: &str = "document-update";

impl Queues {
    /// The worker's settings that name them.
    pub fn settings(self) -> [(&'static str, &'static str); 5] {
        [
            ("EXCHANGE", self.exchange),
            ("QUEUE", self.queue),
            ("ROUTING_KEY", ROUTING_KEY),
            ("DEAD_LETTER_EXCHANGE", self.dead_letter_exchange),
            ("DEAD_LETTER_QUEUE", self.dead_letter_queue),
        ]
    }
}

/// A connection with one channel. Dropping it closes both.
pub struct Broker {
    _connection: Connection,
    pub channel: Channel,
}

impl Broker {
    /// Connects to the first host of the URL that lets us in.
    pub async fn connect(amqp_url: &str) -> anyhow::Result<Self> {
        let mut opened = Err(anyhow!("AMQP_URL: names no host"));
        for uri in parse_amqp_url(&Secret::from(amqp_url))? {
            let opening = async {
                let connection = Connection::connect_uri(uri, ConnectionProperties::default()).await?;
                let channel = connection.create_channel().await?;
                anyhow::Ok(Self { _connection: connection, channel })
            };
            opened = timeout(ANSWER_TIMEOUT, opening).await.context("RabbitMQ does not answer").flatten();
            if opened.is_ok() {
                break;
            }
        }
        opened.context("AMQP_URL: cannot use RabbitMQ; `make services` starts one")
    }

    /// Deletes what the last run left.
    pub async fn delete_queues(&self, queues: Queues) -> anyhow::Result<()> {
        for queue in [queues.queue, queues.dead_letter_queue] {
            self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        }
        Ok(())
    }

    /// How many messages are ready in the queue.
    pub async fn count_queued(&self, queues: Queues) -> anyhow::Result<u32> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let asking = self.channel.queue_declare(queues.queue.into(), passive, FieldTable::default());
        Ok(timeout(ANSWER_TIMEOUT, asking).await??.message_count())
    }

    /// Reads every dead letter, waiting for as many as are expected. They stay where they are:
    /// unacknowledged, they go back when the connection closes.
    pub async fn read_dead_letters(self, queues: Queues, expected: usize) -> anyhow::Result<Vec<[u8; 32]>> {
        let deadline = Instant::now() + DEAD_LETTERS_TIMEOUT;
        let mut found = Vec::new();
        let queue = queues.dead_letter_queue;
        loop {
            match self.channel.basic_get(queue.into(), BasicGetOptions::default()).await? {
                Some(letter) => found.push(digest(&letter.delivery.data)),
                None if found.len() >= expected || Instant::now() > deadline => return Ok(found),
                None => sleep(Duration::from_millis(50)).await,
            }
        }
    }
}
