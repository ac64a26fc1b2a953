//! Where batches are committed: by a thread and over connections of their own, so that a batch
//! waits for the database and not for its turn among the jobs.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, Row as _};
use time::OffsetDateTime;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::{CONNECT_TIME_MAX, IDLE_TIME_MIN, PING_TIME_MAX, bounded};

/// Begins a transaction and tells its time, in one query, where sqlx's own would need a second
/// for that. A row that somebody holds keeps a batch for no longer than this.
const BEGIN: &str = "begin; set local lock_timeout = '250ms'; select now()";

/// The thread, and what spawns on it.
pub(super) struct BatchThread {
    runtime: Option<Runtime>,
    handle: Handle,
}

/// Commits one batch after the other.
pub(super) struct Batches {
    options: Arc<PgConnectOptions>,
    /// The connection, and when it was last of use. Taken out for a batch and put back once that
    /// is committed: one on which anything else happened is never used again.
    kept: Mutex<Option<(PgConnection, Instant)>>,
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

    /// What spawns on it.
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
    /// Over a connection of its own, which is made when it is needed.
    pub fn new(options: Arc<PgConnectOptions>) -> Self {
        Self { options, kept: Mutex::new(None) }
    }

    /// Commits a batch. `write` gets the transaction's time, which is its `now()`. Returns nothing
    /// if that failed, and the batch's parts are retried alone, so that what one of them cannot
    /// have harms no other.
    pub async fn commit<R>(
        &self,
        write: impl AsyncFnOnce(&mut PgConnection, OffsetDateTime) -> sqlx::Result<Vec<Option<R>>>,
    ) -> Vec<Option<R>> {
        let written = bounded(async {
            let mut connection = self.connection().await?;
            let now = connection.fetch_one(BEGIN).await?.try_get(0)?;
            let written = write(&mut connection, now).await?;
            connection.execute("commit").await?;
            *self.kept() = Some((connection, Instant::now()));
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

    async fn connection(&self) -> sqlx::Result<PgConnection> {
        let kept = self.kept().take();
        if let Some((mut connection, used_at)) = kept
            && (used_at.elapsed() < IDLE_TIME_MIN
                || matches!(timeout(PING_TIME_MAX, connection.ping()).await, Ok(Ok(()))))
        {
            return Ok(connection);
        }
        match timeout(CONNECT_TIME_MAX, self.options.connect()).await {
            Ok(connection) => connection,
            Err(_elapsed) => Err(sqlx::Error::PoolTimedOut),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Option<(PgConnection, Instant)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
