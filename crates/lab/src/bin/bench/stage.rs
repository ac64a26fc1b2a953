//! What a benchmark runs on: a database and queues of its own, the simulated provider in its
//! fast mode, and the programs under test.

use std::collections::HashMap;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use kyc_worker::broker::{Broker, Publisher};
use kyc_worker::config::{BrokerSettings, Secret};
use lapin::options::QueueDeleteOptions;
use reqwest::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};
use url::Url;
use uuid::Uuid;

use kyc_lab::broker::Queues;
use kyc_lab::upstream::Upstream;
use kyc_lab::{database, program};

const DATABASE: &str = "kyc_bench";
const QUEUES: Queues = Queues {
    exchange: "kyc-bench",
    queue: "kyc-bench.document-updates",
    dead_letter_exchange: "kyc-bench.dlx",
    dead_letter_queue: "kyc-bench.dead-letters",
};
const DEAD_LETTER_TTL: &str = "1h";

/// Where upstream is told, and its queue.
pub const EVENTS_EXCHANGE: &str = "kyc-bench.events";
const UPSTREAM: &str = "kyc-bench.upstream";

/// Who the console logs in as: a member of its role.
pub const DESK_LOGIN: &str = "kyc_bench_desk";

/// How long a program may take to say its first word.
const START_TIME_MAX: Duration = Duration::from_secs(20);

/// How long the provider's admin interface may take.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

/// How many confirmations are waited for at once.
const CONFIRMS_MAX: usize = 1000;

/// The worker's own settings of the broker.
#[derive(Parser)]
struct BrokerArguments {
    #[command(flatten)]
    settings: BrokerSettings,
}

/// Where things are.
pub struct Stage {
    pub database_url: Url,
    pub amqp_url: String,
    pub logs: PathBuf,
    pub concurrency: usize,
    pub prefetch: usize,
    /// Where scripts/bench.sh has put the Node.js peer with its libraries.
    pub node_peer: PathBuf,
}

/// The job ids that publishers make.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum JobIds {
    /// UUIDs of version 4.
    Random,
    /// UUIDs of version 7, which begin with the time.
    Growing,
}

impl JobIds {
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Growing => "growing",
        }
    }

    fn next(self) -> Uuid {
        match self {
            Self::Random => Uuid::new_v4(),
            Self::Growing => Uuid::now_v7(),
        }
    }
}

/// What drains the queue.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Contender {
    /// `kyc-worker run`.
    Worker,
    /// The same without a database.
    Ceiling,
    /// As one would write it in Node.js.
    Node,
    /// As one would write it in Rust: a task a message, a commit a statement.
    Naive,
}

impl Contender {
    pub fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Ceiling => "ceiling",
            Self::Node => "Node.js peer",
            Self::Naive => "naive Rust",
        }
    }
}

/// A program under way. Dropping it kills it.
pub struct Program {
    child: Child,
}

impl Program {
    pub fn id(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// Stops it as an operator does.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let status = Command::new("kill").arg(self.id().to_string()).status().await?;
        ensure!(status.success(), "cannot stop a program");
        timeout(START_TIME_MAX, self.child.wait()).await.context("a program does not stop")??;
        Ok(())
    }

    /// How it ended, once it has.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    pub fn check_alive(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("a program ended by itself: {status}; see its log"),
            None => Ok(()),
        }
    }
}

/// The simulated provider.
pub struct Provider {
    pub program: Program,
    base_url: String,
    http: reqwest::Client,
}

/// What the provider has counted.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Counted {
    pub applied: u64,
    /// Failed on purpose.
    pub not_applied: u64,
}

/// An update that the provider received.
#[derive(Deserialize)]
struct Patch {
    customer_id: Uuid,
    at: String,
}

impl Counted {
    pub fn answered(self) -> u64 {
        self.applied + self.not_applied
    }
}

impl Provider {
    pub async fn counted(&self) -> anyhow::Result<Counted> {
        let url = self.admin("oracle/summary");
        let answer = self.http.get(url).timeout(ANSWER_TIME_MAX).send().await?.error_for_status()?;
        #[expect(clippy::disallowed_methods, reason = "the sandbox on this machine alone")]
        let counted = answer.json().await?;
        Ok(counted)
    }

    /// When each customer's update came.
    pub async fn receipts(&self) -> anyhow::Result<HashMap<Uuid, SystemTime>> {
        let url = self.admin("oracle/patches");
        let answer = self.http.get(url).timeout(ANSWER_TIME_MAX).send().await?.error_for_status()?;
        #[expect(clippy::disallowed_methods, reason = "the sandbox on this machine alone")]
        let lines = answer.text().await?;
        let receipt = |line| {
            let patch: Patch = serde_json::from_str(line)?;
            Ok((patch.customer_id, humantime::parse_rfc3339(&patch.at)?))
        };
        lines.lines().map(receipt).collect()
    }

    /// Answers 500 to this share of the updates, and applies none of them; but only to a
    /// customer's first, or a resend could be refused as his last.
    pub async fn fail(&self, percent: f64) -> anyhow::Result<()> {
        let rule = json!({
            "match": { "method": "PATCH", "share": percent / 100.0 },
            "first_per_customer": 1,
            "fault": { "apply": "never", "answer": { "kind": "respond", "status": 500 } },
        });
        let request = self.http.post(self.admin("rules")).timeout(ANSWER_TIME_MAX).json(&rule);
        request.send().await?.error_for_status().context("the sandbox refuses a rule")?;
        Ok(())
    }

    fn admin(&self, path: &str) -> String {
        let origin = self.base_url.trim_end_matches("/cms/api/v1");
        format!("{origin}/_admin/{path}")
    }
}

/// A console that answers.
pub struct ConsoleProgram {
    pub program: Program,
    base_url: String,
    http: reqwest::Client,
}

impl ConsoleProgram {
    /// Asks for a page, and reads it to its end.
    pub async fn get(&self, address: &str) -> anyhow::Result<(StatusCode, String)> {
        let request = self.http.get(format!("{}{address}", self.base_url)).timeout(START_TIME_MAX);
        let answer = request.send().await?;
        let status = answer.status();
        #[expect(clippy::disallowed_methods, reason = "the console on this machine alone")]
        let body = answer.text().await?;
        Ok((status, body))
    }
}

impl Stage {
    /// Starts the provider, in a process of its own. It only counts.
    pub async fn start_provider(&self, latency: Duration) -> anyhow::Result<Provider> {
        let latency = humantime::format_duration(latency).to_string();
        self.start_sandbox(&["--fast", "--latency", &latency]).await
    }

    /// The same, and it keeps when each update came.
    pub async fn start_provider_that_notes(&self) -> anyhow::Result<Provider> {
        self.start_sandbox(&[]).await
    }

    async fn start_sandbox(&self, arguments: &[&str]) -> anyhow::Result<Provider> {
        let mut command = Command::new(program("dollarpe-sandbox")?);
        command.args(["--listen", "127.0.0.1:0"]).args(arguments);
        command.stdout(Stdio::piped()).stderr(self.log("sandbox")?).kill_on_drop(true);
        let mut child = command.spawn().context("cannot start the simulated provider")?;
        let stdout = child.stdout.take().context("the simulated provider has no stdout")?;
        let mut lines = BufReader::new(stdout).lines();
        let line =
            timeout(START_TIME_MAX, lines.next_line()).await.context("the provider does not start")??;
        let line = line.context("the simulated provider ended; see its log")?;
        let base_url = line.rsplit(' ').next().unwrap_or_default().to_owned();
        #[expect(clippy::disallowed_methods, reason = "talks to the sandbox on this machine alone")]
        let http = reqwest::Client::new();
        Ok(Provider { program: Program { child }, base_url, http })
    }

    /// Makes the database anew, with all migrations, and the peers' two tables.
    pub async fn recreate_database(&self) -> anyhow::Result<PgPool> {
        database::recreate(&self.database_url, DATABASE).await?;
        let pool = database::connect(&self.bench_database_url()).await?;
        kyc_worker::journal::migrate(&pool).await?;
        sqlx::raw_sql(include_str!("../../../peers/tables.sql")).execute(&pool).await?;
        Ok(pool)
    }

    /// Makes the roles of deploy/roles.sql where they are not there, and one that logs in to the database as the
    /// console does. Returns the database for it.
    pub async fn make_desk_login(&self, pool: &PgPool) -> anyhow::Result<Url> {
        sqlx::raw_sql(include_str!("../../../../../deploy/roles.sql")).execute(pool).await?;
        // Grants what they may do.
        kyc_worker::journal::migrate(pool).await?;
        let password = Uuid::new_v4().simple().to_string();
        let login = format!(
            "drop role if exists {DESK_LOGIN};
            create role {DESK_LOGIN} login password '{password}' in role kyc_desk"
        );
        sqlx::raw_sql(&login).execute(pool).await?;
        let mut url = self.bench_database_url();
        let is_set = url.set_username(DESK_LOGIN).and_then(|()| url.set_password(Some(&password)));
        ensure!(is_set.is_ok(), "DATABASE_URL: has no place for a user");
        Ok(url)
    }

    /// Starts a console over that database, for whoever asks on this machine.
    pub async fn start_console(&self, database_url: &Url) -> anyhow::Result<ConsoleProgram> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = Command::new(program("kyc-worker")?);
        command
            .arg("console")
            .env("DATABASE_URL", database_url.as_str())
            .env("CONSOLE_LISTEN", address.to_string())
            .env("CONSOLE_LOGIN", "local")
            .env("CONSOLE_LOCAL_USER", "bench")
            .env("LOG_FORMAT", "json")
            .env("RUST_LOG", "info")
            .stdout(self.log("console")?)
            .stderr(self.log("console.err")?)
            .kill_on_drop(true);
        let child = command.spawn().context("cannot start the console")?;
        #[expect(clippy::disallowed_methods, reason = "talks to the console on this machine alone")]
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
        let mut console =
            ConsoleProgram { program: Program { child }, base_url: format!("http://{address}"), http };
        let begun = Instant::now();
        while !matches!(console.get("/readyz").await, Ok((StatusCode::OK, _))) {
            console.program.check_alive()?;
            ensure!(begun.elapsed() < START_TIME_MAX, "the console does not start; see its log");
            sleep(Duration::from_millis(20)).await;
        }
        Ok(console)
    }

    /// Leaves nothing behind.
    pub async fn clear(&self) -> anyhow::Result<()> {
        let admin = database::drop_if_there(&self.database_url, DATABASE).await?;
        sqlx::raw_sql(&format!("drop role if exists {DESK_LOGIN}")).execute(&admin).await?;
        admin.close().await;
        let broker = kyc_lab::broker::Broker::connect(&self.amqp_url).await?;
        broker.channel.queue_delete(UPSTREAM.into(), QueueDeleteOptions::default()).await?;
        self.delete_queues().await
    }

    /// On this machine nothing is encrypted, the broker's and the provider's words neither.
    pub fn bench_database_url(&self) -> Url {
        let mut url = database::url_of(&self.database_url, DATABASE);
        let is_local = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        if is_local && !url.query_pairs().any(|(name, _)| name == "sslmode") {
            url.query_pairs_mut().append_pair("sslmode", "disable");
        }
        url
    }

    async fn delete_queues(&self) -> anyhow::Result<()> {
        kyc_lab::broker::Broker::connect(&self.amqp_url).await?.delete_queues(QUEUES).await
    }

    /// Makes the queue anew that upstream is told in.
    pub async fn make_upstream(&self) -> anyhow::Result<()> {
        Upstream::listen(&self.amqp_url, EVENTS_EXCHANGE, UPSTREAM).await.map(drop)
    }

    /// Makes the queues anew, and publishes as many jobs, each for a customer of its own.
    pub async fn fill_queue(&self, jobs: usize, job_ids: JobIds) -> anyhow::Result<()> {
        self.delete_queues().await?;
        let publisher = self.open_publisher().await?;
        let mut confirms = Vec::with_capacity(CONFIRMS_MAX);
        for number in 0..jobs {
            let (job_id, customer_id) = (job_ids.next().to_string(), Uuid::new_v4());
            let body = job(number, customer_id);
            confirms.push(publisher.publish(&job_id, Some(customer_id), body.as_bytes()).await?);
            if confirms.len() == CONFIRMS_MAX {
                for confirm in confirms.drain(..) {
                    confirm.await?;
                }
            }
        }
        for confirm in confirms {
            confirm.await?;
        }
        publisher.close().await;
        Ok(())
    }

    /// Makes the queues where they are not there, and publishes to them.
    pub async fn open_publisher(&self) -> anyhow::Result<Publisher> {
        let arguments = [
            ["--exchange", QUEUES.exchange],
            ["--queue", QUEUES.queue],
            ["--dead-letter-exchange", QUEUES.dead_letter_exchange],
            ["--dead-letter-queue", QUEUES.dead_letter_queue],
            ["--dead-letter-ttl", DEAD_LETTER_TTL],
        ];
        let arguments = ["bench"].into_iter().chain(arguments.into_iter().flatten());
        let BrokerArguments { settings } = BrokerArguments::parse_from(arguments);
        let broker = Broker::new(&settings, &Secret::from(self.amqp_url.as_str()), "bench")?;
        Publisher::open(&broker).await
    }

    /// Starts a program that drains the queue. `name` names its log; `settings` are those of
    /// the worker that are not the usual ones.
    pub fn start(
        &self,
        contender: Contender,
        name: &str,
        provider: &Provider,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Program> {
        let mut command = match contender {
            Contender::Worker => {
                let mut command = Command::new(program("kyc-worker")?);
                command.arg("run");
                command
            }
            Contender::Ceiling => Command::new(program("ceiling")?),
            Contender::Naive => Command::new(program("naive")?),
            Contender::Node => {
                let mut command = Command::new("node");
                command.arg(self.node_peer.join("worker.mjs"));
                command
            }
        };
        command
            .env("DATABASE_URL", self.bench_database_url().as_str())
            .env("AMQP_URL", &self.amqp_url)
            .envs(QUEUES.settings())
            .env("DEAD_LETTER_TTL", DEAD_LETTER_TTL)
            .env("DOLLARPE_BASE_URL", &provider.base_url)
            .env("DOLLARPE_API_KEY", "sandbox-key")
            .env("DOLLARPE_API_SECRET", "sandbox-secret")
            .env("PAYLOAD_KEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
            .env("FINGERPRINT_KEY", "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=")
            .env("CONCURRENCY", self.concurrency.to_string())
            .env("PREFETCH", self.prefetch.to_string())
            .env("WORKER_NAME", name)
            .env("LOG_FORMAT", "json")
            .env("RUST_LOG", "info")
            .envs(settings.iter().copied())
            .stdout(self.log(name)?)
            .stderr(self.log(&format!("{name}.err"))?)
            .kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("cannot start the {}", contender.name()))?;
        Ok(Program { child })
    }

    /// Starts an archive of what ended a day ago or earlier.
    pub fn start_archive(&self, directory: &Path) -> anyhow::Result<Program> {
        let mut command = Command::new(program("kyc-worker")?);
        command
            .args(["archive", "--after", "1d", "--json", "--to"])
            .arg(directory)
            .env("DATABASE_URL", self.bench_database_url().as_str())
            .stdout(self.log("archive")?)
            .stderr(self.log("archive.err")?)
            .kill_on_drop(true);
        let child = command.spawn().context("cannot start the archive")?;
        Ok(Program { child })
    }

    /// Where a program's log is.
    pub fn log_path(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    fn log(&self, name: &str) -> anyhow::Result<File> {
        let path = self.log_path(name);
        File::create(&path).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// A job of about 600 bytes, as a company would publish it.
pub fn job(number: usize, customer_id: Uuid) -> String {
    let link = |side: &str| {
        format!("https://documents.example.com/kyc/{customer_id}/{side}.jpg?signature=0b1c9a7d3e5f")
    };
    let body: Value = json!({
        "customer_id": customer_id,
        "full_address": format!("{number} Mahatma Gandhi Road, Bengaluru, Karnataka 560001, India"),
        "document_type": "PASSPORT",
        "document_front_image_url": link("front"),
        "document_back_image_url": link("back"),
        "document_details": {
            "document_number": format!("P{:08}", number % 100_000_000),
            "additional_data": { "file_number": "BN1061234567819", "issued_at": "Bengaluru" },
        },
    });
    body.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_has_about_six_hundred_bytes() {
        let body = job(12_345, Uuid::nil());
        assert!((550..=650).contains(&body.len()), "{}", body.len());
    }
}
