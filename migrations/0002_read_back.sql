-- An attempt of unknown fate is read back: what a look at the customer said, and what is
-- known of the customer beside his submissions.

create table customer (
    customer_id uuid not null,
    last_read_at timestamptz,
    updates_elsewhere integer not null default 0,
    budget_set_at timestamptz,
    budget_set_by text,
    budget_note text,
    limit_reached_at timestamptz,
    constraint customer_pkey primary key (customer_id),
    constraint customer_updates_elsewhere_sane check (updates_elsewhere >= 0),
    constraint customer_budget_signed check (
        (budget_set_at is null) = (budget_set_by is null) and (budget_set_at is null) = (budget_note is null)
    )
);

comment on table customer is 'What is known of a customer beside his submissions; written by reads and people, never on the hot path';
comment on column customer.customer_id is 'The provider''s customer';
comment on column customer.last_read_at is 'When he was last looked up at the provider; the provider asks for 60 s between two looks';
comment on column customer.updates_elsewhere is 'Updates of his that others spent, as far as a person has told us';
comment on column customer.budget_set_at is 'When a person told us';
comment on column customer.budget_set_by is 'Who told us';
comment on column customer.budget_note is 'Why';
comment on column customer.limit_reached_at is 'When the provider last said that his updates are used up';

create table observation (
    id bigint generated always as identity,
    job_id uuid not null,
    customer_id uuid not null,
    at timestamptz not null,
    purpose text not null,
    status text,
    failure_reason text,
    error text,
    conclusion text,
    constraint observation_pkey primary key (id),
    constraint observation_purpose_known check (purpose in ('baseline', 'read_back')),
    constraint observation_says_something check ((status is null) <> (error is null))
);

comment on table observation is 'What a look at a customer said; never changed';
comment on column observation.id is 'The row''s number';
comment on column observation.job_id is 'The job that it was made for';
comment on column observation.customer_id is 'The customer';
comment on column observation.at is 'Taken before the look began, by the database''s clock';
comment on column observation.purpose is 'baseline: before the first attempt; read_back: to learn an attempt''s fate';
comment on column observation.status is 'The verification status, as the provider wrote it';
comment on column observation.failure_reason is 'Why the verification failed, in the provider''s words';
comment on column observation.error is 'Why the look told nothing, as a code';
comment on column observation.conclusion is 'What a read-back concluded of the attempt: applied, rejected, not_applied, confirming, last_update, look_again, unsettled';

create index observation_customer on observation (customer_id, at);
create index observation_job on observation (job_id, id);

alter table dead_lettered_delivery drop constraint dead_lettered_delivery_reason_known;
alter table dead_lettered_delivery add constraint dead_lettered_delivery_reason_known
    check (reason_code in ('invalid', 'conflict', 'worker_failed'));
comment on column dead_lettered_delivery.reason_code is 'invalid: it breaks the message contract; conflict: its job_id is another content''s; worker_failed: a bug of the worker''s';

comment on column submission.evidence is 'How an acceptance is known: response, read_back, or late (an answer that came after the claim was lost)';

-- The sweep of payloads that nobody needed any more.
create index submission_kept_payload on submission (ended_at)
    where state in ('exhausted', 'needs_review') and sealed_payload is not null;

-- A job that expired makes no older one wait for it.
create index submission_expiry on submission (expires_at) where state = 'waiting' and expires_at is not null;
