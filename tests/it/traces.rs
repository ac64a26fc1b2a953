//! A job's trace is named wherever the job is: in each of its log lines, on whichever replica, and in what
//! is exported. Nothing of it reaches the provider.

use std::collections::HashSet;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use parking_lot::Mutex;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::harness::{WorkerProcess, World, job_body, world, world_with};
use crate::publishing::{programs, publishes};
use crate::verification::{scaled_with, world_that_verifies_in};

/// A trace of the job's own.
fn traceparent(job_id: Uuid) -> String {
    format!("00-{}-b7ad6b7169203331-01", job_id.simple())
}

impl World {
    /// Publishes a body as a client with a tracing library does.
    async fn publish_traced(&self, job_id: Uuid, traceparent: &str, body: &[u8]) {
        let mut headers = FieldTable::default();
        headers.insert("traceparent".into(), AMQPValue::LongString(traceparent.into()));
        let properties = BasicProperties::default().with_delivery_mode(2).with_headers(headers);
        self.publish_with(properties.with_message_id(job_id.to_string().into()), body).await;
    }

    /// Publishes a valid job in a trace of its own, whose first PATCH meets `fault`.
    async fn publish_traced_job(&self, customer_id: Uuid, fault: Option<Value>) -> Uuid {
        let job_id = Uuid::new_v4();
        if let Some(fault) = fault {
            self.break_job_once(job_id, fault).await;
        }
        let body = job_body(customer_id, job_id).to_string();
        self.publish_traced(job_id, &traceparent(job_id), body.as_bytes()).await;
        job_id
    }
}

fn respond(status: u16, message: &str) -> Value {
    let body = json!({ "status": false, "message": message, "data": null });
    json!({ "apply": "never", "answer": { "kind": "respond", "status": status, "body": body } })
}

/// The jobs that a worker's log tells of; each of its lines names the trace of its job.
fn jobs_of_log(worker: &WorkerProcess) -> Vec<Uuid> {
    let job_of = |line: &str| {
        let fields: Value = serde_json::from_str(line).ok()?;
        let of = |name: &str| fields.get(name).or_else(|| fields.get("span")?.get(name))?.as_str();
        let job_id: Uuid = of("job_id")?.parse().ok()?;
        assert_eq!(of("trace_id"), Some(&*job_id.simple().to_string()), "{line}");
        Some(job_id)
    };
    worker.log().lines().filter_map(job_of).collect()
}

#[test]
fn every_log_line_of_a_job_names_its_trace() {
    world_with(world_that_verifies_in(1_000), async |world| {
        world.declare_topology().await;
        let customer = Uuid::new_v4();
        let mut jobs = Vec::new();
        for fault in [
            None,
            Some(respond(409, "KYC already in use")),
            Some(respond(429, "slow down")),
            Some(respond(500, "oops")),
            Some(json!({ "apply": "never", "answer": { "kind": "hang" } })),
        ] {
            jobs.push(world.publish_traced_job(Uuid::new_v4(), fault).await);
        }
        // One that is killed in its attempt, and those that come behind it.
        let killed = world.publish_traced_job(customer, Some(json!({ "answer": { "kind": "hang" } }))).await;
        let mut first = world.start_worker_with(&scaled_with(&[]));
        world.wait_for("an attempt", async || (world.count_patches(killed).await == 1).then_some(())).await;
        first.kill();
        for _ in 0..3 {
            jobs.push(world.publish_traced_job(customer, None).await);
        }
        jobs.push(killed);
        let expired = Uuid::new_v4();
        let mut body = job_body(Uuid::new_v4(), expired);
        body["expires_at"] = json!("2020-01-01T00:00:00Z");
        world.publish_traced(expired, &traceparent(expired), body.to_string().as_bytes()).await;
        jobs.push(expired);
        let second = world.start_worker_with(&scaled_with(&[]));
        world.wait_for_ended(jobs.len()).await;
        world.wait_for_end_of_verification(jobs[0]).await;
        // A known job, another content under a known id, and what is no job.
        let known = jobs[0];
        let other = job_body(Uuid::new_v4(), known).to_string();
        world.publish_traced(known, &traceparent(known), other.as_bytes()).await;
        let invalid = Uuid::new_v4();
        world.publish_traced(invalid, &traceparent(invalid), b"{}").await;
        jobs.push(invalid);
        world.wait_for_no_delivery().await;

        // A line comes a moment after what it tells of.
        let all_said = async || {
            let said: HashSet<Uuid> = [&first, &second].into_iter().flat_map(jobs_of_log).collect();
            jobs.iter().all(|job_id| said.contains(job_id)).then_some(())
        };
        world.wait_for("a line of each job", all_said).await;
        let told = world.say(&["show", &known.to_string()]).await;
        assert!(told.contains(&known.simple().to_string()), "{told}");
        for patch in world.oracle("patches").await {
            let headers = patch["headers"].as_array().expect("names");
            assert!(
                headers.contains(&json!("x-signature")) && !headers.contains(&json!("traceparent")),
                "{patch}"
            );
        }
    });
}

#[test]
fn a_traceparent_that_cannot_be_read_is_ignored() {
    world(async |world| {
        world.declare_topology().await;
        let _worker = world.start_worker();
        for odd in ["", "00-0-0-0", "\u{1f600}", "00-00000000000000000000000000000000-b7ad6b7169203331-01"] {
            let job_id = Uuid::new_v4();
            let body = job_body(Uuid::new_v4(), job_id).to_string();
            world.publish_traced(job_id, odd, body.as_bytes()).await;
            world.wait_for_state(job_id, &["accepted"]).await;
        }
        let kept = world.count("select count(*) from submission where traceparent is not null").await;
        assert_eq!(kept, 0);
    });
}

#[test]
fn enqueue_gives_each_job_a_trace_of_its_own() {
    world(async |world| {
        let jobs = world.enqueue_jobs(3, &[]).await;
        let _worker = world.start_worker();
        world.wait_for_all_accepted(&jobs).await;
        let traces = "select count(distinct substr(traceparent, 4, 32)) from submission where right(traceparent, 3) = '-00'";
        assert_eq!(world.count(traces).await, 3);
    });
}

/// A collector of OTLP over HTTP.
struct Collector {
    url: String,
    spans: Arc<Mutex<Vec<Span>>>,
    /// What the requests came with.
    headers: Arc<Mutex<Vec<HeaderMap>>>,
    requests: Arc<AtomicUsize>,
}

/// How a collector answers.
#[derive(Clone, Copy)]
enum Answers {
    Takes,
    Refuses(StatusCode),
    Hangs,
}

impl Collector {
    async fn start(answers: Answers) -> Self {
        let (spans, headers) = (Arc::<Mutex<Vec<Span>>>::default(), Arc::<Mutex<Vec<HeaderMap>>>::default());
        let requests = Arc::<AtomicUsize>::default();
        let taken = (Arc::clone(&spans), Arc::clone(&headers), Arc::clone(&requests));
        let take = move |head: HeaderMap, body: Bytes| {
            let (spans, headers, requests) = taken.clone();
            async move {
                requests.fetch_add(1, Ordering::Relaxed);
                match answers {
                    Answers::Hangs => pending().await,
                    Answers::Refuses(status) => status,
                    Answers::Takes => {
                        let request = ExportTraceServiceRequest::decode(body).expect("OTLP");
                        let resources = request.resource_spans.into_iter();
                        let scopes = resources.flat_map(|resource| resource.scope_spans);
                        spans.lock().extend(scopes.flat_map(|scope| scope.spans));
                        headers.lock().push(head);
                        StatusCode::OK
                    }
                }
            }
        };
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/otlp", socket.local_addr().expect("an address"));
        let router = Router::new().route("/otlp/v1/traces", post(take));
        tokio::spawn(async move { axum::serve(socket, router).await });
        Self { url, spans, headers, requests }
    }

    /// The spans of a job, once its work is told of.
    fn of(&self, job_id: Uuid) -> Vec<Span> {
        let all = self.spans.lock().clone();
        let roots =
            all.iter().filter(|span| text(span, "kyc.job_id").is_some_and(|id| id == job_id.to_string()));
        let ids: HashSet<Vec<u8>> = roots.map(|root| root.span_id.clone()).collect();
        let is_of = |span: &Span| ids.contains(&span.span_id) || ids.contains(&span.parent_span_id);
        all.into_iter().filter(is_of).collect()
    }
}

/// An attribute of a span, as text.
fn text(span: &Span, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Any::StringValue(text) => Some(text.clone()),
        Any::IntValue(number) => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    }
}

const SHARE_NOTHING: (&str, &str) = ("OTEL_TRACES_SAMPLER_ARG", "0");

#[test]
fn what_was_done_with_a_job_is_told_to_the_collector() {
    world_with(world_that_verifies_in(1_000), async |world| {
        world.declare_topology().await;
        let collector = Collector::start(Answers::Takes).await;
        let settings = scaled_with(&[
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-collector-key=of%20ours"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
            SHARE_NOTHING,
        ]);
        let settings = [&settings[..], &[("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.url)]].concat();
        let customer = Uuid::new_v4();
        let sampled = world.publish_traced_job(customer, None).await;
        let throttled = world.publish_traced_job(Uuid::new_v4(), Some(respond(429, "slow down"))).await;
        let unknown = world.publish_traced_job(Uuid::new_v4(), Some(respond(500, "oops"))).await;
        let invalid = Uuid::new_v4();
        world.publish_traced(invalid, &traceparent(invalid), b"{}").await;
        // Its publisher keeps no trace, and all goes well.
        let unsampled = Uuid::new_v4();
        let body = job_body(Uuid::new_v4(), unsampled).to_string();
        world.publish_traced(unsampled, &traceparent(unsampled).replace("-01", "-00"), body.as_bytes()).await;
        let mut worker = world.start_worker_with(&settings);
        world.wait_for_all_accepted(&[sampled, throttled, unsampled]).await;
        world.wait_for_state(unknown, &["accepted", "needs_review"]).await;
        world.wait_for_end_of_verification(sampled).await;
        world.wait_for_no_delivery().await;
        // What is left is exported when it stops.
        worker.stop().await;

        let spans = collector.of(sampled);
        let named = |spans: &[Span], name: &str| -> Vec<Span> {
            spans.iter().filter(|span| span.name == name).cloned().collect()
        };
        let process = "process kyc:document-update:kyc.document-updates";
        let [root] = &named(&spans, process)[..] else { panic!("{spans:#?}") };
        assert_eq!(root.trace_id, sampled.as_bytes(), "it is in the publisher's trace");
        assert_eq!(
            root.parent_span_id,
            0xb7ad_6b71_6920_3331_u64.to_be_bytes(),
            "below the publisher's span"
        );
        assert_eq!(root.kind(), SpanKind::Consumer);
        assert_eq!(text(root, "messaging.system").as_deref(), Some("rabbitmq"));
        assert_eq!(text(root, "kyc.receipt").as_deref(), Some("claimed"));
        assert_eq!(text(root, "kyc.verdict").as_deref(), Some("accepted"));
        for (name, kind) in [
            ("open", SpanKind::Internal),
            ("PATCH /kyc/update-document-info", SpanKind::Client),
            ("settle", SpanKind::Internal),
        ] {
            let [step] = &named(&spans, name)[..] else { panic!("{name}: {spans:#?}") };
            assert_eq!(
                (step.kind(), &step.parent_span_id, &step.trace_id),
                (kind, &root.span_id, &root.trace_id)
            );
            assert!(
                root.start_time_unix_nano <= step.start_time_unix_nano
                    && step.start_time_unix_nano <= step.end_time_unix_nano
                    && step.end_time_unix_nano <= root.end_time_unix_nano,
                "{step:#?}"
            );
            if kind == SpanKind::Client {
                assert_eq!(text(step, "http.response.status_code").as_deref(), Some("200"));
                assert_eq!(text(step, "server.address").as_deref(), Some("127.0.0.1"));
            }
        }
        // What comes later is a trace of its own, linked to the publisher's.
        for (job_id, later, told) in [
            (sampled, "verify", ("kyc.verification_status", "VERIFIED")),
            (throttled, "attempt", ("kyc.attempt", "2")),
            (unknown, "read back", ("kyc.attempt", "1")),
        ] {
            let spans = collector.of(job_id);
            let found = named(&spans, later);
            let found = found.iter().find(|span| text(span, told.0).as_deref() == Some(told.1));
            let Some(found) = found else { panic!("{later}: {spans:#?}") };
            assert!(found.parent_span_id.is_empty() && found.trace_id != job_id.as_bytes());
            assert_eq!(found.links[0].trace_id, job_id.as_bytes());
        }
        let failed = named(&collector.of(unknown), "PATCH /kyc/update-document-info");
        assert_eq!(text(&failed[0], "error.type").as_deref(), Some("server_error"), "{failed:#?}");
        let all = collector.spans.lock().clone();
        assert!(all.iter().any(|span| text(span, "kyc.receipt").as_deref() == Some("invalid")));
        assert!(collector.of(unsampled).is_empty(), "all went well, and nobody wants to know");
        let said = format!("{all:?}");
        for secret in
            [customer.to_string(), "123456123456".to_owned(), "X-Amz".to_owned(), "front.jpg".to_owned()]
        {
            assert!(!said.contains(&secret), "{secret}");
        }
        let heads = collector.headers.lock().clone();
        assert!(!heads.is_empty() && heads.iter().all(|head| head["x-collector-key"] == "of ours"));
        for patch in world.oracle("patches").await {
            assert!(!patch["headers"].to_string().contains("traceparent"), "{patch}");
        }
        assert!(!worker.log().contains("of ours"), "a secret is in the log");
    });
}

#[test]
fn a_collector_that_takes_nothing_costs_traces_alone() {
    for answers in [
        Answers::Hangs,
        Answers::Refuses(StatusCode::SERVICE_UNAVAILABLE),
        Answers::Refuses(StatusCode::TOO_MANY_REQUESTS),
    ] {
        world(async |world| {
            world.declare_topology().await;
            let collector = Collector::start(answers).await;
            let jobs = world.enqueue_jobs(600, &[]).await;
            let settings =
                [("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.url), ("OTEL_TRACES_SAMPLER_ARG", "1")];
            let mut worker = world.start_worker_with(&settings);
            world.wait_for_accepted(jobs.len() as i64).await;
            worker.stop().await;
            assert!(collector.requests.load(Ordering::Relaxed) > 0, "nothing was exported");
            let told = worker.log().matches("the collector takes no traces").count();
            // A request that hangs may not have run out of time yet.
            assert!(told == 1 || matches!(answers, Answers::Hangs) && told == 0, "{told}");
            assert_eq!(world.oracle_summary().await["applied"], jobs.len());
        });
    }
}

#[test]
fn a_trace_leads_from_the_publishers_of_the_examples_to_the_provider() {
    world(async |world| {
        world.declare_topology().await;
        let collector = Collector::start(Answers::Takes).await;
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.url);
        let mut worker = world.start_worker_with(&[endpoint, SHARE_NOTHING]);
        let programs = programs("docs/publishing.md", true);
        assert_eq!(programs.len(), 2, "pika and amqplib");
        let count = programs.len();
        for (mut program, example) in programs {
            program.env(endpoint.0, endpoint.1);
            publishes(&world, program, &example).await;
        }
        world.wait_for_accepted(count as i64).await;
        worker.stop().await;
        let spans = collector.spans.lock().clone();
        let published: Vec<&Span> = spans.iter().filter(|span| span.name == "publish kyc").collect();
        assert_eq!(published.len(), count, "{spans:#?}");
        for publish in published {
            let below = |parent: &Span, name: &str| {
                let is_below = |span: &&Span| {
                    span.trace_id == parent.trace_id
                        && span.parent_span_id == parent.span_id
                        && span.name.starts_with(name)
                };
                spans.iter().find(is_below).unwrap_or_else(|| panic!("no {name} below {parent:#?}"))
            };
            below(below(publish, "process "), "PATCH ");
        }
    });
}

#[test]
fn check_asks_the_collector() {
    world(async |world| {
        world.declare_topology().await;
        let check = async |url: &str| {
            let output = world.run(&["check"], &[("OTEL_EXPORTER_OTLP_ENDPOINT", url)]).await;
            String::from_utf8(output.stdout).expect("UTF-8")
        };
        let takes = Collector::start(Answers::Takes).await;
        let said = check(&takes.url).await;
        assert!(said.contains("/otlp/v1/traces takes traces") && said.contains("nothing is wrong"), "{said}");
        let refuses = Collector::start(Answers::Refuses(StatusCode::UNAUTHORIZED)).await;
        for (url, fault) in [(&*refuses.url, "answered 401"), ("http://127.0.0.1:1", "cannot be asked")] {
            let said = check(url).await;
            assert!(said.contains(fault) && said.contains("OTEL_EXPORTER_OTLP_HEADERS"), "{said}");
        }
    });
}
