//! The admin interface, under `/_admin`: what tests set, break and look at. It is not
//! authenticated, and knows nothing of how requests are answered.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use bytes::Bytes;
use clap::ValueEnum as _;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Sandbox, State as Everything, UpdateAnswer,
    customer::{self, Customer, Status},
    oracle::Counts,
    rule::Rule,
};
use dollarpe::canonical_json::Profile;

type Refusal = (StatusCode, Json<Value>);

pub(super) fn routes() -> Router<Arc<Sandbox>> {
    let admin = Router::new()
        .route("/customers/{id}", get(show_customer).put(change_customer))
        .route("/rules", post(post_rule).get(list_rules).delete(remove_rules))
        .route("/rules/{id}", delete(remove_rule))
        .route("/settings", post(change_settings))
        .route("/oracle/patches", get(patches))
        .route("/oracle/updates", get(updates))
        .route("/oracle/reads", get(reads))
        .route("/oracle/customers", get(customers))
        .route("/oracle/summary", get(summary))
        .route("/reset", post(reset));
    Router::new().nest("/_admin", admin)
}

fn refuse(reason: impl Into<String>) -> Refusal {
    (StatusCode::BAD_REQUEST, Json(json!({ "error": reason.into() })))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| refuse(error.to_string()))
}

/// A customer as it is set, which is more than the provider tells: `failure_reason` is the one
/// it has whenever it is FAILED.
#[derive(Serialize)]
struct CustomerView<'a> {
    customer_id: Uuid,
    #[serde(flatten)]
    customer: &'a Customer,
    in_flight: u32,
    in_flight_max: u32,
}

fn view(state: &mut Everything, customer_id: Uuid) -> Response {
    let open = state.open.get(&customer_id).copied().unwrap_or_default();
    let customer = state.customers.record(customer_id, Instant::now());
    Json(CustomerView { customer_id, customer, in_flight: open.now, in_flight_max: open.max }).into_response()
}

async fn show_customer(State(sandbox): State<Arc<Sandbox>>, Path(id): Path<Uuid>) -> Response {
    view(&mut sandbox.state.lock(), id)
}

async fn change_customer(
    State(sandbox): State<Arc<Sandbox>>,
    Path(id): Path<Uuid>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let change: customer::Change = parse(&body)?;
    if id.is_nil() {
        return Err(refuse("the nil customer never exists"));
    }
    let mut state = sandbox.state.lock();
    let state = &mut *state;
    state.customers.record(id, Instant::now()).change(change, &state.settings, Instant::now());
    Ok(view(state, id))
}

async fn post_rule(State(sandbox): State<Arc<Sandbox>>, body: Bytes) -> Result<impl IntoResponse, Refusal> {
    let rule = Rule::parse(&body).map_err(refuse)?;
    let id = sandbox.state.lock().rules.post(rule);
    Ok((StatusCode::CREATED, Json(json!({ "id": id }))))
}

async fn list_rules(State(sandbox): State<Arc<Sandbox>>) -> Response {
    let state = sandbox.state.lock();
    Json(state.rules.iter().collect::<Vec<_>>()).into_response()
}

async fn remove_rules(State(sandbox): State<Arc<Sandbox>>) -> StatusCode {
    sandbox.state.lock().rules.clear();
    StatusCode::NO_CONTENT
}

async fn remove_rule(State(sandbox): State<Arc<Sandbox>>, Path(id): Path<u64>) -> StatusCode {
    match sandbox.state.lock().rules.remove(id) {
        true => StatusCode::NO_CONTENT,
        false => StatusCode::NOT_FOUND,
    }
}

/// What may be changed while the sandbox runs; what is absent stays.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SettingsChange {
    api_key: Option<String>,
    api_secret: Option<String>,
    signing_profile: Option<String>,
    timestamp_window_ms: Option<u64>,
    clock_ahead_s: Option<i64>,
    update_limit: Option<u32>,
    verification_time_ms: Option<u64>,
    latency_ms: Option<u64>,
    update_answers: Option<UpdateAnswer>,
    unique_documents: Option<bool>,
    close_connections: Option<bool>,
}

async fn change_settings(State(sandbox): State<Arc<Sandbox>>, body: Bytes) -> Result<StatusCode, Refusal> {
    fn set<T>(setting: &mut T, value: Option<T>) {
        if let Some(value) = value {
            *setting = value;
        }
    }
    let duration = |ms: Option<u64>| ms.map(|ms| Duration::from_millis(ms).into());

    let change: SettingsChange = parse(&body)?;
    let profile = change.signing_profile.map(|name| Profile::from_str(&name, false));
    let profile = profile.transpose().map_err(|error| refuse(format!("signing_profile: {error}")))?;
    let settings = &mut sandbox.state.lock().settings;
    set(&mut settings.api_key, change.api_key);
    set(&mut settings.api_secret, change.api_secret);
    set(&mut settings.signing_profile, profile);
    set(&mut settings.timestamp_window, duration(change.timestamp_window_ms));
    set(&mut settings.clock_ahead_s, change.clock_ahead_s);
    set(&mut settings.update_limit, change.update_limit);
    set(&mut settings.verification_time, duration(change.verification_time_ms));
    set(&mut settings.latency, duration(change.latency_ms));
    set(&mut settings.update_answers, change.update_answers);
    set(&mut settings.unique_documents, change.unique_documents);
    set(&mut settings.close_connections, change.close_connections);
    Ok(StatusCode::NO_CONTENT)
}

/// Records as lines, in the order of their keys.
fn ndjson<K, T: Serialize>(records: &BTreeMap<K, T>) -> Response {
    let line = |record| serde_json::to_string(record).map(|line| line + "\n");
    match records.values().map(line).collect::<Result<String, _>>() {
        Ok(lines) => ([(CONTENT_TYPE, "application/x-ndjson")], lines).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn patches(State(sandbox): State<Arc<Sandbox>>) -> Response {
    ndjson(&sandbox.state.lock().oracle.patches)
}

async fn updates(State(sandbox): State<Arc<Sandbox>>) -> Response {
    ndjson(&sandbox.state.lock().oracle.updates)
}

async fn reads(State(sandbox): State<Arc<Sandbox>>) -> Response {
    ndjson(&sandbox.state.lock().oracle.reads)
}

/// A customer as the provider tells of it.
#[derive(Serialize)]
struct CustomerRecord<'a> {
    customer_id: Uuid,
    status: Status,
    failure_reason: Option<&'a str>,
}

async fn customers(State(sandbox): State<Arc<Sandbox>>) -> Response {
    let mut state = sandbox.state.lock();
    let records: BTreeMap<Uuid, CustomerRecord<'_>> = state
        .customers
        .records(Instant::now())
        .map(|(customer_id, customer)| {
            let (status, failure_reason) = (customer.status, customer.failure_reason());
            (customer_id, CustomerRecord { customer_id, status, failure_reason })
        })
        .collect();
    ndjson(&records)
}

#[derive(Serialize)]
struct Summary<'a> {
    #[serde(flatten)]
    counts: &'a Counts,
    customers: usize,
    /// The most updates that any customer has had.
    updates_max: u32,
    /// The most update requests of one customer that were ever open at once.
    in_flight_max: u32,
    links_applied_twice: Option<usize>,
}

async fn summary(State(sandbox): State<Arc<Sandbox>>) -> Response {
    let state = sandbox.state.lock();
    Json(Summary {
        counts: &state.oracle.counts,
        customers: state.customers.len(),
        updates_max: state.customers.updates_max(),
        in_flight_max: state.open_patches_max(),
        links_applied_twice: state.oracle.links_applied_twice(),
    })
    .into_response()
}

async fn reset(State(sandbox): State<Arc<Sandbox>>) -> StatusCode {
    sandbox.state.lock().reset();
    StatusCode::NO_CONTENT
}
