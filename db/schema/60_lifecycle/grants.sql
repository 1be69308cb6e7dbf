insert into pawl_private.privilege (privilege, function) values
  ('service', 'pawl.register_workflow'),
  ('service', 'pawl.retire_workflow'),
  ('service', 'pawl.migrate_instances'),
  ('service', 'pawl.backtest'),
  ('service', 'pawl.purge_keys'),
  ('service', 'pawl.final_instances'),
  ('service', 'pawl.purge_instances');
