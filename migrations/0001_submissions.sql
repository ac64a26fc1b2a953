-- A submission is our record of a job, an attempt is one PATCH at the provider, and a
-- dead-lettered delivery is what could not become a job.

create table submission (
    job_id uuid not null,
    customer_id uuid,
    document_type text,
    document_number_last4 text,
    content_hmac bytea,
    state text not null,
    waiting_for text,
    reason_code text,
    reason text,
    due_at timestamptz,
    attempts integer not null default 0,
    retries integer not null default 0,
    deliveries integer not null default 1,
    claimed_by text,
    claim_token bigint not null default 0,
    claimed_until timestamptz,
    sealed_payload bytea,
    requested_at timestamptz,
    received_at timestamptz not null,
    expires_at timestamptz,
    ended_at timestamptz,
    provider_reference text,
    evidence text,
    verification_status text,
    failure_reason text,
    verification_due_at timestamptz,
    correlation_id text,
    constraint submission_pkey primary key (job_id),
    constraint submission_state_known check (state in (
        'submitting', 'waiting', 'unknown',
        'accepted', 'rejected', 'invalid', 'superseded', 'duplicate', 'exhausted', 'needs_review'
    )),
    constraint submission_waiting_for_known check (waiting_for in ('retry', 'customer', 'provider')),
    constraint submission_waiting_for_something check ((state = 'waiting') = (waiting_for is not null)),
    constraint submission_claim_whole check (
        state <> 'submitting' or (claimed_by is not null and claimed_until is not null)
    ),
    -- No row in motion without an alarm: one that is not claimed has a due time.
    constraint submission_alarm_set check (state not in ('waiting', 'unknown') or due_at is not null),
    constraint submission_end_dated check (
        (state in ('submitting', 'waiting', 'unknown')) = (ended_at is null)
    ),
    -- Any replica can carry on a row in motion: its payload is there until it ends.
    constraint submission_payload_kept check (
        state not in ('submitting', 'waiting', 'unknown') or sealed_payload is not null
    ),
    constraint submission_payload_removed check (
        state not in ('accepted', 'rejected', 'invalid', 'superseded', 'duplicate') or sealed_payload is null
    ),
    constraint submission_customer_known check (state = 'invalid' or customer_id is not null),
    constraint submission_counts_sane check (attempts >= 0 and retries >= 0 and deliveries >= 1)
);

comment on table submission is 'Our record of a job: one row a job_id, from its first delivery to its end and the customer''s verification';
comment on column submission.job_id is 'The job''s name, given by the publisher; deduplicates deliveries';
comment on column submission.customer_id is 'The provider''s customer; null only where an invalid job named none';
comment on column submission.document_type is 'The document type to submit';
comment on column submission.document_number_last4 is 'At most the last four characters of the document number, never the whole of it';
comment on column submission.content_hmac is 'HMAC-SHA256 under FINGERPRINT_KEY of the canonical request without its links'' query strings; tells a duplicate from a conflict';
comment on column submission.state is 'In motion: submitting, waiting, unknown. Ended: accepted, rejected, invalid, superseded, duplicate, exhausted, needs_review';
comment on column submission.waiting_for is 'What a waiting submission waits for: retry, customer or provider';
comment on column submission.reason_code is 'Why the submission is where it is, for programs';
comment on column submission.reason is 'Why the submission is where it is, for people; no personal data';
comment on column submission.due_at is 'When the scheduler takes the row up again; set whenever the row is in motion and not claimed';
comment on column submission.attempts is 'How many attempts were begun';
comment on column submission.retries is 'How many attempts count against RETRY_MAX_ATTEMPTS';
comment on column submission.deliveries is 'How often the broker handed the job over';
comment on column submission.claimed_by is 'The worker that holds the claim, or held the last one';
comment on column submission.claim_token is 'Fencing token: grows with every claim; a write with an older one touches nothing';
comment on column submission.claimed_until is 'When the claim''s lease ends, by the database''s clock';
comment on column submission.sealed_payload is 'The request, sealed with AES-256-GCM under PAYLOAD_KEY; removed when it is no longer needed';
comment on column submission.requested_at is 'When the customer or upstream asked for the update';
comment on column submission.received_at is 'When the first delivery arrived';
comment on column submission.expires_at is 'When the job stops making sense, if upstream said so';
comment on column submission.ended_at is 'When the submission ended';
comment on column submission.provider_reference is 'The id in the provider''s acceptance';
comment on column submission.evidence is 'How an acceptance is known: response';
comment on column submission.verification_status is 'The provider''s latest word on the customer''s verification, as it was written';
comment on column submission.failure_reason is 'Why the verification failed, in the provider''s words';
comment on column submission.verification_due_at is 'When the verification is looked at next';
comment on column submission.correlation_id is 'The delivery''s correlation_id, for upstream''s own tracing';

-- Promise 3: a second claim on a customer cannot be committed.
create unique index submission_one_claim_per_customer on submission (customer_id)
    where state in ('submitting', 'unknown');
create index submission_due on submission (due_at) where state in ('waiting', 'unknown');
create index submission_lease on submission (claimed_until) where state = 'submitting';
create index submission_customer on submission (customer_id, requested_at, received_at);

create table attempt (
    job_id uuid not null,
    number integer not null,
    worker text not null,
    begun_at timestamptz not null default now(),
    signed_at timestamptz not null,
    ended_at timestamptz,
    verdict text,
    detail text,
    late_verdict text,
    http_status integer,
    provider_message text,
    error text,
    duration_ms integer,
    constraint attempt_pkey primary key (job_id, number),
    constraint attempt_job_id_fkey foreign key (job_id) references submission (job_id),
    constraint attempt_number_positive check (number >= 1),
    constraint attempt_verdict_known check (verdict in (
        'accepted', 'rejected', 'not_sent', 'throttled', 'misconfigured', 'unknown'
    )),
    constraint attempt_closed_whole check ((verdict is null) = (ended_at is null))
);

comment on table attempt is 'One PATCH at the provider, committed before its first byte leaves and closed once';
comment on column attempt.job_id is 'The job';
comment on column attempt.number is 'The attempt''s number within the job, from 1';
comment on column attempt.worker is 'The worker that made it';
comment on column attempt.begun_at is 'When it was begun, by the database''s clock';
comment on column attempt.signed_at is 'The time in its X-TIMESTAMP, by the worker''s clock, taken before the claim';
comment on column attempt.ended_at is 'When its result was recorded; null while it is open';
comment on column attempt.verdict is 'What its result means: accepted, rejected, not_sent, throttled, misconfigured, unknown';
comment on column attempt.detail is 'The verdict''s cause as a code';
comment on column attempt.late_verdict is 'What a worker that had lost its claim learned afterwards';
comment on column attempt.http_status is 'The HTTP status, where one was seen';
comment on column attempt.provider_message is 'The provider''s words on a failure, without what the customer entered';
comment on column attempt.error is 'What went wrong on our side or on the way; no personal data';
comment on column attempt.duration_ms is 'From the exchange''s start to its end, in milliseconds';

create table dead_lettered_delivery (
    id bigint generated always as identity,
    message_id text,
    job_id uuid,
    received_at timestamptz not null,
    size integer not null,
    body_sha256 bytea not null,
    reason_code text not null,
    reason text not null,
    constraint dead_lettered_delivery_pkey primary key (id),
    constraint dead_lettered_delivery_reason_known check (reason_code in ('invalid', 'conflict'))
);

comment on table dead_lettered_delivery is 'What could not become a job and why; the message itself waits in the dead-letter queue';
comment on column dead_lettered_delivery.id is 'The row''s number';
comment on column dead_lettered_delivery.message_id is 'The AMQP message_id, where there was one';
comment on column dead_lettered_delivery.job_id is 'The job_id, where one could be read';
comment on column dead_lettered_delivery.received_at is 'When the delivery arrived';
comment on column dead_lettered_delivery.size is 'The body''s size in bytes';
comment on column dead_lettered_delivery.body_sha256 is 'SHA-256 of the body, to find the message in the dead-letter queue';
comment on column dead_lettered_delivery.reason_code is 'invalid: it breaks the message contract; conflict: its job_id is another content''s';
comment on column dead_lettered_delivery.reason is 'Every fault with its JSON pointer; never a value';

create index dead_lettered_delivery_body on dead_lettered_delivery (body_sha256);
create index dead_lettered_delivery_received on dead_lettered_delivery (received_at);
create index attempt_failed on attempt (ended_at) where verdict <> 'accepted';
