-- schema_version is the number of the latest migration that is applied. The service compares it with the number
-- that it was built with. Raise it with each new migration. It is not immutable, so that a prepared statement does
-- not keep an old number.
-- Returns: the number
create function pawl.schema_version() returns integer
language sql stable parallel safe
as $$ select 1 $$;
