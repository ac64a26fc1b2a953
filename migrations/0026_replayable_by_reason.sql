-- no-transaction
-- The same for one reason, of which there may be few among very many.
create index concurrently submission_replayable_reason
    on submission (state, reason_code, requested_at, received_at, job_id)
    where state in ('exhausted', 'needs_review') and sealed_payload is not null;
