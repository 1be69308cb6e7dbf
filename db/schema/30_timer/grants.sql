insert into pawl_private.privilege (privilege, function) values
  ('service', 'pawl.fire_timers'),
  ('service', 'pawl.fire_slow_timers'),
  ('service', 'pawl.instance_timeout'),
  ('service', 'pawl.past_timeout');
