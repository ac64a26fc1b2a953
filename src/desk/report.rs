//! Where the work stands: what came and went since a time, and what is open now.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use sqlx::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::desk::story::AttemptView;
use crate::domain::state::State;
use crate::domain::verdict::Rejection;
use crate::journal::pause::{Pause, current_pause};
use crate::journal::replicas::{WorkerView, workers};

#[derive(Debug, Serialize)]
pub struct Report {
    /// Since when what came and went is counted.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// The pause that holds, if one does.
    pub pause: Option<Pause>,
    /// Every replica that lives or died lately.
    pub workers: Vec<WorkerView>,
    pub flow: Flow,
    /// How many submissions are in each state: all that are open, and those that ended since.
    pub states: Vec<StateCount>,
    /// How old what is open is.
    pub open_by_age: Vec<OpenByAge>,
    /// The open submission received first.
    pub oldest_open: Option<OpenWork>,
    /// The submission whose outcome is unknown the longest.
    pub oldest_unknown: Option<OpenWork>,
    /// The submission that waits for a person the longest.
    pub oldest_needs_review: Option<OpenWork>,
    /// The verifications that are followed.
    pub verifications: Verifications,
    /// Outcome events that are not published yet.
    pub events_waiting: EventsWaiting,
    /// What waits for a second person.
    pub proposals: ProposalsWaiting,
    /// How many of the customers whose jobs ended since have spent all their updates, or may have.
    pub customers_at_limit: i64,
    /// How many pairs of jobs of one customer, received since, nothing orders: both were asked
    /// for at the same time, or within a minute of each other and dated by their receipt alone.
    pub unordered_pairs: i64,
    /// How many deliveries were dead-lettered since, by reason.
    pub dead_lettered: Vec<ReasonCount>,
    /// The jobs of which a failover lost commits since, those first that nobody could write again.
    pub lost_commits: LostCommits,
    /// The last attempts since that were not answered as they should be, the latest first. A
    /// rejection is an answer.
    pub last_errors: Vec<AttemptView>,
}

/// What came and went, and how long it took from receipt to an acceptance or a rejection.
#[derive(Debug, Serialize)]
pub struct Flow {
    pub received: i64,
    pub ended: i64,
    /// Of those, how many spent no update because a signed link was to end, or a check found before the send
    /// that the update would be spent in vain.
    pub spared: i64,
    pub p50_ms: Option<f64>,
    pub p90_ms: Option<f64>,
    pub p95_ms: Option<f64>,
    pub p99_ms: Option<f64>,
    pub max_ms: Option<f64>,
}

/// How many submissions are in a state, by reason.
#[derive(Debug, Serialize)]
pub struct StateCount {
    pub state: String,
    pub reason_code: Option<String>,
    pub count: i64,
}

/// How many open submissions of a state are how old.
#[derive(Debug, Serialize)]
pub struct OpenByAge {
    pub state: String,
    pub under_1m: i64,
    pub under_10m: i64,
    pub under_1h: i64,
    pub under_1d: i64,
    pub older: i64,
}

/// The verifications that are followed.
#[derive(Debug, Serialize)]
pub struct Verifications {
    pub running: i64,
    /// How many of them take longer than they should.
    pub overdue: i64,
    /// Since when the longest one runs.
    #[serde(with = "time::serde::rfc3339::option")]
    pub oldest_since: Option<OffsetDateTime>,
}

/// The outcome events that are not published yet.
#[derive(Debug, Serialize)]
pub struct EventsWaiting {
    pub count: i64,
    /// Since when the first of them waits.
    #[serde(with = "time::serde::rfc3339::option")]
    pub oldest_since: Option<OffsetDateTime>,
}

/// The proposals that nobody has decided on.
#[derive(Debug, Serialize)]
pub struct ProposalsWaiting {
    pub count: i64,
    /// Since when the first of them waits.
    #[serde(with = "time::serde::rfc3339::option")]
    pub oldest_since: Option<OffsetDateTime>,
}

/// What failovers lost of what replicas had committed.
#[derive(Debug, Serialize)]
pub struct LostCommits {
    /// Of how many jobs it was written again.
    pub restored: i64,
    /// Of how many it was not: a person must act.
    pub missing: i64,
    /// Twenty of them.
    pub jobs: Vec<LostJob>,
}

/// What a failover lost of a job.
#[derive(Debug, Serialize)]
pub struct LostJob {
    pub job_id: Uuid,
    pub customer_id: Uuid,
    /// The first that was lost: job, attempt or result.
    pub lost: String,
    /// The last attempt that the replica remembered, and what it came to.
    pub attempt: Option<i32>,
    pub verdict: Option<String>,
    pub worker: String,
    #[serde(with = "time::serde::rfc3339")]
    pub noticed_at: OffsetDateTime,
    pub is_restored: bool,
}

/// How many deliveries were dead-lettered for a reason.
#[derive(Debug, Serialize)]
pub struct ReasonCount {
    pub reason_code: String,
    pub count: i64,
}

/// A submission that is not done.
#[derive(Clone, Debug, Serialize)]
pub struct OpenWork {
    pub job_id: Uuid,
    pub state: String,
    pub reason_code: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub received_at: OffsetDateTime,
}

/// What the reports of several installations come to. What of a report is not here cannot be added.
#[derive(Debug, Serialize)]
pub struct Total {
    /// The databases whose report is missing here.
    pub missing: Vec<String>,
    /// The databases of installations that are paused.
    pub paused: Vec<String>,
    pub workers: WorkerCounts,
    /// Without percentiles, which cannot be added. The maximum is the largest.
    pub flow: Flow,
    pub states: Vec<StateCount>,
    pub open_by_age: Vec<OpenByAge>,
    pub oldest_open: Option<OpenThere>,
    pub oldest_unknown: Option<OpenThere>,
    pub oldest_needs_review: Option<OpenThere>,
    pub verifications: Verifications,
    pub events_waiting: EventsWaiting,
    pub proposals: ProposalsWaiting,
    pub customers_at_limit: i64,
    pub unordered_pairs: i64,
    pub dead_lettered: Vec<ReasonCount>,
    pub lost_commits: LostCounts,
}

/// How many replicas there are.
#[derive(Debug, Serialize)]
pub struct WorkerCounts {
    pub alive: i64,
    pub dead: i64,
    pub in_flight: i64,
}

/// Of how many jobs a failover lost commits.
#[derive(Debug, Serialize)]
pub struct LostCounts {
    pub restored: i64,
    pub missing: i64,
}

/// A submission that is not done, and the database that it is in.
#[derive(Debug, Serialize)]
pub struct OpenThere {
    pub database: String,
    #[serde(flatten)]
    pub work: OpenWork,
}

impl WorkerCounts {
    pub fn of<'a>(workers: impl IntoIterator<Item = &'a WorkerView>) -> Self {
        let mut counts = Self { alive: 0, dead: 0, in_flight: 0 };
        for worker in workers {
            if worker.is_alive {
                counts.alive += 1;
                counts.in_flight += i64::from(worker.in_flight);
            } else {
                counts.dead += 1;
            }
        }
        counts
    }
}

impl Total {
    /// Adds up reports, each with the name of its database.
    pub fn of(reports: &[(&str, &Report)], missing: Vec<String>) -> Self {
        let all = || reports.iter().map(|(_, report)| *report);
        let sum = |count: fn(&Report) -> i64| all().map(count).sum();
        let earliest = |time: fn(&Report) -> Option<OffsetDateTime>| all().filter_map(time).min();
        let oldest = |work: fn(&Report) -> Option<&OpenWork>| {
            let open = reports.iter().filter_map(|(database, report)| Some((*database, work(report)?)));
            let (database, work) = open.min_by_key(|(_, work)| work.received_at)?;
            Some(OpenThere { database: database.to_owned(), work: work.clone() })
        };
        let paused = reports.iter().filter(|(_, report)| report.pause.is_some());
        Self {
            missing,
            paused: paused.map(|(database, _)| (*database).to_owned()).collect(),
            workers: WorkerCounts::of(all().flat_map(|report| &report.workers)),
            flow: Flow {
                received: sum(|report| report.flow.received),
                ended: sum(|report| report.flow.ended),
                spared: sum(|report| report.flow.spared),
                p50_ms: None,
                p90_ms: None,
                p95_ms: None,
                p99_ms: None,
                max_ms: all().filter_map(|report| report.flow.max_ms).reduce(f64::max),
            },
            states: added_states(all()),
            open_by_age: added_ages(all()),
            oldest_open: oldest(|report| report.oldest_open.as_ref()),
            oldest_unknown: oldest(|report| report.oldest_unknown.as_ref()),
            oldest_needs_review: oldest(|report| report.oldest_needs_review.as_ref()),
            verifications: Verifications {
                running: sum(|report| report.verifications.running),
                overdue: sum(|report| report.verifications.overdue),
                oldest_since: earliest(|report| report.verifications.oldest_since),
            },
            events_waiting: EventsWaiting {
                count: sum(|report| report.events_waiting.count),
                oldest_since: earliest(|report| report.events_waiting.oldest_since),
            },
            proposals: ProposalsWaiting {
                count: sum(|report| report.proposals.count),
                oldest_since: earliest(|report| report.proposals.oldest_since),
            },
            customers_at_limit: sum(|report| report.customers_at_limit),
            unordered_pairs: sum(|report| report.unordered_pairs),
            dead_lettered: added_reasons(all()),
            lost_commits: LostCounts {
                restored: sum(|report| report.lost_commits.restored),
                missing: sum(|report| report.lost_commits.missing),
            },
        }
    }
}

fn added_states<'a>(reports: impl Iterator<Item = &'a Report>) -> Vec<StateCount> {
    let mut counts = BTreeMap::new();
    for row in reports.flat_map(|report| &report.states) {
        *counts.entry((&row.state, &row.reason_code)).or_insert(0) += row.count;
    }
    let mut added: Vec<StateCount> = counts
        .into_iter()
        .map(|((state, reason_code), count)| StateCount {
            state: state.clone(),
            reason_code: reason_code.clone(),
            count,
        })
        .collect();
    added.sort_by(|a, b| (&a.state, Reverse(a.count)).cmp(&(&b.state, Reverse(b.count))));
    added
}

fn added_ages<'a>(reports: impl Iterator<Item = &'a Report>) -> Vec<OpenByAge> {
    let mut added: BTreeMap<&str, OpenByAge> = BTreeMap::new();
    for OpenByAge { state, under_1m, under_10m, under_1h, under_1d, older } in
        reports.flat_map(|report| &report.open_by_age)
    {
        let sum = added.entry(state).or_insert_with(|| OpenByAge {
            state: state.clone(),
            under_1m: 0,
            under_10m: 0,
            under_1h: 0,
            under_1d: 0,
            older: 0,
        });
        sum.under_1m += under_1m;
        sum.under_10m += under_10m;
        sum.under_1h += under_1h;
        sum.under_1d += under_1d;
        sum.older += older;
    }
    added.into_values().collect()
}

fn added_reasons<'a>(reports: impl Iterator<Item = &'a Report>) -> Vec<ReasonCount> {
    let mut counts = BTreeMap::new();
    for row in reports.flat_map(|report| &report.dead_lettered) {
        *counts.entry(&row.reason_code).or_insert(0) += row.count;
    }
    let row = |(code, count): (&String, i64)| ReasonCount { reason_code: code.clone(), count };
    counts.into_iter().map(row).collect()
}

/// Where the work stands. Customers are at their limit with `customer_updates` spent.
pub async fn report(pool: &PgPool, since: Duration, customer_updates: u32) -> sqlx::Result<Report> {
    let since = OffsetDateTime::now_utc() - since;
    Ok(Report {
        since,
        pause: current_pause(pool).await?,
        workers: workers(pool).await?,
        flow: flow(pool, since).await?,
        states: states(pool, since).await?,
        open_by_age: open_by_age(pool).await?,
        oldest_open: oldest(pool, State::is_in_motion).await?,
        oldest_unknown: oldest(pool, |state| state == State::Unknown).await?,
        oldest_needs_review: oldest(pool, |state| state == State::NeedsReview).await?,
        verifications: verifications(pool).await?,
        events_waiting: events_waiting(pool).await?,
        proposals: proposals(pool).await?,
        customers_at_limit: customers_at_limit(pool, since, customer_updates).await?,
        unordered_pairs: unordered_pairs(pool, since).await?,
        dead_lettered: dead_lettered(pool, since).await?,
        lost_commits: lost_commits(pool, since).await?,
        last_errors: last_errors(pool, since).await?,
    })
}

async fn flow(pool: &PgPool, since: OffsetDateTime) -> sqlx::Result<Flow> {
    let row = sqlx::query!(
        r#"-- report_flow
        -- What was received since has ended since, or is in motion.
        with ended as (
            select
                state, reason_code, expiring_link, received_at, (extract(epoch from ended_at - received_at) * 1000)::float8 as took
            from submission
            where ended_at >= $1
        )
        select
            count(*) filter (where received_at >= $1)
                + (select count(*) from open_work where not needs_person and received_at >= $1) as "received!",
            count(*) as "ended!",
            count(*) filter (
                where reason_code = 'expired' and expiring_link is not null or reason_code = any($2)
            ) as "spared!",
            percentile_cont(array[0.5, 0.9, 0.95, 0.99, 1]) within group (order by took)
                filter (where state in ('accepted', 'rejected')) as percentiles
        from ended"#,
        since,
        &Rejection::CODES_OF_CHECKS.map(str::to_owned),
    )
    .fetch_one(pool)
    .await?;
    let at = |place: usize| row.percentiles.as_ref().and_then(|percentiles| percentiles.get(place).copied());
    Ok(Flow {
        received: row.received,
        ended: row.ended,
        spared: row.spared,
        p50_ms: at(0),
        p90_ms: at(1),
        p95_ms: at(2),
        p99_ms: at(3),
        max_ms: at(4),
    })
}

async fn states(pool: &PgPool, since: OffsetDateTime) -> sqlx::Result<Vec<StateCount>> {
    sqlx::query_as!(
        StateCount,
        r#"-- report_states
        with counted as (
            select state, reason_code from submission where ended_at >= $1
            union all
            select state, reason_code from open_work where state <> 'needs_review'
            union all
            select state, reason_code from submission where state = 'needs_review' and ended_at < $1
        )
        select state as "state!", reason_code, count(*) as "count!"
        from counted
        group by state, reason_code
        order by state, count(*) desc, reason_code"#,
        since,
    )
    .fetch_all(pool)
    .await
}

async fn open_by_age(pool: &PgPool) -> sqlx::Result<Vec<OpenByAge>> {
    sqlx::query_as!(
        OpenByAge,
        r#"-- report_open_by_age
        select
            state as "state!",
            count(*) filter (where age < interval '1 minute') as "under_1m!",
            count(*) filter (where age >= interval '1 minute' and age < interval '10 minutes') as "under_10m!",
            count(*) filter (where age >= interval '10 minutes' and age < interval '1 hour') as "under_1h!",
            count(*) filter (where age >= interval '1 hour' and age < interval '1 day') as "under_1d!",
            count(*) filter (where age >= interval '1 day') as "older!"
        from open_work
        group by state
        order by state"#,
    )
    .fetch_all(pool)
    .await
}

async fn oldest(pool: &PgPool, is_meant: fn(State) -> bool) -> sqlx::Result<Option<OpenWork>> {
    let states: Vec<&str> =
        State::ALL.iter().filter(|state| is_meant(**state)).map(|state| state.name()).collect();
    sqlx::query_as!(
        OpenWork,
        r#"-- report_oldest
        select job_id as "job_id!", state as "state!", reason_code, received_at as "received_at!"
        from open_work
        where state = any($1)
        order by received_at
        limit 1"#,
        &states as &[&str],
    )
    .fetch_optional(pool)
    .await
}

async fn verifications(pool: &PgPool) -> sqlx::Result<Verifications> {
    sqlx::query_as!(
        Verifications,
        r#"-- report_verifications
        select
            count(*) as "running!", count(verification_overdue_at) as "overdue!", min(ended_at) as oldest_since
        from submission
        where verification_due_at is not null"#,
    )
    .fetch_one(pool)
    .await
}

/// Each customer is looked up alone, and in the order of the index: the cost is what the span holds,
/// and not what there ever was. Few customers have begun enough attempts; only theirs are
/// read.
async fn customers_at_limit(pool: &PgPool, since: OffsetDateTime, limit: u32) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"-- report_customers_at_limit
        select count(*) as "count!"
        from (
            select distinct customer_id from submission where ended_at >= $1 order by customer_id
        ) served
        cross join lateral (
            select
                sum(s.attempts) as begun,
                coalesce(
                    (select c.updates_elsewhere from customer c where c.customer_id = served.customer_id), 0
                ) + coalesce(
                    (
                        select g.accepted + g.unknown_outcome from archived_customer g
                        where g.customer_id = served.customer_id
                    ),
                    0
                ) as elsewhere
            from submission s
            where s.customer_id = served.customer_id
            offset 0
        ) at_most
        cross join lateral (
            select count(*) as spent
            from submission s
            cross join lateral (
                select from attempt a
                where a.job_id = s.job_id and a.verdict in ('accepted', 'unknown')
                offset 0
            ) spending
            where s.customer_id = served.customer_id
            offset 0
        ) here
        where at_most.begun + at_most.elsewhere >= $2 and here.spent + at_most.elsewhere >= $2"#,
        since,
        i64::from(limit),
    )
    .fetch_one(pool)
    .await
}

/// Each customer is looked up alone, as [`customers_at_limit`] does.
async fn unordered_pairs(pool: &PgPool, since: OffsetDateTime) -> sqlx::Result<i64> {
    sqlx::query_scalar!(
        r#"-- report_unordered
        select count(*) as "count!"
        from (
            select distinct customer_id from submission where ended_at >= $1 order by customer_id
        ) served
        cross join lateral (
            select
                s.requested_at, s.received_at, s.content_hmac,
                lag(s.requested_at) over jobs as asked_before,
                lag(s.received_at) over jobs as received_before,
                lag(s.content_hmac) over jobs as content_before
            from submission s
            where s.customer_id = served.customer_id and s.requested_at is not null
            window jobs as (order by s.requested_at, s.received_at, s.job_id)
            offset 0
        ) job
        where job.received_at >= $1 and job.content_hmac is distinct from job.content_before
            and (
                job.requested_at = job.asked_before
                -- Dated by their receipt alone.
                or job.requested_at = job.received_at and job.asked_before = job.received_before
                    and job.received_at - job.received_before < interval '1 minute'
            )"#,
        since,
    )
    .fetch_one(pool)
    .await
}

async fn dead_lettered(pool: &PgPool, since: OffsetDateTime) -> sqlx::Result<Vec<ReasonCount>> {
    sqlx::query_as!(
        ReasonCount,
        r#"-- report_dead_lettered
        select reason_code, count(*) as "count!"
        from dead_lettered_delivery
        where received_at >= $1
        group by reason_code
        order by reason_code"#,
        since,
    )
    .fetch_all(pool)
    .await
}

async fn last_errors(pool: &PgPool, since: OffsetDateTime) -> sqlx::Result<Vec<AttemptView>> {
    sqlx::query_as!(
        AttemptView,
        "-- report_last_errors
        select
            job_id, number, worker, begun_at, ended_at, verdict, late_verdict, detail, http_status,
            provider_message, error, duration_ms, checked
        from attempt
        where verdict in ('not_sent', 'misconfigured', 'unknown') and begun_at >= $1
        order by begun_at desc
        limit 10",
        since,
    )
    .fetch_all(pool)
    .await
}

async fn lost_commits(pool: &PgPool, since: OffsetDateTime) -> sqlx::Result<LostCommits> {
    let counts = sqlx::query!(
        r#"-- report_lost_commits
        select count(*) filter (where is_restored) as "restored!", count(*) filter (where not is_restored) as "missing!"
        from lost_commit
        where noticed_at >= $1"#,
        since,
    )
    .fetch_one(pool)
    .await?;
    let jobs = sqlx::query_as!(
        LostJob,
        "-- report_lost_jobs
        select job_id, customer_id, lost, attempt, verdict, worker, noticed_at, is_restored
        from lost_commit
        where noticed_at >= $1
        order by is_restored, id desc
        limit 20",
        since,
    )
    .fetch_all(pool)
    .await?;
    Ok(LostCommits { restored: counts.restored, missing: counts.missing, jobs })
}

/// The last twenty jobs of which a failover lost commits that nobody could write again, unless a person has
/// resumed the work since: that settles them.
pub(crate) async fn missing_jobs(pool: &PgPool) -> sqlx::Result<Vec<LostJob>> {
    sqlx::query_as!(
        LostJob,
        "-- missing_jobs
        select job_id, customer_id, lost, attempt, verdict, worker, noticed_at, is_restored
        from lost_commit
        where not is_restored and noticed_at > coalesce(
            (select at from intervention where action = 'resume' order by id desc limit 1), '-infinity'
        )
        order by noticed_at desc
        limit 20",
    )
    .fetch_all(pool)
    .await
}

async fn events_waiting(pool: &PgPool) -> sqlx::Result<EventsWaiting> {
    sqlx::query_as!(
        EventsWaiting,
        r#"-- report_events
        select
            count(*) as "count!", (select written_at from outcome_event order by id limit 1) as oldest_since
        from outcome_event"#,
    )
    .fetch_one(pool)
    .await
}

async fn proposals(pool: &PgPool) -> sqlx::Result<ProposalsWaiting> {
    sqlx::query_as!(
        ProposalsWaiting,
        r#"-- report_proposals
        select count(*) as "count!", min(proposed_at) as oldest_since from proposal where decision is null"#,
    )
    .fetch_one(pool)
    .await
}
