-- What each replica is set to, for people who compare replicas.

alter table worker add column settings jsonb;

comment on column worker.settings is 'The settings that it runs with, by their variables, as `kyc-worker check` shows them: no secret, and of a URL that may hold one its scheme alone. Written once, after the first heartbeat; null before that, and of an older version';
