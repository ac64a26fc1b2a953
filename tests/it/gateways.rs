//! Gateways before the provider that break HTTP's lock step, end connections that the worker may just be
//! using again, or answer reads from what they have kept.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::harness::{World, sized, world};

/// What a gateway does after each answer.
#[derive(Clone, Copy)]
enum Habit {
    /// After every third, it sends another that nobody asked for; but not after the first ones, by
    /// which the worker learns how fast the provider is.
    SecondAnswers,
    /// It ends a connection that is idle for as long.
    EndsIdle(Duration),
    /// It takes the dates off the answers to reads.
    Undates,
    /// It dates them anew, and writes an `Age` of its own before that of the cache behind it.
    DatesAnew,
    /// It writes a date of its own before that of the answer.
    DatesTwice,
}

/// How long after an answer the one comes that nobody asked for.
const AFTER_US: [u64; 6] = [200, 1_000, 3_000, 8_000, 20_000, 50_000];

/// How many answers tell the worker how fast the provider is, and some more.
const LEARNED_BY: usize = 120;

const STRAY: &str = r#"{"status":false,"message":"KYC already in use","errors":{},"data":null}"#;

/// Starts a gateway before the provider, and returns the `DOLLARPE_BASE_URL` that leads through it
/// and a count of the answers that nobody asked for.
async fn start_gateway(world: &World, habit: Habit) -> (JoinSet<()>, String, Arc<AtomicUsize>) {
    let mut base: url::Url = world.sandbox.base_url().parse().expect("a URL");
    let target = base.socket_addrs(|| None).expect("an address")[0];
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    base.set_port(Some(listener.local_addr().expect("an address").port())).expect("a port");
    let strays = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    let counted = Arc::clone(&strays);
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (client, _) = listener.accept().await.expect("a connection");
            connections.spawn(carry(client, target, habit, Arc::clone(&counted)));
        }
    });
    (tasks, base.to_string(), strays)
}

async fn carry(client: TcpStream, target: SocketAddr, habit: Habit, strays: Arc<AtomicUsize>) {
    let provider = TcpStream::connect(target).await.expect("the provider listens");
    for stream in [&client, &provider] {
        stream.set_nodelay(true).expect("a socket");
    }
    // A read has a connection of its own.
    let mut method = [0; 3];
    client.peek(&mut method).await.expect("a request");
    let habit = match habit {
        Habit::Undates | Habit::DatesAnew | Habit::DatesTwice if method != *b"GET" => {
            Habit::EndsIdle(Duration::from_secs(60))
        }
        habit => habit,
    };
    let (from_client, to_client) = client.into_split();
    let (from_provider, mut to_provider) = provider.into_split();
    let answers = tokio::spawn(answer(from_provider, to_client, habit, strays));
    let mut from_client = from_client;
    let _ended_by_either = tokio::io::copy(&mut from_client, &mut to_provider).await;
    answers.abort();
}

async fn answer(mut from: OwnedReadHalf, to: OwnedWriteHalf, habit: Habit, strays: Arc<AtomicUsize>) {
    let to = Arc::new(Mutex::new(to));
    let mut buffer = vec![0; 64 * 1024];
    let mut has_answered = false;
    loop {
        let reading = from.read(&mut buffer);
        let read = match habit {
            // Its clock begins when the answer has left.
            Habit::EndsIdle(after) if has_answered => match timeout(after, reading).await {
                Ok(read) => read,
                Err(_idle) => return,
            },
            _ => reading.await,
        };
        let Ok(length @ 1..) = read else { return };
        let answer = match habit {
            Habit::Undates | Habit::DatesAnew | Habit::DatesTwice => redate(&buffer[..length], habit),
            Habit::SecondAnswers | Habit::EndsIdle(_) => buffer[..length].to_vec(),
        };
        if to.lock().await.write_all(&answer).await.is_err() {
            return;
        }
        has_answered = true;
        if let Habit::SecondAnswers = habit {
            let nth = strays.fetch_add(1, Ordering::Relaxed);
            if nth >= LEARNED_BY && nth.is_multiple_of(3) {
                let after = Duration::from_micros(AFTER_US[nth / 3 % AFTER_US.len()]);
                tokio::spawn(send_stray(Arc::clone(&to), after));
            }
        }
    }
}

/// An answer's head with other dates.
fn redate(answer: &[u8], habit: Habit) -> Vec<u8> {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return answer.to_vec() };
    let is_dated = |line: &&str| line.to_ascii_lowercase().starts_with("date:");
    let is_kept = |line: &&str| matches!(habit, Habit::DatesTwice) || !is_dated(line);
    let mut lines: Vec<String> = head.lines().filter(is_kept).map(str::to_owned).collect();
    let now = format!("date: {}", httpdate::fmt_http_date(SystemTime::now()));
    match habit {
        Habit::DatesAnew => _ = lines.splice(1..1, ["age: 0".to_owned(), now]),
        Habit::DatesTwice => lines.insert(1, now),
        _ => {}
    }
    format!("{}\r\n\r\n{body}", lines.join("\r\n")).into_bytes()
}

async fn send_stray(to: Arc<Mutex<OwnedWriteHalf>>, after: Duration) {
    sleep(after).await;
    let head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json";
    let stray = format!("{head}\r\ncontent-length: {}\r\n\r\n{STRAY}", STRAY.len());
    let _may_be_closed_by_then = to.lock().await.write_all(stray.as_bytes()).await;
}

/// A worker that a busy machine holds up sends all the same, and once.
const PATIENT: [(&str, &str); 4] = [
    ("SEND_WINDOW", "10s"),
    ("CLAIM_LEASE", "13s"),
    ("READ_BACK_WINDOW", "30s"),
    ("READ_BACK_DEADLINE", "2m"),
];

/// A fifth of 600 updates once took such an answer for their own, and ended as rejected.
#[test]
fn an_answer_that_nobody_asked_for_is_nobodys() {
    world(async |world| {
        world.declare_topology().await;
        // An answer is believed from a quarter of that time on: longer than a busy machine holds one up.
        let slow = json!({ "match": { "method": "PATCH" }, "fault": { "delay_before_ms": 6_000 } });
        world.add_rule(slow).await;
        let (_gateway, base_url, answers) = start_gateway(&world, Habit::SecondAnswers).await;
        let jobs = world.enqueue_jobs(LEARNED_BY + sized(150, 600), &[]).await;
        // Jobs are opened ahead, so that a connection is used again at once.
        let settings = [
            ("DOLLARPE_BASE_URL", base_url.as_str()),
            ("BREAKER_FAILURES", "10000"),
            ("REQUEST_TIMEOUT", "15s"),
            ("CLAIM_LEASE", "25s"),
            ("READ_BACK_WINDOW", "60s"),
            ("CONCURRENCY", "64"),
            ("PREFETCH", "192"),
        ];
        let worker = world.start_worker_with(&[&PATIENT[..], &settings].concat());
        world.wait_for_ended(jobs.len()).await;
        println!(
            "{} jobs, {} answers that nobody asked for, {} attempts out of step",
            jobs.len(),
            answers.load(Ordering::Relaxed).saturating_sub(LEARNED_BY) / 3,
            world.count("select count(*) from attempt where detail = 'out_of_step'").await
        );
        assert_eq!(world.count("select count(*) from submission where state = 'rejected'").await, 0);
        assert!(worker.log().contains("all connections are replaced"), "nothing was out of step");
        world.check_nothing_lost_or_spent_twice(&jobs).await;
    });
}

/// gunicorn's default. Twelve of forty were once of unknown outcome.
#[test]
fn a_server_that_ends_idle_connections_after_two_seconds_loses_no_update() {
    world(async |world| {
        world.declare_topology().await;
        let keep_alive = Duration::from_secs(2);
        let (_gateway, base_url, _) = start_gateway(&world, Habit::EndsIdle(keep_alive)).await;
        let _worker = world.start_worker_with(&[&PATIENT[..], &[("DOLLARPE_BASE_URL", &base_url)]].concat());
        let mut jobs = Vec::new();
        for round in 0..6 {
            jobs.extend(world.publish_jobs(8).await);
            world.wait_for_accepted(jobs.len() as i64).await;
            // The next jobs come as the connections end.
            sleep(keep_alive - Duration::from_millis(30) + Duration::from_millis(10) * round).await;
        }
        world.check_nothing_lost_or_spent_twice(&jobs).await;
        assert_eq!(world.oracle("patches").await.len(), jobs.len());
        let otherwise = "select count(*) from attempt where verdict <> 'accepted'";
        assert_eq!(world.count(otherwise).await, 0);
    });
}

/// Both reads would say FAILED, as before the update that was applied: sent twice, by a replica that had
/// just started and did not know yet that the provider dates its answers.
#[test]
fn a_kept_read_proves_nothing_to_a_replica_that_has_just_started() {
    for habit in [Habit::Undates, Habit::DatesAnew, Habit::DatesTwice] {
        world(async |world| {
            world.declare_topology().await;
            let (_gateway, base_url, _) = start_gateway(&world, habit).await;
            let customer_id = Uuid::new_v4();
            world.set_customer(customer_id, json!({ "status": "FAILED" })).await;
            let kept = json!({
                "kind": "cached", "for_ms": 600_000, "older_by_s": 30, "with_age": matches!(habit, Habit::DatesAnew),
            });
            let reads = json!({ "method": "GET", "customer_id": customer_id });
            world.add_rule(json!({ "match": reads, "fault": { "answer": kept } })).await;
            let (job_id, _) = world.publish_job_for(customer_id).await;
            world.break_job(job_id, json!({ "answer": { "kind": "hang" } })).await;
            // The first read, before the update, is what is kept.
            let settings = [
                ("DOLLARPE_BASE_URL", base_url.as_str()),
                ("BASELINE_READ", "true"),
                ("READ_BACK_DEADLINE", "20s"),
            ];
            let _worker = world.start_worker_with(&settings);
            world.wait_for_state(job_id, &["needs_review"]).await;
            let mut seen = world.observations(job_id).await;
            seen.retain(|seen| seen.purpose == "read_back");
            assert!(
                !seen.is_empty() && seen.iter().all(|seen| seen.error.as_deref() == Some("stale_answer")),
                "{seen:?}"
            );
            assert_eq!((world.count_patches(job_id).await, world.count_updates(job_id).await), (1, 1));
        });
    }
}

/// A page in place of the provider's answer, dated by a clock that is not the provider's: reads that are
/// dated right would look older than they are.
#[test]
fn a_gateways_page_tells_nothing_of_the_providers_clock() {
    world(async |world| {
        world.declare_topology().await;
        let job_id = world.publish_job().await;
        let ahead = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(40));
        let page = json!({
            "kind": "respond", "status": 504, "headers": { "date": ahead }, "body": "<html>Gateway timeout</html>",
        });
        world.break_job(job_id, json!({ "answer": page })).await;
        let _worker = world.start_worker();
        world.wait_for_applied(job_id).await;
        let seen = world.observations(job_id).await;
        assert!(seen.iter().all(|seen| seen.error.is_none()), "{seen:?}");
        assert_eq!(world.count_patches(job_id).await, 1);
    });
}
