//! What a statement reads does not grow with the tables, also where these were never analyzed.

use std::fs;
use std::time::Duration;

use futures_util::future::join_all;
use kyc_worker::config::{DatabaseSettings, Secret};
use kyc_worker::desk::budget::customer_story;
use kyc_worker::desk::replay::{ReplayRules, Selection, find_ended, foresee};
use kyc_worker::desk::review::worklist;
use kyc_worker::desk::story::job_story;
use kyc_worker::domain::state::State;
use kyc_worker::journal::{Journal, connect_to_work};
use serde_json::Value;
use sqlx::{PgPool, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::architecture::sources;
use crate::figures::{ask_every_page, desk_pool};
use crate::harness::{World, world};
use crate::many_jobs::{jobs, open_all, settle};
use crate::one_customer::journal_with;

/// Jobs that ended long ago, each with an attempt and a customer of its own; in tables that
/// nothing analyzes. By their pages alone Postgres guesses how many there are, and that a customer
/// has one in two hundred of them.
async fn make_history(world: &World, jobs: i32) {
    for table in ["submission", "attempt", "customer"] {
        let unattended = format!("alter table {table} set (autovacuum_enabled = false)");
        sqlx::query(&unattended).execute(&world.pool).await.expect("a setting");
    }
    world.is_tampered_with();
    let made = "with made as (
            insert into submission (
                job_id, customer_id, state, reason, attempts, requested_at, received_at, ended_at
            )
            select gen_random_uuid(), gen_random_uuid(), 'accepted', repeat('wide', 225), 1, at, at, at
            from generate_series(1, $1) nth
            cross join lateral (select now() - interval '1 year' + nth * interval '1 min' as at) dated
            returning *
        ), tried as (
            insert into attempt (job_id, number, worker, begun_at, signed_at, ended_at, verdict, error)
            select job_id, 1, 'one', ended_at, ended_at, ended_at, 'accepted', repeat('wide', 100) from made
        )
        insert into customer (customer_id, last_read_at) select customer_id, ended_at from made";
    sqlx::query(made).bind(jobs).execute(&world.pool).await.expect("the database does it");
}

/// Connections like a worker's.
async fn worker_pool(world: &World) -> PgPool {
    let settings = DatabaseSettings {
        database_url: Vec::new(),
        database_url_file: Vec::new(),
        database_connections: 4,
        allow_unsafe_database: true,
    };
    let pool = connect_to_work(&settings, &Secret::from(world.database_url())).await;
    pool.expect("the database is there")
}

/// A journal over connections like a worker's.
pub async fn worker_journal(world: &World) -> Journal {
    journal_with(worker_pool(world).await, "one")
}

/// How many rows of a table were read. Connections tell what they read when they end at the
/// latest.
pub async fn rows_read(world: &World, table: &str) -> i64 {
    let connected = "select count(*) from pg_stat_activity
        where datname = current_database() and application_name = 'kyc-worker'";
    world
        .wait_for("an end of the connections", async || (world.count(connected).await == 0).then_some(()))
        .await;
    let read = "select (seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint
        from pg_stat_user_tables where relname = $1";
    let read = async || {
        let rows: i64 = sqlx::query_scalar(read).bind(table).fetch_one(&world.pool).await.expect("a count");
        (rows > 0).then_some(rows)
    };
    world.wait_for("a count of what was read", read).await
}

/// Where a plan seeks a job's id among the rows that another index has.
fn sifted_by_id(plan: &Value, found: &mut Vec<String>) {
    let text = |key: &str| plan[key].as_str().unwrap_or_default();
    let is_of_jobs = ["submission", "attempt", "observation"].contains(&text("Relation Name"));
    if is_of_jobs && text("Filter").contains("job_id = ") && !text("Index Cond").contains("job_id = ") {
        found.push(format!("{}, {}: {}", text("Relation Name"), text("Index Name"), text("Filter")));
    }
    for below in plan["Plans"].as_array().into_iter().flatten() {
        sifted_by_id(below, found);
    }
}

/// Whoever knows a job's id looks it up by that. Where all jobs have ended, the indexes of those in motion are
/// empty, and to read one whole would cost nothing then; the plan lasts for as long as its connection.
#[test]
fn no_statement_of_worker_or_archive_sifts_jobs_for_an_id() {
    world(async |world| {
        make_history(&world, 20_000).await;
        sqlx::raw_sql("vacuum (analyze)").execute(&world.pool).await.expect("the tables are analyzed");
        let mut connection = worker_pool(&world).await.acquire().await.expect("a connection");
        let journal: String = sources()
            .into_iter()
            .filter(|(path, _)| path.starts_with("src/journal") || path.starts_with("src/desk/archive"))
            .map(|(_, source)| source)
            .collect();
        let (mut explained, mut wrong) = (0, Vec::new());
        for file in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.sqlx")).expect("the queries") {
            let described = fs::read(file.expect("a file").path()).expect("a query");
            let described: Value = serde_json::from_slice(&described).expect("it is JSON");
            let query = described["query"].as_str().expect("a text");
            let name = query.trim_start().lines().next().expect("a name");
            if !journal.contains(&format!("{name}\n")) {
                continue;
            }
            let parameters = described["describe"]["parameters"]["Left"].as_array().map_or(0, Vec::len);
            let given = vec!["null"; parameters].join(", ");
            let given = if given.is_empty() { given } else { format!("({given})") };
            let explain = format!(
                "prepare asked as {query}; explain (format json) execute asked {given}; deallocate asked"
            );
            let rows = sqlx::raw_sql(&explain).fetch_all(&mut *connection).await;
            let rows = rows.unwrap_or_else(|error| panic!("{name}: {error}"));
            let plan: String = rows[0].try_get_unchecked(0).expect("a plan");
            let plan: Value = serde_json::from_str(&plan).expect("it is JSON");
            let mut found = Vec::new();
            sifted_by_id(&plan[0]["Plan"], &mut found);
            explained += 1;
            wrong.extend(found.into_iter().map(|place| format!("{name}: {place}")));
        }
        assert!(explained > 50, "{explained} statements were found");
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
}

#[test]
fn a_read_loads_the_attempts_of_its_customer_alone() {
    world(async |world| {
        make_history(&world, 60_000).await;
        world
            .tamper(
                "with unsettled as (
                    insert into submission (
                        job_id, customer_id, state, attempts, requested_at, received_at, due_at, sealed_payload
                    )
                    values (gen_random_uuid(), gen_random_uuid(), 'unknown', 1, now(), now(), now(), 'sealed')
                    returning job_id
                )
                insert into attempt (job_id, number, worker, signed_at, ended_at, verdict)
                select job_id, 1, 'one', now(), now(), 'unknown' from unsettled",
            )
            .await;
        let journal = worker_journal(&world).await;
        assert_eq!(journal.claim_reads(1).await.expect("the database answers").len(), 1, "it is due");
        drop(journal);
        let read = rows_read(&world, "attempt").await;
        assert!(read < 100, "{read} attempts were loaded for one read");
    });
}

#[test]
fn a_configuration_is_remembered_by_its_customers_observations_alone() {
    world(async |world| {
        make_history(&world, 1).await;
        world.tamper("alter table observation set (autovacuum_enabled = false)").await;
        world
            .tamper(
                "insert into observation (job_id, customer_id, at, purpose, document_types)
                select job_id, ('00000000-0000-0000-0000-' || lpad(nth::text, 12, '0'))::uuid, now(),
                    'configuration', 'PASSPORT'
                from submission cross join generate_series(1, 60000) nth",
            )
            .await;
        let journal = worker_journal(&world).await;
        let remembered = journal.remembered_configuration(Uuid::from_u128(7)).await;
        assert!(remembered.expect("the database answers").1.is_some(), "it was told just now");
        drop(journal);
        let read = rows_read(&world, "observation").await;
        assert!(read < 100, "{read} observations were read for one customer");
    });
}

#[test]
fn a_batch_of_results_reads_its_own_jobs_alone() {
    world(async |world| {
        make_history(&world, 2_000).await;
        world
            .tamper(
                "insert into submission (
                    job_id, customer_id, state, attempts, requested_at, received_at, claimed_by, claimed_until,
                    sealed_payload
                )
                select
                    gen_random_uuid(), gen_random_uuid(), 'submitting', 1, now(), now(), 'another',
                    now() + interval '1 hour', 'sealed'
                from generate_series(1, 7000)",
            )
            .await;
        let journal = worker_journal(&world).await;
        let claims = open_all(&journal, &jobs(300)).await;
        join_all(claims.iter().map(async |claim| settle(&journal, claim, None).await.expect("it is ours")))
            .await;
        drop(journal);
        let read = rows_read(&world, "submission").await;
        assert!(read < 300 * 10, "{read} submissions were read for 300 jobs beside 7,000 others");
    });
}

#[test]
fn a_new_job_is_looked_up_among_those_archived_by_its_id_and_its_customer() {
    world(async |world| {
        make_history(&world, 1).await;
        for statement in [
            "alter table archived_job set (autovacuum_enabled = false)",
            "alter table archived_customer set (autovacuum_enabled = false)",
            "insert into archived_job (job_id, customer_id, state, holds_id, ended_at, deliveries, file)
            select gen_random_uuid(), gen_random_uuid(), 'accepted', true, now(), 1, 'a file'
            from generate_series(1, 60000)",
            "insert into archived_customer (customer_id, accepted, unknown_outcome, files)
            select gen_random_uuid(), 1, 0, array['a file'] from generate_series(1, 60000)",
        ] {
            world.tamper(statement).await;
        }
        let journal = worker_journal(&world).await;
        let mut jobs = jobs(300);
        // Something is read of both, by which it is seen that the counts have come.
        assert_eq!(world.count("select count(*) from (select from archived_job limit 1) as one").await, 1);
        jobs[0].customer_id = sqlx::query_scalar("select customer_id from archived_customer limit 1")
            .fetch_one(&world.pool)
            .await
            .expect("a customer");
        open_all(&journal, &jobs).await;
        drop(journal);
        for table in ["archived_customer", "archived_job"] {
            let read = rows_read(&world, table).await;
            assert!(read < 1_000, "{read} rows of {table} were read for 300 jobs");
        }
    });
}

#[test]
fn people_who_ask_of_a_day_read_no_more_than_that_day() {
    world(async |world| {
        make_history(&world, 4_000).await;
        world
            .tamper(
                "insert into submission (job_id, customer_id, state, attempts, requested_at, received_at, ended_at)
                select gen_random_uuid(), gen_random_uuid(), 'accepted', 1, now(), now(), now()
                from generate_series(1, 20)",
            )
            .await;
        let yesterday = OffsetDateTime::now_utc().date() - time::Duration::DAY;
        for question in [
            &["report"][..],
            &["list"],
            &["list", "--reason", "refused"],
            &["list", "--state", "needs_review"],
            &["list", "--customer", &Uuid::new_v4().to_string()],
            &["replay", "--state", "exhausted"],
            &["export", "--since", &yesterday.to_string()],
        ] {
            world.say(question).await;
        }
        let read = rows_read(&world, "submission").await;
        assert!(read < 2_000, "{read} submissions were read for questions about 20");
    });
}

#[test]
fn pages_of_a_console_and_the_minutes_that_they_show_read_no_table_whole() {
    world(async |world| {
        make_history(&world, 50_000).await;
        for statement in [
            "alter table observation set (autovacuum_enabled = false)",
            "alter table intervention set (autovacuum_enabled = false)",
            "alter table dead_lettered_delivery set (autovacuum_enabled = false)",
            "insert into observation (job_id, customer_id, at, purpose, status)
            select gen_random_uuid(), gen_random_uuid(), now(), 'verification', 'VERIFIED'
            from generate_series(1, 50000)",
            "insert into intervention (action, by, note, job_id, customer_id)
            select 'requeue', 'ana', 'why', gen_random_uuid(), gen_random_uuid() from generate_series(1, 50000)",
            "insert into dead_lettered_delivery (received_at, size, body_sha256, reason_code, reason, job_id)
            select
                now() - interval '1 year', 2, sha256(nth::text::bytea), 'invalid', '/document_type: is none',
                gen_random_uuid()
            from generate_series(1, 50000) nth",
            // What is shown: few rows of each kind, of today.
            "with made as (
                insert into submission (
                    job_id, customer_id, state, evidence, reason_code, requested_at, received_at, ended_at,
                    verification_due_at, verification_overdue_at, correlation_id
                )
                select
                    gen_random_uuid(), gen_random_uuid(), state, case when state = 'accepted' then 'response' end,
                    'why', now(), now(), now(), case when state = 'accepted' then now() + interval '1 hour' end,
                    case when state = 'accepted' then now() end, 'order 7'
                from generate_series(1, 20)
                cross join unnest(array['accepted', 'needs_review']) state
                returning job_id, customer_id
            ), tried as (
                insert into attempt (job_id, number, worker, signed_at, ended_at, verdict)
                select job_id, 1, 'one', now(), now(), 'unknown' from made
            )
            insert into observation (job_id, customer_id, at, purpose, status)
            select job_id, customer_id, now(), 'baseline', 'PROCESSING' from made",
            "update fleet_reading set minutes_until = now() - interval '5 minutes'",
        ] {
            world.tamper(statement).await;
        }
        // As autovacuum does: block ranges are used once there are statistics, and so is the order in which dead
        // letters lie. It reads every attempt.
        let autovacuum = desk_pool(&world).await;
        for statement in [
            "analyze attempt",
            "analyze dead_lettered_delivery",
            "select brin_summarize_new_values('attempt_begun')",
        ] {
            sqlx::query(statement).execute(&autovacuum).await.expect("the database does it");
        }
        drop(autovacuum);
        let read_before = rows_read(&world, "attempt").await;

        let journal = worker_journal(&world).await;
        assert!(journal.refresh_figures().await.expect("the database answers"), "it is its turn");
        drop(journal);
        assert_eq!(world.count("select sum(attempts)::bigint from fleet_error").await, 40);
        ask_every_page(&world).await;
        for (table, most) in [
            // A range of its blocks for the minutes, and one for the page.
            ("attempt", read_before + 8_000),
            ("submission", 2_000),
            ("observation", 2_000),
            ("intervention", 2_000),
            ("dead_lettered_delivery", 12_000),
        ] {
            let read = rows_read(&world, table).await;
            assert!(read < most, "{read} rows of {table} were read, {most} is too many");
        }
    });
}

#[test]
fn a_page_about_few_among_very_many_reads_few() {
    world(async |world| {
        make_history(&world, 1).await;
        for statement in [
            "insert into submission (
                job_id, customer_id, state, reason_code, reason, attempts, requested_at, received_at, ended_at,
                sealed_payload
            )
            select
                gen_random_uuid(), gen_random_uuid(), case when nth % 2 = 0 then 'exhausted' else 'needs_review' end,
                case when nth % 4000 < 2 then 'last_update' else 'attempts' end, 'why', 1, at, at, at, 'sealed'
            from generate_series(1, 20000) nth
            cross join lateral (select now() - nth * interval '1 min' as at) dated",
            "insert into submission (job_id, customer_id, state, requested_at, received_at, ended_at)
            select
                ('00000000-0000-0000-0000-' || lpad(nth::text, 12, '0'))::uuid,
                '00000000-0000-0000-0000-0000000c0001', 'superseded', at, at, at
            from generate_series(1, 20000) nth
            cross join lateral (select now() - nth * interval '1 min' as at) dated",
        ] {
            world.tamper(statement).await;
        }
        let pool = desk_pool(&world).await;
        let reason = Some("last_update");
        assert_eq!(worklist(&pool, reason, 100).await.expect("the database answers").len(), 5);
        let (exhausted, rules) = (
            Some(State::Exhausted),
            ReplayRules { customer_updates: 3, read_back_window: Duration::from_secs(60) },
        );
        for (state, reason_code, found) in
            [(None, None, 100), (exhausted, None, 100), (None, reason, 10), (exhausted, reason, 5)]
        {
            let selection = Selection { state, reason_code, limit: 100 };
            let job_ids = find_ended(&pool, &selection).await.expect("the database answers");
            let replays = foresee(&pool, &job_ids, rules).await.expect("the database answers");
            assert_eq!((job_ids.len(), replays.len()), (found, found), "{state:?} {reason_code:?}");
        }
        let story = customer_story(&pool, Uuid::from_u128(0xc0001), Some(100)).await;
        let story = story.expect("the database answers").expect("they are known");
        assert_eq!((story.jobs.len(), story.is_cut), (100, true));
        let told = job_story(&pool, Uuid::from_u128(7)).await.expect("the database answers");
        assert!(told.expect("it is known").unordered_with.is_empty(), "a minute lies between them");
        drop(pool);
        let read = rows_read(&world, "submission").await;
        assert!(read < 4_000, "{read} rows of submission were read for pages of a hundred");
    });
}
