//! `kyc-worker archive`: ended jobs go to files, and their rows go.

use std::cell::Cell;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio::time::{Duration, Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::database::DeskArgs;
use super::export::parse_time;
use super::run::start_log;
use super::terminal::progress;
use crate::app::Signals;
use crate::config::{LogSettings, ReadBackSettings, SettingFault, SettingSource, parse_duration};
use crate::desk::archive::{
    Age, Archived, Busy, Directory, Rules, SETTLED, Watch, archive, begin, count, cutoff, dry_run, passes,
};

/// A round reads over what stays each time.
const EVERY_MIN: Duration = Duration::from_secs(1);

/// How long after a round that failed the next begins at the latest.
const RETRY_DELAY: Duration = Duration::from_secs(60);

/// How long a step may take at most: a statement reads a thousand jobs.
const SILENCE_TIME_MAX: Duration = Duration::from_secs(600);

/// What the command alone has of settings.
const HEADING: &str = "Archive";

/// Write ended jobs with their histories to files, verify those, and remove the rows
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker archive --before 2026-07-01 --to /srv/kyc-archive --dry-run\n  kyc-worker archive --before 2026-07-01 --to /srv/kyc-archive\n  kyc-worker archive --after 90d --every 1d --to /srv/kyc-archive\n\nGive --before or --after. A customer's jobs go together, once the last of them is old enough, to a file\nof the month in which it ended. All of them stay while one is in motion or needs review; has a payload\nstill, so that it can be replayed; has a verification that is followed, or that was given up without its\nend; is named by the row of a dead letter; or has an event that upstream was not told yet.\n\nEach file has JSON lines, compressed with zstd: `zstd -dc FILE`. manifest.jsonl names them with counts,\ntimes and SHA-256, each entry with the one before; `audit --archive` verifies it all. Keep copies of the\ndirectory: the database has these jobs no more, and refuses a directory that is not its own. It keeps\nwhat a customer spent and which job was their newest, for ever, and which job_ids there were, for\nDEDUPLICATION_KEPT: a copy of an archived job is acknowledged, and nothing is sent.\n\nReplicas may run, and must be of this release or a later one. Whatever changes while it is written stays\nfor the next run. SIGINT ends it between two steps; that, a crash or a full disk leaves nothing lost and\nnothing twice, and the same command goes on from there.\n\nWith --every it stays, tells of each round in its log, and ends with 0 at SIGTERM or SIGINT. While the\ndatabase is away, or another archive runs, it tries again. What a person must see to ends it with 1.\n\nExit codes: 0 done, 1 not, or not to the end, 2 wrong settings."
)]
pub(super) struct ArchiveArgs {
    /// Jobs of customers whose last job ended before then, such as 2026-07-01 or 2026-07-01T12:00:00Z; a day
    /// back at least. ARCHIVE_AFTER and ARCHIVE_EVERY of the environment do not count beside it
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    before: Option<OffsetDateTime>,
    /// Jobs of customers whose last job ended longer ago than that by the database's clock, such as 90d; 1d at
    /// least
    #[arg(
        long,
        env = "ARCHIVE_AFTER",
        value_name = "DURATION",
        value_parser = parse_after,
        help_heading = HEADING
    )]
    after: Option<Duration>,
    /// Stay, and archive again so long after each round's end, such as 1d, until SIGTERM or SIGINT; once where
    /// it is not set
    #[arg(
        long,
        env = "ARCHIVE_EVERY",
        value_name = "DURATION",
        value_parser = parse_every,
        help_heading = HEADING
    )]
    every: Option<Duration>,
    /// The directory of this database's archive; it is made where it is not there, for its owner alone
    #[arg(long, value_name = "DIRECTORY")]
    to: PathBuf,
    /// Say how many jobs would go, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// How long after its end a job_id is taken, once the job is archived: no shorter than a publisher may
    /// publish a job again
    #[arg(
        long,
        env = "DEDUPLICATION_KEPT",
        default_value = "365d",
        value_parser = parse_duration,
        help_heading = HEADING
    )]
    deduplication_kept: Duration,
    #[command(flatten)]
    desk: DeskArgs,
    /// When an update may still be applied.
    #[command(flatten)]
    read_back: ReadBackSettings,
    /// How a log is written, which there is with --every.
    #[command(flatten)]
    log: LogSettings,
}

/// Which jobs are archived, and how long after a round's end the next begins, where one does.
struct Asked {
    age: Age,
    every: Option<Duration>,
}

impl ArchiveArgs {
    /// What the flags say together. A flag of one run counts before the environment's settings.
    fn asked(&self, sources: &[SettingSource]) -> Result<Asked, SettingFault> {
        let is_flag =
            |variable| sources.iter().any(|setting| setting.variable == variable && setting.source == "flag");
        let age = match (self.before, self.after) {
            (Some(_), Some(_)) if is_flag("ARCHIVE_AFTER") => {
                return Err(SettingFault::new(
                    "ARCHIVE_AFTER",
                    "is given beside --before; leave one of them out",
                ));
            }
            (Some(before), _) => Age::Before(before),
            (None, Some(after)) => Age::After(after),
            (None, None) => {
                let reason =
                    "is not set; say which jobs are old enough, as with --after 90d or --before 2026-07-01";
                return Err(SettingFault::new("ARCHIVE_AFTER", reason));
            }
        };
        let is_of_one_run = self.before.is_some() || self.dry_run || self.desk.json;
        if is_of_one_run && is_flag("ARCHIVE_EVERY") {
            let reason =
                "is given beside --before, --dry-run or --json, which are of one run; leave those out";
            return Err(SettingFault::new("ARCHIVE_EVERY", reason));
        }
        Ok(Asked { age, every: self.every.filter(|_| !is_of_one_run) })
    }

    /// Opens the database for an archive, over the one connection that holds the lock: it cannot lose the one
    /// and keep the other.
    async fn begin(&self, age: Age) -> anyhow::Result<(PgConnection, Rules)> {
        let pool = self.desk.open().await?;
        let mut connection = pool.acquire().await?.detach();
        begin(&mut connection).await?;
        let rules = Rules {
            before: cutoff(&mut connection, age).await?,
            window: self.read_back.read_back_window,
            ids_kept: self.deduplication_kept,
        };
        Ok((connection, rules))
    }
}

/// A day at least.
fn parse_after(text: &str) -> Result<Duration, String> {
    let after = parse_duration(text)?;
    match after >= SETTLED {
        true => Ok(after),
        false => Err("is too short: jobs must have been over for a day; write 1d or more".to_owned()),
    }
}

fn parse_every(text: &str) -> Result<Duration, String> {
    let every = parse_duration(text)?;
    match every >= EVERY_MIN {
        true => Ok(every),
        false => Err("is too short; write 1s or more, such as 1d".to_owned()),
    }
}

pub(super) async fn run(
    args: &ArchiveArgs,
    sources: &[SettingSource],
    misspelt: &[(&str, String)],
) -> anyhow::Result<ExitCode> {
    let Asked { age, every } = args.asked(sources)?;
    let stop = CancellationToken::new();
    let mut signals = Signals::new()?;
    let stopping = stop.clone();
    tokio::spawn(async move {
        signals.next().await;
        stopping.cancel();
    });
    match every {
        Some(every) => {
            let _last_lines = start_log(args.log.clone(), misspelt)?;
            archive_again_and_again(args, age, every, &stop).await
        }
        None => archive_once(args, age, &stop).await,
    }
}

async fn archive_once(args: &ArchiveArgs, age: Age, stop: &CancellationToken) -> anyhow::Result<ExitCode> {
    let (mut connection, rules) = args.begin(age).await?;
    let progress = progress(count(&mut connection, rules.before).await?, "jobs")?;
    let inspected = |jobs| progress.inc(jobs);
    let watch = Watch { stop, inspected: &inspected };
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

/// Archives, and again so long after each round's end, until it is to stop. Whatever a round did not come to,
/// the next goes on with.
///
/// # Errors
/// Where a round fails by what does not pass: a person must see to it.
async fn archive_again_and_again(
    args: &ArchiveArgs,
    age: Age,
    every: Duration,
    stop: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    let mut logged = None;
    while !stop.is_cancelled() {
        let wait = match archive_round(args, age, stop).await {
            Ok(archived) => {
                logged = None;
                tell_round(&archived);
                every
            }
            Err(error) if passes(&error) => {
                let error = format!("{error:#}");
                if logged.as_ref() != Some(&error) {
                    warn!(error, "nothing is archived for now; it is tried again");
                    logged = Some(error);
                }
                every.min(RETRY_DELAY)
            }
            Err(error) => return Err(error),
        };
        stop.run_until_cancelled(sleep(wait)).await;
    }
    info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Over a connection of its own: none is held, and nobody kept out, between two rounds.
async fn archive_round(args: &ArchiveArgs, age: Age, stop: &CancellationToken) -> anyhow::Result<Archived> {
    let Some(begun) = stop.run_until_cancelled(args.begin(age)).await else {
        return Ok(Archived { is_interrupted: true, ..Archived::default() });
    };
    let (mut connection, rules) = begun?;
    let mut directory = Directory::open(&args.to)?;
    let heard_at = Cell::new(Instant::now());
    let inspected = |_| heard_at.set(Instant::now());
    let watch = Watch { stop, inspected: &inspected };
    tokio::select! {
        archived = archive(&mut connection, &mut directory, &rules, &watch) => archived,
        () = silence(&heard_at, SILENCE_TIME_MAX) => {
            Err(Busy(format!("the database has not answered for {SILENCE_TIME_MAX:?}")).into())
        }
    }
}

/// Waits until nothing was heard for so long. A network that forgot the connection says nothing of it.
async fn silence(heard_at: &Cell<Instant>, time_max: Duration) {
    while let Some(left) = time_max.checked_sub(heard_at.get().elapsed()) {
        sleep(left).await;
    }
}

fn tell_round(archived: &Archived) {
    let Archived { archived: jobs, staying, changed, forgotten_ids, is_interrupted, .. } = archived;
    let files = archived.files.join(" ");
    info!(jobs, staying, changed, files, forgotten_ids, is_interrupted, head = archived.head, "archived");
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

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn only_who_has_said_nothing_for_so_long_is_silent() {
        let heard_at = Cell::new(Instant::now());
        silence(&heard_at, Duration::from_millis(1)).await;
        let soon = timeout(Duration::from_millis(10), silence(&heard_at, SILENCE_TIME_MAX)).await;
        assert!(soon.is_err(), "it was heard a moment ago");
    }
}
