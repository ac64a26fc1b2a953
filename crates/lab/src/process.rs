//! Programs that run for another: stopped when it ends, however it ends.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

/// Waits until somebody wants all of it stopped, which is an error of whatever runs.
pub async fn stop_signal() -> anyhow::Result<bool> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    bail!("stopped, and all its programs with it")
}

/// A program under way. Dropping it kills it.
pub struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// Starts a program whose output goes to the file `log`.
    pub fn start_logged(mut command: Command, name: &str, log: &Path) -> anyhow::Result<Self> {
        let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdout(file.try_clone()?).stderr(file);
        Self::start(command, name)
    }

    /// Starts a program that speaks for itself.
    pub fn start(mut command: Command, name: &str) -> anyhow::Result<Self> {
        let child = command.stdin(Stdio::null()).spawn();
        let child = child.with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child })
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Sends it a signal, by its name: TERM, KILL, STOP, CONT.
    pub fn signal(&self, name: &str) -> anyhow::Result<()> {
        send_signal(name, &self.child.id().to_string()).with_context(|| self.name.clone())
    }

    /// Sends it a signal, and blocks until it has ended.
    pub fn end(self, signal: &str) -> anyhow::Result<()> {
        self.signal(signal)?;
        self.wait()
    }

    /// Blocks until it has ended.
    pub fn wait(mut self) -> anyhow::Result<()> {
        self.child.wait()?;
        Ok(())
    }

    /// Waits until it has done what it was started for.
    pub async fn succeed(mut self) -> anyhow::Result<()> {
        loop {
            match self.ended()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("{} failed: {status}", self.name),
                None => sleep(Duration::from_millis(10)).await,
            }
        }
    }
}

/// Sends a process a signal, by its name.
pub(crate) fn send_signal(name: &str, process: &str) -> anyhow::Result<()> {
    let status = Command::new("kill").args([&format!("-{name}"), process]).status()?;
    ensure!(status.success(), "cannot send SIG{name}");
    Ok(())
}

impl Drop for Process {
    fn drop(&mut self) {
        // Where it has ended already, there is nothing to kill.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
