//! Begins the attempts that are due, and wakes the reconciler when a read may be. Any replica may
//! take any job. The reconciler has a loop of its own: attempts wait for slots, and a read that waited
//! with them could miss the window in which it proves something.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::TaskTracker;
use tracing::field::display;
use tracing::{Instrument as _, debug, error, info_span};

use crate::clock::Moment;
use crate::context::{Context, JOURNAL_RETRY_DELAY, chain, log_outcome};
use crate::control::breaker::{Event, State};
use crate::control::intake::Reason;
use crate::control::slots::{JobSlot, JobSlots};
use crate::domain::job::JobRef;
use crate::journal::{ClaimedJob, JournalError, NextAttempt, Probe};
use crate::loops::{PAUSE_MIN, QUIET_POLLS};
use crate::seal::OpenError;
use crate::traces::Kind;
use crate::worker;

/// How many attempts one commit begins at most.
const ATTEMPTS_MAX: usize = 32;

/// How long the half-open breaker waits for another job before a resend may be the probe, or a job that
/// was refused itself: a resend that fails costs its job the only one it has, but where no other job
/// comes nobody would ever know that the provider is back. Each resend that is spent so doubles the
/// wait, until the breaker closes: an outage of a minute costs a few jobs their resend, one of a day some
/// hundreds and not thousands.
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
    /// Why payloads could not be opened, as far as it was logged.
    logged: HashSet<OpenError>,
    /// A question for attempts that got no answer: some may have been begun.
    unanswered: Option<(Moment, Option<Probe>)>,
}

/// The dispatcher of one worker.
pub struct Dispatcher {
    context: Arc<Context>,
    slots: Arc<JobSlots>,
    jobs: TaskTracker,
    poll: Duration,
}

impl Dispatcher {
    /// A dispatcher that shares `slots` with the consumer, asks for due jobs every `poll` at least,
    /// and submits them among `jobs`.
    pub fn new(context: Arc<Context>, slots: Arc<JobSlots>, jobs: TaskTracker, poll: Duration) -> Self {
        Self { context, slots, jobs, poll }
    }

    /// Runs until the worker stops, and then until what it claimed is among the jobs: a claim that is
    /// under way is waited for, and what it began is closed as not sent.
    pub async fn run(self) {
        tokio::join!(self.keep_time(), self.begin_attempts());
    }

    /// Wakes the loops when a row of theirs is due. What stays due, as others hold it, is asked for ever more
    /// seldom.
    async fn keep_time(&self) {
        let Context { alarms, breaker, .. } = &*self.context;
        let mut hurry = PAUSE_MIN;
        // Some did not end in good order.
        alarms.ring_all();
        loop {
            self.context.liveness.dispatcher.turn();
            let begun = Instant::now();
            let asking = self.context.stopping.run_until_cancelled(self.context.journal.next_due());
            let Some(next_due) = asking.await else { return };
            let pause = match next_due {
                Ok(due) => {
                    self.context.intake.resume_by_work(Reason::Database, begun);
                    alarms.ring(&due);
                    // A probe is made of what is not due as well.
                    if !breaker.is_closed() {
                        alarms.attempts.notify_one();
                    }
                    let next = [due.attempt, due.read].into_iter().flatten().min();
                    let later = [due.lease, due.expiry, due.verification].into_iter().flatten();
                    let later = later.filter(|due| !due.is_zero()).min();
                    let next = next.filter(|_| self.may_begin()).into_iter().chain(later).min();
                    next.unwrap_or(self.poll)
                }
                Err(error) => {
                    self.context.note_journal_failure(&error);
                    alarms.ring_all();
                    self.poll
                }
            };
            hurry = if pause.is_zero() { (hurry * 2).min(self.poll) } else { PAUSE_MIN };
            tokio::select! {
                () = sleep(pause.max(hurry).min(self.poll)) => {}
                () = self.context.scheduled.notified() => {}
                () = self.context.stopping.cancelled() => return,
            }
        }
    }

    /// A job that is due and waits for a slot is no reason to hurry.
    fn may_begin(&self) -> bool {
        self.context.breaker.is_closed()
            && !self.context.intake.is_held()
            && self.slots.try_acquire().is_some()
    }

    async fn begin_attempts(&self) {
        let mut memory = Memory {
            probe_backoff: ProbeBackoff::MIN,
            has_woken_unreadable: false,
            logged: HashSet::new(),
            unanswered: None,
        };
        let mut pause = self.poll * QUIET_POLLS;
        loop {
            let waiting = timeout(pause, self.context.alarms.attempts.notified());
            if self.context.stopping.run_until_cancelled(waiting).await.is_none() {
                break;
            }
            let begun = async {
                if !memory.has_woken_unreadable {
                    self.context.journal.wake_unreadable().await?;
                    memory.has_woken_unreadable = true;
                }
                self.send_begun(&mut memory).await?;
                self.begin_due(&mut memory).await
            };
            pause = match begun.await {
                Ok(()) => self.poll * QUIET_POLLS,
                Err(error) => {
                    self.context.note_journal_failure(&error);
                    self.poll
                }
            };
        }
        // A claim whose answer was lost may have begun attempts, and nobody else closes them as
        // not sent.
        while let Err(error) = self.send_begun(&mut memory).await {
            self.context.note_journal_failure(&error);
            sleep(JOURNAL_RETRY_DELAY).await;
        }
    }

    /// Sends what was begun by a commit whose answer was lost. What is too late for that, as once
    /// the worker stops, is closed as not sent, which spends nothing; left alone, it would be taken
    /// for sent.
    async fn send_begun(&self, memory: &mut Memory) -> Result<(), JournalError> {
        let Some((t0, probe)) = memory.unanswered else { return Ok(()) };
        let begun = self.context.journal.find_begun(t0, probe).await?;
        // Not asked again: from here on they are sent.
        memory.unanswered = None;
        for claimed in begun {
            // Whether or not the worker stops meanwhile: what is claimed must be closed.
            let slot = self.slots.acquire().await;
            self.spawn_claimed(claimed, probe, slot, memory);
        }
        Ok(())
    }

    /// Begins the next attempts of the jobs that are due, as the breaker and the operator allow:
    /// as many at once as slots are free, but one probe at a time.
    async fn begin_due(&self, memory: &mut Memory) -> Result<(), JournalError> {
        let context = &self.context;
        loop {
            let Some(slot) = context.stopping.run_until_cancelled(self.slots.acquire()).await else {
                return Ok(());
            };
            // What would be held back is not begun: an attempt spends rows, if nothing else.
            if context.intake.is_held() || context.intake.is_paused_for(Reason::Database) {
                return Ok(());
            }
            let probe = match context.breaker.state() {
                State::Closed { .. } => None,
                State::HalfOpenIdle { since, .. } if since.elapsed() >= memory.probe_backoff.0 => {
                    Some(Probe::OfAny)
                }
                State::HalfOpen(cause) | State::HalfOpenIdle { cause, .. } => {
                    Some(Probe::Without(cause.unfit_for_probe()))
                }
                State::Open(_) | State::Probing(_) | State::Throttled { .. } => return Ok(()),
            };
            let mut slots = vec![slot];
            if probe.is_none() {
                memory.probe_backoff = ProbeBackoff::MIN;
                slots.extend(std::iter::from_fn(|| self.slots.try_acquire()).take(ATTEMPTS_MAX - 1));
            }
            let t0 = Moment::unique();
            memory.unanswered = Some((t0, probe));
            let next = context.journal.next_attempts(t0, probe, slots.len()).await?;
            memory.unanswered = None;
            let Some(next) = next else { continue };
            if next.is_empty() {
                if probe.is_some() {
                    context.breaker.note(&Event::NoJobDue { at: Instant::now() });
                }
                return Ok(());
            }
            for next in next {
                match next {
                    NextAttempt::Claimed(claimed) => {
                        // There are as many as there may be attempts.
                        let Some(slot) = slots.pop() else { break };
                        self.spawn_claimed(*claimed, probe, slot, memory);
                    }
                    NextAttempt::YieldedSlot(job, Some(outcome)) => log_outcome(&outcome, &job),
                    NextAttempt::YieldedSlot(_, None) => {}
                    NextAttempt::Unreadable(job, error) => log_unreadable(memory, &job, error),
                    NextAttempt::Refused(job, error) => error!(
                        job_id = %job.id, trace_id = job.trace_id().map(display), error = chain(&error),
                        "the database refuses this job's next attempt; it is tried again in a minute"
                    ),
                }
            }
        }
    }

    fn spawn_claimed(&self, claimed: ClaimedJob, probe: Option<Probe>, slot: JobSlot, memory: &mut Memory) {
        if probe.is_some() {
            self.context.breaker.note(&Event::ProbeBegun);
        }
        if probe == Some(Probe::OfAny) && claimed.claim.history.unknown > 0 {
            memory.probe_backoff = memory.probe_backoff.after_another();
        }
        let context = Arc::clone(&self.context);
        let ClaimedJob { claim, request, correlation_id } = claimed;
        let span = info_span!(
            "job",
            job_id = %claim.job.id,
            customer_id = %claim.customer_id,
            correlation_id,
            trace_id = claim.job.trace_id().map(display)
        );
        debug!(parent: &span, attempt = claim.attempt, "job claimed again");
        let mut work = context.traces.begin(Kind::Attempt, claim.job.trace);
        work.set_job(claim.job.id);
        self.jobs.spawn(
            async move { worker::submit(&context, claim, &request, slot, work).await }.instrument(span),
        );
    }
}

/// One key that is missing may be that of thousands of jobs: each cause is logged once.
fn log_unreadable(memory: &mut Memory, job: &JobRef, error: OpenError) {
    let trace_id = job.trace_id().map(display);
    let text = error.to_string();
    if memory.logged.insert(error) {
        error!(
            job_id = %job.id, trace_id, error = text,
            "PAYLOAD_KEY: cannot open a stored payload; add the key it was sealed with; \
             `kyc-worker list --reason payload_unreadable` names the jobs that wait for it"
        );
    } else {
        debug!(job_id = %job.id, trace_id, error = text, "a stored payload cannot be opened");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many resends an outage spends whose every probe is one. A health probe is answered 5 s after
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
