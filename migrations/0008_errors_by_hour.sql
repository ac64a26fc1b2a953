-- What went wrong, by the hour in which it began: each hour is looked up by the block ranges over
-- `begun_at`, so a filter by `hour` reads those hours' blocks and not every attempt there ever was.
create or replace view provider_errors_hourly as
select
    hours.hour, failed.verdict, failed.detail, failed.http_status, failed.attempts, failed.jobs,
    failed.duration_ms_min, failed.duration_ms_max
from generate_series(date_trunc('hour', now()) - interval '90 days', now(), interval '1 hour') as hours (hour)
cross join lateral (
    select
        verdict, detail, http_status, count(*) as attempts, count(distinct job_id) as jobs,
        min(duration_ms) as duration_ms_min, max(duration_ms) as duration_ms_max
    from attempt
    where verdict <> 'accepted' and begun_at >= hours.hour and begun_at < hours.hour + interval '1 hour'
    group by 1, 2, 3
) failed;

comment on view provider_errors_hourly is 'How many attempts of the last 90 days ended otherwise than accepted, by hour and cause';
comment on column provider_errors_hourly.hour is 'The hour in which they began';

-- Blocks that are not summarized are read for every hour.
alter index attempt_begun set (autosummarize = on);
