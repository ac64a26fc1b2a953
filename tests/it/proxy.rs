//! The provider behind an egress proxy: what it lets through is done once, and what it refuses was
//! not sent.

use std::fs;
use std::process::{Child, Command, Stdio};

use dollarpe_sandbox::tls::{Authority, Front};
use serde_json::Value;
use tokio::net::TcpListener;
use uuid::Uuid;

use crate::harness::{PATIENT, WorkerProcess, World, wait_until_it_listens, world};
use crate::link_check::{Answer, Host, JPEG, ended, publish_linked};
use crate::own_services::free_port;

/// A tinyproxy that lets clients with the right credentials through to some ports.
struct TinyProxy {
    process: Child,
    port: u16,
    log: String,
}

/// Its password is pa55; a character may be escaped.
const CREDENTIALS: &str = "kyc:p%6155";

impl TinyProxy {
    async fn start(world: &World, to: &[u16]) -> Self {
        let port = free_port().expect("a port");
        let log = world.write_file(&format!("tinyproxy-{port}.log"), b"");
        let ports: String = to.iter().map(|port| format!("ConnectPort {port}\n")).collect();
        let settings = format!(
            "Port {port}\nListen 127.0.0.1\nTimeout 600\nAllow 127.0.0.1\nMaxClients 20\n\
             BasicAuth kyc pa55\n{ports}LogFile \"{log}\"\nLogLevel Connect\n"
        );
        let file = world.write_file(&format!("tinyproxy-{port}.conf"), settings.as_bytes());
        let mut process = Command::new("tinyproxy")
            .args(["-d", "-c", &file])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("tinyproxy is installed: make services");
        wait_until_it_listens(&mut process, port, || settings.clone()).await;
        Self { process, port, log }
    }

    fn url(&self, credentials: &str) -> String {
        format!("http://{credentials}@127.0.0.1:{}", self.port)
    }
}

impl Drop for TinyProxy {
    fn drop(&mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ends");
    }
}

/// The provider with TLS, and the settings that lead there.
struct Behind {
    _front: Front,
    port: u16,
    base_url: String,
    ca: String,
}

impl Behind {
    async fn new(world: &World, authority: &Authority) -> Self {
        let ca = world.write_file("ca.pem", authority.pem().as_bytes());
        let (front, base_url) = world.put_tls_before_provider(authority, "127.0.0.1").await;
        let port = front.address().port();
        Self { _front: front, port, base_url, ca }
    }

    /// With a proxy of the environment's that would be fatal, were it used.
    fn settings<'a>(&'a self, proxy: &'a str) -> Vec<(&'a str, &'a str)> {
        vec![
            ("DOLLARPE_BASE_URL", &self.base_url),
            ("DOLLARPE_CA_FILE", &self.ca),
            ("DOLLARPE_PROXY", proxy),
            ("HTTPS_PROXY", "http://127.0.0.1:1"),
            ("ALL_PROXY", "http://127.0.0.1:1"),
        ]
    }
}

fn authority() -> Authority {
    Authority::new().expect("an authority")
}

/// What `check` says of the provider.
async fn checked(world: &World, settings: &[(&str, &str)]) -> String {
    let output = world.run(&["check", "--json"], settings).await;
    let areas: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    areas.as_array().expect("areas").iter().find(|area| area["area"] == "provider").expect("it").to_string()
}

/// Checks that nothing of a job was sent while its attempts came to this, and that it is done once a
/// worker has the right proxy.
async fn waits_for_the_right_proxy(
    world: &World,
    mut worker: WorkerProcess,
    job_id: Uuid,
    verdict: &str,
    right: &[(&str, &str)],
) {
    let told = async || {
        let attempts = world.attempts(job_id).await;
        (attempts.iter().filter(|attempt| attempt.verdict.as_deref() == Some(verdict)).count() >= 2)
            .then_some(())
    };
    world.wait_for(&format!("two attempts that were {verdict}"), told).await;
    assert_eq!(world.count_patches(job_id).await, 0);
    // Or it would go on taking the job's attempts.
    worker.stop().await;
    let _worker = world.start_worker_with(right);
    world.check_nothing_lost_or_spent_twice(&[job_id]).await;
}

#[test]
fn a_proxy_leads_to_the_provider_over_plain_tcp_and_over_tls() {
    world(async |world| {
        world.declare_topology().await;
        let authority = authority();
        let behind = Behind::new(&world, &authority).await;
        let proxy = TinyProxy::start(&world, &[behind.port]).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let issued = authority.issue("127.0.0.1").expect("a certificate");
        let target = ([127, 0, 0, 1], proxy.port).into();
        let front = Front::start(listener, target, &issued).expect("TLS");
        for url in [proxy.url(CREDENTIALS), format!("https://{CREDENTIALS}@{}", front.address())] {
            let settings = behind.settings(&url);
            let said = checked(&world, &settings).await;
            assert!(!said.contains("\"wrong\"") && said.contains("answers"), "{said}");
            let jobs = world.publish_jobs(20).await;
            let mut worker = world.start_worker_with(&settings);
            world.check_nothing_lost_or_spent_twice(&jobs).await;
            worker.stop().await;
            assert!(!worker.log().contains("p%6155") && !worker.log().contains("pa55"), "{}", worker.log());
        }
        let log = fs::read_to_string(&proxy.log).expect("a log");
        assert!(log.contains(&format!("CONNECT 127.0.0.1:{}", behind.port)), "{log}");
    });
}

#[test]
fn a_proxy_that_does_not_know_us_is_told_by_its_setting_and_nothing_is_sent() {
    world(async |world| {
        world.declare_topology().await;
        let behind = Behind::new(&world, &authority()).await;
        let proxy = TinyProxy::start(&world, &[behind.port]).await;
        let (wrong, right) = (format!("http://127.0.0.1:{}", proxy.port), proxy.url(CREDENTIALS));
        let said = checked(&world, &behind.settings(&wrong)).await;
        assert!(said.contains("DOLLARPE_PROXY: the proxy at 127.0.0.1") && said.contains("(407)"), "{said}");
        let job_id = world.publish_job().await;
        let settings = [&behind.settings(&wrong)[..], &[("BREAKER_FAILURES", "3")]].concat();
        let worker = world.start_worker_with(&settings);
        world.wait_for_log(&worker, "intake paused until a person has fixed this").await;
        assert!(worker.log().contains("check DOLLARPE_PROXY"), "{}", worker.log());
        let attempts = world.attempts(job_id).await;
        assert!(attempts.iter().any(|attempt| attempt.detail.as_deref() == Some("proxy_refused")));
        waits_for_the_right_proxy(&world, worker, job_id, "misconfigured", &behind.settings(&right)).await;
    });
}

#[test]
fn what_a_proxy_does_not_let_through_or_cannot_reach_was_not_sent() {
    world(async |world| {
        world.declare_topology().await;
        let behind = Behind::new(&world, &authority()).await;
        let proxy = TinyProxy::start(&world, &[behind.port]).await;
        let right = proxy.url(CREDENTIALS);
        // It allows another port; it is not there.
        let strict = TinyProxy::start(&world, &[free_port().expect("a port")]).await;
        let gone = format!("http://127.0.0.1:{}", free_port().expect("a port"));
        for (wrong, fault) in [(strict.url(CREDENTIALS), "opens no tunnel"), (gone, "no proxy answers at")] {
            let said = checked(&world, &behind.settings(&wrong)).await;
            assert!(said.contains("DOLLARPE_PROXY: ") && said.contains(fault), "{said}");
            let job_id = world.publish_job().await;
            let settings = [&behind.settings(&wrong)[..], &[("BREAKER_FAILURES", "1000")]].concat();
            let worker = world.start_worker_with(&settings);
            waits_for_the_right_proxy(&world, worker, job_id, "not_sent", &behind.settings(&right)).await;
        }
    });
}

/// It takes the connection and says nothing: the send window closes before the update has left.
#[test]
fn a_proxy_that_says_nothing_is_not_waited_for_past_the_send_window() {
    world(async |world| {
        world.declare_topology().await;
        let behind = Behind::new(&world, &authority()).await;
        let proxy = TinyProxy::start(&world, &[behind.port]).await;
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let wrong = format!("http://{}", silent.local_addr().expect("an address"));
        let job_id = world.publish_job().await;
        let short = [("SEND_WINDOW", "500ms"), ("REQUEST_TIMEOUT", "2s"), ("BREAKER_FAILURES", "1000")];
        let worker = world.start_worker_with(&[&behind.settings(&wrong)[..], &short].concat());
        waits_for_the_right_proxy(
            &world,
            worker,
            job_id,
            "not_sent",
            &behind.settings(&proxy.url(CREDENTIALS)),
        )
        .await;
    });
}

/// The proxy resolves names then, so what they lead to is its to judge; a literal address is still refused.
#[test]
fn links_are_fetched_through_the_proxy_too() {
    world(async |world| {
        world.declare_topology().await;
        let authority = authority();
        let behind = Behind::new(&world, &authority).await;
        let (named, literal) =
            (Host::start(&authority, "localhost").await, Host::start(&authority, "127.0.0.1").await);
        let proxy = TinyProxy::start(&world, &[behind.port, named.port, literal.port]).await;
        let url = format!("http://{CREDENTIALS}@localhost:{}", proxy.port);
        let checked = [("LINK_CHECK", "true"), ("LINK_CHECK_CA_FILE", &behind.ca)];
        let worker = world.start_worker_with(&[&behind.settings(&url)[..], &checked, &PATIENT].concat());
        let mut jobs = Vec::new();
        for host in [&named, &literal] {
            let job_id = Uuid::new_v4();
            let [front, back] = ["front.jpg", "back.jpg"]
                .map(|file| host.answer(&format!("{job_id}/{file}"), &[Answer::Give(JPEG)]));
            jobs.push(publish_linked(&world, job_id, &front, &back).await);
        }
        world.check_nothing_lost_or_spent_twice(&jobs[..1]).await;
        assert_eq!(named.count_asked(&format!("{}/front.jpg", jobs[0])), 1);
        let refused = ended(&world, jobs[1]).await;
        assert_eq!(refused.reason_code.as_deref(), Some("link_refused"), "{refused:?}");
        let log = fs::read_to_string(&proxy.log).expect("a log");
        assert!(log.contains(&format!("CONNECT localhost:{}", named.port)), "{log}");
        assert!(!log.contains(&format!(":{}", literal.port)), "{log}");
        assert!(!worker.log().contains("pa55"), "{}", worker.log());
    });
}

#[test]
fn a_proxy_is_refused_where_the_provider_is_spoken_to_in_plain_text() {
    world(async |world| {
        let refused = world.run(&["run"], &[("DOLLARPE_PROXY", "http://proxy.example:3128")]).await;
        assert_eq!(refused.status.code(), Some(2));
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains("DOLLARPE_PROXY: leads to an https DOLLARPE_BASE_URL alone"), "{said}");
    });
}
