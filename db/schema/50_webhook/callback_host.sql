-- callback_host returns the host of an instance's callback, with its port if the URL names one: what of the URL may be shown.
-- Returns: null if the instance has no callback that is still to be delivered
create function pawl.callback_host(p_tenant text, p_instance uuid) returns text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select substring(c.url from '^[^:/?#]*://(?:[^/?#]*@)?([^/?#@]*)')
    from pawl.callback c
    where c.tenant_id = p_tenant and c.instance_id = p_instance);
end
$$;
