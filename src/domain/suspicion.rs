//! May this update have been applied, and has a read since shown that it is over?
//!
//! A customer has three updates, ever, so what the records say of one is a handful of rows: the jobs
//! that had an attempt, their updates, and the reads of the customer. Everything here decides from
//! those, and everybody who must know asks here: precedence, read-back, the end of a verification and
//! the reconciliation.
//!
//! Times are told by two clocks, the database's and the replicas', of which either may be set. A read
//! counts as later than an update only where both say so.

use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;

use super::budget::{Budget, spends};
use super::state::{Applied, ConclusionKind, Evidence, Purpose, State, VerdictKind};

/// What the records say of one customer.
#[derive(Clone, Debug, Default)]
pub struct Customer {
    /// The jobs that had an attempt, and the newest of those that wait, in any order.
    pub jobs: Vec<PastJob>,
    /// In any order.
    pub reads: Vec<PastRead>,
    /// Updates that others spent, as far as a person has told us.
    pub updates_elsewhere: u32,
    pub archived: ArchivedJobs,
}

/// What is left of a customer's jobs whose rows were archived. None of their updates is a suspect. The
/// last word that was read of the customer stands among the reads.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ArchivedJobs {
    /// Attempts that the provider accepted.
    pub accepted: u32,
    /// Attempts whose outcome was ever unknown.
    pub unknown: u32,
    /// When the last of these ended.
    pub spent_at: Option<OffsetDateTime>,
    /// The newest job that was accepted, as [`PastJob::age_key`].
    pub newest: Option<(OffsetDateTime, OffsetDateTime, Uuid)>,
    /// Until when one of their updates may have been applied, by the database's clock and by those of the
    /// replicas that made them.
    pub applied_until: Option<(OffsetDateTime, OffsetDateTime)>,
}

/// What is to be kept of a customer whose jobs are archived.
#[derive(Clone, Debug, Default)]
pub struct Archivable {
    pub jobs: ArchivedJobs,
    /// The last word on the customer that was read after every update.
    pub word: Option<PastRead>,
}

#[derive(Clone, Debug)]
pub struct PastJob {
    pub job_id: Uuid,
    pub state: State,
    pub reason_code: Option<String>,
    pub evidence: Option<Evidence>,
    pub requested_at: OffsetDateTime,
    pub received_at: OffsetDateTime,
    pub content_hmac: Option<Vec<u8>>,
    /// How many attempts it had.
    pub attempts: i32,
    /// The attempts that were made, or may have been, at the least: others change nothing.
    pub updates: Vec<PastUpdate>,
}

/// An attempt, as the records have it.
#[derive(Clone, Copy, Debug)]
pub struct PastUpdate {
    pub number: i32,
    /// None while it is open.
    pub verdict: Option<VerdictKind>,
    pub is_accepted_late: bool,
    /// By the database's clock.
    pub begun_at: OffsetDateTime,
    /// When it began, by the clock of the replica that made it.
    pub signed_at: OffsetDateTime,
    /// When its result was recorded, by the database's clock.
    pub ended_at: Option<OffsetDateTime>,
}

/// A read of the customer, or what the provider told us of itself.
#[derive(Clone, Debug)]
pub struct PastRead {
    /// The job that it was made for.
    pub job_id: Uuid,
    pub purpose: Purpose,
    /// In the provider's words; none where the read told nothing.
    pub status: Option<String>,
    /// Before the read began, by the database's clock.
    pub at: OffsetDateTime,
    /// The same by the clock of the replica that read, where that was kept.
    pub read_at: Option<OffsetDateTime>,
    /// When the answer was made, by its own date.
    pub dated_at: Option<OffsetDateTime>,
    pub conclusion: Option<ConclusionKind>,
}

/// The statuses that a customer has while an update may be in verification. The provider's reference
/// page shows `UNVERIFIED` as the answer to an applied update, its guide shows `PROCESSING`.
const OPEN_STATUSES: [&str; 2] = ["PROCESSING", "UNVERIFIED"];

/// The reason of a job that ended with an update that may have been applied.
pub const FATE_UNKNOWN: &str = "fate_unknown";

/// The reason of a job of which a person found that it was not applied.
pub const NOT_APPLIED: &str = ConclusionKind::NotApplied.name();

impl PastUpdate {
    /// Whether it was applied, or may have been, whatever was found out since. One that is open may yet
    /// be.
    pub fn may_have_been_applied(&self) -> bool {
        self.is_accepted_late || self.verdict.is_none_or(spends)
    }

    /// From its recorded end, how much later it may still be applied. A result of unknown outcome says
    /// nothing of when: the request may lie somewhere on the way.
    fn lateness(&self, window: Duration) -> Duration {
        match self.verdict {
            Some(VerdictKind::Unknown) => window,
            _ => Duration::ZERO,
        }
    }
}

impl PastRead {
    /// What is left of a read that told the customer's status, once its job is archived.
    pub fn of_archived(
        status: String,
        at: OffsetDateTime,
        read_at: Option<OffsetDateTime>,
        dated_at: Option<OffsetDateTime>,
    ) -> Self {
        let (job_id, purpose) = (Uuid::nil(), Purpose::Verification);
        Self { job_id, purpose, status: Some(status), at, read_at, dated_at, conclusion: None }
    }

    /// Whether it is a read of ours. A webhook may be about any update.
    fn is_own(&self) -> bool {
        self.purpose != Purpose::Webhook
    }

    /// Whether it was made after the last moment at which the update can have been applied.
    fn is_after(&self, update: &PastUpdate, window: Duration) -> bool {
        let lateness = update.lateness(window);
        update.ended_at.is_some_and(|ended_at| self.at > ended_at + lateness)
            && self.read_at.unwrap_or(self.at) > update.signed_at + lateness
    }

    /// Whether it shows that a verification which the update had begun is over.
    fn ends(&self, update: &PastUpdate, window: Duration) -> bool {
        self.is_own()
            && self.status.as_deref().is_some_and(|status| !OPEN_STATUSES.contains(&status))
            && self.is_after(update, window)
    }

    /// Whether it is the read-back that found the job's update not applied.
    fn finds_not_applied(&self, job_id: Uuid, update: &PastUpdate) -> bool {
        self.job_id == job_id
            && self.conclusion.is_some_and(ConclusionKind::is_not_applied)
            && update.ended_at.is_some_and(|ended_at| self.at > ended_at)
    }
}

impl ConclusionKind {
    /// Whether the update was not applied, be it sent again or not.
    pub const fn is_not_applied(self) -> bool {
        matches!(self, Self::NotApplied | Self::LastUpdate)
    }
}

impl PastJob {
    /// By which a customer's jobs are ordered; the greatest is the newest.
    pub fn age_key(&self) -> (OffsetDateTime, OffsetDateTime, Uuid) {
        (self.requested_at, self.received_at, self.job_id)
    }

    /// Whether it was accepted, be it that the answer came after a person had ended the job otherwise.
    pub fn was_accepted(&self) -> bool {
        self.state == State::Accepted || self.updates.iter().any(|update| update.is_accepted_late)
    }

    /// Whether the provider said, a read showed, or a person found that the update was applied.
    fn is_applied(&self, update: &PastUpdate) -> bool {
        let is_told = self.state == State::Accepted
            && matches!(self.evidence, Some(Evidence::ReadBack | Evidence::Person))
            && update.number == self.attempts;
        update.verdict == Some(VerdictKind::Accepted) || update.is_accepted_late || is_told
    }

    /// Whether one of its updates may be in verification, as far as `reads` tell.
    pub fn may_be_in_verification(&self, reads: &[PastRead], window: Duration) -> bool {
        self.updates.iter().any(|update| self.is_suspect(update, reads, |_| true, window))
    }

    /// Whether the update may be in verification: it may have been applied, its read-back has not found
    /// that it was not, and none of the `telling` reads shows that its verification is over.
    fn is_suspect(
        &self,
        update: &PastUpdate,
        reads: &[PastRead],
        telling: impl Fn(&PastRead) -> bool,
        window: Duration,
    ) -> bool {
        let is_ruled_out = || {
            !self.is_applied(update) && reads.iter().any(|read| read.finds_not_applied(self.job_id, update))
        };
        let is_over = || reads.iter().any(|read| telling(read) && read.ends(update, window));
        update.may_have_been_applied() && !is_ruled_out() && !is_over()
    }

    /// What became of one of its updates; `None` of one that was certainly not made.
    pub fn applied(&self, update: &PastUpdate, reads: &[PastRead]) -> Option<Applied> {
        if !update.may_have_been_applied() {
            return None;
        }
        let settles = |read: &PastRead| {
            read.finds_not_applied(self.job_id, update)
                || read.job_id == self.job_id
                    && read.conclusion == Some(ConclusionKind::Rejected)
                    && update.ended_at.is_some_and(|ended_at| read.at > ended_at)
        };
        Some(if self.is_applied(update) {
            Applied::Yes
        } else if update.verdict == Some(VerdictKind::Unknown) && reads.iter().any(settles)
            // Nothing follows an update that may have been applied.
            || update.number < self.attempts
        {
            Applied::No
        } else if self.state.holds_slot() {
            Applied::Open
        } else if self.reason_code.as_deref() == Some(NOT_APPLIED) {
            Applied::No
        } else {
            Applied::Unknown
        })
    }

    /// How many of the customer's updates it spent, or may have spent.
    pub fn spent(&self) -> u32 {
        let spent = self.updates.iter().filter(|update| update.verdict.is_some_and(spends)).count();
        u32::try_from(spent).unwrap_or(u32::MAX)
    }

    fn update(&self, number: i32) -> Option<&PastUpdate> {
        self.updates.iter().find(|update| update.number == number)
    }
}

impl ArchivedJobs {
    fn add(&mut self, update: &PastUpdate, window: Duration) {
        match update.verdict {
            Some(VerdictKind::Accepted) => self.accepted += 1,
            Some(VerdictKind::Unknown) => self.unknown += 1,
            _ => {}
        }
        if update.verdict.is_some_and(spends) {
            self.spent_at = self.spent_at.max(update.ended_at);
        }
        let lateness = update.lateness(window);
        let until = (update.ended_at.unwrap_or(update.begun_at) + lateness, update.signed_at + lateness);
        let known = self.applied_until.unwrap_or(until);
        self.applied_until = Some((known.0.max(until.0), known.1.max(until.1)));
    }

    /// Whether a read was made after the last moment at which one of the updates can have been applied.
    fn is_before(&self, read: &PastRead) -> bool {
        self.applied_until
            .is_none_or(|(ended, signed)| read.at > ended && read.read_at.unwrap_or(read.at) > signed)
    }
}

impl Customer {
    /// The customer's updates, where the provider allows `limit`.
    pub fn budget(&self, limit: u32) -> Budget {
        let ArchivedJobs { accepted, unknown, .. } = self.archived;
        let archived = accepted.saturating_add(unknown);
        let spent_here = self.jobs.iter().map(PastJob::spent).fold(archived, u32::saturating_add);
        Budget { spent_here, spent_elsewhere: self.updates_elsewhere, limit }
    }

    pub fn job(&self, job_id: Uuid) -> Option<&PastJob> {
        self.jobs.iter().find(|job| job.job_id == job_id)
    }

    /// Whether no update of another job may be in verification: what the customer shows is `job_id`'s.
    pub fn is_only_suspect(&self, job_id: Uuid, window: Duration) -> bool {
        !self.others(job_id).any(|job| job.may_be_in_verification(&self.reads, window))
    }

    /// The newest word on the customer before the job's attempt, where no update of another job can
    /// have come between. A baseline was read before it, whatever the clocks say.
    pub fn word_before(&self, job_id: Uuid, number: i32, window: Duration) -> Option<&str> {
        let attempt = self.job(job_id)?.update(number)?;
        let others: Vec<&PastUpdate> = self
            .others(job_id)
            .flat_map(|job| &job.updates)
            .filter(|update| update.may_have_been_applied())
            .collect();
        let is_before = |read: &&PastRead| {
            read.at < attempt.begun_at && read.read_at.unwrap_or(read.at) < attempt.signed_at
                || read.job_id == job_id && read.purpose == Purpose::Baseline
        };
        let told = self.reads.iter().filter(|read| read.is_own() && read.status.is_some());
        told.filter(is_before)
            .filter(|read| others.iter().all(|update| read.is_after(update, window)))
            .filter(|read| self.archived.is_before(read))
            .max_by_key(|read| read.at)?
            .status
            .as_deref()
    }

    /// Whether what the provider says as of `at` can be the end of the verification of this job's update
    /// and of no other: it is no sooner after the update than a verification may end, and when the
    /// update began, none of another job's was in verification.
    pub fn may_end(&self, job_id: Uuid, at: OffsetDateTime, window: Duration) -> bool {
        let updates = self.job(job_id).map_or(&[][..], |job| &job.updates);
        let begun =
            updates.iter().filter(|update| update.verdict.is_some() && update.may_have_been_applied());
        let Some(begun_at) = begun.map(|update| update.begun_at).max() else { return false };
        let was_before = |read: &PastRead| read.at < begun_at;
        at >= begun_at + window
            && !self.others(job_id).any(|job| {
                job.updates.iter().any(|update| job.is_suspect(update, &self.reads, was_before, window))
            })
    }

    /// The read-backs that have found the job's attempt not applied, as far as one read tells: how many,
    /// and the last of them. One that is written down twice counts once.
    pub fn confirmations(&self, job_id: Uuid, number: i32) -> (u32, Option<&PastRead>) {
        let ended_at = self.job(job_id).and_then(|job| job.update(number)).and_then(|update| update.ended_at);
        let mut confirming: Vec<&PastRead> = self
            .reads
            .iter()
            .filter(|read| read.job_id == job_id && read.conclusion == Some(ConclusionKind::Confirming))
            .filter(|read| ended_at.is_some_and(|ended_at| read.at > ended_at))
            .collect();
        confirming.sort_by_key(|read| read.at);
        confirming.dedup_by_key(|read| read.at);
        (u32::try_from(confirming.len()).unwrap_or(u32::MAX), confirming.last().copied())
    }

    /// What is to be kept of the customer if all of their jobs are archived; `None` while that would change
    /// what is decided later. A job that was accepted stays while its verification may be running: the
    /// same content that comes again is its duplicate, and a later read tells whether it is over.
    ///
    /// The caller sees to jobs that were never tried: none of them may be in motion.
    pub fn archivable(&self, window: Duration) -> Option<Archivable> {
        let is_settled = |job: &PastJob| {
            let has_update = job.updates.iter().any(PastUpdate::may_have_been_applied);
            job.state.has_ended()
                && job.state != State::NeedsReview
                && (job.state != State::Accepted || has_update)
                && !job.may_be_in_verification(&self.reads, window)
        };
        if !self.jobs.iter().all(is_settled) {
            return None;
        }
        let mut jobs = self.archived.clone();
        for job in &self.jobs {
            if job.was_accepted() {
                jobs.newest = jobs.newest.max(Some(job.age_key()));
            }
            for update in job.updates.iter().filter(|update| update.may_have_been_applied()) {
                jobs.add(update, window);
            }
        }
        let told = self.reads.iter().filter(|read| read.is_own() && read.status.is_some());
        let word = told.filter(|read| jobs.is_before(read)).max_by_key(|read| read.at).cloned();
        Some(Archivable { jobs, word })
    }

    fn others(&self, job_id: Uuid) -> impl Iterator<Item = &PastJob> {
        self.jobs.iter().filter(move |job| job.job_id != job_id)
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOON: OffsetDateTime = datetime!(2026-01-01 12:00 UTC);
    const WINDOW: Duration = Duration::from_secs(60);
    const OURS: Uuid = Uuid::from_u128(1);
    const THEIRS: Uuid = Uuid::from_u128(2);

    fn at(seconds: i64) -> OffsetDateTime {
        NOON + time::Duration::seconds(seconds)
    }

    /// One that began at `begun` and ended a second later.
    fn update(begun: i64, verdict: VerdictKind) -> PastUpdate {
        PastUpdate {
            number: 1,
            verdict: Some(verdict),
            is_accepted_late: false,
            begun_at: at(begun),
            signed_at: at(begun),
            ended_at: Some(at(begun + 1)),
        }
    }

    fn job(job_id: Uuid, state: State, updates: Vec<PastUpdate>) -> PastJob {
        PastJob {
            job_id,
            state,
            reason_code: None,
            evidence: None,
            requested_at: NOON,
            received_at: NOON,
            content_hmac: None,
            attempts: i32::try_from(updates.len()).expect("few"),
            updates,
        }
    }

    fn read(seconds: i64, status: &str) -> PastRead {
        PastRead {
            job_id: OURS,
            purpose: Purpose::ReadBack,
            status: Some(status.to_owned()),
            at: at(seconds),
            read_at: Some(at(seconds)),
            dated_at: None,
            conclusion: None,
        }
    }

    fn found(seconds: i64, job_id: Uuid, conclusion: ConclusionKind) -> PastRead {
        PastRead { job_id, status: None, conclusion: Some(conclusion), ..read(seconds, "") }
    }

    /// Whether another job's update is a suspect, at 0 s, after these reads.
    fn is_suspect(verdict: VerdictKind, reads: &[PastRead]) -> bool {
        job(THEIRS, State::Accepted, vec![update(0, verdict)]).may_be_in_verification(reads, WINDOW)
    }

    #[test]
    fn what_was_not_made_is_no_suspect_and_what_is_open_is_one() {
        for verdict in VerdictKind::ALL {
            assert_eq!(is_suspect(*verdict, &[]), spends(*verdict), "{verdict}");
        }
        let open = PastUpdate { verdict: None, ended_at: None, ..update(0, VerdictKind::Unknown) };
        let job = job(THEIRS, State::Submitting, vec![open]);
        assert!(job.may_be_in_verification(&[read(600, "FAILED")], WINDOW));
    }

    #[test]
    fn a_read_clears_once_the_update_cannot_be_applied_any_more() {
        use VerdictKind::{Accepted, Unknown};
        for (verdict, seconds, clears) in [
            (Accepted, 1, false),
            (Accepted, 2, true),
            (Unknown, 2, false),
            (Unknown, 61, false),
            (Unknown, 62, true),
        ] {
            assert_eq!(is_suspect(verdict, &[read(seconds, "FAILED")]), !clears, "{verdict} {seconds}");
        }
        for (status, clears) in [
            ("PROCESSING", false),
            ("UNVERIFIED", false),
            ("VERIFIED", true),
            ("FAILED", true),
            ("ON_HOLD", true),
        ] {
            assert_eq!(is_suspect(Accepted, &[read(600, status)]), !clears, "{status}");
        }
        let webhook = PastRead { purpose: Purpose::Webhook, read_at: None, ..read(600, "VERIFIED") };
        assert!(is_suspect(Accepted, &[webhook]), "it may be about another update");
    }

    #[test]
    fn a_read_is_later_only_if_both_clocks_say_so() {
        let database_ahead = PastRead { read_at: Some(at(30)), ..read(600, "FAILED") };
        let replica_ahead = PastRead { read_at: Some(at(600)), ..read(30, "FAILED") };
        let without = PastRead { read_at: None, ..read(600, "FAILED") };
        assert!(is_suspect(VerdictKind::Unknown, &[database_ahead, replica_ahead]), "no one read says so");
        assert!(!is_suspect(VerdictKind::Unknown, &[without]));
    }

    #[test]
    fn a_read_back_clears_its_own_job_unless_that_is_known_as_applied() {
        use ConclusionKind::{Confirming, LastUpdate, NotApplied, ReadAgain, Unsettled};
        for (conclusion, clears) in [
            (NotApplied, true),
            (LastUpdate, true),
            (Confirming, false),
            (ReadAgain, false),
            (Unsettled, false),
        ] {
            let reads = [found(20, THEIRS, conclusion)];
            assert_eq!(is_suspect(VerdictKind::Unknown, &reads), !clears, "{conclusion}");
        }
        assert!(is_suspect(VerdictKind::Unknown, &[found(20, OURS, NotApplied)]), "it is another job's");
        assert!(
            is_suspect(VerdictKind::Unknown, &[found(1, THEIRS, NotApplied)]),
            "it is an earlier attempt's"
        );
        let late = PastUpdate { is_accepted_late: true, ..update(0, VerdictKind::Unknown) };
        let by_person = PastJob {
            evidence: Some(Evidence::Person),
            ..job(THEIRS, State::Accepted, vec![update(0, VerdictKind::Unknown)])
        };
        for job in [job(THEIRS, State::Accepted, vec![late]), by_person] {
            assert!(job.may_be_in_verification(&[found(20, THEIRS, NotApplied)], WINDOW));
            assert!(!job.may_be_in_verification(&[read(62, "FAILED")], WINDOW));
        }
    }

    /// A customer with a job of ours that was tried at 100 s, and another that was tried at 0 s.
    fn customer(theirs: VerdictKind, reads: Vec<PastRead>) -> Customer {
        let ours = job(OURS, State::Unknown, vec![update(100, VerdictKind::Unknown)]);
        let theirs = job(THEIRS, State::Accepted, vec![update(0, theirs)]);
        Customer { jobs: vec![ours, theirs], reads, ..Customer::default() }
    }

    #[test]
    fn an_update_of_the_jobs_own_is_no_other_suspect() {
        assert!(customer(VerdictKind::Rejected, Vec::new()).is_only_suspect(OURS, WINDOW));
        assert!(!customer(VerdictKind::Accepted, Vec::new()).is_only_suspect(OURS, WINDOW));
        assert!(customer(VerdictKind::Accepted, vec![read(50, "FAILED")]).is_only_suspect(OURS, WINDOW));
    }

    #[test]
    fn a_word_from_before_is_the_newest_that_nothing_came_after() {
        let check = |theirs, reads: Vec<PastRead>, expected| {
            let customer = customer(theirs, reads);
            assert_eq!(customer.word_before(OURS, 1, WINDOW), expected, "{customer:?}");
        };
        let words = vec![read(70, "FAILED"), read(90, "UNVERIFIED"), read(110, "VERIFIED")];
        check(VerdictKind::Rejected, words.clone(), Some("UNVERIFIED"));
        check(VerdictKind::Unknown, words.clone(), Some("UNVERIFIED"));
        check(VerdictKind::Unknown, vec![read(50, "FAILED")], None);
        check(VerdictKind::Accepted, vec![read(50, "FAILED")], Some("FAILED"));
        let clocks = vec![PastRead { read_at: Some(at(101)), ..read(90, "FAILED") }];
        check(VerdictKind::Accepted, clocks, None);
        let baseline = vec![PastRead { purpose: Purpose::Baseline, ..read(101, "FAILED") }];
        check(VerdictKind::Accepted, baseline, Some("FAILED"));
    }

    #[test]
    fn a_verification_ends_for_the_only_update_that_may_be_in_one() {
        let check = |theirs, reads: Vec<PastRead>, seconds, expected| {
            let customer = customer(theirs, reads);
            assert_eq!(customer.may_end(OURS, at(seconds), WINDOW), expected, "{customer:?} {seconds}");
        };
        check(VerdictKind::Rejected, Vec::new(), 159, false);
        check(VerdictKind::Rejected, Vec::new(), 160, true);
        check(VerdictKind::Accepted, Vec::new(), 160, false);
        check(VerdictKind::Accepted, vec![read(99, "FAILED")], 160, true);
        check(VerdictKind::Accepted, vec![read(100, "FAILED")], 160, false);
        check(VerdictKind::Unknown, vec![found(20, THEIRS, ConclusionKind::NotApplied)], 160, true);
    }

    #[test]
    fn a_read_that_was_written_down_twice_confirms_once() {
        let read = |seconds, job_id| found(seconds, job_id, ConclusionKind::Confirming);
        let reads = vec![read(120, OURS), read(120, OURS), read(130, THEIRS), read(101, OURS)];
        let customer = customer(VerdictKind::Rejected, reads);
        let (count, last) = customer.confirmations(OURS, 1);
        assert_eq!((count, last.map(|read| read.at)), (1, Some(at(120))));
        assert_eq!(customer.confirmations(OURS, 2).0, 0);
    }
}
