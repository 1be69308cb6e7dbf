-- jsonpath_error checks a SQL/JSON path. It costs a subtransaction, which is fine: definitions are rare.
-- Returns: why this server cannot parse the text; null if it can
create function pawl.jsonpath_error(p_path text) returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  perform p_path::jsonpath;
  return null;
exception when others then
  return sqlerrm;
end
$$;
