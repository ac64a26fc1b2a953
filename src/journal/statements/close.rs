//! Attempts are closed, and their submissions moved on.

use std::collections::{HashMap, HashSet};

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::domain::verdict::Rejection;
use crate::journal::rows::{Closing, Limits, column};
use crate::journal::statements::wake::wake_newest;
use crate::seal::Fingerprinter;

/// Closes attempts, adds their results to the histories and moves their submissions on; whoever
/// releases a slot wakes the customer's newest waiter. Few have one, and few customers are at their
/// limit: statements of their own, which a batch without any is spared. Returns which were closed: not
/// those whose claim is gone, nor those to whose history something was added since it was made, as
/// their results go with other MACs. `now` is the transaction's time, which the rows get as `now()`.
pub(crate) async fn close_many(
    tx: &mut PgConnection,
    worker: &str,
    fingerprinter: &Fingerprinter,
    limits: &Limits,
    now: OffsetDateTime,
    closings: &[&Closing],
) -> sqlx::Result<HashSet<(Uuid, i32)>> {
    if closings.is_empty() {
        return Ok(HashSet::new());
    }
    let heads = column(closings, |c| c.head_after(fingerprinter, worker, now));
    let closed = sqlx::query!(
        r#"-- close_attempts
        with closing as (
            select *
            from unnest(
                $1::uuid[], $2::bigint[], $3::integer[],
                $4::text[], $5::text[], $6::integer[], $7::text[], $8::text[], $9::integer[],
                $10::text[], $11::text[], $12::float8[], $13::integer[], $14::text[], $15::text[],
                $16::boolean[], $17::text[], $18::text[], $20::integer[], $21::bytea[]
            ) as c (
                job_id, token, number,
                verdict, detail, http_status, provider_message, error, duration_ms,
                state, waiting_for, due_in, retries, reason_code, reason,
                keeps_payload, provider_reference, verification_status, entry, chain
            )
        ), moved_on as (
            update submission s
            set state = c.state, waiting_for = c.waiting_for,
                due_at = now() + make_interval(secs => c.due_in), chain = c.chain, entries = c.entry,
                retries = s.retries + c.retries, reason_code = c.reason_code, reason = c.reason,
                ended_at = case when c.due_in is null then greatest(now(), s.received_at) end, claimed_until = null,
                sealed_payload = case when c.keeps_payload then s.sealed_payload end,
                provider_reference = c.provider_reference, verification_status = c.verification_status,
                evidence = case when c.state = 'accepted' then 'response' end,
                verification_due_at =
                    case when c.state = 'accepted' then now() + make_interval(secs => $19) end
            from closing c
            -- A state that the planner does not see: without statistics it would take the index
            -- of claims, and compare each closing with all that are claimed.
            where s.job_id = c.job_id and s.state = (select 'submitting') and s.claim_token = c.token
                and s.entries = c.entry - 1
            returning
                s.job_id, s.customer_id, c.number, c.entry, c.verdict, c.detail, c.http_status,
                c.provider_message, c.error, c.duration_ms, c.state
        ), closed as (
            update attempt a
            set ended_at = now(), entry = c.entry, verdict = c.verdict, detail = c.detail, http_status = c.http_status,
                provider_message = c.provider_message, error = c.error, duration_ms = c.duration_ms
            from moved_on c
            where a.job_id = c.job_id and a.number = c.number and a.ended_at is null
            returning a.job_id, a.number, c.customer_id, c.state
        )
        select
            job_id, number,
            -- In the order of the index that is meant: over empty tables any would do, for as long as
            -- the connection lives.
            state <> 'unknown' and (
                select w.job_id from submission w
                where w.customer_id = closed.customer_id and w.state = 'waiting'
                order by w.requested_at desc, w.received_at desc, w.job_id desc
                limit 1
            ) is not null as "has_waiters!"
        from closed"#,
        &column(closings, |c| c.claim.job_id),
        &column(closings, |c| c.claim.token),
        &column(closings, |c| c.claim.attempt),
        &column(closings, |c| c.verdict) as &[&str],
        &column(closings, |c| c.detail) as &[Option<&str>],
        &column(closings, |c| c.http_status) as &[Option<i32>],
        &column(closings, |c| c.provider_message.as_deref()) as &[Option<&str>],
        &column(closings, |c| c.error) as &[Option<&str>],
        &column(closings, |c| c.duration_ms),
        &column(closings, |c| c.state.name()) as &[&str],
        &column(closings, |c| c.waiting_for) as &[Option<&str>],
        &column(closings, |c| c.due_in_seconds) as &[Option<f64>],
        &column(closings, |c| c.retries),
        &column(closings, |c| c.reason_code) as &[Option<&str>],
        &column(closings, |c| &*c.reason) as &[&str],
        &column(closings, |c| c.keeps_payload),
        &column(closings, |c| c.acceptance.as_ref().and_then(|a| a.reference.as_deref()))
            as &[Option<&str>],
        &column(closings, |c| c.acceptance.as_ref().and_then(|a| a.verification_status.as_deref()))
            as &[Option<&str>],
        limits.verification_after.as_secs_f64(),
        &heads.iter().map(|head| head.entries).collect::<Vec<_>>(),
        &heads.iter().map(|head| head.mac).collect::<Vec<_>>() as &[[u8; 32]],
    )
    .fetch_all(&mut *tx)
    .await?;
    // By the attempt: a job may have another closing in the batch, whose claim is gone.
    let closed: HashMap<(Uuid, i32), bool> =
        closed.into_iter().map(|row| ((row.job_id, row.number), row.has_waiters)).collect();
    let awaited = |c: &&Closing| closed.get(&c.attempt()) == Some(&true);
    wake_newest(tx, &customers(closings.iter().copied().filter(awaited))).await?;
    let limited = |c: &&Closing| {
        closed.contains_key(&c.attempt()) && c.reason_code == Some(Rejection::UpdateLimitExceeded.code())
    };
    note_limits(tx, &customers(closings.iter().copied().filter(limited))).await?;
    Ok(closed.into_keys().collect())
}

fn customers<'a>(closings: impl Iterator<Item = &'a Closing>) -> Vec<Uuid> {
    closings.map(|closing| closing.claim.customer_id).collect()
}

/// The provider has just said of these customers that their updates are used up.
async fn note_limits(tx: &mut PgConnection, customers: &[Uuid]) -> sqlx::Result<()> {
    if customers.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "-- note_limits
        insert into customer (customer_id, limit_reached_at)
        select distinct customer_id, now() from unnest($1::uuid[]) as limited (customer_id)
        order by customer_id
        on conflict (customer_id) do update set limit_reached_at = now()",
        customers,
    )
    .execute(tx)
    .await?;
    Ok(())
}
