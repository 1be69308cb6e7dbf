insert into pawl_private.privilege (privilege, function) values
  ('service', 'pawl.consumer_create'),
  ('service', 'pawl.consumer_lead'),
  ('service', 'pawl.consumer_resign'),
  ('service', 'pawl.consumer_renew'),
  ('service', 'pawl.consumer_next_batch'),
  ('service', 'pawl.consumer_read'),
  ('service', 'pawl.consumer_advance'),
  ('service', 'pawl.log_moved'),
  ('service', 'pawl.stream_can_resume'),
  ('service', 'pawl.stream_read'),
  ('service', 'pawl.stream_read_past');
