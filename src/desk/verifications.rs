//! Verifications that are followed: those that take too long, and those that are read next.

use serde::Serialize;
use sqlx::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;

/// How many are told of each kind.
const TOLD_MAX: i64 = 100;

/// The verifications that are followed.
#[derive(Debug, Serialize)]
pub struct FollowedVerifications {
    /// Those that are overdue, the longest first: a hundred at most.
    pub overdue: Vec<FollowedVerification>,
    /// Those that are read next, overdue ones included: a hundred at most.
    pub next: Vec<FollowedVerification>,
}

/// A verification that is followed.
#[derive(Debug, Serialize)]
pub struct FollowedVerification {
    pub job_id: Uuid,
    pub customer_id: Option<Uuid>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub accepted_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub overdue_since: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    pub next_read_at: Option<OffsetDateTime>,
    /// The provider's latest word.
    pub status: Option<String>,
}

/// The verifications that are followed.
pub async fn verifications(pool: &PgPool) -> sqlx::Result<FollowedVerifications> {
    let overdue = sqlx::query_as!(
        FollowedVerification,
        "-- verifications_overdue
        select
            job_id, customer_id, ended_at as accepted_at, verification_overdue_at as overdue_since,
            verification_due_at as next_read_at, verification_status as status
        from submission
        where verification_overdue_at is not null and verification_due_at is not null
        order by verification_overdue_at
        limit $1",
        TOLD_MAX,
    )
    .fetch_all(pool)
    .await?;
    let next = sqlx::query_as!(
        FollowedVerification,
        "-- verifications_next
        select
            job_id, customer_id, ended_at as accepted_at, verification_overdue_at as overdue_since,
            verification_due_at as next_read_at, verification_status as status
        from submission
        where verification_due_at is not null
        order by verification_due_at
        limit $1",
        TOLD_MAX,
    )
    .fetch_all(pool)
    .await?;
    Ok(FollowedVerifications { overdue, next })
}
