//! `/settings`: what the replicas are set to, and the console; secrets without their value.

use askama::Template;
use axum::response::Response;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

use crate::console::answer::{Failure, Page};
use crate::console::visit::{Frame, Visit};
use crate::journal::replicas::worker_settings;

#[derive(Serialize)]
struct Setting {
    name: String,
    /// What each value is, and which replicas have it.
    values: Vec<(String, Vec<String>)>,
}

#[derive(Serialize)]
struct OwnSetting {
    name: String,
    value: String,
    source: &'static str,
}

#[derive(Template, Serialize)]
#[template(path = "settings.html")]
struct SettingsPage {
    #[serde(skip)]
    frame: Frame,
    replicas: Vec<Setting>,
    console: Vec<OwnSetting>,
}

impl Page for SettingsPage {
    const TABLES: &'static [(&'static str, &'static str)] =
        &[("replicas", "/replicas"), ("console", "/console")];
}

pub(in crate::console) async fn show(visit: Visit) -> Result<Response, Failure> {
    let mut by_name: BTreeMap<String, BTreeMap<String, Vec<String>>> = BTreeMap::new();
    for replica in worker_settings(&visit.console.pages).await? {
        let Some(Value::Object(settings)) = replica.settings else { continue };
        for (name, value) in settings {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            by_name.entry(name).or_default().entry(value).or_default().push(replica.name.clone());
        }
    }
    let replicas = by_name
        .into_iter()
        .map(|(name, values)| Setting { name, values: values.into_iter().collect() })
        .collect();
    let console = visit
        .console
        .sources
        .iter()
        .map(|setting| OwnSetting {
            name: setting.variable.clone(),
            value: setting.value.clone().unwrap_or_else(|| "(secret)".to_owned()),
            source: setting.source,
        })
        .collect();
    visit.page(&SettingsPage { frame: visit.frame("/settings", "Settings"), replicas, console })
}
