//! What the URLs of the database and the broker may say. The client libraries pass over what they
//! do not know, and find the rest only when they connect, where it looks like an outage. Faults
//! show no value: it may be a password.

use std::path::PathBuf;

use lapin::uri::AMQPUri;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use url::{Host, Url};

use super::fault::SettingFault;
use super::secret::{Secret, read_pem};

const DATABASE_SCHEMES: [&str; 2] = ["postgres", "postgresql"];

/// What sqlx knows.
const DATABASE_PARAMETERS: [&str; 18] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

const AMQP_SCHEMES: [&str; 2] = ["amqp", "amqps"];

/// What lapin knows.
const AMQP_PARAMETERS: [&str; 5] =
    ["auth_mechanism", "channel_max", "connection_timeout", "frame_max", "heartbeat"];

/// How libpq names the server that takes writes. With several hosts we look for no other.
const SESSION_ATTRIBUTES: &str = "target_session_attrs";

/// Whether a URL leads to this machine.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

/// A URL of https, unless it leads to this machine. `form` tells how one is written.
pub(super) fn https_url(setting: &str, text: &str, form: &str) -> Result<Url, SettingFault> {
    let fault = |reason: String| SettingFault::new(setting, reason);
    let url = Url::parse(text).map_err(|error| fault(format!("must be a URL, {form}: {error}")))?;
    if url.host().is_none() {
        return Err(fault(format!("has no host; give {form}")));
    }
    if !(url.scheme() == "https" || url.scheme() == "http" && is_loopback(&url)) {
        return Err(fault("must be https; http is for this machine only".to_owned()));
    }
    if !url.username().is_empty()
        || url.password().is_some()
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err(fault("must have no user, password, query or fragment".to_owned()));
    }
    Ok(url)
}

/// The URL for each of the hosts that it names, in their order: the libraries take one.
fn by_host(url: &str) -> Vec<String> {
    let after_scheme = url.find("://").map_or(0, |at| at + "://".len());
    let end = url[after_scheme..].find(['/', '?', '#']).map_or(url.len(), |length| after_scheme + length);
    // What holds an @ before that is user and password.
    let hosts = url[..end].rfind('@').map_or(after_scheme, |at| at + 1);
    url[hosts..end].split(',').map(|host| format!("{}{host}{}", &url[..hosts], &url[end..])).collect()
}

/// The URL for each host of `DATABASE_URL`, as sqlx takes it.
pub fn database_urls(url: &Secret) -> Vec<Secret> {
    let url = match url.expose().split_once('?') {
        None => url.expose().to_owned(),
        Some((url, query)) => {
            let kept: Vec<&str> = query.split('&').filter(|each| !is_session_attributes(each)).collect();
            [url, &kept.join("&")].join(if kept.is_empty() { "" } else { "?" })
        }
    };
    by_host(&url).iter().map(|url| Secret::from(url.as_str())).collect()
}

fn is_session_attributes(parameter: &str) -> bool {
    parameter.split('=').next() == Some(SESSION_ATTRIBUTES)
}

/// Checks `DATABASE_URL`, and the files that it names.
pub(super) fn check_database_url(url: &Secret) -> Result<(), SettingFault> {
    let query = url.expose().split_once('?').map(|(_, query)| query).unwrap_or_default();
    for attributes in query.split('&').filter(|parameter| is_session_attributes(parameter)) {
        let value = attributes.split_once('=').map(|(_, value)| value);
        if !value.is_some_and(|value| ["read-write", "primary"].contains(&value)) {
            let reason =
                format!("{SESSION_ATTRIBUTES} must be read-write or primary: a worker works nowhere else");
            return Err(SettingFault::new("DATABASE_URL", reason));
        }
    }
    database_urls(url).iter().try_for_each(check_one_host)
}

fn check_one_host(url: &Secret) -> Result<(), SettingFault> {
    let fault = |reason: String| SettingFault::new("DATABASE_URL", reason);
    let parsed = parse(url, &DATABASE_SCHEMES).map_err(fault)?;
    check_parameters(&parsed, &DATABASE_PARAMETERS).map_err(fault)?;
    let parameter = |names: &[&str]| parsed.query_pairs().find(|(name, _)| names.contains(&&**name));
    let host = parameter(&["host", "hostaddr"]).map(|(_, host)| host.into_owned());
    match host.as_deref().or(parsed.host_str()).unwrap_or_default() {
        "" => {
            return Err(fault("names no host; write postgres://user:password@host:port/database".to_owned()));
        }
        host if host.contains(',') => {
            let what = "names several hosts in a parameter; write postgres://user:password@host1:port,host2:port/database";
            return Err(fault(what.to_owned()));
        }
        _ => {}
    }
    if parsed.path().trim_matches('/').is_empty() && parameter(&["dbname"]).is_none() {
        return Err(fault("names no database; write postgres://user:password@host:port/database".to_owned()));
    }
    let mode = match parameter(&["sslmode", "ssl-mode"]) {
        None => PgSslMode::default(),
        Some((_, mode)) => mode.parse().map_err(|_| {
            fault("sslmode must be disable, prefer, require, verify-ca or verify-full".to_owned())
        })?,
    };
    if url.expose().parse::<PgConnectOptions>().is_err() {
        let what = "holds a parameter or an escaped character that cannot be read";
        return Err(fault(format!("{what}; special characters are written %XX")));
    }
    let file = |names: &[&str], kind| {
        let Some((_, path)) = parameter(names) else { return Ok(false) };
        // The certificate itself may stand there.
        if !path.contains("-----BEGIN") {
            read_pem(&format!("DATABASE_URL ({})", names[0]), &PathBuf::from(&*path), kind)?;
        }
        Ok(true)
    };
    let has_authority = file(&["sslrootcert", "ssl-root-cert", "ssl-ca"], "CERTIFICATE")?;
    let has_certificate = file(&["sslcert", "ssl-cert"], "CERTIFICATE")?;
    let has_key = file(&["sslkey", "ssl-key"], "PRIVATE KEY")?;
    if has_certificate != has_key {
        return Err(fault("sslcert and sslkey go together; give both or neither".to_owned()));
    }
    if has_authority && !matches!(mode, PgSslMode::VerifyCa | PgSslMode::VerifyFull) {
        let what = "sslrootcert is looked at with sslmode=verify-full or verify-ca alone";
        return Err(fault(format!("{what}; add the one or remove the other")));
    }
    if has_certificate && matches!(mode, PgSslMode::Disable | PgSslMode::Allow) {
        return Err(fault("sslcert is for TLS, and sslmode forgoes that".to_owned()));
    }
    Ok(())
}

/// RabbitMQ 4 refuses smaller frames.
const FRAME_MAX_MIN: u32 = 8192;

/// RabbitMQ's own default. lapin asks for 32 frames of memory at once, and takes a broker that names
/// no limit at its word.
const FRAME_MAX_DEFAULT: u32 = 128 * 1024;
const FRAME_MAX_MAX: u32 = 1024 * 1024;

/// Fewer channels do not hold a session and what is looked at beside it.
const CHANNEL_MAX_MIN: u16 = 16;

/// AMQP gives a name's length one byte.
const VHOST_BYTES_MAX: usize = 255;

/// Reads `AMQP_URL`, which may name several hosts: `amqp://user:password@host1:port,host2:port/vhost`.
/// Returns one for each, in their order. They differ in host and port alone.
///
/// # Errors
/// What is wrong with it; its value, which holds a password, is not shown.
pub fn parse_amqp_url(url: &Secret) -> Result<Vec<AMQPUri>, SettingFault> {
    by_host(url.expose()).iter().map(|url| parse_amqp_url_of_one_host(&Secret::from(url.as_str()))).collect()
}

fn parse_amqp_url_of_one_host(url: &Secret) -> Result<AMQPUri, SettingFault> {
    let fault = |reason: String| SettingFault::new("AMQP_URL", reason);
    let parsed = parse(url, &AMQP_SCHEMES).map_err(fault)?;
    check_parameters(&parsed, &AMQP_PARAMETERS).map_err(fault)?;
    if parsed.host_str().unwrap_or_default().is_empty() {
        return Err(fault("names no host; write amqp://user:password@host:port/vhost".to_owned()));
    }
    if !parsed.username().is_empty() && parsed.password().is_none() && parsed.query().is_none() {
        return Err(fault(
            "names a user without a password; write amqp://user:password@host:port/vhost".to_owned(),
        ));
    }
    let Ok(mut uri) = url.expose().parse::<AMQPUri>() else {
        let what = "holds a parameter or an escaped character that cannot be read";
        return Err(fault(format!("{what}; special characters are written %XX")));
    };
    let frame_max = uri.query.frame_max.filter(|size| *size > 0).unwrap_or(FRAME_MAX_DEFAULT);
    if !(FRAME_MAX_MIN..=FRAME_MAX_MAX).contains(&frame_max) {
        return Err(fault(format!(
            "frame_max must be {FRAME_MAX_MIN} to {FRAME_MAX_MAX}, or 0 for {FRAME_MAX_DEFAULT}"
        )));
    }
    uri.query.frame_max = Some(frame_max);
    if uri.query.channel_max.is_some_and(|channels| (1..CHANNEL_MAX_MIN).contains(&channels)) {
        return Err(fault(format!(
            "channel_max must be at least {CHANNEL_MAX_MIN}, or 0 for what the broker has"
        )));
    }
    if uri.vhost.len() > VHOST_BYTES_MAX {
        return Err(fault(format!("the vhost must have at most {VHOST_BYTES_MAX} bytes")));
    }
    // lapin takes an IPv6 address for no host, and goes to localhost.
    if let Some(Host::Ipv6(address)) = parsed.host() {
        uri.authority.host = address.to_string();
    }
    Ok(uri)
}

/// Checks `DOLLARPE_PROXY`.
pub(super) fn check_proxy_url(url: &Secret) -> Result<(), SettingFault> {
    let fault = |reason: &str| SettingFault::new("DOLLARPE_PROXY", reason);
    let parsed = parse(url, &["http", "https"]).map_err(|reason| fault(&reason))?;
    if !["", "/"].contains(&parsed.path()) || parsed.query().is_some() || parsed.fragment().is_some() {
        return Err(fault("must have no path; write http://user:password@host:port"));
    }
    if parsed.password().is_none() != parsed.username().is_empty() {
        return Err(fault("has a user or a password alone; write http://user:password@host:port"));
    }
    Ok(())
}

fn parse(url: &Secret, schemes: &[&str]) -> Result<Url, String> {
    let parsed = Url::parse(url.expose()).ok().filter(|url| schemes.contains(&url.scheme()));
    let parsed = parsed.filter(|url| !url.cannot_be_a_base() && has_whole_escapes(url.as_str()));
    parsed.ok_or_else(|| {
        format!(
            "must be a URL that starts with {}://; special characters in a password are written %XX",
            schemes[0]
        )
    })
}

/// Whether each % begins an escaped character. What libraries take a lone one for is not what was meant.
fn has_whole_escapes(text: &str) -> bool {
    let is_escape = |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
    text.split('%').skip(1).all(is_escape)
}

/// Every parameter is known, and given once.
fn check_parameters(url: &Url, known: &[&str]) -> Result<(), String> {
    if url.fragment().is_some() {
        return Err("holds a #; in a password it is written %23".to_owned());
    }
    let mut seen = Vec::new();
    for (name, _) in url.query_pairs() {
        // `options[…]` sets one of the server's parameters.
        if !known.contains(&&*name) && !name.starts_with("options[") {
            // A password that holds a question mark may stand here.
            let is_word = name.len() <= 30 && name.bytes().all(|c| c.is_ascii_lowercase() || c == b'_');
            let shown = if is_word { format!("the parameter {name}") } else { "a parameter".to_owned() };
            return Err(format!("names {shown}, which the worker does not know; remove it"));
        }
        if seen.contains(&name) {
            return Err(format!("names {name} twice"));
        }
        seen.push(name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_url_holds_nothing_that_would_be_passed_over() {
        let check = |url: &str| check_database_url(&Secret::from(url)).map_err(|fault| fault.to_string());
        for sound in [
            "postgres://kyc:s3cr3t@h:5432/kyc",
            "postgresql://kyc@[::1]/kyc?sslmode=require&application_name=x",
            "postgres:///kyc?host=/var/run/postgresql&user=kyc",
            "postgres://h/kyc?sslmode=verify-full&options[geqo]=off",
            "postgres://kyc:p%24%23%26w@h/kyc",
            "postgres://kyc:s3cr3t@h1,h2:5433,[::1]:5434/kyc?target_session_attrs=read-write",
            "postgres://h1,h2/kyc?target_session_attrs=primary&sslmode=require",
        ] {
            assert_eq!(check(sound), Ok(()), "{sound}");
        }
        for (odd, said) in [
            ("mysql://kyc:s3cr3t@h/kyc", "postgres://"),
            ("postgres:kyc:s3cr3t@h", "postgres://"),
            ("postgres:///kyc", "no host"),
            ("postgres:///kyc?host=h1,h2", "several hosts in a parameter"),
            ("postgres://kyc:s3cr3t@h1,/kyc", "postgres://"),
            ("postgres://h1,h2:x/kyc", "postgres://"),
            ("postgres://h1,h2/kyc?target_session_attrs=any", "read-write or primary"),
            ("postgres://h/kyc?sslmode=bogus", "sslmode must be"),
            ("postgres://h/kyc?sslmode=", "sslmode must be"),
            ("postgres://h/kyc?sslmode=disable&sslmode=require", "sslmode twice"),
            ("postgres://h/kyc?sslpassword=s3cr3t", "the parameter sslpassword"),
            ("postgres://h/kyc?connect_timeout=5", "the parameter connect_timeout"),
            ("postgres://kyc:12?s3cr3t@h/kyc", "a parameter, which"),
            ("postgres://kyc:#s3cr3t@h/kyc", "%23"),
            ("postgres://kyc@h/kyc#s3cr3t", "%23"),
            ("postgres://h/kyc?port=s3cr3t", "cannot be read"),
            ("postgres://kyc:%ff@h/kyc", "cannot be read"),
            ("postgres://h/kyc?sslmode=verify-full&sslrootcert=/nowhere.pem", "cannot read /nowhere.pem"),
            ("postgres://h/kyc?sslrootcert=-----BEGIN CERTIFICATE-----", "verify-full or verify-ca alone"),
            ("postgres://h/kyc?sslcert=-----BEGIN CERTIFICATE-----", "go together"),
        ] {
            let fault = check(odd).expect_err(odd);
            assert!(fault.starts_with("DATABASE_URL") && fault.contains(said), "{odd}: {fault}");
            assert!(!fault.contains("s3cr3t"), "{fault}");
        }
    }

    #[test]
    fn each_host_of_a_database_url_has_its_own() {
        for (url, expected) in [
            ("postgres://h/kyc", vec!["postgres://h/kyc"]),
            (
                "postgres://u:p,w@h1,h2:5433/kyc?a=1&target_session_attrs=read-write&b=2",
                vec!["postgres://u:p,w@h1/kyc?a=1&b=2", "postgres://u:p,w@h2:5433/kyc?a=1&b=2"],
            ),
            (
                "postgres://h1,[::1]:5434?target_session_attrs=primary",
                vec!["postgres://h1", "postgres://[::1]:5434"],
            ),
            ("postgres:///kyc?host=/run/postgresql", vec!["postgres:///kyc?host=/run/postgresql"]),
        ] {
            let urls = database_urls(&Secret::from(url));
            assert_eq!(urls.iter().map(Secret::expose).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn an_amqp_url_holds_nothing_that_would_be_passed_over() {
        let check = |url: &str| parse_amqp_url(&Secret::from(url)).map_err(|fault| fault.to_string());
        for (sound, hosts) in [
            ("amqp://guest:guest@h/%2f?frame_max=131072", &[("h", 5672)][..]),
            ("amqps://h?auth_mechanism=external", &[("h", 5671)]),
            ("amqp://127.0.0.1/v?frame_max=0", &[("127.0.0.1", 5672)]),
            ("amqp://h/%2f?frame_max=1048576&channel_max=16", &[("h", 5672)]),
            ("amqp://guest:guest@[::1]:5673/%2f", &[("::1", 5673)]),
            ("amqps://[2001:db8::7]", &[("2001:db8::7", 5671)]),
            ("amqps://h1,h2:5673,h3/v", &[("h1", 5671), ("h2", 5673), ("h3", 5671)]),
            ("amqp://u:p%40,q@h1:1,[::1]:2,[::2]?heartbeat=5", &[("h1", 1), ("::1", 2), ("::2", 5672)]),
        ] {
            let read = check(sound).expect(sound);
            let read: Vec<_> =
                read.iter().map(|uri| (uri.authority.host.as_str(), uri.authority.port)).collect();
            assert_eq!(read, hosts, "{sound}");
        }
        let several = check("amqp://u:p%40,q@h1,h2/%2fv?heartbeat=5").expect("it is sound");
        for uri in &several {
            let userinfo = &uri.authority.userinfo;
            assert_eq!((userinfo.password.as_str(), uri.vhost.as_str()), ("p@,q", "/v"));
            assert_eq!(uri.query.heartbeat, Some(5));
        }
        for (odd, said) in [
            ("http://guest:s3cr3t@h", "amqp://"),
            ("amqp:h", "amqp://"),
            ("amqp:///vhost", "no host"),
            ("amqp://h?frame_max=s3cr3t", "cannot be read"),
            ("amqp://h?frame_max=8191", "must be 8192 to 1048576"),
            ("amqp://h?frame_max=1048577", "must be 8192 to 1048576"),
            ("amqp://h?frame_max=4294967295", "must be 8192 to 1048576"),
            ("amqp://h?channel_max=15", "channel_max must be at least 16"),
            (&format!("amqp://h/{}", "v".repeat(256)), "at most 255 bytes"),
            (&format!("amqp://h/{}", "%c3%bc".repeat(128)), "at most 255 bytes"),
            ("amqp://:5672/vhost", "amqp://"),
            ("amqp://guest:s3cr3t@h1,/vhost", "amqp://"),
            ("amqp://guest:s3cr3t@h1,,h2", "amqp://"),
            ("amqp://guest:s3cr3t@h1:5672,h2:port", "amqp://"),
            ("amqp://h?auth_mechanism=s3cr3t", "cannot be read"),
            ("amqp://u:%ff@h", "cannot be read"),
            ("amqps://h?verify=verify_peer", "the parameter verify"),
            ("amqps://h?password=s3cr3t", "the parameter password"),
            ("amqp://h?frame_max=1&frame_max=2", "frame_max twice"),
        ] {
            let fault = check(odd).expect_err(odd);
            assert!(fault.starts_with("AMQP_URL") && fault.contains(said), "{odd}: {fault}");
            assert!(!fault.contains("s3cr3t"), "{fault}");
        }
    }

    /// lapin would ask for as much memory as 32 frames of a broker's that names no limit.
    #[test]
    fn the_broker_alone_never_says_how_large_a_frame_may_be() {
        for (url, size) in
            [("amqp://h", 131_072), ("amqp://h?frame_max=0", 131_072), ("amqp://h?frame_max=8192", 8192)]
        {
            let uris = parse_amqp_url(&Secret::from(url)).expect(url);
            assert_eq!(uris[0].query.frame_max, Some(size), "{url}");
        }
    }
}
