insert into pawl_private.privilege (privilege, function) values
  ('api', 'pawl.jsonpath_error'),
  ('api', 'pawl.register_schema'),
  ('api', 'pawl.schemas_for'),
  ('api', 'pawl.schemas_page'),
  ('api', 'pawl.chosen_states'),
  ('api', 'pawl.state_names'),
  ('api', 'pawl.workflow_names'),
  ('api', 'pawl.workflows_page');

insert into pawl_private.readable (privilege, relation, columns) values
  ('api', 'pawl.workflow', null),
  ('api', 'pawl.workflow_state', null),
  ('api', 'pawl.workflow_transition', null),
  ('api', 'pawl.workflow_task', '{workflow,workflow_version,position,state,name,connection,topic,deadline}'),
  ('api', 'pawl.schema', null),
  ('worker', 'pawl.workflow', null),
  ('reader', 'pawl.workflow', null),
  ('reader', 'pawl.workflow_state', null),
  ('reader', 'pawl.workflow_transition', null),
  ('reader', 'pawl.schema', null);
