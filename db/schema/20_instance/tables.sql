-- Module instance: the engine. It decides every command, and its functions are the only writers
-- of the tables below. The tables' constraints are the first line of defence: they hold for the
-- owner's writes too.
--
-- Every table leads its keys with tenant_id, so that a tenant's rows can be moved to another database.
-- A call may have commands of several tenants; each row is looked up with the tenant of its command.
--
-- A command is a *create* or a *fire*. Both functions take parallel arrays, one entry per
-- command, and return one outcome per command, so that many requests share a round trip and a
-- commit. create_one and fire_one wrap them for SQL callers. An empty string in a text array
-- means "none". A fire by business key (fire_by_keys) is made of calls of both.
--
-- A call of fire proceeds in these steps. Under READ COMMITTED each statement of a volatile function
-- sees a fresh snapshot.
--
--   1. Replay the commands whose idempotency key is taken, from what was recorded.
--   2. Lock the instances of the others, in the order of their ids.
--   3. Read the clock, then decide and write in one statement. A command has an effect only if it has no key, or if
--      this statement claims its key. If a call has several commands for one instance, the statement runs once for each
--      round of them.
--   4. Replay, in a statement of its own, the commands whose key was taken since step 1. It
--      must be another statement, to see what others committed meanwhile.
--
-- A create has no instance to lock, so it begins with step 3.
--
-- Lock order: workflow, instance_migration, instance (by id), idempotency_key (by key), history,
-- timer. Three cases differ:
--
--   * A create inserts instances after it has claimed its keys. Nobody can hold a lock on an instance
--     that does not exist, and creates insert business keys in one order.
--   * If the time to live of keys slides, step 1 locks keys before step 2 locks instances. Two calls
--     may then wait for each other. PostgreSQL ends one of them with 40P01, and the service repeats it,
--     or lock_timeout ends it before, and the service answers 503.
--   * Each round of a call claims its keys in order, but a later round may claim a smaller key. So two
--     calls that use the same keys for different instances may wait for each other. PostgreSQL ends one
--     of them in the same way.
--
-- Overrides and cancels come one by one, and have a function of their own (pawl_private.force). It takes the same steps
-- and shares what decides and records: decide for an event whose guards are passed over, complete_macrostep and
-- append_history. So the functions for commands need not ask at each command whether it is one of these.
--
-- A refusal is an outcome, not an exception: it must not undo the other commands of the call,
-- and a subtransaction for each command would cost more than the command. create_one and
-- fire_one raise refusals: see pawl_private.condition.
--
-- Properties of Postgres that the code depends on, each shown by a test in package db:
--
--   * The engine locks an instance first and reads it afterwards. An UPDATE that joins a row to the
--     same row once more compares, after a wait, the new row with the old one, and silently changes
--     nothing.
--   * A single statement can neither insert a key that another transaction inserts at the same
--     time, nor see it. The key is therefore read in the next statement.
--   * Rows are looked up by their full key through `left join lateral (... limit 1)`. A generic
--     plan that was made while the tables were empty expects two rows per tenant, and would
--     read all keys of the tenant at each call.
--   * decide and choose are single SELECTs in language sql, and stable, so that the planner
--     inlines them. They hold the decision, and dry runs share them.
--   * complete_macrostep takes eventless transitions in a loop. Only states that have some call
--     it; other commands pay nothing for them. The same is true of what few workflows use:
--     compiled guards and values, invariants, and memory (see remembered).
--   * The planner must not memoize: the cache key would hold the whole context, which does not
--     recur.
--   * No volatile function is called inside the writing statement.

-- state_is_declared looks up whether a version of a workflow that is not retired declares a state.
create function pawl_private.state_is_declared(p_workflow text, p_workflow_version integer, p_state text)
returns boolean
language plpgsql stable parallel safe
as $$
begin
  return exists (
    select from pawl.workflow_state s
    join pawl.workflow w
      on w.name operator(pg_catalog.=) s.workflow and w.version operator(pg_catalog.=) s.workflow_version
    where s.workflow operator(pg_catalog.=) p_workflow
      and s.workflow_version operator(pg_catalog.=) p_workflow_version
      and s.state operator(pg_catalog.=) p_state);
end
$$;

-- instance is one running process.
create table pawl.instance (
  tenant_id pawl.tenant_id not null,
  id uuid not null,
  workflow text collate "C" not null,
  workflow_version integer not null,
  state text collate "C" not null,
  status pawl.status not null,
  version pawl.version not null,
  context pawl.object not null,
  business_key pawl.key,
  business_key_reusable boolean not null default false,
  correlation_id pawl.key,
  parent_id uuid,
  created_at timestamptz not null,
  state_changed_at timestamptz not null,
  expires_at timestamptz,
  error pawl.object,
  state_hash bigint,
  memory jsonb,
  constraint instance_pkey primary key (tenant_id, id),
  constraint instance_state_changed_after_creation check (state_changed_at >= created_at)
)
-- fillfactor leaves room in a page for the next version of a row, so that updates stay heap-only
-- and the page prunes itself. Vacuum removes the rest: row versions that found no room, and index
-- entries of instances that became final, which lists would step over one by one. The default
-- would let it wait for a fifth of the table. The threshold of analyze stays at its default: the
-- lists' statistics move slowly, and each analyze makes every session plan the engine anew.
with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

-- No instance is in a state that its version does not declare, whoever writes. The engine writes a state
-- together with its hash, both read from the state's row in pawl.workflow_state, and then a comparison is
-- enough. Any other writer pays for a look-up. So a step costs the same however many workflows there are,
-- and registering one changes no constraint. A writer who computes the hash of an undeclared state passes:
-- only the owner could, who could as well drop the constraint.
--
-- It is "not valid", so that a dump restores it after the data of pawl.workflow_state. It binds all writes.
alter table pawl.instance add constraint instance_state_is_declared check (
  (state_hash = hashtextextended(state, hashtextextended(workflow, workflow_version))) is true
  or pawl_private.state_is_declared(workflow, workflow_version, state)) not valid;

comment on column pawl.instance.state_hash is 'from the state''s row in workflow_state: spares the CHECK a look-up; may be null';
comment on column pawl.instance.memory is 'what the engine must remember beside the state; null if nothing: see pawl_private.remembered';
comment on column pawl.instance.error is 'why the instance failed: see pawl_private.failure';

-- No index holds state, version, context or state_changed_at, so that a transition is a heap-only
-- update. The status is in some indexes: it changes once, with the last transition.
--
-- A business key names one instance of a workflow for as long as the instance exists, or until it is final
-- if the workflow's keys are reusable.
create unique index instance_business_key_key on pawl.instance (tenant_id, business_key, workflow)
  where business_key is not null and (status = 'active' or not business_key_reusable);
-- Lists read by the indexes below: the column that is filtered by, then the status, then the id.
-- See ListInstances.
--
-- The first two indexes have a condition that always holds, and that list queries repeat. Without
-- it, while the tables are small or not analysed, the planner would take such an index for
-- look-ups by the primary key or the business key, and read all rows of a tenant.
create index instance_status_idx on pawl.instance (tenant_id, status, id)
  where workflow <> '';
create index instance_workflow_idx on pawl.instance (tenant_id, workflow, status, id)
  where workflow <> '';
create index instance_business_key_idx on pawl.instance (tenant_id, business_key, status, id)
  where business_key is not null;
create index instance_correlation_id_idx on pawl.instance (tenant_id, correlation_id, status, id)
  where correlation_id is not null;

-- history is append-only and gapless per instance. Each row is one step, with the instance's data
-- after it. History is the audit trail, the source of replays and of reads of the past, and the
-- outbox. Its rows are purged together with their instance, if the workflow has a retention.
create table pawl.history (
  tenant_id pawl.tenant_id not null,
  instance_id uuid not null,
  version pawl.version not null,
  seq bigint not null generated always as identity,
  xid xid8 not null default pg_current_xact_id(),
  workflow text not null,
  workflow_version integer not null,
  kind pawl.kind not null,
  event text,
  from_state text,
  to_state text not null,
  status pawl.status not null,
  context pawl.object not null,
  payload pawl.object,
  expires_at timestamptz,
  error pawl.object,
  actor pawl.actor not null,
  reason pawl.reason,
  key pawl.key,
  correlation_id pawl.key,
  traceparent text,
  at timestamptz not null,
  entered_at timestamptz,
  internal boolean,
  principal jsonb,
  memory jsonb,
  database_user text,
  constraint history_pkey primary key (tenant_id, instance_id, version),
  constraint history_starts_with_created check ((version = 1) = (kind = 'created')),
  constraint history_internal_stays check (internal is null or internal and from_state = to_state)
)
-- Rows are inserted and never updated. Vacuum reads only new pages, so it runs after a fixed number
-- of rows, whatever the table's size, and freezes them in the same pass. Each page is then written
-- once more and not read again, and an anti-wraparound vacuum finds nothing to do. A share of the
-- table instead would let the visibility map and the statistics fall behind as the table grows.
with (
  autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 500000, autovacuum_freeze_min_age = 0,
  autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 500000
);

comment on column pawl.history.entered_at is
  'when the state was entered, if earlier than the step: an internal transition and an instance migration may keep the state';
comment on column pawl.history.internal is 'true if the step neither left nor entered a state; else null';
comment on column pawl.history.principal is 'what the step read as $.actor, if the workflow reads it';
comment on column pawl.history.database_user is 'the session''s user if the command came by SQL; null if it came through the service, and for timers';

-- idempotency_key holds the first decision for a key: the step that the command made, or the
-- refusal that the machine decided, and at which version. A replay is rebuilt from history.
create table pawl.idempotency_key (
  tenant_id pawl.tenant_id not null,
  key pawl.key not null,
  fingerprint pawl.sha256 not null,
  decision pawl.decision not null,
  instance_id uuid not null,
  version pawl.version not null,
  expires_at timestamptz not null,
  refusal jsonb,
  constraint idempotency_key_pkey primary key (tenant_id, key)
)
-- As many keys are purged as are inserted, so the table levels off at what vacuum leaves behind:
-- a hundredth of it, not the default fifth. A vacuum reads both indexes whole, which is why the
-- threshold is not a fixed number. Inserts alone need no vacuum: the rows are soon deleted, and
-- nothing reads the visibility map.
with (
  autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_insert_threshold = -1
);

comment on column pawl.idempotency_key.refusal is
  'of a refusal: the event, when it was refused (at), and the invariant that the step would have broken, if that is why; null for a step';

create index idempotency_key_expires_at_idx on pawl.idempotency_key (expires_at);
-- Finds the refusals that are recorded for an instance, which keep the instance from being purged, and the last ones of
-- them. The keys of its steps are found through history, so most keys cost nothing here.
create index idempotency_key_refused_idx on pawl.idempotency_key (tenant_id, instance_id, expires_at)
  where decision <> 'applied';

-- timer says when the timer worker must look at an instance: at its next deadline, which is the
-- nearest of its state's timeouts and the end of its lifetime, or earlier. The step that enters
-- a state arms or clears the timer in its own transaction. A step to a later deadline leaves the
-- row as it is, so that most steps write none.
create table pawl.timer (
  tenant_id pawl.tenant_id not null,
  instance_id uuid not null,
  due_at timestamptz not null,
  armed_version pawl.version not null,
  tried integer not null,
  failed_version pawl.version,
  last_error text,
  queue integer,
  queued_version pawl.version,
  constraint timer_pkey primary key (tenant_id, instance_id),
  constraint timer_failed_with_an_error check ((failed_version is null) = (last_error is null)),
  constraint timer_is_queued_at_a_version check ((queue is null) = (queued_version is null))
)
-- Arming and clearing leave dead rows and, since due_at is indexed, dead entries among those that
-- are due first.
with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

comment on column pawl.timer.tried is
  'how many timeouts of the state that was entered at armed_version were refused';
comment on column pawl.timer.failed_version is
  'the timer fails while this is armed_version and the instance''s version: its deadline came and the step could not be made';
comment on column pawl.timer.last_error is 'why the deadline could not be ended at failed_version';

comment on column pawl.timer.queue is 'the queue of the slow lane that it was moved to: see pawl_private.slow_queue';
comment on column pawl.timer.queued_version is
  'the timer is in the slow lane while this is armed_version; a step that arms the timer anew takes it out';

-- The timers of the fast lane, of all tenants and of each, and those of each queue of the slow lane.
create index timer_due_at_idx on pawl.timer (due_at)
  where queued_version is distinct from armed_version;
create index timer_tenant_due_at_idx on pawl.timer (tenant_id, due_at)
  where queued_version is distinct from armed_version;
create index timer_queue_idx on pawl.timer (queue, due_at)
  where queued_version = armed_version;
-- Finds the timers that fail. A step that arms the timer anew takes it out of the index.
create index timer_failing_idx on pawl.timer (tenant_id, instance_id)
  where failed_version = armed_version;

-- instance_at is pawl.instance after each of its steps: the same columns, one row per version.
create view pawl.instance_at as
select
  i.tenant_id, i.id, i.workflow, h.workflow_version, h.to_state as state, h.status, h.version, h.context,
  i.business_key, i.business_key_reusable, i.correlation_id, i.parent_id, i.created_at,
  coalesce(h.entered_at, h.at) as state_changed_at,
  h.expires_at, h.error, null::bigint as state_hash, h.memory
from pawl.history h
join pawl.instance i on i.tenant_id = h.tenant_id and i.id = h.instance_id;

-- callback is a webhook for the end of one instance, given at its creation. The row is deleted
-- when the delivery has succeeded.
create table pawl.callback (
  tenant_id pawl.tenant_id not null,
  instance_id uuid not null,
  url text not null,
  secret text,
  created_at timestamptz not null,
  constraint callback_pkey primary key (tenant_id, instance_id),
  constraint callback_url_has_1_to_2048_characters check (length(url) between 1 and 2048),
  constraint callback_secret_has_a_prefix check (secret ~ '^(whsec_|sealed:v1:)')
)
-- As many rows are deleted as are inserted.
with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

comment on column pawl.callback.secret is 'sealed by the service if it has a key; null: the deployment''s secret signs';

-- The tenants whose instances are counted.
create index tenant_counted_idx on pawl.tenant (id)
  where limits ?| array['open_instances', 'storage_bytes'];

-- tenant_usage has what a tenant used when it was last counted, and how far the present count has come. There is a row
-- for each tenant that has a limit on it. Creations look at the row, and do not write it.
create table pawl_private.tenant_usage (
  tenant_id pawl.tenant_id not null,
  open_instances bigint,
  storage_bytes bigint,
  next_at timestamptz not null,
  part text not null default 'open',
  after_id uuid not null default '00000000-0000-0000-0000-000000000000',
  after_version bigint not null default 0,
  opened bigint not null default 0,
  stored bigint not null default 0,
  constraint tenant_usage_pkey primary key (tenant_id),
  constraint tenant_usage_part_is_known check (part in ('open', 'instances', 'history'))
)
-- The rows are updated every few seconds.
with (fillfactor = 50);

comment on column pawl_private.tenant_usage.open_instances is 'null before the first count; storage_bytes too, and while it has no limit';
comment on column pawl_private.tenant_usage.next_at is 'when the count goes on, or the next one begins';
comment on column pawl_private.tenant_usage.part is 'of the present count: what is counted now, behind after_id and after_version';
comment on column pawl_private.tenant_usage.opened is 'of the present count, as stored: open_instances and storage_bytes so far';

create index tenant_usage_next_at_idx on pawl_private.tenant_usage (next_at);

-- outcome is the engine's answer to one command. code: 'applied', a refusal, or 'payload-unchecked' or
-- 'context-unchecked' with the JSON Schema that the caller must check first. instance: as it is after an applied
-- command, else as it is; null if there is none to show. actions: the events that it accepts. guards: of a
-- 'guard-rejected' command, the guards that did not hold; of an 'invariant-broken' one, the invariant. schema: that
-- JSON Schema; of 'limit-reached' the limit, see pawl_private.limit_text. timeout_event, timeout_due_at: of an applied command, the next deadline that it left, or null; see pawl.next_timeout.
create type pawl.outcome as (
  ordinal integer,
  code text,
  replayed boolean,
  instance pawl.instance,
  actions text[],
  guards text[],
  schema jsonb,
  timeout_event text,
  timeout_due_at timestamptz
);

-- outcome_row is the shape of an outcome with the instance's columns side by side. It never holds
-- rows. It is a view because sqlc knows the columns of a view that a function returns.
create view pawl.outcome_row as
select
  0 as ordinal,
  ''::text as code,
  false as replayed,
  null::uuid as id,
  null::text as workflow,
  null::integer as workflow_version,
  null::text as state,
  null::text as status,
  null::bigint as version,
  null::jsonb as context,
  null::text as business_key,
  null::text as correlation_id,
  null::timestamptz as created_at,
  null::timestamptz as state_changed_at,
  null::timestamptz as expires_at,
  null::jsonb as error,
  null::text[] as actions,
  null::text[] as guards,
  null::jsonb as schema,
  null::text as timeout_event,
  null::timestamptz as timeout_due_at,
  null::jsonb as memory
where false;

-- move says how a transition leads from state to state; its members are those of workflow_transition.
create type pawl_private.move as (
  internal boolean,
  kept integer,
  rearms text,
  resumes text,
  resumed_state text,
  resumes_timers boolean,
  compensation integer
);

-- next_due is a deadline and its event.
create type pawl_private.next_due as (
  due_at timestamptz,
  event text
);

-- macrostep is a step with the steps that follow it without an event, as SCXML calls it. steps: the instance before the
-- first step (null at its creation) and after each step; made: the event of each of them: null for the one before, the
-- command's for the first, then null or 'done'. instance: after the last step; events, timeouts and timeout_events:
-- those of its state then; tasks: whether entering it starts or undoes something. refusal: null, or why the steps cannot be made; broken: the invariant that one of them would
-- break.
create type pawl_private.macrostep as (
  refusal text,
  broken text,
  steps pawl.instance[],
  made text[],
  instance pawl.instance,
  events text[],
  timeouts interval[],
  timeout_events text[],
  tasks boolean
);

-- fire_command is a fire as decide sees it. expected, checked and verified: as for pawl.fire. by_timer: whether it is
-- for a timer or a lifetime that is due. by_task: whether it is for what became of a task. principal: what guards and values read as $.actor; null to make it of the
-- actor.
create type pawl_private.fire_command as (
  tenant text,
  event text,
  payload jsonb,
  key text,
  expected text,
  checked text,
  reason text,
  actor text,
  verified boolean,
  by_timer boolean,
  by_task boolean,
  principal jsonb
);
