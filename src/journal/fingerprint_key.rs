//! The database knows by which `FINGERPRINT_KEY` it was written: under another one no duplicate would
//! be known, and no history verify.

use sqlx::{PgConnection, PgPool};

use crate::config::SettingFault;
use crate::journal::history::audit::Audit;
use crate::seal::Fingerprinter;

/// Whether a key is the one that this database was written with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum KeyMatch {
    Same,
    Another,
    /// No worker has started here yet.
    FirstUse,
}

/// What is wrong with another key, and what to do.
pub(crate) const ANOTHER_KEY: &str = "is another than the one that this database was written with: no duplicate would be known, \
     and no history verify; give every replica the first one, it is never rotated";

/// Compares the key with the one that this database was written with, and keeps it as that one where
/// there was none. Nothing was written under the key before.
///
/// # Errors
/// A [`SettingFault`] where it is another; else the database's.
pub async fn check_fingerprint_key(pool: &PgPool, fingerprinter: &Fingerprinter) -> anyhow::Result<()> {
    let mut connection = pool.acquire().await?;
    let mut found = match_key(&mut connection, fingerprinter).await?;
    if found == KeyMatch::FirstUse {
        found = match is_contradicted(pool, &mut connection, fingerprinter).await? {
            true => KeyMatch::Another,
            false => {
                keep_key(&mut connection, fingerprinter).await?;
                match_key(&mut connection, fingerprinter).await?
            }
        };
    }
    match found {
        KeyMatch::Same => Ok(()),
        KeyMatch::Another | KeyMatch::FirstUse => {
            Err(SettingFault::new("FINGERPRINT_KEY", ANOTHER_KEY).into())
        }
    }
}

pub(crate) async fn match_key(
    connection: &mut PgConnection,
    fingerprinter: &Fingerprinter,
) -> sqlx::Result<KeyMatch> {
    let mac = sqlx::query_scalar!("-- fingerprint_key\nselect mac from fingerprint_key")
        .fetch_optional(connection)
        .await?;
    Ok(match mac {
        None => KeyMatch::FirstUse,
        Some(mac) if mac == fingerprinter.key_mac() => KeyMatch::Same,
        Some(_) => KeyMatch::Another,
    })
}

/// Whether a history is there that was written with another key: by workers before the table was.
async fn is_contradicted(
    pool: &PgPool,
    connection: &mut PgConnection,
    fingerprinter: &Fingerprinter,
) -> sqlx::Result<bool> {
    let newest = sqlx::query_scalar!(
        "-- newest_history
        with newest as (
            select job_id, entries from submission where ended_at is not null order by ended_at desc limit 1000
        )
        select job_id from newest where entries > 0 limit 1"
    )
    .fetch_optional(connection)
    .await?;
    let Some(job_id) = newest else { return Ok(false) };
    let mut audit = Audit::begin(pool, fingerprinter.clone()).await?;
    Ok(audit.examine(&[job_id]).await?.broken > 0)
}

/// Another replica may be the first one.
async fn keep_key(connection: &mut PgConnection, fingerprinter: &Fingerprinter) -> sqlx::Result<()> {
    sqlx::query!(
        "-- keep_fingerprint_key
        insert into fingerprint_key (mac) values ($1) on conflict do nothing",
        &fingerprinter.key_mac()[..],
    )
    .execute(connection)
    .await?;
    Ok(())
}
