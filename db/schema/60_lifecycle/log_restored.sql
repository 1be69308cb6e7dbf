-- log_restored does nothing: the sequencer sees by itself that the database was restored from a dump. It is kept
-- for those who call it after a restore, as earlier versions asked.
create function pawl.log_restored() returns void
language sql volatile
as $$ select $$;
