//! Brings what waits in Postgres on its way: parked jobs that are due, reads of unknown outcomes
//! that are due, and claims whose lease has expired. Any replica may take any row. Each of these has
//! a loop and a result of its own, so that none waits for another.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, debug, error, info, info_span, warn};
use uuid::Uuid;

use crate::clock::Moment;
use crate::control::breaker::{Event, State};
use crate::control::intake::Reason;
use crate::control::slots::{Place, Places};
use crate::journal::{ClaimedJob, JournalError, NextAttempt, Turn};
use crate::seal::OpenError;
use crate::worker::{JOURNAL_RETRY_DELAY, Worker, chain, log_outcome};

/// How many rows one statement of maintenance touches at most.
const BATCH: i64 = 250;

/// How many attempts one commit begins at most.
const ATTEMPTS_MAX: usize = 32;

/// How many customers are read at once at most: a replica that was killed may leave thousands of
/// unknown outcomes behind, each of which a read can settle for half a minute and no longer.
const READS_MAX: usize = 512;

/// How many reads one statement claims at most.
const READS_CLAIMED_MAX: usize = 32;

/// The shortest pause between two rounds, where rows stay due that others hold.
const PAUSE_MIN: Duration = Duration::from_millis(20);

/// How often old payloads, dead letters and dead replicas are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// How long a trial waits for a first attempt before a resend may be it: a resend that fails
/// costs its job the only one it has, but where nothing else comes nobody would ever know. Each
/// that is spent so doubles the wait, until the breaker closes: an outage of a minute costs a
/// few jobs their resend, one of a day some hundreds and not thousands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct ProbeBackoff(Duration);

impl ProbeBackoff {
    const MIN: Self = Self(Duration::from_secs(5));
    const MAX: Duration = Duration::from_secs(300);

    fn after_another(self) -> Self {
        Self((self.0 * 2).min(Self::MAX))
    }
}

/// What the attempts' loop remembers from one turn to the next.
struct Memory {
    probe_backoff: ProbeBackoff,
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
    /// How many customers are read at once.
    reads: Arc<Semaphore>,
    tasks: TaskTracker,
    poll: Duration,
    payload_retention: Duration,
    dead_letter_retention: Duration,
    due: Notify,
    read_due: Notify,
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
        let reads = Arc::new(Semaphore::new(READS_MAX));
        let (due, read_due) = (Notify::new(), Notify::new());
        Self { worker, places, reads, tasks, poll, payload_retention, dead_letter_retention, due, read_due }
    }

    /// Runs until the worker stops, and then until what it claimed is among the tasks: a claim
    /// that is under way is waited for, and what it began is closed as not sent. Attempts wait for
    /// places and maintenance for locks; a read that waited with them could miss the window in which
    /// it proves something.
    pub async fn run(self) {
        let (payloads, letters) = (self.payload_retention, self.dead_letter_retention);
        let journal = &self.worker.journal;
        tokio::join!(
            self.keep_time(),
            self.begin_attempts(),
            self.begin_reads(),
            self.maintain("rescue of expired leases", self.poll, || self.rescue()),
            self.maintain("ending what has expired", self.poll, || self.expire()),
            self.maintain("putting off busy customers' jobs", self.poll, move || async move {
                Ok(journal.postpone_busy(BATCH).await? < BATCH.unsigned_abs())
            }),
            self.maintain("PAYLOAD_RETENTION", SWEEP_INTERVAL, move || async move {
                let swept = journal.sweep_payloads(payloads, BATCH).await?;
                Ok(was_all(swept, "removed payloads older than PAYLOAD_RETENTION"))
            }),
            self.maintain("DEAD_LETTER_RETENTION", SWEEP_INTERVAL, move || async move {
                let swept = journal.sweep_dead_letters(letters, BATCH).await?;
                Ok(was_all(swept, "removed rows of dead letters older than DEAD_LETTER_RETENTION"))
            }),
            self.maintain("removing the rows of dead replicas", SWEEP_INTERVAL, move || async move {
                journal.sweep_workers().await?;
                Ok(true)
            }),
        );
    }

    /// Wakes the others when something is due. What stays due, as others hold it, is asked for ever more
    /// seldom.
    async fn keep_time(&self) {
        let mut hurry = PAUSE_MIN;
        loop {
            self.worker.liveness.scheduler.turn();
            self.due.notify_one();
            self.read_due.notify_one();
            let begun = Instant::now();
            let asking = self.worker.stopping.run_until_cancelled(self.worker.journal.next_due());
            let Some(next_due) = asking.await else { return };
            let pause = match next_due {
                Ok(next_due) => {
                    self.worker.intake.resume_by_work(Reason::Database, begun);
                    next_due.filter(|_| self.may_begin()).unwrap_or(self.poll)
                }
                Err(error) => {
                    self.worker.note_journal_failure(&error);
                    self.poll
                }
            };
            hurry = if pause.is_zero() { (hurry * 2).min(self.poll) } else { PAUSE_MIN };
            tokio::select! {
                () = sleep(pause.max(hurry).min(self.poll)) => {}
                () = self.worker.parked.notified() => {}
                () = self.worker.stopping.cancelled() => return,
            }
        }
    }

    /// What is due and waits for a place is no reason to hurry.
    fn may_begin(&self) -> bool {
        self.worker.breaker.is_closed() && !self.worker.intake.is_held() && self.places.try_take().is_some()
    }

    /// Does a chore again and again, `interval` apart, and at once where it says that it was not all.
    /// What makes it fail is told once, until it works again, and holds up nothing else.
    async fn maintain<F>(&self, chore: &'static str, interval: Duration, work: impl Fn() -> F)
    where
        F: Future<Output = Result<bool, JournalError>>,
    {
        let Worker { intake, stopping, .. } = &*self.worker;
        let (mut failing, mut is_told) = (None, false);
        while let Some(done) = stopping.run_until_cancelled(work()).await {
            let pause = match done {
                Ok(was_all) => {
                    if std::mem::take(&mut is_told) {
                        info!(chore, "maintenance works again");
                    }
                    failing = None;
                    if was_all { interval } else { PAUSE_MIN }
                }
                Err(error) => {
                    let cause = chain(&error);
                    let is_new = failing.as_ref() != Some(&cause);
                    // An outage is everybody's, and told by who has a job to write down.
                    let is_shared = error.is_outage() && (is_new || intake.is_paused_for(Reason::Database));
                    if !is_shared && (is_new || !is_told) {
                        error!(
                            chore,
                            error = cause,
                            "maintenance fails; all else goes on, and this is tried again"
                        );
                        is_told = true;
                    }
                    failing = Some(cause);
                    interval
                }
            };
            if stopping.run_until_cancelled(sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    async fn begin_attempts(&self) {
        let mut memory = Memory {
            probe_backoff: ProbeBackoff::MIN,
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

    /// Rescues claims whose lease has expired: as many as there are, before their customers' reads
    /// are due. Returns whether that was all, as every chore does.
    async fn rescue(&self) -> Result<bool, JournalError> {
        let taken = self.worker.journal.take_over(BATCH).await?;
        for taken in &taken {
            warn!(
                job_id = %taken.job_id, attempt = taken.attempt,
                claimed_by = taken.claimed_by, "a worker vanished in an attempt, its customer will be read back"
            );
        }
        Ok((taken.len() as i64) < BATCH)
    }

    /// Ends what waited for too long.
    async fn expire(&self) -> Result<bool, JournalError> {
        let expired = self.worker.journal.expire(BATCH).await?;
        for job_id in &expired {
            info!(%job_id, outcome = "exhausted", reason_code = "expired", "submission ended");
        }
        Ok((expired.len() as i64) < BATCH)
    }

    /// Begins every read that is due. Reads spend nothing, so no breaker holds them back.
    async fn begin_reads(&self) {
        loop {
            // Not for the clock alone: that may wait for a connection.
            let waiting = timeout(self.poll, self.read_due.notified());
            if self.worker.stopping.run_until_cancelled(waiting).await.is_none() {
                return;
            }
            self.worker.liveness.reads.turn();
            if let Err(error) = self.begin_due_reads().await {
                self.worker.note_journal_failure(&error);
            }
        }
    }

    async fn begin_due_reads(&self) -> Result<(), JournalError> {
        let permit = || Arc::clone(&self.reads);
        while !self.worker.stopping.is_cancelled() {
            // Those that are under way may wait for the database: this loop moves all the same.
            let Ok(Ok(first)) = timeout(self.poll, permit().acquire_owned()).await else { return Ok(()) };
            let more = std::iter::from_fn(|| permit().try_acquire_owned().ok());
            let permits: Vec<_> = std::iter::once(first).chain(more.take(READS_CLAIMED_MAX - 1)).collect();
            let claims = self.worker.journal.claim_reads(permits.len()).await?;
            if claims.is_empty() {
                return Ok(());
            }
            for (claim, permit) in claims.into_iter().zip(permits) {
                let worker = Arc::clone(&self.worker);
                let span = info_span!("job", job_id = %claim.job_id, customer_id = %claim.customer_id);
                self.tasks.spawn(
                    async move {
                        worker.read_back(claim).await;
                        drop(permit);
                    }
                    .instrument(span),
                );
            }
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
            if worker.intake.is_held() || worker.intake.is_paused_for(Reason::Database) {
                return Ok(());
            }
            let turn = match worker.breaker.state() {
                State::Closed { .. } => Turn::Any,
                State::Wanting { since, .. } if since.elapsed() >= memory.probe_backoff.0 => Turn::TrialOfAny,
                State::Trial(_) | State::Wanting { .. } => Turn::Trial,
                State::Open(_) | State::Trying(_) | State::Throttled { .. } => return Ok(()),
            };
            let mut places = vec![place];
            if turn == Turn::Any {
                memory.probe_backoff = ProbeBackoff::MIN;
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
                    NextAttempt::YieldedSlot(job_id, Some(outcome)) => log_outcome(&outcome, &job_id),
                    NextAttempt::YieldedSlot(_, None) => {}
                    NextAttempt::Unreadable(job_id, error) => tell_unreadable(memory, job_id, error),
                    NextAttempt::Refused(job_id, error) => error!(
                        %job_id, error = chain(&error),
                        "the database refuses this job's next attempt; it is tried again in a minute"
                    ),
                }
            }
        }
    }

    fn spawn_claimed(&self, claimed: ClaimedJob, turn: Turn, place: Place, memory: &mut Memory) {
        if turn != Turn::Any {
            self.worker.breaker.note(&Event::TrialBegun, &self.worker.intake);
        }
        if turn == Turn::TrialOfAny && claimed.claim.history.unknown > 0 {
            memory.probe_backoff = memory.probe_backoff.after_another();
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

/// Says how much was removed, if anything was; returns whether that was all there is.
fn was_all(swept: u64, what: &'static str) -> bool {
    if swept > 0 {
        info!(swept, "{what}");
    }
    swept < BATCH.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many resends an outage spends whose every trial is one. A good probe comes 5 s after
    /// each that failed.
    fn spent_in(outage: Duration) -> u32 {
        let (mut probe_backoff, mut passed, mut spent) = (ProbeBackoff::MIN, Duration::ZERO, 0);
        loop {
            passed += Duration::from_secs(5) + probe_backoff.0;
            if passed > outage {
                return spent;
            }
            probe_backoff = probe_backoff.after_another();
            spent += 1;
        }
    }

    #[test]
    fn the_longer_an_outage_lasts_the_fewer_resends_it_spends_a_minute() {
        let spent_in = |minutes: u64| spent_in(Duration::from_secs(60 * minutes));
        assert_eq!([1, 10, 60, 24 * 60].map(spent_in), [3, 6, 16, 288]);
    }
}
