//! The same jobs beside rows by the million: what is written for history must not make what
//! is done today dearer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kyc_worker::config::{DatabaseSettings, Secret};
use kyc_worker::{
    desk::{
        access, budget, dead_letters, errors, figures, find, interventions, list, proposals, replay, report,
        resolve, review, story, verifications,
    },
    domain::state::State,
    journal,
};
use parking_lot::Mutex;
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::time::timeout;
use tracing_subscriber::fmt::MakeWriter;
use url::Url;
use uuid::Uuid;

use crate::drain::{Course, drain};
use crate::figures::{Line, Relation, Rows, Size, Statement};
use crate::parts::{Bench, SCALED};
use crate::plans;
use crate::stage::{Contender, JobIds};

/// How many rows are made with one statement, and how long that may take.
const CHUNK: u64 = 100_000;
const CHUNK_TIME_MAX: Duration = Duration::from_secs(120);

/// How long an index, or a table's vacuum, may take.
const STEP_TIME_MAX: Duration = Duration::from_secs(600);

/// Rows that are inserted from now on are in no index. Of a database of our own, by a superuser.
const LEAVE_INDEXES: &str = "
    update pg_index set indisready = false
    from unnest($1::text[]) as filled
    where indrelid = filled::regclass";

/// They are again, once built anew.
const KEEP_INDEXES: &str = "
    update pg_index set indisready = true
    from unnest($1::text[]) as filled
    where indrelid = filled::regclass
    returning
        indexrelid::regclass::text,
        (select amname = 'btree' from pg_class join pg_am on pg_am.oid = relam where pg_class.oid = indexrelid)";

/// How often each size is measured, where that is not said.
const RUNS: usize = 3;

/// How many jobs wait, due much later, while a worker starts.
const PARKED: u64 = 1_000_000;

/// The share of updates that fail while plans are looked at, so that those of reading back
/// and of retries are seen too.
const FAILING_PERCENT: f64 = 1.0;

/// What a replay is checked by, as the settings have it.
const RULES: replay::ReplayRules =
    replay::ReplayRules { customer_updates: 3, read_back_window: Duration::from_secs(60) };

/// Ended jobs as they are left behind: one in twenty was rejected, the others are verified; a
/// customer has one and a half, in the order of their times.
const ENDED_JOBS: &str = "
    insert into submission (
        job_id, customer_id, document_type, document_number_last4, content_hmac, state,
        reason_code, reason, attempts, claimed_by, claim_token, requested_at, received_at, ended_at,
        provider_reference, evidence, verification_status, verification_seen_at
    )
    select
        md5('job ' || n)::uuid, md5('customer ' || n * 2 / 3)::uuid, 'PASSPORT',
        lpad((n % 10000)::text, 4, '0'), sha256(n::text::bytea),
        case when is_rejected then 'rejected' else 'accepted' end,
        case when is_rejected then 'field_refused' end,
        case when is_rejected then 'the provider refused a field' else 'the provider accepted the update' end,
        1, 'worker-1', 1, at, at, at + interval '1 s',
        case when not is_rejected then md5('reference ' || n)::uuid::text end,
        case when not is_rejected then 'response' end,
        case when not is_rejected then 'VERIFIED' end,
        case when not is_rejected then at + interval '2 min' end
    from made";

/// One attempt each.
const ATTEMPTS: &str = "
    insert into attempt (
        job_id, number, worker, begun_at, signed_at, ended_at, verdict, detail, http_status, duration_ms
    )
    select
        md5('job ' || n)::uuid, 1, 'worker-1', at, at, at + interval '1 s',
        case when is_rejected then 'rejected' else 'accepted' end,
        case when is_rejected then 'field_refused' end,
        case when is_rejected then 400 else 200 end, 300
    from made";

/// The end of each verification.
const OBSERVATIONS: &str = "
    insert into observation (job_id, customer_id, at, purpose, status)
    select
        md5('job ' || n)::uuid, md5('customer ' || n * 2 / 3)::uuid, at + interval '2 min',
        'verification', 'VERIFIED'
    from made
    where not is_rejected";

/// Customers whose verification was looked at.
const CUSTOMERS: &str = "
    insert into customer (customer_id, last_read_at)
    select md5('customer ' || n * 2 / 3)::uuid, at + interval '2 min'
    from made
    where n % 3 <> 0";

/// How each table of the history is filled from number `first` on, with one job every three seconds: ten million
/// are most of a year.
pub fn history(first: u64) -> [(&'static str, String); 4] {
    let made = format!(
        "with made as (
            select
                n, n % 20 = 0 as is_rejected,
                now() - interval '350 days' + (n - {first}) * interval '3 s' as at
            from generate_series($1::bigint + 1, $2::bigint) n
        )"
    );
    let tables = [
        ("submission", ENDED_JOBS),
        ("attempt", ATTEMPTS),
        ("observation", OBSERVATIONS),
        ("customer", CUSTOMERS),
    ];
    tables.map(|(table, sql)| (table, format!("{made}{sql}")))
}

/// Jobs that wait, due in a month, with payloads of the usual size.
const PARKED_JOBS: &str = "
    insert into submission (
        job_id, customer_id, document_type, document_number_last4, content_hmac, state, waiting_for,
        due_at, sealed_payload, requested_at, received_at
    )
    select
        md5('parked job ' || n)::uuid, md5('parked customer ' || n)::uuid, 'PASSPORT', '4567',
        sha256(n::text::bytea), 'waiting', 'retry', now() + interval '30 days' + n * interval '1 ms',
        decode(repeat(md5(n::text), 38), 'hex'), now(), now() - interval '1 day'
    from generate_series($1::bigint + 1, $2::bigint) n";

impl Bench<'_> {
    /// Measures beside ever more rows, and looks at every plan.
    pub async fn rows(&self) -> anyhow::Result<Rows> {
        let pool = self.stage.recreate_database().await?;
        plans::check_superuser(&pool).await?;
        let (mut rows, mut sizes) = (0, Vec::new());
        for wanted in &self.arguments.rows {
            ensure!(rows <= *wanted, "--rows: must grow from one to the next");
            fill(&pool, &history(0), rows, *wanted).await?;
            rows = *wanted;
            sizes.push(self.size(&pool, rows).await?);
        }
        fill(&pool, &[("submission", PARKED_JOBS.to_owned())], 0, PARKED).await?;
        let lines = vec![Line::new(Contender::Worker)];
        let with_parked = self.measure(&pool, Duration::ZERO, RUNS, lines).await?;
        let idle_with_parked = self.watch_idle(&pool).await?;
        Ok(Rows { sizes, parked: PARKED, with_parked, idle_with_parked })
    }

    async fn size(&self, pool: &PgPool, rows: u64) -> anyhow::Result<Size> {
        let relations = relations(pool).await?;
        let worker = Line::new(Contender::Worker);
        let growing = Line { job_ids: JobIds::Growing, ..worker.clone() };
        let lines = vec![Line::new(Contender::Ceiling), worker, growing];
        let table = self.measure(pool, Duration::ZERO, RUNS, lines).await?;
        let url = plans::explained(&self.stage.bench_database_url(), None);
        let statements = self.explain_worker(pool, &url).await?;
        let commands = explain_commands(pool, &url).await?;
        for statement in statements.iter().chain(&commands) {
            for fault in &statement.faults {
                eprintln!("{}: {fault}: {}", statement.name, statement.plan);
            }
        }
        Ok(Size { rows, table, relations, statements, commands })
    }

    /// One more run, whose plans are told in the worker's log; some updates fail, and
    /// verifications are looked at soon.
    async fn explain_worker(&self, pool: &PgPool, url: &Url) -> anyhow::Result<Vec<Statement>> {
        let provider = self.stage.start_provider(Duration::ZERO).await?;
        provider.fail(FAILING_PERCENT).await?;
        let more = [
            ("DATABASE_URL", url.as_str()),
            ("VERIFICATION_POLL_AFTER", "12s"),
            ("VERIFICATION_READS_PER_SECOND", "200"),
        ];
        let settings: Vec<(&str, &str)> = SCALED.into_iter().chain(more).collect();
        let course = Course {
            contender: Contender::Worker,
            replicas: 1,
            job_ids: JobIds::Random,
            jobs: self.arguments.jobs,
            failing_percent: FAILING_PERCENT,
            settings: &settings,
        };
        drain(self.stage, &provider, pool, course).await?;
        provider.program.stop().await?;
        plans::read_log(&self.stage.log_path("worker-1"))
    }
}

/// Makes rows up to a number, in all tables at once, and leaves them as they are at rest: indexed,
/// vacuumed, and on disk, so that what is measured then pays for nothing of it.
pub async fn fill(pool: &PgPool, tables: &[(&str, String)], from: u64, to: u64) -> anyhow::Result<()> {
    let names: Vec<&str> = tables.iter().map(|(table, _)| *table).collect();
    // Row by row, random keys cost ten times as much as the rows.
    sqlx::query(LEAVE_INDEXES).bind(&names).execute(pool).await?;
    pour(pool, tables, from, to).await?;
    come_to_rest(pool, &names).await
}

/// Makes rows up to a number, in all tables at once, and in the indexes that there are.
pub async fn pour(pool: &PgPool, tables: &[(&str, String)], from: u64, to: u64) -> anyhow::Result<()> {
    let rows = (to - from) * tables.len() as u64;
    let bar = bar(rows, "{bar:40} {human_pos} of {human_len} rows, {eta} left")?;
    let fills = tables.iter().map(async |(_, statement)| {
        let mut connection = pool.acquire().await?;
        // If it is lost, so is the benchmark.
        sqlx::query("set synchronous_commit = off").execute(&mut *connection).await?;
        let mut at = from;
        while at < to {
            let next = to.min(at + CHUNK);
            let filling = sqlx::query(statement).bind(at as i64).bind(next as i64).execute(&mut *connection);
            timeout(CHUNK_TIME_MAX, filling).await.context("the database is too slow")??;
            bar.inc(next - at);
            at = next;
        }
        sqlx::query("reset synchronous_commit").execute(&mut *connection).await?;
        anyhow::Ok(())
    });
    futures_util::future::try_join_all(fills).await?;
    bar.finish_and_clear();
    Ok(())
}

/// Vacuums the tables of the history, as autovacuum does in its time.
pub async fn vacuum(pool: &PgPool) -> anyhow::Result<()> {
    for (table, _) in history(0) {
        eprintln!("vacuuming {table}");
        let sql = format!("vacuum (analyze) {table}");
        let vacuuming = sqlx::query(&sql).execute(pool);
        timeout(STEP_TIME_MAX, vacuuming)
            .await
            .with_context(|| format!("the database is too slow: {sql}"))??;
    }
    Ok(())
}

/// Builds the indexes, as full as those that grew with random keys, then vacuums as autovacuum
/// does, then writes everything out.
async fn come_to_rest(pool: &PgPool, tables: &[&str]) -> anyhow::Result<()> {
    let mut connection = pool.acquire().await?;
    let indexes: Vec<(String, bool)> =
        sqlx::query_as(KEEP_INDEXES).bind(tables).fetch_all(&mut *connection).await?;
    let mut steps = Vec::new();
    for (index, is_btree) in indexes {
        let fill = format!("alter index {index} set (fillfactor = 70)");
        let sql = [is_btree.then_some(fill), Some(format!("reindex index {index}"))];
        steps.push((format!("building {index}"), sql.into_iter().flatten().collect()));
    }
    for table in tables {
        steps.push((format!("vacuuming {table}"), vec![format!("vacuum (analyze) {table}")]));
    }
    steps.push(("writing it to disk".to_owned(), vec!["checkpoint".to_owned()]));

    let bar = bar(steps.len() as u64, "{bar:40} step {pos} of {len}, for {elapsed}: {msg}")?;
    bar.enable_steady_tick(Duration::from_secs(1));
    // What is sorted fits.
    sqlx::query("set maintenance_work_mem = '1GB'").execute(&mut *connection).await?;
    for (name, statements) in steps {
        bar.set_message(name.clone());
        for statement in statements {
            let step = sqlx::query(&statement).execute(&mut *connection);
            timeout(STEP_TIME_MAX, step)
                .await
                .with_context(|| format!("the database is too slow: {name}"))??;
        }
        bar.inc(1);
    }
    sqlx::query("reset maintenance_work_mem").execute(&mut *connection).await?;
    bar.finish_and_clear();
    Ok(())
}

fn bar(len: u64, style: &str) -> anyhow::Result<ProgressBar> {
    let style = ProgressStyle::with_template(style)?;
    Ok(ProgressBar::with_draw_target(Some(len), ProgressDrawTarget::stderr()).with_style(style))
}

/// What the tables of the history take.
pub async fn relations(pool: &PgPool) -> anyhow::Result<Vec<Relation>> {
    let relations: Vec<(String, f64, i64, i64)> = sqlx::query_as(
        "select relname::text, reltuples::float8, pg_table_size(oid), pg_indexes_size(oid)
        from pg_class
        where relname in ('submission', 'attempt', 'observation', 'customer') and relkind = 'r'
        order by relname",
    )
    .fetch_all(pool)
    .await?;
    let relation = |(name, rows, table_bytes, index_bytes)| Relation { name, rows, table_bytes, index_bytes };
    Ok(relations.into_iter().map(relation).collect())
}

/// A job that statements are about, and its customer.
#[derive(sqlx::FromRow)]
pub struct Example {
    job_id: Uuid,
    customer_id: Uuid,
}

impl Example {
    async fn accepted(pool: &PgPool) -> sqlx::Result<Self> {
        sqlx::query_as("select job_id, customer_id from submission where state = 'accepted' limit 1")
            .fetch_one(pool)
            .await
    }

    pub async fn waiting_for_a_person(pool: &PgPool) -> sqlx::Result<Self> {
        sqlx::query_as("select job_id, customer_id from submission where state = 'needs_review' limit 1")
            .fetch_one(pool)
            .await
    }
}

/// What the commands for people ask.
async fn explain_commands(pool: &PgPool, url: &Url) -> anyhow::Result<Vec<Statement>> {
    let example = Example::accepted(pool).await?;
    let log = Log::default();
    let guard = log.listen();
    // As they connect.
    let settings = DatabaseSettings {
        database_url: Vec::new(),
        database_url_file: Vec::new(),
        database_connections: 1,
        allow_unsafe_database: true,
    };
    let explained = journal::connect(&settings, &Secret::from(url.as_str())).await?;
    report::report(&explained, Duration::from_secs(24 * 3600), 3).await?;
    let filter = list::Filter {
        state: None,
        reason_code: None,
        customer_id: None,
        is_overdue: false,
        since: Some(OffsetDateTime::now_utc() - time::Duration::days(1)),
        limit: 100,
    };
    list::list(&explained, &filter).await?;
    list::list(&explained, &list::Filter { customer_id: Some(example.customer_id), since: None, ..filter })
        .await?;
    explain_pages(&explained, &example).await?;
    explained.close().await;
    drop(guard);
    Ok(plans::read(&log.text()))
}

/// What the pages of a console ask.
pub async fn explain_pages(pool: &PgPool, about: &Example) -> anyhow::Result<()> {
    let Example { job_id, customer_id } = *about;
    access::standing(pool).await?;
    figures::home(pool).await?;
    errors::errors(pool).await?;
    verifications::verifications(pool).await?;
    review::worklist(pool, None, 100).await?;
    review::worklist(pool, Some("last_update"), 100).await?;
    dead_letters::dead_letter_faults(pool).await?;
    interventions::interventions(pool, None, 100).await?;
    access::accesses(pool, None, None, 100).await?;
    access::accesses(pool, Some(customer_id), None, 100).await?;
    find::find(pool, &job_id.to_string()).await?;
    // No id: a correlation_id.
    find::find(pool, "order 7").await?;
    story::job_story(pool, job_id).await?;
    budget::customer_story(pool, customer_id, Some(100)).await?;
    resolve::preview(pool, job_id).await?;
    for (state, reason_code) in [(None, None), (Some(State::Exhausted), None), (None, Some("provider_down"))]
    {
        let found = replay::find_ended(pool, &replay::Selection { state, reason_code, limit: 101 }).await?;
        replay::foresee(pool, &found, RULES).await?;
    }
    proposals::policy(pool).await?;
    proposals::pending(pool, RULES, None).await?;
    Ok(())
}

/// Log lines kept in memory.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Keeps what this thread logs until the guard is dropped.
    pub fn listen(&self) -> tracing::subscriber::DefaultGuard {
        let lines = tracing_subscriber::fmt().json().flatten_event(true).with_writer(self.clone());
        tracing::subscriber::set_default(lines.finish())
    }

    pub fn text(&self) -> String {
        let lines = self.0.lock();
        String::from_utf8_lossy(&lines).into_owned()
    }
}

impl io::Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
