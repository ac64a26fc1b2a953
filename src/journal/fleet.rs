//! What the fleet knows, read once for all: one replica at a time reads the figures, in one statement
//! and so in one snapshot, and spends at most a fiftieth of a connection on it. Everybody else reads
//! what it wrote down.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;

use crate::journal::error::JournalError;
use crate::journal::handle::Journal;
use crate::journal::pool::run;
use crate::journal::replicas::SEEN_WITHIN_SECONDS;

/// The figures are read no more often.
pub const READING_INTERVAL: Duration = Duration::from_secs(15);

/// The next reading comes after so many times as long as the last one took.
const REST: f64 = 50.0;

/// A job that has been due for so long is late: replicas take up what is due within a second.
const LATE_SECONDS: f64 = 60.0;

/// A figure of the fleet.
#[derive(Clone, Debug)]
pub struct Figure {
    pub figure: String,
    pub part: String,
    pub value: f64,
}

/// What the fleet knows, and how fresh that is.
#[derive(Clone, Debug)]
pub struct Figures {
    pub figures: Vec<Figure>,
    pub read_at: OffsetDateTime,
    pub took: Duration,
}

impl Journal {
    /// Reads the figures anew where it is time for that and no other replica does. Returns whether it did.
    ///
    /// Where a replica dies over it, another takes the turn after the interval. A failure leaves the
    /// figures as they were, and their age tells of it.
    pub async fn refresh_figures(&self) -> Result<bool, JournalError> {
        let turn = sqlx::query!(
            "-- begin_fleet_reading
            update fleet_reading set begun_at = now()
            where begun_at <= now() - make_interval(secs => greatest($1, took_seconds * $2))",
            READING_INTERVAL.as_secs_f64(),
            REST,
        );
        let turn = run("begin_fleet_reading", &self.pool, async |connection| turn.execute(connection).await);
        if turn.await?.rows_affected() == 0 {
            return Ok(false);
        }
        let begun = Instant::now();
        let read = sqlx::query!(
            r#"-- read_fleet
            with open as materialized (
                select
                    state, reason_code, age,
                    case when state = 'waiting' then 'waiting_' || waiting_for else state end as part,
                    is_late and (due_at is null or due_at < now() - make_interval(secs => $2)) as is_late
                from open_work
            ), replica as materialized (
                select cardinality(paused_for) = 0 as is_working from worker
                where seen_at > now() - make_interval(secs => $1)
            ), verification as materialized (
                select verification_due_at, verification_overdue_at from submission
                where verification_due_at is not null
            ), figures (figure, part, value) as (
                select 'open_jobs', part, count(*) from open group by part
                union all
                select 'oldest_open_seconds', part, extract(epoch from max(age)) from open group by part
                union all
                select 'late_jobs', '', count(*) from open where is_late
                union all
                select 'waiting_for_person', reason_code, count(*) from open
                    where state = 'needs_review' and reason_code is not null group by reason_code
                union all
                select 'verifications_running', '', count(*) from verification
                union all
                select 'verifications_overdue', '', count(verification_overdue_at) from verification
                union all
                select 'verification_reads_late_seconds', '',
                    greatest(coalesce(extract(epoch from now() - min(verification_due_at)), 0), 0)
                    from verification
                union all
                select 'replicas_alive', '', count(*) from replica
                union all
                select 'replicas_working', '', count(*) filter (where is_working) from replica
                union all
                select 'dead_lettered_day', reason_code, count(*) from dead_lettered_delivery
                    where received_at > now() - interval '1 day' group by reason_code
                union all
                select 'events_waiting', '', count(*) from outcome_event
                union all
                (
                    select 'oldest_event_seconds', '', extract(epoch from now() - written_at) from outcome_event
                    order by id
                    limit 1
                )
            ), removed as (
                delete from fleet_figure f
                where not exists (select from figures n where (n.figure, n.part) = (f.figure, f.part))
            )
            insert into fleet_figure (figure, part, value)
            select figure, part, value::float8 from figures
            on conflict (figure, part) do update set value = excluded.value"#,
            SEEN_WITHIN_SECONDS,
            LATE_SECONDS,
        );
        let read = run("read_fleet", &self.pool, async |connection| read.execute(connection).await).await;
        let took = begun.elapsed().as_secs_f64();
        let noted = sqlx::query!(
            "-- end_fleet_reading
            update fleet_reading
            set took_seconds = $1, read_at = case when $2 then now() else read_at end",
            took,
            read.is_ok(),
        );
        run("end_fleet_reading", &self.pool, async |connection| noted.execute(connection).await).await?;
        read.map(|_| true)
    }

    /// The figures, as they were read last.
    pub async fn figures(&self) -> Result<Figures, JournalError> {
        run("fleet_figures", &self.pool, async |connection| {
            let figures = sqlx::query_as!(
                Figure,
                "-- fleet_figures
                select figure, part, value from fleet_figure",
            )
            .fetch_all(&mut *connection)
            .await?;
            let reading = sqlx::query!(
                "-- fleet_reading
                select read_at, took_seconds from fleet_reading",
            )
            .fetch_one(connection)
            .await?;
            let took = Duration::try_from_secs_f64(reading.took_seconds).unwrap_or_default();
            Ok(Figures { figures, read_at: reading.read_at, took })
        })
        .await
    }
}
