-- An event that waits to be published.
insert into outcome_event (kind, job_id, at, state, attempts)
select 'job.' || state, job_id, ended_at, state, attempts from submission where ended_at is not null;
