//! Looks at customers: claimed before they begin, written down with what they prove.

use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::clock::Moment;
use crate::domain::budget::Budget;
use crate::domain::outcome::Outcome;
use crate::domain::read_back::{Age, Conclusion, Reading};
use crate::journal::history::chain::{Entry, Head, Subject};
use crate::journal::pool::bounded;
use crate::journal::statements::wake::wake_newest;
use crate::journal::{Claim, Journal, JournalError};

/// The right to look at the customer of a submission in doubt, and what the records said
/// before the look.
#[derive(Clone, Debug)]
pub struct ReadClaim {
    pub job_id: Uuid,
    pub customer_id: Uuid,
    /// Fences out whoever held an older claim.
    pub token: i64,
    pub attempt: i32,
    /// Before the look, by the database's clock.
    pub at: OffsetDateTime,
    /// The same, by this replica's clocks.
    pub claimed_at: Moment,
    /// How long ago the attempt began.
    pub since_begin: Age,
    /// How long ago it ended, or was taken over, by the database's clock; `None` if that says that
    /// it is yet to come.
    pub since_end: Option<Duration>,
    /// Whether no other update of the customer was in verification.
    pub is_only_suspect: bool,
    /// Our newest word on the customer before the attempt, if no other update came between.
    pub word_before: Option<String>,
    /// How many looks have shown that the attempt was not applied.
    pub confirmed: u32,
    /// How long ago the last of them was.
    pub since_confirmation: Age,
    pub budget: Budget,
}

#[derive(Clone, Debug)]
pub enum Settled {
    Ended(Outcome),
    /// It is to be sent again, now.
    SendAgain,
    /// It stays in doubt until another look, so far off.
    InDoubt(Duration),
}

impl Journal {
    /// Claims up to `limit` reads that have been due the longest, over a connection that waits for no
    /// job.
    pub async fn claim_reads(&self, limit: usize) -> Result<Vec<ReadClaim>, JournalError> {
        let claimed_at = Moment::now();
        // Another update stays suspect until a look shows that its verification is over. A look
        // just after an attempt of unknown fate shows no such thing: the update may have been
        // applied after it. For the same reason a word is no word before the attempt if another
        // update came after it. And a look whose commit was retried is written down twice, yet
        // confirms once. A webhook proves nothing here: it may be about another update. What came
        // before what is told by two clocks, which must agree: the database's may have been set.
        // `offset 0` keeps the attempts a look-up for each job: of tables without statistics
        // Postgres thinks that a customer has hundreds of jobs, and would read all attempts.
        let rows = bounded(
            sqlx::query!(
                r#"-- claim_reads
                with due as (
                    select job_id
                    from submission
                    where state = 'unknown' and due_at <= now()
                        and due_at >= coalesce($4::timestamptz, '-infinity')
                    order by due_at
                    limit $5
                    for update skip locked
                ), claimed as (
                    update submission s
                    set claim_token = s.claim_token + 1, claimed_by = $1,
                        due_at = now() + make_interval(secs => $2)
                    from due
                    where s.job_id = due.job_id
                    returning s.job_id, s.customer_id, s.claim_token, s.attempts
                ), looked_at as (
                    insert into customer (customer_id, last_read_at)
                    select customer_id, now() from claimed order by customer_id
                    on conflict (customer_id) do update set last_read_at = now()
                )
                select
                    c.job_id, c.customer_id as "customer_id!", c.claim_token, c.attempts, now() as "at!",
                    a.begun_at, a.ended_at as "ended_at!", a.signed_at,
                    not exists (
                        select
                        from submission other
                        cross join lateral (
                            select * from attempt a where a.job_id = other.job_id offset 0
                        ) o
                        where other.customer_id = c.customer_id and other.attempts > 0
                            and other.job_id <> c.job_id
                            and o.verdict in ('accepted', 'unknown')
                            and not exists (
                                select from observation seen
                                where seen.customer_id = c.customer_id and seen.purpose <> 'webhook'
                                    and seen.status not in ('PROCESSING', 'UNVERIFIED')
                                    and seen.at > o.ended_at + make_interval(
                                        secs => case when o.verdict = 'unknown' then $3::float8 else 0 end
                                    )
                                    and coalesce(seen.read_at, seen.at) > o.signed_at + make_interval(
                                        secs => case when o.verdict = 'unknown' then $3::float8 else 0 end
                                    )
                            )
                            and not exists (
                                select from observation settled
                                where settled.job_id = o.job_id
                                    and settled.conclusion in ('not_applied', 'last_update')
                                    and settled.at > o.ended_at
                            )
                    ) as "is_only_suspect!",
                    (
                        select seen.status
                        from observation seen
                        where seen.customer_id = c.customer_id and seen.status is not null
                            and seen.purpose <> 'webhook'
                            and (
                                seen.at < a.begun_at and coalesce(seen.read_at, seen.at) < a.signed_at
                                or seen.job_id = c.job_id and seen.purpose = 'baseline'
                            )
                            and not exists (
                                select
                                from submission other
                                cross join lateral (
                                    select * from attempt a where a.job_id = other.job_id offset 0
                                ) o
                                where other.customer_id = c.customer_id and other.attempts > 0
                            and other.job_id <> c.job_id
                                    and o.verdict in ('accepted', 'unknown')
                                    and (
                                        seen.at <= o.ended_at + make_interval(
                                            secs => case when o.verdict = 'unknown' then $3::float8 else 0 end
                                        )
                                        or coalesce(seen.read_at, seen.at) <= o.signed_at + make_interval(
                                            secs => case when o.verdict = 'unknown' then $3::float8 else 0 end
                                        )
                                    )
                            )
                        order by seen.at desc
                        limit 1
                    ) as word_before,
                    confirming.times as "confirmed!", confirming.last_at, confirming.last_read_at,
                    (
                        select count(*)
                        from submission s
                        cross join lateral (
                            select * from attempt a where a.job_id = s.job_id offset 0
                        ) spent
                        where s.customer_id = c.customer_id and s.attempts > 0
                            and spent.verdict in ('accepted', 'unknown')
                    ) as "spent_here!",
                    coalesce(
                        (select updates_elsewhere from customer where customer_id = c.customer_id), 0
                    ) as "spent_elsewhere!"
                from claimed c
                join attempt a on a.job_id = c.job_id and a.number = c.attempts
                cross join lateral (
                    select
                        count(distinct seen.at) as times, max(seen.at) as last_at,
                        (array_agg(seen.read_at order by seen.at desc))[1] as last_read_at
                    from observation seen
                    where seen.job_id = c.job_id and seen.conclusion = 'confirming'
                        and seen.at > a.ended_at
                ) confirming"#,
                self.worker,
                self.limits.claim_lease.as_secs_f64(),
                self.limits.read_back_window.as_secs_f64(),
                self.floors.due.bound(),
                i64::try_from(limit).unwrap_or(i64::MAX),
            )
            .fetch_all(&self.reads),
        )
        .await?;
        let by_replica = |at| age(at, claimed_at.wall.into());
        let claims = rows.into_iter().map(|row| ReadClaim {
            job_id: row.job_id,
            customer_id: row.customer_id,
            token: row.claim_token,
            attempt: row.attempts,
            at: row.at,
            claimed_at,
            since_begin: Age { database: age(row.begun_at, row.at), replica: by_replica(row.signed_at) },
            since_end: age(row.ended_at, row.at),
            is_only_suspect: row.is_only_suspect,
            word_before: row.word_before,
            confirmed: u32::try_from(row.confirmed).unwrap_or(u32::MAX),
            since_confirmation: match row.last_at {
                Some(last_at) => {
                    Age { database: age(last_at, row.at), replica: row.last_read_at.and_then(by_replica) }
                }
                None => Age::agreed(Duration::ZERO),
            },
            budget: Budget {
                spent_here: u32::try_from(row.spent_here).unwrap_or(u32::MAX),
                spent_elsewhere: row.spent_elsewhere.unsigned_abs(),
                limit: self.limits.customer_updates,
            },
        });
        Ok(claims.collect())
    }

    /// Writes down what a look said and what it settled, in one commit.
    ///
    /// # Errors
    /// [`JournalError::Fenced`] when the claim is no longer ours; else the database's.
    pub async fn conclude_read(
        &self,
        claim: &ReadClaim,
        reading: &Reading,
        conclusion: Conclusion,
        settled: &Settled,
    ) -> Result<(), JournalError> {
        let customer = reading.customer();
        let outcome = match settled {
            Settled::Ended(outcome) => Some(outcome),
            Settled::SendAgain | Settled::InDoubt(_) => None,
        };
        let (state, waiting_for, due_in) = match settled {
            Settled::Ended(outcome) => (outcome.state(), None, None),
            Settled::SendAgain => ("waiting", Some("retry"), Some(0.0)),
            Settled::InDoubt(after) => ("unknown", None, Some(after.as_secs_f64())),
        };
        let reason = outcome.map(Outcome::reason);
        let is_accepted = matches!(outcome, Some(Outcome::Accepted(_)));
        let entry = observed(claim.at, "read_back", reading, Some(conclusion.name()));
        let subject = Subject { job_id: claim.job_id, customer_id: claim.customer_id };
        let _turn = self.concluding.acquire().await;
        let concluded = bounded(async {
            let mut tx = self.reads.begin().await?;
            let Some((head, _now)) = Head::lock(&mut tx, claim.job_id).await? else { return Ok(0) };
            let head = head.after(&self.fingerprinter, subject, &entry);
            let concluded = sqlx::query_scalar!(
                r#"-- conclude_read
                with concluded as (
                    update submission
                    set state = $3, waiting_for = $4,
                        due_at = case when $5::float8 is not null then now() + make_interval(secs => $5) end,
                        reason_code = case when $6 then $7 else reason_code end,
                        reason = case when $6 then $8 else reason end,
                        ended_at = case when $6 then greatest(now(), received_at) end,
                        sealed_payload = case when $6 and not $9 then null else sealed_payload end,
                        evidence = case when $10 then 'read_back' end,
                        verification_status = case when $10 then $11 end,
                        verification_due_at = case when $10 then now() + make_interval(secs => $16) end,
                        chain = $17, entries = $18
                    where job_id = $1 and state = 'unknown' and claim_token = $2
                    returning job_id, customer_id
                ), observed as (
                    insert into observation (
                        job_id, customer_id, at, purpose, status, failure_reason, error, conclusion, entry, read_at
                    )
                    select job_id, customer_id, $12, 'read_back', $11, $13, $14, $15, $18, $19 from concluded
                    returning job_id
                )
                select count(*) as "concluded!" from observed"#,
                claim.job_id,
                claim.token,
                state,
                waiting_for,
                due_in,
                outcome.is_some(),
                outcome.and_then(Outcome::reason_code),
                reason.as_deref(),
                outcome.is_some_and(Outcome::keeps_payload),
                is_accepted,
                customer.map(|customer| customer.status.as_str()),
                claim.at,
                customer.and_then(|customer| customer.failure_reason.as_deref()),
                reading.error_code(),
                conclusion.name(),
                self.limits.verification_after.as_secs_f64(),
                &head.mac as &[u8],
                head.entries,
                OffsetDateTime::from(claim.claimed_at.wall),
            )
            .fetch_one(&mut *tx)
            .await?;
            if state != "unknown" {
                wake_newest(&mut tx, &[claim.customer_id]).await?;
            }
            tx.commit().await?;
            Ok(concluded)
        })
        .await?;
        // A lost answer to this commit leaves nothing to mend: the row has moved on.
        if concluded == 1 { Ok(()) } else { Err(JournalError::Fenced) }
    }

    /// Takes the right to look at a customer before his first attempt here, unless he was
    /// looked at less than `apart` ago, by any replica.
    pub async fn claim_baseline(
        &self,
        customer_id: Uuid,
        apart: Duration,
    ) -> Result<Option<OffsetDateTime>, JournalError> {
        bounded(
            sqlx::query_scalar!(
                r#"-- claim_baseline
                insert into customer (customer_id, last_read_at)
                values ($1, now())
                on conflict (customer_id) do update set last_read_at = now()
                    where customer.last_read_at is null
                        or customer.last_read_at <= now() - make_interval(secs => $2)
                returning last_read_at as "at!""#,
                customer_id,
                apart.as_secs_f64(),
            )
            .fetch_optional(&self.pool),
        )
        .await
    }

    /// Writes down what a look before the first attempt said, and moves the claim's head on.
    pub async fn record_baseline(
        &self,
        claim: &mut Claim,
        at: OffsetDateTime,
        read_at: Moment,
        reading: &Reading,
    ) -> Result<(), JournalError> {
        let entry = observed(at, "baseline", reading, None);
        let subject = Subject { job_id: claim.job_id, customer_id: claim.customer_id };
        let customer = reading.customer();
        let head = bounded(async {
            let mut tx = self.pool.begin().await?;
            let (head, _now) = Head::lock(&mut tx, claim.job_id).await?.ok_or(sqlx::Error::RowNotFound)?;
            let head = head.after(&self.fingerprinter, subject, &entry);
            sqlx::query!(
                "-- record_baseline
                with chained as (
                    update submission set chain = $7, entries = $8 where job_id = $1
                )
                insert into observation (job_id, customer_id, at, purpose, status, failure_reason, error, entry, read_at)
                values ($1, $2, $3, 'baseline', $4, $5, $6, $8, $9)",
                claim.job_id,
                claim.customer_id,
                at,
                customer.map(|customer| customer.status.as_str()),
                customer.and_then(|customer| customer.failure_reason.as_deref()),
                reading.error_code(),
                &head.mac as &[u8],
                head.entries,
                OffsetDateTime::from(read_at.wall),
            )
            .execute(&mut *tx)
            .await?;
            tx.commit().await?;
            Ok(head)
        })
        .await?;
        claim.head = head;
        Ok(())
    }
}

/// How long ago `at` was when a clock said `now`; `None` if it is yet to come by that clock.
fn age(at: OffsetDateTime, now: OffsetDateTime) -> Option<Duration> {
    Duration::try_from(now - at).ok()
}

/// What a look said, as an entry of the history.
fn observed<'a>(
    at: OffsetDateTime,
    purpose: &'a str,
    reading: &'a Reading,
    conclusion: Option<&'a str>,
) -> Entry<'a> {
    let customer = reading.customer();
    Entry::Observation {
        at,
        purpose,
        status: customer.map(|customer| customer.status.as_str()),
        failure_reason: customer.and_then(|customer| customer.failure_reason.as_deref()),
        error: reading.error_code(),
        conclusion,
    }
}
