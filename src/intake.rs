//! Whether deliveries may be taken from the broker, and if not, why not. Says each pause
//! and each resumption once.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;
use tracing::{error, info, warn};

/// Why the intake may be paused.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Reason {
    /// The provider fails, refuses us or puts everybody off.
    Provider,
    /// The database does not answer: nothing could be written down.
    Database,
}

/// Who must act on a pause.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Severity {
    /// It passes by itself.
    Passing,
    /// A person must act.
    NeedsPerson,
}

/// The intake of one worker.
#[derive(Debug)]
pub struct Intake {
    pauses: Mutex<BTreeMap<Reason, (Severity, String)>>,
    is_open: watch::Sender<bool>,
}

impl Default for Intake {
    fn default() -> Self {
        Self { pauses: Mutex::default(), is_open: watch::Sender::new(true) }
    }
}

impl Intake {
    /// Follows whether deliveries may be taken.
    pub fn subscribe(&self) -> watch::Receiver<bool> {
        self.is_open.subscribe()
    }

    /// Pauses the intake for `reason`, which `cause` explains. It is said again only where a
    /// person has to hear something new: an outage changes its face from call to call.
    pub fn pause(&self, reason: Reason, severity: Severity, cause: impl fmt::Display) {
        let cause = cause.to_string();
        let mut pauses = self.pauses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, before)) = pauses.get(&reason)
            && *known == severity
            && (severity == Severity::Passing || *before == cause)
        {
            return;
        }
        match severity {
            Severity::Passing => warn!(?reason, cause, "intake paused"),
            Severity::NeedsPerson => error!(?reason, cause, "intake paused until a person has mended this"),
        }
        pauses.insert(reason, (severity, cause));
        self.is_open.send_if_modified(|is_open| std::mem::replace(is_open, false));
    }

    /// Ends the pause for `reason`, if there is one.
    pub fn resume(&self, reason: Reason) {
        let mut pauses = self.pauses.lock().unwrap_or_else(PoisonError::into_inner);
        if pauses.remove(&reason).is_none() {
            return;
        }
        if pauses.is_empty() {
            info!(?reason, "intake resumed");
            self.is_open.send_replace(true);
        } else {
            info!(?reason, still = ?pauses.keys(), "one pause of the intake is over, another is not");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_intake_is_open_when_every_pause_is_over() {
        let intake = Intake::default();
        let is_open = intake.subscribe();
        intake.pause(Reason::Provider, Severity::Passing, "down");
        intake.pause(Reason::Database, Severity::Passing, "down");
        assert!(!*is_open.borrow());
        intake.resume(Reason::Provider);
        assert!(!*is_open.borrow());
        intake.resume(Reason::Database);
        assert!(*is_open.borrow());
    }
}
