//! Where commands speak. Their `println!` and `eprintln!` are these: nothing that passes makes
//! a terminal do anything, and a reader of a pipe that has gone, as `head` does, ends nothing.

use std::fmt;
use std::io::{self, ErrorKind, IsTerminal as _, Write};
use std::process::ExitCode;
use std::sync::OnceLock;

use comfy_table::presets::NOTHING;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};
use tokio::time::{Duration, timeout};

use crate::broker::Wait;
use crate::config::SettingFault;
use crate::visible::{visible, visible_lines};

macro_rules! println {
    () => { $crate::cli::terminal::say(std::io::stdout(), format_args!("")) };
    ($($text:tt)*) => { $crate::cli::terminal::say(std::io::stdout(), format_args!($($text)*)) };
}

macro_rules! eprintln {
    ($($text:tt)*) => { $crate::cli::terminal::say(std::io::stderr(), format_args!($($text)*)) };
}

/// Writes a line, or lines, in which nothing is obeyed.
pub(super) fn say(mut out: impl Write, text: fmt::Arguments<'_>) {
    let text = format!("{text}\n");
    note(out.write_all(visible_lines(&text).as_bytes()).and_then(|()| out.flush()));
}

/// The same in colours, where stdout is a terminal. Texts of others in it are made visible before.
pub(super) fn say_in_colours(text: fmt::Arguments<'_>) {
    let mut out = anstream::stdout();
    note(writeln!(out, "{text}").and_then(|()| out.flush()));
}

/// Writes what somebody may want to the byte, and a line break: exact to a file or a pipe, and
/// visible on a terminal.
pub(super) fn say_exactly(bytes: &[u8]) {
    let mut out = io::stdout();
    if out.is_terminal() {
        return say(out, format_args!("{}", String::from_utf8_lossy(bytes)));
    }
    note(out.write_all(bytes).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()));
}

/// The first write of this command that failed, of which nobody knows yet.
static FAILURE: OnceLock<io::Error> = OnceLock::new();

/// Keeps the failure of a write for the command's end: what was begun goes on. A reader that has gone
/// is none.
pub(super) fn note(written: io::Result<()>) {
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        let _the_first_is_kept = FAILURE.set(error);
    }
}

/// The exit code of a command that came to `code`, if what it said was written.
pub(super) fn end(code: ExitCode) -> ExitCode {
    let Some(failure) = FAILURE.get() else { return code };
    let _nowhere_to_say_it = writeln!(io::stderr(), "kyc-worker: cannot write the output: {failure}");
    ExitCode::FAILURE
}

/// Says all that is wrong with the settings.
pub(super) fn refuse(faults: &[SettingFault]) -> ExitCode {
    eprintln!("kyc-worker: {} wrong:", if faults.len() == 1 { "a setting is" } else { "settings are" });
    for fault in faults {
        eprintln!("  {}", visible(&fault.to_string()));
    }
    eprintln!("`--help` of the command explains each setting; .env.example has them all.");
    ExitCode::from(2)
}

/// Prints what a command found, as JSON or as `as_text` prints it.
pub(super) fn print<T: Serialize>(as_json: bool, found: &T, as_text: fn(&T)) -> anyhow::Result<ExitCode> {
    if as_json {
        println!("{}", serde_json::to_string_pretty(found)?);
    } else {
        as_text(found);
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a time as people read it, to the second, in UTC.
pub(super) fn time_text(at: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");
    at.to_offset(UtcOffset::UTC).format(format).unwrap_or_default()
}

/// How long ago something was, in its largest unit.
pub(super) fn age_text(age: time::Duration) -> String {
    let seconds = age.whole_seconds().max(0);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// How far long work has come: `count` is how many of `what` there are.
pub(super) fn progress(count: u64, what: &str) -> anyhow::Result<ProgressBar> {
    let template = format!("{{bar:40}} {{percent}}% {{human_pos}} {what}, {{eta}} left");
    Ok(ProgressBar::new(count).with_style(ProgressStyle::with_template(&template)?))
}

/// A table that fits a terminal, each cell on one line.
pub(super) struct Table(comfy_table::Table);

pub(super) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = comfy_table::Table::new();
    table.load_style(NOTHING).set_header(header);
    Table(table)
}

impl Table {
    pub fn add_row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.add_row(cells.into_iter().map(|cell| visible(&cell).into_owned()));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who waits longer for the broker to take a message is told why.
const WAIT_IN_SILENCE: Duration = Duration::from_secs(3);

/// Waits for the broker to take a message, and tells where that takes long.
pub(super) async fn wait_aloud<T>(
    waiting: impl Future<Output = T>,
    wait: Wait,
    tell: impl FnOnce(&str),
) -> T {
    let mut waiting = std::pin::pin!(waiting);
    match timeout(WAIT_IN_SILENCE, waiting.as_mut()).await {
        Ok(taken) => taken,
        Err(_elapsed) => {
            tell(&wait.to_string());
            waiting.await
        }
    }
}
