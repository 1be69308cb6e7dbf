-- consumer_read reads the next page of a consumer's batch as messages.
-- Returns: up to p_limit messages, in the order of seq. There may be fewer, or none, although the batch
--          goes on: see consumer_next_batch
create function pawl.consumer_read(p_consumer text, p_batch pg_snapshot, p_limit integer) returns setof pawl.message
language plpgsql stable security definer -- A PL/pgSQL function keeps its plan; a SQL function does not.
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set jit = off
as $$
begin
  return query
  select m.*
  from pawl.consumer c
  cross join lateral pawl_private.consumer_steps(c, p_batch, p_limit) h
  cross join lateral pawl_private.message_of(h) m
  where c.name = p_consumer
  order by h.seq;
end
$$;
