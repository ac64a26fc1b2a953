//! A console of this world's database, and people who use it.

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, Method};
use serde_json::Value;

use super::{WorkerProcess, World, deadline};
use crate::own_services::free_port;

/// What the proxy proves itself by.
pub const SECRET: &str = "a secret of the proxy, long enough for it";

/// A console that runs.
pub struct Console {
    pub process: WorkerProcess,
    /// Where it answers.
    pub url: String,
    http: Client,
}

/// What the console answered.
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }

    /// Where it leads.
    pub fn location(&self) -> &str {
        self.header("location").unwrap_or_else(|| panic!("{} leads nowhere: {}", self.status, self.text))
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }
}

/// Somebody at a browser, as the proxy names them.
#[derive(Clone, Copy, Debug)]
pub struct Person {
    pub name: &'static str,
    pub groups: &'static str,
}

pub const VIEWER: Person = Person { name: "vic@example.com", groups: "staff,kyc-viewer" };
pub const OPERATOR: Person = Person { name: "ona@example.com", groups: "kyc-operator" };
pub const REVIEWER: Person = Person { name: "rae@example.com", groups: "kyc-reviewer" };
pub const AUDITOR: Person = Person { name: "ada@example.com", groups: "kyc-auditor" };

pub const EVERYBODY: Person =
    Person { name: "all@example.com", groups: "kyc-viewer,kyc-operator,kyc-reviewer,kyc-auditor" };

impl World {
    /// Starts a console behind a proxy that says who somebody is.
    pub async fn start_console(&self) -> Console {
        self.start_console_with(&[("CONSOLE_LOGIN", "proxy"), ("CONSOLE_PROXY_SECRET", SECRET)]).await
    }

    /// Starts a console with settings of its own.
    pub async fn start_console_with(&self, settings: &[(&str, &str)]) -> Console {
        let address = format!("127.0.0.1:{}", free_port().expect("a port"));
        let url = format!("http://{address}");
        let mut command = self.command();
        // No key, no provider, no broker.
        for name in ["AMQP_URL", "DOLLARPE_API_KEY", "DOLLARPE_API_SECRET", "PAYLOAD_KEY", "FINGERPRINT_KEY"]
        {
            command.env_remove(name);
        }
        command.arg("console").env("CONSOLE_LISTEN", &address).env("CONSOLE_PUBLIC_URL", &url);
        command.envs(settings.iter().copied());
        let process = self.spawn(command);
        self.wait_for_log(&process, "the console answers").await;
        #[expect(clippy::disallowed_methods, reason = "a test's client needs no guards")]
        let http = Client::builder().timeout(deadline()).redirect(Policy::none()).build().expect("a client");
        Console { process, url, http }
    }
}

impl Console {
    /// Sends a request with these headers and no others of its own.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        form: &[(&str, &str)],
    ) -> Answer {
        let mut all = HeaderMap::new();
        for (name, value) in headers {
            let name: HeaderName = name.parse().expect("a header");
            all.append(name, HeaderValue::from_str(value).expect("a value"));
        }
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.url)).headers(all);
        if method == Method::POST {
            let mut body = url::form_urlencoded::Serializer::new(String::new());
            body.extend_pairs(form);
            request = request.header("content-type", "application/x-www-form-urlencoded").body(body.finish());
        }
        let response = request.send().await.expect("the console answers");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        #[expect(clippy::disallowed_methods, reason = "our own pages, whose size tests bound")]
        let text = response.text().await.expect("text");
        Answer { status, headers, text }
    }

    /// Asks for a page as somebody.
    pub async fn get(&self, person: Person, path: &str) -> Answer {
        self.send(Method::GET, path, &headers_of(person), &[]).await
    }

    /// Asks for a page that must be there.
    pub async fn page(&self, person: Person, path: &str) -> String {
        let Answer { status, text, .. } = self.get(person, path).await;
        assert_eq!(status, 200, "{path}: {text}");
        text
    }

    /// Sends a form of the console's as somebody.
    pub async fn post(&self, person: Person, path: &str, form: &[(&str, &str)]) -> Answer {
        let mut headers = headers_of(person).to_vec();
        headers.push(("sec-fetch-site", "same-origin"));
        self.send(Method::POST, path, &headers, form).await
    }

    /// What the form of a page carries in a hidden field.
    pub async fn field(&self, person: Person, path: &str, name: &str) -> String {
        let page = self.page(person, path).await;
        let mark = format!("name=\"{name}\" value=\"");
        let (_, rest) = page.split_once(&mark).unwrap_or_else(|| panic!("{path} carries no {name}: {page}"));
        let value = rest.split('"').next().expect("an end");
        value.replace("&#38;", "&").replace("&#34;", "\"").replace("&#60;", "<").replace("&#62;", ">")
    }
}

/// What the proxy sends of somebody.
pub fn headers_of(person: Person) -> [(&'static str, &'static str); 3] {
    [("x-console-secret", SECRET), ("x-forwarded-email", person.name), ("x-forwarded-groups", person.groups)]
}
