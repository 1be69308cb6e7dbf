-- consumer_read reads the next page of a consumer's batch as messages.
-- Returns: up to p_limit messages, in the order of seq. The page ends with the message by which its contexts and
--          payloads have p_bytes. There may be fewer messages than p_limit for another reason, or none, although the
--          batch goes on: see consumer_next_batch
create function pawl.consumer_read(p_consumer text, p_batch pg_snapshot, p_limit integer, p_bytes bigint)
returns setof pawl.message
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set jit = off
as $$
declare
  v_message pawl.message;
  v_bytes bigint := 0;
begin
  for v_message in
    select m.*
    from pawl.consumer c
    cross join lateral pawl_private.consumer_steps(c, p_batch, p_limit) h
    cross join lateral pawl_private.message_of(h) m
    where c.name = p_consumer
    order by h.seq
  loop
    return next v_message;
    v_bytes := v_bytes + octet_length(v_message.context::text) + coalesce(octet_length(v_message.payload::text), 0);
    exit when v_bytes >= p_bytes;
  end loop;
end
$$;
