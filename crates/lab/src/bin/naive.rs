//! A peer to compare with: the worker's job as one would write it in Rust, a task a message
//! and a commit a statement. It parses and signs with the worker's own code, so that what
//! differs is how it writes and acks. It reads nothing back, retries nothing and knows of no
//! other job of a customer: for benchmarks alone. Takes the worker's settings from the
//! environment, and stops at SIGTERM.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use clap::Parser;
use dollarpe::canonical_json::Profile;
use dollarpe::signature::Signer;
use futures_util::StreamExt as _;
use kyc_worker::config::RunSettings;
use kyc_worker::domain::job::{Job, Rules};
use kyc_worker::domain::message::Message;
use kyc_worker::telemetry;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use serde::Deserialize;
use sqlx::postgres::{PgPool, PgPoolOptions};
use time::OffsetDateTime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tracing_subscriber::filter::{LevelFilter, Targets};
use uuid::Uuid;

const DATABASE_CONNECTIONS: u32 = 20;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    settings: RunSettings,
}

struct Naive {
    database: PgPool,
    http: reqwest::Client,
    url: String,
    signer: Signer,
    profile: Profile,
    rules: Rules,
}

#[derive(Deserialize)]
struct Answer {
    status: bool,
    message: Option<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // reqwest panics without it.
    rustls::crypto::ring::default_provider().install_default().map_err(|_| anyhow!("cannot set up TLS"))?;
    let settings = Arguments::parse().settings;
    let _last_lines = telemetry::start(None, Targets::new().with_default(LevelFilter::INFO))?;
    let checked = settings.check().map_err(|faults| anyhow!("{}", faults[0]))?;
    let database = PgPoolOptions::new()
        .max_connections(DATABASE_CONNECTIONS)
        .connect(checked.database_url.expose())
        .await
        .context("DATABASE_URL: cannot use Postgres")?;
    #[expect(clippy::disallowed_methods, reason = "a peer, on this machine alone")]
    let http = reqwest::Client::new();
    let naive = Arc::new(Naive {
        database,
        http,
        url: format!(
            "{}/kyc/update-document-info",
            settings.provider.base_url()?.as_str().trim_end_matches('/')
        ),
        signer: Signer::new(checked.api_key.expose(), checked.api_secret.expose()),
        profile: settings.provider.dollarpe_signing_profile,
        rules: settings.jobs.rules(),
    });

    let connection = Connection::connect(checked.amqp_url.expose(), ConnectionProperties::default())
        .await
        .context("AMQP_URL: cannot use RabbitMQ")?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(settings.work.prefetch, BasicQosOptions::default()).await?;
    let (queue, name) = (settings.broker.queue.as_str(), "naive");
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut deliveries = channel.basic_consume(queue.into(), name.into(), options, arguments).await?;
    let permits = Arc::new(Semaphore::new(settings.work.concurrency as usize));
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    loop {
        let delivery = tokio::select! {
            delivery = deliveries.next() => delivery.context("the broker cancelled the consumer")??,
            _ = terminate.recv() => return Ok(()),
        };
        let permit = Arc::clone(&permits).acquire_owned().await?;
        let naive = Arc::clone(&naive);
        tokio::spawn(async move {
            // What is not acked makes the benchmark fail.
            if let Err(error) = naive.handle(&delivery).await {
                tracing::error!("{error:#}");
            }
            drop(permit);
        });
    }
}

impl Naive {
    async fn handle(&self, delivery: &Delivery) -> anyhow::Result<()> {
        let message_id = delivery.properties.message_id().as_ref().map(ToString::to_string);
        let message = Message { body: delivery.data.clone(), message_id, ..Message::default() };
        let job = Job::parse(&message, OffsetDateTime::now_utc(), &self.rules)
            .map_err(|invalid| anyhow!("{invalid}"))?;
        let signed_at = OffsetDateTime::now_utc();
        self.write_intent(&job, signed_at).await?;
        let (status, answer) = self.send(&job, signed_at).await?;
        self.write_outcome(job.id, status, &answer).await?;
        delivery.ack(BasicAckOptions::default()).await?;
        Ok(())
    }

    async fn write_intent(&self, job: &Job, signed_at: OffsetDateTime) -> anyhow::Result<()> {
        sqlx::query("insert into peer.intent (job_id, customer_id, signed_at) values ($1, $2, $3)")
            .bind(job.id)
            .bind(job.customer_id)
            .bind(signed_at)
            .execute(&self.database)
            .await?;
        Ok(())
    }

    async fn send(&self, job: &Job, signed_at: OffsetDateTime) -> anyhow::Result<(u16, Answer)> {
        let body = job.request.to_canonical(self.profile);
        let timestamp = signed_at.unix_timestamp();
        let signature = self.signer.sign(timestamp, &body);
        let response = self
            .http
            .patch(&self.url)
            .timeout(Duration::from_secs(15))
            .header("content-type", "application/json")
            .header("x-api-key", self.signer.api_key())
            .header("x-timestamp", timestamp)
            .header("x-signature", signature)
            .body(body)
            .send()
            .await?;
        let status = response.status().as_u16();
        #[expect(clippy::disallowed_methods, reason = "a peer, on this machine alone")]
        let answer: Answer = response.json().await?;
        ensure!(answer.status, "the provider answered {status}: {:?}", answer.message);
        Ok((status, answer))
    }

    async fn write_outcome(&self, job_id: Uuid, status: u16, answer: &Answer) -> anyhow::Result<()> {
        sqlx::query(
            "insert into peer.outcome (job_id, state, http_status, message) values ($1, 'accepted', $2, $3)",
        )
        .bind(job_id)
        .bind(i32::from(status))
        .bind(answer.message.as_deref())
        .execute(&self.database)
        .await?;
        Ok(())
    }
}
