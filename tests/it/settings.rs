//! Settings as the environment and files give them, to the binary itself.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

const PAYLOAD_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const FINGERPRINT_KEY: &str = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";

/// A worker that would have nowhere to connect to, in a directory of its own.
fn run_in(dir: &Path, settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = command_in(dir, "run");
    let output = command.envs(settings.iter().copied()).output().expect("it runs");
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8"))
}

fn command_in(dir: &Path, name: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kyc-worker"));
    command.env_clear().current_dir(dir).arg(name).envs([
        ("DATABASE_URL", "postgres://127.0.0.1:1/kyc"),
        ("AMQP_URL", "amqp://127.0.0.1:1"),
        ("DOLLARPE_BASE_URL", "http://127.0.0.1:1/v1"),
        ("DOLLARPE_API_KEY", "key"),
        ("DOLLARPE_API_SECRET", "secret"),
        ("PAYLOAD_KEY", PAYLOAD_KEY),
        ("FINGERPRINT_KEY", FINGERPRINT_KEY),
    ]);
    command
}

#[test]
fn empty_and_odd_variables_are_all_told_at_once() {
    let dir = TempDir::new().expect("a directory");
    let odd = [
        ("AMQP_CA_FILE", ""),
        ("DATABASE_CONNECTIONS", ""),
        ("DOLLARPE_API_SECRET", ""),
        ("DOLLARPE_BASE_URL", ""),
        ("LOG_FORMAT", "loud"),
        ("PREFETCH", "many"),
        ("RUST_LOG", "kyc_worker=loud"),
        ("DATABASE_URL", "postgres://kyc:s3cr3t@127.0.0.1:1/kyc?sslmode=bogus"),
        ("DOCUMENT_TYPES", ""),
    ];
    let (code, said) = run_in(dir.path(), &[&odd[..], &[("NOT_APPLIED_STATUSES", "")]].concat());
    assert_eq!(code, Some(2), "{said}");
    for (setting, _) in odd {
        assert!(
            said.lines().any(|line| line.trim().starts_with(&format!("{setting}: "))),
            "{setting}: {said}"
        );
    }
    assert!(!said.contains("NOT_APPLIED_STATUSES") && !said.contains("s3cr3t"), "{said}");
}

#[test]
fn a_dollar_in_an_env_file_is_a_fault_and_not_a_blank() {
    let dir = TempDir::new().expect("a directory");
    fs::write(dir.path().join(".env"), "WORKER_NAME=pa$word\n").expect("a file");
    let (code, said) = run_in(dir.path(), &[("RUST_LOG", "=")]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("WORKER_NAME holds a $") && said.contains("single quotes"), "{said}");
    fs::write(dir.path().join(".env"), "WORKER_NAME=' pa$word'\n").expect("a file");
    let (code, said) = run_in(dir.path(), &[]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("WORKER_NAME: must have"), "the blank is what is wrong with it: {said}");
}

#[test]
fn an_env_file_of_another_encoding_is_refused() {
    let dir = TempDir::new().expect("a directory");
    fs::write(dir.path().join(".env"), "WORKER_NAME=a\0b\n").expect("a file");
    let (code, said) = run_in(dir.path(), &[]);
    assert_eq!(
        (code, said.as_str()),
        (Some(1), "kyc-worker: .env: holds a NUL character; save it as UTF-8\n")
    );
}

#[test]
fn a_misspelt_name_in_an_env_file_is_told_at_start_and_by_check() {
    let dir = TempDir::new().expect("a directory");
    fs::write(dir.path().join(".env"), "CONCURENCY=5\nSOMEBODY_ELSES=5\n").expect("a file");
    let said = |command: &mut Command| {
        let output = command.output().expect("it runs");
        String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8")
    };
    let checked = said(command_in(dir.path(), "check").arg("--json"));
    assert!(
        checked.contains(".env: CONCURENCY is no setting") && checked.contains("CONCURRENCY"),
        "{checked}"
    );
    assert!(!checked.contains("SOMEBODY_ELSES"), "{checked}");
    // It waits for its database, and has told before.
    let mut worker = command_in(dir.path(), "run").stdout(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(worker.stdout.take().expect("a pipe")).lines();
    let told = lines.find_map(|line| line.ok().filter(|line| line.contains("CONCURENCY"))).expect("a line");
    assert!(told.contains("WARN") && told.contains("CONCURRENCY"), "{told}");
    worker.kill().expect("it runs");
    worker.wait().expect("it has ended");
}

/// A pipe without a writer, a device without an end, and a file of more than any setting has.
#[test]
fn a_file_that_may_never_end_is_refused() {
    let dir = TempDir::new().expect("a directory");
    let made = Command::new("mkfifo").arg(dir.path().join("pipe")).status().expect("mkfifo runs");
    assert!(made.success(), "{made}");
    fs::write(dir.path().join("large"), vec![b'a'; 5 * 1024 * 1024]).expect("a file");
    for (file, why) in [
        ("pipe", "it is no regular file"),
        ("/dev/zero", "it is no regular file"),
        ("large", "it has more than 4194304 bytes"),
    ] {
        for setting in ["DOLLARPE_API_SECRET_FILE", "DOLLARPE_CA_FILE"] {
            let mut command = command_in(dir.path(), "run");
            let output =
                command.env_remove("DOLLARPE_API_SECRET").env(setting, file).output().expect("it runs");
            let said = String::from_utf8(output.stderr).expect("UTF-8");
            assert_eq!(output.status.code(), Some(2), "{setting}={file}: {said}");
            assert!(said.contains(why), "{setting}={file}: {said}");
        }
    }
    fs::remove_file(dir.path().join("pipe")).expect("it is gone");
    Command::new("mkfifo").arg(dir.path().join(".env")).status().expect("mkfifo runs");
    let (code, said) = run_in(dir.path(), &[]);
    assert_eq!((code, said.as_str()), (Some(1), "kyc-worker: .env: it is no regular file\n"));
}

/// Each of these writes in a way of its own.
#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let dir = TempDir::new().expect("a directory");
    for arguments in
        [&["check"][..], &["check", "--json"], &["schema"], &["completions", "bash"], &["--help"]]
    {
        let full = fs::File::options().write(true).open("/dev/full").expect("the device");
        let mut command = command_in(dir.path(), arguments[0]);
        let output = command.args(&arguments[1..]).stdout(full).output().expect("it runs");
        let said = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        let told = "kyc-worker: cannot write the output: No space left on device (os error 28)\n";
        assert_eq!(said, told, "{arguments:?}");
    }
    // Nobody reads any more, as after `head`: that is no failure.
    let mut schema = command_in(dir.path(), "schema")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    drop(schema.stdout.take());
    let output = schema.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}

/// `scripts/env.sh` with the services of its own words.
#[test]
fn the_env_file_that_is_written_holds_urls_with_any_character() {
    let dir = TempDir::new().expect("a directory");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for name in ["scripts", "target", "bin"] {
        fs::create_dir(dir.path().join(name)).expect("a directory");
    }
    for name in ["scripts/env.sh", "scripts/lib.sh", ".env.example"] {
        fs::copy(root.join(name), dir.path().join(name)).expect("a copy");
    }
    let database_url =
        r"postgres://kyc:a|b&c\d$e#f'g@db.example:5433/postgres?sslmode=require&application_name=x";
    let amqp_url = "amqp://guest:a&b|c@mq.example/%2f?heartbeat=5&frame_max=131072";
    let services = format!(
        "#!/bin/bash\nprintf 'export %s=%q\\n' DATABASE_URL {} AMQP_URL {} >target/services.env\n",
        shlex::try_quote(database_url).expect("no NUL"),
        shlex::try_quote(amqp_url).expect("no NUL"),
    );
    for (name, script) in [("scripts/services.sh", services.as_str()), ("bin/psql", "#!/bin/sh\n")] {
        let path = dir.path().join(name);
        fs::write(&path, script).expect("a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it may run");
    }
    let path = format!("{}:/usr/bin:/bin", dir.path().join("bin").display());
    let written =
        Command::new("bash").arg("scripts/env.sh").env("PATH", path).current_dir(dir.path()).output();
    let written = written.expect("it runs");
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));

    let text = fs::read_to_string(dir.path().join(".env")).expect("it is written");
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).to_owned()
    };
    let kept = "postgres://kyc:a|b&c%5Cd%24e%23f%27g@db.example:5433/kyc?sslmode=require&application_name=x";
    assert_eq!((value("DATABASE_URL"), value("AMQP_URL")), (kept.to_owned(), amqp_url.to_owned()));
    // The worker reads in it what is written there.
    let mut check = Command::new(env!("CARGO_BIN_EXE_kyc-worker"));
    let said =
        check.env_clear().current_dir(dir.path()).arg("run").env("QUEUE", "").output().expect("it runs");
    let said = String::from_utf8(said.stderr).expect("UTF-8");
    assert!(said.contains("a setting is wrong") && said.contains("QUEUE: is empty"), "{said}");
}
