//! `kyc-worker health`: whether the replica that runs here works, for probes. Its own row says so,
//! which it writes every two seconds while its loops move.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::time::timeout;

use super::database::DeskArgs;
use super::terminal::time_text;
use crate::config::{SettingFault, host_name};
use crate::instance::runs_here;
use crate::journal::replicas::{WorkerView, workers};

/// Tell a probe whether this replica works, by the row that it keeps
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  WORKER_NAME=worker-1 kyc-worker health --ready\n\nWithout --ready, a database that is away is no fault of the replica's.\n\nExit codes: 0 healthy, 1 not."
)]
pub(super) struct HealthArgs {
    /// Ask whether it takes jobs, and not only whether it is alive
    #[arg(long)]
    ready: bool,
    /// The replica's name, of those that run here [default: any]
    #[arg(long, env = "WORKER_NAME", value_name = "NAME")]
    worker_name: Option<String>,
    #[command(flatten)]
    desk: DeskArgs,
}

/// A probe that has not been answered by then says so itself. The image's HEALTHCHECK waits 5 s.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);

/// What a probe learns.
#[derive(Serialize)]
struct Health {
    is_healthy: bool,
    what: String,
    worker: Option<WorkerView>,
}

pub(super) async fn run(args: &HealthArgs) -> anyhow::Result<ExitCode> {
    let asked = timeout(ANSWER_TIME_MAX, replica(args)).await;
    let asked = asked.unwrap_or_else(|_| {
        let what = format!("the database did not answer within {ANSWER_TIME_MAX:?}");
        Err(anyhow::Error::msg(what))
    });
    let health = match asked {
        Ok(worker) => judge(args, worker),
        Err(error) if error.is::<SettingFault>() => return Err(error),
        // A database that is away is no fault of the replica's; but it takes no jobs then.
        Err(error) => {
            let what = format!("the replica cannot be asked for: {error:#}");
            Health { is_healthy: !args.ready, what, worker: None }
        }
    };
    args.desk.print(&health, |health| println!("{}", health.what))?;
    Ok(ExitCode::from(u8::from(!health.is_healthy)))
}

/// The row of the replica that runs here; of several, of the one that was seen last the longest ago.
/// A process that has ended is none of them, though its row is there.
async fn replica(args: &HealthArgs) -> anyhow::Result<Option<WorkerView>> {
    let pool = args.desk.open().await?;
    let is_ours = |worker: &WorkerView| {
        args.worker_name.as_ref().is_none_or(|name| worker.name == *name) && runs_here(&worker.instance)
    };
    let ours = workers(&pool).await?.into_iter().filter(is_ours);
    Ok(ours.min_by_key(|worker| worker.seen_at))
}

fn judge(args: &HealthArgs, worker: Option<WorkerView>) -> Health {
    let (is_healthy, what) = match &worker {
        None => {
            let name = args.worker_name.clone().unwrap_or_else(|| format!("of host {}", host_name()));
            (
                false,
                format!(
                    "no replica {name} has written its row; does it run here, and under this WORKER_NAME?"
                ),
            )
        }
        Some(WorkerView { is_alive: false, name, seen_at, .. }) => {
            (false, format!("replica {name} was last seen at {}: it hangs", time_text(*seen_at)))
        }
        Some(WorkerView { name, paused_for, .. }) if args.ready && !paused_for.is_empty() => {
            (false, format!("replica {name} is alive and takes no jobs: {}", paused_for.join(", ")))
        }
        Some(WorkerView { name, in_flight, .. }) => {
            (true, format!("replica {name} is alive, jobs in flight: {in_flight}"))
        }
    };
    Health { is_healthy, what, worker }
}
