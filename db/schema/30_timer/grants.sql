insert into pawl_private.privilege (privilege, function) values
  ('service', 'pawl.fire_timers'),
  ('service', 'pawl.put_off_timer'),
  ('service', 'pawl.instance_timeout'),
  ('service', 'pawl.past_timeout');
