//! What one replica counts and measures. Each metric's name, meaning and labels stand here, and
//! nowhere else; `GET /metrics` writes them down (OpenMetrics 1.0).
//!
//! Labels come from enums alone, so that their number is bounded and nothing that anybody entered is
//! among them. Every series exists from the start: a rate over one that appears with its first event
//! misses that event. What went wrong or took long carries its job's id as an exemplar.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};
use uuid::Uuid;

use crate::domain::job::JobRef;
use crate::domain::outcome::{Exhaustion, Outcome, Review};
use crate::domain::state::{ConclusionKind, EventKind, LinkField, State, VerdictKind};
use crate::domain::verdict::{
    Acceptance, FailurePoint, HttpOutcome, LinkRefusal, Misconfiguration, NotSent, Rejection, Verdict,
};

/// What this process counts and measures.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

type Labels<const N: usize> = [(&'static str, &'static str); N];
type Counters<const N: usize> = Family<Labels<N>, Counter>;
type Gauges<const N: usize> = Family<Labels<N>, FloatGauge>;
type FloatGauge = Gauge<f64, AtomicU64>;
type Fleet = Family<Vec<(&'static str, &'static str)>, FloatGauge>;
type Exemplar = Vec<(&'static str, String)>;
type Exemplars<const N: usize> =
    Family<Labels<N>, HistogramWithExemplars<Exemplar>, fn() -> HistogramWithExemplars<Exemplar>>;

/// An exchange with the provider, in seconds.
const EXCHANGE: [f64; 10] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];
/// From receipt to the end, in seconds.
const JOB: [f64; 14] =
    [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21_600.0, 86_400.0];
/// From an acceptance to the end of its verification, in seconds.
const VERIFICATION: [f64; 9] =
    [60.0, 300.0, 900.0, 3600.0, 21_600.0, 86_400.0, 259_200.0, 604_800.0, 2_592_000.0];
const COMMIT: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];
const BATCH: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// An exchange that took longer is worth an exemplar.
const SLOW: Duration = Duration::from_secs(1);

/// What became of a delivery once its row was committed.
#[derive(Clone, Copy, Debug)]
pub enum Receipt {
    /// Its first attempt has begun.
    Claimed,
    /// It waits.
    Scheduled,
    /// It ended at once.
    Ended,
    /// It is known already.
    Known,
    Invalid,
    Conflict,
    WorkerFailed,
}

impl Receipt {
    const ALL: [Self; 7] = [
        Self::Claimed,
        Self::Scheduled,
        Self::Ended,
        Self::Known,
        Self::Invalid,
        Self::Conflict,
        Self::WorkerFailed,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Claimed => "claimed",
            Self::Scheduled => "scheduled",
            Self::Ended => "ended",
            Self::Known => "known",
            Self::Invalid => State::Invalid.name(),
            Self::Conflict => "conflict",
            Self::WorkerFailed => "worker_failed",
        }
    }
}

/// What the provider was asked for.
#[derive(Clone, Copy, Debug)]
pub enum Call {
    Update,
    Read,
    Probe,
}

impl Call {
    const ALL: [Self; 3] = [Self::Update, Self::Read, Self::Probe];

    fn name(self) -> &'static str {
        match self {
            Self::Update => "update",
            Self::Read => "read",
            Self::Probe => "probe",
        }
    }
}

/// What became of a session with the broker, or of the try to open one.
#[derive(Clone, Copy, Debug)]
pub enum Session {
    Opened,
    Lost,
    Refused,
}

impl Session {
    const ALL: [Self; 3] = [Self::Opened, Self::Lost, Self::Refused];

    fn name(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Lost => "lost",
            Self::Refused => "refused",
        }
    }
}

/// Connections to the database.
#[derive(Debug, Default)]
pub struct Connections {
    pub used: usize,
    pub idle: usize,
    /// How many there may be.
    pub max: u32,
}

/// Where a replica's parts stand when they are asked.
#[derive(Debug, Default)]
pub struct Standing {
    pub requests_in_flight: usize,
    pub requests_max: usize,
    pub jobs_held: usize,
    /// Why the intake is paused, each with whether a person must act.
    pub paused_for: Vec<(&'static str, bool)>,
    pub breaker: &'static str,
    pub has_session: bool,
    pub connections: Connections,
    pub clock_skew: Option<i64>,
    /// When each loop last turned, as Unix seconds.
    pub turned_at: Vec<(&'static str, f64)>,
}

/// What became of commits that a failover lost.
const LOST_COMMITS: [&str; 2] = ["restored", "missing"];

/// The breaker's states, the loops and the intake's reasons, by their names.
const BREAKER_STATES: [&str; 6] = ["closed", "open", "half_open", "half_open_idle", "probing", "throttled"];
pub const LOOPS: [&str; 4] = ["broker session", "dispatcher", "reconciler", "tracker"];
const PAUSE_REASONS: [&str; 4] = ["provider", "database", "operator", "heartbeat"];
/// What opens the breaker beside refusals.
const BREAKER_CAUSES: [&str; 3] = ["failing", "clock_skew", "throttling"];
/// What the fleet knows, by its name in the table: the label that its parts are, those parts, and its
/// meaning.
const FLEET: [(&str, &str, &[&str], &str); 12] = [
    ("open_jobs", "state", &OPEN, "Jobs that are not done, by state"),
    ("oldest_open_seconds", "state", &OPEN, "How long ago the oldest of them was received"),
    ("late_jobs", "", &[""], "Jobs that have been due for more than a minute, and nobody has taken up"),
    ("waiting_for_person", "reason_code", &REVIEWS, "Jobs that wait for a person, by reason"),
    ("verifications_running", "", &[""], "Verifications that are followed"),
    ("verifications_overdue", "", &[""], "Those that take longer than VERIFICATION_DEADLINE"),
    ("verification_reads_late_seconds", "", &[""], "How late the read is that is due the longest"),
    ("replicas_alive", "", &[""], "Replicas whose heartbeat was seen within 10 s"),
    ("replicas_working", "", &[""], "Those of them whose intake is open"),
    (
        "dead_lettered_day",
        "reason_code",
        &[State::Invalid.name(), "conflict", "worker_failed"],
        "Deliveries that workers dead-lettered within a day, by reason",
    ),
    ("events_waiting", "", &[""], "Outcome events that are not published yet"),
    ("oldest_event_seconds", "", &[""], "How long the one that was written first has waited"),
];
const OPEN: [&str; 6] = [
    State::Submitting.name(),
    "waiting_retry",
    "waiting_customer",
    "waiting_provider",
    State::Unknown.name(),
    State::NeedsReview.name(),
];
const REVIEWS: [&str; 5] =
    ["fate_unknown", "last_update", "newer_fate_unknown", "refused_only_for_this_job", "refused_like_others"];
const EXCHANGE_OUTCOMES: [&str; 8] =
    ["2xx", "3xx", "4xx", "429", "5xx", "timed_out", "connection_lost", "not_sent"];
const SPANS_MADE: &str = "made";
const SPANS_EXPORTED: &str = "exported";
const VERIFICATION_ENDS: [&str; 4] = ["verified", "failed", "given_up", "other"];

/// What this process counts and measures.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    deliveries: Counters<1>,
    delivery_age: Histogram,
    last_published: FloatGauge,
    attempts: Counters<2>,
    exchange: Exemplars<2>,
    ended: Counters<2>,
    job: Exemplars<1>,
    read_backs: Counters<1>,
    verifications: Counters<1>,
    verification: Histogram,
    requests_in_flight: FloatGauge,
    requests_max: FloatGauge,
    jobs_held: FloatGauge,
    paused: Gauges<1>,
    needs_person: Gauges<1>,
    breaker: Gauges<1>,
    breaker_opened: Counters<1>,
    session: FloatGauge,
    sessions: Counters<1>,
    batch_size: Histogram,
    commit: Histogram,
    batches_failed: Counter,
    connections: Gauges<1>,
    connections_max: FloatGauge,
    acquire_timeouts: Counter,
    events_published: Counters<1>,
    event_failures: Counter,
    claims_lost: Counters<1>,
    late_verdicts: Counters<1>,
    lost_commits: Counters<1>,
    clock_skew: FloatGauge,
    turned: Gauges<1>,
    log_events: Counters<1>,
    lines_lost: Counter,
    panics: Counter,
    spans: Counters<1>,
    fleet: Vec<Fleet>,
    fleet_read_at: FloatGauge,
    fleet_took: FloatGauge,
    cpu: Counter<f64, AtomicU64>,
    memory: FloatGauge,
    fds: FloatGauge,
}

impl Metrics {
    fn new() -> Self {
        let mut registry = Registry::default();
        let process = registry.sub_registry_with_prefix("process");
        let cpu = add(process, "cpu_seconds", "CPU time that the process has used", Counter::default());
        let memory = gauge(process, "resident_memory_bytes", "Memory that the process holds");
        let fds = gauge(process, "open_fds", "File descriptors that the process holds");
        let started =
            gauge(process, "start_time_seconds", "When the process began to measure, in Unix seconds");
        started.set(unix_seconds(SystemTime::now()));
        let kyc = registry.sub_registry_with_prefix("kyc");
        let build: Gauges<1> = family(kyc, "build_info", "The version, as a label");
        set(&build, [("version", env!("CARGO_PKG_VERSION"))], 1.0);
        let metrics = Self {
            deliveries: family(
                kyc,
                "deliveries",
                "Deliveries whose row is committed, by what became of them",
            ),
            delivery_age: add(
                kyc,
                "delivery_age_seconds",
                "From a message's timestamp to its receipt, where it has one",
                Histogram::new(JOB),
            ),
            last_published: gauge(
                kyc,
                "last_delivery_published_timestamp_seconds",
                "The timestamp of the message that was received last, where it has one, in Unix seconds",
            ),
            attempts: family(kyc, "attempts", "Attempts that were made, by their verdict and its detail"),
            exchange: add(
                kyc,
                "provider_request_duration_seconds",
                "How long the provider took, by what it was asked for and how it answered",
                Family::new_with_constructor(|| HistogramWithExemplars::new(EXCHANGE.into_iter())),
            ),
            ended: family(kyc, "jobs_ended", "Jobs that ended here, by state and reason code"),
            job: add(
                kyc,
                "job_duration_seconds",
                "From a job's receipt to its end, by the state that it ended in",
                Family::new_with_constructor(|| HistogramWithExemplars::new(JOB.into_iter())),
            ),
            read_backs: family(kyc, "read_backs", "Reads of unknown outcomes, by what they concluded"),
            verifications: family(kyc, "verifications_ended", "Verifications that ended, by how"),
            verification: add(
                kyc,
                "verification_duration_seconds",
                "From an acceptance to the read that found its verification ended",
                Histogram::new(VERIFICATION),
            ),
            requests_in_flight: gauge(
                kyc,
                "requests_in_flight",
                "Updates that the provider has not answered yet",
            ),
            requests_max: gauge(kyc, "requests_in_flight_max", "How many may be: CONCURRENCY"),
            jobs_held: gauge(
                kyc,
                "jobs_held",
                "Jobs that hold a slot: in flight, prefetched or being recorded",
            ),
            paused: family(kyc, "intake_paused", "Whether the intake is paused, by reason"),
            needs_person: family(
                kyc,
                "intake_needs_person",
                "Whether a person must end that pause, by reason",
            ),
            breaker: family(kyc, "breaker_state", "1 for the state that the breaker is in"),
            breaker_opened: family(kyc, "breaker_opened", "How often the breaker opened, by cause"),
            session: gauge(kyc, "broker_session", "Whether there is a session with the broker"),
            sessions: family(kyc, "broker_sessions", "Sessions with the broker, by what became of them"),
            batch_size: add(
                kyc,
                "journal_batch_size",
                "How many changes a commit had",
                Histogram::new(BATCH),
            ),
            commit: add(
                kyc,
                "journal_commit_duration_seconds",
                "How long a batch took to be written and committed",
                Histogram::new(COMMIT),
            ),
            batches_failed: counter(
                kyc,
                "journal_batches_failed",
                "Batches that were not committed: their changes are written alone",
            ),
            connections: family(kyc, "database_connections", "Connections to the database, by state"),
            connections_max: gauge(kyc, "database_connections_max", "How many there may be"),
            acquire_timeouts: counter(
                kyc,
                "database_acquire_timeouts",
                "How often a connection was waited for in vain",
            ),
            events_published: family(
                kyc,
                "events_published",
                "Outcome events that the broker has confirmed, by what they tell",
            ),
            event_failures: counter(
                kyc,
                "event_failures",
                "How often outcome events could not be published; they are kept and tried again",
            ),
            claims_lost: family(kyc, "claims_lost", "Claims that were lost before their result was recorded"),
            late_verdicts: family(
                kyc,
                "late_verdicts",
                "Verdicts that were recorded after their claim was lost",
            ),
            lost_commits: family(
                kyc,
                "lost_commits",
                "Jobs of which a failover lost commits that this replica remembers: written again, or missing",
            ),
            clock_skew: gauge(
                kyc,
                "provider_clock_skew_seconds",
                "The provider's clock less this machine's, as its answers tell",
            ),
            turned: family(
                kyc,
                "loop_turned_timestamp_seconds",
                "When each loop last turned, in Unix seconds",
            ),
            log_events: family(
                kyc,
                "log_events",
                "Warnings and errors that were logged, by level: an error is the worker's own, and a person's to act on",
            ),
            lines_lost: counter(kyc, "log_lines_lost", "Log lines that were lost, as nobody read stdout"),
            panics: counter(kyc, "panics", "Work that ended in a panic: a bug"),
            spans: family(
                kyc,
                "spans",
                "Spans of traces: made, and taken by the collector. What was made and neither taken nor waits (2,048 at most) is lost",
            ),
            fleet: FLEET.map(|(name, _, _, help)| add(kyc, name, help, Fleet::default())).to_vec(),
            fleet_read_at: gauge(
                kyc,
                "fleet_timestamp_seconds",
                "When the fleet's figures were read, in Unix seconds; 0 until this replica has them",
            ),
            fleet_took: gauge(kyc, "fleet_reading_seconds", "How long it took to read them"),
            cpu,
            memory,
            fds,
            registry,
        };
        metrics.create_every_series();
        metrics
    }

    fn create_every_series(&self) {
        for receipt in Receipt::ALL {
            touch(&self.deliveries, [("receipt", receipt.name())]);
        }
        for verdict in every_verdict() {
            touch(&self.attempts, labels_of(&verdict));
        }
        for call in Call::ALL {
            for outcome in EXCHANGE_OUTCOMES {
                drop(self.exchange.get_or_create(&[("call", call.name()), ("outcome", outcome)]));
            }
        }
        for outcome in every_outcome() {
            touch(&self.ended, end_of(&outcome));
            drop(self.job.get_or_create(&[("state", outcome.state().name())]));
        }
        for kind in ConclusionKind::ALL {
            touch(&self.read_backs, [("conclusion", kind.name())]);
        }
        for status in VERIFICATION_ENDS {
            touch(&self.verifications, [("status", status)]);
        }
        for cause in BREAKER_CAUSES.into_iter().chain(every_misconfiguration().map(Misconfiguration::code)) {
            touch(&self.breaker_opened, [("cause", cause)]);
        }
        for session in Session::ALL {
            touch(&self.sessions, [("result", session.name())]);
        }
        for kind in VerdictKind::ALL {
            touch(&self.claims_lost, [("verdict", kind.name())]);
            touch(&self.late_verdicts, [("verdict", kind.name())]);
        }
        for result in LOST_COMMITS {
            touch(&self.lost_commits, [("result", result)]);
        }
        for kind in EventKind::ALL {
            touch(&self.events_published, [("kind", kind.name())]);
        }
        for name in LOOPS {
            set(&self.turned, [("loop", name)], unix_seconds(SystemTime::now()));
        }
        for result in [SPANS_MADE, SPANS_EXPORTED] {
            touch(&self.spans, [("result", result)]);
        }
        for level in ["error", "warn"] {
            touch(&self.log_events, [("level", level)]);
        }
    }

    pub fn note_spans_made(&self, count: usize) {
        self.spans.get_or_create(&[("result", SPANS_MADE)]).inc_by(count as u64);
    }

    pub fn note_spans_exported(&self, count: usize) {
        self.spans.get_or_create(&[("result", SPANS_EXPORTED)]).inc_by(count as u64);
    }

    /// A delivery's row is committed.
    pub fn note_delivery(&self, receipt: Receipt) {
        self.deliveries.get_or_create(&[("receipt", receipt.name())]).inc();
    }

    /// A message was received that says when it was published.
    pub fn note_publication(&self, published_at: SystemTime) {
        let since = SystemTime::now().duration_since(published_at).unwrap_or_default();
        self.delivery_age.observe(since.as_secs_f64());
        self.last_published.set(unix_seconds(published_at));
    }

    pub fn note_attempt(&self, verdict: &Verdict) {
        self.attempts.get_or_create(&labels_of(verdict)).inc();
    }

    /// The provider was asked, and this came of it.
    pub fn note_exchange(&self, call: Call, outcome: &HttpOutcome, took: Duration, job: Option<&JobRef>) {
        let name = match outcome {
            HttpOutcome::Answered(answer) => match answer.status {
                429 => "429",
                200..=299 => "2xx",
                300..=399 => "3xx",
                400..=499 => "4xx",
                _ => "5xx",
            },
            HttpOutcome::Lost(FailurePoint::TimedOut) => "timed_out",
            HttpOutcome::Lost(_) => "connection_lost",
            HttpOutcome::NotSent(_) => "not_sent",
        };
        let is_odd = name != "2xx" || took >= SLOW;
        let exemplar = job.filter(|_| is_odd).map(exemplar);
        self.exchange.get_or_create(&[("call", call.name()), ("outcome", name)]).observe(
            took.as_secs_f64(),
            exemplar,
            None,
        );
    }

    /// A job has ended, and the end is committed. `took` is since its receipt.
    pub fn note_end(&self, outcome: &Outcome, job: &JobRef, took: Duration) {
        self.ended.get_or_create(&end_of(outcome)).inc();
        let is_odd = outcome.state() != State::Accepted || took >= SLOW;
        let exemplar = is_odd.then(|| exemplar(job));
        let state = [("state", outcome.state().name())];
        self.job.get_or_create(&state).observe(took.as_secs_f64(), exemplar, None);
    }

    pub fn note_read_back(&self, conclusion: ConclusionKind) {
        self.read_backs.get_or_create(&[("conclusion", conclusion.name())]).inc();
    }

    /// A verification has ended with the provider's status, or is no longer followed.
    pub fn note_verification(&self, status: Option<&str>, since_acceptance: Duration) {
        let status = match status {
            Some("VERIFIED") => "verified",
            Some("FAILED") => "failed",
            None => "given_up",
            Some(_) => "other",
        };
        self.verifications.get_or_create(&[("status", status)]).inc();
        self.verification.observe(since_acceptance.as_secs_f64());
    }

    pub fn note_breaker_opened(&self, cause: &'static str) {
        self.breaker_opened.get_or_create(&[("cause", cause)]).inc();
    }

    pub fn note_session(&self, session: Session) {
        self.sessions.get_or_create(&[("result", session.name())]).inc();
    }

    /// A batch of so many changes was committed, or was not.
    pub fn note_batch(&self, size: usize, took: Duration, is_committed: bool) {
        if is_committed {
            self.batch_size.observe(float(size));
            self.commit.observe(took.as_secs_f64());
        } else {
            self.batches_failed.inc();
        }
    }

    pub fn note_acquire_timeout(&self) {
        self.acquire_timeouts.inc();
    }

    /// A claim was lost before its result was recorded; `is_recorded` says that the verdict now is.
    pub fn note_late(&self, verdict: VerdictKind, is_recorded: bool) {
        self.claims_lost.get_or_create(&[("verdict", verdict.name())]).inc();
        if is_recorded {
            self.late_verdicts.get_or_create(&[("verdict", verdict.name())]).inc();
        }
    }

    /// A failover lost commits of so many jobs.
    pub fn note_lost_commits(&self, are_restored: bool, jobs: usize) {
        let [restored, missing] = LOST_COMMITS;
        let result = if are_restored { restored } else { missing };
        self.lost_commits.get_or_create(&[("result", result)]).inc_by(jobs as u64);
    }

    pub fn note_event_published(&self, kind: EventKind) {
        self.events_published.get_or_create(&[("kind", kind.name())]).inc();
    }

    pub fn note_events_failed(&self) {
        self.event_failures.inc();
    }

    pub fn note_log_event(&self, level: &'static str) {
        self.log_events.get_or_create(&[("level", level)]).inc();
    }

    pub fn note_lines_lost(&self, lost: u64) {
        self.lines_lost.inc_by(lost);
    }

    pub fn note_panic(&self) {
        self.panics.inc();
    }

    /// Takes over the fleet's figures. One that is not among them is 0: there is nothing of it.
    pub fn take_fleet<'a>(
        &self,
        figures: impl Iterator<Item = (&'a str, &'a str, f64)>,
        read_at: SystemTime,
        took: Duration,
    ) {
        let figures: HashMap<_, _> = figures.map(|(figure, part, value)| ((figure, part), value)).collect();
        for ((name, label, parts, _), gauges) in FLEET.iter().zip(&self.fleet) {
            for part in *parts {
                let labels = if label.is_empty() { Vec::new() } else { vec![(*label, *part)] };
                let value = figures.get(&(*name, *part)).copied().unwrap_or_default();
                gauges.get_or_create(&labels).set(value);
            }
        }
        self.fleet_read_at.set(unix_seconds(read_at));
        self.fleet_took.set(took.as_secs_f64());
    }

    /// All of it, in OpenMetrics.
    ///
    /// # Errors
    /// Never: a text can always grow.
    pub fn encode(&self, standing: &Standing) -> Result<String, fmt::Error> {
        self.take(standing);
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    fn take(&self, standing: &Standing) {
        self.requests_in_flight.set(float(standing.requests_in_flight));
        self.requests_max.set(float(standing.requests_max));
        self.jobs_held.set(float(standing.jobs_held));
        for reason in PAUSE_REASONS {
            let pause = standing.paused_for.iter().find(|(paused_for, _)| *paused_for == reason);
            set(&self.paused, [("reason", reason)], flag(pause.is_some()));
            let needs_person = pause.is_some_and(|(_, needs_person)| *needs_person);
            set(&self.needs_person, [("reason", reason)], flag(needs_person));
        }
        for state in BREAKER_STATES {
            set(&self.breaker, [("state", state)], flag(state == standing.breaker));
        }
        self.session.set(flag(standing.has_session));
        let Connections { used, idle, max } = standing.connections;
        set(&self.connections, [("state", "used")], float(used));
        set(&self.connections, [("state", "idle")], float(idle));
        self.connections_max.set(f64::from(max));
        if let Some(skew) = standing.clock_skew {
            self.clock_skew.set(skew as f64);
        }
        for (name, at) in &standing.turned_at {
            set(&self.turned, [("loop", *name)], *at);
        }
        let process = Process::now();
        self.cpu.inc_by((process.cpu.as_secs_f64() - self.cpu.get()).max(0.0));
        self.memory.set(process.memory_bytes as f64);
        self.fds.set(float(process.fds));
    }
}

fn add<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> FloatGauge {
    add(registry, name, help, FloatGauge::default())
}

fn counter(registry: &mut Registry, name: &str, help: &str) -> Counter {
    add(registry, name, help, Counter::default())
}

fn family<const N: usize, M>(registry: &mut Registry, name: &str, help: &str) -> Family<Labels<N>, M>
where
    Family<Labels<N>, M>: Metric + Default + Clone,
{
    add(registry, name, help, Family::default())
}

fn set(gauges: &Gauges<1>, labels: Labels<1>, value: f64) {
    gauges.get_or_create(&labels).set(value);
}

/// Makes a series that nothing has happened in yet.
fn touch<const N: usize>(counters: &Counters<N>, labels: Labels<N>) {
    counters.get_or_create(&labels).inc_by(0);
}

fn labels_of(verdict: &Verdict) -> Labels<2> {
    [("verdict", verdict.name()), ("detail", verdict.detail().unwrap_or_default())]
}

fn end_of(outcome: &Outcome) -> Labels<2> {
    [("state", outcome.state().name()), ("reason_code", outcome.reason_code().unwrap_or_default())]
}

fn exemplar(job: &JobRef) -> Exemplar {
    let trace = job.trace_id().map(|id| ("trace_id", id.to_string()));
    [("job_id", job.id.to_string())].into_iter().chain(trace).collect()
}

fn flag(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}

fn float(count: usize) -> f64 {
    count as f64
}

fn unix_seconds(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn every_verdict() -> Vec<Verdict> {
    let rejected = every_rejection().map(Verdict::Rejected);
    let not_sent = [
        NotSent::Connect,
        NotSent::WindowClosed,
        NotSent::HeldBack,
        NotSent::Shutdown,
        NotSent::ConfigurationUnread,
        NotSent::LinkUnchecked,
    ];
    let unknown = [
        FailurePoint::TimedOut,
        FailurePoint::ConnectionLost,
        FailurePoint::ServerError,
        FailurePoint::UnreadableSuccess,
        FailurePoint::OtherCustomer,
        FailurePoint::AmbiguousStatus,
        FailurePoint::OutOfStep,
    ];
    let mut all = vec![Verdict::Accepted(Acceptance::default()), Verdict::Throttled { retry_after: None }];
    all.extend(rejected);
    all.extend(not_sent.map(Verdict::NotSent));
    all.extend(every_misconfiguration().map(Verdict::Misconfigured));
    all.extend(unknown.map(Verdict::Unknown));
    all
}

fn every_misconfiguration() -> [Misconfiguration; 12] {
    [
        Misconfiguration::ApiKey,
        Misconfiguration::Unauthorized,
        Misconfiguration::Forbidden,
        Misconfiguration::Endpoint,
        Misconfiguration::Redirected,
        Misconfiguration::Signature,
        Misconfiguration::Timestamp,
        Misconfiguration::Undocumented,
        Misconfiguration::LikeOthers,
        Misconfiguration::Proxy,
        Misconfiguration::NotTheProvider,
        Misconfiguration::UnreadableRefusal,
    ]
}

fn every_rejection() -> [Rejection; 8] {
    [
        Rejection::CustomerNotFound,
        Rejection::KycAlreadyInUse,
        Rejection::UpdateLimitExceeded,
        Rejection::FieldRefused,
        Rejection::DocumentTypeUnsupported { supported: Vec::new() },
        Rejection::LinkRefused(LinkField::Front, LinkRefusal::ByHost),
        Rejection::LinkNotFound(LinkField::Front),
        Rejection::NotADocument(LinkField::Front),
    ]
}

fn every_outcome() -> Vec<Outcome> {
    let nobody = Uuid::nil();
    let mut all = vec![
        Outcome::Accepted(Acceptance::default()),
        Outcome::Superseded { by: nobody },
        Outcome::Duplicate { of: nobody },
        Outcome::Exhausted(Exhaustion::Attempts),
        Outcome::Exhausted(Exhaustion::Expired { link: None }),
        Outcome::NeedsReview(Review::FateUnknown),
        Outcome::NeedsReview(Review::LastUpdate),
        Outcome::NeedsReview(Review::NewerFateUnknown { newer: nobody }),
        Outcome::NeedsReview(Review::RefusedOnlyForThisJob),
        Outcome::NeedsReview(Review::RefusedLikeOthers),
    ];
    all.extend(every_rejection().map(Outcome::Rejected));
    all
}

/// What the process takes of the machine. What the system does not say is 0.
struct Process {
    cpu: Duration,
    memory_bytes: u64,
    fds: usize,
}

impl Process {
    fn now() -> Self {
        let cpu = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from).unwrap_or_default();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = resident.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
        let fds = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        Self { cpu, memory_bytes: kib.unwrap_or_default() * 1024, fds }
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    #[test]
    fn every_series_is_there_from_the_start_and_they_are_few() {
        let metrics = Metrics::new();
        let before = metrics.encode(&Standing::default()).expect("a text");
        let series = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
        assert!((300..700).contains(&series(&before)), "{}", series(&before));
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().ok();
        let job = JobRef { id: Uuid::nil(), received_at: OffsetDateTime::UNIX_EPOCH, trace };
        for verdict in every_verdict() {
            metrics.note_attempt(&verdict);
            metrics.note_late(verdict.kind(), true);
        }
        for are_restored in [true, false] {
            metrics.note_lost_commits(are_restored, 1);
        }
        for outcome in every_outcome() {
            metrics.note_end(&outcome, &job, SLOW);
        }
        for receipt in Receipt::ALL {
            metrics.note_delivery(receipt);
        }
        let lost = HttpOutcome::Lost(FailurePoint::TimedOut);
        metrics.note_exchange(Call::Update, &lost, SLOW, Some(&job));
        for status in [Some("VERIFIED"), Some("FAILED"), Some("a word of theirs"), None] {
            metrics.note_verification(status, SLOW);
        }
        let before = series(&before) + FLEET.iter().map(|(_, _, parts, _)| parts.len()).sum::<usize>();
        metrics.take_fleet([("open_jobs", "of others", 1.0)].into_iter(), SystemTime::now(), SLOW);
        let after = metrics.encode(&Standing::default()).expect("a text");
        assert_eq!(series(&after), before, "nothing that happens makes a series");
        let exemplar = r#"# {job_id="00000000-0000-0000-0000-000000000000",trace_id="0af7651916cd43dd8448eb211c80319c"}"#;
        assert!(after.contains(exemplar), "{after}");
        assert!(!after.contains("a word of theirs"));
        assert!(after.ends_with("# EOF\n"));
    }

    #[test]
    fn every_reason_that_a_person_waits_for_is_a_figure() {
        let reviews = every_outcome().into_iter().filter(|outcome| outcome.state() == State::NeedsReview);
        let codes: Vec<_> = reviews.filter_map(|outcome| outcome.reason_code()).collect();
        assert_eq!(codes, REVIEWS);
    }

    #[test]
    fn the_codes_of_checks_are_those_of_the_rejections_by_one() {
        let by_checks = every_rejection().into_iter().filter(Rejection::is_by_check);
        let codes: Vec<_> = by_checks.map(|rejection| rejection.code()).collect();
        assert_eq!(codes, Rejection::CODES_OF_CHECKS);
    }

    #[test]
    fn a_process_says_what_it_takes() {
        let process = Process::now();
        assert!(process.memory_bytes > 1024 * 1024 && process.fds > 2 && !process.cpu.is_zero());
    }
}
