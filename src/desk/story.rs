//! The story of one job, as people read it.

use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::desk::dead_letters::{DeadLetterView, dead_letters_of};
use crate::desk::interventions::{InterventionView, interventions_of};
use crate::desk::version::Version;
use crate::domain::outcome::EXPIRED;
use crate::domain::state::Purpose;
use crate::domain::suspicion::Customer;
use crate::domain::verdict::Rejection;
use crate::journal::statements::customers::read_customers;

/// How many of a customer's updates are spent, as far as the records know.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Spent {
    /// Attempts accepted, or ever of unknown outcome, each once.
    pub here: u32,
    /// Those that a person told us of.
    pub elsewhere: u32,
}

impl Spent {
    pub(crate) fn of(customer: &Customer) -> Self {
        // Of any limit.
        let budget = customer.budget(u32::MAX);
        Self { here: budget.spent_here, elsewhere: budget.spent_elsewhere }
    }

    /// What was known when somebody saw it.
    pub fn version(self) -> Version {
        format!("{} spent here, {} elsewhere", self.here, self.elsewhere).into()
    }
}

/// How many of a customer's updates are spent; `None` of an invalid job that named none.
pub(crate) async fn spent(
    connection: &mut PgConnection,
    customer_id: Option<Uuid>,
) -> sqlx::Result<Option<Spent>> {
    let Some(customer_id) = customer_id else { return Ok(None) };
    let customers = read_customers(connection, [(customer_id, None)]).await?;
    Ok(Some(customers.get(&customer_id).map(Spent::of).unwrap_or_default()))
}

/// A submission as people see it.
#[derive(Debug, Deserialize, Serialize)]
pub struct SubmissionView {
    pub job_id: Uuid,
    pub customer_id: Option<Uuid>,
    pub document_type: Option<String>,
    pub document_number_last4: Option<String>,
    pub state: String,
    pub waiting_for: Option<String>,
    pub reason_code: Option<String>,
    pub reason: Option<String>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub due_at: Option<OffsetDateTime>,
    pub deliveries: i32,
    pub claimed_by: Option<String>,
    /// When its claim's lease ends.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub claimed_until: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub requested_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339")]
    pub received_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
    /// The signed link that sets it; none where the job's own field does.
    pub expiring_link: Option<String>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    pub provider_reference: Option<String>,
    pub evidence: Option<String>,
    pub verification_status: Option<String>,
    pub failure_reason: Option<String>,
    /// When its verification is read next.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub verification_due_at: Option<OffsetDateTime>,
    pub correlation_id: Option<String>,
    /// The trace that it was published in.
    pub trace_id: Option<String>,
    /// No archived job has one.
    #[serde(default)]
    pub has_payload: bool,
}

/// An attempt as people see it.
#[derive(Debug, Deserialize, Serialize)]
pub struct AttemptView {
    pub job_id: Uuid,
    pub number: i32,
    pub worker: String,
    #[serde(with = "time::serde::rfc3339")]
    pub begun_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    pub verdict: Option<String>,
    pub late_verdict: Option<String>,
    pub detail: Option<String>,
    pub http_status: Option<i32>,
    pub provider_message: Option<String>,
    pub error: Option<String>,
    pub duration_ms: Option<i32>,
    /// What was checked before its send, and passed.
    pub checked: Option<String>,
}

/// How many attempts of a job are told, and how many reads, the newest: few have ten.
const ENTRIES_MAX: i64 = 500;

/// The story of one job.
#[derive(Debug, Serialize)]
pub struct JobStory {
    pub submission: SubmissionView,
    pub attempts: Vec<AttemptView>,
    /// The reads of its customer, in order.
    pub observations: Vec<ObservationView>,
    /// What people did to it, in order.
    pub interventions: Vec<InterventionView>,
    /// Its deliveries that were dead-lettered.
    pub dead_letters: Vec<DeadLetterView>,
    /// Whether older attempts or reads are left out.
    pub is_cut: bool,
    pub spent: Option<Spent>,
    /// The customer's other jobs that nothing orders before or after this one: both were asked
    /// for at the same time, or within a minute of each other and dated by their receipt alone.
    pub unordered_with: Vec<Uuid>,
    /// The file of the archive that it was read from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archived_in: Option<String>,
}

/// A read of a customer as people see it.
#[derive(Debug, Deserialize, Serialize)]
pub struct ObservationView {
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    pub purpose: String,
    pub status: Option<String>,
    pub failure_reason: Option<String>,
    pub error: Option<String>,
    pub conclusion: Option<String>,
    /// Of a configuration: the types that the customer may use.
    pub document_types: Option<String>,
}

/// The story of one job; `None` if it is not known.
pub async fn job_story(pool: &PgPool, job_id: Uuid) -> sqlx::Result<Option<JobStory>> {
    let mut connection = pool.acquire().await?;
    let Some(submission) = submission(&mut connection, job_id).await? else { return Ok(None) };
    let mut attempts = attempts(&mut connection, job_id).await?;
    let mut observations = observations(&mut connection, job_id).await?;
    let is_cut = [cut(&mut attempts), cut(&mut observations)].contains(&true);
    let interventions = interventions_of(&mut connection, job_id).await?;
    let dead_letters = dead_letters_of(&mut connection, job_id).await?;
    let spent = spent(&mut connection, submission.customer_id).await?;
    let unordered_with = unordered_with(&mut connection, job_id).await?;
    Ok(Some(JobStory {
        submission,
        attempts,
        observations,
        interventions,
        dead_letters,
        is_cut,
        spent,
        unordered_with,
        archived_in: None,
    }))
}

/// Takes the oldest out of what has more than is told, and puts the rest in order. Says whether it has.
fn cut<T>(newest_first: &mut Vec<T>) -> bool {
    let is_cut = i64::try_from(newest_first.len()).is_ok_and(|count| count > ENTRIES_MAX);
    newest_first.truncate(newest_first.len() - usize::from(is_cut));
    newest_first.reverse();
    is_cut
}

/// One more attempt than is told, the newest first.
async fn attempts(connection: &mut PgConnection, job_id: Uuid) -> sqlx::Result<Vec<AttemptView>> {
    sqlx::query_as!(
        AttemptView,
        "-- show_attempts
        select
            job_id, number, worker, begun_at, ended_at, verdict, late_verdict, detail, http_status,
            provider_message, error, duration_ms, checked
        from attempt
        where job_id = $1
        order by number desc
        limit $2",
        job_id,
        ENTRIES_MAX + 1,
    )
    .fetch_all(connection)
    .await
}

/// One more read than is told, the newest first.
async fn observations(connection: &mut PgConnection, job_id: Uuid) -> sqlx::Result<Vec<ObservationView>> {
    sqlx::query_as!(
        ObservationView,
        "-- show_observations
        select at, purpose, status, failure_reason, error, conclusion, document_types
        from observation
        where job_id = $1
        order by id desc
        limit $2",
        job_id,
        ENTRIES_MAX + 1,
    )
    .fetch_all(connection)
    .await
}

/// The customer's other jobs that nothing orders before or after this one.
async fn unordered_with(connection: &mut PgConnection, job_id: Uuid) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar!(
        r#"-- show_unordered
        -- Of those that nothing was sent of there may be very many: an index has those of a span of time.
        select other.job_id as "job_id!"
        from submission s
        cross join lateral (
            select job_id, requested_at, received_at, content_hmac
            from submission
            where customer_id = s.customer_id and attempts > 0
            union all
            (
                select job_id, requested_at, received_at, content_hmac
                from submission
                where customer_id = s.customer_id and attempts = 0
                    and requested_at >= s.requested_at - interval '1 min' and requested_at <= s.requested_at + interval '1 min'
                -- In the order of that index, so that Postgres reads that whatever it thinks of the table.
                order by requested_at desc nulls last, received_at desc, job_id desc
                offset 0
            )
        ) other
        where s.job_id = $1 and other.job_id <> s.job_id and s.content_hmac is distinct from other.content_hmac
            and (
                s.requested_at = other.requested_at
                -- Dated by their receipt alone.
                or s.requested_at = s.received_at and other.requested_at = other.received_at
                    and abs(extract(epoch from s.received_at - other.received_at)) < 60
            )
        order by other.received_at"#,
        job_id,
    )
    .fetch_all(connection)
    .await
}

/// One submission; `None` if it is not known.
async fn submission(connection: &mut PgConnection, job_id: Uuid) -> sqlx::Result<Option<SubmissionView>> {
    sqlx::query_as!(
        SubmissionView,
        r#"-- show_submission
        select
            job_id, customer_id, document_type, document_number_last4, state, waiting_for,
            reason_code, reason, due_at, deliveries, claimed_by, claimed_until, requested_at, received_at,
            expires_at, expiring_link, ended_at, provider_reference, evidence, verification_status, failure_reason,
            verification_due_at, correlation_id, substr(traceparent, 4, 32) as trace_id, sealed_payload is not null as "has_payload!"
        from submission
        where job_id = $1"#,
        job_id,
    )
    .fetch_optional(connection)
    .await
}

/// The submissions of a customer, the newest first: one more than `limit`, by which it is seen that there are
/// more, or all.
pub(crate) async fn submissions_of(
    connection: &mut PgConnection,
    customer_id: Uuid,
    limit: Option<u32>,
) -> sqlx::Result<Vec<SubmissionView>> {
    sqlx::query_as!(
        SubmissionView,
        r#"-- customer_jobs
        select
            job_id, customer_id, document_type, document_number_last4, state, waiting_for,
            reason_code, reason, due_at, deliveries, claimed_by, claimed_until, requested_at, received_at,
            expires_at, expiring_link, ended_at, provider_reference, evidence, verification_status, failure_reason,
            verification_due_at, correlation_id, substr(traceparent, 4, 32) as trace_id, sealed_payload is not null as "has_payload!"
        from submission
        -- Of those that nothing was sent of there may be very many: an index has the newest of them.
        where job_id = any(array(
            select job_id
            from (
                select job_id, requested_at, received_at
                from submission
                where customer_id = $1 and attempts > 0
                union all
                (
                    select job_id, requested_at, received_at
                    from submission
                    where customer_id = $1 and attempts = 0
                    order by requested_at desc nulls last, received_at desc, job_id desc
                    limit $2
                )
            ) theirs
            order by requested_at desc nulls last, received_at desc, job_id desc
            limit $2
        ))
        order by requested_at desc nulls last, received_at desc, job_id desc"#,
        customer_id,
        limit.map(|limit| i64::from(limit) + 1),
    )
    .fetch_all(connection)
    .await
}

/// Something that happened to a job.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// For people.
    pub what: String,
}

impl SubmissionView {
    /// What a job that ended before a send did not cost its customer.
    pub fn saved(&self) -> Option<&'static str> {
        let code = self.reason_code.as_deref()?;
        let is_by_check = Rejection::CODES_OF_CHECKS.contains(&code);
        let is_by_link = code == EXPIRED && self.expiring_link.is_some();
        (is_by_check || is_by_link).then_some("one update: nothing was sent")
    }
}

impl JobStory {
    /// What happened to it, in order.
    pub fn timeline(&self) -> Vec<Event> {
        let submission = &self.submission;
        let mut events: Vec<Event> = Vec::new();
        let mut note = |at, what| events.push(Event { at, what });
        if let Some(at) = submission.requested_at {
            note(at, "requested".to_owned());
        }
        let times = if submission.deliveries == 1 { "once" } else { "more than once" };
        note(submission.received_at, format!("received (delivered {times}: {})", submission.deliveries));
        for attempt in &self.attempts {
            note(attempt.begun_at, format!("attempt {} begun by {}", attempt.number, attempt.worker));
            if let Some((at, what)) = attempt.end() {
                note(at, what);
            }
        }
        self.observations.iter().for_each(|observation| note(observation.at, observation.describe()));
        self.interventions.iter().for_each(|intervention| note(intervention.at, intervention.describe()));
        for letter in &self.dead_letters {
            let what = format!("a delivery was dead-lettered, {}: {}", letter.reason_code, letter.reason);
            note(letter.received_at, what);
        }
        events
            .extend(submission.ended_at.map(|at| Event { at, what: format!("ended {}", submission.state) }));
        events.sort_by_key(|event| event.at);
        events
    }
}

impl AttemptView {
    fn end(&self) -> Option<(OffsetDateTime, String)> {
        let (ended_at, verdict) = (self.ended_at?, self.verdict.as_ref()?);
        let details = [
            self.detail.clone(),
            self.http_status.map(|status| format!("HTTP {status}")),
            self.duration_ms.map(|ms| format!("{ms} ms")),
            self.provider_message.as_ref().map(|message| format!("the provider said: {message}")),
            self.error.clone(),
            self.checked.as_ref().map(|checked| format!("checked before: {}", checked.replace(',', ", "))),
            self.late_verdict.as_ref().map(|late| format!("known later: {late}")),
        ];
        let details: Vec<String> = details.into_iter().flatten().collect();
        Some((ended_at, format!("attempt {} ended {verdict} ({})", self.number, details.join(", "))))
    }
}

impl ObservationView {
    fn describe(&self) -> String {
        if self.purpose == Purpose::Configuration.name() {
            return match (&self.document_types, &self.error) {
                (Some(types), _) => {
                    format!("the provider lists {} for the customer", types.replace(',', ", "))
                }
                (None, error) => {
                    let error = error.clone().unwrap_or_default();
                    format!("the provider did not tell which document types the customer may use: {error}")
                }
            };
        }
        let said = match (&self.status, &self.failure_reason, &self.error) {
            (Some(status), Some(reason), _) => format!("the customer read {status} ({reason})"),
            (Some(status), None, _) => format!("the customer read {status}"),
            (None, _, error) => {
                format!("a read of the customer failed: {}", error.clone().unwrap_or_default())
            }
        };
        match &self.conclusion {
            Some(conclusion) => format!("{said}: {conclusion}"),
            None => format!("{said} ({})", self.purpose),
        }
    }
}
