//! Parses a command line, and reports every setting that does not parse.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

use super::fault::SettingFault;
use super::sources::shown;

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
/// not only the first. Such a setting takes its default while the rest is looked at. A variable
/// that is there and empty is a fault and no default: whoever set it meant to say something.
///
/// # Errors
/// clap's own error for anything else: usage, `--help`, `--version`.
pub fn parse_all<T: clap::FromArgMatches>(
    command: &Command,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Parsed<T>, clap::Error> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let mut faults: Vec<SettingFault> = Vec::new();
    let mut parsing = without_variables(command.clone(), is_empty);
    loop {
        let error = match parsing.clone().try_get_matches_from(&arguments) {
            Ok(matches) => {
                let value = T::from_arg_matches(&matches)?;
                faults.extend(empty_settings(command, &matches));
                return Ok(Parsed { value, matches, faults });
            }
            Err(error) => error,
        };
        let Some(FaultySetting { variable, flag }) = faulty_setting(command, &error) else {
            return Err(error);
        };
        if faults.iter().any(|fault| fault.setting == variable) {
            return Err(error);
        }
        faults.push(SettingFault::new(&variable, describe(&error)));
        remove_flag(&mut arguments, &flag);
        parsing = without_variables(parsing, |arg| variable_of(arg).as_ref() == Some(&variable));
    }
}

/// A command whose settings do not look at their variables, where `is_ignored` says so.
fn without_variables(command: Command, is_ignored: impl Fn(&Arg) -> bool + Copy) -> Command {
    let command = command.mut_args(|arg| if is_ignored(&arg) { arg.env(None::<&str>) } else { arg });
    command.mut_subcommands(|command| without_variables(command, is_ignored))
}

fn variable_of(arg: &Arg) -> Option<String> {
    arg.get_env()?.to_str().map(str::to_owned)
}

/// Whether a setting's variable is there and empty.
fn is_empty(arg: &Arg) -> bool {
    #[expect(clippy::disallowed_methods, reason = "this is config, the environment's reader")]
    arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty())
}

/// The settings of the command that was given whose variables are empty, and no flag says more.
fn empty_settings(command: &Command, matches: &ArgMatches) -> Vec<SettingFault> {
    let (mut command, mut matches) = (command, matches);
    while let Some((name, below)) = matches.subcommand() {
        let Some(subcommand) = command.find_subcommand(name) else { break };
        (command, matches) = (subcommand, below);
    }
    let is_flag = |arg: &Arg| matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
    // A list without a default is empty then, as it says.
    let may_be = |arg: &Arg| arg.get_value_delimiter().is_some() && arg.get_default_values().is_empty();
    let empty = command.get_arguments().filter(|arg| is_empty(arg) && !is_flag(arg) && !may_be(arg));
    let reason = "is empty; give it a value, or remove it";
    empty.filter_map(variable_of).map(|variable| SettingFault::new(&variable, reason)).collect()
}

/// A setting whose value did not parse.
struct FaultySetting {
    variable: String,
    flag: String,
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
    Some(FaultySetting { variable: variable_of(arg)?, flag: format!("--{long}") })
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
    format!("`{}` is not valid: {}", shown(&value), remedy.unwrap_or_else(|| error.kind().to_string()))
}
