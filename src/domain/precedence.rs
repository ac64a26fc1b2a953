//! One customer at a time, newest wins: what a job that has taken its customer's slot
//! may do, given the customer's other jobs.

use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;

use super::state::State;
use super::suspicion::{Customer, FATE_UNKNOWN, PastJob, PastRead, PastUpdate};

/// Another job of the same customer that may matter.
#[derive(Clone, Debug)]
pub struct Sibling {
    pub job_id: Uuid,
    /// Whether it was asked for later than ours.
    pub is_newer: bool,
    /// Whether it asks for the same as ours.
    pub has_same_content: bool,
    pub standing: Standing,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// It will be sent, or is being sent.
    InMotion,
    /// The provider applied it; `in_verification` until a read has shown another status.
    Accepted {
        /// Whether its verification may be running.
        in_verification: bool,
    },
    /// It ended with an attempt that may have been applied.
    FateUnknown,
}

/// What the job may do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Decision {
    Go,
    /// It waits behind a newer one.
    Wait,
    /// A newer one was accepted.
    Superseded {
        by: Uuid,
    },
    /// Another one with the same content was, or may have been, applied.
    Duplicate {
        of: Uuid,
    },
    /// A newer one may have been applied, and nobody knows.
    NewerFateUnknown {
        newer: Uuid,
    },
    /// To send it again might take what may be the customer's last update.
    LastUpdate,
}

/// A job that asks for its customer's slot.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    pub job_id: Uuid,
    /// By which it is ordered among its customer's jobs, as [`PastJob::age_key`].
    pub age_key: (OffsetDateTime, OffsetDateTime, Uuid),
    pub content_hmac: Option<&'a [u8]>,
    /// Whether an attempt of it was ever of unknown outcome.
    pub is_resend: bool,
}

/// What a job may do that has its customer's slot, by all that the records say of the customer. `window`
/// is how long after its end an attempt of unknown outcome may still be applied, `limit` how many updates
/// the provider allows.
pub fn decide(asking: &Asking<'_>, customer: &Customer, window: Duration, limit: u32) -> Decision {
    match rule(&siblings(asking, customer, window), asking.is_resend) {
        Decision::Go if asking.is_resend && !customer.budget(limit).allows_resend() => Decision::LastUpdate,
        decision => decision,
    }
}

/// The customer's other jobs that may matter, the newest first.
fn siblings(asking: &Asking<'_>, customer: &Customer, window: Duration) -> Vec<Sibling> {
    let sibling = |job: &PastJob| {
        let sibling = Sibling {
            job_id: job.job_id,
            is_newer: job.age_key() > asking.age_key,
            has_same_content: job.content_hmac.is_some()
                && job.content_hmac.as_deref() == asking.content_hmac,
            standing: standing(job, &customer.reads, window)?,
        };
        Some((job.age_key(), sibling))
    };
    let others = customer.jobs.iter().filter(|job| job.job_id != asking.job_id).filter_map(sibling);
    // What is archived is in verification no more, so its content does not matter.
    let archived = customer.archived.newest.map(|age_key| {
        let (_, _, job_id) = age_key;
        let standing = Standing::Accepted { in_verification: false };
        (age_key, Sibling { job_id, is_newer: age_key > asking.age_key, has_same_content: false, standing })
    });
    let mut siblings: Vec<_> = others.chain(archived).collect();
    siblings.sort_by_key(|(age_key, _)| std::cmp::Reverse(*age_key));
    siblings.into_iter().map(|(_, sibling)| sibling).collect()
}

/// How a job stands in another's way; `None` if it does not.
fn standing(job: &PastJob, reads: &[PastRead], window: Duration) -> Option<Standing> {
    match job.state {
        State::Submitting | State::Waiting | State::Unknown => Some(Standing::InMotion),
        _ if job.was_accepted() => {
            // Of what no row dates, no read is later.
            let is_dated = job.updates.iter().any(PastUpdate::may_have_been_applied);
            let in_verification = !is_dated || job.may_be_in_verification(reads, window);
            Some(Standing::Accepted { in_verification })
        }
        State::NeedsReview if job.reason_code.as_deref() == Some(FATE_UNKNOWN) => Some(Standing::FateUnknown),
        State::NeedsReview
        | State::Accepted
        | State::Rejected
        | State::Invalid
        | State::Superseded
        | State::Duplicate
        | State::Exhausted => None,
    }
}

/// Decides. A job that is sent again after an attempt of unknown outcome is nobody's duplicate.
fn rule(siblings: &[Sibling], is_resend: bool) -> Decision {
    let newer = |wanted: fn(Standing) -> bool| {
        siblings.iter().find(move |sibling| sibling.is_newer && wanted(sibling.standing))
    };
    if let Some(sibling) = newer(|standing| matches!(standing, Standing::Accepted { .. })) {
        return Decision::Superseded { by: sibling.job_id };
    }
    let original = siblings.iter().find(|sibling| {
        let may_be_applied =
            matches!(sibling.standing, Standing::Accepted { in_verification: true } | Standing::FateUnknown);
        sibling.has_same_content && may_be_applied
    });
    if let Some(sibling) = original.filter(|_| !is_resend) {
        return Decision::Duplicate { of: sibling.job_id };
    }
    if let Some(sibling) = newer(|standing| standing == Standing::FateUnknown) {
        return Decision::NewerFateUnknown { newer: sibling.job_id };
    }
    match newer(|standing| standing == Standing::InMotion) {
        Some(_) => Decision::Wait,
        None => Decision::Go,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::state::VerdictKind;

    const VERIFYING: Standing = Standing::Accepted { in_verification: true };
    const VERIFIED: Standing = Standing::Accepted { in_verification: false };

    fn sibling(is_newer: bool, has_same_content: bool, standing: Standing) -> Sibling {
        Sibling { job_id: Uuid::from_u128(7), is_newer, has_same_content, standing }
    }

    fn check(siblings: &[Sibling], expected: Decision) {
        assert_eq!(rule(siblings, false), expected, "{siblings:?}");
    }

    #[test]
    fn the_newest_goes_and_older_ones_make_way_only_for_one_that_was_accepted() {
        let id = Uuid::from_u128(7);
        check(&[], Decision::Go);
        check(&[sibling(true, false, Standing::InMotion)], Decision::Wait);
        check(&[sibling(true, false, VERIFIED)], Decision::Superseded { by: id });
        check(&[sibling(true, false, VERIFYING)], Decision::Superseded { by: id });
        check(&[sibling(true, false, Standing::FateUnknown)], Decision::NewerFateUnknown { newer: id });
        for standing in [Standing::InMotion, VERIFIED, VERIFYING, Standing::FateUnknown] {
            check(&[sibling(false, false, standing)], Decision::Go);
        }
    }

    #[test]
    fn the_same_content_is_not_sent_while_it_may_have_been_applied() {
        let of = Uuid::from_u128(7);
        check(&[sibling(false, true, VERIFYING)], Decision::Duplicate { of });
        check(&[sibling(false, true, Standing::FateUnknown)], Decision::Duplicate { of });
        check(&[sibling(true, true, Standing::FateUnknown)], Decision::Duplicate { of });
        check(&[sibling(false, true, VERIFIED)], Decision::Go);
        check(&[sibling(false, true, Standing::InMotion)], Decision::Go);
        assert_eq!(rule(&[sibling(false, true, VERIFYING)], true), Decision::Go);
    }

    #[test]
    fn what_was_accepted_late_stands_in_the_way_however_a_person_ended_it() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let standing_of = |state, is_accepted_late| {
            let update = PastUpdate {
                number: 1,
                verdict: Some(VerdictKind::Unknown),
                is_accepted_late,
                begun_at: now,
                signed_at: now,
                ended_at: Some(now),
            };
            let job = PastJob {
                job_id: Uuid::from_u128(7),
                state,
                reason_code: None,
                evidence: None,
                requested_at: now,
                received_at: now,
                content_hmac: None,
                attempts: 1,
                updates: vec![update],
            };
            standing(&job, &[], Duration::ZERO)
        };
        for state in [State::Rejected, State::Exhausted, State::NeedsReview, State::Superseded] {
            assert_eq!(standing_of(state, true), Some(VERIFYING), "{state:?}");
            assert_eq!(standing_of(state, false), None, "{state:?}");
        }
        assert_eq!(standing_of(State::Waiting, true), Some(Standing::InMotion), "its end is on its way");
    }

    #[test]
    fn a_job_is_sent_again_only_where_that_leaves_the_last_update_alone() {
        let customer = |updates_elsewhere| Customer { updates_elsewhere, ..Customer::default() };
        let check = |is_resend, updates_elsewhere, expected| {
            let id = Uuid::from_u128(7);
            let age_key = (OffsetDateTime::UNIX_EPOCH, OffsetDateTime::UNIX_EPOCH, id);
            let asking = Asking { job_id: id, age_key, content_hmac: None, is_resend };
            assert_eq!(decide(&asking, &customer(updates_elsewhere), Duration::ZERO, 3), expected);
        };
        check(true, 1, Decision::Go);
        check(true, 2, Decision::LastUpdate);
        check(false, 2, Decision::Go);
    }
}
