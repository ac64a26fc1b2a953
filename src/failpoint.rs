//! Points at which a test can make the worker crash, stop or panic. Compiled in with the
//! feature `failpoints` alone, which no release build has.
//!
//! `KYC_FAILPOINT=name=action` or `name=action@n`: at the `n`-th time (the first, unless
//! told) that the point is reached, the process is killed (`kill`), stopped until SIGCONT
//! (`stop`), or panics (`panic`); or it finds that its machine was suspended (`suspend`) for so
//! long that every lease is over.

use std::time::Duration;

macro_rules! points {
    ($($point:ident = $name:literal),* $(,)?) => {
        /// A step at which a process can end. A test says of each what must be true after it.
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub enum Point { $($point),* }

        /// Every point, in the order of a job's way.
        pub const ALL: &[Point] = &[$(Point::$point),*];

        impl Point {
            /// What `KYC_FAILPOINT` calls it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$point => $name),* }
            }
        }
    };
}

points! {
    Parsed = "parsed",
    Opened = "opened",
    Received = "received",
    Claimed = "claimed",
    Checked = "checked",
    Signed = "signed",
    Gate = "gate",
    Answered = "answered",
    Concluded = "concluded",
    ReadClaimed = "read-claimed",
    ReadAnswered = "read-answered",
    ReadConcluded = "read-concluded",
    VerificationClaimed = "verification-claimed",
    VerificationAnswered = "verification-answered",
    RequeueConfirmed = "requeue-confirmed",
    EventsTaken = "events-taken",
    EventsConfirmed = "events-confirmed",
    EventsRemoved = "events-removed",
    ProposalApproved = "proposal-approved",
    ArchivePaged = "archive-paged",
    ArchiveWritten = "archive-written",
    ArchiveNamed = "archive-named",
    ArchiveMarked = "archive-marked",
    ArchiveRemoved = "archive-removed",
    ArchiveRewritten = "archive-rewritten",
    ArchiveKnown = "archive-known",
    ArchiveListed = "archive-listed",
}

/// Does what the environment asks for at this point.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn reach(_point: Point) {}

/// How long the machine was suspended, for clocks that go on meanwhile.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn suspended() -> Duration {
    Duration::ZERO
}

/// How long the machine was suspended, for clocks that go on meanwhile.
#[cfg(feature = "failpoints")]
pub fn suspended() -> Duration {
    Duration::from_secs(SUSPENDED_SECONDS.load(std::sync::atomic::Ordering::Acquire))
}

#[cfg(feature = "failpoints")]
static SUSPENDED_SECONDS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// Does what the environment asks for at this point.
#[cfg(feature = "failpoints")]
pub fn reach(point: Point) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    use nix::sys::signal::{Signal, raise};

    struct Asked {
        point: Point,
        action: String,
        countdown: AtomicU32,
    }

    static ASKED: LazyLock<Option<Asked>> = LazyLock::new(|| {
        #[expect(clippy::disallowed_methods, reason = "no setting: only tests know it")]
        let text = std::env::var("KYC_FAILPOINT").ok()?;
        let (name, action) = text.split_once('=')?;
        let (action, count) = action.split_once('@').unwrap_or((action, "1"));
        let countdown = AtomicU32::new(count.parse().ok()?);
        let Some(point) = ALL.iter().copied().find(|point| point.name() == name) else {
            panic!("there is no failpoint {name}");
        };
        Some(Asked { point, action: action.to_owned(), countdown })
    });

    let Some(asked) = ASKED.as_ref().filter(|asked| asked.point == point) else { return };
    let name = point.name();
    let step = |left: u32| left.checked_sub(1);
    if asked.countdown.fetch_update(Ordering::AcqRel, Ordering::Acquire, step) != Ok(1) {
        return;
    }
    let signal = match asked.action.as_str() {
        "kill" => Signal::SIGKILL,
        "stop" => Signal::SIGSTOP,
        "suspend" => return SUSPENDED_SECONDS.store(84, Ordering::Release),
        _ => panic!("failpoint {name}"),
    };
    if raise(signal).is_err() {
        panic!("failpoint {name}: the signal was not sent");
    }
}
