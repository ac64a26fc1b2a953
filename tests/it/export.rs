//! Auditors get every job of a span, masked, however many there are.

use std::time::Duration;

use kyc_worker::clock::Moment;
use kyc_worker::domain::outcome::Outcome;
use kyc_worker::domain::verdict::{Acceptance, Verdict};
use kyc_worker::journal::{Admission, AttemptResult, Opened};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::harness::world;
use crate::one_customer::{job_asked, journal};

#[test]
fn an_export_has_every_job_of_its_span_and_no_personal_data() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker();
        let jobs = world.publish_jobs(3).await;
        world.wait_for_all_accepted(&jobs).await;
        world.publish(Some(Uuid::new_v4()), b"{}").await;
        world.wait_for_ended(4).await;

        let csv = world.say(&["export", "--since", "2026-01-01", "--format", "csv"]).await;
        let lines: Vec<&str> = csv.lines().collect();
        assert!(lines[0].starts_with("job_id,customer_id,document_type,document_number_last4,state,"));
        assert_eq!(lines.len(), 5, "a header and four jobs: {csv}");
        let jsonl = world.say(&["export", "--since", "2026-01-01"]).await;
        let rows: Vec<Value> = jsonl.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(rows.len(), 4);
        let names: Vec<&str> = lines[0].split(',').collect();
        for name in &names {
            assert!(rows[0].get(*name).is_some(), "{name} in {}", rows[0]);
        }
        assert_eq!(rows[0].as_object().expect("an object").len(), names.len());
        for job_id in &jobs {
            let id = job_id.to_string();
            let row = rows.iter().find(|row| row["job_id"] == id.as_str()).expect("it is there");
            assert_eq!(
                (&row["state"], &row["spent"], &row["document_number_last4"]),
                (&"accepted".into(), &1.into(), &"3456".into())
            );
            assert!(csv.contains(&id));
        }
        for text in [&csv, &jsonl] {
            assert!(
                !text.contains("Mumbai") && !text.contains("123456123456") && !text.contains("Signature")
            );
        }

        let empty = world.say(&["export", "--since", "2026-01-01", "--until", "2026-01-02"]).await;
        assert_eq!(empty, "");
        assert_eq!(world.run(&["export", "--since", "yesterday"], &[]).await.status.code(), Some(2));
    });
}

#[test]
fn a_job_is_in_one_span_alone_whichever_clock_is_ahead() {
    world(async |world| {
        let journal = journal(&world, "one");
        let now = OffsetDateTime::now_utc();
        let mut jobs = Vec::new();
        // By the database's clock both end now: one came an hour from now, by its worker's clock.
        for received_at in [now - time::Duration::HOUR, now + time::Duration::HOUR] {
            let job = job_asked(Uuid::new_v4(), 0);
            let opened = journal.open(&job, received_at, Admission::Claim(Moment::now())).await;
            let Ok(Opened::Claimed(claim)) = opened else { panic!("{opened:?}") };
            let accepted = Acceptance::default();
            let result = AttemptResult {
                verdict: Verdict::Accepted(accepted.clone()),
                http_status: Some(200),
                provider_message: None,
                error: None,
                duration: Duration::ZERO,
                checked: None,
            };
            journal.settle(&claim, &result, &Outcome::Accepted(accepted)).await.expect("it is ours");
            jobs.push(job.id.to_string());
        }
        let text = |minutes: i64| (now + time::Duration::minutes(minutes)).format(&Rfc3339).expect("a time");
        let exported = async |since: &str, until: &str| {
            let lines = world.say(&["export", "--since", since, "--until", until]).await;
            let rows = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
            rows.map(|row| row["job_id"].as_str().expect("an id").to_owned()).collect::<Vec<_>>()
        };
        let [begin, first, second, end] = [text(-120), text(0), text(30), text(120)];
        assert_eq!(exported(&begin, &first).await, jobs[..1]);
        assert_eq!(exported(&first, &second).await, [""; 0]);
        assert_eq!(exported(&second, &end).await, jobs[1..]);
        let (report, _) = world.ask(&["report", "--since", "2h"]).await;
        assert_eq!(
            (&report["flow"]["received"], &report["flow"]["ended"]),
            (&2.into(), &2.into()),
            "{report}"
        );
        let (listed, _) = world.ask(&["list", "--since", "2h"]).await;
        assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");
    });
}

#[test]
fn an_export_of_many_jobs_needs_no_more_memory_than_one_of_few() {
    world(async |world| {
        world
            .tamper(
                "insert into submission (job_id, customer_id, state, reason, received_at, requested_at, ended_at)
                select
                    gen_random_uuid(), gen_random_uuid(), 'rejected', repeat('a reason ', 50),
                    now() - nth * interval '1 ms', now(), now()
                from generate_series(1, 200000) nth",
            )
            .await;
        // All rows are three times what the process may have.
        let said = world.run_in_64_mib("export --since 2026-01-01 | wc -l").await;
        assert_eq!(said.trim(), "200000");
    });
}
