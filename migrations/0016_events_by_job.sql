-- no-transaction
-- `archive` asks whether an event of a job is still to be published.
create index concurrently outcome_event_job on outcome_event (job_id);
