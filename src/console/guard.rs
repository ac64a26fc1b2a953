//! What every request passes: where it came from, who sent it, whether they may, and what goes with the
//! answer. A page that is refused says which header was seen, so that a proxy can be put right.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, ORIGIN, REFERRER_POLICY, RETRY_AFTER,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tokio::time::{Instant, timeout};
use tracing::info;
use url::Url;

use super::answer::{Failure, Format};
use super::login::{Visitor, only};
use super::routes::permission_of;
use super::state::Console;
use crate::config::is_loopback;
use crate::desk::access::answers;

/// A request is answered by then, or given up.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// A form is no larger.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// Nothing on a page comes from elsewhere, and nothing of it is shown elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

const HEADERS: [(HeaderName, &str); 6] = [
    (CONTENT_SECURITY_POLICY, POLICY),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    // A page's address names a job or a customer.
    (REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=()"),
];

/// What every answer is sent with, and every request is logged by. Neither the log nor an answer's headers
/// say which job or customer a page was about.
pub(super) async fn wrap(request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let (method, format) = (request.method().clone(), Format::of(request.uri().path()));
    // An address that is none of ours may say anything.
    let path = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let answering = timeout(ANSWER_TIME_MAX, next.run(request)).await;
    let mut response = answering.unwrap_or_else(|_elapsed| Failure::TooLong.respond(format));
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response.headers_mut().entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    if !is_open(&path) {
        let by =
            response.extensions().get::<Visitor>().map(|visitor| visitor.name.clone()).unwrap_or_default();
        let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        info!(%method, path, by, status = response.status().as_u16(), took_ms, "answered");
    }
    response
}

/// Whether an address is answered to whoever asks: probes, and what is no secret.
fn is_open(path: &str) -> bool {
    path.starts_with("/assets/") || matches!(path, "/livez" | "/readyz")
}

/// Lets those in who may.
pub(super) async fn admit(
    State((console, address)): State<(Arc<Console>, SocketAddr)>,
    request: Request,
    next: Next,
) -> Response {
    let format = Format::of(request.uri().path());
    let refuse = |failure: &Failure| failure.respond(format);
    if let Err(seen) = check_host(request.headers(), request.uri(), &console.checked.public_url, address) {
        return refuse(&Failure::WrongHost { seen });
    }
    let visitor = match Visitor::of(request.headers(), &console) {
        Ok(visitor) => visitor,
        Err(stranger) => return refuse(&Failure::Stranger(stranger)),
    };
    let with_visitor = |mut response: Response, visitor: Visitor| {
        response.extensions_mut().insert(visitor);
        response
    };
    let Some(path) = request.extensions().get::<MatchedPath>() else {
        return with_visitor(refuse(&Failure::NotFound), visitor);
    };
    let Some(permission) = permission_of(request.method(), path.as_str()) else {
        return with_visitor(refuse(&Failure::NotFound), visitor);
    };
    if !visitor.may(permission) {
        let failure = Failure::NotAllowed { roles: permission.roles(), of: visitor.roles.clone() };
        return with_visitor(refuse(&failure), visitor);
    }
    if !is_safe(request.method())
        && let Err(seen) = check_origin(request.headers(), &console.checked.public_url)
    {
        return with_visitor(refuse(&Failure::Forged { seen }), visitor);
    }
    // Its body is there before it takes one of the few places.
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_BYTES_MAX).await else {
        return with_visitor(refuse(&Failure::TooLarge), visitor);
    };
    let mut request = Request::from_parts(parts, Body::from(body));
    let Ok(_permit) = console.permits.try_acquire() else {
        let mut response = refuse(&Failure::Busy);
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        return with_visitor(response, visitor);
    };
    request.extensions_mut().insert(visitor.clone());
    let mut response = next.run(request).await;
    if let Some(failure) = response.extensions_mut().remove::<Arc<Failure>>() {
        response = refuse(&failure);
    }
    with_visitor(response, visitor)
}

fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// Whether a request was sent to us by name: a page elsewhere can have a name of its own lead to our address
/// (DNS rebinding).
fn check_host(headers: &HeaderMap, uri: &Uri, public: &Url, address: SocketAddr) -> Result<(), String> {
    let given = only(headers, &HOST).or(uri.host()).unwrap_or_default();
    if given.contains(['@', '/', '?', '#', '\\']) {
        return Err(given.to_owned());
    }
    let Ok(seen) = Url::parse(&format!("{}://{given}", public.scheme())) else {
        return Err(given.to_owned());
    };
    let is_public =
        seen.host() == public.host() && seen.port_or_known_default() == public.port_or_known_default();
    // On this machine any of its own names will do.
    let is_own = is_loopback(&seen) && address.ip().is_loopback();
    if is_public || is_own { Ok(()) } else { Err(given.to_owned()) }
}

/// Whether a form was one of ours. Browsers say so themselves; those that leave it out, as they do over plain
/// HTTP, name the origin. Where both are said, both must fit; of a page without a referrer the origin is `null`.
fn check_origin(headers: &HeaderMap, public: &Url) -> Result<(), String> {
    const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
    let seen = |name: HeaderName| {
        let values = headers.get_all(&name).iter();
        let values: Vec<_> =
            values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect();
        format!("{name}: {}", values.join(" and "))
    };
    let ours = public.origin().ascii_serialization();
    let origin = only(headers, &ORIGIN);
    let is_named = origin == Some(ours.as_str());
    match (headers.contains_key(SITE), headers.contains_key(ORIGIN)) {
        (false, false) => Err("neither Sec-Fetch-Site nor Origin".to_owned()),
        (true, _) if only(headers, &SITE) != Some("same-origin") => Err(seen(SITE)),
        (true, true) if !is_named && origin != Some("null") => Err(seen(ORIGIN)),
        (false, true) if !is_named => Err(seen(ORIGIN)),
        _ => Ok(()),
    }
}

/// An address that is none of ours, to somebody who is let in.
pub(super) async fn not_found(uri: Uri) -> Response {
    Failure::NotFound.respond(Format::of(uri.path()))
}

/// Whether a probe finds the process alive.
pub(super) async fn livez() -> Response {
    (StatusCode::OK, "alive\n").into_response()
}

/// Whether pages can be answered.
pub(super) async fn readyz(State(console): State<Arc<Console>>) -> Response {
    match answers(&console.pages).await {
        true => (StatusCode::OK, "ready\n").into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n").into_response(),
    }
}
