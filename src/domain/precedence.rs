//! One customer at a time, newest wins: what a job that has taken its customer's slot
//! may do, given the customer's other jobs.

use uuid::Uuid;

/// Another job of the same customer that may matter.
#[derive(Clone, Debug)]
pub struct Rival {
    /// The job.
    pub job_id: Uuid,
    /// Whether it was asked for later than ours.
    pub is_newer: bool,
    /// Whether it asks for the same as ours.
    pub has_same_content: bool,
    /// Where it stands.
    pub standing: Standing,
}

/// Where a rival stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// It will be sent, or is being sent.
    InMotion,
    /// The provider applied it; `in_verification` until a look has shown another status.
    Accepted {
        /// Whether its verification may be running.
        in_verification: bool,
    },
    /// It ended with an attempt that may have been applied.
    FateUnknown,
}

/// What the job may do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ruling {
    /// It goes ahead.
    Go,
    /// It waits behind a newer one.
    Wait,
    /// A newer one was accepted.
    Superseded {
        /// Which.
        by: Uuid,
    },
    /// Another one with the same content was, or may have been, applied.
    Duplicate {
        /// Which.
        of: Uuid,
    },
    /// A newer one may have been applied, and nobody knows.
    NewerFateUnknown {
        /// Which.
        newer: Uuid,
    },
}

/// Decides. A job that is sent again after an attempt of unknown fate is nobody's duplicate.
pub fn rule(rivals: &[Rival], is_resend: bool) -> Ruling {
    let newer = |wanted: fn(Standing) -> bool| {
        rivals.iter().find(move |rival| rival.is_newer && wanted(rival.standing))
    };
    if let Some(rival) = newer(|standing| matches!(standing, Standing::Accepted { .. })) {
        return Ruling::Superseded { by: rival.job_id };
    }
    let original = rivals.iter().find(|rival| {
        let may_be_applied =
            matches!(rival.standing, Standing::Accepted { in_verification: true } | Standing::FateUnknown);
        rival.has_same_content && may_be_applied
    });
    if let Some(rival) = original.filter(|_| !is_resend) {
        return Ruling::Duplicate { of: rival.job_id };
    }
    if let Some(rival) = newer(|standing| standing == Standing::FateUnknown) {
        return Ruling::NewerFateUnknown { newer: rival.job_id };
    }
    match newer(|standing| standing == Standing::InMotion) {
        Some(_) => Ruling::Wait,
        None => Ruling::Go,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERIFYING: Standing = Standing::Accepted { in_verification: true };
    const VERIFIED: Standing = Standing::Accepted { in_verification: false };

    fn rival(is_newer: bool, has_same_content: bool, standing: Standing) -> Rival {
        Rival { job_id: Uuid::from_u128(7), is_newer, has_same_content, standing }
    }

    fn check(rivals: &[Rival], expected: Ruling) {
        assert_eq!(rule(rivals, false), expected, "{rivals:?}");
    }

    #[test]
    fn the_newest_goes_and_older_ones_make_way_only_for_one_that_was_accepted() {
        let id = Uuid::from_u128(7);
        check(&[], Ruling::Go);
        check(&[rival(true, false, Standing::InMotion)], Ruling::Wait);
        check(&[rival(true, false, VERIFIED)], Ruling::Superseded { by: id });
        check(&[rival(true, false, VERIFYING)], Ruling::Superseded { by: id });
        check(&[rival(true, false, Standing::FateUnknown)], Ruling::NewerFateUnknown { newer: id });
        for standing in [Standing::InMotion, VERIFIED, VERIFYING, Standing::FateUnknown] {
            check(&[rival(false, false, standing)], Ruling::Go);
        }
    }

    #[test]
    fn the_same_content_is_not_sent_while_it_may_have_been_applied() {
        let of = Uuid::from_u128(7);
        check(&[rival(false, true, VERIFYING)], Ruling::Duplicate { of });
        check(&[rival(false, true, Standing::FateUnknown)], Ruling::Duplicate { of });
        check(&[rival(true, true, Standing::FateUnknown)], Ruling::Duplicate { of });
        check(&[rival(false, true, VERIFIED)], Ruling::Go);
        check(&[rival(false, true, Standing::InMotion)], Ruling::Go);
        assert_eq!(rule(&[rival(false, true, VERIFYING)], true), Ruling::Go);
    }
}
