-- schemas_for finds the schemas that references name, with those that these refer to: the latest version for
-- 'pawl:NAME', that version for 'pawl:NAME@VERSION'.
-- Returns: a row for each reference: schema, null if there is none. It ends with the row by which the schemas have
--          p_bytes
create function pawl.schemas_for(p_references text[], p_bytes bigint) returns table (reference text, schema jsonb)
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  v_next text[] := p_references;
  v_more text[];
  v_found text[] := '{}';
  v_bytes bigint := 0;
begin
  while v_next <> '{}' loop
    v_found := v_found || v_next;
    v_more := '{}';
    for reference, schema in
      select r.reference, s.schema
      from unnest(v_next) as r (reference)
      left join lateral (
        select s.schema
        from pawl.schema s
        where s.name = split_part(substr(r.reference, 6), '@', 1)
          and (position('@' in r.reference) = 0 or s.version::text = split_part(r.reference, '@', 2))
        order by s.version desc
        limit 1
      ) s on true
    loop
      return next;
      v_bytes := v_bytes + coalesce(octet_length(schema::text), 0);
      if v_bytes >= p_bytes then
        return;
      end if;
      v_more := v_more || pawl_private.schema_references(schema);
    end loop;
    v_next := array(select unnest(v_more) except select unnest(v_found));
  end loop;
end
$$;
