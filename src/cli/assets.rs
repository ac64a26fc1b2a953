//! `kyc-worker completions` and `kyc-worker man`: what a package puts beside the binary.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use clap_complete::Shell;

/// Print a shell's completions
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  kyc-worker completions bash > /etc/bash_completion.d/kyc-worker")]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Write the man pages
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  kyc-worker man /usr/local/share/man/man1")]
pub(super) struct ManArgs {
    /// Where to
    directory: PathBuf,
}

pub(super) fn complete(args: &CompletionsArgs, command: &mut clap::Command) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "kyc-worker", &mut script);
    println!("{}", String::from_utf8(script)?.trim_end());
    Ok(ExitCode::SUCCESS)
}

pub(super) fn write_manual(args: &ManArgs, command: clap::Command) -> anyhow::Result<ExitCode> {
    let directory = &args.directory;
    std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(command, directory))
        .with_context(|| format!("cannot write to {}", directory.display()))?;
    println!("man pages are in {0}; read them with: man -l {0}/kyc-worker.1", directory.display());
    Ok(ExitCode::SUCCESS)
}
