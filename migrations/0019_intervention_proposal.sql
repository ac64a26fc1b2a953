-- no-transaction
-- An approval is used once.
create unique index concurrently intervention_proposal on intervention (proposal_id) where proposal_id is not null;
