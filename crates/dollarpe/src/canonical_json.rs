//! JSON as the provider signs it: parsed without losing a digit, printed exactly as
//! Python's `json.dumps(body, sort_keys=True)` prints it. Knows nothing of jobs, and
//! never lets content into an error or a `Debug`: it is personal data.

use std::{
    borrow::Cow,
    collections::{BTreeMap, btree_map::Entry},
    fmt,
};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// Arrays and objects may be nested this deep, the outermost counted.
const DEPTH_MAX: usize = 32;

/// Python refuses to read an integer of more digits, which would end in a 500 at the provider.
const INTEGER_DIGITS_MAX: usize = 4_300;

/// A JSON value that prints as it was written.
#[derive(Clone, PartialEq)]
pub enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An integer of any size, in digits.
    Integer(String),
    /// A finite number that was written with a point or an exponent.
    Float(f64),
    /// Text without lone surrogates.
    String(String),
    /// Values in the order written.
    Array(Vec<Json>),
    /// Members by key. UTF-8 sorts by code point, as Python does.
    Object(BTreeMap<String, Json>),
}

/// How the provider prints a body before it computes the signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// Compact separators, non-ASCII escaped.
    Compact,
    /// Compact separators, non-ASCII as UTF-8.
    CompactUtf8,
    /// A space after each comma and colon, non-ASCII escaped.
    Spaced,
}

/// One thing wrong with a message. Says where and what, never the value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", if pointer.is_empty() { "body" } else { pointer })]
pub struct Fault {
    /// RFC 6901 pointer to the value; `?17` stands for a key of 17 characters, which
    /// may itself be personal data.
    pub pointer: String,
    /// What is wrong and what would be right.
    pub reason: String,
}

impl Fault {
    pub fn new(pointer: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), reason: reason.into() }
    }
}

impl Json {
    /// Parses UTF-8 JSON, at most 32 levels deep, without duplicate keys, lone surrogates,
    /// or floats that Python would print as another number.
    ///
    /// # Errors
    /// Every fault found; only text that is not JSON at all ends the search.
    pub fn parse(bytes: &[u8]) -> Result<Self, Vec<Fault>> {
        let (json, faults) = Self::read(bytes);
        if faults.is_empty() { Ok(json) } else { Err(faults) }
    }

    /// Reads on past faults and leaves `Null` in their places, so that a caller can go on
    /// to check the rest.
    pub fn read(bytes: &[u8]) -> (Self, Vec<Fault>) {
        let raw = match std::str::from_utf8(bytes) {
            Ok(text) => serde_json::from_str(text).map_err(|error| format!("is not JSON: {error}")),
            Err(error) => Err(format!("is not UTF-8: {error}")),
        };
        match raw {
            Ok(raw) => {
                let mut faults = Vec::new();
                (read_value(raw, &Place::Root, 1, &mut faults), faults)
            }
            Err(reason) => (Self::Null, vec![Fault::new("", reason)]),
        }
    }

    /// Prints the text that is signed and sent.
    pub fn to_canonical(&self, profile: Profile) -> String {
        let mut out = String::with_capacity(1_024);
        self.write(profile, &mut out);
        out
    }

    fn write(&self, profile: Profile, out: &mut String) {
        let (comma, colon) = profile.separators();
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(true) => out.push_str("true"),
            Self::Bool(false) => out.push_str("false"),
            Self::Integer(digits) => out.push_str(digits),
            Self::Float(value) => write_float(*value, out),
            Self::String(text) => write_string(text, profile, out),
            Self::Array(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push_str(comma);
                    }
                    item.write(profile, out);
                }
                out.push(']');
            }
            Self::Object(members) => {
                out.push('{');
                for (index, (key, value)) in members.iter().enumerate() {
                    if index > 0 {
                        out.push_str(comma);
                    }
                    write_string(key, profile, out);
                    out.push_str(colon);
                    value.write(profile, out);
                }
                out.push('}');
            }
        }
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Json(..)")
    }
}

impl Profile {
    /// The profile's name, as settings and the command line write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Compact => "compact",
            Self::CompactUtf8 => "compact-utf8",
            Self::Spaced => "spaced",
        }
    }

    fn separators(self) -> (&'static str, &'static str) {
        match self {
            Self::Compact | Self::CompactUtf8 => (",", ":"),
            Self::Spaced => (", ", ": "),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The fields of a job's message. Any other key may be what a customer entered.
const KNOWN_KEYS: [&str; 11] = [
    "additional_data",
    "customer_id",
    "document_back_image_url",
    "document_details",
    "document_front_image_url",
    "document_number",
    "document_type",
    "expires_at",
    "full_address",
    "job_id",
    "requested_at",
];

/// A key as it may be shown: as written if it is a known field's, else as `?` and how many characters
/// it has.
pub fn shown(key: &str) -> Cow<'_, str> {
    if KNOWN_KEYS.contains(&key) { key.into() } else { format!("?{}", key.chars().count()).into() }
}

/// Where a value stands; printed only when there is a fault to report.
enum Place<'a> {
    Root,
    Member(&'a Place<'a>, &'a str),
    Item(&'a Place<'a>, usize),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Member(parent, key) => write!(f, "{parent}/{}", shown(key)),
            Self::Item(parent, index) => write!(f, "{parent}/{index}"),
        }
    }
}

/// The grammar has been checked for the whole text already; what can still be wrong is
/// the value itself.
fn read_value(raw: &RawValue, place: &Place<'_>, depth: usize, faults: &mut Vec<Fault>) -> Json {
    let text = raw.get();
    let value = match text.as_bytes() {
        b"null" => Ok(Json::Null),
        b"true" => Ok(Json::Bool(true)),
        b"false" => Ok(Json::Bool(false)),
        [b'[' | b'{', ..] if depth > DEPTH_MAX => Err(format!("is nested more than {DEPTH_MAX} levels deep")),
        [b'[', ..] => read_array(text, place, depth, faults),
        [b'{', ..] => read_object(text, place, depth, faults),
        [b'"', ..] => {
            serde_json::from_str(text).map(Json::String).map_err(|_| "has a lone surrogate".to_owned())
        }
        _ => read_number(text),
    };
    value.unwrap_or_else(|reason| {
        faults.push(Fault::new(place.to_string(), reason));
        Json::Null
    })
}

fn read_array(text: &str, place: &Place<'_>, depth: usize, faults: &mut Vec<Fault>) -> Result<Json, String> {
    let items: Vec<&RawValue> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let read = |(index, raw)| read_value(raw, &Place::Item(place, index), depth + 1, faults);
    Ok(Json::Array(items.into_iter().enumerate().map(read).collect()))
}

fn read_object(text: &str, place: &Place<'_>, depth: usize, faults: &mut Vec<Fault>) -> Result<Json, String> {
    let Members(written) =
        serde_json::from_str(text).map_err(|_| "has a key with a lone surrogate".to_owned())?;
    let mut members = BTreeMap::new();
    for (key, raw) in written {
        match members.entry(key) {
            Entry::Vacant(slot) => {
                let place = Place::Member(place, slot.key());
                let value = read_value(raw, &place, depth + 1, faults);
                slot.insert(value);
            }
            Entry::Occupied(first) => {
                let place = Place::Member(place, first.key());
                faults.push(Fault::new(place.to_string(), "appears more than once"));
            }
        }
    }
    Ok(Json::Object(members))
}

/// An object's members in the order written, duplicates included.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Collect)
    }
}

fn read_number(text: &str) -> Result<Json, String> {
    if !text.contains(['.', 'e', 'E']) {
        let digits = text.trim_start_matches('-').len();
        return match text {
            // Python reads it as the integer 0, which has no sign.
            "-0" => Ok(Json::Integer("0".to_owned())),
            _ if digits > INTEGER_DIGITS_MAX => {
                Err(format!("must have at most {INTEGER_DIGITS_MAX} digits, which is all that Python reads"))
            }
            _ => Ok(Json::Integer(text.to_owned())),
        };
    }
    match text.parse::<f64>() {
        Ok(value) if !value.is_finite() => Err("is too large for a float; send it as a string".to_owned()),
        Ok(value) if Decimal::parse(text) == Decimal::shortest(value) => Ok(Json::Float(value)),
        _ => Err("would lose digits as a float; send it as a string".to_owned()),
    }
}

/// The size of a number, `0.digits × 10^point`, with no zero at either end of `digits`;
/// none at all for zero itself.
#[derive(PartialEq)]
struct Decimal {
    digits: String,
    point: i64,
}

impl Decimal {
    fn parse(number: &str) -> Self {
        let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let whole = whole.trim_start_matches(['-', '0']);
        let all = [whole, fraction].concat();
        let unpadded = all.trim_start_matches('0');
        let digits = unpadded.trim_end_matches('0').to_owned();
        // An exponent beyond i32 leaves no float but zero, and zero has no point.
        let exponent = exponent.parse::<i32>().map_or(0, i64::from);
        let point = match digits.as_str() {
            "" => 0,
            _ => exponent + whole.len() as i64 - (all.len() - unpadded.len()) as i64,
        };
        Self { digits, point }
    }

    /// The fewest digits that read back as `value`, and of those the nearest to it.
    fn shortest(value: f64) -> Self {
        // Not the standard library's digits: between two equally near ones it rounds up,
        // where serde_json, like Python, takes the even one (1125899906842624.25).
        Self::parse(&serde_json::Value::from(value).to_string())
    }
}

/// Prints what Python's `repr` prints.
fn write_float(value: f64, out: &mut String) {
    let Decimal { digits, point } = Decimal::shortest(value);
    if value.is_sign_negative() {
        out.push('-');
    }
    let zeros = |count: i64| (0..count).map(|_| '0');
    match (point, digits.len() as i64) {
        (_, 0) => out.push_str("0.0"),
        (-3..=0, _) => {
            out.push_str("0.");
            out.extend(zeros(-point));
            out.push_str(&digits);
        }
        (1..=16, length) if length <= point => {
            out.push_str(&digits);
            out.extend(zeros(point - length));
            out.push_str(".0");
        }
        (1..=16, _) => {
            let (whole, fraction) = digits.split_at(point as usize);
            out.extend([whole, ".", fraction]);
        }
        _ => {
            let (first, rest) = digits.split_at(1);
            let dot = if rest.is_empty() { "" } else { "." };
            out.extend([first, dot, rest]);
            out.push_str(&format!("e{:+03}", point - 1));
        }
    }
}

fn write_string(text: &str, profile: Profile, out: &mut String) {
    out.push('"');
    let mut rest = text;
    // Most text needs no escape, and is copied whole.
    while let Some(place) = rest.bytes().position(|b| !(b' '..0x7f).contains(&b) || b == b'"' || b == b'\\') {
        let (plain, special) = rest.split_at(place);
        out.push_str(plain);
        let mut special = special.chars();
        special.next().into_iter().for_each(|c| write_special(c, profile, out));
        rest = special.as_str();
    }
    out.push_str(rest);
    out.push('"');
}

fn write_special(c: char, profile: Profile, out: &mut String) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\u{8}' => out.push_str("\\b"),
        '\u{c}' => out.push_str("\\f"),
        // Python's ASCII mode escapes all but the printable, so DEL too.
        '\u{7f}'.. if profile == Profile::CompactUtf8 => out.push(c),
        _ => write_escaped(c, out),
    }
}

fn write_escaped(c: char, out: &mut String) {
    for unit in c.encode_utf16(&mut [0; 2]) {
        out.push_str(&format!("\\u{unit:04x}"));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PROFILES: [Profile; 3] = [Profile::Compact, Profile::CompactUtf8, Profile::Spaced];

    fn compact(text: &str) -> Result<String, String> {
        match Json::parse(text.as_bytes()) {
            Ok(json) => Ok(json.to_canonical(Profile::Compact)),
            Err(faults) => Err(faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("; ")),
        }
    }

    #[track_caller]
    fn prints(text: &str, expected: &str) {
        assert_eq!(compact(text).as_deref(), Ok(expected), "{text}");
    }

    #[track_caller]
    fn refuses(text: &str, expected: &str) {
        assert_eq!(compact(text), Err(expected.to_owned()), "{text}");
    }

    #[test]
    fn integers_keep_every_digit() {
        for digits in ["0", "7", "-7", "123456789012345678901234567890", "18446744073709551616"] {
            prints(digits, digits);
        }
        prints("-0", "0");
        let longest = "9".repeat(INTEGER_DIGITS_MAX);
        prints(&longest, &longest);
        refuses(
            &format!("[-{longest}0]"),
            "/0: must have at most 4300 digits, which is all that Python reads",
        );
    }

    #[test]
    fn floats_print_as_pythons_repr() {
        for (written, repr) in [
            ("0.0", "0.0"),
            ("-0.0", "-0.0"),
            ("-0e-7", "-0.0"),
            ("0e99999999999999999999", "0.0"),
            ("1.10", "1.1"),
            ("1e0", "1.0"),
            ("1E5", "100000.0"),
            ("1e+0000000000000000000000000000005", "100000.0"),
            ("100e-2", "1.0"),
            ("-12.5e1", "-125.0"),
            ("0.001", "0.001"),
            ("0.0001", "0.0001"),
            ("0.00012", "0.00012"),
            ("0.00001", "1e-05"),
            ("0.000012", "1.2e-05"),
            ("1e-07", "1e-07"),
            ("1e15", "1000000000000000.0"),
            ("9999999999999998.0", "9999999999999998.0"),
            ("1e16", "1e+16"),
            ("12345678901234568e0", "1.2345678901234568e+16"),
            ("1e100", "1e+100"),
            ("5e-324", "5e-324"),
            ("1.7976931348623157e308", "1.7976931348623157e+308"),
            // Halfway between two candidates: the even digit.
            ("1125899906842624.2", "1125899906842624.2"),
            ("2.9802322387695312e-8", "2.9802322387695312e-08"),
            // A power of two, where the nearest candidate below is out of reach.
            ("5.684341886080802e-14", "5.684341886080802e-14"),
        ] {
            prints(written, repr);
        }
    }

    #[test]
    fn a_float_that_python_would_print_as_another_number_is_refused() {
        let lossy = "body: would lose digits as a float; send it as a string";
        for text in [
            "0.10000000000000000001",
            "1125899906842624.3",
            "9007199254740993.0",
            "1e-400",
            "-1e-400",
            "1e-99999999999999999999",
            "0.001e-9223372036854775808",
            "5e-325",
        ] {
            refuses(text, lossy);
        }
        for text in ["1e309", "-1e309", "1e99999999999999999999"] {
            refuses(text, "body: is too large for a float; send it as a string");
        }
    }

    #[test]
    fn strings_are_escaped_as_python_escapes_them() {
        prints(
            r#""\" \\ \/ \b\f\n\r\t \u0000\u001f\u007f\u0080\u2028 é 🏠""#,
            r#""\" \\ / \b\f\n\r\t \u0000\u001f\u007f\u0080\u2028 \u00e9 \ud83c\udfe0""#,
        );
        let text = Json::String("\u{1}\u{7f}\u{80}\u{2028}é🏠".to_owned());
        assert_eq!(text.to_canonical(Profile::CompactUtf8), "\"\\u0001\u{7f}\u{80}\u{2028}é🏠\"");
    }

    #[test]
    fn keys_are_sorted_by_code_point_at_every_level() {
        prints(
            r#" {"b": {"z": 1, "Z": [ ], "é": { }}, "\ud83d\ude00": 3, "\uffdc": 2, "a": null} "#,
            r#"{"a":null,"b":{"Z":[],"z":1,"\u00e9":{}},"\uffdc":2,"\ud83d\ude00":3}"#,
        );
    }

    #[test]
    fn every_fault_is_reported_with_its_place() {
        refuses(
            r#"{"document_details": [1, 1e999, {"b": "\ud800", "b": 2}], "job_id": {"\udc00": 1}, "document_details": 0.10000000000000000001}"#,
            "/document_details/1: is too large for a float; send it as a string; \
             /document_details/2/?1: has a lone surrogate; \
             /document_details/2/?1: appears more than once; \
             /job_id: has a key with a lone surrogate; \
             /document_details: appears more than once",
        );
    }

    #[test]
    fn keys_are_compared_unescaped() {
        refuses(r#"{"a": 1, "\u0061": 2}"#, "/?1: appears more than once");
        prints(r#"{"a": 1, "A": 2, "\u00e1": 3, "a\u0301": 4}"#, r#"{"A":2,"a":1,"a\u0301":4,"\u00e1":3}"#);
    }

    #[test]
    fn a_key_that_may_be_personal_data_is_not_shown() {
        for (key, length) in
            [("", 0), ("12 Baker Street", 15), ("Ravi_Kumar_Sharma", 17), ("a/b", 3), ("É", 1)]
        {
            refuses(
                &format!(r#"{{"document_details": {{"{key}": 1e999}}}}"#),
                &format!("/document_details/?{length}: is too large for a float; send it as a string"),
            );
        }
    }

    #[test]
    fn nesting_ends_at_32_levels() {
        let nested = |depth| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        prints(&nested(32), &nested(32));
        let pointer = "/0".repeat(32);
        refuses(&nested(33), &format!("{pointer}: is nested more than 32 levels deep"));
        refuses(&nested(30_000), &format!("{pointer}: is nested more than 32 levels deep"));
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for text in [
            "",
            " ",
            "{",
            "[1,]",
            "{\"a\":1,}",
            "{a:1}",
            "NaN",
            "Infinity",
            "-",
            "01",
            "1.",
            ".5",
            "+1",
            "1 2",
            "\"a\nb\"",
            "\"\\x\"",
            "'a'",
            "\u{feff}{}",
            "nullx",
            "/* */1",
        ] {
            let faults = Json::parse(text.as_bytes()).unwrap_err();
            assert_eq!(faults.len(), 1, "{text}");
            assert_eq!(faults[0].pointer, "", "{text}");
            assert!(faults[0].reason.starts_with("is not JSON: "), "{text}: {}", faults[0]);
        }
        let faults = Json::parse(b"\"\xff\"").unwrap_err();
        assert!(faults[0].reason.starts_with("is not UTF-8: "), "{}", faults[0]);
    }

    #[test]
    fn debug_shows_no_content() {
        let json = Json::parse(br#"{"secret": ["secret", 7]}"#).unwrap();
        assert_eq!(format!("{json:?}"), "Json(..)");
    }

    fn finite() -> impl Strategy<Value = f64> {
        any::<u64>().prop_map(f64::from_bits).prop_filter("finite", |value| value.is_finite())
    }

    fn json() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::Bool),
            "0|-?[1-9][0-9]{0,40}".prop_map(Json::Integer),
            finite().prop_map(Json::Float),
            any::<String>().prop_map(Json::String),
        ];
        leaf.prop_recursive(5, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Json::Array),
                prop::collection::btree_map(any::<String>(), inner, 0..8).prop_map(Json::Object),
            ]
        })
    }

    proptest! {
        #[test]
        fn canonical_text_reads_back_as_the_same_value(json in json()) {
            for profile in PROFILES {
                let text = json.to_canonical(profile);
                prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{}", text);
                let again = Json::parse(text.as_bytes()).unwrap();
                prop_assert!(again == json, "{}", text);
                prop_assert_eq!(again.to_canonical(profile), text);
            }
        }

        #[test]
        fn a_printed_float_reads_back_as_the_same_bits(value in finite()) {
            let text = Json::Float(value).to_canonical(Profile::Compact);
            prop_assert_eq!(text.parse::<f64>().unwrap().to_bits(), value.to_bits());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in any::<Vec<u8>>(), text in "[-0-9.eE\\[\\]{}\",:a ]{0,24}") {
            for bytes in [bytes.as_slice(), text.as_bytes()] {
                if let Err(faults) = Json::parse(bytes) {
                    prop_assert!(!faults.is_empty());
                }
            }
        }
    }
}
