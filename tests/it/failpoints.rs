//! A worker that is killed, stopped or fails at any step of a job's way loses nothing,
//! spends nothing twice and holds up nobody else.

use std::os::unix::process::ExitStatusExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use kyc_worker::failpoint::{ALL, Point};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::approvals::check_approval_killed_at;
use crate::archive::check_archive_killed_at;
use crate::dead_letters::wait_for_letters;
use crate::harness::{JOBS, Submission, WorkerProcess, World, job_body, world, world_with};
use crate::outcome_events::TOLD;
use crate::verification::{SCALED, world_that_verifies_in};

/// The steps up to the last check before the send, of a job whose row is committed.
const BEFORE_THE_SEND: [Point; 5] =
    [Point::Opened, Point::Received, Point::Claimed, Point::Signed, Point::Gate];

/// Jobs are checked before their attempts.
const CHECKED: (&str, &str) = ("DOCUMENT_TYPES", "provider");

/// What was read before the crash proves something still when it is read again, however busy the machine is.
const LONG_WINDOW: [(&str, &str); 2] = [("READ_BACK_WINDOW", "25s"), ("READ_BACK_DEADLINE", "2m")];

/// How a job ends whose worker crashed.
struct Ending {
    deliveries: i32,
    patches: usize,
    /// How each attempt ended.
    verdicts: &'static [&'static str],
    evidence: &'static str,
}

/// Nothing was committed.
const AS_IF_NEW: Ending = Ending { deliveries: 1, patches: 1, verdicts: &["accepted"], evidence: "response" };

/// An attempt was begun, and nothing sent.
const SENT_BY_THE_NEXT: Ending =
    Ending { deliveries: 2, patches: 1, verdicts: &["unknown", "accepted"], evidence: "response" };

/// The update was applied, and nobody wrote it down.
const READ_BACK: Ending = Ending { deliveries: 2, patches: 1, verdicts: &["unknown"], evidence: "read_back" };

/// All was written down.
const SETTLED: Ending = Ending { deliveries: 2, patches: 1, verdicts: &["accepted"], evidence: "response" };

/// Kills a worker at a point before the broker has its ack, and checks what the next makes of
/// the job. The provider meets the job's first PATCH with `fault`.
fn check_killed_at(point: Point, fault: Option<Value>, ending: &Ending) {
    world(async |world| {
        world.declare_topology().await;
        let (relay, amqp_url) = world.relay_to_broker().await;
        let failpoint = format!("{}=kill", point.name());
        let settings = [("AMQP_URL", amqp_url.as_str()), ("KYC_FAILPOINT", &failpoint), CHECKED];
        let mut dying = world.start_worker_with(&[&settings[..], &LONG_WINDOW].concat());
        world.wait_for_consumers(1).await;
        relay.stall_to_target();
        let job_id = Uuid::new_v4();
        if let Some(fault) = fault {
            world.break_job_once(job_id, fault).await;
        }
        world.publish_job_named(Uuid::new_v4(), job_id).await;
        assert_eq!(dying.exit().await.signal(), Some(9), "killed at {}", point.name());
        relay.cut();

        let _worker = world.start_worker_with(&LONG_WINDOW);
        check_ending(&world, job_id, ending).await;
        assert_eq!(world.count("select count(*) from dead_lettered_delivery").await, 0);
    });
}

async fn check_ending(world: &World, job_id: Uuid, ending: &Ending) -> Submission {
    world
        .wait_for("the last delivery", async || {
            world.submission(job_id).await.filter(|job| job.deliveries >= ending.deliveries)
        })
        .await;
    let job = world.wait_for_state(job_id, &["accepted", "needs_review", "exhausted"]).await;
    world.check_nothing_lost_or_spent_twice(&[job_id]).await;
    world.wait_for_no_delivery().await;
    assert_eq!(job.evidence.as_deref(), Some(ending.evidence), "{job:?}");
    assert_eq!(world.submission(job_id).await.expect("it is known").deliveries, ending.deliveries);
    let attempts = world.attempts(job_id).await;
    let verdicts: Vec<_> = attempts.iter().filter_map(|attempt| attempt.verdict.as_deref()).collect();
    assert_eq!(verdicts, ending.verdicts);
    assert_eq!(world.count_patches(job_id).await, ending.patches);
    job
}

/// A job that names itself, as one among the dead letters must.
fn named_job_body(job_id: Uuid) -> Vec<u8> {
    let mut body = job_body(Uuid::new_v4(), job_id);
    body["job_id"] = json!(job_id);
    body.to_string().into_bytes()
}

/// The provider applies an update, or doesn't, and says nothing of it.
fn without_an_answer(apply: &str) -> Option<Value> {
    Some(json!({ "apply": apply, "answer": { "kind": "reset" } }))
}

/// The first PATCH was received and not applied.
const SENT_AGAIN: Ending =
    Ending { deliveries: 2, patches: 2, verdicts: &["unknown", "accepted"], evidence: "response" };

/// What must be true after a kill at a point. A new point has no end here, and does not compile.
fn check_after_a_kill(point: Point) {
    match point {
        Point::Parsed => check_killed_at(point, None, &AS_IF_NEW),
        Point::Opened | Point::Received | Point::Claimed | Point::Checked | Point::Signed | Point::Gate => {
            check_killed_at(point, None, &SENT_BY_THE_NEXT);
        }
        Point::Answered => check_killed_at(point, None, &READ_BACK),
        Point::Concluded => check_killed_at(point, None, &SETTLED),
        // A read that was not committed proves nothing, and is made again.
        Point::ReadClaimed | Point::ReadAnswered | Point::ReadConcluded => {
            check_killed_at(point, without_an_answer("now"), &READ_BACK);
            check_killed_at(point, without_an_answer("never"), &SENT_AGAIN);
        }
        Point::VerificationClaimed | Point::VerificationAnswered => check_tracker_killed_at(point),
        Point::RequeueConfirmed => check_requeue_killed_at(point),
        Point::EventsTaken | Point::EventsConfirmed | Point::EventsRemoved => {
            check_publisher_killed_at(point)
        }
        Point::ProposalApproved => check_approval_killed_at(point),
        Point::ArchivePaged
        | Point::ArchiveWritten
        | Point::ArchiveNamed
        | Point::ArchiveMarked
        | Point::ArchiveRemoved
        | Point::ArchiveRewritten
        | Point::ArchiveKnown
        | Point::ArchiveListed => check_archive_killed_at(point),
    }
}

/// The points share no world, so a few are tried at once.
#[test]
fn a_kill_at_any_point_loses_nothing_and_spends_nothing_twice() {
    let next = AtomicUsize::new(0);
    thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| {
                while let Some(point) = ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                    println!("killed at {}", point.name());
                    check_after_a_kill(*point);
                }
            });
        }
    });
}

/// A tracker that is killed in a read leaves the verification to the next worker, which reads the
/// customer again.
fn check_tracker_killed_at(point: Point) {
    world_with(world_that_verifies_in(3000), async |world| {
        world.declare_topology().await;
        let failpoint = format!("{}=kill", point.name());
        let mut dying = world.start_worker_with(&[&SCALED[..], &[("KYC_FAILPOINT", &failpoint)]].concat());
        let job_id = world.publish_job().await;
        assert_eq!(dying.exit().await.signal(), Some(9));
        assert!(world.verification(job_id).await.is_tracked);
        let _worker = world.start_worker_with(&SCALED);
        let verification = world.wait_for_end_of_verification(job_id).await;
        assert_eq!(verification.status.as_deref(), Some("VERIFIED"));
        world.check_nothing_lost_or_spent_twice(&[job_id]).await;
    });
}

/// A requeue that is killed leaves its dead letter twice, and never not at all.
fn check_requeue_killed_at(point: Point) {
    world(async |world| {
        world.declare_topology().await;
        let job_id = Uuid::new_v4();
        world.publish_dead_letter(&named_job_body(job_id)).await;
        let requeue = ["dead-letters", "requeue", "--all", "--by", "ana", "--note", "again"];
        let failpoint = format!("{}=kill", point.name());
        let killed = world.run(&requeue, &[("KYC_FAILPOINT", &failpoint)]).await;
        assert_eq!(killed.status.signal(), Some(9));
        wait_for_letters(&world, 1).await;

        let _worker = world.start_worker();
        world.wait_for_state(job_id, &["accepted"]).await;
        world.say(&requeue).await;
        let job = world
            .wait_for("the second delivery", async || {
                world.submission(job_id).await.filter(|job| job.deliveries == 2)
            })
            .await;
        assert_eq!(job.state, "accepted");
        wait_for_letters(&world, 0).await;
        assert_eq!(world.count_patches(job_id).await, 1);
    });
}

/// A publisher that is killed leaves its events to the next: what was published already comes twice.
fn check_publisher_killed_at(point: Point) {
    world(async |world| {
        world.declare_topology().await;
        let upstream = world.listen().await;
        let failpoint = format!("{}=kill", point.name());
        let mut dying = world.start_worker_with(&[TOLD, ("KYC_FAILPOINT", &failpoint)]);
        let job_id = world.publish_job().await;
        assert_eq!(dying.exit().await.signal(), Some(9), "killed at {}", point.name());
        let _worker = world.start_worker_with(&[TOLD]);
        let later = world.publish_job().await;
        let told = upstream.wait_for_implied(&world, &[job_id, later]).await;
        let copies = told.iter().filter(|event| event["subject"] == job_id.to_string()).count();
        assert_eq!(copies, if point == Point::EventsConfirmed { 2 } else { 1 }, "killed at {}", point.name());
    });
}

/// Starts a worker that stops at a point, and waits until it has.
async fn stopped_at(world: &World, point: Point, settings: &[(&str, &str)]) -> (WorkerProcess, Uuid) {
    let failpoint = format!("{}=stop", point.name());
    let own = [("KYC_FAILPOINT", failpoint.as_str()), ("WORKER_NAME", "stale")];
    let stale = world.start_worker_with(&[&own[..], settings].concat());
    world.wait_for_consumers(1).await;
    let job_id = world.publish_job().await;
    world.wait_for("a stopped worker", async || stale.is_stopped().then_some(())).await;
    (stale, job_id)
}

/// What the owner whose claim was gone had to say of its attempt.
async fn wait_for_late_verdict(world: &World, job_id: Uuid) -> String {
    world
        .wait_for("a late verdict", async || {
            sqlx::query_scalar::<_, Option<String>>(
                "select late_verdict from attempt where job_id = $1 and number = 1 and worker = 'stale'",
            )
            .bind(job_id)
            .fetch_one(&world.pool)
            .await
            .expect("the database answers")
        })
        .await
}

async fn check_stale_owner_sends_nothing(world: &World, point: Point) {
    let (stale, job_id) = stopped_at(world, point, &[]).await;
    let mut other = world.start_worker();
    // The lease is over and the token has moved on.
    world.wait_for_state(job_id, &["unknown"]).await;
    stale.signal("CONT");
    assert_eq!(wait_for_late_verdict(world, job_id).await, "not_sent", "stopped at {point:?}");
    world.wait_for_log(&stale, "the claim was lost").await;
    world.wait_for_all_accepted(&[job_id]).await;
    let attempts = world.attempts(job_id).await;
    let verdicts: Vec<_> = attempts.iter().map(|attempt| attempt.verdict.as_deref()).collect();
    assert_eq!(verdicts, [Some("unknown"), Some("accepted")], "stopped at {point:?}");
    assert_eq!(attempts[0].detail.as_deref(), Some("worker_vanished"), "stopped at {point:?}");
    assert_eq!(world.count_patches(job_id).await, 1, "stopped at {point:?}");
    other.stop().await;
}

/// Nor does it write over what another found out meanwhile.
#[test]
fn a_worker_that_slept_past_its_lease_sends_nothing() {
    world(async |world| {
        world.declare_topology().await;
        for point in BEFORE_THE_SEND {
            check_stale_owner_sends_nothing(&world, point).await;
        }
        world.check_every_patch_has_its_attempt().await;
        let applied = "select count(*) from submission where state = 'accepted' and evidence = 'response'";
        assert_eq!(world.count(applied).await, 5);
        assert_eq!(world.oracle("updates").await.len(), 5);
        world.wait_for_no_delivery().await;
    });
}

#[test]
fn a_worker_that_slept_before_it_opened_a_job_finds_it_done_by_another() {
    world(async |world| {
        world.declare_topology().await;
        let (relay, amqp_url) = world.relay_to_broker().await;
        let (stale, job_id) = stopped_at(&world, Point::Parsed, &[("AMQP_URL", &amqp_url)]).await;
        assert!(world.submission(job_id).await.is_none());
        relay.cut();
        let _other = world.start_worker();
        world.wait_for_all_accepted(&[job_id]).await;
        stale.signal("CONT");
        check_ending(&world, job_id, &Ending { deliveries: 2, ..AS_IF_NEW }).await;
        assert_eq!(world.count("select count(*) from attempt where worker = 'stale'").await, 0);
    });
}

#[test]
fn an_answer_known_too_late_is_kept_beside_what_was_read_back() {
    world(async |world| {
        world.declare_topology().await;
        let (stale, job_id) = stopped_at(&world, Point::Answered, &[]).await;
        let _other = world.start_worker();
        world.wait_for_applied(job_id).await;
        stale.signal("CONT");
        assert_eq!(wait_for_late_verdict(&world, job_id).await, "accepted");
        let job = world.wait_for_applied(job_id).await;
        assert_eq!(job.attempts, 1);
        world.check_nothing_lost_or_spent_twice(&[job_id]).await;
        assert_eq!(world.count_patches(job_id).await, 1);
    });
}

#[test]
fn an_answer_known_too_late_ends_what_nobody_could_read_back() {
    world(async |world| {
        world.declare_topology().await;
        let no = json!({ "kind": "respond", "status": 503, "body": "no" });
        world.add_rule(json!({ "match": { "method": "GET" }, "fault": { "answer": no } })).await;
        let (stale, job_id) = stopped_at(&world, Point::Answered, &[]).await;
        let other = world.start_worker();
        world.wait_for_state(job_id, &["unknown"]).await;
        world.wait_for_log(&other, "customer read back").await;
        stale.signal("CONT");
        let job = world.wait_for_state(job_id, &["accepted", "needs_review"]).await;
        assert_eq!((job.state.as_str(), job.evidence.as_deref()), ("accepted", Some("late")), "{job:?}");
        assert_eq!(wait_for_late_verdict(&world, job_id).await, "accepted");
        assert!(!job.has_payload);
        world.clear_rules().await;
        world.check_nothing_lost_or_spent_twice(&[job_id]).await;
        assert_eq!(world.count_patches(job_id).await, 1);
    });
}

/// Makes a worker panic at a point of one job's way, and checks that its next jobs notice
/// nothing of it. Returns the job.
async fn panicked_at(world: &World, point: Point, fault: Option<Value>) -> (WorkerProcess, Uuid) {
    let failpoint = format!("{}=panic", point.name());
    // As narrow as can be: a place that the panic did not give back would be missed.
    let narrow = [("KYC_FAILPOINT", failpoint.as_str()), ("CONCURRENCY", "1"), ("PREFETCH", "1")];
    let mut worker = world.start_worker_with(&narrow);
    world.wait_for_consumers(1).await;
    let job_id = Uuid::new_v4();
    if let Some(fault) = fault {
        world.break_job_once(job_id, fault).await;
    }
    world.publish_job_named(Uuid::new_v4(), job_id).await;
    world.wait_for_log(&worker, &format!("failpoint {}", point.name())).await;
    let others = world.publish_jobs(3).await;
    for other in &others {
        world.wait_for_all_accepted(&[*other]).await;
        assert_eq!(world.attempts(*other).await.len(), 1, "a panic at {point:?} touched another job");
    }
    assert!(worker.is_running());
    (worker, job_id)
}

async fn check_dead_lettered(world: &World, job_id: Uuid) {
    let letters = "select count(*) from dead_lettered_delivery where reason_code = 'worker_failed'";
    world.wait_for("a row", async || (world.count(letters).await == 1).then_some(())).await;
    let letter = world.wait_for("a dead letter", async || world.take_dead_letter().await).await;
    assert!(String::from_utf8(letter).expect("text").contains(&job_id.to_string()));
    assert_eq!(world.count("select count(*) from dead_lettered_delivery").await, 1);
}

#[test]
fn a_delivery_that_the_worker_fails_on_is_dead_lettered_whole() {
    world(async |world| {
        world.declare_topology().await;
        let (_worker, job_id) = panicked_at(&world, Point::Parsed, None).await;
        check_dead_lettered(&world, job_id).await;
        assert!(world.submission(job_id).await.is_none());
        assert_eq!(world.count_patches(job_id).await, 0);
        world.wait_for_no_delivery().await;
    });
}

#[test]
fn a_delivery_that_the_worker_fails_on_after_its_commit_is_carried_on() {
    for point in [Point::Opened, Point::Received] {
        world(async |world| {
            world.declare_topology().await;
            let (_worker, job_id) = panicked_at(&world, point, None).await;
            check_dead_lettered(&world, job_id).await;
            check_ending(&world, job_id, &Ending { deliveries: 1, ..SENT_BY_THE_NEXT }).await;
        });
    }
}

/// A failure inside an attempt is a fact of that attempt.
fn check_failed_attempt(point: Point, ending: &Ending) {
    world(async |world| {
        world.declare_topology().await;
        let (worker, job_id) = panicked_at(&world, point, None).await;
        assert!(worker.log().contains("the worker failed in an attempt"));
        check_ending(&world, job_id, &Ending { deliveries: 1, ..*ending }).await;
        let told = "select count(*) from attempt where number = 1 and error like 'the worker failed%'";
        assert_eq!(world.count(told).await, 1);
    });
}

/// What it leaves is a failed attempt.
#[test]
fn a_worker_that_fails_before_it_sends_sends_once_later() {
    check_failed_attempt(Point::Claimed, &SENT_BY_THE_NEXT);
    check_failed_attempt(Point::Signed, &SENT_BY_THE_NEXT);
}

#[test]
fn a_worker_that_fails_with_the_answer_reads_it_back() {
    check_failed_attempt(Point::Answered, &READ_BACK);
}

#[test]
fn a_worker_that_fails_at_the_gate_has_sent_nothing() {
    world(async |world| {
        world.declare_topology().await;
        let (_worker, job_id) = panicked_at(&world, Point::Gate, None).await;
        let verdicts = &["not_sent", "accepted"];
        check_ending(&world, job_id, &Ending { deliveries: 1, verdicts, ..SETTLED }).await;
    });
}

#[test]
fn a_worker_that_fails_after_it_recorded_a_result_changes_nothing() {
    world(async |world| {
        world.declare_topology().await;
        let (worker, job_id) = panicked_at(&world, Point::Concluded, None).await;
        check_ending(&world, job_id, &Ending { deliveries: 1, ..SETTLED }).await;
        assert!(worker.log().contains("the worker failed on an attempt's result"));
    });
}

#[test]
fn a_read_that_the_worker_fails_in_is_made_again() {
    for point in [Point::ReadClaimed, Point::ReadAnswered, Point::ReadConcluded] {
        world(async |world| {
            world.declare_topology().await;
            let (worker, job_id) = panicked_at(&world, point, without_an_answer("now")).await;
            check_ending(&world, job_id, &Ending { deliveries: 1, ..READ_BACK }).await;
            assert!(worker.log().contains("the worker failed in a read of a customer"));
            assert_eq!(world.count_ready(JOBS).await, 0);
        });
    }
}

#[test]
fn an_attempt_whose_machine_was_suspended_at_the_gate_is_not_sent() {
    world(async |world| {
        world.declare_topology().await;
        let settings = [("KYC_FAILPOINT", "gate=suspend")];
        let _worker = world.start_worker_with(&settings);
        let job_id = world.publish_job().await;
        world.check_nothing_lost_or_spent_twice(&[job_id]).await;
        let attempts = world.attempts(job_id).await;
        let ended: Vec<_> =
            attempts.iter().map(|attempt| (attempt.verdict.as_deref(), attempt.detail.as_deref())).collect();
        assert_eq!(ended, [(Some("not_sent"), Some("send_window_closed")), (Some("accepted"), None)]);
        assert_eq!(world.count_patches(job_id).await, 1);
    });
}

#[test]
fn a_read_whose_machine_was_suspended_proves_nothing() {
    world(async |world| {
        world.declare_topology().await;
        let answer = json!({ "kind": "respond", "status": 500, "body": "oops" });
        let job_id = world.publish_broken_job(json!({ "apply": "never", "answer": answer })).await;
        let _worker = world.start_worker_with(&[("KYC_FAILPOINT", "read-claimed=suspend")]);
        let job = world.wait_for_state(job_id, &["accepted", "needs_review"]).await;
        assert_eq!((job.state.as_str(), job.reason_code.as_deref()), ("needs_review", Some("fate_unknown")));
        let observations = world.observations(job_id).await;
        assert!(observations.iter().all(|seen| seen.conclusion.as_deref() != Some("confirming")));
        assert_eq!(world.count_patches(job_id).await, 1);
    });
}
