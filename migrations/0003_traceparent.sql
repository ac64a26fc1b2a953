-- The trace that a job was published in, so that whichever replica takes it up can name it.

alter table submission add column traceparent text;

comment on column submission.traceparent is 'The delivery''s traceparent (W3C Trace Context), where it had one that can be read';
