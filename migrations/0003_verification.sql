-- After acceptance, the customer's verification is tracked to its end: by looks, and by what
-- the provider's webhooks say.

alter table submission add column verification_seen_at timestamptz;
alter table submission add column verification_overdue_at timestamptz;
alter table submission add constraint submission_verification_of_accepted
    check (state = 'accepted' or verification_due_at is null);

comment on column submission.verification_due_at is 'When the verification is looked at next; null once it has ended, was given up, or a newer job took it over';
comment on column submission.verification_seen_at is 'As of when verification_status is known; null while it is the acceptance''s own word';
comment on column submission.verification_overdue_at is 'When the verification was found to take longer than VERIFICATION_DEADLINE, whatever came of it';

create index submission_verification on submission (verification_due_at) where verification_due_at is not null;

-- What was accepted before there was a tracker.
update submission set verification_due_at = now()
    where state = 'accepted' and ended_at > now() - interval '7 days';

alter table observation drop constraint observation_purpose_known;
alter table observation add constraint observation_purpose_known
    check (purpose in ('baseline', 'read_back', 'verification', 'webhook'));
comment on table observation is 'What a look at a customer, or a webhook, said of him; never changed';
comment on column observation.at is 'Of a look: taken before it began, by the database''s clock. Of a webhook: its own timestamp, by the provider''s clock';
comment on column observation.purpose is 'baseline: before the first attempt; read_back: to learn an attempt''s fate; verification: to see the verification''s end, one row for each change and one for the end; webhook: the provider told us by itself';

-- A webhook that comes twice is one observation.
create unique index observation_webhook on observation (customer_id, at, status) where purpose = 'webhook';

create table verification_pace (
    is_only boolean not null default true,
    next_read_at timestamptz not null default now(),
    constraint verification_pace_pkey primary key (is_only),
    constraint verification_pace_one_row check (is_only)
);

comment on table verification_pace is 'One row: holds the trackers of all replicas to VERIFICATION_READS_PER_SECOND together';
comment on column verification_pace.is_only is 'Always true, so that there is one row';
comment on column verification_pace.next_read_at is 'When the next looks at customers in verification may begin';

insert into verification_pace default values;

alter table dead_lettered_delivery drop constraint dead_lettered_delivery_reason_known;
alter table dead_lettered_delivery add constraint dead_lettered_delivery_reason_known
    check (reason_code in ('invalid', 'conflict', 'worker_failed', 'forged', 'stale'));
comment on table dead_lettered_delivery is 'What could not become a job or was no customer event, and why; the message itself waits in the dead-letter queue';
comment on column dead_lettered_delivery.reason_code is 'invalid: it breaks its contract; conflict: its job_id is another content''s; worker_failed: a bug of the worker''s; forged: a customer event that the provider did not sign; stale: one that was signed long before it was published';
