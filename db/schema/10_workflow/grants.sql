insert into pawl_private.privilege (privilege, function) values
  ('service', 'pawl.jsonpath_error');
