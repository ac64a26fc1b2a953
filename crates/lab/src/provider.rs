//! The simulated provider's admin interface, by which it is told what to do.

use anyhow::Context as _;
use serde_json::{Value, json};
use uuid::Uuid;

#[derive(Clone)]
pub struct Provider {
    admin_url: String,
    http: reqwest::Client,
}

impl Provider {
    pub fn new(admin_url: String) -> Self {
        #[expect(clippy::disallowed_methods, reason = "talks to the sandbox on this machine alone")]
        let http = reqwest::Client::new();
        Self { admin_url, http }
    }

    /// Posts a fault. Returns its number.
    pub async fn add_rule(&self, rule: &Value) -> anyhow::Result<u64> {
        let answer = self.send(self.http.post(self.url("rules")).json(rule)).await?;
        #[expect(clippy::disallowed_methods, reason = "the sandbox is ours")]
        let posted: Value = answer.json().await?;
        posted["id"].as_u64().context("a rule without an id")
    }

    pub async fn clear_rules(&self) -> anyhow::Result<()> {
        self.send(self.http.delete(self.url("rules"))).await.map(drop)
    }

    /// Sets what is not like with other customers.
    pub async fn set_customer(&self, customer_id: &Uuid, customer: Value) -> anyhow::Result<()> {
        self.send(self.http.put(self.url(&format!("customers/{customer_id}"))).json(&customer))
            .await
            .map(drop)
    }

    pub async fn set_api_key(&self, api_key: &str) -> anyhow::Result<()> {
        self.send(self.http.post(self.url("settings")).json(&json!({ "api_key": api_key }))).await.map(drop)
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.admin_url)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<reqwest::Response> {
        request.send().await?.error_for_status().context("the sandbox refuses it")
    }
}
