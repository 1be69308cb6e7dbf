-- consumer_read reads a consumer's steps up to p_until as messages.
-- Returns: the messages of steps that were not purged and follow since, in the order of position. The page ends
--          with the message by which its contexts and payloads have p_bytes
create function pawl.consumer_read(p_consumer text, p_until bigint, p_bytes bigint) returns setof pawl.message
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
declare
  v_message pawl.message;
  v_bytes bigint := 0;
begin
  for v_message in
    select m.*
    from pawl.consumer c
    cross join pawl.log_head e
    cross join lateral (
      select l.* from pawl.log l where l.position > c.position and l.position <= p_until order by l.position
    ) l
    cross join lateral (
      select h as step
      from pawl.history h
      where h.tenant_id = l.tenant_id and h.instance_id = l.instance_id and h.version = l.version
      limit 1
    ) h
    cross join lateral pawl_private.message_of(h.step, l.position, e) m
    where c.name = p_consumer and not c.audit
      and pawl_private.step_follows((h.step).xid, (h.step).seq, c.since, c.later_seq)
    order by l.position
  loop
    return next v_message;
    v_bytes := v_bytes + octet_length(v_message.context::text) + coalesce(octet_length(v_message.payload::text), 0);
    exit when v_bytes >= p_bytes;
  end loop;
end
$$;
