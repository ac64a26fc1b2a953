//! The schema: brought up to this version's, and checked to be.

use std::sync::LazyLock;
use std::time::Duration;

use anyhow::Context as _;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnection, PgPool};
use tokio::time::sleep;
use tracing::warn;

use crate::journal::error::LOCK_NOT_AVAILABLE;

/// The migrations, embedded, so that the binary alone can set up a database. Those of a
/// later release may be there already: replicas of two releases run side by side in an upgrade.
pub static MIGRATIONS: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrations = sqlx::migrate!();
    migrations.set_ignore_missing(true);
    migrations
});

/// A migration that waits for a lock has every later statement wait behind it: it gives up soon, and
/// tries again after a pause in which those go on. It does so as often as makes two minutes.
const MIGRATION_LOCK_TIMEOUT: &str = "set lock_timeout = '1s'";
const MIGRATION_PAUSE: Duration = Duration::from_secs(1);
const MIGRATION_TRIES: u32 = 60;

/// Brings the schema up to this version's, and gives the roles of deploy/roles.sql their rights,
/// where they are there. Waits for another that does the same.
///
/// # Errors
/// When a migration fails, or gets none of its locks in two minutes; those before it stay.
pub async fn migrate(pool: &PgPool) -> anyhow::Result<()> {
    let mut connection = pool.acquire().await?;
    // A migration may take longer than any statement of the worker's.
    sqlx::query("set statement_timeout = 0").execute(&mut *connection).await?;
    sqlx::query(MIGRATION_LOCK_TIMEOUT).execute(&mut *connection).await?;
    let mut tries = 1;
    let migrated = loop {
        match migrate_over(&mut connection).await {
            Err(error) if is_locked_out(&error) && tries < MIGRATION_TRIES => {
                if tries == 1 {
                    warn!(error = format!("{error:#}"), "a migration waits for a lock, trying again");
                }
                tries += 1;
                sleep(MIGRATION_PAUSE).await;
            }
            Err(error) if is_locked_out(&error) => {
                break Err(error.context(
                    "a migration gets no lock; does another one run, or is a long transaction open \
                     (select * from pg_stat_activity where xact_start is not null)?",
                ));
            }
            migrated => break migrated,
        }
    };
    // Not given back to the pool: its time limits are others.
    connection.detach();
    migrated
}

async fn migrate_over(connection: &mut PgConnection) -> anyhow::Result<()> {
    MIGRATIONS.run(&mut *connection).await.context("a migration failed")?;
    let granting = sqlx::raw_sql(include_str!("grants.sql")).execute(&mut *connection);
    granting.await.context("the roles of deploy/roles.sql could not be given their rights")?;
    Ok(())
}

fn is_locked_out(error: &anyhow::Error) -> bool {
    let codes = error.chain().filter_map(|cause| cause.downcast_ref()).map(|error: &sqlx::Error| {
        error.as_database_error().and_then(|error| error.code()).unwrap_or_default()
    });
    codes.into_iter().any(|code| code == LOCK_NOT_AVAILABLE)
}

/// Checks that the schema is this version's or a later one (rolling upgrades).
///
/// # Errors
/// When it is older, or not there at all.
pub async fn check_schema(pool: &PgPool) -> anyhow::Result<()> {
    let needed = needed_version();
    match schema_version(&mut *pool.acquire().await?).await? {
        Some(version) if version >= needed => Ok(()),
        Some(version) => anyhow::bail!(
            "DATABASE_URL: the schema is at version {version}, this worker needs {needed}; run `kyc-worker migrate`"
        ),
        None => anyhow::bail!("DATABASE_URL: the database has no tables of ours; run `kyc-worker migrate`"),
    }
}

/// The schema's version that this worker was written for.
pub(crate) fn needed_version() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// The schema's version, if there is one.
pub(crate) async fn schema_version(connection: &mut PgConnection) -> sqlx::Result<Option<i64>> {
    let exists: bool = sqlx::query_scalar!(
        r#"-- migrations_exist
        select to_regclass('_sqlx_migrations') is not null as "exists!""#
    )
    .fetch_one(&mut *connection)
    .await?;
    if !exists {
        return Ok(None);
    }
    sqlx::query_scalar("-- schema_version\nselect max(version) from _sqlx_migrations where success")
        .fetch_one(connection)
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a migration may do to a table that replicas work on: nothing that reads it whole under a
    /// lock, or rewrites it. CONTRIBUTING.md ("Migrations") says how each is done instead.
    #[test]
    fn migrations_hold_no_lock_for_longer_than_a_moment() {
        for migration in MIGRATIONS.iter() {
            let faults = migration_faults(&migration.sql);
            assert!(faults.is_empty(), "{} {}: {faults:?}", migration.version, migration.description);
        }
    }

    #[test]
    fn a_migration_that_would_hold_a_lock_is_told() {
        let check = |sql: &str, expected: usize| {
            assert_eq!(migration_faults(sql).len(), expected, "{sql}: {:?}", migration_faults(sql));
        };
        check("create index i on submission (x)", 1);
        check("-- no-transaction\ncreate index concurrently i on submission (x)", 0);
        check("create index concurrently i on submission (x)", 1);
        check("create table t (x int); create unique index i on t (x); alter table t add check (x > 0)", 0);
        check("alter table submission add constraint c check (x > 0)", 1);
        check("alter table submission add constraint c check (x > 0) not valid", 0);
        check(
            "alter table s add constraint c check (x > 0) not valid; alter table s validate constraint c",
            1,
        );
        check("alter table submission validate constraint c", 0);
        check("alter table submission\n  alter column x set not null", 1);
        check("alter table submission alter x type bigint", 1);
        check("drop index i", 1);
        check("cluster submission; lock table submission; vacuum full submission", 3);
    }

    /// A sketch of a parser is enough: it reads what we write, in lower case. A semicolon in a function's
    /// body or in a comment's text ends a statement too early, which adds none that is told.
    fn migration_faults(sql: &str) -> Vec<String> {
        let is_alone = sql.starts_with("-- no-transaction");
        let lines = sql.lines().filter(|line| !line.trim_start().starts_with("--"));
        let text = lines.collect::<Vec<_>>().join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
        let statements: Vec<&str> = text.split(';').map(str::trim).collect();
        let word_after = |statement: &str, words: &str| {
            let after = statement.split_once(words).map(|(_, after)| after.trim_start())?;
            Some(after.split([' ', '(']).next().unwrap_or_default().to_owned())
        };
        let made: Vec<String> = statements.iter().filter_map(|s| word_after(s, "create table ")).collect();
        let is_new = |table: Option<String>| table.is_some_and(|table| made.contains(&table));
        let mut faults = Vec::new();
        let mut added_not_valid = false;
        for statement in &statements {
            let mut tell = |what: &str| faults.push(format!("{what}: {statement}"));
            let is_index = ["create index", "create unique index"].iter().any(|s| statement.starts_with(s));
            if is_index
                && !is_new(word_after(statement, " on "))
                && !(statement.contains("concurrently") && is_alone)
            {
                tell("concurrently, in a file that begins with -- no-transaction");
            }
            if statement.starts_with("drop index") && !statement.contains("concurrently") {
                tell("concurrently");
            }
            if ["cluster", "lock", "vacuum", "reindex"].iter().any(|word| statement.starts_with(word)) {
                tell("not in a migration");
            }
            if statement.starts_with("alter table") && !is_new(word_after(statement, "alter table ")) {
                let checks =
                    ["check (", "foreign key", "references "].iter().any(|word| statement.contains(word));
                if checks && !statement.contains("not valid") {
                    tell("not valid first, validated in the next migration");
                }
                if statement.contains("validate constraint") && added_not_valid {
                    tell("validated in the next migration");
                }
                added_not_valid |= statement.contains("not valid");
                if statement.contains(" set not null") || statement.contains(" type ") {
                    tell("reads or rewrites the table under a lock");
                }
            }
        }
        faults
    }
}
