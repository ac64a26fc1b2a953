-- What a job costs, and that it stays so however many there were.

-- Who waits behind another of his customer is found without reading all that the customer ever had.
create index submission_waiting_customer on submission (customer_id) where state = 'waiting';

-- A closed attempt stays on its page, and in no index anew (PostgreSQL, "Heap-Only Tuples"),
-- where no index knows of its end and the page has room. Errors are looked for by the time that
-- they began in, of which an index of block ranges costs next to nothing.
drop index attempt_failed;
create index attempt_begun on attempt using brin (begun_at);
alter table attempt set (fillfactor = 70);

-- An attempt is written in the commit that holds its submission, and no submission that has one
-- is ever deleted; asking for it once more was a tenth of what a job cost here.
alter table attempt drop constraint attempt_job_id_fkey;
