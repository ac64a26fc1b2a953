//! What happened to every job, in Postgres: all SQL, and the sealing of payloads. Each
//! function is one commit, and every write on a claim checks that the claim is still ours.

mod batch;
mod claim;
mod close;
mod error;
mod fingerprint_key;
pub mod history;
mod inspect;
mod maintenance;
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
mod writer;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use sqlx::postgres::PgPool;
use tokio::sync::Semaphore;

use self::batch::{BatchThread, Batches, Change, Written};
pub use self::claim::{ClaimedJob, NextAttempt, Probe};
pub use self::error::{JournalError, is_away, is_refused};
pub use self::fingerprint_key::check_fingerprint_key;
pub use self::history::chain::Head;
pub use self::inspect::inspect;
use self::maintenance::Floors;
pub use self::maintenance::Rescued;
pub use self::pool::{check_session, connect, connect_to_work};
use self::pool::{lead_anew, pool_options, readers};
pub use self::read_back::{ReadClaim, Settled};
pub use self::rows::{Admission, AttemptResult, Claim, Limits, Opened};
pub use self::schema::{MIGRATIONS, check_schema, migrate};
use self::session::Session;
pub use self::verification::{DueVerifications, EventNoted, Pace, VerificationClaim};
use self::writer::Writer;
use crate::config::{DatabaseSettings, Secret};
use crate::seal::{Fingerprinter, Keyring};

/// The server ends a statement after 10 s; this is for a server that says nothing at all.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(15);

/// A connection that does not answer for so long is given up. The network may have forgotten
/// it, and the kernel would go on for a quarter of an hour before it noticed.
const PING_TIME_MAX: Duration = Duration::from_secs(2);

/// A connection that is not made by then is given up, and tried again after a pause.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
const CONNECT_PAUSE: Duration = Duration::from_secs(1);

/// A connection that lay idle for less is taken to be alive.
const IDLE_TIME_MIN: Duration = Duration::from_secs(1);

/// The journal of one worker.
pub struct Journal {
    pool: PgPool,
    worker: String,
    limits: Limits,
    keyring: Keyring,
    fingerprinter: Fingerprinter,
    batches: Writer<Change, Written>,
    /// For reads of unknown outcomes alone.
    reads: PgPool,
    /// Whose turn it is to write down what a read said. Who waits here waits for no connection, which
    /// the database would be blamed for.
    concluding: Semaphore,
    /// How many jobs may be opened alone at once: those of a busy customer leave connections to others.
    opening: Semaphore,
    floors: Floors,
    _writing: BatchThread,
}

impl Journal {
    /// A journal that writes under the name of `worker`. Must be called within a runtime, where
    /// what many jobs want written is gathered.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn new(
        pool: PgPool,
        worker: String,
        limits: Limits,
        keyring: Keyring,
        fingerprinter: Fingerprinter,
    ) -> io::Result<Self> {
        let writing = BatchThread::start()?;
        let thread = writing.handle();
        let batches = Batches::new(pool.clone(), worker.clone(), limits, fingerprinter.clone());
        let batches = Arc::new(batches);
        let connections = pool.options().get_max_connections();
        let readers = readers(connections);
        Ok(Self {
            reads: pool_options(readers, &pool.connect_options(), Session::Work)
                .connect_lazy_with(pool.connect_options().as_ref().clone()),
            concluding: Semaphore::new(readers as usize),
            opening: Semaphore::new((connections as usize / 2).max(1)),
            floors: Floors::default(),
            batches: Writer::start(move |changes: Vec<Change>| {
                let batches = Arc::clone(&batches);
                let written = thread.spawn(async move { batches.commit(&changes).await });
                // Nothing, where that panicked: each goes alone.
                written.map(Result::unwrap_or_default)
            }),
            pool,
            worker,
            limits,
            keyring,
            fingerprinter,
            _writing: writing,
        })
    }

    /// Leads new connections where the setting says by now.
    ///
    /// # Errors
    /// When there is no way in.
    pub async fn lead_anew(
        &self,
        settings: &DatabaseSettings,
        known: &mut Option<Secret>,
    ) -> anyhow::Result<()> {
        lead_anew(&self.pool, settings, known).await?;
        self.reads.set_connect_options(self.pool.connect_options().as_ref().clone());
        Ok(())
    }
}
