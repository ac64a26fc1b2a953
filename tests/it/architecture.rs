//! What ARCHITECTURE.md says is there: its paths, its settings with their defaults, its states, and
//! every transition, each by the statement that makes it.
//!
//! The code's transitions are read from its SQL, as `.sqlx` has it: each statement that inserts or
//! deletes a `submission`, or sets its `state`, with the states that it names on either side. One
//! statement, `move_on`, takes both as parameters: [`moves`] says of each function that has it move
//! rows from which states and to which, by the rule that decides or the statement that locks. Where
//! another leaves something out, [`SAID_IN_RUST`] says it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kyc_worker::cli;
use kyc_worker::domain::outcome::{History, Next, ends_by_late_acceptance, next};
use kyc_worker::domain::read_back::Conclusion;
use kyc_worker::domain::retry::RetrySchedule;
use kyc_worker::domain::state::State;
use kyc_worker::domain::verdict::{Acceptance, FailurePoint, Misconfiguration, NotSent, Rejection, Verdict};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// No row: before the first delivery, and after an invalid one made way for a valid one.
const NEW: &str = "new";

type States = BTreeSet<String>;
type Pairs = BTreeSet<(String, String)>;

/// What statements leave to the code around them: from which states.
const SAID_IN_RUST: [(&str, &[&str]); 1] = [
    // What a person may do to a locked row.
    ("schedule_again", &["exhausted", "needs_review"]),
];

fn states(names: &[&str]) -> States {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// How an attempt may leave its job, by the rule that says what follows a verdict.
fn after_an_attempt() -> States {
    let verdicts = [
        Verdict::Accepted(Acceptance::default()),
        Verdict::Rejected(Rejection::FieldRefused),
        Verdict::NotSent(NotSent::Connect),
        Verdict::NotSent(NotSent::HeldBack),
        Verdict::NotSent(NotSent::Shutdown),
        Verdict::NotSent(NotSent::ConfigurationUnread),
        Verdict::NotSent(NotSent::LinkUnchecked),
        Verdict::Throttled { retry_after: None },
        Verdict::Misconfigured(Misconfiguration::ApiKey),
        Verdict::Misconfigured(Misconfiguration::Undocumented),
        Verdict::Misconfigured(Misconfiguration::LikeOthers),
        Verdict::Unknown(FailurePoint::TimedOut),
    ];
    let delay = Duration::from_secs(1);
    let schedule = RetrySchedule { delay_min: delay, delay_max: delay, attempts_max: 9, pause_max: delay };
    let often = [0, 1, 8, 9];
    let mut seen = States::new();
    for verdict in &verdicts {
        for (retries, refused) in often.iter().flat_map(|n| often.map(|m| (*n, m))) {
            for (is_probe, others_are_taken) in [(false, false), (false, true), (true, false), (true, true)] {
                let history =
                    History { retries, misconfigured: refused, unknown: 0, is_probe, others_are_taken };
                seen.insert(match next(verdict, history, &schedule, 0.5) {
                    Next::End(outcome) => outcome.state().to_string(),
                    Next::Wait(_) => "waiting".to_owned(),
                    Next::ReadBack => "unknown".to_owned(),
                });
            }
        }
    }
    seen
}

/// Where an acceptance that comes late finds a job that it ends.
fn before_a_late_acceptance() -> States {
    let codes = [None, Some("fate_unknown"), Some("last_update"), Some("newer_fate_unknown")];
    let ends = |state: &&State| codes.iter().any(|code| ends_by_late_acceptance(**state, *code));
    State::ALL.iter().filter(ends).map(State::to_string).collect()
}

/// How a read may leave its job.
fn after_a_read() -> States {
    let after = Duration::ZERO;
    let conclusions = [
        Conclusion::Applied,
        Conclusion::NotApplied,
        Conclusion::LastUpdate,
        Conclusion::Confirming { after },
        Conclusion::ReadAgain { after },
        Conclusion::Unsettled,
    ];
    let state = |conclusion| match conclusion {
        Conclusion::Applied => "accepted",
        Conclusion::NotApplied => "waiting",
        Conclusion::LastUpdate | Conclusion::Unsettled => "needs_review",
        Conclusion::Confirming { .. } | Conclusion::ReadAgain { .. } => "unknown",
    };
    states(&conclusions.map(state))
}

fn read(path: &str) -> String {
    let path = Path::new(ROOT).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn document() -> String {
    read("ARCHITECTURE.md")
}

fn files(directory: &str, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(Path::new(ROOT).join(directory)).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.strip_prefix(ROOT).expect("it is below").to_str().expect("UTF-8").to_owned();
        if path.is_dir() {
            files(&name, extension, found);
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(PathBuf::from(name));
        }
    }
}

/// The worker's sources: path and text.
pub fn sources() -> Vec<(String, String)> {
    let mut paths = Vec::new();
    files("src", "rs", &mut paths);
    let name = |path: &PathBuf| path.to_str().expect("UTF-8").to_owned();
    paths.iter().map(|path| (name(path), read(&name(path)))).collect()
}

/// What stands between backticks, fenced blocks left out.
fn quoted(text: &str) -> Vec<String> {
    let prose: String = text.split("```").step_by(2).collect();
    prose.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// `broker/{session,acks}.rs` stands for two paths.
fn expanded(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else { return vec![path.to_owned()] };
    let (inner, after) = rest.split_once('}').expect("a brace is closed");
    inner.split(',').map(|part| format!("{before}{}{after}", part.trim())).collect()
}

fn is_path(text: &str) -> bool {
    let is_plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "_./{},-".contains(c));
    let has_extension =
        [".rs", ".sql", ".md", ".toml", ".sh"].iter().any(|extension| text.ends_with(extension));
    is_plain && (has_extension || text.contains('/'))
}

/// Every path that the document names, from the root.
fn paths() -> BTreeSet<String> {
    let document = document();
    let links = document.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
    let links = links.filter(|link| !link.is_empty() && !link.contains("://")).map(str::to_owned);
    let named = quoted(&document).into_iter().filter(|text| is_path(text));
    let from_root = |path: String| {
        let is_in_src = Path::new(ROOT).join("src").join(&path).exists();
        if is_in_src { format!("src/{path}") } else { path }
    };
    links.chain(named).flat_map(|path| expanded(&path)).map(from_root).collect()
}

#[test]
fn every_path_in_the_architecture_exists() {
    for path in paths() {
        assert!(Path::new(ROOT).join(&path).exists(), "ARCHITECTURE.md: there is no {path}");
    }
}

#[test]
fn every_file_of_the_journal_and_the_broker_is_on_the_map() {
    let named = paths();
    let mut there = Vec::new();
    for directory in ["src/journal", "src/broker"] {
        files(directory, "rs", &mut there);
    }
    for path in there {
        let path = path.to_str().expect("UTF-8");
        assert!(named.contains(path), "ARCHITECTURE.md: {path} is not on the map");
    }
}

/// Every setting with its default.
fn defaults() -> BTreeMap<String, String> {
    let command = cli::command();
    let run = command.find_subcommand("run").expect("there is a command `run`");
    let default = |arg: &clap::Arg| {
        let variable = arg.get_env()?.to_str()?.to_owned();
        let values: Vec<_> =
            arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
        Some((variable, values.join(",")))
    };
    run.get_arguments().filter_map(default).collect()
}

#[test]
fn every_setting_in_the_architecture_has_the_default_that_it_says() {
    let (defaults, mut compared) = (defaults(), 0);
    for text in quoted(&document()) {
        let (name, value) =
            text.split_once(" = ").map_or((text.as_str(), None), |(name, value)| (name, Some(value)));
        let is_setting = name.contains('_')
            && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
        if !is_setting {
            continue;
        }
        let default = defaults.get(name).unwrap_or_else(|| panic!("ARCHITECTURE.md: no setting is {name}"));
        if let Some(value) = value {
            assert_eq!(value, default, "ARCHITECTURE.md: {name}");
            compared += 1;
        }
    }
    assert!(compared > 10, "{compared}");
}

#[test]
fn what_the_reads_cover_is_what_the_settings_come_to() {
    let defaults = defaults();
    let seconds = |name: &str| humantime::parse_duration(&defaults[name]).expect("a duration").as_secs();
    let (after, window) = (seconds("READ_BACK_AFTER"), seconds("READ_BACK_WINDOW"));
    let (safe, read) = (window - window / 12, seconds("SCHEDULER_POLL") + seconds("READ_TIMEOUT"));
    let document = document();
    for said in [
        format!("{after} + {safe} − {read} = {} s", after + safe - read),
        format!("{} s after the first read began", safe - read),
        format!("`READ_BACK_AFTER` / 3 = {} s", after / 3),
    ] {
        assert!(document.contains(&said), "ARCHITECTURE.md does not say {said:?}");
    }
}

/// The states of a submission, as the newest check constraint has them.
fn schema_states() -> States {
    let mut paths = Vec::new();
    files("migrations", "sql", &mut paths);
    paths.sort();
    let schema: String = paths.iter().map(|path| read(path.to_str().expect("UTF-8"))).collect();
    let (_, rest) = schema.rsplit_once("constraint submission_state_known check").expect("it is there");
    let check = rest.split("constraint").next().expect("a first part");
    let check = check.split(';').next().expect("a first part");
    check.split('\'').skip(1).step_by(2).map(str::to_owned).collect()
}

/// A row of the table of transitions.
struct Row {
    pairs: Pairs,
    statements: Vec<String>,
    files: Vec<String>,
}

fn cells(line: &str) -> Vec<&str> {
    line.trim_matches('|').split('|').map(str::trim).collect()
}

fn section<'a>(document: &'a str, heading: &str) -> &'a str {
    let (_, rest) = document.split_once(heading).unwrap_or_else(|| panic!("no section {heading}"));
    rest.split("\n#").next().expect("a first part")
}

fn rows(document: &str) -> Vec<Row> {
    let section = section(document, "### Transitions\n");
    let lines = section.lines().filter(|line| line.starts_with("| `"));
    lines
        .map(|line| {
            let cells = cells(line);
            let [from, to, _, _, statements, _, _] = cells[..] else { panic!("seven cells: {line}") };
            let to = quoted(to);
            let pair = |from: String| to.iter().map(move |to| (from.clone(), to.clone()));
            let (files, statements) = quoted(statements).into_iter().partition(|text| is_path(text));
            Row { pairs: quoted(from).into_iter().flat_map(pair).collect(), statements, files }
        })
        .collect()
}

/// A statement's SQL, in one line and without comments.
fn flat(query: &str) -> String {
    let lines = query.lines().map(|line| line.split("-- ").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join(" ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Every statement that the compiler has checked, by its name.
fn statements() -> BTreeMap<String, String> {
    let mut paths = Vec::new();
    files(".sqlx", "json", &mut paths);
    let query = |path: &PathBuf| {
        let text = read(path.to_str().expect("UTF-8"));
        let described: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let query = described["query"].as_str().expect("a query").to_owned();
        let name = query.lines().next().and_then(|line| line.strip_prefix("-- ")).map(str::trim);
        name.map(|name| (name.to_owned(), flat(&query)))
    };
    paths.iter().filter_map(query).collect()
}

/// The part of `sql` until one of `ends` comes outside of its parentheses, or its own is closed.
fn until<'a>(sql: &'a str, ends: &[&str]) -> &'a str {
    let mut depth = 0;
    for (at, c) in sql.char_indices() {
        match c {
            '(' => depth += 1,
            ')' if depth == 0 => return &sql[..at],
            ')' => depth -= 1,
            _ if depth == 0 && ends.iter().any(|end| sql[at..].starts_with(end)) => return &sql[..at],
            _ => {}
        }
    }
    sql
}

fn literals(sql: &str, known: &States) -> States {
    let texts = sql.split('\'').skip(1).step_by(2).map(str::to_owned);
    texts.filter(|text| known.contains(text)).collect()
}

/// Each comparison of a `state` with states, as it stands there; what is compared may be another row's.
fn comparisons(sql: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    for (at, _) in sql.match_indices("state ") {
        let rest = &sql[at..];
        if rest.starts_with("state = ") || rest.starts_with("state in ") {
            let alias = sql[..at].rsplit([' ', '(']).next().unwrap_or_default();
            let compared = until(rest, &[" and ", " or ", " order ", " returning ", " limit ", " for ", ","]);
            found.push((alias, compared));
        }
    }
    found
}

/// The states in which a statement takes its row: compared without an alias, or with that of the row.
fn own(sql: &str, known: &States) -> States {
    let is_own = |alias: &str| ["", "s.", "submission."].contains(&alias);
    let compared = comparisons(sql).into_iter().filter(|(alias, _)| is_own(alias));
    compared.flat_map(|(_, compared)| literals(compared, known)).collect()
}

/// What a statement does to a submission's state: from what it says itself, to what it says itself.
/// Empty is what it leaves to others.
fn said_by(sql: &str, known: &States) -> Option<(States, States)> {
    if let Some((_, insert)) = sql.split_once("insert into submission ") {
        let compared = comparisons(insert).into_iter();
        let written = compared.fold(insert.to_owned(), |rest, (_, compared)| rest.replace(compared, ""));
        return Some((states(&[NEW]), literals(&written, known)));
    }
    if let Some((_, delete)) = sql.split_once("delete from submission ") {
        return Some((own(delete, known), states(&[NEW])));
    }
    for (at, update) in sql.match_indices("update submission ") {
        let rest = &sql[at + update.len()..];
        let (_, rest) = rest.split_once("set ").expect("an update sets");
        let set = until(rest, &[" from ", " where ", " returning "]);
        let is_after_comma = set.find(", state = ").map(|at| at + 2);
        let Some(begin) = (if set.starts_with("state = ") { Some(0) } else { is_after_comma }) else {
            continue;
        };
        let to = literals(until(&set[begin..], &[","]), known);
        let condition = until(&rest[set.len()..], &[" returning "]);
        let mut from = own(condition, known);
        if from.is_empty() {
            // The rows were chosen, and locked, in a part before.
            from = own(&sql[..at], known);
        }
        return Some((from, to));
    }
    None
}

/// What each function has `move_on` do: from which states, and to which.
fn moves(known: &States) -> BTreeMap<String, (States, States)> {
    let statements = statements();
    let locked_by = |lock: &str| own(&statements[lock], known);
    let given_up = ["waiting", "superseded", "duplicate", "exhausted", "needs_review"];
    [
        ("close_many", states(&["submitting"]), after_an_attempt()),
        // What a slot comes to that is not used, by `precedence`, `expires_at`, the budget and the key.
        ("give_up_slot", states(&["submitting"]), states(&given_up)),
        ("supersede_older", locked_by("lock_older"), states(&["superseded"])),
        ("expire", locked_by("lock_expired"), states(&["exhausted"])),
        ("rescue", locked_by("lock_expired_leases"), states(&["unknown"])),
        ("conclude_read", states(&["unknown"]), after_a_read()),
        ("record_late", before_a_late_acceptance(), states(&["accepted"])),
        // What a person may find.
        ("resolve_in", states(&["needs_review"]), states(&["accepted", "rejected", "exhausted"])),
    ]
    .map(|(name, from, to)| (name.to_owned(), (from, to)))
    .into()
}

/// The functions that have `move_on` move rows.
fn movers() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (_, text) in sources().iter().filter(|(path, _)| !path.ends_with("statements/move_on.rs")) {
        let mut function = String::new();
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            if let Some((_, rest)) = line.split_once("fn ") {
                function = rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            }
            if ["move_on(", "move_locked("].iter().any(|call| line.contains(call)) {
                found.insert(function.clone());
            }
        }
    }
    found
}

fn pairs_of(from: &States, to: &States) -> Pairs {
    from.iter().flat_map(|from| to.iter().map(move |to| (from.clone(), to.clone()))).collect()
}

/// Every transition that the code makes, by the statement or the function that makes it.
fn code_pairs(known: &States) -> BTreeMap<String, Pairs> {
    let statements = statements();
    let mut pairs = BTreeMap::new();
    for (name, sql) in statements.iter().filter(|(name, _)| *name != "move_on") {
        let Some((mut from, to)) = said_by(sql, known) else { continue };
        if let Some((_, said)) = SAID_IN_RUST.iter().find(|(said, _)| said == name) {
            assert!(from.is_empty(), "{name} says itself which states: {from:?}");
            from = states(said);
        }
        assert!(!from.is_empty() && !to.is_empty(), "{name}: say the states in SQL, or in SAID_IN_RUST");
        pairs.insert(name.clone(), pairs_of(&from, &to));
    }
    let moves = moves(known);
    assert_eq!(movers(), moves.keys().cloned().collect(), "who has rows moved on, and what `moves` says");
    for (name, (from, to)) in moves {
        pairs.insert(name, pairs_of(&from, &to));
    }
    pairs
}

#[test]
fn every_transition_of_the_code_is_in_the_table_and_no_other() {
    let (known, document) = (schema_states(), document());
    let mut said: BTreeMap<String, Pairs> = BTreeMap::new();
    for row in rows(&document) {
        for statement in &row.statements {
            said.entry(statement.clone()).or_default().extend(row.pairs.clone());
        }
    }
    let done = code_pairs(&known);
    let names = |pairs: &BTreeMap<String, Pairs>| pairs.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&said), names(&done), "the table's statements, and those that set a submission's state");
    for (name, pairs) in &done {
        assert_eq!(&said[name], pairs, "{name}: the table's transitions, and those that it makes");
    }
    let mut named: States =
        said.values().flatten().flat_map(|(from, to)| [from.clone(), to.clone()]).collect();
    assert!(named.remove(NEW));
    assert_eq!(named, known, "the table's states, and the schema's");

    // The diagram draws the same.
    let drawn: Pairs = section(&document, "## States\n")
        .lines()
        .filter_map(|line| line.trim().split_once(" --> "))
        .map(|(from, to)| (from.replace("[*]", NEW), to.replace("[*]", NEW)))
        .collect();
    let all: Pairs = said.into_values().flatten().collect();
    assert_eq!(drawn, all, "the diagram's transitions, and the table's");
}

#[test]
fn every_statement_of_the_table_is_in_the_file_that_it_names() {
    let sources = sources();
    for row in rows(&document()) {
        assert!(!row.files.is_empty() && !row.statements.is_empty(), "a row has a statement and its file");
        for statement in &row.statements {
            let is_there = |text: &str| {
                [format!("-- {statement}\n"), format!("-- {statement}\""), format!("fn {statement}(")]
                    .iter()
                    .any(|name| text.contains(name))
            };
            let found: Vec<&str> =
                sources.iter().filter(|(_, text)| is_there(text)).map(|(path, _)| path.as_str()).collect();
            let named = |path: &str| row.files.iter().any(|file| path == format!("src/{file}"));
            assert!(
                found.iter().any(|path| named(path)),
                "{statement} is in {found:?}, not in {:?}",
                row.files
            );
        }
    }
}

#[test]
fn no_statement_on_submissions_escapes_the_compiler() {
    let checked = statements();
    for (path, text) in sources() {
        for write in ["update submission", "insert into submission", "delete from submission"] {
            for (at, _) in text.match_indices(write) {
                // A comment may stand between a statement and its name.
                let is_checked = text[..at].rsplit("-- ").any(|after| {
                    let name: String =
                        after.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                    checked.contains_key(&name)
                });
                assert!(is_checked, "{path}: {write:?} in a statement that .sqlx does not have");
            }
        }
    }
}
