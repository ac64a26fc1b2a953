-- What a job costs: each index of `submission` is entered when the job is opened, and again when
-- it ends.

-- Claims that ran out are found among all claims, which are no more than requests in flight.
drop index submission_lease;

-- A customer has few jobs, and they are sorted when they are read.
drop index submission_customer;
create index submission_customer on submission (customer_id);
