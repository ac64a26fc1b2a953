-- Who saw which customer in the console: written before the page is sent.

create table access_record (
    id bigint generated always as identity,
    at timestamptz not null default now(),
    by text not null,
    page text not null,
    job_id uuid,
    customer_id uuid,
    constraint access_record_pkey primary key (id),
    constraint access_record_about_somebody check (num_nonnulls(job_id, customer_id) > 0)
);

comment on table access_record is 'Who saw a job or a customer in the console; never changed. Written before the page is sent, in whichever form';
comment on column access_record.id is 'The row''s number';
comment on column access_record.at is 'When';
comment on column access_record.by is 'Who, as the login names them';
comment on column access_record.page is 'Which page, and in which form';
comment on column access_record.job_id is 'The job that it was about';
comment on column access_record.customer_id is 'The customer that it was about; null where the job named none';

-- Who saw a customer, for whoever must tell them.
create index access_record_customer on access_record (customer_id, id) where customer_id is not null;

create trigger access_record_kept after update or delete on access_record
    for each row execute function refuse_rewriting();
create trigger access_record_all_kept before truncate on access_record execute function refuse_rewriting();
