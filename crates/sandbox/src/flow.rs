//! The way of one request: received, recorded, delayed, applied, answered, and broken where a
//! rule says so. The only place that knows both the provider's rules and the connection.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::to_bytes,
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, Method, StatusCode, request::Parts},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{
    Sandbox,
    answer::render,
    oracle::{self, Fate},
    provider::{self, Call, Credentials, Endpoint, Reply, Update},
    rule::{Answer, Apply, Fault, Sighting},
    wire::{Ending, Shears},
};
use dollarpe::canonical_json::Json;

/// Far above anything the worker may send, so that a test of its limits meets none here.
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Answers one request, unless the sandbox stops first: then the connection ends.
pub(super) async fn answer(
    State(sandbox): State<Arc<Sandbox>>,
    ConnectInfo(shears): ConnectInfo<Shears>,
    request: Request,
) -> Response {
    tokio::select! {
        response = exchange(&sandbox, &shears, request) => response,
        () = sandbox.stop.cancelled() => {
            shears.cut_after(0, Ending::Close);
            Reply::internal_error().into_response()
        }
    }
}

/// 1. Reads the request to its end; a head whose body never comes is counted and forgotten.
/// 2. Authenticates, validates, picks the rule and records, all at one instant.
/// 3. Waits, applies, waits: in a task of its own, because this future is dropped when the
///    client goes, and what a client has asked for happens whether or not it stays.
/// 4. Records the answer and gives it, or breaks the connection.
async fn exchange(sandbox: &Arc<Sandbox>, shears: &Shears, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let arriving = Arriving::watch(sandbox, &head);
    let Ok(body) = to_bytes(body, BODY_BYTES_MAX).await else {
        return Reply::body_too_large().into_response();
    };
    arriving.complete();

    let visit = Arc::new(sandbox.state.lock().receive(&head, &body));
    let _open = Open::count(sandbox, &visit);

    let carried_out = tokio::spawn(carry_out(Arc::clone(sandbox), Arc::clone(&visit)));
    let reply = carried_out.await.unwrap_or_else(|_| Reply::internal_error());

    let response = render(sandbox, shears, reply, &visit.fault.answer);
    let status = response.as_ref().map(|response| response.status().as_u16());
    if let (Some(seq), Some(status)) = (visit.patch_seq.or(visit.read_seq), status) {
        sandbox.state.lock().oracle.answered(seq, status);
    }
    if sandbox.logs_requests {
        let (method, path) = (head.method.as_str(), head.uri.path());
        tracing::info!(method, path, visit.patch_seq, visit.rule, status, "request carried out");
    }
    match response {
        Some(response) => response,
        None if matches!(visit.fault.answer, Answer::Hang {}) => std::future::pending().await,
        // What is rendered here is never sent: the connection is cut before its first byte.
        None => StatusCode::OK.into_response(),
    }
}

/// A request as received, with all that is decided about it at that instant.
struct Visit {
    call: Result<Call, Reply>,
    /// Its number in the oracle, where it is an update.
    patch_seq: Option<u64>,
    /// Its number in the oracle, where it is a read of a customer.
    read_seq: Option<u64>,
    /// The customer of an update request, valid or not.
    patched: Option<Uuid>,
    rule: Option<u64>,
    fault: Fault,
    latency: Duration,
}

async fn carry_out(sandbox: Arc<Sandbox>, visit: Arc<Visit>) -> Reply {
    pause(visit.latency + visit.fault.delay_before()).await;
    let reply = sandbox.state.lock().perform(&visit);
    if let (Ok(Call::Update(update)), Apply::AfterMs(ms)) = (&visit.call, visit.fault.apply) {
        let (sandbox, update, seq) = (Arc::clone(&sandbox), update.clone(), visit.patch_seq);
        tokio::spawn(async move {
            pause(Duration::from_millis(ms)).await;
            // Its answer was given long ago; what became of it, the oracle now knows.
            let _ = sandbox.state.lock().apply(&update, seq, Timing::Late);
        });
    }
    pause(visit.fault.delay_after()).await;
    reply
}

pub(super) async fn pause(duration: Duration) {
    // Even a sleep of nothing takes a turn through the timer.
    if !duration.is_zero() {
        tokio::time::sleep(duration).await;
    }
}

#[derive(Clone, Copy)]
enum Timing {
    Now,
    Late,
}

impl super::State {
    fn receive(&mut self, head: &Parts, body: &Bytes) -> Visit {
        let now = Instant::now();
        let path = head.uri.path();
        // A request without a body is signed as if it were an empty object.
        let json = match head.method {
            Method::GET => Ok(Json::Object(BTreeMap::new())),
            _ => Json::parse(body),
        };
        let credentials = credentials(&head.headers);
        let authenticated =
            provider::authenticate(credentials, json.as_ref(), &self.settings, self.unix_seconds());
        let is_authenticated = authenticated.is_ok();
        let endpoint = Endpoint::parse(&head.method, path);
        let call = match &endpoint {
            Ok(endpoint) => authenticated.and_then(|body| Call::parse(*endpoint, body)),
            Err(refusal) => Err(refusal.clone()),
        };

        let field = |name| provider::text_field(json.as_ref().ok()?, name);
        let customer_text = match endpoint {
            Ok(Endpoint::Customer(id) | Endpoint::Configuration(id)) => Some(id),
            _ => field("customer_id"),
        };
        let link = field("document_front_image_url");
        let customer_id = customer_text.and_then(|id| Uuid::parse_str(id).ok());
        let sighting = Sighting {
            method: &head.method,
            path,
            customer_id,
            link,
            is_grantable: match &call {
                Ok(Call::Update(update)) => self.customers.check(update, &self.settings, now).is_ok(),
                call => call.is_ok(),
            },
        };
        let (rule, fault) = self.rules.decide(sighting).unzip();

        let record_patch = |seq| oracle::Patch {
            seq,
            at: oracle::timestamp(),
            customer_id: customer_text.map(str::to_owned),
            link: link.map(str::to_owned),
            document_type: field("document_type").map(str::to_owned),
            body_sha256: format!("{:x}", Bytes::copy_from_slice(&Sha256::digest(body))),
            headers: head.headers.keys().map(ToString::to_string).collect(),
            timestamp: credentials.timestamp,
            authenticated: is_authenticated,
            outcome: "pending".to_owned(),
            status: None,
            rule,
        };
        let record_read = |seq| oracle::Read {
            seq,
            at: oracle::timestamp(),
            customer_id: customer_text.map(str::to_owned),
            status: None,
            customer_status: None,
            rule,
        };
        let oracle = &mut self.oracle;
        let patch_seq = matches!(endpoint, Ok(Endpoint::Update))
            .then(|| oracle.patch_received(is_authenticated, record_patch));
        let read_seq =
            matches!(endpoint, Ok(Endpoint::Customer(_))).then(|| oracle.read_received(record_read));
        Visit {
            call,
            patch_seq,
            read_seq,
            patched: customer_id.filter(|_| patch_seq.is_some()),
            rule,
            fault: fault.unwrap_or_default(),
            latency: *self.settings.latency,
        }
    }

    /// Does what is asked for, and says what the provider itself would answer.
    fn perform(&mut self, visit: &Visit) -> Reply {
        let now = Instant::now();
        let performed = match &visit.call {
            Ok(Call::Update(update)) => self.update(update, visit),
            Ok(Call::ReadCustomer(id)) => match self.cached(*id, &visit.fault.answer) {
                Some(cached) => Ok(cached),
                None => self.read(*id, visit, now),
            },
            Ok(Call::ReadConfiguration(id)) => {
                self.customers.get(*id, now).map(|_| provider::configuration())
            }
            Ok(Call::MockStatus { customer_id, word }) => {
                self.customers.get(*customer_id, now).and_then(|customer| {
                    customer.mock_status(word, &self.settings, now)?;
                    Ok(provider::customer_found(*customer_id, customer))
                })
            }
            Err(refusal) => {
                self.oracle.patch_decided(visit.patch_seq, Fate::Refused(refusal.reason()));
                Err(refusal.clone())
            }
        };
        performed.unwrap_or_else(|refusal| refusal)
    }

    fn read(&mut self, id: Uuid, visit: &Visit, now: Instant) -> Result<Reply, Reply> {
        let made_at = self.unix_seconds();
        let customer = self.customers.get(id, now)?;
        self.oracle.read_done(visit.read_seq, customer.status);
        let reply = provider::customer_found(id, customer);
        if let Answer::Cached { older_by_s, .. } = visit.fault.answer {
            self.cache.insert(id, Reply { made_at: Some(made_at - older_by_s), ..reply.clone() });
        }
        Ok(reply)
    }

    /// What a cache before the provider has of a customer, where a rule puts one there.
    fn cached(&self, id: Uuid, answer: &Answer) -> Option<Reply> {
        let Answer::Cached { for_ms, .. } = answer else { return None };
        let cached = self.cache.get(&id)?;
        let age = self.unix_seconds().abs_diff(cached.made_at?);
        (age * 1000 < *for_ms).then(|| cached.clone())
    }

    fn update(&mut self, update: &Update, visit: &Visit) -> Result<Reply, Reply> {
        if let Apply::Now = visit.fault.apply {
            return self.apply(update, visit.patch_seq, Timing::Now);
        }
        let checked = self.customers.check(update, &self.settings, Instant::now());
        if let Apply::Never = visit.fault.apply {
            let fate = match &checked {
                Ok(()) => Fate::NotApplied { rule: visit.rule.unwrap_or_default() },
                Err(refusal) => Fate::Refused(refusal.reason()),
            };
            self.oracle.patch_decided(visit.patch_seq, fate);
        }
        checked.map(|()| provider::update_accepted(update, &self.settings))
    }

    fn apply(&mut self, update: &Update, patch_seq: Option<u64>, timing: Timing) -> Result<Reply, Reply> {
        if !self.oracle.remembers(patch_seq) {
            return Err(Reply::internal_error());
        }
        let applied = self.customers.apply(update, &self.settings, Instant::now());
        if let Ok(nth) = applied {
            self.oracle.update_applied(patch_seq, update, nth);
        }
        let fate = match (&applied, timing) {
            (Ok(_), Timing::Now) => Fate::Applied,
            (Ok(_), Timing::Late) => Fate::AppliedLate,
            (Err(refusal), Timing::Now) => Fate::Refused(refusal.reason()),
            (Err(refusal), Timing::Late) => Fate::RefusedLate(refusal.reason()),
        };
        self.oracle.patch_decided(patch_seq, fate);
        applied.map(|_| provider::update_accepted(update, &self.settings))
    }
}

fn credentials(headers: &HeaderMap) -> Credentials<'_> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    Credentials {
        api_key: text("x-api-key"),
        timestamp: text("x-timestamp").and_then(|seconds| seconds.parse().ok()),
        signature: text("x-signature"),
    }
}

/// Counts an update request as incomplete, unless its body arrives. Dropped with the future
/// of its request when the connection ends.
struct Arriving<'a>(Option<&'a Sandbox>);

impl<'a> Arriving<'a> {
    fn watch(sandbox: &'a Sandbox, head: &Parts) -> Self {
        let endpoint = Endpoint::parse(&head.method, head.uri.path());
        Self(matches!(endpoint, Ok(Endpoint::Update)).then_some(sandbox))
    }

    fn complete(mut self) {
        self.0 = None;
    }
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        if let Some(sandbox) = self.0 {
            sandbox.state.lock().oracle.patch_incomplete();
        }
    }
}

/// An update request being open at the provider: from its last byte in until its answer is
/// out or its connection gone.
struct Open<'a> {
    sandbox: &'a Sandbox,
    customer_id: Option<Uuid>,
}

impl<'a> Open<'a> {
    fn count(sandbox: &'a Sandbox, visit: &Visit) -> Self {
        if let Some(customer_id) = visit.patched {
            let mut state = sandbox.state.lock();
            let open = state.open.entry(customer_id).or_default();
            open.now += 1;
            open.max = open.max.max(open.now);
        }
        Self { sandbox, customer_id: visit.patched }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if let Some(customer_id) = self.customer_id {
            self.sandbox.state.lock().open.entry(customer_id).and_modify(|open| open.now -= 1);
        }
    }
}
