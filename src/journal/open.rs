//! A delivery is written down: as a submission, or as what could not become one.

use std::sync::Arc;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::domain::job::{Invalid, Job};
use crate::domain::message::Message;
use crate::domain::state::{State, WaitingFor};
use crate::journal::error::JournalError;
use crate::journal::handle::Journal;
use crate::journal::memory::Write;
use crate::journal::pool::{run, run_tx};
use crate::journal::rows::{Admission, NewRow, Slots, in_micros};
use crate::journal::statements::events::tell_ends;
use crate::journal::statements::open::{
    Found, Opened, count_archived_delivery, count_delivery, delete_invalid, find, find_archived,
    insert_dead_letter, insert_waiting, open_many,
};

impl Journal {
    /// Writes a job down, in one commit: with its sealed payload, and claimed with its
    /// first attempt begun where `admission` says so and the customer's other jobs allow.
    /// Jobs whose customers are free are written many at a time.
    ///
    /// Calling it again after an error is safe, with the same `admission`: what a lost
    /// answer had committed is found again.
    pub async fn open(
        &self,
        job: &Job,
        received_at: OffsetDateTime,
        admission: Admission,
    ) -> Result<Opened, JournalError> {
        let row = Arc::new(self.row(job, received_at, admission));
        if row.t0.is_some()
            && let Some(opened) = self.batcher.open(Arc::clone(&row)).await
        {
            self.remember_opened(row, &opened);
            return Ok(opened);
        }
        // No semaphore of ours is ever closed.
        let _turn = self.opening.acquire().await;
        // Rare, and large: not to be carried about by every job.
        let alone = async |tx: &mut PgConnection| self.open_alone(tx, &row, admission).await;
        let opened = Box::pin(run_tx("open", &self.pool, alone)).await;
        match opened {
            Err(error) if error.is_of_a_value() => Ok(Opened::Refused),
            opened => {
                let opened = opened?;
                self.remember_opened(row, &opened);
                Ok(opened)
            }
        }
    }

    /// Its delivery is acked on the strength of this row.
    fn remember_opened(&self, row: Arc<NewRow>, opened: &Opened) {
        match opened {
            Opened::Refused | Opened::Conflict => {}
            Opened::Claimed(_) | Opened::Waiting | Opened::Ended(_) | Opened::Known => {
                self.memory.add(Write::Opened(row));
            }
        }
        if let Opened::Claimed(claim) = opened {
            self.memory.add(Write::Begun(Box::new(*claim)));
        }
    }

    fn row(&self, job: &Job, received_at: OffsetDateTime, admission: Admission) -> NewRow {
        let request = &job.request;
        NewRow {
            job_id: job.id,
            customer_id: job.customer_id,
            document_type: request.document_type().to_owned(),
            document_number_last4: request.document_number_last4().to_owned(),
            content_hmac: self.fingerprinter.content(&job.fingerprint_text),
            requested_at: in_micros(job.requested_at),
            received_at: in_micros(received_at),
            expires_at: job.expires_at,
            expiring_link: job.expiring_link,
            correlation_id: job.correlation_id.clone(),
            trace: job.trace,
            sealed: self.keyring.seal(job.id, request.to_sealable()),
            t0: match admission {
                Admission::Claim(t0) => Some(t0),
                Admission::Wait(_) => None,
            },
        }
    }

    async fn open_alone(
        &self,
        tx: &mut PgConnection,
        row: &NewRow,
        admission: Admission,
    ) -> sqlx::Result<Opened> {
        loop {
            if row.t0.is_some()
                && let Some(opened) = open_many(tx, &self.worker, &self.limits, Slots::MaybeTaken, &[row])
                    .await?
                    .remove(&row.job_id)
            {
                return Ok(opened);
            }
            match find(tx, &self.worker, row).await? {
                Some(found) if found.is_invalid => delete_invalid(tx, &[row.job_id]).await?,
                // An earlier call's commit, whose answer was lost.
                Some(Found { claim: Some(claim), .. }) => return Ok(Opened::Claimed(claim)),
                Some(found) if found.has_same_content => {
                    count_delivery(tx, row.job_id).await?;
                    return Ok(Opened::Known);
                }
                Some(_) => return Ok(Opened::Conflict),
                None => {
                    match find_archived(tx, row).await? {
                        Some(true) => {
                            count_archived_delivery(tx, row.job_id).await?;
                            return Ok(Opened::Known);
                        }
                        Some(false) => return Ok(Opened::Conflict),
                        None => {}
                    }
                    let waiting_for = match admission {
                        Admission::Claim(_) => WaitingFor::Customer,
                        Admission::Wait(waiting_for) => waiting_for,
                    };
                    if insert_waiting(tx, row, waiting_for).await? {
                        return Ok(Opened::Waiting);
                    }
                }
            }
        }
    }

    /// Writes down a delivery that is no job, in one commit. Where its `job_id` can be
    /// read and is not taken, it gets a submission too, so that upstream finds it there.
    pub async fn record_invalid(
        &self,
        message: &Message,
        received_at: OffsetDateTime,
        invalid: &Invalid,
    ) -> Result<(), JournalError> {
        let reason = invalid.to_string();
        run_tx("record_invalid", &self.pool, async |tx| {
            if let Some(job_id) = invalid.job_id {
                let written = sqlx::query!(
                    "-- insert_invalid
                    insert into submission (job_id, customer_id, state, reason_code, reason, received_at, ended_at)
                    select $1, $2, 'invalid', 'invalid', $3, $4, greatest(now(), $4)
                    where not exists (select from archived_job k where k.job_id = $1 and k.holds_id)
                    on conflict (job_id) do update
                        set deliveries = submission.deliveries + 1, reason = excluded.reason
                        where submission.state = 'invalid'",
                    job_id,
                    invalid.customer_id,
                    reason,
                    received_at,
                )
                .execute(&mut *tx)
                .await?;
                if written.rows_affected() == 1 && self.limits.at_end.is_told {
                    tell_ends(tx, &[job_id]).await?;
                }
            }
            let code = State::Invalid.name();
            insert_dead_letter(tx, message, received_at, invalid.job_id, code, &reason).await
        })
        .await
    }

    /// Writes down a delivery whose `job_id` is taken by another content.
    pub async fn record_conflict(
        &self,
        message: &Message,
        received_at: OffsetDateTime,
        job_id: Uuid,
    ) -> Result<(), JournalError> {
        let reason =
            "/job_id: is taken by a job with another content; publish this one under an id of its own";
        run("record_conflict", &self.pool, async |connection| {
            insert_dead_letter(connection, message, received_at, Some(job_id), "conflict", reason).await
        })
        .await
    }

    /// Writes down a delivery that the worker failed on.
    pub async fn record_worker_failed(
        &self,
        message: &Message,
        received_at: OffsetDateTime,
    ) -> Result<(), JournalError> {
        let reason = "the worker failed on this delivery: a bug of its own; report it, and requeue the message after the fix";
        run("record_worker_failed", &self.pool, async |connection| {
            insert_dead_letter(connection, message, received_at, None, "worker_failed", reason).await
        })
        .await
    }
}
