//! What programs cost, as the kernel counts it: CPU time and memory, from /proc.

use std::fs;
use std::time::Duration;

use crate::figures::{CpuMicros, tenths};

/// The kernel counts CPU time in ticks of this length (`getconf CLK_TCK`), on every Linux
/// that runs here.
const TICK: Duration = Duration::from_millis(10);

/// The CPU time of the parties to a benchmark, since each began.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    pub programs: Duration,
    pub broker: Duration,
    pub postgres: Duration,
    pub provider: Duration,
}

impl Cpu {
    /// Reads the clocks of the programs under test and of the provider, by their process ids,
    /// and of whatever RabbitMQ and PostgreSQL run on this machine.
    pub fn read(programs: &[u32], provider: u32) -> Self {
        Self {
            programs: programs.iter().map(|pid| of_process(*pid)).sum(),
            broker: of_name("beam.smp"),
            postgres: of_name("postgres"),
            provider: of_process(provider),
        }
    }

    /// What each of so many jobs took.
    pub fn per_job(self, jobs: f64) -> CpuMicros {
        let micros = |time: Duration| tenths(time.as_secs_f64() * 1e6 / jobs);
        CpuMicros {
            programs: micros(self.programs),
            broker: micros(self.broker),
            postgres: micros(self.postgres),
            provider: micros(self.provider),
        }
    }

    pub fn since(self, earlier: Self) -> Self {
        Self {
            programs: self.programs.saturating_sub(earlier.programs),
            broker: self.broker.saturating_sub(earlier.broker),
            postgres: self.postgres.saturating_sub(earlier.postgres),
            provider: self.provider.saturating_sub(earlier.provider),
        }
    }
}

/// The most memory that a process ever held, in MB.
pub fn peak_memory_mb(pid: u32) -> f64 {
    status_mb(pid, "VmHWM:")
}

/// The memory that a process holds, in MB.
pub fn memory_mb(pid: u32) -> f64 {
    status_mb(pid, "VmRSS:")
}

fn status_mb(pid: u32, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    let kilobytes: f64 =
        line.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or_default();
    kilobytes / 1024.0
}

struct Clock {
    name: String,
    own: Duration,
    /// Of children that ended and were waited for.
    children: Duration,
}

fn of_process(pid: u32) -> Duration {
    clock(&pid.to_string()).map(|clock| clock.own).unwrap_or_default()
}

/// Of all processes of that name, those that came and went in between included: their parent
/// has the same name.
fn of_name(name: &str) -> Duration {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let clocks = processes.filter_map(|process| clock(process.file_name().to_str()?));
    clocks.filter(|clock| clock.name == name).map(|clock| clock.own + clock.children).sum()
}

/// Reads `/proc/[pid]/stat` (proc(5)). The name is in parentheses and may hold anything.
fn clock(pid: &str) -> Option<Clock> {
    if !pid.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, fields) = (stat.find('(')?, stat.rfind(')')?);
    let ticks: Vec<u32> =
        stat[fields + 2..].split(' ').skip(11).take(4).filter_map(|text| text.parse().ok()).collect();
    let [user, system, children_user, children_system] = ticks[..] else { return None };
    Some(Clock {
        name: stat[name + 1..fields].to_owned(),
        own: TICK * (user + system),
        children: TICK * (children_user + children_system),
    })
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_process_that_computes_is_seen_to() {
        let before = of_process(std::process::id());
        let begun = Instant::now();
        while of_process(std::process::id()) - before < 3 * TICK {
            black_box((0..100_000).sum::<u64>());
            assert!(begun.elapsed() < Duration::from_secs(60), "its clock stands");
        }
        assert!(peak_memory_mb(std::process::id()) > 1.0);
    }
}
