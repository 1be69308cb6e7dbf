insert into pawl_private.privilege (privilege, function) values
  ('service', 'pawl.jsonpath_error'),
  ('service', 'pawl.chosen_states'),
  ('service', 'pawl.state_names'),
  ('service', 'pawl.workflow_names'),
  ('service', 'pawl.workflows_page');
