-- now is the only clock. Tests replace it to move time; nothing else can.
create function pawl.now() returns timestamptz
language sql volatile parallel safe
as $$ select clock_timestamp() $$;
