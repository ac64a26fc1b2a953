//! What people type, and what they are told.

use std::process::Output;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{JOBS, World, job_body, world};

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

#[track_caller]
fn check(output: &Output, code: i32, out: &[&str], err: &[&str]) {
    let (said, complained) = (stdout(output), stderr(output));
    assert_eq!(output.status.code(), Some(code), "{said}{complained}");
    for text in out {
        assert!(said.contains(text), "no {text:?} in {said:?}");
    }
    for text in err {
        assert!(complained.contains(text), "no {text:?} in {complained:?}");
    }
    assert!(!complained.contains("panicked"), "{complained}");
}

#[test]
fn what_sign_shows_is_piped_byte_for_byte() {
    world(async |world| {
        let canonical = "{\"full_address\":\"a\u{7f}b\u{9b}2Jc\"}";
        let arguments = ["sign", "--dollarpe-signing-profile", "compact-utf8"];
        let signed = world.run_with_input(&arguments, &[], canonical.as_bytes()).await;
        check(&signed, 0, &[&format!("\n{canonical}\n")], &[]);
        let signed =
            world.run_with_input(&[&arguments[..], &["--json"]].concat(), &[], canonical.as_bytes()).await;
        let json: Value = serde_json::from_slice(&signed.stdout).expect("JSON");
        assert_eq!(json["canonical_body"], canonical);
    });
}

/// A line of `enqueue`'s input, for a customer of its own.
fn line(job_id: Uuid) -> String {
    let mut body = job_body(Uuid::new_v4(), job_id);
    body["job_id"] = json!(job_id);
    body.to_string()
}

#[test]
fn enqueue_publishes_the_valid_lines_and_names_the_others() {
    world(async |world| {
        let good = [(); 3].map(|()| Uuid::new_v4());
        let file = [
            line(good[0]),
            "{\"customer_id\": 5}".to_owned(),
            String::new(),
            line(good[1]),
            "not json".to_owned(),
            line(good[2]),
        ]
        .join("\n");
        let path = world.write_file("jobs.jsonl", file.as_bytes());
        let output = world.run(&["enqueue", &path], &[]).await;
        check(&output, 1, &["published 3"], &["line 2: ", "/customer_id", "line 5: ", "refused 2"]);
        assert!(!stderr(&output).contains("line 3"), "an empty line is nothing");
        assert_eq!(world.count_ready(JOBS).await, 3);

        let _worker = world.start_worker();
        world.wait_for_all_accepted(&good).await;
    });
}

#[test]
fn enqueue_stops_at_a_line_without_an_end() {
    world(async |world| {
        let endless = world.run(&["enqueue", "/dev/zero"], &[]).await;
        let told = "line 1: has more than 1048576 bytes; it and what follows is not read";
        check(&endless, 1, &["published 0"], &[told]);

        let good = line(Uuid::new_v4());
        let large = format!("{good}\n{}\n{good}\n", " ".repeat(1024 * 1024));
        let output = world.run_with_input(&["enqueue"], &[], large.as_bytes()).await;
        check(&output, 1, &["published 1"], &["line 2: has more than", "refused 1"]);
        assert_eq!(world.count_ready(JOBS).await, 1, "confirmed before the end");
    });
}

#[test]
fn a_file_that_is_enqueued_twice_is_submitted_once() {
    world(async |world| {
        let (named, unnamed) = (Uuid::new_v4(), Uuid::new_v4());
        // The second line has no job_id: it gets one made of its content.
        let lines = format!("{}\n{}\n", line(named), job_body(Uuid::new_v4(), unnamed));
        let path = world.write_file("jobs.jsonl", lines.as_bytes());
        check(&world.run(&["enqueue", &path], &[]).await, 0, &["published 2 to kyc"], &[]);
        check(
            &world.run_with_input(&["enqueue", "-"], &[], lines.as_bytes()).await,
            0,
            &["published 2"],
            &[],
        );
        check(&world.run_with_input(&["enqueue"], &[], lines.as_bytes()).await, 0, &["published 2"], &[]);
        let _worker = world.start_worker();
        world
            .wait_for("six deliveries", async || {
                (world.count("select coalesce(sum(deliveries), 0)::bigint from submission").await == 6)
                    .then_some(())
            })
            .await;
        world.wait_for_accepted(2).await;
        assert_eq!(world.count_patches(named).await, 1);
        assert_eq!(world.count_patches(unnamed).await, 1);
    });
}

#[test]
fn enqueue_says_why_it_cannot_publish() {
    world(async |world| {
        world.declare_topology().await;
        let input = line(Uuid::new_v4());
        world.unbind_queue().await;
        let unroutable =
            world.run_with_input(&["enqueue"], &[("TOPOLOGY", "verify")], input.as_bytes()).await;
        check(&unroutable, 1, &[], &["line 1", "no queue is bound", "document-update"]);
        assert!(!stdout(&unroutable).contains("published"));

        let away = [("AMQP_URL", "amqp://guest:canary@127.0.0.1:1/none")];
        let away = world.run_with_input(&["enqueue"], &away, input.as_bytes()).await;
        check(&away, 1, &[], &["AMQP_URL", "127.0.0.1:1"]);
        assert!(!stderr(&away).contains("canary"));

        world.delete_queue().await;
        let gone = world.run_with_input(&["enqueue"], &[("TOPOLOGY", "verify")], input.as_bytes()).await;
        check(&gone, 1, &[], &["QUEUE: cannot use queue kyc.document-updates"]);

        let file = world.run(&["enqueue", "/nowhere/jobs.jsonl"], &[]).await;
        check(&file, 1, &[], &["/nowhere/jobs.jsonl", "No such file"]);
    });
}

#[test]
fn show_tells_the_story_of_a_job() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker();
        let job_id = world.publish_job().await;
        let refusal = json!({ "status": false, "message": "KYC already in use", "errors": {}, "data": null });
        let answer = json!({ "kind": "respond", "status": 400, "body": refusal });
        world.break_job(job_id, json!({ "apply": "never", "answer": answer })).await;
        let accepted = world.publish_job().await;
        world.wait_for_state(accepted, &["accepted"]).await;
        let job = world.wait_for_state(job_id, &["rejected", "accepted"]).await;

        let id = job_id.to_string();
        let shown = world.run(&["show", &id], &[]).await;
        check(&shown, 0, &[&id, &job.state, "received", "attempt 1 begun", "attempt 1 ended", "…3456"], &[]);
        let json = world.run(&["show", "--json", &id], &[]).await;
        check(&json, 0, &[], &[]);
        let story: Value = serde_json::from_slice(&json.stdout).expect("JSON");
        assert_eq!(story["submission"]["job_id"], id);
        assert_eq!(story["submission"]["state"], job.state);
        assert_eq!(story["attempts"][0]["number"], 1);

        let unknown = Uuid::new_v4().to_string();
        let none = world.run(&["show", &unknown], &[]).await;
        check(&none, 1, &[], &[&format!("no job {unknown} is known")]);
        check(&world.run(&["show", "--json", &unknown], &[]).await, 1, &[], &["is known"]);
        check(&world.run(&["show", "me"], &[]).await, 2, &[], &["me"]);
    });
}

#[test]
fn report_tells_where_the_work_stands() {
    world(async |world| {
        let empty = world.run(&["report"], &[]).await;
        check(&empty, 0, &["nothing is open", "no attempt has gone wrong"], &[]);

        world.declare_topology().await;
        let jobs = world.publish_jobs(2).await;
        let refused = world.publish_job().await;
        let refusal = json!({ "status": false, "message": "KYC already in use", "errors": {}, "data": null });
        let answer = json!({ "kind": "respond", "status": 400, "body": refusal });
        world.break_job(refused, json!({ "apply": "never", "answer": answer })).await;
        let waiting = world.publish_job().await;
        let answer = json!({ "kind": "respond", "status": 429, "headers": { "retry-after": "600" } });
        world.break_job(waiting, json!({ "apply": "never", "answer": answer })).await;
        world.publish(Some(Uuid::new_v4()), b"{}").await;
        let _worker = world.start_worker();
        world.wait_for_all_accepted(&jobs).await;
        world.wait_for_state(refused, &["rejected"]).await;
        world.wait_for_state(waiting, &["waiting"]).await;
        world.wait_for("a dead letter", async || world.take_dead_letter().await).await;

        let report = world.run(&["report"], &[]).await;
        let oldest = format!("oldest open: {waiting} (waiting)");
        check(
            &report,
            0,
            &["accepted", "rejected", "kyc_already_in_use", "invalid", &oldest, "no attempt has gone wrong"],
            &[],
        );
        let json = world.run(&["report", "--json"], &[]).await;
        check(&json, 0, &[], &[]);
        let report: Value = serde_json::from_slice(&json.stdout).expect("JSON");
        let counts = report["states"].as_array().expect("an array");
        let accepted = counts.iter().find(|row| row["state"] == "accepted").expect("a row");
        assert_eq!(accepted["count"], 2);
        assert_eq!(report["oldest_open"]["job_id"], waiting.to_string());
        assert_eq!(report["flow"]["received"], 5, "the invalid one, too");
        assert_eq!(report["dead_lettered"][0], json!({ "reason_code": "invalid", "count": 1 }));
    });
}

/// Takes everything out of the database.
async fn empty_database(world: &World) {
    sqlx::raw_sql("drop schema public cascade; create schema public")
        .execute(&world.pool)
        .await
        .expect("the schema can be made anew");
}

#[test]
fn a_schema_is_made_once_and_a_missing_or_old_one_is_told_with_its_remedy() {
    world(async |world| {
        empty_database(&world).await;
        let remedy = "run `kyc-worker migrate`";
        for command in [&["run"][..], &["report"], &["show", "3f0c2a9e-5f0e-4f57-9d0c-2d6f7c1f1a11"]] {
            let output = world.run(command, &[]).await;
            check(&output, 1, &[], &["DATABASE_URL", remedy]);
        }
        check(&world.run(&["migrate"], &[]).await, 0, &["schema is at version"], &[]);
        check(&world.run(&["migrate"], &[]).await, 0, &["schema is at version"], &[]);
        check(&world.run(&["report"], &[]).await, 0, &["nothing is open"], &[]);

        let older = "update _sqlx_migrations set version = -version";
        sqlx::query(older).execute(&world.pool).await.expect("rows");
        check(&world.run(&["run"], &[]).await, 1, &[], &["version -1", remedy]);

        empty_database(&world).await;
        world.declare_topology().await;
        let job_id = world.publish_job().await;
        check(&world.run(&["run", "--migrate", "--drain"], &[]).await, 0, &["drained"], &[]);
        world.wait_for_state(job_id, &["accepted"]).await;
    });
}

#[test]
fn a_schema_newer_than_the_worker_is_accepted() {
    world(async |world| {
        world.declare_topology().await;
        let newer = "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
            values (9999, 'of a later release', true, '\\x00', 0)";
        sqlx::query(newer).execute(&world.pool).await.expect("a row");
        for arguments in [&["run", "--drain"][..], &["run", "--migrate", "--drain"]] {
            let job_id = world.publish_job().await;
            check(&world.run(arguments, &[]).await, 0, &["drained"], &[]);
            world.wait_for_state(job_id, &["accepted"]).await;
        }
        check(&world.run(&["migrate"], &[]).await, 0, &["schema is at version"], &[]);
    });
}

#[test]
fn wrong_settings_are_told_all_at_once_and_without_secrets() {
    world(async |world| {
        let settings = [
            ("AMQP_URL", "http://guest:canary-amqp@127.0.0.1/"),
            ("DATABASE_URL", "canary-database"),
            ("DOLLARPE_BASE_URL", "http://provider.example/api"),
            ("DOLLARPE_API_SECRET", ""),
            ("PAYLOAD_KEY", "canary-payload"),
            ("FINGERPRINT_KEY", "canary-fingerprint"),
            ("REQUEST_TIMEOUT", "soon"),
            ("CONCURRENCY", "0"),
            ("PREFETCH", "many"),
            ("TOPOLOGY", "maybe"),
        ];
        let output = world.run(&["run"], &settings).await;
        let named: Vec<String> = settings.iter().map(|(name, _)| format!("{name}: ")).collect();
        check(&output, 2, &[], &named.iter().map(String::as_str).collect::<Vec<_>>());
        for said in [stdout(&output), stderr(&output)] {
            assert!(!said.contains("canary"), "{said}");
        }
        let timing = [("REQUEST_TIMEOUT", "10s"), ("CLAIM_LEASE", "5s"), ("RUST_LOG", "=!=")];
        check(&world.run(&["run"], &timing).await, 2, &[], &["SEND_WINDOW + REQUEST_TIMEOUT", "CLAIM_LEASE"]);
        check(&world.run(&["run"], &[("RUST_LOG", "kyc_worker=loud")]).await, 2, &[], &["RUST_LOG"]);
        check(&world.run(&["fly"], &[]).await, 2, &[], &["fly"]);
    });
}

#[test]
fn a_missing_queue_is_told_once_and_used_as_soon_as_it_appears() {
    world(async |world| {
        let worker = world.start_worker_with(&[("TOPOLOGY", "verify")]);
        world.wait_for_log(&worker, "EXCHANGE: cannot use exchange kyc").await;
        assert!(worker.log().contains("declare it at the broker, or set TOPOLOGY=declare"));
        world.declare_topology().await;
        let job_id = world.publish_job().await;
        world.wait_for_state(job_id, &["accepted"]).await;
        // Half declared, the next fault may have been seen as well; what is tried meanwhile is for debugging.
        let log = worker.log();
        let errors = log.lines().filter(|line| line.contains(r#""level":"ERROR""#));
        let told = errors.filter(|line| line.contains("EXCHANGE: cannot use exchange kyc")).count();
        assert_eq!(told, 1, "told once: {log}");

        world.delete_queue().await;
        world.wait_for_log(&worker, "QUEUE: cannot use queue kyc.document-updates").await;
        world.declare_topology().await;
        let job_id = world.publish_job().await;
        world.wait_for_state(job_id, &["accepted"]).await;
    });
}

#[test]
fn a_drained_worker_has_left_nothing_undone() {
    world(async |world| {
        world.declare_topology().await;
        let jobs = world.publish_jobs(30).await;
        let slow = world.publish_job().await;
        let answer = json!({ "kind": "respond", "status": 429, "headers": { "retry-after": "2" } });
        let matched = json!({ "method": "PATCH", "link_contains": slow });
        world
            .add_rule(
                json!({ "match": matched, "first": 1, "fault": { "apply": "never", "answer": answer } }),
            )
            .await;
        let drained = world.run(&["run", "--drain"], &[]).await;
        check(&drained, 0, &["drained", "next_due_in_ms"], &[]);
        // Whatever else warned of something had no reason to: what libraries call an error is a warning.
        let said = stdout(&drained);
        let mut warnings = said.lines().filter(|line| line.contains(r#""level":"WARN""#));
        assert!(warnings.all(|line| line.contains("intake paused")), "{said}");
        assert_eq!(world.count_accepted().await, 31);
        assert_eq!(world.count_ready(JOBS).await, 0);
        assert_eq!(world.oracle("updates").await.len(), jobs.len() + 1);
    });
}

#[test]
fn names_that_would_send_messages_round_are_refused_by_every_command() {
    world(async |world| {
        let round = [("DEAD_LETTER_EXCHANGE", "kyc")];
        for command in [&["run"][..], &["enqueue", "/dev/null"], &["dead-letters", "list"]] {
            check(
                &world.run(command, &round).await,
                2,
                &[],
                &["EXCHANGE, DEAD_LETTER_EXCHANGE: must differ"],
            );
        }
        assert!(!world.queue_exists(JOBS).await, "nothing was declared");
    });
}
