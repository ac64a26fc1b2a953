//! The ceiling: the worker's own consume, parse, sign, send and ack, and no database. It is
//! what a worker could do that kept no promise: for benchmarks alone, since a crash of it loses
//! what it was at. Takes the worker's settings from the environment, and stops at SIGTERM.

use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, anyhow};
use clap::Parser;
use dollarpe::signature::Signer;
use kyc_worker::app::provider_settings;
use kyc_worker::broker::{Broker, Delivery, Edge, SessionLiveness, Subscription};
use kyc_worker::clock::Moment;
use kyc_worker::config::RunSettings;
use kyc_worker::control::intake::Intake;
use kyc_worker::control::slots::{JobSlot, JobSlots};
use kyc_worker::domain::job::{BODY_BYTES_MAX, Job, Rules};
use kyc_worker::domain::verdict::{Verdict, classify};
use kyc_worker::loops::consumer::consume;
use kyc_worker::provider::Provider;
use kyc_worker::telemetry;
use time::OffsetDateTime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing_subscriber::filter::{LevelFilter, Targets};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    settings: RunSettings,
}

struct Ceiling {
    provider: Provider,
    rules: Rules,
    stopping: CancellationToken,
}

fn main() -> anyhow::Result<()> {
    // reqwest panics without it.
    rustls::crypto::ring::default_provider().install_default().map_err(|_| anyhow!("cannot set up TLS"))?;
    kyc_worker::runtime()?.block_on(run(Arguments::parse().settings))
}

async fn run(settings: RunSettings) -> anyhow::Result<()> {
    let _last_lines = telemetry::start(None, Targets::new().with_default(LevelFilter::WARN))?;
    let checked = settings.check().map_err(|faults| anyhow!("{}", faults[0]))?;
    let broker = Broker::new(&settings.broker, &checked.amqp_url, "ceiling")?;
    let signer = Signer::new(checked.api_key.expose(), checked.api_secret.expose());
    let ceiling = Arc::new(Ceiling {
        provider: Provider::new(
            provider_settings(&settings.provider, settings.work.concurrency as usize)?,
            signer,
        )?,
        rules: settings.jobs.rules(),
        stopping: CancellationToken::new(),
    });
    let slots = JobSlots::new(settings.work.concurrency as usize, settings.provider.send_window);
    let subscription =
        Subscription { edge: Edge::Jobs, prefetch: settings.work.prefetch, body_bytes: BODY_BYTES_MAX + 1 };
    let (sender, receiver) = mpsc::channel(usize::from(settings.work.prefetch));
    let intake = Intake::default();
    let (is_open, stopping) = (intake.subscribe(), ceiling.stopping.clone());
    tokio::spawn(async move {
        broker.consume(subscription, sender, is_open, SessionLiveness::default(), stopping).await
    });
    let handle = {
        let ceiling = Arc::clone(&ceiling);
        move |delivery, slot| submit(Arc::clone(&ceiling), delivery, slot)
    };
    tokio::spawn(consume(receiver, slots, TaskTracker::new(), ceiling.stopping.clone(), handle));
    signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?.recv().await;
    ceiling.stopping.cancel();
    Ok(())
}

/// Parses, signs, sends, and acks what was accepted; anything else is a failed benchmark.
async fn submit(ceiling: Arc<Ceiling>, Delivery { message, acker }: Delivery, mut slot: JobSlot) {
    let Ok(job) = Job::parse(&message, OffsetDateTime::now_utc(), &ceiling.rules) else {
        return acker.reject();
    };
    let (t0, customer_id) = (Moment::now(), job.request.customer_id());
    slot.acquire_request_slot(t0.monotonic).await;
    let update = ceiling.provider.sign(&job.request, t0);
    let exchange = ceiling.provider.update(customer_id, update, t0, &ceiling.stopping).await;
    match classify(&exchange, customer_id, &[], SystemTime::now()) {
        Verdict::Accepted(_) => acker.ack(),
        _ => acker.reject(),
    }
}
