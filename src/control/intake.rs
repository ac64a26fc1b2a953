//! Whether deliveries may be taken from the broker, and if not, why not. Logs each pause
//! and each resumption once. What is not known to be allowed is not allowed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::clock::Moment;

/// For so long after a heartbeat that was answered, what it read of a person's pause holds: five
/// heartbeats, and as long as a replica that is not seen is taken to live.
pub const HEARD_WITHIN: Duration = Duration::from_secs(10);

/// Why the intake may be paused.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Reason {
    /// The provider fails, refuses us or puts everybody off.
    Provider,
    /// The database does not answer: nothing could be written down.
    Database,
    /// A person has paused the work.
    Operator,
    /// No heartbeat was answered: whether a person has paused the work is not known.
    Heartbeat,
}

impl Reason {
    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Provider => "provider",
            Self::Database => "database",
            Self::Operator => "operator",
            Self::Heartbeat => "heartbeat",
        }
    }
}

/// Who must act on a pause.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Severity {
    Passing,
    NeedsPerson,
}

/// What a person must mend is mended when nobody has failed for it for so long: whoever fails tries
/// again sooner, and other work may succeed all the while.
const QUIET_TIME: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Pause {
    severity: Severity,
    cause: String,
    /// When it was last said again.
    since: Instant,
    /// The causes that were logged for a person, each once.
    logged: BTreeSet<String>,
}

/// The intake of one worker.
#[derive(Debug)]
pub struct Intake {
    pauses: Mutex<BTreeMap<Reason, Pause>>,
    is_open: watch::Sender<bool>,
    /// When the last heartbeat that was answered began.
    heard_at: Mutex<Option<Moment>>,
}

impl Default for Intake {
    fn default() -> Self {
        Self { pauses: Mutex::default(), is_open: watch::Sender::new(true), heard_at: Mutex::default() }
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

    /// Notes that a heartbeat that began at `begun` was answered.
    pub fn hear(&self, begun: Moment) {
        *self.heard_at.lock() = Some(begun);
    }

    /// Whether too long no heartbeat was answered to know whether a person has paused the work.
    /// The time that this machine was suspended counts.
    pub fn is_unheard(&self) -> bool {
        self.heard_at.lock().is_none_or(|heard_at| heard_at.elapsed() >= HEARD_WITHIN)
    }

    /// Whether no attempt may begin: a person has paused the work, or may have.
    pub fn is_held(&self) -> bool {
        self.is_unheard() || self.is_paused_for(Reason::Operator)
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

    /// All reasons that the intake is paused for, each with who must act.
    pub fn pauses(&self) -> Vec<(Reason, Severity)> {
        self.pauses.lock().iter().map(|(reason, pause)| (*reason, pause.severity)).collect()
    }

    /// Pauses the intake for `reason`, which `cause` explains. Each cause that needs a person is
    /// logged once; what passes by itself is logged once, however many causes it has.
    pub fn pause(&self, reason: Reason, severity: Severity, cause: impl fmt::Display) {
        let cause = cause.to_string();
        let mut pauses = self.pauses.lock();
        // An outage of the database was logged already.
        let is_logged = reason == Reason::Heartbeat && pauses.contains_key(&Reason::Database);
        let before = pauses.remove(&reason);
        let was_passing = before.as_ref().is_some_and(|before| before.severity == Severity::Passing);
        let is_same =
            before.as_ref().is_some_and(|before| (before.severity, &before.cause) == (severity, &cause));
        let mut logged = before.map(|before| before.logged).unwrap_or_default();
        match severity {
            _ if is_same => {}
            Severity::Passing if was_passing => debug!(?reason, cause, "another cause of the pause"),
            Severity::Passing if is_logged => debug!(?reason, cause, "one cause more of the pause"),
            Severity::Passing => warn!(?reason, cause, "intake paused"),
            Severity::NeedsPerson if logged.insert(cause.clone()) => {
                error!(?reason, cause, "intake paused until a person has fixed this");
            }
            Severity::NeedsPerson => {}
        }
        pauses.insert(reason, Pause { severity, cause, since: Instant::now(), logged });
        self.is_open.send_if_modified(|is_open| std::mem::replace(is_open, false));
    }

    /// Ends the pause for `reason`, if there is one.
    pub fn resume(&self, reason: Reason) {
        self.resume_if(reason, |_| true);
    }

    /// Ends the pause for `reason` where work that began at `begun` and succeeded shows that it
    /// is over: what had begun before it shows nothing, and of what a person must mend only that
    /// nobody fails for it any more.
    pub fn resume_by_work(&self, reason: Reason, begun: Instant) {
        self.resume_if(reason, |pause| match pause.severity {
            Severity::Passing => begun >= pause.since,
            Severity::NeedsPerson => begun >= pause.since + QUIET_TIME,
        });
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
    use crate::clock::tests::ago;

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
    fn what_a_person_must_mend_is_over_when_nobody_fails_for_it() {
        let intake = Intake::default();
        intake.pause(Reason::Database, Severity::NeedsPerson, "permission denied");
        let resume_after = |time| intake.resume_by_work(Reason::Database, Instant::now() + time);
        resume_after(QUIET_TIME - Duration::from_secs(1));
        assert!(!intake.is_open(), "other work says nothing of it");
        resume_after(QUIET_TIME + Duration::from_secs(1));
        assert!(intake.is_open());
    }

    #[test]
    fn attempts_are_held_back_until_a_heartbeat_is_answered_and_once_none_is() {
        let intake = Intake::default();
        assert!(intake.is_held(), "nothing was heard yet");
        intake.hear(Moment::now());
        assert!(!intake.is_held());
        intake.pause(Reason::Operator, Severity::Passing, "ana");
        assert!(intake.is_held());
        intake.resume(Reason::Operator);
        intake.hear(ago(9, 9, 9));
        assert!(!intake.is_held());
        intake.hear(ago(10, 10, 10));
        assert!(intake.is_held());
        intake.hear(ago(1, 1, 85));
        assert!(intake.is_held(), "the machine was suspended meanwhile");
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
