-- log_place finds a place of a former epoch in the present one.
-- Returns: epoch: the present one. place: p_position, or the last common position if that is smaller. state:
--          'known'; 'lost': steps up to p_position, after place, are gone; 'unknown': there has been no such
--          place; 'unready': the server is another than the log's, and its epoch has not begun yet
create function pawl.log_place(p_epoch bigint, p_position bigint, out epoch bigint, out place bigint, out state text)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_head pawl.log_head;
begin
  select h.* into strict v_head from pawl.log_head h;
  epoch := v_head.epoch;
  place := least(p_position, (select min(e.first_position) from pawl.log_epoch e where e.epoch > p_epoch));
  if p_epoch < 1 or p_position < 0 or p_epoch > epoch then
    state := 'unknown';
  elsif place < p_position then
    state := 'lost';
  elsif p_position <= v_head.position then
    state := 'known';
  else
    state := 'unknown';
  end if;
  if state = 'unknown' and not pawl_private.server_is_of_log(v_head.epoch) then
    state := 'unready';
  end if;
end
$$;
