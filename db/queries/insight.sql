-- InsightFold folds the next page of the log.
-- name: InsightFold :one
select f.leads::boolean as leads, f.steps::bigint as steps
from pawl.insight_fold(@leader::text, @term::bigint, @row_limit::integer, @lease::interval) f;

-- WorkflowIsRegistered says whether there is a version of a workflow, and what time it is.
-- name: WorkflowIsRegistered :one
select exists (select 1 from pawl.workflow w where w.name = @workflow::text)::boolean as registered, pawl.now()::timestamptz as now;

-- CountInStates reads how many instances of a workflow are in each state with each status. There is one row at least: its
-- state is empty if there are no instances.
-- by: 'version' to count the instances of each version
-- name: CountInStates :many
with counted as (
  select
    case when @by::text = 'version' then c.workflow_version else 0 end as version, c.state, c.status, sum(c.instances) as instances
  from pawl.instance_count c
  where c.tenant_id = @tenant::text and c.workflow = @workflow::text and c.instances > 0
  group by 1, 2, 3
  order by 1, 2, 3
  limit @row_limit::integer
)
select
  a.as_of::timestamptz as as_of, coalesce(c.version, 0)::integer as version, coalesce(c.state, '')::text as state,
  coalesce(c.status, '')::text as status, coalesce(c.instances, 0)::bigint as instances
from (select pawl.insight_as_of() as as_of) a
left join counted c on true
order by 2, 3, 4;

-- SumDwells reads how long visits lasted, by state. buckets and visits belong together, and are in no order; see
-- pawl_private.dwell_bucket. visits_before and milliseconds_before are those of the days from before_day: they cost less in
-- this query than another scan of these days does.
-- by: 'version' or 'day' for the visits of each
-- name: SumDwells :many
with visit as (
  select
    case when @by::text = 'version' then d.workflow_version else 0 end as version,
    case when @by::text = 'day' then d.day else date '1970-01-01' end as day, d.state, d.bucket, sum(d.visits)::bigint as visits,
    sum(d.milliseconds)::bigint as milliseconds, (sum(d.visits) filter (where d.day >= @before_day::date))::bigint as visits_before,
    (sum(d.milliseconds) filter (where d.day >= @before_day))::bigint as milliseconds_before
  from pawl.dwell_count d
  where d.tenant_id = @tenant::text and d.workflow = @workflow::text and d.day >= @from_day::date and d.day <= @to_day::date
  group by 1, 2, 3, 4
)
select
  v.version::integer as version, v.day::date as day, v.state::text as state, sum(v.milliseconds)::bigint as milliseconds,
  array_agg(v.bucket)::integer[] as buckets, array_agg(v.visits)::bigint[] as visits,
  coalesce(sum(v.visits_before), 0)::bigint as visits_before, coalesce(sum(v.milliseconds_before), 0)::bigint as milliseconds_before
from visit v
group by v.version, v.day, v.state
order by v.day, v.version, v.state
limit @row_limit::integer;

-- SumEdges reads how many steps led from a state to another. bad has those that ended their instance without completing it.
-- by: see SumDwells
-- name: SumEdges :many
select
  (case when @by::text = 'version' then e.workflow_version else 0 end)::integer as version,
  (case when @by::text = 'day' then e.day else date '1970-01-01' end)::date as day, e.from_state::text as from_state, e.event::text as event,
  e.to_state::text as to_state, sum(e.steps)::bigint as steps,
  coalesce(sum(e.steps) filter (where e.status not in ('active', 'completed')), 0)::bigint as bad
from pawl.edge_count e
where e.tenant_id = @tenant::text and e.workflow = @workflow::text and e.day >= @from_day::date and e.day <= @to_day::date
group by 1, 2, 3, 4, 5
order by 2, 1, 3, 4, 5
limit @row_limit::integer;

-- SumDwellHours reads how long visits lasted that ended in the last 24 hours.
-- from_hour, to_hour: as pawl.dwell_hour counts them
-- name: SumDwellHours :many
select h.state::text as state, sum(h.visits)::bigint as visits, sum(h.milliseconds)::bigint as milliseconds
from pawl.dwell_hour h
where h.tenant_id = @tenant::text and h.workflow = @workflow::text and h.hour >= @from_hour::bigint and h.hour <= @to_hour::bigint
group by h.state
order by h.state;

-- CountTasksByTopic counts the tasks of a workflow among the tenant's newest row_limit that were made between two ids.
-- looked_at is how many of the tenant's were looked at. There is one row at least: its topic and connection are empty if
-- there are no tasks.
-- name: CountTasksByTopic :many
with task as materialized (
  select t.workflow, t.topic, t.connection, t.status
  from pawl.task t
  where t.tenant_id = @tenant::text and t.id >= @from_id::uuid and t.id < @to_id::uuid
  order by t.id desc
  limit @row_limit::integer
),
counted as (
  select
    t.topic, t.connection, count(*) as tasks, count(*) filter (where t.status in ('pending', 'sent', 'reconciling')) as open,
    count(*) filter (where t.status = 'done') as done, count(*) filter (where t.status = 'error') as errors,
    count(*) filter (where t.status = 'unknown') as unknown, count(*) filter (where t.status = 'cancelled') as cancelled
  from task t
  where t.workflow = @workflow::text
  group by t.topic, t.connection
)
select
  n.looked_at::bigint as looked_at, coalesce(c.topic, '')::text as topic, coalesce(c.connection, '')::text as connection,
  coalesce(c.tasks, 0)::bigint as tasks, coalesce(c.open, 0)::bigint as open, coalesce(c.done, 0)::bigint as done,
  coalesce(c.errors, 0)::bigint as errors, coalesce(c.unknown, 0)::bigint as unknown, coalesce(c.cancelled, 0)::bigint as cancelled
from (select count(*) as looked_at from task) n
left join counted c on true
order by 2, 3;

-- SumCommands reads how many commands got which answer.
-- name: SumCommands :many
select c.event::text as event, c.outcome::text as outcome, c.key_result::text as key_result, sum(c.commands)::bigint as commands
from pawl.command_count c
where c.tenant_id = @tenant::text and c.workflow = @workflow::text and c.day >= @from_day::date and c.day <= @to_day::date
group by c.event, c.outcome, c.key_result
order by c.event, c.outcome, c.key_result
limit @row_limit::integer;

-- CountCommands adds what a process has counted.
-- name: CountCommands :exec
select pawl.count_commands(
  @tenants::text[], @workflows::text[], @events::text[], @outcomes::text[], @key_results::text[], @commands::bigint[], @instances::uuid[]);

-- CountVisits reads how many visits of each state of a workflow ended, by how long they lasted and where they led.
-- name: CountVisits :many
select d.state::text as state, d.bucket::integer as bucket, d.led_to::text as led_to, sum(d.visits)::bigint as visits
from pawl.dwell_count d
where d.tenant_id = @tenant::text and d.workflow = @workflow::text and d.day >= @from_day::date and d.day <= @to_day::date
group by d.state, d.bucket, d.led_to
order by d.state, d.bucket, d.led_to;

-- CountOpenVisits reads how many visits of some states have not ended, by how long they have lasted: of each state those
-- row_limit that began first. instances is how many there are in all.
-- name: CountOpenVisits :many
select
  s.state::text as state, coalesce((
    select sum(c.instances)
    from pawl.instance_count c
    where c.tenant_id = @tenant::text and c.workflow = @workflow::text and c.state = s.state and c.status = 'active'
  ), 0)::bigint as instances, o.bucket::integer as bucket, count(*)::bigint as visits
from unnest(@states::text[]) as s (state)
cross join lateral (
  select case when a.milliseconds < 1 then 0 else floor(ln(a.milliseconds) / ln(1.1::double precision)) + 1 end as bucket
  from (
    select extract(epoch from r.visit_at - @now::timestamptz)::double precision * -1000 as milliseconds
    from pawl.residence r
    where r.tenant_id = @tenant::text and r.workflow = @workflow::text and r.state = s.state
    order by r.since
    limit @row_limit::integer
  ) a
) o
group by s.state, o.bucket
order by s.state, o.bucket;

-- EndStates reads in which states, and with which status, instances of a workflow have ended.
-- name: EndStates :many
select e.to_state::text as state, min(e.status::text)::text as status
from pawl.edge_count e
where e.tenant_id = @tenant::text and e.workflow = @workflow::text and e.day >= @from_day::date and e.day <= @to_day::date and e.status <> 'active'
group by e.to_state
order by e.to_state;

-- InsightAsOf says up to when steps are counted.
-- name: InsightAsOf :one
select pawl.insight_as_of()::timestamptz as as_of;

-- ScoreForecasts scores the forecasts of yesterday for some more workflows.
-- name: ScoreForecasts :one
select s.leads::boolean as leads, s.more::boolean as more
from pawl.score_forecasts(@leader::text, @term::bigint, @row_limit::integer) s;

-- ForecastCoverage reads how good the forecasts for a state were on the last days.
-- name: ForecastCoverage :one
select
  coalesce(sum(s.visits), 0)::bigint as visits, coalesce(sum(s.within_p50), 0)::bigint as within_p50,
  coalesce(sum(s.within_p90), 0)::bigint as within_p90
from pawl.forecast_score s
where s.tenant_id = @tenant::text and s.workflow = @workflow::text and s.state = @state::text and s.day >= @from_day::date;
