insert into pawl_private.privilege (privilege, function) values
  ('api', 'pawl.connection_put'),
  ('api', 'pawl.connection_delete'),
  ('worker', 'pawl.connection_endpoints'),
  ('worker', 'pawl.connection_report'),
  ('worker', 'pawl.connection_finding');

insert into pawl_private.readable (privilege, relation, columns) values
  ('api', 'pawl.connection_row', null),
  ('reader', 'pawl.connection_row', '{tenant_id,name,version,timeout,concurrency,failures,circuit_open_until,finding,created_at,created_by,updated_at}');
