//! The way of one job, read top to bottom: a delivery is received, its row committed, its
//! update sent once, and what came of it recorded; what nobody knows is read back.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::field::display;
use tracing::{Instrument as _, debug, error, info, info_span, warn};

use crate::broker::Delivery;
use crate::checks::check;
use crate::clock::Moment;
use crate::context::{Context, Panicked, chain, count_end, log_outcome, millis, unless_it_panics};
use crate::control::breaker::Event;
use crate::control::slots::JobSlot;
use crate::domain::job::{Job, JobRef, UpdateRequest};
use crate::domain::message::Message;
use crate::domain::outcome::{History, Next, Outcome, Review, next};
use crate::domain::read_back::{Conclusion, Evidence, Reading, conclude};
use crate::domain::state::WaitingFor;
use crate::domain::verdict::{
    Acceptance, FailurePoint, HttpOutcome, NotSent, Verdict, classify, provider_message,
};
use crate::failpoint::{self, Point};
use crate::journal::{Admission, AttemptResult, Claim, Opened, ReadClaim, Settled};
use crate::metrics::{Call, METRICS, Receipt};
use crate::traces::{Kind, Work};

/// What a message came to. Its row is committed.
#[allow(clippy::large_enum_variant, reason = "one for each delivery: a box would be an allocation")]
pub enum Received {
    /// A job, claimed, its first attempt begun: ack the delivery, then submit it.
    Submit(Claim, UpdateRequest),
    /// A job that waits, that ended at once, or that is known already.
    Ack,
    /// No job, or one that cannot be taken.
    DeadLetter,
}

/// Handles one delivery: receives its message, acks or rejects it, and submits the job if it is
/// ours to submit. The job keeps `slot` until the provider has answered.
pub async fn handle(context: Arc<Context>, delivery: Delivery, slot: JobSlot) {
    let Delivery { message, acker } = delivery;
    let mut work = context.traces.begin(Kind::Delivery, message.trace());
    match receive(&context, &message, &mut work).await {
        // The worker stops: the delivery goes back to its queue.
        None => {}
        Some(Received::Ack) => {
            acker.ack();
            context.traces.end(work);
        }
        Some(Received::DeadLetter) => {
            acker.reject();
            context.traces.end(work);
        }
        Some(Received::Submit(claim, request)) => {
            acker.ack();
            let span = info_span!(
                "job",
                job_id = %claim.job.id,
                customer_id = %claim.customer_id,
                correlation_id = message.correlation_id,
                trace_id = claim.job.trace_id().map(display),
                redelivered = message.is_redelivered
            );
            drop(message);
            submit(&context, claim, &request, slot, work).instrument(span).await;
        }
    }
}

/// Receives a message.
///
/// 1. Parse it, and gather every fault.
/// 2. A message that is no job gets its row and is dead-lettered whole.
/// 3. A job gets its row, its sealed payload and, where its customer is free, a claim and its first
///    attempt: one commit.
/// 4. The delivery is acked only after that.
///
/// While the database is away this waits, and so holds back the intake. `None` when the
/// worker stopped first.
pub async fn receive(context: &Context, message: &Message, work: &mut Work) -> Option<Received> {
    let received_at = OffsetDateTime::now_utc();
    if let Some(published_at) = message.published_at() {
        METRICS.note_publication(published_at);
    }
    match unless_it_panics(receive_job(context, message, received_at, work)).await {
        Ok(received) => received,
        Err(Panicked) => {
            let trace_id = message.trace().map(|trace| display(trace.trace_id()));
            error!(trace_id, "the worker failed on a delivery and dead-letters it; this is a bug, report it");
            Box::pin(context.persist(|| context.journal.record_worker_failed(message, received_at))).await?;
            note_receipt(work, Receipt::WorkerFailed);
            Some(Received::DeadLetter)
        }
    }
}

async fn receive_job(
    context: &Context,
    message: &Message,
    received_at: OffsetDateTime,
    work: &mut Work,
) -> Option<Received> {
    let job = match Job::parse(message, received_at, &context.rules) {
        Ok(job) => job,
        Err(invalid) => {
            let job_id = invalid.job_id.map(display);
            let trace_id = message.trace().map(|trace| display(trace.trace_id()));
            warn!(job_id, trace_id, faults = %invalid, "a delivery is no job; the worker dead-letters it");
            Box::pin(context.persist(|| context.journal.record_invalid(message, received_at, &invalid)))
                .await?;
            note_receipt(work, Receipt::Invalid);
            return Some(Received::DeadLetter);
        }
    };
    failpoint::reach(Point::Parsed);
    work.set_message(&job);
    let named = JobRef { id: job.id, received_at, trace: job.trace };
    let trace_id = named.trace_id().map(display);
    let admission = if !context.breaker.is_closed() {
        Admission::Wait(WaitingFor::Provider)
    } else if context.intake.is_held() || job.is_expired(received_at) {
        Admission::Wait(WaitingFor::Retry)
    } else {
        Admission::Claim(Moment::unique())
    };
    let opening = SystemTime::now();
    let opened = open(context, &job, received_at, admission).await?;
    work.step("open", opening);
    failpoint::reach(Point::Opened);
    let (receipt, received) = match opened {
        Opened::Claimed(claim) => (Receipt::Claimed, Received::Submit(claim, job.request)),
        Opened::Waiting => {
            context.scheduled.notify_one();
            (Receipt::Scheduled, Received::Ack)
        }
        Opened::Ended(outcome) => {
            log_outcome(&outcome, &named);
            (Receipt::Ended, Received::Ack)
        }
        Opened::Known => {
            debug!(job_id = %job.id, trace_id, "the job is known already");
            (Receipt::Known, Received::Ack)
        }
        Opened::Refused => {
            warn!(job_id = %job.id, trace_id, "the database cannot hold a value of this job; the worker dead-letters it");
            let refused = job.refused_by_the_database();
            Box::pin(context.persist(|| context.journal.record_invalid(message, received_at, &refused)))
                .await?;
            (Receipt::Invalid, Received::DeadLetter)
        }
        Opened::Conflict => {
            warn!(job_id = %job.id, trace_id, "the job_id is another content's; the worker dead-letters the delivery");
            Box::pin(context.persist(|| context.journal.record_conflict(message, received_at, job.id)))
                .await?;
            (Receipt::Conflict, Received::DeadLetter)
        }
    };
    note_receipt(work, receipt);
    failpoint::reach(Point::Received);
    Some(received)
}

fn note_receipt(work: &mut Work, receipt: Receipt) {
    METRICS.note_delivery(receipt);
    work.set("kyc.receipt", receipt.name());
    if matches!(receipt, Receipt::Invalid | Receipt::Conflict | Receipt::WorkerFailed) {
        work.went_wrong();
    }
}

/// Opens a job. A commit whose answer was lost may have claimed it: it is asked for until the
/// database answers, and only the shutdown's deadline ends that, since an attempt that nobody closes
/// would be taken for sent. A job that would only wait is left to its next delivery.
async fn open(
    context: &Context,
    job: &Job,
    received_at: OffsetDateTime,
    admission: Admission,
) -> Option<Opened> {
    let open = || context.journal.open(job, received_at, admission);
    match admission {
        Admission::Claim(_) => context.persist_result(open).await,
        Admission::Wait(_) => context.persist(open).await,
    }
}

/// Makes the attempt that `claim` stands for, and records its result. A job that was just opened and
/// one that waited both go this way.
///
/// 1. Wait for a request slot: the job may have been prefetched.
/// 2. Where the settings say so, check what the provider would refuse after it has spent an update: `checks.rs`.
/// 3. Sign, afresh: the provider refuses a stale timestamp.
/// 4. Send, once, through the gate.
/// 5. Classify the answer, note it with the breaker, and decide what follows.
/// 6. Commit the result with that decision.
///
/// `slot` is released once the provider has answered, and its clock agrees with ours: the next request
/// is sent while this result is written. Only as many results may wait to be written as there are
/// request slots: a database that takes new jobs and no results must not spend more than that.
///
/// A bug that panics on the way leaves this job's outcome unknown, and no other's.
pub async fn submit(
    context: &Context,
    mut claim: Claim,
    request: &UpdateRequest,
    mut slot: JobSlot,
    mut work: Work,
) {
    let begun = Instant::now();
    let attempted = unless_it_panics(attempt(context, &mut claim, request, &mut slot, &mut work)).await;
    let result = attempted.unwrap_or_else(|Panicked| {
        error!("the worker failed in an attempt; this is a bug, report it");
        AttemptResult {
            error: Some("the worker failed in this attempt: a bug of its own"),
            ..AttemptResult::of(Verdict::Unknown(FailurePoint::ConnectionLost), begun.elapsed())
        }
    });
    // Before the slot is released: this result may open the breaker.
    let next = decide(context, &claim, &result, &mut work);
    let _recording = context.recordings.acquire().await;
    let releasing = async move {
        let checked = unless_it_panics(check_clock(context)).await;
        drop(slot);
        checked
    };
    let recording = unless_it_panics(record(context, &claim, result, next, &mut work));
    let (checked, recorded) = tokio::join!(releasing, recording);
    if let Err(Panicked) = checked.and(recorded) {
        error!("the worker failed on an attempt's result; this is a bug, report it");
        work.went_wrong();
    }
    context.traces.end(work);
}

async fn attempt(
    context: &Context,
    claim: &mut Claim,
    request: &UpdateRequest,
    slot: &mut JobSlot,
    work: &mut Work,
) -> AttemptResult {
    failpoint::reach(Point::Claimed);
    if let Err(cause) = acquire_request_slot(context, claim, slot).await {
        return AttemptResult::of(Verdict::NotSent(cause), Duration::ZERO);
    }
    if let Some(apart) = context.baseline.filter(|_| claim.attempt == 1) {
        Box::pin(read_baseline(context, claim, apart)).await;
    }
    let held = Instant::now();
    let mut passed = None;
    if let Some(checks) = &context.checks {
        let checked = Box::pin(check(context, checks, claim, request, work)).await;
        slot.note_answer(held.elapsed());
        failpoint::reach(Point::Checked);
        if let Err(result) = checked {
            return result;
        }
        passed = checks.names();
        if let Err(cause) = acquire_request_slot(context, claim, slot).await {
            return AttemptResult::of(Verdict::NotSent(cause), Duration::ZERO);
        }
    }
    let (begun, begun_at) = (Instant::now(), SystemTime::now());
    let update = context.provider.sign(request, claim.t0);
    failpoint::reach(Point::Signed);
    let outcome = context.provider.update(claim.customer_id, update, claim.t0, &context.stopping).await;
    let took = begun.elapsed();
    slot.note_answer(held.elapsed());
    METRICS.note_exchange(Call::Update, &outcome, took, Some(&claim.job));
    let verdict = classify(&outcome, claim.customer_id, &context.not_applied_statuses, SystemTime::now());
    work.update(begun_at, &outcome, error_type(&verdict));
    failpoint::reach(Point::Answered);
    let (http_status, provider_message) = match &outcome {
        HttpOutcome::Answered(answer) if answer.status >= 400 => {
            (Some(answer.status), provider_message(answer))
        }
        HttpOutcome::Answered(answer) => (Some(answer.status), None),
        HttpOutcome::NotSent(_) | HttpOutcome::Lost(_) => (None, None),
    };
    // A refusal rejects its job, unless it is one of a long row.
    let verdict = context.refusals.lock().judge(verdict, claim.customer_id, Instant::now().into_std());
    AttemptResult {
        http_status,
        provider_message,
        checked: passed,
        ..AttemptResult::of(verdict, begun.elapsed())
    }
}

/// What went wrong with an update, by its verdict.
fn error_type(verdict: &Verdict) -> Option<&'static str> {
    let is_accepted = matches!(verdict, Verdict::Accepted(_));
    (!is_accepted).then(|| verdict.detail().unwrap_or(verdict.name()))
}

/// Waits for a request slot. If the intake was paused in the meantime, as by an outage, the request
/// is held back.
async fn acquire_request_slot(context: &Context, claim: &Claim, slot: &mut JobSlot) -> Result<(), NotSent> {
    let acquiring = slot.acquire_request_slot(claim.t0.monotonic);
    match context.stopping.run_until_cancelled(acquiring).await {
        Some(true) if context.intake.is_held() => Err(NotSent::HeldBack),
        Some(true) if context.intake.is_open() || claim.history.is_probe => Ok(()),
        Some(_) => Err(NotSent::HeldBack),
        None => Err(NotSent::Shutdown),
    }
}

/// Reads a customer before their first attempt, and keeps the reading as evidence. A failure here
/// costs evidence and nothing else.
async fn read_baseline(context: &Context, claim: &mut Claim, apart: Duration) {
    let read_at = Moment::now();
    let at = match context.journal.claim_baseline(claim.customer_id, apart).await {
        Ok(Some(at)) => at,
        Ok(None) => return debug!("the customer was read just now; there is no baseline"),
        Err(error) => {
            return warn!(error = chain(&error), "there is no baseline: the journal is unavailable");
        }
    };
    // Once the worker stops, the reading would be evidence of nothing.
    let reading = context.stopping.run_until_cancelled(context.provider.customer(claim.customer_id)).await;
    let Some(reading) = reading else { return };
    if let Err(error) = context.journal.record_baseline(claim, at, read_at, &reading).await {
        warn!(error = chain(&error), "the baseline is lost: the journal is unavailable");
    }
}

/// Decides what follows an attempt's result; notes the result with the breaker and logs it.
fn decide(context: &Context, claim: &Claim, result: &AttemptResult, work: &mut Work) -> Next {
    let others_are_taken = claim.refused.is_some_and(|refused| context.breaker.has_taken_since(refused));
    let history = History { others_are_taken, ..claim.history };
    METRICS.note_attempt(&result.verdict);
    note_verdict(context, claim, &result.verdict);
    work.set("kyc.attempt", i64::from(claim.attempt));
    work.set("kyc.verdict", result.verdict.name());
    // What was tried before did not go well.
    if error_type(&result.verdict).is_some() || claim.attempt > 1 {
        work.went_wrong();
    }
    let next = next(&result.verdict, history, &context.schedule, rand::random());
    let retry_in = match &next {
        Next::Wait(wait) => Some(wait.delay),
        Next::ReadBack => Some(context.timing.after),
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

async fn record(context: &Context, claim: &Claim, result: AttemptResult, next: Next, work: &mut Work) {
    let recording = SystemTime::now();
    let recorded = match &next {
        Next::End(outcome) => {
            context.persist_result(|| context.journal.settle(claim, &result, outcome)).await
        }
        Next::Wait(wait) => context.persist_result(|| context.journal.schedule(claim, &result, wait)).await,
        Next::ReadBack => context.persist_result(|| context.journal.leave_unknown(claim, &result)).await,
    };
    work.step(
        match &next {
            Next::End(_) => "settle",
            Next::Wait(_) => "schedule",
            Next::ReadBack => "leave unknown",
        },
        recording,
    );
    if let Next::End(outcome) = &next {
        note_end(work, outcome);
    }
    match (recorded, next) {
        (None, _) => Box::pin(record_late(context, claim, &result.verdict)).await,
        // The attempt's own line says it.
        (Some(()), Next::End(outcome @ Outcome::Accepted(_))) => {
            count_end(&outcome, &claim.job);
            debug!("the acceptance is recorded");
        }
        (Some(()), Next::End(outcome)) => log_outcome(&outcome, &claim.job),
        (Some(()), Next::Wait(_) | Next::ReadBack) => context.scheduled.notify_one(),
    }
    failpoint::reach(Point::Concluded);
}

fn note_end(work: &mut Work, outcome: &Outcome) {
    work.set("kyc.state", outcome.state().name());
    work.set_if_some("kyc.reason_code", outcome.reason_code());
}

fn note_verdict(context: &Context, claim: &Claim, verdict: &Verdict) {
    let is_probe = claim.history.is_probe;
    context.breaker.note(&match verdict {
        Verdict::Throttled { retry_after } => {
            Event::Throttled { until: Instant::now() + context.schedule.pause(*retry_after), is_probe }
        }
        verdict => Event::Attempted { verdict, is_probe, begun: claim.t0.monotonic },
    });
}

/// Stops the sending where our clock is too far from the provider's to sign. One answer may have passed
/// a wrong clock on the way, so it takes a second one: that to an update for nobody. One job asks,
/// and the others wait for the answer.
async fn check_clock(context: &Context) {
    if context.provider.intolerable_skew().is_none() {
        return;
    }
    let asking = async {
        let _one_asks = context.clock_asked.acquire().await;
        let needs_confirmation = context.provider.intolerable_skew().is_some() && context.breaker.is_closed();
        if needs_confirmation && let Some(skew) = context.provider.confirm_skew().await {
            context.breaker.note(&Event::ClockSkewed(skew));
        }
    };
    context.stopping.run_until_cancelled(Box::pin(asking)).await;
}

/// The claim is gone, and another replica decides. A known answer is recorded all the same.
async fn record_late(context: &Context, claim: &Claim, verdict: &Verdict) {
    let ended = context.persist_result(|| context.journal.record_late(claim, verdict)).await;
    METRICS.note_late(verdict.kind(), ended.is_some());
    let ended = ended.unwrap_or_default();
    warn!(
        verdict = verdict.name(),
        ended, "the claim was lost before the result was recorded; it is recorded as late"
    );
}

/// Reads back the customer of a submission whose outcome is unknown, and records what the reading
/// proves.
///
/// 1. The claim holds what the records said before the read.
/// 2. Read the customer.
/// 3. Conclude, with every time taken to the safe side.
/// 4. Commit the observation with what follows from it.
///
/// A bug that panics on the way costs this read. It is made again when its claim has expired.
pub async fn read_back(context: &Context, claim: ReadClaim) {
    if let Err(Panicked) = unless_it_panics(read(context, claim)).await {
        error!("the worker failed in a read of a customer; this is a bug, report it");
    }
}

async fn read(context: &Context, claim: ReadClaim) {
    failpoint::reach(Point::ReadClaimed);
    let mut work = context.traces.begin(Kind::ReadBack, claim.job.trace);
    // There is none where nothing went wrong.
    work.went_wrong();
    let asked_at = SystemTime::now();
    let reading = context.provider.customer(claim.customer_id).await;
    work.read(asked_at, reading.error_code());
    let elapsed = claim.claimed_at.elapsed();
    let evidence = Evidence {
        end_to_read: claim.since_end,
        begin_to_answer: claim.since_begin.after(elapsed),
        read_to_answer: elapsed,
        is_only_suspect: claim.is_only_suspect,
        word_before: claim.word_before.clone(),
        confirmed: claim.confirmed,
        confirmation_to_answer: claim.since_confirmation.after(elapsed),
        confirmation_dated_at: claim.confirmation_dated_at,
        may_resend: claim.budget.allows_resend(),
        reading,
    };
    let conclusion = conclude(&evidence, &context.timing);
    let settled = settled_by(conclusion, &evidence.reading);
    failpoint::reach(Point::ReadAnswered);
    info!(attempt = claim.attempt, reading = ?evidence.reading, conclusion = conclusion.name(), "customer read back");
    let record = || context.journal.conclude_read(&claim, &evidence.reading, conclusion, &settled);
    let recording = SystemTime::now();
    let recorded = context.persist_result(record).await;
    work.step("conclude", recording);
    work.set_job(claim.job.id);
    work.set("kyc.attempt", i64::from(claim.attempt));
    work.set("kyc.conclusion", conclusion.name());
    if let Settled::Ended(outcome) = &settled {
        note_end(&mut work, outcome);
    }
    context.traces.end(work);
    if recorded.is_some() {
        METRICS.note_read_back(conclusion.kind());
    }
    match (recorded, settled) {
        (None, _) => {
            warn!(conclusion = conclusion.name(), "the claim was lost before the reading was recorded")
        }
        (Some(()), Settled::Ended(outcome)) => log_outcome(&outcome, &claim.job),
        (Some(()), Settled::SendAgain | Settled::StillUnknown(_)) => context.scheduled.notify_one(),
    }
    failpoint::reach(Point::ReadConcluded);
}

impl AttemptResult {
    fn of(verdict: Verdict, duration: Duration) -> Self {
        Self { verdict, http_status: None, provider_message: None, error: None, duration, checked: None }
    }
}

/// What a conclusion makes of a submission whose outcome is unknown.
fn settled_by(conclusion: Conclusion, reading: &Reading) -> Settled {
    match conclusion {
        Conclusion::Applied => {
            let verification_status = reading.customer().map(|customer| customer.status.clone());
            Settled::Ended(Outcome::Accepted(Acceptance { reference: None, verification_status }))
        }
        Conclusion::NotApplied => Settled::SendAgain,
        Conclusion::LastUpdate => Settled::Ended(Outcome::NeedsReview(Review::LastUpdate)),
        Conclusion::Unsettled => Settled::Ended(Outcome::NeedsReview(Review::FateUnknown)),
        Conclusion::Confirming { after } | Conclusion::ReadAgain { after } => Settled::StillUnknown(after),
    }
}
