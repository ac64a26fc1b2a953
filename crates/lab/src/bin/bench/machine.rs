//! What the figures were measured on.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use url::Url;

const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub memory_gb: u64,
    pub kernel: String,
    pub postgres: String,
    pub fsync: String,
    pub synchronous_commit: String,
    pub shared_buffers: String,
    pub rabbitmq: String,
    /// The build's profile in Cargo.toml.
    pub profile: String,
}

impl Machine {
    pub async fn look(pool: &PgPool, amqp_url: &str) -> anyhow::Result<Self> {
        let (postgres, fsync, synchronous_commit, shared_buffers) = sqlx::query_as(
            "select split_part(current_setting('server_version'), ' ', 1), current_setting('fsync'),
                current_setting('synchronous_commit'), current_setting('shared_buffers')",
        )
        .fetch_one(pool)
        .await?;
        let this = std::env::current_exe()?;
        // target/PROFILE/bench
        let profile = this.parent().and_then(Path::file_name).unwrap_or_default();
        Ok(Self {
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown CPU".to_owned()),
            cores: std::thread::available_parallelism()?.get(),
            memory_gb: memory_gb(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            postgres,
            fsync,
            synchronous_commit,
            shared_buffers,
            rabbitmq: timeout(ANSWER_TIME_MAX, rabbitmq_version(amqp_url))
                .await
                .context("AMQP_URL: RabbitMQ does not greet us")??,
            profile: profile.to_string_lossy().into_owned(),
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} cores of {}, {} GB, Linux {}; RabbitMQ {}; PostgreSQL {} (fsync {}, synchronous_commit {}, \
             shared_buffers {}); profile {}",
            self.cores,
            self.cpu,
            self.memory_gb,
            self.kernel,
            self.rabbitmq,
            self.postgres,
            self.fsync,
            self.synchronous_commit,
            self.shared_buffers,
            self.profile,
        )
    }
}

fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory_gb() -> u64 {
    let kilobytes = field("/proc/meminfo", "MemTotal").unwrap_or_default();
    let kilobytes: u64 = kilobytes.trim_end_matches(" kB").parse().unwrap_or_default();
    (kilobytes + 524_288) / 1_048_576
}

/// The broker's version, as it greets whoever connects: the client library does not tell.
async fn rabbitmq_version(amqp_url: &str) -> anyhow::Result<String> {
    let url: Url = amqp_url.parse().context("AMQP_URL: is no URL")?;
    if url.scheme() != "amqp" {
        return Ok("behind TLS".to_owned());
    }
    let mut stream =
        TcpStream::connect((url.host_str().unwrap_or("localhost"), url.port().unwrap_or(5672))).await?;
    stream.write_all(b"AMQP\0\0\x09\x01").await?;
    let mut head = [0; 7];
    stream.read_exact(&mut head).await?;
    let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
    let mut greeting = vec![0; usize::try_from(size)?.min(64 * 1024)];
    stream.read_exact(&mut greeting).await?;
    Ok(version_in(&greeting).unwrap_or_else(|| "of unknown version".to_owned()))
}

/// The long string under the key `version` of a field table (AMQP 0-9-1, 4.2.5).
fn version_in(greeting: &[u8]) -> Option<String> {
    let key = b"\x07versionS";
    let at = greeting.windows(key.len()).position(|window| window == key)? + key.len();
    let size = u32::from_be_bytes(greeting.get(at..at + 4)?.try_into().ok()?);
    let text = greeting.get(at + 4..at + 4 + usize::try_from(size).ok()?)?;
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brokers_version_is_found_in_its_greeting() {
        let greeting = b"\0\x0a\0\x0a\0\x09\0\0\x01\xff\x07productS\0\0\0\x08RabbitMQ\x07versionS\0\0\0\x063.10.8\x08platform";
        assert_eq!(version_in(greeting).as_deref(), Some("3.10.8"));
        assert_eq!(version_in(b"\x07versionS\0\0\0\xff3.10"), None);
    }
}
