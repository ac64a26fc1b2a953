//! What upstream is told is written down in the commit that holds the change, and published after it. An
//! event says what its job's row says, and nothing that the row may change while it stays in that state: so
//! every copy of it, those that are told again from the books included, is the same.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::domain::state::EventKind;

/// Writes down how these jobs have ended, as their rows say by now. Those that have not are left out. Returns
/// how many events that makes.
pub(crate) async fn tell_ends(tx: &mut PgConnection, jobs: &[Uuid]) -> sqlx::Result<u64> {
    if jobs.is_empty() {
        return Ok(0);
    }
    let told = sqlx::query!(
        "-- tell_ends
        insert into outcome_event (
            kind, job_id, customer_id, at, token, state, reason_code, reason, attempts, evidence, requested_at,
            ended_at, correlation_id, traceparent
        )
        select
            'job.' || s.state, s.job_id, s.customer_id, s.ended_at,
            case s.state when 'invalid' then s.deliveries else s.claim_token end, s.state, s.reason_code, s.reason,
            s.attempts, s.evidence, s.requested_at, s.ended_at, s.correlation_id, s.traceparent
        from unnest($1::uuid[]) with ordinality as told (job_id, place)
        join submission s on s.job_id = told.job_id and s.ended_at is not null
        order by told.place",
        jobs,
    )
    .execute(tx)
    .await?;
    Ok(told.rows_affected())
}

/// Writes down what these jobs' verifications have become, as their rows say by now, if it is one of `kinds`.
/// Returns how many events that makes.
pub(crate) async fn tell_verifications(
    tx: &mut PgConnection,
    jobs: &[Uuid],
    kinds: &[EventKind],
) -> sqlx::Result<u64> {
    if jobs.is_empty() || kinds.is_empty() {
        return Ok(0);
    }
    let kinds: Vec<String> = kinds.iter().map(ToString::to_string).collect();
    let told = sqlx::query!(
        "-- tell_verifications
        insert into outcome_event (
            kind, job_id, customer_id, at, token, state, reason_code, reason, attempts, evidence,
            verification_status, failure_reason, requested_at, ended_at, correlation_id, traceparent
        )
        select
            told.kind, s.job_id, s.customer_id, told.at, s.claim_token, s.state, s.reason_code, s.reason, s.attempts, s.evidence,
            told.status, case when told.status is not null then s.failure_reason end, s.requested_at, s.ended_at,
            s.correlation_id, s.traceparent
        from submission s
        cross join lateral (
            values
                ('verification.overdue', s.verification_overdue_at, null),
                ('verification.' || lower(s.verification_status), coalesce(s.verification_ended_at, s.verification_seen_at), s.verification_status)
        ) as told (kind, at, status)
        where s.job_id = any($1) and told.at is not null and told.kind = any($2)
        order by s.job_id, told.at",
        jobs,
        &kinds,
    )
    .execute(tx)
    .await?;
    Ok(told.rows_affected())
}

/// Whether upstream is told, as far as a command knows that no replica's settings are given to: some replica
/// has published events within the last week.
pub(crate) async fn is_told_lately(tx: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar!(
        r#"-- is_told_lately
        select turn_until > now() - interval '7 days' as "is_told!" from event_publishing"#,
    )
    .fetch_one(tx)
    .await
}
