//! `kyc-worker migrate`.

use std::process::ExitCode;

use clap::Args;

use crate::config::DatabaseSettings;
use crate::journal;

/// Bring the database's schema up to this version
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  DATABASE_URL=postgres://localhost/kyc kyc-worker migrate")]
pub(super) struct MigrateArgs {
    #[command(flatten)]
    database: DatabaseSettings,
}

pub(super) async fn run(args: &MigrateArgs) -> anyhow::Result<ExitCode> {
    let pool = journal::connect(&args.database, &args.database.url()?).await?;
    journal::migrate(&pool).await?;
    let version = journal::MIGRATIONS.iter().map(|migration| migration.version).max();
    println!("schema is at version {}", version.unwrap_or_default());
    Ok(ExitCode::SUCCESS)
}
