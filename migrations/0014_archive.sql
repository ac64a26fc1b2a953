-- Years of rows: ended jobs are written to files and removed (`kyc-worker archive`). What the worker must
-- still know of them stands here.

create table archived_job (
    job_id uuid not null,
    customer_id uuid,
    document_type text,
    content_hmac bytea,
    state text not null,
    holds_id boolean not null,
    ended_at timestamptz not null,
    deliveries integer not null,
    file text not null,
    constraint archived_job_pkey primary key (job_id)
);

comment on table archived_job is 'A job that is in a file of the archive, so that a copy of it is known: kept for DEDUPLICATION_KEPT. Written before the job''s rows are removed';
comment on column archived_job.job_id is 'The job';
comment on column archived_job.customer_id is 'The provider''s customer; null only where an invalid job named none';
comment on column archived_job.document_type is 'The document type, which tells a duplicate from a conflict where the customer was forgotten';
comment on column archived_job.content_hmac is 'The content''s fingerprint, as submission.content_hmac; null where the customer was forgotten';
comment on column archived_job.state is 'How it ended';
comment on column archived_job.holds_id is 'Whether its job_id is taken: an invalid delivery is no claim on one';
comment on column archived_job.ended_at is 'When it ended';
comment on column archived_job.deliveries is 'How often the broker handed the job over, copies that came since included';
comment on column archived_job.file is 'The file that has its history';

-- `forget` removes a customer's fingerprints.
create index archived_job_customer on archived_job (customer_id);
-- `archive` removes the ids that were kept long enough.
create index archived_job_ended on archived_job (ended_at);

create table archived_customer (
    customer_id uuid not null,
    accepted integer not null,
    unknown_outcome integer not null,
    spent_at timestamptz,
    newest_job_id uuid,
    newest_requested_at timestamptz,
    newest_received_at timestamptz,
    applied_until timestamptz,
    signed_until timestamptz,
    word text,
    word_at timestamptz,
    word_read_at timestamptz,
    word_dated_at timestamptz,
    files text[] not null,
    constraint archived_customer_pkey primary key (customer_id),
    constraint archived_customer_sane check (
        least(accepted, unknown_outcome) >= 0
        and num_nulls(newest_job_id, newest_requested_at, newest_received_at) in (0, 3)
        and num_nulls(applied_until, signed_until) in (0, 2)
        and num_nulls(word, word_at) in (0, 2)
    )
);

comment on table archived_customer is 'What a customer''s archived jobs came to, for jobs that come later: kept for ever. Written in the commit that removes their rows';
comment on column archived_customer.customer_id is 'The provider''s customer';
comment on column archived_customer.accepted is 'Attempts that the provider accepted';
comment on column archived_customer.unknown_outcome is 'Attempts whose outcome was ever unknown, those included that reads have settled since';
comment on column archived_customer.spent_at is 'When the last attempt that counts ended';
comment on column archived_customer.newest_job_id is 'The newest job that was accepted: an older one that comes later is superseded by it';
comment on column archived_customer.newest_requested_at is 'When that one was asked for';
comment on column archived_customer.newest_received_at is 'When its first delivery arrived';
comment on column archived_customer.applied_until is 'Until when one of the updates may have been applied, by the database''s clock';
comment on column archived_customer.signed_until is 'The same by the clocks of the replicas that made them';
comment on column archived_customer.word is 'The provider''s last word on the customer, where it was read after all of the updates';
comment on column archived_customer.word_at is 'When that read began, by the database''s clock';
comment on column archived_customer.word_read_at is 'The same by the clock of the replica that read';
comment on column archived_customer.word_dated_at is 'When the answer was made, by its Date header';
comment on column archived_customer.files is 'The files that hold the customer''s jobs';

create table archived_file (
    file text not null,
    entry_sha256 bytea not null,
    constraint archived_file_pkey primary key (file),
    constraint archived_file_sha256 check (length(entry_sha256) = 32)
);

comment on table archived_file is 'A file of the archive, by which the directory is known to be this database''s and whole: kept for ever. Written before the manifest names the file';
comment on column archived_file.file is 'The file';
comment on column archived_file.entry_sha256 is 'The SHA-256 of its line in the manifest, which has that of the line before';

-- A row of history goes only once a file has it. In the order in which the worker writes the tables.
create function refuse_removing() returns trigger language plpgsql as $$
begin
    if not exists (select from archived_job where job_id = old.job_id) then
        raise exception 'a row of % is kept until its job is archived', tg_table_name
            using errcode = 'restrict_violation',
                hint = '`kyc-worker archive` writes jobs to files and removes their rows; `kyc-worker forget` removes what a customer entered';
    end if;
    return null;
end
$$;
comment on function refuse_removing() is 'Refuses to remove a row whose job is in no file of the archive';

drop trigger submission_kept on submission;
create trigger submission_kept after delete on submission for each row when (old.state <> 'invalid')
    execute function refuse_removing();
drop trigger attempt_kept on attempt;
create trigger attempt_kept after delete on attempt for each row execute function refuse_removing();
drop trigger observation_kept on observation;
create trigger observation_kept after update on observation for each row execute function refuse_rewriting();
create trigger observation_removed after delete on observation for each row execute function refuse_removing();
drop trigger intervention_kept on intervention;
create trigger intervention_kept after update on intervention for each row execute function refuse_rewriting();
create trigger intervention_removed after delete on intervention for each row execute function refuse_removing();

create or replace view customer_budget as
select
    customer_id, coalesce(c.updates_elsewhere, 0) + coalesce(here.accepted + here.in_doubt, 0) as spent,
    coalesce(here.accepted, 0) as accepted_here, coalesce(here.in_doubt, 0) as in_doubt_here,
    coalesce(c.updates_elsewhere, 0) as elsewhere, c.budget_set_at, c.budget_set_by, c.budget_note,
    c.limit_reached_at, here.last_spent_at
from customer c
full join (
    select
        customer_id, sum(accepted)::bigint as accepted, sum(in_doubt)::bigint as in_doubt,
        max(spent_at) as last_spent_at
    from (
        select
            s.customer_id, (a.verdict = 'accepted')::integer as accepted,
            (a.verdict = 'unknown')::integer as in_doubt, a.ended_at as spent_at
        from submission s
        join attempt a on a.job_id = s.job_id
        where a.verdict in ('accepted', 'unknown')
        union all
        select customer_id, accepted, unknown_outcome, spent_at from archived_customer
    ) each
    group by customer_id
) here using (customer_id);
