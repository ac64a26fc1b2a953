//! The way of one job, read top to bottom: a delivery is received, its row committed, its
//! update sent once, and what came of it recorded; what nobody knows is looked into.

use std::panic::AssertUnwindSafe;
use std::sync::Once;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use time::OffsetDateTime;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::field::display;
use tracing::{debug, error, info, warn};

use crate::clock::Moment;
use crate::control::breaker::{Breaker, Event, intolerable_skew};
use crate::control::intake::{Intake, Reason, Severity};
use crate::control::liveness::Liveness;
use crate::control::slots::Place;
use crate::domain::job::{Job, Rules, UpdateRequest};
use crate::domain::message::Message;
use crate::domain::outcome::{History, Next, Outcome, Review, WaitingFor, next};
use crate::domain::read_back::{Conclusion, Evidence, Reading, Timing, conclude};
use crate::domain::retry::RetrySchedule;
use crate::domain::verdict::{
    Acceptance, FailurePoint, HttpOutcome, NotSent, Rejection, Verdict, classify, provider_message,
};
use crate::failpoint::{self, Point};
use crate::journal::{Admission, AttemptResult, Claim, Journal, JournalError, Opened, ReadClaim, Settled};
use crate::provider::Provider;

/// How long to wait before a write is tried again that the database did not do.
pub(crate) const JOURNAL_RETRY_DELAY: Duration = Duration::from_millis(250);

/// How long at most, where trying again soon is of little use.
const JOURNAL_RETRY_DELAY_MAX: Duration = Duration::from_secs(5);

/// What every job goes through.
pub struct Worker {
    pub journal: Journal,
    pub provider: Provider,
    /// Whether the provider may be bothered.
    pub breaker: Breaker,
    /// Whether deliveries may be taken.
    pub intake: Intake,
    pub liveness: Liveness,
    pub rules: Rules,
    pub schedule: RetrySchedule,
    /// When looks at customers prove something.
    pub timing: Timing,
    /// Whether customers are looked at before their first attempt, and how far apart.
    pub baseline: Option<Duration>,
    /// Statuses that surely applied nothing.
    pub not_applied_statuses: Vec<u16>,
    /// How many results may wait to be written.
    pub recordings: Semaphore,
    /// Wakes the scheduler when a job was parked.
    pub parked: Notify,
    /// Whether it was told that the server allows fewer connections than wanted.
    pub crowded: Once,
    /// Whose turn it is to try again what a person must mend: one write at a time.
    pub mending: Semaphore,
    /// Cancelled when the worker stops: from then on nothing is sent any more.
    pub stopping: CancellationToken,
}

/// What a message came to. Its row is committed.
pub enum Received {
    /// A job, claimed, its first attempt begun: ack the delivery, then submit it.
    Submit(Claim, UpdateRequest),
    /// A job that waits, that ended at once, or that is known already.
    Ack,
    /// No job, or one that cannot be taken.
    DeadLetter,
}

impl Worker {
    /// Takes a delivery in.
    ///
    /// 1. Parse it; every fault at once.
    /// 2. What is no job gets its row and is dead-lettered whole.
    /// 3. What is one gets its row, its sealed payload and, where its customer is free, a
    ///    claim and its first attempt: one commit.
    /// 4. Only then is the broker told.
    ///
    /// While the database is away this waits, and so holds back the intake. `None` when the
    /// worker stopped first: the delivery goes back to the queue.
    pub async fn receive(&self, message: &Message) -> Option<Received> {
        let received_at = OffsetDateTime::now_utc();
        match unless_it_panics(self.receive_job(message, received_at)).await {
            Ok(received) => received,
            Err(Panicked) => {
                error!("the worker failed on a delivery, dead-lettering it; this is a bug, report it");
                Box::pin(self.persist(|| self.journal.record_worker_failed(message, received_at))).await?;
                Some(Received::DeadLetter)
            }
        }
    }

    async fn receive_job(&self, message: &Message, received_at: OffsetDateTime) -> Option<Received> {
        let job = match Job::parse(message, received_at, &self.rules) {
            Ok(job) => job,
            Err(invalid) => {
                let job_id = invalid.job_id.map(display);
                warn!(job_id, faults = %invalid, "delivery is no job, dead-lettering it");
                Box::pin(self.persist(|| self.journal.record_invalid(message, received_at, &invalid)))
                    .await?;
                return Some(Received::DeadLetter);
            }
        };
        failpoint::reach(Point::Parsed);
        let admission = if !self.breaker.is_closed() {
            Admission::Park(WaitingFor::Provider)
        } else if self.intake.is_held() || job.is_expired(received_at) {
            Admission::Park(WaitingFor::Retry)
        } else {
            Admission::Claim(Moment::now())
        };
        let opened = self.open(&job, received_at, admission).await?;
        failpoint::reach(Point::Opened);
        let received = match opened {
            Opened::Claimed(claim) => Received::Submit(claim, job.request),
            Opened::Parked => {
                self.parked.notify_one();
                Received::Ack
            }
            Opened::Ended(outcome) => {
                log_outcome(&outcome, &job.id);
                Received::Ack
            }
            Opened::Known => {
                debug!(job_id = %job.id, "job is known already");
                Received::Ack
            }
            Opened::Refused => {
                warn!(job_id = %job.id, "the database cannot hold a value of this job, dead-lettering it");
                let refused = job.refused_by_the_database();
                Box::pin(self.persist(|| self.journal.record_invalid(message, received_at, &refused)))
                    .await?;
                Received::DeadLetter
            }
            Opened::Conflict => {
                warn!(job_id = %job.id, "job_id is another content's, dead-lettering the delivery");
                Box::pin(self.persist(|| self.journal.record_conflict(message, received_at, job.id))).await?;
                Received::DeadLetter
            }
        };
        failpoint::reach(Point::Received);
        Some(received)
    }

    /// Opens a job. One that may have been claimed by a commit whose answer was lost is asked for
    /// until the database answers, and shutdown's deadline alone ends that: an attempt that nobody
    /// closes would be taken for sent. One that would only wait is left to its next delivery.
    async fn open(&self, job: &Job, received_at: OffsetDateTime, admission: Admission) -> Option<Opened> {
        let open = || self.journal.open(job, received_at, admission);
        match admission {
            Admission::Claim(_) => self.persist_result(open).await,
            Admission::Park(_) => self.persist(open).await,
        }
    }

    /// Makes the attempt that `claim` stands for, and records what came of it. The same
    /// for a job just opened and for one that waited.
    ///
    /// 1. Wait until one request more may be in flight: the job may have been opened ahead.
    /// 2. Sign, afresh: the provider refuses a stale timestamp.
    /// 3. Send, once, through the gate.
    /// 4. Classify the result, tell the breaker, and decide what follows.
    /// 5. Commit that with the result.
    ///
    /// `place` is given back once the provider has answered: while one result is written the
    /// next request is on its way. But only as many results may wait to be written as there are
    /// places: a database that takes new jobs and no results must not spend more than that.
    ///
    /// A bug that panics on the way leaves this job in doubt, and no other.
    pub async fn submit(&self, mut claim: Claim, request: &UpdateRequest, mut place: Place) {
        let begun = Instant::now();
        let attempted = unless_it_panics(self.attempt(&mut claim, request, &mut place)).await;
        let result = attempted.unwrap_or_else(|Panicked| {
            error!("the worker failed in an attempt; this is a bug, report it");
            AttemptResult {
                error: Some("the worker failed in this attempt: a bug of its own"),
                ..AttemptResult::of(Verdict::Unknown(FailurePoint::ConnectionLost), begun.elapsed())
            }
        });
        // Before the place is anybody's: an outage may have shown.
        let next = self.decide(&claim, &result);
        let _recording = self.recordings.acquire().await;
        drop(place);
        if let Err(Panicked) = unless_it_panics(self.record(&claim, result, next)).await {
            error!("the worker failed on an attempt's result; this is a bug, report it");
        }
    }

    async fn attempt(&self, claim: &mut Claim, request: &UpdateRequest, place: &mut Place) -> AttemptResult {
        failpoint::reach(Point::Claimed);
        if let Err(cause) = self.begin_request(claim, place).await {
            return AttemptResult::of(Verdict::NotSent(cause), Duration::ZERO);
        }
        if let Some(apart) = self.baseline.filter(|_| claim.attempt == 1) {
            Box::pin(self.look_before(claim, apart)).await;
        }
        let begun = Instant::now();
        let update = self.provider.sign(request, claim.t0);
        failpoint::reach(Point::Signed);
        let outcome = self.provider.update(claim.customer_id, update, claim.t0, &self.stopping).await;
        place.note_answer(begun.elapsed());
        let verdict = classify(&outcome, claim.customer_id, &self.not_applied_statuses, SystemTime::now());
        failpoint::reach(Point::Answered);
        let (http_status, provider_message) = match &outcome {
            HttpOutcome::Answered(answer) if answer.status >= 400 => {
                (Some(answer.status), provider_message(answer))
            }
            HttpOutcome::Answered(answer) => (Some(answer.status), None),
            HttpOutcome::NotSent(_) | HttpOutcome::Lost(_) => (None, None),
        };
        AttemptResult { http_status, provider_message, ..AttemptResult::of(verdict, begun.elapsed()) }
    }

    /// Waits until a request may be in flight from this place. Whoever was overtaken meanwhile by
    /// what pauses the intake, as an outage does, is not sent into it.
    async fn begin_request(&self, claim: &Claim, place: &mut Place) -> Result<(), NotSent> {
        let beginning = place.begin_request(claim.t0.monotonic);
        match self.stopping.run_until_cancelled(beginning).await {
            Some(true) if self.intake.is_held() => Err(NotSent::HeldBack),
            Some(true) if self.intake.is_open() || claim.history.is_trial => Ok(()),
            Some(_) => Err(NotSent::HeldBack),
            None => Err(NotSent::Shutdown),
        }
    }

    /// Looks at a customer before his first attempt, and keeps the reading as evidence.
    /// What goes wrong here costs evidence and nothing else.
    async fn look_before(&self, claim: &mut Claim, apart: Duration) {
        let read_at = Moment::now();
        let at = match self.journal.claim_baseline(claim.customer_id, apart).await {
            Ok(Some(at)) => at,
            Ok(None) => return debug!("customer was looked at just now, no baseline"),
            Err(error) => return warn!(error = chain(&error), "no baseline: the journal is unavailable"),
        };
        let reading = self.provider.customer(claim.customer_id).await;
        if let Err(error) = self.journal.record_baseline(claim, at, read_at, &reading).await {
            warn!(error = chain(&error), "the baseline is lost: the journal is unavailable");
        }
    }

    /// Tells the breaker and the log what an attempt came to, and decides what follows.
    fn decide(&self, claim: &Claim, result: &AttemptResult) -> Next {
        let history = History { others_are_taken: self.breaker.takes_others(), ..claim.history };
        self.tell_breaker(claim, &result.verdict);
        let next = next(&result.verdict, history, &self.schedule, rand::random());
        let retry_in = match &next {
            Next::Wait(wait) => Some(wait.delay),
            Next::ReadBack => Some(self.timing.after),
            Next::End(_) => None,
        };
        info!(
            attempt = claim.attempt,
            http_status = result.http_status,
            verdict = result.verdict.name(),
            detail = result.verdict.detail(),
            duration_ms = millis(result.duration),
            retry_in_ms = retry_in.map(millis),
            "submission attempted"
        );
        next
    }

    async fn record(&self, claim: &Claim, result: AttemptResult, next: Next) {
        let recorded = match &next {
            Next::End(outcome) => self.persist_result(|| self.journal.settle(claim, &result, outcome)).await,
            Next::Wait(wait) => self.persist_result(|| self.journal.park(claim, &result, wait)).await,
            Next::ReadBack => self.persist_result(|| self.journal.doubt(claim, &result)).await,
        };
        match (recorded, next) {
            (None, _) => Box::pin(self.record_late(claim, &result.verdict)).await,
            // The attempt's own line says it.
            (Some(()), Next::End(Outcome::Accepted(_))) => debug!("acceptance recorded"),
            (Some(()), Next::End(outcome)) => log_outcome(&outcome, &claim.job_id),
            (Some(()), Next::Wait(_) | Next::ReadBack) => self.parked.notify_one(),
        }
        failpoint::reach(Point::Concluded);
    }

    fn tell_breaker(&self, claim: &Claim, verdict: &Verdict) {
        let is_trial = claim.history.is_trial;
        self.breaker.note(&Event::Attempted { verdict, is_trial }, &self.intake);
        if let Verdict::Throttled { retry_after } = verdict {
            let until = Instant::now() + self.schedule.pause(*retry_after);
            self.breaker.note(&Event::PutOff { until }, &self.intake);
        }
        if let Some(skew) = intolerable_skew(&self.provider) {
            self.breaker.note(&Event::ClockSkewed(skew), &self.intake);
        }
    }

    /// The claim is gone, and another worker decides; but a known answer is not thrown away.
    async fn record_late(&self, claim: &Claim, verdict: &Verdict) {
        let ended = self.persist_result(|| self.journal.record_late(claim, verdict)).await;
        let ended = ended.unwrap_or_default();
        warn!(
            verdict = verdict.name(),
            ended, "the claim was lost before the result; it is recorded as late"
        );
    }

    /// Looks at the customer of a submission in doubt, and records what that proves.
    ///
    /// 1. The claim holds what the records said before the look.
    /// 2. Look.
    /// 3. Conclude, with every time taken to the safe side.
    /// 4. Commit the observation with what follows from it.
    ///
    /// A bug that panics on the way costs this look, which is made again when its claim
    /// has run out.
    pub async fn read_back(&self, claim: ReadClaim) {
        if let Err(Panicked) = unless_it_panics(self.look(claim)).await {
            error!("the worker failed in a look at a customer; this is a bug, report it");
        }
    }

    async fn look(&self, claim: ReadClaim) {
        failpoint::reach(Point::ReadClaimed);
        let reading = self.provider.customer(claim.customer_id).await;
        let elapsed = claim.claimed_at.elapsed();
        let evidence = Evidence {
            end_to_look: claim.since_end,
            begin_to_answer: claim.since_begin.after(elapsed),
            look_to_answer: elapsed,
            is_only_suspect: claim.is_only_suspect,
            word_before: claim.word_before.clone(),
            confirmed: claim.confirmed,
            confirmation_to_answer: claim.since_confirmation.after(elapsed),
            may_resend: claim.budget.allows_resend(),
            reading,
        };
        let conclusion = conclude(&evidence, &self.timing);
        let settled = settle_doubt(conclusion, &evidence.reading);
        failpoint::reach(Point::ReadAnswered);
        info!(attempt = claim.attempt, reading = ?evidence.reading, conclusion = conclusion.name(), "customer read back");
        let recorded = self
            .persist_result(|| self.journal.conclude_read(&claim, &evidence.reading, conclusion, &settled))
            .await;
        match (recorded, settled) {
            (None, _) => {
                warn!(conclusion = conclusion.name(), "the claim was lost before the look was recorded")
            }
            (Some(()), Settled::Ended(outcome)) => log_outcome(&outcome, &claim.job_id),
            (Some(()), Settled::SendAgain | Settled::InDoubt(_)) => self.parked.notify_one(),
        }
        failpoint::reach(Point::ReadConcluded);
    }

    /// Writes until the database does it. `None` when the worker stops first.
    pub(crate) fn persist<T, F>(&self, write: impl Fn() -> F) -> impl Future<Output = Option<T>>
    where
        F: Future<Output = Result<T, JournalError>>,
    {
        self.persist_until(write, Some(&self.stopping))
    }

    /// Writes what an attempt came to until the database does it; `None` when the claim is
    /// gone. A known answer is not thrown away: shutdown's deadline alone ends this.
    fn persist_result<T, F>(&self, write: impl Fn() -> F) -> impl Future<Output = Option<T>>
    where
        F: Future<Output = Result<T, JournalError>>,
    {
        self.persist_until(write, None)
    }

    /// Writes until the database does it, the claim is gone, or `stopping` is cancelled between two
    /// tries. An outage ends at any time, so tries follow soon. What fails for anything else will
    /// most probably fail again: less and less often, and where a person must mend it, one write
    /// at a time for all.
    async fn persist_until<T, F>(
        &self,
        write: impl Fn() -> F,
        stopping: Option<&CancellationToken>,
    ) -> Option<T>
    where
        F: Future<Output = Result<T, JournalError>>,
    {
        let (mut delay, mut turn) = (JOURNAL_RETRY_DELAY, None);
        loop {
            let begun = Instant::now();
            let error = match write().await {
                Ok(written) => {
                    self.intake.resume_by_work(Reason::Database, begun);
                    return Some(written);
                }
                Err(JournalError::Fenced) => return None,
                Err(error) => error,
            };
            self.note_journal_failure(&error);
            delay = if error.is_outage() {
                JOURNAL_RETRY_DELAY
            } else {
                (delay * 2).min(JOURNAL_RETRY_DELAY_MAX)
            };
            let waiting = async {
                if error.remedy().is_some() {
                    delay = JOURNAL_RETRY_DELAY_MAX;
                    if turn.is_none() {
                        turn = self.mending.try_acquire().ok();
                        if turn.is_none() {
                            // Whoever was before has just got through.
                            turn = self.mending.acquire().await.ok();
                            return;
                        }
                    }
                }
                sleep(delay).await;
            };
            // Rare, and not to be carried about by every job.
            let waiting = Box::pin(waiting);
            match stopping {
                Some(stopping) => stopping.run_until_cancelled(waiting).await?,
                None => waiting.await,
            }
        }
    }

    /// An outage pauses the intake, and so does what a person must mend; any other failure is this
    /// job's, and tried again.
    pub fn note_journal_failure(&self, error: &JournalError) {
        if let Some(remedy) = error.remedy() {
            let cause = format_args!("DATABASE_URL: {}; {remedy}", chain(error)).to_string();
            self.intake.pause(Reason::Database, Severity::NeedsPerson, cause);
        } else if error.is_crowded() {
            self.crowded.call_once(|| {
                warn!(
                    "DATABASE_CONNECTIONS: the server allows this replica fewer connections, going on with those; \
                     raise max_connections, or lower DATABASE_CONNECTIONS or the number of replicas"
                );
            });
        } else if error.is_outage() {
            self.intake.pause(Reason::Database, Severity::Passing, chain(error));
        } else {
            warn!(error = chain(error), "a write failed, trying it again");
        }
    }
}

/// Work ended in a panic. The panic itself is on stderr.
pub(crate) struct Panicked;

/// Does `work`, so that a bug in it ends the work on one job and nothing else.
pub(crate) async fn unless_it_panics<T>(work: impl Future<Output = T>) -> Result<T, Panicked> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|_panic| Panicked)
}

impl AttemptResult {
    fn of(verdict: Verdict, duration: Duration) -> Self {
        Self { verdict, http_status: None, provider_message: None, error: None, duration }
    }
}

/// What a conclusion makes of a submission in doubt.
fn settle_doubt(conclusion: Conclusion, reading: &Reading) -> Settled {
    match conclusion {
        Conclusion::Applied => {
            let verification_status = reading.customer().map(|customer| customer.status.clone());
            Settled::Ended(Outcome::Accepted(Acceptance { reference: None, verification_status }))
        }
        Conclusion::Rejected => Settled::Ended(Outcome::Rejected(Rejection::CustomerNotFound)),
        Conclusion::NotApplied => Settled::SendAgain,
        Conclusion::LastUpdate => Settled::Ended(Outcome::NeedsReview(Review::LastUpdate)),
        Conclusion::Unsettled => Settled::Ended(Outcome::NeedsReview(Review::FateUnknown)),
        Conclusion::Confirming { after } | Conclusion::LookAgain { after } => Settled::InDoubt(after),
    }
}

/// Logs how a submission ended; an error where a person must look.
pub fn log_outcome(outcome: &Outcome, job_id: &uuid::Uuid) {
    let (name, reason_code) = (outcome.state(), outcome.reason_code());
    match outcome {
        Outcome::NeedsReview(_) => {
            error!(%job_id, outcome = name, reason_code, "submission ended: {}", outcome.reason());
        }
        _ => info!(%job_id, outcome = name, reason_code, "submission ended: {}", outcome.reason()),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
