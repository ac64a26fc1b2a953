//! `kyc-worker export`: jobs for auditors, as CSV or JSON lines, in constant memory.

use std::io::{BufWriter, Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use futures_util::TryStreamExt as _;
use indicatif::HumanCount;
use serde::Serialize as _;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime};

use super::database::open_database;
use super::terminal::progress;
use crate::config::DatabaseSettings;
use crate::desk::archive::{archived_jobs, hold_off};
use crate::desk::export::{ExportedJob, Span, count_jobs, jobs, lift_time_limit};
use crate::visible::cell;

/// Write jobs to standard output for auditors, masked
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker export --since 2026-07-01 --until 2026-10-01 --format csv > q3.csv\n  kyc-worker export --since 2026-01-01 --archive /srv/kyc-archive > year.jsonl\n\nJobs that were archived are in the export only with --archive."
)]
pub(super) struct ExportArgs {
    /// Jobs received from then on, such as 2026-07-01 or 2026-07-01T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: OffsetDateTime,
    /// Jobs received before then [default: now]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<OffsetDateTime>,
    /// How they are written
    #[arg(long, default_value = "jsonl")]
    format: ExportFormat,
    /// The directory of the archive: its jobs of the span come first, file by file
    #[arg(long, value_name = "DIRECTORY")]
    archive: Option<PathBuf>,
    #[command(flatten)]
    database: DatabaseSettings,
}

/// How exported jobs are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum ExportFormat {
    /// A line of column names, then one line a job
    Csv,
    /// One JSON object a line
    Jsonl,
}

/// A day in UTC, or a moment as RFC 3339 writes it.
pub(super) fn parse_time(text: &str) -> Result<OffsetDateTime, String> {
    let day = format_description!("[year]-[month]-[day]");
    Date::parse(text, day)
        .map(|date| date.midnight().assume_utc())
        .or_else(|_| OffsetDateTime::parse(text, &Rfc3339))
        .map_err(|_| "write a day, 2026-07-01, or a moment, 2026-07-01T12:00:00Z".to_owned())
}

pub(super) async fn run(args: &ExportArgs) -> anyhow::Result<ExitCode> {
    let pool = open_database(&args.database).await?;
    let mut connection = pool.acquire().await?.detach();
    lift_time_limit(&mut connection).await?;
    let span = Span { since: args.since, until: args.until.unwrap_or_else(OffsetDateTime::now_utc) };
    let count = count_jobs(&mut connection, span).await?;
    let progress = progress(u64::try_from(count).unwrap_or_default(), "jobs")?;

    let mut sink = Sink::new(args.format)?;
    let mut written = 0_u64;
    if let Some(path) = &args.archive {
        hold_off(&mut connection).await?;
        archived_jobs(&mut connection, path, span, |job| {
            written += 1;
            sink.write(&job).context("cannot write the export; it is not whole")
        })
        .await?;
    }
    let mut exported = jobs(&mut connection, span);
    while let Some(job) = exported.try_next().await.context("the export is not whole")? {
        sink.write(&job).context("cannot write the export; it is not whole")?;
        written += 1;
        progress.inc(1);
    }
    sink.finish().context("cannot write the export; it is not whole")?;
    progress.finish_and_clear();
    eprintln!("exported {} jobs", HumanCount(written));
    Ok(ExitCode::SUCCESS)
}

enum Sink {
    Csv(Box<csv::Writer<std::io::StdoutLock<'static>>>),
    Jsonl(BufWriter<std::io::StdoutLock<'static>>),
}

impl Sink {
    fn new(format: ExportFormat) -> anyhow::Result<Self> {
        let out = stdout().lock();
        Ok(match format {
            ExportFormat::Csv => {
                let mut writer = csv::Writer::from_writer(out);
                // Also where no job follows: an empty file would look like a failure.
                writer.write_record(COLUMNS)?;
                Self::Csv(Box::new(writer))
            }
            ExportFormat::Jsonl => Self::Jsonl(BufWriter::new(out)),
        })
    }

    fn write(&mut self, job: &ExportedJob) -> anyhow::Result<()> {
        match self {
            Self::Csv(writer) => {
                let job = serde_json::to_value(job)?;
                writer.write_record(COLUMNS.map(|column| cell(&job[column])))?;
            }
            Self::Jsonl(writer) => {
                job.serialize(&mut serde_json::Serializer::new(&mut *writer))?;
                writer.write_all(b"\n")?;
            }
        }
        Ok(())
    }

    fn finish(self) -> std::io::Result<()> {
        match self {
            Self::Csv(mut writer) => writer.flush(),
            Self::Jsonl(mut writer) => writer.flush(),
        }
    }
}

/// The columns of the CSV.
const COLUMNS: [&str; 19] = [
    "job_id",
    "customer_id",
    "document_type",
    "document_number_last4",
    "state",
    "reason_code",
    "reason",
    "requested_at",
    "received_at",
    "ended_at",
    "deliveries",
    "attempts",
    "spent",
    "evidence",
    "provider_reference",
    "verification_status",
    "failure_reason",
    "correlation_id",
    "interventions",
];
