//! Takes the provider's webhooks from their queue, into which a gateway of the company's puts
//! them as they came. What they say is believed if the provider signed it, and never more
//! than a look would be.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use crate::broker::{Broker, Delivery, Edge, Subscription};
use crate::control::liveness::SessionLoop;
use crate::domain::customer_event::{
    BODY_BYTES_MAX, CustomerEvent, Notice, Notification, Refusal, read_notice,
};
use crate::domain::job::Envelope;
use crate::domain::outcome::Disposition;
use crate::journal::{DeadLetter, EventNoted};
use crate::worker::{Panicked, Worker, unless_it_panics};

/// How many deliveries are held unacknowledged.
const PREFETCH: u16 = 64;

/// The receiver of one worker's customer events.
pub struct CustomerEvents {
    worker: Arc<Worker>,
    age_max: Duration,
    /// Events that are no business of ours.
    ignored: u64,
}

impl CustomerEvents {
    /// A receiver for events that were signed at most `age_max` before they were published.
    pub fn new(worker: Arc<Worker>, age_max: Duration) -> Self {
        Self { worker, age_max, ignored: 0 }
    }

    /// Runs until the worker stops.
    pub async fn run(mut self, broker: Broker) {
        let subscription =
            Subscription { edge: Edge::CustomerEvents, prefetch: PREFETCH, body_bytes: BODY_BYTES_MAX + 1 };
        let (intake, stopping) = (self.worker.intake.subscribe(), self.worker.stopping.clone());
        let (sender, mut deliveries) = mpsc::channel(usize::from(PREFETCH));
        let session = broker.consume(subscription, sender, intake, SessionLoop::default(), stopping.clone());
        let receiving = async move {
            while let Some(Some(delivery)) = stopping.run_until_cancelled(deliveries.recv()).await {
                // A lost session's deliveries come again with the next.
                if delivery.is_live() {
                    self.handle(delivery).await;
                }
            }
        };
        tokio::join!(session, receiving);
    }

    async fn handle(&mut self, delivery: Delivery) {
        let envelope = Envelope {
            body: &delivery.body,
            message_id: delivery.message_id.as_deref(),
            correlation_id: delivery.correlation_id.as_deref(),
            timestamp: delivery.timestamp,
            unreadable: &delivery.unreadable,
            whole: delivery.whole,
            timestamp_ms: None,
        };
        let letter = DeadLetter {
            envelope: &envelope,
            received_at: OffsetDateTime::now_utc(),
            is_redelivered: delivery.is_redelivered,
        };
        let received = match unless_it_panics(self.receive(&delivery, letter)).await {
            Ok(disposition) => disposition,
            Err(Panicked) => {
                error!("the worker failed on a customer event, dead-lettering it; this is a bug, report it");
                let worker = &self.worker;
                let recorded = worker.persist(|| worker.journal.record_worker_failed(letter)).await;
                recorded.map(|()| Disposition::DeadLetter)
            }
        };
        // Not disposed of, it goes back to the queue.
        if let Some(disposition) = received {
            delivery.dispose(disposition);
        }
    }

    /// Takes an event in.
    ///
    /// 1. Read it, and check who says it and when.
    /// 2. What is not believed gets its row and is dead-lettered whole.
    /// 3. What is not about a customer is counted, and that is all.
    /// 4. Write down what it says, with what it ends or makes due: one commit.
    /// 5. Only then is the broker told.
    ///
    /// `None` when the worker stopped first.
    async fn receive(&mut self, delivery: &Delivery, letter: DeadLetter<'_>) -> Option<Disposition> {
        let (timestamp, signature) = (delivery.header("X-TIMESTAMP"), delivery.header("X-SIGNATURE"));
        let notice = Notice {
            body: &delivery.body,
            timestamp: timestamp.as_deref(),
            signature: signature.as_deref(),
            published_at: delivery.timestamp,
            unreadable: &delivery.unreadable,
        };
        match read_notice(&notice, &self.worker.provider.signer(), self.age_max) {
            Ok(Notification::Customer(event)) => self.record(&event).await,
            Ok(Notification::Other(kind)) => {
                self.ignored += 1;
                info!(kind, ignored = self.ignored, "customer event ignored: it is about no customer");
                Some(Disposition::Ack)
            }
            Err(refusal) => self.refuse(letter, &refusal).await,
        }
    }

    async fn record(&mut self, event: &CustomerEvent) -> Option<Disposition> {
        let CustomerEvent { customer_id, status, .. } = event;
        let journal = &self.worker.journal;
        match self.worker.persist(|| journal.record_customer_event(event)).await? {
            EventNoted::Ended(job_id) => {
                info!(%job_id, %customer_id, status, "verification ended, says a customer event");
            }
            EventNoted::Stored(job_id) => {
                info!(%job_id, %customer_id, status, "customer event stored, a look will tell");
            }
            EventNoted::Known => debug!(%customer_id, status, "customer event is known already"),
            EventNoted::UnknownCustomer => {
                self.ignored += 1;
                info!(%customer_id, ignored = self.ignored, "customer event ignored: no job is this customer's");
            }
        }
        Some(Disposition::Ack)
    }

    async fn refuse(&self, letter: DeadLetter<'_>, refusal: &Refusal) -> Option<Disposition> {
        let reason_code = refusal.code();
        warn!(reason_code, reason = %refusal, "customer event is not believed, dead-lettering it");
        let journal = &self.worker.journal;
        self.worker.persist(|| journal.record_refused_event(letter, refusal)).await?;
        Some(Disposition::DeadLetter)
    }
}
