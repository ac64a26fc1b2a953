//! Compares, job by job, what was published and what the provider saw with what the tables
//! say. The comparison is pure; `gather` collects what it compares. It knows nothing of how
//! the jobs were made, how the workers ran, or how often they were killed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::TryStreamExt as _;
use kyc_worker::journal::history::audit::{Audit, Finding};
use kyc_worker::seal::Fingerprinter;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use sqlx::{PgPool, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;

/// What was published.
#[derive(Clone, Default)]
pub struct Published {
    /// Every job whose `job_id` can be read. The front link of a job holds its id as a
    /// segment of the path: by it the provider's log tells whose PATCH it saw.
    pub jobs: BTreeMap<Uuid, Expectation>,
    /// Every message that must be dead-lettered.
    pub letters: Vec<Letter>,
    /// How many updates the provider allows a customer.
    pub update_limit: u32,
    /// Whether a message may have reached the queue, or the dead letters, more often than that.
    pub repeats: Repeats,
}

/// Whether messages may multiply on their way.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Repeats {
    /// As often as published, no more and no less.
    #[default]
    Refused,
    /// At least as often: publishers, brokers or workers were killed on the way.
    Allowed,
}

/// What must come of one job.
#[derive(Clone)]
pub struct Expectation {
    /// What kind of job it is, for people.
    pub kind: &'static str,
    /// How often it was published.
    pub copies: u32,
    /// The states it may end in.
    pub states: &'static [&'static str],
}

/// A message that must be dead-lettered: the SHA-256 of its body, or of any one of several
/// bodies where the order of arrival decides.
#[derive(Clone)]
pub struct Letter(pub Vec<[u8; 32]>);

/// What the broker holds once the workers have stopped.
#[derive(Clone, Default)]
pub struct AtBroker {
    /// How many messages are left in the queue.
    pub queued: u32,
    /// The SHA-256 of every dead letter's body.
    pub dead_letters: Vec<[u8; 32]>,
}

/// One PATCH in the provider's log.
#[derive(Clone, Deserialize)]
pub struct Patch {
    seq: u64,
    link: Option<String>,
    /// The one in its signature, in seconds.
    timestamp: Option<i64>,
    status: Option<i32>,
    /// The fault that it met.
    rule: Option<u64>,
}

/// One applied update in the provider's log.
#[derive(Clone, Deserialize)]
pub struct Update {
    patch_seq: Option<u64>,
    customer_id: Uuid,
    link: String,
    nth: u32,
}

/// One GET of a customer in the provider's log.
#[derive(Clone, Deserialize)]
pub struct Read {
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
    customer_id: Option<String>,
}

/// A customer as the provider has them in the end.
#[derive(Clone, Deserialize)]
pub struct Customer {
    customer_id: Uuid,
    status: String,
    failure_reason: Option<String>,
}

#[derive(Clone, Deserialize)]
struct Summary {
    in_flight_max: u32,
}

#[derive(Clone)]
struct Submission {
    job_id: Uuid,
    customer_id: Option<Uuid>,
    state: String,
    reason_code: Option<String>,
    deliveries: u32,
    has_payload: bool,
    verification_status: Option<String>,
    failure_reason: Option<String>,
    is_followed: bool,
}

#[derive(Clone)]
struct Attempt {
    job_id: Uuid,
    number: i32,
    signed_at: i64,
    verdict: Option<String>,
    http_status: Option<i32>,
}

/// All that is compared.
#[derive(Clone, Default)]
pub struct Evidence {
    published: Published,
    at_broker: AtBroker,
    patches: Vec<Patch>,
    updates: Vec<Update>,
    reads: Vec<Read>,
    customers: Vec<Customer>,
    in_flight_max: u32,
    /// In the order of precedence: the newest last.
    submissions: Vec<Submission>,
    attempts: Vec<Attempt>,
    dead_letter_rows: Vec<[u8; 32]>,
}

/// One comparison.
#[derive(Clone, Debug)]
pub struct Check {
    /// What is compared.
    pub name: &'static str,
    /// What must be.
    pub expected: usize,
    /// What is.
    pub found: usize,
    /// Every case that disagrees, with the job's id where there is one.
    pub disagreeing: Vec<String>,
}

impl Check {
    /// Whether both sides say the same.
    pub fn agrees(&self) -> bool {
        self.disagreeing.is_empty() && self.expected == self.found
    }
}

/// Collects what the provider at `admin_url` saw and what the tables say.
pub async fn gather(
    pool: &PgPool,
    admin_url: &str,
    published: Published,
    at_broker: AtBroker,
) -> anyhow::Result<Evidence> {
    #[expect(clippy::disallowed_methods, reason = "the sandbox is ours")]
    let http = reqwest::Client::new();
    let summary: Vec<Summary> = read_lines(&http, &format!("{admin_url}/oracle/summary")).await?;
    Ok(Evidence {
        published,
        at_broker,
        patches: without_probes(read_lines(&http, &format!("{admin_url}/oracle/patches")).await?),
        updates: read_lines(&http, &format!("{admin_url}/oracle/updates")).await?,
        reads: read_lines(&http, &format!("{admin_url}/oracle/reads")).await?,
        customers: read_lines(&http, &format!("{admin_url}/oracle/customers")).await?,
        in_flight_max: summary.first().map_or(0, |summary| summary.in_flight_max),
        submissions: read_submissions(pool).await?,
        attempts: read_attempts(pool).await?,
        dead_letter_rows: read_dead_letters(pool).await?,
    })
}

/// Audits what the workers chained with this key: every history must verify.
pub async fn audit(pool: &PgPool, fingerprint_key: &str) -> anyhow::Result<Check> {
    let mut audit = Audit::begin(pool, Fingerprinter::parse(fingerprint_key)?).await?;
    let (mut submissions, mut findings) = (0, Vec::new());
    while let Some(page) = audit.next_page().await? {
        submissions += page.submissions;
        findings.extend(page.findings);
    }
    findings.extend(audit.orphans().try_collect::<Vec<_>>().await?);
    let jobs: BTreeSet<Uuid> = findings.iter().map(|finding| finding.job_id).collect();
    let expected = usize::try_from(submissions)?;
    let tell = |Finding { job_id, place, what, .. }: &Finding| format!("{job_id} {place}: {what}");
    Ok(Check {
        name: "histories, each verified by its chain",
        expected,
        found: expected.saturating_sub(jobs.len()),
        disagreeing: findings.iter().map(tell).collect(),
    })
}

/// What a dead letter is recognised by.
pub fn digest(body: &[u8]) -> [u8; 32] {
    Sha256::digest(body).into()
}

async fn read_lines<T: DeserializeOwned>(http: &reqwest::Client, url: &str) -> anyhow::Result<Vec<T>> {
    let answer = http.get(url).send().await.context("the provider's log cannot be read")?;
    #[expect(clippy::disallowed_methods, reason = "the sandbox is ours")]
    let text = answer.error_for_status()?.text().await?;
    text.lines().map(|line| serde_json::from_str(line).context("the provider's log is odd")).collect()
}

async fn read_submissions(pool: &PgPool) -> anyhow::Result<Vec<Submission>> {
    let rows = sqlx::query(
        "select job_id, customer_id, state, reason_code, deliveries, sealed_payload is not null as has_payload,
            verification_status, failure_reason, verification_due_at is not null as is_followed
        from submission order by requested_at, received_at, job_id",
    );
    let read = |row: &sqlx::postgres::PgRow| -> anyhow::Result<Submission> {
        Ok(Submission {
            job_id: row.try_get("job_id")?,
            customer_id: row.try_get("customer_id")?,
            state: row.try_get("state")?,
            reason_code: row.try_get("reason_code")?,
            deliveries: row.try_get::<i32, _>("deliveries")?.unsigned_abs(),
            has_payload: row.try_get("has_payload")?,
            verification_status: row.try_get("verification_status")?,
            failure_reason: row.try_get("failure_reason")?,
            is_followed: row.try_get("is_followed")?,
        })
    };
    rows.fetch_all(pool).await?.iter().map(read).collect()
}

async fn read_attempts(pool: &PgPool) -> anyhow::Result<Vec<Attempt>> {
    let rows = sqlx::query(
        "select job_id, number, floor(extract(epoch from signed_at))::bigint as signed_at, verdict, http_status
        from attempt order by job_id, number",
    );
    let read = |row: &sqlx::postgres::PgRow| -> anyhow::Result<Attempt> {
        Ok(Attempt {
            job_id: row.try_get("job_id")?,
            number: row.try_get("number")?,
            signed_at: row.try_get("signed_at")?,
            verdict: row.try_get("verdict")?,
            http_status: row.try_get("http_status")?,
        })
    };
    rows.fetch_all(pool).await?.iter().map(read).collect()
}

async fn read_dead_letters(pool: &PgPool) -> anyhow::Result<Vec<[u8; 32]>> {
    let rows: Vec<Vec<u8>> =
        sqlx::query_scalar("select body_sha256 from dead_lettered_delivery").fetch_all(pool).await?;
    let read = |digest: Vec<u8>| digest.try_into().ok().context("a dead letter's digest has an odd length");
    rows.into_iter().map(read).collect()
}

/// Everything known of one job.
#[derive(Default)]
struct Job<'a> {
    row: Option<&'a Submission>,
    attempts: Vec<&'a Attempt>,
    patches: Vec<&'a Patch>,
    applied: usize,
}

impl Job<'_> {
    fn state(&self) -> &str {
        self.row.map_or("no row", |row| &row.state)
    }

    fn reason_code(&self) -> Option<&str> {
        self.row.and_then(|row| row.reason_code.as_deref())
    }

    fn has_attempt_of_unknown_outcome(&self) -> bool {
        self.attempts.iter().any(|attempt| attempt.is_of_unknown_outcome())
    }

    /// Whether nobody here can know if it was applied.
    fn is_of_unknown_outcome(&self) -> bool {
        let is_settled = self.state() == "needs_review" && self.reason_code() != Some("fate_unknown");
        self.has_attempt_of_unknown_outcome()
            && !is_settled
            && matches!(self.state(), "needs_review" | "unknown" | "submitting")
    }

    /// The attempt that a PATCH belongs to: the signature's timestamp tells.
    fn attempt_of(&self, patch: &Patch) -> Option<&Attempt> {
        let is_its = |attempt: &&&Attempt| Some(attempt.signed_at) == patch.timestamp;
        self.attempts.iter().rev().find(is_its).copied()
    }
}

impl Attempt {
    fn is_of_unknown_outcome(&self) -> bool {
        self.verdict.as_deref() == Some("unknown")
    }
}

/// Why the worker itself rejects a job, before anything is sent.
const BY_CHECK: [&str; 4] = ["document_type_unsupported", "link_refused", "link_not_found", "not_a_document"];

/// The states in which nothing can have been applied.
const NEVER_APPLIED: [&str; 6] = ["rejected", "invalid", "superseded", "duplicate", "exhausted", "waiting"];
const IN_MOTION: [&str; 3] = ["submitting", "waiting", "unknown"];
const KEEPS_PAYLOAD: [&str; 5] = ["submitting", "waiting", "unknown", "exhausted", "needs_review"];

/// A worker that was refused probes the provider with an update of a customer who does not
/// exist: the one PATCH without an attempt.
fn without_probes(mut patches: Vec<Patch>) -> Vec<Patch> {
    patches.retain(|patch| patch.link.as_deref().is_none_or(|link| !link.contains("//probe.invalid/")));
    patches
}

impl Evidence {
    /// How many PATCHes each of the provider's faults took.
    pub fn faults_met(&self) -> BTreeMap<u64, usize> {
        let mut faults = BTreeMap::new();
        for rule in self.patches.iter().filter_map(|patch| patch.rule) {
            *faults.entry(rule).or_default() += 1;
        }
        faults
    }

    /// How many PATCHes the provider saw, and how many updates it applied.
    pub fn seen(&self) -> (usize, usize) {
        (self.patches.len(), self.updates.len())
    }

    /// Compares everything.
    pub fn checks(&self) -> Vec<Check> {
        let jobs = self.jobs();
        let mut checks = self.promises();
        checks.extend(self.messages_are_accounted_for());
        checks.push(answers_are_given_by_the_provider(&jobs));
        checks.push(ends_are_what_the_provider_said(&jobs));
        checks
    }

    /// Compares what no fault may ever break: nothing lost, nothing spent twice.
    pub fn promises(&self) -> Vec<Check> {
        let jobs = self.jobs();
        let mut checks = Vec::from(self.nothing_is_lost(&jobs));
        checks.extend(self.nothing_is_left(&jobs));
        checks.push(self.sends_are_written_down());
        checks.extend(self.nothing_is_spent_twice(&jobs));
        checks.extend(self.order_and_last_updates_are_kept(&jobs));
        checks
    }

    /// Every job that was published, has a row, or was seen by the provider.
    fn jobs(&self) -> BTreeMap<Uuid, Job<'_>> {
        let mut jobs: BTreeMap<Uuid, Job<'_>> =
            self.published.jobs.keys().map(|id| (*id, Job::default())).collect();
        for row in &self.submissions {
            jobs.entry(row.job_id).or_default().row = Some(row);
        }
        for attempt in &self.attempts {
            jobs.entry(attempt.job_id).or_default().attempts.push(attempt);
        }
        for patch in &self.patches {
            if let Some(id) = patch.link.as_deref().and_then(job_in) {
                jobs.entry(id).or_default().patches.push(patch);
            }
        }
        for update in &self.updates {
            if let Some(id) = job_in(&update.link) {
                jobs.entry(id).or_default().applied += 1;
            }
        }
        jobs
    }

    fn nothing_is_lost(&self, jobs: &BTreeMap<Uuid, Job<'_>>) -> [Check; 4] {
        let published = || self.published.jobs.iter().map(|(id, expected)| (*id, expected, &jobs[id]));
        let has_row = count("jobs published, each with a row", published(), |(id, expected, job)| {
            job.row.is_none().then(|| format!("{id} ({}): no row", expected.kind))
        });
        let copies = |(id, expected, job): (Uuid, &Expectation, &Job<'_>)| {
            let counted = job.row.map_or(0, |row| row.deliveries);
            (counted < expected.copies)
                .then(|| format!("{id}: {} published, {counted} counted", expected.copies))
        };
        let copies = count("jobs with every delivery counted", published(), copies);
        let ended = count("jobs that ended as their kind should", published(), |(id, expected, job)| {
            (!expected.states.contains(&job.state()))
                .then(|| format!("{id} ({}): {}", expected.kind, job.state()))
        });
        let strange: Vec<String> = jobs
            .iter()
            .filter(|(id, job)| !self.published.jobs.contains_key(id) && job.state() != "invalid")
            .map(|(id, job)| format!("{id}: {}, but nobody published it", job.state()))
            .collect();
        [has_row, copies, ended, none("jobs that nobody published", strange)]
    }

    fn nothing_is_left(&self, jobs: &BTreeMap<Uuid, Job<'_>>) -> [Check; 3] {
        let rows = || self.submissions.iter();
        let in_motion = rows().filter(|row| IN_MOTION.contains(&row.state.as_str()));
        let in_motion = in_motion.map(|row| format!("{}: {}", row.job_id, row.state)).collect();
        let open =
            jobs.iter().filter(|(_, job)| job.attempts.iter().any(|attempt| attempt.verdict.is_none()));
        let open = open.map(|(id, job)| format!("{id}: {}", job.state())).collect();
        let kept = rows().filter(|row| row.has_payload && !KEEPS_PAYLOAD.contains(&row.state.as_str()));
        let kept = kept.map(|row| format!("{}: {}", row.job_id, row.state)).collect();
        [
            none("rows still in motion", in_motion),
            none("attempts still open", open),
            none("sealed payloads that nobody needs any more", kept),
        ]
    }

    fn messages_are_accounted_for(&self) -> [Check; 3] {
        let queued = self.at_broker.queued as usize;
        let repeats = self.published.repeats;
        let sorted = |digests: &[[u8; 32]]| {
            let mut sorted = digests.to_vec();
            sorted.sort_unstable();
            if repeats == Repeats::Allowed {
                sorted.dedup();
            }
            sorted
        };
        let (found, rows) = (&sorted(&self.at_broker.dead_letters), &sorted(&self.dead_letter_rows));
        let expected = &self.published.letters;
        let mut left: HashMap<[u8; 32], usize> = HashMap::new();
        for digest in found {
            *left.entry(*digest).or_default() += 1;
        }
        let mut disagreeing = Vec::new();
        for Letter(bodies) in expected {
            let arrived = bodies.iter().find(|body| left.get(*body).is_some_and(|count| *count > 0));
            match arrived.and_then(|body| left.get_mut(body)) {
                Some(count) => *count -= 1,
                None => disagreeing.push(format!("body {}: not dead-lettered", hex(&bodies[0]))),
            }
        }
        let unexpected = left.iter().filter(|(_, count)| **count > 0);
        disagreeing.extend(unexpected.map(|(body, count)| format!("body {}: {count} too many", hex(body))));

        let has_rows = found == rows;
        let without_rows = if has_rows { vec![] } else { vec!["rows and dead letters differ".to_owned()] };
        [
            Check { name: "messages left in the queue", expected: 0, found: queued, disagreeing: Vec::new() },
            Check {
                name: "malformed and conflicting messages, dead-lettered whole",
                expected: expected.len(),
                found: found.len(),
                disagreeing,
            },
            Check {
                name: "dead letters, each with a row that says why",
                expected: found.len(),
                found: rows.len(),
                disagreeing: without_rows,
            },
        ]
    }

    /// Compares every PATCH with the attempts of its job: none is sent that is not committed.
    pub fn sends_are_written_down(&self) -> Check {
        let mut check = Check::start("PATCHes the provider saw, each with its attempt");
        check.expected = self.patches.len();
        for (id, job) in self.jobs() {
            let sent = job.attempts.iter().filter(|attempt| attempt.verdict.as_deref() != Some("not_sent"));
            let sent = sent.count();
            check.found += job.patches.len().min(sent);
            if job.patches.len() > sent {
                check.disagreeing.push(format!("{id}: {} PATCHes, {sent} attempts", job.patches.len()));
            }
        }
        check
    }

    fn nothing_is_spent_twice(&self, jobs: &BTreeMap<Uuid, Job<'_>>) -> Vec<Check> {
        let in_state = |states: &'static [&'static str]| {
            jobs.iter().filter(move |(_, job)| states.contains(&job.state()))
        };
        let applied =
            |(id, job): (&Uuid, &Job<'_>)| format!("{id} ({}): applied {}×", job.state(), job.applied);
        let accepted = count("accepted jobs, applied exactly once", in_state(&["accepted"]), |case| {
            (case.1.applied != 1).then(|| applied(case))
        });
        let spared = count("jobs that ended otherwise, never applied", in_state(&NEVER_APPLIED), |case| {
            (case.1.applied != 0).then(|| applied(case))
        });
        let review =
            count("jobs left to a person, each with a reason to", in_state(&["needs_review"]), |case| {
                let has_reason = match case.1.reason_code() {
                    Some("refused_like_others" | "refused_only_for_this_job") => true,
                    Some("newer_fate_unknown") => self.has_newer_of_unknown_outcome(jobs, *case.0),
                    _ => case.1.has_attempt_of_unknown_outcome(),
                };
                (!has_reason).then(|| applied(case))
            });

        let mut known = Check::start("updates applied, each in an accepted job or one of unknown outcome");
        known.expected = self.updates.len();
        for (id, job) in jobs.iter().filter(|(_, job)| job.applied > 0) {
            if job.state() == "accepted" || job.is_of_unknown_outcome() {
                known.found += job.applied;
            } else {
                known.disagreeing.push(applied((id, job)));
            }
        }

        let not_applied = |job: &Job<'_>| {
            matches!(job.reason_code(), Some("last_update" | "newer_fate_unknown"))
                && job.state() == "needs_review"
        };
        let read_wrong = jobs.iter().filter(|(_, job)| not_applied(job) && job.applied > 0);
        let read_wrong = read_wrong.map(applied).collect();
        let twice = jobs.iter().filter(|(_, job)| job.applied > 1).map(applied).collect();
        let over = self.updates.iter().filter(|update| update.nth > self.published.update_limit);
        let over: BTreeSet<Uuid> = over.map(|update| update.customer_id).collect();
        let over = over.iter().map(|id| format!("customer {id}")).collect();
        let mut checks = vec![
            accepted,
            spared,
            review,
            known,
            none("jobs that were not applied, says a read, and were", read_wrong),
            none("jobs applied twice", twice),
            none("customers updated more often than allowed", over),
        ];
        // A worker that is stopped keeps its connection open, long after another has seen that its
        // update was applied and has rightly gone on: where workers are stopped this says nothing.
        if self.published.repeats == Repeats::Refused {
            checks.push(Check {
                name: "PATCHes sent while another of the customer was open",
                expected: 0,
                found: (self.in_flight_max as usize).saturating_sub(1),
                disagreeing: Vec::new(),
            });
        }
        checks
    }
}

impl Evidence {
    /// Whether the customer has another job whose outcome nobody knows: an older one waits for a
    /// person as long as that.
    fn has_newer_of_unknown_outcome(&self, jobs: &BTreeMap<Uuid, Job<'_>>, job_id: Uuid) -> bool {
        let newer = self.submissions.iter().rev().take_while(|row| row.job_id != job_id);
        let customer_id = jobs[&job_id].row.and_then(|row| row.customer_id);
        newer
            .filter(|row| row.customer_id == customer_id)
            .any(|row| jobs[&row.job_id].has_attempt_of_unknown_outcome())
    }

    fn order_and_last_updates_are_kept(&self, jobs: &BTreeMap<Uuid, Job<'_>>) -> [Check; 2] {
        let places: HashMap<Uuid, usize> =
            self.submissions.iter().enumerate().map(|(place, row)| (row.job_id, place)).collect();
        let patches: HashMap<u64, &Patch> = self.patches.iter().map(|patch| (patch.seq, patch)).collect();
        let mut newest: HashMap<Uuid, usize> = HashMap::new();
        let (mut disordered, mut last_taken) = (Vec::new(), Vec::new());
        for update in &self.updates {
            let Some(job_id) = job_in(&update.link) else { continue };
            let place = places.get(&job_id).copied().unwrap_or_default();
            let newest = newest.entry(update.customer_id).or_insert(place);
            if place < *newest {
                disordered.push(format!("{job_id}: applied after a newer job of its customer"));
            }
            *newest = place.max(*newest);

            let patch = update.patch_seq.and_then(|seq| patches.get(&seq));
            let job = &jobs[&job_id];
            let attempt = patch.and_then(|patch| job.attempt_of(patch));
            let number = attempt.map_or(1, |attempt| attempt.number);
            let is_resend =
                job.attempts.iter().any(|before| before.number < number && before.is_of_unknown_outcome());
            if is_resend && update.nth == self.published.update_limit {
                last_taken.push(format!("{job_id}: attempt {number} took update {}", update.nth));
            }
        }
        [
            none("updates applied after a newer one of the customer", disordered),
            none("last updates taken by a resend", last_taken),
        ]
    }
}

impl Evidence {
    /// Compares the ends of all verifications with what the provider has, and how often it
    /// was asked.
    pub fn verification_checks(&self, apart_min: Duration) -> Vec<Check> {
        let accepted = || self.submissions.iter().filter(|row| row.state == "accepted");
        let followed = accepted().filter(|row| row.is_followed);
        let followed = followed.map(|row| format!("{}: still followed", row.job_id)).collect();
        // The newest of a customer's accepted jobs comes last, and is the one that was followed.
        let newest: BTreeMap<Option<Uuid>, &Submission> =
            accepted().map(|row| (row.customer_id, row)).collect();
        let customers: HashMap<Uuid, &Customer> =
            self.customers.iter().map(|customer| (customer.customer_id, customer)).collect();
        let ends = "verifications, each ended as the provider has it";
        // What a job of unknown outcome may have begun after it, nobody knows.
        let unknown = self.submissions.iter().filter(|row| row.state == "needs_review");
        let unknown: BTreeSet<Option<Uuid>> = unknown.map(|row| row.customer_id).collect();
        let known = newest.values().filter(|row| !unknown.contains(&row.customer_id));
        let ends = count(ends, known, |row| {
            let ours = (row.verification_status.as_deref(), row.failure_reason.as_deref());
            let customer = row.customer_id.and_then(|id| customers.get(&id));
            let theirs =
                customer.map(|customer| (Some(customer.status.as_str()), customer.failure_reason.as_deref()));
            let is_end = matches!(ours.0, Some("VERIFIED" | "FAILED"));
            (!is_end || theirs != Some(ours)).then(|| format!("{}: {ours:?}, {theirs:?}", row.job_id))
        });
        vec![
            none("accepted jobs still followed", followed),
            ends,
            self.nobody_is_asked_for_too_often(apart_min),
        ]
    }

    /// Reads that settle an unknown outcome come when they must; all others keep their distance.
    fn nobody_is_asked_for_too_often(&self, apart_min: Duration) -> Check {
        let in_doubt: BTreeSet<Uuid> = self
            .attempts
            .iter()
            .filter(|attempt| attempt.is_of_unknown_outcome())
            .map(|attempt| attempt.job_id)
            .collect();
        let in_doubt = self.submissions.iter().filter(|row| in_doubt.contains(&row.job_id));
        let in_doubt: BTreeSet<String> =
            in_doubt.filter_map(|row| Some(row.customer_id?.to_string())).collect();
        let mut reads: BTreeMap<&str, Vec<OffsetDateTime>> = BTreeMap::new();
        for read in &self.reads {
            if let Some(id) = read.customer_id.as_deref().filter(|id| !in_doubt.contains(*id)) {
                reads.entry(id).or_default().push(read.at);
            }
        }
        let nil = Uuid::nil().to_string();
        let too_often = reads.iter().filter(|(id, reads)| {
            // The nil customer is the breaker's probe, and nobody.
            **id != nil.as_str() && reads.windows(2).any(|pair| pair[1] - pair[0] < apart_min)
        });
        none("customers asked for too often", too_often.map(|(id, _)| format!("customer {id}")).collect())
    }
}

/// No attempt knows an answer that the provider did not give.
fn answers_are_given_by_the_provider(jobs: &BTreeMap<Uuid, Job<'_>>) -> Check {
    let mut check = Check::start("answers in our attempts, each given by the provider");
    for (id, job) in jobs {
        let mut given: Vec<i32> = job.patches.iter().filter_map(|patch| patch.status).collect();
        for status in job.attempts.iter().filter_map(|attempt| attempt.http_status) {
            check.expected += 1;
            match given.iter().position(|given| *given == status) {
                Some(at) => {
                    given.swap_remove(at);
                    check.found += 1;
                }
                None => check.disagreeing.push(format!("{id}: {status} was never answered")),
            }
        }
    }
    check
}

/// Jobs that met no fault end as the provider's answers say.
fn ends_are_what_the_provider_said(jobs: &BTreeMap<Uuid, Job<'_>>) -> Check {
    let untouched = jobs.iter().filter(|(_, job)| {
        let is_open = |attempt: &&Attempt| attempt.verdict.is_none();
        job.row.is_some()
            && !job.has_attempt_of_unknown_outcome()
            && !job.attempts.iter().any(is_open)
            && job.patches.iter().all(|patch| patch.rule.is_none())
    });
    count("jobs that met no fault, ended as the provider said", untouched, |(id, job)| {
        let is_right = match (job.applied, job.state()) {
            (1, "accepted") => true,
            (0, "rejected") if job.reason_code().is_some_and(|code| BY_CHECK.contains(&code)) => {
                job.patches.is_empty()
            }
            (0, "rejected") => job.patches.iter().any(|patch| patch.status == Some(400)),
            (0, "superseded" | "duplicate" | "exhausted" | "invalid") => true,
            (0, "needs_review") => {
                let reasons = ["newer_fate_unknown", "refused_like_others", "refused_only_for_this_job"];
                job.reason_code().is_some_and(|code| reasons.contains(&code))
            }
            _ => false,
        };
        (!is_right).then(|| format!("{id}: {}, applied {}×", job.state(), job.applied))
    })
}

impl Check {
    fn start(name: &'static str) -> Self {
        Self { name, expected: 0, found: 0, disagreeing: Vec::new() }
    }
}

/// A comparison of every case: `fault` says what is wrong with one.
fn count<T>(
    name: &'static str,
    cases: impl Iterator<Item = T>,
    fault: impl Fn(T) -> Option<String>,
) -> Check {
    let mut check = Check::start(name);
    for case in cases {
        check.expected += 1;
        match fault(case) {
            Some(fault) => check.disagreeing.push(fault),
            None => check.found += 1,
        }
    }
    check
}

/// A comparison with nothing.
fn none(name: &'static str, disagreeing: Vec<String>) -> Check {
    Check { name, expected: 0, found: disagreeing.len(), disagreeing }
}

/// The job whose link it is: the segment of the path that is a UUID.
fn job_in(link: &str) -> Option<Uuid> {
    let path = link.split(['?', '#']).next().unwrap_or_default();
    path.split('/').find_map(|segment| Uuid::parse_str(segment).ok())
}

fn hex(digest: &[u8; 32]) -> String {
    digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect::<String>() + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCEPTED: Uuid = Uuid::from_u128(1);
    const REJECTED: Uuid = Uuid::from_u128(2);
    const LOST: Uuid = Uuid::from_u128(3);

    fn row(job_id: Uuid, state: &str) -> Submission {
        let has_payload = state == "needs_review";
        let reason_code = (state == "needs_review").then(|| "fate_unknown".to_owned());
        // The one of unknown outcome is another customer's.
        let customer_id = Some(if has_payload { Uuid::from_u128(8) } else { Uuid::nil() });
        Submission {
            job_id,
            customer_id,
            state: state.to_owned(),
            reason_code,
            deliveries: 1,
            has_payload,
            verification_status: (state == "accepted").then(|| "VERIFIED".to_owned()),
            failure_reason: None,
            is_followed: false,
        }
    }

    fn attempt(job_id: Uuid, verdict: &str, http_status: i32) -> Attempt {
        let verdict = Some(verdict.to_owned());
        Attempt { job_id, number: 1, signed_at: 7, verdict, http_status: Some(http_status) }
    }

    fn link(job_id: Uuid) -> String {
        format!("https://files.example.com/{job_id}/front.jpg?signed")
    }

    fn patch(job_id: Uuid, status: i32) -> Patch {
        let seq = u64::from(job_id.as_bytes()[15]);
        Patch { seq, link: Some(link(job_id)), timestamp: Some(7), status: Some(status), rule: None }
    }

    fn update(job_id: Uuid) -> Update {
        let patch_seq = Some(u64::from(job_id.as_bytes()[15]));
        Update { patch_seq, customer_id: Uuid::nil(), link: link(job_id), nth: 1 }
    }

    fn read(at_seconds: u64) -> Read {
        let at = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(at_seconds);
        Read { at, customer_id: Some(Uuid::from_u128(7).to_string()) }
    }

    /// One job accepted, one rejected, one of unknown outcome that was applied, one dead letter.
    fn sound() -> Evidence {
        let expectation = |states| Expectation { kind: "plain", copies: 1, states };
        Evidence {
            published: Published {
                jobs: BTreeMap::from([
                    (ACCEPTED, expectation(&["accepted"])),
                    (REJECTED, expectation(&["rejected"])),
                    (LOST, expectation(&["accepted", "needs_review"])),
                ]),
                letters: vec![Letter(vec![[7; 32], [8; 32]])],
                update_limit: 3,
                repeats: Repeats::Refused,
            },
            at_broker: AtBroker { queued: 0, dead_letters: vec![[8; 32]] },
            patches: vec![patch(ACCEPTED, 200), patch(REJECTED, 400), patch(LOST, 500)],
            updates: vec![update(ACCEPTED), update(LOST)],
            reads: vec![read(0), read(60)],
            customers: vec![Customer {
                customer_id: Uuid::nil(),
                status: "VERIFIED".to_owned(),
                failure_reason: None,
            }],
            in_flight_max: 1,
            submissions: vec![
                row(ACCEPTED, "accepted"),
                row(REJECTED, "rejected"),
                row(LOST, "needs_review"),
            ],
            attempts: vec![
                attempt(ACCEPTED, "accepted", 200),
                attempt(REJECTED, "rejected", 400),
                attempt(LOST, "unknown", 500),
            ],
            dead_letter_rows: vec![[8; 32]],
        }
    }

    #[track_caller]
    fn check(spoil: impl FnOnce(&mut Evidence), expected: &[&str]) {
        let mut evidence = sound();
        spoil(&mut evidence);
        let mut checks = evidence.checks();
        checks.extend(evidence.verification_checks(Duration::from_secs(60)));
        let disagreeing: Vec<_> =
            checks.iter().filter(|check| !check.agrees()).map(|check| check.name).collect();
        assert_eq!(disagreeing.len(), expected.len(), "{disagreeing:?}");
        for (name, expected) in disagreeing.iter().zip(expected) {
            assert!(name.contains(expected), "{disagreeing:?}");
        }
    }

    #[test]
    fn sound_evidence_agrees() {
        check(|_| {}, &[]);
    }

    #[test]
    fn a_lost_job_or_delivery_shows() {
        let row = "each with a row";
        let lost = |evidence: &mut Evidence| drop(evidence.submissions.remove(1));
        check(lost, &[row, "every delivery counted", "as their kind should"]);
        let copies = |evidence: &mut Evidence| {
            evidence.published.jobs.entry(ACCEPTED).and_modify(|job| job.copies = 2);
        };
        check(copies, &["every delivery counted"]);
        check(|evidence| evidence.at_broker.queued = 1, &["left in the queue"]);
        check(
            |evidence| evidence.attempts[2].verdict = None,
            &["still open", "a reason to", "applied, each in"],
        );
    }

    #[test]
    fn a_dead_letter_too_few_or_too_many_shows() {
        let gone = |evidence: &mut Evidence| evidence.at_broker.dead_letters.clear();
        check(gone, &["dead-lettered whole", "a row that says why"]);
        let other = |evidence: &mut Evidence| {
            evidence.at_broker.dead_letters = vec![[9; 32]];
            evidence.dead_letter_rows = vec![[9; 32]];
        };
        check(other, &["dead-lettered whole"]);
        check(|evidence| evidence.dead_letter_rows.clear(), &["a row that says why"]);
    }

    #[test]
    fn a_send_that_was_not_written_down_shows() {
        check(|evidence| evidence.patches.push(patch(ACCEPTED, 200)), &["each with its attempt"]);
        let unsent = |evidence: &mut Evidence| evidence.attempts.push(attempt(ACCEPTED, "not_sent", 200));
        check(unsent, &["each given by the provider"]);
        let stranger = |evidence: &mut Evidence| evidence.patches.push(patch(Uuid::from_u128(9), 400));
        check(stranger, &["nobody published", "each with its attempt"]);
    }

    #[test]
    fn a_wrong_end_shows() {
        let never = |evidence: &mut Evidence| drop(evidence.updates.remove(0));
        check(never, &["applied exactly once", "as the provider said"]);
        let late = |evidence: &mut Evidence| evidence.updates.push(update(REJECTED));
        check(
            late,
            &[
                "never applied",
                "an accepted job or one of unknown outcome",
                "after a newer",
                "as the provider said",
            ],
        );
        let sure = |evidence: &mut Evidence| evidence.attempts[2].verdict = Some("throttled".to_owned());
        check(sure, &["a reason to", "an accepted job or one of unknown outcome", "as the provider said"]);
        check(|evidence| evidence.submissions[0].has_payload = true, &["payloads"]);
    }

    #[test]
    fn an_update_spent_twice_shows() {
        let twice = |evidence: &mut Evidence| evidence.updates.push(update(ACCEPTED));
        check(twice, &["applied exactly once", "applied twice", "after a newer", "as the provider said"]);
        let resent = |evidence: &mut Evidence| {
            let second = attempt(LOST, "accepted", 500);
            evidence.attempts.push(Attempt { number: 2, signed_at: 9, http_status: None, ..second });
            evidence.patches[2].timestamp = Some(9);
            evidence.updates[1].nth = 3;
        };
        check(resent, &["taken by a resend"]);
        check(|evidence| evidence.updates[0].nth = 4, &["more often than allowed"]);
        check(|evidence| evidence.in_flight_max = 2, &["while another"]);
    }

    #[test]
    fn a_verification_that_did_not_end_or_ended_otherwise_shows() {
        let ended = "ended as the provider has it";
        check(|evidence| evidence.submissions[0].is_followed = true, &["still followed"]);
        check(|evidence| evidence.submissions[0].verification_status = None, &[ended]);
        check(|evidence| evidence.customers[0].status = "FAILED".to_owned(), &[ended]);
        check(|evidence| evidence.customers.clear(), &[ended]);
        let both = |evidence: &mut Evidence| {
            evidence.submissions[0].verification_status = Some("PROCESSING".to_owned());
            evidence.customers[0].status = "PROCESSING".to_owned();
        };
        check(both, &[ended]);
    }

    #[test]
    fn a_customer_that_was_asked_for_too_often_shows() {
        check(|evidence| evidence.reads.push(read(119)), &["asked for too often"]);
        check(|evidence| evidence.reads.push(read(120)), &[]);
    }
}
