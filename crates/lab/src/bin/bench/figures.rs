//! What was measured, as it is written to a file and read from it again. Must not know how.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::stage::{Contender, JobIds};

/// Every part that was measured on one machine with one build.
#[derive(Debug, Deserialize, Serialize)]
pub struct Report {
    pub machine: Machine,
    pub throughput: Option<Table>,
    pub latency: Option<Vec<Table>>,
    pub replicas: Option<Table>,
    pub retries: Option<Table>,
    pub idle: Option<Idle>,
    pub peers: Option<Table>,
    pub rows: Option<Rows>,
    pub memory: Option<Memory>,
    #[serde(default)]
    pub events: Option<Table>,
    #[serde(default)]
    pub single: Option<Single>,
    #[serde(default)]
    pub archive: Option<Archive>,
    #[serde(default)]
    pub console: Option<Console>,
}

/// Lines that were measured in turn, in one window of time: they compare.
#[derive(Debug, Deserialize, Serialize)]
pub struct Table {
    pub provider_latency_ms: u64,
    pub jobs: usize,
    /// Of each replica.
    pub concurrency: usize,
    pub prefetch: usize,
    pub lines: Vec<Line>,
}

/// What ran, and what each run of it saw.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Line {
    pub contender: Contender,
    pub replicas: usize,
    pub job_ids: JobIds,
    /// The share of updates that were answered with a 500 and not applied.
    pub failing_percent: f64,
    /// Whether upstream is told of each end.
    #[serde(default)]
    pub tells_upstream: bool,
    pub runs: Vec<Run>,
}

/// One drained queue.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Run {
    pub jobs_per_second: f64,
    /// CPU time a job, in µs.
    pub cpu_us: CpuMicros,
    /// What the database writes to its log a job, in bytes.
    pub wal_bytes: f64,
    /// The replicas' together, in MB.
    pub peak_memory_mb: f64,
    /// From receipt to outcome, in ms; of the worker alone.
    pub latency_ms: Option<Latency>,
    /// From the program's start to its first update, in ms.
    pub start_up_ms: f64,
    /// From the last job's first answer to the last outcome, in s.
    pub settled_after_s: f64,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct CpuMicros {
    pub programs: f64,
    pub broker: f64,
    pub postgres: f64,
    pub provider: f64,
}

impl CpuMicros {
    /// What the reader pays for: not the simulated provider.
    pub fn paid(self) -> f64 {
        self.programs + self.broker + self.postgres
    }
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
}

/// Jobs that came one at a time.
#[derive(Debug, Deserialize, Serialize)]
pub struct Single {
    pub jobs_per_second: u32,
    pub jobs: usize,
    pub lines: Vec<SingleLine>,
    /// What the worker asks the database for so many jobs and one before them, and between them.
    pub statements: Vec<Statement>,
}

#[derive(Debug, Deserialize, Serialize)]
pub struct SingleLine {
    pub contender: Contender,
    pub runs: Vec<SingleRun>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct SingleRun {
    /// From just before the job was published to the provider's receipt of its update, in ms.
    pub to_receipt_ms: Latency,
    /// CPU time a job, in µs; what the program does between two jobs is in it.
    pub cpu_us: CpuMicros,
}

impl SingleLine {
    pub fn median(&self, of: impl Fn(&SingleRun) -> f64) -> f64 {
        median(self.runs.iter().map(of).collect())
    }
}

/// Old jobs go to files while replicas work.
#[derive(Debug, Deserialize, Serialize)]
pub struct Archive {
    pub jobs: u64,
    pub replicas: usize,
    pub published_per_second: u32,
    /// The replicas' work before the archive, and during it.
    pub work: [Work; 2],
    pub seconds: f64,
    pub peak_memory_mb: f64,
    /// CPU time of the command, in µs for each job that is archived.
    pub cpu_us: f64,
    pub file_bytes: u64,
    /// What the tables take before it, after it, and once the same number of jobs has come again.
    pub sizes: [Vec<Relation>; 3],
}

/// What replicas did for some time.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Work {
    pub jobs: u64,
    /// From a job's receipt to its end.
    pub latency_ms: Latency,
    /// CPU time a job; Postgres' includes the archive's, where one runs.
    pub cpu_us: CpuMicros,
}

/// A worker with nothing to do. CPU in ms of CPU time for each second.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Idle {
    pub seconds: f64,
    pub worker_cpu_ms: f64,
    /// Beyond what they take where no worker runs.
    pub broker_cpu_ms: f64,
    pub postgres_cpu_ms: f64,
    pub memory_mb: f64,
}

/// The same work beside ever more rows.
#[derive(Debug, Deserialize, Serialize)]
pub struct Rows {
    pub sizes: Vec<Size>,
    /// Beside the last size, jobs that wait and are due much later.
    pub parked: u64,
    pub with_parked: Table,
    pub idle_with_parked: Idle,
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Size {
    /// Ended jobs in the tables.
    pub rows: u64,
    pub table: Table,
    pub relations: Vec<Relation>,
    /// What the worker asked the database for, beside that many rows.
    pub statements: Vec<Statement>,
    /// What the commands for people asked.
    pub commands: Vec<Statement>,
}

/// A table with its indexes.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Relation {
    pub name: String,
    /// As the server counted them last.
    pub rows: f64,
    pub table_bytes: i64,
    pub index_bytes: i64,
}

/// A statement with its plan.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Statement {
    pub name: String,
    pub calls: u64,
    pub mean_ms: f64,
    pub max_ms: f64,
    /// The most rows that one execution read in one place.
    pub rows_read: u64,
    /// What is looked up, and by which index, of the execution that took longest.
    pub plan: String,
    /// What makes it dearer with every row, if anything does.
    pub faults: Vec<String>,
}

/// The pages of a console.
#[derive(Debug, Deserialize, Serialize)]
pub struct Console {
    /// Jobs in the tables.
    pub rows: u64,
    /// How often each page was asked for in each form, one at a time.
    pub rounds: usize,
    /// How many were asked for at once, after that.
    pub at_once: usize,
    pub pages: Vec<PageTimes>,
    /// What they ask the database for.
    pub statements: Vec<Statement>,
}

/// A page in all its forms.
#[derive(Debug, Deserialize, Serialize)]
pub struct PageTimes {
    pub page: String,
    pub forms: usize,
    pub alone: Times,
    pub together: Times,
}

/// From the request to the end of the answer, in ms.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Times {
    pub p50: f64,
    pub p95: f64,
    pub max: f64,
}

impl Times {
    pub fn of(values: &[f64]) -> Self {
        let [p50, p95, max] = [0.5, 0.95, 1.0].map(|share| tenths(quantile(values, share)));
        Self { p50, p95, max }
    }
}

/// One long run.
#[derive(Debug, Deserialize, Serialize)]
pub struct Memory {
    pub jobs: usize,
    pub jobs_per_second: f64,
    pub samples: Vec<MemorySample>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct MemorySample {
    pub jobs: u64,
    pub memory_mb: f64,
}

impl Report {
    pub fn new(machine: Machine) -> Self {
        Self {
            machine,
            throughput: None,
            latency: None,
            replicas: None,
            retries: None,
            idle: None,
            peers: None,
            rows: None,
            memory: None,
            events: None,
            single: None,
            archive: None,
            console: None,
        }
    }

    /// The parts in a file, where there is one: of this machine and build, or they would not
    /// compare.
    pub fn read_or_new(path: &Path, machine: Machine) -> anyhow::Result<Self> {
        if !path.exists() {
            return Ok(Self::new(machine));
        }
        let report = Self::read(path)?;
        ensure!(
            report.machine == machine,
            "{}: holds figures of another machine or build ({}, not {machine}), and figures of two do not \
             compare; remove the file, and measure every part anew",
            path.display(),
            report.machine,
        );
        Ok(report)
    }

    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text)
            .with_context(|| format!("{}: is not what this version writes; remove it", path.display()))
    }

    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Table {
    pub fn line_of(&self, contender: Contender) -> Option<&Line> {
        self.lines.iter().find(|line| line.contender == contender)
    }

    pub fn worker_with(&self, job_ids: JobIds) -> Option<&Line> {
        self.lines.iter().find(|line| line.contender == Contender::Worker && line.job_ids == job_ids)
    }
}

impl Line {
    pub fn new(contender: Contender) -> Self {
        Self {
            contender,
            replicas: 1,
            job_ids: JobIds::Random,
            failing_percent: 0.0,
            tells_upstream: false,
            runs: Vec::new(),
        }
    }

    /// CPU time a job that the reader pays for, in µs.
    pub fn paid(&self) -> f64 {
        self.median(|run| run.cpu_us.paid())
    }

    pub fn median(&self, of: impl Fn(&Run) -> f64) -> f64 {
        median(self.runs.iter().map(of).collect())
    }

    pub fn rate(&self) -> f64 {
        self.median(|run| run.jobs_per_second)
    }

    /// The slowest and the fastest run.
    pub fn rates(&self) -> (f64, f64) {
        let rates = || self.runs.iter().map(|run| run.jobs_per_second);
        (rates().fold(f64::INFINITY, f64::min), rates().fold(0.0, f64::max))
    }
}

/// The middle one, or the mean of the two in the middle; 0 of nothing.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    match (values.get(low), values.get(high)) {
        (Some(low), Some(high)) => f64::midpoint(*low, *high),
        _ => 0.0,
    }
}

/// The value that this share of them does not exceed; 0 of nothing.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let at = (values.len().saturating_sub(1) as f64 * share).round() as usize;
    values.get(at).copied().unwrap_or_default()
}

/// To a hundredth.
pub fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// To a tenth: more digits say nothing, and make every run's file another.
pub fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!(median(vec![]).abs() < f64::EPSILON);
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
    }

    #[test]
    fn figures_of_another_machine_are_not_mixed_in() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("figures.json");
        let ours = Machine::default();
        Report::read_or_new(&path, ours.clone()).unwrap().write(&path).unwrap();
        assert!(Report::read_or_new(&path, ours.clone()).is_ok());
        let theirs = Machine { cores: 64, ..ours };
        let error = Report::read_or_new(&path, theirs).unwrap_err().to_string();
        assert!(error.contains("another machine"), "{error}");
    }
}
