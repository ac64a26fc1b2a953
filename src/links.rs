//! The hosts of documents' links, over HTTP: the first bytes of a document, by a client of its own that has
//! no credentials of ours. Knows which addresses may be connected to, and nothing of what the bytes mean.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue, RANGE};
use reqwest::{Certificate, Client, Proxy, Response, Url, redirect, retry};
use tokio::net::lookup_host;
use tokio::time::{Instant, timeout_at};

use crate::config::Secret;
use crate::domain::address_rule::{may_ask, may_connect};
use crate::domain::link_check::{BYTES_MAX, Fetched};

/// A link may lead on so many times.
const REDIRECTS_MAX: usize = 3;

/// How documents are fetched.
#[derive(Clone, Debug, Default)]
pub struct LinkSettings {
    /// Networks that links may lead to beside public addresses.
    pub allowed: Vec<IpNet>,
    /// Certificate authorities to trust beside the platform's, in PEM.
    pub authorities: Option<Vec<u8>>,
    /// A proxy on the way there, its credentials in its URL. It resolves hosts' names then, so that what a
    /// name leads to is its to judge.
    pub proxy: Option<Secret>,
}

/// A client of the hosts where documents lie.
pub struct LinkClient {
    client: Client,
    allowed: Arc<[IpNet]>,
}

/// The rule of addresses, or that of redirects, forbids the next step.
#[derive(Debug, thiserror::Error)]
#[error("the link must not be followed there")]
struct Forbidden;

impl LinkClient {
    /// Builds the client. Nothing is sent yet.
    ///
    /// # Errors
    /// When the platform's certificates cannot be loaded, or a setting holds none or no proxy's URL.
    pub fn new(settings: &LinkSettings) -> anyhow::Result<Self> {
        Self::with_resolver(settings, Arc::new(System))
    }

    fn with_resolver(settings: &LinkSettings, names: Arc<dyn Resolve>) -> anyhow::Result<Self> {
        let allowed: Arc<[IpNet]> = settings.allowed.clone().into();
        let authorities = match &settings.authorities {
            Some(pem) => {
                Certificate::from_pem_bundle(pem).context("LINK_CHECK_CA_FILE: holds no certificate")?
            }
            None => Vec::new(),
        };
        // Bytes that are encoded in a way that nobody asked for are none of a document.
        let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]);
        #[expect(
            clippy::disallowed_methods,
            reason = "nothing is signed for these hosts, and every guard is set"
        )]
        let builder = Client::builder();
        // The environment's proxies are meant for others.
        let (builder, proxy_host) = match &settings.proxy {
            Some(proxy) => {
                let at = Url::parse(proxy.expose()).context("DOLLARPE_PROXY: is no URL")?;
                let proxy = Proxy::all(proxy.expose()).context("DOLLARPE_PROXY: is no proxy's URL")?;
                (builder.proxy(proxy), at.host_str().map(str::to_owned))
            }
            None => (builder.no_proxy(), None),
        };
        let rule = Arc::clone(&allowed);
        let follow = redirect::Policy::custom(move |attempt| {
            // The first of those before it is the link itself.
            let is_too_far = attempt.previous().len() > REDIRECTS_MAX;
            match !is_too_far && may_ask(attempt.url(), &rule) {
                true => attempt.follow(),
                false => attempt.error(Forbidden),
            }
        });
        let client = builder
            .user_agent(concat!("kyc-worker/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .http1_only()
            .https_only(true)
            .tls_certs_merge(authorities)
            .redirect(follow)
            .retry(retry::never())
            .referer(false)
            // What is left of a document is not read: no connection is worth keeping.
            .pool_max_idle_per_host(0)
            .dns_resolver(Arc::new(Permitted { names, allowed: Arc::clone(&allowed), proxy_host }))
            .build()
            .context("cannot set up the HTTP client; are the platform's CA certificates installed?")?;
        Ok(Self { client, allowed })
    }

    /// Reads the first bytes of a document, no later than `deadline`.
    pub async fn fetch(&self, link: &str, deadline: Instant) -> Fetched {
        let Some(url) = Url::parse(link).ok().filter(|url| may_ask(url, &self.allowed)) else {
            return Fetched::Forbidden;
        };
        let fetching = async {
            let range = format!("bytes=0-{}", BYTES_MAX - 1);
            let response = self.client.get(url).header(RANGE, range).send().await?;
            let status = response.status().as_u16();
            Ok(Fetched::Answered { status, begin: first_bytes(response).await? })
        };
        match timeout_at(deadline, fetching).await {
            Ok(Ok(fetched)) => fetched,
            Ok(Err(error)) if is_forbidden(&error) => Fetched::Forbidden,
            Ok(Err(error)) if !error.is_timeout() => Fetched::Unreachable,
            Ok(Err(_)) | Err(_) => Fetched::TimedOut,
        }
    }
}

/// The first bytes of a body, whether or not the host heeds the range.
async fn first_bytes(mut response: Response) -> reqwest::Result<Vec<u8>> {
    let mut begin = Vec::with_capacity(BYTES_MAX);
    while begin.len() < BYTES_MAX {
        let Some(chunk) = response.chunk().await? else { break };
        begin.extend_from_slice(&chunk[..chunk.len().min(BYTES_MAX - begin.len())]);
    }
    Ok(begin)
}

/// Whether an error came of the rule, however deep it hides.
fn is_forbidden(error: &reqwest::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if error.is::<Forbidden>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Resolves names as this machine does.
struct System;

impl Resolve for System {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> = lookup_host((name.as_str(), 0)).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Resolves names to the addresses that may be connected to. The client connects to these and asks no second
/// time, so a name that changes what it leads to gains nothing.
struct Permitted {
    names: Arc<dyn Resolve>,
    allowed: Arc<[IpNet]>,
    /// The operator's own, wherever it is.
    proxy_host: Option<String>,
}

impl Resolve for Permitted {
    fn resolve(&self, name: Name) -> Resolving {
        let is_proxy = self.proxy_host.as_deref() == Some(name.as_str());
        let (resolving, allowed) = (self.names.resolve(name), Arc::clone(&self.allowed));
        Box::pin(async move {
            let mut found: Vec<SocketAddr> = resolving.await?.collect();
            let is_resolved = !found.is_empty();
            found.retain(|address| is_proxy || may_connect(address.ip(), &allowed));
            match found.is_empty() && is_resolved {
                true => Err(Forbidden.into()),
                // None at all is a name server's failure, and no refusal of ours.
                false => Ok(Box::new(found.into_iter()) as Addrs),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use dollarpe_sandbox::tls::{Authority, Front};
    use parking_lot::Mutex;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::*;

    const JPEG: &[u8] = b"\xff\xd8\xff\xe0";

    /// Answers of a name server, each given once but the last.
    #[derive(Default)]
    struct Answers(Mutex<HashMap<&'static str, Vec<Vec<&'static str>>>>);

    impl Resolve for Answers {
        fn resolve(&self, name: Name) -> Resolving {
            let mut answers = self.0.lock();
            let answers = answers.get_mut(name.as_str()).expect("a name that is known");
            let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
            let found = answer.into_iter().map(|ip| SocketAddr::new(ip.parse().expect("an address"), 0));
            let found = found.collect::<Vec<_>>().into_iter();
            Box::pin(async move { Ok(Box::new(found) as Addrs) })
        }
    }

    /// A host that speaks TLS under several names, and answers each path as it is told.
    struct Host {
        port: u16,
        ca: Vec<u8>,
        /// The heads of the requests that it got.
        asked: Arc<Mutex<Vec<String>>>,
        _front: Front,
        _server: JoinSet<()>,
    }

    impl Host {
        /// Listens at `ip` under `name`.
        async fn start(
            authority: &Authority,
            ip: &str,
            name: &str,
            answers: &[(&'static str, Vec<u8>)],
        ) -> Self {
            let _already_installed = rustls::crypto::ring::default_provider().install_default();
            let inner = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let target = inner.local_addr().expect("an address");
            let outer = TcpListener::bind((ip, 0)).await.expect("a port");
            let front =
                Front::start(outer, target, &authority.issue(name).expect("a certificate")).expect("TLS");
            let asked = Arc::new(Mutex::new(Vec::new()));
            let (heard, answers) = (Arc::clone(&asked), answers.to_vec());
            let mut server = JoinSet::new();
            server.spawn(async move {
                loop {
                    let (mut stream, _) = inner.accept().await.expect("a connection");
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.expect("bytes") > 0
                    {
                    }
                    let head = String::from_utf8(head).expect("text");
                    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                    heard.lock().push(head);
                    let answer = answers.iter().find(|(known, _)| *known == path);
                    let answer = answer
                        .map_or(&b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"[..], |(_, a)| a);
                    // The client goes once it has read enough.
                    let _may_be_gone = stream.write_all(answer).await;
                }
            });
            let port = front.address().port();
            let ca = authority.pem().into_bytes();
            Self { port, ca, asked, _front: front, _server: server }
        }

        fn count_asked(&self) -> usize {
            self.asked.lock().len()
        }
    }

    fn answer(status: u16, headers: &str, body: &[u8]) -> Vec<u8> {
        let head = format!("HTTP/1.1 {status} Told\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
        [head.as_bytes(), body].concat()
    }

    fn redirect_to(location: &str) -> Vec<u8> {
        answer(302, &format!("location: {location}\r\n"), b"")
    }

    fn client(host: &Host, allowed: &[&str], names: &[(&'static str, &[&[&'static str]])]) -> LinkClient {
        let settings = LinkSettings {
            allowed: allowed.iter().map(|net| net.parse().expect("a network")).collect(),
            authorities: Some(host.ca.clone()),
            proxy: None,
        };
        let answers =
            names.iter().map(|(name, answers)| (*name, answers.iter().map(|a| a.to_vec()).collect()));
        let answers = Answers(Mutex::new(answers.collect()));
        LinkClient::with_resolver(&settings, Arc::new(answers)).expect("a client")
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn holds(begin: &[u8]) -> Fetched {
        Fetched::Answered { status: 200, begin: begin.to_vec() }
    }

    #[tokio::test]
    async fn the_first_bytes_are_read_and_nothing_of_ours_is_told() {
        let long = [JPEG, &[7; 100_000]].concat();
        let answers = [("/a.jpg?sig=x", answer(200, "", &long)), ("/short", answer(206, "", JPEG))];
        let host = Host::start(&Authority::new().expect("one"), "127.0.0.1", "files.test", &answers).await;
        let client = client(&host, &["127.0.0.0/8"], &[("files.test", &[&["127.0.0.1"]])]);
        let link = |path: &str| format!("https://files.test:{}{path}", host.port);
        let fetched = client.fetch(&link("/a.jpg?sig=x"), soon()).await;
        assert_eq!(fetched, holds(&long[..BYTES_MAX]));
        let fetched = client.fetch(&link("/short"), soon()).await;
        assert_eq!(fetched, Fetched::Answered { status: 206, begin: JPEG.to_vec() });
        let asked = host.asked.lock();
        let head = asked[0].to_ascii_lowercase();
        assert!(
            head.starts_with("get /a.jpg?sig=x http/1.1\r\n") && head.contains("range: bytes=0-1023\r\n")
        );
        for ours in ["x-api-key", "x-signature", "authorization", "cookie", "referer", "traceparent"] {
            assert!(!head.contains(ours), "{head}");
        }
    }

    /// A name server of the publisher's answers with a public address first, and with a private one once that
    /// was checked.
    #[tokio::test]
    async fn a_name_that_changes_its_answer_is_judged_by_the_one_that_is_used() {
        let authority = Authority::new().expect("one");
        let public =
            Host::start(&authority, "127.0.0.2", "files.test", &[("/a", answer(200, "", JPEG))]).await;
        // The address that is permitted here stands for the public ones.
        let names: [(&str, &[&[&str]]); 4] = [
            ("none.test", &[&[]]),
            ("files.test", &[&["127.0.0.2"], &["127.0.0.1"]]),
            ("both.test", &[&["127.0.0.1", "127.0.0.2"]]),
            ("inside.test", &[&["127.0.0.1", "10.0.0.1", "::1", "::ffff:127.0.0.2", "64:ff9b::7f00:2"]]),
        ];
        let client = client(&public, &["127.0.0.2/32"], &names);
        let link = |host: &str| format!("https://{host}:{}/a", public.port);
        assert_eq!(client.fetch(&link("files.test"), soon()).await, holds(JPEG), "it is resolved once");
        assert_eq!(client.fetch(&link("files.test"), soon()).await, Fetched::Forbidden);
        assert_eq!(client.fetch(&link("inside.test"), soon()).await, Fetched::Forbidden);
        assert_eq!(client.fetch(&link("none.test"), soon()).await, Fetched::Unreachable);
        assert_eq!(public.count_asked(), 1);
        // Its certificate is for another name, so it comes no further than that: by the address that may be.
        assert_eq!(client.fetch(&link("both.test"), soon()).await, Fetched::Unreachable);
        assert_eq!(public.count_asked(), 1);
    }

    #[tokio::test]
    async fn a_literal_address_that_is_not_public_is_never_asked() {
        let host = Host::start(&Authority::new().expect("one"), "127.0.0.1", "127.0.0.1", &[]).await;
        let client = client(&host, &[], &[]);
        for literal in [
            "127.0.0.1",
            "2130706433",
            "0177.0.0.1",
            "0x7f.1",
            "127.1",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
            "169.254.169.254",
            "10.0.0.1",
        ] {
            let link = format!("https://{literal}:{}/a.jpg", host.port);
            assert_eq!(client.fetch(&link, soon()).await, Fetched::Forbidden, "{literal}");
        }
        let plain = format!("http://files.test:{}/a.jpg", host.port);
        assert_eq!(client.fetch(&plain, soon()).await, Fetched::Forbidden);
        assert_eq!(host.count_asked(), 0);
    }

    #[tokio::test]
    async fn a_redirect_is_judged_like_the_link_and_followed_three_times() {
        let authority = Authority::new().expect("one");
        let inside =
            Host::start(&authority, "127.0.0.1", "127.0.0.1", &[("/a", answer(200, "", JPEG))]).await;
        let at_inside = |host: &str| format!("https://{host}:{}/a", inside.port);
        let forbidden = [
            at_inside("127.0.0.1"),
            at_inside("2130706433"),
            at_inside("0177.0.0.1"),
            at_inside("[::ffff:7f00:1]"),
            at_inside("inside.test"),
            at_inside("user@files.test"),
            "http://files.test/a".to_owned(),
            "//127.0.0.1/a".to_owned(),
        ];
        let paths = ["/0", "/1", "/2", "/3", "/4", "/5", "/6", "/7"];
        let mut answers: Vec<_> =
            paths.into_iter().zip(forbidden.iter().map(|location| redirect_to(location))).collect();
        answers.extend([
            ("/thrice", redirect_to("/twice")),
            ("/twice", redirect_to("/once")),
            ("/once", redirect_to("/a.jpg")),
            ("/a.jpg", answer(200, "", JPEG)),
            ("/four", redirect_to("/thrice")),
            ("/lost", answer(302, "", b"")),
            ("/file", redirect_to("file:///etc/passwd")),
        ]);
        let host = Host::start(&authority, "127.0.0.2", "files.test", &answers).await;
        let names: [(&str, &[&[&str]]); 2] =
            [("files.test", &[&["127.0.0.2"]]), ("inside.test", &[&["127.0.0.1"]])];
        let client = client(&host, &["127.0.0.2/32"], &names);
        let link = |path: &str| format!("https://files.test:{}{path}", host.port);
        for (path, location) in paths.into_iter().zip(&forbidden) {
            assert_eq!(client.fetch(&link(path), soon()).await, Fetched::Forbidden, "{location}");
        }
        assert_eq!(inside.count_asked(), 0);
        assert_eq!(client.fetch(&link("/thrice"), soon()).await, holds(JPEG));
        assert_eq!(client.fetch(&link("/four"), soon()).await, Fetched::Forbidden);
        let nowhere = Fetched::Answered { status: 302, begin: Vec::new() };
        for path in ["/lost", "/file"] {
            assert_eq!(client.fetch(&link(path), soon()).await, nowhere, "{path}");
        }
        assert!(host.asked.lock().iter().all(|head| !head.to_ascii_lowercase().contains("referer")));
    }

    #[tokio::test]
    async fn a_host_that_does_not_answer_costs_the_time_that_it_is_given() {
        let authority = Authority::new().expect("one");
        let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 9000\r\n\r\n\xff\xd8\xff".to_vec();
        let host = Host::start(&authority, "127.0.0.1", "files.test", &[("/cut", cut)]).await;
        let names: [(&str, &[&[&str]]); 2] =
            [("files.test", &[&["127.0.0.1"]]), ("other.test", &[&["127.0.0.1"]])];
        let client = client(&host, &["127.0.0.0/8"], &names);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let link = |host: &str, port: u16| format!("https://{host}:{port}/cut");
        let short = Instant::now() + Duration::from_millis(300);
        let silent = client.fetch(&link("files.test", port), short).await;
        assert_eq!(silent, Fetched::TimedOut, "TLS is never begun");
        drop(listener);
        for (host, port) in [
            // Nobody listens there any more.
            ("files.test", port),
            // Its certificate is for another name.
            ("other.test", host.port),
            // It is cut off after three bytes: nobody knows what it would have been.
            ("files.test", host.port),
        ] {
            assert_eq!(client.fetch(&link(host, port), soon()).await, Fetched::Unreachable, "{host}:{port}");
        }
    }
}
