//! After a failover: what this process remembers is compared with the tables, what is missing is written
//! again as it was, and the replicas wait for each other before any of them goes on.
//!
//! The database's standby may not have had the last commits. What rested on them has happened: deliveries
//! were acked, updates were sent. A job whose attempt is forgotten would be sent again.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use sqlx::Connection as _;
use sqlx::postgres::{PgConnection, PgPool};
use time::OffsetDateTime;
use tokio::time::timeout;
use uuid::Uuid;

use crate::domain::state::WaitingFor;
use crate::journal::error::{ONE_CLAIM, is_taken};
use crate::journal::handle::Journal;
use crate::journal::lineage::{self, Lineage};
use crate::journal::memory::Write;
use crate::journal::pause::{Pause, current_pause};
use crate::journal::replicas::SEEN_WITHIN_SECONDS;
use crate::journal::session::{CONNECT_TIME_MAX, Session};
use crate::journal::statements::claim::{Claim, is_begun, restore_claim};
use crate::journal::statements::open::{delete_invalid, insert_waiting};

/// Other replicas have so long to write what they remember: an attempt may need a slot that another's
/// lost result frees.
const RESTORE_TIME_MAX: Duration = Duration::from_secs(10);

/// Replicas that were alive before a failover are waited for so long. One that died with the old server
/// has taken what it remembers with it.
pub const OTHERS_WAIT: Duration = Duration::from_secs(30);

/// Where people read what to do.
pub const RUNBOOK: &str = "docs/operations.md, \"A failover\"";

/// How many jobs are looked up at once.
const COMPARED_AT_ONCE: usize = 500;

/// Whether rows must be compared before anything else is done.
pub fn is_due() -> bool {
    lineage::is_unsure()
}

/// What a failover lost of a job.
#[derive(Clone, Debug)]
pub struct LostCommit {
    pub job_id: Uuid,
    pub customer_id: Uuid,
    /// The first that was lost.
    pub lost: Lost,
    /// The last attempt that is remembered, and what it came to.
    pub attempt: Option<i32>,
    pub verdict: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lost {
    Job,
    Attempt,
    Result,
}

impl Lost {
    pub fn name(self) -> &'static str {
        match self {
            Self::Job => "job",
            Self::Attempt => "attempt",
            Self::Result => "result",
        }
    }
}

/// How far a comparison has come.
#[derive(Debug, Default)]
pub struct Survey {
    /// What was missing, and is written again.
    pub restored: Vec<LostCommit>,
    /// What could not be written again. The work is paused.
    pub missing: Vec<LostCommit>,
    /// Whether the oldest that is remembered was missing: what was before it may be, too. The work is paused.
    pub is_bottomless: bool,
    /// The replicas that are waited for.
    pub awaited: Vec<String>,
    /// Whether this replica goes on: nothing is waited for any more.
    pub is_over: bool,
    /// The pause that holds then.
    pub pause: Option<Pause>,
}

/// A job, and which of its writes is the first that the tables have not.
struct Missing {
    writes: Vec<Write>,
    first: usize,
}

impl Missing {
    fn describe(&self) -> Option<LostCommit> {
        let lost = self.writes.get(self.first)?;
        let claim = self.writes.iter().rev().find_map(Write::claim);
        Some(LostCommit {
            job_id: lost.job_id(),
            customer_id: lost.customer_id(),
            lost: match lost {
                Write::Opened(_) => Lost::Job,
                Write::Begun(_) => Lost::Attempt,
                Write::Closed(_) => Lost::Result,
            },
            attempt: claim.map(|claim| claim.attempt),
            verdict: self.writes.last().and_then(|write| match write {
                Write::Closed(closing) => Some(closing.attempt.verdict),
                Write::Opened(_) | Write::Begun(_) => None,
            }),
        })
    }
}

impl Journal {
    /// Takes one turn: compares, writes again what is missing, and looks for the other replicas. To be
    /// called again until it is over; `elapsed` is the time since the first turn, and `instance` is this
    /// process.
    ///
    /// # Errors
    /// When the database does not answer, or nobody may write there yet.
    pub async fn survey(&self, instance: &str, elapsed: Duration) -> sqlx::Result<Survey> {
        let options = self.pool.connect_options();
        let mut connection = timeout(CONNECT_TIME_MAX, Session::Work.connect(&options))
            .await
            .unwrap_or(Err(sqlx::Error::PoolTimedOut))?;
        let found = Lineage::of(&mut connection).await?;
        let name = |lineage: &Option<Lineage>| lineage.as_ref().map(|lineage| lineage.name.clone());
        let is_failover = name(&found) != name(&lineage::known());
        let mut survey = Survey::default();
        let horizon = self.memory.horizon();
        for job in self.missing(&mut connection).await? {
            survey.is_bottomless |= job.first == 0 && job.writes.first().map(Write::job_id) == horizon;
            let Some(lost) = job.describe() else { continue };
            let written = match self.write_again(&mut connection, &job, &lost).await {
                Err(error) if is_taken(&error, &[ONE_CLAIM]) => false,
                written => written?,
            };
            if written { &mut survey.restored } else { &mut survey.missing }.push(lost);
        }
        // What this replica cannot write yet, another may make room for.
        if !survey.missing.is_empty() && elapsed < RESTORE_TIME_MAX {
            survey.missing.clear();
            return Ok(survey);
        }
        self.hand_over(&mut connection, &survey).await?;
        if let Some(found) = found.as_ref().filter(|_| is_failover) {
            stand(&mut connection, &self.worker, instance, &found.name).await?;
            survey.awaited = awaited(&mut connection, &found.name).await?;
        }
        if survey.awaited.is_empty() || elapsed >= OTHERS_WAIT {
            survey.pause = current_pause(&mut connection).await?;
            self.floors.forget();
            lineage::adopt(found);
            survey.is_over = true;
        }
        connection.close().await.ok();
        Ok(survey)
    }

    /// The jobs of which something is remembered that the tables have not.
    async fn missing(&self, connection: &mut PgConnection) -> sqlx::Result<Vec<Missing>> {
        let mut missing = Vec::new();
        let jobs = self.memory.by_job();
        for jobs in jobs.chunks(COMPARED_AT_ONCE) {
            let ids: Vec<Uuid> = jobs.iter().filter_map(|job| job.first()).map(Write::job_id).collect();
            let rows = sqlx::query_scalar!(
                "-- remembered_jobs
                select job_id from submission where job_id = any($1) and state <> 'invalid'",
                &ids
            );
            let rows: HashSet<Uuid> = rows.fetch_all(&mut *connection).await?.into_iter().collect();
            let attempts = sqlx::query!(
                r#"-- remembered_attempts
                select job_id, number, signed_at, ended_at is not null as "is_closed!"
                from attempt where job_id = any($1) and worker = $2"#,
                &ids,
                self.worker,
            );
            let attempts: HashMap<(Uuid, i32, OffsetDateTime), bool> = attempts
                .fetch_all(&mut *connection)
                .await?
                .into_iter()
                .map(|row| ((row.job_id, row.number, row.signed_at), row.is_closed))
                .collect();
            for job in jobs {
                let is_missing = |write: &Write| match write {
                    Write::Opened(row) => !rows.contains(&row.job_id),
                    Write::Begun(claim) => !attempts.contains_key(&name_of(claim)),
                    Write::Closed(closing) => attempts.get(&name_of(&closing.claim)) != Some(&true),
                };
                if let Some(first) = job.iter().position(is_missing) {
                    missing.push(Missing { writes: job.clone(), first });
                }
            }
        }
        Ok(missing)
    }

    /// Writes what is missing of a job again, as it was, in one commit. False, and nothing is written, where
    /// the job stands elsewhere by now.
    async fn write_again(
        &self,
        connection: &mut PgConnection,
        job: &Missing,
        lost: &LostCommit,
    ) -> sqlx::Result<bool> {
        let mut tx = connection.begin().await?;
        for write in job.writes.iter().skip(job.first) {
            if let Write::Opened(row) = write {
                delete_invalid(&mut tx, row.job_id).await?;
                insert_waiting(&mut tx, row, WaitingFor::Retry).await?;
            }
            if let Some(claim) = write.claim() {
                restore_claim(&mut tx, &self.worker, claim, self.limits.claim_lease).await?;
            }
            let is_written = match write {
                Write::Opened(_) => true,
                Write::Begun(claim) => is_begun(&mut tx, &self.worker, claim).await?,
                Write::Closed(closing) => self.close_alone(&mut tx, closing).await?,
            };
            if !is_written {
                tx.rollback().await?;
                return Ok(false);
            }
        }
        note(&mut tx, &self.worker, lost, true).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Hands what could not be written again to a person, and pauses the work until one has acted. It is
    /// not compared again.
    async fn hand_over(&self, connection: &mut PgConnection, survey: &Survey) -> sqlx::Result<()> {
        let missing = &survey.missing;
        if missing.is_empty() && !survey.is_bottomless {
            return Ok(());
        }
        let mut tx = connection.begin().await?;
        for lost in missing {
            note(&mut tx, &self.worker, lost, false).await?;
        }
        let further = if survey.is_bottomless { ", and what no replica remembers any more" } else { "" };
        let text = format!(
            "the database lost commits of {} jobs that cannot be written again{further}: {RUNBOOK}",
            missing.len()
        );
        sqlx::query!(
            "-- pause_after_failover
            insert into intervention (action, by, note) values ('pause', $1, $2)",
            self.worker,
            text,
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        self.memory.forget(&missing.iter().map(|lost| lost.job_id).collect());
        Ok(())
    }
}

/// What an attempt of this replica's is known by.
fn name_of(claim: &Claim) -> (Uuid, i32, OffsetDateTime) {
    (claim.job.id, claim.attempt, claim.t0.wall.into())
}

/// Notes what was lost.
async fn note(tx: &mut PgConnection, worker: &str, lost: &LostCommit, is_restored: bool) -> sqlx::Result<()> {
    sqlx::query!(
        "-- note_lost_commit
        insert into lost_commit (worker, job_id, customer_id, lost, attempt, verdict, is_restored)
        values ($1, $2, $3, $4, $5, $6, $7)",
        worker,
        lost.job_id,
        lost.customer_id,
        lost.lost.name(),
        lost.attempt,
        lost.verdict,
        is_restored,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Tells the others that this replica has compared what it remembers. Its row keeps the time at which it
/// was seen on the old server: it tells who else was alive then.
async fn stand(
    connection: &mut PgConnection,
    worker: &str,
    instance: &str,
    lineage: &str,
) -> sqlx::Result<()> {
    sqlx::query!(
        "-- stand
        insert into worker (name, instance, version, started_at, seen_at, in_flight, paused_for, lineage)
        values ($1, $2, $3, now(), coalesce((select max(seen_at) from worker), now()), 0, '{database}', $4)
        on conflict (name, instance) do update set lineage = $4",
        worker,
        instance,
        env!("CARGO_PKG_VERSION"),
        lineage,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The replicas that were alive on another history and have not come over to this one.
async fn awaited(connection: &mut PgConnection, lineage: &str) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar!(
        r#"-- awaited_replicas
        select name || ' (' || instance || ')' as "replica!"
        from worker
        where lineage <> $1 and seen_at > (select max(seen_at) from worker) - make_interval(secs => $2)
        order by name, instance"#,
        lineage,
        SEEN_WITHIN_SECONDS,
    )
    .fetch_all(connection)
    .await
}

/// The replicas that this one waits for before it starts: since they last wrote, a failover came about.
///
/// # Errors
/// When the database does not answer.
pub async fn awaited_at_start(pool: &PgPool) -> sqlx::Result<Vec<String>> {
    let Some(lineage) = lineage::known() else { return Ok(Vec::new()) };
    awaited(&mut *pool.acquire().await?, &lineage.name).await
}
