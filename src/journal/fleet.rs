//! What the fleet knows, read once for all: one replica at a time reads the figures, in one statement
//! and so in one snapshot, counts the minutes since it was last done, and spends at most a fiftieth of a
//! connection on both. Everybody else reads what it wrote down.

use std::time::Duration;

use serde::Serialize;
use sqlx::PgConnection;
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

/// One statement counts the minutes of no longer a span.
const MINUTES_AT_ONCE: time::Duration = time::Duration::HOUR;

/// A turn begins no further span after so long: the turns after it go on from there.
const COUNTING_TIME_MAX: Duration = Duration::from_secs(1);

/// A figure of the fleet.
#[derive(Clone, Debug, Serialize)]
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

/// The turn to read, and where the minutes begin that are to be counted.
#[derive(Clone, Copy)]
struct Turn {
    now: OffsetDateTime,
    minutes_since: OffsetDateTime,
}

impl Journal {
    /// Reads the figures anew, and counts minutes, where it is time for that and no other replica does.
    /// Returns whether it did.
    ///
    /// Where a replica dies over it, another takes the turn after the interval. A failure leaves the
    /// figures as they were, and their age tells of it.
    pub async fn refresh_figures(&self) -> Result<bool, JournalError> {
        let turn = run("begin_fleet_reading", &self.pool, async |connection| {
            sqlx::query_as!(
                Turn,
                // What is committed within two minutes of its time is counted. A clock that was ahead, and was
                // put right, holds nothing up.
                r#"-- begin_fleet_reading
                update fleet_reading set begun_at = now()
                where begun_at <= now() - make_interval(secs => greatest($1, took_seconds * $2))
                returning
                    now() as "now!",
                    date_trunc(
                        'minute',
                        greatest(least(minutes_until, now()) - interval '2 minutes', now() - interval '24 hours')
                    ) as "minutes_since!""#,
                READING_INTERVAL.as_secs_f64(),
                REST,
            )
            .fetch_optional(connection)
            .await
        });
        let Some(turn) = turn.await? else { return Ok(false) };
        let begun = Instant::now();
        let read = self.read_figures().await;
        let counted = self.count_minutes(turn).await;
        let took = begun.elapsed().as_secs_f64();
        let noted = sqlx::query!(
            "-- end_fleet_reading
            update fleet_reading
            set took_seconds = $1, read_at = case when $2 then now() else read_at end",
            took,
            read.is_ok(),
        );
        run("end_fleet_reading", &self.pool, async |connection| noted.execute(connection).await).await?;
        read.and(counted).map(|()| true)
    }

    /// Reads what the fleet knows now.
    async fn read_figures(&self) -> Result<(), JournalError> {
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
        run("read_fleet", &self.pool, async |connection| read.execute(connection).await).await.map(|_| ())
    }

    /// Counts what ended, and which attempts failed, in the minutes that are due, anew; forgets those of more
    /// than a day ago. The counts are committed with how far they reach.
    async fn count_minutes(&self, Turn { now, minutes_since }: Turn) -> Result<(), JournalError> {
        let begun = Instant::now();
        let mut since = minutes_since;
        while since < now && begun.elapsed() < COUNTING_TIME_MAX {
            let until = now.min(since + MINUTES_AT_ONCE);
            self.count_span(since, until).await?;
            since = until;
        }
        Ok(())
    }

    async fn count_span(&self, since: OffsetDateTime, until: OffsetDateTime) -> Result<(), JournalError> {
        let counted = sqlx::query!(
            "-- count_fleet_minutes
            with ended as materialized (
                select date_trunc('minute', ended_at) as minute, state, count(*) as jobs
                from submission
                where ended_at >= $1 and ended_at < $2
                group by 1, 2
            ), failed as materialized (
                select
                    date_trunc('minute', begun_at) as minute, verdict, coalesce(detail, '') as detail,
                    coalesce(http_status, 0) as http_status, count(*) as attempts
                from attempt
                where verdict <> 'accepted' and begun_at >= $1 and begun_at < $2
                group by 1, 2, 3, 4
            ), removed_ended as (
                delete from fleet_ended f
                where f.minute < now() - interval '25 hours'
                    or f.minute >= $1 and f.minute < $2
                        and not exists (select from ended n where (n.minute, n.state) = (f.minute, f.state))
            ), removed_failed as (
                delete from fleet_error f
                where f.minute < now() - interval '25 hours'
                    or f.minute >= $1 and f.minute < $2 and not exists (
                        select from failed n
                        where (n.minute, n.verdict, n.detail, n.http_status)
                            = (f.minute, f.verdict, f.detail, f.http_status)
                    )
            ), counted_ended as (
                insert into fleet_ended (minute, state, jobs)
                select minute, state, jobs from ended
                on conflict (minute, state) do update set jobs = excluded.jobs
            ), counted_failed as (
                insert into fleet_error (minute, verdict, detail, http_status, attempts)
                select minute, verdict, detail, http_status, attempts from failed
                on conflict (minute, verdict, detail, http_status) do update set attempts = excluded.attempts
            )
            update fleet_reading set minutes_until = $2",
            since,
            until,
        );
        let counted =
            run("count_fleet_minutes", &self.pool, async |connection| counted.execute(connection).await);
        counted.await.map(|_| ())
    }

    /// The figures, as they were read last.
    pub async fn figures(&self) -> Result<Figures, JournalError> {
        run("fleet_figures", &self.pool, figures).await
    }
}

/// The figures, as they were read last.
pub async fn figures(connection: &mut PgConnection) -> sqlx::Result<Figures> {
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
}
