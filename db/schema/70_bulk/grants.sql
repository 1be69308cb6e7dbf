insert into pawl_private.privilege (privilege, function) values
  ('api', 'pawl.bulk_create'),
  ('api', 'pawl.bulk_control'),
  ('api', 'pawl.tenant_of_bulk'),
  ('worker', 'pawl.bulk_check'),
  ('worker', 'pawl.bulk_step'),
  ('worker', 'pawl.bulk_purge');

insert into pawl_private.readable (privilege, relation, columns) values
  ('api', 'pawl.bulk_report', null),
  ('api', 'pawl.bulk_item', null),
  ('reader', 'pawl.bulk_report', null),
  ('reader', 'pawl.bulk_item', null);
