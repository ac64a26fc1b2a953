//! `kyc-worker schema`: the message contract for publishers' tools.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use crate::broker;
use crate::config::{BrokerSettings, JobSettings};
use crate::domain::job::Rules;
use crate::domain::outcome_event::{CONTENT_TYPE, event_schema, example_event};
use crate::domain::schema::{example, job_schema};
use crate::domain::state::EventKind;

/// Print the message contract: the JSON Schema of a job or of an outcome event, or an AsyncAPI document
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker schema > job.schema.json\n  kyc-worker schema --event > event.schema.json\n  kyc-worker schema --asyncapi > asyncapi.json"
)]
pub(super) struct SchemaArgs {
    /// Print an AsyncAPI document of exchanges, queues and messages
    #[arg(long, conflicts_with = "event")]
    asyncapi: bool,
    /// Print the JSON Schema of the events that tell upstream how jobs ended
    #[arg(long)]
    event: bool,
    #[command(flatten)]
    broker: BrokerSettings,
    #[command(flatten)]
    jobs: JobSettings,
}

pub(super) fn run(args: &SchemaArgs) -> anyhow::Result<ExitCode> {
    let rules = args.jobs.rules();
    let document = match (args.asyncapi, args.event) {
        (true, _) => asyncapi(&args.broker, &rules),
        (false, true) => event_schema(),
        (false, false) => job_schema(&rules),
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
        "outcomeEvents": {
            "address": "{kind}",
            "title": "How jobs ended, and what their verifications became",
            "description": format!(
                "Optional (OUTCOME_EVENTS=true). Persistent, to topic exchange {}; bind a queue of your own with \"#\". Each event comes at least once, a job's events in their order: deduplicate by id.",
                broker.events_exchange
            ),
            "parameters": { "kind": {
                "description": "What is told.",
                "enum": EventKind::ALL.iter().map(|kind| kind.name()).collect::<Vec<_>>()
            } },
            "messages": { "outcomeEvent": { "$ref": "#/components/messages/outcomeEvent" } },
            "bindings": { "amqp": {
                "is": "routingKey",
                "exchange": { "name": broker.events_exchange, "type": "topic", "durable": true, "autoDelete": false },
                "bindingVersion": "0.3.0"
            } }
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
        "tellOutcome": {
            "action": "send",
            "channel": { "$ref": "#/channels/outcomeEvents" },
            "summary": "After the commit that it tells of; kept until the broker has confirmed it.",
            "messages": [{ "$ref": "#/channels/outcomeEvents/messages/outcomeEvent" }]
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
    let [job, event] = [job_schema(rules), event_schema()].map(|mut schema| {
        // The reader knows the dialect from the message's schemaFormat.
        if let Value::Object(schema) = &mut schema {
            schema.remove("$schema");
            schema.remove("examples");
        }
        schema
    });
    json!({
        "documentUpdate": {
            "name": "documentUpdate",
            "title": "A document update",
            "contentType": "application/json",
            "headers": {
                "type": "object",
                "description": "AMQP properties: message_id (a UUID, the job's name, unless the body has job_id), timestamp (seconds), correlation_id (kept for your own records), delivery_mode 2; headers traceparent (the trace that it is published in) and customer_id (that of the body, for an exchange that hashes by customer)."
            },
            "payload": {
                "schemaFormat": "application/schema+json;version=draft-2020-12",
                "schema": job
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
        "outcomeEvent": {
            "name": "outcomeEvent",
            "title": "An outcome event",
            "contentType": CONTENT_TYPE,
            "headers": {
                "type": "object",
                "description": "AMQP properties: message_id (the event's id), type (its type), correlation_id (the job's), timestamp (seconds), app_id kyc-worker, delivery_mode 2; header traceparent where the job was published in a trace."
            },
            "payload": {
                "schemaFormat": "application/schema+json;version=draft-2020-12",
                "schema": event
            },
            "examples": [{ "name": "documented", "summary": "An accepted job", "payload": example_event().to_json() }]
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
