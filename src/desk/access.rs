//! Who sees what, by the console; and what each of its pages begins with.

use serde::Serialize;
use sqlx::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::journal::pause::{Pause, current_pause};

/// What every page says, by the database's clock.
#[derive(Clone, Debug)]
pub struct Standing {
    pub now: OffsetDateTime,
    /// The pause that holds, if one does.
    pub pause: Option<Pause>,
}

pub async fn standing(pool: &PgPool) -> sqlx::Result<Standing> {
    let mut connection = pool.acquire().await?;
    let now = sqlx::query_scalar!(
        r#"-- now
        select now() as "now!""#
    )
    .fetch_one(&mut *connection)
    .await?;
    Ok(Standing { now, pause: current_pause(&mut *connection).await? })
}

/// Somebody sees a job or a customer.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    pub by: &'a str,
    pub page: &'a str,
    pub job_id: Option<Uuid>,
    pub customer_id: Option<Uuid>,
}

/// Writes down who sees whom.
pub async fn record_access(pool: &PgPool, seen: Seen<'_>) -> sqlx::Result<()> {
    sqlx::query!(
        "-- record_access
        insert into access_record (by, page, job_id, customer_id) values ($1, $2, $3, $4)",
        seen.by,
        seen.page,
        seen.job_id,
        seen.customer_id,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Writes down who sees whom in a list of jobs.
pub async fn record_accesses(
    pool: &PgPool,
    by: &str,
    page: &str,
    seen: &[(Uuid, Option<Uuid>)],
) -> sqlx::Result<()> {
    let (jobs, customers): (Vec<Uuid>, Vec<Option<Uuid>>) = seen.iter().copied().unzip();
    sqlx::query!(
        "-- record_accesses
        insert into access_record (by, page, job_id, customer_id)
        select $1, $2, job_id, customer_id from unnest($3::uuid[], $4::uuid[]) as seen (job_id, customer_id)",
        by,
        page,
        &jobs,
        &customers as &[Option<Uuid>],
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// That somebody saw a job or a customer.
#[derive(Debug, Serialize)]
pub struct AccessView {
    pub id: i64,
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    pub by: String,
    pub page: String,
    pub job_id: Option<Uuid>,
    pub customer_id: Option<Uuid>,
}

/// Who saw whom, or one customer, the newest first: of those before a number, which is that of the page before.
pub async fn accesses(
    pool: &PgPool,
    customer_id: Option<Uuid>,
    before_id: Option<i64>,
    limit: i64,
) -> sqlx::Result<Vec<AccessView>> {
    let before_id = before_id.unwrap_or(i64::MAX);
    // Two statements, so that each has its index.
    let Some(customer_id) = customer_id else {
        return sqlx::query_as!(
            AccessView,
            "-- accesses
            select id, at, by, page, job_id, customer_id
            from access_record
            where id < $1
            order by id desc
            limit $2",
            before_id,
            limit,
        )
        .fetch_all(pool)
        .await;
    };
    sqlx::query_as!(
        AccessView,
        "-- accesses_of_customer
        select id, at, by, page, job_id, customer_id
        from access_record
        where customer_id = $1 and id < $2
        order by id desc
        limit $3",
        customer_id,
        before_id,
        limit,
    )
    .fetch_all(pool)
    .await
}

/// Whether the database answers.
pub async fn answers(pool: &PgPool) -> bool {
    sqlx::query("-- answers\nselect 1").execute(pool).await.is_ok()
}

/// Whether the role that is logged in may see what is sealed.
pub async fn may_see_payloads(pool: &PgPool) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"-- may_see_payloads
        select has_column_privilege('public.submission', 'sealed_payload', 'select')
            or has_column_privilege('public.submission', 'content_hmac', 'select') as "may!""#
    )
    .fetch_one(pool)
    .await
}
