//! Waits for the database at the start, and follows it to where the setting leads later.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::config::{Checked, DatabaseSettings};
use crate::context::{Context, chain};
use crate::control::intake::Reason;
use crate::journal;
use crate::journal::failover::{self, Lost, LostCommit, RUNBOOK, Survey};
use crate::loops::heartbeat::obey;
use crate::metrics::METRICS;

/// Between two tries to reach the database at start.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The same, where a person must let us in: a server may lock out who fails too often.
const REFUSED_DELAY: Duration = Duration::from_secs(5);

/// So many turns that fail for no outage do not mend themselves.
const FAILURES_TOLD: u32 = 10;

/// How many jobs a line names; all of them stand in lost_commit.
const NAMED_MAX: usize = 20;

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

/// Before this replica begins anything: waits for those that have not said what they remember of the time
/// before a failover. What they did last may be missing here, and would be done again. False when stopped
/// meanwhile.
pub async fn await_others(context: &Context, instance: &str) -> bool {
    let mut surveying = Surveying { at_start: true, ..Surveying::default() };
    while !surveying.take_turn(context, instance).await {
        if context.stopping.run_until_cancelled(sleep(RETRY_DELAY)).await.is_none() {
            return false;
        }
    }
    true
}

/// While the database is away or refuses us: finds out where the setting leads by now. Its password may
/// have been rotated, and its host have another address. What it has is compared with what this replica
/// remembers before anything else is done there. Until the worker has `finished` what it had begun, and then
/// until it has said what nobody else knows.
pub async fn follow(
    settings: DatabaseSettings,
    context: Arc<Context>,
    instance: String,
    finished: CancellationToken,
) {
    let mut known = None;
    let mut surveying = Surveying::default();
    let mut is_open = context.intake.subscribe();
    loop {
        let paused = async { is_open.wait_for(|is_open| !is_open).await.is_ok() };
        if finished.run_until_cancelled(paused).await == Some(false) {
            return;
        }
        let is_away = context.intake.is_paused_for(Reason::Database);
        if finished.is_cancelled() && !(is_away && context.journal.remembers()) {
            return;
        }
        if is_away {
            if let Err(error) = context.journal.lead_anew(&settings, &mut known).await {
                debug!(error = format!("{error:#}"), "the database still refuses this worker");
            }
            let is_last = finished.is_cancelled();
            if (failover::is_due() || is_last) && surveying.take_turn(&context, &instance).await {
                if is_last {
                    return;
                }
                surveying = Surveying::default();
            }
        }
        sleep(RETRY_DELAY).await;
    }
}

/// A comparison under way.
#[derive(Default)]
struct Surveying {
    survey: Survey,
    at_start: bool,
    /// When the last turn was taken that was answered.
    answered_at: Option<Instant>,
    /// Whether it was told that others are waited for.
    told_awaited: bool,
    /// How many turns have failed since one was answered.
    failures: u32,
}

impl Surveying {
    /// Returns whether it is over.
    async fn take_turn(&mut self, context: &Context, instance: &str) -> bool {
        let begun = Instant::now();
        self.survey.answering += self.answered_at.take().map_or(Duration::ZERO, |at| begun - at);
        if let Err(error) = context.journal.survey(&mut self.survey, instance, self.at_start).await {
            self.failures += 1;
            if self.failures == FAILURES_TOLD && !error.is_outage() {
                error!(error = chain(&error), "what the database has cannot be compared; see {RUNBOOK}");
            }
            debug!(error = chain(&error), "what the database has cannot be compared yet");
            return false;
        }
        self.failures = 0;
        self.answered_at = Some(begun);
        let survey = &mut self.survey;
        tell_lost(&std::mem::take(&mut survey.restored), true);
        tell_lost(&std::mem::take(&mut survey.missing), false);
        let names = || survey.awaited.iter().map(|other| other.replica.as_str()).collect::<Vec<_>>();
        if !survey.is_over {
            if !survey.awaited.is_empty() && !std::mem::replace(&mut self.told_awaited, true) {
                warn!(
                    awaited = ?names(),
                    "the database failed over; this replica waits until the others have compared their rows"
                );
            }
            // One that begins nothing any more need not wait for others.
            let is_over = context.stopping.is_cancelled() && survey.has_confirmed;
            if is_over {
                self.go_on(context);
            }
            return is_over;
        }
        if survey.is_bottomless {
            error!(
                "the database lost more than this replica remembers, and the work is paused; see {RUNBOOK}"
            );
        }
        if !survey.awaited.is_empty() {
            error!(
                awaited = ?names(),
                "the database failed over, and these replicas did not say what they remember: what they \
                 committed last may be missing without a trace; see {RUNBOOK}"
            );
        }
        if !self.at_start {
            // Before anything is taken: the next heartbeat may be two seconds away.
            obey(&context.intake, survey.pause.take());
            self.go_on(context);
        }
        true
    }

    fn go_on(&mut self, context: &Context) {
        info!("what the database has was compared with what this replica remembers");
        context.journal.adopt(std::mem::take(&mut self.survey));
    }
}

fn tell_lost(commits: &[LostCommit], is_restored: bool) {
    if commits.is_empty() {
        return;
    }
    METRICS.note_lost_commits(is_restored, commits.len());
    let count = |lost| commits.iter().filter(|commit| commit.lost == lost).count();
    let [jobs, attempts, results] = [Lost::Job, Lost::Attempt, Lost::Result].map(count);
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
            "the database lost commits in a failover that cannot be written again, and the work is paused; see \
             {RUNBOOK}"
        ),
    }
}
