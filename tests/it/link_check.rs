//! With `LINK_CHECK=true`, a link that holds no document spends nothing, and one that cannot be checked is
//! checked again. Nothing that was read is kept, and no link's query is told.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use dollarpe_sandbox::tls::{Authority, Front};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::harness::{PATIENT, Submission, World, job_body, world};
use crate::outcome_events::TOLD;

pub const JPEG: &[u8] = b"\xff\xd8\xff\xe0\x00\x10JFIF canarydocument";
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n canarydocument";
const PDF: &[u8] = b"%PDF-1.7\ncanarydocument";
const HTML: &[u8] = b"<!doctype html><title>Sign in, canarydocument</title>";

const QUERY: &str = "canaryquerysecret";

/// What a host answers to one path, each once but the last.
#[derive(Clone)]
pub enum Answer {
    Give(&'static [u8]),
    Refuse(u16),
    LeadTo(String),
    Hang,
}

#[derive(Default)]
struct Told {
    answers: HashMap<String, Vec<Answer>>,
    /// The paths that were asked for, in order.
    asked: Vec<String>,
}

/// A host of documents that speaks https, at 127.0.0.1 under a name.
pub struct Host {
    name: &'static str,
    pub port: u16,
    told: Arc<Mutex<Told>>,
    _front: Front,
    server: JoinHandle<()>,
}

impl Host {
    pub async fn start(authority: &Authority, name: &'static str) -> Self {
        let told = Arc::new(Mutex::new(Told::default()));
        let inner = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let target = inner.local_addr().expect("an address");
        let service = Router::new().fallback(answer).with_state(Arc::clone(&told));
        let server = tokio::spawn(async move { axum::serve(inner, service).await.expect("it serves") });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let front = Front::start(listener, target, &authority.issue(name).expect("a certificate"));
        let front = front.expect("TLS");
        Self { name, port: front.address().port(), told, _front: front, server }
    }

    pub fn link(&self, path: &str) -> String {
        format!("https://{}:{}/{path}?sig={QUERY}", self.name, self.port)
    }

    /// Has it answer a path so, and returns the link.
    pub fn answer(&self, path: &str, answers: &[Answer]) -> String {
        self.told.lock().answers.insert(format!("/{path}"), answers.to_vec());
        self.link(path)
    }

    pub fn count_asked(&self, path: &str) -> usize {
        self.told.lock().asked.iter().filter(|asked| asked[1..] == *path).count()
    }

    fn count_all(&self) -> usize {
        self.told.lock().asked.len()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer(State(told): State<Arc<Mutex<Told>>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    assert_eq!(request.headers()["range"], "bytes=0-1023");
    let answer = {
        let mut told = told.lock();
        told.asked.push(path.clone());
        match told.answers.get_mut(&path) {
            Some(answers) if answers.len() > 1 => answers.remove(0),
            Some(answers) => answers[0].clone(),
            None => Answer::Refuse(404),
        }
    };
    let response = Response::builder();
    let answered = match answer {
        Answer::Give(bytes) => response.body(Body::from(bytes)),
        Answer::Refuse(status) => response.status(status).body(Body::from("canarydocument")),
        Answer::LeadTo(location) => {
            response.status(StatusCode::FOUND).header("location", location).body(Body::empty())
        }
        Answer::Hang => std::future::pending().await,
    };
    answered.expect("an answer")
}

/// Settings that let links lead to this machine.
struct Inside {
    ca: String,
}

impl Inside {
    fn new(world: &World, authority: &Authority) -> Self {
        Self { ca: world.write_file("links-ca.pem", authority.pem().as_bytes()) }
    }

    fn settings<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        // A proxy of the environment's would be fatal, were it used.
        let given = [
            ("LINK_CHECK", "true"),
            ("LINK_CHECK_ALLOW", "127.0.0.0/8"),
            ("LINK_CHECK_CA_FILE", &self.ca),
            ("HTTPS_PROXY", "http://127.0.0.1:1"),
            ("ALL_PROXY", "http://127.0.0.1:1"),
        ];
        [&given, &PATIENT[..], more].concat()
    }
}

fn authority() -> Authority {
    Authority::new().expect("an authority")
}

/// A host at 127.0.0.1, and the settings by which links may lead to it.
async fn host_inside(world: &World) -> (Host, Inside) {
    let authority = authority();
    (Host::start(&authority, "127.0.0.1").await, Inside::new(world, &authority))
}

/// Publishes a job with these links, whose paths begin with its id.
pub async fn publish_linked(world: &World, job_id: Uuid, front: &str, back: &str) -> Uuid {
    publish_linked_for(world, Uuid::new_v4(), job_id, front, back).await
}

async fn publish_linked_for(world: &World, customer_id: Uuid, job_id: Uuid, front: &str, back: &str) -> Uuid {
    let mut body = job_body(customer_id, job_id);
    body["document_front_image_url"] = json!(front);
    body["document_back_image_url"] = json!(back);
    world.publish(Some(job_id), body.to_string().as_bytes()).await;
    job_id
}

pub async fn ended(world: &World, job_id: Uuid) -> Submission {
    world.wait_for_state(job_id, &["accepted", "rejected", "exhausted", "needs_review"]).await
}

/// Nothing of what was read, and no link's query, in a log or a table.
async fn check_nothing_is_told(world: &World) {
    for canary in ["canarydocument", QUERY] {
        for (path, text) in world.logs() {
            assert!(!text.contains(canary), "{canary} in {}", path.display());
        }
        for table in ["submission", "attempt", "observation"] {
            let rows = format!("select count(*) from {table} t where t::text like '%' || $1 || '%'");
            let told: i64 =
                sqlx::query_scalar(&rows).bind(canary).fetch_one(&world.pool).await.expect("the rows");
            assert_eq!(told, 0, "{canary} in {table}");
        }
    }
}

#[test]
fn a_link_without_a_document_spends_nothing() {
    world(async |world| {
        world.declare_topology().await;
        let (host, inside) = host_inside(&world).await;
        let elsewhere = host.answer("elsewhere", &[Answer::Give(PDF)]);
        let mut jobs = Vec::new();
        for (file, answer, code) in [
            ("front.jpg", Answer::Give(JPEG), None),
            ("front.png", Answer::Give(PNG), None),
            ("front.pdf", Answer::LeadTo(elsewhere.clone()), None),
            ("front.jpg", Answer::Give(HTML), Some("not_a_document")),
            ("front.jpg", Answer::Give(PNG), Some("not_a_document")),
            ("front.jpg", Answer::Give(b""), Some("not_a_document")),
            ("front.jpg", Answer::Refuse(204), Some("not_a_document")),
            ("front.jpg", Answer::Refuse(416), Some("not_a_document")),
            ("front.jpg", Answer::LeadTo(elsewhere.clone()), Some("not_a_document")),
            ("front.jpg", Answer::Refuse(404), Some("link_not_found")),
            ("front.jpg", Answer::Refuse(410), Some("link_not_found")),
            ("front.jpg", Answer::Refuse(403), Some("link_refused")),
            ("front.jpg", Answer::Refuse(401), Some("link_refused")),
            ("front.jpg", Answer::Refuse(400), Some("link_refused")),
            ("front.jpg", Answer::LeadTo("http://127.0.0.1/a.jpg".to_owned()), Some("link_refused")),
            ("front.jpg", Answer::LeadTo("https://169.254.169.254/a.jpg".to_owned()), Some("link_refused")),
        ] {
            let job_id = Uuid::new_v4();
            let front = host.answer(&format!("{job_id}/{file}"), &[answer]);
            let back = host.answer(&format!("{job_id}/back.png"), &[Answer::Give(PNG)]);
            jobs.push((publish_linked(&world, job_id, &front, &back).await, code));
        }
        // One refusal would open the breaker, were it the provider's.
        let worker = world.start_worker_with(&inside.settings(&[("BREAKER_FAILURES", "1")]));
        let mut refused = 0;
        for (job_id, code) in jobs {
            let job = ended(&world, job_id).await;
            let told = (job.state.as_str(), job.reason_code.as_deref());
            assert_eq!(told, (if code.is_some() { "rejected" } else { "accepted" }, code), "{job:?}");
            assert_eq!(job.attempts, 1, "{job:?}");
            let Some(_) = code else {
                assert_eq!(world.count_patches(job_id).await, 1);
                let shown = world.say(&["show", &job_id.to_string()]).await;
                assert!(shown.contains("checked before: links"), "{shown}");
                continue;
            };
            refused += 1;
            assert!(job.reason.expect("why").contains("the link at /document_front_image_url"));
            assert_eq!((world.count_patches(job_id).await, job.has_payload), (0, false));
        }
        assert!(!worker.log().contains("intake paused"), "{}", worker.log());
        check_nothing_is_told(&world).await;
        let report = world.say(&["report"]).await;
        assert!(report.contains(&format!("too soon or a check refused the job: {refused}")), "{report}");
    });
}

#[test]
fn the_back_link_is_checked_beside_the_front_one() {
    world(async |world| {
        world.declare_topology().await;
        let (host, inside) = host_inside(&world).await;
        let _worker = world.start_worker_with(&inside.settings(&[]));
        // The front one is not known yet; the back one decides.
        let job_id = Uuid::new_v4();
        let front = host.answer(&format!("{job_id}/front.jpg"), &[Answer::Refuse(503)]);
        let back = host.link(&format!("{job_id}/back.png"));
        let job = ended(&world, publish_linked(&world, job_id, &front, &back).await).await;
        assert_eq!(job.reason_code.as_deref(), Some("link_not_found"), "{job:?}");
        assert!(job.reason.expect("why").contains("the link at /document_back_image_url"));
        let shown = world.say(&["show", &job_id.to_string()]).await;
        assert!(shown.contains("one update: nothing was sent"), "{shown}");
    });
}

#[test]
fn a_link_that_cannot_be_checked_is_checked_again_and_pauses_nothing() {
    world(async |world| {
        world.declare_topology().await;
        let (host, inside) = host_inside(&world).await;
        let worker = world.start_worker_with(&inside.settings(&[("BREAKER_FAILURES", "1")]));
        let job_id = Uuid::new_v4();
        let later = [Answer::Refuse(503), Answer::Refuse(429), Answer::Hang, Answer::Give(JPEG)];
        let front = host.answer(&format!("{job_id}/front.jpg"), &later);
        let back = host.answer(&format!("{job_id}/back.png"), &[Answer::Give(PNG)]);
        publish_linked(&world, job_id, &front, &back).await;
        world.check_nothing_lost_or_spent_twice(&[job_id]).await;
        let told: Vec<Option<String>> = sqlx::query_scalar(
            "select error from attempt where job_id = $1 and verdict = 'not_sent' order by number",
        )
        .bind(job_id)
        .fetch_all(&world.pool)
        .await
        .expect("its attempts");
        let told: Vec<&str> = told.iter().flatten().map(String::as_str).collect();
        let wants = ["its host fails", "its host asks to come later", "no answer in time"];
        assert_eq!(told, wants.map(|want| format!("/document_front_image_url: {want}")));
        let attempts = world.attempts(job_id).await;
        assert!(attempts[..3].iter().all(|attempt| attempt.detail.as_deref() == Some("link_unchecked")));
        assert_eq!(world.submission(job_id).await.expect("it is there").retries, 3);
        assert!(!worker.log().contains("intake paused"), "{}", worker.log());
        check_nothing_is_told(&world).await;
    });
}

#[test]
fn a_job_whose_links_host_is_gone_is_exhausted() {
    world(async |world| {
        world.declare_topology().await;
        let (host, inside) = host_inside(&world).await;
        let job_id = Uuid::new_v4();
        let [front, back] = ["front.jpg", "back.png"].map(|file| host.link(&format!("{job_id}/{file}")));
        drop(host);
        let few = [("RETRY_MAX_ATTEMPTS", "2"), ("BREAKER_FAILURES", "1")];
        let worker = world.start_worker_with(&inside.settings(&few));
        publish_linked(&world, job_id, &front, &back).await;
        let job = ended(&world, job_id).await;
        let told = (job.state.as_str(), job.reason_code.as_deref(), job.attempts);
        assert_eq!(told, ("exhausted", Some("attempts"), 2), "{job:?}");
        assert_eq!(world.count_patches(job_id).await, 0);
        assert!(!worker.log().contains("intake paused"), "{}", worker.log());
        // A person may have it sent once the documents are there.
        let replayed = world.say(&["replay", &job_id.to_string()]).await;
        assert!(replayed.contains("may spend 1 of the customer's 3 updates left"), "{replayed}");
    });
}

#[test]
fn a_link_to_a_neighbour_is_refused_and_the_neighbour_never_asked() {
    world(async |world| {
        world.declare_topology().await;
        let authority = authority();
        let (here, named) =
            (Host::start(&authority, "127.0.0.1").await, Host::start(&authority, "localhost").await);
        let inside = Inside::new(&world, &authority);
        let settings = inside.settings(&[("LINK_CHECK_ALLOW", "10.20.0.0/16")]);
        let _worker = world.start_worker_with(&settings);
        for host in [&here, &named] {
            let job_id = Uuid::new_v4();
            let front = host.answer(&format!("{job_id}/front.jpg"), &[Answer::Give(JPEG)]);
            let back = host.answer(&format!("{job_id}/back.png"), &[Answer::Give(PNG)]);
            let job = ended(&world, publish_linked(&world, job_id, &front, &back).await).await;
            assert_eq!(job.reason_code.as_deref(), Some("link_refused"), "{job:?}");
            assert!(job.reason.expect("why").contains("an address that is not public"));
            assert_eq!(host.count_all(), 0);
        }
    });
}

#[test]
fn a_worker_that_stops_during_a_check_leaves_the_job_to_another() {
    world(async |world| {
        world.declare_topology().await;
        let (host, inside) = host_inside(&world).await;
        let job_id = Uuid::new_v4();
        let path = format!("{job_id}/front.jpg");
        let front = host.answer(&path, &[Answer::Hang, Answer::Give(JPEG)]);
        let back = host.answer(&format!("{job_id}/back.png"), &[Answer::Give(PNG)]);
        let mut worker = world.start_worker_with(&inside.settings(&[]));
        publish_linked(&world, job_id, &front, &back).await;
        world.wait_for("the check", async || (host.count_asked(&path) == 1).then_some(())).await;
        worker.stop().await;
        let job = world.submission(job_id).await.expect("it is there");
        assert_eq!((job.state.as_str(), job.retries), ("waiting", 0), "{job:?}");
        let _another = world.start_worker_with(&inside.settings(&[]));
        world.check_nothing_lost_or_spent_twice(&[job_id]).await;
        let attempts = world.attempts(job_id).await;
        let told: Vec<_> = attempts.iter().map(|attempt| attempt.detail.as_deref()).collect();
        assert_eq!(told, [Some("shutdown"), None]);
    });
}

/// Whether the links still hold then is no matter of ours: the update may be spent.
#[test]
fn a_resend_is_checked_again_and_a_job_without_the_setting_is_not() {
    world(async |world| {
        world.declare_topology().await;
        let (host, inside) = host_inside(&world).await;
        let (customer_id, job_id) = (Uuid::new_v4(), Uuid::new_v4());
        world.set_customer(customer_id, json!({ "status": "FAILED" })).await;
        let lost = json!({ "apply": "never", "answer": { "kind": "respond", "status": 504 } });
        world.break_job_once(job_id, lost).await;
        let gone = [Answer::Give(JPEG), Answer::Refuse(404)];
        let [front, back] =
            ["front.jpg", "back.jpg"].map(|file| host.answer(&format!("{job_id}/{file}"), &gone));
        let mut worker = world.start_worker_with(&inside.settings(&[]));
        publish_linked_for(&world, customer_id, job_id, &front, &back).await;
        let job = ended(&world, job_id).await;
        assert_eq!(job.reason_code.as_deref(), Some("link_not_found"), "{job:?}");
        assert_eq!((world.count_patches(job_id).await, world.count_updates(job_id).await), (1, 0));
        assert_eq!(host.count_asked(&format!("{job_id}/front.jpg")), 2);
        worker.stop().await;

        let _worker = world.start_worker();
        let unchecked = Uuid::new_v4();
        let [front, back] = ["front.jpg", "back.jpg"].map(|file| host.link(&format!("{unchecked}/{file}")));
        publish_linked(&world, unchecked, &front, &back).await;
        world.check_nothing_lost_or_spent_twice(&[unchecked]).await;
        assert_eq!(host.count_all(), 4);
    });
}

/// Two checks of one job, side by side: both are made, and the type that is not listed ends it.
#[test]
fn both_checks_go_side_by_side_and_a_rejection_wins() {
    world(async |world| {
        world.declare_topology().await;
        let (host, inside) = host_inside(&world).await;
        let _worker = world.start_worker_with(&inside.settings(&[("DOCUMENT_TYPES", "provider")]));
        let lists = |types: Value| {
            let body = json!({ "status": true, "data": { "supported_document_types": types } });
            json!({ "answer": { "kind": "respond", "status": 200, "body": body } })
        };
        for (types, front, code) in [
            (json!(["AADHAAR"]), Answer::Refuse(503), Some("document_type_unsupported")),
            (json!(["PASSPORT"]), Answer::Refuse(404), Some("link_not_found")),
            (json!(["PASSPORT"]), Answer::Give(JPEG), None),
        ] {
            let (customer_id, job_id) = (Uuid::new_v4(), Uuid::new_v4());
            let matched = json!({ "path_contains": "/kyc/configuration/", "customer_id": customer_id });
            world.add_rule(json!({ "match": matched, "fault": lists(types) })).await;
            let front = host.answer(&format!("{job_id}/front.jpg"), &[front]);
            let back = host.answer(&format!("{job_id}/back.png"), &[Answer::Give(PNG)]);
            publish_linked_for(&world, customer_id, job_id, &front, &back).await;
            let job = ended(&world, job_id).await;
            assert_eq!(job.reason_code.as_deref(), code, "{job:?}");
            assert_eq!(host.count_asked(&format!("{job_id}/front.jpg")), 1);
            assert_eq!(world.observations(job_id).await.len(), 1);
        }
    });
}

/// A third of a day's jobs are bound to fail, each in one of four ways; two workers, of which one is killed.
#[test]
fn a_day_of_mixed_jobs_spends_nothing_on_those_that_are_bound_to_fail() {
    world(async |world| {
        world.declare_topology().await;
        let upstream = world.listen().await;
        let (host, inside) = host_inside(&world).await;
        let settings = inside.settings(&[("DOCUMENT_TYPES", "provider"), TOLD]);
        let mut workers = [(); 2].map(|()| world.start_worker_with(&settings));
        let mut jobs = Vec::new();
        for n in 0..90 {
            let job_id = Uuid::new_v4();
            let (front, code) = match n % 12 {
                0 => (host.link(&format!("{job_id}/front.jpg")), Some("link_not_found")),
                3 => (
                    host.answer(&format!("{job_id}/front.jpg"), &[Answer::Give(HTML)]),
                    Some("not_a_document"),
                ),
                6 => {
                    let link = host.answer(&format!("{job_id}/front.jpg"), &[Answer::Give(JPEG)]);
                    let signed = format!("{link}&X-Amz-Date=20260101T000000Z&X-Amz-Expires=900");
                    (signed, Some("expired"))
                }
                other => {
                    let front = host.answer(&format!("{job_id}/front.jpg"), &[Answer::Give(JPEG)]);
                    (front, (other == 9).then_some("document_type_unsupported"))
                }
            };
            let mut body = job_body(Uuid::new_v4(), job_id);
            body["document_front_image_url"] = json!(front);
            body["document_back_image_url"] =
                json!(host.answer(&format!("{job_id}/back.png"), &[Answer::Give(PNG)]));
            if n % 12 == 9 {
                body["document_type"] = json!("LIBRARY_CARD");
            }
            world.publish(Some(job_id), body.to_string().as_bytes()).await;
            jobs.push((job_id, code));
        }
        world.wait_for_accepted(10).await;
        workers[0].kill();
        let ids: Vec<Uuid> = jobs.iter().map(|(job_id, _)| *job_id).collect();
        upstream.wait_for_implied(&world, &ids).await;
        for (job_id, code) in jobs {
            let job = ended(&world, job_id).await;
            let applied = world.count_updates(job_id).await;
            match code {
                None => assert_eq!((job.state.as_str(), applied), ("accepted", 1), "{job:?}"),
                Some(code) => assert_eq!((job.reason_code.as_deref(), applied), (Some(code), 0), "{job:?}"),
            }
        }
        check_nothing_is_told(&world).await;
    });
}
