-- uuid_v7_floor is the lowest id that can be made in the millisecond of p_at. It turns a bound
-- on created_at into a bound on the primary key. Times that 48 bits cannot hold, before 1970 or
-- infinite, are taken for the nearest time that they can hold.
create function pawl.uuid_v7_floor(p_at timestamptz) returns uuid
language sql immutable parallel safe
as $$
  select (
    lpad(to_hex(least(greatest(floor(extract(epoch from p_at) * 1000), 0), 281474976710655)::bigint), 12, '0')
    || repeat('0', 20))::uuid
$$;
