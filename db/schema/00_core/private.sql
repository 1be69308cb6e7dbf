-- uuid_v7_with makes a UUID of version 7 whose last 62 bits are the last ones of p_bytes, which has 16.
create function pawl_private.uuid_v7_with(p_at timestamptz, p_bytes bytea) returns uuid
language sql immutable parallel safe
as $$
  select encode(
    set_byte(
      set_byte(
        set_byte(
          overlay(p_bytes placing substring(int8send(t.us / 1000) from 3) from 1 for 6),
          6, (112 | (t.us % 1000 * 4096 / 1000 >> 8))::integer),
        7, (t.us % 1000 * 4096 / 1000 & 255)::integer),
      8, get_byte(p_bytes, 8) & 63 | 128),
    'hex')::uuid
  from (select (extract(epoch from p_at) * 1000000)::bigint as us) t
$$;

-- uuid_v7 makes an id that sorts by time: RFC 9562 version 7. Its twelve bits of sub-millisecond
-- fraction (method 3 of the RFC) keep ids in order within a millisecond.
create function pawl_private.uuid_v7(p_at timestamptz) returns uuid
language sql volatile parallel safe
as $$ select pawl_private.uuid_v7_with(p_at, uuid_send(gen_random_uuid())) $$;

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

-- refuse_malformed raises malformed-request if there is a fault.
-- Raises:  PW400
create function pawl_private.refuse_malformed(p_fault text) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_fault is not null then
    perform pawl_private.raise_condition('malformed-request', p_fault);
  end if;
end
$$;

-- broken_rule words what a statement has raised because an argument breaks a rule: that of a constraint, whose
-- name says what should hold, or of a column that must not be null. For other errors it is their own message.
create function pawl_private.broken_rule(p_message text, p_constraint text, p_column text) returns text
language sql immutable parallel safe
as $$
  select case
    when p_constraint <> '' then 'this must hold: ' || replace(p_constraint, '_', ' ')
    when p_column <> '' then replace(p_column, '_', ' ') || ' must not be null'
    else p_message
  end
$$;

-- command_fault says what is wrong with the texts of a command, or null. It has the same limits as the columns that
-- they are stored in. An absent text is null or ''.
create function pawl_private.command_fault(
  p_tenant text, p_actor text, p_key text default null, p_business_key text default null,
  p_correlation_id text default null, p_reason text default null
) returns text
language sql immutable parallel safe
as $$
  select case
    when length(p_tenant) not between 1 and 63 or p_tenant is null then 'the tenant must have 1 to 63 characters'
    when length(p_actor) not between 1 and 255 or p_actor is null then 'the actor must have 1 to 255 characters'
    when length(p_key) > 255 then 'the key must have no more than 255 characters'
    when starts_with(p_key, 'bulk:') then 'the key must not begin with bulk:, as what a bulk has done does'
    when length(p_business_key) > 255 then 'the business key must have no more than 255 characters'
    when p_correlation_id <> '' and p_correlation_id collate "C" !~ '^[!-~]{1,255}$'
      then 'the correlation id must have 1 to 255 visible ASCII characters'
    when length(p_reason) > 1000 then 'the reason must have no more than 1000 characters'
  end
$$;

-- commit_synchronously makes the commit of this transaction wait for the synchronous standbys, though it has written
-- nothing. It is for answers that acknowledge what was committed before. A commit is visible although perhaps no
-- standby has it, if its wait was cancelled, or if the server crashed while it waited. When this commit's wait is over,
-- the standbys have everything that this transaction has seen.
--
-- It logs an empty message, since PostgreSQL waits only for transactions that have logged something. A standby cannot
-- know what its primary has acknowledged.
-- Raises:  25006 on a standby
create function pawl_private.commit_synchronously() returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  if pg_is_in_recovery() then
    raise exception 'a standby does not answer a repeated command' using errcode = '25006';
  end if;
  if current_setting('synchronous_standby_names') <> '' and current_setting('synchronous_commit') not in ('off', 'local') then
    perform pg_logical_emit_message(true, 'pawl', ''::text);
  end if;
end
$$;

-- timed_out says whether the statement timeout has come, for a handler of query_canceled. Somebody may have cancelled
-- the call instead. The timeout's clock starts a little before statement_timestamp.
create function pawl_private.timed_out() returns boolean
language sql volatile
as $$
  select current_setting('statement_timeout') <> '0'
    and clock_timestamp() - statement_timestamp() >= current_setting('statement_timeout')::interval * 0.8
$$;
