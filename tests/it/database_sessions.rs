//! What the worker needs of its sessions in the database, whatever stands in between and whatever
//! others have set: it takes it, sees that it is missing, or waits until a person has mended it.

use std::sync::Arc;

use serde_json::Value;
use sqlx::PgPool;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::harness::{JOBS, World, world, world_on};
use crate::own_services::{Disk, OwnPostgres, own_postgres};

const NEEDS_PERSON: &str = "intake paused until a person has fixed this";

const RESUMED: &str = "intake resumed";

/// What `check` says of the database.
async fn check(world: &World, settings: &[(&str, &str)]) -> String {
    let output = world.run(&["check", "--json"], settings).await;
    let areas: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    areas.iter().find(|area| area["area"] == "database").expect("the database").to_string()
}

async fn execute(world: &World, statements: &str) {
    sqlx::raw_sql(statements).execute(&world.pool).await.expect(statements);
}

async fn set_for_database(world: &World, settings: &[(&str, &str)]) {
    let database = world.database_url().rsplit('/').next().expect("a name").to_owned();
    for (name, value) in settings {
        execute(world, &format!("alter database {database} set {name} = {value}")).await;
    }
}

#[test]
fn defaults_of_the_database_do_not_reach_the_workers_sessions() {
    world(async |world| {
        world.is_tampered_with();
        // Both of the worker's kinds of sessions write: batches attempts, the others the heartbeat.
        let spy = "create table spied as select ''::text as by, ''::text as settings limit 0;
            create function spy() returns trigger language plpgsql as $$ begin
                insert into public.spied values (tg_table_name, concat_ws(' ', current_setting('transaction_isolation'),
                    current_setting('synchronous_commit'), current_setting('search_path'),
                    current_setting('lock_timeout'), current_setting('idle_session_timeout')));
                return new;
            end $$;
            create trigger spy before insert on attempt for each row execute function spy();
            create trigger spy before insert or update on worker for each row execute function spy();";
        execute(&world, spy).await;
        let odd = [
            ("default_transaction_isolation", "'repeatable read'"),
            ("synchronous_commit", "off"),
            ("search_path", "nowhere"),
            ("standard_conforming_strings", "off"),
            ("idle_session_timeout", "'300ms'"),
        ];
        set_for_database(&world, &odd).await;
        world.declare_topology().await;
        let jobs = world.publish_jobs(5).await;
        let mut worker = world.start_worker();
        world.wait_for_all_accepted(&jobs).await;
        worker.stop().await;
        let seen: Vec<String> =
            sqlx::query_scalar("select distinct by || ': ' || settings from public.spied order by 1")
                .fetch_all(&world.pool)
                .await
                .expect("rows");
        let sound = ["attempt: read committed on public 250ms 0", "worker: read committed on public 5s 0"];
        assert_eq!(seen, sound);

        let said = check(&world, &[]).await;
        for (name, _) in odd {
            assert!(said.contains(&format!("{name} is ")), "{name} in {said}");
        }
        assert!(!said.contains("\"wrong\""), "{said}");
    });
}

#[test]
fn a_database_whose_encoding_cannot_hold_every_text_is_refused() {
    world(async |world| {
        let name = format!("latin_{}", Uuid::new_v4().simple());
        execute(&world, &format!("create database {name} encoding latin1 locale 'C' template template0"))
            .await;
        let mut url: url::Url = world.database_url().parse().expect("a URL");
        url.set_path(&name);
        let settings = [("DATABASE_URL", url.as_str())];
        let ran = world.run(&["run", "--migrate"], &settings).await;
        let said = check(&world, &settings).await;
        execute(&world, &format!("drop database {name}")).await;
        let complaint = String::from_utf8([ran.stdout, ran.stderr].concat()).expect("UTF-8");
        assert_eq!(ran.status.code(), Some(1), "{complaint}");
        for text in [said, complaint] {
            assert!(text.contains("encoding is LATIN1") && text.contains("--encoding=UTF8"), "{text}");
        }
    });
}

/// How a pooler hands out the sessions that it has.
#[derive(Clone, Copy, Eq, PartialEq)]
enum PoolMode {
    Session,
    Transaction,
}

/// A pooler as PgBouncer is one: it answers startups itself and takes no parameter but those it
/// tracks. By transaction, all clients share one session.
async fn start_pooler(world: &World, mode: PoolMode) -> String {
    let mut url: url::Url = world.database_url().parse().expect("a URL");
    let target = format!("{}:{}", url.host_str().expect("a host"), url.port().expect("a port"));
    let startup = startup_message(url.username(), url.path().trim_start_matches('/'));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    url.set_host(Some("127.0.0.1")).expect("a host");
    url.set_port(Some(listener.local_addr().expect("an address").port())).expect("a port");
    let shared = Arc::new(Mutex::new(open_session(&target, &startup).await));
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (target, startup, shared) = (target.clone(), startup.clone(), Arc::clone(&shared));
            tokio::spawn(async move {
                let Some(mut client) = let_in(client).await else { return };
                // Clients go whenever they like.
                let _gone = match mode {
                    PoolMode::Transaction => share_session(&mut client, &shared).await,
                    PoolMode::Session => {
                        let mut session = open_session(&target, &startup).await;
                        copy_bidirectional(&mut client, &mut session).await.map(drop)
                    }
                };
            });
        }
    });
    url.to_string()
}

fn startup_message(user: &str, database: &str) -> Vec<u8> {
    let text = format!("user\0{user}\0database\0{database}\0\0");
    let length = u32::try_from(text.len() + 8).expect("it is short");
    [&length.to_be_bytes()[..], &196_608_u32.to_be_bytes(), text.as_bytes()].concat()
}

async fn open_session(target: &str, startup: &[u8]) -> TcpStream {
    let mut session = TcpStream::connect(target).await.expect("the database");
    session.write_all(startup).await.expect("it listens");
    while read_message(&mut session).await.expect("it answers")[0] != b'Z' {}
    session
}

/// Answers a client's startup.
async fn let_in(mut client: TcpStream) -> Option<TcpStream> {
    let mut body = loop {
        let length = client.read_u32().await.ok()? as usize - 4;
        let mut body = vec![0; length];
        client.read_exact(&mut body).await.ok()?;
        if length > 4 {
            break body.split_off(4);
        }
        // No TLS.
        client.write_all(b"N").await.ok()?;
    };
    body.truncate(body.len().saturating_sub(2));
    let words: Vec<&[u8]> = body.split(|byte| *byte == 0).collect();
    let tracked = ["user", "database", "client_encoding", "DateStyle", "TimeZone", "application_name"];
    let is_tracked = |name: &&[u8]| tracked.iter().any(|known| known.as_bytes() == *name);
    if let Some(name) = words.iter().step_by(2).find(|name| !is_tracked(name)) {
        let said = format!("unsupported startup parameter: {}", String::from_utf8_lossy(name));
        let fields = format!("SFATAL\0VFATAL\0C08P01\0M{said}\0\0");
        client.write_all(&message(b'E', fields.as_bytes())).await.ok()?;
        return None;
    }
    let answer = [message(b'R', &[0; 4]), message(b'K', &[0; 8]), message(b'Z', b"I")].concat();
    client.write_all(&answer).await.ok()?;
    Some(client)
}

/// Gives the client the session for a transaction at a time.
async fn share_session(client: &mut TcpStream, shared: &Mutex<TcpStream>) -> std::io::Result<()> {
    loop {
        let mut asked = read_message(client).await?;
        let mut session = shared.lock().await;
        loop {
            if asked[0] == b'X' {
                return Ok(());
            }
            session.write_all(&asked).await?;
            if matches!(asked[0], b'Q' | b'S') {
                let answer = loop {
                    let answer = read_message(&mut session).await?;
                    client.write_all(&answer).await?;
                    if answer[0] == b'Z' {
                        break answer;
                    }
                };
                if answer[5] == b'I' {
                    break;
                }
            }
            asked = read_message(client).await?;
        }
    }
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("it is short");
    [&[kind], &length.to_be_bytes()[..], body].concat()
}

async fn read_message(from: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let kind = from.read_u8().await?;
    let length = from.read_u32().await? as usize - 4;
    let mut body = vec![0; length];
    from.read_exact(&mut body).await?;
    Ok(message(kind, &body))
}

#[test]
fn a_pooler_by_transaction_is_refused_before_anything_is_taken() {
    world(async |world| {
        world.declare_topology().await;
        world.publish_jobs(3).await;
        let url = start_pooler(&world, PoolMode::Transaction).await;
        let settings = [("DATABASE_URL", url.as_str())];
        let ran = world.run(&["run"], &settings).await;
        let complaint = String::from_utf8([ran.stdout, ran.stderr].concat()).expect("UTF-8");
        assert_eq!(ran.status.code(), Some(1), "{complaint}");
        for text in [complaint, check(&world, &settings).await] {
            assert!(text.contains("DATABASE_URL: a pooler hands each transaction"), "{text}");
            assert!(text.contains("pool_mode = session"), "{text}");
        }
        assert_eq!(world.count_ready(JOBS).await, 3);
        assert!(world.oracle("updates").await.is_empty());
    });
}

#[test]
fn a_pooler_by_session_serves_as_the_database_does() {
    world(async |world| {
        world.declare_topology().await;
        let url = start_pooler(&world, PoolMode::Session).await;
        let settings = [("DATABASE_URL", url.as_str())];
        let jobs = world.publish_jobs(10).await;
        let mut worker = world.start_worker_with(&settings);
        world.wait_for_all_accepted(&jobs).await;
        worker.stop().await;
        let said = check(&world, &settings).await;
        assert!(!said.contains("\"wrong\""), "{said}");
    });
}

#[test]
fn a_table_that_is_gone_needs_a_person_and_work_goes_on_once_it_is_back() {
    world(async |world| {
        let name = ("WORKER_NAME", "told");
        let (worker, jobs) = world.start_at_work(&[name]).await;
        execute(&world, "alter table attempt rename to attempt_elsewhere").await;
        world.wait_for_log(&worker, NEEDS_PERSON).await;
        world
            .wait_for("an honest probe", async || {
                let probed = world.run(&["health", "--ready"], &[name]).await;
                let said = String::from_utf8(probed.stdout).expect("UTF-8");
                (probed.status.code() == Some(1) && said.contains("takes no jobs: database")).then_some(())
            })
            .await;
        let log = worker.log();
        assert!(log.contains("kyc-worker migrate"), "the remedy is told: {log}");
        assert_eq!(log.matches(NEEDS_PERSON).count(), 1, "told once: {log}");
        assert!(!log.contains("a write failed; the worker tries it again"), "{log}");
        execute(&world, "alter table attempt_elsewhere rename to attempt").await;
        world.wait_for_log(&worker, RESUMED).await;
        world.check_nothing_lost_or_spent_twice(&jobs).await;
    });
}

#[test]
fn a_database_that_takes_no_connections_needs_a_person() {
    let cluster = own_postgres(Disk::Ample, &[]);
    world_on(&cluster.url(), async |world| {
        let (worker, jobs) = world.start_at_work(&[]).await;
        let name = world.database_url().rsplit('/').next().expect("a name").to_owned();
        let admin = PgPool::connect(&cluster.url()).await.expect("the server answers");
        let allow = async |allowed: bool| {
            let statements = format!(
                "alter database {name} allow_connections {allowed};
                select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'"
            );
            sqlx::raw_sql(&statements).execute(&admin).await.expect("it is done");
        };
        allow(false).await;
        world.wait_for_log(&worker, NEEDS_PERSON).await;
        let log = worker.log();
        assert!(log.contains("alter database … allow_connections true"), "the remedy is told: {log}");
        assert!(!log.contains("a maintenance task fails"), "{log}");
        allow(true).await;
        world.wait_for_log(&worker, RESUMED).await;
        world.check_nothing_lost_or_spent_twice(&jobs).await;
    });
}

/// Makes a role that logs in with a password, on a cluster that asks for one.
async fn make_role(world: &World, cluster: &OwnPostgres) -> url::Url {
    let rules = "host all postgres 127.0.0.1/32 trust\nhost all kyc 127.0.0.1/32 scram-sha-256\n";
    cluster.write_file("pg_hba.conf", rules).expect("a file");
    execute(world, "create role kyc superuser login password 'first'; select pg_reload_conf()").await;
    let mut url: url::Url = world.database_url().parse().expect("a URL");
    url.set_username("kyc").expect("a user");
    url.set_password(Some("wrong")).expect("a password");
    // The server takes its rules up a moment after it was asked to.
    world
        .wait_for("the rules", async || {
            let said = check(world, &[("DATABASE_URL", url.as_str())]).await;
            said.contains("password authentication failed").then_some(())
        })
        .await;
    url
}

#[test]
fn a_password_that_is_rotated_is_read_again_from_its_file() {
    let cluster = own_postgres(Disk::Ample, &[]);
    world_on(&cluster.url(), async |world| {
        let mut url = make_role(&world, &cluster).await;
        world.declare_topology().await;
        let file = world.write_file("database-url", url.as_str().as_bytes());
        let mut command = world.command();
        command.arg("run").env_remove("DATABASE_URL").env("DATABASE_URL_FILE", &file);
        // Wrong from the start: told, and mended without a restart.
        let worker = world.spawn(command);
        world.wait_for_log(&worker, "waiting for the database until a person has fixed this").await;
        assert!(worker.log().contains("are user and password right?"), "{}", worker.log());
        url.set_password(Some("first")).expect("a password");
        world.write_file("database-url", url.as_str().as_bytes());
        let mut jobs = world.publish_jobs(10).await;
        world.wait_for_all_accepted(&jobs).await;

        execute(&world, "alter role kyc password 'second'").await;
        let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = 'kyc'";
        world.count(end).await;
        jobs.extend(world.publish_jobs(10).await);
        world.wait_for_log(&worker, NEEDS_PERSON).await;
        url.set_password(Some("second")).expect("a password");
        world.write_file("database-url", url.as_str().as_bytes());
        world.wait_for_log(&worker, RESUMED).await;
        world.check_nothing_lost_or_spent_twice(&jobs).await;
        assert_eq!(world.oracle("updates").await.len(), jobs.len());
        let log = worker.log();
        assert!(log.contains("DATABASE_URL read again from its file"), "{log}");
        assert!(!log.contains("second") && !log.contains("first"), "no password: {log}");
    });
}

#[test]
fn a_server_with_fewer_connections_than_wanted_is_no_outage() {
    let cluster = own_postgres(Disk::Ample, &["max_connections=13", "superuser_reserved_connections=0"]);
    world_on(&cluster.url(), async |world| {
        world.declare_topology().await;
        let wanted = [("DATABASE_CONNECTIONS", "40"), ("CONCURRENCY", "64"), ("PREFETCH", "128")];
        // Jobs of busy customers are written one by one, over as many connections as there are.
        let customers: Vec<Uuid> = (0..20).map(|_| Uuid::new_v4()).collect();
        let mut jobs = Vec::new();
        for customer in customers.iter().cycle().take(60) {
            jobs.push(world.publish_job_for(*customer).await.0);
        }
        let worker = world.start_worker_with(&wanted);
        world.wait_for_ended(jobs.len()).await;
        let log = worker.log();
        assert!(!log.contains("intake paused"), "{log}");
        assert!(
            log.matches("DATABASE_CONNECTIONS: a connection was waited for").count() <= 1,
            "told once: {log}"
        );
        drop(worker);
        let said = check(&world, &wanted).await;
        assert!(said.contains("DATABASE_CONNECTIONS: a replica wants 40 connections, and 13"), "{said}");
    });
}

/// Makes the database refuse what `changes` says, by raising `fault`.
async fn refuse(world: &World, changes: &str, fault: &str) {
    world.is_tampered_with();
    let statements = format!(
        "create function refuse() returns trigger language plpgsql as $$ begin raise exception {fault}; end $$;
        create trigger refuse before {changes} execute function refuse();"
    );
    execute(world, &statements).await;
}

#[test]
fn an_answer_whose_words_the_database_refuses_is_kept_without_them() {
    world(async |world| {
        let refused = "update on submission for each row when (new.provider_reference is not null)";
        refuse(&world, refused, "'no equivalent in encoding' using errcode = '22P05'").await;
        world.declare_topology().await;
        let job = world.publish_job().await;
        let worker = world.start_worker();
        let ended = world.wait_for_state(job, &["accepted"]).await;
        assert_eq!((ended.provider_reference, ended.evidence.as_deref()), (None, Some("response")));
        assert_eq!(world.count_patches(job).await, 1);
        world.wait_for_no_delivery().await;
        assert!(worker.log().contains("recording its answer without them"), "{}", worker.log());
    });
}

#[test]
fn a_result_that_the_database_refuses_calls_a_person_and_is_recorded_once_it_may_be() {
    world(async |world| {
        let refused = Uuid::new_v4();
        let updates = format!("update on attempt for each row when (new.job_id = '{refused}')");
        refuse(&world, &updates, "'no such thing here'").await;
        world.declare_topology().await;
        world.publish_job_named(Uuid::new_v4(), refused).await;
        let others = world.publish_jobs(5).await;
        let worker = world.start_worker();
        world.wait_for_all_accepted(&others).await;
        world.wait_for_log(&worker, "a write fails again and again").await;
        assert!(worker.log().contains("no such thing here"), "{}", worker.log());
        execute(&world, "drop trigger refuse on attempt").await;
        world.wait_for_all_accepted(&[refused]).await;
        assert_eq!(world.count_patches(refused).await, 1);
        assert_eq!(worker.log().matches("a write fails again and again").count(), 1, "told once");
        world.wait_for_no_delivery().await;
    });
}

#[test]
fn a_job_with_a_value_that_the_database_refuses_is_dead_lettered_alone() {
    world(async |world| {
        let refused = Uuid::new_v4();
        let inserts = format!(
            "insert on submission for each row when (new.job_id = '{refused}' and new.state <> 'invalid')"
        );
        refuse(&world, &inserts, "'invalid byte sequence' using errcode = '22021'").await;
        world.declare_topology().await;
        world.publish_job_named(Uuid::new_v4(), refused).await;
        let others = world.publish_jobs(5).await;
        let worker = world.start_worker();
        world.wait_for_all_accepted(&others).await;
        let ended = world.wait_for_state(refused, &["invalid"]).await;
        assert!(ended.reason.expect("a reason").contains("the database cannot hold a value"));
        assert_eq!(world.count("select count(*) from dead_lettered_delivery").await, 1);
        assert_eq!(world.count_patches(refused).await, 0);
        world.wait_for_no_delivery().await;
        world.wait_for("its letter", async || world.take_dead_letter().await).await;
        drop(worker);
    });
}
