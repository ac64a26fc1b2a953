//! Stops the intake while the provider fails everybody, and finds out when it may go on.
//!
//! ```text
//! closed ── a run of failures, or one refusal of our credentials ──► open
//! open ──── a good probe ──► trial ── one attempt begins ──► trying
//! trying ── it is answered ──► closed        it fails ──► open
//! ```

use std::fmt;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};
use uuid::Uuid;

use crate::domain::read_back::Reading;
use crate::domain::verdict::{Misconfiguration, NotSent, Verdict};
use crate::provider::Provider;

/// Where the breaker stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// Work flows.
    Closed {
        /// Failed attempts since the last answered one.
        failures: u32,
    },
    /// No attempt begins.
    Open(Cause),
    /// A probe was answered: one attempt may begin.
    Trial(Cause),
    /// That attempt is under way.
    Trying(Cause),
}

/// Why the breaker opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cause {
    /// The provider cannot be reached, or does not answer.
    Failing,
    /// The provider refuses us.
    Misconfigured(Misconfiguration),
}

/// What the breaker learns.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<'a> {
    /// An attempt ended.
    Attempted {
        /// Its verdict.
        verdict: &'a Verdict,
        /// Whether it was the trial.
        is_trial: bool,
    },
    /// The provider answered a probe as it should.
    ProbeAnswered,
    /// The trial begins.
    TrialBegun,
    /// There is nothing to try.
    NothingToTry,
}

impl State {
    /// The state that follows an event. `failures_max` failures in a row open the breaker.
    pub fn after(self, event: &Event<'_>, failures_max: u32) -> Self {
        match (self, event) {
            (Self::Closed { failures }, Event::Attempted { verdict, .. }) => match judge(verdict) {
                Judgement::Good => Self::Closed { failures: 0 },
                Judgement::Failure if failures + 1 < failures_max => Self::Closed { failures: failures + 1 },
                Judgement::Failure => Self::Open(Cause::Failing),
                Judgement::Refusal(cause) => Self::Open(Cause::Misconfigured(cause)),
                Judgement::Nothing => self,
            },
            (Self::Open(cause), Event::ProbeAnswered) => Self::Trial(cause),
            (Self::Trial(cause), Event::TrialBegun) => Self::Trying(cause),
            (Self::Trying(cause), Event::Attempted { verdict, is_trial: true }) => match judge(verdict) {
                Judgement::Good => Self::Closed { failures: 0 },
                Judgement::Failure => Self::Open(Cause::Failing),
                Judgement::Refusal(cause) => Self::Open(Cause::Misconfigured(cause)),
                Judgement::Nothing => Self::Trial(cause),
            },
            (Self::Trial(_), Event::NothingToTry) => Self::Closed { failures: 0 },
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
    Nothing,
}

fn judge(verdict: &Verdict) -> Judgement {
    match verdict {
        Verdict::Accepted(_) | Verdict::Rejected(_) | Verdict::Throttled { .. } => Judgement::Good,
        Verdict::Unknown(_) | Verdict::NotSent(NotSent::Connect) => Judgement::Failure,
        Verdict::Misconfigured(cause) => Judgement::Refusal(*cause),
        Verdict::NotSent(NotSent::WindowClosed | NotSent::Shutdown | NotSent::PayloadUnreadable) => {
            Judgement::Nothing
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failing => f.write_str("the provider cannot be reached or does not answer"),
            Self::Misconfigured(cause) => write!(f, "{cause}; look at {}", cause.setting()),
        }
    }
}

/// The breaker of one worker.
pub struct Breaker {
    state: watch::Sender<State>,
    intake: watch::Sender<bool>,
    failures_max: u32,
}

impl Breaker {
    /// A closed breaker that opens after `failures_max` failures in a row.
    pub fn new(failures_max: u32) -> Self {
        Self {
            state: watch::Sender::new(State::Closed { failures: 0 }),
            intake: watch::Sender::new(true),
            failures_max,
        }
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Whether deliveries may be taken from the broker.
    pub fn intake(&self) -> watch::Receiver<bool> {
        self.intake.subscribe()
    }

    /// Takes an event in, and logs where it opens or closes the breaker.
    pub fn note(&self, event: &Event<'_>) {
        let mut before = State::Closed { failures: 0 };
        let mut after = before;
        self.state.send_if_modified(|state| {
            before = *state;
            after = state.after(event, self.failures_max);
            *state = after;
            before != after
        });
        let was_closed = matches!(before, State::Closed { .. });
        let is_closed = matches!(after, State::Closed { .. });
        self.intake.send_if_modified(|intake| std::mem::replace(intake, is_closed) != is_closed);
        match (was_closed, after) {
            (true, State::Open(cause @ Cause::Failing)) => {
                warn!(cause = %cause, "intake paused: probing the provider");
            }
            (true, State::Open(cause @ Cause::Misconfigured(_))) => {
                error!(cause = %cause, "intake paused: the provider refuses this worker");
            }
            (false, State::Closed { .. }) => info!("intake resumed: the provider answers again"),
            _ => {}
        }
    }

    /// Probes the provider while the breaker is open, until `stopping`.
    ///
    /// The probe is a GET of the nil customer: it proves the way, the key and the
    /// signature, and spends nothing of any customer's.
    pub async fn probe_while_open(
        &self,
        provider: &Provider,
        interval: Duration,
        stopping: &CancellationToken,
    ) {
        let mut states = self.state.subscribe();
        loop {
            let opened = states.wait_for(|state| matches!(state, State::Open(_)));
            if !matches!(stopping.run_until_cancelled(opened).await, Some(Ok(_))) {
                return;
            }
            let pause = interval.mul_f64(rand::random_range(0.8..1.2));
            if stopping.run_until_cancelled(sleep(pause)).await.is_none() {
                return;
            }
            match provider.customer(Uuid::nil()).await {
                Reading::Customer { .. } | Reading::NotFound => self.note(&Event::ProbeAnswered),
                reading => debug!(?reading, "probe failed"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::verdict::{Acceptance, Phase};

    const CLOSED: State = State::Closed { failures: 0 };
    const FAILED: Verdict = Verdict::Unknown(Phase::TimedOut);
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
    fn a_good_probe_alone_does_not_close_it() {
        let probed = State::Open(Cause::Failing).after(&Event::ProbeAnswered, 3);
        assert_eq!(probed, State::Trial(Cause::Failing));
        let trying = probed.after(&Event::TrialBegun, 3);
        assert_eq!(trying, State::Trying(Cause::Failing));
        assert_eq!(after(trying, &FAILED, true), State::Open(Cause::Failing));
        assert_eq!(after(trying, &Verdict::NotSent(NotSent::WindowClosed), true), probed);
        assert_eq!(after(trying, &Verdict::Throttled { retry_after: None }, true), CLOSED);
        assert_eq!(probed.after(&Event::NothingToTry, 3), CLOSED);
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
