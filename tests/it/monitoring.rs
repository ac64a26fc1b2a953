//! A Prometheus that watches two replicas by the files that are shipped: it has what every panel shows,
//! it tells of an outage, and what it keeps of a bad answer leads to the job.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;
use url::Url;

use crate::dashboards;
use crate::harness::{WorkerProcess, World, world_with};
use crate::metrics::{LISTEN, address};
use crate::verification::world_that_verifies_in;

/// Every alert waits by so many times less, and figures are asked for by the second.
const FASTER: u32 = 200;
const STEP: &str = "1s";

/// What a panel's rates are over: all that a test does.
const SPAN: &str = "10m";

struct Prometheus<'a> {
    world: &'a World,
    address: String,
    // Ends before its directory goes.
    _process: WorkerProcess,
    _directory: TempDir,
}

fn shipped(file: &str) -> Value {
    let path = format!("{}/deploy/monitoring/{file}", env!("CARGO_MANIFEST_DIR"));
    serde_saphyr::from_str(&fs::read_to_string(path).expect("the file")).expect("YAML")
}

/// The rules that are shipped, in a hurry.
fn hurried_rules() -> Value {
    let mut rules = shipped("rules.yaml");
    let groups = rules["groups"].as_array_mut().expect("groups");
    for rule in groups.iter_mut().flat_map(|group| group["rules"].as_array_mut().expect("rules")) {
        if let Some(patience) = rule["for"].as_str() {
            let patience = humantime::parse_duration(patience).expect("a duration") / FASTER;
            rule["for"] = json!(format!("{}ms", patience.as_millis()));
        }
    }
    rules
}

impl<'a> Prometheus<'a> {
    async fn start(world: &'a World, replicas: &[&str]) -> Self {
        let mut config = shipped("prometheus.yaml");
        // JSON is YAML, too.
        let rules = world.write_file("rules.yaml", hurried_rules().to_string().as_bytes());
        config["rule_files"] = json!([rules]);
        config["global"] = json!({ "scrape_interval": STEP, "evaluation_interval": STEP });
        let scraped = config["scrape_configs"][0].as_object_mut().expect("a scrape");
        scraped.remove("dns_sd_configs").expect("compose's workers");
        scraped.insert("static_configs".to_owned(), json!([{ "targets": replicas }]));
        let config = world.write_file("prometheus.yaml", config.to_string().as_bytes());

        let directory = TempDir::new().expect("a directory");
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={config}"));
        command.arg(format!("--storage.tsdb.path={}", directory.path().display()));
        command.args(["--web.listen-address=127.0.0.1:0", "--enable-feature=exemplar-storage"]);
        let process = world.spawn(command);
        let told = async || {
            let log = process.log();
            let (_, rest) = log.split_once(r#"msg="Listening on" address="#)?;
            Some(rest.split_once('\n')?.0.to_owned())
        };
        let address = world.wait_for("the address of Prometheus", told).await;
        world.wait_for_log(&process, "Server is ready to receive web requests").await;
        Self { world, address, _process: process, _directory: directory }
    }

    #[expect(clippy::disallowed_methods, reason = "its own answer, which a test bounds")]
    async fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let url = format!("http://{}/api/v1/{path}", self.address);
        let url = Url::parse_with_params(&url, parameters).expect("a URL");
        let answer = self.world.http.get(url).send().await.expect("it answers");
        let answer: Value = answer.json().await.expect("JSON");
        assert_eq!(answer["status"], "success", "{parameters:?}: {answer}");
        answer["data"].clone()
    }

    /// The series of an expression, as they are now.
    async fn series(&self, query: &str) -> Vec<Value> {
        self.ask("query", &[("query", query)]).await["result"].as_array().expect("series").clone()
    }

    /// Waits until every rule was evaluated, and checks that each could be.
    async fn evaluates_every_rule(&self) {
        let health = async || {
            let groups = self.ask("rules", &[]).await["groups"].as_array().expect("groups").clone();
            let rules = groups.iter().flat_map(|group| group["rules"].as_array().expect("rules").clone());
            let rules: Vec<Value> = rules.collect();
            rules.iter().all(|rule| rule["health"] != "unknown").then_some(rules)
        };
        let rules = self.world.wait_for("an evaluation of every rule", health).await;
        let faulty: Vec<&Value> = rules.iter().filter(|rule| rule["health"] != "ok").collect();
        assert!(rules.len() > 20 && faulty.is_empty(), "{faulty:#?}");
    }

    /// Waits until an expression has a series with a number.
    async fn shows(&self, what: &str, query: &str) {
        let is_number = |series: &Value| {
            let value = series["value"][1].as_str().and_then(|value| value.parse::<f64>().ok());
            value.is_some_and(f64::is_finite)
        };
        let found = async || self.series(query).await.iter().any(is_number).then_some(());
        self.world.wait_for(&format!("{what}: {query}"), found).await;
    }
}

/// Gives the replicas every kind of work that a panel tells of.
async fn work(world: &World) -> usize {
    let jobs = world.enqueue_jobs(30, &[]).await.len();
    world.publish(None, b"no job").await;
    let refused = r#"{"status":false,"message":"KYC already in use"}"#;
    let faults = [(409, refused), (429, "slow down"), (500, "oops")];
    for (status, body) in faults {
        let answer = json!({ "kind": "respond", "status": status, "body": body });
        world.publish_broken_job(json!({ "answer": answer })).await;
    }
    jobs + faults.len()
}

#[test]
fn a_prometheus_shows_every_panel_tells_of_an_outage_and_leads_to_jobs() {
    world_with(world_that_verifies_in(1_000), async |world| {
        world.declare_topology().await;
        let (provider, base_url) = world.relay_to_provider().await;
        let settings = [
            LISTEN,
            ("DOLLARPE_BASE_URL", base_url.as_str()),
            ("RETRY_MAX_ATTEMPTS", "2"),
            // No sooner than READ_BACK_WINDOW.
            ("VERIFICATION_POLL_AFTER", "10s"),
        ];
        let replicas = [world.start_worker_with(&settings), world.start_worker_with(&settings)];
        let addresses = [address(&world, &replicas[0]).await, address(&world, &replicas[1]).await];
        let prometheus = Prometheus::start(&world, &addresses.each_ref().map(String::as_str)).await;
        prometheus.shows("both replicas", "count(kyc_build_info) == 2").await;

        let count = work(&world).await;
        world.wait_for_ended(count).await;

        provider.refuse().await;
        provider.cut();
        let waiting = world.publish_jobs(40).await;
        let firing = r#"ALERTS{alertname="KycProviderDown", alertstate="firing"}"#;
        prometheus.shows("the alert", firing).await;
        let pending =
            prometheus.series(r#"ALERTS{alertname="KycProviderDown", alertstate="pending"}[1h]"#).await;
        let fired = prometheus.series(&format!("{firing}[1h]")).await;
        let begun = |series: &[Value]| series[0]["values"][0][0].as_f64().expect("a time");
        assert!(begun(&pending) < begun(&fired), "{pending:?} {fired:?}");

        provider.accept().await;
        world.wait_for_all_accepted(&waiting).await;
        let over = async || prometheus.series(firing).await.is_empty().then_some(());
        world.wait_for("the end of the alert", over).await;

        prometheus.evaluates_every_rule().await;
        for panel in dashboards::METRICS.panels() {
            for query in panel.queries() {
                let query = query.replace("$__rate_interval", SPAN);
                prometheus.shows(panel.title, &query).await;
                if panel.has_exemplars() {
                    leads_to_jobs(&prometheus, panel.title, &query).await;
                }
            }
        }
    });
}

/// Asks for the exemplars of a panel as Grafana does, and shows a job of theirs.
async fn leads_to_jobs(prometheus: &Prometheus<'_>, title: &str, query: &str) {
    let asked = [("query", query), ("start", "0"), ("end", "9999999999")];
    let found = prometheus.ask("query_exemplars", &asked).await;
    let series = found.as_array().expect("series").iter();
    let exemplars: Vec<&Value> =
        series.flat_map(|series| series["exemplars"].as_array().expect("exemplars")).collect();
    let job_id = exemplars.first().map(|exemplar| exemplar["labels"]["job_id"].as_str().expect("a job"));
    let job_id = job_id.unwrap_or_else(|| panic!("{title} has no exemplar"));
    let story = prometheus.world.say(&["show", job_id]).await;
    assert!(story.contains(&format!("job {job_id}")), "{story}");
}
