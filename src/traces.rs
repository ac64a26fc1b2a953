//! What is done with jobs, as spans of OpenTelemetry, exported over OTLP/HTTP where a collector is set.
//!
//! Spans are made once the work is done, from what was noted on its way. So whether they are kept is
//! decided by what came of it: all that went wrong is, and a share of the rest. No span is ever open, and
//! where there is no collector nothing is noted. Nothing of a trace is sent to the provider.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags,
    TraceId, TraceState, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, SpanData,
    SpanExporter as Exporter,
};
use reqwest::redirect;
use tracing::{info, warn};
use url::Url;
use uuid::Uuid;

use crate::config::{BrokerSettings, Otlp};
use crate::domain::job::Job;
use crate::domain::trace_context::TraceContext;
use crate::domain::verdict::HttpOutcome;
use crate::finding::Finding;
use crate::metrics::METRICS;

/// Work that takes longer is kept.
const SLOW: Duration = Duration::from_secs(5);

/// How long the collector may take for a batch. What does not find a place in the queue meanwhile is lost.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// How many spans wait for the collector at most, and how many are exported at once.
const WAITING_MAX: usize = 2048;
const BATCH_MAX: usize = 512;

/// How often what waits is exported.
const EXPORT_INTERVAL: Duration = Duration::from_secs(5);

/// How long it may take for the last one.
const LAST_EXPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// The export of one process; or none.
pub struct Traces(Option<Exporting>);

struct Exporting {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    /// Of what went well, how much is kept.
    share: f64,
    destination: String,
    routing_key: String,
    server: String,
    port: i64,
}

/// What is done with a job.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Its message was delivered; the first attempt is part of that.
    Delivery,
    /// An attempt of a job that waited.
    Attempt,
    ReadBack,
    Verification,
}

/// The work on one job, as far as it is to be told.
#[must_use = "it is told by `Traces::end`"]
pub struct Work(Option<Box<Noted>>);

struct Noted {
    kind: Kind,
    /// The trace that the job was published in.
    trace: Option<TraceContext>,
    begun: SystemTime,
    attributes: Vec<KeyValue>,
    steps: Vec<Step>,
    went_wrong: bool,
}

/// A part of the work.
struct Step {
    name: &'static str,
    kind: SpanKind,
    begun: SystemTime,
    ended: SystemTime,
    attributes: Vec<KeyValue>,
    error: Option<Cow<'static, str>>,
}

impl Traces {
    /// Exports to `otlp`; nothing where there is none.
    ///
    /// # Errors
    /// When the client cannot be set up.
    pub fn start(
        otlp: Option<&Otlp>,
        worker: &str,
        broker: &BrokerSettings,
        base_url: &Url,
    ) -> anyhow::Result<Self> {
        let Some(otlp) = otlp else { return Ok(Self(None)) };
        // Made on a thread of its own, as it blocks.
        let client = thread::spawn(|| {
            let client = reqwest::blocking::Client::builder().timeout(EXPORT_TIMEOUT);
            // A redirect or a proxy would get the headers, which may hold a secret.
            client.redirect(redirect::Policy::none()).no_proxy().build()
        });
        let client =
            client.join().ok().context("OTEL_EXPORTER_OTLP_ENDPOINT: cannot set up its client")??;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_endpoint(otlp.traces_url.as_str())
            .with_headers(otlp.headers.clone())
            .with_timeout(EXPORT_TIMEOUT)
            .with_http_client(client)
            .build()
            .context("OTEL_EXPORTER_OTLP_ENDPOINT: cannot set up the export of traces")?;
        let own = [
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", worker.to_owned()),
        ];
        let given = otlp.resource.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
        let resource = Resource::builder_empty()
            .with_attributes(own)
            .with_attributes(given)
            .with_service_name(otlp.service.clone())
            .build();
        // Ours, whatever the environment says: the library takes any number for a size.
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(WAITING_MAX)
            .with_max_export_batch_size(BATCH_MAX)
            .with_scheduled_delay(EXPORT_INTERVAL)
            .build();
        // What is made is kept: that was decided before.
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(resource)
            .with_span_processor(
                BatchSpanProcessor::builder(Told { exporter, is_failing: AtomicBool::new(false) })
                    .with_batch_config(batches)
                    .build(),
            )
            .build();
        let BrokerSettings { exchange, routing_key, queue, .. } = broker;
        Ok(Self(Some(Exporting {
            tracer: provider.tracer("kyc-worker"),
            provider,
            share: otlp.share,
            destination: format!("{exchange}:{routing_key}:{queue}"),
            routing_key: routing_key.clone(),
            server: base_url.host_str().unwrap_or_default().to_owned(),
            port: base_url.port_or_known_default().unwrap_or_default().into(),
        })))
    }

    /// Work begins on a job that was published in `trace`.
    pub fn begin(&self, kind: Kind, trace: Option<TraceContext>) -> Work {
        Work(self.0.as_ref().map(|_| {
            let (attributes, steps) = (Vec::new(), Vec::new());
            Box::new(Noted { kind, trace, begun: SystemTime::now(), attributes, steps, went_wrong: false })
        }))
    }

    /// The work is done: its spans are made, if they are worth it.
    pub fn end(&self, work: Work) {
        let (Some(exporting), Some(noted)) = (&self.0, work.0) else { return };
        let ended = SystemTime::now();
        let is_slow = ended.duration_since(noted.begun).is_ok_and(|took| took >= SLOW);
        if noted.went_wrong || is_slow || exporting.keeps(noted.trace) {
            exporting.tell(*noted, ended);
        }
    }

    /// Exports what is left, within a second. Blocks.
    pub fn shut_down(&self) {
        if let Some(exporting) = &self.0 {
            let _what_is_left_is_lost = exporting.provider.shutdown_with_timeout(LAST_EXPORT_TIMEOUT);
        }
    }
}

/// Asks the collector to take no spans at all. The empty message of protobuf is no byte.
pub async fn inspect(otlp: &Otlp) -> Finding {
    let asking = async {
        #[expect(clippy::disallowed_methods, reason = "nothing is signed for the collector")]
        let client = reqwest::Client::builder().timeout(EXPORT_TIMEOUT);
        let client = client.redirect(redirect::Policy::none()).no_proxy().build()?;
        let mut request =
            client.post(otlp.traces_url.clone()).header("content-type", "application/x-protobuf");
        for (name, value) in &otlp.headers {
            request = request.header(name, value);
        }
        request.send().await
    };
    let what = match asking.await {
        Ok(answer) if answer.status().is_success() => {
            return Finding::ok(format!("{} takes traces", otlp.traces_url));
        }
        Ok(answer) => format!("answered {}", answer.status().as_u16()),
        Err(error) => format!("cannot be asked: {:#}", anyhow::Error::new(error.without_url())),
    };
    Finding::wrong(
        format!("OTEL_EXPORTER_OTLP_ENDPOINT: {} {what}", otlp.traces_url),
        "name a collector of OTLP over HTTP, by custom at port 4318, and its OTEL_EXPORTER_OTLP_HEADERS; work goes on without it",
    )
}

impl Exporting {
    /// Whether work that went well is kept: with its trace, and else by chance.
    fn keeps(&self, trace: Option<TraceContext>) -> bool {
        trace.is_some_and(|trace| trace.is_sampled()) || rand::random_bool(self.share)
    }

    fn tell(&self, noted: Noted, ended: SystemTime) {
        let Noted { kind, trace, begun, mut attributes, steps, went_wrong } = noted;
        METRICS.note_spans_made(steps.len() + 1);
        let published = trace.map(remote);
        let (name, span_kind) = match kind {
            Kind::Delivery => (format!("process {}", self.destination).into(), SpanKind::Consumer),
            Kind::Attempt => (Cow::from("attempt"), SpanKind::Internal),
            Kind::ReadBack => ("read back".into(), SpanKind::Internal),
            Kind::Verification => ("verify".into(), SpanKind::Internal),
        };
        if kind == Kind::Delivery {
            attributes.extend([
                KeyValue::new("messaging.system", "rabbitmq"),
                KeyValue::new("messaging.operation.name", "process"),
                KeyValue::new("messaging.operation.type", "process"),
                KeyValue::new("messaging.destination.name", self.destination.clone()),
                KeyValue::new("messaging.rabbitmq.destination.routing_key", self.routing_key.clone()),
            ]);
        }
        // A retry of tomorrow is no part of today's trace: it is linked to it.
        let (parent, links) = match (published, kind) {
            (Some(published), Kind::Delivery) => {
                (Context::new().with_remote_span_context(published), Vec::new())
            }
            (published, _) => (Context::new(), published.into_iter().map(Link::with_context).collect()),
        };
        let mut root = SpanBuilder::from_name(name)
            .with_kind(span_kind)
            .with_start_time(begun)
            .with_attributes(attributes)
            .with_links(links)
            .start_with_context(&self.tracer, &parent);
        if went_wrong {
            root.set_status(Status::error(""));
        }
        let inside = Context::new().with_remote_span_context(root.span_context().clone());
        for step in steps {
            let mut attributes = step.attributes;
            if step.kind == SpanKind::Client {
                attributes.extend([
                    KeyValue::new("server.address", self.server.clone()),
                    KeyValue::new("server.port", self.port),
                ]);
            }
            let mut span = SpanBuilder::from_name(step.name)
                .with_kind(step.kind)
                .with_start_time(step.begun)
                .with_attributes(attributes)
                .start_with_context(&self.tracer, &inside);
            if let Some(error) = step.error {
                span.set_attribute(KeyValue::new("error.type", error));
                span.set_status(Status::error(""));
            }
            span.end_with_timestamp(step.ended);
        }
        root.end_with_timestamp(ended);
    }
}

/// Where in its trace a message was published.
fn remote(trace: TraceContext) -> SpanContext {
    SpanContext::new(
        TraceId::from(trace.trace_id().get()),
        SpanId::from(trace.parent_id()),
        TraceFlags::default().with_sampled(trace.is_sampled()),
        true,
        TraceState::default(),
    )
}

impl Work {
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(noted) = &mut self.0 {
            noted.attributes.push(KeyValue::new(key, value));
        }
    }

    /// Of which job it is; text is made only where it is noted.
    pub fn set_job(&mut self, job_id: Uuid) {
        if self.0.is_some() {
            self.set("kyc.job_id", job_id.to_string());
        }
    }

    /// The same, of a message.
    pub fn set_message(&mut self, job: &Job) {
        if self.0.is_some() {
            self.set_job(job.id);
            self.set("messaging.message.id", job.id.to_string());
            self.set_if_some("messaging.message.conversation_id", job.correlation_id.clone());
        }
    }

    /// A value that may not be there.
    pub fn set_if_some(&mut self, key: &'static str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.set(key, value);
        }
    }

    /// It is kept, whatever its share.
    pub fn went_wrong(&mut self) {
        if let Some(noted) = &mut self.0 {
            noted.went_wrong = true;
        }
    }

    /// A step that began at `begun` ends now.
    pub fn step(&mut self, name: &'static str, begun: SystemTime) {
        self.note(Step {
            name,
            kind: SpanKind::Internal,
            begun,
            ended: SystemTime::now(),
            attributes: Vec::new(),
            error: None,
        });
    }

    /// An update that was sent at `begun` is answered, or will not be. `error` says what went wrong.
    pub fn update(&mut self, begun: SystemTime, outcome: &HttpOutcome, error: Option<&'static str>) {
        let status = match outcome {
            HttpOutcome::Answered(answer) => Some(answer.status),
            HttpOutcome::NotSent(_) | HttpOutcome::Lost(_) => None,
        };
        self.exchange(
            "PATCH /kyc/update-document-info",
            "PATCH",
            "/kyc/update-document-info",
            begun,
            status,
            error,
        );
    }

    /// A customer who was asked for at `begun` is read, or not.
    pub fn read(&mut self, begun: SystemTime, error: Option<&'static str>) {
        let status = error.is_none().then_some(200);
        self.exchange("GET /customer/{id}", "GET", "/customer/{id}", begun, status, error);
    }

    /// A customer's configuration that was asked for at `begun` is read, or not.
    pub fn configuration(&mut self, begun: SystemTime, error: Option<&'static str>) {
        let (name, template) = ("GET /kyc/configuration/{id}", "/kyc/configuration/{id}");
        let status = error.is_none().then_some(200);
        self.exchange(name, "GET", template, begun, status, error);
    }

    fn exchange(
        &mut self,
        name: &'static str,
        method: &'static str,
        template: &'static str,
        begun: SystemTime,
        status: Option<u16>,
        error: Option<&'static str>,
    ) {
        if self.0.is_none() {
            return;
        }
        let mut attributes =
            vec![KeyValue::new("http.request.method", method), KeyValue::new("url.template", template)];
        attributes.extend(status.map(|status| KeyValue::new("http.response.status_code", i64::from(status))));
        let (kind, ended, error) = (SpanKind::Client, SystemTime::now(), error.map(Cow::from));
        self.note(Step { name, kind, begun, ended, attributes, error });
    }

    fn note(&mut self, step: Step) {
        if let Some(noted) = &mut self.0 {
            noted.steps.push(step);
        }
    }
}

/// Counts what the collector takes, and tells once that it takes nothing.
#[derive(Debug)]
struct Told {
    exporter: SpanExporter,
    is_failing: AtomicBool,
}

impl Exporter for Told {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let exported = self.exporter.export(batch).await;
        let failed = self.is_failing.swap(exported.is_err(), Ordering::Relaxed);
        match &exported {
            Ok(()) => {
                METRICS.note_spans_exported(count);
                if failed {
                    info!("the collector takes traces again");
                }
            }
            Err(error) if !failed => warn!(
                %error,
                "OTEL_EXPORTER_OTLP_ENDPOINT: the collector takes no traces, and they are lost meanwhile; nothing else is"
            ),
            Err(_) => {}
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
