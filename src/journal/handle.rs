//! What the journal's functions share: the pools, the keys, the limits, and whose turn it is.

use std::io;

use sqlx::postgres::PgPool;
use tokio::sync::Semaphore;

use crate::config::{DatabaseSettings, Secret};
use crate::journal::batch::Batcher;
use crate::journal::floors::Floors;
use crate::journal::memory::Memory;
use crate::journal::pool::{lead_anew, pool_options, readers};
use crate::journal::rows::Limits;
use crate::journal::session::Session;
use crate::metrics::Connections;
use crate::seal::{Fingerprinter, Keyring};

/// The journal of one worker.
pub struct Journal {
    pub(super) pool: PgPool,
    pub(super) worker: String,
    pub(super) limits: Limits,
    pub(super) keyring: Keyring,
    pub(super) fingerprinter: Fingerprinter,
    pub(super) batcher: Batcher,
    /// For reads of unknown outcomes alone.
    pub(super) reads: PgPool,
    /// Whose turn it is to write down what a read said. Who waits here waits for no connection, which
    /// the database would be blamed for.
    pub(super) concluding: Semaphore,
    /// How many jobs may be opened alone at once: those of a busy customer leave connections to others.
    pub(super) opening: Semaphore,
    pub(super) floors: Floors,
    /// What a failover may lose.
    pub(super) memory: Memory,
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
        let connections = pool.options().get_max_connections();
        let readers = readers(connections);
        Ok(Self {
            batcher: Batcher::start(pool.clone(), worker.clone(), limits, fingerprinter.clone())?,
            reads: pool_options(readers, &pool.connect_options(), Session::Work)
                .connect_lazy_with(pool.connect_options().as_ref().clone()),
            concluding: Semaphore::new(readers as usize),
            opening: Semaphore::new((connections as usize / 2).max(1)),
            floors: Floors::default(),
            memory: Memory::default(),
            pool,
            worker,
            limits,
            keyring,
            fingerprinter,
        })
    }

    /// The connections of both pools.
    pub fn connections(&self) -> Connections {
        let pools = [&self.pool, &self.reads];
        let idle: usize = pools.iter().map(|pool| pool.num_idle()).sum();
        let open: usize = pools.iter().map(|pool| pool.size() as usize).sum();
        let max = pools.iter().map(|pool| pool.options().get_max_connections()).sum();
        // The two are not counted at one instant.
        Connections { used: open.saturating_sub(idle), idle, max }
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
