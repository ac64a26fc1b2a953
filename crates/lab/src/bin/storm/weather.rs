//! What goes wrong at the provider: a share of all requests, all the time, and now and then
//! everything at once. Nothing breaks the two facts that the worker relies on: what is
//! applied late is applied within three quarters of `READ_BACK_WINDOW`.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use kyc_lab::provider::Provider;

/// The faults that the provider was told of.
pub struct Weather {
    provider: Provider,
    rng: StdRng,
    /// What each rule was for.
    pub kinds: BTreeMap<u64, &'static str>,
    /// How often everything went wrong, by kind.
    pub squalls: BTreeMap<&'static str, u32>,
}

struct Fault {
    kind: &'static str,
    method: &'static str,
    /// In thousandths of all such requests.
    share: u32,
    fault: Value,
}

const ERROR: &str = r#"{"success":false,"message":"Internal Server Error","errors":"An unexpected error occurred.","data":null}"#;
const THROTTLED: &str = r#"{"status":false,"message":"Request was throttled.","errors":{},"data":null}"#;
const UNAUTHORIZED: &str =
    r#"{"status":false,"message":"Authentication credentials were not provided.","errors":{},"data":null}"#;

fn respond(status: u16, body: &str) -> Value {
    json!({ "kind": "respond", "status": status, "body": body, "headers": { "content-type": "application/json" } })
}

fn refuse_us(with: &str) -> Value {
    json!({ "apply": "never", "answer": { "kind": "refuse_us", "with": with } })
}

fn throttle(seconds: u32) -> Value {
    let mut answer = respond(429, THROTTLED);
    answer["headers"]["retry-after"] = json!(seconds.to_string());
    json!({ "apply": "never", "answer": answer })
}

/// What is always in the air. A request takes at most 2 s from the worker's side, and reads
/// cover what is applied up to 9 s late.
fn faults() -> Vec<Fault> {
    let patch = |kind, share, fault| Fault { kind, method: "PATCH", share, fault };
    let get = |kind, share, fault| Fault { kind, method: "GET", share, fault };
    let (reset, hang) = (json!({ "kind": "reset" }), json!({ "kind": "hang" }));
    let error = || respond(500, ERROR);
    let cached = json!({ "kind": "cached", "for_ms": 300_000, "with_age": true });
    vec![
        patch("500 instead of applying", 10, json!({ "apply": "never", "answer": error() })),
        patch("500 after applying", 10, json!({ "answer": error() })),
        patch("reset instead of applying", 8, json!({ "apply": "never", "answer": reset })),
        patch("reset after applying", 8, json!({ "answer": reset })),
        patch(
            "reset inside the answer",
            6,
            json!({ "answer": { "kind": "reset_after_bytes", "bytes": 40 } }),
        ),
        patch("garbage after applying", 4, json!({ "answer": { "kind": "garbage" } })),
        patch("hang instead of applying", 4, json!({ "apply": "never", "answer": hang })),
        patch("hang after applying", 4, json!({ "answer": hang })),
        patch("500, applied 1 s later", 5, json!({ "apply": { "after_ms": 1000 }, "answer": error() })),
        patch("500, applied 5 s later", 5, json!({ "apply": { "after_ms": 5000 }, "answer": error() })),
        patch("reset, applied 9 s later", 5, json!({ "apply": { "after_ms": 9000 }, "answer": reset })),
        patch("slow beyond the timeout", 3, json!({ "delay_before_ms": 2500 })),
        patch("slow", 30, json!({ "delay_before_ms": 200, "delay_after_ms": 400 })),
        patch("throttled", 10, throttle(1)),
        patch("refused as if it were us", 8, refuse_us("maintenance")),
        patch("an acceptance of another customer's", 4, json!({ "answer": { "kind": "other_customer" } })),
        get("500 to a read", 30, json!({ "answer": error() })),
        get("reset of a read", 20, json!({ "answer": reset })),
        get("slow read", 50, json!({ "delay_before_ms": 300 })),
        get("read without an answer", 8, json!({ "answer": hang })),
        get("read of another customer", 10, json!({ "answer": { "kind": "other_customer" } })),
        get("read that a cache answers", 30, json!({ "answer": cached })),
    ]
}

/// What goes wrong all at once: for PATCHes, or for everything.
fn squalls() -> Vec<(&'static str, Option<&'static str>, Value)> {
    let never = |answer: Value| json!({ "apply": "never", "answer": answer });
    vec![
        ("every PATCH 500, none applied", Some("PATCH"), never(respond(500, ERROR))),
        ("every PATCH 500, all applied", Some("PATCH"), json!({ "answer": respond(500, ERROR) })),
        ("every PATCH hangs", Some("PATCH"), never(json!({ "kind": "hang" }))),
        ("every PATCH throttled", Some("PATCH"), throttle(2)),
        ("everything reset", None, never(json!({ "kind": "reset" }))),
        ("everything 503", None, never(respond(503, "<html>unavailable</html>"))),
        ("everything 401", None, never(respond(401, UNAUTHORIZED))),
        ("every PATCH refused as too old", Some("PATCH"), refuse_us("timestamp_words")),
        ("everything in maintenance", None, refuse_us("maintenance")),
    ]
}

impl Weather {
    pub fn new(provider: Provider, seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        Self { provider, rng, kinds: BTreeMap::new(), squalls: BTreeMap::new() }
    }

    /// Blows until `end`, then clears up.
    pub async fn blow(&mut self, end: Instant, every: Duration) -> anyhow::Result<()> {
        let mut squalls = squalls();
        self.post_faults().await?;
        loop {
            let next = Instant::now() + every.mul_f64(self.rng.random_range(0.5..1.5));
            sleep_until(next.min(end)).await;
            if next >= end {
                return self.provider.clear_rules().await;
            }
            if squalls.is_empty() {
                squalls = self::squalls();
            }
            let (kind, method, fault) = squalls.swap_remove(self.rng.random_range(0..squalls.len()));
            *self.squalls.entry(kind).or_default() += 1;
            self.provider.clear_rules().await?;
            // The first rule that was posted decides.
            let criteria = method.map_or(json!({}), |method| json!({ "method": method }));
            self.post(kind, json!({ "match": criteria, "fault": fault })).await?;
            self.post_faults().await?;
            let over = Instant::now() + Duration::from_millis(self.rng.random_range(1000..4000));
            sleep_until(over.min(end)).await;
            self.provider.clear_rules().await?;
            self.post_faults().await?;
        }
    }

    async fn post_faults(&mut self) -> anyhow::Result<()> {
        for Fault { kind, method, share, fault } in faults() {
            let seed: u32 = self.rng.random();
            let criteria = json!({ "method": method, "share": f64::from(share) / 1000.0, "seed": seed });
            self.post(kind, json!({ "match": criteria, "before_auth": false, "fault": fault })).await?;
        }
        Ok(())
    }

    async fn post(&mut self, kind: &'static str, rule: Value) -> anyhow::Result<()> {
        self.kinds.insert(self.provider.add_rule(&rule).await?, kind);
        Ok(())
    }
}
