-- Module task: work that states ask for. A *task* either calls a service over HTTP by a connection, or offers work to
-- workers that pull it from a topic. What became of it moves the instance by the same fire as everything else.
--
-- A task is armed in the transaction of the step that enters its state (move_tasks). Nothing is called there. A claim
-- records *sent* and commits before the call is made. The result is settled by task_settle, in one transaction with the
-- step that it makes. What nobody settles in time is settled by task_sweep: a lease that ran out, and a deadline.
--
--   pending ──claim──▶ sent ──┬──▶ done | error                   fires done:NAME, error:NAME
--      ▲                │ ▲   └──▶ unknown                        fires unknown:NAME
--      │                │ └─ retry under the same key
--      └─ fresh key ── reconciling ──▶ done | error | unknown
--      │
--      └──▶ cancelled   the state was left before anything was sent
--
-- The status says what may have happened outside. A `pending` task has surely had no effect: nothing was sent, or only
-- attempts that were refused before. A `sent` task may have had one, also while it waits for its next attempt.
--
-- Leaving the state cancels pending tasks. A task that was sent goes on to its end, and is then *late*: left_at says when
-- its state was left. It moves the instance only by the event that its definition names for that.
--
-- Each claim has a random lease. Only the holder of the newest one may settle. A lease that has run out is still the
-- newest until the next claim supersedes it. So two processes never settle one attempt differently, and a process that
-- was paused is welcome if nobody has taken its place.
--
-- What a task sends is not stored. It is computed from the history row that entered the state, and so is the same in
-- each attempt.
--
-- A *compensation* undoes what a task or a transition did. It is registered when its task is sent, or when its transition
-- is made. A state that undoes steps has a row in undoing while an instance is in it. One step is undone at a time, the
-- newest first: undo_next arms the compensation as a task, in the transaction that settles the one before.
--
-- Lock order: instance (by id), undoing, compensation, task (by id), task_attempt. A claim locks tasks alone, and skips those
-- that are locked.

create table pawl.task (
  tenant_id pawl.tenant_id not null,
  id uuid not null,
  instance_id uuid not null,
  workflow text collate "C" not null,
  workflow_version integer not null,
  position integer not null,
  state text collate "C" not null,
  name text collate "C" not null,
  connection text collate "C",
  topic text collate "C",
  compensates bigint,
  entered_version pawl.version not null,
  result_version bigint,
  status text not null,
  left_at timestamptz,
  reopened boolean not null default false,
  attempts integer not null default 0,
  tries integer not null default 0,
  key_number integer not null default 1,
  checks integer not null default 0,
  sent_at timestamptz,
  tried_at timestamptz,
  due_at timestamptz,
  look_at timestamptz,
  deadline_at timestamptz not null,
  lease uuid,
  leased_until timestamptz,
  leased_for interval,
  worker text,
  claim_key pawl.key,
  progress jsonb,
  result pawl.object,
  problem text,
  created_at timestamptz not null,
  ended_at timestamptz,
  constraint task_pkey primary key (tenant_id, id),
  constraint task_status_is_known check (status in ('pending', 'sent', 'reconciling', 'done', 'error', 'unknown', 'cancelled')),
  constraint task_calls_or_offers_work check ((connection is null) <> (topic is null)),
  constraint task_ended_has_a_time check ((status in ('done', 'error', 'unknown', 'cancelled')) = (ended_at is not null)),
  constraint task_ended_is_not_claimed check (ended_at is null or due_at is null and look_at is null and leased_until is null),
  constraint task_open_is_looked_at check (ended_at is not null or look_at is not null),
  constraint task_leased_is_not_due check (leased_until is null or due_at is null and lease is not null),
  constraint task_attempts_are_counted check (attempts >= 0 and tries >= 0 and checks >= 0 and key_number >= 1)
)
-- Each row is written some times and indexed by what is due, so that dead entries gather where claims begin.
with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

comment on column pawl.task.position is 'of its declaration in workflow_task';
comment on column pawl.task.state is 'the state that started it';
comment on column pawl.task.connection is 'by which its next call goes; what reconciles may go by another one';
comment on column pawl.task.compensates is 'the number of the compensation that it carries out; null for the task of a state';
comment on column pawl.task.entered_version is 'the step that its input is made from';
comment on column pawl.task.result_version is 'the step that its outcome made';
comment on column pawl.task.left_at is 'when its state was left before it ended; null again when it has moved the instance after an operator had it tried again';
comment on column pawl.task.reopened is 'an operator has it tried again, or has said what happened, after it had ended';
comment on column pawl.task.attempts is 'how often it was claimed';
comment on column pawl.task.tries is 'how many attempts under the present key may have had an effect';
comment on column pawl.task.key_number is 'a fresh key has the suffix -2, -3 …';
comment on column pawl.task.checks is 'how often it was asked what became of the last attempt';
comment on column pawl.task.sent_at is 'when it was first sent under the present key; null if surely nothing was';
comment on column pawl.task.tried_at is 'when the last attempt ended';
comment on column pawl.task.due_at is 'when it may be claimed; null while it is leased and when it has ended';
comment on column pawl.task.look_at is 'when task_sweep must look at it; null when it has ended';
comment on column pawl.task.leased_for is 'how long the lease is, and how long it is again after a heartbeat';
comment on column pawl.task.claim_key is 'the idempotency key of the claim that took it';
comment on column pawl.task.result is 'the payload of its outcome';
comment on column pawl.task.problem is
  'why its outcome did not make the step that it should have made, its input cannot be computed, or task_sweep has put it off; else null';

create index task_connection_due_idx on pawl.task (tenant_id, connection, due_at) where connection is not null and due_at is not null;
create index task_topic_due_idx on pawl.task (tenant_id, topic, due_at) where topic is not null and due_at is not null;
create index task_look_at_idx on pawl.task (look_at) where look_at is not null;
create index task_claim_key_idx on pawl.task (tenant_id, claim_key) where claim_key is not null and leased_until is not null;
create index task_instance_idx on pawl.task (tenant_id, instance_id, id);
-- For lists of one status. No other query repeats its condition, so that the planner takes it for none of them.
create index task_status_idx on pawl.task (tenant_id, status, id) where status in ('pending', 'sent', 'reconciling', 'error', 'unknown');
-- What ended and made no step. A task that ends as it should is in it for a moment.
create index task_unheard_idx on pawl.task (tenant_id, id)
  where result_version is null and status in ('done', 'error', 'unknown') and compensates is null;

-- claim_key has a row for each idempotency key of a claim, for a day. Whoever claims locks the row of its key, so that the
-- same claim, sent twice at a time, is carried out once.
create table pawl_private.claim_key (
  tenant_id pawl.tenant_id not null,
  key pawl.key not null,
  claimed_at timestamptz not null,
  constraint claim_key_pkey primary key (tenant_id, key)
)
with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

create index claim_key_claimed_at_idx on pawl_private.claim_key (claimed_at);

-- task_attempt is one claim of a task and what came of it.
create table pawl.task_attempt (
  tenant_id pawl.tenant_id not null,
  task_id uuid not null,
  number integer not null,
  kind text not null,
  key text not null,
  lease uuid not null,
  worker text,
  started_at timestamptz not null,
  ended_at timestamptz,
  result text,
  status integer,
  error text,
  constraint task_attempt_pkey primary key (tenant_id, task_id, number),
  constraint task_attempt_kind_is_known check (kind in ('call', 'reconcile', 'work')),
  constraint task_attempt_error_is_short check (length(error) <= 1000)
)
with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

comment on column pawl.task_attempt.result is
  'what was reported: see pawl.task_settle; or expired: its lease ran out, overdue, impossible, resolved; null while it is under way';

-- compensation is a step that can be undone.
create table pawl.compensation (
  tenant_id pawl.tenant_id not null,
  instance_id uuid not null,
  number bigint not null generated always as identity,
  name text collate "C" not null,
  workflow text collate "C" not null,
  workflow_version integer not null,
  position integer not null,
  task_id uuid,
  version pawl.version not null,
  status text not null,
  undone_by uuid,
  reason text,
  constraint compensation_pkey primary key (tenant_id, instance_id, number),
  constraint compensation_task_key unique (tenant_id, task_id),
  constraint compensation_status_is_known check (status in ('registered', 'undone', 'failed', 'skipped', 'void'))
)
with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

comment on column pawl.compensation.name is 'of the task or of the event whose step it undoes';
comment on column pawl.compensation.position is 'of its declaration in workflow_task';
comment on column pawl.compensation.task_id is 'the task whose effect it undoes; null for a transition';
comment on column pawl.compensation.version is 'the step whose data its input is made from';
comment on column pawl.compensation.status is 'void: there was no effect to undo';
comment on column pawl.compensation.undone_by is 'the task that carries it out';
comment on column pawl.compensation.reason is 'why it failed, or why an operator skipped it';

-- undoing has a row for each instance that is in a state that undoes steps.
create table pawl.undoing (
  tenant_id pawl.tenant_id not null,
  instance_id uuid not null,
  due_at timestamptz,
  tried integer not null default 0,
  problem text,
  constraint undoing_pkey primary key (tenant_id, instance_id)
)
with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

comment on column pawl.undoing.due_at is 'when task_sweep must look at it; null while a task is waited for';
comment on column pawl.undoing.tried is 'how often going on has failed';
comment on column pawl.undoing.problem is 'why going on failed last; null if it never did';

create index undoing_due_at_idx on pawl.undoing (due_at) where due_at is not null;

-- task_lane, task_call, task_settled and work are shapes, as pawl.outcome_row is, and never hold rows.
create view pawl.task_lane as
select ''::text as tenant_id, ''::text as connection, false as ready, false as half_open, 0 as concurrency, false as missing
where false;

create view pawl.task_call as
select
  ''::text as tenant_id, '00000000-0000-0000-0000-000000000000'::uuid as task_id, '00000000-0000-0000-0000-000000000000'::uuid as lease,
  0 as attempt, false as reconciling, ''::text as key, ''::text as idempotency_header, ''::text as connection, ''::text as method,
  '[]'::jsonb as path, '{}'::jsonb as query, '{}'::jsonb as headers, null::jsonb as body, 0::float8 as timeout_seconds,
  null::text as correlation_id, null::text as traceparent
where false;

create view pawl.task_settled as
select
  0 as ordinal, ''::text as code, ''::text as tenant_id, '00000000-0000-0000-0000-000000000000'::uuid as task_id,
  '00000000-0000-0000-0000-000000000000'::uuid as instance_id, ''::text as status, false as late, null::timestamptz as leased_until
where false;

create view pawl.work as
select
  '00000000-0000-0000-0000-000000000000'::uuid as id, ''::text as topic, ''::text as name,
  '00000000-0000-0000-0000-000000000000'::uuid as instance_id, ''::text as workflow, 0 as attempt, ''::text as key, '{}'::jsonb as input,
  '00000000-0000-0000-0000-000000000000'::uuid as lease, 'epoch'::timestamptz as lease_expires_at,
  'epoch'::timestamptz as deadline_at, null::text as correlation_id,
  null::text as traceparent
where false;

-- task_row is a task as people see it. error: why it failed, why it waits for its connection, or why its last attempt failed.
create view pawl.task_row as
select
  t.tenant_id, t.id, t.instance_id, t.workflow, t.workflow_version, t.state, t.name, (t.compensates is not null)::boolean as compensation,
  t.topic, t.connection, t.status, t.attempts,
  (t.id || case when t.key_number > 1 then '-' || t.key_number else '' end)::text as key,
  coalesce(
    t.problem,
    case
      when t.due_at is null or t.connection is null then null
      when c.name is null then format('there is no connection %s', t.connection)
      when c.finding is not null then format('the connection %s cannot be used', t.connection)
    end,
    t.result ->> 'error', a.error) as error,
  (case when t.leased_until is not null then t.worker end)::text as worker, t.progress, t.due_at, t.leased_until, t.deadline_at,
  t.left_at, t.created_at, t.ended_at
from pawl.task t
left join pawl.task_attempt a
  on a.tenant_id = t.tenant_id and a.task_id = t.id and a.number = t.attempts and t.status <> 'done'
left join pawl.connection c
  on c.tenant_id = t.tenant_id and c.name = t.connection;

-- claimed_work is a task that a claim of pawl.work_claims got. It is a shape, and never holds rows.
create view pawl.claimed_work as
select
  0 as ordinal, '00000000-0000-0000-0000-000000000000'::uuid as id, ''::text as topic, ''::text as name,
  '00000000-0000-0000-0000-000000000000'::uuid as instance_id, ''::text as workflow, 0 as attempt, ''::text as key, '{}'::jsonb as input,
  '00000000-0000-0000-0000-000000000000'::uuid as lease, 'epoch'::timestamptz as lease_expires_at,
  'epoch'::timestamptz as deadline_at, null::text as correlation_id, null::text as traceparent
where false;

-- moment is one thing that happened to an instance; see pawl.timeline_page. It is a shape, and never holds rows.
create view pawl.moment as
select
  'epoch'::timestamptz as at, 0::bigint as version, 0 as rank, ''::text as key, ''::text as kind, null::text as step, null::text as event,
  null::text as from_state, null::text as to_state, null::text as actor, null::text as reason, null::text as name, null::uuid as task_id,
  null::boolean as compensates,
  null::integer as attempt, null::boolean as reconciling, null::text as status, null::integer as http_status, null::text as failure, null::text as worker,
  null::timestamptz as ended_at, null::uuid as delivery_id, null::uuid as subscription_id
where false;
