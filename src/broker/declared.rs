//! How a queue is declared that somebody else declared, and whether it loses messages so. AMQP tells
//! that to a user who may configure the queue: asked to declare it otherwise, the broker names one
//! argument that differs. A policy it never tells of.

use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPType, AMQPValue, FieldTable};

use super::answer::{answer, protocol_error, refusal};
use super::asking::{Asking, arguments, text};

/// The broker compares it last, and declares no queue with this value of it: so nothing that is
/// asked here declares one.
const IMPOSSIBLE: (&str, &str) = ("x-queue-leader-locator", "none");

const DEAD_LETTER_EXCHANGE: &str = "x-dead-letter-exchange";

const DELIVERY_LIMIT: &str = "x-delivery-limit";

/// Nobody looks at a dead letter so often.
const DELIVERIES_MIN: u32 = 1_000;

/// What to do about a queue that loses messages.
pub(super) const REMEDY: &str = "declare it anew as in docs/message.md, \"Queues\", once it is empty, or let TOPOLOGY=declare do that; its arguments count, for a policy cannot be seen from here";

/// A queue loses messages as it is declared.
#[derive(Debug, thiserror::Error)]
#[error("it {0}; {REMEDY}")]
pub(super) struct LosesMessages(pub String);

/// What of a queue differs from what was asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Difference {
    argument: String,
    current: Current,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Current {
    None,
    Value(String),
    /// The broker's text was cut before it.
    Untold,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.current {
            Current::None => write!(f, "no {}", self.argument),
            Current::Value(value) => write!(f, "{}={value}", self.argument),
            Current::Untold => write!(f, "another {}", self.argument),
        }
    }
}

impl Difference {
    /// Reads the broker's refusal (`rabbit_misc:equivalence_fail`), cut after 255 bytes.
    fn read(refusal: &str) -> Option<Self> {
        let (_, told) = refusal.split_once("inequivalent arg '")?;
        let (argument, told) = told.split_once('\'')?;
        let current = match told.rsplit_once(" but current is ") {
            Some((_, "none")) => Current::None,
            Some((_, value)) => {
                let value = value.strip_prefix("the value ").unwrap_or(value);
                let value = value.rsplit_once(" of type ").map_or(value, |(value, _type)| value);
                let value = value.strip_prefix('\'').and_then(|value| value.strip_suffix('\''));
                value.map_or(Current::Untold, |value| Current::Value(value.to_owned()))
            }
            None => Current::Untold,
        };
        Some(Self { argument: argument.to_owned(), current })
    }

    /// Why a queue that differs so from what was asked for loses messages, where it does.
    pub fn loss(&self, asked: &FieldTable) -> Option<String> {
        let why = match (self.argument.as_str(), &self.current) {
            // The queue of dead letters needs none.
            (DEAD_LETTER_EXCHANGE, _) if !asked.contains_key(DEAD_LETTER_EXCHANGE) => return None,
            (DEAD_LETTER_EXCHANGE, Current::None) => "what the worker rejects is lost",
            (DEAD_LETTER_EXCHANGE, _) => "what the worker rejects does not go to DEAD_LETTER_EXCHANGE",
            ("x-queue-type", Current::Value(kind)) if kind == "stream" => return Some(STREAM.to_owned()),
            ("x-expires", Current::Value(_) | Current::Untold) => {
                "it is deleted with what it holds while no worker consumes"
            }
            // The queue of jobs hands on what it drops.
            (DELIVERY_LIMIT, _) if asked.contains_key(DEAD_LETTER_EXCHANGE) => return None,
            (DELIVERY_LIMIT, Current::None) => {
                "RabbitMQ 4 drops a dead letter that was looked at twenty times"
            }
            (DELIVERY_LIMIT, Current::Value(limit))
                if limit.parse().is_ok_and(|limit: u32| limit < DELIVERIES_MIN) =>
            {
                "the broker drops a dead letter that was looked at more often"
            }
            ("durable", _) => return Some("is not durable: it goes with a restart of the broker".to_owned()),
            ("auto_delete", _) => {
                return Some("is auto-delete: it goes with its last consumer, and what it holds".to_owned());
            }
            _ => return None,
        };
        Some(format!("has {self}: {why}"))
    }
}

const STREAM: &str = "is a stream: what is acked stays, and what came before a worker is never read";

/// Adjusts what is asked for to what the queue has. `false` where that cannot be told.
fn adjust(asked: &mut FieldTable, options: &mut QueueDeclareOptions, difference: &Difference) -> bool {
    let name = difference.argument.as_str();
    match name {
        "durable" => options.durable = !options.durable,
        "auto_delete" => options.auto_delete = !options.auto_delete,
        _ => {
            let mut adjusted = asked.inner().clone();
            let kind = adjusted.remove(name).map(|value| value.get_type());
            match &difference.current {
                Current::None => {}
                Current::Untold => return false,
                Current::Value(value) => {
                    let value = match (value.parse(), value.as_str(), kind) {
                        (Ok(number), _, None | Some(AMQPType::LongInt | AMQPType::LongLongInt)) => {
                            AMQPValue::LongLongInt(number)
                        }
                        (_, "true" | "false", None) => AMQPValue::Boolean(value == "true"),
                        _ => text(value),
                    };
                    adjusted.insert(name.into(), value);
                }
            }
            *asked = adjusted.into();
        }
    }
    true
}

impl Asking<'_> {
    /// Everything in which a queue that is there differs from what would be declared, as far as the
    /// broker tells.
    ///
    /// # Errors
    /// When the broker does not tell, as to a user who may not configure the queue.
    pub async fn differences(&mut self, queue: &str, asked: &FieldTable) -> anyhow::Result<Vec<Difference>> {
        let (mut asked, mut options) = (asked.clone(), QueueDeclareOptions::durable());
        asked.insert(IMPOSSIBLE.0.into(), text(IMPOSSIBLE.1));
        let mut differences = Vec::<Difference>::new();
        loop {
            let channel = self.channel().await?;
            let declared = answer(channel.queue_declare(queue.into(), options, asked.clone())).await;
            // A classic queue has no such argument to compare.
            let Err(refused) = declared else { return Ok(differences) };
            let text = protocol_error(&refused).map(|refusal| refusal.get_message().to_string());
            let Some(difference) = text.as_deref().and_then(Difference::read) else { return Err(refused) };
            let is_known = differences.iter().any(|known| known.argument == difference.argument);
            if difference.argument == IMPOSSIBLE.0 || is_known {
                return Ok(differences);
            }
            let is_adjusted = adjust(&mut asked, &mut options, &difference);
            differences.push(difference);
            if !is_adjusted {
                return Ok(differences);
            }
        }
    }

    /// How the broker refuses a consumer that it must refuse for its arguments, after it has checked
    /// the permission to consume: nothing is handed over.
    pub async fn refused_consumer(&mut self, queue: &str) -> anyhow::Error {
        // A stream looks at the one, and every other queue at the other. A zero is no age for a stream
        // to begin at; what begins with no digit crashes the channel (`check_max_age`).
        let impossible = arguments([("x-stream-offset", text("0")), ("x-priority", text("none"))]);
        let channel = match self.channel().await {
            Ok(channel) => channel,
            Err(error) => return error,
        };
        let (tag, options) = ("kyc-worker-check".into(), BasicConsumeOptions::default());
        match answer(channel.basic_consume(queue.into(), tag, options, impossible)).await {
            Err(refused) => refused,
            Ok(_) => anyhow::anyhow!("the broker takes a consumer with impossible arguments"),
        }
    }

    /// Why a queue that is there loses messages, where this user may know.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    pub async fn loss(&mut self, queue: &str, asked: &FieldTable) -> anyhow::Result<Option<LosesMessages>> {
        let loss = match self.differences(queue, asked).await {
            Ok(differences) => differences.iter().find_map(|difference| difference.loss(asked)),
            Err(refused) if is_refused(&refused) => None,
            Err(error) => return Err(error),
        };
        if loss.is_some() {
            return Ok(loss.map(LosesMessages));
        }
        let refused = self.refused_consumer(queue).await;
        if refusal(&refused).is_none() {
            return Err(refused);
        }
        Ok(stream_loss(&refused))
    }
}

/// That a queue is a stream, as a refused consumer tells: to whoever may consume.
pub(super) fn stream_loss(refused_consumer: &anyhow::Error) -> Option<LosesMessages> {
    let said = protocol_error(refused_consumer)?.get_message().to_string();
    said.contains("invalid arg 'x-stream-offset'").then(|| LosesMessages(STREAM.to_owned()))
}

fn is_refused(error: &anyhow::Error) -> bool {
    refusal(error) == Some(&AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(told: &str) -> String {
        let text = format!("PRECONDITION_FAILED - {told}");
        Difference::read(&text).map_or_else(|| "nothing".to_owned(), |difference| difference.to_string())
    }

    #[test]
    fn a_refusal_names_an_argument_and_what_the_queue_has() {
        let of = "for queue 'q' in vhost '/'";
        for (told, read_as) in [
            (
                format!(
                    "inequivalent arg 'x-dead-letter-exchange' {of}: received the value 'kyc.dlx' of type 'longstr' but current is none"
                ),
                "no x-dead-letter-exchange",
            ),
            (
                format!(
                    "inequivalent arg 'x-dead-letter-exchange' {of}: received 'kyc.dlx' but current is 'else'"
                ),
                "x-dead-letter-exchange=else",
            ),
            (
                format!(
                    "inequivalent arg 'x-expires' {of}: received none but current is the value '1000' of type 'signedint'"
                ),
                "x-expires=1000",
            ),
            (
                format!("inequivalent arg 'durable' {of}: received 'true' but current is 'false'"),
                "durable=false",
            ),
            (format!("inequivalent arg 'x-overflow' {of}: received the va"), "another x-overflow"),
            (
                format!("inequivalent arg 'x-overflow' {of}: received 'a' but current is 'drop-h"),
                "another x-overflow",
            ),
            (format!("invalid arg 'x-queue-leader-locator' {of}: unsupported"), "nothing"),
            ("inequivalent arg 'cut".to_owned(), "nothing"),
        ] {
            assert_eq!(read(&told), read_as, "{told}");
        }
    }

    #[test]
    fn what_is_asked_for_is_adjusted_to_what_the_queue_has() {
        let mut asked = arguments([
            ("x-queue-type", text("quorum")),
            ("x-delivery-limit", AMQPValue::LongInt(20)),
            ("x-dead-letter-exchange", text("kyc.dlx")),
        ]);
        let mut options = QueueDeclareOptions::durable();
        let value = |value: &str| Current::Value(value.to_owned());
        for (argument, current, is_told) in [
            ("x-delivery-limit", value("5"), true),
            ("x-queue-type", value("classic"), true),
            ("x-expires", value("9"), true),
            ("x-single-active-consumer", value("true"), true),
            ("x-dead-letter-exchange", Current::None, true),
            ("durable", value("false"), true),
            ("auto_delete", value("true"), true),
            ("x-overflow", Current::Untold, false),
        ] {
            let difference = Difference { argument: argument.to_owned(), current };
            assert_eq!(adjust(&mut asked, &mut options, &difference), is_told, "{difference}");
        }
        let adjusted = arguments([
            ("x-queue-type", text("classic")),
            ("x-delivery-limit", AMQPValue::LongLongInt(5)),
            ("x-expires", AMQPValue::LongLongInt(9)),
            ("x-single-active-consumer", AMQPValue::Boolean(true)),
        ]);
        assert_eq!(asked, adjusted);
        assert!(!options.durable && options.auto_delete);
    }

    #[test]
    fn a_difference_that_loses_messages_says_how() {
        let asked = arguments([(DEAD_LETTER_EXCHANGE, text("kyc.dlx"))]);
        let difference = |argument: &str, current: Option<&str>| {
            let current = current.map_or(Current::None, |value| Current::Value(value.to_owned()));
            Difference { argument: argument.to_owned(), current }
        };
        let loss = |argument, current| difference(argument, current).loss(&asked);
        for (argument, current, how) in [
            (
                "x-dead-letter-exchange",
                None,
                "has no x-dead-letter-exchange: what the worker rejects is lost",
            ),
            (
                "x-dead-letter-exchange",
                Some("else"),
                "has x-dead-letter-exchange=else: what the worker rejects does",
            ),
            ("x-queue-type", Some("stream"), "is a stream"),
            ("x-expires", Some("1000"), "has x-expires=1000: it is deleted"),
            ("durable", Some("false"), "is not durable"),
            ("auto_delete", Some("true"), "is auto-delete"),
        ] {
            let told = loss(argument, current).unwrap_or_default();
            assert!(told.starts_with(how), "{told}");
        }
        for (argument, current) in [
            ("x-queue-type", Some("classic")),
            ("x-overflow", None),
            ("x-message-ttl", Some("1")),
            ("x-expires", None),
        ] {
            assert_eq!(loss(argument, current), None, "{argument}");
        }
        let of_letters = |argument, current| difference(argument, current).loss(&FieldTable::default());
        assert_eq!(of_letters(DEAD_LETTER_EXCHANGE, Some("else")), None);
        for (current, how) in [
            (None, Some("has no x-delivery-limit: RabbitMQ 4 drops a dead letter")),
            (Some("20"), Some("has x-delivery-limit=20: the broker drops a dead letter")),
            (Some("5000"), None),
        ] {
            let told = of_letters(DELIVERY_LIMIT, current);
            assert!(
                told.as_deref().map_or(how.is_none(), |told| how.is_some_and(|how| told.starts_with(how)))
            );
            assert_eq!(loss(DELIVERY_LIMIT, current), None, "what the queue of jobs drops is dead-lettered");
        }
    }
}
