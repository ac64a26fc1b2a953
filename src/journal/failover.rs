//! After a failover: what this process remembers is compared with the tables, what is missing is written
//! again as it was, and the replicas wait for each other before any of them goes on.
//!
//! The database's standby may not have had the last commits. What rested on them has happened: deliveries
//! were acked, updates were sent. A job whose attempt is forgotten would be sent again.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use sqlx::Connection as _;
use sqlx::postgres::PgConnection;
use time::OffsetDateTime;
use tokio::time::timeout;
use uuid::Uuid;

use crate::journal::error::{JournalError, ONE_CLAIM, is_taken};
use crate::journal::handle::Journal;
use crate::journal::lineage::{self, Lineage};
use crate::journal::memory::Write;
use crate::journal::pause::{Pause, current_pause, lock_pause};
use crate::journal::pool::in_time;
use crate::journal::replicas::SEEN_WITHIN_SECONDS;
use crate::journal::rows::NewRow;
use crate::journal::session::{CONNECT_TIME_MAX, Session};
use crate::journal::statements::claim::{Claim, restore_claims};
use crate::journal::statements::close::{Closing, close_many};
use crate::journal::statements::history::lock_heads;
use crate::journal::statements::open::restore_rows;

/// What cannot be written yet is given up when no replica has written anything for so long: an attempt may
/// need a slot that another's lost result frees, or the attempt before it.
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// A replica that has written something again within that time is waited for. Longer than it takes one to
/// give up, which pauses the work.
const WRITING_WITHIN_SECONDS: f64 = 20.0;

/// After a failover that has lost nothing of this replica's: others may have started since its last commit.
const SHORT_WAIT: Duration = Duration::from_secs(3);

/// Where people read what to do.
pub const RUNBOOK: &str = "docs/operations.md, \"A failover\"";

/// How many jobs are compared, and written again, at once.
const AT_ONCE: usize = 500;

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

/// A comparison with what a server has. It is taken up turn by turn until it is over.
#[derive(Debug, Default)]
pub struct Survey {
    lineage: Option<Lineage>,
    /// For how long the server has answered.
    pub answering: Duration,
    /// When, by that time, something was last written again.
    progressed_at: Duration,
    /// Whether anything that this replica had committed was missing.
    has_lost: bool,
    /// Whether the oldest that is remembered was missing: what was before it may be, too. The work is paused.
    pub is_bottomless: bool,
    /// What was written again, and what could not be. The work is paused for the latter. Whoever has told of
    /// them takes them out.
    pub restored: Vec<LostCommit>,
    pub missing: Vec<LostCommit>,
    /// The replicas that are waited for, and whether each of them writes.
    pub awaited: Vec<Other>,
    /// Whether this replica has told the others that it has written what it remembers.
    pub has_confirmed: bool,
    /// Whether the wait is over. [`Journal::adopt`] goes on, once the pause is obeyed.
    pub is_over: bool,
    /// The pause that holds then.
    pub pause: Option<Pause>,
}

/// A replica that was alive on another history, and has not come over.
#[derive(Clone, Debug)]
pub struct Other {
    pub replica: String,
    /// Whether it was seen to write on this server.
    is_writing: bool,
    is_of_other_history: bool,
}

/// A job of which something is missing.
struct Missing {
    writes: Vec<Write>,
    /// The first write that the tables have not.
    first: usize,
    lost: LostCommit,
}

impl Missing {
    /// What is missing of a job's writes; `None` if all are there.
    fn of(writes: &[Write], known: &Known) -> Option<Self> {
        let (first, missing) = writes.iter().enumerate().find(|(_, write)| !known.has(write))?;
        let claim = writes.iter().rev().find_map(Write::claim);
        let lost = LostCommit {
            job_id: missing.job_id(),
            customer_id: missing.customer_id(),
            lost: match missing {
                Write::Opened(_) => Lost::Job,
                Write::Begun(_) => Lost::Attempt,
                Write::Closed(..) => Lost::Result,
            },
            attempt: claim.map(|claim| claim.attempt),
            verdict: writes.last().and_then(|write| match write {
                Write::Closed(closing, _) => Some(closing.attempt.verdict),
                Write::Opened(_) | Write::Begun(_) => None,
            }),
        };
        Some(Self { writes: writes.to_owned(), first, lost })
    }

    /// The first write that is still missing.
    fn left(&self, known: &Known) -> Option<usize> {
        self.writes.iter().position(|write| !known.has(write))
    }
}

/// What the tables have of some jobs.
struct Known {
    rows: HashSet<Uuid>,
    /// What is in a file of the archive is as it was there.
    archived: HashSet<Uuid>,
    /// This replica's attempts, and whether each is closed.
    attempts: HashMap<(Uuid, i32, OffsetDateTime), bool>,
}

impl Known {
    fn has(&self, write: &Write) -> bool {
        match write {
            _ if self.archived.contains(&write.job_id()) => true,
            Write::Opened(row) => self.rows.contains(&row.job_id),
            Write::Begun(claim) => self.attempts.contains_key(&name_of(claim)),
            Write::Closed(closing, _) => self.attempts.get(&name_of(&closing.claim)) == Some(&true),
        }
    }
}

/// What an attempt of this replica's is known by.
fn name_of(claim: &Claim) -> (Uuid, i32, OffsetDateTime) {
    (claim.job.id, claim.attempt, claim.t0.wall.into())
}

/// What stands in errors.
const NAME: &str = "survey";

impl Journal {
    /// Whether this process remembers anything that it has committed.
    pub fn remembers(&self) -> bool {
        !self.memory.is_empty()
    }

    /// Takes one turn: compares, writes again what is missing, and looks for the other replicas. `instance`
    /// is this process, and `at_start` says that it has just started.
    ///
    /// # Errors
    /// When the database does not answer, or nobody may write there yet.
    pub async fn survey(
        &self,
        survey: &mut Survey,
        instance: &str,
        at_start: bool,
    ) -> Result<(), JournalError> {
        let options = self.pool.connect_options();
        let connecting = timeout(CONNECT_TIME_MAX, Session::Work.connect(&options));
        let mut connection =
            in_time(NAME, async { connecting.await.unwrap_or(Err(sqlx::Error::PoolTimedOut)) }).await?;
        let found = in_time(NAME, Lineage::of(&mut connection)).await?;
        if survey.lineage != found {
            // It was started anew, or replaced, in the middle. What was lost before that was lost.
            let Survey { restored, missing, has_lost, is_bottomless, .. } = std::mem::take(survey);
            let lineage = found.clone();
            *survey = Survey { restored, missing, has_lost, is_bottomless, lineage, ..Survey::default() };
        }
        let Some(found) = found else {
            survey.is_over = true;
            return Ok(());
        };
        let is_failover = lineage::known().is_some_and(|known| known.history != found.history);
        let others = in_time(NAME, others(&mut connection, instance, &found)).await?;
        let is_awaiting = others.iter().any(|other| survey.answering < self.patience(other, survey));
        let wait = match (survey.has_lost, is_failover) {
            (true, _) => self.limits.claim_lease,
            (false, true) => SHORT_WAIT,
            (false, false) => Duration::ZERO,
        };
        let is_waiting = is_awaiting || survey.answering < wait;
        survey.awaited = others;
        if !is_waiting {
            // What is not missing here is not missing of theirs.
            let has_lost = survey.has_lost;
            survey.awaited.retain(|other| has_lost || other.is_of_other_history);
        }
        if at_start || survey.has_confirmed && is_waiting {
            survey.is_over = at_start && !is_waiting;
            return Ok(());
        }
        let unwritten = self.compare(&mut connection, survey, instance).await?;
        if !unwritten.is_empty() || survey.is_bottomless && !survey.has_confirmed {
            let is_stuck = survey.answering.saturating_sub(survey.progressed_at) >= STUCK_AFTER;
            if !unwritten.is_empty() && (!is_stuck || is_awaiting) {
                return Ok(());
            }
            let jobs = unwritten.len();
            let why = match (survey.is_bottomless, jobs) {
                (true, 0) => "more than this replica remembers".to_owned(),
                (true, _) => format!("commits of {jobs} jobs that it cannot write again, and more"),
                (false, _) => format!("commits of {jobs} jobs that it cannot write again"),
            };
            in_time(NAME, self.hand_over(&mut connection, &unwritten, &why)).await?;
            survey.missing = unwritten;
        }
        let had_confirmed = survey.has_confirmed;
        let lineage = found.text();
        in_time(NAME, write_row(&mut connection, &self.worker, instance, Some(&lineage))).await?;
        survey.has_confirmed = true;
        // Whether anything was lost is known only now, and with it how long to wait.
        if !had_confirmed && (is_failover || survey.has_lost || is_waiting) {
            return Ok(());
        }
        if survey.has_lost && !survey.awaited.is_empty() {
            let silent: Vec<&str> = survey.awaited.iter().map(|other| other.replica.as_str()).collect();
            let why = format!("commits, and {} did not say what they had committed", silent.join(", "));
            in_time(NAME, self.hand_over(&mut connection, &[], &why)).await?;
        }
        survey.pause = in_time(NAME, current_pause(&mut connection)).await?;
        survey.is_over = true;
        Ok(())
    }

    /// How long a replica is waited for: one that writes for as long as it does; one that says nothing for as
    /// long as its claims hold, or shortly where the server was only started anew and has all of this
    /// replica's.
    fn patience(&self, other: &Other, survey: &Survey) -> Duration {
        match (other.is_writing, survey.has_lost || other.is_of_other_history) {
            (true, _) => Duration::MAX,
            (false, true) => self.limits.claim_lease,
            (false, false) => SHORT_WAIT,
        }
    }

    /// Goes on with the server that was compared.
    pub fn adopt(&self, survey: Survey) {
        self.floors.forget();
        lineage::adopt(survey.lineage);
    }

    /// Compares all that is remembered, and writes again what is missing. Returns what cannot be written yet.
    async fn compare(
        &self,
        connection: &mut PgConnection,
        survey: &mut Survey,
        instance: &str,
    ) -> Result<Vec<LostCommit>, JournalError> {
        let (jobs, horizon) = (self.memory.by_job(), self.memory.horizon());
        let beat_at = self.memory.beat_at();
        survey.has_lost |= in_time(NAME, is_beat_lost(connection, &self.worker, instance, beat_at)).await?;
        let mut unwritten = Vec::new();
        for jobs in jobs.chunks(AT_ONCE) {
            let ids: Vec<Uuid> = jobs.iter().filter_map(|job| job.first()).map(Write::job_id).collect();
            let known = in_time(NAME, self.known(connection, &ids)).await?;
            let missing: Vec<Missing> = jobs.iter().filter_map(|job| Missing::of(job, &known)).collect();
            if missing.is_empty() {
                continue;
            }
            survey.has_lost = true;
            survey.is_bottomless |=
                missing.iter().any(|job| job.first == 0 && Some(job.lost.job_id) == horizon);
            in_time(NAME, write_row(connection, &self.worker, instance, None)).await?;
            let left = self.write_again(connection, instance, &missing).await?;
            for (job, left) in missing.into_iter().zip(left) {
                if left.is_none_or(|left| left > job.first) {
                    survey.progressed_at = survey.answering;
                }
                let list = if left.is_none() { &mut survey.restored } else { &mut unwritten };
                list.push(job.lost);
            }
        }
        Ok(unwritten)
    }

    /// What the tables have of jobs, and of this replica's attempts at them.
    async fn known(&self, connection: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<Known> {
        let rows = sqlx::query_scalar!(
            "-- remembered_jobs
            select job_id from submission where job_id = any($1) and state <> 'invalid'",
            ids
        );
        let rows = rows.fetch_all(&mut *connection).await?.into_iter().collect();
        let archived = sqlx::query_scalar!(
            "-- remembered_archived
            select job_id from archived_job where job_id = any($1) and holds_id",
            ids
        );
        let archived = archived.fetch_all(&mut *connection).await?.into_iter().collect();
        let attempts = sqlx::query!(
            r#"-- remembered_attempts
            select job_id, number, signed_at, ended_at is not null as "is_closed!"
            from attempt where job_id = any($1) and worker = $2"#,
            ids,
            self.worker,
        );
        let attempts = attempts.fetch_all(connection).await?;
        let attempts =
            attempts.into_iter().map(|row| ((row.job_id, row.number, row.signed_at), row.is_closed));
        Ok(Known { rows, archived, attempts: attempts.collect() })
    }

    /// Writes what is missing of jobs again, as it was, in one commit: of each as far as its row stands as it
    /// did. Returns for each which write is the first that is still missing.
    async fn write_again(
        &self,
        connection: &mut PgConnection,
        instance: &str,
        missing: &[Missing],
    ) -> Result<Vec<Option<usize>>, JournalError> {
        match in_time(NAME, self.try_to_write_again(connection, missing)).await {
            // The others do not wait for the one that the database refuses: it is found by halves.
            Err(error) if is_of_one(&error) => match missing {
                [job] => Ok(vec![Some(job.first)]),
                _ => {
                    let mut left = Vec::with_capacity(missing.len());
                    let (some, others) = missing.split_at(missing.len() / 2);
                    for half in [some, others] {
                        in_time(NAME, write_row(connection, &self.worker, instance, None)).await?;
                        left.extend(Box::pin(self.write_again(connection, instance, half)).await?);
                    }
                    Ok(left)
                }
            },
            written => written,
        }
    }

    async fn try_to_write_again(
        &self,
        connection: &mut PgConnection,
        missing: &[Missing],
    ) -> sqlx::Result<Vec<Option<usize>>> {
        let mut tx = connection.begin().await?;
        let ids: Vec<Uuid> = missing.iter().map(|job| job.lost.job_id).collect();
        let opened = missing.iter().filter_map(|job| match job.writes.get(job.first) {
            Some(Write::Opened(row)) => Some(&**row),
            _ => None,
        });
        let opened: Vec<&NewRow> = opened.collect();
        if !opened.is_empty() {
            restore_rows(&mut tx, &opened).await?;
        }
        let first_missing =
            |known: &Known| -> Vec<Option<usize>> { missing.iter().map(|job| job.left(known)).collect() };
        let mut left = first_missing(&self.known(&mut tx, &ids).await?);
        loop {
            let next = || missing.iter().zip(&left).filter_map(|(job, left)| job.writes.get((*left)?));
            // Of a customer's jobs one has the slot, until its result is written.
            let mut customers = HashSet::new();
            let claims = next().filter_map(Write::claim);
            let claims: Vec<&Claim> = claims.filter(|claim| customers.insert(claim.customer_id)).collect();
            if !claims.is_empty() {
                restore_claims(&mut tx, &self.worker, &claims, self.limits.claim_lease).await?;
            }
            let closings = next().filter_map(|write| match write {
                Write::Closed(closing, at) => Some((&**closing, *at)),
                Write::Opened(_) | Write::Begun(_) => None,
            });
            self.close_again(&mut tx, &closings.collect::<Vec<_>>()).await?;
            let now_left = first_missing(&self.known(&mut tx, &ids).await?);
            if now_left == left {
                break;
            }
            left = now_left;
        }
        for (job, _) in missing.iter().zip(&left).filter(|(_, left)| left.is_none()) {
            note(&mut tx, &self.worker, &job.lost, true).await?;
        }
        tx.commit().await?;
        Ok(left)
    }

    async fn close_again(
        &self,
        tx: &mut PgConnection,
        closings: &[(&Closing, OffsetDateTime)],
    ) -> sqlx::Result<()> {
        if closings.is_empty() {
            return Ok(());
        }
        let ids: Vec<Uuid> = closings.iter().map(|(closing, _)| closing.claim.job.id).collect();
        let heads = lock_heads(tx, &ids).await?;
        let again = closings.iter().filter_map(|(closing, at)| {
            heads.get(&closing.claim.job.id).map(|head| closing.again(*head, *at))
        });
        let again: Vec<Closing> = again.collect();
        let (worker, fingerprinter) = (&self.worker, &self.fingerprinter);
        // Each has a time of its own.
        let now = OffsetDateTime::now_utc();
        close_many(tx, worker, fingerprinter, &self.limits, now, &again.iter().collect::<Vec<_>>()).await?;
        Ok(())
    }

    /// Hands what could not be written again to a person, and pauses the work until one has acted. It is
    /// not compared again.
    async fn hand_over(
        &self,
        connection: &mut PgConnection,
        unwritten: &[LostCommit],
        why: &str,
    ) -> sqlx::Result<()> {
        let mut tx = connection.begin().await?;
        lock_pause(&mut tx).await?;
        for lost in unwritten {
            note(&mut tx, &self.worker, lost, false).await?;
        }
        sqlx::query!(
            "-- pause_after_failover
            insert into intervention (action, by, note) values ('pause', $1, $2)",
            self.worker,
            format!("the database lost {why}; see {RUNBOOK}"),
        )
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        self.memory.forget(&unwritten.iter().map(|lost| lost.job_id).collect());
        Ok(())
    }
}

/// Whether the database refuses what is written again of one job, and would not refuse the others'.
fn is_of_one(error: &JournalError) -> bool {
    match error {
        JournalError::Database { source, .. } => is_taken(source, &[ONE_CLAIM]) || error.is_of_a_job(),
        _ => false,
    }
}

/// Notes what was lost of a job.
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

/// Whether the last heartbeat is missing that was answered: commits are lost in their order.
async fn is_beat_lost(
    connection: &mut PgConnection,
    worker: &str,
    instance: &str,
    beat_at: Option<OffsetDateTime>,
) -> sqlx::Result<bool> {
    let seen_at = sqlx::query_scalar!(
        "-- own_heartbeat
        select seen_at from worker where name = $1 and instance = $2",
        worker,
        instance,
    );
    let seen_at = seen_at.fetch_optional(connection).await?;
    Ok(beat_at.is_some_and(|beat_at| seen_at.is_none_or(|seen_at| seen_at < beat_at)))
}

/// Tells the others that this replica writes again what it remembers or, with the lineage that it has
/// compared, that it has written all that it can. Its row keeps the time at which it was seen on the old
/// server: it tells who else was alive then.
async fn write_row(
    connection: &mut PgConnection,
    worker: &str,
    instance: &str,
    compared: Option<&str>,
) -> sqlx::Result<()> {
    sqlx::query!(
        "-- write_row_of_survey
        insert into worker as w (
            name, instance, version, started_at, seen_at, in_flight, paused_for, lineage, surveyed_at
        )
        values (
            $1, $2, $3, now(), coalesce((select max(seen_at) from worker), now()), 0, '{database}',
            coalesce($4, ''), case when $4::text is null then now() end
        )
        on conflict (name, instance) do update
            set lineage = coalesce($4, w.lineage), surveyed_at = coalesce(excluded.surveyed_at, w.surveyed_at)",
        worker,
        instance,
        env!("CARGO_PKG_VERSION"),
        compared,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The replicas that were alive on another history, or before this start of the server, and have not come
/// over.
async fn others(connection: &mut PgConnection, instance: &str, found: &Lineage) -> sqlx::Result<Vec<Other>> {
    sqlx::query_as!(
        Other,
        r#"-- awaited_replicas
        select
            name || ' (' || instance || ')' as "replica!",
            coalesce(surveyed_at > now() - make_interval(secs => $4), false) as "is_writing!",
            split_part(lineage, '@', 1) <> $3 as "is_of_other_history!"
        from worker
        where instance <> $1 and lineage <> $2
            and (
                surveyed_at > now() - make_interval(secs => $4)
                or seen_at > (select max(seen_at) from worker) - make_interval(secs => $5)
            )
        order by name, instance"#,
        instance,
        found.text(),
        found.history,
        WRITING_WITHIN_SECONDS,
        SEEN_WITHIN_SECONDS,
    )
    .fetch_all(connection)
    .await
}
