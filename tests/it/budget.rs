//! A customer's updates are counted wherever they went, and a resend never takes the last.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{World, world, world_with};

async fn set_budget(world: &World, customer_id: Uuid, used: u32) -> String {
    let (customer, used) = (customer_id.to_string(), used.to_string());
    let arguments =
        ["budget", "set", "--customer", &customer, "--used", &used, "--by", "ana", "--note", "by hand"];
    let output = world.run(&arguments, &[]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

async fn show(world: &World, customer_id: Uuid, options: &[&str]) -> String {
    let customer = customer_id.to_string();
    let output = world.run(&[&["show", "--customer", &customer], options].concat(), &[]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn where_each_update_of_a_customer_went_is_shown() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker();
        let customer_id = Uuid::new_v4();
        let accepted = world.publish_job_asked(customer_id, 60).await;
        world.wait_for_state(accepted, &["accepted"]).await;
        let said = set_budget(&world, customer_id, 1).await;
        assert_eq!(said, format!("customer {customer_id}: 1 spent or possibly spent here, 1 elsewhere\n"));
        // As the provider counts: two more were made in its dashboard.
        world.set_customer(customer_id, json!({ "updates": 3 })).await;
        assert!(!show(&world, customer_id, &[]).await.contains("used up"));
        let rejected = world.publish_job_asked(customer_id, 30).await;
        let job = world.wait_for_state(rejected, &["accepted", "rejected"]).await;
        assert_eq!(job.reason_code.as_deref(), Some("update_limit_exceeded"));

        let story: Value = serde_json::from_str(&show(&world, customer_id, &["--json"]).await).expect("JSON");
        assert_eq!(story["customer_id"], json!(customer_id));
        assert_eq!(story["spent"], json!({ "here": 1, "elsewhere": 1 }));
        let jobs = story["jobs"].as_array().expect("a list");
        let jobs: Vec<_> = jobs.iter().map(|job| [&job["job_id"], &job["state"], &job["spent"]]).collect();
        let newest_first = [json!([rejected, "rejected", 0]), json!([accepted, "accepted", 1])];
        assert_eq!(json!(jobs), json!(newest_first));
        assert!(story["limit_reached_at"].is_string(), "{story}");
        assert_eq!(story["budget_set"]["by"], "ana");
        assert_eq!(story["budget_set"]["note"], "by hand");
        let text = show(&world, customer_id, &[]).await;
        for part in
            ["updates spent or possibly spent here: 1", "spent elsewhere: 1 (says ana", "by hand", "used up"]
        {
            assert!(text.contains(part), "{text}");
        }
        for part in [accepted, rejected] {
            assert!(text.contains(&part.to_string()), "{text}");
        }
    });
}

#[test]
fn what_is_said_of_a_customer_last_counts_and_an_unknown_one_is_no_story() {
    world(async |world| {
        let customer_id = Uuid::new_v4();
        let nobody = world.run(&["show", "--customer", &customer_id.to_string()], &[]).await;
        assert_eq!(nobody.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&nobody.stderr).contains("nothing is known of customer"));
        set_budget(&world, customer_id, 2).await;
        set_budget(&world, customer_id, 0).await;
        let story: Value = serde_json::from_str(&show(&world, customer_id, &["--json"]).await).expect("JSON");
        assert_eq!(story["spent"], json!({ "here": 0, "elsewhere": 0 }));
        assert_eq!(story["jobs"], json!([]));
        assert_eq!(story["limit_reached_at"], Value::Null);
    });
}

/// A customer with a history, and a job of theirs that is not applied at first.
struct Case {
    customer_id: Uuid,
    accepted: u32,
    elsewhere: u32,
    job_id: Uuid,
}

async fn begin(world: &World, accepted: u32, elsewhere: u32) -> Case {
    let customer_id = Uuid::new_v4();
    for nth in 0..accepted {
        let before = world.publish_job_asked(customer_id, i64::from(60 - nth)).await;
        world.wait_for_state(before, &["accepted"]).await;
    }
    if elsewhere > 0 {
        set_budget(world, customer_id, elsewhere).await;
    }
    world.set_customer(customer_id, json!({ "status": "FAILED", "updates": accepted + elsewhere })).await;
    let crash = json!({ "kind": "respond", "status": 500, "body": "oops" });
    let fault = json!({ "apply": "never", "answer": crash });
    let matched = json!({ "method": "PATCH", "customer_id": customer_id });
    world.add_rule(json!({ "match": matched, "first": 1, "fault": fault })).await;
    let job_id = world.publish_job_asked(customer_id, 0).await;
    Case { customer_id, accepted, elsewhere, job_id }
}

fn check_every_history_at(limit: u32) {
    let settings = dollarpe_sandbox::Settings { update_limit: limit, ..Default::default() };
    world_with(settings, async |world| {
        world.declare_topology().await;
        let limit_text = limit.to_string();
        let settings = [("BREAKER_FAILURES", "1000"), ("CUSTOMER_UPDATE_LIMIT", limit_text.as_str())];
        let _workers = [(); 2].map(|()| world.start_worker_with(&settings));
        let histories =
            (0..limit.min(3)).flat_map(|accepted| (0..limit - accepted).map(move |e| (accepted, e)));
        let begun = histories.map(|(accepted, elsewhere)| begin(&world, accepted, elsewhere));
        for Case { customer_id, accepted, elsewhere, job_id } in futures_util::future::join_all(begun).await {
            let history = format!("{accepted} accepted, {elsewhere} elsewhere, limit {limit}");
            let job = world.wait_for_state(job_id, &["accepted", "needs_review"]).await;
            // The attempt of unknown outcome may have spent one too.
            let is_resent = accepted + elsewhere + 1 + 1 < limit;
            let expected =
                if is_resent { ("accepted", None, 2) } else { ("needs_review", Some("last_update"), 1) };
            let patches = world.count_patches(job_id).await;
            assert_eq!((job.state.as_str(), job.reason_code.as_deref(), patches), expected, "{history}");
            assert_eq!(world.count_updates(job_id).await, usize::from(is_resent), "{history}");
            let updates = world.oracle("updates").await;
            let id = customer_id.to_string();
            let of_customer = updates.iter().filter(|update| update["customer_id"] == id.as_str());
            let nth = of_customer.filter_map(|update| update["nth"].as_u64()).max().unwrap_or_default();
            assert!(nth < u64::from(limit), "the last is left: {history}");
        }
    });
}

#[test]
fn a_resend_is_never_the_last_of_two_updates() {
    check_every_history_at(2);
}

#[test]
fn a_resend_is_never_the_last_of_three_updates() {
    check_every_history_at(3);
}

#[test]
fn a_resend_is_never_the_last_of_five_updates() {
    check_every_history_at(5);
}
