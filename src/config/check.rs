//! What the settings amount to: each checked alone, and those that must fit together.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use lapin::uri::AMQPScheme;
use percent_encoding::percent_decode_str;
use reqwest::header::{HeaderName, HeaderValue};
use url::Url;

use super::fault::SettingFault;
use super::secret::{Secret, read_pem, read_secret};
use super::settings::{
    BrokerSettings, DatabaseSettings, FingerprintSettings, JobSettings, KeySettings, ProviderArgs,
    RunSettings, TraceSettings,
};
use super::urls::{check_database_url, check_proxy_url, https_url, parse_amqp_url};
use crate::seal::{Fingerprinter, Keyring};
use dollarpe::signature::Signer;

/// No verification ends sooner, says the provider; that one lasts for longer, it does not.
const WINDOW_MAX: Duration = Duration::from_secs(60);

/// What is not sent when the worker stops needs a commit to be closed.
const SHUTDOWN_GRACE_MIN: Duration = Duration::from_secs(2);

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What the settings amount to once they are known to be sound.
pub struct Checked {
    /// Where Postgres is.
    pub database_url: Secret,
    /// Where RabbitMQ is.
    pub amqp_url: Secret,
    /// Our name at the provider.
    pub api_key: Secret,
    /// What our signatures are made with.
    pub api_secret: Secret,
    /// Seals and opens payloads.
    pub keyring: Keyring,
    /// Fingerprints contents.
    pub fingerprinter: Fingerprinter,
    /// This replica's name.
    pub worker_name: String,
    /// Where traces go, if anywhere.
    pub otlp: Option<Otlp>,
}

/// A collector of traces.
pub struct Otlp {
    pub traces_url: Url,
    pub headers: HashMap<String, String>,
    /// What the worker is called there, and what else is told of it.
    pub service: String,
    pub resource: Vec<(String, String)>,
    /// Of what went well, how much is kept.
    pub share: f64,
}

impl RunSettings {
    /// Checks every setting alone and those that must fit together.
    ///
    /// # Errors
    /// All faults at once.
    pub fn check(&self) -> Result<Checked, Vec<SettingFault>> {
        let mut faults = Faults::default();
        self.check_durations(&mut faults);
        self.check_lease(&mut faults);
        self.check_names(&mut faults);
        self.check_rest(&mut faults);
        faults.keep(self.broker.certificates());
        faults.keep(self.provider.base_url());
        faults.keep(self.provider.authorities());
        faults.keep(self.provider.proxy());
        faults.keep(self.jobs.link_authorities());
        let read = (
            faults.keep(self.database.url()),
            faults.keep(self.broker.url()),
            faults.keep(self.provider.api_key()),
            faults.keep(self.provider.api_secret()),
            faults.keep(self.keys.keyring()),
            faults.keep(self.keys.fingerprint.fingerprinter()),
            faults.keep(self.traces.otlp()),
        );
        match read {
            (
                Some(database_url),
                Some(amqp_url),
                Some(api_key),
                Some(api_secret),
                Some(keyring),
                Some(fingerprinter),
                Some(otlp),
            ) if faults.0.is_empty() => Ok(Checked {
                database_url,
                amqp_url,
                api_key,
                api_secret,
                keyring,
                fingerprinter,
                otlp,
                worker_name: self.work.worker_name.clone().unwrap_or_else(default_worker_name),
            }),
            _ => Err(faults.0),
        }
    }

    /// Durations that must be some time, and of two the one that must not be the longer.
    fn check_durations(&self, faults: &mut Faults) {
        let Self { broker, provider, read_back, verification, keys, work, .. } = self;
        for (setting, duration) in [
            ("READ_BACK_AFTER", read_back.read_back_after),
            ("READ_BACK_WINDOW", read_back.read_back_window),
            ("APPLIED_WITHIN", read_back.applied_within),
            ("CUSTOMER_READ_INTERVAL", read_back.customer_read_interval),
            ("PAYLOAD_RETENTION", keys.payload_retention),
            ("CLAIM_LEASE", work.claim_lease),
            ("SCHEDULER_POLL", work.scheduler_poll),
            ("RETRY_DELAY_MIN", work.retry_delay_min),
            ("BREAKER_PROBE_INTERVAL", work.breaker_probe_interval),
        ] {
            faults.require(duration >= Duration::from_millis(1), setting, "must be at least 1ms");
        }
        for (setting, duration) in [
            ("REQUEST_TIMEOUT", provider.request_timeout),
            ("READ_TIMEOUT", provider.read_timeout),
            ("SEND_WINDOW", provider.send_window),
        ] {
            let reason = "must be at least 100ms, or no request could be sent or answered";
            faults.require(duration >= Duration::from_millis(100), setting, reason);
        }
        faults.require(
            broker.dead_letter_ttl >= HOUR,
            "DEAD_LETTER_TTL",
            "must be at least 1h, or a dead letter would be gone before anybody reads it",
        );
        faults.require(
            verification.customer_event_age_max >= Duration::from_secs(1),
            "CUSTOMER_EVENT_AGE_MAX",
            "must be at least 1s, or no webhook would be young enough",
        );
        faults.require(
            work.shutdown_grace >= SHUTDOWN_GRACE_MIN,
            "SHUTDOWN_GRACE",
            "must be at least 2s, in which attempts that were begun and not sent are closed",
        );
        for (setting, duration, longest, why) in [
            (
                "READ_BACK_WINDOW",
                read_back.read_back_window,
                WINDOW_MAX,
                "the provider promises no longer verification",
            ),
            ("READ_BACK_DEADLINE", read_back.read_back_deadline, DAY * 7, "or nobody would be asked"),
            (
                "CUSTOMER_EVENT_AGE_MAX",
                verification.customer_event_age_max,
                DAY,
                "or an old webhook could be played again",
            ),
            ("RETRY_DELAY_MAX", work.retry_delay_max, DAY, "or an outage would cost more than its time"),
            (
                "BREAKER_PROBE_INTERVAL",
                work.breaker_probe_interval,
                HOUR,
                "or an outage would cost more than its time",
            ),
            (
                "LINK_EXPIRY_MARGIN",
                self.jobs.link_expiry_margin,
                DAY,
                "or a link that is signed for a day would be too short from the start",
            ),
            ("SHUTDOWN_GRACE", work.shutdown_grace, HOUR, "or a worker would seem not to stop"),
        ] {
            let reason = format!("must be at most {}, {why}", humantime::format_duration(longest));
            faults.require(duration <= longest, setting, &reason);
        }
        let poll_after = ("VERIFICATION_POLL_AFTER", verification.verification_poll_after);
        let poll_max = ("VERIFICATION_POLL_MAX", verification.verification_poll_max);
        let deadline = ("VERIFICATION_DEADLINE", verification.verification_deadline);
        let give_up = ("VERIFICATION_GIVE_UP", verification.verification_give_up);
        let window = ("READ_BACK_WINDOW", read_back.read_back_window);
        let lease = ("CLAIM_LEASE", work.claim_lease);
        for ((shorter, short), (longer, long), why) in [
            (("READ_TIMEOUT", provider.read_timeout), lease, ""),
            (("SCHEDULER_POLL", work.scheduler_poll), lease, ""),
            (window, ("READ_BACK_DEADLINE", read_back.read_back_deadline), ""),
            (window, poll_after, ": no verification ends sooner"),
            (
                ("CUSTOMER_READ_INTERVAL", read_back.customer_read_interval),
                poll_after,
                ", or reads of verifications would only wait for each other",
            ),
            (poll_after, poll_max, ""),
            (poll_max, deadline, ""),
            (deadline, give_up, ""),
            (("RETRY_DELAY_MIN", work.retry_delay_min), ("RETRY_DELAY_MAX", work.retry_delay_max), ""),
            (
                ("DEAD_LETTER_TTL", broker.dead_letter_ttl),
                ("DEAD_LETTER_RETENTION", work.dead_letter_retention),
                ", or letters would lie there that no row explains",
            ),
        ] {
            let reason = format!("{shorter} must be at most {longer}{why}");
            faults.require(short <= long, &format!("{shorter}, {longer}"), &reason);
        }
    }

    /// What must be over by the time that a claim's lease is, or that reads prove nothing more.
    fn check_lease(&self, faults: &mut Faults) {
        let (work, timing) = (&self.work, self.timing());
        faults.require(
            self.provider.send_window + self.provider.request_timeout <= work.claim_lease,
            "SEND_WINDOW, REQUEST_TIMEOUT, CLAIM_LEASE",
            "SEND_WINDOW + REQUEST_TIMEOUT must be at most CLAIM_LEASE, \
             or a replica could send after another took the job over",
        );
        faults.require(
            work.claim_lease + timing.after + timing.read_time_max <= timing.safe_window(),
            "CLAIM_LEASE, READ_BACK_AFTER, SCHEDULER_POLL, READ_TIMEOUT, READ_BACK_WINDOW",
            "CLAIM_LEASE + READ_BACK_AFTER + SCHEDULER_POLL + READ_TIMEOUT must be at most 11/12 of \
             READ_BACK_WINDOW, or no read could tell what became of the attempt of a replica that died",
        );
        faults.require(
            self.read_back.applied_within + timing.read_time_max <= timing.after + timing.safe_window(),
            "APPLIED_WITHIN, READ_BACK_AFTER, READ_BACK_WINDOW, SCHEDULER_POLL, READ_TIMEOUT",
            "READ_BACK_AFTER + 11/12 of READ_BACK_WINDOW - SCHEDULER_POLL - READ_TIMEOUT must be at least \
             APPLIED_WITHIN, or an update that is applied that late would be sent twice",
        );
        faults.require(
            timing.read_time_max * 3 <= timing.safe_window(),
            "SCHEDULER_POLL, READ_TIMEOUT, READ_BACK_WINDOW",
            "SCHEDULER_POLL + READ_TIMEOUT must be at most a third of 11/12 of READ_BACK_WINDOW, \
             or the read that confirms another could come too soon after it to show an update that is applied late",
        );
    }

    /// The names of exchanges, queues and this replica.
    fn check_names(&self, faults: &mut Faults) {
        faults.0.extend(self.broker.name_faults());
        if let Some(name) = &self.work.worker_name {
            let is_name = (1..=100).contains(&name.len()) && is_plain(name);
            let reason = "must have 1 to 100 bytes, no blank at either end and no control character";
            faults.require(is_name, "WORKER_NAME", reason);
        }
    }

    /// What is neither a duration nor a name.
    fn check_rest(&self, faults: &mut Faults) {
        faults.require(
            !(self.jobs.link_check && self.jobs.allow_http_links),
            "LINK_CHECK, ALLOW_HTTP_LINKS",
            "LINK_CHECK fetches by https alone, and would refuse each http link that ALLOW_HTTP_LINKS lets in; \
             set one of them",
        );
        faults.require(
            !self.jobs.asks_provider_for_types() || self.jobs.document_types.len() == 1,
            "DOCUMENT_TYPES",
            "provider stands alone: the provider's list is each customer's own; name types, or the provider",
        );
        faults.require(
            u32::from(self.work.prefetch) >= self.work.concurrency,
            "PREFETCH, CONCURRENCY",
            "PREFETCH must be at least CONCURRENCY, or replicas would idle",
        );
        for status in &self.provider.not_applied_statuses {
            // A status that says "applied", or "not us", is never a licence to send again; and the
            // provider answers 500 itself, which tells nothing of the update.
            faults.require(
                *status == 408 || *status == 499 || (501..=599).contains(status),
                "NOT_APPLIED_STATUSES",
                "may hold 408, 499 and 501 to 599 only: what gateways answer, and never the provider itself",
            );
        }
    }
}

/// Whether a name is what it looks like.
fn is_plain(name: &str) -> bool {
    name.trim() == name && !name.contains(char::is_control)
}

/// What is wrong, as far as it was looked at.
#[derive(Default)]
struct Faults(Vec<SettingFault>);

impl Faults {
    fn require(&mut self, holds: bool, setting: &str, reason: &str) {
        if !holds {
            self.0.push(SettingFault::new(setting, reason));
        }
    }

    /// What was read; a fault is noted.
    fn keep<T>(&mut self, read: Result<T, SettingFault>) -> Option<T> {
        read.map_err(|fault| self.0.push(fault)).ok()
    }
}

impl DatabaseSettings {
    /// Where Postgres is.
    ///
    /// # Errors
    /// When it is not given, given for several databases, or cannot be a Postgres URL.
    pub fn url(&self) -> Result<Secret, SettingFault> {
        if self.count() > 1 {
            let reason = "is given several times, and this command works with one database; give it once (`kyc-worker report` alone takes several)";
            return Err(SettingFault::new("DATABASE_URL", reason));
        }
        self.url_at(0)
    }

    /// Where Postgres is, of each installation that is named.
    ///
    /// # Errors
    /// When one is not given, or cannot be a Postgres URL.
    pub fn urls(&self) -> Result<Vec<Secret>, SettingFault> {
        let count = self.count();
        let numbered = |at: usize, fault: SettingFault| match count {
            1 => fault,
            _ => SettingFault::new(&format!("{} ({} of {count})", fault.setting, at + 1), fault.reason),
        };
        (0..count).map(|at| self.url_at(at).map_err(|fault| numbered(at, fault))).collect()
    }

    /// How many are named. None is one that is missing.
    fn count(&self) -> usize {
        self.database_url.len().max(self.database_url_file.len()).max(1)
    }

    fn url_at(&self, at: usize) -> Result<Secret, SettingFault> {
        let url = read_secret("DATABASE_URL", self.database_url.get(at), self.database_url_file.get(at))?;
        check_database_url(&url)?;
        Ok(url)
    }
}

impl BrokerSettings {
    /// What is wrong with the names of exchanges, queues and keys: each alone, and those that
    /// must differ. One name for two things sends messages round in circles, or to where
    /// nobody looks for them.
    pub fn name_faults(&self) -> Vec<SettingFault> {
        let mut faults = Faults::default();
        for (setting, name) in [
            ("EXCHANGE", &self.exchange),
            ("QUEUE", &self.queue),
            ("ROUTING_KEY", &self.routing_key),
            ("DEAD_LETTER_EXCHANGE", &self.dead_letter_exchange),
            ("DEAD_LETTER_QUEUE", &self.dead_letter_queue),
            ("CUSTOMER_EVENTS_QUEUE", &self.customer_events_queue),
            ("CUSTOMER_EVENTS_ROUTING_KEY", &self.customer_events_routing_key),
            ("EVENTS_EXCHANGE", &self.events_exchange),
        ] {
            // RabbitMQ drops line breaks from names without a word.
            let is_name =
                (1..=255).contains(&name.len()) && name.trim() == name && !name.chars().any(char::is_control);
            let reason = "must have 1 to 255 bytes, no control characters and no blank at either end";
            faults.require(is_name, setting, reason);
        }
        for (setting, queue) in [
            ("QUEUE", &self.queue),
            ("DEAD_LETTER_QUEUE", &self.dead_letter_queue),
            ("CUSTOMER_EVENTS_QUEUE", &self.customer_events_queue),
        ] {
            let reason = "must not begin with amq., which is the broker's own";
            faults.require(!queue.starts_with("amq."), setting, reason);
        }
        faults.require(
            self.exchange != self.dead_letter_exchange,
            "EXCHANGE, DEAD_LETTER_EXCHANGE",
            "must differ, or dead letters could come round as jobs for ever",
        );
        faults.require(
            self.events_exchange != self.exchange && self.events_exchange != self.dead_letter_exchange,
            "EVENTS_EXCHANGE",
            "must be another than EXCHANGE and DEAD_LETTER_EXCHANGE, which are direct exchanges",
        );
        faults.require(
            self.queue != self.dead_letter_queue,
            "QUEUE, DEAD_LETTER_QUEUE",
            "must differ, or dead letters would be delivered as jobs",
        );
        faults.require(
            self.queue != self.customer_events_queue
                && self.dead_letter_queue != self.customer_events_queue
                && self.routing_key != self.customer_events_routing_key,
            "CUSTOMER_EVENTS_QUEUE, CUSTOMER_EVENTS_ROUTING_KEY",
            "must be others than those of jobs and dead letters",
        );
        faults.0
    }

    /// Where RabbitMQ is.
    ///
    /// # Errors
    /// When it is not given, or cannot be an AMQP URL.
    pub fn url(&self) -> Result<Secret, SettingFault> {
        let url = read_secret("AMQP_URL", self.amqp_url.as_ref(), self.amqp_url_file.as_ref())?;
        let has_tls = parse_amqp_url(&url)?.iter().any(|uri| uri.scheme == AMQPScheme::AMQPS);
        let names_files = [&self.amqp_ca_file, &self.amqp_cert_file, &self.amqp_key_file];
        if !has_tls && names_files.iter().any(|file| file.is_some()) {
            let reason = "are for TLS, which amqps:// in AMQP_URL asks for; change that, or remove them";
            return Err(SettingFault::new("AMQP_CA_FILE, AMQP_CERT_FILE, AMQP_KEY_FILE", reason));
        }
        Ok(url)
    }

    /// Reads the certificates for amqps, afresh for every connection: they are rotated.
    ///
    /// # Errors
    /// When a file cannot be read or holds no PEM, or the client's certificate lacks its key.
    pub fn certificates(&self) -> Result<BrokerCertificates, SettingFault> {
        let authorities = self.amqp_ca_file.as_ref();
        let authorities =
            authorities.map(|path| read_pem("AMQP_CA_FILE", path, "CERTIFICATE")).transpose()?;
        let identity = match (&self.amqp_cert_file, &self.amqp_key_file) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some(ClientIdentity {
                certificate: read_pem("AMQP_CERT_FILE", certificate, "CERTIFICATE")?,
                key: read_pem("AMQP_KEY_FILE", key, "PRIVATE KEY")?,
            }),
            _ => {
                let reason = "a client certificate and its key go together; set both or neither";
                return Err(SettingFault::new("AMQP_CERT_FILE, AMQP_KEY_FILE", reason));
            }
        };
        Ok(BrokerCertificates { authorities, identity })
    }
}

/// What TLS to the broker needs beside the platform's store, in PEM.
#[derive(Default)]
pub struct BrokerCertificates {
    /// Certificate authorities to trust.
    pub authorities: Option<Vec<u8>>,
    /// Who we are.
    pub identity: Option<ClientIdentity>,
}

/// A client's certificate and its key, in PEM.
pub struct ClientIdentity {
    /// The certificate and those that lead to its authority.
    pub certificate: Vec<u8>,
    /// Its key.
    pub key: Vec<u8>,
}

impl ProviderArgs {
    /// Certificate authorities to trust, in PEM.
    ///
    /// # Errors
    /// When the file cannot be read or holds none.
    pub fn authorities(&self) -> Result<Option<Vec<u8>>, SettingFault> {
        let path = self.dollarpe_ca_file.as_ref();
        path.map(|path| read_pem("DOLLARPE_CA_FILE", path, "CERTIFICATE")).transpose()
    }

    /// Whether a proxy leads to the provider.
    pub fn has_proxy(&self) -> bool {
        self.dollarpe_proxy.is_some() || self.dollarpe_proxy_file.is_some()
    }

    /// A proxy that leads to the provider, if any.
    ///
    /// # Errors
    /// When it cannot be read, is no proxy's URL, or the provider is spoken to without TLS: a proxy sees
    /// what it carries then, and may send it twice.
    pub fn proxy(&self) -> Result<Option<Secret>, SettingFault> {
        const PROXY: &str = "DOLLARPE_PROXY";
        let (given, file) = (self.dollarpe_proxy.as_ref(), self.dollarpe_proxy_file.as_ref());
        if !self.has_proxy() {
            return Ok(None);
        }
        let proxy = read_secret(PROXY, given, file)?;
        check_proxy_url(&proxy)?;
        if self.base_url().is_ok_and(|base_url| base_url.scheme() != "https") {
            let reason = "leads to an https DOLLARPE_BASE_URL alone: TLS keeps what the proxy carries whole";
            return Err(SettingFault::new(PROXY, reason));
        }
        Ok(Some(proxy))
    }

    /// Our name at the provider.
    ///
    /// # Errors
    /// When it is not given, or cannot be read.
    pub fn api_key(&self) -> Result<Secret, SettingFault> {
        let file = self.dollarpe_api_key_file.as_ref();
        read_secret("DOLLARPE_API_KEY", self.dollarpe_api_key.as_ref(), file)
    }

    /// What our signatures are made with.
    ///
    /// # Errors
    /// When it is not given, or cannot be read.
    pub fn api_secret(&self) -> Result<Secret, SettingFault> {
        let file = self.dollarpe_api_secret_file.as_ref();
        read_secret("DOLLARPE_API_SECRET", self.dollarpe_api_secret.as_ref(), file)
    }

    /// Reads credentials that are given as files again: they may have been rotated. `None`
    /// where none is a file.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn reread_credentials(&self) -> Result<Option<Signer>, SettingFault> {
        if self.dollarpe_api_key_file.is_none() && self.dollarpe_api_secret_file.is_none() {
            return Ok(None);
        }
        Ok(Some(Signer::new(self.api_key()?.expose(), self.api_secret()?.expose())))
    }

    /// Where the provider is.
    ///
    /// # Errors
    /// When it is no URL, or one that a signature may not be sent to.
    pub fn base_url(&self) -> Result<Url, SettingFault> {
        https_url("DOLLARPE_BASE_URL", &self.dollarpe_base_url, "https://host/path")
    }
}

impl JobSettings {
    /// Certificate authorities to trust for links, in PEM.
    ///
    /// # Errors
    /// When the file cannot be read or holds none.
    pub fn link_authorities(&self) -> Result<Option<Vec<u8>>, SettingFault> {
        let path = self.link_check_ca_file.as_ref();
        path.map(|path| read_pem("LINK_CHECK_CA_FILE", path, "CERTIFICATE")).transpose()
    }
}

impl TraceSettings {
    /// Where traces go; nowhere where no collector is named.
    ///
    /// # Errors
    /// When that is no URL, or a list of names and values is none.
    pub fn otlp(&self) -> Result<Option<Otlp>, SettingFault> {
        const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
        const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";
        const RESOURCE: &str = "OTEL_RESOURCE_ATTRIBUTES";
        let (given, file) = (&self.otel_exporter_otlp_headers, &self.otel_exporter_otlp_headers_file);
        let headers = match (given, file) {
            (None, None) => Vec::new(),
            (given, file) => pairs(HEADERS, read_secret(HEADERS, given.as_ref(), file.as_ref())?.expose())?,
        };
        for (name, value) in &headers {
            let is_header = HeaderName::try_from(name).is_ok() && HeaderValue::try_from(value).is_ok();
            if !is_header {
                return Err(SettingFault::new(HEADERS, "holds a name or a value that no header can have"));
            }
        }
        let resource = pairs(RESOURCE, self.otel_resource_attributes.as_deref().unwrap_or_default())?;
        let Some(endpoint) = &self.otel_exporter_otlp_endpoint else { return Ok(None) };
        let fault = |reason: &str| SettingFault::new(ENDPOINT, reason);
        let mut traces_url = Url::parse(endpoint)
            .map_err(|error| fault(&format!("must be a URL, http://host:4318: {error}")))?;
        if !matches!(traces_url.scheme(), "http" | "https") || traces_url.host().is_none() {
            return Err(fault("must be http:// or https:// and a host; the worker speaks OTLP over HTTP"));
        }
        if !traces_url.username().is_empty()
            || traces_url.password().is_some()
            || traces_url.query().is_some()
        {
            return Err(fault(&format!("must have no user, password or query; {HEADERS} is for secrets")));
        }
        // As the standard has it: the path of the traces below that of the collector.
        if let Ok(mut path) = traces_url.path_segments_mut() {
            path.pop_if_empty().extend(["v1", "traces"]);
        }
        Ok(Some(Otlp {
            traces_url,
            headers: headers.into_iter().collect(),
            service: self.otel_service_name.clone(),
            resource,
            share: self.otel_traces_sampler_arg,
        }))
    }
}

/// The names and values of a list, `name=value,…`, whose values are percent-encoded.
fn pairs(setting: &str, list: &str) -> Result<Vec<(String, String)>, SettingFault> {
    let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let pair = |entry: &str| {
        let (name, value) = entry.split_once('=')?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
        let name = name.trim();
        (!name.is_empty()).then(|| (name.to_owned(), value.into_owned()))
    };
    let pairs: Option<Vec<_>> = entries.map(pair).collect();
    pairs.ok_or_else(|| SettingFault::new(setting, "must be name=value, with commas between them"))
}

impl KeySettings {
    /// What payloads are sealed with.
    ///
    /// # Errors
    /// When it is not given, or no key, or the one that contents are fingerprinted with.
    pub fn keyring(&self) -> Result<Keyring, SettingFault> {
        let key = read_secret("PAYLOAD_KEY", self.payload_key.as_ref(), self.payload_key_file.as_ref())?;
        let fault = |reason: String| SettingFault::new("PAYLOAD_KEY", reason);
        let keyring = Keyring::parse(key.expose()).map_err(|unfit| fault(unfit.to_string()))?;
        let mut keys = key.expose().split(',').map(|entry| entry.trim().rsplit(':').next().unwrap_or(entry));
        if keys.clone().any(is_of_one_byte) {
            return Err(fault(ONE_BYTE.to_owned()));
        }
        // Base64 has one text for a key.
        if self.fingerprint.key().is_ok_and(|fingerprint_key| keys.any(|key| key == fingerprint_key.expose()))
        {
            let reason = "must differ: whoever may open payloads could forge histories; make another \
                 PAYLOAD_KEY with: openssl rand -base64 32";
            return Err(SettingFault::new("PAYLOAD_KEY, FINGERPRINT_KEY", reason));
        }
        Ok(keyring)
    }
}

impl FingerprintSettings {
    /// What contents are fingerprinted with.
    ///
    /// # Errors
    /// When it is not given, or no key.
    pub fn fingerprinter(&self) -> Result<Fingerprinter, SettingFault> {
        let key = self.key()?;
        let fault = |reason: String| SettingFault::new("FINGERPRINT_KEY", reason);
        let fingerprinter = Fingerprinter::parse(key.expose()).map_err(|unfit| fault(unfit.to_string()))?;
        if is_of_one_byte(key.expose()) {
            return Err(fault(ONE_BYTE.to_owned()));
        }
        Ok(fingerprinter)
    }

    fn key(&self) -> Result<Secret, SettingFault> {
        let file = self.fingerprint_key_file.as_ref();
        read_secret("FINGERPRINT_KEY", self.fingerprint_key.as_ref(), file)
    }
}

const ONE_BYTE: &str =
    "is one byte over and over, as no random key is; make one with: openssl rand -base64 32";

/// Whether a key, in Base64, is a placeholder: all zeros, say.
fn is_of_one_byte(key: &str) -> bool {
    let bytes = BASE64_STANDARD.decode(key).unwrap_or_default();
    bytes.iter().all(|byte| Some(byte) == bytes.first())
}

/// The host's name, with which a replica's begins that was given none.
pub fn host_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match host.trim() {
        "" => "worker".to_owned(),
        host => host.to_owned(),
    }
}

fn default_worker_name() -> String {
    format!("{}-{}", host_name(), std::process::id())
}
