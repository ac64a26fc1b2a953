//! docs/logs.md has every line that is logged as an error or a warning, and no other: each `error!` and
//! `warn!` of src is read, and compared with the tables there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::alerts::sections;
use crate::layout::{Sources, is_blank, is_string, module_of, pieces, sources, without_tests};

/// A line as the source has it.
struct Logged {
    place: String,
    level: String,
    /// Its message, as far as that is the same each time.
    message: String,
}

/// A line as the catalogue has it.
struct Entry<'a> {
    /// The beginning of its message.
    text: &'a str,
    level: &'a str,
    what_to_do: &'a str,
}

impl Entry<'_> {
    /// Whether this is the message of a line, or ends where a part of that does.
    fn tells_of(&self, logged: &Logged) -> bool {
        let rest = logged.message.strip_prefix(self.text);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([';', ':', ',', '.', '?']))
    }
}

#[derive(Clone)]
struct Token<'a> {
    text: &'a str,
    line: usize,
}

impl AsRef<str> for Token<'_> {
    fn as_ref(&self) -> &str {
        self.text
    }
}

#[test]
fn every_error_and_warning_is_in_the_catalogue_and_nothing_else() {
    let document = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
        fs::read_to_string(path).expect("the document")
    };
    let sources = sources();
    let (logged, _) = logged_in(&sources);
    assert!(logged.len() > 40, "{} lines are not all of src", logged.len());
    let faults = faults(&sources, &document("logs.md"), &sections(&document("operations.md")));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// What is wrong with the catalogue, with the lines of the source, or with a link to the runbook.
fn faults(sources: &Sources, catalogue: &str, runbook: &BTreeSet<String>) -> Vec<String> {
    let (logged, mut faults) = logged_in(sources);
    let entries = entries(catalogue, &mut faults);
    for line in &logged {
        let Logged { place, level, message } = line;
        match entries.iter().filter(|entry| entry.tells_of(line)).collect::<Vec<_>>()[..] {
            [] => faults.push(format!("{place}: {level} {message:?} is not in docs/logs.md")),
            [entry] if entry.level == level => {}
            [entry] => faults.push(format!("{place}: {message:?} is {level}, and {} there", entry.level)),
            [..] => faults.push(format!("{place}: {message:?} is there more than once")),
        }
    }
    for entry in &entries {
        let text = entry.text;
        let told: BTreeSet<&String> =
            logged.iter().filter(|line| entry.tells_of(line)).map(|line| &line.message).collect();
        match told.len() {
            0 => faults.push(format!("docs/logs.md: no line of src says {text:?}")),
            1 => {}
            _ => faults.push(format!("docs/logs.md: {text:?} begins more than one line: {told:?}")),
        }
        if entry.level == "error" && !entry.what_to_do.contains("](operations.md#") {
            faults.push(format!("docs/logs.md: {text:?} is an error, and names no section of the runbook"));
        }
    }
    let links = catalogue.split("](operations.md#").skip(1).filter_map(|rest| rest.split(')').next());
    let dead = links.filter(|link| !runbook.contains(*link));
    faults.extend(dead.map(|link| format!("docs/logs.md: the runbook has no section {link}")));
    faults
}

/// The rows of the tables that begin with a message.
fn entries<'a>(catalogue: &'a str, faults: &mut Vec<String>) -> Vec<Entry<'a>> {
    let mut entries = Vec::new();
    for row in catalogue.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        match cells[..] {
            [text, level, meaning, what_to_do] if !meaning.is_empty() && !what_to_do.is_empty() => {
                entries.push(Entry { text: text.trim_matches('`'), level, what_to_do });
            }
            _ => faults.push(format!("docs/logs.md: this is no row of four cells: {row}")),
        }
    }
    entries
}

/// The lines that the sources log as errors and warnings, without those of tests; and what of them
/// cannot be read.
fn logged_in(sources: &Sources) -> (Vec<Logged>, Vec<String>) {
    let (mut read, mut of_tests) = (Vec::new(), BTreeSet::new());
    for (file, source) in sources {
        let (tokens, names) = without_tests(&tokens(source));
        of_tests.extend(names.into_iter().map(|name| [module_of(file), vec![name]].concat()));
        read.push((file, tokens));
    }
    let (mut logged, mut faults) = (Vec::new(), Vec::new());
    for (file, tokens) in read.iter().filter(|(file, _)| !of_tests.contains(&module_of(file))) {
        for (at, token) in tokens.iter().enumerate() {
            let place = format!("src/{file}:{}", token.line);
            let follows =
                |after: usize, text: &str| tokens.get(at + after).is_some_and(|next| next.text == text);
            let is_macro = follows(1, "!") && ["(", "[", "{"].iter().any(|open| follows(2, open));
            let is_attribute = at > 0 && ["[", "::"].contains(&tokens[at - 1].text);
            match token.text {
                level @ ("error" | "warn") if is_macro => match message(&tokens[at + 2..]) {
                    Some(message) => logged.push(Logged { place, level: level.to_owned(), message }),
                    None => {
                        faults.push(format!("{place}: this {level} has no text that can be searched for"))
                    }
                },
                "event" if is_macro => {
                    faults.push(format!("{place}: event! is not read here; say the level"))
                }
                "instrument" if is_attribute => {
                    faults.push(format!("{place}: this attribute may log, and is not read here"));
                }
                _ => {}
            }
        }
    }
    (logged, faults)
}

fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut line = 1;
    let pieces = pieces(source).into_iter().map(|text| {
        let token = Token { text, line };
        line += text.matches('\n').count();
        token
    });
    pieces.filter(|token| !is_blank(token.text)).collect()
}

/// The message among the arguments that the first token opens: the one that is a string and nothing
/// else. A field may be a string, too, and has a name or a value.
fn message(tokens: &[Token<'_>]) -> Option<String> {
    let (mut depth, mut argument) = (0_usize, Vec::new());
    for token in tokens {
        let is_end = match token.text {
            "(" | "[" | "{" => {
                depth += 1;
                depth == 1
            }
            ")" | "]" | "}" => {
                depth -= 1;
                depth == 0
            }
            mark => mark == "," && depth == 1,
        };
        if !is_end {
            argument.push(token.text);
            continue;
        }
        if let [text] = argument[..]
            && is_string(text)
        {
            let fixed = fixed_part(&unescaped(text));
            return (!fixed.is_empty()).then_some(fixed);
        }
        if depth == 0 {
            break;
        }
        argument.clear();
    }
    None
}

/// What a string of the source says.
fn unescaped(literal: &str) -> String {
    if let Some(raw) = literal.strip_prefix('r') {
        return raw.trim_matches('#').trim_matches('"').to_owned();
    }
    let mut text = String::new();
    let mut rest = literal.trim_start_matches('"').chars().peekable();
    while let Some(next) = rest.next() {
        match next {
            '"' => break,
            '\\' => match rest.next() {
                Some('\n') => while rest.next_if(|c| c.is_whitespace()).is_some() {},
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                escaped => text.extend(escaped),
            },
            next => text.push(next),
        }
    }
    text
}

/// What of a message stands before its first argument.
fn fixed_part(format: &str) -> String {
    let mut fixed = String::new();
    let mut rest = format.chars().peekable();
    while let Some(next) = rest.next() {
        if next == '{' && rest.peek() != Some(&'{') {
            break;
        }
        if "{}".contains(next) {
            rest.next();
        }
        fixed.push(next);
    }
    fixed.trim_end().to_owned()
}

/// A source with each form of a line, and its catalogue.
const SOURCE: &str = r##"
    use tracing::{error, warn};
    /// Not `error!("in a comment")`.
    fn log(error: Error) {
        error!("it broke; this is a bug");
        tracing::warn!(
            parent: &span, %job_id, ?took, "field" = 1, count = list(["a", "b"]),
            "it waits for {count} \
             and goes on"
        );
        match error != Error::None { true => return warn!(r#"a "raw" one"#), false => info!("not this") }
        error!(name = "it ends", "it ends: {}", error.reason());
    }
    #[cfg(test)]
    mod tests { fn f() { error!("of a test") } }
    #[cfg(test)]
    mod more;
    fn after() { warn!("it {{ends}}, at last") }
"##;

const CATALOGUE: &str = "
| line | level | what it means | what to do |
|---|---|---|---|
| `it broke` | error | It broke. | [Bugs](operations.md#a-bug) |
| `it waits for` | warn | It waits. | nothing |
| `a \"raw\" one` | warn | It is raw. | nothing, or [Bugs](operations.md#a-bug) |
| `it ends` | error | It ends. | [2](operations.md#2-ends-of-_all_) |
| `it {ends}` | warn | It ends. | nothing |
";

const RUNBOOK: &str = "# Operations\n## A bug\n### 2. Ends (of `_all_`)\n";

/// Changes the source and the catalogue, and compares what is found with what is expected.
fn check(source: (&str, &str), catalogue: (&str, &str), expected: &[&str]) {
    assert!(SOURCE.contains(source.0) && CATALOGUE.contains(catalogue.0), "nothing to change");
    let sources = [
        ("room/mod.rs".to_owned(), SOURCE.replacen(source.0, source.1, 1)),
        ("room/more.rs".to_owned(), "fn f() { error!(\"of a test's file\") }".to_owned()),
    ];
    let catalogue = CATALOGUE.replacen(catalogue.0, catalogue.1, 1);
    let found = faults(&sources.into(), &catalogue, &sections(RUNBOOK));
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (fault, expected) in found.iter().zip(expected) {
        assert!(fault.contains(expected), "{fault} is not: {expected}");
    }
}

#[test]
fn a_line_without_an_entry_and_an_entry_without_a_line_are_found() {
    const SAME: (&str, &str) = ("", "");
    check(SAME, SAME, &[]);
    let lost = [
        "src/room/mod.rs:5: error \"it broke; this is a bug\" is not in",
        "no line of src says \"it broke\"",
    ];
    check(SAME, ("| `it broke` |", "| `it breaks` |"), &[lost[0], "no line of src says \"it breaks\""]);
    check(SAME, ("| `it broke` |", "| `it` |"), &[lost[0], "no line of src says \"it\""]);
    check(("it broke", "it is broken"), SAME, &["src/room/mod.rs:5: error \"it is broken;", lost[1]]);
    check(("error!(\"it broke; this is a bug\");", ""), SAME, &[lost[1]]);
    check(
        ("fn after() {", "fn after() { warn!(a, \"new {a}\");"),
        SAME,
        &["src/room/mod.rs:18: warn \"new\" is not in docs/logs.md"],
    );
    check(
        ("it {{ends}}, at last", "it ends; at last"),
        SAME,
        &["is warn, and error there", "\"it ends\" begins more than one line", "says \"it {ends}\""],
    );
}

#[test]
fn an_entry_that_says_another_thing_of_its_line_is_found() {
    const SAME: (&str, &str) = ("", "");
    check(SAME, ("| `it broke` | error |", "| `it broke` | warn |"), &["is error, and warn there"]);
    check(
        ("warn!(r#", "error!(r#"),
        SAME,
        &["src/room/mod.rs:11: \"a \\\"raw\\\" one\" is error, and warn there"],
    );
    check(
        SAME,
        (
            "| `it waits for` |",
            "| `it ends` | error | Twice. | [2](operations.md#a-bug) |\n| `it waits for` |",
        ),
        &["\"it ends:\" is there more than once"],
    );
    check(SAME, ("It broke. | [Bugs](operations.md#a-bug)", "It broke. | nothing"), &["names no section"]);
    check(SAME, ("#a-bug", "#a-bugs"), &["the runbook has no section a-bugs"]);
    check(SAME, (" It waits. |", ""), &["no row of four cells", "\"it waits for\" is not in docs/logs.md"]);
}

#[test]
fn a_line_that_cannot_be_read_is_found() {
    const SAME: (&str, &str) = ("", "");
    let in_place_of = |line| ("warn!(\"it {{ends}}, at last\")", line);
    let gone = ("| `it {ends}` | warn | It ends. | nothing |\n", "");
    check(in_place_of("warn!(error)"), gone, &["src/room/mod.rs:18: this warn has no text"]);
    check(in_place_of("warn!(\"{error}\")"), gone, &["has no text"]);
    check(in_place_of("event!(Level::WARN, \"it ends\")"), gone, &["event! is not read here"]);
    check(("    fn after", "    #[tracing::instrument(err)]\n    fn after"), SAME, &["may log"]);
}
