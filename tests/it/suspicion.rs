//! What the statements load of a customer is all that the rule needs. Customers are made up, with every
//! kind of job, attempt and read, at times that meet and by clocks that differ, whether or not the
//! protocol leads there. What the journal, the desk and the views say of them is what
//! `domain::suspicion` says of all their rows.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use kyc_worker::desk::replay::{Intent, Refusal, ReplayRules, replay};
use kyc_worker::domain::budget::Budget;
use kyc_worker::domain::customer_event::CustomerEvent;
use kyc_worker::domain::precedence::{Asking, Decision, decide};
use kyc_worker::domain::state::{ConclusionKind, Evidence, Purpose, State, VerdictKind};
use kyc_worker::domain::suspicion::{
    Archivable, Customer, FATE_UNKNOWN, NOT_APPLIED, PastJob, PastRead, PastUpdate,
};
use kyc_worker::journal::EventNoted;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::harness::{World, world};
use crate::one_customer::journal;

const LIMIT: u32 = 4;

const CUSTOMERS: usize = 1_500;

/// As the journals of these tests have it.
const WINDOW: Duration = Duration::from_secs(60);

/// A made-up customer, and the job that is asked about.
struct Case {
    customer_id: Uuid,
    ours: Uuid,
    customer: Customer,
}

/// Makes customers up; the same ones for the same seed.
struct Maker {
    rng: StdRng,
    base: OffsetDateTime,
}

impl Maker {
    fn new(seed: u64) -> Self {
        let now = OffsetDateTime::now_utc() - Duration::from_secs(3_600);
        Self { rng: StdRng::seed_from_u64(seed), base: now.replace_nanosecond(0).expect("a time") }
    }

    fn id(&mut self) -> Uuid {
        Uuid::from_u128(self.rng.random())
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        *from.choose(&mut self.rng).expect("there is one")
    }

    /// A time in ten minutes, seldom one of its own.
    fn at(&mut self) -> OffsetDateTime {
        self.base + Duration::from_secs(5) * self.rng.random_range(0..120)
    }

    /// What another clock said then.
    fn by_another_clock(&mut self, at: OffsetDateTime) -> OffsetDateTime {
        at + time::Duration::seconds(self.pick(&[0, 0, 0, 0, -2, 2, -90, 90]))
    }

    fn update(&mut self, number: i32) -> PastUpdate {
        let begun_at = self.at();
        let verdict = self.pick(VerdictKind::ALL);
        let verdict =
            self.pick(&[VerdictKind::Accepted, VerdictKind::Unknown, VerdictKind::Unknown, verdict]);
        PastUpdate {
            number,
            verdict: Some(verdict),
            is_accepted_late: verdict == VerdictKind::Unknown && self.rng.random_ratio(1, 8),
            begun_at,
            signed_at: self.by_another_clock(begun_at),
            ended_at: Some(begun_at + Duration::from_secs(self.pick(&[0, 5, 15]))),
        }
    }

    fn job(&mut self, state: State, reason_code: Option<&str>, updates: i32) -> PastJob {
        PastJob {
            job_id: self.id(),
            state,
            reason_code: reason_code.map(str::to_owned),
            evidence: (state == State::Accepted).then(|| self.pick(Evidence::ALL)),
            requested_at: self.base - Duration::from_secs(60) * self.rng.random_range(0..3),
            received_at: self.base,
            content_hmac: Some(vec![self.rng.random_range(0..2); 32]),
            attempts: updates,
            updates: (1..=updates).map(|number| self.update(number)).collect(),
        }
    }

    /// A job that stands in no other's slot.
    fn other(&mut self) -> PastJob {
        let (state, reason_code) = self.pick(&[
            (State::Accepted, None),
            (State::Accepted, None),
            (State::Accepted, None),
            (State::NeedsReview, Some(FATE_UNKNOWN)),
            (State::NeedsReview, Some("last_update")),
            (State::Exhausted, Some(NOT_APPLIED)),
            (State::Exhausted, Some("attempts")),
            (State::Rejected, Some("field_refused")),
            (State::Superseded, None),
            (State::Duplicate, None),
            (State::Waiting, None),
        ]);
        // What had an effect, or may have, was tried.
        let tried = state == State::Accepted || reason_code == Some(FATE_UNKNOWN);
        let updates = self.rng.random_range(i32::from(tried)..4);
        self.job(state, reason_code, updates)
    }

    fn read(&mut self, jobs: &[PastJob], at: OffsetDateTime) -> PastRead {
        let job_ids: Vec<Uuid> = jobs.iter().map(|job| job.job_id).collect();
        let purpose = self.pick(Purpose::ALL);
        let is_read_back = purpose == Purpose::ReadBack;
        let told = match purpose {
            Purpose::ReadBack => self.rng.random_ratio(3, 4),
            // It says nothing of the customer's status.
            Purpose::Configuration => false,
            _ => true,
        };
        let status = self.pick(&["PROCESSING", "UNVERIFIED", "FAILED", "FAILED", "VERIFIED", "ON_HOLD"]);
        let read_at = self.by_another_clock(at);
        PastRead {
            job_id: self.pick(&job_ids),
            purpose,
            status: told.then(|| status.to_owned()),
            at,
            read_at: (purpose != Purpose::Webhook && self.rng.random_ratio(7, 8)).then_some(read_at),
            dated_at: (purpose != Purpose::Webhook).then_some(at),
            conclusion: is_read_back.then(|| self.pick(ConclusionKind::ALL)),
        }
    }

    /// A customer whose job of ours had one attempt at least.
    fn case(&mut self, state: State, reason_code: Option<&str>) -> Case {
        let updates = self.rng.random_range(1..3);
        let mut ours = self.job(state, reason_code, updates);
        for update in &mut ours.updates {
            update.is_accepted_late &= state == State::Accepted;
        }
        if state == State::Unknown
            && let Some(last) = ours.updates.last_mut()
        {
            last.verdict = Some(VerdictKind::Unknown);
        }
        let mut jobs = vec![ours];
        for _ in 0..self.rng.random_range(0..3) {
            jobs.push(self.other());
        }
        let mut at: Vec<OffsetDateTime> = (0..self.rng.random_range(0..6)).map(|_| self.at()).collect();
        at.sort();
        at.dedup();
        let reads = at.into_iter().map(|at| self.read(&jobs, at)).collect();
        let updates_elsewhere = self.pick(&[0, 0, 1]);
        Case {
            customer_id: self.id(),
            ours: jobs[0].job_id,
            customer: Customer { jobs, reads, updates_elsewhere, ..Customer::default() },
        }
    }
}

/// One column of the rows to insert.
fn column<'a, T, C>(rows: &'a [T], of: impl Fn(&'a T) -> C) -> Vec<C> {
    rows.iter().map(of).collect()
}

/// Writes customers down as if all that had happened.
async fn write(world: &World, cases: &[Case]) {
    world.is_tampered_with();
    let jobs: Vec<(&Case, &PastJob)> =
        cases.iter().flat_map(|case| case.customer.jobs.iter().map(move |job| (case, job))).collect();
    sqlx::query(
        "insert into submission (
            job_id, customer_id, state, reason_code, evidence, requested_at, received_at, content_hmac, attempts,
            ended_at, due_at, waiting_for, sealed_payload, verification_due_at
        )
        select
            new.*,
            case when state in ('waiting', 'unknown') then null else received_at end,
            case when state in ('waiting', 'unknown') then now() end,
            case when state = 'waiting' then 'retry' end,
            case when state in ('waiting', 'unknown', 'exhausted', 'needs_review') then '\\x00'::bytea end,
            case when state = 'accepted' then now() end
        from unnest(
            $1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::timestamptz[],
            $8::bytea[], $9::integer[]
        ) as new (
            job_id, customer_id, state, reason_code, evidence, requested_at, received_at, content_hmac, attempts
        )",
    )
    .bind(column(&jobs, |(_, job)| job.job_id))
    .bind(column(&jobs, |(case, _)| case.customer_id))
    .bind(column(&jobs, |(_, job)| job.state.name()))
    .bind(column(&jobs, |(_, job)| job.reason_code.as_deref()))
    .bind(column(&jobs, |(_, job)| job.evidence.map(Evidence::name)))
    .bind(column(&jobs, |(_, job)| job.requested_at))
    .bind(column(&jobs, |(_, job)| job.received_at))
    .bind(column(&jobs, |(_, job)| job.content_hmac.as_deref()))
    .bind(column(&jobs, |(_, job)| job.attempts))
    .execute(&world.pool)
    .await
    .expect("the jobs are written");
    let updates: Vec<(&PastJob, &PastUpdate)> =
        jobs.iter().flat_map(|(_, job)| job.updates.iter().map(move |update| (*job, update))).collect();
    sqlx::query(
        "insert into attempt (job_id, number, worker, begun_at, signed_at, ended_at, verdict, late_verdict)
        select job_id, number, 'one', begun_at, signed_at, ended_at, verdict, late_verdict
        from unnest(
            $1::uuid[], $2::integer[], $3::timestamptz[], $4::timestamptz[], $5::timestamptz[], $6::text[], $7::text[]
        ) as new (job_id, number, begun_at, signed_at, ended_at, verdict, late_verdict)",
    )
    .bind(column(&updates, |(job, _)| job.job_id))
    .bind(column(&updates, |(_, update)| update.number))
    .bind(column(&updates, |(_, update)| update.begun_at))
    .bind(column(&updates, |(_, update)| update.signed_at))
    .bind(column(&updates, |(_, update)| update.ended_at))
    .bind(column(&updates, |(_, update)| update.verdict.map(VerdictKind::name)))
    .bind(column(&updates, |(_, update)| update.is_accepted_late.then_some("accepted")))
    .execute(&world.pool)
    .await
    .expect("the attempts are written");
    let reads: Vec<(&Case, &PastRead)> =
        cases.iter().flat_map(|case| case.customer.reads.iter().map(move |read| (case, read))).collect();
    sqlx::query(
        "insert into observation (customer_id, job_id, purpose, status, error, at, read_at, dated_at, conclusion)
        select
            customer_id, job_id, purpose, status, case when status is null then 'read_failed' end, at, read_at,
            dated_at, conclusion
        from unnest(
            $1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::timestamptz[], $6::timestamptz[],
            $7::timestamptz[], $8::text[]
        ) as new (customer_id, job_id, purpose, status, at, read_at, dated_at, conclusion)",
    )
    .bind(column(&reads, |(case, _)| case.customer_id))
    .bind(column(&reads, |(_, read)| read.job_id))
    .bind(column(&reads, |(_, read)| read.purpose.name()))
    .bind(column(&reads, |(_, read)| read.status.as_deref()))
    .bind(column(&reads, |(_, read)| read.at))
    .bind(column(&reads, |(_, read)| read.read_at))
    .bind(column(&reads, |(_, read)| read.dated_at))
    .bind(column(&reads, |(_, read)| read.conclusion.map(ConclusionKind::name)))
    .execute(&world.pool)
    .await
    .expect("the reads are written");
    sqlx::query(
        "insert into customer (customer_id, updates_elsewhere)
        select * from unnest($1::uuid[], $2::integer[]) as new (customer_id, elsewhere) where elsewhere > 0",
    )
    .bind(column(cases, |case| case.customer_id))
    .bind(column(cases, |case| i32::try_from(case.customer.updates_elsewhere).expect("few")))
    .execute(&world.pool)
    .await
    .expect("the customers are written");
}

#[test]
fn a_read_claim_knows_what_the_whole_history_says() {
    world(async |world| {
        let mut maker = Maker::new(1);
        let cases: Vec<Case> = (0..CUSTOMERS).map(|_| maker.case(State::Unknown, None)).collect();
        write(&world, &cases).await;
        let claims = journal(&world, "one").claim_reads(CUSTOMERS).await.expect("the database answers");
        let claims: HashMap<Uuid, _> = claims.into_iter().map(|claim| (claim.job.id, claim)).collect();
        assert_eq!(claims.len(), CUSTOMERS);
        let mut only_suspects = 0;
        for Case { ours, customer, .. } in &cases {
            let claim = &claims[ours];
            let told = (claim.is_only_suspect, claim.word_before.as_deref());
            let word_before = customer.word_before(*ours, claim.attempt, WINDOW);
            assert_eq!(told, (customer.is_only_suspect(*ours, WINDOW), word_before), "{customer:#?}");
            let (confirmed, last) = customer.confirmations(*ours, claim.attempt);
            assert_eq!(claim.confirmed, confirmed, "{customer:#?}");
            let replica = last.map_or(Some(Duration::ZERO), |last| {
                Duration::try_from(OffsetDateTime::from(claim.claimed_at.wall) - last.read_at?).ok()
            });
            assert_eq!(claim.since_confirmation.replica, replica, "{customer:#?}");
            let dated_at = last.and_then(|last| last.dated_at).map(SystemTime::from);
            assert_eq!(claim.confirmation_dated_at, dated_at, "{customer:#?}");
            assert_eq!(claim.budget, customer.budget(claim.budget.limit), "{customer:#?}");
            only_suspects += usize::from(claim.is_only_suspect);
        }
        println!("{only_suspects} of {CUSTOMERS} are the only suspects");
        assert!((CUSTOMERS / 5..CUSTOMERS * 4 / 5).contains(&only_suspects), "{only_suspects}");
    });
}

/// What a job that asks for the slot is told.
fn decided(Case { ours, customer, .. }: &Case) -> Decision {
    let job = customer.job(*ours).expect("it is there");
    let asking = Asking {
        job_id: *ours,
        age_key: job.age_key(),
        content_hmac: job.content_hmac.as_deref(),
        is_resend: job.updates.iter().any(|update| update.verdict == Some(VerdictKind::Unknown)),
    };
    decide(&asking, customer, WINDOW, LIMIT)
}

#[test]
fn a_decision_on_the_slot_is_that_of_the_whole_history() {
    world(async |world| {
        let mut maker = Maker::new(2);
        let mut cases: Vec<Case> =
            (0..CUSTOMERS).map(|_| maker.case(State::Exhausted, Some("attempts"))).collect();
        for (nth, case) in cases.iter_mut().enumerate() {
            // Half of them sent nothing, and may be duplicates.
            for update in case.customer.jobs[0].updates.iter_mut().filter(|_| nth % 2 == 0) {
                update.verdict = Some(VerdictKind::NotSent);
            }
        }
        write(&world, &cases).await;
        let rules = ReplayRules { customer_updates: LIMIT, read_back_window: WINDOW };
        let mut told: HashMap<&str, usize> = HashMap::new();
        for case in &cases {
            let replayed =
                replay(&world.pool, case.ours, rules, Intent::DryRun, None).await.expect("it is told");
            let left = case.customer.budget(LIMIT).left();
            let (name, expected) = match decided(case) {
                _ if left == 0 => ("spent", Some(Refusal::BudgetSpent)),
                Decision::Go | Decision::Wait => ("may be sent", None),
                Decision::Superseded { by } => ("superseded", Some(Refusal::Superseded { by })),
                Decision::Duplicate { of } => ("duplicate", Some(Refusal::Duplicate { of })),
                Decision::NewerFateUnknown { newer } => {
                    ("newer of unknown outcome", Some(Refusal::NewerFateUnknown { newer }))
                }
                Decision::LastUpdate => ("last update", Some(Refusal::LastUpdate)),
            };
            assert_eq!(replayed.refusal, expected, "{:#?}", case.customer);
            *told.entry(name).or_default() += 1;
        }
        println!("{told:?}");
        assert!(told.len() == 6 && told.values().all(|count| *count > 10), "{told:?}");
    });
}

#[test]
fn an_event_ends_what_the_whole_history_lets_it_end() {
    world(async |world| {
        let mut maker = Maker::new(3);
        let cases: Vec<Case> = (0..CUSTOMERS).map(|_| maker.case(State::Accepted, None)).collect();
        write(&world, &cases).await;
        let journal = journal(&world, "one");
        let mut ends = 0;
        for Case { customer_id, customer, .. } in &cases {
            let accepted = customer.jobs.iter().filter(|job| job.state == State::Accepted);
            let newest = accepted.max_by_key(|job| job.age_key()).expect("ours is accepted").job_id;
            // No webhook that we have already.
            let at = maker.at() + Duration::from_secs(maker.pick(&[60, 600])) + Duration::from_micros(1);
            let event = CustomerEvent {
                customer_id: *customer_id,
                status: "VERIFIED".to_owned(),
                failure_reason: None,
                at,
            };
            let noted = journal.record_customer_event(&event).await.expect("it is written down");
            let (job, is_end) = match noted {
                EventNoted::Ended(job) => (job.id, true),
                EventNoted::Stored(job) => (job.id, false),
                noted => panic!("{noted:?} {event:?} {customer:#?}"),
            };
            let expected = (newest, customer.may_end(newest, at, WINDOW));
            assert_eq!((job, is_end), expected, "{event:?} {customer:#?}");
            ends += usize::from(is_end);
        }
        println!("{ends} of {CUSTOMERS} are ends");
        assert!((CUSTOMERS / 5..CUSTOMERS * 4 / 5).contains(&ends), "{ends}");
    });
}

#[test]
fn views_say_of_updates_what_the_rule_says() {
    world(async |world| {
        let mut maker = Maker::new(4);
        let mut cases: Vec<Case> = (0..CUSTOMERS).map(|_| maker.case(State::Unknown, None)).collect();
        cases.extend((0..CUSTOMERS).map(|_| maker.case(State::Accepted, None)));
        write(&world, &cases).await;
        let told: Vec<(Uuid, i32, String)> =
            sqlx::query_as("select job_id, attempt, fate from reconciliation")
                .fetch_all(&world.pool)
                .await
                .expect("the view");
        let mut told: HashMap<(Uuid, i32), String> =
            told.into_iter().map(|(job_id, number, fate)| ((job_id, number), fate)).collect();
        let budgets: Vec<(Uuid, i64, i64, i64)> =
            sqlx::query_as("select customer_id, spent, accepted_here, in_doubt_here from customer_budget")
                .fetch_all(&world.pool)
                .await
                .expect("the view");
        let budgets: HashMap<Uuid, _> = budgets
            .into_iter()
            .map(|(id, spent, accepted, unknown)| (id, (spent, accepted, unknown)))
            .collect();
        let updates = told.len();
        for Case { customer_id, customer, .. } in &cases {
            for job in &customer.jobs {
                for update in &job.updates {
                    let expected =
                        job.applied(update, &customer.reads).map(|applied| applied.name().to_owned());
                    let told = told.remove(&(job.job_id, update.number));
                    assert_eq!(told, expected, "{update:?} of {customer:#?}");
                }
            }
            let count = |verdict| {
                let updates = customer.jobs.iter().flat_map(|job| &job.updates);
                updates.filter(|update| update.verdict == Some(verdict)).count() as i64
            };
            let Budget { spent_here, spent_elsewhere, .. } = customer.budget(LIMIT);
            let spent = i64::from(spent_here + spent_elsewhere);
            let expected = (spent, count(VerdictKind::Accepted), count(VerdictKind::Unknown));
            let told = budgets.get(customer_id).copied().unwrap_or_default();
            assert_eq!(told, expected, "{customer:#?}");
        }
        assert!(told.is_empty(), "{told:?}");
        println!("{updates} updates of {} customers", cases.len());
    });
}

/// Makes a job come an hour later than the rest, with reads of its own.
fn later(maker: &mut Maker) -> (PastJob, Vec<PastRead>) {
    let hour = Duration::from_secs(3_600);
    let updates = maker.rng.random_range(1..3);
    let mut job = maker.job(State::Exhausted, Some("attempts"), updates);
    for update in &mut job.updates {
        update.begun_at += hour;
        update.signed_at += hour;
        update.ended_at = update.ended_at.map(|ended_at| ended_at + hour);
    }
    let mut reads: Vec<PastRead> = Vec::new();
    for _ in 0..maker.rng.random_range(0..4) {
        let at = maker.at() + hour;
        reads.push(maker.read(std::slice::from_ref(&job), at));
    }
    (job, reads)
}

#[test]
fn what_is_kept_of_archived_jobs_decides_as_their_rows_did() {
    let mut maker = Maker::new(8);
    let (mut archived, mut superseded, mut words) = (0, 0, 0);
    for _ in 0..CUSTOMERS * 20 {
        let ends = [(State::Accepted, None), (State::Exhausted, Some("attempts")), (State::Rejected, None)];
        let (state, reason_code) = maker.pick(&ends);
        let here = maker.case(state, reason_code).customer;
        let Some(kept) = here.archivable(WINDOW) else { continue };
        archived += 1;
        let (job, reads) = later(&mut maker);
        let (ours, content) = (job.job_id, job.content_hmac.clone());
        let whole = Customer {
            jobs: here.jobs.iter().cloned().chain([job.clone()]).collect(),
            reads: here.reads.iter().cloned().chain(reads.clone()).collect(),
            ..here.clone()
        };
        let word = kept.word.map(|word| {
            PastRead::of_archived(word.status.expect("a word"), word.at, word.read_at, word.dated_at)
        });
        let left = Customer {
            jobs: vec![job.clone()],
            reads: word.into_iter().chain(reads).collect(),
            updates_elsewhere: here.updates_elsewhere,
            archived: kept.jobs,
        };
        assert_eq!(left.budget(LIMIT), whole.budget(LIMIT), "{whole:#?}");
        for is_resend in [false, true] {
            let content_hmac = content.as_deref();
            let asking = Asking { job_id: ours, age_key: job.age_key(), content_hmac, is_resend };
            let decision = decide(&asking, &whole, WINDOW, LIMIT);
            assert_eq!(decide(&asking, &left, WINDOW, LIMIT), decision, "{whole:#?}");
            superseded += usize::from(matches!(decision, Decision::Superseded { .. }));
        }
        assert_eq!(left.is_only_suspect(ours, WINDOW), whole.is_only_suspect(ours, WINDOW), "{whole:#?}");
        for update in &job.updates {
            let word = whole.word_before(ours, update.number, WINDOW);
            assert_eq!(left.word_before(ours, update.number, WINDOW), word, "{whole:#?}");
            words += usize::from(word.is_some());
        }
        for seconds in [0, 30, 60, 600] {
            let at = job.updates[0].begun_at + Duration::from_secs(seconds);
            assert_eq!(left.may_end(ours, at, WINDOW), whole.may_end(ours, at, WINDOW), "{whole:#?}");
        }
        let (next, next_whole) = (left.archivable(WINDOW), whole.archivable(WINDOW));
        let told = |kept: &Option<Archivable>| {
            let word = |kept: &Archivable| kept.word.as_ref().map(|word| (word.at, word.status.clone()));
            kept.as_ref().map(|kept| (kept.jobs.clone(), word(kept)))
        };
        assert_eq!(told(&next), told(&next_whole), "{whole:#?}");
    }
    println!("{archived} customers archived, {superseded} jobs superseded, {words} words before");
    assert!(archived > 1_000 && superseded > 100 && words > 100, "{archived} {superseded} {words}");
}
