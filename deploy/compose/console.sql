-- Whom the console logs in as. The roles are made before it, by deploy/roles.sql.
create role kyc_console login password 'kyc_console' in role kyc_desk;
