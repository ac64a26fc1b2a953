//! The DollarPe KYC API over HTTP: its three calls, each signed afresh and bounded in
//! every direction. Knows nothing of queues or tables.

mod gate;
mod inspect;
mod lock_step;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use bytes::Bytes;
use hyper_util::client::legacy::connect::HttpInfo;
use parking_lot::{Mutex, RwLock};
use reqwest::header::{
    ACCEPT_ENCODING, AGE, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, DATE, HeaderMap, HeaderName,
    HeaderValue, PRAGMA, RETRY_AFTER,
};
use reqwest::{Certificate, Client, Proxy, Response, Url, redirect, retry};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};
use uuid::Uuid;

use self::gate::{Gate, GatedBody};
use self::lock_step::LockStep;
use crate::clock::Moment;
use crate::config::Secret;
use crate::domain::clock_skew::{ClockSkew, ToldSkews};
use crate::domain::job::UpdateRequest;
use crate::domain::read_back::{Asked, Reading, read_customer};
use crate::domain::verdict::{
    Answer, Body, FailurePoint, HttpOutcome, NotSent, Verdict, classify, names_customer,
};
use crate::metrics::{Call, METRICS};
use dollarpe::canonical_json::{Json, Profile};
use dollarpe::signature::Signer;

/// No answer of the provider is longer; what follows is not read.
const ANSWER_SIZE_MAX: usize = 64 * 1024;

/// What the kernel took is not sent for longer, without a word from the provider.
const TCP_USER_TIMEOUT_MAX: Duration = Duration::from_secs(10);
/// How long a connection may be idle and be used again. A server that closes it just as we write
/// makes an attempt's outcome unknown. The shortest keep-alive in common use is gunicorn's, 2 s,
/// counted from before its answer reaches us to after our request reaches it: half of that leaves
/// a second for the way. A new connection costs a handshake, and only where there is little to do.
const IDLE_MAX: Duration = Duration::from_secs(1);

/// So many answers to updates without a date, and none with one, show that the provider dates nothing.
const UNDATED_MIN: u32 = 3;

/// Asks an Envoy on the way, alone or in a service mesh, not to send an update again by itself.
const ENVOY_RETRIES: HeaderName = HeaderName::from_static("x-envoy-max-retries");

/// The canonical form of a request without a body.
const EMPTY_BODY: &str = "{}";

/// How the provider is reached.
#[derive(Clone, Debug)]
pub struct ProviderSettings {
    /// For example `https://sandbox.dollarpe.xyz/cms/api/v1`.
    pub base_url: Url,
    /// Certificate authorities to trust beside the platform's, in PEM.
    pub authorities: Option<Vec<u8>>,
    /// A proxy on the way there, its credentials in its URL.
    pub proxy: Option<Secret>,
    /// The canonical form that is signed and sent.
    pub profile: Profile,
    /// From an update's start to the last byte of its answer.
    pub request_timeout: Duration,
    /// From a read's start to the last byte of its answer.
    pub read_timeout: Duration,
    /// From before the claim to the first byte of the request's body.
    pub send_window: Duration,
    /// How many connections are kept.
    pub connections: usize,
}

/// An update, signed. The body is the very text that was signed.
pub struct SignedUpdate {
    body: Bytes,
    headers: SignedHeaders,
}

struct SignedHeaders {
    api_key: HeaderValue,
    timestamp: HeaderValue,
    signature: HeaderValue,
}

/// A client of the provider.
pub struct Provider {
    pool: RwLock<Pool>,
    /// For reads that prove something: each has a connection of its own, where no answer to an
    /// earlier request can be left over.
    fresh_client: Client,
    steps: LockStep,
    settings: ProviderSettings,
    update_url: Url,
    credentials: RwLock<Arc<Credentials>>,
    /// By its answers to updates: no cache gives those.
    skews: Mutex<ToldSkews>,
    /// How many of those had no date.
    undated: AtomicU32,
}

/// The connections for updates. Replaced, all of them, when one was out of step.
#[derive(Clone)]
struct Pool {
    client: Client,
    generation: u64,
}

struct Credentials {
    api_key: HeaderValue,
    signer: Signer,
}

/// A body that only the right profile prints as the provider does: nested keys out of
/// order, and letters beyond ASCII. Its customer does not exist.
const UPDATE_PROBE: &str = r#"{
    "customer_id": "00000000-0000-0000-0000-000000000000",
    "full_address": "Probe, 1 Rue de l'\u00c9lys\u00e9e",
    "document_type": "PASSPORT",
    "document_front_image_url": "https://probe.invalid/front.jpg",
    "document_back_image_url": "https://probe.invalid/back.jpg",
    "document_details": {
        "document_number": "PROBE0000",
        "additional_data": { "z": { "b": 1, "a": "\u092e\u0941\u0902\u092c\u0908" }, "a": [] }
    }
}"#;

impl Provider {
    /// Builds the client. Nothing is sent yet.
    ///
    /// # Errors
    /// When the platform's certificates cannot be loaded, or the API key cannot be a header.
    pub fn new(settings: ProviderSettings, signer: Signer) -> anyhow::Result<Self> {
        let client = build_client(&settings, settings.connections)?;
        let pool = RwLock::new(Pool { client, generation: 0 });
        let fresh_client = build_client(&settings, 0)?;
        let steps = LockStep::new(IDLE_MAX, settings.request_timeout);
        let update_url = endpoint(&settings.base_url, &["kyc", "update-document-info"]);
        let credentials = RwLock::new(Arc::new(Credentials::new(signer)?));
        let skews = Mutex::default();
        let undated = AtomicU32::new(0);
        Ok(Self { pool, fresh_client, steps, settings, update_url, credentials, skews, undated })
    }

    /// Signs with other credentials from now on. Returns whether they are other ones.
    ///
    /// # Errors
    /// When the API key cannot be a header.
    pub fn set_credentials(&self, signer: Signer) -> anyhow::Result<bool> {
        let credentials = Arc::new(Credentials::new(signer)?);
        let mut current = self.credentials.write();
        // Two signers are the same if they sign the same.
        let is_other = current.api_key != credentials.api_key
            || current.signer.sign(0, EMPTY_BODY) != credentials.signer.sign(0, EMPTY_BODY);
        *current = credentials;
        Ok(is_other)
    }

    /// The provider's clock less ours, in seconds, as its newest answer to an update tells it at the least.
    pub fn clock_skew(&self) -> Option<i64> {
        self.skews.lock().newest().map(|skew| skew.least)
    }

    /// The same, where that tells that ours is too far off to sign.
    pub fn intolerable_skew(&self) -> Option<i64> {
        intolerable(self.skews.lock().newest())
    }

    /// The same, by an update for nobody, asked for now.
    pub async fn confirm_skew(&self) -> Option<i64> {
        match self.update_nobody().await {
            HttpOutcome::Answered(answer) => intolerable(answer.skew),
            _ => None,
        }
    }

    /// Signs as we do now, and so verifies what the provider signs.
    pub fn signer(&self) -> Signer {
        self.credentials().signer.clone()
    }

    /// Signs an update with `t0`'s wall time. The provider refuses a stale timestamp, so
    /// every attempt is signed afresh.
    pub fn sign(&self, request: &UpdateRequest, t0: Moment) -> SignedUpdate {
        let canonical = request.to_canonical(self.settings.profile);
        let headers = self.sign_text(&canonical, t0);
        SignedUpdate { body: canonical, headers }
    }

    /// `PATCH /kyc/update-document-info`, once, for `customer_id`. The body leaves only while the
    /// send window, counted from `t0`, is open and `stopping` is not cancelled.
    pub async fn update(
        &self,
        customer_id: Uuid,
        update: SignedUpdate,
        t0: Moment,
        stopping: &CancellationToken,
    ) -> HttpOutcome {
        let (asked_at, deadline) = (SystemTime::now(), Instant::now() + self.settings.request_timeout);
        let gate = Arc::new(Gate::new(t0, self.settings.send_window, stopping.clone()));
        let body = GatedBody::new(update.body, Arc::clone(&gate));
        let Pool { client, generation } = self.pool.read().clone();
        let request = self.update_request(&client, update.headers).body(reqwest::Body::wrap(body));
        let lost = |phase| gate.shut().map_or(HttpOutcome::Lost(phase), HttpOutcome::NotSent);
        let sent = tokio::select! {
            biased;
            sent = timeout_at(deadline, request.send()) => sent,
            () = gate.stopped() => return HttpOutcome::NotSent(NotSent::Shutdown),
        };
        match sent {
            Ok(Ok(response)) => {
                // Answered before it was asked: whatever that answers, it is not this update.
                let Some(took) = gate.passed_at().map(|at| at.elapsed()) else {
                    return lost(FailurePoint::OutOfStep);
                };
                let is_out_of_step = local_port(&response)
                    .is_some_and(|port| self.steps.is_broken_by(port, took, Instant::now()));
                if is_out_of_step {
                    self.connect_anew(generation, took);
                }
                let mut answer = self.read_answer(response, asked_at, deadline).await;
                if !is_out_of_step {
                    self.learn_skew(&answer);
                }
                let may_learn = is_out_of_step || self.steps.is_learning();
                if may_learn && names_customer(&answer.body, customer_id) {
                    self.steps.learn(took);
                }
                answer.is_out_of_step = is_out_of_step;
                HttpOutcome::Answered(answer)
            }
            Ok(Err(error)) if !error.is_timeout() => match lost(FailurePoint::ConnectionLost) {
                HttpOutcome::NotSent(NotSent::Connect) if is_refused_by_proxy(&error) => refused_by_proxy(),
                outcome => outcome,
            },
            Ok(Err(_)) | Err(_) => lost(FailurePoint::TimedOut),
        }
    }

    /// After an answer that was out of step, no connection of its generation is used again: what
    /// comes next over that one is not the next request's answer either.
    #[cold]
    fn connect_anew(&self, generation: u64, took: Duration) {
        let mut pool = self.pool.write();
        if pool.generation != generation {
            return;
        }
        warn!(
            ?took,
            "an answer came sooner than the provider ever gave one; it may be an earlier request's, so all connections are replaced"
        );
        match build_client(&self.settings, self.settings.connections) {
            Ok(client) => *pool = Pool { client, generation: generation + 1 },
            Err(error) => error!(error = format!("{error:#}"), "the connections cannot be replaced"),
        }
    }

    /// `GET /customer/{id}`. The provider asks for at most one a minute for a customer.
    ///
    /// What is read is what the provider says now: on a connection of its own, past caches, and
    /// not where the answer's date is older or was taken away. Where no update has told yet whether the
    /// provider dates its answers, and by which clock, or a page alone has told one by which it is older, an update for nobody is asked in what is left of
    /// the read's time; until that is told a read proves nothing.
    pub async fn customer(&self, customer_id: Uuid) -> Reading {
        let at = SystemTime::now();
        let url = endpoint(&self.settings.base_url, &["customer", &customer_id.to_string()]);
        let asked_at = Instant::now();
        let outcome = self.get(url).await;
        METRICS.note_exchange(Call::Read, &outcome, asked_at.elapsed(), None);
        let read = |skew| read_customer(&outcome, &Asked { customer_id, at, skew }, SystemTime::now());
        let skew = self.skews.lock().to_be_fresh();
        let reading = read(skew);
        let may_prove = matches!(reading, Reading::Customer(_) | Reading::NotFound | Reading::Stale);
        let is_known = match skew {
            // By a page's clock, that of a gateway on the way.
            Some(_) => reading != Reading::Stale || self.skews.lock().is_providers(),
            None => self.dates_nothing(),
        };
        if is_known || !may_prove {
            return reading;
        }
        // It tells its date, if it is answered; else nothing is known as before.
        let told = timeout_at(asked_at + self.settings.read_timeout, self.update_nobody()).await;
        let skew = self.skews.lock().to_be_fresh();
        if skew.is_some() || self.dates_nothing() {
            return read(skew);
        }
        match told.map(|outcome| classify(&outcome, Uuid::nil(), &[], SystemTime::now())) {
            Ok(Verdict::Misconfigured(cause)) => Reading::Misconfigured(cause),
            _ => Reading::Stale,
        }
    }

    /// Whether the provider dates no answer to an update. A gateway on the way may have taken one date.
    fn dates_nothing(&self) -> bool {
        self.undated.load(Ordering::Relaxed) >= UNDATED_MIN
    }

    /// `GET /kyc/configuration/{id}`, for the document types that the customer may use. It is not waited
    /// for past `deadline`.
    pub async fn configuration(&self, customer_id: Uuid, deadline: Instant) -> HttpOutcome {
        let id = customer_id.to_string();
        let url = endpoint(&self.settings.base_url, &["kyc", "configuration", &id]);
        let asked_at = Instant::now();
        let answered = timeout_at(deadline, self.get(url)).await;
        let outcome = answered.unwrap_or(HttpOutcome::Lost(FailurePoint::TimedOut));
        METRICS.note_exchange(Call::Read, &outcome, asked_at.elapsed(), None);
        outcome
    }

    /// Whether the provider takes our updates: a PATCH for a customer who does not exist,
    /// which changes nothing.
    pub async fn probe_update(&self) -> bool {
        let outcome = self.update_nobody().await;
        matches!(classify(&outcome, Uuid::nil(), &[], SystemTime::now()), Verdict::Rejected(_))
    }

    async fn update_nobody(&self) -> HttpOutcome {
        let asked_at = Instant::now();
        let outcome = self.outcome(self.update_probe(self.settings.profile)).await;
        METRICS.note_exchange(Call::Probe, &outcome, asked_at.elapsed(), None);
        if let HttpOutcome::Answered(answer) = &outcome {
            self.learn_skew(answer);
        }
        outcome
    }

    /// The request that [`Provider::probe_update`] sends, in a profile's form.
    fn update_probe(&self, profile: Profile) -> reqwest::RequestBuilder {
        // Unwrap safety: the text is a constant, and a test parses it.
        #[expect(clippy::expect_used)]
        let body = Json::parse(UPDATE_PROBE.as_bytes()).expect("the probe is JSON");
        let canonical = body.to_canonical(profile);
        let headers = self.sign_text(&canonical, Moment::now());
        self.update_request(&self.fresh_client, headers).body(canonical)
    }

    async fn get(&self, url: Url) -> HttpOutcome {
        self.outcome(self.signed_get(url)).await
    }

    fn signed_get(&self, url: Url) -> reqwest::RequestBuilder {
        let headers = self.sign_text(EMPTY_BODY, Moment::now());
        signed(self.fresh_client.get(url), headers)
            .header(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store"))
            .header(PRAGMA, HeaderValue::from_static("no-cache"))
    }

    /// Sends a request that spends nothing.
    async fn outcome(&self, request: reqwest::RequestBuilder) -> HttpOutcome {
        match self.ask(request).await {
            Ok(answer) => HttpOutcome::Answered(answer),
            Err(Some(error)) if is_refused_by_proxy(&error) => refused_by_proxy(),
            Err(Some(error)) if error.is_connect() => HttpOutcome::NotSent(NotSent::Connect),
            Err(Some(error)) if !error.is_timeout() => HttpOutcome::Lost(FailurePoint::ConnectionLost),
            Err(_) => HttpOutcome::Lost(FailurePoint::TimedOut),
        }
    }

    /// The same; with the client's error, or none where time ran out.
    async fn ask(&self, request: reqwest::RequestBuilder) -> Result<Answer, Option<reqwest::Error>> {
        let (asked_at, deadline) = (SystemTime::now(), Instant::now() + self.settings.read_timeout);
        match timeout_at(deadline, request.send()).await {
            Ok(Ok(response)) => Ok(self.read_answer(response, asked_at, deadline).await),
            Ok(Err(error)) => Err(Some(error)),
            Err(_elapsed) => Err(None),
        }
    }

    fn sign_text(&self, canonical: impl AsRef<[u8]>, t0: Moment) -> SignedHeaders {
        let timestamp = t0.unix_seconds();
        let credentials = self.credentials();
        let signature = credentials.signer.sign(timestamp, canonical);
        // Base64 is always a valid header; were it not, the provider would refuse the empty one.
        let mut signature =
            HeaderValue::from_str(&signature).unwrap_or_else(|_| HeaderValue::from_static(""));
        signature.set_sensitive(true);
        SignedHeaders {
            api_key: credentials.api_key.clone(),
            timestamp: HeaderValue::from(timestamp),
            signature,
        }
    }

    fn credentials(&self) -> Arc<Credentials> {
        Arc::clone(&self.credentials.read())
    }

    fn update_request(&self, client: &Client, headers: SignedHeaders) -> reqwest::RequestBuilder {
        signed(client.patch(self.update_url.clone()), headers)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header(ENVOY_RETRIES, HeaderValue::from_static("0"))
    }
}

/// What the client's error begins with where a proxy opened no tunnel. It has no type that we may name.
const TUNNEL: &str = "tunnel error: ";

/// What follows where the proxy answered 407.
const CREDENTIALS_WANTED: &str = "proxy authorization required";

/// Why a proxy opened no tunnel, if that is what went wrong.
fn tunnel_fault(error: &reqwest::Error) -> Option<String> {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(fault) = error.to_string().strip_prefix(TUNNEL) {
            return Some(fault.to_owned());
        }
        cause = error.source();
    }
    None
}

fn is_refused_by_proxy(error: &reqwest::Error) -> bool {
    tunnel_fault(error).is_some_and(|fault| fault == CREDENTIALS_WANTED)
}

/// What a proxy answers to whom it does not know. Nothing has been sent.
fn refused_by_proxy() -> HttpOutcome {
    HttpOutcome::Answered(Answer { status: 407, ..Answer::default() })
}

fn signed(request: reqwest::RequestBuilder, headers: SignedHeaders) -> reqwest::RequestBuilder {
    request
        .header("x-api-key", headers.api_key)
        .header("x-timestamp", headers.timestamp)
        .header("x-signature", headers.signature)
}

/// A client that keeps up to `idle_max` connections for another request.
fn build_client(settings: &ProviderSettings, idle_max: usize) -> anyhow::Result<Client> {
    let authorities = match &settings.authorities {
        Some(pem) => Certificate::from_pem_bundle(pem).context("DOLLARPE_CA_FILE: holds no certificate")?,
        None => Vec::new(),
    };
    // What is encoded in a way that nobody asked for cannot be read.
    let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]);
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    let builder = Client::builder();
    // The environment's proxies are meant for others: what leads to the provider is a setting of ours.
    let builder = match &settings.proxy {
        Some(proxy) => {
            builder.proxy(Proxy::all(proxy.expose()).context("DOLLARPE_PROXY: is no proxy's URL")?)
        }
        None => builder.no_proxy(),
    };
    builder
        .user_agent(concat!("kyc-worker/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .http1_only()
        .https_only(settings.base_url.scheme() == "https")
        .tls_certs_merge(authorities)
        // A redirect would take the signature and the body along.
        .redirect(redirect::Policy::none())
        .retry(retry::never())
        .referer(false)
        .connect_timeout(settings.send_window)
        .pool_idle_timeout(IDLE_MAX)
        .pool_max_idle_per_host(idle_max)
        .tcp_nodelay(true)
        // So that the kernel delivers nothing once this process was killed and its lease is over.
        .tcp_user_timeout(settings.request_timeout.min(TCP_USER_TIMEOUT_MAX))
        .build()
        .context("cannot set up the HTTP client; are the platform's CA certificates installed?")
}

/// Which connection an answer came over.
fn local_port(response: &Response) -> Option<u16> {
    response.extensions().get::<HttpInfo>().map(|info| info.local_addr().port())
}

impl Provider {
    /// Reads the body of an answer, which has just come, to the cap and the deadline.
    async fn read_answer(&self, mut response: Response, asked_at: SystemTime, deadline: Instant) -> Answer {
        let answered_at = SystemTime::now();
        let status = response.status().as_u16();
        let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let retry_after = text(RETRY_AFTER).map(str::to_owned);
        // Each cache on the way may have written one.
        let ages = response.headers().get_all(AGE).into_iter();
        let age_of = |age: &HeaderValue| age.to_str().ok()?.trim().parse().ok();
        let age_s = ages.map(|age| age_of(age).unwrap_or(u64::MAX)).max();
        // And a gateway may have added its own date to that of an answer that it keeps: the oldest counts.
        let dates = response.headers().get_all(DATE).into_iter();
        let date_of = |date: &HeaderValue| httpdate::parse_http_date(date.to_str().ok()?).ok();
        let dates: Option<Vec<SystemTime>> = dates.map(date_of).collect();
        let date = dates.and_then(|dates| dates.into_iter().min());
        let skew = date.map(|date| ClockSkew::told_by(date, asked_at, answered_at));
        let is_encoded = text(CONTENT_ENCODING).is_some_and(|name| !name.eq_ignore_ascii_case("identity"));
        let whole = async {
            let mut bytes = Vec::new();
            while let Some(chunk) = response.chunk().await.ok()? {
                if bytes.len() + chunk.len() > ANSWER_SIZE_MAX {
                    return None;
                }
                bytes.extend_from_slice(&chunk);
            }
            Some(bytes)
        };
        let body = match timeout_at(deadline, whole).await {
            Ok(Some(bytes)) if !is_encoded => Body::Whole(bytes),
            Ok(_) | Err(_) => Body::Unreadable,
        };
        Answer { status, retry_after, age_s, date, skew, is_out_of_step: false, body }
    }

    /// In the provider's own words it tells more than a page of somebody else's, which may have another
    /// clock.
    fn learn_skew(&self, answer: &Answer) {
        let is_verdict = |body: Value| body["status"].is_boolean() || body["success"].is_boolean();
        let is_providers = answer.body.json().is_some_and(is_verdict);
        match answer.skew {
            Some(skew) => self.skews.lock().note(skew, is_providers),
            None if is_providers => _ = self.undated.fetch_add(1, Ordering::Relaxed),
            None => {}
        }
    }
}

impl Credentials {
    fn new(signer: Signer) -> anyhow::Result<Self> {
        let mut api_key = HeaderValue::from_str(signer.api_key())
            .context("DOLLARPE_API_KEY: has characters that a header cannot carry")?;
        api_key.set_sensitive(true);
        Ok(Self { api_key, signer })
    }
}

fn intolerable(skew: Option<ClockSkew>) -> Option<i64> {
    skew.filter(|skew| skew.is_intolerable()).map(|skew| skew.least)
}

/// `base` with `segments` after its path, whether or not it ends in a slash.
fn endpoint(base: &Url, segments: &[&str]) -> Url {
    let mut url = base.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_is_json_that_only_the_right_profile_prints() {
        let body = Json::parse(UPDATE_PROBE.as_bytes()).expect("JSON");
        let texts = [Profile::Compact, Profile::CompactUtf8, Profile::Spaced]
            .map(|profile| body.to_canonical(profile));
        assert!(texts[0] != texts[1] && texts[1] != texts[2] && texts[2] != texts[0]);
    }

    #[test]
    fn endpoints_extend_the_base_url_with_or_without_its_slash() {
        for base in ["https://h/cms/api/v1", "https://h/cms/api/v1/"] {
            let base = Url::parse(base).expect("a URL");
            assert_eq!(endpoint(&base, &["customer", "x"]).as_str(), "https://h/cms/api/v1/customer/x");
        }
    }
}
