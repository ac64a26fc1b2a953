//! What the worker needs of its sessions in the database, whatever stands in between and whatever
//! others have set: it takes it, sees that it is missing, or waits until a person has mended it.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::net::TcpStream;
use tokio::time::sleep;
use uuid::Uuid;

use crate::harness::{JOBS, NARROW, WorkerProcess, World, world, world_on};
use crate::own_services::{Disk, OwnPostgres, free_port, in_place_of_root, own_postgres, program};

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
    let database = world.database_name().to_owned();
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

/// A PgBouncer in front of this world's database, which lets in whoever comes, at a port of its own.
struct Pooler<'a> {
    world: &'a World,
    url: url::Url,
    settings: String,
    process: WorkerProcess,
}

impl<'a> Pooler<'a> {
    async fn start(world: &'a World, settings: &str) -> Self {
        let mut url: url::Url = world.database_url().parse().expect("a URL");
        let port = free_port().expect("a port");
        let (database, host) = (url.path().trim_start_matches('/'), url.host_str().expect("a host"));
        let password = url.password().map(|password| format!(" password={password}")).unwrap_or_default();
        let settings = format!(
            "[databases]\n{database} = host={host} port={} user={}{password}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = any\n{settings}\n",
            url.port().expect("a port"),
            url.username(),
        );
        url.set_host(Some("127.0.0.1")).expect("a host");
        url.set_port(Some(port)).expect("a port");
        let process = Self::spawn(world, &settings);
        let mut pooler = Self { world, url, settings, process };
        pooler.is_up().await;
        pooler
    }

    fn spawn(world: &World, settings: &str) -> WorkerProcess {
        let mut command = Command::new(program("pgbouncer").expect("PgBouncer: make services"));
        if let Some(user) = in_place_of_root().expect("users are told") {
            command.args(["-u", user]);
        }
        command.arg(world.write_file("pgbouncer.ini", settings.as_bytes()));
        world.spawn(command)
    }

    async fn is_up(&mut self) {
        let port = self.url.port().expect("a port");
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(self.process.is_running(), "it ended: {}", self.process.log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn kill(&mut self) {
        self.process.kill();
    }

    async fn start_again(&mut self) {
        self.process = Self::spawn(self.world, &self.settings);
        self.is_up().await;
    }

    fn leads_here(&self) -> [(&str, &str); 1] {
        [("DATABASE_URL", self.url.as_str())]
    }
}

#[test]
fn a_pooler_that_hands_sessions_around_is_refused_before_anything_is_taken() {
    world(async |world| {
        world.declare_topology().await;
        world.publish_jobs(3).await;
        for mode in ["transaction", "statement"] {
            let pooler = Pooler::start(&world, &format!("pool_mode = {mode}")).await;
            let ran = world.run(&["run"], &pooler.leads_here()).await;
            let complaint = String::from_utf8([ran.stdout, ran.stderr].concat()).expect("UTF-8");
            assert_eq!(ran.status.code(), Some(1), "{mode}: {complaint}");
            for text in [complaint, check(&world, &pooler.leads_here()).await] {
                assert!(text.contains("DATABASE_URL: a pooler hands each transaction"), "{mode}: {text}");
                assert!(text.contains("pool_mode = session"), "{mode}: {text}");
            }
        }
        assert_eq!(world.count_ready(JOBS).await, 3);
        assert!(world.oracle("updates").await.is_empty());
    });
}

#[test]
fn a_pooler_by_session_serves_as_the_database_does() {
    world(async |world| {
        world.declare_topology().await;
        let pooler = Pooler::start(&world, "pool_mode = session").await;
        let jobs = world.publish_jobs(10).await;
        let mut worker = world.start_worker_with(&pooler.leads_here());
        world.wait_for_all_accepted(&jobs).await;
        let said = check(&world, &pooler.leads_here()).await;
        assert!(!said.contains("\"wrong\""), "{said}");
        worker.stop().await;
    });
}

#[test]
fn a_pooler_with_fewer_sessions_than_wanted_is_no_outage() {
    world(async |world| {
        world.declare_topology().await;
        let pooler = Pooler::start(&world, "pool_mode = session\ndefault_pool_size = 4").await;
        let wanted = [("DATABASE_CONNECTIONS", "10"), ("CONCURRENCY", "64"), ("PREFETCH", "128")];
        // Jobs of busy customers are written one by one, over as many connections as there are.
        let customers: Vec<Uuid> = (0..20).map(|_| Uuid::new_v4()).collect();
        let mut jobs = Vec::new();
        for customer in customers.iter().cycle().take(60) {
            jobs.push(world.publish_job_for(*customer).await.0);
        }
        let worker = world.start_worker_with(&[&wanted[..], &pooler.leads_here()].concat());
        world.wait_for_ended(jobs.len()).await;
        let log = worker.log();
        assert!(!log.contains("intake paused"), "{log}");
        let waited = log.matches("DATABASE_CONNECTIONS: a connection was waited for").count();
        assert!(waited <= 1, "told once: {log}");
    });
}

#[test]
fn a_pooler_that_is_killed_and_comes_back_costs_time_only() {
    world(async |world| {
        world.declare_topology().await;
        world.set_provider(json!({ "latency_ms": 20 })).await;
        let mut pooler = Pooler::start(&world, "pool_mode = session").await;
        let mut jobs = world.publish_jobs(200).await;
        let worker = world.start_worker_with(&[&NARROW[..], &pooler.leads_here()].concat());
        world.wait_for_accepted(20).await;
        pooler.kill();
        world.wait_for_log(&worker, "intake paused").await;
        let said = check(&world, &pooler.leads_here()).await;
        assert!(said.contains("\"wrong\"") && said.contains("refused"), "{said}");
        jobs.extend(world.publish_jobs(50).await);
        pooler.start_again().await;
        world.wait_for_log(&worker, RESUMED).await;
        world.check_nothing_lost_or_spent_twice(&jobs).await;
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
        let name = world.database_name().to_owned();
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
