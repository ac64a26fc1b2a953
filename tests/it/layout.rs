//! Which file of src may import which. Every `crate::`, `super::` and `self::` path of every file is
//! read; no path may lead to a floor above, to a neighbour on the same floor, or round in a circle.
//! A module that only declares its children does not import them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::iter::Peekable;
use std::path::Path;

/// The rooms of src, the lowest floor first. A room may import itself and what is below its floor.
const FLOORS: [&[&str]; 13] = [
    &["domain"],
    &["failpoint", "finding", "metrics", "seal", "tls", "visible"],
    &["clock", "telemetry"],
    &["config"],
    &["instance", "traces"],
    &["broker", "journal", "links", "provider"],
    &["control", "desk"],
    &["context"],
    &["checks", "listener"],
    &["worker"],
    &["loops"],
    &["app", "console"],
    &["cli"],
];

/// The same inside the journal. A file that is not named here stands above those that are.
const JOURNAL: [&[&str]; 4] = [
    &["error", "history/chain", "lineage", "pool", "rows", "schema", "session"],
    &["floors", "statements"],
    &["batch", "memory"],
    &["handle"],
];

/// The rooms that may import the desk: what people ask and do takes no part in the flow of a job.
const KNOW_THE_DESK: [&str; 3] = ["desk", "console", "cli"];

/// The sources of src by their paths below it.
pub(crate) type Sources = BTreeMap<String, String>;

#[test]
fn no_import_of_src_runs_up_or_in_a_circle() {
    let sources = sources();
    assert!(sources.len() > 50, "{} files are not all of src", sources.len());
    let faults = faults(&sources);
    assert!(faults.is_empty(), "{} imports are not allowed:\n{}", faults.len(), faults.join("\n"));
}

/// Every source of src.
pub(crate) fn sources() -> Sources {
    let mut sources = Sources::new();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    read(&src, &src, &mut sources);
    sources
}

fn read(src: &Path, directory: &Path, sources: &mut Sources) {
    for entry in fs::read_dir(directory).expect("src is there") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            read(src, &path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(src).expect("a path below src").display().to_string();
            sources.insert(name, fs::read_to_string(&path).expect("a source"));
        }
    }
}

/// What is wrong with the imports of these sources.
fn faults(sources: &Sources) -> Vec<String> {
    let modules: BTreeMap<Vec<String>, &str> =
        sources.keys().filter(|file| *file != "main.rs").map(|file| (module_of(file), &**file)).collect();
    let parsed: BTreeMap<&str, Parsed> =
        modules.values().map(|file| (*file, Parsed::of(&sources[*file]))).collect();
    let is_test = |module: &[String]| {
        let (Some(name), parent) = (module.last(), &module[..module.len().saturating_sub(1)]) else {
            return false;
        };
        modules.get(parent).is_some_and(|parent| parsed[parent].test_modules.contains(name))
    };

    let mut faults = Vec::new();
    let mut imports: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (module, file) in modules.iter().filter(|(module, _)| !is_test(module)) {
        let room = module.first().map_or("lib", String::as_str);
        if room != "lib" && floor_of(&FLOORS, room).is_none() {
            faults.push(format!("{file}: {room} is on no floor"));
        }
        if room == "desk" && parsed[file].mentions_claim {
            faults.push(format!("{file}: nothing in desk is given a Claim"));
        }
        for path in &parsed[file].paths {
            let Some(target) = resolve(path, module, &modules).filter(|target| target != file) else {
                continue;
            };
            imports.entry(file).or_default().insert(target);
        }
    }
    for (file, targets) in &imports {
        faults.extend(targets.iter().filter_map(|target| fault_of(file, target)));
    }
    faults.extend(circles(&imports));
    faults
}

/// The module that a file holds; `lib.rs` holds the root.
pub(crate) fn module_of(file: &str) -> Vec<String> {
    let path = file.trim_end_matches(".rs");
    let path = path.strip_suffix("mod").and_then(|path| path.strip_suffix('/')).unwrap_or(path);
    path.split('/').filter(|segment| *segment != "lib").map(str::to_owned).collect()
}

/// The file that a path of a module leads to: the deepest module that it names.
fn resolve<'a>(
    path: &[String],
    module: &[String],
    modules: &BTreeMap<Vec<String>, &'a str>,
) -> Option<&'a str> {
    let mut place = match path[0].as_str() {
        "crate" => Vec::new(),
        _ => module.to_vec(),
    };
    for segment in path {
        match segment.as_str() {
            "crate" | "self" => {}
            "super" => drop(place.pop()),
            name => place.push(name.to_owned()),
        }
    }
    while !modules.contains_key(&place) {
        place.pop()?;
    }
    modules.get(&place).copied()
}

fn floor_of(floors: &[&[&str]], name: &str) -> Option<usize> {
    floors.iter().position(|rooms| rooms.contains(&name))
}

/// Why a file may not import another, by the rooms that they are in.
fn fault_of(file: &str, target: &str) -> Option<String> {
    let (from, to) = (module_of(file), module_of(target));
    let name = |module: &[String], at: usize| module.get(at).cloned().unwrap_or_default();
    let (room, wanted) = (name(&from, 0), name(&to, 0));
    if room == wanted {
        let floor = |module: &[String]| {
            let floor = floor_of(&JOURNAL, &module[1..].join("/"));
            floor.or_else(|| floor_of(&JOURNAL, &name(module, 1))).unwrap_or(JOURNAL.len())
        };
        let runs_up = room == "journal" && floor(&from) < floor(&to);
        return runs_up.then(|| format!("{file} imports {target}, which is above it"));
    }
    if wanted == "desk" && !KNOW_THE_DESK.contains(&room.as_str()) {
        return Some(format!("{file} imports {target}: the desk takes no part in the flow"));
    }
    // The root declares everything, and is above everything.
    let floor = |room: &str| floor_of(&FLOORS, room).unwrap_or(FLOORS.len());
    match floor(&room).cmp(&floor(&wanted)) {
        std::cmp::Ordering::Greater => None,
        std::cmp::Ordering::Equal => {
            Some(format!("{file} imports {target}, which is beside it and not below"))
        }
        std::cmp::Ordering::Less => Some(format!("{file} imports {target}, which is above it")),
    }
}

/// Every circle of imports, named once, from its first file round to it.
fn circles(imports: &BTreeMap<&str, BTreeSet<&str>>) -> BTreeSet<String> {
    let way = |from: &str, to: &str| -> Option<Vec<String>> {
        let mut ways = vec![vec![from.to_owned()]];
        let mut seen = BTreeSet::new();
        while let Some(way) = (!ways.is_empty()).then(|| ways.remove(0)) {
            let last = way.last().cloned().unwrap_or_default();
            for next in imports.get(last.as_str()).into_iter().flatten() {
                let longer = [way.clone(), vec![(*next).to_owned()]].concat();
                if *next == to {
                    return Some(longer);
                }
                if seen.insert(*next) {
                    ways.push(longer);
                }
            }
        }
        None
    };
    let round = imports.keys().filter_map(|file| way(file, file));
    let first = round.filter(|way| way.iter().min() == way.first());
    first.map(|way| format!("a circle: {}", way.join(" -> "))).collect()
}

/// What a source says of others.
#[derive(Default)]
struct Parsed {
    /// Every path that begins with `crate`, `super`, `self`, or a module declared in the file.
    paths: Vec<Vec<String>>,
    /// The modules that are declared for tests alone.
    test_modules: BTreeSet<String>,
    mentions_claim: bool,
}

impl Parsed {
    fn of(source: &str) -> Self {
        let tokens = without_tests(&tokens(source));
        let mut parsed = Self { test_modules: tokens.1, ..Self::default() };
        let tokens = tokens.0;
        parsed.mentions_claim = tokens.iter().any(|token| token == "Claim");
        let children: BTreeSet<&String> = tokens
            .windows(3)
            .filter(|words| words[0] == "mod" && words[2] == ";")
            .map(|words| &words[1])
            .collect();
        for (at, token) in tokens.iter().enumerate() {
            let is_followed = tokens.get(at + 1).is_some_and(|next| next == "::");
            let begins = is_followed && (at == 0 || tokens[at - 1] != "::");
            let is_root = matches!(token.as_str(), "crate" | "super" | "self");
            if begins && (is_root || children.contains(token)) {
                let prefix = if is_root { Vec::new() } else { vec!["self".to_owned()] };
                let mut rest = tokens[at..].iter().peekable();
                walk(&mut rest, &prefix, &mut parsed.paths);
            }
        }
        parsed
    }
}

/// Follows one path, and each of its branches where it names several at once.
fn walk<'a>(
    tokens: &mut Peekable<impl Iterator<Item = &'a String>>,
    prefix: &[String],
    paths: &mut Vec<Vec<String>>,
) {
    let mut path = prefix.to_vec();
    loop {
        match tokens.next_if(|token| *token == "{" || is_name(token)) {
            Some(token) if token == "{" => loop {
                walk(tokens, &path, paths);
                while tokens.next_if(|token| *token != "," && *token != "}").is_some() {}
                if tokens.next().is_none_or(|token| token == "}") {
                    return;
                }
            },
            Some(name) => path.push(name.clone()),
            None => break,
        }
        if tokens.next_if(|token| *token == "::").is_none() {
            break;
        }
    }
    if path.len() > prefix.len() || path.len() > 1 {
        paths.push(path);
    }
}

fn is_name(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// The tokens without what is compiled for tests alone, and the names of the files that are.
pub(crate) fn without_tests<T: AsRef<str> + Clone>(tokens: &[T]) -> (Vec<T>, BTreeSet<String>) {
    let (mut kept, mut names) = (Vec::new(), BTreeSet::new());
    let is_at = |at: usize, text: &str| tokens.get(at).is_some_and(|token| token.as_ref() == text);
    let mut at = 0;
    while at < tokens.len() {
        let mark = ["#", "[", "cfg", "(", "test", ")", "]"];
        if !mark.iter().enumerate().all(|(after, token)| is_at(at + after, token)) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        at += mark.len();
        if is_at(at, "mod") && is_at(at + 2, ";") {
            names.insert(tokens[at + 1].as_ref().to_owned());
        }
        // To the end of the item: its semicolon, or the brace that closes it.
        let mut depth = 0_usize;
        while let Some(token) = tokens.get(at) {
            at += 1;
            match token.as_ref() {
                "{" => depth += 1,
                "}" => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 && matches!(token.as_ref(), ";" | "}") {
                break;
            }
        }
    }
    (kept, names)
}

/// Names, `::` and single marks, without comments, strings and characters.
fn tokens(source: &str) -> Vec<String> {
    let is_token = |piece: &&str| !is_blank(piece) && !is_string(piece) && !piece.starts_with('\'');
    pieces(source).into_iter().filter(is_token).map(str::to_owned).collect()
}

/// Whether a piece of a source is a comment or white space.
pub(crate) fn is_blank(piece: &str) -> bool {
    piece.starts_with("//") || piece.starts_with("/*") || piece.trim().is_empty()
}

/// Whether a piece of a source is a string.
pub(crate) fn is_string(piece: &str) -> bool {
    piece.starts_with('"') || raw_string(piece).is_some()
}

/// A source, cut into names, strings, characters, comments, `::` and single marks.
pub(crate) fn pieces(source: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(length) = raw_string(rest) {
            length
        } else if first == '"' {
            quoted(rest)
        } else if first == '\'' {
            character(rest)
        } else if is_name(rest) {
            rest.find(|next: char| !next.is_alphanumeric() && next != '_').unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        let (piece, after) = rest.split_at(length);
        pieces.push(piece);
        rest = after;
    }
    pieces
}

/// The length of the raw string that the text begins with.
fn raw_string(text: &str) -> Option<usize> {
    let after = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after[hashes..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    let end = body.find(&close).map_or(body.len(), |end| end + close.len());
    Some(text.len() - body.len() + end)
}

/// The length of the string that the text begins with.
fn quoted(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, next) in text.char_indices().skip(1) {
        match next {
            '"' if !is_escaped => return at + 1,
            _ => is_escaped = next == '\\' && !is_escaped,
        }
    }
    text.len()
}

/// The length of the character that the text begins with; of a lifetime, that of its mark.
fn character(text: &str) -> usize {
    let mut following = text.char_indices().skip(1);
    match (following.next(), following.next()) {
        (Some((_, '\\')), Some(_)) => {
            let end = text[3..].find('\'').map_or(text.len(), |end| end + 4);
            end.min(text.len())
        }
        (Some((_, _)), Some((at, '\''))) => at + 1,
        _ => 1,
    }
}

fn check(files: &[(&str, &str)], expected: &[&str]) {
    let sources = files.iter().map(|(file, text)| ((*file).to_owned(), (*text).to_owned())).collect();
    let found = faults(&sources);
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (fault, expected) in found.iter().zip(expected) {
        assert!(fault.contains(expected), "{fault} is not: {expected}");
    }
}

#[test]
fn an_import_that_runs_up_or_sideways_is_found() {
    let down = ("worker.rs", "use crate::journal::Journal; fn run() { crate::domain::job::parse(); }");
    let floors = [
        ("journal/mod.rs", "pub struct Journal;"),
        ("domain/mod.rs", ""),
        ("domain/job.rs", ""),
        ("provider.rs", ""),
        ("desk.rs", ""),
        ("cli/mod.rs", ""),
        ("lib.rs", "pub fn runtime() {}"),
    ];
    let check = |file: &str, text: &str, expected: &[&str]| {
        check(&[floors.as_slice(), &[down, (file, text)]].concat(), expected);
    };
    check("app.rs", "use crate::{worker, domain::job};", &[]);
    check(
        "domain/retry.rs",
        "use crate::{journal::Journal, domain::job};",
        &["retry.rs imports journal/mod.rs"],
    );
    check("domain/retry.rs", "fn f() { crate::journal::Journal::new() }", &["which is above it"]);
    check("domain/retry.rs", "use super::super::journal;", &["which is above it"]);
    check("broker.rs", "use crate::provider::Provider;", &["which is beside it"]);
    check("loops/tracker.rs", "use crate::desk::story;", &["the desk takes no part"]);
    check("loops/tracker.rs", "use crate::cli;", &["which is above it"]);
    check("loops/tracker.rs", "use crate::runtime;", &["loops/tracker.rs imports lib.rs"]);
    check("desk/replay.rs", "use crate::journal::Claim;", &["given a Claim"]);
    check("attic.rs", "", &["attic is on no floor"]);
}

#[test]
fn what_is_no_import_is_passed_over() {
    let text = r##"
        //! See [`crate::cli`].
        /* use crate::cli; */
        const A: &str = "crate::cli"; const B: &str = r#"use "crate::cli";"#; const C: char = '"';
        fn f<'a>(text: &'a str) -> &'a str { text }
        #[cfg(test)]
        mod more;
        #[cfg(test)]
        mod tests { use crate::cli; fn f() { let _ = '\''; } }
        pub mod rules;
    "##;
    let files = [
        ("domain/mod.rs", text),
        ("domain/more.rs", "use crate::cli;"),
        ("domain/rules.rs", "use super::f;"),
        ("cli.rs", ""),
    ];
    check(&files, &[]);
}

#[test]
fn an_import_that_runs_up_in_the_journal_is_found() {
    let floors = [
        ("journal/mod.rs", ""),
        ("journal/rows.rs", ""),
        ("journal/statements/mod.rs", ""),
        ("journal/statements/claim.rs", ""),
        ("journal/batch.rs", ""),
    ];
    let check = |file: &str, text: &str, expected: &[&str]| {
        check(&[floors.as_slice(), &[(file, text)]].concat(), expected);
    };
    check("journal/statements/wake.rs", "use crate::journal::rows::Row; use super::claim;", &[]);
    check("journal/statements/wake.rs", "use crate::journal::batch::Batch;", &["which is above it"]);
    check("journal/maintenance.rs", "use super::{batch, rows};", &[]);
    check("journal/rows.rs", "use crate::journal::Journal;", &["which is above it"]);
    check("journal/error.rs", "use super::statements::claim;", &["which is above it"]);
}

#[test]
fn a_circle_of_imports_is_found_once() {
    let files = [
        ("domain/mod.rs", "mod a; mod b; mod c; pub use a::A;"),
        ("domain/a.rs", "use super::b::B;"),
        ("domain/b.rs", "use crate::domain::c::C;"),
        ("domain/c.rs", ""),
    ];
    check(&files, &[]);
    let circle = [files.as_slice(), &[("domain/c.rs", "use super::a;")]].concat();
    check(&circle, &["domain/a.rs -> domain/b.rs -> domain/c.rs -> domain/a.rs"]);
    let roof = [files.as_slice(), &[("domain/c.rs", "use super::A;")]].concat();
    check(&roof, &["domain/a.rs -> domain/b.rs -> domain/c.rs -> domain/mod.rs -> domain/a.rs"]);
}
