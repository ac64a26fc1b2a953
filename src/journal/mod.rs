//! What happened to every job, in Postgres: all SQL, and the sealing of payloads. Each
//! function is one commit, and every write on a claim checks that the claim is still ours.

mod batch;
mod claim;
mod close;
mod configuration;
mod error;
mod events;
pub mod failover;
mod fingerprint_key;
pub mod fleet;
mod floors;
mod handle;
pub mod history;
mod inspect;
mod lineage;
mod maintenance;
mod memory;
mod open;
pub mod pause;
mod pool;
mod read_back;
pub mod replicas;
pub(crate) mod rows;
mod schema;
mod session;
pub(crate) mod statements;
mod verification;
mod words;

pub use self::claim::{ClaimedJob, NextAttempt, Probe};
pub use self::error::{JournalError, is_away, is_refused};
pub(crate) use self::error::{LOCK_NOT_AVAILABLE, READ_ONLY, code_of};
pub use self::events::{TURN, WaitingEvent};
pub use self::fingerprint_key::check_fingerprint_key;
pub use self::handle::Journal;
pub use self::history::chain::Head;
pub(crate) use self::inspect::approval_policy;
pub use self::inspect::{ApprovalPolicy, inspect};
pub use self::maintenance::{NextDue, Rescued};
pub use self::pool::{check_session, connect, connect_for_console, connect_to_work, lead_console_anew};
pub(crate) use self::pool::{read_snapshot, transact};
pub use self::read_back::{ReadClaim, Settled};
pub use self::rows::{Admission, AtEnd, AttemptResult, Limits};
pub use self::schema::{MIGRATIONS, check_schema, migrate};
pub use self::statements::claim::Claim;
pub use self::statements::open::Opened;
pub use self::verification::{DueVerifications, EventNoted, Pace, VerificationClaim};
