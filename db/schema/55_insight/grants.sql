insert into pawl_private.privilege (privilege, function) values
  ('worker', 'pawl.insight_fold'),
  ('api', 'pawl.list_place'),
  ('api', 'pawl.instances_in_states'),
  ('worker', 'pawl.score_forecasts'),
  ('api', 'pawl.count_commands'),
  ('api', 'pawl.insight_as_of'),
  ('reader', 'pawl.insight_as_of'),
  ('api', 'pawl.instances_where'),
  ('api', 'pawl.reindex_workflow');

insert into pawl_private.readable (privilege, relation, columns) values
  ('api', 'pawl.residence', null),
  ('api', 'pawl.instance_count', null),
  ('api', 'pawl.attribute', null),
  ('api', 'pawl.edge_count', null),
  ('api', 'pawl.dwell_count', null),
  ('api', 'pawl.dwell_hour', null),
  ('api', 'pawl.command_count', null),
  ('api', 'pawl.forecast_score', null),
  ('reader', 'pawl.residence', null),
  ('reader', 'pawl.instance_count', null),
  ('reader', 'pawl.attribute', null),
  ('reader', 'pawl.edge_count', null),
  ('reader', 'pawl.dwell_count', null),
  ('reader', 'pawl.dwell_hour', null),
  ('reader', 'pawl.command_count', null),
  ('reader', 'pawl.forecast_score', null);
