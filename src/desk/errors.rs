//! What failed in the last day, by the hour and by its cause: what replicas have counted, and nothing else.

use serde::Serialize;
use sqlx::PgPool;
use time::OffsetDateTime;

/// What failed in the last day.
#[derive(Debug, Serialize)]
pub struct Errors {
    /// Until when attempts are counted.
    #[serde(with = "time::serde::rfc3339")]
    pub until: OffsetDateTime,
    /// The newest hour first, and in it the most frequent cause.
    pub hours: Vec<HourOfErrors>,
}

/// How many attempts that began in an hour were not accepted, for one cause.
#[derive(Debug, Serialize)]
pub struct HourOfErrors {
    #[serde(with = "time::serde::rfc3339")]
    pub hour: OffsetDateTime,
    pub verdict: String,
    pub detail: Option<String>,
    pub http_status: Option<i32>,
    pub attempts: i64,
}

/// What failed in the last 24 hours, and in the hour that they begin in.
pub async fn errors(pool: &PgPool) -> sqlx::Result<Errors> {
    let hours = sqlx::query_as!(
        HourOfErrors,
        r#"-- errors_by_hour
        select
            date_trunc('hour', minute) as "hour!", verdict, nullif(detail, '') as detail,
            nullif(http_status, 0) as http_status, sum(attempts) as "attempts!"
        from fleet_error
        where minute >= date_trunc('hour', now() - interval '24 hours')
        group by 1, 2, 3, 4
        order by 1 desc, 5 desc, 2, 3, 4"#,
    )
    .fetch_all(pool)
    .await?;
    Ok(Errors { until: minutes_until(pool).await?, hours })
}

/// Until when replicas have counted the minutes.
pub(crate) async fn minutes_until(pool: &PgPool) -> sqlx::Result<OffsetDateTime> {
    sqlx::query_scalar!(
        "-- minutes_until
        select minutes_until from fleet_reading",
    )
    .fetch_one(pool)
    .await
}
