-- The engine's writes for one transition of the workflow, as plain statements of an application: in
-- one transaction, in the engine's lock order, with the guard and the assign already decided. The
-- rows stay consistent, so that the engine can move the same instances later. Each client moves
-- instances of its own, which pawl_bench.instance numbers.
\set i :i + 1
\set n 1 + :client_id * :slice + :i % :slice
begin;
select
  i.id, i.workflow, i.workflow_version, i.state as source, i.version + 1 as version,
  case i.state when 'A' then 'B' else 'A' end as target, i.context || '{"last": 1}' as context, b.fingerprint
from pawl_bench.instance b
join pawl.instance i on i.tenant_id = 'default' and i.id = b.id
where b.n = :n
for no key update of i
\gset
insert into pawl.idempotency_key (tenant_id, key, fingerprint, decision, instance_id, version, expires_at)
values (
  'default', concat(:run::text, '-', :client_id::text, '-', :i::text), :fingerprint, 'applied', :id, :version,
  clock_timestamp() + interval '24 hours')
on conflict do nothing
returning key
\gset
update pawl.instance
set state = :target, status = 'active', version = :version, context = :context,
  state_changed_at = greatest(clock_timestamp(), state_changed_at)
where tenant_id = 'default' and id = :id
returning state_changed_at
\gset
insert into pawl.history (
  tenant_id, instance_id, version, workflow, workflow_version, kind, event, from_state, to_state, status,
  context, payload, actor, key, at)
values (
  'default', :id, :version, :workflow, :workflow_version, 'transition', 'go', :source, :target, 'active',
  :context, '{"n": 1}', 'pgbench', :key, :state_changed_at);
commit;
