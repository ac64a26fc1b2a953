//! The headers that RabbitMQ writes and interprets where it dead-letters a message. Pure: knows
//! properties, and nothing of queues or channels.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};
use time::OffsetDateTime;

use super::asking::{arguments, text};
use super::wire::Cursor;

const CONTENT_TYPE: u16 = 1 << 15;
const CONTENT_ENCODING: u16 = 1 << 14;
const HEADERS: u16 = 1 << 13;

/// Whether RabbitMQ's dead-lettering survives a message with these properties, which begin with
/// their flags.
///
/// RabbitMQ up to 3.12 takes an `x-death` that is a list for its own (`rabbit_dead_letter.erl`): an
/// entry that is no table, or one whose `count` is no whole number, crashes the process that
/// dead-letters at least once, and after a few restarts that of every queue of the node. An
/// `x-death` that is no list it resets. Of `CC` and `BCC` it checks the first when a message is
/// published, drops the first `BCC`, and crashes here on a second that is no list.
pub(super) fn survives_dead_lettering(properties: &[u8]) -> bool {
    // What cannot be walked may be anything.
    walk(properties).unwrap_or(false)
}

fn walk(properties: &[u8]) -> Option<bool> {
    let mut cursor = Cursor { bytes: properties, at: 0 };
    let flags = cursor.u16()?;
    if flags & HEADERS == 0 {
        return Some(true);
    }
    for flag in [CONTENT_TYPE, CONTENT_ENCODING] {
        if flags & flag != 0 {
            cursor.short_string()?;
        }
    }
    let mut headers = Cursor { bytes: cursor.long_string()?, at: 0 };
    while !headers.is_at_end() {
        let (name, kind) = (headers.short_string()?, headers.u8()?);
        let value = headers.value(kind)?;
        let survives = match name {
            b"x-death" => kind != b'A' || deaths_survive(value)?,
            b"CC" | b"BCC" => kind == b'A',
            _ => true,
        };
        if !survives {
            return Some(false);
        }
    }
    Some(true)
}

fn deaths_survive(deaths: &[u8]) -> Option<bool> {
    let mut deaths = Cursor { bytes: deaths, at: 0 };
    while !deaths.is_at_end() {
        let kind = deaths.u8()?;
        let mut death = Cursor { bytes: deaths.value(kind)?, at: 0 };
        if kind != b'F' {
            return Some(false);
        }
        while !death.is_at_end() {
            let (name, kind) = (death.short_string()?, death.u8()?);
            death.value(kind)?;
            if name == b"count" && !b"bBsuIilL".contains(&kind) {
                return Some(false);
            }
        }
    }
    Some(true)
}

/// How a message died last.
#[derive(Debug, Default)]
pub(super) struct Death {
    /// `rejected` by a worker, or by the broker itself `delivery_limit`, `expired` or `maxlen`.
    pub cause: Option<String>,
    pub died_at: Option<OffsetDateTime>,
    /// The queue that it was in.
    pub queue: Option<String>,
}

impl Death {
    /// Reads the first entry of `x-death` (RabbitMQ, "Dead Letter Exchanges"). The broker puts its
    /// own there, whatever a publisher wrote; only in a letter that no queue dead-lettered is it
    /// the publisher's.
    pub fn newest(properties: &BasicProperties) -> Self {
        let deaths = properties.headers().as_ref().and_then(|headers| headers.inner().get("x-death"));
        let newest = match deaths {
            Some(AMQPValue::FieldArray(deaths)) => FieldArray::as_slice(deaths).first(),
            _ => None,
        };
        let Some(AMQPValue::FieldTable(newest)) = newest else { return Self::default() };
        let text = |key: &str| match newest.inner().get(key)? {
            AMQPValue::LongString(text) => Some(text.to_string()),
            _ => None,
        };
        let died_at = match newest.inner().get("time") {
            Some(AMQPValue::Timestamp(seconds)) => i64::try_from(*seconds).ok(),
            _ => None,
        };
        Self {
            cause: text("reason"),
            died_at: died_at.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok()),
            queue: text("queue"),
        }
    }
}

/// The properties of a message that is to be another one to the broker, and to go where it is
/// sent: without the broker's own headers, and without what a publisher may have written to have it
/// copied (`CC`, `BCC`), held back (`x-delay`, of the delayed-message plugin) or dropped
/// (`expiration`).
pub(super) fn made_new(properties: &BasicProperties) -> BasicProperties {
    let is_kept = |name: &str| {
        !["x-death", "x-first-death", "x-last-death"].iter().any(|brokers| name.starts_with(brokers))
            && !["x-delivery-count", "x-delay", "CC", "BCC"].contains(&name)
    };
    let mut headers = FieldTable::default();
    for (name, value) in properties.headers().iter().flat_map(FieldTable::inner) {
        if is_kept(name.as_str()) {
            headers.insert(name.clone(), value.clone());
        }
    }
    let new = BasicProperties::default().with_headers(headers).with_delivery_mode(2);
    let with =
        |new, value: &Option<ShortString>, set: fn(BasicProperties, ShortString) -> BasicProperties| {
            match value {
                Some(value) => set(new, value.clone()),
                None => new,
            }
        };
    let new = with(new, properties.content_type(), BasicProperties::with_content_type);
    let new = with(new, properties.content_encoding(), BasicProperties::with_content_encoding);
    let new = with(new, properties.correlation_id(), BasicProperties::with_correlation_id);
    let new = with(new, properties.reply_to(), BasicProperties::with_reply_to);
    let new = with(new, properties.message_id(), BasicProperties::with_message_id);
    let new = with(new, properties.kind(), BasicProperties::with_type);
    let new = with(new, properties.user_id(), BasicProperties::with_user_id);
    let new = with(new, properties.app_id(), BasicProperties::with_app_id);
    let new = with(new, properties.cluster_id(), BasicProperties::with_cluster_id);
    let new = match properties.priority() {
        Some(priority) => new.with_priority(*priority),
        None => new,
    };
    match properties.timestamp() {
        Some(timestamp) => new.with_timestamp(*timestamp),
        None => new,
    }
}

/// Writes down a reject as the broker does, for a message that the worker dead-letters itself.
pub(super) fn with_reject(
    properties: &BasicProperties,
    queue: &str,
    exchange: &ShortString,
    routing_key: &ShortString,
    rejected_at: OffsetDateTime,
) -> BasicProperties {
    let new = made_new(properties);
    let death = arguments([
        ("count", AMQPValue::LongLongInt(1)),
        ("reason", text("rejected")),
        ("queue", text(queue)),
        ("time", AMQPValue::Timestamp(u64::try_from(rejected_at.unix_timestamp()).unwrap_or_default())),
        ("exchange", text(exchange.as_str())),
        ("routing-keys", AMQPValue::FieldArray(vec![text(routing_key.as_str())].into())),
    ]);
    let mut headers = new.headers().clone().unwrap_or_default();
    headers.insert("x-death".into(), AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into()));
    new.with_headers(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short_string(text: &[u8]) -> Vec<u8> {
        [&[u8::try_from(text.len()).expect("short")], text].concat()
    }

    fn long(kind: u8, bytes: &[u8]) -> Vec<u8> {
        [&[kind], &u32::try_from(bytes.len()).expect("short").to_be_bytes()[..], bytes].concat()
    }

    fn entry(name: &str, value: &[u8]) -> Vec<u8> {
        [&short_string(name.as_bytes()), value].concat()
    }

    /// Properties with a content type before the headers, and a delivery mode behind them.
    fn with_headers(entries: &[Vec<u8>]) -> Vec<u8> {
        let headers = long(b'F', &entries.concat());
        [&[0xb0, 0][..], &short_string(b"application/json"), &headers[1..], &[2]].concat()
    }

    fn death(fields: &[Vec<u8>]) -> Vec<u8> {
        long(b'F', &[entry("queue", &long(b'S', b"q")), fields.concat()].concat())
    }

    fn count(kind: u8, bytes: &[u8]) -> Vec<u8> {
        death(&[entry("count", &[&[kind], bytes].concat())])
    }

    #[test]
    fn an_x_death_is_survived_as_rabbitmq_takes_it_apart() {
        let list = |items: &[Vec<u8>]| long(b'A', &items.concat());
        let brokers = [
            &short_string(b"count")[..],
            &[&b"l"[..], &1_i64.to_be_bytes()].concat(),
            &entry("time", &[b'T', 0, 0, 0, 0, 0, 0, 0, 9]),
            &entry("routing-keys", &list(&[long(b'S', b"k")])),
        ]
        .concat();
        for (value, survives) in [
            (list(&[]), true),
            (list(&[death(&[brokers])]), true),
            (list(&[death(&[])]), true),
            (list(&[count(b'I', &[0; 4]), count(b'l', &[0; 8]), count(b'b', &[0])]), true),
            // It is reset.
            (long(b'S', b"[{count,1}]"), true),
            (long(b'F', &entry("count", &long(b'S', b"1"))), true),
            (b"V".to_vec(), true),
            (list(&[long(b'S', b"a"), long(b'S', b"b")]), false),
            (list(&[long(b'S', b"a")]), false),
            (list(&[death(&[]), b"V".to_vec()]), false),
            (list(&[list(&[])]), false),
            (list(&[death(&[entry("count", &long(b'S', b"1"))])]), false),
            (list(&[count(b't', &[1])]), false),
            (list(&[count(b'd', &[0; 8])]), false),
            (list(&[count(b'V', b"")]), false),
            // The broker reads the first of two, and others the last.
            (list(&[death(&[entry("count", b"V"), entry("count", &[b'b', 1])])]), false),
        ] {
            let told = value.escape_ascii().to_string();
            assert_eq!(
                survives_dead_lettering(&with_headers(&[entry("x-death", &value)])),
                survives,
                "{told}"
            );
            let among = [entry("a", b"V"), entry("x-death", &value), entry("x-death", &list(&[]))];
            assert_eq!(survives_dead_lettering(&with_headers(&among)), survives, "{told}");
            let elsewhere = with_headers(&[
                entry("x-deaths", &value),
                entry("in", &long(b'F', &entry("x-death", &value))),
            ]);
            assert!(survives_dead_lettering(&elsewhere), "{told}");
        }
    }

    #[test]
    fn routing_headers_that_are_no_lists_are_not_survived() {
        let (list, string) = (long(b'A', &long(b'S', b"k")), long(b'S', b"k"));
        for name in ["CC", "BCC"] {
            assert!(survives_dead_lettering(&with_headers(&[entry(name, &list)])));
            assert!(!survives_dead_lettering(&with_headers(&[entry(name, &list), entry(name, &string)])));
        }
        assert!(survives_dead_lettering(&with_headers(&[entry("cc", &string)])));
    }

    #[test]
    fn properties_without_headers_are_survived_and_what_is_no_header_is_not() {
        assert!(survives_dead_lettering(&[0, 0]));
        assert!(survives_dead_lettering(&[0x90, 0, 1, b'a', 2]));
        assert!(survives_dead_lettering(&with_headers(&[])));
        for cut in [&[][..], &[0x20, 0], &[0x20, 0, 0, 0, 0, 9, 1], &with_headers(&[entry("a", b"?")])] {
            assert!(!survives_dead_lettering(cut));
        }
    }

    fn headers_of(properties: &BasicProperties) -> Vec<&str> {
        properties.headers().iter().flat_map(FieldTable::inner).map(|(name, _)| name.as_str()).collect()
    }

    fn with_everything() -> BasicProperties {
        let list = || AMQPValue::FieldArray(vec![text("else")].into());
        let headers = arguments([
            ("x-death", list()),
            ("x-first-death-queue", text("else")),
            ("x-last-death-queue", text("else")),
            ("x-delivery-count", AMQPValue::LongInt(3)),
            ("x-delay", AMQPValue::LongInt(1_000_000)),
            ("CC", list()),
            ("BCC", list()),
            ("traceparent", text("00-1")),
        ]);
        BasicProperties::default()
            .with_content_type("a".into())
            .with_content_encoding("b".into())
            .with_headers(headers)
            .with_delivery_mode(1)
            .with_priority(9)
            .with_correlation_id("c".into())
            .with_reply_to("d".into())
            .with_expiration("1".into())
            .with_message_id("e".into())
            .with_timestamp(7)
            .with_type("f".into())
            .with_user_id("g".into())
            .with_app_id("h".into())
            .with_cluster_id("i".into())
    }

    #[test]
    fn a_message_made_new_goes_nowhere_but_where_it_is_sent() {
        let new = made_new(&with_everything());
        assert_eq!(headers_of(&new), ["traceparent"]);
        assert_eq!(*new.expiration(), None);
        assert_eq!(*new.delivery_mode(), Some(2));
        let headers = new.headers().clone().expect("headers");
        let rest = with_everything().with_headers(headers).with_delivery_mode(2);
        assert_eq!(new.with_expiration("1".into()), rest, "all else is as it was");
    }

    #[test]
    fn a_reject_is_written_down_as_the_broker_does() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).expect("a time");
        let letter = with_reject(&with_everything(), "jobs", &"kyc".into(), &"key".into(), now);
        assert_eq!(headers_of(&letter), ["traceparent", "x-death"]);
        let Death { cause, died_at, queue } = Death::newest(&letter);
        assert_eq!(
            (cause.as_deref(), died_at, queue.as_deref()),
            (Some("rejected"), Some(now), Some("jobs"))
        );
    }

    #[test]
    fn an_x_death_of_any_other_shape_tells_nothing() {
        let table = |entries| AMQPValue::FieldTable(entries);
        let odd =
            arguments([("reason", AMQPValue::LongInt(1)), ("queue", AMQPValue::Void), ("time", text("9"))]);
        for value in [
            text("rejected"),
            AMQPValue::FieldArray(vec![].into()),
            AMQPValue::FieldArray(vec![text("rejected")].into()),
            AMQPValue::FieldArray(vec![table(odd)].into()),
        ] {
            let properties = BasicProperties::default().with_headers(arguments([("x-death", value)]));
            let Death { cause, died_at, queue } = Death::newest(&properties);
            assert_eq!((cause, died_at, queue), (None, None, None));
        }
    }
}
