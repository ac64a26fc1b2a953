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

    -- Counts alone, for what starts and stops replicas.
    if to_regrole('kyc_scaler') is not null then
        grant select on fleet_figure, fleet_reading to kyc_scaler;
    end if;
end
$$;
