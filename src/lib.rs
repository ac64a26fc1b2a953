//! A queue worker between a company's onboarding services and the DollarPe KYC API.
//!
//! The provider lets a customer's KYC be updated three times, ever, and offers no
//! idempotency key: a send spends something that does not come back. So the worker
//! commits what it is about to do before it does it, and never sends again what may
//! have been applied.
//!
//! The modules, in reading order: [`worker`] is the flow of one job, over the parts in [`context`];
//! [`domain`] holds its rules; [`journal`], [`provider`] and [`broker`] are the edges; [`control`]
//! decides whether and how much is done; [`loops`] run beside the flow; [`app`] puts it together;
//! [`desk`] is what people ask and do, [`console`] the same in a browser; [`config`], [`telemetry`] and [`cli`] face the operator.

pub mod checks;
pub mod context;
pub mod worker;

pub mod domain;

pub mod broker;
pub mod journal;
pub mod provider;

pub mod control;
pub mod loops;

pub mod desk;

pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod console;
pub mod failpoint;
pub mod finding;
pub mod instance;
pub mod links;
pub mod listener;
pub mod metrics;
pub mod seal;
pub mod telemetry;
pub mod tls;
mod traces;
pub mod visible;

/// The runtime that everything runs on: one thread. A replica's work is waiting and little else,
/// and handing it from thread to thread costs a fifth of its CPU; who needs more cores starts
/// more replicas. The broker's connection and the log have threads of their own.
///
/// # Errors
/// When the system gives no threads.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
