-- The schema: tables with their checks, indexes, triggers, views. A migration that is merged is
-- never edited; the next one changes what this one made.
--
-- A submission is our record of a job, an attempt is one PATCH at the provider, an observation is
-- what a read of a customer or a customer event said, and a dead-lettered delivery is what could
-- not become a job.

-- Tables
--
-- Postgres reads each check, and the condition of each trigger, from its text anew for every
-- statement that writes the table: with few jobs in a batch that is a good part of what a statement
-- costs. So the checks of `submission` are few: what a row must have depends on whether it has
-- ended, and then on its state.

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
    verification_seen_at timestamptz,
    verification_overdue_at timestamptz,
    chain bytea,
    entries integer not null default 0,
    constraint submission_pkey primary key (job_id),
    -- No job ends before it was received, whichever clocks said so: what was received since a time
    -- has ended since that time, or is in motion.
    constraint submission_state_known check (
        case when ended_at is null then state in ('submitting', 'waiting', 'unknown')
            else ended_at >= received_at and state in (
                'accepted', 'rejected', 'invalid', 'superseded', 'duplicate', 'exhausted', 'needs_review'
            )
        end
    ),
    constraint submission_waiting_for_known check (waiting_for in ('retry', 'customer', 'provider')),
    constraint submission_waiting_for_something check ((state = 'waiting') = (waiting_for is not null)),
    -- No row in motion without an alarm: a claim that runs out, or a due time.
    constraint submission_alarm_set check (
        ended_at is not null
        or case state when 'submitting' then claimed_by is not null and claimed_until is not null
            else due_at is not null
        end
    ),
    -- Any replica can carry on a row in motion. After its end, only a person may need the payload.
    constraint submission_payload_kept check (
        case when ended_at is null then sealed_payload is not null
            else sealed_payload is null or state in ('exhausted', 'needs_review')
        end
    ),
    constraint submission_customer_known check (state = 'invalid' or customer_id is not null),
    constraint submission_counts_sane check (least(attempts, retries, deliveries - 1, entries) >= 0),
    -- Without a chain its length is null, and the check says nothing of it.
    constraint submission_chain_whole check ((entries = 0) = (chain is null) and length(chain) = 32),
    constraint submission_verification_of_accepted check (state = 'accepted' or verification_due_at is null)
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
comment on column submission.due_at is 'When the row is taken up again; set whenever the row is in motion and not claimed';
comment on column submission.attempts is 'How many attempts were begun';
comment on column submission.retries is 'How many attempts count against RETRY_MAX_ATTEMPTS';
comment on column submission.deliveries is 'How often the broker handed the job over';
comment on column submission.claimed_by is 'The worker that holds the claim, or held the last one';
comment on column submission.claim_token is 'Fencing token: grows with every claim; a write with an older one touches nothing';
comment on column submission.claimed_until is 'When the claim''s lease ends, by the database''s clock';
comment on column submission.sealed_payload is 'The request, sealed with AES-256-GCM under PAYLOAD_KEY; removed when it is no longer needed';
comment on column submission.requested_at is 'When the customer or upstream asked for the update';
comment on column submission.received_at is 'When the first delivery arrived, by the worker''s clock';
comment on column submission.expires_at is 'When the job stops making sense, if upstream said so';
comment on column submission.ended_at is 'When the submission ended, by the database''s clock; never before received_at';
comment on column submission.provider_reference is 'The id in the provider''s acceptance';
comment on column submission.evidence is 'How an acceptance is known: response, read_back, late (an answer that came after the claim was lost), or person (see intervention)';
comment on column submission.verification_status is 'The provider''s latest word on the customer''s verification, as it was written';
comment on column submission.failure_reason is 'Why the verification failed, in the provider''s words';
comment on column submission.verification_due_at is 'When the verification is read next; null once it has ended, was given up, or a newer job''s replaced it';
comment on column submission.correlation_id is 'The delivery''s correlation_id, for upstream''s own tracing';
comment on column submission.verification_seen_at is 'As of when verification_status is known; null while it is the acceptance''s own word';
comment on column submission.verification_overdue_at is 'When the verification was found to take longer than VERIFICATION_DEADLINE, whatever came of it';
comment on column submission.chain is 'HMAC-SHA256 under FINGERPRINT_KEY of the newest entry of its history and of all before it; null before the first. `kyc-worker audit` verifies it';
comment on column submission.entries is 'How many entries its history has: attempts that were closed, late verdicts, observations';

-- Without a foreign key to `submission`: an attempt is inserted in the commit that holds its
-- submission's row, and no submission that has an attempt is ever deleted. The key's own look-up was
-- a tenth of what a job cost here.
--
-- The fill factor leaves room on each page, and no index holds what the end of an attempt sets: so
-- the closed row stays on its page and enters no index anew (PostgreSQL, "Heap-Only Tuples").
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
    entry integer,
    late_entry integer,
    constraint attempt_pkey primary key (job_id, number),
    constraint attempt_number_positive check (number >= 1),
    constraint attempt_verdict_known check (verdict in (
        'accepted', 'rejected', 'not_sent', 'throttled', 'misconfigured', 'unknown'
    )),
    constraint attempt_closed_whole check ((verdict is null) = (ended_at is null))
) with (fillfactor = 70);

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
comment on column attempt.duration_ms is 'From the request''s start to the end of its answer, in milliseconds';
comment on column attempt.entry is 'Its result''s place in the job''s history, from 1; null while it is open';
comment on column attempt.late_entry is 'late_verdict''s place in the job''s history';

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
    entry integer,
    read_at timestamptz,
    constraint observation_pkey primary key (id),
    constraint observation_purpose_known check (purpose in ('baseline', 'read_back', 'verification', 'webhook')),
    constraint observation_says_something check ((status is null) <> (error is null))
);

comment on table observation is 'What a read of a customer, or a webhook, said of them; never changed';
comment on column observation.id is 'The row''s number';
comment on column observation.job_id is 'The job that it was made for';
comment on column observation.customer_id is 'The customer';
comment on column observation.at is 'Taken before the read began, by the database''s clock';
comment on column observation.purpose is 'baseline: before the first attempt; read_back: to learn an attempt''s outcome; verification: to see the verification''s end, one row for each change and one for the end; webhook: the provider told us by itself';
comment on column observation.status is 'The verification status, as the provider wrote it';
comment on column observation.failure_reason is 'Why the verification failed, in the provider''s words';
comment on column observation.error is 'Why the read told nothing, as a code';
comment on column observation.conclusion is 'What a read-back concluded of the attempt: applied, rejected, not_applied, confirming, last_update, look_again, unsettled';
comment on column observation.entry is 'Its place in the job''s history, from 1';
comment on column observation.read_at is 'The same by the clock of the replica that read; null of a webhook';

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

comment on table customer is 'What is known of a customer beside their submissions; written by reads and people, never on the hot path';
comment on column customer.customer_id is 'The provider''s customer';
comment on column customer.last_read_at is 'When they were last read at the provider; the provider asks for 60 s between two reads';
comment on column customer.updates_elsewhere is 'Updates of theirs that others spent, as far as a person has told us';
comment on column customer.budget_set_at is 'When a person told us';
comment on column customer.budget_set_by is 'Who told us';
comment on column customer.budget_note is 'Why';
comment on column customer.limit_reached_at is 'When the provider last said that their updates are used up';

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
    constraint dead_lettered_delivery_reason_known check (
        reason_code in ('invalid', 'conflict', 'worker_failed', 'forged', 'stale')
    )
);

comment on table dead_lettered_delivery is 'What could not become a job or was no customer event, and why; the message itself waits in the dead-letter queue';
comment on column dead_lettered_delivery.id is 'The row''s number';
comment on column dead_lettered_delivery.message_id is 'The AMQP message_id, where there was one';
comment on column dead_lettered_delivery.job_id is 'The job_id, where one could be read';
comment on column dead_lettered_delivery.received_at is 'When the delivery arrived';
comment on column dead_lettered_delivery.size is 'The body''s size in bytes';
comment on column dead_lettered_delivery.body_sha256 is 'SHA-256 of the body, to find the message in the dead-letter queue';
comment on column dead_lettered_delivery.reason_code is 'invalid: it breaks its contract; conflict: its job_id is another content''s; worker_failed: a bug of the worker''s; forged: a customer event that the provider did not sign; stale: one that was signed long before it was published';
comment on column dead_lettered_delivery.reason is 'Every fault with its JSON pointer; never a value';

create table intervention (
    id bigint generated always as identity,
    at timestamptz not null default now(),
    action text not null,
    by text,
    note text,
    job_id uuid,
    customer_id uuid,
    detail text,
    entries integer,
    constraint intervention_pkey primary key (id),
    constraint intervention_action_known check (
        action in ('pause', 'resume', 'budget', 'replay', 'resolve', 'review', 'forget', 'requeue')
    ),
    -- Ending a pause needs no reason; everything else does.
    constraint intervention_signed check (action = 'resume' or (by is not null and note is not null)),
    constraint intervention_has_its_job check (
        action not in ('replay', 'resolve', 'review') or job_id is not null and entries is not null
    ),
    constraint intervention_has_its_customer check (action not in ('budget', 'forget') or customer_id is not null)
);

comment on table intervention is 'What people did by hand; never changed. The work is paused while the newest of pause and resume is a pause';
comment on column intervention.id is 'The row''s number';
comment on column intervention.at is 'When';
comment on column intervention.action is 'pause, resume, budget, replay, resolve, review (a job that waited was handed to a person), forget, requeue';
comment on column intervention.by is 'Who, as given with --by';
comment on column intervention.note is 'Why, as given with --note';
comment on column intervention.job_id is 'The job, where it was about one';
comment on column intervention.customer_id is 'The customer, where it was about one';
comment on column intervention.detail is 'What exactly was done';
comment on column intervention.entries is 'How many entries the job''s history had then';

-- Several processes may run under one WORKER_NAME, and one that hangs must not hide behind another.
create table worker (
    name text not null,
    version text not null,
    started_at timestamptz not null,
    seen_at timestamptz not null,
    in_flight integer not null,
    paused_for text[] not null default '{}',
    instance text not null,
    constraint worker_pkey primary key (name, instance),
    constraint worker_in_flight_sane check (in_flight >= 0)
);

comment on table worker is 'One row a process: written every two seconds while it lives, removed when it stops. One that died keeps its row for an hour';
comment on column worker.name is 'The process''s WORKER_NAME';
comment on column worker.version is 'The version that it runs';
comment on column worker.started_at is 'When it started, by its own clock';
comment on column worker.seen_at is 'When it was last alive, by the database''s clock';
comment on column worker.in_flight is 'How many deliveries and jobs it was working on';
comment on column worker.paused_for is 'Why it takes no jobs: provider, database, operator, broker (no session); empty while it takes them';
comment on column worker.instance is 'Which process it is: host, process id, and what tells it from any other that had both';

create table verification_pace (
    is_only boolean not null default true,
    next_read_at timestamptz not null default now(),
    constraint verification_pace_pkey primary key (is_only),
    constraint verification_pace_one_row check (is_only)
);

comment on table verification_pace is 'One row: holds the trackers of all replicas to VERIFICATION_READS_PER_SECOND together';
comment on column verification_pace.is_only is 'Always true, so that there is one row';
comment on column verification_pace.next_read_at is 'When the next reads of customers in verification may begin';
insert into verification_pace default values;

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

-- Indexes, each with what is read by it
--
-- An index of `submission` is entered when a job is opened and again when it ends, so there are as
-- few as its statements need, and those for work hold rows in motion alone.

-- Holds a promise: a second claim on a customer cannot be committed. By it, a job that is due, or
-- opened, finds whether the customer's slot is taken.
create unique index submission_one_claim_per_customer on submission (customer_id)
    where state in ('submitting', 'unknown');
-- The dispatcher takes the waiting jobs that are due the longest, postpones those that cannot run
-- yet, and asks when the next is due.
create index submission_due on submission (due_at) where state = 'waiting';
-- The reconciler takes the due reads of unknown outcomes, without the jobs that wait, of which there
-- may be many.
create index submission_read_due on submission (due_at) where state = 'unknown';
-- Expired leases are found from a time on: what was claimed before that has ended, but its entries
-- may still be there.
create index submission_lease on submission (claimed_until) where state = 'submitting';
-- Jobs past their `expires_at` end; one that waits for nothing else must not hold up an older one.
create index submission_expiry on submission (expires_at) where state = 'waiting' and expires_at is not null;
-- The newest waiting job of a customer is found without the others: to wake it when the slot is
-- free, and to tell whether a job has a newer one.
create index submission_waiting_newest on submission (customer_id, requested_at, received_at, job_id)
    where state = 'waiting';
-- A customer's jobs: those that had an attempt (`attempts > 0`) are the siblings that a claim, a
-- read and the budget look at, and are few however many wait, or were superseded, beside them. All
-- of them for `show`, `budget`, `forget` and the report.
create index submission_customer on submission (customer_id, attempts);
-- The tracker takes the verifications that are due.
create index submission_verification on submission (verification_due_at) where verification_due_at is not null;
-- Reports, lists and exports read a span of time: what was received in it has ended since it began,
-- or is in motion. There is no entry for a job in motion, and the index grows at its right edge alone.
create index submission_ended on submission (ended_at) where ended_at is not null;
-- What waits for a person is found without what has ended well: the view `open_work`, the report.
create index submission_needs_review on submission (ended_at) where state = 'needs_review';
-- Maintenance removes the payloads whose retention is over.
create index submission_kept_payload on submission (ended_at)
    where state in ('exhausted', 'needs_review') and sealed_payload is not null;

-- Errors of the report and of the view `provider_errors_hourly` are read by the hour in which the
-- attempt began. Block ranges cost the writer next to nothing; a range that is not summarized would
-- be read for every hour.
create index attempt_begun on attempt using brin (begun_at) with (autosummarize = on);

-- Reads of a customer, whichever job they were made for: whether a verification is over, and what was
-- seen before an attempt.
create index observation_customer on observation (customer_id, at);
-- What a read-back concluded of a job's attempts, in order; `show` and `audit` read a job's history.
create index observation_job on observation (job_id, id);
-- A customer event that comes twice is recorded once.
create unique index observation_webhook on observation (customer_id, at, status) where purpose = 'webhook';

-- `requeue` and `replay` find a dead letter by its message's body.
create index dead_lettered_delivery_body on dead_lettered_delivery (body_sha256);
-- Maintenance removes those whose retention is over; the report counts those of a span.
create index dead_lettered_delivery_received on dead_lettered_delivery (received_at);

-- The newest of pause and resume, read by each heartbeat.
create index intervention_pause on intervention (id) where action in ('pause', 'resume');
-- What people did to a job: `show`, `export`, `audit`.
create index intervention_job on intervention (job_id) where job_id is not null;
-- Whether a customer was forgotten: `audit`.
create index intervention_customer on intervention (customer_id) where customer_id is not null;

-- Triggers: history is added to and not rewritten, whoever writes
--
-- AFTER and not BEFORE: a BEFORE row trigger locks every row that is updated, its WHEN says no or
-- not; an AFTER trigger whose WHEN says no costs the comparison. A trigger on columns is asked only
-- by a statement that sets one of them, so what no statement of ours sets costs ours nothing.

create function refuse_rewriting() returns trigger language plpgsql as $$
begin
    raise exception '% is append-only', tg_table_name
        using errcode = 'restrict_violation',
            hint = 'an open attempt is closed once and may get one late_verdict; nothing else of the history changes';
end
$$;
comment on function refuse_rewriting() is 'Refuses a change to a table that is only added to';

create trigger attempt_begun_once after update of job_id, number, worker, begun_at, signed_at on attempt
    for each row execute function refuse_rewriting();
create trigger attempt_closed_once
    after update of ended_at, verdict, detail, http_status, provider_message, error, duration_ms, entry on attempt
    for each row when (old.ended_at is not null) execute function refuse_rewriting();
create trigger attempt_late_once after update of late_verdict, late_entry on attempt
    for each row when (old.late_verdict is not null) execute function refuse_rewriting();
create trigger attempt_kept after delete on attempt for each row execute function refuse_rewriting();
create trigger attempt_all_kept before truncate on attempt execute function refuse_rewriting();
create trigger observation_kept after update or delete on observation
    for each row execute function refuse_rewriting();
create trigger observation_all_kept before truncate on observation execute function refuse_rewriting();
create trigger intervention_kept after update or delete on intervention
    for each row execute function refuse_rewriting();
create trigger intervention_all_kept before truncate on intervention execute function refuse_rewriting();

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

-- Views, for people and dashboards: docs/database.md

create view job_overview as
select
    s.job_id, s.customer_id, s.document_type, s.document_number_last4, s.state, s.waiting_for,
    s.reason_code, s.reason, s.requested_at, s.received_at, s.ended_at,
    coalesce(s.ended_at, now()) - s.received_at as took,
    s.due_at, s.deliveries, s.attempts, last.ended_at as last_attempt_at, last.verdict as last_verdict,
    last.http_status as last_http_status, s.evidence, s.provider_reference, s.verification_status,
    s.failure_reason, s.correlation_id, s.sealed_payload is not null as has_payload
from submission s
left join lateral (
    select a.ended_at, a.verdict, a.http_status
    from attempt a
    where a.job_id = s.job_id
    order by a.number desc
    limit 1
) last on true;

comment on view job_overview is 'One row a job: where it stands and how it got there. Filter by job_id, customer_id or a time';
comment on column job_overview.job_id is 'The job';
comment on column job_overview.customer_id is 'The provider''s customer';
comment on column job_overview.document_type is 'The document type';
comment on column job_overview.document_number_last4 is 'At most the last four characters of the document number; null where the customer was forgotten';
comment on column job_overview.state is 'In motion: submitting, waiting, unknown. Ended: accepted, rejected, invalid, superseded, duplicate, exhausted, needs_review';
comment on column job_overview.waiting_for is 'What a waiting job waits for: retry, customer or provider';
comment on column job_overview.reason_code is 'Why it is where it is, for programs';
comment on column job_overview.reason is 'Why it is where it is, for people';
comment on column job_overview.requested_at is 'When the customer or upstream asked for it';
comment on column job_overview.received_at is 'When its first delivery arrived';
comment on column job_overview.ended_at is 'When it ended; null while it is in motion';
comment on column job_overview.took is 'From receipt to the end, or to now';
comment on column job_overview.due_at is 'When it is taken up again';
comment on column job_overview.deliveries is 'How often the broker handed it over';
comment on column job_overview.attempts is 'How many attempts were begun';
comment on column job_overview.last_attempt_at is 'When the last attempt ended';
comment on column job_overview.last_verdict is 'What the last attempt''s result means';
comment on column job_overview.last_http_status is 'The last attempt''s HTTP status';
comment on column job_overview.evidence is 'How an acceptance is known: response, read_back, late, person';
comment on column job_overview.provider_reference is 'The id in the provider''s acceptance';
comment on column job_overview.verification_status is 'The provider''s latest word on the customer''s verification';
comment on column job_overview.failure_reason is 'Why the verification failed, in the provider''s words';
comment on column job_overview.correlation_id is 'Upstream''s own name for what it belongs to';
comment on column job_overview.has_payload is 'Whether its sealed payload is kept, so that it can be replayed';

-- One branch a state, so that each has an index of its own.
create view open_work as
with open as (
    select * from submission where state = 'submitting'
    union all
    select * from submission where state = 'waiting'
    union all
    select * from submission where state = 'unknown'
    union all
    select * from submission where state = 'needs_review'
)
select
    s.job_id, s.customer_id, s.state, s.waiting_for, s.state = 'needs_review' as needs_person,
    s.reason_code, s.reason, s.received_at, now() - s.received_at as age, s.due_at,
    coalesce(s.due_at, s.claimed_until) < now() as is_late, s.attempts, s.claimed_by
from open s;

comment on view open_work is 'One row for each job that is not done: in motion, or waiting for a person';
comment on column open_work.job_id is 'The job';
comment on column open_work.customer_id is 'The provider''s customer';
comment on column open_work.state is 'submitting, waiting, unknown, needs_review';
comment on column open_work.waiting_for is 'What a waiting job waits for: retry, customer or provider';
comment on column open_work.needs_person is 'Whether it waits for a person: `kyc-worker resolve`, or `replay`';
comment on column open_work.reason_code is 'Why it is where it is, for programs';
comment on column open_work.reason is 'Why it is where it is, for people';
comment on column open_work.received_at is 'When its first delivery arrived';
comment on column open_work.age is 'How long ago that was';
comment on column open_work.due_at is 'When it is taken up again; null while it is claimed or a person''s';
comment on column open_work.is_late is 'Whether it is due, or its claim has run out: for more than a minute, no replica works';
comment on column open_work.attempts is 'How many attempts were begun';
comment on column open_work.claimed_by is 'The replica that holds it, or held it last';

create view customer_budget as
select
    customer_id, coalesce(c.updates_elsewhere, 0) + coalesce(here.spent, 0) as spent,
    coalesce(here.accepted, 0) as accepted_here, coalesce(here.in_doubt, 0) as in_doubt_here,
    coalesce(c.updates_elsewhere, 0) as elsewhere, c.budget_set_at, c.budget_set_by, c.budget_note,
    c.limit_reached_at, here.last_spent_at
from customer c
full join (
    select
        s.customer_id, count(*) as spent, count(*) filter (where a.verdict = 'accepted') as accepted,
        count(*) filter (where a.verdict = 'unknown') as in_doubt, max(a.ended_at) as last_spent_at
    from submission s
    join attempt a on a.job_id = s.job_id
    where a.verdict in ('accepted', 'unknown')
    group by s.customer_id
) here using (customer_id);

comment on view customer_budget is 'One row a customer of whom anything is known: how many of their updates are spent, or may be';
comment on column customer_budget.customer_id is 'The provider''s customer';
comment on column customer_budget.spent is 'Updates spent or possibly spent, here and elsewhere; the worker''s CUSTOMER_UPDATE_LIMIT is compared with this';
comment on column customer_budget.accepted_here is 'Attempts that the provider accepted';
comment on column customer_budget.in_doubt_here is 'Attempts whose outcome was ever unknown, those included that reads have settled since';
comment on column customer_budget.elsewhere is 'Updates spent elsewhere, as far as a person has told us';
comment on column customer_budget.budget_set_at is 'When they told us';
comment on column customer_budget.budget_set_by is 'Who told us';
comment on column customer_budget.budget_note is 'Why';
comment on column customer_budget.limit_reached_at is 'When the provider last said that their updates are used up';
comment on column customer_budget.last_spent_at is 'When the last attempt that counts ended';

-- Each hour is looked up by the block ranges over `begun_at`: a filter by `hour` reads those hours'
-- blocks, and not every attempt there ever was.
create view provider_errors_hourly as
select
    hours.hour, failed.verdict, failed.detail, failed.http_status, failed.attempts, failed.jobs,
    failed.duration_ms_min, failed.duration_ms_max
from generate_series(date_trunc('hour', now()) - interval '90 days', now(), interval '1 hour') as hours (hour)
cross join lateral (
    select
        verdict, detail, http_status, count(*) as attempts, count(distinct job_id) as jobs,
        min(duration_ms) as duration_ms_min, max(duration_ms) as duration_ms_max
    from attempt
    where verdict <> 'accepted' and begun_at >= hours.hour and begun_at < hours.hour + interval '1 hour'
    group by 1, 2, 3
) failed;

comment on view provider_errors_hourly is 'How many attempts of the last 90 days ended otherwise than accepted, by hour and cause';
comment on column provider_errors_hourly.hour is 'The hour in which they began';
comment on column provider_errors_hourly.verdict is 'rejected, not_sent, throttled, misconfigured, unknown';
comment on column provider_errors_hourly.detail is 'The verdict''s cause as a code';
comment on column provider_errors_hourly.http_status is 'The HTTP status, where one was seen';
comment on column provider_errors_hourly.attempts is 'How many attempts';
comment on column provider_errors_hourly.jobs is 'Of how many jobs';
comment on column provider_errors_hourly.duration_ms_min is 'The shortest duration, in milliseconds';
comment on column provider_errors_hourly.duration_ms_max is 'The longest duration, in milliseconds';

create view reconciliation as
select
    s.customer_id, a.job_id, a.number as attempt, a.begun_at, a.ended_at, a.worker, a.http_status,
    case
        when a.verdict = 'accepted' or a.late_verdict = 'accepted' then 'applied'
        when s.state = 'accepted' and s.evidence in ('read_back', 'person') and a.number = s.attempts then 'applied'
        when settled.conclusion is not null then 'not_applied'
        when a.number < s.attempts then 'not_applied'
        when s.state in ('submitting', 'unknown') then 'open'
        when s.reason_code = 'not_applied' then 'not_applied'
        else 'unknown'
    end as fate,
    coalesce(s.evidence, settled.conclusion) as evidence, s.provider_reference, s.verification_status
from attempt a
join submission s on s.job_id = a.job_id
left join lateral (
    select o.conclusion
    from observation o
    where o.job_id = a.job_id and o.at > a.ended_at
        and o.conclusion in ('not_applied', 'last_update', 'rejected')
    order by o.id
    limit 1
) settled on a.verdict = 'unknown'
where a.verdict is null or a.verdict in ('accepted', 'unknown');

comment on view reconciliation is 'One row for each update that was or may have been made at the provider, to be compared with the provider''s own books';
comment on column reconciliation.customer_id is 'The provider''s customer';
comment on column reconciliation.job_id is 'The job';
comment on column reconciliation.attempt is 'The attempt''s number within the job';
comment on column reconciliation.begun_at is 'When the attempt began: at the provider the update is no older';
comment on column reconciliation.ended_at is 'When its result was recorded';
comment on column reconciliation.worker is 'The replica that made it';
comment on column reconciliation.http_status is 'The HTTP status, where one was seen';
comment on column reconciliation.fate is 'applied, not_applied, open (it is being read back), or unknown (a person must find out)';
comment on column reconciliation.evidence is 'How that is known: response, read_back, late, person; or what a read concluded';
comment on column reconciliation.provider_reference is 'The id in the provider''s acceptance';
comment on column reconciliation.verification_status is 'The provider''s latest word on the verification';
