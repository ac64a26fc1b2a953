-- What was checked before an attempt's send, for people who ask what was done.

alter table attempt add column checked text;

comment on column attempt.checked is 'What was checked before its send, and passed: document_type, links, or both with a comma between; null where nothing was';

drop trigger attempt_closed_once on attempt;
create trigger attempt_closed_once
    after update of
        ended_at, verdict, detail, http_status, provider_message, error, duration_ms, entry, checked on attempt
    for each row when (old.ended_at is not null) execute function refuse_rewriting();
