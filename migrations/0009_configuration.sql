-- Which document types the provider lists for a customer, asked before a first attempt
-- (`DOCUMENT_TYPES=provider`).

alter table observation add column document_types text;

alter table observation drop constraint observation_purpose_known;
alter table observation add constraint observation_purpose_known
    check (purpose in ('baseline', 'configuration', 'read_back', 'verification', 'reconciliation', 'webhook')) not valid;

-- A configuration says nothing of the customer's status, and nothing else says which types there are.
alter table observation drop constraint observation_says_something;
alter table observation add constraint observation_says_something
    check (
        case when purpose = 'configuration'
            then num_nonnulls(document_types, error) = 1 and num_nonnulls(status, failure_reason, conclusion) = 0
            else (status is null) <> (error is null) and document_types is null
        end
    ) not valid;

comment on column observation.document_types is 'The document types that the customer may use, with commas between them; of a configuration alone';
comment on column observation.purpose is 'baseline: before the first attempt; configuration: which document types the customer may use, before the first attempt; read_back: to learn an attempt''s outcome; verification: to see the verification''s end, one row for each change and one for the end; reconciliation: to compare the books with the provider; webhook: the provider told us by itself';
