//! Where the work stands, by what replicas have counted already: as cheap beside millions of jobs as beside
//! none.

use serde::Serialize;
use sqlx::PgPool;
use time::OffsetDateTime;

use crate::desk::errors::minutes_until;
use crate::desk::report::{LostJob, missing_jobs};
use crate::desk::story::AttemptView;
use crate::journal::fleet::{Figure, Figures, figures};
use crate::journal::pause::{Pause, current_pause};
use crate::journal::replicas::{WorkerView, workers};

/// Where the work stands.
#[derive(Debug, Serialize)]
pub struct Home {
    /// When the figures were read.
    #[serde(with = "time::serde::rfc3339")]
    pub read_at: OffsetDateTime,
    /// What the fleet knows, as `fleet_figure` has it.
    pub figures: Vec<Figure>,
    /// Until when the hours are counted.
    #[serde(with = "time::serde::rfc3339")]
    pub counted_until: OffsetDateTime,
    /// What ended in the last 24 hours, and in the hour that they begin in: the newest first.
    pub hours: Vec<HourOfEnds>,
    /// Every replica that lives or died lately.
    pub workers: Vec<WorkerView>,
    /// The pause that holds, if one does.
    pub pause: Option<Pause>,
    /// The last ten attempts of the day that were not answered as they should be, the latest first. A
    /// rejection is an answer.
    pub last_errors: Vec<AttemptView>,
    /// The last twenty jobs of which a failover lost commits that nobody could write again, and that no person
    /// has settled.
    pub missing: Vec<LostJob>,
}

/// How many jobs ended in an hour in one state.
#[derive(Debug, Serialize)]
pub struct HourOfEnds {
    #[serde(with = "time::serde::rfc3339")]
    pub hour: OffsetDateTime,
    pub state: String,
    pub jobs: i64,
}

/// Where the work stands, without a count of any table that grows.
pub async fn home(pool: &PgPool) -> sqlx::Result<Home> {
    let Figures { figures, read_at, .. } = figures(&mut *pool.acquire().await?).await?;
    Ok(Home {
        read_at,
        figures,
        counted_until: minutes_until(pool).await?,
        hours: hours(pool).await?,
        workers: workers(pool).await?,
        pause: current_pause(pool).await?,
        last_errors: last_errors(pool).await?,
        missing: missing_jobs(pool).await?,
    })
}

async fn hours(pool: &PgPool) -> sqlx::Result<Vec<HourOfEnds>> {
    sqlx::query_as!(
        HourOfEnds,
        r#"-- ends_by_hour
        select date_trunc('hour', minute) as "hour!", state, sum(jobs) as "jobs!"
        from fleet_ended
        where minute >= date_trunc('hour', now() - interval '24 hours')
        group by 1, 2
        order by 1 desc, 2"#,
    )
    .fetch_all(pool)
    .await
}

/// Attempts are read in the last ten minutes alone that had such an error, whichever of the day those are.
async fn last_errors(pool: &PgPool) -> sqlx::Result<Vec<AttemptView>> {
    sqlx::query_as!(
        AttemptView,
        r#"-- last_errors
        with failed as materialized (
            select distinct minute
            from fleet_error
            where verdict in ('not_sent', 'misconfigured', 'unknown')
            order by minute desc
            limit 10
        )
        select
            a.job_id, a.number, a.worker, a.begun_at, a.ended_at, a.verdict, a.late_verdict, a.detail,
            a.http_status, a.provider_message, a.error, a.duration_ms, a.checked
        from failed
        cross join lateral (
            select *
            from attempt
            where verdict in ('not_sent', 'misconfigured', 'unknown')
                and begun_at >= failed.minute and begun_at < failed.minute + interval '1 minute'
            order by begun_at desc
            limit 10
        ) a
        order by a.begun_at desc
        limit 10"#,
    )
    .fetch_all(pool)
    .await
}
