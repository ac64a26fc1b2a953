//! The console's pages beside rows by the million, as the role that the console has: nobody who has a
//! customer on the telephone waits for one.

use anyhow::{bail, ensure};
use futures_util::future::try_join_all;
use kyc_worker::config::{DatabaseSettings, Secret};
use kyc_worker::console::ROUTES;
use kyc_worker::journal;
use reqwest::StatusCode;
use sqlx::PgPool;
use tokio::time::Instant;

use crate::figures::{Console, PageTimes, Statement, Times};
use crate::parts::Bench;
use crate::plans;
use crate::rows::{Example, Log, explain_pages, fill as fill_tables};
use crate::stage::{ConsoleProgram, DESK_LOGIN};

/// How often each page is asked for in each form, where that is not said.
const ROUNDS: usize = 50;

/// How many people ask at once, in the second half.
const TOGETHER: usize = 8;

/// How many jobs and customers of each kind the pages are about, one after the other.
const IDS: i64 = 100;

/// How many dead letters, deeds of people and proposals there are, and how many rows tell who saw whom.
const DEAD_LETTERS: u64 = 100_000;
const INTERVENTIONS: u64 = 100_000;
const PROPOSALS: u64 = 10_000;
const ACCESSES: u64 = 1_000_000;

/// Every kind of job that a page tells of, one every three seconds until now. Of a hundred one waits for a
/// person, and one is of a customer who has a hundredth of all jobs. Of the last thirty days, as long as
/// payloads are kept, one in twenty is exhausted; of the last three, one in five is being verified.
fn made(rows: u64) -> String {
    format!(
        "with made as (
            select
                n, kind, at, md5('job ' || n)::uuid as job_id,
                md5('customer ' || case when kind in ('superseded', 'waiting') or n % 1000000 = 152 then 'of many'
                    else (n * 2 / 3)::text end)::uuid as customer_id,
                case kind when 'needs_review' then 3 when 'exhausted' then 3 when 'superseded' then 0
                    when 'waiting' then 0 else 1 end as attempts
            from generate_series($1::bigint + 1, $2::bigint) n
            cross join lateral (select now() - ({rows} - n) * interval '3 s' as at) dated
            cross join lateral (
                select case
                    when n % 10000 = 50 and at > now() - interval '30 days' then 'waiting'
                    when n % 100 = 50 then 'superseded'
                    when n % 100 = 7 then 'needs_review'
                    when n % 20 = 13 and at > now() - interval '30 days' then 'exhausted'
                    when n % 1000 = 21 or n % 5 = 1 and at > now() - interval '3 days' then 'verifying'
                    when n % 20 = 0 then 'rejected'
                    else 'accepted'
                end as kind
            ) kinds
        )"
    )
}

/// One reason in ten thousand is rare, and one job in ten has a correlation_id of its own.
const JOBS: &str = "
    insert into submission (
        job_id, customer_id, document_type, document_number_last4, content_hmac, state, waiting_for,
        reason_code, reason, due_at, attempts, claimed_by, claim_token, sealed_payload, requested_at,
        received_at, ended_at, provider_reference, evidence, verification_status, verification_due_at,
        verification_seen_at, verification_overdue_at, correlation_id
    )
    select
        job_id, customer_id, 'PASSPORT', lpad((n % 10000)::text, 4, '0'), sha256(n::text::bytea), state,
        case when kind = 'waiting' then 'customer' end,
        case kind
            when 'needs_review' then case when n % 1000000 = 7 then 'last_update' else 'fate_unknown' end
            when 'exhausted' then case when n % 200000 = 13 then 'provider_down' else 'attempts' end
            when 'rejected' then 'field_refused'
            when 'superseded' then 'newer_accepted'
            when 'waiting' then 'customer_busy'
        end,
        case when state = 'accepted' then 'the provider accepted the update' else 'as its reason_code says' end,
        case when kind = 'waiting' then now() + interval '30 days' end,
        attempts, 'worker-1', 1,
        case when kind in ('needs_review', 'exhausted', 'waiting') and at > now() - interval '30 days'
            then decode(repeat(md5(n::text), 38), 'hex') end,
        at, at, case when kind <> 'waiting' then at + interval '1 s' end,
        case when state = 'accepted' then md5('reference ' || n)::uuid::text end,
        case when state = 'accepted' then 'response' end,
        case kind when 'accepted' then 'VERIFIED' when 'verifying' then 'PROCESSING' end,
        case when kind = 'verifying' then now() + n % 3600 * interval '1 s' end,
        case when state = 'accepted' then at + interval '2 min' end,
        case when kind = 'verifying' and at < now() - interval '3 days' then at + interval '3 days' end,
        case when n % 1000 = 3 then 'one upload' when n % 10 = 3 then 'order ' || n end
    from made
    cross join lateral (select case kind when 'verifying' then 'accepted' else kind end as state) ended";

/// Of a job that waits for a person the last one may have been made.
const ATTEMPTS: &str = "
    insert into attempt (
        job_id, number, worker, begun_at, signed_at, ended_at, verdict, detail, http_status, duration_ms
    )
    select
        job_id, number, 'worker-1', at + number * interval '1 ms', at, at + interval '1 s',
        case kind
            when 'needs_review' then case number when 3 then 'unknown' else 'not_sent' end
            when 'exhausted' then 'not_sent'
            when 'rejected' then 'rejected'
            else 'accepted'
        end,
        case when kind in ('needs_review', 'exhausted') then 'connect' when kind = 'rejected' then 'field_refused' end,
        case kind when 'accepted' then 200 when 'verifying' then 200 when 'rejected' then 400 end, 300
    from made
    cross join lateral generate_series(1, attempts) number";

/// The end of each verification, and the reads that settled nothing.
const OBSERVATIONS: &str = "
    insert into observation (job_id, customer_id, at, purpose, status, conclusion)
    select
        job_id, customer_id, at + number * interval '2 min',
        case kind when 'needs_review' then 'read_back' else 'verification' end,
        case kind when 'accepted' then 'VERIFIED' else 'PROCESSING' end,
        case when kind = 'needs_review' and number = 2 then 'unsettled' end
    from made
    cross join lateral generate_series(1, case kind when 'needs_review' then 2 else 1 end) number
    where kind in ('accepted', 'needs_review', 'verifying')";

/// Customers who were read; somebody told us of updates that some of them spent elsewhere.
const CUSTOMERS: &str = "
    insert into customer (
        customer_id, last_read_at, updates_elsewhere, budget_set_at, budget_set_by, budget_note
    )
    select
        customer_id, at + interval '2 min', case when n % 1000 = 1 then 1 else 0 end,
        case when n % 1000 = 1 then at end, case when n % 1000 = 1 then 'ana' end,
        case when n % 1000 = 1 then 'told by the customer' end
    from made
    where n % 3 <> 0 and kind not in ('superseded', 'waiting') and n % 1000000 <> 152";

/// What the newest of them say: several faults each, of a hundred places.
const LETTERS: &str = "
    insert into dead_lettered_delivery (message_id, job_id, received_at, size, body_sha256, reason_code, reason)
    select
        md5('letter ' || n)::uuid::text, md5('letter ' || n)::uuid, now() - ($3 - n) * interval '1 min', 600,
        sha256(n::text::bytea), 'invalid',
        '/document_details/field_' || n % 100 || ': is missing; /document_type: is not known'
    from generate_series($1::bigint + 1, $2::bigint) n";

/// What people did, to one job in a hundred.
const DEEDS: &str = "
    insert into intervention (at, action, by, note, job_id, customer_id, detail, entries)
    select
        at, action, 'ana', 'a note of some words, as people write them',
        case when action = 'replay' then md5('job ' || n * 100 + 7)::uuid end,
        case when action <> 'pause' then md5('customer ' || (n * 100 + 7) * 2 / 3)::uuid end,
        case when action = 'replay' then 'was exhausted (attempts)' end, case when action = 'replay' then 1 end
    from generate_series($1::bigint + 1, $2::bigint) n
    cross join lateral (
        select
            now() - ($3 - n) * interval '5 min' as at,
            case when n % 1000 = 0 then 'pause' when n % 1000 = 1 then 'resume' when n % 10 = 3 then 'budget'
                else 'replay' end as action
    ) done";

/// Who saw whom.
const SIGHTS: &str = "
    insert into access_record (at, by, page, job_id, customer_id)
    select
        now() - ($3 - n) * interval '20 s', 'ana', '/jobs/{id}', md5('job ' || n)::uuid,
        md5('customer ' || n * 2 / 3)::uuid
    from generate_series($1::bigint + 1, $2::bigint) n";

/// One in fifty waits for somebody to decide.
const ASKED_FOR: &str = "
    insert into proposal (
        action, job_id, note, proposed_by, proposed_at, version, decision, decided_by, decided_at, decision_note
    )
    select
        'replay', job_id, 'the provider is mended', 'ana', now(), 'exhausted, claim 1, 0 entries',
        case when n % 50 <> 0 then 'declined' end, case when n % 50 <> 0 then 'ben' end,
        case when n % 50 <> 0 then now() end, case when n % 50 <> 0 then 'not today' end
    from (
        select row_number() over () as n, job_id
        from (select job_id from submission where state = 'exhausted' and sealed_payload is not null limit $2) known
    ) numbered
    where n > $1";

/// What the console says of a page that has nothing to be had as CSV.
const NO_TABLE: &str = "There is no such table";

/// What replicas have counted, and are set to.
const COUNTED: &str = "
    insert into fleet_ended (minute, state, jobs)
    select date_trunc('minute', now()) - ago * interval '1 min', state, 100
    from generate_series(0, 1439) ago
    cross join unnest(array['accepted', 'rejected', 'superseded', 'exhausted', 'needs_review']) state;
    insert into fleet_error (minute, verdict, detail, http_status, attempts)
    select date_trunc('minute', now()) - ago * interval '1 min', verdict, detail, 0, 10
    from generate_series(0, 1439) ago
    cross join unnest(array['not_sent', 'unknown', 'rejected']) verdict
    cross join unnest(array['connect', 'timeout', 'field_refused']) detail;
    insert into fleet_figure (figure, part, value)
    select 'open_jobs', state, 1000 from unnest(array['waiting_retry', 'waiting_customer', 'needs_review']) state;
    update fleet_reading set read_at = now(), minutes_until = now();
    insert into worker (name, instance, version, started_at, seen_at, in_flight, settings)
    select
        'worker-' || nth, 'one', '0.1.0', now(), now(), 10,
        (select jsonb_object_agg('SETTING_' || setting, setting) from generate_series(1, 80) setting)
    from generate_series(1, 20) nth;
    insert into lost_commit (worker, job_id, customer_id, lost, is_restored)
    select
        'worker-1', md5('job ' || n * 1000 + 1)::uuid, md5('customer ' || (n * 1000 + 1) * 2 / 3)::uuid, 'job',
        n % 2 = 0
    from generate_series(1, 100) n";

/// One address of a console.
struct Asked {
    /// The route, with what is asked of it.
    page: String,
    /// What is asked for, in one round and the next, without its form.
    addresses: Vec<String>,
    suffix: &'static str,
}

impl Asked {
    fn address(&self, round: usize) -> String {
        let address = &self.addresses[round % self.addresses.len()];
        match address.split_once('?') {
            Some((path, query)) => format!("{path}{}?{query}", self.suffix),
            None => format!("{address}{}", self.suffix),
        }
    }
}

impl Bench<'_> {
    /// Asks for every page in every form, beside the largest number of rows.
    pub async fn console(&self) -> anyhow::Result<Console> {
        let pool = self.stage.recreate_database().await?;
        let desk_url = self.stage.make_desk_login(&pool).await?;
        let rows = self.arguments.rows.iter().copied().max().unwrap_or_default();
        ensure!(rows > 0, "--rows: part console has pages about jobs; say how many there are");
        fill(&pool, rows).await?;
        let console = self.stage.start_console(&desk_url).await?;
        let pages = pages(&pool).await?;
        let pages = with_forms(&console, pages).await?;
        let rounds = self.arguments.runs.unwrap_or(ROUNDS);
        let alone = ask_in_turn(&console, &pages, rounds, 0).await?;
        let each = rounds.div_ceil(TOGETHER);
        let askers = (0..TOGETHER).map(|asker| ask_in_turn(&console, &pages, each, asker));
        let together: Vec<Vec<Vec<f64>>> = try_join_all(askers).await?;
        console.program.stop().await?;
        let statements = self.explain_console(&pool).await?;
        let mut told: Vec<PageTimes> = Vec::new();
        let mut at = 0;
        // The forms of a page come one after the other.
        while let Some(first) = pages.get(at) {
            let forms = pages[at..].iter().take_while(|asked| asked.page == first.page).count();
            let times = |of: &[Vec<f64>]| of[at..at + forms].concat();
            let with_others: Vec<f64> = together.iter().flat_map(|of| times(of)).collect();
            told.push(PageTimes {
                page: first.page.clone(),
                forms,
                alone: Times::of(&times(&alone)),
                together: Times::of(&with_others),
            });
            at += forms;
        }
        Ok(Console { rows, rounds, at_once: TOGETHER, pages: told, statements })
    }

    /// What pages ask, planned for the role that the console has.
    async fn explain_console(&self, pool: &PgPool) -> anyhow::Result<Vec<Statement>> {
        let url = plans::explained(&self.stage.bench_database_url(), Some(DESK_LOGIN));
        let log = Log::default();
        let guard = log.listen();
        let (explained, actions) =
            journal::connect_for_console(&database_settings(url.as_str()), &Secret::from(url.as_str()))
                .await?;
        explain_pages(&explained, &Example::waiting_for_a_person(pool).await?).await?;
        explained.close().await;
        actions.close().await;
        drop(guard);
        let statements = plans::read(&log.text());
        ensure!(!statements.is_empty(), "auto_explain told no plans; is the module installed?");
        for statement in &statements {
            for fault in &statement.faults {
                eprintln!("{}: {fault}: {}", statement.name, statement.plan);
            }
        }
        Ok(statements)
    }
}

/// Makes the rows that pages are about, and leaves them as they are at rest.
async fn fill(pool: &PgPool, rows: u64) -> anyhow::Result<()> {
    let history =
        [("submission", JOBS), ("attempt", ATTEMPTS), ("observation", OBSERVATIONS), ("customer", CUSTOMERS)];
    fill_tables(pool, &history.map(|(table, sql)| (table, format!("{}{sql}", made(rows)))), 0, rows).await?;
    for (table, sql, rows) in [
        ("dead_lettered_delivery", LETTERS, DEAD_LETTERS),
        ("intervention", DEEDS, INTERVENTIONS),
        ("access_record", SIGHTS, ACCESSES),
        ("proposal", ASKED_FOR, PROPOSALS),
    ] {
        let sql = sql.replace("$3", &rows.to_string());
        fill_tables(pool, &[(table, sql)], 0, rows).await?;
    }
    sqlx::raw_sql(COUNTED).execute(pool).await?;
    Ok(())
}

/// Every page with what is asked of it. Ids are those of rows all over the tables.
async fn pages(pool: &PgPool) -> anyhow::Result<Vec<(String, Vec<String>)>> {
    let ids = async |of: &str| -> anyhow::Result<Vec<String>> {
        let ids: Vec<String> = sqlx::query_scalar(of).bind(IDS).fetch_all(pool).await?;
        ensure!(!ids.is_empty(), "no row is there: {of}; give more --rows");
        Ok(ids)
    };
    let of_kind = |what: &str, condition: &str| {
        format!("select {what}::text from submission where {condition} order by ended_at desc limit $1")
    };
    let job = ids(&of_kind("job_id", "ended_at is not null")).await?;
    let reviewed = ids(&of_kind("job_id", "state = 'needs_review'")).await?;
    let exhausted = ids(&of_kind("job_id", "state = 'exhausted' and sealed_payload is not null")).await?;
    let customer = ids(&of_kind("customer_id", "state = 'needs_review'")).await?;
    let many = ids("select md5('customer of many')::uuid::text from generate_series(1, $1)").await?;
    let of_many = ids(&of_kind("job_id", "state = 'superseded' and ended_at is not null")).await?;
    let proposal = ids("select id::text from proposal where decision is null limit $1").await?;
    let mut pages = Vec::new();
    for route in ROUTES.iter().filter(|route| route.method == "get") {
        let mut ask = |about: &str, query: &str, ids: &[String]| {
            let put_in = |id: &String| format!("{}{query}", route.path).replace("{id}", id);
            pages.push((format!("{}{about}", route.path), ids.iter().map(put_in).collect::<Vec<_>>()));
        };
        let none = &[String::new()];
        match route.path {
            "/find" => {
                ask(", a job", "?q={id}", &job);
                ask(", a customer", "?q={id}", &customer);
                ask(", a correlation_id of many", "?q=one%20upload", none);
            }
            "/jobs/{id}" => {
                ask("", "", &job);
                ask(", of the customer of many", "", &of_many);
            }
            "/jobs/{id}/replay" => ask("", "", &exhausted),
            "/jobs/{id}/resolve" => ask("", "?as=accepted", &reviewed),
            "/customers/{id}" => {
                ask("", "", &customer);
                ask(", of many jobs", "", &many[..1]);
            }
            "/customers/{id}/budget" => ask("", "?used=1", &customer),
            "/review" => {
                ask("", "", none);
                ask(", a rare reason", "?reason=last_update", none);
            }
            "/review/{id}" => ask("", "", &reviewed),
            "/replay" => {
                ask("", "", none);
                ask(", a state", "?state=exhausted", none);
                ask(", a rare reason", "?reason=provider_down", none);
            }
            "/proposals/{id}" => ask("", "", &proposal),
            "/interventions" => {
                ask("", "", none);
                ask(", an older page", "?before=10000", none);
            }
            "/access" => {
                ask("", "", none);
                ask(", of a customer", "?customer={id}", &customer);
            }
            path if !path.contains('{') => ask("", "", none),
            path => bail!("{path}: the benchmark knows no address of this page; add one"),
        }
    }
    Ok(pages)
}

/// The pages in every form that they have: not each has a table.
async fn with_forms(
    console: &ConsoleProgram,
    pages: Vec<(String, Vec<String>)>,
) -> anyhow::Result<Vec<Asked>> {
    let mut asked = Vec::new();
    for (page, addresses) in pages {
        let suffixes: &[&str] = if page == "/" { &[""] } else { &["", ".json", ".csv"] };
        for suffix in suffixes {
            let form = Asked { page: page.clone(), addresses: addresses.clone(), suffix };
            let (status, body) = console.get(&form.address(0)).await?;
            let has_no_table =
                *suffix == ".csv" && status == StatusCode::NOT_FOUND && body.contains(NO_TABLE);
            if !has_no_table {
                ensure!(is_answer(status), "{}: {status}: {body}", form.address(0));
                asked.push(form);
            }
        }
    }
    Ok(asked)
}

/// A page, or the way to the one that was meant.
fn is_answer(status: StatusCode) -> bool {
    matches!(status, StatusCode::OK | StatusCode::SEE_OTHER)
}

/// Asks for each once a round, from another one on than the other askers. Returns how long each took, in ms.
async fn ask_in_turn(
    console: &ConsoleProgram,
    pages: &[Asked],
    rounds: usize,
    asker: usize,
) -> anyhow::Result<Vec<Vec<f64>>> {
    let mut took = vec![Vec::with_capacity(rounds); pages.len()];
    let first = asker * pages.len() / TOGETHER;
    for round in 0..rounds {
        for at in (first..pages.len()).chain(0..first) {
            let address = pages[at].address(asker * rounds + round);
            let begun = Instant::now();
            let (status, body) = console.get(&address).await?;
            took[at].push(begun.elapsed().as_secs_f64() * 1000.0);
            ensure!(is_answer(status), "{address}: {status}: {body}");
        }
    }
    Ok(took)
}

/// The console's settings of the database at `url`.
fn database_settings(url: &str) -> DatabaseSettings {
    DatabaseSettings {
        database_url: vec![Secret::from(url)],
        database_url_file: Vec::new(),
        database_connections: 10,
        allow_unsafe_database: true,
    }
}
