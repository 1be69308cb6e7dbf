-- list_place says from when a list is, and whether lists may be read from what was folded: see instances_in_states.
-- Returns: as_of: now. near: whether the consumer insight has folded all of the log but its last p_most positions, and
--          the log is of this server, so that its snapshots can be compared
create function pawl.list_place(p_most bigint, out as_of timestamptz, out near boolean)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  as_of := pawl.now();
  near := exists (
    select
    from pawl.log_head h
    join pawl.consumer c on c.name = 'insight' and not c.audit and c.position >= h.position - p_most
    where h.epoch > 0 and pawl_private.server_is_of_log(h.epoch)
  );
end
$$;
