//! The binary: with which settings it runs, how a test speaks with it, and a worker that is one
//! of its processes.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{World, deadline, sized};

/// What the workers chain histories with.
pub const FINGERPRINT_KEY: &str = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";

/// For a worker with more in its queue than it holds, which may be cut off from a service in the
/// middle of it; patient enough that an attempt whose commit lost its answer can be read
/// when the database is back.
pub const NARROW: [(&str, &str); 4] =
    [("CONCURRENCY", "4"), ("PREFETCH", "8"), ("READ_BACK_WINDOW", "25s"), ("READ_BACK_DEADLINE", "2m")];

/// For a worker that checks before it sends: a busy machine holds no check up for as long as it may last.
pub const PATIENT: [(&str, &str); 3] =
    [("SEND_WINDOW", "8s"), ("CLAIM_LEASE", "11s"), ("READ_BACK_WINDOW", "16s")];

/// The worker's times, about a fifth of what they are. A busy machine may hold a worker up for two
/// seconds at any step, and still no send, read or confirmation comes too late.
const SCALED_DOWN: [(&str, &str); 13] = [
    ("REQUEST_TIMEOUT", "3s"),
    ("SEND_WINDOW", "2500ms"),
    ("CLAIM_LEASE", "5500ms"),
    ("READ_TIMEOUT", "2500ms"),
    ("READ_BACK_AFTER", "500ms"),
    ("READ_BACK_WINDOW", "10s"),
    ("APPLIED_WITHIN", "2s"),
    ("READ_BACK_DEADLINE", "30s"),
    ("CUSTOMER_READ_INTERVAL", "3s"),
    ("SCHEDULER_POLL", "100ms"),
    ("RETRY_DELAY_MIN", "20ms"),
    ("BREAKER_PROBE_INTERVAL", "100ms"),
    ("SHUTDOWN_GRACE", "5s"),
];

/// A worker, killed when the test is done with it.
pub struct WorkerProcess {
    child: Child,
    logs: [PathBuf; 2],
}

impl WorkerProcess {
    /// What it has printed so far, to stdout and to stderr.
    pub fn log(&self) -> String {
        self.logs.iter().map(|path| fs::read_to_string(path).expect("a log")).collect()
    }

    /// The most memory that it ever had resident, in KiB.
    pub fn memory_max_kib(&self) -> u64 {
        self.status("VmHWM:").trim_end_matches(" kB").parse().expect("a number")
    }

    /// Tells it to stop, and waits for its end, which must be a good one.
    pub async fn stop(&mut self) {
        self.signal("TERM");
        let status = self.exit().await;
        assert_eq!(status.code(), Some(0), "{status}");
    }

    /// Sends a signal, by its name: TERM, INT, KILL, STOP, CONT.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(sent.expect("kill runs").success(), "cannot send SIG{name}");
    }

    /// Whether it is stopped, as SIGSTOP does.
    pub fn is_stopped(&self) -> bool {
        self.status("State:").starts_with('T')
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the worker can be waited for").is_none()
    }

    /// How many threads it has.
    pub fn count_threads(&self) -> u64 {
        self.status("Threads:").parse().expect("a number")
    }

    /// How many files and sockets it has open.
    pub fn count_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("it runs").count()
    }

    /// What the kernel says of it under `key`.
    fn status(&self, key: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("a line of that key");
        line.trim().to_owned()
    }

    /// Kills it at once, as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().expect("the worker can be killed");
        self.child.wait().expect("the worker is gone");
    }

    /// Waits for its end.
    pub async fn exit(&mut self) -> ExitStatus {
        let deadline = Instant::now() + deadline();
        loop {
            if let Some(status) = self.child.try_wait().expect("the worker can be waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "the worker did not end");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl World {
    /// The binary with this world's settings, times scaled down unless the size is full.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kyc-worker"));
        command.env_clear().current_dir(self.dir.path()).envs([
            ("DATABASE_URL", self.database_url.as_str()),
            ("AMQP_URL", self.amqp_url.as_str()),
            ("DOLLARPE_BASE_URL", &self.sandbox.base_url()),
            ("DOLLARPE_API_KEY", "sandbox-key"),
            ("DOLLARPE_API_SECRET", "sandbox-secret"),
            ("PAYLOAD_KEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
            ("FINGERPRINT_KEY", FINGERPRINT_KEY),
            ("CONCURRENCY", "16"),
            ("PREFETCH", "48"),
            ("DATABASE_CONNECTIONS", "5"),
            // Of a cluster of a test's own; no test pulls a plug.
            ("ALLOW_UNSAFE_DATABASE", "true"),
            ("RUST_LOG", sized("debug", "info")),
        ]);
        command.envs(sized(&SCALED_DOWN[..], &[]).iter().copied());
        command
    }

    /// Starts a worker.
    pub fn start_worker(&self) -> WorkerProcess {
        self.start_worker_with(&[])
    }

    /// Starts a worker with settings of its own.
    pub fn start_worker_with(&self, settings: &[(&str, &str)]) -> WorkerProcess {
        let mut command = self.command();
        command.arg("run").envs(settings.iter().copied());
        self.spawn(command)
    }

    /// Starts a worker that speaks to `stdout`, where its log cannot be read.
    pub fn start_worker_onto(&self, stdout: impl Into<Stdio>, settings: &[(&str, &str)]) -> WorkerProcess {
        let mut command = self.command();
        command.arg("run").envs(settings.iter().copied());
        self.spawn_onto(command, Some(stdout.into()))
    }

    /// Starts a command that goes on beside the test.
    pub fn spawn(&self, command: Command) -> WorkerProcess {
        self.spawn_onto(command, None)
    }

    fn spawn_onto(&self, mut command: Command, stdout: Option<Stdio>) -> WorkerProcess {
        let id = Uuid::new_v4().simple().to_string();
        let logs = ["out", "err"].map(|kind| self.dir.path().join(format!("worker-{}.{kind}", &id[..8])));
        let [out, err] = logs.each_ref().map(|path| fs::File::create(path).expect("a log file"));
        command.stdin(Stdio::null()).stdout(stdout.unwrap_or(out.into())).stderr(err);
        let child = command.spawn().expect("the worker starts");
        WorkerProcess { child, logs }
    }

    /// Runs the binary to its end.
    pub async fn run(&self, arguments: &[&str], settings: &[(&str, &str)]) -> std::process::Output {
        let mut command = self.command();
        command.args(arguments).envs(settings.iter().copied());
        tokio::task::spawn_blocking(move || command.output().expect("the command runs"))
            .await
            .expect("a task")
    }

    /// Runs the binary to its end with `input` on its standard input.
    pub async fn run_with_input(
        &self,
        arguments: &[&str],
        settings: &[(&str, &str)],
        input: &[u8],
    ) -> std::process::Output {
        let mut command = self.command();
        let input = fs::File::open(self.write_file("input", input)).expect("the file is there");
        command.args(arguments).envs(settings.iter().copied()).stdin(input);
        tokio::task::spawn_blocking(move || command.output().expect("the command runs"))
            .await
            .expect("a task")
    }

    /// Runs a command, and what the shell does with its output, with 64 MiB for its data.
    pub async fn run_in_64_mib(&self, command: &str) -> String {
        let mut limited = Command::new("sh");
        limited.args(["-c", &format!("ulimit -d 65536; \"$0\" {command}"), env!("CARGO_BIN_EXE_kyc-worker")]);
        let settings = self.command();
        limited.env_clear().envs(settings.get_envs().filter_map(|(name, value)| Some((name, value?))));
        limited.env("PATH", "/usr/bin:/bin");
        let output =
            tokio::task::spawn_blocking(move || limited.output().expect("it runs")).await.expect("a task");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(!output.stdout.is_empty(), "{command}: {complaint}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Runs a command that must succeed, and returns what it says.
    pub async fn say(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments, &[]).await;
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Runs a command with `--json` and returns what it says and whether it succeeded.
    pub async fn ask(&self, arguments: &[&str]) -> (Value, bool) {
        let output = self.run(&[arguments, &["--json"]].concat(), &[]).await;
        let said = serde_json::from_slice(&output.stdout);
        let said =
            said.unwrap_or_else(|_| panic!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr)));
        (said, output.status.success())
    }

    /// Runs a command that must fail, and returns its complaint.
    pub async fn refuse(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments, &[]).await;
        assert_eq!(
            output.status.code(),
            Some(1),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8")
    }

    /// Waits until the worker has said it.
    pub async fn wait_for_log(&self, worker: &WorkerProcess, text: &str) {
        let what = format!("a log line with {text:?}");
        self.wait_for(&what, async || worker.log().contains(text).then_some(())).await;
    }

    /// Waits until the worker has said it so many times.
    pub async fn wait_for_logs(&self, worker: &WorkerProcess, text: &str, times: usize) {
        let what = format!("{times} log lines with {text:?}");
        self.wait_for(&what, async || (worker.log().matches(text).count() >= times).then_some(())).await;
    }
}
