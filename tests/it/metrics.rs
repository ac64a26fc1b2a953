//! What `GET /metrics` says agrees with the provider and the tables; `/livez` and `/readyz` tell the
//! truth while a part is away; and nothing that was entered is in any of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use kyc_worker::metrics::{METRICS, Standing};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use uuid::Uuid;

use crate::harness::{WorkerProcess, World, world};

pub(crate) const LISTEN: (&str, &str) = ("METRICS_LISTEN", "127.0.0.1:0");

/// Every series that a replica has, by the name of its samples: the values of each label.
type Catalogue = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

pub(crate) fn catalogue() -> Catalogue {
    METRICS.take_fleet([].into_iter(), SystemTime::UNIX_EPOCH, Duration::ZERO);
    let text = METRICS.encode(&Standing::default()).expect("a text");
    let mut catalogue = Catalogue::new();
    for sample in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, labels) = match sample.split_once('{') {
            Some((name, rest)) => (name, rest.split_once("} ").expect("labels that end").0),
            None => (sample.split_once(' ').expect("a value").0, ""),
        };
        let known = catalogue.entry(name.to_owned()).or_default();
        for label in labels.split(',').filter(|label| !label.is_empty()) {
            let (label, value) = label.split_once('=').expect("a value");
            known.entry(label.to_owned()).or_default().insert(value.trim_matches('"').to_owned());
        }
    }
    catalogue
}

/// The metrics of a PromQL expression that are ours, each with its matchers.
fn selectors(expression: &str) -> Vec<(&str, &str)> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let (mut found, mut rest) = (Vec::new(), expression);
    while let Some(begin) = rest.find(is_name) {
        let (name, after) =
            rest[begin..].split_at(rest[begin..].find(|c| !is_name(c)).unwrap_or(rest.len() - begin));
        rest = after;
        if !["kyc_", "kyc:", "process_"].iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let matchers = after.strip_prefix('{').and_then(|after| after.split_once('}'));
        found.push((name, matchers.map_or("", |(matchers, _)| matchers)));
        rest = matchers.map_or(after, |(_, after)| after);
    }
    found
}

/// Fails unless each metric, label and value that an expression names is there: in `catalogue`, or, of
/// metrics, among the `recorded`.
pub(crate) fn check_names(what: &str, expression: &str, catalogue: &Catalogue, recorded: &[String]) {
    // Prometheus adds two.
    let mut labels = BTreeSet::from(["instance", "job"]);
    for (metric, matchers) in selectors(expression) {
        // Prometheus' own, of each process that it scrapes.
        if metric == "up" || recorded.iter().any(|name| name == metric) {
            continue;
        }
        let known = catalogue.get(metric).unwrap_or_else(|| panic!("{what}: there is no {metric}"));
        labels.extend(known.keys().map(String::as_str));
        for matcher in matchers.split(',').map(str::trim).filter(|matcher| !matcher.is_empty()) {
            let (label, value) = matcher.split_once(['=', '!']).expect("a matcher");
            let values = known.get(label).unwrap_or_else(|| panic!("{what}: {metric} has no label {label}"));
            for value in value.trim_matches(['=', '~', '"']).split('|') {
                assert!(values.contains(value), "{what}: {metric} has no {label} {value}");
            }
        }
    }
    for keyword in ["by (", "on (", "group_left ("] {
        for list in expression.split(keyword).skip(1).filter_map(|rest| rest.split(')').next()) {
            for label in list.split(", ") {
                assert!(labels.contains(label), "{what}: nothing has a label {label}");
            }
        }
    }
}

/// Where the worker listens, as its log says.
pub(crate) async fn address(world: &World, worker: &WorkerProcess) -> String {
    let told = async || {
        let log = worker.log();
        let line = log.lines().find(|line| line.contains("metrics and probes are answered"))?;
        let line: Value = serde_json::from_str(line).ok()?;
        Some(line["address"].as_str()?.to_owned())
    };
    world.wait_for("the address of the metrics", told).await
}

#[expect(clippy::disallowed_methods, reason = "the worker's own answer, which a test bounds")]
async fn ask(world: &World, address: &str, path: &str) -> (u16, String) {
    let answer = world.http.get(format!("http://{address}{path}")).send().await.expect("it answers");
    (answer.status().as_u16(), answer.text().await.expect("a text"))
}

/// Waits until a probe answers with `status`, and says `text`.
async fn says(world: &World, address: &str, path: &str, status: u16, text: &str) {
    world
        .wait_for(text, async || {
            let (found, said) = ask(world, address, path).await;
            (found == status && said.contains(text)).then_some(())
        })
        .await;
}

/// The values of one metric that are not 0, by their labels.
fn values(text: &str, metric: &str) -> BTreeMap<String, u64> {
    let lines = text.lines().filter_map(|line| line.strip_prefix(metric)?.strip_prefix('{'));
    let value = |line: &str| {
        let (labels, rest) = line.split_once("} ")?;
        let value: f64 = rest.split(' ').next()?.parse().ok()?;
        Some((labels.to_owned(), value.round().abs()))
    };
    let found = lines.filter_map(value).filter(|(_, value)| *value > 0.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts of a test")]
    found.map(|(labels, value)| (labels, value as u64)).collect()
}

/// The same, as a table tells it: each row is the labels and a count.
async fn tabled(world: &World, query: &'static str) -> BTreeMap<String, u64> {
    let rows: Vec<(String, i64)> =
        sqlx::query_as(query).fetch_all(&world.pool).await.expect("the database answers");
    rows.into_iter().map(|(labels, count)| (labels, count.unsigned_abs())).collect()
}

const ATTEMPTS: &str = r#"
    select format('verdict="%s",detail="%s"', verdict, detail), count(*)
    from attempt group by verdict, detail"#;

const ENDED: &str = r#"
    select format('state="%s",reason_code="%s"', state, reason_code), count(*)
    from submission where state not in ('waiting', 'submitting', 'unknown', 'invalid')
    group by state, reason_code"#;

#[test]
fn counters_agree_with_the_provider_and_the_tables() {
    world(async |world| {
        world.declare_topology().await;
        let worker = world.start_worker_with(&[LISTEN, ("RETRY_MAX_ATTEMPTS", "2")]);
        let address = address(&world, &worker).await;
        let respond = |status: u16, body: &str| json!({ "answer": { "kind": "respond", "status": status, "body": body } });
        let refused = r#"{"status":false,"message":"KYC already in use"}"#;
        let mut jobs = world.publish_jobs(20).await;
        for (status, body) in
            [(409, refused), (409, refused), (429, "slow down"), (500, "oops"), (500, "oops")]
        {
            jobs.push(world.publish_broken_job(respond(status, body)).await);
        }
        // Three jobs of one customer: the newest is accepted, or ends the others.
        let customer = Uuid::new_v4();
        for seconds_ago in [30, 20, 10] {
            jobs.push(world.publish_job_asked(customer, seconds_ago).await);
        }
        world.wait_for_ended(jobs.len()).await;
        world.publish(Some(Uuid::new_v4()), b"no job").await;
        world.publish_job_named(Uuid::new_v4(), jobs[0]).await;
        world.wait_for_no_delivery().await;

        let (attempts, ended) = (tabled(&world, ATTEMPTS).await, tabled(&world, ENDED).await);
        let agrees = async || {
            let (status, text) = ask(&world, &address, "/metrics").await;
            let is_so = status == 200
                && values(&text, "kyc_attempts_total") == attempts
                && values(&text, "kyc_jobs_ended_total") == ended;
            is_so.then_some(text)
        };
        let text = world.wait_for("counters that agree with the tables", agrees).await;
        let exchanged: u64 = values(&text, "kyc_provider_request_duration_seconds_count")
            .into_iter()
            .filter(|(labels, _)| labels.contains(r#"call="update""#))
            .map(|(_, count)| count)
            .sum();
        assert_eq!(exchanged, world.oracle("patches").await.len() as u64);
        let deliveries = values(&text, "kyc_deliveries_total");
        let count = |receipt: &str| deliveries.get(&format!("receipt=\"{receipt}\"")).copied();
        assert_eq!((count("invalid"), count("conflict")), (Some(1), Some(1)), "{deliveries:?}");
        assert_eq!(deliveries.values().sum::<u64>(), jobs.len() as u64 + 2);
        assert!(values(&text, "kyc_read_backs_total").values().sum::<u64>() >= 2);
        let exemplars: Vec<Uuid> =
            text.split("# {job_id=\"").skip(1).map(|rest| rest[..36].parse().expect("a job's id")).collect();
        assert!(
            !exemplars.is_empty() && exemplars.iter().all(|job_id| jobs.contains(job_id)),
            "{exemplars:?}"
        );
        assert!(!text.contains(&customer.to_string()), "no customer is in any metric");
        assert!(text.ends_with("# EOF\n"));
    });
}

#[test]
fn a_replica_whose_parts_are_away_is_alive_and_not_ready() {
    world(async |world| {
        world.declare_topology().await;
        let (database, database_url) = world.relay_to_database().await;
        let (broker, amqp_url) = world.relay_to_broker().await;
        database.refuse().await;
        let urls = [("DATABASE_URL", database_url.as_str()), ("AMQP_URL", amqp_url.as_str())];
        let worker = world.start_worker_with(&[&[LISTEN][..], &urls].concat());
        let address = address(&world, &worker).await;
        says(&world, &address, "/livez", 200, "alive").await;
        says(&world, &address, "/readyz", 503, "the worker starts").await;
        database.accept().await;
        says(&world, &address, "/readyz", 200, "ready").await;

        world.say(&["pause", "--by", "ana", "--note", "a test"]).await;
        says(&world, &address, "/readyz", 503, "paused for operator").await;
        let (_, text) = ask(&world, &address, "/metrics").await;
        assert_eq!(values(&text, "kyc_intake_paused").get(r#"reason="operator""#), Some(&1));
        world.say(&["resume", "--by", "ana", "--note", "it is over"]).await;
        says(&world, &address, "/readyz", 200, "ready").await;

        broker.refuse().await;
        broker.cut();
        says(&world, &address, "/readyz", 503, "no session with the broker").await;
        says(&world, &address, "/livez", 200, "alive").await;
        broker.accept().await;
        says(&world, &address, "/readyz", 200, "ready").await;
    });
}

#[test]
fn an_address_that_is_taken_ends_the_start_and_says_so() {
    world(async |world| {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("an address").to_string();
        let output = world.run(&["run"], &[("METRICS_LISTEN", &address)]).await;
        assert!(!output.status.success());
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains(&format!("METRICS_LISTEN: cannot listen at {address}")), "{said}");
    });
}

/// The connections that are accepted at an address of this machine, by their inodes. One that waits in
/// the kernel's queue has none yet.
fn accepted(address: SocketAddr) -> BTreeSet<String> {
    let sockets = fs::read_to_string("/proc/net/tcp").expect("the kernel tells");
    let port = format!(":{:04X}", address.port());
    let lines = sockets.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let established = lines.filter(|fields| fields[1].ends_with(&port) && fields[3] == "01");
    established.map(|fields| fields[9].to_owned()).filter(|inode| inode != "0").collect()
}

#[test]
fn silent_connections_are_few_at_once_end_and_keep_nobody_waiting() {
    world(async |world| {
        let own = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let own_address = own.local_addr().expect("an address");
        let _client = TcpStream::connect(own_address).await.expect("the kernel takes it");
        let _held = own.accept().await.expect("a connection");
        assert_eq!(accepted(own_address).len(), 1, "a connection that is held counts");

        let worker = world.start_worker_with(&[LISTEN]);
        let address = address(&world, &worker).await;
        let mut silent = Vec::new();
        for _ in 0..40 {
            silent.push(TcpStream::connect(&address).await.expect("the kernel takes it"));
        }
        let address: SocketAddr = address.parse().expect("an address");
        let mut all_end = pin!(async {
            assert_eq!(
                ask(&world, &address.to_string(), "/livez").await.0,
                200,
                "it is answered behind them"
            );
            for mut connection in silent {
                let read = connection.read(&mut [0]).await;
                assert!(!matches!(read, Ok(1..)), "nobody asked for {read:?}");
            }
        });
        let mut held_max = 0;
        while timeout(Duration::from_millis(20), &mut all_end).await.is_err() {
            // The list is read in pieces: what is on two of them was held between the two.
            held_max = held_max.max(accepted(address).intersection(&accepted(address)).count());
        }
        assert!(held_max <= 32, "{held_max} at once");
    });
}
