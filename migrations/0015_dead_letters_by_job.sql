-- no-transaction
-- `archive` asks whether a dead letter of a job is still there.
create index concurrently dead_lettered_delivery_job on dead_lettered_delivery (job_id) where job_id is not null;
