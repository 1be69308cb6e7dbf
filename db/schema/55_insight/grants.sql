insert into pawl_private.privilege (privilege, function) values
  ('worker', 'pawl.insight_fold'),
  ('api', 'pawl.list_place'),
  ('api', 'pawl.instances_in_states'),
  ('api', 'pawl.instances_where'),
  ('api', 'pawl.reindex_workflow');

insert into pawl_private.readable (privilege, relation, columns) values
  ('api', 'pawl.residence', null),
  ('api', 'pawl.instance_count', null),
  ('api', 'pawl.attribute', null),
  ('api', 'pawl.edge_count', null),
  ('api', 'pawl.dwell_count', null),
  ('reader', 'pawl.residence', null),
  ('reader', 'pawl.instance_count', null),
  ('reader', 'pawl.attribute', null),
  ('reader', 'pawl.edge_count', null),
  ('reader', 'pawl.dwell_count', null);
