-- Module connection: the services of others that tasks call over HTTP, and how to reach them.
--
-- A definition names a connection, and each tenant has its own connections. So definitions hold neither addresses nor
-- secrets.
--
-- A secret is sealed by the service, if it has a key, for its tenant, connection and column. No role may read it from the
-- table. The invoker gets it from connection_endpoints. Instead of a secret, a connection may name a variable of the
-- process that calls.
--
-- A service that keeps failing has its circuit opened. Then it is probed with one call at a time, at growing intervals,
-- until one succeeds. A connection whose secret cannot be had rests with a finding. Tasks wait meanwhile and lose no
-- attempt.
--
-- Lock order: connection, by tenant and name, after all of the engine's and before consumer.

-- connection is a service that tasks call.
create table pawl.connection (
  tenant_id pawl.tenant_id not null,
  name text collate "C" not null,
  version pawl.version not null,
  base_url text not null,
  auth pawl.object not null,
  secret text,
  headers pawl.object not null,
  timeout interval,
  concurrency integer not null,
  tls_ca text,
  failures integer not null default 0,
  circuit_open_until timestamptz,
  finding text,
  created_at timestamptz not null,
  created_by pawl.actor not null,
  updated_at timestamptz not null,
  constraint connection_pkey primary key (tenant_id, name),
  constraint connection_tenant_fkey foreign key (tenant_id) references pawl.tenant (id),
  constraint connection_name_is_a_slug check (name ~ '^[a-z][a-z0-9]*([-_][a-z0-9]+)*$'),
  constraint connection_name_has_1_to_63_characters check (length(name) between 1 and 63),
  constraint connection_base_url_has_1_to_2048_characters check (length(base_url) between 1 and 2048),
  constraint connection_base_url_is_http_without_user_query_and_fragment check (base_url ~ '^https?://[^/?#@]+(/[^?#]*)?$'),
  constraint connection_auth_has_a_known_type check (coalesce(auth ->> 'type' in ('none', 'bearer', 'basic', 'header'), false)),
  constraint connection_auth_holds_no_secret check (auth - '{type,user,name,env}'::text[] = '{}'),
  constraint connection_auth_names_a_user_if_it_is_basic check ((auth ? 'user') = (auth ->> 'type' = 'basic')),
  constraint connection_auth_names_a_header_if_that_is_its_type check ((auth ? 'name') = (auth ->> 'type' = 'header')),
  -- What is known to be absent and what is known to be present exclude one another.
  constraint connection_has_a_secret_or_a_variable_unless_it_has_no_auth
    check (case when auth ->> 'type' = 'none' then not auth ? 'env' and secret is null else (auth ? 'env') = (secret is null) end),
  constraint connection_secret_has_1_to_32768_characters check (length(secret) between 1 and 32768),
  constraint connection_headers_have_up_to_128_KiB check (octet_length(headers::text) <= 131072),
  constraint connection_timeout_is_from_100_ms_to_10_minutes check (timeout between '100 milliseconds' and '10 minutes'),
  constraint connection_concurrency_is_from_1_to_512 check (concurrency between 1 and 512),
  constraint connection_tls_ca_has_1_to_65536_characters check (length(tls_ca) between 1 and 65536),
  constraint connection_failures_are_counted check (failures >= 0)
)
-- There are few rows. Those of failing services are updated often: fillfactor keeps that in their page.
with (fillfactor = 50);

comment on column pawl.connection.version is 'counts the changes of its settings, and is the ETag';
comment on column pawl.connection.auth is 'type; user of basic, name of header; env, the variable that has the secret';
comment on column pawl.connection.secret is 'sealed or not; null without one';
comment on column pawl.connection.headers is 'names and texts, sent with each request';
comment on column pawl.connection.timeout is 'the longest that an attempt may take; null for what the task says';
comment on column pawl.connection.concurrency is 'how many calls a replica makes at a time';
comment on column pawl.connection.tls_ca is 'PEM certificates that may sign the service''s, instead of those of the system; null for these';
comment on column pawl.connection.failures is 'how many attempts have failed in a row';
comment on column pawl.connection.circuit_open_until is 'nothing is sent before this time';
comment on column pawl.connection.finding is 'why the secret cannot be had, so that nothing is sent; null if it can, as far as is known';

-- connection_row is a connection without its secret, as everybody but the invoker sees it.
create view pawl.connection_row as
select
  c.tenant_id, c.name, c.version, c.base_url, c.auth, c.headers, c.timeout, c.concurrency, c.tls_ca, c.failures,
  c.circuit_open_until, c.finding, c.created_at, c.created_by, c.updated_at
from pawl.connection c;

-- connection_endpoint is what the invoker needs to call a connection's service. secret: sealed or not; '' if there is none.
-- tls_ca: '' for the system's. resting: the connection has a finding. It is a shape, as pawl.outcome_row is, and never
-- holds rows.
create view pawl.connection_endpoint as
select ''::text as tenant_id, ''::text as name, ''::text as base_url, '{}'::jsonb as auth, ''::text as secret,
  '{}'::jsonb as headers, null::interval as timeout, 0 as concurrency, ''::text as tls_ca, false as resting
where false;
