//! Takes the provider's webhooks from their queue, into which a gateway of the company's puts
//! them as they came. What they say is believed if the provider signed it, and never more
//! than a reading would be.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use crate::broker::{Broker, Delivery, Edge, SessionLiveness, Subscription};
use crate::context::{Context, Panicked, unless_it_panics};
use crate::domain::customer_event::{BODY_BYTES_MAX, CustomerEvent, Notification, Refusal, read_event};
use crate::domain::message::Message;
use crate::journal::EventNoted;

/// How many deliveries are held unacknowledged.
const PREFETCH: u16 = 64;

/// What an event came to. What is to be known of it is committed.
enum Received {
    Ack,
    DeadLetter,
}

/// The receiver of one worker's customer events.
pub struct CustomerEvents {
    context: Arc<Context>,
    age_max: Duration,
    /// Events that are no business of ours.
    ignored: u64,
}

impl CustomerEvents {
    /// A receiver for events that were signed at most `age_max` before they were published.
    pub fn new(context: Arc<Context>, age_max: Duration) -> Self {
        Self { context, age_max, ignored: 0 }
    }

    /// Runs until the worker stops.
    pub async fn run(mut self, broker: Broker) {
        let subscription =
            Subscription { edge: Edge::CustomerEvents, prefetch: PREFETCH, body_bytes: BODY_BYTES_MAX + 1 };
        let (intake, stopping) = (self.context.intake.subscribe(), self.context.stopping.clone());
        let (sender, mut deliveries) = mpsc::channel(usize::from(PREFETCH));
        let session =
            broker.consume(subscription, sender, intake, SessionLiveness::default(), stopping.clone());
        let receiving = async move {
            while let Some(Some(delivery)) = stopping.run_until_cancelled(deliveries.recv()).await {
                // A lost session's deliveries come again with the next.
                if delivery.acker.is_live() {
                    self.handle(delivery).await;
                }
            }
        };
        tokio::join!(session, receiving);
    }

    async fn handle(&mut self, Delivery { message, acker }: Delivery) {
        let received_at = OffsetDateTime::now_utc();
        let received = match unless_it_panics(self.receive(&message, received_at)).await {
            Ok(received) => received,
            Err(Panicked) => {
                error!("the worker failed on a customer event and dead-letters it; this is a bug, report it");
                let context = &self.context;
                let record = || context.journal.record_worker_failed(&message, received_at);
                context.persist(record).await.map(|()| Received::DeadLetter)
            }
        };
        match received {
            Some(Received::Ack) => acker.ack(),
            Some(Received::DeadLetter) => acker.reject(),
            // The worker stops: the delivery goes back to its queue.
            None => {}
        }
    }

    /// Takes an event in.
    ///
    /// 1. Read it, and check who says it and when.
    /// 2. What is not believed gets its row and is dead-lettered whole.
    /// 3. What is not about a customer is counted, and that is all.
    /// 4. Write down what it says, with what it ends or makes due: one commit.
    /// 5. Only then is the delivery acked.
    ///
    /// `None` when the worker stopped first.
    async fn receive(&mut self, message: &Message, received_at: OffsetDateTime) -> Option<Received> {
        match read_event(message, &self.context.provider.signer(), self.age_max) {
            Ok(Notification::Customer(event)) => self.record(&event).await,
            Ok(Notification::Other(kind)) => {
                self.ignored += 1;
                info!(kind, ignored = self.ignored, "a customer event is ignored: it is about no customer");
                Some(Received::Ack)
            }
            Err(refusal) => self.refuse(message, received_at, &refusal).await,
        }
    }

    async fn record(&mut self, event: &CustomerEvent) -> Option<Received> {
        let CustomerEvent { customer_id, status, .. } = event;
        let journal = &self.context.journal;
        match self.context.persist(|| journal.record_customer_event(event)).await? {
            EventNoted::Ended(job) => {
                info!(job_id = %job.id, trace_id = job.trace_id().map(display), %customer_id, status, "a customer event ended the verification");
            }
            EventNoted::Stored(job) => {
                info!(job_id = %job.id, trace_id = job.trace_id().map(display), %customer_id, status, "a customer event is stored; a read will confirm it");
            }
            EventNoted::Known => debug!(%customer_id, status, "the customer event is known already"),
            EventNoted::UnknownCustomer => {
                self.ignored += 1;
                info!(%customer_id, ignored = self.ignored, "a customer event is ignored: no job is this customer's");
            }
        }
        Some(Received::Ack)
    }

    async fn refuse(
        &self,
        message: &Message,
        received_at: OffsetDateTime,
        refusal: &Refusal,
    ) -> Option<Received> {
        let reason_code = refusal.code();
        warn!(reason_code, reason = %refusal, "a customer event is not believed; the worker dead-letters it");
        let journal = &self.context.journal;
        self.context.persist(|| journal.record_refused_event(message, received_at, refusal)).await?;
        Some(Received::DeadLetter)
    }
}
