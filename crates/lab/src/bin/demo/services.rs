//! The demo's own corner of PostgreSQL and RabbitMQ, and the provider's admin interface.

use std::time::Duration;

use anyhow::Context as _;
use lapin::options::{BasicGetOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::jobs::{self, digest};

pub const DATABASE: &str = "kyc_demo";
pub const EXCHANGE: &str = "kyc-demo";
pub const QUEUE: &str = "kyc-demo.document-updates";
pub const DEAD_LETTER_EXCHANGE: &str = "kyc-demo.dlx";
pub const DEAD_LETTER_QUEUE: &str = "kyc-demo.dead-letters";

/// How long the broker may take to move a rejected message to the dead-letter queue.
const DEAD_LETTERS_TIMEOUT: Duration = Duration::from_secs(10);

/// The broker as the demo looks at it.
pub struct Broker {
    // Closes the channel when it goes.
    _connection: Connection,
    channel: Channel,
}

impl Broker {
    pub async fn connect(amqp_url: &str) -> anyhow::Result<Self> {
        let connection = Connection::connect(amqp_url, ConnectionProperties::default())
            .await
            .context("AMQP_URL: cannot use RabbitMQ; `make services` starts one")?;
        let channel = connection.create_channel().await?;
        Ok(Self { _connection: connection, channel })
    }

    /// Deletes what the last demo left.
    pub async fn delete_queues(&self) -> anyhow::Result<()> {
        for queue in [QUEUE, DEAD_LETTER_QUEUE] {
            self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        }
        Ok(())
    }

    /// How many messages are ready in the queue.
    pub async fn count_queued(&self) -> anyhow::Result<u32> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let queue = self.channel.queue_declare(QUEUE.into(), passive, FieldTable::default()).await?;
        Ok(queue.message_count())
    }

    /// Looks at every dead letter, waiting for as many as are expected. They stay where
    /// they are: unacknowledged, they go back when the connection closes.
    pub async fn look_at_dead_letters(&self, expected: usize) -> anyhow::Result<Vec<[u8; 32]>> {
        let deadline = Instant::now() + DEAD_LETTERS_TIMEOUT;
        let mut found = Vec::new();
        loop {
            match self.channel.basic_get(DEAD_LETTER_QUEUE.into(), BasicGetOptions::default()).await? {
                Some(letter) => found.push(digest(&letter.delivery.data)),
                None if found.len() >= expected || Instant::now() > deadline => return Ok(found),
                None => sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

/// The simulated provider's admin interface.
pub struct Provider {
    admin_url: String,
    http: reqwest::Client,
}

impl Provider {
    pub fn new(admin_url: String) -> Self {
        #[expect(clippy::disallowed_methods, reason = "talks to the sandbox on this machine alone")]
        let http = reqwest::Client::new();
        Self { admin_url, http }
    }

    /// Posts the faults, and sets the customers that are not like others.
    pub async fn prepare(&self, jobs: &jobs::Jobs) -> anyhow::Result<()> {
        for rule in rules() {
            self.send(self.http.post(self.url("rules")).json(&rule)).await?;
        }
        for id in &jobs.no_customers {
            self.set_customer(id, json!({ "exists": false })).await?;
        }
        for id in &jobs.failing_customers {
            let fails = json!({ "verifies_as": "FAILED", "failure_reason": "KYC_FAILED" });
            self.set_customer(id, fails).await?;
        }
        for id in &jobs.spent_customers {
            self.set_customer(id, json!({ "updates": jobs::UPDATE_LIMIT })).await?;
        }
        Ok(())
    }

    pub async fn set_api_key(&self, api_key: &str) -> anyhow::Result<()> {
        self.send(self.http.post(self.url("settings")).json(&json!({ "api_key": api_key }))).await
    }

    async fn set_customer(&self, id: &Uuid, customer: Value) -> anyhow::Result<()> {
        self.send(self.http.put(self.url(&format!("customers/{id}"))).json(&customer)).await
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.admin_url)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<()> {
        request.send().await?.error_for_status().context("the sandbox refuses a setting")?;
        Ok(())
    }
}

/// The faults, each for the kind of job whose word is in the link.
fn rules() -> [Value; 6] {
    let rule = |kind: &str, fault: Value| {
        json!({
            "match": { "method": "PATCH", "link_contains": format!("/{kind}/") },
            "first_per_customer": 1,
            "before_auth": false,
            "fault": fault,
        })
    };
    let error = json!({
        "success": false, "message": "Internal Server Error",
        "errors": "An unexpected error occurred.", "data": null,
    });
    let internal_error = json!({ "kind": "respond", "status": 500, "body": error });
    let throttled = json!({
        "kind": "respond", "status": 429, "headers": { "Retry-After": "1" },
        "body": { "status": false, "message": "Request was throttled.", "errors": {}, "data": null },
    });
    let refusal = json!({
        "kind": "respond", "status": 400,
        "body": {
            "status": false, "message": "Bad Request",
            "errors": { "full_address": ["Enter a complete address."] }, "data": null,
        },
    });
    [
        rule("slow", json!({ "delay_before_ms": 1000 })),
        rule("throttled", json!({ "apply": "never", "answer": throttled })),
        rule("field", json!({ "apply": "never", "answer": refusal })),
        rule("fails-before", json!({ "apply": "never", "answer": internal_error })),
        rule("fails-after", json!({ "answer": internal_error })),
        rule("hangs-up", json!({ "answer": { "kind": "reset" } })),
    ]
}
