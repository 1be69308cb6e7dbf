-- token_revoke refuses a token from now on. A token that is revoked already stays as it is.
-- p_within: see token_create
-- Returns: the token; no row if the tenant has none of this id
-- Raises:  PW403 forbidden
-- Locks:   token, then setting
-- Writes:  token, setting, audit
create function pawl.token_revoke(p_tenant text, p_id text, p_within text[] default null, p_caller jsonb default null)
returns setof pawl.token
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_token pawl.token;
begin
  select * into v_token from pawl.token t where t.tenant_id = p_tenant and t.id = p_id for no key update;
  if not found then
    return;
  end if;
  perform pawl_private.refuse_unbounded(v_token.workflows, p_within, 'the token');
  if v_token.revoked_at is null then
    update pawl.token t set revoked_at = pawl.now() where t.id = p_id returning * into v_token;
    perform pawl_private.audit(
      p_tenant => p_tenant, p_caller => p_caller, p_action => 'token.revoke', p_target => p_id);
  end if;
  return next v_token;
end
$$;
