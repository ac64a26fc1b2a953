//! What the person who watches sees: what happens and when, and how far the work is.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, stderr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{bail, ensure};
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use sqlx::PgPool;
use tokio::time::{Instant, sleep};

use kyc_lab::process::Process;

/// Nothing in a demo takes longer.
const WATCH_TIMEOUT: Duration = Duration::from_secs(180);

/// Between two looks at the tables.
const LOOK_INTERVAL: Duration = Duration::from_millis(150);

/// Between two lines of progress, where no bar can be drawn.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// How far the verifications of accepted jobs are.
const VERIFICATIONS: &str = "
    select
        case
            when verification_due_at is not null then 'in verification'
            when verification_status in ('VERIFIED', 'FAILED') then verification_status
            else 'taken over by a newer job'
        end,
        count(*)
    from submission where state = 'accepted' group by 1 order by 1";

/// The states that a progress line shows, in this order.
const STATES: [&str; 9] = [
    "submitting",
    "waiting",
    "unknown",
    "accepted",
    "rejected",
    "superseded",
    "exhausted",
    "needs_review",
    "invalid",
];
const IN_MOTION: [&str; 3] = ["submitting", "waiting", "unknown"];

/// What happens, with the time.
pub struct Story {
    began: Instant,
    bar: ProgressBar,
}

impl Story {
    pub fn begin() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        Self { began: Instant::now(), bar }
    }

    pub fn tell(&self, what: &str) {
        let seconds = self.began.elapsed().as_secs_f64();
        self.bar.suspend(|| println!("{seconds:5.1} s  {what}"));
    }

    /// What was told of something that is told in full elsewhere.
    fn tell_quietly(&self, what: &str) {
        self.bar.suspend(|| println!("         {what}"));
    }
}

/// A worker under way, and how much of its log has been looked at.
pub struct Worker {
    process: Process,
    name: String,
    log: PathBuf,
    read: usize,
}

impl Worker {
    pub fn new(process: Process, name: &str, log: &Path) -> Self {
        Self { process, name: name.to_owned(), log: log.to_owned(), read: 0 }
    }

    /// What its log says of its intake since the last look.
    fn news(&mut self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let added = text.get(self.read..).unwrap_or_default();
        let whole = added.rfind('\n').map_or(0, |end| end + 1);
        self.read += whole;
        let about_intake = |line: &str| {
            let at =
                ["intake paused", "intake resumed", "drained:"].iter().find_map(|word| line.find(word))?;
            Some(format!("{}: {}", self.name, &line[at..]))
        };
        added[..whole].lines().filter_map(about_intake).collect()
    }
}

/// Watches the workers until they are where they should be.
pub struct Watch {
    story: Story,
    pool: PgPool,
    total: u64,
    workers: Vec<Worker>,
    last_line: Instant,
}

impl Watch {
    pub fn new(mut story: Story, pool: PgPool, total: usize, workers: Vec<Worker>) -> Self {
        let template = "  {bar:20} {percent:>3}%  {msg}";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        story.bar = ProgressBar::new(total as u64).with_style(style);
        Self { story, pool, total: total as u64, workers, last_line: Instant::now() }
    }

    pub fn tell(&self, what: &str) {
        self.story.tell(what);
    }

    /// Since the story began.
    pub fn elapsed(&self) -> Duration {
        self.story.began.elapsed()
    }

    pub async fn until_elapsed(&mut self, duration: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + duration;
        self.until(|_| Instant::now() >= end).await
    }

    pub async fn until_half_done(&mut self) -> anyhow::Result<()> {
        let half = self.total / 2;
        self.until(|ended| ended >= half).await
    }

    /// Until every worker has stopped by itself.
    pub async fn until_drained(&mut self) -> anyhow::Result<()> {
        self.until(|_| false).await?;
        self.tell("both workers have stopped by themselves");
        Ok(())
    }

    /// Until `worker` has followed every accepted job to the end of its verification.
    pub async fn until_verified(&mut self, worker: Worker) -> anyhow::Result<()> {
        self.workers = vec![worker];
        let deadline = Instant::now() + WATCH_TIMEOUT;
        loop {
            let counts: Vec<(String, i64)> = sqlx::query_as(VERIFICATIONS).fetch_all(&self.pool).await?;
            let shown: Vec<_> = counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
            let shown = shown.join(" · ");
            if !counts.iter().any(|(what, _)| what == "in verification") {
                self.tell(&format!("every verification has ended: {shown}"));
                break;
            }
            self.show(&shown);
            ensure!(!self.have_stopped()?, "the worker has stopped before every verification had ended");
            ensure!(
                Instant::now() < deadline,
                "the verifications have not ended after {WATCH_TIMEOUT:?}: {shown}"
            );
            sleep(LOOK_INTERVAL).await;
        }
        self.story.bar.finish_and_clear();
        self.workers.iter().try_for_each(|worker| worker.process.signal("TERM"))?;
        self.until(|_| false).await
    }

    /// Looks on until enough jobs have ended, or all workers have stopped.
    async fn until(&mut self, is_enough: impl Fn(u64) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + WATCH_TIMEOUT;
        loop {
            let ended = self.look().await?;
            if is_enough(ended) || self.have_stopped()? {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the workers are not done after {WATCH_TIMEOUT:?}");
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Shows how far the work is. Returns how many jobs have ended.
    async fn look(&mut self) -> anyhow::Result<u64> {
        for worker in &mut self.workers {
            for news in worker.news() {
                self.story.tell_quietly(&news);
            }
        }
        let counts: Vec<(String, i64)> =
            sqlx::query_as("select state, count(*) from submission group by state")
                .fetch_all(&self.pool)
                .await?;
        let counts: BTreeMap<String, u64> =
            counts.into_iter().map(|(state, count)| (state, count.unsigned_abs())).collect();
        let in_motion = |state: &str| IN_MOTION.contains(&state);
        let ended = counts.iter().filter(|(state, _)| !in_motion(state)).map(|(_, count)| count).sum();

        let shown = STATES.iter().filter_map(|state| Some((counts.get(*state)?, state)));
        let shown: Vec<_> = shown.map(|(count, state)| format!("{} {state}", HumanCount(*count))).collect();
        let shown = shown.join(" · ");
        self.story.bar.set_position(std::cmp::min(ended, self.total));
        self.show(&shown);
        Ok(ended)
    }

    fn show(&mut self, shown: &str) {
        if stderr().is_terminal() {
            self.story.bar.set_message(shown.to_owned());
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            eprintln!("         … {shown}");
        }
    }

    fn have_stopped(&mut self) -> anyhow::Result<bool> {
        let mut all = true;
        for worker in &mut self.workers {
            match worker.process.ended()? {
                None => all = false,
                Some(status) if status.success() => {}
                Some(status) => bail!("{} failed: {status}; see {}", worker.name, worker.log.display()),
            }
        }
        Ok(all)
    }
}
