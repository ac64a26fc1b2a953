//! What is kept of a text that the provider wrote. It may repeat what a customer entered: as
//! it was, cut, escaped, respelled or in another case, so that no search for what was entered
//! finds it all. So it is the other way round: words that the provider is known to say are
//! kept as they stand, and of everything else the length alone.
//!
//! There is no hash of what is withheld. Twelve digits are found again from any short one
//! without a key; one with a key would differ for every customer whom a text names, and so
//! group nothing. The words that are kept group: `Name mismatch: [withheld:10]`.

use uuid::Uuid;

/// No text that tells something is longer.
const CHARS_MAX: usize = 500;

/// Marks that are no words, in a row, are kept up to this many.
const MARKS_MAX: usize = 3;

/// Numbers of so many digits are kept where they are a limit, as in `more than 255 characters`.
const LIMIT_DIGITS_MAX: usize = 3;

/// The words of the provider's documented messages, failure reasons, statuses and field names,
/// those of its framework's refusals (Django REST framework), and what services of this kind
/// say of documents. None is a name or a place.
const WORDS: &[&str] = &[
    "aadhaar",
    "accept",
    "accepted",
    "access",
    "account",
    "additional",
    "address",
    "allowed",
    "already",
    "api",
    "applied",
    "approved",
    "array",
    "attempts",
    "authentication",
    "authorization",
    "authorized",
    "available",
    "bad",
    "base64",
    "blank",
    "blurred",
    "blurry",
    "body",
    "boolean",
    "bytes",
    "cannot",
    "changed",
    "character",
    "characters",
    "check",
    "checks",
    "choice",
    "choices",
    "client",
    "completed",
    "configuration",
    "contain",
    "contains",
    "content",
    "correct",
    "corrupt",
    "corrupted",
    "could",
    "country",
    "created",
    "credentials",
    "credits",
    "cropped",
    "customer",
    "customers",
    "damaged",
    "data",
    "date",
    "deleted",
    "denied",
    "detail",
    "details",
    "detected",
    "dictionary",
    "different",
    "digit",
    "digits",
    "disabled",
    "document",
    "documents",
    "does",
    "download",
    "downloaded",
    "driving",
    "duplicate",
    "element",
    "elements",
    "email",
    "empty",
    "enabled",
    "endpoint",
    "ensure",
    "enter",
    "error",
    "errors",
    "exceed",
    "exceeded",
    "exceeds",
    "exist",
    "existing",
    "exists",
    "expected",
    "expired",
    "expiry",
    "extension",
    "failed",
    "failure",
    "fetch",
    "fetched",
    "file",
    "files",
    "format",
    "found",
    "fraud",
    "full",
    "greater",
    "header",
    "hidden",
    "hold",
    "holder",
    "identical",
    "identification",
    "identity",
    "illegible",
    "image",
    "images",
    "inactive",
    "incomplete",
    "incorrect",
    "information",
    "input",
    "integer",
    "internal",
    "invalid",
    "issue",
    "issued",
    "item",
    "items",
    "jpeg",
    "jpg",
    "json",
    "kyc",
    "length",
    "less",
    "licence",
    "license",
    "limit",
    "liveness",
    "maintenance",
    "malformed",
    "manual",
    "match",
    "matched",
    "matches",
    "maximum",
    "media",
    "merchant",
    "message",
    "method",
    "minimum",
    "mismatch",
    "mismatched",
    "missing",
    "name",
    "names",
    "network",
    "non",
    "null",
    "number",
    "numbers",
    "object",
    "once",
    "operation",
    "organisation",
    "organization",
    "original",
    "pan",
    "parse",
    "parsed",
    "partner",
    "passport",
    "pattern",
    "payment",
    "pdf",
    "pending",
    "permission",
    "permitted",
    "photo",
    "plan",
    "please",
    "png",
    "present",
    "previous",
    "problem",
    "process",
    "processed",
    "processing",
    "profile",
    "provided",
    "provider",
    "quality",
    "readable",
    "received",
    "record",
    "records",
    "reference",
    "refused",
    "rejected",
    "remaining",
    "repeated",
    "request",
    "requested",
    "requests",
    "required",
    "requires",
    "reset",
    "resource",
    "response",
    "resubmit",
    "retry",
    "review",
    "reviewed",
    "same",
    "scan",
    "scanned",
    "second",
    "seconds",
    "secret",
    "selfie",
    "sent",
    "server",
    "service",
    "side",
    "signature",
    "size",
    "smaller",
    "status",
    "string",
    "submission",
    "submit",
    "submitted",
    "subscription",
    "success",
    "successful",
    "successfully",
    "support",
    "supported",
    "suspected",
    "suspended",
    "tampered",
    "tax",
    "temporarily",
    "text",
    "throttled",
    "time",
    "timed",
    "timeout",
    "timestamp",
    "token",
    "transaction",
    "twice",
    "type",
    "types",
    "unable",
    "unauthorized",
    "unavailable",
    "unclear",
    "under",
    "unexpected",
    "unique",
    "unknown",
    "unreadable",
    "unsupported",
    "unverified",
    "update",
    "updated",
    "updates",
    "upgrade",
    "upload",
    "uploaded",
    "uri",
    "url",
    "used",
    "user",
    "uuid",
    "valid",
    "validation",
    "value",
    "values",
    "verification",
    "verified",
    "verify",
    "version",
    "voter",
    "whitelist",
    "wrong",
];

/// Words that say nothing by themselves, and those that are names too. They are kept between
/// others.
const LINKING: &[&str] = &[
    "a", "after", "again", "an", "and", "another", "any", "are", "as", "at", "back", "be", "been", "before",
    "being", "but", "by", "can", "card", "case", "clear", "do", "each", "face", "field", "fields", "for",
    "from", "front", "get", "got", "has", "have", "id", "if", "in", "into", "is", "it", "its", "key",
    "later", "least", "link", "links", "list", "long", "low", "may", "more", "most", "must", "no", "not",
    "of", "on", "only", "or", "other", "out", "poor", "short", "should", "so", "than", "that", "the", "then",
    "there", "this", "to", "too", "try", "up", "use", "was", "when", "while", "will", "with", "within",
    "you",
];

/// The marks between words. Two words with one of the first four between them go together.
const MARKS: &str = " _-/.,:;!?()[]{}\"'<>=|";
const JOINTS: &str = " _-/";

/// What is kept of `text`: at least two known words in a row, or one that is all of it, as
/// they stand; `[withheld:N]` in the place of N other characters. So a text that is all known
/// is kept whole, and one that is not never reads like one that is.
pub fn known_words(text: &str) -> String {
    let end = text.char_indices().nth(CHARS_MAX).map_or(text.len(), |(end, _)| end);
    let mut parts = split(&text[..end]);
    if end < text.len()
        && let Some(last) = parts.last_mut()
    {
        // It may be the beginning of another word.
        last.kind = Kind::Other;
    }
    keep_limit(&mut parts);
    keep_runs(&mut parts);
    print(&parts)
}

/// What is kept of an id that the provider gave: a UUID, as is documented.
pub fn known_id(text: &str) -> String {
    match Uuid::try_parse(text) {
        Ok(_) if text.len() == 36 => text.to_owned(),
        _ => known_words(text),
    }
}

struct Part<'a> {
    text: &'a str,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// A known word that says something by itself.
    Word,
    /// A known word that does not.
    Linking,
    /// What may stand between two words of one run.
    Joint,
    Marks,
    Other,
}

impl Kind {
    fn of(text: &str) -> Self {
        let is_in = |words: &[&str]| words.iter().any(|word| word.eq_ignore_ascii_case(text));
        let are_marks = text.starts_with(|c| MARKS.contains(c));
        match text.len() {
            1 if text.starts_with(|c| JOINTS.contains(c)) => Self::Joint,
            1..=MARKS_MAX if are_marks => Self::Marks,
            _ if are_marks => Self::Other,
            _ if is_in(WORDS) => Self::Word,
            _ if is_in(LINKING) => Self::Linking,
            _ => Self::Other,
        }
    }

    fn is_word(self) -> bool {
        matches!(self, Self::Word | Self::Linking)
    }
}

/// Takes a text apart into marks and what stands between them.
fn split(text: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_mark = MARKS.contains(first);
        let end = rest.find(|c| MARKS.contains(c) != is_mark).unwrap_or(rest.len());
        parts.push(Part { text: &rest[..end], kind: Kind::of(&rest[..end]) });
        rest = &rest[end..];
    }
    parts
}

/// The first number that is a limit counts as a word, and no other.
fn keep_limit(parts: &mut [Part<'_>]) {
    let is_one_of = |part: &Part<'_>, words: &[&str]| words.contains(&part.text);
    let limit = parts.windows(5).position(|around| {
        let [before, _, number, _, after] = around else { return false };
        number.text.len() <= LIMIT_DIGITS_MAX
            && number.text.bytes().all(|byte| byte.is_ascii_digit())
            && is_one_of(before, &["than", "least", "most", "in"])
            && is_one_of(after, &["characters", "digits", "elements", "items", "bytes", "seconds", "second"])
    });
    if let Some(at) = limit {
        parts[at + 2].kind = Kind::Linking;
    }
}

/// Withholds the words that do not stand together with enough others.
fn keep_runs(parts: &mut [Part<'_>]) {
    let is_all_known = parts.iter().all(|part| part.kind != Kind::Other);
    let mut at = 0;
    let mut runs = Vec::new();
    while at < parts.len() {
        let begin = at;
        if parts[at].kind.is_word() {
            while at + 2 < parts.len() && parts[at + 1].kind == Kind::Joint && parts[at + 2].kind.is_word() {
                at += 2;
            }
            runs.push(begin..at + 1);
        }
        at += 1;
    }
    let words_min = if is_all_known && runs.len() == 1 { 1 } else { 2 };
    for run in runs {
        let words = parts[run.clone()].iter().filter(|part| part.kind == Kind::Word).count();
        if words < words_min {
            parts[run].iter_mut().for_each(|part| part.kind = Kind::Other);
        }
    }
}

/// Prints what is kept. Marks between two parts that are withheld are withheld with them.
fn print(parts: &[Part<'_>]) -> String {
    let mut printed = String::new();
    let mut rest = parts;
    while let Some((first, others)) = rest.split_first() {
        if first.kind != Kind::Other {
            printed.push_str(first.text);
            rest = others;
            continue;
        }
        let end = rest.iter().position(|part| part.kind.is_word()).unwrap_or(rest.len());
        let withheld =
            rest[..end].iter().rposition(|part| part.kind == Kind::Other).map_or(1, |last| last + 1);
        let chars: usize = rest[..withheld].iter().map(|part| part.text.chars().count()).sum();
        printed.push_str(&format!("[withheld:{chars}]"));
        rest = &rest[withheld..];
    }
    printed
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(known_words(text), expected, "{text:?}");
    }

    #[test]
    fn what_the_provider_is_documented_to_say_is_kept() {
        for text in [
            "",
            "VERIFIED",
            "UNVERIFIED",
            "PROCESSING",
            "FAILED",
            "DOCUMENT_VERIFICATION_FAILED",
            "TAX_VERIFICATION_FAILED",
            "SELFIE_VERIFICATION_FAILED",
            "KYC_FAILED",
            "AADHAAR",
            "DRIVING_LICENSE",
            "VOTER_ID",
            "Success",
            "Bad Request",
            "Internal Server Error",
            "Invalid Signature",
            "Customer not found or access denied.",
            "KYC already in use",
            "Kyc update limit exceeded",
            "This field may not be blank.",
            "This field is required.",
            "Ensure this field has no more than 255 characters.",
            "Enter a valid URL.",
            "Not a valid string.",
            "Must be a valid UUID.",
            "document_details",
            "document_details.document_number",
            "document_front_image_url",
            "full_address",
            "non_field_errors",
            "ON_HOLD",
            "NAME_MISMATCH",
        ] {
            check(text, text);
        }
    }

    #[test]
    fn of_everything_else_the_length_alone_is_kept() {
        check("RAVI_KUMAR", "[withheld:10]");
        check("1234 5678 9012", "[withheld:14]");
        check("123", "[withheld:3]");
        check("Name mismatch: RAVI KUMAR", "Name mismatch: [withheld:10]");
        check("Name mismatch: RAVI KUMAR / Asha Field", "Name mismatch: [withheld:23]");
        check("Document number 1234-5678-9012 is not valid.", "Document number [withheld:27].");
        check("\"12 Rue X\" is not a valid choice.", "\"[withheld:8]\" is not a valid choice.");
        check("canary-key for Ensure, Anand", "[withheld:28]");
        check("VERIFIED\u{200b}", "[withheld:9]");
        check("VERI\u{0}FIED", "[withheld:9]");
        check("\u{415}RROR", "[withheld:5]");
        check("an.is.h", "[withheld:7]");
        check("Field", "[withheld:5]");
        check("-------", "[withheld:7]");
        check("more than 123 characters, than 456 characters", "[withheld:45]");
        check("documentary", "[withheld:11]");
        check(&format!("{}verified", "x".repeat(CHARS_MAX - 8)), "[withheld:500]");
        check(&format!("{} documentary", "x".repeat(CHARS_MAX - 9)), "[withheld:500]");
    }

    #[test]
    fn an_id_is_kept_where_it_is_a_uuid() {
        let id = "4e6f1b20-a73c-11ec-b909-0242ac120002";
        assert_eq!(known_id(id), id);
        assert_eq!(known_id("RAVI-1"), "[withheld:6]");
        assert_eq!(known_id("123456789012"), "[withheld:12]");
        assert_eq!(known_id("4e6f1b20a73c11ecb9090242ac120002"), "[withheld:32]");
    }

    /// What no search for the text as it was entered finds: other cases, other separators,
    /// escapes, pieces.
    fn respell(text: &str, way: usize, mark: char) -> String {
        let between = |every: usize| {
            let mut spelt = String::new();
            for (at, c) in text.chars().enumerate() {
                if at > 0 && at % every == 0 {
                    spelt.push(mark);
                }
                spelt.push(c);
            }
            spelt
        };
        match way {
            0 => text.to_owned(),
            1 => text.to_uppercase(),
            2 => text.to_lowercase(),
            3 => between(1),
            4 => between(3),
            5 => between(4),
            6 => text.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect(),
            7 => text.bytes().map(|byte| format!("%{byte:02X}")).collect(),
            8 => text.chars().filter(|c| c.is_alphanumeric()).collect(),
            9 => text.chars().skip(2).collect(),
            10 => text.escape_debug().to_string(),
            _ => text.chars().rev().collect(),
        }
    }

    /// Letters and digits alone, in lower case: how a text reads whatever stands between them.
    fn bare(text: &str) -> Vec<char> {
        text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
    }

    const PHRASES: [&str; 6] = [
        "{}",
        "Document number {} is already in use",
        "Name mismatch: {} is not the name on the document",
        "{\"full_address\": [\"{} is not valid\"]}",
        "Ensure this field has no more than {} characters.",
        "Bad Request of {}; {}",
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_096))]

        /// Private texts of letters that no known word is made of, so that what is found of them
        /// comes from them.
        #[test]
        fn nothing_of_four_characters_that_was_entered_survives(
            private in "[0-9JjQqZzWwÉéमु]{1,6}([ ,./_-][0-9JjQqZzWwÉéमु]{1,6}){0,6}",
            way in 0..12_usize,
            mark in prop::sample::select(MARKS.chars().chain(['\u{200b}', '\t', '#', '·']).collect::<Vec<_>>()),
            phrase in prop::sample::select(PHRASES.to_vec()),
        ) {
            let said = phrase.replace("{}", &respell(&private, way, mark));
            let kept = known_words(&said);
            let (entered, found) = (bare(&private), bare(&kept));
            for part in entered.windows(4) {
                prop_assert!(!found.windows(4).any(|at| at == part), "{:?}: {:?}", said, kept);
            }
        }

        /// Of any text whatever, nothing but known words, marks and at most one limit is kept.
        #[test]
        fn only_known_words_and_lengths_are_kept(
            text in prop_oneof![
                any::<String>(),
                "[a-zA-Z0-9 .,:_-]{0,80}",
                "((document|number|in|than|255|characters|é|12) ?){0,12}",
            ],
        ) {
            let kept = known_words(&text);
            let mut limits = 0;
            for word in kept.split(|c| MARKS.contains(c)).filter(|word| !word.is_empty()) {
                if word.bytes().all(|byte| byte.is_ascii_digit()) {
                    limits += 1;
                } else if word == "withheld" {
                    // Its length is no limit.
                    limits -= 1;
                } else {
                    prop_assert!(Kind::of(word).is_word(), "{:?}: {:?}", text, kept);
                }
            }
            prop_assert!(limits <= 1, "{:?}: {:?}", text, kept);
            prop_assert!(kept == text || kept.contains("[withheld:"), "{:?}: {:?}", text, kept);
        }
    }
}
