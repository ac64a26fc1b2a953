//! The transaction of a batch: begun by one simple query that tells its time, where sqlx's own
//! would need a second for that.

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{Executor as _, Postgres, Row as _};
use time::OffsetDateTime;

/// A row that somebody holds keeps a batch for no longer than this.
const BEGIN: &str = "begin; set local lock_timeout = '250ms'; select now()";

/// A transaction in which a batch is written.
pub(super) struct Batch {
    connection: PoolConnection<Postgres>,
    is_over: bool,
}

impl Batch {
    /// Begins one, and returns the time that is `now()` in it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn begin(pool: &PgPool) -> sqlx::Result<(Self, OffsetDateTime)> {
        let mut batch = Self { connection: pool.acquire().await?, is_over: false };
        let row = batch.connection().fetch_one(BEGIN).await?;
        Ok((batch, row.try_get(0)?))
    }

    /// What its statements go to.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// Commits it.
    ///
    /// # Errors
    /// When the database fails; it may have committed.
    pub async fn commit(mut self) -> sqlx::Result<()> {
        self.connection().execute("commit").await?;
        self.is_over = true;
        Ok(())
    }
}

/// sqlx knows nothing of this transaction. Whatever ended it before its time, an error or who
/// waited no longer, the connection does not go back to the pool in the middle of it.
impl Drop for Batch {
    fn drop(&mut self) {
        if !self.is_over {
            self.connection.close_on_drop();
        }
    }
}
