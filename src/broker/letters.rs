//! Dead letters that the worker publishes itself, because the broker's own dead-lettering would not
//! survive their headers (`x_death.rs`). A delivery is acked once the broker has confirmed its
//! letter; until then it stays unacked, and comes again where the session ends.

use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::mem;

use lapin::BasicProperties;
use lapin::message::Delivery;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::time::{Duration, sleep};
use tracing::{debug, error, warn};

use super::acks::Disposition;
use super::connection::Broker;
use super::filter::{Alteration, Alterations};
use super::publisher::{Publisher, is_refused};
use super::x_death::with_reject;
use crate::domain::message::Whole;

/// From a letter that was not taken to its next try.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// A delivery's tag, and what becomes of it.
pub(super) type Disposed = (u64, Disposition);

/// A message that becomes a dead letter if it is rejected.
pub(super) struct Letter {
    properties: BasicProperties,
    body: Vec<u8>,
}

/// The deliveries of a session that the broker may not dead-letter.
pub(super) struct Letters {
    /// By their tags, until they are disposed of.
    kept: HashMap<u64, Letter>,
    /// The one whose body is larger than a job's may be. There is one at a time, or publishers
    /// would say how much memory a worker takes.
    large: Option<u64>,
    /// Those whose bodies were cut meanwhile. Each goes back to its queue when `large` is done, and
    /// comes whole then.
    put_off: VecDeque<u64>,
    rejected: mpsc::UnboundedSender<(u64, Letter)>,
}

impl Letters {
    /// The letters of a session, and those of them that are to be published.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<(u64, Letter)>) {
        let (rejected, to_publish) = mpsc::unbounded_channel();
        (Self { kept: HashMap::new(), large: None, put_off: VecDeque::new(), rejected }, to_publish)
    }

    /// Keeps a delivery whole, and cuts its body to what a session takes of any.
    pub fn keep(
        &mut self,
        queue: &str,
        body_bytes: usize,
        delivery: &mut Delivery,
        alteration: &mut Alteration,
    ) {
        let body = if delivery.data.len() > body_bytes {
            let (size, sha256) = (delivery.data.len() as u64, Sha256::digest(&delivery.data).into());
            alteration.whole = Some(Whole { size, sha256 });
            self.large = Some(delivery.delivery_tag);
            let cut = delivery.data[..body_bytes].to_vec();
            mem::replace(&mut delivery.data, cut)
        } else {
            delivery.data.clone()
        };
        let Delivery { properties, exchange, routing_key, .. } = &delivery;
        let properties = with_reject(properties, queue, exchange, routing_key, OffsetDateTime::now_utc());
        self.kept.insert(delivery.delivery_tag, Letter { properties, body });
    }

    /// Puts off a delivery of which not all is here. Returns it where it may come again at once.
    pub fn put_off(&mut self, tag: u64) -> Option<Disposed> {
        if self.large.is_none() {
            return Some((tag, Disposition::Return));
        }
        self.put_off.push_back(tag);
        None
    }

    /// Takes the rejects of its deliveries out of what was disposed of, to be published; and adds
    /// what may come again now. Returns whether it took any.
    pub fn divert(&mut self, disposed: &mut Vec<Disposed>, alterations: &Alterations) -> bool {
        let all = disposed.len();
        if !self.kept.is_empty() {
            disposed.retain(|(tag, disposition)| match (self.kept.remove(tag), disposition) {
                (Some(letter), Disposition::Reject) => {
                    if self.rejected.send((*tag, letter)).is_err() {
                        debug!(
                            "the session ended before this letter was published; the broker delivers it again"
                        );
                    }
                    false
                }
                _ => true,
            });
        }
        let has_diverted = disposed.len() < all;
        if self.large.is_some_and(|large| disposed.iter().any(|(tag, _)| *tag == large)) {
            self.large = None;
            alterations.let_next_through();
            // First: what is acked makes room for another delivery.
            disposed.splice(..0, self.put_off.pop_front().map(|tag| (tag, Disposition::Return)));
        }
        has_diverted
    }
}

/// Publishes letters, one after the other, each until the broker has confirmed it. Never ends. The
/// session that acks them may end before.
pub(super) async fn publish(
    broker: &Broker,
    mut letters: mpsc::UnboundedReceiver<(u64, Letter)>,
    dispositions: mpsc::WeakUnboundedSender<Disposed>,
) {
    let mut publisher = None;
    while let Some((tag, letter)) = letters.recv().await {
        let mut logged = None;
        while let Err(error) = publish_one(broker, &mut publisher, &letter).await {
            let (text, is_refused) = (format!("{error:#}"), is_refused(&error));
            if logged >= Some(is_refused) {
                debug!(error = text, "a dead letter is still not published");
            } else if is_refused {
                error!(
                    error = text,
                    "a dead letter is refused, and its delivery stays unacked until a person has fixed this; may this user write DEAD_LETTER_EXCHANGE? see docs/deployment.md, \"Least privilege\""
                );
            } else {
                warn!(
                    error = text,
                    "a dead letter is not published yet, and its delivery stays unacked; the worker tries again"
                );
            }
            logged = logged.max(Some(is_refused));
            // What it still holds must not be sent beside the next try.
            close(&mut publisher).await;
            sleep(RETRY_DELAY).await;
        }
        if let Some(dispositions) = dispositions.upgrade()
            && dispositions.send((tag, Disposition::Ack)).is_err()
        {
            debug!("the session ended before this delivery was acked; the broker delivers it again");
        }
        if letters.is_empty() {
            close(&mut publisher).await;
        }
    }
    pending().await
}

async fn publish_one(
    broker: &Broker,
    publisher: &mut Option<Publisher>,
    Letter { properties, body }: &Letter,
) -> anyhow::Result<()> {
    let publisher = match publisher {
        Some(publisher) => publisher,
        None => publisher.insert(Publisher::open_for_letters(broker).await?),
    };
    let (exchange, key) = (&broker.settings.dead_letter_exchange, &broker.settings.dead_letter_queue);
    publisher.publish_again(exchange, key, properties.clone(), body).await?;
    Ok(())
}

async fn close(publisher: &mut Option<Publisher>) {
    if let Some(publisher) = publisher.take() {
        publisher.close().await;
    }
}

#[cfg(test)]
mod tests {
    use lapin::protocol::AMQPErrorKind;

    use super::super::publisher::NotTaken;
    use super::*;

    const BODY_BYTES: usize = 10;

    fn delivery(tag: u64, body: &[u8]) -> Delivery {
        let mut delivery = Delivery::mock(tag, "kyc".into(), "key".into(), false, body.to_vec());
        delivery.properties = BasicProperties::default().with_message_id("m".into());
        delivery
    }

    /// Keeps a delivery, and returns what of its body goes on, and what is told of the whole.
    fn keep(letters: &mut Letters, tag: u64, body: &[u8]) -> (Vec<u8>, Option<u64>) {
        let (mut delivery, mut alteration) = (delivery(tag, body), Alteration::default());
        letters.keep("jobs", BODY_BYTES, &mut delivery, &mut alteration);
        (delivery.data, alteration.whole.map(|whole| whole.size))
    }

    fn divert(letters: &mut Letters, mut disposed: Vec<Disposed>) -> (bool, Vec<Disposed>) {
        let has_diverted = letters.divert(&mut disposed, &Alterations::default());
        (has_diverted, disposed)
    }

    #[test]
    fn a_reject_is_published_and_everything_else_passes() {
        use Disposition::{Ack, Reject};
        let (mut letters, mut rejected) = Letters::new();
        assert_eq!(keep(&mut letters, 1, b"no job"), (b"no job".to_vec(), None));
        keep(&mut letters, 2, b"a job");
        let (has_diverted, left) = divert(&mut letters, vec![(1, Reject), (2, Ack), (3, Reject), (4, Ack)]);
        assert_eq!((has_diverted, left), (true, vec![(2, Ack), (3, Reject), (4, Ack)]));
        let (tag, letter) = rejected.try_recv().expect("a letter");
        assert_eq!((tag, &letter.body[..]), (1, &b"no job"[..]));
        assert!(rejected.try_recv().is_err() && letters.kept.is_empty());
        assert_eq!(divert(&mut letters, vec![(1, Ack)]), (false, vec![(1, Ack)]), "it is confirmed");
    }

    #[test]
    fn a_refusal_is_a_persons_and_a_lost_connection_is_not() {
        use lapin::protocol::{AMQPError, AMQPHardError, AMQPSoftError};
        let said = |kind: AMQPErrorKind| {
            let error =
                lapin::Error::from(lapin::ErrorKind::ProtocolError(AMQPError::new(kind, "why".into())));
            anyhow::Error::new(error).context("AMQP_URL: cannot open a channel to publish on")
        };
        let no_right = || said(AMQPSoftError::ACCESSREFUSED.into());
        let stops = || said(AMQPHardError::CONNECTIONFORCED.into());
        assert!(is_refused(&no_right()) && is_refused(&NotTaken::from(no_right()).into()));
        assert!(is_refused(&NotTaken::Refused("no queue is bound".into()).into()));
        assert!(!is_refused(&NotTaken::Nacked("exchange kyc.dlx".into()).into()));
        assert!(!is_refused(&stops()) && !is_refused(&NotTaken::from(stops()).into()));
        assert!(!is_refused(&anyhow::anyhow!("no answer within 10s")));
    }

    /// One large body is held at a time; those put off come again one by one, before there is room.
    #[test]
    fn what_is_put_off_comes_again_when_the_large_one_is_done() {
        use Disposition::{Ack, Reject, Return};
        let (mut letters, _rejected) = Letters::new();
        assert_eq!(letters.put_off(1), Some((1, Return)), "nothing is waited for");
        let (cut, size) = keep(&mut letters, 2, b"no job at all");
        assert_eq!((&cut[..], size), (&b"no job at "[..], Some(13)));
        assert_eq!((letters.put_off(3), letters.put_off(4)), (None, None));
        assert_eq!(divert(&mut letters, vec![(2, Reject)]), (true, vec![]), "it is not done yet");
        assert_eq!(divert(&mut letters, vec![(5, Ack), (2, Ack)]).1, [(3, Return), (5, Ack), (2, Ack)]);
        assert_eq!(divert(&mut letters, vec![(6, Ack)]).1, [(6, Ack)]);
        keep(&mut letters, 7, b"a large valid job");
        assert_eq!(divert(&mut letters, vec![(7, Ack)]).1, [(4, Return), (7, Ack)]);
    }
}
