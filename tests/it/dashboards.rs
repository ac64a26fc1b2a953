//! The dashboards of deploy/monitoring, as tables: what each panel shows, in which unit, and how it is
//! asked for. `make docs` writes the files for Grafana from them.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::alerts::recorded;
use crate::metrics;

/// What may be asked, and of whom.
pub struct Dashboard {
    uid: &'static str,
    title: &'static str,
    about: &'static str,
    /// The data source's type, as Grafana's plugins are named, and what people call it.
    source: (&'static str, &'static str),
    /// How often it asks by itself, and what it looks back over at first.
    refresh: &'static str,
    since: &'static str,
    /// What a person may enter: its name, and what it is.
    entries: &'static [(&'static str, &'static str)],
    rows: &'static [Row],
}

struct Row {
    title: &'static str,
    panels: &'static [Panel],
}

pub struct Panel {
    pub title: &'static str,
    about: &'static str,
    /// As Grafana names it.
    unit: &'static str,
    shape: Shape,
    queries: &'static [Query],
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Shape {
    /// One number.
    Number,
    Lines,
    /// Lines over buckets that keep examples: a dot for each leads to its job.
    LinesWithExemplars,
    /// What happened within each step, stacked.
    Bars,
    Table,
    WideTable,
}

/// What is asked, and the name of what comes.
type Query = (&'static str, &'static str);

/// The quantile of a histogram's buckets, over all replicas.
macro_rules! quantile {
    ($share:literal, $buckets:literal) => {
        concat!("histogram_quantile(", $share, ", sum by (le) (rate(", $buckets, "[$__rate_interval])))")
    };
}

/// Of every process that is a replica, with its version.
macro_rules! each_replica {
    ($value:literal) => {
        concat!($value, " * on (job, instance) group_left (version) kyc_build_info")
    };
}

const SECONDS: &str = "s";
const COUNT: &str = "short";
const RATE: &str = "ops";
const SHARE: &str = "percentunit";

pub const METRICS: Dashboard = Dashboard {
    uid: "kyc-worker",
    title: "kyc-worker",
    about: "What the replicas count and measure. docs/metrics.md has every metric, docs/operations.md what to do.",
    source: ("prometheus", "Prometheus"),
    refresh: "30s",
    since: "now-6h",
    entries: &[],
    rows: &[
        Row {
            title: "Does it work?",
            panels: &[
                Panel {
                    title: "Replicas",
                    about: "Those that live, and those of them whose intake is open.",
                    unit: COUNT,
                    shape: Shape::Number,
                    queries: &[
                        ("max(kyc_replicas_alive)", "alive"),
                        ("max(kyc_replicas_working)", "working"),
                    ],
                },
                Panel {
                    title: "Late jobs",
                    about: "Due for more than a minute, and taken up by nobody. Not 0: no replica works.",
                    unit: COUNT,
                    shape: Shape::Number,
                    queries: &[("max(kyc_late_jobs)", "late")],
                },
                Panel {
                    title: "Jobs for a person",
                    about: "They wait until somebody decides: `kyc-worker list --state needs_review`.",
                    unit: COUNT,
                    shape: Shape::Number,
                    queries: &[("max(sum by (instance) (kyc_waiting_for_person))", "waiting")],
                },
                Panel {
                    title: "Dead letters of a day",
                    about: "Deliveries that could not become jobs: `kyc-worker dead-letters list`.",
                    unit: COUNT,
                    shape: Shape::Number,
                    queries: &[("max(sum by (instance) (kyc_dead_lettered_day))", "dead letters")],
                },
                Panel {
                    title: "Events not published",
                    about: "With OUTCOME_EVENTS=true, how many events upstream is still to be told.",
                    unit: COUNT,
                    shape: Shape::Number,
                    queries: &[("max(kyc_events_waiting)", "waiting")],
                },
                Panel {
                    title: "Verifications overdue",
                    about: "They take longer than VERIFICATION_DEADLINE. Ask the provider; send nothing.",
                    unit: COUNT,
                    shape: Shape::Number,
                    queries: &[("max(kyc_verifications_overdue)", "overdue")],
                },
                Panel {
                    title: "Age of the fleet's figures",
                    about: "Since one replica read for all what is open, waits or is overdue.",
                    unit: SECONDS,
                    shape: Shape::Number,
                    queries: &[("time() - max(kyc_fleet_timestamp_seconds)", "age")],
                },
            ],
        },
        Row {
            title: "Intake",
            panels: &[
                Panel {
                    title: "Paused replicas",
                    about: "By what their intake is paused for, and whether a person must end that.",
                    unit: COUNT,
                    shape: Shape::Lines,
                    queries: &[
                        ("sum by (reason) (kyc_intake_paused)", "{{reason}}"),
                        ("sum by (reason) (kyc_intake_needs_person)", "{{reason}}, needs a person"),
                    ],
                },
                Panel {
                    title: "Breaker",
                    about: "In which state the replicas' breakers are.",
                    unit: COUNT,
                    shape: Shape::Lines,
                    queries: &[("sum by (state) (kyc_breaker_state)", "{{state}}")],
                },
                Panel {
                    title: "What opened the breaker",
                    about: "docs/operations.md, section 2, says what to look at.",
                    unit: COUNT,
                    shape: Shape::Bars,
                    queries: &[(
                        "sum by (cause) (increase(kyc_breaker_opened_total[$__rate_interval])) > 0",
                        "{{cause}}",
                    )],
                },
                Panel {
                    title: "Sessions with the broker",
                    about: "How many replicas have one, and what became of those that were tried.",
                    unit: COUNT,
                    shape: Shape::Lines,
                    queries: &[
                        ("sum(kyc_broker_session)", "open"),
                        (
                            "sum by (result) (increase(kyc_broker_sessions_total[$__rate_interval]))",
                            "{{result}} within a step",
                        ),
                    ],
                },
                Panel {
                    title: "From publication to receipt",
                    about: "How long messages that carry a timestamp wait in the queue, and how old the newest is \
                            that was received.",
                    unit: SECONDS,
                    shape: Shape::Lines,
                    queries: &[
                        (quantile!("0.5", "kyc_delivery_age_seconds_bucket"), "50 %"),
                        (quantile!("0.95", "kyc_delivery_age_seconds_bucket"), "95 %"),
                        ("time() - max(kyc_last_delivery_published_timestamp_seconds > 0)", "the newest"),
                    ],
                },
                Panel {
                    title: "Events to upstream",
                    about: "What the broker has confirmed, and how often events could not be published.",
                    unit: COUNT,
                    shape: Shape::Bars,
                    queries: &[
                        (
                            "sum by (kind) (increase(kyc_events_published_total[$__rate_interval]))",
                            "{{kind}}",
                        ),
                        ("sum(increase(kyc_event_failures_total[$__rate_interval]))", "not published"),
                    ],
                },
                Panel {
                    title: "The oldest event",
                    about: "How long the event has waited that upstream is to be told next.",
                    unit: SECONDS,
                    shape: Shape::Lines,
                    queries: &[("max(kyc_oldest_event_seconds)", "waits")],
                },
                Panel {
                    title: "The provider's clock",
                    about: "Less the replica's. At two minutes a replica stops sending.",
                    unit: SECONDS,
                    shape: Shape::Lines,
                    queries: &[("max by (instance) (kyc_provider_clock_skew_seconds)", "{{instance}}")],
                },
            ],
        },
        Row {
            title: "Work",
            panels: &[
                Panel {
                    title: "Deliveries",
                    about: "By what became of them.",
                    unit: RATE,
                    shape: Shape::Lines,
                    queries: &[(
                        "sum by (receipt) (rate(kyc_deliveries_total[$__rate_interval]))",
                        "{{receipt}}",
                    )],
                },
                Panel {
                    title: "Attempts",
                    about: "By verdict. Each that is accepted or unknown may have spent one of three updates.",
                    unit: RATE,
                    shape: Shape::Lines,
                    queries: &[(
                        "sum by (verdict) (rate(kyc_attempts_total[$__rate_interval]))",
                        "{{verdict}}",
                    )],
                },
                Panel {
                    title: "Ends of jobs",
                    about: "By the state that they ended in.",
                    unit: RATE,
                    shape: Shape::Lines,
                    queries: &[(
                        "sum by (state) (rate(kyc_jobs_ended_total[$__rate_interval]))",
                        "{{state}}",
                    )],
                },
                Panel {
                    title: "Attempts that were not accepted",
                    about: "By verdict and its cause.",
                    unit: COUNT,
                    shape: Shape::Bars,
                    queries: &[(
                        r#"sum by (verdict, detail) (increase(kyc_attempts_total{verdict!="accepted"}[$__rate_interval])) > 0"#,
                        "{{verdict}} {{detail}}",
                    )],
                },
                Panel {
                    title: "Reads of unknown outcomes",
                    about: "By what they concluded.",
                    unit: COUNT,
                    shape: Shape::Bars,
                    queries: &[(
                        "sum by (conclusion) (increase(kyc_read_backs_total[$__rate_interval])) > 0",
                        "{{conclusion}}",
                    )],
                },
                Panel {
                    title: "Jobs that ended without an acceptance",
                    about: "By state and reason code.",
                    unit: COUNT,
                    shape: Shape::Bars,
                    queries: &[(
                        r#"sum by (state, reason_code) (increase(kyc_jobs_ended_total{state!="accepted"}[$__rate_interval])) > 0"#,
                        "{{state}} {{reason_code}}",
                    )],
                },
                Panel {
                    title: "Open jobs",
                    about: "Received and not done, in all replicas.",
                    unit: COUNT,
                    shape: Shape::Lines,
                    queries: &[("max by (state) (kyc_open_jobs)", "{{state}}")],
                },
                Panel {
                    title: "The oldest open job",
                    about: "Since its receipt.",
                    unit: SECONDS,
                    shape: Shape::Lines,
                    queries: &[("max by (state) (kyc_oldest_open_seconds)", "{{state}}")],
                },
                Panel {
                    title: "Slots",
                    about: "Updates that the provider has not answered yet, how many there may be, and the jobs that \
                            are held for them.",
                    unit: COUNT,
                    shape: Shape::Lines,
                    queries: &[
                        ("sum(kyc_requests_in_flight)", "in flight"),
                        ("sum(kyc_requests_in_flight_max)", "in flight at most"),
                        ("sum(kyc_jobs_held)", "jobs held"),
                    ],
                },
            ],
        },
        Row {
            title: "How long it takes",
            panels: &[
                Panel {
                    title: "From receipt to end",
                    about: "A dot is a job that took more than a second or was not accepted.",
                    unit: SECONDS,
                    shape: Shape::LinesWithExemplars,
                    queries: &[
                        (quantile!("0.5", "kyc_job_duration_seconds_bucket"), "50 %"),
                        (quantile!("0.95", "kyc_job_duration_seconds_bucket"), "95 %"),
                        (quantile!("0.99", "kyc_job_duration_seconds_bucket"), "99 %"),
                    ],
                },
                Panel {
                    title: "The provider's answers to updates",
                    about: "A dot is a job whose answer took more than a second or was no 2xx.",
                    unit: SECONDS,
                    shape: Shape::LinesWithExemplars,
                    queries: &[
                        (
                            quantile!(
                                "0.5",
                                r#"kyc_provider_request_duration_seconds_bucket{call="update"}"#
                            ),
                            "50 %",
                        ),
                        (
                            quantile!(
                                "0.99",
                                r#"kyc_provider_request_duration_seconds_bucket{call="update"}"#
                            ),
                            "99 %",
                        ),
                    ],
                },
                Panel {
                    title: "Requests to the provider",
                    about: "By what was asked and how it was answered.",
                    unit: RATE,
                    shape: Shape::Lines,
                    queries: &[(
                        "sum by (call, outcome) (rate(kyc_provider_request_duration_seconds_count[$__rate_interval])) > 0",
                        "{{call}} {{outcome}}",
                    )],
                },
                Panel {
                    title: "Jobs that do not end well in time",
                    about: "The objective is 1 % of 28 days at most. Well: accepted, rejected by the provider, \
                            superseded or a duplicate, within five minutes of receipt.",
                    unit: SHARE,
                    shape: Shape::Lines,
                    queries: &[
                        ("kyc:jobs_not_well_in_time:ratio_rate5m", "5 minutes"),
                        ("kyc:jobs_not_well_in_time:ratio_rate1h", "1 hour"),
                        ("kyc:jobs_not_well_in_time:ratio_rate6h", "6 hours"),
                        ("kyc:jobs_not_well_in_time:ratio_rate3d", "3 days"),
                    ],
                },
                Panel {
                    title: "Commits",
                    about: "How long a batch takes to be written and committed. Slow: the database.",
                    unit: SECONDS,
                    shape: Shape::Lines,
                    queries: &[
                        (quantile!("0.5", "kyc_journal_commit_duration_seconds_bucket"), "50 %"),
                        (quantile!("0.99", "kyc_journal_commit_duration_seconds_bucket"), "99 %"),
                    ],
                },
                Panel {
                    title: "Changes a commit",
                    about: "On average.",
                    unit: COUNT,
                    shape: Shape::Lines,
                    queries: &[(
                        "sum(rate(kyc_journal_batch_size_sum[$__rate_interval])) / sum(rate(kyc_journal_batch_size_count[$__rate_interval]))",
                        "changes",
                    )],
                },
            ],
        },
        Row {
            title: "Verifications",
            panels: &[
                Panel {
                    title: "Followed",
                    about: "Accepted updates whose verification has not ended.",
                    unit: COUNT,
                    shape: Shape::Lines,
                    queries: &[
                        ("max(kyc_verifications_running)", "running"),
                        ("max(kyc_verifications_overdue)", "overdue"),
                    ],
                },
                Panel {
                    title: "Ends of verifications",
                    about: "By how they ended.",
                    unit: RATE,
                    shape: Shape::Lines,
                    queries: &[(
                        "sum by (status) (rate(kyc_verifications_ended_total[$__rate_interval]))",
                        "{{status}}",
                    )],
                },
                Panel {
                    title: "From acceptance to the verification's end",
                    about: "As the reads found it, and how late the reads come.",
                    unit: SECONDS,
                    shape: Shape::Lines,
                    queries: &[
                        (quantile!("0.5", "kyc_verification_duration_seconds_bucket"), "50 %"),
                        (quantile!("0.95", "kyc_verification_duration_seconds_bucket"), "95 %"),
                        ("max(kyc_verification_reads_late_seconds)", "the latest read is late by"),
                    ],
                },
            ],
        },
        Row {
            title: "Replicas",
            panels: &[
                Panel {
                    title: "CPU",
                    about: "In cores.",
                    unit: COUNT,
                    shape: Shape::Lines,
                    queries: &[(
                        each_replica!("rate(process_cpu_seconds_total[$__rate_interval])"),
                        "{{instance}} {{version}}",
                    )],
                },
                Panel {
                    title: "Memory",
                    about: "Resident.",
                    unit: "bytes",
                    shape: Shape::Lines,
                    queries: &[(each_replica!("process_resident_memory_bytes"), "{{instance}} {{version}}")],
                },
                Panel {
                    title: "Descriptors",
                    about: "Files and sockets.",
                    unit: COUNT,
                    shape: Shape::Lines,
                    queries: &[(each_replica!("process_open_fds"), "{{instance}} {{version}}")],
                },
                Panel {
                    title: "Running for",
                    about: "A line that falls to 0 is a start.",
                    unit: SECONDS,
                    shape: Shape::Lines,
                    queries: &[(
                        each_replica!("(time() - process_start_time_seconds)"),
                        "{{instance}} {{version}}",
                    )],
                },
                Panel {
                    title: "Loops",
                    about: "Since each last turned. At two minutes the replica is not alive any more.",
                    unit: SECONDS,
                    shape: Shape::Lines,
                    queries: &[(
                        "time() - min by (instance, loop) (kyc_loop_turned_timestamp_seconds)",
                        "{{instance}} {{loop}}",
                    )],
                },
                Panel {
                    title: "Connections to the database",
                    about: "Of all replicas.",
                    unit: COUNT,
                    shape: Shape::Lines,
                    queries: &[
                        ("sum by (state) (kyc_database_connections)", "{{state}}"),
                        ("sum(kyc_database_connections_max)", "at most"),
                    ],
                },
                Panel {
                    title: "Warnings and errors",
                    about: "An error is a person's to act on.",
                    unit: COUNT,
                    shape: Shape::Bars,
                    queries: &[(
                        "sum by (level) (increase(kyc_log_events_total[$__rate_interval]))",
                        "{{level}}",
                    )],
                },
                Panel {
                    title: "What should be rare",
                    about: "Claims that were lost, commits that a failover lost, batches that were not committed, waits for a connection in vain, log \
                            lines that nobody read, and panics, which are bugs.",
                    unit: COUNT,
                    shape: Shape::Bars,
                    queries: &[
                        (
                            "sum by (verdict) (increase(kyc_claims_lost_total[$__rate_interval]))",
                            "claims lost, {{verdict}}",
                        ),
                        (
                            "sum by (verdict) (increase(kyc_late_verdicts_total[$__rate_interval]))",
                            "late verdicts, {{verdict}}",
                        ),
                        (
                            "sum by (result) (increase(kyc_lost_commits_total[$__rate_interval]))",
                            "jobs of lost commits, {{result}}",
                        ),
                        (
                            "sum(increase(kyc_journal_batches_failed_total[$__rate_interval]))",
                            "batches not committed",
                        ),
                        (
                            "sum(increase(kyc_database_acquire_timeouts_total[$__rate_interval]))",
                            "waits for a connection",
                        ),
                        ("sum(increase(kyc_log_lines_lost_total[$__rate_interval]))", "log lines lost"),
                        ("sum(increase(kyc_panics_total[$__rate_interval]))", "panics"),
                    ],
                },
                Panel {
                    title: "Spans of traces",
                    about: "What was made and not exported is lost, but for 2,048 that may wait.",
                    unit: COUNT,
                    shape: Shape::Lines,
                    queries: &[(
                        "sum by (result) (increase(kyc_spans_total[$__rate_interval]))",
                        "{{result}}",
                    )],
                },
                Panel {
                    title: "Reading the fleet's figures",
                    about: "How long it takes. The next reading comes after fifty times as long, or 15 s.",
                    unit: SECONDS,
                    shape: Shape::Lines,
                    queries: &[("max(kyc_fleet_reading_seconds)", "reading")],
                },
            ],
        },
    ],
};

/// An id that was entered, or null.
macro_rules! entered {
    ($before:literal, $name:literal, $after:literal) => {
        concat!($before, "nullif(trim(${", $name, ":sqlstring}), '')::uuid", $after)
    };
}

pub const DATABASE: Dashboard = Dashboard {
    uid: "kyc-worker-database",
    title: "kyc-worker: jobs and customers",
    about: "What the tables say, by the views of docs/database.md. The data source logs in as a member of \
            kyc_auditor, who reads those alone.",
    source: ("grafana-postgresql-datasource", "PostgreSQL"),
    // It reads each job of its span: no tab that was left open may go on asking.
    refresh: "",
    since: "now-1h",
    entries: &[("job", "Job"), ("customer", "Customer")],
    rows: &[
        Row {
            title: "Now",
            panels: &[
                Panel {
                    title: "What the fleet knows",
                    about: "As one replica read it for all.",
                    unit: COUNT,
                    shape: Shape::Table,
                    queries: &[("select figure, part, value from fleet_figure order by figure, part", "")],
                },
                Panel {
                    title: "How fresh that is",
                    about: "Older than three minutes: the log says why.",
                    unit: SECONDS,
                    shape: Shape::Table,
                    queries: &[(
                        "select read_at, extract(epoch from now() - read_at)::float8 as age, took_seconds as took from fleet_reading",
                        "",
                    )],
                },
                Panel {
                    title: "Jobs for a person",
                    about: "The oldest hundred: docs/operations.md, section 3.",
                    unit: COUNT,
                    shape: Shape::WideTable,
                    queries: &[(
                        "select received_at, job_id, customer_id, reason_code, reason, attempts from open_work where needs_person order by received_at limit 100",
                        "",
                    )],
                },
                Panel {
                    title: "Late jobs",
                    about: "Due for more than a minute, and taken up by nobody. Any: no replica works.",
                    unit: COUNT,
                    shape: Shape::WideTable,
                    queries: &[(
                        "select due_at, job_id, customer_id, state, waiting_for, reason_code, claimed_by from open_work where is_late and due_at < now() - interval '1 minute' order by due_at limit 100",
                        "",
                    )],
                },
            ],
        },
        Row {
            title: "Jobs that ended in this span",
            panels: &[
                Panel {
                    title: "Ends",
                    about: "By the state that they ended in.",
                    unit: COUNT,
                    shape: Shape::Bars,
                    queries: &[(
                        "select $__timeGroupAlias(ended_at, $__interval), state as metric, count(*) as value from job_overview where $__timeFilter(ended_at) group by 1, 2 order by 1",
                        "",
                    )],
                },
                Panel {
                    title: "From receipt to accepted or rejected",
                    about: "By when they ended.",
                    unit: SECONDS,
                    shape: Shape::Lines,
                    queries: &[(
                        r#"select $__timeGroupAlias(ended_at, $__interval), percentile_cont(0.5) within group (order by extract(epoch from took)::float8) as "50 %", percentile_cont(0.95) within group (order by extract(epoch from took)::float8) as "95 %" from job_overview where $__timeFilter(ended_at) and state in ('accepted', 'rejected') group by 1 order by 1"#,
                        "",
                    )],
                },
                Panel {
                    title: "How they ended",
                    about: "With the provider's latest word on the verification.",
                    unit: COUNT,
                    shape: Shape::Table,
                    queries: &[(
                        "select state, reason_code, verification_status, count(*) as jobs from job_overview where $__timeFilter(ended_at) group by 1, 2, 3 order by 4 desc",
                        "",
                    )],
                },
            ],
        },
        Row {
            title: "The provider in this span",
            panels: &[
                Panel {
                    title: "Attempts that were not accepted",
                    about: "By hour and cause.",
                    unit: COUNT,
                    shape: Shape::Bars,
                    queries: &[(
                        "select hour as time, concat_ws(' ', verdict, detail, http_status) as metric, attempts as value from provider_errors_hourly where $__timeFilter(hour) order by 1",
                        "",
                    )],
                },
                Panel {
                    title: "What became of updates",
                    about: "Those that were or may have been made, and how that is known.",
                    unit: COUNT,
                    shape: Shape::Table,
                    queries: &[(
                        "select fate, evidence, count(*) as updates from reconciliation where $__timeFilter(begun_at) group by 1, 2 order by 3 desc",
                        "",
                    )],
                },
                Panel {
                    title: "Updates that a person must find out about",
                    about: "Compare the document at the provider: docs/operations.md, section 3.",
                    unit: COUNT,
                    shape: Shape::WideTable,
                    queries: &[(
                        "select begun_at, job_id, customer_id, attempt, http_status, worker from reconciliation where fate = 'unknown' and $__timeFilter(begun_at) order by begun_at limit 100",
                        "",
                    )],
                },
            ],
        },
        Row {
            title: "One job, one customer",
            panels: &[
                Panel {
                    title: "The job",
                    about: "Whose id is entered above. `kyc-worker show` tells its whole story.",
                    unit: COUNT,
                    shape: Shape::WideTable,
                    queries: &[(
                        entered!(
                            "select job_id, customer_id, document_type, state, waiting_for, reason_code, reason, requested_at, received_at, ended_at, due_at, deliveries, attempts, last_verdict, last_http_status, evidence, verification_status, failure_reason, correlation_id from job_overview where job_id = ",
                            "job",
                            ""
                        ),
                        "",
                    )],
                },
                Panel {
                    title: "The customer's budget",
                    about: "How many of their updates are spent, or may be.",
                    unit: COUNT,
                    shape: Shape::WideTable,
                    queries: &[(
                        entered!(
                            "select customer_id, spent, accepted_here, in_doubt_here, elsewhere, last_spent_at, limit_reached_at, budget_set_at, budget_set_by, budget_note from customer_budget where customer_id = ",
                            "customer",
                            ""
                        ),
                        "",
                    )],
                },
                Panel {
                    title: "The customer's jobs",
                    about: "The newest hundred.",
                    unit: COUNT,
                    shape: Shape::WideTable,
                    queries: &[(
                        entered!(
                            "select requested_at, job_id, document_type, state, reason_code, received_at, ended_at, attempts, verification_status, failure_reason from job_overview where customer_id = ",
                            "customer",
                            " order by requested_at desc limit 100"
                        ),
                        "",
                    )],
                },
                Panel {
                    title: "The customer's updates",
                    about: "Each that was or may have been made at the provider.",
                    unit: COUNT,
                    shape: Shape::WideTable,
                    queries: &[(
                        entered!(
                            "select begun_at, job_id, attempt, fate, evidence, provider_reference, verification_status from reconciliation where customer_id = ",
                            "customer",
                            " order by begun_at"
                        ),
                        "",
                    )],
                },
            ],
        },
    ],
};

/// The version of Grafana 12's dashboards.
const SCHEMA_VERSION: u32 = 41;

/// A dashboard's columns.
const WIDTH: u32 = 24;

impl Shape {
    /// Grafana's name of it, and its width and height.
    fn look(self) -> (&'static str, u32, u32) {
        match self {
            Self::Number => ("stat", 4, 4),
            Self::Lines | Self::LinesWithExemplars | Self::Bars => ("timeseries", 8, 8),
            Self::Table => ("table", 8, 8),
            Self::WideTable => ("table", WIDTH, 6),
        }
    }
}

impl Dashboard {
    pub fn panels(&self) -> impl Iterator<Item = &Panel> {
        self.rows.iter().flat_map(|row| row.panels)
    }

    pub fn path(&self) -> String {
        format!("deploy/monitoring/dashboards/{}.json", self.uid)
    }

    /// The file for Grafana.
    pub fn file(&self) -> String {
        let (plugin, source) = self.source;
        let mut variables = vec![json!({
            "name": "source", "label": source, "type": "datasource", "query": plugin,
            "current": {}, "options": [], "refresh": 1, "regex": "", "hide": 0,
        })];
        variables.extend(self.entries.iter().map(|(name, label)| {
            json!({ "name": name, "label": label, "type": "textbox", "query": "", "current": {}, "options": [], "hide": 0 })
        }));
        let dashboard = json!({
            "id": null,
            "uid": self.uid,
            "title": self.title,
            "description": self.about,
            "tags": ["kyc-worker"],
            "schemaVersion": SCHEMA_VERSION,
            "editable": true,
            "graphTooltip": 1,
            "refresh": self.refresh,
            "time": { "from": self.since, "to": "now" },
            "timezone": "utc",
            "annotations": { "list": [] },
            "links": [{
                "title": "", "type": "dashboards", "tags": ["kyc-worker"], "asDropdown": false,
                "includeVars": false, "keepTime": true, "targetBlank": false, "icon": "dashboard",
            }],
            "templating": { "list": variables },
            "panels": self.grid(),
        });
        format!("{dashboard:#}\n")
    }

    /// The panels, each row's from left to right and then below.
    fn grid(&self) -> Vec<Value> {
        let (mut placed, mut y) = (Vec::new(), 0);
        for row in self.rows {
            let (mut x, mut height) = (0, 1);
            placed.push(json!({
                "id": placed.len() + 1, "type": "row", "title": row.title, "collapsed": false, "panels": [],
                "gridPos": { "x": 0, "y": y, "w": WIDTH, "h": height },
            }));
            // The first panel begins below the row's title.
            x += WIDTH;
            for panel in row.panels {
                let (_, w, h) = panel.shape.look();
                if x + w > WIDTH {
                    (x, y, height) = (0, y + height, 0);
                }
                placed.push(panel.placed(placed.len() + 1, self, json!({ "x": x, "y": y, "w": w, "h": h })));
                (x, height) = (x + w, height.max(h));
            }
            y += height;
        }
        placed
    }
}

impl Panel {
    pub fn queries(&self) -> impl Iterator<Item = &'static str> {
        self.queries.iter().map(|(query, _)| *query)
    }

    pub fn has_exemplars(&self) -> bool {
        self.shape == Shape::LinesWithExemplars
    }

    /// Whether it is drawn over time.
    fn is_drawn(&self) -> bool {
        self.shape.look().0 == "timeseries"
    }

    fn placed(&self, id: usize, dashboard: &Dashboard, place: Value) -> Value {
        let source = json!({ "type": dashboard.source.0, "uid": "${source}" });
        let targets = self.queries.iter().zip('A'..).map(|((query, legend), id)| {
            let mut target = json!({ "refId": id, "datasource": source, "editorMode": "code" });
            let own = match dashboard.source.0 {
                "prometheus" => json!({
                    "expr": query, "legendFormat": legend, "range": self.is_drawn(), "instant": !self.is_drawn(),
                    "exemplar": self.has_exemplars(),
                }),
                _ => json!({
                    "rawSql": query, "rawQuery": true, "format": if self.is_drawn() { "time_series" } else { "table" },
                }),
            };
            for (name, value) in own.as_object().into_iter().flatten() {
                target[name] = value.clone();
            }
            target
        });
        let custom = match self.shape {
            Shape::Bars => {
                json!({ "drawStyle": "bars", "fillOpacity": 80, "stacking": { "mode": "normal", "group": "A" } })
            }
            Shape::Lines | Shape::LinesWithExemplars => {
                json!({ "drawStyle": "line", "fillOpacity": 5, "showPoints": "auto" })
            }
            Shape::Number | Shape::Table | Shape::WideTable => json!({}),
        };
        let options = match self.shape.look().0 {
            "timeseries" => json!({
                "legend": { "displayMode": "list", "placement": "bottom", "showLegend": true },
                "tooltip": { "mode": "multi", "sort": "desc" },
            }),
            "stat" => {
                json!({ "reduceOptions": { "calcs": ["lastNotNull"] }, "graphMode": "none", "textMode": "auto" })
            }
            _ => json!({ "showHeader": true }),
        };
        // An id in a table leads to its job or customer; a duration has its unit, and nothing else.
        let is_table = self.shape.look().0 == "table";
        let link = |column: &str, entry: &str| {
            let url = format!("/d/{}?var-{entry}=${{__value.raw}}", DATABASE.uid);
            let link = json!([{ "title": format!("This {entry}"), "url": url }]);
            json!({ "matcher": { "id": "byName", "options": column }, "properties": [{ "id": "links", "value": link }] })
        };
        let unit = |column: &str| json!({ "matcher": { "id": "byName", "options": column }, "properties": [{ "id": "unit", "value": SECONDS }] });
        let overrides = match is_table {
            true => vec![link("job_id", "job"), link("customer_id", "customer"), unit("age"), unit("took")],
            false => Vec::new(),
        };
        json!({
            "id": id,
            "type": self.shape.look().0,
            "title": self.title,
            "description": self.about,
            "gridPos": place,
            "datasource": source,
            "fieldConfig": {
                "defaults": { "unit": if is_table { "none" } else { self.unit }, "custom": custom },
                "overrides": overrides,
            },
            "options": options,
            "targets": targets.collect::<Vec<_>>(),
        })
    }
}

#[test]
fn every_panel_names_metrics_that_are_there_and_every_metric_has_one() {
    let catalogue = metrics::catalogue();
    let mut shown = String::new();
    for panel in METRICS.panels() {
        for (query, legend) in panel.queries {
            metrics::check_names(panel.title, query, &catalogue, &recorded());
            for label in legend.split("{{").skip(1).filter_map(|rest| rest.split("}}").next()) {
                let is_kept = ["(", ", "].iter().any(|before| query.contains(&format!("{before}{label}")));
                assert!(is_kept, "{}: {query} has no {label}", panel.title);
            }
            shown.push_str(query);
        }
    }
    for sample in catalogue.keys() {
        let metric = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| sample.strip_suffix(suffix));
        assert!(shown.contains(metric.unwrap_or(sample)), "no panel shows {sample}");
    }
}

/// What the panels over the database ask, as Grafana would send it: of a day, of this job and customer.
/// Each with its panel's title, and whether it is drawn over time.
pub fn statements(job_id: Uuid, customer_id: Uuid) -> Vec<(&'static str, bool, String)> {
    let as_sent = |query: &str| {
        let mut sent = query
            .replace("${job:sqlstring}", &format!("'{job_id}'"))
            .replace("${customer:sqlstring}", &format!("'{customer_id}'"))
            .replace(", $__interval)", ")");
        for (of_grafana, of_postgres) in [
            ("$__timeFilter(", "between now() - interval '1 day' and now()"),
            ("$__timeGroupAlias(", "as \"time\""),
        ] {
            while let Some((before, rest)) = sent.split_once(of_grafana) {
                let (column, after) = rest.split_once(')').expect("an end");
                let column = match of_grafana {
                    "$__timeFilter(" => column.to_owned(),
                    _ => format!("floor(extract(epoch from {column}) / 60) * 60"),
                };
                sent = format!("{before}{column} {of_postgres}{after}");
            }
        }
        assert!(!sent.contains('$'), "{sent}");
        sent
    };
    let panels = DATABASE.panels().flat_map(|panel| panel.queries().map(move |query| (panel, query)));
    panels.map(|(panel, query)| (panel.title, panel.is_drawn(), as_sent(query))).collect()
}
