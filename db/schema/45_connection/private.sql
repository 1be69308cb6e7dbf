-- circuit_open_for is for how long a circuit opens after so many failed attempts in a row; null while it stays closed.
-- Afterwards the circuit is half-open: one attempt at a time probes the other side. p_rest is the time after the fifth
-- failure; each further failure doubles it, up to ten minutes.
create function pawl_private.circuit_open_for(p_failures integer, p_rest interval) returns interval
language sql immutable parallel safe
as $$
  select case when p_failures >= 5 then least(p_rest * 2 ^ least(p_failures - 5, 20), interval '10 minutes') end
$$;

-- connection_document is a connection for the audit; null for none. Of headers it has the names.
create function pawl_private.connection_document(p_connection pawl.connection) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$ select case when p_connection.name is not null then
  jsonb_build_object(
    'base_url', p_connection.base_url, 'auth', p_connection.auth,
    'headers', (select coalesce(jsonb_agg(h.name order by h.name), '[]') from jsonb_object_keys(p_connection.headers) h (name)),
    'timeout_ms', (extract(epoch from p_connection.timeout) * 1000)::integer, 'concurrency', p_connection.concurrency,
    'tls_ca_sha256', encode(sha256(convert_to(p_connection.tls_ca, 'UTF8')), 'hex'))
end $$;

-- refuse_changed raises 'version-mismatch' unless a connection is as its caller expects.
-- p_expected: as for pawl.fire
-- p_version:  null if there is no such connection
create function pawl_private.refuse_changed(p_expected text, p_version bigint) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_expected = '' or p_expected = '*' and p_version is not null then
    return;
  elsif p_version is null then
    perform pawl_private.raise_condition('version-mismatch', 'there is no such connection, so it has no version');
  elsif not p_version = any (p_expected::bigint[]) then
    perform pawl_private.raise_condition(
      'version-mismatch', format('the connection is at version %s; read it again and decide anew', p_version),
      jsonb_build_object('version', p_version));
  end if;
end
$$;
