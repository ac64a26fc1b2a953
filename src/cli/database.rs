//! The database, for the commands that read it.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::terminal::print;
use crate::config::{DatabaseSettings, Secret};
use crate::journal;

/// What a command takes that asks the database and prints what it found.
#[derive(Args, Debug)]
pub(super) struct DeskArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    database: DatabaseSettings,
}

impl DeskArgs {
    pub async fn open(&self) -> anyhow::Result<sqlx::PgPool> {
        open_database(&self.database).await
    }

    pub fn print<T: Serialize>(&self, found: &T, as_text: fn(&T)) -> anyhow::Result<ExitCode> {
        print(self.json, found, as_text)
    }
}

/// Opens the database, if its schema is ours.
pub(super) async fn open_database(settings: &DatabaseSettings) -> anyhow::Result<sqlx::PgPool> {
    open_database_at(settings, &settings.url()?).await
}

/// The same where it stands at `url`.
pub(super) async fn open_database_at(
    settings: &DatabaseSettings,
    url: &Secret,
) -> anyhow::Result<sqlx::PgPool> {
    let pool = journal::connect(settings, url).await?;
    journal::check_schema(&pool).await?;
    Ok(pool)
}
