-- delivery_messages reads the messages of the given steps.
-- Returns: one message per step that has not been purged, in the order of the parameters. The page ends with the
--          message by which its contexts and payloads have p_bytes: then nothing is known of the steps behind it
create function pawl.delivery_messages(p_tenants text[], p_instances uuid[], p_versions bigint[], p_bytes bigint)
returns setof pawl.message
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_sort = off
set jit = off
as $$
declare
  v_message pawl.message;
  v_bytes bigint := 0;
begin
  for v_message in
    select e.*
    from unnest(p_tenants, p_instances, p_versions) with ordinality as k (tenant_id, instance_id, version, place)
    cross join lateral (
      select h as step
      from pawl.history h
      where h.tenant_id = k.tenant_id and h.instance_id = k.instance_id and h.version = k.version
      limit 1
    ) h
    cross join pawl.log_head g
    cross join lateral pawl_private.message_of(h.step, null, g) e
    order by k.place
  loop
    return next v_message;
    v_bytes := v_bytes + octet_length(v_message.context::text) + coalesce(octet_length(v_message.payload::text), 0);
    exit when v_bytes >= p_bytes;
  end loop;
end
$$;
