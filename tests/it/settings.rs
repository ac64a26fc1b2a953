//! Settings as the environment and files give them, to the binary itself.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// A worker that would have nowhere to connect to, in a directory of its own.
fn run_in(dir: &Path, settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kyc-worker"));
    command.env_clear().current_dir(dir).arg("run").envs([
        ("DATABASE_URL", "postgres://127.0.0.1:1/kyc"),
        ("AMQP_URL", "amqp://127.0.0.1:1"),
        ("DOLLARPE_API_KEY", "key"),
        ("DOLLARPE_API_SECRET", "secret"),
        ("PAYLOAD_KEY", KEY),
        ("FINGERPRINT_KEY", KEY),
    ]);
    let output = command.envs(settings.iter().copied()).output().expect("it runs");
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8"))
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
