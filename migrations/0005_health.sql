-- A replica without a broker session takes no jobs either, and says so.
comment on column worker.paused_for is 'Why it takes no jobs: provider, database, operator, broker (no session); empty while it takes them';
