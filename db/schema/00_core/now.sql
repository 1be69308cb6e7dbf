-- now is the only clock. Tests replace it to move time; nothing else can.
-- Returns: the time of the call, not of the transaction's beginning
create function pawl.now() returns timestamptz
language sql volatile parallel safe
as $$ select clock_timestamp() $$;
