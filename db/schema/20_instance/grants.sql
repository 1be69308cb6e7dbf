insert into pawl_private.privilege (privilege, function) values
  ('service', 'pawl.create'),
  ('service', 'pawl.fire'),
  ('service', 'pawl.preview'),
  ('service', 'pawl.instances'),
  ('service', 'pawl.instances_page'),
  ('service', 'pawl.history_page'),
  ('service', 'pawl.simulate'),
  ('service', 'pawl.outcome_rows'),
  ('service', 'pawl.guard_holds'),
  ('service', 'pawl.create_one'),
  ('service', 'pawl.fire_one'),
  ('caller', 'pawl.create_one'),
  ('caller', 'pawl.fire_one');
