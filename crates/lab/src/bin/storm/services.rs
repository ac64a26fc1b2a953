//! A PostgreSQL and a RabbitMQ of the storm's own, in a directory that goes with it: so that
//! they can be killed. Or those that answer already, which are left alone.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};
use sqlx::postgres::{PgPool, PgPoolOptions};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout};

use crate::load::{Message, digest};
use kyc_lab::process::Process;

pub const DATABASE: &str = "kyc_storm";
pub const EXCHANGE: &str = "kyc-storm";
pub const QUEUE: &str = "kyc-storm.document-updates";
pub const ROUTING_KEY: &str = "document-update";
pub const DEAD_LETTER_EXCHANGE: &str = "kyc-storm.dlx";
pub const DEAD_LETTER_QUEUE: &str = "kyc-storm.dead-letters";

/// A broker may be slow to start on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(90);

/// Nothing that is asked of a service that is up takes longer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the broker may take to move rejected messages to the dead-letter queue.
const DEAD_LETTERS_TIMEOUT: Duration = Duration::from_secs(15);

/// Where the programs are.
pub struct Programs {
    /// The directory with `initdb`, `pg_ctl` and `postgres`.
    pub postgres: PathBuf,
    /// The server itself, not Debian's wrapper, which knows one broker only.
    pub rabbitmq_server: PathBuf,
    /// An ordinary user: PostgreSQL refuses to run as root. `None` where we are one.
    pub ordinary_user: Option<u32>,
}

/// A database and a broker that can be killed.
pub struct OwnServices {
    pub postgres: Postgres,
    pub rabbitmq: RabbitMq,
    // Removed last.
    _directory: TempDir,
}

impl OwnServices {
    pub async fn start(programs: Programs) -> anyhow::Result<Self> {
        let directory = TempDir::with_prefix("kyc-storm-")?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        let rabbitmq = RabbitMq::start(programs.rabbitmq_server, directory.path()).await?;
        let postgres = Postgres::start(programs.postgres, programs.ordinary_user, directory.path()).await?;
        rabbitmq.wait_until_up().await?;
        Ok(Self { postgres, rabbitmq, _directory: directory })
    }
}

/// Given back at once: for a moment nobody listens there.
async fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port())
}

/// A PostgreSQL of our own. Every commit reaches the disk before it is answered.
pub struct Postgres {
    programs: PathBuf,
    directory: PathBuf,
    user: Option<u32>,
    port: u16,
    process: Option<Process>,
}

impl Postgres {
    async fn start(programs: PathBuf, user: Option<u32>, parent: &Path) -> anyhow::Result<Self> {
        let directory = parent.join("postgres");
        fs::create_dir(&directory)?;
        if let Some(user) = user {
            chown(&directory, Some(user), None)?;
        }
        let port = free_port().await?;
        let mut postgres = Self { programs, directory, user, port, process: None };
        let mut initdb = postgres.command("initdb");
        initdb.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "-D"]);
        initdb.arg(postgres.data());
        Process::start_logged(initdb, "initdb", &parent.join("initdb.log"))?.succeed().await?;
        postgres.start_again()?;
        postgres.wait_until_up().await?;
        Ok(postgres)
    }

    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    pub fn start_again(&mut self) -> anyhow::Result<()> {
        let mut postgres = self.command("postgres");
        postgres.arg("-D").arg(self.data()).arg("-k").arg(&self.directory);
        postgres.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-c", "max_connections=200"]);
        postgres.process_group(0);
        let log = self.directory.with_extension("log");
        self.process = Some(Process::start_logged(postgres, "postgres", &log)?);
        Ok(())
    }

    /// As if the machine had failed: recovery is left to the next start.
    pub async fn stop_at_once(&mut self) -> anyhow::Result<()> {
        let mut stop = self.command("pg_ctl");
        stop.args(["stop", "-m", "immediate", "-D"]).arg(self.data());
        Process::start_logged(stop, "pg_ctl", &self.directory.with_extension("stop.log"))?.succeed().await?;
        self.process = None;
        Ok(())
    }

    pub async fn wait_until_up(&self) -> anyhow::Result<()> {
        wait_until("PostgreSQL", async || match connect(&self.url("postgres")).await {
            Ok(pool) => {
                pool.close().await;
                true
            }
            Err(_) => false,
        })
        .await
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.env_clear().env("LC_ALL", "C").current_dir(&self.directory);
        if let Some(user) = self.user {
            command.uid(user);
        }
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.process.is_some() {
            // A killed postmaster would leave its children to notice by themselves.
            let mut stop = self.command("pg_ctl");
            stop.args(["stop", "-s", "-m", "immediate", "-D"]).arg(self.data());
            let _best_effort = stop.status();
        }
    }
}

/// A RabbitMQ of our own, with its own node name, ports, data and port mapper.
pub struct RabbitMq {
    server: PathBuf,
    directory: PathBuf,
    port: u16,
    distribution_port: u16,
    mapper_port: u16,
    process: Option<Process>,
    // Stopped with us. Started by us, so that the server starts none that outlives it.
    _mapper: Process,
}

impl RabbitMq {
    async fn start(server: PathBuf, parent: &Path) -> anyhow::Result<Self> {
        let directory = parent.join("rabbitmq");
        fs::create_dir(&directory)?;
        fs::write(directory.join("enabled_plugins"), "[].")?;
        let mapper_port = free_port().await?;
        let mut mapper = Command::new("epmd");
        mapper.args(["-port", &mapper_port.to_string(), "-address", "127.0.0.1"]).process_group(0);
        let mut rabbitmq = Self {
            _mapper: Process::start_logged(mapper, "epmd", &directory.join("epmd.log"))?,
            server,
            directory,
            port: free_port().await?,
            distribution_port: free_port().await?,
            mapper_port,
            process: None,
        };
        rabbitmq.start_again()?;
        Ok(rabbitmq)
    }

    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}", self.port)
    }

    pub fn start_again(&mut self) -> anyhow::Result<()> {
        let path = |name: &str| self.directory.join(name).display().to_string();
        let mut server = Command::new(&self.server);
        server.process_group(0).current_dir(&self.directory).envs([
            ("HOME", path("")),
            ("ERL_EPMD_PORT", self.mapper_port.to_string()),
            ("RABBITMQ_NODENAME", format!("kyc-storm-{}@localhost", self.port)),
            ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".to_owned()),
            ("RABBITMQ_NODE_PORT", self.port.to_string()),
            ("RABBITMQ_DIST_PORT", self.distribution_port.to_string()),
            ("RABBITMQ_MNESIA_BASE", path("data")),
            ("RABBITMQ_LOG_BASE", path("logs")),
            ("RABBITMQ_PID_FILE", path("pid")),
            ("RABBITMQ_CONFIG_FILE", path("no-config")),
            ("RABBITMQ_CONF_ENV_FILE", path("no-environment")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", path("enabled_plugins")),
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 1:1".to_owned()),
        ]);
        let process = Process::start_logged(server, "rabbitmq-server", &self.directory.join("server.log"))?;
        self.process = Some(process);
        Ok(())
    }

    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(process) = self.process.take() {
            process.signal_group("KILL")?;
        }
        Ok(())
    }

    pub async fn wait_until_up(&self) -> anyhow::Result<()> {
        wait_until("RabbitMQ", async || match open_channel(&self.url()).await {
            Ok((connection, _)) => connection.close(200, "up".into()).await.is_ok(),
            Err(_) => false,
        })
        .await
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        let _gone = self.kill();
    }
}

async fn wait_until(what: &str, is_up: impl AsyncFn() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    while !is_up().await {
        ensure!(Instant::now() < deadline, "the storm's own {what} did not start within {START_TIMEOUT:?}");
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

pub async fn connect(url: &str) -> anyhow::Result<PgPool> {
    PgPoolOptions::new()
        .max_connections(2)
        .acquire_timeout(ANSWER_TIMEOUT)
        .connect(url)
        .await
        .context("cannot use PostgreSQL")
}

/// Makes the storm's database anew.
pub async fn recreate_database(server_url: &str) -> anyhow::Result<()> {
    let pool = connect(server_url).await?;
    sqlx::query("drop database if exists kyc_storm with (force)").execute(&pool).await?;
    sqlx::query("create database kyc_storm").execute(&pool).await?;
    pool.close().await;
    Ok(())
}

async fn open_channel(url: &str) -> anyhow::Result<(Connection, Channel)> {
    let opening = async {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        anyhow::Ok((connection, channel))
    };
    timeout(ANSWER_TIMEOUT, opening).await.context("RabbitMQ does not answer")?
}

/// A header that is a list in a list, and so on.
fn nested_headers(depth: u16) -> FieldTable {
    let mut headers = FieldTable::default();
    if depth > 0 {
        let nested = (0..depth)
            .fold(FieldArray::default(), |inner, _| FieldArray::from(vec![AMQPValue::FieldArray(inner)]));
        headers.insert("nested".into(), AMQPValue::FieldArray(nested));
    }
    headers
}

/// A publisher that opens a new connection whenever the old one fails.
pub struct Publisher {
    url: String,
    open: Option<(Connection, Channel)>,
}

impl Publisher {
    pub fn new(url: String) -> Self {
        Self { url, open: None }
    }

    /// Publishes a message once and waits for the confirmation. After an error nobody
    /// knows whether the broker has it.
    pub async fn publish(&mut self, message_id: &str, message: &Message) -> anyhow::Result<()> {
        let (connection, channel) = match self.open.take() {
            Some(open) => open,
            None => open_channel(&self.url).await?,
        };
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_message_id(message_id.into())
            .with_headers(nested_headers(message.depth));
        let mandatory = BasicPublishOptions { mandatory: true, ..Default::default() };
        let publishing = async {
            let sent = channel.basic_publish(
                EXCHANGE.into(),
                ROUTING_KEY.into(),
                mandatory,
                &message.body,
                properties,
            );
            anyhow::Ok(sent.await?.await?)
        };
        let confirmation = timeout(ANSWER_TIMEOUT, publishing).await??;
        ensure!(matches!(confirmation, Confirmation::Ack(None)), "the broker did not take the message");
        self.open = Some((connection, channel));
        Ok(())
    }

    /// How many messages are ready in the queue.
    pub async fn count_queued(&mut self) -> anyhow::Result<u32> {
        let (connection, channel) = match self.open.take() {
            Some(open) => open,
            None => open_channel(&self.url).await?,
        };
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
        let asking = channel.queue_declare(QUEUE.into(), passive, FieldTable::default());
        let queue = timeout(ANSWER_TIMEOUT, asking).await??;
        self.open = Some((connection, channel));
        Ok(queue.message_count())
    }

    /// Looks at every dead letter, waiting for as many as are expected.
    pub async fn look_at_dead_letters(&mut self, expected: usize) -> anyhow::Result<Vec<[u8; 32]>> {
        let (_connection, channel) = open_channel(&self.url).await?;
        let deadline = Instant::now() + DEAD_LETTERS_TIMEOUT;
        let mut found = Vec::new();
        loop {
            match channel.basic_get(DEAD_LETTER_QUEUE.into(), BasicGetOptions::default()).await? {
                Some(letter) => found.push(digest(&letter.delivery.data)),
                None if found.len() >= expected || Instant::now() > deadline => return Ok(found),
                None => sleep(Duration::from_millis(50)).await,
            }
        }
    }
}
