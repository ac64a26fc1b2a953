//! A submission's row moves on: to its end, to a wait, or to be read back. One statement does it,
//! whoever decides so; it closes the attempt that led there, and wakes the customer's next.

use std::borrow::Cow;
use std::collections::HashSet;
use std::time::Duration;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::domain::job::JobRef;
use crate::domain::outcome::Ended;
use crate::domain::state::{Evidence, State, WaitingFor};
use crate::domain::trace_context::TraceContext;
use crate::domain::verdict::Acceptance;
use crate::journal::history::chain::{Entry, Head};
use crate::journal::rows::{AtEnd, column};
use crate::journal::statements::events::tell_ends;
use crate::journal::statements::wake::wake_newest;

/// Where a submission's row stands, as its claim or its lock says. A row that stands elsewhere by now is
/// not moved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    pub job_id: Uuid,
    pub customer_id: Uuid,
    pub state: State,
    pub token: i64,
    pub head: Head,
}

/// A submission's row as a statement has locked it.
pub(crate) struct LockedRow {
    pub job_id: Uuid,
    pub customer_id: Uuid,
    pub state: State,
    pub token: i64,
    pub chain: Option<[u8; 32]>,
    pub entries: i32,
    pub received_at: OffsetDateTime,
    pub trace: Option<TraceContext>,
}

impl LockedRow {
    pub fn job(&self) -> JobRef {
        JobRef { id: self.job_id, received_at: self.received_at, trace: self.trace }
    }

    pub fn position(&self) -> Position {
        let head = Head::of_row(self.chain, self.entries);
        Position {
            job_id: self.job_id,
            customer_id: self.customer_id,
            state: self.state,
            token: self.token,
            head,
        }
    }
}

/// Where it moves to.
#[derive(Clone, Debug)]
pub(crate) enum Destination {
    End(Ended),
    Wait {
        waiting_for: WaitingFor,
        due_in: Duration,
        why: Option<Why>,
    },
    /// Its outcome is unknown: the customer is read.
    Read {
        due_in: Duration,
        why: Option<Why>,
    },
}

/// Why it waits. Without one, the row keeps what it says.
#[derive(Clone, Debug)]
pub(crate) struct Why {
    pub code: &'static str,
    pub text: Cow<'static, str>,
}

/// An attempt's result, as its row has it.
#[derive(Clone, Debug)]
pub(crate) struct ClosedAttempt {
    pub number: i32,
    pub verdict: &'static str,
    pub detail: Option<&'static str>,
    pub http_status: Option<i32>,
    pub provider_message: Option<String>,
    pub error: Option<&'static str>,
    pub duration_ms: Option<i32>,
    /// What was checked before its send. It is no part of the history's entry.
    pub checked: Option<&'static str>,
}

impl ClosedAttempt {
    /// The same, as an entry of the history. `reference` is the provider's, of an acceptance.
    pub fn entry<'a>(
        &'a self,
        worker: &'a str,
        [begun_at, signed_at, ended_at]: [OffsetDateTime; 3],
        reference: Option<&'a str>,
    ) -> Entry<'a> {
        Entry::Attempt {
            number: self.number,
            worker,
            begun_at,
            signed_at,
            ended_at,
            verdict: self.verdict,
            detail: self.detail.or(reference),
            http_status: self.http_status,
            provider_message: self.provider_message.as_deref(),
            error: self.error,
            duration_ms: self.duration_ms,
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Move<'a> {
    pub from: Position,
    pub to: &'a Destination,
    /// The open attempt that it closes. A row that leaves `submitting` without one has not begun it.
    pub attempt: Option<&'a ClosedAttempt>,
    /// Whether that attempt counts against `RETRY_MAX_ATTEMPTS`.
    pub is_retry: bool,
    /// Where the history stands after it, if it adds an entry.
    pub head: Option<Head>,
    /// When it was made, if it is made again; or else now.
    pub at: Option<OffsetDateTime>,
}

impl<'a> Move<'a> {
    pub fn new(from: Position, to: &'a Destination) -> Self {
        Self { from, to, attempt: None, is_retry: false, head: None, at: None }
    }

    fn gives_up_attempt(&self) -> bool {
        self.from.state == State::Submitting && self.attempt.is_none()
    }
}

impl Destination {
    fn state(&self) -> State {
        match self {
            Self::End(ended) => ended.state,
            Self::Wait { .. } => State::Waiting,
            Self::Read { .. } => State::Unknown,
        }
    }

    pub fn ended(&self) -> Option<&Ended> {
        match self {
            Self::End(ended) => Some(ended),
            Self::Wait { .. } | Self::Read { .. } => None,
        }
    }

    pub fn acceptance(&self) -> Option<&Acceptance> {
        self.ended().and_then(|ended| ended.acceptance.as_ref())
    }

    fn waiting_for(&self) -> Option<WaitingFor> {
        match self {
            Self::Wait { waiting_for, .. } => Some(*waiting_for),
            Self::End(_) | Self::Read { .. } => None,
        }
    }

    fn due_in(&self) -> Option<Duration> {
        match self {
            Self::Wait { due_in, .. } | Self::Read { due_in, .. } => Some(*due_in),
            Self::End(_) => None,
        }
    }

    fn why(&self) -> Option<&Why> {
        match self {
            Self::Wait { why, .. } | Self::Read { why, .. } => why.as_ref(),
            Self::End(_) => None,
        }
    }

    fn reason_code(&self) -> Option<&'static str> {
        self.ended().and_then(|ended| ended.reason_code).or(self.why().map(|why| why.code))
    }

    fn reason(&self) -> Option<&str> {
        self.ended().map(|ended| &*ended.reason).or(self.why().map(|why| &*why.text))
    }
}

/// Moves rows on, and returns which. Left out are those that stand elsewhere by now: their claim is gone,
/// or an entry was added to their history. Each move raises the token, so that a claim moves its row once.
pub(crate) async fn move_on(
    tx: &mut PgConnection,
    at_end: AtEnd,
    moves: &[Move<'_>],
) -> sqlx::Result<HashSet<(Uuid, i64)>> {
    if moves.is_empty() {
        return Ok(HashSet::new());
    }
    let all: Vec<&Move<'_>> = moves.iter().collect();
    let moved = sqlx::query!(
        r#"-- move_on
        with wanted as (
            select *
            from unnest(
                $1::uuid[], $2::text[], $3::bigint[], $4::integer[],
                $5::text[], $6::text[], $7::float8[], $8::boolean[], $9::boolean[],
                $10::text[], $11::text[], $12::boolean[],
                $13::text[], $14::text[], $15::text[],
                $16::integer[], $17::bytea[],
                $18::integer[], $19::text[], $20::text[], $21::integer[], $22::text[], $23::text[], $24::integer[],
                $26::text[], $27::timestamptz[]
            ) as w (
                job_id, state_before, token, entries_before,
                state, waiting_for, due_in, gives_up_attempt, is_retry,
                reason_code, reason, keeps_payload,
                evidence, provider_reference, verification_status,
                entry, chain,
                number, verdict, detail, http_status, provider_message, error, duration_ms, checked, at
            )
        ), moved as (
            update submission s
            set state = w.state, waiting_for = w.waiting_for, due_at = now() + make_interval(secs => w.due_in),
                ended_at = case when w.due_in is null then greatest(coalesce(w.at, now()), s.received_at) end,
                claimed_until = null, claim_token = s.claim_token + 1,
                attempts = s.attempts - w.gives_up_attempt::integer, retries = s.retries + w.is_retry::integer,
                reason_code = case when w.reason is null then s.reason_code else w.reason_code end,
                reason = coalesce(w.reason, s.reason),
                sealed_payload = case when w.keeps_payload then s.sealed_payload end,
                evidence = w.evidence, provider_reference = w.provider_reference,
                verification_status = w.verification_status,
                verification_due_at =
                    case when w.state = 'accepted' then now() + make_interval(secs => $25) end,
                entries = coalesce(w.entry, s.entries), chain = coalesce(w.chain, s.chain)
            from wanted w
            where s.job_id = w.job_id and s.state = w.state_before and s.claim_token = w.token
                and s.entries = w.entries_before
            returning
                s.job_id, s.customer_id, w.token, w.state, w.entry, w.number, w.verdict, w.detail, w.http_status,
                w.provider_message, w.error, w.duration_ms, w.checked, w.at
        ), closed as (
            update attempt a
            set ended_at = coalesce(m.at, now()), entry = m.entry, verdict = m.verdict, detail = m.detail,
                http_status = m.http_status, provider_message = m.provider_message, error = m.error,
                duration_ms = m.duration_ms, checked = m.checked
            from moved m
            where a.job_id = m.job_id and a.number = m.number and a.ended_at is null
        )
        select
            job_id, customer_id as "customer_id!", token as "token!",
            -- In the order of the index that is meant: over empty tables any would do, for as long as
            -- the connection lives.
            state <> 'unknown' and (
                select w.job_id from submission w
                where w.customer_id = moved.customer_id and w.state = 'waiting'
                order by w.requested_at desc, w.received_at desc, w.job_id desc
                limit 1
            ) is not null as "has_waiters!"
        from moved"#,
        &column(&all, |m| m.from.job_id),
        &column(&all, |m| m.from.state.name()) as &[&str],
        &column(&all, |m| m.from.token),
        &column(&all, |m| m.from.head.entries),
        &column(&all, |m| m.to.state().name()) as &[&str],
        &column(&all, |m| m.to.waiting_for().map(WaitingFor::name)) as &[Option<&str>],
        &column(&all, |m| m.to.due_in().map(|due_in| due_in.as_secs_f64())) as &[Option<f64>],
        &column(&all, |m| m.gives_up_attempt()),
        &column(&all, |m| m.is_retry),
        &column(&all, |m| m.to.reason_code()) as &[Option<&str>],
        &column(&all, |m| m.to.reason()) as &[Option<&str>],
        &column(&all, |m| m.to.ended().is_none_or(|ended| ended.keeps_payload)),
        &column(&all, |m| m.to.ended().and_then(|ended| ended.evidence).map(Evidence::name))
            as &[Option<&str>],
        &column(&all, |m| m.to.acceptance().and_then(|a| a.reference.as_deref())) as &[Option<&str>],
        &column(&all, |m| m.to.acceptance().and_then(|a| a.verification_status.as_deref()))
            as &[Option<&str>],
        &column(&all, |m| m.head.map(|head| head.entries)) as &[Option<i32>],
        &column(&all, |m| m.head.map(|head| head.mac)) as &[Option<[u8; 32]>],
        &column(&all, |m| m.attempt.map(|attempt| attempt.number)) as &[Option<i32>],
        &column(&all, |m| m.attempt.map(|attempt| attempt.verdict)) as &[Option<&str>],
        &column(&all, |m| m.attempt.and_then(|attempt| attempt.detail)) as &[Option<&str>],
        &column(&all, |m| m.attempt.and_then(|attempt| attempt.http_status)) as &[Option<i32>],
        &column(&all, |m| m.attempt.and_then(|attempt| attempt.provider_message.as_deref()))
            as &[Option<&str>],
        &column(&all, |m| m.attempt.and_then(|attempt| attempt.error)) as &[Option<&str>],
        &column(&all, |m| m.attempt.and_then(|attempt| attempt.duration_ms)) as &[Option<i32>],
        at_end.verification_after.as_secs_f64(),
        &column(&all, |m| m.attempt.and_then(|attempt| attempt.checked)) as &[Option<&str>],
        &column(&all, |m| m.at) as &[Option<OffsetDateTime>],
    )
    .fetch_all(&mut *tx)
    .await?;
    // Few have a waiter: a statement of its own, which a batch without any is spared. One that steps
    // behind its customer's newest may itself be that by now.
    let awaited = moved.iter().filter(|row| row.has_waiters).map(|row| row.customer_id);
    let behind = moves.iter().filter(|m| m.to.waiting_for() == Some(WaitingFor::Customer));
    let customers: HashSet<Uuid> = awaited.chain(behind.map(|m| m.from.customer_id)).collect();
    wake_newest(tx, &customers.into_iter().collect::<Vec<_>>()).await?;
    let moved: HashSet<(Uuid, i64)> = moved.into_iter().map(|row| (row.job_id, row.token)).collect();
    if at_end.is_told {
        let has_ended =
            |m: &&Move<'_>| m.to.ended().is_some() && moved.contains(&(m.from.job_id, m.from.token));
        let ended: Vec<Uuid> = moves.iter().filter(has_ended).map(|m| m.from.job_id).collect();
        tell_ends(tx, &ended).await?;
    }
    Ok(moved)
}

/// Moves rows on that this transaction has locked: each stands where it was found.
pub(crate) async fn move_locked(
    tx: &mut PgConnection,
    at_end: AtEnd,
    moves: &[Move<'_>],
) -> sqlx::Result<()> {
    let moved = move_on(tx, at_end, moves).await?;
    if moved.len() == moves.len() { Ok(()) } else { Err(sqlx::Error::RowNotFound) }
}
