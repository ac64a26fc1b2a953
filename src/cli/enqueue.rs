//! `kyc-worker enqueue`: publishes jobs from JSON lines.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::fs::File;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use uuid::Uuid;

use crate::broker::{Broker, NotTaken, Publisher};
use crate::config::{BrokerSettings, JobSettings};
use crate::domain::job::{BODY_BYTES_MAX, Job};
use crate::domain::message::Message;
use crate::visible::visible;

use super::terminal::wait_aloud;

/// Publish jobs, one JSON object a line, and wait for the broker's confirmations
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker enqueue jobs.jsonl\n  jq -c '.[]' jobs.json | kyc-worker enqueue -\n\nA job without a job_id gets one made of its line's content, so that enqueueing a file\ntwice submits nothing twice. One without a requested_at is dated now, each line later\nthan the one before: of two jobs of a customer the later line wins.\n\nEach message has its customer in the header customer_id, for an exchange that hashes\nby customer (docs/scaling.md): give that EXCHANGE, with TOPOLOGY=verify."
)]
pub(super) struct EnqueueArgs {
    /// A file of JSON lines; - for standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Publish lines as they are, valid or not
    #[arg(long)]
    no_validate: bool,
    #[command(flatten)]
    broker: BrokerSettings,
    #[command(flatten)]
    jobs: JobSettings,
}

/// No line is longer, or a device without an end would fill the memory. A job has 64 KiB at most.
const LINE_BYTES_MAX: u64 = 16 * BODY_BYTES_MAX as u64;

/// How many messages may await their confirmation at once.
const UNCONFIRMED_MAX: usize = 1024;

/// Job ids made of a line's content lie in this namespace.
const LINE_NAMESPACE: Uuid = Uuid::from_u128(0x6b79_632d_776f_726b_6572_2d6c_696e_6573);

type Confirm = Pin<Box<dyn Future<Output = Result<(), NotTaken>>>>;

pub(super) async fn run(args: &EnqueueArgs) -> anyhow::Result<ExitCode> {
    let broker = Broker::new(&args.broker, &args.broker.url()?, "kyc-worker enqueue")?;
    let (mut lines, size) = open(&args.file).await?;
    let publisher = Publisher::open(&broker).await?;
    let progress = progress_bar(size);
    let rules = args.jobs.rules();

    let tell = |why: &str| progress.suspend(|| eprintln!("{why}"));
    let (mut published, mut refused, mut number) = (0u64, 0u64, 0u64);
    let mut unconfirmed: VecDeque<(u64, Confirm)> = VecDeque::new();
    let mut line = Vec::new();
    let mut dates = Dates::default();
    loop {
        line.clear();
        let mut next = (&mut lines).take(LINE_BYTES_MAX + 1);
        let read = next.read_until(b'\n', &mut line).await.context("cannot read the jobs")?;
        if read == 0 {
            break;
        }
        number += 1;
        if read as u64 > LINE_BYTES_MAX {
            let what = format!("has more than {LINE_BYTES_MAX} bytes; it and what follows is not read");
            progress.suspend(|| eprintln!("line {number}: {what}"));
            refused += 1;
            break;
        }
        progress.inc(read as u64);
        let own = line.trim_ascii();
        if own.is_empty() {
            continue;
        }
        let message_id = job_id(own).to_string();
        let body = if args.no_validate { Cow::Borrowed(own) } else { dates.date(own) };
        let body = body.as_ref();
        if !args.no_validate {
            let message =
                Message { body: body.to_vec(), message_id: Some(message_id.clone()), ..Message::default() };
            if let Err(invalid) = Job::parse(&message, OffsetDateTime::now_utc(), &rules) {
                progress.suspend(|| eprintln!("line {number}: {}", visible(&invalid.to_string())));
                refused += 1;
                continue;
            }
        }
        let customer_id = customer_id(own);
        if unconfirmed.len() == UNCONFIRMED_MAX {
            wait_aloud(confirm_oldest(&mut unconfirmed, published), publisher.wait(), tell).await?;
        }
        let publishing =
            wait_aloud(publisher.publish(&message_id, customer_id, body), publisher.wait(), tell);
        let confirm = publishing.await.with_context(|| lost(number, published))?;
        unconfirmed.push_back((number, Box::pin(confirm)));
        published += 1;
        progress.set_message(format!("{} published", HumanCount(published)));
    }
    while !unconfirmed.is_empty() {
        wait_aloud(confirm_oldest(&mut unconfirmed, published), publisher.wait(), tell).await?;
    }
    publisher.close().await;
    progress.finish_and_clear();
    println!("published {published} to {}, each confirmed", args.broker.exchange);
    if refused > 0 {
        eprintln!(
            "refused {refused}, see above; mend them and enqueue the file again, the others are known by then"
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

async fn confirm_oldest(unconfirmed: &mut VecDeque<(u64, Confirm)>, published: u64) -> anyhow::Result<()> {
    match unconfirmed.pop_front() {
        Some((number, confirm)) => confirm.await.with_context(|| lost(number, published)),
        None => Ok(()),
    }
}

fn lost(number: u64, published: u64) -> String {
    format!(
        "line {number} was not confirmed ({published} published so far); enqueue the file again, what arrived is known by its job_id"
    )
}

/// The line's own `job_id`, or one made of its content: the same line twice is one job.
fn job_id(body: &[u8]) -> Uuid {
    #[derive(Deserialize)]
    struct Named {
        job_id: Option<Uuid>,
    }
    let named = serde_json::from_slice::<Named>(body).ok().and_then(|named| named.job_id);
    named.unwrap_or_else(|| Uuid::new_v5(&LINE_NAMESPACE, body))
}

/// The line's customer. A line that is published as it is may name none.
fn customer_id(body: &[u8]) -> Option<Uuid> {
    #[derive(Deserialize)]
    struct OfCustomer {
        customer_id: Uuid,
    }
    serde_json::from_slice::<OfCustomer>(body).ok().map(|line| line.customer_id)
}

/// Dates jobs that are not, in their order.
#[derive(Default)]
struct Dates {
    last: Option<OffsetDateTime>,
}

impl Dates {
    /// The line, with a `requested_at` later than any before where it has none. What is no
    /// object stays as it is.
    fn date<'a>(&mut self, line: &'a [u8]) -> Cow<'a, [u8]> {
        #[derive(Deserialize)]
        struct Dated {
            #[serde(default, deserialize_with = "is_there")]
            requested_at: bool,
        }
        fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
            IgnoredAny::deserialize(deserializer).map(|_| true)
        }
        let is_dated = serde_json::from_slice::<Dated>(line).map_or(true, |dated| dated.requested_at);
        let Some(fields) = line.strip_prefix(b"{").filter(|_| !is_dated) else { return Cow::Borrowed(line) };
        // To the microsecond, which is what Postgres keeps.
        let now = OffsetDateTime::now_utc();
        let now = now.replace_microsecond(now.microsecond()).unwrap_or(now);
        let at = self.last.map_or(now, |last| now.max(last + Duration::from_micros(1)));
        self.last = Some(at);
        let at = at.format(&Rfc3339).unwrap_or_default();
        let gap = if fields.trim_ascii_start().starts_with(b"}") { "" } else { "," };
        Cow::Owned([format!("{{\"requested_at\":\"{at}\"{gap}").as_bytes(), fields].concat())
    }
}

async fn open(file: &Path) -> anyhow::Result<(Pin<Box<dyn AsyncBufRead>>, Option<u64>)> {
    if file == Path::new("-") {
        return Ok((Box::pin(BufReader::new(tokio::io::stdin())), None));
    }
    let opened = File::open(file).await.with_context(|| format!("cannot open {}", file.display()))?;
    let size = opened.metadata().await?.len();
    Ok((Box::pin(BufReader::new(opened)), Some(size)))
}

/// A bar over a file's bytes, a spinner over a stream; nothing where nobody looks.
fn progress_bar(size: Option<u64>) -> ProgressBar {
    let (bar, template) = match size {
        Some(size) => (ProgressBar::new(size), "{bar:40} {percent}% {msg}, {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner} {msg}"),
    };
    bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_line_is_the_same_job() {
        let own = br#"{"job_id":"3f0c2a9e-5f0e-4f57-9d0c-2d6f7c1f1a11"}"#;
        assert_eq!(job_id(own).to_string(), "3f0c2a9e-5f0e-4f57-9d0c-2d6f7c1f1a11");
        assert_eq!(job_id(b"{\"a\":1}"), job_id(b"{\"a\":1}"));
        assert_ne!(job_id(b"{\"a\":1}"), job_id(b"{\"a\":2}"));
    }

    #[test]
    fn a_line_that_names_no_customer_has_none() {
        let customer = "4e6f1b20-a73c-11ec-b909-0242ac120002";
        for line in [
            format!("{{\"customer_id\":\"{customer}\",\"job_id\":5}}"),
            format!("{{\"customer_id\":\"{}\"}}", customer.to_uppercase()),
        ] {
            assert_eq!(
                customer_id(line.as_bytes()).map(|id| id.to_string()).as_deref(),
                Some(customer),
                "{line}"
            );
        }
        for line in ["{\"customer_id\":\"x\"}", "{\"customer_id\":null}", "{}", "[]", "{"] {
            assert_eq!(customer_id(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn lines_without_a_date_get_one_each_later_than_the_one_before() {
        #[derive(Deserialize)]
        struct Dated {
            requested_at: String,
        }
        let mut dates = Dates::default();
        let mut last = String::new();
        for _ in 0..1_000 {
            let dated = dates.date(br#"{"customer_id":"x"}"#).into_owned();
            let Dated { requested_at } = serde_json::from_slice(&dated).expect("JSON");
            let at = OffsetDateTime::parse(&requested_at, &Rfc3339).expect("a time");
            let before = OffsetDateTime::parse(&last, &Rfc3339);
            assert!(before.is_err() || before.is_ok_and(|before| before < at), "{last} {requested_at}");
            assert_eq!(at.nanosecond() % 1_000, 0);
            last = requested_at;
        }
        assert_eq!(dates.date(b"{ }")[..17], *b"{\"requested_at\":\"");
        assert!(dates.date(b"{ }").ends_with(b"\" }"));
        for line in [
            &br#"{"requested_at":"2026-11-24T10:00:00Z"}"#[..],
            br#"{"requested_at":null}"#,
            b"[]",
            b"{",
            b"x",
        ] {
            assert_eq!(*dates.date(line), *line, "it stays as it is");
        }
    }
}
