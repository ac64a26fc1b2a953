//! Pools of connections: how they are opened, when a connection may be used again, and how long any of
//! them is waited for.

use std::time::Duration;

use anyhow::Context as _;
use parking_lot::{Mutex, const_mutex};
use sqlx::pool::{PoolConnection, PoolConnectionMetadata};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions, Postgres};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::time::{Instant, sleep, timeout};
use tracing::info;

use crate::config::{DatabaseSettings, Secret};
use crate::journal::error::{ANSWER_TIME_MAX, JournalError, READ_ONLY, advice, code_of};
use crate::journal::lineage;
use crate::journal::session::{
    CONNECT_PAUSE, CONNECT_TIME_MAX, MAKE_SAFE, POOLED, RECODE, Session, UNPOOL, UNSAFE, connect_options,
    encoding, is_durable, is_pooled_by_transaction, place_of, reach, ways_in, wrong_encoding,
};

/// A connection that does not answer for so long is given up. The network may have forgotten
/// it, and the kernel would go on for a quarter of an hour before it noticed.
pub(crate) const PING_TIME_MAX: Duration = Duration::from_secs(2);

/// A connection that lay idle for less is taken to be alive.
pub(crate) const IDLE_TIME_MIN: Duration = Duration::from_secs(1);

/// When connections were last found to be of no use that others of their age may share:
/// forgotten by the network, or made while the database was read-only. Process-wide, as
/// a pool's hooks know nothing of its journal.
static DISTRUSTED_AT: Mutex<Option<Instant>> = const_mutex(None);

/// When a connection last broke. Those that lay idle then may have gone with it.
static BROKEN_AT: Mutex<Option<Instant>> = const_mutex(None);

/// When the database last did what it was asked for, over any connection of this process.
static ANSWERED_AT: Mutex<Option<Instant>> = const_mutex(None);

/// How many of a worker's connections are for batches.
const FOR_BATCHES: u32 = 1;

/// For so many of a worker's other connections it has one for reads of unknown outcomes, which come in
/// time whatever else waits.
const CONNECTIONS_PER_READER: u32 = 2;

/// How many of a console's connections are for what people do by it; the others are for its pages.
const CONNECTIONS_FOR_ACTIONS: u32 = 2;

/// A connection that is given back within a limit of time. The pool tests what it is given back, without
/// one: a connection that the network forgets meanwhile would keep its place until the kernel gives up.
struct Lent(PoolConnection<Postgres>);

impl Lent {
    async fn by(pool: &PgPool) -> sqlx::Result<Self> {
        let mut lent = Self(pool.acquire().await?);
        lineage::check(&mut lent.0).await?;
        Ok(lent)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let returning = self.0.return_to_pool();
        tokio::spawn(async move {
            // What is not back by then is dropped, and its place is free.
            if timeout(PING_TIME_MAX, returning).await.is_err() {
                distrust_connections();
            }
        });
    }
}

/// Does `work` over one connection of the pool.
///
/// # Errors
/// Those of `work`; else the database's, as where another server took its place meanwhile.
async fn lend<T, E: From<sqlx::Error>>(
    pool: &PgPool,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
) -> Result<T, E> {
    let adopted_at = lineage::adopted_at();
    let mut lent = Lent::by(pool).await?;
    let done = work(&mut lent.0).await?;
    lineage::check_unreplaced(adopted_at)?;
    Ok(done)
}

/// Does `work` over one connection of the pool, within a time limit. `name` stands in the error.
pub(crate) async fn run<T>(
    name: &'static str,
    pool: &PgPool,
    work: impl AsyncFnOnce(&mut PgConnection) -> sqlx::Result<T>,
) -> Result<T, JournalError> {
    bounded(name, lend(pool, work)).await
}

/// Does `work` in one transaction, and commits it. Where it fails, nothing of it stays.
///
/// # Errors
/// Those of `work`; else the database's.
pub(crate) async fn transact<T, E: From<sqlx::Error>>(
    pool: &PgPool,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
) -> Result<T, E> {
    lend(pool, async |connection| {
        let mut tx = connection.begin().await?;
        let done = work(&mut tx).await?;
        tx.commit().await?;
        Ok(done)
    })
    .await
}

/// Does `work` over one snapshot, in a transaction that locks and writes nothing.
///
/// # Errors
/// Those of `work`; else the database's.
pub(crate) async fn read_snapshot<T, E: From<sqlx::Error>>(
    pool: &PgPool,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
) -> Result<T, E> {
    lend(pool, async |connection| {
        let mut tx = connection.begin_with("begin isolation level repeatable read, read only").await?;
        let found = work(&mut tx).await?;
        tx.commit().await?;
        Ok(found)
    })
    .await
}

/// A transaction that is committed, within a time limit. `name` stands in the error.
pub(crate) async fn run_tx<T>(
    name: &'static str,
    pool: &PgPool,
    work: impl AsyncFnOnce(&mut PgConnection) -> sqlx::Result<T>,
) -> Result<T, JournalError> {
    bounded(name, transact(pool, work)).await
}

/// Waits for an answer, but not for ever. `name` stands in the error.
pub(crate) async fn in_time<T>(
    name: &'static str,
    work: impl Future<Output = sqlx::Result<T>>,
) -> Result<T, JournalError> {
    match timeout(ANSWER_TIME_MAX, work).await {
        Ok(done) => done.map_err(|source| JournalError::Database { name, source }),
        Err(_elapsed) => Err(JournalError::TimedOut { name }),
    }
}

/// The same, and notes what it tells of the other connections.
pub(crate) async fn bounded<T>(
    name: &'static str,
    work: impl Future<Output = sqlx::Result<T>>,
) -> Result<T, JournalError> {
    let done = in_time(name, work).await;
    match done {
        Ok(_) => *ANSWERED_AT.lock() = Some(Instant::now()),
        Err(JournalError::Database { source: source @ sqlx::Error::PoolTimedOut, .. })
            if others_are_answered() =>
        {
            return Err(JournalError::Crowded { name, source });
        }
        Err(JournalError::Database { ref source, .. }) => {
            if code_of(source) == READ_ONLY {
                distrust_connections();
            }
            if matches!(source, sqlx::Error::Io(_) | sqlx::Error::Tls(_)) {
                *BROKEN_AT.lock() = Some(Instant::now());
            }
        }
        Err(_) => {}
    }
    done
}

fn others_are_answered() -> bool {
    ANSWERED_AT.lock().is_some_and(|at| at.elapsed() < CONNECT_TIME_MAX)
}

/// From now on, connections that were made before are closed instead of used. At most once
/// a second: those made since may be as bad, and are not to be made anew without a pause.
pub(crate) fn distrust_connections() {
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
    options: &PgConnectOptions,
) -> bool {
    // A server that took another's place is not reached over what led to that one.
    if Instant::now().checked_sub(about.age).is_none_or(lineage::is_outdated) {
        return false;
    }
    let distrusted_at = *DISTRUSTED_AT.lock();
    let is_distrusted = distrusted_at.is_some_and(|at| about.age >= at.elapsed());
    let lay_idle = BROKEN_AT.lock().is_some_and(|at| about.idle_for >= at.elapsed());
    if about.idle_for < IDLE_TIME_MIN && !is_distrusted && !lay_idle {
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
/// may have been rotated, and another of its hosts or addresses answer. Connections that are open
/// stay as they are.
///
/// # Errors
/// When there is no way in.
pub(crate) async fn lead_anew(
    pool: &PgPool,
    settings: &DatabaseSettings,
    known: &mut Option<Secret>,
) -> anyhow::Result<()> {
    let url = settings.url()?;
    let (hosts, _place) = connect_options(&url)?;
    let ways = ways_in(hosts).await;
    // Where nothing may have changed there is nothing to find out, and nobody to ask too often.
    let is_known = known.as_ref() == Some(&url);
    if is_known && ways.len() < 2 {
        return Ok(());
    }
    let options = reach(ways).await?;
    if !is_known && !settings.database_url_file.is_empty() {
        info!("DATABASE_URL read again from its file");
    }
    let place = place_of(&options);
    if place != place_of(&pool.connect_options()) {
        info!(place, "new connections to the database go to another of its hosts or addresses");
    }
    pool.set_connect_options(options);
    *known = Some(url);
    Ok(())
}

/// The same for a console's pools.
///
/// # Errors
/// When there is no way in.
pub async fn lead_console_anew(
    pools: [&PgPool; 2],
    settings: &DatabaseSettings,
    known: &mut Option<Secret>,
) -> anyhow::Result<()> {
    for pool in pools {
        lead_anew(pool, settings, &mut known.clone()).await?;
    }
    *known = Some(settings.url()?);
    Ok(())
}

/// How many connections are for reads beside so many for all else but batches.
pub(crate) fn readers(others: u32) -> u32 {
    (others / CONNECTIONS_PER_READER).max(1)
}

/// Opens a pool of connections for a command that people wait for.
///
/// # Errors
/// When Postgres cannot be reached; the error names the setting and never the password.
pub async fn connect(settings: &DatabaseSettings, url: &Secret) -> anyhow::Result<PgPool> {
    connect_with(settings.database_connections, url, Session::Command).await
}

/// Opens two pools of connections for the console: for its pages, which change nothing, and for what people
/// do by it.
///
/// # Errors
/// When Postgres cannot be reached; the error names the setting and never the password.
pub async fn connect_for_console(
    settings: &DatabaseSettings,
    url: &Secret,
) -> anyhow::Result<(PgPool, PgPool)> {
    let for_pages = settings.database_connections.saturating_sub(CONNECTIONS_FOR_ACTIONS).max(1);
    let pages = connect_with(for_pages, url, Session::Page).await?;
    let actions = connect_with(CONNECTIONS_FOR_ACTIONS, url, Session::Action).await?;
    Ok((pages, actions))
}

/// Opens a pool of connections for a worker, and leaves those to the journal that batches are
/// committed over, and that reads of unknown outcomes go over.
///
/// # Errors
/// When Postgres cannot be reached; the error names the setting and never the password.
pub async fn connect_to_work(settings: &DatabaseSettings, url: &Secret) -> anyhow::Result<PgPool> {
    let connections = settings.database_connections.saturating_sub(FOR_BATCHES);
    // The most that leave room for those of the reads.
    // Nothing was committed yet.
    lineage::forget();
    let others = (1..=connections).rev().find(|others| others + readers(*others) <= connections);
    connect_with(others.unwrap_or(1), url, Session::Work).await
}

async fn connect_with(connections: u32, url: &Secret, session: Session) -> anyhow::Result<PgPool> {
    let (hosts, place) = connect_options(url)?;
    let fault = |error| {
        let what = format!("DATABASE_URL: cannot use Postgres at {place}; {}", advice(&error));
        anyhow::Error::new(error).context(what)
    };
    let options = reach(ways_in(hosts).await).await.map_err(fault)?;
    pool_options(connections, &options, session).connect_with(options).await.map_err(fault)
}

/// Finds out where a new connection of the worker's leads. Those that are open may lead to a server that is
/// no more what the others write to.
pub(crate) async fn note_lineage(connection: &mut PgConnection) -> sqlx::Result<()> {
    if !lineage::note(connection).await? {
        distrust_connections();
    }
    Ok(())
}

/// A pool that takes care of its connections itself.
pub(crate) fn pool_options(connections: u32, options: &PgConnectOptions, session: Session) -> PgPoolOptions {
    let options = options.clone();
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(CONNECT_TIME_MAX)
        .test_before_acquire(false)
        .after_connect(move |connection, _about| {
            Box::pin(async move {
                session.set_up(connection).await?;
                if matches!(session, Session::Work) {
                    note_lineage(connection).await?;
                }
                Ok(())
            })
        })
        .before_acquire(move |connection, about| {
            let options = options.clone();
            Box::pin(async move { Ok(is_usable(connection, about, &options).await) })
        })
}

/// Checks that the session is one that the promises can rest on: our own, with an encoding that holds every
/// text and, unless `allow_unsafe`, of a server that keeps what it has committed.
///
/// # Errors
/// When it is not, and a person must change that.
pub async fn check_session(pool: &PgPool, allow_unsafe: bool) -> anyhow::Result<()> {
    let mut connection = pool.acquire().await?;
    lineage::check(&mut connection)
        .await
        .context("DATABASE_URL: the server is a standby, which takes no writes")?;
    if is_pooled_by_transaction(&mut connection, &pool.connect_options()).await? {
        // Another's statements may be prepared on it.
        connection.detach();
        anyhow::bail!("{}; {}", POOLED, UNPOOL);
    }
    let encoding = encoding(&mut connection).await?;
    anyhow::ensure!(encoding == "UTF8", "{}; {}", wrong_encoding(&encoding), RECODE);
    anyhow::ensure!(allow_unsafe || is_durable(&mut connection).await?, "{UNSAFE}; {MAKE_SAFE}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pool_that_cannot_grow_is_no_outage_while_others_work() {
        let no_connection = || bounded("test", async { Err::<(), _>(sqlx::Error::PoolTimedOut) });
        *ANSWERED_AT.lock() = None;
        let error = no_connection().await.expect_err("it failed");
        assert!(matches!(error, JournalError::Database { .. }) && error.is_outage(), "nothing is answered");
        bounded("test", async { Ok(()) }).await.expect("it is answered");
        let error = no_connection().await.expect_err("it failed");
        assert!(matches!(error, JournalError::Crowded { .. }) && error.is_outage(), "others are answered");
        assert!(error.remedy().is_none() && !error.is_of_a_value());
    }
}
