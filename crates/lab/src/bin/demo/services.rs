//! The demo's own corner of PostgreSQL and RabbitMQ, and what the provider is told.

use serde_json::{Value, json};

use crate::jobs::{self, Jobs};
use kyc_lab::broker::Queues;
use kyc_lab::provider::Provider;

pub const DATABASE: &str = "kyc_demo";
pub const QUEUES: Queues = Queues {
    exchange: "kyc-demo",
    queue: "kyc-demo.document-updates",
    dead_letter_exchange: "kyc-demo.dlx",
    dead_letter_queue: "kyc-demo.dead-letters",
};

/// Posts the faults, and sets the customers that are not like others.
pub async fn prepare(provider: &Provider, jobs: &Jobs) -> anyhow::Result<()> {
    for rule in rules() {
        provider.add_rule(&rule).await?;
    }
    for id in &jobs.no_customers {
        provider.set_customer(id, json!({ "exists": false })).await?;
    }
    for id in &jobs.failing_customers {
        let fails = json!({ "verifies_as": "FAILED", "failure_reason": "KYC_FAILED" });
        provider.set_customer(id, fails).await?;
    }
    for id in &jobs.spent_customers {
        provider.set_customer(id, json!({ "updates": jobs::UPDATE_LIMIT })).await?;
    }
    Ok(())
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
