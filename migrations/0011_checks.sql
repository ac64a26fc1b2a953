-- Postgres reads each check and each trigger's condition from its text anew for every statement that
-- writes the table, which tells where a batch has few jobs. The same rules in fewer words: what a row
-- must have goes by whether it has ended, and then by its state.

alter table submission
    drop constraint submission_state_known,
    drop constraint submission_end_dated,
    drop constraint submission_claim_whole,
    drop constraint submission_alarm_set,
    drop constraint submission_payload_kept,
    drop constraint submission_payload_removed,
    drop constraint submission_counts_sane,
    drop constraint submission_chain_whole,
    add constraint submission_state_known check (
        case when ended_at is null then state in ('submitting', 'waiting', 'unknown')
            else state in ('accepted', 'rejected', 'invalid', 'superseded', 'duplicate', 'exhausted', 'needs_review')
        end
    ),
    -- No row in motion without an alarm: a claim that runs out, or a due time.
    add constraint submission_alarm_set check (
        ended_at is not null
        or case state when 'submitting' then claimed_by is not null and claimed_until is not null
            else due_at is not null
        end
    ),
    -- Any replica can carry on a row in motion. After its end, only a person may need the payload.
    add constraint submission_payload_kept check (
        case when ended_at is null then sealed_payload is not null
            else sealed_payload is null or state in ('exhausted', 'needs_review')
        end
    ),
    add constraint submission_counts_sane check (least(attempts, retries, deliveries - 1, entries) >= 0),
    -- Where there is no chain its length is null, and says nothing.
    add constraint submission_chain_whole check ((entries = 0) = (chain is null) and length(chain) = 32);

-- What no statement of ours names costs none of them anything: a trigger on columns is asked only
-- by who sets them.
drop trigger attempt_closed_once on attempt;
create trigger attempt_begun_once after update of job_id, number, worker, begun_at, signed_at on attempt
    for each row execute function refuse_rewriting();
create trigger attempt_closed_once
    after update of ended_at, verdict, detail, http_status, provider_message, error, duration_ms, entry on attempt
    for each row when (old.ended_at is not null) execute function refuse_rewriting();
create trigger attempt_late_once after update of late_verdict, late_entry on attempt
    for each row when (old.late_verdict is not null) execute function refuse_rewriting();
