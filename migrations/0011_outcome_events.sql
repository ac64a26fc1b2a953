-- What upstream is told (OUTCOME_EVENTS): each event is committed with the change that it tells of, and
-- removed once the broker has it.

alter table submission add column verification_ended_at timestamptz;

comment on column submission.verification_ended_at is 'As of when the verification''s end is known that verification_status tells; a read that finds the same again leaves it';

create table outcome_event (
    id bigint generated always as identity,
    kind text not null,
    job_id uuid not null,
    customer_id uuid,
    at timestamptz not null,
    token bigint not null,
    state text not null,
    reason_code text,
    reason text,
    attempts integer not null,
    evidence text,
    verification_status text,
    failure_reason text,
    requested_at timestamptz,
    ended_at timestamptz,
    correlation_id text,
    traceparent text,
    written_at timestamptz not null default now(),
    -- Published by their numbers: a job's events get theirs while its row is locked, so in their order.
    constraint outcome_event_pkey primary key (id)
);

comment on table outcome_event is 'An event that upstream is to be told: how a job ended, or what its verification became. Removed once the broker has confirmed it; `kyc-worker events replay` writes events again';
comment on column outcome_event.id is 'The row''s number: a job''s events are published in this order';
comment on column outcome_event.kind is 'The routing key: job.accepted, job.rejected, job.invalid, job.superseded, job.duplicate, job.exhausted, job.needs_review, verification.verified, verification.failed, verification.overdue';
comment on column outcome_event.job_id is 'The job';
comment on column outcome_event.customer_id is 'The provider''s customer; null only where an invalid job named none';
comment on column outcome_event.at is 'When it happened; with kind and job_id it names an event about a verification';
comment on column outcome_event.token is 'The job''s claim_token then, and of an invalid job its deliveries; with kind and job_id it names an event about the job''s end';
comment on column outcome_event.state is 'The job''s state then';
comment on column outcome_event.reason_code is 'Why, for programs';
comment on column outcome_event.reason is 'Why, for people; no personal data';
comment on column outcome_event.attempts is 'How many attempts were begun';
comment on column outcome_event.evidence is 'How an acceptance is known: response, read_back, late, person';
comment on column outcome_event.verification_status is 'Of verification.verified and verification.failed: the provider''s word';
comment on column outcome_event.failure_reason is 'Of verification.failed: why, in the provider''s words';
comment on column outcome_event.requested_at is 'When the customer or upstream asked for the update';
comment on column outcome_event.ended_at is 'When the job ended';
comment on column outcome_event.correlation_id is 'The delivery''s correlation_id';
comment on column outcome_event.traceparent is 'The delivery''s traceparent';
comment on column outcome_event.written_at is 'Since when it waits to be published';

-- Whose turn it is to publish: one process at a time, so that a job's events are published in order.
create table event_publishing (
    one boolean not null default true,
    publisher uuid,
    turn_until timestamptz not null default 'epoch',
    constraint event_publishing_pkey primary key (one),
    constraint event_publishing_one check (one)
);

comment on table event_publishing is 'The one row that says which process publishes the outcome events';
comment on column event_publishing.one is 'There is one row';
comment on column event_publishing.publisher is 'The process that publishes, by a name that it draws at its start';
comment on column event_publishing.turn_until is 'Until when the turn is its own: it takes the turn anew with each batch, and whoever comes first after that takes it over';

insert into event_publishing default values;
