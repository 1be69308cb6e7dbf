-- GetInstances reads instances with their next deadline, whose columns are null if there is none.
-- name: GetInstances :many
select i.*, s.events as actions, n.event as timeout_event, n.due_at as timeout_due_at, n.last_error as timeout_error
from pawl.instances(@tenants::text[], @ids::uuid[]) i
join pawl.workflow_state s
  on s.workflow = i.workflow and s.workflow_version = i.workflow_version and s.state = i.state
left join pawl.instance_timeout(i.tenant_id, i.id) n on true;

-- GetInstanceVersion reads a past version.
-- name: GetInstanceVersion :one
select
  sqlc.embed(i), s.events as actions, n.event as timeout_event, n.due_at as timeout_due_at
from pawl.instance_at i
join pawl.workflow_state s
  on s.workflow = i.workflow and s.workflow_version = i.workflow_version and s.state = i.state
left join pawl.past_timeout(i.tenant_id, i.id, i.version) n on true
where i.tenant_id = @tenant_id and i.id = @id and i.version = @version;

-- GetInstanceVersionAt says which version an instance was at.
-- name: GetInstanceVersionAt :one
select h.version
from pawl.history h
where h.tenant_id = @tenant_id and h.instance_id = @id and h.at <= @at
order by h.version desc
limit 1;

-- ListInstances reads a page of a list. For each status it reads a page by an index, in the order of the ids,
-- and then it merges these pages, and reads the instances up to the one by which their contexts have the given
-- bytes. The array workflows is null, or has a workflow for each entry of statuses; then the page has only
-- instances of that workflow. So a rare state is looked for only among the instances of its status. Bounds on
-- created_at become bounds on the id. So does stuck_for, since an instance is created before it enters its state.
--
-- With by_change the order is that of state_changed_at, which no index has. Then read_limit must not be less
-- than the number of instances that the filters leave: the caller calls CountInstances first. Without by_change,
-- read_limit is row_limit.
--
-- The query must be planned for its arguments at each call. Then the planner removes the conditions whose
-- argument is null, the join with timer if failing is false, and the terms of the order that are not used.
-- name: ListInstances :many
select i.*, s.events as actions, n.event as timeout_event, n.due_at as timeout_due_at, n.last_error as timeout_error
from (
  select array(
    select c.id
    from unnest(@statuses::text[]) with ordinality as w (status, place)
    cross join lateral (
      select i.id, i.state_changed_at
      from pawl.instance i
      left join pawl.timer t on t.tenant_id = i.tenant_id and t.instance_id = i.id
      where i.tenant_id = @tenant_id
        and i.status = w.status
        and i.workflow <> '' -- The condition of the indexes.
        and (sqlc.narg('workflows')::text[] is null or i.workflow = (sqlc.narg('workflows')::text[])[w.place])
        and (not @failing::boolean or t.failed_version = t.armed_version and t.failed_version = i.version)
        -- coalesce hides from the planner how rare a state is. Otherwise it would read all rows and sort them.
        and (sqlc.narg('states')::text[] is null or coalesce(i.state = any (sqlc.narg('states')), false))
        and (sqlc.narg('business_key')::text is null or i.business_key = sqlc.narg('business_key'))
        and (sqlc.narg('correlation_id')::text is null or i.correlation_id = sqlc.narg('correlation_id'))
        and (
          sqlc.narg('created_after')::timestamptz is null
          or i.created_at > sqlc.narg('created_after') and i.id >= pawl.uuid_v7_floor(sqlc.narg('created_after'))
        )
        and (
          sqlc.narg('created_before')::timestamptz is null
          or i.created_at < sqlc.narg('created_before')
            and i.id < pawl.uuid_v7_floor(sqlc.narg('created_before')::timestamptz + interval '1 millisecond')
        )
        and (
          sqlc.narg('stuck_for')::interval is null
          or i.state_changed_at <= (select pawl.now() - sqlc.narg('stuck_for')::interval)
            and i.id < (select pawl.uuid_v7_floor(pawl.now() - sqlc.narg('stuck_for')::interval + interval '1 millisecond'))
        )
        and (
          sqlc.narg('after_id')::uuid is null
          or case
            when @by_change::boolean and @ascending::boolean then
              (i.state_changed_at, i.id) > (sqlc.narg('after_change')::timestamptz, sqlc.narg('after_id'))
            when @by_change then (i.state_changed_at, i.id) < (sqlc.narg('after_change')::timestamptz, sqlc.narg('after_id'))
            when @ascending then i.id > sqlc.narg('after_id')
            else i.id < sqlc.narg('after_id')
          end
        )
      order by case when @ascending then i.id end, case when not @ascending then i.id end desc
      limit @read_limit
    ) c
    order by
      case when @by_change and @ascending then c.state_changed_at end,
      case when @by_change and not @ascending then c.state_changed_at end desc,
      case when @ascending then c.id end,
      case when not @ascending then c.id end desc
    limit @row_limit
  ) as ids
) c
cross join lateral pawl.instances_page(@tenant_id, c.ids, @bytes::bigint) i
join pawl.workflow_state s
  on s.workflow = i.workflow and s.workflow_version = i.workflow_version and s.state = i.state
left join pawl.next_timeout n on n.tenant_id = i.tenant_id and n.instance_id = i.id
order by array_position(c.ids, i.id);

-- ListPlace says when a list is read, and whether InstancesInStates can read it.
-- name: ListPlace :one
select p.as_of::timestamptz as as_of, p.near::boolean as near from pawl.list_place(@most::bigint) p;

-- InstancesInStates says which instances are in some states; see pawl.instances_in_states.
-- name: InstancesInStates :one
select f.ids::uuid[] as ids, f.versions::bigint[] as versions, f.changes::timestamptz[] as changes, f.rest
from pawl.instances_in_states(
  @tenant_id, @workflows::text[], @states::text[], @statuses::text[], sqlc.narg('created_after')::timestamptz,
  sqlc.narg('created_before')::timestamptz, sqlc.narg('stuck_for')::interval, @by_change::boolean, @ascending::boolean,
  sqlc.narg('after_change')::timestamptz, sqlc.narg('after_id')::uuid, @row_limit::integer, @most::integer, @few::integer,
  @probes::integer
) f;

-- SearchOf reads what the instances of a workflow are found by: what its latest version says.
-- name: SearchOf :one
select w.search from pawl.workflow w where w.name = @workflow order by w.version desc limit 1;

-- InstancesWhere says which instances fulfil conditions; see pawl.instances_where.
-- name: InstancesWhere :one
select w.ids::uuid[] as ids, w.versions::bigint[] as versions, w.rest, w.incomplete::boolean as incomplete
from pawl.instances_where(
  @tenant_id, @workflow, @conditions::jsonb, sqlc.narg('states')::text[], sqlc.narg('statuses')::text[], @ascending::boolean,
  sqlc.narg('after_id')::uuid, @row_limit::integer, @few::integer, @probes::integer,
  @patience::interval, sqlc.narg('most')::integer
) w;

-- InstancesPage reads instances of a tenant by their ids.
-- name: InstancesPage :many
select i.*, s.events as actions, n.event as timeout_event, n.due_at as timeout_due_at, n.last_error as timeout_error
from pawl.instances_page(@tenant_id, @ids::uuid[], @bytes::bigint) i
join pawl.workflow_state s
  on s.workflow = i.workflow and s.workflow_version = i.workflow_version and s.state = i.state
left join pawl.next_timeout n on n.tenant_id = i.tenant_id and n.instance_id = i.id
order by array_position(@ids, i.id);

-- ReindexWorkflow indexes some more instances of a workflow; see pawl.reindex_workflow.
-- name: ReindexWorkflow :one
select r.indexed::bigint as indexed, r.total::bigint as total, r.complete::boolean as complete
from pawl.reindex_workflow(@workflow, @row_limit::integer) r;

-- CountInstances counts the instances that ListInstances would read and sort, up to a limit. It applies only the
-- conditions that need no column outside the indexes. It must be planned for its arguments.
-- name: CountInstances :one
select count(*)
from (
  select
  from unnest(@statuses::text[]) with ordinality as w (status, place)
  cross join lateral (
    select
    from pawl.instance i
    left join pawl.timer t on t.tenant_id = i.tenant_id and t.instance_id = i.id
    where i.tenant_id = @tenant_id
      and i.status = w.status
      and i.workflow <> ''
      and (sqlc.narg('workflows')::text[] is null or i.workflow = (sqlc.narg('workflows')::text[])[w.place])
      and (not @failing::boolean or t.failed_version = t.armed_version)
      and (sqlc.narg('business_key')::text is null or i.business_key = sqlc.narg('business_key'))
      and (sqlc.narg('correlation_id')::text is null or i.correlation_id = sqlc.narg('correlation_id'))
      and (sqlc.narg('created_after')::timestamptz is null or i.id >= pawl.uuid_v7_floor(sqlc.narg('created_after')))
      and (
        sqlc.narg('created_before')::timestamptz is null
        or i.id < pawl.uuid_v7_floor(sqlc.narg('created_before')::timestamptz + interval '1 millisecond')
      )
      and (
        sqlc.narg('stuck_for')::interval is null
        or i.id < (select pawl.uuid_v7_floor(pawl.now() - sqlc.narg('stuck_for')::interval + interval '1 millisecond'))
      )
    limit @row_limit
  ) c
  limit @row_limit
) c;

-- ChosenStates reads the workflows, statuses and states that an instance may have if a list of some workflows
-- chooses it. If no states are given, state is empty. The name of a compound state stands for all states within.
-- name: ChosenStates :many
select distinct
  s.workflow,
  s.status,
  (case when sqlc.narg('states')::text[] is null then '' else s.state end)::text as state
from pawl.workflow_state s
where s.workflow = any (@workflows::text[])
  and (
    sqlc.narg('states')::text[] is null
    or exists (
      select from unnest(sqlc.narg('states')::text[]) as n (name) where s.state = n.name or starts_with(s.state, n.name || '.'))
  )
order by s.workflow, s.status, state;

-- ChosenStatesOfAll is ChosenStates for a list of all workflows; see pawl.chosen_states.
-- name: ChosenStatesOfAll :many
select c.workflow::text as workflow, c.status::text as status, c.state::text as state
from pawl.chosen_states(@states::text[], @by_workflow::boolean, @row_limit::integer) c;

-- name: ListWorkflowNames :many
select n::text as name from pawl.workflow_names(@row_limit::integer) n;

-- ListStateNames reads the states of some workflows.
-- name: ListStateNames :many
select distinct s.state
from pawl.workflow_state s
where s.workflow = any (@workflows::text[])
order by s.state;

-- ListAllStateNames reads the states of all workflows.
-- name: ListAllStateNames :many
select n::text as state from pawl.state_names(@row_limit::integer) n;

-- ListActions reads the events that a state accepts from callers, with the schema of their
-- payload, and with what the definition says of their transitions.
-- name: ListActions :many
select
  t.event,
  (array_agg(t.payload_schema))[1]::jsonb as payload_schema,
  array_agg(t.target order by t.position)::text[] as targets,
  coalesce(array_agg(t.description order by t.position) filter (where t.description is not null), '{}')::text[] as descriptions
from pawl.workflow_transition t
where t.workflow = @workflow and t.workflow_version = @workflow_version and t.source = @state
  and t.event <> 'ttl' and t.event not like '%:%' -- The engine's own.
group by t.event
order by t.event collate "C";

-- name: GuardHolds :many
select g.event::text as event, g.holds::boolean as holds
from pawl.instance i
cross join lateral pawl.guard_holds(i, @events::text[], @payload::jsonb, @actor::text, @verified::boolean) g
where i.tenant_id = @tenant_id and i.id = @id;

-- name: VersionOf :one
select version from pawl.instance where tenant_id = @tenant_id and id = @id;

-- name: GetHolder :one
select id from pawl.instance
where tenant_id = @tenant_id and workflow = @workflow and business_key = @business_key::text
  and (status = 'active' or not business_key_reusable)
limit 1;

-- WorkflowsOfInstances reads which workflows instances are of.
-- name: WorkflowsOfInstances :many
select i.id, i.workflow from pawl.instance i where i.tenant_id = @tenant_id and i.id = any (@ids::uuid[]);

-- name: TenantOfInstance :one
select pawl.tenant_of_instance(@id::uuid) as tenant;
