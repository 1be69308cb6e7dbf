-- jsonpath_error checks a SQL/JSON path. It costs a subtransaction, which is fine: definitions are rare. A regular
-- expression that takes long to compile is an error, since each session compiles it again, while commands wait. It
-- gets a second chance, in case the machine was busy.
-- Returns: why this server cannot parse the text, or why it should not; null if it can
create function pawl.jsonpath_error(p_path text) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_begun timestamptz;
begin
  for v_try in 1 .. 2 loop
    v_begun := clock_timestamp();
    perform p_path::jsonpath;
    if clock_timestamp() - v_begun < interval '250 ms' then
      return null;
    end if;
  end loop;
  return 'it takes more than 250 ms to parse; make its regular expressions simpler';
exception when others then
  return sqlerrm;
end
$$;
