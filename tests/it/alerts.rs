//! The alerts of deploy/monitoring: they fire when they should and only then, say by `promtool` what
//! their tests expect, name what is there, and die of a change to what they say.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::metrics;

const TESTS: [&str; 2] = ["rules_test.yaml", "rules_slow_test.yaml"];

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/monitoring")
}

fn read(name: &str) -> Value {
    let text = fs::read_to_string(directory().join(name)).expect("the file");
    serde_saphyr::from_str(&text).expect("YAML")
}

/// Runs `promtool`, which Debian's package prometheus has; `make services` installs it.
fn promtool(directory: &Path, arguments: &[&str]) -> Output {
    let ran = Command::new("promtool").args(arguments).current_dir(directory).output();
    ran.expect("promtool, which `make services` installs, or Debian's package prometheus")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// The alerts, and the recordings.
fn rules() -> (Vec<Value>, Vec<Value>) {
    let groups = read("rules.yaml")["groups"].as_array().expect("groups").clone();
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().expect("rules").clone());
    rules.partition(|rule| rule["alert"].is_string())
}

/// The names that the rules record under.
pub(crate) fn recorded() -> Vec<String> {
    rules().1.iter().map(|rule| text(rule, "record").to_owned()).collect()
}

/// The rules that are alerts, each with the recordings that it needs.
fn alerts() -> Vec<(Value, Vec<Value>)> {
    let (alerts, recordings) = rules();
    let needed = |alert: &Value| match text(alert, "expr").contains("kyc:") {
        true => recordings.clone(),
        false => Vec::new(),
    };
    alerts.into_iter().map(|alert| (alert.clone(), needed(&alert))).collect()
}

fn text<'a>(rule: &'a Value, key: &str) -> &'a str {
    rule[key].as_str().unwrap_or_else(|| panic!("{rule} has no {key}"))
}

/// The anchors of a document's headings.
pub(crate) fn sections(document: &str) -> BTreeSet<String> {
    document
        .lines()
        .filter(|line| line.starts_with("##"))
        .map(|line| line.trim_start_matches('#').trim().to_lowercase())
        .map(|title| title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect())
        .map(|title: String| title.replace(' ', "-"))
        .collect()
}

#[test]
fn the_alerts_fire_when_they_should_and_only_then() {
    let checked = promtool(&directory(), &["check", "rules", "rules.yaml"]);
    assert!(checked.status.success(), "{}", said(&checked));
    let checked = promtool(&directory(), &["check", "config", "prometheus.yaml"]);
    assert!(checked.status.success(), "{}", said(&checked));
    let tested = promtool(&directory(), &[&["test", "rules"][..], &TESTS].concat());
    assert!(tested.status.success(), "{}", said(&tested));
    // Each has a case in which it fires, and one in which it does not.
    let cases: Vec<Value> = TESTS
        .into_iter()
        .flat_map(|file| read(file)["tests"].as_array().expect("tests").clone())
        .flat_map(|test| test["alert_rule_test"].as_array().expect("cases").clone())
        .collect();
    for (alert, _) in alerts() {
        let name = text(&alert, "alert");
        let of_alert = cases.iter().filter(|case| case["alertname"] == name);
        let fires: BTreeSet<bool> =
            of_alert.map(|case| case["exp_alerts"].as_array().is_some_and(|all| !all.is_empty())).collect();
        assert_eq!(fires.len(), 2, "{name} has no case for {fires:?}");
    }
}

#[test]
fn every_alert_names_metrics_and_a_section_of_the_runbook_that_are_there() {
    let catalogue = metrics::catalogue();
    let runbook = fs::read_to_string(directory().join("../../docs/operations.md")).expect("the runbook");
    let sections = sections(&runbook);
    for (alert, recordings) in alerts() {
        let name = text(&alert, "alert");
        for rule in [&[alert.clone()][..], &recordings].concat() {
            metrics::check_names(name, text(&rule, "expr"), &catalogue, &recorded());
        }
        let url = text(&alert["annotations"], "runbook_url");
        let section = url.strip_prefix("docs/operations.md#").expect("a section of the runbook");
        assert!(sections.contains(section), "{name}: there is no {section} in {sections:?}");
        let severity = text(&alert["labels"], "severity");
        assert!(["critical", "warning"].contains(&severity), "{name}: {severity}");
    }
}

/// What could be wrong in a rule and look right: its threshold, its comparison, its patience.
fn mutants(rule: &Value) -> Vec<(String, Value)> {
    let expression = text(rule, "expr");
    let mut mutants = Vec::new();
    let mut mutate = |what: String, key: &str, value: Value| {
        let mut mutant = rule.clone();
        mutant[key] = value;
        mutants.push((what, mutant));
    };
    for (from, to) in [(" > ", " < "), (" == ", " != "), (" unless ", " and ")] {
        if expression.contains(from) {
            mutate(format!("{from}->{to}"), "expr", json!(expression.replace(from, to)));
        }
    }
    if rule["for"].is_string() {
        mutate("it waits for a month".to_owned(), "for", json!("30d"));
    }
    mutants
}

#[test]
fn a_change_to_what_an_alert_says_is_found() {
    let tests: Vec<(&str, Value)> = TESTS.map(|file| (file, read(file))).to_vec();
    let mut survivors = Vec::new();
    for (alert, recordings) in alerts() {
        for (what, mutant) in mutants(&alert) {
            let directory = TempDir::new().expect("a directory");
            let rules: Vec<Value> = recordings.iter().cloned().chain([mutant]).collect();
            let write = |name: &str, value: &Value| {
                // JSON is YAML, too.
                fs::write(directory.path().join(name), value.to_string()).expect("a file");
            };
            write("rules.yaml", &json!({ "groups": [{ "name": "one", "rules": rules }] }));
            let mut files = Vec::new();
            for (file, test) in &tests {
                let mut test = test.clone();
                let cases = test["tests"].as_array_mut().expect("tests");
                for case in cases.iter_mut() {
                    let of_rule = case["alert_rule_test"].as_array_mut().expect("cases");
                    of_rule.retain(|case| case["alertname"] == alert["alert"]);
                }
                cases.retain(|case| case["alert_rule_test"].as_array().is_some_and(|all| !all.is_empty()));
                if !cases.is_empty() {
                    write(file, &test);
                    files.push(*file);
                }
            }
            let tested = promtool(directory.path(), &[&["test", "rules"][..], &files].concat());
            if tested.status.success() {
                survivors.push(format!("{}: {what}", text(&alert, "alert")));
            }
        }
    }
    assert!(survivors.is_empty(), "no test finds these changes: {survivors:#?}");
}
