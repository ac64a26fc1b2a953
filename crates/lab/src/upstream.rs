//! Upstream as a consumer of outcome events: it takes what is published, deduplicates by `id`, and compares
//! it with what the tables imply.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use anyhow::Context as _;
use kyc_worker::domain::outcome_event::id;
use kyc_worker::domain::state::EventKind;
use lapin::options::{
    BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, ExchangeKind};
use serde_json::Value;
use sqlx::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::books::Check;
use crate::broker::Broker;

/// An event as it was taken.
#[derive(Clone, Debug)]
pub struct Taken {
    pub routing_key: String,
    pub properties: BasicProperties,
    pub event: Value,
}

/// A queue of upstream's.
pub struct Upstream {
    broker: Broker,
    exchange: String,
    queue: String,
}

impl Upstream {
    /// Makes a queue anew that is bound to every event of the exchange, which is declared as the worker does it.
    pub async fn listen(amqp_url: &str, exchange: &str, queue: &str) -> anyhow::Result<Self> {
        let upstream = Self::connect(amqp_url, exchange, queue).await?;
        let broker = &upstream.broker;
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let (kind, none) = (ExchangeKind::Topic, FieldTable::default());
        broker.channel.exchange_declare(exchange.into(), kind, options, none).await?;
        broker.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        broker.channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments).await?;
        upstream.bind().await?;
        Ok(upstream)
    }

    /// Binds a queue to an exchange that is there.
    pub async fn bind_to(amqp_url: &str, exchange: &str, queue: &str) -> anyhow::Result<Self> {
        let upstream = Self::connect(amqp_url, exchange, queue).await?;
        let options = QueueDeclareOptions::durable();
        upstream.broker.channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
        upstream.bind().await?;
        Ok(upstream)
    }

    /// Connects to a queue that was made before.
    pub async fn connect(amqp_url: &str, exchange: &str, queue: &str) -> anyhow::Result<Self> {
        let broker = Broker::connect(amqp_url).await?;
        Ok(Self { broker, exchange: exchange.to_owned(), queue: queue.to_owned() })
    }

    pub async fn bind(&self) -> anyhow::Result<()> {
        let (queue, exchange) = (self.queue.as_str(), self.exchange.as_str());
        let options = QueueBindOptions::default();
        let binding = self.broker.channel.queue_bind(
            queue.into(),
            exchange.into(),
            "#".into(),
            options,
            FieldTable::default(),
        );
        Ok(binding.await?)
    }

    pub async fn unbind(&self) -> anyhow::Result<()> {
        let (queue, exchange) = (self.queue.as_str(), self.exchange.as_str());
        let unbinding = self.broker.channel.queue_unbind(
            queue.into(),
            exchange.into(),
            "#".into(),
            FieldTable::default(),
        );
        Ok(unbinding.await?)
    }

    /// Takes every event that is in the queue, in order.
    pub async fn take(&self) -> anyhow::Result<Vec<Taken>> {
        let mut taken = Vec::new();
        let options = BasicGetOptions { no_ack: true };
        while let Some(got) = self.broker.channel.basic_get(self.queue.as_str().into(), options).await? {
            let event = serde_json::from_slice(&got.delivery.data).context("an event that is no JSON")?;
            taken.push(Taken {
                routing_key: got.delivery.routing_key.to_string(),
                properties: got.delivery.properties.clone(),
                event,
            });
        }
        Ok(taken)
    }
}

/// The events' ids of one job, in order.
type Ids = BTreeMap<Uuid, Vec<String>>;

/// The ids that the tables imply: each job's end and what its verification became.
pub async fn implied(pool: &PgPool) -> anyhow::Result<Ids> {
    type Row =
        (Uuid, String, i64, OffsetDateTime, Option<String>, Option<OffsetDateTime>, Option<OffsetDateTime>);
    let rows: Vec<Row> = sqlx::query_as(
        "select job_id, state, case state when 'invalid' then deliveries else claim_token end, ended_at, verification_status,
            coalesce(verification_ended_at, verification_seen_at), verification_overdue_at
        from submission where ended_at is not null",
    )
    .fetch_all(pool)
    .await?;
    let mut implied = Ids::new();
    for (job_id, state, token, ended_at, status, seen_at, overdue_at) in rows {
        let ids = implied.entry(job_id).or_default();
        ids.push(id(job_id, format!("job.{state}").parse()?, token, ended_at));
        if let Some(at) = overdue_at {
            ids.push(id(job_id, EventKind::Overdue, token, at));
        }
        let kind = match status.as_deref() {
            Some("VERIFIED") => Some(EventKind::Verified),
            Some("FAILED") => Some(EventKind::Failed),
            _ => None,
        };
        if let (Some(kind), Some(at)) = (kind, seen_at) {
            ids.push(id(job_id, kind, token, at));
        }
    }
    Ok(implied)
}

/// Compares what was taken, in the order in which it came, with what the tables imply: every event, the first
/// copies of a job's events in their order, and every copy the same. More than that was told of those alone
/// that were undone since: a person had the job sent again or settled it, a valid job came after an invalid
/// one, or the provider changed its last word.
pub fn compare(taken: &[Taken], implied: &Ids) -> Check {
    let mut first_copies: BTreeMap<&str, &Value> = BTreeMap::new();
    let (mut told, mut faults) = (Ids::new(), BTreeSet::new());
    for Taken { routing_key, event, .. } in taken {
        let text = |name: &str| event[name].as_str().unwrap_or_default();
        let (name, subject) = (text("id"), text("subject"));
        if let Some(copy) = first_copies.get(name) {
            if *copy != event {
                faults.insert(format!("{name}: two copies differ"));
            }
            continue;
        }
        first_copies.insert(name, event);
        let has_its_key = text("type") == format!("kyc.{routing_key}.v1") && name.contains(routing_key);
        let Ok(job_id) = subject.parse::<Uuid>() else {
            faults.insert(format!("{name}: its subject is no job"));
            continue;
        };
        if !has_its_key || event["data"]["job_id"] != subject {
            faults.insert(format!("{name}: it is published as {routing_key}, of {subject}"));
        }
        told.entry(job_id).or_default().push(name.to_owned());
    }
    let mut found = 0;
    for (job_id, expected) in implied {
        let heard = told.remove(job_id).unwrap_or_default();
        let wanted: HashSet<&String> = expected.iter().collect();
        let of_those: Vec<&String> = heard.iter().filter(|id| wanted.contains(id)).collect();
        found += of_those.len();
        if of_those != expected.iter().collect::<Vec<_>>() {
            faults.insert(format!("{job_id}: told {heard:?}, implied {expected:?}"));
        }
        let may_be_undone = |id: &&String| {
            ["job.needs_review", "job.exhausted", "job.invalid", "verification."]
                .iter()
                .any(|kind| id.contains(kind))
        };
        let superfluous = heard.iter().filter(|id| !wanted.contains(id) && !may_be_undone(id));
        faults.extend(superfluous.map(|id| format!("{id}: the tables do not imply it")));
    }
    faults.extend(told.into_values().flatten().map(|id| format!("{id}: the tables know no end of this job")));
    let expected = implied.values().map(Vec::len).sum();
    Check { name: "events, by the tables", expected, found, disagreeing: faults.into_iter().collect() }
}
