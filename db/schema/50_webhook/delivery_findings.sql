-- delivery_findings reads the messages of findings. One may have no position yet: the change of a subscription routes it
-- before.
-- Returns: one message per finding that is still kept, in the order of the parameters
create function pawl.delivery_findings(p_tenants text[], p_ids uuid[]) returns setof pawl.finding_message
language sql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_sort = off
set jit = off
as $$
  select m.*
  from unnest(p_tenants, p_ids) with ordinality as k (tenant_id, id, place)
  cross join lateral (
    select f as finding from pawl.finding f where f.tenant_id = k.tenant_id and f.id = k.id limit 1
  ) f
  left join lateral (
    select l.position from pawl.log l where l.tenant_id = k.tenant_id and l.finding_id = k.id limit 1
  ) l on true
  cross join lateral pawl_private.finding_message_of(f.finding, l.position) m
  order by k.place
$$;
