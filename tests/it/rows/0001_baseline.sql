-- Rows of each state and kind that the baseline allows, for migrations to run over: what was written
-- before them must not stop them. Each job has a customer, but the last two share one.

insert into submission (
    job_id, customer_id, state, waiting_for, due_at, attempts, claimed_by, claimed_until, sealed_payload,
    requested_at, received_at, ended_at, evidence, verification_due_at, chain, entries
)
select
    format('00000000-0000-0000-0000-%s', lpad(n::text, 12, '0'))::uuid,
    case when state <> 'invalid' then format('00000000-0000-0000-0001-%s', lpad(least(n, 9)::text, 12, '0'))::uuid end,
    state, waiting_for, case when state in ('waiting', 'unknown') then now() end, attempts,
    case when state = 'submitting' then 'w1' end, case when state = 'submitting' then now() end,
    case when state in ('submitting', 'waiting', 'unknown', 'exhausted', 'needs_review') then '\x00'::bytea end,
    case when state <> 'invalid' then now() end, now(),
    case when state not in ('submitting', 'waiting', 'unknown') then now() end,
    case when state = 'accepted' then 'response' end, case when state = 'accepted' then now() end,
    case when entries > 0 then decode(repeat('ab', 32), 'hex') end, entries
from (
    values
        (1, 'submitting', null, 1, 0), (2, 'waiting', 'retry', 1, 1), (3, 'waiting', 'provider', 0, 0),
        (4, 'unknown', null, 1, 1), (5, 'rejected', null, 1, 1), (6, 'invalid', null, 0, 0),
        (7, 'exhausted', null, 1, 1), (8, 'needs_review', null, 1, 2), (9, 'superseded', null, 0, 0),
        (10, 'duplicate', null, 0, 0), (11, 'accepted', null, 2, 4), (12, 'waiting', 'customer', 0, 0)
) as job (n, state, waiting_for, attempts, entries);

insert into attempt (job_id, number, worker, signed_at, ended_at, verdict, late_verdict, entry, late_entry)
select format('00000000-0000-0000-0000-%s', lpad(n::text, 12, '0'))::uuid, number, 'w1', now(),
    case when verdict is not null then now() end, verdict, late_verdict, entry, late_entry
from (
    values
        (1, 1, null, null, null, null), (2, 1, 'throttled', null, 1, null), (4, 1, 'unknown', null, 1, null),
        (5, 1, 'rejected', null, 1, null), (7, 1, 'not_sent', null, 1, null),
        (8, 1, 'unknown', 'accepted', 1, 2), (11, 1, 'misconfigured', null, 1, null),
        (11, 2, 'accepted', null, 2, null)
) as attempt (n, number, verdict, late_verdict, entry, late_entry);

insert into observation (job_id, customer_id, at, purpose, status, error, conclusion, entry, read_at)
select '00000000-0000-0000-0000-000000000011', '00000000-0000-0000-0001-000000000009', now(), purpose, status, error,
    conclusion, entry, case when purpose <> 'webhook' then now() end
from (
    values
        ('baseline', 'UNVERIFIED', null, null, null), ('read_back', null, 'timeout', 'look_again', null),
        ('verification', 'PROCESSING', null, null, 3), ('webhook', 'VERIFIED', null, null, 4)
) as observation (purpose, status, error, conclusion, entry);

insert into customer (customer_id, last_read_at, updates_elsewhere, budget_set_at, budget_set_by, budget_note)
values
    ('00000000-0000-0000-0001-000000000001', now(), 0, null, null, null),
    ('00000000-0000-0000-0001-000000000002', null, 1, now(), 'ana', 'told by phone');

insert into dead_lettered_delivery (received_at, size, body_sha256, reason_code, reason)
select now(), 2, decode(repeat('ab', 32), 'hex'), reason_code, 'a fault'
from unnest(array['invalid', 'conflict', 'worker_failed', 'forged', 'stale']) as reason_code;

insert into intervention (action, by, note, job_id, customer_id, entries)
select action, 'ana', 'a reason', '00000000-0000-0000-0000-000000000011', '00000000-0000-0000-0001-000000000009', 4
from unnest(array['pause', 'budget', 'replay', 'resolve', 'review', 'forget', 'requeue']) as action;
insert into intervention (action) values ('resume');

insert into worker (name, instance, version, started_at, seen_at, in_flight)
values ('w1', 'host-1', '0.1.0', now(), now(), 1), ('w1', 'host-2', '0.1.0', now(), now(), 0);

insert into fingerprint_key (mac) values (decode(repeat('ab', 32), 'hex'));
