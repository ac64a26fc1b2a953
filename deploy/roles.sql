-- The six roles, to be made once by somebody who may create roles:
--
--     psql "$ADMIN_DATABASE_URL" -f deploy/roles.sql
--
-- They are groups that nobody logs in as. Whoever logs in is made a member:
--
--     create role kyc_deploy login password '…' in role kyc_migrator;
--     alter role kyc_deploy set role = 'kyc_migrator';    -- so that the group owns the tables
--     create role kyc_app login password '…' in role kyc_worker;
--     create role kyc_console login password '…' in role kyc_desk;
--     create role kyc_archive login password '…' in role kyc_archiver;
--     create role kyc_audit login password '…' in role kyc_auditor;
--     create role kyc_scale login password '…' in role kyc_scaler;
--
-- What they may do is granted by `kyc-worker migrate`, each time it runs: the owner of the
-- tables needs no right to create roles for that. docs/database.md tells what each may do.

do $$
declare
    name text;
begin
    foreach name in array array['kyc_migrator', 'kyc_worker', 'kyc_desk', 'kyc_archiver', 'kyc_auditor', 'kyc_scaler'] loop
        if to_regrole(name) is null then
            execute format('create role %I nologin', name);
        end if;
    end loop;
end
$$;

-- The migrator makes the tables, and owns them.
grant usage on schema public to kyc_migrator, kyc_worker, kyc_desk, kyc_archiver, kyc_auditor, kyc_scaler;
grant create on schema public to kyc_migrator;

-- What the console may see of the tables: neither sealed payloads nor fingerprints.
create schema if not exists desk;
grant usage, create on schema desk to kyc_migrator;
grant usage on schema desk to kyc_desk;
