//! Logs: one line an event, JSON for machines or text for people.

use std::io::IsTerminal as _;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

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
/// bodies and the broker's password.
///
/// # Errors
/// When `filter` is not a valid list of directives.
pub fn start(format: Option<LogFormat>, filter: &str) -> anyhow::Result<()> {
    let ours = filter_fn(|metadata| {
        metadata.target().starts_with("kyc_worker") || *metadata.level() <= LevelFilter::WARN
    });
    let filter = EnvFilter::try_new(filter)?;
    let by_default = if std::io::stdout().is_terminal() { LogFormat::Text } else { LogFormat::Json };
    let lines = tracing_subscriber::fmt::layer().with_target(false);
    let lines = match format.unwrap_or(by_default) {
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
        LogFormat::Text => lines.boxed(),
    };
    // Filters of the whole registry and not of the layer: those remember a "no" by thread, and
    // one that no event follows, as sqlx's questions are, swallows the thread's next line.
    tracing_subscriber::registry().with(filter).with(ours).with(lines).try_init()?;
    Ok(())
}
