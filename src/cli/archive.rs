//! `kyc-worker archive`: ended jobs go to files, and their rows go.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::database::DeskArgs;
use super::export::parse_time;
use super::terminal::progress;
use crate::app::Signals;
use crate::config::{ReadBackSettings, parse_duration};
use crate::desk::archive::{Archived, Directory, Rules, Watch, archive, begin, check_before, count, dry_run};

/// Write ended jobs with their histories to files, verify those, and remove the rows
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker archive --before 2026-07-01 --to /srv/kyc-archive --dry-run\n  kyc-worker archive --before 2026-07-01 --to /srv/kyc-archive\n\nA customer's jobs go together, once the last of them ended before that time, to a file of the month in\nwhich it did. All of them stay while one is in motion or needs review; has a payload still, so that it\ncan be replayed; has a verification that is followed, or that was given up without its end; is named by\nthe row of a dead letter; or has an event that upstream was not told yet.\n\nEach file has JSON lines, compressed with zstd: `zstd -dc FILE`. manifest.jsonl names them with counts,\ntimes and SHA-256, each entry with the one before; `audit --archive` verifies it all. Keep copies of the\ndirectory: the database has these jobs no more, and refuses a directory that is not its own. It keeps\nwhat a customer spent and which job was their newest, for ever, and which job_ids there were, for\nDEDUPLICATION_KEPT: a copy of an archived job is acknowledged, and nothing is sent.\n\nReplicas may run, and must be of this release or a later one. Whatever changes while it is written stays\nfor the next run. SIGINT ends it between two steps; that, a crash or a full disk leaves nothing lost and\nnothing twice, and the same command goes on from there.\n\nExit codes: 0 done, 1 not, or not to the end."
)]
pub(super) struct ArchiveArgs {
    /// Jobs of customers whose last job ended before then, such as 2026-07-01 or 2026-07-01T12:00:00Z; a day
    /// back at least
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    before: OffsetDateTime,
    /// The directory of this database's archive; it is made where it is not there, for its owner alone
    #[arg(long, value_name = "DIRECTORY")]
    to: PathBuf,
    /// Say how many jobs would go, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// How long after its end a job_id is taken, once the job is archived: no shorter than a publisher may
    /// publish a job again
    #[arg(long, env = "DEDUPLICATION_KEPT", default_value = "365d", value_parser = parse_duration)]
    deduplication_kept: Duration,
    #[command(flatten)]
    desk: DeskArgs,
    /// When an update may still be applied.
    #[command(flatten)]
    read_back: ReadBackSettings,
}

pub(super) async fn run(args: &ArchiveArgs) -> anyhow::Result<ExitCode> {
    let pool = args.desk.open().await?;
    // The one connection that holds the lock does the work: it cannot lose the one and keep the other.
    let mut connection = pool.acquire().await?.detach();
    begin(&mut connection).await?;
    check_before(&mut connection, args.before).await?;
    let rules = Rules {
        before: args.before,
        window: args.read_back.read_back_window,
        ids_kept: args.deduplication_kept,
    };
    let progress = progress(count(&mut connection, args.before).await?, "jobs")?;
    let stop = CancellationToken::new();
    let mut signals = Signals::new()?;
    let stopping = stop.clone();
    tokio::spawn(async move {
        signals.next().await;
        stopping.cancel();
    });
    let inspected = |jobs| progress.inc(jobs);
    let watch = Watch { stop: &stop, inspected: &inspected };
    if args.dry_run {
        let found = dry_run(&mut connection, &rules, &watch).await?;
        progress.finish_and_clear();
        args.desk.print(&found, print_dry_run)?;
        return Ok(end_of(&found));
    }
    let mut directory = Directory::open(&args.to)?;
    let archived = archive(&mut connection, &mut directory, &rules, &watch).await;
    let archived = archived.context("the archive is not finished; the same command goes on with it")?;
    progress.finish_and_clear();
    args.desk.print(&archived, print_archived)?;
    Ok(end_of(&archived))
}

fn end_of(archived: &Archived) -> ExitCode {
    if archived.is_interrupted { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn print_dry_run(found: &Archived) {
    println!("would archive {} jobs; {} stay", found.archived, found.staying);
    match found.is_interrupted {
        true => println!("interrupted: there are more"),
        false => println!("nothing was done: leave out --dry-run"),
    }
}

fn print_archived(archived: &Archived) {
    for file in &archived.files {
        println!("{file}");
    }
    println!("archived {} jobs; {} stay", archived.archived, archived.staying);
    if archived.changed > 0 {
        println!("{} changed meanwhile, or were held by somebody; the next run takes them", archived.changed);
    }
    if archived.forgotten_ids > 0 {
        println!("{} job_ids are older than DEDUPLICATION_KEPT, and known no more", archived.forgotten_ids);
    }
    println!("the manifest's last line has the SHA-256 {}", archived.head);
    if archived.is_interrupted {
        println!("interrupted; the same command goes on");
    }
}
