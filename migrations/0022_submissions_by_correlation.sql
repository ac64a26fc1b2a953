-- no-transaction
-- People find a job by the correlation_id that its publisher knows, the newest first.
create index concurrently submission_correlation on submission (correlation_id, received_at desc)
    where correlation_id is not null;
