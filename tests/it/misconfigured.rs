//! A provider that refuses us, and not a job, is our fault: it opens the breaker, names
//! the setting, and costs no job anything but time.

use serde_json::{Value, json};
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::harness::{World, world};

const NARROW: [(&str, &str); 2] = [("CONCURRENCY", "2"), ("PREFETCH", "4")];

/// Runs a backlog into a refusal, checks that it waits, mends it, and checks that all of
/// it is accepted without a restart.
async fn waits_until_mended(
    world: &World,
    replicas: usize,
    [setting, detail]: [&str; 2],
    mend: impl AsyncFnOnce(),
) {
    let jobs = world.publish_jobs(40).await;
    let workers: Vec<_> = (0..replicas).map(|_| world.start_worker_with(&NARROW)).collect();
    for worker in &workers {
        world.wait_for_log(worker, "intake paused until a person has fixed this").await;
        assert!(worker.log().contains(setting), "{}", worker.log());
    }
    world.wait_for_consumers(0).await;
    assert!(world.count_ready("kyc.document-updates").await >= 40 - 14 * replicas as u32, "a backlog stays");
    world
        .wait_for("everything begun to wait", async || {
            let begun =
                "select count(*) from submission where state <> 'waiting' or waiting_for <> 'provider'";
            (world.count(begun).await == 0).then_some(())
        })
        .await;
    let others = "select count(*) from attempt where verdict <> 'misconfigured' and detail is distinct from 'held_back'";
    assert_eq!(world.count(others).await, 0);
    assert_eq!(world.count("select sum(retries)::bigint from submission").await, 0, "no attempt counts");
    let details: Vec<String> =
        sqlx::query_scalar("select distinct detail from attempt where detail is distinct from 'held_back'")
            .fetch_all(&world.pool)
            .await
            .expect("the database answers");
    assert_eq!(details, [detail]);
    assert_eq!(world.oracle("updates").await.len(), 0);

    mend().await;
    world.wait_for_all_accepted(&jobs).await;
    check_every_patch_has_its_attempt(world, &jobs).await;
}

async fn check_every_patch_has_its_attempt(world: &World, jobs: &[Uuid]) {
    for job_id in jobs {
        let attempts = world.attempts(*job_id).await;
        let sent = attempts.iter().filter(|attempt| attempt.verdict.as_deref() != Some("not_sent"));
        assert_eq!(world.count_patches(*job_id).await, sent.count());
    }
}

/// Answers every request so, whatever it asks for.
async fn answer_everything(world: &World, status: u16, headers: Value, body: Value) {
    let answer = json!({ "kind": "respond", "status": status, "headers": headers, "body": body });
    world.add_rule(json!({ "fault": { "apply": "never", "answer": answer } })).await;
}

#[test]
fn a_refused_api_key_waits_for_the_right_one() {
    world(async |world| {
        world.declare_topology().await;
        world.set_provider(json!({ "api_key": "another-key" })).await;
        waits_until_mended(&world, 1, ["DOLLARPE_API_KEY", "api_key_refused"], async || {
            world.set_provider(json!({ "api_key": "sandbox-key" })).await;
        })
        .await;
    });
}

#[test]
fn a_refused_signature_waits_for_the_right_secret() {
    world(async |world| {
        world.declare_topology().await;
        world.set_provider(json!({ "api_secret": "another-secret" })).await;
        waits_until_mended(&world, 1, ["DOLLARPE_API_SECRET", "signature_refused"], async || {
            world.set_provider(json!({ "api_secret": "sandbox-secret" })).await;
        })
        .await;
    });
}

#[test]
fn replicas_that_are_all_refused_do_not_blame_the_jobs() {
    world(async |world| {
        world.declare_topology().await;
        world.set_provider(json!({ "api_key": "another-key" })).await;
        waits_until_mended(&world, 2, ["DOLLARPE_API_KEY", "api_key_refused"], async || {
            // One that comes later finds them waiting, and is refused in its turn.
            let mut late = world.start_worker_with(&NARROW);
            world.wait_for_log(&late, "intake paused").await;
            assert_eq!(world.count("select count(*) from submission where ended_at is not null").await, 0);
            late.stop().await;
            world.set_provider(json!({ "api_key": "sandbox-key" })).await;
        })
        .await;
    });
}

#[test]
fn a_clock_that_the_provider_does_not_believe_waits_for_a_better_one() {
    world(async |world| {
        world.declare_topology().await;
        world.set_provider(json!({ "clock_ahead_s": 3600 })).await;
        waits_until_mended(&world, 1, ["clock", "signature_refused"], async || {
            world.set_provider(json!({ "clock_ahead_s": 0 })).await;
        })
        .await;
    });
}

#[test]
fn a_403_for_everything_waits() {
    world(async |world| {
        world.declare_topology().await;
        answer_everything(&world, 403, json!({}), json!("<html>Forbidden</html>")).await;
        waits_until_mended(&world, 1, ["DOLLARPE_API_KEY", "forbidden"], async || world.clear_rules().await)
            .await;
    });
}

#[test]
fn a_404_for_everything_waits() {
    world(async |world| {
        world.declare_topology().await;
        answer_everything(&world, 404, json!({}), json!({ "detail": "Not found." })).await;
        waits_until_mended(&world, 1, ["DOLLARPE_BASE_URL", "endpoint_not_found"], async || {
            world.clear_rules().await;
        })
        .await;
    });
}

#[test]
fn a_proxys_page_for_everything_waits() {
    world(async |world| {
        world.declare_topology().await;
        let page = json!("<html><h1>Proxy authentication required</h1></html>");
        answer_everything(&world, 407, json!({}), page).await;
        waits_until_mended(&world, 1, ["DOLLARPE_PROXY", "proxy_refused"], async || {
            world.clear_rules().await;
        })
        .await;
    });
}

/// What this once did to 300 of 300 jobs was to end them as rejected, payloads erased.
#[test]
fn a_refusal_of_us_in_the_providers_envelope_waits() {
    for (refusal, setting, detail) in [
        ("timestamp_words", "this machine's clock", "timestamp_refused"),
        ("signature_field", "DOLLARPE_API_SECRET", "signature_refused"),
        ("api_key_field", "DOLLARPE_API_KEY", "api_key_refused"),
        ("maintenance", "provider_message", "undocumented_refusal"),
        ("unsupported_media_type", "provider_message", "undocumented_refusal"),
    ] {
        world(async |world| {
            world.declare_topology().await;
            let answer = json!({ "kind": "refuse_us", "with": refusal });
            world.add_rule(json!({ "fault": { "apply": "never", "answer": answer } })).await;
            waits_until_mended(&world, 1, [setting, detail], async || world.clear_rules().await).await;
        });
    }
}

/// Publishes one good job after the other until `job_id` has ended, and returns them.
async fn publish_until_ended(world: &World, job_id: Uuid) -> Vec<Uuid> {
    let mut others = Vec::new();
    loop {
        others.extend(world.publish_jobs(1).await);
        world.wait_for_all_accepted(&others[others.len() - 1..]).await;
        let job = world.submission(job_id).await;
        if job.is_some_and(|job| !["submitting", "waiting", "unknown"].contains(&job.state.as_str())) {
            return others;
        }
    }
}

/// Its attempts are refused, nothing is spent, and a person has what it takes to send it.
async fn check_refused_alone(world: &World, job_id: Uuid, detail: &str) {
    let job = world.wait_for_state(job_id, &["needs_review"]).await;
    assert_eq!(job.reason_code.as_deref(), Some("refused_only_for_this_job"));
    assert!(job.has_payload, "a person may want to send it");
    for attempt in world.attempts(job_id).await {
        assert_eq!(
            (attempt.verdict.as_deref(), attempt.detail.as_deref()),
            (Some("misconfigured"), Some(detail))
        );
    }
    assert_eq!(world.count_updates(job_id).await, 0);
}

#[test]
fn what_alone_is_refused_oddly_goes_to_a_person_and_stops_nobody() {
    world(async |world| {
        world.declare_topology().await;
        let worker = world.start_worker();
        let respond = |status: u16, headers: Value, body: Value| json!({ "kind": "respond", "status": status, "headers": headers, "body": body });
        let envelope = json!({ "status": false, "message": "KYC already in use", "errors": {} });
        let errors = json!({ "document_type": ["Another update is in progress, try again later"] });
        let in_progress = json!({ "status": false, "message": "Conflict", "errors": errors, "data": null });
        let long = json!({ "status": false, "message": "x".repeat(70_000), "errors": {} });
        for (answer, detail) in [
            (json!({ "kind": "refuse_us", "with": "maintenance" }), "undocumented_refusal"),
            (json!({ "kind": "refuse_us", "with": "not_acceptable" }), "undocumented_refusal"),
            (respond(409, json!({}), in_progress), "undocumented_refusal"),
            (respond(401, json!({}), json!("<html>Log in</html>")), "unauthorized"),
            (respond(403, json!({}), json!("<html>Blocked</html>")), "forbidden"),
            (respond(404, json!({}), json!("<html>Nothing here</html>")), "endpoint_not_found"),
            (respond(302, json!({ "location": "/blocked" }), json!("")), "redirected"),
            (respond(406, json!({}), json!("<html>Blocked</html>")), "not_the_provider"),
            (respond(400, json!({ "content-encoding": "gzip" }), envelope), "unreadable_refusal"),
            (respond(400, json!({}), long), "unreadable_refusal"),
        ] {
            let poison = world.publish_broken_job(json!({ "apply": "never", "answer": answer })).await;
            publish_until_ended(&world, poison).await;
            check_refused_alone(&world, poison, detail).await;
            assert!(world.count_patches(poison).await >= 5, "it is not given up sooner");
        }
        assert!(!worker.log().contains("intake paused"), "{}", worker.log());
    });
}

#[test]
fn an_odd_refusal_of_the_only_job_asks_a_person_and_lets_others_through() {
    let page = json!({ "kind": "respond", "status": 403, "body": "<html>Blocked</html>" });
    let maintenance = json!({ "kind": "refuse_us", "with": "maintenance" });
    for (answer, detail) in [(maintenance, "undocumented_refusal"), (page, "forbidden")] {
        world(async |world| {
            world.declare_topology().await;
            let poison = world.publish_broken_job(json!({ "apply": "never", "answer": answer })).await;
            let worker = world.start_worker_with(&[("BREAKER_FAILURES", "3")]);
            world.wait_for_log(&worker, "intake paused until a person has fixed this").await;
            let job = world.submission(poison).await.expect("a row");
            assert!(
                ["submitting", "waiting"].contains(&job.state.as_str()),
                "it may be everybody's: {job:?}"
            );
            let others = publish_until_ended(&world, poison).await;
            check_refused_alone(&world, poison, detail).await;
            world.wait_for_all_accepted(&others).await;
        });
    }
}

/// Words that no list of ours has, under a field of the job, or a customer who is not found for the key of
/// another organization: whether they are about the job or about us, nobody but a person can tell.
#[test]
fn refusals_in_a_row_reject_ten_jobs_and_ask_a_person_about_the_others() {
    world(async |world| {
        world.declare_topology().await;
        let refuse = async |customer_id: Uuid, errors: Value, message: &str| {
            let body = json!({ "status": false, "message": message, "errors": errors, "data": null });
            let answer = json!({ "kind": "respond", "status": 400, "body": body });
            let matched = json!({ "method": "PATCH", "customer_id": customer_id });
            world
                .add_rule(json!({ "match": matched, "fault": { "apply": "never", "answer": answer } }))
                .await;
        };
        // They name what the job has, and so differ from job to job.
        let mut jobs = Vec::new();
        for number in 0..14 {
            let (customer_id, job_id) = (Uuid::new_v4(), Uuid::new_v4());
            match number % 2 {
                0 => {
                    let echo = format!("{} is no part of your tier", "x".repeat(number + 1));
                    refuse(customer_id, json!({ "document_type": [echo] }), "Bad Request").await;
                }
                _ => refuse(customer_id, json!({}), "Customer not found or access denied").await,
            }
            world.publish_job_named(customer_id, job_id).await;
            jobs.push(job_id);
        }
        let worker = world.start_worker();
        let mut doubted = Vec::new();
        for job_id in &jobs {
            let job = world.wait_for_state(*job_id, &["rejected", "needs_review"]).await;
            if job.state == "needs_review" {
                assert_eq!(job.reason_code.as_deref(), Some("refused_like_others"));
                assert!(job.has_payload, "a person may want to send it");
                doubted.push(*job_id);
            }
        }
        assert_eq!(doubted.len(), 4, "as many as came after ten");
        assert!(!worker.log().contains("intake paused"), "one publisher's faults stop nobody");

        world.clear_rules().await;
        let replay =
            ["replay", "--reason", "refused_like_others", "--yes", "--by", "ana", "--note", "mended"];
        world.say(&replay).await;
        world.wait_for_all_accepted(&doubted).await;
        world.check_promises(&jobs, &["accepted", "rejected"]).await;
        world.say(&["audit"]).await;
    });
}

/// The front links of the updates that the provider was asked for, but for those of nobody.
async fn links_sent(world: &World) -> Vec<String> {
    let patches = world.oracle("patches").await;
    let of_jobs = patches.iter().filter(|patch| patch["customer_id"] != json!(Uuid::nil()));
    of_jobs.map(|patch| patch["link"].as_str().expect("a link").to_owned()).collect()
}

/// It was due first, and was the probe again and again.
#[test]
fn the_probe_is_another_job_than_the_one_whose_page_opened_the_breaker() {
    world(async |world| {
        world.declare_topology().await;
        let answer = json!({ "kind": "respond", "status": 403, "body": "<html>Blocked</html>" });
        let poison = world.publish_broken_job(json!({ "apply": "never", "answer": answer })).await;
        let others = world.publish_jobs(3).await;
        let settings = [("BREAKER_FAILURES", "1"), ("CONCURRENCY", "1"), ("PREFETCH", "1")];
        let _worker = world.start_worker_with(&settings);
        world.wait_for_accepted(1).await;
        let links = links_sent(&world).await;
        assert!(links[0].contains(&poison.to_string()), "{links:?}");
        assert!(others.iter().any(|other| links[1].contains(&other.to_string())), "{links:?}");
        let more = publish_until_ended(&world, poison).await;
        check_refused_alone(&world, poison, "forbidden").await;
        world.wait_for_all_accepted(&[others, more].concat()).await;
    });
}

/// What each of them was answered before says nothing of what meets everybody now.
#[test]
fn one_job_that_every_replica_is_refused_for_is_not_blamed() {
    world(async |world| {
        world.declare_topology().await;
        let workers: Vec<_> = (0..6).map(|_| world.start_worker_with(&[("BREAKER_FAILURES", "1")])).collect();
        let before = world.publish_jobs(30).await;
        world.wait_for_all_accepted(&before).await;
        let page = json!("<html><h1>Proxy authentication required</h1></html>");
        answer_everything(&world, 407, json!({}), page).await;
        let job_id = world.publish_job().await;
        for worker in &workers {
            world.wait_for_log(worker, "intake paused until a person has fixed this").await;
        }
        world.wait_for_state(job_id, &["waiting"]).await;
        let refused = world.attempts(job_id).await;
        assert!(refused.len() >= workers.len(), "{refused:?}");
        world.clear_rules().await;
        world.wait_for_all_accepted(&[job_id]).await;
    });
}

#[test]
fn a_redirect_is_not_followed() {
    world(async |world| {
        world.declare_topology().await;
        let elsewhere = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let location = format!("http://{}/stolen", elsewhere.local_addr().expect("an address"));
        answer_everything(&world, 307, json!({ "location": location }), json!("")).await;
        waits_until_mended(&world, 1, ["DOLLARPE_BASE_URL", "redirected"], async || {
            world.clear_rules().await;
        })
        .await;
        let followed = futures_util::FutureExt::now_or_never(elsewhere.accept());
        assert!(followed.is_none(), "somebody came to the redirect's target");
    });
}
