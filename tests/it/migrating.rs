//! The schema is brought up to date while replicas work, and by migrations that nobody edits.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use sqlx::PgPool;
use sqlx::migrate::Migrator;
use tempfile::TempDir;

use crate::harness::{World, world};

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");

/// The migrations of the repository, in their order.
fn files() -> Vec<PathBuf> {
    let entries = fs::read_dir(DIRECTORY).expect("the directory");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut files: Vec<_> = paths.filter(|path| path.extension().is_some_and(|kind| kind == "sql")).collect();
    files.sort();
    files
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).expect("a name")
}

#[test]
fn a_merged_migration_is_never_edited() {
    let sums = fs::read_to_string(format!("{DIRECTORY}/SHA256SUMS")).expect("the list of checksums");
    let listed: Vec<&str> = sums.lines().collect();
    let there: Vec<String> = files()
        .iter()
        .map(|path| {
            let digest = Sha256::digest(fs::read(path).expect("a migration"));
            let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{digest}  {}", name(path))
        })
        .collect();
    assert_eq!(
        there, listed,
        "databases have run these: change the schema in the next migration, and add its line alone, with \
         `cd migrations && sha256sum NNNN_name.sql >>SHA256SUMS`"
    );
}

/// The tables that have no row.
async fn without_rows(pool: &PgPool) -> Vec<String> {
    let tables = "select relname::text from pg_class
        where relnamespace = 'public'::regnamespace and relkind = 'r' and relname <> '_sqlx_migrations'";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(pool).await.expect("their names");
    let mut empty = Vec::new();
    for table in tables {
        let has_rows = format!("select exists (select from {table})");
        if !sqlx::query_scalar::<_, bool>(&has_rows).fetch_one(pool).await.expect("whether it has rows") {
            empty.push(table);
        }
    }
    empty
}

/// Runs migrations one by one, each after the first over tables that have rows: those of
/// tests/it/rows, of which there is a file for each migration that makes a table.
async fn migrate_over_rows(pool: &PgPool, files: &[PathBuf]) -> Result<(), String> {
    sqlx::raw_sql("drop schema public cascade; create schema public")
        .execute(pool)
        .await
        .expect("it is empty");
    let dir = TempDir::new().expect("a temporary directory");
    for (run, file) in files.iter().enumerate() {
        if run > 0 {
            let empty = without_rows(pool).await;
            if !empty.is_empty() {
                return Err(format!("tests/it/rows has none of {}, before {}", empty.join(", "), name(file)));
            }
        }
        fs::copy(file, dir.path().join(name(file))).expect("a copy");
        let mut migrator = Migrator::new(dir.path()).await.expect("migrations");
        // One that fails would keep the lock, and the pool its connection.
        migrator.set_locking(false);
        migrator.run(pool).await.map_err(|error| format!("{}: {error}", name(file)))?;
        let rows = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/rows")).join(name(file));
        if let Ok(rows) = fs::read_to_string(rows) {
            sqlx::raw_sql(&rows).execute(pool).await.map_err(|error| format!("rows: {error}"))?;
        }
    }
    Ok(())
}

/// Runs one more migration after the repository's.
async fn migrate_further(world: &World, sql: &[&str]) -> Result<(), String> {
    let next = TempDir::new().expect("a temporary directory");
    let mut files = files();
    for (number, sql) in (9001..).zip(sql) {
        let path = next.path().join(format!("{number}_next.sql"));
        fs::write(&path, sql).expect("a migration");
        files.push(path);
    }
    migrate_over_rows(&world.pool, &files).await
}

#[test]
fn each_migration_runs_over_tables_with_rows() {
    world(async |world| {
        world.is_tampered_with();
        let harmless = "alter table submission add column next text";
        assert_eq!(migrate_further(&world, &[harmless]).await, Ok(()));
        let ran = "select count(*) from _sqlx_migrations where success";
        assert_eq!(world.count(ran).await, i64::try_from(files().len()).expect("few") + 1);
    });
}

/// The test above would find what works over empty tables alone.
#[test]
fn a_migration_that_fails_over_rows_is_found() {
    world(async |world| {
        world.is_tampered_with();
        for over_no_rows in [
            "alter table attempt add column next integer not null",
            "alter table observation add constraint next check (purpose <> 'webhook')",
            "create unique index next on submission (customer_id)",
            "update attempt set worker = 'renamed'",
        ] {
            let failed = migrate_further(&world, &[over_no_rows]).await.expect_err(over_no_rows);
            assert!(failed.starts_with("9001_next.sql"), "{failed}");
        }
        let without_rows = ["create table next (id bigint not null)", "alter table next add column x text"];
        let failed = migrate_further(&world, &without_rows).await.expect_err("a table without rows");
        assert!(failed.contains("none of next, before 9002"), "{failed}");
    });
}

#[test]
fn a_migration_that_gets_no_lock_lets_others_by_and_tries_again() {
    world(async |world| {
        // The schema is to be made anew, and somebody holds a name that it needs.
        world.tamper("drop schema public cascade").await;
        world.tamper("create schema public").await;
        let mut holder = world.pool.begin().await.expect("a transaction");
        sqlx::query("create table submission ()").execute(&mut *holder).await.expect("a table");
        let mut command = world.command();
        command.arg("migrate");
        let mut migrating = world.spawn(command);
        for _ in 0..2 {
            let is_blocked = async |wanted: i64| (world.count_blocked().await == wanted).then_some(());
            world.wait_for("the migration to wait", async || is_blocked(1).await).await;
            world.wait_for("the migration to give way", async || is_blocked(0).await).await;
            assert!(migrating.is_running(), "{}", migrating.log());
        }
        holder.rollback().await.expect("the name is free");
        assert_eq!(migrating.exit().await.code(), Some(0), "{}", migrating.log());
        let ran = i64::try_from(files().len()).expect("few");
        assert_eq!(world.count("select count(*) from _sqlx_migrations where success").await, ran);
    });
}
