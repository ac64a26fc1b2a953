//! Builds the parts, starts the loops, and stops them in order.

use std::sync::{Arc, Once};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::{OptionFuture, join_all};
use parking_lot::Mutex;
use serde_json::Value;
use sqlx::PgPool;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::broker::{Broker, Edge, Subscription};
use crate::config::{Checked, ProviderArgs, RunSettings, SettingFault};
use crate::context::{Alarms, Checks, Context};
use crate::control::breaker::Breaker;
use crate::control::intake::Intake;
use crate::control::liveness::Liveness;
use crate::control::slots::JobSlots;
use crate::domain::job::BODY_BYTES_MAX;
use crate::instance::instance;
use crate::journal::{AtEnd, Journal, JournalError, Limits, Pace};
use crate::links::{LinkClient, LinkSettings};
use crate::listener::{Watched, listen};
use crate::loops::consumer::consume;
use crate::loops::customer_events::CustomerEvents;
use crate::loops::database;
use crate::loops::dispatcher::Dispatcher;
use crate::loops::drain::stop_when_drained;
use crate::loops::fleet;
use crate::loops::heartbeat::Heartbeat;
use crate::loops::maintenance::Maintenance;
use crate::loops::outcome_events::OutcomeEvents;
use crate::loops::prober::Prober;
use crate::loops::reconciler::Reconciler;
use crate::loops::tracker::Tracker;
use crate::provider::{Provider, ProviderSettings};
use crate::traces::Traces;
use crate::worker;
use dollarpe::signature::Signer;

/// How a run is to go.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    /// Stop when nothing is left to do.
    pub drain: bool,
    /// Bring the schema up to date first.
    pub migrate: bool,
}

/// How long the broker may take for the last acks.
const LAST_ACKS_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the tracker may take to record the reads that were answered.
const LAST_READS_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the database may take to let this replica go.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs the worker until it is told to stop or, draining, until nothing is left. Its row among the replicas has
/// the settings that are `told`.
///
/// # Errors
/// When it cannot start, or its schema is too old. Once it runs, outages only pause it.
pub async fn run(settings: RunSettings, checked: Checked, mode: Mode, told: Value) -> anyhow::Result<()> {
    let stopping = CancellationToken::new();
    let hurry = CancellationToken::new();
    let signals = Signals::new()?;
    tokio::spawn(signals.watch(stopping.clone(), hurry.clone()));

    let watched = Watched::default();
    if let Some(address) = settings.work.metrics_listen {
        listen(address, watched.clone())?;
    }
    let opening = database::open(&settings.database, &checked, mode.migrate, &stopping);
    let Some(pool) = opening.await? else { return Ok(()) };
    let name = checked.worker_name.clone();
    let broker = Broker::new(&settings.broker, &checked.amqp_url, &format!("kyc-worker {name}"))?;
    let context = Arc::new(build(&settings, checked, pool, stopping.clone())?);
    let instance = instance(std::process::id()).context("the system does not say which process this is")?;
    if !database::await_others(&context, &instance).await {
        return Ok(());
    }
    info!(
        worker = name,
        version = env!("CARGO_PKG_VERSION"),
        concurrency = settings.work.concurrency,
        prefetch = settings.work.prefetch,
        "worker started"
    );
    let slots = JobSlots::new(settings.work.concurrency as usize, settings.provider.send_window);
    watched.watch(Arc::clone(&context), Arc::clone(&slots));
    let ending = Arc::clone(&context);
    let mut running = Running::start(&settings, &broker, &context, slots, instance, told).await;
    if mode.drain {
        let (jobs, tells) = (running.jobs.clone(), settings.broker.outcome_events);
        tokio::spawn(stop_when_drained(broker, Arc::clone(&context), jobs, tells));
    }
    let died = running.until(&stopping).await;
    stopping.cancel();
    running.stop(settings.work.shutdown_grace, &hurry).await;
    let _panicked = spawn_blocking(move || ending.traces.shut_down()).await;
    match died {
        Some(task) => anyhow::bail!("the {task} task died; see the log for its panic"),
        None => Ok(()),
    }
}

struct Running {
    /// What is done with deliveries, due jobs and due reads.
    jobs: TaskTracker,
    session: JoinHandle<()>,
    consumer: JoinHandle<()>,
    dispatcher: JoinHandle<()>,
    reconciler: JoinHandle<()>,
    maintenance: JoinHandle<()>,
    tracker: JoinHandle<()>,
    prober: JoinHandle<()>,
    database: JoinHandle<()>,
    fleet: JoinHandle<()>,
    heartbeat: JoinHandle<Result<(), JournalError>>,
    /// Says that nothing is to be written any more.
    finished: CancellationToken,
    /// Ends the heartbeat, once all else has ended.
    leaving: CancellationToken,
}

impl Running {
    async fn start(
        settings: &RunSettings,
        broker: &Broker,
        context: &Arc<Context>,
        slots: Arc<JobSlots>,
        instance: String,
        told: Value,
    ) -> Self {
        let RunSettings { work, verification, .. } = settings;
        let jobs = TaskTracker::new();
        // Before anything is taken: the work may be paused. While that is not known, it is.
        let heartbeat = Heartbeat::new(Arc::clone(context), jobs.clone(), instance.clone(), told);
        heartbeat.beat().await;
        let (leaving, finished) = (CancellationToken::new(), CancellationToken::new());
        let heartbeat = tokio::spawn(heartbeat.run(leaving.clone()));

        let (sender, receiver) = mpsc::channel(usize::from(work.prefetch));
        let session = tokio::spawn({
            let subscription =
                Subscription { edge: Edge::Jobs, prefetch: work.prefetch, body_bytes: BODY_BYTES_MAX + 1 };
            let (broker, intake) = (broker.clone(), context.intake.subscribe());
            let (liveness, stopping) = (context.liveness.session.clone(), context.stopping.clone());
            async move { broker.consume(subscription, sender, intake, liveness, stopping).await }
        });
        let handle = {
            let context = Arc::clone(context);
            move |delivery, slot| worker::handle(Arc::clone(&context), delivery, slot)
        };
        let consumer = consume(receiver, Arc::clone(&slots), jobs.clone(), context.stopping.clone(), handle);
        let dispatcher = Dispatcher::new(Arc::clone(context), slots, jobs.clone(), work.scheduler_poll);
        let reconciler = Reconciler::new(Arc::clone(context), jobs.clone(), work.scheduler_poll);
        let maintenance = Maintenance::new(
            Arc::clone(context),
            work.scheduler_poll,
            settings.keys.payload_retention,
            work.dead_letter_retention,
        );
        let pace = Pace {
            per_second: verification.verification_reads_per_second,
            apart: settings.read_back.customer_read_interval,
            read_time_max: settings.provider.read_timeout,
        };
        let tracker = Tracker::new(Arc::clone(context), verification.tracking(), pace, work.scheduler_poll);
        let events = settings.broker.customer_events.then(|| {
            CustomerEvents::new(Arc::clone(context), verification.customer_event_age_max).run(broker.clone())
        });
        let outcome_events = settings
            .broker
            .outcome_events
            .then(|| OutcomeEvents::new(Arc::clone(context), broker.clone(), work.scheduler_poll).run());
        let prober = Prober::new(Arc::clone(context), settings.provider.clone(), work.breaker_probe_interval);
        Self {
            jobs,
            session,
            consumer: tokio::spawn(consumer),
            dispatcher: tokio::spawn(dispatcher.run()),
            reconciler: tokio::spawn(reconciler.run()),
            maintenance: tokio::spawn(maintenance.run()),
            tracker: tokio::spawn(async move {
                tokio::join!(tracker.run(), OptionFuture::from(events), OptionFuture::from(outcome_events));
            }),
            prober: tokio::spawn(prober.run()),
            database: tokio::spawn(database::follow(
                settings.database.clone(),
                Arc::clone(context),
                instance,
                finished.clone(),
            )),
            fleet: tokio::spawn(fleet::follow(Arc::clone(context))),
            heartbeat,
            finished,
            leaving,
        }
    }

    /// Waits until the worker is told to stop, or a task ends before that and is named: it has
    /// panicked, and without it the worker would only look alive.
    async fn until(&mut self, stopping: &CancellationToken) -> Option<&'static str> {
        let died = tokio::select! {
            () = stopping.cancelled() => None,
            _ = &mut self.session => Some("broker session"),
            _ = &mut self.consumer => Some("consumer"),
            _ = &mut self.dispatcher => Some("dispatcher"),
            _ = &mut self.reconciler => Some("reconciler"),
            _ = &mut self.maintenance => Some("maintenance"),
            _ = &mut self.tracker => Some("tracker"),
            _ = &mut self.prober => Some("prober"),
            _ = &mut self.database => Some("database"),
            _ = &mut self.fleet => Some("fleet"),
            _ = &mut self.heartbeat => Some("heartbeat"),
        };
        died.filter(|_| !stopping.is_cancelled())
    }

    /// Waits for what must end well, in order, and for nothing too long. `stopping` is cancelled:
    /// no gate lets an update through any more.
    ///
    /// 1. The loops that claim end: the dispatcher when the claim that it has under way was answered,
    ///    the others at once. The attempts which that claim began join the jobs, and are closed as not
    ///    sent.
    /// 2. Jobs finish: requests in flight are answered and recorded, openings whose answer was lost
    ///    are found again and closed. Where the database is away, what this replica remembers is compared with
    ///    what comes back. This and the step before it have `grace`, or until `hurry`.
    /// 3. The last acks are sent. A delivery that they do not reach comes again, and is known then.
    /// 4. Reads that were answered are recorded, and outcome events that the broker has are removed. A read
    ///    that was only claimed is due again soon; an event that is not removed is published again.
    /// 5. The replica's row is removed.
    async fn stop(self, grace: Duration, hurry: &CancellationToken) {
        let claiming = [self.consumer, self.dispatcher, self.reconciler, self.maintenance];
        let mut database = self.database;
        let finishing = async {
            finish_jobs(self.jobs.clone(), claiming).await;
            self.finished.cancel();
            if !database.is_finished() {
                let _panicked = (&mut database).await;
            }
        };
        info!(in_flight = self.jobs.len(), "stopping: finishing requests in flight");
        tokio::select! {
            done = timeout(grace, finishing) => match done {
                Ok(()) => info!("stopped"),
                Err(_elapsed) => warn!(
                    in_flight = self.jobs.len(),
                    "SHUTDOWN_GRACE is over: another replica rescues what is in flight when its lease expires"
                ),
            },
            () = hurry.cancelled() => {
                warn!(in_flight = self.jobs.len(), "a second signal came: the worker stopped at once");
            }
        }
        if !database.is_finished() {
            warn!(
                "the worker stopped while the database was away: what it committed last is not compared with what \
                 comes back"
            );
        }
        if timeout(LAST_ACKS_TIMEOUT, ended(self.session)).await.is_err() {
            info!("the broker did not take the last acks");
        }
        if timeout(LAST_READS_TIMEOUT, ended(self.tracker)).await.is_err() {
            info!("the last reads for verifications were not recorded; another replica will read again");
        }
        self.leaving.cancel();
        let heartbeat = self.heartbeat;
        if !heartbeat.is_finished() && !matches!(timeout(LEAVE_TIMEOUT, heartbeat).await, Ok(Ok(Ok(())))) {
            info!("the database did not let this replica go; its row is swept within the hour");
        }
    }
}

/// Waits until nothing claims any more, and then for every job to be finished and recorded.
async fn finish_jobs(jobs: TaskTracker, claiming: [JoinHandle<()>; 4]) {
    join_all(claiming.map(ended)).await;
    jobs.close();
    jobs.wait().await;
}

/// Waits for a task's end. It may have ended long ago, and a panic of it was logged already.
async fn ended(task: JoinHandle<()>) {
    if !task.is_finished() {
        let _panicked = task.await;
    }
}

/// How the provider is reached, as the settings say.
///
/// # Errors
/// What is wrong with where the provider is, or how it is reached.
pub fn provider_settings(
    provider: &ProviderArgs,
    connections: usize,
) -> Result<ProviderSettings, SettingFault> {
    Ok(ProviderSettings {
        base_url: provider.base_url()?,
        authorities: provider.authorities()?,
        proxy: provider.proxy()?,
        profile: provider.dollarpe_signing_profile,
        request_timeout: provider.request_timeout,
        read_timeout: provider.read_timeout,
        send_window: provider.send_window,
        connections,
    })
}

fn build(
    settings: &RunSettings,
    checked: Checked,
    pool: PgPool,
    stopping: CancellationToken,
) -> anyhow::Result<Context> {
    let provider = provider_settings(&settings.provider, settings.work.concurrency as usize)?;
    let traces =
        Traces::start(checked.otlp.as_ref(), &checked.worker_name, &settings.broker, &provider.base_url)?;
    let signer = Signer::new(checked.api_key.expose(), checked.api_secret.expose());
    let intake = Arc::new(Intake::default());
    Ok(Context {
        journal: Journal::new(
            pool,
            checked.worker_name,
            Limits {
                claim_lease: settings.work.claim_lease,
                read_back_after: settings.read_back.read_back_after,
                read_back_window: settings.read_back.read_back_window,
                customer_updates: settings.read_back.customer_update_limit,
                at_end: AtEnd {
                    verification_after: settings.verification.verification_poll_after,
                    is_told: settings.broker.outcome_events,
                },
            },
            checked.keyring,
            checked.fingerprinter,
        )?,
        provider: Provider::new(provider, signer)?,
        breaker: Breaker::new(settings.work.breaker_failures, Arc::clone(&intake)),
        rules: settings.jobs.rules(),
        intake,
        liveness: Liveness::default(),
        traces,
        schedule: settings.work.retry_schedule(),
        timing: settings.timing(),
        baseline: settings.read_back.baseline_read.then_some(settings.read_back.customer_read_interval),
        checks: checks(settings)?,
        not_applied_statuses: settings.provider.not_applied_statuses.clone(),
        refusals: Mutex::default(),
        clock_asked: Semaphore::new(1),
        recordings: Semaphore::new(settings.work.concurrency as usize),
        crowded: Once::new(),
        mending: Semaphore::new(1),
        scheduled: Notify::new(),
        alarms: Alarms::default(),
        stopping,
    })
}

/// What is checked before an update is spent, if anything is: within four fifths of the send window.
fn checks(RunSettings { jobs, provider, .. }: &RunSettings) -> anyhow::Result<Option<Checks>> {
    let document_types = jobs.asks_provider_for_types();
    let links = jobs.link_check.then(|| {
        LinkClient::new(&LinkSettings {
            allowed: jobs.link_check_allow.clone(),
            authorities: jobs.link_authorities()?,
            proxy: provider.proxy()?,
        })
    });
    let links = links.transpose()?;
    let within = provider.send_window * 4 / 5;
    Ok((document_types || links.is_some()).then_some(Checks { document_types, links, within }))
}

/// What tells a process to stop.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?,
        })
    }

    /// Waits for the next one, and names it.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// The first signal stops the worker, a second ends the waiting.
    async fn watch(mut self, stopping: CancellationToken, hurry: CancellationToken) {
        for token in [stopping, hurry] {
            let signal = self.next().await;
            info!(signal, "signal received");
            token.cancel();
        }
    }
}
