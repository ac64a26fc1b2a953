//! What the demo publishes: jobs of every kind, good and bad, in a random order, and how
//! each should end. Knows no service.

use std::collections::BTreeMap;

use rand::seq::SliceRandom as _;
use serde_json::{Value, json};
use uuid::Uuid;

use kyc_lab::books::{Expectation, Letter, Published, Repeats, digest};

/// A kind of message, told apart at the provider by the word in its front link's path.
pub struct Kind {
    pub word: &'static str,
    pub what: &'static str,
    /// How many messages are of this kind.
    pub count: usize,
    /// The states that its jobs may end in.
    pub states: &'static [&'static str],
    /// How that reads.
    pub ends: &'static str,
}

const ACCEPTED: &[&str] = &["accepted"];
const REJECTED: &[&str] = &["rejected"];
/// One customer's jobs: where an older one waits, a newer one may replace it.
const ONE_OF_SEVERAL: &[&str] = &["accepted", "superseded"];
const ONE_TOO_MANY: &[&str] = &["accepted", "rejected", "superseded", "needs_review"];
/// A lost answer is looked into, or left to a person; it is never sent again blindly.
const FATE_LOST: &[&str] = &["accepted", "needs_review"];

/// Beside the plain ones, which fill up to the number of messages that is asked for.
const KINDS: [Kind; 16] = [
    kind("slow", "the provider takes a second to answer", 80, ACCEPTED, "accepted"),
    kind("throttled", "429 with Retry-After at the first try", 60, ACCEPTED, "accepted, later"),
    kind("three", "three jobs for one customer", 90, ONE_OF_SEVERAL, "accepted, one at a time"),
    kind("four", "four jobs for one customer", 40, ONE_TOO_MANY, "three accepted, one rejected"),
    kind("no-customer", "the provider knows no such customer", 40, REJECTED, "rejected"),
    kind("limit", "the customer's three updates are spent", 40, REJECTED, "rejected"),
    kind("field", "the provider refuses a field", 40, REJECTED, "rejected"),
    kind("shared", "two customers with one document", 40, &["accepted", "rejected"], "one of two rejected"),
    kind("fails-before", "500, nothing applied", 20, FATE_LOST, "never sent again blindly"),
    kind("fails-after", "500, but applied", 20, FATE_LOST, "never sent again blindly"),
    kind("hangs-up", "applied, and the connection reset", 10, FATE_LOST, "never sent again blindly"),
    kind("expired", "its links have expired before it is sent", 15, &["exhausted"], "exhausted, not sent"),
    kind("not-genuine", "the verification fails", 60, ACCEPTED, "accepted, FAILED after that"),
    kind("twice", "published twice", 100, ACCEPTED, "accepted, sent once"),
    kind("conflict", "one job_id with two contents", 30, ACCEPTED, "one accepted, one dead-lettered"),
    kind("malformed", "no job at all, in fourteen ways", 42, &["invalid"], "dead-lettered, with every fault"),
];

const fn kind(
    word: &'static str,
    what: &'static str,
    count: usize,
    states: &'static [&'static str],
    ends: &'static str,
) -> Kind {
    Kind { word, what, count, states, ends }
}

/// Everything that is published.
pub struct Jobs {
    /// The messages, one a line, in order.
    pub lines: Vec<Vec<u8>>,
    /// What must come of them.
    pub published: Published,
    /// Customers that the provider does not know.
    pub no_customers: Vec<Uuid>,
    /// Customers whose updates are spent.
    pub spent_customers: Vec<Uuid>,
    /// Customers whose verification fails.
    pub failing_customers: Vec<Uuid>,
    /// The kinds, the plain one first.
    pub kinds: Vec<Kind>,
}

/// How many updates the provider allows a customer.
pub const UPDATE_LIMIT: u32 = 3;

/// Makes `messages` messages, or a few more if that is too few for all kinds.
pub fn make(messages: usize) -> Jobs {
    let others: usize = KINDS.iter().map(|kind| kind.count).sum();
    let plain = messages.saturating_sub(others).max(1);
    let mut kinds = vec![kind("plain", "nothing special", plain, ACCEPTED, "accepted")];
    kinds.extend(KINDS);

    let mut maker = Maker::default();
    for kind in &kinds {
        match kind.word {
            "three" => maker.several(kind, 3),
            "four" => maker.several(kind, 4),
            "no-customer" => maker.no_customers = maker.singles(kind),
            "limit" => maker.spent_customers = maker.singles(kind),
            "not-genuine" => maker.failing_customers = maker.singles(kind),
            "shared" => maker.pairs(kind),
            "expired" => maker.expired(kind),
            "twice" => maker.twice(kind),
            "conflict" => maker.conflicts(kind),
            "malformed" => maker.malformed(kind),
            _ => drop(maker.singles(kind)),
        }
    }
    let Maker { mut early, late, jobs, letters, .. } = maker;
    let Maker { no_customers, spent_customers, failing_customers, .. } = maker;

    // Second copies come late, so that most meet a first one that has ended.
    let mut rng = rand::rng();
    early.shuffle(&mut rng);
    let mut rest = early.split_off(early.len() * 2 / 3);
    rest.extend(late);
    rest.shuffle(&mut rng);
    early.extend(rest);
    let repeats = Repeats::Refused;
    let published = Published { jobs, letters, update_limit: UPDATE_LIMIT, repeats };
    Jobs { lines: early, published, no_customers, spent_customers, failing_customers, kinds }
}

#[derive(Default)]
struct Maker {
    early: Vec<Vec<u8>>,
    late: Vec<Vec<u8>>,
    jobs: BTreeMap<Uuid, Expectation>,
    letters: Vec<Letter>,
    no_customers: Vec<Uuid>,
    spent_customers: Vec<Uuid>,
    failing_customers: Vec<Uuid>,
    documents: u64,
}

impl Maker {
    /// Makes a valid job and expects it.
    fn job(&mut self, kind: &Kind, customer_id: Uuid, copies: u32) -> Value {
        let job_id = Uuid::new_v4();
        self.expect(kind, job_id, copies);
        self.documents += 1;
        let document_type = match self.documents % 4 {
            0 => "AADHAAR",
            1 => "PASSPORT",
            2 => "VOTER_ID",
            _ => "DRIVING_LICENSE",
        };
        json!({
            "job_id": job_id,
            "customer_id": customer_id,
            "full_address": format!("{} Rue Élysée, Mumbai 400001", self.documents),
            "document_type": document_type,
            "document_front_image_url":
                format!("https://files.example.com/{}/{job_id}/front.jpg?X-Signature=secret", kind.word),
            "document_back_image_url": format!("https://files.example.com/{}/{job_id}/back.png", kind.word),
            "document_details": {
                "document_number": format!("{:012}", 100_000_000_000 + self.documents),
                "additional_data": { "source": "demo" },
            },
        })
    }

    fn expect(&mut self, kind: &Kind, job_id: Uuid, copies: u32) {
        self.jobs.insert(job_id, Expectation { kind: kind.word, copies, states: kind.states });
    }

    fn publish(&mut self, body: &Value) {
        self.early.push(body.to_string().into_bytes());
    }

    /// Returns the customers.
    fn singles(&mut self, kind: &Kind) -> Vec<Uuid> {
        let one = |_| {
            let customer_id = Uuid::new_v4();
            let body = self.job(kind, customer_id, 1);
            self.publish(&body);
            customer_id
        };
        (0..kind.count).map(one).collect()
    }

    fn several(&mut self, kind: &Kind, per_customer: usize) {
        for _ in 0..kind.count / per_customer {
            let customer_id = Uuid::new_v4();
            for _ in 0..per_customer {
                let body = self.job(kind, customer_id, 1);
                self.publish(&body);
            }
        }
    }

    fn pairs(&mut self, kind: &Kind) {
        for _ in 0..kind.count / 2 {
            let first = self.job(kind, Uuid::new_v4(), 1);
            let mut second = self.job(kind, Uuid::new_v4(), 1);
            second["document_details"] = first["document_details"].clone();
            self.publish(&first);
            self.publish(&second);
        }
    }

    fn expired(&mut self, kind: &Kind) {
        for _ in 0..kind.count {
            let mut body = self.job(kind, Uuid::new_v4(), 1);
            body["requested_at"] = json!("2026-01-01T10:00:00Z");
            body["expires_at"] = json!("2026-01-01T11:00:00Z");
            self.publish(&body);
        }
    }

    fn twice(&mut self, kind: &Kind) {
        for _ in 0..kind.count / 2 {
            let body = self.job(kind, Uuid::new_v4(), 2);
            self.publish(&body);
            self.late.push(body.to_string().into_bytes());
        }
    }

    fn conflicts(&mut self, kind: &Kind) {
        for _ in 0..kind.count / 2 {
            let first = self.job(kind, Uuid::new_v4(), 1);
            let mut second = first.clone();
            second["full_address"] = json!("Another address altogether");
            self.publish(&first);
            let second = second.to_string().into_bytes();
            // Whichever arrives first is the job.
            self.letters.push(Letter(vec![digest(&second), digest(first.to_string().as_bytes())]));
            self.late.push(second);
        }
    }

    fn malformed(&mut self, kind: &Kind) {
        for number in 0..kind.count {
            let mut body = self.job(kind, Uuid::new_v4(), 1);
            let line = match spoil(&mut body, number % 14) {
                Spoilt::Job => body.to_string().into_bytes(),
                Spoilt::Bytes(bytes) => {
                    // Its job_id cannot be read: only the dead letter is left to tell of it.
                    let job_id = body["job_id"].as_str().and_then(|id| id.parse().ok());
                    job_id.and_then(|id: Uuid| self.jobs.remove(&id));
                    bytes
                }
            };
            self.letters.push(Letter(vec![digest(&line)]));
            self.early.push(line);
        }
    }
}

enum Spoilt {
    /// The body, whose `job_id` can still be read.
    Job,
    /// Bytes in which nothing can be read.
    Bytes(Vec<u8>),
}

fn spoil(body: &mut Value, way: usize) -> Spoilt {
    let set = |body: &mut Value, field: &str, value: Value| body[field] = value;
    match way {
        0 => set(body, "customer_id", json!("customer 17")),
        1 => set(body, "full_address", json!("   ")),
        2 => set(body, "document_type", json!("LIBRARY_CARD")),
        3 => set(body, "document_front_image_url", json!("http://files.example.com/front.jpg")),
        4 => set(body, "document_back_image_url", json!("https://files.example.com/back.exe")),
        5 => set(body, "document_details", json!({ "document_number": 12, "additional_data": [] })),
        6 => set(body, "priority", json!("high")),
        7 => set(body, "requested_at", json!("2999-01-01T00:00:00Z")),
        8 => {
            set(body, "requested_at", json!("2026-01-02T00:00:00Z"));
            set(body, "expires_at", json!("2026-01-01T00:00:00Z"));
        }
        9 => set(body, "full_address", json!("far ".repeat(20_000))),
        10 => *body = json!({ "job_id": body["job_id"] }),
        11 => return Spoilt::Bytes(body.to_string().into_bytes()[..200].to_vec()),
        12 => {
            let text = body.to_string();
            let (before, after) = text.split_once("Mumbai").unwrap_or((&text, ""));
            return Spoilt::Bytes([before.as_bytes(), b"\xff\xfe", after.as_bytes()].concat());
        }
        _ => return Spoilt::Bytes(json!([body.clone()]).to_string().into_bytes()),
    }
    Spoilt::Job
}
