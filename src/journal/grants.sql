-- What the roles of deploy/roles.sql may do. Run after every migration, by the owner of the
-- tables; does nothing where the roles are not there. Only adds: a replica of an older release
-- may run it after one of a newer.
do $$
declare
    columns text;
begin
    -- Two that migrate at once would meet in the catalog.
    perform pg_advisory_xact_lock(hashtext('kyc-worker grants'));

    if to_regrole('kyc_worker') is not null then
        grant select on
            _sqlx_migrations, submission, attempt, observation, customer, dead_lettered_delivery, worker,
            intervention, verification_pace, fingerprint_key, job_overview, open_work, customer_budget, provider_errors_hourly,
            reconciliation, fleet_figure, fleet_reading, fleet_ended, fleet_error, outcome_event, event_publishing, archived_job,
            archived_customer, archived_file, lost_commit, approval_policy, proposal
            to kyc_worker;
        -- What a job is, is written once.
        select string_agg(quote_ident(attname), ', ') into columns
            from pg_attribute
            where attrelid = 'submission'::regclass and attnum > 0 and not attisdropped
                and attname not in (
                    'job_id', 'customer_id', 'document_type', 'requested_at', 'received_at', 'expires_at',
                    'correlation_id', 'traceparent'
                );
        execute format('grant insert, delete, update (%s) on submission to kyc_worker', columns);
        -- History is added to: an attempt is closed, and nothing is deleted.
        select string_agg(quote_ident(attname), ', ') into columns
            from pg_attribute
            where attrelid = 'attempt'::regclass and attnum > 0 and not attisdropped
                and attname not in ('job_id', 'number', 'worker', 'begun_at', 'signed_at');
        execute format('grant insert, update (%s) on attempt to kyc_worker', columns);
        grant insert on observation, intervention, fingerprint_key, lost_commit to kyc_worker;
        grant insert, update on customer to kyc_worker;
        grant insert, delete, update (body_sha256) on dead_lettered_delivery to kyc_worker;
        grant insert, delete, update on worker to kyc_worker;
        grant update on verification_pace, fleet_reading, event_publishing to kyc_worker;
        grant insert, delete on outcome_event to kyc_worker;
        grant insert, delete, update on fleet_figure, fleet_ended, fleet_error to kyc_worker;
        grant update (deliveries, content_hmac) on archived_job to kyc_worker;
        -- A proposal is made open, and decided on after that. Nobody is given the policy to change.
        grant insert (action, job_id, customer_id, finding, used, note, proposed_by, version) on proposal to kyc_worker;
        grant update (decision, decided_by, decided_at, decision_note) on proposal to kyc_worker;
    end if;

    if to_regrole('kyc_auditor') is not null then
        grant select on
            job_overview, open_work, customer_budget, provider_errors_hourly, reconciliation, fleet_figure,
            fleet_reading, fleet_ended, fleet_error
            to kyc_auditor;
    end if;

    -- Moves history to files: it removes rows, and rewrites none.
    if to_regrole('kyc_archiver') is not null then
        grant select on
            _sqlx_migrations, submission, attempt, observation, intervention, customer, dead_lettered_delivery,
            outcome_event, archived_job, archived_customer, archived_file, proposal
            to kyc_archiver;
        -- `update` of a column, so that it may lock a row before it removes it.
        grant delete, update (deliveries) on submission to kyc_archiver;
        grant delete on attempt, observation, intervention to kyc_archiver;
        grant insert, delete, update on archived_job to kyc_archiver;
        grant insert, update on archived_customer to kyc_archiver;
        grant insert on archived_file to kyc_archiver;
    end if;

    -- The console. In its sessions `desk` comes before `public`: what it knows as `submission` and `attempt`
    -- are these views, by which the same statements serve it and the commands. A payload shows as empty bytes
    -- where there is one, and a fingerprint as its digest, which tells whether two are the same.
    if to_regrole('kyc_desk') is not null and to_regnamespace('desk') is not null then
        select string_agg(
                case attname
                    when 'sealed_payload' then 'substr(sealed_payload, 1, 0) as sealed_payload'
                    when 'content_hmac' then 'sha256(content_hmac) as content_hmac'
                    else quote_ident(attname)
                end, ', ' order by attnum)
            into columns
            from pg_attribute
            where attrelid = 'public.submission'::regclass and attnum > 0 and not attisdropped;
        execute 'create or replace view desk.submission as select ' || columns || ' from public.submission';
        create or replace view desk.attempt as select * from public.attempt;
        -- What people do, each with the intervention that says so, which the policy has let pass: a job is sent
        -- again, or settled. A row that has moved on since it was read stays as it is. An error tells nothing of
        -- the row, which its reader may not see.
        create or replace function desk.move_submission() returns trigger language plpgsql security definer
            set search_path = public, pg_temp as $move$
        begin
            if old.state = 'waiting' and new.state = 'waiting' then
                update public.submission set due_at = new.due_at
                where job_id = old.job_id and state = 'waiting' and claim_token = old.claim_token;
            elsif exists (
                select from public.intervention i
                where i.job_id = old.job_id and i.at = now()
                    and case i.action
                        when 'replay' then old.state in ('exhausted', 'needs_review') and new.state = 'waiting'
                        when 'resolve' then old.state = 'needs_review' and new.ended_at is not null
                        else false
                    end
            ) then
                update public.submission
                set state = new.state, waiting_for = new.waiting_for, due_at = new.due_at, ended_at = new.ended_at,
                    claimed_until = new.claimed_until, claim_token = new.claim_token, attempts = new.attempts,
                    retries = new.retries, reason_code = new.reason_code, reason = new.reason,
                    evidence = new.evidence, provider_reference = new.provider_reference,
                    verification_status = new.verification_status, verification_due_at = new.verification_due_at,
                    sealed_payload = case when new.sealed_payload is not null then sealed_payload end
                where job_id = old.job_id and state = old.state and claim_token = old.claim_token
                    and entries = old.entries;
            else
                raise insufficient_privilege using message =
                    'kyc_desk moves a job only with the intervention that says so, in the same transaction';
            end if;
            if not found then
                return null;
            end if;
            return new;
        exception
            when insufficient_privilege then
                raise;
            when others then
                raise exception 'the job''s row cannot become that' using errcode = sqlstate;
        end
        $move$;
        revoke execute on function desk.move_submission() from public;
        create or replace trigger submission_moved instead of update on desk.submission
            for each row execute function desk.move_submission();
        create or replace trigger attempt_kept instead of update on desk.attempt
            for each row execute function public.refuse_rewriting();
        grant select on
            _sqlx_migrations, desk.submission, desk.attempt, observation, customer, dead_lettered_delivery, worker,
            intervention, open_work, fleet_figure, fleet_reading, fleet_ended, fleet_error, outcome_event,
            event_publishing, archived_customer, lost_commit, access_record, approval_policy, proposal
            to kyc_desk;
        grant select (job_id, customer_id, document_type, state, ended_at, file) on archived_job to kyc_desk;
        grant update (
            state, waiting_for, due_at, ended_at, claimed_until, claim_token, attempts, retries, reason_code, reason,
            evidence, provider_reference, verification_status, verification_due_at, entries, chain, sealed_payload
        ) on desk.submission to kyc_desk;
        -- A job that a person ends closes no attempt; the statement could.
        grant update (
            ended_at, verdict, detail, http_status, provider_message, error, duration_ms, entry, checked
        ) on desk.attempt to kyc_desk;
        grant insert, update (updates_elsewhere, budget_set_at, budget_set_by, budget_note) on customer to kyc_desk;
        -- When something was done is the database's to say.
        grant insert (action, by, note, job_id, customer_id, detail, proposal_id, entries) on intervention to kyc_desk;
        grant insert (by, page, job_id, customer_id) on access_record to kyc_desk;
        grant insert (
            kind, job_id, customer_id, at, token, state, reason_code, reason, attempts, evidence, requested_at, ended_at,
            correlation_id, traceparent
        ) on outcome_event to kyc_desk;
        grant insert (action, job_id, customer_id, finding, used, note, proposed_by, version) on proposal to kyc_desk;
        grant update (decision, decided_by, decided_at, decision_note) on proposal to kyc_desk;
    end if;

    -- Counts alone, for what starts and stops replicas.
    if to_regrole('kyc_scaler') is not null then
        grant select on fleet_figure, fleet_reading to kyc_scaler;
    end if;
end
$$;
