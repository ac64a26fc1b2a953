//! Verifications of accepted updates: reads claimed before they begin and written down with
//! what they change.

use std::time::Duration;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::clock::Moment;
use crate::domain::customer_event::{CustomerEvent, Refusal};
use crate::domain::job::JobRef;
use crate::domain::message::Message;
use crate::domain::read_back::CustomerStatus;
use crate::domain::state::{EventKind, Purpose, State};
use crate::domain::trace_context::TraceContext;
use crate::domain::verification::{NextRead, is_final};
use crate::journal::error::JournalError;
use crate::journal::handle::Journal;
use crate::journal::history::chain::{Entry, Head, Observation, Subject};
use crate::journal::pool::{run, run_tx};
use crate::journal::rows::in_micros;
use crate::journal::statements::customers::read_customers;
use crate::journal::statements::events::tell_verifications;
use crate::journal::statements::history::lock_submission;
use crate::journal::statements::open::insert_dead_letter;

/// How often customers in verification may be read, by all replicas together.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How many reads may begin in a second.
    pub per_second: u32,
    /// The shortest time between two reads of a customer.
    pub apart: Duration,
    /// How long a read may take.
    pub read_time_max: Duration,
}

/// How a verification ends.
const VERIFICATION_ENDS: [EventKind; 2] = [EventKind::Verified, EventKind::Failed];

#[derive(Debug)]
pub struct DueVerifications {
    /// Those that are ours to read now.
    pub claims: Vec<VerificationClaim>,
    /// How many were due, those included whose customer has a newer accepted job, or that must wait.
    pub found: usize,
}

/// The right to read a customer in verification, and what the records said before the read.
#[derive(Debug)]
pub struct VerificationClaim {
    pub job: JobRef,
    pub customer_id: Uuid,
    /// Before the read, by the database's clock.
    pub at: OffsetDateTime,
    /// How long ago the job was accepted.
    pub since_acceptance: Duration,
    pub status: Option<String>,
    /// Why the verification failed, in the provider's latest words.
    pub failure_reason: Option<String>,
    /// Whether it was found overdue before.
    pub was_overdue: bool,
}

/// What became of a customer event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EventNoted {
    /// It is this job's end.
    Ended(JobRef),
    /// It is written down with this job, and says nothing sure of it.
    Stored(JobRef),
    Known,
    /// No job is the customer's.
    UnknownCustomer,
}

impl VerificationClaim {
    /// Whether `seen` is worth a row: it is another word than the last, or the end. That
    /// is evidence of its own, even where the acceptance had said so.
    fn is_news(&self, seen: &CustomerStatus) -> bool {
        is_final(&seen.status)
            || self.status.as_ref() != Some(&seen.status)
            || self.failure_reason != seen.failure_reason
    }
}

/// A customer's newest job, its row locked.
struct Newest {
    job_id: Uuid,
    received_at: OffsetDateTime,
    trace: Option<TraceContext>,
    state: State,
    verification_status: Option<String>,
    is_followed: bool,
    seen_at: Option<OffsetDateTime>,
    chain: Option<[u8; 32]>,
    entries: i32,
}

impl Newest {
    fn job(&self) -> JobRef {
        JobRef { id: self.job_id, received_at: self.received_at, trace: self.trace }
    }
}

async fn lock_newest(tx: &mut PgConnection, customer_id: Uuid) -> sqlx::Result<Option<Newest>> {
    sqlx::query_as!(
        Newest,
        r#"-- lock_newest
        select
            job_id, received_at, traceparent as "trace: TraceContext", state as "state: State",
            verification_status,
            verification_due_at is not null as "is_followed!", verification_seen_at as seen_at,
            chain as "chain: [u8; 32]", entries
        from submission
        where customer_id = $1 and state <> 'invalid'
        order by state = 'accepted' desc, requested_at desc, received_at desc, job_id desc
        limit 1
        for update"#,
        customer_id,
    )
    .fetch_optional(tx)
    .await
}

impl Journal {
    /// Claims up to `limit` reads that have been due the longest, as `pace` allows. A job
    /// whose customer has a newer accepted one is not read any more, and one whose
    /// customer was read just now waits.
    pub async fn claim_verifications(
        &self,
        pace: &Pace,
        limit: u32,
    ) -> Result<DueVerifications, JournalError> {
        // Whoever holds the pace's row claims alone: the others find it locked, or too early.
        // A read whose replica died is due again once the customer may be read again and the read, had
        // it gone on, would have ended.
        let rows = run("claim_verifications", &self.pool, async |connection| { sqlx::query!(
                r#"-- claim_verifications
                with pace as (
                    select is_only from verification_pace
                    -- One further ahead is of a clock that was ahead, and was put right.
                    where next_read_at <= now() or next_read_at > now() + interval '1 minute'
                    for update skip locked
                ), due as (
                    select
                        s.job_id, s.customer_id,
                        exists (
                            select from submission newer
                            where newer.customer_id = s.customer_id and newer.attempts > 0
                                and newer.state = 'accepted'
                                and (newer.requested_at, newer.received_at, newer.job_id)
                                    > (s.requested_at, s.received_at, s.job_id)
                        ) as has_newer
                    from submission s
                    where s.verification_due_at <= now() and exists (select from pace)
                    order by s.verification_due_at
                    limit $1
                    for update of s skip locked
                ), known as (
                    -- One whose row is locked waits: it holds up no other.
                    select customer_id from customer
                    where customer_id in (select customer_id from due where not has_newer)
                        and (last_read_at is null or last_read_at <= now() - make_interval(secs => $2))
                    order by customer_id
                    for update skip locked
                ), noted as (
                    update customer c set last_read_at = now()
                    from known
                    where c.customer_id = known.customer_id
                    returning c.customer_id
                ), added as (
                    insert into customer (customer_id, last_read_at)
                    select distinct customer_id, now() from due
                    where not has_newer
                        and not exists (select from customer c where c.customer_id = due.customer_id)
                    order by customer_id
                    on conflict (customer_id) do nothing
                    returning customer_id
                ), readable as (
                    select customer_id from noted
                    union all
                    select customer_id from added
                ), moved as (
                    update submission s
                    set verification_due_at = case
                        when due.has_newer then null
                        when readable.customer_id is not null then now() + make_interval(secs => $2 + $3)
                        else greatest(
                            now() + interval '100 ms',
                            (
                                select c.last_read_at + make_interval(secs => $2)
                                from customer c where c.customer_id = s.customer_id
                            )
                        )
                    end
                    from due
                    left join readable on readable.customer_id = due.customer_id
                    where s.job_id = due.job_id
                    returning
                        s.job_id, s.customer_id, s.received_at, s.traceparent, s.ended_at, s.verification_status,
                        s.failure_reason, s.verification_overdue_at,
                        not due.has_newer and readable.customer_id is not null as is_claimed
                ), paced as (
                    update verification_pace
                    set next_read_at = now() + make_interval(
                        secs => (select count(*) from moved where is_claimed) / $4::float8
                    )
                    where exists (select from moved where is_claimed)
                )
                select
                    job_id, customer_id as "customer_id!", received_at, traceparent as "trace: TraceContext",
                    now() as "at!",
                    coalesce(extract(epoch from now() - ended_at), 0)::float8 as "since_acceptance!",
                    verification_status, failure_reason,
                    verification_overdue_at is not null as "was_overdue!", is_claimed as "is_claimed!"
                from moved"#,
                i64::from(limit),
                pace.apart.as_secs_f64(),
                pace.read_time_max.as_secs_f64(),
                f64::from(pace.per_second),
            )
            .fetch_all(connection).await })
        .await?;
        let found = rows.len();
        let claims = rows.into_iter().filter(|row| row.is_claimed).map(|row| VerificationClaim {
            job: JobRef { id: row.job_id, received_at: row.received_at, trace: row.trace },
            customer_id: row.customer_id,
            at: row.at,
            since_acceptance: Duration::try_from_secs_f64(row.since_acceptance).unwrap_or_default(),
            status: row.verification_status,
            failure_reason: row.failure_reason,
            was_overdue: row.was_overdue,
        });
        Ok(DueVerifications { claims: claims.collect(), found })
    }

    /// Writes down what a read said, if it said something, and when the next one is due, in
    /// one commit. Returns false, and changes nothing, where the verification has ended
    /// meanwhile, was replaced by a newer job's, or is known as of a later time.
    pub async fn record_verification(
        &self,
        claim: &VerificationClaim,
        claimed_at: Moment,
        seen: Option<&CustomerStatus>,
        next: NextRead,
    ) -> Result<bool, JournalError> {
        let (delay, is_overdue) = match next {
            NextRead::After { delay, is_overdue } => (Some(delay.as_secs_f64()), is_overdue),
            NextRead::Ended | NextRead::GivenUp => (None, false),
        };
        let is_news = seen.is_some_and(|seen| claim.is_news(seen));
        let subject = Subject { job_id: claim.job.id, customer_id: claim.customer_id };
        let entry = Entry::Observation(Observation {
            at: claim.at,
            purpose: Purpose::Verification.name(),
            status: seen.map(|seen| seen.status.as_str()),
            failure_reason: seen.and_then(|seen| seen.failure_reason.as_deref()),
            error: None,
            conclusion: None,
            document_types: None,
        });
        run_tx("record_verification", &self.pool, async |tx| {
            let Some(locked) = lock_submission(tx, claim.job.id).await? else { return Ok(false) };
            let head = locked.position.head.after(&self.fingerprinter, subject, &entry);
            let is_end = sqlx::query_scalar!(
                r#"-- record_verification
                with recorded as (
                    update submission s
                    set verification_status = coalesce($3, s.verification_status),
                        failure_reason = case when $3::text is null then s.failure_reason else $4 end,
                        verification_seen_at = case when $3::text is null then s.verification_seen_at else $2 end,
                        verification_ended_at = case
                            when $3::text is null then s.verification_ended_at
                            when not $11 then null
                            when (s.verification_status, s.failure_reason) is distinct from ($3, $4) then $2
                            else coalesce(s.verification_ended_at, $2)
                        end,
                        verification_due_at = now() + make_interval(secs => $5::float8),
                        verification_overdue_at = case
                            when $6 then coalesce(s.verification_overdue_at, now())
                            else s.verification_overdue_at
                        end,
                        chain = case when $7 then $8 else s.chain end,
                        entries = case when $7 then $9 else s.entries end
                    -- Said so that no index has it. Where the statistics know of no verification that is followed,
                    -- Postgres would load all of them for the one, for as long as the connection lives.
                    where s.job_id = $1 and num_nonnulls(s.verification_due_at) = 1
                        and (s.verification_seen_at is null or s.verification_seen_at < $2)
                    returning s.job_id, s.customer_id, s.verification_ended_at = $2 as is_end
                ), observed as (
                    insert into observation (job_id, customer_id, at, purpose, status, failure_reason, entry, read_at)
                    select job_id, customer_id, $2, 'verification', $3, $4, $9, $10 from recorded where $7
                ), noted as (
                    -- The interval to the next read counts from this one's answer.
                    update customer c set last_read_at = now()
                    from recorded
                    where c.customer_id = recorded.customer_id
                )
                select coalesce(is_end, false) as "is_end!" from recorded"#,
                claim.job.id,
                claim.at,
                seen.map(|seen| seen.status.as_str()),
                seen.and_then(|seen| seen.failure_reason.as_deref()),
                delay,
                is_overdue,
                is_news,
                &head.mac as &[u8],
                head.entries,
                OffsetDateTime::from(claimed_at.wall),
                seen.is_some_and(|seen| is_final(&seen.status)),
            )
            .fetch_optional(&mut *tx)
            .await?;
            if let Some(is_end) = is_end
                && self.limits.at_end.is_told
            {
                let kinds: &[EventKind] = match is_end {
                    true => &VERIFICATION_ENDS,
                    false if is_overdue && !claim.was_overdue => &[EventKind::Overdue],
                    false => &[],
                };
                tell_verifications(tx, &[claim.job.id], kinds).await?;
            }
            Ok(is_end.is_some())
        })
        .await
    }

    /// Writes down what an event said of a customer, with their newest accepted job, and has
    /// them read soon: an event alone proves nothing of whose update it was about.
    ///
    /// It is taken for the job's end at once if it says that a verification has ended; not
    /// sooner after the job's attempt began than one may; later than anything known of it;
    /// and with no other update of the customer in verification when the attempt began.
    pub async fn record_customer_event(&self, event: &CustomerEvent) -> Result<EventNoted, JournalError> {
        run_tx("record_customer_event", &self.pool, async |tx| {
            let Some(newest) = lock_newest(tx, event.customer_id).await? else {
                return Ok(EventNoted::UnknownCustomer);
            };
            let subject = Subject { job_id: newest.job_id, customer_id: event.customer_id };
            let entry = Entry::Observation(Observation {
                at: event.at,
                purpose: Purpose::Webhook.name(),
                status: Some(&event.status),
                failure_reason: event.failure_reason.as_deref(),
                error: None,
                conclusion: None,
                document_types: None,
            });
            let head = Head::of_row(newest.chain, newest.entries).after(&self.fingerprinter, subject, &entry);
            let is_its_end = self.is_end(tx, event, &newest).await?;
            self.note_event(tx, event, &newest, head, is_its_end).await
        })
        .await
    }

    async fn is_end(
        &self,
        tx: &mut PgConnection,
        event: &CustomerEvent,
        newest: &Newest,
    ) -> sqlx::Result<bool> {
        let at = in_micros(event.at);
        if !newest.is_followed || !is_final(&event.status) || newest.seen_at.is_some_and(|seen| at <= seen) {
            return Ok(false);
        }
        let customers = read_customers(tx, [(event.customer_id, None)]).await?;
        let customer = customers.get(&event.customer_id);
        Ok(customer.is_some_and(|customer| customer.may_end(newest.job_id, at, self.limits.read_back_window)))
    }

    async fn note_event(
        &self,
        tx: &mut PgConnection,
        event: &CustomerEvent,
        newest: &Newest,
        head: Head,
        is_its_end: bool,
    ) -> sqlx::Result<EventNoted> {
        // An end that is known already is read again only if this is another word.
        let is_news = newest.is_followed || newest.verification_status.as_ref() != Some(&event.status);
        // An event that we had already is no entry.
        let is_new = sqlx::query_scalar!(
            r#"-- record_customer_event
            with observed as (
                insert into observation (job_id, customer_id, at, purpose, status, failure_reason, entry)
                values ($1, $2, $3, 'webhook', $4, $5, $6)
                on conflict (customer_id, at, status) where purpose = 'webhook' do nothing
                returning job_id
            ), told as (
                update submission s
                set chain = $7, entries = $6,
                    verification_status = case when $8 then $4 else s.verification_status end,
                    failure_reason = case when $8 then $5 else s.failure_reason end,
                    verification_seen_at = case when $8 then least($3, now()) else s.verification_seen_at end,
                    verification_ended_at = case when $8 then least($3, now()) else s.verification_ended_at end,
                    verification_due_at = case
                        when $9 then least(
                            s.verification_due_at,
                            greatest(now(), s.ended_at + make_interval(secs => $10))
                        )
                        else s.verification_due_at
                    end
                from observed
                where s.job_id = observed.job_id
            )
            select exists (select from observed) as "is_new!""#,
            newest.job_id,
            event.customer_id,
            event.at,
            event.status,
            event.failure_reason,
            head.entries,
            &head.mac as &[u8],
            is_its_end,
            newest.state == State::Accepted && is_news,
            self.limits.at_end.verification_after.as_secs_f64(),
        )
        .fetch_one(&mut *tx)
        .await?;
        if is_new && is_its_end && self.limits.at_end.is_told {
            tell_verifications(tx, &[newest.job_id], &VERIFICATION_ENDS).await?;
        }
        Ok(match (is_new, is_its_end) {
            (false, _) => EventNoted::Known,
            (true, true) => EventNoted::Ended(newest.job()),
            (true, false) => EventNoted::Stored(newest.job()),
        })
    }

    /// Writes down a customer event that is not believed.
    pub async fn record_refused_event(
        &self,
        message: &Message,
        received_at: OffsetDateTime,
        refusal: &Refusal,
    ) -> Result<(), JournalError> {
        let reason = refusal.to_string();
        run("record_refused_event", &self.pool, async |connection| {
            insert_dead_letter(connection, message, received_at, None, refusal.code(), &reason).await
        })
        .await
    }
}
