//! `kyc-worker console`: the desk in a browser, for people who do not live in a terminal. A process of its
//! own, with a role of its own in the database: no keys, no provider, no broker.
//!
//! A request passes `guard`, which knows who asks (`login`) and whether they may (`routes`); its page
//! (`pages`) asks the desk, as the commands do, and `answer` sends one struct as HTML, JSON or CSV.

mod answer;
mod assets;
mod guard;
mod login;
mod pages;
mod routes;
mod state;
mod visit;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use self::state::Console;
use crate::config::{CheckedConsole, ConsoleSettings, DatabaseSettings, ReadBackSettings, SettingSource};
use crate::desk::access::{answers, may_see_payloads};
use crate::desk::replay::ReplayRules;
use crate::journal::{check_schema, connect_for_console, lead_console_anew};

pub use self::routes::{ROUTES, Route};

/// As many requests are answered at once; a further one is told to come again.
const REQUESTS_MAX: usize = 32;

/// As many connections are held at once. Further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 512;

/// A request's head has come by then.
const HEAD_TIME_MAX: Duration = Duration::from_secs(2);

/// Between two tries to accept, where the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// How long what is being answered may take once the console is told to stop.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// How often the database is asked whether it answers.
const DATABASE_POLL: Duration = Duration::from_secs(5);

/// Answers until it is told to stop.
///
/// # Errors
/// When it cannot start: the database does not answer, its schema is older, or the address is taken.
pub async fn run(
    database: DatabaseSettings,
    settings: ConsoleSettings,
    checked: CheckedConsole,
    read_back: &ReadBackSettings,
    sources: Vec<SettingSource>,
) -> anyhow::Result<()> {
    let mut told = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (pages, actions) = connect_for_console(&database, &database.url()?).await?;
    check_schema(&pages).await?;
    if may_see_payloads(&pages).await? {
        warn!(
            "the console's role may see sealed payloads and fingerprints; name a member of kyc_desk in DATABASE_URL"
        );
    }
    let address = settings.console_listen;
    let fault = || format!("CONSOLE_LISTEN: cannot listen at {address}; is it another process's?");
    let socket = TcpListener::bind(address).await.with_context(fault)?;
    let address = socket.local_addr().with_context(fault)?;
    let rules = ReplayRules {
        customer_updates: read_back.customer_update_limit,
        read_back_window: read_back.read_back_window,
    };
    let console = Arc::new(Console {
        pages,
        actions,
        rules,
        sources,
        permits: Semaphore::new(REQUESTS_MAX),
        checked,
        settings,
    });
    info!(%address, url = %console.checked.public_url, "the console answers");
    let following = tokio::spawn(follow_database(Arc::clone(&console), database));
    let (answering, stopping) = (TaskTracker::new(), CancellationToken::new());
    tokio::select! {
        () = serve(socket, &console, address, &answering, &stopping) => {}
        _ = told.0.recv() => {}
        _ = told.1.recv() => {}
    }
    following.abort();
    info!("the console stops");
    stopping.cancel();
    answering.close();
    let _answered_or_cut_off = timeout(SHUTDOWN_GRACE, answering.wait()).await;
    Ok(())
}

/// Where the database does not answer, asks whether the setting leads elsewhere by now: to another of its
/// hosts, or with another password.
async fn follow_database(console: Arc<Console>, settings: DatabaseSettings) {
    let mut known = None;
    loop {
        sleep(DATABASE_POLL).await;
        if answers(&console.pages).await {
            continue;
        }
        let anew = lead_console_anew([&console.pages, &console.actions], &settings, &mut known).await;
        if let Err(error) = anew {
            warn!(error = format!("{error:#}"), "the console's database does not answer");
        }
    }
}

async fn serve(
    socket: TcpListener,
    console: &Arc<Console>,
    address: SocketAddr,
    answering: &TaskTracker,
    stopping: &CancellationToken,
) {
    let mut http = auto::Builder::new(TokioExecutor::new()).http1_only();
    http.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIME_MAX);
    let router = router(Arc::clone(console), address);
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // The semaphore is never closed.
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        let Ok((connection, _)) = socket.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        let (http, stopping) = (http.clone(), stopping.clone());
        answering.spawn(async move {
            let mut answers = std::pin::pin!(http.serve_connection(TokioIo::new(connection), service));
            tokio::select! {
                _ended_or_broken = answers.as_mut() => {}
                // What is being answered is answered; a connection that lies idle is closed.
                () = stopping.cancelled() => {
                    answers.as_mut().graceful_shutdown();
                    let _ended_or_broken = answers.await;
                }
            }
            drop(permit);
        });
    }
}

/// Everything that is answered: pages to those who may, and what is open to whoever asks.
fn router(console: Arc<Console>, address: SocketAddr) -> Router {
    routes::pages()
        .fallback(guard::not_found)
        .layer(from_fn_with_state((Arc::clone(&console), address), guard::admit))
        .route("/assets/{name}", get(assets::show))
        .route("/livez", get(guard::livez))
        .route("/readyz", get(guard::readyz))
        .layer(from_fn(guard::wrap))
        .with_state(console)
}
