//! `check` names each fault and its remedy, and nothing else.

use std::time::Duration;

use dollarpe_sandbox::tls::Authority;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use crate::harness::{JOBS, World, world, world_on};
use crate::own_services::{Disk, own_postgres, own_rabbit};

/// What `check` says under `settings`, once it is sure that it says the same to people.
async fn check(world: &World, settings: &[(&str, &str)]) -> Vec<Value> {
    let output = world.run(&["check", "--json"], settings).await;
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    let complained = String::from_utf8(output.stderr).expect("UTF-8");
    let areas: Vec<Value> = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}{complained}"));
    let names: Vec<&Value> = areas.iter().map(|area| &area["area"]).collect();
    assert_eq!(names, ["settings", "broker", "database", "provider"]);
    let mut wrong = Vec::new();
    for area in areas {
        let findings = area["findings"].as_array().expect("findings").clone();
        assert!(!findings.is_empty(), "{area}");
        wrong.extend(findings.into_iter().filter(|found| found["grade"] == "wrong"));
    }
    assert_eq!(output.status.code(), Some(i32::from(!wrong.is_empty())), "{said}");
    assert!(!said.contains("canary"), "{said}");
    assert!(complained.is_empty(), "{complained}");
    wrong
}

/// Expects one fault, with these words in what is wrong, and these in what to do.
async fn blames(world: &World, settings: &[(&str, &str)], what: &[&str], remedy: &[&str]) {
    let wrong = check(world, settings).await;
    assert_eq!(wrong.len(), 1, "{wrong:#?}");
    for (said, words) in [(&wrong[0]["what"], what), (&wrong[0]["remedy"], remedy)] {
        let said = said.as_str().expect("a text");
        for word in words {
            assert!(said.contains(word), "no {word:?} in {said:?}");
        }
    }
}

#[test]
fn check_finds_nothing_wrong_where_a_worker_works_and_changes_nothing() {
    world(async |world| {
        let unmade = world.run(&["check"], &[]).await;
        let said = String::from_utf8(unmade.stdout).expect("UTF-8");
        assert_eq!(unmade.status.code(), Some(0), "{said}");
        assert!(said.contains("there is no queue kyc.document-updates yet"), "{said}");
        assert!(said.contains("`kyc-worker run` declares it"), "{said}");

        world.declare_topology().await;
        let jobs = world.publish_jobs(2).await;
        let _worker = world.start_worker();
        world.wait_for_all_accepted(&jobs).await;
        world.publish(None, b"{}").await;
        world.wait_for("a dead letter", async || world.take_dead_letter().await).await;
        let patches = world.oracle("updates").await.len();

        let output = world.run(&["check"], &[]).await;
        let said = String::from_utf8(output.stdout).expect("UTF-8");
        assert_eq!(output.status.code(), Some(0), "{said}");
        for words in [
            "queue kyc.document-updates is declared as it should be",
            "messages waiting 0, workers consuming 1",
            "no alarm",
            "may read and write our tables",
            "signed in profile compact are accepted",
            "answered: 2 PROCESSING",
            "DATABASE_URL              (secret)  from environment",
            "REQUEST_TIMEOUT           3s  from environment",
            "others are at their defaults",
            "nothing is wrong",
        ] {
            assert!(said.contains(words), "no {words:?} in {said}");
        }
        assert!(!said.contains("\u{1b}["), "no colours where nobody looks");
        assert_eq!(world.oracle("updates").await.len(), patches);
        assert_eq!(check(&world, &[]).await, Vec::<Value>::new());
    });
}

#[test]
fn check_tells_where_a_setting_came_from() {
    world(async |world| {
        world.write_file(".env", b"QUEUE=from-file\nEXCHANGE=from-file\n");
        let file = world.write_file("secret", b"sandbox-secret\n");
        let mut command = world.command();
        command
            .env_remove("DOLLARPE_API_SECRET")
            .envs([("EXCHANGE", "kyc"), ("DOLLARPE_API_SECRET_FILE", &file)])
            .args(["check", "--json", "--routing-key", "document-update"]);
        let output = command.output().expect("it runs");
        let areas: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let settings = areas[0]["settings"].as_array().expect("settings");
        let source = |variable: &str| {
            let found = settings.iter().find(|setting| setting["variable"] == variable);
            found.unwrap_or_else(|| panic!("no {variable} in {settings:#?}")).clone()
        };
        let plain =
            |variable, source, value| json!({ "variable": variable, "source": source, "value": value });
        assert_eq!(source("QUEUE"), plain("QUEUE", ".env", "from-file"));
        assert_eq!(source("EXCHANGE"), plain("EXCHANGE", "environment", "kyc"));
        assert_eq!(source("ROUTING_KEY"), plain("ROUTING_KEY", "flag", "document-update"));
        assert_eq!(source("TOPOLOGY"), plain("TOPOLOGY", "default", "declare"));
        let path = plain("DOLLARPE_API_SECRET_FILE", "environment", &*file);
        assert_eq!(source("DOLLARPE_API_SECRET_FILE"), path);
        let secret = json!({ "variable": "DOLLARPE_API_KEY", "source": "environment" });
        assert_eq!(source("DOLLARPE_API_KEY"), secret, "a secret's value is nowhere");
    });
}

#[test]
fn check_names_wrong_settings_and_still_looks_at_the_rest() {
    world(async |world| {
        world.declare_topology().await;
        let remedy = ["kyc-worker run --help"];
        blames(&world, &[("PREFETCH", "many")], &["PREFETCH: `many` is not valid"], &remedy).await;
        let told = world.run(&["check"], &[("PREFETCH", "many")]).await;
        let told = String::from_utf8(told.stdout).expect("UTF-8");
        let is_source = |line: &str| line.contains("PREFETCH") && line.contains("  from ");
        assert!(!told.lines().any(is_source), "what stands in for it is not its value: {told}");
        let lease = [("CLAIM_LEASE", "5s")];
        blames(&world, &lease, &["SEND_WINDOW + REQUEST_TIMEOUT must be at most CLAIM_LEASE"], &remedy).await;
        let wrong = check(&world, &[("PAYLOAD_KEY", "canary"), ("DATABASE_URL", "http://canary")]).await;
        assert_eq!(wrong.len(), 3, "both settings, and a database that was not looked at: {wrong:#?}");
    });
}

#[test]
fn check_names_what_is_wrong_at_the_broker() {
    world(async |world| {
        world.declare_topology().await;
        let sound = world.allow_user(".*").await;
        let mut url: url::Url = sound.parse().expect("a URL");
        url.set_password(Some("canary")).expect("a password");
        let [at, advice] =
            ["AMQP_URL: cannot use RabbitMQ at 127.0.0.1:", "refuses the user or the password"];
        blames(&world, &[("AMQP_URL", url.as_str())], &[at], &[advice]).await;

        let mut nowhere: url::Url = sound.parse().expect("a URL");
        nowhere.set_path("/nowhere");
        let remedy = ["vhost", "rabbitmqctl list_vhosts", "set_permissions"];
        blames(&world, &[("AMQP_URL", nowhere.as_str())], &[at, "nowhere"], &remedy).await;

        let unread = world.allow_user("^nothing$").await;
        let what = ["QUEUE: this user may not consume from kyc.document-updates", "access to queue"];
        blames(&world, &[("AMQP_URL", &unread)], &what, &["set_permissions", "Least privilege"]).await;

        let unconfigured = world
            .allow_user_to(json!({ "configure": "^kyc$|^kyc[.]d(lx|ead)", "write": ".*", "read": ".*" }))
            .await;
        let what = ["QUEUE: this user may not declare queue kyc.document-updates", "access to queue"];
        let settings = [("AMQP_URL", unconfigured.as_str())];
        blames(&world, &settings, &what, &["set_permissions", "TOPOLOGY=verify"]).await;
        let settings = [("AMQP_URL", unconfigured.as_str()), ("TOPOLOGY", "verify")];
        assert_eq!(check(&world, &settings).await, Vec::<Value>::new(), "it need not declare");

        world.delete_queue().await;
        let missing = ["QUEUE: there is no queue kyc.document-updates"];
        blames(&world, &[("TOPOLOGY", "verify")], &missing, &["declare it", "TOPOLOGY=declare"]).await;
        world.declare_topology().await;
        let options = QueueDeclareOptions::durable();
        world.declare_otherwise(options, kept("quorum", &[])).await;
        let what = ["QUEUE: queue kyc.document-updates is declared otherwise", "inequivalent arg"];
        blames(&world, &[], &what, &["delete it", "TOPOLOGY=verify"]).await;
        assert_eq!(check(&world, &[("TOPOLOGY", "verify")]).await, Vec::<Value>::new());

        let closed = [("AMQP_URL", "amqp://guest:canary@127.0.0.1:1,[::1]:1")];
        let wrong = check(&world, &closed).await;
        for (found, place) in wrong.iter().zip(["127.0.0.1:1", "[::1]:1"]) {
            let said = found.to_string();
            assert!(said.contains(&format!("AMQP_URL: cannot use RabbitMQ at {place}: ")), "{said}");
            assert!(said.contains("is it running"), "{said}");
        }
        assert_eq!(wrong.len(), 2, "each host has its own: {wrong:#?}");
    });
}

#[test]
fn check_notes_a_host_of_several_that_does_not_let_the_worker_in() {
    world(async |world| {
        world.declare_topology().await;
        let amqp_url = world.amqp_url().replace("@", "@127.0.0.1:1,");
        let said = world.run(&["check"], &[("AMQP_URL", &amqp_url)]).await;
        assert_eq!(said.status.code(), Some(0));
        let said = String::from_utf8(said.stdout).expect("UTF-8");
        for words in [
            "AMQP_URL: cannot use RabbitMQ at 127.0.0.1:1: Connection refused",
            "until then the worker uses the others",
            "lets guest into vhost",
            "queue kyc.document-updates is declared as it should be",
        ] {
            assert!(said.contains(words), "no {words:?} in {said}");
        }
    });
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// The arguments of a queue of a kind, and others.
fn of_kind(kind: &str, others: &[(&str, AMQPValue)]) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text(kind));
    for (name, value) in others {
        arguments.insert((*name).into(), value.clone());
    }
    arguments
}

/// The arguments of a queue that loses nothing, and others.
fn kept(kind: &str, others: &[(&str, AMQPValue)]) -> FieldTable {
    of_kind(kind, &[&[("x-dead-letter-exchange", text("kyc.dlx"))], others].concat())
}

/// A queue that an operator declared is compared as far as the broker tells.
#[test]
fn a_queue_that_loses_messages_is_wrong_and_not_consumed() {
    world(async |world| {
        world.declare_topology().await;
        let verify = [("TOPOLOGY", "verify")];
        let durable = QueueDeclareOptions::durable();
        let elsewhere = [("x-dead-letter-exchange", text("kyc"))];
        let fleeting = [("x-overflow", text("drop-head")), ("x-expires", AMQPValue::LongInt(600_000))];
        let cases = [
            (
                durable,
                FieldTable::default(),
                "has no x-dead-letter-exchange: what the worker rejects is lost",
            ),
            (durable, kept("quorum", &elsewhere), "has x-dead-letter-exchange=kyc: what the worker rejects"),
            (durable, kept("quorum", &fleeting), "has x-expires=600000: it is deleted"),
            (durable, of_kind("stream", &[]), "is a stream"),
            (QueueDeclareOptions::default(), kept("classic", &[]), "is not durable"),
            (QueueDeclareOptions { auto_delete: true, ..durable }, kept("classic", &[]), "is auto-delete"),
        ];
        for (options, arguments, how) in cases {
            if let Err(refused) = world.declare_anew(JOBS, options, arguments).await {
                // RabbitMQ 4.3 and later have no such queue to lose messages in.
                assert!(
                    !options.durable && refused.to_string().contains("transient_nonexcl_queues"),
                    "{refused}"
                );
                world.declare_topology().await;
                continue;
            }
            let what = ["QUEUE: queue kyc.document-updates ", how];
            blames(&world, &verify, &what, &["declare it anew", "policy"]).await;
            let worker = world.start_worker_with(&verify);
            world.wait_for_log(&worker, "the broker refuses a session until a person has fixed this").await;
            let log = worker.log();
            assert!(log.contains("QUEUE: cannot use queue") && log.contains(how), "{how}: {log}");
            assert_eq!(world.count_consumers().await, 0, "{how}");
        }
        world.delete_queue().await;
        world.declare_topology().await;
        assert_eq!(check(&world, &verify).await, Vec::<Value>::new(), "nothing was declared by asking");
    });
}

/// What was looked at goes back to its queue, and a broker counts that.
#[test]
fn a_queue_of_letters_that_drops_what_was_looked_at_is_wrong() {
    world(async |world| {
        world.declare_topology().await;
        let (verify, letters) = ([("TOPOLOGY", "verify")], "kyc.dead-letters");
        let durable = QueueDeclareOptions::durable();
        let limited = |limit| [("x-delivery-limit", AMQPValue::LongInt(limit))];
        let (few, many) = (limited(20), limited(5_000));
        for (kind, others, how) in [
            ("quorum", &[][..], Some("has no x-delivery-limit: RabbitMQ 4 drops a dead letter")),
            ("quorum", &few, Some("has x-delivery-limit=20: the broker drops a dead letter")),
            ("quorum", &many, None),
            ("classic", &[], None),
        ] {
            let declared = world.declare_anew(letters, durable, of_kind(kind, others)).await;
            declared.expect("it can be declared");
            match how {
                Some(how) => {
                    let what = ["DEAD_LETTER_QUEUE: queue kyc.dead-letters ", how];
                    blames(&world, &verify, &what, &["declare it anew"]).await;
                }
                None => assert_eq!(check(&world, &verify).await, Vec::<Value>::new(), "{kind}"),
            }
            // It is told, and loses no job.
            let jobs = world.publish_jobs(1).await;
            let worker = world.start_worker_with(&verify);
            world.wait_for_all_accepted(&jobs).await;
            assert_eq!(how.is_some(), how.is_some_and(|how| worker.log().contains(how)), "{}", worker.log());
        }
    });
}

/// Whoever may consume learns as much, and that more is not known.
#[test]
fn a_stream_is_told_from_a_queue_without_the_right_to_configure_it() {
    world(async |world| {
        world.declare_topology().await;
        let reader = json!({ "configure": "^$", "write": ".*", "read": ".*" });
        let amqp_url = world.allow_user_to(reader).await;
        let settings = [("AMQP_URL", amqp_url.as_str()), ("TOPOLOGY", "verify")];
        assert_eq!(check(&world, &settings).await, Vec::<Value>::new());
        let told = world.run(&["check"], &settings).await;
        let told = String::from_utf8(told.stdout).expect("UTF-8");
        assert!(told.contains("this user may not ask how it is declared"), "{told}");

        world.declare_otherwise(QueueDeclareOptions::durable(), of_kind("stream", &[])).await;
        blames(&world, &settings, &["QUEUE: queue kyc.document-updates is a stream"], &["declare it"]).await;
        let worker = world.start_worker_with(&settings);
        world.wait_for_log(&worker, "is a stream").await;
        assert_eq!(world.count_consumers().await, 0);
    });
}

#[test]
fn a_user_who_may_not_publish_dead_letters_is_told() {
    world(async |world| {
        world.declare_topology().await;
        let reader = json!({ "configure": "^$", "write": "^kyc$", "read": ".*" });
        let amqp_url = world.allow_user_to(reader).await;
        let settings = [("AMQP_URL", amqp_url.as_str()), ("TOPOLOGY", "verify")];
        let what = ["DEAD_LETTER_EXCHANGE: this user may not publish to kyc.dlx"];
        blames(&world, &settings, &what, &["Least privilege"]).await;
        assert_eq!(world.count_ready("kyc.dead-letters").await, 0);
    });
}

#[test]
fn check_tells_of_a_broker_that_takes_no_messages() {
    let broker = own_rabbit("{vm_memory_high_watermark, {absolute, 1000}}");
    world(async |world| {
        // It accepts connections before it has looked at its memory.
        let settings = [("AMQP_URL", broker.url())];
        let settings = settings.each_ref().map(|(name, url)| (*name, url.as_str()));
        world
            .wait_for("the alarm", async || {
                let wrong = check(&world, &settings).await;
                let said = wrong.first()?.to_string();
                (said.contains("alarm for memory or disk") && said.contains("rabbitmq-diagnostics alarms"))
                    .then_some(())
            })
            .await;
    });
}

#[test]
fn check_names_what_is_wrong_with_the_database() {
    world(async |world| {
        let execute = async |sql: &'static str| {
            sqlx::raw_sql(sql).execute(&world.pool).await.expect(sql);
        };
        let migrate = ["kyc-worker migrate"];
        execute("update _sqlx_migrations set version = -version").await;
        blames(&world, &[], &["DATABASE_URL: the schema is at version -1, this worker needs"], &migrate)
            .await;
        execute("update _sqlx_migrations set version = -version").await;

        let url: url::Url = world.database_url().parse().expect("a URL");
        let database = url.path().trim_start_matches('/').to_owned();
        let read_only =
            |value| format!("alter database {database} set default_transaction_read_only = {value}");
        sqlx::raw_sql(&read_only("on")).execute(&world.pool).await.expect("it is set");
        let remedy = ["set default_transaction_read_only = off"];
        blames(&world, &[], &["DATABASE_URL: database", "is read-only for"], &remedy).await;
        let off = format!("set default_transaction_read_only = off; {}", read_only("off"));
        sqlx::raw_sql(&off).execute(&world.pool).await.expect("it is set");

        let mut url: url::Url = world.database_url().parse().expect("a URL");
        url.set_path("kyc_nowhere");
        blames(&world, &[("DATABASE_URL", url.as_str())], &["kyc_nowhere"], &["createdb"]).await;
        let closed = [("DATABASE_URL", "postgres://kyc:canary@127.0.0.1:1/kyc")];
        blames(&world, &closed, &["127.0.0.1:1", "refused"], &["is it running"]).await;

        world.is_tampered_with();
        execute("drop schema public cascade; create schema public").await;
        blames(&world, &[], &["DATABASE_URL: the database has no tables of ours"], &migrate).await;
    });
}

#[test]
fn check_names_a_wrong_password_and_missing_rights_in_the_database() {
    let cluster = own_postgres(Disk::Ample, &[]);
    world_on(&cluster.url(), async |world| {
        world.declare_topology().await;
        let rules = "host all postgres 127.0.0.1/32 trust\nhost all kyc 127.0.0.1/32 scram-sha-256\n";
        cluster.write_file("pg_hba.conf", rules).expect("a file");
        let set_up = "create role kyc login password 'canary'; grant usage on schema public to kyc;
            select pg_reload_conf()";
        sqlx::raw_sql(set_up).execute(&world.pool).await.expect("a role");
        let url = world.database_url().replace("postgres@", "kyc:canary@");
        let settings = [("DATABASE_URL", url.as_str())];
        // The server takes its rules up a moment after it was asked to.
        world
            .wait_for("the rules", async || {
                let wrong = check(&world, &[("DATABASE_URL", &url.replace("canary", "wrong"))]).await;
                let wrong = wrong.first()?.to_string();
                let is_named = wrong.contains("password authentication failed for user \\\"kyc\\\"");
                (is_named && wrong.contains("are user and password right?")).then_some(())
            })
            .await;
        let what = ["DATABASE_URL: kyc lacks", "insert on submission", "update on attempt"];
        blames(&world, &settings, &what, &["grant select, insert, update, delete on all tables"]).await;
        // As deploy/roles.sql gives them: a job's identity cannot be changed.
        let columns = "grant select, insert, delete, update (state, due_at) on submission to kyc";
        sqlx::raw_sql(columns).execute(&world.pool).await.expect("the rights");
        let wrong = check(&world, &settings).await[0].to_string();
        assert!(!wrong.contains("submission"), "{wrong}");
        let grant = "grant select, insert, update, delete on all tables in schema public to kyc";
        sqlx::raw_sql(grant).execute(&world.pool).await.expect("the rights");
        assert_eq!(check(&world, &settings).await, Vec::<Value>::new());
    });
}

#[test]
fn check_names_what_is_wrong_with_the_provider() {
    world(async |world| {
        world.declare_topology().await;
        let base = world.sandbox.base_url();
        let elsewhere = [("DOLLARPE_BASE_URL", base.replace("/v1", "/v7"))];
        let elsewhere = elsewhere.each_ref().map(|(name, value)| (*name, value.as_str()));
        let what = ["DOLLARPE_BASE_URL: there is no such endpoint", "/v7"];
        blames(&world, &elsewhere, &what, &["https://production.dollarpe.xyz/cms/api/v1"]).await;
        let closed = [("DOLLARPE_BASE_URL", "http://127.0.0.1:1/cms/api/v1")];
        blames(&world, &closed, &["DOLLARPE_BASE_URL", "refused"], &["is it running?"]).await;
        let unknown = [("DOLLARPE_BASE_URL", "https://provider.invalid/cms/api/v1")];
        blames(&world, &unknown, &["DOLLARPE_BASE_URL", "cannot be reached"], &["host's name"]).await;

        let key = [("DOLLARPE_API_KEY", "canary")];
        blames(&world, &key, &["DOLLARPE_API_KEY: the provider refuses the API key"], &["dashboard"]).await;
        let secret = [("DOLLARPE_API_SECRET", "canary")];
        blames(&world, &secret, &["DOLLARPE_API_SECRET", "refuses the signature"], &["dashboard"]).await;
        let profile = [("DOLLARPE_SIGNING_PROFILE", "spaced")];
        let what = ["DOLLARPE_SIGNING_PROFILE: updates signed in profile spaced are refused"];
        blames(&world, &profile, &what, &["set DOLLARPE_SIGNING_PROFILE=compact"]).await;
        world.set_provider(json!({ "signing_profile": "compact-utf8" })).await;
        blames(&world, &[], &["profile compact are refused"], &["PROFILE=compact-utf8"]).await;
        world.set_provider(json!({ "signing_profile": "compact" })).await;

        for (ahead, side) in [(600, "behind"), (-600, "ahead of")] {
            world.set_provider(json!({ "clock_ahead_s": ahead })).await;
            let wrong = check(&world, &[]).await;
            assert_eq!(wrong.len(), 2, "the clock, and the signature for its sake: {wrong:#?}");
            let what = wrong[0]["what"].as_str().expect("a text");
            assert!(what.contains(side) && what.contains(" s ") && what.contains("clock"), "{what}");
            assert!(wrong[0]["remedy"].as_str().expect("a text").contains("set the clock"));
            assert!(wrong[1]["what"].as_str().expect("a text").contains("as the clock would explain"));
        }
        world.set_provider(json!({ "clock_ahead_s": 0 })).await;

        for (refusal, what, remedy) in [
            ("timestamp_words", "refuses the timestamp", "clock"),
            ("signature_words", "DOLLARPE_SIGNING_PROFILE", "canonical form"),
            ("maintenance", "Service temporarily unavailable", "ask the provider"),
            ("upgrade_required", "with 426", "ask the provider"),
        ] {
            let answer = json!({ "kind": "refuse_us", "with": refusal });
            let rule = json!({ "match": { "method": "PATCH" }, "fault": { "answer": answer } });
            world.add_rule(rule).await;
            blames(&world, &[], &[what], &[remedy]).await;
            world.clear_rules().await;
        }
        let aged = json!({ "kind": "respond", "status": 400, "headers": { "age": "30" },
            "body": { "status": false, "message": "Customer not found or access denied", "errors": {} } });
        world.add_rule(json!({ "match": { "method": "GET" }, "fault": { "answer": aged } })).await;
        blames(&world, &[], &["a cache answers reads"], &["let its answers through"]).await;
        assert!(world.oracle("updates").await.is_empty());
    });
}

#[test]
fn check_names_a_certificate_for_another_name_or_of_an_unknown_authority() {
    world(async |world| {
        world.declare_topology().await;
        let authority = Authority::new().expect("an authority");
        let ca = world.write_file("ca.pem", authority.pem().as_bytes());
        let (_front, base) = world.put_tls_before_provider(&authority, "other.example").await;
        let trusted = [("DOLLARPE_BASE_URL", base.as_str()), ("DOLLARPE_CA_FILE", &ca)];
        blames(&world, &trusted, &["DOLLARPE_BASE_URL"], &["another name", "other.example"]).await;
        let remedy = ["authority that this machine does not trust", "DOLLARPE_CA_FILE"];
        blames(&world, &trusted[..1], &["DOLLARPE_BASE_URL"], &remedy).await;
    });
}

#[test]
fn a_broker_that_answers_too_slowly_is_told_of_once() {
    world(async |world| {
        world.declare_topology().await;
        let (relay, amqp_url) = world.relay_to_broker().await;
        // Each question costs twice as long; a connection needs three of them, and the check some twenty.
        relay.delay(Duration::from_millis(600));
        let output = world.run(&["check", "--json"], &[("AMQP_URL", &amqp_url)]).await;
        let areas: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let findings = areas.as_array().expect("areas").iter().find(|area| area["area"] == "broker");
        let findings = findings.expect("the broker's")["findings"].as_array().expect("findings").clone();
        let wrong: Vec<&Value> = findings.iter().filter(|finding| finding["grade"] == "wrong").collect();
        assert_eq!(wrong.len(), 1, "{findings:#?}");
        assert!(
            wrong[0]["what"].as_str().expect("a text").contains("did not answer all questions within 20s")
        );
    });
}

/// What was committed must outlive a crash of the server: nothing else says that an update was sent.
#[test]
fn a_server_that_may_lose_commits_is_refused_unless_that_is_allowed() {
    let cluster = own_postgres(Disk::Ample, &[]);
    world_on(&cluster.url(), async |world| {
        let careful = [("ALLOW_UNSAFE_DATABASE", "false")];
        blames(&world, &careful, &["fsync or full_page_writes off"], &["ALLOW_UNSAFE_DATABASE=true"]).await;
        assert_eq!(check(&world, &[]).await, Vec::<Value>::new(), "a test's own allows it");
        let refused = world.run(&["run"], &careful).await;
        let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && complaint.contains("fsync or full_page_writes off"),
            "{complaint}"
        );
    });
}
