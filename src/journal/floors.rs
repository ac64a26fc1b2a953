//! From where on the indexes are read that the loops read again and again.

use std::time::Duration;

use parking_lot::Mutex;
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::journal::error::JournalError;

/// No transaction of ours lives for longer: what is committed later than this was due later.
const COMMIT_TIME_MAX: Duration = Duration::from_secs(30);

/// How often an index is read from its beginning, whatever was found there before.
const WHOLE_READ_INTERVAL: Duration = Duration::from_secs(600);

/// Where to read from if an index is too long to be read from its beginning.
const FALLBACK: Duration = Duration::from_secs(3_600);

/// From where on an index over times is read. What moved on leaves an entry behind for as long as any
/// older snapshot is open, be it for hours; so nobody reads again and again what lay before the
/// oldest that was still there. Every time in such an index is one that was to come, or now, when it
/// was written.
#[derive(Default)]
pub(crate) struct Floor(Mutex<Read>);

#[derive(Default)]
struct Read {
    /// Before this there was nothing any more.
    from: Option<OffsetDateTime>,
    whole_at: Option<Instant>,
}

impl Read {
    fn must_be_whole(&self, now: Instant) -> bool {
        self.whole_at.is_none_or(|at| now.saturating_duration_since(at) >= WHOLE_READ_INTERVAL)
    }

    fn bound(&self, now: Instant) -> Option<OffsetDateTime> {
        self.from.filter(|_| !self.must_be_whole(now))
    }

    fn note(&mut self, oldest: OffsetDateTime, now: Instant) {
        self.from = Some(oldest - COMMIT_TIME_MAX);
        if self.must_be_whole(now) {
            self.whole_at = Some(now);
        }
    }

    fn note_failure(&mut self, now: Instant) {
        if self.must_be_whole(now) {
            self.whole_at = Some(now);
            self.from.get_or_insert_with(|| OffsetDateTime::now_utc() - FALLBACK);
        }
    }
}

/// Rows that were due.
pub(crate) struct Taken<T> {
    pub rows: Vec<T>,
    /// Whether no row is left that was due.
    pub is_all: bool,
}

impl Floor {
    /// From when on to read; `None` is from the beginning.
    pub fn bound(&self) -> Option<OffsetDateTime> {
        self.0.lock().bound(Instant::now())
    }

    /// Notes that nothing is there before `oldest`.
    pub fn note(&self, oldest: OffsetDateTime) {
        self.0.lock().note(oldest, Instant::now());
    }

    /// Notes that it could not be read. Whatever the cause, the beginning is not tried again soon.
    pub fn note_failure(&self) {
        self.0.lock().note_failure(Instant::now());
    }

    /// Notes what came of taking rows that were due at `now`. What others hold is left, and is there still.
    pub fn note_due<T>(&self, taken: &Result<Taken<T>, JournalError>, now: Option<OffsetDateTime>) {
        match (taken, now) {
            (Ok(Taken { is_all: true, .. }), Some(now)) => self.note(now),
            (Ok(_), _) => {}
            (Err(_), _) => self.note_failure(),
        }
    }
}

/// From which number on a table is read that is read by its growing numbers, and whose rows are removed
/// once they are done with. What a number belongs to is committed `COMMIT_TIME_MAX` after it was drawn, or
/// never: what lay before the lowest one that long ago is gone.
#[derive(Default)]
pub(crate) struct NumberFloor(Mutex<Numbers>);

#[derive(Default)]
struct Numbers {
    /// Before this there is nothing any more.
    from: i64,
    /// The lowest number that was there once, and when.
    lowest: Option<(i64, Instant)>,
    whole_at: Option<Instant>,
}

impl Numbers {
    fn bound(&self, now: Instant) -> i64 {
        let is_fresh = |at: Instant| now.saturating_duration_since(at) < WHOLE_READ_INTERVAL;
        if self.whole_at.is_some_and(is_fresh) { self.from } else { 0 }
    }

    fn note(&mut self, lowest: i64, now: Instant) {
        if self.bound(now) == 0 {
            self.whole_at = Some(now);
            self.from = self.from.min(lowest);
        }
        match self.lowest {
            Some((_, at)) if now.saturating_duration_since(at) < COMMIT_TIME_MAX => {}
            last => {
                self.from = last.map_or(self.from, |(number, _)| number.min(lowest));
                self.lowest = Some((lowest, now));
            }
        }
    }
}

impl NumberFloor {
    /// From which number on to read.
    pub fn bound(&self) -> i64 {
        self.0.lock().bound(Instant::now())
    }

    /// Notes the lowest number that is there.
    pub fn note(&self, lowest: i64) {
        self.0.lock().note(lowest, Instant::now());
    }
}

/// The indexes that are read again and again.
#[derive(Default)]
pub(crate) struct Floors {
    /// When what waits, or is of unknown outcome, is due.
    pub due: Floor,
    pub leases: Floor,
    pub expiry: Floor,
    pub payloads: Floor,
    /// The events that upstream is to be told.
    pub events: NumberFloor,
    /// The database's time, and when it told it.
    clock: Mutex<Option<(OffsetDateTime, Instant)>>,
}

impl Floors {
    /// What the database's clock says at least.
    pub fn now(&self) -> Option<OffsetDateTime> {
        self.clock.lock().map(|(now, told_at)| now + told_at.elapsed())
    }

    pub fn note_now(&self, now: OffsetDateTime) {
        *self.clock.lock() = Some((now, Instant::now()));
    }

    /// Forgets all of it: another server has another clock, and rows that were gone.
    pub fn forget(&self) {
        for floor in [&self.due, &self.leases, &self.expiry, &self.payloads] {
            *floor.0.lock() = Read::default();
        }
        *self.events.0.lock() = Numbers::default();
        *self.clock.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOON: OffsetDateTime = datetime!(2026-01-01 12:00 UTC);

    #[test]
    fn an_index_is_read_from_its_oldest_row_on_and_now_and_then_whole() {
        let (mut read, now) = (Read::default(), Instant::now());
        assert_eq!(read.bound(now), None, "nothing is known yet");
        read.note(NOON, now);
        let known = Some(NOON - COMMIT_TIME_MAX);
        assert_eq!(read.bound(now), known);
        let later = now + WHOLE_READ_INTERVAL;
        assert_eq!(read.bound(later), None);
        read.note_failure(later);
        assert_eq!(read.bound(later), known, "what could not be read is not read again at once");
        read.note(NOON - FALLBACK, later);
        let earlier = Some(NOON - FALLBACK - COMMIT_TIME_MAX);
        assert_eq!(read.bound(later), earlier, "the database's clock went back");
    }

    #[test]
    fn a_number_is_passed_over_once_none_before_it_can_come() {
        let (mut numbers, now) = (Numbers::default(), Instant::now());
        assert_eq!(numbers.bound(now), 0);
        numbers.note(10, now);
        numbers.note(50, now + COMMIT_TIME_MAX / 2);
        assert_eq!(numbers.bound(now + COMMIT_TIME_MAX / 2), 0, "one before 10 may still be committed");
        let later = now + COMMIT_TIME_MAX;
        numbers.note(60, later);
        assert_eq!(numbers.bound(later), 10);
        numbers.note(5, later + COMMIT_TIME_MAX);
        assert_eq!(numbers.bound(later + COMMIT_TIME_MAX), 5, "it is there all the same");
        let whole = later + WHOLE_READ_INTERVAL;
        assert_eq!(numbers.bound(whole), 0);
        numbers.note(3, whole);
        assert!(numbers.bound(whole) <= 3);
    }

    #[test]
    fn an_index_that_may_hold_more_keeps_its_floor() {
        let floor = Floor::default();
        let taken = |is_all| Ok(Taken { rows: vec![()], is_all });
        floor.note_due(&taken(true), None);
        assert_eq!(floor.bound(), None, "the database's time is not known");
        floor.note_due(&taken(false), Some(NOON));
        assert_eq!(floor.bound(), None, "something is left");
        floor.note_due(&taken(true), Some(NOON));
        assert_eq!(floor.bound(), Some(NOON - COMMIT_TIME_MAX));
    }

    #[test]
    fn an_index_that_cannot_be_read_whole_is_read_from_an_hour_ago() {
        let floor = Floor::default();
        floor.note_due::<()>(&Err(JournalError::TimedOut { name: "test" }), Some(NOON));
        let bound = floor.bound().expect("a bound");
        let ago = OffsetDateTime::now_utc() - bound;
        assert!(ago >= FALLBACK && ago < 2 * FALLBACK, "{ago}");
    }
}
