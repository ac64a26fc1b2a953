-- A read is dated by two clocks: the database's alone can be set back, as by a failover.

alter table observation add column read_at timestamptz;

comment on column observation.at is 'Taken before the read began, by the database''s clock';
comment on column observation.read_at is 'The same by the clock of the replica that read; null of a webhook, and of reads before this column';
