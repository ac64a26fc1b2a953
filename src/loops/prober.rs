//! Waits out what throttles the breaker, and probes the provider while the breaker is open.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, sleep_until};
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::config::ProviderArgs;
use crate::context::Context;
use crate::control::breaker::{Cause, Event, State};
use crate::domain::read_back::Reading;

/// The prober of one worker.
pub struct Prober {
    context: Arc<Context>,
    /// Where the credentials are read again.
    credentials: ProviderArgs,
    interval: Duration,
}

impl Prober {
    /// A prober that waits some `interval` before each health probe.
    pub fn new(context: Arc<Context>, credentials: ProviderArgs, interval: Duration) -> Self {
        Self { context, credentials, interval }
    }

    /// Runs until the worker stops.
    pub async fn run(self) {
        let Context { breaker, stopping, .. } = &*self.context;
        let mut states = breaker.subscribe();
        loop {
            let stirred = states.wait_for(|state| matches!(state, State::Open(_) | State::Throttled { .. }));
            let state = match stopping.run_until_cancelled(stirred).await {
                Some(Ok(state)) => *state,
                Some(Err(_)) | None => return,
            };
            let pause = sleep(self.interval.mul_f64(rand::random_range(0.8..1.2)));
            let event = match state {
                State::Throttled { until } => {
                    if stopping.run_until_cancelled(sleep_until(until)).await.is_none() {
                        return;
                    }
                    // A refusal of everybody may have opened it in the meantime.
                    (breaker.state() == state).then_some(Event::ThrottleOver)
                }
                State::Open(cause) => {
                    if stopping.run_until_cancelled(pause).await.is_none() {
                        return;
                    }
                    self.is_healthy(cause).await.then_some(Event::HealthProbeAnswered)
                }
                _ => None,
            };
            if let Some(event) = event {
                breaker.note(&event);
            }
        }
    }

    /// Whether the provider answers a health probe as it should.
    ///
    /// The probe is a GET of the nil customer: it proves the way, the key and the signature, and
    /// counts as no customer's read. After a refusal it is a PATCH for that customer, who does not
    /// exist: updates alone may be forbidden, and only a body with nested keys and letters beyond
    /// ASCII shows that the profile is right. It is a PATCH too where the clocks were apart, since no
    /// cache answers one. Credentials given as files are read again.
    async fn is_healthy(&self, cause: Cause) -> bool {
        let provider = &self.context.provider;
        if matches!(cause, Cause::Misconfigured(_)) {
            self.reread_credentials();
        }
        let is_answered = match cause {
            Cause::Misconfigured(_) | Cause::ClockSkew(_) => provider.probe_update().await,
            Cause::Failing | Cause::Throttling if provider.intolerable_skew().is_some() => {
                provider.probe_update().await
            }
            Cause::Failing | Cause::Throttling => match provider.customer(Uuid::nil()).await {
                Reading::Customer(_) | Reading::NotFound => true,
                // A cache that answers says nothing of the provider behind it, and reads alone may be throttled.
                Reading::Stale | Reading::Throttled { .. } => provider.probe_update().await,
                reading => {
                    debug!(?reading, "health probe failed");
                    false
                }
            },
        };
        is_answered && provider.intolerable_skew().is_none()
    }

    fn reread_credentials(&self) {
        match self.credentials.reread_credentials() {
            Ok(Some(signer)) => match self.context.provider.set_credentials(signer) {
                Ok(true) => info!("credentials read again from their files"),
                Ok(false) => {}
                Err(error) => warn!(error = format!("{error:#}"), "credentials in the files cannot be used"),
            },
            Ok(None) => {}
            Err(fault) => warn!(%fault, "credentials cannot be read again"),
        }
    }
}
