//! TLS to every edge, with a certificate authority of one's own.

use std::process::Output;

use dollarpe_sandbox::tls::{Authority, Issued};
use serde_json::Value;
use tokio::net::TcpStream;
use url::Url;

use crate::harness::{World, world, world_on};
use crate::own_services::{Disk, OwnPostgres, free_port, own_postgres, own_rabbit};

/// What `check` finds wrong, faults and remedies.
async fn wrong(world: &World, settings: &[(&str, &str)]) -> String {
    let output = world.run(&["check", "--json"], settings).await;
    let areas: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
    let findings = areas.as_array().expect("areas").iter().flat_map(|area| area["findings"].as_array());
    let wrong = findings.flatten().filter(|found| found["grade"] == "wrong");
    wrong.map(Value::to_string).collect::<Vec<_>>().join("\n")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn authority() -> Authority {
    Authority::new().expect("an authority")
}

fn issue(authority: &Authority, name: &str) -> Issued {
    authority.issue(name).expect("a certificate")
}

/// Sends one job all the way.
async fn works(world: &World, settings: &[(&str, &str)]) {
    assert_eq!(wrong(world, settings).await, "");
    let input = crate::harness::job_body(uuid::Uuid::new_v4(), uuid::Uuid::new_v4()).to_string();
    let enqueued = world.run_with_input(&["enqueue"], settings, input.as_bytes()).await;
    assert!(enqueued.status.success(), "{}", said(&enqueued));
    let drained = world.run(&["run", "--drain"], settings).await;
    assert!(drained.status.success(), "{}", said(&drained));
    assert_eq!(world.count("select count(*) from submission where state = 'accepted'").await, 1);
}

#[test]
fn a_worker_trusts_a_provider_of_a_private_authority_once_it_is_told_to() {
    world(async |world| {
        let authority = authority();
        let ca = world.write_file("ca.pem", authority.pem().as_bytes());
        let (_front, base) = world.put_tls_before_provider(&authority, "127.0.0.1").await;
        works(&world, &[("DOLLARPE_BASE_URL", &base), ("DOLLARPE_CA_FILE", &ca)]).await;
        let no_pem = world.write_file("none.pem", b"no certificate");
        let settings = [("DOLLARPE_BASE_URL", base.as_str()), ("DOLLARPE_CA_FILE", &no_pem)];
        let refused = world.run(&["run"], &settings).await;
        assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
        assert!(said(&refused).contains("DOLLARPE_CA_FILE: "), "{}", said(&refused));
    });
}

#[test]
fn a_worker_shows_its_client_certificate_to_a_broker_that_wants_one() {
    world(async |world| {
        let (authority, stranger) = (authority(), authority());
        let file = |name: &str, pem: String| world.write_file(name, pem.as_bytes());
        let ca = file("ca.pem", authority.pem());
        let (server, client, strange) =
            (issue(&authority, "localhost"), issue(&authority, "worker"), issue(&stranger, "worker"));
        let (server_cert, server_key) =
            (file("server.pem", server.pem()), file("server.key", server.key_pem()));
        let (cert, key) = (file("client.pem", client.pem()), file("client.key", client.key_pem()));
        let (bad_cert, bad_key) = (file("bad.pem", strange.pem()), file("bad.key", strange.key_pem()));
        let port = free_port().expect("a port");
        let broker = own_rabbit(&format!(
            "{{ssl_listeners, [{{\"127.0.0.1\", {port}}}]}}, {{ssl_options, [{{cacertfile, \"{ca}\"}}, \
             {{certfile, \"{server_cert}\"}}, {{keyfile, \"{server_key}\"}}, \
             {{verify, verify_peer}}, {{fail_if_no_peer_cert, true}}]}}"
        ));
        // A node may listen for TLS later than it greets without.
        let listens = async || TcpStream::connect(("127.0.0.1", port)).await.ok().map(drop);
        world.wait_for("a port for TLS", listens).await;
        let url = format!("amqps://guest:guest@localhost:{port}/%2f");
        let both = [
            ("AMQP_URL", url.as_str()),
            ("AMQP_CA_FILE", &ca),
            ("AMQP_CERT_FILE", &cert),
            ("AMQP_KEY_FILE", &key),
        ];
        works(&world, &both).await;

        let refused = wrong(&world, &both[..1]).await;
        assert!(refused.contains("authority that this machine does not trust"), "{refused}");
        assert!(refused.contains("AMQP_CA_FILE"), "{refused}");
        let refused = wrong(&world, &both[..2]).await;
        assert!(refused.contains("AMQP_URL") && refused.contains("client certificate"), "{refused}");
        let strange = [both[0], both[1], ("AMQP_CERT_FILE", &bad_cert), ("AMQP_KEY_FILE", &bad_key)];
        let refused = wrong(&world, &strange).await;
        assert!(refused.contains("client certificate"), "{refused}");
        let refused = wrong(&world, &both[..3]).await;
        assert!(refused.contains("AMQP_CERT_FILE, AMQP_KEY_FILE: "), "{refused}");
        let other_name = url.replace("localhost", "127.0.0.1");
        let refused = wrong(&world, &[("AMQP_URL", other_name.as_str()), both[1], both[2], both[3]]).await;
        assert!(refused.contains("certificate is for another name"), "{refused}");
        // Each of several hosts is held to its own name.
        let two = url.replace("@", &format!("@127.0.0.1:{port},"));
        assert_eq!(wrong(&world, &[("AMQP_URL", two.as_str()), both[1], both[2], both[3]]).await, "");
        let plain = format!(
            "amqps://guest:guest@localhost:{}/%2f",
            Url::parse(&broker.url()).expect("a URL").port().expect("a port")
        );
        let refused = wrong(&world, &[("AMQP_URL", plain.as_str()), both[1], both[2], both[3]]).await;
        assert!(refused.contains("does not speak TLS"), "{refused}");
    });
}

/// Gives the cluster a certificate and demands TLS of the role `kyc`.
async fn demand_tls(cluster: &OwnPostgres, authority: &Authority) {
    let issued = issue(authority, "localhost");
    cluster.write_file("server.crt", &issued.pem()).expect("a file");
    cluster.write_file("server.key", &issued.key_pem()).expect("a file");
    let rules = "host all postgres 127.0.0.1/32 trust\nhostssl all kyc 127.0.0.1/32 trust\n";
    cluster.write_file("pg_hba.conf", rules).expect("a file");
    let pool = sqlx::PgPool::connect(&cluster.url()).await.expect("the cluster answers");
    for statement in
        ["create role kyc superuser login", "alter system set ssl = on", "select pg_reload_conf()"]
    {
        sqlx::raw_sql(statement).execute(&pool).await.expect(statement);
    }
    pool.close().await;
}

#[test]
fn a_worker_verifies_the_database_in_full() {
    let cluster = own_postgres(Disk::Ample, &[]);
    world_on(&cluster.url(), async |world| {
        let authority = authority();
        demand_tls(&cluster, &authority).await;
        let ca = world.write_file("ca.pem", authority.pem().as_bytes());
        let mut url: Url = world.database_url().parse().expect("a URL");
        url.set_username("kyc").expect("a user");
        url.set_host(Some("localhost")).expect("a host");
        let with = |query: &str| {
            let mut url = url.clone();
            url.set_query(Some(query));
            url.to_string()
        };
        let verified = with(&format!("sslmode=verify-full&sslrootcert={ca}"));
        // The server takes its certificate up a moment after it was asked to.
        world
            .wait_for("TLS", async || {
                wrong(&world, &[("DATABASE_URL", &verified)]).await.is_empty().then_some(())
            })
            .await;
        works(&world, &[("DATABASE_URL", &verified)]).await;

        let untrusted = wrong(&world, &[("DATABASE_URL", &with("sslmode=verify-full"))]).await;
        assert!(untrusted.contains("does not trust") && untrusted.contains("sslrootcert"), "{untrusted}");
        let renamed = verified.replace("localhost", "127.0.0.1");
        let refused = wrong(&world, &[("DATABASE_URL", &renamed)]).await;
        assert!(refused.contains("certificate is for another name"), "{refused}");
        let plain = wrong(&world, &[("DATABASE_URL", &with("sslmode=disable"))]).await;
        assert!(plain.contains("pg_hba.conf"), "{plain}");
    });
}
