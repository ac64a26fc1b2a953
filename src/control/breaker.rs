//! The circuit breaker: pauses the intake while the provider fails or throttles everybody. While it
//! is open, the prober asks whether the provider answers (a health probe); once it does, a single
//! attempt is let through (the probe), and its result closes the breaker or opens it again.
//!
//! ```text
//! closed ───── a run of failures or of odd refusals, or one refusal of everybody ──► open
//! open ─────── a health probe is answered ──► half-open ── the probe begins ──► probing
//! half-open ── no job is due ──► idle: the intake is open, until a delivery can be the probe
//! probing ──── it is answered ──► closed        it fails ──► open
//! closed ───── the provider asks to wait ──► throttled ── that long ──► closed
//! ```

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::control::intake::{Intake, Reason, Severity};
use crate::domain::verdict::{Misconfiguration, NotSent, Verdict};

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
    /// The provider asked everybody to wait.
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
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event<'a> {
    Attempted {
        verdict: &'a Verdict,
        /// Whether it was the probe.
        is_probe: bool,
    },
    /// The provider asked to wait.
    Throttled {
        until: Instant,
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
    /// The state that follows an event. `failures_max` failures in a row open the breaker.
    pub fn after(self, event: &Event<'_>, failures_max: u32) -> Self {
        match (self, event) {
            (Self::Closed { .. } | Self::Throttled { .. }, Event::ClockSkewed(seconds)) => {
                Self::Open(Cause::ClockSkew(*seconds))
            }
            (Self::Closed { .. }, Event::Throttled { until }) => Self::Throttled { until: *until },
            (Self::Throttled { until }, Event::Throttled { until: other }) => {
                Self::Throttled { until: until.max(*other) }
            }
            (Self::Throttled { .. }, Event::ThrottleOver) => Self::Closed { failures: 0 },
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
            (Self::Probing(cause), Event::Attempted { verdict, is_probe: true }) => match judge(verdict) {
                Judgement::Good => Self::Closed { failures: 0 },
                Judgement::Failure => Self::Open(Cause::Failing),
                Judgement::Refusal(cause) | Judgement::OddRefusal(cause) => {
                    Self::Open(Cause::Misconfigured(cause))
                }
                Judgement::Nothing => Self::HalfOpen(cause),
            },
            // Closed, it would let through as many as there are slots.
            (Self::HalfOpen(cause), Event::NoJobDue { at }) => Self::HalfOpenIdle { cause, since: *at },
            // Attempts that had begun before the breaker opened change nothing.
            _ => self,
        }
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
        Verdict::Accepted(_) | Verdict::Rejected(_) | Verdict::Throttled { .. } => Judgement::Good,
        Verdict::Unknown(_) | Verdict::NotSent(NotSent::Connect) => Judgement::Failure,
        Verdict::Misconfigured(cause) if cause.is_everybodys() => Judgement::Refusal(*cause),
        Verdict::Misconfigured(cause) => Judgement::OddRefusal(*cause),
        Verdict::NotSent(NotSent::WindowClosed | NotSent::HeldBack | NotSent::Shutdown) => Judgement::Nothing,
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
        }
    }
}

/// The breaker of one worker. It pauses the intake, and lets it resume.
pub struct Breaker {
    state: watch::Sender<State>,
    failures_max: u32,
    intake: Arc<Intake>,
}

impl Breaker {
    /// A closed breaker that opens after `failures_max` failures in a row.
    pub fn new(failures_max: u32, intake: Arc<Intake>) -> Self {
        Self { state: watch::Sender::new(State::Closed { failures: 0 }), failures_max, intake }
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

    /// Whether the last attempt that ended was answered as documented, and none waits for that.
    pub fn takes_others(&self) -> bool {
        matches!(self.state(), State::Closed { failures: 0 })
    }

    /// Notes an event, and pauses or resumes the intake where it opens or closes the breaker.
    pub fn note(&self, event: &Event<'_>) {
        self.state.send_if_modified(|state| {
            let after = state.after(event, self.failures_max);
            // While the state is held: steered later, a resumption could overtake another's pause.
            steer(after, &self.intake);
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
            intake.pause(Reason::Provider, Severity::Passing, "the provider asks everybody to wait");
        }
        State::HalfOpen(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::verdict::{Acceptance, FailurePoint};

    const CLOSED: State = State::Closed { failures: 0 };
    const FAILED: Verdict = Verdict::Unknown(FailurePoint::TimedOut);
    const REFUSED: Verdict = Verdict::Misconfigured(Misconfiguration::ApiKey);
    const BY_KEY: Cause = Cause::Misconfigured(Misconfiguration::ApiKey);

    fn after(state: State, verdict: &Verdict, is_probe: bool) -> State {
        state.after(&Event::Attempted { verdict, is_probe }, 3)
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
        assert_eq!(after(probing, &Verdict::Throttled { retry_after: None }, true), CLOSED);
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
        breaker.note(&Event::Attempted { verdict: &FAILED, is_probe: false });
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
        let throttled = CLOSED.after(&Event::Throttled { until: later }, 3);
        assert_eq!(throttled, State::Throttled { until: later });
        assert_eq!(throttled.after(&Event::Throttled { until: soon }, 3), throttled);
        assert_eq!(after(throttled, &FAILED, false), throttled);
        assert_eq!(after(throttled, &REFUSED, false), State::Open(BY_KEY));
        assert_eq!(throttled.after(&Event::ThrottleOver, 3), CLOSED);
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
    }
}
