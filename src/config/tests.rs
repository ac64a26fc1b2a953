//! Settings that are sound, and all that is wrong with those that are not.

use std::ffi::OsString;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Parser;

use super::secret::read_secret;
use super::*;

#[derive(Debug, Parser)]
struct Program {
    #[command(subcommand)]
    command: Subcommand,
}

#[derive(Debug, clap::Subcommand)]
enum Subcommand {
    Run(Box<RunSettings>),
}

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// Checks the settings that are sound but for `flags`; returns what is wrong.
fn check(flags: &[&str]) -> Vec<String> {
    let sound = [
        "--database-url=postgres://h/d",
        "--amqp-url=amqp://h",
        "--dollarpe-base-url=https://h/v1",
        "--dollarpe-api-key=k",
        "--dollarpe-api-secret=s",
        "--payload-key=AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        "--fingerprint-key=ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=",
    ];
    let command =
        <Program as clap::CommandFactory>::command().mut_subcommands(|run| run.args_override_self(true));
    // A database that is named twice is two.
    let name = |flag: &str| flag.split('=').next().map(str::to_owned);
    let sound = sound.iter().filter(|own| flags.iter().all(|flag| name(flag) != name(own)));
    let arguments = ["kyc-worker", "run"].iter().chain(sound).chain(flags).map(OsString::from);
    let Parsed { value, mut faults, .. } = parse_all::<Program>(&command, arguments).expect("usage is right");
    let Subcommand::Run(settings) = value.command;
    faults.extend(settings.check().err().unwrap_or_default());
    faults.iter().map(ToString::to_string).collect()
}

/// A value, and how it is read; or the setting that is blamed.
#[test]
fn odd_texts_and_lists_are_read_as_meant_or_refused() {
    for (flag, blamed) in [
        ("--document-types=AADHAAR, PASSPORT", None),
        ("--document-types=AADHAAR,,PASSPORT", Some("DOCUMENT_TYPES")),
        ("--document-types=", Some("DOCUMENT_TYPES")),
        ("--document-types=aadhaar", Some("DOCUMENT_TYPES")),
        ("--document-types= provider", None),
        ("--document-types=provider,PASSPORT", Some("DOCUMENT_TYPES")),
        ("--document-types=Provider", Some("DOCUMENT_TYPES")),
        ("--link-check=yes", Some("LINK_CHECK")),
        ("--link-check-ca-file=/etc/hosts", Some("LINK_CHECK_CA_FILE")),
        ("--document-types=\"AADHAAR\"", Some("DOCUMENT_TYPES")),
        ("--not-applied-statuses=503, 504", None),
        ("--not-applied-statuses=503;504", Some("NOT_APPLIED_STATUSES")),
        ("--not-applied-statuses=5xx", Some("NOT_APPLIED_STATUSES")),
        ("--worker-name=w\u{7}", Some("WORKER_NAME")),
        ("--dollarpe-base-url=https://h/v1?key=s3cr3t", Some("DOLLARPE_BASE_URL")),
        ("--database-url=postgres://h/d?sslmode=bogus", Some("DATABASE_URL")),
        ("--amqp-url=amqp://h?frame_max=abc", Some("AMQP_URL")),
        ("--database-url=postgres://kyc:p%zz@h/d", Some("DATABASE_URL")),
        ("--database-url=postgres://h", Some("DATABASE_URL")),
        ("--database-url=postgres://h/?dbname=d", None),
        ("--amqp-url=amqp://u@h", Some("AMQP_URL")),
        ("--amqp-url=amqp://u:p%4@h", Some("AMQP_URL")),
        ("--otel-exporter-otlp-endpoint=http://h:4318", None),
        ("--otel-exporter-otlp-endpoint=h:4318", Some("OTEL_EXPORTER_OTLP_ENDPOINT")),
        ("--otel-exporter-otlp-endpoint=grpc://h:4317", Some("OTEL_EXPORTER_OTLP_ENDPOINT")),
        ("--otel-exporter-otlp-endpoint=http://u:p@h", Some("OTEL_EXPORTER_OTLP_ENDPOINT")),
        ("--otel-exporter-otlp-headers=key=a%20b,other=c", None),
        ("--otel-exporter-otlp-headers=key", Some("OTEL_EXPORTER_OTLP_HEADERS")),
        ("--otel-exporter-otlp-headers=a key=b", Some("OTEL_EXPORTER_OTLP_HEADERS")),
        ("--otel-resource-attributes=a", Some("OTEL_RESOURCE_ATTRIBUTES")),
        ("--otel-traces-sampler-arg=1.5", Some("OTEL_TRACES_SAMPLER_ARG")),
        ("--amqp-ca-file=/etc/hosts", Some("AMQP_CA_FILE, AMQP_CERT_FILE, AMQP_KEY_FILE")),
        ("--topology=Declare", Some("TOPOLOGY")),
        ("--customer-events=yes", Some("CUSTOMER_EVENTS")),
        ("--database-url-file=", Some("DATABASE_URL_FILE")),
        ("--payload-key=AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n", None),
        ("--dollarpe-api-secret=two\nlines", Some("DOLLARPE_API_SECRET")),
    ] {
        let faults = check(&[flag]);
        let is_told = match blamed {
            None => faults.is_empty(),
            Some(setting) => faults.iter().any(|fault| fault.starts_with(&format!("{setting}: "))),
        };
        assert!(is_told, "{flag}: {faults:?}");
        assert!(!faults.join(" ").contains("s3cr3t"), "{faults:?}");
    }
}

#[test]
fn blanks_in_a_list_of_types_are_none_of_it() {
    let settings = Program::try_parse_from(["kyc-worker", "run", "--document-types= AADHAAR, PASSPORT "]);
    let Subcommand::Run(settings) = settings.expect("they are sound").command;
    assert_eq!(settings.jobs.document_types, ["AADHAAR", "PASSPORT"]);
}

fn faults_name(flags: &[&str], settings: &[&str]) {
    let faults = check(flags);
    assert_eq!(faults.len(), settings.len(), "{flags:?}: {faults:?}");
    for setting in settings {
        assert!(faults.iter().any(|fault| fault.starts_with(setting)), "{setting} in {faults:?}");
    }
}

#[test]
fn sound_settings_have_no_fault() {
    faults_name(&[], &[]);
}

#[test]
fn every_fault_is_told_at_once() {
    faults_name(
        &[
            "--concurrency=many",
            "--request-timeout=soon",
            "--database-url=mysql://h/d",
            "--dollarpe-base-url=http://example.com/v1",
            "--payload-key=short",
            "--not-applied-statuses=200",
        ],
        &[
            "CONCURRENCY",
            "REQUEST_TIMEOUT",
            "DATABASE_URL",
            "DOLLARPE_BASE_URL",
            "PAYLOAD_KEY",
            "NOT_APPLIED_STATUSES",
        ],
    );
}

#[test]
fn times_that_do_not_fit_together_are_refused() {
    faults_name(&["--claim-lease=19s"], &["SEND_WINDOW, REQUEST_TIMEOUT, CLAIM_LEASE"]);
    faults_name(&["--claim-lease=20s"], &[]);
    faults_name(&["--claim-lease=29s"], &[]);
    let read_back = "CLAIM_LEASE, READ_BACK_AFTER, SCHEDULER_POLL, READ_TIMEOUT, READ_BACK_WINDOW";
    faults_name(&["--claim-lease=30s"], &[read_back]);
    faults_name(&["--retry-delay-min=2h"], &["RETRY_DELAY_MIN, RETRY_DELAY_MAX"]);
    faults_name(&["--prefetch=10"], &["PREFETCH, CONCURRENCY"]);
    faults_name(&["--link-check", "--allow-http-links"], &["LINK_CHECK, ALLOW_HTTP_LINKS"]);
    let interval = "CUSTOMER_READ_INTERVAL, VERIFICATION_POLL_AFTER";
    faults_name(&["--customer-read-interval=61s"], &[interval]);
    let (window, poll_max) =
        ("READ_BACK_WINDOW, VERIFICATION_POLL_AFTER", "VERIFICATION_POLL_AFTER, VERIFICATION_POLL_MAX");
    faults_name(&["--read-back-window=60s", "--verification-poll-after=59s"], &[window, interval]);
    let confirming = "SCHEDULER_POLL, READ_TIMEOUT, READ_BACK_WINDOW";
    let short = ["--send-window=2s", "--request-timeout=8s", "--claim-lease=18s", "--read-back-after=9s"];
    faults_name(&[&short[..], &["--read-timeout=17s"]].concat(), &[]);
    faults_name(&[&short[..], &["--read-timeout=18s"]].concat(), &[confirming]);
    let covered = "APPLIED_WITHIN, READ_BACK_AFTER, READ_BACK_WINDOW, SCHEDULER_POLL, READ_TIMEOUT";
    let quick = [
        "--read-back-window=20s",
        "--claim-lease=5s",
        "--request-timeout=3s",
        "--send-window=2s",
        "--read-timeout=3s",
        "--scheduler-poll=500ms",
        "--read-back-after=2s",
    ];
    // 2 s and 11/12 of 20 s, less 3.5 s.
    faults_name(&quick, &[covered]);
    faults_name(&[&quick[..], &["--applied-within=16s"]].concat(), &[]);
    faults_name(&[&quick[..], &["--applied-within=17s"]].concat(), &[covered]);
    faults_name(&["--verification-poll-after=16m"], &[poll_max]);
    faults_name(&["--verification-give-up=5h"], &["VERIFICATION_DEADLINE, VERIFICATION_GIVE_UP"]);
    faults_name(&["--verification-deadline=14m"], &["VERIFICATION_POLL_MAX, VERIFICATION_DEADLINE"]);
    let events = "CUSTOMER_EVENTS_QUEUE, CUSTOMER_EVENTS_ROUTING_KEY";
    faults_name(&["--customer-events-queue=kyc.dead-letters"], &[events]);
    faults_name(&["--customer-events-routing-key=document-update"], &[events]);
}

#[test]
fn names_that_would_send_messages_round_are_refused() {
    let exchanges = "EXCHANGE, DEAD_LETTER_EXCHANGE";
    faults_name(&["--dead-letter-exchange=kyc"], &[exchanges]);
    faults_name(&["--exchange=kyc.dlx"], &[exchanges]);
    faults_name(&["--dead-letter-queue=kyc.document-updates"], &["QUEUE, DEAD_LETTER_QUEUE"]);
    for exchange in ["kyc", "kyc.dlx"] {
        faults_name(&[&format!("--events-exchange={exchange}")], &["EVENTS_EXCHANGE"]);
    }
    for (flag, setting) in [
        ("--exchange=", "EXCHANGE"),
        ("--queue= kyc.document-updates", "QUEUE"),
        ("--routing-key=document-update ", "ROUTING_KEY"),
        ("--dead-letter-exchange=kyc.\ndlx", "DEAD_LETTER_EXCHANGE"),
        ("--queue=amq.jobs", "QUEUE"),
        ("--dead-letter-queue=amq.dead", "DEAD_LETTER_QUEUE"),
    ] {
        faults_name(&[flag], &[setting]);
    }
}

#[test]
fn plain_http_is_for_this_machine_only() {
    for url in ["http://127.0.0.1:4010/v1", "http://localhost/v1", "http://[::1]:4010/v1"] {
        faults_name(&[&format!("--dollarpe-base-url={url}")], &[]);
    }
    for url in ["http://10.0.0.1/v1", "ftp://h/v1", "https://user:pw@h/v1", "not a url"] {
        faults_name(&[&format!("--dollarpe-base-url={url}")], &["DOLLARPE_BASE_URL"]);
    }
}

#[test]
fn a_secret_may_be_a_file_but_not_both() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(&file, format!("\u{feff} {KEY} \r\n")).expect("it can be written");
    let flag = format!("--payload-key-file={}", file.path().display());
    faults_name(&[&flag], &["PAYLOAD_KEY"]);
    let both = read_secret("PAYLOAD_KEY", None, Some(&file.path().to_path_buf()));
    assert_eq!(both.expect("a secret").expose(), KEY);
}

#[test]
fn keys_that_are_placeholders_or_each_others_are_refused() {
    let of_one_byte = BASE64_STANDARD.encode([7; 32]);
    let random = "QEFCQ0RFRkdISUpLTE1OT1BRUlNUVVZXWFlaW1xdXl8=";
    faults_name(&[&format!("--payload-key={of_one_byte}")], &["PAYLOAD_KEY: is one byte"]);
    faults_name(&[&format!("--payload-key=a:{random},b:{of_one_byte}")], &["PAYLOAD_KEY: is one byte"]);
    faults_name(&[&format!("--fingerprint-key={of_one_byte}")], &["FINGERPRINT_KEY: is one byte"]);
    let same = ["PAYLOAD_KEY, FINGERPRINT_KEY: must differ"];
    faults_name(&[&format!("--fingerprint-key={KEY}")], &same);
    let both = [&format!("--payload-key=a:{random}, b:{KEY}")[..], &format!("--fingerprint-key={KEY}")];
    faults_name(&both, &same);
}

/// A filter, and whether it is taken.
#[test]
fn a_filter_that_silences_our_errors_is_refused() {
    for (filter, is_taken) in [
        ("off", true),
        ("info", true),
        ("WARN", true),
        ("warn,kyc_worker=debug", true),
        ("off,kyc_worker=error", true),
        ("info,hyper=off", true),
        ("info,kyc_worker::loops=debug", true),
        ("info,[job]=trace", false),
        ("info,", false),
        ("kyc_worker", true),
        ("warning", false),
        ("infos", false),
        ("info,warning", false),
        ("kyc-worker=info", false),
        ("hyper=info", false),
        ("kyc_worker::worker=info", false),
        ("info,kyc_worker=off", false),
        ("info,kyc_worker::loops=off", false),
        ("info,kyc_worker[{error}]=off", false),
        ("[job]=trace", false),
        ("off,hyper=warn", false),
        ("kyc_worker=loud", false),
    ] {
        let log = Logs::try_parse_from(["kyc-worker", &format!("--rust-log={filter}")]);
        assert_eq!(log.is_ok(), is_taken, "{filter}: {log:?}");
    }
}

#[derive(Debug, Parser)]
struct Logs {
    #[command(flatten)]
    _log: LogSettings,
}

#[test]
fn no_fault_shows_a_secret() {
    let faults = check(&[
        "--database-url=mysql://u:s3cr3t@h/d",
        "--amqp-url=s3cr3t",
        "--payload-key=s3cr3t",
        "--fingerprint-key=s3cr3t",
        "--dollarpe-api-secret= ",
        "--dollarpe-proxy=socks5://u:s3cr3t@h",
    ]);
    assert_eq!(faults.len(), 6, "{faults:?}");
    assert!(!faults.join(" ").contains("s3cr3t"), "{faults:?}");
    assert_eq!(format!("{:?}", Secret::from("s3cr3t")), "[redacted]");
}

/// What a setting takes, and beside which others, where its range is theirs too.
struct Range {
    setting: &'static str,
    takes: &'static [&'static str],
    refuses: &'static [&'static str],
    beside: &'static [&'static str],
}

const fn range(
    setting: &'static str,
    takes: &'static [&'static str],
    refuses: &'static [&'static str],
    beside: &'static [&'static str],
) -> Range {
    Range { setting, takes, refuses, beside }
}

/// The lowest and the highest values, and those just outside.
const RANGES: [Range; 38] = [
    range("METRICS_LISTEN", &["127.0.0.1:0", "[::1]:9464"], &["9464", "localhost", "0.0.0.0:65536"], &[]),
    range("DATABASE_CONNECTIONS", &["3", "1000"], &["2", "1001"], &[]),
    range("DEAD_LETTER_TTL", &["1h", "90d"], &["0s", "59m 59s", "90d 1ms", "3651d", "10000y"], &[]),
    range("REQUEST_TIMEOUT", &["100ms", "20s"], &["0s", "99ms", "20001ms", "10000y"], &[]),
    range("READ_TIMEOUT", &["100ms", "14s"], &["0s", "99ms", "14001ms"], &[]),
    range("SEND_WINDOW", &["100ms", "10s"], &["0s", "99ms", "10001ms"], &[]),
    range(
        "NOT_APPLIED_STATUSES",
        &["408", "499", "501", "599"],
        &["200", "400", "407", "409", "429", "498", "500", "600"],
        &[],
    ),
    range("LINK_EXPIRY_MARGIN", &["0s", "1d"], &["1d 1ms", "-1s"], &[]),
    range(
        "LINK_CHECK_ALLOW",
        &["10.20.0.0/16", "10.20.30.40/32, fd12::/32", "0.0.0.0/1"],
        &[
            "10.20.30.40",
            "0.0.0.0/0",
            "::/0",
            "10.0.0.0/33",
            "10.20.0.0/16;10.30.0.0/16",
            "files.example.com",
        ],
        &[],
    ),
    range("READ_BACK_AFTER", &["1s", "19s"], &["0s", "999ms", "19001ms"], &[]),
    range("APPLIED_WITHIN", &["1ms", "59s"], &["0s", "59001ms"], &[]),
    range(
        "READ_BACK_WINDOW",
        &["55637ms", "60s"],
        &["0s", "55636ms", "60001ms"],
        &["--verification-poll-after=2m"],
    ),
    range("READ_BACK_CONFIRMATIONS", &["2", "10"], &["0", "1", "11"], &[]),
    range("READ_BACK_DEADLINE", &["60s", "7d"], &["59999ms", "7d 1ms"], &[]),
    range("CUSTOMER_READ_INTERVAL", &["1ms", "60s"], &["0s", "60001ms"], &[]),
    range("CUSTOMER_UPDATE_LIMIT", &["1", "10"], &["0", "11"], &[]),
    range(
        "VERIFICATION_POLL_AFTER",
        &["60s", "15m"],
        &["59999ms", "15m 1ms"],
        &["--customer-read-interval=1s"],
    ),
    range("VERIFICATION_POLL_MAX", &["60s", "6h"], &["59999ms", "6h 1ms"], &[]),
    range("VERIFICATION_DEADLINE", &["15m", "7d"], &["14m", "7d 1ms"], &[]),
    range("VERIFICATION_GIVE_UP", &["6h", "3650d"], &["5h", "3651d"], &[]),
    range("VERIFICATION_READS_PER_SECOND", &["1", "1000"], &["0", "1001"], &[]),
    range("CUSTOMER_EVENT_AGE_MAX", &["1s", "1d"], &["0s", "999ms", "1d 1ms"], &[]),
    range("PAYLOAD_RETENTION", &["1ms", "3650d"], &["0s", "3651d", "10000y"], &[]),
    range("CONCURRENCY", &["1", "4096"], &["0", "4097"], &["--prefetch=65535"]),
    range("PREFETCH", &["64", "65535"], &["63", "65536"], &[]),
    range("CLAIM_LEASE", &["20s", "29s"], &["0s", "19999ms", "29001ms", "10000y"], &[]),
    range("SCHEDULER_POLL", &["1ms", "5s"], &["0s", "5001ms"], &[]),
    range("RETRY_DELAY_MIN", &["1ms", "1h"], &["0s", "1h 1ms"], &[]),
    range("RETRY_DELAY_MAX", &["500ms", "1d"], &["499ms", "1d 1ms"], &[]),
    range("RETRY_MAX_ATTEMPTS", &["1", "1000"], &["0", "1001"], &[]),
    range("BREAKER_FAILURES", &["1", "10000"], &["0", "10001"], &[]),
    range("BREAKER_PROBE_INTERVAL", &["1ms", "1h"], &["0s", "1h 1ms"], &[]),
    range("DEAD_LETTER_RETENTION", &["30d", "3650d"], &["29d", "3651d"], &[]),
    range("SHUTDOWN_GRACE", &["2s", "1h"], &["0s", "1999ms", "1h 1ms"], &[]),
    range("READ_BACK_UNVERIFIED", &["inconclusive", "not-applied"], &["applied"], &[]),
    range("TOPOLOGY", &["declare", "verify"], &["delete"], &[]),
    range("OTEL_TRACES_SAMPLER_ARG", &["0", "1"], &["-0.1", "1.1", "NaN", "all"], &[]),
    range(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        &["http://h:4318", "https://h/base"],
        &["h:4318", "grpc://h", "http://u:p@h", "http://h?k=v"],
        &[],
    ),
];

/// What has no range: names, places, keys, switches.
const WITHOUT_RANGE: [&str; 42] = [
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_HEADERS_FILE",
    "OTEL_SERVICE_NAME",
    "OTEL_RESOURCE_ATTRIBUTES",
    "DATABASE_URL",
    "DATABASE_URL_FILE",
    "AMQP_URL",
    "AMQP_URL_FILE",
    "AMQP_CA_FILE",
    "AMQP_CERT_FILE",
    "AMQP_KEY_FILE",
    "EXCHANGE",
    "QUEUE",
    "ROUTING_KEY",
    "DEAD_LETTER_EXCHANGE",
    "DEAD_LETTER_QUEUE",
    "CUSTOMER_EVENTS",
    "CUSTOMER_EVENTS_QUEUE",
    "CUSTOMER_EVENTS_ROUTING_KEY",
    "OUTCOME_EVENTS",
    "ALLOW_UNSAFE_DATABASE",
    "EVENTS_EXCHANGE",
    "DOLLARPE_BASE_URL",
    "DOLLARPE_CA_FILE",
    "DOLLARPE_PROXY",
    "DOLLARPE_PROXY_FILE",
    "DOLLARPE_API_KEY",
    "DOLLARPE_API_KEY_FILE",
    "DOLLARPE_API_SECRET",
    "DOLLARPE_API_SECRET_FILE",
    "DOLLARPE_SIGNING_PROFILE",
    "BASELINE_READ",
    "DOCUMENT_TYPES",
    "ALLOW_HTTP_LINKS",
    "ALLOW_EXTENSIONLESS_LINKS",
    "LINK_CHECK",
    "LINK_CHECK_CA_FILE",
    "PAYLOAD_KEY",
    "PAYLOAD_KEY_FILE",
    "FINGERPRINT_KEY",
    "FINGERPRINT_KEY_FILE",
    "WORKER_NAME",
];

#[test]
fn every_setting_takes_its_range_and_nothing_outside() {
    for Range { setting, takes, refuses, beside } in &RANGES {
        let flag = setting.to_lowercase().replace('_', "-");
        let check = |value| {
            let flag = format!("--{flag}={value}");
            check(&[beside, &[flag.as_str()][..]].concat())
        };
        for value in *takes {
            assert!(check(value).is_empty(), "{setting}={value}: {:?}", check(value));
        }
        for value in *refuses {
            let faults = check(value);
            let names =
                |fault: &String| fault.split(": ").next().is_some_and(|named| named.contains(setting));
            assert!(!faults.is_empty() && faults.iter().all(names), "{setting}={value}: {faults:?}");
        }
    }
}

#[test]
fn no_setting_is_without_its_range() {
    let command = <Program as clap::CommandFactory>::command();
    let run = command.find_subcommand("run").expect("it is there");
    for argument in run.get_arguments().filter_map(clap::Arg::get_env) {
        let setting = argument.to_str().expect("UTF-8");
        let has_range = RANGES.iter().any(|range| range.setting == setting);
        assert!(has_range || WITHOUT_RANGE.contains(&setting), "{setting}: say in RANGES what it takes");
    }
}

#[derive(Debug, Parser)]
struct ConsoleProgram {
    #[command(subcommand)]
    command: ConsoleSubcommand,
}

#[derive(Debug, clap::Subcommand)]
enum ConsoleSubcommand {
    Console(Box<ConsoleSettings>),
}

/// What the console's settings amount to, or what is wrong with them.
fn check_console(flags: &[&str]) -> Result<CheckedConsole, Vec<String>> {
    let command = <ConsoleProgram as clap::CommandFactory>::command()
        .mut_subcommands(|console| console.args_override_self(true));
    let arguments = ["kyc-worker", "console"].iter().chain(flags).map(OsString::from);
    let Parsed { value, mut faults, .. } =
        parse_all::<ConsoleProgram>(&command, arguments).expect("usage is right");
    let ConsoleSubcommand::Console(settings) = value.command;
    let checked = settings.check();
    faults.extend(checked.as_ref().err().cloned().unwrap_or_default());
    match checked {
        Ok(checked) if faults.is_empty() => Ok(checked),
        _ => Err(faults.iter().map(ToString::to_string).collect()),
    }
}

/// 32 characters, and one fewer.
const PROXY_SECRET: &str = "--console-proxy-secret=ABCDEFGHIJKLMNOPQRSTUVWXYZ012345";
const SHORT_SECRET: &str = "--console-proxy-secret=ABCDEFGHIJKLMNOPQRSTUVWXYZ01234";

const PROXY: &str = "--console-login=proxy";
const SIDECAR: &str = "--console-login=sidecar";
const LOCAL: &str = "--console-login=local";
const ANA: &str = "--console-local-user=ana";
const PUBLIC: &str = "--console-public-url=https://kyc.example.com";
const EVERYWHERE: &str = "--console-listen=0.0.0.0:8080";

/// How somebody is known, where the pages are answered and what comes with it; and the setting that is
/// blamed, if one is.
#[test]
fn a_console_starts_only_where_it_is_clear_who_asks() {
    let table: &[(&[&str], Option<&str>)] = &[
        (&[], Some("CONSOLE_LOGIN")),
        (&[ANA], Some("CONSOLE_LOGIN")),
        (&[PROXY_SECRET, PUBLIC], Some("CONSOLE_LOGIN")),
        (&["--console-login=none"], Some("CONSOLE_LOGIN")),
        (&["--console-login=Local", ANA], Some("CONSOLE_LOGIN")),
        // One who uses it, on this machine.
        (&[LOCAL, ANA], None),
        (&[LOCAL, ANA, "--console-listen=[::1]:8080"], None),
        (&[LOCAL, ANA, "--console-listen=127.9.9.9:0"], None),
        (&[LOCAL], Some("CONSOLE_LOCAL_USER")),
        (&[LOCAL, "--console-local-user= "], Some("CONSOLE_LOCAL_USER")),
        (&[LOCAL, "--console-local-user=a\u{7}na"], Some("CONSOLE_LOCAL_USER")),
        (&[LOCAL, ANA, EVERYWHERE], Some("CONSOLE_LISTEN")),
        (&[LOCAL, ANA, "--console-listen=[::]:8080"], Some("CONSOLE_LISTEN")),
        (&[LOCAL, ANA, "--console-listen=10.0.0.1:8080"], Some("CONSOLE_LISTEN")),
        (&[LOCAL, ANA, PROXY_SECRET], Some("CONSOLE_PROXY_SECRET")),
        (&[LOCAL, ANA, "--console-proxy-secret-file=/etc/hostname"], Some("CONSOLE_PROXY_SECRET")),
        // A proxy of the same pod.
        (&[SIDECAR, PUBLIC], None),
        (&[SIDECAR], Some("CONSOLE_PUBLIC_URL")),
        (&[SIDECAR, PUBLIC, EVERYWHERE], Some("CONSOLE_LISTEN")),
        (&[SIDECAR, PUBLIC, PROXY_SECRET], Some("CONSOLE_PROXY_SECRET")),
        (&[SIDECAR, PUBLIC, ANA], Some("CONSOLE_LOCAL_USER")),
        // A proxy that proves itself, wherever the console listens.
        (&[PROXY, PUBLIC, PROXY_SECRET], None),
        (&[PROXY, PUBLIC, PROXY_SECRET, EVERYWHERE], None),
        (&[PROXY, PUBLIC], Some("CONSOLE_PROXY_SECRET")),
        (&[PROXY, PUBLIC, EVERYWHERE], Some("CONSOLE_PROXY_SECRET")),
        (&[PROXY, PUBLIC, SHORT_SECRET], Some("CONSOLE_PROXY_SECRET")),
        (
            &[PROXY, PUBLIC, PROXY_SECRET, "--console-proxy-secret-file=/etc/hostname"],
            Some("CONSOLE_PROXY_SECRET"),
        ),
        (&[PROXY, PUBLIC, "--console-proxy-secret-file=/nowhere"], Some("CONSOLE_PROXY_SECRET")),
        (&[PROXY, PROXY_SECRET], Some("CONSOLE_PUBLIC_URL")),
        (&[PROXY, PUBLIC, PROXY_SECRET, ANA], Some("CONSOLE_LOCAL_USER")),
    ];
    for (flags, blamed) in table {
        match (check_console(flags), blamed) {
            (Ok(_), None) => {}
            (Err(faults), Some(setting)) => {
                let is_told = |fault: &String| fault.starts_with(&format!("{setting}: "));
                assert!(!faults.is_empty() && faults.iter().all(is_told), "{flags:?}: {faults:?}");
                assert!(!faults[0].contains("ABCDEFGH"), "{faults:?}");
            }
            (found, _) => panic!("{flags:?}: {found:?}"),
        }
    }
}

/// What a setting of the console takes and refuses, beside others that are sound.
#[test]
fn every_setting_of_the_console_takes_what_it_is_for_and_nothing_else() {
    for Range { setting, takes, refuses, beside } in &RANGES_OF_CONSOLE {
        let flag = setting.to_lowercase().replace('_', "-");
        let check = |value| check_console(&[beside, &[format!("--{flag}={value}").as_str()][..]].concat());
        for value in *takes {
            assert!(check(value).is_ok(), "{setting}={value}: {:?}", check(value));
        }
        for value in *refuses {
            let faults = check(value).expect_err(value);
            assert!(faults[0].starts_with(&format!("{setting}: ")), "{setting}={value}: {faults:?}");
        }
    }
}

const RANGES_OF_CONSOLE: [Range; 8] = [
    range(
        "CONSOLE_LISTEN",
        &["127.0.0.1:0", "[::1]:8080"],
        &["8080", "localhost:8080", "", "127.0.0.1:65536"],
        &[LOCAL, ANA],
    ),
    range("CONSOLE_LOCAL_USER", &["ana", "Ana Muster", "ana@example.com"], &["", "\n"], &[LOCAL]),
    range(
        "CONSOLE_USER_HEADER",
        &["X-Forwarded-Email", "remote-user"],
        &["", "X Forwarded", "X-Email:"],
        &[LOCAL, ANA],
    ),
    range(
        "CONSOLE_GROUPS_HEADER",
        &["X-Forwarded-Groups", "remote-groups"],
        &["", "X Groups"],
        &[LOCAL, ANA],
    ),
    range(
        "CONSOLE_ROLES",
        &[
            "viewer=a",
            "viewer=a,viewer=b,operator=a",
            " auditor = kyc audit , reviewer=/kyc/reviewer",
            "viewer=a=b",
        ],
        &["", "viewer", "viewer=", "admin=a", "Viewer=a", "=a", "viewer=a,", "viewer=a;operator=b,x"],
        &[LOCAL, ANA],
    ),
    range(
        "CONSOLE_PUBLIC_URL",
        &[
            "https://kyc.example.com",
            "https://kyc.example.com/",
            "https://kyc.example.com:8443",
            "http://localhost:8080",
            "http://127.0.0.1:8080",
            "http://[::1]:8080",
        ],
        &[
            "",
            "kyc.example.com",
            "http://kyc.example.com",
            "http://10.0.0.1:8080",
            "http://localhost.example.com",
            "ftp://kyc.example.com",
            "https://kyc.example.com/console",
            "https://kyc.example.com/?a=b",
            "https://kyc.example.com/#a",
            "https://ana@kyc.example.com",
            "https://:pw@kyc.example.com",
        ],
        &[SIDECAR],
    ),
    range(
        "CONSOLE_TRACE_URL",
        &["https://tempo.example.com/trace/{trace_id}", "http://localhost:16686/trace/{trace_id}?a=b"],
        &[
            "",
            "https://tempo.example.com",
            "https://tempo.example.com/{job_id}",
            "javascript:alert('{trace_id}')",
            "{trace_id}",
        ],
        &[LOCAL, ANA],
    ),
    range(
        "CONSOLE_LOG_URL",
        &["https://logs.example.com/?q={job_id}"],
        &[
            "",
            "https://logs.example.com",
            "https://logs.example.com/{trace_id}",
            "javascript:alert('{job_id}')",
            "{job_id}",
        ],
        &[LOCAL, ANA],
    ),
];

#[test]
fn no_setting_of_the_console_is_without_its_range() {
    let command = <ConsoleProgram as clap::CommandFactory>::command();
    let console = command.find_subcommand("console").expect("it is there");
    // Those are in the table of who asks.
    let modes = ["CONSOLE_LOGIN", "CONSOLE_PROXY_SECRET", "CONSOLE_PROXY_SECRET_FILE"];
    for argument in console.get_arguments().filter_map(clap::Arg::get_env) {
        let setting = argument.to_str().expect("UTF-8");
        let has_range = RANGES_OF_CONSOLE.iter().any(|range| range.setting == setting);
        assert!(has_range || modes.contains(&setting), "{setting}: say in RANGES_OF_CONSOLE what it takes");
    }
}

#[test]
fn a_local_console_is_reached_where_it_listens_and_others_where_they_are_told() {
    let url = |flags: &[&str]| check_console(flags).expect("sound").public_url.to_string();
    assert_eq!(url(&[LOCAL, ANA]), "http://127.0.0.1:8080/");
    assert_eq!(url(&[LOCAL, ANA, "--console-listen=[::1]:9000"]), "http://[::1]:9000/");
    assert_eq!(url(&[LOCAL, ANA, "--console-public-url=http://localhost:8080"]), "http://localhost:8080/");
    assert_eq!(url(&[SIDECAR, PUBLIC]), "https://kyc.example.com/");
}

#[test]
fn a_link_out_of_the_console_has_the_name_in_its_place() {
    let trace = "--console-trace-url=https://t.example.com/{trace_id}?again={trace_id}";
    let checked = check_console(&[LOCAL, ANA, trace]).expect("sound");
    let link = checked.trace_url.expect("a template").with("abc");
    assert_eq!(link, "https://t.example.com/abc?again=abc");
}
