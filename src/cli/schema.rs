//! `kyc-worker schema`: the message contract for publishers' tools.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use crate::broker;
use crate::config::{BrokerSettings, JobSettings};
use crate::domain::job::Rules;
use crate::domain::schema::{example, job_schema};

/// Print the message contract: a job's JSON Schema, or an AsyncAPI document of the queues
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker schema > job.schema.json\n  kyc-worker schema --asyncapi > asyncapi.json"
)]
pub(super) struct SchemaArgs {
    /// Print an AsyncAPI document of exchange, queues and messages
    #[arg(long)]
    asyncapi: bool,
    #[command(flatten)]
    broker: BrokerSettings,
    #[command(flatten)]
    jobs: JobSettings,
}

pub(super) fn run(args: &SchemaArgs) -> anyhow::Result<ExitCode> {
    let rules = args.jobs.rules();
    let document = match args.asyncapi {
        true => asyncapi(&args.broker, &rules),
        false => job_schema(&rules),
    };
    println!("{}", serde_json::to_string_pretty(&document)?);
    Ok(ExitCode::SUCCESS)
}

/// The queues, and what belongs into them, as an AsyncAPI 3.0 document.
fn asyncapi(broker: &BrokerSettings, rules: &Rules) -> Value {
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "kyc-worker",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Customers' document updates, for submission to the DollarPe KYC API.",
            "license": { "name": "MIT OR Apache-2.0" }
        },
        "defaultContentType": "application/json",
        "channels": channels(broker),
        "operations": operations(),
        "components": {
            "messages": messages(rules)
        }
    })
}

/// Where messages wait, and how they come there.
fn channels(broker: &BrokerSettings) -> Value {
    json!({
        "documentUpdates": {
            "address": broker.routing_key,
            "title": "Jobs",
            "description": format!(
                "Publish persistent messages, with confirms and mandatory, to exchange {}. What is no valid job is moved to {} as it is.",
                broker.exchange, broker.dead_letter_queue
            ),
            "messages": { "documentUpdate": { "$ref": "#/components/messages/documentUpdate" } },
            "bindings": { "amqp": {
                "is": "routingKey",
                "exchange": { "name": broker.exchange, "type": "direct", "durable": true, "autoDelete": false },
                "bindingVersion": "0.3.0"
            } }
        },
        "jobQueue": {
            "address": broker.queue,
            "title": "The queue that jobs wait in",
            "description": format!("Arguments: {}.", broker::describe_job_arguments(broker)),
            "messages": { "documentUpdate": { "$ref": "#/components/messages/documentUpdate" } },
            "bindings": { "amqp": queue_binding(&broker.queue) }
        },
        "customerEventQueue": {
            "address": broker.customer_events_queue,
            "title": "The provider's webhooks",
            "description": format!(
                "Optional (CUSTOMER_EVENTS=true). A gateway publishes them to exchange {} with routing key {}, as they came.",
                broker.exchange, broker.customer_events_routing_key
            ),
            "messages": { "customerEvent": { "$ref": "#/components/messages/customerEvent" } },
            "bindings": { "amqp": queue_binding(&broker.customer_events_queue) }
        },
        "deadLetterQueue": {
            "address": broker.dead_letter_queue,
            "title": "What cannot become a job",
            "description": format!(
                "Whole, as it was published; table dead_lettered_delivery says why. Kept for {}.",
                humantime::format_duration(broker.dead_letter_ttl)
            ),
            "messages": { "deadLetter": { "$ref": "#/components/messages/deadLetter" } },
            "bindings": { "amqp": queue_binding(&broker.dead_letter_queue) }
        }
    })
}

/// What the worker does with them.
fn operations() -> Value {
    json!({
        "receiveDocumentUpdate": {
            "action": "receive",
            "channel": { "$ref": "#/channels/jobQueue" },
            "summary": "Acked once the row that carries the job on is committed.",
            "messages": [{ "$ref": "#/channels/jobQueue/messages/documentUpdate" }]
        },
        "receiveCustomerEvent": {
            "action": "receive",
            "channel": { "$ref": "#/channels/customerEventQueue" },
            "summary": "Believed if the provider signed it; a verification's end is then known sooner.",
            "messages": [{ "$ref": "#/channels/customerEventQueue/messages/customerEvent" }]
        },
        "deadLetter": {
            "action": "send",
            "channel": { "$ref": "#/channels/deadLetterQueue" },
            "summary": "By the broker, when the worker rejects it.",
            "messages": [{ "$ref": "#/channels/deadLetterQueue/messages/deadLetter" }]
        }
    })
}

/// What they hold.
fn messages(rules: &Rules) -> Value {
    let mut payload = job_schema(rules);
    // The reader knows the dialect from the message's schemaFormat.
    if let Value::Object(payload) = &mut payload {
        payload.remove("$schema");
        payload.remove("examples");
    }
    json!({
        "documentUpdate": {
            "name": "documentUpdate",
            "title": "A document update",
            "contentType": "application/json",
            "headers": {
                "type": "object",
                "description": "AMQP properties: message_id (a UUID, the job's name, unless the body has job_id), timestamp (seconds), correlation_id (kept for your own records), delivery_mode 2; header traceparent (the trace that it is published in)."
            },
            "payload": {
                "schemaFormat": "application/schema+json;version=draft-2020-12",
                "schema": payload
            },
            "examples": [{ "name": "documented", "summary": "The provider's own example", "payload": example() }]
        },
        "customerEvent": {
            "name": "customerEvent",
            "title": "A webhook of the provider's",
            "contentType": "application/json",
            "headers": {
                "type": "object",
                "required": ["X-TIMESTAMP", "X-SIGNATURE"],
                "properties": { "X-TIMESTAMP": { "type": "string" }, "X-SIGNATURE": { "type": "string" } }
            },
            "payload": {
                "type": "object",
                "required": ["type", "id", "event", "timestamp"],
                "properties": {
                    "type": { "type": "string" },
                    "id": { "type": "string", "format": "uuid" },
                    "event": { "type": "string" },
                    "timestamp": { "type": "string", "format": "date-time" },
                    "metadata": { "type": "object" }
                }
            }
        },
        "deadLetter": {
            "name": "deadLetter",
            "title": "A message that is no job",
            "payload": { "description": "Any bytes" }
        }
    })
}

fn queue_binding(name: &str) -> Value {
    json!({
        "is": "queue",
        "queue": { "name": name, "durable": true, "exclusive": false, "autoDelete": false },
        "bindingVersion": "0.3.0"
    })
}
