//! Where commands speak. Their `println!` and `eprintln!` are these: nothing that passes makes
//! a terminal do anything, and a reader of a pipe that has gone, as `head` does, ends nothing.

use std::fmt;
use std::io::{self, IsTerminal as _, Write};

use crate::visible::visible_lines;

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
    let _nobody_reads_any_more = out.write_all(visible_lines(&text).as_bytes()).and_then(|()| out.flush());
}

/// Writes what somebody may want to the byte, and a line break: exact to a file or a pipe, and
/// visible on a terminal.
pub(super) fn say_exactly(bytes: &[u8]) {
    let mut out = io::stdout();
    if out.is_terminal() {
        return say(out, format_args!("{}", String::from_utf8_lossy(bytes)));
    }
    let written = out.write_all(bytes).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
    let _nobody_reads_any_more = written;
}
