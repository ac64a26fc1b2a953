//! A slot that was taken: the customer's other jobs are read, and the slot is used or given up.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::domain::outcome::{Outcome, Review};
use crate::domain::precedence::{Decision, Sibling, Standing, rule};
use crate::journal::rows::{Beginning, Candidate, column};
use crate::journal::statements::wake::{NEAR_WAIT_MAX_SECONDS, wake_newest};

/// The reason of a job whose payload no key opens.
pub(crate) const PAYLOAD_UNREADABLE: &str = "payload_unreadable";

/// How many older jobs of a customer end at once, because a newer one was accepted. Whatever is left
/// is ended by the next claim.
const SUPERSEDED_AT_ONCE: i64 = 100;

/// Looks at the other jobs of each candidate's customer, now that the slots are theirs.
/// Returns a decision for each, in order.
pub(crate) async fn look(
    tx: &mut PgConnection,
    candidates: &[Candidate],
    read_back_window: Duration,
) -> sqlx::Result<Vec<Decision>> {
    let all: Vec<&Candidate> = candidates.iter().collect();
    // A look that showed neither PROCESSING nor the ambiguous UNVERIFIED closed every
    // verification that was open before it; but an attempt of unknown fate may have been
    // applied until the window was over.
    let rows = sqlx::query!(
        r#"-- look
        select
            c.job_id as "candidate!", o.job_id as "job_id!", o.state as "state!",
            (o.requested_at, o.received_at, o.job_id) > (c.requested_at, c.received_at, c.job_id)
                as "is_newer!",
            coalesce(o.content_hmac = c.content_hmac, false) as "has_same_content!",
            not exists (
                select from observation seen
                where seen.customer_id = o.customer_id and seen.purpose <> 'webhook'
                    and seen.status not in ('PROCESSING', 'UNVERIFIED')
                    and seen.at > (
                        select max(
                            a.ended_at
                            + make_interval(secs => case when a.verdict = 'unknown' then $6::float8 else 0 end)
                        )
                        from attempt a
                        where a.job_id = o.job_id and a.verdict in ('accepted', 'unknown')
                    )
            ) as "in_verification!"
        from unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::timestamptz[], $5::bytea[])
            as c (job_id, customer_id, requested_at, received_at, content_hmac)
        cross join lateral (
            -- What may have been applied had an attempt, and so has what holds the slot. Of all that
            -- wait, which may be many, the newest tells whether any is newer.
            select job_id, customer_id, state, requested_at, received_at, content_hmac
            from submission s
            where s.customer_id = c.customer_id and s.attempts > 0 and s.job_id <> c.job_id
                and (
                    s.state in ('submitting', 'unknown', 'accepted')
                    or s.state = 'needs_review' and s.reason_code = 'fate_unknown'
                )
            union all
            (
                select job_id, customer_id, state, requested_at, received_at, content_hmac
                from submission s
                where s.customer_id = c.customer_id and s.state = 'waiting' and s.job_id <> c.job_id
                order by s.requested_at desc, s.received_at desc, s.job_id desc
                limit 1
            )
            -- Keeps it a look-up for each: of a table without statistics Postgres thinks that a
            -- customer has a great many rows, and would read all of it instead.
            offset 0
        ) o
        order by o.requested_at desc, o.received_at desc, o.job_id desc"#,
        &column(&all, |candidate| candidate.job_id),
        &column(&all, |candidate| candidate.customer_id),
        &column(&all, |candidate| candidate.requested_at),
        &column(&all, |candidate| candidate.received_at),
        &column(&all, |candidate| candidate.content_hmac.as_deref()) as &[Option<&[u8]>],
        read_back_window.as_secs_f64(),
    )
    .fetch_all(tx)
    .await?;
    let mut siblings: HashMap<Uuid, Vec<Sibling>> = HashMap::new();
    for row in rows {
        siblings.entry(row.candidate).or_default().push(Sibling {
            job_id: row.job_id,
            is_newer: row.is_newer,
            has_same_content: row.has_same_content,
            standing: match row.state.as_str() {
                "accepted" => Standing::Accepted { in_verification: row.in_verification },
                "needs_review" => Standing::FateUnknown,
                _ => Standing::InMotion,
            },
        });
    }
    let decision = |candidate: &Candidate| {
        rule(siblings.get(&candidate.job_id).map_or(&[], Vec::as_slice), candidate.is_resend)
    };
    Ok(candidates.iter().map(decision).collect())
}

impl Candidate {
    /// Gives the slot up as the decision says. `None` when the job waits.
    pub async fn yield_slot(
        &self,
        tx: &mut PgConnection,
        decision: Decision,
    ) -> sqlx::Result<Option<Outcome>> {
        let outcome = match decision {
            Decision::Superseded { by } => Outcome::Superseded { by },
            Decision::Duplicate { of } => Outcome::Duplicate { of },
            Decision::NewerFateUnknown { newer } => Outcome::NeedsReview(Review::NewerFateUnknown { newer }),
            Decision::Wait | Decision::Go => {
                self.wait_behind_newer(tx).await?;
                return Ok(None);
            }
        };
        self.end(tx, &outcome).await?;
        Ok(Some(outcome))
    }

    /// Whoever releases or ends the newer one wakes this one; its alarm is for what nobody ends.
    async fn wait_behind_newer(&self, tx: &mut PgConnection) -> sqlx::Result<()> {
        sqlx::query!(
            "-- wait_behind_newer
            update submission s
            set state = 'waiting', waiting_for = 'customer', claimed_until = null,
                attempts = (select count(*) from attempt a where a.job_id = s.job_id),
                due_at = now() + make_interval(secs => $2)
            where s.job_id = $1 and s.state = 'submitting'",
            self.job_id,
            NEAR_WAIT_MAX_SECONDS,
        )
        .execute(&mut *tx)
        .await?;
        wake_newest(tx, &[self.customer_id]).await
    }

    /// Ends those that wait and are older than this one: a newer one was accepted, which nothing
    /// takes back, so none of them needs the slot for that. Returns which.
    pub(crate) async fn supersede_older(&self, tx: &mut PgConnection, by: Uuid) -> sqlx::Result<Vec<Uuid>> {
        let outcome = Outcome::Superseded { by };
        sqlx::query_scalar!(
            "-- supersede_older
            with older as (
                select s.job_id
                from submission s
                where s.customer_id = $1 and s.state = 'waiting'
                    and (s.requested_at, s.received_at, s.job_id) < ($2, $3, $4)
                order by s.requested_at desc, s.received_at desc, s.job_id desc
                limit $5
                for update skip locked
            )
            update submission s
            set state = $6, waiting_for = null, due_at = null, reason_code = null, reason = $7,
                ended_at = greatest(now(), s.received_at), sealed_payload = null
            from older
            where s.job_id = older.job_id
            returning s.job_id",
            self.customer_id,
            self.requested_at,
            self.received_at,
            self.job_id,
            SUPERSEDED_AT_ONCE,
            outcome.state(),
            &*outcome.reason(),
        )
        .fetch_all(tx)
        .await
    }

    /// Gives the slot up until a key may be there: a minute first, then as long again as the job has
    /// waited, and an hour at most. Another replica may have the key already.
    pub(crate) async fn wait_for_key(&self, tx: &mut PgConnection) -> sqlx::Result<()> {
        sqlx::query!(
            "-- wait_for_key
            update submission s
            set state = 'waiting', waiting_for = 'retry', claimed_until = null,
                attempts = (select count(*) from attempt a where a.job_id = s.job_id),
                due_at = now() + least(greatest(now() - s.received_at, interval '1 minute'), interval '1 hour'),
                reason_code = $2, reason = $3
            where s.job_id = $1 and s.state = 'submitting'",
            self.job_id,
            PAYLOAD_UNREADABLE,
            "no key opens its payload; add the key that it was sealed with to PAYLOAD_KEY",
        )
        .execute(&mut *tx)
        .await?;
        wake_newest(tx, &[self.customer_id]).await
    }

    /// Ends the job without an attempt.
    pub(crate) async fn end(&self, tx: &mut PgConnection, outcome: &Outcome) -> sqlx::Result<()> {
        sqlx::query!(
            "-- end_without_attempt
            update submission s
            set state = $2, reason_code = $3, reason = $4, ended_at = greatest(now(), s.received_at),
                claimed_until = null,
                attempts = (select count(*) from attempt a where a.job_id = s.job_id),
                sealed_payload = case when $5 then s.sealed_payload end
            where s.job_id = $1 and s.state = 'submitting'",
            self.job_id,
            outcome.state(),
            outcome.reason_code(),
            &*outcome.reason(),
            outcome.keeps_payload(),
        )
        .execute(&mut *tx)
        .await?;
        wake_newest(tx, &[self.customer_id]).await
    }
}

/// Writes down that attempts begin. Their first bytes may leave once this is committed.
pub(crate) async fn begin_attempts(
    tx: &mut PgConnection,
    worker: &str,
    beginning: &[Beginning],
) -> sqlx::Result<()> {
    if beginning.is_empty() {
        return Ok(());
    }
    let all: Vec<&Beginning> = beginning.iter().collect();
    sqlx::query!(
        "-- begin_attempts
        insert into attempt (job_id, number, worker, signed_at)
        select b.job_id, b.number, $4, b.signed_at
        from unnest($1::uuid[], $2::integer[], $3::timestamptz[]) as b (job_id, number, signed_at)",
        &column(&all, |attempt| attempt.job_id),
        &column(&all, |attempt| attempt.attempt),
        &column(&all, |attempt| OffsetDateTime::from(attempt.t0.wall)),
        worker,
    )
    .execute(tx)
    .await?;
    Ok(())
}
