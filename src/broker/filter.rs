//! What of the broker's bytes lapin is given to read. A message that lapin's parser could not
//! read, or that would not fit into memory, goes through with what is left of it, so that it
//! ends itself and not the session; what was done to it is noted beside the stream, where no
//! publisher can forge it. All else passes byte for byte. Pure: knows frames, and no sockets.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use super::properties::{self, Limits, Unreadable};
use super::wire::Cursor;
use super::x_death::survives_dead_lettering;
use crate::domain::message::Whole;
use dollarpe::canonical_json::Fault;

const HEAD: usize = 7;

/// What a frame is beside its payload.
const FRAME: usize = HEAD + 1;

const FRAME_END: u8 = 0xce;

const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;
const CONTENT_BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

/// Class and weight come before the body's size in a content header, the properties after it.
const BODY_SIZE: usize = 4;
const PROPERTIES: usize = 12;

/// No frame of which a part must be known is kept whole beyond this; RabbitMQ's default for all
/// frames is 128 KiB, and it makes headers a little larger.
const HELD_MAX: usize = 1024 * 1024;

const BASIC: u16 = 60;
const CONNECTION: u16 = 10;
const TUNE: u16 = 30;
const DELIVER: u16 = 60;
const GET_OK: u16 = 71;
const RETURN: u16 = 50;
const CONNECTION_CLOSE: u16 = 50;
const CHANNEL: u16 = 20;
const CHANNEL_CLOSE: u16 = 40;

/// What a session takes of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Appetite {
    /// How many bytes of properties; none means what lapin takes in one frame.
    pub properties: Option<Limits>,
    /// How many bytes of the body; none means all. The others are counted and hashed, and go.
    /// Of the messages that the broker cannot dead-letter, one at a time is let through whole.
    pub body_bytes: Option<u64>,
}

impl Appetite {
    /// Messages as they are, as far as lapin can read them.
    pub const WHOLE: Self = Self { properties: None, body_bytes: None };
}

/// What was done to a message on its way to lapin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Alteration {
    /// The properties that could not be read, and are left out.
    pub faults: Vec<Fault>,
    /// The body, where not all of it was passed on.
    pub whole: Option<Whole>,
    /// Whether the broker's dead-lettering would not survive its headers, so that it may not be
    /// rejected.
    pub breaks_dead_lettering: bool,
}

/// The altered messages of a connection, by channel and delivery tag. An entry is there before
/// lapin has the message.
#[derive(Clone, Debug, Default)]
pub(super) struct Alterations(Arc<Mutex<Noted>>);

#[derive(Debug, Default)]
struct Noted {
    altered: HashMap<(u16, u64), Alteration>,
    /// Whether a body that is too large was let through whole, and is not done with.
    has_let_through: bool,
}

impl Alterations {
    /// What was done to a message; `None` where it is as it was published.
    pub fn take(&self, channel: u16, delivery_tag: u64) -> Option<Alteration> {
        self.0.lock().altered.remove(&(channel, delivery_tag))
    }

    /// The body that was let through whole is done with.
    pub fn let_next_through(&self) {
        self.0.lock().has_let_through = false;
    }

    fn try_to_let_through(&self) -> bool {
        !std::mem::replace(&mut self.0.lock().has_let_through, true)
    }

    fn note(&self, channel: u16, delivery_tag: Option<u64>, alteration: Alteration) {
        if let Some(tag) = delivery_tag {
            self.0.lock().altered.insert((channel, tag), alteration);
        }
    }
}

/// The stream from one connection's broker to lapin.
pub(super) struct Filter {
    appetite: Appetite,
    alterations: Alterations,
    /// What both sides agreed on, as lapin reckons it; 0 until they did.
    frame_max: usize,
    state: State,
    /// A frame whose end has not come yet.
    held: Vec<u8>,
    channels: BTreeMap<u16, Channel>,
}

/// Where in the stream the next byte is.
enum State {
    BetweenFrames,
    /// In a frame of which as much is left.
    Passing(usize),
    /// The same, of a frame that does not pass.
    Dropping(usize),
    /// In the payload of a body frame of a message that is cut.
    Cutting {
        channel: u16,
        left: usize,
        passes: usize,
    },
}

#[derive(Default)]
struct Channel {
    /// Of the message whose content comes next.
    delivery_tag: Option<u64>,
    cut: Option<Cut>,
}

/// A body that is not passed on whole. Its last byte that is comes when the whole has come: by
/// then what it was is known.
struct Cut {
    alteration: Alteration,
    size: u64,
    sha256: Sha256,
    /// How many bytes are still to come.
    left: u64,
    /// How many bytes are still to pass before the last one.
    passes: u64,
    last: Option<u8>,
}

impl Filter {
    /// A filter for a connection for which `frame_max` was asked; 0 leaves that to the broker.
    pub fn new(appetite: Appetite, frame_max: u32, alterations: Alterations) -> Self {
        Self {
            appetite,
            alterations,
            frame_max: usize::try_from(frame_max).unwrap_or_default(),
            state: State::BetweenFrames,
            held: Vec::new(),
            channels: BTreeMap::new(),
        }
    }

    /// Takes what came from the broker, and adds to `out` what lapin is to read. Where that is
    /// nothing, what lapin has read so far ends with a frame.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        if self.held.is_empty() {
            let taken = self.pass(bytes, out);
            self.held.extend_from_slice(&bytes[taken..]);
        } else {
            let mut held = std::mem::take(&mut self.held);
            held.extend_from_slice(bytes);
            let taken = self.pass(&held, out);
            held.drain(..taken);
            self.held = held;
        }
    }

    /// How much of `bytes` was taken: all, but for a frame whose end must be there first.
    fn pass(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            let taken = match self.state {
                State::BetweenFrames => self.begin_frame(rest, out),
                State::Passing(left) => {
                    let length = left.min(rest.len());
                    out.extend_from_slice(&rest[..length]);
                    self.state = State::in_frame(left - length, State::Passing);
                    length
                }
                State::Dropping(left) => {
                    let length = left.min(rest.len());
                    self.state = State::in_frame(left - length, State::Dropping);
                    length
                }
                State::Cutting { channel, left, passes } => self.cut_body(channel, left, passes, rest, out),
            };
            if taken == 0 {
                break;
            }
            at += taken;
        }
        at
    }

    /// How much of `bytes`, which begin with a frame, was taken; none where more must come first.
    fn begin_frame(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> usize {
        if !matches!(bytes[0], METHOD | CONTENT_HEADER | CONTENT_BODY | HEARTBEAT) {
            // What comes is not AMQP, and lapin will say so.
            self.state = State::Passing(usize::MAX);
            return self.pass(bytes, out);
        }
        let Some(head) = Head::read(bytes) else { return 0 };
        match head.kind {
            METHOD if head.size <= HELD_MAX => {
                let Some(frame) = bytes.get(..head.size + FRAME) else { return 0 };
                self.pass_method(&head, frame, out);
                frame.len()
            }
            CONTENT_HEADER if (PROPERTIES..=HELD_MAX).contains(&head.size) => {
                let Some(frame) = bytes.get(..head.size + FRAME) else { return 0 };
                self.pass_header(&head, frame, out);
                frame.len()
            }
            CONTENT_HEADER if head.size > HELD_MAX => {
                let Some(begun) = bytes.get(..HEAD + PROPERTIES) else { return 0 };
                let reason = format!("are larger than {HELD_MAX} bytes");
                let faults = vec![Fault { pointer: "/properties".to_owned(), reason }];
                // What is in them is not known.
                let alteration = Alteration { faults, breaks_dead_lettering: true, ..Default::default() };
                self.alter_header(head.channel, &begun[HEAD..], alteration, &[0, 0], out);
                self.state = State::Dropping(head.size - PROPERTIES + 1);
                begun.len()
            }
            CONTENT_BODY if self.channel(head.channel).cut.is_some() => {
                self.begin_cut_frame(&head, out);
                HEAD
            }
            _ => {
                out.extend_from_slice(&bytes[..HEAD]);
                self.state = State::Passing(head.size + 1);
                HEAD
            }
        }
    }

    fn channel(&mut self, id: u16) -> &mut Channel {
        self.channels.entry(id).or_default()
    }

    /// Methods that hold strings of others, or what we must know.
    fn pass_method(&mut self, head: &Head, frame: &[u8], out: &mut Vec<u8>) {
        let payload = &frame[HEAD..HEAD + head.size];
        let mut cursor = Cursor { bytes: payload, at: 0 };
        let (Some(class), Some(method)) = (cursor.u16(), cursor.u16()) else {
            return out.extend_from_slice(frame);
        };
        // Where the strings are that others may have chosen, and how many.
        let strings = match (class, method) {
            (CONNECTION, TUNE) => {
                self.learn_frame_max(cursor.skip(2).and_then(|()| cursor.u32()));
                None
            }
            // RabbitMQ cuts its texts after 255 bytes, in the middle of a character too.
            (CONNECTION, CONNECTION_CLOSE) | (CHANNEL, CHANNEL_CLOSE) => {
                cursor.skip(2).map(|()| (cursor.at, 1))
            }
            (BASIC, DELIVER) => {
                let delivery_tag = cursor.short_string().and_then(|_consumer_tag| cursor.u64());
                self.channel(head.channel).delivery_tag = delivery_tag;
                cursor.skip(1).map(|()| (cursor.at, 2))
            }
            (BASIC, GET_OK) => {
                let delivery_tag = cursor.u64();
                self.channel(head.channel).delivery_tag = delivery_tag;
                cursor.skip(1).map(|()| (cursor.at, 2))
            }
            (BASIC, RETURN) => {
                self.channel(head.channel).delivery_tag = None;
                cursor.skip(2).map(|()| (cursor.at, 3))
            }
            _ => None,
        };
        let made_readable = strings.and_then(|(at, count)| made_readable(payload, at, count));
        match made_readable {
            Some(payload) => write_frame(METHOD, head.channel, &[&payload], out),
            None => out.extend_from_slice(frame),
        }
    }

    fn learn_frame_max(&mut self, brokers: Option<u32>) {
        let brokers = brokers.and_then(|size| usize::try_from(size).ok()).unwrap_or_default();
        if brokers != 0 && (self.frame_max == 0 || brokers < self.frame_max) {
            self.frame_max = brokers;
        }
    }

    fn pass_header(&mut self, head: &Head, frame: &[u8], out: &mut Vec<u8>) {
        let (fixed, properties) = frame[HEAD..HEAD + head.size].split_at(PROPERTIES);
        let mut limits = self.appetite.properties.unwrap_or(Limits::NONE);
        if self.frame_max != 0 {
            limits.bytes = limits.bytes.min(self.frame_max.saturating_sub(FRAME + PROPERTIES));
        }
        let (faults, rest) = match properties::check(properties, &limits) {
            Ok(()) => (Vec::new(), None),
            Err(Unreadable { faults, rest }) => (faults, Some(rest)),
        };
        let breaks_dead_lettering = !survives_dead_lettering(properties);
        if rest.is_none() && !breaks_dead_lettering && self.body_bytes_to_pass(fixed).is_none() {
            self.channel(head.channel).cut = None;
            return out.extend_from_slice(frame);
        }
        let alteration = Alteration { faults, breaks_dead_lettering, ..Default::default() };
        self.alter_header(head.channel, fixed, alteration, rest.as_deref().unwrap_or(properties), out);
    }

    /// How much of a body is passed on, where that is not all of it.
    fn body_bytes_to_pass(&self, header: &[u8]) -> Option<u64> {
        self.appetite.body_bytes.filter(|passes| body_size(header) > *passes)
    }

    /// Writes a content header with the properties that are left, for the body that is left.
    fn alter_header(
        &mut self,
        channel: u16,
        fixed: &[u8],
        alteration: Alteration,
        properties: &[u8],
        out: &mut Vec<u8>,
    ) {
        let size = body_size(fixed);
        let passes = self
            .body_bytes_to_pass(fixed)
            .filter(|_| !alteration.breaks_dead_lettering || !self.alterations.try_to_let_through());
        let delivery_tag = self.channel(channel).delivery_tag;
        self.channel(channel).cut = match passes {
            Some(passes) => Some(Cut {
                alteration,
                size,
                sha256: Sha256::new(),
                left: size,
                passes: passes.saturating_sub(1),
                last: None,
            }),
            None => {
                self.alterations.note(channel, delivery_tag, alteration);
                None
            }
        };
        let new_size = passes.unwrap_or(size).to_be_bytes();
        write_frame(CONTENT_HEADER, channel, &[&fixed[..BODY_SIZE], &new_size, properties], out);
    }

    fn begin_cut_frame(&mut self, head: &Head, out: &mut Vec<u8>) {
        let to_pass = self.channel(head.channel).cut.as_ref().map_or(0, |cut| cut.passes);
        let passes = usize::try_from(to_pass).map_or(head.size, |to_pass| to_pass.min(head.size));
        if passes > 0 {
            write_head(CONTENT_BODY, head.channel, passes, out);
        }
        self.state = State::Cutting { channel: head.channel, left: head.size, passes };
    }

    fn cut_body(&mut self, id: u16, left: usize, passes: usize, bytes: &[u8], out: &mut Vec<u8>) -> usize {
        let channel = self.channels.entry(id).or_default();
        let Some(cut) = &mut channel.cut else {
            self.state = State::Dropping(left + 1);
            return self.pass(bytes, out);
        };
        if left > 0 {
            let payload = &bytes[..left.min(bytes.len())];
            cut.sha256.update(payload);
            cut.left = cut.left.saturating_sub(payload.len() as u64);
            let (passed, dropped) = payload.split_at(passes.min(payload.len()));
            if !passed.is_empty() {
                out.extend_from_slice(passed);
                cut.passes -= passed.len() as u64;
                if passed.len() == passes {
                    out.push(FRAME_END);
                }
            }
            if cut.last.is_none() {
                cut.last = dropped.first().copied();
            }
            self.state =
                State::Cutting { channel: id, left: left - payload.len(), passes: passes - passed.len() };
            return payload.len();
        }
        // The end of the frame, and of the body where no more of it is to come.
        self.state = State::BetweenFrames;
        if let Some(Cut { mut alteration, size, sha256, last, .. }) = channel.cut.take_if(|cut| cut.left == 0)
        {
            alteration.whole = Some(Whole { size, sha256: sha256.finalize().into() });
            self.alterations.note(id, channel.delivery_tag, alteration);
            write_frame(CONTENT_BODY, id, &[&[last.unwrap_or_default()]], out);
        }
        1
    }
}

impl State {
    fn in_frame(left: usize, state: fn(usize) -> Self) -> Self {
        if left == 0 { Self::BetweenFrames } else { state(left) }
    }
}

struct Head {
    kind: u8,
    channel: u16,
    size: usize,
}

impl Head {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor { bytes, at: 1 };
        let (channel, size) = (cursor.u16()?, cursor.u32()?);
        Some(Self { kind: bytes[0], channel, size: usize::try_from(size).ok()? })
    }
}

fn body_size(header: &[u8]) -> u64 {
    Cursor { bytes: header, at: BODY_SIZE }.u64().unwrap_or_default()
}

/// The payload, where one of `count` short strings from `at` is not UTF-8: each ends where it
/// ceases to be. Nothing of what we do depends on them.
fn made_readable(payload: &[u8], at: usize, count: usize) -> Option<Vec<u8>> {
    let mut cursor = Cursor { bytes: payload, at };
    let readable = |text: &[u8]| std::str::from_utf8(text).map_or_else(|error| error.valid_up_to(), str::len);
    let mut is_readable = true;
    for _ in 0..count {
        let text = cursor.short_string()?;
        is_readable &= readable(text) == text.len();
    }
    if is_readable {
        return None;
    }
    let (mut changed, rest) = (payload[..at].to_vec(), &payload[cursor.at..]);
    cursor.at = at;
    for _ in 0..count {
        let text = cursor.short_string()?;
        let text = &text[..readable(text)];
        changed.push(u8::try_from(text.len()).ok()?);
        changed.extend_from_slice(text);
    }
    changed.extend_from_slice(rest);
    Some(changed)
}

fn write_head(kind: u8, channel: u16, size: usize, out: &mut Vec<u8>) {
    out.push(kind);
    out.extend_from_slice(&channel.to_be_bytes());
    // No frame is written that was not read, or is larger than it was.
    out.extend_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes());
}

fn write_frame(kind: u8, channel: u16, payload: &[&[u8]], out: &mut Vec<u8>) {
    write_head(kind, channel, payload.iter().map(|part| part.len()).sum(), out);
    payload.iter().for_each(|part| out.extend_from_slice(part));
    out.push(FRAME_END);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const JOBS: Appetite =
        Appetite { properties: Some(Limits { bytes: 1024, values: 16 }), body_bytes: Some(10) };

    fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write_frame(kind, channel, &[payload], &mut out);
        out
    }

    fn method(channel: u16, class: u16, method: u16, arguments: &[u8]) -> Vec<u8> {
        frame(METHOD, channel, &[&class.to_be_bytes(), &method.to_be_bytes(), arguments].concat())
    }

    fn short_string(text: &[u8]) -> Vec<u8> {
        [&[u8::try_from(text.len()).expect("short")], text].concat()
    }

    fn deliver(channel: u16, tag: u64, exchange: &[u8], key: &[u8]) -> Vec<u8> {
        let parts = [&short_string(b"tag")[..], &tag.to_be_bytes(), &[0]];
        let names = [short_string(exchange), short_string(key)].concat();
        method(channel, BASIC, DELIVER, &[&parts.concat()[..], &names].concat())
    }

    fn header(channel: u16, size: u64, properties: &[u8]) -> Vec<u8> {
        let fixed = [&BASIC.to_be_bytes()[..], &[0, 0], &size.to_be_bytes()].concat();
        frame(CONTENT_HEADER, channel, &[&fixed[..], properties].concat())
    }

    fn message_id(id: &[u8]) -> Vec<u8> {
        [&(1_u16 << 7).to_be_bytes()[..], &short_string(id)].concat()
    }

    fn tune(frame_max: u32) -> Vec<u8> {
        method(0, CONNECTION, TUNE, &[&[0, 0][..], &frame_max.to_be_bytes(), &[0, 10]].concat())
    }

    /// What lapin gets, and what was done to the messages of channel 1.
    fn filtered(appetite: Appetite, pieces: &[&[u8]]) -> (Vec<u8>, Alterations) {
        let alterations = Alterations::default();
        let mut filter = Filter::new(appetite, 0, alterations.clone());
        let mut out = Vec::new();
        for piece in pieces {
            let before = out.len();
            filter.feed(piece, &mut out);
            if out.len() == before {
                frames(&out);
            }
        }
        (out, alterations)
    }

    /// The frames of a stream that ends with one.
    fn frames(mut stream: &[u8]) -> Vec<(u8, u16, Vec<u8>)> {
        let mut frames = Vec::new();
        while !stream.is_empty() {
            let head = Head::read(stream).expect("a head");
            let payload = stream[HEAD..HEAD + head.size].to_vec();
            assert_eq!(stream[HEAD + head.size], FRAME_END);
            frames.push((head.kind, head.channel, payload));
            stream = &stream[HEAD + head.size + 1..];
        }
        frames
    }

    fn sha256(bytes: &[u8]) -> [u8; 32] {
        Sha256::digest(bytes).into()
    }

    #[test]
    fn a_property_that_is_no_text_is_left_out_and_told_by_tag() {
        let good =
            [deliver(1, 7, b"kyc", b"key"), header(1, 2, &message_id(b"id")), frame(CONTENT_BODY, 1, b"{}")];
        let bad = [
            deliver(1, 8, b"kyc", b"key"),
            header(1, 2, &message_id(b"\xff\xfe")),
            frame(CONTENT_BODY, 1, b"{}"),
        ];
        let (out, alterations) = filtered(JOBS, &[&good.concat(), &bad.concat(), &good.concat()]);
        let made = [bad[0].clone(), header(1, 2, &[0, 0]), bad[2].clone()].concat();
        assert_eq!(out, [good.concat(), made, good.concat()].concat());
        assert_eq!(alterations.take(1, 7), None);
        let Alteration { faults, whole, .. } = alterations.take(1, 8).expect("it is altered");
        assert_eq!(faults[0].to_string(), "/properties/message_id: is not UTF-8 (2 bytes)");
        assert_eq!(whole, None);
        assert_eq!(alterations.take(1, 8), None, "it is told once");
    }

    #[test]
    fn names_that_are_no_text_are_cut_where_they_cease_to_be() {
        let (long, cut) = (["é".repeat(127).as_bytes(), b"\xc3"].concat(), "é".repeat(127));
        let close = |text: &[u8]| [&404_u16.to_be_bytes()[..], &short_string(text), &[0, 20, 0, 40]].concat();
        let got = |key: &[u8]| {
            let names = [short_string(b"kyc"), short_string(key)].concat();
            [&3_u64.to_be_bytes()[..], &[1], &names, &[0, 0, 0, 9]].concat()
        };
        let returned = |text: &[u8]| {
            [
                &312_u16.to_be_bytes()[..],
                &short_string(b"NO_ROUTE"),
                &short_string(text),
                &short_string(b"key"),
            ]
            .concat()
        };
        for (given, passed) in [
            (deliver(1, 1, b"kyc", b"a\xff"), deliver(1, 1, b"kyc", b"a")),
            (deliver(1, 1, b"\xfe", b"key"), deliver(1, 1, b"", b"key")),
            (method(1, BASIC, GET_OK, &got(b"\xff")), method(1, BASIC, GET_OK, &got(b""))),
            (method(1, BASIC, RETURN, &returned(b"k\xff")), method(1, BASIC, RETURN, &returned(b"k"))),
            (
                method(1, CHANNEL, CHANNEL_CLOSE, &close(&long)),
                method(1, CHANNEL, CHANNEL_CLOSE, &close(cut.as_bytes())),
            ),
            (
                method(0, CONNECTION, CONNECTION_CLOSE, &close(&long)),
                method(0, CONNECTION, CONNECTION_CLOSE, &close(cut.as_bytes())),
            ),
        ] {
            assert_eq!(filtered(JOBS, &[&given]).0, passed);
            assert_eq!(filtered(JOBS, &[&passed]).0, passed, "what is text stays");
        }
    }

    #[test]
    fn properties_larger_than_a_frame_are_left_out_once_the_frame_is_known() {
        let headers = [&[1, b'a', b'x'][..], &5_000_u32.to_be_bytes(), &[0; 5_000]].concat();
        let table = u32::try_from(headers.len()).expect("small").to_be_bytes();
        let large = [&[0x20, 0][..], &table, &headers].concat();
        let message = [deliver(1, 1, b"", b""), header(1, 0, &large)].concat();
        assert_eq!(
            filtered(Appetite::WHOLE, &[&tune(8_192), &message]).0,
            [tune(8_192), message.clone()].concat()
        );
        let (out, alterations) = filtered(Appetite::WHOLE, &[&tune(4_096), &message]);
        assert_eq!(out, [tune(4_096), deliver(1, 1, b"", b""), header(1, 0, &[0, 0])].concat());
        let faults = alterations.take(1, 1).expect("it is altered").faults;
        assert_eq!(faults[0].to_string(), "/properties/headers: make the properties larger than 4076 bytes");
    }

    #[test]
    fn properties_of_many_megabytes_are_not_kept() {
        let properties = vec![0; 3 * HELD_MAX];
        let message = [deliver(1, 1, b"", b""), header(1, 0, &properties)].concat();
        let (alterations, mut out) = (Alterations::default(), Vec::new());
        let mut filter = Filter::new(JOBS, 0, alterations.clone());
        for piece in message.chunks(1_000) {
            filter.feed(piece, &mut out);
            assert!(filter.held.len() < 2_000);
        }
        assert_eq!(out, [deliver(1, 1, b"", b""), header(1, 0, &[0, 0])].concat());
        assert!(alterations.take(1, 1).is_some());
    }

    #[test]
    fn a_body_is_cut_and_told_whole_before_lapin_has_it() {
        let (alterations, mut out) = (Alterations::default(), Vec::new());
        let mut filter = Filter::new(JOBS, 0, alterations.clone());
        let body = b"0123456789abcdef";
        filter.feed(&[deliver(1, 1, b"", b""), header(1, 16, &[0, 0])].concat(), &mut out);
        filter.feed(
            &[frame(CONTENT_BODY, 1, &body[..4]), frame(CONTENT_BODY, 1, &body[4..12])].concat(),
            &mut out,
        );
        assert_eq!(frames(&out)[1].2[BODY_SIZE..PROPERTIES], 10_u64.to_be_bytes());
        assert_eq!(frames(&out)[2..], [(3, 1, b"0123".to_vec()), (3, 1, b"45678".to_vec())]);
        assert_eq!(alterations.take(1, 1), None);
        filter.feed(&frame(CONTENT_BODY, 1, &body[12..]), &mut out);
        assert_eq!(frames(&out)[4], (3, 1, b"9".to_vec()));
        let whole = alterations.take(1, 1).expect("it is altered").whole;
        assert_eq!(whole, Some(Whole { size: 16, sha256: sha256(body) }));
        out.clear();
        let next =
            [deliver(1, 2, b"", b""), header(1, 10, &[0, 0]), frame(CONTENT_BODY, 1, &body[..10])].concat();
        filter.feed(&next, &mut out);
        assert_eq!(out, next, "what fits passes");
    }

    #[test]
    fn one_body_at_a_time_that_the_broker_cannot_dead_letter_passes_whole() {
        let value = [&b"A\0\0\0\x06"[..], b"S\0\0\0\x01a"].concat();
        let headers = [&short_string(b"x-death")[..], &value].concat();
        let size = u32::try_from(headers.len()).expect("small").to_be_bytes();
        let odd = [&[0x20, 0][..], &size, &headers].concat();
        let message = |tag, properties: &[u8], body: &[u8]| {
            let size = body.len() as u64;
            [deliver(1, tag, b"", b""), header(1, size, properties), frame(CONTENT_BODY, 1, body)].concat()
        };
        let (alterations, mut out) = (Alterations::default(), Vec::new());
        let mut filter = Filter::new(JOBS, 0, alterations.clone());
        let mut passes_whole = |tag, properties: &[u8], body: &[u8]| {
            let message = message(tag, properties, body);
            out.clear();
            filter.feed(&message, &mut out);
            out == message
        };
        let body = b"0123456789abcdef";
        assert!(passes_whole(1, &odd, b"0123456789") && passes_whole(2, &odd, b"0123456789"), "what fits");
        assert!(!passes_whole(3, &[0, 0], body), "what the broker dead-letters is cut");
        assert!(passes_whole(4, &odd, body));
        assert!(!passes_whole(5, &odd, body), "another is not done with");
        alterations.let_next_through();
        assert!(passes_whole(6, &odd, body));
        let told = [1, 2, 3, 4, 5, 6].map(|tag| {
            let altered = alterations.take(1, tag).expect("it is told of");
            (altered.breaks_dead_lettering, altered.whole.is_some())
        });
        let [kept, cut] = [(true, false), (true, true)];
        assert_eq!(told, [kept, kept, (false, true), kept, cut, kept]);
    }

    #[test]
    fn what_is_not_amqp_passes_as_it_is() {
        for stream in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"AMQP\0\0\x09\x01"] {
            assert_eq!(filtered(JOBS, &[&stream[..1], &stream[1..]]).0, stream);
        }
    }

    #[derive(Clone, Debug)]
    struct Message {
        properties: Vec<u8>,
        body: Vec<u8>,
        frames: usize,
    }

    fn messages(properties: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<Message>> {
        let body = prop::collection::vec(any::<u8>(), 0..40);
        let message = (properties, body, 1..6_usize).prop_map(|(properties, body, frames)| Message {
            properties,
            body,
            frames,
        });
        prop::collection::vec(message, 1..8)
    }

    /// Messages by turns on two channels, with heartbeats between their frames.
    fn stream(messages: &[Message]) -> Vec<u8> {
        let mut stream = tune(131_072);
        for (number, message) in messages.iter().enumerate() {
            let (channel, tag) = (number as u16 % 2 + 1, number as u64);
            stream.extend(deliver(channel, tag, b"kyc", b"document-update"));
            stream.extend(header(channel, message.body.len() as u64, &message.properties));
            for part in message.body.chunks(message.body.len().div_ceil(message.frames).max(1)) {
                stream.extend(frame(HEARTBEAT, 0, b""));
                stream.extend(frame(CONTENT_BODY, channel, part));
            }
        }
        stream
    }

    fn pieces<'a>(stream: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
        let (mut rest, mut pieces) = (stream, Vec::new());
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*size).min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        pieces
    }

    fn readable() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![Just(vec![0, 0]), "[a-zé]{0,20}".prop_map(|id| message_id(id.as_bytes()))]
    }

    proptest! {
        #[test]
        fn what_is_readable_passes_byte_for_byte(messages in messages(readable()), sizes in prop::collection::vec(1..50_usize, 1..20)) {
            let stream = stream(&messages);
            let (out, alterations) = filtered(Appetite::WHOLE, &pieces(&stream, &sizes));
            prop_assert_eq!(out, stream);
            prop_assert!(alterations.0.lock().altered.is_empty());
        }

        #[test]
        fn what_comes_in_pieces_passes_as_in_one(stream in prop::collection::vec(any::<u8>(), 0..300), sizes in prop::collection::vec(1..50_usize, 1..20)) {
            let mut whole = Vec::new();
            Filter::new(JOBS, 0, Alterations::default()).feed(&stream, &mut whole);
            let (mut out, mut filter) = (Vec::new(), Filter::new(JOBS, 0, Alterations::default()));
            pieces(&stream, &sizes).into_iter().for_each(|piece| filter.feed(piece, &mut out));
            prop_assert_eq!(out, whole);
        }

        #[test]
        fn every_message_arrives_with_what_may_be_taken_of_it(
            messages in messages(prop::collection::vec(any::<u8>(), 2..30)),
            sizes in prop::collection::vec(1..50_usize, 1..20),
        ) {
            let stream = stream(&messages);
            let (out, alterations) = filtered(JOBS, &pieces(&stream, &sizes));
            let mut bodies: HashMap<u16, Vec<Vec<u8>>> = HashMap::new();
            for (kind, channel, payload) in frames(&out) {
                match kind {
                    CONTENT_HEADER => {
                        let kept = Limits { bytes: 1024, values: 16 };
                        prop_assert_eq!(properties::check(&payload[PROPERTIES..], &kept), Ok(()));
                        bodies.entry(channel).or_default().push(Vec::new());
                    }
                    CONTENT_BODY => bodies.get_mut(&channel).expect("a header").last_mut().expect("one").extend(payload),
                    _ => {}
                }
            }
            let mut has_let_through = false;
            for (number, message) in messages.iter().enumerate() {
                let (channel, tag) = (number as u16 % 2 + 1, number as u64);
                let body = &bodies[&channel][number / 2];
                let may_pass = !has_let_through && !survives_dead_lettering(&message.properties);
                has_let_through |= may_pass && message.body.len() > 10;
                let passes = if may_pass { message.body.len() } else { message.body.len().min(10) };
                prop_assert_eq!(&body[..], &message.body[..passes]);
                let alteration = alterations.take(channel, tag).unwrap_or_default();
                let limits = Limits { bytes: 1024, values: 16 };
                let is_readable = properties::check(&message.properties, &limits).is_ok();
                prop_assert_eq!(alteration.faults.is_empty(), is_readable);
                let whole = Whole { size: message.body.len() as u64, sha256: sha256(&message.body) };
                prop_assert_eq!(alteration.whole, (message.body.len() > passes).then_some(whole));
                let breaks = !survives_dead_lettering(&message.properties);
                prop_assert_eq!(alteration.breaks_dead_lettering, breaks);
            }
        }
    }
}
