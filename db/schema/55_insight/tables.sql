-- Module insight: where the instances are, and what they did. History says all of it, but to read it off takes a scan.
--
-- The consumer insight reads the log and folds it: each page of steps becomes some rows more or other sums in the tables
-- below, in the transaction that moves the consumer's position. So each step is counted exactly once, whatever dies
-- meanwhile, and a transition pays nothing for it. One process folds at a time, so that sums are no hot rows.
--
-- A *visit* is the time that an instance spends in a state. It begins with a step that enters the state, and ends with
-- the next step that is not internal: also if that leads back to the state, and with an instance migration that keeps it.
--
-- A page of steps is folded by one statement. What the fold has seen of an instance before is in residence, so that no
-- history is read but the page's own.
--
-- What was folded is behind the instances by as long as the fold takes. A reader adds what the log has beyond the
-- consumer's position; see pawl_private.unfolded.
--
-- History that is purged cannot be counted again: sums of steps and visits are never reduced. The purge takes its
-- instances out of residence and instance_count, in its own transaction. An instance is purged only after the fold has
-- seen its last step; see pawl_private.log_retains.
--
-- Lock order: consumer, residence, instance_count (by key), the other sums, attribute (by key), after all of the engine's.
-- A reindex takes the consumer and search_index before the rows of residence.

-- residence says which state an instance is in, as of what was folded.
create table pawl.residence (
  tenant_id pawl.tenant_id not null,
  instance_id uuid not null,
  workflow text collate "C" not null,
  workflow_version integer not null,
  state text collate "C" not null,
  status pawl.status not null,
  since timestamptz not null,
  visit_version pawl.version not null,
  visit_at timestamptz not null,
  constraint residence_pkey primary key (tenant_id, instance_id)
)
-- A row is updated with almost each step of its instance, and its entries in the indexes with it.
with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);

comment on column pawl.residence.since is 'the instance''s state_changed_at';
comment on column pawl.residence.visit_version is 'the step that began the visit';
comment on column pawl.residence.visit_at is 'when the visit began: later than since if an instance migration kept the state';

-- Lists of the instances in a state, in the order of their ids.
create index residence_state_idx on pawl.residence (tenant_id, workflow, state, instance_id);
-- Those that have been in a state for longest.
create index residence_since_idx on pawl.residence (tenant_id, workflow, state, since, instance_id);

-- instance_count has the number of rows in residence.
create table pawl.instance_count (
  tenant_id pawl.tenant_id not null,
  workflow text collate "C" not null,
  workflow_version integer not null,
  state text collate "C" not null,
  status pawl.status not null,
  instances bigint not null,
  constraint instance_count_pkey primary key (tenant_id, workflow, workflow_version, state, status),
  constraint instance_count_is_a_count check (instances >= 0)
)
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- edge_count has the number of steps from a state to another on a day. Its version is that of the step.
create table pawl.edge_count (
  tenant_id pawl.tenant_id not null,
  workflow text collate "C" not null,
  workflow_version integer not null,
  day date not null,
  from_state text collate "C" not null,
  event text collate "C" not null,
  to_state text collate "C" not null,
  status pawl.status not null,
  steps bigint not null,
  constraint edge_count_pkey primary key (tenant_id, workflow, day, workflow_version, from_state, event, to_state, status),
  constraint edge_count_is_positive check (steps > 0)
)
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

comment on column pawl.edge_count.day is 'of the step, in UTC';
comment on column pawl.edge_count.from_state is 'empty: creations';
comment on column pawl.edge_count.event is
  'as the definition declares it, be it a pattern; forced, cancelled or migrated for such a step; empty for a creation and an eventless step';
comment on column pawl.edge_count.status is 'the instance''s after the step';

-- dwell_count has the number of visits that ended on a day, by how long they lasted and where their end led. Its version is the one that the
-- instance had during the visit.
create table pawl.dwell_count (
  tenant_id pawl.tenant_id not null,
  workflow text collate "C" not null,
  workflow_version integer not null,
  day date not null,
  state text collate "C" not null,
  bucket integer not null,
  led_to text collate "C" not null,
  visits bigint not null,
  milliseconds bigint not null,
  constraint dwell_count_pkey primary key (tenant_id, workflow, day, workflow_version, state, bucket, led_to),
  constraint dwell_count_is_positive check (visits > 0)
)
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

comment on column pawl.dwell_count.day is 'on which the visit ended, in UTC';
comment on column pawl.dwell_count.bucket is 'see pawl_private.dwell_bucket';
comment on column pawl.dwell_count.led_to is 'the state that the visit''s end led to; empty if an instance migration ended it';
comment on column pawl.dwell_count.milliseconds is 'the sum of the visits'' durations';

-- dwell_hour has the visits that ended in the last 24 full hours and the present one, whatever the version. It is a ring: an
-- hour takes the slot of the 25th hour before it, so that no row is ever deleted. A row of an older hour counts for
-- nothing.
create table pawl.dwell_hour (
  tenant_id pawl.tenant_id not null,
  workflow text collate "C" not null,
  state text collate "C" not null,
  slot integer not null,
  hour bigint not null,
  visits bigint not null,
  milliseconds bigint not null,
  constraint dwell_hour_pkey primary key (tenant_id, workflow, state, slot),
  constraint dwell_hour_is_positive check (visits > 0)
)
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

comment on column pawl.dwell_hour.hour is 'in which the visits ended: hours since 1970, in UTC';

-- command_count has the number of commands that were answered on a day. The processes that answer count them and write
-- them every few seconds, so that what they have counted since is lost if they crash. Commands of SQL callers are not
-- counted.
create table pawl.command_count (
  tenant_id pawl.tenant_id not null,
  workflow text collate "C" not null,
  day date not null,
  event text collate "C" not null,
  outcome text collate "C" not null,
  key_result text collate "C" not null,
  commands bigint not null,
  constraint command_count_pkey primary key (tenant_id, workflow, day, event, outcome, key_result),
  constraint command_count_is_positive check (commands > 0),
  constraint command_count_outcome_is_a_code check (outcome ~ '^[a-z-]{1,63}$'),
  constraint command_count_key_result_is_known check (key_result in ('', 'new', 'replayed', 'collision'))
)
with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

comment on column pawl.command_count.day is 'on which the counts were written, in UTC';
comment on column pawl.command_count.event is
  'as the latest version declares it, be it a pattern; _create for a creation; _other for what no state declares';
comment on column pawl.command_count.outcome is 'applied, or why the command was refused';
comment on column pawl.command_count.key_result is
  'what the idempotency key was: new, replayed, or used for another request; empty if the caller gave none or the command was not decided';

-- forecast_score says how good the forecasts of a day were: of the visits of a state that ended on it, how many had ended
-- by the quantiles of the days before.
create table pawl.forecast_score (
  tenant_id pawl.tenant_id not null,
  workflow text collate "C" not null,
  state text collate "C" not null,
  day date not null,
  visits bigint not null,
  within_p50 bigint not null,
  within_p90 bigint not null,
  constraint forecast_score_pkey primary key (tenant_id, workflow, state, day),
  constraint forecast_score_is_a_part check (within_p50 >= 0 and within_p50 <= within_p90 and within_p90 <= visits)
);

-- forecast_night is how far the scoring of a day has come. It has one row.
create table pawl_private.forecast_night (
  day date not null,
  tenant_id text collate "C" not null,
  workflow text collate "C" not null,
  done boolean not null
)
with (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

create unique index forecast_night_has_one_row_idx on pawl_private.forecast_night ((true));

comment on column pawl_private.forecast_night.workflow is 'the last one that was scored; empty if none was';

insert into pawl_private.forecast_night (day, tenant_id, workflow, done) values ('epoch', '', '', true);
-- attribute has the values that instances are found by: see pawl.workflow.search. Objects, arrays and null have no row,
-- nor have numbers of more than 100 characters.
create table pawl.attribute (
  tenant_id pawl.tenant_id not null,
  instance_id uuid not null,
  name text collate "C" not null,
  workflow text collate "C" not null,
  text_value text collate "C",
  number_value numeric,
  time_value timestamptz,
  boolean_value boolean,
  constraint attribute_pkey primary key (tenant_id, instance_id, name),
  constraint attribute_has_a_value check (num_nonnulls(text_value, number_value, time_value, boolean_value) > 0),
  constraint attribute_text_has_at_most_255_bytes check (octet_length(text_value) <= 255)
)
with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);

comment on column pawl.attribute.text_value is 'of a text of more than 255 bytes the first 63 characters';
comment on column pawl.attribute.time_value is 'of a text that is a time of RFC 3339';

create index attribute_text_idx on pawl.attribute (tenant_id, workflow, name, text_value, instance_id) where text_value is not null;
create index attribute_number_idx on pawl.attribute (tenant_id, workflow, name, number_value, instance_id) where number_value is not null;
create index attribute_time_idx on pawl.attribute (tenant_id, workflow, name, time_value, instance_id) where time_value is not null;
create index attribute_boolean_idx on pawl.attribute (tenant_id, workflow, name, boolean_value, instance_id) where boolean_value is not null;

-- search_index says by which attributes the instances of a workflow were indexed, or are being indexed anew. The index
-- is complete if it is that of the latest version's search.
create table pawl_private.search_index (
  workflow text collate "C" not null,
  search jsonb not null,
  complete boolean not null,
  after_tenant text collate "C" not null,
  after_id uuid not null,
  indexed bigint not null,
  constraint search_index_pkey primary key (workflow)
);

comment on column pawl_private.search_index.after_tenant is 'with after_id: the last instance that was looked at';
comment on column pawl_private.search_index.indexed is 'how many instances were indexed';
