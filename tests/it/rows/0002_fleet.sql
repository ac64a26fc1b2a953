insert into fleet_figure (figure, part, value) values ('late_jobs', '', 3);
