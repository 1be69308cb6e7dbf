-- limits_fault says what is wrong with the limits of a tenant, or null.
create function pawl_private.limits_fault(p_limits jsonb) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select f.fault
  from jsonb_each(p_limits) l
  cross join lateral (select case
    when l.key not in (
      'requests_per_second', 'queue', 'open_instances', 'subscriptions', 'streams', 'storage_bytes', 'webhook_attempts')
      then format('/limits/%s is none of requests_per_second, queue, open_instances, subscriptions, streams, storage_bytes and webhook_attempts', l.key)
    when jsonb_typeof(l.value) <> 'number' or l.value::text !~ '^[0-9]{1,13}$' or l.value::text::numeric > 1000000000000
      then format('/limits/%s must be a whole number from 0 to 1000000000000', l.key)
  end as fault) f
  where f.fault is not null
  order by l.key
  limit 1
$$;

alter table pawl.tenant add constraint tenant_limits_are_known check (pawl_private.limits_fault(limits) is null) not valid;

-- excerpt is a document for the audit: itself, or what identifies it if it has more than 16 KiB.
create function pawl_private.excerpt(p_document jsonb) returns jsonb
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when octet_length(p_document::text) > 16384
      then jsonb_build_object('bytes', octet_length(p_document::text), 'sha256', encode(sha256(convert_to(p_document::text, 'UTF8')), 'hex'))
    else p_document
  end
$$;

-- audit writes down what was done or refused.
-- p_caller: {actor, token, address, request_id, unauthenticated}; null for the session
-- p_before, p_after: documents about the target. A document of more than 16 KiB is replaced by its size and digest
-- p_count: how many refusals or reads the row stands for
-- Writes: audit
create function pawl_private.audit(
  p_tenant text, p_caller jsonb, p_action text, p_target text, p_outcome text default 'done', p_reason text default null,
  p_before jsonb default null, p_after jsonb default null, p_count bigint default 1
) returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  insert into pawl.audit (
    tenant_id, at, actor, unauthenticated, token_id, address, request_id, action, target, outcome, reason, count, before,
    after)
  select
    p_tenant, pawl.now(), left(coalesce(p_caller ->> 'actor', session_user), 255),
    coalesce((p_caller -> 'unauthenticated')::boolean, false), left(p_caller ->> 'token', 255),
    left(case when p_caller is null then host(inet_client_addr()) else p_caller ->> 'address' end, 255),
    left(p_caller ->> 'request_id', 255), p_action, left(p_target, 1024), p_outcome, left(p_reason, 1000),
    p_count, pawl_private.excerpt(p_before), pawl_private.excerpt(p_after)
$$;

-- audit_time is a time in a document of the audit, whatever the session's time zone is.
create function pawl_private.audit_time(p_at timestamptz) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$ select to_char(p_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') $$;

-- token_document is a token for the audit.
create function pawl_private.token_document(p_token pawl.token) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object(
    'name', p_token.name, 'subject', p_token.subject, 'scopes', p_token.scopes, 'roles', p_token.roles,
    'workflows', p_token.workflows, 'expires_at', pawl_private.audit_time(p_token.expires_at))
$$;

-- refuse_unbounded raises 'forbidden' if a grant reaches beyond the workflows that who makes or changes it is bound to.
-- p_found: what there is and cannot be changed; null for what is to be made
create function pawl_private.refuse_unbounded(p_workflows text[], p_within text[], p_found text default null) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if cardinality(p_within) > 0 and (cardinality(p_workflows) = 0 or not p_workflows <@ p_within) then
    perform pawl_private.raise_condition(
      'forbidden', coalesce(
        'you are bound to workflows, and ' || p_found || ' reaches beyond them',
        'you are bound to workflows: name some of them, and no others, in /workflows'));
  end if;
end
$$;

-- role_document is a role for the audit; null for none.
create function pawl_private.role_document(p_role pawl.role) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$ select case when p_role.name is not null then
  jsonb_build_object('scopes', p_role.scopes, 'workflows', p_role.workflows, 'events', p_role.events)
end $$;

-- tenant_document is a tenant for the audit; null for none.
create function pawl_private.tenant_document(p_tenant pawl.tenant) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$ select case when p_tenant.id is not null then
  jsonb_build_object('limits', p_tenant.limits, 'disabled', p_tenant.disabled_at is not null)
end $$;

-- bound_role is the binding of the session's user. It refuses a call for a tenant that the user may not act for. The
-- owner of the schema and superusers, who have no binding, may act for all.
-- Returns: the binding; null for the owner and superusers
-- Raises:  42501 insufficient_privilege
create function pawl_private.bound_role(p_tenant text) returns pawl.db_role
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_role pawl.db_role;
begin
  select * into v_role from pawl.db_role r where r.role = session_user;
  if not found and not exists (
    select from pg_roles r
    where r.rolname = session_user
      and (r.rolsuper or r.oid = (select n.nspowner from pg_namespace n where n.nspname = 'pawl'))
  ) then
    raise exception 'the role % may act for no tenant', quote_ident(session_user)
      using errcode = 'insufficient_privilege',
        hint = format(
          'Run "pawl migrate grants --role %s --privilege caller --tenant T [--subject S]" as the schema''s owner.',
          quote_ident(session_user));
  elsif v_role.tenant_id <> '*' and v_role.tenant_id is distinct from p_tenant then
    raise exception 'the role % may act for the tenant % only', quote_ident(session_user), v_role.tenant_id
      using errcode = 'insufficient_privilege', hint = 'Name it in p_tenant.';
  end if;
  return v_role;
end
$$;

-- bound_actor is the actor of a command for a tenant by a SQL caller: see bound_role.
-- p_actor: the actor that the caller names, which counts if its role has no subject
-- Raises:  42501 insufficient_privilege, also if the tenant is disabled; PW40T unknown-tenant
create function pawl_private.bound_actor(p_tenant text, p_actor text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_role pawl.db_role := pawl_private.bound_role(p_tenant);
  v_disabled boolean;
begin
  select t.disabled_at is not null into v_disabled from pawl.tenant t where t.id = p_tenant;
  if not found then
    perform pawl_private.raise_condition('unknown-tenant', format('the tenant %s does not exist', left(p_tenant, 63)));
  elsif v_disabled then
    raise exception 'the tenant % is disabled', p_tenant using errcode = 'insufficient_privilege';
  end if;
  return coalesce(v_role.subject, p_actor);
end
$$;

-- is_service says whether the session is one of the service, which has found out on whose behalf it acts. Others act for
-- themselves, and what they say of their caller does not count. The owner of the schema and superusers pass.
create function pawl_private.is_service() returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return has_function_privilege(session_user, 'pawl.audit_note(text, jsonb, text, text, text, bigint)', 'execute');
end
$$;

-- session_caller is who acts in a session, for the audit: an actor, at the address of the session's connection.
create function pawl_private.session_caller(p_actor text) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$ select jsonb_build_object('actor', p_actor, 'address', host(inet_client_addr())) $$;

-- bind_role binds a role of the database to a tenant, and perhaps to a subject, instead of what it was bound to.
-- p_tenant: * for all
-- Raises:  PW40T unknown-tenant
-- Writes:  db_role, audit
create function pawl_private.bind_role(p_role name, p_tenant text, p_subject text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  v_before pawl.db_role;
begin
  select * into v_before from pawl.db_role r where r.role = p_role for update;
  insert into pawl.db_role (role, tenant_id, subject, created_at)
  values (p_role, p_tenant, p_subject, pawl.now())
  on conflict (role) do update set tenant_id = excluded.tenant_id, subject = excluded.subject, created_at = excluded.created_at;
  perform pawl_private.audit(
    p_tenant => p_tenant, p_caller => null, p_action => 'db_role.bind', p_target => p_role::text,
    p_before => case when v_before.role is not null then
      jsonb_build_object('tenant', v_before.tenant_id, 'subject', v_before.subject)
    end,
    p_after => jsonb_build_object('tenant', p_tenant, 'subject', p_subject));
exception when foreign_key_violation then
  perform pawl_private.raise_condition('unknown-tenant', format('the tenant %s does not exist', p_tenant));
end
$$;

-- tenant_of finds the tenant that has a row with an id. It looks the id up for one tenant after the other.
-- p_table: a table whose key is (tenant_id, id)
-- Returns: the tenant; an empty text if none has the row, and * if none of the first 10,000 tenants has it and there are
--          more
create function pawl_private.tenant_of(p_table regclass, p_id uuid) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
-- The planner is left one way to look: by the key, for each tenant.
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
  v_tenant text;
begin
  execute format(
    'select t.id
    from (select n.id from pawl.tenant n order by n.id limit 10000) t
    cross join lateral (select from %s r where r.tenant_id = t.id and r.id = $1 limit 1) r
    limit 1', p_table)
  into v_tenant
  using p_id;
  return case
    when v_tenant is not null then v_tenant
    when exists (select from pawl.tenant n order by n.id offset 10000 limit 1) then '*'
    else ''
  end;
end
$$;

-- note_changed_access makes pawl.setting.access_version another one.
-- Locks:   setting
-- Writes:  setting
create function pawl_private.note_changed_access() returns trigger
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  update pawl.setting set access_version = gen_random_uuid();
  return null;
end
$$;

-- A token that is new changes nothing for anybody, and last_used_at decides nothing.
create trigger token_changes_access
  after update of tenant_id, id, sha256, subject, scopes, roles, workflows, expires_at, revoked_at or delete or truncate on pawl.token
  for each statement execute function pawl_private.note_changed_access();
create trigger role_changes_access
  after insert or update or delete or truncate on pawl.role
  for each statement execute function pawl_private.note_changed_access();
create trigger tenant_changes_access
  after insert or update or delete or truncate on pawl.tenant
  for each statement execute function pawl_private.note_changed_access();

-- refuse_changed_principal refuses commands whose caller was let in with another access_version than the present one. The
-- caller looks up what holds now, and decides anew.
-- Raises:  PW40A principal-changed
create function pawl_private.refuse_changed_principal() returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  perform pawl_private.raise_condition(
    'principal-changed', 'tokens, roles or tenants have changed; look the callers up again');
end
$$;
