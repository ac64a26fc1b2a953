//! Which of a message's properties can be read. AMQP asks for no encoding of short strings and
//! for no end of nested headers, and RabbitMQ passes on what it was given; lapin's parser ends
//! the connection on the one, and overflows its stack on the other. Pure: knows the bytes of one
//! content header, and nothing of the stream that they came in.

use std::ops::Range;

use lapin::protocol::basic::parse_properties;

use super::wire::{Cursor, KINDS};
use dollarpe::canonical_json::Fault;

/// How deep headers may be nested. RabbitMQ's own `x-death` is three levels.
const DEPTH_MAX: usize = 16;

/// What a message's properties may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// How many bytes, all together.
    pub bytes: usize,
    /// How many values in the headers, nested ones included: a value of one byte takes some
    /// thirty times as much memory.
    pub values: usize,
}

impl Limits {
    pub const NONE: Self = Self { bytes: usize::MAX, values: usize::MAX };
}

/// Properties that cannot be read as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    /// Every property that cannot be read, and why.
    pub faults: Vec<Fault>,
    /// The flags and values of the others.
    pub rest: Vec<u8>,
}

enum Kind {
    ShortString,
    Table,
    Fixed(usize),
}

/// In their order; the first has the highest flag.
const PROPERTIES: [(&str, Kind); 14] = [
    ("content_type", Kind::ShortString),
    ("content_encoding", Kind::ShortString),
    ("headers", Kind::Table),
    ("delivery_mode", Kind::Fixed(1)),
    ("priority", Kind::Fixed(1)),
    ("correlation_id", Kind::ShortString),
    ("reply_to", Kind::ShortString),
    ("expiration", Kind::ShortString),
    ("message_id", Kind::ShortString),
    ("timestamp", Kind::Fixed(8)),
    ("type", Kind::ShortString),
    ("user_id", Kind::ShortString),
    ("app_id", Kind::ShortString),
    ("cluster_id", Kind::ShortString),
];

/// Checks properties, which begin with their flags. What passes is what lapin's own parser reads.
///
/// # Errors
/// What cannot be read, and what is left without it.
pub(super) fn check(properties: &[u8], limits: &Limits) -> Result<(), Unreadable> {
    let (mut faults, mut kept) = (Vec::new(), Kept::default());
    match walk(properties, limits, &mut faults, &mut kept) {
        Ok(()) if !faults.is_empty() => {}
        // The last word is the parser's own, whatever the next version of it refuses.
        Ok(()) if is_parsed(properties) => return Ok(()),
        Ok(()) => {
            faults.push(fault("/properties", "cannot be read".to_owned()));
            kept = Kept::default();
        }
        Err(structural) => faults.push(structural),
    }
    let mut rest = kept.write(properties);
    if !is_parsed(&rest) {
        rest = vec![0, 0];
    }
    Err(Unreadable { faults, rest })
}

fn is_parsed(properties: &[u8]) -> bool {
    parse_properties(properties).is_ok_and(|(left, _)| left.is_empty())
}

/// Goes through the properties. An error ends the walk: nothing behind it can be found.
fn walk(properties: &[u8], limits: &Limits, faults: &mut Vec<Fault>, kept: &mut Kept) -> Result<(), Fault> {
    let mut cursor = Cursor { bytes: properties, at: 0 };
    let flags = cursor.u16().ok_or_else(|| fault("/properties", "are cut short".to_owned()))?;
    for (place, (name, kind)) in PROPERTIES.iter().enumerate() {
        let flag = 1 << (15 - place);
        if flags & flag == 0 {
            continue;
        }
        let begin = cursor.at;
        let read = match kind {
            Kind::Fixed(length) => cursor.take(*length).map(|_value| Ok(())),
            Kind::ShortString => cursor.short_string().map(check_utf8),
            Kind::Table => cursor.long_string().map(|table| check_headers(table, properties.len(), limits)),
        };
        let pointer = || format!("/properties/{name}");
        match read.ok_or_else(|| fault(&pointer(), "is cut short".to_owned()))? {
            Ok(()) => kept.keep(flag, place, begin..cursor.at),
            Err(reason) => faults.push(fault(&pointer(), reason)),
        }
    }
    if cursor.at < properties.len() {
        return Err(fault("/properties", "have bytes that belong to none of them".to_owned()));
    }
    Ok(())
}

fn fault(pointer: &str, reason: String) -> Fault {
    Fault { pointer: pointer.to_owned(), reason }
}

fn check_utf8(text: &[u8]) -> Result<(), String> {
    std::str::from_utf8(text).map(|_| ()).map_err(|_| format!("is not UTF-8 ({} bytes)", text.len()))
}

fn check_headers(table: &[u8], size: usize, limits: &Limits) -> Result<(), String> {
    if size > limits.bytes {
        return Err(format!("make the properties larger than {} bytes", limits.bytes));
    }
    check_table(table, limits.values)
}

/// Checks a field table in a loop, however it is nested.
fn check_table(table: &[u8], values_max: usize) -> Result<(), String> {
    let cut_short = || "are cut short".to_owned();
    let mut cursor = Cursor { bytes: table, at: 0 };
    let (mut end, mut is_table) = (table.len(), true);
    let mut outer = Vec::new();
    let mut values = 0;
    loop {
        while cursor.at == end {
            match outer.pop() {
                Some(level) => (end, is_table) = level,
                None => return Ok(()),
            }
        }
        values += 1;
        if values > values_max {
            return Err(format!("have more than {values_max} values"));
        }
        cursor.bytes = &table[..end];
        if is_table && std::str::from_utf8(cursor.short_string().ok_or_else(cut_short)?).is_err() {
            return Err("have a name that is not UTF-8".to_owned());
        }
        let kind = cursor.u8().ok_or_else(cut_short)?;
        if !KINDS.contains(&kind) {
            return Err(format!("have a value of the unknown type {kind:#04x}"));
        }
        let value = cursor.value(kind).ok_or_else(cut_short)?;
        if matches!(kind, b'A' | b'F') {
            if outer.len() + 1 == DEPTH_MAX {
                return Err(format!("are nested deeper than {DEPTH_MAX} levels"));
            }
            outer.push((end, is_table));
            (end, is_table) = (cursor.at, kind == b'F');
            cursor.at -= value.len();
        }
    }
}

/// Where the readable properties are.
#[derive(Default)]
struct Kept {
    flags: u16,
    places: [Range<usize>; PROPERTIES.len()],
}

impl Kept {
    fn keep(&mut self, flag: u16, place: usize, bytes: Range<usize>) {
        self.flags |= flag;
        self.places[place] = bytes;
    }

    fn write(&self, properties: &[u8]) -> Vec<u8> {
        let mut rest = self.flags.to_be_bytes().to_vec();
        for place in &self.places {
            rest.extend_from_slice(&properties[place.clone()]);
        }
        rest
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { bytes: 4096, values: 64 };

    const ANY_SIZE: Limits = Limits { bytes: usize::MAX, values: usize::MAX };

    fn short_string(text: &[u8]) -> Vec<u8> {
        [&[u8::try_from(text.len()).expect("short")], text].concat()
    }

    fn long_string(bytes: &[u8]) -> Vec<u8> {
        [&u32::try_from(bytes.len()).expect("long").to_be_bytes()[..], bytes].concat()
    }

    /// Properties of which the one named has these bytes, and a `message_id` beside it.
    fn with(name: &str, value: &[u8]) -> Vec<u8> {
        let place = PROPERTIES.iter().position(|(known, _)| *known == name).expect("a property");
        let flags = (1_u16 << (15 - place)) | (1 << 7);
        let id = short_string(b"the id");
        let values = match place {
            place if place < 8 => [value, &id].concat(),
            8 => value.to_vec(),
            _ => [&id, value].concat(),
        };
        [&flags.to_be_bytes()[..], &values].concat()
    }

    fn only_message_id() -> Vec<u8> {
        with("message_id", &short_string(b"the id"))
    }

    fn nested(depth: usize) -> Vec<u8> {
        let mut value = vec![b'V'];
        for _ in 1..depth {
            value = [vec![b'A'], long_string(&value)].concat();
        }
        long_string(&[short_string(b"deep"), value].concat())
    }

    fn check_says(properties: &[u8], limits: &Limits, said: &str) {
        let Err(Unreadable { faults, rest }) = check(properties, limits) else { panic!("it is readable") };
        let faults: Vec<_> =
            faults.iter().map(|fault| format!("{}: {}", fault.pointer, fault.reason)).collect();
        assert_eq!(faults, [said]);
        assert_eq!(check(&rest, limits), Ok(()), "what is left is readable");
    }

    #[test]
    fn every_short_string_must_be_utf8_and_the_rest_is_kept() {
        for (name, kind) in &PROPERTIES {
            if matches!(kind, Kind::ShortString) {
                let properties = with(name, &short_string(b"ab\xff\xfe"));
                check_says(&properties, &LIMITS, &format!("/properties/{name}: is not UTF-8 (4 bytes)"));
                let left = check(&properties, &LIMITS).expect_err("unreadable").rest;
                let expected = if *name == "message_id" { vec![0, 0] } else { only_message_id() };
                assert_eq!(left, expected, "{name}");
            }
        }
    }

    #[test]
    fn headers_that_cannot_be_read_are_left_out() {
        let headers = |entries: &[u8]| with("headers", &long_string(entries));
        let many = |count: u16| -> Vec<u8> {
            (0..count)
                .flat_map(|n| [&short_string(&format!("{n}").into_bytes())[..], b"V"].concat())
                .collect()
        };
        for (properties, said) in [
            (headers(&[&short_string(b"\xc3")[..], b"V"].concat()), "have a name that is not UTF-8"),
            (headers(&[&short_string(b"a")[..], b"z"].concat()), "have a value of the unknown type 0x7a"),
            (headers(&[&short_string(b"a")[..], b"S\0\0\0\x05abcd"].concat()), "are cut short"),
            (headers(b"\x05ab"), "are cut short"),
            (headers(&[&short_string(b"a")[..], b"A\0\0\0\x02b"].concat()), "are cut short"),
            (headers(&many(65)), "have more than 64 values"),
            (with("headers", &nested(17)), "are nested deeper than 16 levels"),
            (with("headers", &nested(500)), "are nested deeper than 16 levels"),
            (
                headers(&[&short_string(b"a")[..], b"x", &long_string(&[0; 4096])].concat()),
                "make the properties larger than 4096 bytes",
            ),
        ] {
            check_says(&properties, &LIMITS, &format!("/properties/headers: {said}"));
            assert_eq!(check(&properties, &LIMITS).expect_err("unreadable").rest, only_message_id());
        }
        for readable in [headers(&many(64)), with("headers", &nested(16)), headers(b""), vec![0, 0]] {
            assert_eq!(check(&readable, &LIMITS), Ok(()));
        }
    }

    #[test]
    fn a_header_nested_a_hundred_thousand_deep_takes_no_stack() {
        let depth = 100_000_usize;
        // Each level says how long all those in it are.
        let levels = (0..depth).flat_map(|level| {
            let inner = u32::try_from((depth - 1 - level) * 5).expect("short");
            [&b"A"[..], &inner.to_be_bytes()].concat()
        });
        let table = [short_string(b"deep"), levels.collect()].concat();
        let properties = with("headers", &long_string(&table));
        check_says(&properties, &ANY_SIZE, "/properties/headers: are nested deeper than 16 levels");
    }

    #[test]
    fn properties_that_end_too_soon_or_too_late_are_not_read_past() {
        check_says(&[], &LIMITS, "/properties: are cut short");
        check_says(&[0x80], &LIMITS, "/properties: are cut short");
        check_says(&[0x80, 0, 5, b'a'], &LIMITS, "/properties/content_type: is cut short");
        check_says(&[0x20, 0, 0xff, 0xff, 0xff, 0xff], &LIMITS, "/properties/headers: is cut short");
        check_says(&[0, 0, 7], &LIMITS, "/properties: have bytes that belong to none of them");
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_made_readable(flags: u16, values in prop::collection::vec(any::<u8>(), 0..400)) {
            let properties = [&flags.to_be_bytes()[..], &values].concat();
            if let Err(Unreadable { faults, rest }) = check(&properties, &LIMITS) {
                prop_assert!(!faults.is_empty());
                prop_assert!(rest.len() <= properties.len().max(2));
                prop_assert_eq!(check(&rest, &LIMITS), Ok(()));
            }
        }

        /// Our walk refuses nothing that lapin's parser takes, but for what is limited.
        #[test]
        fn what_lapin_reads_is_readable(entries in prop::collection::vec(entry(), 0..20)) {
            let table: Vec<u8> = entries.concat();
            let properties = with("headers", &long_string(&table));
            prop_assert_eq!(check(&properties, &ANY_SIZE).is_ok(), is_parsed(&properties));
        }
    }

    /// A header of any type, with a value that is mostly right.
    fn entry() -> impl Strategy<Value = Vec<u8>> {
        let kind = prop::sample::select(b"tbBsUuIiLlfdDSxATFVz".to_vec());
        ("[a-z]{1,4}", kind, prop::collection::vec(any::<u8>(), 0..12)).prop_map(|(name, kind, bytes)| {
            let value = match kind {
                b'S' | b'x' => long_string(&bytes),
                b'A' => long_string(&bytes.iter().flat_map(|byte| [b'b', *byte]).collect::<Vec<_>>()),
                b'F' => long_string(&[&short_string(b"in")[..], b"V"].concat()),
                b'V' => Vec::new(),
                b't' | b'b' | b'B' => vec![0; 1],
                b's' | b'U' | b'u' => vec![0; 2],
                b'I' | b'i' | b'f' => vec![0; 4],
                b'D' => vec![0; 5],
                _ => vec![0; 8],
            };
            [&short_string(name.as_bytes())[..], &[kind], &value].concat()
        })
    }
}
