//! Five roles: one makes the tables, one works, one archives, one looks, one counts; and history that nobody rewrites.

use serde_json::json;
use sqlx::{Column as _, Executor as _, PgPool};
use uuid::Uuid;

use crate::archive::a_day_ago;
use crate::harness::{World, world, world_on};
use crate::outcome_events::TOLD;
use crate::own_services::{Disk, own_postgres};
use crate::{dashboards, deployment};

const VIEWS: [&str; 5] =
    ["job_overview", "open_work", "customer_budget", "provider_errors_hourly", "reconciliation"];

/// What ended and what failed, by the minute.
const MINUTES: [&str; 2] = ["fleet_ended", "fleet_error"];

fn url_of(world: &World, user: &str) -> String {
    let mut url: url::Url = world.database_url().parse().expect("a URL");
    url.set_username(user).expect("a user");
    url.to_string()
}

async fn log_in(world: &World, user: &str) -> PgPool {
    PgPool::connect(&url_of(world, user)).await.expect("it may log in")
}

/// The SQLSTATE that a statement is refused with.
async fn refusal(pool: &PgPool, statement: &str) -> String {
    let done = sqlx::query(statement).execute(pool).await;
    let error = done.err().unwrap_or_else(|| panic!("{statement:?} was done"));
    error.as_database_error().and_then(|error| error.code()).expect("a code").into_owned()
}

const NO_PRIVILEGE: &str = "42501";
const APPEND_ONLY: &str = "23001";
const NOT_UPDATABLE: &str = "55000";

#[test]
fn each_role_may_do_its_work_and_nothing_else() {
    let cluster = own_postgres(Disk::Ample, &[]);
    world_on(&cluster.url(), async |world| {
        world.tamper("drop schema public cascade").await;
        world.tamper("create schema public").await;
        let roles = include_str!("../../deploy/roles.sql");
        let logins = "create role deploy login in role kyc_migrator;
            alter role deploy set role = 'kyc_migrator';
            create role app login in role kyc_worker;
            create role keep login in role kyc_archiver;
            create role audit login in role kyc_auditor;
            create role scale login in role kyc_scaler;";
        for script in [roles, roles, logins] {
            sqlx::raw_sql(script).execute(&world.pool).await.expect("the roles are made, and made once");
        }
        let deploy = url_of(&world, "deploy");
        for _ in 0..2 {
            let migrated = world.run(&["migrate"], &[("DATABASE_URL", &deploy)]).await;
            assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        }

        check_worker_role(&world).await;
        check_archiver_role(&world).await;
        check_auditor_role(&world).await;
        check_scaler_role(&world).await;
        let deploy = log_in(&world, "deploy").await;
        assert_eq!(refusal(&deploy, "create role more").await, NO_PRIVILEGE);
        assert_eq!(refusal(&deploy, "delete from observation").await, APPEND_ONLY, "not even the owner");
    });
}

/// Works a day as the worker's role, commands included.
async fn check_worker_role(world: &World) {
    let app = url_of(world, "app");
    let as_app =
        [("DATABASE_URL", app.as_str()), ("RETRY_MAX_ATTEMPTS", "1"), ("BREAKER_FAILURES", "1000"), TOLD];
    let upstream = world.listen().await;
    world.declare_topology().await;
    let unsettled_of = Uuid::new_v4();
    let crash = json!({ "answer": { "kind": "respond", "status": 500, "body": "oops" } });
    world
        .add_rule(json!({ "match": { "method": "PATCH", "customer_id": unsettled_of }, "fault": crash }))
        .await;
    let exhausted_of = Uuid::new_v4();
    let answer = json!({ "kind": "respond", "status": 429, "headers": { "retry-after": "1" } });
    let matched = json!({ "method": "PATCH", "customer_id": exhausted_of });
    let fault = json!({ "apply": "never", "answer": answer });
    world.add_rule(json!({ "match": matched, "first": 1, "fault": fault })).await;

    let mut worker = world.start_worker_with(&as_app);
    let accepted = world.publish_job().await;
    let (unsettled, _) = world.publish_job_for(unsettled_of).await;
    let (exhausted, _) = world.publish_job_for(exhausted_of).await;
    world.publish(Some(Uuid::new_v4()), b"{}").await;
    world.wait_for_state(accepted, &["accepted"]).await;
    world.wait_for_applied(unsettled).await;
    world.wait_for_state(exhausted, &["exhausted"]).await;
    let signed = ["--by", "ana", "--note", "why"];
    let id = exhausted.to_string();
    let customer = unsettled_of.to_string();
    for command in [
        &["report"][..],
        &["list"],
        &["show", &id],
        &["pause", signed[0], signed[1], signed[2], signed[3]],
        &["resume"],
        &["replay", &id, "--yes", signed[0], signed[1], signed[2], signed[3]],
        &[
            "budget",
            "set",
            "--customer",
            &customer,
            "--used",
            "1",
            signed[0],
            signed[1],
            signed[2],
            signed[3],
        ],
        &["export", "--since", "2026-01-01"],
        &["audit"],
        &["events", "replay", "--since", "2026-01-01"],
        &[
            "propose",
            "budget",
            "--customer",
            &customer,
            "--used",
            "0",
            signed[0],
            signed[1],
            signed[2],
            signed[3],
        ],
        &["proposals"],
        &["approve", "1", "--by", "ben", "--note", "so it is"],
        &["dead-letters", "list"],
        &["dead-letters", "requeue", "--all", signed[0], signed[1], signed[2], signed[3]],
    ] {
        let output = world.run(command, &as_app).await;
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    world.wait_for_state(exhausted, &["accepted"]).await;
    let forgotten =
        world.run(&[&["forget", "--customer", &customer, "--json"][..], &signed].concat(), &as_app).await;
    let forgotten: serde_json::Value = serde_json::from_slice(&forgotten.stdout).expect("JSON");
    assert_eq!(forgotten["jobs"], 1);
    assert!(!worker.log().contains("permission denied"), "{}", worker.log());
    let figures = "select count(*) from fleet_figure where figure = 'replicas_working'";
    world.wait_for("the fleet's figures", async || (world.count(figures).await == 1).then_some(())).await;
    upstream.wait_for_implied(world, &[accepted, exhausted, unsettled]).await;
    worker.stop().await;
    assert_eq!(world.count("select count(*) from worker").await, 0);

    let app = log_in(world, "app").await;
    for statement in [
        "delete from attempt",
        "update attempt set worker = 'another'",
        "truncate observation",
        "delete from observation",
        "update observation set status = 'VERIFIED'",
        "update intervention set by = 'nobody'",
        "delete from intervention",
        "update submission set customer_id = gen_random_uuid()",
        "update submission set requested_at = now()",
        "update outcome_event set kind = 'job.accepted'",
        "insert into archived_job (job_id, state, holds_id, ended_at, deliveries, file) values (gen_random_uuid(), 'accepted', true, now(), 1, 'x')",
        "delete from archived_job",
        "update archived_customer set accepted = 0",
        "update approval_policy set demands = 'none'",
        "delete from approval_policy",
        "insert into approval_policy default values",
        "insert into proposal (action, note, proposed_by, version, decision) values ('resume', 'a', 'b', 'c', 'void')",
        "update proposal set proposed_by = 'another'",
        "delete from proposal",
        "truncate proposal",
        "create table mine (x int)",
        "drop table attempt",
        "alter table attempt disable trigger all",
    ] {
        assert_eq!(refusal(&app, statement).await, NO_PRIVILEGE, "{statement}");
    }
    let approved = "update proposal set decided_by = 'another'";
    assert_eq!(refusal(&app, approved).await, APPEND_ONLY);
    let closed = "update attempt set verdict = 'rejected' where verdict = 'accepted'";
    assert_eq!(refusal(&app, closed).await, APPEND_ONLY);
}

/// Moves what has ended to files, and does nothing else.
async fn check_archiver_role(world: &World) {
    let keep = url_of(world, "keep");
    let to = world.directory("archive");
    let as_archiver = [("DATABASE_URL", keep.as_str())];
    // A job that came to its end without an attempt, and so without a verification.
    sqlx::raw_sql(
        "insert into submission (job_id, customer_id, state, document_type, requested_at, received_at, ended_at)
        select gen_random_uuid(), gen_random_uuid(), 'exhausted', 'PASSPORT', now(), at, at
        from (select now() - interval '2 days' as at) dated",
    )
    .execute(&world.pool)
    .await
    .expect("a job");
    let archive = ["archive", "--before", &a_day_ago(), "--to", &to, "--json"];
    let output = world.run(&archive, &as_archiver).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(said["archived"], 1, "{said}");
    assert_eq!(world.count("select count(*) from archived_job").await, 1);

    let keep = log_in(world, "keep").await;
    for statement in [
        "update submission set state = 'accepted'",
        "insert into submission (job_id) values (gen_random_uuid())",
        "update attempt set worker = 'another'",
        "insert into observation (job_id) values (gen_random_uuid())",
        "update customer set updates_elsewhere = 9",
        "delete from customer",
        "delete from outcome_event",
        "delete from archived_customer",
        "update proposal set decided_by = 'another'",
        "update approval_policy set demands = 'none'",
        "create table mine (x int)",
    ] {
        assert_eq!(refusal(&keep, statement).await, NO_PRIVILEGE, "{statement}");
    }
    for statement in ["delete from submission", "delete from attempt", "delete from observation"] {
        assert_eq!(refusal(&keep, statement).await, APPEND_ONLY, "{statement}, of jobs that are in no file");
    }
}

/// Looks through the views, and at nothing else.
async fn check_auditor_role(world: &World) {
    let audit = log_in(world, "audit").await;
    for view in VIEWS.into_iter().chain(MINUTES) {
        let rows = sqlx::query(&format!("select * from {view}")).fetch_all(&audit).await;
        rows.unwrap_or_else(|error| panic!("{view}: {error}"));
        let refusal = refusal(&audit, &format!("delete from {view}")).await;
        assert!([NO_PRIVILEGE, NOT_UPDATABLE].contains(&refusal.as_str()), "{view}: {refusal}");
    }
    for table in [
        "submission",
        "attempt",
        "observation",
        "customer",
        "dead_lettered_delivery",
        "intervention",
        "proposal",
    ] {
        assert_eq!(refusal(&audit, &format!("select * from {table}")).await, NO_PRIVILEGE, "{table}");
    }
    assert_eq!(refusal(&audit, "select sealed_payload from submission").await, NO_PRIVILEGE);
    check_dashboard(&audit).await;
}

/// Asks what the panels over the database ask, as the auditor.
async fn check_dashboard(audit: &PgPool) {
    let (job_id, customer_id) =
        sqlx::query_as("select job_id, customer_id from job_overview where state = 'accepted' limit 1")
            .fetch_one(audit)
            .await
            .expect("a job");
    for (title, is_drawn, statement) in dashboards::statements(job_id, customer_id) {
        let rows = sqlx::query(&statement).fetch_all(audit).await;
        let rows = rows.unwrap_or_else(|error| panic!("{title}: {error}: {statement}"));
        let described = audit.describe(&statement).await.expect("columns");
        let columns: Vec<&str> = described.columns().iter().map(|column| column.name()).collect();
        assert!(columns.len() > 1, "{title}: {columns:?}");
        assert!(!is_drawn || columns[0] == "time", "{title}: {columns:?}");
        let may_be_empty = ["Jobs for a person", "Late jobs", "Updates that a person must find out about"];
        assert!(!rows.is_empty() || may_be_empty.contains(&title), "{title} shows nothing: {statement}");
    }
}

/// Reads how many replicas work, and nothing that is about anybody.
async fn check_scaler_role(world: &World) {
    let scale = log_in(world, "scale").await;
    let working: f64 = sqlx::query_scalar(&deployment::query_of_scaler())
        .fetch_one(&scale)
        .await
        .expect("the figure that KEDA asks for");
    assert!(working >= 0.0);
    for table in VIEWS.into_iter().chain(MINUTES).chain(["submission", "attempt", "worker"]) {
        assert_eq!(refusal(&scale, &format!("select * from {table}")).await, NO_PRIVILEGE, "{table}");
    }
    assert_eq!(refusal(&scale, "update fleet_figure set value = 9").await, NO_PRIVILEGE);
}

#[test]
fn history_is_added_to_and_never_rewritten() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker();
        let job_id = world.publish_job().await;
        world.wait_for_state(job_id, &["accepted"]).await;
        world
            .tamper(
                "insert into observation (job_id, customer_id, at, purpose, status)
                select job_id, customer_id, now(), 'baseline', 'PROCESSING' from submission",
            )
            .await;
        world.tamper("insert into intervention (action) values ('resume')").await;
        for statement in [
            "update attempt set verdict = 'rejected'",
            "update attempt set ended_at = now()",
            "update attempt set begun_at = begun_at - interval '1 hour'",
            "update attempt set number = 2",
            "update attempt set http_status = null",
            "delete from attempt",
            "truncate attempt cascade",
            "update observation set status = 'VERIFIED'",
            "delete from observation",
            "truncate observation",
            "update intervention set note = 'another'",
            "delete from intervention",
        ] {
            assert_eq!(refusal(&world.pool, statement).await, APPEND_ONLY, "{statement}");
        }
        world.tamper("update attempt set late_verdict = 'accepted'").await;
        assert_eq!(refusal(&world.pool, "update attempt set late_verdict = null").await, APPEND_ONLY);
    });
}

#[test]
fn every_view_and_every_column_of_it_says_what_it_is() {
    world(async |world| {
        let silent: Vec<String> = sqlx::query_scalar(
            "select c.relname || '.' || coalesce(a.attname, '') from pg_class c
            left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
            where c.relnamespace = 'public'::regnamespace and c.relkind in ('v', 'r') and c.relname !~ '^_sqlx'
                and (obj_description(c.oid) is null or col_description(c.oid, a.attnum) is null)
            order by 1",
        )
        .fetch_all(&world.pool)
        .await
        .expect("the catalog");
        assert!(silent.is_empty(), "without a comment: {silent:?}");
        let views = "select count(*) from pg_views where schemaname = 'public'";
        assert_eq!(world.count(views).await, 5);
    });
}
