//! Jobs that match what a person asks for.

use serde::Serialize;
use sqlx::PgPool;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::domain::state::State;

/// How far back the first search goes, and how many times as far the next: the jobs of an hour are read in
/// milliseconds, and most lists need no older ones.
const LOOK_BACK_MIN: Duration = Duration::HOUR;
const LOOK_BACK_GROWTH: i32 = 4;

#[derive(Clone, Debug)]
pub struct Filter<'a> {
    /// Only jobs in this state.
    pub state: Option<State>,
    /// Only jobs with this reason.
    pub reason_code: Option<&'a str>,
    /// Only jobs of this customer.
    pub customer_id: Option<Uuid>,
    /// Only jobs whose verification is overdue and still followed.
    pub is_overdue: bool,
    /// Only jobs received since. Without it, jobs of any age: to be asked of a customer, or of
    /// a state that jobs do not stay in.
    pub since: Option<OffsetDateTime>,
    pub limit: i64,
}

/// A job in a list.
#[derive(Debug, Serialize)]
pub struct ListedJob {
    pub job_id: Uuid,
    pub customer_id: Option<Uuid>,
    pub state: String,
    pub waiting_for: Option<String>,
    pub reason_code: Option<String>,
    pub reason: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub received_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    pub attempts: i32,
    pub verification_status: Option<String>,
}

/// The jobs that match, those received last first. Reads no more than it has to go back.
pub async fn list(pool: &PgPool, filter: &Filter<'_>) -> sqlx::Result<Vec<ListedJob>> {
    let Some(since) = filter.since else { return list_since(pool, filter, None).await };
    let now = OffsetDateTime::now_utc();
    let mut look_back = LOOK_BACK_MIN;
    loop {
        let from = since.max(now.saturating_sub(look_back));
        let jobs = list_since(pool, filter, Some(from)).await?;
        // As many as were asked for, none older belongs among them.
        if from == since || i64::try_from(jobs.len()) == Ok(filter.limit) {
            return Ok(jobs);
        }
        look_back *= LOOK_BACK_GROWTH;
    }
}

async fn list_since(
    pool: &PgPool,
    filter: &Filter<'_>,
    since: Option<OffsetDateTime>,
) -> sqlx::Result<Vec<ListedJob>> {
    sqlx::query_as!(
        ListedJob,
        r#"-- list
        -- What was received since has ended since, or is in motion.
        with candidate as (
            select * from submission
            where ended_at is not null and ($4::timestamptz is null or ended_at >= $4)
            union all
            select * from submission where state = 'submitting'
            union all
            select * from submission where state = 'waiting'
            union all
            select * from submission where state = 'unknown'
        )
        select
            job_id as "job_id!", customer_id, state as "state!", waiting_for, reason_code, reason,
            received_at as "received_at!", ended_at, attempts as "attempts!", verification_status
        from candidate
        where ($1::text is null or state = $1) and ($2::text is null or reason_code = $2)
            and ($3::uuid is null or customer_id = $3) and ($4::timestamptz is null or received_at >= $4)
            and (not $6 or verification_overdue_at is not null and verification_due_at is not null)
        order by received_at desc, job_id
        limit $5"#,
        filter.state.map(State::name),
        filter.reason_code,
        filter.customer_id,
        since,
        filter.limit,
        filter.is_overdue,
    )
    .fetch_all(pool)
    .await
}
