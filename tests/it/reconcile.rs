//! The books against the provider: each difference is found, with what to do, and nothing is changed by it.

use std::process::Stdio;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{World, world};

/// Fast enough for a test: the pace of the provider is a customer a minute.
const PACE: [(&str, &str); 2] =
    [("CUSTOMER_READ_INTERVAL", "100ms"), ("VERIFICATION_READS_PER_SECOND", "50")];

/// Customers with an accepted update each, verified here and there and followed no more.
async fn verified_customers(world: &World, count: usize) -> Vec<(Uuid, Uuid)> {
    world.declare_topology().await;
    let mut customers = Vec::new();
    for _ in 0..count {
        let customer_id = Uuid::new_v4();
        customers.push((customer_id, world.publish_job_for(customer_id).await.0));
    }
    let jobs: Vec<Uuid> = customers.iter().map(|(_, job_id)| *job_id).collect();
    let mut worker = world.start_worker();
    world.wait_for_all_accepted(&jobs).await;
    worker.stop().await;
    world
        .tamper(
            "update submission set verification_status = 'VERIFIED', verification_due_at = null,
                verification_seen_at = null",
        )
        .await;
    for (customer_id, _) in &customers {
        world.set_customer(*customer_id, json!({ "status": "VERIFIED" })).await;
    }
    customers.sort();
    customers
}

async fn reconcile(world: &World, arguments: &[&str]) -> (Value, Option<i32>) {
    let arguments = [&["reconcile", "--json"], arguments].concat();
    let output = world.run(&arguments, &PACE).await;
    let said = serde_json::from_slice(&output.stdout);
    let said = said.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    (said, output.status.code())
}

/// What the books say of a customer's verification.
async fn write(world: &World, job_id: Uuid, status: Option<&str>) {
    sqlx::query("update submission set verification_status = $2 where job_id = $1")
        .bind(job_id)
        .bind(status)
        .execute(&world.pool)
        .await
        .expect("the database does it");
}

#[test]
fn each_of_ten_differences_is_found_and_none_where_there_is_none() {
    world(async |world| {
        let customers = verified_customers(&world, 13).await;
        let (said, code) = reconcile(&world, &[]).await;
        assert_eq!((&said["agree"], &said["found"], code), (&json!(13), &json!([]), Some(0)), "{said}");

        // What the books say, what the provider shows, and what is found.
        let differences = [
            (Some("VERIFIED"), json!({ "status": "FAILED" }), "verified_here_only"),
            (Some("VERIFIED"), json!({ "status": "UNVERIFIED" }), "verified_here_only"),
            (Some("VERIFIED"), json!({ "status": "PROCESSING" }), "verified_here_only"),
            (Some("VERIFIED"), json!({ "exists": false }), "not_found"),
            (Some("VERIFIED"), json!({ "document_type": "AADHAAR" }), "document_type"),
            (Some("PROCESSING"), json!({ "status": "FAILED" }), "failed_there_only"),
            (Some("PROCESSING"), json!({ "status": "VERIFIED" }), "verified_there_only"),
            (Some("FAILED"), json!({ "status": "PROCESSING" }), "processing_there_only"),
            (Some("PROCESSING"), json!({ "status": "UNVERIFIED" }), "not_verified_there"),
            (None, json!({ "status": "FAILED" }), "failed_there_only"),
        ];
        let states = "select string_agg(state || coalesce(verification_status, ''), ',' order by job_id) from submission";
        for ((customer_id, job_id), (here, there, _)) in customers.iter().zip(&differences) {
            write(&world, *job_id, *here).await;
            world.set_customer(*customer_id, there.clone()).await;
        }
        // The last but one is still followed here: whatever is there, the tracker will see it.
        let (followed, unread) = (customers[11], customers[12]);
        write(&world, followed.1, Some("PROCESSING")).await;
        sqlx::query(
            "update submission set verification_due_at = now() + interval '1 hour' where job_id = $1",
        )
        .bind(followed.1)
        .execute(&world.pool)
        .await
        .expect("the database does it");
        let away = json!({ "kind": "respond", "status": 503, "body": {} });
        let matched = json!({ "method": "GET", "customer_id": unread.0 });
        world.add_rule(json!({ "match": matched, "fault": { "answer": away } })).await;
        let before: String = sqlx::query_scalar(states).fetch_one(&world.pool).await.expect("states");

        let (said, code) = reconcile(&world, &[]).await;
        assert_eq!((&said["agree"], code), (&json!(2), Some(1)), "{said}");
        let found = said["found"].as_array().expect("a list");
        let codes: Vec<(&str, &str)> = found
            .iter()
            .map(|found| {
                let text = |key: &str| found[key].as_str().unwrap_or_default();
                (text("customer_id"), if text("finding") == "unread" { text("error") } else { text("code") })
            })
            .collect();
        let mut expected: Vec<(String, &str)> = customers
            .iter()
            .zip(&differences)
            .map(|((customer_id, _), (_, _, code))| (customer_id.to_string(), *code))
            .collect();
        expected.push((unread.0.to_string(), "read_failed"));
        let expected: Vec<(&str, &str)> = expected.iter().map(|(id, code)| (id.as_str(), *code)).collect();
        assert_eq!(codes, expected, "{said}");

        let after: String = sqlx::query_scalar(states).fetch_one(&world.pool).await.expect("states");
        assert_eq!(before, after, "nothing is changed by it");
        let kept = "select count(*) from observation where purpose = 'reconciliation'";
        assert_eq!(world.count(kept).await, 13 + 12 + 3, "each read, and three of whom nothing is told");
        let (job_id, customer_id) = (customers[0].1.to_string(), customers[0].0.to_string());
        let audited = world.run(&["audit", &job_id], &[]).await;
        let audited = String::from_utf8_lossy(&audited.stdout).into_owned();
        assert!(!audited.contains("observation"), "each is chained: {audited}");
        let text = world.run(&["reconcile", "--customer", &customer_id], &PACE).await;
        let text = String::from_utf8_lossy(&text.stdout).into_owned();
        assert!(text.contains("verified_here_only: the provider took its word back"), "{text}");
    });
}

#[test]
fn a_reconciliation_that_is_interrupted_goes_on_where_it_stopped() {
    world(async |world| {
        let customers = verified_customers(&world, 6).await;
        let mut command = world.command();
        command.args(["reconcile", "--json"]).envs([PACE[0], ("VERIFICATION_READS_PER_SECOND", "1")]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
        let kept = "select count(*) from observation where purpose = 'reconciliation'";
        world.wait_for("two reads", async || (world.count(kept).await >= 2).then_some(())).await;
        let sent = std::process::Command::new("kill").arg("-INT").arg(child.id().to_string()).status();
        assert!(sent.expect("kill runs").success());
        let output = tokio::task::spawn_blocking(|| child.wait_with_output().expect("it ends"));
        let output = output.await.expect("a task");
        assert_eq!(output.status.code(), Some(1));
        let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let after = said["interrupted_after"].as_str().expect("where it stopped").to_owned();
        let read = customers.iter().position(|(customer_id, _)| customer_id.to_string() == after);
        let read = read.expect("one of them") + 1;
        assert!((1..6).contains(&read) && said["agree"] == json!(read), "{said}");

        let (said, code) = reconcile(&world, &["--after", &after]).await;
        assert_eq!((&said["agree"], code), (&json!(6 - read), Some(0)), "{said}");
        let nobody = world.refuse(&["reconcile", "--customer", &Uuid::new_v4().to_string()]).await;
        assert!(nobody.contains("nothing of customer"), "{nobody}");
    });
}

/// A job whose rows are archived between the read and the note of it.
#[test]
fn a_customer_who_is_archived_meanwhile_is_passed_over() {
    world(async |world| {
        let customers = verified_customers(&world, 2).await;
        world.set_provider(json!({ "latency_ms": 1_500 })).await;
        let reads = world.oracle("reads").await.len();
        let archiving = async {
            world
                .wait_for("a read", async || (world.oracle("reads").await.len() > reads).then_some(()))
                .await;
            world
                .tamper(
                    "insert into archived_job (job_id, customer_id, state, holds_id, ended_at, deliveries, file)
                    select job_id, customer_id, state, true, ended_at, 1, 'a file' from submission",
                )
                .await;
            for table in ["observation", "attempt", "submission"] {
                sqlx::query(&format!("delete from {table}")).execute(&world.pool).await.expect("rows go");
            }
        };
        let ((said, code), ()) = tokio::join!(reconcile(&world, &[]), archiving);
        assert_eq!((&said["found"], code), (&json!([]), Some(0)), "{said} of {customers:?}");
    });
}
