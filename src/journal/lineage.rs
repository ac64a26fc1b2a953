//! Which of its histories a server writes: it goes on with another one once a standby was promoted, or a
//! backup restored, and what was committed meanwhile may be missing there. No statement of the worker's
//! runs on another history, nor on a server that was started anew, before its rows were compared with
//! what this process remembers.

use std::sync::Once;

use parking_lot::{Mutex, const_mutex};
use sqlx::postgres::PgConnection;
use sqlx::{Executor as _, Row as _};
use tracing::warn;

use crate::journal::error::{READ_ONLY, code_of, needs_person};

/// Asked without a prepared statement, which a pooler by transaction breaks before it is found out.
const ASK: &str = "
    select (pg_control_system()).system_identifier::text as system, pg_postmaster_start_time()::text as started_at,
        case when not pg_is_in_recovery() then left(pg_walfile_name(pg_current_wal_lsn()), 8) end as timeline";

/// What no standby does: it answers that it is read-only.
const REFUSED_BY_STANDBY: &str = "notify kyc_worker";

/// A history, and since when its server runs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Lineage {
    /// The cluster's identifier and its timeline, as rows have them.
    pub name: String,
    started_at: String,
}

impl Lineage {
    /// Which one the server writes; `None` where it does not say.
    ///
    /// # Errors
    /// When it is a standby, which writes none, or does not answer.
    pub async fn of(connection: &mut PgConnection) -> sqlx::Result<Option<Self>> {
        let row = match connection.fetch_one(ASK).await {
            Ok(row) => row,
            Err(error) if needs_person(&error) => {
                static TOLD: Once = Once::new();
                TOLD.call_once(|| warn!(%error, "the database does not tell its timeline: a failover that loses commits is not noticed"));
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let (system, started_at): (String, String) = (row.try_get("system")?, row.try_get("started_at")?);
        let Some(timeline) = row.try_get::<Option<String>, _>("timeline")? else {
            connection.execute(REFUSED_BY_STANDBY).await?;
            return Err(sqlx::Error::Protocol("the server stopped being a standby just now".to_owned()));
        };
        Ok(Some(Self { name: format!("{system}/{timeline}"), started_at }))
    }
}

/// The same, for `check`.
pub(crate) const UNTOLD: &str =
    "the database does not tell its timeline: a failover that loses commits is not noticed";

/// Where the worker's rows are known to stand. Process-wide, as a pool's hooks know nothing of its journal.
static GROUND: Mutex<Ground> = const_mutex(Ground { known: None, is_sure: true });

struct Ground {
    known: Option<Lineage>,
    /// Whether every connection so far has led there.
    is_sure: bool,
}

/// Finds out where a new connection leads, and whether that is where all the others lead. Whoever is lent
/// one is told by [`check`].
pub(crate) async fn note(connection: &mut PgConnection) -> sqlx::Result<bool> {
    let found = Lineage::of(connection).await;
    let mut ground = GROUND.lock();
    let is_sure = match found {
        Ok(Some(found)) => *ground.known.get_or_insert_with(|| found.clone()) == found,
        Ok(None) => true,
        // A standby: it may be promoted while the connection lasts.
        Err(error) if code_of(&error) == READ_ONLY => false,
        Err(error) => return Err(error),
    };
    ground.is_sure &= is_sure;
    Ok(is_sure)
}

/// Whether a connection may be used that is about to be.
///
/// # Errors
/// When it leads to a standby, to another history, or to a server that was started anew.
pub(crate) async fn check(connection: &mut PgConnection) -> sqlx::Result<()> {
    if GROUND.lock().is_sure {
        return Ok(());
    }
    let Some(found) = Lineage::of(connection).await? else { return Ok(()) };
    let mut ground = GROUND.lock();
    if *ground.known.get_or_insert_with(|| found.clone()) == found {
        ground.is_sure = true;
        return Ok(());
    }
    let what = "the server was started anew or replaced; what it has is compared first";
    Err(sqlx::Error::Protocol(what.to_owned()))
}

/// Whether a connection has led elsewhere, so that rows must be compared.
pub(crate) fn is_unsure() -> bool {
    !GROUND.lock().is_sure
}

/// Where the worker's rows stand, as far as it is known.
pub(crate) fn known() -> Option<Lineage> {
    GROUND.lock().known.clone()
}

/// What was compared is what the worker goes on with.
pub(crate) fn adopt(lineage: Option<Lineage>) {
    *GROUND.lock() = Ground { known: lineage, is_sure: true };
}
