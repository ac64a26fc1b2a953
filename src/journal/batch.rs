//! Many jobs, one commit: what concurrent jobs want written gathers while the last batch commits, and
//! goes with the next. A busy journal waits a little for more, an idle one writes at once. A batch is
//! committed by a thread and over a connection of its own, so that it waits for the database and not
//! for its turn among the jobs.

use std::collections::{HashMap, HashSet};
use std::io;
use std::mem::take;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{Connection as _, Executor as _, Row as _};
use time::OffsetDateTime;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tracing::{debug, error};
use uuid::Uuid;

use crate::journal::error::{ONE_CLAIM, ONE_ROW, is_taken};
use crate::journal::lineage;
use crate::journal::pool::{IDLE_TIME_MIN, PING_TIME_MAX, bounded, note_lineage};
use crate::journal::rows::{Limits, NewRow, Slots};
use crate::journal::session::{CONNECT_PAUSE, CONNECT_TIME_MAX, Session};
use crate::journal::statements::close::{Closing, close_many};
use crate::journal::statements::open::{Opened, open_many};
use crate::metrics::METRICS;
use crate::seal::Fingerprinter;

/// How many changes share a commit at most, and how many more may wait for the next.
const BATCH_MAX: usize = 512;

/// A commit, and what is said before and after it, has a cost of its own. More changes than these need
/// not be waited for to share it.
const BATCH_WORTH: usize = 128;

/// A smaller batch waits for more if so many have gathered during the last one's commit.
const BUSY_MIN: usize = 8;

/// How long it waits at most.
const TOP_UP_TIME_MAX: Duration = Duration::from_millis(20);

/// Begins a transaction and tells its time, in one query, where sqlx's own would need a second
/// for that.
const BEGIN: &str = "begin; select now()";

/// For so long after one of them was taken, `job_id`s and slots are no longer expected to be free:
/// a batch that expects them in vain is written twice.
const CAUTION_TIME: Duration = Duration::from_secs(10);

/// What a job has written with others, and who waits for the commit. A reply that is dropped says that
/// the change must be made alone: it meets something that is not for a batch, or its batch was not
/// committed.
enum Change {
    Open { row: Arc<NewRow>, reply: oneshot::Sender<Opened> },
    Close { closing: Arc<Closing>, reply: oneshot::Sender<OffsetDateTime> },
}

/// Gathers changes, and commits one batch after the other.
pub(crate) struct Batcher {
    waiting: mpsc::Sender<Change>,
    _thread: Thread,
}

impl Batcher {
    /// Starts it. Must be called within a runtime, where changes are gathered.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        pool: PgPool,
        worker: String,
        limits: Limits,
        fingerprinter: Fingerprinter,
    ) -> io::Result<Self> {
        // One thread of several possible ones: waking the only thread of a runtime that has no
        // other is a system call, whether or not it sleeps.
        let runtime =
            Builder::new_multi_thread().worker_threads(1).thread_name("journal").enable_all().build()?;
        let handle = runtime.handle().clone();
        let committer = Arc::new(Committer::new(pool, worker, limits, fingerprinter));
        let waiting = gather(move |batch| {
            let (handle, committer) = (handle.clone(), Arc::clone(&committer));
            async move {
                // A panic drops the replies, as a failure does.
                if let Ok(Some(committed)) = handle.spawn(async move { committer.commit(batch).await }).await
                {
                    committed.reply();
                }
            }
        });
        Ok(Self { waiting, _thread: Thread(Some(runtime)) })
    }

    /// Opens a job with whatever else is written now. `None` if it must be opened alone.
    pub async fn open(&self, row: Arc<NewRow>) -> Option<Opened> {
        ask(&self.waiting, |reply| Change::Open { row, reply }).await
    }

    /// Closes an attempt with whatever else is written now, and returns when. `None` if it must be closed
    /// alone.
    pub async fn close(&self, closing: Arc<Closing>) -> Option<OffsetDateTime> {
        ask(&self.waiting, |reply| Change::Close { closing, reply }).await
    }
}

/// The runtime of the one thread that commits.
struct Thread(Option<Runtime>);

impl Drop for Thread {
    fn drop(&mut self) {
        // A runtime may not wait for the end of another.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Hands one change over and waits for its reply; `None` where that is dropped.
async fn ask<T, R>(waiting: &mpsc::Sender<T>, change: impl FnOnce(oneshot::Sender<R>) -> T) -> Option<R> {
    let (reply, answer) = oneshot::channel();
    if waiting.send(change(reply)).await.is_err() {
        error!("the journal's batcher has died, every change is made alone; this is a bug, report it");
        return None;
    }
    answer.await.ok()
}

/// Gathers batches in a task of its own, and has one after the other committed.
fn gather<T, F>(commit: impl Fn(Vec<T>) -> F + Send + 'static) -> mpsc::Sender<T>
where
    T: Send + 'static,
    F: Future<Output = ()> + Send,
{
    let (waiting, mut gathered) = mpsc::channel(BATCH_MAX);
    tokio::spawn(async move {
        let mut batch = Vec::new();
        while gather_one(&mut gathered, &mut batch).await {
            commit(take(&mut batch)).await;
        }
    });
    waiting
}

/// Waits for a batch; `false` if there will be none any more.
async fn gather_one<T>(gathered: &mut mpsc::Receiver<T>, batch: &mut Vec<T>) -> bool {
    gathered.recv_many(batch, BATCH_MAX).await;
    let topping_up = async {
        while (BUSY_MIN..BATCH_WORTH).contains(&batch.len())
            && gathered.recv_many(batch, BATCH_MAX - batch.len()).await > 0
        {}
    };
    // What has come by then is the batch.
    let _is_late = timeout(TOP_UP_TIME_MAX, topping_up).await;
    !batch.is_empty()
}

/// A batch that was committed.
struct Committed {
    opens: Vec<(Arc<NewRow>, oneshot::Sender<Opened>)>,
    closes: Vec<(Arc<Closing>, oneshot::Sender<OffsetDateTime>)>,
    written: Written,
}

impl Committed {
    /// Sends the replies; on the thread that waits for them. From another, each would wake that thread,
    /// and what follows from them, as their acks, would no longer go together.
    fn reply(self) {
        let Written { mut opened, closed, at } = self.written;
        // Who stopped waiting has stopped altogether.
        for (row, reply) in self.opens {
            // Of two with one job_id, the first: the second goes alone.
            if let Some(opened) = opened.remove(&row.job_id) {
                let _nobody_waits = reply.send(opened);
            }
        }
        for (closing, reply) in self.closes {
            if closed.contains(&closing.key()) {
                let _nobody_waits = reply.send(at);
            }
        }
    }
}

/// A connection between two batches.
struct Kept {
    connection: PgConnection,
    made_at: Instant,
    used_at: Instant,
}

/// Commits batches.
struct Committer {
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
    kept: Mutex<Option<Kept>>,
    /// When a `job_id` or a slot was last found to be taken.
    taken_at: Mutex<Option<Instant>>,
}

/// What a batch has written.
struct Written {
    /// What became of the jobs, by their ids.
    opened: HashMap<Uuid, Opened>,
    /// Which claims were closed.
    closed: HashSet<(Uuid, i64)>,
    /// When, by the database's clock.
    at: OffsetDateTime,
}

impl Committer {
    /// Over a connection of its own, which is made when it is needed.
    fn new(pool: PgPool, worker: String, limits: Limits, fingerprinter: Fingerprinter) -> Self {
        let (unreached_at, kept, taken_at) = (Mutex::new(None), Mutex::new(None), Mutex::new(None));
        Self { pool, worker, limits, fingerprinter, unreached_at, kept, taken_at }
    }

    /// Commits a batch. If that fails, its replies are dropped and its changes made alone, so that what
    /// one of them cannot have harms no other.
    async fn commit(&self, batch: Vec<Change>) -> Option<Committed> {
        let (mut opens, mut closes) = (Vec::new(), Vec::new());
        for change in batch {
            match change {
                Change::Open { row, reply } => opens.push((row, reply)),
                Change::Close { closing, reply } => closes.push((closing, reply)),
            }
        }
        let rows: Vec<&NewRow> = opens.iter().map(|(row, _)| &**row).collect();
        let closings: Vec<&Closing> = closes.iter().map(|(closing, _)| &**closing).collect();
        let begun = Instant::now();
        let written = bounded("batch", async {
            let adopted_at = lineage::adopted_at();
            let Kept { mut connection, made_at, .. } = self.connection().await?;
            lineage::check(&mut connection).await?;
            let written = match self.write(&mut connection, self.slots(), &rows, &closings).await {
                Err(error) if is_taken(&error, &[ONE_CLAIM, ONE_ROW]) => {
                    *self.taken_at.lock() = Some(Instant::now());
                    connection.execute("rollback").await?;
                    self.write(&mut connection, Slots::MaybeTaken, &rows, &closings).await?
                }
                written => written?,
            };
            lineage::check_unreplaced(adopted_at)?;
            *self.kept.lock() = Some(Kept { connection, made_at, used_at: Instant::now() });
            Ok(written)
        })
        .await;
        METRICS.note_batch(opens.len() + closes.len(), begun.elapsed(), written.is_ok());
        match written {
            Ok(written) => Some(Committed { opens, closes, written }),
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                debug!(error, "a batch was not written, its changes are made alone");
                None
            }
        }
    }

    /// What is opened first, as that may wait for another replica's batch: whoever waits holds
    /// nothing yet that the other's openings wait for, and closing waits for no batch.
    async fn write(
        &self,
        tx: &mut PgConnection,
        slots: Slots,
        rows: &[&NewRow],
        closings: &[&Closing],
    ) -> sqlx::Result<Written> {
        let now = tx.fetch_one(BEGIN).await?.try_get(0)?;
        let opened = open_many(tx, &self.worker, &self.limits, slots, rows).await?;
        let closed = close_many(tx, &self.worker, &self.fingerprinter, &self.limits, now, closings).await?;
        tx.execute("commit").await?;
        Ok(Written { opened, closed, at: now })
    }

    fn slots(&self) -> Slots {
        let is_cautious = self.taken_at.lock().is_some_and(|at| at.elapsed() < CAUTION_TIME);
        if is_cautious { Slots::MaybeTaken } else { Slots::Free }
    }

    async fn connection(&self) -> sqlx::Result<Kept> {
        let kept = self.kept.lock().take();
        if let Some(mut kept) = kept.filter(|kept| !lineage::is_outdated(kept.made_at))
            && (kept.used_at.elapsed() < IDLE_TIME_MIN
                || matches!(timeout(PING_TIME_MAX, kept.connection.ping()).await, Ok(Ok(()))))
        {
            return Ok(kept);
        }
        if self.unreached_at.lock().is_some_and(|at| at.elapsed() < CONNECT_PAUSE) {
            return Err(sqlx::Error::PoolTimedOut);
        }
        let options = self.pool.connect_options();
        // Before it is made: what is found out meanwhile is of no use for it.
        let made_at = Instant::now();
        let making = async {
            let mut connection = Session::Batches.connect(&options).await?;
            note_lineage(&mut connection).await?;
            Ok(Kept { connection, made_at, used_at: Instant::now() })
        };
        let made = match timeout(CONNECT_TIME_MAX, making).await {
            Ok(made) => made,
            Err(_elapsed) => Err(sqlx::Error::PoolTimedOut),
        };
        *self.unreached_at.lock() = made.is_err().then(Instant::now);
        made
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::sync::Notify;

    use super::*;

    /// An element, and who waits for the size of its batch.
    type Asked = (usize, oneshot::Sender<(usize, usize)>);

    #[tokio::test]
    async fn what_comes_during_a_commit_goes_with_the_next_one() {
        let (begun, commit) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let signals = (Arc::clone(&begun), Arc::clone(&commit));
        let waiting = gather(move |batch: Vec<Asked>| {
            let (begun, commit) = signals.clone();
            async move {
                begun.notify_one();
                commit.notified().await;
                let size = batch.len();
                for (element, reply) in batch {
                    reply.send((element, size)).expect("it waits");
                }
            }
        });
        let asking = |element| {
            let waiting = waiting.clone();
            tokio::spawn(async move { ask(&waiting, |reply| (element, reply)).await })
        };
        let first = asking(0);
        begun.notified().await;
        let rest: Vec<_> = (1..=10).map(asking).collect();
        while waiting.capacity() != BATCH_MAX - 10 {
            tokio::task::yield_now().await;
        }
        commit.notify_one();
        begun.notified().await;
        commit.notify_one();
        assert_eq!(first.await.expect("it ends"), Some((0, 1)));
        for (n, element) in rest.into_iter().enumerate() {
            assert_eq!(element.await.expect("it ends"), Some((n + 1, 10)), "each its own, in one commit");
        }
    }

    #[tokio::test]
    async fn a_busy_journal_waits_a_little_for_more_and_an_idle_one_does_not() {
        let (sender, mut gathered) = mpsc::channel(BATCH_MAX);
        let mut batch = Vec::new();
        for (size, waits) in [(1, false), (BUSY_MIN, true), (BATCH_WORTH, false), (BATCH_MAX, false)] {
            for element in 0..size {
                sender.send(element).await.expect("there is room");
            }
            let is_there = gather_one(&mut gathered, &mut batch).now_or_never();
            assert_eq!(is_there, (!waits).then_some(true), "{size}");
            if waits {
                sender.send(size).await.expect("there is room");
                assert!(gather_one(&mut gathered, &mut batch).await);
                assert_eq!(batch.last(), Some(&size));
            }
            batch.clear();
        }
        drop(sender);
        assert!(!gather_one(&mut gathered, &mut batch).await);
    }

    #[tokio::test]
    async fn a_change_whose_reply_is_dropped_goes_alone() {
        let waiting = gather(|batch: Vec<Asked>| async { drop(batch) });
        assert_eq!(ask(&waiting, |reply| (7, reply)).await, None);
    }

    #[tokio::test]
    async fn a_batcher_that_died_leaves_nobody_waiting() {
        let waiting = gather(|_: Vec<Asked>| async { panic!("a bug") });
        assert_eq!(ask(&waiting, |reply| (7, reply)).await, None, "its answer never comes");
        while !waiting.is_closed() {
            tokio::task::yield_now().await;
        }
        assert_eq!(ask(&waiting, |reply| (7, reply)).await, None);
    }
}
