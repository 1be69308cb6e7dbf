insert into pawl_private.privilege (privilege, function) values
  ('api', 'pawl.now'),
  ('api', 'pawl.schema_version'),
  ('api', 'pawl.uuid_v7_floor'),
  ('worker', 'pawl.now'),
  ('worker', 'pawl.schema_version'),
  ('worker', 'pawl.uuid_v7_floor'),
  ('reader', 'pawl.now'),
  ('reader', 'pawl.schema_version'),
  ('reader', 'pawl.uuid_v7_floor');

insert into pawl_private.readable (privilege, relation, columns) values
  ('api', 'pawl.setting', null),
  ('worker', 'pawl.setting', null),
  ('reader', 'pawl.setting', '{only_row,idempotency_ttl,idempotency_ttl_slides,context_limit,payload_limit,definition_limit,state_limit}');
