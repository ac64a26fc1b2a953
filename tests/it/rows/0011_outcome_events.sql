-- An event that waits to be published.
insert into outcome_event (kind, job_id, at, token, state, attempts)
select 'job.' || state, job_id, ended_at, claim_token, state, attempts from submission where ended_at is not null;
