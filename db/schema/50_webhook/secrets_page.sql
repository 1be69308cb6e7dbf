-- secrets_page shows stored secrets to the schema's owner, who seals them anew.
-- p_table: subscription, callback or connection
-- p_row:   the key of the row within its tenant: an id, or the name of a connection. '' for none
-- Returns: up to p_limit rows that have secrets, by tenant and key, after those of p_tenant and p_row
create function pawl.secrets_page(p_table text, p_tenant text, p_row text, p_limit integer) returns setof pawl.stored_secret
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_sort = off
as $$
begin
  case p_table
  when 'subscription' then
    return query
    select s.tenant_id::text, s.id::text, s.secret, coalesce(s.previous_secret, '')
    from pawl.subscription s
    where (s.tenant_id, s.id) > (p_tenant, coalesce(nullif(p_row, '')::uuid, '00000000-0000-0000-0000-000000000000'))
    order by s.tenant_id, s.id
    limit p_limit;
  when 'callback' then
    return query
    select b.tenant_id::text, b.instance_id::text, b.secret, ''
    from pawl.callback b
    where b.secret is not null
      and (b.tenant_id, b.instance_id) > (p_tenant, coalesce(nullif(p_row, '')::uuid, '00000000-0000-0000-0000-000000000000'))
    order by b.tenant_id, b.instance_id
    limit p_limit;
  when 'connection' then
    return query
    select c.tenant_id::text, c.name, c.secret, ''
    from pawl.connection c
    where c.secret is not null and (c.tenant_id, c.name) > (p_tenant, p_row)
    order by c.tenant_id, c.name
    limit p_limit;
  end case;
end
$$;
