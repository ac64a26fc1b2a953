//! Waits for the database at the start, and follows it to where the setting leads later.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::config::{Checked, DatabaseSettings};
use crate::context::Context;
use crate::control::intake::Reason;
use crate::journal;
use crate::journal::failover::{self, Lost, LostCommit, OTHERS_WAIT, RUNBOOK};
use crate::loops::heartbeat::obey;
use crate::metrics::METRICS;

/// Between two tries to reach the database at start.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// How many jobs a line names; all of them stand in lost_commit.
const NAMED_MAX: usize = 20;

/// The same, where a person must let us in: a server may lock out who fails too often.
const REFUSED_DELAY: Duration = Duration::from_secs(5);

/// Opens the database, waiting for it as long as it takes; its URL is read anew for each try. `None`
/// when stopped meanwhile.
pub async fn open(
    settings: &DatabaseSettings,
    checked: &Checked,
    migrate: bool,
    stopping: &CancellationToken,
) -> anyhow::Result<Option<PgPool>> {
    let mut logged = None;
    loop {
        let error = match try_to_open(settings, checked, migrate).await {
            Ok(pool) => return Ok(Some(pool)),
            // It may go away between two statements as well.
            Err(error) if journal::is_away(&error) || journal::is_refused(&error) => error,
            Err(error) => return Err(error),
        };
        let is_refused = journal::is_refused(&error);
        if logged != Some(is_refused) {
            let error = format!("{error:#}");
            match is_refused {
                true => error!(error, "waiting for the database until a person has fixed this"),
                false => warn!(error, "waiting for the database"),
            }
            logged = Some(is_refused);
        }
        let delay = if is_refused { REFUSED_DELAY } else { RETRY_DELAY };
        if stopping.run_until_cancelled(sleep(delay)).await.is_none() {
            return Ok(None);
        }
    }
}

/// Connects, brings the schema up to date where that was asked for, and sees that this worker may
/// write here.
async fn try_to_open(
    settings: &DatabaseSettings,
    checked: &Checked,
    migrate: bool,
) -> anyhow::Result<PgPool> {
    let pool = journal::connect_to_work(settings, &settings.url()?).await?;
    journal::check_session(&pool, settings.allow_unsafe_database).await?;
    if migrate {
        journal::migrate(&pool).await?;
    }
    journal::check_schema(&pool).await?;
    journal::check_fingerprint_key(&pool, &checked.fingerprinter).await?;
    Ok(pool)
}

/// Waits for replicas that have not said what they remember of the time before a failover: what they did
/// last may be missing here, and this replica would do it again. False when stopped meanwhile.
pub async fn await_others(pool: &PgPool, stopping: &CancellationToken) -> anyhow::Result<bool> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        let awaited = match failover::awaited_at_start(pool).await {
            Ok(awaited) => awaited,
            Err(error) => {
                let error = anyhow::Error::new(error);
                if !journal::is_away(&error) {
                    return Err(error);
                }
                vec![]
            }
        };
        if awaited.is_empty() || begun.elapsed() >= OTHERS_WAIT {
            tell_silent(&awaited);
            return Ok(true);
        }
        if !std::mem::replace(&mut told, true) {
            tell_awaited(&awaited);
        }
        if stopping.run_until_cancelled(sleep(RETRY_DELAY)).await.is_none() {
            return Ok(false);
        }
    }
}

fn tell_awaited(awaited: &[String]) {
    warn!(?awaited, "the database failed over; this replica waits until the others have compared their rows");
}

fn tell_silent(awaited: &[String]) {
    if !awaited.is_empty() {
        error!(
            ?awaited,
            "the database failed over, and these replicas did not say what they remember: what they committed last may be \
             missing without a trace; see {RUNBOOK}"
        );
    }
}

/// While the database is away or refuses us: finds out where the setting leads by now, until the
/// worker stops. Its password may have been rotated, and its host have another address. What it has is
/// compared with what this replica remembers before anything else is done there.
pub async fn follow(settings: DatabaseSettings, context: Arc<Context>, instance: String) {
    let mut known = None;
    let mut surveying = Surveying::default();
    let mut is_open = context.intake.subscribe();
    let stopping = context.stopping.clone();
    loop {
        let paused = async { is_open.wait_for(|is_open| !is_open).await.is_ok() };
        if stopping.run_until_cancelled(paused).await != Some(true) {
            return;
        }
        if context.intake.is_paused_for(Reason::Database) {
            if let Err(error) = context.journal.lead_anew(&settings, &mut known).await {
                debug!(error = format!("{error:#}"), "the database still refuses this worker");
            }
            if failover::is_due() {
                surveying.take_turn(&context, &instance).await;
            }
        }
        if stopping.run_until_cancelled(sleep(RETRY_DELAY)).await.is_none() {
            return;
        }
    }
}

/// A comparison under way.
#[derive(Default)]
struct Surveying {
    begun: Option<Instant>,
    /// Whether it was told that others are waited for.
    told: bool,
}

impl Surveying {
    async fn take_turn(&mut self, context: &Context, instance: &str) {
        let begun = *self.begun.get_or_insert_with(Instant::now);
        let survey = match context.journal.survey(instance, begun.elapsed()).await {
            Ok(survey) => survey,
            Err(error) => {
                // Nobody waits while nothing answers.
                self.begun = None;
                return debug!(%error, "what the database has cannot be compared yet");
            }
        };
        tell_lost(&survey.restored, &survey.missing);
        if survey.is_bottomless {
            error!(
                "the database lost more than this replica remembers, and the work is paused; see {RUNBOOK}"
            );
        }
        if !survey.is_over {
            if !survey.awaited.is_empty() && !std::mem::replace(&mut self.told, true) {
                tell_awaited(&survey.awaited);
            }
            return;
        }
        tell_silent(&survey.awaited);
        info!("what the database has was compared with what this replica remembers");
        // Before anything is taken: the next heartbeat may be two seconds away.
        obey(&context.intake, survey.pause);
        *self = Self::default();
    }
}

fn tell_lost(restored: &[LostCommit], missing: &[LostCommit]) {
    let count = |commits: &[LostCommit], lost| commits.iter().filter(|commit| commit.lost == lost).count();
    for (commits, is_restored) in [(restored, true), (missing, false)] {
        if commits.is_empty() {
            continue;
        }
        METRICS.note_lost_commits(is_restored, commits.len());
        let [jobs, attempts, results] =
            [Lost::Job, Lost::Attempt, Lost::Result].map(|lost| count(commits, lost));
        let job_ids: Vec<String> =
            commits.iter().take(NAMED_MAX).map(|commit| commit.job_id.to_string()).collect();
        match is_restored {
            true => warn!(
                jobs,
                attempts,
                results,
                ?job_ids,
                "the database lost commits in a failover; this replica wrote them again, see {RUNBOOK}"
            ),
            false => error!(
                jobs,
                attempts,
                results,
                ?job_ids,
                "the database lost commits in a failover that cannot be written again, and the work is paused; see {RUNBOOK}"
            ),
        }
    }
}
