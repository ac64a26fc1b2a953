//! A database for each world: a clone of a template, which is made once for each schema and
//! stays for later runs.

use std::str::FromStr as _;

use kyc_worker::journal::{MIGRATIONS, migrate};
use sha2::{Digest as _, Sha256};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, PgPool};

/// Held alone by who makes or drops a template, and together by those who clone one. Of every test
/// process of this cluster, whatever its schema.
const TEMPLATES_LOCK: i64 = 0x6b79_635f_7465_7374;

/// The template of the migrations that this process was built with.
fn template_name() -> String {
    let mut digest = Sha256::new();
    for migration in MIGRATIONS.iter() {
        digest.update(&migration.checksum);
    }
    let hash: String = digest.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("kyc_it_template_{hash}")
}

/// Makes the database `name` with the schema in it, and returns its URL.
pub(super) async fn create(admin_url: &str, name: &str) -> String {
    let url = url_of(admin_url, name);
    let mut admin = connect_alone(admin_url).await;
    // A cluster of a test's own has one database, which needs no template.
    if admin_url == super::admin_database_url() {
        clone_template(&mut admin, admin_url, name).await;
    } else {
        execute(&mut admin, &format!("create database {name}")).await;
        run_migrations(&url).await;
    }
    admin.close().await.expect("the connection closes");
    url
}

async fn clone_template(admin: &mut PgConnection, admin_url: &str, name: &str) {
    let template = template_name();
    loop {
        lock(admin, "select pg_advisory_lock_shared($1)").await;
        if is_template(admin, &template).await {
            break execute(admin, &format!("create database {name} template {template}")).await;
        }
        lock(admin, "select pg_advisory_unlock_shared($1)").await;
        lock(admin, "select pg_advisory_lock($1)").await;
        if !is_template(admin, &template).await {
            make_template(admin, admin_url, &template).await;
            drop_old_templates(admin, &template).await;
        }
        lock(admin, "select pg_advisory_unlock($1)").await;
    }
}

async fn lock(admin: &mut PgConnection, statement: &str) {
    sqlx::query(statement).bind(TEMPLATES_LOCK).execute(admin).await.expect("the lock");
}

async fn is_template(admin: &mut PgConnection, name: &str) -> bool {
    let there = "select exists (select from pg_database where datname = $1 and datistemplate)";
    sqlx::query_scalar(there).bind(name).fetch_one(admin).await.expect("the database answers")
}

/// Only a template that is whole is marked as one; nobody can connect to it, so that it can be
/// cloned at any time.
async fn make_template(admin: &mut PgConnection, admin_url: &str, name: &str) {
    execute(admin, &format!("drop database if exists {name}")).await;
    execute(admin, &format!("create database {name}")).await;
    run_migrations(&url_of(admin_url, name)).await;
    execute(admin, &format!("alter database {name} allow_connections false")).await;
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    execute(admin, &format!("comment on database {name} is '{now}'")).await;
    execute(admin, &format!("alter database {name} is_template true")).await;
}

/// Drops the templates of other schemas that were made more than a week ago. One that another
/// checkout still works with is made again.
async fn drop_old_templates(admin: &mut PgConnection, current: &str) {
    let old = "select datname::text from pg_database
        where datname like 'kyc\\_it\\_template\\_%' and datname <> $1
            and coalesce(shobj_description(oid, 'pg_database'), '0')::bigint
                < extract(epoch from now() - interval '7 days')";
    let old: Vec<String> =
        sqlx::query_scalar(old).bind(current).fetch_all(&mut *admin).await.expect("their names");
    for name in old {
        execute(admin, &format!("alter database {name} is_template false")).await;
        execute(admin, &format!("drop database {name}")).await;
    }
}

async fn run_migrations(url: &str) {
    let pool = PgPool::connect(url).await.expect("the new database answers");
    migrate(&pool).await.expect("migrations run");
    pool.close().await;
}

/// Drops the database `name`, whoever is still connected.
pub(super) async fn remove(admin_url: &str, name: &str) {
    let mut admin = connect_alone(admin_url).await;
    // Not `with (force)`: that wants the right to end an autovacuum, which a plain drop sends away.
    let end = "select pg_terminate_backend(pid) from pg_stat_activity
        where datname = $1 and backend_type = 'client backend'";
    sqlx::query(end).bind(name).execute(&mut admin).await.expect("its sessions end");
    execute(&mut admin, &format!("drop database if exists {name}")).await;
    admin.close().await.expect("the connection closes");
}

async fn execute(admin: &mut PgConnection, statement: &str) {
    sqlx::raw_sql(statement).execute(admin).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
}

fn url_of(admin_url: &str, name: &str) -> String {
    let mut url: url::Url = admin_url.parse().expect("TEST_DATABASE_URL is a URL");
    url.set_path(name);
    url.to_string()
}

async fn connect_alone(url: &str) -> PgConnection {
    let options = PgConnectOptions::from_str(url).expect("a URL of Postgres");
    options.connect().await.unwrap_or_else(|error| no_postgres(url, &error))
}

/// The connections that a test asks its questions over.
pub(super) async fn connect(url: &str) -> PgPool {
    PgPoolOptions::new()
        // All at once: a test may leave the server without one to spare.
        .min_connections(3)
        .max_connections(3)
        .connect(url)
        .await
        .unwrap_or_else(|error| no_postgres(url, &error))
}

fn no_postgres(url: &str, error: &sqlx::Error) -> ! {
    panic!("no Postgres at {url} ({error}); `make services` starts it")
}
