-- What ended in a span of time is read without the rest, however old the table. Block ranges do
-- that only where rows lie in the order in which they came: a job that ends drops its payload,
-- vacuum gives the room to later jobs, and in the end every range has rows of every day. What was
-- received in a span has ended since it began, or is in motion, so one index serves both; it has
-- no entry for jobs in motion, and grows at its right edge alone.
create index submission_ended on submission (ended_at) where ended_at is not null;
drop index submission_times;
