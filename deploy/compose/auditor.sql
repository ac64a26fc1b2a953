-- Whom Grafana logs in as. The roles are made before it, by deploy/roles.sql.
create role kyc_audit login password 'kyc_audit' in role kyc_auditor;
