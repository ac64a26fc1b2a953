//! Upstream is told again what the books say: for consumers that lost their queue, or that came later than
//! the jobs. Events are written down as new ones are, and the replicas publish them.

use sqlx::{PgConnection, PgPool};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::domain::state::EventKind;
use crate::journal::statements::events::{tell_ends, tell_verifications};
use crate::journal::transact;

/// How many jobs are told of in one commit.
const PAGE: i64 = 500;

/// A verification that ended so much later than its job is not found by its time.
pub const VERIFICATION_TIME_MAX: Duration = Duration::days(90);

/// Which jobs are told of again.
#[derive(Clone, Copy, Debug)]
pub struct Selection {
    /// Those that ended from then on, or whose verification did.
    pub since: OffsetDateTime,
    /// Those that ended before then: of what ends later, the replicas tell as it comes.
    pub until: OffsetDateTime,
    /// Only this customer's.
    pub customer_id: Option<Uuid>,
}

/// Where a replay stands: behind this job, by when it ended.
pub type Cursor = Option<(OffsetDateTime, Uuid)>;

/// What one page came to.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// How many jobs were told of.
    pub jobs: u64,
    /// How many events that made.
    pub events: u64,
    /// The number of the last of them.
    pub last_id: i64,
    pub cursor: Cursor,
}

/// What waits to be published.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// The number of the event that has waited the longest.
    pub first_id: Option<i64>,
    /// Whether a replica publishes events now.
    pub is_published: bool,
    /// The database's time.
    pub now: OffsetDateTime,
}

/// How many jobs a selection means.
pub async fn count(pool: &PgPool, selection: Selection) -> sqlx::Result<u64> {
    let count = sqlx::query_scalar!(
        r#"-- count_told
        select count(*) as "count!"
        from submission
        where ended_at >= $1 and ended_at < $4 and ($3::uuid is null or customer_id = $3)
            and (ended_at >= $2 or coalesce(verification_ended_at, verification_seen_at) >= $2 or verification_overdue_at >= $2)"#,
        selection.from(),
        selection.since,
        selection.customer_id,
        selection.until,
    )
    .fetch_one(pool)
    .await?;
    Ok(count.unsigned_abs())
}

/// Writes down the events of the next jobs of the selection behind `cursor`, in the order in which they
/// ended; `None` where there are no more. Their rows are locked meanwhile: an event that is new then gets a
/// later number.
pub async fn tell_page(pool: &PgPool, selection: Selection, cursor: Cursor) -> sqlx::Result<Option<Page>> {
    transact(pool, async |tx| {
        let (ended_at, job_id) = cursor.unwrap_or((selection.from(), Uuid::nil()));
        let rows = sqlx::query!(
            r#"-- lock_told
            select job_id, ended_at as "ended_at!"
            from submission
            where (ended_at, job_id) > ($1, $2) and ended_at >= $1 and ended_at < $6 and ($4::uuid is null or customer_id = $4)
                and (ended_at >= $3 or coalesce(verification_ended_at, verification_seen_at) >= $3 or verification_overdue_at >= $3)
            order by ended_at, job_id
            limit $5
            for no key update"#,
            ended_at,
            job_id,
            selection.since,
            selection.customer_id,
            PAGE,
            selection.until,
        )
        .fetch_all(&mut *tx)
        .await?;
        let Some(last) = rows.last() else { return Ok(None) };
        let cursor = Some((last.ended_at, last.job_id));
        let jobs: Vec<Uuid> = rows.iter().map(|row| row.job_id).collect();
        let events = tell_ends(tx, &jobs).await? + tell_verifications(tx, &jobs, EventKind::ALL).await?;
        let last_id = last_id(tx).await?;
        Ok(Some(Page { jobs: jobs.len() as u64, events, last_id, cursor }))
    })
    .await
}

async fn last_id(tx: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"-- last_event
        select coalesce(max(id), 0) as "last!" from outcome_event"#,
    )
    .fetch_one(tx)
    .await
}

/// What waits to be published, and whether anybody publishes it.
pub async fn waiting(pool: &PgPool) -> sqlx::Result<Waiting> {
    sqlx::query_as!(
        Waiting,
        r#"-- events_waiting
        select
            (select min(id) from outcome_event) as first_id, turn_until > now() as "is_published!",
            now() as "now!"
        from event_publishing"#,
    )
    .fetch_one(pool)
    .await
}

impl Selection {
    /// No job that ended before this is read.
    fn from(self) -> OffsetDateTime {
        self.since.checked_sub(VERIFICATION_TIME_MAX).unwrap_or(self.since)
    }
}
