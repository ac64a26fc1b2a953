//! Whoever releases a customer's slot wakes the newest job that waits for it.

use sqlx::PgConnection;
use uuid::Uuid;

/// The alarm of the newest job that waits for its customer rings after so long at least, and then after
/// as long again as the slot has been held: whoever releases the slot wakes it, unless their commits cross.
pub(crate) const NEAR_WAIT_MIN_SECONDS: f64 = 1.0;

/// It rings after so long at most.
pub(crate) const NEAR_WAIT_MAX_SECONDS: f64 = 30.0;

/// A job that is not its customer's newest needs no near alarm: the newest goes first, and wakes the
/// next when it ends. The alarms of a whole backlog ring so seldom.
pub(crate) const FAR_WAIT_SECONDS: f64 = 300.0;

/// Makes the newest job due now that waits for each of these customers: whoever releases or ends one
/// of a customer's jobs wakes the next, and no others. One that waits for its own time keeps that.
///
/// To be called after the release, as a statement of its own: its snapshot sees every job that was
/// waiting by then. One whose commit comes later has a near alarm (`insert_behind`).
pub(crate) async fn wake_newest(tx: &mut PgConnection, customers: &[Uuid]) -> sqlx::Result<()> {
    wake_newest_due_after(tx, customers, 0.0).await
}

/// Wakes those alone that would sleep for longer than `seconds`.
pub(crate) async fn wake_newest_due_after(
    tx: &mut PgConnection,
    customers: &[Uuid],
    seconds: f64,
) -> sqlx::Result<()> {
    if customers.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "-- wake_newest
        with newest as (
            select w.job_id
            from unnest($1::uuid[]) as released (customer_id)
            cross join lateral (
                select s.job_id, s.waiting_for, s.due_at
                from submission s
                where s.customer_id = released.customer_id and s.state = 'waiting'
                order by s.requested_at desc, s.received_at desc, s.job_id desc
                limit 1
                for update skip locked
            ) w
            where w.waiting_for = 'customer' and w.due_at > now() + make_interval(secs => $2)
        )
        update submission s set due_at = now() from newest where s.job_id = newest.job_id",
        customers,
        seconds,
    )
    .execute(tx)
    .await?;
    Ok(())
}
