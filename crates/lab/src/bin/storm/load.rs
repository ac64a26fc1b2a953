//! What the storm publishes, for as long as it lasts: customers with one job, with several and
//! with a hundred, jobs published twice, jobs that ask for the same, what is no job at all, and
//! what a client library chokes on.
//! Knows no service.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;
use uuid::Uuid;

use kyc_lab::books::{Expectation, Letter, Published, Repeats, digest};

/// How many updates the provider allows a customer.
pub const UPDATE_LIMIT: u32 = 3;

/// A customer has one job more than updates at most, so that some meet the limit.
const JOBS_PER_CUSTOMER_MAX: usize = UPDATE_LIMIT as usize + 1;

/// One customer has as many, all at once, for each so many others.
const HOT_JOBS: usize = 100;
const HOT_EVERY: u64 = 1000;

/// Longer than any job may be.
const GIANT_BYTES: usize = 1024 * 1024;

/// How deep a poisoned message's headers are nested: client libraries differ in what they survive.
const POISON_DEPTH: u16 = 100;

const ACCEPTED: &[&str] = &["accepted", "needs_review"];
/// One customer's jobs: a newer one may replace an older, and the updates may run out.
const ONE_OF_SEVERAL: &[&str] = &["accepted", "superseded", "rejected", "needs_review"];
const UNSUPPORTED: &[&str] = &["rejected", "needs_review"];
const ONE_OF_TWINS: &[&str] = &["accepted", "superseded", "duplicate", "rejected", "needs_review"];

/// A message to publish.
pub struct Message {
    /// Its job, where it is one.
    pub job_id: Option<Uuid>,
    pub body: Vec<u8>,
    /// How deep its headers are nested.
    pub depth: u16,
    /// A customer who has not been seen before, and how their verifications end.
    pub introduces: Option<(Uuid, &'static str)>,
}

/// Makes messages from a seed.
pub struct Load {
    rng: StdRng,
    published: Published,
    /// Customers with several jobs, and how many they have.
    customers: Vec<(Uuid, usize)>,
    /// Made, and not handed out yet.
    ready: VecDeque<Message>,
    /// Second copies, and when they are due.
    later: Vec<(Instant, Uuid, Vec<u8>)>,
    documents: u64,
    made: u64,
    last_requested_at: OffsetDateTime,
}

impl Load {
    pub fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            published: Published {
                jobs: BTreeMap::new(),
                letters: Vec::new(),
                update_limit: UPDATE_LIMIT,
                // A publisher that got no confirmation publishes again, and so does a broker.
                repeats: Repeats::Allowed,
            },
            customers: Vec::new(),
            ready: VecDeque::new(),
            later: Vec::new(),
            documents: 0,
            made: 0,
            last_requested_at: OffsetDateTime::now_utc(),
        }
    }

    /// How many jobs there are, those that are no jobs left out.
    pub fn jobs(&self) -> usize {
        self.published.jobs.len()
    }

    /// The next message.
    pub fn next(&mut self) -> Message {
        if let Some(at) = self.later.iter().position(|(due, ..)| *due <= Instant::now()) {
            return self.second_copy(at);
        }
        loop {
            if let Some(message) = self.ready.pop_front() {
                return message;
            }
            self.make();
        }
    }

    /// What is still to be published when nothing new is made any more.
    pub fn next_of_the_rest(&mut self) -> Option<Message> {
        match self.ready.pop_front() {
            None if self.later.is_empty() => None,
            None => Some(self.second_copy(0)),
            message => message,
        }
    }

    /// Notes that the broker has confirmed a message.
    pub fn confirmed(&mut self, message: &Message) {
        match message.job_id {
            Some(id) => {
                self.published.jobs.entry(id).and_modify(|job| job.copies += 1);
            }
            None => self.published.letters.push(Letter(vec![digest(&message.body)])),
        }
    }

    /// How many messages must be dead-lettered.
    pub fn letters(&self) -> usize {
        self.published.letters.len()
    }

    /// All that was published.
    pub fn into_published(self) -> Published {
        self.published
    }

    fn second_copy(&mut self, at: usize) -> Message {
        let (_, job_id, body) = self.later.swap_remove(at);
        Message { job_id: Some(job_id), body, depth: 0, introduces: None }
    }

    fn make(&mut self) {
        self.made += 1;
        // Early, so that the shortest storm has one.
        if self.made % HOT_EVERY == 100 {
            return self.hot();
        }
        match self.rng.random_range(0..100) {
            0..10 => self.several(),
            10..17 => self.returning(),
            17..20 => self.twins(),
            20..22 => self.malformed(),
            22 => self.poisoned(),
            23..35 => self.repeated(),
            35..39 => self.unsupported(),
            _ => {
                let (job_id, body) = self.job("plain", Uuid::new_v4(), ACCEPTED);
                self.push(job_id, &body, None);
            }
        }
    }

    fn job(
        &mut self,
        kind: &'static str,
        customer_id: Uuid,
        states: &'static [&'static str],
    ) -> (Uuid, Value) {
        let job_id = Uuid::new_v4();
        self.published.jobs.insert(job_id, Expectation { kind, copies: 0, states });
        self.documents += 1;
        // Never twice the same: so it is the publisher who says which job is newer.
        self.last_requested_at =
            OffsetDateTime::now_utc().max(self.last_requested_at + Duration::from_millis(1));
        let body = json!({
            "job_id": job_id,
            "customer_id": customer_id,
            "requested_at": self.last_requested_at.format(&Rfc3339).unwrap_or_default(),
            "full_address": format!("{} Rue Élysée, Mumbai 400001", self.documents),
            "document_type": "PASSPORT",
            "document_front_image_url": format!("https://files.example.com/{kind}/{job_id}/front.jpg?signed"),
            "document_back_image_url": format!("https://files.example.com/{kind}/{job_id}/back.png"),
            "document_details": {
                "document_number": format!("{:012}", 100_000_000_000 + self.documents),
                "additional_data": {},
            },
        });
        (job_id, body)
    }

    fn push(&mut self, job_id: Uuid, body: &Value, introduces: Option<(Uuid, &'static str)>) {
        self.ready.push_back(Message {
            job_id: Some(job_id),
            body: body.to_string().into_bytes(),
            depth: 0,
            introduces,
        });
    }

    /// A customer with so many jobs at once that whoever walked them all would have time for nobody
    /// else.
    fn hot(&mut self) {
        let (customer_id, introduces) = self.customer();
        let mut jobs: Vec<_> = (0..HOT_JOBS).map(|_| self.job("hot", customer_id, ONE_OF_SEVERAL)).collect();
        jobs.shuffle(&mut self.rng);
        for (at, (job_id, body)) in jobs.into_iter().enumerate() {
            self.push(job_id, &body, introduces.filter(|_| at == 0));
        }
    }

    /// Several jobs of a new customer, published in any order.
    fn several(&mut self) {
        let (customer_id, introduces) = self.customer();
        let count = self.rng.random_range(2..=3);
        self.customers.push((customer_id, count));
        let mut jobs: Vec<_> = (0..count).map(|_| self.job("several", customer_id, ONE_OF_SEVERAL)).collect();
        jobs.shuffle(&mut self.rng);
        for (at, (job_id, body)) in jobs.into_iter().enumerate() {
            self.push(job_id, &body, introduces.filter(|_| at == 0));
        }
    }

    /// Another job of a customer who has had some.
    fn returning(&mut self) {
        self.customers.retain(|(_, jobs)| *jobs < JOBS_PER_CUSTOMER_MAX);
        if self.customers.is_empty() {
            return self.several();
        }
        let at = self.rng.random_range(0..self.customers.len());
        self.customers[at].1 += 1;
        let (job_id, body) = self.job("returning", self.customers[at].0, ONE_OF_SEVERAL);
        self.push(job_id, &body, None);
    }

    /// Two jobs of one customer that ask for the same.
    fn twins(&mut self) {
        let (customer_id, introduces) = self.customer();
        let (first_id, first) = self.job("twins", customer_id, ONE_OF_TWINS);
        let (second_id, mut second) = self.job("twins", customer_id, ONE_OF_TWINS);
        for field in ["full_address", "document_details"] {
            second[field] = first[field].clone();
        }
        self.push(first_id, &first, introduces);
        self.push(second_id, &second, None);
    }

    /// A job that is published again, soon or late.
    fn repeated(&mut self) {
        let (job_id, body) = self.job("repeated", Uuid::new_v4(), ACCEPTED);
        self.push(job_id, &body, None);
        for _ in 0..self.rng.random_range(1..=2) {
            let due = Instant::now() + Duration::from_millis(self.rng.random_range(0..15_000));
            self.later.push((due, job_id, body.to_string().into_bytes()));
        }
    }

    /// A job of a type that the provider does not list for the customer: it costs nothing.
    fn unsupported(&mut self) {
        let (job_id, mut body) = self.job("unsupported", Uuid::new_v4(), UNSUPPORTED);
        body["document_type"] = json!("LIBRARY_CARD");
        self.push(job_id, &body, None);
    }

    fn malformed(&mut self) {
        let mut body = self.no_job("malformed");
        body["document_type"] = json!("library card");
        self.push_letter(&body, 0);
    }

    /// A message that is far too large, or whose headers no recursion survives: it ends in the dead
    /// letters, and takes nobody along.
    fn poisoned(&mut self) {
        let mut body = self.no_job("poisoned");
        if self.rng.random_bool(0.5) {
            body["full_address"] = json!("1 Rue Élysée ".repeat(GIANT_BYTES / 13));
            self.push_letter(&body, 0);
        } else {
            self.push_letter(&body, POISON_DEPTH);
        }
    }

    fn no_job(&mut self, kind: &'static str) -> Value {
        let (job_id, body) = self.job(kind, Uuid::new_v4(), &["invalid"]);
        self.published.jobs.remove(&job_id);
        body
    }

    fn push_letter(&mut self, body: &Value, depth: u16) {
        let body = body.to_string().into_bytes();
        self.ready.push_back(Message { job_id: None, body, depth, introduces: None });
    }

    /// Most customers come back because their verification failed.
    fn customer(&mut self) -> (Uuid, Option<(Uuid, &'static str)>) {
        let id = Uuid::new_v4();
        let ends = if self.rng.random_bool(0.75) { "FAILED" } else { "VERIFIED" };
        (id, Some((id, ends)))
    }
}
