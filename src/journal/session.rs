//! Connections to Postgres: where they lead, and what every session of ours is set to, whatever
//! the server, the database or the role have for a default. Knows no table.

use std::net::SocketAddr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, Row as _};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use crate::config::{Secret, database_urls};

/// A connection that is not made by then is given up, and tried again after a pause.
pub(crate) const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
pub(crate) const CONNECT_PAUSE: Duration = Duration::from_secs(1);

/// What the promises need of a session, and our statements.
///
/// - Whoever took a customer's slot reads the siblings with a second statement, which must see what was
///   committed meanwhile: read committed.
/// - What was committed outlives a crash of the server, and of its disk where a standby is waited
///   for. An operator's `remote_write` and `remote_apply` stay.
/// - Two replicas never mean different tables by one name.
/// - No statement waits for ever.
/// - A pool's connection may be idle: PostgreSQL 14 and later can end those sessions.
///
/// Set by statements: poolers refuse or forget what a startup packet asks for. Whether the session
/// is read-only is not set: that is an operator's switch, or their disk is full.
const SESSION: &str = "
    set default_transaction_isolation = 'read committed';
    set default_transaction_deferrable = off;
    select set_config('synchronous_commit', 'on', false)
        where current_setting('synchronous_commit') in ('off', 'local');
    select set_config('idle_session_timeout', '0', false)
        where current_setting('idle_session_timeout', true) <> '0';
    set search_path = public;
    set standard_conforming_strings = on;
    set statement_timeout = '10s';
    set lock_timeout = '5s';
    set idle_in_transaction_session_timeout = '10s';";

/// Every statement of the worker's looks few rows up by an index. On tables that are new, or
/// that grew since they were analyzed, Postgres would rather read them whole, and remember that
/// plan for as long as the connection lives. Compiling a plan, sharing it among processes, or making
/// it anew for each few rows pays for none of them.
const LOOK_UP_BY_INDEX: &str = "
    set enable_seqscan = off;
    set enable_bitmapscan = off;
    set enable_hashjoin = off;
    set enable_mergejoin = off;
    set jit = off;
    set max_parallel_workers_per_gather = 0;
    set plan_cache_mode = force_generic_plan;";

/// A row that somebody holds keeps a batch for no longer than this.
const BATCH_LOCK_TIMEOUT: &str = "set lock_timeout = '250ms';";

/// What people ask spans a day of a table that only grows. Where its statistics are older than
/// that day, Postgres would read the years before it, too.
const READ_BY_INDEX: &str = "set enable_seqscan = off; set jit = off;";

/// The console is used by a role that may see no sealed payload and no fingerprint: for it, `desk` has what
/// it may see of the tables (grants.sql). A page that takes long is given up: nobody's work waits for it.
/// What a person asks for may be few rows or very many, so each plan is made for what is asked; and it reads
/// few, so no other process shares it.
const READ_FOR_PAGES: &str = "
    set search_path = desk, public; set statement_timeout = '3s'; set lock_timeout = '1s';
    set plan_cache_mode = force_custom_plan; set max_parallel_workers_per_gather = 0;";

/// A page changes nothing.
const READ_ONLY: &str = "set default_transaction_read_only = on;";

/// A pooler hands our transactions around.
pub(crate) const POOLED: &str = "DATABASE_URL: a pooler hands each transaction another session of the \
    database, and the worker's settings and prepared statements belong to one";
pub(crate) const UNPOOL: &str =
    "let it pool by session (pool_mode = session), or name Postgres itself in DATABASE_URL";

/// The database holds not every text.
pub(crate) fn wrong_encoding(encoding: &str) -> String {
    format!("DATABASE_URL: the database's encoding is {encoding}, which cannot hold every text")
}
pub(crate) const RECODE: &str = "make another: createdb --encoding=UTF8 --template=template0";

/// The server may lose what it has committed.
pub(crate) const UNSAFE: &str = "DATABASE_URL: the server has fsync or full_page_writes off: a crash may lose what \
    was committed, and a job be sent twice";
pub(crate) const MAKE_SAFE: &str =
    "set both on in postgresql.conf; for tests, set ALLOW_UNSAFE_DATABASE=true";

/// What a session is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Session {
    Work,
    Batches,
    /// A command that people wait for.
    Command,
    /// A page of the console.
    Page,
    /// What somebody does by the console.
    Action,
}

impl Session {
    pub async fn set_up(self, connection: &mut PgConnection) -> sqlx::Result<()> {
        let statements = match self {
            Self::Work => [SESSION, LOOK_UP_BY_INDEX, "", ""],
            Self::Batches => [SESSION, LOOK_UP_BY_INDEX, BATCH_LOCK_TIMEOUT, ""],
            Self::Command => [SESSION, READ_BY_INDEX, "", ""],
            Self::Page => [SESSION, READ_BY_INDEX, READ_FOR_PAGES, READ_ONLY],
            Self::Action => [SESSION, READ_BY_INDEX, READ_FOR_PAGES, ""],
        };
        connection.execute(&*statements.concat()).await.map(|_set| ())
    }

    /// Connects and sets the session up.
    pub async fn connect(self, options: &PgConnectOptions) -> sqlx::Result<PgConnection> {
        let mut connection = options.connect().await?;
        self.set_up(&mut connection).await?;
        Ok(connection)
    }
}

/// How to connect to each host that the URL names; and where to, for people.
pub(crate) fn connect_options(url: &Secret) -> anyhow::Result<(Vec<PgConnectOptions>, String)> {
    let (mut hosts, mut places) = (Vec::new(), Vec::new());
    for url in database_urls(url) {
        let options: PgConnectOptions = url
            .expose()
            .parse()
            .map_err(|_| anyhow::anyhow!("DATABASE_URL: is no Postgres URL; see --help for its form"))?;
        places.push(place_of(&options));
        // A pooler refuses what it does not know, and we need no more digits than the server's default.
        hosts.push(options.application_name("kyc-worker").extra_float_digits(None));
    }
    Ok((hosts, places.join(",")))
}

/// Which database a URL names, for people: where it is, and its name there.
pub(crate) fn name_of(url: &Secret) -> anyhow::Result<String> {
    let (hosts, place) = connect_options(url)?;
    let name = hosts.first().and_then(PgConnectOptions::get_database).unwrap_or_default();
    Ok(format!("{place}/{name}"))
}

/// Where a connection leads, for people.
pub(crate) fn place_of(options: &PgConnectOptions) -> String {
    match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    }
}

/// Every way in, in order: each host, and of a host with several addresses each address. Each is tried with a
/// share of the time of its own: the library has one limit around all addresses, which the first that
/// swallows packets uses up. It also checks a certificate against the host it connects to, so with
/// `verify-full` the name stays, and all that goes with it.
pub(crate) async fn ways_in(hosts: Vec<PgConnectOptions>) -> Vec<PgConnectOptions> {
    let mut ways = Vec::new();
    for options in hosts {
        let addresses = addresses(&options).await;
        if addresses.len() < 2 || matches!(options.get_ssl_mode(), PgSslMode::VerifyFull) {
            ways.push(options);
        } else {
            let there = |at: &SocketAddr| options.clone().host(&at.ip().to_string()).port(at.port());
            ways.extend(addresses.iter().map(there));
        }
    }
    ways
}

async fn addresses(options: &PgConnectOptions) -> Vec<SocketAddr> {
    let host = options.get_host().trim_matches(['[', ']']);
    if options.get_socket().is_some() {
        return Vec::new();
    }
    match timeout(CONNECT_TIME_MAX, lookup_host((host, options.get_port()))).await {
        Ok(Ok(found)) => found.collect(),
        // Connecting finds it out again, and tells.
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

/// The way in to the server that takes writes, or else to the first that lets us in. The only one is not
/// tried.
pub(crate) async fn reach(mut ways: Vec<PgConnectOptions>) -> sqlx::Result<PgConnectOptions> {
    if ways.len() == 1 {
        return Ok(ways.remove(0));
    }
    let share = share_of(CONNECT_TIME_MAX, ways.len());
    let (mut standby, mut last) = (None, sqlx::Error::PoolTimedOut);
    for there in ways {
        match timeout(share, is_standby(&there)).await {
            Ok(Ok(false)) => return Ok(there),
            Ok(Ok(true)) => standby = standby.or(Some(there)),
            Ok(Err(error)) => last = error,
            Err(_elapsed) => {}
        }
    }
    standby.ok_or(last)
}

/// Asked without a prepared statement, which a pooler by transaction breaks.
async fn is_standby(options: &PgConnectOptions) -> sqlx::Result<bool> {
    let mut connection = options.connect().await?;
    let is_standby = connection.fetch_one("select pg_is_in_recovery()").await?.try_get(0);
    hang_up(connection, CONNECT_TIME_MAX).await;
    is_standby
}

/// Closes a connection that has served its purpose. Nothing depends on how that ends.
async fn hang_up(connection: PgConnection, time_max: Duration) {
    drop(timeout(time_max, connection.close()).await);
}

/// The ways in that take no connection, where there are several.
pub(crate) async fn silent_ways(ways: &[PgConnectOptions]) -> Vec<String> {
    let share = share_of(CONNECT_TIME_MAX, ways.len() + 1);
    let mut silent = Vec::new();
    for way in ways.iter().filter(|way| ways.len() > 1 && way.get_socket().is_none()) {
        let address = (way.get_host().trim_matches(['[', ']']), way.get_port());
        if !matches!(timeout(share, TcpStream::connect(address)).await, Ok(Ok(_))) {
            silent.push(place_of(way));
        }
    }
    silent
}

fn share_of(time: Duration, parts: usize) -> Duration {
    time / u32::try_from(parts).unwrap_or(u32::MAX).max(1)
}

/// How often the two connections are asked, which sees through a pooler that is busy with others.
const POOLER_LOOKS: u32 = 5;

/// Whether a pooler between us and Postgres hands each transaction another session: two connections
/// that are open at once are then one session, or one is now this and now that. What was set, and
/// every prepared statement, would be gone or another's.
pub(crate) async fn is_pooled_by_transaction(
    connection: &mut PgConnection,
    options: &PgConnectOptions,
) -> sqlx::Result<bool> {
    let mut other = match options.connect().await {
        Ok(other) => Some(other),
        // There may be none to spare.
        Err(sqlx::Error::Database(_)) => None,
        Err(error) => return Err(error),
    };
    let first = session_id(connection).await?;
    let mut is_pooled = false;
    for _ in 0..POOLER_LOOKS {
        if let Some(other) = &mut other {
            is_pooled |= session_id(other).await? == first;
        }
        is_pooled |= session_id(connection).await? != first;
    }
    if let Some(other) = other {
        hang_up(other, CONNECT_TIME_MAX).await;
    }
    Ok(is_pooled)
}

/// The server's process. Asked without a prepared statement, which such a pooler breaks.
async fn session_id(connection: &mut PgConnection) -> sqlx::Result<i32> {
    connection.fetch_one("select pg_backend_pid()").await?.try_get(0)
}

/// Whether what the server has committed outlives its crash, as far as it says so.
pub(crate) async fn is_durable(connection: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"-- is_durable
        select current_setting('fsync')::boolean and current_setting('full_page_writes')::boolean as "is_durable!""#
    )
    .fetch_one(connection)
    .await
}

/// The database's encoding, as Postgres names it.
pub(crate) async fn encoding(connection: &mut PgConnection) -> sqlx::Result<String> {
    sqlx::query_scalar!(
        r#"-- encoding
        select pg_encoding_to_char(encoding)::text as "encoding!"
        from pg_database where datname = current_database()"#
    )
    .fetch_one(connection)
    .await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that lets everybody in, and says whether it is a standby.
    async fn postgres(is_standby: bool) -> PgConnectOptions {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        tokio::spawn(async move {
            let (mut client, _) = listener.accept().await.expect("a client");
            let _startup = client.read(&mut [0; 1024]).await;
            // Logged in, and ready for queries.
            let _gone = client.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").await;
            let _query = client.read(&mut [0; 1024]).await;
            // One column, a boolean in text; one row; done, and ready again.
            let mut answer = b"T\0\0\0\x1a\0\x01s\0\0\0\0\0\0\0\0\0\0\x10\0\x01\xff\xff\xff\xff\0\0".to_vec();
            answer.extend(b"D\0\0\0\x0b\0\x01\0\0\0\x01");
            answer.push(if is_standby { b't' } else { b'f' });
            answer.extend(b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I");
            let _gone = client.write_all(&answer).await;
            let _terminate = client.read(&mut [0; 16]).await;
        });
        PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(port).ssl_mode(PgSslMode::Disable)
    }

    #[tokio::test]
    async fn a_way_in_that_says_nothing_and_one_to_a_standby_give_way_to_the_next() {
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = silent.local_addr().expect("an address").port();
        let silent = PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(port);
        let silent = silent.ssl_mode(PgSslMode::Disable);
        let (standby, primary) = (postgres(true).await, postgres(false).await);
        let there = reach(vec![silent.clone(), standby, primary.clone()]).await.expect("the third");
        assert_eq!(there.get_port(), primary.get_port());
        let standby = postgres(true).await;
        let there = reach(vec![silent, standby.clone()]).await.expect("the second");
        assert_eq!(there.get_port(), standby.get_port(), "reading is better than nothing");
    }
}
