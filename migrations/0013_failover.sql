-- A failover may lose what was committed. Replicas notice it, compare what they remember, write it again,
-- and wait for each other before they go on.

alter table worker add column lineage text, add column surveyed_at timestamptz;

comment on column worker.lineage is 'Which history of the database it writes to: the cluster''s identifier and its timeline, and since when the server runs; empty while it only compares';
comment on column worker.surveyed_at is 'When it last compared what it remembers with what a new server has, or wrote some of it again; the others wait for it';

create table lost_commit (
    id bigint generated always as identity,
    noticed_at timestamptz not null default now(),
    worker text not null,
    job_id uuid not null,
    customer_id uuid not null,
    lost text not null,
    attempt integer,
    verdict text,
    is_restored boolean not null,
    constraint lost_commit_pkey primary key (id),
    constraint lost_commit_lost_known check (lost in ('job', 'attempt', 'result')),
    constraint lost_commit_attempt_named check (lost = 'job' or attempt is not null)
);

comment on table lost_commit is 'What a replica had committed and a failover lost, by the job; never changed';
comment on column lost_commit.id is 'The row''s number';
comment on column lost_commit.noticed_at is 'When the replica found it missing';
comment on column lost_commit.worker is 'The replica that remembered it';
comment on column lost_commit.job_id is 'The job';
comment on column lost_commit.customer_id is 'The provider''s customer';
comment on column lost_commit.lost is 'The first that was lost: job: its row; attempt: that an attempt was begun; result: what an attempt came to';
comment on column lost_commit.attempt is 'The last attempt that the replica remembers of the job; null where it remembers none';
comment on column lost_commit.verdict is 'What that attempt came to; null where the replica does not know';
comment on column lost_commit.is_restored is 'Whether the replica wrote it again, as it was; what it could not is for a person, and the work is paused';

-- The report counts those of a span.
create index lost_commit_noticed on lost_commit (noticed_at);

create trigger lost_commit_kept after update or delete on lost_commit
    for each row execute function refuse_rewriting();
create trigger lost_commit_all_kept before truncate on lost_commit execute function refuse_rewriting();
