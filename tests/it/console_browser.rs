//! The console in a real browser: what the runbook does by commands is done by clicking, without scripts and
//! by keyboard alone. `tests/browser/console.mjs` is the one who clicks.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use uuid::Uuid;

use crate::harness::console::{AUDITOR, Console, EVERYBODY, OPERATOR, Person, REVIEWER, SECRET, VIEWER};
use crate::harness::{job_body, world};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const SECOND: Person = Person { name: "ben@example.com", groups: "kyc-reviewer" };

fn person(person: Person) -> Value {
    json!({ "name": person.name, "groups": person.groups })
}

/// Does these steps in a browser. Where it fails, what it says is the failure.
async fn click(console: &Console, screens: &str, steps: &[&str], task: Value) {
    let libraries = Path::new(ROOT).join("target/browser");
    assert!(
        libraries.join("installed").exists(),
        "no browser is there; scripts/browser.sh brings what is missing"
    );
    let program = fs::read_to_string(libraries.join("program")).expect("where the browser is");
    let mut all = json!({
        "base": console.url,
        "secret": SECRET,
        "libraries": libraries,
        "chromium": program.trim(),
        "screens": Path::new(ROOT).join("target/screens").join(screens),
        "steps": steps,
        "people": {
            "viewer": person(VIEWER), "operator": person(OPERATOR), "reviewer": person(REVIEWER),
            "auditor": person(AUDITOR), "second": person(SECOND), "all": person(EVERYBODY),
        },
    });
    let fields = task.as_object().expect("fields").clone();
    all.as_object_mut().expect("fields").extend(fields);
    let mut node = Command::new("node");
    node.arg(Path::new(ROOT).join("tests/browser/console.mjs")).env("TASK", all.to_string());
    let output = spawn_blocking(move || node.output()).await.expect("no panic").expect("node runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    println!("{said}");
}

/// Puts the picture of a review into the documents, where `make screenshots` asks for it.
fn keep_picture() {
    #[expect(clippy::disallowed_methods, reason = "how `make screenshots` asks")]
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let root = Path::new(ROOT);
        fs::copy(root.join("target/screens/runbook/review.png"), root.join("docs/img/console.png"))
            .expect("the picture is taken");
    }
}

#[test]
fn the_runbook_is_done_by_clicking() {
    world(async |world| {
        world.declare_topology().await;
        let settings = [("BREAKER_FAILURES", "1000"), ("READ_BACK_DEADLINE", "10s"), ("WORKER_NAME", "one")];
        let _worker = world.start_worker_with(&settings);
        let console = world.start_console().await;
        let accepted = world.publish_job().await;
        let mut review = Vec::new();
        for _ in 0..4 {
            review.push(world.publish_unsettled().await.0);
        }
        let mut broken = Vec::new();
        for kind in ["RATION_CARD", "PAN_CARD"] {
            let job_id = Uuid::new_v4();
            let mut body = job_body(Uuid::new_v4(), job_id);
            body["document_type"] = json!(kind);
            world.publish(Some(job_id), body.to_string().as_bytes()).await;
            broken.push(job_id);
        }
        world.wait_for_state(accepted, &["accepted"]).await;
        for job in &review {
            world.wait_for_state(*job, &["needs_review"]).await;
        }
        let customer: Uuid = sqlx::query_scalar("select customer_id from submission where job_id = $1")
            .bind(accepted)
            .fetch_one(&world.pool)
            .await
            .expect("the job");
        sqlx::query("update submission set correlation_id = 'order-4711' where job_id = $1")
            .bind(accepted)
            .execute(&world.pool)
            .await
            .expect("it is done");
        // The first page tells of what replicas have read.
        world
            .wait_for("the figures", async || {
                let figures = "select count(*) from fleet_figure
                    where figure = 'open_jobs' and part = 'needs_review' and value = 4
                        or figure = 'dead_lettered_day' and value = 2";
                (world.count(figures).await == 2).then_some(())
            })
            .await;
        let pages: Vec<String> = [
            "/",
            "/review",
            "/proposals",
            "/verifications",
            "/dead-letters",
            "/replay",
            "/errors",
            "/settings",
            "/interventions",
            "/access",
            "/pause",
            "/find?q=nothing",
        ]
        .map(str::to_owned)
        .into_iter()
        .chain([
            format!("/jobs/{accepted}"),
            format!("/jobs/{}", broken[0]),
            format!("/customers/{customer}"),
            format!("/customers/{customer}/budget?used=1"),
            format!("/review/{}", review[0]),
            format!("/jobs/{}/resolve?as=accepted", review[0]),
            format!("/jobs/{}/replay", review[0]),
            "/nothing".to_owned(),
        ])
        .collect();
        let steps = [
            "judge",
            "find",
            "find without scripts",
            "review",
            "review without scripts",
            "by keyboard",
            "dead letters",
            "dead letters without scripts",
            "pause",
            "pause without scripts",
            "live",
            "replay",
        ];
        let found = [
            (accepted.to_string(), format!("/jobs/{accepted}")),
            (customer.to_string(), format!("/customers/{customer}")),
            ("order-4711".to_owned(), format!("/jobs/{accepted}")),
        ];
        let task = json!({
            "pages": pages, "review": review, "shown": accepted, "shownCustomer": customer, "find": found,
        });
        click(&console, "runbook", &steps, task).await;
        keep_picture();
        // What was decided is done, and nothing else was sent.
        for job in &review[..2] {
            world.wait_for_state(*job, &["accepted"]).await;
            assert_eq!(world.count_updates(*job).await, 1);
        }
        assert_eq!(world.submission(review[2]).await.expect("a row").state, "rejected");
        assert_eq!(world.count_patches(review[3]).await, 1);

        world.tamper("update approval_policy set demands = 'spending'").await;
        let task = json!({ "proposed": review[3], "shown": accepted, "shownCustomer": customer });
        click(&console, "two-people", &["two people"], task).await;
        let job = world.wait_for_state(review[3], &["accepted"]).await;
        assert_eq!(job.evidence.as_deref(), Some("person"));
    });
}
