-- What people see and do: who works, what was done by hand and why, history that nobody
-- rewrites, and views for people and dashboards.

create table worker (
    name text not null,
    version text not null,
    started_at timestamptz not null,
    seen_at timestamptz not null,
    in_flight integer not null,
    paused_for text[] not null default '{}',
    constraint worker_pkey primary key (name),
    constraint worker_in_flight_sane check (in_flight >= 0)
);

comment on table worker is 'One row a replica: written every two seconds while it lives, removed when it stops. One that died keeps its row for an hour';
comment on column worker.name is 'The replica''s WORKER_NAME';
comment on column worker.version is 'The version that it runs';
comment on column worker.started_at is 'When it started, by its own clock';
comment on column worker.seen_at is 'When it was last alive, by the database''s clock';
comment on column worker.in_flight is 'How many deliveries and jobs it was working on';
comment on column worker.paused_for is 'Why its intake was paused: provider, database, operator; empty while it takes jobs';

create table intervention (
    id bigint generated always as identity,
    at timestamptz not null default now(),
    action text not null,
    by text,
    note text,
    job_id uuid,
    customer_id uuid,
    detail text,
    constraint intervention_pkey primary key (id),
    constraint intervention_action_known check (
        action in ('pause', 'resume', 'budget', 'replay', 'resolve', 'forget', 'requeue')
    ),
    -- Ending a pause needs no reason; everything else does.
    constraint intervention_signed check (action = 'resume' or (by is not null and note is not null)),
    constraint intervention_has_its_job check (action not in ('replay', 'resolve') or job_id is not null),
    constraint intervention_has_its_customer check (action not in ('budget', 'forget') or customer_id is not null)
);

comment on table intervention is 'What people did by hand; never changed. The work is paused while the newest of pause and resume is a pause';
comment on column intervention.id is 'The row''s number';
comment on column intervention.at is 'When';
comment on column intervention.action is 'pause, resume, budget, replay, resolve, forget, requeue';
comment on column intervention.by is 'Who, as given with --by';
comment on column intervention.note is 'Why, as given with --note';
comment on column intervention.job_id is 'The job, where it was about one';
comment on column intervention.customer_id is 'The customer, where it was about one';
comment on column intervention.detail is 'What exactly was done';

create index intervention_pause on intervention (id) where action in ('pause', 'resume');
create index intervention_job on intervention (job_id) where job_id is not null;
create index intervention_customer on intervention (customer_id) where customer_id is not null;

comment on column submission.evidence is 'How an acceptance is known: response, read_back, late (an answer that came after the claim was lost), or person (see intervention)';

-- What a person must look at is found without reading what has ended well.
create index submission_needs_review on submission (ended_at) where state = 'needs_review';

-- Reports and exports read a span of time. Block ranges cost the writer next to nothing.
create index submission_times on submission using brin (received_at, ended_at);

-- History is added to and not rewritten, whoever writes. AFTER and not BEFORE: a BEFORE row
-- trigger locks every row that is updated, its WHEN says no or not; an AFTER trigger whose WHEN
-- says no costs the comparison.
create function refuse_rewriting() returns trigger language plpgsql as $$
begin
    raise exception '% is append-only', tg_table_name
        using errcode = 'restrict_violation',
            hint = 'an open attempt is closed once and may get one late_verdict; nothing else of the history changes';
end
$$;
comment on function refuse_rewriting() is 'Refuses a change to a table that is only added to';

create trigger attempt_closed_once after update on attempt for each row when (
    (new.job_id, new.number, new.worker, new.begun_at, new.signed_at)
        is distinct from (old.job_id, old.number, old.worker, old.begun_at, old.signed_at)
    or old.ended_at is not null
        and (
            new.ended_at, new.verdict, new.detail, new.http_status, new.provider_message, new.error,
            new.duration_ms
        ) is distinct from (
            old.ended_at, old.verdict, old.detail, old.http_status, old.provider_message, old.error,
            old.duration_ms
        )
    or old.late_verdict is not null and new.late_verdict is distinct from old.late_verdict
) execute function refuse_rewriting();
create trigger attempt_kept after delete on attempt for each row execute function refuse_rewriting();
create trigger attempt_all_kept before truncate on attempt execute function refuse_rewriting();
create trigger observation_kept after update or delete on observation
    for each row execute function refuse_rewriting();
create trigger observation_all_kept before truncate on observation execute function refuse_rewriting();
create trigger intervention_kept after update or delete on intervention
    for each row execute function refuse_rewriting();
create trigger intervention_all_kept before truncate on intervention execute function refuse_rewriting();

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

create view open_work as
with open as (
    select * from submission where state = 'submitting'
    union all
    select * from submission where state in ('waiting', 'unknown')
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

comment on view customer_budget is 'One row a customer of whom anything is known: how many of his updates are spent, or may be';
comment on column customer_budget.customer_id is 'The provider''s customer';
comment on column customer_budget.spent is 'Updates spent or possibly spent, here and elsewhere; the worker''s CUSTOMER_UPDATE_LIMIT is compared with this';
comment on column customer_budget.accepted_here is 'Attempts that the provider accepted';
comment on column customer_budget.in_doubt_here is 'Attempts that were ever of unknown fate, those included that looks have settled since';
comment on column customer_budget.elsewhere is 'Updates spent elsewhere, as far as a person has told us';
comment on column customer_budget.budget_set_at is 'When he told us';
comment on column customer_budget.budget_set_by is 'Who told us';
comment on column customer_budget.budget_note is 'Why';
comment on column customer_budget.limit_reached_at is 'When the provider last said that his updates are used up';
comment on column customer_budget.last_spent_at is 'When the last attempt that counts ended';

create view provider_errors_hourly as
select
    date_trunc('hour', ended_at) as hour, verdict, detail, http_status, count(*) as attempts,
    count(distinct job_id) as jobs, min(duration_ms) as duration_ms_min, max(duration_ms) as duration_ms_max
from attempt
where verdict <> 'accepted'
group by 1, 2, 3, 4;

comment on view provider_errors_hourly is 'How many attempts ended otherwise than accepted, by hour and cause';
comment on column provider_errors_hourly.hour is 'The hour in which they ended';
comment on column provider_errors_hourly.verdict is 'rejected, not_sent, throttled, misconfigured, unknown';
comment on column provider_errors_hourly.detail is 'The verdict''s cause as a code';
comment on column provider_errors_hourly.http_status is 'The HTTP status, where one was seen';
comment on column provider_errors_hourly.attempts is 'How many attempts';
comment on column provider_errors_hourly.jobs is 'Of how many jobs';
comment on column provider_errors_hourly.duration_ms_min is 'The shortest exchange, in milliseconds';
comment on column provider_errors_hourly.duration_ms_max is 'The longest exchange, in milliseconds';

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
comment on column reconciliation.fate is 'applied, not_applied, open (it is being looked into), or unknown (a person must find out)';
comment on column reconciliation.evidence is 'How that is known: response, read_back, late, person; or what a look concluded';
comment on column reconciliation.provider_reference is 'The id in the provider''s acceptance';
comment on column reconciliation.verification_status is 'The provider''s latest word on the verification';
