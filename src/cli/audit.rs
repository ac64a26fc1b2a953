//! `kyc-worker audit`: whether every history is what was written, and can have happened. What is
//! found is printed as it is found, so that memory does not grow with it.

use std::io::{BufWriter, StdoutLock, Write as _, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use futures_util::TryStreamExt as _;
use indicatif::HumanCount;
use serde::Serialize;
use uuid::Uuid;

use super::database::open_database;
use super::terminal::{print, progress};
use crate::config::{DatabaseSettings, FingerprintSettings};
use crate::desk::archive::{Fault, Verified, verify};
use crate::journal::history::audit::{Audit, Finding, Page};
use crate::visible::visible;

/// Verify that what the tables say of every job is what was written, and can have happened
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker audit\n  kyc-worker audit 3f0c2a9e-5f0e-4f57-9d0c-2d6f7c1f1a11 --json | jq .findings\n  kyc-worker audit --archive /srv/kyc-archive\n\nFinds attempts and observations that were changed, removed, added or moved, counts that do\nnot agree, rows without their submission, and histories that cannot be. Needs\nFINGERPRINT_KEY, and a role that may read the tables: the worker's. Nothing is written;\nreplicas may run.\n\n--archive needs neither key nor database. It finds each byte of a file, and each part of the manifest, that\nwas changed, files that were added, removed or named another way, and jobs that stand twice. Whoever may\nwrite the whole directory can make all of it anew: compare the SHA-256 of the manifest's last line, which\nis printed, with the one that `archive` printed.\n\nExit codes: 0 every history verifies, 1 something is wrong."
)]
pub(super) struct AuditArgs {
    /// Only these jobs [default: all]
    #[arg(value_name = "JOB_ID")]
    job_ids: Vec<Uuid>,
    /// In place of the tables, an archive: whether its files and their manifest are what was written
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "job_ids")]
    archive: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    fingerprint: FingerprintSettings,
    #[command(flatten)]
    database: DatabaseSettings,
}

/// How many of the jobs that were named are examined at once.
const JOBS_AT_ONCE: usize = 2_000;

pub(super) async fn run(args: &AuditArgs) -> anyhow::Result<ExitCode> {
    if let Some(path) = &args.archive {
        let verified = verify(path)?;
        print(args.json, &verified, print_verified)?;
        return Ok(if verified.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let fingerprinter = args.fingerprint.fingerprinter()?;
    let pool = open_database(&args.database).await?;
    let mut audit = Audit::begin(&pool, fingerprinter).await?;
    let mut report = Report::new(args.json);
    if args.job_ids.is_empty() {
        audit_all(&mut audit, &mut report).await?;
    } else {
        for job_ids in args.job_ids.chunks(JOBS_AT_ONCE) {
            report.add(audit.examine(job_ids).await?)?;
        }
    }
    report.finish()
}

async fn audit_all(audit: &mut Audit, report: &mut Report) -> anyhow::Result<()> {
    let count = u64::try_from(audit.count().await?).unwrap_or_default();
    let progress = progress(count, "jobs")?;
    while let Some(page) = audit.next_page().await.context("the audit is not whole")? {
        progress.inc(page.submissions);
        progress.suspend(|| report.add(page))?;
    }
    progress.finish_and_clear();
    let mut orphans = audit.orphans();
    while let Some(finding) = orphans.try_next().await.context("the audit is not whole")? {
        report.tell(&finding)?;
    }
    Ok(())
}

fn print_verified(verified: &Verified) {
    for Fault { file, what, remedy } in &verified.findings {
        println!("{file}  {what}; {remedy}");
    }
    let [files, jobs, found] =
        [verified.files, verified.jobs, verified.findings.len() as u64].map(HumanCount);
    let verdict = match found.0 {
        0 => "every file verifies".to_owned(),
        1 => "1 FINDING".to_owned(),
        _ => format!("{found} FINDINGS"),
    };
    println!("{files} files, {jobs} jobs: {verdict}");
    println!("the manifest's last line has the SHA-256 {}", verified.head);
}

/// What was found, on its way to standard output.
struct Report {
    out: BufWriter<StdoutLock<'static>>,
    as_json: bool,
    totals: Totals,
}

#[derive(Default, Serialize)]
struct Totals {
    submissions: u64,
    entries: u64,
    verified: u64,
    broken: u64,
    found: u64,
}

impl Totals {
    /// One chain that verifies proves the key.
    fn is_probably_another_key(&self) -> bool {
        self.broken > 0 && self.verified == 0
    }
}

impl Report {
    fn new(as_json: bool) -> Self {
        Self { out: BufWriter::new(stdout().lock()), as_json, totals: Totals::default() }
    }

    fn add(&mut self, page: Page) -> anyhow::Result<()> {
        self.totals.submissions += page.submissions;
        self.totals.entries += page.entries;
        self.totals.verified += page.verified;
        self.totals.broken += page.broken;
        for (job_id, file) in &page.archived {
            eprintln!("{job_id} is archived in {}; --archive DIRECTORY verifies it there", visible(file));
        }
        page.findings.iter().try_for_each(|finding| self.tell(finding))
    }

    fn tell(&mut self, finding: &Finding) -> anyhow::Result<()> {
        let is_first = self.totals.found == 0;
        self.totals.found += 1;
        if self.as_json {
            self.out.write_all(if is_first { b"{\"findings\": [\n" } else { b",\n" })?;
            serde_json::to_writer(&mut self.out, finding)?;
        } else {
            let Finding { job_id, place, what, remedy } = finding;
            writeln!(self.out, "{job_id}  {}", visible(&format!("{place}: {what}; {remedy}")))?;
        }
        // Who watches sees each as it is found.
        self.out.flush().context("cannot write what was found")
    }

    fn finish(mut self) -> anyhow::Result<ExitCode> {
        let Totals { submissions, entries, found, .. } = self.totals;
        if self.as_json {
            self.out.write_all(if found == 0 { b"{\"findings\": [" } else { b"\n" })?;
            let totals = serde_json::to_string(&self.totals)?;
            writeln!(self.out, "], {}", totals.trim_start_matches('{'))?;
        } else {
            let [submissions, entries, found] = [submissions, entries, found].map(HumanCount);
            let verdict = match found.0 {
                0 => "every history verifies".to_owned(),
                1 => "1 FINDING".to_owned(),
                _ => format!("{found} FINDINGS"),
            };
            writeln!(self.out, "{submissions} submissions, {entries} entries: {verdict}")?;
        }
        self.out.flush().context("cannot write what was found")?;
        if self.totals.is_probably_another_key() {
            eprintln!("no chain verifies: FINGERPRINT_KEY is probably another than the worker's");
        }
        Ok(if found == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
