//! Who asks the console: as the proxy says, and never as a browser does. nginx runs with the configuration
//! that docs/console.md has, before a real console; a stand-in answers as oauth2-proxy does.

use std::fs;
use std::process::{Child, Command, Stdio};

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use dollarpe_sandbox::tls::Authority;
use reqwest::header::{HOST, HeaderName, HeaderValue, LOCATION};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::harness::{WorkerProcess, World, wait_until_it_listens, world};
use crate::own_services::{free_port, program};

/// As `openssl rand -base64 32` makes one.
const SECRET: &str = "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA=";

const NAME: &str = "kyc.example.com";

fn read(name: &str) -> String {
    let path = format!("{}/{name}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The configuration of nginx that people read.
fn documented() -> String {
    let document = read("docs/console.md");
    let (_, rest) = document.split_once("```nginx\n").expect("nginx's configuration");
    rest.split_once("```").expect("its end").0.to_owned()
}

/// The text with other places in it, each of which must be there.
fn with(text: &str, places: &[(&str, String)]) -> String {
    places.iter().fold(text.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from} is not in {text}");
        text.replace(from, to)
    })
}

/// A console that listens on loopback.
pub(crate) struct Console {
    pub process: WorkerProcess,
    pub port: u16,
}

impl Console {
    pub async fn start(world: &World, settings: &[(&str, &str)]) -> Self {
        let port = free_port().expect("a port");
        let mut command = world.command();
        command.arg("console").env("CONSOLE_LISTEN", format!("127.0.0.1:{port}"));
        command.envs(settings.iter().copied());
        let process = world.spawn(command);
        world.wait_for_log(&process, "the console answers").await;
        Self { process, port }
    }

    /// One that believes its proxy alone, which is reached at `url`.
    async fn start_behind_proxy(world: &World, url: &str) -> Self {
        let settings =
            [("CONSOLE_LOGIN", "proxy"), ("CONSOLE_PROXY_SECRET", SECRET), ("CONSOLE_PUBLIC_URL", url)];
        Self::start(world, &settings).await
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

/// An nginx with these servers, as one process.
struct Nginx {
    process: Child,
}

impl Nginx {
    async fn start(world: &World, port: u16, servers: &str) -> Self {
        let file = |name: &str| world.directory(&format!("nginx-{port}-{name}"));
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {};\n", file(kind)))
            .concat();
        let configuration = format!(
            "daemon off;\nmaster_process off;\npid {};\nevents {{}}\nhttp {{\naccess_log off;\n{temporary}{servers}\n}}\n",
            file("pid")
        );
        let path = world.write_file(&format!("nginx-{port}.conf"), configuration.as_bytes());
        let errors = file("errors");
        let mut process = Command::new(program("nginx").expect("make services installs it"))
            .args(["-c", &path, "-e", &errors])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx starts");
        let said = || format!("{}: {configuration}", fs::read_to_string(&errors).unwrap_or_default());
        wait_until_it_listens(&mut process, port, said).await;
        Self { process }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ends");
    }
}

/// Answers as oauth2-proxy does with `--set-xauthrequest`, and returns its port: a session is a cookie that
/// names somebody.
async fn start_login() -> u16 {
    async fn auth(headers: HeaderMap) -> Response {
        let cookie = headers.get("cookie").map_or("", |cookie| cookie.to_str().expect("a text"));
        let (email, groups) = ("x-auth-request-email", "x-auth-request-groups");
        match cookie {
            "session=ana" => {
                (StatusCode::ACCEPTED, [(email, "ana@example.com"), (groups, "staff,kyc-viewer")])
                    .into_response()
            }
            "session=alone" => (StatusCode::ACCEPTED, [(email, "alone@example.com")]).into_response(),
            "session=nameless" => (StatusCode::ACCEPTED, [(groups, "kyc-viewer")]).into_response(),
            _ => StatusCode::UNAUTHORIZED.into_response(),
        }
    }
    async fn sign_in(headers: HeaderMap) -> Response {
        let back = headers["x-auth-request-redirect"].to_str().expect("a text");
        let place = format!("https://login.example.com/authorize?state={back}");
        (StatusCode::FOUND, [("location", place)]).into_response()
    }
    serve(Router::new().route("/oauth2/auth", get(auth)).route("/oauth2/sign_in", get(sign_in))).await
}

/// Answers on a free port, until the test ends.
async fn serve(router: Router) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move { axum::serve(listener, router).await });
    port
}

/// nginx as the document has it, and a browser that reaches it by its name.
struct Front {
    _nginx: Nginx,
    browser: reqwest::Client,
    url: String,
}

impl Front {
    /// Before whatever answers at `console`, which is told where people reach it.
    async fn start(world: &World, port: u16, console: u16) -> Self {
        let authority = Authority::new().expect("an authority");
        let issued = authority.issue(NAME).expect("a certificate");
        world.write_file("kyc.example.com.pem", issued.pem().as_bytes());
        world.write_file("kyc.example.com.key", issued.key_pem().as_bytes());
        let given =
            "echo \"proxy_set_header X-Console-Secret \\\"$(cat proxy-secret)\\\";\" >proxy-secret.conf";
        assert!(read("docs/console.md").contains(given), "the document makes another file: {given}");
        let secret = format!("proxy_set_header X-Console-Secret \"{SECRET}\";\n");
        let secret = world.write_file("proxy-secret.conf", secret.as_bytes());
        let servers = with(
            &documented(),
            &[
                ("listen 443 ssl;", format!("listen 127.0.0.1:{port} ssl;")),
                ("127.0.0.1:8080", format!("127.0.0.1:{console}")),
                ("127.0.0.1:4180", format!("127.0.0.1:{}", start_login().await)),
                ("/etc/nginx/secrets/", secret.trim_end_matches("proxy-secret.conf").to_owned()),
            ],
        );
        let nginx = Nginx::start(world, port, &servers).await;
        let certificate = reqwest::Certificate::from_pem(authority.pem().as_bytes()).expect("a certificate");
        #[expect(clippy::disallowed_methods, reason = "a test's browser, which follows nothing")]
        let browser = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .tls_certs_merge([certificate])
            .resolve(NAME, ([127, 0, 0, 1], port).into())
            .build()
            .expect("a client");
        Self { _nginx: nginx, browser, url: public_url(port) }
    }

    /// Asks as whoever has this session, with whatever else a browser may send.
    async fn ask(&self, session: &str, path: &str, claims: Headers<'_>) -> Answer {
        let cookie = format!("session={session}");
        let headers = [claims, &[("Cookie", cookie.as_str())]].concat();
        ask(&self.browser, &format!("{}{path}", self.url), &headers).await
    }
}

fn public_url(port: u16) -> String {
    format!("https://{NAME}:{port}")
}

type Headers<'a> = &'a [(&'a str, &'a str)];

#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

/// Asks with these headers, however often one is among them.
#[expect(clippy::disallowed_methods, reason = "the console's own answer, which a test bounds")]
pub(crate) async fn ask(client: &reqwest::Client, url: &str, headers: Headers<'_>) -> Answer {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
        map.append(name, HeaderValue::from_str(value).expect("a value"));
    }
    let answer = client.get(url).headers(map).send().await.unwrap_or_else(|error| panic!("{url}: {error:?}"));
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    Answer { status, headers, text: answer.text().await.expect("a text") }
}

/// As a page says who sees it.
fn visitor(name: &str, roles: &str) -> String {
    format!("{name} <span class=\"quiet\">({roles})</span>")
}

/// What a browser may say of itself: each of these counts for nothing.
const CLAIMS: [Headers<'static>; 11] = [
    &[],
    &[("X-Forwarded-Email", "root@example.com")],
    &[("X-Forwarded-Email", "root@example.com"), ("X-FORWARDED-EMAIL", "other@example.com")],
    &[("X-Forwarded-Groups", "kyc-operator,kyc-reviewer,kyc-auditor")],
    &[("X-Forwarded-Groups", "kyc-operator"), ("X-Forwarded-Groups", "kyc-auditor")],
    &[("X-Console-Secret", "a guess"), ("X-Forwarded-Email", "root@example.com")],
    &[
        ("X_Forwarded_Email", "root@example.com"),
        ("X_Forwarded_Groups", "kyc-auditor"),
        ("X_Console_Secret", "a"),
    ],
    &[("Connection", "X-Forwarded-Email, X-Forwarded-Groups, X-Console-Secret")],
    &[("X-Auth-Request-Email", "root@example.com"), ("X-Auth-Request-Groups", "kyc-auditor")],
    &[("X-Forwarded-Host", "evil.example.com"), ("X-Forwarded-Uri", "/livez"), ("X-Original-URI", "/livez")],
    &[("Authorization", "Basic cm9vdDpyb290"), ("Remote-User", "root"), ("X-Remote-User", "root")],
];

#[test]
fn behind_nginx_as_the_document_has_it_somebody_is_whom_the_login_knows() {
    world(async |world| {
        let port = free_port().expect("a port");
        let console = Console::start_behind_proxy(&world, &public_url(port)).await;
        let front = Front::start(&world, port, console.port).await;
        for claims in CLAIMS {
            let page = front.ask("ana", "/", claims).await;
            assert_eq!(page.status, 200, "{claims:?}: {}", page.text);
            assert!(page.text.contains(&visitor("ana@example.com", "viewer")), "{claims:?}: {}", page.text);
            // Who has no session is led to the login, and back from there.
            let stranger = front.ask("nobody", "/find?q=a", claims).await;
            assert_eq!(stranger.status, 302, "{claims:?}: {}", stranger.text);
            let login = stranger.headers[LOCATION].to_str().expect("a text");
            assert_eq!(login, "https://login.example.com/authorize?state=/find?q=a");
            // Whom the login gives no name or no group, a browser cannot either.
            let nameless = front.ask("nameless", "/index.json", claims).await;
            assert_eq!(nameless.status, 401, "{claims:?}: {}", nameless.text);
            assert!(nameless.text.contains("x-forwarded-email names nobody"), "{}", nameless.text);
            let alone = front.ask("alone", "/index.json", claims).await;
            assert_eq!(alone.status, 403, "{claims:?}: {}", alone.text);
            assert!(alone.text.contains("x-forwarded-groups says: nothing"), "{}", alone.text);
        }
        // The question that nginx asks the login is nobody else's.
        assert_eq!(front.ask("ana", "/oauth2/auth", &[]).await.status, 404);
        // Probes need no session.
        for path in ["/livez", "/readyz"] {
            assert_eq!(front.ask("nobody", path, &[]).await.status, 200, "{path}");
        }
        // Another name that leads to our address.
        for host in ["evil.example.com", "kyc.example.com.evil.example.com", "10.0.0.1"] {
            let page = front.ask("ana", "/index.json", &[(HOST.as_str(), host)]).await;
            assert_eq!(page.status, 421, "{host}: {}", page.text);
            assert!(page.text.contains(host) && page.text.contains("CONSOLE_PUBLIC_URL"), "{}", page.text);
        }

        let customer_id = Uuid::new_v4().to_string();
        let signed = ["--used", "1", "--by", "ben", "--note", "made by hand"];
        world.say(&[&["budget", "set", "--customer", &customer_id], &signed[..]].concat()).await;
        let page = front.ask("ana", &format!("/customers/{customer_id}"), &[]).await;
        assert_eq!(page.status, 200, "{}", page.text);
        let seen =
            "select count(*) from access_record where by = 'ana@example.com' and customer_id is not null";
        assert_eq!(world.count(seen).await, 1);
        let log = console.process.log();
        assert!(!log.contains(&customer_id) && !log.contains(SECRET), "{log}");
    });
}

/// Of each request that is let through: one name, the groups and the secret of the proxy, and what the console
/// must have of the browser.
#[test]
fn nginx_as_the_document_has_it_takes_away_what_a_browser_claims_and_leaves_what_proves_a_form() {
    world(async |world| {
        let (passed, mut received) = mpsc::unbounded_channel();
        let fallback = async move |request: Request| passed.send(request.headers().clone()).expect("a test");
        let console = serve(Router::new().fallback(fallback)).await;
        let port = free_port().expect("a port");
        let front = Front::start(&world, port, console).await;
        for claims in CLAIMS {
            let of_browser = [("Origin", "https://evil.example.com"), ("Sec-Fetch-Site", "cross-site")];
            let answer = front.ask("ana", "/pause", &[claims, &of_browser].concat()).await;
            assert_eq!(answer.status, 200, "{claims:?}");
            let headers = received.recv().await.expect("a request");
            let host = format!("{NAME}:{port}");
            for (name, expected) in [
                ("x-forwarded-email", &["ana@example.com"][..]),
                ("x-forwarded-groups", &["staff,kyc-viewer"]),
                ("x-console-secret", &[SECRET]),
                ("host", &[&host]),
                ("origin", &["https://evil.example.com"]),
                ("sec-fetch-site", &["cross-site"]),
                ("cookie", &[]),
                ("authorization", &[]),
                ("x_forwarded_email", &[]),
                ("x_console_secret", &[]),
            ] {
                let found: Vec<&HeaderValue> = headers.get_all(name).iter().collect();
                assert_eq!(found, expected, "{claims:?}: {name}");
            }
        }
    });
}

const ANA: (&str, &str) = ("X-Forwarded-Email", "ana@example.com");
const VIEWER: (&str, &str) = ("X-Forwarded-Groups", "kyc-viewer");
const PROVEN: (&str, &str) = ("X-Console-Secret", SECRET);
const GUESSED: (&str, &str) = ("X-Console-Secret", "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJB=");

#[test]
fn past_its_proxy_nobody_is_let_in_whatever_they_claim() {
    let every_group = ("X-Forwarded-Groups", "kyc-viewer,kyc-operator,kyc-reviewer,kyc-auditor");
    world(async |world| {
        let console = Console::start_behind_proxy(&world, "https://kyc.example.com").await;
        let table: &[(Headers<'_>, u16, &str)] = &[
            (&[], 401, "X-Console-Secret"),
            (&[ANA, every_group], 401, "X-Console-Secret"),
            (&[GUESSED, ANA, every_group], 401, "X-Console-Secret"),
            (&[("X-Console-Secret", ""), ANA, VIEWER], 401, "X-Console-Secret"),
            (&[("X_Console_Secret", SECRET), ANA, VIEWER], 401, "X-Console-Secret"),
            (&[("Cookie", "X-Console-Secret=a"), ANA, VIEWER], 401, "X-Console-Secret"),
            // Of two, one may be a browser's.
            (&[PROVEN, GUESSED, ANA, VIEWER], 401, "X-Console-Secret"),
            (&[GUESSED, PROVEN, ANA, VIEWER], 401, "X-Console-Secret"),
            (&[PROVEN, PROVEN, ANA, VIEWER], 401, "X-Console-Secret"),
            (&[PROVEN, VIEWER], 401, "x-forwarded-email names nobody"),
            (&[PROVEN, ("X-Forwarded-Email", " "), VIEWER], 401, "names nobody"),
            (&[PROVEN, ANA, ("X-Forwarded-Email", "ben@example.com"), VIEWER], 401, "more than one"),
            (&[PROVEN, ANA, ANA, VIEWER], 401, "more than one"),
            (&[PROVEN, ("X_Forwarded_Email", "ana@example.com"), VIEWER], 401, "names nobody"),
            (&[PROVEN, ANA], 403, "says: nothing"),
            (&[PROVEN, ANA, ("X-Forwarded-Groups", "staff")], 403, "says: staff"),
            (
                &[PROVEN, ANA, ("X-Forwarded-Groups", "KYC-VIEWER, kyc-viewers, my-kyc-viewer")],
                403,
                "CONSOLE_ROLES",
            ),
        ];
        for (headers, status, why) in table {
            for path in ["/index.json", "/jobs/3f0c2a9e-5f0e-4f57-9d0c-2d6f7c1f1a11.json", "/nothing.json"] {
                let answer = ask(&world.http, &console.url(path), headers).await;
                assert_eq!(answer.status, *status, "{headers:?}: {}", answer.text);
                assert!(answer.text.contains(why), "{headers:?}: {}", answer.text);
                assert!(!answer.text.contains(SECRET), "{}", answer.text);
            }
        }
        let page = ask(&world.http, &console.url("/"), &[PROVEN, ANA, VIEWER]).await;
        assert!(page.status == 200 && page.text.contains(&visitor(ANA.1, "viewer")), "{page:?}");
        for host in ["evil.example.com", "kyc.example.com.", "kyc.example.com:8443", "10.0.0.1"] {
            let answer =
                ask(&world.http, &console.url("/index.json"), &[PROVEN, ANA, VIEWER, ("Host", host)]).await;
            assert!(answer.status == 421 && answer.text.contains(host), "{host}: {answer:?}");
        }
        let by_name = [PROVEN, ANA, VIEWER, ("Host", "kyc.example.com")];
        assert_eq!(ask(&world.http, &console.url("/"), &by_name).await.status, 200);
        for path in ["/livez", "/readyz"] {
            assert_eq!(ask(&world.http, &console.url(path), &[]).await.status, 200, "{path}");
        }
        assert_eq!(world.count("select count(*) from access_record").await, 0);
        let log = console.process.log();
        assert!(!log.contains(SECRET) && !log.contains(GUESSED.1), "{log}");
    });
}

/// It believes whoever reaches it, and so listens on loopback alone.
#[test]
fn beside_its_proxy_a_console_believes_one_name_and_its_own_host() {
    world(async |world| {
        let settings = [("CONSOLE_LOGIN", "sidecar"), ("CONSOLE_PUBLIC_URL", "https://kyc.example.com")];
        let console = Console::start(&world, &settings).await;
        let table: &[(Headers<'_>, u16)] = &[
            (&[ANA, VIEWER], 200),
            (&[ANA, VIEWER, ("Host", "kyc.example.com")], 200),
            (&[ANA, VIEWER, ("Host", "localhost:8080")], 200),
            (&[ANA, VIEWER, GUESSED], 200),
            (&[], 401),
            (&[VIEWER], 401),
            (&[ANA, ANA, VIEWER], 401),
            (&[ANA], 403),
            (&[ANA, VIEWER, ("Host", "evil.example.com")], 421),
            // A page elsewhere whose name leads to loopback.
            (&[ANA, VIEWER, ("Host", "localhost.evil.example.com:8080")], 421),
        ];
        for (headers, status) in table {
            let answer = ask(&world.http, &console.url("/"), headers).await;
            assert_eq!(answer.status, *status, "{headers:?}: {}", answer.text);
        }
        let elsewhere = [&settings[..], &[("CONSOLE_LISTEN", "0.0.0.0:0")]].concat();
        let refused = world.run(&["console"], &elsewhere).await;
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(
            refused.status.code() == Some(2) && said.contains("CONSOLE_LISTEN: must be on loopback"),
            "{said}"
        );
    });
}

#[test]
fn the_console_sends_the_headers_that_the_document_names() {
    world(async |world| {
        let settings = [("CONSOLE_LOGIN", "local"), ("CONSOLE_LOCAL_USER", "ana")];
        let console = Console::start(&world, &settings).await;
        let document = read("docs/console.md");
        let (_, part) = document.split_once("\n## The headers it sends\n").expect("the part");
        let (part, _) = part.split_once("\n## ").expect("its end");
        let rows = part.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | `"));
        let rows: Vec<(&str, &str)> =
            rows.map(|(name, rest)| (name, rest.strip_suffix("` |").expect("a value"))).collect();
        assert_eq!(rows.len(), 7);
        for path in ["/", "/index.json", "/nothing", "/livez", "/jobs/none.csv"] {
            let answer = ask(&world.http, &console.url(path), &[]).await;
            for (name, value) in &rows {
                assert_eq!(
                    answer.headers.get_all(*name).iter().collect::<Vec<_>>(),
                    [value],
                    "{path}: {name}"
                );
            }
            assert!(answer.headers.get("set-cookie").is_none(), "{path}");
        }
    });
}

/// What `docker compose --profile console` puts before its console.
#[test]
fn compose_asks_for_a_password_and_lets_each_role_in_as_itself() {
    world(async |world| {
        let port = free_port().expect("a port");
        let secret = format!("{}/deploy/compose/console-proxy-secret", env!("CARGO_MANIFEST_DIR"));
        let url = format!("http://127.0.0.1:{port}");
        let settings = [
            ("CONSOLE_LOGIN", "proxy"),
            ("CONSOLE_PROXY_SECRET_FILE", secret.as_str()),
            ("CONSOLE_PUBLIC_URL", &url),
        ];
        let console = Console::start(&world, &settings).await;
        let users = format!("{}/deploy/compose/console-users", env!("CARGO_MANIFEST_DIR"));
        let servers = with(
            &read("deploy/compose/console.conf"),
            &[
                ("listen 8081;", format!("listen 127.0.0.1:{port};")),
                ("http://console:8080", format!("http://127.0.0.1:{}", console.port)),
                ("/etc/nginx/console-users", users),
            ],
        );
        let _nginx = Nginx::start(&world, port, &servers).await;
        let basic = |name: &str, password: &str| {
            use base64::Engine as _;
            let login = base64::prelude::BASE64_STANDARD.encode(format!("{name}:{password}"));
            format!("Basic {login}")
        };
        for claims in CLAIMS.iter().filter(|claims| claims.iter().all(|(name, _)| *name != "Authorization")) {
            for role in ["viewer", "operator", "reviewer", "auditor"] {
                let (right, wrong) = (basic(role, role), basic(role, "another"));
                let page =
                    ask(&world.http, &url, &[claims, &[("Authorization", right.as_str())][..]].concat())
                        .await;
                assert!(
                    page.status == 200 && page.text.contains(&visitor(role, role)),
                    "{claims:?}: {page:?}"
                );
                let page =
                    ask(&world.http, &url, &[claims, &[("Authorization", wrong.as_str())][..]].concat())
                        .await;
                assert_eq!(page.status, 401, "{claims:?}");
            }
            assert_eq!(ask(&world.http, &url, claims).await.status, 401, "{claims:?}");
        }
        assert_eq!(ask(&world.http, &format!("{url}/readyz"), &[]).await.status, 200);
    });
}

/// The component's nginx is the document's, but for what its ingress does.
#[test]
fn kubernetes_has_the_nginx_of_the_document() {
    let component = read("deploy/kubernetes/components/console/console.conf");
    let locations = |text: &str| {
        let (_, rest) = text.split_once("    # oauth2-proxy, which knows").expect("where its places begin");
        rest.trim_end().to_owned()
    };
    assert_eq!(locations(&component), locations(&documented()));
    assert!(component.contains("    listen 8081;\n") && !component.contains("ssl"), "{component}");
}
