-- A second person: what one person asks for, another approves. The policy says of what that is demanded, and a
-- trigger holds whoever writes down what was done by hand to it.

create table approval_policy (
    is_only boolean not null default true,
    demands text not null default 'none',
    constraint approval_policy_pkey primary key (is_only),
    constraint approval_policy_one_row check (is_only),
    constraint approval_policy_demands_known check (demands in ('none', 'spending', 'all'))
);

comment on table approval_policy is 'One row: what a second person must approve. The tables'' owner changes it, and no setting does';
comment on column approval_policy.is_only is 'Always true, so that there is one row';
comment on column approval_policy.demands is 'none; spending: what spends an update or declares one spent or not (replay, resolve, budget); all: those, resume, requeue and forget. Never a pause: nobody holds up what stops work';
insert into approval_policy default values;

create table proposal (
    id bigint generated always as identity,
    action text not null,
    job_id uuid,
    customer_id uuid,
    finding text,
    used integer,
    note text not null,
    proposed_by text not null,
    proposed_at timestamptz not null default now(),
    version text not null,
    decision text,
    decided_by text,
    decided_at timestamptz,
    decision_note text,
    constraint proposal_pkey primary key (id),
    constraint proposal_complete check (
        case action
            when 'replay' then job_id is not null and num_nulls(finding, used) = 2
            when 'resolve' then job_id is not null and finding is not null and used is null
            when 'budget' then customer_id is not null and used is not null and num_nulls(job_id, finding) = 2
            when 'forget' then customer_id is not null and num_nulls(job_id, finding, used) = 3
            when 'resume' then num_nulls(job_id, customer_id, finding, used) = 4
            when 'requeue' then num_nulls(job_id, customer_id, finding, used) = 4
            else false
        end
    ),
    constraint proposal_finding_known check (finding in ('accepted', 'rejected', 'not-applied')),
    constraint proposal_used_sane check (used >= 0),
    constraint proposal_signed check (btrim(proposed_by) <> '' and btrim(decided_by) <> ''),
    constraint proposal_decision_known check (decision in ('approved', 'declined', 'void')),
    constraint proposal_whole check (num_nulls(decision, decided_by, decided_at, decision_note) in (0, 4)),
    -- "Ana " is "ana".
    constraint proposal_by_two check (
        decision <> 'approved' or lower(btrim(decided_by)) <> lower(btrim(proposed_by))
    )
);

comment on table proposal is 'What a person asks another to approve; kept for ever, decided once';
comment on column proposal.id is 'The row''s number';
comment on column proposal.action is 'As intervention.action: replay, resolve, budget, resume, requeue, forget';
comment on column proposal.job_id is 'The job, where it is about one';
comment on column proposal.customer_id is 'The customer, where it is about one';
comment on column proposal.finding is 'Of resolve, what was found out: accepted, rejected or not-applied';
comment on column proposal.used is 'Of budget, how many updates were spent elsewhere';
comment on column proposal.note is 'Why, as given with --note';
comment on column proposal.proposed_by is 'Who asks for it, as given with --by';
comment on column proposal.proposed_at is 'When';
comment on column proposal.version is 'What it was proposed of: the job''s row, what the customer has spent, the pause, the dead letter. A proposal is void once that is another';
comment on column proposal.decision is 'approved, declined, or void (what it was proposed of had changed); null until then';
comment on column proposal.decided_by is 'Who decided, as given with --by; never the proposer, where it is approved';
comment on column proposal.decided_at is 'When; an approval lasts a day';
comment on column proposal.decision_note is 'Why, as given with --note; of one that is void, what had changed';

-- Those that wait: few.
create index proposal_pending on proposal (id) where decision is null;
-- Nobody proposes what is proposed already. A dead letter is known by its version.
create unique index proposal_waits_once on proposal (
    action, coalesce(job_id, '00000000-0000-0000-0000-000000000000'),
    coalesce(customer_id, '00000000-0000-0000-0000-000000000000'),
    (case action when 'requeue' then version else '' end)
) where decision is null;

create trigger proposal_proposed_once
    after update of id, action, job_id, customer_id, finding, used, note, proposed_by, proposed_at, version on proposal
    for each row execute function refuse_rewriting();
create trigger proposal_decided_once after update on proposal
    for each row when (old.decision is not null) execute function refuse_rewriting();
create trigger proposal_kept after delete on proposal for each row execute function refuse_rewriting();
create trigger proposal_all_kept before truncate on proposal execute function refuse_rewriting();

alter table intervention add column proposal_id bigint;
comment on column intervention.proposal_id is 'The proposal that it carries out, which names who approved it; null where one person did it alone';

-- Its tables are ours, whatever a session's search_path and temporary tables are.
create function needs_approval(action text) returns boolean language sql stable set search_path = public, pg_temp as $$
    -- A row that was removed demands the most.
    select case coalesce((select demands from approval_policy), 'all')
        when 'none' then false
        when 'spending' then $1 in ('replay', 'resolve', 'budget')
        else $1 in ('replay', 'resolve', 'budget', 'resume', 'requeue', 'forget')
    end
$$;
comment on function needs_approval(text) is 'Whether the policy demands a second person for an action';

create function refuse_alone() returns trigger language plpgsql set search_path = public, pg_temp as $$
begin
    if new.proposal_id is null then
        -- A letter that stays was not requeued.
        if new.action = 'requeue' and new.detail like 'dead letter % stays: %' or not needs_approval(new.action) then
            return null;
        end if;
        raise exception 'approval_policy demands a second person for %: propose it with `kyc-worker propose % …`, and have somebody else approve it with `kyc-worker approve ID`', new.action, new.action
            using errcode = 'restrict_violation', constraint = 'intervention_second_person';
    end if;
    -- A dead letter is known by its name: its job's rows may say nothing of it.
    if not exists (
        select from proposal p
        where p.id = new.proposal_id and p.decision = 'approved' and p.decided_at > now() - interval '1 day'
            and p.action = new.action and p.proposed_by = new."by"
            and case p.action
                when 'requeue' then p.version = new.detail
                else p.job_id is not distinct from new.job_id and p.customer_id is not distinct from new.customer_id
            end
    ) then
        raise exception 'proposal % is no approval of this %: it was not approved within the last day, or is about something else; see `kyc-worker proposals`, or propose it anew', new.proposal_id, new.action
            using errcode = 'restrict_violation', constraint = 'intervention_second_person';
    end if;
    return null;
end
$$;
comment on function refuse_alone() is 'Refuses what one person does by hand where the policy demands a second one';

create trigger intervention_second_person after insert on intervention
    for each row when (new.action not in ('pause', 'review')) execute function refuse_alone();
