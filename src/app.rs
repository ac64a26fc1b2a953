//! Builds the edges, starts the tasks, and stops them within a deadline.

use std::sync::{Arc, Once};
use std::time::Duration;

use anyhow::Context as _;
use sqlx::PgPool;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, debug, error, info, info_span, warn};
use url::Url;

use crate::broker::{Broker, Delivery, Edge, Subscription};
use crate::config::{Checked, DatabaseSettings, RunSettings};
use crate::control::breaker::Breaker;
use crate::control::intake::{Intake, Reason};
use crate::control::liveness::Liveness;
use crate::control::slots::{Place, Places};
use crate::domain::job::BODY_BYTES_MAX;
use crate::journal::{self, Journal, JournalError, Limits, Pace};
use crate::loops::customer_events::CustomerEvents;
use crate::loops::heartbeat::Heartbeat;
use crate::loops::scheduler::Scheduler;
use crate::loops::tracker::Tracker;
use crate::provider::{Provider, ProviderSettings};
use crate::worker::{Received, Worker};
use dollarpe::signature::Signer;

/// How a run is to go.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    /// Stop when nothing is left to do.
    pub drain: bool,
    /// Bring the schema up to date first.
    pub migrate: bool,
}

/// Between two tries to reach the database at start.
const DATABASE_RETRY_DELAY: Duration = Duration::from_secs(1);

/// The same, where a person must let us in: a server may lock out who fails too often.
const DATABASE_REFUSED_DELAY: Duration = Duration::from_secs(5);

/// How long the broker may take for the last acks.
const LAST_ACKS_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the tracker may take to record the looks that were answered.
const LAST_LOOKS_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the database may take to let this replica go.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// Between two looks at what is left to drain.
const DRAIN_POLL: Duration = Duration::from_millis(500);

/// Runs the worker until it is told to stop or, draining, until nothing is left.
///
/// # Errors
/// When it cannot start, or its schema is too old. Once it runs, outages only pause it.
pub async fn run(settings: RunSettings, checked: Checked, mode: Mode) -> anyhow::Result<()> {
    let stopping = CancellationToken::new();
    let hurry = CancellationToken::new();
    let signals = Signals::new()?;
    tokio::spawn(signals.watch(stopping.clone(), hurry.clone()));

    let Some(pool) = open_database(&settings, &checked, mode, &stopping).await? else {
        return Ok(());
    };
    let name = checked.worker_name.clone();
    let broker = Broker::new(&settings.broker, &checked.amqp_url, &format!("kyc-worker {name}"))?;
    let worker = Arc::new(build_worker(&settings, checked, pool, stopping.clone())?);
    info!(
        worker = name,
        version = env!("CARGO_PKG_VERSION"),
        concurrency = settings.work.concurrency,
        prefetch = settings.work.prefetch,
        "worker started"
    );
    let mut running = Running::start(&settings, &broker, &worker).await?;
    if mode.drain {
        tokio::spawn(stop_when_drained(broker, Arc::clone(&worker), running.jobs.clone()));
    }
    let died = running.until(&stopping).await;
    stopping.cancel();
    running.stop(settings.work.shutdown_grace, &hurry).await;
    match died {
        Some(task) => anyhow::bail!("the {task} task died; see the log for its panic"),
        None => Ok(()),
    }
}

struct Running {
    /// What is done with deliveries and due jobs.
    jobs: TaskTracker,
    session: JoinHandle<()>,
    intake: JoinHandle<()>,
    scheduler: JoinHandle<()>,
    tracker: JoinHandle<()>,
    prober: JoinHandle<()>,
    heartbeat: JoinHandle<Result<(), JournalError>>,
    /// Ends the heartbeat, once all else has ended.
    leaving: CancellationToken,
}

impl Running {
    async fn start(settings: &RunSettings, broker: &Broker, worker: &Arc<Worker>) -> anyhow::Result<Self> {
        let jobs = TaskTracker::new();
        // Before anything is taken: the work may be paused. While that is not known, it is.
        let heartbeat = Heartbeat::new(Arc::clone(worker), jobs.clone())
            .context("the system does not say which process this is")?;
        heartbeat.beat().await;
        let leaving = CancellationToken::new();
        let heartbeat = tokio::spawn(heartbeat.run(leaving.clone()));

        let (sender, receiver) = mpsc::channel(usize::from(settings.work.prefetch));
        let session = tokio::spawn({
            let subscription = Subscription {
                edge: Edge::Jobs,
                prefetch: settings.work.prefetch,
                body_bytes: BODY_BYTES_MAX + 1,
            };
            let (broker, intake) = (broker.clone(), worker.intake.subscribe());
            let (liveness, stopping) = (worker.liveness.session.clone(), worker.stopping.clone());
            async move { broker.consume(subscription, sender, intake, liveness, stopping).await }
        });
        let places = Places::new(settings.work.concurrency as usize, settings.provider.send_window);
        let intake = tokio::spawn({
            let worker = Arc::clone(worker);
            let stopping = worker.stopping.clone();
            let handle = move |delivery, place| handle(Arc::clone(&worker), delivery, place);
            take_in(receiver, Arc::clone(&places), jobs.clone(), stopping, handle)
        });
        let scheduler = Scheduler::new(
            Arc::clone(worker),
            places,
            jobs.clone(),
            settings.work.scheduler_poll,
            settings.keys.payload_retention,
            settings.work.dead_letter_retention,
        );
        let tracking = track_verifications(settings.clone(), broker.clone(), Arc::clone(worker));
        let probing = probe_provider(settings.clone(), Arc::clone(worker));
        let following = follow_database(settings.database.clone(), Arc::clone(worker));
        let probing = async move {
            tokio::join!(probing, following);
        };
        Ok(Self {
            jobs,
            session,
            intake,
            scheduler: tokio::spawn(scheduler.run()),
            tracker: tokio::spawn(tracking),
            prober: tokio::spawn(probing),
            heartbeat,
            leaving,
        })
    }

    /// Waits until the worker is told to stop, or a task ends before that and is named: it has
    /// panicked, and without it the worker would only look alive.
    async fn until(&mut self, stopping: &CancellationToken) -> Option<&'static str> {
        let died = tokio::select! {
            () = stopping.cancelled() => None,
            _ = &mut self.session => Some("broker session"),
            _ = &mut self.intake => Some("intake"),
            _ = &mut self.scheduler => Some("scheduler"),
            _ = &mut self.prober => Some("prober"),
            _ = &mut self.tracker => Some("tracker"),
            _ = &mut self.heartbeat => Some("heartbeat"),
        };
        died.filter(|_| !stopping.is_cancelled())
    }

    /// Waits for what must end well, in order, and for nothing too long. `stopping` is cancelled:
    /// no gate lets an update through any more.
    ///
    /// 1. Whatever claims ends: the intake at once, the scheduler when the claim that it has under
    ///    way was answered. What that began joins the jobs, and is closed as not sent.
    /// 2. Jobs finish: requests in flight are answered and recorded, openings whose answer was lost
    ///    are found again and closed. This and the step before it have `grace`, or until `hurry`.
    /// 3. The last acks are on their way. What they do not reach is handed over again, and known.
    /// 4. Looks that were answered are recorded. One that was claimed only is due again soon.
    /// 5. The replica's row goes.
    async fn stop(self, grace: Duration, hurry: &CancellationToken) {
        let finishing = finish_jobs(self.jobs.clone(), self.intake, self.scheduler);
        info!(in_flight = self.jobs.len(), "stopping: finishing requests in flight");
        tokio::select! {
            done = timeout(grace, finishing) => match done {
                Ok(()) => info!("stopped"),
                Err(_elapsed) => warn!(
                    in_flight = self.jobs.len(),
                    "SHUTDOWN_GRACE is over: what is in flight will be taken over when its claim runs out"
                ),
            },
            () = hurry.cancelled() => {
                warn!(in_flight = self.jobs.len(), "second signal: stopped at once");
            }
        }
        if timeout(LAST_ACKS_TIMEOUT, ended(self.session)).await.is_err() {
            info!("the broker did not take the last acks");
        }
        if timeout(LAST_LOOKS_TIMEOUT, ended(self.tracker)).await.is_err() {
            info!("the last looks at verifications were not recorded; another replica will look again");
        }
        self.leaving.cancel();
        let heartbeat = self.heartbeat;
        if !heartbeat.is_finished() && !matches!(timeout(LEAVE_TIMEOUT, heartbeat).await, Ok(Ok(Ok(())))) {
            info!("the database did not let this replica go; its row is swept within the hour");
        }
    }
}

/// Waits until nothing claims any more, and then for every job to be finished and recorded.
async fn finish_jobs(jobs: TaskTracker, intake: JoinHandle<()>, scheduler: JoinHandle<()>) {
    tokio::join!(ended(intake), ended(scheduler));
    jobs.close();
    jobs.wait().await;
}

/// Waits for a task's end. It may have ended long ago, and a panic of it was told already.
async fn ended(task: JoinHandle<()>) {
    if !task.is_finished() {
        let _panicked = task.await;
    }
}

/// Opens the database, waiting for it as long as it takes; its URL is read anew for each try. `None`
/// when stopped meanwhile.
async fn open_database(
    settings: &RunSettings,
    checked: &Checked,
    mode: Mode,
    stopping: &CancellationToken,
) -> anyhow::Result<Option<PgPool>> {
    let mut told = None;
    loop {
        let error = match try_to_open(&settings.database, checked, mode).await {
            Ok(pool) => return Ok(Some(pool)),
            // It may go away between two statements as well.
            Err(error) if journal::is_away(&error) || journal::is_refused(&error) => error,
            Err(error) => return Err(error),
        };
        let is_refused = journal::is_refused(&error);
        if told != Some(is_refused) {
            let error = format!("{error:#}");
            match is_refused {
                true => error!(error, "waiting for the database until a person has mended this"),
                false => warn!(error, "waiting for the database"),
            }
            told = Some(is_refused);
        }
        let delay = if is_refused { DATABASE_REFUSED_DELAY } else { DATABASE_RETRY_DELAY };
        if stopping.run_until_cancelled(sleep(delay)).await.is_none() {
            return Ok(None);
        }
    }
}

/// Connects, brings the schema up to date where that was asked for, and sees that this worker may
/// write here.
async fn try_to_open(settings: &DatabaseSettings, checked: &Checked, mode: Mode) -> anyhow::Result<PgPool> {
    let pool = journal::connect_to_work(settings, &settings.url()?).await?;
    journal::check_session(&pool).await?;
    if mode.migrate {
        journal::migrate(&pool).await?;
    }
    journal::check_schema(&pool).await?;
    journal::check_fingerprint_key(&pool, &checked.fingerprinter).await?;
    Ok(pool)
}

/// While the database is away or refuses us: finds out where the setting leads by now, until the
/// worker stops. Its password may have been rotated, and its host have another address.
async fn follow_database(settings: DatabaseSettings, worker: Arc<Worker>) {
    let mut known = None;
    let mut is_open = worker.intake.subscribe();
    let stopping = worker.stopping.clone();
    loop {
        let paused = async { is_open.wait_for(|is_open| !is_open).await.is_ok() };
        if stopping.run_until_cancelled(paused).await != Some(true) {
            return;
        }
        if worker.intake.is_paused_for(Reason::Database)
            && let Err(error) = worker.journal.lead_anew(&settings, &mut known).await
        {
            debug!(error = format!("{error:#}"), "no way into the database");
        }
        if stopping.run_until_cancelled(sleep(DATABASE_RETRY_DELAY)).await.is_none() {
            return;
        }
    }
}

/// How the provider is reached, as the settings say.
pub fn provider_settings(
    settings: &RunSettings,
    base_url: Url,
    authorities: Option<Vec<u8>>,
) -> ProviderSettings {
    ProviderSettings {
        base_url,
        authorities,
        profile: settings.provider.dollarpe_signing_profile,
        request_timeout: settings.provider.request_timeout,
        read_timeout: settings.provider.read_timeout,
        send_window: settings.provider.send_window,
        connections: settings.work.concurrency as usize,
    }
}

fn build_worker(
    settings: &RunSettings,
    checked: Checked,
    pool: PgPool,
    stopping: CancellationToken,
) -> anyhow::Result<Worker> {
    let provider = provider_settings(settings, checked.base_url, checked.provider_ca);
    let signer = Signer::new(checked.api_key.expose(), checked.api_secret.expose());
    Ok(Worker {
        journal: Journal::new(
            pool,
            checked.worker_name,
            Limits {
                claim_lease: settings.work.claim_lease,
                read_back_after: settings.read_back.read_back_after,
                read_back_window: settings.read_back.read_back_window,
                customer_updates: settings.read_back.customer_update_limit,
                verification_after: settings.verification.verification_poll_after,
            },
            checked.keyring,
            checked.fingerprinter,
        )?,
        provider: Provider::new(provider, signer)?,
        breaker: Breaker::new(settings.work.breaker_failures),
        rules: settings.jobs.rules(),
        intake: Intake::default(),
        liveness: Liveness::default(),
        schedule: settings.work.retry_schedule(),
        timing: settings.timing(),
        baseline: settings.read_back.baseline_read.then_some(settings.read_back.customer_read_interval),
        not_applied_statuses: settings.provider.not_applied_statuses.clone(),
        recordings: Semaphore::new(settings.work.concurrency as usize),
        crowded: Once::new(),
        mending: Semaphore::new(1),
        parked: Notify::new(),
        stopping,
    })
}

/// Follows what was accepted until the worker stops: by looks, and by the provider's
/// webhooks where that is asked for.
async fn track_verifications(settings: RunSettings, broker: Broker, worker: Arc<Worker>) {
    let verification = &settings.verification;
    let pace = Pace {
        per_second: verification.verification_reads_per_second,
        apart: settings.read_back.customer_read_interval,
        look_time_max: settings.provider.read_timeout,
    };
    let poll = settings.work.scheduler_poll;
    let tracker = Tracker::new(Arc::clone(&worker), verification.tracking(), pace, poll);
    let webhooks = async {
        if settings.broker.customer_events {
            CustomerEvents::new(worker, verification.customer_event_age_max).run(broker).await;
        }
    };
    tokio::join!(tracker.run(), webhooks);
}

/// Probes the provider while the breaker is open, until the worker stops.
async fn probe_provider(settings: RunSettings, worker: Arc<Worker>) {
    let Worker { breaker, provider, intake, stopping, .. } = &*worker;
    breaker.watch(provider, &settings.provider, settings.work.breaker_probe_interval, intake, stopping).await;
}

/// Takes deliveries as places come free, so that the backlog stays in the queue, and handles
/// each in a task of its own among `jobs`.
pub async fn take_in<F>(
    mut deliveries: mpsc::Receiver<Delivery>,
    places: Arc<Places>,
    jobs: TaskTracker,
    stopping: CancellationToken,
    handle: impl Fn(Delivery, Place) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    while let Some(Some(delivery)) = stopping.run_until_cancelled(deliveries.recv()).await {
        let Some(place) = stopping.run_until_cancelled(places.take()).await else { return };
        // A lost session's deliveries come again with the next.
        if !delivery.acker.is_live() {
            continue;
        }
        // Boxed: to spawn a future, and to drop it, copies it whole ten times.
        jobs.spawn(Box::pin(handle(delivery, place)));
    }
}

/// Receives a delivery, acks it, and submits the job if it is ours to submit.
async fn handle(worker: Arc<Worker>, delivery: Delivery, place: Place) {
    let Delivery { message, acker } = delivery;
    match worker.receive(&message).await {
        // The worker stops: the delivery goes back to its queue.
        None => {}
        Some(Received::Ack) => acker.ack(),
        Some(Received::DeadLetter) => acker.reject(),
        Some(Received::Submit(claim, request)) => {
            acker.ack();
            let span = info_span!(
                "job",
                job_id = %claim.job_id,
                customer_id = %claim.customer_id,
                correlation_id = message.correlation_id,
                redelivered = message.is_redelivered
            );
            drop(message);
            worker.submit(claim, &request, place).instrument(span).await;
        }
    }
}

/// Stops the worker once the queue is empty and nothing is in motion, seen twice.
async fn stop_when_drained(broker: Broker, worker: Arc<Worker>, jobs: TaskTracker) {
    let mut seen_empty = 0;
    let mut last_logged = None;
    while worker.stopping.run_until_cancelled(sleep(DRAIN_POLL)).await.is_some() {
        let ready = broker.count_ready().await;
        let in_motion = worker.journal.count_in_motion().await;
        let (Ok(ready), Ok(in_motion)) = (ready, in_motion) else {
            seen_empty = 0;
            continue;
        };
        if ready == 0 && in_motion == 0 && jobs.is_empty() {
            seen_empty += 1;
            if seen_empty == 2 {
                info!("drained: the queue is empty and nothing is in motion");
                worker.stopping.cancel();
            }
            continue;
        }
        seen_empty = 0;
        if last_logged != Some((ready, in_motion)) {
            let next_due = worker.journal.next_due().await.ok().flatten();
            let next_due_in_ms = next_due.map(|due| u64::try_from(due.as_millis()).unwrap_or(u64::MAX));
            info!(queued = ready, in_motion, next_due_in_ms, "draining");
            last_logged = Some((ready, in_motion));
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?,
        })
    }

    /// The first signal stops the worker, a second ends the waiting.
    async fn watch(mut self, stopping: CancellationToken, hurry: CancellationToken) {
        for token in [stopping, hurry] {
            let signal = tokio::select! {
                _ = self.terminate.recv() => "SIGTERM",
                _ = self.interrupt.recv() => "SIGINT",
            };
            info!(signal, "signal received");
            token.cancel();
        }
    }
}
