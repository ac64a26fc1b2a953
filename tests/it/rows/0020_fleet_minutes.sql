-- What was counted of one minute.
insert into fleet_ended (minute, state, jobs) values (date_trunc('minute', now()), 'accepted', 7);

insert into fleet_error (minute, verdict, detail, http_status, attempts)
values (date_trunc('minute', now()), 'unknown', 'timed_out', default, 2), (date_trunc('minute', now()), 'throttled', default, 429, 1);
