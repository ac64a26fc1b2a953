//! Faults on demand: which requests a rule meets, and what then goes wrong. Pure: chance is a
//! hash of the rule's seed and its own counter, so that a run can be repeated.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use axum::http::{HeaderMap, HeaderValue, Method, header::TRANSFER_ENCODING};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::provider::RefusalOfUs;

/// A rule as it is posted. The first posted that meets a request decides about it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    #[serde(rename = "match", default)]
    criteria: Criteria,
    /// Spent after this many requests.
    first: Option<u64>,
    /// Spent for a customer after this many of its requests.
    first_per_customer: Option<u64>,
    /// A fault in front of the provider, whatever the request holds. Where false, the rule
    /// meets only requests that the provider would have granted.
    #[serde(default = "yes")]
    before_auth: bool,
    fault: Fault,
}

fn yes() -> bool {
    true
}

/// All that are given must hold.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Criteria {
    method: Option<String>,
    path_contains: Option<String>,
    customer_id: Option<Uuid>,
    /// Looked for in `document_front_image_url`.
    link_contains: Option<String>,
    /// The part, 0 to 1, of the requests meeting the rest that the rule takes.
    share: Option<f64>,
    #[serde(default)]
    share_by: ShareBy,
    /// Chooses other requests, or customers, for the same share; by default the rule's id.
    seed: Option<u64>,
}

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ShareBy {
    /// Each request on its own.
    #[default]
    Request,
    /// All of a customer's requests or none.
    Customer,
}

/// What goes wrong, in this order: delay, apply, delay, answer.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Fault {
    delay_before_ms: u64,
    pub(super) apply: Apply,
    delay_after_ms: u64,
    pub(super) answer: Answer,
}

impl Fault {
    pub(super) fn delay_before(&self) -> Duration {
        Duration::from_millis(self.delay_before_ms)
    }

    pub(super) fn delay_after(&self) -> Duration {
        Duration::from_millis(self.delay_after_ms)
    }
}

/// When an update that passes the provider's own checks takes effect, whatever is answered.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Apply {
    #[default]
    Now,
    Never,
    /// Counted from when it would have been applied.
    AfterMs(u64),
}

// The empty braces are for serde, which would take any field beside a unit variant's kind.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Answer {
    /// As if there were no rule.
    Normal {},
    Respond {
        status: u16,
        #[serde(default)]
        headers: HashMap<String, String>,
        /// A text is sent raw, anything else as JSON.
        #[serde(default)]
        body: Option<Value>,
    },
    /// A refusal of whoever asks, in the envelope that the provider uses for refusals of a job.
    RefuseUs { with: RefusalOfUs },
    /// To a read of a customer: what was answered to the first one that met this, for as long,
    /// with the date of then and, if so, the cache's `Age`. `older_by_s` puts that date back.
    Cached {
        for_ms: u64,
        with_age: bool,
        #[serde(default)]
        older_by_s: i64,
    },
    /// As if there were no rule, but about another customer.
    OtherCustomer {},
    /// RST instead of an answer.
    Reset {},
    /// RST after this many bytes of the answer, its head included, or after its end.
    ResetAfterBytes { bytes: usize },
    /// FIN instead of an answer.
    Close {},
    /// Never.
    Hang {},
    /// The head at once, the body byte by byte.
    Slow { byte_every_ms: u64 },
    /// A 200 that begins well and goes on for this many bytes.
    Huge { bytes: u64 },
    /// A 200 whose body is neither JSON nor UTF-8.
    Garbage {},
}

impl Default for Answer {
    fn default() -> Self {
        Self::Normal {}
    }
}

impl Rule {
    /// # Errors
    /// What is wrong with it, for the one who posted it.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        let rule: Self = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        if rule.criteria.share.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
            return Err("match.share: must be from 0 to 1".to_owned());
        }
        if let Answer::Respond { status, headers, .. } = &rule.fault.answer {
            if !(200..=599).contains(status) {
                return Err("fault.answer.status: must be from 200 to 599".to_owned());
            }
            let headers = HeaderMap::<HeaderValue>::try_from(headers);
            let headers = headers.map_err(|error| format!("fault.answer.headers: {error}"))?;
            // The server frames what it sends; content-length may lie, this may not.
            if headers.contains_key(TRANSFER_ENCODING) {
                return Err("fault.answer.headers: transfer-encoding is not to be set".to_owned());
            }
        }
        Ok(rule)
    }
}

/// What a rule may look at in a request.
#[derive(Clone, Copy)]
pub(super) struct Sighting<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
    pub(super) customer_id: Option<Uuid>,
    pub(super) link: Option<&'a str>,
    /// Whether the provider would grant it: authenticated, valid, within the limit.
    pub(super) is_grantable: bool,
}

impl Criteria {
    /// All but the share.
    fn are_met_by(&self, request: Sighting<'_>) -> bool {
        let is_in = |part: &Option<String>, whole: Option<&str>| {
            part.as_ref().is_none_or(|part| whole.is_some_and(|whole| whole.contains(part)))
        };
        self.method.as_ref().is_none_or(|method| request.method.as_str() == method)
            && is_in(&self.path_contains, Some(request.path))
            && is_in(&self.link_contains, request.link)
            && self.customer_id.is_none_or(|id| request.customer_id == Some(id))
    }

    fn share_takes(&self, default_seed: u64, count: u64, customer_id: Option<Uuid>) -> bool {
        let Some(share) = self.share else { return true };
        let subject = match self.share_by {
            ShareBy::Request => count,
            ShareBy::Customer => {
                let (high, low) = customer_id.unwrap_or_default().as_u64_pair();
                mixed(high) ^ low
            }
        };
        let hash = mixed(mixed(self.seed.unwrap_or(default_seed)) ^ subject);
        // The top 53 bits: as many as the fraction of an f64 holds.
        ((hash >> 11) as f64) < share * (1_u64 << 53) as f64
    }
}

/// SplitMix64's step, which unlike std's hashers stays the same for ever.
fn mixed(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// A rule in force.
#[derive(Serialize)]
pub(super) struct Posted {
    id: u64,
    /// Requests that met it, whether or not its share took them.
    met: u64,
    /// Requests it decided about.
    taken: u64,
    rule: Rule,
    #[serde(skip)]
    taken_per_customer: HashMap<Uuid, u64>,
}

impl Posted {
    fn takes(&mut self, request: Sighting<'_>) -> bool {
        let rule = &self.rule;
        let reaches = rule.before_auth || request.is_grantable;
        if !reaches || !rule.criteria.are_met_by(request) {
            return false;
        }
        self.met += 1;
        if !rule.criteria.share_takes(self.id, self.met, request.customer_id)
            || rule.first.is_some_and(|first| self.taken >= first)
        {
            return false;
        }
        if let Some(first) = rule.first_per_customer {
            let customer_id = request.customer_id.unwrap_or_default();
            let taken = self.taken_per_customer.entry(customer_id).or_default();
            if *taken >= first {
                return false;
            }
            *taken += 1;
        }
        self.taken += 1;
        true
    }
}

/// The rules in force, in the order they were posted.
#[derive(Default)]
pub(super) struct Rules {
    last_id: u64,
    by_id: BTreeMap<u64, Posted>,
}

impl Rules {
    pub(super) fn post(&mut self, rule: Rule) -> u64 {
        self.last_id += 1;
        let id = self.last_id;
        let posted = Posted { id, met: 0, taken: 0, rule, taken_per_customer: HashMap::new() };
        self.by_id.insert(id, posted);
        id
    }

    /// Whether there was such a rule.
    pub(super) fn remove(&mut self, id: u64) -> bool {
        self.by_id.remove(&id).is_some()
    }

    pub(super) fn clear(&mut self) {
        self.by_id.clear();
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Posted> {
        self.by_id.values()
    }

    /// The fault for this request, with the id of the first rule that takes it.
    pub(super) fn decide(&mut self, request: Sighting<'_>) -> Option<(u64, Fault)> {
        let posted = self.by_id.values_mut().find_map(|posted| posted.takes(request).then_some(posted))?;
        Some((posted.id, posted.rule.fault.clone()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ALICE: Uuid = Uuid::from_u128(1);
    const BOB: Uuid = Uuid::from_u128(2);

    fn update_of(customer_id: Uuid) -> Sighting<'static> {
        Sighting {
            method: &Method::PATCH,
            path: "/cms/api/v1/kyc/update-document-info",
            customer_id: Some(customer_id),
            link: Some("https://docs.example/job-7/front.pdf"),
            is_grantable: true,
        }
    }

    fn rules(rules: &[Value]) -> Rules {
        let mut posted = Rules::default();
        for rule in rules {
            posted.post(Rule::parse(rule.to_string().as_bytes()).unwrap());
        }
        posted
    }

    fn decided(rules: &mut Rules, request: Sighting<'_>) -> Option<u64> {
        rules.decide(request).map(|(id, _)| id)
    }

    #[test]
    fn every_criterion_given_must_hold() {
        #[track_caller]
        fn check(criteria: Value, is_met: bool) {
            let mut rules = rules(&[json!({ "match": criteria, "fault": {} })]);
            assert_eq!(decided(&mut rules, update_of(ALICE)).is_some(), is_met);
        }
        check(json!({}), true);
        check(json!({ "method": "PATCH", "path_contains": "update", "customer_id": ALICE }), true);
        check(json!({ "method": "GET" }), false);
        check(json!({ "method": "PATCH", "path_contains": "mock" }), false);
        check(json!({ "customer_id": BOB }), false);
        check(json!({ "link_contains": "job-7/" }), true);
        check(json!({ "link_contains": "job-8/" }), false);
    }

    #[test]
    fn the_first_rule_posted_decides_until_it_is_spent() {
        let mut rules =
            rules(&[json!({ "first": 2, "fault": {} }), json!({ "first_per_customer": 1, "fault": {} })]);
        let seen: Vec<_> = [ALICE, ALICE, ALICE, ALICE, BOB, BOB]
            .map(|customer| decided(&mut rules, update_of(customer)))
            .to_vec();
        assert_eq!(seen, [Some(1), Some(1), Some(2), None, Some(2), None]);
    }

    #[test]
    fn a_fault_behind_authentication_spares_what_is_refused_anyway() {
        let mut rules = rules(&[json!({ "before_auth": false, "first": 1, "fault": {} })]);
        let refused = Sighting { is_grantable: false, ..update_of(ALICE) };
        assert_eq!(decided(&mut rules, refused), None);
        assert_eq!(decided(&mut rules, update_of(ALICE)), Some(1));
    }

    #[test]
    fn a_share_takes_its_part_of_the_requests_and_the_same_ones_again() {
        let run = || {
            let mut rules = rules(&[json!({ "match": { "share": 0.3 }, "fault": {} })]);
            (0..10_000).filter(|_| decided(&mut rules, update_of(ALICE)).is_some()).collect()
        };
        let taken: Vec<u32> = run();
        assert!((2_800..3_200).contains(&taken.len()), "{}", taken.len());
        assert_eq!(taken, run());
    }

    #[test]
    fn a_share_by_customer_takes_all_of_a_customers_requests_or_none() {
        let criteria = json!({ "share": 0.5, "share_by": "customer", "seed": 42 });
        let mut rules = rules(&[json!({ "match": criteria, "fault": {} })]);
        let mut takes = |id| decided(&mut rules, update_of(Uuid::from_u128(id))).is_some();
        let taken: Vec<bool> = (0..1_000).map(&mut takes).collect();
        let again: Vec<bool> = (0..1_000).map(&mut takes).collect();
        assert_eq!(taken, again);
        let customers = taken.iter().filter(|taken| **taken).count();
        assert!((430..570).contains(&customers), "{customers}");
    }

    #[test]
    fn a_rule_that_cannot_be_meant_is_refused_with_the_reason() {
        #[track_caller]
        fn check(rule: Value, expected: &str) {
            let error = Rule::parse(rule.to_string().as_bytes()).err().unwrap();
            assert!(error.contains(expected), "{error}");
        }
        let answer = |answer: Value| json!({ "fault": { "answer": answer } });
        check(json!({}), "missing field `fault`");
        check(json!({ "fault": {}, "frist": 1 }), "unknown field `frist`");
        check(json!({ "match": { "url": "x" }, "fault": {} }), "unknown field `url`");
        check(json!({ "match": { "share": 1.5 }, "fault": {} }), "match.share");
        check(json!({ "fault": { "apply": "later" } }), "unknown variant `later`");
        check(answer(json!({ "kind": "explode" })), "unknown variant `explode`");
        check(answer(json!({ "kind": "normal", "status": 500 })), "unknown field `status`");
        check(answer(json!({ "kind": "respond", "status": 100 })), "fault.answer.status");
        check(
            answer(json!({ "kind": "respond", "status": 500, "headers": { "a b": "" } })),
            "fault.answer.headers",
        );
    }
}
