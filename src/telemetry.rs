//! Logs: one line an event, JSON for machines or text for people. Nobody's work waits for
//! whoever reads them.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::level_filters::LevelFilter;
use tracing::warn;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// How many lines wait for a reader of stdout. What comes beyond them is lost, and counted.
const LINES_MAX: usize = 8192;

/// How long lines gather for one write, and how much of them is written at once at most.
const GATHER_TIME: Duration = Duration::from_millis(2);
const GATHERED_BYTES: usize = 64 * 1024;

/// How long the last lines may take when the process ends.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(1);

/// How a log line is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Text for people.
    Text,
}

/// Starts logging to stdout, in JSON unless stdout is a terminal or `format` says otherwise.
///
/// Libraries log at WARN at most, whatever `filter` says: at TRACE, lapin prints message
/// bodies and the broker's password. The last lines are written when what is returned is dropped.
///
/// # Errors
/// When `filter` is not a valid list of directives.
pub fn start(format: Option<LogFormat>, filter: &str) -> anyhow::Result<LastLines> {
    let ours = filter_fn(|metadata| {
        metadata.target().starts_with("kyc_worker") || *metadata.level() <= LevelFilter::WARN
    });
    let filter = EnvFilter::try_new(filter)?;
    let by_default = if std::io::stdout().is_terminal() { LogFormat::Text } else { LogFormat::Json };
    let (sender, receiver) = mpsc::sync_channel(LINES_MAX);
    let lost = Arc::new(AtomicU64::new(0));
    let queue = Queue { sender: sender.clone(), lost: Arc::clone(&lost) };
    thread::Builder::new().name("log".to_owned()).spawn(move || write_out(&receiver, &lost))?;
    let lines = tracing_subscriber::fmt::layer().with_target(false).with_writer(move || queue.clone());
    let lines = match format.unwrap_or(by_default) {
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
        LogFormat::Text => lines.boxed(),
    };
    // Filters of the whole registry and not of the layer: those remember a "no" by thread, and
    // one that no event follows, as sqlx's questions are, swallows the thread's next line.
    tracing_subscriber::registry().with(filter).with(ours).with(lines).try_init()?;
    Ok(LastLines(sender))
}

/// What the thread that writes gets.
enum Message {
    Line(Vec<u8>),
    End(mpsc::Sender<()>),
}

/// Lines on their way to stdout. A pipe that nobody reads fills up, and a write to it
/// waits for ever: that may cost lines, and no work.
#[derive(Clone)]
struct Queue {
    sender: SyncSender<Message>,
    lost: Arc<AtomicU64>,
}

impl io::Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.sender.try_send(Message::Line(line.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes what has gathered at once, and lets more gather before it looks again: a wake-up and
/// a write for each line would cost more than the line itself.
fn write_out(messages: &Receiver<Message>, lost: &AtomicU64) {
    let mut lines = Vec::with_capacity(GATHERED_BYTES);
    while let Ok(first) = messages.recv() {
        let mut end = None;
        for message in std::iter::once(first).chain(messages.try_iter()) {
            match message {
                Message::Line(line) => lines.extend_from_slice(&line),
                Message::End(done) => end = Some(done),
            }
            if end.is_some() || lines.len() >= GATHERED_BYTES {
                break;
            }
        }
        let _nobody_reads_a_closed_one = io::stdout().write_all(&lines).and_then(|()| io::stdout().flush());
        lines.clear();
        match end {
            Some(done) => {
                let _has_waited_long_enough = done.send(());
            }
            #[expect(clippy::disallowed_methods, reason = "a thread of its own")]
            None => thread::sleep(GATHER_TIME),
        }
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            warn!(lost, "log lines were lost: stdout is not read as fast as they come");
        }
    }
}

/// Dropped when the process ends: waits for the last lines to be written, but not for long.
#[must_use = "the last lines are written when it is dropped"]
pub struct LastLines(SyncSender<Message>);

impl Drop for LastLines {
    fn drop(&mut self) {
        let deadline = Instant::now() + LAST_LINES_TIMEOUT;
        let (done, is_done) = mpsc::channel();
        let mut end = Message::End(done);
        while let Err(TrySendError::Full(message)) = self.0.try_send(end) {
            if Instant::now() >= deadline {
                return;
            }
            end = message;
            #[expect(clippy::disallowed_methods, reason = "nothing else runs any more")]
            thread::sleep(Duration::from_millis(10));
        }
        let _or_they_are_lost = is_done.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}
