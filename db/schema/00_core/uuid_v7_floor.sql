-- uuid_v7_floor turns a bound on created_at into a bound on the primary key.
-- Returns: the lowest id that can be made in the millisecond of p_at. A time that 48 bits cannot hold,
--          before 1970 or infinite, counts as the nearest time that they can hold
create function pawl.uuid_v7_floor(p_at timestamptz) returns uuid
language sql immutable parallel safe
as $$
  select (
    lpad(to_hex(least(greatest(floor(extract(epoch from p_at) * 1000), 0), 281474976710655)::bigint), 12, '0')
    || repeat('0', 20))::uuid
$$;
