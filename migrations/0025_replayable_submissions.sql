-- no-transaction
-- What a person may send again, in the order in which it is sent.
create index concurrently submission_replayable on submission (state, requested_at, received_at, job_id)
    where state in ('exhausted', 'needs_review') and sealed_payload is not null;
