//! Which replicas work, as each of them writes down, and as people see it.

use serde::Serialize;
use serde_json::Value;
use sqlx::PgPool;
use time::OffsetDateTime;

use crate::journal::error::JournalError;
use crate::journal::handle::Journal;
use crate::journal::lineage;
use crate::journal::pause::Pause;
use crate::journal::pool::run;

/// A replica that has not been seen for so long is taken for dead.
pub(crate) const SEEN_WITHIN_SECONDS: f64 = 10.0;

/// How long the row of a replica that died tells of it.
const REMEMBERED_SECONDS: f64 = 3600.0;

/// What a replica says of itself.
#[derive(Clone, Debug)]
pub struct Pulse<'a> {
    pub instance: &'a str,
    pub started_at: OffsetDateTime,
    /// How many deliveries and jobs it is working on.
    pub in_flight: usize,
    /// Why its intake is paused.
    pub paused_for: Vec<String>,
}

/// What a replica heard as it beat.
#[derive(Debug)]
pub struct Heard {
    /// The pause that holds, if one does.
    pub pause: Option<Pause>,
    /// Whether its row has its settings.
    pub has_settings: bool,
}

/// A replica as people see it.
#[derive(Debug, Serialize)]
pub struct WorkerView {
    pub name: String,
    pub instance: String,
    pub version: String,
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub seen_at: OffsetDateTime,
    pub in_flight: i32,
    pub paused_for: Vec<String>,
    /// Whether it was seen within the last ten seconds.
    pub is_alive: bool,
}

impl Journal {
    /// Writes down that this replica lives, and reads whether the work is paused.
    pub async fn beat(&self, pulse: &Pulse<'_>) -> Result<Heard, JournalError> {
        let beaten = run("beat", &self.pool, async |connection| {
            sqlx::query!(
                r#"-- beat
                with beaten as (
                    insert into worker (
                        name, instance, version, started_at, seen_at, in_flight, paused_for, lineage
                    )
                    values ($1, $6, $2, $3, now(), $4, $5, $7)
                    on conflict (name, instance) do update
                        set version = $2, started_at = $3, seen_at = now(), in_flight = $4, paused_for = $5,
                            lineage = $7
                    returning settings is not null as has_settings
                ), newest as (
                    select action, at, by, note
                    from intervention
                    where action in ('pause', 'resume')
                    order by id desc
                    limit 1
                )
                select
                    now() as "seen_at!", has_settings as "has_settings!", at as "at?", by as "by?",
                    note as "note?"
                from beaten
                left join newest on action = 'pause'"#,
                self.worker,
                env!("CARGO_PKG_VERSION"),
                pulse.started_at,
                i32::try_from(pulse.in_flight).unwrap_or(i32::MAX),
                &pulse.paused_for,
                pulse.instance,
                lineage::known().map(|lineage| lineage.text()),
            )
            .fetch_one(connection)
            .await
        })
        .await?;
        self.memory.note_beat(beaten.seen_at);
        let pause = match (beaten.at, beaten.by, beaten.note) {
            (Some(at), Some(by), Some(note)) => Some(Pause { at, by, note }),
            _ => None,
        };
        Ok(Heard { pause, has_settings: beaten.has_settings })
    }

    /// Writes down what this replica is set to. Its row keeps that: no heartbeat writes it again.
    pub async fn tell_settings(&self, instance: &str, settings: &Value) -> Result<(), JournalError> {
        run("tell_settings", &self.pool, async |connection| {
            sqlx::query!(
                "-- tell_settings
                update worker set settings = $3::text::jsonb where name = $1 and instance = $2",
                self.worker,
                instance,
                settings.to_string(),
            )
            .execute(connection)
            .await
        })
        .await?;
        Ok(())
    }

    /// Removes this replica's row: it stops in good order.
    pub async fn leave(&self, instance: &str) -> Result<(), JournalError> {
        run("leave", &self.pool, async |connection| {
            sqlx::query!(
                "-- leave
                delete from worker where name = $1 and instance = $2",
                self.worker,
                instance,
            )
            .execute(connection)
            .await
        })
        .await?;
        Ok(())
    }

    /// Forgets replicas that died long ago.
    pub async fn sweep_workers(&self) -> Result<(), JournalError> {
        run("sweep_workers", &self.pool, async |connection| {
            sqlx::query!(
                "-- sweep_workers
                delete from worker where seen_at < now() - make_interval(secs => $1)",
                REMEMBERED_SECONDS,
            )
            .execute(connection)
            .await
        })
        .await?;
        Ok(())
    }
}

/// What a replica is set to, as it wrote that down.
#[derive(Debug, Serialize)]
pub struct WorkerSettings {
    pub name: String,
    pub instance: String,
    /// Each value by its variable, secrets excepted. None before the first heartbeat was answered, and of an
    /// older version.
    pub settings: Option<Value>,
}

/// What every replica that lives or died lately is set to.
pub async fn worker_settings(pool: &PgPool) -> sqlx::Result<Vec<WorkerSettings>> {
    let rows = sqlx::query!(
        "-- worker_settings
        select name, instance, settings::text as settings from worker order by name, instance",
    )
    .fetch_all(pool)
    .await?;
    let told = rows.into_iter().map(|row| {
        let settings = row.settings.map(|text| serde_json::from_str(&text)).transpose();
        let settings = settings.map_err(|error| sqlx::Error::Decode(error.into()))?;
        Ok(WorkerSettings { name: row.name, instance: row.instance, settings })
    });
    told.collect()
}

/// Every replica that lives or died lately.
pub async fn workers(pool: &PgPool) -> sqlx::Result<Vec<WorkerView>> {
    sqlx::query_as!(
        WorkerView,
        r#"-- workers
        select
            name, instance, version, started_at, seen_at, in_flight, paused_for,
            seen_at > now() - make_interval(secs => $1) as "is_alive!"
        from worker
        order by name, instance"#,
        SEEN_WITHIN_SECONDS,
    )
    .fetch_all(pool)
    .await
}
