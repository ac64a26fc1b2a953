//! The settings of `kyc-worker console`, and what they amount to. Whoever is let in may spend updates: what
//! does not say clearly who that is does not start.

use std::net::SocketAddr;
use std::path::PathBuf;

use axum::http::HeaderName;
use axum::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, COOKIE, HOST, ORIGIN, REFERER, USER_AGENT};
use clap::Args;
use url::Url;

use super::fault::SettingFault;
use super::secret::{Secret, read_secret};
use super::urls::https_url;
use crate::domain::permission::Role;

/// The console.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Console")]
pub struct ConsoleSettings {
    /// Where the pages are answered
    #[arg(long, env = "CONSOLE_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS:PORT")]
    pub console_listen: SocketAddr,

    /// Who says who somebody is: proxy: one in front, which sends CONSOLE_PROXY_SECRET with each request;
    /// sidecar: one in the same pod, the console on loopback; local: nobody, the console on loopback, for
    /// CONSOLE_LOCAL_USER alone
    #[arg(long, env = "CONSOLE_LOGIN", value_name = "proxy|sidecar|local")]
    pub console_login: Option<LoginMode>,

    /// The one who uses a console with CONSOLE_LOGIN=local, with every role
    #[arg(long, env = "CONSOLE_LOCAL_USER", value_name = "NAME")]
    pub console_local_user: Option<String>,

    /// What the proxy sends in X-Console-Secret, 32 characters or more (secret)
    #[arg(long, env = "CONSOLE_PROXY_SECRET", value_name = "SECRET", hide_env_values = true)]
    pub console_proxy_secret: Option<Secret>,

    /// A file that holds CONSOLE_PROXY_SECRET
    #[arg(long, env = "CONSOLE_PROXY_SECRET_FILE", value_name = "FILE")]
    pub console_proxy_secret_file: Option<PathBuf>,

    /// The header in which the proxy names the user
    #[arg(long, env = "CONSOLE_USER_HEADER", default_value = "X-Forwarded-Email", value_name = "HEADER")]
    pub console_user_header: HeaderName,

    /// The header in which the proxy names the user's groups, with commas between them
    #[arg(long, env = "CONSOLE_GROUPS_HEADER", default_value = "X-Forwarded-Groups", value_name = "HEADER")]
    pub console_groups_header: HeaderName,

    /// Which groups have which role, comma separated: viewer, operator, reviewer or auditor
    #[arg(
        long,
        env = "CONSOLE_ROLES",
        value_delimiter = ',',
        default_value = "viewer=kyc-viewer,operator=kyc-operator,reviewer=kyc-reviewer,auditor=kyc-auditor",
        value_parser = parse_role,
        value_name = "ROLE=GROUP,…"
    )]
    pub console_roles: Vec<GroupRole>,

    /// Where people reach the console, by https unless on this machine; needed behind a proxy
    #[arg(long, env = "CONSOLE_PUBLIC_URL", value_name = "URL")]
    pub console_public_url: Option<String>,

    /// Where a trace is shown, with {trace_id} in it
    #[arg(long, env = "CONSOLE_TRACE_URL", value_name = "URL")]
    pub console_trace_url: Option<String>,

    /// Where a job's log lines are shown, with {job_id} in it
    #[arg(long, env = "CONSOLE_LOG_URL", value_name = "URL")]
    pub console_log_url: Option<String>,
}

/// Who says who somebody is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum LoginMode {
    Proxy,
    Sidecar,
    Local,
}

/// A group that has a role.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GroupRole {
    pub group: String,
    pub role: Role,
}

/// How somebody is known.
#[derive(Clone, Debug)]
pub enum Login {
    /// By the proxy's headers, which are believed where the secret comes with them, if there is one.
    Proxy { secret: Option<Secret> },
    /// Everybody who reaches the console is this one.
    Local { user: String },
}

/// What the settings amount to once they are known to be sound.
#[derive(Clone, Debug)]
pub struct CheckedConsole {
    pub login: Login,
    /// Where people reach the console; its origin is the one that forms come from.
    pub public_url: Url,
    pub trace_url: Option<LinkTemplate>,
    pub log_url: Option<LinkTemplate>,
}

/// The address of a page elsewhere, with a name to be put into it.
#[derive(Clone, Debug)]
pub struct LinkTemplate {
    template: String,
    mark: &'static str,
}

impl LinkTemplate {
    /// The address with `name` in it. A name is hexadecimal, so nothing of it is to be escaped.
    pub fn with(&self, name: &str) -> String {
        self.template.replace(self.mark, name)
    }
}

/// The header in which a proxy proves that it is ours.
pub const SECRET_HEADER: HeaderName = HeaderName::from_static("x-console-secret");

/// What browsers say of themselves, and may say as they like.
const OF_BROWSERS: [HeaderName; 8] =
    [ACCEPT, AUTHORIZATION, CONTENT_TYPE, COOKIE, HOST, ORIGIN, REFERER, USER_AGENT];

/// A shorter secret could be guessed.
const SECRET_LENGTH_MIN: usize = 32;

impl ConsoleSettings {
    /// Checks every setting alone and those that must fit together.
    ///
    /// # Errors
    /// All faults at once.
    pub fn check(&self) -> Result<CheckedConsole, Vec<SettingFault>> {
        let mut faults = Vec::new();
        self.check_headers(&mut faults);
        let login = self.login().map_err(|fault| faults.push(fault)).ok();
        let public_url = self.public_url().map_err(|fault| faults.push(fault)).ok();
        let mut template = |setting, given: &Option<String>, mark| {
            link_template(setting, given.as_deref(), mark).map_err(|fault| faults.push(fault)).ok().flatten()
        };
        let trace_url = template("CONSOLE_TRACE_URL", &self.console_trace_url, "{trace_id}");
        let log_url = template("CONSOLE_LOG_URL", &self.console_log_url, "{job_id}");
        match (login, public_url) {
            (Some(login), Some(public_url)) if faults.is_empty() => {
                Ok(CheckedConsole { login, public_url, trace_url, log_url })
            }
            _ => Err(faults),
        }
    }

    /// Headers that say who somebody is are the proxy's alone, and none of them is its secret.
    fn check_headers(&self, faults: &mut Vec<SettingFault>) {
        let (user, groups) = (&self.console_user_header, &self.console_groups_header);
        for (setting, header) in [("CONSOLE_USER_HEADER", user), ("CONSOLE_GROUPS_HEADER", groups)] {
            if header == SECRET_HEADER || OF_BROWSERS.contains(header) {
                let reason = "must be a header that the proxy alone sends, and not its secret";
                faults.push(SettingFault::new(setting, reason));
            }
        }
        if user == groups {
            faults
                .push(SettingFault::new("CONSOLE_GROUPS_HEADER", "must be another than CONSOLE_USER_HEADER"));
        }
    }

    fn login(&self) -> Result<Login, SettingFault> {
        let fault = |setting, reason| Err(SettingFault::new(setting, reason));
        let has_secret = self.console_proxy_secret.is_some() || self.console_proxy_secret_file.is_some();
        let is_loopback = self.console_listen.ip().is_loopback();
        match (self.console_login, &self.console_local_user) {
            (None, _) => fault(
                "CONSOLE_LOGIN",
                "is not set, and nobody would know who acts: set proxy, with CONSOLE_PROXY_SECRET; sidecar, in one \
                 pod with a proxy; or local, with CONSOLE_LOCAL_USER, to try the console on this machine",
            ),
            (Some(LoginMode::Proxy | LoginMode::Sidecar), Some(_)) => {
                fault("CONSOLE_LOCAL_USER", "is for CONSOLE_LOGIN=local alone; remove it")
            }
            (Some(LoginMode::Local | LoginMode::Sidecar), _) if !is_loopback => fault(
                "CONSOLE_LISTEN",
                "must be on loopback, such as 127.0.0.1:8080, unless CONSOLE_LOGIN is proxy: whoever reaches it could \
                 say to be anybody",
            ),
            (Some(LoginMode::Local | LoginMode::Sidecar), _) if has_secret => {
                fault("CONSOLE_PROXY_SECRET", "is for CONSOLE_LOGIN=proxy alone; set that, or remove it")
            }
            (Some(LoginMode::Proxy), None) => {
                let (given, file) =
                    (self.console_proxy_secret.as_ref(), self.console_proxy_secret_file.as_ref());
                let secret = read_secret("CONSOLE_PROXY_SECRET", given, file)?;
                if secret.expose().len() < SECRET_LENGTH_MIN {
                    return fault(
                        "CONSOLE_PROXY_SECRET",
                        "must have 32 characters or more; make one with `openssl rand -base64 32`",
                    );
                }
                Ok(Login::Proxy { secret: Some(secret) })
            }
            (Some(LoginMode::Sidecar), None) => Ok(Login::Proxy { secret: None }),
            (Some(LoginMode::Local), None) => {
                fault("CONSOLE_LOCAL_USER", "is not set; name the one who uses the console")
            }
            (Some(LoginMode::Local), Some(user)) => match user_name(user) {
                Some(user) => Ok(Login::Local { user }),
                None => {
                    fault("CONSOLE_LOCAL_USER", "must have 1 to 200 characters and no control characters")
                }
            },
        }
    }

    fn public_url(&self) -> Result<Url, SettingFault> {
        let fault = |reason: &str| SettingFault::new("CONSOLE_PUBLIC_URL", reason);
        let Some(given) = &self.console_public_url else {
            return match self.console_login {
                Some(LoginMode::Proxy | LoginMode::Sidecar) => Err(fault(
                    "is not set; say where people reach the console, such as https://kyc.example.com",
                )),
                Some(LoginMode::Local) | None => Url::parse(&format!("http://{}", self.console_listen))
                    .map_err(|error| fault(&error.to_string())),
            };
        };
        let url = https_url("CONSOLE_PUBLIC_URL", given, "https://host")?;
        if url.path() != "/" {
            return Err(fault("must have no path: the console has a host of its own"));
        }
        Ok(url)
    }
}

fn link_template(
    setting: &str,
    given: Option<&str>,
    mark: &'static str,
) -> Result<Option<LinkTemplate>, SettingFault> {
    let Some(given) = given else { return Ok(None) };
    let fault = |reason: String| Err(SettingFault::new(setting, reason));
    if !given.contains(mark) {
        return fault(format!("must have {mark} in it, in place of which the name is put"));
    }
    match Url::parse(&given.replace(mark, "0")) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => {
            Ok(Some(LinkTemplate { template: given.to_owned(), mark }))
        }
        _ => fault(format!("must be a URL, such as https://grafana.example.com/explore?q={mark}")),
    }
}

/// The name of somebody, where it is one: it is kept for ever with what they do.
pub fn user_name(text: &str) -> Option<String> {
    let name = text.trim();
    let is_name = (1..=200).contains(&name.len()) && !name.chars().any(char::is_control);
    is_name.then(|| name.to_owned())
}

fn parse_role(text: &str) -> Result<GroupRole, String> {
    let (role, group) =
        text.split_once('=').map(|(role, group)| (role.trim(), group.trim())).unwrap_or_default();
    match Role::ALL.into_iter().find(|known| known.name() == role) {
        Some(role) if !group.is_empty() => Ok(GroupRole { group: group.to_owned(), role }),
        _ => {
            Err("write ROLE=GROUP with commas between them; a role is viewer, operator, reviewer or auditor"
                .to_owned())
        }
    }
}
