insert into pawl_private.privilege (privilege, function) values
  ('worker', 'pawl.consumer_status'),
  ('reader', 'pawl.consumer_status'),
  ('api', 'pawl.subscription_create'),
  ('api', 'pawl.subscription_update'),
  ('api', 'pawl.subscription_delete'),
  ('api', 'pawl.subscription_rotate_secret'),
  ('api', 'pawl.subscription_sealed_secret'),
  ('api', 'pawl.subscription_test'),
  ('api', 'pawl.tenant_of_subscription'),
  ('api', 'pawl.delivery_replay'),
  ('api', 'pawl.callback_host'),
  ('worker', 'pawl.delivery_route'),
  ('worker', 'pawl.delivery_lanes'),
  ('worker', 'pawl.delivery_tenants'),
  ('worker', 'pawl.delivery_due'),
  ('worker', 'pawl.delivery_messages'),
  ('worker', 'pawl.delivery_findings'),
  ('worker', 'pawl.delivery_endpoints'),
  ('worker', 'pawl.delivery_settle'),
  ('worker', 'pawl.delivery_purge'),
  ('worker', 'pawl.subscription_rest');

insert into pawl_private.readable (privilege, relation, columns) values
  ('api', 'pawl.subscription_row', null),
  ('api', 'pawl.delivery', null),
  ('reader', 'pawl.subscription_row', '{tenant_id,id,workflows,events,states,terminal_only,types,previous_secret_until,disabled_at,disabled_reason,failures,circuit_open_until,finding,created_at,created_by}'),
  ('reader', 'pawl.delivery', null),
  ('reader', 'pawl.unrouted_step', null);
