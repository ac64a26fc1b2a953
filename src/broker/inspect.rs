//! Inspects the broker for `check`: whether `run` could work there. Leaves everything as it is.

use futures_util::future::join_all;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, Queue};
use tokio::time::{Duration, timeout};
use uuid::Uuid;

use super::answer::{ANSWER_TIMEOUT, answer, close, protocol_error};
use super::asking::Asking;
use super::connection::Broker;
use super::declared::{Difference, LosesMessages, REMEDY, stream_loss};
use super::topology::{Edge, Part, dead_letter_arguments, work_arguments};
use crate::config::TopologyMode;
use crate::finding::Finding;

/// A broker that has an alarm does not answer a publisher. Others do at once.
const CONFIRM_TIME_MAX: Duration = Duration::from_secs(2);

/// How the broker refuses what it is asked for.
enum Refusal {
    NotFound,
    NotPermitted(String),
    DeclaredOtherwise(String),
    Other(String),
}

impl Broker {
    /// Inspects everything that a worker needs of the broker: whether each host lets us in, and the rest
    /// at the first that does.
    pub async fn inspect(&self) -> Vec<Finding> {
        let hosts: Vec<Self> = self.hosts().collect();
        let connected = join_all(hosts.iter().map(Self::connect)).await;
        let is_any = connected.iter().any(Result::is_ok);
        let (mut findings, mut connections) = (Vec::new(), Vec::new());
        for (host, connected) in hosts.iter().zip(connected) {
            let place = host.place(0);
            match connected {
                Ok(connection) => {
                    findings.push(Finding::ok(format!(
                        "{place} lets {} into vhost {}",
                        self.user(),
                        self.vhost()
                    )));
                    connections.push((place, connection));
                }
                Err(error) => {
                    let advice = host.connect_advice(&error);
                    let what = format!("AMQP_URL: cannot use {place}: {}", error.root_cause());
                    findings.push(match is_any {
                        true => {
                            Finding::note(what, format!("{advice}; until then the worker uses the others"))
                        }
                        false => Finding::wrong(what, advice),
                    });
                }
            }
        }
        let mut connections = connections.into_iter();
        let Some((place, connection)) = connections.next() else { return findings };
        for (_, other) in connections {
            close(&other).await;
        }
        let settings = &self.settings;
        let mut parts = vec![
            ("EXCHANGE", Part::Exchange(&settings.exchange)),
            ("DEAD_LETTER_EXCHANGE", Part::Exchange(&settings.dead_letter_exchange)),
            ("DEAD_LETTER_QUEUE", Part::Queue(&settings.dead_letter_queue, dead_letter_arguments(settings))),
        ];
        let events = settings.customer_events.then_some(Edge::CustomerEvents);
        for edge in [Edge::Jobs].into_iter().chain(events) {
            let (queue, _) = edge.queue(settings);
            parts.push((edge.setting(), Part::Queue(queue, work_arguments(settings))));
        }
        if settings.outcome_events {
            parts.push(("EVENTS_EXCHANGE", Part::EventsExchange(&settings.events_exchange)));
        }
        let asking = async {
            for (setting, part) in parts {
                findings.extend(self.inspect_part(&connection, setting, part).await);
            }
            findings.extend(inspect_alarms(&connection).await);
        };
        // All of them together, so that a silent broker is told of once.
        if timeout(ANSWER_TIMEOUT, asking).await.is_err() {
            let what = format!("{place} did not answer all questions within {ANSWER_TIMEOUT:?}");
            let remedy = "look at its log and its load, and at what lies between; then check again";
            findings.push(Finding::wrong(what, remedy));
        }
        close(&connection).await;
        findings
    }

    async fn inspect_part(&self, connection: &Connection, setting: &str, part: Part<'_>) -> Vec<Finding> {
        let declares = self.settings.topology == TopologyMode::Declare;
        let name = part.to_string();
        let mut asking = match Asking::new(connection).await {
            Ok(asking) => asking,
            Err(error) => return vec![Refusal::from(error).finding(setting, &name, declares)],
        };
        let found = match asking.declare(&part, true).await.map_err(Refusal::from) {
            Ok(found) => found,
            Err(Refusal::NotFound) if declares => {
                let remedy = "`kyc-worker run` declares it";
                return vec![Finding::note(format!("{setting}: there is no {name} yet"), remedy)];
            }
            Err(refusal) => return vec![refusal.finding(setting, &name, declares)],
        };
        let mut findings = match &part {
            Part::Queue(queue, arguments) if !declares => {
                inspect_differences(&mut asking, setting, queue, arguments).await
            }
            // It is there: declaring it again as we would tells whether it is what we would declare.
            _ => match asking.declare(&part, false).await.map_err(Refusal::from) {
                Ok(_) => vec![Finding::ok(format!("{name} is declared as it should be"))],
                // An operator who declares it for us need not let us compare it.
                Err(Refusal::NotPermitted(_)) if !declares => vec![Finding::ok(format!("{name} is there"))],
                // Nothing that is bound to it as docs/consuming.md says would be handed anything.
                Err(Refusal::DeclaredOtherwise(said)) if matches!(part, Part::EventsExchange(_)) => {
                    vec![Finding::wrong(
                        format!("{setting}: {name} is declared otherwise: {said}"),
                        "delete it, and declare it as a durable topic exchange; upstream binds its queues anew then",
                    )]
                }
                Err(refusal) => vec![refusal.finding(setting, &name, declares)],
            },
        };
        match (&part, found) {
            (Part::Queue(queue, _), Some(found)) if *queue != self.settings.dead_letter_queue => {
                // A stream is told of twice to who may configure it.
                let reading = inspect_reading(&mut asking, setting, queue, &found).await;
                if findings.iter().all(|finding| finding.what != reading.what) {
                    findings.push(reading);
                }
            }
            (Part::Exchange(exchange), _) if *exchange == self.settings.dead_letter_exchange => {
                let what = "the worker publishes there what RabbitMQ's own dead-lettering would not survive";
                findings.extend(inspect_writing(connection, setting, exchange, what).await);
            }
            (Part::EventsExchange(exchange), _) => {
                let what = "the worker publishes there how jobs ended";
                findings.extend(inspect_writing(connection, setting, exchange, what).await);
            }
            _ => {}
        }
        findings
    }
}

/// What of a queue that an operator declared differs from what the worker would, and what of that
/// loses messages.
async fn inspect_differences(
    asking: &mut Asking<'_>,
    setting: &str,
    queue: &str,
    arguments: &FieldTable,
) -> Vec<Finding> {
    match asking.differences(queue, arguments).await {
        Ok(differences) if differences.is_empty() => {
            vec![Finding::ok(format!("queue {queue} is declared as it should be"))]
        }
        Ok(differences) => {
            let finding = |difference: &Difference| match difference.loss(arguments) {
                Some(loss) => Finding::wrong(format!("{setting}: queue {queue} {loss}"), REMEDY),
                None => Finding::note(
                    format!(
                        "{setting}: queue {queue} is declared otherwise than TOPOLOGY=declare would: it has {difference}"
                    ),
                    "see docs/message.md for what the worker counts on",
                ),
            };
            differences.iter().map(finding).collect()
        }
        Err(error) => match Refusal::from(error) {
            Refusal::NotPermitted(_) => vec![Finding::note(
                format!("{setting}: queue {queue} is there; this user may not ask how it is declared"),
                "compare it with docs/message.md, \"Queues\": rabbitmqctl list_queues name type durable auto_delete arguments",
            )],
            refusal => vec![refusal.finding(setting, &format!("queue {queue}"), false)],
        },
    }
}

/// Whether we may consume from a queue, and what waits there.
async fn inspect_reading(asking: &mut Asking<'_>, setting: &str, queue: &str, found: &Queue) -> Finding {
    let refused = asking.refused_consumer(queue).await;
    if let Some(LosesMessages(loss)) = stream_loss(&refused) {
        return Finding::wrong(format!("{setting}: queue {queue} {loss}"), REMEDY);
    }
    if let Refusal::NotPermitted(said) = Refusal::from(refused) {
        return Finding::wrong(
            format!("{setting}: this user may not consume from {queue}: {said}"),
            "give it the right: rabbitmqctl set_permissions, as in docs/deployment.md, \"Least privilege\"",
        );
    }
    let (ready, consumers) = (found.message_count(), found.consumer_count());
    Finding::ok(format!("queue {queue}: messages waiting {ready}, workers consuming {consumers}"))
}

/// Whether we may publish to an exchange, which `what` is for: asked with a message that the broker must
/// refuse for its `expiration`, after it has checked the permission.
async fn inspect_writing(
    connection: &Connection,
    setting: &str,
    exchange: &str,
    what: &str,
) -> Option<Finding> {
    let asked = async {
        let channel = answer(connection.create_channel()).await?;
        answer(channel.confirm_select(ConfirmSelectOptions::default())).await?;
        let (options, nowhere) = (BasicPublishOptions::default(), Uuid::new_v4().to_string());
        let impossible = BasicProperties::default().with_expiration("never".into());
        let publishing = channel.basic_publish(exchange.into(), nowhere.into(), options, b"", impossible);
        answer(answer(publishing).await?).await?;
        anyhow::Ok(())
    };
    match asked.await.err().map(Refusal::from) {
        Some(Refusal::NotPermitted(said)) => Some(Finding::wrong(
            format!("{setting}: this user may not publish to {exchange}: {said}"),
            format!(
                "give it the right: rabbitmqctl set_permissions, as in docs/deployment.md, \"Least privilege\"; {what}"
            ),
        )),
        _ => None,
    }
}

/// Whether the broker has an alarm: it stops reading from whoever has published then, so
/// that a second message gets no answer. Both are for a queue that does not exist.
async fn inspect_alarms(connection: &Connection) -> Option<Finding> {
    let nowhere = Uuid::new_v4().to_string();
    let published = timeout(CONFIRM_TIME_MAX, async {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        for _ in 0..2 {
            let properties = BasicProperties::default();
            channel
                .basic_publish("".into(), nowhere.as_str().into(), options, b"", properties)
                .await?
                .await?;
        }
        Ok::<_, lapin::Error>(())
    });
    match published.await {
        Ok(Ok(())) => Some(Finding::ok("the broker has no alarm")),
        // A user without the right to publish there learns nothing.
        Ok(Err(_)) => None,
        Err(_elapsed) => Some(Finding::wrong(
            "the broker does not take messages: it has an alarm for memory or disk",
            "see `rabbitmq-diagnostics alarms`, and make room; what waits in queues is still handed over",
        )),
    }
}

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        let Some(refusal) = protocol_error(&error) else { return Self::Other(error.to_string()) };
        let said = refusal.get_message().to_string();
        match refusal.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => Self::NotFound,
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => Self::NotPermitted(said),
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => Self::DeclaredOtherwise(said),
            _ => Self::Other(said),
        }
    }
}

impl Refusal {
    fn finding(self, setting: &str, name: &str, declares: bool) -> Finding {
        match self {
            Self::NotFound => Finding::wrong(
                format!("{setting}: there is no {name}"),
                "declare it at the broker, or set TOPOLOGY=declare",
            ),
            Self::NotPermitted(said) => Finding::wrong(
                format!("{setting}: this user may not declare {name}: {said}"),
                "give it the right: rabbitmqctl set_permissions, as in docs/deployment.md, \"Least privilege\"; or declare it at the broker and set TOPOLOGY=verify",
            ),
            Self::DeclaredOtherwise(said) if declares => Finding::wrong(
                format!("{setting}: {name} is declared otherwise: {said}"),
                "delete it once it is empty, so that `kyc-worker run` declares it anew, or set TOPOLOGY=verify to take it as it is",
            ),
            Self::DeclaredOtherwise(said) => Finding::note(
                format!("{setting}: {name} is declared otherwise than TOPOLOGY=declare would: {said}"),
                "see docs/message.md for what the worker counts on",
            ),
            Self::Other(said) => {
                Finding::wrong(format!("{setting}: cannot use {name}: {said}"), "look at the broker's log")
            }
        }
    }
}
