-- In a migration of its own, so that the table is read under no lock that holds up work.

alter table submission validate constraint submission_expiring_link_known;
