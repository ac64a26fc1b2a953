//! Brings what waits in Postgres on its way: parked jobs that are due, looks at customers
//! that are due, and claims whose owner vanished. Any replica may take any row.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, debug, error, info, info_span, warn};
use uuid::Uuid;

use crate::breaker::{Event, State};
use crate::clock::Moment;
use crate::intake::Reason;
use crate::journal::seal::OpenError;
use crate::journal::{ClaimedJob, JournalError, NextAttempt, Turn};
use crate::places::{Place, Places};
use crate::worker::{JOURNAL_RETRY_DELAY, Worker, log_outcome};

/// How many rows one statement of upkeep touches at most.
const BATCH: i64 = 100;

/// How many attempts one commit begins at most.
const ATTEMPTS_MAX: usize = 32;

/// The shortest pause between two looks, where rows stay due that others hold.
const PAUSE_MIN: Duration = Duration::from_millis(20);

/// How many customers are looked at at once: looks wait for no job.
const LOOKS_MAX: usize = 32;

/// How often old payloads, dead letters and dead replicas are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// How long a trial waits for a first attempt before a resend may be it: a resend that fails
/// costs its job the only one it has, but where nothing else comes nobody would ever know. Each
/// that is spent so doubles the wait, until the breaker closes: an outage of a minute costs a
/// few jobs their resend, one of a day some hundreds and not thousands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Patience(Duration);

impl Patience {
    const MIN: Self = Self(Duration::from_secs(5));
    const MAX: Duration = Duration::from_secs(300);

    fn after_another(self) -> Self {
        Self((self.0 * 2).min(Self::MAX))
    }
}

/// When what need not be done at every wake was last done.
#[derive(Default)]
struct Chores {
    tidied_at: Option<Instant>,
    swept_at: Option<Instant>,
}

fn is_due(done_at: Option<Instant>, interval: Duration) -> bool {
    done_at.is_none_or(|done_at| done_at.elapsed() >= interval)
}

/// What the attempts' loop remembers from one turn to the next.
struct Memory {
    patience: Patience,
    /// Whether jobs that wait for a key were tried with those that this worker has.
    has_woken_unreadable: bool,
    /// Why payloads could not be opened, as far as it was told.
    told: HashSet<OpenError>,
    /// A question for attempts that got no answer: some may have been begun.
    unanswered: Option<(Moment, Turn)>,
}

/// The scheduler of one worker.
pub struct Scheduler {
    worker: Arc<Worker>,
    places: Arc<Places>,
    looks: Arc<Semaphore>,
    tasks: TaskTracker,
    poll: Duration,
    payload_retention: Duration,
    dead_letter_retention: Duration,
    /// Wakes the attempts' loop.
    due: Notify,
}

impl Scheduler {
    /// A scheduler that shares `places` with the intake and looks every `poll` at least.
    pub fn new(
        worker: Arc<Worker>,
        places: Arc<Places>,
        tasks: TaskTracker,
        poll: Duration,
        payload_retention: Duration,
        dead_letter_retention: Duration,
    ) -> Self {
        let looks = Arc::new(Semaphore::new(LOOKS_MAX));
        let due = Notify::new();
        Self { worker, places, looks, tasks, poll, payload_retention, dead_letter_retention, due }
    }

    /// Runs until the worker stops, and then until what it claimed is among the tasks: a claim
    /// that is under way is waited for, and what it began is closed as not sent. Attempts wait
    /// for places, in a loop of their own: a look that waited with them could miss the window in
    /// which it proves something.
    pub async fn run(self) {
        tokio::join!(self.tend(), self.begin_attempts());
    }

    async fn tend(&self) {
        let mut done = Chores::default();
        loop {
            self.worker.liveness.scheduler.turn();
            self.due.notify_one();
            let begun = Instant::now();
            let pause = match self.round(&mut done).await {
                Ok(pause) => {
                    self.worker.intake.resume_by_work(Reason::Database, begun);
                    pause
                }
                Err(error) => {
                    self.worker.note_journal_failure(&error);
                    self.poll
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = self.worker.parked.notified() => {}
                () = self.worker.stopping.cancelled() => return,
            }
        }
    }

    async fn begin_attempts(&self) {
        let mut memory = Memory {
            patience: Patience::MIN,
            has_woken_unreadable: false,
            told: HashSet::new(),
            unanswered: None,
        };
        while self.worker.stopping.run_until_cancelled(self.due.notified()).await.is_some() {
            let begun = async {
                if !memory.has_woken_unreadable {
                    self.worker.journal.wake_unreadable().await?;
                    memory.has_woken_unreadable = true;
                }
                self.send_begun(&mut memory).await?;
                self.begin_due(&mut memory).await
            };
            if let Err(error) = begun.await {
                self.worker.note_journal_failure(&error);
            }
        }
        // A claim whose answer was lost may have begun attempts, and nobody else closes them as
        // not sent.
        while let Err(error) = self.send_begun(&mut memory).await {
            self.worker.note_journal_failure(&error);
            sleep(JOURNAL_RETRY_DELAY).await;
        }
    }

    /// Sends what was begun by a commit whose answer was lost. What is too late for that, as once
    /// the worker stops, is closed as not sent, which spends nothing; left alone, it would be taken
    /// for sent.
    async fn send_begun(&self, memory: &mut Memory) -> Result<(), JournalError> {
        let Some((t0, turn)) = memory.unanswered else { return Ok(()) };
        let begun = self.worker.journal.find_begun(t0, turn).await?;
        // Not asked again: from here on they are sent.
        memory.unanswered = None;
        for claimed in begun {
            // Whether or not the worker stops meanwhile: what is claimed must be closed.
            let place = self.places.take().await;
            self.spawn_claimed(claimed, turn, place, memory);
        }
        Ok(())
    }

    /// One look at everything that is due, but the attempts. Returns how long until the next
    /// is worth it.
    async fn round(&self, done: &mut Chores) -> Result<Duration, JournalError> {
        let journal = &self.worker.journal;
        if is_due(done.tidied_at, self.poll) {
            self.tidy_up().await?;
            done.tidied_at = Some(Instant::now());
        }
        self.begin_looks().await?;
        journal.postpone_busy(BATCH).await?;
        if is_due(done.swept_at, SWEEP_INTERVAL) {
            // A full batch may not have been all.
            done.swept_at = self.sweep().await?.then(Instant::now);
        }
        // What is due and waits for a place is no reason to hurry.
        let may_begin = self.worker.breaker.is_closed()
            && !self.worker.intake.is_paused_for(Reason::Operator)
            && self.places.try_take().is_some();
        let next_due = journal.next_due().await?;
        Ok(match next_due.filter(|_| may_begin) {
            Some(next_due) => next_due.max(PAUSE_MIN).min(self.poll),
            None => self.poll,
        })
    }

    /// Takes over what was left behind, and ends what waited for too long.
    async fn tidy_up(&self) -> Result<(), JournalError> {
        for taken in self.worker.journal.take_over(BATCH).await? {
            warn!(
                job_id = %taken.job_id, attempt = taken.attempt,
                claimed_by = taken.claimed_by, "a worker vanished in an attempt, its customer will be read back"
            );
        }
        for job_id in self.worker.journal.expire(BATCH).await? {
            info!(%job_id, outcome = "exhausted", reason_code = "expired", "submission ended");
        }
        Ok(())
    }

    /// Removes what has been kept for long enough. Returns whether that was all.
    async fn sweep(&self) -> Result<bool, JournalError> {
        let journal = &self.worker.journal;
        let payloads = journal.sweep_payloads(self.payload_retention, BATCH).await?;
        if payloads > 0 {
            info!(swept = payloads, "removed payloads older than PAYLOAD_RETENTION");
        }
        let rows = journal.sweep_dead_letters(self.dead_letter_retention, BATCH).await?;
        if rows > 0 {
            info!(swept = rows, "removed rows of dead letters older than DEAD_LETTER_RETENTION");
        }
        journal.sweep_workers().await?;
        Ok(payloads.max(rows) < BATCH.unsigned_abs())
    }

    /// Begins every look that is due. Looks spend nothing, so no breaker holds them back.
    async fn begin_looks(&self) -> Result<(), JournalError> {
        while !self.worker.stopping.is_cancelled() {
            let Ok(permit) = Arc::clone(&self.looks).try_acquire_owned() else { return Ok(()) };
            let claimed_at = Instant::now();
            let Some(claim) = self.worker.journal.claim_read().await? else { return Ok(()) };
            let worker = Arc::clone(&self.worker);
            let span = info_span!("job", job_id = %claim.job_id, customer_id = %claim.customer_id);
            self.tasks.spawn(
                async move {
                    worker.read_back(claim, claimed_at).await;
                    drop(permit);
                }
                .instrument(span),
            );
        }
        Ok(())
    }

    /// Begins the next attempts of the jobs that are due, as the breaker and the operator allow:
    /// as many at once as places are free, but one trial at a time.
    async fn begin_due(&self, memory: &mut Memory) -> Result<(), JournalError> {
        let worker = &self.worker;
        loop {
            let Some(place) = worker.stopping.run_until_cancelled(self.places.take()).await else {
                return Ok(());
            };
            // What would be held back is not begun: an attempt spends rows, if nothing else.
            if [Reason::Operator, Reason::Database].iter().any(|reason| worker.intake.is_paused_for(*reason))
            {
                return Ok(());
            }
            let turn = match worker.breaker.state() {
                State::Closed { .. } => Turn::Any,
                State::Wanting { since, .. } if since.elapsed() >= memory.patience.0 => Turn::TrialOfAny,
                State::Trial(_) | State::Wanting { .. } => Turn::Trial,
                State::Open(_) | State::Trying(_) | State::Throttled { .. } => return Ok(()),
            };
            let mut places = vec![place];
            if turn == Turn::Any {
                memory.patience = Patience::MIN;
                places.extend(std::iter::from_fn(|| self.places.try_take()).take(ATTEMPTS_MAX - 1));
            }
            let t0 = Moment::now();
            memory.unanswered = Some((t0, turn));
            let next = worker.journal.next_attempts(t0, turn, places.len()).await?;
            memory.unanswered = None;
            let Some(next) = next else { continue };
            if next.is_empty() {
                if turn != Turn::Any {
                    let nothing = Event::NothingToTry { at: Instant::now() };
                    worker.breaker.note(&nothing, &worker.intake);
                }
                return Ok(());
            }
            for next in next {
                match next {
                    NextAttempt::Claimed(claimed) => {
                        // There are as many as there may be attempts.
                        let Some(place) = places.pop() else { break };
                        self.spawn_claimed(*claimed, turn, place, memory);
                    }
                    NextAttempt::SteppedAside(job_id, Some(outcome)) => log_outcome(&outcome, &job_id),
                    NextAttempt::SteppedAside(_, None) => {}
                    NextAttempt::Unreadable(job_id, error) => tell_unreadable(memory, job_id, error),
                }
            }
        }
    }

    fn spawn_claimed(&self, claimed: ClaimedJob, turn: Turn, place: Place, memory: &mut Memory) {
        if turn != Turn::Any {
            self.worker.breaker.note(&Event::TrialBegun, &self.worker.intake);
        }
        if turn == Turn::TrialOfAny && claimed.claim.history.unknown > 0 {
            memory.patience = memory.patience.after_another();
        }
        let worker = Arc::clone(&self.worker);
        let ClaimedJob { claim, request, correlation_id } = claimed;
        let span =
            info_span!("job", job_id = %claim.job_id, customer_id = %claim.customer_id, correlation_id);
        debug!(parent: &span, attempt = claim.attempt, "taken up again");
        self.tasks.spawn(async move { worker.submit(claim, &request, place).await }.instrument(span));
    }
}

/// One key that is missing may be that of thousands of jobs: each cause is told once.
fn tell_unreadable(memory: &mut Memory, job_id: Uuid, error: OpenError) {
    let text = error.to_string();
    if memory.told.insert(error) {
        error!(
            %job_id, error = text,
            "PAYLOAD_KEY: cannot open a stored payload; add the key it was sealed with; \
             `kyc-worker list --reason payload_unreadable` names the jobs that wait for it"
        );
    } else {
        debug!(%job_id, error = text, "a stored payload cannot be opened");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many resends an outage spends whose every trial is one. A good probe comes 5 s after
    /// each that failed.
    fn spent_in(outage: Duration) -> u32 {
        let (mut patience, mut passed, mut spent) = (Patience::MIN, Duration::ZERO, 0);
        loop {
            passed += Duration::from_secs(5) + patience.0;
            if passed > outage {
                return spent;
            }
            patience = patience.after_another();
            spent += 1;
        }
    }

    #[test]
    fn the_longer_an_outage_lasts_the_fewer_resends_it_spends_a_minute() {
        let spent_in = |minutes: u64| spent_in(Duration::from_secs(60 * minutes));
        assert_eq!([1, 10, 60, 24 * 60].map(spent_in), [3, 6, 16, 288]);
    }
}
