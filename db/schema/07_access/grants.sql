insert into pawl_private.privilege (privilege, function) values
  ('api', 'pawl.principals'),
  ('api', 'pawl.token_used'),
  ('api', 'pawl.token_create'),
  ('api', 'pawl.token_revoke'),
  ('api', 'pawl.role_put'),
  ('api', 'pawl.role_delete'),
  ('api', 'pawl.tenant_put'),
  ('api', 'pawl.audit_note');

insert into pawl_private.readable (privilege, relation, columns) values
  ('api', 'pawl.tenant', null),
  ('api', 'pawl.token', null),
  ('api', 'pawl.role', null),
  ('reader', 'pawl.tenant', null),
  ('reader', 'pawl.token', '{tenant_id,id,name,subject,scopes,roles,workflows,created_at,created_by,expires_at,revoked_at,last_used_at}'),
  ('reader', 'pawl.role', null),
  ('reader', 'pawl.audit', null),
  ('reader', 'pawl.db_role', null);
