-- Module access: who may call, for which tenant, with which permissions, and what was done with power.
--
-- A *token* authenticates a caller as one subject of one tenant. A *role* is a named grant of a tenant. What a
-- caller may do is a set of grants: its token's own and those of its roles. A grant has scopes, workflows and
-- events, and an operation needs one grant that allows it all.
--
-- A service may remember what principals has told it, together with pawl.setting.access_version. Each transaction that
-- changes a token, a role or a tenant changes the version, too, and keeps the row of pawl.setting locked until it ends. So
-- whoever sees a version sees what was true with it. The functions that carry out commands compare it: see
-- pawl_private.refuse_changed_principal. A version is random, so that none comes back after a restore or a failover.
--
-- The tenant '*' is the deployment. It has tokens and roles, but no instances and no row in pawl.tenant.

-- tenant is a namespace of instances, keys, subscriptions and tokens.
create table pawl.tenant (
  id pawl.tenant_id not null,
  limits pawl.object not null default '{}',
  created_at timestamptz not null,
  created_by text not null,
  disabled_at timestamptz,
  constraint tenant_pkey primary key (id),
  constraint tenant_is_not_the_deployment check (id <> '*'),
  constraint tenant_created_by_has_1_to_255_characters check (length(created_by) between 1 and 255)
);

comment on column pawl.tenant.limits is 'whole numbers by name: see pawl_private.limits_fault; a limit that is missing is the deployment''s';
comment on column pawl.tenant.disabled_at is 'since when its callers are refused, and its timers and deliveries wait';

insert into pawl.tenant (id, created_at, created_by) values ('default', now(), 'pawl');

-- token is a bearer token. Its text is pawl_<id>_<secret>, of which only the digest is kept.
create table pawl.token (
  tenant_id pawl.tenant_id not null,
  id text collate "C" not null,
  sha256 pawl.sha256 not null,
  name text,
  subject text not null,
  scopes text[] not null,
  roles text[] not null,
  workflows text[] not null,
  created_at timestamptz not null,
  created_by text not null,
  expires_at timestamptz,
  revoked_at timestamptz,
  last_used_at timestamptz,
  tenant_key pawl.tenant_id generated always as (nullif(tenant_id, '*')) stored,
  constraint token_pkey primary key (id),
  constraint token_tenant_fkey foreign key (tenant_key) references pawl.tenant (id),
  constraint token_id_is_a_slug check (id ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
  constraint token_name_has_1_to_255_characters check (length(name) between 1 and 255),
  constraint token_subject_has_1_to_255_characters check (length(subject) between 1 and 255),
  constraint token_created_by_has_1_to_255_characters check (length(created_by) between 1 and 255),
  constraint token_scopes_are_known check (
    scopes <@ array['read', 'create', 'fire', 'work', 'deploy', 'connect', 'deliver', 'operate', 'audit', 'admin']),
  constraint token_deploys_for_the_deployment check (tenant_id = '*' or not scopes @> array['deploy']),
  constraint token_lists_are_short
    check (cardinality(scopes) <= 10 and cardinality(roles) <= 20 and cardinality(workflows) <= 100),
  constraint token_expires_after_its_creation check (expires_at > created_at)
)
-- last_used_at is updated once an hour: fillfactor keeps that in the row's page.
with (fillfactor = 80);

create index token_tenant_idx on pawl.token (tenant_id, id);

comment on column pawl.token.tenant_id is 'the tenant; * for the deployment';
comment on column pawl.token.sha256 is 'of the whole text';
comment on column pawl.token.roles is 'names of roles of the tenant; one that does not exist grants nothing';
comment on column pawl.token.workflows is 'bounds everything that it may do; empty for all';
comment on column pawl.token.last_used_at is 'late by up to an hour';

-- role is a grant with a name.
create table pawl.role (
  tenant_id pawl.tenant_id not null,
  name text collate "C" not null,
  scopes text[] not null,
  workflows text[] not null,
  events text[] not null,
  created_at timestamptz not null,
  created_by text not null,
  updated_at timestamptz not null,
  tenant_key pawl.tenant_id generated always as (nullif(tenant_id, '*')) stored,
  constraint role_pkey primary key (tenant_id, name),
  constraint role_tenant_fkey foreign key (tenant_key) references pawl.tenant (id),
  constraint role_name_has_1_to_128_visible_characters check (name ~ '^[!-~]{1,128}$'),
  constraint role_created_by_has_1_to_255_characters check (length(created_by) between 1 and 255),
  constraint role_scopes_are_known check (
    scopes <@ array['read', 'create', 'fire', 'work', 'deploy', 'connect', 'deliver', 'operate', 'audit', 'admin']),
  constraint role_has_scopes check (cardinality(scopes) between 1 and 10),
  constraint role_deploys_for_the_deployment check (tenant_id = '*' or not scopes @> array['deploy']),
  constraint role_lists_are_short check (cardinality(workflows) <= 100 and cardinality(events) <= 100)
);

comment on column pawl.role.workflows is 'empty for all';
comment on column pawl.role.events is 'those that the scope fire allows; empty for all';

-- audit has a row for each act of power and for refusals. Nothing updates a row, and only the schema's owner deletes
-- old ones.
create table pawl.audit (
  tenant_id pawl.tenant_id not null,
  seq bigint generated always as identity,
  at timestamptz not null,
  actor text not null,
  unauthenticated boolean not null default false,
  token_id text,
  address text,
  request_id text,
  action text not null,
  target text,
  outcome text not null,
  reason text,
  count bigint not null default 1,
  before jsonb,
  after jsonb,
  xid xid8 not null default pg_current_xact_id(),
  constraint audit_pkey primary key (tenant_id, seq),
  constraint audit_actor_has_1_to_255_characters check (length(actor) between 1 and 255),
  constraint audit_action_has_1_to_64_characters check (length(action) between 1 and 64),
  constraint audit_outcome_has_1_to_64_characters check (length(outcome) between 1 and 64),
  constraint audit_texts_are_short check (
    coalesce(length(token_id), 0) <= 255 and coalesce(length(address), 0) <= 255
    and coalesce(length(request_id), 0) <= 255 and coalesce(length(target), 0) <= 1024 and coalesce(length(reason), 0) <= 1000),
  constraint audit_documents_are_short check (
    coalesce(octet_length(before::text), 0) <= 16384 and coalesce(octet_length(after::text), 0) <= 16384),
  constraint audit_count_is_positive check (count >= 1)
);

-- A page of the audit is read by one of these, behind a seq; see pawl.audit_page.
create index audit_seq_idx on pawl.audit (seq);
create index audit_target_idx on pawl.audit (tenant_id, target, seq);
create index audit_actor_idx on pawl.audit (tenant_id, actor, seq);
create index audit_action_idx on pawl.audit (tenant_id, action, seq);
create index audit_at_idx on pawl.audit (at);
-- A tick finds new rows by this one.
create index audit_xid_idx on pawl.audit (xid);

comment on column pawl.audit.tenant_id is 'the tenant; * for what concerns the deployment, and for callers who are unknown';
comment on column pawl.audit.actor is 'the subject; for a session without a subject, its session_user';
comment on column pawl.audit.unauthenticated is 'the service runs without authentication, and the caller named the actor';
comment on column pawl.audit.action is 'a noun and a verb, such as workflow.register';
comment on column pawl.audit.outcome is 'done, or the code of the problem';
comment on column pawl.audit.count is 'how many refusals or reads the row stands for';

-- principal is who a caller is and what it may do. It is a shape and never holds rows.
--
--   tenant_id  the tenant that it belongs to
--   subject, expires_at, scopes, workflows: of the token; '' and null without one. sha256 is its digest
--   live       whether the token is neither revoked nor expired
--   stale      whether its use is to be noted; see token_used
--   grants     of the roles: an array of {scopes, workflows, events}; null for none
--   acts_for   the tenant that the caller acts for; '' for that of a token that there is not
--   known, disabled, limits: of the tenant that it acts for
--   version    the access_version with which this is true; null if it must not be remembered: see principals
create view pawl.principal as
select
  0::bigint as place, null::bytea as sha256, false as live, false as stale, ''::text as tenant_id, ''::text as subject,
  null::text[] as scopes, null::text[] as workflows, null::timestamptz as expires_at, null::jsonb as grants, ''::text as acts_for,
  false as known, false as disabled, null::jsonb as limits, null::uuid as version
where false;

-- db_role binds a role of the database that calls the functions for SQL callers: see pawl_private.bound_actor. It is
-- the session's user: neither SET ROLE nor membership in another role changes the binding. `pawl migrate grants` writes
-- the rows.
create table pawl.db_role (
  role name not null,
  tenant_id text collate "C" not null,
  subject text,
  created_at timestamptz not null,
  tenant_key pawl.tenant_id generated always as (nullif(tenant_id, '*')) stored,
  constraint db_role_pkey primary key (role),
  constraint db_role_tenant_fkey foreign key (tenant_key) references pawl.tenant (id),
  constraint db_role_subject_has_1_to_255_characters check (length(subject) between 1 and 255)
);

comment on column pawl.db_role.tenant_id is 'the tenant that it acts for; * for all';
comment on column pawl.db_role.subject is 'the actor of all that it does; null if it may name any';
