//! Six roles: one makes the tables, one works, one serves the desk, one archives, one looks, one counts; and
//! history that nobody rewrites.

use std::time::Duration;

use kyc_worker::config::{DatabaseSettings, Secret};
use kyc_worker::desk::budget::{customer_story, set_budget};
use kyc_worker::desk::interventions::{Attribution, pause, resume};
use kyc_worker::desk::list::{Filter, list};
use kyc_worker::desk::replay::{Intent, ReplayRules, Selection, find_ended, replay};
use kyc_worker::desk::resolve::{Finding, resolve};
use kyc_worker::desk::story::job_story;
use kyc_worker::domain::state::State;
use kyc_worker::journal::connect_for_console;
use serde_json::json;
use sqlx::postgres::PgDatabaseError;
use sqlx::{Column as _, Executor as _, PgPool};
use uuid::Uuid;

use crate::archive::a_day_ago;
use crate::console_proxy::{Console, ask};
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
const READ_ONLY: &str = "25006";

#[test]
fn each_role_may_do_its_work_and_nothing_else() {
    let cluster = own_postgres(Disk::Ample, &[]);
    world_on(&cluster.url(), async |world| {
        make_roles(&world).await;
        check_worker_role(&world).await;
        check_archiver_role(&world).await;
        check_auditor_role(&world).await;
        check_scaler_role(&world).await;
        let deploy = log_in(&world, "deploy").await;
        assert_eq!(refusal(&deploy, "create role more").await, NO_PRIVILEGE);
        assert_eq!(refusal(&deploy, "delete from observation").await, APPEND_ONLY, "not even the owner");
    });
}

/// Makes the tables anew, by whom they are made in production.
async fn make_roles(world: &World) {
    world.tamper("drop schema public cascade").await;
    world.tamper("create schema public").await;
    let roles = include_str!("../../deploy/roles.sql");
    let logins = "create role deploy login in role kyc_migrator;
        alter role deploy set role = 'kyc_migrator';
        create role app login in role kyc_worker;
        create role desk login in role kyc_desk;
        create role keep login in role kyc_archiver;
        create role audit login in role kyc_auditor;
        create role scale login in role kyc_scaler;";
    for script in [roles, roles, logins] {
        sqlx::raw_sql(script).execute(&world.pool).await.expect("the roles are made, and made once");
    }
    let deploy = url_of(world, "deploy");
    for _ in 0..2 {
        let migrated = world.run(&["migrate"], &[("DATABASE_URL", &deploy)]).await;
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    }
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

/// Two jobs that wait for a person, one of each kind: it could not be sent, and nobody knows whether it was
/// applied.
async fn make_jobs_for_a_person(world: &World, as_app: &[(&str, &str)]) -> [(Uuid, Uuid); 2] {
    world.declare_topology().await;
    let (exhausted_of, unsettled_of) = (Uuid::new_v4(), Uuid::new_v4());
    let asks_to_wait = json!({ "kind": "respond", "status": 429, "headers": { "retry-after": "1" } });
    let crash = json!({ "kind": "respond", "status": 500, "body": "oops" });
    for (customer_id, answer) in [(exhausted_of, asks_to_wait), (unsettled_of, crash)] {
        world.set_customer(customer_id, json!({ "status": "UNVERIFIED" })).await;
        let matched = json!({ "method": "PATCH", "customer_id": customer_id });
        let fault = json!({ "apply": "never", "answer": answer });
        world.add_rule(json!({ "match": matched, "first": 1, "fault": fault })).await;
    }
    let mut worker = world.start_worker_with(as_app);
    let (exhausted, _) = world.publish_job_for(exhausted_of).await;
    let (unsettled, _) = world.publish_job_for(unsettled_of).await;
    world.wait_for_state(exhausted, &["exhausted"]).await;
    world.wait_for_state(unsettled, &["needs_review"]).await;
    worker.stop().await;
    [(exhausted, exhausted_of), (unsettled, unsettled_of)]
}

const BY_HAND: Attribution<'_> =
    Attribution { by: "ana@example.com", note: "seen in the dashboard", proposal: None };

#[test]
fn the_desk_does_what_its_commands_do_and_sees_nothing_that_is_sealed() {
    let cluster = own_postgres(Disk::Ample, &[]);
    world_on(&cluster.url(), async |world| {
        make_roles(&world).await;
        let app = url_of(&world, "app");
        let as_app = [
            ("DATABASE_URL", app.as_str()),
            ("RETRY_MAX_ATTEMPTS", "1"),
            ("BREAKER_FAILURES", "1000"),
            ("READ_BACK_DEADLINE", "10s"),
            TOLD,
        ];
        let upstream = world.listen().await;
        let jobs = make_jobs_for_a_person(&world, &as_app).await;
        check_desk_sees_nothing_sealed(&world).await;
        check_desk_rewrites_nothing(&world).await;
        check_desk_acts(&world, jobs).await;
        check_console_writes_down_who_saw_whom(&world, jobs[0].0).await;

        // What it did is what a worker goes on from, and the books agree.
        let [(exhausted, _), (unsettled, _)] = jobs;
        let mut worker = world.start_worker_with(&as_app);
        world.wait_for_state(exhausted, &["accepted"]).await;
        upstream.wait_for_implied(&world, &[exhausted, unsettled]).await;
        worker.stop().await;
        let audited = world.run(&["audit"], &as_app).await;
        assert!(audited.status.success(), "{}", String::from_utf8_lossy(&audited.stdout));
    });
}

/// By no table, view, copy or statistic.
async fn check_desk_sees_nothing_sealed(world: &World) {
    let kept =
        "select count(*) from submission where octet_length(sealed_payload) > 0 and content_hmac is not null";
    assert_eq!(world.count(kept).await, 2, "there is something to be seen");
    let desk = log_in(world, "desk").await;
    for statement in [
        "select * from public.submission",
        "select sealed_payload from public.submission",
        "select content_hmac from public.submission",
        "select count(sealed_payload) from public.submission",
        "select content_hmac from archived_job",
        "select * from archived_job",
        "select * from public.attempt",
        "select * from fingerprint_key",
        "select * from customer_budget",
        "copy public.submission to stdout",
        "copy (select sealed_payload from public.submission) to stdout",
        "copy (select 1) to program 'id'",
        "select pg_read_file('postgresql.conf')",
        "select * from pg_statistic",
        "select stavalues1 from pg_statistic",
        "create view desk.mine as select 1",
        "create table mine (x int)",
        "create or replace view desk.submission as select * from public.submission",
        "alter view desk.submission owner to desk",
        "drop view desk.submission",
        "alter function desk.move_submission() owner to desk",
        "create policy mine on public.submission using (true)",
        "alter table public.submission disable row level security",
        "grant select on public.submission to desk",
        "set role kyc_migrator",
        "set role kyc_worker",
        "set session_replication_role = replica",
    ] {
        assert_eq!(refusal(&desk, statement).await, NO_PRIVILEGE, "{statement}");
    }
    // A payload shows as empty where there is one, and a fingerprint tells no more than whether two are the same.
    let shown: (i64, i64) = sqlx::query_as(
        "select count(*) filter (where sealed_payload = ''), count(content_hmac) from desk.submission",
    )
    .fetch_one(&desk)
    .await
    .expect("the view");
    assert_eq!(shown, (2, 2));
    world.tamper("analyze submission").await;
    let known: i64 = sqlx::query_scalar(
        "select count(*) from pg_stats where tablename = 'submission' and attname in ('sealed_payload', 'content_hmac')",
    )
    .fetch_one(&desk)
    .await
    .expect("the catalog");
    assert_eq!(known, 0);
    let digests = "select count(*) from submission s join desk.submission d using (job_id)
        where d.content_hmac = sha256(s.content_hmac) and d.content_hmac <> s.content_hmac";
    assert_eq!(world.count(digests).await, 2);
}

async fn check_desk_rewrites_nothing(world: &World) {
    let desk = log_in(world, "desk").await;
    for statement in [
        "update public.submission set state = 'accepted'",
        "update desk.submission set customer_id = gen_random_uuid()",
        "update desk.submission set content_hmac = null",
        "update desk.submission set received_at = now()",
        "insert into desk.submission (job_id) values (gen_random_uuid())",
        "delete from desk.submission",
        "delete from public.submission",
        "update public.attempt set verdict = 'accepted'",
        "update desk.attempt set worker = 'another'",
        "insert into desk.attempt (job_id) values (gen_random_uuid())",
        "delete from desk.attempt",
        "insert into observation (job_id) values (gen_random_uuid())",
        "update observation set status = 'VERIFIED'",
        "update intervention set by = 'nobody'",
        "delete from intervention",
        "truncate intervention",
        "update access_record set by = 'nobody'",
        "delete from access_record",
        "truncate access_record",
        "update customer set customer_id = gen_random_uuid()",
        "delete from customer",
        "delete from outcome_event",
        "delete from dead_lettered_delivery",
        "update worker set version = 'x'",
        "update fleet_figure set value = 9",
    ] {
        assert_eq!(refusal(&desk, statement).await, NO_PRIVILEGE, "{statement}");
    }
    for statement in
        ["update desk.attempt set verdict = 'accepted'", "update desk.attempt set ended_at = now()"]
    {
        assert_eq!(refusal(&desk, statement).await, APPEND_ONLY, "{statement}");
    }
    check_desk_moves_nothing_by_itself(&desk).await;
}

/// No job moves without the intervention that says so, whose time is the database's; and what is refused tells
/// nothing of the row.
async fn check_desk_moves_nothing_by_itself(desk: &PgPool) {
    let before: Vec<(Uuid, Vec<u8>)> = sealed(desk).await;
    for statement in [
        "update desk.submission set state = 'bogus'",
        "update desk.submission set sealed_payload = null",
        "update desk.submission set verification_status = 'VERIFIED', evidence = 'person'",
        "update desk.submission set state = 'waiting', waiting_for = 'retry', due_at = now(), ended_at = null",
        "insert into intervention (action, by, note, at) values ('pause', 'ceo', 'forged', '2001-01-01')",
        "insert into access_record (by, page, job_id, at) values ('ceo', '/', gen_random_uuid(), '2001-01-01')",
        "insert into access_record (id, by, page, job_id) overriding system value values (1, 'ceo', '/', gen_random_uuid())",
    ] {
        assert_eq!(refusal(desk, statement).await, NO_PRIVILEGE, "{statement}");
    }
    for column in
        ["attempts = -5", "retries = -1", "waiting_for = null", "sealed_payload = null", "due_at = null"]
    {
        let mut tx = desk.begin().await.expect("a transaction");
        sqlx::query(
            "insert into intervention (action, by, note, job_id, entries)
            select 'replay', 'eve', 'n', job_id, entries from desk.submission where state = 'exhausted'",
        )
        .execute(&mut *tx)
        .await
        .expect("it may");
        let set =
            "state = 'waiting', waiting_for = 'retry', due_at = now(), ended_at = null, claimed_until = null";
        let columns = match column.split_once(" = ") {
            Some((name, _)) if set.contains(name) => {
                let value = set.split(", ").find(|each| each.starts_with(name)).expect("it is set");
                set.replace(value, column)
            }
            _ => format!("{set}, {column}"),
        };
        let refused = sqlx::query(&format!("update desk.submission set {columns} where state = 'exhausted'"))
            .execute(&mut *tx)
            .await
            .expect_err("the row's checks refuse it");
        let refused = refused.as_database_error().expect("the database's");
        let refused = refused.downcast_ref::<PgDatabaseError>();
        assert_eq!(refused.message(), "the job's row cannot become that", "{column}");
        assert_eq!(
            (refused.detail(), refused.r#where().map(|at| at.contains("\\x"))),
            (None, Some(false)),
            "{column}"
        );
    }
    assert_eq!(sealed(desk).await, before);
}

/// What shows of payloads and fingerprints.
async fn sealed(desk: &PgPool) -> Vec<(Uuid, Vec<u8>)> {
    sqlx::query_as(
        "select job_id, content_hmac from desk.submission where sealed_payload is not null order by 1",
    )
    .fetch_all(desk)
    .await
    .expect("the view")
}

/// Everything that a person does by the console, over its own sessions.
async fn check_desk_acts(world: &World, jobs: [(Uuid, Uuid); 2]) {
    let [(exhausted, _), (unsettled, customer_id)] = jobs;
    let url = Secret::from(url_of(world, "desk"));
    let settings = DatabaseSettings {
        database_url: vec![url.clone()],
        database_url_file: Vec::new(),
        database_connections: 10,
        allow_unsafe_database: true,
    };
    let (pages, actions) = connect_for_console(&settings, &url).await.expect("the desk's sessions");
    let filter = Filter {
        state: Some(State::NeedsReview),
        reason_code: None,
        customer_id: None,
        is_overdue: false,
        since: None,
        limit: 10,
    };
    let listed = list(&pages, &filter).await.expect("a list");
    assert_eq!(listed.iter().map(|job| job.job_id).collect::<Vec<_>>(), [unsettled]);
    let story = job_story(&pages, exhausted).await.expect("a story").expect("it is known");
    assert!(story.submission.has_payload, "it may be sent again");
    let selection = Selection { state: Some(State::Exhausted), reason_code: None, limit: 10 };
    assert_eq!(find_ended(&pages, &selection).await.expect("ended jobs"), [exhausted]);
    assert_eq!(refusal(&pages, "insert into access_record (by, page) values ('a', 'b')").await, READ_ONLY);

    pause(&actions, BY_HAND).await.expect("a pause");
    let ended = resume(&actions, Some(BY_HAND.by), Some(BY_HAND.note), None).await.expect("its end");
    assert_eq!(ended.expect("a pause").by, BY_HAND.by);
    set_budget(&actions, customer_id, 1, None, BY_HAND).await.expect("a budget");
    let rules = ReplayRules { customer_updates: 3, read_back_window: Duration::from_secs(10) };
    let dry = replay(&actions, exhausted, rules, Intent::DryRun, None).await.expect("a dry run");
    assert_eq!((dry.refusal, dry.updates_left), (None, Some(3)));
    let again = Intent::Replay { attribution: BY_HAND, delay: Duration::ZERO };
    let done = replay(&actions, exhausted, rules, again, None).await.expect("a replay");
    assert_eq!(done.refusal, None);
    let refused = replay(&actions, unsettled, rules, again, None).await.expect("a refusal");
    assert!(refused.refusal.is_some(), "it may have been applied: {refused:?}");
    resolve(&actions, unsettled, Finding::Accepted, None, BY_HAND).await.expect("it is settled");
    let customer =
        customer_story(&pages, customer_id, None).await.expect("a customer").expect("they are known");
    assert_eq!(customer.spent.elsewhere, 1);
    let by = "select count(*) from intervention where by = 'ana@example.com'";
    assert_eq!(world.count(by).await, 5, "pause, resume, budget, replay and resolve");
    let settled = "select count(*) from submission where state = 'accepted' and evidence = 'person' and sealed_payload is null";
    assert_eq!(world.count(settled).await, 1);
    pages.close().await;
    actions.close().await;
}

async fn check_console_writes_down_who_saw_whom(world: &World, job_id: Uuid) {
    let desk = url_of(world, "desk");
    let local = [("CONSOLE_LOGIN", "local"), ("CONSOLE_LOCAL_USER", "ana")];
    let console = Console::start(world, &[&local[..], &[("DATABASE_URL", &desk)]].concat()).await;
    for (path, form) in [("", ""), (".json", ".json"), (".csv", ".csv")] {
        let page = ask(&world.http, &console.url(&format!("/jobs/{job_id}{path}")), &[]).await;
        assert_eq!(page.status, 200, "{form}: {}", page.text);
    }
    let seen: Vec<String> = sqlx::query_scalar(
        "select page from access_record where by = 'ana' and job_id = $1 and customer_id is not null order by id",
    )
    .bind(job_id)
    .fetch_all(&world.pool)
    .await
    .expect("records");
    assert_eq!(seen, ["/jobs/{id}", "/jobs/{id}.json", "/jobs/{id}.csv"]);
    let warned = "may see sealed payloads";
    assert!(!console.process.log().contains(warned), "{}", console.process.log());
    let owner = Console::start(world, &local).await;
    assert!(owner.process.log().contains(warned), "{}", owner.process.log());
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
