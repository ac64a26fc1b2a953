//! The circuit breaker: pauses the intake while the provider fails or throttles everybody. While it
//! is open, the prober asks whether the provider answers (a health probe); once it does, a single
//! attempt is let through (the probe), and its result closes the breaker or opens it again.
//!
//! ```text
//! closed ───── a run of failures or of odd refusals, or one refusal of everybody ──► open
//! open ─────── a health probe is answered ──► half-open ── the probe begins ──► probing
//! half-open ── no job is due ──► idle: the intake is open, until a delivery can be the probe
//! probing ──── it is answered ──► closed        it fails ──► open        a 429 ──► throttled
//! closed ───── the provider asks to wait ──► throttled ── that long, or a minute ──► half-open
//! ```
//!
//! What opened it may have been one job's own: while there is another, that job is not the probe.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::control::intake::{Intake, Reason, Severity};
use crate::domain::state::VerdictKind;
use crate::domain::verdict::{Misconfiguration, NotSent, Verdict};
use crate::metrics::METRICS;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    Closed {
        /// Attempts that failed, or were refused as nobody documents it, since the last answered one.
        failures: u32,
    },
    Open(Cause),
    /// A health probe was answered: one attempt may begin.
    HalfOpen(Cause),
    /// The same, but no job is due: deliveries are taken to find one.
    HalfOpenIdle {
        /// Why the breaker is not closed.
        cause: Cause,
        since: Instant,
    },
    /// That attempt is under way.
    Probing(Cause),
    /// The provider asked somebody to wait, and may have meant everybody.
    Throttled {
        until: Instant,
    },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cause {
    /// The provider cannot be reached, or does not answer.
    Failing,
    Misconfigured(Misconfiguration),
    /// Our clock is that many seconds off the provider's: it would refuse our signatures.
    ClockSkew(i64),
    /// It asked to wait, and that time is over.
    Throttling,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event<'a> {
    Attempted {
        verdict: &'a Verdict,
        /// Whether it was the probe.
        is_probe: bool,
        /// When it began.
        begun: Instant,
    },
    /// An attempt was asked to wait.
    Throttled {
        until: Instant,
        /// Whether it was the probe.
        is_probe: bool,
    },
    ThrottleOver,
    /// The provider's clock and ours are too far apart.
    ClockSkewed(i64),
    /// The provider answered a health probe as it should.
    HealthProbeAnswered,
    ProbeBegun,
    NoJobDue {
        at: Instant,
    },
}

impl State {
    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed { .. } => "closed",
            Self::Open(_) => "open",
            Self::HalfOpen(_) => "half_open",
            Self::HalfOpenIdle { .. } => "half_open_idle",
            Self::Probing(_) => "probing",
            Self::Throttled { .. } => "throttled",
        }
    }

    /// The state that follows an event. `failures_max` failures in a row open the breaker.
    pub fn after(self, event: &Event<'_>, failures_max: u32) -> Self {
        match (self, event) {
            (Self::Closed { .. } | Self::Throttled { .. }, Event::ClockSkewed(seconds)) => {
                Self::Open(Cause::ClockSkew(*seconds))
            }
            // What others in flight are asked for changes nothing: the probe will be told.
            (Self::Closed { .. }, Event::Throttled { until, .. })
            | (Self::Probing(_), Event::Throttled { until, is_probe: true }) => {
                Self::Throttled { until: *until }
            }
            (Self::Throttled { .. }, Event::ThrottleOver) => Self::HalfOpen(Cause::Throttling),
            (Self::Throttled { .. }, Event::Attempted { verdict, .. }) => match judge(verdict) {
                Judgement::Refusal(cause) => Self::Open(Cause::Misconfigured(cause)),
                _ => self,
            },
            (Self::Closed { failures }, Event::Attempted { verdict, .. }) => match judge(verdict) {
                Judgement::Good => Self::Closed { failures: 0 },
                Judgement::Failure | Judgement::OddRefusal(_) if failures + 1 < failures_max => {
                    Self::Closed { failures: failures + 1 }
                }
                Judgement::Failure => Self::Open(Cause::Failing),
                Judgement::OddRefusal(cause) => Self::Open(Cause::Misconfigured(cause)),
                Judgement::Refusal(cause) => Self::Open(Cause::Misconfigured(cause)),
                Judgement::Nothing => self,
            },
            (Self::Open(cause), Event::HealthProbeAnswered) => Self::HalfOpen(cause),
            (Self::HalfOpen(cause) | Self::HalfOpenIdle { cause, .. }, Event::ProbeBegun) => {
                Self::Probing(cause)
            }
            (Self::Probing(cause), Event::Attempted { verdict, is_probe: true, .. }) => {
                match judge(verdict) {
                    Judgement::Good => Self::Closed { failures: 0 },
                    Judgement::Failure => Self::Open(Cause::Failing),
                    Judgement::Refusal(cause) | Judgement::OddRefusal(cause) => {
                        Self::Open(Cause::Misconfigured(cause))
                    }
                    Judgement::Nothing => Self::HalfOpen(cause),
                }
            }
            // Closed, it would let through as many as there are slots.
            (Self::HalfOpen(cause), Event::NoJobDue { at }) => Self::HalfOpenIdle { cause, since: *at },
            // Attempts that had begun before the breaker opened change nothing.
            _ => self,
        }
    }
}

impl Cause {
    /// The cause as a code.
    fn code(self) -> &'static str {
        match self {
            Self::Failing => "failing",
            Self::Misconfigured(cause) => cause.code(),
            Self::ClockSkew(_) => "clock_skew",
            Self::Throttling => "throttling",
        }
    }

    /// The verdicts that keep a job from being the probe while there is another. A resend that fails costs
    /// its job the only one it has; and what opened the breaker may be the job's own.
    pub fn unfit_for_probe(self) -> &'static [VerdictKind] {
        match self {
            Self::Misconfigured(cause) if !cause.is_everybodys() => {
                &[VerdictKind::Unknown, VerdictKind::Misconfigured]
            }
            Self::Throttling => &[VerdictKind::Unknown, VerdictKind::Throttled],
            Self::Failing | Self::Misconfigured(_) | Self::ClockSkew(_) => &[VerdictKind::Unknown],
        }
    }
}

/// Whether the provider took the update: accepted it, or rejected its job.
fn is_taken(verdict: &Verdict) -> bool {
    match verdict {
        Verdict::Accepted(_) => true,
        Verdict::Rejected(rejection) => !rejection.is_by_check(),
        _ => false,
    }
}

/// What a verdict says of the provider.
enum Judgement {
    Good,
    Failure,
    Refusal(Misconfiguration),
    /// It may be about one job.
    OddRefusal(Misconfiguration),
    Nothing,
}

fn judge(verdict: &Verdict) -> Judgement {
    match verdict {
        // A check of ours found it, and the provider was not asked for the update.
        Verdict::Rejected(rejection) if rejection.is_by_check() => Judgement::Nothing,
        Verdict::Accepted(_)
        | Verdict::Rejected(_)
        | Verdict::Misconfigured(Misconfiguration::LikeOthers) => Judgement::Good,
        Verdict::Unknown(_) | Verdict::NotSent(NotSent::Connect | NotSent::ConfigurationUnread) => {
            Judgement::Failure
        }
        Verdict::Misconfigured(cause) if cause.is_everybodys() => Judgement::Refusal(*cause),
        Verdict::Misconfigured(cause) => Judgement::OddRefusal(*cause),
        // That it is throttled is an event of its own.
        Verdict::Throttled { .. }
        | Verdict::NotSent(
            NotSent::WindowClosed | NotSent::HeldBack | NotSent::Shutdown | NotSent::LinkUnchecked,
        ) => Judgement::Nothing,
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failing => f.write_str("the provider cannot be reached or does not answer"),
            Self::Misconfigured(cause) => write!(f, "{cause}; check {}", cause.setting()),
            Self::ClockSkew(seconds) => write!(
                f,
                "the provider's clock is {seconds} s from this machine's, and it refuses stale signatures; set the clock"
            ),
            Self::Throttling => f.write_str("the provider asks to wait"),
        }
    }
}

/// The breaker of one worker. It pauses the intake, and lets it resume.
pub struct Breaker {
    state: watch::Sender<State>,
    failures_max: u32,
    intake: Arc<Intake>,
    /// When the last attempt began that was taken: accepted, or rejected for its job.
    taken: Mutex<Option<Instant>>,
}

impl Breaker {
    /// A closed breaker that opens after `failures_max` failures in a row.
    pub fn new(failures_max: u32, intake: Arc<Intake>) -> Self {
        let state = watch::Sender::new(State::Closed { failures: 0 });
        Self { state, failures_max, intake, taken: Mutex::default() }
    }

    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    pub fn subscribe(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    pub fn is_closed(&self) -> bool {
        matches!(self.state(), State::Closed { .. })
    }

    /// Whether an attempt that began after `refused` was taken, and none has failed since. What began
    /// before says nothing of whether everybody is refused by now.
    pub fn has_taken_since(&self, refused: Instant) -> bool {
        matches!(self.state(), State::Closed { failures: 0 })
            && self.taken.lock().is_some_and(|taken| taken > refused)
    }

    /// Notes an event, and pauses or resumes the intake where it opens or closes the breaker.
    pub fn note(&self, event: &Event<'_>) {
        if let Event::Attempted { verdict, begun, .. } = event
            && is_taken(verdict)
        {
            let mut taken = self.taken.lock();
            *taken = (*taken).max(Some(*begun));
        }
        self.state.send_if_modified(|state| {
            let after = state.after(event, self.failures_max);
            // While the state is held: steered later, a resumption could overtake another's pause.
            steer(after, &self.intake);
            if let State::Open(cause) = after
                && !matches!(state, State::Open(_))
            {
                METRICS.note_breaker_opened(cause.code());
            }
            std::mem::replace(state, after) != after
        });
    }
}

fn steer(state: State, intake: &Intake) {
    match state {
        State::Closed { .. } | State::HalfOpenIdle { .. } => intake.resume(Reason::Provider),
        State::Open(cause @ Cause::Failing) => intake.pause(Reason::Provider, Severity::Passing, cause),
        State::Open(cause) => intake.pause(Reason::Provider, Severity::NeedsPerson, cause),
        // A person has been told what it was paused for.
        State::Probing(_) if intake.is_paused_for(Reason::Provider) => {}
        State::Probing(_) => {
            let cause = "one attempt shows whether the provider is back";
            intake.pause(Reason::Provider, Severity::Passing, cause);
        }
        State::Throttled { .. } => {
            intake.pause(Reason::Provider, Severity::Passing, Cause::Throttling);
        }
        State::HalfOpen(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::verdict::{Acceptance, FailurePoint, Rejection};

    const CLOSED: State = State::Closed { failures: 0 };
    const FAILED: Verdict = Verdict::Unknown(FailurePoint::TimedOut);
    const REFUSED: Verdict = Verdict::Misconfigured(Misconfiguration::ApiKey);
    const BY_KEY: Cause = Cause::Misconfigured(Misconfiguration::ApiKey);

    fn after(state: State, verdict: &Verdict, is_probe: bool) -> State {
        state.after(&Event::Attempted { verdict, is_probe, begun: Instant::now() }, 3)
    }

    #[test]
    fn a_run_of_failures_opens_it_and_an_answer_in_between_does_not() {
        let twice = after(after(CLOSED, &FAILED, false), &FAILED, false);
        assert_eq!(twice, State::Closed { failures: 2 });
        assert_eq!(after(twice, &FAILED, false), State::Open(Cause::Failing));
        let accepted = Verdict::Accepted(Acceptance::default());
        assert_eq!(after(twice, &accepted, false), CLOSED);
    }

    #[test]
    fn one_refusal_of_our_credentials_opens_it() {
        assert_eq!(after(CLOSED, &REFUSED, false), State::Open(BY_KEY));
    }

    #[test]
    fn a_refusal_that_may_be_one_jobs_opens_it_only_in_a_run() {
        let odd = Misconfiguration::Undocumented;
        let refused = Verdict::Misconfigured(odd);
        let twice = after(after(CLOSED, &refused, false), &refused, false);
        assert_eq!(twice, State::Closed { failures: 2 });
        assert_eq!(after(twice, &Verdict::Accepted(Acceptance::default()), false), CLOSED);
        let open = State::Open(Cause::Misconfigured(odd));
        assert_eq!(after(twice, &refused, false), open);
        let probing = State::Probing(Cause::Misconfigured(odd));
        assert_eq!(after(probing, &refused, true), open);
        let throttled = State::Throttled { until: Instant::now() };
        assert_eq!(after(throttled, &refused, false), throttled);
    }

    #[test]
    fn a_good_health_probe_alone_does_not_close_it() {
        let probed = State::Open(Cause::Failing).after(&Event::HealthProbeAnswered, 3);
        assert_eq!(probed, State::HalfOpen(Cause::Failing));
        let probing = probed.after(&Event::ProbeBegun, 3);
        assert_eq!(probing, State::Probing(Cause::Failing));
        assert_eq!(after(probing, &FAILED, true), State::Open(Cause::Failing));
        assert_eq!(after(probing, &Verdict::NotSent(NotSent::WindowClosed), true), probed);
    }

    /// A firewall's page is no word of the provider's.
    #[test]
    fn a_page_of_any_status_opens_it_only_in_a_run() {
        use Misconfiguration::*;
        for cause in [Unauthorized, Forbidden, Endpoint, Redirected, NotTheProvider] {
            let refused = Verdict::Misconfigured(cause);
            let twice = after(after(CLOSED, &refused, false), &refused, false);
            assert_eq!(twice, State::Closed { failures: 2 }, "{cause}");
            assert_eq!(after(twice, &refused, false), State::Open(Cause::Misconfigured(cause)));
        }
    }

    #[test]
    fn what_opened_it_is_not_probed_with_while_there_is_another_job() {
        use VerdictKind::{Misconfigured, Throttled, Unknown};
        let odd = Cause::Misconfigured(Misconfiguration::Forbidden);
        assert_eq!(odd.unfit_for_probe(), [Unknown, Misconfigured]);
        assert_eq!(Cause::Throttling.unfit_for_probe(), [Unknown, Throttled]);
        for cause in [Cause::Failing, Cause::ClockSkew(600), BY_KEY] {
            assert_eq!(cause.unfit_for_probe(), [Unknown]);
        }
    }

    #[test]
    fn only_what_began_after_a_refusal_shows_that_others_are_taken() {
        let breaker = Breaker::new(5, Arc::default());
        let note = |verdict: &Verdict, begun| {
            breaker.note(&Event::Attempted { verdict, is_probe: false, begun });
        };
        let refused = Instant::now();
        let (before, later) = (refused - Duration::from_secs(1), refused + Duration::from_secs(1));
        assert!(!breaker.has_taken_since(before), "nothing was taken yet");
        let accepted = Verdict::Accepted(Acceptance::default());
        note(&accepted, before);
        assert!(!breaker.has_taken_since(refused));
        note(&accepted, later);
        note(&accepted, before);
        assert!(breaker.has_taken_since(refused));
        note(&Verdict::Misconfigured(Misconfiguration::Forbidden), later);
        assert!(!breaker.has_taken_since(refused), "by now everybody may be refused");
        note(&accepted, later);
        assert!(breaker.has_taken_since(refused));
    }

    #[test]
    fn what_a_check_of_ours_found_is_no_answer_of_the_provider() {
        let rejected = Verdict::Rejected(Rejection::DocumentTypeUnsupported { supported: Vec::new() });
        let once = State::Closed { failures: 1 };
        assert_eq!(after(once, &rejected, false), once);
        let probing = State::Probing(Cause::Failing);
        assert_eq!(
            after(probing, &rejected, true),
            State::HalfOpen(Cause::Failing),
            "another job is the probe"
        );
        let breaker = Breaker::new(5, Arc::default());
        let (refused, begun) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        breaker.note(&Event::Attempted { verdict: &rejected, is_probe: false, begun });
        assert!(!breaker.has_taken_since(refused));
    }

    /// Else an outage would be met by one job after the other, each with its retries.
    #[test]
    fn a_run_of_unread_configurations_opens_it() {
        let unread = Verdict::NotSent(NotSent::ConfigurationUnread);
        let twice = after(after(CLOSED, &unread, false), &unread, false);
        assert_eq!(after(twice, &unread, false), State::Open(Cause::Failing));
        assert_eq!(after(State::Probing(BY_KEY), &unread, true), State::Open(Cause::Failing));
    }

    #[test]
    fn no_due_job_does_not_close_it_but_lets_deliveries_in() {
        let at = Instant::now();
        let idle = State::HalfOpen(Cause::Failing).after(&Event::NoJobDue { at }, 3);
        assert_eq!(idle, State::HalfOpenIdle { cause: Cause::Failing, since: at });
        let later = at + Duration::from_secs(1);
        assert_eq!(idle.after(&Event::NoJobDue { at: later }, 3), idle);
        assert_eq!(after(idle, &FAILED, false), idle);
        assert_eq!(idle.after(&Event::ProbeBegun, 3), State::Probing(Cause::Failing));

        let intake = Arc::new(Intake::default());
        let (breaker, is_open) = (Breaker::new(1, Arc::clone(&intake)), intake.subscribe());
        breaker.note(&Event::Attempted { verdict: &FAILED, is_probe: false, begun: at });
        breaker.note(&Event::HealthProbeAnswered);
        assert!(!*is_open.borrow());
        breaker.note(&Event::NoJobDue { at });
        assert!(*is_open.borrow() && !breaker.is_closed());
        breaker.note(&Event::ProbeBegun);
        assert!(!*is_open.borrow(), "one delivery is enough");
    }

    #[test]
    fn a_provider_that_asks_to_wait_is_waited_for() {
        let (soon, later) = (Instant::now(), Instant::now() + Duration::from_secs(9));
        let asks = |until, is_probe| Event::Throttled { until, is_probe };
        let throttled = CLOSED.after(&asks(soon, false), 3);
        assert_eq!(throttled, State::Throttled { until: soon });
        assert_eq!(throttled.after(&asks(later, false), 3), throttled, "the probe will be told");
        assert_eq!(after(throttled, &FAILED, false), throttled);
        assert_eq!(after(throttled, &Verdict::Accepted(Acceptance::default()), false), throttled);
        assert_eq!(after(throttled, &REFUSED, false), State::Open(BY_KEY));

        let half_open = throttled.after(&Event::ThrottleOver, 3);
        assert_eq!(half_open, State::HalfOpen(Cause::Throttling), "one shows whether the others may go on");
        let probing = half_open.after(&Event::ProbeBegun, 3);
        assert_eq!(probing.after(&asks(later, false), 3), probing);
        assert_eq!(probing.after(&asks(later, true), 3), State::Throttled { until: later });
        assert_eq!(after(probing, &Verdict::Accepted(Acceptance::default()), true), CLOSED);
        assert_eq!(after(probing, &FAILED, true), State::Open(Cause::Failing));
    }

    #[test]
    fn a_clock_too_far_off_opens_it() {
        assert_eq!(CLOSED.after(&Event::ClockSkewed(-600), 3), State::Open(Cause::ClockSkew(-600)));
    }

    #[test]
    fn attempts_that_had_begun_before_change_nothing() {
        let accepted = Verdict::Accepted(Acceptance::default());
        for state in [State::Open(BY_KEY), State::HalfOpen(BY_KEY), State::Probing(BY_KEY)] {
            assert_eq!(after(state, &accepted, false), state);
            assert_eq!(after(state, &FAILED, false), state);
        }
    }

    #[test]
    fn what_says_nothing_of_the_provider_changes_nothing() {
        let once = State::Closed { failures: 1 };
        assert_eq!(after(once, &Verdict::NotSent(NotSent::Shutdown), false), once);
        assert_eq!(after(once, &Verdict::NotSent(NotSent::WindowClosed), false), once);
        assert_eq!(
            after(once, &Verdict::NotSent(NotSent::LinkUnchecked), false),
            once,
            "a link's host failed"
        );
    }
}
