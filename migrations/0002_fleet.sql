-- What the fleet knows, read by one replica at a time for all. Metrics and dashboards read these few rows
-- and count nothing.

create table fleet_figure (
    figure text not null,
    part text not null default '',
    value double precision not null,
    constraint fleet_figure_pkey primary key (figure, part)
);

comment on table fleet_figure is 'What the fleet knows, as it was read last: metrics, dashboards and scalers read these rows and count nothing';
comment on column fleet_figure.figure is 'What is told: open_jobs, oldest_open_seconds, late_jobs, waiting_for_person, verifications_running, verifications_overdue, verification_reads_late_seconds, replicas_alive, replicas_working, dead_lettered_day';
comment on column fleet_figure.part is 'Of which state or reason; empty where there is one value alone';
comment on column fleet_figure.value is 'How many, or how many seconds';

create table fleet_reading (
    one boolean not null default true,
    begun_at timestamp with time zone not null default 'epoch',
    read_at timestamp with time zone not null default 'epoch',
    took_seconds double precision not null default 0,
    constraint fleet_reading_pkey primary key (one),
    constraint fleet_reading_one check (one)
);

comment on table fleet_reading is 'The one row that says whose turn it is to read the figures, and how fresh they are';
comment on column fleet_reading.one is 'There is one row';
comment on column fleet_reading.begun_at is 'When a replica last began to read';
comment on column fleet_reading.read_at is 'When the figures were read that fleet_figure has';
comment on column fleet_reading.took_seconds is 'How long the last try took: the next one comes after fifty times as long, or fifteen seconds';

insert into fleet_reading default values;
