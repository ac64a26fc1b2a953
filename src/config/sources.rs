//! Where each setting's value came from: a flag, the environment, `.env` or a default.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use serde::Serialize;
use serde_json::Value;

use super::secret::read_file;

/// A file of variables, for development. What the environment has already stays.
#[derive(Debug, Default)]
pub struct EnvFile {
    /// The variables that came from it.
    variables: BTreeSet<String>,
    /// The names that it holds.
    names: BTreeSet<String>,
}

/// So many letters wrong, missing or too many make one name of another.
const MISSPELLING_MAX: usize = 2;

impl EnvFile {
    /// Puts the file's variables into the environment. Not to be called once there are threads.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn load(path: &str) -> Result<Self, String> {
        let text = match read_file(Path::new(path)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error.to_string()),
        };
        if text.contains('\0') {
            return Err("holds a NUL character; save it as UTF-8".to_owned());
        }
        if let Some(variable) = Self::find_substitution(&text) {
            return Err(format!(
                "{variable} holds a $, which stands for another variable; put the value in single quotes, or write \\$"
            ));
        }
        Self::read(&text).map_err(|error| match error {
            // The line may hold a secret.
            dotenvy::Error::LineParse(..) => {
                "a line is no VARIABLE=value; quote a value with spaces".to_owned()
            }
            other => other.to_string(),
        })
    }

    /// Names in the file that are no variable of `command`'s and nearly one: each with that one.
    pub fn misspelt(&self, command: &Command) -> Vec<(&str, String)> {
        let known = variables_of(command);
        let names = self.names.iter().filter(|name| !known.contains(*name));
        let nearest = |name: &&String| {
            let name = name.to_ascii_uppercase();
            let meant = known.iter().min_by_key(|known| strsim::osa_distance(known, &name))?;
            (strsim::osa_distance(meant, &name) <= MISSPELLING_MAX).then(|| meant.clone())
        };
        names.filter_map(|name| Some((name.as_str(), nearest(&name)?))).collect()
    }

    /// The variable of a line that would be taken for another variable's value: `$` stands for
    /// that outside single quotes, and one that is not set counts as empty.
    fn find_substitution(text: &str) -> Option<&str> {
        let entries = text.lines().map(str::trim_start).filter(|line| !line.starts_with('#'));
        let mut entries = entries.filter_map(|line| line.split_once('='));
        let (variable, _) = entries.find(|(_, value)| has_open_dollar(value))?;
        Some(variable.trim_start_matches("export ").trim())
    }

    fn read(text: &str) -> dotenvy::Result<Self> {
        let mut file = Self::default();
        for entry in dotenvy::from_read_iter(text.as_bytes()) {
            let (variable, _) = entry?;
            #[expect(clippy::disallowed_methods, reason = "before the file is put into it")]
            if std::env::var_os(&variable).is_none() {
                file.variables.insert(variable.clone());
            }
            file.names.insert(variable);
        }
        dotenvy::from_read(text.as_bytes())?;
        Ok(file)
    }
}

/// The variables that some command of ours reads.
fn variables_of(command: &Command) -> BTreeSet<String> {
    let own = command.get_arguments().filter_map(|arg| Some(arg.get_env()?.to_str()?.to_owned()));
    own.chain(command.get_subcommands().flat_map(variables_of)).collect()
}

/// Whether a value holds a `$` that is neither escaped nor in single quotes, before a comment.
fn has_open_dollar(value: &str) -> bool {
    let (mut quote, mut before) = (None, ' ');
    let mut characters = value.chars();
    while let Some(c) = characters.next() {
        match (c, quote) {
            ('\'', Some('\'')) | ('"', Some('"')) => quote = None,
            (_, Some('\'')) => {}
            ('\\', _) => drop(characters.next()),
            ('$', _) => return true,
            ('\'' | '"', None) => quote = Some(c),
            ('#', None) if before.is_whitespace() => return false,
            _ => {}
        }
        before = c;
    }
    false
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

/// The values of settings by their variables, without the secrets: what may be told of a replica.
pub fn told_settings(sources: Vec<SettingSource>) -> Value {
    sources.into_iter().filter_map(|SettingSource { variable, value, .. }| Some((variable, value?))).collect()
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
    let value = (!arg.is_hide_env_values_set()).then(|| shown(&raw().collect::<Vec<_>>().join(",")));
    Some(SettingSource { variable, source, value })
}

/// A value as it may be seen: of a URL that may hold a password, nothing but its scheme.
pub(super) fn shown(value: &str) -> String {
    match value.split_once("://") {
        Some((scheme, rest)) if rest.contains(['@', '?', '#']) => format!("{scheme}://(hidden)"),
        _ => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dollar_in_an_env_file_is_refused_where_it_would_be_replaced() {
        for (line, found) in [
            ("DATABASE_URL=postgres://kyc:pa$word@h/kyc", Some("DATABASE_URL")),
            ("export AMQP_URL=\"amqp://guest:${X}@h\"", Some("AMQP_URL")),
            ("KEY='a'$b", Some("KEY")),
            ("KEY='pa$word'", None),
            ("KEY=pa\\$word", None),
            ("KEY=\"pa\\$word\" # $5", None),
            ("# KEY=$word", None),
            ("KEY=word", None),
        ] {
            assert_eq!(EnvFile::find_substitution(&format!("A=1\n{line}\n")), found, "{line}");
        }
    }

    #[test]
    fn a_name_that_is_nearly_a_settings_is_told_with_it() {
        let variables = ["CONCURRENCY", "PREFETCH", "QUEUE"];
        let below = Command::new("run").args(variables.map(|variable| Arg::new(variable).env(variable)));
        let command = Command::new("kyc-worker").subcommand(below);
        let text = "CONCURENCY=1\nprefetch=2\nPERFETCH=2\nQUEUE=q\nQUEUE_SIZE=3\nPGHOST=h\n";
        let names = text.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name.to_owned());
        let file = EnvFile { names: names.collect(), ..EnvFile::default() };
        let expected = [("CONCURENCY", "CONCURRENCY"), ("PERFETCH", "PREFETCH"), ("prefetch", "PREFETCH")];
        assert_eq!(file.misspelt(&command), expected.map(|(name, meant)| (name, meant.to_owned())));
    }

    #[test]
    fn what_is_told_of_a_replica_has_no_secret() {
        let source = |variable: &str, value: Option<&str>| SettingSource {
            variable: variable.to_owned(),
            source: "environment",
            value: value.map(str::to_owned),
        };
        let told = told_settings(vec![source("QUEUE", Some("q")), source("PAYLOAD_KEY", None)]);
        assert_eq!(told, serde_json::json!({ "QUEUE": "q" }));
    }

    #[test]
    fn a_url_with_a_user_or_a_query_is_not_shown() {
        assert_eq!(shown("https://h:443/v1"), "https://h:443/v1");
        assert_eq!(shown("15s"), "15s");
        for url in ["https://u:s3cr3t@h/v1", "https://h/v1?key=s3cr3t", "https://s3cr3t@[bad"] {
            assert_eq!(shown(url), "https://(hidden)");
        }
    }
}
