//! One customer's backlog, a snapshot that is held, or a chore that fails: none of them keeps the
//! work on others waiting. Rows and log lines are counted, never seconds.

use std::time::Duration;

use futures_util::future::join_all;
use kyc_worker::clock::Moment;
use kyc_worker::domain::job::Job;
use kyc_worker::domain::outcome::Outcome;
use kyc_worker::domain::state::WaitingFor;
use kyc_worker::journal::{Admission, Journal, NextAttempt, Opened};
use serde_json::json;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Postgres, Transaction};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::growth::{rows_read, worker_journal};
use crate::harness::{World, sized, world};
use crate::many_jobs::settle;
use crate::one_customer::{job_asked, journal, journal_with, take_slot};

/// What a hot customer has waiting.
const BACKLOG: i64 = 2_000;

/// How many rows of each kind passed while a snapshot was held.
const PASSED: i64 = 3_000;

async fn open(journal: &Journal, job: &Job) -> Opened {
    let admission = Admission::Claim(Moment::now());
    journal.open(job, OffsetDateTime::now_utc(), admission).await.expect("it is written down")
}

async fn next(journal: &Journal, limit: usize) -> Vec<NextAttempt> {
    let next = journal.next_attempts(Moment::now(), None, limit).await;
    next.expect("the database answers").expect("no other replica is there")
}

/// Makes a customer's jobs that wait, the oldest first, asked for an hour ago and later.
async fn make_backlog(world: &World, customer_id: Uuid, due: &'static str) {
    world.is_tampered_with();
    let made = format!(
        "insert into submission (
            job_id, customer_id, state, waiting_for, due_at, requested_at, received_at, sealed_payload
        )
        select
            gen_random_uuid(), $1, 'waiting', 'customer', {due},
            now() - interval '1 hour' + nth * interval '1 s', now(), 'sealed'
        from generate_series(1, $2) nth"
    );
    sqlx::query(&made).bind(customer_id).bind(BACKLOG).execute(&world.pool).await.expect("a backlog");
}

/// Has every statement planned over empty tables, as a worker does that starts with the first job.
async fn plan_over_empty_tables(journal: &Journal) {
    let Opened::Claimed(claim) = open(journal, &job_asked(Uuid::new_v4(), 0)).await else {
        panic!("the customer is free")
    };
    settle(journal, &claim, None).await.expect("it is ours");
    next(journal, 32).await;
}

/// Opens a customer's newest job, ends it accepted, and has the next of the backlog claimed.
async fn work_beside_a_backlog(world: &World) -> i64 {
    let (journal, customer_id) = (worker_journal(world).await, Uuid::new_v4());
    plan_over_empty_tables(&journal).await;
    make_backlog(world, customer_id, "now() + interval '5 min'").await;
    let newest = job_asked(customer_id, 0);
    let Opened::Claimed(claim) = open(&journal, &newest).await else { panic!("the customer is free") };
    assert!(matches!(open(&journal, &job_asked(customer_id, 60)).await, Opened::Waiting));
    settle(&journal, &claim, None).await.expect("it is ours");
    let ended = next(&journal, 32).await;
    let superseded = Outcome::Superseded { by: newest.id };
    let has_made_way =
        |each: &NextAttempt| matches!(each, NextAttempt::YieldedSlot(_, Some(by)) if *by == superseded);
    assert!(ended.len() > 1 && ended.iter().all(has_made_way), "many at once, and none was sent");
    journal.postpone_busy(100).await.expect("the database answers");
    drop(journal);
    rows_read(world, "submission").await
}

#[test]
fn the_work_for_an_event_does_not_grow_with_a_customers_backlog() {
    world(async |world| {
        let read = work_beside_a_backlog(&world).await;
        assert!(read < BACKLOG / 2, "{read} submissions were read for five events");
    });
}

/// Without the index that finds the newest, the same work reads the backlog for each event.
#[test]
fn without_its_index_a_customers_backlog_is_read_for_each_event() {
    world(async |world| {
        sqlx::query("drop index submission_waiting_newest").execute(&world.pool).await.expect("it goes");
        let read = work_beside_a_backlog(&world).await;
        assert!(read > 2 * BACKLOG, "{read}");
    });
}

#[test]
fn of_a_backlog_that_is_due_all_but_the_newest_are_put_off_once() {
    world(async |world| {
        let customer_id = Uuid::new_v4();
        make_backlog(&world, customer_id, "now()").await;
        let journal = journal(&world, "one");
        let mut postponed = 0;
        while let more @ 1.. = journal.postpone_busy(500).await.expect("the database answers") {
            postponed += more;
        }
        assert_eq!(postponed, BACKLOG.unsigned_abs() - 1);
        let due_soon = "select count(*) from submission where due_at < now() + interval '2 min'";
        assert_eq!(world.count(due_soon).await, 1, "the newest is to go, the others are nobody's business");
    });
}

/// Whoever was to wake it may have met its row locked.
#[test]
fn a_newest_job_that_sleeps_is_woken_by_any_other_that_rings() {
    world(async |world| {
        let customer_id = Uuid::new_v4();
        make_backlog(&world, customer_id, "now() + interval '5 min'").await;
        world
            .tamper(
                "update submission set due_at = now()
                where job_id = (select job_id from submission order by requested_at limit 1)",
            )
            .await;
        let journal = journal(&world, "one");
        assert_eq!(journal.postpone_busy(100).await.expect("the database answers"), 1);
        let newest = "select count(*) from submission
            where due_at <= now() and requested_at = (select max(requested_at) from submission)";
        assert_eq!(world.count(newest).await, 1);
        assert_eq!(world.count("select count(*) from submission where due_at <= now()").await, 1);
    });
}

/// And others' updates whose answers are lost meanwhile are read in time.
#[test]
fn one_customers_jobs_in_the_queue_are_written_few_times_each() {
    world(async |world| {
        world.declare_topology().await;
        world.set_provider(json!({ "update_limit": 1000, "latency_ms": 20 })).await;
        let (hot, jobs) = (Uuid::new_v4(), sized(300, 1_000));
        let lost = json!({ "kind": "respond", "status": 500, "body": "oops" });
        let (mut newest, mut read_back) = (None, Vec::new());
        // The newest are published last, and others' jobs among them.
        for ago in (1..=jobs).rev() {
            newest = Some(world.publish_job_asked(hot, ago).await);
            match ago % 10 {
                0 => {
                    let fault = json!({ "apply": "now", "answer": lost });
                    read_back.push(world.publish_broken_job(fault).await);
                }
                5 => {
                    world.publish_job().await;
                }
                _ => {}
            }
        }
        let settings = [("CUSTOMER_UPDATE_LIMIT", "10"), ("BREAKER_FAILURES", "100")];
        let mut worker = world.start_worker_with(&settings);
        let all = usize::try_from(jobs + jobs / 5).expect("a count");
        world.wait_for_ended(all).await;
        worker.stop().await;
        let newest = world.submission(newest.expect("a job")).await.expect("it is known");
        assert_eq!(newest.state, "accepted");
        for job_id in read_back {
            let job = world.submission(job_id).await.expect("it is known");
            assert_eq!(
                (job.state.as_str(), job.evidence.as_deref()),
                ("accepted", Some("read_back")),
                "{job:?}"
            );
        }
        let told = "select n_tup_ins from pg_stat_user_tables where relname = 'submission'";
        let all = i64::try_from(all).expect("a count");
        world.wait_for("the statistics", async || (world.count(told).await >= all).then_some(())).await;
        let updates = "select n_tup_upd from pg_stat_user_tables where relname = 'submission'";
        let updates = world.count(updates).await;
        assert!(updates < 5 * all, "{updates} updates of rows for {all} jobs");
    });
}

/// Begins a transaction whose statements see nothing that is committed from now on, as a statement
/// does that has begun.
async fn begin_blind(world: &World) -> Transaction<'static, Postgres> {
    let mut tx = world.pool.begin().await.expect("a transaction");
    for begin in ["set transaction isolation level repeatable read", "select 1"] {
        sqlx::query(begin).execute(&mut *tx).await.expect("it begins");
    }
    tx
}

async fn accept(tx: &mut Transaction<'static, Postgres>, job: &Job) {
    let accepted = "update submission
        set state = 'accepted', ended_at = now(), claimed_until = null, sealed_payload = null
        where job_id = $1";
    sqlx::query(accepted).bind(job.id).execute(&mut **tx).await.expect("it is accepted");
}

/// The holder's result is being written and does not see the job that comes to wait behind it.
#[test]
fn a_job_that_a_release_did_not_see_is_taken_up_soon() {
    world(async |world| {
        let (journal, customer_id) = (journal(&world, "one"), Uuid::new_v4());
        let (holder, waiter) = (job_asked(customer_id, 60), job_asked(customer_id, 0));
        take_slot(&world, &holder).await.commit().await.expect("it commits");
        let mut releasing = begin_blind(&world).await;
        assert!(matches!(open(&journal, &waiter).await, Opened::Waiting));
        let unseen = "select count(*) from submission where state = 'waiting'";
        let seen: i64 = sqlx::query_scalar(unseen).fetch_one(&mut *releasing).await.expect("a count");
        assert_eq!(seen, 0, "the release wakes nobody");
        accept(&mut releasing, &holder).await;
        releasing.commit().await.expect("it commits");
        let late = "select count(*) from submission
            where state = 'waiting' and due_at > received_at + interval '3 s'";
        assert_eq!(world.count(late).await, 0);
        let claimed = world
            .wait_for("the waiter's claim", async || {
                next(&journal, 1).await.pop().filter(|next| matches!(next, NextAttempt::Claimed(_)))
            })
            .await;
        assert!(matches!(claimed, NextAttempt::Claimed(claimed) if claimed.claim.job.id == waiter.id));
    });
}

/// The other order: the result is written, but not committed, when the next job comes.
#[test]
fn a_job_that_comes_while_its_customer_is_released_goes_at_once() {
    world(async |world| {
        let (journal, customer_id) = (journal(&world, "one"), Uuid::new_v4());
        let (holder, waiter) = (job_asked(customer_id, 60), job_asked(customer_id, 0));
        take_slot(&world, &holder).await.commit().await.expect("it commits");
        let mut releasing = begin_blind(&world).await;
        accept(&mut releasing, &holder).await;
        let blocked = async {
            let blocked = "select count(*) from pg_stat_activity
                where datname = current_database() and wait_event_type = 'Lock'";
            world.wait_for("it waits", async || (world.count(blocked).await == 1).then_some(())).await;
            releasing.commit().await.expect("it commits");
        };
        let (opened, ()) = tokio::join!(open(&journal, &waiter), blocked);
        assert!(matches!(opened, Opened::Claimed(_)), "{opened:?}");
    });
}

#[test]
fn a_release_wakes_the_newest_job_alone() {
    world(async |world| {
        let (journal, customer_id) = (journal(&world, "one"), Uuid::new_v4());
        let Opened::Claimed(claim) = open(&journal, &job_asked(customer_id, 100)).await else {
            panic!("the customer is free")
        };
        let jobs: Vec<Job> = (1..=20).map(|ago| job_asked(customer_id, ago)).collect();
        let opened = join_all(jobs.iter().map(|job| open(&journal, job))).await;
        assert!(opened.iter().all(|opened| matches!(opened, Opened::Waiting)), "{opened:?}");
        sqlx::query("update submission set due_at = now() + interval '1 min' where state = 'waiting'")
            .execute(&world.pool)
            .await
            .expect("all sleep");
        settle(&journal, &claim, None).await.expect("it is ours");
        let woken = "select count(*) from submission where state = 'waiting' and due_at <= now()";
        assert_eq!(world.count(woken).await, 1);
        let next = next(&journal, 32).await;
        assert!(matches!(&next[..], [NextAttempt::Claimed(claimed)] if claimed.claim.job.id == jobs[0].id));
    });
}

#[test]
fn reads_are_claimed_while_jobs_hold_every_connection() {
    world(async |world| {
        world
            .tamper(
                "with unsettled as (
                    insert into submission (
                        job_id, customer_id, state, attempts, requested_at, received_at, due_at, sealed_payload
                    )
                    select gen_random_uuid(), gen_random_uuid(), 'unknown', 1, now(), now(), now(), 'sealed'
                    from generate_series(1, 40)
                    returning job_id
                )
                insert into attempt (job_id, number, worker, signed_at, ended_at, verdict)
                select job_id, 1, 'one', now(), now(), 'unknown' from unsettled",
            )
            .await;
        let options: PgConnectOptions = world.database_url().parse().expect("a URL");
        let pool = PgPoolOptions::new().max_connections(1).connect_with(options).await.expect("a pool");
        let journal = journal_with(pool.clone(), "one");
        let _held = pool.acquire().await.expect("the only one");
        for claimed in [32, 8, 0] {
            let claims = journal.claim_reads(32).await.expect("the database answers");
            assert_eq!(claims.len(), claimed, "many at once");
        }
    });
}

/// More than one statement rescues, and a worker that asks seldom.
#[test]
fn however_many_leases_have_expired_one_round_rescues_them() {
    world(async |world| {
        world.declare_topology().await;
        world
            .tamper(
                "with left_behind as (
                    insert into submission (
                        job_id, customer_id, state, attempts, requested_at, received_at, claimed_by,
                        claimed_until, sealed_payload
                    )
                    select
                        gen_random_uuid(), gen_random_uuid(), 'submitting', 1, now(), now(), 'killed',
                        now() - interval '1 s', 'sealed'
                    from generate_series(1, 1500)
                    returning job_id
                )
                insert into attempt (job_id, number, worker, signed_at)
                select job_id, 1, 'killed', now() from left_behind",
            )
            .await;
        let settings = [
            ("SCHEDULER_POLL", "17s"),
            ("CLAIM_LEASE", "25s"),
            ("READ_TIMEOUT", "1s"),
            ("READ_BACK_WINDOW", "60s"),
            ("READ_BACK_DEADLINE", "10m"),
        ];
        let _worker = world.start_worker_with(&settings);
        let left = "select count(*) from submission where state = 'submitting'";
        world.wait_for("the rescue", async || (world.count(left).await == 0).then_some(())).await;
    });
}

const FAILING: &str = "create function fail() returns trigger language plpgsql as $$
    begin raise exception 'no right to do this' using errcode = 'insufficient_privilege'; end $$";

#[test]
fn a_chore_that_fails_is_told_once_and_holds_up_no_other() {
    world(async |world| {
        world.declare_topology().await;
        world.tamper(FAILING).await;
        world
            .tamper(
                "create trigger fail before update on submission for each row
                when (new.state = 'exhausted') execute function fail()",
            )
            .await;
        let expired = "insert into submission (
                job_id, customer_id, state, waiting_for, due_at, expires_at, requested_at, received_at,
                sealed_payload
            )
            values (
                gen_random_uuid(), gen_random_uuid(), 'waiting', 'retry', now() + interval '1 hour',
                now() - interval '1 s', now(), now(), 'sealed'
            )";
        world.tamper(expired).await;
        let expired = "with left_behind as (
                insert into submission (
                    job_id, customer_id, state, attempts, requested_at, received_at, claimed_by, claimed_until,
                    sealed_payload
                )
                values (
                    gen_random_uuid(), gen_random_uuid(), 'submitting', 1, now(), now(), 'killed',
                    now() + interval '1 s', 'sealed'
                )
                returning job_id
            )
            insert into attempt (job_id, number, worker, signed_at)
            select job_id, 1, 'killed', now() from left_behind";
        let worker = world.start_worker_with(&[("READ_BACK_AFTER", "10ms")]);
        world.wait_for_log(&worker, "a maintenance task fails").await;
        world.tamper(expired).await;
        world.wait_for_log(&worker, "customer read back").await;
        let job_id = world.publish_job().await;
        world.wait_for_state(job_id, &["accepted"]).await;
        assert_eq!(worker.log().matches("a maintenance task fails").count(), 1);
        assert!(worker.log().contains("no right to do this"), "it says why");

        world.tamper("drop trigger fail on submission").await;
        world.wait_for_log(&worker, "a maintenance task works again").await;
        let ended = "select count(*) from submission where state = 'exhausted'";
        world.wait_for("the chore", async || (world.count(ended).await == 1).then_some(())).await;
    });
}

#[test]
fn a_retention_longer_than_postgres_can_count_removes_nothing() {
    world(async |world| {
        let journal = journal(&world, "one");
        for years in [1, 10_000, 300_000] {
            let retention = Duration::from_secs(years * 365 * 24 * 3_600);
            assert_eq!(journal.sweep_payloads(retention, 10).await.expect("it is done"), 0);
            assert_eq!(journal.sweep_dead_letters(retention, 10).await.expect("it is done"), 0);
        }
    });
}

/// Its first attempt is there already, which no race of replicas can make so.
#[test]
fn a_job_that_the_database_refuses_is_told_of_and_blocks_no_other() {
    world(async |world| {
        world.declare_topology().await;
        let journal = journal(&world, "one");
        let jobs = [job_asked(Uuid::new_v4(), 0), job_asked(Uuid::new_v4(), 0), job_asked(Uuid::new_v4(), 0)];
        for job in &jobs {
            let admission = Admission::Wait(WaitingFor::Retry);
            journal.open(job, OffsetDateTime::now_utc(), admission).await.expect("it is written down");
        }
        world.is_tampered_with();
        sqlx::query(
            "insert into attempt (job_id, number, worker, signed_at, ended_at, verdict, detail)
            values ($1, 1, 'nobody', now(), now(), 'not_sent', 'shutdown')",
        )
        .bind(jobs[0].id)
        .execute(&world.pool)
        .await
        .expect("it is there");
        let worker = world.start_worker();
        for job in &jobs[1..] {
            world.wait_for_state(job.id, &["accepted"]).await;
        }
        world.wait_for_log(&worker, "the database refuses this job's next attempt").await;
        let log = worker.log();
        let told: Vec<&str> = log.lines().filter(|line| line.contains("the database refuses")).collect();
        assert_eq!(told.len(), 1);
        assert!(told[0].contains(&jobs[0].id.to_string()) && told[0].contains("attempt_pkey"), "{told:?}");
        assert_eq!(world.submission(jobs[0].id).await.expect("it is known").state, "waiting");
    });
}

/// How many entries of the table's indexes were read, those included that no snapshot of ours sees.
async fn entries_read(world: &World) -> i64 {
    let _all_told = rows_read(world, "submission").await;
    world
        .count("select sum(idx_tup_read)::bigint from pg_stat_user_indexes where relname = 'submission'")
        .await
}

/// What a replica asks again and again.
async fn poll(journal: &Journal) {
    journal.next_due().await.expect("the database answers");
    journal.rescue(100).await.expect("the database answers");
    journal.expire(100).await.expect("the database answers");
    journal.postpone_busy(100).await.expect("the database answers");
    journal.claim_reads(32).await.expect("the database answers");
    journal.next_attempts(Moment::now(), None, 32).await.expect("the database answers");
    journal.sweep_payloads(Duration::from_secs(60), 100).await.expect("the database answers");
    journal.count_in_motion().await.expect("the database answers");
}

#[test]
fn polls_do_not_read_what_passed_while_a_snapshot_was_held() {
    world(async |world| {
        world.is_tampered_with();
        // As an export or pg_dump holds it.
        let held = begin_blind(&world).await;
        let made = "insert into submission (
                job_id, customer_id, state, attempts, requested_at, received_at, sealed_payload,
                claimed_by, claimed_until, waiting_for, due_at, expires_at, ended_at
            )
            select
                gen_random_uuid(), gen_random_uuid(), state, 1, ago, ago, 'sealed',
                case when state = 'submitting' then 'one' end, case when state = 'submitting' then ago end,
                case when state = 'waiting' then 'retry' end,
                case when state in ('waiting', 'unknown') then ago end, case when state = 'waiting' then ago end,
                case when state = 'needs_review' then ago end
            from generate_series(1, $1) nth
            cross join (values ('submitting'), ('waiting'), ('unknown'), ('needs_review')) states (state)
            cross join (select now() - interval '30 min' as ago) then_";
        sqlx::query(made).bind(PASSED).execute(&world.pool).await.expect("they come");
        let passed = "update submission
            set state = 'rejected', ended_at = now(), waiting_for = null, due_at = null, sealed_payload = null";
        sqlx::query(passed).execute(&world.pool).await.expect("they end");

        let journal = worker_journal(&world).await;
        poll(&journal).await;
        drop(journal);
        let whole = entries_read(&world).await;
        assert!(whole >= 5 * PASSED, "the control: a poll from the beginning reads them, all {whole}");

        let journal = worker_journal(&world).await;
        for _ in 0..20 {
            poll(&journal).await;
        }
        drop(journal);
        let more = entries_read(&world).await - whole;
        assert!(more < whole + whole / 2, "{more} entries were read in 20 polls after {whole} in the first");
        held.rollback().await.expect("it ends");
    });
}
