-- no-transaction
-- The newest jobs of a customer, of whom there may be very many that nothing was sent of: superseded, say. Whatever
-- had an attempt is found by `submission_customer`, and is few; it has no entry here, nor has a job whose first
-- attempt begins as it is opened.
create index concurrently submission_unsent
    on submission (customer_id, requested_at desc nulls last, received_at desc, job_id desc)
    where attempts = 0;
