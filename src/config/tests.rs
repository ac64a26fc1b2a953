//! Settings that are sound, and all that is wrong with those that are not.

use std::ffi::OsString;

use clap::Parser;

use super::check::read_secret;
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
        "--fingerprint-key=AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    ];
    let command =
        <Program as clap::CommandFactory>::command().mut_subcommands(|run| run.args_override_self(true));
    let arguments = ["kyc-worker", "run"].iter().chain(&sound).chain(flags).map(OsString::from);
    let Parsed { value, mut faults, .. } = parse_all::<Program>(&command, arguments).expect("usage is right");
    let Subcommand::Run(settings) = value.command;
    faults.extend(settings.check().err().unwrap_or_default());
    faults.iter().map(ToString::to_string).collect()
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
    let interval = "CUSTOMER_READ_INTERVAL, VERIFICATION_POLL_AFTER";
    faults_name(&["--customer-read-interval=61s"], &[interval]);
    let (window, poll_max) =
        ("READ_BACK_WINDOW, VERIFICATION_POLL_AFTER", "VERIFICATION_POLL_AFTER, VERIFICATION_POLL_MAX");
    faults_name(&["--read-back-window=61s"], &[window]);
    faults_name(&["--verification-poll-after=16m"], &[poll_max]);
    faults_name(&["--verification-give-up=5h"], &["VERIFICATION_DEADLINE, VERIFICATION_GIVE_UP"]);
    faults_name(&["--verification-deadline=14m"], &["VERIFICATION_POLL_MAX, VERIFICATION_DEADLINE"]);
    let events = "CUSTOMER_EVENTS_QUEUE, CUSTOMER_EVENTS_ROUTING_KEY";
    faults_name(&["--customer-events-queue=kyc.dead-letters"], &[events]);
    faults_name(&["--customer-events-routing-key=document-update"], &[events]);
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
    std::fs::write(&file, format!("{KEY}\n")).expect("it can be written");
    let flag = format!("--payload-key-file={}", file.path().display());
    faults_name(&[&flag], &["PAYLOAD_KEY"]);
    let both = read_secret("PAYLOAD_KEY", None, Some(&file.path().to_path_buf()));
    assert_eq!(both.expect("a secret").expose(), KEY);
}

#[test]
fn no_fault_shows_a_secret() {
    let faults = check(&[
        "--database-url=mysql://u:s3cr3t@h/d",
        "--amqp-url=s3cr3t",
        "--payload-key=s3cr3t",
        "--fingerprint-key=s3cr3t",
        "--dollarpe-api-secret= ",
    ]);
    assert_eq!(faults.len(), 5, "{faults:?}");
    assert!(!faults.join(" ").contains("s3cr3t"), "{faults:?}");
    assert_eq!(format!("{:?}", Secret::from("s3cr3t")), "[redacted]");
}
