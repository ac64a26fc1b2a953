//! Inspects the provider for `check`: the way there, the clocks, our credentials and the
//! signing profile, by requests for a customer who does not exist. They change nothing.

use std::time::SystemTime;

use clap::ValueEnum as _;
use url::Url;
use uuid::Uuid;

use super::{CREDENTIALS_WANTED, Provider, endpoint, tunnel_fault};
use crate::config::Secret;
use crate::domain::clock_skew::ClockSkew;
use crate::domain::verdict::{Answer, HttpOutcome, Misconfiguration, Verdict, classify, provider_message};
use crate::finding::Finding;
use crate::tls::certificate_fault;
use dollarpe::canonical_json::Profile;

impl Provider {
    /// Inspects everything that a worker needs of the provider.
    pub async fn inspect(&self) -> Vec<Finding> {
        let nobody = Uuid::nil().to_string();
        let url = endpoint(&self.settings.base_url, &["customer", &nobody]);
        let answer = match self.ask(self.signed_get(url)).await {
            Ok(answer) => answer,
            Err(error) => return vec![self.unreachable(error)],
        };
        let mut findings = vec![Finding::ok(format!("{} answers", self.settings.base_url))];
        let is_cached = answer.age_s.is_some_and(|age| age > 0);
        findings.extend(is_cached.then(|| {
            Finding::wrong(
                "DOLLARPE_BASE_URL: a cache answers reads of customers, though asked not to; such an answer proves nothing, and jobs of unknown outcome go to a person",
                "have whatever caches on the way to the provider let its answers through",
            )
        }));
        let skew = answer.skew.filter(|_| !is_cached);
        let is_skewed = skew.is_some_and(ClockSkew::is_intolerable);
        findings.extend(skew.map(|skew| clock_finding(skew.least, is_skewed)));
        let verdict = judge(&answer);
        match verdict {
            Verdict::Rejected(_) => {
                findings.push(Finding::ok("the API key and the signatures of reads are accepted"));
                findings.push(self.inspect_profile().await);
            }
            Verdict::Misconfigured(Misconfiguration::Signature) if is_skewed => {
                findings.push(Finding::wrong(
                    "the signature is refused, as the clock would explain",
                    "set the clock first, then check again",
                ));
            }
            // Reads have no body, and so the same signature in every profile.
            Verdict::Misconfigured(Misconfiguration::Signature) => findings.push(Finding::wrong(
                "DOLLARPE_API_SECRET: the provider knows the API key and refuses the signature: the secret is another's",
                "take key and secret from the same environment's dashboard, and beware of spaces around them",
            )),
            verdict => findings.push(self.refusal(&verdict, &answer)),
        }
        findings
    }

    /// Tries every profile, as only updates have a body that shows it.
    async fn inspect_profile(&self) -> Finding {
        let ours = self.settings.profile;
        let mut accepted = Vec::new();
        for profile in Profile::value_variants() {
            let answer = match self.ask(self.update_probe(*profile)).await {
                Ok(answer) => answer,
                Err(error) => return self.unreachable(error),
            };
            match judge(&answer) {
                Verdict::Rejected(_) => accepted.push(*profile),
                Verdict::Misconfigured(Misconfiguration::Signature) => {}
                // Updates alone may be forbidden.
                verdict => return self.refusal(&verdict, &answer),
            }
        }
        if accepted.contains(&ours) {
            return Finding::ok(format!("updates signed in profile {ours} are accepted"));
        }
        let what = format!("DOLLARPE_SIGNING_PROFILE: updates signed in profile {ours} are refused");
        match accepted.first() {
            Some(right) => {
                Finding::wrong(what, format!("set DOLLARPE_SIGNING_PROFILE={right}, which is accepted"))
            }
            None => Finding::wrong(
                format!("{what}, and so is every other profile"),
                "the provider has changed how it signs; ask its support for the canonical form of a body",
            ),
        }
    }

    fn unreachable(&self, error: Option<reqwest::Error>) -> Finding {
        let what = format!("DOLLARPE_BASE_URL: {} cannot be reached", self.settings.base_url);
        let Some(error) = error.map(reqwest::Error::without_url) else {
            let waited = self.settings.read_timeout;
            return Finding::wrong(
                format!("{what}: no answer within {waited:?}"),
                "is the provider up, and does a firewall let us through?",
            );
        };
        if let Some(fault) = certificate_fault(&error, "DOLLARPE_CA_FILE") {
            return Finding::wrong(what, fault);
        }
        if let Some(proxy) = &self.settings.proxy
            && let Some(finding) = proxy_finding(&error, proxy)
        {
            return finding;
        }
        let cause = anyhow::Error::new(error);
        let is_plain = self.settings.base_url.scheme() == "http";
        Finding::wrong(
            format!("{what}: {}", cause.root_cause()),
            // Without TLS it is on this machine.
            match is_plain {
                true => "is it running? the simulated provider is `dollarpe-sandbox`",
                false => "is the host's name right, and does a firewall let us through?",
            },
        )
    }

    /// Says what a verdict on a harmless request means for us.
    fn refusal(&self, verdict: &Verdict, answer: &Answer) -> Finding {
        let base_url = &self.settings.base_url;
        match verdict {
            Verdict::Misconfigured(Misconfiguration::ApiKey) => Finding::wrong(
                "DOLLARPE_API_KEY: the provider refuses the API key: it is wrong, expired, or another environment's",
                format!("take the key of the environment at {base_url} from its dashboard"),
            ),
            Verdict::Misconfigured(Misconfiguration::Unauthorized) => Finding::wrong(
                "DOLLARPE_API_KEY: a 401 came that is not the provider's: something on the way asks for credentials, or the key is wrong",
                "compare DOLLARPE_BASE_URL with the provider's documentation, and the key with its dashboard",
            ),
            Verdict::Misconfigured(Misconfiguration::Forbidden) => Finding::wrong(
                "DOLLARPE_API_KEY: the provider forbids the call",
                "ask the provider to allow this key and this machine's address to read customers and update documents",
            ),
            Verdict::Misconfigured(Misconfiguration::Timestamp) => Finding::wrong(
                "the provider refuses the timestamp of our requests",
                "set this machine's clock, and keep it so: chrony, or systemd-timesyncd; if it is right, ask the provider",
            ),
            Verdict::Misconfigured(Misconfiguration::Undocumented) => {
                let said = provider_message(answer).unwrap_or_default();
                Finding::wrong(
                    format!(
                        "the provider refuses a harmless request with {} and words that its documentation does not have: {said}",
                        answer.status
                    ),
                    "ask the provider what they mean; updates would wait, and the intake would pause",
                )
            }
            Verdict::Misconfigured(cause) => Finding::wrong(
                format!("{}: {cause} at {base_url}", cause.setting()),
                "the sandbox is at https://sandbox.dollarpe.xyz/cms/api/v1, production at https://production.dollarpe.xyz/cms/api/v1",
            ),
            Verdict::Throttled { .. } => {
                Finding::note("the provider asks everybody to wait (429)", "check again in a minute")
            }
            // A 200 for a customer who does not exist: a web page, or another API.
            Verdict::Accepted(_) => Finding::wrong(
                format!("DOLLARPE_BASE_URL: something other than the provider answered at {base_url}"),
                "compare the URL with the provider's documentation",
            ),
            verdict => Finding::wrong(
                format!(
                    "the provider answers, but not as documented ({})",
                    verdict.detail().unwrap_or(verdict.name())
                ),
                "compare DOLLARPE_BASE_URL with the provider's documentation; if it is right, the provider is in trouble",
            ),
        }
    }
}

/// What is wrong with the proxy, if it opened no tunnel.
fn proxy_finding(error: &reqwest::Error, proxy: &Secret) -> Option<Finding> {
    let at = Url::parse(proxy.expose()).ok()?;
    let at = format!("{}:{}", at.host_str()?, at.port_or_known_default()?);
    Some(match tunnel_fault(error)?.as_str() {
        CREDENTIALS_WANTED => Finding::wrong(
            format!("DOLLARPE_PROXY: the proxy at {at} does not take our credentials (407)"),
            "write user and password into the URL, special characters as %XX",
        ),
        "failed to create underlying connection" => Finding::wrong(
            format!("DOLLARPE_PROXY: no proxy answers at {at}"),
            "is its address right, is it running, and does a firewall let us through?",
        ),
        fault => Finding::wrong(
            format!("DOLLARPE_PROXY: the proxy at {at} opens no tunnel to the provider: {fault}"),
            "it must allow CONNECT to the provider's host and port, and reach it; its log says why it does not",
        ),
    })
}

fn judge(answer: &Answer) -> Verdict {
    classify(&HttpOutcome::Answered(answer.clone()), Uuid::nil(), &[], SystemTime::now())
}

fn clock_finding(skew: i64, is_skewed: bool) -> Finding {
    let apart = skew.unsigned_abs();
    let side = if skew > 0 { "behind" } else { "ahead of" };
    match is_skewed {
        false => Finding::ok(format!("this machine's clock is {apart} s from the provider's")),
        true => Finding::wrong(
            format!(
                "this machine's clock is {apart} s {side} the provider's, which refuses stale signatures"
            ),
            "set the clock, and keep it so: chrony, or systemd-timesyncd",
        ),
    }
}
