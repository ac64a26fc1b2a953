-- What a failover lost and a replica wrote again.
insert into lost_commit (worker, job_id, customer_id, lost, attempt, verdict, is_restored)
select 'worker-1', job_id, customer_id, 'attempt', 1, 'accepted', true
from submission where customer_id is not null and attempts > 0;
