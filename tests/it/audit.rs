//! What a job went through is chained: whoever changes, removes, adds or moves a part of it is
//! found out, and nothing that a worker did is.

use std::io::Read as _;
use std::process::Stdio;
use std::time::Duration;

use kyc_worker::clock::Moment;
use kyc_worker::domain::customer_event::CustomerEvent;
use kyc_worker::domain::outcome::{Outcome, Review, Wait};
use kyc_worker::domain::read_back::{Conclusion, CustomerStatus, Reading};
use kyc_worker::domain::state::WaitingFor;
use kyc_worker::domain::verdict::{Acceptance, FailurePoint, Verdict};
use kyc_worker::domain::verification::NextRead;
use kyc_worker::journal::{
    Admission, AttemptResult, Claim, EventNoted, Journal, JournalError, NextAttempt, Opened, Pace, Settled,
};
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::harness::{World, world};
use crate::one_customer::{job_asked, journal};

const AFTER: Duration = Duration::from_millis(20);

fn customer(status: &str) -> CustomerStatus {
    CustomerStatus { status: status.to_owned(), failure_reason: None, document_type: None, dated_at: None }
}

fn reads(status: &str) -> Reading {
    Reading::Customer(customer(status))
}

fn accepted() -> Acceptance {
    Acceptance { reference: Some("R-1".to_owned()), verification_status: Some("PROCESSING".to_owned()) }
}

fn result(verdict: Verdict) -> AttemptResult {
    AttemptResult {
        verdict,
        http_status: Some(500),
        provider_message: Some("öops".to_owned()),
        error: None,
        duration: Duration::from_millis(7),
        checked: None,
    }
}

async fn open(journal: &Journal, customer_id: Uuid) -> Claim {
    let job = job_asked(customer_id, 0);
    let admission = Admission::Claim(Moment::now());
    let opened = journal.open(&job, OffsetDateTime::now_utc(), admission).await.expect("it is written down");
    match opened {
        Opened::Claimed(claim) => claim,
        other => panic!("{other:?}"),
    }
}

/// Lets what waits for its time be due.
async fn hasten(world: &World, job_id: Uuid) {
    let due = "update submission
        set due_at = case when due_at is not null then now() end,
            verification_due_at = case when verification_due_at is not null then now() end,
            claimed_until = case when claimed_until is not null then now() - interval '1 s' end
        where job_id = $1";
    sqlx::query(due).bind(job_id).execute(&world.pool).await.expect("it is due");
}

async fn next_attempt(journal: &Journal) -> Claim {
    let next = journal.next_attempts(Moment::now(), None, 1).await.expect("the database answers");
    match next.and_then(|mut next| next.pop()) {
        Some(NextAttempt::Claimed(claimed)) => claimed.claim,
        _ => panic!("nothing was claimed"),
    }
}

async fn settle(journal: &Journal, claim: &Claim) -> Result<(), JournalError> {
    let outcome = Outcome::Accepted(accepted());
    journal.settle(claim, &result(Verdict::Accepted(accepted())), &outcome).await
}

async fn read(world: &World, journal: &Journal, job_id: Uuid, concluded: Conclusion, settled: Settled) {
    hasten(world, job_id).await;
    let claim = journal.claim_reads(1).await.expect("the database answers").pop().expect("a read is due");
    assert_eq!(claim.job.id, job_id);
    journal.conclude_read(&claim, &reads("FAILED"), concluded, &settled).await.expect("the claim is ours");
}

async fn verify(world: &World, journal: &Journal, job_id: Uuid, status: &str, next: NextRead) {
    hasten(world, job_id).await;
    let pace = Pace { per_second: 1_000_000, apart: Duration::ZERO, read_time_max: AFTER };
    let due = journal.claim_verifications(&pace, 10).await.expect("the database answers");
    let claim = due.claims.iter().find(|claim| claim.job.id == job_id).expect("it is due");
    let is_recorded = journal.record_verification(claim, Moment::now(), Some(&customer(status)), next).await;
    assert!(is_recorded.expect("the database answers"));
}

/// A job with an entry of nearly every kind: 1 a baseline, 2 an attempt of unknown outcome, 3 and 4 reads
/// that find it not applied, 5 an accepted attempt, 6 its verification's end.
async fn eventful_job(world: &World, journal: &Journal) -> Uuid {
    let mut claim = open(journal, Uuid::new_v4()).await;
    let job_id = claim.job.id;
    journal
        .record_baseline(&mut claim, OffsetDateTime::now_utc(), Moment::now(), &reads("FAILED"))
        .await
        .expect("it is kept");
    journal
        .leave_unknown(&claim, &result(Verdict::Unknown(FailurePoint::ServerError)))
        .await
        .expect("it is ours");
    read(world, journal, job_id, Conclusion::Confirming { after: AFTER }, Settled::StillUnknown(AFTER)).await;
    read(world, journal, job_id, Conclusion::NotApplied, Settled::SendAgain).await;
    let claim = next_attempt(journal).await;
    settle(journal, &claim).await.expect("it is ours");
    verify(world, journal, job_id, "VERIFIED", NextRead::Ended).await;
    job_id
}

/// As the tables' owner does it, who can take the triggers away.
async fn tamper(world: &World, job_id: Uuid, statements: &str) {
    world.is_tampered_with();
    let mut tx = world.pool.begin().await.expect("a transaction");
    let triggers = async |tx: &mut sqlx::PgTransaction<'_>, state: &str| {
        for table in ["submission", "attempt", "observation", "intervention"] {
            let statement = format!("alter table {table} {state} trigger user");
            sqlx::query(&statement).execute(&mut **tx).await.expect("it is ours");
        }
    };
    triggers(&mut tx, "disable").await;
    for statement in statements.split(';') {
        let changed = sqlx::query(statement).bind(job_id).execute(&mut *tx).await;
        let changed = changed.unwrap_or_else(|error| panic!("{statement}: {error}"));
        assert_ne!(changed.rows_affected(), 0, "{statement}");
    }
    triggers(&mut tx, "enable").await;
    tx.commit().await.expect("it commits");
}

/// Audits one job; returns each finding as `place: what`.
async fn audit(world: &World, job_id: Uuid) -> Vec<String> {
    let (said, is_good) = world.ask(&["audit", &job_id.to_string()]).await;
    let findings: Vec<String> = said["findings"].as_array().expect("findings").iter().map(text).collect();
    assert_eq!(is_good, findings.is_empty(), "{said}");
    assert_eq!(said["found"], json!(findings.len()));
    findings
}

fn text(finding: &Value) -> String {
    let [place, what, remedy] =
        ["place", "what", "remedy"].map(|field| finding[field].as_str().expect("a text"));
    assert!(!remedy.is_empty());
    format!("{place}: {what}")
}

const BROKEN: &str = "entries 1 to 6: the chain does not verify";

#[test]
fn whatever_is_changed_removed_added_or_moved_is_found() {
    world(async |world| {
        let (journal, mut wrong) = (journal(&world, "one"), Vec::new());
        for (statements, expected) in [
            ("update attempt set verdict = 'throttled' where job_id = $1 and number = 1", &[BROKEN][..]),
            ("update attempt set worker = 'two' where job_id = $1 and number = 1", &[BROKEN]),
            ("update attempt set signed_at = signed_at + interval '1 us' where job_id = $1", &[BROKEN]),
            (
                "update attempt set begun_at = begun_at - interval '1 h' where job_id = $1",
                &[BROKEN, "attempt 2: began before the one before had ended"],
            ),
            (
                "update attempt set ended_at = ended_at + interval '1 us' where job_id = $1",
                &[BROKEN, "submission: is accepted, and ended at another time than what ended it"],
            ),
            (
                "update submission set ended_at = ended_at + interval '1 us' where job_id = $1",
                &["submission: is accepted, and ended at another time than what ended it"],
            ),
            ("update submission set provider_reference = 'R-2' where job_id = $1", &[BROKEN]),
            (
                "update submission set retries = 3 where job_id = $1",
                &["submission: is accepted, and more attempts count against it than were made"],
            ),
            ("update attempt set detail = 'timed_out' where job_id = $1 and number = 1", &[BROKEN]),
            ("update attempt set http_status = 503 where job_id = $1 and number = 1", &[BROKEN]),
            ("update attempt set http_status = null where job_id = $1 and number = 1", &[BROKEN]),
            ("update attempt set provider_message = 'oops' where job_id = $1 and number = 2", &[BROKEN]),
            ("update attempt set error = '' where job_id = $1 and number = 2", &[BROKEN]),
            ("update attempt set duration_ms = 8 where job_id = $1 and number = 2", &[BROKEN]),
            ("update observation set status = 'VERIFIED' where job_id = $1 and entry = 1", &[BROKEN]),
            ("update observation set at = at - interval '1 s' where job_id = $1 and entry = 3", &[BROKEN]),
            ("update observation set failure_reason = 'blurred' where job_id = $1 and entry = 3", &[BROKEN]),
            ("update observation set purpose = 'webhook' where job_id = $1 and entry = 1", &[BROKEN]),
            ("update observation set customer_id = gen_random_uuid() where job_id = $1", &[BROKEN]),
            ("update submission set customer_id = gen_random_uuid() where job_id = $1", &[BROKEN]),
            // Whoever removes the last entry, and knows of the count.
            (
                "delete from observation where job_id = $1 and entry = 6;
                update submission set entries = 5, verification_status = 'PROCESSING' where job_id = $1",
                &["entries 1 to 5: the chain does not verify"],
            ),
            // Moved: each is there once.
            (
                "update observation set entry = 7 - entry where job_id = $1 and entry in (3, 4)",
                &[BROKEN],
            ),
            (
                "insert into observation (job_id, customer_id, at, purpose, status, entry)
                    select job_id, customer_id, now(), 'verification', 'VERIFIED', 7 from submission where job_id = $1;
                update submission set entries = 7 where job_id = $1",
                &["entries 1 to 7: the chain does not verify"],
            ),
            ("delete from observation where job_id = $1 and entry = 3", &["entry 3 of 6: is missing"]),
            (
                "delete from observation where job_id = $1 and entry in (3, 4)",
                &[
                    "entries 3 to 4 of 6: are missing",
                    "attempt 2: follows one of unknown outcome that no read and no person has cleared",
                ],
            ),
            (
                "delete from observation where job_id = $1 and entry = 6",
                &[
                    "entry 6 of 6: is missing",
                    "submission: its verification ended VERIFIED, and neither a read nor a webhook said so",
                ],
            ),
            (
                "update observation set entry = 2 where job_id = $1 and entry = 1",
                &["entry 1 of 6: is missing", "entry 2 of 6 (observation ID): is there twice"],
            ),
            (
                "insert into observation (job_id, customer_id, at, purpose, status)
                    select job_id, customer_id, now(), 'verification', 'VERIFIED' from submission where job_id = $1",
                &["observation ID: is not in the chain"],
            ),
            (
                "update attempt set late_verdict = 'accepted' where job_id = $1 and number = 1",
                &["attempt 1: has a late verdict without a place in the chain, or a place without it"],
            ),
            (
                "delete from attempt where job_id = $1",
                &[
                    "entry 2 of 6: is missing",
                    "entry 5 of 6: is missing",
                    "attempts: 2 counted, 0 there",
                    "submission: is accepted, and nothing of its evidence is there: response",
                ],
            ),
            (
                "delete from attempt where job_id = $1 and number = 1",
                &[
                    "entry 2 of 6: is missing",
                    "attempts: 2 counted, 1 there",
                    "attempt 2: is out of turn",
                ],
            ),
            (
                "insert into attempt (job_id, number, worker, signed_at) values ($1, 3, 'one', now())",
                &[
                    "attempts: 2 counted, 3 there",
                    "attempt 3: follows one that was accepted",
                    "submission: is accepted, and its last attempt is open",
                ],
            ),
            (
                "update attempt set entry = null where job_id = $1 and number = 2",
                &[
                    "entry 5 of 6: is missing",
                    "attempt 2: is closed, and not in the chain",
                    "submission: is accepted, and nothing of its evidence is there: response",
                ],
            ),
            (
                "update submission set chain = null, entries = 0 where job_id = $1",
                &[
                    "entry 1 (observation ID): is none of the 0 that are counted",
                    "entry 2 (attempt 1): is none of the 0 that are counted",
                    "entry 3 (observation ID): is none of the 0 that are counted",
                    "entry 4 (observation ID): is none of the 0 that are counted",
                    "entry 5 (attempt 2): is none of the 0 that are counted",
                    "entry 6 (observation ID): is none of the 0 that are counted",
                ],
            ),
            (
                "update submission set evidence = 'read_back' where job_id = $1",
                &["submission: is accepted, and nothing of its evidence is there: read_back"],
            ),
            (
                "update submission set evidence = 'late' where job_id = $1",
                &["submission: is accepted, and nothing of its evidence is there: late"],
            ),
            (
                "update submission set evidence = 'person' where job_id = $1",
                &["submission: is accepted, and nothing of its evidence is there: person"],
            ),
            (
                "update submission set evidence = null where job_id = $1",
                &["submission: is accepted, and nothing of its evidence is there: none"],
            ),
            (
                "update submission set verification_status = 'FAILED' where job_id = $1",
                &["submission: its verification ended FAILED, and neither a read nor a webhook said so"],
            ),
            (
                "update submission set state = 'rejected', evidence = null where job_id = $1",
                &[
                    "submission: is rejected, and neither an answer nor a read said so",
                    "submission: is rejected, and an attempt was accepted, or a read found it applied",
                    "submission: is rejected, and has what only an accepted one has",
                ],
            ),
            // So that it is sent once more.
            (
                "update submission
                set state = 'waiting', waiting_for = 'retry', due_at = now() + interval '1 d', evidence = null,
                    ended_at = null, sealed_payload = 'sealed', reason_code = 'replayed'
                where job_id = $1",
                &[
                    "submission: is waiting, and no person has it sent again",
                    "submission: is waiting, and an attempt was accepted, or a read found it applied",
                    "submission: is waiting, and has what only an accepted one has",
                ],
            ),
            ("delete from submission where job_id = $1", &["submission: is not there"]),
        ] {
            let job_id = eventful_job(&world, &journal).await;
            assert_eq!(audit(&world, job_id).await, [""; 0], "nothing is wrong yet");
            tamper(&world, job_id, statements).await;
            let found = audit(&world, job_id).await;
            let found: Vec<String> = found.iter().map(|found| without_ids(found)).collect();
            if found != expected {
                wrong.push(format!("{statements}\n  {found:#?}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    });
}

/// The numbers of observations are not known before.
fn without_ids(finding: &str) -> String {
    match finding.split_once("observation ") {
        Some((before, after)) => {
            format!("{before}observation ID{}", after.trim_start_matches(|c: char| c.is_ascii_digit()))
        }
        None => finding.to_owned(),
    }
}

/// Orphans are rows without their submission.
#[test]
fn an_audit_of_all_has_a_line_for_every_finding_and_orphan() {
    world(async |world| {
        let journal = journal(&world, "one");
        let [edited, orphaned, _sound] = [
            eventful_job(&world, &journal).await,
            eventful_job(&world, &journal).await,
            eventful_job(&world, &journal).await,
        ];
        let said = world.say(&["audit"]).await;
        assert_eq!(said, "3 submissions, 18 entries: every history verifies\n");
        let intervention = "insert into intervention (action, by, note, job_id, entries)
            values ('replay', 'ana', 'why', $1, 6)";
        sqlx::query(intervention).bind(orphaned).execute(&world.pool).await.expect("the intervention");
        tamper(&world, edited, "update attempt set worker = 'two' where job_id = $1").await;
        tamper(&world, orphaned, "delete from submission where job_id = $1").await;

        let said = world.refuse(&["audit"]).await;
        let lines: Vec<&str> = said.lines().collect();
        let broken = format!("{edited}  {BROKEN}; ");
        assert!(lines[0].starts_with(&broken), "{said}");
        let rows = "is missing, and rows of it are there (attempts: 2, observations: 4, interventions: 1)";
        assert!(lines[1].starts_with(&format!("{orphaned}  submission: {rows}; ")), "{said}");
        assert_eq!(lines[2..], ["2 submissions, 12 entries: 2 FINDINGS"]);
    });
}

#[test]
fn with_another_key_no_chain_verifies_and_the_audit_says_why() {
    world(async |world| {
        let journal = journal(&world, "one");
        eventful_job(&world, &journal).await;
        let another = [("FINGERPRINT_KEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")];
        let output = world.run(&["audit"], &another).await;
        assert_eq!(output.status.code(), Some(1));
        let [said, complaint] =
            [output.stdout, output.stderr].map(|out| String::from_utf8(out).expect("UTF-8"));
        assert!(said.contains(BROKEN), "{said}");
        assert_eq!(complaint, "no chain verifies: FINGERPRINT_KEY is probably another than the worker's\n");
        let output = world.run(&["audit"], &[("FINGERPRINT_KEY", "")]).await;
        assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    });
}

#[test]
fn a_result_goes_behind_what_was_added_to_the_history_since_its_claim() {
    world(async |world| {
        let journal = journal(&world, "one");
        let customer_id = Uuid::new_v4();
        let claim = open(&journal, customer_id).await;
        let event = CustomerEvent {
            customer_id,
            status: "PROCESSING".to_owned(),
            failure_reason: None,
            at: OffsetDateTime::now_utc(),
        };
        let noted = journal.record_customer_event(&event).await.expect("it is kept");
        assert_eq!(noted, EventNoted::Stored(claim.job));
        let noted = journal.record_customer_event(&event).await.expect("the database answers");
        assert_eq!(noted, EventNoted::Known, "twice is once");
        settle(&journal, &claim).await.expect("it is ours");
        settle(&journal, &claim).await.expect("as if its answer had been lost");
        assert_eq!(world.count("select entries::bigint from submission").await, 2);
        assert_eq!(audit(&world, claim.job.id).await, [""; 0]);
    });
}

#[test]
fn a_read_whose_answer_was_lost_is_recorded_once() {
    world(async |world| {
        let journal = journal(&world, "one");
        let claim = open(&journal, Uuid::new_v4()).await;
        let unknown = Verdict::Unknown(FailurePoint::ServerError);
        journal.leave_unknown(&claim, &result(unknown)).await.expect("it is ours");
        hasten(&world, claim.job.id).await;
        let read = journal.claim_reads(1).await.expect("the database answers").pop().expect("a read is due");
        let (reading, confirming) = (reads("FAILED"), Conclusion::Confirming { after: AFTER });
        let record = || journal.conclude_read(&read, &reading, confirming, &Settled::StillUnknown(AFTER));
        record().await.expect("the claim is ours");
        let again = record().await;
        assert!(matches!(again, Err(JournalError::Fenced)), "{again:?}");
        assert_eq!(world.count("select count(*) from observation").await, 1, "it would confirm itself");
        assert_eq!(audit(&world, claim.job.id).await, [""; 0]);
    });
}

#[test]
fn what_a_worker_that_lost_its_claim_learned_is_chained_too() {
    world(async |world| {
        let journal = journal(&world, "one");
        for is_resent in [false, true] {
            let claim = open(&journal, Uuid::new_v4()).await;
            hasten(&world, claim.job.id).await;
            let taken = journal.rescue(10).await.expect("the database answers");
            assert_eq!(taken.iter().map(|taken| taken.job.id).collect::<Vec<_>>(), [claim.job.id]);
            if is_resent {
                read(&world, &journal, claim.job.id, Conclusion::NotApplied, Settled::SendAgain).await;
                next_attempt(&journal).await;
            }
            let lost = settle(&journal, &claim).await;
            assert!(matches!(lost, Err(JournalError::Fenced)), "{lost:?}");
            let late = Verdict::Accepted(accepted());
            let has_ended = journal.record_late(&claim, &late).await.expect("the database answers");
            assert_eq!(has_ended, !is_resent, "it ends what nobody is at");
            let again = journal.record_late(&claim, &late).await.expect("the database answers");
            assert!(!again, "as if its answer had been lost");
            let entries = sqlx::query_scalar("select entries from submission where job_id = $1");
            let entries: i32 = entries.bind(claim.job.id).fetch_one(&world.pool).await.expect("its row");
            assert_eq!(entries, if is_resent { 3 } else { 2 });
            assert_eq!(audit(&world, claim.job.id).await, [""; 0]);
        }
    });
}

#[test]
fn a_forgotten_customer_leaves_histories_that_verify() {
    world(async |world| {
        let journal = journal(&world, "one");
        let job_id = eventful_job(&world, &journal).await;
        let customer: Uuid = sqlx::query_scalar("select customer_id from submission")
            .fetch_one(&world.pool)
            .await
            .expect("a row");
        let customer = customer.to_string();
        world.declare_topology().await;
        world.say(&["forget", "--customer", &customer, "--by", "ana", "--note", "erasure request"]).await;
        assert_eq!(world.count("select count(*) from submission where content_hmac is null").await, 1);
        assert_eq!(audit(&world, job_id).await, [""; 0]);
    });
}

#[test]
fn what_a_person_settled_or_sent_again_verifies() {
    world(async |world| {
        let journal = journal(&world, "one");
        let signed = ["--by", "ana", "--note", "why"];
        for finding in ["accepted", "rejected", "not-applied"] {
            let claim = open(&journal, Uuid::new_v4()).await;
            journal
                .leave_unknown(&claim, &result(Verdict::Unknown(FailurePoint::TimedOut)))
                .await
                .expect("it is ours");
            let review = Settled::Ended(Outcome::NeedsReview(Review::FateUnknown));
            read(&world, &journal, claim.job.id, Conclusion::Unsettled, review).await;
            let id = claim.job.id.to_string();
            world.say(&[&["resolve", &id, "--as", finding][..], &signed].concat()).await;
            assert_eq!(audit(&world, claim.job.id).await, [""; 0], "{finding}");
            if finding == "not-applied" {
                world.say(&[&["replay", &id, "--yes"][..], &signed].concat()).await;
                assert_eq!(audit(&world, claim.job.id).await, [""; 0], "sent again");
                hasten(&world, claim.job.id).await;
                let claim = next_attempt(&journal).await;
                let wait = Wait { waiting_for: WaitingFor::Retry, delay: AFTER, counts: true };
                let throttled = result(Verdict::Throttled { retry_after: None });
                journal.schedule(&claim, &throttled, &wait).await.expect("it is ours");
                assert_eq!(audit(&world, claim.job.id).await, [""; 0], "scheduled");
                tamper(&world, claim.job.id, "delete from intervention where job_id = $1").await;
                let unsettled =
                    "attempt 2: follows one of unknown outcome that no read and no person has cleared";
                assert_eq!(audit(&world, claim.job.id).await, [unsettled]);
            }
        }
    });
}

#[test]
fn an_audit_of_many_jobs_needs_no_more_memory_than_one_of_few() {
    world(async |world| {
        world
            .tamper(
                "insert into submission (job_id, customer_id, state, reason, received_at, requested_at, ended_at)
                select gen_random_uuid(), gen_random_uuid(), 'superseded', 'a newer one', now(), now(), now()
                from generate_series(1, 200000)",
            )
            .await;
        world
            .tamper(
                "insert into attempt (job_id, number, worker, signed_at, ended_at, verdict)
                select gen_random_uuid(), 1, repeat('worker ', 20), now(), now(), 'accepted'
                from generate_series(1, 100000)",
            )
            .await;
        // All rows, or all findings, are more than the process may have. None of them has its history.
        let said = world.run_in_64_mib("audit --json").await;
        let said: Value = serde_json::from_str(&said).expect("JSON");
        assert_eq!((&said["submissions"], &said["found"]), (&json!(200_000), &json!(500_000)));
    });
}

#[test]
fn an_audit_whose_reader_takes_its_time_is_whole() {
    world(async |world| {
        world
            .tamper(
                "insert into submission (job_id, customer_id, state, received_at, requested_at, ended_at)
                select gen_random_uuid(), gen_random_uuid(), 'superseded', now(), now(), now()
                from generate_series(1, 5000)",
            )
            .await;
        let mut command = world.command();
        command.arg("audit").stdout(Stdio::piped());
        let mut child = command.spawn().expect("it runs");
        // A pager holds what it does not show: longer than any transaction of a worker's may be idle.
        let idle = "select count(*) from pg_stat_activity
            where datname = current_database() and application_name = 'kyc-worker'
                and state = 'idle in transaction' and state_change < now() - interval '11 s'";
        let is_idle = async || (world.count(idle).await == 1).then_some(());
        world.wait_for("an audit that waits for its reader", is_idle).await;
        let mut said = String::new();
        child.stdout.take().expect("a pipe").read_to_string(&mut said).expect("text");
        assert_eq!(child.wait().expect("it ends").code(), Some(1));
        let last = said.lines().last().expect("a line");
        assert!(last.starts_with("5,000 submissions, 0 entries: "), "{last}");
    });
}
