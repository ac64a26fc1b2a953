//! Parses a command line, and reports every setting that does not parse.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, Command};

use super::SettingFault;

/// A command line that was understood, settings that do not parse excepted.
pub struct Parsed<T> {
    /// What it says.
    pub value: T,
    /// As clap sees it: where each value came from.
    pub matches: ArgMatches,
    /// The settings that do not parse.
    pub faults: Vec<SettingFault>,
}

/// Parses the command line like clap, but reports every setting that does not parse and
/// not only the first. Such a setting takes its default while the rest is looked at.
///
/// # Errors
/// clap's own error for anything else: usage, `--help`, `--version`.
pub fn parse_all<T: clap::FromArgMatches>(
    command: &Command,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Parsed<T>, clap::Error> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let mut faults: Vec<SettingFault> = Vec::new();
    loop {
        let error = match command.clone().try_get_matches_from(&arguments) {
            Ok(matches) => {
                let value = T::from_arg_matches(&matches)?;
                return Ok(Parsed { value, matches, faults });
            }
            Err(error) => error,
        };
        let Some(FaultySetting { variable, flag, default }) = faulty_setting(command, &error) else {
            return Err(error);
        };
        if faults.iter().any(|fault| fault.setting == variable) {
            return Err(error);
        }
        faults.push(SettingFault::new(&variable, describe(&error)));
        remove_flag(&mut arguments, &flag);
        arguments.push(format!("{flag}={default}").into());
    }
}

/// A setting whose value did not parse.
struct FaultySetting {
    variable: String,
    flag: String,
    default: String,
}

/// Takes out `--flag=value` and `--flag value`: clap validates what is overridden, too.
fn remove_flag(arguments: &mut Vec<OsString>, flag: &str) {
    let assigned = format!("{flag}=");
    arguments.retain(|argument| !argument.to_string_lossy().starts_with(&assigned));
    while let Some(at) = arguments.iter().position(|argument| argument.to_str() == Some(flag)) {
        arguments.drain(at..(at + 2).min(arguments.len()));
    }
}

fn faulty_setting(command: &Command, error: &clap::Error) -> Option<FaultySetting> {
    if !matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue) {
        return None;
    }
    let ContextValue::String(shown) = error.get(ContextKind::InvalidArg)? else {
        return None;
    };
    let long = shown.trim_start_matches("--").split([' ', '=', '[']).next()?;
    let arg = command
        .get_subcommands()
        .flat_map(Command::get_arguments)
        .find(|arg| arg.get_long() == Some(long))?;
    let variable = arg.get_env()?.to_str()?.to_owned();
    let default = arg.get_default_values().first()?.to_str()?.to_owned();
    Some(FaultySetting { variable, flag: format!("--{long}"), default })
}

fn describe(error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        _ => None,
    };
    let value = context(ContextKind::InvalidValue).unwrap_or_default();
    let cause = std::error::Error::source(error).map(ToString::to_string);
    let remedy =
        cause.or_else(|| context(ContextKind::ValidValue).map(|valid| format!("must be one of {valid}")));
    format!("`{value}` is not valid: {}", remedy.unwrap_or_else(|| error.kind().to_string()))
}
