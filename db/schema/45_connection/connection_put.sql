-- connection_put makes a connection, or replaces all of its settings. Its circuit is closed and its finding forgotten.
--
-- A replacement without a secret keeps the one that there is, if it goes to the same place in the same way: base_url, auth
-- and tls_ca are as before. Otherwise who may change a connection could have its secret sent to a server of their own.
-- p_auth:     type, user, name, env; without the secret
-- p_secret:   sealed or not; null if auth is none or names a variable, and to keep the secret
-- p_headers:  an object of texts
-- p_timeout, p_tls_ca: null for none
-- p_expected: the versions of which the connection must have one: '' for any or none, '*' for any, else an array
-- Returns: the connection; no row if the secret is to be kept, and there is none that may be
-- Raises:  PW400 malformed-request if an argument breaks a rule; PW40T unknown-tenant; PW412 version-mismatch
-- Locks:   connection
-- Writes:  connection, audit
create function pawl.connection_put(
  p_tenant text, p_name text, p_base_url text, p_auth jsonb, p_secret text, p_headers jsonb, p_timeout interval,
  p_concurrency integer, p_tls_ca text, p_expected text default '', p_caller jsonb default null
) returns setof pawl.connection_row
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_now timestamptz := pawl.now();
  v_wants boolean := p_auth ->> 'type' <> 'none' and not p_auth ? 'env';
  v_secret text := p_secret;
  v_before pawl.connection;
  v_after pawl.connection;
  v_constraint text;
  v_column text;
begin
  loop
    select * into v_before from pawl.connection c where c.tenant_id = p_tenant and c.name = p_name for no key update;
    perform pawl_private.refuse_changed(p_expected, v_before.version);
    if v_wants and p_secret is null then
      if (v_before.base_url, v_before.auth, v_before.tls_ca) is distinct from (p_base_url, p_auth, p_tls_ca) then
        return;
      end if;
      v_secret := v_before.secret;
    end if;
    if v_before.name is null then
      insert into pawl.connection as c (
        tenant_id, name, version, base_url, auth, secret, headers, timeout, concurrency, tls_ca, created_at, created_by,
        updated_at)
      values (
        p_tenant, p_name, 1, p_base_url, p_auth, v_secret, p_headers, p_timeout, p_concurrency, p_tls_ca, v_now,
        coalesce(p_caller ->> 'actor', session_user), v_now)
      on conflict (tenant_id, name) do nothing
      returning c.* into v_after;
    else
      update pawl.connection c
      set
        version = c.version + 1, base_url = p_base_url, auth = p_auth, secret = v_secret, headers = p_headers,
        timeout = p_timeout, concurrency = p_concurrency, tls_ca = p_tls_ca, failures = 0, circuit_open_until = null,
        finding = null, updated_at = v_now
      where c.tenant_id = p_tenant and c.name = p_name
      returning c.* into v_after;
    end if;
    exit when found; -- Otherwise another caller has just made it.
  end loop;
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => p_caller, p_action => 'connection.put', p_target => p_name,
    p_before => pawl_private.connection_document(v_before), p_after => pawl_private.connection_document(v_after));
  return query select r.* from pawl.connection_row r where r.tenant_id = p_tenant and r.name = p_name;
exception
  when foreign_key_violation then
    perform pawl_private.raise_condition('unknown-tenant', format('the tenant %s does not exist', p_tenant));
  when data_exception or not_null_violation or check_violation then
    get stacked diagnostics v_constraint = constraint_name, v_column = column_name;
    perform pawl_private.refuse_malformed(pawl_private.broken_rule(sqlerrm, v_constraint, v_column));
end
$$;
