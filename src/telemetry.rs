//! Logs: one line an event, JSON for machines or text for people. Nobody's work waits for
//! whoever reads them.

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};
use std::mem;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber, warn};
use tracing_subscriber::filter::{Targets, filter_fn};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{self, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::metrics::METRICS;
use crate::visible::visible_lines;

/// How much waits for a reader of stdout, in bytes. Lines beyond that are lost, and counted.
const GATHERED_BYTES_MAX: usize = 2 * 1024 * 1024;

/// What a burst of lines took of memory is given back beyond this.
const KEPT_BYTES: usize = 64 * 1024;

/// How long lines gather for one write.
const GATHER_TIME: Duration = Duration::from_millis(2);

/// How long the last lines may take when the process ends.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(1);

/// The target whose lines hold returned messages whole. The publisher of a message logs itself that it came
/// back.
const PRINTS_BODIES: &str = "lapin::returned_messages";

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
/// Libraries log at WARN, whatever `filter` says. Nothing below it: at TRACE, lapin prints message
/// bodies and the broker's password. And nothing above it: an error is what a person must act on,
/// which only the worker knows. The last lines are written when what is returned is dropped.
///
/// # Errors
/// When the system gives no thread, or something logs already.
pub fn start(format: Option<LogFormat>, filter: Targets) -> anyhow::Result<LastLines> {
    // Who wants errors alone wants none of theirs.
    let hears_libraries = filter
        .iter()
        .map(|(_, level)| level)
        .chain(filter.default_level())
        .any(|level| level >= LevelFilter::WARN);
    let capped = filter_fn(move |metadata| {
        is_ours(metadata)
            || hears_libraries && *metadata.level() <= LevelFilter::WARN && metadata.target() != PRINTS_BODIES
    });
    let by_default = if std::io::stdout().is_terminal() { LogFormat::Text } else { LogFormat::Json };
    let format = format.unwrap_or(by_default);
    let queue = Queue::default();
    let (writing, lines) = (queue.clone(), queue.clone());
    thread::Builder::new().name("log".to_owned()).spawn(move || write_out(&writing, format))?;
    let lines = tracing_subscriber::fmt::layer().with_target(false).with_writer(move || lines.clone());
    let lines = match format {
        LogFormat::Json => {
            lines.json().flatten_event(true).with_span_list(false).map_event_format(Capped).boxed()
        }
        LogFormat::Text => lines.map_event_format(Capped).boxed(),
    };
    // Filters of the whole registry and not of the layer: those remember a "no" by thread, and
    // one that no event follows, as sqlx's questions are, swallows the thread's next line.
    tracing_subscriber::registry().with(filter).with(capped).with(Counted).with(lines).try_init()?;
    Ok(LastLines(queue))
}

fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("kyc_worker")
}

/// Counts what a person must act on, and what they may have to.
struct Counted;

impl<S: Subscriber> Layer<S> for Counted {
    fn on_event(&self, event: &Event<'_>, _: layer::Context<'_, S>) {
        let metadata = event.metadata();
        match *metadata.level() {
            Level::ERROR if is_ours(metadata) => METRICS.note_log_event("error"),
            Level::WARN | Level::ERROR => METRICS.note_log_event("warn"),
            _ => {}
        }
    }
}

/// Writes what a library calls an error as a warning.
struct Capped<F>(F);

impl<S, N, F> FormatEvent<S, N> for Capped<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        if is_ours(metadata) || *metadata.level() != Level::ERROR {
            return self.0.format_event(context, writer, event);
        }
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        // The level stands before whatever the library says.
        writer.write_str(&line.replacen("ERROR", "WARN", 1))
    }
}

/// Lines on their way to stdout. A pipe that nobody reads fills up, and a write to it
/// waits for ever: that may cost lines, and no work.
#[derive(Clone, Default)]
struct Queue(Arc<(Mutex<Gathered>, Condvar)>);

/// What is written next.
#[derive(Default)]
struct Gathered {
    lines: Vec<u8>,
    lost: u64,
    /// Whether somebody waits until all of it is written.
    is_awaited: bool,
}

impl io::Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let (gathered, changed) = &*self.0;
        let mut gathered = gathered.lock();
        if gathered.lines.len() + line.len() <= GATHERED_BYTES_MAX {
            gathered.lines.extend_from_slice(line);
        } else {
            gathered.lost += 1;
        }
        drop(gathered);
        changed.notify_all();
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes what has gathered at once, and lets more gather before it looks again: a wake-up and
/// a write for each line would cost more than the line itself.
///
/// JSON may hold what a terminal obeys, in strings; the text format has colours of its own, and
/// escapes what it is given.
fn write_out(Queue(queue): &Queue, format: LogFormat) {
    let (gathered, changed) = &**queue;
    let mut lines = Vec::new();
    loop {
        let mut next = gathered.lock();
        changed.wait_while(&mut next, |next| next.lines.is_empty() && !next.is_awaited);
        mem::swap(&mut next.lines, &mut lines);
        let (lost, is_awaited) = (mem::take(&mut next.lost), next.is_awaited);
        drop(next);
        let text = String::from_utf8_lossy(&lines);
        let shown = match format {
            LogFormat::Json => visible_lines(&text),
            LogFormat::Text => text.as_ref().into(),
        };
        let written = io::stdout().write_all(shown.as_bytes()).and_then(|()| io::stdout().flush());
        let _nobody_reads_a_closed_one = written;
        drop(shown);
        lines.clear();
        lines.shrink_to(KEPT_BYTES);
        if lost > 0 {
            METRICS.note_lines_lost(lost);
            warn!(lost, "log lines were lost: stdout is not read as fast as they come");
        }
        if is_awaited {
            let mut next = gathered.lock();
            next.is_awaited = !next.lines.is_empty();
            changed.notify_all();
        } else {
            #[expect(clippy::disallowed_methods, reason = "a thread of its own")]
            thread::sleep(GATHER_TIME);
        }
    }
}

/// Dropped when the process ends: waits for the last lines to be written, but not for long.
#[must_use = "the last lines are written when it is dropped"]
pub struct LastLines(Queue);

impl Drop for LastLines {
    fn drop(&mut self) {
        let (gathered, changed) = &*self.0.0;
        let mut last = gathered.lock();
        last.is_awaited = true;
        changed.notify_all();
        let _or_they_are_lost = changed.wait_while_for(&mut last, |last| last.is_awaited, LAST_LINES_TIMEOUT);
    }
}
