-- Module core: the two schemas, the domains, the settings and the clock.
--
-- Schema pawl is what callers see: tables to read and functions to call. Schema pawl_private
-- holds what only those functions use. No role but the owner has privileges on it.
--
-- The header of a function says what it returns, which conditions it raises, which existing rows it
-- locks, and which tables it writes, with what the functions that it calls do. A line that is missing
-- means nothing. Any function may also raise what PostgreSQL raises by itself: 57014 at the
-- statement timeout.

-- goose may have made schema pawl already, for its version table.
create schema if not exists pawl;
create schema pawl_private;

comment on schema pawl is 'finite-state-machine service: tables to read, functions to call';
comment on schema pawl_private is 'what the functions of schema pawl use; not for callers';

-- Names and keys are compared by their bytes, whatever the database's locale. That is faster,
-- and a new version of the locale breaks no index.
--
-- A domain holds a rule about a single column; a CHECK of a table holds a rule that joins
-- columns. Postgres parses a table's CHECKs anew for each statement that writes the table, but
-- a domain's once per session. For a call with one command that made a sixth of its time.
create domain pawl.tenant_id as text collate "C"
  constraint tenant_id_has_1_to_63_characters check (length(value) between 1 and 63);
create domain pawl.key as text collate "C"
  constraint key_has_1_to_255_characters check (length(value) between 1 and 255);
create domain pawl.actor as text
  constraint actor_has_1_to_255_characters check (length(value) between 1 and 255);
create domain pawl.reason as text
  constraint reason_has_1_to_1000_characters check (length(value) between 1 and 1000);
create domain pawl.version as bigint
  constraint version_is_positive check (value >= 1);
create domain pawl.status as text
  constraint status_is_known check (value in ('active', 'completed', 'failed', 'cancelled', 'expired'));
create domain pawl.kind as text
  constraint kind_is_known
    check (value in ('created', 'transition', 'timeout', 'expired', 'forced', 'cancelled', 'migrated', 'result', 'compensated'));
create domain pawl.decision as text
  constraint decision_is_recorded check (
    value in ('applied', 'transition-not-allowed', 'guard-rejected', 'state-protected', 'not-cancellable'));
create domain pawl.object as jsonb
  constraint object_is_a_json_object check (jsonb_typeof(value) = 'object');
create domain pawl.sha256 as bytea
  constraint sha256_has_32_bytes check (octet_length(value) = 32);

comment on domain pawl.tenant_id is 'the namespace of keys and instances';
comment on domain pawl.key is 'a name that a caller chooses';
comment on domain pawl.actor is 'who gave a command';
comment on domain pawl.reason is 'why a command was given, in the actor''s words';
comment on domain pawl.object is 'a JSON object';
comment on domain pawl.sha256 is 'a SHA-256 digest';
comment on domain pawl.version is 'counts the steps of an instance';
comment on domain pawl.status is 'active, or how a final instance ended';
comment on domain pawl.kind is 'what made a step';
comment on domain pawl.decision is 'what is recorded for an idempotency key';

-- setting is one row: what every replica and every SQL caller must agree on.
-- `pawl migrate set` changes it. Nothing caches it but cursor_secret, which never changes, and access_version, which is
-- there to be compared.
create table pawl.setting (
  only_row boolean not null default true,
  idempotency_ttl interval not null default interval '24 hours',
  idempotency_ttl_slides boolean not null default false,
  context_limit integer not null default 65536,
  payload_limit integer not null default 65536,
  definition_limit integer not null default 1048576,
  state_limit integer not null default 500,
  cursor_secret bytea not null default sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())),
  access_version uuid not null default gen_random_uuid(),
  constraint setting_pkey primary key (only_row),
  constraint setting_is_one_row check (only_row),
  constraint setting_is_in_a_database_in_utf8 check (getdatabaseencoding() = 'UTF8'),
  constraint setting_idempotency_ttl_is_positive check (idempotency_ttl > interval '0'),
  -- The length of days and months depends on the time zone of a session.
  constraint setting_idempotency_ttl_has_no_days_or_months check (
    extract(day from idempotency_ttl) = 0 and extract(month from idempotency_ttl) = 0
    and extract(year from idempotency_ttl) = 0),
  constraint setting_limits_are_positive
    check (context_limit > 0 and payload_limit > 0 and definition_limit > 0 and state_limit > 0),
  -- A body has at most 1 MiB, of which its other members need up to 16 KiB.
  constraint setting_documents_fit_into_a_body check (context_limit <= 1032192 and payload_limit <= 1032192)
);

comment on column pawl.setting.idempotency_ttl is 'how long an idempotency key is remembered';
comment on column pawl.setting.idempotency_ttl_slides is 'whether a replay starts the time again';
comment on column pawl.setting.context_limit is 'bytes of a context as jsonb text';
comment on column pawl.setting.payload_limit is 'bytes of a payload as jsonb text';
comment on column pawl.setting.definition_limit is 'bytes of a definition as jsonb text';
comment on column pawl.setting.cursor_secret is 'signs list cursors, so that any replica can check them';
comment on column pawl.setting.access_version is 'another one after each change of a token, a role or a tenant';

insert into pawl.setting default values;

-- privilege says which functions a role with a privilege may execute. `api` is what requests need, `worker` what the
-- background work needs. `pawl serve` does both unless it is told otherwise. `caller` is an application that moves
-- instances in its own transactions, and `operator` may force them, too. `reader` is for support: it reads, and no
-- secrets. Each module adds its rows in its grants.sql; `pawl migrate grants` turns them into GRANT statements.
create table pawl_private.privilege (
  privilege text not null,
  function text not null,
  constraint privilege_pkey primary key (privilege, function),
  constraint privilege_is_known check (privilege in ('api', 'worker', 'reader', 'caller', 'operator'))
);

-- readable says which tables and views a role with a privilege may read, beside what its functions answer.
create table pawl_private.readable (
  privilege text not null,
  relation text not null,
  columns text[],
  constraint readable_pkey primary key (privilege, relation),
  constraint readable_privilege_is_known check (privilege in ('api', 'worker', 'reader'))
);

comment on column pawl_private.readable.columns is 'null for all';

-- condition lists why a command is refused, and why a request cannot be carried out. `outcome` is the
-- engine's code, `problem` the code that HTTP answers with. Outcomes that are one problem to a caller
-- share its SQLSTATE, and no two problems share one. The problem `internal` is none that an HTTP
-- client can act on; an operator can, so each of its outcomes has a SQLSTATE of its own.
--
-- In `message`, %1$s is the event, and %2$s, %3$s and %4$s are the state, the version and the id of
-- the instance. The service words its problems in the same way; a test compares them.
create table pawl_private.condition (
  outcome text not null,
  problem text not null,
  sqlstate text not null,
  message text,
  constraint condition_pkey primary key (outcome),
  constraint condition_sqlstate_is_of_class_pw check (sqlstate ~ '^PW[0-9A-Z]{3}$')
);

comment on column pawl_private.condition.message is 'null where the function that raises words it';

insert into pawl_private.condition (outcome, problem, sqlstate, message) values
  ('malformed-request', 'malformed-request', 'PW400',
    'context and payload must be JSON objects, nested at most 64 deep'),
  ('lifetime-without-ttl', 'malformed-request', 'PW400', 'the workflow has no ttl'),
  ('unknown-state', 'malformed-request', 'PW400', 'the instance''s version of the workflow has no such state'),
  ('instance-not-found', 'instance-not-found', 'PW404', 'there is no such instance'),
  ('workflow-not-found', 'workflow-not-found', 'PW40W', 'there is no such workflow'),
  ('transition-not-allowed', 'transition-not-allowed', 'PW409', 'the state %2$s has no transition for %1$s'),
  ('instance-final', 'transition-not-allowed', 'PW409', 'the state %2$s is final, and nothing leaves it'),
  ('state-protected', 'state-protected', 'PW40P',
    'a protected state is neither left nor entered by hand; the instance is in %2$s, whose events and timers go on'),
  ('not-cancellable', 'not-cancellable', 'PW40C', 'the workflow names no state for instances that are cancelled'),
  ('guard-rejected', 'guard-rejected', 'PW40G', 'no guard of %1$s in the state %2$s holds for this payload'),
  ('invariant-broken', 'guard-rejected', 'PW40G', 'the step would break an invariant'),
  ('instance-exists', 'instance-exists', 'PW40E', 'instance %4$s already has this business key'),
  ('limit-reached', 'limit-reached', 'PW40M', null),
  ('workflow-conflict', 'workflow-conflict', 'PW40V', null),
  ('bulk-conflict', 'bulk-conflict', 'PW40B', null),
  ('principal-changed', 'unavailable', 'PW40A', null),
  ('task-not-found', 'not-found', 'PW40K', 'there is no such task'),
  ('lease-superseded', 'lease-superseded', 'PW40S',
    'the lease is not the newest of the task: it was given back, its attempt has failed, or somebody else has claimed the task since'),
  ('task-ended', 'task-ended', 'PW40D', 'the task has ended'),
  ('task-open', 'task-ended', 'PW40D', 'the task is under way; wait for its end'),
  ('consumer-led', 'internal', 'PW40L', null),
  ('steps-purged', 'event-id-too-old', 'PW410', null),
  ('version-mismatch', 'version-mismatch', 'PW412', 'the instance is at version %3$s; read it again and decide anew'),
  ('payload-too-large', 'too-large', 'PW413', 'the payload is larger than the limit'),
  ('context-too-large', 'too-large', 'PW413', 'the context is, or would become, larger than the limit'),
  ('context-too-deep', 'too-large', 'PW413', 'the context would become nested deeper than 64'),
  ('unknown-event', 'unknown-event', 'PW422', 'the workflow has no event "%1$s"'),
  ('always-loop', 'guard-error', 'PW42G',
    'eventless transitions follow one another without coming to rest; nothing was changed'),
  ('timer-loop', 'guard-error', 'PW42G',
    'timers of the instance follow one another without time passing; nothing was changed'),
  ('invalid-definition', 'invalid-definition', 'PW42D', null),
  ('idempotency-key-reuse', 'idempotency-key-reuse', 'PW42K',
    'this idempotency key was used for another request; take a new one'),
  ('forbidden', 'forbidden', 'PW403', null),
  ('unknown-tenant', 'unknown-tenant', 'PW40T', null),
  ('precondition-required', 'precondition-required', 'PW428',
    'this workflow wants every event to name the version it has seen; the instance is at version %3$s'),
  ('override-unconditional', 'precondition-required', 'PW428',
    'an override must name the version it has seen; the instance is at version %3$s');
