-- name: RegisterWorkflow :one
select r.version::integer as version, r.created::boolean as created
from pawl.register_workflow(@definition::jsonb, @actor::text, sqlc.narg('version')::integer, sqlc.narg('confirm')::text,
  sqlc.narg('retention_floor')::interval, @caller::jsonb) r;

-- name: JSONPathErrors :many
select p.path::text as path, coalesce(pawl.jsonpath_error(p.path), '')::text as error
from unnest(@paths::text[]) as p (path);

-- name: GetWorkflow :one
select * from pawl.workflow where name = @name order by version desc limit 1;

-- name: GetWorkflowVersion :one
select * from pawl.workflow where name = @name and version = @version;

-- name: ListWorkflows :many
select w.* from pawl.workflows_page(
  @after::text, @row_limit::integer, @bytes::bigint, sqlc.narg('workflows')::text[]) w order by w.name;

-- name: GetSetting :one
select * from pawl.setting;

-- IsReadOnly says whether the server takes no writes, like a standby.
-- name: IsReadOnly :one
select current_setting('transaction_read_only')::boolean as read_only;

-- name: ProposeWorkflow :one
select pawl.propose_workflow(@definition::jsonb)::integer as version;

-- name: RegisterSchema :one
select r.version::integer as version, r.created::boolean as created
from pawl.register_schema(@name::text, @schema::jsonb, @actor::text, @caller::jsonb) r;

-- name: GetSchema :one
select * from pawl.schema where name = @name order by version desc limit 1;

-- name: GetSchemaVersion :one
select * from pawl.schema where name = @name and version = @version;

-- name: ListSchemas :many
select s.* from pawl.schemas_page(@after::text, @row_limit::integer, @bytes::bigint) s order by s.name;

-- name: ListSchemaNames :many
select distinct s.name from pawl.schema s order by s.name limit @row_limit::integer;

-- name: SchemasFor :many
select s.reference::text as reference, s.schema::jsonb as schema
from pawl.schemas_for(@refs::text[], @bytes::bigint) s;
