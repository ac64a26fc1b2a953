-- What a job went through is chained: each entry of its history is authenticated together with
-- the one before it, under a key that the database does not have. Only the newest MAC is kept: with
-- the older ones beside it, who deletes the last entry could put the one before back as the head.

alter table submission add column chain bytea;
alter table submission add column entries integer not null default 0;
alter table submission add constraint submission_chain_whole check (
    case when entries = 0 then chain is null else entries > 0 and chain is not null and length(chain) = 32 end
);
comment on column submission.chain is 'HMAC-SHA256 under FINGERPRINT_KEY of the newest entry of its history and of all before it; null before the first. `kyc-worker audit` verifies it';
comment on column submission.entries is 'How many entries its history has: attempts that were closed, late verdicts, observations';

alter table attempt add column entry integer;
alter table attempt add column late_entry integer;
comment on column attempt.entry is 'Its result''s place in the job''s history, from 1; null while it is open';
comment on column attempt.late_entry is 'late_verdict''s place in the job''s history';

alter table observation add column entry integer;
comment on column observation.entry is 'Its place in the job''s history, from 1';

-- A place is given together with what it is the place of, and as final.
drop trigger attempt_closed_once on attempt;
create trigger attempt_closed_once after update on attempt for each row when (
    (new.job_id, new.number, new.worker, new.begun_at, new.signed_at)
        is distinct from (old.job_id, old.number, old.worker, old.begun_at, old.signed_at)
    or old.ended_at is not null
        and (
            new.ended_at, new.verdict, new.detail, new.http_status, new.provider_message, new.error,
            new.duration_ms, new.entry
        ) is distinct from (
            old.ended_at, old.verdict, old.detail, old.http_status, old.provider_message, old.error,
            old.duration_ms, old.entry
        )
    or old.late_verdict is not null
        and (new.late_verdict, new.late_entry) is distinct from (old.late_verdict, old.late_entry)
) execute function refuse_rewriting();
