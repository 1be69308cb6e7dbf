insert into pawl_private.privilege (privilege, function) values
  ('worker', 'pawl.heal');
