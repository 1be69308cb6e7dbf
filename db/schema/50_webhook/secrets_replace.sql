-- secrets_replace replaces stored secrets by the same secrets, sealed anew, for the schema's owner. A row whose secrets are
-- not those of p_from and p_previous_from any more, or that another transaction has locked, does not change. A subscription
-- or a connection that rested since its secret could not be had goes on.
-- p_table: subscription, callback or connection
-- p_rows:  the keys of the rows, as secrets_page returns them
-- Returns: how many rows were changed
-- Locks:   subscription, callback or connection, those that nobody else has locked
-- Writes:  subscription, callback or connection, audit
create function pawl.secrets_replace(
  p_table text, p_tenants text[], p_rows text[], p_from text[], p_to text[], p_previous_from text[], p_previous_to text[],
  p_caller jsonb default null
) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_changed integer;
begin
  case p_table
  when 'subscription' then
    update pawl.subscription s
    set
      secret = k.secret,
      previous_secret = nullif(k.previous_secret, ''),
      circuit_open_until = case when s.finding is null then s.circuit_open_until end,
      finding = null
    from (
      select l.tenant_id, l.id, k.secret, k.previous_secret
      from unnest(p_tenants, p_rows, p_from, p_to, p_previous_from, p_previous_to)
        as k (tenant_id, key, old_secret, secret, old_previous_secret, previous_secret)
      join pawl.subscription l on l.tenant_id = k.tenant_id and l.id = k.key::uuid
      where l.secret = k.old_secret and coalesce(l.previous_secret, '') = k.old_previous_secret
      for no key update of l skip locked
    ) k
    where s.tenant_id = k.tenant_id and s.id = k.id;
  when 'callback' then
    update pawl.callback b
    set secret = k.secret
    from (
      select l.tenant_id, l.instance_id, k.secret
      from unnest(p_tenants, p_rows, p_from, p_to) as k (tenant_id, key, old_secret, secret)
      join pawl.callback l on l.tenant_id = k.tenant_id and l.instance_id = k.key::uuid
      where l.secret = k.old_secret
      for no key update of l skip locked
    ) k
    where b.tenant_id = k.tenant_id and b.instance_id = k.instance_id;
  when 'connection' then
    update pawl.connection c
    set
      secret = k.secret,
      circuit_open_until = case when c.finding is null then c.circuit_open_until end,
      finding = null
    from (
      select l.tenant_id, l.name, k.secret
      from unnest(p_tenants, p_rows, p_from, p_to) as k (tenant_id, key, old_secret, secret)
      join pawl.connection l on l.tenant_id = k.tenant_id and l.name = k.key
      where l.secret = k.old_secret
      for no key update of l skip locked
    ) k
    where c.tenant_id = k.tenant_id and c.name = k.name;
  end case;
  get diagnostics v_changed = row_count;
  if v_changed > 0 then
    perform pawl_private.audit(
      p_tenant => '*', p_caller => p_caller, p_action => 'secret.rotate', p_target => p_table,
      p_after => jsonb_build_object('rows', v_changed));
  end if;
  return v_changed;
end
$$;
