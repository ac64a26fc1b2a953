//! The schema's words stand once in the code: its checks and the domain know the same ones, and no
//! statement names another.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use kyc_worker::domain::budget::spends;
use kyc_worker::domain::state::{ConclusionKind, Evidence, Purpose, State, VerdictKind, WaitingFor};

use crate::harness::{World, world};

fn words<'a>(names: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

fn states(is_meant: fn(State) -> bool) -> BTreeSet<String> {
    words(State::ALL.iter().filter(|state| is_meant(**state)).map(|state| state.name()))
}

/// What stands between quotes.
fn quoted(sql: &str) -> BTreeSet<String> {
    words(sql.split('\'').skip(1).step_by(2))
}

async fn check(world: &World, name: &str) -> String {
    sqlx::query_scalar("select pg_get_constraintdef(oid) from pg_constraint where conname = $1")
        .bind(name)
        .fetch_one(&world.pool)
        .await
        .expect("a check of that name")
}

#[test]
fn the_schemas_checks_have_the_words_of_the_domain() {
    world(async |world| {
        let known = check(&world, "submission_state_known").await;
        let (in_motion, ended) = known.split_once("ELSE").expect("rows in motion, and others");
        assert_eq!(quoted(in_motion), states(State::is_in_motion));
        assert_eq!(quoted(ended), states(State::has_ended));
        let kept = check(&world, "submission_payload_kept").await;
        assert_eq!(quoted(&kept), states(State::is_replayable));
        let slot: String =
            sqlx::query_scalar("select pg_get_indexdef('submission_one_claim_per_customer'::regclass)")
                .fetch_one(&world.pool)
                .await
                .expect("the index");
        assert_eq!(quoted(&slot), states(State::holds_slot));
        for (name, known) in [
            ("submission_waiting_for_known", words(WaitingFor::ALL.iter().map(|word| word.name()))),
            ("attempt_verdict_known", words(VerdictKind::ALL.iter().map(|word| word.name()))),
            ("observation_purpose_known", words(Purpose::ALL.iter().map(|word| word.name()))),
        ] {
            assert_eq!(quoted(&check(&world, name).await), known, "{name}");
        }
    });
}

/// The files with Rust in them, or with SQL.
fn sources(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "sql") {
            files.push(path);
        }
    }
}

/// What SQL compares `column` with, or sets it to: one list of words for each place.
fn compared(text: &str, column: &str) -> Vec<BTreeSet<String>> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for (at, _) in text.match_indices(column) {
        let after = text[at + column.len()..].trim_start();
        if text[..at].ends_with(is_name) {
            continue;
        }
        let one = ["=", "<>"].iter().find_map(|operator| after.strip_prefix(operator));
        let list = ["in (", "not in ("].iter().find_map(|operator| after.strip_prefix(operator));
        let named = match (one.map(str::trim_start), list) {
            (Some(one), _) if one.starts_with('\'') => one.split('\'').nth(1).map(|word| words([word])),
            (_, Some(list)) => list.split_once(')').map(|(list, _)| quoted(list)),
            _ => None,
        };
        found.extend(named);
    }
    found
}

#[test]
fn no_statement_names_a_word_that_the_schema_does_not_have() {
    let columns: [(&str, BTreeSet<String>); 7] = [
        ("state", words(State::ALL.iter().map(|word| word.name()))),
        ("waiting_for", words(WaitingFor::ALL.iter().map(|word| word.name()))),
        ("evidence", words(Evidence::ALL.iter().map(|word| word.name()))),
        ("verdict", words(VerdictKind::ALL.iter().map(|word| word.name()))),
        ("late_verdict", words(VerdictKind::ALL.iter().map(|word| word.name()))),
        ("purpose", words(Purpose::ALL.iter().map(|word| word.name()))),
        ("conclusion", words(ConclusionKind::ALL.iter().map(|word| word.name()))),
    ];
    let spent = words(VerdictKind::ALL.iter().filter(|verdict| spends(**verdict)).map(|word| word.name()));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    sources(&root.join("migrations"), &mut files);
    let (mut named, mut budgets) = (0, 0);
    for file in &files {
        let text = fs::read_to_string(file).expect("a text");
        for (column, known) in &columns {
            for list in compared(&text, column) {
                assert!(list.is_subset(known), "{}: {column} {list:?}", file.display());
                // A list with both is what counts as spent.
                if *column == "verdict" && spent.is_subset(&list) && list.len() < known.len() {
                    assert_eq!(list, spent, "{}", file.display());
                    budgets += 1;
                }
                named += 1;
            }
        }
    }
    println!("{named} places in {} files, of which {budgets} are what counts as spent", files.len());
    assert!(named > 100, "the search has lost its way after {named} places");
}

/// Texts of the code that are a state's word, and no state.
const NO_STATES: [&str; 5] = [
    // The broker's word for why it dead-lettered.
    "broker/x_death.rs",
    "cli/dead_letters.rs",
    // The reason of a customer event that cannot be read.
    "domain/customer_event.rs",
    // The words that may be shown of what the provider says.
    "domain/foreign_text.rs",
    "domain/state.rs",
];

#[test]
fn no_code_spells_a_state_out() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    for file in files.iter().filter(|file| !file.ends_with("tests.rs")) {
        let name = file.strip_prefix(&root).expect("a file of src").display().to_string();
        let text = fs::read_to_string(file).expect("a text");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for state in State::ALL {
            let is_spelled = code.contains(&format!("\"{state}\"")) && !NO_STATES.contains(&name.as_str());
            assert!(!is_spelled, "{name}: {state:?}; take it from domain/state.rs");
        }
    }
}

/// What the code says no more, and what it says instead.
const GONE: [(&[&str], &str); 6] = [
    (&["look", "looks", "looking", "looked"], "read (of a customer), inspect, load"),
    (&["park", "parks", "parked", "parking"], "schedule (a retry), wait"),
    (&["doubt", "doubts", "doubted", "doubtful", "fate"], "unknown outcome"),
    (&["abandoned", "takeover"], "expired lease, rescue"),
    (&["he", "him", "his"], "they (a customer), it (a process)"),
    (&["rival", "contender", "ruling"], "sibling, candidate, decision"),
];

/// Where those words mean something else, or are a name of the interface.
const ALLOWED: [&str; 18] = [
    "parking_lot",
    "look_again",
    "not_looked",
    "fate_unknown",
    "\"fate\"",
    "look up",
    "look-up",
    "looks up",
    "looks each of them up",
    "looks few rows up",
    "looked up",
    "looks for",
    "looks like",
    "looks blank",
    "look the same",
    "look_back",
    "look_up_by_index",
    "in_doubt_here",
];

#[test]
fn no_word_that_was_replaced_comes_back() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut files, mut found) = (vec![root.join("worker.rs"), root.join("context.rs")], Vec::new());
    for place in ["journal", "domain", "control", "desk"] {
        sources(&root.join(place), &mut files);
    }
    for file in files.iter().filter(|file| !file.ends_with("tests.rs")) {
        let text = fs::read_to_string(file).expect("a text");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for line in code.lines() {
            // `FateUnknown` is `fate_unknown`.
            let mut plain = String::new();
            for c in line.chars() {
                let begins = c.is_uppercase() && plain.ends_with(|before: char| before.is_ascii_lowercase());
                plain.extend(begins.then_some('_').into_iter().chain(c.to_lowercase()));
            }
            let rest = ALLOWED.iter().fold(plain, |line, allowed| line.replace(allowed, ""));
            for word in rest.split(|c: char| !c.is_alphabetic()) {
                if let Some((_, instead)) = GONE.iter().find(|(gone, _)| gone.contains(&word)) {
                    found.push(format!("{}: {word:?} in {line:?}; say {instead}", file.display()));
                }
            }
        }
    }
    assert!(files.len() > 40, "{} files are not all", files.len());
    assert!(found.is_empty(), "{}", found.join("\n"));
}
