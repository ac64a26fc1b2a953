-- What ended and what failed, minute by minute, for the last day: counted by one replica at a time for all,
-- so that no page of a console counts a table that grows.

alter table fleet_reading add column minutes_until timestamptz not null default 'epoch';

comment on column fleet_reading.minutes_until is 'Until when fleet_ended and fleet_error are counted; the next reading goes on from two minutes before';

create table fleet_ended (
    minute timestamptz not null,
    state text not null,
    jobs integer not null,
    constraint fleet_ended_pkey primary key (minute, state)
);

comment on table fleet_ended is 'How many jobs ended in each minute of the last day, as they stood when the minute was counted; a minute without an end has no row';
comment on column fleet_ended.minute is 'The minute that they ended in, by its begin';
comment on column fleet_ended.state is 'How they ended';
comment on column fleet_ended.jobs is 'How many';

-- A key holds no null: so an attempt without a detail, or without an answer, has a value of its own.
create table fleet_error (
    minute timestamptz not null,
    verdict text not null,
    detail text not null default '',
    http_status integer not null default 0,
    attempts integer not null,
    constraint fleet_error_pkey primary key (minute, verdict, detail, http_status)
);

comment on table fleet_error is 'How many attempts that began in each minute of the last day were not accepted, by cause, as they stood when the minute was counted; a minute without one has no row';
comment on column fleet_error.minute is 'The minute that they began in, by its begin';
comment on column fleet_error.verdict is 'What their answers mean: rejected, not_sent, throttled, misconfigured, unknown';
comment on column fleet_error.detail is 'The verdict''s cause as a code; empty where it has none';
comment on column fleet_error.http_status is 'The HTTP status; 0 where none was seen';
comment on column fleet_error.attempts is 'How many';
