//! A database of a program's own, on the server that `DATABASE_URL` names. Shared with the
//! benchmarks.

use std::time::Duration;

use anyhow::Context as _;
use sqlx::postgres::{PgPool, PgPoolOptions};
use url::Url;

/// The same server, another database.
pub fn url_of(database_url: &Url, name: &str) -> Url {
    let mut url = database_url.clone();
    url.set_path(name);
    url
}

/// Makes a database anew, empty.
pub async fn recreate(database_url: &Url, name: &str) -> anyhow::Result<()> {
    let admin = drop_if_there(database_url, name).await?;
    sqlx::query(&format!("create database {name}"))
        .execute(&admin)
        .await
        .context("DATABASE_URL: its user must be allowed to create databases")?;
    admin.close().await;
    Ok(())
}

/// Drops a database where it is there, whoever uses it. Returns a pool of the server's own.
pub async fn drop_if_there(database_url: &Url, name: &str) -> anyhow::Result<PgPool> {
    // There on every server; the database of the URL may not be.
    let admin = connect(&url_of(database_url, "postgres")).await?;
    // Not `with (force)`: that wants the right to end an autovacuum, which a plain drop sends away.
    let end = "select pg_terminate_backend(pid) from pg_stat_activity
        where datname = $1 and backend_type = 'client backend'";
    sqlx::query(end).bind(name).execute(&admin).await?;
    sqlx::query(&format!("drop database if exists {name}")).execute(&admin).await?;
    Ok(admin)
}

/// Opens a small pool.
pub async fn connect(url: &Url) -> anyhow::Result<PgPool> {
    let place = format!("{}:{}", url.host_str().unwrap_or("localhost"), url.port().unwrap_or(5432));
    PgPoolOptions::new()
        .max_connections(4)
        .acquire_timeout(Duration::from_secs(5))
        .connect(url.as_str())
        .await
        .with_context(|| format!("DATABASE_URL: cannot use Postgres at {place}; `make services` starts one"))
}
