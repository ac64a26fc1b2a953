//! What the records say of customers. The domain decides by it.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::domain::state::{ConclusionKind, Evidence, Purpose, State, VerdictKind};
use crate::domain::suspicion::{ArchivedJobs, Customer, PastJob, PastRead, PastUpdate};

/// Takes the right to read a customer where nothing waits for the answer, unless anybody read them less
/// than `apart` ago. Returns the database's time.
pub(crate) async fn claim_read(
    connection: &mut PgConnection,
    customer_id: Uuid,
    apart: Duration,
) -> sqlx::Result<Option<OffsetDateTime>> {
    sqlx::query_scalar!(
        r#"-- claim_read
        insert into customer (customer_id, last_read_at)
        values ($1, now())
        on conflict (customer_id) do update set last_read_at = now()
            where customer.last_read_at is null
                or customer.last_read_at <= now() - make_interval(secs => $2)
        returning last_read_at as "at!""#,
        customer_id,
        apart.as_secs_f64(),
    )
    .fetch_optional(connection)
    .await
}

/// Reads what [`crate::domain::suspicion`] decides by, of each customer once. A customer of whom there
/// is nothing has no entry.
///
/// The caller names a job that is new: it has spent nothing yet, so it is left out, and what was spent
/// elsewhere is not read. Most customers have no other job, and then nothing is read.
///
/// Rows that change no decision are not read: attempts that spent nothing, jobs that ended without an
/// update that may have been applied, what webhooks say, and of all that wait for a first attempt, which
/// may be many, all but the newest. Of jobs that were archived there is one row a customer, and none where
/// nothing was.
pub(crate) async fn read_customers(
    tx: &mut PgConnection,
    asked: impl IntoIterator<Item = (Uuid, Option<Uuid>)>,
) -> sqlx::Result<HashMap<Uuid, Customer>> {
    let asked: HashMap<Uuid, Option<Uuid>> = asked.into_iter().collect();
    let (ids, new_jobs): (Vec<Uuid>, Vec<Option<Uuid>>) = asked.into_iter().unzip();
    // `offset 0` keeps each a look-up: of tables without statistics Postgres thinks that a customer has
    // hundreds of rows, and would read all of them instead.
    let rows = sqlx::query!(
        r#"-- read_customers
        with asked as (
            select * from unnest($1::uuid[], $2::uuid[]) as a (customer_id, new_job)
        ), past as (
            select a.customer_id, s.*
            from asked a
            cross join lateral (
                select
                    job_id, state, reason_code, evidence, requested_at, received_at, content_hmac, attempts,
                    ended_at
                from submission
                where customer_id = a.customer_id and attempts > 0 and job_id is distinct from a.new_job
                union all
                (
                    select
                        job_id, state, reason_code, evidence, requested_at, received_at, content_hmac, attempts,
                        ended_at
                    from submission w
                    where w.customer_id = a.customer_id and w.state = 'waiting' and w.attempts = 0
                    order by w.requested_at desc, w.received_at desc, w.job_id desc
                    limit 1
                )
                offset 0
            ) s
        )
        select
            p.customer_id as "customer_id!", p.job_id, null::integer as elsewhere,
            p.state as "state?: State", p.reason_code, p.evidence as "evidence?: Evidence",
            p.requested_at, p.received_at, p.content_hmac, p.attempts,
            u.number, u.verdict as "verdict?: VerdictKind", u.late_verdict = 'accepted' as is_accepted_late,
            u.begun_at, u.signed_at, u.ended_at,
            null as "purpose?: Purpose", null as status, null::timestamptz as at, null::timestamptz as read_at,
            null::timestamptz as dated_at, null as "conclusion?: ConclusionKind",
            null::integer as archived_accepted, null::integer as archived_unknown
        from past p
        left join lateral (
            select * from attempt a
            where a.job_id = p.job_id and (a.verdict is null or a.verdict in ('accepted', 'unknown'))
            offset 0
        ) u on true
        where u.number is not null or p.ended_at is null or p.state in ('accepted', 'needs_review')
        union all
        select
            r.customer_id, r.job_id, null, null, null, null, null, null, null, null, null, null, null, null, null,
            null, r.purpose, r.status, r.at, r.read_at, r.dated_at, r.conclusion, null, null
        from (select distinct customer_id from past) p
        cross join lateral (
            select * from observation o
            where o.customer_id = p.customer_id and o.purpose <> 'webhook'
                and (o.status is not null or o.conclusion is not null)
            offset 0
        ) r
        union all
        select
            c.customer_id, null, c.updates_elsewhere, null, null, null, null, null, null, null, null, null, null,
            null, null, null, null, null, null, null, null, null, null, null
        from asked a
        cross join lateral (
            select * from customer where customer_id = a.customer_id and updates_elsewhere > 0
            offset 0
        ) c
        where a.new_job is null
        union all
        -- What dates an update dates here the last of all.
        select
            g.customer_id, g.newest_job_id, null, null, null, null, g.newest_requested_at, g.newest_received_at,
            null, null, null, null, null, g.spent_at, g.signed_until, g.applied_until, null, g.word, g.word_at,
            g.word_read_at, g.word_dated_at, null, g.accepted, g.unknown_outcome
        from asked a
        cross join lateral (
            select * from archived_customer where customer_id = a.customer_id
            offset 0
        ) g"#,
        &ids,
        &new_jobs as &[Option<Uuid>],
    )
    .fetch_all(tx)
    .await?;
    let mut customers: HashMap<Uuid, Customer> = HashMap::new();
    for row in rows {
        let customer = customers.entry(row.customer_id).or_default();
        customer.updates_elsewhere += row.elsewhere.unwrap_or_default().unsigned_abs();
        if let (Some(accepted), Some(unknown)) = (row.archived_accepted, row.archived_unknown) {
            let dated = row.requested_at.zip(row.received_at).zip(row.job_id);
            let newest =
                dated.map(|((requested_at, received_at), job_id)| (requested_at, received_at, job_id));
            customer.archived = ArchivedJobs {
                accepted: accepted.unsigned_abs(),
                unknown: unknown.unsigned_abs(),
                spent_at: row.begun_at,
                newest,
                applied_until: row.ended_at.zip(row.signed_at),
            };
            if let (Some(word), Some(at)) = (row.status, row.at) {
                customer.reads.push(PastRead::of_archived(word, at, row.read_at, row.dated_at));
            }
            continue;
        }
        let Some(job_id) = row.job_id else { continue };
        if let (Some(purpose), Some(at)) = (row.purpose, row.at) {
            customer.reads.push(PastRead {
                job_id,
                purpose,
                status: row.status,
                at,
                read_at: row.read_at,
                dated_at: row.dated_at,
                conclusion: row.conclusion,
            });
            continue;
        }
        let place = customer.jobs.iter().position(|job| job.job_id == job_id);
        let (Some(state), Some(requested_at), Some(received_at)) =
            (row.state, row.requested_at, row.received_at)
        else {
            continue;
        };
        let place = place.unwrap_or_else(|| {
            customer.jobs.push(PastJob {
                job_id,
                state,
                reason_code: row.reason_code,
                evidence: row.evidence,
                requested_at,
                received_at,
                content_hmac: row.content_hmac,
                attempts: row.attempts.unwrap_or_default(),
                updates: Vec::new(),
            });
            customer.jobs.len() - 1
        });
        if let (Some(number), Some(begun_at), Some(signed_at)) = (row.number, row.begun_at, row.signed_at) {
            customer.jobs[place].updates.push(PastUpdate {
                number,
                verdict: row.verdict,
                is_accepted_late: row.is_accepted_late.unwrap_or_default(),
                begun_at,
                signed_at,
                ended_at: row.ended_at,
            });
        }
    }
    Ok(customers)
}
