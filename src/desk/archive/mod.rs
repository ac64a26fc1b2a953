//! Ended jobs go to files, and their rows go.
//!
//! 1. Write a file of jobs and end it on the disk, read it back, name it.
//! 2. In `archived_job`, write down which jobs it has: from then on their ids are taken twice over.
//! 3. Wait for statements that do not see that yet.
//! 4. Remove the jobs' rows, in the commit that keeps what later jobs of their customers are decided by,
//!    where the rows are still what the file has.
//! 5. Write the file anew without what stayed, if anything did. In `archived_file`, write down that it is
//!    finished; name it in the manifest.
//!
//! | it dies | what comes of it |
//! |---|---|
//! | before the file has its name | the next run removes it; no row is gone |
//! | after that, before the manifest names it | the next run goes on with 2; what is removed already stays so |

mod files;
mod rows;

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use self::files::{Busy, Directory, Fault, Verified, verify};
use self::files::{Entry, WrittenJob, check_finished, compare, entries, read};
use self::rows::{Cursor, Group};
pub use self::rows::{SETTLED, count};
use crate::desk::export::{ExportedJob, Span};
use crate::desk::interventions::InterventionView;
use crate::desk::story::{AttemptView, JobStory, ObservationView, SubmissionView, spent};
use crate::domain::budget::spends;
use crate::domain::trace_context::TraceContext;
use crate::failpoint::{Point, reach};
use crate::journal;
pub use crate::journal::history::archived_in;

/// How many jobs a file holds at most, and a few more where a customer has many.
const FILE_JOBS: u64 = 100_000;

/// How many jobs are removed in one commit, and a few more where a customer has many.
const STEP_JOBS: usize = 300;

/// Which jobs are old enough.
#[derive(Clone, Copy, Debug)]
pub enum Age {
    /// Those that ended before then.
    Before(OffsetDateTime),
    /// Those that ended longer ago than that, `SETTLED` at least.
    After(Duration),
}

/// What is archived.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Jobs of customers whose last job ended before then.
    pub before: OffsetDateTime,
    /// How long after its end an attempt of unknown outcome may still be applied.
    pub window: Duration,
    /// How long a copy of an archived job is known, from the job's end on.
    pub ids_kept: Duration,
}

/// What a run came to.
#[derive(Debug, Default, Serialize)]
pub struct Archived {
    /// How many jobs are in files now, and no more in the tables.
    pub archived: u64,
    /// How many that ended before stay in the tables.
    pub staying: u64,
    /// How many were to go and stayed after all: they changed meanwhile, or were held by somebody.
    pub changed: u64,
    /// The files that were finished.
    pub files: Vec<String>,
    /// How many ids were removed that had been known long enough.
    pub forgotten_ids: u64,
    /// Whether the run was stopped before its end.
    pub is_interrupted: bool,
    /// The SHA-256 of the manifest's last line.
    pub head: String,
}

/// How a run is watched and stopped.
pub struct Watch<'a> {
    pub stop: &'a CancellationToken,
    /// Told of as many more jobs that are archived, or stay; of none where old ids were removed.
    pub inspected: &'a dyn Fn(u64),
}

/// Readies the connection for an archive, and sees to it that no other runs on this database.
///
/// # Errors
/// When one does, or the database fails.
pub async fn begin(connection: &mut PgConnection) -> anyhow::Result<()> {
    rows::set_up(connection).await?;
    anyhow::ensure!(
        rows::lock(connection).await?,
        Busy("another archive runs on this database; wait for its end".to_owned())
    );
    Ok(())
}

/// Sees to it that no archive runs for as long as the connection lives: what is read of tables and
/// files then is one moment's.
///
/// # Errors
/// When one does, or the database fails.
pub async fn hold_off(connection: &mut PgConnection) -> anyhow::Result<()> {
    let is_locked = rows::lock_shared(connection).await?;
    anyhow::ensure!(
        is_locked,
        "an archive runs on this database, which moves jobs meanwhile; wait for its end"
    );
    Ok(())
}

/// Whether what a run failed by is over without anybody's doing, mostly: the database is away, or another
/// archive runs.
pub fn passes(error: &anyhow::Error) -> bool {
    journal::is_away(error) || error.chain().any(|cause| cause.is::<Busy>())
}

/// The time before which jobs are old enough, by the database's clock. What ended before then has been over for
/// a day.
///
/// # Errors
/// When it may not have been, or the database fails.
pub async fn cutoff(connection: &mut PgConnection, age: Age) -> anyhow::Result<OffsetDateTime> {
    let before = match age {
        Age::Before(before) => before,
        Age::After(time) => rows::so_long_ago(connection, time).await?,
    };
    let latest = rows::so_long_ago(connection, SETTLED).await?;
    anyhow::ensure!(
        before <= latest,
        "--before must lie a day back by the database's clock: give {} or earlier",
        latest.replace_nanosecond(0)?.format(&Rfc3339)?
    );
    Ok(before)
}

/// Says what a run would archive, and changes nothing.
pub async fn dry_run(
    connection: &mut PgConnection,
    rules: &Rules,
    watch: &Watch<'_>,
) -> anyhow::Result<Archived> {
    let mut found = Archived::default();
    let mut cursor = Cursor::default();
    loop {
        let page = rows::page(connection, cursor, rules.before).await?;
        let Some(last) = page.last() else { break };
        if watch.stop.is_cancelled() {
            found.is_interrupted = true;
            break;
        }
        cursor = last.cursor();
        let going = rows::going(connection, &page, rules.before, rules.window).await?;
        found.archived += going.groups.iter().map(|group| group.job_ids.len() as u64).sum::<u64>();
        found.staying += going.staying;
        (watch.inspected)(page.len() as u64);
    }
    Ok(found)
}

/// Archives what may go, file by file, after what an earlier run has left unfinished.
///
/// # Errors
/// When a file cannot be written, the database fails, or the directory is not this database's. Nothing is
/// lost then, and the next run goes on.
pub async fn archive(
    connection: &mut PgConnection,
    directory: &mut Directory,
    rules: &Rules,
    watch: &Watch<'_>,
) -> anyhow::Result<Archived> {
    let mut done = Archived::default();
    compare(directory.path(), directory.entries(), rows::files(connection).await?)?;
    directory.remove_partials()?;
    let mut run = Run { connection, directory, rules, watch };
    for name in run.directory.unlisted()? {
        run.finish(&name, &mut done).await?;
    }
    let mut cursor = Cursor::default();
    while let Some(name) = run.write(&mut cursor, &mut done).await? {
        run.finish(&name, &mut done).await?;
    }
    while !watch.stop.is_cancelled() {
        match rows::forget_ids(run.connection, rules.ids_kept).await? {
            0 => break,
            count => done.forgotten_ids += count,
        }
        (watch.inspected)(0);
    }
    done.is_interrupted = watch.stop.is_cancelled();
    done.head = run.directory.head().to_owned();
    Ok(done)
}

struct Run<'a> {
    connection: &'a mut PgConnection,
    directory: &'a mut Directory,
    rules: &'a Rules,
    watch: &'a Watch<'a>,
}

impl Run<'_> {
    /// Writes the next file, of jobs of one month: that in which the customer's last job ended. `None`
    /// where none is left, or the run is to stop.
    async fn write(&mut self, cursor: &mut Cursor, done: &mut Archived) -> anyhow::Result<Option<String>> {
        let Rules { before, window, .. } = *self.rules;
        let mut file: Option<(files::Writer<'_>, (i32, time::Month))> = None;
        // The jobs that the file has, and whose they are. A group whose place the walk has passed gets
        // another where a job of it ends meanwhile, before `before` all the same.
        let mut written = HashSet::new();
        loop {
            if self.watch.stop.is_cancelled() {
                file.map(|(writer, _)| writer.discard()).transpose()?;
                return Ok(None);
            }
            let mut page = rows::page(self.connection, *cursor, before).await?;
            let month = page.first().map(|first| month_of(first.ended_at));
            let is_full = file.as_ref().is_some_and(|(writer, of)| {
                writer.jobs >= FILE_JOBS || month.is_some_and(|month| month != *of)
            });
            let (Some(month), false) = (month, is_full) else { break };
            page.retain(|job| month_of(job.ended_at) == month);
            let going = rows::going(self.connection, &page, before, window).await?;
            let (again, new): (Vec<_>, Vec<_>) =
                going.groups.into_iter().partition(|group| written.contains(&group.owner()));
            let again = again.iter().flat_map(|group| &group.job_ids);
            let added = again.filter(|job_id| !written.contains(*job_id)).count() as u64;
            done.changed += added;
            written.extend(new.iter().map(Group::owner));
            let job_ids: Vec<Uuid> = new.into_iter().flat_map(|group| group.job_ids).collect();
            if !job_ids.is_empty() {
                written.extend(&job_ids);
                let (writer, _) = match &mut file {
                    Some(file) => file,
                    none => none.insert((self.directory.begin(month)?, month)),
                };
                for (_, line) in rows::lines(self.connection, &job_ids).await? {
                    writer.push(&line)?;
                }
            }
            done.staying += going.staying;
            (self.watch.inspected)(going.staying + added);
            *cursor = page.last().map_or(*cursor, rows::Ended::cursor);
            reach(Point::ArchivePaged);
        }
        file.map(|(writer, _)| writer.finish()).transpose()
    }

    /// Removes the rows of what a file has, takes out what stays, and names the file in the manifest. A run
    /// that is to stop leaves that to the next.
    async fn finish(&mut self, name: &str, done: &mut Archived) -> anyhow::Result<()> {
        let jobs = self.directory.jobs(name)?;
        let (mut left, mut removed) = (HashSet::new(), HashSet::new());
        for step in steps(&jobs) {
            if self.watch.stop.is_cancelled() {
                return Ok(());
            }
            rows::mark(self.connection, step, name).await?;
            reach(Point::ArchiveMarked);
            if !rows::wait_for_openers(self.connection, self.watch.stop).await? {
                return Ok(());
            }
            let came_of = rows::remove(self.connection, step, name, self.rules.window).await?;
            reach(Point::ArchiveRemoved);
            done.archived += came_of.removed.len() as u64;
            (self.watch.inspected)(step.len() as u64);
            left.extend(came_of.left);
            removed.extend(came_of.removed);
        }
        // The file is all that has what a later step removed.
        left.retain(|job_id| !removed.contains(job_id));
        done.changed += left.len() as u64;
        if !left.is_empty() {
            self.directory.take_out(name, &left)?;
        }
        if let Some(entry) = self.directory.entry(name)? {
            anyhow::ensure!(
                rows::know_file(self.connection, name, &entry.digest()?).await?,
                "{name} or the manifest is not what it was when the database was told of it; take the directory \
                 from a copy of it"
            );
            reach(Point::ArchiveKnown);
            self.directory.list(entry)?;
            done.files.push(name.to_owned());
        }
        Ok(())
    }
}

/// Jobs in steps, those of a customer, who stand together, in one.
fn steps(jobs: &[WrittenJob]) -> impl Iterator<Item = &[WrittenJob]> {
    let is_one = |a: &WrittenJob, b: &WrittenJob| a.customer_id.is_some() && a.customer_id == b.customer_id;
    let mut left = jobs;
    std::iter::from_fn(move || {
        let mut end = left.len().min(STEP_JOBS);
        while end > 0 && end < left.len() && is_one(&left[end - 1], &left[end]) {
            end += 1;
        }
        let (step, rest) = left.split_at(end);
        left = rest;
        (!step.is_empty()).then_some(step)
    })
}

fn month_of(at: OffsetDateTime) -> (i32, time::Month) {
    let date = at.to_offset(time::UtcOffset::UTC);
    (date.year(), date.month())
}

/// A line of a file, whole.
#[derive(Deserialize)]
struct Line {
    submission: Value,
    attempts: Vec<AttemptView>,
    observations: Vec<ObservationView>,
    interventions: Vec<InterventionView>,
}

/// The story of a job that is in the archive; `None` if it is not there.
///
/// # Errors
/// When the archive is not what was written, or the database fails.
pub async fn archived_story(
    connection: &mut PgConnection,
    path: &Path,
    job_id: Uuid,
) -> anyhow::Result<Option<JobStory>> {
    let entries = entries(path)?;
    compare(path, &entries, rows::files(connection).await?)?;
    let files: Vec<String> = match archived_in(connection, job_id).await? {
        Some(file) => vec![file],
        None => {
            check_finished(path, &entries)?;
            entries.iter().map(|entry| entry.file.clone()).collect()
        }
    };
    let mut found = None;
    for file in files {
        read(path, &entries, &file, |job, line| {
            if job.job_id == job_id {
                found = Some((file.clone(), line.to_owned()));
            }
            Ok(())
        })?;
        if found.is_some() {
            break;
        }
    }
    let Some((file, line)) = found else { return Ok(None) };
    let Line { submission, attempts, observations, interventions } = serde_json::from_str(&line)?;
    let trace = submission["traceparent"].as_str().and_then(|text| text.parse::<TraceContext>().ok());
    let trace_id = trace.map(|trace| trace.trace_id().to_string());
    let submission = SubmissionView { trace_id, ..serde_json::from_value(submission)? };
    let spent = spent(connection, submission.customer_id).await?;
    let (dead_letters, unordered_with) = (Vec::new(), Vec::new());
    let archived_in = Some(file);
    Ok(Some(JobStory {
        submission,
        attempts,
        observations,
        interventions,
        dead_letters,
        is_cut: false,
        spent,
        unordered_with,
        archived_in,
    }))
}

/// The jobs of the span that are in the archive, as auditors see them, file by file.
///
/// # Errors
/// When the archive is not what was written, is unfinished or another database's, or `each` fails.
pub async fn archived_jobs(
    connection: &mut PgConnection,
    path: &Path,
    span: Span,
    mut each: impl FnMut(ExportedJob) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let is_wanted = |entry: &Entry| {
        entry.facts.first_received_at < span.until && entry.facts.last_received_at >= span.since
    };
    let entries = entries(path)?;
    compare(path, &entries, rows::files(connection).await?)?;
    check_finished(path, &entries)?;
    let mut tell = |line: &str| {
        let Line { mut submission, attempts, interventions, .. } = serde_json::from_str(line)?;
        let verdicts = attempts.iter().filter_map(|attempt| attempt.verdict.as_deref()?.parse().ok());
        submission["spent"] = verdicts.filter(|verdict| spends(*verdict)).count().into();
        submission["interventions"] = interventions.len().into();
        let job: ExportedJob = serde_json::from_value(submission)?;
        match job.received_at >= span.since && job.received_at < span.until {
            true => each(job),
            false => Ok(()),
        }
    };
    for entry in entries.iter().filter(|entry| is_wanted(entry)) {
        read(path, &entries, &entry.file, |_, line| tell(line))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(customer: u128) -> WrittenJob {
        let customer_id = (customer > 0).then(|| Uuid::from_u128(customer));
        WrittenJob { job_id: Uuid::nil(), customer_id, digest: [0; 32] }
    }

    #[test]
    fn a_step_ends_where_a_customer_ends() {
        let lengths = |jobs: &[WrittenJob]| steps(jobs).map(<[_]>::len).collect::<Vec<_>>();
        let alone: Vec<WrittenJob> = (0..STEP_JOBS + 1).map(|_| job(0)).collect();
        assert_eq!(lengths(&alone), [STEP_JOBS, 1]);
        let of_one: Vec<WrittenJob> = (0..STEP_JOBS * 2).map(|_| job(1)).chain([job(2)]).collect();
        assert_eq!(lengths(&of_one), [STEP_JOBS * 2, 1]);
        assert_eq!(lengths(&[]), [0; 0]);
    }
}
