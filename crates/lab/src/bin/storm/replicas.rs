//! The replicas: real processes, killed, stopped past their lease, told to stop, and
//! started again.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::{Instant, sleep};

use kyc_lab::process::Process;

/// The signal that tells a process to stop.
const SIGTERM: i32 = 15;

/// A replica that was told to stop is gone after its grace and this.
const STOP_TIME_MAX: Duration = Duration::from_secs(10);

/// How a replica of number and incarnation is started.
pub type Start = Box<dyn Fn(&str) -> Command>;

/// All replicas.
pub struct Replicas {
    rng: StdRng,
    start: Start,
    logs: PathBuf,
    /// From the claim's lease on, a stopped replica has lost what it held.
    lease: Duration,
    replicas: Vec<Replica>,
    /// What was done to them, by kind.
    pub done: BTreeMap<&'static str, u32>,
    /// What they did and must not.
    pub faults: Vec<String>,
}

struct Replica {
    number: usize,
    incarnation: u32,
    state: State,
}

enum State {
    Down { until: Instant },
    Up(Process),
    Stopped { process: Process, until: Instant },
    Terminating { process: Process, deadline: Instant },
}

impl Replica {
    fn name(&self) -> String {
        format!("replica-{}.{}", self.number, self.incarnation)
    }
}

impl Replicas {
    pub fn new(count: usize, seed: u64, lease: Duration, logs: PathBuf, start: Start) -> Self {
        let state = || State::Down { until: Instant::now() };
        let replicas = (1..=count).map(|number| Replica { number, incarnation: 0, state: state() }).collect();
        let rng = StdRng::seed_from_u64(seed);
        Self { rng, start, logs, lease, replicas, done: BTreeMap::new(), faults: Vec::new() }
    }

    /// Kills one of them now and then until `end`, and starts what is down.
    pub async fn harass(&mut self, end: Instant, kills_per_minute: f64) -> anyhow::Result<()> {
        let mut next = Instant::now() + self.pause(kills_per_minute);
        while Instant::now() < end {
            self.look_after()?;
            if Instant::now() >= next {
                self.strike()?;
                next = Instant::now() + self.pause(kills_per_minute);
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Starts what is down, and wakes what is stopped, until cancelled.
    pub async fn keep_up(&mut self) -> anyhow::Result<()> {
        loop {
            self.look_after()?;
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Tells all to stop and waits until they have.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        for at in 0..self.replicas.len() {
            self.terminate(at)?;
        }
        while self.replicas.iter().any(|replica| matches!(replica.state, State::Terminating { .. })) {
            for at in 0..self.replicas.len() {
                if let State::Terminating { .. } = self.replicas[at].state {
                    self.look_at(at)?;
                }
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn pause(&mut self, per_minute: f64) -> Duration {
        let mean = 60.0 / per_minute.max(0.001);
        Duration::from_secs_f64((-self.rng.random_range(1e-6_f64..1.0).ln() * mean).min(4.0 * mean))
    }

    /// One of those that are up: killed mostly, else stopped or told to stop.
    fn strike(&mut self) -> anyhow::Result<()> {
        let up: Vec<usize> =
            (0..self.replicas.len()).filter(|at| matches!(self.replicas[*at].state, State::Up(_))).collect();
        if up.is_empty() {
            return Ok(());
        }
        let at = up[self.rng.random_range(0..up.len())];
        match self.rng.random_range(0..10) {
            0..7 => {
                self.count("killed (SIGKILL)");
                let until = Instant::now() + Duration::from_millis(self.rng.random_range(0..1000));
                // Dropping a process kills it.
                self.replicas[at].state = State::Down { until };
                Ok(())
            }
            7..9 => {
                self.count("stopped past the lease (SIGSTOP)");
                let until = Instant::now() + self.lease.mul_f64(self.rng.random_range(1.0..1.8));
                self.change(at, |state| match state {
                    State::Up(process) => {
                        process.signal("STOP")?;
                        Ok(State::Stopped { process, until })
                    }
                    other => Ok(other),
                })
            }
            _ => {
                self.count("told to stop (SIGTERM)");
                self.terminate(at)
            }
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.done.entry(what).or_default() += 1;
    }

    fn terminate(&mut self, at: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + STOP_TIME_MAX;
        self.change(at, |state| match state {
            State::Up(process) | State::Stopped { process, .. } => {
                process.signal("CONT")?;
                process.signal("TERM")?;
                Ok(State::Terminating { process, deadline })
            }
            other => Ok(other),
        })
    }

    fn change(
        &mut self,
        at: usize,
        change: impl FnOnce(State) -> anyhow::Result<State>,
    ) -> anyhow::Result<()> {
        let down = State::Down { until: Instant::now() };
        let state = std::mem::replace(&mut self.replicas[at].state, down);
        self.replicas[at].state = change(state)?;
        Ok(())
    }

    fn look_after(&mut self) -> anyhow::Result<()> {
        (0..self.replicas.len()).try_for_each(|at| self.look_at(at))
    }

    /// Moves one replica on to its next state, if it is time.
    fn look_at(&mut self, at: usize) -> anyhow::Result<()> {
        let now = Instant::now();
        let name = self.replicas[at].name();
        let mut fault = None;
        let (start, logs) = (&self.start, &self.logs);
        let mut incarnation = self.replicas[at].incarnation;
        let number = self.replicas[at].number;
        let down = State::Down { until: now };
        let state = match std::mem::replace(&mut self.replicas[at].state, down) {
            State::Down { until } if until <= now => {
                incarnation += 1;
                let name = format!("replica-{number}.{incarnation}");
                let log = logs.join(format!("{name}.log"));
                State::Up(Process::start_logged(start(&name), &name, &log)?)
            }
            State::Up(mut process) => match process.ended()? {
                Some(status) => {
                    fault = Some(format!("{name}: ended by itself, {status}"));
                    State::Down { until: now }
                }
                None => State::Up(process),
            },
            State::Stopped { process, until } if until <= now => {
                process.signal("CONT")?;
                State::Up(process)
            }
            State::Terminating { mut process, deadline } => match process.ended()? {
                Some(status) => {
                    // One that was told before it listened for signals dies of it, with nothing in hand.
                    let is_orderly = status.success() || status.signal() == Some(SIGTERM);
                    fault = (!is_orderly).then(|| format!("{name}: told to stop, {status}"));
                    State::Down { until: now }
                }
                None if deadline <= now => {
                    fault = Some(format!("{name}: told to stop, and still there after {STOP_TIME_MAX:?}"));
                    State::Down { until: now }
                }
                None => State::Terminating { process, deadline },
            },
            other => other,
        };
        self.replicas[at].state = state;
        self.replicas[at].incarnation = incarnation;
        self.faults.extend(fault);
        Ok(())
    }
}
