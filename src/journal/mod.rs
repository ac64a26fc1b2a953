//! What happened to every job, in Postgres: all SQL, and the sealing of payloads. Each
//! function is one commit, and every write on a claim checks that the claim is still ours.

mod batch;
pub mod budget;
pub(crate) mod claim;
mod fingerprint_key;
pub mod history;
mod inspect;
mod maintenance;
mod open;
pub mod pause;
mod pool;
mod read_back;
pub mod replicas;
mod settle;
mod verification;
mod writer;

use std::borrow::Cow;
use std::io;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use parking_lot::{Mutex, const_mutex};
use sqlx::migrate::Migrator;
use sqlx::pool::PoolConnectionMetadata;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _};
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};
use uuid::Uuid;

use self::batch::{BatchThread, Batches, Change, Written};
pub use self::claim::{ClaimedJob, NextAttempt, Turn};
pub use self::fingerprint_key::check_fingerprint_key;
pub use self::history::chain::Head;
pub use self::inspect::inspect;
use self::maintenance::Floors;
pub use self::maintenance::Rescued;
pub use self::open::{Admission, DeadLetter, Opened};
use self::pool::{Session, addresses, connect_options, is_pooled_by_transaction, reach};
pub use self::read_back::{ReadClaim, Settled};
pub use self::settle::AttemptResult;
pub use self::verification::{DueVerifications, EventNoted, Pace, VerificationClaim};
use self::writer::Writer;
use crate::clock::Moment;
use crate::config::{DatabaseSettings, Secret};
use crate::domain::outcome::History;
use crate::seal::{Fingerprinter, Keyring};

/// The migrations, embedded, so that the binary alone can set up a database. Those of a
/// later release may be there already: replicas of two releases run side by side in an upgrade.
pub static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrations = sqlx::migrate!();
    migrations.set_ignore_missing(true);
    migrations
});

/// Why a write or a read of the journal failed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another worker has taken the job over: this one may write nothing more about it.
    #[error("the claim is no longer ours")]
    Fenced,
    /// The database did not do it.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// The database did not answer.
    #[error("the database did not answer within {ANSWER_TIME_MAX:?}")]
    TimedOut,
}

impl JournalError {
    /// What a person must do before the database does it, where trying again is of no use until then.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Database(error) if needs_person(error) => Some(inspect::advice(error)),
            _ => None,
        }
    }

    /// Whether the database cannot hold a value that was to be written. It never will.
    pub fn is_of_a_value(&self) -> bool {
        let Self::Database(error) = self else { return false };
        let code = code_of(error);
        ["22", "54"].iter().any(|class| code.starts_with(class))
    }

    /// Whether the database refuses what was to be written of a job: a value, or a constraint. No other
    /// job's writes are refused for that.
    fn is_of_a_job(&self) -> bool {
        let Self::Database(error) = self else { return false };
        self.is_of_a_value() || code_of(error).starts_with("23")
    }

    /// Whether the pool got no further connection while those it has are answered: the server allows
    /// fewer than `DATABASE_CONNECTIONS`.
    pub fn is_crowded(&self) -> bool {
        matches!(self, Self::Database(sqlx::Error::PoolTimedOut)) && answered_within(CONNECT_TIME_MAX)
    }

    /// Whether the database is away, or as good as away, and not this one statement's fault.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Fenced => false,
            Self::TimedOut => true,
            Self::Database(error) => is_outage(error),
        }
    }
}

/// What the server calls an error.
fn code_of(error: &sqlx::Error) -> Cow<'_, str> {
    error.as_database_error().and_then(|error| error.code()).unwrap_or_default()
}

/// Whether the server or a pooler refuses us, or what our statements need is not there: refused
/// logins, unknown databases, missing rights, tables and columns, statements that are not prepared any
/// more, data that is corrupted (PostgreSQL, "Error Codes"). PgBouncer says 08P01 whatever it refuses.
fn needs_person(error: &sqlx::Error) -> bool {
    let code = code_of(error);
    ["08P01", "26", "28", "3D", "42", "XX001", "XX002"].iter().any(|class| code.starts_with(class))
}

/// The constraint that stands for a customer's slot.
const ONE_CLAIM: &str = "submission_one_claim_per_customer";

/// The constraint that stands for a `job_id`.
const ONE_ROW: &str = "submission_pkey";

/// Whether a unique constraint, one of `constraints`, was violated. Any other violation is a fault.
fn is_taken(error: &sqlx::Error, constraints: &[&str]) -> bool {
    error.as_database_error().is_some_and(|error| {
        error.is_unique_violation() && error.constraint().is_some_and(|name| constraints.contains(&name))
    })
}

/// Whether another replica was faster: it took the customer's slot, or waited for what we hold.
fn is_lost_race(error: &sqlx::Error) -> bool {
    is_taken(error, &[ONE_CLAIM]) || code_of(error) == DEADLOCK
}

fn is_outage(error: &sqlx::Error) -> bool {
    use sqlx::Error::{Database, Io, PoolClosed, PoolTimedOut, Protocol, Tls, WorkerCrashed};
    match error {
        Io(_) | Tls(_) | Protocol(_) | PoolTimedOut | PoolClosed | WorkerCrashed => true,
        // Connection exceptions, resources, operator intervention, system errors, read-only, and
        // locks that took too long (PostgreSQL, "Error Codes").
        Database(error) => {
            let code = error.code().unwrap_or_default();
            ["08", "53", "57", "58", READ_ONLY, "55P03"].iter().any(|class| code.starts_with(class))
        }
        _ => false,
    }
}

/// The server ends a statement after 10 s; this is for a server that says nothing at all.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(15);

/// A connection that does not answer for so long is given up. The network may have forgotten
/// it, and the kernel would go on for a quarter of an hour before it noticed.
const PING_TIME_MAX: Duration = Duration::from_secs(2);

/// A connection that is not made by then is given up, and tried again after a pause.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
const CONNECT_PAUSE: Duration = Duration::from_secs(1);

/// A connection that lay idle for less is taken to be alive.
const IDLE_TIME_MIN: Duration = Duration::from_secs(1);

/// When connections were last found to be of no use that others of their age may share:
/// forgotten by the network, or made while the database was read-only. Process-wide, as
/// a pool's hooks know nothing of its journal.
static DISTRUSTED_AT: Mutex<Option<Instant>> = const_mutex(None);

/// When the database last did what it was asked for, over any connection of this process.
static ANSWERED_AT: Mutex<Option<Instant>> = const_mutex(None);

fn answered_within(time: Duration) -> bool {
    ANSWERED_AT.lock().is_some_and(|at| at.elapsed() < time)
}

/// SQLSTATE `read_only_sql_transaction`: after a failover, or where somebody set it so. It
/// may hold for as long as the connection does.
const READ_ONLY: &str = "25006";

/// How many of a worker's connections are for batches.
const FOR_BATCHES: u32 = 1;

/// For so many of a worker's other connections it has one for reads of unknown outcomes, which come in
/// time whatever else waits.
const CONNECTIONS_PER_READER: u32 = 2;

const DEADLOCK: &str = "40P01";

/// The right to make one attempt now.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    pub job_id: Uuid,
    pub customer_id: Uuid,
    /// Grows with every claim of the job; fences out whoever held an older one.
    pub token: i64,
    pub attempt: i32,
    pub history: History,
    /// When this attempt's send window began.
    pub t0: Moment,
    /// When it began, by the database's clock.
    pub begun_at: OffsetDateTime,
    /// Where the job's chain stood then.
    pub head: Head,
}

/// The limits that the journal decides by.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long a claim lasts.
    pub claim_lease: Duration,
    /// From an attempt's end of unknown fate to the first look at the customer.
    pub read_back_after: Duration,
    /// A verification lasts at least so long, and nothing is applied later after an attempt's end.
    pub read_back_window: Duration,
    /// How many updates the provider allows a customer.
    pub customer_updates: u32,
    /// From an acceptance to the first look at the verification.
    pub verification_after: Duration,
}

/// Waits for the database, but not for ever.
async fn bounded<T>(work: impl Future<Output = sqlx::Result<T>>) -> Result<T, JournalError> {
    match timeout(ANSWER_TIME_MAX, work).await {
        Ok(Ok(done)) => {
            *ANSWERED_AT.lock() = Some(Instant::now());
            Ok(done)
        }
        Ok(Err(error)) => {
            if error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == READ_ONLY)
            {
                distrust_connections();
            }
            Err(error.into())
        }
        Err(_elapsed) => Err(JournalError::TimedOut),
    }
}

/// From now on, connections that were made before are closed instead of used. At most once
/// a second: those made since may be as bad, and are not to be made anew without a pause.
fn distrust_connections() {
    let mut distrusted_at = DISTRUSTED_AT.lock();
    if distrusted_at.is_none_or(|at| at.elapsed() >= Duration::from_secs(1)) {
        *distrusted_at = Some(Instant::now());
    }
}

/// Whether a connection may be used again. The pool asks this itself, but without an end. What
/// may not be used is closed by the pool.
async fn is_usable(
    connection: &mut PgConnection,
    about: PoolConnectionMetadata,
    idle_time_min: Duration,
    options: &PgConnectOptions,
) -> bool {
    let distrusted_at = *DISTRUSTED_AT.lock();
    let is_distrusted = distrusted_at.is_some_and(|at| about.age >= at.elapsed());
    if about.idle_for < idle_time_min && !is_distrusted {
        return true;
    }
    match timeout(PING_TIME_MAX, connection.ping()).await {
        Ok(answer) => answer.is_ok() && !is_distrusted,
        Err(_elapsed) => {
            distrust_connections();
            drop_silent(connection, options).await;
            false
        }
    }
}

/// Drops a connection that says nothing, and leaves another in its place for the pool to close:
/// closing waits, under TLS, for a last word of the peer's, and holds the connection's place in
/// the pool until the kernel gives up. Waits for the database if that is away.
async fn drop_silent(connection: &mut PgConnection, options: &PgConnectOptions) {
    loop {
        match timeout(CONNECT_TIME_MAX, options.connect()).await {
            Ok(Ok(other)) => {
                *connection = other;
                return;
            }
            // It refuses us, for a password that was changed, say: then the old one is closed after all.
            Ok(Err(sqlx::Error::Database(_))) => return,
            Ok(Err(_)) | Err(_) => sleep(CONNECT_PAUSE).await,
        }
    }
}

/// Leads new connections of `pool` where the setting says by now: its file, last read as `known`,
/// may have been rotated, and the host have another address that answers. Connections that are open
/// stay as they are.
///
/// # Errors
/// When there is no way in.
async fn lead_anew(
    pool: &PgPool,
    settings: &DatabaseSettings,
    known: &mut Option<Secret>,
) -> anyhow::Result<()> {
    let url = settings.url()?;
    let (options, _place) = connect_options(&url)?;
    // Where nothing may have changed there is nothing to find out, and nobody to ask too often.
    let is_known = known.as_ref() == Some(&url);
    if is_known && addresses(&options).await.len() < 2 {
        return Ok(());
    }
    let options = reach(options).await?;
    if !is_known && settings.database_url_file.is_some() {
        info!("DATABASE_URL read again from its file");
    }
    if options.get_host() != pool.connect_options().get_host() {
        info!(host = options.get_host(), "the database is looked for at another of its addresses");
    }
    pool.set_connect_options(options);
    *known = Some(url);
    Ok(())
}

/// The journal of one worker.
pub struct Journal {
    pool: PgPool,
    worker: String,
    limits: Limits,
    keyring: Keyring,
    fingerprinter: Fingerprinter,
    batches: Writer<Change, Written>,
    /// For reads of unknown outcomes alone.
    reads: PgPool,
    /// Whose turn it is to write down what a read said. Who waits here waits for no connection, which
    /// the database would be blamed for.
    concluding: Semaphore,
    /// How many jobs may be opened alone at once: those of a busy customer leave connections to others.
    opening: Semaphore,
    floors: Floors,
    _writing: BatchThread,
}

impl Journal {
    /// A journal that writes under the name of `worker`. Must be called within a runtime, where
    /// what many jobs want written is gathered.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn new(
        pool: PgPool,
        worker: String,
        limits: Limits,
        keyring: Keyring,
        fingerprinter: Fingerprinter,
    ) -> io::Result<Self> {
        let writing = BatchThread::start()?;
        let thread = writing.handle();
        let batches = Batches::new(pool.clone(), worker.clone(), limits, fingerprinter.clone());
        let batches = Arc::new(batches);
        let connections = pool.options().get_max_connections();
        let readers = readers(connections);
        Ok(Self {
            reads: pool_options(readers, &pool.connect_options(), Session::Work)
                .connect_lazy_with(pool.connect_options().as_ref().clone()),
            concluding: Semaphore::new(readers as usize),
            opening: Semaphore::new((connections as usize / 2).max(1)),
            floors: Floors::default(),
            batches: Writer::start(move |changes: Vec<Change>| {
                let batches = Arc::clone(&batches);
                let written = thread.spawn(async move { batches.commit(&changes).await });
                // Nothing, where that panicked: each goes alone.
                written.map(Result::unwrap_or_default)
            }),
            pool,
            worker,
            limits,
            keyring,
            fingerprinter,
            _writing: writing,
        })
    }

    /// Leads new connections where the setting says by now.
    ///
    /// # Errors
    /// When there is no way in.
    pub async fn lead_anew(
        &self,
        settings: &DatabaseSettings,
        known: &mut Option<Secret>,
    ) -> anyhow::Result<()> {
        lead_anew(&self.pool, settings, known).await?;
        self.reads.set_connect_options(self.pool.connect_options().as_ref().clone());
        Ok(())
    }
}

/// How many connections are for reads beside so many for all else but batches.
fn readers(others: u32) -> u32 {
    (others / CONNECTIONS_PER_READER).max(1)
}

/// One column of a batch, as Postgres' `unnest` takes it.
fn column<'a, T, C>(rows: &[&'a T], of: impl Fn(&'a T) -> C) -> Vec<C> {
    rows.iter().map(|row| of(row)).collect()
}

/// Opens a pool of connections for a command that people wait for.
///
/// # Errors
/// When Postgres cannot be reached; the error names the setting and never the password.
pub async fn connect(settings: &DatabaseSettings, url: &Secret) -> anyhow::Result<PgPool> {
    connect_with(settings.database_connections, url, Session::Command).await
}

/// Opens a pool of connections for a worker, and leaves those to the journal that batches are
/// committed over, and that reads of unknown outcomes go over.
///
/// # Errors
/// When Postgres cannot be reached; the error names the setting and never the password.
pub async fn connect_to_work(settings: &DatabaseSettings, url: &Secret) -> anyhow::Result<PgPool> {
    let connections = settings.database_connections.saturating_sub(FOR_BATCHES);
    // The most that leave room for those of the reads.
    let others = (1..=connections).rev().find(|others| others + readers(*others) <= connections);
    connect_with(others.unwrap_or(1), url, Session::Work).await
}

async fn connect_with(connections: u32, url: &Secret, session: Session) -> anyhow::Result<PgPool> {
    let (options, place) = connect_options(url)?;
    let fault = |error| {
        let advice = inspect::advice(&error);
        let what = format!("DATABASE_URL: cannot use Postgres at {place}; {advice}");
        anyhow::Error::new(error).context(what)
    };
    let options = reach(options).await.map_err(fault)?;
    pool_options(connections, &options, session).connect_with(options).await.map_err(fault)
}

/// A pool that takes care of its connections itself.
fn pool_options(connections: u32, options: &PgConnectOptions, session: Session) -> PgPoolOptions {
    let (before_use, after_use) = (options.clone(), options.clone());
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(CONNECT_TIME_MAX)
        .test_before_acquire(false)
        .after_connect(move |connection, _about| Box::pin(session.set_up(connection)))
        .before_acquire(move |connection, about| {
            let options = before_use.clone();
            Box::pin(async move { Ok(is_usable(connection, about, IDLE_TIME_MIN, &options).await) })
        })
        .after_release(move |connection, about| {
            let options = after_use.clone();
            Box::pin(async move { Ok(is_usable(connection, about, Duration::ZERO, &options).await) })
        })
}

/// A migration that waits for a lock has every later statement wait behind it: it gives up soon, and
/// tries again after a pause in which those go on. It does so as often as makes two minutes.
const MIGRATION_LOCK_TIMEOUT: &str = "set lock_timeout = '1s'";
const MIGRATION_PAUSE: Duration = Duration::from_secs(1);
const MIGRATION_TRIES: u32 = 60;

const LOCK_NOT_AVAILABLE: &str = "55P03";

/// Brings the schema up to this version's, and gives the roles of deploy/roles.sql their rights,
/// where they are there. Waits for another that does the same.
///
/// # Errors
/// When a migration fails, or gets none of its locks in two minutes; those before it stay.
pub async fn migrate(pool: &PgPool) -> anyhow::Result<()> {
    let mut connection = pool.acquire().await?;
    // A migration may take longer than any statement of the worker's.
    sqlx::query("set statement_timeout = 0").execute(&mut *connection).await?;
    sqlx::query(MIGRATION_LOCK_TIMEOUT).execute(&mut *connection).await?;
    let mut tries = 1;
    let migrated = loop {
        match migrate_over(&mut connection).await {
            Err(error) if is_locked_out(&error) && tries < MIGRATION_TRIES => {
                if tries == 1 {
                    warn!(error = format!("{error:#}"), "a migration waits for a lock, trying again");
                }
                tries += 1;
                sleep(MIGRATION_PAUSE).await;
            }
            Err(error) if is_locked_out(&error) => {
                break Err(error.context(
                    "a migration gets no lock; does another one run, or is a long transaction open \
                     (select * from pg_stat_activity where xact_start is not null)?",
                ));
            }
            migrated => break migrated,
        }
    };
    // Not given back to the pool: its time limits are others.
    connection.detach();
    migrated
}

async fn migrate_over(connection: &mut PgConnection) -> anyhow::Result<()> {
    MIGRATIONS.run(&mut *connection).await.context("a migration failed")?;
    let granting = sqlx::raw_sql(include_str!("grants.sql")).execute(&mut *connection);
    granting.await.context("the roles of deploy/roles.sql could not be given their rights")?;
    Ok(())
}

fn is_locked_out(error: &anyhow::Error) -> bool {
    let codes = error.chain().filter_map(|cause| cause.downcast_ref()).map(|error: &sqlx::Error| {
        error.as_database_error().and_then(|error| error.code()).unwrap_or_default()
    });
    codes.into_iter().any(|code| code == LOCK_NOT_AVAILABLE)
}

/// Checks that the session is one that the promises can rest on: our own, and with an encoding that
/// holds every text.
///
/// # Errors
/// When it is not, and a person must change that.
pub async fn check_session(pool: &PgPool) -> anyhow::Result<()> {
    let mut connection = pool.acquire().await?;
    if is_pooled_by_transaction(&mut connection, &pool.connect_options()).await? {
        // Another's statements may be prepared on it.
        connection.detach();
        anyhow::bail!("{}; {}", inspect::POOLED, inspect::UNPOOL);
    }
    let encoding = inspect::encoding(&mut connection).await?;
    anyhow::ensure!(encoding == "UTF8", "{}; {}", inspect::wrong_encoding(&encoding), inspect::RECODE);
    Ok(())
}

/// Checks that the schema is this version's or a later one (rolling upgrades).
///
/// # Errors
/// When it is older, or not there at all.
pub async fn check_schema(pool: &PgPool) -> anyhow::Result<()> {
    let needed = needed_version();
    match schema_version(&mut *pool.acquire().await?).await? {
        Some(version) if version >= needed => Ok(()),
        Some(version) => anyhow::bail!(
            "DATABASE_URL: the schema is at version {version}, this worker needs {needed}; run `kyc-worker migrate`"
        ),
        None => anyhow::bail!("DATABASE_URL: the database has no tables of ours; run `kyc-worker migrate`"),
    }
}

/// The schema's version that this worker was written for.
fn needed_version() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// The schema's version, if there is one.
async fn schema_version(connection: &mut PgConnection) -> sqlx::Result<Option<i64>> {
    let exists: bool = sqlx::query_scalar!(
        r#"-- migrations_exist
        select to_regclass('_sqlx_migrations') is not null as "exists!""#
    )
    .fetch_one(&mut *connection)
    .await?;
    if !exists {
        return Ok(None);
    }
    sqlx::query_scalar("-- schema_version\nselect max(version) from _sqlx_migrations where success")
        .fetch_one(connection)
        .await
}

/// Whether an error only says that the database is away, so that trying again helps.
pub fn is_away(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref()).any(is_outage)
}

/// Whether a person must let us in, or give us rights, so that trying again helps after that.
pub fn is_refused(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref()).any(needs_person)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a migration may do to a table that replicas work on: nothing that reads it whole under a
    /// lock, or rewrites it. CONTRIBUTING.md ("Migrations") says how each is done instead. Those up
    /// to the fifteenth are older than the rule.
    #[test]
    fn migrations_hold_no_lock_for_longer_than_a_moment() {
        for migration in MIGRATIONS.iter().filter(|migration| migration.version > 15) {
            let faults = migration_faults(&migration.sql);
            assert!(faults.is_empty(), "{} {}: {faults:?}", migration.version, migration.description);
        }
    }

    #[test]
    fn a_migration_that_would_hold_a_lock_is_told() {
        let check = |sql: &str, expected: usize| {
            assert_eq!(migration_faults(sql).len(), expected, "{sql}: {:?}", migration_faults(sql));
        };
        check("create index i on submission (x)", 1);
        check("-- no-transaction\ncreate index concurrently i on submission (x)", 0);
        check("create index concurrently i on submission (x)", 1);
        check("create table t (x int); create unique index i on t (x); alter table t add check (x > 0)", 0);
        check("alter table submission add constraint c check (x > 0)", 1);
        check("alter table submission add constraint c check (x > 0) not valid", 0);
        check(
            "alter table s add constraint c check (x > 0) not valid; alter table s validate constraint c",
            1,
        );
        check("alter table submission validate constraint c", 0);
        check("alter table submission\n  alter column x set not null", 1);
        check("alter table submission alter x type bigint", 1);
        check("drop index i", 1);
        check("cluster submission; lock table submission; vacuum full submission", 3);
    }

    /// A sketch of a parser is enough: it reads what we write, in lower case. A semicolon in a function's
    /// body or in a comment's text ends a statement too early, which adds none that is told.
    fn migration_faults(sql: &str) -> Vec<String> {
        let is_alone = sql.starts_with("-- no-transaction");
        let lines = sql.lines().filter(|line| !line.trim_start().starts_with("--"));
        let text = lines.collect::<Vec<_>>().join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
        let statements: Vec<&str> = text.split(';').map(str::trim).collect();
        let word_after = |statement: &str, words: &str| {
            let after = statement.split_once(words).map(|(_, after)| after.trim_start())?;
            Some(after.split([' ', '(']).next().unwrap_or_default().to_owned())
        };
        let made: Vec<String> = statements.iter().filter_map(|s| word_after(s, "create table ")).collect();
        let is_new = |table: Option<String>| table.is_some_and(|table| made.contains(&table));
        let mut faults = Vec::new();
        let mut added_not_valid = false;
        for statement in &statements {
            let mut tell = |what: &str| faults.push(format!("{what}: {statement}"));
            let is_index = ["create index", "create unique index"].iter().any(|s| statement.starts_with(s));
            if is_index
                && !is_new(word_after(statement, " on "))
                && !(statement.contains("concurrently") && is_alone)
            {
                tell("concurrently, in a file that begins with -- no-transaction");
            }
            if statement.starts_with("drop index") && !statement.contains("concurrently") {
                tell("concurrently");
            }
            if ["cluster", "lock", "vacuum", "reindex"].iter().any(|word| statement.starts_with(word)) {
                tell("not in a migration");
            }
            if statement.starts_with("alter table") && !is_new(word_after(statement, "alter table ")) {
                let checks =
                    ["check (", "foreign key", "references "].iter().any(|word| statement.contains(word));
                if checks && !statement.contains("not valid") {
                    tell("not valid first, validated in the next migration");
                }
                if statement.contains("validate constraint") && added_not_valid {
                    tell("validated in the next migration");
                }
                added_not_valid |= statement.contains("not valid");
                if statement.contains(" set not null") || statement.contains(" type ") {
                    tell("reads or rewrites the table under a lock");
                }
            }
        }
        faults
    }

    #[test]
    fn a_pool_that_cannot_grow_is_no_outage_while_others_work() {
        let crowded = JournalError::Database(sqlx::Error::PoolTimedOut);
        *ANSWERED_AT.lock() = None;
        assert!(crowded.is_outage() && !crowded.is_crowded(), "nothing is answered");
        *ANSWERED_AT.lock() = Some(Instant::now());
        assert!(crowded.is_crowded(), "others are answered");
        assert!(crowded.remedy().is_none() && !crowded.is_of_a_value());
    }

    #[test]
    fn a_database_that_hangs_up_is_away_and_one_without_our_tables_is_not() {
        let hung_up = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let error = anyhow::Error::new(sqlx::Error::Io(hung_up)).context("a migration failed");
        assert!(is_away(&error));
        assert!(!is_away(&anyhow::anyhow!("DATABASE_URL: the database has no tables of ours")));
        assert!(!is_away(&anyhow::Error::new(sqlx::Error::RowNotFound)));
    }
}
