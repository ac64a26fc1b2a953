-- In a migration of its own, so that the table is read under no lock that holds up work.

alter table observation validate constraint observation_purpose_known;
alter table observation validate constraint observation_says_something;
