//! Whether deliveries may be taken from the broker, and if not, why not. Says each pause
//! and each resumption once.

use std::collections::BTreeMap;
use std::fmt;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

/// Why the intake may be paused.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Reason {
    /// The provider fails, refuses us or puts everybody off.
    Provider,
    /// The database does not answer: nothing could be written down.
    Database,
    /// A person has paused the work.
    Operator,
}

impl Reason {
    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Provider => "provider",
            Self::Database => "database",
            Self::Operator => "operator",
        }
    }
}

/// Who must act on a pause.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Severity {
    /// It passes by itself.
    Passing,
    /// A person must act.
    NeedsPerson,
}

#[derive(Debug)]
struct Pause {
    severity: Severity,
    cause: String,
    since: Instant,
}

/// The intake of one worker.
#[derive(Debug)]
pub struct Intake {
    pauses: Mutex<BTreeMap<Reason, Pause>>,
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

    /// Whether the intake is paused for nothing.
    pub fn is_open(&self) -> bool {
        *self.is_open.borrow()
    }

    /// Whether the intake is paused for `reason`.
    pub fn is_paused_for(&self, reason: Reason) -> bool {
        self.pauses.lock().contains_key(&reason)
    }

    /// The names of all reasons that the intake is paused for.
    pub fn paused_for(&self) -> Vec<String> {
        let pauses = self.pauses.lock();
        pauses.keys().map(|reason| reason.name().to_owned()).collect()
    }

    /// Pauses the intake for `reason`, which `cause` explains. Again for the same cause is
    /// nothing; and what passes by itself is told once, in how many words ever it fails.
    pub fn pause(&self, reason: Reason, severity: Severity, cause: impl fmt::Display) {
        let pause = Pause { severity, cause: cause.to_string(), since: Instant::now() };
        let mut pauses = self.pauses.lock();
        let before = pauses.insert(reason, pause);
        let cause = pauses[&reason].cause.as_str();
        match (severity, before) {
            (severity, Some(before)) if before.severity == severity && before.cause == cause => return,
            (Severity::Passing, Some(Pause { severity: Severity::Passing, .. })) => {
                debug!(?reason, cause, "another cause of the pause");
            }
            (Severity::Passing, _) => warn!(?reason, cause, "intake paused"),
            (Severity::NeedsPerson, _) => {
                error!(?reason, cause, "intake paused until a person has mended this");
            }
        }
        self.is_open.send_if_modified(|is_open| std::mem::replace(is_open, false));
    }

    /// Ends the pause for `reason`, if there is one.
    pub fn resume(&self, reason: Reason) {
        self.resume_if(reason, |_| true);
    }

    /// Ends the pause for `reason` where work that began at `begun` and succeeded shows that it
    /// is over: what had begun before it shows nothing.
    pub fn resume_by_work(&self, reason: Reason, begun: Instant) {
        self.resume_if(reason, |pause| begun >= pause.since);
    }

    fn resume_if(&self, reason: Reason, is_over: impl FnOnce(&Pause) -> bool) {
        let mut pauses = self.pauses.lock();
        if !pauses.get(&reason).is_some_and(is_over) {
            return;
        }
        pauses.remove(&reason);
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

    #[test]
    fn work_that_had_begun_before_the_pause_does_not_end_it() {
        let (intake, before) = (Intake::default(), Instant::now());
        let is_open = intake.subscribe();
        intake.pause(Reason::Database, Severity::Passing, "down");
        intake.resume_by_work(Reason::Database, before);
        assert!(!*is_open.borrow());
        intake.resume_by_work(Reason::Database, Instant::now());
        assert!(*is_open.borrow());
    }
}
