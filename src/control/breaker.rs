//! Stops the intake while the provider fails everybody or puts everybody off, and finds
//! out when it may go on.
//!
//! ```text
//! closed ── a run of failures or of odd refusals, or one refusal of everybody ──► open
//! open ──── a good probe ──► trial ── one attempt begins ──► trying
//! trial ─── none is due ──► wanting: the intake is open, until a delivery is parked and tried
//! trying ── it is answered ──► closed        it fails ──► open
//! closed ── the provider asks to wait ──► throttled ── that long ──► closed
//! ```

use std::fmt;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::config::ProviderArgs;
use crate::control::intake::{Intake, Reason, Severity};
use crate::domain::read_back::Reading;
use crate::domain::verdict::{Misconfiguration, NotSent, Verdict};
use crate::provider::Provider;

/// A clock further off the provider's than this may not sign.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    Closed {
        /// Attempts that failed, or were refused as nobody documents it, since the last answered one.
        failures: u32,
    },
    Open(Cause),
    /// A probe was answered: one attempt may begin.
    Trial(Cause),
    /// The same, but none is due: deliveries are taken to find one.
    Wanting {
        /// Why the breaker is not closed.
        cause: Cause,
        since: Instant,
    },
    /// That attempt is under way.
    Trying(Cause),
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
        /// Whether it was the trial.
        is_trial: bool,
    },
    /// The provider asked to wait.
    PutOff {
        until: Instant,
    },
    WaitOver,
    /// The provider's clock and ours are too far apart.
    ClockSkewed(i64),
    /// The provider answered a probe as it should.
    ProbeAnswered,
    TrialBegun,
    /// There is nothing to try.
    NothingToTry {
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
            (Self::Closed { .. }, Event::PutOff { until }) => Self::Throttled { until: *until },
            (Self::Throttled { until }, Event::PutOff { until: other }) => {
                Self::Throttled { until: until.max(*other) }
            }
            (Self::Throttled { .. }, Event::WaitOver) => Self::Closed { failures: 0 },
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
            (Self::Open(cause), Event::ProbeAnswered) => Self::Trial(cause),
            (Self::Trial(cause) | Self::Wanting { cause, .. }, Event::TrialBegun) => Self::Trying(cause),
            (Self::Trying(cause), Event::Attempted { verdict, is_trial: true }) => match judge(verdict) {
                Judgement::Good => Self::Closed { failures: 0 },
                Judgement::Failure => Self::Open(Cause::Failing),
                Judgement::Refusal(cause) | Judgement::OddRefusal(cause) => {
                    Self::Open(Cause::Misconfigured(cause))
                }
                Judgement::Nothing => Self::Trial(cause),
            },
            // Closed, it would let through as many as there are slots.
            (Self::Trial(cause), Event::NothingToTry { at }) => Self::Wanting { cause, since: *at },
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
            Self::Misconfigured(cause) => write!(f, "{cause}; look at {}", cause.setting()),
            Self::ClockSkew(seconds) => write!(
                f,
                "the provider's clock is {seconds} s from this machine's, and it refuses stale signatures; set the clock"
            ),
        }
    }
}

/// The breaker of one worker.
pub struct Breaker {
    state: watch::Sender<State>,
    failures_max: u32,
}

impl Breaker {
    /// A closed breaker that opens after `failures_max` failures in a row.
    pub fn new(failures_max: u32) -> Self {
        Self { state: watch::Sender::new(State::Closed { failures: 0 }), failures_max }
    }

    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    pub fn is_closed(&self) -> bool {
        matches!(self.state(), State::Closed { .. })
    }

    /// Whether the last attempt that ended was answered as documented, and none waits for that.
    pub fn takes_others(&self) -> bool {
        matches!(self.state(), State::Closed { failures: 0 })
    }

    /// Takes an event in, and pauses or resumes the intake where it opens or closes the breaker.
    pub fn note(&self, event: &Event<'_>, intake: &Intake) {
        self.state.send_if_modified(|state| {
            let after = state.after(event, self.failures_max);
            // While the state is held: told later, a resumption could overtake another's pause.
            steer(after, intake);
            std::mem::replace(state, after) != after
        });
    }

    /// Waits out what is throttled and probes what is open, until `stopping`.
    ///
    /// The probe is a GET of the nil customer: it proves the way, the key and the
    /// signature, and costs no customer a look. After a refusal it is a PATCH for that
    /// customer, who does not exist: updates alone may be forbidden, and only a body with
    /// nested keys and letters beyond ASCII shows that the profile is right. So it is where the
    /// clocks were apart, since no cache answers a PATCH. Credentials given as files are read
    /// again.
    pub async fn watch(
        &self,
        provider: &Provider,
        credentials: &ProviderArgs,
        interval: Duration,
        intake: &Intake,
        stopping: &CancellationToken,
    ) {
        let mut states = self.state.subscribe();
        loop {
            let stirred = states.wait_for(|state| matches!(state, State::Open(_) | State::Throttled { .. }));
            let state = match stopping.run_until_cancelled(stirred).await {
                Some(Ok(state)) => *state,
                Some(Err(_)) | None => return,
            };
            let pause = sleep(interval.mul_f64(rand::random_range(0.8..1.2)));
            let event = match state {
                State::Throttled { until } => {
                    if stopping.run_until_cancelled(sleep_until(until)).await.is_none() {
                        return;
                    }
                    // It may have been put off again meanwhile.
                    (self.state() == state).then_some(Event::WaitOver)
                }
                State::Open(cause) => {
                    if stopping.run_until_cancelled(pause).await.is_none() {
                        return;
                    }
                    probe(provider, credentials, cause).await.then_some(Event::ProbeAnswered)
                }
                _ => None,
            };
            if let Some(event) = event {
                self.note(&event, intake);
            }
        }
    }
}

fn steer(state: State, intake: &Intake) {
    match state {
        State::Closed { .. } | State::Wanting { .. } => intake.resume(Reason::Provider),
        State::Open(cause @ Cause::Failing) => intake.pause(Reason::Provider, Severity::Passing, cause),
        State::Open(cause) => intake.pause(Reason::Provider, Severity::NeedsPerson, cause),
        // Of what it was paused for a person has been told.
        State::Trying(_) if intake.is_paused_for(Reason::Provider) => {}
        State::Trying(_) => {
            let cause = "one attempt shows whether the provider is back";
            intake.pause(Reason::Provider, Severity::Passing, cause);
        }
        State::Throttled { .. } => {
            intake.pause(Reason::Provider, Severity::Passing, "the provider asks everybody to wait");
        }
        State::Trial(_) => {}
    }
}

/// Whether the provider answers as it should.
async fn probe(provider: &Provider, credentials: &ProviderArgs, cause: Cause) -> bool {
    if matches!(cause, Cause::Misconfigured(_)) {
        match credentials.reread_credentials() {
            Ok(Some(signer)) => match provider.set_credentials(signer) {
                Ok(true) => info!("credentials read again from their files"),
                Ok(false) => {}
                Err(error) => warn!(error = format!("{error:#}"), "credentials in the files cannot be used"),
            },
            Ok(None) => {}
            Err(fault) => warn!(%fault, "credentials cannot be read again"),
        }
    }
    let is_answered = match cause {
        Cause::Misconfigured(_) | Cause::ClockSkew(_) => provider.probe_update().await,
        Cause::Failing if intolerable_skew(provider).is_some() => provider.probe_update().await,
        Cause::Failing => match provider.customer(Uuid::nil()).await {
            Reading::Customer(_) | Reading::NotFound => true,
            // A cache that answers says nothing of the provider behind it.
            Reading::Stale => provider.probe_update().await,
            reading => {
                debug!(?reading, "probe failed");
                false
            }
        },
    };
    is_answered && intolerable_skew(provider).is_none()
}

/// The skew of our clock against the provider's, in seconds, where it is too large to sign.
pub fn intolerable_skew(provider: &Provider) -> Option<i64> {
    provider.clock_skew().filter(|skew| skew.unsigned_abs() > CLOCK_SKEW_MAX.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::verdict::{Acceptance, FailurePoint};

    const CLOSED: State = State::Closed { failures: 0 };
    const FAILED: Verdict = Verdict::Unknown(FailurePoint::TimedOut);
    const REFUSED: Verdict = Verdict::Misconfigured(Misconfiguration::ApiKey);
    const BY_KEY: Cause = Cause::Misconfigured(Misconfiguration::ApiKey);

    fn after(state: State, verdict: &Verdict, is_trial: bool) -> State {
        state.after(&Event::Attempted { verdict, is_trial }, 3)
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
        let trying = State::Trying(Cause::Misconfigured(odd));
        assert_eq!(after(trying, &refused, true), open);
        let throttled = State::Throttled { until: Instant::now() };
        assert_eq!(after(throttled, &refused, false), throttled);
    }

    #[test]
    fn a_good_probe_alone_does_not_close_it() {
        let probed = State::Open(Cause::Failing).after(&Event::ProbeAnswered, 3);
        assert_eq!(probed, State::Trial(Cause::Failing));
        let trying = probed.after(&Event::TrialBegun, 3);
        assert_eq!(trying, State::Trying(Cause::Failing));
        assert_eq!(after(trying, &FAILED, true), State::Open(Cause::Failing));
        assert_eq!(after(trying, &Verdict::NotSent(NotSent::WindowClosed), true), probed);
        assert_eq!(after(trying, &Verdict::Throttled { retry_after: None }, true), CLOSED);
    }

    #[test]
    fn nothing_to_try_does_not_close_it_but_lets_deliveries_in() {
        let at = Instant::now();
        let wanting = State::Trial(Cause::Failing).after(&Event::NothingToTry { at }, 3);
        assert_eq!(wanting, State::Wanting { cause: Cause::Failing, since: at });
        let later = at + Duration::from_secs(1);
        assert_eq!(wanting.after(&Event::NothingToTry { at: later }, 3), wanting);
        assert_eq!(after(wanting, &FAILED, false), wanting);
        assert_eq!(wanting.after(&Event::TrialBegun, 3), State::Trying(Cause::Failing));

        let (breaker, intake) = (Breaker::new(1), Intake::default());
        let is_open = intake.subscribe();
        breaker.note(&Event::Attempted { verdict: &FAILED, is_trial: false }, &intake);
        breaker.note(&Event::ProbeAnswered, &intake);
        assert!(!*is_open.borrow());
        breaker.note(&Event::NothingToTry { at }, &intake);
        assert!(*is_open.borrow() && !breaker.is_closed());
        breaker.note(&Event::TrialBegun, &intake);
        assert!(!*is_open.borrow(), "one delivery is enough");
    }

    #[test]
    fn a_provider_that_asks_to_wait_is_waited_for() {
        let (soon, later) = (Instant::now(), Instant::now() + Duration::from_secs(9));
        let throttled = CLOSED.after(&Event::PutOff { until: later }, 3);
        assert_eq!(throttled, State::Throttled { until: later });
        assert_eq!(throttled.after(&Event::PutOff { until: soon }, 3), throttled);
        assert_eq!(after(throttled, &FAILED, false), throttled);
        assert_eq!(after(throttled, &REFUSED, false), State::Open(BY_KEY));
        assert_eq!(throttled.after(&Event::WaitOver, 3), CLOSED);
    }

    #[test]
    fn a_clock_too_far_off_opens_it() {
        assert_eq!(CLOSED.after(&Event::ClockSkewed(-600), 3), State::Open(Cause::ClockSkew(-600)));
    }

    #[test]
    fn attempts_that_had_begun_before_change_nothing() {
        let accepted = Verdict::Accepted(Acceptance::default());
        for state in [State::Open(BY_KEY), State::Trial(BY_KEY), State::Trying(BY_KEY)] {
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
