-- One customer's backlog costs the others nothing, and no statement that is asked again and again
-- walks what has passed through an index since the oldest snapshot that is open.

-- The newest job that waits is found without reading the others of its customer.
drop index submission_waiting_customer;
create index submission_waiting_newest on submission (customer_id, requested_at, received_at, job_id)
    where state = 'waiting';

-- Jobs that had an attempt are few for each customer, however many wait, or made way, beside them.
drop index submission_customer;
create index submission_customer on submission (customer_id, attempts);

-- Reads of unknown outcomes that are due are found without the jobs that wait, of which there may be
-- many.
drop index submission_due;
create index submission_due on submission (due_at) where state = 'waiting';
create index submission_read_due on submission (due_at) where state = 'unknown';

create or replace view open_work as
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

-- Expired leases are looked for from a time on: what was claimed before that has ended, but its
-- entries may still be there.
create index submission_lease on submission (claimed_until) where state = 'submitting';
