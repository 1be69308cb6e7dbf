insert into pawl_private.readable (privilege, relation, columns) values
  ('api', 'pawl.finding', null),
  ('worker', 'pawl.finding', null),
  ('reader', 'pawl.finding', null);
