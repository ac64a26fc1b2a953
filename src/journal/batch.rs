//! What many jobs write at once, and where that is committed: by a thread and over a connection of
//! its own, so that a batch waits for the database and not for its turn among the jobs.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{Connection as _, Executor as _, Row as _};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::{Instant, timeout};
use tracing::debug;

use crate::journal::error::{ONE_CLAIM, ONE_ROW, is_taken};
use crate::journal::pool::bounded;
use crate::journal::rows::{Closing, NewRow, Slots};
use crate::journal::session::Session;
use crate::journal::statements::close::close_many;
use crate::journal::statements::open::open_many;
use crate::journal::{CONNECT_PAUSE, CONNECT_TIME_MAX, IDLE_TIME_MIN, Limits, Opened, PING_TIME_MAX};
use crate::seal::Fingerprinter;

/// Begins a transaction and tells its time, in one query, where sqlx's own would need a second
/// for that.
const BEGIN: &str = "begin; select now()";

/// For so long after one of them was taken, `job_id`s and slots are no longer expected to be free:
/// a batch that expects them in vain is written twice.
const CAUTION_TIME: Duration = Duration::from_secs(10);

/// What a job has written with others.
pub(crate) enum Change {
    Open(Arc<NewRow>),
    Close(Arc<Closing>),
}

pub(crate) enum Written {
    Opened(Opened),
    Closed,
}

/// The thread, and what spawns on it.
pub(crate) struct BatchThread {
    runtime: Option<Runtime>,
    handle: Handle,
}

/// Commits one batch after the other.
pub(crate) struct Batches {
    /// Not for its connections: it knows how to make one.
    pool: PgPool,
    worker: String,
    limits: Limits,
    fingerprinter: Fingerprinter,
    /// When a connection could last not be made. A batch does not try again at once: its parts have
    /// the pool's connections, and the server may have none to spare.
    unreached_at: Mutex<Option<Instant>>,
    /// The connection, and when it was last of use. Taken out for a batch and put back once that
    /// is committed: one on which anything else happened is never used again.
    kept: Mutex<Option<(PgConnection, Instant)>>,
    /// When a `job_id` or a slot was last found to be taken.
    taken_at: Mutex<Option<Instant>>,
}

impl BatchThread {
    /// Starts it.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start() -> io::Result<Self> {
        // One thread of several possible ones: waking the only thread of a runtime that has no
        // other is a system call, whether or not it sleeps.
        let runtime =
            Builder::new_multi_thread().worker_threads(1).thread_name("journal").enable_all().build()?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl Drop for BatchThread {
    fn drop(&mut self) {
        // A runtime may not wait for the end of another.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Batches {
    /// Over a connection of their own, which is made when it is needed.
    pub fn new(pool: PgPool, worker: String, limits: Limits, fingerprinter: Fingerprinter) -> Self {
        let (unreached_at, kept, taken_at) = (Mutex::new(None), Mutex::new(None), Mutex::new(None));
        Self { pool, worker, limits, fingerprinter, unreached_at, kept, taken_at }
    }

    /// Commits a batch. Returns nothing if that failed, and the batch's parts are retried alone,
    /// so that what one of them cannot have harms no other.
    pub async fn commit(&self, changes: &[Change]) -> Vec<Option<Written>> {
        let written = bounded(async {
            let mut connection = self.connection().await?;
            let written = match self.write(&mut connection, self.slots(), changes).await {
                Err(error) if is_taken(&error, &[ONE_CLAIM, ONE_ROW]) => {
                    *self.taken_at.lock() = Some(Instant::now());
                    connection.execute("rollback").await?;
                    self.write(&mut connection, Slots::MaybeTaken, changes).await?
                }
                written => written?,
            };
            *self.kept.lock() = Some((connection, Instant::now()));
            Ok(written)
        })
        .await;
        written.unwrap_or_else(|error| {
            debug!(
                error = format!("{:#}", anyhow::Error::from(error)),
                "a batch was not written, its jobs are written alone"
            );
            Vec::new()
        })
    }

    /// What is opened first, as that may wait for another replica's batch: whoever waits holds
    /// nothing yet that the other's openings wait for, and closing waits for no batch.
    async fn write(
        &self,
        tx: &mut PgConnection,
        slots: Slots,
        changes: &[Change],
    ) -> sqlx::Result<Vec<Option<Written>>> {
        let (mut rows, mut closings) = (Vec::new(), Vec::new());
        for change in changes {
            match change {
                Change::Open(row) => rows.push(Arc::clone(row)),
                Change::Close(closing) => closings.push(Arc::clone(closing)),
            }
        }
        let now = tx.fetch_one(BEGIN).await?.try_get(0)?;
        let opened = open_many(tx, &self.worker, &self.limits, slots, &rows).await?;
        let closed = close_many(tx, &self.worker, &self.fingerprinter, &self.limits, now, &closings).await?;
        tx.execute("commit").await?;
        let (mut opened, mut closed) = (opened.into_iter(), closed.into_iter());
        let written = changes.iter().map(|change| match change {
            Change::Open(_) => opened.next().flatten().map(Written::Opened),
            Change::Close(_) => closed.next().flatten().map(|()| Written::Closed),
        });
        Ok(written.collect())
    }

    fn slots(&self) -> Slots {
        let is_cautious = self.taken_at.lock().is_some_and(|at| at.elapsed() < CAUTION_TIME);
        if is_cautious { Slots::MaybeTaken } else { Slots::Free }
    }

    async fn connection(&self) -> sqlx::Result<PgConnection> {
        let kept = self.kept.lock().take();
        if let Some((mut connection, used_at)) = kept
            && (used_at.elapsed() < IDLE_TIME_MIN
                || matches!(timeout(PING_TIME_MAX, connection.ping()).await, Ok(Ok(()))))
        {
            return Ok(connection);
        }
        if self.unreached_at.lock().is_some_and(|at| at.elapsed() < CONNECT_PAUSE) {
            return Err(sqlx::Error::PoolTimedOut);
        }
        let options = self.pool.connect_options();
        let made = match timeout(CONNECT_TIME_MAX, Session::Batches.connect(&options)).await {
            Ok(connection) => connection,
            Err(_elapsed) => Err(sqlx::Error::PoolTimedOut),
        };
        *self.unreached_at.lock() = made.is_err().then(Instant::now);
        made
    }
}
