-- Module telemetry: what the whole deployment has to do and has not done yet, for metrics. It has no tables.

-- backlog_row is the row type of backlog. It never has rows; see pawl.timeout_row.
create view pawl.backlog_row as
select ''::text as measure, ''::text as label, ''::text as status, 0::float8 as value where false;
