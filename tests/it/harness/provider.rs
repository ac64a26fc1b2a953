//! The provider: what it is told to do, and what it saw.

use std::collections::HashMap;

use dollarpe_sandbox::tls::{Authority, Front};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use uuid::Uuid;

use super::{World, job_of_link};

impl World {
    /// Puts TLS before the provider, with a certificate for `name`, and returns the
    /// `DOLLARPE_BASE_URL` that leads there by 127.0.0.1.
    pub async fn put_tls_before_provider(&self, authority: &Authority, name: &str) -> (Front, String) {
        let base: url::Url = self.sandbox.base_url().parse().expect("a URL");
        let target = base.socket_addrs(|| None).expect("an address")[0];
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let issued = authority.issue(name).expect("a certificate");
        let front = Front::start(listener, target, &issued).expect("TLS");
        let base = format!("https://{}{}", front.address(), base.path());
        (front, base)
    }

    /// Posts a fault rule for one job's PATCHes to the sandbox.
    pub async fn break_job(&self, job_id: Uuid, fault: Value) {
        self.add_rule(json!({ "match": { "method": "PATCH", "link_contains": job_id }, "fault": fault }))
            .await;
    }

    /// Makes the provider answer a job's first PATCH with a fault.
    pub async fn break_job_once(&self, job_id: Uuid, fault: Value) {
        let matched = json!({ "method": "PATCH", "link_contains": job_id });
        self.add_rule(json!({ "match": matched, "first": 1, "fault": fault })).await;
    }

    /// Posts a fault rule to the sandbox.
    pub async fn add_rule(&self, rule: Value) {
        let url = format!("{}/rules", self.sandbox.admin_url());
        let added = self.http.post(url).json(&rule).send().await.expect("the sandbox answers");
        let status = added.status();
        #[expect(clippy::disallowed_methods, reason = "the sandbox's answers are short")]
        let text = added.text().await.expect("a body");
        assert!(status.is_success(), "the sandbox refuses a rule: {text}");
    }

    pub async fn clear_rules(&self) {
        let url = format!("{}/rules", self.sandbox.admin_url());
        self.http.delete(url).send().await.expect("the sandbox answers");
    }

    /// Sets a customer at the provider.
    pub async fn set_customer(&self, customer_id: Uuid, customer: Value) {
        let url = format!("{}/customers/{customer_id}", self.sandbox.admin_url());
        let set = self.http.put(url).json(&customer).send().await.expect("the sandbox answers");
        assert!(set.status().is_success());
    }

    pub async fn set_provider(&self, settings: Value) {
        let url = format!("{}/settings", self.sandbox.admin_url());
        let set = self.http.post(url).json(&settings).send().await.expect("the sandbox answers");
        assert!(set.status().is_success());
    }

    /// What the oracle saw: `patches`, `updates` or `reads`, in order.
    pub async fn oracle(&self, what: &str) -> Vec<Value> {
        let url = format!("{}/oracle/{what}", self.sandbox.admin_url());
        let lines = self.http.get(url).send().await.expect("the sandbox answers");
        #[expect(clippy::disallowed_methods, reason = "the oracle is ours")]
        let lines = lines.text().await.expect("a body");
        lines.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
    }

    /// What the oracle counted over all customers.
    pub async fn oracle_summary(&self) -> Value {
        let url = format!("{}/oracle/summary", self.sandbox.admin_url());
        let answer = self.http.get(url).send().await.expect("the sandbox answers");
        #[expect(clippy::disallowed_methods, reason = "the oracle is ours")]
        answer.json().await.expect("JSON")
    }

    /// How many PATCHes the provider received for a job.
    pub async fn count_patches(&self, job_id: Uuid) -> usize {
        self.count_oracle("patches", job_id).await
    }

    /// How many updates the provider applied for a job.
    pub async fn count_updates(&self, job_id: Uuid) -> usize {
        self.count_oracle("updates", job_id).await
    }

    async fn count_oracle(&self, what: &str, job_id: Uuid) -> usize {
        let id = job_id.to_string();
        let seen = self.oracle(what).await;
        seen.iter().filter(|line| line["link"].as_str().is_some_and(|link| link.contains(&id))).count()
    }

    /// Of each job that the oracle saw, in `patches` or `updates`, how often.
    pub async fn count_by_job(&self, what: &str) -> HashMap<Uuid, usize> {
        let mut counts = HashMap::new();
        for line in self.oracle(what).await {
            if let Some(job_id) = line["link"].as_str().and_then(job_of_link) {
                *counts.entry(job_id).or_default() += 1;
            }
        }
        counts
    }
}
