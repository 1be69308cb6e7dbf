-- jsonpath_error says why a text is no SQL/JSON path here, or null if it is one. A
-- subtransaction is fine: definitions are rare.
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
