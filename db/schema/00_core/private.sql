-- uuid_v7 makes an id that sorts by time: RFC 9562 version 7. Its twelve bits of sub-millisecond
-- fraction (method 3 of the RFC) keep ids in order within a millisecond.
create function pawl_private.uuid_v7(p_at timestamptz) returns uuid
language sql volatile parallel safe
as $$
  select encode(
    set_byte(
      set_byte(
        overlay(uuid_send(gen_random_uuid()) placing substring(int8send(t.us / 1000) from 3) from 1 for 6),
        6, (112 | (t.us % 1000 * 4096 / 1000 >> 8))::integer),
      7, (t.us % 1000 * 4096 / 1000 & 255)::integer),
    'hex')::uuid
  from (select (extract(epoch from p_at) * 1000000)::bigint as us) t
$$;

-- rfc3339 writes a time for guards and assigns: UTC, microseconds, fixed width, so that times
-- compare as strings too. The offset is +00:00, since jsonpath's datetime() refuses "Z".
create function pawl_private.rfc3339(p_at timestamptz) returns text
language sql stable parallel safe
as $$ select to_char(p_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"') $$;

-- raise_condition raises a condition of pawl_private.condition.
-- p_outcome: its outcome. p_message: what the message says instead of the condition's own.
-- p_detail: members of the detail, a JSON object, beside `code`, the problem.
-- Raises:  the condition's SQLSTATE
create function pawl_private.raise_condition(
  p_outcome text, p_message text, p_detail jsonb default '{}'
) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_condition pawl_private.condition;
begin
  select * into strict v_condition from pawl_private.condition c where c.outcome = p_outcome;
  raise exception '%', coalesce(p_message, v_condition.message)
    using
      errcode = v_condition.sqlstate,
      detail = (jsonb_build_object('code', v_condition.problem) || jsonb_strip_nulls(p_detail))::text;
end
$$;
