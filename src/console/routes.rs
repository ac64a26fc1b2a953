//! Every address of the console, and who may ask for it: one table. What is not in it is not answered.

use std::sync::Arc;

use axum::Router;
use axum::http::Method;
use axum::routing::{get, post};

use super::answer::Format;
use super::pages;
use super::state::Console;
use crate::domain::permission::Permission;

/// An address, and who may ask for it.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub method: &'static str,
    /// As axum writes it: what stands in braces is a name. A page is there with `.json` and `.csv` after it, too.
    pub path: &'static str,
    pub permission: Permission,
}

macro_rules! routes {
    ($($method:ident $path:literal $permission:ident $handler:path;)+) => {
        /// Every address that is not open to whoever asks.
        pub const ROUTES: &[Route] = &[$(
            Route { method: stringify!($method), path: $path, permission: Permission::$permission },
        )+];

        pub(super) fn pages() -> Router<Arc<Console>> {
            Router::new()$(
                .merge(forms(stringify!($method), $path, || $method($handler)))
            )+
        }
    };
}

routes! {
    get "/" View pages::home::show;
    get "/index" View pages::home::show;
    get "/find" View pages::find::show;
    get "/jobs/{id}" View pages::job::show;
    get "/jobs/{id}/replay" Replay pages::job_actions::ask_replay;
    post "/jobs/{id}/replay" Replay pages::job_actions::do_replay;
    get "/jobs/{id}/resolve" Decide pages::job_actions::ask_resolve;
    post "/jobs/{id}/resolve" Decide pages::job_actions::do_resolve;
    get "/customers/{id}" View pages::customer::show;
    get "/customers/{id}/budget" Decide pages::budget::ask;
    post "/customers/{id}/budget" Decide pages::budget::act;
    get "/review" View pages::review::list;
    get "/review/{id}" View pages::review::show;
    get "/replay" View pages::replay::show;
    post "/replay" Replay pages::replay::act;
    get "/proposals" View pages::proposals::list;
    get "/proposals/{id}" View pages::proposals::show;
    post "/proposals/{id}/approve" Approve pages::proposals::do_approve;
    post "/proposals/{id}/decline" Approve pages::proposals::do_decline;
    get "/verifications" View pages::verifications::show;
    get "/dead-letters" View pages::dead_letters::show;
    get "/errors" View pages::errors::show;
    get "/pause" Pause pages::pause::ask_pause;
    post "/pause" Pause pages::pause::do_pause;
    get "/resume" Pause pages::pause::ask_resume;
    post "/resume" Pause pages::pause::do_resume;
    get "/settings" View pages::settings::show;
    get "/interventions" Audit pages::records::list_interventions;
    get "/access" Audit pages::records::list_access;
}

/// What is answered at an address; a page whose address ends with no name, with the suffix of each other form
/// too.
fn forms(
    name: &str,
    path: &str,
    method: impl Fn() -> axum::routing::MethodRouter<Arc<Console>>,
) -> Router<Arc<Console>> {
    let router = Router::new().route(path, method());
    if name != "get" || path.ends_with(['/', '}']) {
        return router;
    }
    [Format::Json, Format::Csv]
        .iter()
        .fold(router, |router, format| router.route(&format!("{path}{}", format.suffix()), method()))
}

/// Who may ask for an address; `None` of one that is not there.
pub(super) fn permission_of(method: &Method, path: &str) -> Option<Permission> {
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let path = path.strip_suffix(Format::of(path).suffix()).unwrap_or(path);
    let is_meant = |route: &&Route| route.path == path && route.method.eq_ignore_ascii_case(method.as_str());
    ROUTES.iter().find(is_meant).map(|route| route.permission)
}
