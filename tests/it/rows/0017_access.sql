insert into access_record (by, page, job_id) select 'ana', '/jobs/{id}', job_id from submission limit 1;
