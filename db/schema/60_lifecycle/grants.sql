insert into pawl_private.privilege (privilege, function) values
  ('api', 'pawl.register_workflow'),
  ('api', 'pawl.propose_workflow'),
  ('api', 'pawl.retire_workflow'),
  ('api', 'pawl.migrate_instances'),
  ('api', 'pawl.backtest'),
  ('api', 'pawl.audit_page'),
  ('worker', 'pawl.purge_keys'),
  ('worker', 'pawl.final_instances'),
  ('worker', 'pawl.purge_instances'),
  ('reader', 'pawl.final_instances'),
  ('operator', 'pawl.purge_archived');

insert into pawl_private.readable (privilege, relation, columns) values
  ('reader', 'pawl.instance_migration', null);
