-- Jobs that were archived, and what is kept of their customer.
insert into archived_job (job_id, customer_id, document_type, content_hmac, state, holds_id, ended_at, deliveries, file)
values
    ('00000000-0000-0000-0000-000000000021', '00000000-0000-0000-0001-000000000021', 'PASSPORT',
        decode(repeat('ab', 32), 'hex'), 'accepted', true, now(), 1, '2026-07-0001.jsonl.zst'),
    ('00000000-0000-0000-0000-000000000022', null, null, null, 'invalid', false, now(), 2, '2026-07-0001.jsonl.zst');

insert into archived_customer (
    customer_id, accepted, unknown_outcome, spent_at, newest_job_id, newest_requested_at, newest_received_at,
    applied_until, signed_until, word, word_at, word_read_at, files
)
values (
    '00000000-0000-0000-0001-000000000021', 1, 0, now(), '00000000-0000-0000-0000-000000000021', now(), now(),
    now(), now(), 'VERIFIED', now(), now(), array['2026-07-0001.jsonl.zst']
);

insert into archived_file (file, entry_sha256) values ('2026-07-0001.jsonl.zst', decode(repeat('ab', 32), 'hex'));
