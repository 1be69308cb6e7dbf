-- work_claims carries out claims of workers, the first ones first; see work_claim. A claim is an object with tenant, topic,
-- worker, max, lease (seconds; null for what each task declares), key, and within (workflows; null for all).
-- Returns: the tasks, with the ordinals of their claims
-- Raises, locks, writes: as work_claim
create function pawl.work_claims(p_claims jsonb) returns setof pawl.claimed_work
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_key record;
  v_claim record;
begin
  -- Those of all keys come before the first claim, and in one order, so that no two calls wait for one another.
  for v_key in
    select distinct c ->> 'tenant' as tenant, c ->> 'key' as key
    from jsonb_array_elements(p_claims) c
    where c ->> 'key' <> ''
    order by 1, 2
  loop
    perform pawl_private.lock_claim_key(v_key.tenant, v_key.key, pawl.now());
  end loop;
  for v_claim in
    select c.ordinal, r.*
    from jsonb_array_elements(p_claims) with ordinality as c (claim, ordinal)
    cross join lateral jsonb_to_record(c.claim) as r (
      tenant text, topic text, worker text, max integer, lease float8, key text, within text[])
    order by c.ordinal
  loop
    return query
    select v_claim.ordinal::integer, w.*
    from pawl_private.work_claim(
      p_tenant => v_claim.tenant, p_topic => v_claim.topic, p_worker => v_claim.worker, p_max => v_claim.max,
      p_lease => make_interval(secs => v_claim.lease), p_key => v_claim.key, p_within => v_claim.within) w;
  end loop;
end
$$;
