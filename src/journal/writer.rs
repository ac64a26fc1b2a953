//! Many jobs, one commit: what concurrent jobs want written gathers while the last batch
//! commits, and goes with the next. A busy journal waits a little for more, an idle one writes at
//! once. Knows nothing of what it writes.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::error;

/// How many jobs share a commit at most, and how many more may wait for the next.
const BATCH_MAX: usize = 512;

/// A commit, and what is said before and after it, has a cost of its own. More jobs than these need
/// not be waited for to share it.
const BATCH_WORTH: usize = 128;

/// A smaller batch waits for more if so many have gathered during the last one's commit.
const BUSY_MIN: usize = 8;

/// How long it waits at most.
const TOP_UP_TIME_MAX: Duration = Duration::from_millis(20);

/// One task that writes batches, one after the other.
pub(crate) struct Writer<T, R> {
    waiting: mpsc::Sender<(T, oneshot::Sender<Option<R>>)>,
}

impl<T, R> Writer<T, R>
where
    T: Send + 'static,
    R: Send + 'static,
{
    /// `write` commits a batch and gives back a result for each element, in order: `None` for
    /// one that must go alone. An empty answer means that nothing was committed.
    pub fn start<F>(write: impl Fn(Vec<T>) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Vec<Option<R>>> + Send,
    {
        let (waiting, mut gathered) = mpsc::channel::<(T, oneshot::Sender<Option<R>>)>(BATCH_MAX);
        tokio::spawn(async move {
            let mut batch = Vec::with_capacity(BATCH_MAX);
            while gather(&mut gathered, &mut batch).await {
                let (elements, replies): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
                for (reply, result) in replies.into_iter().zip(write(elements).await) {
                    // Who stopped waiting has stopped altogether.
                    let _nobody_waits = reply.send(result);
                }
            }
        });
        Self { waiting }
    }

    /// Writes one element with whatever else is written now. `None` if it must go alone: it
    /// meets something that is not for a batch, or its batch was not committed.
    pub async fn write(&self, element: T) -> Option<R> {
        let (reply, result) = oneshot::channel();
        if self.waiting.send((element, reply)).await.is_err() {
            error!("the journal's writer has died, every job is written alone; this is a bug, report it");
            return None;
        }
        result.await.ok().flatten()
    }
}

/// Waits for a batch; `false` if there will be none any more.
async fn gather<T>(gathered: &mut mpsc::Receiver<T>, batch: &mut Vec<T>) -> bool {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt as _;
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn what_comes_during_a_commit_goes_with_the_next_one() {
        let (begun, commit) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let signals = (Arc::clone(&begun), Arc::clone(&commit));
        let writer = Arc::new(Writer::start(move |batch: Vec<usize>| {
            let (begun, commit) = signals.clone();
            async move {
                begun.notify_one();
                commit.notified().await;
                let size = batch.len();
                batch.into_iter().map(|element| Some((element, size))).collect()
            }
        }));
        let write = |element| {
            let writer = Arc::clone(&writer);
            tokio::spawn(async move { writer.write(element).await })
        };
        let first = write(0);
        begun.notified().await;
        let rest: Vec<_> = (1..=10).map(write).collect();
        while writer.waiting.capacity() != BATCH_MAX - 10 {
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
            let is_there = gather(&mut gathered, &mut batch).now_or_never();
            assert_eq!(is_there, (!waits).then_some(true), "{size}");
            if waits {
                sender.send(size).await.expect("there is room");
                assert!(gather(&mut gathered, &mut batch).await);
                assert_eq!(batch.last(), Some(&size));
            }
            batch.clear();
        }
        drop(sender);
        assert!(!gather(&mut gathered, &mut batch).await);
    }

    #[tokio::test]
    async fn a_batch_that_was_not_committed_is_retried_by_its_parts() {
        let writer = Writer::<u8, u8>::start(|_| async { Vec::new() });
        assert_eq!(writer.write(7).await, None);
    }

    #[tokio::test]
    async fn a_writer_that_died_leaves_nobody_waiting() {
        let writer = Writer::<u8, u8>::start(|_| async { panic!("a bug") });
        assert_eq!(writer.write(7).await, None, "its answer never comes");
        while !writer.waiting.is_closed() {
            tokio::task::yield_now().await;
        }
        assert_eq!(writer.write(7).await, None);
    }
}
