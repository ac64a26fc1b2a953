//! `kyc-worker sign`: shows what is signed for a body, to compare with another's.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use super::terminal::say_exactly;
use crate::clock::Moment;
use crate::config::ProviderArgs;
use crate::domain::job::OUR_FIELDS;
use dollarpe::canonical_json::Json;
use dollarpe::signature::Signer;

/// Show what is signed for a request's body: canonical text, message and headers
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker sign job.json\n  echo '{}' | kyc-worker sign - --timestamp 1752670745 --dollarpe-signing-profile spaced\n\nNothing is sent. The body is shown as it is, personal data and all; the key is not."
)]
pub(super) struct SignArgs {
    /// A file with a job or a request's body; - for standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Seconds since 1970, in place of now
    #[arg(long, value_name = "SECONDS")]
    timestamp: Option<i64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    provider: ProviderArgs,
}

/// In the place of the API key.
const MASK: &str = "***";

pub(super) fn run(args: &SignArgs) -> anyhow::Result<ExitCode> {
    let (key, secret) = (args.provider.api_key()?, args.provider.api_secret()?);
    let (body, left_out) = read_request(&args.file)?;
    let profile = args.provider.dollarpe_signing_profile;
    let canonical = body.to_canonical(profile);
    let timestamp = args.timestamp.unwrap_or_else(|| Moment::now().unix_seconds());
    let signature = Signer::new(key.expose(), secret.expose()).sign(timestamp, &canonical);
    if !left_out.is_empty() {
        eprintln!("left out, as the provider is not sent them: {}", left_out.join(", "));
    }
    let message = format!("{MASK}|{timestamp}|{canonical}");
    if args.json {
        let signed = json!({
            "profile": profile.as_str(),
            "canonical_body": canonical,
            "message": message,
            "headers": { "X-API-KEY": MASK, "X-TIMESTAMP": timestamp.to_string(), "X-SIGNATURE": signature },
        });
        println!("{}", serde_json::to_string_pretty(&signed)?);
    } else {
        println!(
            "canonical body, profile {profile}, {} bytes; it is signed, and sent as it is:",
            canonical.len()
        );
        say_exactly(canonical.as_bytes());
        println!("\nmessage, under HMAC-SHA256 with DOLLARPE_API_SECRET:");
        say_exactly(message.as_bytes());
        println!("\nheaders:\nX-API-KEY: {MASK}\nX-TIMESTAMP: {timestamp}\nX-SIGNATURE: {signature}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads a request's body, without the fields of a job that are ours alone.
fn read_request(file: &Path) -> anyhow::Result<(Json, Vec<&'static str>)> {
    let mut bytes = Vec::new();
    if file == Path::new("-") {
        std::io::stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
    } else {
        bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    }
    let mut body = Json::parse(&bytes).map_err(|faults| {
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("{}: {}", file.display(), faults.join("; "))
    })?;
    let mut left_out = Vec::new();
    if let Json::Object(fields) = &mut body {
        left_out.extend(OUR_FIELDS.into_iter().filter(|field| fields.remove(*field).is_some()));
    }
    Ok((body, left_out))
}
