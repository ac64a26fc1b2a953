//! Where each setting's value came from: a flag, the environment, `.env` or a default.

use std::collections::BTreeSet;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use serde::Serialize;

/// A file of variables, for development. What the environment has already stays.
#[derive(Debug, Default)]
pub struct EnvFile {
    /// The variables that came from it.
    variables: BTreeSet<String>,
}

impl EnvFile {
    /// Puts the file's variables into the environment. Not to be called once there are threads.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn load(path: &str) -> Result<Self, String> {
        Self::read(path).map_err(|error| match error {
            // The line may hold a secret.
            dotenvy::Error::LineParse(..) => {
                "a line is no VARIABLE=value; quote a value with spaces".to_owned()
            }
            other => other.to_string(),
        })
    }

    fn read(path: &str) -> dotenvy::Result<Self> {
        let mut variables = BTreeSet::new();
        let entries = match dotenvy::from_path_iter(path) {
            Err(error) if error.not_found() => return Ok(Self::default()),
            entries => entries?,
        };
        for entry in entries {
            let (variable, _) = entry?;
            #[expect(clippy::disallowed_methods, reason = "before the file is put into it")]
            if std::env::var_os(&variable).is_none() {
                variables.insert(variable);
            }
        }
        dotenvy::from_path(path)?;
        Ok(Self { variables })
    }
}

/// A setting and where it came from. A secret has no value here.
#[derive(Debug, Serialize)]
pub struct SettingSource {
    /// Its variable.
    pub variable: String,
    /// `flag`, `environment`, `.env` or `default`.
    pub source: &'static str,
    /// Its value, unless it is a secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// The settings of `command` that have a value, in the order of its help.
pub fn setting_sources(command: &Command, matches: &ArgMatches, env_file: &EnvFile) -> Vec<SettingSource> {
    command.get_arguments().filter_map(|arg| setting_source(arg, matches, env_file)).collect()
}

fn setting_source(arg: &Arg, matches: &ArgMatches, env_file: &EnvFile) -> Option<SettingSource> {
    let variable = arg.get_env()?.to_str()?.to_owned();
    let id = arg.get_id().as_str();
    let source = match matches.value_source(id)? {
        ValueSource::CommandLine => "flag",
        ValueSource::EnvVariable if env_file.variables.contains(&variable) => ".env",
        ValueSource::EnvVariable => "environment",
        _ => "default",
    };
    let raw = || matches.get_raw(id).into_iter().flatten().map(|value| value.to_string_lossy().into_owned());
    let value = (!arg.is_hide_env_values_set()).then(|| raw().collect::<Vec<_>>().join(","));
    Some(SettingSource { variable, source, value })
}
