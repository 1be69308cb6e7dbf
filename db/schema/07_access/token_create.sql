-- token_create makes a token.
-- p_within: the workflows that the caller is bound to, which bound the token too; null for all
-- Returns: the token; no row if the id is taken
-- Raises:  PW400 malformed-request, PW403 forbidden, PW40T unknown-tenant
-- Writes:  token, audit
create function pawl.token_create(
  p_tenant text, p_id text, p_sha256 bytea, p_subject text, p_scopes text[], p_roles text[], p_workflows text[],
  p_name text default null, p_expires_at timestamptz default null, p_within text[] default null, p_caller jsonb default null
) returns setof pawl.token
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_token pawl.token;
  v_constraint text;
  v_column text;
begin
  perform pawl_private.refuse_unbounded(p_workflows, p_within);
  insert into pawl.token (
    tenant_id, id, sha256, name, subject, scopes, roles, workflows, created_at, created_by, expires_at)
  values (
    p_tenant, p_id, p_sha256, p_name, p_subject, p_scopes, p_roles, p_workflows, pawl.now(),
    coalesce(p_caller ->> 'actor', session_user), p_expires_at)
  on conflict (id) do nothing
  returning * into v_token;
  if v_token.id is null then
    return;
  end if;
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => p_caller, p_action => 'token.create', p_target => p_id,
    p_after => pawl_private.token_document(v_token));
  return next v_token;
exception
  when foreign_key_violation then
    perform pawl_private.raise_condition('unknown-tenant', format('the tenant %s does not exist', p_tenant));
  when data_exception or not_null_violation or check_violation then
    get stacked diagnostics v_constraint = constraint_name, v_column = column_name;
    perform pawl_private.refuse_malformed(pawl_private.broken_rule(sqlerrm, v_constraint, v_column));
end
$$;
