//! Waits for the database at the start, and follows it to where the setting leads later.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::config::{Checked, DatabaseSettings};
use crate::context::Context;
use crate::control::intake::Reason;
use crate::journal;

/// Between two tries to reach the database at start.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The same, where a person must let us in: a server may lock out who fails too often.
const REFUSED_DELAY: Duration = Duration::from_secs(5);

/// Opens the database, waiting for it as long as it takes; its URL is read anew for each try. `None`
/// when stopped meanwhile.
pub async fn open(
    settings: &DatabaseSettings,
    checked: &Checked,
    migrate: bool,
    stopping: &CancellationToken,
) -> anyhow::Result<Option<PgPool>> {
    let mut logged = None;
    loop {
        let error = match try_to_open(settings, checked, migrate).await {
            Ok(pool) => return Ok(Some(pool)),
            // It may go away between two statements as well.
            Err(error) if journal::is_away(&error) || journal::is_refused(&error) => error,
            Err(error) => return Err(error),
        };
        let is_refused = journal::is_refused(&error);
        if logged != Some(is_refused) {
            let error = format!("{error:#}");
            match is_refused {
                true => error!(error, "waiting for the database until a person has fixed this"),
                false => warn!(error, "waiting for the database"),
            }
            logged = Some(is_refused);
        }
        let delay = if is_refused { REFUSED_DELAY } else { RETRY_DELAY };
        if stopping.run_until_cancelled(sleep(delay)).await.is_none() {
            return Ok(None);
        }
    }
}

/// Connects, brings the schema up to date where that was asked for, and sees that this worker may
/// write here.
async fn try_to_open(
    settings: &DatabaseSettings,
    checked: &Checked,
    migrate: bool,
) -> anyhow::Result<PgPool> {
    let pool = journal::connect_to_work(settings, &settings.url()?).await?;
    journal::check_session(&pool, settings.allow_unsafe_database).await?;
    if migrate {
        journal::migrate(&pool).await?;
    }
    journal::check_schema(&pool).await?;
    journal::check_fingerprint_key(&pool, &checked.fingerprinter).await?;
    Ok(pool)
}

/// While the database is away or refuses us: finds out where the setting leads by now, until the
/// worker stops. Its password may have been rotated, and its host have another address.
pub async fn follow(settings: DatabaseSettings, context: Arc<Context>) {
    let mut known = None;
    let mut is_open = context.intake.subscribe();
    let stopping = context.stopping.clone();
    loop {
        let paused = async { is_open.wait_for(|is_open| !is_open).await.is_ok() };
        if stopping.run_until_cancelled(paused).await != Some(true) {
            return;
        }
        if context.intake.is_paused_for(Reason::Database)
            && let Err(error) = context.journal.lead_anew(&settings, &mut known).await
        {
            debug!(error = format!("{error:#}"), "the database still refuses this worker");
        }
        if stopping.run_until_cancelled(sleep(RETRY_DELAY)).await.is_none() {
            return;
        }
    }
}
