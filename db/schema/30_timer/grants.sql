insert into pawl_private.privilege (privilege, function) values
  ('worker', 'pawl.fire_timers'),
  ('worker', 'pawl.fire_slow_timers'),
  ('api', 'pawl.instance_timeout'),
  ('api', 'pawl.past_timeout'),
  ('reader', 'pawl.instance_timeout');

insert into pawl_private.readable (privilege, relation, columns) values
  ('api', 'pawl.next_timeout', null),
  ('reader', 'pawl.next_timeout', null);
