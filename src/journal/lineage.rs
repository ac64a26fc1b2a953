//! Which of its histories a server writes: it goes on with another one once a standby was promoted, or a
//! backup restored, and what was committed meanwhile may be missing there. No statement of the worker's
//! runs on another history, nor on a server that was started anew, before its rows were compared with
//! what this process remembers.

use std::sync::Once;

use parking_lot::{Mutex, const_mutex};
use sqlx::postgres::PgConnection;
use sqlx::{Executor as _, Row as _};
use tokio::time::Instant;
use tracing::warn;

use crate::journal::error::{READ_ONLY, code_of};

/// Asked without a prepared statement, which a pooler by transaction breaks before it is found out.
const ASK: &str = "
    select (pg_control_system()).system_identifier::text as system, pg_postmaster_start_time()::text as started_at,
        case when not pg_is_in_recovery() then left(pg_walfile_name(pg_current_wal_lsn()), 8) end as timeline";

/// What no standby does: it answers that it is read-only.
const REFUSED_BY_STANDBY: &str = "notify kyc_worker";

/// A history, and since when its server runs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Lineage {
    /// The cluster's identifier and its timeline.
    pub history: String,
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
            Err(error) if UNTELLING.contains(&&*code_of(&error)) => {
                static TOLD: Once = Once::new();
                TOLD.call_once(|| {
                    warn!(%error, "the database does not tell its timeline: a failover that loses commits is not noticed");
                });
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let (system, started_at): (String, String) = (row.try_get("system")?, row.try_get("started_at")?);
        let Some(timeline) = row.try_get::<Option<String>, _>("timeline")? else {
            connection.execute(REFUSED_BY_STANDBY).await?;
            return Err(sqlx::Error::Protocol("the server stopped being a standby just now".to_owned()));
        };
        Ok(Some(Self { history: format!("{system}/{timeline}"), started_at }))
    }

    /// As rows have it: the history, an at sign, and since when the server runs.
    pub fn text(&self) -> String {
        format!("{}@{}", self.history, self.started_at)
    }
}

/// No right to ask, or nothing to ask: SQLSTATE `insufficient_privilege`, `undefined_function`,
/// `feature_not_supported`.
const UNTELLING: [&str; 3] = ["42501", "42883", "0A000"];

/// What [`Lineage::of`] warns of, for `check`.
pub(crate) const UNTOLD: &str =
    "the database does not tell its timeline: a failover that loses commits is not noticed";

/// Where the worker's rows are known to stand. Process-wide, as a pool's hooks know nothing of its journal.
static GROUND: Mutex<Ground> = const_mutex(NOWHERE);

const NOWHERE: Ground = Ground { known: None, is_sure: true, adopted_at: None };

struct Ground {
    known: Option<Lineage>,
    /// Whether every connection has led there since it was adopted.
    is_sure: bool,
    adopted_at: Option<Instant>,
}

/// Forgets where rows stand: this process has written none.
pub(crate) fn forget() {
    *GROUND.lock() = NOWHERE;
}

/// Finds out where a new connection leads, and whether that is where all the others lead. Whoever is lent
/// one is told by [`check`].
pub(crate) async fn note(connection: &mut PgConnection) -> sqlx::Result<bool> {
    let found = Lineage::of(connection).await;
    let mut ground = GROUND.lock();
    let is_known = match (found, &ground.known) {
        (Ok(Some(found)), None) => {
            // This process has committed nothing yet.
            *ground = Ground { known: Some(found), ..NOWHERE };
            true
        }
        (Ok(Some(found)), Some(known)) => found == *known,
        (Ok(None), _) => true,
        // A standby: it may be promoted while the connection lasts.
        (Err(error), _) if code_of(&error) == READ_ONLY => false,
        (Err(error), _) => return Err(error),
    };
    ground.is_sure &= is_known;
    Ok(is_known)
}

/// Whether a connection may be used that is about to be.
///
/// # Errors
/// When some connection led elsewhere, and nothing was compared since; or to a standby.
pub(crate) async fn check(connection: &mut PgConnection) -> sqlx::Result<()> {
    if GROUND.lock().is_sure {
        return Ok(());
    }
    // A standby says so itself.
    Lineage::of(connection).await?;
    let what = "the server was started anew or replaced; what it has is compared first";
    Err(sqlx::Error::Protocol(what.to_owned()))
}

/// Whether a connection has led elsewhere, so that rows must be compared.
pub(crate) fn is_unsure() -> bool {
    !GROUND.lock().is_sure
}

/// Whether a connection that was made then may lead to a server that another has replaced since.
pub(crate) fn is_outdated(made_at: Instant) -> bool {
    GROUND.lock().adopted_at.is_some_and(|adopted_at| made_at < adopted_at)
}

/// Which server the worker's commits count at, by when it was adopted. A commit that was answered after
/// another was adopted was made nowhere.
pub(crate) fn adopted_at() -> Option<Instant> {
    GROUND.lock().adopted_at
}

/// Whether no other server was adopted since.
///
/// # Errors
/// When one was: what was committed meanwhile was committed elsewhere.
pub(crate) fn check_unreplaced(adopted_at: Option<Instant>) -> sqlx::Result<()> {
    if GROUND.lock().adopted_at == adopted_at {
        return Ok(());
    }
    Err(sqlx::Error::Protocol("the server was replaced while it committed".to_owned()))
}

/// Where the worker's rows stand, as far as it is known.
pub(crate) fn known() -> Option<Lineage> {
    GROUND.lock().known.clone()
}

/// What was compared is what the worker goes on with, over new connections.
pub(crate) fn adopt(lineage: Option<Lineage>) {
    *GROUND.lock() = Ground { known: lineage, is_sure: true, adopted_at: Some(Instant::now()) };
}
