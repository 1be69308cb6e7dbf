-- consumer_next_batch says what a consumer is to read next: the batch that it has begun, or a new one.
-- Returns: batch: the cursor after it. begun: whether a part of it has been read. idle: whether there is
--          certainly nothing to read. place: if the next page is not full, the seq up to which the batch
--          has been read after it; null if the batch ends with that page. All are null if there is no
--          such consumer
create function pawl.consumer_next_batch(p_consumer text, out batch pg_snapshot, out begun boolean, out idle boolean, out place bigint)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  select coalesce(c.batch, s.now), c.batch is not null, c.batch is null and s.now::text = c.cursor::text, pawl_private.place_after(c)
  into batch, begun, idle, place
  from pawl.consumer c
  cross join (select pg_current_snapshot() as now offset 0) s
  where c.name = p_consumer;
end
$$;
