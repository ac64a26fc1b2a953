//! What many jobs write at once is written with few commits, and none harms another.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use kyc_worker::clock::Moment;
use kyc_worker::domain::job::Job;
use kyc_worker::domain::outcome::{Outcome, Wait};
use kyc_worker::domain::state::WaitingFor;
use kyc_worker::domain::verdict::{Acceptance, Verdict};
use kyc_worker::journal::{Admission, AttemptResult, Claim, Journal, JournalError, NextAttempt, Opened};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::harness::world;
use crate::one_customer::{job_asked, journal, journal_with, take_slot};

const JOBS: usize = 300;

async fn open(journal: &Journal, job: &Job) -> Claim {
    let admission = Admission::Claim(Moment::now());
    let opened = journal.open(job, OffsetDateTime::now_utc(), admission).await.expect("it is written down");
    match opened {
        Opened::Claimed(claim) => claim,
        other => panic!("{other:?}"),
    }
}

pub async fn open_all(journal: &Journal, jobs: &[Job]) -> Vec<Claim> {
    join_all(jobs.iter().map(|job| open(journal, job))).await
}

pub async fn settle(journal: &Journal, claim: &Claim, said: Option<&str>) -> Result<(), JournalError> {
    let acceptance = Acceptance { reference: None, verification_status: Some("PROCESSING".to_owned()) };
    let result = AttemptResult {
        verdict: Verdict::Accepted(acceptance.clone()),
        http_status: Some(200),
        provider_message: said.map(str::to_owned),
        error: None,
        duration: Duration::from_millis(1),
        checked: None,
    };
    journal.settle(claim, &result, &Outcome::Accepted(acceptance)).await
}

pub fn jobs(count: usize) -> Vec<Job> {
    (0..count).map(|_| job_asked(Uuid::new_v4(), 0)).collect()
}

#[test]
fn jobs_that_come_together_share_their_commits() {
    world(async |world| {
        let journal = journal(&world, "one");
        let claims = open_all(&journal, &jobs(JOBS)).await;
        let opened = world.count("select count(distinct xmin::text) from submission").await;
        assert_eq!(world.count("select count(*) from attempt where ended_at is null").await, 300);
        join_all(claims.iter().map(async |claim| settle(&journal, claim, None).await.expect("it is ours")))
            .await;
        let settled = world.count("select count(distinct xmin::text) from attempt").await;
        assert_eq!(world.count("select count(*) from submission where state = 'accepted'").await, 300);
        // The first goes alone, and most of the others wait for it together.
        assert!(opened <= 30 && settled <= 30, "{opened} and {settled} commits for {JOBS} jobs");
    });
}

#[test]
fn a_job_id_or_a_slot_that_is_taken_lets_the_others_share_their_commits() {
    world(async |world| {
        let known = job_asked(Uuid::new_v4(), 0);
        open(&journal(&world, "one"), &known).await;
        let busy = job_asked(known.customer_id, 60);
        // One replica each: whoever has found something taken expects it for a while.
        for (name, taken) in [("two", &known), ("three", &busy)] {
            let journal = journal(&world, name);
            let others = jobs(JOBS);
            let admission = Admission::Claim(Moment::now());
            let opening = journal.open(taken, OffsetDateTime::now_utc(), admission);
            // After them: the first that comes is a batch of its own.
            let (_, opened) = tokio::join!(open_all(&journal, &others), opening);
            match (name, opened.expect("it is written down")) {
                ("two", Opened::Known) | ("three", Opened::Waiting) => {}
                (name, other) => panic!("{name}: {other:?}"),
            }
        }
        let commits = world.count("select count(distinct xmin::text) from submission").await;
        assert_eq!(world.count("select count(*) from submission").await, 602);
        assert!(commits <= 60, "{commits} commits for 602 jobs");
    });
}

#[test]
fn a_job_that_must_wait_for_its_customer_keeps_no_other_waiting() {
    world(async |world| {
        let journal = Arc::new(journal(&world, "one"));
        let customer_id = Uuid::new_v4();
        let sibling = take_slot(&world, &job_asked(customer_id, 60)).await;
        let waiting = tokio::spawn({
            let (journal, job) = (Arc::clone(&journal), job_asked(customer_id, 0));
            async move { open(&journal, &job).await }
        });
        let claims = open_all(&journal, &jobs(JOBS)).await;
        assert_eq!(claims.len(), JOBS);
        assert!(!waiting.is_finished(), "its customer is held");
        sibling.rollback().await.expect("it rolls back");
        waiting.await.expect("it has the slot now");
    });
}

#[test]
fn a_row_that_somebody_holds_keeps_no_other_result_waiting() {
    world(async |world| {
        let journal = Arc::new(journal(&world, "one"));
        let claims = open_all(&journal, &jobs(JOBS)).await;
        let mut holding = world.pool.begin().await.expect("a transaction");
        let hold = sqlx::query("select from submission where job_id = $1 for update").bind(claims[7].job.id);
        hold.fetch_one(&mut *holding).await.expect("the row");
        let held = tokio::spawn({
            let (journal, claim) = (Arc::clone(&journal), claims[7]);
            async move { settle(&journal, &claim, None).await }
        });
        let others = claims.iter().enumerate().filter(|(place, _)| *place != 7);
        join_all(others.map(async |(_, claim)| settle(&journal, claim, None).await.expect("it is ours")))
            .await;
        assert!(!held.is_finished(), "its row is held");
        holding.rollback().await.expect("it rolls back");
        held.await.expect("no panic").expect("it is ours, and its row is free");
        assert_eq!(world.count("select count(*) from submission where state = 'accepted'").await, 300);
    });
}

#[test]
fn what_postgres_refuses_of_one_job_harms_no_other() {
    world(async |world| {
        let journal = journal(&world, "one");
        let claims = open_all(&journal, &jobs(JOBS)).await;
        // Postgres keeps no NUL in a text.
        let results = join_all(
            claims
                .iter()
                .enumerate()
                .map(async |(place, claim)| settle(&journal, claim, (place == 7).then_some("a \0")).await),
        );
        for result in results.await {
            result.expect("it is ours");
        }
        assert_eq!(world.count("select count(*) from submission where state = 'accepted'").await, 300);
    });
}

#[test]
fn of_two_jobs_with_one_id_in_a_batch_one_is_opened() {
    world(async |world| {
        let journal = journal(&world, "one");
        let job = job_asked(Uuid::new_v4(), 0);
        let openings = join_all((0..20).map(async |_| {
            let admission = Admission::Claim(Moment::now());
            journal.open(&job, OffsetDateTime::now_utc(), admission).await.expect("it is written down")
        }));
        let opened = openings.await;
        let claimed = opened.iter().filter(|opened| matches!(opened, Opened::Claimed(_))).count();
        let known = opened.iter().filter(|opened| matches!(opened, Opened::Known)).count();
        assert_eq!((claimed, known), (1, 19));
        assert_eq!(world.count("select deliveries::bigint from submission").await, 20);
    });
}

/// Of a job that was claimed twice by one replica, the older claim's result is late, whatever is written
/// with it.
#[test]
fn a_lost_claim_in_the_batch_of_the_newer_is_told() {
    world(async |world| {
        let journal = journal(&world, "one");
        let lost = open_all(&journal, &jobs(20)).await;
        let throttled = AttemptResult {
            verdict: Verdict::Throttled { retry_after: None },
            http_status: Some(429),
            provider_message: None,
            error: None,
            duration: Duration::from_millis(1),
            checked: None,
        };
        let wait = Wait { waiting_for: WaitingFor::Provider, delay: Duration::ZERO, counts: true };
        for claim in &lost {
            journal.schedule(claim, &throttled, &wait).await.expect("it is ours");
        }
        let next =
            journal.next_attempts(Moment::now(), None, lost.len()).await.expect("the database answers");
        let held = next.into_iter().flatten().map(|next| match next {
            NextAttempt::Claimed(claimed) => claimed.claim,
            _ => panic!("each is due, and free"),
        });
        let both: Vec<Claim> = lost.iter().copied().chain(held).collect();
        assert_eq!(both.len(), 40);
        let settled = join_all(both.iter().map(|claim| settle(&journal, claim, None))).await;
        let (lost, held) = settled.split_at(lost.len());
        assert!(lost.iter().all(|settled| matches!(settled, Err(JournalError::Fenced))), "{lost:?}");
        assert!(held.iter().all(Result::is_ok), "{held:?}");
    });
}

/// Lets every attempt that is closed wait for whoever holds the advisory lock 7: longer than a
/// batch waits for a lock, if it looks for one, and beyond every limit on statements.
const HOLD_UP: &str = "create function hold_up() returns trigger language plpgsql as $$
    begin
        while not pg_try_advisory_xact_lock_shared(7) loop
            begin
                perform pg_sleep(0.1);
            exception when query_canceled then
                null;
            end;
        end loop;
        return null;
    end $$";

#[test]
fn a_batch_that_was_given_up_leaves_no_connection_in_its_transaction() {
    world(async |world| {
        let options: PgConnectOptions = world.database_url().parse().expect("a URL");
        let one_connection = PgPoolOptions::new().max_connections(1);
        let pool = one_connection.connect_with(options.application_name("the journal's"));
        let journal = Arc::new(journal_with(pool.await.expect("a connection"), "one"));
        let claims = open_all(&journal, &jobs(3)).await;
        let wait_for_no_transaction = async || {
            let inside = "select count(*) from pg_stat_activity
                where datname = current_database() and application_name = 'the journal''s'
                    and state like 'idle in transaction%'";
            let none = async || (world.count(inside).await == 0).then_some(());
            world.wait_for("no connection left in a transaction", none).await;
        };
        wait_for_no_transaction().await;

        // An error: somebody holds a row.
        let mut holding = world.pool.begin().await.expect("a transaction");
        let hold = sqlx::query("select from submission where job_id = $1 for update").bind(claims[0].job.id);
        hold.fetch_one(&mut *holding).await.expect("the row");
        let held = tokio::spawn({
            let (journal, claim) = (Arc::clone(&journal), claims[0]);
            async move { settle(&journal, &claim, None).await }
        });
        let waits = "select count(*) from pg_stat_activity
            where datname = current_database() and wait_event_type = 'Lock' and query like '-- lock_submission%'";
        world.wait_for("it, alone", async || (world.count(waits).await == 1).then_some(())).await;
        holding.rollback().await.expect("it rolls back");
        held.await.expect("no panic").expect("it is ours, and its row is free");
        wait_for_no_transaction().await;

        // An end to patience: a server that says nothing.
        for statement in [
            HOLD_UP,
            "create trigger hold_up after update on attempt for each row execute function hold_up()",
        ] {
            sqlx::query(statement).execute(&world.pool).await.expect("the database does it");
        }
        let mut silence = world.pool.begin().await.expect("a transaction");
        sqlx::query("select pg_advisory_xact_lock(7)").execute(&mut *silence).await.expect("the lock");
        let unanswered = tokio::spawn({
            let (journal, claim) = (Arc::clone(&journal), claims[1]);
            async move { settle(&journal, &claim, None).await }
        });
        let first: i32 = world
            .wait_for("a batch that is held up", async || {
                let held_up = "select pid from pg_stat_activity
                    where datname = current_database() and wait_event = 'PgSleep'";
                sqlx::query_scalar(held_up).fetch_optional(&world.pool).await.expect("the database answers")
            })
            .await;
        world
            .wait_for("another connection", async || {
                let others = "select count(*) from pg_stat_activity
                    where datname = current_database() and pid <> $1 and query like '-- lock_submission%'";
                let others: i64 =
                    sqlx::query_scalar(others).bind(first).fetch_one(&world.pool).await.expect("an answer");
                (others == 1).then_some(())
            })
            .await;
        silence.rollback().await.expect("it rolls back");
        unanswered.await.expect("no panic").expect("it was ours, and is written down once");
        wait_for_no_transaction().await;
        settle(&journal, &claims[2], None).await.expect("it is ours");
        assert_eq!(world.count("select sum(entries)::bigint from submission").await, 3);
    });
}
