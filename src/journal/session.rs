//! Connections to Postgres: where they lead, and what every session of ours is set to, whatever
//! the server, the database or the role have for a default. Knows no table.

use std::net::SocketAddr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, Row as _};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use crate::config::Secret;

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
}

impl Session {
    pub async fn set_up(self, connection: &mut PgConnection) -> sqlx::Result<()> {
        let statements = match self {
            Self::Work => [SESSION, LOOK_UP_BY_INDEX, ""],
            Self::Batches => [SESSION, LOOK_UP_BY_INDEX, BATCH_LOCK_TIMEOUT],
            Self::Command => [SESSION, READ_BY_INDEX, ""],
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

/// How to connect; and where to, for people.
pub(crate) fn connect_options(url: &Secret) -> anyhow::Result<(PgConnectOptions, String)> {
    let options: PgConnectOptions = url
        .expose()
        .parse()
        .map_err(|_| anyhow::anyhow!("DATABASE_URL: is no Postgres URL; see --help for its form"))?;
    let place = match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    };
    // A pooler refuses what it does not know, and we need no more digits than the server's default.
    Ok((options.application_name("kyc-worker").extra_float_digits(None), place))
}

/// The addresses that the database's host has, where it has several. Each is tried with a share of
/// the time of its own: the library has one limit around all of them, which the first that
/// swallows packets uses up. It also checks a certificate against the host it connects to, so with
/// `verify-full` the name stays, and all that goes with it.
pub(crate) async fn addresses(options: &PgConnectOptions) -> Vec<SocketAddr> {
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

/// Where a connection comes about: at the first address of several that lets us in, or else where
/// the options say.
pub(crate) async fn reach(options: PgConnectOptions) -> sqlx::Result<PgConnectOptions> {
    let addresses = addresses(&options).await;
    if addresses.len() < 2 || matches!(options.get_ssl_mode(), PgSslMode::VerifyFull) {
        return Ok(options);
    }
    reach_one_of(&addresses, &options, share_of(CONNECT_TIME_MAX, addresses.len())).await
}

async fn reach_one_of(
    addresses: &[SocketAddr],
    options: &PgConnectOptions,
    share: Duration,
) -> sqlx::Result<PgConnectOptions> {
    let mut last = sqlx::Error::PoolTimedOut;
    for address in addresses {
        let there = options.clone().host(&address.ip().to_string()).port(address.port());
        match timeout(share, there.connect()).await {
            Ok(Ok(connection)) => {
                hang_up(connection, share).await;
                return Ok(there);
            }
            Ok(Err(error)) => last = error,
            Err(_elapsed) => {}
        }
    }
    Err(last)
}

/// Closes a connection that has served its purpose. Nothing depends on how that ends.
async fn hang_up(connection: PgConnection, time_max: Duration) {
    drop(timeout(time_max, connection.close()).await);
}

/// The addresses that take no connection, where the host has several.
pub(crate) async fn silent_addresses(options: &PgConnectOptions) -> Vec<SocketAddr> {
    let addresses = addresses(options).await;
    let share = share_of(CONNECT_TIME_MAX, addresses.len() + 1);
    let mut silent = Vec::new();
    if addresses.len() > 1 {
        for address in addresses {
            if !matches!(timeout(share, TcpStream::connect(address)).await, Ok(Ok(_))) {
                silent.push(address);
            }
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

    #[tokio::test]
    async fn an_address_that_says_nothing_gives_way_to_the_next() {
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let postgres = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addresses = [&silent, &postgres].map(|listener| listener.local_addr().expect("an address"));
        tokio::spawn(async move {
            let (mut client, _) = postgres.accept().await.expect("a client");
            let _startup = client.read(&mut [0; 1024]).await;
            // Logged in, and ready for queries.
            let _gone = client.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").await;
            let _terminate = client.read(&mut [0; 16]).await;
        });
        let options = PgConnectOptions::new_without_pgpass().ssl_mode(PgSslMode::Disable);
        let there = reach_one_of(&addresses, &options, Duration::from_secs(2)).await.expect("the second");
        assert_eq!(there.get_port(), addresses[1].port());
    }
}
