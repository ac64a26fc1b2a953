-- When a read's answer was made, by its own date: two reads that a cache answers with one copy are one.

alter table observation add column dated_at timestamptz;

comment on column observation.dated_at is 'When the answer was made, by its Date header; null where it had none, or told nothing of the customer';
