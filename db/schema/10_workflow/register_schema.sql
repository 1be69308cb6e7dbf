-- register_schema stores a JSON Schema as the next version of a schema of the deployment. If the content is the latest
-- version's, it changes nothing, and its commit waits as that of the version did: see commit_synchronously. Callers
-- vouch for the schema, since PostgreSQL has no JSON Schema.
-- Returns: version; created: whether it is new
-- Raises:  PW400 malformed-request, PW42D invalid-definition
-- Locks:   schema (share update exclusive): registrations of schemas wait for each other
-- Writes:  schema, audit
create function pawl.register_schema(
  p_name text, p_schema jsonb, p_actor text default session_user, p_caller jsonb default null, out version integer, out created boolean
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_latest pawl.schema;
  v_limit integer := (select g.definition_limit from pawl.setting g);
begin
  perform pawl_private.refuse_malformed(pawl_private.command_fault(p_tenant => '*', p_actor => p_actor));
  if octet_length(p_schema::text) > v_limit then
    perform pawl_private.raise_condition('invalid-definition', format('the schema has more than %s bytes', v_limit));
  end if;
  lock table pawl.schema in share update exclusive mode;
  select * into v_latest from pawl.schema s where s.name = p_name order by s.version desc limit 1;
  version := coalesce(v_latest.version, 0);
  created := v_latest.schema is distinct from p_schema or version = 0;
  if not created then
    perform pawl_private.commit_synchronously();
    return;
  end if;
  version := version + 1;
  insert into pawl.schema (name, version, schema, checksum, created_at, created_by)
  values (p_name, version, p_schema, encode(sha256(convert_to(p_schema::text, 'UTF8')), 'hex'), pawl.now(), p_actor);
  perform pawl_private.audit(
    p_tenant => '*', p_caller => coalesce(p_caller, pawl_private.session_caller(p_actor)), p_action => 'schema.register',
    p_target => p_name || ' ' || version);
exception
  -- Raised by constraints.
  when integrity_constraint_violation then
    perform pawl_private.raise_condition('invalid-definition', 'invalid schema: ' || sqlerrm);
end
$$;
