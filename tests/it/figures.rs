//! What replicas count for all, and what a console reads of it and of the tables: true to the books, and
//! without a count of its own.

use kyc_worker::config::{DatabaseSettings, Secret};
use kyc_worker::desk::dead_letters::dead_letter_faults;
use kyc_worker::desk::find::{Found, find};
use kyc_worker::desk::review::worklist;
use kyc_worker::desk::verifications::verifications;
use kyc_worker::desk::{budget, errors, figures, interventions, story};
use kyc_worker::domain::job::{Job, Rules};
use kyc_worker::domain::message::Message;
use kyc_worker::journal::Journal;
use kyc_worker::journal::replicas::worker_settings;
use serde_json::{Map, Value, json};
use sqlx::PgPool;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::harness::{World, job_body, world};
use crate::one_customer::journal;

/// Rows that the minutes have and the books do not, and the reverse.
const DIFFERENCES: &str = "
    with ended as (
        select date_trunc('minute', ended_at) as minute, state, count(*)::integer as jobs
        from submission where ended_at is not null group by 1, 2
    ), failed as (
        select
            date_trunc('minute', begun_at) as minute, verdict, coalesce(detail, '') as detail,
            coalesce(http_status, 0) as http_status, count(*)::integer as attempts
        from attempt where verdict <> 'accepted' group by 1, 2, 3, 4
    )
    select
        (select count(*) from (select * from ended except select * from fleet_ended) missing)
            + (select count(*) from (select * from fleet_ended except select * from ended) more)
            + (select count(*) from (select * from failed except select * from fleet_error) missing)
            + (select count(*) from (select * from fleet_error except select * from failed) more)";

async fn execute(world: &World, statement: &str) {
    sqlx::query(statement).execute(&world.pool).await.expect("the database does it");
}

/// Has a replica read, however lately another did.
async fn read(world: &World, journal: &Journal) {
    execute(world, "update fleet_reading set begun_at = 'epoch', took_seconds = 0").await;
    assert!(journal.refresh_figures().await.expect("the database answers"), "it is this replica's turn");
}

/// Reads until all that is due is counted.
async fn catch_up(world: &World, journal: &Journal) {
    let lacking = "select count(*) from fleet_reading where minutes_until < now() - interval '30 seconds'";
    for _ in 1..50 {
        read(world, journal).await;
        if world.count(lacking).await == 0 {
            return;
        }
    }
    panic!("fifty readings do not catch up");
}

/// Ended jobs, and failed attempts, as long ago as is said.
async fn make_past(world: &World, ago: &[&str]) {
    world.is_tampered_with();
    for ago in ago {
        sqlx::query(
            "with made as (
                insert into submission (job_id, customer_id, state, requested_at, received_at, ended_at)
                select gen_random_uuid(), gen_random_uuid(), state, at, at, at
                from (select now() - $1::text::interval as at) past
                cross join unnest(array['accepted', 'accepted', 'exhausted']) state
                returning job_id, ended_at
            )
            insert into attempt (job_id, number, worker, begun_at, signed_at, ended_at, verdict, detail, http_status)
            select job_id, number, 'one', ended_at, ended_at, ended_at, verdict, detail, http_status
            from made
            cross join (values
                (1, 'unknown', 'server_error', 500), (2, 'throttled', null, 429), (3, 'not_sent', 'held_back', null),
                (4, 'accepted', null, 200)
            ) tried (number, verdict, detail, http_status)",
        )
        .bind(ago)
        .execute(&world.pool)
        .await
        .expect("the database does it");
    }
}

#[test]
fn minutes_agree_with_the_books_after_a_run() {
    world(async |world| {
        world.declare_topology().await;
        let mut worker = world.start_worker();
        world.publish_jobs(5).await;
        let refusal = r#"{"status":false,"message":"KYC already in use"}"#;
        for (status, body) in [(409, refusal), (429, "slow down"), (500, "oops")] {
            let answer = json!({ "kind": "respond", "status": status, "body": body });
            let job_id = Uuid::new_v4();
            world.break_job_once(job_id, json!({ "apply": "never", "answer": answer })).await;
            world.publish_job_named(Uuid::new_v4(), job_id).await;
        }
        world.wait_for_ended(8).await;
        worker.stop().await;
        catch_up(&world, &journal(&world, "one")).await;
        assert_eq!(world.count(DIFFERENCES).await, 0);
        assert_eq!(world.count("select sum(jobs)::bigint from fleet_ended").await, 8);
        assert!(world.count("select count(distinct verdict) from fleet_error").await >= 3);
        let by_cause = errors::errors(&world.pool).await.expect("the database answers");
        let counted: i64 = by_cause.hours.iter().map(|hour| hour.attempts).sum();
        assert_eq!(counted, world.count("select count(*) from attempt where verdict <> 'accepted'").await);
        assert!(by_cause.hours.iter().any(|hour| hour.http_status == Some(500)), "{by_cause:?}");
    });
}

#[test]
fn what_is_committed_late_is_counted_and_what_changes_is_counted_anew() {
    world(async |world| {
        let journal = journal(&world, "one");
        catch_up(&world, &journal).await;
        make_past(&world, &["0 s", "20 s"]).await;
        let mut late = world.pool.begin().await.expect("a transaction");
        sqlx::query(
            "insert into submission (job_id, customer_id, state, requested_at, received_at, ended_at)
            values (gen_random_uuid(), gen_random_uuid(), 'rejected', now(), now(), now())",
        )
        .execute(&mut *late)
        .await
        .expect("the database does it");
        read(&world, &journal).await;
        assert_eq!(world.count(DIFFERENCES).await, 0);
        late.commit().await.expect("it commits");
        assert_eq!(world.count(DIFFERENCES).await, 1, "it is not counted yet");
        read(&world, &journal).await;
        assert_eq!(world.count(DIFFERENCES).await, 0);

        execute(&world, "update submission set state = 'superseded' where state = 'rejected'").await;
        read(&world, &journal).await;
        assert_eq!(world.count(DIFFERENCES).await, 0, "what is no more so has no row");
    });
}

#[test]
fn a_gap_is_caught_up_and_a_day_at_most() {
    world(async |world| {
        let journal = journal(&world, "one");
        make_past(&world, &["23 hours 50 minutes", "5 hours", "61 minutes", "3 minutes"]).await;
        catch_up(&world, &journal).await;
        assert_eq!(world.count(DIFFERENCES).await, 0);
        let hours = figures::home(&world.pool).await.expect("the database answers").hours;
        assert_eq!(hours.iter().map(|hour| hour.jobs).sum::<i64>(), 12, "{hours:?}");

        // No replica worked for three hours.
        make_past(&world, &["90 minutes"]).await;
        execute(&world, "update fleet_reading set minutes_until = now() - interval '3 hours'").await;
        catch_up(&world, &journal).await;
        assert_eq!(world.count(DIFFERENCES).await, 0);

        // A clock that was ahead, and was put right.
        execute(&world, "update fleet_reading set minutes_until = now() + interval '3 hours'").await;
        make_past(&world, &["1 s"]).await;
        read(&world, &journal).await;
        assert_eq!(world.count(DIFFERENCES).await, 0);
    });
}

#[test]
fn minutes_are_kept_for_25_hours() {
    world(async |world| {
        for (ago, state) in [("26 hours", "accepted"), ("24 hours 30 minutes", "rejected")] {
            let minute = format!("date_trunc('minute', now() - interval '{ago}')");
            execute(&world, &format!("insert into fleet_ended values ({minute}, '{state}', 1)")).await;
            execute(
                &world,
                &format!(
                    "insert into fleet_error (minute, verdict, attempts) values ({minute}, 'unknown', 1)"
                ),
            )
            .await;
        }
        read(&world, &journal(&world, "one")).await;
        let kept: Vec<String> =
            sqlx::query_scalar("select state from fleet_ended").fetch_all(&world.pool).await.expect("rows");
        assert_eq!(kept, ["rejected"]);
        assert_eq!(world.count("select count(*) from fleet_error").await, 1);
    });
}

#[test]
fn one_replica_reads_at_a_time_and_a_failure_leaves_what_stands() {
    world(async |world| {
        let (one, two) = (journal(&world, "one"), journal(&world, "two"));
        let (first, second) = tokio::join!(one.refresh_figures(), two.refresh_figures());
        let turns = [first.expect("the database answers"), second.expect("the database answers")];
        assert!(turns[0] != turns[1], "{turns:?}");
        assert!(!two.refresh_figures().await.expect("the database answers"), "it was read just now");

        catch_up(&world, &one).await;
        make_past(&world, &["0 s"]).await;
        read(&world, &one).await;
        let stands = "select sum(jobs)::bigint from fleet_ended";
        assert_eq!(world.count(stands).await, 3);
        make_past(&world, &["0 s"]).await;
        execute(&world, "alter table fleet_error add constraint none check (attempts < 0) not valid").await;
        execute(
            &world,
            "update fleet_reading set begun_at = 'epoch', read_at = 'epoch', minutes_until = now() - interval '1 minute'",
        )
        .await;
        let until = "select extract(epoch from minutes_until)::bigint from fleet_reading";
        let before = world.count(until).await;
        one.refresh_figures().await.expect_err("the minutes cannot be written");
        assert_eq!((world.count(stands).await, world.count(until).await), (3, before));
        let figures = "select count(*) from fleet_reading where read_at > 'epoch'";
        assert_eq!(world.count(figures).await, 1, "the figures were read all the same");
        execute(&world, "alter table fleet_error drop constraint none").await;
        read(&world, &one).await;
        assert_eq!(world.count(DIFFERENCES).await, 0);
    });
}

#[test]
fn the_home_page_has_the_last_errors_of_the_day_and_what_a_failover_lost() {
    world(async |world| {
        let journal = journal(&world, "one");
        make_past(&world, &["20 hours", "7 hours", "6 hours", "2 minutes"]).await;
        catch_up(&world, &journal).await;
        execute(
            &world,
            "insert into lost_commit (worker, job_id, customer_id, lost, is_restored)
            select 'one', gen_random_uuid(), gen_random_uuid(), 'job', is_restored
            from unnest(array[true, false]) is_restored",
        )
        .await;
        let home = figures::home(&world.pool).await.expect("the database answers");
        assert!(home.figures.iter().any(|figure| figure.figure == "replicas_alive"), "{home:?}");
        assert!(home.read_at > OffsetDateTime::now_utc() - Duration::MINUTE);
        // Three jobs each time, with two such errors each.
        let times: Vec<OffsetDateTime> = home.last_errors.iter().map(|attempt| attempt.begun_at).collect();
        assert_eq!(times.len(), 10);
        assert!(times.is_sorted_by(|newer, older| newer >= older), "{times:?}");
        assert!(home.last_errors.iter().all(|attempt| attempt.verdict.as_deref() != Some("throttled")));
        assert!(
            times[9] < OffsetDateTime::now_utc() - Duration::hours(5),
            "those of hours ago are found, too"
        );
        assert_eq!(home.missing.iter().filter(|job| !job.is_restored).count(), 1);
        assert!(home.pause.is_none());

        interventions::pause(
            &world.pool,
            interventions::Attribution { by: "ana", note: "a failover", proposal: None },
        )
        .await
        .expect("the database answers");
        assert!(figures::home(&world.pool).await.expect("the database answers").pause.is_some());
        interventions::resume(&world.pool, Some("ana"), None, None).await.expect("the database answers");
        let home = figures::home(&world.pool).await.expect("the database answers");
        assert!(home.missing.is_empty() && home.pause.is_none(), "a person has settled it");
    });
}

/// What `check` shows of the settings, by their variables.
async fn shown_by_check(world: &World) -> Map<String, Value> {
    let (areas, _) = world.ask(&["check"]).await;
    let settings = areas[0]["settings"].as_array().expect("settings").clone();
    let shown = settings.into_iter().filter_map(|mut setting| {
        let value = setting.get_mut("value")?.take();
        Some((setting["variable"].as_str().expect("a name").to_owned(), value))
    });
    shown.collect()
}

#[test]
fn a_replicas_row_has_the_settings_that_check_shows() {
    world(async |world| {
        world.declare_topology().await;
        let worker = world.start_worker();
        let told = async || {
            let rows = worker_settings(&world.pool).await.expect("the database answers");
            rows.into_iter().next()?.settings
        };
        let settings = world.wait_for("the settings", told).await;
        let shown = shown_by_check(&world).await;
        assert_eq!(settings, Value::Object(shown));
        assert_eq!(settings["CONCURRENCY"], "16");
        for secret in ["DATABASE_URL", "AMQP_URL", "DOLLARPE_API_SECRET", "PAYLOAD_KEY", "FINGERPRINT_KEY"] {
            assert!(settings.get(secret).is_none(), "{secret}");
        }
        // A row that is swept while its replica hangs comes again.
        execute(&world, "delete from worker").await;
        assert_eq!(world.wait_for("the settings again", told).await, settings);
        drop(worker);
    });
}

fn id(nth: u128) -> Uuid {
    Uuid::from_u128(nth)
}

#[test]
fn a_text_is_found_as_an_id_of_any_kind() {
    world(async |world| {
        world.is_tampered_with();
        execute(
            &world,
            "insert into submission (
                job_id, customer_id, state, requested_at, received_at, ended_at, correlation_id
            )
            select
                ('00000000-0000-0000-0000-' || lpad(to_hex(nth), 12, '0'))::uuid,
                '00000000-0000-0000-0000-0000000c0001', 'accepted', now(), now() + nth * interval '1 s',
                now() + interval '1 hour',
                case when nth = 1 then '00000000-0000-0000-0000-0000000d0001' else 'order 7' end
            from generate_series(1, 60) nth",
        )
        .await;
        execute(&world, "insert into customer (customer_id) values ('00000000-0000-0000-0000-0000000c0002')")
            .await;
        execute(
            &world,
            "insert into archived_customer (customer_id, accepted, unknown_outcome, files)
            values ('00000000-0000-0000-0000-0000000c0003', 1, 0, '{a}')",
        )
        .await;
        execute(
            &world,
            "insert into archived_job (job_id, state, holds_id, ended_at, deliveries, file)
            values ('00000000-0000-0000-0000-0000000a0001', 'accepted', true, now(), 1, '2026-07-0001')",
        )
        .await;
        let found = async |text: &str| find(&world.pool, text).await.expect("the database answers");
        assert!(matches!(found(&id(5).to_string()).await, Found::Job(job) if job == id(5)));
        assert!(matches!(found(&format!(" {} ", id(5))).await, Found::Job(job) if job == id(5)));
        for customer in [0xc0001, 0xc0002, 0xc0003] {
            let text = id(customer).to_string();
            assert!(matches!(found(&text).await, Found::Customer(known) if known == id(customer)), "{text}");
        }
        let archived = found(&id(0xa0001).to_string()).await;
        assert!(
            matches!(&archived, Found::Archived { job_id, file } if *job_id == id(0xa0001) && file == "2026-07-0001"),
            "{archived:?}"
        );
        // A correlation_id may be a UUID, too.
        let Found::Correlated(jobs) = found(&id(0xd0001).to_string()).await else {
            panic!("a correlation_id")
        };
        assert_eq!(jobs.iter().map(|job| job.job_id).collect::<Vec<_>>(), [id(1)]);
        let Found::Correlated(jobs) = found("order 7").await else { panic!("a correlation_id") };
        assert_eq!(jobs.len(), 50);
        assert_eq!((jobs[0].job_id, jobs[49].job_id), (id(60), id(11)), "the newest, in order");
        for nothing in ["order", "", &id(0xffff).to_string()] {
            let Found::Correlated(jobs) = found(nothing).await else { panic!("{nothing} is nothing") };
            assert!(jobs.is_empty(), "{nothing}");
        }
    });
}

#[test]
fn dead_letters_are_grouped_by_what_is_wrong_with_them() {
    world(async |world| {
        let journal = journal(&world, "one");
        let record = async |change: &dyn Fn(&mut Value)| {
            let mut body = job_body(Uuid::new_v4(), Uuid::new_v4());
            change(&mut body);
            let message_id = Some(Uuid::new_v4().to_string());
            let message = Message { body: body.to_string().into(), message_id, ..Message::default() };
            let now = OffsetDateTime::now_utc();
            let invalid = Job::parse(&message, now, &Rules::default()).expect_err("no job");
            journal.record_invalid(&message, now, &invalid).await.expect("the database answers");
            invalid.faults.len()
        };
        let no_type = |body: &mut Value| body["document_type"] = json!("LIBRARY_CARD");
        for _ in 0..3 {
            record(&no_type).await;
        }
        let both = |body: &mut Value| {
            body["document_type"] = json!("LIBRARY_CARD");
            body["full_address"] = json!("");
        };
        assert!(record(&both).await >= 2);
        let text = Message { body: "no JSON".into(), ..Message::default() };
        let now = OffsetDateTime::now_utc();
        journal.record_conflict(&text, now, Uuid::new_v4()).await.expect("the database answers");
        journal.record_worker_failed(&text, now).await.expect("the database answers");

        let faults = dead_letter_faults(&world.pool).await.expect("the database answers");
        let counted: Vec<(&str, Option<&str>, i64)> =
            faults.iter().map(|fault| (&*fault.reason_code, fault.place.as_deref(), fault.count)).collect();
        assert_eq!(counted[0], ("invalid", Some("/document_type"), 4), "{counted:?}");
        for expected in [
            ("invalid", Some("/full_address"), 1),
            ("conflict", Some("/job_id"), 1),
            ("worker_failed", None, 1),
        ] {
            assert!(counted.contains(&expected), "{expected:?} in {counted:?}");
        }
        assert_eq!(counted.len(), 4, "{counted:?}");
        let newest = "select max(id) from dead_lettered_delivery where reason_code = 'invalid'";
        assert_eq!(faults[0].example_id, world.count(newest).await);
        let sha: String =
            sqlx::query_scalar("select encode(body_sha256, 'hex') from dead_lettered_delivery where id = $1")
                .bind(faults[0].example_id)
                .fetch_one(&world.pool)
                .await
                .expect("a row");
        assert_eq!(faults[0].example_sha256.as_deref(), Some(&sha[..12]));
        assert!(faults[0].first_at < faults[0].last_at);
        execute(&world, r"update dead_lettered_delivery set body_sha256 = '\x'").await;
        let faults = dead_letter_faults(&world.pool).await.expect("the database answers");
        assert!(faults.iter().all(|fault| fault.example_sha256.is_none()), "a customer was forgotten");
    });
}

#[test]
fn the_worklist_begins_with_what_waits_the_longest() {
    world(async |world| {
        world.is_tampered_with();
        execute(
            &world,
            "with made as (
                insert into submission (
                    job_id, customer_id, document_type, document_number_last4, state, reason_code, reason, attempts,
                    requested_at, received_at, ended_at
                )
                select
                    ('00000000-0000-0000-0000-' || lpad(nth::text, 12, '0'))::uuid, gen_random_uuid(), 'PASSPORT',
                    '4567', state, case when nth % 2 = 0 then 'last_update' else 'fate_unknown' end, 'why', 2,
                    now() - interval '1 day', now() - interval '1 day', now() - nth * interval '1 minute'
                from generate_series(1, 9) nth
                cross join lateral (select case when nth = 9 then 'exhausted' else 'needs_review' end as state) stood
                returning job_id
            )
            insert into attempt (job_id, number, worker, signed_at, ended_at, verdict)
            select job_id, number, 'one', now(), now(), 'unknown' from made cross join generate_series(1, 2) number",
        )
        .await;
        let list = async |reason: Option<&str>, limit: i64| {
            worklist(&world.pool, reason, limit).await.expect("the database answers")
        };
        let jobs = list(None, 100).await;
        let expected: Vec<Uuid> = (1..=8)
            .rev()
            .map(|nth| format!("00000000-0000-0000-0000-{nth:012}").parse().expect("a UUID"))
            .collect();
        assert_eq!(jobs.iter().map(|job| job.job_id).collect::<Vec<_>>(), expected);
        assert_eq!((jobs[0].spent.here, jobs[0].spent.elsewhere, jobs[0].attempts), (2, 0, 2));
        assert_eq!(jobs[0].document_number_last4.as_deref(), Some("4567"));
        assert_eq!(list(None, 3).await.len(), 3);
        let last = list(Some("last_update"), 100).await;
        assert_eq!(last.len(), 4);
        assert!(last.iter().all(|job| job.reason_code.as_deref() == Some("last_update")));
    });
}

#[test]
fn overdue_verifications_come_first_and_then_those_that_are_read_next() {
    world(async |world| {
        world.is_tampered_with();
        execute(
            &world,
            "insert into submission (
                job_id, customer_id, state, evidence, requested_at, received_at, ended_at, verification_due_at,
                verification_overdue_at, verification_status
            )
            select
                ('00000000-0000-0000-0000-' || lpad(nth::text, 12, '0'))::uuid, gen_random_uuid(), 'accepted',
                'response', now() - interval '1 day', now() - interval '1 day', now() - interval '1 day',
                case when nth <> 4 then now() + nth * interval '1 minute' end,
                case when nth % 2 = 0 then now() - nth * interval '1 hour' end, 'PROCESSING'
            from generate_series(1, 230) nth",
        )
        .await;
        let found = verifications(&world.pool).await.expect("the database answers");
        let nth = |job: Uuid| job.to_string()[24..].parse::<i64>().expect("a number");
        let overdue: Vec<i64> = found.overdue.iter().map(|job| nth(job.job_id)).collect();
        let next: Vec<i64> = found.next.iter().map(|job| nth(job.job_id)).collect();
        assert_eq!((overdue.len(), next.len()), (100, 100));
        assert_eq!((overdue[0], overdue[1]), (230, 228), "the longest first");
        assert_eq!(next[..5], [1, 2, 3, 5, 6], "one that is followed no more is not read");
        assert!(found.overdue.iter().all(|job| job.overdue_since.is_some() && job.accepted_at.is_some()));
        assert_eq!(found.next[0].status.as_deref(), Some("PROCESSING"));
    });
}

#[test]
fn interventions_are_told_page_by_page() {
    world(async |world| {
        for nth in 0..7 {
            let note = format!("pause {nth}");
            interventions::pause(
                &world.pool,
                interventions::Attribution { by: "ana", note: &note, proposal: None },
            )
            .await
            .expect("the database answers");
        }
        let (mut before, mut notes) = (None, Vec::new());
        loop {
            let page =
                interventions::interventions(&world.pool, before, 3).await.expect("the database answers");
            before = page.last().map(|intervention| intervention.id);
            notes.extend(page.into_iter().filter_map(|intervention| intervention.note));
            if before.is_none() {
                break;
            }
        }
        let expected: Vec<String> = (0..7).rev().map(|nth| format!("pause {nth}")).collect();
        assert_eq!(notes, expected);
    });
}

#[test]
fn a_long_story_is_cut_and_says_so() {
    world(async |world| {
        world.is_tampered_with();
        execute(
            &world,
            "insert into submission (job_id, customer_id, state, requested_at, received_at, ended_at)
            select
                ('00000000-0000-0000-0000-' || lpad(nth::text, 12, '0'))::uuid,
                '00000000-0000-0000-0000-0000000c0001', 'superseded', now() + nth * interval '1 s', now(), now()
            from generate_series(1, 150) nth",
        )
        .await;
        let customer = async |limit: Option<u32>| {
            let story =
                budget::customer_story(&world.pool, id(0xc0001), limit).await.expect("the database answers");
            story.expect("they are known")
        };
        let story = customer(Some(100)).await;
        assert_eq!((story.jobs.len(), story.is_cut), (100, true));
        assert!(story.jobs[0].submission.job_id.to_string().ends_with("0150"), "the newest first");
        for limit in [None, Some(150)] {
            let story = customer(limit).await;
            assert_eq!((story.jobs.len(), story.is_cut), (150, false), "{limit:?}");
        }

        execute(
            &world,
            "insert into attempt (job_id, number, worker, signed_at, ended_at, verdict)
            select '00000000-0000-0000-0000-000000000001', number, 'one', now(), now(), 'not_sent'
            from generate_series(1, 501) number",
        )
        .await;
        execute(
            &world,
            "insert into observation (job_id, customer_id, at, purpose, status)
            select '00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-0000000c0001', now(),
                'verification', 'PROCESSING'
            from generate_series(1, 500)",
        )
        .await;
        let told =
            story::job_story(&world.pool, id(1)).await.expect("the database answers").expect("it is known");
        assert_eq!((told.attempts.len(), told.observations.len(), told.is_cut), (500, 500, true));
        assert_eq!((told.attempts[0].number, told.attempts[499].number), (2, 501), "the newest, in order");
        assert!(
            world.say(&["show", &id(1).to_string()]).await.contains("older attempts or reads are left out")
        );
        let told =
            story::job_story(&world.pool, id(2)).await.expect("the database answers").expect("it is known");
        assert!(!told.is_cut);
    });
}

/// A pool like a command's.
pub async fn desk_pool(world: &World) -> PgPool {
    let settings = DatabaseSettings {
        database_url: Vec::new(),
        database_url_file: Vec::new(),
        database_connections: 2,
        allow_unsafe_database: true,
    };
    let pool = kyc_worker::journal::connect(&settings, &Secret::from(world.database_url())).await;
    pool.expect("the database is there")
}

/// Asks what each page of a console asks, about rows that are few among many.
pub async fn ask_every_page(world: &World) {
    let pool = desk_pool(world).await;
    figures::home(&pool).await.expect("the database answers");
    errors::errors(&pool).await.expect("the database answers");
    verifications(&pool).await.expect("the database answers");
    worklist(&pool, None, 100).await.expect("the database answers");
    dead_letter_faults(&pool).await.expect("the database answers");
    interventions::interventions(&pool, None, 100).await.expect("the database answers");
    let (job_id, customer_id): (Uuid, Uuid) =
        sqlx::query_as("select job_id, customer_id from submission where correlation_id = 'order 7' limit 1")
            .fetch_one(&pool)
            .await
            .expect("a job");
    for text in
        [job_id.to_string(), customer_id.to_string(), Uuid::new_v4().to_string(), "order 7".to_owned()]
    {
        find(&pool, &text).await.expect("the database answers");
    }
    budget::customer_story(&pool, customer_id, Some(100)).await.expect("the database answers");
    story::job_story(&pool, job_id).await.expect("the database answers");
    pool.close().await;
}
