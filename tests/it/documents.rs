//! What the documents tell of settings, messages and commands is what the worker takes,
//! and prints; what is deployed to watch it is what the tables and rules say. `make docs` writes it anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime};

use clap::Arg;
use kyc_worker::cli;
use kyc_worker::console::ROUTES;
use kyc_worker::domain::permission::{Permission, Role};
use kyc_worker::metrics::{METRICS, Standing};
use tempfile::TempDir;

use crate::dashboards;

struct Setting {
    variable: String,
    default: String,
    is_secret: bool,
    meaning: String,
    group: String,
}

/// The settings of a command.
fn settings_of(name: &str) -> Vec<Setting> {
    let command = cli::command();
    let command = command.find_subcommand(name).unwrap_or_else(|| panic!("there is a command `{name}`"));
    command.get_arguments().filter_map(read).collect()
}

fn settings() -> Vec<Setting> {
    settings_of("run")
}

/// The settings that a command has and `run` has not; it shares others with that.
fn settings_of_its_own(name: &str) -> Vec<Setting> {
    let shared = settings();
    let is_its_own = |setting: &Setting| shared.iter().all(|other| other.variable != setting.variable);
    settings_of(name).into_iter().filter(is_its_own).collect()
}

fn settings_of_console() -> Vec<Setting> {
    settings_of_its_own("console")
}

fn settings_of_archive() -> Vec<Setting> {
    settings_of_its_own("archive")
}

fn all_settings() -> Vec<Setting> {
    settings().into_iter().chain(settings_of_console()).chain(settings_of_archive()).collect()
}

fn read(arg: &Arg) -> Option<Setting> {
    let variable = arg.get_env()?.to_str().expect("variables are text").to_owned();
    let mut meaning = arg.get_help().expect("every setting has a doc line").to_string();
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let mut default = defaults.join(",");
    if let Some((said, rest)) = meaning.clone().split_once(" [default: ") {
        default = rest.trim_end_matches(']').to_owned();
        meaning = said.to_owned();
    }
    Some(Setting {
        is_secret: meaning.ends_with("(secret)"),
        group: arg.get_help_heading().expect("every setting has a group").to_owned(),
        variable,
        default,
        meaning,
    })
}

/// Whether a setting is the file of another, which is a secret.
fn names_a_secret(setting: &Setting, settings: &[Setting]) -> bool {
    settings.iter().any(|secret| secret.is_secret && format!("{}_FILE", secret.variable) == setting.variable)
}

fn table(settings: &[Setting]) -> String {
    let mut text = String::from("| variable | default | meaning |\n|---|---|---|\n");
    // A secret's `…_FILE` has no row of its own: a sentence above the table tells of it.
    for setting in settings.iter().filter(|setting| !names_a_secret(setting, settings)) {
        let default = match setting.default.as_str() {
            "" => String::new(),
            words if words.contains(' ') => words.to_owned(),
            value => format!("`{value}`"),
        };
        let meaning = setting.meaning.replace('|', "\\|");
        writeln!(text, "| `{}` | {default} | {meaning} |", setting.variable).expect("a string grows");
    }
    text
}

fn env_example(settings: &[Setting]) -> String {
    let mut text = String::from(
        "# Every setting of `kyc-worker run`, with its default, and those that `kyc-worker console` and `kyc-worker\n\
         # archive` have beside them.\n\
         # Copy this file to .env for development.\n\
         # A secret can also be given as a file: set its variable with _FILE appended to the file's path.\n",
    );
    let mut group = "";
    for setting in settings.iter().filter(|setting| !names_a_secret(setting, settings)) {
        if setting.group != group {
            group = &setting.group;
            write!(text, "\n# ---- {group}\n").expect("a string grows");
        }
        let example = match setting.variable.as_str() {
            "DATABASE_URL" => Some("postgres://postgres@127.0.0.1:5432/kyc"),
            "AMQP_URL" => Some("amqp://guest:guest@127.0.0.1:5672/%2f"),
            "DOLLARPE_BASE_URL" => Some("http://127.0.0.1:4010/cms/api/v1"),
            "DOLLARPE_API_KEY" => Some("sandbox-key"),
            "DOLLARPE_API_SECRET" => Some("sandbox-secret"),
            "PAYLOAD_KEY" => Some("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
            "FINGERPRINT_KEY" => Some("ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8="),
            _ => None,
        };
        writeln!(text, "# {}", setting.meaning).expect("a string grows");
        if setting.group == "Keys" && setting.is_secret {
            text.push_str("# The key here is published: make your own with `openssl rand -base64 32`.\n");
        }
        match example {
            Some(example) => writeln!(text, "{}={example}", setting.variable),
            None => writeln!(text, "#{}={}", setting.variable, setting.default),
        }
        .expect("a string grows");
    }
    text
}

/// Compares a document with what it should be, or writes it where `UPDATE_DOCS` is set.
fn hold(path: &str, expected: &str) {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    #[expect(clippy::disallowed_methods, reason = "how `make docs` asks")]
    let is_update = std::env::var_os("UPDATE_DOCS").is_some();
    if is_update {
        fs::write(&path, expected).expect("the document can be written");
    }
    let found = fs::read_to_string(&path).expect("the document is there");
    assert!(found == expected, "{path} is out of date; `make docs` writes it anew");
}

/// The same for the part of a document that its marks enclose.
fn hold_between(path: &str, part: &str, expected: &str) {
    let begin = format!("<!-- {part}: written by `make docs` -->\n");
    let end = format!("<!-- end of {part} -->");
    let document =
        fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).expect("the document");
    let (before, rest) = document.split_once(&begin).expect("it marks the part");
    let (_, after) = rest.split_once(&end).expect("it marks the part's end");
    hold(path, &format!("{before}{begin}{expected}{end}{after}"));
}

#[test]
fn the_env_example_has_every_setting() {
    hold(".env.example", &env_example(&all_settings()));
}

#[test]
fn the_table_of_settings_has_every_setting() {
    hold_between("docs/settings.md", "settings", &table(&settings()));
    hold_between("docs/settings.md", "settings of the console", &table(&settings_of_console()));
    hold_between("docs/settings.md", "settings of the archive", &table(&settings_of_archive()));
}

/// What the console shares with `run` means the same there, and it knows of nothing else.
#[test]
fn the_console_has_its_own_settings_and_those_that_it_shares() {
    let own = settings_of_console();
    assert!(own.iter().all(|setting| setting.group == "Console"), "a setting of another group");
    let shared: Vec<String> = settings_of("console")
        .into_iter()
        .filter(|setting| setting.group != "Console")
        .map(|setting| setting.variable)
        .collect();
    let secrets = ["AMQP_URL", "DOLLARPE_API_KEY", "DOLLARPE_API_SECRET", "PAYLOAD_KEY", "FINGERPRINT_KEY"];
    for secret in secrets {
        assert!(!shared.iter().any(|name| name.starts_with(secret)), "the console is given {secret}");
    }
    assert!(shared.contains(&"DATABASE_URL".to_owned()), "{shared:?}");
}

/// What somebody may do in the console.
const PERMISSIONS: [Permission; 6] = [
    Permission::View,
    Permission::Pause,
    Permission::Replay,
    Permission::Decide,
    Permission::Approve,
    Permission::Audit,
];

const fn meaning(permission: Permission) -> &'static str {
    match permission {
        Permission::View => "see jobs, customers, worklists, the fleet and the settings",
        Permission::Pause => "pause all the work, and resume it",
        Permission::Replay => "send ended jobs again",
        Permission::Decide => "settle jobs, and say how many updates a customer spent elsewhere",
        Permission::Approve => "decide on what another person proposed, where their own roles let them do it",
        Permission::Audit => "see what people did and why, and who saw which customer",
    }
}

/// A column for each role.
fn heading(of: &str) -> String {
    let names = Role::ALL.map(Role::name).join(" | ");
    format!("| {of} | {names} |\n|---{}|\n", "|---".repeat(Role::ALL.len()))
}

/// Which roles have a permission.
fn marks(permission: Permission) -> String {
    Role::ALL.map(|role| if permission.is_of(&[role]) { "yes" } else { "" }).join(" | ")
}

#[test]
fn the_document_of_the_console_says_who_may_what() {
    let mut roles = heading("may");
    for permission in PERMISSIONS {
        writeln!(roles, "| {} | {} |", meaning(permission), marks(permission)).expect("a string grows");
    }
    hold_between("docs/console.md", "roles", &roles);
    let mut addresses = heading("address");
    for route in ROUTES {
        let (method, marks) = (route.method.to_uppercase(), marks(route.permission));
        writeln!(addresses, "| `{method} {}` | {marks} |", route.path).expect("a string grows");
    }
    hold_between("docs/console.md", "addresses", &addresses);
}

/// A row for each metric: its name, its type, its labels with how many values each has, its meaning.
fn table_of_metrics() -> String {
    METRICS.take_fleet([].into_iter(), SystemTime::UNIX_EPOCH, Duration::ZERO);
    let text = METRICS.encode(&Standing::default()).expect("a text");
    let mut table = String::from("| metric | type | labels | meaning |\n|---|---|---|---|\n");
    for line in text.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        let (name, meaning) = line.split_once(' ').expect("a meaning");
        let kind = text.split_once(&format!("# TYPE {name} ")).expect("a type").1;
        let kind = kind.split_once('\n').expect("a line").0;
        let shown = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
        let of_metric = |line: &&str| {
            let rest = line.strip_prefix(name).unwrap_or_default();
            ["{", "_total{", "_count{"].iter().any(|after| rest.starts_with(after))
        };
        let mut labels: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for series in text.lines().filter(of_metric) {
            let (_, rest) = series.split_once('{').expect("labels");
            let (inner, _) = rest.split_once("} ").expect("labels that end");
            for label in inner.split(',') {
                let (label, value) = label.split_once('=').expect("a value");
                labels.entry(label).or_default().insert(value);
            }
        }
        let labels: Vec<String> =
            labels.iter().map(|(label, values)| format!("`{label}` ({})", values.len())).collect();
        let meaning = meaning.trim_end_matches('.');
        writeln!(table, "| `{shown}` | {kind} | {} | {meaning} |", labels.join(", "))
            .expect("a string grows");
    }
    table
}

#[test]
fn the_table_of_metrics_has_every_metric() {
    hold_between("docs/metrics.md", "metrics", &table_of_metrics());
}

#[test]
fn the_dashboards_are_what_their_tables_say() {
    for dashboard in [dashboards::METRICS, dashboards::DATABASE] {
        hold(&dashboard.path(), &dashboard.file());
    }
}

/// Prometheus takes no file of Kubernetes, and its operator none of Prometheus.
#[test]
fn kubernetes_has_the_rules_of_prometheus() {
    let rules = format!("{}/deploy/monitoring/rules.yaml", env!("CARGO_MANIFEST_DIR"));
    let rules = fs::read_to_string(rules).expect("the rules");
    let (_, groups) = rules.split_once("\ngroups:\n").expect("groups");
    let mut manifest = String::from(
        "# The groups of deploy/monitoring/rules.yaml, written by `make docs`.\n\
         # yamllint disable rule:line-length\n\
         apiVersion: monitoring.coreos.com/v1\n\
         kind: PrometheusRule\n\
         metadata:\n  \
           name: kyc-worker\n  \
           labels:\n    \
             app.kubernetes.io/name: kyc-worker\n\
         spec:\n  \
           groups:\n",
    );
    for line in groups.lines() {
        let indent = if line.is_empty() { "" } else { "  " };
        writeln!(manifest, "{indent}{line}").expect("a string grows");
    }
    hold("deploy/kubernetes/components/monitoring/prometheus-rule.yaml", &manifest);
}

#[test]
fn every_secret_can_be_a_file() {
    let settings = all_settings();
    for secret in settings.iter().filter(|setting| setting.is_secret) {
        let file = format!("{}_FILE", secret.variable);
        assert!(settings.iter().any(|setting| setting.variable == file), "{file} is missing");
    }
    assert_eq!(settings.iter().filter(|setting| setting.is_secret).count(), 9);
}

/// What a command prints where nothing is set.
fn printed(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_kyc-worker"))
        .args(arguments)
        .env_clear()
        .current_dir(std::env::temp_dir())
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn the_published_schemas_are_what_the_worker_prints() {
    hold("docs/job.schema.json", &printed(&["schema"]));
    hold("docs/event.schema.json", &printed(&["schema", "--event"]));
    hold("docs/asyncapi.json", &printed(&["schema", "--asyncapi"]));
}

#[test]
fn every_command_has_an_example_a_man_page_and_completions() {
    let command = cli::command();
    let directory = TempDir::new().expect("a directory");
    printed(&["man", directory.path().to_str().expect("UTF-8")]);
    let completions = ["bash", "zsh", "fish"].map(|shell| printed(&["completions", shell]));
    let mut commands = vec![(String::from("kyc-worker"), &command)];
    while let Some((name, command)) = commands.pop() {
        let page = directory.path().join(format!("{}.1", name.replace(' ', "-")));
        assert!(page.exists(), "no {}", page.display());
        if command.has_subcommands() {
            let subcommands = command.get_subcommands();
            commands.extend(subcommands.map(|sub| (format!("{name} {}", sub.get_name()), sub)));
            continue;
        }
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.contains(&name), "no example for {name}");
        for text in &completions {
            assert!(text.contains(command.get_name()), "{name} is not completed");
        }
    }
}
