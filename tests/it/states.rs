//! A submission's row goes with its history: whoever rewrites it to any other state, for any other
//! reason, is found out, and nothing that a worker or a person did is.

use std::collections::HashMap;
use std::time::Duration;

use kyc_worker::clock::Moment;
use kyc_worker::desk::budget::set_budget;
use kyc_worker::desk::events::{Selection, tell_page};
use kyc_worker::desk::interventions::Attribution;
use kyc_worker::desk::replay::{Intent, ReplayRules, replay};
use kyc_worker::desk::resolve::{Finding, resolve};
use kyc_worker::domain::job::{Invalid, Job};
use kyc_worker::domain::message::Message;
use kyc_worker::domain::outcome::{Exhaustion, Outcome, Review, Wait};
use kyc_worker::domain::read_back::{Conclusion, CustomerStatus, Reading};
use kyc_worker::domain::state::{LinkField, WaitingFor};
use kyc_worker::domain::verdict::{
    Acceptance, FailurePoint, LinkRefusal, Misconfiguration, NotSent, Rejection, Verdict,
};
use kyc_worker::journal::history::audit::Audit;
use kyc_worker::journal::{Admission, AttemptResult, Claim, Journal, NextAttempt, Opened, Settled};
use kyc_worker::seal::Fingerprinter;
use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::harness::{FINGERPRINT_KEY, World, world};
use crate::one_customer::{job_asked, journal};

const AFTER: Duration = Duration::from_secs(3_600);
const BY_ANA: Attribution<'static> = Attribution { by: "ana", note: "why", proposal: None };

/// Where a job stands, and how that is known.
#[derive(Clone, Debug, Eq, FromRow, Hash, PartialEq)]
struct Form {
    state: String,
    reason_code: Option<String>,
    evidence: Option<String>,
}

/// Makes jobs of every form.
struct Maker<'a> {
    world: &'a World,
    journal: Journal,
    /// How far the worker's clock is ahead of the database's.
    ahead: time::Duration,
}

fn result(verdict: Verdict) -> AttemptResult {
    let duration = Duration::from_millis(7);
    AttemptResult { verdict, http_status: None, provider_message: None, error: None, duration, checked: None }
}

fn accepted() -> Acceptance {
    Acceptance { reference: Some("R-1".to_owned()), verification_status: Some("PROCESSING".to_owned()) }
}

impl Maker<'_> {
    fn received_at(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc() + self.ahead
    }

    async fn open_as(&self, job: &Job, admission: Admission) -> Opened {
        self.journal.open(job, self.received_at(), admission).await.expect("it is written down")
    }

    async fn claim(&self, job: &Job) -> Claim {
        match self.open_as(job, Admission::Claim(Moment::now())).await {
            Opened::Claimed(claim) => claim,
            other => panic!("{other:?}"),
        }
    }

    async fn new_claim(&self) -> Claim {
        self.claim(&job_asked(Uuid::new_v4(), 0)).await
    }

    async fn settle(&self, claim: &Claim, verdict: Verdict, outcome: Outcome) -> Uuid {
        self.journal.settle(claim, &result(verdict), &outcome).await.expect("the claim is ours");
        claim.job.id
    }

    async fn accept(&self, claim: &Claim) -> Uuid {
        self.settle(claim, Verdict::Accepted(accepted()), Outcome::Accepted(accepted())).await
    }

    async fn schedule(&self, claim: &Claim, verdict: Verdict, waiting_for: WaitingFor, counts: bool) -> Uuid {
        let wait = Wait { waiting_for, delay: AFTER, counts };
        self.journal.schedule(claim, &result(verdict), &wait).await.expect("the claim is ours");
        claim.job.id
    }

    async fn throttle(&self, claim: &Claim) -> Uuid {
        self.schedule(claim, Verdict::Throttled { retry_after: None }, WaitingFor::Provider, true).await
    }

    async fn leave_unknown(&self, claim: &Claim) -> Uuid {
        let unknown = Verdict::Unknown(FailurePoint::ServerError);
        self.journal.leave_unknown(claim, &result(unknown)).await.expect("the claim is ours");
        self.later(claim.job.id).await
    }

    /// What waits for its time is due, and claims have run out.
    async fn hasten(&self, job_id: Uuid) {
        let due = "update submission
            set due_at = case when due_at is not null then now() end,
                claimed_until = case when claimed_until is not null then now() - interval '1 s' end
            where job_id = $1";
        sqlx::query(due).bind(job_id).execute(&self.world.pool).await.expect("it is due");
    }

    async fn conclude(
        &self,
        job_id: Uuid,
        reading: Reading,
        conclusion: Conclusion,
        settled: Settled,
    ) -> Uuid {
        self.hasten(job_id).await;
        let claim =
            self.journal.claim_reads(1).await.expect("the database answers").pop().expect("a read is due");
        assert_eq!(claim.job.id, job_id);
        let concluded = self.journal.conclude_read(&claim, &reading, conclusion, &settled).await;
        concluded.expect("the claim is ours");
        job_id
    }

    async fn read(&self, job_id: Uuid, conclusion: Conclusion, settled: Settled) -> Uuid {
        let status = CustomerStatus {
            status: "FAILED".to_owned(),
            failure_reason: None,
            document_type: None,
            dated_at: None,
        };
        self.conclude(job_id, Reading::Customer(status), conclusion, settled).await
    }

    async fn clear(&self, job_id: Uuid) -> Uuid {
        self.read(job_id, Conclusion::NotApplied, Settled::SendAgain).await;
        self.later(job_id).await
    }

    async fn left_unknown(&self) -> Uuid {
        self.leave_unknown(&self.new_claim().await).await
    }

    async fn unsettled(&self) -> Uuid {
        let job_id = self.left_unknown().await;
        let review = Settled::Ended(Outcome::NeedsReview(Review::FateUnknown));
        self.read(job_id, Conclusion::Unsettled, review).await
    }

    async fn resolved(&self, finding: Finding) -> Uuid {
        let job_id = self.unsettled().await;
        resolve(&self.world.pool, job_id, finding, None, BY_ANA).await.expect("it is settled");
        job_id
    }

    async fn exhausted(&self) -> Uuid {
        let throttled = Verdict::Throttled { retry_after: None };
        self.settle(&self.new_claim().await, throttled, Outcome::Exhausted(Exhaustion::Attempts)).await
    }

    async fn replayed(&self, job_id: Uuid) -> Uuid {
        let rules = ReplayRules { customer_updates: 3, read_back_window: Duration::from_secs(60) };
        let intent = Intent::Replay { attribution: BY_ANA, delay: AFTER };
        let replayed =
            replay(&self.world.pool, job_id, rules, intent, None).await.expect("the database answers");
        assert_eq!(replayed.refusal, None);
        job_id
    }

    async fn next(&self, job_id: Uuid) -> NextAttempt {
        self.hasten(job_id).await;
        let next = self.journal.next_attempts(Moment::now(), None, 1).await;
        let next = next.expect("the database answers").and_then(|mut next| next.pop());
        next.expect("it is due")
    }

    /// Parked after an attempt, then overtaken by a newer one of its customer.
    async fn overtaken(&self) -> Uuid {
        let customer_id = Uuid::new_v4();
        let older = self.throttle(&self.claim(&job_asked(customer_id, 60)).await).await;
        self.accept(&self.claim(&job_asked(customer_id, 0)).await).await;
        let next = self.next(older).await;
        assert!(matches!(next, NextAttempt::YieldedSlot(_, Some(Outcome::Superseded { .. }))));
        older
    }

    /// Ended at once for another of its customer.
    async fn opened_behind(&self, ahead: &Job, seconds: i64, has_same_content: bool) -> Uuid {
        let mut job = job_asked(ahead.customer_id, seconds);
        if has_same_content {
            job.fingerprint_text.clone_from(&ahead.fingerprint_text);
        }
        let opened = self.open_as(&job, Admission::Claim(Moment::now())).await;
        assert!(matches!(opened, Opened::Ended(_)), "{opened:?}");
        job.id
    }

    /// One job of every form at least, and more than one history for some.
    async fn make(&self) -> Vec<Uuid> {
        [
            self.in_motion().await,
            self.ended_alone().await,
            self.ended_for_another().await,
            self.by_hand().await,
        ]
        .concat()
    }

    async fn in_motion(&self) -> Vec<Uuid> {
        let opened_to_wait = job_asked(Uuid::new_v4(), 0);
        self.open_as(&opened_to_wait, Admission::Wait(WaitingFor::Retry)).await;
        self.later(opened_to_wait.id).await;
        let not_sent = Verdict::NotSent(NotSent::Connect);
        let refused = Verdict::Misconfigured(Misconfiguration::ApiKey);
        let mut jobs = vec![
            opened_to_wait.id,
            self.throttle(&self.new_claim().await).await,
            self.schedule(&self.new_claim().await, not_sent, WaitingFor::Retry, true).await,
            self.schedule(&self.new_claim().await, refused, WaitingFor::Provider, false).await,
        ];
        let rescued = self.new_claim().await.job.id;
        self.hasten(rescued).await;
        assert_eq!(self.journal.rescue(10).await.expect("the database answers").len(), 1);
        self.later(rescued).await;
        let cleared = self.left_unknown().await;
        jobs.extend([rescued, self.clear(cleared).await]);
        let confirming = Conclusion::Confirming { after: AFTER };
        let left_unknown = self.left_unknown().await;
        let submitting = self.new_claim().await.job.id;
        jobs.extend([
            self.left_unknown().await,
            self.read(left_unknown, confirming, Settled::StillUnknown(AFTER)).await,
            self.later(submitting).await,
        ]);
        jobs
    }

    /// Nothing comes of it before it is hastened.
    async fn later(&self, job_id: Uuid) -> Uuid {
        let later = "update submission
            set due_at = case when due_at is not null then now() + interval '1 h' end,
                claimed_until = case when claimed_until is not null then now() + interval '1 h' end
            where job_id = $1";
        sqlx::query(later).bind(job_id).execute(&self.world.pool).await.expect("it waits");
        job_id
    }

    async fn ended_alone(&self) -> Vec<Uuid> {
        let rejected = async |rejection: Rejection| {
            let outcome = Outcome::Rejected(rejection.clone());
            self.settle(&self.new_claim().await, Verdict::Rejected(rejection), outcome).await
        };
        let mut jobs = vec![
            self.accept(&self.new_claim().await).await,
            rejected(Rejection::KycAlreadyInUse).await,
            rejected(Rejection::FieldRefused).await,
            rejected(Rejection::CustomerNotFound).await,
            rejected(Rejection::DocumentTypeUnsupported { supported: vec!["AADHAAR".to_owned()] }).await,
            rejected(Rejection::LinkRefused(LinkField::Front, LinkRefusal::ByHost)).await,
            rejected(Rejection::LinkNotFound(LinkField::Back)).await,
            rejected(Rejection::NotADocument(LinkField::Back)).await,
            self.exhausted().await,
        ];
        let [applied, last] = [self.left_unknown().await, self.left_unknown().await];
        let found = Acceptance { reference: None, verification_status: Some("FAILED".to_owned()) };
        let found = Settled::Ended(Outcome::Accepted(found));
        let review = Settled::Ended(Outcome::NeedsReview(Review::LastUpdate));
        jobs.extend([
            self.read(applied, Conclusion::Applied, found).await,
            self.read(last, Conclusion::LastUpdate, review).await,
            self.unsettled().await,
        ]);
        let late = self.new_claim().await;
        self.hasten(late.job.id).await;
        assert_eq!(self.journal.rescue(10).await.expect("the database answers").len(), 1);
        let has_ended = self.journal.record_late(&late, &Verdict::Accepted(accepted())).await;
        assert!(has_ended.expect("the database answers"));
        let refused = || Verdict::Misconfigured(Misconfiguration::Signature);
        let alone = self.new_claim().await;
        self.schedule(&alone, refused(), WaitingFor::Provider, false).await;
        let NextAttempt::Claimed(again) = self.next(alone.job.id).await else {
            panic!("nothing was claimed")
        };
        let review = Outcome::NeedsReview(Review::RefusedOnlyForThisJob);
        jobs.extend([late.job.id, self.settle(&again.claim, refused(), review).await]);
        let like_others = Verdict::Misconfigured(Misconfiguration::LikeOthers);
        let review = Outcome::NeedsReview(Review::RefusedLikeOthers);
        jobs.push(self.settle(&self.new_claim().await, like_others, review).await);
        let mut expiring = job_asked(Uuid::new_v4(), 0);
        expiring.expires_at = Some(OffsetDateTime::now_utc());
        self.open_as(&expiring, Admission::Wait(WaitingFor::Retry)).await;
        let expired = self.journal.expire(10).await.expect("the database answers");
        assert_eq!(expired.iter().map(|(job, _)| job.id).collect::<Vec<_>>(), [expiring.id]);
        let invalid = Uuid::new_v4();
        let message = Message { body: b"{}".into(), ..Message::default() };
        let no_job = Invalid { job_id: Some(invalid), customer_id: Some(Uuid::new_v4()), faults: Vec::new() };
        self.journal.record_invalid(&message, self.received_at(), &no_job).await.expect("it is written down");
        jobs.extend([expiring.id, invalid]);
        jobs
    }

    async fn ended_for_another(&self) -> Vec<Uuid> {
        let first = job_asked(Uuid::new_v4(), 60);
        self.accept(&self.claim(&first).await).await;
        let second = job_asked(Uuid::new_v4(), 0);
        self.accept(&self.claim(&second).await).await;
        let unsettled = job_asked(Uuid::new_v4(), 0);
        self.leave_unknown(&self.claim(&unsettled).await).await;
        let review = Settled::Ended(Outcome::NeedsReview(Review::FateUnknown));
        self.read(unsettled.id, Conclusion::Unsettled, review).await;
        // Its second attempt might take the last update.
        let last = self.new_claim().await;
        let cleared = self.leave_unknown(&last).await;
        self.clear(cleared).await;
        set_budget(&self.world.pool, last.customer_id, 2, None, BY_ANA).await.expect("it is counted");
        let next = self.next(cleared).await;
        let is_last = Outcome::NeedsReview(Review::LastUpdate);
        assert!(matches!(next, NextAttempt::YieldedSlot(_, Some(outcome)) if outcome == is_last));
        vec![
            self.overtaken().await,
            self.opened_behind(&second, 60, false).await,
            self.opened_behind(&first, 0, true).await,
            self.opened_behind(&unsettled, 60, false).await,
            cleared,
        ]
    }

    async fn by_hand(&self) -> Vec<Uuid> {
        let exhausted = self.exhausted().await;
        let held = self.throttle(&self.new_claim().await).await;
        let handed_over = "with held as (
                update submission
                set state = 'needs_review', reason_code = 'fate_unknown', reason = 'restored from a backup',
                    waiting_for = null, due_at = null, ended_at = greatest(now(), received_at)
                where job_id = $1
                returning job_id, customer_id, entries
            )
            insert into intervention (action, by, note, job_id, customer_id, entries)
            select 'review', 'ana', 'restored from a backup', job_id, customer_id, entries from held";
        sqlx::query(handed_over).bind(held).execute(&self.world.pool).await.expect("it is handed over");
        vec![
            self.resolved(Finding::Accepted).await,
            self.resolved(Finding::Rejected).await,
            self.resolved(Finding::NotApplied).await,
            self.replayed(exhausted).await,
            held,
        ]
    }
}

async fn audit(world: &World, job_id: Uuid) -> Vec<String> {
    let fingerprinter = Fingerprinter::parse(FINGERPRINT_KEY).expect("a key");
    let mut audit = Audit::begin(&world.pool, fingerprinter).await.expect("the database answers");
    let page = audit.examine(&[job_id]).await.expect("the database answers");
    page.findings.into_iter().map(|finding| format!("{}: {}", finding.place, finding.what)).collect()
}

async fn form(world: &World, job_id: Uuid) -> Form {
    let form = "select state, reason_code, evidence from submission where job_id = $1";
    sqlx::query_as(form).bind(job_id).fetch_one(&world.pool).await.expect("its row")
}

/// Of a job that waited, no entry tells that it was ended for another one or for its expiry; so none
/// tells it where it is made to wait again. The worker would end it once more.
fn is_told_by_no_entry(from: &Form, to: &Form, last_reason: Option<&str>) -> bool {
    let waited = match from.reason_code.as_deref() {
        Some("expired" | "newer_fate_unknown") => true,
        _ => matches!(from.state.as_str(), "waiting" | "superseded" | "duplicate"),
    };
    let reason = to.reason_code.as_deref();
    waited && to.state == "waiting" && (reason.is_none() || reason == last_reason)
}

/// Rewrites a row to look like another one, as one who knows the schema does: its times stay, its
/// reason names the job that it named before. `false` where the schema refuses it.
async fn forge(world: &World, job_id: Uuid, like: Uuid) -> bool {
    let forged = "update submission s
        set state = o.state, waiting_for = o.waiting_for, reason_code = o.reason_code, evidence = o.evidence,
            reason = regexp_replace(
                o.reason, '[0-9a-f]{8}-[0-9a-f-]{27}',
                coalesce(substring(s.reason from '[0-9a-f]{8}-[0-9a-f-]{27}'), gen_random_uuid()::text)
            ),
            due_at = o.due_at, claimed_by = o.claimed_by, claimed_until = o.claimed_until,
            ended_at = case when o.ended_at is not null then greatest(
                s.received_at,
                coalesce(s.ended_at, (select max(a.ended_at) from attempt a where a.job_id = s.job_id), now())
            ) end,
            sealed_payload =
                case when o.sealed_payload is not null then coalesce(s.sealed_payload, o.sealed_payload) end,
            provider_reference =
                case when o.provider_reference is not null then coalesce(s.provider_reference, 'R-1') end,
            verification_status = o.verification_status, verification_due_at = o.verification_due_at
        from submission o
        where s.job_id = $1 and o.job_id = $2";
    match sqlx::query(forged).bind(job_id).bind(like).execute(&world.pool).await {
        Ok(done) => done.rows_affected() == 1,
        Err(error) => {
            let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default();
            assert!(["23505", "23514"].contains(&&*code), "{error}");
            false
        }
    }
}

#[test]
fn no_row_is_rewritten_to_another_state_unnoticed() {
    world(async |world| {
        let maker = Maker { world: &world, journal: journal(&world, "one"), ahead: time::Duration::ZERO };
        let jobs = maker.make().await;
        let mut forms = HashMap::new();
        for job_id in &jobs {
            assert_eq!(audit(&world, *job_id).await, [""; 0], "{:?}", form(&world, *job_id).await);
            forms.insert(*job_id, form(&world, *job_id).await);
        }
        let mut models: HashMap<Form, Uuid> = HashMap::new();
        forms.iter().for_each(|(job_id, form)| _ = models.insert(form.clone(), *job_id));
        assert_eq!(models.len(), 32, "{:#?}", models.keys());

        world.is_tampered_with();
        let copied = "create table original as select * from submission";
        sqlx::query(copied).execute(&world.pool).await.expect("a copy");
        let restore = "update submission s
            set state = o.state, waiting_for = o.waiting_for, reason_code = o.reason_code, reason = o.reason,
                evidence = o.evidence, due_at = o.due_at, claimed_by = o.claimed_by,
                claimed_until = o.claimed_until, ended_at = o.ended_at, sealed_payload = o.sealed_payload,
                provider_reference = o.provider_reference, verification_status = o.verification_status,
                verification_due_at = o.verification_due_at
            from original o
            where s.job_id = $1 and o.job_id = $1";
        let last_reason =
            "select coalesce(detail, verdict) from attempt where job_id = $1 order by number desc";
        let (mut tried, mut unnoticed) = (0, Vec::new());
        for (job_id, from) in &forms {
            let last_reason: Option<Option<String>> = sqlx::query_scalar(last_reason)
                .bind(job_id)
                .fetch_optional(&world.pool)
                .await
                .expect("its row");
            let last_reason = last_reason.flatten();
            for (to, like) in models.iter().filter(|(to, _)| *to != from) {
                if !forge(&world, *job_id, *like).await {
                    continue;
                }
                tried += 1;
                let is_found = !audit(&world, *job_id).await.is_empty();
                if !is_found && !is_told_by_no_entry(from, to, last_reason.as_deref()) {
                    unnoticed.push((from, to));
                }
                sqlx::query(restore).bind(job_id).execute(&world.pool).await.expect("it is as before");
            }
            assert_eq!(audit(&world, *job_id).await, [""; 0], "it is as before");
        }
        assert!(tried > 600, "{tried}");
        assert!(unnoticed.is_empty(), "{unnoticed:#?}");
    });
}

/// Every statement that ends a job keeps its end behind its receipt, and every such history verifies.
#[test]
fn jobs_of_a_worker_whose_clock_is_ahead_end_after_they_came() {
    world(async |world| {
        let ahead = time::Duration::hours(1);
        let maker = Maker { world: &world, journal: journal(&world, "one"), ahead };
        for job_id in maker.make().await {
            assert_eq!(audit(&world, job_id).await, [""; 0], "{:?}", form(&world, job_id).await);
        }
        let ended = world.count("select count(*) from submission where ended_at is not null").await;
        let ended_ahead =
            "select count(*) from submission where ended_at > now() and ended_at >= received_at";
        assert_eq!(world.count(ended_ahead).await, ended);
        let refused = sqlx::query("update submission set ended_at = received_at - interval '1 us'")
            .execute(&world.pool)
            .await
            .expect_err("no job ends before it was received");
        assert_eq!(refused.as_database_error().and_then(|error| error.code()).as_deref(), Some("23514"));
    });
}

/// By whichever statement it ends; and what is told again from the books is what was told first. Of the one
/// that was changed behind the worker's back, the books alone tell.
#[test]
fn upstream_is_told_of_every_form_of_end() {
    world(async |world| {
        let publishes = "update event_publishing set turn_until = now()";
        sqlx::query(publishes).execute(&world.pool).await.expect("people's commands tell upstream too");
        let maker = Maker { world: &world, journal: journal(&world, "one"), ahead: time::Duration::ZERO };
        maker.make().await;
        let untold = "select count(*) from submission s
            where ended_at is not null and reason <> 'restored from a backup' and not exists (
                select from outcome_event e
                where e.job_id = s.job_id and e.kind = 'job.' || s.state and e.at = s.ended_at
                    and not exists (select from outcome_event later where later.job_id = e.job_id and later.id > e.id)
            )";
        assert_eq!(world.count(untold).await, 0);
        let first = world.count("select max(id) from outcome_event").await;
        let since = OffsetDateTime::now_utc() - time::Duration::DAY;
        let until = OffsetDateTime::now_utc() + time::Duration::DAY;
        let all = Selection { since, until, customer_id: None };
        let page = tell_page(&world.pool, all, None).await.expect("the database answers").expect("a page");
        let ended = world.count("select count(*) from submission where ended_at is not null").await;
        assert_eq!((page.jobs, page.events), (ended.unsigned_abs(), ended.unsigned_abs()));
        let end = tell_page(&world.pool, all, page.cursor).await.expect("the database answers");
        assert!(end.is_none());
        let others = sqlx::query_scalar::<_, i64>(
            "with told as (select id, to_jsonb(e) - 'id' - 'written_at' as said from outcome_event e)
            select count(*) from told copy
            where id > $1 and not exists (select from told where id <= $1 and said = copy.said)",
        );
        assert_eq!(others.bind(first).fetch_one(&world.pool).await.expect("the database answers"), 1);
    });
}

/// It was passed over while it was held, and not forgotten.
#[test]
fn an_expired_lease_that_somebody_held_is_rescued_once_it_is_let_go() {
    world(async |world| {
        let maker = Maker { world: &world, journal: journal(&world, "one"), ahead: time::Duration::ZERO };
        let held = maker.new_claim().await.job.id;
        let long_ago = "update submission set claimed_until = now() - interval '5 minutes' where job_id = $1";
        sqlx::query(long_ago).bind(held).execute(&world.pool).await.expect("it expires");
        let rescue = async || {
            maker.journal.next_due().await.expect("the database answers");
            maker.journal.rescue(10).await.expect("the database answers").len()
        };
        let mut lock = world.pool.begin().await.expect("a transaction");
        let locked = "select from submission where job_id = $1 for update";
        sqlx::query(locked).bind(held).execute(&mut *lock).await.expect("the lock");
        assert_eq!([rescue().await, rescue().await], [0, 0]);
        lock.rollback().await.expect("it ends");
        assert_eq!(rescue().await, 1);
    });
}
