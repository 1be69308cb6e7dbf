-- token_used notes that a token was used, about once an hour. An hour less the minute for which a service remembers the
-- token, so that last_used_at is late by no more than an hour.
-- Writes: token
create function pawl.token_used(p_id text) returns void
language sql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
  update pawl.token t
  set last_used_at = pawl.now()
  where t.id = p_id and coalesce(t.last_used_at < pawl.now() - interval '59 minutes', true)
$$;
