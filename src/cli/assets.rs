//! `kyc-worker completions` and `kyc-worker man`: what a package puts beside the binary.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap_complete::Shell;

pub(super) fn complete(shell: Shell) -> anyhow::Result<ExitCode> {
    clap_complete::generate(shell, &mut super::command(), "kyc-worker", &mut std::io::stdout());
    Ok(ExitCode::SUCCESS)
}

pub(super) fn write_manual(directory: &Path) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(super::command(), directory))
        .with_context(|| format!("cannot write to {}", directory.display()))?;
    println!("man pages are in {0}; read them with: man -l {0}/kyc-worker.1", directory.display());
    Ok(ExitCode::SUCCESS)
}
