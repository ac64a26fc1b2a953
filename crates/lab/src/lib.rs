//! What demo, storm, benchmark and tests share: programs and processes, services of their own, a
//! database and queues made anew, the provider's admin interface, and the checker of the books.

pub mod books;
pub mod broker;
pub mod database;
pub mod process;
pub mod provider;
pub mod services;
pub mod upstream;

use std::path::PathBuf;

use anyhow::{Context as _, ensure};

/// The program `name` of the build that this one is of.
///
/// # Errors
/// When it was not built.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe().context("this program does not know where it lies")?;
    let program = this.with_file_name(name);
    ensure!(program.is_file(), "{} is missing; build it: cargo build --workspace --bins", program.display());
    Ok(program)
}
