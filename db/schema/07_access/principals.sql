-- principals reads what callers may do: an entry of each array for a caller.
--
-- It is asked often, so it looks up single rows. All that it reads is of one snapshot, with the version.
--
-- What has a version may be remembered for a minute, and used for commands: the engine compares the version. Time changes
-- none, so a token that expires soon has none, and neither has one whose use is to be noted.
-- p_tokens: the id of the caller's token; empty for a caller that something else has authenticated
-- p_homes: the tenant that a caller without a token belongs to; else empty
-- p_tenants: the tenant that it acts for; empty for the one that it belongs to
-- p_roles: an array for each caller, with the names of its roles beside those of the token
-- Returns: one row per caller, in their order; place counts from 1
create function pawl.principals(p_tokens text[], p_homes text[], p_tenants text[], p_roles jsonb)
returns setof pawl.principal
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
  v_now timestamptz := pawl.now();
  v_version uuid := (select g.access_version from pawl.setting g);
begin
  return query
  select
    c.place, t.sha256::bytea, t.id is not null and t.revoked_at is null and coalesce(t.expires_at > v_now, true),
    coalesce(t.last_used_at < v_now - interval '59 minutes', true), coalesce(t.tenant_id, c.home, '')::text, coalesce(t.subject, ''),
    t.scopes, t.workflows, t.expires_at, r.grants, coalesce(c.tenant, t.tenant_id, c.home, '')::text, n.id is not null,
    n.disabled_at is not null, n.limits::jsonb,
    case
      when n.disabled_at is null and (n.id is not null or coalesce(c.tenant, t.tenant_id, c.home) = '*') and (
        c.token is null
        or t.revoked_at is null and t.last_used_at >= v_now - interval '59 minutes'
          and coalesce(t.expires_at > v_now + interval '5 minutes', true))
        then v_version
    end
  from (
    select nullif(u.token, '') as token, nullif(u.home, '') as home, nullif(u.tenant, '') as tenant, u.place
    from unnest(p_tokens, p_homes, p_tenants) with ordinality as u (token, home, tenant, place)
  ) c
  left join lateral (select * from pawl.token t where t.id = c.token limit 1) t on true
  left join lateral (
    select * from pawl.tenant n where n.id = coalesce(c.tenant, t.tenant_id, c.home)::text limit 1
  ) n on true
  left join lateral (
    select jsonb_agg(jsonb_build_object('scopes', r.scopes, 'workflows', r.workflows, 'events', r.events)) as grants
    from pawl.role r
    -- The first condition spares callers without roles the search.
    where (cardinality(t.roles) > 0 or p_roles -> (c.place - 1)::integer <> '[]')
      and r.tenant_id = coalesce(t.tenant_id, c.home)::text
      and r.name = any (t.roles || array(select jsonb_array_elements_text(p_roles -> (c.place - 1)::integer)))
  ) r on true
  order by c.place;
end
$$;
