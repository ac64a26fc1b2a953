//! What people are told of the work as a whole.

use std::net::TcpListener;

use serde_json::json;
use sqlx::PgPool;
use uuid::Uuid;

use crate::harness::{World, world};

/// Puts rows into the past, as a day's work would have left them.
async fn make_history(world: &World) {
    world
        .tamper(
            "insert into submission (job_id, customer_id, state, reason_code, received_at, requested_at, ended_at)
            select
                gen_random_uuid(), gen_random_uuid(), case when nth <= 3 then 'accepted' else 'rejected' end,
                case when nth > 3 then 'refused' end, now() - interval '2 hours', now() - interval '2 hours',
                now() - interval '2 hours' + nth * interval '1 second'
            from generate_series(1, 4) nth",
        )
        .await;
    world
        .tamper(
            "insert into submission (job_id, customer_id, state, reason_code, received_at, requested_at, ended_at)
            values (
                '00000000-0000-4000-8000-00000000000a', gen_random_uuid(), 'needs_review', 'fate_unknown',
                now() - interval '3 days', now() - interval '3 days', now() - interval '3 days'
            )",
        )
        .await;
}

#[test]
fn a_report_counts_what_came_and_went_since_and_all_that_is_open() {
    world(async |world| {
        make_history(&world).await;
        let (report, _) = world.ask(&["report", "--since", "3h"]).await;
        assert_eq!((&report["flow"]["received"], &report["flow"]["ended"]), (&json!(4), &json!(4)));
        assert_eq!((&report["flow"]["p50_ms"], &report["flow"]["max_ms"]), (&json!(2500.0), &json!(4000.0)));
        assert_eq!(report["oldest_needs_review"]["job_id"], "00000000-0000-4000-8000-00000000000a");
        let counts = json!([
            { "state": "accepted", "reason_code": null, "count": 3 },
            { "state": "needs_review", "reason_code": "fate_unknown", "count": 1 },
            { "state": "rejected", "reason_code": "refused", "count": 1 },
        ]);
        assert_eq!(report["states"], counts);
        assert_eq!(report["open_by_age"][0]["older"], 1);
        let (lately, _) = world.ask(&["report", "--since", "1h"]).await;
        assert_eq!(lately["flow"]["ended"], 0);
        assert_eq!(lately["states"].as_array().map(Vec::len), Some(1), "a person is still waited for");

        let text = world.say(&["report"]).await;
        for part in ["no worker is running", "oldest for a person: 0000", "50 % 2.50 s", "< 10 min"] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
        let wide: Vec<&str> = text.lines().filter(|line| line.chars().count() > 100).collect();
        assert!(wide.is_empty(), "{wide:?}");
    });
}

/// Installations as flags name them.
fn flags<const N: usize>(urls: [&str; N]) -> Vec<&str> {
    urls.into_iter().flat_map(|url| ["--database-url", url]).collect()
}

#[test]
fn a_report_of_several_installations_has_each_and_what_they_come_to() {
    world(async |world| {
        make_history(&world).await;
        let (one, two) = (world.database_url().to_owned(), world.make_database().await);
        let other = PgPool::connect(&two).await.expect("it answers");
        let older = "insert into submission (job_id, customer_id, state, reason_code, received_at, requested_at, ended_at)
            select
                '00000000-0000-4000-8000-00000000000b', gen_random_uuid(), 'needs_review', 'fate_unknown', at, at, at
            from (values (now() - interval '5 days')) as made (at)
            union all
            select gen_random_uuid(), gen_random_uuid(), 'accepted', null, at, at, at + interval '9 seconds'
            from (values (now() - interval '1 hour')) as made (at)";
        sqlx::query(older).execute(&other).await.expect("the database does it");
        other.close().await;
        let pause = ["pause", "--by", "ana", "--note", "upstream 7.2"];
        assert!(world.run(&pause, &[("DATABASE_URL", &two)]).await.status.success());

        let (alone, _) = world.ask(&["report", "--since", "3h"]).await;
        let several = [vec!["report", "--since", "3h"], flags([&one, &two])].concat();
        let (told, is_done) = world.ask(&several).await;
        assert!(is_done, "{told}");
        let [first, second] = told["installations"].as_array().expect("a list").as_slice() else {
            panic!("two: {told}");
        };
        for part in ["flow", "states", "open_by_age", "oldest_needs_review", "customers_at_limit"] {
            assert_eq!(first["report"][part], alone[part], "as alone");
        }
        assert_eq!((&first["error"], &first["report"]["jobs_queued"]), (&json!(null), &json!(null)));
        assert_eq!(second["report"]["flow"]["received"], 1);
        assert!(!told.to_string().contains('@'), "neither user nor password");

        let total = &told["total"];
        assert_eq!((&total["flow"]["received"], &total["flow"]["ended"]), (&json!(5), &json!(5)));
        assert_eq!((&total["flow"]["p50_ms"], &total["flow"]["max_ms"]), (&json!(null), &json!(9000.0)));
        let counts = json!([
            { "state": "accepted", "reason_code": null, "count": 4 },
            { "state": "needs_review", "reason_code": "fate_unknown", "count": 2 },
            { "state": "rejected", "reason_code": "refused", "count": 1 },
        ]);
        assert_eq!(total["states"], counts);
        assert_eq!(total["open_by_age"][0]["older"], 2);
        let oldest = &total["oldest_needs_review"];
        assert_eq!(oldest["job_id"], "00000000-0000-4000-8000-00000000000b");
        assert_eq!(oldest["database"], second["database"]);
        assert_eq!((&total["paused"], &total["missing"]), (&json!([second["database"]]), &json!([])));

        let files = [("one", &one), ("two", &two)].map(|(name, url)| world.write_file(name, url.as_bytes()));
        let [one_file, two_file] = &files;
        let by_file = ["report", "--database-url-file", one_file, "--database-url-file", two_file];
        let mut command = world.command();
        command.args(by_file).env_remove("DATABASE_URL");
        let text = command.output().expect("it runs");
        assert!(text.status.success(), "{}", String::from_utf8_lossy(&text.stderr));
        let text = String::from_utf8_lossy(&text.stdout).into_owned();
        let database = second["database"].as_str().expect("a name");
        let oldest = "oldest for a person: 00000000-0000-4000-8000-00000000000b, received";
        for part in [&format!("== {database} =="), "== total of 2 installations ==", "0, PAUSED", oldest] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
        assert!(!text.contains("queue"), "the broker was not asked: {text}");
    });
}

/// One cannot be reached, one takes connections and says nothing.
#[test]
fn an_installation_that_does_not_answer_hides_no_other() {
    world(async |world| {
        make_history(&world).await;
        let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
        let silent = format!("{}/silent", silent.local_addr().expect("its address"));
        let silent_url = format!("postgres://kyc:s3cr3t@{silent}");
        let urls = ["postgres://kyc:s3cr3t@127.0.0.1:1/away", world.database_url(), &silent_url];
        let several = [vec!["report", "--since", "3h"], flags(urls)].concat();
        let (told, is_done) = world.ask(&several).await;
        assert!(!is_done, "what is missing is a failure");
        let [away, ours, mute] = told["installations"].as_array().expect("a list").as_slice() else {
            panic!("three: {told}");
        };
        let error = away["error"].as_str().expect("an error");
        assert!(error.contains("cannot use Postgres at 127.0.0.1:1; is it running"), "{error}");
        assert!(mute["error"].is_string() && mute["report"].is_null(), "{mute}");
        assert_eq!((&ours["report"]["flow"]["ended"], &ours["error"]), (&json!(4), &json!(null)));
        assert_eq!(told["total"]["missing"], json!(["127.0.0.1:1/away", silent]));
        assert_eq!(told["total"]["flow"]["ended"], 4);
        assert!(!told.to_string().contains("s3cr3t"), "{told}");

        let text = world.refuse(&several).await;
        for part in [
            "MISSING: DATABASE_URL: cannot use Postgres",
            "3 installations, 2 of them MISSING",
            "50 % 2.50 s",
        ] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
        assert!(!text.contains("s3cr3t"), "{text}");
        let none =
            world.refuse(&[vec!["report"], flags([urls[0], "postgres://127.0.0.1:1/gone"])].concat()).await;
        assert!(none.contains("2 installations, 2 of them MISSING"), "{none}");
    });
}

#[test]
fn what_would_count_twice_or_not_at_all_is_refused() {
    world(async |world| {
        let (one, other) = (world.database_url(), "postgres://kyc:s3cr3t@127.0.0.1:1/other");
        for (command, urls, told) in [
            (
                "report",
                vec![one, other, one],
                "twice, and its jobs would count twice; name each database once",
            ),
            ("report", vec![one, "postgres://kyc:s3cr3t@h"], "DATABASE_URL (2 of 2): names no database"),
            (
                "list",
                vec![one, other],
                "DATABASE_URL: is given several times, and this command works with one database",
            ),
        ] {
            let flags = urls.into_iter().flat_map(|url| ["--database-url", url]);
            let refused = world.run(&[command].into_iter().chain(flags).collect::<Vec<_>>(), &[]).await;
            let complaint = String::from_utf8_lossy(&refused.stderr);
            assert_eq!(refused.status.code(), Some(2), "{complaint}");
            assert!(complaint.contains(told) && !complaint.contains("s3cr3t"), "no {told:?} in {complaint}");
        }
    });
}

#[test]
fn a_report_counts_what_the_broker_dead_lettered_by_itself() {
    world(async |world| {
        world.declare_topology().await;
        world.publish_dead_letter(b"poison").await;
        let (report, _) = world.ask(&["report"]).await;
        assert_eq!((&report["dead_letters_queued"], &report["dead_lettered"]), (&json!(1), &json!([])));
        let away = [("AMQP_URL", "amqp://guest:guest@127.0.0.1:1/none")];
        let away = world.run(&["report"], &away).await;
        assert!(away.status.success(), "a report needs no broker");
        assert!(String::from_utf8_lossy(&away.stdout).contains("unknown, the broker could not be asked"));
    });
}

#[test]
fn a_list_has_the_jobs_that_match() {
    world(async |world| {
        make_history(&world).await;
        let count = async |arguments: &[&str]| {
            let (listed, _) = world.ask(&[&["list"], arguments].concat()).await;
            listed.as_array().expect("a list").len()
        };
        assert_eq!(count(&[]).await, 5);
        assert_eq!(count(&["--state", "accepted"]).await, 3);
        assert_eq!(count(&["--reason", "refused"]).await, 1);
        assert_eq!(count(&["--since", "1h"]).await, 0);
        assert_eq!(count(&["--since", "7d", "--state", "needs_review"]).await, 1);
        assert_eq!(count(&["--limit", "2"]).await, 2);
        assert_eq!(count(&["--customer", &Uuid::new_v4().to_string()]).await, 0);
        let text = world.say(&["list", "--state", "needs_review"]).await;
        assert!(text.contains("fate_unknown") && text.contains("3 d"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert_eq!(world.run(&["list", "--state", "lost"], &[]).await.status.code(), Some(2));
        assert!(world.say(&["list", "--reason", "none"]).await.contains("no job matches"));
    });
}

#[test]
fn errors_by_the_hour_are_looked_up_by_the_time_that_is_asked_for() {
    world(async |world| {
        world
            .tamper(
                "insert into attempt (job_id, number, worker, begun_at, signed_at, ended_at, verdict, detail)
                select gen_random_uuid(), 1, 'one', at, at, now(), verdict, detail
                from (values
                    (now(), 'accepted', null),
                    (now() - interval '2 hours', 'unknown', 'server_error'),
                    (now() - interval '2 hours', 'unknown', 'server_error'),
                    (now() - interval '2 hours', 'throttled', null),
                    (now() - interval '3 days', 'unknown', 'timed_out')
                ) as made (at, verdict, detail)",
            )
            .await;
        let lately = "select count(*) || ' ' || sum(attempts) || ' ' || sum(jobs) from provider_errors_hourly
            where hour > now() - interval '1 day'";
        let counted: String = sqlx::query_scalar(lately).fetch_one(&world.pool).await.expect("the view");
        assert_eq!(counted, "2 3 3");
        assert_eq!(world.count("select sum(attempts)::bigint from provider_errors_hourly").await, 4);

        let mut tx = world.pool.begin().await.expect("a transaction");
        // A table of five rows is read whole where that may be.
        sqlx::query("set local enable_seqscan = off").execute(&mut *tx).await.expect("a setting");
        let plan = format!("explain {lately}");
        let plan: Vec<String> = sqlx::query_scalar(&plan).fetch_all(&mut *tx).await.expect("a plan");
        let plan = plan.join("\n");
        assert!(plan.contains("Index Cond: ((begun_at >= hours.hour)"), "{plan}");
    });
}
