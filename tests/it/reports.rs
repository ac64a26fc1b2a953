//! What people are told of the work as a whole.

use serde_json::json;
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
