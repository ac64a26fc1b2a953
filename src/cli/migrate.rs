//! `kyc-worker migrate`.

use std::process::ExitCode;

use crate::config::DatabaseSettings;
use crate::journal;

pub(super) async fn run(settings: &DatabaseSettings) -> anyhow::Result<ExitCode> {
    let pool = journal::connect(settings, &settings.url()?).await?;
    journal::migrate(&pool).await?;
    let version = journal::MIGRATIONS.iter().map(|migration| migration.version).max();
    println!("schema is at version {}", version.unwrap_or_default());
    Ok(ExitCode::SUCCESS)
}
