//! One delivery: its message, and what acks it.

use lapin::types::{AMQPValue, FieldTable, ShortString};
use tokio::sync::mpsc;
use tracing::{debug, error};

use super::acks::Disposition;
use super::filter::Alteration;
use super::topology::DELIVERY_LIMIT;
use crate::domain::message::Message;

/// A message with what acks it.
pub struct Delivery {
    pub message: Message,
    pub acker: Acker,
}

/// Acks or rejects one delivery. If its session is gone, the broker hands the message over again,
/// and the row that it then meets makes that harmless.
pub struct Acker {
    pub(super) tag: u64,
    pub(super) dispositions: mpsc::UnboundedSender<(u64, Disposition)>,
}

impl Acker {
    /// Whether the session that the delivery came from still stands, so that an ack counts.
    pub fn is_live(&self) -> bool {
        !self.dispositions.is_closed()
    }

    /// Acks the delivery: its row is committed.
    pub fn ack(self) {
        self.dispose(Disposition::Ack);
    }

    /// Has the delivery dead-lettered: its row says why.
    pub fn reject(self) {
        self.dispose(Disposition::Reject);
    }

    fn dispose(self, disposition: Disposition) {
        if self.dispositions.send((self.tag, disposition)).is_err() {
            debug!("the session ended before this delivery was acked; the broker delivers it again");
        }
    }
}

/// Takes a delivery's message, with what was done to it on its way.
pub(super) fn message(delivery: lapin::message::Delivery, alteration: Alteration) -> Message {
    let Alteration { faults: unreadable, whole, .. } = alteration;
    let properties = &delivery.properties;
    let text = |value: &Option<ShortString>| value.as_ref().map(ToString::to_string);
    let headers = properties.headers().iter().flat_map(FieldTable::inner);
    Message {
        message_id: text(properties.message_id()),
        correlation_id: text(properties.correlation_id()),
        timestamp: *properties.timestamp(),
        headers: headers.filter_map(|(name, value)| Some((name.to_string(), header_text(value)?))).collect(),
        is_redelivered: delivery.redelivered,
        body: delivery.data,
        whole,
        unreadable,
    }
}

/// A header that is text, given as text or as bytes, or a number.
fn header_text(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => Some(text.to_string()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        // Libraries for languages without text of their own send their strings so.
        AMQPValue::ByteArray(bytes) => String::from_utf8(bytes.as_slice().to_vec()).ok(),
        AMQPValue::LongLongInt(number) => Some(number.to_string()),
        AMQPValue::LongInt(number) => Some(number.to_string()),
        AMQPValue::LongUInt(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Logs an error where the broker is about to dead-letter the message by itself.
pub(super) fn log_near_limit(message: &Message) {
    let count = || message.header("x-delivery-count")?.parse::<i32>().ok();
    if message.is_redelivered
        && let Some(count) = count().filter(|count| *count >= DELIVERY_LIMIT / 2)
    {
        error!(
            message_id = message.message_id,
            count,
            limit = DELIVERY_LIMIT,
            "the broker has delivered this message many times; does it end the worker? over the limit the broker dead-letters it by itself, without a row"
        );
    }
}
