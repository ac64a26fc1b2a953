//! What customers entered, and our secrets, are found nowhere but where they must be.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::console::{forms_of, pages};
use crate::harness::console::{EVERYBODY, SECRET};
use crate::harness::{WorkerProcess, World, job_body, world_on};
use crate::outcome_events::TOLD;
use crate::own_services::{Disk, own_postgres};

const ADDRESS: &str = "Canarystrasse 77b, Élysée-Süd";
const NUMBER: &str = "CANARYNR123456789X";
const QUERY: &str = "canaryquerysecret";
const EXTRA: &str = "canary-additional-5521";
const EXTRA_KEY: &str = "canarykey";
const EXTRA_NUMBER: u64 = 77_123_456_780;
const FOLDER: &str = "canaryfolder";
const NAME: &str = "Canaria Kumari";
const API_KEY: &str = "canary-name-of-ours-1";
const API_SECRET: &str = "canary-api-secret";
const DATABASE_PASSWORD: &str = "canary-database-password";
const AMQP_PASSWORD: &str = "canary-amqp-password";
const PAYLOAD_KEY: &str = "Q2FuYXJ5UGF5bG9hZEtleUNhbmFyeVBheWxvYWRLZSE=";
const FINGERPRINT_KEY: &str = "Q2FuYXJ5RmluZ2VycHJpbnRLZXlDYW5hcnlGaW5nZXI=";

const CANARIES: [&str; 10] = [
    ADDRESS,
    NUMBER,
    QUERY,
    EXTRA,
    API_KEY,
    API_SECRET,
    DATABASE_PASSWORD,
    AMQP_PASSWORD,
    PAYLOAD_KEY,
    FINGERPRINT_KEY,
];

/// A valid job that is full of canaries.
fn body(job_id: Uuid) -> Value {
    let mut body = job_body(Uuid::new_v4(), job_id);
    body["full_address"] = json!(ADDRESS);
    for side in ["front", "back"] {
        let link =
            format!("https://files.example.com/{FOLDER}/{job_id}/{side}.jpg?X-Amz-Signature={QUERY}&a=b");
        body[format!("document_{side}_image_url")] = json!(link);
    }
    let additional = json!({ "note": [EXTRA, { "deep": EXTRA }], EXTRA_KEY: EXTRA_NUMBER });
    body["document_details"] = json!({ "document_number": NUMBER, "additional_data": additional });
    body
}

async fn publish(world: &World, fault: Option<Value>) -> Uuid {
    let job_id = Uuid::new_v4();
    if let Some(fault) = fault {
        let matched = json!({ "method": "PATCH", "link_contains": job_id });
        world.add_rule(json!({ "match": matched, "first": 1, "fault": fault })).await;
    }
    world.publish(Some(job_id), body(job_id).to_string().as_bytes()).await;
    job_id
}

/// What was entered, as no search for it finds it.
fn respelt() -> Vec<String> {
    let spaced = |mark: char| NUMBER.chars().flat_map(|c| [c, mark]).collect::<String>();
    let escaped: String = ADDRESS.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect();
    vec![
        format!("Document number {} is already in use", spaced('-')),
        format!("Document number {} is already in use", spaced(' ')),
        format!("{} is not valid", spaced('.')),
        format!("{} is not valid", spaced('\u{200b}')),
        ADDRESS.to_uppercase(),
        ADDRESS[..16].to_lowercase(),
        escaped,
        EXTRA_NUMBER.to_string(),
        format!("Name mismatch: {NAME}"),
    ]
}

/// An answer that says what was entered where a word of its own belongs.
fn odd_words(status: u16, customer_id: Value) -> Value {
    let data = json!({
        "id": customer_id, "status": NUMBER, "failure_reason": format!("Name mismatch: {NAME}, {NUMBER}"),
        "document_type": ADDRESS, "full_name": NAME,
    });
    let body = json!({ "status": true, "message": ADDRESS, "data": data });
    json!({ "kind": "respond", "status": status, "body": body })
}

/// A refusal that repeats all that it was sent.
fn echo(status: u16) -> Value {
    let errors = json!({
        "full_address": [format!("{ADDRESS} is no address")],
        "document_details": {
            "document_number": [format!("\"{NUMBER}\" is taken")], "note": [EXTRA],
        },
        "customer_id": respelt(),
        "document_front_image_url": [
            format!("https://files.example.com/x.jpg?X-Amz-Signature={QUERY} cannot be fetched"),
            format!("signature {QUERY} has expired"),
        ],
        "document_back_image_url": [format!("https://files.example.com/{FOLDER}/x.jpg is not valid")],
        "additional_data": { EXTRA_KEY: [EXTRA_NUMBER.to_string()], NUMBER: ["is required"] },
    });
    let message = format!("Bad Request of {API_KEY} for {NUMBER} at {ADDRESS}");
    let body = json!({ "status": false, "message": message, "errors": errors, "data": null });
    json!({ "apply": "never", "answer": { "kind": "respond", "status": status, "body": body } })
}

/// What is no job, with a canary wherever one fits.
fn malformed() -> Vec<Vec<u8>> {
    let valid = body(Uuid::new_v4());
    let with = |pointer: &str, value: Value| {
        let mut body = valid.clone();
        *body.pointer_mut(pointer).expect("a field") = value;
        body
    };
    let mut extra = valid.clone();
    extra["unheard_of"] = json!(ADDRESS);
    extra[NUMBER] = json!(1);
    extra[ADDRESS] = json!(1);
    extra["requested_at"] = json!(ADDRESS);
    extra["expires_at"] = json!(NUMBER);
    extra["job_id"] = json!(QUERY);
    let text = valid.to_string();
    let mut utf8 = text.clone().into_bytes();
    let accent = utf8.iter().position(|byte| !byte.is_ascii()).expect("the address has an accent");
    utf8[accent] = 0xff;
    let values = [
        with("/customer_id", json!(ADDRESS)),
        with("/document_type", json!(NUMBER)),
        with("/document_front_image_url", json!(format!("ftp://a/b.jpg?s={QUERY}"))),
        with("/document_back_image_url", json!(format!("https://{NUMBER}@a/b.exe?s={QUERY}"))),
        with("/full_address", json!(format!("{ADDRESS}\u{0}"))),
        with("/document_details/document_number", json!(format!(" {NUMBER}"))),
        with("/document_details", json!([NUMBER, ADDRESS])),
        extra,
    ];
    let mut bodies: Vec<Vec<u8>> = values.iter().map(|body| body.to_string().into_bytes()).collect();
    bodies.push(text.as_bytes()[..text.len() - 30].to_vec());
    bodies.push(format!("{ADDRESS} {NUMBER}").into_bytes());
    bodies.push(text.replacen('{', &format!("{{\"full_address\":\"{ADDRESS}\","), 1).into_bytes());
    bodies.push(format!("{{\"a\":1e999,\"{NUMBER}\":\"{ADDRESS}\",\"b\":\"\\ud800\"}}").into_bytes());
    bodies.push(utf8);
    bodies
}

/// Every row of every table as text, bytes as hexadecimal digits, as a backup of the database holds them.
async fn everything_stored(world: &World) -> String {
    let tables: Vec<String> = sqlx::query_scalar(
        "select format('%I.%I', table_schema, table_name) from information_schema.tables
        where table_schema not in ('pg_catalog', 'information_schema')",
    )
    .fetch_all(&world.pool)
    .await
    .expect("the database answers");
    assert!(tables.len() >= 4, "{tables:?}");
    let mut all = String::new();
    for table in tables {
        let rows: Vec<String> = sqlx::query_scalar(&format!("select t::text from {table} t"))
            .fetch_all(&world.pool)
            .await
            .expect("the database answers");
        all += &rows.join("\n");
    }
    all
}

/// Letters and digits alone, in lower case: how a text reads whatever stands between them.
fn bare(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// The ways in which a text may show.
fn guises(canary: &str) -> Vec<String> {
    let hex = canary.bytes().map(|byte| format!("{byte:02x}")).collect();
    let bytes: Vec<String> = canary.bytes().map(|byte| byte.to_string()).collect();
    let json = serde_json::to_string(canary).expect("JSON");
    let escaped: String = canary
        .chars()
        .map(|c| if c.is_ascii() { c.to_string() } else { format!("\\u{:04x}", c as u32) })
        .collect();
    vec![
        canary.to_owned(),
        hex,
        bytes.join(", "),
        json.trim_matches('"').to_owned(),
        escaped,
        canary.to_uppercase(),
    ]
}

fn check_clean(place: &str, text: &str) {
    for canary in CANARIES {
        for guise in guises(canary) {
            if let Some(at) = text.find(&guise) {
                let from = text.floor_char_boundary(at.saturating_sub(300));
                let to = text.ceil_char_boundary((at + 300).min(text.len()));
                panic!("{canary:?} in {place}: {}", &text[from..to]);
            }
        }
    }
    let bare_text = bare(text);
    let entered = [ADDRESS, &ADDRESS[..16], NUMBER, QUERY, EXTRA, EXTRA_KEY, FOLDER, NAME];
    for canary in entered.map(bare).into_iter().chain([EXTRA_NUMBER.to_string()]) {
        assert!(!bare_text.contains(&canary), "{canary:?} in {place}, respelt");
    }
}

#[test]
fn no_canary_is_found_in_logs_outputs_and_tables() {
    // It takes every password.
    let cluster = own_postgres(Disk::Ample, &[]);
    world_on(&cluster.url(), async |world| {
        world.declare_topology().await;
        world.set_provider(json!({ "api_key": API_KEY, "api_secret": API_SECRET })).await;
        let amqp_url = world.make_broker_user(AMQP_PASSWORD).await;
        let mut database_url: url::Url = world.database_url().parse().expect("a URL");
        database_url.set_password(Some(DATABASE_PASSWORD)).expect("a password");
        let (relay, base_url) = world.relay_to_provider().await;
        let settings = [
            ("AMQP_URL", amqp_url.as_str()),
            ("DATABASE_URL", database_url.as_str()),
            ("DOLLARPE_BASE_URL", base_url.as_str()),
            ("DOLLARPE_API_KEY", API_KEY),
            ("DOLLARPE_API_SECRET", API_SECRET),
            ("PAYLOAD_KEY", PAYLOAD_KEY),
            ("FINGERPRINT_KEY", FINGERPRINT_KEY),
            ("RUST_LOG", "trace"),
            TOLD,
        ];
        // A key without a queue: what the broker returns is in no log.
        let upstream = world.listen().await;
        upstream.unbind().await.expect("the broker does it");
        let mut dying = world.start_worker_with(&settings);
        let jobs = every_ending(&world).await;
        let held = publish(&world, Some(json!({ "answer": { "kind": "hang" } }))).await;
        world
            .wait_for("a request to die in", async || (world.count_patches(held).await == 1).then_some(()))
            .await;
        dying.kill();

        let text = [("LOG_FORMAT", "text"), ("RUST_BACKTRACE", "1")];
        let mut next = world.start_worker_with(&[&settings[..], &text].concat());
        world.wait_for_state(held, &["accepted"]).await;
        world.wait_for_log(&next, "outcome events are not published").await;
        upstream.bind().await.expect("the broker does it");
        lose_every_service(&world, &relay, &settings, &next).await;
        for event in upstream.wait_for_implied(&world, &[held]).await {
            check_clean("an event", &event.to_string());
        }
        let told = "select count(*) from worker where settings ->> 'QUEUE' is not null";
        assert!(world.count(told).await >= 2, "the tables that are searched have the settings of both");
        next.stop().await;

        for (path, text) in world.logs() {
            check_clean(&path.display().to_string(), &text);
        }
        check_clean("the tables", &everything_stored(&world).await);
        check_commands(&world, &settings, &[&jobs[..], &[held]].concat()).await;
        check_console(&world, database_url.as_str(), &[&jobs[..], &[held]].concat()).await;
        // Chained with another key than other worlds' histories.
        world.is_tampered_with();
        assert!(world.run(&["audit"], &settings).await.status.success(), "every history verifies");
    });
}

/// Every page of the console in every form, and its log.
async fn check_console(world: &World, database_url: &str, jobs: &[Uuid]) {
    let settings = [
        ("DATABASE_URL", database_url),
        ("CONSOLE_LOGIN", "proxy"),
        ("CONSOLE_PROXY_SECRET", SECRET),
        ("RUST_LOG", "trace"),
    ];
    let console = world.start_console_with(&settings).await;
    for job in jobs {
        let customer: Uuid = sqlx::query_scalar("select customer_id from submission where job_id = $1")
            .bind(job)
            .fetch_one(&world.pool)
            .await
            .expect("the job");
        for path in pages(*job, customer).iter().flat_map(|path| forms_of(path)) {
            let answer = console.get(EVERYBODY, &path).await;
            assert!(answer.status < 500, "{path}: {}", answer.text);
            check_clean(&path, &answer.text);
            assert!(!answer.text.contains(SECRET), "{path}");
        }
    }
    let log = console.process.log();
    assert!(log.contains("answered") && !log.contains(SECRET));
    check_clean("the console's log", &log);
}

/// Brings jobs to every end that needs no crash.
async fn every_ending(world: &World) -> Vec<Uuid> {
    let accepted = publish(world, None).await;
    let rejected = publish(world, Some(echo(400))).await;
    let unknown = publish(world, Some(echo(500))).await;
    let throttled = publish(world, Some(echo(429))).await;
    let unauthorized = publish(world, Some(echo(401))).await;
    let redirect = json!({ "location": format!("http://127.0.0.1:1/{QUERY}?{NUMBER}") });
    let answer = json!({ "kind": "respond", "status": 302, "headers": redirect, "body": ADDRESS });
    let redirected = publish(world, Some(json!({ "apply": "never", "answer": answer }))).await;
    let odd = odd_words(200, json!(NUMBER));
    let accepted_oddly = publish(world, Some(json!({ "answer": odd }))).await;
    let read_oddly = publish_with_odd_reads(world).await;
    world.wait_for_state(accepted, &["accepted"]).await;
    world.wait_for_state(accepted_oddly, &["accepted"]).await;
    world.wait_for_state(rejected, &["rejected"]).await;
    world.wait_for_state(unknown, &["accepted", "needs_review"]).await;
    world.wait_for_state(read_oddly, &["accepted", "needs_review"]).await;
    let seen: Vec<(String, String)> = sqlx::query_as(
        "select status, failure_reason from observation where job_id = $1 and failure_reason is not null",
    )
    .bind(read_oddly)
    .fetch_all(&world.pool)
    .await
    .expect("the database answers");
    assert!(
        seen.contains(&("[withheld:18]".to_owned(), "Name mismatch: [withheld:34]".to_owned())),
        "{seen:?}"
    );
    for job_id in [throttled, unauthorized, redirected] {
        world.wait_for_state(job_id, &["accepted"]).await;
    }
    let said = world.attempts(rejected).await[0].provider_message.clone();
    let said = said.expect("a message");
    for kept in ["Document number [withheld:", "Name mismatch: [withheld:14]", ".jpg is not valid"] {
        assert!(said.contains(kept), "what it is known to say is kept: {said}");
    }

    let mut other = body(accepted);
    other["full_address"] = json!(format!("{ADDRESS}, upstairs"));
    world.publish(Some(accepted), other.to_string().as_bytes()).await;
    let malformed = malformed();
    for body in &malformed {
        world.publish(Some(Uuid::new_v4()), body).await;
    }
    let letters = i64::try_from(malformed.len() + 1).expect("a few");
    world
        .wait_for("every dead letter", async || {
            (world.count("select count(*) from dead_lettered_delivery").await == letters).then_some(())
        })
        .await;
    vec![accepted, accepted_oddly, read_oddly, rejected, unknown, throttled, unauthorized, redirected]
}

/// A job of unknown outcome whose customer first reads so.
async fn publish_with_odd_reads(world: &World) -> Uuid {
    let job_id = Uuid::new_v4();
    let body = body(job_id);
    let reads = json!({ "method": "GET", "customer_id": body["customer_id"] });
    let answer = odd_words(200, body["customer_id"].clone());
    world.add_rule(json!({ "match": reads, "first": 1, "fault": { "answer": answer } })).await;
    let matched = json!({ "method": "PATCH", "link_contains": job_id });
    world.add_rule(json!({ "match": matched, "first": 1, "fault": echo(500) })).await;
    world.publish(Some(job_id), body.to_string().as_bytes()).await;
    job_id
}

/// Takes provider and database away in turn, so that their errors are logged.
async fn lose_every_service(
    world: &World,
    relay: &crate::relay::Relay,
    settings: &[(&str, &str)],
    worker: &WorkerProcess,
) {
    relay.refuse().await;
    relay.cut();
    let waiting = publish(world, None).await;
    let job = world.wait_for_state(waiting, &["waiting"]).await;
    assert!(job.has_payload, "sealed");
    check_clean("the tables", &everything_stored(world).await);
    relay.accept().await;
    world.wait_for_state(waiting, &["accepted"]).await;

    let ours = "select count(pg_terminate_backend(pid)) from pg_stat_activity
        where datname = current_database() and application_name = 'kyc-worker'";
    assert!(world.count(ours).await > 0);
    let after = publish(world, None).await;
    world.wait_for_state(after, &["accepted"]).await;

    for (name, value) in [
        ("DATABASE_URL", format!("postgres://postgres:{DATABASE_PASSWORD}@127.0.0.1:1/none")),
        ("AMQP_URL", format!("amqp://guest:{AMQP_PASSWORD}@127.0.0.1:5672/none")),
        ("AMQP_URL", format!("amqp://guest:{AMQP_PASSWORD}@127.0.0.1:1/none")),
    ] {
        let lost = world.start_worker_with(&[settings, &[(name, value.as_str())]].concat());
        world.wait_for_log(&lost, name).await;
    }
    assert!(!worker.log().is_empty());
}

async fn check_commands(world: &World, settings: &[(&str, &str)], jobs: &[Uuid]) {
    let check = async |arguments: &[&str], settings: &[(&str, &str)], input: &[u8]| {
        let output = world.run_with_input(arguments, settings, input).await;
        let said = [output.stdout, output.stderr].concat();
        check_clean(&format!("{arguments:?}"), &String::from_utf8_lossy(&said));
    };
    for job_id in jobs {
        let id = job_id.to_string();
        check(&["show", &id], settings, b"").await;
        check(&["show", "--json", &id], settings, b"").await;
    }
    for arguments in [
        &["audit"][..],
        &["audit", "--json"],
        &["report"],
        &["report", "--json"],
        &["list"],
        &["list", "--json"],
        &["export", "--since", "2026-01-01", "--format", "csv"],
        &["export", "--since", "2026-01-01", "--format", "jsonl"],
        &["replay", "--state", "needs_review", "--json"],
        &["dead-letters", "list"],
        &["dead-letters", "list", "--json"],
    ] {
        check(arguments, settings, b"").await;
    }
    let letters = world.run(&["dead-letters", "list", "--json"], settings).await;
    let letters: Vec<Value> = serde_json::from_slice(&letters.stdout).expect("JSON");
    assert!(!letters.is_empty());
    for id in letters.iter().filter_map(|letter| letter["id"].as_str()) {
        check(&["dead-letters", "show", id], settings, b"").await;
    }
    check(&["run", "--help"], settings, b"").await;
    let lines = malformed().join(&b'\n');
    check(&["enqueue"], settings, &lines).await;
    for (name, value) in [
        ("DATABASE_URL", format!("postgres://x:{DATABASE_PASSWORD}@127.0.0.1:1/none")),
        ("DATABASE_URL", format!("postgres://x:{DATABASE_PASSWORD}@127.0.0.1:port/none")),
        ("AMQP_URL", format!("amqp://x:{AMQP_PASSWORD}@127.0.0.1:1/none")),
        (
            "AMQP_URL",
            format!("amqp://x:{AMQP_PASSWORD}@127.0.0.1:5672/%2f/{AMQP_PASSWORD}?x={AMQP_PASSWORD}"),
        ),
        ("PAYLOAD_KEY", format!("{PAYLOAD_KEY}x")),
        ("FINGERPRINT_KEY", format!("{FINGERPRINT_KEY},x")),
        ("DOLLARPE_API_KEY", format!("{API_KEY}\u{7f}")),
    ] {
        let settings = [settings, &[(name, value.as_str())]].concat();
        for arguments in [&["run", "--drain"][..], &["report"], &["migrate"], &["enqueue"]] {
            // A run that finds its settings good would wait for a service that never comes.
            let waits = arguments[0] == "run" && !value.contains("port") && name.ends_with("_URL");
            if !waits {
                check(arguments, &settings, b"").await;
            }
        }
    }
}
