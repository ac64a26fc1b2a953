//! `GET /metrics`, `/livez` and `/readyz`, on a thread of its own: jobs never wait for whoever asks,
//! and who asks waits for no job, no database and no broker.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::runtime::Builder;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tracing::{error, info};

use crate::context::Context;
use crate::control::intake::Severity;
use crate::control::slots::JobSlots;
use crate::metrics::{METRICS, Standing};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// As many connections are held at once. Further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 32;

/// A connection has one request and its answer, and ends by then: one that says nothing, or does not
/// read its answer, must not keep a descriptor, nor others from their answer. A kubelet waits for longer.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(5);

/// A request's head has come by then: so many silent clients delay a probe by no more.
const HEAD_TIME_MAX: Duration = Duration::from_secs(1);

/// Between two tries to accept, where the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// What is told of: nothing yet, while the worker starts.
#[derive(Clone, Default)]
pub struct Watched(Arc<OnceLock<(Arc<Context>, Arc<JobSlots>)>>);

impl Watched {
    /// From now on, tells of these.
    pub fn watch(&self, context: Arc<Context>, slots: Arc<JobSlots>) {
        let _is_set_once = self.0.set((context, slots));
    }

    /// Why the replica is not alive: a loop that stands still does not recover by itself. A database, a
    /// broker or a provider that is away is no reason.
    fn hang(&self) -> Option<String> {
        let (context, _) = self.0.get()?;
        context.liveness.standstill().map(|name| format!("the {name} stands still"))
    }

    /// Why the replica takes no jobs.
    fn unreadiness(&self) -> Option<String> {
        let Some((context, _)) = self.0.get() else { return Some("the worker starts".to_owned()) };
        let mut why: Vec<String> = self.hang().into_iter().collect();
        if context.stopping.is_cancelled() {
            why.push("the worker stops".to_owned());
        }
        if !context.liveness.session.has_session() {
            why.push("there is no session with the broker".to_owned());
        }
        let paused_for = context.intake.paused_for();
        if !paused_for.is_empty() {
            why.push(format!("the intake is paused for {}", paused_for.join(", ")));
        }
        (!why.is_empty()).then(|| why.join("; "))
    }

    fn standing(&self) -> Standing {
        let Some((context, slots)) = self.0.get() else { return Standing::default() };
        let pauses = context.intake.pauses().into_iter();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let turned_at = |ago: Duration| now.saturating_sub(ago).as_secs_f64();
        Standing {
            requests_in_flight: slots.requests_in_flight(),
            requests_max: slots.requests_max(),
            jobs_held: slots.jobs_held(),
            paused_for: pauses
                .map(|(reason, severity)| (reason.name(), severity == Severity::NeedsPerson))
                .collect(),
            breaker: context.breaker.state().name(),
            has_session: context.liveness.session.has_session(),
            connections: context.journal.connections(),
            clock_skew: context.provider.clock_skew(),
            turned_at: context.liveness.turned().map(|(name, ago)| (name, turned_at(ago))).to_vec(),
        }
    }
}

/// Listens at `address`, and answers from a thread of its own for as long as the process lives.
///
/// # Errors
/// When the address cannot be listened at, or the system gives no thread.
pub fn listen(address: SocketAddr, watched: Watched) -> anyhow::Result<()> {
    let fault = || format!("METRICS_LISTEN: cannot listen at {address}; is it another process's?");
    let socket = TcpListener::bind(address).with_context(fault)?;
    socket.set_nonblocking(true).with_context(fault)?;
    let address = socket.local_addr().with_context(fault)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("metrics".to_owned()).spawn(move || {
        let serving = async {
            let socket = tokio::net::TcpListener::from_std(socket)?;
            serve(socket, router(watched)).await;
            std::io::Result::Ok(())
        };
        if let Err(error) = runtime.block_on(serving) {
            error!(%error, "METRICS_LISTEN: nobody is answered any more; restart the worker");
        }
    })?;
    info!(%address, "metrics and probes are answered");
    Ok(())
}

/// Answers one request a connection, on few connections at once and none for long.
async fn serve(socket: tokio::net::TcpListener, router: Router) {
    let mut http = auto::Builder::new(TokioExecutor::new()).http1_only();
    http.http1().keep_alive(false).timer(TokioTimer::new()).header_read_timeout(HEAD_TIME_MAX);
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // The semaphore is never closed.
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        let Ok((connection, _)) = socket.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (http, service) = (http.clone(), TowerToHyperService::new(router.clone()));
        tokio::spawn(async move {
            let answering = http.serve_connection(TokioIo::new(connection), service);
            let _ended_or_cut_off = timeout(CONNECTION_TIME_MAX, answering).await;
            drop(permit);
        });
    }
}

fn router(watched: Watched) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(watched)
}

async fn metrics(State(watched): State<Watched>) -> impl IntoResponse {
    match METRICS.encode(&watched.standing()) {
        Ok(text) => (StatusCode::OK, [(CONTENT_TYPE, OPENMETRICS)], text),
        Err(error) => {
            let text = (CONTENT_TYPE, "text/plain; charset=utf-8");
            (StatusCode::INTERNAL_SERVER_ERROR, [text], format!("{error}\n"))
        }
    }
}

async fn livez(State(watched): State<Watched>) -> impl IntoResponse {
    told(watched.hang(), "alive")
}

async fn readyz(State(watched): State<Watched>) -> impl IntoResponse {
    told(watched.unreadiness(), "ready")
}

fn told(fault: Option<String>, well: &str) -> (StatusCode, String) {
    match fault {
        None => (StatusCode::OK, format!("{well}\n")),
        Some(fault) => (StatusCode::SERVICE_UNAVAILABLE, format!("{fault}\n")),
    }
}
