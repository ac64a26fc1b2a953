//! `kyc-worker check`: looks at the settings and at every edge, and says what is wrong and
//! what to do. Nothing is changed anywhere.

use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::Args;
use serde::Serialize;

use super::terminal::say_in_colours;
use crate::app;
use crate::broker::Broker;
use crate::config::{DatabaseSettings, LogSettings, RunSettings, SettingFault, SettingSource};
use crate::finding::{Finding, Grade};
use crate::journal;
use crate::provider::Provider;
use crate::traces;
use crate::visible::visible;
use dollarpe::signature::Signer;

/// Look at settings, broker, database and provider; say what is wrong and what to do
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  kyc-worker check\n  kyc-worker check --json | jq '.[].findings[] | select(.grade == \"wrong\")'\n\nNothing is changed: the provider is asked about a customer who does not exist.\n\nExit codes: 0 nothing is wrong, 1 something is."
)]
pub(super) struct CheckArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: RunSettings,
    // Looked at when they are parsed.
    #[command(flatten)]
    log: LogSettings,
}

/// What was found, by what was looked at.
#[derive(Serialize)]
struct Area {
    area: &'static str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    settings: Vec<SettingSource>,
    findings: Vec<Finding>,
}

pub(super) async fn run(
    args: &CheckArgs,
    faults: Vec<SettingFault>,
    mut sources: Vec<SettingSource>,
    misspelt: &[(&str, String)],
) -> anyhow::Result<ExitCode> {
    let settings = &args.settings;
    // What stands in for a value that is none came from nowhere.
    sources.retain(|source| faults.iter().all(|fault| fault.setting != source.variable));
    let mut findings = check_settings(settings, faults);
    findings.extend(misspelt.iter().map(|(name, meant)| {
        let what = format!(".env: {name} is no setting, and nearly one");
        Finding::note(what, format!("write {meant}, if that is meant"))
    }));
    let settings_area = Area { area: "settings", findings, settings: sources };
    let (broker, database, provider) =
        tokio::join!(check_broker(settings), check_database(settings), check_provider(settings));
    let area = |area, findings| Area { area, settings: Vec::new(), findings };
    let mut areas =
        vec![settings_area, area("broker", broker), area("database", database), area("provider", provider)];
    if let Ok(Some(otlp)) = settings.traces.otlp() {
        areas.push(area("traces", vec![traces::inspect(&otlp).await]));
    }
    let wrong =
        areas.iter().flat_map(|area| &area.findings).filter(|found| found.grade == Grade::Wrong).count();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&areas)?);
    } else {
        areas.iter().for_each(print);
        match wrong {
            0 => say_in_colours(format_args!("\n{}nothing is wrong{0:#}", paint(Grade::Ok))),
            1 => say_in_colours(format_args!("\n{}one thing is wrong{0:#}", paint(Grade::Wrong))),
            more => say_in_colours(format_args!("\n{}{more} things are wrong{0:#}", paint(Grade::Wrong))),
        }
    }
    Ok(ExitCode::from(u8::from(wrong > 0)))
}

fn check_settings(settings: &RunSettings, mut faults: Vec<SettingFault>) -> Vec<Finding> {
    faults.extend(settings.check().err().unwrap_or_default());
    if faults.is_empty() {
        let margin = humantime::format_duration(settings.jobs.link_expiry_margin);
        let links = format!(
            "LINK_EXPIRY_MARGIN: a job expires {margin} before the first of its signed links ends; let publishers sign them for a day"
        );
        let mut findings =
            vec![Finding::ok("every setting is sound, and they fit together"), Finding::ok(links)];
        findings.extend((settings.jobs.link_check && settings.provider.has_proxy()).then(|| {
            Finding::note(
                "LINK_CHECK: links are fetched through DOLLARPE_PROXY, which resolves their hosts' names",
                "have the proxy let through to where documents lie, and to no address of your own network",
            )
        }));
        return findings;
    }
    let remedy = "`kyc-worker run --help` explains it; .env.example has an example";
    faults.iter().map(|fault| Finding::wrong(fault.to_string(), remedy)).collect()
}

async fn check_broker(settings: &RunSettings) -> Vec<Finding> {
    let broker = settings.broker.url().map_err(Into::into);
    match broker.and_then(|url| Broker::new(&settings.broker, &url, "kyc-worker check")) {
        Ok(broker) => broker.inspect().await,
        Err(error) => vec![unchecked(&error)],
    }
}

async fn check_database(settings: &RunSettings) -> Vec<Finding> {
    match settings.database.url() {
        Ok(url) => {
            // A fault of the key is told of among the settings.
            let fingerprinter = settings.keys.fingerprint.fingerprinter().ok();
            let DatabaseSettings { database_connections, allow_unsafe_database, .. } = settings.database;
            journal::inspect(&url, database_connections, allow_unsafe_database, fingerprinter.as_ref()).await
        }
        Err(fault) => vec![unchecked(&fault.into())],
    }
}

async fn check_provider(settings: &RunSettings) -> Vec<Finding> {
    match provider(settings) {
        Ok(provider) => provider.inspect().await,
        Err(error) => vec![unchecked(&error)],
    }
}

fn provider(settings: &RunSettings) -> anyhow::Result<Provider> {
    let provider = &settings.provider;
    let signer = Signer::new(provider.api_key()?.expose(), provider.api_secret()?.expose());
    Provider::new(app::provider_settings(provider, settings.work.concurrency as usize)?, signer)
}

/// What cannot be looked at for a setting that is told of already.
fn unchecked(error: &anyhow::Error) -> Finding {
    Finding::wrong(format!("not looked at: {error:#}"), "mend the setting, then check again")
}

fn print(area: &Area) {
    say_in_colours(format_args!("{}{}{0:#}", Style::new().bold(), area.area));
    print_sources(&area.settings);
    for Finding { grade, what, remedy } in &area.findings {
        let name = match grade {
            Grade::Ok => "ok",
            Grade::Note => "note",
            Grade::Wrong => "wrong",
        };
        say_in_colours(format_args!("  {}{name:<6}{0:#} {}", paint(*grade), visible(what)));
        if let Some(remedy) = remedy {
            println!("         -> {}", visible(remedy));
        }
    }
}

/// Names every setting that is not at its default, and where it came from.
fn print_sources(settings: &[SettingSource]) {
    let (default, given): (Vec<_>, Vec<_>) = settings.iter().partition(|setting| setting.source == "default");
    for setting in given {
        let value = setting.value.as_deref().unwrap_or("(secret)");
        println!("         {:<26}{}  from {}", setting.variable, visible(value), setting.source);
    }
    if !default.is_empty() {
        println!("         {} others are at their defaults", default.len());
    }
}

fn paint(grade: Grade) -> Style {
    let color = match grade {
        Grade::Ok => AnsiColor::Green,
        Grade::Note => AnsiColor::Yellow,
        Grade::Wrong => AnsiColor::Red,
    };
    color.on_default()
}
