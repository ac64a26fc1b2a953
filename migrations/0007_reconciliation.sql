-- A read by which a person compares the books with the provider (`kyc-worker reconcile`).

alter table observation drop constraint observation_purpose_known;
alter table observation add constraint observation_purpose_known
    check (purpose in ('baseline', 'read_back', 'verification', 'reconciliation', 'webhook')) not valid;

comment on column observation.purpose is 'baseline: before the first attempt; read_back: to learn an attempt''s outcome; verification: to see the verification''s end, one row for each change and one for the end; reconciliation: to compare the books with the provider; webhook: the provider told us by itself';
