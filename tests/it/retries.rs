//! What could not be sent is tried again, by any replica, until its attempts or its time
//! run out.

use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use uuid::Uuid;

use crate::harness::{WorkerProcess, World, job_body, world};
use crate::relay::Relay;

/// Starts a worker whose provider refuses connections, whatever its breaker thinks of that.
async fn start_unreachable(world: &World, settings: &[(&str, &str)]) -> (Relay, WorkerProcess) {
    world.declare_topology().await;
    let (relay, base_url) = world.relay_to_provider().await;
    relay.refuse().await;
    let unreachable = [("DOLLARPE_BASE_URL", base_url.as_str()), ("BREAKER_FAILURES", "1000")];
    let worker = world.start_worker_with(&[&unreachable, settings].concat());
    (relay, worker)
}

#[test]
fn a_job_that_cannot_be_sent_is_exhausted_after_its_last_attempt() {
    world(async |world| {
        let settings = [("RETRY_MAX_ATTEMPTS", "3")];
        let (relay, _worker) = start_unreachable(&world, &settings).await;
        let job_id = world.publish_job().await;
        let job = world.wait_for_state(job_id, &["exhausted"]).await;
        assert_eq!(job.reason_code.as_deref(), Some("attempts"));
        assert!(job.has_payload, "a person may send it again");
        let attempts = world.attempts(job_id).await;
        assert_eq!(attempts.iter().map(|attempt| attempt.number).collect::<Vec<_>>(), [1, 2, 3]);
        for attempt in attempts {
            let (verdict, detail) = (attempt.verdict.as_deref(), attempt.detail.as_deref());
            assert_eq!((verdict, detail), (Some("not_sent"), Some("connect_failed")));
        }
        relay.accept().await;
        let after = world.publish_job().await;
        world.wait_for_state(after, &["accepted"]).await;
        assert_eq!(world.count_patches(job_id).await, 0);
    });
}

#[test]
fn delays_between_attempts_grow() {
    world(async |world| {
        let settings = [("RETRY_MAX_ATTEMPTS", "5"), ("RETRY_DELAY_MIN", "100ms")];
        let (_relay, _worker) = start_unreachable(&world, &settings).await;
        let job_id = world.publish_job().await;
        world.wait_for_state(job_id, &["exhausted"]).await;
        let gaps: Vec<f64> = sqlx::query_scalar(
            "select extract(epoch from begun_at - lag(ended_at) over (order by number))::float8
            from attempt where job_id = $1 order by number offset 1",
        )
        .bind(job_id)
        .fetch_all(&world.pool)
        .await
        .expect("the database answers");
        // Half of 100, 200, 400 and 800 ms: the least that jitter leaves of each.
        for (gap, least) in gaps.iter().zip([0.05, 0.1, 0.2, 0.4]) {
            assert!(*gap >= least, "{gap} s, expected at least {least}: {gaps:?}");
        }
        assert_eq!(gaps.len(), 4);
    });
}

#[test]
fn a_job_that_is_past_its_expiry_is_never_sent() {
    world(async |world| {
        world.declare_topology().await;
        let text = |seconds| {
            (OffsetDateTime::now_utc() + time::Duration::seconds(seconds)).format(&Rfc3339).expect("a time")
        };
        let publish = async |expires_in: i64| {
            let job_id = Uuid::new_v4();
            let mut body = job_body(Uuid::new_v4(), job_id);
            body["requested_at"] = json!(text(-3600));
            body["expires_at"] = json!(text(expires_in));
            world.publish(Some(job_id), body.to_string().as_bytes()).await;
            job_id
        };
        let past = publish(-60).await;
        let waiting = publish(3).await;
        let alive = publish(3600).await;
        let no = json!({ "kind": "respond", "status": 429, "headers": { "retry-after": "4" } });
        world.break_job(waiting, json!({ "apply": "never", "answer": no })).await;
        let _worker = world.start_worker();
        world.wait_for_state(alive, &["accepted"]).await;
        for (job_id, patches) in [(past, 0), (waiting, 1)] {
            let job = world.wait_for_state(job_id, &["exhausted"]).await;
            assert_eq!(job.reason_code.as_deref(), Some("expired"));
            assert_eq!(world.count_patches(job_id).await, patches);
            assert_eq!(world.count_updates(job_id).await, 0);
            assert_eq!(usize::try_from(job.attempts), Ok(patches));
        }
    });
}

/// The provider fetches a document some time after it has accepted its update: a link that ends before
/// that costs the customer one of three.
#[test]
fn a_job_whose_links_end_too_soon_is_never_sent() {
    world(async |world| {
        world.declare_topology().await;
        let now = OffsetDateTime::now_utc();
        let basic = format_description!("[year][month][day]T[hour][minute][second]Z");
        let signed = now.format(&basic).expect("a time");
        let publish = async |field: &str, query: String| {
            let job_id = Uuid::new_v4();
            let mut body = job_body(Uuid::new_v4(), job_id);
            let link = body[field].as_str().expect("a link").split('?').next().expect("a path").to_owned();
            body[field] = json!(format!("{link}?{query}"));
            world.publish(Some(job_id), body.to_string().as_bytes()).await;
            job_id
        };
        let aws = |lasts: i64| format!("X-Amz-Date={signed}&X-Amz-Expires={lasts}&X-Amz-Signature=f");
        let epoch =
            |lasts: i64| format!("Expires={}&Signature=f&Key-Pair-Id=K", now.unix_timestamp() + lasts);
        let (front, back) = ("document_front_image_url", "document_back_image_url");
        // A quarter of an hour is taken off.
        let at_once = publish(front, aws(600)).await;
        let dead = publish(back, epoch(-60)).await;
        let waiting = publish(back, aws(900 + 3)).await;
        let alive =
            [publish(front, aws(86_400)).await, publish(back, "Expires=soon&Signature=f".into()).await];
        let no = json!({ "kind": "respond", "status": 429, "headers": { "retry-after": "4" } });
        world.break_job(waiting, json!({ "apply": "never", "answer": no })).await;
        // Its outcome is unknown until it has expired; then it was not applied, and is not sent again.
        let unknown = publish(front, aws(900 + 5)).await;
        let crash = json!({ "kind": "respond", "status": 500, "body": {} });
        world.break_job(unknown, json!({ "apply": "never", "answer": crash })).await;
        let _worker = world.start_worker();
        world.wait_for_all_accepted(&alive).await;
        for (job_id, field, patches) in
            [(at_once, front, 0), (dead, back, 0), (waiting, back, 1), (unknown, front, 1)]
        {
            let job = world.wait_for_state(job_id, &["exhausted"]).await;
            assert_eq!(job.reason_code.as_deref(), Some("expired"));
            assert!(
                job.reason.is_some_and(|reason| reason.contains(&format!("/{field}"))),
                "it names the link"
            );
            assert_eq!(world.count_patches(job_id).await, patches);
            assert_eq!(world.count_updates(job_id).await, 0);
        }
        let said = world.say(&["show", &dead.to_string()]).await;
        assert!(said.to_string().contains("/document_back_image_url"), "{said}");
        let report = world.say(&["report"]).await;
        assert!(
            report.contains(
                "updates not spent, since a link was to end too soon or a check refused the job: 4"
            ),
            "{report}"
        );
        let replay = ["replay", &dead.to_string(), "--yes", "--by", "ana", "--note", "again"];
        let refused = world.refuse(&replay).await;
        assert!(refused.contains("ends too soon"), "{refused}");
    });
}

#[test]
fn jobs_of_one_customer_are_never_at_the_provider_at_once() {
    world(async |world| {
        world.declare_topology().await;
        world.set_provider(json!({ "latency_ms": 100, "update_limit": 10 })).await;
        let customers = [Uuid::new_v4(), Uuid::new_v4()];
        let mut jobs = Vec::new();
        for _ in 0..5 {
            for customer_id in customers {
                jobs.push(world.publish_job_for(customer_id).await.0);
            }
        }
        let _workers = [(); 3].map(|()| world.start_worker());
        for job_id in &jobs {
            let job = world.wait_for_state(*job_id, &["accepted", "superseded", "duplicate"]).await;
            let patches = usize::from(job.state == "accepted");
            assert_eq!(world.count_patches(*job_id).await, patches);
        }
        assert_eq!(world.oracle_summary().await["in_flight_max"], 1);
    });
}

#[test]
fn a_parked_job_is_taken_up_by_another_replica() {
    world(async |world| {
        let settings = [("RETRY_DELAY_MIN", "2s"), ("WORKER_NAME", "first")];
        let (_relay, mut dying) = start_unreachable(&world, &settings).await;
        let job_id = world.publish_job().await;
        let waiting = world.wait_for_state(job_id, &["waiting"]).await;
        assert_eq!(waiting.waiting_for.as_deref(), Some("retry"));
        assert_eq!((waiting.attempts, waiting.retries), (1, 1));
        dying.kill();
        let _other = world.start_worker_with(&[("WORKER_NAME", "second")]);
        world.wait_for_state(job_id, &["accepted"]).await;
        let by: Vec<String> = sqlx::query_scalar("select worker from attempt order by number")
            .fetch_all(&world.pool)
            .await
            .expect("the database answers");
        assert_eq!(by, ["first", "second"]);
        assert_eq!(world.count_patches(job_id).await, 1);
    });
}
