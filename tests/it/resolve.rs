//! A person settles what no read of the customer could, and that is kept with who and why.

use uuid::Uuid;

use crate::harness::{World, world};

async fn resolve(world: &World, job_id: Uuid, finding: &str) -> String {
    let id = job_id.to_string();
    world.say(&["resolve", &id, "--as", finding, "--by", "ana", "--note", "seen in the dashboard"]).await
}

#[test]
fn a_person_settles_a_job_and_only_then_may_it_be_sent_again() {
    world(async |world| {
        world.declare_topology().await;
        let settings = [("BREAKER_FAILURES", "1000"), ("READ_BACK_DEADLINE", "10s")];
        let _worker = world.start_worker_with(&settings);
        let mut jobs = Vec::new();
        for _ in 0..3 {
            jobs.push(world.publish_unsettled().await.0);
        }
        for job_id in &jobs {
            let job = world.wait_for_state(*job_id, &["needs_review"]).await;
            assert_eq!(job.reason_code.as_deref(), Some("fate_unknown"));
        }
        let [applied, given_up, not_applied] = jobs[..] else { panic!("three jobs") };
        let (said, _) = world.ask(&["replay", &not_applied.to_string()]).await;
        assert_eq!(said["jobs"][0]["refusal"], "may have been applied; `kyc-worker resolve` it first");

        let said = resolve(&world, applied, "accepted").await;
        assert_eq!(said, format!("job {applied} was needs_review (fate_unknown), and is accepted now\n"));
        let job = world.wait_for_state(applied, &["accepted"]).await;
        assert_eq!((job.evidence.as_deref(), job.has_payload), (Some("person"), false));
        world
            .wait_for("its verification to be followed", async || {
                let reads = world.observations(applied).await;
                reads.iter().any(|read| read.purpose == "verification").then_some(())
            })
            .await;

        resolve(&world, given_up, "rejected").await;
        let job = world.wait_for_state(given_up, &["rejected"]).await;
        assert_eq!((job.reason_code.as_deref(), job.has_payload), (Some("by_person"), false));

        resolve(&world, not_applied, "not-applied").await;
        let job = world.wait_for_state(not_applied, &["exhausted"]).await;
        assert_eq!((job.reason_code.as_deref(), job.has_payload), (Some("not_applied"), true));
        assert_eq!(world.count_patches(not_applied).await, 1, "a resolution sends nothing");
        let id = not_applied.to_string();
        world.say(&["replay", &id, "--yes", "--by", "ben", "--note", "ana looked"]).await;
        world.wait_for_state(not_applied, &["accepted"]).await;
        assert_eq!(world.count_patches(not_applied).await, 2);

        let story = world.say(&["show", &id]).await;
        for part in [
            "resolve by ana (was needs_review (fate_unknown), resolved as not-applied): seen in the dashboard",
            "replay by ben (was exhausted (not_applied)): ana looked",
        ] {
            assert!(story.contains(part), "{story}");
        }
        for settled in [applied, given_up, not_applied] {
            let again = ["resolve", &settled.to_string(), "--as", "rejected", "--by", "a", "--note", "b"];
            assert!(world.refuse(&again).await.contains("only what is in needs_review can be resolved"));
        }
        let fates: Vec<(Uuid, i32, String)> =
            sqlx::query_as("select job_id, attempt, fate from reconciliation order by job_id, attempt")
                .fetch_all(&world.pool)
                .await
                .expect("the view");
        let mut expected = vec![
            (applied, 1, "applied"),
            (given_up, 1, "unknown"),
            (not_applied, 1, "not_applied"),
            (not_applied, 2, "applied"),
        ];
        expected.sort();
        let expected: Vec<_> =
            expected.into_iter().map(|(id, nth, fate)| (id, nth, fate.to_owned())).collect();
        assert_eq!(fates, expected);
    });
}

#[test]
fn nothing_is_accepted_by_hand_that_was_never_sent() {
    world(async |world| {
        let unknown =
            ["resolve", &Uuid::new_v4().to_string(), "--as", "accepted", "--by", "a", "--note", "b"];
        assert!(world.refuse(&unknown).await.contains("no job"));
        world
            .tamper(
                "insert into submission (
                    job_id, customer_id, state, reason_code, received_at, requested_at, ended_at
                )
                values (
                    '00000000-0000-4000-8000-000000000001', gen_random_uuid(), 'needs_review',
                    'newer_fate_unknown', now(), now(), now()
                )",
            )
            .await;
        let id = "00000000-0000-4000-8000-000000000001";
        let resolve = |finding| ["resolve", id, "--as", finding, "--by", "a", "--note", "b"];
        let said = world.refuse(&resolve("accepted")).await;
        assert!(said.contains("no attempt of job") && said.contains("budget set"), "{said}");
        assert!(world.say(&resolve("rejected")).await.contains("is rejected now"));
    });
}

#[test]
fn all_that_wait_for_one_reason_are_settled_by_one_command() {
    world(async |world| {
        world
            .tamper(
                "insert into submission (
                    job_id, customer_id, state, reason_code, received_at, requested_at, ended_at
                )
                select
                    gen_random_uuid(), gen_random_uuid(), 'needs_review',
                    case when n > 40 then 'last_update' else 'newer_fate_unknown' end, now(), now(), now()
                from generate_series(1, 42) n",
            )
            .await;
        let all =
            ["resolve", "--reason", "newer_fate_unknown", "--as", "rejected", "--by", "a", "--note", "b"];
        let said = world.say(&all).await;
        assert!(said.ends_with("would settle 40. Nothing was done: add --yes\n"), "{said}");
        assert_eq!(world.count("select count(*) from submission where state = 'needs_review'").await, 42);
        let last_update = [
            "resolve",
            "--reason",
            "last_update",
            "--as",
            "not-applied",
            "--by",
            "a",
            "--note",
            "b",
            "--yes",
        ];
        let said = world.refuse(&last_update).await;
        assert!(said.contains("customer's last update"), "`replay` would refuse it after that: {said}");
        let said = world.say(&[&all[..], &["--yes"]].concat()).await;
        assert_eq!(said.matches("is rejected now").count(), 40, "{said}");
        assert_eq!(
            world.count("select count(*) from submission where reason_code = 'last_update'").await,
            2,
            "others stay"
        );
        assert_eq!(world.count("select count(*) from intervention where action = 'resolve'").await, 40);
    });
}
