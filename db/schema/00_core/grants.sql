insert into pawl_private.privilege (privilege, function) values
  ('service', 'pawl.now'),
  ('service', 'pawl.schema_version'),
  ('service', 'pawl.uuid_v7_floor');
