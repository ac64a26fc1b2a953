//! A customer's slot is taken; with it, their other jobs are read, and it is used or given up. An attempt
//! that begins gives a [`Claim`], and nothing else does.

use std::ops::Deref;
use std::time::Duration;

use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

use crate::clock::Moment;
use crate::domain::job::JobRef;
use crate::domain::outcome::{History, Outcome, Review};
use crate::domain::precedence::{Asking, Decision, decide};
use crate::domain::state::{LinkField, State, VerdictKind, WaitingFor};
use crate::domain::suspicion::Customer;
use crate::domain::trace_context::TraceContext;
use crate::journal::history::chain::{Head, Subject};
use crate::journal::rows::{AtEnd, Limits, NewRow, column};
use crate::journal::statements::customers::read_customers;
use crate::journal::statements::move_on::{Destination, LockedRow, Move, Position, Why, move_locked};
use crate::journal::statements::wake::NEAR_WAIT_MAX_SECONDS;

/// The reason of a job whose payload no key opens.
pub(crate) const PAYLOAD_UNREADABLE: &str = "payload_unreadable";

/// A job without a key for its payload waits so long at least, and at most.
const KEY_WAIT_MIN: Duration = Duration::from_secs(60);
const KEY_WAIT_MAX: Duration = Duration::from_secs(3_600);

/// How many older jobs of a customer end at once, because a newer one was accepted. Whatever is left
/// is ended by the next claim.
const SUPERSEDED_AT_ONCE: i64 = 100;

/// A customer's slot, taken for a job: what its next attempt begins with.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    pub job: JobRef,
    pub customer_id: Uuid,
    /// Fences out whoever held an older one.
    pub token: i64,
    pub attempt: i32,
    pub history: History,
    /// No later than that, by this machine's clock, the job was last refused as somebody who may not ask.
    pub refused: Option<Instant>,
    /// When this attempt's send window began.
    pub t0: Moment,
    /// When it began, by the database's clock.
    pub begun_at: OffsetDateTime,
    /// Where the job's chain stood then.
    pub head: Head,
}

/// The right to make one attempt now. Only the commit that begins the attempt makes one.
#[derive(Clone, Copy, Debug)]
pub struct Claim(Slot);

impl Deref for Claim {
    type Target = Slot;

    fn deref(&self) -> &Slot {
        &self.0
    }
}

impl Claim {
    /// The claim of an attempt that an earlier commit began, whose answer was lost.
    pub(super) fn found(slot: Slot) -> Self {
        Self(slot)
    }

    /// The same, after an entry was added to the job's history.
    pub(crate) fn at(self, head: Head) -> Self {
        Self(Slot { head, ..self.0 })
    }

    pub(crate) fn subject(&self) -> Subject {
        Subject { job_id: self.job.id, customer_id: self.customer_id }
    }

    pub(crate) fn position(&self) -> Position {
        Position {
            job_id: self.job.id,
            customer_id: self.customer_id,
            state: State::Submitting,
            token: self.token,
            head: self.head,
        }
    }
}

/// A job that waited, and has its customer's slot.
pub(crate) struct TakenSlot {
    pub job_id: Uuid,
    pub customer_id: Uuid,
    pub token: i64,
    pub attempt: i32,
    pub retries: i32,
    pub sealed: Vec<u8>,
    pub requested_at: OffsetDateTime,
    pub received_at: OffsetDateTime,
    pub content_hmac: Option<Vec<u8>>,
    pub correlation_id: Option<String>,
    pub trace: Option<TraceContext>,
    pub misconfigured: i64,
    /// How many seconds before `begun_at` the last of those was recorded.
    pub refused_before: Option<f64>,
    pub unknown: i64,
    pub is_expired: bool,
    pub expiring_link: Option<LinkField>,
    pub begun_at: OffsetDateTime,
    pub chain: Option<[u8; 32]>,
    pub entries: i32,
}

impl TakenSlot {
    pub fn job(&self) -> JobRef {
        JobRef { id: self.job_id, received_at: self.received_at, trace: self.trace }
    }

    pub fn head(&self) -> Head {
        Head::of_row(self.chain, self.entries)
    }

    pub fn slot(&self, t0: Moment, is_probe: bool) -> Slot {
        // By now the attempt has begun, so that this is rather too late than too early.
        let refused = self.refused_before.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let refused = refused.and_then(|before| Instant::now().checked_sub(before));
        Slot {
            job: self.job(),
            customer_id: self.customer_id,
            token: self.token,
            attempt: self.attempt,
            history: History {
                retries: self.retries.unsigned_abs(),
                misconfigured: u32::try_from(self.misconfigured).unwrap_or(u32::MAX),
                unknown: u32::try_from(self.unknown).unwrap_or(u32::MAX),
                is_probe,
                others_are_taken: false,
            },
            refused,
            t0,
            begun_at: self.begun_at,
            head: self.head(),
        }
    }

    pub fn candidate(&self) -> Candidate {
        Candidate {
            position: Position {
                job_id: self.job_id,
                customer_id: self.customer_id,
                state: State::Submitting,
                token: self.token,
                head: self.head(),
            },
            requested_at: self.requested_at,
            received_at: self.received_at,
            content_hmac: self.content_hmac.clone(),
            is_resend: self.unknown > 0,
        }
    }

    /// How long it waits for a key: as long again as it has waited.
    pub fn key_wait(&self) -> Duration {
        let waited = Duration::try_from(self.begun_at - self.received_at).unwrap_or_default();
        waited.clamp(KEY_WAIT_MIN, KEY_WAIT_MAX)
    }
}

/// A new job's slot: the database gives the first claim this token, and the first attempt this number.
impl NewRow {
    pub(crate) fn slot(&self, t0: Moment, begun_at: OffsetDateTime) -> Slot {
        let Position { job_id, customer_id, token, head, .. } = self.position();
        let history = History::default();
        Slot {
            job: JobRef { id: job_id, received_at: self.received_at, trace: self.trace },
            customer_id,
            token,
            attempt: 1,
            history,
            refused: None,
            t0,
            begun_at,
            head,
        }
    }

    pub(crate) fn candidate(&self) -> Candidate {
        Candidate {
            position: self.position(),
            requested_at: self.requested_at,
            received_at: self.received_at,
            content_hmac: Some(self.content_hmac.to_vec()),
            is_resend: false,
        }
    }

    fn position(&self) -> Position {
        Position {
            job_id: self.job_id,
            customer_id: self.customer_id,
            state: State::Submitting,
            token: 1,
            head: Head::default(),
        }
    }
}

/// A job that wants its customer's slot, or has it, before it may use it.
pub(crate) struct Candidate {
    /// Where its row stands once it has the slot.
    position: Position,
    requested_at: OffsetDateTime,
    received_at: OffsetDateTime,
    content_hmac: Option<Vec<u8>>,
    is_resend: bool,
}

/// Reads what each candidate's customer had, now that the slots are theirs, and decides; in the
/// candidates' order.
pub(crate) async fn decide_all(
    tx: &mut PgConnection,
    candidates: &[Candidate],
    limits: &Limits,
) -> sqlx::Result<Vec<Decision>> {
    // What is sent for the first time spends whatever is left.
    let asked = candidates.iter().map(|job| {
        let Position { job_id, customer_id, .. } = job.position;
        (customer_id, (!job.is_resend).then_some(job_id))
    });
    let customers = read_customers(tx, asked).await?;
    let unknown = Customer::default();
    let decision = |candidate: &Candidate| {
        let customer = customers.get(&candidate.position.customer_id).unwrap_or(&unknown);
        decide(&candidate.asking(), customer, limits.read_back_window, limits.customer_updates)
    };
    Ok(candidates.iter().map(decision).collect())
}

impl Candidate {
    fn asking(&self) -> Asking<'_> {
        Asking {
            job_id: self.position.job_id,
            age_key: (self.requested_at, self.received_at, self.position.job_id),
            content_hmac: self.content_hmac.as_deref(),
            is_resend: self.is_resend,
        }
    }

    /// Gives the slot up as the decision says. `None` when the job waits. `head` is where its history
    /// stands, if an entry was added.
    pub async fn yield_slot(
        &self,
        tx: &mut PgConnection,
        at_end: AtEnd,
        decision: Decision,
        head: Option<Head>,
    ) -> sqlx::Result<Option<Outcome>> {
        let outcome = match decision {
            Decision::Superseded { by } => Outcome::Superseded { by },
            Decision::Duplicate { of } => Outcome::Duplicate { of },
            Decision::NewerFateUnknown { newer } => Outcome::NeedsReview(Review::NewerFateUnknown { newer }),
            Decision::LastUpdate => Outcome::NeedsReview(Review::LastUpdate),
            Decision::Wait | Decision::Go => {
                // Whoever releases or ends the newer one wakes this one; its alarm is for what nobody ends.
                let due_in = Duration::from_secs_f64(NEAR_WAIT_MAX_SECONDS);
                let wait = Destination::Wait { waiting_for: WaitingFor::Customer, due_in, why: None };
                self.give_up_slot(tx, at_end, &wait, head).await?;
                return Ok(None);
            }
        };
        self.give_up_slot(tx, at_end, &Destination::End(outcome.ended()), head).await?;
        Ok(Some(outcome))
    }

    /// Ends the job without an attempt.
    pub async fn end(&self, tx: &mut PgConnection, at_end: AtEnd, outcome: &Outcome) -> sqlx::Result<()> {
        self.give_up_slot(tx, at_end, &Destination::End(outcome.ended()), None).await
    }

    /// Gives the slot up until a key may be there. Another replica may have the key already.
    pub async fn wait_for_key(
        &self,
        tx: &mut PgConnection,
        at_end: AtEnd,
        due_in: Duration,
    ) -> sqlx::Result<()> {
        let text = "no key opens its payload; add the key that it was sealed with to PAYLOAD_KEY".into();
        let why = Some(Why { code: PAYLOAD_UNREADABLE, text });
        let wait = Destination::Wait { waiting_for: WaitingFor::Retry, due_in, why };
        self.give_up_slot(tx, at_end, &wait, None).await
    }

    async fn give_up_slot(
        &self,
        tx: &mut PgConnection,
        at_end: AtEnd,
        to: &Destination,
        head: Option<Head>,
    ) -> sqlx::Result<()> {
        let moved = Move { head, ..Move::new(self.position, to) };
        move_locked(tx, at_end, &[moved]).await
    }

    /// Ends those that wait and are older than this one: a newer one was accepted, which nothing
    /// takes back, so none of them needs the slot for that. Returns which.
    pub async fn supersede_older(
        &self,
        tx: &mut PgConnection,
        at_end: AtEnd,
        by: Uuid,
    ) -> sqlx::Result<Vec<JobRef>> {
        let older = sqlx::query_as!(
            LockedRow,
            r#"-- lock_older
            select
                job_id, customer_id as "customer_id!", state as "state: State", claim_token as token,
                chain as "chain: [u8; 32]", entries, received_at, traceparent as "trace: TraceContext"
            from submission
            where customer_id = $1 and state = 'waiting'
                and (requested_at, received_at, job_id) < ($2, $3, $4)
            order by requested_at desc, received_at desc, job_id desc
            limit $5
            for update skip locked"#,
            self.position.customer_id,
            self.requested_at,
            self.received_at,
            self.position.job_id,
            SUPERSEDED_AT_ONCE,
        )
        .fetch_all(&mut *tx)
        .await?;
        let to = Destination::End(Outcome::Superseded { by }.ended());
        let moves = older.iter().map(|row| Move::new(row.position(), &to));
        move_locked(tx, at_end, &moves.collect::<Vec<_>>()).await?;
        Ok(older.iter().map(LockedRow::job).collect())
    }
}

/// Writes down that attempts begin. Their first bytes may leave once this is committed.
pub(crate) async fn begin_attempts(
    tx: &mut PgConnection,
    worker: &str,
    slots: Vec<Slot>,
) -> sqlx::Result<Vec<Claim>> {
    if slots.is_empty() {
        return Ok(Vec::new());
    }
    let all: Vec<&Slot> = slots.iter().collect();
    sqlx::query!(
        "-- begin_attempts
        insert into attempt (job_id, number, worker, signed_at)
        select b.job_id, b.number, $4, b.signed_at
        from unnest($1::uuid[], $2::integer[], $3::timestamptz[]) as b (job_id, number, signed_at)",
        &column(&all, |slot| slot.job.id),
        &column(&all, |slot| slot.attempt),
        &column(&all, |slot| OffsetDateTime::from(slot.t0.wall)),
        worker,
    )
    .execute(tx)
    .await?;
    Ok(slots.into_iter().map(Claim).collect())
}

/// Writes claims again that a failover lost, with their attempts: where a job stands as it did before. Others
/// are left as they are: one of unknown outcome, too, as what cleared it is lost.
pub(crate) async fn restore_claims(
    tx: &mut PgConnection,
    worker: &str,
    claims: &[&Claim],
    lease: Duration,
) -> sqlx::Result<()> {
    sqlx::query!(
        "-- restore_claims
        with lost as (
            select *
            from unnest(
                $1::uuid[], $2::integer[], $3::bigint[], $4::timestamptz[], $5::timestamptz[], $6::float8[]
            ) as l (job_id, number, token, begun_at, signed_at, seconds_left)
        ), restored as (
            update submission s
            set state = 'submitting', waiting_for = null, due_at = null, attempts = l.number,
                claim_token = l.token, claimed_by = $7,
                claimed_until = now() + make_interval(secs => l.seconds_left)
            from lost l
            where s.job_id = l.job_id and s.state = 'waiting' and s.attempts = l.number - 1
                and s.claim_token < l.token
                and not exists (select from attempt a where a.job_id = s.job_id and a.ended_at is null)
            returning l.job_id, l.number, l.begun_at, l.signed_at
        )
        insert into attempt (job_id, number, worker, begun_at, signed_at)
        select job_id, number, $7, begun_at, signed_at from restored",
        &column(claims, |claim| claim.job.id),
        &column(claims, |claim| claim.attempt),
        &column(claims, |claim| claim.token),
        &column(claims, |claim| claim.begun_at),
        &column(claims, |claim| OffsetDateTime::from(claim.t0.wall)),
        &column(claims, |claim| lease.saturating_sub(claim.t0.elapsed()).as_secs_f64()),
        worker,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Takes the slots of up to `limit` jobs that have been due the longest, since `due_from` at most, of
/// customers who are free. Of a customer's jobs the newest goes first.
pub(crate) async fn take_slots(
    tx: &mut PgConnection,
    worker: &str,
    limits: &Limits,
    unfit: &[VerdictKind],
    limit: usize,
    due_from: Option<OffsetDateTime>,
) -> sqlx::Result<Vec<TakenSlot>> {
    let unfit: Vec<String> = unfit.iter().map(ToString::to_string).collect();
    // The slots are taken in the customers' order, as every batch takes them: two that
    // took them in different orders would wait for each other. `offset 0` and `limit 1` keep it a
    // look-up for each job: Postgres would rather join them with all that wait.
    sqlx::query_as!(
        TakenSlot,
        r#"-- take_slots
        with due as (
            select s.job_id, s.customer_id
            from submission s
            where s.state = 'waiting' and s.due_at <= now()
                and s.due_at >= coalesce($5::timestamptz, '-infinity')
                and not exists (
                    select from submission holder
                    where holder.customer_id = s.customer_id
                        and holder.state in ('submitting', 'unknown')
                    offset 0
                )
                and (
                    select newer.job_id from submission newer
                    where newer.customer_id = s.customer_id and newer.state = 'waiting'
                        and (newer.requested_at, newer.received_at, newer.job_id)
                            > (s.requested_at, s.received_at, s.job_id)
                    order by newer.requested_at desc, newer.received_at desc, newer.job_id desc
                    limit 1
                ) is null
                -- None begins beside an open one, whatever was done to the row by hand.
                and not exists (
                    select from attempt open_one where open_one.job_id = s.job_id and open_one.ended_at is null
                    offset 0
                )
                and not (
                    cardinality($3::text[]) > 0 and exists (
                        select from attempt a where a.job_id = s.job_id and a.verdict = any($3)
                    )
                )
            order by s.due_at
            limit $4
            for update of s skip locked
        ), ordered as (
            select job_id from due order by customer_id
        )
        update submission s
        set state = 'submitting', waiting_for = null, due_at = null,
            reason_code = null, reason = null,
            attempts = s.attempts + 1, claim_token = s.claim_token + 1,
            claimed_by = $1, claimed_until = now() + make_interval(secs => $2)
        from ordered
        where s.job_id = ordered.job_id
        returning
            s.job_id, s.customer_id as "customer_id!", s.claim_token as token, s.attempts as attempt,
            s.retries, s.sealed_payload as "sealed!", s.requested_at as "requested_at!", s.received_at,
            s.content_hmac, s.correlation_id, s.traceparent as "trace: TraceContext",
            coalesce(s.expires_at <= now(), false) as "is_expired!",
            s.expiring_link as "expiring_link: LinkField",
            now() as "begun_at!", s.chain as "chain: [u8; 32]", s.entries,
            (
                select count(*) from attempt a
                where a.job_id = s.job_id and a.verdict = 'misconfigured'
            ) as "misconfigured!",
            extract(epoch from now() - (
                select max(a.ended_at) from attempt a
                where a.job_id = s.job_id and a.verdict = 'misconfigured'
            ))::float8 as refused_before,
            (
                select count(*) from attempt a
                where a.job_id = s.job_id and a.verdict = 'unknown'
            ) as "unknown!""#,
        worker,
        limits.claim_lease.as_secs_f64(),
        &unfit,
        i64::try_from(limit).unwrap_or(i64::MAX),
        due_from,
    )
    .fetch_all(tx)
    .await
}

/// A job whose attempt an earlier commit began.
pub(crate) struct Begun {
    pub claim: Claim,
    pub sealed: Vec<u8>,
    pub correlation_id: Option<String>,
}

/// What an earlier commit of `worker` with this `t0` has begun.
pub(crate) async fn find_begun(
    executor: impl PgExecutor<'_>,
    worker: &str,
    t0: Moment,
    is_probe: bool,
) -> sqlx::Result<Vec<Begun>> {
    let begun = sqlx::query_as!(
        TakenSlot,
        r#"-- find_begun
        select
            s.job_id, s.customer_id as "customer_id!", s.claim_token as token, s.attempts as attempt,
            s.retries, s.sealed_payload as "sealed!", s.requested_at as "requested_at!", s.received_at,
            s.content_hmac, s.correlation_id, s.traceparent as "trace: TraceContext", a.begun_at,
            s.chain as "chain: [u8; 32]", s.entries,
            (
                select count(*) from attempt a
                where a.job_id = s.job_id and a.verdict = 'misconfigured'
            ) as "misconfigured!",
            extract(epoch from a.begun_at - (
                select max(a.ended_at) from attempt a
                where a.job_id = s.job_id and a.verdict = 'misconfigured'
            ))::float8 as refused_before,
            (
                select count(*) from attempt a
                where a.job_id = s.job_id and a.verdict = 'unknown'
            ) as "unknown!",
            false as "is_expired!", s.expiring_link as "expiring_link: LinkField"
        from submission s
        join attempt a on a.job_id = s.job_id and a.number = s.attempts
        where s.state = 'submitting' and s.claimed_by = $1
            and a.worker = $1 and a.signed_at = $2 and a.ended_at is null"#,
        worker,
        OffsetDateTime::from(t0.wall),
    )
    .fetch_all(executor)
    .await?;
    let begun = begun.into_iter().map(|slot| Begun {
        claim: Claim(slot.slot(t0, is_probe)),
        sealed: slot.sealed,
        correlation_id: slot.correlation_id,
    });
    Ok(begun.collect())
}
