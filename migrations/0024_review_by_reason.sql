-- no-transaction
-- Who works through what waits for a person asks for one reason, of which there may be few among very many.
create index concurrently submission_review_reason on submission (reason_code, ended_at) where state = 'needs_review';
