-- Module webhook: subscriptions, and the deliveries that are made for them.
--
-- The router turns steps into deliveries and moves the position of the consumer `webhooks` in the same
-- transaction. So each step is routed to each matching subscription exactly once, whatever happens to
-- the process. The leader of that consumer, one process at a time, sends what is due. Nothing is written
-- before an attempt: only the leader's memory knows what is under way. One write settles many attempts.
-- After a crash a delivery is routed or sent again, under the same id.
--
-- A step may match thousands of subscriptions. The router creates a bounded number of deliveries at a time,
-- and fewer for one tenant. Steps beyond that are put off (`unrouted_step`) and routed later, a piece at a
-- time, by tenants in turn. So no tenant's steps wait until another's are routed.
--
-- A finding that was opened is routed like a step, to the subscriptions that ask for findings by their types.
--
-- A subscription receives the messages of an instance in their order: its steps, and the findings about it. When a delivery fails, the later
-- ones of the instance lose their next_attempt_at. They get it back when the failed one is delivered or
-- dead. So head-of-line blocking is limited to an instance, and the search for due deliveries reads none
-- that wait for another.
--
-- An endpoint that keeps failing has its circuit opened. Then it is probed with one delivery at a time,
-- at growing intervals, until one succeeds. Deliveries that wait meanwhile lose no attempt.
--
-- Secrets are sealed by the service, if it has a key, for their row and column. So the service chooses the last 62 bits
-- of a row's id. No role may read a secret from the tables. The sender gets secrets from delivery_endpoints. If it
-- cannot open one, the subscription rests with a finding until it can.
--
-- Routing, settling and replaying lock the consumer's row, and so see one another's writes.
-- Lock order: consumer, subscription, delivery, callback, after all of the engine's.

-- subscription is an endpoint and the filter that says which messages it receives.
create table pawl.subscription (
  tenant_id pawl.tenant_id not null,
  id uuid not null,
  url text not null,
  workflows text[] not null,
  events text[] not null,
  states text[] not null,
  terminal_only boolean not null,
  types text[] not null default '{}',
  secret text not null,
  previous_secret text,
  previous_secret_until timestamptz,
  since pg_snapshot not null,
  later_seq bigint,
  disabled_at timestamptz,
  disabled_reason text,
  failures integer not null default 0,
  circuit_open_until timestamptz,
  finding text,
  created_at timestamptz not null,
  created_by pawl.actor not null,
  constraint subscription_pkey primary key (tenant_id, id),
  constraint subscription_url_has_1_to_2048_characters check (length(url) between 1 and 2048),
  constraint subscription_secrets_have_a_prefix
    check (secret ~ '^(whsec_|sealed:v1:)' and coalesce(previous_secret ~ '^(whsec_|sealed:v1:)', true)),
  constraint subscription_previous_secret_has_an_end
    check ((previous_secret is null) = (previous_secret_until is null)),
  constraint subscription_disabled_has_a_reason check ((disabled_at is null) = (disabled_reason is null)),
  constraint subscription_failures_are_counted check (failures >= 0)
)
-- There are few rows. Those of failing endpoints are updated often: fillfactor keeps that in their page.
with (fillfactor = 50);

comment on column pawl.subscription.workflows is 'names of workflows; empty for all, as for events and states';
comment on column pawl.subscription.states is 'states that a step enters, or states around them';
comment on column pawl.subscription.types is 'CloudEvent types; empty for those of all steps, and of no findings';
comment on column pawl.subscription.since is 'steps that it sees were committed before the subscription was created; see pawl_private.step_follows';
comment on column pawl.subscription.later_seq is 'as in pawl.consumer';
comment on column pawl.subscription.failures is 'how many attempts have failed in a row';
comment on column pawl.subscription.circuit_open_until is 'nothing is sent before this time';
comment on column pawl.subscription.finding is 'why the secret cannot be opened, so that nothing is sent; null if it can, as far as is known';

-- subscription_row is a subscription without its secrets, as everybody but the sender sees it.
create view pawl.subscription_row as
select
  s.tenant_id, s.id, s.url, s.workflows, s.events, s.states, s.terminal_only, s.types, s.previous_secret_until, s.disabled_at,
  s.disabled_reason, s.failures, s.circuit_open_until, s.finding, s.created_at, s.created_by
from pawl.subscription s;

-- delivery is one message for one subscription, or for a callback, and its attempts.
create table pawl.delivery (
  tenant_id pawl.tenant_id not null,
  id uuid not null,
  subscription_id uuid not null,
  callback boolean not null,
  instance_id uuid,
  version bigint,
  finding_id uuid,
  seq bigint not null default 0,
  type text not null,
  status text not null,
  attempts integer not null,
  replayed boolean not null default false,
  next_attempt_at timestamptz,
  last_status integer,
  last_error text,
  last_response text,
  created_at timestamptz not null,
  delivered_at timestamptz,
  constraint delivery_pkey primary key (tenant_id, id),
  -- Each step once for each subscription; also the index on an instance's deliveries. A finding is told once by the key,
  -- which is a digest of its id.
  constraint delivery_step_key unique (tenant_id, instance_id, version, subscription_id),
  constraint delivery_status_is_known check (status in ('pending', 'delivered', 'dead')),
  constraint delivery_is_of_a_step_a_finding_or_a_test check (
    case
      when finding_id is not null then type = 'pawl.finding.opened' and version is null
      else (instance_id is null) = (version is null) and (instance_id is null) = (type = 'pawl.subscription.test')
    end),
  constraint delivery_callback_is_of_its_instance check (not callback or subscription_id = instance_id),
  constraint delivery_settled_is_not_tried_again check (status = 'pending' or next_attempt_at is null),
  constraint delivery_delivered_has_a_time check (status <> 'delivered' or delivered_at is not null),
  constraint delivery_attempts_are_counted check (attempts >= 0),
  constraint delivery_response_is_an_excerpt check (octet_length(last_response) <= 1024)
)
-- Each row is written at least twice and deleted some days later, and the indexes on what is due get
-- dead entries with each attempt. The default would let vacuum wait for a fifth of the table.
with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

comment on column pawl.delivery.id is 'the webhook-id, the same in all attempts, and after any crash: see pawl_private.delivery_id';
comment on column pawl.delivery.instance_id is 'that of the step, or the one that the finding is about, if any';
comment on column pawl.delivery.seq is 'of the step or the finding: the deliveries of an instance are sent in its order';
comment on column pawl.delivery.created_at is
  'when the step was made, or the finding opened; of a test delivery, when it was requested';
comment on column pawl.delivery.subscription_id is 'the subscription; of a callback, the instance';
comment on column pawl.delivery.attempts is 'those since the last replay; while replayed, those before it';
comment on column pawl.delivery.replayed is 'it was replayed, and there has been no attempt since; the other columns show what was before';
comment on column pawl.delivery.delivered_at is 'when the endpoint last accepted it, even if it did not after a replay';
comment on column pawl.delivery.next_attempt_at is 'null while an earlier delivery of the instance waits for a retry, and when settled';
comment on column pawl.delivery.last_response is 'the first 1 KiB, as text';

-- unrouted_step is a step, or a finding, that the router has read and put off: its deliveries are not all created. While a
-- tenant has one, its later steps are put off too, so that deliveries are created in the order of the steps.
-- Callbacks are never put off.
create table pawl.unrouted_step (
  tenant_id pawl.tenant_id not null,
  position bigint not null,
  instance_id uuid,
  version bigint,
  finding_id uuid,
  after_subscription uuid not null,
  constraint unrouted_step_pkey primary key (tenant_id, position),
  constraint unrouted_step_is_a_step_or_a_finding
    check ((instance_id is null) = (version is null) and (instance_id is null) = (finding_id is not null))
)
-- As many rows are deleted as are inserted.
with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

comment on column pawl.unrouted_step.after_subscription is 'the deliveries for subscriptions with ids up to this one are created';

-- Whether an instance has such steps, for the retention.
create index unrouted_step_instance_idx on pawl.unrouted_step (tenant_id, instance_id);
create index unrouted_step_finding_idx on pawl.unrouted_step (tenant_id, finding_id) where finding_id is not null;

-- Deliveries that are due, by subscription and time, and those of an instance in their order.
create index delivery_due_idx on pawl.delivery (tenant_id, subscription_id, next_attempt_at, seq)
  where status = 'pending' and next_attempt_at is not null and not callback;
create index delivery_callback_due_idx on pawl.delivery (tenant_id, next_attempt_at)
  where status = 'pending' and next_attempt_at is not null and callback;
-- Pending deliveries of an instance, in the order of the steps.
create index delivery_pending_idx on pawl.delivery (tenant_id, instance_id, subscription_id, seq)
  where status = 'pending';
-- Findings that are still to be told, for their purge.
create index delivery_finding_idx on pawl.delivery (tenant_id, finding_id)
  where status = 'pending' and finding_id is not null;
-- The log of a subscription, and its dead letters.
create index delivery_subscription_idx on pawl.delivery (tenant_id, subscription_id, id);
create index delivery_dead_idx on pawl.delivery (tenant_id, id)
  where status = 'dead';
create index delivery_dead_instance_idx on pawl.delivery (tenant_id, instance_id, seq)
  where status = 'dead';
-- Delivered rows, to purge.
create index delivery_delivered_idx on pawl.delivery (id)
  where status = 'delivered';

-- endpoint is where the deliveries of a subscription or a callback go, and the secrets that sign them, sealed or not. An
-- empty secret stands for the deployment's. resting: the subscription has a finding. It is a shape, as pawl.outcome_row is,
-- and never holds rows.
create view pawl.endpoint as
select ''::text as tenant_id, '00000000-0000-0000-0000-000000000000'::uuid as id, ''::text as url, ''::text as secret,
  ''::text as previous_secret, false as disabled, false as callback, false as resting
where false;

-- delivery_lane says whether deliveries of a subscription, or the callbacks of a tenant, can be sent. The
-- lane of callbacks has the nil UUID as its subscription. ready: some are due. half_open: one at a time. It
-- is a shape and never holds rows.
create view pawl.delivery_lane as
select ''::text as tenant_id, '00000000-0000-0000-0000-000000000000'::uuid as subscription_id, false as ready, false as half_open
where false;

-- stored_secret is a row of subscriptions, callbacks or connections with its secrets, sealed or not. row_key: its key
-- within the tenant, as text. previous_secret: '' if there is none. It is a shape and never holds rows.
create view pawl.stored_secret as
select ''::text as tenant_id, ''::text as row_key, ''::text as secret, ''::text as previous_secret
where false;

-- delivery_tenant is what a tenant may have sent; see pawl.delivery_tenants. It is a shape and never holds rows.
create view pawl.delivery_tenant as
select ''::text as tenant_id, false as disabled, null::integer as attempts
where false;

-- routed is a step or a finding, and a subscription or a callback that it is for. epoch: null for a finding.
create type pawl_private.routed as (
  tenant_id text,
  subscription_id uuid,
  instance_id uuid,
  version bigint,
  finding_id uuid,
  seq bigint,
  type text,
  at timestamptz,
  epoch bigint
);
