insert into pawl_private.privilege (privilege, function) values
  ('service', 'pawl.subscription_create'),
  ('service', 'pawl.subscription_update'),
  ('service', 'pawl.subscription_delete'),
  ('service', 'pawl.subscription_rotate_secret'),
  ('service', 'pawl.subscription_test'),
  ('service', 'pawl.delivery_route'),
  ('service', 'pawl.delivery_due'),
  ('service', 'pawl.delivery_messages'),
  ('service', 'pawl.delivery_endpoints'),
  ('service', 'pawl.delivery_settle'),
  ('service', 'pawl.delivery_replay'),
  ('service', 'pawl.delivery_purge');
