-- instances reads instances by their ids. The planner inlines it, and every plan looks up each instance by
-- its full key.
-- Returns: the instances that exist, in no order
create function pawl.instances(p_tenants text[], p_ids uuid[]) returns setof pawl.instance
language sql stable parallel safe
as $$
  select i.*
  from unnest(p_tenants, p_ids) as c (tenant, id)
  cross join lateral (select i.* from pawl.instance i where i.tenant_id = c.tenant and i.id = c.id limit 1) i
$$;
