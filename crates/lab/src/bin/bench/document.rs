//! The figures as people read them: tables in the terminal, and tables and plots in the
//! documents, between marks. Must not measure.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use comfy_table::Table as Grid;
use comfy_table::presets::{ASCII_MARKDOWN, NOTHING};
use indicatif::HumanCount;

use crate::figures::{
    Archive, Console, CpuMicros, Latency, Line, PageTimes, Report, Rows, Single, SingleLine, SingleRun, Size,
    Statement, Table, Times,
};
use crate::parts::Part;
use crate::plot::{Bar, bars};
use crate::stage::{Contender, JobIds};

const END: &str = "<!-- end of figures -->";

/// A peak hour has so many times the jobs of an average one.
const PEAK: f64 = 3.0;

/// What the provider takes, where something must be assumed.
const PROVIDER_SECONDS: f64 = 0.3;

/// A page of the console is there by then, of twenty all but one.
const PAGE_MS_MAX: f64 = 100.0;

const SECONDS_A_DAY: f64 = 86_400.0;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Form {
    Terminal,
    Markdown,
}

/// A column: its head, and what a line has there.
type Column = (&'static str, fn(&Line, &Table) -> String);

const WHO: Column = ("", |line, _| line.contender.name().to_owned());
const REPLICAS: Column = ("replicas", |line, _| line.replicas.to_string());
const TELLS: Column =
    ("upstream", |line, _| if line.tells_upstream { "is told" } else { "is not told" }.to_owned());
const FAILING: Column = ("failing", |line, _| format!("{} %", line.failing_percent));
const RATE: Column = ("jobs/s", |line, _| whole(line.rate()));
const RANGE: Column = ("from – to", |line, _| {
    let (low, high) = line.rates();
    format!("{} – {}", whole(low), whole(high))
});
const OF_CEILING: Column = ("of the ceiling", |line, table| of(line, table.line_of(Contender::Ceiling)));
const OF_FIRST: Column = ("of the first", |line, table| of(line, table.lines.first()));
const POSSIBLE: Column = ("possible", |_, table| {
    whole(table.concurrency as f64 * 1000.0 / table.provider_latency_ms.max(1) as f64)
});
const PROGRAM_CPU: Column = ("its CPU µs", |line, _| whole(line.median(|run| run.cpu_us.programs)));
const BROKER_CPU: Column = ("broker µs", |line, _| whole(line.median(|run| run.cpu_us.broker)));
const POSTGRES_CPU: Column = ("Postgres µs", |line, _| whole(line.median(|run| run.cpu_us.postgres)));
const PROVIDER_CPU: Column = ("provider µs", |line, _| whole(line.median(|run| run.cpu_us.provider)));
const MEMORY: Column = ("peak MB", |line, _| whole(line.median(|run| run.peak_memory_mb)));
const P50: Column = ("p50 ms", |line, _| quantile(line, |latency| latency.p50));
const P99: Column = ("p99 ms", |line, _| quantile(line, |latency| latency.p99));
const SETTLED: Column =
    ("last outcome after s", |line, _| format!("{:.1}", line.median(|run| run.settled_after_s)));

const THROUGHPUT: [Column; 11] =
    [WHO, RATE, RANGE, OF_CEILING, PROGRAM_CPU, BROKER_CPU, POSTGRES_CPU, PROVIDER_CPU, MEMORY, P50, P99];
const LATENCY: [Column; 10] =
    [WHO, RATE, POSSIBLE, OF_CEILING, PROGRAM_CPU, BROKER_CPU, POSTGRES_CPU, MEMORY, P50, P99];
const WORKERS: [Column; 8] = [REPLICAS, RATE, OF_FIRST, PROGRAM_CPU, BROKER_CPU, POSTGRES_CPU, MEMORY, P99];
const RETRIES: [Column; 8] = [FAILING, RATE, OF_FIRST, PROGRAM_CPU, BROKER_CPU, POSTGRES_CPU, P50, SETTLED];
const EVENTS: [Column; 9] =
    [TELLS, RATE, RANGE, OF_FIRST, PROGRAM_CPU, BROKER_CPU, POSTGRES_CPU, MEMORY, P99];
const PEERS: [Column; 9] =
    [WHO, RATE, RANGE, OF_CEILING, PROGRAM_CPU, BROKER_CPU, POSTGRES_CPU, PROVIDER_CPU, MEMORY];

/// What a part saw; nothing where it was not measured.
pub fn part(report: &Report, part: Part, form: Form) -> String {
    let text = match part {
        Part::Throughput => report.throughput.as_ref().map(|table| grid(table, &THROUGHPUT, form)),
        Part::Latency => report.latency.as_ref().map(|tables| {
            let each = tables.iter().map(|table| {
                let about = format!("The provider takes {} ms:", table.provider_latency_ms);
                format!("{about}\n\n{}", grid(table, &LATENCY, form))
            });
            each.collect::<Vec<_>>().join("\n\n")
        }),
        Part::Replicas => report.replicas.as_ref().map(|table| grid(table, &WORKERS, form)),
        Part::Retries => report.retries.as_ref().map(|table| grid(table, &RETRIES, form)),
        Part::Events => report.events.as_ref().map(|table| grid(table, &EVENTS, form)),
        Part::Single => report.single.as_ref().map(|single| singles(single, form)),
        Part::Archive => report.archive.as_ref().map(|archive| archived(archive, form)),
        Part::Console => report.console.as_ref().map(|console| match form {
            Form::Terminal => format!("{}\n\n{}", pages(console, form), page_queries(console, form)),
            Form::Markdown => pages(console, form),
        }),
        Part::Peers => report.peers.as_ref().map(|table| grid(table, &PEERS, form)),
        Part::Idle => report.idle.map(|idle| {
            format!(
                "An idle worker takes {} ms of CPU a second and {} MB; for its polls the broker takes {} ms a \
                 second and Postgres {}.",
                idle.worker_cpu_ms, idle.memory_mb, idle.broker_cpu_ms, idle.postgres_cpu_ms
            )
        }),
        Part::Rows => report.rows.as_ref().map(|rows| match form {
            Form::Terminal => format!(
                "{}\n\n{}\n\n{}\n\n{}",
                growth(rows, form),
                start_up(rows),
                disk(rows, form),
                queries(rows, form)
            ),
            Form::Markdown => format!("{}\n\n{}", growth(rows, form), start_up(rows)),
        }),
        Part::Memory => report.memory.as_ref().map(|memory| {
            let header = ["jobs done", "MB"].map(str::to_owned);
            let lines = memory.samples.iter();
            let lines = lines.map(|sample| vec![HumanCount(sample.jobs).to_string(), sample.memory_mb.to_string()]);
            format!(
                "One run of {} jobs, at {} a second:\n\n{}",
                HumanCount(memory.jobs as u64),
                whole(memory.jobs_per_second),
                draw(&header, lines, form)
            )
        }),
    };
    text.unwrap_or_default()
}

/// What came singly, each line beside the last one, the peer.
fn singles(single: &Single, form: Form) -> String {
    let header = ["", "p50 ms", "p99 ms", "its CPU µs", "broker µs", "Postgres µs"].map(str::to_owned);
    let figures: [fn(&SingleRun) -> f64; 5] = [
        |run| run.to_receipt_ms.p50,
        |run| run.to_receipt_ms.p99,
        |run| run.cpu_us.programs,
        |run| run.cpu_us.broker,
        |run| run.cpu_us.postgres,
    ];
    let peer = single.lines.last();
    let line = |line: &SingleLine| {
        let cells = figures.map(|figure| {
            let (own, peers) =
                (line.median(figure), peer.map(|peer| peer.median(figure)).unwrap_or_default());
            let own_text = if own < 100.0 { format!("{own:.2}") } else { whole(own) };
            match peers > 0.0 && Some(line.contender) != peer.map(|peer| peer.contender) {
                true => format!("{own_text} ({:.2} ×)", own / peers),
                false => own_text,
            }
        });
        [vec![line.contender.name().to_owned()], cells.to_vec()].concat()
    };
    let about = format!(
        "{} jobs, {} a second, from publishing to the provider's receipt of the update:",
        HumanCount(single.jobs as u64),
        single.jobs_per_second
    );
    let compared = draw(&header, single.lines.iter().map(line), form);
    format!("{about}\n\n{compared}\n\n{}", single_queries(single, form))
}

/// What the worker asks the database for one job, and between two, dearest first.
fn single_queries(single: &Single, form: Form) -> String {
    let micros =
        |statement: &Statement| statement.mean_ms * 1000.0 * statement.calls as f64 / single.jobs as f64;
    let mut statements: Vec<&Statement> = single.statements.iter().collect();
    statements.sort_by(|one, other| micros(other).total_cmp(&micros(one)));
    let total: f64 = single.statements.iter().map(micros).sum();
    let header = ["the worker's statement", "calls a job", "µs a job"].map(str::to_owned);
    let lines = statements.into_iter().map(|statement| {
        let calls = statement.calls as f64 / single.jobs as f64;
        vec![code(&statement.name, form), format!("{calls:.2}"), format!("{:.1}", micros(statement))]
    });
    format!(
        "{}\n\nTogether {} µs a job, from the beginning of each statement's execution to its end.",
        draw(&header, lines, form),
        whole(total)
    )
}

/// What the archive took, what the replicas did beside it, and what it left of the tables.
fn archived(archive: &Archive, form: Form) -> String {
    let about = format!(
        "{} jobs archived in {} s, {} a second: {} µs of the command's CPU a job, {} MB of memory at most, and files \
         of {} MB. Meanwhile {} replicas were given {} jobs a second:",
        HumanCount(archive.jobs),
        whole(archive.seconds),
        whole(archive.jobs as f64 / archive.seconds),
        whole(archive.cpu_us),
        whole(archive.peak_memory_mb),
        whole(archive.file_bytes as f64 / 1e6),
        archive.replicas,
        archive.published_per_second
    );
    let header = ["", "jobs", "p50 ms", "p99 ms", "workers' CPU µs", "Postgres µs"].map(str::to_owned);
    let work = ["before it", "beside it"].into_iter().zip(&archive.work).map(|(when, work)| {
        vec![
            when.to_owned(),
            HumanCount(work.jobs).to_string(),
            whole(work.latency_ms.p50),
            whole(work.latency_ms.p99),
            whole(work.cpu_us.programs),
            whole(work.cpu_us.postgres),
        ]
    });
    let worked = draw(&header, work, form);
    let header = [
        "table",
        "MB before",
        "after",
        "once as many came again",
        "its indexes, MB before",
        "after",
        "again",
    ]
    .map(str::to_owned);
    let [before, after, again] = &archive.sizes;
    let megabytes = |bytes: i64| whole(bytes as f64 / 1e6);
    let sizes = before.iter().zip(after).zip(again).map(|((before, after), again)| {
        let each = [before, after, again];
        let tables = each.map(|relation| megabytes(relation.table_bytes));
        let indexes = each.map(|relation| megabytes(relation.index_bytes));
        [vec![code(&before.name, form)], tables.to_vec(), indexes.to_vec()].concat()
    });
    format!("{about}\n\n{worked}\n\n{}", draw(&header, sizes, form))
}

/// Each page with its times; one that is too slow is marked.
fn pages(console: &Console, form: Form) -> String {
    let at_once = |what: &str| format!("{} at once: {what}", console.at_once);
    let header = [
        "page".to_owned(),
        "p50 ms".to_owned(),
        "p95 ms".to_owned(),
        "max ms".to_owned(),
        at_once("p50 ms"),
        at_once("p95 ms"),
        at_once("max ms"),
        String::new(),
    ];
    let line = |page: &PageTimes| {
        let figures = [page.alone, page.together].map(|Times { p50, p95, max }| [p50, p95, max]).concat();
        let figures = figures.iter().map(|figure| format!("{figure:.1}"));
        let is_slow = page.alone.p95.max(page.together.p95) > PAGE_MS_MAX;
        let mark = if is_slow { "too slow" } else { "" };
        [vec![code(&page.page, form)], figures.collect(), vec![mark.to_owned()]].concat()
    };
    format!(
        "{} jobs in the tables; each page {} times in each of its forms (HTML, JSON, CSV), one at a time, and as often \
         {} at once:\n\n{}",
        HumanCount(console.rows),
        console.rounds,
        console.at_once,
        draw(&header, console.pages.iter().map(line), form)
    )
}

/// What the pages ask.
fn page_queries(console: &Console, form: Form) -> String {
    let header =
        ["statement", "calls", "ms", "ms at most", "rows read at most", "looks up", ""].map(str::to_owned);
    let lines = console.statements.iter().map(|statement| {
        vec![
            code(&statement.name, form),
            HumanCount(statement.calls).to_string(),
            statement.mean_ms.to_string(),
            statement.max_ms.to_string(),
            HumanCount(statement.rows_read).to_string(),
            statement.plan.clone(),
            statement.faults.join("; "),
        ]
    });
    draw(&header, lines, form)
}

fn grid(table: &Table, columns: &[Column], form: Form) -> String {
    let header: Vec<String> = columns.iter().map(|(head, _)| (*head).to_owned()).collect();
    let lines = table.lines.iter().map(|line| columns.iter().map(|(_, cell)| cell(line, table)).collect());
    let runs = table.lines.first().map_or(0, |line| line.runs.len());
    format!(
        "{}\n\n{}, {} jobs each; {} in flight and {} deliveries held, of each replica.",
        draw(&header, lines, form),
        if runs == 1 { "One run of each".to_owned() } else { format!("Medians of {runs} runs in turn") },
        HumanCount(table.jobs as u64),
        table.concurrency,
        table.prefetch,
    )
}

fn draw(header: &[String], lines: impl Iterator<Item = Vec<String>>, form: Form) -> String {
    let mut grid = Grid::new();
    grid.load_style(if form == Form::Markdown { ASCII_MARKDOWN } else { NOTHING });
    grid.set_header(header.to_vec());
    for line in lines {
        grid.add_row(line);
    }
    grid.trim_fmt()
}

fn growth(rows: &Rows, form: Form) -> String {
    let header = [
        "ended jobs in the tables",
        "job ids",
        "jobs/s",
        "of the ceiling",
        "CPU µs a job",
        "of it Postgres",
        "log KB a job",
        "CPU to the first",
    ];
    let line = |size: &Size, job_ids: JobIds| {
        let worker = size.table.worker_with(job_ids)?;
        Some(vec![
            HumanCount(size.rows).to_string(),
            job_ids.name().to_owned(),
            whole(worker.rate()),
            of(worker, size.table.line_of(Contender::Ceiling)),
            whole(worker.paid()),
            whole(worker.median(|run| run.cpu_us.postgres)),
            format!("{:.1}", worker.median(|run| run.wal_bytes) / 1024.0),
            percent(grown(rows, size, job_ids)?),
        ])
    };
    let lines = [JobIds::Random, JobIds::Growing]
        .into_iter()
        .flat_map(|job_ids| rows.sizes.iter().filter_map(move |size| line(size, job_ids)));
    draw(&header.map(str::to_owned), lines, form)
}

/// CPU a job beside that many rows, to that beside none.
fn grown(rows: &Rows, size: &Size, job_ids: JobIds) -> Option<f64> {
    let first = rows.sizes.first()?.table.worker_with(job_ids)?;
    Some(size.table.worker_with(job_ids)?.paid() / first.paid())
}

fn start_up(rows: &Rows) -> String {
    let started =
        rows.with_parked.line_of(Contender::Worker).map_or(0.0, |line| line.median(|run| run.start_up_ms));
    format!(
        "With {} more jobs that wait and are due later, a worker sends its first update {started:.0} ms after its \
         start, drains {} jobs/s, and takes {} ms of CPU a second when idle, Postgres {} for it.",
        HumanCount(rows.parked),
        rows.with_parked.line_of(Contender::Worker).map(|line| whole(line.rate())).unwrap_or_default(),
        rows.idle_with_parked.worker_cpu_ms,
        rows.idle_with_parked.postgres_cpu_ms,
    )
}

/// Bytes that a job leaves behind for ever: its row, its attempt, its verification's end.
fn bytes_a_job(rows: &Rows) -> Option<f64> {
    let relations = &rows.sizes.last()?.relations;
    let jobs = relations.iter().find(|relation| relation.name == "submission")?.rows;
    let bytes: i64 = relations.iter().map(|relation| relation.table_bytes + relation.index_bytes).sum();
    (jobs > 0.0).then(|| bytes as f64 / jobs)
}

fn disk(rows: &Rows, form: Form) -> String {
    let header = ["table", "rows", "MB a million rows", "its indexes, MB"].map(str::to_owned);
    let relations = rows.sizes.last().map(|size| size.relations.as_slice()).unwrap_or_default();
    let lines = relations.iter().map(|relation| {
        let a_million = |bytes: i64| whole(bytes as f64 / relation.rows.max(1.0));
        vec![
            relation.name.clone(),
            HumanCount(relation.rows as u64).to_string(),
            a_million(relation.table_bytes),
            a_million(relation.index_bytes),
        ]
    });
    let grid = draw(&header, lines, form);
    let a_job = bytes_a_job(rows).unwrap_or_default();
    format!("{grid}\n\nTogether {} MB for a million jobs, indexes included.", whole(a_job))
}

fn queries(rows: &Rows, form: Form) -> String {
    let (Some(first), Some(last)) = (rows.sizes.first(), rows.sizes.last()) else { return String::new() };
    let all = |size: &Size| [size.statements.clone(), size.commands.clone()].concat();
    let before = all(first);
    let header = [
        "statement".to_owned(),
        "calls".to_owned(),
        format!("ms at {}", HumanCount(first.rows)),
        format!("ms at {}", HumanCount(last.rows)),
        "rows read at most".to_owned(),
        "looks up, writes".to_owned(),
        "".to_owned(),
    ];
    let lines = all(last).into_iter().map(|statement: Statement| {
        let then = before.iter().find(|earlier| earlier.name == statement.name);
        vec![
            code(&statement.name, form),
            HumanCount(statement.calls).to_string(),
            then.map(|then| then.mean_ms.to_string()).unwrap_or_default(),
            statement.mean_ms.to_string(),
            HumanCount(statement.rows_read).to_string(),
            statement.plan,
            statement.faults.join("; "),
        ]
    });
    draw(&header, lines, form)
}

fn code(text: &str, form: Form) -> String {
    if form == Form::Markdown { format!("`{text}`") } else { text.to_owned() }
}

fn of(line: &Line, other: Option<&Line>) -> String {
    other.map(|other| percent(line.rate() / other.rate())).unwrap_or_default()
}

fn quantile(line: &Line, of: fn(&Latency) -> f64) -> String {
    if line.contender == Contender::Worker {
        whole(line.median(|run| run.latency_ms.as_ref().map_or(0.0, of)))
    } else {
        String::new()
    }
}

fn whole(value: f64) -> String {
    HumanCount(value.round() as u64).to_string()
}

fn percent(ratio: f64) -> String {
    format!("{:.0} %", ratio * 100.0)
}

/// One screen: how fast, and against what.
fn summary(report: &Report) -> Option<String> {
    let table = report.throughput.as_ref()?;
    let (worker, ceiling) = (table.line_of(Contender::Worker)?, table.line_of(Contender::Ceiling));
    let cpu = cpu(worker);
    let mut lines = vec![
        format!(
            "**{} jobs/s** with one worker, {} of the ceiling; {} ms from receipt to outcome at p50, {} at p99; {} MB.",
            whole(worker.rate()),
            of(worker, ceiling),
            quantile(worker, |latency| latency.p50),
            quantile(worker, |latency| latency.p99),
            whole(worker.median(|run| run.peak_memory_mb)),
        ),
        format!(
            "**{} µs of CPU a job**: the worker {}, the broker {}, Postgres {}.",
            whole(cpu.paid()),
            whole(cpu.programs),
            whole(cpu.broker),
            whole(cpu.postgres)
        ),
    ];
    if let Some(peers) = &report.peers {
        let worker = peers.line_of(Contender::Worker).map_or(0.0, Line::rate);
        let times = |contender| peers.line_of(contender).map_or(0.0, |peer| worker / peer.rate());
        lines.push(format!(
            "**{:.1} times** the same in Node.js, {:.1} times a plain Rust worker with a commit a statement.",
            times(Contender::Node),
            times(Contender::Naive)
        ));
    }
    if let Some(rows) = &report.rows
        && let Some(last) = rows.sizes.last()
        && let [Some(random), Some(growing)] =
            [JobIds::Random, JobIds::Growing].map(|job_ids| grown(rows, last, job_ids))
    {
        lines.push(format!(
            "**{} of the CPU a job** beside {} ended jobs, to empty tables; {} where job ids are random.",
            percent(growing),
            HumanCount(last.rows),
            percent(random),
        ));
    }
    lines.push(format!("{}.", report.machine));
    Some(lines.iter().map(|line| format!("- {line}")).collect::<Vec<_>>().join("\n"))
}

fn cpu(line: &Line) -> CpuMicros {
    CpuMicros {
        programs: line.median(|run| run.cpu_us.programs),
        broker: line.median(|run| run.cpu_us.broker),
        postgres: line.median(|run| run.cpu_us.postgres),
        provider: line.median(|run| run.cpu_us.provider),
    }
}

/// The cost of a job at a rate: as it was measured at the next higher one. Where jobs come
/// slowly, fewer share a commit, and each costs more.
fn worker_at(report: &Report, rate: f64) -> Option<&Line> {
    let fastest = report.throughput.as_ref()?.line_of(Contender::Worker)?;
    let slower = report.latency.iter().flatten().filter_map(|table| table.line_of(Contender::Worker));
    let enough = slower.filter(|line| line.rate() >= rate && line.rate() < fastest.rate());
    Some(enough.min_by(|one, other| one.rate().total_cmp(&other.rate())).unwrap_or(fastest))
}

/// What a load costs, from the measured cost of a job.
fn arithmetic(report: &Report, jobs_a_day: impl Iterator<Item = f64>) -> Option<String> {
    let disk = report.rows.as_ref().and_then(bytes_a_job)?;
    let header = [
        "jobs a day",
        "jobs/s at the peak",
        "in flight",
        "CPU µs a job",
        "workers' cores",
        "broker's",
        "Postgres'",
        "WAL MB/s",
        "disk GB a year",
    ];
    let lines = jobs_a_day.filter_map(|jobs| {
        let peak = jobs / SECONDS_A_DAY * PEAK;
        let worker = worker_at(report, peak)?;
        let (cpu, wal) = (cpu(worker), worker.median(|run| run.wal_bytes));
        let cores = |micros: f64| format!("{:.2}", peak * micros / 1e6);
        Some(vec![
            whole(jobs),
            format!("{peak:.1}"),
            whole((peak * PROVIDER_SECONDS).ceil()),
            whole(cpu.paid()),
            cores(cpu.programs),
            cores(cpu.broker),
            cores(cpu.postgres),
            format!("{:.2}", peak * wal / 1e6),
            format!("{:.1}", jobs * 365.0 * disk / 1e9),
        ])
    });
    Some(format!(
        "{}\n\nThe peak is {PEAK:.0} times the mean; the provider takes {:.0} ms; a job leaves {} bytes for ever. Its CPU \
         is what was measured at the next higher rate: where jobs come slowly, fewer share a commit, and each \
         costs more.",
        draw(&header.map(str::to_owned), lines, Form::Markdown),
        PROVIDER_SECONDS * 1000.0,
        whole(disk),
    ))
}

/// What a core carries: where each wall stands.
fn walls(report: &Report) -> Option<String> {
    let table = report.throughput.as_ref()?;
    let cpu = cpu(table.line_of(Contender::Worker)?);
    let header = ["", "µs a job", "jobs/s a core", "jobs a day a core, at a peak of three times the mean"];
    let line = |who: &str, micros: f64| {
        vec![
            who.to_owned(),
            whole(micros),
            whole(1e6 / micros),
            format!("{} million", whole(1e6 / micros * SECONDS_A_DAY / PEAK / 1e6)),
        ]
    };
    let lines = [line("worker", cpu.programs), line("broker", cpu.broker), line("Postgres", cpu.postgres)];
    Some(draw(&header.map(str::to_owned), lines.into_iter(), Form::Markdown))
}

/// A document, and what stands between its marks.
fn sections(report: &Report) -> Vec<(&'static str, &'static str, Option<String>)> {
    let of_part = |which| Some(part(report, which, Form::Markdown)).filter(|text| !text.is_empty());
    let rows = report.rows.as_ref();
    let scale =
        |thousands: [f64; 5]| arithmetic(report, thousands.into_iter().map(|thousand| thousand * 1e3));
    vec![
        ("docs/performance.md", "summary", summary(report)),
        ("docs/performance.md", "throughput", of_part(Part::Throughput)),
        ("docs/performance.md", "latency", of_part(Part::Latency)),
        ("docs/performance.md", "replicas", of_part(Part::Replicas)),
        ("docs/performance.md", "retries", of_part(Part::Retries)),
        ("docs/performance.md", "idle", of_part(Part::Idle)),
        ("docs/performance.md", "peers", of_part(Part::Peers)),
        ("docs/performance.md", "rows", of_part(Part::Rows)),
        ("docs/performance.md", "memory", of_part(Part::Memory)),
        ("docs/performance.md", "events", of_part(Part::Events)),
        ("docs/performance.md", "single", of_part(Part::Single)),
        ("docs/performance.md", "console", of_part(Part::Console)),
        ("docs/performance.md", "archive", of_part(Part::Archive)),
        ("docs/performance.md", "scale", scale([1.0, 10.0, 100.0, 1_000.0, 10_000.0])),
        ("docs/scaling.md", "arithmetic", scale([100.0, 1_000.0, 10_000.0, 100_000.0, 1_000_000.0])),
        ("docs/scaling.md", "walls", walls(report)),
        ("docs/database.md", "disk", rows.map(|rows| disk(rows, Form::Markdown))),
        ("docs/database.md", "queries", rows.map(|rows| queries(rows, Form::Markdown))),
    ]
}

fn plots(report: &Report) -> Vec<(&'static str, String)> {
    let rates = |title: &str, table: &Table, label: &dyn Fn(&Line) -> String, marked: &str| {
        let bar = |line: &Line| Bar {
            label: label(line),
            value: line.rate(),
            text: format!("{} jobs/s", whole(line.rate())),
        };
        let lines: Vec<Bar> = table.lines.iter().map(bar).collect();
        bars(title, &lines, |bar| bar.label.starts_with(marked))
    };
    let mut plots = Vec::new();
    if let Some(table) = &report.peers {
        let label = |line: &Line| line.contender.name().to_owned();
        plots.push(("docs/img/peers.svg", rates("Jobs a second, one process each", table, &label, "worker")));
    }
    if let Some(table) = &report.replicas {
        let label = |line: &Line| format!("{} replicas", line.replicas);
        plots.push(("docs/img/replicas.svg", rates("Jobs a second, on one machine", table, &label, "1 ")));
    }
    if let Some(rows) = &report.rows {
        let bar = |size: &Size, job_ids: JobIds| {
            let paid = size.table.worker_with(job_ids)?.paid();
            Some(Bar {
                label: format!("{} jobs, {} ids", HumanCount(size.rows), job_ids.name()),
                value: paid,
                text: format!("{} µs a job", whole(paid)),
            })
        };
        let lines: Vec<Bar> = [JobIds::Random, JobIds::Growing]
            .into_iter()
            .flat_map(|job_ids| rows.sizes.iter().filter_map(move |size| bar(size, job_ids)))
            .collect();
        plots.push(("docs/img/rows.svg", bars("CPU of worker, broker and Postgres", &lines, |_| true)));
    }
    if let Some(memory) = &report.memory {
        let bar = |sample: &crate::figures::MemorySample| Bar {
            label: format!("{} jobs", HumanCount(sample.jobs)),
            value: sample.memory_mb,
            text: format!("{} MB", sample.memory_mb),
        };
        let lines: Vec<Bar> = memory.samples.iter().map(bar).collect();
        plots.push(("docs/img/memory.svg", bars("The worker's memory in one run", &lines, |_| true)));
    }
    plots
}

/// Each file as it should be. What was not measured stays as it is.
fn files(root: &Path, report: &Report) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let mut files: Vec<(PathBuf, String)> = Vec::new();
    for (name, mark, text) in sections(report) {
        let Some(text) = text else { continue };
        let path = root.join(name);
        let known = files.iter().position(|(other, _)| *other == path);
        let before = match known {
            Some(at) => files.remove(at).1,
            None => fs::read_to_string(&path).with_context(|| format!("cannot read {name}"))?,
        };
        let after =
            between(&before, mark, &text).ok_or_else(|| anyhow!("{name}: marks no figures: {mark}"))?;
        files.push((path, after));
    }
    files.extend(plots(report).into_iter().map(|(name, svg)| (root.join(name), svg)));
    Ok(files)
}

/// The document with other text between its marks.
fn between(document: &str, mark: &str, text: &str) -> Option<String> {
    let begin = format!("<!-- figures: {mark} -->\n");
    let (before, rest) = document.split_once(&begin)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{begin}{text}\n{END}{after}"))
}

/// Writes the figures into the documents.
pub fn write(root: &Path, report: &Report) -> anyhow::Result<()> {
    for (path, text) in files(root, report)? {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documents_have_the_figures_that_were_measured() {
        let root = &Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let report = Report::read(&root.join("docs/performance.json")).unwrap();
        #[expect(clippy::disallowed_methods, reason = "how `make docs` asks")]
        if std::env::var_os("UPDATE_DOCS").is_some() {
            write(root, &report).unwrap();
        }
        for (path, expected) in files(root, &report).unwrap() {
            let found = fs::read_to_string(&path).unwrap();
            assert!(found == expected, "{} has other figures; `make docs` writes it anew", path.display());
        }
    }

    #[test]
    fn text_is_put_between_its_marks_alone() {
        let document = format!("a\n<!-- figures: x -->\nold\n{END}\nb\n<!-- figures: y -->\n{END}\n");
        let expected = format!("a\n<!-- figures: x -->\nnew\n{END}\nb\n<!-- figures: y -->\n{END}\n");
        assert_eq!(between(&document, "x", "new"), Some(expected));
        assert_eq!(between(&document, "z", "new"), None);
    }
}
