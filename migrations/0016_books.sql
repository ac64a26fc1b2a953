-- What people trust: jobs end after they were received and are not deleted, each process has a row
-- of its own, and the key of fingerprints and histories is known again.

-- No job ends before it was received, whichever clocks said so: what was received since a time has
-- ended since, or is in motion. 0017 validates it.
alter table submission
    drop constraint submission_state_known,
    add constraint submission_state_known check (
        case when ended_at is null then state in ('submitting', 'waiting', 'unknown')
            else ended_at >= received_at and state in (
                'accepted', 'rejected', 'invalid', 'superseded', 'duplicate', 'exhausted', 'needs_review'
            )
        end
    ) not valid;
comment on column submission.received_at is 'When the first delivery arrived, by the worker''s clock';
comment on column submission.ended_at is 'When the submission ended, by the database''s clock; never before received_at';

-- An invalid delivery is no claim on a job_id, and its row makes way for a valid one. Any other row
-- is what tells that a job was sent.
create function refuse_deleting() returns trigger language plpgsql as $$
begin
    raise exception 'a % is kept for ever', tg_table_name
        using errcode = 'restrict_violation',
            hint = 'without its row a job that comes again is sent again; `kyc-worker forget` removes what a customer entered';
end
$$;
comment on function refuse_deleting() is 'Refuses to remove a row that is kept for ever';
create trigger submission_kept after delete on submission for each row when (old.state <> 'invalid')
    execute function refuse_deleting();
create trigger submission_all_kept before truncate on submission execute function refuse_deleting();

-- Several processes may run under one WORKER_NAME, and one that hangs must not hide behind another.
-- The key changes at once: there is no release yet that knows the old one.
alter table worker
    add column instance text not null default '',
    drop constraint worker_pkey,
    add constraint worker_pkey primary key (name, instance);
alter table worker alter column instance drop default;
comment on table worker is 'One row a process: written every two seconds while it lives, removed when it stops. One that died keeps its row for an hour';
comment on column worker.name is 'The process''s WORKER_NAME';
comment on column worker.instance is 'Which process it is: host, process id, and what tells it from any other that had both';

create table fingerprint_key (
    is_only boolean not null default true,
    mac bytea not null,
    first_used_at timestamptz not null default now(),
    constraint fingerprint_key_pkey primary key (is_only),
    constraint fingerprint_key_one_row check (is_only),
    constraint fingerprint_key_mac_whole check (length(mac) = 32)
);
comment on table fingerprint_key is 'One row, written when the first worker starts: by it, one with another FINGERPRINT_KEY is refused';
comment on column fingerprint_key.is_only is 'Always true, so that there is one row';
comment on column fingerprint_key.mac is 'HMAC-SHA256 of a constant under FINGERPRINT_KEY';
comment on column fingerprint_key.first_used_at is 'When the key was first used here';

-- An intervention has its place among the entries of its job's history; those from before have
-- none, and stay as they are.
alter table intervention
    add column entries integer,
    drop constraint intervention_action_known,
    add constraint intervention_action_known check (
        action in ('pause', 'resume', 'budget', 'replay', 'resolve', 'review', 'forget', 'requeue')
    ) not valid,
    drop constraint intervention_has_its_job,
    add constraint intervention_has_its_job check (
        action not in ('replay', 'resolve', 'review') or job_id is not null and entries is not null
    ) not valid;
comment on column intervention.action is 'pause, resume, budget, replay, resolve, review (a job that waited was handed to a person), forget, requeue';
comment on column intervention.entries is 'How many entries the job''s history had then';
