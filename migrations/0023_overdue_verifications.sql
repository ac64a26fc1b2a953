-- no-transaction
-- The verifications that are overdue and still followed, those that have been for the longest first.
create index concurrently submission_overdue on submission (verification_overdue_at)
    where verification_overdue_at is not null and verification_due_at is not null;
