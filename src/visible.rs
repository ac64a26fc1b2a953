//! Texts of others on their way to a terminal, or to a spreadsheet. Whoever can name a message can write escape
//! sequences into its name: they move the cursor, overwrite lines, or set the clipboard.

use std::borrow::Cow;
use std::fmt::Write as _;

use serde_json::Value;

/// One line in which nothing is obeyed and nothing is hidden: control characters, line breaks
/// and what turns the direction of text are written as JSON writes them, `\n` or `\u001b`.
pub fn visible(text: &str) -> Cow<'_, str> {
    escape(text, is_obeyed)
}

/// The same, for text that we laid out ourselves: its line breaks and tabs stay. JSON stays the
/// same JSON, since it has such characters in strings only.
pub fn visible_lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| is_obeyed(c) && !matches!(c, '\n' | '\t'))
}

fn escape(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            c if !is_escaped(c) => escaped.push(c),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            // Each is in the basic plane, so that four digits are enough.
            c => write!(escaped, "\\u{:04x}", u32::from(c)).unwrap_or_default(),
        }
    }
    Cow::Owned(escaped)
}

/// Whether a terminal acts on it in place of showing it: C0, DEL, C1, separators of lines and
/// paragraphs, and Unicode's controls of direction (UAX #9).
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A value as a spreadsheet reads it. It takes a text that begins with one of these for a formula,
/// and runs it, unless a quote comes first (OWASP, "CSV Injection"); numbers and times are none.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text)
            if text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠']) =>
        {
            format!("'{text}")
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        for (text, shown) in [
            ("plain, नमस्ते, Élysée 👍🏽", "plain, नमस्ते, Élysée 👍🏽"),
            ("\u{1b}[31mred\u{1b}[0m", "\\u001b[31mred\\u001b[0m"),
            ("\u{1b}]52;c;cm0gLXJm\u{7}", "\\u001b]52;c;cm0gLXJm\\u0007"),
            ("\u{9b}2J", "\\u009b2J"),
            ("a\u{7f}\u{8}\u{0}b", "a\\u007f\\u0008\\u0000b"),
            ("abc\u{202e}gpj.exe", "abc\\u202egpj.exe"),
            ("\u{2066}\u{200f}\u{2028}", "\\u2066\\u200f\\u2028"),
            ("one\r\n\ttwo", "one\\r\\n\\ttwo"),
        ] {
            assert_eq!(visible(text), shown);
        }
        assert_eq!(visible_lines("a\n\tb\r\u{1b}c"), "a\n\tb\\r\\u001bc");
    }

    #[test]
    fn no_cell_is_a_formula() {
        for (value, expected) in [
            (json!("=1+1"), "'=1+1"),
            (json!("+91"), "'+91"),
            (json!("-1"), "'-1"),
            (json!("@a"), "'@a"),
            (json!("\t=1"), "'\t=1"),
            (json!("\r=1"), "'\r=1"),
            (json!("＝1"), "'＝1"),
            (json!("a=1"), "a=1"),
            (json!("2026-11-24T10:00:00Z"), "2026-11-24T10:00:00Z"),
            (json!(-1), "-1"),
            (json!(3), "3"),
            (json!(null), ""),
        ] {
            assert_eq!(cell(&value), expected);
        }
    }

    proptest! {
        #[test]
        fn json_stays_the_same_json(text in ".{0,40}", c in any::<char>()) {
            let value = serde_json::json!({ format!("{text}{c}"): format!("{c}{text}") });
            let json = serde_json::to_string_pretty(&value).unwrap();
            let shown = visible_lines(&json);
            prop_assert!(!shown.chars().any(|c| is_obeyed(c) && c != '\n'));
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        }
    }
}
