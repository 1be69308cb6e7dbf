insert into pawl_private.privilege (privilege, function) values
  ('worker', 'pawl.backlog'),
  ('worker', 'pawl.own_steps');
