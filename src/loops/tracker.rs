//! Follows the verifications of accepted updates: reads each customer until their verification ends.
//! Any replica may make any read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, debug, error, info, info_span, warn};

use crate::clock::Moment;
use crate::context::{Context, Panicked, unless_it_panics};
use crate::domain::read_back::{CustomerStatus, Reading};
use crate::domain::verification::{FAILED, NextRead, Tracking};
use crate::failpoint::{self, Point};
use crate::journal::{DueVerifications, JournalError, Pace, VerificationClaim};
use crate::loops::wait_for_alarm;
use crate::metrics::METRICS;
use crate::traces::Kind;

/// How many customers are read at once.
const READS_MAX: u32 = 32;

/// While reads fail, the longest pause before the next.
const FAILING_PAUSE_MAX: Duration = Duration::from_secs(60);

/// The tracker of one worker.
pub struct Tracker {
    context: Arc<Context>,
    tracking: Tracking,
    pace: Pace,
    poll: Duration,
    permits: Arc<Semaphore>,
    reads: TaskTracker,
    /// Whether the last read to end failed.
    is_failing: Arc<AtomicBool>,
    /// Until then the provider has asked reads to wait.
    held_until: Arc<Mutex<Instant>>,
}

impl Tracker {
    /// A tracker that asks for due reads every `poll` at least.
    pub fn new(context: Arc<Context>, tracking: Tracking, pace: Pace, poll: Duration) -> Self {
        Self {
            context,
            tracking,
            pace,
            poll,
            permits: Arc::new(Semaphore::new(READS_MAX as usize)),
            reads: TaskTracker::new(),
            is_failing: Arc::default(),
            held_until: Arc::new(Mutex::new(Instant::now())),
        }
    }

    /// Runs until the worker stops and the reads under way are recorded.
    pub async fn run(self) {
        let mut failing_pause = self.poll;
        let alarm = &self.context.alarms.verifications;
        loop {
            self.context.liveness.tracker.turn();
            let is_failing = self.is_failing.load(Ordering::Relaxed);
            let pause = match self.begin_reads(if is_failing { 1 } else { self.batch() }).await {
                // A provider in trouble is asked less and less often.
                Ok(Round { begun: 1.., .. }) if is_failing => {
                    failing_pause = (failing_pause * 2).min(FAILING_PAUSE_MAX);
                    Some(failing_pause)
                }
                Ok(Round { pause, .. }) => pause,
                Err(error) => {
                    self.context.note_journal_failure(&error);
                    Some(self.poll)
                }
            };
            if !is_failing {
                failing_pause = self.poll;
            }
            let waiting = async {
                match pause {
                    Some(pause) => sleep(pause).await,
                    None => wait_for_alarm(alarm, self.poll).await,
                }
            };
            if self.context.stopping.run_until_cancelled(waiting).await.is_none() {
                break;
            }
        }
        self.reads.close();
        self.reads.wait().await;
    }

    /// A quarter of a second's reads: few at once, so that they spread.
    fn batch(&self) -> u32 {
        let free = u32::try_from(self.permits.available_permits()).unwrap_or(READS_MAX);
        self.pace.per_second.div_ceil(4).min(free)
    }

    /// Begins up to `limit` reads that are due, unless the breaker or the provider holds them back.
    async fn begin_reads(&self, limit: u32) -> Result<Round, JournalError> {
        let held = Round { begun: 0, pause: Some(self.poll) };
        let is_held = Instant::now() < *self.held_until.lock();
        if limit == 0 || is_held || !self.context.breaker.is_closed() {
            return Ok(held);
        }
        let claimed_at = Moment::now();
        let DueVerifications { claims, found } =
            self.context.journal.claim_verifications(&self.pace, limit).await?;
        if found == 0 {
            return Ok(Round { begun: 0, pause: None });
        }
        let begun = u32::try_from(claims.len()).unwrap_or(limit);
        for claim in claims {
            self.spawn(claim, claimed_at);
        }
        let until_next = Duration::from_secs(1) * begun / self.pace.per_second;
        let pause = until_next.saturating_sub(claimed_at.elapsed()).min(self.poll);
        Ok(Round { begun, pause: Some(pause) })
    }

    fn spawn(&self, claim: VerificationClaim, claimed_at: Moment) {
        let read = Read {
            context: Arc::clone(&self.context),
            tracking: self.tracking,
            claimed_at,
            begins_within: self.pace.read_time_max,
            is_failing: Arc::clone(&self.is_failing),
            held_until: Arc::clone(&self.held_until),
        };
        let permits = Arc::clone(&self.permits);
        let span = info_span!(
            "job",
            job_id = %claim.job.id,
            customer_id = %claim.customer_id,
            trace_id = claim.job.trace_id().map(display)
        );
        self.reads.spawn(
            async move {
                // As many were free when it was claimed, and none but us takes any.
                let _permit = permits.acquire_owned().await;
                if let Err(Panicked) = unless_it_panics(read.make(&claim)).await {
                    error!("the worker failed in a read for a verification; this is a bug, report it");
                }
            }
            .instrument(span),
        );
    }
}

/// What asking for due reads came to.
struct Round {
    begun: u32,
    /// Until it is worth asking again; `None` until one is due.
    pause: Option<Duration>,
}

/// One read of one customer.
struct Read {
    context: Arc<Context>,
    tracking: Tracking,
    claimed_at: Moment,
    /// Begun later than that, it could come too soon before or after another replica's.
    begins_within: Duration,
    is_failing: Arc<AtomicBool>,
    held_until: Arc<Mutex<Instant>>,
}

impl Read {
    /// Reads the customer, decides when to read again, and records both. A worker that stops leaves
    /// the read to another, which makes it when the claim has expired.
    async fn make(&self, claim: &VerificationClaim) {
        failpoint::reach(Point::VerificationClaimed);
        if self.claimed_at.elapsed() > self.begins_within {
            return debug!("the read was held up for too long; another replica will make it");
        }
        let mut work = self.context.traces.begin(Kind::Verification, claim.job.trace);
        let asked_at = SystemTime::now();
        let reading = self.context.provider.customer(claim.customer_id);
        let Some(reading) = self.context.stopping.run_until_cancelled(reading).await else { return };
        failpoint::reach(Point::VerificationAnswered);
        work.read(asked_at, reading.error_code());
        self.note_health(&reading);
        let seen = match &reading {
            Reading::Customer(customer) => Some(customer),
            _ => None,
        };
        let status = seen.map(|seen| seen.status.as_str());
        let next = self.tracking.next_read(status, claim.since_acceptance);
        let record = || self.context.journal.record_verification(claim, self.claimed_at, seen, next);
        let recording = SystemTime::now();
        let recorded = self.context.persist(record).await;
        work.step("record", recording);
        work.set_job(claim.job.id);
        work.set_if_some("kyc.verification_status", status.map(str::to_owned));
        if reading.error_code().is_some() || status == Some(FAILED) || next.is_late() {
            work.went_wrong();
        }
        self.context.traces.end(work);
        match recorded {
            Some(true) => log_reading(claim, seen, next),
            Some(false) => debug!("the verification has changed without this read"),
            None => {
                debug!("the worker stopped before the read was recorded; another replica will read again")
            }
        }
    }

    /// Logs the first read that fails and the first that does not, and has the others wait where the
    /// provider asks for it. Updates do not: where they are meant, too, one of them is told.
    fn note_health(&self, reading: &Reading) {
        if let Reading::Throttled { retry_after } = reading {
            *self.held_until.lock() = Instant::now() + self.context.schedule.pause(*retry_after);
        }
        let code = reading.error_code();
        // That a customer is not found is an answer, if an odd one.
        let fails = code.is_some() && *reading != Reading::NotFound;
        let failed = self.is_failing.swap(fails, Ordering::Relaxed);
        match (failed, reading) {
            (false, Reading::Misconfigured(cause)) => error!(
                error = code,
                "reads for verifications are refused: {cause}; check {}",
                cause.setting()
            ),
            (false, _) if fails => {
                warn!(error = code, "reads for verifications fail; the tracker tries one at a time")
            }
            (_, Reading::NotFound) => {
                warn!(error = code, "the provider no longer knows an accepted customer")
            }
            (true, _) if !fails => info!("reads for verifications succeed again"),
            _ => {}
        }
    }
}

/// Logs what a reading says: an error once, where a person must ask the provider.
fn log_reading(claim: &VerificationClaim, seen: Option<&CustomerStatus>, next: NextRead) {
    let status = seen.map(|seen| seen.status.as_str());
    let failure_reason = seen.and_then(|seen| seen.failure_reason.as_deref());
    let after_s = claim.since_acceptance.as_secs();
    match next {
        NextRead::Ended => {
            METRICS.note_verification(status, claim.since_acceptance);
            let failure_reason = failure_reason.filter(|_| status == Some(FAILED));
            info!(status, failure_reason, after_s, "the verification ended");
        }
        NextRead::GivenUp => {
            METRICS.note_verification(None, claim.since_acceptance);
            warn!(
                status = status.or(claim.status.as_deref()),
                after_s, "the verification is no longer followed: VERIFICATION_GIVE_UP has passed"
            );
        }
        NextRead::After { is_overdue: true, .. } if !claim.was_overdue => error!(
            status = status.or(claim.status.as_deref()),
            after_s, "the verification is overdue; ask the provider about this customer"
        ),
        NextRead::After { .. } if status.is_some() && status != claim.status.as_deref() => {
            info!(status, after_s, "the verification changed");
        }
        NextRead::After { delay, .. } => debug!(status, next_in = ?delay, "the verification goes on"),
    }
}
